package access

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"
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
			fmt.Fprintf(&b, "%s %s %s %v, %d members\n", g.ID, g.Name, g.Mode, g.Rules, d.MemberCount(id))
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

// groupOf is a group that those are in who meet the condition.
func groupOf(tb testing.TB, id, condition string, texts ...string) Group {
	g := group(tb, id, texts...)
	g.Condition = condition
	return g
}

// labelled is user n with the label env, and an alias.
func labelled(n int, env string, groups ...string) User {
	u := aliased(n, fmt.Sprint("alias_", n), groups...)
	u.Labels = map[string]string{"env": env}
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
	failing := groupOf(t, "g2", `user.labels.none == ""`, "allow GET /b", "deny GET /x")
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
		"tokens exchanged":  {Users: []User{{Profile: Profile{ID: "service_1", Role: Member, Active: true}, Tokens: []Token{token(2)}}, {Profile: Profile{ID: "service_2", Role: Member, Active: true}, Tokens: []Token{token(1)}}}},
		"a removed group":   {RemovedGroups: []string{"g1"}},
		"a group renamed":   {Groups: []Group{renamed}},
		"a group observing": {Groups: []Group{observing}},
		"other rules":       {Groups: []Group{group(t, "g1", "deny GET /{rest...}")}},
		"a condition":       {Groups: []Group{groupOf(t, "g2", `user.name == "user 1"`, "allow GET /b", "deny GET /x")}},
		"one that fails":    {Groups: []Group{failing}},
		"a rule's own":      {Groups: []Group{group(t, "g1", `allow GET /{x} when params.x == "b"`)}},
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
	// Nor does With use room behind the users, for those that a condition moves.
	spare := make([]User, 1, 8)
	spare[0] = user(2)
	with(t, d, Changes{Groups: []Group{groupOf(t, "g3", "true")}, Users: spare})
	if u := spare[:2][1]; u.ID != "" {
		t.Errorf("With wrote %s behind the changes it was given", u.ID)
	}
	if u := c.Users[0]; u.groupSetID != 0 || u.Groups[0] != "g9" || u.Tokens[0].Groups[0] != "g9" {
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
	when := func(condition string) Changes {
		g := group(t, "g2", "allow GET /a", "deny GET /b")
		g.Rules[1].ID, g.Rules[1].When = "rule_2", condition
		return Changes{Revision: 8, Groups: []Group{group(t, "g1"), g}, RemovedUsers: []string{"service_1"}}
	}
	members := func(condition string) Changes {
		return Changes{Revision: 8, Groups: []Group{group(t, "g1"), groupOf(t, "g2", condition)}, RemovedUsers: []string{"service_1"}}
	}
	for _, row := range []struct {
		changes Changes
		want    string
	}{
		{Changes{Revision: 6, RemovedUsers: []string{"service_1"}}, "revision 6 is older than 7, which is in force"},
		{Changes{}, "revision 0 is older than 7"},
		{Changes{Revision: 8, RemovedUsers: []string{"service_1"}, Groups: []Group{group(t, "g2"), badRule}}, `permission group g1, rule rule_1: path "/a%20b": write it decoded`},
		{Changes{Revision: 8, Groups: []Group{badMode}}, `permission group g1: mode "audit" is neither "enforce" nor "observe"`},
		{Changes{Revision: 8, Groups: []Group{{ID: "g1"}}}, `permission group g1: mode ""`},
		{Changes{Revision: 8, Groups: []Group{{Name: "x", Mode: Enforce}}}, `permission group "x" has no id`},
		{when(`user.name ==`), `permission group g2, rule rule_2: condition "user.name =="`},
		{when(`user.name`), `permission group g2, rule rule_2: condition "user.name" is a string, and must be true or false`},
		{when(`params.id == "7"`), `permission group g2, rule rule_2: condition "params.id == \"7\"": the path has no {id}`},
		{when(` true`), "write it without white space around it"},
		{members(`user.name ==`), `permission group g2: condition "user.name =="`},
		{members(`user.teams`), `permission group g2: condition "user.teams" is a list(string), and must be true or false`},
		{members(`request.method == "GET"`), `permission group g2: condition "request.method == \"GET\""`},
		{members(`now > timestamp(0)`), `permission group g2: condition "now > timestamp(0)"`},
		{members(` `), "write it without white space around it"},
		{change(user(1), func(u *User) { u.Role = "root" }), `service user "service_1": role "root" is none of admin, manager, member`},
		{change(user(1), func(u *User) { u.Role = "" }), `role "" is none of`},
		{change(user(1), func(u *User) { u.ID = "" }), `service user ""`},
		{change(user(1), func(u *User) { u.Tokens[0].Hash = Hash{} }), "service user service_1, token token_1: the hash is empty"},
		{change(user(1), func(u *User) { u.Alias = "alias_2" }), "service users service_2 and service_1 have the same alias"},
		{Changes{Revision: 8, Users: []User{aliased(4, "same"), aliased(5, "same")}}, "service users service_4 and service_5 have the same alias"},
		{Changes{Revision: 8, Users: []User{aliased(4, "one"), aliased(4, "two")}}, "service user service_4 appears twice in the changes"},
		{Changes{Revision: 8, Users: []User{user(1), user(1)}}, "service user service_1 appears twice in the changes"},
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
	return p.ID()
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
	unnamed := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{named("g1", "", "allow GET /a")}, Users: []User{user(1)}})
	expect(t, "no default group, and one without a name", may(unnamed, 1, "GET /a"), "no_rule")
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

// described lists memberships as "group source".
func described(list []Membership) string {
	var texts []string
	for _, m := range list {
		texts = append(texts, m.Group.ID+" "+string(m.Source))
	}
	return strings.Join(texts, ", ")
}

// memberList lists the members of a group as "user source".
func memberList(d *Directory, group string) string {
	var texts []string
	d.Members(group, func(u *User, source Source) { texts = append(texts, u.ID+" "+string(source)) })
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

func TestMemberships(t *testing.T) {
	everyone := groupOf(t, "g5", `user.labels.env == "all"`)
	everyone.Name = "everyone"
	last := group(t, "g1")
	last.Name = "zebra"
	d := with(t, NewDirectory(Peppers{}, "everyone"), Changes{
		Groups: []Group{
			last, everyone, group(t, "g2"), groupOf(t, "g3", `user.labels.env == "prod"`), groupOf(t, "g4", `!(user.labels.env == "prod")`),
		},
		Users: []User{user(1), user(2, "g1", "g2", "g3"), labelled(3, "prod", "g2", "unknown"), labelled(4, "test", "g5"), labelled(5, "all", "g4", "g4")},
	})
	for n, want := range map[int]string{
		1: "g5 default, g3 doubt, g4 doubt",
		2: "g5 default, g2 name, g3 name, g4 doubt, g1 name",
		3: "g5 default, g2 name, g3 condition",
		4: "g5 name, g4 condition",
		5: "g5 condition, g4 name",
	} {
		u, _ := d.User(login(n).ID)
		expect(t, fmt.Sprint("the groups of user ", n), described(d.Memberships(u)), want)
		stranger := *u
		stranger.ID, stranger.groupSetID = "service_99", 0
		expect(t, fmt.Sprint("the groups of a user like ", n), described(d.Memberships(&stranger)), want)
	}
	for id, want := range map[string]string{
		"g1": "service_2 name",
		"g2": "service_2 name, service_3 name",
		"g3": "service_2 name, service_3 condition",
		"g4": "service_4 condition, service_5 name",
		"g5": "service_4 name, service_5 condition",
		"g9": "", "": "", "unknown": "",
	} {
		expect(t, "the members of "+id, memberList(d, id), want)
		if got := d.MemberCount(id); got != len(strings.Fields(want))/2 {
			t.Errorf("%s: got %d members, want %q", id, got, want)
		}
	}
	for n, want := range map[int][]string{1: {"g5"}, 2: {"g1", "g2", "g3", "g5"}, 3: {"g2", "g3", "g5"}, 4: {"g4", "g5"}, 5: {"g4", "g5"}} {
		u, _ := d.User(login(n).ID)
		if got := d.EffectiveGroups(u); !slices.Equal(got, want) {
			t.Errorf("the effective groups of user %d: got %q, want %q", n, got, want)
		}
	}
	if g := d.DefaultGroup(); g == nil || g.ID != "g5" {
		t.Errorf("the default group: got %v, want g5", g)
	}
	if g := start(t).DefaultGroup(); g != nil {
		t.Errorf("the default group: got %v, want none", g)
	}
	var ids []string
	d.Users(func(u *User) { ids = append(ids, u.ID) })
	for _, g := range d.Groups() {
		ids = append(ids, g.ID)
	}
	slices.Sort(ids)
	expect(t, "all of them", strings.Join(ids, " "), "g1 g2 g3 g4 g5 service_1 service_2 service_3 service_4 service_5")
}

// TestConditionOfMembership: who meets the condition of a group is in it, from
// when one of them changes.
func TestConditionOfMembership(t *testing.T) {
	const prod, test, rules = `user.labels.env == "prod"`, `user.labels.env == "test"`, "allow GET /g"
	narrowed := labelled(2, "prod")
	narrowed.Tokens[0].Groups = []string{"g1"}
	named := labelled(4, "test", "g1")
	named.Tokens[0].Groups = []string{"g1"}
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Revision: 1,
		Groups: []Group{groupOf(t, "g1", prod, rules), group(t, "g2", "allow GET /other")},
		Users:  []User{labelled(1, "prod"), narrowed, labelled(3, "test"), named},
	})
	check := func(what string, d *Directory, want string) {
		t.Helper()
		var in []string
		for n := range 7 {
			if may(d, n, "GET /g") == "granted" {
				in = append(in, fmt.Sprint(n))
			}
			if _, ok := d.User(login(n).ID); !ok {
				continue
			}
			for _, id := range []string{login(n).ID, fmt.Sprint("alias_", n), ""} {
				expect(t, fmt.Sprintf("%s: user %d as %q", what, n, id), who(d, id, n), login(n).ID)
			}
		}
		expect(t, what, strings.Join(in, " "), want)
	}
	check("at first", d, "1 2 4")
	expect(t, "the name of the group", enter(t, d, login(2)).GroupList(), "g1")

	joined := with(t, d, Changes{Revision: 2, Users: []User{labelled(5, "prod"), labelled(6, "test")}})
	check("a user created later", joined, "1 2 4 5")
	relabelled := with(t, joined, Changes{Revision: 3, Users: []User{labelled(1, "test"), labelled(3, "prod")}})
	check("other labels", relabelled, "2 3 4 5")
	check("other labels, before", joined, "1 2 4 5")

	turned := with(t, joined, Changes{Revision: 3, Groups: []Group{groupOf(t, "g1", test, rules)}})
	check("another condition", turned, "3 4 6")
	check("another condition, before", joined, "1 2 4 5")
	check("and back", with(t, turned, Changes{Revision: 4, Groups: []Group{groupOf(t, "g1", prod, rules)}}), "1 2 4 5")
	check("with a user that changes in the same step", with(t, joined, Changes{Revision: 3,
		Groups: []Group{groupOf(t, "g1", test, rules)}, Users: []User{labelled(1, "test"), labelled(6, "prod")}, RemovedUsers: []string{"service_2", "service_3"},
	}), "1 4")
	less := with(t, joined, Changes{Revision: 3, Groups: []Group{groupOf(t, "g1", test, rules)}, RemovedUsers: []string{"service_1", "service_3"}})
	check("with users that go in the same step", less, "4 6")
	expect(t, "one of them, who was in it", who(less, "service_1", 1), "unknown_id")
	expect(t, "one of them, who would be in it", who(less, "", 3), "wrong_secret")
	check("everybody", with(t, joined, Changes{Revision: 3, Groups: []Group{groupOf(t, "g1", "true", rules)}}), "1 2 3 4 5 6")
	check("nobody", with(t, joined, Changes{Revision: 3, Groups: []Group{groupOf(t, "g1", "false", rules)}}), "4")
	none := with(t, joined, Changes{Revision: 3, Groups: []Group{group(t, "g1", rules)}})
	check("no condition", none, "4")
	check("a condition again", with(t, none, Changes{Revision: 4, Groups: []Group{groupOf(t, "g1", test, rules)}}), "3 4 6")
	check("other rules only", with(t, joined, Changes{Revision: 3, Groups: []Group{groupOf(t, "g1", prod, "allow GET /x", rules)}}), "1 2 4 5")
	check("another group's condition", with(t, joined, Changes{Revision: 3, Groups: []Group{groupOf(t, "g2", test, rules)}}), "1 2 3 4 5 6")

	// A group that is gone has no members, and one that comes back has its own.
	gone := with(t, joined, Changes{Revision: 3, RemovedGroups: []string{"g1"}})
	check("a group that is gone", gone, "")
	expect(t, "its members", memberList(gone, "g1"), "")
	if got := gone.MemberCount("g1"); got != 0 {
		t.Errorf("its members: got %d, want 0", got)
	}
	check("back with its condition", with(t, gone, Changes{Revision: 4, Groups: []Group{groupOf(t, "g1", prod, rules)}}), "1 2 4 5")
	check("back with another condition", with(t, gone, Changes{Revision: 4, Groups: []Group{groupOf(t, "g1", test, rules)}}), "3 4 6")
	check("back without a condition", with(t, gone, Changes{Revision: 4, Groups: []Group{group(t, "g1", rules)}}), "4")
	check("another one", with(t, gone, Changes{Revision: 4, Groups: []Group{group(t, "g3", rules)}}), "")
	check("gone and back at once", with(t, joined, Changes{Revision: 3, RemovedGroups: []string{"g1"}, Groups: []Group{groupOf(t, "g1", test, rules)}}), "3 4 6")
}

// TestMembershipInDoubt: where it cannot be said whether a user is in a group, its
// denies hold and its allows do not.
func TestMembershipInDoubt(t *testing.T) {
	const prod = `user.labels.env == "prod"`
	texts := []string{"allow GET /a", "deny GET /x"}
	groups := []Group{groupOf(t, "g1", prod, texts...), group(t, "g2", "allow * /{rest...}")}
	narrowed := user(3, "g2")
	narrowed.Tokens[0].Groups = []string{"g1"}
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Revision: 1, Groups: groups, Users: []User{
		user(1), user(2, "g2"), narrowed, labelled(4, "test", "g2"), labelled(5, "prod", "g2"), user(6, "g1", "g2"),
	}})
	for _, row := range []struct {
		n                int
		allowed, refused string
		list             string
	}{
		{1, "no_rule", "denied_by_rule", ""},
		{2, "granted", "denied_by_rule", "g2"},
		{3, "no_rule", "denied_by_rule", ""},
		{4, "granted", "granted", "g2"},
		{5, "granted", "denied_by_rule", "g1,g2"},
		{6, "granted", "denied_by_rule", "g1,g2"}, // named, so there is no doubt
	} {
		expect(t, fmt.Sprint("the allow, user ", row.n), may(d, row.n, "GET /a"), row.allowed)
		expect(t, fmt.Sprint("the deny, user ", row.n), may(d, row.n, "GET /x"), row.refused)
		expect(t, fmt.Sprint("the groups, user ", row.n), enter(t, d, login(row.n)).GroupList(), row.list)
	}
	// A label, or another condition, removes the doubt; and brings it.
	expect(t, "labelled", may(with(t, d, Changes{Revision: 2, Users: []User{labelled(2, "test", "g2")}}), 2, "GET /x"), "granted")
	sure := with(t, d, Changes{Revision: 2, Groups: []Group{groupOf(t, "g1", `has(user.labels.env) && `+prod, texts...)}})
	expect(t, "another condition", may(sure, 2, "GET /x"), "granted")
	expect(t, "another condition", may(sure, 5, "GET /x"), "denied_by_rule")
	expect(t, "and back", may(with(t, sure, Changes{Revision: 3, Groups: groups}), 2, "GET /x"), "denied_by_rule")
	expect(t, "none", may(with(t, d, Changes{Revision: 2, Groups: []Group{group(t, "g1", texts...)}}), 2, "GET /x"), "granted")
	gone := with(t, d, Changes{Revision: 2, RemovedGroups: []string{"g1"}})
	expect(t, "gone", may(gone, 2, "GET /x"), "granted")
	expect(t, "back without a condition", may(with(t, gone, Changes{Revision: 3, Groups: []Group{group(t, "g1", texts...)}}), 2, "GET /x"), "granted")
	// Everybody is in the default group, whatever its condition.
	everyone := with(t, NewDirectory(Peppers{}, "g1"), Changes{Groups: groups, Users: []User{user(1), labelled(4, "test")}})
	for _, n := range []int{1, 4} {
		expect(t, fmt.Sprint("the default group, user ", n), may(everyone, n, "GET /a"), "granted")
		expect(t, fmt.Sprint("the default group, user ", n), may(everyone, n, "GET /x"), "denied_by_rule")
	}
	renamed := groups[0]
	renamed.Name = "another name"
	named := with(t, everyone, Changes{Revision: 2, Groups: []Group{renamed}})
	expect(t, "no default group any more, in doubt", may(named, 1, "GET /a"), "no_rule")
	expect(t, "no default group any more, in doubt", may(named, 1, "GET /x"), "denied_by_rule")
	expect(t, "no default group any more, not in it", may(named, 4, "GET /x"), "no_rule")
}

// TestPrincipal: a service user is known without a credential, with what would
// keep it from authenticating.
func TestPrincipal(t *testing.T) {
	const now = 1000
	there := netip.MustParseAddr("10.0.0.1")
	only := []netip.Prefix{netip.PrefixFrom(there, 32)}
	u := user(1, "g1", "g2")
	change := func(id string, f func(*Token)) {
		k := token(len(u.Tokens) + 1)
		k.ID = id
		f(&k)
		u.Tokens = append(u.Tokens, k)
	}
	change("narrowed", func(k *Token) { k.Groups = []string{"g2"} })
	change("revoked", func(k *Token) { k.Revoked = true })
	change("expired", func(k *Token) { k.ExpiresAt = now })
	change("early", func(k *Token) { k.NotBefore = now + 1 })
	change("homely", func(k *Token) { k.AllowedIPs = only })
	change("homely and expired", func(k *Token) { k.AllowedIPs, k.ExpiresAt = only, now })
	inactive, expired, homely := user(2, "g1"), user(3, "g1"), user(4, "g1")
	inactive.Active = false
	expired.ExpiresAt = now
	homely.AllowedIPs = only
	homely.Tokens[0].ExpiresAt = now
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Groups: []Group{group(t, "g1", "allow GET /a"), group(t, "g2", "allow GET /b", "deny GET /x")},
		Users:  []User{u, inactive, expired, homely, aliased(5, "alias_5")},
	})
	for _, row := range []struct {
		id, token string
		address   netip.Addr
		want      Reason
		list      string
		may       string // of GET /a, GET /b, GET /x
	}{
		{"service_1", "", netip.Addr{}, Granted, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "", here, Granted, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "token_1", here, Granted, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "narrowed", here, Granted, "g2", "no_rule granted denied_by_rule"},
		{"service_1", "revoked", here, TokenRevoked, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "expired", here, TokenExpired, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "early", here, TokenNotYet, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "homely", there, Granted, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "homely", here, TokenAddress, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "homely", netip.Addr{}, Granted, "g1,g2", "granted granted denied_by_rule"},
		{"service_1", "homely and expired", netip.Addr{}, TokenExpired, "g1,g2", "granted granted denied_by_rule"},
		{"service_2", "", here, UserInactive, "g1", "granted no_rule no_rule"},
		{"service_2", "token_2", here, UserInactive, "g1", "granted no_rule no_rule"},
		{"service_3", "", here, UserExpired, "g1", "granted no_rule no_rule"},
		{"service_4", "", there, Granted, "g1", "granted no_rule no_rule"},
		{"service_4", "", here, UserAddress, "g1", "granted no_rule no_rule"},
		{"service_4", "", netip.Addr{}, Granted, "g1", "granted no_rule no_rule"},
		{"service_4", "token_4", netip.Addr{}, TokenExpired, "g1", "granted no_rule no_rule"},
		{"service_5", "", here, Granted, "", "no_rule no_rule no_rule"},

		{"service_99", "", here, UnknownID, "", ""},
		{"alias_5", "", here, UnknownID, "", ""}, // an alias is for logins
		{"", "", here, UnknownID, "", ""},
		{"service_1", "token_99", here, TokenRevoked, "", ""},
		{"service_1", "token_2", here, TokenRevoked, "", ""}, // of another user
	} {
		p, why := d.Principal(row.id, row.token, row.address, now)
		if why != row.want || p.GroupList() != row.list {
			t.Errorf("%s with %q from %v: got %v in %q, want %v in %q", row.id, row.token, row.address, why, p.GroupList(), row.want, row.list)
		}
		if row.may == "" {
			if p.ID() != "" || p.row != nil || p.groups != nil {
				t.Errorf("%s with %q: got %v, want nobody", row.id, row.token, p)
			}
			continue
		}
		var may []string
		for _, request := range []string{"GET /a", "GET /b", "GET /x"} {
			may = append(may, d.Authorize(p, action(request)).Reason.String())
		}
		expect(t, row.id+" with "+row.token, strings.Join(may, " "), row.may)
		if p.ID() != row.id || p.TokenID() != row.token {
			t.Errorf("%s with %q: got %v with %v", row.id, row.token, p, p.TokenID())
		}
	}
}

// TestPrincipalOfAnother: a principal that a directory does not know gets nothing
// from it, whatever its groups are called there.
func TestPrincipalOfAnother(t *testing.T) {
	d := start(t)
	other := with(t, NewDirectory(Peppers{}, "g1"), Changes{
		Groups: []Group{group(t, "g1", "allow * /{rest...}"), group(t, "g2", "allow * /{rest...}")},
		Users:  []User{user(3, "g2"), user(2, "g1"), user(1, "g1", "g2")},
	})
	for n := range 3 {
		p := enter(t, d, login(n+1))
		if got := other.Authorize(p, action("GET /b")); got != (Decision{Reason: NoRule}) {
			t.Errorf("user %d in another store: got %+v", n+1, got)
		}
		if got := other.Rules(p); got != nil {
			t.Errorf("user %d in another store: got the rules %v", n+1, got)
		}
	}
	// Two successors of one directory do not know each other's.
	left := with(t, d, Changes{Revision: 8, Users: []User{user(4, "g2")}})
	right := with(t, d, Changes{Revision: 8, Groups: []Group{group(t, "g3", "allow * /{rest...}")}, Users: []User{user(4, "g3")}})
	if got := right.Authorize(enter(t, left, login(4)), action("GET /b")); got != (Decision{Reason: NoRule}) {
		t.Errorf("in a sibling: got %+v", got)
	}
	// Nor is one made by hand anybody.
	if got := d.Authorize(Principal{row: rowOf(user(1))}, action("GET /a")); got != (Decision{Reason: NoRule}) {
		t.Errorf("made by hand: got %+v", got)
	}
	// A successor knows it, with the rules that are in force now.
	next := with(t, d, Changes{Revision: 8, Groups: []Group{group(t, "g1", "allow GET /new")}, Users: []User{user(1), user(5, "g1", "g3")}})
	p := enter(t, d, login(1))
	expect(t, "in a successor, an allow from before", next.Authorize(p, action("GET /a")).Reason.String(), "no_rule")
	expect(t, "in a successor, an allow from now", next.Authorize(p, action("GET /new")).Reason.String(), "granted")
	again, why := next.Resume(p, here, 1000)
	if why != Granted {
		t.Fatal(why)
	}
	expect(t, "resumed in a successor", next.Authorize(again, action("GET /new")).Reason.String(), "no_rule")
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
// built. What is read is of one revision: user, group and conditions change together.
func TestReadersAndWriter(t *testing.T) {
	change := func(revision int64) Changes {
		path := fmt.Sprintf("/r%d", revision)
		u := aliased(1, "alias_1")
		u.Name = path
		u.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		g := groupOf(t, "g1", fmt.Sprintf("user.name == %q", path), fmt.Sprintf("allow GET /{x} when params.x == %q && user.name == request.path", path[1:]))
		return Changes{Revision: revision, Groups: []Group{g}, Users: []User{u, user(2+int(revision)%50, "g1")}}
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
						if why != Granted || p.Name() != fmt.Sprintf("/r%d", d.Revision()) {
							t.Errorf("revision %d, id %q: got %v, %v", d.Revision(), id, p, why)
							return
						}
						if got := d.Authorize(p, Action{Method: "GET", Path: p.Name()}); !got.Allowed() || !strings.Contains(got.Rule.When, strconv.Quote(p.Name()[1:])) {
							t.Errorf("revision %d: got %+v for %s", d.Revision(), got, p.Name())
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
	if _, ok := s.get(1); ok {
		t.Error("the zero value is not empty")
	}
	all := func(s shards[int, string]) map[int]string {
		entries := make(map[int]string)
		if s.table != nil {
			for _, shard := range s.table {
				maps.Copy(entries, shard)
			}
		}
		return entries
	}
	want := make(map[int]string)
	for round := range 20 {
		old, before := s, maps.Clone(want)
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
		if got, is := all(s), all(old); !maps.Equal(got, want) || !maps.Equal(is, before) {
			t.Fatalf("round %d: got %d entries, want %d; the version before has %d, want %d", round, len(got), len(want), len(is), len(before))
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
			last, group(t, "g2", "allow GET /a when user.labels.env == \"prod\""), observing,
			groupOf(t, "g6", `user.labels.env == "prod"`, "allow GET /h", "deny GET /i"),
			group(t, "g4", "allow GET /d", "deny GET /e"), group(t, "g5", "allow GET /f", "deny GET /g"),
		},
		Users: []User{user(1, "g1", "g2", "g3"), narrowed, user(3), labelled(4, "prod"), labelled(5, "test")},
	})
	for n, want := range map[int]string{
		1: `allow GET /a when user.labels.env == "prod"; allow GET /d; deny GET /e; deny GET /i; allow GET /b; deny GET /c`,
		2: `allow GET /a when user.labels.env == "prod"; deny GET /e; deny GET /i; deny GET /c`,
		3: "allow GET /d; deny GET /e; deny GET /i", // in doubt about g6
		4: "allow GET /d; deny GET /e; allow GET /h; deny GET /i",
		5: "allow GET /d; deny GET /e",
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

// Users that several goroutines hand over are the same as those of one.
func TestEditAtOnce(t *testing.T) {
	groups := []Group{group(t, "g", "allow GET /v1/{id}"), group(t, "h"), groupOf(t, "c", `user.name.endsWith("7")`, "allow GET /v2/{id}")}
	const users, at = 5000, 100
	one := func(n int) User {
		u := user(n, []string{"g", "h"}[:n%3]...)
		u.Alias = fmt.Sprint("alias-", n)
		if n%5 == 0 {
			u.Tokens[0].Groups = []string{"h"}
		}
		return u
	}
	edit, err := NewDirectory(Peppers{}, "g").Edit(7)
	if err == nil {
		err = edit.Groups(groups, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for first := 0; first < users; first += at {
		wait.Go(func() {
			var part []User
			for n := range at {
				part = append(part, one(first+n))
			}
			if err := edit.Users(part, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	d, err := edit.Done()
	if err != nil {
		t.Fatal(err)
	}
	if d.Len() != users {
		t.Errorf("got %d service users, want %d", d.Len(), users)
	}
	for n := range users {
		want := one(n)
		for _, login := range []string{want.ID, want.Alias} {
			got, why := d.Authenticate(Credential{ID: login, Secret: secret(n)}, here, 0)
			if why != Granted || got.Name() != want.Name || !slices.Equal(got.Token().Groups, want.Tokens[0].Groups) {
				t.Fatalf("%s: got %+v, %s, want %+v", login, got, why, want)
			}
			u, _ := d.User(login)
			ids := d.EffectiveGroups(u)
			if in := slices.Contains(ids, "c"); in != (n%10 == 7) || slices.Contains(ids, "h") != (n%3 == 2) || !slices.Contains(ids, "g") {
				t.Fatalf("%s: got the groups %q", login, ids)
			}
		}
	}
	if got := d.MemberCount("h"); got != users/3 {
		t.Errorf("got %d members of h, want %d", got, users/3)
	}
	again, err := NewDirectory(Peppers{}, "").Edit(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(again.Users([]User{user(1)}, nil), again.Users([]User{user(1)}, nil)); err == nil || !strings.Contains(err.Error(), "service_1 appears twice") {
		t.Errorf("the same user in two parts: got %v, want a refusal", err)
	}
}

// A version holds on to none before it, whatever has changed and whoever has
// been decided for.
func TestOldVersionsAreForgotten(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, "g"), Changes{
		Groups: []Group{group(t, "g", "allow GET /v1/{id}"), groupOf(t, "h", `user.role == "member"`, "allow GET /v2/{id}")},
		Users:  []User{user(1, "g"), user(2)},
	})
	const versions = 20
	var gone atomic.Int32
	for n := range versions {
		runtime.AddCleanup(d, func(int) { gone.Add(1) }, 0)
		d.Authorize(enter(t, d, login(1)), action("GET /v1/7"))
		changed := user(1, "g")
		changed.DisplayName = fmt.Sprint(n)
		c := Changes{Users: []User{changed, user(n+3, "g")}}
		if n%2 == 0 {
			c.Groups = []Group{group(t, "g", "allow GET /v1/{id}", fmt.Sprintf("deny GET /v%d", n))}
		}
		if n%3 == 0 {
			c.Groups = append(c.Groups, groupOf(t, "h", fmt.Sprintf(`user.name != "%d"`, n), "allow GET /v2/{id}"))
		}
		d = with(t, d, c)
	}
	collect(func() bool { return gone.Load() == versions })
	if got := gone.Load(); got < versions-1 {
		t.Errorf("of %d old versions %d are gone", versions, got)
	}
	runtime.KeepAlive(d)
}

// A principal that is alone is the same, and keeps the rows of no other.
func TestAlone(t *testing.T) {
	var gone atomic.Bool
	alone := func() Principal {
		u := user(1, "g", "h")
		u.Tokens = append(u.Tokens, token(2))
		u.Tokens[1].Groups, u.Tokens[1].ExpiresAt = []string{"h"}, 2000
		d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g"), group(t, "h")}, Users: []User{u}})
		p := enter(t, d, Credential{u.ID, secret(2)})
		runtime.AddCleanup(unsafe.SliceData(d.users.shards.at(idHash(u.ID)%spreadSize).arena), func(int) { gone.Store(true) }, 0)
		alone := p.Alone()
		if !reflect.DeepEqual(alone, p) || !reflect.DeepEqual(alone.Token(), p.Token()) {
			t.Errorf("got %+v, want %+v", alone, p)
		}
		if p, _ := d.Principal(u.ID, "", here, 1000); !reflect.DeepEqual(p.Alone(), p) {
			t.Errorf("without a token: got %+v, want %+v", p.Alone(), p)
		}
		return alone
	}()
	collect(gone.Load)
	if !gone.Load() {
		t.Error("the rows of others are kept")
	}
	if got := alone.Name() + " " + alone.TokenID() + " " + alone.GroupList(); got != user(1).Name+" token_2 h" {
		t.Errorf("got %q", got)
	}
	if got := (Principal{}).Alone(); got.ID() != "" || got.row != nil {
		t.Errorf("nobody: got %+v", got)
	}
}

// An id has one spelling. (Read as digits of base 62, "_" is as much as "Y".)
func TestIDsHaveOneSpelling(t *testing.T) {
	u := user(1)
	u.ID = "service_3MQkTyLfBmwNcJuBTVeoYRG1ZkP"
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Users: []User{u}})
	for _, id := range []string{strings.Replace(u.ID, "Y", "_", 1), strings.Replace(u.ID, "3", "@", 1), u.ID[:len(u.ID)-1] + "-"} {
		if got, ok := d.User(id); ok {
			t.Errorf("%s: got the user %s, want none", id, got.ID)
		}
	}
	if _, ok := d.User(u.ID); !ok {
		t.Errorf("got no user %s", u.ID)
	}

	// Each of these is the id of a token, as it is written, and of that one alone.
	const id = "token_3MQkTyLfBmwNcJuBTVeoYRG1ZkP"
	spellings := []string{
		id, strings.Replace(id, "Y", "_", 1), strings.Replace(id, "3", "@", 1), id[:len(id)-1] + "-", id[:len(id)-1], id + "P",
		"token_" + strings.Repeat("z", 27), "token_" + strings.Repeat("0", 27), "token_", "3MQkTyLfBmwNcJuBTVeoYRG1ZkP", string(make([]byte, 20)),
	}
	for i, own := range spellings {
		u.Tokens = []Token{token(i)}
		u.Tokens[0].ID = own
		d = with(t, d, Changes{Users: []User{u}})
		if p := enter(t, d, Credential{u.ID, secret(i)}); p.TokenID() != own || p.Token().ID != own {
			t.Errorf("got the token %q, want %q", p.TokenID(), own)
		}
		for _, other := range spellings {
			if _, why := d.Principal(u.ID, other, here, 1000); (why == Granted) != (other == own) {
				t.Errorf("the token %q: got %s for %q", own, why, other)
			}
		}
	}
}

// Hashes that belong to one part of the index, many of them to the same place in it,
// are found, however many there are, and whichever are taken out.
func TestHashesSideBySide(t *testing.T) {
	const users = 60
	hash := func(n int) (h Hash) {
		h[31] = 1 // it must not be empty
		place := []uint64{0, 1, 1<<32 - 1}[n%3]
		binary.LittleEndian.PutUint64(h[:], place<<32|uint64(n)*spreadSize)
		return h
	}
	d := NewDirectory(Peppers{}, "")
	check := func(known func(int) bool) {
		t.Helper()
		if part := d.users.hashes.at(0); !slices.Contains(part.slots, 0) {
			t.Fatalf("none of %d slots is free: a search would not end", len(part.slots))
		}
		for n := range users + 3 { // three are nobody's
			h := hash(n)
			if row := d.users.owner(&h); (row != nil) != known(n) || row != nil && !row.idIs(user(n).ID) {
				t.Fatalf("hash %d of %d: got the row %q", n, d.Len(), row)
			}
		}
	}
	for n := range users {
		u := user(n)
		u.Tokens[0].Hash = hash(n)
		d = with(t, d, Changes{Users: []User{u}})
		check(func(other int) bool { return other <= n })
	}
	gone := make(map[int]bool)
	for i := range users {
		n := i * 7 % users
		gone[n] = true
		d = with(t, d, Changes{RemovedUsers: []string{user(n).ID}})
		check(func(other int) bool { return other < users && !gone[other] })
	}
}

// A directory keeps nothing of the memory that users came in: their texts are often
// cut out of one that holds a thousand of them.
func TestTextsAreCopied(t *testing.T) {
	var gone atomic.Bool
	d := func() *Directory {
		text := string([]byte("service_1 alias-1 token_1 name-1 team-1 group-1 group-2 group-3" + strings.Repeat(" ", 1<<10)))
		runtime.AddCleanup(unsafe.StringData(text), func(int) { gone.Store(true) }, 0)
		f := strings.Fields(text)
		u := User{Profile: Profile{ID: f[0], Alias: f[1], Name: f[3], DisplayName: f[3], Owner: f[3], Role: Member, Teams: f[4:5], Labels: map[string]string{f[4]: f[3]}}, Groups: f[5:6]}
		u.Tokens = []Token{{ID: f[2], Hash: token(1).Hash, Groups: f[6:7]}, {ID: f[2], Hash: token(2).Hash, Groups: f[6:8]}}
		return with(t, NewDirectory(Peppers{}, ""), Changes{Users: []User{u}})
	}()
	collect(gone.Load)
	if !gone.Load() {
		t.Error("the text that a service user came in is kept")
	}
	if u, ok := d.User("alias-1"); !ok || u.ID != "service_1" || !slices.Equal(u.Groups, []string{"group-1"}) {
		t.Errorf("got %+v, %t", u, ok)
	}
}
