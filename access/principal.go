package access

import "slices"

// Principal is the authenticated origin of a request: a service user and the token that the request
// contains. The zero value is not a service user and may do nothing. A Principal keeps a part of
// the directory in memory: see [Principal.Alone].
type Principal struct {
	id     string    // the id of the service user
	row    userRow   // nil in the zero Principal
	name   []byte    // the name of the service user, a part of row
	place  int       // the index of the token in row; negative for none
	bits   uint64    // the bits of the token
	hash   *Hash     // the hash of the token's secret, a part of row
	until  int64     // the earlier expiry of token and service user, Unix seconds; 0 is never
	groups *groupSet // of the token: that of the service user if the token is not narrowed
}

// Alone returns a copy of the principal that does not keep the rows of other users in memory. Use
// it to store a principal for longer than a request, such as for an open stream.
func (p Principal) Alone() Principal {
	if p.row == nil {
		return p
	}
	p.row = slices.Clone(p.row[:p.row.size()])
	// name and hash point into the old row: read them from the new one.
	a := p.row.account()
	p.name = a.name
	if t, ok := p.token(); ok {
		p.hash = t.hash
	}
	return p
}

// ID returns the id of the service user. It is "" for the zero Principal.
func (p Principal) ID() string { return p.id }

// String returns the id of the service user, for logs.
func (p Principal) String() string { return p.id }

// Name returns the name of the service user.
func (p Principal) Name() string { return string(p.name) }

// Role returns the role of the service user.
func (p Principal) Role() Role {
	if p.row == nil {
		return Member
	}
	a := p.row.account()
	return a.role()
}

// DisplayName returns the display name of the service user; "" for none.
func (p Principal) DisplayName() string { return p.profile().DisplayName }

// Teams returns the teams of the service user. The caller may change the list.
func (p Principal) Teams() []string { return p.profile().Teams }

// profile returns the service user without its groups and tokens.
func (p Principal) profile() *User {
	if p.row == nil {
		return new(User)
	}
	return p.row.profile()
}

// Token returns the token, with an empty Pepper. It returns the zero Token for a principal without
// a token.
func (p Principal) Token() Token {
	t, ok := p.token()
	if !ok {
		return Token{}
	}
	out := t.decode()
	out.Groups = slices.Clone(p.groups.tokenGroups)
	return out
}

// TokenID returns the id of the token, or "".
func (p Principal) TokenID() string {
	t, ok := p.token()
	if !ok {
		return ""
	}
	return t.longID()
}

func (p Principal) token() (t tokenRow, ok bool) {
	if p.row == nil || p.place < 0 {
		return t, false
	}
	a := p.row.account()
	for range p.place + 1 { // tokens differ in length, so read all before it
		t = a.tokens.token()
	}
	return t, true
}

// Until returns the instant at which the token or the service user expires, in Unix seconds; 0 is
// never.
func (p Principal) Until() int64 { return p.until }

// Retiring reports whether the token has a successor.
func (p Principal) Retiring() bool { return p.bits&isRetiring != 0 }

// Unused reports whether the token was made by its own user and had never been used before.
func (p Principal) Unused() bool { return p.bits&isUnused != 0 }

// Groups returns the names of the permission groups in effect, sorted. The caller must not change
// them.
func (p Principal) Groups() []string {
	if p.groups == nil {
		return nil
	}
	return p.groups.names
}

// GroupList returns the names of Groups, separated by commas.
func (p Principal) GroupList() string {
	if p.groups == nil {
		return ""
	}
	return p.groups.joined
}
