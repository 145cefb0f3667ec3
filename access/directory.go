package access

import (
	"fmt"
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
	Role        Role
	Teams       []string
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
	Rules []Rule

	index uint32 // its place in question.groups; kept for as long as the directory lives
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

	groups    map[string]*Group // by id
	everybody *Group            // the default group, when there is one of that name
	nextGroup uint32            // the index of the next group
	sets      []*groupSet       // by User.class and Token.class
	classes   shards[string, int]
	policy    *policy
}

type secretOwner struct {
	user  *User
	token int
}

// groupSet is a distinct combination of groups. Users and tokens share it, so
// that a change of a group touches no user.
type groupSet struct {
	ids  []string // the user's groups, sorted
	only []string // the token's narrowing, sorted; nil is none

	groups []uint32 // indices of the enforcing groups, sorted
	names  []string // their names, sorted
	joined string   // the same, separated by commas
}

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
	var groups []*Group
	for _, id := range d.EffectiveGroups(p.User) {
		if g := d.groups[id]; g.Mode == Enforce {
			groups = append(groups, g)
		}
	}
	slices.SortFunc(groups, func(a, b *Group) int { return strings.Compare(a.Name, b.Name) })
	var rules []Rule
	for _, g := range groups {
		for _, r := range g.Rules {
			if r.Effect == Deny || slices.Contains(p.set.groups, g.index) {
				rules = append(rules, r)
			}
		}
	}
	return rules
}

// EffectiveGroups returns the ids of the groups that the user is in, by name
// or by default, whatever their mode, sorted.
func (d *Directory) EffectiveGroups(u *User) []string {
	ids := slices.DeleteFunc(slices.Clone(u.Groups), func(id string) bool { return d.groups[id] == nil })
	if d.everybody != nil && !slices.Contains(ids, d.everybody.ID) {
		ids = append(ids, d.everybody.ID)
	}
	slices.Sort(ids)
	return ids
}

// With returns the directory after the changes. It fails, and changes nothing,
// when they are older than d or hold something that cannot be enforced: a
// directory is taken whole or not at all.
func (d *Directory) With(c Changes) (*Directory, error) {
	if c.Revision < d.revision {
		return nil, fmt.Errorf("revision %d is older than %d, which is in force", c.Revision, d.revision)
	}
	next := *d
	next.revision = c.Revision
	if err := next.changeGroups(c); err != nil {
		return nil, err
	}
	if err := next.changeUsers(c); err != nil {
		return nil, err
	}
	return &next, nil
}

func (d *Directory) changeGroups(c Changes) error {
	if len(c.Groups) == 0 && len(c.RemovedGroups) == 0 {
		return nil
	}
	old := d.groups
	d.groups = make(map[string]*Group, len(old)+len(c.Groups))
	for id, g := range old {
		d.groups[id] = g
	}
	for _, id := range c.RemovedGroups {
		delete(d.groups, id)
	}
	for _, g := range c.Groups {
		if !g.Mode.Valid() {
			return fmt.Errorf("permission group %s: mode %q is neither \"enforce\" nor \"observe\"", g.ID, g.Mode)
		}
		g.Rules = slices.Clone(g.Rules)
		for i, r := range g.Rules {
			checked, err := r.Check()
			if err != nil {
				return fmt.Errorf("permission group %s, rule %s: %w", g.ID, r.ID, err)
			}
			g.Rules[i] = checked
		}
		if known, ok := old[g.ID]; ok {
			g.index = known.index
		} else {
			g.index = d.nextGroup
			d.nextGroup++
		}
		d.groups[g.ID] = &g
	}
	d.everybody = nil
	for _, g := range d.groups {
		if d.defaultGroup != "" && g.Name == d.defaultGroup {
			d.everybody = g
		}
	}
	d.policy = compile(d.groups)
	sets := make([]*groupSet, len(d.sets))
	for i, s := range d.sets {
		sets[i] = d.resolve(s.ids, s.only)
	}
	d.sets = sets
	return nil
}

// resolve finds the groups behind a combination of ids.
func (d *Directory) resolve(ids, only []string) *groupSet {
	s := &groupSet{ids: ids, only: only}
	add := func(g *Group) {
		if g.Mode == Enforce && (only == nil || slices.Contains(only, g.ID)) {
			s.groups = append(s.groups, g.index)
			s.names = append(s.names, g.Name)
		}
	}
	for _, id := range ids {
		if g := d.groups[id]; g != nil {
			add(g)
		}
	}
	if d.everybody != nil && !slices.Contains(ids, d.everybody.ID) {
		add(d.everybody)
	}
	slices.Sort(s.groups)
	slices.Sort(s.names)
	s.joined = strings.Join(s.names, ",")
	return s
}

func (d *Directory) changeUsers(c Changes) error {
	if len(c.Users) == 0 && len(c.RemovedUsers) == 0 {
		return nil
	}
	users, logins, hashes, classes := d.users.edit(), d.logins.edit(), d.hashes.edit(), d.classes.edit()
	d.sets = slices.Clone(d.sets)

	forget := func(id string) {
		old, ok := users.get(id)
		if !ok {
			return
		}
		users.remove(id)
		logins.remove(old.Alias)
		for _, t := range old.Tokens {
			if owner, _ := hashes.get(t.Hash); owner.user == old {
				hashes.remove(t.Hash)
			}
		}
	}
	class := func(ids, only []string) int {
		ids, only = sortedCopy(ids), sortedCopy(only)
		key := strings.Join(ids, ",")
		if only != nil {
			key += "|" + strings.Join(only, ",")
		}
		n, ok := classes.get(key)
		if !ok {
			n = len(d.sets)
			d.sets = append(d.sets, d.resolve(ids, only))
			classes.set(key, n)
		}
		return n
	}

	for _, id := range c.RemovedUsers {
		forget(id)
	}
	for _, u := range c.Users {
		forget(u.ID) // all of them first: an alias may move from one to another
	}
	for _, u := range c.Users {
		if u.ID == "" || !u.Role.Valid() {
			return fmt.Errorf("service user %q: role %q is none of admin, manager, member", u.ID, u.Role)
		}
		if _, twice := users.get(u.ID); twice {
			return fmt.Errorf("service user %s stands twice in the changes", u.ID)
		}
		u.Tokens = slices.Clone(u.Tokens)
		u.class = class(u.Groups, nil)
		for i := range u.Tokens {
			t := &u.Tokens[i]
			if t.Hash == (Hash{}) {
				return fmt.Errorf("service user %s, token %s: the hash is empty", u.ID, t.ID)
			}
			t.pepper = d.peppers.index(t.Pepper)
			t.class = u.class
			if len(t.Groups) > 0 {
				t.class = class(u.Groups, t.Groups)
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
