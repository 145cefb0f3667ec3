package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// figures keeps the usage of tokens in memory until it is on disk. [access.Use] counts each use.
// Once per interval the counts are closed, left for a moment to settle, and written. Requests never
// wait for that. A crash of the process loses usage figures, but never a change.
type figures struct {
	counts *access.Uses // requests count here

	mu       sync.Mutex
	open     map[string][]tokenUse       // by service user: counts that requests still find
	settling map[string][]tokenUse       // closed counts; a request that found one earlier may still add to it
	pending  map[string]map[string]usage // by service user and token: ready to be written
	wake     chan chan error             // asks for a write now; the result goes to the sent channel
	ended    chan struct{}               // closed when the writing goroutine has ended

	writing sync.Mutex // held while figures go from pending to the disk
	written int64      // how many batches went to the disk
}

// writes returns how many batches of figures were written. It waits for a write in progress.
func (f *figures) writes() int64 {
	f.writing.Lock()
	defer f.writing.Unlock()
	return f.written
}

type tokenUse struct {
	token string
	use   *access.Use
}

// usage is the known usage of a token.
type usage struct {
	count  int64
	last   int64 // Unix seconds
	lastIP string
	from   map[string]int64 // by address, in Unix seconds
	rules  map[string]int64 // by rule, in Unix seconds
}

// maxSeen is how many addresses, and how many rules, are kept for a token.
const maxSeen = 8

func (f *figures) begin() {
	f.counts = access.NewUses()
	f.open, f.settling = make(map[string][]tokenUse), make(map[string][]tokenUse)
	f.pending = make(map[string]map[string]usage)
	f.wake, f.ended = make(chan chan error), make(chan struct{})
}

// Use records that a request of a principal was allowed at an instant (Unix seconds), from an
// address, by a rule; rule is "" when no rule was involved. It never waits for the disk.
func (s *Store) Use(p access.Principal, now int64, from netip.Addr, rule string) {
	if begun := s.figures.counts.Note(p, now, from, rule); begun != nil {
		token := p.TokenID()
		s.figures.mu.Lock()
		s.figures.open[p.ID()] = append(s.figures.open[p.ID()], tokenUse{token, begun})
		s.figures.mu.Unlock()
	}
	// The directory still shows the token as unused. RotateToken relies on the first use, so it
	// is written at once, without waiting for the interval.
	if p.Unused() {
		s.noteFirst(p.ID(), p.TokenID())
	}
}

// usageOf converts counted figures to the form in which they are kept.
func usageOf(f access.Figures) usage {
	u := usage{count: f.Count, last: f.Last, from: make(map[string]int64), rules: make(map[string]int64)}
	for i, seen := range f.From {
		if !seen.Value.IsValid() { // a request over a Unix socket has no address
			continue
		}
		if i == 0 {
			// The list begins with the latest address.
			u.lastIP = seen.Value.String()
		}
		u.from[seen.Value.String()] = seen.At
	}
	for _, seen := range f.Rules {
		u.rules[seen.Value] = seen.At
	}
	return u
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
		u.from, u.rules = make(map[string]int64), make(map[string]int64)
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
	for len(m) > maxSeen {
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
func (f *figures) of(userID string) map[string]usage {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]usage)
	for token, u := range f.pending[userID] {
		var copied usage
		// merge copies the maps, because settleOne later changes those in pending.
		copied.merge(u)
		out[token] = copied
	}
	for _, list := range [][]tokenUse{f.settling[userID], f.open[userID]} {
		for _, t := range list {
			u := out[t.token]
			u.merge(usageOf(t.use.Figures()))
			out[t.token] = u
		}
	}
	return out
}

// settle moves closed counts to pending. It takes the lock once for each service user, so that
// requests that begin a count need not wait for all of them. Only the goroutine that calls close
// may call it.
func (f *figures) settle() {
	for user, list := range f.settling {
		f.settleOne(user, list)
	}
}

func (f *figures) settleOne(user string, list []tokenUse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending[user] == nil {
		f.pending[user] = make(map[string]usage)
	}
	for _, t := range list {
		u := f.pending[user][t.token]
		u.merge(usageOf(t.use.Figures()))
		f.pending[user][t.token] = u
	}
	delete(f.settling, user)
}

// close closes the open counts. Counts that have not settled yet stay in settling.
func (f *figures) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	// From here on requests find no open count, and begin new ones.
	f.counts.Renew()
	if len(f.settling) == 0 {
		f.open, f.settling = make(map[string][]tokenUse), f.open
		return
	}
	for user, list := range f.open {
		f.settling[user] = append(f.settling[user], list...)
	}
	clear(f.open)
}

// keepFigures writes figures and purges tombstones until the store closes.
func (s *Store) keepFigures(ctx context.Context) {
	interval := s.opts.UseInterval
	if interval <= 0 {
		interval = defaultUseInterval
	}
	// A request may have found a count just before it was closed, and add to it a moment later.
	settling := min(interval/10, maxSettling)
	tick := time.NewTicker(interval - settling)
	defer tick.Stop()
	defer close(s.figures.ended)
	failing, purged := false, time.Time{}
	for {
		var done chan error
		select {
		case <-ctx.Done():
		case <-tick.C:
			s.figures.close()
			select {
			case <-ctx.Done():
			case <-time.After(settling):
			}
		case done = <-s.figures.wake:
			s.figures.close()
		}
		closing := ctx.Err() != nil
		if closing {
			s.figures.close()
		}
		// A closed count may settle too early here when the store closes or FlushUse asks
		// for a write. Then a request that is adding at this moment loses its use; that is
		// a figure, not a change.
		s.figures.settle()
		// The last figures are written although ctx has ended.
		work := context.WithoutCancel(ctx)
		err := s.safely("writing the use of tokens", func() error {
			err := s.writeFigures(work)
			if now := s.now(); err == nil && !closing && now.Sub(purged) >= time.Hour {
				purged = now
				err = s.purge(work)
			}
			return err
		})
		if err != nil && !failing {
			s.log.Error("the use of tokens cannot be written; the store tries again", zap.Error(err))
		}
		failing = err != nil
		if done != nil {
			done <- err
		}
		if closing {
			return
		}
	}
}

// maxSettling is longer than a request needs from finding a count to adding to it.
const maxSettling = 100 * time.Millisecond

// FlushUse writes the known usage of tokens now. After an error the figures stay in memory, and the
// store tries again later.
func (s *Store) FlushUse(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case s.figures.wake <- done:
		return <-done
	case <-s.figures.ended:
		return errors.New("the store is closed")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// figuresPerChange limits how long one transaction with figures locks the database.
const figuresPerChange = 500

func (s *Store) writeFigures(ctx context.Context) error {
	type row struct {
		user, token string
		usage
	}
	var rows []row
	s.figures.mu.Lock()
	for user, tokens := range s.figures.pending {
		for token, u := range tokens {
			// A usage row that is already on disk would make recordUse skip the audit
			// record of the first use.
			if !s.pendingFirst.has(token) {
				rows = append(rows, row{user, token, u})
			}
		}
	}
	s.figures.mu.Unlock()
	// Tokens with neighbouring ids share pages.
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.token, b.token) })
	for batch := range slices.Chunk(rows, figuresPerChange) {
		err := func() error {
			if err := s.lock(ctx); err != nil {
				return err
			}
			defer s.unlock()
			if err := s.inPlace(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, changeTimeout)
			defer cancel()
			sqlTx, err := s.write.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer sqlTx.Rollback()
			w, err := newUsageWriter(ctx, sqlTx)
			if err != nil {
				return err
			}
			for _, r := range batch {
				if err := w.add(ctx, r.user, r.token, r.usage); err != nil {
					return err
				}
			}
			// This lock makes the commit and the removal from pending one step for
			// inReadWithUse.
			s.figures.writing.Lock()
			defer s.figures.writing.Unlock()
			if err := sqlTx.Commit(); err != nil {
				return err
			}
			s.figures.written++
			s.figures.mu.Lock()
			defer s.figures.mu.Unlock()
			for _, r := range batch {
				delete(s.figures.pending[r.user], r.token)
				if len(s.figures.pending[r.user]) == 0 {
					delete(s.figures.pending, r.user)
				}
			}
			return nil
		}()
		if err != nil {
			return fmt.Errorf("writing the use of tokens: %w", err)
		}
	}
	return nil
}

// usageWriter adds to the figures of tokens in one transaction. Its statements are prepared,
// because parsing them for each token took most of the time.
type usageWriter struct {
	read, write, active *sql.Stmt
}

func newUsageWriter(ctx context.Context, q *sql.Tx) (w usageWriter, err error) {
	for stmt, text := range map[**sql.Stmt]string{
		&w.read: `
			SELECT last_used_at, last_used_ip, use_count, used_from, used_rules
			FROM tokens WHERE id = $1 AND service_user_id = $2`,
		&w.write: `
			UPDATE tokens
			SET last_used_at = $2, last_used_ip = $3, use_count = $4, used_from = $5, used_rules = $6
			WHERE id = $1`,
		&w.active: `UPDATE service_users SET last_active_at = $2 WHERE id = $1 AND last_active_at < $2`,
	} {
		if *stmt, err = q.PrepareContext(ctx, text); err != nil { // the end of the transaction closes it
			return w, err
		}
	}
	return w, nil
}

func (w *usageWriter) add(ctx context.Context, user, token string, u usage) error {
	var now usage
	var from, rules string
	err := w.read.QueryRowContext(ctx, token, user).Scan(&now.last, &now.lastIP, &now.count, &from, &rules)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // the token was purged since its use
	}
	if err == nil {
		err = errors.Join(fromJSON(from, &now.from), fromJSON(rules, &now.rules))
	}
	if err != nil {
		return err
	}
	now.merge(u)
	if _, err := w.write.ExecContext(ctx, token, now.last, now.lastIP, now.count, toJSON(now.from),
		toJSON(now.rules)); err != nil {
		return err
	}
	_, err = w.active.ExecContext(ctx, user, now.last)
	return err
}

// inReadWithUse is like inRead, for a function that adds figures in memory to figures on disk. It
// repeats the read, up to three times, when figures were written meanwhile, because these would
// count twice or not at all. If each of three reads takes longer than the interval between two
// writes, it returns the last result.
func inReadWithUse[T any](ctx context.Context, s *Store, by Actor, f func(*tx) (T, error)) (v T, err error) {
	for range 3 {
		writes := s.figures.writes()
		if v, err = inRead(ctx, s, by, f); err != nil || s.figures.writes() == writes {
			break
		}
	}
	return v, err
}

// withUse adds the usage that is not on disk yet to tokens of a service user. A change or
// [inReadWithUse] must have read the tokens.
func (s *Store) withUse(userID string, tokens ...*Token) {
	pending := s.figures.of(userID)
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
	for _, use := range s.figures.of(u.ID) {
		if at := fromUnix(use.last); at.After(u.LastActiveAt) {
			u.LastActiveAt = at
		}
	}
}
