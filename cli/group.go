package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

func (c *cli) groupCommands(root *cobra.Command) {
	var description, mode, condition string
	var rules, permissions []string
	create := c.command(root, "create NAME", "Creates a permission group",
		"caddy service-user group create people-readers --rule \"allow GET /v1/people/{id}\"", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			in := admin.GroupInput{
				Name: admin.Some(args[0]), Description: admin.Some(description),
				MemberCondition: admin.Some(condition), Permissions: admin.Some(notEmpty(permissions)),
			}
			if mode != "" {
				in.Mode = admin.Some(access.Mode(mode))
			}
			var list []admin.RuleInput
			for _, text := range rules {
				list = append(list, admin.RuleInput{Text: text})
			}
			in.Rules = admin.Some(list)
			var g admin.Group
			if err := client.Do(ctx, http.MethodPost, "/permission_groups", in, &g); err != nil {
				return err
			}
			return c.printGroup(ctx, client, g)
		})
	create.Flags().StringVar(&description, "description", "", "what it is for")
	create.Flags().StringVar(&mode, "mode", "", "enforce (the default) or observe")
	create.Flags().StringArrayVar(&rules, "rule", nil, "a rule, such as \"allow GET /v1/people/{id}\" (may be repeated)")
	create.Flags().StringSliceVar(&permissions, "permission", nil, "a permission of the catalogue that it has (may be repeated)")
	create.Flags().StringVar(&condition, "condition", "", "a CEL expression over user; whoever meets it is a member")

	c.command(root, "list", "Lists permission groups, newest first",
		"caddy service-user group list", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			groups := []admin.Group{}
			err := admin.All(ctx, client, "/permission_groups", func(l admin.GroupList) admin.Page {
				groups = append(groups, l.PermissionGroups...)
				return l.Page
			})
			if err != nil {
				return err
			}
			return c.print(admin.GroupList{PermissionGroups: groups, Page: admin.Page{URI: "/permission_groups"}}, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tNAME\tMODE\tRULES\tPERMISSIONS\tMEMBERS\tCREATED")
				for _, g := range groups {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", g.ID, g.Name, g.Mode, len(g.Rules), len(g.Permissions), g.MemberCount, when(&g.CreatedAt))
				}
			})
		})

	c.command(root, "show GROUP", "Shows a permission group with its rules and members",
		"caddy service-user group show people-readers", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			g, err := client.FindGroup(ctx, args[0])
			if err != nil {
				return err
			}
			return c.printGroup(ctx, client, g)
		})

	var change struct {
		name, description, mode, condition string
		permissions                        []string
	}
	var update *cobra.Command
	update = c.command(root, "update GROUP", "Changes what is given of a permission group",
		"caddy service-user group update people-readers --mode observe", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			g, err := client.FindGroup(ctx, args[0])
			if err != nil {
				return err
			}
			var in admin.GroupInput
			if update.Flags().Changed("name") {
				in.Name = admin.Some(change.name)
			}
			if update.Flags().Changed("description") {
				in.Description = admin.Some(change.description)
			}
			if update.Flags().Changed("mode") {
				in.Mode = admin.Some(access.Mode(change.mode))
			}
			if update.Flags().Changed("condition") {
				in.MemberCondition = admin.Some(change.condition)
			}
			if update.Flags().Changed("permission") {
				in.Permissions = admin.Some(notEmpty(change.permissions))
			}
			var after admin.Group
			if err := client.Do(ctx, http.MethodPatch, g.URI, in, &after); err != nil {
				return err
			}
			return c.printGroup(ctx, client, after)
		})
	update.Flags().StringVar(&change.name, "name", "", "another name")
	update.Flags().StringVar(&change.description, "description", "", "what it is for")
	update.Flags().StringVar(&change.mode, "mode", "", "enforce or observe")
	update.Flags().StringSliceVar(&change.permissions, "permission", nil, "the permissions that it has (may be repeated); \"\" is none")
	update.Flags().StringVar(&change.condition, "condition", "", "a CEL expression over user; whoever meets it is a member; \"\" is nobody")

	c.destructive(c.command(root, "delete GROUP", "Deletes a permission group; its members lose what it grants and refuses",
		"caddy service-user group delete people-readers --yes", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			g, err := client.FindGroup(ctx, args[0])
			if err != nil {
				return err
			}
			if err := c.sure("Delete the permission group %s (%s) with %s? What it grants and refuses to its %s ends.",
				g.Name, g.ID, plural(len(g.Rules), "rule"), plural(g.MemberCount, "member")); err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, g.URI, nil, nil); err != nil {
				return err
			}
			return c.done("deleted %s (%s)", g.Name, g.ID)
		}), nil)

	member := func(use, short, example, method, past string) {
		c.command(root, use, short, example, 2,
			func(ctx context.Context, client *admin.Client, args []string) error {
				g, err := client.FindGroup(ctx, args[0])
				if err != nil {
					return err
				}
				u, err := client.FindServiceUser(ctx, args[1])
				if err != nil {
					return err
				}
				if err := client.Do(ctx, method, g.URI+"/members/"+u.ID, nil, nil); err != nil {
					return err
				}
				return c.done(past, u.Name, g.Name)
			})
	}
	member("add GROUP USER", "Makes a service user a member of a permission group",
		"caddy service-user group add people-readers billing-sync", http.MethodPut, "%s is a member of %s")
	member("remove GROUP USER", "Ends a membership",
		"caddy service-user group remove people-readers billing-sync", http.MethodDelete, "%s is no member of %s")
}

func (c *cli) printGroup(ctx context.Context, client *admin.Client, g admin.Group) error {
	var members []string
	if !c.json {
		err := admin.All(ctx, client, g.URI+"/members", func(l admin.MemberList) admin.Page {
			for _, m := range l.Members {
				name := cell(m.Name)
				if m.Source == string(access.ByCondition) {
					name += "\t(by condition)"
				}
				members = append(members, name)
			}
			return l.Page
		})
		if err != nil {
			return err
		}
	}
	return c.print(g, func(w io.Writer) {
		fmt.Fprintf(w, "id\t%s\nname\t%s\n", g.ID, g.Name)
		if g.Description != "" {
			fmt.Fprintf(w, "description\t%s\n", cell(g.Description))
		}
		fmt.Fprintf(w, "mode\t%s\n", g.Mode)
		if g.MemberCondition != "" {
			fmt.Fprintf(w, "condition\t%s\n", cell(g.MemberCondition))
		}
		for _, key := range g.Permissions {
			fmt.Fprintf(w, "permission\t%s\n", key)
		}
		for _, r := range g.Rules {
			fmt.Fprintf(w, "rule\t%s\n", cell(r.Text))
		}
		for _, m := range members {
			fmt.Fprintf(w, "member\t%s\n", m)
		}
	}, warningNotes(g.Warnings)...)
}

// warningNotes tells of rules that may not do what they were meant to.
func warningNotes(warnings []string) []string {
	notes := make([]string, len(warnings))
	for i, w := range warnings {
		notes[i] = "warning: " + cell(w)
	}
	return notes
}

func (c *cli) ruleCommands(root *cobra.Command) {
	c.command(root, "add GROUP RULE", "Adds a rule to a permission group",
		"caddy service-user rule add people-readers \"allow GET /v1/people/{id}\"", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			g, err := client.FindGroup(ctx, args[0])
			if err != nil {
				return err
			}
			var r admin.Rule
			if err := client.Do(ctx, http.MethodPost, g.URI+"/rules", admin.RuleInput{Text: args[1]}, &r); err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) { fmt.Fprintf(w, "%s\t%s\n", r.ID, r.Text) }, warningNotes(r.Warnings)...)
		})
	c.command(root, "list GROUP", "Lists the rules of a permission group",
		"caddy service-user rule list people-readers", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			g, err := client.FindGroup(ctx, args[0])
			if err != nil {
				return err
			}
			var list admin.RuleList
			if err := client.Do(ctx, http.MethodGet, g.URI+"/rules", nil, &list); err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tRULE")
				for _, r := range list.Rules {
					fmt.Fprintf(w, "%s\t%s\n", r.ID, r.Text)
				}
			})
		})
	c.destructive(c.command(root, "remove GROUP RULE_ID", "Removes a rule from a permission group",
		"caddy service-user rule remove people-readers rule_2x… --yes", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			g, err := client.FindGroup(ctx, args[0])
			if err != nil {
				return err
			}
			if err := checkID("rule", args[1]); err != nil {
				return err
			}
			if err := c.sure("Remove %s from %s?", ruleText(g, args[1]), g.Name); err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, g.URI+"/rules/"+args[1], nil, nil); err != nil {
				return err
			}
			return c.done("removed %s", args[1])
		}), nil)
}

// ruleText names a rule of a group for a question.
func ruleText(g admin.Group, id string) string {
	for _, r := range g.Rules {
		if r.ID == id {
			return fmt.Sprintf("%q (%s)", r.Text, id)
		}
	}
	return id
}

func groupIDs(ctx context.Context, client *admin.Client, idsOrNames []string) ([]string, error) {
	ids := []string{}
	for _, name := range notEmpty(idsOrNames) {
		g, err := client.FindGroup(ctx, name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, g.ID)
	}
	return ids, nil
}
