package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
)

// CreateGroup creates a permission group with its rules. Only admins may call it.
func (s *Store) CreateGroup(ctx context.Context, by Actor, g Group) (Group, error) {
	asked := g
	err := s.change(ctx, by, func(t *tx) error {
		if err := t.admit("create a permission group"); err != nil {
			return err
		}
		g = asked
		if g.Mode == "" {
			g.Mode = access.Enforce
		}
		if err := g.check(nil); err != nil {
			return err
		}
		if err := t.checkGroupTaken("", g.Name); err != nil {
			return err
		}
		g.copyManagedFields(Group{
			ID: t.newID("group"), CreatedAt: t.now, CreatedBy: t.by.Name, UpdatedAt: t.now, Version: 1,
		})
		if err := t.insert("permission group", "permission_groups", g.columns(),
			column{name: "revision", field: t.revision}); err != nil {
			return err
		}
		if err := t.setPermissions(g.ID, nil, g.Permissions); err != nil {
			return err
		}
		var err error
		if g.Rules, err = t.setRules(g.ID, nil, g.Rules); err != nil {
			return err
		}
		return t.audit("permission_group.create", g.ID, nil, auditGroup(g))
	})
	g.MemberCount = s.memberCounts(by, g.ID)[g.ID]
	return g, err
}

// Group returns the permission group with this id.
func (s *Store) Group(ctx context.Context, by Actor, id string) (Group, error) {
	g, err := inRead(ctx, s, by, func(t *tx) (Group, error) { return t.visibleGroup(id) })
	if err == nil {
		g.MemberCount = s.memberCounts(by, id)[id]
	}
	return g, err
}

// Groups lists permission groups, newest first. With before, it lists only groups that were created
// before the group with that id; with name, only the group with that name. more reports whether the
// limit cut the list. A manager sees only the groups that it holds.
func (s *Store) Groups(
	ctx context.Context, by Actor, name, before string, limit int,
) (list []Group, more bool, err error) {
	list, err = inRead(ctx, s, by, func(t *tx) ([]Group, error) {
		where := ` WHERE deleted_at = 0 AND ($1 = '' OR id < $1) AND ($2 = '' OR name = $2)`
		args := params{before, name, limit + 1}
		if by.Scope != nil {
			where += ` AND id IN (` + args.list(by.Scope.Groups) + `)`
		}
		return t.filledGroups(where+` ORDER BY id DESC LIMIT $3`, args...)
	})
	list, more = cut(list, limit)
	ids := make([]string, len(list))
	for i, g := range list {
		ids[i] = g.ID
	}
	counts := s.memberCounts(by, ids...)
	for i := range list {
		list[i].MemberCount = counts[list[i].ID]
	}
	return list, more, err
}

// filledGroups reads groups with the parts that fill reads.
func (t *tx) filledGroups(where string, args ...any) ([]Group, error) {
	list, err := all(t, "reading permission groups", scanGroup, selectGroup+where, args...)
	for i := 0; err == nil && i < len(list); i++ {
		err = t.fill(&list[i])
	}
	return list, err
}

// UpdateGroup changes the fields of a permission group that a caller may choose. Rules that edit
// does not change keep their ids. Unless version is 0 it must be the present version, or the error
// is [ErrChanged]. Only admins may call it.
func (s *Store) UpdateGroup(
	ctx context.Context, by Actor, id string, version int64, edit func(*Group) error,
) (g Group, err error) {
	err = s.change(ctx, by, func(t *tx) error {
		g, err = t.updateGroup(id, version, edit)
		return err
	})
	g.MemberCount = s.memberCounts(by, id)[id]
	return g, err
}

// PreviewGroup makes the change of UpdateGroup and undoes it. It returns the directory before the
// change and the one after it.
func (s *Store) PreviewGroup(
	ctx context.Context, by Actor, id string, edit func(*Group) error,
) (g Group, before, after *access.Directory, err error) {
	var work *tx
	err = s.change(ctx, by, func(t *tx) error {
		work, t.dryRun = t, true
		g, err = t.updateGroup(id, 0, edit)
		return err
	})
	if err != nil {
		return g, nil, nil, err
	}
	return g, work.directory, cmp.Or(work.next, work.directory), nil // without a change, there is no next
}

func (t *tx) updateGroup(id string, version int64, edit func(*Group) error) (Group, error) {
	before, err := t.groupToChange(id, version, "change a permission group")
	if err != nil {
		return before, err
	}
	g := before.clone()
	if err := edit(&g); err != nil {
		return g, err
	}
	g.copyManagedFields(before)
	if err := g.check(&before); err != nil {
		return g, err
	}
	if err := t.checkGroupTaken(id, g.Name); err != nil {
		return g, err
	}
	if g.Rules, err = t.setRules(id, before.Rules, g.Rules); err != nil {
		return g, err
	}
	if err := t.setPermissions(id, before.Permissions, g.Permissions); err != nil {
		return g, err
	}
	// The audit trail shows every field that a caller may choose, so equal records mean no change.
	if toJSON(auditGroup(g)) == toJSON(auditGroup(before)) {
		return g, nil
	}
	if g, err = t.writeGroup(g); err != nil {
		return g, err
	}
	return g, t.audit("permission_group.update", id, auditGroup(before), auditGroup(g))
}

// writeGroup writes the row of a group after any change of the group, with a new version.
func (t *tx) writeGroup(g Group) (Group, error) {
	g.UpdatedAt, g.Version = t.now, g.Version+1
	return g, t.update("permission group", "permission_groups", g.ID, g.columns(),
		column{name: "revision", field: t.revision})
}

// DeleteGroup deletes a permission group. Its members lose the requests that its rules allow, and
// its denies no longer apply to them. Within Options.Retention the group can be brought back. Only
// admins may call it.
func (s *Store) DeleteGroup(ctx context.Context, by Actor, id string, version int64) error {
	return s.change(ctx, by, func(t *tx) error {
		before, err := t.groupToChange(id, version, "delete a permission group")
		if err != nil {
			return err
		}
		record, err := t.recordMembers(&before)
		if err != nil {
			return err
		}
		// The members are found by the rows that the next statements delete.
		if err := t.touchMembers(id); err != nil {
			return err
		}
		if err := t.execAll("deleting the permission group", id, `
			INSERT INTO deleted_links
			SELECT group_id, 'member', service_user_id FROM members WHERE group_id = $1 UNION ALL
			SELECT group_id, 'permission', permission_key FROM group_permissions WHERE group_id = $1`,
			`DELETE FROM members WHERE group_id = $1`,
			`DELETE FROM group_permissions WHERE group_id = $1`); err != nil {
			return err
		}
		after := before
		after.DeletedAt, after.DeletedBy = t.now, t.by.Name
		if _, err := t.writeGroup(after); err != nil {
			return err
		}
		return t.audit("permission_group.delete", id, record, nil)
	})
}

// touchMembers marks the members of a group as changed in this revision, so that the directory
// reads them again.
func (t *tx) touchMembers(group string) error {
	return t.exec("counting the revision", `
		UPDATE service_users SET revision = $2
		WHERE id IN (SELECT service_user_id FROM members WHERE group_id = $1)`, group, t.revision)
}

// AddRule adds a rule at the end of a permission group. Only admins may call it.
func (s *Store) AddRule(ctx context.Context, by Actor, groupID string, r access.Rule) (made access.Rule, err error) {
	err = s.editRules(ctx, by, groupID, "rule.add", func(t *tx, g *Group) error {
		// The limit is a conflict with the present rules here, while in checkRuleCount it
		// is an invalid value.
		if len(g.Rules) >= maxRules {
			return conflict("rules", "the permission group has %d rules, the most there can be",
				len(g.Rules))
		}
		if made, err = t.newRule(r); err != nil {
			return err
		}
		g.Rules = append(slices.Clone(g.Rules), made)
		if err := checkRuleCount(g.Rules); err != nil {
			return err
		}
		last, err := t.lastPosition(groupID)
		return cmp.Or(err, t.execRows("writing the rule", insertRules, [][]any{t.ruleRow(groupID, made, last+1)}))
	})
	return made, err
}

// RemoveRule removes one rule of a permission group. Only admins may call it.
func (s *Store) RemoveRule(ctx context.Context, by Actor, groupID, ruleID string) error {
	return s.editRules(ctx, by, groupID, "rule.remove", func(t *tx, g *Group) error {
		i := slices.IndexFunc(g.Rules, func(r access.Rule) bool { return r.ID == ruleID })
		if i < 0 {
			return notFound("rule", ruleID)
		}
		g.Rules = slices.Delete(slices.Clone(g.Rules), i, i+1)
		return t.execRows("removing the rule", deleteRules, [][]any{{ruleID}})
	})
}

func (s *Store) editRules(ctx context.Context, by Actor, groupID, action string, edit func(*tx, *Group) error) error {
	return s.change(ctx, by, func(t *tx) error {
		before, err := t.groupToChange(groupID, 0, "change the rules of a permission group")
		if err != nil {
			return err
		}
		g := before
		if err := edit(t, &g); err != nil {
			return err
		}
		if g, err = t.writeGroup(g); err != nil {
			return err
		}
		return t.audit(action, groupID, auditGroup(before), auditGroup(g))
	})
}

// lastPosition returns the position of the last rule of a group, and 0 without a rule.
func (t *tx) lastPosition(group string) (position int64, err error) {
	err = t.row(`SELECT COALESCE(MAX(position), 0) FROM rules WHERE group_id = $1`, group).Scan(&position)
	return position, err
}

// newRule checks a rule and gives it an id.
func (t *tx) newRule(r access.Rule) (access.Rule, error) {
	r, err := checkRule(r)
	r.ID = t.newID("rule")
	return r, err
}

// The statements for rows of rules, those of ruleRow and ids.
const (
	insertRules = `INSERT INTO rules (
			id, group_id, position, effect, methods, host, path, condition, name, description, created_at)
		VALUES ROWS`
	deleteRules = `DELETE FROM rules WHERE id IN (VALUES ROWS)`
)

func (t *tx) ruleRow(group string, r access.Rule, position int64) []any {
	return []any{r.ID, group, position, string(r.Effect), strings.Join(r.Methods, ","), r.Host, r.Path, r.When,
		r.Name, r.Description, t.now.Unix()}
}

// setRules makes list, in its order, the rules of a group. A rule of before with the same content
// keeps its id.
func (t *tx) setRules(group string, before, list []access.Rule) ([]access.Rule, error) {
	type content struct{ text, name, description string }
	contentOf := func(r access.Rule) content { return content{r.String(), r.Name, r.Description} }
	same := func(a, b access.Rule) bool { return contentOf(a) == contentOf(b) }
	// Neither the content nor the order changes, so no row has to be written.
	if before != nil && slices.EqualFunc(list, before, same) {
		return before, nil
	}
	left := make(map[content][]string) // ids of the rules of before that are not used yet, by content
	for _, r := range before {
		left[contentOf(r)] = append(left[contentOf(r)], r.ID)
	}
	last, err := t.lastPosition(group)
	if err != nil {
		return nil, fmt.Errorf("reading the rules: %w", err)
	}
	rules := make([]access.Rule, len(list))
	var added, moved, gone [][]any
	for i, r := range list {
		r, err := t.newRule(r)
		if err != nil {
			return nil, err
		}
		// Each rule in turn gets the highest position, so the rules end in the order of list.
		position := last + 1 + int64(i)
		// newRule may have brought the rule into its normal form, so its content is computed again.
		if ids := left[contentOf(r)]; len(ids) > 0 {
			r.ID, left[contentOf(r)] = ids[0], ids[1:]
			moved = append(moved, []any{ids[0], position})
		} else {
			added = append(added, t.ruleRow(group, r, position))
		}
		rules[i] = r
	}
	for _, ids := range left {
		for _, id := range ids {
			gone = append(gone, []any{id})
		}
	}
	return rules, cmp.Or(
		t.execRows("writing the rules", insertRules, added),
		t.execRows("moving the rules",
			`UPDATE rules SET position = v.column2 FROM (VALUES ROWS) v WHERE id = v.column1`, moved),
		t.execRows("removing the rules", deleteRules, gone))
}

func (t *tx) group(id string) (Group, error) {
	return one(t, scanGroup, "permission group", id, selectGroup+` WHERE id = $1 AND deleted_at = 0`, id)
}

// visibleGroup reads a group with its rules if the actor may see it. A manager sees the groups that
// it holds; for other groups it gets [ErrNotFound].
func (t *tx) visibleGroup(id string) (Group, error) {
	g, err := t.seenGroup(id)
	if err != nil {
		return g, err
	}
	return g, t.fill(&g)
}

// seenGroup is visibleGroup without the rules, of which there may be many.
func (t *tx) seenGroup(id string) (Group, error) {
	g, err := t.group(id)
	if err == nil && t.by.Scope != nil && !slices.Contains(t.by.Scope.Groups, id) {
		return Group{}, notFound("permission group", id)
	}
	return g, err
}

// groupToChange reads a group that the actor may change. tx.admit uses the words, and version is as in
// [Store.UpdateGroup]. A manager gets [ErrNotFound] for a group that it does not see.
func (t *tx) groupToChange(id string, version int64, words string) (Group, error) {
	g, err := t.visibleGroup(id)
	return g, cmp.Or(err, t.admit(words), checkVersion(g.Version, version))
}

// fill reads the parts of a group that are not in its row: rules and permissions, but not
// MemberCount. For a tombstone it reads the permissions and the number of members that it had.
func (t *tx) fill(g *Group) (err error) {
	if g.Rules, err = t.rulesOf(g.ID); err != nil {
		return err
	}
	if g.DeletedAt.IsZero() {
		g.Permissions, err = t.permissionsOf(g.ID)
		return err
	}
	g.Permissions, err = all(t, "reading the links of the permission group", scanString,
		`SELECT link FROM deleted_links WHERE group_id = $1 AND kind = 'permission' ORDER BY link`, g.ID)
	return cmp.Or(err, t.row(`
		SELECT COUNT(*) FROM deleted_links WHERE group_id = $1 AND kind = 'member' AND link <> ''`,
		g.ID).Scan(&g.MemberCount))
}

func (t *tx) rulesOf(group string) ([]access.Rule, error) {
	return all(t, "reading rules", func(rows *sql.Rows) (access.Rule, error) {
		_, r, err := scanRule(rows)
		return r, err
	}, `
		SELECT group_id, id, effect, methods, host, path, condition, name, description
		FROM rules WHERE group_id = $1 ORDER BY position, id`, group)
}

func (t *tx) checkGroupTaken(id, name string) error {
	var other string
	err := t.row(`SELECT id FROM permission_groups WHERE name = $1 AND deleted_at = 0 AND id <> $2`,
		name, id).Scan(&other)
	switch {
	case err == nil:
		return conflict("name", "%q is taken by another permission group; choose another", name)
	case errors.Is(err, sql.ErrNoRows):
		return nil
	default:
		return fmt.Errorf("looking for the name: %w", err)
	}
}

// groupRecord is the form of a group in the audit trail.
type groupRecord struct {
	Group
	Rules []ruleRecord `json:"rules"`
	// The rest is only in the records of a deletion and an undeletion. Members are ids.
	Members            []string `json:"members,omitempty"` // by name
	MembersByCondition []string `json:"members_by_condition,omitempty"`
	NotRestored        []string `json:"not_restored,omitempty"`
}

type ruleRecord struct {
	ID          string `json:"id"`
	Text        string `json:"text"`
	Name        string `json:"name,omitempty"`
	Description string `json:"description,omitempty"`
}

func auditGroup(g Group) groupRecord {
	rules := make([]ruleRecord, len(g.Rules))
	for i, r := range g.Rules {
		rules[i] = ruleRecord{r.ID, r.String(), r.Name, r.Description}
	}
	return groupRecord{Group: g, Rules: rules}
}

// asField turns an [ErrNotFound] for a group into an [ErrInvalid] of the field that names the
// group.
func asField(err error, field string) error {
	var e *Error
	if errors.As(err, &e) && e.Kind == ErrNotFound {
		return &Error{ErrInvalid, field, e.Msg}
	}
	return err
}
