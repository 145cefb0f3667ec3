package store

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// UndeleteGroup brings a deleted permission group back as it was, in its mode and with its rules.
// Members that were purged meanwhile and permissions that were deleted meanwhile stay away; lost has
// a text for each of them. was is the group before the undelete. Only admins may call it.
func (s *Store) UndeleteGroup(ctx context.Context, by Actor, id string) (g, was Group, lost []string, err error) {
	err = s.change(ctx, by, func(t *tx) (err error) {
		if err := t.admit("bring a permission group back"); err != nil {
			return err
		}
		if was, err = one(t, scanGroup, "permission group", id, selectGroup+` WHERE id = $1`, id); err != nil {
			return err
		}
		if err := cmp.Or(t.checkRestorable("permission group", was.Name, was.DeletedAt),
			t.checkGroupTaken(id, was.Name), t.fill(&was)); err != nil {
			return err
		}
		if lost, err = t.restoreLinks(id); err != nil {
			return err
		}
		g = was
		g.DeletedAt, g.DeletedBy = time.Time{}, ""
		if g, err = t.writeGroup(g); err != nil {
			return err
		}
		record, err := t.recordMembers(&g)
		if err != nil {
			return err
		}
		record.NotRestored = lost
		return t.audit("permission_group.undelete", id, auditGroup(was), record)
	})
	g.MemberCount = s.memberCounts(by, id)[id]
	return g, was, lost, err
}

// DeletedGroups lists deleted permission groups that can be brought back, newest first, with the
// permissions and the number of members by name that each of them had. name, before, limit and more
// are as in [Store.Groups]. Only admins may call it.
func (s *Store) DeletedGroups(
	ctx context.Context, by Actor, name, before string, limit int,
) (list []Group, more bool, err error) {
	list, err = inRead(ctx, s, by, func(t *tx) ([]Group, error) {
		if err := t.admit("list deleted permission groups"); err != nil {
			return nil, err
		}
		return t.filledGroups(`
			WHERE deleted_at > 0 AND name <> '' AND ($1 = '' OR id < $1) AND ($2 = '' OR name = $2)
			ORDER BY id DESC LIMIT $3`, before, name, limit+1)
	})
	list, more = cut(list, limit)
	return list, more, err
}

// restoreLinks gives a deleted group its members and permissions again. A service user that is
// deleted itself is a member again, as it would be without the deletion of the group. A permission
// with the same key that is newer than the deletion may have other rules, so it is another one.
func (t *tx) restoreLinks(group string) (lost []string, err error) {
	if err := t.execAll("restoring the permission group", group, `
		INSERT INTO members (group_id, service_user_id, created_at)
		SELECT l.group_id, u.id, g.updated_at
		FROM deleted_links l JOIN permission_groups g ON g.id = l.group_id JOIN service_users u ON u.id = l.link
		WHERE l.group_id = $1 AND l.kind = 'member' AND u.name <> ''`, `
		INSERT INTO group_permissions (group_id, permission_key, created_at)
		SELECT l.group_id, p.key, g.updated_at
		FROM deleted_links l JOIN permission_groups g ON g.id = l.group_id JOIN permissions p ON p.key = l.link
		WHERE l.group_id = $1 AND l.kind = 'permission' AND p.created_at <= g.deleted_at`); err != nil {
		return nil, err
	}
	lost, err = all(t, "reading the links of the permission group", scanString, `
		SELECT CASE link WHEN '' THEN 'its members, which an earlier version did not keep'
			ELSE 'the ' || kind || ' ' || link || ', which was removed meanwhile' END
		FROM deleted_links WHERE group_id = $1
			AND link NOT IN (SELECT service_user_id FROM members WHERE group_id = $1)
			AND link NOT IN (SELECT permission_key FROM group_permissions WHERE group_id = $1)
		ORDER BY kind, link`, group)
	return lost, cmp.Or(err, t.execAll("restoring the permission group", group,
		`DELETE FROM deleted_links WHERE group_id = $1`), t.touchMembers(group))
}

// recordMembers fills a group, and returns its form in the audit trail with the members.
func (t *tx) recordMembers(g *Group) (r groupRecord, err error) {
	if err := t.fill(g); err != nil {
		return r, err
	}
	r = auditGroup(*g)
	r.Members, err = all(t, "reading members", scanString,
		`SELECT service_user_id FROM members WHERE group_id = $1 ORDER BY 1`, g.ID)
	if err != nil || g.MemberCondition == "" {
		return r, err
	}
	condition, err := access.ParseMembership(g.MemberCondition)
	if err != nil {
		return r, err
	}
	t.directory.Users(func(u *access.User) {
		if meets, err := condition.Member(u); meets && err == nil {
			r.MembersByCondition = append(r.MembersByCondition, u.ID)
		}
	})
	slices.Sort(r.MembersByCondition)
	return r, nil
}

// purgeGroup removes everything from a tombstone but its id and times.
func (t *tx) purgeGroup(id string) error {
	if err := t.execAll("purging the permission group", id, `
		UPDATE permission_groups SET name = '', description = '', member_condition = '', version = version + 1
		WHERE id = $1`,
		`DELETE FROM rules WHERE group_id = $1`, `DELETE FROM deleted_links WHERE group_id = $1`); err != nil {
		return err
	}
	return t.audit("permission_group.purge", id, nil, nil)
}
