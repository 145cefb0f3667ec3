package admin

import (
	"net/http"
	"slices"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// ServiceUserActor returns the rights of a service user on the admin API. An admin may do
// everything, a manager acts within its teams and groups, and a member gets ErrNotEntitled. A token
// that is narrowed to permission groups leaves a manager only those groups. For an admin such a
// token gives ErrNarrowed, because the rights of an admin do not come from groups.
func (a *API) ServiceUserActor(p access.Principal) (store.Actor, error) {
	by := store.Actor{Name: p.ID()}
	switch p.Role() {
	case access.Admin:
		if len(p.Token().Groups) > 0 {
			return by, ErrNarrowed
		}
		return by, nil
	case access.Manager:
		u, ok := a.store.Directory().User(p.ID())
		if !ok {
			return by, ErrNotEntitled // the service user was deleted since the request was authenticated
		}
		groups := a.store.Directory().EffectiveGroups(u)
		if only := p.Token().Groups; len(only) > 0 {
			groups = slices.DeleteFunc(groups, func(id string) bool { return !slices.Contains(only, id) })
		}
		by.Scope = &store.Scope{UserID: u.ID, Teams: u.Teams, Groups: groups}
		return by, nil
	default:
		return by, ErrNotEntitled
	}
}

// CallerHeader is the request header in which a caller of the local door names its user, for the
// audit trail: at most 64 characters. It gives no right. Other doors ignore it.
const CallerHeader = "Service-Users-Caller"

// The errors for a caller that may not use the admin API.
var (
	ErrUnauthenticated = NewError(http.StatusUnauthorized, "ERR_UNAUTHENTICATED",
		"authenticate as an admin or manager: with the credentials of a service user of that role, "+
			"or as a person whom the operator has named")
	ErrNarrowed = NewError(http.StatusForbidden, "ERR_NGROK_4111",
		"this token of an admin is narrowed to permission groups, so it may not use the admin API; "+
			"use a token of the admin without permission_groups, or give the work to a manager")
	ErrNotEntitled = NewError(http.StatusForbidden, "ERR_NGROK_4111",
		"this identity may not use the admin API; "+
			"it needs the role admin or manager, or a name in the operator's list")
)

// HumanManager returns the actor for a person that manages the service users of these teams. groups
// are the names of the permission groups that the person may give.
func (a *API) HumanManager(name string, teams, groups []string) store.Actor {
	scope := &store.Scope{Teams: teams, Groups: a.store.Directory().GroupIDs(groups)}
	return store.Actor{Name: "human:" + name, Scope: scope}
}

// HumanAdmin returns the actor for a person that may do everything.
func HumanAdmin(name string) store.Actor { return store.Actor{Name: "human:" + name} }
