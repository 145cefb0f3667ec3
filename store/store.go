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
	"cmp"
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
	Peppers      access.Peppers           // hash new secrets and verify old ones
	DefaultGroup string                   // the name of a group that contains every service user; "" for none
	TokenTTL     time.Duration            // lifetime of a token that is created without an end; 0 is MaxTokenTTL
	MaxTokenTTL  time.Duration            // the longest lifetime of a token; 0 is unlimited
	UseInterval  time.Duration            // how often the use of tokens is written; 0 is 10 s
	Retention    time.Duration            // how long a deleted service user can be brought back; 0 is 30 days
	MaxStaleness time.Duration            // how long requests are answered after the last successful poll; 0 is for ever, in PostgreSQL 1 h
	Poll         time.Duration            // look for changes by other processes this often; 0: when a file changes
	NodeID       string                   // of this process, for its row in PostgreSQL; "" is a new one
	Unlisted     bool                     // this process answers no requests, so it is not among the nodes
	NodeName     string                   // of this machine, for people
	Version      string                   // of the program, for people
	ReadOnly     bool                     // change nothing but this node's own row; implies Existing
	CopyDir      string                   // a directory for the last good copy of a store in PostgreSQL; "" keeps none
	Refusals     *access.Recall           // the memory of refusals, which the store writes once a second; nil is none
	Existing     bool                     // if the path has no store, fail with fs.ErrNotExist instead of creating one
	Now          func() time.Time         // nil is time.Now
	Rebuilt      func(took time.Duration) // called for each new directory in force; must return at once; nil is none
	Log          *zap.Logger              // nil logs nothing

	// Notify is called with the name and the data of an event: a change that this process made, or the beginning or
	// end of a fault. It must return at once. nil ignores all events.
	Notify func(event string, data map[string]any)

	idlePoll    time.Duration // without Poll, how often to look although no file has changed; 0 is 1 s
	refusalPoll time.Duration // how often new refusals are written; 0 is 1 s
	timeouts    timeouts
}

// timeouts are the longest waits of a store; 0 is the usual one.
type timeouts struct {
	turn   time.Duration // of a change, for its turn
	change time.Duration // a transaction of a change or a read, whatever the caller's context allows
	whole  time.Duration // an upgrade, or a read of all rows
	look   time.Duration // a look for changes, and a short question
	idle   time.Duration // of the server, for the next statement of a transaction that writes
	commit time.Duration // a search for a change whose answer was lost

	// lastMoments is how long after MaxStaleness a node may still answer a request: its report may be on the
	// way, and it looks at its age once a second.
	lastMoments time.Duration
}

// filled returns the timeouts with the usual ones in the place of zero.
func (o timeouts) filled() timeouts {
	return timeouts{
		turn:        cmp.Or(o.turn, 10*time.Second),
		change:      cmp.Or(o.change, 30*time.Second),
		whole:       cmp.Or(o.whole, 10*time.Minute),
		look:        cmp.Or(o.look, 5*time.Second),
		idle:        cmp.Or(o.idle, 10*time.Second),
		commit:      cmp.Or(o.commit, 10*time.Second),
		lastMoments: cmp.Or(o.lastMoments, 5*time.Second),
	}
}

// filled returns the options with defaults in the place of zero values that mean them.
func (o Options) filled() Options {
	o.Existing = o.Existing || o.ReadOnly
	o.UseInterval = cmp.Or(max(o.UseInterval, 0), 10*time.Second)
	o.idlePoll = cmp.Or(o.idlePoll, time.Second) // notifications can be lost
	o.Retention = cmp.Or(max(o.Retention, 0), 30*24*time.Hour)
	o.refusalPoll = cmp.Or(o.refusalPoll, time.Second)
	o.timeouts = o.timeouts.filled()
	if o.Refusals == nil || o.ReadOnly {
		o.Refusals = new(access.Recall)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.NodeID = cmp.Or(o.NodeID, newID("node", o.Now()))
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Notify == nil {
		o.Notify = func(string, map[string]any) {}
	}
	return o
}

// TokenTTL returns the lifetime of a token that is created without an end, and the longest lifetime; 0
// is unlimited.
func (s *Store) TokenTTL() (usual, longest time.Duration) {
	return s.opts.defaultTTL(), s.opts.MaxTokenTTL
}

// defaultTTL returns the lifetime of a token that is created without an end; 0 is unlimited.
func (o *Options) defaultTTL() time.Duration {
	if o.MaxTokenTTL > 0 && (o.TokenTTL == 0 || o.TokenTTL > o.MaxTokenTTL) {
		return o.MaxTokenTTL
	}
	return o.TokenTTL
}

// Store is an open store. Its methods may be called concurrently.
type Store struct {
	engine     // the database
	health     // whether the store can be read
	background // the goroutines
	path       string
	opts       Options
	log        *zap.Logger
	node       atomic.Pointer[string] // the id of this process
	clock      wall
	read       *sql.DB
	write      *sql.DB                // one connection
	writing    chan struct{}          // contains a value while no goroutine changes the store or the directory
	inForce    atomic.Pointer[loaded] // changed only by the goroutine that has the value of writing
	copy       *keeper                // of the last good copy; nil for none
	changed    atomic.Pointer[func()] // called after a change of inForce
	uses       recorder
	attempts   attempts
	refusals   refusalQueue
	census     censusTaker
}

// Create creates an empty store at path unless there is a file. It reports whether it created one.
func Create(ctx context.Context, path string, now time.Time) (made bool, err error) {
	place, err := resolve(path)
	if errors.Is(err, errNoFile) {
		return false, err // without the URL, which may have a password
	}
	if err == nil {
		err = hasDirectory(place)
	}
	// Lstat: a link that leads nowhere is a file too, and stays.
	if _, missing := os.Lstat(place); err == nil && missing != nil {
		ofdLocking()
		made, err = createSQLite(ctx, place, now)
	}
	if err != nil {
		return false, fmt.Errorf("making the store %q: %w", path, withRecovery(err, place))
	}
	return made, nil
}

// Open opens a store and starts to watch it for the changes of other processes. path is the path of a
// SQLite database, or the URL of a PostgreSQL database ([IsURL]). Open creates a missing store, unless
// opts.Existing is set. It rejects an empty file, another program's database or schema, and a store
// of a newer version, and does not change them.
func Open(ctx context.Context, path string, opts Options) (*Store, error) {
	opts = opts.filled()
	s := &Store{
		opts: opts, log: opts.Log, clock: wall{read: opts.Now},
		writing: make(chan struct{}, 1), uses: newRecorder(),
		census: censusTaker{asked: make(chan chan struct{})},
	}
	if _, err := Shown(path); err != nil {
		return nil, err
	}
	if IsURL(path) {
		pg, err := newPostgres(path)
		if err != nil {
			return nil, err
		}
		pg.store, path = s, pg.name // without the password
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, opts.timeouts.whole)
		defer cancel()
		s.engine, s.path = pg, path
		s.opts.MaxStaleness = cmp.Or(max(opts.MaxStaleness, 0), time.Hour)
	} else {
		place, err := resolve(path)
		if err != nil {
			return nil, fmt.Errorf("opening the store %q: %w", path, ExplainPath(path, err))
		}
		s.engine, s.path = &sqliteEngine{files: files{path: place}, store: s}, place
	}
	s.node.Store(&s.opts.NodeID)
	s.inForce.Store(&loaded{directory: access.NewDirectory(opts.Peppers, opts.DefaultGroup)})
	// The turn can be taken from here on; refresh is the first to take it.
	s.writing <- struct{}{}
	s.health.clock, s.health.begun = &s.clock, opts.Now()
	var held *loaded
	var head copyHead
	if opts.CopyDir != "" && IsURL(path) {
		s.copy, held, head = newKeeper(s, opts.CopyDir)
	}
	err := error(nil)
	if held != nil {
		err = s.beginFrom(ctx, path, held, head)
	} else if err = s.begin(ctx, path); err != nil && s.copy != nil && s.copy.refused != nil {
		err = fmt.Errorf("%w; the last good copy in %q cannot be used either: %w", err, opts.CopyDir, s.copy.refused)
	} else if err == nil && s.copy != nil && s.copy.refused != nil && !errors.Is(s.copy.refused, errCopyInUse) {
		s.log.Error("the last good copy of the store cannot be used",
			zap.String("directory", opts.CopyDir), zap.Error(s.copy.refused))
	}
	if err != nil {
		s.copy.close()
		s.closeDBs()
		return nil, err
	}
	if opts.ReadOnly {
		s.start(every(time.Minute, s.dropUses))
	} else {
		s.start(s.recordUses, every(opts.UseInterval, s.keepFigures), every(jitter(opts.refusalPoll), s.keepRefusals))
	}
	s.start(s.keepCensus)
	s.start(s.work()...)
	if limit := s.opts.MaxStaleness; limit > 0 {
		s.start(every(min(max(limit/10, time.Millisecond), time.Second), s.watchAge))
	}
	return s, nil
}

// begin opens the database, loads the directory, and makes this process a node.
func (s *Store) begin(ctx context.Context, path string) error {
	if err := s.open(ctx); err != nil {
		return fmt.Errorf("opening the store %q: %w", path, s.advise(err))
	}
	if err := s.refresh(ctx); err != nil {
		return fmt.Errorf("loading the store %q: %w", path, s.advise(markDamaged(err)))
	}
	asOf, err := s.join(ctx)
	if err != nil {
		return fmt.Errorf("loading the store %q: %w", path, s.advise(err))
	}
	s.clock.logBack(s.log, s.older())
	s.report(nil, asOf)
	s.kept()
	s.copy.acknowledge() // of this report: with an earlier one belongs the limit of that time
	s.copy.renew()
	return nil
}

// beginFrom begins with the last good copy, and goes on with it if the database does not answer soon. A
// missing store is not made, since there was one.
func (s *Store) beginFrom(ctx context.Context, path string, held *loaded, head copyHead) error {
	s.opts.Existing = true
	s.inForce.Store(held)
	s.resume(head, s.opts.MaxStaleness)
	ctx, cancel := context.WithTimeout(ctx, s.opts.timeouts.look)
	defer cancel()
	err := s.begin(ctx, path)
	if err == nil || errors.Is(err, ErrNotOurs) || errors.Is(err, ErrNewer) {
		return err
	}
	s.report(err, time.Time{})
	if s.watchAge(ctx); s.Stale() { // which it has logged
		return nil
	}
	s.log.Warn("requests are answered from the last good copy, until the database answers or max_staleness is over",
		zap.String("store", s.path), zap.Int64("revision", held.revision), zap.Time("as_of", s.Checked()),
		zap.Duration("max_staleness", s.opts.MaxStaleness))
	return nil
}

// Close writes each use of a token that [Store.Use] recorded before the call, and the refusals, stops
// watching, and closes the database. An error means that some uses may be lost. Requests can go on using the
// directory that they have. Closing again does nothing.
func (s *Store) Close() (err error) {
	s.closing.Do(func() {
		s.stop()
		err = s.safely("closing the store", func() error {
			err := s.flushAll(context.Background())
			for range refusalsKept / refusalsAtOnce { // a store keeps no more
				if s.keepRefusals(context.Background()); s.refusals.failing.failing {
					break // the database is away
				}
			}
			s.end() // after the first uses, which raise the revision
			return err
		})
		err = errors.Join(err, s.closeDBs())
	})
	return err
}

func (s *Store) closeDBs() error {
	if s.read == nil {
		return nil
	}
	return errors.Join(s.read.Close(), s.write.Close())
}

// Path returns the absolute path of the database file, or the URL of the database without its password.
func (s *Store) Path() string { return s.path }

// Directory returns the directory in force, which requests are checked against. It never blocks.
func (s *Store) Directory() *access.Directory { return s.inForce.Load().directory }

// OnChange sets the listener, which is called after each change of the directory, and when the
// directory becomes stale. f must return at once. There is one listener; nil removes it.
func (s *Store) OnChange(f func()) { s.changed.Store(&f) }

// announce calls the listener: requests may now be answered differently.
func (s *Store) announce() {
	if f := s.changed.Load(); f != nil && *f != nil {
		(*f)()
	}
}

// Now returns the time of the store's clock. That clock never goes back by a second or more,
// neither when the clock of the machine is set back nor, with SQLite, after a restart. So expired
// credentials stay expired. With PostgreSQL it starts at the clock of the machine, since the times of
// other nodes may be wrong; Open compares it with that of the database.
func (s *Store) Now() time.Time { return s.clock.Now() }

// background is the goroutines of a store.
type background struct {
	ctx     context.Context // ends when the store closes
	cancel  context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
	panics  atomic.Int64
}

func (b *background) start(work ...func(context.Context)) {
	if b.cancel == nil {
		b.ctx, b.cancel = context.WithCancel(context.Background())
	}
	for _, f := range work {
		b.running.Go(func() { f(b.ctx) })
	}
}

// every returns work that calls f once per interval.
func every(interval time.Duration, f func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				// Without the end of ctx: a cancelled query returns its connection a little
				// later, and Close must not find one in use.
				f(context.WithoutCancel(ctx))
			}
		}
	}
}

// stop stops all goroutines and waits for them.
func (b *background) stop() {
	b.cancel()
	b.running.Wait()
}

// Panics returns the number of panics in background work, all of which were recovered.
func (b *background) Panics() int64 { return b.panics.Load() }

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
