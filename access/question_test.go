package access

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawQuestion draws a pattern and lists its paths: each value of the alphabet replaces a parameter, and
// up to two segments replace a rest.
func drawQuestion(t *rapid.T) (path string, paths []string) {
	segment := rapid.SampledFrom([]string{"a", "a", "A", "é", "{}", "{}", "{}", "a b"})
	values := []string{"a", "A", "é", "É", "a b", "A B", "3", "7", "a7"}
	paths = []string{""}
	extend := func(with ...string) {
		var next []string
		for _, p := range paths {
			for _, v := range with {
				next = append(next, p+"/"+v)
			}
		}
		paths = next
	}
	for _, s := range rapid.SliceOfN(segment, 0, 2).Draw(t, "question") {
		if s == "{}" {
			path += "/{p" + string(rune('0'+len(path)%10)) + "}"
			extend(values...)
		} else {
			path += "/" + s
			extend(s)
		}
	}
	switch end := rapid.SampledFrom([]string{"", "", "/", "/{rest...}", "/{rest...}"}).Draw(t, "end"); {
	case end == "/{rest...}":
		path += end
		rests := []string{""}
		for _, v := range values {
			rests = append(rests, v, v+"/")
			for _, w := range []string{"a", "É", "7"} {
				rests = append(rests, v+"/"+w, v+"/"+w+"/", v+"/"+w+"/3")
			}
		}
		extend(rests...)
	case end == "/" || path == "":
		path += "/"
		extend("")
	}
	return path, paths
}

// TestReach: an answer for a pattern is the answer for each of its paths.
func TestReach(t *testing.T) {
	count := make(map[string]int)
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		d := w.directory(t)
		path, paths := drawQuestion(t)
		a := drawAction.Draw(t, "action")
		a.Unknown = rapid.SampledFrom([]Unknown{0, UnknownAddress, UnknownHeader | UnknownAddress}).Draw(t, "unknown")
		pattern := strings.Contains(path, "{")
		a.Path = path
		question, err := d.Ask(a, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range w.users {
			for _, token := range u.Tokens {
				p, _ := d.Principal(u.ID, token.ID, netip.Addr{}, 0)
				allowed := 0
				for _, path := range paths {
					b := a
					b.Path = path
					if d.Authorize(p, b).Allowed() {
						allowed++
					}
				}
				reach, rule, group, _ := question.Reach([]Principal{p})
				wrong := func(what string) {
					t.Fatalf("%s: %s %s of %s, got %v by %v: %d of %d paths are allowed, in\n%v", what, a.Method, path, u.ID, reach, rule, allowed, len(paths), w)
				}
				if reach == EveryPath && allowed < len(paths) || reach == NoPath && allowed > 0 {
					wrong("not so")
				}
				if (rule == nil) != (reach == NoPath) || (group == nil) != (rule == nil) || rule != nil && rule.Effect != Allow {
					wrong("the rule")
				}
				// Only a rest and conditions on the path may leave it unsure between them.
				exact := !strings.Contains(path, "...") && !slices.ContainsFunc(w.groups, func(g Group) bool {
					return slices.ContainsFunc(g.Rules, func(r Rule) bool {
						return strings.Contains(r.When, "params") || strings.Contains(r.When, "request.path")
					})
				})
				if mixed := allowed > 0 && allowed < len(paths); exact && (reach == SomePaths) != mixed {
					wrong("not exact")
				} else if reach == SomePaths && !mixed {
					count["unsure"]++
				}
				count[[]string{"none", "some", "every"}[reach]]++
				if pattern && reach == EveryPath {
					count["every of a pattern"]++
				}
			}
		}
	})
	t.Log(count)
	for _, often := range []string{"none", "some", "every", "every of a pattern"} {
		if count[often] < 3 {
			t.Errorf("got %s %d times in %v, want the draw to meet it often", often, count[often], count)
		}
	}
	if count["some"] > 100 && count["unsure"]*3 > count["some"] {
		t.Errorf("got %v: unsure too often", count)
	}
}

// TestReachRules: what single rules come to.
func TestReachRules(t *testing.T) {
	const all = "allow GET /v1/people/{x}\n"
	for _, row := range []struct {
		question, rules string
		want            Reach
	}{
		{"/v1/people/{id}", all, EveryPath},
		{"/v1/people/{id}", "allow GET /v1/{rest...}", EveryPath},
		{"/v1/people/{id}", "allow GET /{kind}/people/{id}", EveryPath},
		{"/v1/people/{id}", "", NoPath},
		{"/v1/people/{id}", "allow PUT /v1/people/{id}", NoPath},
		{"/v1/people/{id}", "allow GET /v1/people/{id}/address", NoPath},
		{"/v1/people/{id}", "allow GET /v1/people/7", SomePaths},
		{"/v1/people/{id}", "allow GET /v1/people/", NoPath},
		{"/v1/people/{id}", all + "deny GET /v1/people/me", SomePaths},
		{"/v1/people/{id}", all + "deny GET /V1/People/Me/", SomePaths},
		{"/v1/people/{id}", all + "deny GET /v1/people/{x}/", NoPath},
		{"/v1/people/{id}", all + "deny GET /v1/people/{x}/{rest...}", NoPath},
		{"/v1/people/{id}", all + "deny GET /v1/people/{x}/address", EveryPath},
		{"/v1/people/{id}", "allow GET /v1/people/Me\ndeny GET /v1/people/me", NoPath},
		{"/v1/people/{id}", "allow GET /v1/{x}/7\ndeny GET /{y}/people/7", NoPath},
		{"/v1/people/{id}", "allow GET /v1/people/7\ndeny GET /v1/people/8", SomePaths},
		{"/v1/people/{id}", all + "deny GET /v1/people/{x} when params.x == 'me'", SomePaths},
		{"/v1/people/{id}", all + "deny GET /v1/people/{x} when user.name == 'nobody'", EveryPath},
		{"/v1/people/{id}", all + "deny GET /v1/people/{x} when user.name != 'nobody'", NoPath},
		{"/v1/people/{id}", "allow GET /v1/people/{x} when params.x in ['7']", SomePaths},
		{"/v1/people/{id}", "allow GET /v1/people/{x} when has(params.x)", SomePaths},
		{"/v1/people/{id}", "allow GET /v1/people/{x} when params.x in ['7'] && user.name == 'nobody'", NoPath},
		{"/v1/people/{id}", "allow GET /v1/{kind}/{x} when params.kind == 'people'", EveryPath},
		{"/v1/people/{id}", "allow GET /v1/{kind}/{x} when params.kind == 'teams'", NoPath},
		{"/v1/people/{id}", "allow GET /v1/people/{x} when request.path.endsWith('7')", SomePaths},
		{"/v1/people/{id}", "allow GET /v1/people/{x} when has(request.path) && request.method == 'GET'", EveryPath},
		{"/v1/people/{id}/", all, NoPath},
		{"/v1/people/{id}/", "allow GET /v1/people/{x}/\ndeny GET /v1/people/7", SomePaths},
		{"/v1/{rest...}", "allow GET /v1/{rest...}", EveryPath},
		{"/v1/{rest...}", "allow GET /v1/{rest...}\ndeny GET /v1", SomePaths},
		{"/v1/{rest...}", "allow GET /v1/{rest...}\ndeny GET /v1/a/b/c", SomePaths},
		{"/v1/{rest...}", "allow GET /v1/{rest...}\ndeny GET /v1/{rest...}", NoPath},
		{"/v1/{rest...}", "allow GET /v1/", SomePaths},
		{"/v1/{rest...}", "allow GET /v1", NoPath},
		{"/v1/{rest...}", all, SomePaths},
		{"/{rest...}", all + "deny GET /v1/{rest...}", NoPath},
		{"/{rest...}", "allow * /{rest...}", EveryPath},
		{"/{rest...}", "allow * /{rest...}\ndeny GET /", SomePaths},
		{"/{rest...}", "allow * /a/{rest...} when params.rest.endsWith('/')", SomePaths},
		{"/{rest...}", "allow * /a/{b}/{c} when params.c == '7'", SomePaths},
	} {
		var rules []string
		if row.rules != "" {
			rules = strings.Split(strings.TrimSpace(row.rules), "\n")
		}
		d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g", rules...)}, Users: []User{user(1, "g")}})
		question, err := d.Ask(action("GET "+row.question), true)
		if err != nil {
			t.Fatal(err)
		}
		got, _, _, _ := question.Reach([]Principal{enter(t, d, login(1))})
		if got != row.want {
			t.Errorf("%s, %q: got %v, want %v", row.question, row.rules, got, row.want)
		}
	}
}
