package access

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// row is one request against the rules of the one group that its user is in.
type row struct {
	want    Reason
	request string // METHOD [HOST]PATH
	rules   []string
}

// allow, deny and silent say what the rules do to a request: let it pass,
// refuse it, or not speak of it, which refuses it as well.
func allow(request string, rules ...string) row  { return row{Granted, request, rules} }
func deny(request string, rules ...string) row   { return row{DeniedByRule, request, rules} }
func silent(request string, rules ...string) row { return row{NoRule, request, rules} }

func TestAuthorize(t *testing.T) {
	const all, nothing = "allow * /{rest...}", "deny * /{rest...}"
	for _, row := range []row{
		// Deny by default.
		silent("GET /"),
		silent("GET /v1/people", "allow POST /v1/people"),
		silent("GET /v1/people", "deny POST /v1/people"),

		// An explicit deny wins over any allow, whatever the order or how exact either is.
		deny("GET /a", "allow GET /a", "deny GET /a"),
		deny("GET /a", "deny GET /a", "allow GET /a"),
		deny("GET /a", "allow GET /a", "deny * /{x}"),
		deny("GET /a", "deny * /{rest...}", "allow GET /a", "allow GET h.example/a"),
		deny("GET h.example/a", "allow GET h.example/a", "deny GET *.h.example/a", "deny GET /{x}"),
		deny("GET /a/b/c", "allow GET /a/b/c", "deny GET /{x}/b/{y}"),
		deny("GET /a", nothing, "deny GET /a", all),
		allow("POST /a", all, "deny GET /a"),
		allow("GET /b", all, "deny GET /a"),

		// Paths are compared exactly for allow …
		allow("GET /a", "allow GET /a"),
		allow("GET /", "allow GET /"),
		allow("GET /a b/é", "allow GET /a b/é"),
		silent("GET /A", "allow GET /a"),
		silent("GET /a", "allow GET /A"),
		silent("GET /É", "allow GET /é"),
		silent("GET /a/", "allow GET /a"),
		silent("GET /a", "allow GET /a/"),
		allow("GET /a/", "allow GET /a/"),
		silent("GET /ab", "allow GET /a"),
		silent("GET /a", "allow GET /ab"),
		silent("GET /a/b", "allow GET /a"),
		silent("GET /a", "allow GET /a/b"),
		silent("GET /a", "allow GET /"),
		silent("GET /", "allow GET /a"),
		// … and case-folded for deny.
		deny("GET /ADMIN/X", all, "deny GET /admin/x"),
		deny("GET /admin/x", all, "deny GET /Admin/X"),
		deny("GET /É", all, "deny GET /é"),
		deny("GET /é", all, "deny GET /É"),
		deny("GET /STRASSE", all, "deny GET /straße"),
		deny("GET /STRAẞE", all, "deny GET /strasse"),
		deny("GET /ﬁle", all, "deny GET /FILE"),
		deny("GET /ΣΑΣ", all, "deny GET /σας"),
		deny("GET /ς", all, "deny GET /σ"),
		deny("GET /µ", all, "deny GET /μ"),
		deny("GET /ꭰ", all, "deny GET /Ꭰ"),
		deny("GET /Ꭰ", all, "deny GET /ꭰ"),
		deny("GET /Ϊ́", all, "deny GET /ΐ"),
		deny("GET /A/É/B", all, "deny GET /{x}/é/b"),
		allow("GET /e", all, "deny GET /é"),
		allow("GET /admin", all, "deny GET /admin/x"),

		// GET covers HEAD, and only that way round.
		allow("HEAD /a", "allow GET /a"),
		deny("HEAD /a", all, "deny GET /a"),
		silent("GET /a", "allow HEAD /a"),
		allow("GET /a", all, "deny HEAD /a"),
		deny("HEAD /a", "allow GET /a", "deny HEAD /a"),
		silent("OPTIONS /a", "allow GET,POST,PUT,PATCH,DELETE /a"),
		silent("POST /a", "allow GET,PUT /a"),
		allow("PUT /a", "allow GET,PUT /a"),
		allow("PROPFIND /a", "allow GET,PROPFIND /a"),
		silent("PROPPATCH /a", "allow GET,PROPFIND /a"),

		// {name} is one non-empty segment.
		allow("GET /people/7", "allow GET /people/{id}"),
		allow("GET /people/{id}", "allow GET /people/{id}"),
		silent("GET /people/", "allow GET /people/{id}"),
		silent("GET /people", "allow GET /people/{id}"),
		silent("GET /people/7/", "allow GET /people/{id}"),
		silent("GET /people/7/x", "allow GET /people/{id}"),
		allow("GET /people/7/", "allow GET /people/{id}/"),
		allow("GET /people/7/x", "allow GET /people/{id}/x"),
		silent("GET /people//x", "allow GET /people/{id}/x"),
		silent("GET /", "allow GET /{x}"),
		allow("GET /a/b/c", "allow GET /{x}/b/{y}"),
		silent("GET /a/c/c", "allow GET /{x}/b/{y}"),
		allow("GET /a/b/d", "allow GET /a/b/c", "allow GET /a/{x}/d"), // the literal leads into a dead end

		// {name...} is the rest, possibly empty.
		allow("GET /v1/", "allow GET /v1/{rest...}"),
		allow("GET /v1/a", "allow GET /v1/{rest...}"),
		allow("GET /v1/a/b/", "allow GET /v1/{rest...}"),
		silent("GET /v1", "allow GET /v1/{rest...}"),
		silent("GET /v1x", "allow GET /v1/{rest...}"),
		silent("GET /v1", "allow GET /v1/{id}", "allow GET /v1/"),
		allow("GET /", "allow GET /{rest...}"),
		allow("GET /x/y", "allow GET /{rest...}"),
		allow("GET /a/b/c", "allow GET /a/b", "allow GET /{rest...}"),
		silent("GET /a", "allow GET /{x}/{rest...}"),
		allow("GET /a/", "allow GET /{x}/{rest...}"),

		// "*" is the registered set in an allow …
		allow("GET /a", all), allow("HEAD /a", all), allow("POST /a", all), allow("PUT /a", all),
		allow("PATCH /a", all), allow("DELETE /a", all), allow("OPTIONS /a", all),
		silent("PROPFIND /a", all), silent("QUERY /a", all), silent("get /a", all), silent("* /a", all), silent(" /a", all),
		// … but every method in a deny.
		deny("GET /a", nothing), deny("HEAD /a", nothing), deny("OPTIONS /a", nothing),
		deny("PROPFIND /a", "allow PROPFIND /a", nothing), deny("QUERY /a", nothing), deny("get /a", nothing), deny(" /a", nothing),
		allow("PROPFIND /a", "allow PROPFIND /a", "deny GET,POST,PUT,PATCH,DELETE,OPTIONS /a"),

		// A deny also covers the form with or without the trailing slash …
		deny("GET /a", all, "deny GET /a/"),
		deny("GET /a/", all, "deny GET /a"),
		deny("GET /A/", all, "deny GET /a"),
		deny("GET /people/7/", all, "deny GET /people/{id}"),
		deny("GET /people/7", all, "deny GET /people/{id}/"),
		deny("GET /", all, "deny GET /"),
		allow("GET /people/", all, "deny GET /people/{id}"),
		allow("GET /people", all, "deny GET /people/{id}/"),
		allow("GET /a/b", all, "deny GET /a/"),
		allow("GET /a", all, "deny GET /"),
		allow("GET /", all, "deny GET /{x}"),
		// … and its {name...} matches nothing at all too.
		deny("GET /v1", all, "deny GET /v1/{rest...}"),
		deny("GET /v1/", all, "deny GET /v1/{rest...}"),
		deny("GET /V1", all, "deny GET /v1/{rest...}"),
		deny("GET /v1/a/b", all, "deny GET /v1/{rest...}"),
		deny("GET /", all, "deny GET /{rest...}"),
		deny("GET /a", all, "deny GET /{x}/{rest...}"),
		allow("GET /", all, "deny GET /{x}/{rest...}"),
		allow("GET /v1x", all, "deny GET /v1/{rest...}"),
		allow("GET /v2", all, "deny GET /v1/{rest...}"),

		// Hosts: none is any; "*." is one label in an allow, any number in a deny.
		allow("GET h.example/a", "allow GET /a"),
		allow("GET h.example/a", "allow GET h.example/a"),
		allow("GET h.example/a", "allow GET H.Example/a"),
		silent("GET other.example/a", "allow GET h.example/a"),
		silent("GET /a", "allow GET h.example/a"),
		silent("GET x.h.example/a", "allow GET h.example/a"),
		allow("GET x.h.example/a", "allow GET *.h.example/a"),
		silent("GET y.x.h.example/a", "allow GET *.h.example/a"),
		silent("GET h.example/a", "allow GET *.h.example/a"),
		silent("GET xh.example/a", "allow GET *.h.example/a"),
		silent("GET x.h.example.org/a", "allow GET *.h.example/a"),
		deny("GET x.h.example/a", all, "deny GET *.h.example/a"),
		deny("GET y.x.h.example/a", all, "deny GET *.h.example/a"),
		allow("GET h.example/a", all, "deny GET *.h.example/a"),
		allow("GET xh.example/a", all, "deny GET *.h.example/a"),
		deny("GET [2001:db8::1]/a", all, "deny GET [2001:DB8::0:1]/a"),
		allow("GET other.example/a", "deny GET h.example/a", "allow GET other.example/a"),

		// A condition is asked about the request, its user and the parameters of the path.
		allow("GET /a/b", `allow GET /a/{x} when params.x == "b"`),
		silent("GET /a/c", `allow GET /a/{x} when params.x == "b"`),
		deny("GET /a/b", all, `deny GET /a/{x} when params.x == "b"`),
		allow("GET /a/c", all, `deny GET /a/{x} when params.x == "b"`),
		allow("GET /a", `allow * /a when user.name == "user 1" && request.method == "GET"`),
		allow("GET /a", `allow GET /a when false`, `allow GET /a when true`),
		allow("GET /a", `allow GET /a when false`, `allow GET /{x} when params.x == "a"`),
		// One that cannot be evaluated refuses: an allow does not apply, a deny does.
		silent("GET /a", `allow GET /a when user.labels.env == "prod"`),
		silent("GET /a", `allow GET /a when user.labels.env != "prod"`),
		deny("GET /a", all, `deny GET /a when user.labels.env == "prod"`),
		deny("GET /a", all, `deny GET /a when user.labels.env != "prod"`),
		deny("GET /a", all, `deny GET /a when cidr("192.0.2.0/24").containsIP(request.remote_ip)`),
		allow("GET /b", all, `deny GET /a when user.labels.env == "prod"`),
		allow("POST /a", all, `deny GET /a when user.labels.env == "prod"`),
		allow("GET /a", all, `deny GET h.example/a when user.labels.env == "prod"`),
		// That of an allow sees the path as it is …
		allow("GET /f/x/", `allow GET /f/{path...} when params.path == "x/"`),
		silent("GET /f/x/", `allow GET /f/{path...} when params.path == "x"`),
		silent("GET /f/x", `allow GET /f/{path...} when params.path == "x/"`),
		silent("GET /f/X", `allow GET /f/{path...} when params.path == "x"`),
		allow("GET /f/", `allow GET /f/{path...} when params.path == "" && request.path == "/f/"`),
		// … and that of a deny also without the trailing slash, but no other spelling.
		deny("GET /f/x/", all, `deny GET /f/{path...} when params.path == "x/"`),
		deny("GET /f/x/", all, `deny GET /f/{path...} when params.path == "x"`),
		deny("GET /f/x/", all, `deny GET /f/{path...} when params.path.endsWith("/")`),
		allow("GET /f/x", all, `deny GET /f/{path...} when params.path.endsWith("/")`),
		deny("GET /f/x/", all, `deny * /{rest...} when request.path == "/f/x"`),
		deny("GET /f/x/", all, `deny * /{rest...} when request.path == "/f/x/"`),
		deny("GET /F/x/", all, `deny GET /f/{y} when params.y == "x"`),
		allow("GET /f/X", all, `deny GET /f/{y} when params.y == "x"`),
		deny("GET /f/X", all, `deny GET /f/{y} when params.y.lowerAscii() == "x"`),
		deny("GET /f/a/", all, `deny GET /f/{path...} when params.path.split("/")[1] == "x"`), // fails without the slash
		deny("GET /f/7/", all, `deny GET /f/{path...} when int(params.path) == 8`),            // fails with it
		deny("GET /f", all, `deny GET /f/{path...} when params.path == ""`),
		allow("GET /f", all, `deny GET /f/{path...} when params.path != ""`),
		allow("GET /", all, `deny GET /{path...} when !request.path.startsWith("/")`),
		deny("GET /", all, `deny GET /{path...} when params.path == "" && request.path == "/"`),
		// Where an operator lets them pass, a slash that is data is a slash to both, and a
		// deny sees what an upstream may make of it, and of a semicolon.
		allow("GET /f/x\x00y", `allow GET /f/{a} when params.a == "x/y" && request.path == "/f/x/y"`),
		allow("GET /f/x\x00y", `allow GET /f/{path...} when params.path == "x/y"`),
		silent("GET /f/x\x00y", `allow GET /f/{a}/{b} when true`),
		deny("GET /f/x\x00y", all, `deny GET /f/{a} when params.a == "x/y"`),
		deny("GET /f/x\x00y", all, `deny GET /f/{a}/{b} when params.b == "y"`),
		deny("GET /f/x\x00y/", all, `deny GET /f/{a}/{b} when params.b == "y"`),
		deny("GET /f/x;v=1", all, `deny GET /f/{a} when params.a == "x"`),
		deny("GET /f/x;v=1", all, `deny GET /f/{a} when params.a == "x;v=1"`),
		deny("GET /f/x;v=1", all, `deny * /{rest...} when request.path == "/f/x"`),
		deny("GET /f/x;v\x00y", all, `deny GET /f/{a}/{b} when params.a == "x" && params.b == "y"`),
		deny("GET /f/x;v\x00y", all, `deny GET /f/{a}/{b} when params.a == "x;v"`),
		deny("GET /f/x\x00y;v", all, `deny GET /f/{a} when params.a == "x/y"`),
		allow("GET /f/x;v=1", all, `deny GET /f/{a} when params.a == "v=1"`),
		silent("GET /f/x;v=1", `allow GET /f/{a} when params.a == "x"`),
	} {
		d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g", row.rules...)}, Users: []User{user(1, "g")}})
		got := d.Authorize(enter(t, d, login(1)), action(row.request))
		if got.Reason != row.want {
			t.Errorf("%s under %q: got %v by %v, want %v", row.request, row.rules, got.Reason, got.Rule, row.want)
		}
		if got.Allowed() != (row.want == Granted) || (got.Rule == nil) != (row.want == NoRule) || (got.Group == nil) != (row.want == NoRule) {
			t.Errorf("%s under %q: got the decision %+v", row.request, row.rules, got)
		}
	}
}

// TestAuthorizeNothing: what no front door hands in gets nothing.
func TestAuthorizeNothing(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, "g"), Changes{Groups: []Group{group(t, "g", "allow * /{rest...}", "allow GET /")}, Users: []User{user(1)}})
	p := enter(t, d, login(1))
	for _, path := range []string{"", "a", "*", "a/b"} {
		if got := d.Authorize(p, Action{Method: "GET", Path: path}); got.Allowed() {
			t.Errorf("path %q: got %v by %v", path, got.Reason, got.Rule)
		}
	}
	var nobody Principal
	if got := d.Authorize(nobody, action("GET /")); got != (Decision{Reason: NoRule}) {
		t.Errorf("nobody: got %+v, want %v", got, NoRule)
	}
	if nobody.Groups() != nil || nobody.GroupList() != "" || nobody.String() != "" {
		t.Errorf("nobody: got the groups %q, %q and the id %q", nobody.Groups(), nobody.GroupList(), nobody)
	}
	empty := NewDirectory(Peppers{}, "")
	if got := empty.Authorize(p, action("GET /")); got.Allowed() {
		t.Errorf("an empty directory: got %v", got.Reason)
	}
}

// TestDecidingRule: a decision names the most specific rule and its group.
func TestDecidingRule(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Groups: []Group{
			group(t, "g1", "allow * /{rest...}", "allow GET /{x}/b", "deny * /secret/{rest...}"),
			group(t, "g2", "allow GET /a/b", "deny GET /secret/x"),
			group(t, "g3", "allow GET /a/c"),
		},
		Users: []User{user(1, "g1", "g2")},
	})
	p := enter(t, d, login(1))
	for request, want := range map[string]string{
		"GET /a/b":         "g2: allow GET /a/b",
		"GET /b/b":         "g1: allow GET /{x}/b",
		"GET /a/c":         "g1: allow * /{rest...}",
		"GET /secret/x":    "g2: deny GET /secret/x",
		"DELETE /SECRET/x": "g1: deny * /secret/{rest...}",
	} {
		got := d.Authorize(p, action(request))
		if text := fmt.Sprintf("%s: %s", got.Group.Name, got.Rule); text != want {
			t.Errorf("%s: got %s, want %s", request, text, want)
		}
	}
}

// TestFoldCase: every path that differs in case only has one folded form.
func TestFoldCase(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		s := string(r)
		if unicode.SimpleFold(r) == r && strings.ToUpper(s) == s && strings.ToLower(s) == s || r >= utf8.RuneSelf && !passes(s) {
			continue
		}
		want := foldCase(s)
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			if got := foldCase(string(f)); passes(string(f)) && got != want {
				t.Errorf("U+%04X folds to %q, but U+%04X to %q", r, want, f, got)
			}
		}
		for _, spelling := range []string{strings.ToUpper(s), strings.ToLower(s), strings.ToTitle(s), norm.NFC.String(want)} {
			if got := foldCase(spelling); got != want {
				t.Errorf("U+%04X folds to %q, but %q to %q", r, want, spelling, got)
			}
		}
	}
	for _, row := range []struct{ in, want string }{
		{"", ""}, {"/a-z/09", "/a-z/09"}, {"/A-Z[", "/a-z["}, {"ÀÉ/X", "àé/x"}, {"ẞß", "ssss"}, {"ŉ", "ʼn"}, {"ᾳ", "αι"}, {"ΐ", "ΐ"}, {"ǰ", "ǰ"},
	} {
		if got := foldCase(row.in); got != row.want {
			t.Errorf("%q: got %q, want %q", row.in, got, row.want)
		}
	}
}

// TestGroups has what more than one group makes of a request.
func TestGroups(t *testing.T) {
	observing := group(t, "observing", "allow GET /observed", "deny GET /read")
	observing.Mode = Observe
	groups := []Group{
		observing,
		group(t, "readers", "allow GET /read", "allow GET /shared"),
		group(t, "writers", "allow POST /read", "deny DELETE /read", "allow GET /written"),
		group(t, "everyone", "allow GET /ping", "deny GET /shared/{rest...}"),
		group(t, "strangers", "allow * /{rest...}", "deny * /{rest...}"),
	}
	for _, row := range []struct {
		groups, narrowed []string
		list             string // of the principal, with everyone as the default group
		request          string
		want, byDefault  Reason // without and with the default group
	}{
		{nil, nil, "everyone", "GET /read", NoRule, NoRule},
		{nil, nil, "everyone", "GET /ping", NoRule, Granted},
		{[]string{"readers"}, nil, "everyone,readers", "GET /read", Granted, Granted},
		{[]string{"readers"}, nil, "everyone,readers", "GET /shared", Granted, DeniedByRule},
		{[]string{"readers"}, nil, "everyone,readers", "POST /read", NoRule, NoRule},
		{[]string{"writers", "readers"}, nil, "everyone,readers,writers", "GET /read", Granted, Granted},
		{[]string{"readers", "writers"}, nil, "everyone,readers,writers", "POST /read", Granted, Granted},
		{[]string{"readers", "writers", "readers"}, nil, "everyone,readers,writers", "DELETE /read", DeniedByRule, DeniedByRule},
		{[]string{"everyone"}, nil, "everyone", "GET /ping", Granted, Granted},
		{[]string{"unknown"}, nil, "everyone", "GET /read", NoRule, NoRule},

		// A group that observes neither grants nor refuses.
		{[]string{"observing"}, nil, "everyone", "GET /observed", NoRule, NoRule},
		{[]string{"observing", "readers"}, nil, "everyone,readers", "GET /read", Granted, Granted},

		// A narrowed token has the allows of its groups and every deny of its user's.
		{[]string{"readers", "writers"}, []string{"readers"}, "readers", "GET /read", Granted, Granted},
		{[]string{"readers", "writers"}, []string{"readers"}, "readers", "POST /read", NoRule, NoRule},
		{[]string{"readers", "writers"}, []string{"readers"}, "readers", "DELETE /read", DeniedByRule, DeniedByRule},
		{[]string{"readers", "writers"}, []string{"readers"}, "readers", "GET /shared", Granted, DeniedByRule},
		{[]string{"readers", "writers"}, []string{"writers", "readers"}, "readers,writers", "GET /read", Granted, Granted},
		{[]string{"readers"}, []string{"readers"}, "readers", "GET /ping", NoRule, NoRule},
		{[]string{"readers"}, []string{"everyone"}, "everyone", "GET /ping", NoRule, Granted},
		{[]string{"readers"}, []string{"everyone"}, "everyone", "GET /read", NoRule, NoRule},
		// Narrowing to a group that the user is not in, or that is none, gives nothing.
		{[]string{"readers"}, []string{"strangers"}, "", "GET /read", NoRule, NoRule},
		{[]string{"readers"}, []string{"unknown"}, "", "GET /read", NoRule, NoRule},
		{[]string{"readers"}, []string{""}, "", "GET /read", NoRule, NoRule},
		{[]string{"readers", "observing"}, []string{"observing"}, "", "GET /observed", NoRule, NoRule},
	} {
		for _, c := range []struct {
			defaultGroup string
			want         Reason
		}{{"", row.want}, {"everyone", row.byDefault}, {"absent", row.want}} {
			narrowed := user(1, row.groups...)
			narrowed.Tokens[0].Groups = row.narrowed
			whole := user(2, row.groups...) // a neighbour with the same groups
			d := with(t, NewDirectory(Peppers{}, c.defaultGroup), Changes{Groups: groups, Users: []User{whole, narrowed}})
			p := enter(t, d, login(1))
			if got := d.Authorize(p, action(row.request)).Reason; got != c.want {
				t.Errorf("%s for %q, narrowed to %q, default group %q: got %v, want %v", row.request, row.groups, row.narrowed, c.defaultGroup, got, c.want)
			}
			if c.defaultGroup == "everyone" && (p.GroupList() != row.list || strings.Join(p.Groups(), ",") != row.list) {
				t.Errorf("%q, narrowed to %q: got the groups %q and %q, want %q", row.groups, row.narrowed, p.GroupList(), p.Groups(), row.list)
			}
		}
	}
}

// TestRuleset: allows without groups are compared like those of a group.
func TestRuleset(t *testing.T) {
	s, err := NewRuleset(group(t, "", "allow GET /healthz", "allow * *.h.example/pub/{rest...}", `allow GET /open/{day} when params.day == "monday" && request.header("X-Env") == ""`).Rules)
	if err != nil {
		t.Fatal(err)
	}
	none, err := NewRuleset(nil)
	if err != nil {
		t.Fatal(err)
	}
	for request, want := range map[string]bool{
		"GET /healthz": true, "HEAD h.example/healthz": true, "POST /healthz": false, "GET /healthz/": false, "GET /Healthz": false,
		"PUT x.h.example/pub/": true, "PUT h.example/pub/": false, "GET x.h.example/pub": false, "PROPFIND x.h.example/pub/": false,
		"GET /open/monday": true, "GET /open/tuesday": false,
	} {
		if got := s.Covers(action(request)); got != want {
			t.Errorf("%s: got %v, want %v", request, got, want)
		}
	}
	if s.Covers(Action{Method: "GET", Path: "healthz"}) || new(Ruleset).Covers(action("GET /")) || none.Covers(action("GET /")) {
		t.Error("an empty ruleset covers nothing, and no ruleset what is no path")
	}
	asking := action("GET /open/monday")
	asking.Header = map[string][]string{"X-Env": {"prod"}}
	if s.Covers(asking) {
		t.Errorf("%v: got true, want false", asking)
	}
	for text, want := range map[string]string{
		"deny GET /a": `rule "deny GET /a": only an allow is possible here`,
		`allow GET /a when user.labels.env == "prod"`: "there is no service user here, so the condition cannot look at user.labels.env",
		`allow GET /a when has(user.alias)`:           "there is no service user here, so the condition cannot look at user.alias",
	} {
		if s, err := NewRuleset(group(t, "", "allow GET /b", text).Rules); err == nil || !strings.Contains(err.Error(), want) || s != nil {
			t.Errorf("%s: got %v, %v, want %q", text, s, err, want)
		}
	}
	if s, err := NewRuleset([]Rule{{Effect: Allow, Methods: []string{"GET"}, Path: "/a", When: "request"}}); err == nil || s != nil {
		t.Errorf("a condition that is none: got %v, %v", s, err)
	}
}

// TestObserve: groups that observe say what they would have made of a decision,
// and change none.
func TestObserve(t *testing.T) {
	named := func(id, name, condition string, mode Mode, texts ...string) Group {
		g := group(t, id, texts...)
		g.Name, g.Mode, g.Condition = name, mode, condition
		return g
	}
	groups := []Group{
		named("g1", "enforcing", "", Enforce, "allow GET /pass", "allow GET /both", "deny GET /stop", "allow GET /stop"),
		named("g2", "observing", "", Observe, "deny GET /pass", "allow GET /both", "allow GET /new", "allow GET /silenced", "deny GET /stop",
			`allow GET /when/{x} when params.x == "yes"`, `allow GET /when/{x} when user.labels.none == ""`),
		named("g3", "louder", "", Observe, "deny GET /silenced", `deny GET /both when user.labels.none == ""`, `deny GET /pass when false`),
		named("g4", "doubted", `user.labels.none == ""`, Observe, "deny GET /doubted", "allow GET /doubtful"),
		named("g5", "everyone", "", Observe, "allow GET /default", "allow GET /doubted"),
	}
	for _, row := range []struct {
		groups, narrowed string // separated by blanks
		request          string
		want             string
	}{
		{"g1 g2", "", "GET /pass", `granted, would deny by observing: deny GET /pass`},
		{"g1", "", "GET /pass", `granted`},
		{"g1 g3", "", "GET /pass", `granted`},
		{"g1 g2", "", "GET /both", `granted`},
		{"g1 g2 g3", "", "GET /both", `granted, would deny by louder: deny GET /both when user.labels.none == ""`},
		{"g1 g2", "", "GET /new", `no_rule, would allow by observing: allow GET /new`},
		{"g2", "", "GET /new", `no_rule, would allow by observing: allow GET /new`},
		{"g2", "", "GET /when/yes", `no_rule, would allow by observing: allow GET /when/{x} when params.x == "yes"`},
		{"g2", "", "GET /when/no", `no_rule`},
		{"g2", "", "GET /silenced", `no_rule, would allow by observing: allow GET /silenced`},
		{"g2 g3", "", "GET /silenced", `no_rule`},
		{"g2", "", "GET /pass", `no_rule`},
		{"g1 g2", "", "GET /stop", `denied_by_rule`},
		{"", "", "GET /default", `no_rule, would allow by everyone: allow GET /default`},
		{"", "", "GET /doubtful", `no_rule`},
		{"", "", "GET /doubted", `no_rule`}, // by everyone, but silenced by doubted
		{"g4", "", "GET /doubtful", `no_rule, would allow by doubted: allow GET /doubtful`},
		// A narrowing leaves the denies.
		{"g1 g2", "g1", "GET /new", `no_rule`},
		{"g1 g2", "g1", "GET /pass", `granted, would deny by observing: deny GET /pass`},
		{"g1 g2", "g2", "GET /new", `no_rule, would allow by observing: allow GET /new`},
		{"g1 g2", "g2", "GET /pass", `no_rule`},
		{"g1 g2 g3", "g2", "GET /silenced", `no_rule`},
		{"g1", "g1", "GET /default", `no_rule`},
		{"g1", "g5", "GET /default", `no_rule, would allow by everyone: allow GET /default`},
		{"g1", "g4", "GET /doubtful", `no_rule`},
	} {
		u := user(1, strings.Fields(row.groups)...)
		u.Tokens[0].Groups = strings.Fields(row.narrowed)
		d := with(t, NewDirectory(Peppers{}, "everyone"), Changes{Groups: groups, Users: []User{u}})
		decision := d.Authorize(enter(t, d, login(1)), action(row.request))
		got := decision.Reason.String()
		if w := decision.Would; w != (Would{}) {
			got += fmt.Sprintf(", would %s by %s: %s", w.Effect, w.Group.Name, w.Rule)
		}
		if got != row.want {
			t.Errorf("%s in %q, narrowed to %q: got %s, want %s", row.request, row.groups, row.narrowed, got, row.want)
		}
	}
}

// TestConditionBudget: what all conditions of one request may cost is bounded.
// Beyond, they cannot be evaluated.
func TestConditionBudget(t *testing.T) {
	const costly = `user.labels.exists(k, k.size() > 100)` // false
	c, err := ParseWhen(costly)
	if err != nil {
		t.Fatal(err)
	}
	affordable := int(conditionBudget / c.cost)
	if affordable < 5 || affordable > 5000 {
		t.Fatalf("%s costs %d of %d: too little or too much for a test", costly, c.cost, conditionBudget)
	}
	times := func(n int, rule string) []string { return slices.Repeat([]string{rule + " when " + costly}, n) }
	for _, row := range []struct {
		what                 string
		enforcing, observing []string
		want                 string
	}{
		{"denies within it", append(times(affordable, "deny GET /a"), "allow GET /a"), nil, "granted"},
		{"denies beyond it", append(times(affordable+1, "deny GET /a"), "allow GET /a"), nil, "denied_by_rule"},
		{"allows within it", append(times(affordable-1, "allow GET /a"), `allow GET /a when true`), nil, "granted"},
		{"allows beyond it", append(times(affordable+1, "allow GET /a"), `allow GET /a when true`), nil, "no_rule"},
		{"an allow that costs nothing", append(times(affordable+1, "allow GET /a"), `allow GET /a`), nil, "granted"},
		{"denies and allows", append(append(times(affordable, "deny GET /a"), times(1, "allow GET /a")...), "allow GET /a when true"), nil, "no_rule"},
		{"other paths", append(times(affordable+1, "deny GET /b"), "allow GET /a when true"), nil, "granted"},
		{"other methods", append(times(affordable+1, "deny POST /a"), "allow GET /a when true"), nil, "granted"},
		{"observing, within it", append(times(affordable, "deny GET /a"), "allow GET /a"), times(affordable, "deny GET /a"), "granted"},
		{"observing, beyond it", append(times(affordable, "deny GET /a"), "allow GET /a"), times(affordable+1, "deny GET /a"), "granted, would deny"},
		{"observing, and the others", []string{"allow GET /a when true"}, times(affordable+1, "deny GET /a"), "granted, would deny"},
	} {
		observing := group(t, "g2", row.observing...)
		observing.Mode = Observe
		d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g1", row.enforcing...), observing}, Users: []User{user(1, "g1", "g2")}})
		decision := d.Authorize(enter(t, d, login(1)), action("GET /a"))
		got := decision.Reason.String()
		if decision.Would.Effect != "" {
			got += ", would " + string(decision.Would.Effect)
		}
		expect(t, row.what, got, row.want)
	}
}

func TestAuthenticate(t *testing.T) {
	const expiry, start = 2000, 500
	prefixes := func(texts ...string) (list []netip.Prefix) {
		for _, text := range texts {
			list = append(list, netip.MustParsePrefix(text))
		}
		return list
	}
	users := make(map[string]User)
	add := func(n int, name string, change func(*User, *Token)) {
		u := user(n)
		u.ID = name
		change(&u, &u.Tokens[0])
		users[name] = u
	}
	add(1, "plain", func(u *User, k *Token) { u.Alias = "old@example" })
	add(2, "revoked", func(u *User, k *Token) { k.Revoked = true })
	add(3, "inactive", func(u *User, k *Token) { u.Active = false })
	add(4, "ending", func(u *User, k *Token) { u.ExpiresAt = expiry })
	add(5, "timed", func(u *User, k *Token) { k.NotBefore, k.ExpiresAt = start, expiry })
	add(6, "homely", func(u *User, k *Token) {
		u.AllowedIPs = prefixes("10.1.0.0/16", "2001:db8::/32", "192.0.2.7/32", "fe80::/10")
		k.AllowedIPs = prefixes("10.1.2.0/24", "2001:db8::1/128", "192.0.2.0/24", "fe80::/10")
	})
	add(7, "bare", func(u *User, k *Token) { u.Tokens = nil })
	add(8, "several", func(u *User, k *Token) {
		old := token(9)
		old.ExpiresAt = expiry
		u.Tokens = append(u.Tokens, old, token(10))
	})
	add(11, "hopeless", func(u *User, k *Token) {
		u.Active, u.ExpiresAt, u.AllowedIPs = false, 1, prefixes("10.0.0.0/8")
		k.Revoked, k.ExpiresAt, k.NotBefore, k.AllowedIPs = true, 1, expiry, prefixes("10.0.0.0/8")
	})
	add(12, "impostor", func(u *User, k *Token) { u.Alias = "plain" })
	var c Changes
	for _, u := range users {
		c.Users = append(c.Users, u)
	}
	d := with(t, NewDirectory(Peppers{}, ""), c)

	typo := []byte(secret(1))
	typo[20] ^= 1
	for _, row := range []struct {
		want    Reason
		id      string // "" is Bearer
		secret  string
		address string
		now     int64
	}{
		{Granted, "plain", secret(1), "192.0.2.1", 0},
		{Granted, "old@example", secret(1), "192.0.2.1", 0},
		{Granted, "", secret(1), "192.0.2.1", 0},

		{UnknownID, "nobody", secret(1), "192.0.2.1", 0},
		{UnknownID, "nobody", string(typo), "192.0.2.1", 0},
		{UnknownID, "Plain", secret(1), "192.0.2.1", 0},
		{UnknownID, "OLD@example", secret(1), "192.0.2.1", 0},
		{UnknownID, "plain ", secret(1), "192.0.2.1", 0},
		{UnknownID, "token_1", secret(1), "192.0.2.1", 0},
		{UnknownID, "user 1", secret(1), "192.0.2.1", 0}, // a name is no login

		{WrongSecret, "plain", secret(2), "192.0.2.1", 0},
		{WrongSecret, "plain", secret(99), "192.0.2.1", 0},
		{WrongSecret, "bare", secret(7), "192.0.2.1", 0},
		{WrongSecret, "", secret(99), "192.0.2.1", 0},
		{WrongSecret, "", secret(7), "192.0.2.1", 0},
		{WrongSecret, "plain", secret(12), "192.0.2.1", 0}, // an alias does not shadow an id
		{Granted, "impostor", secret(12), "192.0.2.1", 0},

		{BadChecksum, "plain", string(typo), "192.0.2.1", 0},
		{BadChecksum, "plain", "password", "192.0.2.1", 0},
		{BadChecksum, "plain", "", "192.0.2.1", 0},
		{BadChecksum, "plain", secret(1) + "0", "192.0.2.1", 0},
		{BadChecksum, "plain", strings.ToLower(secret(1)), "192.0.2.1", 0},
		{BadChecksum, "bare", "x", "192.0.2.1", 0},
		{BadChecksum, "", string(typo), "192.0.2.1", 0},
		{BadChecksum, "", "", "192.0.2.1", 0},

		{TokenRevoked, "revoked", secret(2), "192.0.2.1", 0},
		{TokenRevoked, "", secret(2), "192.0.2.1", 0},
		{WrongSecret, "revoked", secret(1), "192.0.2.1", 0},

		{UserInactive, "inactive", secret(3), "192.0.2.1", 0},
		{UserInactive, "", secret(3), "192.0.2.1", 0},
		{WrongSecret, "inactive", secret(1), "192.0.2.1", 0},

		{Granted, "ending", secret(4), "192.0.2.1", expiry - 1},
		{UserExpired, "ending", secret(4), "192.0.2.1", expiry},
		{UserExpired, "ending", secret(4), "192.0.2.1", expiry + 1},
		{UserExpired, "", secret(4), "192.0.2.1", expiry},

		{TokenNotYet, "timed", secret(5), "192.0.2.1", start - 1},
		{Granted, "timed", secret(5), "192.0.2.1", start},
		{Granted, "timed", secret(5), "192.0.2.1", expiry - 1},
		{TokenExpired, "timed", secret(5), "192.0.2.1", expiry},
		{TokenExpired, "timed", secret(5), "192.0.2.1", expiry + 1},
		{TokenExpired, "", secret(5), "192.0.2.1", expiry},

		{Granted, "homely", secret(6), "10.1.2.3", 0},
		{Granted, "homely", secret(6), "::ffff:10.1.2.3", 0},
		{Granted, "homely", secret(6), "2001:db8::1", 0},
		{Granted, "homely", secret(6), "192.0.2.7", 0},
		{Granted, "homely", secret(6), "fe80::1", 0},
		{Granted, "homely", secret(6), "fe80::1%eth0", 0},
		{Granted, "", secret(6), "10.1.2.3", 0},
		{UserAddress, "homely", secret(6), "10.2.0.1", 0},
		{UserAddress, "homely", secret(6), "192.0.2.8", 0},
		{UserAddress, "homely", secret(6), "::ffff:192.0.2.8", 0},
		{UserAddress, "homely", secret(6), "::10.1.2.3", 0},
		{UserAddress, "homely", secret(6), "64:ff9b::10.1.2.3", 0},
		{UserAddress, "homely", secret(6), "", 0}, // unknown
		{UserAddress, "", secret(6), "10.2.0.1", 0},
		{TokenAddress, "homely", secret(6), "10.1.3.1", 0},
		{TokenAddress, "homely", secret(6), "::ffff:10.1.3.1", 0},
		{TokenAddress, "homely", secret(6), "2001:db8::2", 0},
		{Granted, "plain", secret(1), "", 0},

		{Granted, "several", secret(8), "192.0.2.1", expiry},
		{Granted, "several", secret(9), "192.0.2.1", expiry - 1},
		{TokenExpired, "several", secret(9), "192.0.2.1", expiry},
		{Granted, "several", secret(10), "192.0.2.1", expiry},
		{Granted, "", secret(10), "192.0.2.1", expiry},
		{WrongSecret, "several", secret(11), "192.0.2.1", expiry},

		{TokenRevoked, "hopeless", secret(11), "192.0.2.1", 100},
	} {
		address, _ := netip.ParseAddr(row.address)
		p, got := d.Authenticate(Credential{row.id, row.secret}, address, row.now)
		if got != row.want {
			t.Errorf("id %q, secret %.10q, from %q at %d: got %v, want %v", row.id, row.secret, row.address, row.now, got, row.want)
		}
		if got != Granted && (p.ID() != "" || p.TokenID() != "" || p.groups != nil) {
			t.Errorf("id %q: got %v with the principal %v", row.id, got, p)
		}
		if hash, _ := (Peppers{}).Hash(row.secret); got == Granted && (p.Token().Hash != hash || row.id != "" && p.ID() != row.id && p.profile().Alias != row.id) {
			t.Errorf("id %q, secret %.10q: got %s with %s", row.id, row.secret, p, p.TokenID())
		}
	}
}

// TestResumeGroups: a principal that is asked for again has the groups that its
// token and its user have now.
func TestResumeGroups(t *testing.T) {
	change := func(f func(*User, *Token)) Changes {
		u := labelled(1, "prod", "g2")
		u.Tokens[0].Groups = []string{"g1"}
		f(&u, &u.Tokens[0])
		return Changes{Users: []User{u}}
	}
	first := change(func(*User, *Token) {})
	first.Groups = []Group{groupOf(t, "g1", `user.labels.env == "prod"`, "allow GET /a"), group(t, "g2", "allow GET /b")}
	d := with(t, NewDirectory(Peppers{}, ""), first)
	p := enter(t, d, login(1))
	for _, row := range []struct {
		what    string
		changes Changes
		want    string
	}{
		{"nothing", Changes{}, "g1"},
		{"other labels", change(func(u *User, _ *Token) { u.Labels = nil }), ""},
		{"another condition", Changes{Groups: []Group{groupOf(t, "g1", "false")}}, ""},
		{"not narrowed", change(func(_ *User, k *Token) { k.Groups = nil }), "g1,g2"},
		{"otherwise narrowed", change(func(_ *User, k *Token) { k.Groups = []string{"g2"} }), "g2"},
		{"one more token", change(func(u *User, k *Token) { u.Tokens = append([]Token{token(3)}, *k) }), "g1"},
	} {
		next := with(t, d, row.changes)
		again, why := next.Resume(p, here, 1000)
		if why != Granted || again.GroupList() != row.want {
			t.Errorf("%s: got %v in %q, want %q", row.what, why, again.GroupList(), row.want)
		}
		for id, request := range map[string]string{"g1": "GET /a", "g2": "GET /b"} {
			if got, want := next.Authorize(again, action(request)).Allowed(), strings.Contains(row.want, id); got != want {
				t.Errorf("%s, %s: got %v, want %v", row.what, request, got, want)
			}
		}
	}
}

// TestResumeNobody: whoever was not authenticated cannot be asked for again.
func TestResumeNobody(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Users: []User{user(1)}})
	asked, why := d.Principal(user(1).ID, "", here, 1000)
	if why != Granted {
		t.Fatal(why)
	}
	for _, row := range []struct {
		what string
		p    Principal
		want Reason
	}{
		{"nobody", Principal{}, UnknownID},
		{"a service user without a token", asked, TokenRevoked},
		{"one with a token", enter(t, d, login(1)), Granted},
	} {
		if again, got := d.Resume(row.p, here, 1000); got != row.want || again.ID() != "" && got != Granted {
			t.Errorf("%s: got %v as %q, want %v", row.what, got, again, row.want)
		}
	}
}

// TestUnknownIDCost: an unknown id takes the very steps of a known one. Every
// digest is made before anybody is looked up, so what is left to differ is the
// comparison: there is one, with a hash that no secret has.
func TestUnknownIDCost(t *testing.T) {
	peppers, err := ParsePeppers(newKey + "\n" + oldKey)
	if err != nil {
		t.Fatal(err)
	}
	hash, id := peppers.Hash(secret(1))
	known, bare := user(1), user(2)
	known.Tokens = []Token{{ID: "token_1", Hash: hash, Pepper: id}}
	bare.Tokens = nil
	d := with(t, NewDirectory(peppers, ""), Changes{Users: []User{known, bare}})
	digest := peppers.digest(secret(99))
	for _, c := range []Credential{{known.ID, secret(99)}, {bare.ID, secret(99)}, {"nobody", secret(99)}, {"", secret(99)}} {
		if _, a := d.candidate(c, &digest); a.count != 1 {
			t.Errorf("id %q: got %d hashes to compare with, want 1", c.ID, a.count)
		}
	}
	// Not even a secret with the hash of nobody would be somebody's.
	a := nobody.account()
	if m := a.find(new(digests), nil); m.place >= 0 {
		t.Errorf("nobody's token: got %+v, want none", m)
	}
	if why := a.usable(new(tokenRow), here, 1000); why != UserInactive {
		t.Errorf("nobody: got %s, want %s", why, UserInactive)
	}
	for i, hash := range digest[:3] {
		if hash == (Hash{}) || hash == digest[i+1] {
			t.Errorf("digest %d: got %x, want one of its own for every pepper and for none", i, hash)
		}
	}
}

// A request of which the header is not kept is refused where a condition asks for it:
// an allow does not apply, and a deny does.
func TestHeaderGone(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Users: []User{user(1, "g")}, Groups: []Group{group(t, "g",
		"allow GET /plain", "allow GET /denied", `deny GET /denied when request.header("X-Env") == "dev"`,
		`allow GET /allowed when request.header("X-Env") == "prod"`, `allow GET /not when request.path == "/not" || request.header("X-Env") == ""`)}})
	p := enter(t, d, login(1))
	for path, want := range map[string]struct{ asks, before, after bool }{
		"/plain": {false, true, true}, "/denied": {true, true, false}, "/allowed": {true, true, false}, "/not": {true, true, true}, "/none": {false, false, false},
	} {
		a := Action{Method: "GET", Path: path, Header: map[string][]string{"X-Env": {"prod"}}}
		if got := d.Authorize(p, a); got.Allowed() != want.before || got.Header != want.asks {
			t.Errorf("%s: got %t, asking for the header %t, want %+v", path, got.Allowed(), got.Header, want)
		}
		a.Header, a.HeaderGone = nil, true
		if got := d.Authorize(p, a).Allowed(); got != want.after {
			t.Errorf("%s without its header: got %t, want %t", path, got, want.after)
		}
	}
}
