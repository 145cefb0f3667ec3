package caddymodule

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// refusal is the reason for which a request goes no further.
type refusal struct {
	status    int
	detail    string        // for the caller
	why       string        // for the log; "" means detail
	candidate string        // the login id that the caller gave
	reason    access.Reason // 401, 429, 403
	user      string        // the id of the service user, if its secret is right
	token     string        // likewise of the token

	decision   access.Decision // 403
	action     access.Action   // 403: the action that the decision refuses
	decisionID string          // 403

	retryAfter time.Duration // 429
	stale      bool          // 503: the store was loaded once; false means never
}

// DecisionHeader is the name of the response header with the decision id of a 403. An admin can
// have the decision explained by this id.
const DecisionHeader = "Service-User-Decision-Id"

// problemBody is a problem document (RFC 9457).
type problemBody struct {
	Type        string `json:"type"`
	Title       string `json:"title"`
	Status      int    `json:"status"`
	Detail      string `json:"detail"`
	DecisionID  string `json:"decision_id,omitempty"`
	SelfService string `json:"self_service,omitempty"` // the path of the corner
}

func newProblem(status int, detail string) problemBody {
	return problemBody{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// refuse answers a request that goes no further. All 401s to gRPC calls are identical, byte for
// byte, and so are all other 401s: a caller cannot see whether the id or the token was wrong.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, refused refusal) error {
	header := w.Header()
	body := newProblem(refused.status, refused.detail)
	switch refused.status {
	case http.StatusUnauthorized:
		// A copy, since a handler before this one may edit the values in place.
		header["Www-Authenticate"] = slices.Clone(h.challenges)
		body.Detail = "this needs the id and token of a service user, as HTTP Basic credentials"
		if h.Bearer {
			body.Detail += ", or the token alone as a Bearer token"
		}
	case http.StatusForbidden:
		body.DecisionID, body.SelfService = refused.decisionID, h.corner(r)
		header.Set(DecisionHeader, body.DecisionID)
		body.Detail = "this service user is not allowed to do this; "
		if body.SelfService != "" {
			body.Detail += "GET " + body.SelfService + " shows its rules, and "
		}
		body.Detail += "an admin can have the decision explained by its id"
	case http.StatusMethodNotAllowed:
		header.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	case http.StatusTooManyRequests:
		header.Set("Retry-After", retryAfter(refused.retryAfter))
		body.Detail = tooManyAttempts
	case http.StatusServiceUnavailable:
		header.Set("Retry-After", "5")
	}
	h.record(r, refused)
	if refused.status == http.StatusTooManyRequests {
		delay(r)
	}

	describeProblem(w, r, body)
	if r.ProtoMajor == 1 && refused.status == http.StatusNotImplemented {
		header.Set("Connection", "close") // the bytes behind a CONNECT are not a request
	}
	if h.Errors == "caddy" {
		limitUnread(w, r)
		return caddyhttp.HandlerError{StatusCode: refused.status, Err: errors.New(body.Detail)}
	}
	return writeProblem(w, r, body, refused.status != http.StatusTooManyRequests)
}

// describeProblem adds the headers of a problem that every form of the answer has.
func describeProblem(w http.ResponseWriter, r *http.Request, body problemBody) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	if isGRPC(r) {
		header.Set("Grpc-Status", grpcStatus(body.Status))
		header.Set("Grpc-Message", grpcMessage(body.Detail))
	}
}

// writeProblem writes a problem as the answer. readOn has it read on after that, so that a client that is
// still sending can read the answer.
func writeProblem(w http.ResponseWriter, r *http.Request, body problemBody, readOn bool) error {
	linger := closeUnread(w, r)
	if readOn {
		defer linger()
	}
	if isGRPC(r) { // a Trailers-Only response has no body
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(body.Status)
		return nil
	}
	return writeJSON(w, body.Status, "application/problem+json", body, "\n")
}

// writeJSON writes an answer with a JSON document and end. Caches do not store it.
func writeJSON(w http.ResponseWriter, status int, contentType string, v any, end string) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	text = append(text, end...)
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.Itoa(len(text)))
	header.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may be gone
	return nil
}

// tooManyAttempts is the detail of a 429.
const tooManyAttempts = "too many failed attempts; wait before the next one"

// retryAfter returns a time in whole seconds, rounded up, for the header Retry-After.
func retryAfter(wait time.Duration) string { return strconv.Itoa(int(wait/time.Second) + 1) }

// The throttle answers a failed attempt 100 ms later, so that a flood of guesses, in which each
// guess waits for its answer, leaves the processors to other requests. Up to maxHeld requests wait
// at once; the others are answered at once.
const (
	holdFor = 100 * time.Millisecond
	maxHeld = 1000
)

var held atomic.Int64

// delay makes a request wait, unless it comes through a trusted proxy: that connection may carry
// the requests of many clients.
func delay(r *http.Request) {
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

// These bounds limit the reading after a refusal. A client that is still sending can read the
// answer only if its bytes are read: unread bytes would make the server reset the connection.
const (
	lingerBytes = 32 << 20
	lingerIdle  = 2 * time.Second
	lingerFor   = 10 * time.Second
	maxLinger   = 256 // connections at once
)

var lingering atomic.Int64

// closeUnread has an HTTP/1 connection end with an answer that leaves the request's body unread.
// Otherwise Caddy 2.11 would hold the answer back until the client has sent up to 256 KiB of the
// body. The caller has to call linger after it has written the answer: linger sends the answer, and
// reads on for a while.
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
		// Without the flush, the answer would leave only after the body was read.
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

// limitUnread bounds the wait for a body where an error route of the site writes the answer. The
// route may read the body, and the server reads up to 256 KiB that are left, to keep the
// connection. Neither waits long for a body that the client withholds.
func limitUnread(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	}
}

// grpcStatus returns the status code of gRPC for an HTTP status, as gRPC clients derive it ("HTTP
// to gRPC Status Code Mapping" of gRPC).
func grpcStatus(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "13" // INTERNAL
	case http.StatusUnauthorized:
		return "16" // UNAUTHENTICATED
	case http.StatusForbidden:
		return "7" // PERMISSION_DENIED
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable,
		http.StatusGatewayTimeout:
		return "14" // UNAVAILABLE
	}
	return "2" // UNKNOWN
}

// grpcMessage returns a text in the form of a grpc-message header (gRPC over HTTP/2, "Responses":
// Percent-Encoded).
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
	status, text := http.StatusOK, "ok"
	if !ready {
		status, text = http.StatusServiceUnavailable, "not ready"
	}
	return writeJSON(w, status, "application/json", map[string]string{"status": text}, "\n")
}

// outcome returns the fields of the refusal for the access log and the trace.
func (refused *refusal) outcome() outcome {
	o := outcome{"ambiguous", refused.user, refused.token, refused.decision.RuleID(), refused.decisionID}
	switch refused.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		o.outcome = refused.reason.String()
	case http.StatusTooManyRequests:
		o.outcome = "throttled"
	case http.StatusServiceUnavailable:
		o.outcome = "unavailable"
	}
	return o
}

// record records a refusal in the metrics, the log and the placeholders.
func (h *Handler) record(r *http.Request, refused refusal) {
	refused.candidate = access.MaskLogin(refused.candidate)
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.service_users.decision", "deny")
		if refused.candidate != "" {
			repl.Set("http.auth.candidate.id", refused.candidate)
		}
		if refused.decisionID != "" {
			repl.Set("http.service_users.decision_id", refused.decisionID)
		}
	}
	show(r, varsOf(r), refused.outcome)
	why := cmp.Or(refused.why, refused.detail)
	address, level, text := h.clientAddress(r, varsOf(r)), zap.InfoLevel, "request refused"
	switch refused.status {
	case http.StatusUnauthorized, http.StatusTooManyRequests: // failedLogin has recorded it
		return
	case http.StatusForbidden:
		metrics.reasons[refused.reason].Inc()
		if c := h.log.Check(zap.InfoLevel, "not allowed"); c != nil {
			c.Write(zap.Stringer("client_ip", address), zap.Stringer("reason", refused.reason),
				zap.String("service_user", refused.candidate),
				zap.String("decision_id", refused.decisionID),
				zap.String("rule", refused.decision.RuleID()),
				zap.String("method", refused.action.Method),
				zap.String("path", access.PathText(refused.action.Path)),
				zap.String("host", refused.action.Host), zap.String("token", refused.token))
		}
		return
	case http.StatusServiceUnavailable:
		metrics.unavailable.Inc()
		level, text = zap.ErrorLevel, "cannot decide: the store is not loaded"
		if refused.stale {
			text = "cannot decide: the store was not readable for longer than max_staleness"
		}
	default:
		metrics.ambiguous.Inc()
		if live := h.shared.live.Load(); live != nil {
			kept := access.Recalled{Status: refused.status, Why: why}
			kept.Action.Address = address
			live.remember(r, refused.candidate, kept)
		}
	}
	if c := h.log.Check(level, text); c != nil {
		path, _, _ := strings.Cut(r.RequestURI, "?")
		c.Write(zap.Stringer("client_ip", address), zap.Int("status", refused.status),
			zap.String("why", why), zap.String("login", refused.candidate),
			zap.String("host", access.MaskSecrets(r.Host)), zap.String("path", access.MaskSecrets(path)))
	}
}

// warnOfPlaintext logs, at most once a minute, that secrets arrive unencrypted.
func (h *Handler) warnOfPlaintext(r *http.Request) {
	metrics.plaintext.Inc()
	now := time.Now().Unix()
	last := lastPlaintextWarning.Load()
	if now-last < 60 || !lastPlaintextWarning.CompareAndSwap(last, now) {
		return
	}
	h.log.Warn("credentials arrive unencrypted; serve the site over https, or name the proxy that does "+
		"in the global option servers { trusted_proxies }; require_tls refuses them",
		zap.Stringer("client_ip", h.clientAddress(r, varsOf(r))),
		zap.String("host", access.MaskSecrets(r.Host)), zap.Bool("refused", h.RequireTLS))
}

// lastPlaintextWarning is the time of the last such warning, in Unix seconds.
var lastPlaintextWarning atomic.Int64
