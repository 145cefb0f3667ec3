package access

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	"github.com/segmentio/ksuid"
)

// userRow is a service user as bytes: how many follow; the numbers of its classes,
// and before them how many; and then each field, numbers as varints, texts with
// their length before them. Bits say which of the fields that are mostly empty are
// there. What every request asks comes first. The classes are its own, that of the
// groups that name it, when these are others, and those of tokens that are narrowed.
type userRow []byte

// Most ids are one of these and a KSUID of 27 digits. In a row a user has the digits,
// since every request compares them, and a token the 20 bytes that they stand for.
const (
	userPrefix  = "service_"
	tokenPrefix = "token_"
	idDigits    = 27
)

// tokenID is the id of a token in the form that it has in rows.
type tokenID struct {
	bytes ksuid.KSUID
	short bool
	text  string // when it is not short
}

func newTokenID(text string) tokenID {
	digits, ok := strings.CutPrefix(text, tokenPrefix)
	for i := 0; ok && i < len(digits); i++ {
		ok = digitValue(digits[i]) >= 0 // Parse reads others as digits too
	}
	if ok {
		if k, err := ksuid.Parse(digits); err == nil {
			return tokenID{bytes: k, short: true}
		}
	}
	return tokenID{text: text}
}

// The bits of a user.
const (
	shortID = 1 << iota
	isActive
	isManager
	isAdmin
	hasDisplayName
	hasAlias
	hasOwner
	hasTeams
	hasLabels
	hasUserIPs
	userExpires
	hasNamedSet // the groups that name it are others than those that it is in
)

// The bits of a token.
const (
	shortTokenID = 1 << iota
	isRevoked
	isRetiring
	isUnused
	hasNotBefore
	tokenExpires
	hasTokenIPs
	isNarrowed
	hasPepper
)

// appendUser writes all of a user but the numbers of its classes. other says that the
// groups that name it are others than those that it is in.
func appendUser(b []byte, u *User, hasNamed bool) []byte {
	bits := uint64(0)
	mark := func(set bool, bit uint64) {
		if set {
			bits |= bit
		}
	}
	digits, short := strings.CutPrefix(u.ID, userPrefix)
	short = short && len(digits) == idDigits
	mark(short, shortID)
	mark(u.Active, isActive)
	mark(u.Role == Manager, isManager)
	mark(u.Role == Admin, isAdmin)
	mark(u.DisplayName != "", hasDisplayName)
	mark(u.Alias != "", hasAlias)
	mark(u.Owner != "", hasOwner)
	mark(len(u.Teams) > 0, hasTeams)
	mark(len(u.Labels) > 0, hasLabels)
	mark(len(u.AllowedIPs) > 0, hasUserIPs)
	mark(u.ExpiresAt != 0, userExpires)
	mark(hasNamed, hasNamedSet)
	b = binary.AppendUvarint(b, bits)
	if short {
		b = append(b, digits...)
	} else {
		b = appendText(b, u.ID)
	}
	b = appendText(b, u.Name)
	if bits&userExpires != 0 {
		b = binary.AppendVarint(b, u.ExpiresAt)
	}
	if bits&hasUserIPs != 0 {
		b = appendPrefixes(b, u.AllowedIPs)
	}
	b = binary.AppendUvarint(b, uint64(len(u.Tokens)))
	for i := range u.Tokens {
		b = appendToken(b, &u.Tokens[i])
	}
	b = binary.AppendVarint(b, u.CreatedAt)
	for _, f := range []struct {
		bit  uint64
		text string
	}{{hasDisplayName, u.DisplayName}, {hasAlias, u.Alias}, {hasOwner, u.Owner}} {
		if bits&f.bit != 0 {
			b = appendText(b, f.text)
		}
	}
	if bits&hasTeams != 0 {
		b = binary.AppendUvarint(b, uint64(len(u.Teams)))
		for _, team := range u.Teams {
			b = appendText(b, team)
		}
	}
	if bits&hasLabels != 0 {
		b = binary.AppendUvarint(b, uint64(len(u.Labels)))
		for key, value := range u.Labels {
			b = appendText(appendText(b, key), value)
		}
	}
	return b
}

func appendToken(b []byte, t *Token) []byte {
	id := newTokenID(t.ID)
	bits := uint64(0)
	mark := func(set bool, bit uint64) {
		if set {
			bits |= bit
		}
	}
	mark(id.short, shortTokenID)
	mark(t.Revoked, isRevoked)
	mark(t.Retiring, isRetiring)
	mark(t.Unused, isUnused)
	mark(t.NotBefore != 0, hasNotBefore)
	mark(t.ExpiresAt != 0, tokenExpires)
	mark(len(t.AllowedIPs) > 0, hasTokenIPs)
	mark(len(t.Groups) > 0, isNarrowed)
	mark(t.pepper != 0, hasPepper)
	b = binary.AppendUvarint(b, bits)
	if id.short {
		b = append(b, id.bytes[:]...)
	} else {
		b = appendText(b, t.ID)
	}
	b = append(b, t.Hash[:]...)
	if bits&hasPepper != 0 {
		b = binary.AppendVarint(b, int64(t.pepper))
	}
	if bits&hasNotBefore != 0 {
		b = binary.AppendVarint(b, t.NotBefore)
	}
	if bits&tokenExpires != 0 {
		b = binary.AppendVarint(b, t.ExpiresAt)
	}
	if bits&hasTokenIPs != 0 {
		b = appendPrefixes(b, t.AllowedIPs)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendPrefixes writes a list as one text, which can be passed over.
func appendPrefixes(b []byte, list []netip.Prefix) []byte {
	var all []byte
	for _, p := range list {
		text, err := p.MarshalBinary()
		if err != nil {
			panic("access: encoding a prefix: " + err.Error()) // it never fails
		}
		all = appendText(all, string(text))
	}
	return appendText(b, string(all))
}

// size returns how many bytes of r belong to the row.
func (r userRow) size() int {
	n, head := binary.Uvarint(r)
	return head + int(n)
}

// fields returns the row after its classes, ready to be read, and the classes.
func (r userRow) fields() (fields, setIDs reader) {
	n, head := binary.Uvarint(r)
	fields.b = r[head : head+int(n)]
	count := int(fields.number())
	setIDs = fields
	for range count {
		fields.number()
	}
	return fields, setIDs
}

// id returns the id of the user in pieces: what it begins with, and the rest.
func (r userRow) id() (prefix string, rest []byte) {
	f, _ := r.fields()
	return f.userID(f.number())
}

// idIs reports whether this is the row of a user.
func (r userRow) idIs(id string) bool {
	prefix, rest := r.id()
	return strings.HasPrefix(id, prefix) && id[len(prefix):] == string(rest)
}

func (r userRow) idHash() uint64 {
	prefix, rest := r.id()
	var buf [64]byte
	return maphash.Bytes(shardSeed, append(append(buf[:0], prefix...), rest...))
}

// reader reads one field after the other.
type reader struct{ b []byte }

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	r.b = r.b[n:]
	return v
}

func (r *reader) signed() int64 {
	v, n := binary.Varint(r.b)
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(n int) []byte {
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) text() []byte { return r.bytes(int(r.number())) }

// userID reads an id of a user with these bits.
func (r *reader) userID(bits uint64) (prefix string, rest []byte) {
	if bits&shortID != 0 {
		return userPrefix, r.bytes(idDigits)
	}
	return "", r.text()
}

// tokenID reads an id of a token with these bits.
func (r *reader) tokenID(bits uint64) []byte {
	if bits&shortTokenID != 0 {
		return r.bytes(len(ksuid.KSUID{}))
	}
	return r.text()
}

// prefix reads one of a list of prefixes.
func (r *reader) prefix() (p netip.Prefix) {
	if err := p.UnmarshalBinary(r.text()); err != nil {
		panic("access: a damaged prefix in memory: " + err.Error())
	}
	return p
}

// prefixesOf reads a list of prefixes as a row has it.
func prefixesOf(list []byte) (all []netip.Prefix) {
	for r := (reader{list}); len(r.b) > 0; {
		all = append(all, r.prefix())
	}
	return all
}

// account is what of a row a request asks: the rest is not read.
type account struct {
	row     userRow
	bits    uint64
	prefix  string // of the id …
	id      []byte // … and the rest
	name    []byte
	expires int64  // Unix seconds; 0 is never
	allowed []byte // the prefixes, one after the other; none is any
	count   int    // of tokens
	tokens  reader
	setIDs  reader
}

func (r userRow) account() (a account) {
	a.row = r
	a.tokens, a.setIDs = r.fields()
	f := &a.tokens
	a.bits = f.number()
	a.prefix, a.id = f.userID(a.bits)
	a.name = f.text()
	if a.bits&userExpires != 0 {
		a.expires = f.signed()
	}
	if a.bits&hasUserIPs != 0 {
		a.allowed = f.text()
	}
	a.count = int(f.number())
	return a
}

// tokenRow is a token as it is in a row.
type tokenRow struct {
	bits      uint64
	id        []byte
	hash      *Hash
	pepper    int
	notBefore int64
	expires   int64
	allowed   []byte
}

// token reads the next token.
func (r *reader) token() (t tokenRow) {
	t.bits = r.number()
	t.id = r.tokenID(t.bits)
	t.hash = (*Hash)(r.bytes(len(Hash{})))
	if t.bits&hasPepper != 0 {
		t.pepper = int(r.signed())
	}
	if t.bits&hasNotBefore != 0 {
		t.notBefore = r.signed()
	}
	if t.bits&tokenExpires != 0 {
		t.expires = r.signed()
	}
	if t.bits&hasTokenIPs != 0 {
		t.allowed = r.text()
	}
	return t
}

// idIs reports whether this is the row of a token.
func (t *tokenRow) idIs(id *tokenID) bool {
	if t.bits&shortTokenID != 0 {
		return id.short && bytes.Equal(t.id, id.bytes[:])
	}
	return !id.short && string(t.id) == id.text
}

// decode reads a token but for its groups and the id of its pepper.
func (t *tokenRow) decode() Token {
	return Token{
		ID: t.longID(), Hash: *t.hash, pepper: t.pepper, NotBefore: t.notBefore, ExpiresAt: t.expires,
		Revoked: t.bits&isRevoked != 0, Retiring: t.bits&isRetiring != 0, Unused: t.bits&isUnused != 0, AllowedIPs: prefixesOf(t.allowed),
	}
}

// longID is the id as everybody else knows it.
func (t *tokenRow) longID() string {
	if t.bits&shortTokenID == 0 {
		return string(t.id)
	}
	buf := append(make([]byte, 0, len(tokenPrefix)+idDigits), tokenPrefix...)
	return string(ksuid.KSUID(t.id).Append(buf))
}

// longID is the id as everybody else knows it.
func (a *account) longID() string { return a.prefix + string(a.id) }

// profile reads a user without groups and tokens. rest are the fields behind the
// tokens.
func (a *account) profile(rest reader) *User {
	u := &User{
		ID: a.longID(), Name: string(a.name), Role: a.role(),
		Active: a.bits&isActive != 0, ExpiresAt: a.expires, AllowedIPs: prefixesOf(a.allowed),
	}
	u.CreatedAt = rest.signed()
	if a.bits&hasDisplayName != 0 {
		u.DisplayName = string(rest.text())
	}
	if a.bits&hasAlias != 0 {
		u.Alias = string(rest.text())
	}
	if a.bits&hasOwner != 0 {
		u.Owner = string(rest.text())
	}
	if a.bits&hasTeams != 0 {
		u.Teams = make([]string, rest.number())
		for i := range u.Teams {
			u.Teams[i] = string(rest.text())
		}
	}
	if a.bits&hasLabels != 0 {
		n := rest.number()
		u.Labels = make(map[string]string, n)
		for range n {
			key := string(rest.text())
			u.Labels[key] = string(rest.text())
		}
	}
	return u
}

func (a *account) role() Role {
	switch {
	case a.bits&isAdmin != 0:
		return Admin
	case a.bits&isManager != 0:
		return Manager
	}
	return Member
}

// profile reads a user without groups and tokens.
func (r userRow) profile() *User {
	a := r.account()
	for range a.count {
		a.tokens.token()
	}
	return a.profile(a.tokens)
}

// decode reads a user out of its row. sets are the directory's, which the groups of the
// user belong to.
func (r userRow) decode(sets []*groupSet) *User {
	a := r.account()
	tokens := make([]Token, a.count)
	narrowed := make([]bool, a.count)
	for i := range tokens {
		t := a.tokens.token()
		tokens[i], narrowed[i] = t.decode(), t.bits&isNarrowed != 0
	}
	u := a.profile(a.tokens)
	u.Tokens = tokens
	u.groupSetID = int(a.setIDs.number())
	named := u.groupSetID
	if a.bits&hasNamedSet != 0 {
		named = int(a.setIDs.number())
	}
	u.Groups = sets[named].ids
	for i := range tokens {
		if narrowed[i] {
			tokens[i].Groups = slices.Clone(sets[a.setIDs.number()].tokenGroups)
		}
	}
	return u
}
