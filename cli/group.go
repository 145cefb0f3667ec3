package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

func (c *cli) groupCommands(root *cobra.Command) {
	c.createGroupCommand(root)
	c.listGroupsCommand(root)
	c.command(root, "show GROUP", "Shows a permission group with its rules and members",
		"group show people-readers",
		on(c.permissionGroup, func(g admin.Group, _ []string) error { return c.printGroup(g) }))
	c.updateGroupCommand(root)
	c.destructive(c.command(root, "delete GROUP",
		"Deletes a permission group; its rules no longer apply to its members; "+
			"for some time it can be brought back",
		"group delete people-readers --yes",
		on(c.permissionGroup, func(g admin.Group, _ []string) error {
			rules, members := plural(len(g.Rules), "rule"), plural(g.MemberCount, "member")
			if err := c.sure("Delete the permission group %s (%s) with %s? Its %s will lose them.",
				g.Name, g.ID, rules, members); err != nil {
				return err
			}
			return c.change(http.MethodDelete, g.URI, "deleted %s (%s)", g.Name, g.ID)
		})), nil)
	c.command(root, "undelete GROUP",
		"Brings a deleted permission group back as it was, with its rules, members and permissions",
		"group undelete people-readers",
		func(args []string) error {
			var g admin.Group
			id, err := c.deleted("group", "permission group", "/permission_groups",
				"group list --deleted", args[0])
			if err == nil {
				err = c.do(http.MethodPost, "/permission_groups/"+id+"/undelete", nil, &g)
			}
			if err != nil {
				return err
			}
			notes := []string{"It was " + deletion(*g.Undeleted) + "."}
			for _, lost := range g.NotRestored {
				notes = append(notes, "not restored: "+lost)
			}
			return c.printGroup(g, notes...)
		})

	member := func(name, do, short, method, past, question, done string) {
		c.bulkCommand(root, bulkVerb{
			use: name + " GROUP [USER…]", short: short,
			example: "group " + name + " people-readers billing-sync",
			others:  1, id: c.userID,
			one: on(c.permissionGroup, func(g admin.Group, args []string) error {
				u, err := c.user(args[1])
				if err != nil {
					return err
				}
				if err := c.do(method, g.URI+"/members/"+u.ID, nil, nil); err != nil {
					return err
				}
				if method == http.MethodDelete {
					err = c.stillMembers([]string{g.ID}, admin.BulkEntry{ID: u.ID, Name: u.Name})
				}
				if err != nil {
					return err
				}
				return c.done(past, u.Name, g.Name)
			}),
			many: func(args []string) (*change, error) {
				g, err := first(c.permissionGroup, args)
				work := &change{question: question + g.Name + "?", done: done + g.Name}
				work.Do, work.PermissionGroup = do, g.ID
				return work, err
			},
		})
	}
	member("add", "add_to_group", "Makes service users members of a permission group",
		http.MethodPut, "%s is a member of %s", "Add %s to ", "added %s to ")
	member("remove", "remove_from_group", "Ends memberships of a permission group",
		http.MethodDelete, "%s is not a member of %s", "Remove %s from ", "removed %s from ")
}

// stillMembers returns an error if service users that were removed from permission groups remain members:
// by the condition of a group, or because it is the default group.
func (c *cli) stillMembers(groups []string, users ...admin.BulkEntry) error {
	conditional := false
	for _, id := range groups {
		g, err := c.permissionGroup(id)
		if err != nil {
			return err
		}
		conditional = conditional || g.MemberCondition != ""
	}
	var found []string
	for i, u := range users {
		if len(groups) == 0 || i > 0 && !conditional { // the default group has either all users or none
			break
		}
		var a admin.Access
		if err := c.do(http.MethodGet, "/service_users/"+u.ID+"/access", nil, &a); err != nil {
			return err
		}
		for _, g := range a.PermissionGroups {
			switch source := access.Source(g.Source); {
			case !slices.Contains(groups, g.ID):
			case source == access.ByCondition:
				found = append(found, fmt.Sprintf("%s remains a member of %s by its condition; "+
					"change the condition, or the fields of the service user that it reads", u.Name, g.Name))
			case source == access.ByDefault:
				found = append(found, fmt.Sprintf("%s remains a member of %s, the default group of every "+
					"service user; change default_group in the configuration", u.Name, g.Name))
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	if more := len(found) - 1; more > 0 {
		found[0] += fmt.Sprintf(" (and %d more)", more)
	}
	return admin.NewError(http.StatusConflict, "ERR_CONFLICT", found[0])
}

func (c *cli) listGroupsCommand(root *cobra.Command) {
	var deleted bool
	list := c.command(root, "list", "Lists permission groups, newest first", "group list",
		func([]string) error {
			query := url.Values{}
			if deleted {
				query.Set("deleted", "true")
			}
			list, err := all(c, withQuery("/permission_groups", query),
				func(l *admin.GroupList) (*[]admin.Group, *admin.Page) {
					return &l.PermissionGroups, &l.Page
				})
			if err != nil {
				return err
			}
			rows := table{{"ID", "NAME", "MODE", "RULES", "PERMISSIONS", "MEMBERS", "CREATED"}}
			if deleted {
				rows[0] = append(rows[0], "DELETED", "BY")
			}
			for _, g := range list.PermissionGroups {
				rows.add(g.ID, g.Name, g.Mode, len(g.Rules), len(g.Permissions), g.MemberCount,
					when(&g.CreatedAt))
				if deleted {
					rows[len(rows)-1] = append(rows[len(rows)-1], when(g.DeletedAt), g.DeletedBy)
				}
			}
			return c.print(list, rows)
		})
	list.Flags().BoolVar(&deleted, "deleted", false, "only deleted ones that can be brought back")
}

// groupFlags adds the flags that create and update share. They set fields of in.
func groupFlags(cmd *cobra.Command, in *admin.GroupInput) {
	flags := cmd.Flags()
	flags.Var(optional(&in.Description), "description", "its purpose, for people")
	flags.Var(optional(&in.Mode), "mode", "enforce (the mode of a new group) or observe")
	flags.Var(optional(&in.MemberCondition), "condition",
		"a CEL expression over user, such as user.role == \"member\"; a service user that meets it "+
			"is a member; \"\" means no condition")
}

func (c *cli) createGroupCommand(root *cobra.Command) {
	var in admin.GroupInput
	var rules, permissions []string
	create := c.command(root, "create NAME", "Creates a permission group",
		"group create people-readers --rule \"allow GET /v1/people/{id}\"",
		func(args []string) error {
			in.Name, in.Permissions = admin.Some(args[0]), admin.Some(notEmpty(permissions))
			var list []admin.RuleInput
			for _, text := range rules {
				list = append(list, admin.RuleInput{Text: text})
			}
			in.Rules = admin.Some(list)
			var g admin.Group
			if err := c.do(http.MethodPost, "/permission_groups", in, &g); err != nil {
				return err
			}
			return c.printGroup(g)
		})
	flags := create.Flags()
	groupFlags(create, &in)
	flags.StringArrayVar(&rules, "rule", nil, "a rule, such as \"allow GET /v1/people/{id}\" (may be repeated)")
	flags.StringSliceVar(&permissions, "permission", nil,
		"a permission of the catalogue that it has (may be repeated)")
}

func (c *cli) updateGroupCommand(root *cobra.Command) {
	var in admin.GroupInput
	var permissions []string
	var update *cobra.Command
	update = c.command(root, "update GROUP", "Changes the given fields of a permission group",
		"group update people-readers --mode observe",
		on(c.permissionGroup, func(g admin.Group, _ []string) error {
			if update.Flags().Changed("permission") {
				in.Permissions = admin.Some(notEmpty(permissions))
			}
			var after admin.Group
			if err := c.do(http.MethodPatch, g.URI, in, &after); err != nil {
				return err
			}
			return c.printGroup(after)
		}))
	flags := update.Flags()
	rule := func(string) error { return errors.New("write \"rule add\" or \"rule remove\" to change the rules") }
	flags.Var(setFlag(rule), "rule", "")
	_ = flags.MarkHidden("rule") // cannot fail: the flag exists
	flags.Var(optional(&in.Name), "name", "another name")
	groupFlags(update, &in)
	flags.StringSliceVar(&permissions, "permission", nil,
		"the permissions that it has (may be repeated), in the place of the present ones; \"\" removes all")
}

func (c *cli) printGroup(g admin.Group, notes ...string) error {
	rows := table{
		{"id", g.ID}, {"name", g.Name}, {"description", g.Description},
		{"mode", g.Mode}, {"condition", g.MemberCondition},
	}.known()
	for _, key := range g.Permissions {
		rows.add("permission", key)
	}
	for _, r := range g.Rules {
		rows.add("rule", r.Text)
	}
	if !c.json { // JSON does not show the members
		list, err := all(c, g.URI+"/members",
			func(l *admin.MemberList) (*[]admin.Member, *admin.Page) { return &l.Members, &l.Page })
		if err != nil {
			return err
		}
		for _, m := range list.Members {
			if m.Source == string(access.ByCondition) {
				rows.add("member", m.Name, "(by condition)")
			} else {
				rows.add("member", m.Name)
			}
		}
	}
	return c.print(g, rows, append(notes, warningNotes(g.Warnings)...)...)
}

// warningNotes returns a note for each warning about rules.
func warningNotes(warnings []string) []string {
	notes := make([]string, len(warnings))
	for i, w := range warnings {
		notes[i] = "warning: " + w
	}
	return notes
}

func (c *cli) ruleCommands(root *cobra.Command) {
	c.command(root, "add GROUP RULE", "Adds a rule to a permission group",
		"rule add people-readers \"allow GET /v1/people/{id}\"",
		on(c.permissionGroup, func(g admin.Group, args []string) error {
			var r admin.Rule
			err := c.do(http.MethodPost, g.URI+"/rules", admin.RuleInput{Text: args[1]}, &r)
			if err != nil {
				return err
			}
			return c.print(r, table{{r.ID, r.Text}}, warningNotes(r.Warnings)...)
		}))
	c.command(root, "list GROUP", "Lists the rules of a permission group", "rule list people-readers",
		on(c.permissionGroup, func(g admin.Group, _ []string) error {
			var list admin.RuleList
			if err := c.do(http.MethodGet, g.URI+"/rules", nil, &list); err != nil {
				return err
			}
			rows := table{{"ID", "RULE"}}
			for _, r := range list.Rules {
				rows.add(r.ID, r.Text)
			}
			return c.print(list, rows)
		}))
	c.destructive(c.command(root, "remove GROUP RULE_ID", "Removes a rule from a permission group",
		"rule remove people-readers rule_2x… --yes",
		on(c.permissionGroup, func(g admin.Group, args []string) error {
			if err := checkID("rule", args[1]); err != nil {
				return err
			}
			if err := c.sure("Remove %s from %s?", ruleText(g, args[1]), g.Name); err != nil {
				return err
			}
			return c.change(http.MethodDelete, g.URI+"/rules/"+args[1], "removed %s", args[1])
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
func (c *cli) groupIDs(idsOrNames []string) ([]string, error) {
	ids := []string{}
	for _, name := range notEmpty(idsOrNames) {
		g, err := c.permissionGroup(name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, g.ID)
	}
	return ids, nil
}
