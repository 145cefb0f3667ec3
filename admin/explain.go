package admin

import (
	"errors"
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

// ExplainInput describes a request that a service user might make, or names a decision that a node made
// and that the store, or the memory of this node, still has.
type ExplainInput struct {
	// the id in the header Service-User-Decision-Id of a refusal; no other field may be set
	// with it
	DecisionID string `json:"decision_id,omitzero"`
	// the service user that would make the request
	ServiceUserID string `json:"service_user_id,omitzero"`
	// the token for the request; "" means a usable one that is not narrowed to permission groups,
	// or a narrowed one if every usable token is narrowed
	TokenID string `json:"token_id,omitzero"`
	// the method of the request, such as GET
	Method string `json:"method,omitzero"`
	// a path, or an absolute URL if rules name hosts
	URL string `json:"url,omitzero"`
	// the address of the client, for conditions and allowed_ips; "" leaves both undecided
	RemoteIP string `json:"remote_ip,omitzero"`
	// the host name of a guarded site, for its options: without it, the request is judged by
	// the strictest ones; a URL without a host gets this one
	Site string `json:"site,omitzero"`
	// the headers of the request, for conditions; "" says that the request does not have the header
	Headers map[string]string `json:"headers,omitzero"`
	// the time of the request; "" means now
	At string `json:"at,omitzero"`
}

// Explanation is a decision with its reason, and with the rules that were considered for it.
type Explanation struct {
	// "allow" or "deny"
	Decision string `json:"decision"`
	// the reason as one word, as in logs and metrics
	Reason string `json:"reason"`
	// the reason in a sentence
	Detail string `json:"detail"`
	// the service user that makes the request
	ServiceUserID string `json:"service_user_id"`
	// the method of the request
	Method string `json:"method"`
	// the host of the request; "" if the URL had none
	Host string `json:"host"`
	// the path of the request, in a form that can be sent again
	Path string `json:"path"`
	// the rule that decided; null if none did
	Rule *Rule `json:"rule"`
	// the permission group of that rule
	PermissionGroup *GroupRef `json:"permission_group"`
	// the way in which the service user is a member of that group: name, condition, default or
	// doubt
	Source string `json:"source"`
	// every rule of the groups of the service user: first the rules that apply, then those that
	// match the request most closely
	Considered []ConsideredRule `json:"considered"`
	// for a refusal, the allow that matches the request most closely
	Nearest *ConsideredRule `json:"nearest"`
	// for a refusal, the smallest change that would allow the request; null if a deny refuses
	// it or the service user cannot authenticate
	Grant *Grant `json:"grant"`
	// for a refusal, the fields of the question that the deny needs, or else the nearest allow:
	// remote_ip, at, headers.NAME, and host for a URL with a host; for an allow, remote_ip if
	// allowed_ips restrict it
	NotAsked []string `json:"not_asked"`
	// the reason why nobody can log in for this request; null if somebody can
	Obstacle *string `json:"obstacle"`
	// the revision of the store that the decision was made on
	Revision int64 `json:"revision"`
	// the id of the decision; only if the request named one
	DecisionID string `json:"decision_id,omitempty"`
	// the time of the decision; only if the request named one
	DecidedAt *time.Time `json:"decided_at,omitempty"`
	// the decision for the same request today; only if it differs from the one at decided_at, and the
	// path had no secret, which is not kept
	Now string `json:"now,omitempty"`
	// the name of the node that decided, if the store has the decision
	Node string `json:"node,omitempty"`
}

// GroupRef names a permission group.
type GroupRef struct {
	// group_…
	ID string `json:"id"`
	// the path of the group in this API
	URI string `json:"uri"`
	// unique
	Name string `json:"name"`
	// a group in mode observe neither grants nor refuses requests; "" if the group was deleted
	// since
	Mode access.Mode `json:"mode" empty:"true"`
}

// ConsideredRule is a rule, with the reason if it does not decide.
type ConsideredRule struct {
	// the rule
	Rule Rule `json:"rule"`
	// the permission group of the rule
	PermissionGroup GroupRef `json:"permission_group"`
	// the way in which the service user is a member of that group: name, condition, default or
	// doubt
	Source string `json:"source"`
	// whether the rule covers the request
	Applies bool `json:"applies"`
	// the reason if the rule does not apply, or applies and does not decide
	Why string `json:"why"`
	// the fields of the question that the rule needs and that are absent, as for the decision
	NotAsked []string `json:"not_asked"`
}

// Grant shows two ways to allow a request: add the rule to a group of the service user, or make the
// service user a member of one of the permission groups.
type Grant struct {
	Rule             string     `json:"rule"`              // the smallest rule that allows the request, as one line
	PermissionGroups []GroupRef `json:"permission_groups"` // the groups that allow the request already
}

// explain shows why a request is allowed or refused. The request is one that a service user might
// make, or one that a node decided. The answer is 404 if there is no such service user, or neither the
// store nor this node has the decision.
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
		return Explanation{}, invalidField("service_user_id", notAnID("service", in.ServiceUserID))
	}
	if _, err := a.store.ServiceUser(c.Context(), c.by, in.ServiceUserID, false); err != nil {
		return Explanation{}, err
	}
	action, problem, err := a.action(in)
	if err != nil {
		return Explanation{}, err
	}
	d := a.store.Directory()
	p, reason := d.Principal(in.ServiceUserID, in.TokenID, action.Address, action.Now)
	if p.ID() == "" {
		return Explanation{}, invalidField("token_id",
			"the service user has no such token, or it was revoked long ago")
	}
	out := Explanation{
		ServiceUserID: in.ServiceUserID, Method: action.Method, Host: action.Host,
		Path:       access.PathText(action.Path),
		Considered: []ConsideredRule{}, NotAsked: []string{}, Revision: d.Revision(),
	}
	narrowed := ""
	if in.TokenID == "" {
		var logins []access.Principal
		logins, reason = d.Logins(in.ServiceUserID, action.Address, action.Now)
		if len(logins) > 0 {
			allowed := func(p access.Principal) bool { return d.Authorize(p, action).Allowed() }
			whole := func(p access.Principal) bool { return len(p.Token().Groups) == 0 }
			i, unnarrowed := slices.IndexFunc(logins, allowed), slices.IndexFunc(logins, whole)
			if i < 0 {
				i = max(unnarrowed, 0)
			}
			p = logins[i]
			switch token := p.Token(); {
			case len(token.Groups) == 0:
			case unnarrowed < 0:
				narrowed = "; this is for " + token.ID +
					", since every usable token is narrowed to permission groups"
			default:
				narrowed = "; this is for " + token.ID + ", which has no allowed_ips"
			}
		}
	}
	out.Obstacle = obstacleText(reason)
	if !problem.OK() {
		out.Path = action.Path
		out.Decision, out.Reason, out.Detail = "deny", "ambiguous", refusedEarly(problem)
		if strings.Contains(in.URL, "{") {
			out.Detail += "; who_can answers for every value of a parameter"
		}
		return out, nil
	}
	a.fill(c, &out, d.Explain(p, action, c.sees))
	out.Detail += narrowed
	if reason != access.Granted {
		out.Detail, out.NotAsked = "it cannot authenticate: "+*out.Obstacle, []string{}
		out.Decision, out.Reason = "deny", reason.String()
		// No rule decides, and no further rule would help.
		out.Rule, out.PermissionGroup, out.Source, out.Grant = nil, nil, "", nil
	} else if u, _ := d.User(p.ID()); out.Decision == "allow" && onlyFrom(u, p) != "" && in.RemoteIP == "" {
		out.Detail += onlyFrom(u, p) + "; not asked: give remote_ip"
		out.NotAsked = []string{"remote_ip"}
	}
	if m := foreignWildcard(in.URL); m != "" {
		out.Detail += fmt.Sprintf("; %q is not a wildcard here: "+
			"who_can with {name} in its place answers for every value", m)
	}
	return out, nil
}

// onlyFrom returns a text about the allowed_ips of a service user, and of the token of p; "" for any
// address.
func onlyFrom(u *access.User, p access.Principal) (text string) {
	for _, list := range [][]netip.Prefix{u.AllowedIPs, p.Token().AllowedIPs} {
		if len(list) > 0 {
			text += "; only from " + strings.Join(strings.Fields(strings.Trim(fmt.Sprint(list), "[]")), ", ")
		}
	}
	return text
}

// foreignWildcard returns the first segment of a URL that is a pattern in the notation of other
// programs, such as "*" or ":id", or "".
func foreignWildcard(url string) string {
	path, _, _ := strings.Cut(url, "?")
	_, path, _ = strings.Cut(strings.TrimPrefix(strings.TrimPrefix(path, "http://"), "https://"), "/")
	for part := range strings.SplitSeq(path, "/") {
		if len(part) > 1 && part[0] == ':' || strings.HasPrefix(part, "*") || strings.HasSuffix(part, "*") {
			return part
		}
	}
	return ""
}

// explainDecision explains a decision of the past. It requires the role admin, because the decision
// may be about any service user.
func (a *API) explainDecision(c *call, in ExplainInput) (Explanation, error) {
	if in.ServiceUserID != "" || in.TokenID != "" || in.Method != "" || in.URL != "" || in.RemoteIP != "" ||
		in.Site != "" || in.Headers != nil || in.At != "" {
		return Explanation{}, invalidField("decision_id",
			"must be the only field: the decision determines the others")
	}
	if c.by.Scope != nil {
		msg := "only an admin may ask for a decision"
		return Explanation{}, &store.Error{Kind: store.ErrNotAllowed, Msg: msg}
	}
	r, err := a.decision(c, in.DecisionID)
	if err != nil {
		return Explanation{}, err
	}
	d := a.store.Directory()
	out := Explanation{
		ServiceUserID: r.UserID, Method: r.Action.Method, Host: r.Action.Host,
		Path:       r.PathText(),
		Considered: []ConsideredRule{}, NotAsked: []string{}, DecisionID: r.ID, DecidedAt: new(r.At.UTC()),
		Node: r.Node,
	}
	r.Action.HeaderGone = true
	now := "deny" // also if the service user or the token is gone
	p, reason := d.Principal(r.UserID, r.TokenID, r.Action.Address, a.store.Now().Unix())
	out.Obstacle = obstacleText(reason)
	if p.ID() != "" {
		e := d.Explain(p, r.Action, c.sees)
		a.fill(c, &out, e)
		// The recalled action has no headers, so a condition on a header can come out
		// differently today. At an unchanged revision such a difference must not look like
		// a change.
		changed := d.Revision() != r.Revision
		if e.Allowed() && reason == access.Granted && changed {
			now = "allow"
		}
		if reason != access.Granted || r.Reason == access.DeniedByRule && !changed {
			out.Grant = nil
		}
	}
	out.Revision = r.Revision
	out.Decision, out.Reason, out.Detail = verdict(r.Reason), r.Reason.String(), reasonText[r.Reason]
	// fill set these from the rules of today. The answer shows the rule of the past.
	out.Rule, out.PermissionGroup, out.Source = nil, nil, ""
	if r.Rule.Path != "" {
		out.Rule = new(showRule(r.Group, r.Rule))
		out.PermissionGroup = &GroupRef{ID: r.Group, URI: groupURI(r.Group)}
		if g, ok := d.Group(r.Group); ok {
			*out.PermissionGroup = refTo(g)
		}
	}
	if strings.Contains(out.Path, "…") { // a mark of MaskSecrets: PathText escapes any other
		out.Detail += "; its path had a secret, which is not kept, so that the rules of today are asked without it"
	} else if now != out.Decision {
		out.Now = now
	}
	return out, nil
}

// decision returns a refusal from the memory of this node or, without one there, from the store.
func (a *API) decision(c *call, id string) (access.Recalled, error) {
	if r, ok := a.recall.Decision(id); ok {
		return r, nil
	}
	r, err := a.store.Refusal(c.Context(), c.by, id)
	if errors.Is(err, store.ErrNotFound) {
		err = NewError(http.StatusNotFound, "ERR_NOT_FOUND",
			"this decision is not remembered: the store keeps the latest decisions, and after a flood of them "+
				"only the node that refused the request may have it; search the logs for "+id+", then ask with the "+
				"service user, method, host and path that are there: caddy service-user explain USER METHOD URL")
	}
	return r, err
}

// sees reports whether the actor may see a group: an admin sees all, a manager those of its scope.
func (c *call) sees(g *access.Group) bool {
	return c.by.Scope == nil || slices.Contains(c.by.Scope.Groups, g.ID)
}

// fill copies an explanation of package access into out. It leaves out the rule that decided if the
// actor may not see its group.
func (a *API) fill(c *call, out *Explanation, e access.Explanation) {
	out.Decision, out.Reason, out.Detail = verdict(e.Reason), e.Reason.String(), reasonText[e.Reason]
	if out.NotAsked = facts(e.NotAsked); e.NotAsked != "" {
		out.Detail += "; not asked: give " + e.NotAsked
	}
	for _, r := range e.Considered {
		out.Considered = append(out.Considered, showConsidered(r))
	}
	if e.Group != nil && c.sees(e.Group) {
		out.Rule, out.PermissionGroup = showDecider(e.Group, e.Rule)
		out.Source = string(e.Source)
	} else if e.Group != nil {
		out.Detail += "; the rule belongs to a permission group outside of your reach"
	}
	if e.Nearest != nil {
		out.Nearest = new(showConsidered(*e.Nearest))
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

// reasonText is the sentence for each reason.
var reasonText = map[access.Reason]string{
	access.Granted:      "a rule allows it",
	access.NoRule:       "no rule allows it",
	access.DeniedByRule: "a rule denies it, and a deny wins over any allow",
	access.WrongSecret:  "the secret is not that of a token of the service user",
	access.UnknownID:    "the service user is deleted",
	access.NoCredential: "the service user has no token",
	access.UserInactive: "the service user is deactivated",
	access.UserExpired:  "the service user has expired",
	access.UserAddress:  "the address is not among the allowed_ips of the service user",
	access.TokenExpired: "the token has expired",
	access.TokenNotYet:  "the token is not valid yet",
	access.TokenRevoked: "the token is revoked",
	access.TokenAddress: "the address is not among the allowed_ips of the token",
}

// obstacle returns the reason why nobody can log in as a service user now, from any address, or nil.
func (c *call) obstacle(id string) *string { return c.obstacleIn(c.store.Directory(), id) }

// obstacleIn is obstacle by the state of a directory.
func (c *call) obstacleIn(d *access.Directory, id string) *string {
	_, reason := d.Logins(id, netip.Addr{}, c.store.Now().Unix())
	return obstacleText(reason)
}

// obstacleText returns the text about a reason, or nil for Granted.
func obstacleText(reason access.Reason) *string {
	if reason == access.Granted {
		return nil
	}
	return new(reasonText[reason])
}

func showConsidered(r access.Considered) ConsideredRule {
	return ConsideredRule{showRule(r.Group.ID, *r.Rule), refTo(r.Group), string(r.Source), r.Applies, r.Why,
		facts(r.NotAsked)}
}

// facts splits the names in NotAsked.
func facts(names string) []string {
	return strings.FieldsFunc(names, func(r rune) bool { return r == ',' || r == ' ' })
}

// showDecider converts the rule that decided, and its group.
func showDecider(g *access.Group, r *access.Rule) (*Rule, *GroupRef) {
	return new(showRule(g.ID, *r)), new(refTo(g))
}

func refTo(g *access.Group) GroupRef { return GroupRef{g.ID, groupURI(g.ID), g.Name, g.Mode} }

func groupURI(id string) string { return "/permission_groups/" + id }

func invalidField(name, msg string) *Error {
	return NewError(http.StatusBadRequest, "ERR_INVALID_VALUE", msg).field(name)
}

// action judges the texts of a query or body as the data path judges a request. problem is the
// reason for which the data path would refuse the request before any rule, such as a path with
// "..". err is for texts that no request can have.
//
// in.Site is the host of a guarded site, or "". Its options then apply, and a URL without a host has
// that host.
func (a *API) action(in ExplainInput) (action access.Action, problem access.Problem, err error) {
	var address netip.Addr
	unknown := access.UnknownHeader
	if in.RemoteIP == "" {
		unknown |= access.UnknownAddress
	} else if address, err = netip.ParseAddr(in.RemoteIP); err != nil {
		return action, problem, invalidField("remote_ip", "is not an address such as 192.0.2.7")
	}
	at, err := parseTime("at", in.At)
	if err != nil {
		return action, problem, err
	}
	if in.At == "" {
		at, unknown = a.store.Now(), unknown|access.UnknownTime
	}
	headers := make(map[string][]string)
	for name, value := range in.Headers {
		key := textproto.CanonicalMIMEHeaderKey(name)
		if headers[key] != nil {
			return action, problem, invalidField("headers."+key,
				"appears twice, in upper and in lower case")
		}
		headers[key] = []string{value}
	}
	target, site := in.URL, in.Site
	// Judge needs a host. Without one, only the rules that name no host apply.
	var relax access.Relax
	host, known := "localhost", site != ""
	if known {
		if host, problem = access.CheckHost(site); !problem.OK() {
			return action, problem, invalidField("site", problem.Detail)
		}
		if a.Sites == nil {
			return action, problem, invalidField("site",
				"is not known here: only a running Caddy knows the options of its sites")
		}
		if relax, err = a.Sites(host); err != nil {
			return action, problem, invalidField("site", err.Error())
		}
	}
	for _, scheme := range []string{"http://", "https://"} {
		if rest, absolute := strings.CutPrefix(target, scheme); absolute {
			authority, path, _ := strings.Cut(rest, "/")
			if name, p := access.CheckHost(authority); p.OK() && known && name != host {
				return action, problem, invalidField("url", "has another host than the site")
			}
			host, known, target = authority, true, "/"+path
		}
	}
	action, problem = access.Judge(in.Method, host, target, relax)
	switch {
	case problem.Part == "method" && problem.Status == http.StatusBadRequest:
		err = invalidField("method", "is not a method such as GET")
	case problem.Part == "host":
		err = invalidField("url", problem.Detail)
	case !strings.HasPrefix(target, "/"):
		err = invalidField("url", "is neither a path such as /v1/people/7 nor an absolute URL such as "+
			"https://api.example.com/v1/people/7")
	case !problem.OK():
		action = access.Action{Method: in.Method, Host: host, Path: target}
	}
	if !known {
		action.Host = ""
		unknown |= access.UnknownHost
	}
	action.Address, action.Header, action.Now, action.Unknown = address, headers, at.Unix(), unknown
	return action, problem, err
}

// refusedEarly is the sentence about a request that is refused before any rule.
func refusedEarly(p access.Problem) string {
	return fmt.Sprintf("the request is refused with status %d before any rule is read: %s", p.Status, p.Advice())
}
