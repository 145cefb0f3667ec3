package access

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/serviceusers/caddy-service-users/internal/oracle"
)

// Package oracle decides with no tree, no sets and no CEL. The
// tests here compare a directory with it, or with itself after changes that must
// not matter or must matter in one direction only. Each draws a hundred stores;
//
//	go test ./access -run Oracle -rapid.checks=100000
//
// draws more of them.

// memberships are conditions of groups, whens of rules.
var memberships, whens = oracle.Memberships, oracle.Whens

// answer is a decision without the rules that it names.
type answer struct {
	reason Reason
	would  Effect
}

// oracle decides for a user whose token is narrowed to some groups, or not.
func (w world) oracle(u User, narrowed []string, a Action) answer {
	got := w.asOracle().Decide(oracleUser(u), narrowed, oracle.Action{
		Method: a.Method, Host: a.Host, Path: a.Path, Address: a.Address, Header: a.Header, Now: a.Now,
	})
	out := answer{reason: map[oracle.Verdict]Reason{oracle.Granted: Granted, oracle.Denied: DeniedByRule, oracle.NoRule: NoRule}[got.Verdict]}
	if got.WouldAllow {
		out.would = Allow
	} else if got.WouldDeny {
		out.would = Deny
	}
	return out
}

// source says how a user is in a group; "" is not at all.
func (w world) source(u User, g Group) Source {
	return Source(w.asOracle().Source(oracleUser(u), oracleGroup(g)))
}

func (w world) asOracle() oracle.World {
	o := oracle.World{DefaultGroup: w.defaultGroup}
	for _, g := range w.groups {
		o.Groups = append(o.Groups, oracleGroup(g))
	}
	return o
}

func oracleGroup(g Group) oracle.Group {
	o := oracle.Group{ID: g.ID, Name: g.Name, Observe: g.Mode == Observe, Condition: g.Condition}
	for _, r := range g.Rules {
		o.Rules = append(o.Rules, oracle.Rule{Deny: r.Effect == Deny, Methods: r.Methods, Host: r.Host, Path: r.Path, When: r.When})
	}
	return o
}

func oracleUser(u User) oracle.User {
	return oracle.User{Manager: u.Role == Manager, Teams: u.Teams, Labels: u.Labels, Groups: u.Groups}
}

// world is a drawn store: groups, and users with one token that is not narrowed
// and one that may be.
type world struct {
	groups       []Group
	users        []User
	defaultGroup string
}

const worldUsers = 3

var (
	worldGroups = []string{"g0", "g1", "g2", "g3"}
	drawIDs     = rapid.SliceOfNDistinct(rapid.SampledFrom(append(slices.Clone(worldGroups), "unknown")), 0, 4, rapid.ID)
	drawMode    = rapid.SampledFrom([]Mode{Enforce, Enforce, Observe})
	drawDefault = rapid.SampledFrom([]string{"", "everyone", "everyone", "absent"})
)

func drawWorld(t *rapid.T) world {
	w := world{defaultGroup: drawDefault.Draw(t, "default group")}
	everyone := rapid.IntRange(-1, len(worldGroups)-1).Draw(t, "everyone")
	for i, id := range worldGroups {
		g := drawGroup(t, id)
		if i == everyone {
			g.Name = "everyone"
		}
		w.groups = append(w.groups, g)
	}
	for n := range worldUsers {
		w.users = append(w.users, drawUser(t, n))
	}
	return w
}

func drawGroup(t *rapid.T, id string) Group {
	g := Group{ID: id, Name: id, Mode: drawMode.Draw(t, "mode"), Rules: rapid.SliceOfN(rapid.Custom(drawOracleRule), 2, 7).Draw(t, "rules")}
	if rapid.Bool().Draw(t, "conditional") {
		g.Condition = rapid.SampledFrom(memberships).Draw(t, "condition").Text
	}
	return g
}

func drawUser(t *rapid.T, n int) User {
	u := user(n, drawIDs.Draw(t, "groups")...)
	u.Alias = fmt.Sprint("alias_", n)
	narrow := token(n + 100)
	if narrow.Groups = drawIDs.Draw(t, "narrowing"); len(narrow.Groups) == 0 {
		narrow.Groups = nil
	}
	u.Tokens = append(u.Tokens, narrow)
	u.Role = rapid.SampledFrom([]Role{Member, Manager}).Draw(t, "role")
	u.Teams = rapid.SampledFrom([][]string{nil, {"ops"}, {"dev", "ops"}}).Draw(t, "teams")
	u.Labels = maps.Clone(rapid.SampledFrom([]map[string]string{
		nil, {"env": "prod"}, {"env": "prod", "home": "a"}, {"env": "test", "level": "2"}, {"home": "b", "level": "0"}, {"level": "high"},
	}).Draw(t, "labels"))
	return u
}

// drawOracleRule draws from an alphabet so small that rules overlap.
func drawOracleRule(t *rapid.T) Rule {
	r := Rule{
		Effect:  rapid.SampledFrom([]Effect{Allow, Allow, Allow, Deny}).Draw(t, "effect"),
		Methods: rapid.SampledFrom([][]string{{"*"}, {"*"}, {"*"}, {"GET"}, {"GET"}, {"GET"}, {"HEAD"}, {"POST"}, {"PROPFIND"}, {"GET", "PURGE"}, {"DELETE", "OPTIONS"}}).Draw(t, "methods"),
		Host:    rapid.SampledFrom([]string{"", "", "", "", "", "h.example", "x.h.example", "*.h.example"}).Draw(t, "host"),
	}
	segment := rapid.SampledFrom([]string{"a", "a", "a", "A", "é", "{}", "{}", "{}", "{}", "a b"})
	for i, s := range rapid.SliceOfN(segment, 0, 2).Draw(t, "segments") {
		r.Path += "/" + strings.Replace(s, "{}", fmt.Sprintf("{p%d}", i), 1)
	}
	r.Path += rapid.SampledFrom([]string{"/", "", "", "/{rest...}", "/{rest...}", "/{rest...}"}).Draw(t, "end")
	if r.Path == "" {
		r.Path = "/"
	}
	if rapid.IntRange(0, 2).Draw(t, "conditional") > 1 {
		r.When = drawWhen(t, r.Path)
	}
	return r
}

// drawWhen draws a condition that this path can have.
func drawWhen(t *rapid.T, path string) string {
	when := rapid.SampledFrom(whens).Draw(t, "when").Text
	if strings.Contains(when, "params.p0") && !strings.Contains(path, "{p0}") || strings.Contains(when, "params.rest") && !strings.Contains(path, "{rest...}") {
		return ""
	}
	return when
}

var drawAction = rapid.Custom(func(t *rapid.T) Action {
	path := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "a", "a", "a", "a", "A", "é", "É", "a b", "3", "7"}), 0, 3).Draw(t, "segments"), "/")
	if path != "" && rapid.Bool().Draw(t, "slash") {
		path += "/"
	}
	return Action{
		Method:  rapid.SampledFrom([]string{"GET", "GET", "GET", "GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS", "PROPFIND", "PURGE", "QUERY"}).Draw(t, "method"),
		Host:    rapid.SampledFrom([]string{"h.example", "h.example", "x.h.example", "x.h.example", "y.x.h.example", "xh.example"}).Draw(t, "host"),
		Path:    "/" + path,
		Address: rapid.SampledFrom([]netip.Addr{here, netip.MustParseAddr("10.0.0.1"), {}}).Draw(t, "address"),
		Header:  rapid.SampledFrom([]map[string][]string{nil, {"X-Env": {"prod"}}, {"X-Env": {"prod", "test"}}}).Draw(t, "header"),
		Now:     rapid.SampledFrom([]int64{1893455999, 1893456000}).Draw(t, "now"),
	}
})

func drawActions(t *rapid.T) []Action { return rapid.SliceOfN(drawAction, 12, 12).Draw(t, "actions") }

func (w world) String() string {
	var b strings.Builder
	for _, g := range w.groups {
		fmt.Fprintf(&b, "%s %q (%s, if %s): %q\n", g.ID, g.Name, g.Mode, g.Condition, g.Rules)
	}
	for _, u := range w.users {
		fmt.Fprintf(&b, "%s, a %s of %q with %q, in %q, narrowed to %q\n", u.ID, u.Role, u.Teams, u.Labels, u.Groups, u.Tokens[1].Groups)
	}
	return b.String() + "default group " + w.defaultGroup
}

// compiled are directories that know every condition, since compiling one takes
// longer than anything else here.
var compiled = make(map[string]*Directory)

// directory builds the store, not quite from nothing.
func (w world) directory(t *rapid.T) *Directory {
	if compiled[w.defaultGroup] == nil {
		var c Changes
		for _, id := range slices.Backward(worldGroups) { // another order than that of the ids
			g := Group{ID: id, Name: id, Mode: Enforce}
			for _, m := range whens {
				if m.Text != "" {
					g.Rules = append(g.Rules, Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/{p0}/{rest...}", When: m.Text})
				}
			}
			c.Groups = append(c.Groups, g)
		}
		compiled[w.defaultGroup] = w.with(t, NewDirectory(Peppers{}, w.defaultGroup), c)
	}
	return w.with(t, compiled[w.defaultGroup], w.changes())
}

func (w world) changes() Changes { return Changes{Groups: w.groups, Users: w.users} }

func (w world) with(t *rapid.T, d *Directory, c Changes) *Directory {
	next, err := d.With(c)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// answers asks d for each user, each of its tokens and each action, in this order.
func (w world) answers(t *rapid.T, d *Directory, actions []Action) (all []answer) {
	for n := range w.users {
		for _, c := range []Credential{login(n), {login(n).ID, secret(n + 100)}} {
			p, why := d.Authenticate(c, here, 0)
			if why != Granted {
				t.Fatalf("user %d: got %v", n, why)
			}
			for _, a := range actions {
				got := d.Authorize(p, a)
				all = append(all, answer{got.Reason, got.Would.Effect})
			}
		}
	}
	return all
}

// asking says what answer i is about.
func (w world) asking(i int, actions []Action) (u User, narrowed []string, a Action) {
	u = w.users[i/len(actions)/2]
	return u, u.Tokens[i/len(actions)%2].Groups, actions[i%len(actions)]
}

// TestOracle compares the directory with the oracle.
func TestOracle(t *testing.T) {
	count, total := make(map[answer]int), 0
	rapid.Check(t, func(t *rapid.T) {
		w, actions := drawWorld(t), drawActions(t)
		d := w.directory(t)
		for i, got := range w.answers(t, d, actions) {
			u, narrowed, a := w.asking(i, actions)
			if want := w.oracle(u, narrowed, a); got != want {
				t.Fatalf("%s, narrowed to %q, %v: got %v, want %v in\n%v", u.ID, narrowed, a, got, want, w)
			}
			count[got]++
			total++
		}
		w.checkMemberships(t, d)
	})
	for _, often := range []answer{{Granted, ""}, {Granted, Deny}, {NoRule, ""}, {NoRule, Allow}, {DeniedByRule, ""}} {
		if count[often]*500 < total {
			t.Errorf("got %v %d times in %d, want the draw to meet it often", often, count[often], total)
		}
	}
}

// checkMemberships compares who is in which group, and how.
func (w world) checkMemberships(t *rapid.T, d *Directory) {
	t.Helper()
	want, members := "", ""
	for _, id := range worldGroups {
		count := 0
		for _, g := range w.groups {
			if g.ID != id {
				continue
			}
			for _, u := range w.users {
				switch source := w.source(u, g); source {
				case "":
					continue
				case ByName, ByCondition:
					members += fmt.Sprintln(g.ID, u.ID, source)
					count++
				}
				want += fmt.Sprintln(u.ID, g.ID, w.source(u, g))
			}
		}
		if got := d.MemberCount(id); got != count {
			t.Fatalf("%s: got %d members, want %d in\n%v", id, got, count, w)
		}
	}
	got, gotMembers := "", ""
	for _, u := range w.users {
		stored, _ := d.User(u.ID)
		for _, m := range d.Memberships(stored) {
			got += fmt.Sprintln(u.ID, m.Group.ID, m.Source)
		}
	}
	for _, id := range append(slices.Clone(worldGroups), "unknown", "") {
		d.Members(id, func(u *User, source Source) { gotMembers += fmt.Sprintln(id, u.ID, source) })
	}
	if got, want := lines(got), lines(want); got != want {
		t.Fatalf("got the memberships\n%s\nwant\n%s\nin\n%v", got, want, w)
	}
	if got, want := lines(gotMembers), lines(members); got != want {
		t.Fatalf("got the members\n%s\nwant\n%s\nin\n%v", got, want, w)
	}
}

// lines sorts a text.
func lines(text string) string {
	list := strings.Split(text, "\n")
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// TestOracleMonotony changes one thing at a time.
func TestOracleMonotony(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, actions := drawWorld(t), drawActions(t)
		before := w.answers(t, w.directory(t), actions)
		compare := func(what string, changed world, wrong func(before, after answer) bool) {
			t.Helper()
			for i, after := range changed.answers(t, changed.directory(t), actions) {
				if wrong(before[i], after) {
					u, narrowed, a := w.asking(i, actions)
					t.Fatalf("%s: %v became %v for %s, narrowed to %q, %v in\n%v\n-- and then --\n%v", what, before[i], after, u.ID, narrowed, a, w, changed)
				}
			}
		}
		widened := func(before, after answer) bool { return after.reason == Granted && before.reason != Granted }
		narrowed := func(before, after answer) bool { return after.reason != Granted && before.reason == Granted }
		different := func(before, after answer) bool { return after != before }

		chosen := rapid.IntRange(0, len(w.groups)-1).Draw(t, "chosen group")
		// edit copies the world and changes one group.
		edit := func(f func(*Group)) world {
			changed := w
			changed.groups = slices.Clone(w.groups)
			g := &changed.groups[chosen]
			g.Rules = slices.Clone(g.Rules)
			f(g)
			return changed
		}
		rules := func(f func([]Rule) []Rule) world { return edit(func(g *Group) { g.Rules = f(g.Rules) }) }
		has := func(e Effect) bool {
			return slices.ContainsFunc(w.groups[chosen].Rules, func(r Rule) bool { return r.Effect == e })
		}

		extra := drawOracleRule(t)
		extra.Effect = Deny
		compare("adding a deny", rules(func(r []Rule) []Rule { return append(r, extra) }), widened)
		extra.Effect = Allow
		compare("adding an allow", rules(func(r []Rule) []Rule { return append(r, extra) }), func(before, after answer) bool {
			return narrowed(before, after) || before.reason == DeniedByRule && after != before
		})
		i := rapid.IntRange(0, len(w.groups[chosen].Rules)-1).Draw(t, "chosen rule")
		less := rules(func(r []Rule) []Rule { return slices.Delete(r, i, i+1) })
		failing := rules(func(r []Rule) []Rule { r[i].When = `user.labels.none == ""`; return r })
		always := rules(func(r []Rule) []Rule { r[i].When = ""; return r })
		if w.groups[chosen].Rules[i].Effect == Allow {
			compare("removing an allow", less, widened)
			compare("an allow without its condition", always, narrowed)
			compare("an allow with a condition that fails", failing, widened)
		} else {
			compare("removing a deny", less, narrowed)
			compare("a deny without its condition", always, widened)
			compare("a deny with a condition that fails", failing, widened)
		}

		// A group that begins to observe lifts nothing but its own denies and takes
		// nothing but its own allows.
		observing := edit(func(g *Group) { g.Mode = Observe })
		if !has(Deny) {
			compare("observing, without a deny", observing, widened)
		}
		if !has(Allow) {
			compare("observing, without an allow", observing, narrowed)
		}
		// What observing groups would do is what they do when they are enforced.
		enforced := w
		enforced.groups = slices.Clone(w.groups)
		for i := range enforced.groups {
			enforced.groups[i].Mode = Enforce
		}
		compare("enforcing", enforced, func(before, after answer) bool {
			switch {
			case after.would != "":
				return true
			case before.would == Deny || before.reason == DeniedByRule:
				return after.reason != DeniedByRule
			case before.would == Allow || before.reason == Granted:
				return after.reason != Granted
			}
			return after.reason == Granted
		})

		// Not to know who is in a group gives nobody more than to know it.
		compare("a condition of membership that fails", edit(func(g *Group) { g.Condition = `user.labels.none == ""` }), widened)
		unnamed := w
		unnamed.users = slices.Clone(w.users)
		for n := range unnamed.users {
			u := &unnamed.users[n]
			u.Tokens = slices.Clone(u.Tokens)
			u.Tokens[0].Groups = drawIDs.Filter(func(ids []string) bool { return len(ids) > 0 }).Draw(t, "narrowing")
		}
		compare("narrowing a token", unnamed, func(before, after answer) bool {
			return widened(before, after) || (before.reason == DeniedByRule) != (after.reason == DeniedByRule)
		})

		shuffled := rules(func(r []Rule) []Rule { return rapid.Permutation(r).Draw(t, "rules") })
		shuffled.groups = rapid.Permutation(shuffled.groups).Draw(t, "groups")
		compare("another order", shuffled, different)
	})
}

// TestOracleDeltas changes a directory again and again. It is the same as one
// that is built at once from what it came to.
func TestOracleDeltas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world{defaultGroup: drawDefault.Draw(t, "default group")}
		actions := drawActions(t)
		groups, users := make(map[string]Group), make(map[string]User)
		d := NewDirectory(Peppers{}, w.defaultGroup)
		revision := int64(0)
		apply := func(c Changes) {
			revision++
			c.Revision = revision
			for _, id := range c.RemovedGroups {
				delete(groups, id)
			}
			for _, g := range c.Groups {
				groups[g.ID] = g
			}
			for _, id := range c.RemovedUsers {
				delete(users, id)
			}
			for _, u := range c.Users {
				users[u.ID] = u
			}
			d = w.with(t, d, c)
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			var c Changes
			for range rapid.IntRange(1, 3).Draw(t, "changes") {
				drawChange(t, &c, groups, users)
			}
			apply(c)
		}

		w.groups, w.users = slices.Collect(maps.Values(groups)), nil
		for n := range worldUsers { // in the order that answers asks in
			u, ok := users[fmt.Sprint("service_", n)]
			if !ok {
				u = drawUser(t, n)
				apply(Changes{Users: []User{u}})
			}
			w.users = append(w.users, u)
		}
		once := w.with(t, NewDirectory(Peppers{}, w.defaultGroup), w.changes())
		if got, want := w.answers(t, d, actions), w.answers(t, once, actions); !slices.Equal(got, want) {
			t.Fatalf("by steps: got %v, want %v in\n%v", got, want, w)
		}
		w.checkMemberships(t, d)
		w.checkMemberships(t, once)
		for n, u := range w.users {
			for _, c := range []Credential{{u.Alias, secret(n)}, {"", secret(n)}, {u.Alias, secret(n + 100)}, {"", secret(n + 100)}} {
				p, why := d.Authenticate(c, here, 0)
				same, _ := once.Authenticate(c, here, 0)
				if why != Granted || p.ID() != u.ID || p.GroupList() != same.GroupList() || !sameRules(d.Rules(p), once.Rules(same)) {
					t.Fatalf("by steps: %q got %v, %s in %s with %v, want %s in %s with %v", c.ID, why, p, p.GroupList(), d.Rules(p), u.ID, same.GroupList(), once.Rules(same))
				}
			}
		}
	})
}

func sameRules(a, b []Rule) bool {
	return slices.EqualFunc(a, b, func(a, b Rule) bool { return a.String() == b.String() })
}

// drawChange adds one change that a store can make. At most one group has the
// name of the default group.
func drawChange(t *rapid.T, c *Changes, groups map[string]Group, users map[string]User) {
	id := rapid.SampledFrom(worldGroups).Draw(t, "group")
	n := rapid.IntRange(0, worldUsers-1).Draw(t, "user")
	if slices.ContainsFunc(c.Groups, func(g Group) bool { return g.ID == id }) || slices.ContainsFunc(c.Users, func(u User) bool { return u.ID == login(n).ID }) {
		return // it is in the changes already
	}
	g, known := groups[id]
	u, exists := users[login(n).ID]
	kind := rapid.SampledFrom([]string{"group", "group", "condition", "condition", "name", "mode", "removed group", "user", "user", "labels", "membership", "removed user"}).Draw(t, "change")
	switch kind {
	case "group":
		g = drawGroup(t, id)
	case "condition":
		g.Condition = rapid.SampledFrom(memberships).Draw(t, "condition").Text
	case "name":
		after := maps.Clone(groups)
		for _, other := range c.Groups {
			after[other.ID] = other
		}
		taken := slices.ContainsFunc(slices.Collect(maps.Values(after)), func(g Group) bool { return g.Name == "everyone" })
		if g.Name = id; !taken {
			g.Name = "everyone"
		}
	case "mode":
		g.Mode = drawMode.Draw(t, "mode")
	case "removed group":
		c.RemovedGroups = append(c.RemovedGroups, id)
	case "user":
		c.Users = append(c.Users, drawUser(t, n))
	case "labels":
		if fresh := drawUser(t, n); exists {
			u.Labels, u.Teams, u.Role = fresh.Labels, fresh.Teams, fresh.Role
			c.Users = append(c.Users, u)
		}
	case "membership":
		if exists {
			u.Groups = drawIDs.Draw(t, "groups")
			c.Users = append(c.Users, u)
		}
	case "removed user":
		c.RemovedUsers = append(c.RemovedUsers, login(n).ID)
	}
	if kind == "group" || known && (kind == "condition" || kind == "name" || kind == "mode") {
		c.Groups = append(c.Groups, g)
	}
}
