package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// ExplainInput is a question: about a request that a service user might make, or
// about a decision that this node has made and still remembers.
type ExplainInput struct {
	DecisionID    string            `json:"decision_id,omitzero"`     // of the Service-User-Decision-Id header of a refusal; stands alone
	ServiceUserID string            `json:"service_user_id,omitzero"` // who would ask
	TokenID       string            `json:"token_id,omitzero"`        // "" is a token that is not restricted to some groups
	Method        string            `json:"method,omitzero"`          // such as GET
	URL           string            `json:"url,omitzero"`             // a path, or an absolute URL when rules name hosts
	RemoteIP      string            `json:"remote_ip,omitzero"`       // for conditions and allowed_ips; "" is any
	Headers       map[string]string `json:"headers,omitzero"`         // for conditions
}

// Explanation is the answer: the verdict, and how it came about.
type Explanation struct {
	Decision        string           `json:"decision"`              // "allow" or "deny"
	Reason          string           `json:"reason"`                // a word, as in logs and metrics
	Detail          string           `json:"detail"`                // the same in a sentence
	ServiceUserID   string           `json:"service_user_id"`       // who asks
	Method          string           `json:"method"`                // of the request
	Host            string           `json:"host"`                  // of the request; "" when none was given
	Path            string           `json:"path"`                  // of the request, decoded
	Rule            *Rule            `json:"rule"`                  // that decided
	PermissionGroup *GroupRef        `json:"permission_group"`      // that the rule belongs to
	Source          string           `json:"source"`                // how the service user came into it: name, condition, default
	Considered      []ConsideredRule `json:"considered"`            // every rule, those that apply first, then by how close they come
	Nearest         *ConsideredRule  `json:"nearest"`               // the allow that comes closest, when it is refused
	Grant           *Grant           `json:"grant"`                 // the smallest change that would allow it
	Revision        int64            `json:"revision"`              // of the store that the answer rests on
	DecisionID      string           `json:"decision_id,omitempty"` // of the decision that was asked for
	DecidedAt       *time.Time       `json:"decided_at,omitempty"`  // when it was made
	Now             string           `json:"now,omitempty"`         // what would be decided today, when it is not the same
}

// GroupRef names a permission group.
type GroupRef struct {
	ID   string      `json:"id"`                // group_…
	URI  string      `json:"uri"`               // its path in this API
	Name string      `json:"name"`              // unique
	Mode access.Mode `json:"mode" empty:"true"` // observe neither grants nor refuses; "": it was deleted since
}

// ConsideredRule is a rule with what keeps it from applying.
type ConsideredRule struct {
	Rule            Rule     `json:"rule"`             // the rule
	PermissionGroup GroupRef `json:"permission_group"` // that the rule belongs to
	Source          string   `json:"source"`           // how the service user came into it: name, condition, default
	Applies         bool     `json:"applies"`          // whether it covers the request
	Why             string   `json:"why"`              // why it does not apply, or does not decide
}

// Grant is what would allow a request: a rule to add to a group of the service
// user, or membership in one of the groups, which allow it already.
type Grant struct {
	Rule             string     `json:"rule"`              // in its one-line form
	PermissionGroups []GroupRef `json:"permission_groups"` // that allow it already
}

// explain answers why a request is allowed or refused: one that a service user
// might make, or one that was decided.
func (a *API) explain(c *call, in ExplainInput) (Explanation, error) {
	done, err := a.heavy.take(c.Context(), c.by.Name)
	if err != nil {
		return Explanation{}, err
	}
	defer done()
	if in.DecisionID != "" {
		return a.explainDecision(c, in)
	}
	if in.ServiceUserID == "" {
		return Explanation{}, invalidField("service_user_id", "name a service user, or a decision_id")
	}
	if !store.ValidID("service", in.ServiceUserID) {
		return Explanation{}, invalidField("service_user_id", "is not an id that begins with service_")
	}
	if _, err := a.store.ServiceUser(c.Context(), c.by, in.ServiceUserID, false); err != nil {
		return Explanation{}, err
	}
	action, problem, err := a.action(in.Method, in.URL, in.RemoteIP)
	if err != nil {
		return Explanation{}, err
	}
	action.Header = make(map[string][]string)
	for name, value := range in.Headers {
		key := textproto.CanonicalMIMEHeaderKey(name)
		if action.Header[key] != nil {
			return Explanation{}, invalidField("headers."+key, "stands there twice, in upper and in lower case")
		}
		action.Header[key] = []string{value}
	}
	d := a.store.Directory()
	p, why := d.Principal(in.ServiceUserID, in.TokenID, action.Address, action.Now)
	if p.ID() == "" {
		return Explanation{}, invalidField("token_id", "the service user has no such token, or it was revoked long ago")
	}
	out := Explanation{ServiceUserID: in.ServiceUserID, Method: action.Method, Host: action.Host, Path: action.Path, Considered: []ConsideredRule{}, Revision: d.Revision()}
	if !problem.OK() {
		out.Decision, out.Reason, out.Detail = "deny", "ambiguous", "the request is refused with status "+fmt.Sprint(problem.Status)+" before any rule is read: "+problem.Advice()
		return out, nil
	}
	a.fill(c, &out, d.Explain(p, action, c.sees))
	if why != access.Granted {
		out.Decision, out.Reason, out.Detail = "deny", why.String(), "it cannot authenticate: "+reasonText[why]
		out.Rule, out.PermissionGroup, out.Source, out.Grant = nil, nil, "", nil // no rule decides, and none would help
	}
	return out, nil
}

// explainDecision tells about a decision of the past. It may be about anybody, so
// it is for admins.
func (a *API) explainDecision(c *call, in ExplainInput) (Explanation, error) {
	if in.ServiceUserID != "" || in.TokenID != "" || in.Method != "" || in.URL != "" || in.RemoteIP != "" || in.Headers != nil {
		return Explanation{}, invalidField("decision_id", "stands alone: the decision knows the rest")
	}
	if c.by.Scope != nil {
		return Explanation{}, &store.Error{Kind: store.ErrNotAllowed, Msg: "only an admin may ask for a decision"}
	}
	r, ok := a.recall.Decision(in.DecisionID)
	if !ok {
		return Explanation{}, NewError(http.StatusNotFound, "ERR_NOT_FOUND", "this decision is not remembered: the node that made it keeps the last ones in memory until it ends")
	}
	d := a.store.Directory()
	at := r.At.UTC()
	out := Explanation{
		ServiceUserID: r.UserID, Method: r.Action.Method, Host: r.Action.Host, Path: access.PlainPath(r.Action.Path),
		Considered: []ConsideredRule{}, DecisionID: r.ID, DecidedAt: &at,
	}
	now := "deny"
	if p, why := d.Principal(r.UserID, r.TokenID, r.Action.Address, a.store.Now().Unix()); p.ID() != "" {
		e := d.Explain(p, r.Action, c.sees)
		a.fill(c, &out, e)
		// Headers are not kept; that a condition misses one must not look as if
		// something had changed.
		changed := d.Revision() != r.Revision
		if e.Allowed() && why == access.Granted && changed {
			now = "allow"
		}
		if why != access.Granted || r.Reason == access.DeniedByRule && !changed {
			out.Grant = nil
		}
	}
	out.Revision = r.Revision
	out.Decision, out.Reason, out.Detail = verdict(r.Reason), r.Reason.String(), reasonText[r.Reason]
	out.Rule, out.PermissionGroup, out.Source = nil, nil, "" // of today
	if r.Rule.Path != "" {
		rule := showRule(r.Group, r.Rule)
		out.Rule = &rule
		out.PermissionGroup = &GroupRef{ID: r.Group, URI: groupURI(r.Group)}
		if g, ok := d.Group(r.Group); ok {
			*out.PermissionGroup = refTo(g)
		}
	}
	if now != out.Decision {
		out.Now = now
	}
	return out, nil
}

// sees reports whether the actor may see a group.
func (c *call) sees(g *access.Group) bool {
	return c.by.Scope == nil || slices.Contains(c.by.Scope.Groups, g.ID)
}

// fill writes an explanation of the engine in the form of the API.
func (a *API) fill(c *call, out *Explanation, e access.Explanation) {
	out.Decision, out.Reason, out.Detail = verdict(e.Reason), e.Reason.String(), reasonText[e.Reason]
	for _, r := range e.Considered {
		out.Considered = append(out.Considered, showConsidered(r))
	}
	if e.Group != nil {
		if c.sees(e.Group) {
			rule, group := showRule(e.Group.ID, *e.Rule), refTo(e.Group)
			out.Rule, out.PermissionGroup, out.Source = &rule, &group, string(e.Source)
		} else {
			out.Detail += "; the rule belongs to a permission group outside of your reach"
		}
	}
	if e.Nearest != nil {
		nearest := showConsidered(*e.Nearest)
		out.Nearest = &nearest
	}
	if e.Grant != "" {
		out.Grant = &Grant{Rule: e.Grant, PermissionGroups: []GroupRef{}}
		for _, g := range e.Groups {
			out.Grant.PermissionGroups = append(out.Grant.PermissionGroups, refTo(g))
		}
	}
}

func verdict(r access.Reason) string {
	if r == access.Granted {
		return "allow"
	}
	return "deny"
}

// reasonText says what the reasons mean.
var reasonText = map[access.Reason]string{
	access.Granted:      "a rule allows it",
	access.NoRule:       "no rule allows it",
	access.DeniedByRule: "a rule denies it, and a deny wins over any allow",
	access.UserInactive: "the service user is deactivated",
	access.UserExpired:  "the service user has expired",
	access.UserAddress:  "the address is not among the allowed_ips of the service user",
	access.TokenExpired: "the token has expired",
	access.TokenNotYet:  "the token is not valid yet",
	access.TokenRevoked: "the token is revoked",
	access.TokenAddress: "the address is not among the allowed_ips of the token",
}

func showConsidered(r access.Considered) ConsideredRule {
	return ConsideredRule{showRule(r.Group.ID, *r.Rule), refTo(r.Group), string(r.Source), r.Applies, r.Why}
}

func refTo(g *access.Group) GroupRef { return GroupRef{g.ID, groupURI(g.ID), g.Name, g.Mode} }

func groupURI(id string) string { return "/permission_groups/" + id }

func invalidField(name, msg string) *Error {
	return NewError(http.StatusBadRequest, "ERR_INVALID_VALUE", msg).field(name)
}

// action reads a request out of words. A problem is what the data path would
// refuse it for.
func (a *API) action(method, target, remoteIP string) (action access.Action, problem access.Problem, err error) {
	action = access.Action{Method: method, Now: a.store.Now().Unix()}
	if problem = access.CheckMethod(method); method == "" || problem.Status == http.StatusBadRequest {
		return action, problem, invalidField("method", "is not a method such as GET")
	}
	if remoteIP != "" {
		if action.Address, err = netip.ParseAddr(remoteIP); err != nil {
			return action, problem, invalidField("remote_ip", "is not an address such as 192.0.2.7")
		}
	}
	for _, scheme := range []string{"http://", "https://"} {
		if rest, absolute := strings.CutPrefix(target, scheme); absolute {
			host, path, _ := strings.Cut(rest, "/")
			clean, bad := access.CheckHost(host)
			if !bad.OK() {
				return action, problem, invalidField("url", bad.Detail)
			}
			action.Host, target = clean, "/"+path
		}
	}
	if !strings.HasPrefix(target, "/") {
		return action, problem, invalidField("url", "is neither a path such as /v1/people/7 nor an absolute URL such as https://api.example.com/v1/people/7")
	}
	action.Path = target
	path, bad := access.CheckTarget(target)
	switch {
	case !problem.OK():
	case !bad.OK():
		problem = bad
	default:
		action.Path = path
	}
	return action, problem, nil
}

// Access is what a service user may do, with where it comes from.
type Access struct {
	ServiceUserID    string        `json:"service_user_id"`   // whose access it is
	PermissionGroups []AccessGroup `json:"permission_groups"` // that it is in, whatever it came in by
	URI              string        `json:"uri"`               // the path of this answer
}

// AccessGroup is a permission group that a service user is in, with all rules
// that hold through it.
type AccessGroup struct {
	GroupRef
	Source string `json:"source"` // name, condition, default; doubt: its condition cannot be evaluated, so only its denies hold
	Rules  []Rule `json:"rules"`  // that hold for the service user
}

// access shows the permission groups that a service user is in, with their rules.
func (a *API) access(c *call, _ None) (Access, error) {
	id, err := c.id("id", "service")
	if err != nil {
		return Access{}, err
	}
	if _, err := a.store.ServiceUser(c.Context(), c.by, id, false); err != nil {
		return Access{}, err
	}
	out := Access{ServiceUserID: id, PermissionGroups: []AccessGroup{}, URI: c.URL.Path}
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

// WhoCanQuery is a request that somebody might make.
type WhoCanQuery struct {
	ListQuery
	Method   string `query:"method" required:"true"` // such as GET
	URL      string `query:"url" required:"true"`    // a path, or an absolute URL when rules name hosts
	RemoteIP string `query:"remote_ip"`              // for conditions and allowed_ips; absent is any
}

// WhoCan lists the service users that may make a request.
type WhoCan struct {
	ServiceUsers []WhoCanUser `json:"service_users"` // the newest first
	Page
}

// WhoCanUser is one of them, with the rule that lets it.
type WhoCanUser struct {
	ID              string    `json:"id"`               // service_…
	URI             string    `json:"uri"`              // its path in this API
	Name            string    `json:"name"`             // unique
	Rule            *Rule     `json:"rule"`             // that lets it; null: out of your reach
	PermissionGroup *GroupRef `json:"permission_group"` // that the rule belongs to; null: out of your reach
}

// maxWhoCan bounds how long one request looks for who can make another: conditions cost
// some 10 ms for each service user at worst.
const maxWhoCan = 5 * time.Second

// whoCan lists the service users that may make a request, the newest first.
func (a *API) whoCan(c *call, q WhoCanQuery) (WhoCan, error) {
	limit, err := q.limit()
	if err != nil {
		return WhoCan{}, err
	}
	before, err := q.before(store.ValidID, "service")
	if err != nil {
		return WhoCan{}, err
	}
	action, problem, err := a.action(q.Method, q.URL, q.RemoteIP)
	if err != nil {
		return WhoCan{}, err
	}
	done, err := a.heavy.take(c.Context(), c.by.Name)
	if err != nil {
		return WhoCan{}, err
	}
	defer done()
	list := []WhoCanUser{}
	d := a.store.Directory()
	var users []*access.User
	if problem.OK() {
		d.Users(func(u *access.User) {
			if (before == "" || u.ID < before) && (c.by.Scope == nil || c.by.Scope.Shares(u.Teams)) {
				users = append(users, u)
			}
		})
		slices.SortFunc(users, func(a, b *access.User) int { return strings.Compare(b.ID, a.ID) })
	}
	late := time.Now().Add(maxWhoCan)
	for _, u := range users {
		if len(list) > limit {
			break // nobody looks further than this page
		}
		if err := context.Cause(c.Context()); err != nil {
			return WhoCan{}, err
		}
		if time.Now().After(late) {
			return WhoCan{}, NewError(http.StatusBadRequest, "ERR_TOO_COSTLY", "the conditions of rules for this path take too long for so many service users; ask about some of them by explain, or make the conditions simpler").field("url")
		}
		p, why := d.Principal(u.ID, "", action.Address, action.Now)
		if why != access.Granted {
			continue
		}
		decision := d.Authorize(p, action)
		if !decision.Allowed() {
			continue
		}
		who := WhoCanUser{ID: u.ID, URI: "/service_users/" + u.ID, Name: u.Name}
		if c.sees(decision.Group) {
			rule, group := showRule(decision.Group.ID, *decision.Rule), refTo(decision.Group)
			who.Rule, who.PermissionGroup = &rule, &group
		}
		list = append(list, who)
	}
	more := len(list) > limit
	last := ""
	if more {
		list = list[:limit]
		last = list[limit-1].ID
	}
	return WhoCan{list, page(c, more, last, limit)}, nil
}

// WouldDenyQuery chooses what observe mode has counted.
type WouldDenyQuery struct {
	Would         access.Effect `query:"would" default:"deny"` // what enforcing would have done
	ServiceUserID string        `query:"service_user_id"`      // only of this one
}

// WouldDenyList is what observe mode has counted on this node since it began, the
// most frequent first.
type WouldDenyList struct {
	WouldDeny  []WouldDeny `json:"would_deny"`  // the most frequent first
	NotCounted int64       `json:"not_counted"` // requests of further kinds, when there were too many
	Page
}

// WouldDeny counts requests of one kind that enforcing would have decided
// otherwise.
type WouldDeny struct {
	ServiceUserID   string        `json:"service_user_id"`  // who asked
	Name            string        `json:"name"`             // of the service user
	Method          string        `json:"method"`           // of the requests
	Path            string        `json:"path"`             // a pattern; parts that look like ids are parameters
	Example         string        `json:"example"`          // the path of the last one
	Would           access.Effect `json:"would"`            // "deny" or "allow"
	PermissionGroup *GroupRef     `json:"permission_group"` // that observes; null: the handler does
	RuleID          string        `json:"rule_id"`          // that would have decided; "": no rule allows it
	Count           int64         `json:"count"`            // how many there were
	FirstAt         time.Time     `json:"first_at"`         // when the first one came
	LastAt          time.Time     `json:"last_at"`          // when the last one came
	Grant           string        `json:"grant"`            // the smallest rule that would allow it; "" when a deny stands in the way
}

// wouldDeny lists what observe mode has counted: requests that enforcing would
// have decided otherwise.
func (a *API) wouldDeny(c *call, q WouldDenyQuery) (WouldDenyList, error) {
	effect := cmp.Or(q.Would, access.Deny)
	if effect != access.Deny && effect != access.Allow {
		return WouldDenyList{}, invalidField("would", "must be deny or allow")
	}
	if q.ServiceUserID != "" && !store.ValidID("service", q.ServiceUserID) {
		return WouldDenyList{}, invalidField("service_user_id", "is not an id that begins with service_")
	}
	counted, missed := a.recall.Observed()
	list := WouldDenyList{WouldDeny: []WouldDeny{}, NotCounted: missed, Page: page(c, false, "", 0)}
	d := a.store.Directory()
	for _, o := range counted {
		u, ok := d.User(o.UserID)
		if o.Effect != effect || q.ServiceUserID != "" && o.UserID != q.ServiceUserID || !ok || c.by.Scope != nil && !c.by.Scope.Shares(u.Teams) {
			continue
		}
		w := WouldDeny{
			ServiceUserID: o.UserID, Name: u.Name, Method: o.Method, Path: o.Pattern, Example: o.Path, Would: o.Effect, RuleID: o.RuleID,
			Count: o.Count, FirstAt: o.First.UTC().Truncate(time.Second), LastAt: o.Last.UTC().Truncate(time.Second),
		}
		if o.RuleID == "" {
			w.Grant = o.Grant()
		}
		if o.GroupID != "" {
			g, ok := d.Group(o.GroupID)
			if !ok || !c.sees(g) {
				continue // deleted, so that nothing will come of it, or out of reach
			}
			ref := refTo(g)
			w.PermissionGroup = &ref
		}
		list.WouldDeny = append(list.WouldDeny, w)
	}
	return list, nil
}

// forgetWouldDeny begins to count again.
func (a *API) forgetWouldDeny(c *call, _ None) (None, error) {
	if c.by.Scope != nil {
		return None{}, &store.Error{Kind: store.ErrNotAllowed, Msg: "only an admin may begin to count again"}
	}
	a.recall.ForgetObserved()
	return None{}, nil
}
