package caddymodule

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// defaultGrace is the time for which a rotated token stays valid by default.
const defaultGrace = time.Hour

// maxSelfBody limits the body of a request to the corner, in bytes.
const maxSelfBody = 64 << 10

// owns reports whether a decoded path belongs to the self-service corner. s may be nil.
func (s *Self) owns(path string) bool {
	if s == nil {
		return false
	}
	path = strings.TrimSuffix(path, "/")
	return path == s.Path || path == s.Path+"/can" || path == s.Path+"/rotate"
}

// serveSelf answers a request to a path that the self-service corner owns. A client looks up its
// identity and its permissions there, and rotates its token. It needs valid credentials, but no rule.
func (h *Handler) serveSelf(w http.ResponseWriter, rq *request) error {
	r := rq.r
	rq.live.store.Use(rq.principal, rq.action.Now, rq.address, "")
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.auth.user.id", rq.principal.ID()) // for the access log
	}
	show(r, rq.vars, func() outcome {
		return outcome{outcome: "self_service", user: rq.principal.ID(), token: rq.principal.TokenID()}
	})
	part := strings.TrimPrefix(strings.TrimSuffix(r.URL.Path, "/"), h.Self.Path)
	rotate, can := part == "/rotate", part == "/can"
	if rotate && !h.Self.Rotate {
		return selfProblem(w, r, http.StatusNotFound,
			"tokens cannot be rotated here; ask an admin for a new one")
	}
	allow := []string{http.MethodGet, http.MethodHead}
	if rotate || can {
		allow = []string{http.MethodPost}
	}
	switch {
	case !slices.Contains(allow, r.Method):
		methods := strings.Join(allow, ", ")
		w.Header().Set("Allow", methods)
		return selfProblem(w, r, http.StatusMethodNotAllowed, "the methods here are: "+methods)
	case rotate:
		return h.serveRotate(w, rq)
	case can:
		return h.serveCan(w, rq)
	}
	return h.serveWho(w, rq)
}

// who is the answer to a GET of the corner's path.
type who struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	DisplayName string   `json:"display_name"`
	Groups      []string `json:"groups"` // names of the permission groups in effect
	Rules       []string `json:"rules"`  // without their conditions
	Token       whoToken `json:"token"`
}

type whoToken struct {
	ID        string     `json:"id"`
	ExpiresAt *time.Time `json:"expires_at"` // as endOf returns it
	Retiring  bool       `json:"retiring"`
}

func (h *Handler) serveWho(w http.ResponseWriter, rq *request) error {
	p := rq.principal
	out := who{
		ID: p.ID(), Name: p.Name(), DisplayName: p.DisplayName(),
		Groups: append([]string{}, p.Groups()...), Rules: []string{},
		Token: whoToken{ID: p.TokenID(), ExpiresAt: endOf(p), Retiring: p.Retiring()},
	}
	seen := make(map[string]bool)
	for _, rule := range rq.directory.Rules(p) {
		rule.When = ""
		if text := rule.String(); !seen[text] {
			seen[text] = true
			out.Rules = append(out.Rules, text)
		}
	}
	defer closeUnread(w, rq.r)()
	return writeJSON(w, http.StatusOK, "application/json", out, "")
}

// endOf returns the instant from which a principal is refused: the earliest end of its service
// user, its token and the grace of the token. nil means never.
func endOf(p access.Principal) *time.Time {
	if p.Until() == 0 {
		return nil
	}
	return new(time.Unix(p.Until(), 0).UTC())
}

// canInput is a request that a service user may want to make.
type canInput struct {
	Method string `json:"method"`
	Host   string `json:"host"` // "" is the host of the corner
	Path   string `json:"path"` // as in a request; the query is ignored
}

type canOutput struct {
	Allowed bool   `json:"allowed"` // whether the request would pass; in observe mode also without a rule
	Answer  string `json:"answer"`  // allowed, no_rule or denied
}

func (h *Handler) serveCan(w http.ResponseWriter, rq *request) error {
	var in canInput
	if err := decodeSelf(w, rq.r, &in); err != nil {
		return selfError(w, rq.r, err)
	}
	asked, problem := h.askedFor(rq, in)
	if !problem.OK() {
		return selfProblem(w, rq.r, http.StatusBadRequest, cmp.Or(problem.Part, "path")+": "+problem.Detail)
	}
	out := canOutput{Allowed: true, Answer: "allowed"}
	// These paths need no rule.
	if path := asked.action.Path; !h.isPublic(asked) && !h.Self.owns(path) && path != h.Ready {
		decisions, which := h.decide(asked, nil)
		out.Allowed = !h.refuses(decisions[which])
		switch decisions[which].Reason {
		case access.NoRule:
			out.Answer = "no_rule"
		case access.DeniedByRule:
			out.Answer = "denied"
		}
	}
	return writeJSON(w, http.StatusOK, "application/json", out, "")
}

// askedFor returns the request that a service user asks about, as judge would leave it.
func (h *Handler) askedFor(rq *request, in canInput) (*request, access.Problem) {
	host, path := cmp.Or(in.Host, rq.r.Host), h.relax.Forwarded(in.Path)
	action, p := access.Judge(in.Method, host, path, h.relax)
	original, originalRaw := target{action.Method, action.Path}, before(path, "?")
	if prefix, _ := removedPrefix(rq.r); p.OK() && strings.HasPrefix(path, prefix+"/") {
		path = path[len(prefix):]
		action, p = access.Judge(in.Method, host, path, h.relax)
	}
	action.Address, action.Header, action.Now = rq.address, rq.action.Header, rq.action.Now
	asked := &request{action: action, directory: rq.directory, principal: rq.principal}
	if p.OK() {
		asked.further, p = h.further(rq.r, target{action.Method, action.Path}, original, before(path, "?"), originalRaw)
	}
	return asked, p
}

// removedPrefix returns the part that handle_path or "uri strip_prefix" has removed from the
// beginning of the path of a request, such as "/api". ok is false after any other rewrite: the
// paths of clients are not known then.
func removedPrefix(r *http.Request) (prefix string, ok bool) {
	original, known := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if !known {
		return "", true
	}
	prefix, ok = strings.CutSuffix(original.URL.EscapedPath(), r.URL.EscapedPath())
	if !ok {
		prefix = ""
	}
	return prefix, ok
}

// corner returns the path at which the client of r reaches the corner. It returns "" without a
// corner, or if the path is not known.
func (h *Handler) corner(r *http.Request) string {
	prefix, ok := removedPrefix(r)
	if h.Self == nil || !ok {
		return ""
	}
	return prefix + h.Self.Path
}

// rotated is the answer to a rotation. It alone shows the secret of the new token. The ends are as
// endOf returns them.
type rotated struct {
	ID        string     `json:"id"`
	Token     string     `json:"token"`
	ExpiresAt *time.Time `json:"expires_at"`
	Replaces  string     `json:"replaces"`
	RetiresAt *time.Time `json:"retires_at"` // the end of the token that the client used
}

func (h *Handler) serveRotate(w http.ResponseWriter, rq *request) error {
	r, user := rq.r, rq.principal.ID()
	if new(http.CrossOriginProtection).Check(r) != nil {
		return selfProblem(w, r, http.StatusForbidden, "a page of another origin must not rotate tokens")
	}
	if err := decodeSelf(w, r, new(struct{})); err != nil {
		return selfError(w, r, err)
	}
	token := rq.principal.TokenID()
	by := store.Actor{Name: user, Operation: store.NewOperationID()}
	issued, _, err := rq.live.store.RotateToken(r.Context(), by, user, token,
		cmp.Or(time.Duration(h.Self.Grace), defaultGrace))
	fields := []zap.Field{
		zap.Stringer("client_ip", rq.address), zap.String("service_user", user), zap.String("token", token),
		zap.String("operation_id", by.Operation),
	}
	if err != nil {
		switch fault := new(store.Error); {
		case errors.Is(err, store.ErrTooOften):
			h.log.Info("a token was not rotated", append(fields, zap.Error(err))...)
		case errors.Is(err, store.ErrReplaced):
			h.log.Warn("a replaced token asked for another successor; two may hold the same secret",
				append(fields, zap.Error(err))...)
		case !errors.As(err, &fault):
			h.log.Error("a token could not be rotated", append(fields, zap.Error(err))...)
		}
		return selfError(w, r, err)
	}
	h.log.Info("token rotated", append(fields, zap.String("successor", issued.ID))...)
	after := rq.live.store.Directory()
	next, _ := after.Principal(user, issued.ID, rq.address, rq.action.Now)
	rq.principal, _ = after.Principal(user, token, rq.address, rq.action.Now)
	h.noticeExpiry(w, rq) // the token of the request ends with the grace now
	return writeJSON(w, http.StatusCreated, "application/json", rotated{
		issued.ID, issued.Secret, endOf(next), token, endOf(rq.principal),
	}, "")
}

// decodeSelf decodes the JSON body of a request to the corner. A body without Content-Type is JSON.
func decodeSelf(w http.ResponseWriter, r *http.Request, v any) error {
	if r.Header.Get("Content-Type") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("Content-Type", "application/json")
	}
	return admin.DecodeJSON(w, r, maxSelfBody, v)
}

// selfError answers with the problem of an error.
func selfError(w http.ResponseWriter, r *http.Request, err error) error {
	var input *admin.Error
	var fault *store.Error
	switch {
	case errors.As(err, &input):
		return selfProblem(w, r, input.Status, input.Msg)
	case errors.Is(err, store.ErrTooOften):
		w.Header().Set("Retry-After", "60")
		return selfProblem(w, r, http.StatusTooManyRequests, err.Error())
	case errors.Is(err, store.ErrReadOnly):
		return selfProblem(w, r, http.StatusServiceUnavailable, err.Error())
	case errors.As(err, &fault):
		// The credential was right; the token was replaced or revoked in the meantime.
		return selfProblem(w, r, http.StatusConflict, fault.Error())
	}
	w.Header().Set("Retry-After", "5")
	return selfProblem(w, r, http.StatusServiceUnavailable,
		"the store cannot be changed right now; try again later, with the same token")
}

func selfProblem(w http.ResponseWriter, r *http.Request, status int, detail string) error {
	defer closeUnread(w, r)()
	return writeJSON(w, status, "application/problem+json", newProblem(status, detail), "")
}
