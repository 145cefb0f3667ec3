package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// revokedShown is how long a revoked token stays in the directory, so that a
// log can say "token_revoked" instead of "wrong_secret".
const revokedShown = 7 * 24 * time.Hour

// load reads what changed since the directory in force and returns the
// directory with it. Everything is read in one transaction; an error of any
// row refuses the whole.
func (s *Store) load(ctx context.Context, q *sql.Tx) (loaded, error) {
	current := s.loaded
	since := current.revision
	next := loaded{}
	var version int // a newer program may have upgraded it meanwhile
	if err := q.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return next, fmt.Errorf("reading the schema version: %w", err)
	}
	if err := checkSchema(version); err != nil {
		return next, err
	}
	if err := q.QueryRowContext(ctx, `SELECT revision, audit_seq, audit_hash FROM meta`).Scan(&next.revision, &next.seq, &next.hash); err != nil {
		return next, fmt.Errorf("reading the revision: %w", err)
	}
	if next.position == current.position && since != 0 {
		return current, nil
	}
	if err := current.leadsTo(ctx, q, next.position); err != nil {
		return next, err
	}
	edit, err := current.directory.Edit(next.revision)
	if err != nil {
		return next, err
	}
	if err := loadGroups(ctx, q, since, edit); err != nil {
		return next, fmt.Errorf("reading permission groups: %w", err)
	}
	if err := s.loadUsers(ctx, q, since, edit); err != nil {
		return next, fmt.Errorf("reading service users: %w", err)
	}
	next.directory, err = edit.Done()
	return next, err
}

// position is a place in the history of a store.
type position struct {
	revision int64
	seq      int64  // the last record of the audit trail …
	hash     string // … and its hash
}

// loaded is a directory together with the position that it shows.
type loaded struct {
	position
	directory *access.Directory
}

// leadsTo refuses a store whose history does not go on from p. A backup that was
// put in its place, even when it was changed since, would bring revoked tokens
// back; and reading only what is new in it would mix two histories.
func (p position) leadsTo(ctx context.Context, q *sql.Tx, next position) error {
	if p.seq == 0 {
		return nil // nothing was read yet
	}
	var hash string
	err := q.QueryRowContext(ctx, `SELECT hash FROM audit_events WHERE seq = $1`, p.seq).Scan(&hash)
	switch {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("reading the audit trail: %w", err)
	case hash != p.hash || next.revision <= p.revision:
		return fmt.Errorf("the database is an older or another one than before: its revision %d does not follow revision %d, which is in force; put the newer one back, or restart to take this one", next.revision, p.revision)
	}
	return nil
}

// loadGroups reads the groups that changed, each with all of its rules.
func loadGroups(ctx context.Context, q *sql.Tx, since int64, edit *access.Edit) error {
	var c access.Changes
	rows, err := q.QueryContext(ctx, `
		SELECT id, name, mode, member_condition, deleted_at
		FROM permission_groups
		WHERE revision > $1 AND (deleted_at = 0 OR $1 > 0)`, since)
	if err != nil {
		return err
	}
	defer rows.Close()
	place := make(map[string]int)
	for rows.Next() {
		var g access.Group
		var deleted int64
		if err := rows.Scan(&g.ID, &g.Name, &g.Mode, &g.Condition, &deleted); err != nil {
			return err
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
	rules, err := q.QueryContext(ctx, `
		SELECT r.group_id, r.id, r.effect, r.methods, r.host, r.path, r.condition, r.name, r.description
		FROM rules r JOIN permission_groups g ON g.id = r.group_id
		WHERE g.revision > $1 AND g.deleted_at = 0
		ORDER BY r.group_id, r.position, r.id`, since)
	if err != nil {
		return err
	}
	defer rules.Close()
	for rules.Next() {
		group, r, err := scanRule(rules)
		if err != nil {
			return err
		}
		g := &c.Groups[place[group]]
		g.Rules = append(g.Rules, r)
	}
	if err := rules.Err(); err != nil {
		return err
	}
	if err := loadPermissions(ctx, q, since, &c, place); err != nil {
		return err
	}
	return edit.Groups(c.Groups, c.RemovedGroups)
}

// loadPermissions adds the rules of the permissions that groups were given.
func loadPermissions(ctx context.Context, q *sql.Tx, since int64, c *access.Changes, place map[string]int) error {
	rows, err := q.QueryContext(ctx, `
		SELECT gp.group_id, p.key, p.rules
		FROM group_permissions gp JOIN permissions p ON p.key = gp.permission_key JOIN permission_groups g ON g.id = gp.group_id
		WHERE g.revision > $1 AND g.deleted_at = 0
		ORDER BY gp.group_id, p.key`, since)
	if err != nil {
		return err
	}
	defer rows.Close()
	known := make(map[string][]access.Rule)
	for rows.Next() {
		var group, key, text string
		if err := rows.Scan(&group, &key, &text); err != nil {
			return err
		}
		if known[key] == nil {
			if known[key], err = permissionRules(key, text); err != nil {
				return fmt.Errorf("permission %q: %w", key, err)
			}
		}
		g := &c.Groups[place[group]]
		g.Rules = append(g.Rules, known[key]...)
	}
	return rows.Err()
}

func scanRule(rows *sql.Rows) (group string, r access.Rule, err error) {
	var methods string
	err = rows.Scan(&group, &r.ID, &r.Effect, &methods, &r.Host, &r.Path, &r.When, &r.Name, &r.Description)
	r.Methods = strings.Split(methods, ",")
	return group, r, err
}

// usersAtOnce is how many service users are read before they are handed on, when
// all are read.
const usersAtOnce = 5000

// loadUsers reads the service users that changed, each with its groups and its
// tokens. All of them are read in parts, so that they need not be in memory twice.
func (s *Store) loadUsers(ctx context.Context, q *sql.Tx, since int64, edit *access.Edit) error {
	lost := make(map[string]int)
	defer s.warnOfLostPeppers(lost)
	if since > 0 {
		users, removed, err := s.loadPart(ctx, q, since, selectLoad+` WHERE revision > $1`, since)
		if err != nil {
			return err
		}
		s.countLostPeppers(users, lost)
		return edit.Users(users, removed)
	}
	var none int // what no service user leads to is looked at as well
	if err := q.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM tokens WHERE id = '') + (SELECT COUNT(*) FROM members WHERE group_id = '')`).Scan(&none); err != nil {
		return err
	}
	begun, told, after, read := time.Now(), time.Now(), "", 0
	for {
		users, _, err := s.loadPart(ctx, q, 0, selectLoad+` WHERE id > $1 AND deleted_at = 0 ORDER BY id LIMIT $2`, after, usersAtOnce)
		if err != nil || len(users) == 0 {
			return err
		}
		s.countLostPeppers(users, lost)
		if err := edit.Users(users, nil); err != nil {
			return err
		}
		read, after = read+len(users), users[len(users)-1].ID
		if time.Since(told) > time.Second {
			told = time.Now()
			s.log.Info("loading the store", zap.Int("service_users", read), zap.Duration("since", time.Since(begun)))
		}
	}
}

const selectLoad = `
	SELECT id, name, display_name, alias, owner, active, role, teams, labels, allowed_ips, expires_at, created_at, deleted_at
	FROM service_users`

// loadPart reads the service users of a query, and what belongs to them.
func (s *Store) loadPart(ctx context.Context, q *sql.Tx, since int64, query string, args ...any) (users []access.User, removed []string, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var u access.User
		var teams, labels, allowed string
		var deleted int64
		if err := rows.Scan(&u.ID, &u.Name, &u.DisplayName, &u.Alias, &u.Owner, &u.Active, &u.Role, &teams, &labels, &allowed, &u.ExpiresAt, &u.CreatedAt, &deleted); err != nil {
			return nil, nil, err
		}
		if deleted != 0 {
			removed = append(removed, u.ID)
			continue
		}
		if teams != "[]" {
			if err := fromJSON(teams, &u.Teams); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", u.ID, err)
			}
		}
		if labels != "{}" {
			if err := fromJSON(labels, &u.Labels); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", u.ID, err)
			}
		}
		if u.AllowedIPs, err = prefixes(allowed); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", u.ID, err)
		}
		users = append(users, u)
	}
	if err := rows.Err(); err != nil {
		return nil, nil, err
	}
	rows.Close()
	if len(users) == 0 {
		return nil, removed, nil
	}
	slices.SortFunc(users, func(a, b access.User) int { return strings.Compare(a.ID, b.ID) })
	if err := loadMembers(ctx, q, since, users); err != nil {
		return nil, nil, fmt.Errorf("reading members: %w", err)
	}
	if err := loadTokens(ctx, q, since, s.now(), users); err != nil {
		return nil, nil, fmt.Errorf("reading tokens: %w", err)
	}
	return users, removed, nil
}

// span names the users of a part in a query on what belongs to them: by their
// revision when few have changed, else from the first to the last of them.
func span(users []access.User, since int64) (clause string, args []any) {
	if since > 0 {
		return `u.revision > $1 AND u.id >= $2 AND u.id <= $3`, []any{since, users[0].ID, users[len(users)-1].ID}
	}
	return `u.id >= $2 AND u.id <= $3 AND $1 = 0`, []any{since, users[0].ID, users[len(users)-1].ID}
}

// loadMembers reads which groups name the users, which are sorted by id.
func loadMembers(ctx context.Context, q *sql.Tx, since int64, users []access.User) error {
	clause, args := span(users, since)
	members, err := q.QueryContext(ctx, `
		SELECT m.service_user_id, m.group_id
		FROM members m JOIN service_users u ON u.id = m.service_user_id
		WHERE `+clause+` AND u.deleted_at = 0
		ORDER BY m.service_user_id, m.group_id`, args...)
	if err != nil {
		return err
	}
	defer members.Close()
	next := 0
	for members.Next() {
		var user, group string
		if err := members.Scan(&user, &group); err != nil {
			return err
		}
		u := seek(users, &next, user)
		if u == nil {
			return fmt.Errorf("a member %s that is no service user", user)
		}
		u.Groups = append(u.Groups, group)
	}
	return members.Err()
}

// loadTokens reads every token of the users, which are sorted by id. Tokens that
// were revoked long ago stay out.
func loadTokens(ctx context.Context, q *sql.Tx, since int64, now time.Time, users []access.User) error {
	clause, args := span(users, since)
	rows, err := q.QueryContext(ctx, `
		SELECT t.service_user_id, t.id, t.hash, t.pepper_id, t.expires_at, t.not_before, t.retires_at, t.allowed_ips, t.permission_groups, t.revoked_at,
			t.created_by = t.service_user_id AND t.last_used_at = 0
		FROM tokens t JOIN service_users u ON u.id = t.service_user_id
		WHERE `+clause+` AND u.deleted_at = 0 AND (t.revoked_at = 0 OR t.revoked_at > $4)
		ORDER BY t.service_user_id, t.id`, append(args, now.Add(-revokedShown).Unix())...)
	if err != nil {
		return err
	}
	defer rows.Close()
	next := 0
	for rows.Next() {
		var t access.Token
		var user, hash, allowed, groups string
		var retires, revoked int64
		if err := rows.Scan(&user, &t.ID, &hash, &t.Pepper, &t.ExpiresAt, &t.NotBefore, &retires, &allowed, &groups, &revoked, &t.Unused); err != nil {
			return err
		}
		if len(hash) != 2*len(t.Hash) {
			return fmt.Errorf("%s: the hash is damaged", t.ID)
		}
		if _, err := hex.Decode(t.Hash[:], []byte(hash)); err != nil {
			return fmt.Errorf("%s: the hash is damaged", t.ID)
		}
		if retires != 0 && (t.ExpiresAt == 0 || retires < t.ExpiresAt) {
			t.ExpiresAt = retires
		}
		t.Revoked, t.Retiring = revoked != 0, retires != 0
		if t.AllowedIPs, err = prefixes(allowed); err != nil {
			return fmt.Errorf("%s: %w", t.ID, err)
		}
		if groups != "[]" {
			if err := fromJSON(groups, &t.Groups); err != nil {
				return fmt.Errorf("%s: %w", t.ID, err)
			}
		}
		u := seek(users, &next, user)
		if u == nil {
			return fmt.Errorf("%s belongs to %s, which is no service user", t.ID, user)
		}
		u.Tokens = append(u.Tokens, t)
	}
	return rows.Err()
}

// seek finds a user in a list that is sorted by id, going on from where the
// last call stopped: both sides of a merge come in the same order.
func seek(users []access.User, next *int, id string) *access.User {
	for *next < len(users) && users[*next].ID < id {
		*next++
	}
	if *next < len(users) && users[*next].ID == id {
		return &users[*next]
	}
	return nil
}

func prefixes(text string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	if text == "[]" {
		return nil, nil
	}
	err := fromJSON(text, &list)
	return list, err
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
		panic("store: encoding a record: " + err.Error()) // strings, lists and maps of them always can be
	}
	return string(text)
}

// countLostPeppers counts tokens whose pepper is no longer configured.
func (s *Store) countLostPeppers(users []access.User, lost map[string]int) {
	for _, u := range users {
		for _, t := range u.Tokens {
			if !t.Revoked && !s.opts.Peppers.Knows(t.Pepper) {
				lost[t.Pepper]++
			}
		}
	}
}

// warnOfLostPeppers tells of such tokens: they are refused until it is.
func (s *Store) warnOfLostPeppers(lost map[string]int) {
	for id, n := range lost {
		s.log.Error("tokens cannot be verified: their pepper is not in the pepper file; add the key back, or refresh the tokens",
			zap.String("pepper_id", id), zap.Int("tokens", n))
	}
}
