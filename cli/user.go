package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func (c *cli) userCommands(root *cobra.Command) {
	c.createUserCommand(root)
	c.listUsersCommand(root)
	c.command(root, "show USER", "Shows a service user", "show billing-sync",
		on(c.user, func(u admin.ServiceUser, _ []string) error { return c.printUser(u, nil) }))
	c.updateUserCommand(root)
	setActive := func(do, short string, active bool) {
		c.bulkCommand(root, bulkVerb{
			use: do + " [USER…]", short: short, example: do + " billing-sync", id: c.userID,
			one: func(args []string) error {
				return c.patchUser(args[0], func(admin.ServiceUser) (patch admin.ServiceUserPatch) {
					patch.Active = admin.Some(active)
					return patch
				})
			},
			many: func([]string) (*change, error) { return changeOf(do), nil },
		})
	}
	setActive("deactivate",
		"Refuses every token of service users from now on, and cuts their streams, uploads and downloads",
		false)
	setActive("reactivate", "Accepts the tokens of service users again", true)
	c.deleteUserCommand(root)
	deleted := func(idOrName string) (string, error) {
		return c.deleted("service", "service user", "/service_users", "list --deleted", idOrName)
	}
	c.bulkCommand(root, bulkVerb{
		use:     "undelete [USER…]",
		short:   "Brings deleted service users back, inactive, with their tokens as they were",
		example: "undelete billing-sync",
		id:      deleted,
		one: func(args []string) error {
			var u admin.ServiceUser
			id, err := deleted(args[0])
			if err == nil {
				err = c.do(http.MethodPost, "/service_users/"+id+"/undelete", nil, &u)
			}
			if err != nil {
				return err
			}
			if u.Undeleted == nil { // the server has an earlier version
				return c.printUser(u, nil)
			}
			was := "inactive"
			if active := u.Undeleted.WasActive; active != nil && *active {
				was = fmt.Sprintf("active: \"reactivate %s\" accepts its tokens again", u.Name)
			}
			note := fmt.Sprintf("It was %s; before that it was %s.", deletion(*u.Undeleted), was)
			return c.printUser(u, nil, note)
		},
		many: func([]string) (*change, error) {
			work := changeOf("undelete")
			work.done += " as inactive; \"reactivate\" accepts their tokens again"
			return work, nil
		},
	})
}

// newUser is a service user to create, from flags or from the columns of a file.
type newUser struct {
	admin.NewServiceUser
	labels                   labelFlag
	teams, addresses, groups []string
}

// flags returns a flag for each field.
func (n *newUser) flags() *pflag.FlagSet {
	flags := new(pflag.FlagSet)
	userFlags(flags, &n.ServiceUserInput)
	flags.Var(optional(&n.Name), "name", "")
	flags.StringSliceVar(&n.teams, "team", nil, "a team that it belongs to (may be repeated)")
	flags.StringSliceVar(&n.addresses, "allowed-ip", nil,
		"an address or CIDR that it may come from (may be repeated)")
	flags.Var(&n.labels, "label", "a label (may be repeated)")
	flags.Var(optional(&n.TokenTTL), "ttl", "how long its token is valid, such as 90d")
	flags.StringSliceVar(&n.groups, "group", nil,
		"a permission group that it is a member of (id or name; may be repeated)")
	return flags
}

// body returns the request that creates the service user.
func (n *newUser) body(c *cli) (admin.NewServiceUser, error) {
	ids, err := c.groupIDs(n.groups)
	n.PermissionGroups, n.Labels = admin.Some(ids), admin.Some(n.labels.texts())
	n.Teams, n.AllowedIPs = admin.Some(notEmpty(n.teams)), admin.Some(notEmpty(n.addresses))
	return n.NewServiceUser, err
}

// deleted returns the id of the deleted resource with this id or name. kind is the prefix of its id,
// noun its name in an error, and command lists such resources. Several can have the same name.
func (c *cli) deleted(kind, noun, path, command, idOrName string) (string, error) {
	if store.ValidID(kind, idOrName) {
		return idOrName, nil
	}
	type tombstone struct {
		ID string `json:"id"`
		admin.Deletion
	}
	var list struct {
		Users  []tombstone `json:"service_users"`
		Groups []tombstone `json:"permission_groups"`
	}
	uri := path + "?deleted=true&name=" + url.QueryEscape(idOrName)
	if err := c.do(http.MethodGet, uri, nil, &list); err != nil {
		return "", err
	}
	var named []string
	for _, t := range append(list.Users, list.Groups...) {
		named = append(named, fmt.Sprintf("%s (%s)", t.ID, deletion(t.Deletion)))
	}
	switch len(named) {
	case 0:
		return "", admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND", fmt.Sprintf(
			"there is no deleted %s %q; %q shows those that can be brought back", noun, idOrName, command))
	case 1:
		id, _, _ := strings.Cut(named[0], " ")
		return id, nil
	}
	return "", admin.NewError(http.StatusConflict, "ERR_CONFLICT", fmt.Sprintf(
		"%d deleted %ss have the name %q; name one by its id: %s",
		len(named), noun, idOrName, strings.Join(named, ", ")))
}

// deletion describes when and by whom something was deleted.
func deletion(d admin.Deletion) string {
	return fmt.Sprintf("deleted %s by %s", when(d.DeletedAt), cmp.Or(d.DeletedBy, "an unknown actor"))
}

func (c *cli) createUserCommand(root *cobra.Command) {
	var n newUser
	var noToken bool
	var from, secretDir string
	create := c.command(root, "create [NAME]",
		"Creates a service user and prints its id and token, once",
		"create billing-sync --display-name \"Billing sync\" --group people-readers",
		func(args []string) error {
			if from != "" {
				return c.createMany(from, secretDir)
			}
			switch {
			case noToken && c.secretFile != "":
				return usagef("--no-token issues no token for --secret-file; leave one of them out")
			case noToken && n.TokenTTL.Set:
				return usagef("--no-token issues no token for --ttl; leave one of them out")
			}
			n.Name, n.CreateToken = admin.Some(args[0]), admin.Some(!noToken)
			body, err := n.body(c)
			if err != nil {
				return err
			}
			var u admin.ServiceUser
			request := func(key string) error {
				return c.client.PostOnce(context.Background(), key, "/service_users", body, &u)
			}
			if err := c.issue(request, &u.Token); err != nil {
				return err
			}
			return c.print(u, table{{"id", u.ID}, {"token", u.Token}}.known(), c.secretNote(u.Token))
		})
	flags := create.Flags()
	n.flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "name" { // an argument
			flags.AddFlag(f)
		}
	})
	flags.BoolVar(&noToken, "no-token", false, "issue no token yet")
	c.issuing(create)
	flags.StringVar(&from, "from", "",
		"create the service users of this CSV `FILE`, all or none; its first line names the columns; "+
			"- is the standard input")
	flags.StringVar(&secretDir, "secret-dir", "",
		"with --from: issue tokens, and write each to a new file in this directory, named after the "+
			"service user; group and others must not be able to write into it")
	c.previewed(create, func() bool { return from != "" })
	c.checkArgs(create, func(args []string) error {
		var alone string // a flag for a single service user
		flags.Visit(func(f *pflag.Flag) {
			if n := create.LocalNonPersistentFlags().Lookup(f.Name); n != nil &&
				!slices.Contains([]string{"from", "secret-dir", "dry-run", "yes"}, f.Name) {
				alone = f.Name
			}
		})
		switch {
		case from != "" && len(args) > 0:
			return usagef("--from creates the service users of its file; leave it out, or %q", args[0])
		case from != "" && alone != "":
			return usagef("--%s is for one service user; leave it out, or make it a column of the file",
				alone)
		case from == "" && (secretDir != "" || c.dryRun):
			return usagef("--secret-dir and --dry-run go with --from FILE")
		case from == "" && len(args) == 0:
			return wrongCount(create, args)
		}
		return nil
	})
	create.Long = `Creates a service user and prints its id and token, once. With --from it creates the
service users of a CSV file, all or none of them, at most 1 000. The first line of the
file names the columns: name, and any of display_name, description, owner, alias, role,
teams, labels, allowed_ips, groups, expires_at and ttl. A ";" separates the entries of a
list, and a label is KEY=VALUE. It issues tokens only with --secret-dir. If a command
with --secret-dir or --secret-file gets no answer, the same command completes it, within
24 hours.`
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
			rows := table{{"ID", "NAME", "ACTIVE", "ROLE", "TEAMS", "LAST ACTIVE", "EXPIRES",
				"NEXT TOKEN END", "CREATED"}}
			if deleted {
				rows = table{{"ID", "NAME", "ROLE", "TEAMS", "DELETED", "BY", "WAS ACTIVE"}}
				for _, u := range list.ServiceUsers {
					rows.add(u.ID, u.Name, u.Role, strings.Join(u.Teams, ", "), when(u.DeletedAt),
						u.DeletedBy, yesNo(u.WasActive != nil && *u.WasActive))
				}
				return c.print(list, rows)
			}
			for _, u := range list.ServiceUsers {
				active := yesNo(u.Active)
				if u.Active && u.Obstacle != nil {
					active += ", no login"
				}
				rows.add(u.ID, u.Name, active, u.Role, strings.Join(u.Teams, ", "),
					when(u.LastActiveAt), when(u.ExpiresAt), when(u.NextTokenEnd), when(&u.CreatedAt))
			}
			if query.Has("team") {
				return c.print(list, rows,
					noneNote(len(list.ServiceUsers), "No service user fits; is the team right?"))
			}
			return c.print(list, rows)
		})
	for _, f := range []struct{ flag, parameter, usage string }{
		{"search", "q", "only those with this in their name, display name, alias, owner or description, " +
			"or at the start of their id, or with a token of which these are the last four characters"},
		{"role", "role", "only this role: admin, manager or member"},
		{"team", "team", "only this team"},
		{"owner", "owner", "only this owner"},
		{"group", "group", "only members of this permission group (id or name), by name or by its condition"},
		{"label", "label", "only those with this label: KEY or KEY=VALUE"},
		{"status", "status", "only active, inactive or expired ones"},
		{"created-by", "created_by",
			"only those with this creator: the name or id of a service user, human:NAME, local:USER, " +
				"or local (any user)"},
		{"sort", "sort", "by name, display_name, role, teams, status, created_at, last_active_at, next_token_end " +
			"or usable (those of which a token ends soon first); \"-\" before it is descending"},
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
	check := func() error { return c.checkLists(&members, &teams, &addresses) }
	// fields returns the fields to change, apart from lists.
	fields := func() admin.ServiceUserPatch {
		patch := admin.ServiceUserPatch{ServiceUserInput: in}
		if len(labels.members) > 0 {
			patch.Labels = admin.Some(labels.members)
		}
		return patch
	}
	update := c.bulkCommand(root, bulkVerb{
		use: "update [USER…]", short: "Changes the given fields of service users, and prints the changes",
		example: "update billing-sync --owner payments@example.com --add-team finance --label env=prod",
		id:      c.userID,
		one: func(args []string) error {
			if err := check(); err != nil {
				return err
			}
			var user admin.BulkEntry
			err := c.patchUser(args[0], func(u admin.ServiceUser) admin.ServiceUserPatch {
				patch := fields()
				patch.Teams, patch.AllowedIPs = teams.edit(u.Teams), addresses.edit(u.AllowedIPs)
				patch.PermissionGroups = members.edit(u.PermissionGroups)
				user.ID, user.Name = u.ID, u.Name
				return patch
			})
			if err != nil {
				return err
			}
			return c.stillMembers(members.remove, user)
		},
		many: func([]string) (*change, error) {
			work, set := changeOf("update"), fields()
			set.Teams, set.AllowedIPs = teams.whole(), addresses.whole()
			err := check()
			set.PermissionGroups = members.whole()
			work.Set = &set
			work.Add = &admin.UserLists{
				Teams: teams.add, AllowedIPs: addresses.add, PermissionGroups: members.add,
			}
			work.Remove = &admin.UserLists{
				Teams: teams.remove, AllowedIPs: addresses.remove, PermissionGroups: members.remove,
			}
			return work, err
		},
	})
	userFlags(update.Flags(), &in)
	update.Flags().Var(optional(&in.Name), "name", "another name")
	update.Flags().Var(&labels, "label", "sets a label, or removes it with KEY-; the others stay (may be repeated)")
	teams.register(update, "team", "a team that it belongs to")
	addresses.register(update, "allowed-ip", "an address or CIDR that it may come from")
	addresses.canonical = canonicalPrefix
	members.register(update, "group", "a permission group that it is a member of, by id or name")
}

func (c *cli) deleteUserCommand(root *cobra.Command) {
	query := url.Values{}
	const unused = "unless_used_within"
	remove := c.bulkCommand(root, bulkVerb{
		use: "delete [USER…]",
		short: "Deletes service users at once, and cuts their streams, uploads and downloads; " +
			"for some time they can be brought back",
		example: "delete billing-sync --unless-used-within 24h --yes", id: c.userID, asks: true,
		one: on(c.user, func(u admin.ServiceUser, _ []string) error {
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
		}),
		many: func([]string) (*change, error) {
			work := changeOf("delete")
			work.question = "Delete %s, and end all of their tokens?"
			work.UnlessUsedWithin = query.Get(unused)
			return work, nil
		},
	})
	remove.Flags().Var(parameter(query, unused), "unless-used-within",
		"only if no token was used within this time, such as 24h")
}

// patchUser changes a service user and prints the changes. patch makes the change from the present
// state.
func (c *cli) patchUser(idOrName string, patch func(admin.ServiceUser) admin.ServiceUserPatch) error {
	before, after, err := changeLatest(c, func() (admin.ServiceUser, error) { return c.user(idOrName) },
		func(u admin.ServiceUser) (uri, etag string, body any) { return u.URI, u.ETag, patch(u) })
	if err != nil {
		return err
	}
	return c.printUser(after, &before)
}

// changeTries is how often changeLatest repeats a change.
const changeTries = 10

// changeLatest reads a resource and changes it. patch returns its path, its version and the change.
// If another client changes the resource meanwhile, changeLatest makes the patch again from the new
// state, so that neither change is lost.
func changeLatest[T any](
	c *cli, read func() (T, error), patch func(T) (uri, etag string, body any),
) (before, after T, err error) {
	for try := 1; ; try++ {
		if before, err = read(); err != nil {
			return before, after, err
		}
		uri, etag, body := patch(before)
		err = c.client.Patch(context.Background(), uri, etag, body, &after)
		var e *admin.Error
		if errors.As(err, &e) && e.Status == http.StatusPreconditionFailed && try < changeTries {
			continue
		}
		return before, after, err
	}
}
