package access

import "slices"

// Principal is who a request turned out to be: a service user and the token that it
// came with. The zero value is nobody. It holds on to a part of the table that it was
// found in: see [Principal.Alone].
type Principal struct {
	id       string // of the service user
	row      userRow
	name     []byte    // in the row
	place    int       // of the token in the row; negative is none
	bits     uint64    // of the token
	hash     *Hash     // of its secret
	until    int64     // Unix seconds; 0 is for ever
	userSet  *groupSet // of the user
	tokenSet *groupSet // of the token's allows
}

// Alone returns the same principal, which holds on to the rows of nobody else: for
// whoever keeps it while the directory changes.
func (p Principal) Alone() Principal {
	if p.row == nil {
		return p
	}
	p.row = slices.Clone(p.row[:p.row.size()])
	a := p.row.account()
	p.name = a.name
	if t, ok := p.token(); ok {
		p.hash = t.hash
	}
	return p
}

// ID returns the id of the service user; "" is nobody's.
func (p Principal) ID() string { return p.id }

// String returns the same.
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

// DisplayName returns the display name of the service user; "" is none.
func (p Principal) DisplayName() string { return p.profile().DisplayName }

// Teams returns the teams of the service user, made anew for whoever asks.
func (p Principal) Teams() []string { return p.profile().Teams }

// profile reads all of the service user but its groups and its tokens.
func (p Principal) profile() *User {
	if p.row == nil {
		return new(User)
	}
	return p.row.profile()
}

// Token returns the token, without its pepper; the zero Token is none.
func (p Principal) Token() Token {
	t, ok := p.token()
	if !ok {
		return Token{}
	}
	out := t.decode()
	if p.tokenSet != p.userSet {
		out.Groups = slices.Clone(p.tokenSet.tokenGroups)
	}
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
	for range p.place + 1 {
		t = a.tokens.token()
	}
	return t, true
}

// Until returns the instant at which the token or the service user expires, in Unix
// seconds; 0 is never.
func (p Principal) Until() int64 { return p.until }

// Retiring reports whether the token has a successor.
func (p Principal) Retiring() bool { return p.bits&isRetiring != 0 }

// Unused reports whether the token was made by its own user and had not been seen.
func (p Principal) Unused() bool { return p.bits&isUnused != 0 }

// Groups returns the names of the permission groups in effect, sorted. The
// caller must not change them.
func (p Principal) Groups() []string {
	if p.tokenSet == nil {
		return nil
	}
	return p.tokenSet.names
}

// GroupList returns the same, separated by commas.
func (p Principal) GroupList() string {
	if p.tokenSet == nil {
		return ""
	}
	return p.tokenSet.joined
}
