package access

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Role is what a service user may do on the admin API. It gives no right on
// the data path.
type Role string

// The roles, from the weakest to the strongest.
const (
	Member  Role = "member"  // nothing on the admin API
	Manager Role = "manager" // service users that share a team with it
	Admin   Role = "admin"   // everything
)

// Valid reports whether r is one of the three roles.
func (r Role) Valid() bool { return r == Member || r == Manager || r == Admin }

// User is a service user as requests see it.
type User struct {
	ID          string // service_…
	Name        string
	DisplayName string
	Alias       string // a second login id; "" is none
	Owner       string
	Role        Role
	Teams       []string
	Labels      map[string]string
	CreatedAt   int64 // Unix seconds
	Active      bool
	ExpiresAt   int64          // Unix seconds; 0 is never
	AllowedIPs  []netip.Prefix // empty is any
	Groups      []string       // ids of the permission groups it is a member of
	Tokens      []Token

	class int // its group set
}

// Token is one token of a service user as requests see it.
type Token struct {
	ID         string // token_…
	Hash       Hash
	Pepper     string // the id of the pepper in Hash; "" is none
	NotBefore  int64  // Unix seconds; 0 is always
	ExpiresAt  int64  // Unix seconds; 0 is never
	AllowedIPs []netip.Prefix
	Groups     []string // narrows the allows to these groups; empty is all
	Revoked    bool     // kept for a while, so that a log can say why it was refused
	Retiring   bool     // has a successor; valid until the grace ends
	Unused     bool     // made by its own user and not seen yet: its first use has to be noted

	pepper int // index into digests; -1 when the pepper is unknown
}

// Mode is what a permission group does.
type Mode string

// The modes of a permission group.
const (
	Enforce Mode = "enforce"
	Observe Mode = "observe" // neither grants nor refuses
)

// Valid reports whether m is one of the two modes.
func (m Mode) Valid() bool { return m == Enforce || m == Observe }

// Group is a permission group with its rules.
type Group struct {
	ID    string // group_…
	Name  string
	Mode  Mode
	Rules []Rule // its own, and those of the permissions that it was given

	Condition string // of membership: who meets it is a member; "" is nobody

	index      uint32       // its place in question.groups; kept for as long as the directory lives
	conditions []*Condition // of Rules
	membership *Condition
}

// Changes is what differs between two revisions of the store. A user or group
// in it is complete and replaces what was known under its id.
type Changes struct {
	Revision      int64
	Users         []User
	RemovedUsers  []string
	Groups        []Group
	RemovedGroups []string
}

// Directory is everything that requests are checked against: an immutable
// value that many goroutines may read.
type Directory struct {
	revision     int64
	peppers      Peppers
	defaultGroup string // the name of the group that everybody is in; "" is none

	users  table                  // by id, and by the hashes of their tokens
	logins shards[string, string] // ids by alias

	groups      map[string]*Group // by id
	everybody   *Group            // the default group, when there is one of that name
	conditional []*Group          // those with a condition of membership
	nextGroup   uint32            // the index of the next group
	sets        []*groupSet       // by class: that of a user, or of a token
	sizes       tally             // the number of users of each class
	classes     shards[string, int]
	policy      *policy
}

// groupSet is a distinct combination of groups. Users and tokens share it, so
// that a change of a group touches no user.
type groupSet struct {
	*combination

	class          int      // its place in Directory.sets
	allows, denies indices  // of the groups that enforce
	wouldAllow     indices  // of those that observe
	wouldDeny      indices  //
	names          []string // of allows, sorted
	joined         string   // the same, separated by commas
}

// combination is what a class stands for. Its address tells a class of this
// directory, and of those before and after it, from one of any other.
type combination struct {
	ids    []string // the user's groups, by name and by condition, sorted
	doubts []string // groups of which it cannot be said whether the user is in them, sorted
	only   []string // the token's narrowing, sorted; nil is none
}

// indices are those of groups, sorted. A group of which it is in doubt whether
// the user is in it stands among the denies only.
type indices []uint32

// NewDirectory returns an empty directory of revision 0. defaultGroup is the
// name of a permission group that every service user belongs to, or "".
func NewDirectory(peppers Peppers, defaultGroup string) *Directory {
	return &Directory{peppers: peppers, defaultGroup: defaultGroup, policy: new(policy)}
}

// Revision returns the revision of the store that d shows.
func (d *Directory) Revision() int64 { return d.revision }

// Len returns the number of service users.
func (d *Directory) Len() int { return d.users.count }

// User returns the service user with this id or alias, made anew for whoever asks, but
// for the list of its groups, which the caller must not change. It does not say which
// peppers are in the hashes of the tokens.
func (d *Directory) User(login string) (*User, bool) {
	_, row := d.byLogin(login)
	if row == nil {
		return nil, false
	}
	return row.decode(d.sets), true
}

// Group returns the permission group with this id.
func (d *Directory) Group(id string) (*Group, bool) {
	g, ok := d.groups[id]
	return g, ok
}

// Rules returns the rules that decide about the principal, by the names of their
// groups: what its token allows, and every deny of its user. The caller must not
// change them.
func (d *Directory) Rules(p Principal) []Rule {
	allow, deny := d.groupsOf(p)
	var groups []*Group
	for _, g := range d.groups {
		if slices.Contains(deny.denies, g.index) {
			groups = append(groups, g)
		}
	}
	slices.SortFunc(groups, func(a, b *Group) int { return strings.Compare(a.Name, b.Name) })
	var rules []Rule
	for _, g := range groups {
		for _, r := range g.Rules {
			if r.Effect == Deny || slices.Contains(allow.allows, g.index) {
				rules = append(rules, r)
			}
		}
	}
	return rules
}

// Source is how a service user came into a permission group.
type Source string

// The sources of a membership.
const (
	ByName      Source = "name"      // the group names it
	ByCondition Source = "condition" // it meets the group's condition
	ByDefault   Source = "default"   // everybody is in the default group
	InDoubt     Source = "doubt"     // the condition cannot be evaluated: the group's denies hold, its allows do not
)

// Membership is a service user's being in a permission group.
type Membership struct {
	Group  *Group
	Source Source
}

// Memberships finds out which groups a service user is in, whether or not it is
// in the directory, by the names of the groups.
func (d *Directory) Memberships(u *User) []Membership {
	var list []Membership
	for _, id := range sortedCopy(u.Groups) {
		if g := d.groups[id]; g != nil {
			list = append(list, Membership{g, ByName})
		}
	}
	ids, doubts := d.members(u)
	for _, g := range d.conditional {
		switch {
		case slices.Contains(u.Groups, g.ID):
		case slices.Contains(ids, g.ID):
			list = append(list, Membership{g, ByCondition})
		case slices.Contains(doubts, g.ID) && g != d.everybody:
			list = append(list, Membership{g, InDoubt})
		}
	}
	if g := d.everybody; g != nil && !slices.Contains(ids, g.ID) {
		list = append(list, Membership{g, ByDefault})
	}
	slices.SortFunc(list, func(a, b Membership) int { return strings.Compare(a.Group.Name, b.Group.Name) })
	return list
}

// EffectiveGroups returns the ids of the groups that the user is in, whatever
// their mode, sorted.
func (d *Directory) EffectiveGroups(u *User) []string {
	var ids []string
	for _, m := range d.Memberships(u) {
		if m.Source != InDoubt {
			ids = append(ids, m.Group.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// Members calls f for every service user that is in a group by name or by
// condition, in no order.
func (d *Directory) Members(group string, f func(*User, Source)) {
	if d.groups[group] == nil {
		return // its members may still name it
	}
	in := make([]bool, len(d.sets))
	for i, s := range d.sets {
		in[i] = slices.Contains(s.ids, group)
	}
	d.users.each(d.sets, func(u *User) {
		switch {
		case !in[u.class]:
		case slices.Contains(u.Groups, group):
			f(u, ByName)
		default:
			f(u, ByCondition)
		}
	})
}

// MemberCount returns the number of service users that are in a group by name or
// by condition.
func (d *Directory) MemberCount(group string) (n int) {
	if d.groups[group] == nil {
		return 0
	}
	for i, s := range d.sets {
		if size := d.sizes.of(i); size > 0 && slices.Contains(s.ids, group) {
			n += size
		}
	}
	return n
}

// Users calls f for every service user, in no order.
func (d *Directory) Users(f func(*User)) {
	d.users.each(d.sets, f)
}

// Groups returns every permission group, in no order.
func (d *Directory) Groups() []*Group { return slices.Collect(maps.Values(d.groups)) }

// DefaultGroup returns the group that everybody is in, or nil.
func (d *Directory) DefaultGroup() *Group { return d.everybody }

// With returns the directory after the changes. It fails, and changes nothing,
// when they are older than d or hold something that cannot be enforced: a
// directory is taken whole or not at all.
func (d *Directory) With(c Changes) (*Directory, error) {
	e, err := d.Edit(c.Revision)
	if err == nil {
		err = e.Groups(c.Groups, c.RemovedGroups)
	}
	if err == nil {
		err = e.Users(c.Users, c.RemovedUsers)
	}
	if err != nil {
		return nil, err
	}
	return e.Done()
}

// Edit is a directory in the making, for changes that come in parts: first the
// groups, then the users. It belongs to one goroutine, but for [Edit.Users]. After
// an error there is nothing to do with it.
type Edit struct {
	mu      sync.Mutex // of what follows
	base    *Directory
	next    Directory
	users   *tableEdit
	logins  *shardEdit[string, string]
	classes *shardEdit[string, int]
	sizes   *tallyEdit
	moved   []string // groups whose condition of membership is another one than before
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
		if everybody != d.everybody || slices.ContainsFunc(s.ids, in) || slices.ContainsFunc(s.doubts, in) {
			sets[i] = d.resolve(i, s.combination)
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

// resolve finds the groups behind a combination of ids, which has this number.
func (d *Directory) resolve(class int, c *combination) *groupSet {
	s := &groupSet{combination: c, class: class}
	add := func(g *Group, doubt bool) {
		allows, denies := &s.allows, &s.denies
		if g.Mode == Observe {
			allows, denies = &s.wouldAllow, &s.wouldDeny
		}
		*denies = append(*denies, g.index)
		if doubt || c.only != nil && !slices.Contains(c.only, g.ID) {
			return
		}
		*allows = append(*allows, g.index)
		if g.Mode == Enforce {
			s.names = append(s.names, g.Name)
		}
	}
	for _, id := range c.ids {
		if g := d.groups[id]; g != nil {
			add(g, false)
		}
	}
	if d.everybody != nil && !slices.Contains(c.ids, d.everybody.ID) {
		add(d.everybody, false)
	}
	for _, id := range c.doubts {
		if g := d.groups[id]; g != nil && g != d.everybody {
			add(g, true)
		}
	}
	for _, list := range []indices{s.allows, s.denies, s.wouldAllow, s.wouldDeny} {
		slices.Sort(list)
	}
	slices.Sort(s.names)
	s.joined = strings.Join(s.names, ",")
	return s
}

// members finds out which groups a user is in, by name and by condition, and
// those of which it cannot be said; both sorted.
func (d *Directory) members(u *User) (ids, doubts []string) {
	ids = slices.Clone(u.Groups)
	for _, g := range d.conditional {
		if holds, err := g.membership.Member(u); err != nil {
			doubts = append(doubts, g.ID)
		} else if holds {
			ids = append(ids, g.ID)
		}
	}
	ids = sortedCopy(ids)
	return ids, slices.DeleteFunc(doubts, func(id string) bool { return slices.Contains(ids, id) })
}

// moves reports whether a user is in others of these groups than before.
func (d *Directory) moves(u *User, groups []string) bool {
	was := d.sets[u.class]
	for _, id := range groups {
		g := d.groups[id]
		if slices.Contains(u.Groups, id) {
			continue
		}
		holds, err := false, error(nil)
		if g != nil && g.membership != nil {
			holds, err = g.membership.Member(u)
		}
		if slices.Contains(was.ids, id) != (holds && err == nil) || slices.Contains(was.doubts, id) != (err != nil) {
			return true
		}
	}
	return false
}

// begin makes what users are written to.
func (e *Edit) begin() {
	if e.users == nil {
		d := &e.next
		e.users, e.logins, e.classes = d.users.edit(), d.logins.edit(), d.classes.edit()
		d.sets, e.sizes = slices.Clip(d.sets), d.sizes.edit()
	}
}

// class returns the number of a combination of groups.
func (e *Edit) class(ids, doubts, only []string) int {
	key := strings.Join(ids, ",")
	if len(doubts) > 0 || only != nil {
		key += "?" + strings.Join(doubts, ",")
	}
	if only != nil {
		key += "|" + strings.Join(only, ",")
	}
	n, ok := e.classes.get(key)
	if !ok {
		d := &e.next
		n = len(d.sets)
		d.sets = append(d.sets, d.resolve(n, &combination{copied(ids), copied(doubts), copied(only)}))
		e.classes.set(strings.Clone(key), n)
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
	e.sizes.add(old.class, -1)
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

// prepare takes out what is known of the users so far, and gives them classes.
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
		if err := e.classify(&drafts[i]); err != nil {
			return err
		}
	}
	return nil
}

// draft is a user on its way into the table.
type draft struct {
	written
	user    User
	row     []byte   // without the classes
	classes []byte   // what stands before it
	buf     [8]byte  // for classes
	ids     []string // of the groups that the user is in, sorted …
	doubts  []string // … of those of which it cannot be said …
	named   []string // … and of those that name it …
	other   bool     // … which are others
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
	d.ids, d.doubts = e.next.members(&u)
	d.named = sortedCopy(u.Groups)
	d.other = !slices.Equal(d.named, d.ids)
	d.row = appendUser(make([]byte, 0, 256), &u, d.other)
	return d, nil
}

// classify numbers the combinations of groups of a user and of its tokens.
func (e *Edit) classify(d *draft) error {
	class := e.class(d.ids, d.doubts, nil)
	e.sizes.add(class, 1)
	classes := []int{class}
	if d.other {
		classes = append(classes, e.class(d.named, nil, nil))
	}
	for i := range d.user.Tokens {
		if only := d.user.Tokens[i].Groups; len(only) > 0 {
			classes = append(classes, e.class(d.ids, d.doubts, sortedCopy(only)))
		}
	}
	d.classes = binary.AppendUvarint(d.buf[:0], uint64(len(classes)))
	for _, c := range classes {
		d.classes = binary.AppendUvarint(d.classes, uint64(c))
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
	if err := e.users.set(&d.written, d.row, d.classes, d.user.Tokens); err != nil {
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
					err = e.classify(&moved)
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
		d.users, d.logins, d.classes, d.sizes = e.users.done(), e.logins.done(), e.classes.done(), e.sizes.done()
	}
	done := *d // what is in force must not hold on to the edit, and so to every version before
	return &done, nil
}

// copied returns strings that hold on to no text that they were cut out of.
func copied(list []string) []string {
	list = slices.Clone(list)
	for i, s := range list {
		list[i] = strings.Clone(s)
	}
	return list
}

func sortedCopy(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

// GroupIDs returns the ids of the groups with these names, sorted; a name that
// no group has is left out.
func (d *Directory) GroupIDs(names []string) []string {
	var ids []string
	for _, g := range d.groups {
		if slices.Contains(names, g.Name) {
			ids = append(ids, g.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// Reads lists the fields of the service user that the conditions of the group's
// rules look at, as [Condition.Reads] does, sorted.
func (g *Group) Reads() []string {
	var fields []string
	for _, c := range g.conditions {
		if c != nil {
			fields = append(fields, c.reads...)
		}
	}
	return sortedCopy(fields)
}
