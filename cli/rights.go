package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// rightsCommands adds what answers "why?", "what may it do?" and "who can?".
func (c *cli) rightsCommands(root *cobra.Command) {
	var tokenID, remoteIP string
	var headers labelFlag
	explain := c.command(root, "explain USER METHOD URL | explain DECISION_ID", "Says why a request is allowed or refused, and what would allow it",
		"caddy service-user explain billing-sync GET /v1/people/7", 3,
		func(ctx context.Context, client *admin.Client, args []string) error {
			in := admin.ExplainInput{TokenID: tokenID, RemoteIP: remoteIP, Headers: headers.texts()}
			var u admin.ServiceUser
			var err error
			if len(args) == 1 {
				in.DecisionID = args[0]
				if err := c.remembered("the decisions that it made"); err != nil {
					return err
				}
				err = checkID("decision", in.DecisionID)
			} else {
				u, err = client.FindServiceUser(ctx, args[0])
				in.ServiceUserID, in.Method, in.URL = u.ID, args[1], args[2]
			}
			if err != nil {
				return err
			}
			var e admin.Explanation
			if err := client.Do(ctx, http.MethodPost, "/service_users/explain", in, &e); err != nil {
				return err
			}
			if u.ID == "" && !c.json {
				u, err = client.FindServiceUser(ctx, e.ServiceUserID)
				if err != nil && !admin.IsNotFound(err) {
					return err
				}
			}
			return c.print(e, func(w io.Writer) { tellExplanation(w, u.Name, e) }, c.offlineNote(), headerNote(e))
		})
	three := explain.Args
	explain.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && strings.HasPrefix(args[0], "decision_") {
			return nil
		}
		return three(cmd, args)
	}
	explain.Flags().StringVar(&tokenID, "token", "", "the id of the token that it comes with; default: one that is not restricted")
	explain.Flags().StringVar(&remoteIP, "remote-ip", "", "the address that it comes from; default: any")
	explain.Flags().Var(&headers, "header", "a header that it has, for conditions (may be repeated)")

	c.command(root, "access USER", "Lists the permission groups and rules of a service user, with where they come from",
		"caddy service-user access billing-sync", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			u, err := client.FindServiceUser(ctx, args[0])
			if err != nil {
				return err
			}
			var a admin.Access
			if err := client.Do(ctx, http.MethodGet, u.URI+"/access", nil, &a); err != nil {
				return err
			}
			return c.print(a, func(w io.Writer) {
				fmt.Fprintln(w, "GROUP\tMODE\tBY\tRULE\tID")
				for _, g := range a.PermissionGroups {
					if len(g.Rules) == 0 {
						fmt.Fprintf(w, "%s\t%s\t%s\t-\t-\n", cell(g.Name), g.Mode, g.Source)
					}
					for _, r := range g.Rules {
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", cell(g.Name), g.Mode, g.Source, cell(r.Text), r.ID)
					}
				}
			}, c.offlineNote(), doubtNote(a))
		})

	var whoIP string
	who := c.command(root, "who-can METHOD URL", "Lists the service users that a request would let through",
		"caddy service-user who-can DELETE /v1/people/7", 2,
		func(ctx context.Context, client *admin.Client, args []string) error {
			query := url.Values{"method": {args[0]}, "url": {args[1]}}
			if whoIP != "" {
				query.Set("remote_ip", whoIP)
			}
			all := admin.WhoCan{ServiceUsers: []admin.WhoCanUser{}}
			err := admin.All(ctx, client, "/service_users/who_can?"+query.Encode(), func(l admin.WhoCan) admin.Page {
				all.ServiceUsers = append(all.ServiceUsers, l.ServiceUsers...)
				all.URI = l.URI
				return l.Page
			})
			if err != nil {
				return err
			}
			return c.print(all, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tNAME\tGROUP\tRULE")
				for _, u := range all.ServiceUsers {
					group, rule := "-", "-"
					if u.Rule != nil {
						group, rule = cell(u.PermissionGroup.Name), cell(u.Rule.Text)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", u.ID, cell(u.Name), group, rule)
				}
			}, c.offlineNote())
		})
	who.Flags().StringVar(&whoIP, "remote-ip", "", "the address that it comes from; default: any")

	var wouldAllow, forget bool
	would := c.command(root, "would-deny", "Lists what observe mode has let pass that enforcing would refuse",
		"caddy service-user would-deny", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			const uri = "/service_users/would_deny"
			if err := c.remembered("what it observes"); err != nil {
				return err
			}
			if forget {
				if err := client.Do(ctx, http.MethodDelete, uri, nil, nil); err != nil {
					return err
				}
				return c.done("forgot every count")
			}
			effect := access.Deny
			if wouldAllow {
				effect = access.Allow
			}
			var list admin.WouldDenyList
			if err := client.Do(ctx, http.MethodGet, uri+"?would="+string(effect), nil, &list); err != nil {
				return err
			}
			because, err := c.becauseOf(ctx, client, list)
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) {
				fmt.Fprint(w, "COUNT\tLAST\tSERVICE USER\tREQUEST\tBECAUSE OF")
				if !wouldAllow {
					fmt.Fprint(w, "\tWOULD NEED")
				}
				fmt.Fprintln(w)
				for i, o := range list.WouldDeny {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s", o.Count, when(&o.LastAt), cell(o.Name), cell(o.Method+" "+o.Path), cell(because[i]))
					if !wouldAllow {
						fmt.Fprintf(w, "\t%s", dash(cell(o.Grant)))
					}
					fmt.Fprintln(w)
				}
			}, countNote(list))
		})
	would.Flags().BoolVar(&wouldAllow, "allow", false, "list what is refused that enforcing would allow")
	would.Flags().BoolVar(&forget, "forget", false, "forget every count and begin again")
}

// remembered refuses to look in a store file for what only the memory of a
// running Caddy holds.
func (c *cli) remembered(what string) error {
	if c.store == "" {
		return nil
	}
	return usageError{fmt.Errorf("a running Caddy keeps %s in memory, and none of it is in the store; leave out --store", what)}
}

// becauseOf says for each row why enforcing would decide otherwise.
func (c *cli) becauseOf(ctx context.Context, client *admin.Client, list admin.WouldDenyList) ([]string, error) {
	reasons := make([]string, len(list.WouldDeny))
	if c.json {
		return reasons, nil
	}
	texts := make(map[string]map[string]string) // of rules, by group and rule
	for i, o := range list.WouldDeny {
		group := o.PermissionGroup
		if group == nil {
			reasons[i] = "no rule allows it"
			continue
		}
		if texts[group.ID] == nil {
			texts[group.ID] = make(map[string]string)
			g, err := client.FindGroup(ctx, group.ID)
			if err != nil && !admin.IsNotFound(err) {
				return nil, err
			}
			for _, r := range g.Rules {
				texts[group.ID][r.ID] = r.Text
			}
		}
		reasons[i] = cmp.Or(texts[group.ID][o.RuleID], o.RuleID) + " (" + group.Name + ")"
	}
	return reasons, nil
}

// The notes below a table tell what it cannot show.

func countNote(list admin.WouldDenyList) string {
	switch {
	case list.NotCounted > 0:
		return fmt.Sprintf("%d more requests are not in the list: there were too many kinds.", list.NotCounted)
	case len(list.WouldDeny) == 0:
		return "Nothing yet: observe mode has counted no such request since Caddy started or the counts were reset."
	}
	return ""
}

func (c *cli) offlineNote() string {
	if c.store == "" || c.config != "" {
		return ""
	}
	return "A default_group does not count here: the store does not know it; name the configuration with --config."
}

func doubtNote(a admin.Access) string {
	if !slices.ContainsFunc(a.PermissionGroups, func(g admin.AccessGroup) bool { return g.Source == string(access.InDoubt) }) {
		return ""
	}
	return "doubt: the condition of the group cannot be evaluated, so its denies hold and its allows do not."
}

func headerNote(e admin.Explanation) string {
	if e.DecisionID == "" || !slices.ContainsFunc(e.Considered, func(r admin.ConsideredRule) bool { return strings.Contains(r.Rule.When, ".header(") }) {
		return ""
	}
	return "Headers are not kept: in the list, and in what is decided now, the request has none."
}

// maxConsidered is how many rules an explanation lists for people: those that
// apply, and those that come closest.
const maxConsidered = 10

// tellExplanation writes an explanation for people. name is the service user's,
// "" when it was deleted.
func tellExplanation(w io.Writer, name string, e admin.Explanation) {
	fmt.Fprintf(w, "%s\t%s\n", e.Decision, cell(e.Detail))
	if e.Now != "" {
		fmt.Fprintf(w, "now\t%s\n", e.Now)
	}
	if e.DecidedAt != nil {
		fmt.Fprintf(w, "decided\t%s\n", when(e.DecidedAt))
	}
	fmt.Fprintf(w, "service user\t%s\t(%s)\n", cell(cmp.Or(name, "deleted")), e.ServiceUserID)
	fmt.Fprintf(w, "request\t%s\n", cell(e.Method+" "+e.Host+e.Path))
	if e.Rule != nil {
		fmt.Fprintf(w, "rule\t%s\t(%s)\n", cell(e.Rule.Text), e.Rule.ID)
	}
	if e.PermissionGroup != nil {
		fmt.Fprintf(w, "group\t%s", cell(cmp.Or(e.PermissionGroup.Name, e.PermissionGroup.ID)))
		switch access.Source(e.Source) {
		case "":
		case access.ByDefault:
			fmt.Fprint(w, "\t(the default group)")
		case access.InDoubt:
			fmt.Fprint(w, "\t(in doubt: its condition cannot be evaluated)")
		default:
			fmt.Fprintf(w, "\t(member by %s)", e.Source)
		}
		fmt.Fprintln(w)
	}
	if e.Nearest != nil {
		fmt.Fprintf(w, "nearest\t%s\t(%s)\n", cell(e.Nearest.Rule.Text), cell(e.Nearest.Why))
	}
	if e.Grant != nil {
		fmt.Fprintf(w, "would need\t%s\n", cell(e.Grant.Rule))
		if groups := e.Grant.PermissionGroups; len(groups) > 0 {
			names := make([]string, len(groups))
			for i, g := range groups {
				names[i] = g.Name
			}
			fmt.Fprintf(w, "or join\t%s\n", cell(strings.Join(names, ", ")))
		}
	}
	if len(e.Considered) == 0 {
		return
	}
	applies := "APPLIES"
	if e.DecidedAt != nil {
		applies = "APPLIES NOW"
	}
	fmt.Fprintf(w, "\n%s\tRULE\tGROUP\tWHY\n", applies)
	for i, r := range e.Considered {
		if i == maxConsidered {
			fmt.Fprintf(w, "\nand %d more; --json lists every rule\n", len(e.Considered)-i)
			break
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", yesNo(r.Applies), cell(r.Rule.Text), cell(r.PermissionGroup.Name), dash(cell(r.Why)))
	}
}

// permissionCommands adds the catalogue of permissions.
func (c *cli) permissionCommands(root *cobra.Command) {
	var replace bool
	load := c.command(root, "load FILE", "Loads a catalogue of permissions from a JSON file, or \"-\"",
		"caddy service-user permission load examples/hibob-permissions.json", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			in, err := readCatalogue(args[0])
			if err != nil {
				return err
			}
			if replace {
				in["replace"] = jsontext.Value("true")
			}
			if string(in["replace"]) == "true" {
				if err := c.sure("Delete every permission that is not in %s?", args[0]); err != nil {
					return err
				}
			}
			var n admin.CatalogueChange
			if err := client.Do(ctx, http.MethodPut, "/service_users/permissions", in, &n); err != nil {
				return err
			}
			return c.print(n, func(w io.Writer) {
				fmt.Fprintf(w, "%d created, %d updated, %d unchanged, %d deleted\n", n.Created, n.Updated, n.Unchanged, n.Deleted)
			})
		})
	load.Flags().BoolVar(&replace, "replace", false, "delete the permissions that are not in the file")
	c.destructive(load, func() bool { return replace })

	var category string
	list := c.command(root, "list", "Lists the catalogue",
		"caddy service-user permission list", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			uri := "/service_users/permissions"
			if category != "" {
				uri += "?category=" + url.QueryEscape(category)
			}
			var l admin.PermissionList
			if err := client.Do(ctx, http.MethodGet, uri, nil, &l); err != nil {
				return err
			}
			return c.print(l, func(w io.Writer) {
				fmt.Fprintln(w, "KEY\tCATEGORY\tNAME\tRULES")
				for _, p := range l.Permissions {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\n", p.Key, dash(cell(p.Category)), cell(p.Name), len(p.Rules))
				}
			})
		})
	list.Flags().StringVar(&category, "category", "", "only those of this category")

	c.command(root, "show KEY", "Shows a permission with its rules",
		"caddy service-user permission show people.address.view", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			p, err := findPermission(ctx, client, args[0])
			if err != nil {
				return err
			}
			return c.print(p, func(w io.Writer) {
				fmt.Fprintf(w, "key\t%s\nname\t%s\n", p.Key, cell(p.Name))
				if p.Category != "" {
					fmt.Fprintf(w, "category\t%s\n", cell(p.Category))
				}
				if p.Description != "" {
					fmt.Fprintf(w, "description\t%s\n", cell(p.Description))
				}
				for _, r := range p.Rules {
					fmt.Fprintf(w, "rule\t%s\n", cell(r))
				}
			})
		})

	c.destructive(c.command(root, "delete KEY", "Deletes a permission that no group has",
		"caddy service-user permission delete people.address.view --yes", 1,
		func(ctx context.Context, client *admin.Client, args []string) error {
			if err := c.sure("Delete the permission %s?", args[0]); err != nil {
				return err
			}
			if err := client.Do(ctx, http.MethodDelete, "/service_users/permissions?key="+url.QueryEscape(args[0]), nil, nil); err != nil {
				return err
			}
			return c.done("deleted %s", args[0])
		}), nil)

	set := func(use, short, example, method, past string) {
		c.command(root, use, short, example, 2,
			func(ctx context.Context, client *admin.Client, args []string) error {
				g, err := client.FindGroup(ctx, args[0])
				if err != nil {
					return err
				}
				p, err := findPermission(ctx, client, args[1]) // a typo must not look like a permission that is withdrawn
				if err != nil {
					return err
				}
				if err := client.Do(ctx, method, g.URI+"/permissions/"+url.PathEscape(p.Key), nil, nil); err != nil {
					return err
				}
				return c.done(past, g.Name, p.Key)
			})
	}
	set("grant GROUP KEY", "Gives a permission to a group",
		"caddy service-user permission grant people-readers people.address.view", http.MethodPut, "%s has %s")
	set("withdraw GROUP KEY", "Takes a permission away from a group",
		"caddy service-user permission withdraw people-readers people.address.view", http.MethodDelete, "%s no longer has %s")
}

func findPermission(ctx context.Context, client *admin.Client, key string) (admin.Permission, error) {
	var list admin.PermissionList
	if err := client.Do(ctx, http.MethodGet, "/service_users/permissions?key="+url.QueryEscape(key), nil, &list); err != nil {
		return admin.Permission{}, err
	}
	if len(list.Permissions) == 0 {
		return admin.Permission{}, admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND", fmt.Sprintf("there is no permission %q in the catalogue", key))
	}
	return list.Permissions[0], nil
}

// readCatalogue reads the file of a catalogue, as far as it has to be understood
// here: the API checks the rest.
func readCatalogue(path string) (in map[string]jsontext.Value, err error) {
	text, err := readAll(path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &in); err != nil || in == nil {
		why := "it is no object"
		if syntax := (*jsontext.SyntacticError)(nil); errors.As(err, &syntax) {
			why = fmt.Sprintf("%v at byte %d", syntax.Err, syntax.ByteOffset)
		}
		return nil, fmt.Errorf("%s is not a catalogue of permissions: %s; it looks like {\"permissions\":[{\"key\":\"people.view\",\"name\":\"View people\",\"rules\":[\"allow GET /v1/people/{id}\"]}]}", path, why)
	}
	return in, nil
}

func readAll(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(path)
}
