// Package caddymodule plugs service users into Caddy. It has the configuration, the life cycle, the
// request path and the two doors of the admin API. Only this package and cli depend on Caddy.
//
// [Handler.ServeHTTP] in handler.go shows the life of a request on one screen. [App] in this file
// opens the store that requests are checked against. Configurations share the store, so a reload
// neither closes it nor drops a request.
package caddymodule

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func init() {
	caddy.RegisterModule(App{})
}

// App has the settings of the service users of this server: the place of their store, and the limits
// that apply to all of them. A configuration whose sites use service users without these settings
// gets an App with the defaults.
type App struct {
	// The place of the store: the path of a SQLite database, or the URL of a PostgreSQL database,
	// postgres://ROLE:PASSWORD@HOST:5432/DATABASE, which many Caddys can share. A missing store is
	// created, unless the configuration in force has a store with service users, since an empty
	// store would lock out their clients. Placeholders such as {env.SERVICE_USERS_STORE} and
	// {file./run/secrets/store} are replaced. Default: service_users.db in Caddy's data directory.
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
	// decision id. The store keeps as many of all nodes, at most 10000, also over restarts.
	// Default: 10000; a negative value keeps none.
	Decisions int `json:"decisions,omitempty"`

	// The time within which a deleted service user can be restored. After that, its personal
	// data is removed. Default: 30 days.
	Retention caddy.Duration `json:"retention,omitempty"`

	// The interval at which the use of tokens is written to the store. A crash loses the
	// figures of one interval, nothing else. Default: 10 seconds.
	UseInterval caddy.Duration `json:"use_interval,omitempty"`

	// The time for which requests are decided by the last state that was read, while the store
	// cannot be read; after that they are answered with 503. At least 1 second. Default: for
	// ever with SQLite, 1 hour with PostgreSQL, where a receipt of a change needs an end.
	MaxStaleness caddy.Duration `json:"max_staleness,omitempty"`

	// Whether this Caddy never changes the store: the admin API answers changes with 503, and the
	// figures of use stay in memory. In PostgreSQL the role may then have no right to write
	// except to the table nodes. Default: false.
	ReadOnly bool `json:"read_only,omitempty"`

	// The number of service users that have a counter of requests of their own in the metrics, with
	// their id as its label, so that a reader of the metrics sees the ids. The first that call get
	// one. At most 10000. Default: 0, so that no id is in the metrics.
	PerUserMetrics int `json:"per_user_metrics,omitempty"`

	storeHandle
	ctx     caddy.Context
	guards  []*Handler  // all of this configuration
	doors   []*SiteDoor // all of this configuration
	key     string      // of the store in stores
	events  *caddyevents.App
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

// maxPerUser limits the memory for metrics of service users, here and in Prometheus.
const maxPerUser = 10_000

// minStaleness is the shortest max_staleness.
const minStaleness = time.Second

// drain is the time from the end of a configuration until it releases its store: requests go on
// after Caddy has cleaned up their modules.
var drain = 10 * time.Second

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
	opts.Log, opts.Notify = mainLog(), notify // the store outlives this configuration
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
	app, err := ctx.App("events")
	if err != nil {
		return err
	}
	a.events = app.(*caddyevents.App)
	key, err := json.Marshal([]any{
		path, opts.Peppers.IDs(), opts.DefaultGroup, opts.TokenTTL, opts.MaxTokenTTL, throttle, decisions,
		opts.Retention, opts.UseInterval, opts.MaxStaleness, opts.ReadOnly,
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
	a.shared, a.perUser = pooled.(*shared), a.PerUserMetrics
	return a.events.On("started", &emitter{a, a.shared})
}

// check checks the settings that need no file and no environment.
func (a *App) check() error {
	switch {
	case min(a.TokenTTL, a.MaxTokenTTL, a.Retention, a.UseInterval, a.MaxStaleness) < 0:
		return errors.New("token_ttl, max_token_ttl, retention, use_interval and max_staleness " +
			"must not be negative")
	case a.PerUserMetrics < 0 || a.PerUserMetrics > maxPerUser:
		return fmt.Errorf("per_user_metrics %d is not a number from 0 to %d", a.PerUserMetrics, maxPerUser)
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

// StoreOptions returns the place of the store and its options. It replaces the placeholders in the
// settings and reads the pepper file. The place may contain a password, see [store.Shown].
func (a *App) StoreOptions() (path string, opts store.Options, err error) {
	repl := caddy.NewReplacer()
	if path, err = repl.ReplaceOrErr(a.Store, false, true); err != nil {
		return "", opts, fmt.Errorf("store: %w", err)
	}
	// With an empty variable, the rest of a path is another place.
	// So is the default place of a SQLite database if the file with a URL is missing.
	if _, err := repl.ReplaceOrErr(a.Store, true, true); err != nil && (path != "" || strings.Contains(a.Store, "{file.")) {
		return "", opts, fmt.Errorf("store: %w", err)
	}
	path = cmp.Or(path, filepath.Join(caddy.AppDataDir(), "service_users.db"))
	if _, err := store.Shown(path); err != nil {
		return "", opts, fmt.Errorf("store: %w", err)
	}
	if !store.IsURL(path) {
		if path, err = filepath.Abs(path); err != nil {
			return "", opts, fmt.Errorf("store: %w", err)
		}
	}
	if err := a.check(); err != nil {
		return "", opts, err
	}
	opts.NodeName, _ = os.Hostname()
	opts.Version, opts.DefaultGroup = admin.Version(), a.DefaultGroup
	opts.TokenTTL, opts.MaxTokenTTL = time.Duration(a.TokenTTL), time.Duration(a.MaxTokenTTL)
	opts.Retention, opts.UseInterval = time.Duration(a.Retention), time.Duration(a.UseInterval)
	opts.MaxStaleness, opts.ReadOnly = time.Duration(a.MaxStaleness), a.ReadOnly
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
			mainLog().Error("closing the store", zap.Error(err))
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

// storeHandle has the parts of App that a handler needs. A handler has its own copy, since Caddy
// may clean up the app while requests still run.
type storeHandle struct {
	shared    *shared
	abandoned chan struct{}    // closed when the configuration ends without having started
	routes    func() []Finding // walks the routes at the first call, see routes.go

	warnOfAddress *sync.Once // one per configuration, see clientAddress
	perUser       int        // PerUserMetrics
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
