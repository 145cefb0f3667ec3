package access

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

func TestParseRule(t *testing.T) {
	for _, row := range []struct {
		text string
		want Rule
	}{
		{"allow GET /v1/people/{id}", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/v1/people/{id}"}},
		{"allow GET,HEAD /v1/people/{id}/address", Rule{Effect: Allow, Methods: []string{"GET", "HEAD"}, Path: "/v1/people/{id}/address"}},
		{"deny DELETE api.example.com/v1/{rest...}", Rule{Effect: Deny, Methods: []string{"DELETE"}, Host: "api.example.com", Path: "/v1/{rest...}"}},
		{"deny * *.Example.COM/", Rule{Effect: Deny, Methods: []string{"*"}, Host: "*.example.com", Path: "/"}},
		{"allow POST [2001:DB8:0::1]/x", Rule{Effect: Allow, Methods: []string{"POST"}, Host: "[2001:db8::1]", Path: "/x"}},
		{"allow GET,POST,GET,POST /x", Rule{Effect: Allow, Methods: []string{"GET", "POST"}, Path: "/x"}},
		{"allow M-SEARCH,PROPFIND /x", Rule{Effect: Allow, Methods: []string{"M-SEARCH", "PROPFIND"}, Path: "/x"}},
		{" \tallow\tGET \t /x \t ", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/x"}},
		{"allow GET /a whenever/b when/c", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/a whenever/b when/c"}},
		{"allow GET /a b/when/x", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/a b/when/x"}},
		{"allow GET /straße/日本/é", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/straße/日本/é"}},
		{"allow GET /.well-known/a.b/x:y@z!$&'()*+,=~_-", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/.well-known/a.b/x:y@z!$&'()*+,=~_-"}},
		{"allow GET /{_a1}/{B...}", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/{_a1}/{B...}"}},
		{"allow GET /v1/", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/v1/"}},
		{"allow GET LocalHost/x", Rule{Effect: Allow, Methods: []string{"GET"}, Host: "localhost", Path: "/x"}},
		{"allow GET *.Internal/x", Rule{Effect: Allow, Methods: []string{"GET"}, Host: "*.internal", Path: "/x"}},
		{"allow GET 192.0.2.1/x", Rule{Effect: Allow, Methods: []string{"GET"}, Host: "192.0.2.1", Path: "/x"}},
		{"allow GET /x when true", Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/x", When: "true"}},
		{"deny * h.example/  when \t user.role  ==  \"admin\" \t ", Rule{Effect: Deny, Methods: []string{"*"}, Host: "h.example", Path: "/", When: `user.role  ==  "admin"`}},
		{`allow GET /v1/people/{id} when params.id in user.labels.people.split(",")`, Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/v1/people/{id}", When: `params.id in user.labels.people.split(",")`}},
		{`allow GET /x when request.path == "/x when y"`, Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/x", When: `request.path == "/x when y"`}},
		{`allow GET /x when user.name == 'é' // so it is`, Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/x", When: `user.name == 'é' // so it is`}},
		{"allow GET /" + strings.Repeat("a", 2047), Rule{Effect: Allow, Methods: []string{"GET"}, Path: "/" + strings.Repeat("a", 2047)}},
		{"allow GET " + strings.Repeat("/a", 32), Rule{Effect: Allow, Methods: []string{"GET"}, Path: strings.Repeat("/a", 32)}},
	} {
		got, err := ParseRule(row.text)
		if err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%q: got %+v, %v, want %+v", row.text, got, err, row.want)
		}
	}
}

// TestRuleMistakes: the message says what to write instead.
func TestRuleMistakes(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"", `write it as "EFFECT METHODS PATH", for example "allow GET,HEAD /v1/people/{id}"`},
		{"allow", `write it as "EFFECT METHODS PATH"`},
		{"allow GET", `write it as "EFFECT METHODS PATH"`},
		{"allow GET ", `write it as "EFFECT METHODS PATH"`},
		{"allow /v1/x", `write it as "EFFECT METHODS PATH"`},
		{"permit GET /x", `effect "permit": a rule begins with "allow" or "deny"`},
		{"Allow GET /x", `effect "Allow": a rule begins with "allow" or "deny"`},
		{"allow\u00a0GET GET /x", `a rule begins with "allow" or "deny"`},

		{"allow get /x", `method "get": methods are written in upper case, "GET"`},
		{"allow GET,Post /x", `method "Post": methods are written in upper case, "POST"`},
		{"allow GET, POST /x", `several are separated by commas without spaces`},
		{"allow GET,,POST /x", `method "" is not a word of A-Z and "-"; several are separated by commas without spaces`},
		{"allow GET|POST /x", `method "GET|POST" is not a word of A-Z`},
		{"allow *,GET /x", `method "*" cannot be combined with others: it already covers them`},
		{"allow GET,* /x", `method "*" cannot be combined with others`},
		{"deny *,* /x", `method "*" cannot be combined with others`},
		{"allow CONNECT /x", `method "CONNECT" never passes, so no rule can name it`},
		{"deny TRACE /x", `method "TRACE" never passes`},
		{"deny GET,TRACK /x", `method "TRACK" never passes`},
		{"deny PRI /x", `method "PRI" never passes`},
		{"allow " + strings.Repeat("GET,", 32) + "GET /x", `a rule names 1 to 32 methods, or "*" for all`},
		{"allow " + strings.Repeat("A", 33) + " /x", `is not a word of A-Z`},

		{"allow GET a.*.example/x", `host "a.*.example": "*" is allowed only at the front, as in "*.example.com"`},
		{"allow GET */x", `"*" is allowed only at the front`},
		{"allow GET *example.com/x", `"*" is allowed only at the front`},
		{"allow GET *.*.example.com/x", `"*" is allowed only at the front`},
		{"allow GET *./x", `host "*." is not a host name`},
		{"allow GET *.[::1]/x", `host "*.[::1]": "*." needs a name behind it, not an address`},
		{"allow GET api.example.com:443/x", `is not a host name without a port, such as "api.example.com" or "*.example.com"`},
		{"allow GET api.example.com:/x", `is not a host name without a port`},
		{"allow GET [::1]:443/x", `is not a host name without a port`},
		{"allow GET api.example.com./x", `is not a host name without a port`},
		{"allow GET ::1/x", `is not a host name without a port`},
		{"allow GET bücher.example/x", `is not a host name without a port`},
		{"allow GET user@h.example/x", `is not a host name without a port`},
		{"allow GET https://h.example/x", `host "https:" is not a host name`},
		{"allow GET {host}/x", `is not a host name without a port`},
		{"allow GET POST /x", `host "POST " is not a host name`},
		{"allow GET h/x", `host "h" has no domain; if it begins the path, write a slash before it, as in "/h/…"`},
		{"deny * v1/people/{id}", `host "v1" has no domain; if it begins the path, write a slash before it, as in "/v1/…"`},
		{"allow GET V1/people", `host "V1" has no domain; if it begins the path, write a slash before it, as in "/V1/…"`},
		{"allow GET localhost:80/x", `is not a host name without a port`},

		{"allow GET v1", `path "v1": a path starts with "/"`},
		{"allow GET api.example.com", `a path starts with "/"`},
		{"allow GET *", `a path starts with "/"`},
		{"allow GET {rest...}", `a path starts with "/"`},
		{"allow GET /a?b=c", `only the path is matched; leave out "?", "#" and what follows`},
		{"allow GET /a#b", `only the path is matched`},
		{`allow GET /a\b`, `no pattern can hold "\" or ";"; write a parameter such as {name} for the segment`},
		{"deny GET /a;b", `no pattern can hold "\" or ";"; write a parameter such as {name} for the segment`},
		{"allow GET /a\tb", "holds white space that never passes"},
		{"allow GET /a\nallow GET /b", "holds white space that never passes"},
		{"allow GET /a\u2028b", "holds white space that never passes"},
		{"allow GET /a\u00a0b", "cannot be a pattern: the path holds U+00A0 at position 2, a space that is not ASCII; write a parameter such as {name} for the segment"},
		{"allow GET /a\x00b", "can never match: the path holds a control character"},
		{"allow GET /é/a\x00b", "can never match: the path holds a control character"},
		{"deny * /é\x1b[31m", "can never match: the path holds a control character"},
		{"allow GET /é\x7f/{x}", "can never match: the path holds a control character"},
		{"allow GET /a\u200bb", "cannot be a pattern: the path holds U+200B"},
		{"allow GET /a／b", "cannot be a pattern: the path holds U+FF0F"},
		{"allow GET /\u212a", "can never match"},
		{"allow GET /e\u0301", "cannot be a pattern: the path is not in Unicode normalisation form C"},
		{"allow GET /\xff", "cannot be a pattern: the path is not valid UTF-8"},
		{"allow GET //a", "can never match: the path has an empty segment"},
		{"allow GET /a//", "can never match: the path has an empty segment"},
		{"allow GET /a/../b", "can never match: the path has a dot segment at position 3"},
		{"allow GET /v1/...", "can never match: the path has a dot segment at position 4"},
		{"allow GET /a /b", "cannot be a pattern: the path segment at position 1 begins or ends with a space"},

		{"allow GET /v1/admin*", `"admin*" is not a wildcard here; write {name} for a whole segment, or {rest...} at the end for all that follow`},
		{"allow GET /v1/*", `"*" is not a wildcard here; write {name} for a whole segment, or {rest...} at the end for all that follow`},
		{"allow GET /v1/**", `"**" is not a wildcard here`},
		{"deny GET /*/x", `"*" is not a wildcard here`},
		{"allow GET /{}", `a parameter is {name} or {name...}, fills a whole segment, and its name is letters, digits and "_"`},
		{"allow GET /{...}", `a parameter is {name} or {name...}`},
		{"allow GET /{a", `segment "{a": a parameter is {name}`},
		{"allow GET /a}", `segment "a}": a parameter is {name}`},
		{"allow GET /x{a}", `fills a whole segment`},
		{"allow GET /{a}.json", `fills a whole segment`},
		{"allow GET /{a}{b}", `fills a whole segment`},
		{"allow GET /{{a}}", `fills a whole segment`},
		{"allow GET /{a-b}", `its name is letters, digits and "_"`},
		{"allow GET /{1}", `its name is letters, digits and "_"`},
		{"allow GET /{é}", `its name is letters, digits and "_"`},
		{"allow GET /{a..}", `its name is letters, digits and "_"`},
		{"allow GET /{" + strings.Repeat("a", 65) + "}", `a parameter is {name}`},
		{"allow GET /{rest...}/x", `{rest...} takes all that follows, so it must be at the end`},
		{"allow GET /{rest...}/", `{rest...} takes all that follows`},
		{"allow GET /{a}/{a}", `the name {a} appears in it twice`},
		{"allow GET /{a}/{a...}", `the name {a} appears in it twice`},
		{"allow GET " + strings.Repeat("/a", 33), "the path has 33 segments, at most 32 are allowed"},
		{"allow GET /" + strings.Repeat("a", 2048), "the path has 2049 bytes, at most 2048 are allowed"},

		{"allow GET /x  when  a when b ", `condition "a when b": at character 3: Syntax error`},
		{"allow GET /x when /y", `condition "/y": at character 1: Syntax error`},
		{"allow GET /x when user.name", `condition "user.name" is a string, and must be true or false; compare it with something`},
		{"allow GET /{x}/y when params.y == \"a\"", `condition "params.y == \"a\"": the path has no {y}`},
		{"allow GET /x when true\nfalse", "condition \"true\\nfalse\": write it on one line, without control characters"},
		{"allow GET /x when ", `a condition follows "when"; leave the word out when there is none`},
		{"allow GET /x when \t ", `a condition follows "when"`},
		{"allow GET /x when", `" when " begins a condition and cannot be part of a path`},
		{"allow GET /x\twhen true", "holds white space that never passes"},
	} {
		r, err := ParseRule(row.text)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%.80q: got %+v, %v, want %q", row.text, r, err, row.want)
		}
		if !reflect.DeepEqual(r, Rule{}) {
			t.Errorf("%.80q: got %+v with an error", row.text, r)
		}
	}
}

// TestCheckRule has what only the JSON form of a rule can hold.
func TestCheckRule(t *testing.T) {
	fine := Rule{ID: "rule_1", Effect: Allow, Methods: []string{"GET", "GET"}, Host: "API.example", Path: "/x", When: "true", Name: "n", Description: "d", Permission: "p"}
	want := Rule{ID: "rule_1", Effect: Allow, Methods: []string{"GET"}, Host: "api.example", Path: "/x", When: "true", Name: "n", Description: "d", Permission: "p"}
	if got, err := fine.Check(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if len(fine.Methods) != 2 {
		t.Errorf("Check changed the rule it was given: %+v", fine)
	}
	for _, row := range []struct {
		change func(*Rule)
		want   string
	}{
		{func(r *Rule) { r.Effect = "" }, `effect "": a rule begins`},
		{func(r *Rule) { r.Methods = nil }, "a rule names 1 to 32 methods"},
		{func(r *Rule) { r.Methods = []string{"GET,POST"} }, `method "GET,POST" is not a word`},
		{func(r *Rule) { r.Methods = []string{"GET "} }, `method "GET " is not a word`},
		{func(r *Rule) { r.Host = "a/b" }, `host "a/b" is not a host name`},
		{func(r *Rule) { r.Host = " " }, `host " " is not a host name`},
		{func(r *Rule) { r.Path = "" }, `a path starts with "/"`},
		{func(r *Rule) { r.Path = "api.example/x" }, `a path starts with "/"`},
		{func(r *Rule) { r.Path = "/x when true" }, `" when " begins a condition and cannot be part of a path`},
		{func(r *Rule) { r.Path = "/x when" }, `" when " begins a condition and cannot be part of a path`},
		{func(r *Rule) { r.Host = "a" }, `host "a" has no domain`},
		{func(r *Rule) { r.When = " " }, `condition " ": write it without white space around it`},
		{func(r *Rule) { r.When = "true " }, `condition "true ": write it without white space around it`},
		{func(r *Rule) { r.When = "\u00a0true" }, `write it without white space around it`},
		{func(r *Rule) { r.When = `params.id == "7"` }, `condition "params.id == \"7\"": the path has no {id}`},
		{func(r *Rule) { r.Path, r.When = "/x;y", "nonsense" }, `no pattern can hold`},
	} {
		r := fine
		row.change(&r)
		if got, err := r.Check(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%+v: got %+v, %v, want %q", r, got, err, row.want)
		}
	}
}

// TestEscapeAdvice: what stands in the place of an escape is named where a path can
// hold it.
func TestEscapeAdvice(t *testing.T) {
	const decoded = `write it decoded, without "%": requests are decoded before they are matched`
	for path, want := range map[string]string{
		"/a%20b":    `; " " in the place of "%20"`,
		"/%7e/%41%": `; "~" in the place of "%7e"`,
		"/a%2Fb":    `; for a segment with an encoded "/" write a parameter such as {name}`,
		"/a%2f":     `; for a segment with an encoded "/" write a parameter such as {name}`,
		"/a%5Cb":    `; for a segment with an encoded "\\" write a parameter such as {name}`,
		"/a%3bb":    `; for a segment with an encoded ";" write a parameter such as {name}`,
		"/a%3Fb":    `; for a segment with an encoded "?" write a parameter such as {name}`,
		"/a%23":     `; for a segment with an encoded "#" write a parameter such as {name}`,
		"/100%25":   "", "/100%": "", "/a%2": "", "/a%zz": "", "/a%00": "", "/a%7F": "", "/%C3%A9": "",
	} {
		_, err := ParseRule("allow GET " + path)
		if want := fmt.Sprintf("rule %q: path %q: %s%s", "allow GET "+path, path, decoded, want); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
	}
}

// checkRulePromises tells what is wrong with the reading of one text.
func checkRulePromises(text string) error {
	r, err := ParseRule(text)
	if err != nil {
		return nil
	}
	if again, err := ParseRule(r.String()); err != nil || !reflect.DeepEqual(again, r) {
		return fmt.Errorf("%q is %+v, but its text %q is %+v, %v", text, r, r, again, err)
	}
	if again, err := r.Check(); err != nil || !reflect.DeepEqual(again, r) {
		return fmt.Errorf("%q is %+v, but checked again %+v, %v", text, r, again, err)
	}
	if strings.ContainsFunc(r.String(), unicode.IsControl) {
		return fmt.Errorf("%q: the text %q is not one line", text, r)
	}
	g := Group{ID: "g", Name: "g", Mode: Enforce, Rules: []Rule{r}}
	if _, err := NewDirectory(Peppers{}, "").With(Changes{Groups: []Group{g}}); err != nil {
		return fmt.Errorf("%q: accepted, but the directory says %v", text, err)
	}
	return nil
}

// drawRule draws a valid rule from an alphabet so small that rules overlap.
func drawRule(t *rapid.T) Rule {
	r := Rule{
		Effect:  rapid.SampledFrom([]Effect{Allow, Allow, Deny}).Draw(t, "effect"),
		Methods: rapid.SampledFrom([][]string{{"*"}, {"*"}, {"GET"}, {"GET"}, {"HEAD"}, {"POST"}, {"PROPFIND"}, {"GET", "PURGE"}, {"DELETE", "OPTIONS"}}).Draw(t, "methods"),
		Host:    rapid.SampledFrom([]string{"", "", "", "h.example", "x.h.example", "*.h.example"}).Draw(t, "host"),
	}
	var texts []string
	segment := rapid.SampledFrom([]string{"a", "a", "a", "A", "b", "é", "{}", "{}", "{}", "a b"})
	for i, s := range rapid.SliceOfN(segment, 0, 3).Draw(t, "segments") {
		if s == "{}" {
			texts = append(texts, fmt.Sprintf("params.p%d", i))
		}
		r.Path += "/" + strings.Replace(s, "{}", fmt.Sprintf("{p%d}", i), 1)
	}
	end := rapid.SampledFrom([]string{"/", "/{rest...}", "/{rest...}", "", ""}).Draw(t, "end")
	if r.Path += end; r.Path == "" {
		r.Path = "/"
	}
	if strings.HasPrefix(end, "/{") {
		texts = append(texts, "params.rest")
	}
	if rapid.IntRange(0, 2).Draw(t, "conditional") == 2 {
		r.When = drawCondition(t, texts)
	}
	return r
}

// drawCondition draws a valid condition of a rule. texts are what it can look at
// besides fields.
func drawCondition(t *rapid.T, texts []string) string {
	texts = append(texts, `"a"`, `"b c"`, `'é'`, `"\"x when y\""`, `r"\n{}%;"`, "user.name", "user.labels.env", `user.labels[?"env"].orValue("test")`,
		"request.method", "request.host", "request.path", `request.header("X-Env")`)
	text := func() string { return rapid.SampledFrom(texts).Draw(t, "text") }
	var condition func(depth int) string
	condition = func(depth int) string {
		n := 11
		if depth == 0 {
			n = 7
		}
		switch rapid.IntRange(0, n).Draw(t, "kind") {
		case 0:
			return rapid.SampledFrom([]string{"true", "false"}).Draw(t, "constant")
		case 1:
			return text() + " == " + text()
		case 2:
			return text() + ".startsWith(" + text() + ")"
		case 3:
			return text() + "  in  [" + text() + ", " + text() + "]"
		case 4:
			return "has(user.labels.env)"
		case 5:
			return `user.teams.exists(t, t != "dev" && t == user.name || t == "ops") && ` + text() + " in user.teams"
		case 6:
			return `now < timestamp("2030-01-01T00:00:00Z")`
		case 7:
			return text() + `.matches("^[a-z/]+$")`
		case 8:
			return "!(" + condition(depth-1) + ")"
		case 9:
			return "(" + condition(depth-1) + ") && (" + condition(depth-1) + ")"
		case 10:
			return "(" + condition(depth-1) + ") || (" + condition(depth-1) + ")"
		default:
			return "(" + condition(depth-1) + ") ? (" + condition(depth-1) + ") : (" + condition(depth-1) + ")"
		}
	}
	return condition(2)
}

func TestRuleRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRule(t)
		if got, err := ParseRule(r.String()); err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%+v: its text %q is %+v, %v", r, r, got, err)
		}
	})
	piece := rapid.SampledFrom([]string{
		"allow", "deny", " ", " ", "GET", "*", ",", "POST", "/", "/", "a", "{x}", "{y...}", "*.h", "h", "h.example", ".", ":80", "[::1]", "when", " when ", "\t", "é", "%", ";", "A",
		" when true", " when params.x", " == ", `"a"`, "params.y",
	})
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(piece, 0, 6).Draw(t, "pieces"), "")
		for _, text := range []string{text, "allow GET /" + text, "deny * " + text} {
			if err := checkRulePromises(text); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzRule(f *testing.F) {
	for _, text := range []string{
		"allow GET,HEAD /v1/people/{id}/address", "deny DELETE api.example.com/v1/{rest...}", "deny * *.example.com/",
		`allow GET /v1/people/{id} when params.id in user.labels.people.split(",")`, "allow GET [::1]/a b/é", "allow M-SEARCH /x/", "allow GET /x when",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if err := checkRulePromises(text); err != nil {
			t.Fatal(err)
		}
	})
}
