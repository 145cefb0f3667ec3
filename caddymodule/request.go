package caddymodule

import (
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// request is a request on its way through a Handler. Each step reads the fields that the steps
// before it have set. It stays on the stack of ServeHTTP: no step keeps a pointer to it.
type request struct {
	r       *http.Request
	vars    variables
	address netip.Addr // of the client
	begun   time.Time  // see collectors.begin

	authorization []string // the values of the field that clean has removed
	overridden    bool     // clean has removed a header that names another method

	action  access.Action // for the current target
	further []target      // the other targets that an upstream may act on

	live      *liveStore        // nil while the store is not open
	directory *access.Directory // the service users as they are for the whole request
	principal access.Principal
}

// TwoCredentials is the problem of a request with more than one Authorization field.
var TwoCredentials = access.Problem{
	Status: http.StatusBadRequest, Detail: "the request has more than one Authorization field",
}

// use sets the store, and the instant of the request by the clock of the store, which never goes
// back. Without a store the clock of the machine has to do: conditions of public rules read it.
func (rq *request) use(live *liveStore) {
	if rq.live = live; live != nil {
		rq.action.Now = live.store.Now().Unix()
	} else {
		rq.action.Now = time.Now().Unix()
	}
}

// judge sets the action of a request for its current target, and the further targets that an
// upstream may act on. It returns a problem if the request is ambiguous.
func (h *Handler) judge(rq *request) access.Problem {
	r := rq.r
	// Caddy's proxy turns an extended CONNECT into a GET, so rules for GET decide about it.
	method := r.Method
	if isWebSocketConnect(r) {
		method = http.MethodGet
	}
	was := target{method: method} // the request as the client sent it, before any rewrite
	raw := rawPath(r)
	originalRaw := raw
	original, known := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if known && (original.RequestURI != r.RequestURI || original.Method != r.Method) {
		if original.Method != r.Method {
			was.method = original.Method
		}
		action, p := access.Screen(was.method, r.Host, original.RequestURI, h.relax)
		if !p.OK() {
			return p
		}
		was.path, originalRaw = action.Path, rawPath(&original)
	}
	action, p := access.Screen(method, r.Host, r.RequestURI, h.relax)
	if !p.OK() {
		return p
	}
	if was.path == "" {
		was.path = action.Path
	}
	if rq.further, p = h.further(r, target{method, action.Path}, was, raw, originalRaw); !p.OK() {
		return p
	}
	h.forwardTargets(r)
	// A handler may have changed URL without RequestURI. The rules must see the path that goes
	// upstream.
	if action.Path != r.URL.Path && access.PlainPath(action.Path) != r.URL.Path ||
		r.URL.Opaque != "" || r.URL.Host != "" {
		return access.Problem{
			Status: http.StatusBadRequest,
			Detail: "the request target is not the one that would be forwarded",
		}
	}
	if isEarlyData(r) && !isSafe(r.Method) {
		return access.Problem{
			Status: http.StatusTooEarly, Detail: "an unsafe request must wait for the TLS handshake to end",
		}
	}
	if rq.overridden {
		p = MethodOverride
	}
	action.Address, action.Header = rq.address, conditionHeader(r, rq.vars)
	rq.action = action
	return p
}

// advice returns the detail of a problem, for operators, with the options that the request lacks. It
// names no option if the request has another problem, which the options do not lift.
func (h *Handler) advice(rq request, p access.Problem) string {
	probe, problem := *h, p
	for problem.Need&^probe.relax != 0 {
		probe.relax |= problem.Need
		url := *rq.r.URL
		again := rq
		again.r = rq.r.WithContext(rq.r.Context())
		again.r.URL = &url
		if problem = probe.judge(&again); problem.OK() && len(rq.authorization) < 2 {
			p.Need = probe.relax &^ h.relax
			return p.Advice()
		}
	}
	return p.Detail
}

// bypass reports whether a request passes without an identity: to a public path, as a preflight, or
// to another authenticator. It counts such a request, and prepares it for the next handler.
func (h *Handler) bypass(rq *request) bool {
	r := rq.r
	if h.isPublic(rq) {
		if h.KeepAuthorization {
			h.keepForeign(rq)
		}
		return rq.pass(metrics.public, "public")
	}
	if h.CORSPreflight && isPreflight(r) && len(rq.authorization) == 0 {
		// Over HTTP/3 an unknown length can mean that the request has no body. Drop one all
		// the same.
		r.Body, r.ContentLength = http.NoBody, 0
		return rq.pass(metrics.public, "public")
	}
	// More than one Authorization field is a 400 of authenticate. A request with the identity of
	// a handler before this one is judged as that service user.
	if h.Otherwise == "" || rq.action.Path == h.Ready || h.Self.owns(rq.action.Path) || len(rq.authorization) > 1 ||
		rq.vars.identity() != nil {
		return false
	}
	if len(rq.authorization) == 1 && (access.HasScheme(rq.authorization[0], "basic") ||
		h.Bearer && access.HasScheme(rq.authorization[0], "bearer")) {
		return false
	}
	h.keepForeign(rq)
	return rq.pass(metrics.passed, "passed")
}

// pass counts and shows a request that passes without an identity. It returns true.
func (rq *request) pass(counter prometheus.Counter, outcome string) bool {
	counter.Inc()
	show(rq.r, rq.vars, just(outcome))
	return true
}

// passForeign reports whether a request passes because it has the Basic login of another
// authenticator: "otherwise" lets such logins pass, [access.CheckForeign] accepts the only
// Authorization field, and no service user has the login as its alias. passForeign counts such a
// request, and puts the field back.
func (h *Handler) passForeign(rq *request) bool {
	passes := h.Otherwise == "pass unknown" || h.Otherwise == "pass" && h.observes()
	if !passes || len(rq.authorization) != 1 || h.Self.owns(rq.action.Path) || rq.vars.identity() != nil ||
		access.CheckForeign(rq.authorization[0]) != "" {
		return false
	}
	login, ok := access.BasicLogin(rq.authorization[0])
	if !ok {
		return false
	}
	if _, known := rq.directory.User(login); known {
		return false
	}
	rq.r.Header["Authorization"] = rq.authorization
	return rq.pass(metrics.passed, "passed")
}

// keepForeign puts back the Authorization field of a request that this handler does not
// authenticate, unless the field may be the credential of a service user. The log reports the first
// dropped field of a configuration, with the reason.
func (h *Handler) keepForeign(rq *request) {
	if len(rq.authorization) == 0 {
		return
	}
	reason := "there is more than one"
	if len(rq.authorization) == 1 {
		reason = access.CheckForeign(rq.authorization[0])
	}
	if reason == "" {
		rq.r.Header["Authorization"] = rq.authorization
	} else if !h.dropped.Swap(true) {
		h.log.Warn("an Authorization field was dropped instead of being left to the next handler; "+
			"later ones are not logged", zap.String("why", reason))
	}
}

// isPreflight reports whether a request is a CORS preflight (Fetch standard, section 4.8) without a
// body. Over HTTP/3 the length of an empty body may be unknown.
func isPreflight(r *http.Request) bool {
	method := r.Header["Access-Control-Request-Method"]
	return r.Method == http.MethodOptions && len(r.Header["Origin"]) == 1 && r.Header["Origin"][0] != "" &&
		len(method) == 1 && access.CheckMethod(method[0]).OK() &&
		(r.ContentLength == 0 || r.ContentLength < 0 && r.ProtoMajor == 3)
}

// authenticate sets the principal of a request, or returns a refusal. The refusal has status 0 if
// the request is authenticated.
func (h *Handler) authenticate(rq *request) refusal {
	if len(rq.authorization) > 1 {
		return refusal{status: TwoCredentials.Status, detail: TwoCredentials.Detail, candidate: rq.readLogin()}
	}
	if len(rq.authorization) == 1 && !isPrivate(rq.r, rq.vars, rq.address) {
		h.warnOfPlaintext(rq.r)
		if h.RequireTLS {
			return refusal{
				status: http.StatusBadRequest, candidate: rq.readLogin(),
				detail: "credentials must not be sent unencrypted; use https, " +
					"and refresh the token, which has been exposed",
			}
		}
	}
	a := parseCredential(rq.authorization, h.Bearer)
	switch {
	case a.reason == access.Granted:
		rq.principal, a.reason = rq.directory.Authenticate(a.Credential, rq.address, rq.action.Now)
	case a.reason == access.NoCredential && rq.vars.identity() != nil:
		// A handler before this one has removed the credential from the request. Check its
		// principal again: the directory may have changed.
		rq.principal, a.reason = rq.directory.Resume(rq.vars.identity().who(), rq.address, rq.action.Now)
	}
	if a.reason == access.Granted {
		return refusal{}
	}
	metrics.decided(rq.begun)
	// The throttle comes after the check of the secret, so it never delays a right one.
	return rq.live.failedLogin(h.log, rq.r, a, rq.address)
}

// login is the attempt of a request to authenticate.
type login struct {
	access.Credential
	value  string // of the field Authorization
	bearer bool   // the site accepts Bearer
	reason access.Reason
}

// parseCredential parses the only Authorization value of a request: Basic, or Bearer if that is
// accepted too.
func parseCredential(authorization []string, bearer bool) login {
	a := login{bearer: bearer, reason: access.NoCredential}
	if len(authorization) == 0 {
		return a
	}
	ok := false
	a.value, a.reason = authorization[0], access.Granted
	if a.Credential, ok = access.ParseBasic(a.value); !ok && bearer {
		a.Credential, ok = access.ParseBearer(a.value)
	}
	if !ok {
		a.reason = access.BadCredential
	}
	return a
}

// readLogin returns the login of a request that is refused before it is authenticated.
func (rq *request) readLogin() (login string) {
	if len(rq.authorization) > 0 {
		login, _ = access.ReadLogin(rq.authorization[0], true, access.BadCredential)
	}
	return login
}

// noticeExpiry adds the header Service-User-Token-Expires to the response if the token is retiring
// or expires within ExpiryNotice.
func (h *Handler) noticeExpiry(w http.ResponseWriter, rq *request) {
	if until := rq.principal.Until(); until != 0 && h.ExpiryNotice > 0 {
		end := time.Unix(until, 0).UTC()
		if rq.principal.Retiring() || end.Sub(time.Unix(rq.action.Now, 0)) < time.Duration(h.ExpiryNotice) {
			w.Header().Set("Service-User-Token-Expires", end.Format(time.RFC3339))
		}
	}
}

// conditionHeader returns the headers that conditions can read: those that arrive at the upstream
// as the client sent them. Caddy writes the forwarding headers itself for a peer that is not
// trusted, so conditionHeader omits them then.
func conditionHeader(r *http.Request, vars variables) http.Header {
	header := r.Header
	for _, name := range forwardingHeaders {
		if r.Header[name] == nil || vars.fromTrustedProxy() {
			continue
		}
		// Clone the map only once, at the first header to omit.
		if len(header) == len(r.Header) {
			header = maps.Clone(r.Header)
		}
		delete(header, name)
	}
	return header
}

// rawPath returns the path of a request as it was received.
func rawPath(r *http.Request) string { return before(r.RequestURI, "?") }

// before returns the part of s before the first mark, or all of it.
func before(s, mark string) string {
	s, _, _ = strings.Cut(s, mark)
	return s
}

// forward replaces the target of a request that goes upstream. It does not change a request if the
// target does not parse: Judge refuses that request later.
func forward(r *http.Request, target string) {
	if u, err := url.ParseRequestURI(target); err == nil {
		r.URL.Path, r.URL.RawPath, r.RequestURI = u.Path, u.RawPath, target
	}
}

// isEarlyData reports whether somebody else could have replayed a request (RFC 8470): the request
// came before the end of the TLS handshake, here or at the proxy in front.
func isEarlyData(r *http.Request) bool {
	return r.TLS != nil && !r.TLS.HandshakeComplete || slices.Contains(r.Header["Early-Data"], "1")
}

func isSafe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// variables are the variables of a request, as Caddy's server and the handlers before this one have
// set them.
type variables map[string]any

func varsOf(r *http.Request) variables {
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	return vars
}

// identity returns the identity that a service_users handler before this one has set, or nil.
func (vars variables) identity() *identity {
	id, _ := vars[identityVar].(*identity)
	return id
}
