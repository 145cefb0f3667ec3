package caddymodule

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
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
	return s != nil && (path == s.Path || path == s.Path+"/can" || path == s.Path+"/rotate")
}

// serveSelf answers a request to a path that the self-service corner owns. A client looks up its
// identity and its permissions there, and rotates its token. It needs valid credentials, but no rule.
func (h *Handler) serveSelf(w http.ResponseWriter, rq *request) error {
	r := rq.r
	rq.live.store.Use(rq.principal, rq.action.Now, rq.address, "")
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.auth.user.id", rq.principal.ID()) // for the access log
	}
	rotate, can := r.URL.Path == h.Self.Path+"/rotate", r.URL.Path == h.Self.Path+"/can"
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
	ExpiresAt *time.Time `json:"expires_at"` // the end of the grace if the token is retiring
	Retiring  bool       `json:"retiring"`
}

func (h *Handler) serveWho(w http.ResponseWriter, rq *request) error {
	p, token := rq.principal, rq.principal.Token()
	out := who{
		ID: p.ID(), Name: p.Name(), DisplayName: p.DisplayName(),
		Groups: append([]string{}, p.Groups()...), Rules: []string{},
		Token: whoToken{ID: token.ID, Retiring: token.Retiring},
	}
	if at := token.ExpiresAt; at != 0 {
		out.Token.ExpiresAt = admin.OrNull(time.Unix(at, 0).UTC())
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

// canInput is a request that a service user may want to make.
type canInput struct {
	Method string `json:"method"`
	Host   string `json:"host"` // "" is the host of the corner
	Path   string `json:"path"` // as in a request; the query is ignored
}

type canOutput struct {
	Allowed bool `json:"allowed"`
}

func (h *Handler) serveCan(w http.ResponseWriter, rq *request) error {
	var in canInput
	if err := admin.DecodeJSON(w, rq.r, maxSelfBody, &in); err != nil {
		return selfError(w, rq.r, err)
	}
	action, problem := access.Judge(in.Method, cmp.Or(in.Host, rq.r.Host), in.Path, h.relax)
	if !problem.OK() {
		return selfProblem(w, rq.r, http.StatusBadRequest, problem.Part+": "+problem.Advice())
	}
	action.Address, action.Header, action.Now = rq.address, rq.action.Header, rq.action.Now
	// These paths need no rule.
	free := h.public.Covers(action) || h.Self.owns(action.Path) || action.Path == h.Ready
	allowed := free || !h.refuses(rq.directory.Authorize(rq.principal, action))
	return writeJSON(w, http.StatusOK, "application/json", canOutput{allowed}, "")
}

// rotated is the answer to a rotation. It alone shows the secret of the new token.
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
	if err := admin.DecodeJSON(w, r, maxSelfBody, new(struct{})); err != nil {
		return selfError(w, r, err)
	}
	token := rq.principal.TokenID()
	by := store.Actor{Name: user, Operation: store.NewOperationID()}
	issued, old, err := rq.live.store.RotateToken(r.Context(), by, user, token,
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
	return writeJSON(w, http.StatusCreated, "application/json", rotated{
		issued.ID, issued.Secret, admin.OrNull(issued.ExpiresAt), old.ID, admin.OrNull(old.RetiresAt),
	}, "")
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
