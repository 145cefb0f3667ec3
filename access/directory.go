package access

import (
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

	groupSetID int // of the groups that it is in
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

	index      uint32       // its place in ruleQuery.groups; kept for as long as the directory lives
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
	setIDs      shards[string, int]
	policy      *policy
}

// groupSet is a distinct combination of groups. Users and tokens share it, so
// that a change of a group touches no user.
type groupSet struct {
	*groupKey

	id             int      // its place in Directory.sets
	allows, denies indices  // of the groups that enforce
	wouldAllow     indices  // of those that observe
	wouldDeny      indices  //
	names          []string // of allows, sorted
	joined         string   // the same, separated by commas
}

// combination is what a class stands for. Its address tells a class of this
// directory, and of those before and after it, from one of any other.
type groupKey struct {
	ids         []string // the user's groups, by name and by condition, sorted
	undecided   []string // groups of which it cannot be said whether the user is in them, sorted
	tokenGroups []string // the token's narrowing, sorted; nil is none
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
	ids, undecided := d.members(u)
	for _, g := range d.conditional {
		switch {
		case slices.Contains(u.Groups, g.ID):
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
		case !in[u.groupSetID]:
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

// CountMembers counts, for each of the groups, the members by name or by condition that f
// is true for. It looks at every service user once.
func (d *Directory) CountMembers(groups []string, f func(*User) bool) map[string]int {
	in := make([][]string, len(d.sets)) // of the groups
	for i, s := range d.sets {
		for _, id := range groups {
			if d.groups[id] != nil && slices.Contains(s.ids, id) {
				in[i] = append(in[i], id)
			}
		}
	}
	counts := make(map[string]int)
	d.users.each(d.sets, func(u *User) {
		if len(in[u.groupSetID]) > 0 && f(u) {
			for _, id := range in[u.groupSetID] {
				counts[id]++
			}
		}
	})
	return counts
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

// resolve finds the groups behind a combination of ids, which has this number.
func (d *Directory) resolve(id int, c *groupKey) *groupSet {
	s := &groupSet{groupKey: c, id: id}
	add := func(g *Group, doubt bool) {
		allows, denies := &s.allows, &s.denies
		if g.Mode == Observe {
			allows, denies = &s.wouldAllow, &s.wouldDeny
		}
		*denies = append(*denies, g.index)
		if doubt || c.tokenGroups != nil && !slices.Contains(c.tokenGroups, g.ID) {
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

// members finds out which groups a user is in, by name and by condition, and
// those of which it cannot be said; both sorted.
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
	return ids, slices.DeleteFunc(undecided, func(id string) bool { return slices.Contains(ids, id) })
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
