package admin

import (
	"net/http"
	"slices"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// ServiceUserActor returns what a service user may do here: an admin everything,
// a manager what its teams and groups reach, a member nothing. A token that is
// narrowed to permission groups leaves a manager those groups, and an admin nothing:
// no group stands for a part of everything.
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
			return by, ErrNotEntitled // it was deleted at this very moment
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

// What a door answers to somebody who does not get in.
var (
	ErrUnauthenticated = NewError(http.StatusUnauthorized, "ERR_UNAUTHENTICATED", "authenticate as an admin or manager: with the credentials of a service user of that role, or as a person whom the operator has named")
	ErrNarrowed        = NewError(http.StatusForbidden, "ERR_NGROK_4111", "this token of an admin is narrowed to permission groups, so it may not use the admin API; use a token of the admin without permission_groups, or give the work to a manager")
	ErrNotEntitled     = NewError(http.StatusForbidden, "ERR_NGROK_4111", "this identity may not use the admin API; it takes the role admin or manager, or a name in the operator's list")
)

// HumanManager returns the actor for a person who manages the service users of
// these teams; groups are names of permission groups that the person may give.
func (a *API) HumanManager(name string, teams, groups []string) store.Actor {
	return store.Actor{Name: "human:" + name, Scope: &store.Scope{Teams: teams, Groups: a.store.Directory().GroupIDs(groups)}}
}

// HumanAdmin returns the actor for a person who may do everything.
func HumanAdmin(name string) store.Actor { return store.Actor{Name: "human:" + name} }
