package access

import (
	"cmp"
	"encoding/base64"
	"strings"
)

// ReadLogin reads an Authorization value whose authentication failed for this reason, for the log.
// The value need not be a credential. ReadLogin returns the login, or "" if it cannot be read, and
// the fault in the form of the value, or "". The login can be a secret in the wrong place; the fault
// contains no part of a secret.
func ReadLogin(value string, bearer bool, reason Reason) (login, fault string) {
	scheme, rest, _ := strings.Cut(value, " ")
	switch lower := strings.ToLower(scheme); {
	case reason == NoCredential:
		return "", ""
	case len(value) > MaxCredentialBytes:
		return "", "the credential is too long"
	case lower == "bearer" && !bearer:
		return "", "Bearer is off on this site"
	case lower == "bearer":
		return "", faultIn("token", rest)
	case lower != "basic": // perhaps a password without a scheme
		return "", "the scheme is neither Basic nor Bearer"
	}
	text, err := base64.RawStdEncoding.DecodeString(strings.Trim(rest, "= \t\"'"))
	if err != nil {
		text = []byte(rest)
	}
	id, token, colon := strings.Cut(string(text), ":")
	if login = strings.Trim(id, " \t\"'"); !colon || !ValidLogin(login) {
		login = ""
	}
	// Both are searched for every reason, so that known and unknown ids take the same time.
	idFault, tokenFault := faultIn("id", id), faultIn("token", token)
	switch {
	case err != nil:
		return login, "the credential is not base64"
	case !colon:
		return login, "no colon is between id and token"
	case reason == UnknownID:
		if !strings.HasPrefix(id, userPrefix) { // true of a name, and of an alias that nobody has
			idFault = cmp.Or(idFault, "the id is neither an alias nor begins with "+userPrefix+
				"; the name of a service user is not its id")
		}
		return login, idFault
	case reason == BadCredential:
		return login, cmp.Or(idFault, tokenFault, "the base64 has another form than RFC 7617")
	}
	return login, tokenFault
}

// faults are the faults that an id or a token can have, the most telling first.
var faults = []struct {
	part string // "id", "token" or "" for both
	is   func(string) bool
	text string
}{
	{"", func(s string) bool { return s == "" }, "is empty"},
	{"", func(s string) bool { return strings.TrimRight(s, "\r\n") != s }, "ends in a line break"},
	{"", func(s string) bool { return strings.Trim(s, " \t\r\n\"'") != s }, "has spaces or quotes around it"},
	{"", func(s string) bool { return strings.Contains(s, "%") }, "is URL-encoded"},
	{"", func(s string) bool { return strings.HasPrefix(s, tokenPrefix) }, "is the id of a token"},
	{"id", func(s string) bool { return !ValidLogin(s) }, "is too long, or has a character that no id has"},
	{"token", func(s string) bool { return !validToken(s) }, "is too long, or has a character that no token has"},
	{"token", func(s string) bool { return len(s) != SecretLength }, "has another length"},
	{"token", func(string) bool { return true }, "has a typo"},
}

// faultIn returns a fault in the form of an id or a token, or "".
func faultIn(part, s string) string {
	switch {
	case part == "id" && strings.HasPrefix(s, SecretPrefix):
		return "the token is in the place of the id"
	case part == "token" && WellFormedSecret(s):
		return ""
	}
	for _, f := range faults {
		if (f.part == "" || f.part == part) && f.is(s) {
			return "the " + part + " " + f.text
		}
	}
	return ""
}
