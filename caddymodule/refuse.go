package caddymodule

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// refusal is why a request goes no further.
type refusal struct {
	status    int
	detail    string          // for the caller
	log       string          // for the log, when the caller must not know
	candidate string          // who the caller says it is, when it says so properly
	reason    access.Reason   // 401 and 403
	decision  access.Decision // 403
}

// DecisionHeader carries the id of a refusal that an admin can ask about.
const DecisionHeader = "Service-User-Decision-Id"

// problemBody is an RFC 9457 problem.
type problemBody struct {
	Type       string `json:"type"`
	Title      string `json:"title"`
	Status     int    `json:"status"`
	Detail     string `json:"detail"`
	DecisionID string `json:"decision_id,omitempty"`
}

// refuse answers. Every 401 is the same, byte for byte.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, why refusal) error {
	header := w.Header()
	body := problemBody{Type: "about:blank", Title: http.StatusText(why.status), Status: why.status, Detail: why.detail}
	switch why.status {
	case http.StatusUnauthorized:
		header.Set("WWW-Authenticate", h.challenge)
		body.Detail = "this needs the id and token of a service user, as HTTP Basic credentials"
	case http.StatusForbidden:
		body.DecisionID = newDecisionID()
		header.Set(DecisionHeader, body.DecisionID)
		body.Detail = "this service user is not allowed to do this; an admin can look up why by the decision id"
	case http.StatusMethodNotAllowed:
		header.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	case http.StatusServiceUnavailable:
		header.Set("Retry-After", "5")
	}
	h.note(r, why, body.DecisionID)

	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	header.Set("Content-Type", "application/problem+json")
	header.Set("Content-Length", strconv.Itoa(len(text)))
	header.Set("Cache-Control", "no-store")
	if r.ProtoMajor == 1 && (r.ContentLength != 0 || why.status == http.StatusNotImplemented) {
		// Caddy 2.11 would hold the answer back until the client has sent up to
		// 256 KiB of the body that nobody is going to read.
		header.Set("Connection", "close")
	}
	w.WriteHeader(why.status)
	_, _ = w.Write(text) // the client may be gone
	return nil
}

// note tells the log and the placeholders about a refusal.
func (h *Handler) note(r *http.Request, why refusal, decisionID string) {
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.service_users.decision", "deny")
		if why.candidate != "" {
			repl.Set("http.auth.candidate.id", why.candidate)
		}
		if decisionID != "" {
			repl.Set("http.service_users.decision_id", decisionID)
		}
	}
	client := zap.String("client_ip", clientAddress(r).String())
	switch why.status {
	case http.StatusUnauthorized:
		level := zap.InfoLevel
		if why.reason == access.NoCredential {
			level = zap.DebugLevel // how a client that waits for the challenge begins
		}
		if c := h.log.Check(level, "authentication failed"); c != nil {
			c.Write(zap.Stringer("reason", why.reason), zap.String("login", why.candidate), client)
		}
	case http.StatusForbidden:
		rule := ""
		if why.decision.Rule != nil {
			rule = why.decision.Rule.ID
		}
		if c := h.log.Check(zap.InfoLevel, "not allowed"); c != nil {
			c.Write(zap.Stringer("reason", why.reason), zap.String("service_user", why.candidate), zap.String("decision_id", decisionID),
				zap.String("rule", rule), zap.String("method", r.Method), zap.String("path", r.URL.Path), client)
		}
	case http.StatusServiceUnavailable:
		if c := h.log.Check(zap.ErrorLevel, "cannot decide"); c != nil {
			c.Write(zap.String("why", why.log), client)
		}
	default:
		if c := h.log.Check(zap.InfoLevel, "request refused"); c != nil {
			c.Write(zap.Int("status", why.status), zap.String("why", why.detail), client)
		}
	}
}
