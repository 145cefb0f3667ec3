package access

import (
	"crypto/subtle"
	"net/netip"
)

// Authenticate finds out whose credential this is. now is in Unix seconds;
// address is the client's. The reason is [Granted] for a live token of an
// active service user and otherwise says what is wrong; a caller must not
// learn it.
//
// A known and an unknown id cost the same: the secret is hashed in either
// case, and compared in constant time with at least one hash.
func (d *Directory) Authenticate(c Credential, address netip.Addr, now int64) (Principal, Reason) {
	digest := d.peppers.digest(c.Secret)
	id, a := d.candidate(c, &digest)
	m := a.find(&digest, nil)
	if m.place < 0 {
		wellFormed := WellFormedSecret(c.Secret) // for an unknown id too: it must not be cheaper
		switch {
		case id == "" && c.ID != "":
			return Principal{}, UnknownID
		case !wellFormed:
			return Principal{}, BadChecksum
		}
		return Principal{}, WrongSecret
	}
	if reason := a.usable(&m.token, address, now); reason != Granted {
		return Principal{}, reason
	}
	return d.principal(id, &a, &m), Granted
}

// nobody stands in for an unknown user, and for one without tokens. It has one token,
// which has no id and whose hash no secret has, and is not active.
var nobody = func() userRow {
	fields := append([]byte{1, 0}, appendUser(nil, &User{Tokens: make([]Token, 1)}, false)...)
	return append([]byte{byte(len(fields))}, fields...)
}()

// candidate returns the id of the user that the credential names, or "", and its
// account, or that of nobody, which has a token to compare with as well. A Bearer
// credential names none; the secret is looked up.
func (d *Directory) candidate(c Credential, digest *digests) (id string, a account) {
	if c.ID == "" {
		for i := range len(d.peppers.keys) + 1 {
			if row := d.users.owner(&digest[i]); row != nil {
				a = row.account()
				return a.longID(), a
			}
		}
		return "", nobody.account()
	}
	id, row := d.byLogin(c.ID)
	if row != nil {
		a = row.account()
	}
	if a.count == 0 {
		a = nobody.account()
	}
	return id, a
}

// byLogin returns the id and the row of the user with this id or alias, or "" and nil.
func (d *Directory) byLogin(login string) (id string, row userRow) {
	if row := d.users.get(login); row != nil {
		return login, row
	}
	if id, ok := d.logins.get(login); ok {
		return id, d.users.get(id)
	}
	return "", nil
}

// match is one token of an account.
type match struct {
	token    tokenRow
	place    int // among the tokens; negative is none
	setIndex int // which number among the classes is that of its allows
}

// find looks for a token, by its secret or else by its id. It looks at every one of
// them, whichever it is, and compares secrets in constant time.
func (a *account) find(digest *digests, id *tokenID) match {
	m := match{place: -1}
	tokens, setIndex := a.tokens, 0
	if a.bits&hasNamedSet != 0 {
		setIndex = 1
	}
	for i := range a.count {
		t := tokens.token()
		if t.bits&isNarrowed != 0 {
			setIndex++
		}
		var is bool
		if digest != nil {
			same := subtle.ConstantTimeCompare(t.hash[:], digest[max(t.pepper, 0)][:])
			is = same == 1 && t.pepper >= 0 && len(t.id) > 0
		} else {
			is = t.idIs(id)
		}
		if is {
			m = match{token: t, place: i}
			if t.bits&isNarrowed != 0 {
				m.setIndex = setIndex
			}
		}
	}
	return m
}

// principal is a user with one of its tokens. id is that of the account.
func (d *Directory) principal(id string, a *account, m *match) Principal {
	p := Principal{id: id, row: a.row, name: a.name, place: m.place, bits: m.token.bits, hash: m.token.hash, until: a.expires}
	if t := m.token.expires; t != 0 && (p.until == 0 || t < p.until) {
		p.until = t
	}
	setIDs := a.setIDs
	p.userSet = d.sets[setIDs.number()]
	p.tokenSet = p.userSet
	for i := range m.setIndex {
		if id := setIDs.number(); i == m.setIndex-1 {
			p.tokenSet = d.sets[id]
		}
	}
	return p
}

// Resume asks again about a principal that was authenticated before, perhaps by
// an older directory: for a stream that stays open. It returns the principal as
// d knows it, or reason it would be refused now.
func (d *Directory) Resume(p Principal, address netip.Addr, now int64) (Principal, Reason) {
	return d.resume(p, address, now, false)
}

// ResumeExpired is Resume for a request that outlives the expiry of its token, and
// nothing else: the principal that it returns ends with its service user.
func (d *Directory) ResumeExpired(p Principal, address netip.Addr, now int64) (Principal, Reason) {
	return d.resume(p, address, now, true)
}

func (d *Directory) resume(p Principal, address netip.Addr, now int64, outlives bool) (Principal, Reason) {
	again, reason := d.lookUp(p.id, p.TokenID(), address, now, outlives)
	if reason == Granted && again.place < 0 { // it never had a token: nobody has authenticated it
		reason = TokenRevoked
	}
	if reason != Granted {
		return Principal{}, reason
	}
	return again, Granted
}

// Principal returns a service user without a credential, to ask what it may do:
// with one of its tokens, or, with "", with none that narrows anything. The
// reason says whether it could authenticate at that instant from that address;
// the zero address is any.
func (d *Directory) Principal(userID, tokenID string, address netip.Addr, now int64) (Principal, Reason) {
	p, reason := d.lookUp(userID, tokenID, address, now, false)
	if !address.IsValid() && (reason == UserAddress || reason == TokenAddress) {
		reason = Granted
	}
	return p, reason
}

// lookUp finds a user and one of its tokens by their ids; "" is no token. The principal
// is nobody when there is no such user or token, and not when these cannot be used now.
// To one that outlives its token the token has no end.
func (d *Directory) lookUp(userID, token string, address netip.Addr, now int64, outlives bool) (Principal, Reason) {
	row := d.users.get(userID)
	if row == nil {
		return Principal{}, UnknownID
	}
	a, m := row.account(), match{place: -1}
	if token != "" {
		id := newTokenID(token)
		if m = a.find(nil, &id); m.place < 0 {
			return Principal{}, TokenRevoked // so long ago that it is no longer kept
		}
	}
	if outlives {
		m.token.expires = 0
	}
	return d.principal(userID, &a, &m), a.usable(&m.token, address, now)
}

// usable checks everything that can be wrong with a token whose secret is right.
func (a *account) usable(t *tokenRow, address netip.Addr, now int64) Reason {
	switch {
	case t.bits&isRevoked != 0:
		return TokenRevoked
	case a.bits&isActive == 0:
		return UserInactive
	case a.expires != 0 && now >= a.expires:
		return UserExpired
	case now < t.notBefore:
		return TokenNotYet
	case t.expires != 0 && now >= t.expires:
		return TokenExpired
	case !allowedAddress(a.allowed, address):
		return UserAddress
	case !allowedAddress(t.allowed, address):
		return TokenAddress
	}
	return Granted
}

// allowedAddress reports whether an address is in a list of prefixes, as a row has
// it. None is any.
func allowedAddress(list []byte, address netip.Addr) bool {
	if len(list) == 0 {
		return true
	}
	address = address.Unmap().WithZone("")
	for r := (reader{list}); len(r.b) > 0; {
		if r.prefix().Contains(address) {
			return true
		}
	}
	return false
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

	// HeaderGone is set when Header was not kept: a condition that asks for a header
	// cannot be evaluated.
	HeaderGone bool
}

// Decision is the answer for one action, with its reason. Rule and Group name
// the rule that decided; they are nil when none did.
type Decision struct {
	Reason Reason
	Rule   *Rule
	Group  *Group
	Would  Would
	Header bool // a condition that was asked looks at a header
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
	if p.row == nil {
		return Decision{Reason: NoRule}
	}
	allow, deny := d.groupsOf(p)
	q := ruleQuery{bit: methodBit(a.Method), row: p.row, action: a}
	if e := d.policy.denied(&q, deny.denies); e != nil {
		return Decision{Reason: DeniedByRule, Rule: e.rule, Group: e.from, Header: q.header}
	}
	decision := Decision{Reason: NoRule}
	if e := d.policy.allowed(&q, allow.allows); e != nil {
		decision = Decision{Reason: Granted, Rule: e.rule, Group: e.from}
	}
	decision.Header = q.header
	if len(deny.wouldDeny) > 0 {
		decision.Would = d.would(&q, allow.wouldAllow, deny.wouldDeny, decision.Reason)
	}
	return decision
}

// groupsOf returns the groups whose allows count for the principal, and those
// whose denies do: narrowing a token lifts no deny. They are those of d, even when
// the principal was found in the directory before it.
func (d *Directory) groupsOf(p Principal) (allow, deny *groupSet) {
	if !d.hasGroupSet(p.tokenSet) || !d.hasGroupSet(p.userSet) {
		return noGroups, noGroups // the principal is not one of this store
	}
	return d.sets[p.tokenSet.id], d.sets[p.userSet.id]
}

// holds reports whether a combination of groups is one of this directory, whatever
// these have become.
func (d *Directory) hasGroupSet(s *groupSet) bool {
	return s != nil && s.id < len(d.sets) && d.sets[s.id].groupKey == s.groupKey
}

var noGroups = &groupSet{groupKey: new(groupKey)}

// would finds out what groups in observe mode would have done. What they ask
// does not count against the budget of those that are enforced.
func (d *Directory) would(q *ruleQuery, allows, denies indices, reason Reason) Would {
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
