package caddymodule

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
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
func (h *Handler) serveSelf(w http.ResponseWriter, r *http.Request, live *liveStore, p access.Principal, action access.Action) error {
	live.Use(p, action.Now, action.Address, "")
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.auth.user.id", p.ID()) // for the access log
	}
	serve, allow := h.serveWho, "GET, HEAD"
	switch r.URL.Path {
	case h.self.path + "/can":
		serve, allow = h.serveCan, "POST"
	case h.self.path + "/rotate":
		serve, allow = h.serveRotate, "POST"
		if !h.self.rotate {
			return selfProblem(w, r, http.StatusNotFound, "tokens cannot be rotated here; ask an admin for a new one")
		}
	}
	if r.Method != http.MethodPost && allow == "POST" || r.Method != http.MethodGet && r.Method != http.MethodHead && allow != "POST" {
		w.Header().Set("Allow", allow)
		return selfProblem(w, r, http.StatusMethodNotAllowed, "the methods here are: "+allow)
	}
	return serve(w, r, live, p)
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

func (h *Handler) serveWho(w http.ResponseWriter, r *http.Request, live *liveStore, p access.Principal) error {
	token := p.Token()
	out := who{
		ID: p.ID(), Name: p.Name(), DisplayName: p.DisplayName(),
		Groups: append([]string{}, p.Groups()...), Rules: []string{},
		Token: whoToken{ID: token.ID, Retiring: token.Retiring},
	}
	if at := token.ExpiresAt; at != 0 {
		out.Token.ExpiresAt = orNull(time.Unix(at, 0).UTC())
	}
	seen := make(map[string]bool)
	for _, rule := range live.Directory().Rules(p) {
		rule.When = ""
		if text := rule.String(); !seen[text] {
			seen[text] = true
			out.Rules = append(out.Rules, text)
		}
	}
	defer closeUnread(w, r)()
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

func (h *Handler) serveCan(w http.ResponseWriter, r *http.Request, live *liveStore, p access.Principal) error {
	var in canInput
	if err := admin.DecodeJSON(w, r, maxSelfBody, &in); err != nil {
		return selfError(w, r, err)
	}
	if in.Host == "" {
		in.Host = r.Host
	}
	if p := access.CheckMethod(in.Method); !p.OK() {
		return selfProblem(w, r, http.StatusBadRequest, "method: "+p.Detail)
	}
	host, problem := access.CheckHost(in.Host)
	if !problem.OK() {
		return selfProblem(w, r, http.StatusBadRequest, "host: "+problem.Detail)
	}
	path, problem := h.relax.CheckTarget(h.merged(in.Path))
	if !problem.OK() {
		return selfProblem(w, r, http.StatusBadRequest, "path: "+problem.Advice())
	}
	vars := varsOf(r)
	action := access.Action{Method: in.Method, Host: host, Path: path, Address: h.clientAddress(r, vars), Header: conditionHeader(r, vars), Now: live.Now().Unix()}
	free := h.public.Covers(action) || h.self.owns(path) || path == h.Ready // no rule is needed there
	decision := live.Directory().Authorize(p, action)
	allowed := free || decision.Allowed() || decision.Reason == access.NoRule && h.observes()
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

func (h *Handler) serveRotate(w http.ResponseWriter, r *http.Request, live *liveStore, p access.Principal) error {
	if h.self.origin.Check(r) != nil {
		return selfProblem(w, r, http.StatusForbidden, "a page of another origin must not rotate tokens")
	}
	if err := admin.DecodeJSON(w, r, maxSelfBody, new(struct{})); err != nil {
		return selfError(w, r, err)
	}
	token := p.TokenID()
	by := store.Actor{Name: p.ID(), Operation: store.NewOperationID()}
	issued, old, err := live.RotateToken(r.Context(), by, p.ID(), token, h.self.grace)
	fields := []zap.Field{
		zap.Stringer("client_ip", h.clientAddress(r, varsOf(r))), zap.String("service_user", p.ID()), zap.String("token", token),
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
		issued.ID, issued.Secret, orNull(issued.ExpiresAt), old.ID, orNull(old.RetiresAt),
	})
}

// orNull makes the zero time null.
func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
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
