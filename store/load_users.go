package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/serviceusers/caddy-service-users/access"
)

// usersAtOnce is how many service users a load of everything reads before it passes them to the
// edit.
const usersAtOnce = 2000

// loadUsers reads the service users that changed, each with its groups and tokens. A load of
// everything reads them in parts, so that they are never all in memory a second time.
func (s *Store) loadUsers(
	ctx context.Context, q *sql.Tx, since int64, at position, kept rowCounts, edit *edit, read *rowCounts,
) error {
	lost := make(map[string]int)
	defer s.warnOfLostPeppers(lost)
	if since > 0 {
		users, removed, err := s.loadChanged(ctx, q, since, changedAtOnce, read)
		if err != nil {
			return err
		}
		s.countLostPeppers(users, lost)
		return edit.Users(users, removed)
	}
	readers, parts, end, err := s.moreReaders(ctx, q, at, kept[userRows])
	defer end()
	if err != nil {
		return err
	}
	// The directory makes room for all rows at once, instead of growing.
	edit.Expect(kept[userRows], kept[tokenRows])
	var turn sync.Mutex // guards the counts below
	begun, told := time.Now(), time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i, q := range readers {
		group.Go(func() error {
			return s.loadParts(ctx, q, parts[i], func(users []access.User, rows rowCounts) error {
				turn.Lock()
				s.countLostPeppers(users, lost)
				for i, n := range rows {
					read[i] += n
				}
				if time.Since(told) > time.Second {
					told = time.Now()
					s.log.Info("loading the store", zap.Int64("service_users", read[userRows]),
						zap.Duration("since", time.Since(begun)))
				}
				turn.Unlock()
				return edit.Users(users, nil)
			})
		})
	}
	return group.Wait()
}

// changedAtOnce is how many changed service users are read at once. They come as one text, whose
// size SQLite limits, and which is in memory several times.
const changedAtOnce = 20_000

// loadChanged reads the service users that changed. If more than atOnce changed, for example
// because a large group was deleted, it reads them in several queries, each over the next atOnce
// ids.
func (s *Store) loadChanged(
	ctx context.Context, q *sql.Tx, since int64, atOnce int, read *rowCounts,
) (users []access.User, removed []string, err error) {
	before := *read
	users, removed, err = s.loadSome(ctx, q, heading{}, `revision > $1 LIMIT $2`, []any{since, atOnce + 1}, read)
	if err != nil || len(users)+len(removed) <= atOnce {
		return users, removed, err
	}
	users, removed, *read = nil, nil, before
	for after := ""; ; {
		// The "+" keeps SQLite from using the index of revisions: the order needs the index
		// of ids.
		some, gone, err := s.loadSome(ctx, q, heading{}, `+revision > $1 AND id > $2 ORDER BY id LIMIT $3`,
			[]any{since, after, atOnce}, read)
		if err != nil {
			return nil, nil, err
		}
		users, removed = append(users, some...), append(removed, gone...)
		if len(some)+len(gone) < atOnce {
			return users, removed, nil
		}
		for _, u := range some {
			after = max(after, u.ID)
		}
		for _, id := range gone {
			after = max(after, id)
		}
	}
}

// loadSome reads some of the service users that changed, with their groups and tokens. It is one statement,
// since every node runs it for each change.
func (s *Store) loadSome(
	ctx context.Context, q querier, head heading, where string, args params, read *rowCounts,
) (users []access.User, removed []string, err error) {
	const owned = ` t JOIN u ON u.id = t.service_user_id WHERE u.deleted_at = 0`
	shown := args.add(s.Now().Add(-revokedShown).Unix())
	head.with = `WITH u AS MATERIALIZED (SELECT ` + userColumns + ` FROM service_users WHERE ` + where + `)`
	rows, err := pack(ctx, q, head, args,
		selection{userColumns, `u`},
		selection{memberColumns, `members` + owned},
		selection{tokenColumns, `tokens` + owned + ` AND (t.revoked_at = 0 OR t.revoked_at > ` + shown + `)`})
	if err != nil {
		return nil, nil, err
	}
	if users, removed, err = unpackUsers(rows[0], read); err != nil {
		return nil, nil, err
	}
	if err := unpackMembers(rows[1], users, read); err != nil {
		return nil, nil, fmt.Errorf("reading members: %w", err)
	}
	if err := unpackTokens(rows[2], users, read); err != nil {
		return nil, nil, fmt.Errorf("reading tokens: %w", err)
	}
	return users, removed, nil
}

// loadAtOnce loads a change of a few service users, as most changes are, by one statement, without a
// transaction. versionColumns are the version of the schema and the time of the database. next is nil if the change
// needs [Store.load]. The caller has the turn.
func (s *Store) loadAtOnce(ctx context.Context, q querier, versionColumns string) (next *loaded, at int64, err error) {
	current := s.inForce.Load()
	var now metaRow
	var version int
	var read rowCounts
	head := heading{columns: versionColumns + `, ` + metaColumns, from: `meta`, into: append([]any{&version, &at}, now.fields()...)}
	users, removed, err := s.loadSome(ctx, q, head, `revision > $2 LIMIT $3`,
		[]any{current.seq, current.revision, changedAtOnce + 1}, &read)
	switch {
	case err != nil || version != schemaVersion || current.revision == 0 || now.restored || now.groups ||
		len(users)+len(removed) > changedAtOnce:
		return nil, at, err
	case now.position == current.position:
		return current, at, nil
	}
	if err := s.leadsTo(current.position, now); err != nil {
		return nil, at, err
	}
	next, edit, err := s.edit(current, now.position)
	if err != nil {
		return nil, at, err
	}
	lost := make(map[string]int)
	s.countLostPeppers(users, lost)
	s.warnOfLostPeppers(lost)
	if err := edit.Users(users, removed); err != nil {
		return nil, at, err
	}
	return next, at, edit.finish(next)
}

// usersPerReader is how many service users justify one more connection for reading.
const usersPerReader = 20_000

// moreReaders returns q and, if there are many service users, more transactions that see the same state
// of the store. parts has the range of service users for each of them. The caller must call end,
// also after an error.
func (s *Store) moreReaders(
	ctx context.Context, q *sql.Tx, at position, users int64,
) (readers []*sql.Tx, parts []part, end func(), err error) {
	readers = []*sql.Tx{q}
	end = func() {
		for _, q := range readers[1:] {
			q.Rollback()
		}
	}
	// A second transaction sees the last commit, so it helps only while that is the state of q.
	want := min(int64(runtime.GOMAXPROCS(0)), int64(s.readers()), 1+users/usersPerReader)
	for int64(len(readers)) < want {
		another, err := s.read.BeginTx(ctx, snapshot)
		if err != nil {
			return readers, nil, end, err
		}
		var sees position
		err = another.QueryRowContext(ctx, `SELECT revision, audit_seq, audit_hash FROM meta`).
			Scan(&sees.revision, &sees.seq, &sees.hash)
		if err != nil || sees != at {
			another.Rollback()
			if err != nil {
				return readers, nil, end, err
			}
			break // another process has committed since, or q is a change that is not committed
		}
		readers = append(readers, another)
	}
	parts = make([]part, len(readers))
	bound := ""
	// This query reads only the index of ids.
	for i := range parts[1:] {
		err := q.QueryRowContext(ctx, `
			SELECT id FROM service_users WHERE id > $1 ORDER BY id LIMIT 1 OFFSET $2`,
			bound, users/int64(len(parts))).Scan(&bound)
		if errors.Is(err, sql.ErrNoRows) {
			// There are fewer rows than meta says. rowCounts.check reports that.
			bound, err = lastID, nil
		}
		if err != nil {
			return readers, nil, end, err
		}
		parts[i].until, parts[i+1].after = bound, bound
	}
	parts[len(parts)-1].until = lastID
	return readers, parts, end, nil
}

// maxReaders is the most connections that one load uses. The others serve callers that read
// meanwhile.
const maxReaders = 4

// lastID sorts after every id.
const lastID = "\U0010FFFF"

// loadParts reads the service users of a part, usersAtOnce at a time, and passes them to hand.
func (s *Store) loadParts(ctx context.Context, q *sql.Tx, p part, hand func([]access.User, rowCounts) error) error {
	for {
		var rows rowCounts
		users, err := s.loadPart(ctx, q, p, &rows)
		if err != nil {
			return err
		}
		if err := hand(users, rows); err != nil || len(users) < usersAtOnce {
			return err
		}
		p.after = users[len(users)-1].ID
	}
}

// part is a range of ids, which begins behind after and includes until.
type part struct{ after, until string }

// loadPart reads the first service users of a part, with their groups and tokens.
func (s *Store) loadPart(ctx context.Context, q *sql.Tx, p part, read *rowCounts) ([]access.User, error) {
	rows, err := pack(ctx, q, heading{}, []any{p.after, p.until, usersAtOnce}, selection{userColumns, `(SELECT ` + userColumns + `
		FROM service_users WHERE id > $1 AND id <= $2 AND deleted_at = 0 ORDER BY id LIMIT $3) t`})
	if err != nil {
		return nil, err
	}
	users, _, err := unpackUsers(rows[0], read)
	if err != nil {
		return nil, err
	}
	// The rows of every id up to the last user, so that no row falls between two parts. The part has more
	// users if there are usersAtOnce; the next call begins behind this one. The last call reaches to the end
	// of the range, so that it also counts rows whose user is missing.
	last := p.until
	if len(users) == usersAtOnce {
		last = users[len(users)-1].ID
	}
	const owned = ` t WHERE t.service_user_id > $1 AND t.service_user_id <= $2`
	rows, err = pack(ctx, q, heading{}, []any{p.after, last}, selection{memberColumns, `members` + owned})
	if err == nil {
		err = unpackMembers(rows[0], users, read)
	}
	if err != nil {
		return nil, fmt.Errorf("reading members: %w", err)
	}
	rows, err = pack(ctx, q, heading{}, []any{p.after, last, s.Now().Add(-revokedShown).Unix()},
		selection{tokenColumns, `tokens` + owned + ` AND (t.revoked_at = 0 OR t.revoked_at > $3)`})
	if err == nil {
		err = unpackTokens(rows[0], users, read)
	}
	if err != nil {
		return nil, fmt.Errorf("reading tokens: %w", err)
	}
	return users, nil
}

var userColumns = strings.Join(append(names(profileColumns(new(access.Profile))),
	"allowed_ips", "expires_at", "created_at", "deleted_at"), ", ")

// unpackUsers returns the service users of some rows, sorted by id, and the ids of those that were deleted.
func unpackUsers(rows packed, read *rowCounts) (users []access.User, removed []string, err error) {
	var u access.User
	shared := profileColumns(&u.Profile)
	err = rows.each(func(row *fields) error {
		if err := bearable(row.values...); err != nil {
			return err
		}
		u = access.User{}
		for _, c := range shared {
			if err := row.into(c.field); err != nil {
				return err
			}
		}
		allowed := row.text()
		u.ExpiresAt, u.CreatedAt = row.number(), row.number()
		if row.number() != 0 {
			removed = append(removed, u.ID)
			return nil
		}
		var err error
		u.AllowedIPs, err = prefixes(allowed)
		users = append(users, u)
		return err
	})
	read[userRows] += int64(len(users))
	slices.SortFunc(users, func(a, b access.User) int { return strings.Compare(a.ID, b.ID) })
	return users, removed, err
}

const memberColumns = `t.service_user_id, t.group_id`

// unpackMembers adds the ids of the groups that name the users. users is sorted by id. The groups of
// a user come in no order.
func unpackMembers(rows packed, users []access.User, read *rowCounts) error {
	next := 0
	return rows.each(func(row *fields) error {
		read[memberRows]++
		if err := bearable(row.values...); err != nil {
			return err
		}
		if u := seek(users, &next, row.text()); u != nil { // otherwise the user was deleted
			u.Groups = append(u.Groups, row.text())
		}
		return nil
	})
}

// tokenColumns are read of the tokens that were not revoked more than revokedShown ago. A token that the
// service user made itself and has not used yet is "unused": its first use must be recorded at once
// ([Store.RotateToken]).
const tokenColumns = `t.service_user_id, t.id, t.hash, t.pepper_id, t.expires_at, t.not_before, t.retires_at, ` +
	`t.allowed_ips, t.permission_groups, t.revoked_at, ` +
	`CASE WHEN t.created_by = t.service_user_id AND t.last_used_at = 0 THEN 1 ELSE 0 END, ` +
	`(octet_length(t.description)+octet_length(t.metadata))`

// unpackTokens adds the tokens of the users. users is sorted by id. The tokens of a user come in no order.
func unpackTokens(rows packed, users []access.User, read *rowCounts) error {
	next := 0
	return rows.each(func(row *fields) error {
		if err := bearable(row.values...); err != nil {
			return err
		}
		user := row.text()
		t := access.Token{ID: row.text()}
		hash := row.text()
		t.Pepper, t.ExpiresAt, t.NotBefore = row.text(), row.number(), row.number()
		retires, allowed, groups := row.number(), row.text(), row.text()
		t.Revoked, t.Unused, t.Retiring = row.number() != 0, row.bool(), retires != 0
		if err := bearableSize(row.number()); err != nil {
			return fmt.Errorf("%s: %w", t.ID, err)
		}
		if !t.Revoked {
			read[tokenRows]++
		}
		u := seek(users, &next, user)
		if u == nil {
			return nil // the user was deleted
		}
		if len(hash) != 2*len(t.Hash) {
			return fmt.Errorf("%s: the hash is damaged", t.ID)
		}
		if _, err := hex.Decode(t.Hash[:], []byte(hash)); err != nil {
			return fmt.Errorf("%s: the hash is damaged", t.ID)
		}
		// The end of the grace ends the token like an expiry does; the directory has one
		// field for both.
		if retires != 0 && (t.ExpiresAt == 0 || retires < t.ExpiresAt) {
			t.ExpiresAt = retires
		}
		var err error
		if t.AllowedIPs, err = prefixes(allowed); err != nil {
			return fmt.Errorf("%s: %w", t.ID, err)
		}
		if groups != "[]" {
			if err := fromJSON(groups, &t.Groups); err != nil {
				return fmt.Errorf("%s: %w", t.ID, err)
			}
		}
		u.Tokens = append(u.Tokens, t)
		return nil
	})
}

// seek finds a user in a list that is sorted by id. It first tries the user of the last call and
// the one behind it, since rows mostly come in the order of the list.
func seek(users []access.User, next *int, id string) *access.User {
	if *next < len(users) && users[*next].ID < id {
		*next++
	}
	if *next == len(users) || users[*next].ID != id {
		at, found := slices.BinarySearchFunc(users, id,
			func(u access.User, id string) int { return strings.Compare(u.ID, id) })
		if *next = at; !found {
			return nil
		}
	}
	return &users[*next]
}

func prefixes(text string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	if text == "[]" {
		return nil, nil
	}
	err := fromJSON(text, &list)
	return list, err
}
