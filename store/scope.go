package store

import (
	"maps"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
)

// Shares reports whether a list of teams has one in common with the scope.
func (s *Scope) Shares(teams []string) bool {
	return slices.ContainsFunc(teams, func(team string) bool { return slices.Contains(s.Teams, team) })
}

// admit refuses what only an unlimited actor may do.
func (t *tx) admit(what string) error {
	if t.by.Scope != nil {
		return notAllowed("only an admin may %s", what)
	}
	return nil
}

// renewScope takes away from a manager, itself a service user, what it has lost
// since it was authenticated.
func (t *tx) renewScope() error {
	scope := t.by.Scope
	if scope == nil || scope.UserID == "" {
		return nil
	}
	u, ok := t.directory.User(scope.UserID)
	if !ok || !u.Active || u.Role == access.Member {
		return notAllowed("the manager has been deleted or deactivated, or is no manager any more")
	}
	both := func(a, b []string) []string {
		return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
	}
	t.by.Scope = &Scope{UserID: scope.UserID, Teams: both(scope.Teams, u.Teams), Groups: both(scope.Groups, t.directory.EffectiveGroups(u))}
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
	if before == nil {
		before = new(ServiceUser)
	}
	for _, team := range slices.Concat(before.Teams, after.Teams) {
		if slices.Contains(before.Teams, team) != slices.Contains(after.Teams, team) && !slices.Contains(scope.Teams, team) {
			return &Error{ErrNotAllowed, "teams", "a manager can add and remove only teams that it is in itself, not \"" + team + "\""}
		}
	}
	if scope.UserID == "" {
		return t.writesNoCondition(before, after)
	}
	return nil
}

// holds refuses a service user that may do more than the manager.
func (t *tx) holds(u *ServiceUser) error {
	scope := t.by.Scope
	if u.ID == scope.UserID {
		return notAllowed("a manager cannot change itself")
	}
	if !scope.Shares(u.Teams) {
		return &Error{ErrNotAllowed, "teams", "a manager reaches only service users that share a team with it"}
	}
	if u.Role != access.Member {
		return &Error{ErrNotAllowed, "role", "a manager reaches only service users with the role member"}
	}
	target := u.directoryUser()
	groups := t.directory.Memberships(target)
	for _, m := range groups {
		if m.Source != access.InDoubt && !slices.Contains(scope.Groups, m.Group.ID) {
			return &Error{ErrNotAllowed, "permission_groups", "a manager reaches only service users whose permission groups it holds itself, and it does not hold " + m.Group.ID}
		}
	}
	manager, isUser := t.directory.User(scope.UserID)
	if !isUser || len(groups) == 0 {
		return nil // a person has no rights of its own to compare with
	}
	return t.holdsRules(manager, target, groups)
}

// holdsRules compares what a service user and a manager, itself a service user,
// make of the groups that they share: what refuses the manager something has to
// refuse it to the other as well, and conditions have to come to the same.
func (t *tx) holdsRules(manager, target *access.User, groups []access.Membership) error {
	bound := make(map[*access.Group]bool) // what refuses the manager something
	for _, own := range t.directory.Memberships(manager) {
		bound[own.Group] = slices.ContainsFunc(own.Group.Rules, func(r access.Rule) bool { return r.Effect == access.Deny })
		in := func(m access.Membership) bool { return m.Group == own.Group }
		if bound[own.Group] && !slices.ContainsFunc(groups, in) {
			return &Error{ErrNotAllowed, "permission_groups", "a manager reaches only service users that are refused what it is refused itself, and " + own.Group.ID + " is missing"}
		}
	}
	for _, m := range groups {
		if m.Source == access.InDoubt && !bound[m.Group] {
			continue
		}
		for _, field := range m.Group.Reads() {
			if readField(manager, field) != readField(target, field) {
				return &Error{ErrNotAllowed, "permission_groups", "conditions of " + m.Group.ID + " look at user." + field + ", which is not the same for the manager and the service user; ask an admin"}
			}
		}
	}
	return nil
}

// writesNoCondition refuses a person, who has no fields to compare with, to write
// what the conditions of a group look at that it may give.
func (t *tx) writesNoCondition(before, after *ServiceUser) error {
	was, is := before.directoryUser(), after.directoryUser()
	for _, id := range t.by.Scope.Groups {
		g, ok := t.directory.Group(id)
		if !ok {
			continue
		}
		for _, field := range g.Reads() {
			if field != "id" && field != "created_at" && field != "role" && readField(was, field) != readField(is, field) {
				top, _, _ := strings.Cut(field, ".")
				return &Error{ErrNotAllowed, top, "conditions of " + id + " look at user." + field + ", so only an admin can write it"}
			}
		}
	}
	return nil
}

// readField returns a field of a service user, by its name in a condition, in a
// form that can be compared.
func readField(u *access.User, field string) string {
	if key, ok := strings.CutPrefix(field, "labels."); ok {
		value, has := u.Labels[key]
		return toJSON([]any{value, has})
	}
	switch field {
	case "id":
		return u.ID
	case "name":
		return u.Name
	case "display_name":
		return u.DisplayName
	case "alias":
		return u.Alias
	case "owner":
		return u.Owner
	case "role":
		return string(u.Role)
	case "teams":
		return toJSON(sorted(u.Teams))
	case "labels":
		labels := maps.Clone(u.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		return toJSON(labels)
	case "created_at":
		return toJSON(u.CreatedAt)
	}
	panic("store: a condition looks at the unknown field " + field)
}
