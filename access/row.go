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

// A Directory keeps its service users in a table, as rows. A row has no pointers, only numbers:
//
//	Directory ─┬─ table ─┬─ shards ── userShard ─┬─ index: hash of an id ──▶ place
//	           │         │                       ├─ rows:  place ──────────▶ position in the arena
//	           │         │                       └─ arena: row │ row │ row │ …
//	           │         └─ hashes ── hashShard: hash of a token ──▶ shard and place of its user
//	           └─ sets: group set id ──▶ groupSet, with the groups and rules of all its users
//
// userRow is a service user encoded as bytes:
//
//	length │ n, n group set ids │ bits │ id │ name │ [expires] │ [allowed IPs] │
//	n, n tokens │ created │ [each of otherTexts] │ [teams] │ [labels] │ [description]
//
// The length is the number of bytes after it. Numbers are varints, and a text is its length
// followed by its bytes. The bits say which of the fields in brackets are present; most of these
// are empty in most rows. The fields that every request needs come first.
//
// The group set ids are, in this order: the set of the groups that the user is in; the set of the
// groups that list it by name, if that is a different set (hasNamedSet); and one set for each
// narrowed token.
//
// A row is usually a slice of a larger array, and may be followed by other rows: see userRow.size.
type userRow []byte

// Most ids are one of these prefixes and the 27 digits of a KSUID. The row of a user contains the
// digits, because every request compares them. A token contains the 20 bytes that its digits
// encode.
const (
	userPrefix  = "service_"
	tokenPrefix = "token_"
	idDigits    = 27
)

// tokenID is the id of a token in the form in which rows contain it.
type tokenID struct {
	bytes ksuid.KSUID // the KSUID, if the id has one
	short bool        // the id is tokenPrefix and a KSUID
	text  string      // the whole id, if it is not short
}

func newTokenID(text string) tokenID {
	digits, ok := strings.CutPrefix(text, tokenPrefix)
	if ok && strings.Trim(digits, base62) == "" { // Parse accepts other characters as digits too
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
	hasTeams
	hasLabels
	userExpires
	hasUserIPs
	hasNamedSet // the groups that list the user by name differ from the groups that it is in
	hasDescription
	hasText // the first of otherTexts; each of the next ones has the next bit
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

// bitSet collects the bits of a user or a token.
type bitSet uint64

func (b *bitSet) mark(set bool, bit bitSet) {
	if set {
		*b |= bit
	}
}

// appendUser appends a row without its length and group set ids, which are not known yet when a
// user is encoded. hasNamed is the bit hasNamedSet.
func appendUser(b []byte, u *User, hasNamed bool) []byte {
	var bits bitSet
	// Unlike the id of a token, the digits are copied as they are: they need not be a valid
	// KSUID.
	digits, short := strings.CutPrefix(u.ID, userPrefix)
	short = short && len(digits) == idDigits
	bits.mark(short, shortID)
	bits.mark(u.Active, isActive)
	bits.mark(u.Role == Manager, isManager)
	bits.mark(u.Role == Admin, isAdmin)
	bits.mark(len(u.Teams) > 0, hasTeams)
	bits.mark(len(u.Labels) > 0, hasLabels)
	bits.mark(len(u.AllowedIPs) > 0, hasUserIPs)
	bits.mark(u.ExpiresAt != 0, userExpires)
	bits.mark(hasNamed, hasNamedSet)
	bits.mark(u.Description != "", hasDescription)
	for i, text := range otherTexts {
		bits.mark(*text.of(&u.Profile) != "", hasText<<i)
	}
	b = binary.AppendUvarint(b, uint64(bits))
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
	for i, text := range otherTexts {
		if bits&(hasText<<i) != 0 {
			b = appendText(b, *text.of(&u.Profile))
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
	if bits&hasDescription != 0 {
		b = appendText(b, u.Description)
	}
	return b
}

// alone returns the row of a user that is in no directory, with the group set 0.
func alone(u *User) userRow {
	fields := append([]byte{1, 0}, appendUser(nil, u, false)...) // a list of one group set id
	return append(binary.AppendUvarint(nil, uint64(len(fields))), fields...)
}

// appendToken appends a token: its bits, its id, its hash, and the fields that the bits announce.
// Narrowing is not among them: the group set ids of the row contain it.
func appendToken(b []byte, t *Token) []byte {
	id := newTokenID(t.ID)
	var bits bitSet
	bits.mark(id.short, shortTokenID)
	bits.mark(t.Revoked, isRevoked)
	bits.mark(t.Retiring, isRetiring)
	bits.mark(t.Unused, isUnused)
	bits.mark(t.NotBefore != 0, hasNotBefore)
	bits.mark(t.ExpiresAt != 0, tokenExpires)
	bits.mark(len(t.AllowedIPs) > 0, hasTokenIPs)
	bits.mark(len(t.Groups) > 0, isNarrowed)
	bits.mark(t.pepper != 0, hasPepper)
	b = binary.AppendUvarint(b, uint64(bits))
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

// appendPrefixes appends a list of prefixes as one text, so that a reader can skip the whole list.
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

// size returns the number of bytes of the row, which may be less than len(r).
func (r userRow) size() int {
	n, head := binary.Uvarint(r)
	return head + int(n)
}

// fields returns two readers: one at the bits of the row, and one at its group set ids.
func (r userRow) fields() (fields, setIDs reader) {
	n, head := binary.Uvarint(r)
	fields.b = r[head : head+int(n)]
	count := int(fields.number())
	setIDs = fields
	for range count { // skip the ids
		fields.number()
	}
	return fields, setIDs
}

// id returns the id of the user in two parts, so that it need not allocate to join them.
func (r userRow) id() (prefix string, rest []byte) {
	f, _ := r.fields()
	return f.userID(f.number())
}

// idIs reports whether this is the row of the user with this id.
func (r userRow) idIs(id string) bool {
	prefix, rest := r.id()
	return strings.HasPrefix(id, prefix) && id[len(prefix):] == string(rest)
}

// idHash returns the same as the function idHash for the id of the row.
func (r userRow) idHash() uint64 {
	prefix, rest := r.id()
	var buf [64]byte
	return maphash.Bytes(shardSeed, append(append(buf[:0], prefix...), rest...))
}

// reader reads the fields of a row in order. Copying a reader keeps its position. Rows come from
// appendUser, so reading them does not check for errors.
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

// userID reads the id of a user with these bits.
func (r *reader) userID(bits uint64) (prefix string, rest []byte) {
	if bits&shortID != 0 {
		return userPrefix, r.bytes(idDigits)
	}
	return "", r.text()
}

// tokenID reads the id of a token with these bits, in the form of the row.
func (r *reader) tokenID(bits uint64) []byte {
	if bits&shortTokenID != 0 {
		return r.bytes(len(ksuid.KSUID{}))
	}
	return r.text()
}

// prefix reads the next prefix of a list.
func (r *reader) prefix() (p netip.Prefix) {
	if err := p.UnmarshalBinary(r.text()); err != nil {
		panic("access: a damaged prefix in memory: " + err.Error())
	}
	return p
}

// prefixesOf decodes a list of prefixes from a row.
func prefixesOf(list []byte) (all []netip.Prefix) {
	for r := (reader{list}); len(r.b) > 0; {
		all = append(all, r.prefix())
	}
	return all
}

// account contains the fields of a row that every request needs. Making one does not read the rest
// of the row, and does not allocate.
type account struct {
	row     userRow
	bits    uint64
	prefix  string // the first part of the id, see userRow.id
	id      []byte // the rest of the id
	name    []byte
	expires int64  // Unix seconds; 0 is never
	allowed []byte // the encoded list of allowed prefixes; empty allows every address
	count   int    // the number of tokens
	tokens  reader // at the first token; after count tokens, at the fields behind them
	setIDs  reader // at the first group set id
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

// tokenRow is a token of a row. Its slices and its hash point into the row.
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

// idIs reports whether this is the token with this id.
func (t *tokenRow) idIs(id *tokenID) bool {
	if t.bits&shortTokenID != 0 {
		return id.short && bytes.Equal(t.id, id.bytes[:])
	}
	return !id.short && string(t.id) == id.text
}

// decode returns the token without Groups, which the group sets contain, and without Pepper.
func (t *tokenRow) decode() Token {
	return Token{
		ID:         t.longID(),
		Hash:       *t.hash,
		pepper:     t.pepper,
		NotBefore:  t.notBefore,
		ExpiresAt:  t.expires,
		Revoked:    t.bits&isRevoked != 0,
		Retiring:   t.bits&isRetiring != 0,
		Unused:     t.bits&isUnused != 0,
		AllowedIPs: prefixesOf(t.allowed),
	}
}

// longID returns the id in its public form, "token_…".
func (t *tokenRow) longID() string {
	if t.bits&shortTokenID == 0 {
		return string(t.id)
	}
	buf := append(make([]byte, 0, len(tokenPrefix)+idDigits), tokenPrefix...)
	return string(ksuid.KSUID(t.id).Append(buf))
}

// longID returns the id in its public form, "service_…".
func (a *account) longID() string { return a.prefix + string(a.id) }

// profile returns the user without groups, tokens and description. rest is a reader at the fields
// after the tokens, and then at the description.
func (a *account) profile(rest *reader) *User {
	u := &User{
		Profile:   Profile{ID: a.longID(), Name: string(a.name), Role: a.role(), Active: a.bits&isActive != 0},
		ExpiresAt: a.expires, AllowedIPs: prefixesOf(a.allowed),
	}
	u.CreatedAt = rest.signed()
	for i, text := range otherTexts {
		if a.bits&(hasText<<i) != 0 {
			*text.of(&u.Profile) = string(rest.text())
		}
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

// profile returns the user without groups, tokens and description.
func (r userRow) profile() *User {
	a := r.account()
	for range a.count { // skip the tokens
		a.tokens.token()
	}
	return a.profile(&a.tokens)
}

// decode returns the user of a row. sets is Directory.sets, which the group set ids of the row
// refer to.
func (r userRow) decode(sets []*groupSet) *User {
	a := r.account()
	tokens := make([]Token, a.count)
	narrowed := make([]bool, a.count)
	for i := range tokens {
		t := a.tokens.token()
		tokens[i], narrowed[i] = t.decode(), t.bits&isNarrowed != 0
	}
	u := a.profile(&a.tokens)
	if a.bits&hasDescription != 0 {
		u.Description = string(a.tokens.text())
	}
	u.Tokens = tokens
	u.groupSetID = int(a.setIDs.number())
	named := u.groupSetID
	if a.bits&hasNamedSet != 0 {
		named = int(a.setIDs.number())
	}
	u.Groups = sets[named].ids // shared with the directory: see Directory.User
	// The ids of the narrowed tokens follow, in the order of the tokens.
	for i := range tokens {
		if narrowed[i] {
			tokens[i].Groups = slices.Clone(sets[a.setIDs.number()].tokenGroups)
		}
	}
	return u
}
