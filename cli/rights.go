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

// rightsCommands adds the commands that explain decisions and list rights: explain, access, who-can
// and would-deny.
func (c *cli) rightsCommands(root *cobra.Command) {
	var tokenID, remoteIP, site string
	var headers labelFlag
	explain := c.command(root, "explain USER METHOD URL | explain DECISION_ID",
		"Explains why a request is allowed or refused, and names a rule that would allow it",
		"caddy service-user explain billing-sync GET /v1/people/7", 3,
		func(ctx context.Context, client *admin.Client, args []string) error {
			in := admin.ExplainInput{TokenID: tokenID, RemoteIP: remoteIP, Site: site, Headers: headers.texts()}
			var u admin.ServiceUser
			var err error
			if len(args) == 1 {
				in.DecisionID = args[0]
				if err := c.remembered("its decisions"); err != nil {
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
			table := func(w io.Writer) { writeExplanation(w, u.Name, e) }
			return c.print(e, table, c.offlineNote(), headerNote(e))
		})
	three := explain.Args
	explain.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && strings.HasPrefix(args[0], "decision_") {
			return nil
		}
		return three(cmd, args)
	}
	explain.Flags().StringVar(&tokenID, "token", "",
		"the id of the token in the request; default: a token without restrictions")
	explain.Flags().StringVar(&remoteIP, "remote-ip", "", "the address of the client; default: any")
	explain.Flags().StringVar(&site, "site", "",
		"the host of a guarded site, whose options then apply")
	explain.Flags().Var(&headers, "header", "a header of the request, for conditions (may be repeated)")

	c.command(root, "access USER",
		"Lists the permission groups and rules of a service user, with the source of each",
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
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n",
							cell(g.Name), g.Mode, g.Source, cell(r.Text), r.ID)
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
			uri := "/service_users/who_can?" + query.Encode()
			err := admin.All(ctx, client, uri, func(l admin.WhoCan) admin.Page {
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
	who.Flags().StringVar(&whoIP, "remote-ip", "", "the address of the client; default: any")

	var wouldAllow, forget bool
	would := c.command(root, "would-deny",
		"Lists requests that passed in observe mode and that mode enforce would refuse",
		"caddy service-user would-deny", 0,
		func(ctx context.Context, client *admin.Client, args []string) error {
			const uri = "/service_users/would_deny"
			if err := c.remembered("the counts of observe mode"); err != nil {
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
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s",
						o.Count, when(&o.LastAt), cell(o.Name), cell(o.Method+" "+o.Path),
						cell(because[i]))
					if !wouldAllow {
						fmt.Fprintf(w, "\t%s", dash(cell(o.Grant)))
					}
					fmt.Fprintln(w)
				}
			}, countNote(list))
		})
	would.Flags().BoolVar(&wouldAllow, "allow", false, "list refused requests that mode enforce would allow")
	would.Flags().BoolVar(&forget, "forget", false, "reset every count")
}

// remembered refuses --store for facts that are only in the memory of a running Caddy. what names
// them.
func (c *cli) remembered(what string) error {
	if c.store == "" {
		return nil
	}
	return usageError{fmt.Errorf("a running Caddy keeps %s in memory, not in the store; leave out --store", what)}
}

// becauseOf returns for each row the reason for a different decision in mode enforce.
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

// The notes below a table add facts that the table has no column for.

func countNote(list admin.WouldDenyList) string {
	switch {
	case list.NotCounted > 0:
		return fmt.Sprintf("%d more requests are not in the list: there were too many kinds.", list.NotCounted)
	case len(list.WouldDeny) == 0:
		return "Nothing yet: observe mode has counted no such request " +
			"since Caddy started or the counts were reset."
	}
	return ""
}

func (c *cli) offlineNote() string {
	if c.store == "" || c.config != "" {
		return ""
	}
	return "The default_group is left out, since the store does not contain it; " +
		"name the configuration with --config."
}

func doubtNote(a admin.Access) string {
	inDoubt := func(g admin.AccessGroup) bool { return g.Source == string(access.InDoubt) }
	if !slices.ContainsFunc(a.PermissionGroups, inDoubt) {
		return ""
	}
	return "doubt: the condition of the group cannot be evaluated, so its denies apply and its allows do not."
}

func headerNote(e admin.Explanation) string {
	asksHeader := func(r admin.ConsideredRule) bool { return strings.Contains(r.Rule.When, ".header(") }
	if e.DecisionID == "" || !slices.ContainsFunc(e.Considered, asksHeader) {
		return ""
	}
	return "Headers are not kept: the list, and the decision of today, are for the request without headers."
}

// maxConsidered is the number of rules that an explanation lists for people: first the rules that
// apply, then those that match most closely.
const maxConsidered = 10

// writeExplanation writes an explanation for people. name is the name of the service user, "" if it
// was deleted.
func writeExplanation(w io.Writer, name string, e admin.Explanation) {
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
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n",
			yesNo(r.Applies), cell(r.Rule.Text), cell(r.PermissionGroup.Name), dash(cell(r.Why)))
	}
}

// permissionCommands adds the commands for the catalogue of permissions.
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
				fmt.Fprintf(w, "%d created, %d updated, %d unchanged, %d deleted\n",
					n.Created, n.Updated, n.Unchanged, n.Deleted)
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
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\n",
						p.Key, dash(cell(p.Category)), cell(p.Name), len(p.Rules))
				}
			})
		})
	list.Flags().StringVar(&category, "category", "", "only permissions of this category")

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
			uri := "/service_users/permissions?key=" + url.QueryEscape(args[0])
			if err := client.Do(ctx, http.MethodDelete, uri, nil, nil); err != nil {
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
				// The API accepts the withdrawal of any key, so a typo would look like a success.
				p, err := findPermission(ctx, client, args[1])
				if err != nil {
					return err
				}
				uri := g.URI + "/permissions/" + url.PathEscape(p.Key)
				if err := client.Do(ctx, method, uri, nil, nil); err != nil {
					return err
				}
				return c.done(past, g.Name, p.Key)
			})
	}
	set("grant GROUP KEY", "Gives a permission to a group",
		"caddy service-user permission grant people-readers people.address.view", http.MethodPut, "%s has %s")
	set("withdraw GROUP KEY", "Takes a permission away from a group",
		"caddy service-user permission withdraw people-readers people.address.view", http.MethodDelete,
		"%s no longer has %s")
}

func findPermission(ctx context.Context, client *admin.Client, key string) (admin.Permission, error) {
	var list admin.PermissionList
	uri := "/service_users/permissions?key=" + url.QueryEscape(key)
	if err := client.Do(ctx, http.MethodGet, uri, nil, &list); err != nil {
		return admin.Permission{}, err
	}
	if len(list.Permissions) == 0 {
		return admin.Permission{}, admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND",
			fmt.Sprintf("there is no permission %q in the catalogue", key))
	}
	return list.Permissions[0], nil
}

// readCatalogue reads the file of a catalogue and splits it into its members. The API checks the
// members.
func readCatalogue(path string) (in map[string]jsontext.Value, err error) {
	text, err := readAll(path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &in); err != nil || in == nil {
		reason := "it is not an object"
		if syntax := (*jsontext.SyntacticError)(nil); errors.As(err, &syntax) {
			reason = fmt.Sprintf("%v at byte %d", syntax.Err, syntax.ByteOffset)
		}
		const example = `{"permissions":[{"key":"people.view","name":"View people",` +
			`"rules":["allow GET /v1/people/{id}"]}]}`
		return nil, fmt.Errorf("%s is not a catalogue of permissions: %s; it looks like %s",
			path, reason, example)
	}
	return in, nil
}

// readAll reads a file, or the standard input if path is "-".
func readAll(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(path)
}
