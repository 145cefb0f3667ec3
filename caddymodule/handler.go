package caddymodule

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
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
// Handler sets these placeholders on a request that passes. They are empty on a request without an
// identity.
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

	// Percent-escapes to let pass in paths: hash, question_mark, backslash, slash, percent,
	// semicolon, space (at the beginning or end of a segment), latin1. A deny covers every way to
	// read them. Default: none.
	AllowEncoded []string `json:"allow_encoded,omitempty"`

	// Characters of Unicode to let pass in paths: lookalikes (of separators), spaces, format,
	// non_nfc. Default: none.
	AllowUnicode []string `json:"allow_unicode,omitempty"`

	// Raw bytes to let pass in paths: brackets, which are "[", "]", "|" and "^". Default: none.
	AllowRaw []string `json:"allow_raw,omitempty"`

	// More targets to let pass: merge_slashes, allow_trailing_dot. The names of earlier versions
	// are accepted too: allow_encoded_slash, allow_encoded_percent, allow_semicolon,
	// allow_non_nfc. Default: none.
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
	around     surroundings
	sites      [][]string      // for each way to the handler the hosts of its routes, as in serverWalk.hosts
	over       <-chan struct{} // closed when another configuration has replaced this one
	log        *zap.Logger
	sanitizer  *sanitizer
	identity   []identityHeader
	public     *access.Ruleset
	relax      access.Relax
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
	h.storeHandle = app.storeHandle
	h.over = ctx.Done()
	// The sampler keeps a flood of refusals from filling the log.
	h.log = moduleLog(ctx.Logger()).WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
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
	if err := literal(h); err != nil {
		return err
	}
	if h.Mode != "" && !access.Mode(h.Mode).Valid() {
		return fmt.Errorf("mode %q: choose \"enforce\" or \"observe\"", h.Mode)
	}
	h.Realm = cmp.Or(h.Realm, "service users")
	h.HeaderPrefix = cmp.Or(h.HeaderPrefix, defaultPrefix)
	h.ExpiryNotice = cmp.Or(h.ExpiryNotice, caddy.Duration(14*24*time.Hour))
	if strings.ContainsFunc(h.Realm, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r >= 0x7f }) {
		return fmt.Errorf("realm %q: only visible ASCII without quotes and backslashes "+
			"is allowed in a challenge", h.Realm)
	}
	h.challenges = []string{`Basic realm="` + h.Realm + `", charset="UTF-8"`}
	if h.Bearer {
		h.challenges = append(h.challenges, `Bearer realm="`+h.Realm+`"`)
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
	h.relax = 0
	for family, words := range h.optionLists() {
		for _, word := range *words {
			option, err := access.FindOption(family, word)
			if err != nil {
				return fmt.Errorf("%s: %w", cmp.Or(family, "relax"), err)
			}
			h.relax |= option.Relax
		}
	}
	var paths []string
	if h.Ready != "" {
		paths = append(paths, h.Ready)
	}
	if h.Self != nil {
		if grace := time.Duration(h.Self.Grace); grace < 0 || 0 < grace && grace < time.Second {
			return fmt.Errorf("self: the grace %s is shorter than a second", grace)
		}
		paths = append(paths, h.Self.Path)
	}
	for _, path := range paths {
		_, p := access.CheckTarget(path)
		if !p.OK() || path == "/" || strings.ContainsAny(path, "%?") || strings.HasSuffix(path, "/") {
			return fmt.Errorf("%q is not a path such as \"/_service_user\": it begins with a slash, "+
				"does not end in one, and has neither query nor escapes", path)
		}
	}
	return nil
}

// optionLists returns the lists of options for targets, by family.
func (h *Handler) optionLists() map[string]*[]string {
	return map[string]*[]string{
		"": &h.Relax, "allow_raw": &h.AllowRaw,
		"allow_encoded": &h.AllowEncoded, "allow_unicode": &h.AllowUnicode,
	}
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
//  1. clean: sanitise the headers, and take the Authorization values out. "sanitize" ends here.
//  2. judge: refuse an ambiguous request.
//  3. bypass: pass a request that needs no identity.
//  4. use: open the store; it gives the request its instant. Answer probes of the ready path, and
//     refuse with 503 while the store is missing or stale.
//  5. passForeign: pass a Basic login of another authenticator.
//  6. authenticate: find the service user, or refuse with 401 or 429.
//  7. noticeExpiry: add a header to the response if the end of the token is near.
//  8. serveSelf: answer paths of the self-service corner.
//  9. authorize: decide about every target, count the use of the token, or refuse with 403.
//  10. begin, remember and inject: make the request a stream that can be cut, and show its identity to
//     placeholders and to the upstream.
//  11. serve: call the next handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	vars := varsOf(r)
	rq := request{r: r, vars: vars, address: h.clientAddress(r, vars), begun: metrics.begin()}
	rq.authorization, rq.overridden = h.sanitizer.clean(r, vars.fromTrustedProxy(), rq.address)
	// A cache before this handler must see Authorization again when it stores the answer.
	if h.surroundings().cached && len(rq.authorization) > 0 {
		next = withAuthorization(next, rq.authorization)
	}
	knowPlaceholders(r, vars)
	if h.SanitizeOnly {
		return next.ServeHTTP(w, r)
	}

	if problem := h.judge(&rq); !problem.OK() {
		refused := refusal{
			status: problem.Status, candidate: rq.readLogin(),
			detail: problem.Detail, why: h.advice(rq, problem),
		}
		return h.refuse(w, r, refused)
	}
	rq.use(h.shared.live.Load())
	if h.bypass(&rq) {
		return next.ServeHTTP(w, r)
	}
	if rq.live == nil {
		rq.use(h.live(r.Context())) // waits while the store is being opened
	}
	ready := rq.live != nil && !rq.live.store.Stale()
	// A probe gets an answer of its own, so it comes before the 503 below.
	if rq.action.Path == h.Ready && h.Ready != "" {
		return writeReady(w, ready)
	}
	if !ready {
		return h.refuse(w, r, refusal{
			status: http.StatusServiceUnavailable, stale: rq.live != nil, candidate: rq.readLogin(),
			detail: "service users cannot be checked right now",
		})
	}
	rq.directory = rq.live.store.Directory()

	if h.passForeign(&rq) {
		return next.ServeHTTP(w, r)
	}
	if refused := h.authenticate(&rq); refused.status != 0 {
		return h.refuse(w, r, refused)
	}
	h.noticeExpiry(w, &rq)
	if h.Self.owns(rq.action.Path) {
		return h.serveSelf(w, &rq)
	}

	decided, decision := h.authorize(&rq)
	metrics.decided(rq.begun)
	metrics.users.count(rq.principal.ID(), h.perUser)
	// A refused request counts as a use too: the token was valid.
	rq.live.store.Use(rq.principal, rq.action.Now, rq.address, decision.RuleID())
	if h.refuses(decision) {
		return h.refuse(w, r, h.forbid(&rq, decided, decision))
	}

	show(r, vars, func() outcome {
		word := access.Granted.String()
		if !decision.Allowed() {
			word = "observed"
		}
		return outcome{word, rq.principal.ID(), rq.principal.TokenID(), decision.RuleID(), ""}
	})
	st := rq.live.streams.begin(h, w, &rq, decision)
	remember(r, vars, &st.identity)
	inject(r.Header, h.identity, rq.principal)
	if h.ForwardAuthorization {
		r.Header["Authorization"] = rq.authorization
	}
	return st.serve(r, next)
}

// count records the decision that the handler, or else a group, would have made if it enforced its
// rules. passes means that this handler lets the request pass without an allow.
func (h *Handler) count(rq *request, action access.Action, decision access.Decision, passes bool) {
	action.Path = access.MaskSecrets(action.Path)
	first, counted := rq.live.recall.Observe(rq.principal, action, decision, passes, time.Unix(action.Now, 0))
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
		c.Write(zap.String("would", string(would)), zap.String("service_user", rq.principal.ID()),
			zap.String("rule", rule), zap.String("method", action.Method),
			zap.String("path", access.PathText(action.Path)))
	}
}

// forbid returns the refusal of a request that no rule allows or that a rule denies. An admin can
// have the decision explained by its id for a while.
func (h *Handler) forbid(rq *request, action access.Action, decision access.Decision) refusal {
	p := rq.principal
	kept := access.Recalled{
		ID: newDecisionID(), Status: http.StatusForbidden, At: time.Unix(action.Now, 0),
		UserID: p.ID(), TokenID: p.TokenID(),
		Action: action, Revision: rq.directory.Revision(), Reason: decision.Reason,
	}
	kept.Action.Path = access.MaskSecrets(action.Path)
	if decision.Rule != nil {
		kept.Rule, kept.Group = *decision.Rule, decision.Group.ID
	}
	rq.live.recall.Keep(kept)
	return refusal{
		status: http.StatusForbidden, candidate: p.ID(), user: p.ID(), reason: decision.Reason,
		decision: decision, action: kept.Action, decisionID: kept.ID, token: kept.TokenID,
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

// newDecisionID returns a new id for a refusal, by which an admin can have it explained.
func newDecisionID() string { return "decision_" + ksuid.New().String() }

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
