package store

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
)

// Member is a service user in a permission group.
type Member struct {
	ID     string
	Name   string
	Source access.Source // whether the group names it or its condition selects it
}

// Members lists the service users that a group names or that meet its condition, newest first.
// before and limit are as in [Store.Groups]. A manager sees only those that share a team with it.
func (s *Store) Members(
	ctx context.Context, by Actor, groupID, before string, limit int,
) (list []Member, more bool, err error) {
	if _, err := s.Group(ctx, by, groupID); err != nil {
		return nil, false, err
	}
	s.Directory().Members(groupID, func(u *access.User, source access.Source) {
		if (before == "" || u.ID < before) && (by.Scope == nil || by.Scope.Shares(u.Teams)) {
			list = append(list, Member{u.ID, u.Name, source})
		}
	})
	slices.SortFunc(list, func(a, b Member) int { return strings.Compare(b.ID, a.ID) })
	list, more = cut(list, limit)
	return list, more, nil
}

// memberCounts counts the members of groups that the actor may see. For a manager it examines every
// service user once.
func (s *Store) memberCounts(by Actor, groups ...string) map[string]int {
	if by.Scope != nil {
		return s.Directory().CountMembers(groups, by.Scope.reaches)
	}
	counts := make(map[string]int)
	for _, id := range groups {
		counts[id] = s.Directory().MemberCount(id)
	}
	return counts
}

// AddMember makes a service user a member of a group. If it is a member already, AddMember changes
// nothing and returns no error.
func (s *Store) AddMember(ctx context.Context, by Actor, groupID, userID string) error {
	return s.setMember(ctx, by, groupID, userID, true)
}

// RemoveMember ends a membership. If the service user is not a member, RemoveMember changes nothing
// and returns no error.
func (s *Store) RemoveMember(ctx context.Context, by Actor, groupID, userID string) error {
	return s.setMember(ctx, by, groupID, userID, false)
}

func (s *Store) setMember(ctx context.Context, by Actor, groupID, userID string, member bool) error {
	_, err := s.changeUser(ctx, by, userID, 0, SetMember(groupID, member))
	return err
}

// SetMember returns a change that makes a service user a member of a group, or ends the membership.
func SetMember(groupID string, member bool) UserChange {
	return func(t *tx, id string, version int64) (before, after ServiceUser, err error) {
		before, err = t.visibleUser(id, false)
		if err := cmp.Or(err, checkVersion(before.Version, version)); err != nil {
			return before, after, err
		}
		if _, err := t.seenGroup(groupID); err != nil {
			return before, after, err
		}
		action := "member.add"
		after = before
		if member {
			after.Groups = sorted(append(slices.Clone(before.Groups), groupID))
		} else {
			after.Groups = slices.DeleteFunc(slices.Clone(before.Groups),
				func(g string) bool { return g == groupID })
			action = "member.remove"
		}
		if slices.Equal(before.Groups, after.Groups) {
			return before, after, nil
		}
		if err := t.setGroups(id, before.Groups, after.Groups); err != nil {
			return before, after, err
		}
		if err := t.writeUser(&after); err != nil {
			return before, after, err
		}
		if err := t.withinScope(&before, &after); err != nil {
			return before, after, err
		}
		return before, after, t.audit(action, id, before, after)
	}
}

// addMember writes one membership. field is the field of the request that an error refers to.
func (t *tx) addMember(field, groupID, userID string) error {
	if err := t.checkGiven(field, groupID); err != nil {
		return err
	}
	return t.exec("adding a member", `
		INSERT INTO members (group_id, service_user_id, created_at) VALUES ($1, $2, $3)
		ON CONFLICT (group_id, service_user_id) DO NOTHING`, groupID, userID, t.now.Unix())
}

// checkGiven rejects a group that does not exist or that the actor cannot give. A manager gets the
// same error for both, so that it cannot find out which groups exist.
func (t *tx) checkGiven(field, groupID string) error {
	if scope := t.by.Scope; scope != nil && !slices.Contains(scope.Groups, groupID) {
		return &Error{ErrNotAllowed, field,
			"a manager can give only permission groups that it holds itself, " +
				"and it does not hold " + groupID}
	}
	_, err := t.group(groupID)
	return asField(err, field)
}
