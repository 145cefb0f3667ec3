// Package caddymodule plugs service users into Caddy. It has the configuration, the life cycle, the
// request path and the two doors of the admin API. Only this package and cli depend on Caddy.
//
// [Handler.ServeHTTP] in handler.go shows the life of a request on one screen. [App] in this file
// opens the store that requests are checked against. Configurations share the store, so a reload
// neither closes it nor drops a request.
package caddymodule

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func init() {
	caddy.RegisterModule(App{})
}

// App has the settings of the service users of this server: the path of their store, and the limits
// that apply to all of them. A configuration whose sites use service users without these settings
// gets an App with the defaults.
type App struct {
	// The path of the store, a SQLite database. A missing file is created, unless the
	// configuration in force has a store with service users, since an empty store would lock
	// out their clients. Placeholders such as {env.SERVICE_USERS_STORE} are replaced. Default:
	// service_users.db in Caddy's data directory.
	Store string `json:"store,omitempty"`

	// A file of keys, one per line, that the hashes of secrets are mixed with, so that a stolen
	// database alone cannot be used to check guesses. The first key hashes new secrets, all of
	// the keys verify. Default: none.
	PepperFile string `json:"pepper_file,omitempty"`

	// The name of a permission group that every service user belongs to. Default: none, so a
	// new service user has no rights.
	DefaultGroup string `json:"default_group,omitempty"`

	// The lifetime of a token that is created without an expiry. Default: for ever.
	TokenTTL caddy.Duration `json:"token_ttl,omitempty"`

	// The longest lifetime that a token can have. Default: unlimited.
	MaxTokenTTL caddy.Duration `json:"max_token_ttl,omitempty"`

	// The number of failed attempts of one login id, or from one address, that are answered
	// with 401 within a period; more of them are answered with 429. A right secret always
	// passes. Default: 30 within a minute.
	Throttle *Throttle `json:"throttle,omitempty"`

	// The number of refusals to keep in memory, so that an admin can have one explained by its
	// decision id. Default: 10000; a negative value keeps none.
	Decisions int `json:"decisions,omitempty"`

	// The time within which a deleted service user can be restored. After that, its personal
	// data is removed. Default: 30 days.
	Retention caddy.Duration `json:"retention,omitempty"`

	// The interval at which the use of tokens is written to the store. A crash loses the
	// figures of one interval, nothing else. Default: 10 seconds.
	UseInterval caddy.Duration `json:"use_interval,omitempty"`

	// The time for which requests are decided by the last state that was read, while the store
	// cannot be read; after that they are answered with 503. At least 1 second. Default: for
	// ever.
	MaxStaleness caddy.Duration `json:"max_staleness,omitempty"`

	storeHandle
	ctx     caddy.Context
	guards  []*Handler  // all of this configuration
	doors   []*SiteDoor // all of this configuration
	key     string      // of the store in stores
	started bool
}

// Throttle is a rate of failed attempts.
type Throttle struct {
	// The number of failed attempts. 0 switches the throttle off.
	Attempts int `json:"attempts"`

	// The period of that number. Default: 1 minute.
	Within caddy.Duration `json:"within,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "service_users",
		New: func() caddy.Module { return new(App) },
	}
}

// maxDecisions limits the memory for refusals: each takes some hundreds of bytes.
const maxDecisions = 1_000_000

// minStaleness is the shortest max_staleness.
const minStaleness = time.Second

// drain is the time from the end of a configuration until it releases its store: requests go on
// after Caddy has cleaned up their modules.
const drain = 10 * time.Second

// stores contains the open stores. The key is made of all settings of a store, so a store with
// other settings is another entry.
var stores = caddy.NewUsagePool()

// Provision reads the settings. It does not open the store, since "caddy validate" runs it too.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.abandoned, a.warnOfAddress = ctx, make(chan struct{}), new(sync.Once)
	a.routes = sync.OnceValue(a.walkRoutes)
	path, opts, err := a.StoreOptions()
	if err != nil {
		return err
	}
	opts.Log = caddy.Log().Named("service_users") // the store outlives this configuration, and so must its log
	throttle := *cmp.Or(a.Throttle, &Throttle{Attempts: 30})
	throttle.Within = cmp.Or(throttle.Within, caddy.Duration(time.Minute))
	decisions := cmp.Or(a.Decisions, 10_000)
	if decisions > maxDecisions {
		return fmt.Errorf("decisions: %d is more than can be remembered, %d", decisions, maxDecisions)
	}
	if throttle.Attempts < 0 || throttle.Within < 0 {
		return errors.New("throttle: attempts and within must not be negative")
	}
	if err := metrics.register(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	key, err := json.Marshal([]any{
		path, opts.Peppers.IDs(), opts.DefaultGroup, opts.TokenTTL, opts.MaxTokenTTL, throttle, decisions,
		opts.Retention, opts.UseInterval, opts.MaxStaleness,
	})
	if err != nil {
		return err
	}
	a.key = string(key)
	pooled, _, err := stores.LoadOrNew(a.key, func() (caddy.Destructor, error) {
		return &shared{
			path: path, opts: opts, throttle: throttle, decisions: decisions, ready: make(chan struct{}),
		}, nil
	})
	if err != nil {
		return err
	}
	a.shared = pooled.(*shared)
	return nil
}

// check checks the settings that need no file and no environment.
func (a *App) check() error {
	switch {
	case min(a.TokenTTL, a.MaxTokenTTL, a.Retention, a.UseInterval, a.MaxStaleness) < 0:
		return errors.New("token_ttl, max_token_ttl, retention, use_interval and max_staleness " +
			"must not be negative")
	case a.MaxStaleness > 0 && time.Duration(a.MaxStaleness) < minStaleness:
		return fmt.Errorf("max_staleness %s is shorter than a look at the store may take; "+
			"the least is %s", time.Duration(a.MaxStaleness), minStaleness)
	case a.MaxTokenTTL > 0 && a.TokenTTL > a.MaxTokenTTL:
		return fmt.Errorf("token_ttl %s is longer than max_token_ttl %s; shorten it, or raise the maximum",
			time.Duration(a.TokenTTL), time.Duration(a.MaxTokenTTL))
	}
	return literal(a.DefaultGroup)
}

// literal rejects settings with a placeholder that Caddy does not replace: only store and
// pepper_file, which name files, have placeholders.
func literal(settings any) error {
	text, err := json.Marshal(settings)
	if p := placeholder.Find(text); p != nil {
		return fmt.Errorf("the placeholder %s is not replaced in this option; "+
			"in a Caddyfile {$NAME} becomes the value of the environment variable NAME", p)
	}
	return err
}

var placeholder = regexp.MustCompile(`\{(env|file|system|time|http|vars)\.[^{}]+\}`)

// StoreOptions returns the path of the store and its options. It replaces the placeholders in the
// settings and reads the pepper file.
func (a *App) StoreOptions() (path string, opts store.Options, err error) {
	repl := caddy.NewReplacer()
	if path, err = repl.ReplaceOrErr(a.Store, false, true); err != nil {
		return "", opts, fmt.Errorf("store: %w", err)
	}
	// An empty variable would leave a path that is only half of the intended one.
	if _, err := repl.ReplaceOrErr(a.Store, true, true); err != nil && path != "" {
		return "", opts, fmt.Errorf("store %q: %w", a.Store, err) // half a path is another place
	}
	if scheme, _, isURL := strings.Cut(path, "://"); isURL {
		return "", opts, fmt.Errorf("store: %q is a URL of the scheme %q; "+
			"this version keeps the store in a SQLite file, name its path", path, scheme)
	}
	if path == "" {
		path = filepath.Join(caddy.AppDataDir(), "service_users.db")
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", opts, fmt.Errorf("store: %w", err)
	}
	if err := a.check(); err != nil {
		return "", opts, err
	}
	opts.DefaultGroup = a.DefaultGroup
	opts.TokenTTL, opts.MaxTokenTTL = time.Duration(a.TokenTTL), time.Duration(a.MaxTokenTTL)
	opts.Retention, opts.UseInterval = time.Duration(a.Retention), time.Duration(a.UseInterval)
	opts.MaxStaleness = time.Duration(a.MaxStaleness)
	// A token without an expiry would exceed the longest lifetime.
	if opts.MaxTokenTTL > 0 && opts.TokenTTL == 0 {
		opts.TokenTTL = opts.MaxTokenTTL
	}
	pepperFile, err := repl.ReplaceOrErr(a.PepperFile, true, true)
	if err != nil {
		return "", opts, fmt.Errorf("pepper_file: %w", err)
	}
	if pepperFile != "" {
		if opts.Peppers, err = ReadPeppers(pepperFile); err != nil {
			return "", opts, err
		}
	}
	return path, opts, nil
}

// ReadPeppers reads a pepper file.
func ReadPeppers(path string) (access.Peppers, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return access.Peppers{}, fmt.Errorf("pepper_file: %w; without its keys "+
			"the tokens that were made with them are refused", store.ExplainPath(path, err))
	}
	peppers, err := access.ParsePeppers(string(text))
	if err != nil {
		return access.Peppers{}, fmt.Errorf("pepper_file %q: %w", path, err)
	}
	return peppers, nil
}

// Start opens the store, unless the configuration before this one has opened it already. If Start
// fails, Caddy keeps the configuration in force.
func (a *App) Start() error {
	a.started = true
	if err := checkRoutes(a.routes()); err != nil {
		return err
	}
	return a.shared.start()
}

// walkRoutes returns the findings in the routes of this configuration.
func (a *App) walkRoutes() []Finding {
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return nil
	}
	return a.findings(app.(*caddyhttp.App))
}

// Stop does nothing: requests may still need the store.
func (a *App) Stop() error { return nil }

// Cleanup releases the store. Other configurations may still use it.
func (a *App) Cleanup() error {
	if a.shared == nil {
		return nil
	}
	release := func() {
		if _, err := stores.Delete(a.key); err != nil {
			caddy.Log().Named("service_users").Error("closing the store", zap.Error(err))
		}
	}
	if !a.started {
		close(a.abandoned)
	}
	// A store that is not open cannot serve requests. Release it at once, so that the next load
	// tries again to open it.
	if !a.started || caddy.Exiting() || a.shared.live.Load() == nil {
		release()
	} else {
		time.AfterFunc(drain, release)
	}
	a.shared = nil
	return nil
}

// running returns the app of the configuration in force. Code that outlives a configuration has to
// call it for each request. One example is the admin endpoint, which Caddy does not roll back when
// a load fails.
func running() (*App, error) {
	app, err := caddy.ActiveContext().AppIfConfigured("service_users")
	if err != nil {
		return nil, err
	}
	return app.(*App), nil
}

// shared is a store that several configurations share. Only the first of them opens it.
type shared struct {
	path      string
	opts      store.Options
	throttle  Throttle
	decisions int // the number of refusals to keep

	once  sync.Once
	ready chan struct{} // closed after the attempt to open the store
	err   error         // the error of that attempt
	live  atomic.Pointer[liveStore]
}

// liveStore is an open store with the services that use it.
type liveStore struct {
	store    *store.Store
	api      *admin.API
	recall   *access.Recall
	streams  *streams
	throttle *access.Throttle // nil is off
}

// failedLogin logs, counts and remembers a failed login. authorization is the value of the field. It
// returns the login, and the time to wait before the next attempt; 0 while the rate is accepted. For
// the throttle, the address of a trusted proxy does not count, since all clients behind the proxy
// share it. A request without a credential is not an attempt.
//
// Programs such as fail2ban read the line: its message and its fields, in this order, stay. A line
// with a fault has one more field.
func (l *liveStore) failedLogin(
	log *zap.Logger, r *http.Request, a login, address netip.Addr,
) (login string, wait time.Duration) {
	kept := access.Recalled{Status: http.StatusUnauthorized, Reason: a.reason}
	kept.Action.Address = address
	login, kept.Why = access.ReadLogin(a.value, a.bearer, a.reason)
	if a.reason > access.WrongSecret { // the secret is right, so it names its service user
		if u, t := l.store.Directory().FindDigest(sha256.Sum256([]byte(a.Secret))); u != nil {
			login, kept.TokenID = cmp.Or(login, u.ID), t.ID
		}
	}
	level := zap.InfoLevel
	if a.reason == access.NoCredential {
		level = zap.DebugLevel // a client that waits for the challenge begins so
	}
	if line := log.Check(level, "authentication failed"); line != nil {
		fields := []zap.Field{
			zap.Stringer("client_ip", address), zap.Stringer("reason", a.reason),
			zap.String("login", withoutSecret(login)),
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
		if wait = l.throttle.Fail(login, address, l.store.Now()); wait > 0 {
			kept.Status, counter = http.StatusTooManyRequests, metrics.throttled
		}
	}
	counter.Inc()
	l.remember(r, login, kept)
	return login, wait
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
	path := strings.ToValidUTF8(r.URL.Path[:min(len(r.URL.Path), maxFailedPath)], "")
	kept.UserID, kept.At = l.store.Directory().UserID(login), l.store.Now()
	kept.Action.Method, kept.Action.Path = r.Method, access.MaskSecrets(path)
	kept.Action.Host, _ = access.CheckHost(r.Host)
	l.recall.Keep(kept)
}

func (s *shared) start() error {
	s.once.Do(func() {
		defer close(s.ready)
		s.err = s.open()
	})
	return s.err
}

// open opens the store and starts the services that use it.
func (s *shared) open() error {
	before, users := "", 0
	if live := storeInForce(); live != nil {
		before, users = live.store.Path(), live.store.Directory().Len()
	}
	opts := s.opts
	opts.Existing = users > 0
	if !opts.Existing && filepath.Dir(s.path) == caddy.AppDataDir() {
		if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
			return err
		}
	}
	db, err := store.Open(context.Background(), s.path, opts)
	if opts.Existing && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the store %q does not exist, and a new one would lock out the %d service users "+
			"of the store in force, %q; name the right file, or put it back. To go on with an empty store "+
			"on purpose, make it first: caddy service-user --store %s --create",
			s.path, users, before, store.ShellWord(s.path))
	}
	if err != nil {
		return err
	}
	name := opts.DefaultGroup
	if name != "" && len(db.Directory().GroupIDs([]string{name})) == 0 {
		opts.Log.Warn("no permission group has the name of default_group; "+
			"the setting takes effect once there is one", zap.String("default_group", name))
	}
	warnings, err := store.StorageWarnings(db.Path())
	for _, warning := range warnings {
		opts.Log.Warn("the store is on unsuitable storage",
			zap.String("store", s.path), zap.String("why", warning))
	}
	if err != nil {
		opts.Log.Warn("the storage of the store could not be checked",
			zap.String("store", s.path), zap.Error(err))
	}
	recall := access.NewRecall(s.decisions)
	recall.Since = db.Now()
	live := &liveStore{
		store: db, api: admin.New(db, recall, opts.Log.Named("admin")), recall: recall,
		streams: newStreams(db),
	}
	live.api.Sites = siteOptions
	if s.throttle.Attempts > 0 {
		live.throttle = access.NewThrottle(s.throttle.Attempts, time.Duration(s.throttle.Within))
	}
	s.live.Store(live)
	opts.Log.Info("store opened", zap.String("store", s.path),
		zap.Int64("revision", db.Directory().Revision()), zap.Int("service_users", db.Directory().Len()))
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
func (s *shared) Destruct() error {
	if live := s.live.Load(); live != nil {
		live.streams.close()
		return live.store.Close()
	}
	return nil
}

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

// storeHandle has the parts of App that a handler needs. A handler has its own copy, since Caddy
// may clean up the app while requests still run.
type storeHandle struct {
	shared    *shared
	abandoned chan struct{}    // closed when the configuration ends without having started
	routes    func() []Finding // walks the routes at the first call, see routes.go

	warnOfAddress *sync.Once // one per configuration, see clientAddress
}

// serviceUsers returns the app of the configuration that is being loaded.
func serviceUsers(ctx caddy.Context) (*App, error) {
	app, err := ctx.App("service_users")
	if err != nil {
		return nil, err
	}
	return app.(*App), nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
	_ caddy.Destructor   = (*shared)(nil)
)
