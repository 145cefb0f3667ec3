package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// revokedShown is how long a revoked token stays in the directory, so that a log can say
// "token_revoked" instead of "wrong_secret".
const revokedShown = 7 * 24 * time.Hour

// load reads the changes since the directory in force and returns a directory that includes them.
// It reads all of them in one transaction. An error in any row rejects the whole load.
func (s *Store) load(ctx context.Context, q *sql.Tx) (*loaded, error) {
	current := s.inForce.Load()
	next := &loaded{}
	version, err := s.version(ctx, q) // a newer program may have upgraded the database since Open
	if err != nil {
		return next, err
	}
	if err := checkSchema(version); err != nil {
		return next, err
	}
	var read rowCounts
	var now metaRow
	if err := q.QueryRowContext(ctx, `SELECT `+metaColumns+` FROM meta`, current.seq, current.revision).
		Scan(now.fields()...); err != nil {
		return next, fmt.Errorf("reading the revision: %w", err)
	}
	if now.position == current.position && current.revision != 0 {
		return current, nil
	}
	if err := s.leadsTo(current.position, now); err != nil {
		return next, err
	}
	if now.restored { // read every row again
		current = &loaded{directory: access.NewDirectory(s.opts.Peppers, s.opts.DefaultGroup)}
	}
	since, kept := current.revision, now.kept
	next, edit, err := s.edit(current, now.position)
	if err != nil {
		return next, err
	}
	// Groups come first: service users refer to them.
	if since == 0 || now.groups {
		if err := loadGroups(ctx, q, since, edit, &read); err != nil {
			return next, fmt.Errorf("reading permission groups: %w", err)
		}
	}
	if err := s.loadUsers(ctx, q, since, next.position, kept, edit, &read); err != nil {
		return next, fmt.Errorf("reading service users: %w", err)
	}
	// Only a load of all rows can compare their numbers with those in meta.
	if since == 0 {
		if err := read.check(kept); err != nil {
			return next, err
		}
		if err := checkHead(ctx, q, next.position); err != nil {
			return next, err
		}
	}
	return next, edit.finish(next)
}

// rowCounts has the numbers of rows that make up a directory, in the order of countedTables. Triggers
// (counts.sql) keep such numbers in meta.
type rowCounts [6]int64

const (
	userRows  = iota // not deleted
	tokenRows        // not revoked
	groupRows        // not deleted
	ruleRows
	grantRows
	memberRows
)

// countedTables are the names of the tables, and of the columns of meta.
var countedTables = [...]string{"service_users", "tokens", "permission_groups", "rules", "group_permissions", "members"}

// check rejects the tables if the number of rows read differs from the number in meta. Possible
// reasons are a scan that ended early and an index that lost entries.
func (read rowCounts) check(kept rowCounts) error {
	for i, table := range countedTables {
		if read[i] != kept[i] {
			return fmt.Errorf("%w: the table %s is not whole: "+
				"%d of its rows were read, and %d were written", ErrDamaged, table, read[i], kept[i])
		}
	}
	return nil
}

// checkHead rejects a store whose audit trail does not end with the record in meta. Such a store is
// made of parts of two stores, for example a database and the log of another copy.
func checkHead(ctx context.Context, q *sql.Tx, head position) error {
	hash, err := hashOf(ctx, q.QueryRowContext, head.seq)
	if err != nil {
		return err
	}
	if hash != head.hash {
		return fmt.Errorf("%w: the audit trail does not end with record %d, which is its last one",
			ErrDamaged, head.seq)
	}
	return nil
}

// position is a point in the history of a store.
type position struct {
	revision int64
	seq      int64  // the last record of the audit trail …
	hash     string // … and its hash
}

// loaded is a directory together with the position it was read at.
type loaded struct {
	position
	directory *access.Directory
	changes   *access.Changes // for the last good copy; nil if all rows were read
	since     int64           // the revision after which the changes are
	took      time.Duration   // the time in which the directory was made, from reading the rows on
}

// edit is an edit of the directory that also collects the changes, unless changes is nil.
type edit struct {
	*access.Edit
	changes *access.Changes
	begun   time.Time
}

func (e *edit) Groups(changed []access.Group, removed []string) error {
	if c := e.changes; c != nil {
		c.Groups, c.RemovedGroups = append(c.Groups, changed...), append(c.RemovedGroups, removed...)
	}
	return e.Edit.Groups(changed, removed)
}

func (e *edit) Users(changed []access.User, removed []string) error {
	if c := e.changes; c != nil {
		c.Users, c.RemovedUsers = append(c.Users, changed...), append(c.RemovedUsers, removed...)
	}
	return e.Edit.Users(changed, removed)
}

// finish sets the new directory.
func (e *edit) finish(next *loaded) (err error) {
	next.directory, err = e.Done()
	next.took = time.Since(e.begun)
	return err
}

// edit begins a directory of a position from an earlier one.
func (s *Store) edit(current *loaded, to position) (next *loaded, e *edit, err error) {
	next, e = &loaded{position: to}, &edit{begun: time.Now()}
	if current.revision > 0 && s.copy != nil {
		next.changes, next.since = &access.Changes{Revision: to.revision}, current.revision
		e.changes = next.changes
	}
	e.Edit, err = current.directory.Edit(to.revision)
	return next, e, err
}

// metaRow is the row of meta, and how the store has come there from a position.
type metaRow struct {
	position
	kept     rowCounts
	past     sql.NullString // the hash of the audit record at the earlier position
	restored bool           // a restore came later: rows can be new and have an old revision
	groups   bool           // a group changed later
}

// metaColumns are those of metaRow, from the table meta. $1 is the number of the audit record of the
// earlier position, and $2 its revision.
var metaColumns = `meta.revision, audit_seq, audit_hash,
	(SELECT hash FROM audit_events WHERE seq = $1),
	CASE WHEN $1 > 0 THEN EXISTS (SELECT 1 FROM audit_events WHERE seq > $1 AND action = 'store.restore') ELSE FALSE END,
	EXISTS (SELECT 1 FROM permission_groups g WHERE g.revision > $2), ` + strings.Join(countedTables[:], ", ")

func (st *metaRow) fields() []any {
	list := []any{&st.revision, &st.seq, &st.hash, &st.past, &st.restored, &st.groups}
	for i := range st.kept {
		list = append(list, &st.kept[i])
	}
	return list
}

// leadsTo rejects a database whose history does not continue from p. It catches a backup in the
// place of the database, even one that was changed since. Such a backup would make revoked tokens
// valid again, and reading only its new rows would mix two histories.
func (s *Store) leadsTo(p position, next metaRow) error {
	// Each change has an audit record, so the record at p identifies the history up to p. At 0 no
	// directory was read yet.
	if p.seq > 0 && (next.past.String != p.hash || next.revision <= p.revision) {
		return fmt.Errorf("%w: the database is an older or another one: "+
			"its revision %d does not follow revision %d, which is in force; "+
			"put the newer one back, or, if you have restored it on purpose, %s",
			ErrOlder, next.revision, p.revision, s.older())
	}
	return nil
}

// loadGroups reads the groups that changed, each with all of its rules.
func loadGroups(ctx context.Context, q *sql.Tx, since int64, edit *edit, read *rowCounts) error {
	var c access.Changes
	rows, err := q.QueryContext(ctx, `
		SELECT id, name, mode, member_condition, octet_length(description), deleted_at
		FROM permission_groups
		WHERE revision > $1 AND (deleted_at = 0 OR $1 > 0)`, since)
	if err != nil {
		return err
	}
	defer rows.Close()
	place := make(map[string]int) // the position in c.Groups, by id
	for rows.Next() {
		var g access.Group
		var described, deleted int64
		if err := rows.Scan(&g.ID, &g.Name, &g.Mode, &g.Condition, &described, &deleted); err != nil {
			return err
		}
		if err := errors.Join(bearable(g.ID, g.Name, string(g.Mode), g.Condition),
			bearableSize(described)); err != nil {
			return fmt.Errorf("%q: %w", clip(g.ID), err)
		}
		if deleted != 0 {
			c.RemovedGroups = append(c.RemovedGroups, g.ID)
			continue
		}
		place[g.ID] = len(c.Groups)
		c.Groups = append(c.Groups, g)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	read[groupRows] = int64(len(c.Groups))
	// A load of everything reads the rules without the join. A join through a damaged index
	// would skip rows silently; this way the counts show that they are missing.
	which := `WHERE $1 = 0`
	if since > 0 {
		which = `JOIN permission_groups g ON g.id = r.group_id WHERE g.revision > $1 AND g.deleted_at = 0`
	}
	rules, err := q.QueryContext(ctx, `
		SELECT r.group_id, r.id, r.effect, r.methods, r.host, r.path, r.condition, r.name, r.description
		FROM rules r `+which+`
		ORDER BY r.group_id, r.position, r.id`, since)
	if err != nil {
		return err
	}
	defer rules.Close()
	for rules.Next() {
		group, r, err := scanRule(rules)
		if err == nil {
			err = bearable(group, r.ID, string(r.Effect), strings.Join(r.Methods, ","),
				r.Host, r.Path, r.When, r.Name, r.Description)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", clip(r.ID), err)
		}
		read[ruleRows]++
		if at, ok := place[group]; ok { // otherwise the group was deleted
			c.Groups[at].Rules = append(c.Groups[at].Rules, r)
		}
	}
	if err := rules.Err(); err != nil {
		return err
	}
	if err := loadPermissions(ctx, q, since, &c, place, read); err != nil {
		return err
	}
	return edit.Groups(c.Groups, c.RemovedGroups)
}

// loadPermissions adds the rules of the permissions that groups have.
func loadPermissions(
	ctx context.Context, q *sql.Tx, since int64, c *access.Changes, place map[string]int, read *rowCounts,
) error {
	rows, err := q.QueryContext(ctx, `
		SELECT gp.group_id, p.key, p.rules
		FROM group_permissions gp JOIN permissions p ON p.key = gp.permission_key
			JOIN permission_groups g ON g.id = gp.group_id
		WHERE g.revision > $1 AND g.deleted_at = 0
		ORDER BY gp.group_id, p.key`, since)
	if err != nil {
		return err
	}
	defer rows.Close()
	// Many groups can have the same permission: its rules are parsed once.
	known := make(map[string][]access.Rule)
	for rows.Next() {
		var group, key, text string
		if err := rows.Scan(&group, &key, &text); err != nil {
			return err
		}
		if known[key] == nil {
			if err = bearable(key); err == nil &&
				(len(text) > maxPermissionBytes || !utf8.ValidString(text)) {
				err = fmt.Errorf("%w: its rules have %d bytes, or are not valid UTF-8",
					errRowDamaged, len(text))
			}
			if err == nil {
				known[key], err = permissionRules(key, text)
			}
			if err != nil {
				return fmt.Errorf("permission %q: %w", clip(key), err)
			}
		}
		read[grantRows]++
		if at, ok := place[group]; ok {
			c.Groups[at].Rules = append(c.Groups[at].Rules, known[key]...)
		}
	}
	return rows.Err()
}

func scanRule(rows *sql.Rows) (group string, r access.Rule, err error) {
	var methods string
	err = rows.Scan(&group, &r.ID, &r.Effect, &methods, &r.Host, &r.Path, &r.When, &r.Name, &r.Description)
	r.Methods = strings.Split(methods, ",")
	return group, r, err
}

func fromJSON(text string, v any) error {
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return fmt.Errorf("the value %q is damaged: %w", text, err)
	}
	return nil
}

func toJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		// This cannot happen: strings, lists and maps of strings always can be encoded.
		panic("store: encoding a record: " + err.Error())
	}
	return string(text)
}

// countLostPeppers counts live tokens by pepper, for peppers that are not configured any more.
func (s *Store) countLostPeppers(users []access.User, lost map[string]int) {
	for _, u := range users {
		for _, t := range u.Tokens {
			if !t.Revoked && !s.opts.Peppers.Knows(t.Pepper) {
				lost[t.Pepper]++
			}
		}
	}
}

// warnOfLostPeppers logs the result of countLostPeppers. Such tokens are refused until the pepper
// is configured again.
func (s *Store) warnOfLostPeppers(lost map[string]int) {
	for id, n := range lost {
		s.log.Error("tokens cannot be verified: their pepper is not in the pepper file; "+
			"add the key back, or refresh the tokens", zap.String("pepper_id", id), zap.Int("tokens", n),
			zap.String("store", s.path))
	}
}
