package cli

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// rightsCommands adds the commands that explain decisions and list rights: explain, access, who-can
// and would-deny.
func (c *cli) rightsCommands(root *cobra.Command) {
	c.explainCommand(root)
	c.command(root, "access USER",
		"Lists the permission groups and rules of a service user, with the source of each",
		"access billing-sync",
		on(c.user, func(u admin.ServiceUser, _ []string) error {
			var a admin.Access
			if err := c.do(http.MethodGet, u.URI+"/access", nil, &a); err != nil {
				return err
			}
			rows := table{{"GROUP", "MODE", "BY", "RULE", "ID"}}
			for _, g := range a.PermissionGroups {
				if len(g.Rules) == 0 {
					rows.add(g.Name, g.Mode, g.Source, "", "")
				}
				for _, r := range g.Rules {
					rows.add(g.Name, g.Mode, g.Source, r.Text, r.ID)
				}
			}
			none := noneNote(len(a.PermissionGroups), "No permission group has this "+
				"member, so none of their rules applies to it.")
			if a.Partial {
				none = "Rules of permission groups outside of your reach may apply too."
			}
			return c.print(a, rows, c.offlineNote(), doubtNote(a), none, obstacleNote(u.Name, a.Obstacle))
		}))

	c.whoCanCommand(root)
	c.wouldDenyCommand(root)
}

func (c *cli) whoCanCommand(root *cobra.Command) {
	query := url.Values{}
	var headers labelFlag
	who := c.command(root, "who-can METHOD URL",
		"Lists the service users that may make a request, or each request of a pattern",
		"who-can DELETE \"/v1/people/{id}\"",
		func(args []string) error {
			query.Set("method", args[0])
			query.Set("url", args[1])
			for name, value := range headers.texts() {
				query.Add("header", name+"="+value)
			}
			blocked, undecided := []admin.WhoCanUser{}, []admin.Undecided{}
			list, err := all(c, withQuery("/service_users/who_can", query),
				func(l *admin.WhoCan) (*[]admin.WhoCanUser, *admin.Page) {
					blocked, undecided = append(blocked, l.CannotLogIn...), l.Undecided
					return &l.ServiceUsers, &l.Page
				})
			if err != nil {
				return err
			}
			list.CannotLogIn, list.Undecided = blocked, undecided
			rows := table{{"ID", "NAME", "GROUP", "RULE", "MAY"}}
			for _, u := range slices.Concat(list.ServiceUsers, blocked) {
				group, rule, may := "", "", "yes"
				if u.Rule != nil {
					group, rule = u.PermissionGroup.Name, u.Rule.Text
				}
				if u.Some {
					may = "some ids"
				}
				if len(u.NotAsked) > 0 {
					may += "; not asked: give " + asFlag(u.NotAsked[0])
				}
				if u.Obstacle != nil {
					may = "no: " + *u.Obstacle
				}
				rows.add(u.ID, u.Name, group, rule, may)
			}
			return c.print(list, rows, c.offlineNote(),
				noneNote(len(list.ServiceUsers), "No service user may make this request."),
				undecidedNote(list.Undecided))
		})
	flags := who.Flags()
	flags.Var(parameter(query, "remote_ip"), "remote-ip", "the address of the client; default: any")
	flags.Var(&headers, "header", headerUsage)
	flags.Var(parameter(query, "at"), "at", atUsage)
}

const (
	headerUsage = "a header of the request, for conditions; \"NAME=\" means that it is absent (may be repeated)"
	atUsage     = "the time of the request, such as 2030-01-31T12:00:00Z; default: now"
)

func (c *cli) explainCommand(root *cobra.Command) {
	var in admin.ExplainInput
	var headers labelFlag
	var refusals bool
	explain := c.command(root, "explain USER METHOD URL | explain DECISION_ID | explain USER --refusals",
		"Explains why a request is allowed or refused, and names a rule that would allow it",
		"explain billing-sync GET /v1/people/7",
		func(args []string) error {
			var u admin.ServiceUser
			var err error
			if len(args) == 1 {
				if refusals {
					return on(c.user, c.refusals)(args)
				}
				in.DecisionID = args[0]
				err = checkID("decision", in.DecisionID)
			} else {
				u, err = c.user(args[0])
				in.ServiceUserID, in.Method, in.URL = u.ID, args[1], args[2]
			}
			if err != nil {
				return err
			}
			in.Headers = headers.texts()
			var e admin.Explanation
			if err := c.do(http.MethodPost, "/service_users/explain", in, &e); err != nil {
				return err
			}
			if u.ID == "" && !c.json {
				u, err = c.user(e.ServiceUserID)
				if err != nil && !admin.IsNotFound(err) {
					return err
				}
			}
			return c.print(e, explanation(u.Name, e), c.offlineNote())
		})
	three := explain.Args
	explain.Args = func(cmd *cobra.Command, args []string) error {
		switch decision := len(args) == 1 && strings.HasPrefix(args[0], "decision_"); {
		case refusals && (decision || len(args) != 1):
			return c.exit(cmd, usagef("--refusals takes a service user alone, "+
				"as in \"explain billing-sync --refusals\""))
		case refusals && (in.TokenID+in.RemoteIP+in.Site+in.At != "" || headers.members != nil):
			return c.exit(cmd, usagef("--refusals lists every refused request; "+
				"leave out --token, --remote-ip, --site, --header and --at"))
		case refusals || decision:
			return nil
		}
		return three(cmd, args)
	}
	flags := explain.Flags()
	flags.BoolVar(&refusals, "refusals", false, "list the refused requests of the service user")
	flags.StringVar(&in.TokenID, "token", "",
		"the id of the token in the request; default: one that is not narrowed, if there is one")
	flags.StringVar(&in.RemoteIP, "remote-ip", "", "the address of the client; default: any")
	flags.StringVar(&in.Site, "site", "", "the host of a guarded site, whose options then apply")
	flags.Var(&headers, "header", headerUsage)
	flags.StringVar(&in.At, "at", "", atUsage)
}

// refusals prints the latest refused requests of a service user.
func (c *cli) refusals(u admin.ServiceUser, _ []string) error {
	var list admin.RefusalList
	if err := c.do(http.MethodGet, u.URI+"/refusals", nil, &list); err != nil {
		return err
	}
	rows := table{{"TIME", "STATUS", "REASON", "REQUEST", "FROM", "DECISION OR DETAIL"}}
	for _, r := range list.Refusals {
		request := r.Method + " " + r.Host + r.Path
		rows.add(when(&r.At), r.Status, r.Reason, request, r.RemoteIP, cmp.Or(r.DecisionID, r.Detail))
	}
	return c.print(list, rows, fmt.Sprintf("Those with a decision are of all nodes, as far as the store has them. "+
		"The others are in the memory of this Caddy, which has all its refusals after %s.", when(&list.Since)))
}

func (c *cli) wouldDenyCommand(root *cobra.Command) {
	var wouldAllow, forget bool
	would := c.command(root, "would-deny",
		"Lists requests that passed in observe mode and that mode enforce would refuse", "would-deny",
		func([]string) error {
			const uri = "/service_users/would_deny"
			if err := c.remembered("the counts of observe mode"); err != nil {
				return err
			}
			if forget {
				return c.change(http.MethodDelete, uri, "reset every count")
			}
			effect, rows := access.Deny, table{{"COUNT", "LAST", "SERVICE USER", "REQUEST", "BECAUSE OF"}}
			if wouldAllow {
				effect = access.Allow
			} else {
				rows[0] = append(rows[0], "WOULD NEED")
			}
			var list admin.WouldDenyList
			if err := c.do(http.MethodGet, uri+"?would="+string(effect), nil, &list); err != nil {
				return err
			}
			because, err := c.becauseOf(list)
			if err != nil {
				return err
			}
			for i, o := range list.WouldDeny {
				request := o.Method + " " + o.Path
				row := []any{o.Count, when(&o.LastAt), o.Name, request, because[i], o.Grant}
				rows.add(row[:len(rows[0])]...)
			}
			return c.print(list, rows, countNote(list))
		})
	would.Flags().BoolVar(&wouldAllow, "allow", false, "list refused requests that mode enforce would allow")
	would.Flags().BoolVar(&forget, "forget", false, "reset every count")
}

// remembered refuses --store for facts that only the memory of a running Caddy contains.
func (c *cli) remembered(facts string) error {
	if c.store == "" {
		return nil
	}
	return usagef("a running Caddy keeps %s in memory, not in the store; leave out --store", facts)
}

// becauseOf returns for each row the reason for a different decision in mode enforce.
func (c *cli) becauseOf(list admin.WouldDenyList) ([]string, error) {
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
			g, err := c.permissionGroup(group.ID)
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
	const note = "The default_group is left out, since the store does not contain it; " +
		"name the configuration with --config."
	if c.json { // the answer of the API does not say it
		fmt.Fprintln(c.stderr, note)
	}
	return note
}

func doubtNote(a admin.Access) string {
	inDoubt := func(g admin.AccessGroup) bool { return g.Source == string(access.InDoubt) }
	if !slices.ContainsFunc(a.PermissionGroups, inDoubt) {
		return ""
	}
	return "doubt: the condition of the group cannot be evaluated, so its denies apply and its allows do not."
}

func noneNote(entries int, note string) string {
	if entries > 0 {
		return ""
	}
	return note
}

func obstacleNote(name string, obstacle *string) string {
	if obstacle == nil {
		return ""
	}
	return "Nobody can log in as " + name + ": " + *obstacle + "."
}

func undecidedNote(list []admin.Undecided) string {
	var parts []string
	for _, u := range list {
		parts = append(parts, plural(u.Rules, "rule")+" could not be decided without "+asFlag(u.Needs))
	}
	return strings.Join(parts, "; ")
}

// asFlag returns the way to give a fact that a question left out.
func asFlag(fact string) string {
	switch name, header := strings.CutPrefix(fact, "headers."); {
	case header:
		return "--header " + name
	case fact == "host":
		return "a URL with its host"
	}
	return "--" + strings.ReplaceAll(fact, "_", "-")
}

// askForFlags replaces the names of facts in a text of the API by flags.
func askForFlags(text string, facts []string) string {
	flags := make([]string, len(facts))
	for i, fact := range facts {
		flags[i] = asFlag(fact)
	}
	const give = "not asked: give "
	return strings.Replace(text, give+strings.Join(facts, ", "), give+strings.Join(flags, ", "), 1)
}

// maxConsidered is the number of rules that an explanation lists for people: first the rules that
// apply, then those that match most closely.
const maxConsidered = 10

// explanation returns an explanation for people. name is the name of the service user, "" if it was
// deleted.
func explanation(name string, e admin.Explanation) table {
	rows := table{
		{string(e.Decision), askForFlags(e.Detail, e.NotAsked)}, {"now", string(e.Now)},
		{"decided", when(e.DecidedAt)}, {"node", e.Node},
		{"service user", cmp.Or(name, "deleted"), "(" + e.ServiceUserID + ")"},
		{"request", e.Method + " " + e.Host + e.Path},
	}.known()
	if e.Obstacle != nil && e.DecisionID != "" {
		rows.add("obstacle", *e.Obstacle) // otherwise a part of the detail
	}
	if e.Rule != nil {
		rows.add("rule", e.Rule.Text, "("+e.Rule.ID+")")
	}
	if e.PermissionGroup != nil {
		row := []any{"group", cmp.Or(e.PermissionGroup.Name, e.PermissionGroup.ID)}
		switch access.Source(e.Source) {
		case "":
		case access.ByDefault:
			row = append(row, "(the default group)")
		case access.InDoubt:
			row = append(row, "(in doubt: its condition cannot be evaluated)")
		default:
			row = append(row, "(member by "+e.Source+")")
		}
		rows.add(row...)
	}
	if e.Nearest != nil {
		rows.add("nearest", e.Nearest.Rule.Text, "("+askForFlags(e.Nearest.Why, e.Nearest.NotAsked)+")")
	}
	if e.Grant != nil {
		rows.add("would need", e.Grant.Rule)
		var names []string
		for _, g := range e.Grant.PermissionGroups {
			names = append(names, g.Name)
		}
		if len(names) > 0 {
			rows.add("or join", strings.Join(names, ", "))
		}
	}
	if len(e.Considered) == 0 {
		return rows
	}
	applies := "APPLIES"
	if e.DecidedAt != nil {
		applies = "APPLIES NOW"
	}
	rows.add()
	rows.add(applies, "RULE", "GROUP", "WHY")
	for _, r := range e.Considered[:min(len(e.Considered), maxConsidered)] {
		rows.add(yesNo(r.Applies), r.Rule.Text, r.PermissionGroup.Name, askForFlags(r.Why, r.NotAsked))
	}
	if more := len(e.Considered) - maxConsidered; more > 0 {
		rows.add()
		rows.add(fmt.Sprintf("and %d more; --json lists every rule", more))
	}
	return rows
}
