package access

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Edit builds a new version of a directory from changes that arrive in parts: first the groups,
// then the users. Only [Edit.Users] may be called concurrently. Discard the Edit after an error.
type Edit struct {
	mu     sync.Mutex // guards the fields below while goroutines call Users; users has its own locks too
	base   *Directory
	next   Directory
	users  *tableEdit
	logins *shardEdit[string, string]
	setIDs *shardEdit[string, int]
	sizes  *shardEdit[int, int]
	moved  []string // ids of groups whose condition of membership has changed
}

// Edit begins the next version of the directory, which shows this revision of the store.
func (d *Directory) Edit(revision int64) (*Edit, error) {
	if revision < d.revision {
		return nil, fmt.Errorf("revision %d is older than %d, which is in force", revision, d.revision)
	}
	e := &Edit{base: d, next: *d}
	e.next.revision = revision
	return e, nil
}

// Groups adds or replaces the changed groups, and removes others by id.
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
		// The group keeps its index, which group sets and policy entries refer to.
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
	// Only the group sets with a touched group are made again. The clone keeps the list of the
	// base directory as it is, for the requests that still read it.
	sets := slices.Clone(d.sets)
	for i, s := range sets {
		if everybody != d.everybody || slices.ContainsFunc(s.ids, in) || slices.ContainsFunc(s.undecided, in) {
			sets[i] = d.resolve(i, s.groupKey)
		}
	}
	d.sets = sets
	return nil
}

// compile checks a group and compiles its rules and conditions. known is the previous version of
// the group: conditions that have not changed are taken from it. compile returns the path patterns
// of the rules, in the order of the rules.
func (g *Group) compile(known *Group) (patterns [][]segment, err error) {
	if g.ID == "" {
		return nil, fmt.Errorf("permission group %q has no id", g.Name)
	}
	if !g.Mode.Valid() {
		return nil, fmt.Errorf("permission group %s: mode %q is neither \"enforce\" nor \"observe\"",
			g.ID, g.Mode)
	}
	compiled := make(map[string]*Condition) // by text: compiling one takes much longer than the rest
	for _, c := range known.conditions {
		if c != nil {
			compiled[c.text] = c
		}
	}
	g.Rules = slices.Clone(g.Rules) // the caller keeps its own list, in the form that it wrote
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

// moves reports whether the membership of a user in any of these groups has changed.
func (d *Directory) moves(u *User, groups []string) bool {
	was := d.sets[u.groupSetID]
	for _, id := range groups {
		g := d.groups[id]
		if slices.Contains(u.Groups, id) {
			continue // the group lists the user, so its condition does not matter
		}
		member, err := false, error(nil)
		if g != nil && g.membership != nil {
			member, err = g.membership.Member(u)
		}
		wasMember, wasUndecided := slices.Contains(was.ids, id), slices.Contains(was.undecided, id)
		if wasMember != (member && err == nil) || wasUndecided != (err != nil) {
			return true
		}
	}
	return false
}

// begin makes the edits of the tables that contain users, before the first use of them. An Edit of
// groups alone does not need them.
func (e *Edit) begin() {
	if e.users == nil {
		d := &e.next
		// Clip makes append copy the list: the base directory shares its array.
		e.users, e.logins, e.setIDs = d.users.edit(), d.logins.edit(), d.setIDs.edit()
		d.sets, e.sizes = slices.Clip(d.sets), d.sizes.edit()
	}
}

// groupSetID returns the id of the group set with these groups. It makes the group set if it does
// not exist yet. The parameters are the fields of [groupKey].
func (e *Edit) groupSetID(ids, undecided, tokenGroups []string) int {
	// The store's ids contain neither ",", "?" nor "|": different groups make different keys.
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

// forget removes the index entries of a user: the hashes of its tokens, its alias, and its share in
// the size of its group set. It keeps the row, which write replaces or remove frees.
func (e *Edit) forget(w *written) {
	if !w.known {
		return
	}
	old := e.users.get(w, e.next.sets)
	e.users.removeHashes(w, old)
	e.resize(old.groupSetID, -1)
	e.logins.remove(old.Alias)
}

// resize adds n to the number of users in a group set.
func (e *Edit) resize(groupSetID, n int) {
	size, _ := e.sizes.get(groupSetID)
	e.sizes.set(groupSetID, size+n)
}

// Expect reserves memory for up to this many service users and tokens, if the directory is empty.
// The numbers may be wrong: they are a hint only.
func (e *Edit) Expect(users, tokens int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.begin()
	e.users.expect(users, tokens)
}

// Users adds or replaces the changed users, and removes others by id. Call it after Groups. Several
// goroutines may call it at the same time, each with different users.
func (e *Edit) Users(changed []User, removed []string) error {
	if len(changed) == 0 && len(removed) == 0 {
		return nil
	}
	drafts := make([]draft, len(changed))
	// Encoding a user takes most of the time and needs no lock. Only prepare takes e.mu.
	for i, u := range changed {
		u.Tokens = slices.Clone(u.Tokens) // the loop below sets their peppers
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

// prepare removes the old index entries of the users, and assigns their group sets.
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
	if e.base.users.count > 0 {
		// Old aliases go first, for all users: an alias may move from one user to another.
		for i := range drafts {
			w := drafts[i].written
			if e.users.find(&w); !w.twice { // write returns the error for a user that appears twice
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
	row         []byte   // the encoded user, without the group set ids
	setIDs      []byte   // the encoded group set ids, which precede row in the table
	buf         [8]byte  // memory for setIDs
	ids         []string // ids of the groups that the user is in, sorted
	undecided   []string // ids of the groups whose condition fails to evaluate, sorted
	namedGroups []string // ids of the groups that list the user, sorted
	hasNamedSet bool     // namedGroups differs from ids
}

// draft checks a user and encodes it. The draft keeps u.Tokens: the caller must not use them again.
func (e *Edit) draft(u User) (draft, error) {
	if u.ID == "" || !u.Role.Valid() {
		return draft{}, fmt.Errorf("service user %q: role %q is none of admin, manager, member", u.ID, u.Role)
	}
	for i := range u.Tokens {
		if t := &u.Tokens[i]; t.Hash == (Hash{}) { // digests of an overlong secret are zero too
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

// assignGroupSets finds or makes the group sets of a user and of its tokens, and encodes their ids.
// It also registers the alias of the user. The caller has locked e.mu.
func (e *Edit) assignGroupSets(d *draft) error {
	id := e.groupSetID(d.ids, d.undecided, nil)
	e.resize(id, 1)
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

// write adds the user to the table.
func (e *Edit) write(d *draft) error {
	return e.users.set(&d.written, d.row, d.setIDs, d.user.Tokens)
}

// Done returns the new directory. Before that it rewrites the users that a changed condition of
// membership adds to a group or removes from one.
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
			// Users that this edit has removed or written already are left as they are.
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
		d.users, d.logins = e.users.done(), e.logins.done()
		d.setIDs, d.sizes = e.setIDs.done(), e.sizes.done()
	}
	// A copy: a pointer to e.next would keep the Edit in memory, and with it every earlier
	// version.
	done := *d
	return &done, nil
}
