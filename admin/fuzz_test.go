package admin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// fuzzed is a server with one of each resource, which stand in the requests of
// a fuzz target under the names that rows use.
func fuzzed(f *testing.F) *server {
	s := serve(f, store.Options{})
	s.must(`PUT /service_users/permissions {"permissions":[{"key":"a.b","name":"A","rules":["allow GET /a"]}]}`)
	s.must(`POST /permission_groups {"name":"g","rules":["allow GET /"],"permissions":["a.b"]}`)
	s.must(`POST /service_users {"name":"a","permission_groups":["group_1"]}`)
	return s
}

// serveHere answers a request in this process, where a panic is seen.
func (s *server) serveHere(t *testing.T, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	s.clock.Add(int64(time.Second))
	w := httptest.NewRecorder()
	s.api.Serve(w, r, store.Local)
	body := w.Body.Bytes()
	if r.Method == http.MethodHead {
		body = nil // net/http takes it away
	}
	problems := checkAnswer(r.Method, w.Code, w.Result().Header, body)
	if w.Code >= 500 {
		problems = append(problems, fmt.Sprintf("got status %d", w.Code))
	}
	for _, problem := range problems {
		t.Errorf("%s %.200q: %s\n\t%.500s", r.Method, r.URL, problem, body)
	}
	s.log.TakeAll() // lest it grow for ever
	return w
}

// Any body gets an answer of ours.
func FuzzBody(f *testing.F) {
	s := fuzzed(f)
	targets := strings.Split(s.resolve("POST /service_users,PATCH /service_users/service_1,POST /service_users/service_1/tokens,PATCH /service_users/service_1/tokens/token_1,"+
		"POST /service_users/service_1/tokens/token_1/refresh,POST /permission_groups,PATCH /permission_groups/group_1,POST /permission_groups/group_1/rules,PUT /permission_groups/group_1/members/service_1,"+
		"POST /service_users/explain,PUT /service_users/permissions,PUT /permission_groups/group_1/permissions/a.b"), ",")
	for i := range targets {
		for _, body := range []string{
			``, `{}`, `null`, `[]`, `""`, `{"name":"x"}`, `{"name":"x","name":"y"}`, `{"name":null,"active":null}`, "\ufeff{}", "{\"name\":\"\xff\"}", `{"name":"\ud800"}`, `{"a":[[[[{}]]]]}`,
			`{"name":"x","display_name":"d","description":"a\nb","owner":"o","alias":"al","active":false,"role":"manager","teams":["t"],"labels":{"k":"v"},"allowed_ips":["10.0.0.0/8","::ffff:1.2.3.4","fe80::1%eth0"],"expires_at":"2030-01-31T12:00:00+01:00","permission_groups":[],"create_token":false}`,
			`{"expires_at":"9999-12-31T23:59:59-23:59"}`, `{"expires_at":"0000-01-01T00:00:00Z","not_before":"0001-01-01T00:00:00Z"}`, `{"not_before":"9999-12-31T23:59:59-01:00"}`,
			`{"description":"d","metadata":"\u0000","ttl":"65535d99h","not_before":"2030-01-31T12:00:00Z"}`, `{"ttl":"1ns"}`, `{"grace":"1ns"}`, `{"grace":"2562047h"}`,
			`{"name":"h","mode":"observe","member_condition":"","rules":["allow GET,PUT *.example.com/v1/{id}/{rest...}",{"effect":"deny","methods":["*"],"host":"a.b","path":"/","when":"","name":"n","description":"d"}]}`,
			`"deny * /{x...}"`, `{"effect":"allow","methods":["GET"],"path":"/\u00e9"}`, `"allow GET /%2F"`,
			`{"name":"h","member_condition":"user.labels.?env.orValue('') in user.teams","permissions":["a.b"],"rules":["allow GET /{id} when params.id == user.name && request.header('X') == '' && now > timestamp('2026-01-01T00:00:00Z')"]}`,
			`{"service_user_id":"service_1","method":"GET","url":"https://example.com/a?b","token_id":"token_1","remote_ip":"fe80::1%eth0","headers":{"x":"y"}}`, `{"decision_id":"x"}`, `{"service_user_id":"service_1","method":"PUT","url":"/\u00e9"}`,
			`{"permissions":[{"key":"c","name":"C","description":"d","category":"e","rules":["allow GET /c when user.role == 'member'"]},{"key":"a.b","name":"A","rules":["deny * /a"]}]}`, `{"permissions":[],"replace":true}`,
		} {
			f.Add(uint8(i), []byte(s.resolve(body)))
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, body []byte) {
		method, uri, _ := strings.Cut(targets[int(n)%len(targets)], " ")
		r := httptest.NewRequest(method, uri, strings.NewReader(string(body)))
		r.Header.Set("Content-Type", "application/json")
		w := s.serveHere(t, r)
		if w.Code != http.StatusOK && w.Code != http.StatusCreated {
			return
		}
		// What was accepted can be read again, and is the same.
		var made, read map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &made); err != nil {
			t.Fatal(err)
		}
		link, _ := made["uri"].(string)
		if uri == "/service_users/permissions" { // lest the catalogue grow for ever
			r := httptest.NewRequest("PUT", uri, strings.NewReader(`{"permissions":[{"key":"a.b","name":"A","rules":["allow GET /a"]}],"replace":true}`))
			r.Header.Set("Content-Type", "application/json")
			s.serveHere(t, r)
		}
		if strings.Contains(link, "/rules/") || made["id"] == nil {
			return
		}
		again := s.serveHere(t, httptest.NewRequest("GET", link, nil))
		if err := json.Unmarshal(again.Body.Bytes(), &read); err != nil {
			t.Fatal(err)
		}
		delete(made, "token")
		delete(made, "token_id")
		delete(made, "replaces")
		delete(made, "replaced")
		delete(made, "warnings")
		delete(made, "state") // the token may expire between the two
		if !has(read, made) {
			t.Errorf("%s %s %.300q:\n\tanswered %v\n\tthen read %v", method, uri, body, made, read)
		}
		if method == "POST" { // lest the store grow for ever
			s.serveHere(t, httptest.NewRequest("DELETE", link, nil))
		}
	})
}

// Whatever the request is like, an explanation agrees with the directory, does not
// contradict itself, and what it says would help does.
func FuzzExplain(f *testing.F) {
	s := fuzzed(f)
	s.must(`POST /permission_groups {"name":"h","rules":["allow PUT,FROB /v1/{id}","allow GET api.example.com/{rest...}","deny * /v1/me","deny GET /{id} when params.id == request.header('X')"]}`)
	for _, target := range []string{"/", "/v1/me", "/v1/7", "/v1/7/", "/a%20when%20b/c", "/%7Bid%7D/{id}", "/*", "/a*", "/é", "/%C3%A9", "/a//b", "/a%2Fb", "/a;b", "https://api.example.com/x", "http://h", "x", "/" + strings.Repeat("a/", 40), "/" + strings.Repeat("b", 3000), "/when", "/a%20when"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "FROB", "CONNECT", "get"} {
			f.Add(method, target)
		}
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		ask := func() (e Explanation, ok bool) {
			body, err := json.Marshal(ExplainInput{ServiceUserID: s.real["service_1"], Method: method, URL: target})
			if err != nil {
				return e, false
			}
			r := httptest.NewRequest("POST", "/service_users/explain", strings.NewReader(string(body)))
			r.Header.Set("Content-Type", "application/json")
			w := s.serveHere(t, r)
			if w.Code != http.StatusOK {
				return e, false
			}
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			for _, problem := range checkExplanation(e) {
				t.Errorf("%s %.200q: %s", method, target, problem)
			}
			return e, true
		}
		e, ok := ask()
		if !ok || e.Reason == "ambiguous" {
			return
		}
		d := s.store.Directory()
		p, _ := d.Principal(s.real["service_1"], "", netip.Addr{}, s.now().Unix())
		if got := d.Authorize(p, access.Action{Method: e.Method, Host: e.Host, Path: e.Path}); got.Reason.String() != e.Reason {
			t.Errorf("%s %.200q: explained as %s, decided as %s", method, target, e.Reason, got.Reason)
		}
		if e.Grant == nil {
			return
		}
		if len(e.Grant.Rule) > 2048 {
			return // no rule is as long as this path
		}
		r := httptest.NewRequest("POST", "/permission_groups/"+s.real["group_1"]+"/rules", strings.NewReader(quote(t, e.Grant.Rule)))
		r.Header.Set("Content-Type", "application/json")
		w := s.serveHere(t, r)
		var made Rule
		if err := json.Unmarshal(w.Body.Bytes(), &made); err != nil || w.Code != http.StatusCreated {
			t.Fatalf("%s %.200q: the grant %q: got %d %s", method, target, e.Grant.Rule, w.Code, w.Body)
		}
		if after, _ := ask(); after.Decision != "allow" || after.Rule.ID != made.ID {
			t.Errorf("%s %.200q: got %s with the grant %q, want allow by it", method, target, brief(after), e.Grant.Rule)
		}
		s.serveHere(t, httptest.NewRequest("DELETE", made.URI, nil))
	})
}

func quote(t *testing.T, text string) string {
	out, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Any target gets an answer of ours, and none reaches another resource.
func FuzzPath(f *testing.F) {
	s := fuzzed(f)
	user := s.real["service_1"]
	for _, target := range []string{
		"/", "*", "/service_users", "/service_users/", "/service_users/" + user, "/service_users/" + user + "/", "/service_users/" + user + "%2F", "/service_users/" + user + "%2F..", "/service_users/%2e%2e/service_users",
		"/service_users/%73ervice_" + user[8:], "/service_users//" + user, "/service_users?limit=1&before_id=" + user, "/service_users?limit=%", "/service_users?limit=1;x", "//service_users", "http://x/service_users", "x:y", "x:/service_users",
		"/service_users/" + user + "/tokens", "/service_users/" + user + "/access/", "/service_users/would_deny", "/service_users/who_can?method=GET&url=/x", "/service_users/permissions?key=x", "/permission_groups/" + s.real["group_1"] + "/permissions/x%2Fy", "/permission_groups/" + s.real["group_1"] + "/members/" + user, "/service_users/\x80", "/service_users/%00", "/service_users/" + user + "?#",
	} {
		for _, method := range []string{"GET", "HEAD", "DELETE", "PATCH", "OPTIONS", "CONNECT"} {
			f.Add(method, target)
		}
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: h\r\n\r\n")))
		if err != nil || method == http.MethodOptions { // of a path that may exist
			return
		}
		r.Header.Set("If-Match", `"999"`) // lest what the other inputs look for goes
		w := s.serveHere(t, r)
		if strings.Contains(w.Body.String(), "compares no versions") { // said before anything was looked for
			r.Header.Del("If-Match")
			w = s.serveHere(t, r)
		}
		if w.Code >= 300 && w.Code != http.StatusPreconditionFailed {
			return
		}
		path := strings.TrimSuffix(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
		if _, key, ok := strings.Cut(path, "/permissions/"); ok && method == "DELETE" {
			path = strings.TrimSuffix(path, key) + "key" // what a group does not have can be taken away
		}
		for segment := range strings.SplitSeq(path, "/") {
			if name, err := url.PathUnescape(segment); err != nil || !plainSegment.MatchString(name) {
				t.Errorf("%s %.200q: got %d, want a refusal of %q", method, target, w.Code, segment)
			}
		}
	})
}

// plainSegment is what a path that leads anywhere is made of.
var plainSegment = regexp.MustCompile(`^([a-z]+|service_users|permission_groups|who_can|would_deny|[a-z]+_[0-9A-Za-z]{27})$`)
