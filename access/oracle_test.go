package access

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// oracle decides as section 3.4 of the design reads, with no tree and no sets:
// each rule of each group of the user against the request.
func oracle(groups []Group, memberOf, narrowed []string, defaultGroup string, a Action) Reason {
	answer := NoRule
	for _, g := range groups {
		if !slices.Contains(memberOf, g.ID) && g.Name != defaultGroup || g.Mode == Observe {
			continue
		}
		for _, r := range g.Rules {
			switch {
			case !oracleCovers(r, a):
			case r.Effect == Deny:
				return DeniedByRule // an explicit deny wins over any allow, whatever the order
			case len(narrowed) == 0 || slices.Contains(narrowed, g.ID):
				answer = Granted
			}
		}
	}
	return answer
}

func oracleCovers(r Rule, a Action) bool {
	star := "GET HEAD POST PUT PATCH DELETE OPTIONS"
	method := slices.ContainsFunc(r.Methods, func(m string) bool {
		return m == a.Method || m == "GET" && a.Method == "HEAD" ||
			m == "*" && (r.Effect == Deny || slices.Contains(strings.Fields(star), a.Method))
	})
	return method && oraclePattern(r).MatchString(a.Host+a.Path)
}

var oraclePatterns = make(map[string]*regexp.Regexp)

// oraclePattern is a rule's host and path as a regular expression.
func oraclePattern(r Rule) *regexp.Regexp {
	key := string(r.Effect) + r.Host + r.Path
	if known := oraclePatterns[key]; known != nil {
		return known
	}
	host := "[^/]*"
	if suffix, ok := strings.CutPrefix(r.Host, "*"); ok {
		host = "[^/.]+" + regexp.QuoteMeta(suffix)
		if r.Effect == Deny {
			host = "[^/]+" + regexp.QuoteMeta(suffix)
		}
	} else if r.Host != "" {
		host = regexp.QuoteMeta(r.Host)
	}
	path := ""
	for _, segment := range strings.Split(r.Path, "/")[1:] {
		switch {
		case strings.HasSuffix(segment, "...}") && r.Effect == Deny:
			path += "(/.*)?"
		case strings.HasSuffix(segment, "...}"):
			path += "/.*"
		case strings.HasSuffix(segment, "}"):
			path += "/[^/]+"
		default:
			path += "/" + regexp.QuoteMeta(segment)
		}
	}
	flags := "^"
	if r.Effect == Deny {
		flags, path = "(?i)^", strings.TrimSuffix(path, "/")+"/?"
	}
	made := regexp.MustCompile(flags + host + path + "$")
	oraclePatterns[key] = made
	return made
}

// world is a drawn store: groups, users in them, tokens narrowed or not.
type world struct {
	groups       []Group
	users        []User
	defaultGroup string
}

func drawWorld(t *rapid.T) world {
	w := world{defaultGroup: rapid.SampledFrom([]string{"", "g0", "absent"}).Draw(t, "default group")}
	ids := []string{"g0", "g1", "g2", "g3"}
	for _, id := range ids {
		w.groups = append(w.groups, Group{
			ID: id, Name: id,
			Mode:  rapid.SampledFrom([]Mode{Enforce, Enforce, Enforce, Observe}).Draw(t, "mode"),
			Rules: rapid.SliceOfN(rapid.Custom(drawRule), 2, 8).Draw(t, "rules"),
		})
	}
	some := rapid.SliceOfN(rapid.SampledFrom(append(ids, "unknown")), 1, 4)
	for n := range 3 {
		u := user(n, some.Draw(t, "groups")...)
		if n > 0 && rapid.Bool().Draw(t, "narrowed") {
			u.Tokens[0].Groups = some.Draw(t, "narrowing")
		}
		w.users = append(w.users, u)
	}
	return w
}

var drawAction = rapid.Custom(func(t *rapid.T) Action {
	path := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "a", "a", "A", "b", "é", "É", "a b"}), 0, 3).Draw(t, "segments"), "/")
	if path != "" && rapid.Bool().Draw(t, "slash") {
		path += "/"
	}
	return Action{
		Method: rapid.SampledFrom([]string{"GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS", "PROPFIND", "PURGE", "QUERY"}).Draw(t, "method"),
		Host:   rapid.SampledFrom([]string{"h", "h", "x.h", "x.h", "y.x.h", "xh"}).Draw(t, "host"),
		Path:   "/" + path,
	}
})

func (w world) directory(t *rapid.T) *Directory {
	d, err := NewDirectory(Peppers{}, w.defaultGroup).With(Changes{Revision: 1, Groups: w.groups, Users: w.users})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// answers asks d for each user and action.
func (w world) answers(t *rapid.T, d *Directory, actions []Action) (reasons []Reason) {
	for n := range w.users {
		p, why := d.Authenticate(login(n), here, 0)
		if why != Granted {
			t.Fatalf("user %d: got %v", n, why)
		}
		for _, a := range actions {
			reasons = append(reasons, d.Authorize(p, a).Reason)
		}
	}
	return reasons
}

func (w world) String() string {
	var b strings.Builder
	for _, g := range w.groups {
		fmt.Fprintf(&b, "%s (%s): %q\n", g.ID, g.Mode, g.Rules)
	}
	for _, u := range w.users {
		fmt.Fprintf(&b, "%s in %q, narrowed to %q\n", u.ID, u.Groups, u.Tokens[0].Groups)
	}
	return b.String() + "default group " + w.defaultGroup
}

// TestOracle compares the directory with the oracle, and then with itself after
// changes that must not matter or must matter in one direction only.
func TestOracle(t *testing.T) {
	count := make(map[Reason]int)
	property := func(t *rapid.T) {
		w := drawWorld(t)
		actions := rapid.SliceOfN(drawAction, 20, 20).Draw(t, "actions")
		before := w.answers(t, w.directory(t), actions)
		for i, got := range before {
			u, a := w.users[i/len(actions)], actions[i%len(actions)]
			if want := oracle(w.groups, u.Groups, u.Tokens[0].Groups, w.defaultGroup, a); got != want {
				t.Fatalf("%s, %v: got %v, want %v in\n%v", u.ID, a, got, want, w)
			}
			count[got]++
		}
		compare := func(what string, changed world, wrong func(before, after Reason) bool) {
			for i, after := range changed.answers(t, changed.directory(t), actions) {
				if wrong(before[i], after) {
					t.Fatalf("%s: %v became %v for %v in\n%v\n-- and then --\n%v", what, before[i], after, actions[i%len(actions)], w, changed)
				}
			}
		}
		widened := func(before, after Reason) bool { return after == Granted && before != Granted }
		different := func(before, after Reason) bool { return after != before }
		// edit copies the world and changes the rules of one group.
		chosen := rapid.IntRange(0, len(w.groups)-1).Draw(t, "chosen group")
		edit := func(f func([]Rule) []Rule) world {
			changed := w
			changed.groups = slices.Clone(w.groups)
			changed.groups[chosen].Rules = f(slices.Clone(w.groups[chosen].Rules))
			return changed
		}

		extra := drawRule(t)
		extra.Effect = Deny
		compare("adding a deny", edit(func(r []Rule) []Rule { return append(r, extra) }), widened)
		compare("removing the allows", edit(func(r []Rule) []Rule {
			return slices.DeleteFunc(r, func(r Rule) bool { return r.Effect == Allow })
		}), widened)
		if i := slices.IndexFunc(w.groups[chosen].Rules, func(r Rule) bool { return r.Effect == Allow }); i >= 0 {
			compare("removing an allow", edit(func(r []Rule) []Rule { return slices.Delete(r, i, i+1) }), widened)
		}
		extra.Effect = Allow
		compare("adding an allow", edit(func(r []Rule) []Rule { return append(r, extra) }), func(before, after Reason) bool {
			return before == DeniedByRule && after != before || before == Granted && after != before
		})

		shuffled := edit(func(r []Rule) []Rule { return rapid.Permutation(r).Draw(t, "rules") })
		shuffled.groups = rapid.Permutation(shuffled.groups).Draw(t, "groups")
		compare("another order", shuffled, different)

		// The same directory by steps: the groups in two changes, the users first.
		d := NewDirectory(Peppers{}, w.defaultGroup)
		for _, c := range []Changes{{Users: w.users}, {Groups: w.groups[chosen:]}, {Groups: w.groups[:chosen+1]}} {
			var err error
			if d, err = d.With(c); err != nil {
				t.Fatal(err)
			}
		}
		if after := w.answers(t, d, actions); !slices.Equal(before, after) {
			t.Fatalf("by steps: got %v, want %v in\n%v", after, before, w)
		}
	}
	for range 25 {
		rapid.Check(t, property)
	}
	for _, reason := range []Reason{Granted, NoRule, DeniedByRule} {
		if count[reason] < 10_000 {
			t.Errorf("got %v %d times, want the draw to meet it often", reason, count[reason])
		}
	}
}
