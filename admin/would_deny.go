package admin

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// WouldDenyQuery chooses counts of observe mode.
type WouldDenyQuery struct {
	Would         access.Effect `query:"would" default:"deny"` // the decision of mode enforce: deny or allow
	ServiceUserID string        `query:"service_user_id"`      // only of the service user with this id or name

	// only requests that this group decides, or that its members make and that no rule decides
	PermissionGroupID string `query:"permission_group_id"`
}

// WouldDenyList is the list of counts of observe mode on this node, since the node started or its
// counts were reset.
type WouldDenyList struct {
	WouldDeny  []WouldDeny `json:"would_deny"`  // most frequent first
	NotCounted int64       `json:"not_counted"` // the number of requests that exceeded the limit of kinds
	Page
}

// WouldDeny counts requests of one kind that mode enforce would have decided differently.
type WouldDeny struct {
	// the service user that made the requests
	ServiceUserID string `json:"service_user_id"`
	// the name of the service user
	Name string `json:"name"`
	// the method of the requests
	Method string `json:"method"`
	// a pattern for the paths of the requests; segments that look like ids are parameters
	Path string `json:"path"`
	// the path of the last request
	Example string `json:"example"`
	// the decision of mode enforce: "deny" or "allow"
	Would access.Effect `json:"would"`
	// the group in mode observe; null if the site is in mode observe
	PermissionGroup *GroupRef `json:"permission_group"`
	// the id of the rule that would have decided; "" if no rule allows the requests
	RuleID string `json:"rule_id"`
	// the number of requests
	Count int64 `json:"count"`
	// the time of the first request
	FirstAt time.Time `json:"first_at"`
	// the time of the last request
	LastAt time.Time `json:"last_at"`
	// the smallest rule that would allow the requests; "" if a rule would decide them already
	Grant string `json:"grant"`
}

// wouldDeny lists requests that observe mode has counted because mode enforce would have decided
// them differently.
func (a *API) wouldDeny(c *call, q WouldDenyQuery) (WouldDenyList, error) {
	effect := cmp.Or(q.Would, access.Deny)
	if effect != access.Deny && effect != access.Allow {
		return WouldDenyList{}, invalidField("would", "must be deny or allow")
	}
	counted, missed := a.recall.Observed()
	list := WouldDenyList{WouldDeny: []WouldDeny{}, NotCounted: missed, Page: page(c, false, "", 0)}
	d := a.store.Directory()
	if named := q.ServiceUserID; named != "" {
		q.ServiceUserID = ""
		d.Users(func(u *access.User) {
			if (u.ID == named || u.Name == named) && (c.by.Scope == nil || c.by.Scope.Shares(u.Teams)) {
				q.ServiceUserID = u.ID
			}
		})
		if q.ServiceUserID == "" {
			return WouldDenyList{}, invalidField("service_user_id",
				fmt.Sprintf("there is no service user %q", named))
		}
	}
	if id := q.PermissionGroupID; id != "" {
		if g, ok := d.Group(id); !ok || !c.sees(g) {
			return WouldDenyList{}, invalidField("permission_group_id", fmt.Sprintf("there is no permission group %q", id))
		}
	}
	for _, o := range counted {
		u, ok := d.User(o.UserID)
		if o.Effect != effect || q.ServiceUserID != "" && o.UserID != q.ServiceUserID ||
			!ok || c.by.Scope != nil && !c.by.Scope.Shares(u.Teams) {
			continue
		}
		if id := q.PermissionGroupID; id != "" && id != o.GroupID &&
			(o.GroupID+o.RuleID != "" || !slices.Contains(d.EffectiveGroups(u), id)) {
			continue
		}
		w := WouldDeny{
			ServiceUserID: o.UserID, Name: u.Name, Method: o.Method, Path: o.Pattern, Example: o.Path,
			Would: o.Effect, RuleID: o.RuleID, Count: o.Count,
			FirstAt: o.First.UTC().Truncate(time.Second), LastAt: o.Last.UTC().Truncate(time.Second),
		}
		if o.RuleID == "" { // otherwise a rule decides, and a further allow would not change that
			w.Grant = o.Grant()
		}
		if o.GroupID != "" {
			g, ok := d.Group(o.GroupID)
			if !ok || !c.sees(g) {
				continue // the group was deleted and will not be enforced, or the actor may not see it
			}
			w.PermissionGroup = new(refTo(g))
		}
		list.WouldDeny = append(list.WouldDeny, w)
	}
	return list, nil
}

// forgetWouldDeny resets the counts of observe mode on this node to zero. This operation requires
// the rights of an admin.
func (a *API) forgetWouldDeny(c *call, _ None) (None, error) {
	if c.by.Scope != nil {
		return None{}, &store.Error{Kind: store.ErrNotAllowed, Msg: "only an admin may reset the counts"}
	}
	a.recall.ForgetObserved()
	return None{}, nil
}
