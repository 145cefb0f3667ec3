package admin

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// Error is the body of every answer with a status of 400 or above. One object has the members that
// clients of the ngrok API read, and those of RFC 9457.
type Error struct {
	Code    string            `json:"error_code"`  // ERR_NGROK_… for a code of the ngrok API, otherwise ERR_…
	Status  int               `json:"status_code"` // the HTTP status
	Msg     string            `json:"msg"`         // the fault, and advice to mend it
	Details map[string]string `json:"details"`     // "operation_id", and a message for each wrong field
	Type    string            `json:"type"`        // RFC 9457
	Title   string            `json:"title"`       // RFC 9457
	Status2 int               `json:"status"`      // RFC 9457: the same as status_code
	Detail  string            `json:"detail"`      // RFC 9457: the same as msg
}

func (e *Error) Error() string { return e.Msg }

// NewError makes an error with a status, a code and a message.
func NewError(status int, code, msg string) *Error {
	return &Error{Status: status, Code: code, Msg: msg}
}

// field adds the name of the wrong field of the request, unless it is "".
func (e *Error) field(name string) *Error {
	if name != "" {
		e.Details = map[string]string{name: e.Msg}
		e.Msg = name + ": " + e.Msg
	}
	return e
}

// within puts a part of the request before the field of an [*Error]: the part "users.17" and the field
// "name" give "users.17.name". It returns other errors unchanged.
func within(err error, part string) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	for field, msg := range e.Details { // has one field at most
		return NewError(e.Status, e.Code, msg).field(part + "." + field)
	}
	return NewError(e.Status, e.Code, e.Msg).field(part)
}

// errNullBoolean is the error for null in place of a boolean, which has no empty value.
var errNullBoolean = errors.New("must be true or false, not null")

// toError converts every error to the answer for the caller. It is the only place that maps errors
// of the store to statuses and codes.
func toError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var used *store.InUse
	if errors.As(err, &used) {
		e = NewError(http.StatusConflict, "ERR_IN_USE", used.Error())
		e.Details = map[string]string{
			"last_used_at": used.LastUsedAt.Format(time.RFC3339),
			"addresses":    strings.Join(used.Addresses, ","),
			"rules":        strings.Join(used.Rules, ","),
		}
		return e
	}
	var answered *store.Answered
	if errors.As(err, &answered) {
		e = NewError(http.StatusPreconditionFailed, "ERR_ANSWERED", answered.Error())
		e.Details = map[string]string{
			"token_id":        strings.Join(answered.Tokens, ","),
			"service_user_id": strings.Join(answered.Users, ","),
		}
		return e
	}
	var fault *store.Error
	if !errors.As(err, &fault) {
		// The database or the disk failed. The log has the cause; the caller can only try
		// again.
		reason, full := store.FaultReason(err)
		if full {
			return NewError(http.StatusInsufficientStorage, "ERR_STORE_FULL",
				"the disk of the store is full; nothing was changed, make room first")
		}
		if reason != "" {
			reason = ": " + reason
		}
		outcome := "nothing was changed, try again later"
		if errors.Is(err, store.ErrUncertain) {
			outcome = "it is not known whether the change was made, so look before you try again"
		}
		return NewError(http.StatusServiceUnavailable, "ERR_STORE_UNAVAILABLE",
			"the store cannot be used right now"+reason+"; "+outcome)
	}
	e = NewError(http.StatusForbidden, "ERR_NGROK_4111", fault.Msg)
	for _, k := range kinds {
		if errors.Is(fault.Kind, k.kind) && (k.field == "" || k.field == fault.Field) {
			e.Status, e.Code = k.status, k.code
			break
		}
	}
	return e.field(fault.Field)
}

// kinds contains the status and the code for each kind of [store.Error]; the first row that fits
// applies. Clients of the ngrok API expect other codes for the name.
var kinds = []struct {
	kind   error
	field  string // "" fits every field
	status int
	code   string
}{
	{store.ErrEmpty, "name", http.StatusBadRequest, "ERR_NGROK_4109"},
	{store.ErrTooLong, "name", http.StatusBadRequest, "ERR_NGROK_4110"},
	{store.ErrInvalid, "", http.StatusBadRequest, "ERR_INVALID_VALUE"},
	{store.ErrNotFound, "", http.StatusNotFound, "ERR_NOT_FOUND"},
	{store.ErrConflict, "name", http.StatusConflict, "ERR_NGROK_4112"},
	{store.ErrConflict, "", http.StatusConflict, "ERR_CONFLICT"},
	{store.ErrKeyUsed, "", http.StatusUnprocessableEntity, "ERR_KEY_USED"},
	{store.ErrReadOnly, "", http.StatusServiceUnavailable, "ERR_READ_ONLY"},
	{store.ErrChanged, "", http.StatusPreconditionFailed, "ERR_CHANGED"},
}

// Report logs an error under an operation id, and returns the answer for the caller: a status of 500
// or above is logged at level error with its cause, others, and that of a read-only node, at level debug.
// The log line of a refusal contains no text of the client, because the client may have pasted a secret
// into the wrong field.
func Report(log *zap.Logger, operation string, err error) *Error {
	e := *toError(err)
	details := make(map[string]string)
	for field, text := range e.Details {
		details[access.MaskSecrets(field)] = access.MaskSecrets(text)
	}
	e.Msg = access.MaskSecrets(e.Msg)   // the message may quote a secret that the client sent
	details["operation_id"] = operation // overwrites a wrong field of that name
	e.Details = details
	e.Type, e.Title, e.Status2, e.Detail = "about:blank", http.StatusText(e.Status), e.Status, e.Msg
	level, cause := zap.DebugLevel, zap.Skip()
	if e.Status >= 500 && e.Code != "ERR_READ_ONLY" {
		level, cause = zap.ErrorLevel, zap.Error(err)
	}
	if c := log.Check(level, "request refused"); c != nil {
		c.Write(zap.String("operation_id", operation), zap.Int("status", e.Status),
			zap.String("code", e.Code), cause)
	}
	return &e
}

// WriteError reports an error, and answers with it as JSON.
func WriteError(w http.ResponseWriter, log *zap.Logger, operation string, err error) {
	e := Report(log, operation, err)
	h := w.Header()
	h.Set(OperationHeader, operation)
	h.Set("Content-Type", "application/problem+json")
	if e.Status == http.StatusServiceUnavailable || e.Code == "ERR_BUSY" {
		h.Set("Retry-After", "5") // seconds; maxTurn is 5 seconds as well
	}
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e) // the client may be gone
}

// ErrorWriter answers with an error: [WriteError], or a function that writes a page.
type ErrorWriter func(w http.ResponseWriter, log *zap.Logger, operation string, err error)
