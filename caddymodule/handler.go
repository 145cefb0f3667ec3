package caddymodule

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/ksuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/serviceusers/caddy-service-users/access"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler passes the requests of service users to the next handler. It checks HTTP Basic
// credentials (id:token) against the store and the permission rules. Identity headers that clients
// cannot forge name the service user to the upstream. Handler refuses all other requests with 400,
// 401, 403, 405, 425, 429, 501 or 503.
//
// Handler sets these placeholders on a request that passes:
//
// Placeholder | Description
// ------------|------------
// `{http.auth.user.id}` | The id of the service user
// `{http.auth.user.name}` | Its name
// `{http.auth.user.role}` | Its role on the admin API
// `{http.auth.user.teams}` | Its teams, separated by commas
// `{http.auth.user.groups}` | The permission groups in effect, separated by commas
// `{http.auth.user.token_id}` | The id of the token
// `{http.service_users.decision}` | `allow`, or `observe` when no rule allows it
// `{http.service_users.rule}` | The id of the rule that decided, or the key of its permission
//
// On a refusal it sets `{http.auth.candidate.id}` and `{http.service_users.decision}` (`deny`), and
// with 403 also `{http.service_users.decision_id}`.
type Handler struct {
	// "observe" lets a request with a valid identity pass although no rule allows it, and
	// counts the request; a deny still refuses. Use it to find the rules that are missing.
	// Default: "enforce".
	Mode string `json:"mode,omitempty"`

	// The realm of the challenge. Default: "service users".
	Realm string `json:"realm,omitempty"`

	// The identity headers that the upstream gets: id, name, display_name, groups, role, teams,
	// token_id; or none. Default: id, name and groups.
	Headers []string `json:"headers,omitempty"`

	// The prefix of the names of the identity headers. A client's headers with this prefix are
	// removed. Default: "X-Service-User-".
	HeaderPrefix string `json:"header_prefix,omitempty"`

	// Rules, without their effect, for requests that need no credential, such as "GET
	// /healthz". These requests go upstream without an identity.
	Public []string `json:"public,omitempty"`

	// On public paths, leave an Authorization field to the upstream if it cannot be the
	// credential of a service user, whatever its spelling. Default: no.
	KeepAuthorization bool `json:"keep_authorization,omitempty"`

	// The treatment of a request without Basic (or enabled Bearer) credentials. "pass" passes
	// the request to the next handler, sanitised, without identity, with its Authorization
	// field, so that another authenticator can check it. "pass unknown", or "pass" in mode
	// "observe", also passes a Basic login that cannot be that of a service user, for
	// basic_auth behind this handler; strangers can then find out which aliases exist. Default:
	// the request is refused.
	Otherwise string `json:"otherwise,omitempty"`

	// The path of health probes, which this handler answers: with 200 while it can decide
	// requests, else with 503. Default: none.
	Ready string `json:"ready,omitempty"`

	// Let well-formed CORS preflight requests pass, without identity. Default: no.
	CORSPreflight bool `json:"cors_preflight,omitempty"`

	// The self-service corner for the clients themselves. Default: none.
	Self *Self `json:"self,omitempty"`

	// Accept "Authorization: Bearer <token>" as well as Basic. Default: no.
	Bearer bool `json:"bearer,omitempty"`

	// Refuse credentials that arrive unencrypted from another machine, instead of
	// only warning about them. Default: no.
	RequireTLS bool `json:"require_tls,omitempty"`

	// Ambiguous targets to let pass, for an upstream that is known to read them as the rules
	// do: allow_encoded_slash, allow_encoded_percent, allow_semicolon,
	// merge_slashes, allow_trailing_dot, allow_non_nfc. Default: none.
	Relax []string `json:"relax,omitempty"`

	// The form of refusals: "problem" writes an RFC 9457 problem, "caddy" returns the error to
	// the handle_errors routes of the site. Default: "problem".
	Errors string `json:"errors,omitempty"`

	// The time before the expiry of a token from which responses have the header
	// Service-User-Token-Expires. Default: 14 days; a negative value switches the header off.
	ExpiryNotice caddy.Duration `json:"expiry_notice,omitempty"`

	// Pass the client's Authorization on to the upstream. Default: no, so that the upstream
	// does not see the secret.
	ForwardAuthorization bool `json:"forward_authorization,omitempty"`

	// More header names that are removed from requests. A name that ends in "*" covers all
	// headers that begin with the text before it.
	Strip []string `json:"strip,omitempty"`

	// Header names, or prefixes that end in "*", to keep although they are removed by default.
	// Identity headers, credentials and headers that control the connection cannot be kept.
	Keep []string `json:"keep,omitempty"`

	// Only remove headers that a client could forge, and check nothing. For error routes that
	// lead to an upstream. Default: no.
	SanitizeOnly bool `json:"sanitize_only,omitempty"`

	storeHandle
	place      place
	over       <-chan struct{} // closed when another configuration has replaced this one
	log        *zap.Logger
	sanitizer  *sanitizer
	identity   []identityHeader
	public     *access.Ruleset
	relax      access.Relax
	self       *selfCorner
	challenges []string
	dropped    *atomic.Bool // the log has reported a dropped Authorization field
}

// Self is the self-service corner. Clients use it to look up their identity and permissions, and to
// rotate their token.
type Self struct {
	// The path of the corner.
	Path string `json:"path"`

	// Let a client rotate its own token. Default: no.
	Rotate bool `json:"rotate,omitempty"`

	// The time for which the old token stays valid after a rotation. Default: 1 hour.
	Grace caddy.Duration `json:"grace,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.service_users",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision prepares the tables that the handler checks requests with.
func (h *Handler) Provision(ctx caddy.Context) (err error) {
	app, err := serviceUsers(ctx)
	if err != nil {
		return err
	}
	app.guards = append(app.guards, h)
	h.storeHandle = app.handle()
	h.over = ctx.Done()
	// The sampler keeps a flood of refusals from filling the log.
	h.log = ctx.Logger().WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, 100, 1000)
	}))
	if err := h.prepare(); err != nil {
		return err
	}
	if h.observes() {
		h.log.Warn("this site only observes: valid credentials pass although no rule allows the request; " +
			"\"caddy service-user would-deny\" lists what enforcing would refuse")
	}
	return nil
}

// Cleanup has all streams of an observing handler judged again, since the next configuration may
// enforce.
func (h *Handler) Cleanup() error {
	if h.observes() && h.shared != nil {
		if live := h.shared.live.Load(); live != nil {
			live.streams.lookAgain()
		}
	}
	return nil
}

func (h *Handler) observes() bool { return h.Mode == string(access.Observe) }

// observesStill is observes for streams, which can outlive their configuration.
func (h *Handler) observesStill() bool { return h.observes() && !isClosed(h.over) }

// prepare sets the defaults, checks the settings and compiles them into tables. UnmarshalCaddyfile
// calls it too, so that an error has the line number of the mistake.
func (h *Handler) prepare() (err error) {
	h.dropped = new(atomic.Bool)
	if h.Mode != "" && !access.Mode(h.Mode).Valid() {
		return fmt.Errorf("mode %q: choose \"enforce\" or \"observe\"", h.Mode)
	}
	if h.Realm == "" {
		h.Realm = "service users"
	}
	if strings.ContainsFunc(h.Realm, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r >= 0x7f }) {
		return fmt.Errorf("realm %q: only visible ASCII without quotes and backslashes is allowed in a challenge", h.Realm)
	}
	h.challenges = []string{`Basic realm="` + h.Realm + `", charset="UTF-8"`}
	if h.Bearer {
		h.challenges = append(h.challenges, `Bearer realm="`+h.Realm+`"`)
	}
	if h.HeaderPrefix == "" {
		h.HeaderPrefix = "X-Service-User-"
	}
	if h.identity, err = identityHeaders(h.HeaderPrefix, h.Headers); err != nil {
		return err
	}
	if h.sanitizer, err = newSanitizer(h.HeaderPrefix, h.Strip, h.Keep); err != nil {
		return err
	}
	if h.public, err = publicRules(h.Public); err != nil {
		return err
	}
	if h.Otherwise != "" && h.Otherwise != "pass" && h.Otherwise != "pass unknown" {
		return fmt.Errorf("otherwise %q: choose \"pass\" or \"pass unknown\"", h.Otherwise)
	}
	if h.Errors != "" && h.Errors != "problem" && h.Errors != "caddy" {
		return fmt.Errorf("errors %q: choose \"problem\" or \"caddy\"", h.Errors)
	}
	if h.ExpiryNotice == 0 {
		h.ExpiryNotice = caddy.Duration(14 * 24 * time.Hour)
	}
	options := access.RelaxByName()
	h.relax = 0
	for _, name := range h.Relax {
		if options[name] == 0 {
			return fmt.Errorf("relax: %q is not an option", name)
		}
		h.relax |= options[name]
	}
	for _, path := range []string{h.Ready, h.selfPath()} {
		if path == "" {
			continue
		}
		_, p := access.CheckTarget(path)
		if !p.OK() || path == "/" || strings.ContainsAny(path, "%?") || strings.HasSuffix(path, "/") {
			return fmt.Errorf("%q is not a path such as \"/_service_user\": it begins with a slash, "+
				"does not end in one, and has neither query nor escapes", path)
		}
	}
	if h.Self != nil {
		if grace := time.Duration(h.Self.Grace); grace < 0 || 0 < grace && grace < time.Second {
			return fmt.Errorf("self: the grace %s is shorter than a second", grace)
		}
		h.self = newSelfCorner(h.Self.Path, h.Self.Rotate, time.Duration(h.Self.Grace))
	}
	return nil
}

func (h *Handler) selfPath() string {
	if h.Self == nil {
		return ""
	}
	return h.Self.Path
}

// publicRules compiles the rules for requests that need no credential.
func publicRules(texts []string) (*access.Ruleset, error) {
	var rules []access.Rule
	for _, text := range texts {
		rule, err := access.ParseRule("allow " + text)
		if err != nil {
			return nil, fmt.Errorf("public %s: %w", text, err)
		}
		rules = append(rules, rule)
	}
	set, err := access.NewRuleset(rules)
	if err != nil {
		return nil, fmt.Errorf("public: %w", err)
	}
	return set, nil
}

// ServeHTTP handles one request, in this order:
//
//  1. Sanitise the headers, and keep the Authorization values. "sanitize" ends here.
//  2. Judge the target: refuse an ambiguous request.
//  3. Pass requests that need no identity: public paths, preflights, other authenticators.
//  4. Answer probes of the ready path.
//  5. Refuse with 503 while the store is missing or stale.
//  6. Pass a Basic login of another authenticator ("otherwise pass unknown").
//  7. Authenticate the service user, or refuse.
//  8. Add the header about an expiry of the token that is near.
//  9. Answer paths of the self-service corner.
//
// 10. Authorise every target of the request, and record the use of the token; refuse or go on.
// 11. Begin to watch the request as a stream.
// 12. Inject the identity headers.
// 13. Call the next handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	vars := varsOf(r)
	address := h.clientAddress(r, vars)
	authorization, overridden := h.sanitizer.clean(r, vars.fromTrustedProxy(), address)
	// A cache before this handler must see Authorization again when it stores the answer.
	if h.where().cached && len(authorization) > 0 {
		next = withAuthorization(next, authorization)
	}
	if h.SanitizeOnly {
		return next.ServeHTTP(w, r)
	}

	action, further, problem := h.judge(r, vars, address)
	if problem.OK() && overridden {
		problem = MethodOverride
	}
	if !problem.OK() {
		return h.refuse(w, r, refusal{status: problem.Status, detail: problem.Advice()})
	}
	if passes := h.needsNoIdentity(r, vars, action, further, authorization); passes != nil {
		passes.Inc()
		return next.ServeHTTP(w, r)
	}
	live := h.live(r.Context())
	// A probe gets an answer of its own, so it comes before the 503 below.
	if action.Path == h.Ready && h.Ready != "" {
		return writeReady(w, live != nil && !live.Stale())
	}
	if live == nil || live.Stale() {
		return h.refuse(w, r, refusal{
			status: http.StatusServiceUnavailable, stale: live != nil,
			detail: "service users cannot be checked right now",
		})
	}
	// The request may have waited for the store to open: its time must not be before the
	// directory's.
	action.Now = max(action.Now, live.Latest())

	directory := live.Directory()
	passesForeign := h.Otherwise == "pass unknown" || h.Otherwise == "pass" && h.observes()
	if passesForeign && h.isForeign(directory, vars, action, authorization) {
		r.Header["Authorization"] = authorization
		metrics.passed.Inc()
		return next.ServeHTTP(w, r)
	}
	principal, refused := h.authenticate(live, directory, r, vars, action, authorization)
	if refused.status != 0 {
		return h.refuse(w, r, refused)
	}
	h.noticeExpiry(w, principal, action)
	if h.self.owns(action.Path) {
		return h.serveSelf(w, r, live, principal, action)
	}

	decided, decision := h.authorize(live, directory, principal, action, further)
	// A refused request counts as a use too: the token was valid.
	live.Use(principal, action.Now, action.Address, decision.RuleID())
	if h.refuses(decision) {
		return h.refuse(w, r, h.forbid(live, directory, principal, decided, decision))
	}

	st := live.streams.begin(h, w, r, principal, decision, action, further)
	remember(r, vars, &st.identity)
	inject(r.Header, h.identity, principal)
	if h.ForwardAuthorization {
		r.Header["Authorization"] = authorization
	}
	return st.serve(r, next)
}

// count records the decision that the handler, or else a group, would have made if it enforced its
// rules. passes means that this handler lets the request pass without an allow.
func (h *Handler) count(
	live *liveStore, p access.Principal, action access.Action, decision access.Decision, passes bool,
) {
	action.Path = access.MaskSecrets(action.Path)
	first, counted := live.recall.Observe(p, action, decision, passes, time.Unix(action.Now, 0))
	if !counted {
		return
	}
	level := zap.DebugLevel
	if first {
		level = zap.InfoLevel // later requests of this kind are only in the list of would-deny
	}
	would, rule := access.Deny, ""
	if decision.Would.Effect != "" {
		would, rule = decision.Would.Effect, decision.Would.Rule.ID
	}
	if c := h.log.Check(level, "enforcing would decide otherwise"); c != nil {
		c.Write(zap.String("would", string(would)), zap.String("service_user", p.ID()),
			zap.String("rule", rule), zap.String("method", action.Method),
			zap.String("path", access.PlainPath(action.Path)))
	}
}

// forbid returns the refusal of a request that no rule allows or that a rule denies. An admin can
// have the decision explained by its id for a while.
func (h *Handler) forbid(
	live *liveStore, directory *access.Directory, p access.Principal, action access.Action, decision access.Decision,
) refusal {
	kept := access.Recalled{
		ID: newDecisionID(), At: time.Unix(action.Now, 0), UserID: p.ID(), TokenID: p.TokenID(),
		Action: action, Revision: directory.Revision(), Reason: decision.Reason,
	}
	kept.Action.Path = access.MaskSecrets(action.Path)
	if decision.Rule != nil {
		kept.Rule, kept.Group = *decision.Rule, decision.Group.ID
	}
	live.recall.Keep(kept)
	return refusal{
		status: http.StatusForbidden, candidate: p.ID(), reason: decision.Reason,
		decision: decision, action: kept.Action, decisionID: kept.ID,
	}
}

// needsNoIdentity returns the counter of requests that pass without an identity: public paths,
// preflights, and requests for another authenticator. It returns nil for a request that has to
// identify itself.
func (h *Handler) needsNoIdentity(
	r *http.Request, vars variables, action access.Action, further []target, authorization []string,
) prometheus.Counter {
	if h.isPublic(action, further) {
		if h.KeepAuthorization {
			h.keepForeign(r, authorization)
		}
		return metrics.public
	}
	if h.CORSPreflight && isPreflight(r) && len(authorization) == 0 {
		// Over HTTP/3 an unknown length can mean that the request has no body. Drop one all
		// the same.
		r.Body, r.ContentLength = http.NoBody, 0
		return metrics.public
	}
	// More than one Authorization field is a 400 of authenticate. A request with the identity of
	// a handler before this one is judged as that service user.
	if h.Otherwise == "" || action.Path == h.Ready || h.self.owns(action.Path) || len(authorization) > 1 ||
		vars.identity() != nil {
		return nil
	}
	if len(authorization) == 1 && (access.HasScheme(authorization[0], "basic") ||
		h.Bearer && access.HasScheme(authorization[0], "bearer")) {
		return nil
	}
	h.keepForeign(r, authorization)
	return metrics.passed
}

// isForeign reports whether a request has the Basic login of another authenticator:
// [access.CheckForeign] accepts its only Authorization field, and no service user has the login as
// its alias.
func (h *Handler) isForeign(
	directory *access.Directory, vars variables, action access.Action, authorization []string,
) bool {
	if len(authorization) != 1 || h.self.owns(action.Path) || vars.identity() != nil ||
		access.CheckForeign(authorization[0]) != "" {
		return false
	}
	login, ok := access.BasicLogin(authorization[0])
	if !ok {
		return false
	}
	_, known := directory.User(login)
	return !known
}

// keepForeign puts back the Authorization field of a request that this handler does not
// authenticate, unless the field may be the credential of a service user. The log reports the first
// dropped field of a configuration, with the reason.
func (h *Handler) keepForeign(r *http.Request, authorization []string) {
	if len(authorization) == 0 {
		return
	}
	reason := "there is more than one"
	if len(authorization) == 1 {
		reason = access.CheckForeign(authorization[0])
	}
	if reason == "" {
		r.Header["Authorization"] = authorization
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

// authenticate returns the principal of a request, or a refusal. The refusal has status 0 if the
// request is authenticated.
func (h *Handler) authenticate(
	live *liveStore, directory *access.Directory, r *http.Request,
	vars variables, action access.Action, authorization []string,
) (access.Principal, refusal) {
	if len(authorization) > 1 {
		return access.Principal{}, refusal{
			status: http.StatusBadRequest, detail: "the request has more than one Authorization field",
		}
	}
	if len(authorization) == 1 && !isPrivate(r, vars) {
		h.warnOfPlaintext(r)
		if h.RequireTLS {
			return access.Principal{}, refusal{
				status: http.StatusBadRequest,
				detail: "credentials must not be sent unencrypted; use https, and refresh the token, which has been exposed",
			}
		}
	}
	credential, reason := h.credential(authorization)
	var principal access.Principal
	switch {
	case reason == access.Granted:
		principal, reason = directory.Authenticate(credential, action.Address, action.Now)
	case reason == access.NoCredential && vars.identity() != nil:
		// A handler before this one has removed the credential from the request. Check its
		// principal again: the directory may have changed.
		principal, reason = directory.Resume(vars.identity().who(), action.Address, action.Now)
	}
	if reason == access.Granted {
		return principal, refusal{}
	}
	refused := refusal{status: http.StatusUnauthorized, candidate: credential.ID, reason: reason}
	// The throttle comes after the check of the secret, so it never delays a right one.
	if reason != access.NoCredential {
		if wait := live.fail(credential.ID, r, action.Address, live.Now()); wait > 0 {
			refused.status, refused.retryAfter = http.StatusTooManyRequests, wait
		}
	}
	return access.Principal{}, refused
}

// credential parses the only Authorization value of a request.
func (h *Handler) credential(authorization []string) (access.Credential, access.Reason) {
	if len(authorization) == 0 {
		return access.Credential{}, access.NoCredential
	}
	if c, ok := access.ParseBasic(authorization[0]); ok {
		return c, access.Granted
	}
	if h.Bearer {
		if c, ok := access.ParseBearer(authorization[0]); ok {
			return c, access.Granted
		}
	}
	return access.Credential{}, access.BadCredential
}

// noticeExpiry adds the header Service-User-Token-Expires to the response if the token is retiring
// or expires within ExpiryNotice.
func (h *Handler) noticeExpiry(w http.ResponseWriter, p access.Principal, action access.Action) {
	if until := p.Until(); until != 0 && h.ExpiryNotice > 0 {
		end := time.Unix(until, 0).UTC()
		if p.Retiring() || end.Sub(time.Unix(action.Now, 0)) < time.Duration(h.ExpiryNotice) {
			w.Header().Set("Service-User-Token-Expires", end.Format(time.RFC3339))
		}
	}
}

// withAuthorization puts Authorization back into the request after the next handler has answered. A
// cache before this handler then knows not to store the answer for everybody (RFC 9111, section
// 3.5).
func withAuthorization(next caddyhttp.Handler, authorization []string) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		err := next.ServeHTTP(w, r)
		// Not after an error: the error routes of the site may proxy the request, and must
		// not see the secret.
		if err == nil {
			r.Header["Authorization"] = authorization
		}
		return err
	})
}

// judge returns the action of a request on its current target, and the further targets that an
// upstream may act on. It returns a problem if the request is ambiguous.
func (h *Handler) judge(r *http.Request, vars variables, address netip.Addr) (access.Action, []target, access.Problem) {
	if h.relax&access.MergedSlashes != 0 {
		h.mergeSlashes(r)
	}
	// Caddy's proxy turns an extended CONNECT into a GET, so rules for GET decide about it.
	method := r.Method
	if isWebSocketConnect(r) {
		method = http.MethodGet
	}
	was := target{method: method} // the request as the client sent it, before any rewrite
	original, known := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if known && (original.RequestURI != r.RequestURI || original.Method != r.Method) {
		if original.Method != r.Method {
			was.method = original.Method
		}
		p := access.CheckMethod(was.method)
		if !p.OK() {
			return access.Action{}, nil, p
		}
		if was.path, p = h.relax.CheckTarget(original.RequestURI); !p.OK() {
			return access.Action{}, nil, p
		}
	}
	if p := access.CheckMethod(method); !p.OK() {
		return access.Action{}, nil, p
	}
	host, p := access.CheckHost(r.Host)
	if !p.OK() {
		return access.Action{}, nil, p
	}
	path, p := h.relax.CheckTarget(r.RequestURI)
	if !p.OK() {
		return access.Action{}, nil, p
	}
	// A handler may have changed URL without RequestURI. The rules must see the path that goes
	// upstream.
	if path != r.URL.Path && access.PlainPath(path) != r.URL.Path || r.URL.Opaque != "" || r.URL.Host != "" {
		return access.Action{}, nil, access.Problem{
			Status: http.StatusBadRequest, Detail: "the request target is not the one that would be forwarded",
		}
	}
	if isEarlyData(r) && !isSafe(r.Method) {
		return access.Action{}, nil, access.Problem{
			Status: http.StatusTooEarly, Detail: "an unsafe request must wait for the TLS handshake to end",
		}
	}
	if was.path == "" {
		was.path = path
	}
	further, p := h.further(r, target{method, path}, was)
	return access.Action{
		Method: method, Host: host, Path: path,
		Address: address, Header: conditionHeader(r, vars), Now: h.now(),
	}, further, p
}

// conditionHeader returns the headers that conditions can read: those that arrive at the upstream
// as the client sent them. Caddy writes X-Forwarded-For, -Proto and -Host itself for a peer that is
// not trusted, so conditionHeader omits them then.
func conditionHeader(r *http.Request, vars variables) http.Header {
	header := r.Header
	for _, name := range [...]string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
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

// merged returns a target with its slashes merged if the option merge_slashes is on, else the
// target.
func (h *Handler) merged(target string) string {
	if h.relax&access.MergedSlashes == 0 || !strings.HasPrefix(target, "/") {
		return target
	}
	return access.MergeSlashes(target)
}

// forward replaces the target of a request that goes upstream. It does not change a request if the
// target does not parse: CheckTarget refuses that request later.
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

// newDecisionID returns a new id for a refusal, by which an admin can have it explained.
func newDecisionID() string { return "decision_" + ksuid.New().String() }

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
