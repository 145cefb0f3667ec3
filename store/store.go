// Package store keeps service users, their tokens, permission groups and the
// audit trail in a SQL database, and shows them as an [access.Directory].
//
// It knows records and their persistence, and no HTTP. Start with [Open]. Every
// exported method that changes something is one transaction: the rows, an audit
// record, and revision + 1. When it returns without an error the change is on
// disk and in the directory, so that it holds for the next request.
//
// SQL stands at the call, with its Scan beneath. Statements are written once
// for SQLite and PostgreSQL.
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

// Options are what a store needs to know beside its place. The zero value is
// good for tests.
type Options struct {
	Peppers      access.Peppers   // hash new secrets and verify old ones
	DefaultGroup string           // the name of a group that every service user is in; "" is none
	TokenTTL     time.Duration    // lifetime of a token that names none; 0 is the longest
	MaxTokenTTL  time.Duration    // the longest lifetime of a token; 0 is unlimited
	UseInterval  time.Duration    // how often the use of tokens is written; 0 is 10 s
	Retention    time.Duration    // how long a deleted service user can be brought back; 0 is 30 days
	MaxStaleness time.Duration    // how long to answer without having found the store readable; 0 is for ever
	Poll         time.Duration    // how often to look for changes of other processes; 0 is 5 ms
	Existing     bool             // refuse a path where there is no store, with fs.ErrNotExist, instead of making one
	Now          func() time.Time // nil is time.Now
	Log          *zap.Logger      // nil is silence
}

// defaultTTL is the lifetime of a token that names none; 0 is unlimited.
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

	turnTimeout   = 10 * time.Second // until a change has its turn
	changeTimeout = 30 * time.Second // of one transaction, whatever the caller's context says
)

// Store is an open store. Its methods may be called from many goroutines.
type Store struct {
	path      string      // absolute
	file      os.FileInfo // what was at the path when it was opened
	opts      Options
	log       *zap.Logger
	now       func() time.Time // clock.Now
	read      *sql.DB
	write     *sql.DB       // one connection
	writing   chan struct{} // holds one value while nobody changes the store or the directory
	loaded    loaded        // what directory holds; belongs to who took the value out of writing
	directory atomic.Pointer[access.Directory]
	changed   atomic.Pointer[func()] // told when the directory is another one
	fault     atomic.Pointer[string] // what the last poll said; nil is well
	checked   atomic.Int64           // when the last poll was that went well, in Unix nanoseconds
	begun     time.Time              // with a monotonic reading
	fresh     atomic.Int64           // the same since begun, in nanoseconds: clocks that are set do not count
	stale     atomic.Bool
	panics    atomic.Int64
	uses      firstUses
	figures   figures
	attempts  attempts
	head      atomic.Pointer[position] // of what directory holds
	logged    atomic.Pointer[logPair]  // while the watcher has them open; nil is not known
	clock     wall
	instance  string // of the database
	noted     Mark   // beside the database; belongs to keepSeen, like the two below
	noting    once
	clockBack bool
	stop      context.CancelFunc
	stopped   sync.WaitGroup
}

// Create makes an empty store at path, unless there is a file. It reports whether it
// has made one.
func Create(ctx context.Context, path string, now time.Time) (made bool, err error) {
	place, err := resolve(path)
	if err == nil {
		err = hasDirectory(place)
	}
	if _, missing := os.Lstat(place); err == nil && missing != nil {
		ofdLocking()
		made, err = createSQLite(ctx, place, now)
	}
	if err != nil {
		return false, fmt.Errorf("making the store %q: %w", path, err)
	}
	return made, nil
}

// Open opens the SQLite database at path and starts to watch it. A file that
// does not exist is made, unless opts say Existing; a file that exists must be ours: an empty file,
// another program's database and one of a newer version are refused and left
// alone.
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
	if s.read, s.write, s.file, err = openSQLite(ctx, place, s.now(), s.log, opts.Existing, s.takeUp); err != nil {
		return nil, fmt.Errorf("opening the store %q: %w", path, withRecovery(err, place))
	}
	if s.opts.Retention <= 0 {
		s.opts.Retention = defaultRetention
	}
	s.uses.begin()
	s.figures.begin()
	s.install(loaded{directory: access.NewDirectory(opts.Peppers, opts.DefaultGroup)})
	s.writing <- struct{}{}
	if err := s.refresh(ctx); err != nil {
		s.closeDBs()
		return nil, fmt.Errorf("loading the store %q: %w", path, withRecovery(damage(err), place))
	}
	s.tellOfClock()
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

// Close stops watching and closes the database. Requests go on being answered
// from the directory that they hold. To close again does nothing.
func (s *Store) Close() error {
	s.stop()
	s.stopped.Wait()
	return s.closeDBs()
}

func (s *Store) closeDBs() error {
	return errors.Join(s.read.Close(), s.write.Close())
}

// Path returns the place of the database.
func (s *Store) Path() string { return s.path }

// Directory returns what requests are checked against at this instant. It never
// waits.
func (s *Store) Directory() *access.Directory { return s.directory.Load() }

// OnChange has f called after each change of the directory, and when it becomes
// stale. f must return at once. There is one listener; nil ends it.
func (s *Store) OnChange(f func()) { s.changed.Store(&f) }

// Now returns the instant by the store's clock, which never goes back by a second:
// what has expired stays so when the clock of the machine jumps, and after a restart.
func (s *Store) Now() time.Time { return s.now() }

// Latest returns the latest time that the store's clock has shown, in Unix seconds,
// without a look at it.
func (s *Store) Latest() int64 { return s.clock.last.Load().shown.Unix() }

// Fault returns why the store could not be read at the last attempt, or "".
func (s *Store) Fault() string {
	if f := s.fault.Load(); f != nil {
		return *f
	}
	return ""
}

// Checked returns when the store was last found to hold nothing newer than the
// directory.
func (s *Store) Checked() time.Time { return time.Unix(0, s.checked.Load()) }

// Stale reports whether the store has not been found readable for longer than
// MaxStaleness, so that nothing may be decided on the directory any more. It waits
// for nothing and reads no clock.
func (s *Store) Stale() bool { return s.stale.Load() }

// Age returns how long ago the store was last found readable.
func (s *Store) Age() time.Duration {
	return max(s.clock.read().Sub(s.begun)-time.Duration(s.fresh.Load()), 0)
}

// Panics returns how many mistakes of the program its background work survived.
func (s *Store) Panics() int64 { return s.panics.Load() }

// watchAge tells when the directory becomes too old. It does nothing else, since
// whoever reads the store may hang.
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

// setStale remembers whether the directory is too old, and tells when that changes.
func (s *Store) setStale(stale bool) {
	if s.stale.Swap(stale) == stale {
		return
	}
	if stale {
		s.log.Error("the store was not readable for longer than max_staleness; no request is let through until it is",
			zap.String("store", s.path), zap.Duration("max_staleness", s.opts.MaxStaleness), zap.String("fault", s.Fault()))
	}
	_ = s.safely("telling of a stale directory", func() error { s.announce(); return nil })
}

// safely does a part of the work in the background. A panic is an error of it: the
// work goes on with the next part.
func (s *Store) safely(what string, do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.panics.Add(1)
			s.log.Error("a mistake in the program; please report it", zap.String("while", what), zap.Any("panic", r), zap.Stack("stack"))
			err = fmt.Errorf("%s: a mistake in the program: %v", what, r)
		}
	}()
	return do()
}

// tx is a change in the making.
type tx struct {
	*sql.Tx
	store     *Store
	ctx       context.Context
	by        Actor
	now       time.Time         // whole seconds, UTC
	directory *access.Directory // as it is before the change
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

// lock waits for its turn to change the store or the directory.
func (s *Store) lock(ctx context.Context) error {
	select {
	case <-s.writing:
		if ctx.Err() == nil {
			return nil
		}
		s.unlock() // both were ready
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

// turn is lock for a change, which does not wait for ever: while another process
// holds the database, those before it may take seconds each.
func (s *Store) turn(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, turnTimeout, errBusy)
	defer cancel()
	return s.lock(ctx)
}

func (s *Store) unlock() { s.writing <- struct{}{} }

// inPlace reports an error when the database's file is not at its place any
// more. The file that is open would go on taking changes, which nobody would
// find again.
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

// logInPlace reports an error when the log of the database or its index are not at
// their places, as they are for as long as anybody has the database open. What is
// written into a log that was taken away is gone with the next start.
func (s *Store) logInPlace() error {
	_, err := s.statLog()
	return err
}

// logPair is the log of a database and its index.
type logPair [2]os.FileInfo

// statLog is logInPlace for who wants to know which files they are.
func (s *Store) statLog() (files logPair, err error) {
	known := s.logged.Load()
	for i, suffix := range []string{"-wal", "-shm"} {
		files[i], err = os.Stat(s.path + suffix)
		if err == nil && known != nil && !os.SameFile(files[i], known[i]) {
			err = errors.New("another file has taken its place")
		}
		if err != nil {
			return files, fmt.Errorf("%w: %q, which belongs to it; put it back, or restart: %w", errGone, s.path+suffix, err)
		}
	}
	return files, nil
}

// install puts a directory in force.
func (s *Store) install(next loaded) {
	if s.loaded == next {
		return
	}
	s.loaded = next
	s.head.Store(&next.position)
	s.directory.Store(next.directory)
	s.announce()
}

// announce tells the listener that requests may be answered otherwise than before.
func (s *Store) announce() {
	if f := s.changed.Load(); f != nil && *f != nil {
		(*f)()
	}
}

// change runs one transaction: what f does, its audit records, revision + 1.
// The new directory is built inside of it, so a change that could not be
// enforced is rolled back, and one that is committed holds at once. When f
// writes no audit record nothing is changed.
func (s *Store) change(ctx context.Context, by Actor, f func(*tx) error) (err error) {
	by.Name = access.MaskSecrets(by.Name) // it is kept, and goes to the log
	if err := s.turn(ctx); err != nil {
		return fmt.Errorf("waiting for another change: %w", err)
	}
	defer s.unlock()
	if err := s.inPlace(); err != nil {
		return err
	}
	// What failed to reach the disk is not tried again on the same connection: it
	// might be said to be there although it is not.
	defer func() {
		if isIO(err) {
			s.write.SetMaxIdleConns(0)
			s.write.SetMaxIdleConns(1)
		}
	}()
	// The caller may hang up at any moment; the change is then made or not, but
	// never left in between.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()

	if s.Fault() != "" {
		// What the connection for writing remembers may hide that the file is damaged:
		// the change would be acknowledged, and gone with the next start.
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
	before, err := s.load(ctx, sqlTx) // another process may have changed it
	if err != nil {
		return fmt.Errorf("building the directory: %w", err)
	}
	s.install(before)
	t := &tx{
		Tx: sqlTx, store: s, ctx: ctx, by: by, now: s.now().UTC().Truncate(time.Second),
		directory: before.directory, revision: before.revision + 1,
	}
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

// finish puts a change in force: when its directory can be built, and it is on disk.
func (s *Store) finish(t *tx) error {
	next, err := s.load(t.ctx, t.Tx)
	if err != nil {
		return fmt.Errorf("building the directory: %w", err)
	}
	if err := t.Commit(); err != nil {
		return fmt.Errorf("%w: committing: %w", ErrUncertain, errors.Join(err, t.ctx.Err()))
	}
	s.install(next)
	s.tell(t.events)
	return nil
}

// refresh brings the directory up to what the database holds.
func (s *Store) refresh(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	return s.reload(ctx)
}

// reload is refresh for who has the turn.
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

// watch looks for changes that another process made to the same file. PRAGMA
// data_version is a counter in shared memory that moves with every commit of
// another connection. It is asked for when the log was written to, and every tenth
// of a second in any case.
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
			// A query that is cancelled gives its connection back some time later;
			// Close has to find none in use.
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
				conn, seen = c, -1 // data_version is relative to a connection
			}
			var version int64
			// Two hundred times a second: without an end in its context the driver needs
			// no goroutine to watch over it.
			if err := conn.QueryRowContext(context.Background(), `PRAGMA data_version`).Scan(&version); err != nil {
				s.logged.Store(nil)
				conn.Close()
				conn = nil
				return err
			}
			// While the connection has them open, nobody makes them anew.
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
		// A connection that was opened while another file stood there still reads that
		// one, whatever has come back since. A new one would make the log anew, so the
		// right one has to be there.
		if err != nil && !errors.Is(err, errGone) && s.inPlace() == nil && s.logInPlace() == nil && time.Since(renewed) > renewInterval {
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

// renewInterval is how often connections are opened anew while the store cannot be
// read.
const renewInterval = time.Second

// logFile is the write-ahead log as it was at the last look.
type logFile struct {
	modified time.Time
	size     int64
	looked   time.Time
}

const (
	// maxUnlooked is how long it is believed that nothing else can have happened.
	maxUnlooked = 100 * time.Millisecond
	// minSettled is longer than the steps in which file systems count time, so that
	// a file that was not modified since has another time when it is.
	minSettled = 50 * time.Millisecond
)

// unchanged reports whether nothing can have been committed since it last said
// no: a stat costs a tenth of a query.
func (l *logFile) unchanged(path string) bool {
	now := time.Now()
	info, err := os.Stat(path)
	if err == nil && info.ModTime().Equal(l.modified) && info.Size() == l.size && now.Sub(l.looked) < maxUnlooked && l.looked.Sub(l.modified) > minSettled {
		return true
	}
	l.looked = now
	if err == nil {
		l.modified, l.size = info.ModTime(), info.Size()
	}
	return false
}

// report remembers the state of the store and logs when it changes.
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
		s.log.Info("the store can be read again", zap.String("store", s.path), zap.Int64("revision", s.Directory().Revision()))
	case err != nil && err.Error() != before:
		text := err.Error()
		s.fault.Store(&text)
		s.log.Error("the store cannot be read; requests are answered from what was read last",
			zap.String("store", s.path), zap.Int64("revision", s.Directory().Revision()), zap.Error(err))
	}
}
