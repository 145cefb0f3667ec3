package caddymodule

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/admin/console"
	"github.com/serviceusers/caddy-service-users/store"
)

// shared is a store that several configurations share. Only the first of them opens it.
type shared struct {
	path      string // of the store; a URL may contain a password
	opts      store.Options
	throttle  Throttle
	decisions int // the number of refusals to keep

	once    sync.Once
	ready   chan struct{} // closed when the start is over
	err     error         // the error of the start
	live    atomic.Pointer[liveStore]
	fault   atomic.Pointer[error] // why the store is not open yet
	node    *os.File              // has the id of this node
	cancel  context.CancelFunc    // ends the attempts to open the store
	opening sync.WaitGroup
}

// liveStore is an open store with the services that use it.
type liveStore struct {
	store    *store.Store
	api      *admin.API
	console  *console.Console
	recall   *access.Recall
	streams  *streams
	throttle *access.Throttle // nil is off
}

// failedLogin logs, counts and remembers a failed login, and returns the refusal: 401, or 429 with the time to wait
// while the rate is too high. For the throttle, the address of a trusted proxy does not count, since all clients
// behind the proxy share it. A request without a credential is not an attempt.
//
// Programs such as fail2ban read the line: its message and its fields, in this order, stay. A line
// with a fault has one more field.
func (l *liveStore) failedLogin(
	log *zap.Logger, r *http.Request, a login, address netip.Addr,
) refusal {
	refused := refusal{status: http.StatusUnauthorized, reason: a.reason}
	kept := access.Recalled{Status: http.StatusUnauthorized, Reason: a.reason}
	kept.Action.Address = address
	login, why := access.ReadLogin(a.value, a.bearer, a.reason)
	kept.Why = why
	if a.reason > access.WrongSecret { // the secret is right, so it names its service user
		if u, t := l.store.Directory().FindDigest(sha256.Sum256([]byte(a.Secret))); u != nil {
			login, kept.TokenID = cmp.Or(login, u.ID), t.ID
			refused.user, refused.token = u.ID, t.ID
		}
	}
	level := zap.InfoLevel
	if a.reason == access.NoCredential {
		level = zap.DebugLevel // a client that waits for the challenge begins so
	}
	if line := log.Check(level, "authentication failed"); line != nil {
		fields := []zap.Field{
			zap.Stringer("client_ip", address), zap.Stringer("reason", a.reason),
			zap.String("login", access.MaskLogin(login)),
		}
		if kept.Why != "" {
			fields = append(fields, zap.String("why", kept.Why))
		}
		line.Write(fields...)
	}
	counter := metrics.reasons[a.reason]
	if l.throttle != nil && a.reason != access.NoCredential {
		if varsOf(r).fromTrustedProxy() && address == peerAddress(r) {
			address = netip.Addr{}
		}
		if wait := l.throttle.Fail(login, address, l.store.Now()); wait > 0 {
			kept.Status, counter = http.StatusTooManyRequests, metrics.throttled
			refused.status, refused.retryAfter = kept.Status, wait
		}
	}
	counter.Inc()
	l.remember(r, login, kept)
	refused.candidate = login
	return refused
}

// maxFailedPath bounds the path that is kept of a request without a decision id, in bytes: strangers
// choose it, and masking its secrets takes time.
const maxFailedPath = 256

// remember keeps a refusal without a decision id, if it has a login. A refusal whose login nobody has
// is kept too, for the user "", so that it takes the same time.
func (l *liveStore) remember(r *http.Request, login string, kept access.Recalled) {
	if login == "" {
		return
	}
	path := rawPath(r)
	if !strings.HasPrefix(path, "/") { // an absolute URL may contain a password
		path = r.URL.Path
	}
	path = strings.ToValidUTF8(path[:min(len(path), maxFailedPath)], "")
	kept.UserID, kept.At = l.store.Directory().UserID(login), l.store.Now()
	kept.Action.Method, kept.Action.Path = r.Method, access.MaskSecrets(path)
	kept.Action.Host, _ = access.CheckHost(r.Host)
	l.recall.Keep(kept)
}

// start opens the store. If a database cannot be opened at the start of Caddy, start logs the error and
// goes on to try, so that other sites come up. Requests to sites with service users get 503 until then.
func (s *shared) start() error {
	s.once.Do(func() {
		defer close(s.ready)
		if store.IsURL(s.path) {
			s.opts.NodeID, s.node = nodeID(s.opts.NodeName, s.opts.Log)
		}
		if !s.mayWait() {
			s.err = s.open(context.Background())
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		s.cancel = cancel
		first := make(chan error)
		s.opening.Go(func() { s.keepOpening(ctx, first) })
		select {
		case s.err = <-first:
		case <-time.After(bootWait): // a database that accepts connections and does not answer
		}
	})
	return s.err
}

// mayWait reports whether the configuration may start without its store. A reload must open the store,
// unless the configuration in force waits for the same one.
func (s *shared) mayWait() bool {
	if !store.IsURL(s.path) || caddy.ActiveContext().Context == nil {
		return store.IsURL(s.path)
	}
	app, err := running()
	return err == nil && app.shared != nil && app.shared.path == s.path && app.shared.live.Load() == nil
}

// keepOpening tries to open the store until it is open or ctx ends. first gets the result of the first
// attempt: nil, or an error that fails the start, since only people can correct it.
func (s *shared) keepOpening(ctx context.Context, first chan<- error) {
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		err, fatal := s.open(ctx), error(nil)
		if errors.Is(err, store.ErrNotOurs) || errors.Is(err, store.ErrNewer) {
			fatal = err
		}
		if err != nil && s.fault.Load() == nil && ctx.Err() == nil {
			shown, _ := store.Shown(s.path)
			notify(store.EventDegraded, map[string]any{
				"store": shown, "node": s.opts.NodeName, "revision": int64(0), "source": "", "as_of": "", "error": err.Error(),
			})
		}
		if err != nil {
			s.fault.Store(&err)
		}
		select {
		case first <- fatal:
			if fatal != nil {
				return
			}
		case <-s.ready:
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		wait := pause*4/5 + rand.N(pause*2/5)
		s.opts.Log.Error("the store cannot be opened; sites with service users answer 503, and Caddy tries again",
			zap.Duration("retry_in", wait.Round(time.Millisecond)), zap.Error(err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// open opens the store and starts the services that use it.
func (s *shared) open(ctx context.Context) error {
	shown, err := store.Shown(s.path)
	if err != nil {
		return err
	}
	before, users := "", 0
	if live := storeInForce(); live != nil {
		before, users = live.store.Path(), live.store.Directory().Len()
	}
	opts := s.opts
	opts.Existing = users > 0
	if store.IsURL(s.path) {
		opts.CopyDir = copyDir(opts.NodeName, shown)
	}
	if !opts.Existing && filepath.Dir(s.path) == caddy.AppDataDir() {
		if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
			return err
		}
	}
	recall := access.NewRecall(s.decisions)
	opts.Refusals = recall
	opts.Rebuilt = func(took time.Duration) { metrics.rebuilds.Observe(took.Seconds()) }
	db, err := store.Open(ctx, s.path, opts)
	if opts.Existing && errors.Is(err, fs.ErrNotExist) {
		way := "name the right file, or put it back. To go on with an empty store " +
			"on purpose, make it first: caddy service-user --store " + store.ShellWord(shown) + " --create"
		if store.IsURL(s.path) {
			way = "name the right database and schema. To go on with an empty store on purpose, restart Caddy"
		}
		return fmt.Errorf("the store %q does not exist, and a new one would lock out the %d service users "+
			"of the store in force, %q; %s", shown, users, before, way)
	}
	if err != nil {
		return err
	}
	name := opts.DefaultGroup
	if name != "" && len(db.Directory().GroupIDs([]string{name})) == 0 {
		opts.Log.Warn("no permission group has the name of default_group; "+
			"the setting takes effect once there is one", zap.String("default_group", name))
	}
	var warnings []string
	if !store.IsURL(s.path) {
		warnings, err = store.StorageWarnings(s.path)
	}
	for _, warning := range warnings {
		opts.Log.Warn("the store is on unsuitable storage",
			zap.String("store", shown), zap.String("why", warning))
	}
	if err != nil {
		opts.Log.Warn("the storage of the store could not be checked",
			zap.String("store", shown), zap.Error(err))
	}
	recall.Since = db.Now()
	live := &liveStore{
		store: db, api: admin.New(db, recall, opts.Log.Named("admin")), recall: recall,
		streams: newStreams(db),
	}
	live.api.Sites = siteOptions
	live.api.Traffic = &traffic
	watching.Do(func() { watchTraffic(&traffic, metrics.traffic, admin.Minute{}) })
	live.console = console.New(live.api, db.Now, opts.Log.Named("console"))
	if s.throttle.Attempts > 0 {
		live.throttle = access.NewThrottle(s.throttle.Attempts, time.Duration(s.throttle.Within))
	}
	s.live.Store(live)
	source, _ := db.Source()
	opts.Log.Info("store opened", zap.String("store", shown), zap.Int64("revision", db.Directory().Revision()),
		zap.Int("service_users", db.Directory().Len()), zap.String("source", source))
	if source == store.FromDatabase && degraded.Load() {
		notify(store.EventRecovered, db.HealthEvent(""))
	}
	// Reading the service users took more memory than they need from now on.
	if db.Directory().Len() >= manyUsers {
		go debug.FreeOSMemory()
	}
	return nil
}

// storeInForce returns the open store of the configuration in force, or nil.
func storeInForce() *liveStore {
	if app, err := running(); err == nil && app.shared != nil {
		return app.shared.live.Load()
	}
	return nil
}

// manyUsers is the number of service users from which start returns unused memory to the system at
// once. The garbage collector would keep it for the next burst.
const manyUsers = 100_000

// Destruct closes the store once no configuration uses it any more.
func (s *shared) Destruct() (err error) {
	if s.cancel != nil {
		s.cancel()
		s.opening.Wait()
	}
	if live := s.live.Load(); live != nil {
		live.streams.close()
		err = live.store.Close()
		// A read-only store has written no use. The store in force may be its copy.
		if next := storeInForce(); next != nil && next != live && s.opts.ReadOnly {
			next.store.Inherit(live.store)
		}
		s.opts.Log.Info("store closed", zap.String("store", live.store.Path()))
	}
	s.node.Close() // without a file, an error
	return err
}

// notOpen returns why the store is not open.
func (s *shared) notOpen() error {
	if s == nil || s.fault.Load() == nil {
		return errNotOpen
	}
	return *s.fault.Load()
}

// bootWait is the longest time that the start of Caddy waits for a database.
const bootWait = 15 * time.Second

// startupWait is the time that a request waits for a store that is being opened.
const startupWait = 5 * time.Second

// live returns the store that requests of this configuration are checked against, or nil. Caddy may
// start the HTTP server before the app; a request then waits for up to startupWait. If the load
// fails, the request gets the store of the configuration in force.
func (h *storeHandle) live(ctx context.Context) *liveStore {
	if live := h.shared.live.Load(); live != nil {
		return live
	}
	wait := time.NewTimer(startupWait)
	defer wait.Stop()
	select {
	case <-h.shared.ready:
	case <-h.abandoned:
	case <-ctx.Done():
	case <-wait.C:
	}
	if live := h.shared.live.Load(); live != nil {
		return live
	}
	return storeInForce() // this store did not open, but the configuration in force can have another one
}
