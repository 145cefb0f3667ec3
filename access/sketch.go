package access

import "slices"

// Sketch is a service user as a list looks at it. The texts are parts of the directory, so that
// many service users can be looked at in little time: the caller must not change them. ID, Teams
// and the methods are valid only until the next service user.
type Sketch struct {
	ID, Name, DisplayName, Alias, Owner, Description []byte

	Teams [][]byte

	Role      Role
	Active    bool
	ExpiresAt int64 // Unix seconds; 0 is never
	Usable    bool  // somebody can log in now
	Tokens    int   // the number of tokens that can be used, now or later
	NextEnd   int64 // the earliest end of one of these tokens, or of the service user; 0 is none

	LastActiveAt int64 // is not in the directory: the caller may set it

	labels     [][]byte // each key before its value
	groupSetID int
}

// Team reports whether the service user has a team.
func (k *Sketch) Team(team string) bool {
	return slices.ContainsFunc(k.Teams, func(t []byte) bool { return string(t) == team })
}

// Label returns the value of a label, and whether the service user has the label.
func (k *Sketch) Label(key string) (value []byte, ok bool) {
	for i := 0; i < len(k.labels); i += 2 {
		if string(k.labels[i]) == key {
			return k.labels[i+1], true
		}
	}
	return nil, false
}

// Sketches calls f for every service user as it is at an instant (Unix seconds), in no particular
// order.
func (d *Directory) Sketches(now int64, f func(*Sketch)) {
	var k Sketch
	d.users.rows(func(row userRow) {
		k.read(row, now)
		f(&k)
	})
}

// Tokens calls f for every token of every service user, in no particular order. The token has only
// NotBefore, ExpiresAt, Revoked and Retiring.
func (d *Directory) Tokens(f func(Token)) {
	d.users.rows(func(row userRow) {
		a := row.account()
		for range a.count {
			t := a.tokens.token()
			f(Token{
				NotBefore: t.notBefore, ExpiresAt: t.expires,
				Revoked: t.bits&isRevoked != 0, Retiring: t.bits&isRetiring != 0,
			})
		}
	})
}

// Sketch returns the service user with this id as it is at an instant (Unix seconds).
func (d *Directory) Sketch(id string, now int64) (k Sketch, ok bool) {
	row := d.users.get(id)
	if row != nil {
		k.read(row, now)
	}
	return k, row != nil
}

// SketchOf is Sketch for a service user that is not in a directory. It has no groups.
func SketchOf(u *User, now int64) (k Sketch) {
	k.read(alone(u), now)
	return k
}

// InGroup returns a function that reports whether a service user is in a group, by name, by
// condition or because the group is the default group.
func (d *Directory) InGroup(group string) func(*Sketch) bool {
	in := make([]bool, len(d.sets))
	for i, s := range d.sets {
		in[i] = slices.Contains(s.ids, group) || d.everybody != nil && d.everybody.ID == group
	}
	return func(k *Sketch) bool { return in[k.groupSetID] }
}

// read reads a row, without allocating when k was read into before.
func (k *Sketch) read(row userRow, now int64) {
	a := row.account()
	f := a.tokens
	*k = Sketch{
		ID: append(append(k.ID[:0], a.prefix...), a.id...), Name: a.name,
		Role: a.role(), Active: a.bits&isActive != 0, ExpiresAt: a.expires, groupSetID: int(a.setIDs.number()),
		Teams: k.Teams[:0], labels: k.labels[:0],
	}
	ended := func(end int64) bool { return end != 0 && now >= end }
	for range a.count {
		t := f.token()
		if t.bits&isRevoked != 0 || ended(t.expires) || ended(a.expires) {
			continue
		}
		k.Tokens++
		for _, end := range [...]int64{t.expires, a.expires} {
			if end != 0 && (k.NextEnd == 0 || end < k.NextEnd) {
				k.NextEnd = end
			}
		}
		k.Usable = k.Usable || k.Active && now >= t.notBefore
	}
	f.signed()                                                              // the time of creation
	for i, text := range [...]*[]byte{&k.DisplayName, &k.Alias, &k.Owner} { // the order of otherTexts
		if a.bits&(hasText<<i) != 0 {
			*text = f.text()
		}
	}
	if a.bits&hasTeams != 0 {
		k.Teams = f.texts(k.Teams, 1)
	}
	if a.bits&hasLabels != 0 {
		k.labels = f.texts(k.labels, 2)
	}
	if a.bits&hasDescription != 0 {
		k.Description = f.text()
	}
}

// texts appends a list with this number of texts for each entry.
func (r *reader) texts(list [][]byte, each int) [][]byte {
	for range int(r.number()) * each {
		list = append(list, r.text())
	}
	return list
}
