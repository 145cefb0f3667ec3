package access

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Role says how much of the admin API a service user may use. A role gives no right on the data
// path.
type Role string

// The roles, from the weakest to the strongest.
const (
	Member  Role = "member"  // nothing on the admin API
	Manager Role = "manager" // service users that share a team with it
	Admin   Role = "admin"   // everything
)

// Valid reports whether r is one of the three roles.
func (r Role) Valid() bool { return r == Member || r == Manager || r == Admin }

// User is a service user, with the fields that decisions and conditions need.
type User struct {
	Profile
	CreatedAt  int64          // Unix seconds
	ExpiresAt  int64          // Unix seconds; 0 is never
	AllowedIPs []netip.Prefix // empty is any
	Groups     []string       // ids of the permission groups it is a member of
	Tokens     []Token

	groupSetID int // of the groups that it is in
}

// Token is one token of a service user, with the fields that decisions need.
type Token struct {
	ID         string // token_…
	Hash       Hash
	Pepper     string // the id of the pepper in Hash; "" for none
	NotBefore  int64  // Unix seconds; 0 is always
	ExpiresAt  int64  // Unix seconds; 0 is never
	AllowedIPs []netip.Prefix
	Groups     []string // narrows the allows to these groups; empty is all
	Revoked    bool     // kept for a while, so that a refusal can have the reason token_revoked
	Retiring   bool     // has a successor; valid until the grace period ends
	Unused     bool     // made by its own user and never used: its first use has to be recorded

	pepper int // index into digests; -1 when the pepper is unknown
}

// Mode says whether the rules of a permission group are enforced.
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
	Rules []Rule // its own rules, and those of its permissions

	Condition string // every user that meets this condition is a member; "" for none

	index      uint32       // the number in ruleQuery.groups; the same in later versions of the directory
	conditions []*Condition // of Rules, by the same index; nil for none
	membership *Condition
}

// Changes is the difference between two revisions of the store. Each User or Group is complete: it
// replaces the one with the same id.
type Changes struct {
	Revision      int64
	Users         []User
	RemovedUsers  []string
	Groups        []Group
	RemovedGroups []string
}

// Directory contains the service users, groups and rules in the form that requests are checked
// against. It is an immutable value: any number of goroutines may read it.
type Directory struct {
	revision     int64
	peppers      Peppers
	defaultGroup string // the name of the group that every service user is in; "" for none

	users  table                  // by id, and by the hashes of their tokens
	logins shards[string, string] // ids by alias

	groups      map[string]*Group   // by id
	everybody   *Group              // the default group; nil if no group has that name
	conditional []*Group            // groups with a condition of membership, by id
	nextGroup   uint32              // the index of the next new group
	sets        []*groupSet         // by groupSet.id
	sizes       shards[int, int]    // the number of users in each group set, by groupSet.id
	setIDs      shards[string, int] // ids of group sets, by the key that Edit.groupSetID makes
	policy      *policy
}

// groupSet is one combination of groups that a user, or a narrowed token, has. All users and tokens
// with the same combination share it, so a change of a group rewrites a few group sets and no user.
type groupSet struct {
	*groupKey

	id             int      // the index in Directory.sets
	allows, denies indices  // groups in enforce mode
	wouldAllow     indices  // groups in observe mode
	wouldDeny      indices  // groups in observe mode
	names          []string // of allows, sorted
	joined         string   // names, separated by commas
}

// groupKey identifies a group set by the ids of its groups. All versions of a directory share the
// pointer to it, so comparing pointers shows whether a group set belongs to another store.
type groupKey struct {
	ids         []string // the user's groups, by name and by condition, sorted
	undecided   []string // groups whose condition fails to evaluate for the user, sorted
	tokenGroups []string // the groups that a token is narrowed to, sorted; nil if it is not narrowed
}

// indices is a sorted list of Group.index. An undecided group appears in lists of denies only.
type indices []uint32

// NewDirectory returns an empty directory of revision 0. defaultGroup is the name of a permission
// group that every service user belongs to, or "".
func NewDirectory(peppers Peppers, defaultGroup string) *Directory {
	return &Directory{peppers: peppers, defaultGroup: defaultGroup, policy: new(policy)}
}

// Revision returns the revision of the store that d was made from.
func (d *Directory) Revision() int64 { return d.revision }

// Len returns the number of service users.
func (d *Directory) Len() int { return d.users.count }

// User returns the service user with this id or alias. Each call makes a new User, except for
// Groups, which the caller must not change. Token.Pepper is empty in the result.
func (d *Directory) User(login string) (*User, bool) {
	_, row := d.byLogin(login)
	if row == nil {
		return nil, false
	}
	return row.decode(d.sets), true
}

// UserID returns the id of the service user with this id or alias, or "".
func (d *Directory) UserID(login string) string {
	id, _ := d.byLogin(login)
	return id
}

// Group returns the permission group with this id.
func (d *Directory) Group(id string) (*Group, bool) {
	g, ok := d.groups[id]
	return g, ok
}

// Rules returns the rules that apply to the principal, ordered by group name: the allows of the
// groups of its token, and every deny of its user. The caller must not change them.
func (d *Directory) Rules(p Principal) []Rule {
	in := d.groupsOf(p)
	var groups []*Group
	for _, g := range d.groups {
		if slices.Contains(in.denies, g.index) {
			groups = append(groups, g)
		}
	}
	slices.SortFunc(groups, func(a, b *Group) int { return strings.Compare(a.Name, b.Name) })
	var rules []Rule
	for _, g := range groups {
		for _, r := range g.Rules {
			if r.Effect == Deny || slices.Contains(in.allows, g.index) {
				rules = append(rules, r)
			}
		}
	}
	return rules
}

// Source says why a service user is in a permission group.
type Source string

// The sources of a membership.
const (
	ByName      Source = "name"      // the group lists the service user
	ByCondition Source = "condition" // the service user meets the group's condition
	ByDefault   Source = "default"   // every service user is in the default group

	// InDoubt means that the group's condition fails to evaluate for the service user. The
	// group's denies apply then, and its allows do not.
	InDoubt Source = "doubt"
)

// Membership is one permission group of a service user, and the reason why the user is in it.
type Membership struct {
	Group  *Group
	Source Source
}

// Memberships returns the groups that a service user is in, or may be in ([InDoubt]), ordered by
// name. The service user need not be in the directory.
func (d *Directory) Memberships(u *User) []Membership {
	var list []Membership
	for _, id := range sortedCopy(u.Groups) {
		if g := d.groups[id]; g != nil {
			list = append(list, Membership{g, ByName})
		}
	}
	ids, undecided := d.members(u)
	for _, g := range d.conditional {
		switch {
		case slices.Contains(u.Groups, g.ID): // listed above, as ByName
		case slices.Contains(ids, g.ID):
			list = append(list, Membership{g, ByCondition})
		case slices.Contains(undecided, g.ID) && g != d.everybody:
			list = append(list, Membership{g, InDoubt})
		}
	}
	if g := d.everybody; g != nil && !slices.Contains(ids, g.ID) {
		list = append(list, Membership{g, ByDefault})
	}
	slices.SortFunc(list, func(a, b Membership) int { return strings.Compare(a.Group.Name, b.Group.Name) })
	return list
}

// EffectiveGroups returns the ids of the groups that the user is in, of either mode, sorted. Groups
// in doubt are not included.
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

// Members calls f for every service user that is in a group by name or by condition, in no
// particular order.
func (d *Directory) Members(group string, f func(*User, Source)) {
	if d.groups[group] == nil {
		return // users may still have the id of a removed group in User.Groups
	}
	// Group sets are few and users are many: look for the group in each set once.
	in := make([]bool, len(d.sets))
	for i, s := range d.sets {
		in[i] = slices.Contains(s.ids, group)
	}
	d.users.each(d.sets, func(u *User) {
		switch {
		case !in[u.groupSetID]:
		case slices.Contains(u.Groups, group):
			f(u, ByName)
		default:
			f(u, ByCondition)
		}
	})
}

// MemberCount returns the number of service users that are in a group by name or by condition.
func (d *Directory) MemberCount(group string) (n int) {
	if d.groups[group] == nil {
		return 0
	}
	for i, s := range d.sets {
		if size, _ := d.sizes.get(i); size > 0 && slices.Contains(s.ids, group) {
			n += size
		}
	}
	return n
}

// CountMembers returns, by group id, how many members by name or by condition satisfy f. It calls f
// at most once for each service user.
func (d *Directory) CountMembers(groups []string, f func(*Sketch) bool) map[string]int {
	in := make([][]string, len(d.sets)) // those of the groups that a group set contains
	for i, s := range d.sets {
		for _, id := range groups {
			if d.groups[id] != nil && slices.Contains(s.ids, id) {
				in[i] = append(in[i], id)
			}
		}
	}
	counts := make(map[string]int)
	d.Sketches(0, func(k *Sketch) {
		if len(in[k.groupSetID]) > 0 && f(k) {
			for _, id := range in[k.groupSetID] {
				counts[id]++
			}
		}
	})
	return counts
}

// Users calls f for every service user, in no particular order.
func (d *Directory) Users(f func(*User)) {
	d.users.each(d.sets, f)
}

// LostPepper is in the place of the id of a pepper that is not configured.
const LostPepper = "lost"

// Export calls f for every service user, in no particular order, with Token.Pepper filled in, so that
// [Edit.Users] of an empty directory makes the same one. A pepper that is not configured has the id LostPepper.
func (d *Directory) Export(f func(*User)) {
	ids := append([]string{""}, d.peppers.IDs()...)
	d.Users(func(u *User) {
		for i := range u.Tokens {
			u.Tokens[i].Pepper = LostPepper
			if at := u.Tokens[i].pepper; at >= 0 {
				u.Tokens[i].Pepper = ids[at]
			}
		}
		f(u)
	})
}

// Groups returns every permission group, in no particular order.
func (d *Directory) Groups() []*Group { return slices.Collect(maps.Values(d.groups)) }

// DefaultGroup returns the group that every service user is in, or nil.
func (d *Directory) DefaultGroup() *Group { return d.everybody }

// With returns a new directory that includes the changes. With fails if the changes are older than
// d, or if any of them is invalid, such as a rule that does not parse. Requests then continue with
// d: a set of changes is applied as a whole or not at all.
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

// resolve makes the group set of a key, with this id, from the groups of the directory.
func (d *Directory) resolve(id int, c *groupKey) *groupSet {
	s := &groupSet{groupKey: c, id: id}
	add := func(g *Group, undecided bool) {
		allows, denies := &s.allows, &s.denies
		if g.Mode == Observe {
			allows, denies = &s.wouldAllow, &s.wouldDeny
		}
		// The denies of a group always apply: neither an undecided membership nor a
		// narrowed token removes them.
		*denies = append(*denies, g.index)
		if undecided || c.tokenGroups != nil && !slices.Contains(c.tokenGroups, g.ID) {
			return
		}
		*allows = append(*allows, g.index)
		if g.Mode == Enforce {
			s.names = append(s.names, g.Name)
		}
	}
	for _, id := range c.ids {
		if g := d.groups[id]; g != nil { // nil if the group was removed, and its members not yet changed
			add(g, false)
		}
	}
	if d.everybody != nil && !slices.Contains(c.ids, d.everybody.ID) {
		add(d.everybody, false)
	}
	for _, id := range c.undecided {
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

// members returns the ids of the groups that a user is in, by name and by condition, and of the
// groups whose condition fails to evaluate for the user. Both lists are sorted.
func (d *Directory) members(u *User) (ids, undecided []string) {
	ids = slices.Clone(u.Groups)
	for _, g := range d.conditional {
		if member, err := g.membership.Member(u); err != nil {
			undecided = append(undecided, g.ID)
		} else if member {
			ids = append(ids, g.ID)
		}
	}
	ids = sortedCopy(ids)
	// A user that the group lists is a member, even if the condition of the group fails.
	return ids, slices.DeleteFunc(undecided, func(id string) bool { return slices.Contains(ids, id) })
}

// copied returns deep copies of the strings. A string that is a part of a larger text would keep
// the whole text in memory.
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

// GroupIDs returns the ids of the groups with these names, sorted. It ignores names that do not
// belong to a group.
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

// Reads returns the fields of the service user that the conditions of the group's rules read, in
// the form of [Condition.Reads], sorted.
func (g *Group) Reads() []string {
	var fields []string
	for _, c := range g.conditions {
		if c != nil {
			fields = append(fields, c.reads...)
		}
	}
	return sortedCopy(fields)
}
