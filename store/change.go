package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// tx is a transaction: a change in progress or, in inRead, a read.
type tx struct {
	*sql.Tx
	store     *Store
	ctx       context.Context
	by        Actor
	now       time.Time         // whole seconds, UTC
	directory *access.Directory // the directory before the change
	next      *access.Directory // the directory after the change, if finish has built it
	revision  int64             // the number of this change
	events    []AuditEvent      // audit records, which writeTrail writes
	head      AuditHead         // the last of them, or of the trail before
	dryRun    bool              // finish does everything but the commit
	issued    []string          // the ids of the tokens made
	again     []*Issued         // the answer to an earlier request with the same idempotency key
}

// exec runs a statement. what names its purpose in an error, for example "writing the rule".
func (t *tx) exec(what, query string, args ...any) error {
	if _, err := t.ExecContext(t.ctx, query, t.database().arguments(args)...); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// rowsAtOnce is how many rows one statement writes. A statement can have 32,766 arguments.
const rowsAtOnce = 500

// execRows runs a statement for rows of texts, numbers and booleans: ROWS in it is the place of
// ($1, $2), ($3, $4). PostgreSQL takes their types from the first row, and those of parameters are
// TEXT.
func (t *tx) execRows(what, query string, rows [][]any) error {
	for some := range slices.Chunk(rows, rowsAtOnce) {
		var args params
		texts := make([]string, len(some))
		for i, row := range some {
			places := make([]string, len(row))
			for j, v := range row {
				places[j] = args.add(v)
				if _, number := v.(int64); number && i == 0 {
					places[j] = `CAST(` + places[j] + ` AS BIGINT)`
				}
			}
			texts[i] = `(` + strings.Join(places, ", ") + `)`
		}
		if err := t.exec(what, strings.Replace(query, "ROWS", strings.Join(texts, ", "), 1), args...); err != nil {
			return err
		}
	}
	return nil
}

// execAll runs several statements with the same argument.
func (t *tx) execAll(what string, arg any, statements ...string) error {
	for _, statement := range statements {
		if err := t.exec(what, statement, arg); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) query(query string, args ...any) (*sql.Rows, error) {
	return t.QueryContext(t.ctx, query, t.database().arguments(args)...)
}

func (t *tx) row(query string, args ...any) *sql.Row {
	return t.QueryRowContext(t.ctx, query, t.database().arguments(args)...)
}

func (t *tx) newID(prefix string) string { return newID(prefix, t.store.Now()) }

// lock takes the turn to change the store or the directory, or returns an error when ctx ends.
func (s *Store) lock(ctx context.Context) error {
	select {
	case <-s.writing:
		if ctx.Err() == nil {
			return nil
		}
		s.unlock() // both cases were ready, and select chose this one
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

// turn is lock with a limit: it fails with errBusy after timeouts.turn. While another process has the
// database locked, each earlier change may take seconds.
func (s *Store) turn(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.opts.timeouts.turn, errBusy)
	defer cancel()
	return s.lock(ctx)
}

func (s *Store) unlock() { s.writing <- struct{}{} }

// install puts a directory in force. The caller must have the turn.
func (s *Store) install(next *loaded) {
	if s.inForce.Load() != next {
		s.copy.follow(next)
		s.inForce.Store(&loaded{position: next.position, directory: next.directory}) // without the changes
		if s.opts.Rebuilt != nil {
			s.opts.Rebuilt(next.took)
		}
		s.announce()
	}
}

// changeable returns an error if this node changes nothing.
func (s *Store) changeable() error {
	if s.opts.ReadOnly {
		return &Error{Kind: ErrReadOnly, Msg: "this node is read-only; ask another one, or take read_only out of its configuration"}
	}
	return nil
}

// change runs one transaction: the statements of f, its audit records, and revision + 1. It builds
// the new directory inside the transaction. So a change that cannot be enforced is rolled back, and
// a committed change applies at once. If f writes no audit record, change rolls back.
//
// After a fault of the connection to the database, change calls f again, in another transaction. So f
// assigns its results, and appends nothing to those of an earlier call.
func (s *Store) change(ctx context.Context, by Actor, f func(*tx) error) (err error) {
	if err := s.changeable(); err != nil {
		return err
	}
	by.Name = access.MaskSecrets(storable(by.Name)) // the name goes to the audit trail and the log
	if err := s.turn(ctx); err != nil {
		return fmt.Errorf("waiting for another change: %w", err)
	}
	defer s.unlock()
	if err := s.inPlace(); err != nil {
		return err
	}
	// After an error of the disk the connection is closed. On the same connection SQLite may
	// believe pages to be on disk that are not.
	defer func() {
		if isIO(err) {
			dropIdle(s.write)
		}
	}()
	// The caller may hang up at any moment. WithoutCancel makes the change independent of that.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.timeouts.change)
	defer cancel()

	for tries := 1; ; tries++ {
		err := s.tryChange(ctx, by, f)
		if err == nil || tries == changeTries || !s.passing(err) || ctx.Err() != nil {
			return err
		}
		time.Sleep(jitter(changePause))
	}
}

const (
	changeTries = 3
	changePause = 50 * time.Millisecond
)

// tryChange does the work of change in one transaction.
func (s *Store) tryChange(ctx context.Context, by Actor, f func(*tx) error) error {
	sqlTx, err := s.beginChange(ctx)
	if err != nil {
		return err
	}
	defer sqlTx.Rollback()
	before, err := s.load(ctx, sqlTx) // another process may have changed the store
	if err != nil {
		return fmt.Errorf("building the directory: %w", err)
	}
	s.install(before)
	t := &tx{
		Tx: sqlTx, store: s, ctx: ctx, by: by, now: s.Now().UTC().Truncate(time.Second),
		directory: before.directory, revision: before.revision + 1, head: AuditHead{before.seq, before.hash},
	}
	// The directory is up to date now; the scope was determined before the turn.
	if err := t.renewScope(); err != nil {
		return err
	}
	if err := t.findKey(); err != nil {
		return err
	}
	if err := f(t); err != nil || len(t.events) == 0 {
		return err
	}
	if err := t.keepKey(); err != nil {
		return err
	}
	if err := t.writeTrail(); err != nil {
		return err
	}
	return s.finish(t)
}

// finish builds the directory of a change, commits the change, and puts the directory in force. A dry
// run ends before the commit.
func (s *Store) finish(t *tx) error {
	next, err := s.load(t.ctx, t.Tx)
	if err != nil {
		return fmt.Errorf("building the directory: %w", err)
	}
	if t.next = next.directory; t.dryRun {
		return nil // the caller rolls back
	}
	if err := s.commit(t); err != nil {
		return err
	}
	s.install(next)
	s.logAudit(t.events)
	s.notifyAudit(t.events)
	return nil
}

// refresh loads the changes in the database into the directory.
func (s *Store) refresh(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	return s.reload(ctx, s.read)
}

// reload is like refresh, for a caller that has the turn. db is the database, or a connection to
// it.
func (s *Store) reload(ctx context.Context, db interface {
	BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
}) error {
	sqlTx, err := db.BeginTx(ctx, snapshot)
	if err != nil {
		return err
	}
	defer sqlTx.Rollback()
	next, err := s.load(ctx, sqlTx)
	if err != nil {
		return err
	}
	s.install(next)
	return nil
}
