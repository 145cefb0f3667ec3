package store

import (
	"slices"

	"github.com/serviceusers/caddy-service-users/access"
)

// shares reports whether a list of teams has one in common with the scope.
func (s *Scope) shares(teams []string) bool {
	return slices.ContainsFunc(teams, func(team string) bool { return slices.Contains(s.Teams, team) })
}

// admit refuses what only an unlimited actor may do.
func (t *tx) admit(what string) error {
	if t.by.Scope != nil {
		return notAllowed("only an admin may %s", what)
	}
	return nil
}

// withinScope refuses a change of a service user that reaches beyond a
// manager. It runs inside the transaction, after the change: before and after
// are the service user as it was and as it is; nil means that it did not exist
// or was deleted. A token that is made, refreshed or revoked counts as a change.
func (t *tx) withinScope(before, after *ServiceUser) error {
	scope := t.by.Scope
	if scope == nil {
		return nil
	}
	for _, u := range []*ServiceUser{before, after} {
		if u == nil {
			continue
		}
		if err := t.holds(u); err != nil {
			return err
		}
	}
	if after == nil {
		return nil
	}
	var was []string
	if before != nil {
		was = before.Teams
	}
	for _, team := range slices.Concat(was, after.Teams) {
		if slices.Contains(was, team) != slices.Contains(after.Teams, team) && !slices.Contains(scope.Teams, team) {
			return &Error{ErrNotAllowed, "teams", "a manager can add and remove only teams that it is in itself, not \"" + team + "\""}
		}
	}
	return nil
}

// holds refuses a service user that has more than the manager.
func (t *tx) holds(u *ServiceUser) error {
	scope := t.by.Scope
	if u.ID == scope.UserID {
		return notAllowed("a manager cannot change itself")
	}
	if !scope.shares(u.Teams) {
		return &Error{ErrNotAllowed, "teams", "a manager reaches only service users that share a team with it"}
	}
	if u.Role != access.Member {
		return &Error{ErrNotAllowed, "role", "a manager reaches only service users with the role member"}
	}
	groups, err := t.effectiveGroups(u.Groups)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if !slices.Contains(scope.Groups, g) {
			return &Error{ErrNotAllowed, "permission_groups", "a manager reaches only service users whose permission groups it holds itself, and it does not hold " + g}
		}
	}
	return nil
}

// effectiveGroups adds the default group to the groups that name a service
// user.
func (t *tx) effectiveGroups(named []string) ([]string, error) {
	if t.store.opts.DefaultGroup == "" {
		return named, nil
	}
	rows, err := t.query(`SELECT id FROM permission_groups WHERE name = $1 AND deleted_at = 0`, t.store.opts.DefaultGroup)
	if err != nil {
		return nil, err
	}
	everybody, err := collect(rows, scanString)
	return sorted(append(everybody, named...)), err
}
