// Package access decides which requests of service users get through.
//
// It is the pure core of the product: secrets, credentials, request targets,
// rules, the directory of service users, and decisions. It does no I/O, has no
// clock and no logger of its own, and knows neither Caddy nor SQL: a caller
// hands in bytes, an instant and an address, and gets a value back.
//
// The life of a request, in the order of the data:
//
//	target, problem := access.CheckTarget(…)            // refuse what is ambiguous
//	credential, ok  := access.ParseBasic(authorization) // RFC 7617
//	principal, why  := directory.Authenticate(credential, address, now)
//	decision        := directory.Authorize(principal, access.Action{…})
//
// [Directory] is an immutable value. [Directory.With] builds a new one from a
// set of changes; readers keep the one they have.
package access

import "fmt"

// Reason says why a request was let through or refused. It is meant for logs,
// metrics and admins; a caller never learns more than the status.
type Reason uint8

// The reasons of authentication and authorisation. [Granted] is the only one
// that lets a request through.
const (
	Granted       Reason = iota
	NoCredential         // no Authorization field
	BadCredential        // a field that is not a usable credential
	UnknownID            // no service user has this id or alias
	BadChecksum          // not a secret of ours, or one with a typo
	WrongSecret          // a well-formed secret that belongs to no live token of this user
	TokenExpired         // the token's expires_at has passed
	TokenNotYet          // the token's not_before has not come
	TokenRevoked         // the token was revoked
	TokenAddress         // the client's address is not in the token's allowed_ips
	UserInactive         // the service user is deactivated
	UserExpired          // the service user's expires_at has passed
	UserAddress          // the client's address is not in the user's allowed_ips
	NoRule               // known, but no allow applies
	DeniedByRule         // known, and a deny applies
	reasonCount   = iota // how many there are, for tables indexed by reason
)

var reasonNames = [reasonCount]string{
	Granted: "granted", NoCredential: "no_credential", BadCredential: "bad_credential",
	UnknownID: "unknown_id", BadChecksum: "bad_checksum", WrongSecret: "wrong_secret",
	TokenExpired: "token_expired", TokenNotYet: "token_not_yet_valid", TokenRevoked: "token_revoked",
	TokenAddress: "token_address", UserInactive: "user_inactive", UserExpired: "user_expired",
	UserAddress: "user_address", NoRule: "no_rule", DeniedByRule: "denied_by_rule",
}

// String returns the reason as it appears in logs and metrics: snake case, stable.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Reasons lists every reason, for tables that are prepared ahead.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}
