package access

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
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
	class  int // the group set of its allows
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

	users  shards[string, *User]     // by id
	logins shards[string, *User]     // by alias
	hashes shards[Hash, secretOwner] // for Bearer credentials, which name nobody

	groups      map[string]*Group // by id
	everybody   *Group            // the default group, when there is one of that name
	conditional []*Group          // those with a condition of membership
	nextGroup   uint32            // the index of the next group
	sets        []*groupSet       // by User.class and Token.class
	sizes       []int             // the number of users of each class
	classes     shards[string, int]
	policy      *policy
}

type secretOwner struct {
	user  *User
	token int
}

// groupSet is a distinct combination of groups. Users and tokens share it, so
// that a change of a group touches no user.
type groupSet struct {
	*combination

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
func (d *Directory) Len() int { return d.users.len() }

// User returns the service user with this id or alias.
func (d *Directory) User(login string) (*User, bool) {
	if u, ok := d.users.get(login); ok {
		return u, true
	}
	return d.logins.get(login)
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
	if p.User == nil {
		return nil
	}
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
	d.users.each(func(_ string, u *User) {
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
		if d.sizes[i] > 0 && slices.Contains(s.ids, group) {
			n += d.sizes[i]
		}
	}
	return n
}

// Users calls f for every service user, in no order.
func (d *Directory) Users(f func(*User)) {
	d.users.each(func(_ string, u *User) { f(u) })
}

// Groups returns every permission group, in no order.
func (d *Directory) Groups() []*Group { return slices.Collect(maps.Values(d.groups)) }

// DefaultGroup returns the group that everybody is in, or nil.
func (d *Directory) DefaultGroup() *Group { return d.everybody }

// With returns the directory after the changes. It fails, and changes nothing,
// when they are older than d or hold something that cannot be enforced: a
// directory is taken whole or not at all.
func (d *Directory) With(c Changes) (*Directory, error) {
	if c.Revision < d.revision {
		return nil, fmt.Errorf("revision %d is older than %d, which is in force", c.Revision, d.revision)
	}
	next := *d
	next.revision = c.Revision
	moved, err := next.changeGroups(c)
	if err != nil {
		return nil, err
	}
	if err := next.changeUsers(c, moved); err != nil {
		return nil, err
	}
	return &next, nil
}

// changeGroups returns the ids of the groups whose condition of membership is
// another one than before.
func (d *Directory) changeGroups(c Changes) (moved []string, err error) {
	if len(c.Groups) == 0 && len(c.RemovedGroups) == 0 {
		return nil, nil
	}
	old := d.groups
	d.groups = make(map[string]*Group, len(old)+len(c.Groups))
	maps.Copy(d.groups, old)
	for _, id := range c.RemovedGroups {
		if g := old[id]; g != nil && g.membership != nil {
			moved = append(moved, id) // nobody meets the condition of a group that is gone
		}
		delete(d.groups, id)
	}
	for _, g := range c.Groups {
		known := old[g.ID]
		if known == nil {
			known = &Group{index: d.nextGroup}
			d.nextGroup++
		}
		if err := g.compile(known); err != nil {
			return nil, err
		}
		if g.Condition != known.Condition {
			moved = append(moved, g.ID)
		}
		d.groups[g.ID] = &g
	}
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
	d.policy = compile(d.groups)
	sets := make([]*groupSet, len(d.sets))
	for i, s := range d.sets {
		sets[i] = d.resolve(s.combination)
	}
	d.sets = sets
	return moved, nil
}

// compile checks a group and prepares it for requests. known is the same group
// as it was before.
func (g *Group) compile(known *Group) error {
	if g.ID == "" {
		return fmt.Errorf("permission group %q has no id", g.Name)
	}
	if !g.Mode.Valid() {
		return fmt.Errorf("permission group %s: mode %q is neither \"enforce\" nor \"observe\"", g.ID, g.Mode)
	}
	compiled := make(map[string]*Condition)
	for _, c := range known.conditions {
		if c != nil {
			compiled[c.text] = c
		}
	}
	g.Rules = slices.Clone(g.Rules)
	g.conditions = make([]*Condition, len(g.Rules))
	for i, r := range g.Rules {
		checked, when, err := r.compile(compiled)
		if err != nil {
			return fmt.Errorf("permission group %s, rule %s: %w", g.ID, r.ID, err)
		}
		g.Rules[i], g.conditions[i] = checked, when
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
			return fmt.Errorf("permission group %s: %w", g.ID, err)
		}
		g.membership = m
	}
	return nil
}

// resolve finds the groups behind a combination of ids.
func (d *Directory) resolve(c *combination) *groupSet {
	s := &groupSet{combination: c}
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
		if slices.Contains(u.Groups, id) {
			continue
		}
		holds, err := false, error(nil)
		if g := d.groups[id]; g != nil && g.membership != nil {
			holds, err = g.membership.Member(u)
		}
		if slices.Contains(was.ids, id) != (holds && err == nil) || slices.Contains(was.doubts, id) != (err != nil) {
			return true
		}
	}
	return false
}

func (d *Directory) changeUsers(c Changes, moved []string) error {
	changed := c.Users
	if len(moved) > 0 {
		named := make(map[string]bool)
		for _, u := range c.Users {
			named[u.ID] = true
		}
		for _, id := range c.RemovedUsers {
			named[id] = true
		}
		changed = slices.Clone(changed)
		d.users.each(func(id string, u *User) {
			if !named[id] && d.moves(u, moved) {
				changed = append(changed, *u)
			}
		})
	}
	if len(changed) == 0 && len(c.RemovedUsers) == 0 {
		return nil
	}
	users, logins, hashes, classes := d.users.edit(), d.logins.edit(), d.hashes.edit(), d.classes.edit()
	d.sets, d.sizes = slices.Clone(d.sets), slices.Clone(d.sizes)

	forget := func(id string) {
		old, ok := users.get(id)
		if !ok {
			return
		}
		users.remove(id)
		d.sizes[old.class]--
		logins.remove(old.Alias)
		for _, t := range old.Tokens {
			if owner, _ := hashes.get(t.Hash); owner.user == old {
				hashes.remove(t.Hash)
			}
		}
	}
	class := func(ids, doubts, only []string) int {
		key := strings.Join(ids, ",") + "?" + strings.Join(doubts, ",")
		if only != nil {
			key += "|" + strings.Join(only, ",")
		}
		n, ok := classes.get(key)
		if !ok {
			n = len(d.sets)
			d.sets, d.sizes = append(d.sets, d.resolve(&combination{ids, doubts, only})), append(d.sizes, 0)
			classes.set(key, n)
		}
		return n
	}

	for _, id := range c.RemovedUsers {
		forget(id)
	}
	for _, u := range changed {
		forget(u.ID) // all of them first: an alias may move from one to another
	}
	for _, u := range changed {
		if u.ID == "" || !u.Role.Valid() {
			return fmt.Errorf("service user %q: role %q is none of admin, manager, member", u.ID, u.Role)
		}
		if _, twice := users.get(u.ID); twice {
			return fmt.Errorf("service user %s stands twice in the changes", u.ID)
		}
		u.Tokens = slices.Clone(u.Tokens)
		ids, doubts := d.members(&u)
		u.class = class(ids, doubts, nil)
		d.sizes[u.class]++
		for i := range u.Tokens {
			t := &u.Tokens[i]
			if t.Hash == (Hash{}) {
				return fmt.Errorf("service user %s, token %s: the hash is empty", u.ID, t.ID)
			}
			t.pepper = d.peppers.index(t.Pepper)
			t.class = u.class
			if len(t.Groups) > 0 {
				t.class = class(ids, doubts, sortedCopy(t.Groups))
			}
			hashes.set(t.Hash, secretOwner{&u, i})
		}
		users.set(u.ID, &u)
		if u.Alias != "" {
			if other, taken := logins.get(u.Alias); taken {
				return fmt.Errorf("service users %s and %s have the same alias", other.ID, u.ID)
			}
			logins.set(u.Alias, &u)
		}
	}
	d.users, d.logins, d.hashes, d.classes = users.done(), logins.done(), hashes.done(), classes.done()
	return nil
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
