package admin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// fuzzed is a server with one of each resource, which stand in the requests of
// a fuzz target under the names that rows use.
func fuzzed(f *testing.F) *server {
	s := serve(f, store.Options{})
	s.must(`POST /permission_groups {"name":"g","rules":["allow GET /"]}`)
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
		"POST /service_users/service_1/tokens/token_1/refresh,POST /permission_groups,PATCH /permission_groups/group_1,POST /permission_groups/group_1/rules,PUT /permission_groups/group_1/members/service_1"), ",")
	for i := range targets {
		for _, body := range []string{
			``, `{}`, `null`, `[]`, `""`, `{"name":"x"}`, `{"name":"x","name":"y"}`, `{"name":null,"active":null}`, "\ufeff{}", "{\"name\":\"\xff\"}", `{"name":"\ud800"}`, `{"a":[[[[{}]]]]}`,
			`{"name":"x","display_name":"d","description":"a\nb","owner":"o","alias":"al","active":false,"role":"manager","teams":["t"],"labels":{"k":"v"},"allowed_ips":["10.0.0.0/8","::ffff:1.2.3.4","fe80::1%eth0"],"expires_at":"2030-01-31T12:00:00+01:00","permission_groups":[],"create_token":false}`,
			`{"expires_at":"9999-12-31T23:59:59-23:59"}`, `{"expires_at":"0000-01-01T00:00:00Z","not_before":"0001-01-01T00:00:00Z"}`, `{"not_before":"9999-12-31T23:59:59-01:00"}`,
			`{"description":"d","metadata":"\u0000","ttl":"65535d99h","not_before":"2030-01-31T12:00:00Z"}`, `{"ttl":"1ns"}`, `{"grace":"1ns"}`, `{"grace":"2562047h"}`,
			`{"name":"h","mode":"observe","member_condition":"","rules":["allow GET,PUT *.example.com/v1/{id}/{rest...}",{"effect":"deny","methods":["*"],"host":"a.b","path":"/","when":"","name":"n","description":"d"}]}`,
			`"deny * /{x...}"`, `{"effect":"allow","methods":["GET"],"path":"/\u00e9"}`, `"allow GET /%2F"`,
		} {
			f.Add(uint8(i), []byte(body))
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
		if strings.Contains(link, "/rules/") {
			return
		}
		again := s.serveHere(t, httptest.NewRequest("GET", link, nil))
		if err := json.Unmarshal(again.Body.Bytes(), &read); err != nil {
			t.Fatal(err)
		}
		delete(made, "token")
		delete(made, "token_id")
		delete(made, "replaces")
		delete(made, "state") // the token may expire between the two
		if !has(read, made) {
			t.Errorf("%s %s %.300q:\n\tanswered %v\n\tthen read %v", method, uri, body, made, read)
		}
		if method == "POST" { // lest the store grow for ever
			s.serveHere(t, httptest.NewRequest("DELETE", link, nil))
		}
	})
}

// Any target gets an answer of ours, and none reaches another resource.
func FuzzPath(f *testing.F) {
	s := fuzzed(f)
	user := s.real["service_1"]
	for _, target := range []string{
		"/", "*", "/service_users", "/service_users/", "/service_users/" + user, "/service_users/" + user + "/", "/service_users/" + user + "%2F", "/service_users/" + user + "%2F..", "/service_users/%2e%2e/service_users",
		"/service_users/%73ervice_" + user[8:], "/service_users//" + user, "/service_users?limit=1&before_id=" + user, "/service_users?limit=%", "/service_users?limit=1;x", "//service_users", "http://x/service_users", "x:y", "x:/service_users",
		"/service_users/" + user + "/tokens", "/permission_groups/" + s.real["group_1"] + "/members/" + user, "/service_users/\x80", "/service_users/%00", "/service_users/" + user + "?#",
	} {
		for _, method := range []string{"GET", "HEAD", "DELETE", "PATCH", "OPTIONS", "CONNECT"} {
			f.Add(method, target)
		}
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: h\r\n\r\n")))
		if err != nil {
			return
		}
		r.Header.Set("If-Match", `"999"`) // lest what the other inputs look for goes
		w := s.serveHere(t, r)
		if w.Code >= 300 && w.Code != http.StatusPreconditionFailed {
			return
		}
		path := strings.TrimSuffix(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
		for segment := range strings.SplitSeq(path, "/") {
			if name, err := url.PathUnescape(segment); err != nil || !plainSegment.MatchString(name) {
				t.Errorf("%s %q: got %d, want a refusal of %q", method, target, w.Code, segment)
			}
		}
	})
}

// plainSegment is what a path that leads anywhere is made of.
var plainSegment = regexp.MustCompile(`^([a-z]+|service_users|permission_groups|[a-z]+_[0-9A-Za-z]{27})$`)
