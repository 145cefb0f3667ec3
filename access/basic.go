package access

import (
	"bytes"
	"encoding/base64"
	"strings"
)

// The limits of a credential. Longer credentials are refused before any other work.
const (
	MaxCredentialBytes = 1024 // of the whole field value
	MaxLoginBytes      = 64   // of an id or alias
	MaxTokenBytes      = 256  // of the secret part

	maxBasic = MaxLoginBytes + len(":") + MaxTokenBytes // decoded
)

// Credential is the login id and the secret that a client sent. ID is empty for a Bearer
// credential, which contains only a secret.
type Credential struct {
	ID     string
	Secret string `json:"-"`
}

// String returns the id only. A Credential that is logged by mistake does not reveal its secret.
func (c Credential) String() string { return c.ID }

// GoString omits the secret too: fmt calls it for %#v.
func (c Credential) GoString() string { return "access.Credential{ID:" + c.ID + "}" }

// strictBase64 accepts exactly one spelling of each value: padded, and without stray bits after the
// last byte (RFC 4648, section 3.5). It ignores line breaks, so callers must check for them.
var strictBase64 = base64.StdEncoding.Strict()

// ParseBasic parses the value of an Authorization field as RFC 7617 Basic credentials: the scheme
// in any case, one space, padded base64, split at the first colon. The id is 1 to 64 characters of
// [A-Za-z0-9._@-], the secret 1 to 256 visible ASCII characters. ParseBasic reports false for any
// other value: the request then has no usable credential.
func ParseBasic(value string) (Credential, bool) {
	encoded, ok := afterScheme(value, "basic ")
	// Both arrays stay on the stack, so decoding does not allocate.
	var in [(maxBasic + 2) / 3 * 4]byte
	var buf [maxBasic + 2]byte
	if !ok || len(encoded) > len(in) {
		return Credential{}, false
	}
	// The decoder skips line breaks, even the strict one.
	if strings.IndexByte(encoded, '\r') >= 0 || strings.IndexByte(encoded, '\n') >= 0 {
		return Credential{}, false
	}
	n, err := strictBase64.Decode(buf[:], in[:copy(in[:], encoded)])
	if err != nil {
		return Credential{}, false
	}
	id, secret, ok := bytes.Cut(buf[:n], []byte(":"))
	if !ok {
		return Credential{}, false
	}
	// Two strings, not two parts of one: a principal keeps the id for longer than the secret.
	c := Credential{ID: string(id), Secret: string(secret)}
	if !ValidLogin(c.ID) || !validToken(c.Secret) {
		return Credential{}, false
	}
	return c, true
}

// BasicLogin returns the user-id of RFC 7617 Basic credentials that may belong to another
// authenticator. The user-id may have any length and any characters except control characters.
// BasicLogin reports false for another scheme, and for credentials that do not decode strictly,
// have no colon, or contain a control character.
func BasicLogin(value string) (login string, ok bool) {
	encoded, ok := afterScheme(value, "basic ")
	if !ok || strings.ContainsAny(encoded, "\r\n") { // the decoder skips line breaks
		return "", false
	}
	decoded, err := strictBase64.DecodeString(encoded)
	login, _, colon := strings.Cut(string(decoded), ":")
	control := bytes.ContainsFunc(decoded, func(r rune) bool { return r < ' ' || r == 0x7f })
	return login, err == nil && colon && !control
}

// ParseBearer parses the value of an Authorization field as an RFC 6750 Bearer token. The secret
// has the same limits as in [ParseBasic].
func ParseBearer(value string) (Credential, bool) {
	secret, ok := afterScheme(value, "bearer ")
	if !ok || len(value) > MaxCredentialBytes || !validToken(secret) {
		return Credential{}, false
	}
	return Credential{Secret: secret}, true
}

// HasScheme reports whether the value of an Authorization field begins with the authentication
// scheme, given in lower case. It does not look at the rest of the value.
func HasScheme(value, scheme string) bool {
	if len(value) == len(scheme) { // the scheme may be the whole value, without a space
		value += " "
	}
	_, ok := afterScheme(value, scheme+" ")
	return ok
}

// afterScheme returns the part of a field value after an authentication scheme, which is given in
// lower case with its space. Case is ignored for ASCII letters only (RFC 9110, section 11.1):
// strings.EqualFold would also accept the Kelvin sign for "k".
func afterScheme(value, scheme string) (rest string, ok bool) {
	if !foldsTo(value, scheme) {
		return "", false
	}
	return value[len(scheme):], true
}

// foldsTo reports whether a text begins with lower, in any case.
func foldsTo[T string | []byte](text T, lower string) bool {
	if len(text) < len(lower) {
		return false
	}
	for i := range len(lower) {
		if lowerASCII(text[i]) != lower[i] {
			return false
		}
	}
	return true
}

func lowerASCII(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// ValidLogin reports whether s can be the id or the alias that a client logs in with: 1 to 64
// characters of [A-Za-z0-9._@-]. Our own ids contain an underscore.
func ValidLogin(s string) bool {
	if s == "" || len(s) > MaxLoginBytes {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case digitValue(c) >= 0, c == '.', c == '_', c == '@', c == '-':
		default:
			return false
		}
	}
	return true
}

func validToken(s string) bool {
	if s == "" || len(s) > MaxTokenBytes {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
