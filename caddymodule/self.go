package caddymodule

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// selfCorner is the self-service corner: where a service user asks who it is and
// what it may do, and replaces its token. It needs valid credentials and no rule.
type selfCorner struct {
	path   string
	rotate bool
	grace  time.Duration // how long a rotated token goes on
	origin http.CrossOriginProtection
}

// defaultGrace is the grace of an operator who names none.
const defaultGrace = time.Hour

// maxSelfBody bounds the body of a request to the corner.
const maxSelfBody = 64 << 10

func newSelfCorner(path string, rotate bool, grace time.Duration) *selfCorner {
	if grace == 0 {
		grace = defaultGrace
	}
	return &selfCorner{path: path, rotate: rotate, grace: grace}
}

// owns reports whether a decoded path belongs to the corner. Nothing belongs to
// none.
func (c *selfCorner) owns(path string) bool {
	return c != nil && (path == c.path || path == c.path+"/can" || path == c.path+"/rotate")
}

// serveSelf answers a request to a path that the corner owns.
func (h *Handler) serveSelf(w http.ResponseWriter, rq *request) error {
	r := rq.r
	rq.live.store.Use(rq.principal, rq.action.Now, rq.address, "")
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.auth.user.id", rq.principal.ID()) // for the access log
	}
	rotate, can := r.URL.Path == h.self.path+"/rotate", r.URL.Path == h.self.path+"/can"
	if rotate && !h.self.rotate {
		return selfProblem(w, r, http.StatusNotFound, "tokens cannot be rotated here; ask an admin for a new one")
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

// who is the answer to "who am I".
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
	ExpiresAt *time.Time `json:"expires_at"` // when the grace ends, for one that is retiring
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
	return writeSelf(w, http.StatusOK, "application/json", out)
}

// canInput is a request that a service user thinks of making.
type canInput struct {
	Method string `json:"method"`
	Host   string `json:"host"` // "" is the one that was asked
	Path   string `json:"path"` // as it would be sent; the query is ignored
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
	// These need no rule.
	free := h.public.Covers(action) || h.self.owns(action.Path) || action.Path == h.Ready
	allowed := free || !h.refuses(rq.directory.Authorize(rq.principal, action))
	return writeSelf(w, http.StatusOK, "application/json", canOutput{allowed})
}

// rotated is the answer that issues a successor; its secret is shown this once.
type rotated struct {
	ID        string     `json:"id"`
	Token     string     `json:"token"`
	ExpiresAt *time.Time `json:"expires_at"`
	Replaces  string     `json:"replaces"`
	RetiresAt *time.Time `json:"retires_at"` // the end of the token that was used to ask
}

func (h *Handler) serveRotate(w http.ResponseWriter, rq *request) error {
	r, user := rq.r, rq.principal.ID()
	if h.self.origin.Check(r) != nil {
		return selfProblem(w, r, http.StatusForbidden, "a page of another origin must not rotate tokens")
	}
	if err := admin.DecodeJSON(w, r, maxSelfBody, new(struct{})); err != nil {
		return selfError(w, r, err)
	}
	token := rq.principal.TokenID()
	by := store.Actor{Name: user, Operation: store.NewOperationID()}
	issued, old, err := rq.live.store.RotateToken(r.Context(), by, user, token, h.self.grace)
	fields := []zap.Field{
		zap.Stringer("client_ip", rq.address), zap.String("service_user", user), zap.String("token", token),
		zap.String("operation_id", by.Operation),
	}
	if err != nil {
		switch fault := new(store.Error); {
		case errors.Is(err, store.ErrReplaced):
			h.log.Warn("a replaced token asked for another successor; two may hold the same secret", append(fields, zap.Error(err))...)
		case !errors.As(err, &fault):
			h.log.Error("a token could not be rotated", append(fields, zap.Error(err))...)
		}
		return selfError(w, r, err)
	}
	h.log.Info("token rotated", append(fields, zap.String("successor", issued.ID))...)
	return writeSelf(w, http.StatusCreated, "application/json", rotated{
		issued.ID, issued.Secret, admin.OrNull(issued.ExpiresAt), old.ID, admin.OrNull(old.RetiresAt),
	})
}

// selfError tells the caller what went wrong.
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
		// The credentials were good; what was asked for came too late.
		return selfProblem(w, r, http.StatusConflict, fault.Error())
	default:
		w.Header().Set("Retry-After", "5")
		return selfProblem(w, r, http.StatusServiceUnavailable, "the store cannot be changed right now; try again later, with the same token")
	}
}

func selfProblem(w http.ResponseWriter, r *http.Request, status int, detail string) error {
	defer closeUnread(w, r)()
	return writeSelf(w, status, "application/problem+json", problemBody{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail})
}

func writeSelf(w http.ResponseWriter, status int, kind string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Content-Type", kind)
	header.Set("Content-Length", strconv.Itoa(len(text)))
	header.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may be gone
	return nil
}
