package access

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Edit is a directory in the making, for changes that come in parts: first the
// groups, then the users. It belongs to one goroutine, but for [Edit.Users]. After
// an error there is nothing to do with it.
type Edit struct {
	mu     sync.Mutex // of what follows
	base   *Directory
	next   Directory
	users  *tableEdit
	logins *shardEdit[string, string]
	setIDs *shardEdit[string, int]
	sizes  *tallyEdit
	moved  []string // groups whose condition of membership is another one than before
}

// Edit begins the directory of a revision.
func (d *Directory) Edit(revision int64) (*Edit, error) {
	if revision < d.revision {
		return nil, fmt.Errorf("revision %d is older than %d, which is in force", revision, d.revision)
	}
	e := &Edit{base: d, next: *d}
	e.next.revision = revision
	return e, nil
}

// Groups takes groups over, and others out.
func (e *Edit) Groups(changed []Group, removed []string) error {
	if len(changed) == 0 && len(removed) == 0 {
		return nil
	}
	d, old := &e.next, e.base.groups
	d.groups = maps.Clone(old)
	if d.groups == nil {
		d.groups = make(map[string]*Group, len(changed))
	}
	policy := d.policy.edit()
	touched := make(map[string]bool)
	for _, id := range removed {
		if g := d.groups[id]; g != nil {
			policy.remove(g)
			delete(d.groups, id)
			touched[id] = true
			if g.Condition != "" {
				e.moved = append(e.moved, id)
			}
		}
	}
	for _, g := range changed {
		known := old[g.ID]
		if known == nil {
			known = &Group{index: d.nextGroup}
			d.nextGroup++
		}
		patterns, err := g.compile(known)
		if err != nil {
			return err
		}
		if g.Condition != known.Condition {
			e.moved = append(e.moved, g.ID)
		}
		policy.remove(known)
		policy.add(&g, patterns)
		d.groups[g.ID] = &g
		touched[g.ID] = true
	}
	d.policy = policy.done()

	everybody := d.everybody
	d.everybody, d.conditional = nil, nil
	for _, g := range d.groups {
		if d.defaultGroup != "" && g.Name == d.defaultGroup {
			d.everybody = g
		}
		if g.membership != nil {
			d.conditional = append(d.conditional, g)
		}
	}
	slices.SortFunc(d.conditional, func(a, b *Group) int { return strings.Compare(a.ID, b.ID) })
	in := func(id string) bool { return touched[id] }
	sets := slices.Clone(d.sets)
	for i, s := range sets {
		if everybody != d.everybody || slices.ContainsFunc(s.ids, in) || slices.ContainsFunc(s.undecided, in) {
			sets[i] = d.resolve(i, s.groupKey)
		}
	}
	d.sets = sets
	return nil
}

// compile checks a group and prepares it for requests. known is the same group
// as it was before. The patterns are those of the rules.
func (g *Group) compile(known *Group) (patterns [][]segment, err error) {
	if g.ID == "" {
		return nil, fmt.Errorf("permission group %q has no id", g.Name)
	}
	if !g.Mode.Valid() {
		return nil, fmt.Errorf("permission group %s: mode %q is neither \"enforce\" nor \"observe\"", g.ID, g.Mode)
	}
	compiled := make(map[string]*Condition)
	for _, c := range known.conditions {
		if c != nil {
			compiled[c.text] = c
		}
	}
	g.Rules = slices.Clone(g.Rules)
	g.conditions, patterns = make([]*Condition, len(g.Rules)), make([][]segment, len(g.Rules))
	for i, r := range g.Rules {
		checked, pattern, when, err := r.compile(compiled)
		if err != nil {
			return nil, fmt.Errorf("permission group %s, rule %s: %w", g.ID, r.ID, err)
		}
		g.Rules[i], g.conditions[i], patterns[i] = checked, when, pattern
		if when != nil {
			compiled[when.text] = when
		}
	}
	g.index, g.membership = known.index, nil
	switch {
	case g.Condition == "":
	case g.Condition == known.Condition:
		g.membership = known.membership
	default:
		m, err := ParseMembership(g.Condition)
		if err != nil {
			return nil, fmt.Errorf("permission group %s: %w", g.ID, err)
		}
		g.membership = m
	}
	return patterns, nil
}

// moves reports whether a user is in others of these groups than before.
func (d *Directory) moves(u *User, groups []string) bool {
	was := d.sets[u.groupSetID]
	for _, id := range groups {
		g := d.groups[id]
		if slices.Contains(u.Groups, id) {
			continue
		}
		member, err := false, error(nil)
		if g != nil && g.membership != nil {
			member, err = g.membership.Member(u)
		}
		if slices.Contains(was.ids, id) != (member && err == nil) || slices.Contains(was.undecided, id) != (err != nil) {
			return true
		}
	}
	return false
}

// begin makes what users are written to.
func (e *Edit) begin() {
	if e.users == nil {
		d := &e.next
		e.users, e.logins, e.setIDs = d.users.edit(), d.logins.edit(), d.setIDs.edit()
		d.sets, e.sizes = slices.Clip(d.sets), d.sizes.edit()
	}
}

// class returns the number of a combination of groups.
func (e *Edit) groupSetID(ids, undecided, tokenGroups []string) int {
	key := strings.Join(ids, ",")
	if len(undecided) > 0 || tokenGroups != nil {
		key += "?" + strings.Join(undecided, ",")
	}
	if tokenGroups != nil {
		key += "|" + strings.Join(tokenGroups, ",")
	}
	n, ok := e.setIDs.get(key)
	if !ok {
		d := &e.next
		n = len(d.sets)
		d.sets = append(d.sets, d.resolve(n, &groupKey{copied(ids), copied(undecided), copied(tokenGroups)}))
		e.setIDs.set(strings.Clone(key), n)
	}
	return n
}

// forget takes out what leads to a user, but not its row.
func (e *Edit) forget(w *written) {
	if !w.known {
		return
	}
	old := e.users.get(w, e.next.sets)
	e.users.removeHashes(w, old)
	e.sizes.add(old.groupSetID, -1)
	e.logins.remove(old.Alias)
}

// Expect makes room in a directory that is empty for so many service users and
// tokens. It need not be true.
func (e *Edit) Expect(users, tokens int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.begin()
	e.users.expect(users, tokens)
}

// Users takes users over, and others out. It may be called again for others, by
// several goroutines, after the groups are in.
func (e *Edit) Users(changed []User, removed []string) error {
	if len(changed) == 0 && len(removed) == 0 {
		return nil
	}
	drafts := make([]draft, len(changed))
	for i, u := range changed {
		u.Tokens = slices.Clone(u.Tokens)
		for j := range u.Tokens {
			u.Tokens[j].pepper = e.next.peppers.index(u.Tokens[j].Pepper)
		}
		var err error
		if drafts[i], err = e.draft(u); err != nil {
			return err
		}
	}
	if err := e.prepare(drafts, removed); err != nil {
		return err
	}
	for i := range drafts {
		if err := e.write(&drafts[i]); err != nil {
			return err
		}
	}
	return nil
}

// prepare takes out what is known of the users so far, and gives them setIDs.
func (e *Edit) prepare(drafts []draft, removed []string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.begin()
	for _, id := range removed {
		w := newWritten(id)
		if e.users.find(&w); w.known {
			e.forget(&w)
			e.users.remove(&w)
		}
	}
	if e.base.users.count > 0 { // all of them first: an alias may move from one to another
		for i := range drafts {
			w := drafts[i].written
			if e.users.find(&w); !w.twice { // else it is refused when it is written
				e.forget(&w)
			}
		}
	}
	for i := range drafts {
		if err := e.assignGroupSets(&drafts[i]); err != nil {
			return err
		}
	}
	return nil
}

// draft is a user on its way into the table.
type draft struct {
	written
	user        User
	row         []byte   // without the setIDs
	setIDs      []byte   // what stands before it
	buf         [8]byte  // for setIDs
	ids         []string // of the groups that the user is in, sorted …
	undecided   []string // … of those of which it cannot be said …
	namedGroups []string // … and of those that name it …
	hasNamedSet bool     // … which are others
}

// draft checks a user and makes it ready. Its tokens belong to the caller no more.
func (e *Edit) draft(u User) (draft, error) {
	if u.ID == "" || !u.Role.Valid() {
		return draft{}, fmt.Errorf("service user %q: role %q is none of admin, manager, member", u.ID, u.Role)
	}
	for i := range u.Tokens {
		if t := &u.Tokens[i]; t.Hash == (Hash{}) {
			return draft{}, fmt.Errorf("service user %s, token %s: the hash is empty", u.ID, t.ID)
		}
	}
	d := draft{written: newWritten(u.ID), user: u}
	d.ids, d.undecided = e.next.members(&u)
	d.namedGroups = sortedCopy(u.Groups)
	d.hasNamedSet = !slices.Equal(d.namedGroups, d.ids)
	d.row = appendUser(make([]byte, 0, 256), &u, d.hasNamedSet)
	return d, nil
}

// assignGroupSets numbers the combinations of groups of a user and of its tokens.
func (e *Edit) assignGroupSets(d *draft) error {
	id := e.groupSetID(d.ids, d.undecided, nil)
	e.sizes.add(id, 1)
	setIDs := []int{id}
	if d.hasNamedSet {
		setIDs = append(setIDs, e.groupSetID(d.namedGroups, nil, nil))
	}
	for i := range d.user.Tokens {
		if groups := d.user.Tokens[i].Groups; len(groups) > 0 {
			setIDs = append(setIDs, e.groupSetID(d.ids, d.undecided, sortedCopy(groups)))
		}
	}
	d.setIDs = binary.AppendUvarint(d.buf[:0], uint64(len(setIDs)))
	for _, c := range setIDs {
		d.setIDs = binary.AppendUvarint(d.setIDs, uint64(c))
	}
	if alias := d.user.Alias; alias != "" {
		if other, taken := e.logins.get(alias); taken {
			return fmt.Errorf("service users %s and %s have the same alias", other, d.user.ID)
		}
		e.logins.set(strings.Clone(alias), strings.Clone(d.user.ID))
	}
	return nil
}

// write enters a user.
func (e *Edit) write(d *draft) error {
	if err := e.users.set(&d.written, d.row, d.setIDs, d.user.Tokens); err != nil {
		return fmt.Errorf("service user %s %w", d.user.ID, err)
	}
	return nil
}

// Done returns the directory. Users whom a changed condition of membership moves
// into other groups are written as well.
func (e *Edit) Done() (*Directory, error) {
	d := &e.next
	if len(e.moved) > 0 && e.base.users.count > 0 {
		e.begin()
		var err error
		e.base.users.each(e.base.sets, func(u *User) {
			if err != nil || !d.moves(u, e.moved) {
				return
			}
			w := newWritten(u.ID)
			if e.users.find(&w); w.known && !w.twice {
				e.forget(&w)
				var moved draft
				if moved, err = e.draft(*u); err == nil {
					err = e.assignGroupSets(&moved)
				}
				if err == nil {
					err = e.write(&moved)
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	if e.users != nil {
		d.users, d.logins, d.setIDs, d.sizes = e.users.done(), e.logins.done(), e.setIDs.done(), e.sizes.done()
	}
	done := *d // what is in force must not hold on to the edit, and so to every version before
	return &done, nil
}
