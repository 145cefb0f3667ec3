package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// recorder keeps the usage of tokens in memory until it is on disk. Requests count in counts and
// never wait for the disk. Once per interval, and when the store closes, the counts go to pending,
// and from there to the disk. A crash of the process loses usage figures, but never a change.
type recorder struct {
	counts  access.Uses
	first   firstUses
	writing sync.Mutex // held during FlushUse and Inherit: pending goes to the disk once, and whole
	failing failureLatch
	purged  time.Time // the time of the last purge; only keepFigures uses it

	// mu guards the fields below. Moves from counts to pending, and from pending to the disk,
	// happen under mu, so that a reader finds each use in one place.
	mu      sync.Mutex
	pending map[string]map[string]usage // by service user and token
	batches int64                       // how many batches of pending went to the disk
}

func newRecorder() recorder {
	return recorder{
		first:   firstUses{pending: make(map[string]firstUse), wake: make(chan struct{}, 1)},
		pending: make(map[string]map[string]usage),
	}
}

// written returns how many batches were written. It waits for a write in progress.
func (r *recorder) written() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.batches
}

// usage is the known usage of a token.
type usage struct {
	count  int64
	last   int64 // Unix seconds
	lastIP string
	from   map[string]int64 // by address, in Unix seconds
	rules  map[string]int64 // by rule, in Unix seconds
}

// Use records that a request of a principal was allowed at an instant (Unix seconds), from an
// address, by a rule; rule is "" when no rule was involved. It never waits for the disk. Each use that
// is recorded before [Store.Close] is called is on disk when Close returns without an error. A use
// that is recorded later may be missing there, so the caller closes the store after its requests.
func (s *Store) Use(p access.Principal, now int64, from netip.Addr, rule string) {
	s.uses.counts.Note(p, now, from, rule)
	// The directory still shows the token as unused. RotateToken relies on the first use, so it
	// is written at once, without waiting for the interval.
	if p.Unused() && !s.opts.ReadOnly {
		s.noteFirst(p.ID(), p.TokenID())
	}
}

// usageOf converts a count to the form in which it is kept.
func usageOf(c *access.Use) usage {
	u := usage{count: c.Count, last: c.Last, from: make(map[string]int64), rules: make(map[string]int64)}
	if c.LastIP.IsValid() {
		u.lastIP = c.LastIP.String()
	}
	for _, seen := range c.From {
		u.from[seen.Value.String()] = seen.At
	}
	for _, seen := range c.Rules {
		u.rules[seen.Value] = seen.At
	}
	return u
}

// usageRow is the usage of one token that is not on disk yet.
type usageRow struct {
	user, token string
	usage
}

func (u *usage) merge(o usage) {
	u.count += o.count
	if o.last >= u.last {
		u.last = o.last
		if o.lastIP != "" {
			u.lastIP = o.lastIP
		}
	}
	// The zero usage has nil maps, to which nothing can be assigned.
	if u.from == nil {
		u.from = make(map[string]int64)
	}
	if u.rules == nil { // alone, after a use that no rule decided
		u.rules = make(map[string]int64)
	}
	for k, at := range o.from {
		u.from[k] = max(u.from[k], at)
	}
	for k, at := range o.rules {
		u.rules[k] = max(u.rules[k], at)
	}
	keepNewest(u.from)
	keepNewest(u.rules)
}

func keepNewest(m map[string]int64) {
	for len(m) > access.MaxSeen {
		oldest := ""
		for k, at := range m {
			// The comparison of keys makes the result independent of the order of the
			// map.
			if oldest == "" || at < m[oldest] || at == m[oldest] && k < oldest {
				oldest = k
			}
		}
		delete(m, oldest)
	}
}

// of returns, by token, the usage of a service user's tokens that is not on disk yet.
func (r *recorder) of(userID string) map[string]usage {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]usage)
	for token, u := range r.pending[userID] {
		var copied usage
		copied.merge(u) // copies the maps, because take later changes those in pending
		out[token] = copied
	}
	r.counts.Each(userID, func(c *access.Use) {
		u := out[c.Token]
		u.merge(usageOf(c))
		out[c.Token] = u
	})
	return out
}

// take moves the counts to pending, and returns the rows that can be written.
func (r *recorder) take() (rows []usageRow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Take(func(user string, c *access.Use) { r.add(user, c.Token, usageOf(c)) })
	for user, tokens := range r.pending {
		for token, u := range tokens {
			// A usage row that is already on disk would make recordUse skip the audit
			// record of the first use.
			if !r.first.has(token) {
				rows = append(rows, usageRow{user, token, u})
			}
		}
	}
	// Tokens with neighbouring ids share pages.
	slices.SortFunc(rows, func(a, b usageRow) int { return strings.Compare(a.token, b.token) })
	return rows
}

// add adds to pending. The caller has locked mu.
func (r *recorder) add(user, token string, more usage) {
	if r.pending[user] == nil {
		r.pending[user] = make(map[string]usage)
	}
	u := r.pending[user][token]
	u.merge(more)
	r.pending[user][token] = u
}

// Inherit takes over the uses of tokens that a closed read-only store has kept in memory. Uses of tokens
// that s does not have are dropped later. Inherit waits for a write in progress, which reads and then forgets pending
// without mu.
func (s *Store) Inherit(from *Store) {
	s.uses.writing.Lock()
	defer s.uses.writing.Unlock()
	for _, row := range from.uses.take() {
		unused := func(t access.Token) bool { return t.ID == row.token && t.Unused }
		if u, ok := s.Directory().User(row.user); ok && slices.ContainsFunc(u.Tokens, unused) {
			s.noteFirst(row.user, row.token)
		}
		s.uses.mu.Lock()
		s.uses.add(row.user, row.token, row.usage)
		s.uses.mu.Unlock()
	}
}

// commit commits a transaction with rows of pending, and removes them from pending.
func (r *recorder) commit(sqlTx *sql.Tx, rows []usageRow) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := sqlTx.Commit(); err != nil {
		return err
	}
	r.batches++
	r.forget(rows)
	return nil
}

// forget removes rows of pending. The caller has mu.
func (r *recorder) forget(rows []usageRow) {
	for _, row := range rows {
		delete(r.pending[row.user], row.token)
		if len(r.pending[row.user]) == 0 {
			delete(r.pending, row.user)
		}
	}
}

// mostUses is of how many tokens a read-only node keeps the usage.
const mostUses = 100_000

// dropUses forgets the usage of all but the tokens that were used last.
func (s *Store) dropUses(context.Context) {
	rows := s.uses.take()
	slices.SortStableFunc(rows, func(a, b usageRow) int { return cmp.Compare(b.last, a.last) })
	s.uses.mu.Lock()
	defer s.uses.mu.Unlock()
	s.uses.forget(rows[min(len(rows), mostUses):])
}

// keepFigures writes figures, and purges tombstones once an hour.
func (s *Store) keepFigures(ctx context.Context) {
	if s.FlushUse(ctx) != nil || s.Now().Sub(s.uses.purged) < time.Hour {
		return
	}
	s.uses.purged = s.Now()
	if err := s.safely("purging tombstones", func() error { return s.purge(ctx) }); err != nil {
		s.log.Error("tombstones cannot be purged; the store tries again", zap.Error(err))
	}
}

// FlushUse writes the known usage of tokens now. After an error the figures stay in memory, and the
// store tries again later. A read-only node keeps all figures in memory.
func (s *Store) FlushUse(ctx context.Context) error {
	if s.opts.ReadOnly {
		return nil
	}
	s.uses.writing.Lock()
	defer s.uses.writing.Unlock()
	err := s.safely("writing the use of tokens", func() error { return s.writeFigures(ctx) })
	s.uses.failing.report(err, func() {
		s.log.Error("the use of tokens cannot be written; the store tries again", zap.Error(err))
	})
	return err
}

// flushAll writes all usage: first uses, and then the figures, which wait for them.
func (s *Store) flushAll(ctx context.Context) error {
	return cmp.Or(s.writeUses(ctx), s.FlushUse(ctx)) // calls both, also after an error of the first
}

// figuresPerChange limits how long one transaction with figures locks the database.
const figuresPerChange = 500

func (s *Store) writeFigures(ctx context.Context) error {
	for batch := range slices.Chunk(s.uses.take(), figuresPerChange) {
		if err := s.writeBatch(ctx, batch); err != nil {
			return fmt.Errorf("writing the use of tokens: %w", err)
		}
	}
	return nil
}

// writeBatch writes rows of pending in one transaction.
func (s *Store) writeBatch(ctx context.Context, rows []usageRow) error {
	return s.aside(ctx, func(t *tx) error {
		done, err := t.addUsage(rows)
		if err != nil {
			return err
		}
		return s.uses.commit(t.Tx, done)
	})
}

// aside runs a transaction that changes neither the revision nor the audit trail. f commits it, and never
// waits for a row that another transaction writes: two that wait for each other would get nowhere.
func (s *Store) aside(ctx context.Context, f func(*tx) error) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if err := s.inPlace(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.timeouts.change)
	defer cancel()
	sqlTx, err := s.beginWrite(ctx)
	if err != nil {
		return err
	}
	defer sqlTx.Rollback()
	return f(&tx{Tx: sqlTx, store: s, ctx: ctx, now: s.Now()})
}

// addUsage adds to the figures of tokens and service users. done has the rows that need not be written
// again: their figures are added, or their token is gone.
func (t *tx) addUsage(rows []usageRow) (done []usageRow, err error) {
	var tokens params
	byToken, last := make(map[string]usageRow, len(rows)), make(map[string]int64)
	for _, row := range rows {
		byToken[row.token] = row
	}
	known := tokens.list(slices.Sorted(maps.Keys(byToken)))
	// Both rows are taken: each counts the use.
	found, err := all(t, "reading the use of tokens", func(rows *sql.Rows) (row usageRow, err error) {
		err = rows.Scan(&row.token, &row.user, &row.last, &row.lastIP, &row.count,
			(*seenTimes)(&row.from), (*seenTimes)(&row.rules))
		return row, err
	}, `SELECT k.id, u.id, last_used_at, last_used_ip, use_count, used_from, used_rules
		FROM tokens k JOIN service_users u ON u.id = k.service_user_id
		WHERE k.id IN (`+known+`)`+t.store.lockRows(), tokens...)
	if err != nil {
		return nil, err
	}
	var used, active [][]any
	for _, row := range found {
		use := byToken[row.token]
		row.merge(use.usage)
		used = append(used,
			[]any{row.token, row.last, row.lastIP, row.count, toJSON(row.from), toJSON(row.rules)})
		last[row.user] = max(last[row.user], row.last)
		done = append(done, use)
		delete(byToken, row.token)
	}
	for user, at := range last {
		active = append(active, []any{user, at})
	}
	if err := t.execRows("writing the use of tokens", `
		UPDATE tokens SET last_used_at = v.column2, last_used_ip = v.column3, use_count = v.column4,
			used_from = v.column5, used_rules = v.column6
		FROM (VALUES ROWS) v WHERE id = v.column1`, used); err != nil {
		return nil, err
	}
	if err := t.execRows("writing the last activity", `
		UPDATE service_users SET last_active_at = v.column2
		FROM (VALUES ROWS) v WHERE id = v.column1 AND last_active_at < v.column2`, active); err != nil {
		return nil, err
	}
	if len(byToken) == 0 {
		return done, nil
	}
	there, err := all(t, "looking for purged tokens", scanString,
		`SELECT id FROM tokens WHERE id IN (`+known+`)`, tokens...)
	for _, id := range there {
		delete(byToken, id)
	}
	return slices.AppendSeq(done, maps.Values(byToken)), err
}

// inReadWithUse is like inRead, for a function that adds figures in memory to figures on disk. It
// repeats the read, up to three times, when figures were written meanwhile, because these would
// count twice or not at all. If each of three reads takes longer than the interval between two
// writes, it returns the last result.
func inReadWithUse[T any](ctx context.Context, s *Store, by Actor, f func(*tx) (T, error)) (v T, err error) {
	for range 3 {
		written := s.uses.written()
		if v, err = inRead(ctx, s, by, f); err != nil || s.uses.written() == written {
			break
		}
	}
	return v, err
}

// withUse adds the usage that is not on disk yet to tokens of a service user. A change or
// [inReadWithUse] must have read the tokens.
func (s *Store) withUse(userID string, tokens ...*Token) {
	pending := s.uses.of(userID)
	for _, k := range tokens {
		u, ok := pending[k.ID]
		if !ok {
			continue
		}
		now := usage{
			last: unix(k.LastUsedAt), lastIP: k.LastUsedIP, count: k.UseCount,
			from: k.UsedFrom, rules: k.UsedRules,
		}
		now.merge(u)
		k.LastUsedAt, k.LastUsedIP, k.UseCount = fromUnix(now.last), now.lastIP, now.count
		k.UsedFrom, k.UsedRules = now.from, now.rules
	}
}

// withActivity does the same for the LastActiveAt of the service user itself.
func (s *Store) withActivity(u *ServiceUser) {
	for _, use := range s.uses.of(u.ID) {
		if at := fromUnix(use.last); at.After(u.LastActiveAt) {
			u.LastActiveAt = at
		}
	}
}
