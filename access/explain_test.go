package access

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// whole says everything about an explanation but its groups.
func whole(e Explanation) string {
	var b strings.Builder
	fmt.Fprint(&b, e.Reason)
	if e.Rule != nil {
		fmt.Fprintf(&b, " by %q of %s (%s)", *e.Rule, e.Group.ID, e.Source)
	}
	for _, c := range e.Considered {
		fmt.Fprintf(&b, "\n%s (%s) %q", c.Group.ID, c.Source, *c.Rule)
		if c.Applies {
			b.WriteString(" applies")
		}
		if c.Why != "" {
			b.WriteString(": " + c.Why)
		}
	}
	if e.Nearest != nil {
		fmt.Fprintf(&b, "\nnearest %q", *e.Nearest.Rule)
	}
	if e.Grant != "" {
		fmt.Fprintf(&b, "\ngrant %q", e.Grant)
	}
	return b.String()
}

// TestExplainWhy: what is said of one rule that does not apply.
func TestExplainWhy(t *testing.T) {
	for _, row := range []struct{ rule, request, want string }{
		{"allow POST,PUT /a", "GET /a", "the method GET is not among POST,PUT"},
		{"allow * /a", "PROPFIND /a", "the method PROPFIND is not among GET,HEAD,POST,PUT,PATCH,DELETE,OPTIONS"},
		{"deny HEAD /a", "GET /a", "the method GET is not among HEAD"},
		{"allow GET h.example/a", "GET x.example/a", `the host "x.example" is not h.example`},
		{"allow GET *.h.example/a", "GET y.x.h.example/a", `the host "y.x.h.example" is not *.h.example`},
		{"deny GET *.h.example/a", "GET h.example/a", `the host "h.example" is not *.h.example`},
		{"allow GET h.example/a", "GET /a", `the host "" is not h.example`},

		{"allow GET /a/b", "GET /a/c", `the path has "c" where /a/b has "b"`},
		{"allow GET /a/b", "GET /A/b", `the path has "A" where /a/b has "a"`},
		{"allow GET /a/b/c", "GET /x/b/y", `the path has "x" where /a/b/c has "a"`},
		{"allow GET /{x}/b", "GET /a/c", `the path has "c" where /{x}/b has "b"`},
		{"allow GET /a/b", "GET /a", "the path is shorter than /a/b"},
		{"allow GET /a/", "GET /a", "the path is shorter than /a/"},
		{"allow GET /a/{rest...}", "GET /a", "the path is shorter than /a/{rest...}"},
		{"allow GET /a", "GET /a/", "the path is longer than /a"},
		{"allow GET /a", "GET /a/b/c", "the path is longer than /a"},
		{"allow GET /{x}", "GET /", "the path has nothing where /{x} has {x}"},
		{"allow GET /a/{id}", "GET /a/", "the path has nothing where /a/{id} has {id}"},
		{"allow GET /a/{rest...}", "GET /b/c", `the path has "b" where /a/{rest...} has "a"`},
		{"allow GET /a b/é", "GET /a b/É", `the path has "É" where /a b/é has "é"`},
		{"deny GET /A/b", "GET /a/c", `the path has "c" where /A/b has "b"`},
		{"deny GET /a/É/x", "GET /A/é/", `the path has "" where /a/É/x has "x"`},
		{"deny GET /a/{x}", "GET /a/", `the path has nothing where /a/{x} has {x}`},
		{"deny GET /a/{x}", "GET /A", `the path is shorter than /a/{x}`},

		{`allow GET /a when user.role == "admin"`, "GET /a", `its condition does not hold: user.role == "admin"`},
		{`deny GET /a when user.role == "admin"`, "GET /a", `its condition does not hold: user.role == "admin"`},
		{`allow GET /a when user.labels.x == "y"`, "GET /a", "its condition cannot be evaluated: no such key: x"},
		{`allow GET /{x} when params.x == "1" && user.labels[params.x] == "y"`, "GET /1", "its condition cannot be evaluated: no such key: 1"},
		{`allow GET /{rest...} when user.labels[params.rest] == "y"`, "GET /a/b", "its condition cannot be evaluated: no such key: a/b"},
		{`allow GET /a when request.header("X-Long") == ""`, "GET /a", "its condition cannot be evaluated: a condition cannot read a value of more than 2048 bytes"},
		{`allow GET /b when user.labels.x == "y"`, "GET /a", `the path has "a" where /b has "b"`},

		{"allow POST h.example/a", "GET x.example/b/c", `the method GET is not among POST; the host "x.example" is not h.example; the path has "b" where /a has "a"`},
		{`allow POST h.example/a when false`, "GET x.example/a", `the method GET is not among POST; the host "x.example" is not h.example; its condition does not hold: false`},
	} {
		a := action(row.request)
		a.Header = asking.Header
		d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g", row.rule)}, Users: []User{user(1, "g")}})
		e := d.Explain(enter(t, d, login(1)), a, nil)
		if len(e.Considered) != 1 || e.Considered[0].Applies || e.Considered[0].Why != row.want || e.Reason != NoRule {
			t.Errorf("%s, %s: got %v, want %q", row.rule, row.request, whole(e), row.want)
		}
	}
}

// TestExplain: the whole of some explanations.
func TestExplain(t *testing.T) {
	observing, conditional, doubtful, everyone := group(t, "observing", "allow GET /o", "deny GET /d"), group(t, "conditional", "allow GET /c"), group(t, "doubtful", "allow GET /x", "deny GET /y"), group(t, "everyone", "allow GET /e")
	observing.Mode, conditional.Condition, doubtful.Condition = Observe, `user.role == "manager"`, `user.labels.env == "prod"`
	u := user(1, "g", "observing")
	u.Role = Manager
	narrow := token(2)
	narrow.Groups = []string{"conditional"}
	u.Tokens = append(u.Tokens, narrow)
	d := with(t, NewDirectory(Peppers{}, "everyone"), Changes{Users: []User{u}, Groups: []Group{
		group(t, "g", "allow GET /a/{id}", "deny GET /a/2", "allow * /d"), observing, conditional, doubtful, everyone,
	}})
	for _, row := range []struct {
		what, token, request, want string
	}{
		{"an allow", "", "GET /a/1", `
granted by "allow GET /a/{id}" of g (name)
g (name) "allow GET /a/{id}" applies
g (name) "deny GET /a/2": the path has "1" where /a/2 has "2"
doubtful (doubt) "deny GET /y": the path has "a" where /y has "y"
observing (name) "deny GET /d": the path has "a" where /d has "d"
conditional (condition) "allow GET /c": the path has "a" where /c has "c"
doubtful (doubt) "allow GET /x": the path has "a" where /x has "x"
everyone (default) "allow GET /e": the path has "a" where /e has "e"
g (name) "allow * /d": the path has "a" where /d has "d"
observing (name) "allow GET /o": the path has "a" where /o has "o"`},
		{"a deny", "", "GET /a/2", `
denied_by_rule by "deny GET /a/2" of g (name)
g (name) "deny GET /a/2" applies
g (name) "allow GET /a/{id}" applies: a deny wins
nearest "allow GET /a/{id}"`},
		{"a deny in doubt", "", "GET /y", `
denied_by_rule by "deny GET /y" of doubtful (doubt)
doubtful (doubt) "deny GET /y" applies
nearest "allow GET /c"`},
		{"an allow in doubt", "", "GET /x", `
no_rule
doubtful (doubt) "allow GET /x": the permission group's condition of membership cannot be evaluated, so its allows do not apply
nearest "allow GET /x"
grant "allow GET /x"`},
		{"observing", "", "GET /o", `
no_rule
observing (name) "allow GET /o": the permission group only observes
nearest "allow GET /o"
grant "allow GET /o"`},
		{"an observing deny", "", "GET /d", `
granted by "allow * /d" of g (name)
observing (name) "deny GET /d": the permission group only observes`},
		{"the default group", "", "GET /e", `
granted by "allow GET /e" of everyone (default)`},
		{"a condition of membership", "", "GET /c", `
granted by "allow GET /c" of conditional (condition)`},
		{"a narrowed token", "token_2", "GET /c", `
granted by "allow GET /c" of conditional (condition)`},
		{"a narrowed token, elsewhere", "token_2", "GET /a/1", `
no_rule
g (name) "allow GET /a/{id}": the token is restricted to other permission groups
nearest "allow GET /a/{id}"
grant "allow GET /a/1"`},
		{"a narrowed token, in the default group", "token_2", "GET /e", `
no_rule
everyone (default) "allow GET /e": the token is restricted to other permission groups
nearest "allow GET /e"
grant "allow GET /e"`},
		{"a narrowed token and a deny", "token_2", "GET /a/2", `
denied_by_rule by "deny GET /a/2" of g (name)
g (name) "deny GET /a/2" applies
g (name) "allow GET /a/{id}": the token is restricted to other permission groups
nearest "allow GET /a/{id}"`},
	} {
		p, why := d.Principal(u.ID, row.token, here, 0)
		if why != Granted {
			t.Fatal(why)
		}
		got := whole(d.Explain(p, action(row.request), nil))
		for _, line := range strings.Split(row.want, "\n")[1:] {
			if !slices.Contains(strings.Split(got, "\n"), line) {
				t.Errorf("%s: got\n%s\nwant the line\n%s", row.what, got, line)
			}
		}
		if row.what == "an allow" && got != row.want[1:] {
			t.Errorf("%s: got\n%s\nwant%s", row.what, got, row.want)
		}
		if strings.Contains(got, "grant") != strings.Contains(row.want, "grant") || strings.Contains(got, "nearest") != strings.Contains(row.want, "nearest") {
			t.Errorf("%s: got\n%s\nwant%s", row.what, got, row.want)
		}
	}
	stranger := enter(t, with(t, NewDirectory(Peppers{}, ""), Changes{Users: []User{user(9)}}), login(9))
	for _, p := range []Principal{{}, stranger} {
		if got, want := d.Explain(p, action("GET /a/1"), nil), (Explanation{Decision: Decision{Reason: NoRule}}); !reflect.DeepEqual(got, want) {
			t.Errorf("%q, whom it does not know: got %+v, want %+v", p, got, want)
		}
	}
}

// TestExplainBudget: what costs too much together is told, also where each would do
// by itself.
func TestExplainBudget(t *testing.T) {
	when := costly["labels"]
	c, err := ParseWhen(when)
	if err != nil {
		t.Fatal(err)
	}
	many := int(conditionBudget/c.cost) + 1
	denies := slices.Repeat([]string{"deny GET /a when " + when}, many)
	allows := append(slices.Repeat([]string{"allow GET /b when " + when}, many), "allow GET /b when true")
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g", append(append(denies, allows...), "allow GET /a")...)}, Users: []User{user(1, "g")}})
	p := enter(t, d, login(1))
	if got := d.Explain(p, action("GET /a"), nil); got.Reason != DeniedByRule || !got.Considered[0].Applies || got.Considered[0].Rule != got.Rule {
		t.Errorf("denies: got %s", whole(got))
	}
	e := d.Explain(p, action("GET /b"), nil)
	want := "the conditions for this request cost more than 50000"
	if e.Reason != NoRule || e.Nearest == nil || e.Nearest.Rule.When == "true" && e.Nearest.Why != want {
		t.Errorf("allows: got %s", whole(e))
	}
	if i := slices.IndexFunc(e.Considered, func(c Considered) bool { return c.Rule.When == "true" }); e.Considered[i].Applies || e.Considered[i].Why != want {
		t.Errorf("the allow that is not reached: got %+v, want %q", e.Considered[i], want)
	}
}

// TestNearest: the allow that comes closest is the one with the fewest differences.
func TestNearest(t *testing.T) {
	for _, row := range []struct {
		request string
		rules   []string
		want    string
	}{
		{"GET /a/b/c", nil, ""},
		{"GET /a/b/c", []string{"deny GET /a/b"}, ""},
		{"GET /a/b/c", []string{"allow GET /x/y/z", "allow GET /a/y/z", "allow GET /a/b/z", "allow GET /x"}, "allow GET /a/b/z"},
		{"GET /a/b/c", []string{"allow POST /a/b/c/d", "allow POST /a/b/c"}, "allow POST /a/b/c"},
		{"GET x.example/a", []string{"allow POST h.example/a", "allow GET h.example/a", "deny POST /a"}, "allow GET h.example/a"},
		{"GET /a/b/c/d", []string{"allow GET /a", "allow GET /a/b", "allow GET /a/b/c"}, "allow GET /a/b/c"},
		{"GET /a", []string{"allow GET /a/b/c", "allow GET /a/b", "allow GET /a/b/c/d"}, "allow GET /a/b"},
		{"GET /a", []string{"allow GET /b/c/{rest...}", "allow GET /a/c/{rest...}", "allow GET /a/{rest...}"}, "allow GET /a/{rest...}"},
		{"GET /a", []string{"allow GET /b", "allow GET /c"}, "allow GET /b"}, // the first of two
		{"GET /a", []string{"allow GET /b", `allow GET /a when user.role == "admin"`}, `allow GET /a when user.role == "admin"`},
		{"GET /a", []string{"allow GET /{x}", "deny GET /a"}, "allow GET /{x}"},
		{"GET /a", []string{"allow GET /a"}, ""},
	} {
		d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g", row.rules...)}, Users: []User{user(1, "g")}})
		got := ""
		if e := d.Explain(enter(t, d, login(1)), action(row.request), nil); e.Nearest != nil {
			got = e.Nearest.Rule.String()
		}
		if got != row.want {
			t.Errorf("%s, %q: got %q, want %q", row.request, row.rules, got, row.want)
		}
	}
}

// TestExplainOtherGroups: those that would allow it, were the user in them.
func TestExplainOtherGroups(t *testing.T) {
	observing, conditional, doubtful := group(t, "observing", "allow GET /a"), group(t, "conditional", "allow GET /a"), group(t, "doubtful", "allow GET /a")
	observing.Mode, conditional.Condition, doubtful.Condition = Observe, `user.role == "admin"`, `user.labels.env == "prod"`
	narrow := user(2, "own")
	narrow.Tokens[0].Groups = []string{"own", "z", "denying"}
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Groups: []Group{
			group(t, "own", "allow GET /b"), group(t, "z", "allow GET /a"), group(t, "a", "allow * /{x}"), group(t, "denying", "allow GET /a", "deny * /A/"),
			group(t, "other", "allow GET /c"), group(t, "when", `allow GET /a when user.name == "user 1"`), group(t, "when not", `allow GET /a when user.name == "somebody"`),
			observing, conditional, doubtful,
		},
		Users: []User{user(1, "own"), narrow},
	})
	names := func(n int, a string, groups func(*Group) bool) string {
		p := enter(t, d, login(n))
		var names []string
		for _, g := range d.Explain(p, action(a), groups).Groups {
			names = append(names, g.Name)
		}
		return strings.Join(names, ", ")
	}
	for _, row := range []struct{ what, got, want string }{
		{"GET /a", names(1, "GET /a", nil), "a, conditional, when, z"},
		{"a narrowed token", names(2, "GET /a", nil), "z"},
		{"what is allowed", names(1, "GET /b", nil), ""},
		{"what nothing allows", names(1, "GET /b/c", nil), ""},
		{"in some groups", names(1, "GET /a", func(g *Group) bool { return g.Name > "b" }), "conditional, when, z"},
		{"in none", names(1, "GET /a", func(g *Group) bool { return false }), ""},
	} {
		if row.got != row.want {
			t.Errorf("%s: got %q, want %q", row.what, row.got, row.want)
		}
	}
}

// TestExplainAgrees: the verdict is the one of Authorize, and the rest fits to it.
func TestExplainAgrees(t *testing.T) {
	t.Parallel()
	seen := make(map[string]int)
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		d := w.directory(t)
		shown := drawIDs.Draw(t, "shown")
		for _, u := range w.users {
			for _, tok := range u.Tokens {
				p, _ := d.Principal(u.ID, tok.ID, netip.Addr{}, 0)
				for _, a := range drawActions(t)[:4] {
					e := d.Explain(p, a, nil)
					wrong := func(what string) {
						t.Helper()
						t.Fatalf("%s: %s, %v:\n%s\nin\n%s", what, u.ID, a, whole(e), w)
					}
					seen[e.Reason.String()]++
					if e.Decision != d.Authorize(p, a) {
						wrong("another verdict")
					}
					w.checkExplanation(d, u, e, wrong)
					w.checkRemedies(t, d, u, tok, a, e, func(what string) { seen[what]++ }, wrong)

					// Of another actor, the same without the groups that it must not see.
					sees := func(g *Group) bool { return slices.Contains(shown, g.ID) }
					part := d.Explain(p, a, sees)
					considered := slices.DeleteFunc(slices.Clone(e.Considered), func(c Considered) bool { return !sees(c.Group) })
					groups := slices.DeleteFunc(slices.Clone(e.Groups), func(g *Group) bool { return !sees(g) })
					if part.Decision != e.Decision || part.Source != e.Source || part.Grant != e.Grant || !slices.Equal(part.Considered, considered) || !slices.Equal(part.Groups, groups) {
						t.Fatalf("restricted to %q: got\n%s\nof\n%s", shown, whole(part), whole(e))
					}
					i := slices.IndexFunc(considered, func(c Considered) bool { return c.Rule.Effect == Allow })
					if e.Allowed() || i < 0 {
						if part.Nearest != nil {
							wrong("a nearest allow, restricted")
						}
					} else if part.Nearest == nil || *part.Nearest != considered[i] {
						wrong("another nearest allow, restricted")
					}
				}
			}
		}
	})
	for _, what := range []string{"granted", "no_rule", "denied_by_rule", "a grant", "a group", "no group"} {
		if seen[what] < 50 {
			t.Errorf("got %s %d times, want the draw to meet it often", what, seen[what])
		}
	}
}

// checkExplanation checks what is said of the rules against the verdict.
func (w world) checkExplanation(d *Directory, u User, e Explanation, wrong func(string)) {
	rules, allows, applied := 0, 0, true
	for _, m := range d.Memberships(&u) {
		rules += len(m.Group.Rules)
	}
	if len(e.Considered) != rules {
		wrong("not every rule was considered")
	}
	for _, c := range e.Considered {
		if c.Rule.Effect == Allow {
			allows++
		}
		if source := w.source(u, *c.Group); c.Source != source {
			wrong("another source than " + string(source))
		}
		if c.Applies && !applied {
			wrong("a rule that applies behind one that does not")
		}
		applied = c.Applies
		decides := c.Rule == e.Rule
		switch {
		case !c.Applies && (c.Why == "" || decides):
			wrong("a rule that does not apply for no reason")
		case !c.Applies:
		case c.Group.Mode != Enforce:
			wrong("an observing rule applies")
		case decides && c.Source != e.Source:
			wrong("another source of the deciding group")
		case c.Rule.Effect == Deny && e.Reason != DeniedByRule, c.Rule.Effect == Allow && e.Reason == NoRule:
			wrong("a rule that applies does not count")
		case (c.Rule.Effect == Allow && e.Reason == DeniedByRule) != (c.Why == "a deny wins"):
			wrong("why a rule that applies does not decide")
		}
	}
	decided := slices.ContainsFunc(e.Considered, func(c Considered) bool { return c.Rule == e.Rule && c.Applies })
	if decided != (e.Reason != NoRule) {
		wrong("the deciding rule is not among them")
	}
	if (e.Nearest != nil) != (!e.Allowed() && allows > 0) || e.Nearest != nil && e.Nearest.Rule.Effect != Allow {
		wrong("the nearest allow")
	}
}

// checkRemedies checks that the grant would do, and the membership in just the
// groups that are named.
func (w world) checkRemedies(t *rapid.T, d *Directory, u User, tok Token, a Action, e Explanation, met, wrong func(string)) {
	if (e.Grant != "") != (e.Reason == NoRule) || e.Reason != NoRule && e.Groups != nil {
		wrong("a grant")
	}
	if e.Grant == "" {
		return
	}
	reason := func(changed world) Reason {
		next := changed.with(t, d, changed.changes())
		p, _ := next.Principal(u.ID, tok.ID, netip.Addr{}, 0)
		return next.Authorize(p, a).Reason
	}
	grant, err := ParseRule(e.Grant)
	if err != nil {
		if validMethod(a.Method) {
			wrong("the grant is not a rule: " + err.Error())
		}
		return
	}
	for i, g := range w.groups {
		in := w.source(u, g)
		counts := g.Mode == Enforce && (tok.Groups == nil || slices.Contains(tok.Groups, g.ID))
		changed := w
		switch {
		case in != "" && in != InDoubt && counts:
			met("a grant")
			changed.groups = slices.Clone(w.groups)
			changed.groups[i].Rules = append(slices.Clone(g.Rules), grant)
			if got := reason(changed); got != Granted {
				wrong("with the grant in " + g.ID + ": " + got.String())
			}
		case in == "" && g.Mode == Enforce:
			n := slices.IndexFunc(w.users, func(other User) bool { return other.ID == u.ID })
			changed.users = slices.Clone(w.users)
			changed.users[n].Groups = append(slices.Clone(u.Groups), g.ID)
			named := slices.ContainsFunc(e.Groups, func(other *Group) bool { return other.ID == g.ID })
			met(map[bool]string{true: "a group", false: "no group"}[named])
			if got := reason(changed); (got == Granted) != named {
				wrong("as a member of " + g.ID + ": " + got.String())
			}
		default:
			if slices.ContainsFunc(e.Groups, func(other *Group) bool { return other.ID == g.ID }) {
				wrong("a group that would not do")
			}
		}
	}
}

func TestSmallestRule(t *testing.T) {
	parts := func(n int) string { return strings.Repeat("/a", n) }
	for _, row := range []struct{ method, path, want string }{
		{"GET", "/", "allow GET /"},
		{"HEAD", "/a", "allow HEAD /a"},
		{"PROPFIND", "/a/b/", "allow PROPFIND /a/b/"},
		{"GET", "/v1/people/7", "allow GET /v1/people/7"},
		{"GET", "/a b/é/日本/.well-known/x:y@z!$&'()+,=~_-", "allow GET /a b/é/日本/.well-known/x:y@z!$&'()+,=~_-"},
		{"GET", "/A/a", "allow GET /A/a"},
		// What a pattern cannot spell becomes a parameter.
		{"GET", "/{id}/a", "allow GET /{id}/a"},
		{"GET", "/{rest...}", "allow GET /{id}"},
		{"GET", "/x{/}y/z", "allow GET /{id}/{id2}/z"},
		{"GET", "/*/a*/*b/a*b", "allow GET /{id}/{id2}/{id3}/a*b"},
		{"GET", "/a when b/x when/when/when x", "allow GET /{id}/{id2}/when/when x"},
		{"GET", "/a\x00b/c", "allow GET /{id}/c"},
		{"GET", "/a;b/c", "allow GET /{id}/c"},
		{"GET", "/100%/c", "allow GET /{id}/c"},
		{"GET", "/a./c", "allow GET /{id}/c"},
		{"GET", "/e\u0301/c", "allow GET /{id}/c"},
		// And what a pattern has no room for.
		{"GET", parts(32), "allow GET " + parts(32)},
		{"GET", parts(31) + "/", "allow GET " + parts(31) + "/"},
		{"GET", parts(33), "allow GET " + parts(31) + "/{rest...}"},
		{"GET", parts(32) + "/", "allow GET " + parts(31) + "/{rest...}"},
		{"GET", parts(100), "allow GET " + parts(31) + "/{rest...}"},
		{"GET", "/a/" + strings.Repeat("b", 2047) + "/c", "allow GET /a/{id}/c"},
		{"GET", "/" + strings.Repeat("a", 1000) + "/" + strings.Repeat("b", 1000) + "/c", "allow GET /" + strings.Repeat("a", 1000) + "/{id}/c"},
		{"GET", "/{}" + strings.Repeat("/"+strings.Repeat("é", 31), 31), ""},
	} {
		got := SmallestRule(row.method, row.path)
		if got != row.want && row.want != "" {
			t.Errorf("%s %.80q: got %.120q, want %.120q", row.method, row.path, got, row.want)
		}
		if err := grants(got, Action{Method: row.method, Path: row.path}); err != nil {
			t.Errorf("%s %.80q: %v", row.method, row.path, err)
		}
	}
}

// grants reports what keeps a rule from allowing an action.
func grants(rule string, a Action) error {
	r, err := ParseRule(rule)
	if err != nil {
		return err
	}
	if r.String() != rule {
		return fmt.Errorf("%q is not in the canonical form", rule)
	}
	s, err := NewRuleset([]Rule{r})
	if err != nil {
		return err
	}
	q := ruleQuery{bit: methodBit(a.Method), user: noUser, action: a}
	if s.policy.allowed(&q, onlyGroup) == nil {
		return fmt.Errorf("%q does not cover it", rule)
	}
	return nil
}

// drawPath draws the path of a target that is accepted, at least when everything is
// relaxed, and that is long at times.
func drawPath(t *rapid.T) string {
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{
			"a", "b", "A", "7", "v1", "{", "}", "{id}", "{id2}", "{rest...}", "*", "**", " when ", "when", " ", ".", "..", "%2F", "%25", "%3B", ";", "%20", "-", "_", "~", "é", "日本", "e\u0301", "ß", "İ",
			"😀", "'", "\"", "<", ",", "=", ":", "@", "allow", "GET", "550e8400-e29b-41d4-a716-446655440000",
		}),
		rapid.StringMatching(`[a-z0-9]{1,12}`),
		rapid.StringMatching(`[\x20-\x{2ff}]{1,5}`),
	)
	segments := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
		if n := rapid.IntRange(0, 40).Draw(t, "long"); n == 40 {
			return strings.Repeat("x", rapid.IntRange(30, 2100).Draw(t, "length"))
		}
		return strings.Join(rapid.SliceOfN(piece, 1, 3).Draw(t, "pieces"), "")
	}), 0, 6).Draw(t, "segments")
	if rapid.IntRange(0, 9).Draw(t, "many") == 9 {
		segments = slices.Repeat(append(segments, "a"), rapid.IntRange(1, 15).Draw(t, "times"))
	}
	target := "/"
	for _, s := range segments {
		s = strings.NewReplacer(" ", "%20", "\"", "%22", "<", "%3C", ">", "%3E", "{", "%7B", "}", "%7D", "^", "%5E", "|", "%7C", "`", "%60", "[", "%5B", "]", "%5D", "/", "", "?", "", "#", "", "\\", "").Replace(s)
		var b strings.Builder
		for i := range len(s) {
			if s[i] < 0x80 {
				b.WriteByte(s[i])
			} else {
				fmt.Fprintf(&b, "%%%02X", s[i])
			}
		}
		next := target + b.String()
		if _, problem := (EncodedSlash | EncodedPercent | Semicolon | TrailingDot | NonNFC).CheckTarget(next + "/"); problem.OK() {
			target = next + "/"
		}
	}
	if len(target) > 1 && rapid.Bool().Draw(t, "no slash") {
		target = strings.TrimSuffix(target, "/")
	}
	path, problem := (EncodedSlash | EncodedPercent | Semicolon | TrailingDot | NonNFC).CheckTarget(target)
	if !problem.OK() {
		t.Fatalf("%q: %v", target, problem)
	}
	return path
}

// TestSmallestRuleOfAnyPath: the grant is a rule that covers the path, and it spells
// all that can be spelled.
func TestSmallestRuleOfAnyPath(t *testing.T) {
	exact, others := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		a := Action{Method: rapid.SampledFrom([]string{"GET", "POST", "PROPFIND", "M-SEARCH"}).Draw(t, "method"), Host: "h.example", Path: drawPath(t)}
		rule := SmallestRule(a.Method, a.Path)
		if err := grants(rule, a); err != nil {
			t.Fatalf("%q: %v", a.Path, err)
		}
		literal := "allow " + a.Method + " " + a.Path
		if strings.ContainsAny(a.Path, "{}") || len(a.Path) > 1700 {
			others++
			return
		}
		if _, err := ParseRule(literal); err == nil && !strings.Contains(a.Path, "when") {
			exact++
			if rule != literal {
				t.Fatalf("%q: got %q, want %q", a.Path, rule, literal)
			}
		} else {
			others++
		}
	})
	if exact < 5 || others < 5 {
		t.Errorf("got %d paths that can be spelled and %d others, want the draw to meet both", exact, others)
	}
}

// A deny whose condition cannot be evaluated applies, and says so.
func TestExplainDoubtfulDeny(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Revision: 1, Users: []User{user(1, "g")}, Groups: []Group{group(t, "g",
		"allow GET /{x}", `deny GET /a when user.labels.env == "prod"`, `deny GET /{x} when user.labels.env == "test"`,
	)}})
	e := d.Explain(enter(t, d, login(1)), Action{Method: "GET", Path: "/a"}, nil)
	const want = "its condition cannot be evaluated, so that the deny applies: no such key: env"
	for _, c := range e.Considered {
		if c.Rule.Effect == Deny && (!c.Applies || c.Why != want) {
			t.Errorf("%s: applies %t, because %q, want %q", c.Rule, c.Applies, c.Why, want)
		}
	}
	if e.Reason != DeniedByRule || len(e.Considered) != 3 {
		t.Errorf("got %s of %d rules", e.Reason, len(e.Considered))
	}
}

// TestExplainAsksBounded: however many conditions cover a request, an explanation asks a
// bounded part of them, and says of the others that it did not.
func TestExplainAsksBounded(t *testing.T) {
	costly := `user.name.contains("` + strings.Repeat("a", 100) + `b")` + strings.Repeat(` || user.name.matches("(a?){30}b`+`")`, 5)
	var texts []string
	for range 100 {
		texts = append(texts, "allow GET /{rest...} when "+costly)
	}
	c := Changes{Revision: 1, Users: []User{user(1)}}
	for i := range 4 {
		id := fmt.Sprint("group_", i)
		c.Groups, c.Users[0].Groups = append(c.Groups, group(t, id, texts...)), append(c.Users[0].Groups, id)
	}
	d := with(t, NewDirectory(Peppers{}, ""), c)
	cost := d.groups["group_0"].conditions[0].cost
	e := d.Explain(enter(t, d, login(1)), action("GET /a"), nil)
	asked, left := 0, 0
	for _, r := range e.Considered {
		switch {
		case strings.HasPrefix(r.Why, "its condition does not hold"):
			asked++
		case strings.HasPrefix(r.Why, "its condition is not evaluated"):
			left++
		default:
			t.Fatalf("got %q", r.Why)
		}
	}
	if asked+left != 400 || left == 0 || asked == 0 || uint64(asked-1)*3*cost > explainBudget {
		t.Errorf("got %d conditions of a cost of %d asked, %d not", asked, cost, left)
	}
}

// TestCountMembers: in one go as one by one.
func TestCountMembers(t *testing.T) {
	c := Changes{Revision: 1, Groups: []Group{group(t, "group_a", "allow GET /a"), group(t, "group_b", "allow GET /b"), groupOf(t, "group_c", `user.labels.env == "prod"`, "allow GET /c")}}
	for n := range 60 {
		env := "test"
		if n%4 == 0 {
			env = "prod"
		}
		u := labelled(n, env)
		if n%2 == 0 {
			u.Groups = append(u.Groups, "group_a")
		}
		if n%3 == 0 {
			u.Groups = append(u.Groups, "group_b", "group_x")
		}
		c.Users = append(c.Users, u)
	}
	d := with(t, NewDirectory(Peppers{}, ""), c)
	some := func(k *Sketch) bool { return string(k.ID) < "service_3" }
	counts := d.CountMembers([]string{"group_a", "group_c", "group_b", "group_x", "group_y"}, some)
	for _, id := range []string{"group_a", "group_b", "group_c", "group_x", "group_y"} {
		want := 0
		d.Members(id, func(u *User, _ Source) {
			if u.ID < "service_3" {
				want++
			}
		})
		if counts[id] != want || (want == 0) != (id > "group_d") {
			t.Errorf("%s: got %d, want %d", id, counts[id], want)
		}
	}
}
