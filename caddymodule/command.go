package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:      "service-user",
		Short:     "Manages service users, their tokens and permission groups",
		CobraFunc: func(root *cobra.Command) { newCLI().commands(root) },
	})
}

// The exit codes, for scripts.
const (
	exitFailed = 1 + iota
	exitUsage
	exitNotFound
	exitConflict
	exitNotAllowed
	exitUnreachable
)

const cliHelp = `Manages the service users of a running Caddy, through its admin endpoint, or
those in a store file when no Caddy runs (--store). A service user or a group is
named by its id or by its name.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 not allowed,
6 unreachable.`

// cli is one run of the command: its flags, and where it prints.
type cli struct {
	address, config, adapter string
	store, pepperFile        string
	json                     bool
	stdout, stderr           io.Writer
}

func newCLI() *cli { return &cli{stdout: os.Stdout, stderr: os.Stderr} }

// action is what one command does with its arguments.
type action func(ctx context.Context, client *admin.Client, args []string) error

// commands hangs every command under "caddy service-user".
func (c *cli) commands(root *cobra.Command) {
	root.Use = "service-user COMMAND"
	root.Long = cliHelp
	root.Example = "  caddy service-user create billing-sync --group people-readers"
	root.SetHelpTemplate(helpTemplate)
	flags := root.PersistentFlags()
	flags.StringVar(&c.address, "address", "", "the address of the admin endpoint of the running Caddy, host:port or unix//path")
	flags.StringVarP(&c.config, "config", "c", "", "take the address of the admin endpoint from this configuration")
	flags.StringVarP(&c.adapter, "adapter", "a", "", "the adapter of the configuration")
	flags.StringVar(&c.store, "store", "", "work on this store file, without a running Caddy")
	flags.StringVar(&c.pepperFile, "pepper-file", "", "with --store: the pepper_file of the configuration")
	flags.BoolVar(&c.json, "json", false, "print what the REST API answers")
	c.usageErrors(root)

	c.userCommands(root)
	token := c.group(root, "token", "Manages the tokens of a service user",
		"caddy service-user token create billing-sync --ttl 90d")
	c.tokenCommands(token)
	group := c.group(root, "group", "Manages permission groups and their members",
		"caddy service-user group add people-readers billing-sync")
	c.groupCommands(group)
	rule := c.group(root, "rule", "Manages the rules of a permission group",
		"caddy service-user rule add people-readers \"allow GET /v1/people/{id}\"")
	c.ruleCommands(rule)
	c.lintCommand(root)
	c.checkLogCommand(root)
}

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
			if err := client.Do(ctx, http.MethodPost, "/service_users", body, &u); err != nil {
				return err
			}
			return c.print(u, func(w io.Writer) {
				fmt.Fprintf(w, "id\t%s\n", u.ID)
				if u.Token != "" {
					fmt.Fprintf(w, "token\t%s\n", u.Token)
				}
			}, secretNote(u.Token))
		})
	in.register(create)
	create.Flags().StringSliceVar(&in.groups, "group", nil, "a permission group that it is a member of (id or name; may be repeated)")
	create.Flags().BoolVar(&noToken, "no-token", false, "issue no token yet")

	c.command(root, "list", "Lists service users, newest first",
		"caddy service-user list --json", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			users := []admin.ServiceUser{}
			err := admin.All(ctx, client, "/service_users", func(l admin.ServiceUserList) admin.Page {
				users = append(users, l.ServiceUsers...)
				return l.Page
			})
			if err != nil {
				return err
			}
			return c.print(admin.ServiceUserList{ServiceUsers: users, Page: admin.Page{URI: "/service_users"}}, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tNAME\tACTIVE\tROLE\tTEAMS\tEXPIRES\tCREATED")
				for _, u := range users {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", u.ID, cell(u.Name), yesNo(u.Active), u.Role, dash(strings.Join(u.Teams, ", ")), when(u.ExpiresAt), when(&u.CreatedAt))
				}
			})
		})

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

	c.command(root, "deactivate USER", "Refuses every token of a service user from now on",
		"caddy service-user deactivate billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			return c.patchUser(ctx, client, args[0], admin.ServiceUserInput{Active: admin.Some(false)})
		})
	c.command(root, "reactivate USER", "Accepts the tokens of a service user again",
		"caddy service-user reactivate billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			return c.patchUser(ctx, client, args[0], admin.ServiceUserInput{Active: admin.Some(true)})
		})
	c.command(root, "delete USER", "Deletes a service user at once",
		"caddy service-user delete billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			u, err := client.FindServiceUser(ctx, args[0])
			if err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, u.URI, nil, nil); err != nil {
				return err
			}
			return c.done("deleted %s (%s)", u.Name, u.ID)
		})
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
		if c.json {
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

func (c *cli) tokenCommands(root *cobra.Command) {
	var description, ttl, expires, notBefore string
	var allowed, groups []string
	var create *cobra.Command
	create = c.command(root, "create USER", "Issues a token and prints it, once",
		"caddy service-user token create billing-sync --description ci --ttl 90d", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			u, err := client.FindServiceUser(ctx, args[0])
			if err != nil {
				return err
			}
			in := admin.TokenInput{Description: admin.Some(description), AllowedIPs: admin.Some(notEmpty(allowed))}
			if create.Flags().Changed("group") {
				ids, err := groupIDs(ctx, client, groups)
				if err != nil {
					return err
				}
				in.PermissionGroups = admin.Some(ids)
			}
			for flag, field := range map[string]*admin.Opt[string]{"ttl": &in.TTL, "expires-at": &in.ExpiresAt, "not-before": &in.NotBefore} {
				if create.Flags().Changed(flag) {
					*field = admin.Some(create.Flags().Lookup(flag).Value.String())
				}
			}
			var t admin.Token
			if err := client.Do(ctx, http.MethodPost, u.URI+"/tokens", in, &t); err != nil {
				return err
			}
			return c.printIssued(t)
		})
	flags := create.Flags()
	flags.StringVar(&description, "description", "", "what it is for")
	flags.StringVar(&ttl, "ttl", "", "how long it lives, such as 90d")
	flags.StringVar(&expires, "expires-at", "", "when it expires, such as 2030-01-31T12:00:00Z")
	flags.StringVar(&notBefore, "not-before", "", "when it begins to be valid")
	flags.StringSliceVar(&allowed, "allowed-ip", nil, "an address or CIDR that it may come from (may be repeated)")
	flags.StringSliceVar(&groups, "group", nil, "narrows what it may do to this permission group (id or name; may be repeated)")

	c.command(root, "list USER", "Lists the tokens of a service user, newest first",
		"caddy service-user token list billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			u, err := client.FindServiceUser(ctx, args[0])
			if err != nil {
				return err
			}
			tokens := []admin.Token{}
			err = admin.All(ctx, client, u.URI+"/tokens", func(l admin.TokenList) admin.Page {
				tokens = append(tokens, l.Tokens...)
				return l.Page
			})
			if err != nil {
				return err
			}
			return c.print(admin.TokenList{Tokens: tokens, Page: admin.Page{URI: u.URI + "/tokens"}}, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tHINT\tSTATE\tDESCRIPTION\tEXPIRES\tCREATED")
				for _, t := range tokens {
					end := t.ExpiresAt
					if t.RetiresAt != nil && (end == nil || t.RetiresAt.Before(*end)) {
						end = t.RetiresAt
					}
					fmt.Fprintf(w, "%s\t…%s\t%s\t%s\t%s\t%s\n", t.ID, t.Hint, t.State, dash(cell(t.Description)), when(end), when(&t.CreatedAt))
				}
			})
		})

	var grace string
	refresh := c.command(root, "refresh USER TOKEN", "Issues a new secret in the place of a token and prints it, once",
		"caddy service-user token refresh billing-sync token_2x… --grace 24h", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			uri, err := tokenURI(ctx, client, args)
			if err != nil {
				return err
			}
			var t admin.Token
			if err := client.Do(ctx, http.MethodPost, uri+"/refresh", admin.RefreshInput{Grace: admin.Some(grace)}, &t); err != nil {
				return err
			}
			return c.printIssued(t)
		})
	refresh.Flags().StringVar(&grace, "grace", "", "how long the old token goes on, such as 24h; default: it is revoked at once")

	c.command(root, "revoke USER TOKEN", "Ends a token for good",
		"caddy service-user token revoke billing-sync token_2x…", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			uri, err := tokenURI(ctx, client, args)
			if err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, uri, nil, nil); err != nil {
				return err
			}
			return c.done("revoked %s", args[1])
		})
}

func tokenURI(ctx context.Context, client *admin.Client, args []string) (string, error) {
	u, err := client.FindServiceUser(ctx, args[0])
	if err == nil {
		err = checkID("token", args[1])
	}
	return u.URI + "/tokens/" + args[1], err
}

// checkID refuses what is not an id before it becomes part of a path.
func checkID(kind, id string) error {
	if !store.ValidID(kind, id) {
		return admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND", fmt.Sprintf("there is no %s %q; it is named by its id, %[1]s_…", kind, id))
	}
	return nil
}

func (c *cli) printIssued(t admin.Token) error {
	return c.print(t, func(w io.Writer) {
		fmt.Fprintf(w, "id\t%s\ntoken\t%s\n", t.ID, t.Secret)
		if t.ExpiresAt != nil {
			fmt.Fprintf(w, "expires\t%s\n", when(t.ExpiresAt))
		}
	}, secretNote(t.Secret))
}

func (c *cli) groupCommands(root *cobra.Command) {
	var description, mode string
	var rules []string
	create := c.command(root, "create NAME", "Creates a permission group",
		"caddy service-user group create people-readers --rule \"allow GET /v1/people/{id}\"", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			in := admin.GroupInput{Name: admin.Some(args[0]), Description: admin.Some(description)}
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
				fmt.Fprintln(w, "ID\tNAME\tMODE\tRULES\tMEMBERS\tCREATED")
				for _, g := range groups {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\n", g.ID, g.Name, g.Mode, len(g.Rules), g.MemberCount, when(&g.CreatedAt))
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

	var change struct{ name, description, mode string }
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
			var after admin.Group
			if err := client.Do(ctx, http.MethodPatch, g.URI, in, &after); err != nil {
				return err
			}
			return c.printGroup(ctx, client, after)
		})
	update.Flags().StringVar(&change.name, "name", "", "another name")
	update.Flags().StringVar(&change.description, "description", "", "what it is for")
	update.Flags().StringVar(&change.mode, "mode", "", "enforce or observe")

	c.command(root, "delete GROUP", "Deletes a permission group; its members lose what it grants and refuses",
		"caddy service-user group delete people-readers", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			g, err := client.FindGroup(ctx, args[0])
			if err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, g.URI, nil, nil); err != nil {
				return err
			}
			return c.done("deleted %s (%s)", g.Name, g.ID)
		})

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
				members = append(members, cell(m.Name))
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
		for _, r := range g.Rules {
			fmt.Fprintf(w, "rule\t%s\n", r.Text)
		}
		for _, m := range members {
			fmt.Fprintf(w, "member\t%s\n", m)
		}
	})
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
			return c.print(r, func(w io.Writer) { fmt.Fprintf(w, "%s\t%s\n", r.ID, r.Text) })
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
	c.command(root, "remove GROUP RULE_ID", "Removes a rule from a permission group",
		"caddy service-user rule remove people-readers rule_2x…", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			g, err := client.FindGroup(ctx, args[0])
			if err != nil {
				return err
			}
			if err := checkID("rule", args[1]); err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, g.URI+"/rules/"+args[1], nil, nil); err != nil {
				return err
			}
			return c.done("removed %s", args[1])
		})
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
