package cli

import (
	"cmp"
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
	"github.com/serviceusers/caddy-service-users/store"
)

func (c *cli) userCommands(root *cobra.Command) {
	var in userFlags
	var noToken bool
	var ttl string
	var groups []string
	create := c.command(root, "create NAME", "Creates a service user and prints its id and token, once",
		"caddy service-user create billing-sync --display-name \"Billing sync\" --group people-readers", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			body := admin.NewServiceUser{ServiceUserInput: in.input(), CreateToken: admin.Some(!noToken)}
			body.Name = admin.Some(args[0])
			body.Teams, body.AllowedIPs, body.Labels = admin.Some(notEmpty(in.newTeams)), admin.Some(notEmpty(in.newIPs)), admin.Some(in.labels.texts())
			switch {
			case noToken && c.secretFile != "":
				return usageError{errors.New("--no-token issues no token for --secret-file; leave one of them out")}
			case noToken && in.changed("ttl"):
				return usageError{errors.New("--no-token issues no token for --ttl; leave one of them out")}
			case in.changed("ttl"):
				body.TokenTTL = admin.Some(ttl)
			}
			if in.changed("group") {
				ids, err := groupIDs(ctx, client, groups)
				if err != nil {
					return err
				}
				body.PermissionGroups = admin.Some(ids)
			}
			var u admin.ServiceUser
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
	create.Flags().StringSliceVar(&in.newTeams, "team", nil, "a team that it belongs to (may be repeated)")
	create.Flags().StringSliceVar(&in.newIPs, "allowed-ip", nil, "an address or CIDR that it may come from (may be repeated)")
	create.Flags().Var(&in.labels, "label", "a label (may be repeated)")
	create.Flags().StringVar(&ttl, "ttl", "", "how long its token lives, such as 90d")
	create.Flags().StringSliceVar(&groups, "group", nil, "a permission group that it is a member of (id or name; may be repeated)")
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
			return c.printUser(ctx, client, u, nil)
		})

	var change userFlags
	var name string
	var teams, addresses, members listFlag
	update := c.command(root, "update USER", "Changes what is given of a service user, and prints what changed",
		"caddy service-user update billing-sync --owner payments@example.com --add-team finance --label env=prod", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			for _, f := range []*listFlag{&teams, &addresses, &members} {
				if err := f.check(); err != nil {
					return err
				}
			}
			ids := members
			for _, list := range []*[]string{&ids.add, &ids.remove, &ids.set} {
				var err error
				if *list, err = groupIDs(ctx, client, *list); err != nil {
					return err
				}
			}
			return c.patchUser(ctx, client, args[0], func(u admin.ServiceUser) admin.ServiceUserPatch {
				patch := admin.ServiceUserPatch{ServiceUserInput: change.input()}
				if change.changed("name") {
					patch.Name = admin.Some(name)
				}
				if len(change.labels.members) > 0 {
					patch.Labels = admin.Some(change.labels.members)
				}
				patch.Teams, patch.AllowedIPs, patch.PermissionGroups = teams.edit(u.Teams), addresses.edit(u.AllowedIPs), ids.edit(u.PermissionGroups)
				return patch
			})
		})
	change.register(update)
	change.labels.removes = true
	update.Flags().Var(&change.labels, "label", "sets a label, or removes it with KEY-; the others stay (may be repeated)")
	teams.register(update, "team", "a team that it belongs to")
	addresses.register(update, "allowed-ip", "an address or CIDR that it may come from")
	members.register(update, "group", "a permission group that it is a member of (id or name)")
	addresses.canonical = func(text string) (string, error) {
		p, err := store.ParsePrefix(text)
		if err != nil {
			return "", fmt.Errorf("%q is neither an address nor a CIDR such as 10.0.0.0/8", text)
		}
		return p.String(), nil
	}
	update.Flags().StringVar(&name, "name", "", "another name")

	c.command(root, "deactivate USER", "Refuses every token of a service user from now on, and cuts its streams, uploads and downloads",
		"caddy service-user deactivate billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			return c.setActive(ctx, client, args[0], false)
		})
	c.command(root, "reactivate USER", "Accepts the tokens of a service user again",
		"caddy service-user reactivate billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			return c.setActive(ctx, client, args[0], true)
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
			return c.printUser(ctx, client, u, nil)
		})
}

// listFlags choose and sort service users.
type listFlags struct {
	search, role, team, status, sort, filter, createdBy string
	deleted                                             bool
}

func (f *listFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.search, "search", "", "only those with this in their name, display name, alias, owner, description or id")
	flags.StringVar(&f.role, "role", "", "only this role: admin, manager or member")
	flags.StringVar(&f.team, "team", "", "only this team")
	flags.StringVar(&f.status, "status", "", "only active, inactive or expired ones")
	flags.StringVar(&f.createdBy, "created-by", "", "only what this one made: the name or id of a service user, human:NAME, or local")
	flags.StringVar(&f.sort, "sort", "", "by name, role, created_at or last_active_at; \"-\" before it is descending")
	flags.StringVar(&f.filter, "filter", "", "a CEL expression over obj, such as 'obj.created_at > timestamp(\"2030-01-01T00:00:00Z\")'")
	flags.BoolVar(&f.deleted, "deleted", false, "those that are deleted and can be brought back")
}

// query is the query of the list, with its "?"; "" when nothing was chosen.
func (f *listFlags) query() string {
	query := url.Values{}
	for name, value := range map[string]string{"q": f.search, "role": f.role, "team": f.team, "status": f.status, "sort": f.sort, "filter": f.filter, "created_by": f.createdBy} {
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
	newTeams, newIPs                                      []string // of a create
	labels                                                labelFlag
}

// labelFlag is a flag KEY=VALUE that may be repeated, and KEY- where it removes labels
// too; then "" is an error, else it means no label.
type labelFlag struct {
	members map[string]*string // nil removes the label
	removes bool
}

func (l *labelFlag) String() string { return "" }
func (l *labelFlag) Type() string   { return "KEY=VALUE" }

func (l *labelFlag) Set(text string) error {
	key, value, sets := strings.Cut(text, "=")
	member := &value
	switch {
	case sets:
	case l.removes && len(text) > 1 && strings.HasSuffix(text, "-"):
		key, member = strings.TrimSuffix(text, "-"), nil
	case l.removes:
		return errors.New("write it as KEY=VALUE, or as KEY- to remove the label")
	case text == "":
		return nil
	default:
		return errors.New("write it as KEY=VALUE")
	}
	if _, twice := l.members[key]; twice {
		return fmt.Errorf("%q is given twice", key)
	}
	if l.members == nil {
		l.members = make(map[string]*string)
	}
	l.members[key] = member
	return nil
}

// texts returns the members, of which none is removed; nil without any.
func (l *labelFlag) texts() (texts map[string]string) {
	for key, value := range l.members {
		if texts == nil {
			texts = make(map[string]string)
		}
		texts[key] = *value
	}
	return texts
}

// listFlag is a list that an update adds to, removes from, or sets.
type listFlag struct {
	cmd              *cobra.Command
	name             string
	add, remove, set []string
	canonical        func(string) (string, error) // the form that the server has; nil is the text itself
}

func (l *listFlag) register(cmd *cobra.Command, name, what string) {
	l.cmd, l.name = cmd, name
	flags := cmd.Flags()
	flags.StringSliceVar(&l.add, "add-"+name, nil, "adds "+what+" (may be repeated)")
	flags.StringSliceVar(&l.remove, "remove-"+name, nil, "removes "+what+" (may be repeated)")
	flags.StringSliceVar(&l.set, "set-"+name, nil, "replaces all: "+what+" (may be repeated); \"\" is none")
	flags.Var(bareFlag(name), name, "")
	_ = flags.MarkHidden(name) // it is there
}

// bareFlag refuses a flag that could mean to add and to replace.
type bareFlag string

func (b bareFlag) String() string { return "" }
func (b bareFlag) Type() string   { return "string" }

func (b bareFlag) Set(string) error {
	return fmt.Errorf("write --add-%s or --remove-%[1]s to change the list, or --set-%[1]s to replace all of it", string(b))
}

// check refuses flags that contradict each other, and brings their values into the
// form that the server has.
func (l *listFlag) check() error {
	set := l.cmd.Flags().Changed("set-" + l.name)
	for flag, list := range map[string][]string{"add-" + l.name: l.add, "remove-" + l.name: l.remove} {
		switch {
		case !l.cmd.Flags().Changed(flag):
			continue
		case set:
			return usageError{fmt.Errorf("--set-%s replaces the whole list; leave it out, or --%s", l.name, flag)}
		case len(list) == 0 || slices.Contains(list, ""):
			return usageError{fmt.Errorf("--%s is empty; give it a value or leave it out", flag)}
		}
		for i := range list {
			if l.canonical == nil {
				break
			}
			text, err := l.canonical(list[i])
			if err != nil {
				return usageError{fmt.Errorf("--%s: %w", flag, err)}
			}
			list[i] = text
		}
	}
	for _, text := range l.add {
		if slices.Contains(l.remove, text) {
			return usageError{fmt.Errorf("%q is in --add-%s and in --remove-%[2]s; leave it out of one of them", text, l.name)}
		}
	}
	return nil
}

// edit returns what becomes of a list; it is absent when no flag was given.
func (l *listFlag) edit(now []string) (in admin.Opt[[]string]) {
	switch {
	case l.cmd.Flags().Changed("set-" + l.name):
		return admin.Some(notEmpty(l.set))
	case len(l.add)+len(l.remove) == 0:
		return in
	}
	list := slices.DeleteFunc(slices.Clone(now), func(s string) bool { return slices.Contains(l.remove, s) })
	for _, s := range l.add {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return admin.Some(notEmpty(list))
}

func (f *userFlags) register(cmd *cobra.Command) {
	f.cmd = cmd
	flags := cmd.Flags()
	flags.StringVar(&f.displayName, "display-name", "", "the name for people")
	flags.StringVar(&f.description, "description", "", "what it is for")
	flags.StringVar(&f.owner, "owner", "", "whom to ask about it")
	flags.StringVar(&f.alias, "alias", "", "a second login id, for clients that come from elsewhere")
	flags.StringVar(&f.role, "role", "", "its role on the admin API: admin, manager or member")
	flags.StringVar(&f.expires, "expires-at", "", "when it expires, such as 2030-01-31T12:00:00Z; \"\" is never")
}

func (f *userFlags) changed(flag string) bool { return f.cmd.Flags().Changed(flag) }

// input holds the fields whose flags were given, but no list and no label.
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
	return in
}

// notEmpty leaves "" out, so that --set-team "" means no team.
func notEmpty(list []string) []string {
	out := []string{}
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func (c *cli) setActive(ctx context.Context, client *admin.Client, idOrName string, active bool) error {
	return c.patchUser(ctx, client, idOrName, func(admin.ServiceUser) admin.ServiceUserPatch {
		return admin.ServiceUserPatch{ServiceUserInput: admin.ServiceUserInput{Active: admin.Some(active)}}
	})
}

// patchTries is how often an update is made anew when another one came before it.
const patchTries = 10

// patchUser changes a service user from what it is, and prints what changed. A change
// that another client makes meanwhile is never lost: the patch is made again from it.
func (c *cli) patchUser(ctx context.Context, client *admin.Client, idOrName string, patch func(admin.ServiceUser) admin.ServiceUserPatch) error {
	for try := 1; ; try++ {
		before, err := client.FindServiceUser(ctx, idOrName)
		if err != nil {
			return err
		}
		var after admin.ServiceUser // not before: its labels would stay among the new ones
		err = client.Patch(ctx, before.URI, before.ETag, patch(before), &after)
		var e *admin.Error
		if errors.As(err, &e) && e.Status == http.StatusPreconditionFailed && try < patchTries {
			continue
		}
		if err != nil {
			return err
		}
		return c.printUser(ctx, client, after, &before)
	}
}

// changes lists the fields in which two states of a service user differ, by what they
// are in each.
func changes(before, after admin.ServiceUser, groups func(admin.ServiceUser) string) (list []string) {
	add := func(field, was, is string) {
		if was != is {
			list = append(list, fmt.Sprintf("%s: %s -> %s", field, was, is))
		}
	}
	add("name", before.Name, after.Name)
	add("display name", dash(before.DisplayName), dash(after.DisplayName))
	add("description", dash(before.Description), dash(after.Description))
	add("owner", dash(before.Owner), dash(after.Owner))
	add("alias", dash(before.Alias), dash(after.Alias))
	add("active", yesNo(before.Active), yesNo(after.Active))
	add("role", string(before.Role), string(after.Role))
	add("teams", dash(strings.Join(before.Teams, ", ")), dash(strings.Join(after.Teams, ", ")))
	keys := maps.Clone(before.Labels)
	maps.Copy(keys, after.Labels)
	label := func(u admin.ServiceUser, key string) string {
		value, ok := u.Labels[key]
		if ok && value == "" {
			return `""`
		}
		return dash(value)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		add("label "+key, label(before, key), label(after, key))
	}
	anywhere := func(u admin.ServiceUser) string { return cmp.Or(strings.Join(u.AllowedIPs, ", "), "any") }
	add("allowed IPs", anywhere(before), anywhere(after))
	add("groups", dash(groups(before)), dash(groups(after)))
	add("expires", when(before.ExpiresAt), when(after.ExpiresAt))
	return list
}

// printUser prints a service user, and what has changed since before, unless that is
// nil.
func (c *cli) printUser(ctx context.Context, client *admin.Client, u admin.ServiceUser, before *admin.ServiceUser) error {
	names := make(map[string]string)
	ids := u.PermissionGroups
	if before != nil {
		ids = slices.Concat(ids, before.PermissionGroups)
	}
	for _, id := range ids {
		if c.json {
			break
		}
		g, err := client.FindGroup(ctx, id)
		if err != nil && !(admin.IsNotFound(err) && before != nil) { // it may be deleted meanwhile
			return err
		}
		names[id] = cmp.Or(g.Name, id)
	}
	groups := func(u admin.ServiceUser) string {
		var list []string
		for _, id := range u.PermissionGroups {
			list = append(list, names[id])
		}
		slices.Sort(list)
		return strings.Join(list, ", ")
	}
	note := ""
	if before != nil && len(before.AllowedIPs) > 0 && len(u.AllowedIPs) == 0 {
		note = "It may come from any address now."
	}
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
		row("groups", groups(u))
		row("expires", whenSet(u.ExpiresAt))
		row("last active", whenSet(u.LastActiveAt))
		row("created", when(&u.CreatedAt)+" by "+u.CreatedBy)
		if before == nil {
			return
		}
		list := changes(*before, u, groups)
		if len(list) == 0 {
			row("changed", "nothing")
		}
		for _, change := range list {
			row("changed", change)
		}
	}, note)
}
