package caddymodule

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/segmentio/ksuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/net/http/httpguts"

	"github.com/serviceusers/caddy-service-users/access"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler lets the requests of service users through: it checks HTTP Basic
// credentials (id:token) against the store and the permission rules, and tells
// the upstream who it is in headers that no client can forge. Everything else
// is refused with 400, 401, 403 or 503.
//
// It sets these placeholders, once a request is let through:
//
// Placeholder | Description
// ------------|------------
// `{http.auth.user.id}` | The id of the service user
// `{http.auth.user.name}` | Its name
// `{http.auth.user.role}` | Its role on the admin API
// `{http.auth.user.teams}` | Its teams, separated by commas
// `{http.auth.user.groups}` | The permission groups in effect, separated by commas
// `{http.auth.user.token_id}` | The id of the token
// `{http.service_users.decision}` | `allow`
// `{http.service_users.rule}` | The id of the rule that decided
//
// and on a refusal `{http.auth.candidate.id}`, `{http.service_users.decision}`
// (`deny`) and, with 403, `{http.service_users.decision_id}`.
type Handler struct {
	// The realm of the challenge. Default: "service users".
	Realm string `json:"realm,omitempty"`

	// Which identity headers the upstream gets: id, name, display_name, groups,
	// role, teams, token_id. Default: id, name and groups.
	Headers []string `json:"headers,omitempty"`

	// What the names of the identity headers begin with. Nothing a client sends
	// under such a name arrives. Default: "X-Service-User-".
	HeaderPrefix string `json:"header_prefix,omitempty"`

	// Rules, without their effect, for what needs no credential, such as
	// "GET /healthz". No identity goes upstream there.
	Public []string `json:"public,omitempty"`

	// Accept "Authorization: Bearer <token>" as well as Basic. Default: no.
	Bearer bool `json:"bearer,omitempty"`

	// Pass the client's Authorization on to the upstream. Default: no; the
	// secret stays here.
	ForwardAuthorization bool `json:"forward_authorization,omitempty"`

	// More header names that are removed from requests.
	Strip []string `json:"strip,omitempty"`

	// Header names that are not removed although they are by default. Identity
	// headers and credentials cannot be kept.
	Keep []string `json:"keep,omitempty"`

	storeHandle
	log       *zap.Logger
	sanitizer *sanitizer
	identity  []identityHeader
	public    *access.Ruleset
	challenge string
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.service_users",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision prepares the tables that requests are checked with.
func (h *Handler) Provision(ctx caddy.Context) (err error) {
	if h.storeHandle, err = newStoreHandle(ctx); err != nil {
		return err
	}
	// A flood of refusals must not become a flood of lines.
	h.log = ctx.Logger().WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, 100, 1000)
	}))
	if h.Realm == "" {
		h.Realm = "service users"
	}
	if strings.ContainsFunc(h.Realm, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r >= 0x7f }) {
		return fmt.Errorf("realm %q: only visible ASCII without quotes and backslashes can stand in a challenge", h.Realm)
	}
	h.challenge = `Basic realm="` + h.Realm + `", charset="UTF-8"`
	if h.HeaderPrefix == "" {
		h.HeaderPrefix = "X-Service-User-"
	}
	if !httpguts.ValidHeaderFieldName(h.HeaderPrefix) || len(foldName(h.HeaderPrefix)) < 3 {
		return fmt.Errorf("header_prefix %q is not the beginning of a header name", h.HeaderPrefix)
	}
	if h.identity, err = identityHeaders(h.HeaderPrefix, h.Headers); err != nil {
		return err
	}
	for _, name := range append(append([]string{}, h.Strip...), h.Keep...) {
		if !httpguts.ValidHeaderFieldName(name) {
			return fmt.Errorf("%q is not a header name", name)
		}
	}
	if err := checkKeep(h.Keep); err != nil {
		return err
	}
	h.sanitizer = newSanitizer(strings.TrimSuffix(h.HeaderPrefix, "-"), h.Strip, h.Keep)
	if h.public, err = publicRules(h.Public); err != nil {
		return err
	}
	return nil
}

// publicRules compiles the rules for what needs no credential.
func publicRules(texts []string) (*access.Ruleset, error) {
	var rules []access.Rule
	for _, text := range texts {
		rule, err := access.ParseRule("allow " + text)
		if err != nil {
			return nil, fmt.Errorf("public %s: %w", text, err)
		}
		rules = append(rules, rule)
	}
	return access.NewRuleset(rules), nil
}

// ServeHTTP is the life of a request, in order: sanitise, refuse what is
// ambiguous, authenticate, authorise, inject, pass on.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	authorization := h.sanitizer.clean(r, isTrustedProxy(r))

	action, problem := judge(r)
	if !problem.OK() {
		return h.refuse(w, r, refusal{status: problem.Status, detail: problem.Detail})
	}
	if h.public.Covers(action) {
		return next.ServeHTTP(w, r)
	}

	if len(authorization) > 1 {
		return h.refuse(w, r, refusal{status: http.StatusBadRequest, detail: "the request has more than one Authorization field"})
	}

	open := h.open(r.Context())
	if open == nil {
		return h.refuse(w, r, refusal{status: http.StatusServiceUnavailable, detail: "service users cannot be checked right now", log: "the store is not loaded"})
	}
	directory := open.Directory()

	credential, why := h.credential(authorization)
	var principal access.Principal
	if why == access.Granted {
		principal, why = directory.Authenticate(credential, clientAddress(r), open.Now().Unix())
	}
	if why != access.Granted {
		return h.refuse(w, r, refusal{status: http.StatusUnauthorized, candidate: credential.ID, reason: why})
	}

	decision := directory.Authorize(principal, action)
	if !decision.Allowed() {
		return h.refuse(w, r, refusal{status: http.StatusForbidden, candidate: principal.User.ID, reason: decision.Reason, decision: decision})
	}

	remember(r, &identity{principal, decision})
	for i := range h.identity {
		h.identity[i].set(r.Header, principal)
	}
	if h.ForwardAuthorization {
		r.Header["Authorization"] = authorization
	}
	return next.ServeHTTP(w, r)
}

// credential reads the one Authorization value of a request.
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

// judge finds out what a request wants, or why that cannot be said.
//
// Two targets are checked: the one that the client sent, and the one that will
// be forwarded when a rewrite stands before this handler. Rules see the latter.
func judge(r *http.Request) (access.Action, access.Problem) {
	if p := access.CheckMethod(r.Method); !p.OK() {
		return access.Action{}, p
	}
	host, p := access.CheckHost(r.Host)
	if !p.OK() {
		return access.Action{}, p
	}
	path, p := access.CheckTarget(r.RequestURI)
	if !p.OK() {
		return access.Action{}, p
	}
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		if original.RequestURI != r.RequestURI {
			if _, p := access.CheckTarget(original.RequestURI); !p.OK() {
				return access.Action{}, p
			}
		}
		if p := access.CheckMethod(original.Method); !p.OK() {
			return access.Action{}, p
		}
	}
	if path != r.URL.Path || r.URL.Opaque != "" || r.URL.Host != "" {
		return access.Action{}, access.Problem{Status: http.StatusBadRequest, Detail: "the request target is not the one that would be forwarded"}
	}
	if isEarlyData(r) && !isSafe(r.Method) {
		return access.Action{}, access.Problem{Status: http.StatusTooEarly, Detail: "an unsafe request must wait for the TLS handshake to end"}
	}
	return access.Action{Method: r.Method, Host: host, Path: path}, access.Problem{}
}

// isEarlyData reports whether a request could have been replayed by somebody
// else (RFC 8470): it came before the handshake was over, here or at the proxy
// in front.
func isEarlyData(r *http.Request) bool {
	return r.TLS != nil && !r.TLS.HandshakeComplete || r.Header.Get("Early-Data") == "1"
}

func isSafe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// isTrustedProxy reports whether the peer is one of the server's trusted_proxies.
func isTrustedProxy(r *http.Request) bool {
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return trusted
}

// clientAddress returns the client's address as Caddy sees it, honouring
// trusted_proxies. The zero address is in no list.
func clientAddress(r *http.Request) netip.Addr {
	text, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, _ := netip.ParseAddr(text)
	return addr
}

// newDecisionID makes the id under which a refusal can be asked about later.
func newDecisionID() string { return "decision_" + ksuid.New().String() }

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
