package caddymodule

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/admin/console"
	"github.com/serviceusers/caddy-service-users/store"
)

func init() {
	caddy.RegisterModule(localDoor{})
	caddy.RegisterModule(SiteDoor{})
}

// localDoor is the admin API on Caddy's own admin endpoint, for the CLI and for scripts on the
// machine. Caddy guards the endpoint. Its callers may do everything, since they could load any
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

// Provision only takes a logger. Caddy provisions this module before the apps, and keeps it when the
// load fails, so serve looks for the store at each request.
func (d *localDoor) Provision(ctx caddy.Context) error {
	d.log = moduleLog(ctx.Logger(d))
	return nil
}

// Routes returns the paths of the API. They are few, since other plugins share the listener.
func (d *localDoor) Routes() []caddy.AdminRoute {
	var routes []caddy.AdminRoute
	serve := caddy.AdminHandlerFunc(d.serve)
	for _, resource := range [...]string{
		"/service_users", "/permission_groups", "/bot_users", "/api_keys", "/audit_events", "/nodes",
	} {
		routes = append(routes, caddy.AdminRoute{Pattern: resource, Handler: serve},
			caddy.AdminRoute{Pattern: resource + "/", Handler: serve})
	}
	return routes
}

func (d *localDoor) serve(w http.ResponseWriter, r *http.Request) error {
	if live := storeInForce(); live != nil {
		by, err := localActor(r)
		if err != nil {
			admin.WriteError(w, d.log, store.NewOperationID(), err)
			return nil
		}
		live.api.Serve(w, r, by)
	} else if app, err := running(); err != nil {
		admin.WriteError(w, d.log, store.NewOperationID(), ErrNotConfigured)
	} else {
		err := app.shared.notOpen()
		if err != errNotOpen { // the callers are on this machine, and may know all
			err = admin.NewError(errNotOpen.Status, errNotOpen.Code, errNotOpen.Msg+": "+err.Error())
		}
		admin.WriteError(w, d.log, store.NewOperationID(), err)
	}
	return nil
}

// localActor returns the actor of a request at Caddy's admin endpoint. Caddy does not know the user
// of the process that connected, so the name in admin.CallerHeader is only the caller's word. Caddy's
// remote administration has verified a certificate.
func localActor(r *http.Request) (store.Actor, error) {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return store.Actor{Name: "certificate:" + r.TLS.PeerCertificates[0].Subject.String()}, nil
	}
	if said := r.Header.Get(admin.CallerHeader); said != "" {
		return store.SaidLocal(admin.CallerHeader, said)
	}
	return store.Local, nil
}

// ErrNotConfigured is the error of a local door if the configuration in force has no service users.
var ErrNotConfigured = admin.NewError(http.StatusNotFound, "ERR_NOT_CONFIGURED",
	"this Caddy has no service users: "+
		"its configuration has neither the global option nor a directive service_users")

var (
	errNotOpen   = admin.NewError(http.StatusServiceUnavailable, "ERR_STORE_UNAVAILABLE", "the store is not open")
	errTwoFields = admin.NewError(TwoCredentials.Status, "ERR_AMBIGUOUS", TwoCredentials.Detail)
	errThrottled = admin.NewError(http.StatusTooManyRequests, "ERR_NGROK_226", tooManyAttempts)
	errNoPerson  = admin.NewError(http.StatusForbidden, "ERR_NGROK_4111",
		"a service user has no interactive login: programs use the API, and the console is for people")
	errNoLogin = admin.NewError(http.StatusUnauthorized, "ERR_UNAUTHENTICATED",
		"log in as a person whom the operator has named in admins or managers, and open this page again")
	errCrossOrigin = admin.NewError(http.StatusForbidden, "ERR_CROSS_ORIGIN",
		"a page of another origin must not use the admin API")
)

// SiteDoor serves the admin API on a site, for people and remote programs. The actor of a request is
// a person, whom a handler before this one has authenticated, or a service user with the role admin
// or manager, by HTTP Basic or Bearer.
type SiteDoor struct {
	// The people who may do everything, by the id that the handler before has authenticated,
	// {http.auth.user.id}. "*" is everybody whom that handler lets in. Default: none.
	Admins []string `json:"admins,omitempty"`

	// The people who may manage the service users of some teams.
	Managers []HumanManager `json:"managers,omitempty"`

	// The request header with the id of a person, for forward_auth, which sets no
	// {http.auth.user.id}. The door believes the header only if the handler directly before it
	// is such a forward_auth; otherwise the load fails. Default: none.
	ActorHeader string `json:"actor_header,omitempty"`

	// Whether the pages for people, at /console/, are switched off. Default: false.
	NoConsole bool `json:"no_console,omitempty"`

	storeHandle
	believes bool // the walk of the routes has proven every way to the door
	log      *zap.Logger
	origin   *http.CrossOriginProtection
}

// HumanManager is a person who may manage the service users of some teams.
type HumanManager struct {
	// The id that the handler before has authenticated.
	ID string `json:"id"`

	// The teams whose service users this person can manage. At least one.
	Teams []string `json:"teams"`

	// The names of the permission groups that this person may give. This person cannot manage
	// service users with other groups. Default: none.
	Groups []string `json:"groups,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (SiteDoor) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.service_users_admin",
		New: func() caddy.Module { return new(SiteDoor) },
	}
}

// Provision takes the store of the configuration, which Start opens later.
func (d *SiteDoor) Provision(ctx caddy.Context) (err error) {
	d.log = moduleLog(ctx.Logger())
	d.origin = http.NewCrossOriginProtection()
	app, err := serviceUsers(ctx)
	if err != nil {
		return err
	}
	app.doors = append(app.doors, d)
	d.storeHandle = app.storeHandle
	return nil
}

// Validate checks the lists of people.
func (d *SiteDoor) Validate() error {
	if d.ActorHeader != "" && !httpguts.ValidHeaderFieldName(d.ActorHeader) {
		return fmt.Errorf("actor_header %q is not a header name", d.ActorHeader)
	}
	if err := literal(d); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, m := range d.Managers {
		if seen[m.ID] {
			return fmt.Errorf("manager %q is in the list twice; "+
				"put all teams and groups of a person into one entry", m.ID)
		}
		seen[m.ID] = true
		if m.ID == "" || m.ID == "*" || len(m.Teams) == 0 || slices.Contains(m.Teams, "") ||
			slices.Contains(m.Groups, "") {
			return fmt.Errorf("manager %q: name one person and at least one team, "+
				"as in \"managers carol team=finance\"", m.ID)
		}
		if slices.Contains(d.Admins, m.ID) {
			return fmt.Errorf("%q is named as an admin and as a manager; choose one", m.ID)
		}
	}
	return nil
}

// ServeHTTP answers one request of the admin API.
func (d *SiteDoor) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	r.Header.Del(admin.CallerHeader)
	actorHeader := ""
	if d.ActorHeader != "" {
		if d.routes(); d.believes { // the walk of the routes sets believes
			actorHeader = r.Header.Get(d.ActorHeader)
		}
		r.Header.Del(d.ActorHeader)
	}
	live := d.live(r.Context())
	by, login, err := store.Actor{}, "", d.shared.notOpen()
	if live != nil {
		by, login, err = d.actor(live, w, r, actorHeader)
	}
	if ready, probe := admin.IsProbe(r); probe && err != nil {
		return writeReady(w, !ready || live != nil && !live.store.Stale()) // strangers learn no more
	}
	pages := !d.NoConsole && console.Takes(r)
	switch {
	case err != nil:
	case d.origin.Check(r) != nil:
		err = errCrossOrigin
	case pages && strings.HasPrefix(by.Name, "service_"):
		err = errNoPerson
	}
	r.Header.Del("Authorization")
	switch {
	case pages && console.ServeAsset(w, r): // an error page needs its style too
	case err != nil:
		d.refuse(w, r, live, by, login, err, pages)
	case pages:
		live.console.Serve(w, r, by)
	default:
		live.api.Serve(w, atShortPath(r), by)
	}
	return nil
}

// atShortPath returns a request for one of the short paths that only a site has, such as /healthz,
// as a request for the path of the API. It returns any other request as it is.
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

// actor returns the actor of a request. With an error, by is the actor that the request claims to
// have, and login is the login of its wrong credential.
func (d *SiteDoor) actor(
	live *liveStore, w http.ResponseWriter, r *http.Request, header string,
) (by store.Actor, login string, err error) {
	anonymous := store.Actor{Name: store.Anonymous}
	// An id that our own handler has set is a service user, never a person.
	if id := varsOf(r).identity(); id != nil {
		by, err = live.api.ServiceUserActor(id.who())
		return by, "", err
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	human, _ := repl.GetString("http.auth.user.id")
	if human = cmp.Or(human, header); human != "" {
		by, err = d.human(live, human)
		return by, "", err
	}
	authorization := r.Header["Authorization"]
	if len(authorization) > 1 {
		return anonymous, "", errTwoFields
	}
	var wait time.Duration
	a, address, now := parseCredential(authorization, true), d.clientAddress(r, varsOf(r)), live.store.Now()
	principal := access.Principal{}
	if a.reason == access.Granted {
		principal, a.reason = live.store.Directory().Authenticate(a.Credential, address, now.Unix())
	}
	if _, probe := admin.IsProbe(r); a.reason != access.Granted && !(probe && a.reason == access.NoCredential) {
		refused := live.failedLogin(d.log, r, a, address)
		login, wait = refused.candidate, refused.retryAfter
	}
	switch {
	case wait > 0:
		w.Header().Set("Retry-After", retryAfter(wait))
		return anonymous, login, errThrottled
	case a.Secret != "" && a.reason != access.Granted:
		return anonymous, cmp.Or(login, "bearer"), admin.ErrUnauthenticated
	case a.reason != access.Granted:
		return anonymous, login, admin.ErrUnauthenticated
	}
	live.store.Use(principal, now.Unix(), address, "")
	by, err = live.api.ServiceUserActor(principal)
	return by, "", err
}

// human returns the actor for a person, by the lists of the configuration.
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

// refuse answers a request that has no actor or is not allowed. The audit trail records the request
// if it has an identity or a credential.
func (d *SiteDoor) refuse(
	w http.ResponseWriter, r *http.Request, live *liveStore, by store.Actor, login string, err error,
	pages bool,
) {
	write := admin.WriteError
	challenges := []string{
		`Basic realm="service users admin", charset="UTF-8"`, `Bearer realm="service users admin"`,
	}
	unauthenticated := errors.Is(err, admin.ErrUnauthenticated)
	if pages {
		// A browser would ask people for the Basic credentials of a service user, which cannot
		// open the console. No browser asks for Bearer.
		write, challenges = console.ErrorPage(r), challenges[1:]
		if unauthenticated {
			err = errNoLogin
		}
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if unauthenticated {
		h["Www-Authenticate"] = challenges
	}
	linger := closeUnread(w, r)
	if errors.Is(err, errThrottled) {
		delay(r)
	} else {
		defer linger()
	}
	if live == nil || by.Name == store.Anonymous && login == "" {
		write(w, d.log, store.NewOperationID(), err)
		return
	}
	live.api.Refuse(w, r, by, login, err, write)
}

// Interface guards
var (
	_ caddy.AdminRouter           = (*localDoor)(nil)
	_ caddy.Provisioner           = (*localDoor)(nil)
	_ caddy.Provisioner           = (*SiteDoor)(nil)
	_ caddy.Validator             = (*SiteDoor)(nil)
	_ caddyhttp.MiddlewareHandler = (*SiteDoor)(nil)
)
