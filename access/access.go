// Package access decides which requests of service users get through.
//
// The package is the pure core of the product: secrets, credentials, request targets, rules, the
// directory of service users, and decisions. It does no I/O, reads no clock, writes no log, and
// imports neither Caddy nor SQL. A caller passes bytes, an instant and an address, and gets a value
// back.
//
// The calls for one request, in order:
//
//	action, problem   := access.Judge(method, host, target, options) // reject ambiguous requests
//	credential, ok    := access.ParseBasic(authorization)            // RFC 7617
//	principal, reason := directory.Authenticate(credential, address, now)
//	decision          := directory.Authorize(principal, action)
//
// [Directory] is an immutable value. [Directory.With] builds a new Directory from a set of changes.
// Requests in progress keep the Directory that they began with.
package access

// Reason says why a request was let through or refused. Reasons are for logs, metrics and admins:
// the response to the caller contains the status only.
type Reason uint8

// The reasons of authentication and authorisation. [Granted] is the only one that lets a request
// through.
const (
	Granted       Reason = iota
	NoCredential         // no Authorization field
	BadCredential        // a field that is not a usable credential
	UnknownID            // no service user has this id or alias
	BadChecksum          // the secret does not have our format, or has a typo
	WrongSecret          // the secret is well-formed, but not the secret of any token of this user
	TokenExpired         // the token's expires_at has passed
	TokenNotYet          // the token's not_before has not come
	TokenRevoked         // the token was revoked
	TokenAddress         // the client's address is not in the token's allowed_ips
	UserInactive         // the service user is deactivated
	UserExpired          // the service user's expires_at has passed
	UserAddress          // the client's address is not in the user's allowed_ips
	NoRule               // the user is authenticated, but no allow applies
	DeniedByRule         // the user is authenticated, and a deny applies
	reasonCount   = iota // the number of reasons, for tables indexed by reason
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
	return reasonNames[r]
}

// Reasons returns every reason, for callers that prepare one counter per reason, for example.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}
