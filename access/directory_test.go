package access

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// answers is what a directory says to some credentials and requests: enough to
// see whether it changed.
func answers(d *Directory) string {
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d, %d users\n", d.Revision(), d.Len())
	for n := range 6 {
		for _, c := range []Credential{login(n), {Secret: secret(n)}, {fmt.Sprint("alias_", n), secret(n)}} {
			p, why := d.Authenticate(c, here, 1000)
			fmt.Fprintf(&b, "%d %s: %v %s %q", n, c.ID, why, p, p.GroupList())
			for _, request := range []string{"GET /a", "GET /b", "POST /a", "GET /x"} {
				got := d.Authorize(p, action(request))
				fmt.Fprintf(&b, " %v", got.Reason)
			}
			b.WriteString("\n")
		}
	}
	for _, id := range []string{"g1", "g2", "g3"} {
		if g, ok := d.Group(id); ok {
			fmt.Fprintf(&b, "%s %s %s %v\n", g.ID, g.Name, g.Mode, g.Rules)
		}
	}
	return b.String()
}

// aliased is user n with an alias.
func aliased(n int, alias string, groups ...string) User {
	u := user(n, groups...)
	u.Alias = alias
	return u
}

// start is the directory that most tests here begin with.
func start(t *testing.T) *Directory {
	t.Helper()
	return with(t, NewDirectory(Peppers{}, ""), Changes{
		Revision: 7,
		Groups:   []Group{group(t, "g1", "allow GET /a"), group(t, "g2", "allow GET /b", "deny GET /x")},
		Users:    []User{aliased(1, "alias_1", "g1"), aliased(2, "alias_2", "g1", "g2"), user(3)},
	})
}

// TestWithIsPersistent: whatever is built on a directory, it answers as before.
func TestWithIsPersistent(t *testing.T) {
	d := start(t)
	before := answers(d)
	inactive := user(1, "g1")
	inactive.Active = false
	expired := user(1, "g1")
	expired.Tokens[0].ExpiresAt = 1
	observing := group(t, "g1", "allow GET /a")
	observing.Mode = Observe
	renamed := group(t, "g1", "allow GET /a")
	renamed.Name = "another name"
	type sibling struct {
		directory *Directory
		answers   string
	}
	siblings := make(map[string]sibling)
	for name, c := range map[string]Changes{
		"a new user":        {Users: []User{aliased(4, "alias_4", "g2")}},
		"another new user":  {Users: []User{user(5, "g1", "g9")}},
		"a removed user":    {RemovedUsers: []string{"service_1"}},
		"an inactive user":  {Users: []User{inactive}},
		"an expired token":  {Users: []User{expired}},
		"other groups":      {Users: []User{user(1, "g2")}},
		"an alias moved":    {Users: []User{aliased(1, "alias_2"), aliased(2, "alias_1")}},
		"tokens exchanged":  {Users: []User{{ID: "service_1", Role: Member, Active: true, Tokens: []Token{token(2)}}, {ID: "service_2", Role: Member, Active: true, Tokens: []Token{token(1)}}}},
		"a removed group":   {RemovedGroups: []string{"g1"}},
		"a group renamed":   {Groups: []Group{renamed}},
		"a group observing": {Groups: []Group{observing}},
		"other rules":       {Groups: []Group{group(t, "g1", "deny GET /{rest...}")}},
		"a new group":       {Groups: []Group{group(t, "g3", "deny GET /a")}, Users: []User{user(1, "g1", "g3")}},
	} {
		c.Revision = 8
		next := with(t, d, c)
		if got := answers(next); got == before || next.Revision() != 8 {
			t.Errorf("%s: revision %d answers like the one before", name, next.Revision())
		}
		if got := answers(d); got != before {
			t.Errorf("%s: the old directory now answers\n%swant\n%s", name, got, before)
		}
		siblings[name] = sibling{next, answers(next)}
	}
	for name, s := range siblings {
		if got := answers(s.directory); got != s.answers {
			t.Errorf("%s: after others were built, the directory answers\n%swant\n%s", name, got, s.answers)
		}
	}
	if got := answers(with(t, d, Changes{Revision: 7})); got != before {
		t.Errorf("no change: got\n%swant\n%s", got, before)
	}
}

// TestWithKeepsItsOwn: later changes to what a caller handed in do not show.
func TestWithKeepsItsOwn(t *testing.T) {
	c := Changes{Groups: []Group{group(t, "g1", "allow GET /a")}, Users: []User{aliased(1, "alias_1", "g9", "g1")}}
	c.Users[0].Tokens[0].Groups = []string{"g9", "g1"}
	d := with(t, NewDirectory(Peppers{}, ""), c)
	before := answers(d)
	c.Groups[0].Rules[0] = Rule{Effect: Deny, Methods: []string{"*"}, Path: "/{rest...}"}
	c.Groups[0].Name, c.Groups[0].Mode = "x", Observe
	c.Users[0].Active, c.Users[0].Alias = false, "x"
	c.Users[0].Tokens[0].Revoked = true
	if got := answers(d); got != before {
		t.Errorf("got\n%swant\n%s", got, before)
	}
	if u := c.Users[0]; u.class != 0 || u.Tokens[0].class != 0 || u.Groups[0] != "g9" || u.Tokens[0].Groups[0] != "g9" {
		t.Errorf("With wrote to the changes it was given: %+v", u)
	}
}

func TestWithRefuses(t *testing.T) {
	d := start(t)
	before := answers(d)
	change := func(u User, f func(*User)) Changes {
		f(&u)
		return Changes{Revision: 8, Users: []User{user(4), u}, Groups: []Group{group(t, "g1", "deny GET /a")}}
	}
	badRule := group(t, "g1", "allow GET /b")
	badRule.Rules = append(badRule.Rules, Rule{ID: "rule_1", Effect: Deny, Methods: []string{"GET"}, Path: "/a%20b"})
	badMode := group(t, "g1", "allow GET /b")
	badMode.Mode = "audit"
	for _, row := range []struct {
		changes Changes
		want    string
	}{
		{Changes{Revision: 6, RemovedUsers: []string{"service_1"}}, "revision 6 is older than 7, which is in force"},
		{Changes{}, "revision 0 is older than 7"},
		{Changes{Revision: 8, RemovedUsers: []string{"service_1"}, Groups: []Group{group(t, "g2"), badRule}}, `permission group g1, rule rule_1: path "/a%20b": write it decoded`},
		{Changes{Revision: 8, Groups: []Group{badMode}}, `permission group g1: mode "audit" is neither "enforce" nor "observe"`},
		{Changes{Revision: 8, Groups: []Group{{ID: "g1"}}}, `permission group g1: mode ""`},
		{change(user(1), func(u *User) { u.Role = "root" }), `service user "service_1": role "root" is none of admin, manager, member`},
		{change(user(1), func(u *User) { u.Role = "" }), `role "" is none of`},
		{change(user(1), func(u *User) { u.ID = "" }), `service user ""`},
		{change(user(1), func(u *User) { u.Tokens[0].Hash = Hash{} }), "service user service_1, token token_1: the hash is empty"},
		{change(user(1), func(u *User) { u.Alias = "alias_2" }), "service users service_2 and service_1 have the same alias"},
		{Changes{Revision: 8, Users: []User{aliased(4, "same"), aliased(5, "same")}}, "service users service_4 and service_5 have the same alias"},
		{Changes{Revision: 8, Users: []User{aliased(4, "one"), aliased(4, "two")}}, "service user service_4 stands twice in the changes"},
		{Changes{Revision: 8, Users: []User{user(1), user(1)}}, "service user service_1 stands twice in the changes"},
	} {
		next, err := d.With(row.changes)
		if err == nil || !strings.Contains(err.Error(), row.want) || next != nil {
			t.Errorf("got %v, %v, want %q", next, err, row.want)
		}
		if got := answers(d); got != before {
			t.Errorf("%s: the directory now answers\n%swant\n%s", row.want, got, before)
		}
	}
}

// who returns the id behind a login, or the reason why there is none.
func who(d *Directory, id string, n int) string {
	p, why := d.Authenticate(Credential{id, secret(n)}, here, 1000)
	if why != Granted {
		return why.String()
	}
	return p.User.ID
}

// may returns the reason for a request of user n, or why it is nobody.
func may(d *Directory, n int, request string) string {
	p, why := d.Authenticate(login(n), here, 1000)
	if why != Granted {
		return why.String()
	}
	return d.Authorize(p, action(request)).Reason.String()
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %s, want %s", what, got, want)
	}
}

func TestAliases(t *testing.T) {
	d := start(t)
	expect(t, "alias", who(d, "alias_1", 1), "service_1")
	// Moved from one to the other in one change, whichever comes first, and exchanged.
	for _, users := range [][]User{{aliased(1, ""), aliased(3, "alias_1")}, {aliased(3, "alias_1"), aliased(1, "")}} {
		moved := with(t, d, Changes{Revision: 8, Users: users})
		expect(t, "the alias of its new owner", who(moved, "alias_1", 3), "service_3")
		expect(t, "the alias with the old owner's secret", who(moved, "alias_1", 1), "wrong_secret")
		expect(t, "the old owner's id", who(moved, "service_1", 1), "service_1")
	}
	exchanged := with(t, d, Changes{Revision: 8, Users: []User{aliased(1, "alias_2"), aliased(2, "alias_1")}})
	expect(t, "an exchanged alias", who(exchanged, "alias_1", 2), "service_2")
	expect(t, "an exchanged alias", who(exchanged, "alias_2", 1), "service_1")
	// Given up, and then free.
	none := with(t, d, Changes{Revision: 8, Users: []User{user(1)}})
	expect(t, "a dropped alias", who(none, "alias_1", 1), "unknown_id")
	expect(t, "a free alias", who(with(t, none, Changes{Revision: 9, Users: []User{aliased(4, "alias_1")}}), "alias_1", 4), "service_4")
	// Free as well when its owner goes in the same change.
	heir := with(t, d, Changes{Revision: 8, RemovedUsers: []string{"service_1"}, Users: []User{aliased(4, "alias_1")}})
	expect(t, "an inherited alias", who(heir, "alias_1", 4), "service_4")
	expect(t, "the removed owner", who(heir, "service_1", 1), "unknown_id")
	// The removal of its former owner leaves an alias alone.
	moved := with(t, d, Changes{Revision: 8, Users: []User{aliased(1, ""), aliased(3, "alias_1")}})
	expect(t, "the alias after its former owner", who(with(t, moved, Changes{Revision: 9, RemovedUsers: []string{"service_1"}}), "alias_1", 3), "service_3")
	// An id is preferred to an alias that is spelled like it.
	shadow := with(t, d, Changes{Revision: 8, Users: []User{aliased(4, "service_1")}})
	expect(t, "an id that is an alias too", who(shadow, "service_1", 1), "service_1")
	expect(t, "an id that is an alias too", who(shadow, "service_1", 4), "wrong_secret")
	if u, ok := d.User("alias_2"); !ok || u.ID != "service_2" {
		t.Errorf("User(alias_2): got %v, %v", u, ok)
	}
	if u, ok := d.User(""); ok {
		t.Errorf("User of nothing: got %v", u)
	}
}

func TestRemoval(t *testing.T) {
	d := start(t)
	gone := with(t, d, Changes{Revision: 8, RemovedUsers: []string{"service_1", "service_99"}})
	expect(t, "a removed user", who(gone, "service_1", 1), "unknown_id")
	expect(t, "its alias", who(gone, "alias_1", 1), "unknown_id")
	expect(t, "its token as Bearer", who(gone, "", 1), "wrong_secret")
	expect(t, "another user", who(gone, "", 2), "service_2")
	if gone.Len() != 2 || d.Len() != 3 {
		t.Errorf("got %d users and %d before, want 2 and 3", gone.Len(), d.Len())
	}
	expect(t, "a user that came back", who(with(t, gone, Changes{Revision: 9, Users: []User{user(1)}}), "", 1), "service_1")

	// A change is complete: a token that it leaves out is gone.
	replaced := user(1, "g1")
	replaced.Tokens = []Token{token(4)}
	rotated := with(t, d, Changes{Revision: 8, Users: []User{replaced}})
	expect(t, "the new token", who(rotated, "service_1", 4), "service_1")
	expect(t, "the new token as Bearer", who(rotated, "", 4), "service_1")
	expect(t, "the old token", who(rotated, "service_1", 1), "wrong_secret")
	expect(t, "the old token as Bearer", who(rotated, "", 1), "wrong_secret")

	// A group that goes takes its allows and its denies with it.
	less := with(t, d, Changes{Revision: 8, RemovedGroups: []string{"g2", "g99"}})
	expect(t, "an allow of a removed group", may(less, 2, "GET /b"), "no_rule")
	expect(t, "a deny of a removed group", may(less, 2, "GET /x"), "no_rule")
	expect(t, "an allow of another group", may(less, 2, "GET /a"), "granted")
	if _, ok := less.Group("g2"); ok {
		t.Error("the removed group is still there")
	}
	expect(t, "a group that came back", may(with(t, less, Changes{Revision: 9, Groups: []Group{group(t, "g2", "allow GET /b")}}), 2, "GET /b"), "granted")
	// A group that takes the place of another does not take its members.
	other := with(t, less, Changes{Revision: 9, Groups: []Group{group(t, "g3", "allow GET /b")}})
	expect(t, "a group of another id", may(other, 2, "GET /b"), "no_rule")

	// A principal of the directory before has nothing from what is gone, new or switched off.
	p := enter(t, d, login(2))
	expect(t, "a principal from before and a group that stays", other.Authorize(p, action("GET /a")).Reason.String(), "granted")
	expect(t, "a principal from before and a new group", other.Authorize(p, action("GET /b")).Reason.String(), "no_rule")
	stricter := with(t, d, Changes{Revision: 8, Groups: []Group{group(t, "g1", "allow GET /a", "deny GET /a")}})
	expect(t, "a principal from before and a new deny", stricter.Authorize(p, action("GET /a")).Reason.String(), "denied_by_rule")
	observing := group(t, "g1", "allow GET /a")
	observing.Mode = Observe
	quiet := with(t, d, Changes{Revision: 8, Groups: []Group{observing}})
	expect(t, "a principal from before and a group that observes now", quiet.Authorize(p, action("GET /a")).Reason.String(), "no_rule")

	// Of two users with the same secret, the one that goes leaves the other alone.
	twin := user(4)
	twin.Tokens = []Token{{ID: "token_4", Hash: token(3).Hash}}
	twins := with(t, d, Changes{Revision: 8, Users: []User{twin}})
	expect(t, "the twin that stays", who(with(t, twins, Changes{Revision: 9, RemovedUsers: []string{"service_3"}}), "", 3), "service_4")
}

func TestGroupChanges(t *testing.T) {
	d := start(t)
	list := func(d *Directory, n int) string { return enter(t, d, login(n)).GroupList() }
	expect(t, "groups", list(d, 2), "g1,g2")

	renamed := group(t, "g1", "allow GET /a")
	renamed.Name = "zebra"
	after := with(t, d, Changes{Revision: 8, Groups: []Group{renamed}})
	expect(t, "a renamed group", list(after, 2), "g2,zebra")
	expect(t, "a renamed group", list(after, 1), "zebra")
	expect(t, "a renamed group, before", list(d, 2), "g1,g2")
	expect(t, "its rules", may(after, 1, "GET /a"), "granted")

	observing := group(t, "g2", "allow GET /b", "deny GET /x")
	observing.Mode = Observe
	after = with(t, d, Changes{Revision: 8, Groups: []Group{observing}})
	expect(t, "a group that observes", list(after, 2), "g1")
	expect(t, "its deny", may(after, 2, "GET /x"), "no_rule")
	u, _ := after.User("service_2")
	if got := after.EffectiveGroups(u); !slices.Equal(got, []string{"g1", "g2"}) {
		t.Errorf("the groups whatever their mode: got %q", got)
	}

	if got := d.GroupIDs([]string{"g2", "unknown", "g1", "g2"}); !slices.Equal(got, []string{"g1", "g2"}) {
		t.Errorf("the ids of g2, unknown, g1: got %q", got)
	}
	if got := with(t, d, Changes{Revision: 8, Groups: []Group{renamed}}).GroupIDs([]string{"g1", "zebra"}); !slices.Equal(got, []string{"g1"}) {
		t.Errorf("the ids of g1, zebra, which is g1's name now: got %q", got)
	}

	after = with(t, d, Changes{Revision: 8, Groups: []Group{group(t, "g1", "deny GET /a", "allow POST /a")}})
	expect(t, "changed rules", may(after, 1, "GET /a"), "denied_by_rule")
	expect(t, "changed rules", may(after, 1, "POST /a"), "granted")
}

// TestDefaultGroup: everybody is in the group of that name, from when there is
// one until there is none.
func TestDefaultGroup(t *testing.T) {
	named := func(id, name string, texts ...string) Group {
		g := group(t, id, texts...)
		g.Name = name
		return g
	}
	d := with(t, NewDirectory(Peppers{}, "everyone"), Changes{Revision: 1, Users: []User{user(1)}})
	expect(t, "no group of that name", may(d, 1, "GET /a"), "no_rule")
	d = with(t, d, Changes{Revision: 2, Groups: []Group{named("g1", "everyone", "allow GET /a")}})
	expect(t, "a group of that name", may(d, 1, "GET /a"), "granted")
	u, _ := d.User("service_1")
	if got := d.EffectiveGroups(u); !slices.Equal(got, []string{"g1"}) {
		t.Errorf("got the groups %q, want g1", got)
	}
	next := with(t, d, Changes{Revision: 3, Groups: []Group{named("g1", "nobody", "allow GET /a"), named("g2", "everyone", "allow GET /b")}})
	expect(t, "a name given away", may(next, 1, "GET /a"), "no_rule")
	expect(t, "a name taken over", may(next, 1, "GET /b"), "granted")
	none := with(t, next, Changes{Revision: 4, RemovedGroups: []string{"g2"}})
	expect(t, "removed", may(none, 1, "GET /b"), "no_rule")
	expect(t, "removed", enter(t, none, login(1)).GroupList(), "")
	u, _ = none.User("service_1")
	if got := none.EffectiveGroups(u); len(got) != 0 {
		t.Errorf("removed: got the groups %q, want none", got)
	}
	observing := named("g1", "everyone", "allow GET /a")
	observing.Mode = Observe
	expect(t, "observing", may(with(t, d, Changes{Revision: 3, Groups: []Group{observing}}), 1, "GET /a"), "no_rule")
}

// TestNarrowingIsItsOwn: groups are told from a narrowing to them, in every
// combination of the same few ids.
func TestNarrowingIsItsOwn(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g1", "allow GET /a"), group(t, "g2", "allow GET /b")}})
	lists := [][]string{nil, {"g1"}, {"g2"}, {"g1", "g2"}, {"g2", "g1", "g2"}, {""}, {"", "g1"}}
	n := 0
	var c Changes
	for _, groups := range lists {
		for _, only := range lists {
			u := user(n, groups...)
			u.Tokens[0].Groups = only
			c.Users = append(c.Users, u)
			n++
		}
	}
	d = with(t, d, c)
	n = 0
	for _, groups := range lists {
		for _, only := range lists {
			var want []string
			for _, id := range []string{"g1", "g2"} {
				if slices.Contains(groups, id) && (len(only) == 0 || slices.Contains(only, id)) {
					want = append(want, id)
				}
			}
			expect(t, fmt.Sprintf("%q narrowed to %q", groups, only), enter(t, d, login(n)).GroupList(), strings.Join(want, ","))
			n++
		}
	}
}

func TestRolesAndModes(t *testing.T) {
	for _, r := range []Role{Member, Manager, Admin} {
		u := user(1)
		u.Role = r
		if _, err := NewDirectory(Peppers{}, "").With(Changes{Users: []User{u}}); err != nil || !r.Valid() {
			t.Errorf("role %q: got %v", r, err)
		}
	}
	for _, r := range []Role{"", "Admin", "owner"} {
		if r.Valid() {
			t.Errorf("role %q is valid", r)
		}
	}
	if !Enforce.Valid() || !Observe.Valid() || Mode("").Valid() || Mode("Enforce").Valid() {
		t.Error("the modes are enforce and observe")
	}
}

// TestReadersAndWriter reads old and new directories while the next ones are
// built. What is read is of one revision: user and group change together.
func TestReadersAndWriter(t *testing.T) {
	change := func(revision int64) Changes {
		path := fmt.Sprintf("/r%d", revision)
		u := aliased(1, "alias_1", "g1")
		u.Name = path
		u.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		return Changes{Revision: revision, Groups: []Group{group(t, "g1", "allow GET "+path)}, Users: []User{u, user(2+int(revision)%50, "g1")}}
	}
	var current atomic.Pointer[Directory]
	current.Store(with(t, NewDirectory(Peppers{}, ""), change(0)))
	first := current.Load()
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for last := int64(0); ; {
				d := current.Load()
				if d.Revision() < last {
					t.Errorf("got revision %d after %d", d.Revision(), last)
				}
				last = d.Revision()
				for _, d := range []*Directory{first, d} {
					for _, id := range []string{"service_1", "alias_1", ""} {
						p, why := d.Authenticate(Credential{id, secret(1)}, here, 0)
						if why != Granted || p.User.Name != fmt.Sprintf("/r%d", d.Revision()) {
							t.Errorf("revision %d, id %q: got %v, %v", d.Revision(), id, p.User, why)
							return
						}
						if got := d.Authorize(p, Action{Method: "GET", Path: p.User.Name}); !got.Allowed() || got.Rule.Path != p.User.Name {
							t.Errorf("revision %d: got %+v for %s", d.Revision(), got, p.User.Name)
							return
						}
					}
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for revision := range int64(500) {
		current.Store(with(t, current.Load(), change(revision+1)))
	}
	close(done)
	readers.Wait()
}

// TestShards compares the map behind a directory with Go's own.
func TestShards(t *testing.T) {
	var s shards[int, string]
	if _, ok := s.get(1); ok || s.len() != 0 {
		t.Error("the zero value is not empty")
	}
	want := make(map[int]string)
	for round := range 20 {
		old, before := s, s.len()
		e := s.edit()
		for i := range 300 {
			key := (round*131 + i*7) % 1500
			if i%3 == 0 {
				e.remove(key)
				delete(want, key)
			} else {
				e.set(key, fmt.Sprint(round, i))
				want[key] = fmt.Sprint(round, i)
			}
			if got, ok := e.get(key); got != want[key] || ok != (i%3 != 0) {
				t.Fatalf("round %d, key %d: got %q, %v, want %q", round, key, got, ok, want[key])
			}
		}
		s = e.done()
		got := make(map[int]string)
		s.each(func(k int, v string) { got[k] = v })
		if !reflect.DeepEqual(got, want) || s.len() != len(want) || old.len() != before {
			t.Fatalf("round %d: got %d entries, want %d; the version before has %d, want %d", round, len(got), len(want), old.len(), before)
		}
	}
}

// TestRules: what a service user may know about itself are the rules that would
// decide, whatever the mode of its other groups and the narrowing of its token.
func TestRules(t *testing.T) {
	observing := group(t, "g3", "deny GET /seen")
	observing.Mode = Observe
	last := group(t, "g1", "allow GET /b", "deny GET /c")
	last.Name = "z"
	narrowed := user(2, "g1", "g2", "g3")
	narrowed.Tokens[0].Groups = []string{"g2"}
	d := with(t, NewDirectory(Peppers{}, "g4"), Changes{
		Revision: 1,
		Groups: []Group{
			last, group(t, "g2", "allow GET /a"), observing,
			group(t, "g4", "allow GET /d", "deny GET /e"), group(t, "g5", "allow GET /f", "deny GET /g"),
		},
		Users: []User{user(1, "g1", "g2", "g3"), narrowed, user(3)},
	})
	for n, want := range map[int]string{
		1: "allow GET /a; allow GET /d; deny GET /e; allow GET /b; deny GET /c",
		2: "allow GET /a; deny GET /e; deny GET /c",
		3: "allow GET /d; deny GET /e",
	} {
		var texts []string
		for _, r := range d.Rules(enter(t, d, login(n))) {
			texts = append(texts, r.String())
		}
		expect(t, fmt.Sprint("the rules of user ", n), strings.Join(texts, "; "), want)
	}
	if got := d.Rules(Principal{}); got != nil {
		t.Errorf("the rules of nobody: got %v", got)
	}
}
