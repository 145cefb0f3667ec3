package access

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/segmentio/ksuid"
)

// userRow is a service user as bytes: how many follow, the id, and then each field,
// numbers as varints, texts with their length before them. Bits say which of the
// fields that are mostly empty are there. At the end are the numbers of classes: its
// own, that of the groups that name it, and those of tokens that are narrowed.
type userRow []byte

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
	wasNamed // the groups that name it are others than those that it is in
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
)

// appendUser writes all of a user but the numbers of its classes. wasNamed says that
// it was named by other groups than those that it is in.
func appendUser(b []byte, u *User, id *rowID, named bool) []byte {
	bits := uint64(0)
	mark := func(set bool, bit uint64) {
		if set {
			bits |= bit
		}
	}
	mark(id.short, shortID)
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
	mark(named, wasNamed)
	b = binary.AppendUvarint(b, bits)
	b = appendID(b, id)
	b = appendText(b, u.Name)
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
	if bits&hasUserIPs != 0 {
		b = appendPrefixes(b, u.AllowedIPs)
	}
	if bits&userExpires != 0 {
		b = binary.AppendVarint(b, u.ExpiresAt)
	}
	b = binary.AppendUvarint(b, uint64(len(u.Tokens)))
	for i := range u.Tokens {
		b = appendToken(b, &u.Tokens[i])
	}
	return b
}

func appendToken(b []byte, t *Token) []byte {
	id := newRowID(tokenPrefix, t.ID)
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
	b = binary.AppendUvarint(b, bits)
	b = appendID(b, &id)
	b = append(b, t.Hash[:]...)
	b = binary.AppendVarint(b, int64(t.pepper))
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

func appendID(b []byte, id *rowID) []byte {
	if id.short {
		return append(b, id.bytes[:]...)
	}
	return appendText(b, id.text)
}

func appendPrefixes(b []byte, list []netip.Prefix) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, p := range list {
		text, err := p.MarshalBinary()
		if err != nil {
			panic("access: encoding a prefix: " + err.Error()) // it never fails
		}
		b = appendText(b, string(text))
	}
	return b
}

// size returns how many bytes of r belong to the row.
func (r userRow) size() int {
	n, head := binary.Uvarint(r)
	return head + int(n)
}

// fields returns the row without its size, ready to be read.
func (r userRow) fields() reader {
	n, head := binary.Uvarint(r)
	return reader{r[head : head+int(n)]}
}

// idIs reports whether this is the row of a user.
func (r userRow) idIs(id *rowID) bool {
	_, head := binary.Uvarint(r)
	bits, n := binary.Uvarint(r[head:])
	b := r[head+n:]
	if bits&shortID != 0 {
		return id.short && bytes.Equal(b[:len(id.bytes)], id.bytes[:])
	}
	size, n := binary.Uvarint(b)
	return !id.short && string(b[n:n+int(size)]) == id.text
}

func (r userRow) id() rowID {
	f := r.fields()
	return f.id(f.number()&shortID != 0)
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

func (r *reader) text() string { return string(r.bytes(int(r.number()))) }

func (r *reader) id(short bool) rowID {
	if short {
		return rowID{bytes: ksuid.KSUID(r.bytes(len(ksuid.KSUID{}))), short: true}
	}
	return rowID{text: r.text()}
}

func (r *reader) prefixes() []netip.Prefix {
	list := make([]netip.Prefix, r.number())
	for i := range list {
		if err := list[i].UnmarshalBinary(r.bytes(int(r.number()))); err != nil {
			panic("access: a damaged prefix in memory: " + err.Error())
		}
	}
	return list
}

// decoded is a user out of its row, in few pieces of memory, for requests have to
// fetch them and the garbage collector to visit them: of less than 512 bytes each,
// which it visits together.
type decoded struct {
	edit uint64 // of the shard
	ref  uint32
	user User
}

// texts are strings that share one piece of memory.
type texts struct{ b strings.Builder }

func (t *texts) add(s []byte) string {
	at := t.b.Len()
	t.b.Write(s)
	return t.b.String()[at:]
}

func (t *texts) addID(id *rowID, prefix string) string {
	if !id.short {
		return id.text
	}
	var buf [32]byte
	at := t.b.Len()
	t.b.WriteString(prefix)
	t.b.Write(id.bytes.Append(buf[:0]))
	return t.b.String()[at:]
}

// decode reads a user out of its row. sets are the directory's.
func (r userRow) decode(sets []*groupSet) *decoded {
	f := r.fields()
	d := new(decoded)
	u := &d.user
	var shared texts
	shared.b.Grow(len(f.b)) // ids become longer, and hashes are no texts
	bits := f.number()
	id := f.id(bits&shortID != 0)
	u.ID, u.Active, u.Role = shared.addID(&id, userPrefix), bits&isActive != 0, Member
	switch {
	case bits&isAdmin != 0:
		u.Role = Admin
	case bits&isManager != 0:
		u.Role = Manager
	}
	text := func() string { return shared.add(f.bytes(int(f.number()))) }
	u.Name, u.CreatedAt = text(), f.signed()
	if bits&hasDisplayName != 0 {
		u.DisplayName = text()
	}
	if bits&hasAlias != 0 {
		u.Alias = text()
	}
	if bits&hasOwner != 0 {
		u.Owner = text()
	}
	if bits&hasTeams != 0 {
		u.Teams = make([]string, f.number())
		for i := range u.Teams {
			u.Teams[i] = text()
		}
	}
	if bits&hasLabels != 0 {
		n := f.number()
		u.Labels = make(map[string]string, n)
		for range n {
			key := text()
			u.Labels[key] = text()
		}
	}
	if bits&hasUserIPs != 0 {
		u.AllowedIPs = f.prefixes()
	}
	if bits&userExpires != 0 {
		u.ExpiresAt = f.signed()
	}
	n := int(f.number())
	cells := make([]atomic.Pointer[Use], n) // apart: figures of use are kept longer than the user
	u.Tokens = make([]Token, n)
	for i := range u.Tokens {
		f.token(&u.Tokens[i], &shared)
		u.Tokens[i].use = &cells[i]
	}
	u.class = int(f.number())
	named := u.class
	if bits&wasNamed != 0 {
		named = int(f.number())
	}
	u.Groups = sets[named].ids
	for i := range u.Tokens {
		t := &u.Tokens[i]
		if t.class != narrowed {
			t.class = u.class
			continue
		}
		t.class = int(f.number())
		t.Groups = slices.Clone(sets[t.class].only)
	}
	return d
}

// narrowed stands for the class of a token that has one of its own.
const narrowed = -1

// token reads a token but for its class.
func (r *reader) token(t *Token, text *texts) {
	bits := r.number()
	id := r.id(bits&shortTokenID != 0)
	t.ID = text.addID(&id, tokenPrefix)
	t.Hash = Hash(r.bytes(len(t.Hash)))
	t.pepper = int(r.signed())
	t.Revoked, t.Retiring, t.Unused = bits&isRevoked != 0, bits&isRetiring != 0, bits&isUnused != 0
	if bits&hasNotBefore != 0 {
		t.NotBefore = r.signed()
	}
	if bits&tokenExpires != 0 {
		t.ExpiresAt = r.signed()
	}
	if bits&hasTokenIPs != 0 {
		t.AllowedIPs = r.prefixes()
	}
	if bits&isNarrowed != 0 {
		t.class = narrowed
	}
}
