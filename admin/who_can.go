package admin

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// Access shows the rules that apply to a service user, by permission group.
type Access struct {
	ServiceUserID    string        `json:"service_user_id"`   // the service user
	PermissionGroups []AccessGroup `json:"permission_groups"` // all groups of the service user, from any source
	// the reason why nobody can log in now; null if somebody can
	Obstacle *string `json:"obstacle"`
	// true for a manager: rules of groups outside of its reach are not shown, and may apply too
	Partial bool   `json:"partial,omitzero"`
	URI     string `json:"uri"` // the path of this answer
}

// AccessGroup is a permission group of a service user, with the rules that apply through it.
type AccessGroup struct {
	GroupRef
	// the way in which the service user is a member: name, condition or default; doubt if the
	// condition cannot be evaluated, so that only the denies of the group apply
	Source string `json:"source"`
	// the rules that apply to the service user
	Rules []Rule `json:"rules"`
}

// access returns the permission groups of a service user, with the rules that apply through them.
func (a *API) access(c *call, _ None) (Access, error) {
	id := c.PathValue("id")
	if _, err := a.store.ServiceUser(c.Context(), c.by, id, false); err != nil {
		return Access{}, err
	}
	out := Access{
		ServiceUserID: id, PermissionGroups: []AccessGroup{}, Obstacle: c.obstacle(id),
		Partial: c.by.Scope != nil, URI: c.URL.Path,
	}
	d := a.store.Directory()
	u, ok := d.User(id)
	if !ok {
		return Access{}, errNotFound
	}
	for _, m := range d.Memberships(u) {
		if !c.sees(m.Group) {
			continue
		}
		g := AccessGroup{GroupRef: refTo(m.Group), Source: string(m.Source), Rules: []Rule{}}
		for _, r := range m.Group.Rules {
			if m.Source != access.InDoubt || r.Effect == access.Deny {
				g.Rules = append(g.Rules, showRule(m.Group.ID, r))
			}
		}
		out.PermissionGroups = append(out.PermissionGroups, g)
	}
	return out, nil
}

// WhoCanQuery describes a request that a service user might make, or one for each path of a pattern.
type WhoCanQuery struct {
	ListQuery
	// the method of the request, such as GET
	Method string `query:"method" required:"true"`
	// a path, or an absolute URL if rules name hosts; a pattern such as /v1/people/{id} asks for
	// every value of {id}, and {rest...} at the end for every rest; * and :id are not wildcards
	URL string `query:"url" required:"true"`
	// the address of the client; absent leaves allowed_ips undecided
	RemoteIP string `query:"remote_ip"`
	// a header of the request as NAME=VALUE, for conditions; "NAME=" says that the request does not
	// have the header; may be repeated
	Headers []string `query:"header"`
	// the time of the request; absent means now
	At string `query:"at"`
}

// WhoCan lists the service users that may make a request.
type WhoCan struct {
	ServiceUsers []WhoCanUser `json:"service_users"` // newest first
	// those that rules allow the request and that cannot log in for it, newest first
	CannotLogIn []WhoCanUser `json:"cannot_log_in"`
	// the rules that could not be decided, by the absent parameter that they need; none of them
	// allows the request here, and each of their denies refuses it
	Undecided []Undecided `json:"undecided"`
	Page
}

// WhoCanUser is a service user that may make the request, with the rule that allows it.
type WhoCanUser struct {
	// service_…
	ID string `json:"id"`
	// the path of the service user in this API
	URI string `json:"uri"`
	// unique
	Name string `json:"name"`
	// whether only some paths of the pattern are allowed; false means every path
	Some bool `json:"some"`
	// the rule that allows it, or some of it; null if you may not see the rule
	Rule *Rule `json:"rule"`
	// the group of the rule; null if you may not see the rule
	PermissionGroup *GroupRef `json:"permission_group"`
	// the reason why nobody can log in for the request; null if somebody can
	Obstacle *string `json:"obstacle"`
	// remote_ip if it may make the request only from its allowed_ips and the question has no
	// address; absent otherwise
	NotAsked []string `json:"not_asked,omitempty"`
}

// Undecided counts the rules that a question leaves undecided.
type Undecided struct {
	// the absent parameter: remote_ip, at, headers.NAME for a header, or host for a URL with a host
	Needs string `json:"needs"`
	// the number of rules that need it
	Rules int `json:"rules"`
}

// maxWhoCan limits the time for one who_can request. The conditions for one service user take up to
// 10 ms or so.
const maxWhoCan = 5 * time.Second

// whoCan lists the service users that may make a request, newest first. For a pattern, it lists those
// that may make every request of the pattern, and marks with some those that may make some of them.
// A page is cut when either of its lists of service users is full.
func (a *API) whoCan(c *call, q WhoCanQuery) (WhoCan, error) {
	out := WhoCan{ServiceUsers: []WhoCanUser{}, CannotLogIn: []WhoCanUser{}}
	read := func(before string, limit int, count bool) (list []WhoCanUser, more bool, err error) {
		action, pattern, err := a.whoCanAction(q)
		if err != nil {
			return nil, false, err
		}
		done, err := a.heavy.take(c.Context(), c.by.Name)
		if err != nil {
			return nil, false, err
		}
		defer done()
		if count { // usersWhoCan looks at every service user, whatever the limit is
			limit = math.MaxInt
		}
		list, out.Undecided, more, err = a.usersWhoCan(c, action, pattern, before, limit)
		return list, more, err
	}
	list, page, err := newestFirst(c, q.ListQuery, "service", read, func(u WhoCanUser) (WhoCanUser, string) {
		return u, u.ID
	})
	for _, u := range list {
		place := &out.ServiceUsers
		if u.Obstacle != nil {
			place = &out.CannotLogIn
		}
		*place = append(*place, u)
	}
	out.Page = page
	return out, err
}

// whoCanAction returns the action that a question is about. pattern reports whether its path is a
// pattern.
func (a *API) whoCanAction(q WhoCanQuery) (action access.Action, pattern bool, err error) {
	// A request has "%7B" in the place of a brace. Judge decodes it again.
	braces := strings.NewReplacer("{", "%7B", "}", "%7D")
	in := ExplainInput{
		Method: q.Method, URL: braces.Replace(q.URL), RemoteIP: q.RemoteIP, At: q.At,
		Headers: make(map[string]string),
	}
	for _, text := range q.Headers {
		name, value, ok := strings.Cut(text, "=")
		if _, twice := in.Headers[name]; !ok || twice {
			return action, false, invalidField("header",
				fmt.Sprintf("%q: must be NAME=VALUE, once for each header", text))
		}
		in.Headers[name] = value
	}
	action, problem, err := a.action(in)
	if m := foreignWildcard(q.URL); err == nil && m != "" {
		literal := strings.NewReplacer("*", "%2A", ":", "%3A").Replace(m)
		return action, false, invalidField("url", fmt.Sprintf("%q is not a wildcard here; write {name} for any "+
			"segment, {rest...} at the end for all that follow, or %s for this very segment", m, literal))
	}
	if err == nil && !problem.OK() {
		// The position in the message is that in q.URL, where a brace is one byte.
		in.URL = strings.NewReplacer("{", "(", "}", ")").Replace(q.URL)
		_, problem, _ = a.action(in)
		field := "url"
		if problem.Part == "method" {
			field = "method"
		}
		err = invalidField(field, refusedEarly(problem))
	}
	return action, in.URL != q.URL, err
}

// usersWhoCan returns service users that are older than the id before and that rules allow the
// action: up to limit that can log in, and up to limit that cannot. It reports whether there are more.
// The rules that are undecided are those of all service users.
func (a *API) usersWhoCan(
	c *call, action access.Action, pattern bool, before string, limit int,
) (list []WhoCanUser, undecided []Undecided, more bool, err error) {
	d := a.store.Directory()
	var users []*access.User
	d.Users(func(u *access.User) {
		if c.by.Scope == nil || c.by.Scope.Shares(u.Teams) {
			users = append(users, u)
		}
	})
	slices.SortFunc(users, func(a, b *access.User) int { return strings.Compare(b.ID, a.ID) })
	ctx, stop := context.WithTimeoutCause(c.Context(), maxWhoCan, NewError(http.StatusBadRequest, "ERR_TOO_COSTLY",
		"the conditions of rules for this path take too long for so many service users; "+
			"ask about some of them by explain, or make the conditions simpler").field("url"))
	defer stop()
	asked, err := d.Ask(action, pattern)
	if err != nil {
		return nil, nil, false, invalidField("url", err.Error())
	}
	open := make(map[*access.Rule]string)
	count := make(map[bool]int) // of the list, by whether they can log in
	for _, u := range users {
		if err := context.Cause(ctx); err != nil {
			return nil, nil, false, err
		}
		logins, reason := d.Logins(u.ID, action.Address, action.Now)
		for _, p := range logins {
			if err := context.Cause(ctx); err != nil {
				return nil, nil, false, err
			}
			asked.Undecided(p, c.sees, open)
		}
		if more || before != "" && u.ID >= before {
			continue
		}
		if len(logins) == 0 {
			p, _ := d.Principal(u.ID, "", action.Address, action.Now)
			logins = append(logins, p)
		}
		reach, rule, group, by := asked.Reach(logins)
		who := WhoCanUser{
			ID: u.ID, URI: "/service_users/" + u.ID, Name: u.Name,
			Some: reach == access.SomePaths, Obstacle: obstacleText(reason),
		}
		if reason == access.Granted && !action.Address.IsValid() && onlyFrom(u, by) != "" {
			who.NotAsked = []string{"remote_ip"}
		}
		switch {
		case reach == access.NoPath:
			continue
		case count[who.Obstacle == nil] == limit:
			more = true
			continue // for the rules that are undecided
		case c.sees(group):
			who.Rule, who.PermissionGroup = showDecider(group, rule)
		}
		count[who.Obstacle == nil]++
		list = append(list, who)
	}
	needs := make(map[string]int)
	for _, names := range open {
		for _, name := range facts(names) {
			needs[name]++
		}
	}
	undecided = []Undecided{}
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		undecided = append(undecided, Undecided{name, needs[name]})
	}
	return list, undecided, more, nil
}
