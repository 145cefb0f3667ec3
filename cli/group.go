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
	c.createGroupCommand(root)
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
			list := admin.GroupList{PermissionGroups: groups, Page: admin.Page{URI: "/permission_groups"}}
			return c.print(list, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tNAME\tMODE\tRULES\tPERMISSIONS\tMEMBERS\tCREATED")
				for _, g := range groups {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", g.ID, g.Name, g.Mode,
						len(g.Rules), len(g.Permissions), g.MemberCount, when(&g.CreatedAt))
				}
			})
		})

	c.command(root, "show GROUP", "Shows a permission group with its rules and members",
		"caddy service-user group show people-readers", 1,
		onGroup(func(ctx context.Context, client *admin.Client, g admin.Group, _ []string) error {
			return c.printGroup(ctx, client, g)
		}))

	c.updateGroupCommand(root)
	c.destructive(c.command(root, "delete GROUP",
		"Deletes a permission group; its members lose what it grants and refuses",
		"caddy service-user group delete people-readers --yes", 1,
		onGroup(func(ctx context.Context, client *admin.Client, g admin.Group, _ []string) error {
			if err := c.sure("Delete the permission group %s (%s) with %s? What it grants and refuses to its %s ends.",
				g.Name, g.ID, plural(len(g.Rules), "rule"), plural(g.MemberCount, "member")); err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, g.URI, nil, nil); err != nil {
				return err
			}
			return c.done("deleted %s (%s)", g.Name, g.ID)
		})), nil)

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

// onGroup returns an action that first finds the permission group of its first argument.
func onGroup(do func(context.Context, *admin.Client, admin.Group, []string) error) action {
	return func(ctx context.Context, client *admin.Client, args []string) error {
		g, err := client.FindGroup(ctx, args[0])
		if err != nil {
			return err
		}
		return do(ctx, client, g, args)
	}
}

func (c *cli) createGroupCommand(root *cobra.Command) {
	var in admin.GroupInput
	var rules, permissions []string
	create := c.command(root, "create NAME", "Creates a permission group",
		"caddy service-user group create people-readers --rule \"allow GET /v1/people/{id}\"", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			in.Name, in.Permissions = admin.Some(args[0]), admin.Some(notEmpty(permissions))
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
	flags := create.Flags()
	flags.Var(optFlag[string]{&in.Description}, "description", "what it is for")
	flags.Var(optFlag[access.Mode]{&in.Mode}, "mode", "enforce (the default) or observe")
	flags.StringArrayVar(&rules, "rule", nil, "a rule, such as \"allow GET /v1/people/{id}\" (may be repeated)")
	flags.StringSliceVar(&permissions, "permission", nil,
		"a permission of the catalogue that it has (may be repeated)")
	flags.Var(optFlag[string]{&in.MemberCondition}, "condition",
		"a CEL expression over user; whoever meets it is a member")
}

func (c *cli) updateGroupCommand(root *cobra.Command) {
	var in admin.GroupInput
	var permissions []string
	var update *cobra.Command
	update = c.command(root, "update GROUP", "Changes what is given of a permission group",
		"caddy service-user group update people-readers --mode observe", 1,
		onGroup(func(ctx context.Context, client *admin.Client, g admin.Group, _ []string) error {
			if update.Flags().Changed("permission") {
				in.Permissions = admin.Some(notEmpty(permissions))
			}
			var after admin.Group
			if err := client.Do(ctx, http.MethodPatch, g.URI, in, &after); err != nil {
				return err
			}
			return c.printGroup(ctx, client, after)
		}))
	flags := update.Flags()
	flags.Var(optFlag[string]{&in.Name}, "name", "another name")
	flags.Var(optFlag[string]{&in.Description}, "description", "what it is for")
	flags.Var(optFlag[access.Mode]{&in.Mode}, "mode", "enforce or observe")
	flags.StringSliceVar(&permissions, "permission", nil,
		"the permissions that it has (may be repeated); \"\" is none")
	flags.Var(optFlag[string]{&in.MemberCondition}, "condition",
		"a CEL expression over user; whoever meets it is a member; \"\" is nobody")
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

// warningNotes returns a note for each warning about rules.
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
		onGroup(func(ctx context.Context, client *admin.Client, g admin.Group, args []string) error {
			var r admin.Rule
			err := client.Do(ctx, http.MethodPost, g.URI+"/rules", admin.RuleInput{Text: args[1]}, &r)
			if err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) { fmt.Fprintf(w, "%s\t%s\n", r.ID, r.Text) },
				warningNotes(r.Warnings)...)
		}))
	c.command(root, "list GROUP", "Lists the rules of a permission group",
		"caddy service-user rule list people-readers", 1,
		onGroup(func(ctx context.Context, client *admin.Client, g admin.Group, _ []string) error {
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
		}))
	c.destructive(c.command(root, "remove GROUP RULE_ID", "Removes a rule from a permission group",
		"caddy service-user rule remove people-readers rule_2x… --yes", 2,
		onGroup(func(ctx context.Context, client *admin.Client, g admin.Group, args []string) error {
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
		})), nil)
}

// ruleText returns the text and the id of a rule, for a question.
func ruleText(g admin.Group, id string) string {
	for _, r := range g.Rules {
		if r.ID == id {
			return fmt.Sprintf("%q (%s)", r.Text, id)
		}
	}
	return id
}

// groupIDs returns the ids of permission groups. It ignores "".
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
