package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
)

// CatalogueChange counts the permissions by the effect of loading a catalogue on them.
type CatalogueChange struct {
	Created, Updated, Unchanged, Deleted int
}

// LoadPermissions writes permissions into the catalogue, all or none. It adds new keys and
// overwrites known ones; groups that have them follow at once. With replace, it deletes every other
// permission and uses the order of the list. Without replace, known keys keep their places and new
// ones go to the end. Only admins may call it.
func (s *Store) LoadPermissions(
	ctx context.Context, by Actor, list []Permission, replace bool,
) (n CatalogueChange, err error) {
	err = s.change(ctx, by, func(t *tx) error {
		n = CatalogueChange{}
		if err := t.admit("change the permission catalogue"); err != nil {
			return err
		}
		known, err := t.permissions()
		if err != nil {
			return err
		}
		if err := checkCatalogue(list); err != nil {
			return err
		}
		var written []Permission
		// The loop below removes the keys in list; with replace, the rest is deleted.
		left := make(map[string]Permission)
		for _, p := range known {
			left[p.Key] = p
		}
		for _, p := range list {
			before, exists := left[p.Key]
			delete(left, p.Key)
			action, was := "permission.create", any(nil)
			p.CreatedAt, p.CreatedBy, p.UpdatedAt = t.now, t.by.Name, t.now
			if exists {
				action, was = "permission.update", auditPermission(before)
				p.CreatedAt, p.CreatedBy, p.UpdatedAt =
					before.CreatedAt, before.CreatedBy, before.UpdatedAt
				if toJSON(auditPermission(p)) == toJSON(was) {
					n.Unchanged++
					continue
				}
				p.UpdatedAt = t.now
				n.Updated++
			} else {
				n.Created++
			}
			written = append(written, p)
			if err := t.audit(action, p.Key, was, auditPermission(p)); err != nil {
				return err
			}
		}
		if err := t.writePermissions(written); err != nil {
			return err
		}
		after := list
		if replace {
			for _, p := range known {
				if _, gone := left[p.Key]; gone {
					n.Deleted++
					if err := t.deletePermission(p); err != nil {
						return err
					}
				}
			}
		} else {
			after = slices.Concat(known, list)
		}
		if total := len(known) + n.Created - n.Deleted; total > maxCatalogue {
			return conflict("permissions",
				"the catalogue would have %d permissions, at most %d are allowed", total, maxCatalogue)
		}
		return t.orderPermissions(known, after)
	})
	if err != nil {
		// The counts are those of a change that was rolled back.
		n = CatalogueChange{}
	}
	return n, err
}

// checkCatalogue rejects permissions with a wrong value, and a key that appears twice.
func checkCatalogue(list []Permission) error {
	place := make(map[string]int)
	for i, p := range list {
		field := fmt.Sprintf("permissions.%d", i)
		if err := p.check(); err != nil {
			return within(err, field)
		}
		if first, twice := place[p.Key]; twice {
			return invalid(field, "the key %q is in the list twice, as permissions.%d and permissions.%d",
				p.Key, first, i)
		}
		place[p.Key] = i
	}
	return nil
}

// Permissions returns the catalogue in its order. For a manager it returns only the permissions of
// the groups in its scope.
func (s *Store) Permissions(ctx context.Context, by Actor) ([]Permission, error) {
	return inRead(ctx, s, by, func(t *tx) ([]Permission, error) {
		list, err := t.permissions()
		if err != nil || by.Scope == nil {
			return list, err
		}
		visible := make(map[string]bool)
		for _, id := range by.Scope.Groups {
			keys, err := t.permissionsOf(id)
			if err != nil {
				return nil, err
			}
			for _, key := range keys {
				visible[key] = true
			}
		}
		return slices.DeleteFunc(list, func(p Permission) bool { return !visible[p.Key] }), nil
	})
}

// DeletePermission removes a permission from the catalogue. If a group has it, the error is
// [ErrConflict]. Only admins may call it.
func (s *Store) DeletePermission(ctx context.Context, by Actor, key string) error {
	return s.change(ctx, by, func(t *tx) error {
		if err := t.admit("change the permission catalogue"); err != nil {
			return err
		}
		list, err := t.permissions()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(p Permission) bool { return p.Key == key })
		if i < 0 {
			return notFound("permission", key)
		}
		return t.deletePermission(list[i])
	})
}

// GrantPermission gives a permission to a group. If the group has it already, GrantPermission
// changes nothing and returns no error. Only admins may call it.
func (s *Store) GrantPermission(ctx context.Context, by Actor, groupID, key string) error {
	return s.setPermission(ctx, by, groupID, key, true)
}

// WithdrawPermission takes a permission from a group. If the group does not have it,
// WithdrawPermission changes nothing and returns no error. Only admins may call it.
func (s *Store) WithdrawPermission(ctx context.Context, by Actor, groupID, key string) error {
	return s.setPermission(ctx, by, groupID, key, false)
}

func (s *Store) setPermission(ctx context.Context, by Actor, groupID, key string, given bool) error {
	_, err := s.UpdateGroup(ctx, by, groupID, 0, func(g *Group) error {
		g.Permissions = slices.DeleteFunc(g.Permissions, func(k string) bool { return k == key })
		if given {
			g.Permissions = append(g.Permissions, key)
		}
		return nil
	})
	return err
}

// setPermissions gives a group exactly the permissions in after. before are those that it has.
func (t *tx) setPermissions(group string, before, after []string) error {
	var gone, given [][]any
	for _, key := range before {
		if !slices.Contains(after, key) {
			gone = append(gone, []any{group, key})
		}
	}
	added := slices.DeleteFunc(slices.Clone(after), func(key string) bool { return slices.Contains(before, key) })
	if len(added) > 0 {
		known, err := all(t, "reading the permission catalogue", scanString, `SELECT key FROM permissions`)
		if err != nil {
			return err
		}
		for _, key := range added {
			if !slices.Contains(known, key) {
				return invalid("permissions", "there is no permission %q in the catalogue; load it first", key)
			}
			given = append(given, []any{group, key, t.now.Unix()})
		}
	}
	if err := t.execRows("withdrawing permissions", `
		DELETE FROM group_permissions WHERE (group_id, permission_key) IN (VALUES ROWS)`, gone); err != nil {
		return err
	}
	return t.execRows("granting permissions", `
		INSERT INTO group_permissions (group_id, permission_key, created_at) VALUES ROWS`, given)
}

// orderPermissions brings the catalogue from the order of before into the order of after. If after
// has a key twice, the first place counts. It adds an audit record only if permissions that were
// there and stay change their order.
func (t *tx) orderPermissions(before, after []Permission) error {
	var keys []string
	place := make(map[string]int)
	for _, p := range after {
		if _, twice := place[p.Key]; !twice {
			place[p.Key] = len(keys)
			keys = append(keys, p.Key)
		}
	}
	var was []string // in the order of before, the keys that stay
	for _, p := range before {
		if _, stays := place[p.Key]; stays {
			was = append(was, p.Key)
		}
	}
	is := slices.Clone(was)
	slices.SortFunc(is, func(a, b string) int { return place[a] - place[b] })
	var rows [][]any
	for i, key := range keys {
		rows = append(rows, []any{key, int64(i)})
	}
	if err := t.execRows("ordering the permissions", `
		UPDATE permissions SET position = v.column2 FROM (VALUES ROWS) v
		WHERE key = v.column1 AND position <> v.column2`, rows); err != nil {
		return err
	}
	if slices.Equal(is, was) {
		return nil
	}
	type order struct { // the audit trail shows objects, not lists
		Permissions []string `json:"permissions"`
	}
	return t.audit("permission.reorder", "permissions", order{was}, order{is})
}

func (t *tx) writePermissions(list []Permission) error {
	var rows, keys [][]any
	for _, p := range list {
		// orderPermissions sets the position afterwards.
		rows = append(rows, []any{p.Key, p.Name, p.Description, p.Category, int64(0), toJSON(p.ruleTexts()),
			unix(p.CreatedAt), p.CreatedBy, unix(p.UpdatedAt)})
		keys = append(keys, []any{p.Key})
	}
	if err := t.execRows("writing the permissions", `
		INSERT INTO permissions (
			key, name, description, category, position, rules, created_at, created_by, updated_at)
		VALUES ROWS
		ON CONFLICT (key) DO UPDATE
		SET name = excluded.name, description = excluded.description, category = excluded.category,
			rules = excluded.rules, updated_at = excluded.updated_at`, rows); err != nil {
		return err
	}
	// The directory has a copy of the rules in each group, so it must read these groups again.
	return t.execRows("counting the revision", fmt.Sprintf(`
		UPDATE permission_groups SET revision = %d
		WHERE id IN (SELECT group_id FROM group_permissions WHERE permission_key IN (VALUES ROWS))`,
		t.revision), keys)
}

func (t *tx) deletePermission(p Permission) error {
	groups, err := all(t, "looking for groups with the permission", scanString, `
		SELECT g.name FROM group_permissions gp JOIN permission_groups g ON g.id = gp.group_id
		WHERE gp.permission_key = $1 ORDER BY g.name`, p.Key)
	if err != nil {
		return err
	}
	if len(groups) > 0 {
		return conflict("permissions", "the permission %q is given to %s; withdraw it there first",
			p.Key, strings.Join(groups, ", "))
	}
	if err := t.exec("deleting the permission", `DELETE FROM permissions WHERE key = $1`, p.Key); err != nil {
		return err
	}
	return t.audit("permission.delete", p.Key, auditPermission(p), nil)
}

// permissions reads the catalogue in its order.
func (t *tx) permissions() ([]Permission, error) {
	return all(t, "reading the permission catalogue", func(rows *sql.Rows) (p Permission, err error) {
		var text string
		if err := rows.Scan(&p.Key, &p.Name, &p.Description, &p.Category, &text, (*unixTime)(&p.CreatedAt),
			&p.CreatedBy, (*unixTime)(&p.UpdatedAt)); err != nil {
			return p, err
		}
		p.Rules, err = permissionRules(p.Key, text)
		return p, err
	}, `
		SELECT key, name, description, category, rules, created_at, created_by, updated_at
		FROM permissions ORDER BY position, key`)
}

// permissionsOf lists the permissions of a group, sorted.
func (t *tx) permissionsOf(group string) ([]string, error) {
	return all(t, "reading the permissions of the group", scanString,
		`SELECT permission_key FROM group_permissions WHERE group_id = $1 ORDER BY permission_key`, group)
}

// permissionRules reads the rules of a permission. Their id in decisions is its key.
func permissionRules(key, text string) ([]access.Rule, error) {
	var texts []string
	err := fromJSON(text, &texts)
	rules := make([]access.Rule, len(texts))
	for i := 0; err == nil && i < len(texts); i++ {
		rules[i], err = access.ParseRule(texts[i])
		rules[i].ID, rules[i].Permission = key, key
	}
	if err != nil {
		return nil, fmt.Errorf("the permission %s cannot be enforced: %w", clip(key), err)
	}
	return rules, nil
}

// auditPermission returns the form of a permission for the audit trail, with rules as text.
func auditPermission(p Permission) any {
	return struct {
		Permission
		Rules []string `json:"rules"`
	}{p, p.ruleTexts()}
}

func (p *Permission) ruleTexts() []string {
	texts := make([]string, len(p.Rules))
	for i, r := range p.Rules {
		texts[i] = r.String()
	}
	return texts
}
