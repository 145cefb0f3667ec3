// Package admin serves the store to people and programs: it has the REST API and a client for it.
//
// The package knows HTTP and the store, but not Caddy. Its caller authenticates the request and
// passes the identity as a [store.Actor].
//
// Start with [New]; [API.Serve] answers one request. [API.routes] lists all routes. The conventions
// are those of the ngrok API, so that a client for that API works unmodified against
// /service_users.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// OperationHeader is the response header with the operation id. Every answer has it.
const OperationHeader = "Ngrok-Operation-Id"

// API is the REST API over a store. A change leaves a field as it is if the body does not contain
// it; "" and null empty the field. Unknown fields and parameters are refused. Lists come in pages.
// Times are in RFC 3339 and UTC, durations have the form 90d or 36h.
type API struct {
	// Sites returns the options of the guarded site that serves a host name, or the reason for
	// which they are not known. It is nil where no Caddy runs, as over a store file.
	Sites func(host string) (access.Relax, error)

	// Traffic has the requests of this node. It is nil where no Caddy runs.
	Traffic *Traffic

	store  *store.Store
	recall *access.Recall
	log    *zap.Logger
	mux    *http.ServeMux
	known  map[string]route // by the pattern in mux
	heavy  turns            // for requests that may use a core for seconds: filters, bulks, explain and who_can
}

// New returns the API over a store. recall is the memory of decisions that the data path fills.
// recall and log may be nil.
func New(s *store.Store, recall *access.Recall, log *zap.Logger) *API {
	if recall == nil {
		recall = new(access.Recall)
	}
	if log == nil {
		log = zap.NewNop()
	}
	a := &API{store: s, recall: recall, log: log, mux: http.NewServeMux(), known: make(map[string]route)}
	for _, r := range a.routes() {
		pattern := r.method + " " + r.path
		a.known[pattern] = r
		a.mux.HandleFunc(pattern, r.serve)
	}
	return a
}

// routes lists every operation of the API. A comment "Group: description" above a route begins a
// group of the OpenAPI document.
func (a *API) routes() []route {
	return []route{
		// Service users: machine accounts that may use the guarded API.
		issuing(handle(a, "POST", "/service_users", 201, a.createServiceUser)),
		handle(a, "GET", "/service_users", 200, a.listServiceUsers),
		handle(a, "GET", "/service_users/{id}", 200, a.getServiceUser),
		versioned(handle(a, "PATCH", "/service_users/{id}", 200, a.updateServiceUser)),
		versioned(handle(a, "DELETE", "/service_users/{id}", 204, a.deleteServiceUser)),
		handle(a, "POST", "/service_users/{id}/undelete", 200, a.undeleteServiceUser),
		issuing(handle(a, "POST", "/service_users/bulk", 200, a.bulkServiceUsers)),

		// Tokens: the secrets by which service users authenticate.
		issuing(handle(a, "POST", "/service_users/{id}/tokens", 201, a.createToken)),
		handle(a, "GET", "/service_users/{id}/tokens", 200, a.listTokens),
		handle(a, "GET", "/service_users/{id}/tokens/{token_id}", 200, a.getToken),
		versioned(handle(a, "PATCH", "/service_users/{id}/tokens/{token_id}", 200, a.updateToken)),
		versioned(handle(a, "DELETE", "/service_users/{id}/tokens/{token_id}", 204, a.revokeToken)),
		issuing(versioned(handle(a, "POST", "/service_users/{id}/tokens/{token_id}/refresh", 201, a.refreshToken))),
		handle(a, "GET", "/service_users/tokens", 200, a.listAllTokens),
		reading(handle(a, "POST", "/service_users/find_tokens", 200, a.findTokens)),

		// Permission groups: named sets of rules that service users get as members.
		handle(a, "POST", "/permission_groups", 201, a.createGroup),
		handle(a, "GET", "/permission_groups", 200, a.listGroups),
		handle(a, "GET", "/permission_groups/{id}", 200, a.getGroup),
		versioned(handle(a, "PATCH", "/permission_groups/{id}", 200, a.updateGroup)),
		versioned(handle(a, "DELETE", "/permission_groups/{id}", 204, a.deleteGroup)),
		reading(handle(a, "POST", "/permission_groups/{id}/preview", 200, a.previewGroup)),
		handle(a, "POST", "/permission_groups/{id}/undelete", 200, a.undeleteGroup),

		handle(a, "POST", "/permission_groups/{id}/rules", 201, a.addRule),
		handle(a, "GET", "/permission_groups/{id}/rules", 200, a.listRules),
		handle(a, "DELETE", "/permission_groups/{id}/rules/{rule_id}", 204, a.removeRule),

		handle(a, "PUT", "/permission_groups/{id}/permissions/{key}", 204, a.grantPermission),
		handle(a, "DELETE", "/permission_groups/{id}/permissions/{key}", 204, a.withdrawPermission),

		handle(a, "GET", "/permission_groups/{id}/members", 200, a.listMembers),
		handle(a, "PUT", "/permission_groups/{id}/members/{service_user_id}", 204, a.addMember),
		handle(a, "DELETE", "/permission_groups/{id}/members/{service_user_id}", 204, a.removeMember),

		// Catalogue: permissions, which are named sets of rules to give to permission groups.
		handle(a, "PUT", "/service_users/permissions", 200, a.loadPermissions),
		handle(a, "GET", "/service_users/permissions", 200, a.listPermissions),
		handle(a, "DELETE", "/service_users/permissions", 204, a.deletePermission),

		// Decisions: which requests are allowed, and why.
		reading(handle(a, "POST", "/service_users/explain", 200, a.explain)),
		handle(a, "GET", "/service_users/who_can", 200, a.whoCan),
		handle(a, "GET", "/service_users/{id}/access", 200, a.access),
		handle(a, "GET", "/service_users/{id}/refusals", 200, a.listRefusals),
		handle(a, "GET", "/service_users/would_deny", 200, a.wouldDeny),
		reading(handle(a, "DELETE", "/service_users/would_deny", 204, a.forgetWouldDeny)),

		// Audit trail: the record of every change, in a chain of hashes.
		handle(a, "GET", "/audit_events", 200, a.listAuditEvents),
		handle(a, "GET", "/audit_events/verify", 200, a.verifyAudit),

		// Store: the database as a whole.
		reading(handleBackup(a, "POST", "/service_users/backup", a.backup)),
		handle(a, "GET", "/service_users/check", 200, a.check),

		// Nodes: the processes that decide requests by one store.
		handle(a, "GET", "/nodes", 200, a.listNodes),
		reading(handle(a, "DELETE", "/nodes/{id}", 204, a.forgetNode)),

		// Probes: the state of this Caddy, for supervisors and load balancers.
		handle(a, "GET", "/service_users/healthz", 200, a.healthz),
		handle(a, "GET", "/service_users/readyz", 200, a.readyz),
		handle(a, "GET", "/service_users/traffic", 200, a.traffic),

		// Names of ngrok: the same operations under the names of the ngrok API, for its clients.
		issuing(handle(a, "POST", "/bot_users", 201, a.createServiceUser)),
		handle(a, "GET", "/bot_users", 200, a.listBotUsers),
		handle(a, "GET", "/bot_users/{id}", 200, a.getServiceUser),
		versioned(handle(a, "PATCH", "/bot_users/{id}", 200, a.updateServiceUser)),
		versioned(handle(a, "DELETE", "/bot_users/{id}", 204, a.deleteServiceUser)),
		issuing(handle(a, "POST", "/api_keys", 201, a.createAPIKey)),
		handle(a, "GET", "/api_keys", 200, a.listAPIKeys),
		handle(a, "GET", "/api_keys/{id}", 200, a.getAPIKey),
		versioned(handle(a, "PATCH", "/api_keys/{id}", 200, a.updateAPIKey)),
		versioned(handle(a, "DELETE", "/api_keys/{id}", 204, a.deleteAPIKey)),

		// This description: the OpenAPI document, and the same as a page.
		document(a, "/service_users/openapi.json", "application/json", a.openAPI),
		document(a, "/service_users/reference", "text/html; charset=utf-8", a.reference),
	}
}

// route is one operation.
type route struct {
	method, path string
	serve        http.HandlerFunc
	versioned    bool // the operation compares If-Match
	issuing      bool // the operation issues tokens, and takes an Idempotency-Key
	reading      bool // the operation changes nothing in the store, although its method is not GET
}

// changes reports whether the operation can change the store, and takes the parameter wait.
func (r route) changes() bool { return r.method != http.MethodGet && !r.reading }

// reading marks an operation that changes nothing in the store, although its method is not GET.
func reading(r route) route {
	r.reading = true
	return r
}

// versioned marks an operation that passes call.version to the store, which compares it with the
// version of the resource.
func versioned(r route) route {
	r.versioned = true
	return r
}

// issuing marks an operation that issues tokens.
func issuing(r route) route {
	r.issuing = true
	return r
}

// call is one request on its way through an operation.
type call struct {
	*http.Request
	WaitQuery
	route   route
	by      store.Actor
	store   *store.Store
	version int64 // the version in the header If-Match; 0 if every version is right
}

// handle returns a route that serves one operation over HTTP. It decodes In from the query or the
// body, encodes Out as JSON, and answers an error as [Error].
func handle[In, Out any](a *API, method, path string, status int, op func(*call, In) (Out, error)) route {
	serve := func(w http.ResponseWriter, r *http.Request) {
		out, ok := run(a, w, r, op)
		if !ok {
			return
		}
		if status == http.StatusNoContent {
			w.WriteHeader(status)
			return
		}
		if one, ok := any(out).(tagged); ok {
			w.Header().Set("ETag", one.etag())
			if method == http.MethodGet {
				w.Header().Set("Accept-Patch", acceptPatch) // each resource with a version has a PATCH
			}
			if method == http.MethodGet && notModified(r, one.etag()) {
				w.WriteHeader(http.StatusNotModified)
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(out) // the client may be gone
	}
	return route{method: method, path: path, serve: serve}
}

// run calls an operation with the input, the ids and the version in the request. It answers an
// error itself, and then reports false.
func run[In, Out any](a *API, w http.ResponseWriter, r *http.Request, op func(*call, In) (Out, error)) (Out, bool) {
	c := &call{Request: r, route: a.known[r.Pattern], by: actorOf(r.Context()), store: a.store}
	var in In
	var out Out
	err := c.takeKey(func() error { return c.decodeInput(w, &in) })
	if err == nil {
		err = c.checkIDs()
	}
	if err == nil && r.Method != http.MethodGet && r.Method != http.MethodHead {
		c.version, err = c.ifMatch()
	}
	if err == nil {
		out, err = op(c, in)
	}
	if err != nil {
		a.refuse(c, w, r.Pattern, err)
	} else if c.Wait != "" {
		w.Header().Set(AppliedHeader, c.applied(w))
	}
	return out, err == nil
}

// idKinds contains the prefix of the ids in a path, by the segment of the path before the id.
var idKinds = map[string]string{
	"service_users": "service", "bot_users": "service", "members": "service",
	"tokens": "token", "api_keys": "token", "permission_groups": "group", "rules": "rule", "nodes": "node",
}

// checkIDs returns an error if an id in the path has a form that no id has. Operations can then pass
// the ids in [http.Request.PathValue] to the store.
func (c *call) checkIDs() error {
	_, pattern, _ := strings.Cut(c.Pattern, " ")
	before := ""
	for segment := range strings.SplitSeq(pattern, "/") {
		name, isID := strings.CutPrefix(segment, "{")
		kind := idKinds[before]
		id := c.PathValue(strings.TrimSuffix(name, "}"))
		if isID && kind != "" && !store.ValidID(kind, id) {
			return NewError(http.StatusNotFound, "ERR_NOT_FOUND",
				"there is no such resource; "+notAnID(kind, id))
		}
		before = segment
	}
	return nil
}

// notAnID returns the text of an error for a text in the place of an id, which is often a name.
func notAnID(kind, text string) string {
	if len(text) > maxSearch {
		return "it is too long for an id"
	}
	msg := fmt.Sprintf("%q is not an id, which begins with %s_", text, kind)
	if list := map[string]string{"service": "service_users", "group": "permission_groups"}[kind]; list != "" {
		msg += "; GET /" + list + "?name=" + url.QueryEscape(text) + " has the id of a name"
	}
	return msg
}

// refuse answers with an error. If the actor lacks the right, or is a manager and learns that a name
// is taken, perhaps outside of its scope, refuse also records the attempt in the audit trail.
func (a *API) refuse(c *call, w http.ResponseWriter, route string, err error) {
	WriteError(w, a.log, c.by.Operation, err)
	e := toError(err)
	if e.Status == http.StatusForbidden || c.by.Scope != nil && errors.Is(err, store.ErrTaken) {
		a.noteAttempt(c.Request, c.by, route, e, "")
	}
}

// Refuse answers a request whose caller may not use the API, and records the attempt in the audit
// trail. by is the actor that is not entitled; its name is store.Anonymous if the caller could not
// be authenticated. login is the login name that the caller gave. write writes the answer.
func (a *API) Refuse(
	w http.ResponseWriter, r *http.Request, by store.Actor, login string, err error, write ErrorWriter,
) {
	by.Operation = store.NewOperationID()
	write(w, a.log, by.Operation, err)
	_, pattern := a.mux.Handler(r)
	if pattern == "" {
		pattern = r.Method + " " + "/…" // never the path itself, which the client chose
	}
	a.noteAttempt(r, by, pattern, toError(err), login)
}

func (a *API) noteAttempt(r *http.Request, by store.Actor, route string, e *Error, login string) {
	// The record is about the last id of the path: for a token of a service user, the token.
	resource := ""
	attempt := store.Attempt{Operation: route, Status: e.Status, Code: e.Code, Login: login}
	for _, part := range strings.Split(r.URL.Path, "/") {
		for _, kind := range []string{"service", "group", "token"} {
			if store.ValidID(kind, part) {
				attempt.Of, resource = resource, part
			}
		}
	}
	for field := range e.Details { // an error of a bulk names its service user
		if id, _, _ := strings.Cut(field, "."); resource == "" && store.ValidID("service", id) {
			resource = id
		}
	}
	if err := a.store.NoteAttempt(r.Context(), by, resource, attempt); err != nil {
		a.log.Error("a refused attempt cannot be written into the audit trail",
			zap.String("actor", access.MaskSecrets(by.Name)), zap.String("route", route), zap.String("resource", resource),
			zap.String("code", e.Code), zap.String("operation_id", by.Operation), zap.Error(err))
	}
}

// decodeInput reads the query of a GET, HEAD or DELETE into in, and the body of other requests.
func (c *call) decodeInput(w http.ResponseWriter, in any) error {
	query := []any{in}
	if c.route.changes() {
		query = append(query, &c.WaitQuery)
	}
	err := decodeQuery(c.Request, query...) // a body has no fields for the query
	if err == nil && c.Wait != "" {
		_, err = ParseWait(c.Wait)
	}
	if err != nil || c.Method == http.MethodGet || c.Method == http.MethodHead || c.Method == http.MethodDelete {
		return err
	}
	limit := int64(maxBody)
	if _, many := in.(*BulkInput); many {
		limit = maxBulkBody
	}
	return DecodeJSON(w, c.Request, limit, in)
}

type actorKey struct{}

func actorOf(ctx context.Context) store.Actor {
	by, _ := ctx.Value(actorKey{}).(store.Actor)
	return by
}

// Serve answers one request on behalf of an actor. The caller of Serve has checked that the actor
// may use the API at all.
func (a *API) Serve(w http.ResponseWriter, r *http.Request, by store.Actor) {
	by.Operation = store.NewOperationID()
	h := w.Header()
	h.Set(OperationHeader, by.Operation)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")

	r, problem := a.locate(r.WithContext(context.WithValue(r.Context(), actorKey{}, by)))
	if problem != nil {
		if problem.Status == http.StatusMethodNotAllowed {
			a.setAllow(h, r)
		}
		WriteError(w, a.log, by.Operation, problem)
		return
	}
	if r.Method == http.MethodOptions { // without CORS headers, so a browser shows other origins nothing
		a.setAllow(h, r)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	a.mux.ServeHTTP(w, r)
}

// locate returns the request with the path in the form of the routes, or an error if the API does
// not have such a route. A path means the same with and without a slash at its end. Neither form is
// redirected, because clients repeat a redirected POST as a GET. A request other than POST to
// "/service_users/" gets 404: its path was probably built with an empty id, and must not reach the
// whole collection.
func (a *API) locate(r *http.Request) (*http.Request, *Error) {
	missing := NewError(http.StatusNotFound, "ERR_NOT_FOUND", "there is no such resource")
	u := *r.URL
	slash := len(u.Path) > 1 && strings.HasSuffix(u.EscapedPath(), "/") // not for "%2F" at the end
	if slash {
		u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.RawPath, "/")
	}
	// ServeMux would redirect a path with "//" or "..".
	if p := u.EscapedPath(); path.Clean(p) != p {
		return r, missing
	}
	r.URL = &u
	_, pattern := a.mux.Handler(r)
	switch {
	case slash && r.Method != http.MethodPost && a.isCollection(r):
		return r, missing
	case r.Method == http.MethodOptions && len(a.allowed(r)) > 0:
		return r, nil
	case pattern == "" && len(a.allowed(r)) > 0:
		return r, NewError(http.StatusMethodNotAllowed, "ERR_METHOD_NOT_ALLOWED",
			fmt.Sprintf("the method %q is not allowed here; allowed: %s", r.Method,
				strings.Join(a.allowed(r), ", ")))
	case pattern == "":
		return r, missing
	}
	return r, nil
}

// isCollection reports whether the path of a request is that of a list whose members have their own
// paths, such as /service_users. The method of the request does not matter.
func (a *API) isCollection(r *http.Request) bool {
	probe := *r
	probe.Method = http.MethodGet
	_, pattern := a.mux.Handler(&probe)
	_, path, found := strings.Cut(pattern, " ")
	return found && slices.ContainsFunc(a.routes(), func(r route) bool {
		return strings.HasPrefix(r.path, path+"/{")
	})
}

// setAllow sets the headers that name the methods at the request's path, and the forms of a PATCH.
func (a *API) setAllow(h http.Header, r *http.Request) {
	allowed := a.allowed(r)
	h.Set("Allow", strings.Join(append(allowed, "OPTIONS"), ", "))
	if slices.Contains(allowed, http.MethodPatch) {
		h.Set("Accept-Patch", acceptPatch)
	}
}

// allowed lists the methods of the routes at the request's path.
func (a *API) allowed(r *http.Request) []string {
	var methods []string
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
		probe := *r
		probe.Method = method
		if _, pattern := a.mux.Handler(&probe); pattern != "" {
			methods = append(methods, method)
		}
	}
	return methods
}

var errNotFound = &store.Error{Kind: store.ErrNotFound, Msg: "there is no such resource"}

// IsNotFound reports whether an error of the API or of its client has the status 404.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}
