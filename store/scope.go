package store

import (
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
)

// Shares reports whether teams and the scope have a team in common.
func (s *Scope) Shares(teams []string) bool {
	return slices.ContainsFunc(teams, func(team string) bool { return slices.Contains(s.Teams, team) })
}

// reaches is Shares for a service user of the directory. A nil scope reaches all.
func (s *Scope) reaches(k *access.Sketch) bool {
	return s == nil || slices.ContainsFunc(s.Teams, k.Team)
}

// sees returns a condition that a row of service_users meets if an actor with the scope may see it.
func (s *Scope) sees(args *params) string {
	if s == nil {
		return "TRUE"
	}
	teams := []string{"FALSE"}
	for _, team := range s.Teams {
		teams = append(teams, hasTeam(args.add(toJSON(team))))
	}
	return "(" + strings.Join(teams, " OR ") + ")"
}

// admit rejects an action if the actor is not an admin. The error is [ErrNotAllowed]. what names
// the action, for example "create a permission group".
func (t *tx) admit(what string) error {
	if t.by.Scope != nil {
		return notAllowed("only an admin may %s", what)
	}
	return nil
}

// renewScope removes teams and groups from a manager's scope that the manager has lost since it was
// authenticated. It applies to managers that are service users.
func (t *tx) renewScope() error {
	scope := t.by.Scope
	if scope == nil || scope.UserID == "" {
		return nil
	}
	u, ok := t.directory.User(scope.UserID)
	if !ok || !u.Active || u.Role == access.Member {
		return notAllowed("the manager has been deleted or deactivated, or is not a manager any more")
	}
	both := func(a, b []string) []string {
		return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
	}
	t.by.Scope = &Scope{
		UserID: scope.UserID,
		Teams:  both(scope.Teams, u.Teams),
		Groups: both(scope.Groups, t.directory.EffectiveGroups(u)),
	}
	return nil
}

// withinScope rejects a change of a service user that exceeds a manager's rights. It runs inside
// the transaction, after the change. before and after are the service user before and after the
// change: nil before the creation and after the deletion. Creating, refreshing or revoking a token
// counts as a change of its user.
func (t *tx) withinScope(before, after *ServiceUser) error {
	scope := t.by.Scope
	if scope == nil {
		return nil
	}
	for _, u := range []*ServiceUser{before, after} {
		if u == nil {
			continue
		}
		if err := t.checkHolds(u); err != nil {
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
		if slices.Contains(before.Teams, team) != slices.Contains(after.Teams, team) &&
			!slices.Contains(scope.Teams, team) {
			return &Error{ErrNotAllowed, "teams",
				"a manager can add and remove only teams that it is in itself, not \"" + team + "\""}
		}
	}
	if scope.UserID == "" {
		return t.writesNoCondition(before, after)
	}
	return nil
}

// MayChange reports whether the actor may change a service user that it sees. Some changes, such as
// another team, can be refused all the same.
func (s *Store) MayChange(by Actor, u ServiceUser) bool {
	t := &tx{store: s, by: by, directory: s.Directory()}
	return by.Scope == nil || u.DeletedAt.IsZero() && t.renewScope() == nil && t.checkHolds(&u) == nil
}

// checkHolds rejects a service user with a right that the manager does not have.
func (t *tx) checkHolds(u *ServiceUser) error {
	scope := t.by.Scope
	if u.ID == scope.UserID {
		return notAllowed("a manager cannot change itself; ask an admin")
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
		// InDoubt means that the condition of the group cannot be evaluated. Then only the
		// group's denies apply, so the group gives no right.
		if m.Source != access.InDoubt && !slices.Contains(scope.Groups, m.Group.ID) {
			return &Error{ErrNotAllowed, "permission_groups", "a manager reaches only service users " +
				"whose permission groups it holds itself, and it does not hold " + m.Group.ID}
		}
	}
	manager, isUser := t.directory.User(scope.UserID)
	if !isUser || len(groups) == 0 {
		return nil // a person is not a service user and has no rights to compare with
	}
	return t.holdsRules(manager, target, groups)
}

// holdsRules compares a service user with a manager that is a service user too, by the groups of
// both. A deny that applies to the manager must apply to the service user as well, and conditions
// must give the same result for both.
func (t *tx) holdsRules(manager, target *access.User, groups []access.Membership) error {
	bound := make(map[*access.Group]bool) // groups with a deny for the manager
	for _, own := range t.directory.Memberships(manager) {
		bound[own.Group] = slices.ContainsFunc(own.Group.Rules,
			func(r access.Rule) bool { return r.Effect == access.Deny })
		in := func(m access.Membership) bool { return m.Group == own.Group }
		if bound[own.Group] && !slices.ContainsFunc(groups, in) {
			return &Error{ErrNotAllowed, "permission_groups", "a manager reaches only service users " +
				"to which the denies of its own groups apply, and " + own.Group.ID + " is missing"}
		}
	}
	for _, m := range groups {
		if m.Source == access.InDoubt && !bound[m.Group] {
			continue
		}
		// Two service users get the same result if every field that the conditions read is
		// the same.
		for _, field := range m.Group.Reads() {
			if !access.SameField(field, manager, target) {
				return &Error{ErrNotAllowed, "permission_groups",
					"conditions of " + m.Group.ID + " look at user." + field +
						", which is not the same for the manager and the service user; " +
						"ask an admin"}
			}
		}
	}
	return nil
}

// writesNoCondition rejects a change of a field that a condition reads, in a group that the actor
// may give. It applies to a manager that is a person: a person has no fields to compare with.
func (t *tx) writesNoCondition(before, after *ServiceUser) error {
	was, is := before.directoryUser(), after.directoryUser()
	for _, id := range t.by.Scope.Groups {
		g, ok := t.directory.Group(id)
		if !ok {
			continue
		}
		for _, field := range g.Reads() {
			// A caller cannot write id and created_at, and checkHolds allows only the
			// role member.
			if field != "id" && field != "created_at" && field != "role" &&
				!access.SameField(field, was, is) {
				// "labels.env" is part of the field labels in the REST API.
				top, _, _ := strings.Cut(field, ".")
				return &Error{ErrNotAllowed, top, "conditions of " + id + " look at user." + field +
					", so only an admin can write it"}
			}
		}
	}
	return nil
}
