package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
)

func (c *cli) userCommands(root *cobra.Command) {
	c.createUserCommand(root)
	c.listUsersCommand(root)
	c.command(root, "show USER", "Shows a service user", "show billing-sync",
		on(c.user, func(u admin.ServiceUser, _ []string) error { return c.printUser(u, nil) }))
	c.updateUserCommand(root)
	setActive := func(use, short, example string, active bool) {
		c.command(root, use, short, example, func(args []string) error {
			return c.patchUser(args[0], func(admin.ServiceUser) (patch admin.ServiceUserPatch) {
				patch.Active = admin.Some(active)
				return patch
			})
		})
	}
	setActive("deactivate USER",
		"Refuses every token of a service user from now on, and cuts its streams, uploads and downloads",
		"deactivate billing-sync", false)
	setActive("reactivate USER", "Accepts the tokens of a service user again", "reactivate billing-sync", true)
	c.deleteUserCommand(root)
	c.command(root, "undelete USER_ID",
		"Brings a deleted service user back, inactive, with its tokens as they were",
		"undelete service_2x…",
		func(args []string) error {
			if err := checkID("service", args[0]); err != nil {
				return err
			}
			var u admin.ServiceUser
			if err := c.do(http.MethodPost, "/service_users/"+args[0]+"/undelete", nil, &u); err != nil {
				return err
			}
			return c.printUser(u, nil)
		})
}

func (c *cli) createUserCommand(root *cobra.Command) {
	var body admin.NewServiceUser
	var labels labelFlag
	var teams, addresses, groups []string
	var noToken bool
	create := c.command(root, "create NAME", "Creates a service user and prints its id and token, once",
		"create billing-sync --display-name \"Billing sync\" --group people-readers",
		func(args []string) error {
			body.Name, body.CreateToken = admin.Some(args[0]), admin.Some(!noToken)
			body.Teams, body.AllowedIPs = admin.Some(notEmpty(teams)), admin.Some(notEmpty(addresses))
			body.Labels = admin.Some(labels.texts())
			switch {
			case noToken && c.secretFile != "":
				return usagef("--no-token issues no token for --secret-file; leave one of them out")
			case noToken && body.TokenTTL.Set:
				return usagef("--no-token issues no token for --ttl; leave one of them out")
			}
			ids, err := c.groupIDs(groups)
			if err != nil {
				return err
			}
			body.PermissionGroups = admin.Some(ids)
			var u admin.ServiceUser
			request := func() error { return c.do(http.MethodPost, "/service_users", body, &u) }
			if err := c.issue(request, &u.Token); err != nil {
				return err
			}
			return c.print(u, table{{"id", u.ID}, {"token", u.Token}}.known(), c.secretNote(u.Token))
		})
	userFlags(create, &body.ServiceUserInput)
	flags := create.Flags()
	flags.StringSliceVar(&teams, "team", nil, "a team that it belongs to (may be repeated)")
	flags.StringSliceVar(&addresses, "allowed-ip", nil,
		"an address or CIDR that it may come from (may be repeated)")
	flags.Var(&labels, "label", "a label (may be repeated)")
	flags.Var(optional(&body.TokenTTL), "ttl", "how long its token is valid, such as 90d")
	flags.StringSliceVar(&groups, "group", nil,
		"a permission group that it is a member of (id or name; may be repeated)")
	flags.BoolVar(&noToken, "no-token", false, "issue no token yet")
	c.issuing(create)
}

func (c *cli) listUsersCommand(root *cobra.Command) {
	query := url.Values{}
	var deleted bool
	list := c.command(root, "list", "Lists service users, newest first",
		"list --team finance --sort -last_active_at",
		func([]string) error {
			if deleted {
				query.Set("deleted", "true")
			}
			list, err := all(c, withQuery("/service_users", query),
				func(l *admin.ServiceUserList) (*[]admin.ServiceUser, *admin.Page) {
					return &l.ServiceUsers, &l.Page
				})
			if err != nil {
				return err
			}
			note := ""
			if team := query.Get("team"); team != "" && len(list.ServiceUsers) == 0 {
				var members admin.ServiceUserList
				uri := withQuery("/service_users", url.Values{"team": {team}, "limit": {"1"}})
				if err := c.do(http.MethodGet, uri, nil, &members); err != nil {
					return err
				}
				if len(members.ServiceUsers) == 0 {
					note = fmt.Sprintf("No service user has the team %q.", team)
				}
			}
			rows := table{{"ID", "NAME", "ACTIVE", "ROLE", "TEAMS", "LAST ACTIVE", "EXPIRES", "CREATED"}}
			for _, u := range list.ServiceUsers {
				rows.add(u.ID, u.Name, yesNo(u.Active), u.Role, strings.Join(u.Teams, ", "),
					when(u.LastActiveAt), when(u.ExpiresAt), when(&u.CreatedAt))
			}
			return c.print(list, rows, note)
		})
	for _, f := range []struct{ flag, parameter, usage string }{
		{"search", "q", "only those with this in their name, display name, alias, owner or description, " +
			"or at the start of their id"},
		{"role", "role", "only this role: admin, manager or member"},
		{"team", "team", "only this team"},
		{"status", "status", "only active, inactive or expired ones"},
		{"created-by", "created_by",
			"only those with this creator: the name or id of a service user, human:NAME, or local"},
		{"sort", "sort", "by name, role, created_at or last_active_at; \"-\" before it is descending"},
		{"filter", "filter",
			"a CEL expression over obj and now, such as 'obj.created_at > now.subtract(\"7d\")'"},
	} {
		list.Flags().Var(parameter(query, f.parameter), f.flag, f.usage)
	}
	list.Flags().BoolVar(&deleted, "deleted", false, "only deleted ones that can be brought back")
}

func (c *cli) updateUserCommand(root *cobra.Command) {
	var in admin.ServiceUserInput
	labels := labelFlag{removes: true}
	var teams, addresses, members listFlag
	update := c.command(root, "update USER", "Changes the given fields of a service user, and prints the changes",
		"update billing-sync --owner payments@example.com --add-team finance --label env=prod",
		func(args []string) error {
			for _, f := range []*listFlag{&teams, &addresses, &members} {
				if err := f.check(); err != nil {
					return err
				}
			}
			for _, list := range []*[]string{&members.add, &members.remove, &members.set} {
				var err error
				if *list, err = c.groupIDs(*list); err != nil {
					return err
				}
			}
			return c.patchUser(args[0], func(u admin.ServiceUser) admin.ServiceUserPatch {
				patch := admin.ServiceUserPatch{ServiceUserInput: in}
				if len(labels.members) > 0 {
					patch.Labels = admin.Some(labels.members)
				}
				patch.Teams, patch.AllowedIPs = teams.edit(u.Teams), addresses.edit(u.AllowedIPs)
				patch.PermissionGroups = members.edit(u.PermissionGroups)
				return patch
			})
		})
	userFlags(update, &in)
	update.Flags().Var(optional(&in.Name), "name", "another name")
	update.Flags().Var(&labels, "label", "sets a label, or removes it with KEY-; the others stay (may be repeated)")
	teams.register(update, "team", "a team that it belongs to")
	addresses.register(update, "allowed-ip", "an address or CIDR that it may come from")
	addresses.canonical = canonicalPrefix
	members.register(update, "group", "a permission group that it is a member of, by id or name")
}

func (c *cli) deleteUserCommand(root *cobra.Command) {
	query := url.Values{}
	remove := c.command(root, "delete USER",
		"Deletes a service user at once, and cuts its streams, uploads and downloads; "+
			"for some time it can be brought back",
		"delete billing-sync --unless-used-within 24h --yes",
		on(c.user, func(u admin.ServiceUser, _ []string) error {
			var list admin.TokenList
			if !c.yes { // only the question shows the last use
				var err error
				if list, err = c.tokens(u); err != nil {
					return err
				}
			}
			if err := c.sure("Delete the service user %s (%s), and end all of its tokens? %s",
				u.Name, u.ID, lastUse(list.Tokens)); err != nil {
				return err
			}
			return c.change(http.MethodDelete, withQuery(u.URI, query), "deleted %s (%s)", u.Name, u.ID)
		}))
	c.destructive(remove, nil)
	remove.Flags().Var(parameter(query, "unless_used_within"), "unless-used-within",
		"only if no token was used within this time, such as 24h")
}

// patchTries is how often patchUser repeats a change.
const patchTries = 10

// patchUser changes a service user and prints the changes. patch makes the change from the present
// state. If another client changes the service user meanwhile, patchUser makes the patch again from
// the new state, so that neither change is lost.
func (c *cli) patchUser(idOrName string, patch func(admin.ServiceUser) admin.ServiceUserPatch) error {
	for try := 1; ; try++ {
		before, err := c.user(idOrName)
		if err != nil {
			return err
		}
		// A new variable: decoding into before would keep its old labels among the new ones.
		var after admin.ServiceUser
		err = c.client.Patch(context.Background(), before.URI, before.ETag, patch(before), &after)
		var e *admin.Error
		if errors.As(err, &e) && e.Status == http.StatusPreconditionFailed && try < patchTries {
			continue
		}
		if err != nil {
			return err
		}
		return c.printUser(after, &before)
	}
}
