package admin

import (
	"context"
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
	URI              string        `json:"uri"`               // the path of this answer
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

// WhoCanQuery describes a request that a service user might make.
type WhoCanQuery struct {
	ListQuery
	Method   string `query:"method" required:"true"` // the method of the request, such as GET
	URL      string `query:"url" required:"true"`    // a path, or an absolute URL if rules name hosts
	RemoteIP string `query:"remote_ip"`              // the address of the client; absent matches every allowed_ips
}

// WhoCan lists the service users that may make a request.
type WhoCan struct {
	ServiceUsers []WhoCanUser `json:"service_users"` // newest first
	Page
}

// WhoCanUser is a service user that may make the request, with the rule that allows it.
type WhoCanUser struct {
	ID              string    `json:"id"`               // service_…
	URI             string    `json:"uri"`              // the path of the service user in this API
	Name            string    `json:"name"`             // unique
	Rule            *Rule     `json:"rule"`             // the rule that allows it; null if you may not see the rule
	PermissionGroup *GroupRef `json:"permission_group"` // the group of the rule; null if you may not see the rule
}

// maxWhoCan limits the time for one who_can request. The conditions for one service user take up to
// 10 ms or so.
const maxWhoCan = 5 * time.Second

// whoCan lists the service users that may make a request, newest first.
func (a *API) whoCan(c *call, q WhoCanQuery) (WhoCan, error) {
	read := func(before string, limit int) ([]WhoCanUser, bool, error) {
		action, problem, err := a.action(q.Method, q.URL, q.RemoteIP, "")
		if err != nil || !problem.OK() { // nobody can make a request that is refused before any rule
			return nil, false, err
		}
		done, err := a.heavy.take(c.Context(), c.by.Name)
		if err != nil {
			return nil, false, err
		}
		defer done()
		return a.usersWhoCan(c, action, before, limit)
	}
	list, page, err := newestFirst(c, q.ListQuery, "service", read, func(u WhoCanUser) (WhoCanUser, string) {
		return u, u.ID
	})
	return WhoCan{list, page}, err
}

// usersWhoCan returns up to limit service users that are older than the id before and may perform
// the action. It reports whether there are more.
func (a *API) usersWhoCan(c *call, action access.Action, before string, limit int) ([]WhoCanUser, bool, error) {
	d := a.store.Directory()
	var users []*access.User
	d.Users(func(u *access.User) {
		if (before == "" || u.ID < before) && (c.by.Scope == nil || c.by.Scope.Shares(u.Teams)) {
			users = append(users, u)
		}
	})
	slices.SortFunc(users, func(a, b *access.User) int { return strings.Compare(b.ID, a.ID) })
	var list []WhoCanUser
	ctx, stop := context.WithTimeoutCause(c.Context(), maxWhoCan, NewError(http.StatusBadRequest, "ERR_TOO_COSTLY",
		"the conditions of rules for this path take too long for so many service users; "+
			"ask about some of them by explain, or make the conditions simpler").field("url"))
	defer stop()
	for _, u := range users {
		if err := context.Cause(ctx); err != nil {
			return nil, false, err
		}
		p, reason := d.Principal(u.ID, "", action.Address, action.Now)
		if reason != access.Granted {
			continue
		}
		decision := d.Authorize(p, action)
		if !decision.Allowed() {
			continue
		}
		if len(list) == limit {
			return list, true, nil
		}
		who := WhoCanUser{ID: u.ID, URI: "/service_users/" + u.ID, Name: u.Name}
		if c.sees(decision.Group) {
			who.Rule, who.PermissionGroup = showDecider(decision.Group, decision.Rule)
		}
		list = append(list, who)
	}
	return list, false, nil
}
