package access

import (
	"bytes"
	"encoding/base64"
	"strings"
)

// The limits of a credential. A longer one is refused before any work is done.
const (
	MaxCredentialBytes = 1024 // of the whole field value
	MaxLoginBytes      = 64   // of an id or alias
	MaxTokenBytes      = 256  // of the secret part

	maxBasic = MaxLoginBytes + len(":") + MaxTokenBytes // decoded
)

// Credential is what a client presented: who it says it is, and its secret.
// ID is empty for a Bearer credential, which names nobody.
type Credential struct {
	ID     string
	Secret string `json:"-"`
}

// String returns the id only, so that a credential that reaches a log by
// mistake tells no secret.
func (c Credential) String() string { return c.ID }

// GoString does the same for %#v.
func (c Credential) GoString() string { return "access.Credential{ID:" + c.ID + "}" }

// strictBase64 takes exactly one spelling of each value: padded, no line
// breaks, no stray bits behind the last byte (RFC 4648, section 3.5).
var strictBase64 = base64.StdEncoding.Strict()

// ParseBasic reads the value of an Authorization field as RFC 7617 Basic
// credentials: the scheme in any case, one space, padded base64, split at the
// first colon. The id is 1 to 64 characters of [A-Za-z0-9._@-], the secret 1 to
// 256 visible ASCII characters. It reports false for anything else; whoever
// sent that has no usable credential.
func ParseBasic(value string) (Credential, bool) {
	encoded, ok := afterScheme(value, "basic ")
	var in [(maxBasic + 2) / 3 * 4]byte
	var buf [maxBasic + 2]byte
	if !ok || len(encoded) > len(in) || strings.IndexByte(encoded, '\r') >= 0 || strings.IndexByte(encoded, '\n') >= 0 {
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
	c := Credential{ID: string(id), Secret: string(secret)} // apart: the id is kept for longer
	if !ValidLogin(c.ID) || !validToken(c.Secret) {
		return Credential{}, false
	}
	return c, true
}

// BasicLogin returns the user-id of RFC 7617 Basic credentials that may be those of
// another authenticator, with any characters but controls and of any length. It
// reports false for another scheme, and for credentials that do not decode strictly,
// have no colon, or hold a control character.
func BasicLogin(value string) (login string, ok bool) {
	encoded, ok := afterScheme(value, "basic ")
	if !ok || strings.ContainsAny(encoded, "\r\n") { // the decoder skips these
		return "", false
	}
	decoded, err := strictBase64.DecodeString(encoded)
	login, _, colon := strings.Cut(string(decoded), ":")
	control := bytes.ContainsFunc(decoded, func(r rune) bool { return r < ' ' || r == 0x7f })
	return login, err == nil && colon && !control
}

// ParseBearer reads the value of an Authorization field as an RFC 6750 Bearer
// token. The limits of the secret are those of [ParseBasic].
func ParseBearer(value string) (Credential, bool) {
	secret, ok := afterScheme(value, "bearer ")
	if !ok || len(value) > MaxCredentialBytes || !validToken(secret) {
		return Credential{}, false
	}
	return Credential{Secret: secret}, true
}

// HasScheme reports whether the value of an Authorization field names an
// authentication scheme, given in lower case, whatever follows.
func HasScheme(value, scheme string) bool {
	if len(value) == len(scheme) {
		value += " "
	}
	_, ok := afterScheme(value, scheme+" ")
	return ok
}

// afterScheme cuts an authentication scheme, given in lower case with its
// space, off a field value. Schemes fold in ASCII only (RFC 9110, section 11.1).
func afterScheme(value, scheme string) (rest string, ok bool) {
	if len(value) < len(scheme) {
		return "", false
	}
	for i := range len(scheme) {
		if lowerASCII(value[i]) != scheme[i] {
			return "", false
		}
	}
	return value[len(scheme):], true
}

func lowerASCII(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// ValidLogin reports whether s can be an id or alias that a client logs in
// with: 1 to 64 characters of [A-Za-z0-9._@-] and the underscore of our ids.
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
