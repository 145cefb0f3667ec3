package caddymodule

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func init() {
	caddy.RegisterModule(localDoor{})
	caddy.RegisterModule(SiteDoor{})
}

// localDoor is the admin API on Caddy's own admin endpoint, for the CLI and for
// scripts on the machine. Caddy guards it; whoever gets here may load any
// configuration anyway.
type localDoor struct {
	log *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (localDoor) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.service_users",
		New: func() caddy.Module { return new(localDoor) },
	}
}

// Provision only takes a logger: Caddy makes this before the apps and keeps it
// when the load fails, so the app is asked for at each request.
func (d *localDoor) Provision(ctx caddy.Context) error {
	d.log = ctx.Logger(d)
	return nil
}

// Routes returns the paths of the API. The listener is shared with other
// plugins, so there are few.
func (d *localDoor) Routes() []caddy.AdminRoute {
	var routes []caddy.AdminRoute
	for _, resource := range []string{"/service_users", "/permission_groups", "/bot_users", "/api_keys", "/audit_events"} {
		for _, pattern := range []string{resource, resource + "/"} {
			routes = append(routes, caddy.AdminRoute{Pattern: pattern, Handler: caddy.AdminHandlerFunc(d.serve)})
		}
	}
	return routes
}

func (d *localDoor) serve(w http.ResponseWriter, r *http.Request) error {
	app, err := running()
	if err != nil || app.shared == nil {
		admin.WriteError(w, d.log, store.NewOperationID(), ErrNotConfigured)
		return nil
	}
	live := app.shared.live.Load()
	if live == nil {
		admin.WriteError(w, d.log, store.NewOperationID(), errNotOpen)
		return nil
	}
	live.api.Serve(w, r, store.Local)
	return nil
}

var (
	ErrNotConfigured = admin.NewError(http.StatusNotFound, "ERR_NOT_CONFIGURED", "this Caddy has no service users: its configuration has neither the global option nor a directive service_users")
	errNotOpen       = admin.NewError(http.StatusServiceUnavailable, "ERR_STORE_UNAVAILABLE", "the store is not open")
	errTwoFields     = admin.NewError(http.StatusBadRequest, "ERR_AMBIGUOUS", "the request has more than one Authorization field")
	errThrottled     = admin.NewError(http.StatusTooManyRequests, "ERR_NGROK_226", "too many failed attempts; wait before the next one")
	errCrossOrigin   = admin.NewError(http.StatusForbidden, "ERR_CROSS_ORIGIN", "a page of another origin must not use the admin API")
)

// SiteDoor serves the admin API on a site, for people and remote programs. Who
// acts is either a person whom a handler before it has authenticated and whom
// it names, or a service user with the role admin or manager, by HTTP Basic or
// Bearer.
type SiteDoor struct {
	// The people who may do everything, by the id that the handler before has
	// authenticated, {http.auth.user.id}. "*" is everybody it has. Default: none.
	Admins []string `json:"admins,omitempty"`

	// The people who may manage the service users of some teams.
	Managers []HumanManager `json:"managers,omitempty"`

	// The request header that carries the id of a person, for forward_auth,
	// which sets no {http.auth.user.id}. It is believed only where the handler
	// directly before this one is such a forward_auth; the load fails where it
	// is not. Default: none.
	ActorHeader string `json:"actor_header,omitempty"`

	storeHandle
	believes bool // the walk of the routes has proven every way to the door
	log      *zap.Logger
	origin   *http.CrossOriginProtection
}

// HumanManager is a person who may manage the service users of some teams.
type HumanManager struct {
	// The id that the handler before has authenticated.
	ID string `json:"id"`

	// The teams whose service users this person reaches. At least one.
	Teams []string `json:"teams"`

	// The names of the permission groups that this person may give. Service
	// users with other groups are out of reach. Default: none.
	Groups []string `json:"groups,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (SiteDoor) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.service_users_admin",
		New: func() caddy.Module { return new(SiteDoor) },
	}
}

// Provision finds the store.
func (d *SiteDoor) Provision(ctx caddy.Context) (err error) {
	d.log = ctx.Logger()
	d.origin = http.NewCrossOriginProtection()
	app, err := serviceUsers(ctx)
	if err != nil {
		return err
	}
	app.doors = append(app.doors, d)
	d.storeHandle = app.handle()
	return nil
}

// Validate checks the lists of people.
func (d *SiteDoor) Validate() error {
	if d.ActorHeader != "" && !httpguts.ValidHeaderFieldName(d.ActorHeader) {
		return fmt.Errorf("actor_header %q is not a header name", d.ActorHeader)
	}
	seen := make(map[string]bool)
	for _, m := range d.Managers {
		if seen[m.ID] {
			return fmt.Errorf("manager %q is in the list twice; put all teams and groups of a person into one entry", m.ID)
		}
		seen[m.ID] = true
		if m.ID == "" || m.ID == "*" || len(m.Teams) == 0 || slices.Contains(m.Teams, "") || slices.Contains(m.Groups, "") {
			return fmt.Errorf("manager %q: name one person and at least one team, as in \"managers carol team=finance\"", m.ID)
		}
		if slices.Contains(d.Admins, m.ID) {
			return fmt.Errorf("%q is named as an admin and as a manager; choose one", m.ID)
		}
	}
	return nil
}

// ServeHTTP answers one request of the admin API.
func (d *SiteDoor) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	actorHeader := ""
	if d.ActorHeader != "" {
		if d.routes(); d.believes {
			actorHeader = r.Header.Get(d.ActorHeader)
		}
		r.Header.Del(d.ActorHeader)
	}
	live := d.live(r.Context())
	by, login, err := store.Actor{}, "", error(errNotOpen)
	if live != nil {
		by, login, err = d.actor(live, r, actorHeader)
	}
	if ready, probe := admin.IsProbe(r); probe && err != nil {
		return writeReady(w, !ready || live != nil && !live.store.Stale()) // strangers learn no more
	}
	if err == nil && d.origin.Check(r) != nil {
		err = errCrossOrigin
	}
	r.Header.Del("Authorization")
	if err != nil {
		d.refuse(w, r, live, by, login, err)
		return nil
	}
	live.api.Serve(w, atShortPath(r), by)
	return nil
}

// atShortPath leads paths that a site has for itself to where the API keeps them.
func atShortPath(r *http.Request) *http.Request {
	short := strings.TrimSuffix(r.URL.Path, "/")
	if !slices.Contains([]string{"/openapi.json", "/reference", "/healthz", "/readyz"}, short) {
		return r
	}
	u := *r.URL
	u.Path, u.RawPath = "/service_users"+short, ""
	long := *r
	long.URL = &u
	return &long
}

// actor finds out who acts, or who it was that said to be somebody. An id that our
// own handler has set is a service user, never a person.
func (d *SiteDoor) actor(live *liveStore, r *http.Request, header string) (by store.Actor, login string, err error) {
	anonymous := store.Actor{Name: store.Anonymous}
	if id := varsOf(r).identity(); id != nil {
		by, err = live.api.ServiceUserActor(id.who())
		return by, "", err
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if human, _ := repl.GetString("http.auth.user.id"); human != "" {
		by, err = d.human(live, human)
		return by, "", err
	}
	if header != "" {
		by, err = d.human(live, header)
		return by, "", err
	}
	authorization := r.Header["Authorization"]
	switch len(authorization) {
	case 0:
		return anonymous, "", admin.ErrUnauthenticated
	case 1:
	default:
		return anonymous, "", errTwoFields
	}
	credential, ok := access.ParseBasic(authorization[0])
	if !ok {
		credential, ok = access.ParseBearer(authorization[0])
	}
	if !ok {
		return anonymous, "", admin.ErrUnauthenticated
	}
	now, address := live.store.Now(), d.clientAddress(r, varsOf(r))
	principal, reason := live.store.Directory().Authenticate(credential, address, now.Unix())
	if reason != access.Granted {
		if live.failedLogin(d.log, r, reason, credential.ID, address) > 0 {
			return anonymous, credential.ID, errThrottled
		}
		return anonymous, cmp.Or(credential.ID, "bearer"), admin.ErrUnauthenticated
	}
	live.store.Use(principal, now.Unix(), address, "")
	by, err = live.api.ServiceUserActor(principal)
	return by, "", err
}

// human looks a person up in the lists.
func (d *SiteDoor) human(live *liveStore, id string) (store.Actor, error) {
	if slices.Contains(d.Admins, id) || slices.Contains(d.Admins, "*") {
		return admin.HumanAdmin(id), nil
	}
	for _, m := range d.Managers {
		if m.ID == id {
			return live.api.HumanManager(id, m.Teams, m.Groups), nil
		}
	}
	return store.Actor{Name: "human:" + id}, admin.ErrNotEntitled
}

// refuse answers who does not get in. An attempt, that is anything with an identity
// or a credential, is written down.
func (d *SiteDoor) refuse(w http.ResponseWriter, r *http.Request, live *liveStore, by store.Actor, login string, err error) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if errors.Is(err, admin.ErrUnauthenticated) {
		h.Set("WWW-Authenticate", `Basic realm="service users admin", charset="UTF-8"`)
	}
	linger := closeUnread(w, r)
	if !errors.Is(err, errThrottled) {
		defer linger()
	}
	if live == nil || by.Name == store.Anonymous && login == "" {
		admin.WriteError(w, d.log, store.NewOperationID(), err)
		return
	}
	live.api.Refuse(w, r, by, login, err)
}

// Interface guards
var (
	_ caddy.AdminRouter           = (*localDoor)(nil)
	_ caddy.Provisioner           = (*localDoor)(nil)
	_ caddy.Provisioner           = (*SiteDoor)(nil)
	_ caddy.Validator             = (*SiteDoor)(nil)
	_ caddyhttp.MiddlewareHandler = (*SiteDoor)(nil)
)
