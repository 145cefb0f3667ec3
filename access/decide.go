package access

import (
	"crypto/subtle"
	"net/netip"
	"slices"
)

// Principal is who a request turned out to be: a service user and the token
// that it came with. The zero value is nobody.
type Principal struct {
	User  *User
	Token *Token
	set   *groupSet // of the token's allows
	class int       // the same, for a directory that may be a newer one
}

// Groups returns the names of the permission groups in effect, sorted. The
// caller must not change them.
func (p Principal) Groups() []string {
	if p.set == nil {
		return nil
	}
	return p.set.names
}

// GroupList returns the same, separated by commas.
func (p Principal) GroupList() string {
	if p.set == nil {
		return ""
	}
	return p.set.joined
}

// String returns the id of the service user.
func (p Principal) String() string {
	if p.User == nil {
		return ""
	}
	return p.User.ID
}

// Authenticate finds out whose credential this is. now is in Unix seconds;
// address is the client's. The reason is [Granted] for a live token of an
// active service user and otherwise says what is wrong; a caller must not
// learn it.
//
// A known and an unknown id cost the same: the secret is hashed in either
// case, and compared in constant time with at least one hash.
func (d *Directory) Authenticate(c Credential, address netip.Addr, now int64) (Principal, Reason) {
	digest := d.peppers.digest(c.Secret)
	user, tokens := d.candidates(c, &digest)
	token := matching(tokens, &digest)
	if token == nil {
		wellFormed := WellFormedSecret(c.Secret) // for an unknown id too: it must not be cheaper
		switch {
		case user == nil && c.ID != "":
			return Principal{}, UnknownID
		case !wellFormed:
			return Principal{}, BadChecksum
		}
		return Principal{}, WrongSecret
	}
	if why := usable(user, token, address, now); why != Granted {
		return Principal{}, why
	}
	return Principal{User: user, Token: token, set: d.sets[token.class], class: token.class}, Granted
}

// Resume asks again about a principal that was authenticated before, perhaps by
// an older directory: for a stream that stays open. It returns the principal as
// d knows it, or why it would be refused now.
func (d *Directory) Resume(p Principal, address netip.Addr, now int64) (Principal, Reason) {
	user, ok := d.users.get(p.User.ID, d.sets)
	if !ok {
		return Principal{}, UnknownID
	}
	for i := range user.Tokens {
		token := &user.Tokens[i]
		if token.ID != p.Token.ID {
			continue
		}
		if why := usable(user, token, address, now); why != Granted {
			return Principal{}, why
		}
		return Principal{User: user, Token: token, set: d.sets[token.class], class: token.class}, Granted
	}
	return Principal{}, TokenRevoked // so long ago that it is no longer kept
}

// Until returns the instant at which the principal's token or user expires, in
// Unix seconds; 0 is never.
func (p Principal) Until() int64 {
	end := p.User.ExpiresAt
	if t := p.Token.ExpiresAt; t != 0 && (end == 0 || t < end) {
		end = t
	}
	return end
}

// nobody stands in for the tokens of an unknown id. No secret belongs to it.
var nobody = []Token{{}}

// candidates returns the user that the credential names and the tokens that
// its secret is to be compared with, at least one. A Bearer credential names
// nobody; the secret is looked up.
func (d *Directory) candidates(c Credential, digest *digests) (*User, []Token) {
	if c.ID == "" {
		for _, hash := range digest[:len(d.peppers.keys)+1] {
			if owner, token, ok := d.users.owner(hash, d.sets); ok {
				return owner, owner.Tokens[token:][:1]
			}
		}
		return nil, nobody
	}
	user, _ := d.User(c.ID)
	if user == nil || len(user.Tokens) == 0 {
		return user, nobody
	}
	return user, user.Tokens
}

// matching returns the token that a secret with these digests belongs to, or
// nil. It compares with every token, in constant time.
func matching(tokens []Token, digest *digests) (token *Token) {
	for i := range tokens {
		t := &tokens[i]
		same := subtle.ConstantTimeCompare(t.Hash[:], digest[max(t.pepper, 0)][:])
		if same == 1 && t.pepper >= 0 && t.ID != "" {
			token = t
		}
	}
	return token
}

// usable checks everything that can be wrong with a token whose secret is right.
func usable(u *User, t *Token, address netip.Addr, now int64) Reason {
	switch {
	case t.Revoked:
		return TokenRevoked
	case !u.Active:
		return UserInactive
	case u.ExpiresAt != 0 && now >= u.ExpiresAt:
		return UserExpired
	case now < t.NotBefore:
		return TokenNotYet
	case t.ExpiresAt != 0 && now >= t.ExpiresAt:
		return TokenExpired
	case !allowedAddress(u.AllowedIPs, address):
		return UserAddress
	case !allowedAddress(t.AllowedIPs, address):
		return TokenAddress
	}
	return Granted
}

func allowedAddress(allowed []netip.Prefix, address netip.Addr) bool {
	if len(allowed) == 0 {
		return true
	}
	address = address.Unmap().WithZone("")
	return slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(address) })
}

// Action is what a request wants to do: the method, and host and path as
// [CheckHost] and [CheckTarget] returned them. The other fields are for rules
// with conditions.
type Action struct {
	Method  string
	Host    string
	Path    string
	Address netip.Addr          // of the client
	Header  map[string][]string // by canonical names: what a client may set
	Now     int64               // Unix seconds
}

// Decision is the answer for one action, with its reason. Rule and Group name
// the rule that decided; they are nil when none did.
type Decision struct {
	Reason Reason
	Rule   *Rule
	Group  *Group
	Would  Would
}

// Would is what groups in observe mode would have made of a decision, had they
// been enforced. The zero value is the same.
type Would struct {
	Effect Effect // deny what was allowed, or allow what no rule allows
	Rule   *Rule
	Group  *Group
}

// Allowed reports whether the request may pass.
func (d Decision) Allowed() bool { return d.Reason == Granted }

// RuleID returns the id of the rule that decided, or "".
func (d Decision) RuleID() string {
	if d.Rule == nil {
		return ""
	}
	return d.Rule.ID
}

// Authorize decides whether the principal may do this. Deny by default; a deny
// wins over any allow, whatever the order. Nothing is granted to the zero
// Principal.
func (d *Directory) Authorize(p Principal, a Action) Decision {
	if p.User == nil {
		return Decision{Reason: NoRule}
	}
	allow, deny := d.groupsOf(p)
	q := question{bit: methodBit(a.Method), user: p.User, action: a}
	if e := d.policy.denied(&q, deny.denies); e != nil {
		return Decision{Reason: DeniedByRule, Rule: e.rule, Group: e.from}
	}
	decision := Decision{Reason: NoRule}
	if e := d.policy.allowed(&q, allow.allows); e != nil {
		decision = Decision{Reason: Granted, Rule: e.rule, Group: e.from}
	}
	if len(deny.wouldDeny) > 0 {
		decision.Would = d.would(&q, allow.wouldAllow, deny.wouldDeny, decision.Reason)
	}
	return decision
}

// groupsOf returns the groups whose allows count for the principal, and those
// whose denies do: narrowing a token lifts no deny. They are those of d, even when
// the principal was found in the directory before it.
func (d *Directory) groupsOf(p Principal) (allow, deny *groupSet) {
	if p.set == nil || p.class >= len(d.sets) || d.sets[p.class].combination != p.set.combination {
		return noGroups, noGroups // the principal is not one of this store
	}
	return d.sets[p.class], d.sets[p.User.class]
}

var noGroups = &groupSet{combination: new(combination)}

// would finds out what groups in observe mode would have done. What they ask
// does not count against the budget of those that are enforced.
func (d *Directory) would(q *question, allows, denies indices, reason Reason) Would {
	q.spent = 0
	denied := d.policy.denied(q, denies)
	switch {
	case denied != nil && reason == Granted:
		return Would{Deny, denied.rule, denied.from}
	case denied != nil || reason == Granted:
		return Would{}
	}
	if e := d.policy.allowed(q, allows); e != nil {
		return Would{Allow, e.rule, e.from}
	}
	return Would{}
}

// Principal returns a service user without a credential, to ask what it may do:
// with one of its tokens, or, with "", with none that narrows anything. The
// reason says whether it could authenticate at that instant from that address;
// the zero address is any.
func (d *Directory) Principal(userID, tokenID string, address netip.Addr, now int64) (Principal, Reason) {
	u, ok := d.users.get(userID, d.sets)
	if !ok {
		return Principal{}, UnknownID
	}
	p := Principal{User: u, Token: new(Token), set: d.sets[u.class], class: u.class}
	if tokenID != "" {
		i := slices.IndexFunc(u.Tokens, func(t Token) bool { return t.ID == tokenID })
		if i < 0 {
			return Principal{}, TokenRevoked
		}
		p.Token = &u.Tokens[i]
		p.class, p.set = p.Token.class, d.sets[p.Token.class]
	}
	why := usable(u, p.Token, address, now)
	if !address.IsValid() && (why == UserAddress || why == TokenAddress) {
		why = Granted
	}
	return p, why
}
