package access

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// rulesOf reads rules in the one-line form, one a line, with the ids r1, r2 ….
func rulesOf(tb testing.TB, text string) (rules []Rule) {
	tb.Helper()
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			r := group(tb, "", line).Rules[0]
			r.ID = fmt.Sprint("r", len(rules)+1)
			rules = append(rules, r)
		}
	}
	return rules
}

// TestWarnings: a row is a list of rules, and which of them do nothing because of
// which: "2<1" says that the second adds nothing to the first, "1-2" that the
// first never applies because the second denies it.
func TestWarnings(t *testing.T) {
	for _, row := range []struct{ rules, want string }{
		{"", ""},
		{"allow GET /a", ""},

		// An allow that is denied.
		{"allow GET /a\ndeny GET /a", "1-2"},
		{"deny GET /a\nallow GET /a", "2-1"},
		{"allow GET /a\ndeny GET /b", ""},
		{"allow GET /a\ndeny POST /a", ""},
		{"allow GET,POST /a\ndeny POST,GET,PUT /a", "1-2"},
		{"allow GET,POST /a\ndeny GET /a", ""},
		{"allow HEAD /a\ndeny GET /a", "1-2"},
		{"allow GET /a\ndeny HEAD /a", ""},
		{"allow * /a\ndeny * /a", "1-2"},
		{"allow * /a\ndeny GET,POST,PUT,PATCH,DELETE,OPTIONS /a", "1-2"},
		{"allow * /a\ndeny GET,POST,PUT,PATCH,DELETE /a", ""},
		{"allow PROPFIND /a\ndeny * /a", "1-2"},
		{"allow PROPFIND,PURGE /a\ndeny PURGE,PROPFIND /a", "1-2"},
		{"allow PROPFIND,PURGE /a\ndeny PROPFIND /a", ""},
		{"allow GET /a\ndeny GET /{x}", "1-2"},
		{"allow GET /{x}\ndeny GET /{y}", "1-2"},
		{"allow GET /{x}\ndeny GET /a", ""},
		{"allow GET /a/b\ndeny GET /{x}", ""},
		{"allow GET /a/b/c\ndeny GET /a/{x}/{y}", "1-2"},
		{"allow GET /a/{x}/c\ndeny GET /{y}/b/c", ""},
		{"allow GET /a/b\ndeny * /{rest...}", "1-2"},
		{"allow GET /{x}/{y}\ndeny * /{rest...}", "1-2"},
		{"allow GET /a/{rest...}\ndeny * /{rest...}", "1-2"},
		{"allow GET /a/{rest...}\ndeny GET /a/{all...}", "1-2"},
		{"allow GET /a/{rest...}\ndeny GET /a/{x}", ""},
		{"allow GET /a/{rest...}\ndeny GET /a/{x}/{rest...}", ""},
		{"allow GET /{x}/{rest...}\ndeny GET /a/{rest...}", ""},
		{"allow GET /\ndeny * /{rest...}", "1-2"},
		// The rest may be nothing at all in a deny.
		{"allow GET /a\ndeny GET /a/{rest...}", "1-2"},
		{"allow GET /{x}\ndeny GET /a/{rest...}", ""},
		{"allow GET /{x}\ndeny GET /{y}/{rest...}", "1-2"},
		// Letter case and the trailing slash do not count in a deny.
		{"allow GET /A/É\ndeny GET /a/é", "1-2"},
		{"allow GET /straße\ndeny GET /STRASSE", "1-2"},
		{"allow GET /a/\ndeny GET /a", "1-2"},
		{"allow GET /a\ndeny GET /a/", "1-2"},
		{"allow GET /{x}/\ndeny GET /{y}", "1-2"},
		{"allow GET /\ndeny GET /", "1-2"},
		{"allow GET /\ndeny GET /{x}", ""},
		{"allow GET /{rest...}\ndeny GET /", ""},
		// Hosts.
		{"allow GET h.example/a\ndeny GET /a", "1-2"},
		{"allow GET /a\ndeny GET h.example/a", ""},
		{"allow GET h.example/a\ndeny GET h.example/a", "1-2"},
		{"allow GET h.example/a\ndeny GET k.example/a", ""},
		{"allow GET x.h.example/a\ndeny GET *.h.example/a", "1-2"},
		{"allow GET h.example/a\ndeny GET *.h.example/a", ""},
		{"allow GET xh.example/a\ndeny GET *.h.example/a", ""},
		{"allow GET y.x.h.example/a\ndeny GET *.h.example/a", "1-2"},
		{"allow GET *.h.example/a\ndeny GET *.h.example/a", "1-2"},
		{"allow GET *.x.h.example/a\ndeny GET *.h.example/a", "1-2"},
		{"allow GET *.h.example/a\ndeny GET *.x.h.example/a", ""},
		{"allow GET *.h.example/a\ndeny GET *.example/a", "1-2"},
		{"allow GET *.xh.example/a\ndeny GET *.h.example/a", ""},
		{"allow GET *.h.example/a\ndeny GET x.h.example/a", ""},
		{"allow GET *.h.example/a\ndeny GET h.example/a", ""},

		// An allow that adds nothing.
		{"allow GET /a\nallow GET /a", "2<1"},
		{"allow GET /a\nallow GET /a\nallow GET /a", "2<1 3<1"},
		{"allow GET /{x}\nallow GET /{y}", "2<1"},
		{"allow GET,HEAD /a\nallow GET /a", "2<1"},
		{"allow * /a\nallow OPTIONS,GET,POST,PUT,PATCH,DELETE /a", "2<1"},
		{"allow GET /a\nallow HEAD /a", "2<1"},
		{"allow HEAD /a\nallow GET /a", "1<2"},
		{"allow GET /a\nallow GET,POST /a", "1<2"},
		{"allow GET /a\nallow POST /a", ""},
		{"allow * /a\nallow PROPFIND /a", ""},
		{"allow GET /a\nallow GET /{x}", "1<2"},
		{"allow GET /a\nallow GET /{x}\nallow * /{rest...}", "1<2 2<3"},
		{"allow GET /a/b\nallow GET /a/{rest...}", "1<2"},
		{"allow GET /a/\nallow GET /a/{rest...}", "1<2"},
		{"allow GET /a\nallow GET /a/{rest...}", ""},
		{"allow GET /{x}\nallow GET /a/{rest...}", ""},
		{"allow GET /a/b/\nallow GET /a/{x}/", "1<2"},
		{"allow GET /a/\nallow GET /a/{x}", ""},
		{"allow GET /A\nallow GET /a", ""},
		{"allow GET /a/\nallow GET /a", ""},
		{"allow GET /a/{x}\nallow GET /{y}/b", ""},
		{"allow GET h.example/a\nallow GET /a", "1<2"},
		{"allow GET x.h.example/a\nallow GET *.h.example/a", "1<2"},
		{"allow GET y.x.h.example/a\nallow GET *.h.example/a", ""},
		{"allow GET *.x.h.example/a\nallow GET *.h.example/a", ""},
		{"allow GET *.h.example/a\nallow GET *.h.example/a", "2<1"},

		// A deny that adds nothing.
		{"deny GET /a\ndeny GET /a", "2<1"},
		{"deny GET /a\ndeny GET /A/", "2<1"},
		{"deny GET /a\ndeny GET /a/{rest...}", "1<2"},
		{"deny GET /a/{x}\ndeny GET /a/{rest...}", "1<2"},
		{"deny GET /a\ndeny * /a", "1<2"},
		{"deny * /a\ndeny GET,POST,PUT,PATCH,DELETE,OPTIONS /a", "2<1"},
		{"deny GET,POST,PUT,PATCH,DELETE,OPTIONS /a\ndeny * /a", "1<2"},
		{"deny GET *.x.h.example/a\ndeny GET *.h.example/a", "1<2"},
		{"deny GET *.h.example/a\ndeny GET *.x.h.example/a", "2<1"},
		{"deny GET /a\nallow GET /b\ndeny GET /b/c", ""},

		// A rule that is denied is not told twice.
		{"deny * /a\nallow GET /a\nallow GET /a", "2-1 3-1"},

		// Conditions.
		{"allow GET /a\ndeny GET /a when user.role == \"member\"", ""},
		{"allow GET /a when user.role == \"member\"\ndeny GET /a when user.role == \"member\"", ""},
		{"allow GET /a when user.role == \"member\"\ndeny GET /a", "1-2"},
		{"allow GET /a\nallow GET /a when user.role == \"member\"", "2<1"},
		{"allow GET /a when user.role == \"member\"\nallow GET /a", "1<2"},
		{"allow GET /a when user.role == \"member\"\nallow GET /a when user.role == \"member\"", "2<1"},
		{"allow GET /a when user.role == \"member\"\nallow GET /a when user.role == \"admin\"", ""},
		{"allow GET /a when user.role == \"member\"\nallow GET /{x} when user.role == \"member\"", "1<2"},
		{"deny GET /a when user.role == \"member\"\ndeny * /{rest...} when user.role == \"member\"", "1<2"},
		{"allow GET /a when false\nallow GET /a", "1!"},
		{"deny GET /a when false\nallow GET /a", "1!"},
		{"allow GET /a when false\nallow GET /a when false", "1! 2!"},
		// What a parameter stands for depends on the path.
		{"allow GET /{x}/{y} when params.x == \"1\"\nallow GET /{x}/{y} when params.x == \"1\"", "2<1"},
		{"allow GET /{x}/{y} when params.x == \"1\"\nallow GET /{y}/{x} when params.x == \"1\"", ""},
		{"deny GET /{x}/a when params.x == \"1\"\ndeny GET /{x}/{rest...} when params.x == \"1\"", ""},
	} {
		rules := rulesOf(t, row.rules)
		var got []string
		list, _ := Warnings(rules, nil)
		for _, w := range list {
			got = append(got, short(t, rules, w))
		}
		if got := strings.Join(got, " "); got != row.want {
			t.Errorf("%q: got %q, want %q", row.rules, got, row.want)
		}
	}
}

// short is a warning in the form of the table above.
func short(t *testing.T, rules []Rule, w Warning) string {
	t.Helper()
	for i, r := range rules {
		by := fmt.Sprintf("%s %q", r.ID, r.String())
		switch w.Text {
		case "never applies: denied by " + by:
			return fmt.Sprintf("%d-%d", w.Rule+1, i+1)
		case "adds nothing: " + map[Effect]string{Allow: "allowed", Deny: "denied"}[rules[w.Rule].Effect] + " already by " + by:
			return fmt.Sprintf("%d<%d", w.Rule+1, i+1)
		}
	}
	if w.Text == "never applies: its condition is false" {
		return fmt.Sprintf("%d!", w.Rule+1)
	}
	t.Errorf("got the warning %q", w.Text)
	return ""
}

// TestWarningsOfOthers: rules of another list count, and nothing is said of them.
func TestWarningsOfOthers(t *testing.T) {
	for _, row := range []struct{ rules, others, want string }{
		{"allow GET /a", "allow GET /a\nallow GET /a\nallow GET /b when false", `0 adds nothing: allowed already by r1 "allow GET /a"`},
		{"allow GET /a\nallow GET /a", "allow GET /{x}", `0 adds nothing: allowed already by r1 "allow GET /{x}", 1 adds nothing: allowed already by r1 "allow GET /{x}"`},
		{"deny GET /a", "deny GET /a/", `0 adds nothing: denied already by r1 "deny GET /a/"`},
		{"allow GET /b\nallow GET /a", "deny * /a", `1 never applies: denied by r1 "deny * /a"`},
		{"allow GET /a", "allow GET /b\ndeny * /a", `0 never applies: denied by r2 "deny * /a"`},
		{"deny * /a", "allow GET /a", ""},
		{"allow GET /{x}", "allow GET /a", ""},
		{"", "allow GET /a\nallow GET /a", ""},
	} {
		var got []string
		list, _ := Warnings(rulesOf(t, row.rules), rulesOf(t, row.others))
		for _, w := range list {
			got = append(got, fmt.Sprint(w.Rule, " ", w.Text))
		}
		if got := strings.Join(got, ", "); got != row.want {
			t.Errorf("%q with %q: got %s, want %s", row.rules, row.others, got, row.want)
		}
	}
	// A rule that has no id yet is named by its text.
	rules := group(t, "", "allow GET /a", "deny GET /a").Rules
	got, _ := Warnings(rules, nil)
	if want := (Warning{0, `never applies: denied by "deny GET /a"`}); len(got) != 1 || got[0] != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestWarningsHold: what a warning says is true of any request.
func TestWarningsHold(t *testing.T) {
	t.Parallel()
	denied, superfluous := 0, 0
	property := func(t *rapid.T) {
		rules := rapid.SliceOfN(rapid.Custom(drawRule), 2, 7).Draw(t, "rules")
		others := rapid.SliceOfN(rapid.Custom(drawRule), 0, 3).Draw(t, "others")
		warned, _ := Warnings(rules, others)
		isDoubt := func(w Warning) bool { return strings.HasPrefix(w.Text, "is probably a mistake: ") } // see TestDoubts
		warned = slices.DeleteFunc(warned, isDoubt)
		actions := rapid.SliceOfN(drawAction, 20, 20).Draw(t, "actions")
		u := drawUser(t, 1)
		decide := func(rules, others []Rule) (reasons []Reason) {
			u.Groups = []string{"g"}
			d, err := NewDirectory(Peppers{}, "others").With(Changes{
				Groups: []Group{{ID: "g", Name: "g", Mode: Enforce, Rules: rules}, {ID: "others", Name: "others", Mode: Enforce, Rules: others}},
				Users:  []User{u},
			})
			if err != nil {
				t.Fatal(err)
			}
			p, _ := d.Principal(u.ID, "", here, 0)
			for _, a := range actions {
				reasons = append(reasons, d.Authorize(p, a).Reason)
			}
			return reasons
		}
		all := decide(rules, others)
		left := slices.Clone(rules)
		for _, w := range slices.Backward(warned) {
			r := rules[w.Rule]
			alone := decide([]Rule{r}, nil)
			for i := range actions {
				if strings.HasPrefix(w.Text, "never applies") && (alone[i] == Granted && all[i] == Granted || alone[i] == DeniedByRule) {
					t.Fatalf("%s %s, but it applies to %v in\n%q\n%q", r, w.Text, actions[i], rules, others)
				}
				if alone[i] == NoRule {
					continue
				}
				if strings.HasPrefix(w.Text, "never") {
					denied++
				} else {
					superfluous++
				}
			}
			if got := decide(slices.Delete(slices.Clone(rules), w.Rule, w.Rule+1), others); !slices.Equal(got, all) {
				t.Fatalf("%s %s, but without it, decisions %v become %v for %v in\n%q\n%q", r, w.Text, all, got, actions, rules, others)
			}
			left = slices.Delete(left, w.Rule, w.Rule+1)
		}
		if got := decide(left, others); !slices.Equal(got, all) {
			t.Fatalf("without all that are warned about, decisions %v become %v for %v in\n%q\n%q", all, got, actions, rules, others)
		}
		if again, _ := Warnings(left, others); len(slices.DeleteFunc(again, isDoubt)) > 0 {
			t.Fatalf("without all that are warned about, %v are left in\n%q\n%q", again, left, others)
		}
	}
	for range 10 {
		rapid.Check(t, property)
	}
	if !testing.Short() && (denied < 100 || superfluous < 100) {
		t.Errorf("got %d requests that a denied allow covers and %d that a superfluous rule covers, want the draw to meet them often", denied, superfluous)
	}
}

// manyRules returns rules that are alike and none of which is superfluous.
func manyRules(n int) []Rule {
	rules := make([]Rule, n)
	for i := range rules {
		rules[i] = Rule{Effect: Deny, Methods: []string{"DELETE"}, Path: fmt.Sprintf("/%d/{x}/%d/{y}", i%100, i/100)}
	}
	return rules
}

func TestWarningsOfMany(t *testing.T) {
	rules := manyRules(MaxCompared)
	if got, compared := Warnings(rules, nil); len(got) != 0 || !compared {
		t.Errorf("got %d warnings, compared %t, want none", len(got), compared)
	}
	if got, _ := Warnings(rules, rules[:10]); len(got) != 10 {
		t.Errorf("ten are in the other list, too: got %d warnings", len(got))
	}
	for _, lists := range [][2][]Rule{{manyRules(MaxCompared + 1), nil}, {rules[:1], manyRules(MaxCompared + 1)}} {
		if got, compared := Warnings(lists[0], lists[1]); got != nil || compared {
			t.Errorf("%d and %d rules: got %d warnings, compared %t, want that they are not compared", len(lists[0]), len(lists[1]), len(got), compared)
		}
	}
}

func BenchmarkWarnings(b *testing.B) {
	rules := manyRules(MaxCompared)
	for b.Loop() {
		Warnings(rules, nil)
	}
}
