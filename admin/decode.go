package admin

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// The largest sizes of a request body, in bytes.
const (
	maxBody     = 1 << 20
	maxBulkBody = 8 << 20 // of a bulk, which may have 1000 service users
)

// mergePatchType is the Content-Type of a JSON merge patch (RFC 7396). A PATCH accepts it and plain
// JSON. acceptPatch is the value of the header Accept-Patch (RFC 5789, section 3.1).
const (
	mergePatchType = "application/merge-patch+json"
	acceptPatch    = "application/json, " + mergePatchType
)

// mergeable is a body that has a different meaning as a merge patch and as plain JSON: a merge
// patch merges its objects, plain JSON replaces them. A body without objects means the same in
// both, because in both an absent field stays and null empties a field.
type mergeable interface {
	asMergePatch() (patch any, take func())
}

// DecodeJSON decodes a JSON body of at most limit bytes into v. It returns an [*Error] with the
// name of the field for unknown, repeated and wrongly cased names, for invalid UTF-8 and for text
// behind the value. An empty body means the empty object.
func DecodeJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return NewError(http.StatusRequestEntityTooLarge, "ERR_BODY_TOO_LARGE",
			fmt.Sprintf("the body is larger than %d bytes", limit))
	case err != nil:
		return NewError(http.StatusBadRequest, "ERR_NGROK_212", "the body cannot be read")
	case len(body) == 0: // before the Content-Type, which a request without a body need not have
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
		return NewError(http.StatusUnsupportedMediaType, "ERR_NGROK_216",
			"the Content-Type is missing; it "+must)
	case !known:
		return NewError(http.StatusUnsupportedMediaType, "ERR_NGROK_210", "the Content-Type "+must)
	case r.Header.Get("Content-Encoding") != "":
		return NewError(http.StatusUnsupportedMediaType, "ERR_CONTENT_ENCODING",
			"the body must not be compressed")
	}
	// Unmarshal would take null as a v without any field, and a change would then silently do
	// nothing.
	if bytes.Equal(bytes.TrimSpace(body), []byte("null")) {
		return NewError(http.StatusBadRequest, "ERR_NGROK_213", "the body must be a JSON object, not null")
	}
	take := func() {}
	if in, ok := v.(mergeable); ok && kind == mergePatchType {
		v, take = in.asMergePatch()
	}
	if err := json.Unmarshal(body, v, json.RejectUnknownMembers(true), fewUsers()); err != nil {
		return explainJSON(err)
	}
	take()
	return nil
}

// fewUsers returns an option that ends the decoding of a bulk with too many service users. "{}" is one:
// in memory, they could take a hundred times as much as the body.
func fewUsers() json.Options {
	n := 0
	return json.WithUnmarshalers(json.UnmarshalFromFunc(func(*jsontext.Decoder, *NewServiceUser) error {
		if n++; n > store.MaxBulk {
			return errTooMany
		}
		return errors.ErrUnsupported // decode it as without this function
	}))
}

// explainJSON converts an error of the JSON decoder to an [*Error] that names the field.
func explainJSON(err error) error {
	var semantic *json.SemanticError
	var syntactic *jsontext.SyntacticError
	var own *Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &semantic):
		name := semantic.JSONPointer.LastToken()
		return NewError(http.StatusBadRequest, "ERR_NGROK_214",
			unknownName("field", name, jsonNames(semantic.GoType))).
			field(fieldName(semantic.JSONPointer))
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntactic):
		return NewError(http.StatusBadRequest, "ERR_NGROK_213",
			"the field appears in the body twice").
			field(fieldName(syntactic.JSONPointer))
	case errors.As(err, &semantic):
		msg := "must not be a JSON " + cmp.Or(kindNames[semantic.JSONKind], "value of this form")
		field := fieldName(semantic.JSONPointer)
		if errors.Is(err, errNullBoolean) {
			msg = errNullBoolean.Error()
		}
		if field == "" {
			msg = "the body " + msg
		}
		return NewError(http.StatusBadRequest, "ERR_INVALID_VALUE", msg).field(field)
	case errors.As(err, &syntactic):
		return NewError(http.StatusBadRequest, "ERR_NGROK_213",
			fmt.Sprintf("the body is not valid JSON: %v at byte %d", syntactic.Err, syntactic.ByteOffset))
	default:
		return NewError(http.StatusBadRequest, "ERR_NGROK_213", "the body is not valid JSON")
	}
}

// unknownName returns the text for a name that is not known, with the name that the client probably
// meant, or else every known name. kind is "field" or "query parameter".
func unknownName(kind, name string, known []string) string {
	text := "there is no such " + kind
	if nearest := access.NearestWord(name, known); nearest != "" {
		return text + "; did you mean " + nearest + "?"
	}
	return text + "; known here: " + cmp.Or(strings.Join(known, ", "), "none")
}

// jsonNames returns the names of the JSON members of a struct, in its order.
func jsonNames(t reflect.Type) (names []string) {
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// fieldName converts a JSON pointer to a name such as "rules.0.path".
func fieldName(p jsontext.Pointer) string {
	return strings.Join(slices.Collect(p.Tokens()), ".")
}

var kindNames = map[jsontext.Kind]string{
	'{': "object", '[': "array", 't': "boolean", 'f': "boolean", '"': "string", '0': "number", 'n': "null",
}

// decodeQuery reads the query into the fields of structs that have a `query` tag: strings, and lists of
// strings for parameters that may be repeated. It returns an [*Error] for unknown and empty parameters,
// and for others that are repeated.
func decodeQuery(r *http.Request, structs ...any) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return NewError(http.StatusBadRequest, "ERR_NGROK_230", "the query is malformed")
	}
	fields := make(map[string]reflect.Value)
	for _, v := range structs {
		queryFields(reflect.ValueOf(v).Elem(), fields)
	}
	for name, values := range query {
		field, known := fields[name]
		switch {
		case !known && name == "wait":
			return errNoWait
		case !known:
			return NewError(http.StatusBadRequest, "ERR_NGROK_231",
				unknownName("query parameter", name, slices.Sorted(maps.Keys(fields)))).field(name)
		case len(values) > 1 && field.Kind() != reflect.Slice:
			return NewError(http.StatusBadRequest, "ERR_NGROK_232",
				"appears in the query more than once").field(name)
		case slices.Contains(values, ""):
			return NewError(http.StatusBadRequest, "ERR_NGROK_230",
				"is empty; leave it out or give it a value").field(name)
		}
		if field.Kind() == reflect.Slice {
			field.Set(reflect.ValueOf(values))
			continue
		}
		field.SetString(values[0])
	}
	return nil
}

// queryFields adds the fields of v that have a `query` tag to into, by parameter name. It includes
// the fields of embedded structs.
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

// limit returns the largest number of entries for one page.
func (q ListQuery) limit() (int, error) {
	if q.Limit == "" {
		return 100, nil
	}
	n, err := strconv.Atoi(q.Limit)
	if err != nil || strconv.Itoa(n) != q.Limit { // Atoi also accepts "+5" and "05"
		return 0, NewError(http.StatusBadRequest, "ERR_NGROK_244", "is not a number").field("limit")
	}
	if n < 1 || n > 100 {
		return 0, NewError(http.StatusBadRequest, "ERR_NGROK_233", "must lie between 1 and 100").field("limit")
	}
	return n, nil
}

// before returns the cursor of a list whose ids begin with prefix, or "". It checks only the form
// of the id, because the row with that id may have been deleted since the last page.
func (q ListQuery) before(prefix string) (string, error) {
	if q.BeforeID != "" && !store.ValidID(prefix, q.BeforeID) {
		return "", NewError(http.StatusBadRequest, "ERR_NGROK_227",
			"is not an id that begins with "+prefix+"_").field("before_id")
	}
	return q.BeforeID, nil
}

// parseTime parses an RFC 3339 time and cuts it to seconds. "" gives the zero time, which means
// never. The zero time itself, 0001-01-01T00:00:00Z, is an error: it lies in the past, but a token
// with it would never expire.
func parseTime(field, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if t = t.UTC().Truncate(time.Second); err != nil || t.IsZero() {
		return t, NewError(http.StatusBadRequest, "ERR_INVALID_VALUE",
			fmt.Sprintf("%q is not a time such as 2030-01-31T12:00:00Z", text)).field(field)
	}
	return t, nil
}

// parsePast parses a time in the past, in the forms of parseTime and in those that people write: a
// duration before now such as 7d, or a day such as 2026-11-21, which begins at midnight UTC.
func parsePast(field, text string, now time.Time) (time.Time, error) {
	if ago, err := ParseDuration(text); err == nil {
		return now.UTC().Add(-ago).Truncate(time.Second), nil
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return day, nil
	}
	t, err := parseTime(field, text)
	if err != nil {
		err = invalidField(field, fmt.Sprintf("%q is not a time such as 7d (ago), 2026-11-21 (midnight UTC) "+
			"or 2026-11-21T12:00:00Z", text))
	}
	return t, err
}

// setTime copies the time in a field of the body to place, if the body contains the field.
func setTime(field string, in Opt[string], place *time.Time) error {
	if !in.Set {
		return nil
	}
	at, err := parseTime(field, in.Value)
	if err == nil {
		*place = at
	}
	return err
}

// parseDuration parses a field that contains a duration of at least one second.
func parseDuration(field, text string) (time.Duration, error) {
	d, err := ParseDuration(text)
	if err != nil || d < time.Second {
		return 0, invalidField(field, fmt.Sprintf("%q is not a duration such as 90d or 36h", text))
	}
	return d, nil
}

// ParseDuration parses a duration as time.ParseDuration does, and accepts days of 24 hours: "90d",
// "1.5d", "1d12h". A negative duration is an error. It reads the forms that Caddy reads in a
// configuration.
func ParseDuration(text string) (time.Duration, error) {
	hours := dayCount.ReplaceAllStringFunc(text, func(days string) string {
		n, _ := strconv.ParseFloat(days[:len(days)-1], 64) // cannot fail, by the expression
		return strconv.FormatFloat(24*n, 'f', -1, 64) + "h"
	})
	d, err := time.ParseDuration(hours)
	if err != nil || d < 0 || strings.Contains(text, "-") {
		return 0, fmt.Errorf("%q is not a duration such as 90d, 36h or 1d12h", text)
	}
	return d, nil
}

var dayCount = regexp.MustCompile(`\d+(\.\d+)?d`)
