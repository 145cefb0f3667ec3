package caddymodule

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// everyOption are the lines of a Caddyfile with all options for targets.
const everyOption = `allow_encoded hash question_mark backslash slash percent semicolon space latin1
	allow_unicode lookalikes spaces format non_nfc
	allow_raw brackets
	merge_slashes
	allow_trailing_dot`

// clientTargets are targets of real clients that had no way through, each with its option.
var clientTargets = map[string]string{
	"/labels/C%23": "allow_encoded hash",
	"/_matrix/client/v3/directory/room/%23room%3Aexample.org": "allow_encoded hash",
	"/wiki/Who%3F":                            "allow_encoded question_mark",
	"/users/DOMAIN%5Cuser":                    "allow_encoded backslash",
	"/users/DOMAIN%5cuser":                    "allow_encoded backslash",
	"/api/queues/%2F/orders":                  "allow_encoded slash",
	"/api/queues/%2f/orders":                  "allow_encoded slash",
	"/fetch/http%3A%2F%2Fhost":                "allow_encoded slash",
	"/discount/100%25":                        "allow_encoded percent",
	"/a;v=1/b":                                "allow_encoded semicolon",
	"/a%3Bv":                                  "allow_encoded semicolon",
	"/files/%20notes.txt":                     "allow_encoded space",
	"/files/notes%20":                         "allow_encoded space",
	"/files/caf%E9":                           "allow_encoded latin1",
	"/files/caf%e9":                           "allow_encoded latin1",
	"/files/9.41%E2%80%AFAM.png":              "allow_unicode spaces",
	"/files/a%C2%A0b":                         "allow_unicode spaces",
	"/files/%E3%80%80a":                       "allow_unicode spaces",
	"/wiki/%D9%85%DB%8C%E2%80%8C%D8%AE%D9%88": "allow_unicode format",
	"/wiki/who%EF%BC%9F":                      "allow_unicode lookalikes",
	"/wiki/wait%E2%80%A6":                     "allow_unicode lookalikes",
	"/files/e%CC%81":                          "allow_unicode non_nfc",
	"/a[0]/b]":                                "allow_raw brackets",
	"/a/b.":                                   "allow_trailing_dot",
}

// TestClientTargets sends the targets of real clients through a real Caddy: with the option they arrive
// upstream as they were sent, without it the answer is 400. It names no option, but the log does.
func TestClientTargets(t *testing.T) {
	t.Parallel()
	strict, refusedUp, stranger := withUpstream(t, guarded("", "realm strict", ""))
	relaxed, up, user := withUpstream(t, guarded("", everyOption, ""))
	relaxed.mustCLI("rule", "add", "everything", "deny * /admin/{rest...}")
	var passing, refused []attempt
	for target, option := range clientTargets {
		passing = append(passing, attempt{
			name: target, path: target, header: "Authorization: " + basic(user.id, user.secret), status: 200,
			passes: true, has: "GET " + target + " HTTP/1.1",
		})
		refused = append(refused, attempt{name: target, path: target, header: "Authorization: " + basic(stranger.id, stranger.secret), status: 400})
		h := new(Handler)
		if _, p := access.Judge("GET", "a", target, h.relax); strings.Join(p.Need.Lines(), " and ") != option {
			t.Errorf("%s: needs %v, want %s", target, p.Need.Lines(), option)
		}
	}
	relaxed.try(t, up, passing)
	strict.try(t, refusedUp, refused)
	log := strict.log.String()
	for target, option := range clientTargets {
		if !strings.Contains(log, "the option "+option+" would let it pass") {
			t.Errorf("%s: the log does not advise %s", target, option)
		}
	}
	ours := "Authorization: " + basic(user.id, user.secret)
	relaxed.try(t, up, []attempt{
		// Go encodes these two, and would decode the slash.
		{name: "raw bars beside an encoded slash", path: "/x%2Fa|b^c", header: ours, status: 200, passes: true, has: "GET /x%2Fa%7Cb%5Ec HTTP/1.1"},
		{name: "with a query", path: "/a|b?c=|", header: ours, status: 200, passes: true, has: "GET /a%7Cb?c=| HTTP/1.1"},
		{name: "Turkish", path: "/d%C4%B1%C5%9F/%C4%B0zmir", header: ours, status: 200, passes: true, has: "GET /d%C4%B1%C5%9F/%C4%B0zmir HTTP/1.1"},
		{name: "Turkish and a deny", path: "/adm%C4%B1n", header: ours, status: 403},
		{name: "a deny behind a slash", path: "/admin%2Fx%23", header: ours, status: 403},
		{name: "a deny behind a raw bar", path: "/admin%2Fx|", header: ours, status: 403},
		{name: "a deny, decoded again", path: "/%2561dmin", header: ours, status: 403},
		{name: "a deny, cut", path: "/admin%23/../x", header: ours, status: 400},
		{name: "a deny, cut, without dots", path: "/admin%23/x", header: ours, status: 403},
		{name: "dots, decoded again", path: "/%252e%252e/x", header: ours, status: 400},
		{name: "another host", path: "/%5Cevil.example", header: ours, status: 400},
		{name: "braces", path: "/{x}", header: ours, status: 400},
	})
}

// TestShownPath: the path of a refusal in the log, in the lists and in the explanation can be sent again:
// explain then judges it as the guard has judged the request.
func TestShownPath(t *testing.T) {
	t.Parallel()
	s, _, _ := withUpstream(t, guarded("", everyOption, ""))
	s.mustCLI("group", "create", "secrets", "--rule", "allow GET /api/queues/secret/orders", "--rule", "deny GET /x/{y}")
	s.mustCLI("group", "create", "trial", "--mode", "observe", "--rule", "allow GET /{rest...}")
	user := s.create("scout", "--group", "secrets", "--group", "trial")
	explain := func(question string) (e admin.Explanation) {
		t.Helper()
		s.local("POST", "/service_users/explain", question, &e)
		return e
	}
	targets := append(slices.Sorted(maps.Keys(clientTargets)), "/api/queues/secret%2Forders", "/a%252Fb", "/%C3%A9/a%20b", "/x/%2F")
	ids := make(map[string]string)
	for _, target := range targets {
		ids[target] = s.refusedRequest("GET", "API_PORT", target, user)
		// Requests without an identity have no decision id.
		if got := s.do("GET", "API_PORT", target, credentials{user.id, "wrong"}, ""); got.StatusCode < 401 {
			t.Errorf("%s with a wrong secret: got %d", target, got.StatusCode)
		}
	}
	logged, listed := make(map[string]string), make(map[string][]string)
	for _, entry := range s.ourLog("not allowed") {
		logged[entry["decision_id"].(string)] = entry["path"].(string)
	}
	var list admin.RefusalList
	s.local("GET", "/service_users/"+user.id+"/refusals", "", &list)
	for _, r := range list.Refusals {
		listed[r.DecisionID] = append(listed[r.DecisionID], r.Path)
	}
	for _, target := range targets {
		id := ids[target]
		want := explain(`{"decision_id":"` + id + `"}`)
		for _, path := range append([]string{logged[id], want.Path}, listed[id]...) {
			again := explain(fmt.Sprintf(`{"service_user_id":%q,"method":"GET","url":%q,"site":"localhost"}`, user.id, path))
			if path != want.Path || again.Path != want.Path || again.Decision != "deny" || again.Reason != want.Reason || again.Now != "" {
				t.Errorf("%s: shown as %q: got %s %s %q, want %s %q", target, path, again.Decision, again.Reason, again.Path, want.Reason, want.Path)
			}
		}
		if sent := strings.NewReplacer("%3A", ":", "%3B", ";", "[", "%5B", "]", "%5D").Replace(target); !strings.EqualFold(want.Path, sent) {
			t.Errorf("%s: shown as %s", target, want.Path)
		}
		if !slices.ContainsFunc(listed[""], func(path string) bool { return path == target }) {
			t.Errorf("%s: the requests with a wrong secret are %q", target, listed[""])
		}
	}
	var counted admin.WouldDenyList
	s.local("GET", "/service_users/would_deny?would=allow", "", &counted)
	for _, row := range counted.WouldDeny {
		again := explain(fmt.Sprintf(`{"service_user_id":%q,"method":"GET","url":%q,"site":"localhost"}`, user.id, row.Example))
		if again.Path != row.Example || again.Reason != "no_rule" {
			t.Errorf("would-deny: the example %s is %s %s", row.Example, again.Reason, again.Path)
		}
	}
	if len(counted.WouldDeny) < 5 {
		t.Errorf("would-deny has %d rows", len(counted.WouldDeny))
	}
	got := s.mustCLI("explain", user.id, "GET", "/api/queues/%2F/orders", "--site", "localhost")
	for _, want := range []string{"GET localhost/api/queues/%2F/orders", `the path has "%2F" where /api/queues/secret/orders has "secret"`} {
		if !strings.Contains(got, want) {
			t.Errorf("explain: %q is not in\n%s", want, got)
		}
	}
}

// TestRefusalNamesNoOption: the caller learns the offence and its place in the target that it sent. The
// log has the options with which the request passes, and none that would not help.
func TestRefusalNamesNoOption(t *testing.T) {
	for _, tt := range []struct {
		handler      Handler
		target, want string
		advice       string // in the log, behind want
	}{
		{Handler{}, "/v1/%61%2Fb", "the path holds %2F at position 7, which programs read differently", "; the option allow_encoded slash would let it pass"},
		{Handler{}, "/v1/a%2Fb//c", "the path holds %2F at position 5, which programs read differently", "; the options allow_encoded slash, merge_slashes together would let it pass"},
		{Handler{AllowEncoded: []string{"slash"}}, "/v1/a%2Fb//c", "the path has an empty segment at position 10", "; the option merge_slashes would let it pass"},
		{Handler{}, "/v1/a%2F..%2Fb", "the path has a dot segment at position 8", ""},
		{Handler{AllowEncoded: []string{"percent"}}, "/v1/%252e%252e", "some programs read a dot segment, because of the character at position 4", ""},
		{Handler{Relax: []string{"merge_slashes"}}, "//v1//%61//a;b", "the path holds the byte 0x3b at position 12, which programs read differently", "; the option allow_encoded semicolon would let it pass"},
		{Handler{Relax: []string{"merge_slashes", "allow_trailing_dot"}, AllowEncoded: []string{"slash"}, around: surroundings{currentOnly: true, splits: []string{".php"}}}, "//%76//a.php..%2Fx",
			"FastCGI divides the path, and a part is not valid: the path has a dot segment at position 12", ""},
		// PATH_INFO begins with a space.
		{Handler{around: surroundings{currentOnly: true, splits: []string{".php"}}}, "/v1/a.php%20x",
			"FastCGI divides the path, and a part is not valid: the path segment at position 9 begins or ends with a space", "; the option allow_encoded space would let it pass"},
		{Handler{around: surroundings{currentOnly: true, splits: []string{".php"}}}, "/v1/a;b/x.php../y", "the path holds the byte 0x3b at position 5, which programs read differently", ""},
	} {
		g := newGuard(t, tt.handler)
		g.log.TakeAll()
		w := g.askRewritten(g.reader, "GET "+tt.target, "", nil)
		if body := w.Body.String(); w.Code != 400 || !strings.Contains(body, `"detail":"`+tt.want+`"`) {
			t.Errorf("%s: got %d, %s, want %s", tt.target, w.Code, body, tt.want)
		}
		lines := g.log.FilterMessage("request refused").All()
		if len(lines) != 1 || lines[0].ContextMap()["why"] != tt.want+tt.advice || lines[0].ContextMap()["path"] != tt.target {
			t.Errorf("%s: logged %v, want %s", tt.target, lines, tt.want+tt.advice)
		}
	}
}

// TestFurtherReadings: the targets of FastCGI are judged in all their readings.
func TestFurtherReadings(t *testing.T) {
	for target, want := range map[string]int{
		"GET /v1/index.php/denied%23x": 403, "GET /v1/index.php/x%2F..%2Fdenied": 400, "GET /v1/index.php%2Fdenied": 403, "GET /v1/index.php/%2564enied": 403,
		"GET /v1/index.php/http%3A%2F%2Fhost": 204, "GET /v1/index.php%23": 204, "GET /v1/a%23b": 204, "GET /denied%23.php": 403, "GET /v1/x;/a.php": 204,
	} {
		g := newGuard(t, Handler{AllowEncoded: []string{"hash", "slash", "percent", "semicolon"}, Mode: "observe", around: surroundings{currentOnly: true, splits: []string{".php"}}})
		if w := g.askRewritten(g.reader, target, "", nil); w.Code != want {
			t.Errorf("%s: got %d, want %d", target, w.Code, want)
		}
	}
}

// TestOptionsAreDocumented: the pages about targets and configuration have each option.
func TestOptionsAreDocumented(t *testing.T) {
	for _, page := range []string{"../docs/targets.md", "../docs/configuration.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range access.Options() {
			name := strings.TrimSpace(o.Family + " " + o.Word)
			if page == "../docs/configuration.md" { // where a family has one line
				name = o.Word
			}
			if !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("%s does not have `%s`", page, name)
			}
			if o.Alias != "" && page == "../docs/targets.md" && !strings.Contains(string(text), "`"+o.Alias+"`") {
				t.Errorf("%s does not have the older name %s", page, o.Alias)
			}
		}
	}
}
