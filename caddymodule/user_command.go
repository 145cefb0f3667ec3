package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

func (c *cli) userCommands(root *cobra.Command) {
	var in userFlags
	var noToken bool
	create := c.command(root, "create NAME", "Creates a service user and prints its id and token, once",
		"caddy service-user create billing-sync --display-name \"Billing sync\" --group people-readers", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			body := admin.NewServiceUser{ServiceUserInput: in.input(), CreateToken: admin.Some(!noToken)}
			body.Name = admin.Some(args[0])
			if in.changed("group") {
				groups, err := groupIDs(ctx, client, in.groups)
				if err != nil {
					return err
				}
				body.PermissionGroups = admin.Some(groups)
			}
			var u admin.ServiceUser
			if noToken && c.secretFile != "" {
				return usageError{errors.New("--no-token issues no token for --secret-file; leave one of them out")}
			}
			if err := c.issue(func() error { return client.Do(ctx, http.MethodPost, "/service_users", body, &u) }, &u.Token); err != nil {
				return err
			}
			return c.print(u, func(w io.Writer) {
				fmt.Fprintf(w, "id\t%s\n", u.ID)
				if u.Token != "" {
					fmt.Fprintf(w, "token\t%s\n", u.Token)
				}
			}, c.secretNote(u.Token))
		})
	in.register(create)
	create.Flags().StringSliceVar(&in.groups, "group", nil, "a permission group that it is a member of (id or name; may be repeated)")
	create.Flags().BoolVar(&noToken, "no-token", false, "issue no token yet")
	c.issuing(create)

	var filter listFlags
	list := c.command(root, "list", "Lists service users, newest first",
		"caddy service-user list --team finance --sort -last_active_at", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			users := []admin.ServiceUser{}
			err := admin.All(ctx, client, "/service_users"+filter.query(), func(l admin.ServiceUserList) admin.Page {
				users = append(users, l.ServiceUsers...)
				return l.Page
			})
			if err != nil {
				return err
			}
			return c.print(admin.ServiceUserList{ServiceUsers: users, Page: admin.Page{URI: "/service_users"}}, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tNAME\tACTIVE\tROLE\tTEAMS\tLAST ACTIVE\tEXPIRES\tCREATED")
				for _, u := range users {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", u.ID, cell(u.Name), yesNo(u.Active), u.Role, dash(strings.Join(u.Teams, ", ")),
						when(u.LastActiveAt), when(u.ExpiresAt), when(&u.CreatedAt))
				}
			})
		})
	filter.register(list)

	c.command(root, "show USER", "Shows a service user",
		"caddy service-user show billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			u, err := client.FindServiceUser(ctx, args[0])
			if err != nil {
				return err
			}
			return c.printUser(ctx, client, u)
		})

	var change userFlags
	var name string
	update := c.command(root, "update USER", "Changes what is given of a service user",
		"caddy service-user update billing-sync --owner payments@example.com --team finance", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			body := change.input()
			if change.changed("name") {
				body.Name = admin.Some(name)
			}
			return c.patchUser(ctx, client, args[0], body)
		})
	change.register(update)
	update.Flags().StringVar(&name, "name", "", "another name")

	c.command(root, "deactivate USER", "Refuses every token of a service user from now on, and cuts its streams, uploads and downloads",
		"caddy service-user deactivate billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			return c.patchUser(ctx, client, args[0], admin.ServiceUserInput{Active: admin.Some(false)})
		})
	c.command(root, "reactivate USER", "Accepts the tokens of a service user again",
		"caddy service-user reactivate billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			return c.patchUser(ctx, client, args[0], admin.ServiceUserInput{Active: admin.Some(true)})
		})
	var unused string
	remove := c.command(root, "delete USER", "Deletes a service user at once, and cuts its streams, uploads and downloads; for some time it can be brought back",
		"caddy service-user delete billing-sync --unless-used-within 24h --yes", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			u, err := client.FindServiceUser(ctx, args[0])
			if err != nil {
				return err
			}
			use, err := c.useOf(ctx, client, u.URI+"/tokens")
			if err != nil {
				return err
			}
			if err := c.sure("Delete the service user %s (%s), and end all of its tokens? %s", u.Name, u.ID, use); err != nil {
				return err
			}
			uri := u.URI
			if unused != "" {
				uri += "?unless_used_within=" + url.QueryEscape(unused)
			}
			if err := client.Do(ctx, http.MethodDelete, uri, nil, nil); err != nil {
				return err
			}
			return c.done("deleted %s (%s)", u.Name, u.ID)
		})
	c.destructive(remove, nil)
	remove.Flags().StringVar(&unused, "unless-used-within", "", "only when it was not used for so long, such as 24h")

	c.command(root, "undelete USER_ID", "Brings a deleted service user back, inactive, with its tokens as they were",
		"caddy service-user undelete service_2x…", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			if err := checkID("service", args[0]); err != nil {
				return err
			}
			var u admin.ServiceUser
			if err := client.Do(ctx, http.MethodPost, "/service_users/"+args[0]+"/undelete", nil, &u); err != nil {
				return err
			}
			return c.printUser(ctx, client, u)
		})
}

// listFlags choose and sort service users.
type listFlags struct {
	search, role, team, status, sort, filter string
	deleted                                  bool
}

func (f *listFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.search, "search", "", "only those with this in their name, display name, alias, owner, description or id")
	flags.StringVar(&f.role, "role", "", "only this role: admin, manager or member")
	flags.StringVar(&f.team, "team", "", "only this team")
	flags.StringVar(&f.status, "status", "", "only active, inactive or expired ones")
	flags.StringVar(&f.sort, "sort", "", "by name, role, created_at or last_active_at; \"-\" before it is descending")
	flags.StringVar(&f.filter, "filter", "", "a CEL expression over obj, such as 'obj.created_at > timestamp(\"2030-01-01T00:00:00Z\")'")
	flags.BoolVar(&f.deleted, "deleted", false, "those that are deleted and can be brought back")
}

// query is the query of the list, with its "?"; "" when nothing was chosen.
func (f *listFlags) query() string {
	query := url.Values{}
	for name, value := range map[string]string{"q": f.search, "role": f.role, "team": f.team, "status": f.status, "sort": f.sort, "filter": f.filter} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if f.deleted {
		query.Set("deleted", "true")
	}
	if len(query) == 0 {
		return ""
	}
	return "?" + query.Encode()
}

// userFlags are the fields of a service user as flags.
type userFlags struct {
	cmd                                                   *cobra.Command
	displayName, description, owner, alias, role, expires string
	teams, allowedIPs, groups                             []string
	labels                                                labelFlag
}

// labelFlag is a flag KEY=VALUE that may be repeated; "" alone means no label.
type labelFlag map[string]string

func (l *labelFlag) String() string { return "" }
func (l *labelFlag) Type() string   { return "KEY=VALUE" }

func (l *labelFlag) Set(text string) error {
	if *l == nil {
		*l = make(labelFlag)
	}
	key, value, ok := strings.Cut(text, "=")
	switch {
	case ok:
		(*l)[key] = value
	case text != "":
		return errors.New("write it as KEY=VALUE")
	}
	return nil
}

func (f *userFlags) register(cmd *cobra.Command) {
	f.cmd = cmd
	flags := cmd.Flags()
	flags.StringVar(&f.displayName, "display-name", "", "the name for people")
	flags.StringVar(&f.description, "description", "", "what it is for")
	flags.StringVar(&f.owner, "owner", "", "whom to ask about it")
	flags.StringVar(&f.alias, "alias", "", "a second login id, for clients that come from elsewhere")
	flags.StringVar(&f.role, "role", "", "its role on the admin API: admin, manager or member")
	flags.StringSliceVar(&f.teams, "team", nil, "a team that it belongs to (may be repeated)")
	flags.Var(&f.labels, "label", "a label (may be repeated)")
	flags.StringSliceVar(&f.allowedIPs, "allowed-ip", nil, "an address or CIDR that it may come from (may be repeated)")
	flags.StringVar(&f.expires, "expires-at", "", "when it expires, such as 2030-01-31T12:00:00Z; \"\" is never")
}

func (f *userFlags) changed(flag string) bool { return f.cmd.Flags().Changed(flag) }

// input holds the fields whose flags were given.
func (f *userFlags) input() (in admin.ServiceUserInput) {
	text := func(flag, value string, into *admin.Opt[string]) {
		if f.changed(flag) {
			*into = admin.Some(value)
		}
	}
	text("display-name", f.displayName, &in.DisplayName)
	text("description", f.description, &in.Description)
	text("owner", f.owner, &in.Owner)
	text("alias", f.alias, &in.Alias)
	text("expires-at", f.expires, &in.ExpiresAt)
	if f.changed("role") {
		in.Role = admin.Some(access.Role(f.role))
	}
	if f.changed("team") {
		in.Teams = admin.Some(notEmpty(f.teams))
	}
	if f.changed("allowed-ip") {
		in.AllowedIPs = admin.Some(notEmpty(f.allowedIPs))
	}
	if f.changed("label") {
		in.Labels = admin.Some(map[string]string(f.labels))
	}
	return in
}

// notEmpty leaves "" out, so that --team "" means no team.
func notEmpty(list []string) []string {
	out := []string{}
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func (c *cli) patchUser(ctx context.Context, client *admin.Client, idOrName string, body admin.ServiceUserInput) error {
	u, err := client.FindServiceUser(ctx, idOrName)
	if err != nil {
		return err
	}
	var after admin.ServiceUser // not u: its labels would stay among the new ones
	if err := client.Do(ctx, http.MethodPatch, u.URI, body, &after); err != nil {
		return err
	}
	return c.printUser(ctx, client, after)
}

func (c *cli) printUser(ctx context.Context, client *admin.Client, u admin.ServiceUser) error {
	var names []string
	for _, id := range u.PermissionGroups {
		if !c.forPeople() {
			break
		}
		g, err := client.FindGroup(ctx, id)
		if err != nil {
			return err
		}
		names = append(names, g.Name)
	}
	slices.Sort(names)
	return c.print(u, func(w io.Writer) {
		row := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "%s\t%s\n", name, cell(value))
			}
		}
		row("id", u.ID)
		row("name", u.Name)
		row("display name", u.DisplayName)
		row("description", u.Description)
		row("owner", u.Owner)
		row("alias", u.Alias)
		row("active", yesNo(u.Active))
		row("role", string(u.Role))
		row("teams", strings.Join(u.Teams, ", "))
		for _, key := range slices.Sorted(maps.Keys(u.Labels)) {
			row("label", key+"="+u.Labels[key])
		}
		row("allowed IPs", strings.Join(u.AllowedIPs, ", "))
		row("groups", strings.Join(names, ", "))
		row("expires", whenSet(u.ExpiresAt))
		row("last active", whenSet(u.LastActiveAt))
		row("created", when(&u.CreatedAt)+" by "+u.CreatedBy)
	})
}
