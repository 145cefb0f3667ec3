package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// refusal is why a request goes no further.
type refusal struct {
	status    int
	detail    string        // for the caller
	candidate string        // who the caller says it is, when it says so properly
	reason    access.Reason // 401, 403 and 429

	decision   access.Decision // 403
	action     access.Action   // 403: the one that the decision is about
	decisionID string          // 403

	retryAfter time.Duration // 429
	stale      bool          // 503: not because the store was never loaded
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

// refuse answers. Every 401 to a gRPC call is the same, byte for byte, and so is every
// other 401.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, refused refusal) error {
	header := w.Header()
	body := problemBody{Type: "about:blank", Title: http.StatusText(refused.status), Status: refused.status, Detail: refused.detail}
	switch refused.status {
	case http.StatusUnauthorized:
		header["Www-Authenticate"] = h.challenges
		body.Detail = "this needs the id and token of a service user, as HTTP Basic credentials"
	case http.StatusForbidden:
		body.DecisionID = refused.decisionID
		header.Set(DecisionHeader, body.DecisionID)
		body.Detail = "this service user is not allowed to do this; an admin can have the decision explained by its id"
	case http.StatusMethodNotAllowed:
		header.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	case http.StatusTooManyRequests:
		header.Set("Retry-After", strconv.Itoa(int(refused.retryAfter/time.Second)+1))
		body.Detail = "too many failed attempts; wait before the next one"
	case http.StatusServiceUnavailable:
		header.Set("Retry-After", "5")
	}
	h.note(r, refused)
	if refused.status == http.StatusTooManyRequests {
		hold(r)
	}

	header.Set("Cache-Control", "no-store")
	if isGRPC(r) {
		header.Set("Grpc-Status", grpcStatus(refused.status))
		header.Set("Grpc-Message", grpcMessage(body.Detail))
	}
	if r.ProtoMajor == 1 && refused.status == http.StatusNotImplemented {
		header.Set("Connection", "close") // what follows a CONNECT is no request
	}
	if h.Errors == "caddy" {
		hurryUnread(w, r)
		return caddyhttp.HandlerError{StatusCode: refused.status, Err: errors.New(body.Detail)}
	}
	linger := closeUnread(w, r)
	if refused.status != http.StatusTooManyRequests {
		defer linger()
	}
	if isGRPC(r) { // a Trailers-Only response
		header.Set("Content-Type", "application/grpc")
		w.WriteHeader(refused.status)
		return nil
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	header.Set("Content-Type", "application/problem+json")
	text = append(text, '\n')
	header.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(refused.status)
	_, _ = w.Write(text) // the client may be gone
	return nil
}

// What the throttle refuses is answered a moment later: a flood of guesses, which
// waits for answers, leaves the processors to others. At most so many wait at once.
const (
	holdFor = 100 * time.Millisecond
	maxHeld = 1000
)

var held atomic.Int64

// hold lets a request wait, unless its connection may be that of many clients.
func hold(r *http.Request) {
	if varsOf(r).fromTrustedProxy() {
		return
	}
	defer held.Add(-1)
	if held.Add(1) > maxHeld {
		return
	}
	end := time.NewTimer(holdFor)
	defer end.Stop()
	select {
	case <-end.C:
	case <-r.Context().Done():
	}
}

// The bounds of what is read after a refusal, so that a client that is still sending
// gets to read the answer: unread bytes would have its side of the connection reset.
const (
	lingerBytes = 32 << 20
	lingerIdle  = 2 * time.Second
	lingerFor   = 10 * time.Second
	maxLinger   = 256 // connections at once
)

var lingering atomic.Int64

// closeUnread ends an HTTP/1 connection with an answer that leaves a body unread:
// Caddy 2.11 would hold the answer back until the client has sent up to 256 KiB of it.
// The function that is returned, for after the answer, sends it, and reads on.
func closeUnread(w http.ResponseWriter, r *http.Request) (linger func()) {
	if r.ProtoMajor != 1 || r.ContentLength == 0 {
		return func() {}
	}
	w.Header().Set("Connection", "close")
	return func() {
		defer lingering.Add(-1)
		if lingering.Add(1) > maxLinger {
			return
		}
		control := http.NewResponseController(w)
		if control.Flush() != nil {
			return
		}
		end := time.Now().Add(lingerFor)
		buf := make([]byte, 32<<10)
		for left := lingerBytes; left > 0; {
			idle := time.Now().Add(lingerIdle)
			if idle.After(end) {
				idle = end
			}
			if control.SetReadDeadline(idle) != nil {
				return
			}
			n, err := r.Body.Read(buf)
			if left -= n; err != nil {
				return
			}
		}
	}
}

// hurryUnread is for an answer that the error route of a site writes. The route may
// read the body, and the server reads up to 256 KiB that are left, to keep the
// connection, but neither waits long for a body that is withheld.
func hurryUnread(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	}
}

// grpcStatus returns the code that a gRPC client makes of an HTTP status by itself
// (gRPC, "HTTP to gRPC Status Code Mapping").
func grpcStatus(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "13" // INTERNAL
	case http.StatusUnauthorized:
		return "16" // UNAUTHENTICATED
	case http.StatusForbidden:
		return "7" // PERMISSION_DENIED
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return "14" // UNAVAILABLE
	}
	return "2" // UNKNOWN
}

// grpcMessage writes a text as the value of grpc-message (gRPC over HTTP/2,
// "Responses": Percent-Encoded).
func grpcMessage(text string) string {
	var out strings.Builder
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&out, "%%%02X", c)
		} else {
			out.WriteByte(c)
		}
	}
	return out.String()
}

// isGRPC reports whether a request is a gRPC call.
func isGRPC(r *http.Request) bool {
	content := r.Header["Content-Type"]
	return len(content) == 1 && strings.HasPrefix(strings.ToLower(content[0]), "application/grpc")
}

// writeReady answers a probe.
func writeReady(w http.ResponseWriter, ready bool) error {
	status, text := http.StatusOK, `{"status":"ok"}`
	if !ready {
		status, text = http.StatusServiceUnavailable, `{"status":"not ready"}`
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // the probe may be gone
	return nil
}

// note tells the log and the placeholders about a refusal.
func (h *Handler) note(r *http.Request, refused refusal) {
	refused.candidate = withoutSecret(refused.candidate)
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.service_users.decision", "deny")
		if refused.candidate != "" {
			repl.Set("http.auth.candidate.id", refused.candidate)
		}
		if refused.decisionID != "" {
			repl.Set("http.service_users.decision_id", refused.decisionID)
		}
	}
	client := zap.Stringer("client_ip", h.clientAddress(r, varsOf(r)))
	switch refused.status {
	case http.StatusUnauthorized, http.StatusTooManyRequests:
		counter := metrics.reasons[refused.reason] // failedLogin has written the line of the log
		if refused.status == http.StatusTooManyRequests {
			counter = metrics.throttled
		}
		counter.Inc()
	case http.StatusForbidden:
		metrics.reasons[refused.reason].Inc()
		if c := h.log.Check(zap.InfoLevel, "not allowed"); c != nil {
			c.Write(client, zap.Stringer("reason", refused.reason), zap.String("service_user", refused.candidate), zap.String("decision_id", refused.decisionID),
				zap.String("rule", refused.decision.RuleID()), zap.String("method", refused.action.Method), zap.String("path", access.PlainPath(refused.action.Path)))
		}
	case http.StatusServiceUnavailable:
		metrics.unavailable.Inc()
		text := "cannot decide: the store is not loaded"
		if refused.stale {
			text = "cannot decide: the store was not readable for longer than max_staleness"
		}
		if c := h.log.Check(zap.ErrorLevel, text); c != nil {
			c.Write(client)
		}
	default:
		metrics.ambiguous.Inc()
		if c := h.log.Check(zap.InfoLevel, "request refused"); c != nil {
			c.Write(client, zap.Int("status", refused.status), zap.String("why", refused.detail))
		}
	}
}

// withoutSecret hides a login id that is a secret: clients swap the two, or give
// the token as the user name.
func withoutSecret(login string) string {
	if access.FindLeak(login) == access.SecretLeak {
		return "(a token in the place of the id)"
	}
	return login
}

// warnOfPlaintext tells the operator, seldom, that secrets travel in the clear.
func (h *Handler) warnOfPlaintext(r *http.Request) {
	metrics.plaintext.Inc()
	now := time.Now().Unix()
	last := lastPlaintextWarning.Load()
	if now-last < 60 || !lastPlaintextWarning.CompareAndSwap(last, now) {
		return
	}
	h.log.Warn("credentials arrive unencrypted; serve the site over https, or name the proxy that does in the global option servers { trusted_proxies }; require_tls refuses them",
		zap.Stringer("client_ip", h.clientAddress(r, varsOf(r))), zap.String("host", access.MaskSecrets(r.Host)), zap.Bool("refused", h.RequireTLS))
}

// lastPlaintextWarning is when it was last told, in Unix seconds.
var lastPlaintextWarning atomic.Int64
