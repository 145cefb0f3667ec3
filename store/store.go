// Package store keeps service users, their tokens, permission groups and the audit trail in a SQL
// database, and provides them as an [access.Directory].
//
// It knows records and their persistence, but not HTTP. Start with [Open]. Each exported method
// that changes the store is one transaction: the rows, an audit record, and revision + 1. When it
// returns without an error, the change is on disk and in the directory, so it applies to the next
// request.
//
// Each SQL statement is in the Go function that runs it, with its Scan beneath. The same text
// serves SQLite and PostgreSQL.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// Options configure a store. The zero value is good for tests.
type Options struct {
	Peppers      access.Peppers   // hash new secrets and verify old ones
	DefaultGroup string           // the name of a group that contains every service user; "" for none
	TokenTTL     time.Duration    // lifetime of a token that is created without an end; 0 is MaxTokenTTL
	MaxTokenTTL  time.Duration    // the longest lifetime of a token; 0 is unlimited
	UseInterval  time.Duration    // how often the use of tokens is written; 0 is 10 s
	Retention    time.Duration    // how long a deleted service user can be brought back; 0 is 30 days
	MaxStaleness time.Duration    // how long requests are answered after the last successful poll; 0 is for ever
	Poll         time.Duration    // how often to look for changes by other processes; 0 is 5 ms
	Existing     bool             // if the path has no store, fail with fs.ErrNotExist instead of creating one
	Now          func() time.Time // nil is time.Now
	Log          *zap.Logger      // nil logs nothing
}

// defaultTTL returns the lifetime of a token that is created without an end; 0 is unlimited.
func (o *Options) defaultTTL() time.Duration {
	if o.MaxTokenTTL > 0 && (o.TokenTTL == 0 || o.TokenTTL > o.MaxTokenTTL) {
		return o.MaxTokenTTL
	}
	return o.TokenTTL
}

const (
	defaultPoll        = 5 * time.Millisecond
	defaultUseInterval = 10 * time.Second
	defaultRetention   = 30 * 24 * time.Hour

	turnTimeout   = 10 * time.Second // how long a change waits for its turn
	changeTimeout = 30 * time.Second // the longest transaction, whatever the caller's context allows
)

// Store is an open store. Its methods may be called concurrently.
type Store struct {
	path         string      // absolute
	file         os.FileInfo // the file at path when it was opened
	opts         Options
	log          *zap.Logger
	now          func() time.Time // clock.Now
	read         *sql.DB
	write        *sql.DB       // one connection
	writing      chan struct{} // contains a value while no goroutine changes the store or the directory
	loaded       loaded        // directory with its position; only for the goroutine that has the value of writing
	directory    atomic.Pointer[access.Directory]
	changed      atomic.Pointer[func()] // called after a change of directory
	fault        atomic.Pointer[string] // the error of the last poll; nil if it succeeded
	checked      atomic.Int64           // the time of the last successful poll, in Unix nanoseconds
	begun        time.Time              // the time of Open, with a monotonic reading
	fresh        atomic.Int64           // like checked, in nanoseconds since begun, so independent of the date
	stale        atomic.Bool
	panics       atomic.Int64
	pendingFirst firstUses
	figures      figures
	attempts     attempts
	head         atomic.Pointer[position] // the position of directory
	logged       atomic.Pointer[logPair]  // SQLite's log and index while the watcher has them open; nil if unknown
	clock        wall
	instance     string // the id of the store in the database
	onDisk       Mark   // the note beside the database, as far as known; belongs to keepSeen, like the two below
	noteFailure  failureLatch
	clockBack    bool
	stop         context.CancelFunc
	stopped      sync.WaitGroup
}

// Create creates an empty store at path unless there is a file. It reports whether it created one.
func Create(ctx context.Context, path string, now time.Time) (made bool, err error) {
	place, err := resolve(path)
	if err == nil {
		err = hasDirectory(place)
	}
	// Lstat: a link that leads nowhere is a file too, and stays.
	if _, missing := os.Lstat(place); err == nil && missing != nil {
		ofdLocking()
		made, err = createSQLite(ctx, place, now)
	}
	if err != nil {
		return false, fmt.Errorf("making the store %q: %w", path, err)
	}
	return made, nil
}

// Open opens the SQLite database at path and starts to watch it. It creates a missing database,
// unless opts.Existing is set. A file that exists must be a store: Open rejects an empty file,
// another program's database and a store of a newer version, and does not change them.
func Open(ctx context.Context, path string, opts Options) (*Store, error) {
	place, err := resolve(path)
	if err != nil {
		return nil, fmt.Errorf("opening the store %q: %w", path, err)
	}
	s := &Store{path: place, opts: opts, log: opts.Log, writing: make(chan struct{}, 1)}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.clock.read = opts.Now; s.clock.read == nil {
		s.clock.read = time.Now
	}
	s.now = s.clock.Now
	if s.opts.Poll <= 0 {
		s.opts.Poll = defaultPoll
	}
	if s.read, s.write, s.file, err = openSQLite(ctx, place, s.now(), s.log, opts.Existing,
		s.compareWithNote); err != nil {
		return nil, fmt.Errorf("opening the store %q: %w", path, withRecovery(err, place))
	}
	if s.opts.Retention <= 0 {
		s.opts.Retention = defaultRetention
	}
	s.pendingFirst.begin()
	s.figures.begin()
	s.install(loaded{directory: access.NewDirectory(opts.Peppers, opts.DefaultGroup)})
	// The turn can be taken from here on; refresh is the first to take it.
	s.writing <- struct{}{}
	if err := s.refresh(ctx); err != nil {
		s.closeDBs()
		return nil, fmt.Errorf("loading the store %q: %w", path, withRecovery(markDamaged(err), place))
	}
	s.logClock()
	s.begun = s.clock.read()
	s.checked.Store(s.now().UnixNano())
	background, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.stopped.Go(func() { s.watch(background) })
	s.stopped.Go(func() { s.recordUses(background) })
	s.stopped.Go(func() { s.keepFigures(background) })
	s.stopped.Go(func() { s.keepSeen(background) })
	if s.opts.MaxStaleness > 0 {
		s.stopped.Go(func() { s.watchAge(background) })
	}
	return s, nil
}

// Close stops watching and closes the database. Requests can go on using the directory that they
// have. Closing again does nothing.
func (s *Store) Close() error {
	s.stop()
	s.stopped.Wait()
	return s.closeDBs()
}

func (s *Store) closeDBs() error {
	return errors.Join(s.read.Close(), s.write.Close())
}

// Path returns the absolute path of the database.
func (s *Store) Path() string { return s.path }

// Directory returns the directory in force, which requests are checked against. It never blocks.
func (s *Store) Directory() *access.Directory { return s.directory.Load() }

// OnChange sets the listener, which is called after each change of the directory, and when the
// directory becomes stale. f must return at once. There is one listener; nil removes it.
func (s *Store) OnChange(f func()) { s.changed.Store(&f) }

// Now returns the time of the store's clock. That clock never goes back by a second or more,
// neither when the clock of the machine is set back nor after a restart. So expired credentials
// stay expired.
func (s *Store) Now() time.Time { return s.now() }

// Fault returns the error of the last attempt to read the store, or "" if it succeeded.
func (s *Store) Fault() string {
	if f := s.fault.Load(); f != nil {
		return *f
	}
	return ""
}

// Checked returns the time of the last successful poll, that is, the last time at which the
// directory was found to be up to date.
func (s *Store) Checked() time.Time { return time.Unix(0, s.checked.Load()) }

// Stale reports whether the last successful poll is longer ago than Options.MaxStaleness, so that
// the directory must not be used for decisions any more. Stale never blocks and reads no clock.
func (s *Store) Stale() bool { return s.stale.Load() }

// Age returns the time since the last successful poll.
func (s *Store) Age() time.Duration {
	return max(s.clock.read().Sub(s.begun)-time.Duration(s.fresh.Load()), 0)
}

// Panics returns the number of panics in background work, all of which were recovered.
func (s *Store) Panics() int64 { return s.panics.Load() }

// watchAge marks the directory as stale when it becomes too old. It is a goroutine of its own,
// since the one that polls the store may hang.
func (s *Store) watchAge(ctx context.Context) {
	tick := time.NewTicker(min(max(s.opts.MaxStaleness/10, time.Millisecond), time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.setStale(s.Age() > s.opts.MaxStaleness)
	}
}

// setStale sets whether the directory is too old. It logs, and informs the listener, when that
// changes.
func (s *Store) setStale(stale bool) {
	if s.stale.Swap(stale) == stale {
		return
	}
	if stale {
		s.log.Error("the store was not readable for longer than max_staleness; "+
			"no request is let through until it is readable again",
			zap.String("store", s.path), zap.Duration("max_staleness", s.opts.MaxStaleness),
			zap.String("fault", s.Fault()))
	}
	_ = s.safely("announcing a stale directory", func() error { s.announce(); return nil })
}

// safely runs a part of the background work. It turns a panic into an error, so that the work
// continues with the next part. The log names the part as what.
func (s *Store) safely(what string, do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.panics.Add(1)
			s.log.Error("a mistake in the program; please report it", zap.String("while", what),
				zap.Any("panic", r), zap.Stack("stack"))
			err = fmt.Errorf("%s: a mistake in the program: %v", what, r)
		}
	}()
	return do()
}

// tx is a transaction: a change in progress or, in inRead, a read.
type tx struct {
	*sql.Tx
	store     *Store
	ctx       context.Context
	by        Actor
	now       time.Time         // whole seconds, UTC
	directory *access.Directory // the directory before the change
	revision  int64             // the number of this change
	events    []AuditEvent      // audit records written
}

func (t *tx) exec(query string, args ...any) (sql.Result, error) {
	return t.Tx.ExecContext(t.ctx, query, args...)
}

func (t *tx) query(query string, args ...any) (*sql.Rows, error) {
	return t.Tx.QueryContext(t.ctx, query, args...)
}

func (t *tx) row(query string, args ...any) *sql.Row {
	return t.Tx.QueryRowContext(t.ctx, query, args...)
}

func (t *tx) newID(prefix string) string { return newID(prefix, t.store.now()) }

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

// turn is lock with a limit: it fails with errBusy after turnTimeout. While another process has the
// database locked, each earlier change may take seconds.
func (s *Store) turn(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, turnTimeout, errBusy)
	defer cancel()
	return s.lock(ctx)
}

func (s *Store) unlock() { s.writing <- struct{}{} }

// inPlace returns an error if the file of the database is not at its path any more. SQLite would go
// on writing to the open file, and these changes would be lost.
func (s *Store) inPlace() error {
	info, err := os.Stat(s.path)
	switch {
	case err != nil:
	case !os.SameFile(info, s.file):
		err = errors.New("another file has taken its place")
	case info.Size() == 0:
		err = errors.New("the file was emptied")
	}
	if err != nil {
		return fmt.Errorf("%w; put it back, or restart: %w", errGone, err)
	}
	return nil
}

// logInPlace returns an error if the log of the database or its index is not at its path. Both are
// there for as long as a process has the database open. Changes in a log that was removed or
// replaced are lost at the next start.
func (s *Store) logInPlace() error {
	_, err := s.statLog()
	return err
}

// logPair is the log of a database and the index of the log.
type logPair [2]os.FileInfo

// statLog is like logInPlace, and also returns the two files.
func (s *Store) statLog() (files logPair, err error) {
	known := s.logged.Load()
	for i, suffix := range []string{"-wal", "-shm"} {
		files[i], err = os.Stat(s.path + suffix)
		if err == nil && known != nil && !os.SameFile(files[i], known[i]) {
			err = errors.New("another file has taken its place")
		}
		if err != nil {
			return files, fmt.Errorf("%w: %q, which belongs to it; put it back, or restart: %w",
				errGone, s.path+suffix, err)
		}
	}
	return files, nil
}

// install puts a directory in force. The caller must have the turn.
func (s *Store) install(next loaded) {
	if s.loaded == next {
		return
	}
	s.loaded = next
	s.head.Store(&next.position)
	s.directory.Store(next.directory)
	s.announce()
}

// announce calls the listener: requests may now be answered differently.
func (s *Store) announce() {
	if f := s.changed.Load(); f != nil && *f != nil {
		(*f)()
	}
}

// change runs one transaction: the statements of f, its audit records, and revision + 1. It builds
// the new directory inside the transaction. So a change that cannot be enforced is rolled back, and
// a committed change applies at once. If f writes no audit record, change rolls back.
func (s *Store) change(ctx context.Context, by Actor, f func(*tx) error) (err error) {
	by.Name = access.MaskSecrets(by.Name) // the name goes to the audit trail and the log
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
			s.write.SetMaxIdleConns(0)
			s.write.SetMaxIdleConns(1)
		}
	}()
	// The caller may hang up at any moment. WithoutCancel makes the change independent of that.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()

	if s.Fault() != "" {
		// The write connection caches pages, which can hide that the file is damaged. The
		// change would succeed, and be lost at the next start. The reload reads the file.
		if err := s.reload(ctx); err != nil {
			return fmt.Errorf("the store cannot be read: %w", err)
		}
	}
	sqlTx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("beginning a change: %w", err)
	}
	defer sqlTx.Rollback()
	if err := s.logInPlace(); err != nil {
		return err
	}
	before, err := s.load(ctx, sqlTx) // another process may have changed the store
	if err != nil {
		return fmt.Errorf("building the directory: %w", err)
	}
	s.install(before)
	t := &tx{
		Tx: sqlTx, store: s, ctx: ctx, by: by, now: s.now().UTC().Truncate(time.Second),
		directory: before.directory, revision: before.revision + 1,
	}
	// The directory is up to date now; the scope was determined before the turn.
	if err := t.renewScope(); err != nil {
		return err
	}
	if err := f(t); err != nil || len(t.events) == 0 {
		return err
	}
	if _, err := t.exec(`UPDATE meta SET revision = $1`, t.revision); err != nil {
		return fmt.Errorf("counting the revision: %w", err)
	}
	return s.finish(t)
}

// finish builds the directory of a change, commits the change, and puts the directory in force.
func (s *Store) finish(t *tx) error {
	next, err := s.load(t.ctx, t.Tx)
	if err != nil {
		return fmt.Errorf("building the directory: %w", err)
	}
	if err := t.Commit(); err != nil {
		// After a failed commit SQLite may still have written the change to the log.
		return fmt.Errorf("%w: committing: %w", ErrUncertain, errors.Join(err, t.ctx.Err()))
	}
	s.install(next)
	s.logAudit(t.events)
	return nil
}

// refresh loads the changes in the database into the directory.
func (s *Store) refresh(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	return s.reload(ctx)
}

// reload is like refresh, for a caller that has the turn.
func (s *Store) reload(ctx context.Context) error {
	sqlTx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
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

// watch looks for changes that another process made to the same file. PRAGMA data_version is a
// counter in shared memory that increases with every commit of another connection. watch reads it
// when the log was written to, and at least every tenth of a second.
func (s *Store) watch(ctx context.Context) {
	tick := time.NewTicker(s.opts.Poll)
	defer tick.Stop()
	var log logFile
	var conn *sql.Conn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	seen := int64(-1)
	var renewed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if conn != nil && s.Fault() == "" && log.unchanged(s.path+"-wal") {
			continue
		}
		err := s.safely("looking for changes", func() error {
			// A cancelled query returns its connection a little later. Close must not
			// find one in use.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
			defer cancel()
			if err := s.inPlace(); err != nil {
				return err
			}
			if conn == nil {
				c, err := s.read.Conn(ctx)
				if err != nil {
					return err
				}
				conn, seen = c, -1 // values of data_version can be compared on one connection only
			}
			var version int64
			// This query runs up to 200 times a second. For a context that can end, the
			// driver would start a goroutine each time.
			if err := conn.QueryRowContext(context.Background(),
				`PRAGMA data_version`).Scan(&version); err != nil {
				s.logged.Store(nil)
				conn.Close()
				conn = nil
				return err
			}
			// While the connection has both files open, no process creates them again.
			files, err := s.statLog()
			if err != nil {
				return err
			}
			if s.logged.Load() == nil {
				s.logged.Store(&files)
			}
			if version == seen {
				return nil
			}
			if err := s.refresh(ctx); err != nil {
				return err
			}
			seen = version
			return nil
		})
		if ctx.Err() == nil {
			s.report(err)
		}
		// A connection that was opened while another file was at the path still reads that
		// file, even if the right one has come back since. A new connection would create a
		// new log, so it must wait until the right log is there.
		if err != nil && !errors.Is(err, errGone) && s.inPlace() == nil && s.logInPlace() == nil &&
			time.Since(renewed) > renewInterval {
			renewed = time.Now()
			s.logged.Store(nil)
			if conn != nil {
				conn.Close()
				conn = nil
			}
			dropIdle(s.read)
		}
	}
}

// renewInterval is how often the connections are opened again while the store cannot be read.
const renewInterval = time.Second

// logFile is the state of the write-ahead log at the last look.
type logFile struct {
	modified time.Time
	size     int64
	looked   time.Time
}

const (
	// maxUnlooked is the longest time without a look at data_version.
	maxUnlooked = 100 * time.Millisecond
	// minSettled is longer than the steps in which file systems count time, so that
	// a file that was not modified since has another time when it is.
	minSettled = 50 * time.Millisecond
)

// unchanged reports whether nothing can have been committed since it last returned false. It needs
// one stat, which costs a tenth of a query.
func (l *logFile) unchanged(path string) bool {
	now := time.Now()
	info, err := os.Stat(path)
	if err == nil && info.ModTime().Equal(l.modified) && info.Size() == l.size &&
		now.Sub(l.looked) < maxUnlooked && l.looked.Sub(l.modified) > minSettled {
		return true
	}
	l.looked = now
	if err == nil {
		l.modified, l.size = info.ModTime(), info.Size()
	}
	return false
}

// report stores the result of a poll, and logs it when it differs from the one before.
func (s *Store) report(err error) {
	before := s.Fault()
	if err == nil {
		s.checked.Store(s.now().UnixNano())
		s.fresh.Store(int64(s.clock.read().Sub(s.begun)))
		s.setStale(false)
	}
	switch {
	case err == nil && before != "":
		s.fault.Store(nil)
		s.log.Info("the store can be read again", zap.String("store", s.path),
			zap.Int64("revision", s.Directory().Revision()))
	case err != nil && err.Error() != before:
		text := err.Error()
		s.fault.Store(&text)
		s.log.Error("the store cannot be read; requests are answered from the last directory that was read",
			zap.String("store", s.path), zap.Int64("revision", s.Directory().Revision()), zap.Error(err))
	}
}
