package caddymodule

import (
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
	for _, pattern := range []string{"/service_users", "/service_users/", "/permission_groups", "/permission_groups/"} {
		routes = append(routes, caddy.AdminRoute{Pattern: pattern, Handler: caddy.AdminHandlerFunc(d.serve)})
	}
	return routes
}

func (d *localDoor) serve(w http.ResponseWriter, r *http.Request) error {
	app, err := running()
	if err != nil || app.shared == nil {
		admin.WriteError(w, d.log, store.NewOperationID(), errNotConfigured)
		return nil
	}
	open := app.shared.live.Load()
	if open == nil {
		admin.WriteError(w, d.log, store.NewOperationID(), errNotOpen)
		return nil
	}
	open.api.Serve(w, r, store.Local)
	return nil
}

var (
	errNotConfigured = admin.NewError(http.StatusNotFound, "ERR_NOT_CONFIGURED", "this Caddy has no service users: its configuration has neither the global option nor a directive service_users")
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
	log    *zap.Logger
	origin *http.CrossOriginProtection
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
	d.storeHandle, err = newStoreHandle(ctx)
	return err
}

// Validate checks the lists of people.
func (d *SiteDoor) Validate() error {
	if d.ActorHeader != "" && !httpguts.ValidHeaderFieldName(d.ActorHeader) {
		return fmt.Errorf("actor_header %q is not a header name", d.ActorHeader)
	}
	seen := make(map[string]bool)
	for _, m := range d.Managers {
		if seen[m.ID] {
			return fmt.Errorf("manager %q stands in the list twice; put all teams and groups of a person into one entry", m.ID)
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
		actorHeader = r.Header.Get(d.ActorHeader)
		r.Header.Del(d.ActorHeader)
	}
	open := d.open(r.Context())
	if answered := d.health(w, r, open); answered {
		return nil
	}
	by, err := store.Actor{}, error(errNotOpen)
	if open != nil {
		by, err = d.actor(open, r, actorHeader)
	}
	if err == nil && d.origin.Check(r) != nil {
		err = errCrossOrigin
	}
	r.Header.Del("Authorization")
	if err != nil {
		d.refuse(w, r, err)
		return nil
	}
	open.api.Serve(w, r, by)
	return nil
}

// actor finds out who acts. An id that our own handler has set is a service
// user, never a person.
func (d *SiteDoor) actor(open *opened, r *http.Request, header string) (store.Actor, error) {
	if id, ok := caddyhttp.GetVar(r.Context(), identityVar).(*identity); ok {
		return open.api.ServiceUserActor(id.Principal)
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if human, _ := repl.GetString("http.auth.user.id"); human != "" {
		return d.human(open, human)
	}
	if header != "" {
		return d.human(open, header)
	}
	authorization := r.Header["Authorization"]
	switch len(authorization) {
	case 0:
		return store.Actor{}, admin.ErrUnauthenticated
	case 1:
	default:
		return store.Actor{}, errTwoFields
	}
	credential, ok := access.ParseBasic(authorization[0])
	if !ok {
		credential, ok = access.ParseBearer(authorization[0])
	}
	if !ok {
		return store.Actor{}, admin.ErrUnauthenticated
	}
	principal, why := open.Directory().Authenticate(credential, clientAddress(r), open.Now().Unix())
	if why != access.Granted {
		logFailure(d.log, zap.InfoLevel, why, credential.ID, clientAddress(r))
		if open.fail(credential.ID, r, open.Now()) > 0 {
			return store.Actor{}, errThrottled
		}
		return store.Actor{}, admin.ErrUnauthenticated
	}
	return open.api.ServiceUserActor(principal)
}

// human looks a person up in the lists.
func (d *SiteDoor) human(open *opened, id string) (store.Actor, error) {
	if slices.Contains(d.Admins, id) || slices.Contains(d.Admins, "*") {
		return admin.HumanAdmin(id), nil
	}
	for _, m := range d.Managers {
		if m.ID == id {
			return open.api.HumanManager(id, m.Teams, m.Groups), nil
		}
	}
	return store.Actor{}, admin.ErrNotEntitled
}

func (d *SiteDoor) refuse(w http.ResponseWriter, r *http.Request, err error) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if errors.Is(err, admin.ErrUnauthenticated) {
		h.Set("WWW-Authenticate", `Basic realm="service users admin", charset="UTF-8"`)
	}
	closeUnread(w, r)
	admin.WriteError(w, d.log, store.NewOperationID(), err)
}

// health answers the probes: the process lives; the directory is loaded. They
// need no credential and tell nothing else.
func (d *SiteDoor) health(w http.ResponseWriter, r *http.Request, open *opened) bool {
	ready := true
	switch strings.TrimSuffix(r.URL.Path, "/") {
	case "/healthz":
	case "/readyz":
		ready = open != nil
	default:
		return false
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	_ = writeReady(w, ready)
	return true
}

// Interface guards
var (
	_ caddy.AdminRouter           = (*localDoor)(nil)
	_ caddy.Provisioner           = (*localDoor)(nil)
	_ caddy.Provisioner           = (*SiteDoor)(nil)
	_ caddy.Validator             = (*SiteDoor)(nil)
	_ caddyhttp.MiddlewareHandler = (*SiteDoor)(nil)
)
