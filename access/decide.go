package access

import (
	"crypto/subtle"
	"net/netip"
)

// Authenticate returns the principal that the credential belongs to. now is in Unix seconds;
// address is the address of the client. The reason is [Granted] for a usable token of an active
// service user; any other reason explains the refusal and must not reach the client.
//
// A known and an unknown id take the same time: in both cases Authenticate hashes the secret and
// compares it in constant time with at least one hash.
func (d *Directory) Authenticate(c Credential, address netip.Addr, now int64) (Principal, Reason) {
	digest := d.peppers.digest(c.Secret)
	id, a := d.candidate(c, &digest)
	m := a.find(&digest, nil)
	if m.place < 0 {
		// Checked for an unknown id too, which would otherwise take less time than a known
		// one.
		wellFormed := WellFormedSecret(c.Secret)
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

// nobody is the placeholder account for a failed look-up, and for a user without tokens. It is
// inactive and has one token, so that a miss costs as much as a hit. The token has an empty hash
// and no id: account.find never returns it.
var nobody = alone(&User{Tokens: make([]Token, 1)})

// candidate returns the id and the account of the user that the credential names. If the user does
// not exist, candidate returns "" and the account of nobody. A Bearer credential does not contain
// an id: candidate looks for the owner of the secret instead.
func (d *Directory) candidate(c Credential, digest *digests) (id string, a account) {
	if c.ID == "" {
		// A token may be hashed without a pepper (entry 0) or with any of the peppers.
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
	if a.count == 0 { // the user is unknown, or has no token to compare with
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
	place    int // index of the token in the account; negative for none
	setIndex int // index in account.setIDs of the group set of the token
}

// find returns the token with a secret, given as its digests, or with an id if digest is nil. It
// reads every token of the account, even after a match, and compares secrets in constant time: the
// time does not depend on the position of the token.
func (a *account) find(digest *digests, id *tokenID) match {
	m := match{place: -1}
	tokens, setIndex := a.tokens, 0
	if a.bits&hasNamedSet != 0 {
		setIndex = 1
	}
	for i := range a.count {
		t := tokens.token()
		if t.bits&isNarrowed != 0 { // each narrowed token has a group set of its own, in order
			setIndex++
		}
		var matches bool
		if digest != nil {
			// A token with an unknown pepper (-1) is compared too, with entry 0, for
			// the time that it takes. The conditions in the next line then reject it,
			// and the token of nobody.
			same := subtle.ConstantTimeCompare(t.hash[:], digest[max(t.pepper, 0)][:])
			matches = same == 1 && t.pepper >= 0 && len(t.id) > 0
		} else {
			matches = t.idIs(id)
		}
		if matches {
			m = match{token: t, place: i}
			if t.bits&isNarrowed != 0 {
				m.setIndex = setIndex
			}
		}
	}
	return m
}

// principal returns the Principal of an account and one of its tokens. id is the id of the account.
func (d *Directory) principal(id string, a *account, m *match) Principal {
	p := Principal{
		id:    id,
		row:   a.row,
		name:  a.name,
		place: m.place,
		bits:  m.token.bits,
		hash:  m.token.hash,
		until: a.expires,
	}
	if t := m.token.expires; t != 0 && (p.until == 0 || t < p.until) {
		p.until = t
	}
	setIDs := a.setIDs
	// The ids are varints: reading one means reading all ids before it.
	for range m.setIndex {
		setIDs.number()
	}
	p.groups = d.sets[setIDs.number()]
	return p
}

// Resume checks a principal again, for a stream that stays open. The principal may come from an
// older directory. Resume returns the principal as it is in d, or the reason for which it would be
// refused now.
func (d *Directory) Resume(p Principal, address netip.Addr, now int64) (Principal, Reason) {
	return d.resume(p, address, now, false)
}

// ResumeExpired is Resume for a request that may outlive the expiry of its token. Every other check
// still applies. [Principal.Until] of the result is the expiry of the service user.
func (d *Directory) ResumeExpired(p Principal, address netip.Addr, now int64) (Principal, Reason) {
	return d.resume(p, address, now, true)
}

func (d *Directory) resume(p Principal, address netip.Addr, now int64, ignoreExpiry bool) (Principal, Reason) {
	again, reason := d.lookUp(p.id, p.TokenID(), address, now, ignoreExpiry)
	// A principal without a token comes from Directory.Principal, not from Authenticate.
	if reason == Granted && again.place < 0 {
		reason = TokenRevoked
	}
	if reason != Granted {
		return Principal{}, reason
	}
	return again, Granted
}

// Principal returns the principal of a service user without a credential, for questions such as
// [Directory.Explain]. tokenID selects one of its tokens; with "" no token narrows the allows. The
// reason says whether the service user could authenticate at that instant from that address. With
// the zero address, Principal ignores allowed_ips.
func (d *Directory) Principal(userID, tokenID string, address netip.Addr, now int64) (Principal, Reason) {
	p, reason := d.lookUp(userID, tokenID, address, now, false)
	if !address.IsValid() && (reason == UserAddress || reason == TokenAddress) {
		reason = Granted
	}
	return p, reason
}

// lookUp returns the principal of a user and one of its tokens, both given by id; token "" means
// none. The principal is the zero Principal only if the user or token does not exist: a principal
// that cannot be used now is returned together with the reason. With ignoreExpiry the token has no
// expiry.
func (d *Directory) lookUp(userID, token string, address netip.Addr, now int64, ignoreExpiry bool) (Principal, Reason) {
	row := d.users.get(userID)
	if row == nil {
		return Principal{}, UnknownID
	}
	a, m := row.account(), match{place: -1}
	if token != "" {
		id := newTokenID(token)
		if m = a.find(nil, &id); m.place < 0 {
			return Principal{}, TokenRevoked // the store drops tokens some time after their end
		}
	}
	if ignoreExpiry {
		m.token.expires = 0
	}
	return d.principal(userID, &a, &m), a.usable(&m.token, address, now)
}

// usable checks everything except the secret: whether the token and its service user may be used
// now, from this address.
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

// allowedAddress reports whether an address is in an encoded list of prefixes, see appendPrefixes.
// An empty list allows every address.
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

// Action is one attempt to use the API: method, host and path as [Judge] returned them. The other
// fields are for rules with conditions.
type Action struct {
	Method  string
	Host    string
	Path    string
	Address netip.Addr          // of the client
	Header  map[string][]string // the headers that a client may set, by canonical name
	Now     int64               // Unix seconds

	// Unknown is the set of facts that a question about a request does not give. It is 0 for a
	// real request.
	Unknown Unknown

	// HeaderGone means that Header was not kept. Conditions that read a header then fail to
	// evaluate.
	HeaderGone bool
}

// Unknown is a set of facts about a request. A condition that depends on one of them fails to
// evaluate: an allow does not apply then, and a deny does.
type Unknown uint8

// The facts that a question may leave open.
const (
	UnknownAddress Unknown = 1 << iota // Action.Address
	UnknownHeader                      // every header that is not in Action.Header; "" says that it is absent
	UnknownHost                        // Action.Host

	// UnknownTime means that the question names no time. Conditions see Action.Now all the same,
	// but a rule that does not apply at that instant is reported as not asked.
	UnknownTime

	unknownPath   // a part of Action.Path, see Question
	unknownParams // a parameter of the rule
)

// Decision is the answer for one action, with its reason. Rule and Group name the rule that
// decided; they are nil when none did.
type Decision struct {
	Reason Reason
	Rule   *Rule
	Group  *Group
	Would  Would
	Header bool // an evaluated condition reads a header
}

// Would is the change that groups in observe mode would make to a decision if they were enforced.
// The zero value means no change.
type Would struct {
	Effect Effect // Deny for an allowed request, or Allow for a request that no rule allows
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

// Authorize decides whether the principal may perform the action. The default is to refuse. A deny
// wins over any allow, in any order. The zero Principal may do nothing.
func (d *Directory) Authorize(p Principal, a Action) Decision {
	if p.row == nil {
		return Decision{Reason: NoRule}
	}
	groups := d.groupsOf(p)
	q := ruleQuery{bit: methodBit(a.Method), row: p.row, action: a}
	if e := d.policy.denied(&q, groups.denies); e != nil {
		return Decision{Reason: DeniedByRule, Rule: e.rule, Group: e.from, Header: q.header}
	}
	decision := Decision{Reason: NoRule}
	if e := d.policy.allowed(&q, groups.allows); e != nil {
		decision = Decision{Reason: Granted, Rule: e.rule, Group: e.from}
	}
	decision.Header = q.header
	if len(groups.wouldDeny) > 0 {
		decision.Would = d.would(&q, groups.wouldAllow, groups.wouldDeny, decision.Reason)
	}
	return decision
}

// groupsOf returns the group set of a principal as it is in d. The principal may come from another
// version of the directory: the id of a group set is the same in every version, and the groups
// behind it may change.
func (d *Directory) groupsOf(p Principal) *groupSet {
	if s := p.groups; s != nil && s.id < len(d.sets) && d.sets[s.id].groupKey == s.groupKey {
		return d.sets[s.id]
	}
	return noGroups // the principal belongs to another store
}

var noGroups = &groupSet{groupKey: new(groupKey)}

// would applies the rules of groups in observe mode to a decision with this reason.
func (d *Directory) would(q *ruleQuery, allows, denies indices, reason Reason) Would {
	q.spent = 0 // their conditions have a budget of their own
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
