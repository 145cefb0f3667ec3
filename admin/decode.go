package admin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxBody bounds a request's body.
const maxBody = 1 << 20

// mergePatchType is the Content-Type of a JSON merge patch (RFC 7396). A PATCH may have
// it, or plain JSON; acceptPatch says so (RFC 5789, section 3.1).
const (
	mergePatchType = "application/merge-patch+json"
	acceptPatch    = "application/json, " + mergePatchType
)

// mergeable is a body that means something else as a merge patch than as plain JSON:
// its objects are merged. The other bodies have fields alone, of which those that are
// absent stay and null empties, in both.
type mergeable interface {
	asMergePatch() (patch any, take func())
}

// DecodeJSON reads a JSON body of at most limit bytes into v. Unknown, repeated
// and wrongly cased names, invalid UTF-8 and anything behind the value are
// refused by an [*Error] with the name of the field. No body at all is the empty
// object.
func DecodeJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return NewError(http.StatusRequestEntityTooLarge, "ERR_BODY_TOO_LARGE", fmt.Sprintf("the body is larger than %d bytes", limit))
	case err != nil:
		return NewError(http.StatusBadRequest, "ERR_NGROK_212", "the body cannot be read")
	case len(body) == 0:
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	known, must := err == nil && kind == "application/json", "must be application/json"
	if r.Method == http.MethodPatch {
		known, must = known || err == nil && kind == mergePatchType, must+" or "+mergePatchType
	}
	if !known && r.Method == http.MethodPatch {
		w.Header().Set("Accept-Patch", acceptPatch)
	}
	switch {
	case r.Header.Get("Content-Type") == "":
		return NewError(http.StatusUnsupportedMediaType, "ERR_NGROK_216", "the Content-Type is missing; it "+must)
	case !known:
		return NewError(http.StatusUnsupportedMediaType, "ERR_NGROK_210", "the Content-Type "+must)
	case r.Header.Get("Content-Encoding") != "":
		return NewError(http.StatusUnsupportedMediaType, "ERR_CONTENT_ENCODING", "the body must not be compressed")
	}
	if bytes.Equal(bytes.TrimSpace(body), []byte("null")) {
		return NewError(http.StatusBadRequest, "ERR_NGROK_213", "the body must be a JSON object, not null")
	}
	take := func() {}
	if in, ok := v.(mergeable); ok && kind == mergePatchType {
		v, take = in.asMergePatch()
	}
	if err := json.Unmarshal(body, v, json.RejectUnknownMembers(true)); err != nil {
		return explainJSON(err)
	}
	take()
	return nil
}

// explainJSON names the field that a JSON error is about.
func explainJSON(err error) error {
	if err == nil {
		return nil
	}
	var semantic *json.SemanticError
	var syntactic *jsontext.SyntacticError
	switch {
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &semantic):
		return NewError(http.StatusBadRequest, "ERR_NGROK_214", "there is no such field; names are written exactly as documented").field(fieldName(semantic.JSONPointer))
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntactic):
		return NewError(http.StatusBadRequest, "ERR_NGROK_213", "the field stands in the body twice").field(fieldName(syntactic.JSONPointer))
	case errors.As(err, &semantic):
		msg, field := "must not be a JSON "+kindName(semantic.JSONKind), fieldName(semantic.JSONPointer)
		if errors.Is(err, errNullBoolean) {
			msg = errNullBoolean.Error()
		}
		if field == "" {
			msg = "the body " + msg
		}
		return NewError(http.StatusBadRequest, "ERR_INVALID_VALUE", msg).field(field)
	case errors.As(err, &syntactic):
		return NewError(http.StatusBadRequest, "ERR_NGROK_213", fmt.Sprintf("the body is not valid JSON: %v at byte %d", syntactic.Err, syntactic.ByteOffset))
	default:
		return NewError(http.StatusBadRequest, "ERR_NGROK_213", "the body is not valid JSON")
	}
}

func fieldName(p jsontext.Pointer) string {
	return strings.Join(slices.Collect(p.Tokens()), ".")
}

func kindName(k jsontext.Kind) string {
	switch k {
	case '{':
		return "object"
	case '[':
		return "array"
	case 't', 'f':
		return "boolean"
	case '"', '0', 'n':
		return k.String()
	default:
		return "value of this form"
	}
}

// decodeQuery reads the query into the fields of v that carry a `query` tag.
// Unknown, repeated and empty parameters are refused.
func decodeQuery(r *http.Request, v any) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return NewError(http.StatusBadRequest, "ERR_NGROK_230", "the query is malformed")
	}
	fields := make(map[string]reflect.Value)
	queryFields(reflect.ValueOf(v).Elem(), fields)
	for name, values := range query {
		field, known := fields[name]
		switch {
		case !known:
			return NewError(http.StatusBadRequest, "ERR_NGROK_231", "there is no such query parameter").field(name)
		case len(values) > 1:
			return NewError(http.StatusBadRequest, "ERR_NGROK_232", "stands in the query more than once").field(name)
		case values[0] == "":
			return NewError(http.StatusBadRequest, "ERR_NGROK_230", "is empty; leave it out or give it a value").field(name)
		}
		field.SetString(values[0])
	}
	return nil
}

func queryFields(v reflect.Value, into map[string]reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if name := f.Tag.Get("query"); name != "" {
			into[name] = v.Field(i)
		} else if f.Anonymous {
			queryFields(v.Field(i), into)
		}
	}
}

// limit reads the number of entries that a list may have at most.
func (q ListQuery) limit() (int, error) {
	if q.Limit == "" {
		return 100, nil
	}
	n, err := strconv.Atoi(q.Limit)
	if err != nil || strconv.Itoa(n) != q.Limit {
		return 0, NewError(http.StatusBadRequest, "ERR_NGROK_244", "is not a number").field("limit")
	}
	if n < 1 || n > 100 {
		return 0, NewError(http.StatusBadRequest, "ERR_NGROK_233", "must lie between 1 and 100").field("limit")
	}
	return n, nil
}

// before checks the cursor of a list of things whose ids begin with prefix.
// The row it names need not exist any more.
func (q ListQuery) before(valid func(prefix, id string) bool, prefix string) (string, error) {
	if q.BeforeID != "" && !valid(prefix, q.BeforeID) {
		return "", NewError(http.StatusBadRequest, "ERR_NGROK_227", "is not an id that begins with "+prefix+"_").field("before_id")
	}
	return q.BeforeID, nil
}

// parseTime reads an RFC 3339 time; "" is the zero time, "never". The zero time
// written out is refused: it lies in the past, and would not expire.
func parseTime(field, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if t = t.UTC().Truncate(time.Second); err != nil || t.IsZero() {
		return t, NewError(http.StatusBadRequest, "ERR_INVALID_VALUE", fmt.Sprintf("%q is not a time such as 2030-01-31T12:00:00Z", text)).field(field)
	}
	return t, nil
}

// ParseDuration reads a duration as time.ParseDuration does, with "d" for a day
// of 24 hours as well: "90d", "1d12h". It must not be negative.
func ParseDuration(text string) (time.Duration, error) {
	var days time.Duration
	rest := text
	if i := strings.IndexByte(text, 'd'); i > 0 {
		n, err := strconv.ParseUint(text[:i], 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration such as 90d, 36h or 1d12h", text)
		}
		days, rest = time.Duration(n)*24*time.Hour, text[i+1:]
		if rest == "" {
			return days, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || days+d < 0 {
		return 0, fmt.Errorf("%q is not a duration such as 90d, 36h or 1d12h", text)
	}
	return days + d, nil
}
