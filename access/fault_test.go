package access

import (
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

func TestReadLogin(t *testing.T) {
	const id = "service_2PXPP3nYq7UYuXgCGsfHzMyRZfB"
	secret := secret(7)
	for _, row := range []struct {
		value       string
		bearer      bool
		reason      Reason
		login, want string
	}{
		// Not a credential.
		{basicOf(id + ":" + secret + "\n"), false, BadCredential, id, "the token ends in a line break"},
		{basicOf(id + ":" + secret + "\r\n"), false, BadCredential, id, "the token ends in a line break"},
		{basicOf(id + ": " + secret), false, BadCredential, id, "the token has spaces or quotes around it"},
		{basicOf(id + `:"` + secret + `" `), false, BadCredential, id, "the token has spaces or quotes around it"},
		{basicOf(id + ":"), false, BadCredential, id, "the token is empty"},
		{basicOf(id + ":a\x01"), false, BadCredential, id, "the token is too long, or has a character that no token has"},
		{basicOf(" " + id + ":" + secret), false, BadCredential, id, "the id has spaces or quotes around it"},
		{basicOf(`"` + id + `":` + secret), false, BadCredential, id, "the id has spaces or quotes around it"},
		{basicOf(id + "\n:" + secret), false, BadCredential, "", "the id ends in a line break"},
		{basicOf("a%40b:" + secret), false, BadCredential, "", "the id is URL-encoded"},
		{basicOf("a b:" + secret), false, BadCredential, "", "the id is too long, or has a character that no id has"},
		{basicOf(strings.Repeat("a", 65) + ":" + secret), false, BadCredential, "", "the id is too long, or has a character that no id has"},
		{basicOf(":" + secret), false, BadCredential, "", "the id is empty"},
		{basicOf(secret + ":"), false, BadCredential, secret, "the token is in the place of the id"},
		{basicOf(id), false, BadCredential, "", "no colon is between id and token"},
		{basicOf(secret), false, BadCredential, "", "no colon is between id and token"},
		{"Basic " + id + ":" + secret, false, BadCredential, id, "the credential is not base64"},
		{"Basic " + id, false, BadCredential, "", "the credential is not base64"},
		{"Basic", false, BadCredential, "", "no colon is between id and token"},
		{strings.TrimRight(basicOf(id+":"+secret+"x"), "="), false, BadCredential, id, "the token has another length"},
		{strings.TrimRight(basicOf(id+":"+secret), "="), false, BadCredential, id, "the base64 has another form than RFC 7617"},
		{basicOf(id+":"+secret) + " ", false, BadCredential, id, "the base64 has another form than RFC 7617"},
		{"Basic  " + basicOf(id + ":" + secret)[6:], false, BadCredential, id, "the base64 has another form than RFC 7617"},
		{"Basic " + strings.Repeat("a", MaxCredentialBytes), false, BadCredential, "", "the credential is too long"},
		{"Digest username=x", false, BadCredential, "", "the scheme is neither Basic nor Bearer"},
		{"hunter2 x", false, BadCredential, "", "the scheme is neither Basic nor Bearer"},
		{secret, false, BadCredential, "", "the scheme is neither Basic nor Bearer"},
		{"", false, BadCredential, "", "the scheme is neither Basic nor Bearer"},
		{"", false, NoCredential, "", ""},
		{"Bearer " + secret, false, BadCredential, "", "Bearer is off on this site"},
		{"bearer " + secret, false, BadCredential, "", "Bearer is off on this site"},
		{"Bearer", true, BadCredential, "", "the token is empty"},
		{"Bearer  " + secret, true, BadCredential, "", "the token has spaces or quotes around it"},

		// A credential with a token that is not ours.
		{basicOf(id + ":" + secret[:40]), false, BadChecksum, id, "the token has another length"},
		{basicOf(id + ":" + secret + "x"), false, BadChecksum, id, "the token has another length"},
		{basicOf(id + ":hunter2"), false, BadChecksum, id, "the token has another length"},
		{basicOf(id + ":" + strings.ToLower(secret)), false, BadChecksum, id, "the token has a typo"},
		{basicOf(id + ":" + strings.ToUpper(secret)), false, BadChecksum, id, "the token has a typo"},
		{basicOf(id + ":csu%5F" + secret[4:]), false, BadChecksum, id, "the token is URL-encoded"},
		{basicOf(id + `:"` + secret + `"`), false, BadChecksum, id, "the token has spaces or quotes around it"},
		{basicOf(id + ":token_2PXPP3nYq7UYuXgCGsfHzMyRZfB"), false, BadChecksum, id, "the token is the id of a token"},
		{basicOf(id + ":" + testkit.Altered(secret)), false, BadChecksum, id, "the token has a typo"},
		{"Bearer " + secret[:40], true, BadChecksum, "", "the token has another length"},

		// An id that nobody has. A stranger's password is not examined.
		{basicOf("admin:admin"), false, UnknownID, "admin", "the id is neither an alias nor begins with service_; the name of a service user is not its id"},
		{basicOf(id + ":" + secret), false, UnknownID, id, ""},
		{basicOf("token_x:" + secret), false, UnknownID, "token_x", "the id is the id of a token"},
		{basicOf(secret + ":" + id), false, UnknownID, secret, "the token is in the place of the id"},

		{basicOf(id + ":" + secret), false, WrongSecret, id, ""},
		{basicOf(id + ":" + secret), false, TokenExpired, id, ""},
	} {
		login, got := ReadLogin(row.value, row.bearer, row.reason)
		if login != row.login || got != row.want {
			t.Errorf("%q, %s: got %q, %q, want %q, %q", row.value, row.reason, login, got, row.login, row.want)
		}
		if FindLeak(got) != NoLeak {
			t.Errorf("%q: the fault has a part of it: %s", row.value, got)
		}
	}
}
