package caddymodule

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// TestServiceUserMatcher asks a site that answers with the matcher that a request
// has met.
func TestServiceUserMatcher(t *testing.T) {
	t.Parallel()
	s, _, user := withUpstream(t, guarded("", "otherwise pass\npublic GET /public\nerrors caddy\nself /self", `
	vars /forged service_users.identity boss
	@programs service_user
	@people not service_user
	@upper {
		service_user
		path /upper/*
	}
	header @programs X-Early yes
	respond @upper upper
	route /nested/* {
		service_users {
			errors caddy
		}
		respond @programs program
		respond @people person
	}
	respond @programs program
	respond @people person
	handle_errors {
		respond @programs program
		respond @people "person {err.status_code}"
	}`))
	s.mustCLI("group", "create", "others", "--rule", "deny * /denied")
	s.mustCLI("group", "add", "others", "billing-sync")
	wrong := credentials{user.id, user.secret + "x"}
	for _, tt := range []struct {
		name, path string
		who        credentials
		header     []string
		want       string
	}{
		{"a service user", "/x", user, nil, "program"},
		{"nobody", "/x", credentials{}, nil, "person"},
		{"another scheme", "/x", credentials{}, []string{"Authorization: Bearer ey.foreign"}, "person"},
		{"forged headers", "/x", credentials{}, []string{"X-Service-User-Id: " + user.id}, "person"},
		{"a wrong token", "/x", wrong, nil, "person 401"},
		{"a refused service user", "/denied", user, nil, "person 403"},
		{"a public path with credentials", "/public", user, nil, "person"},
		{"a foreign variable", "/forged", credentials{}, nil, "person"},
		{"a service user, with a foreign variable", "/forged", user, nil, "program"},
		{"beside another matcher", "/upper/x", user, nil, "upper"},
		{"the other matcher alone", "/upper/x", credentials{}, nil, "person"},
		{"a handler around another", "/nested/x", user, nil, "program"},
		{"a handler around another, nobody", "/nested/x", credentials{}, nil, "person 401"},
	} {
		got := s.get(tt.path, tt.who, tt.header...)
		if got.body != tt.want {
			t.Errorf("%s: got %d %q, want %q", tt.name, got.StatusCode, got.body, tt.want)
		}
		if early := got.Header.Get("X-Early"); early != "" {
			t.Errorf("%s: a handler before service_users has matched", tt.name)
		}
	}
}

// runExample starts a file of examples/ in front of a recording upstream, with a
// service user that may do everything.
func runExample(t *testing.T, file string, env ...string) (*server, *recorder, credentials) {
	t.Helper()
	text, err := os.ReadFile("../examples/" + file)
	if err != nil {
		t.Fatal(err)
	}
	checkFormat(t, file, text)
	s := newServer(t, env...)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, string(text))
	if out, errs, code := s.cli("lint", "--strict", filepath.Join(s.dir, "Caddyfile")); code != 0 {
		t.Errorf("lint --strict %s: %s%s", file, out, errs)
	}
	s.mustCLI("group", "create", "everything", "--rule", "allow * /{rest...}")
	return s, up, s.create("billing-sync", "--group", "everything", "--alias", "SERVICE-202")
}

// TestPeopleAndProgramsBasicAuth: a service user never meets basic_auth, and what
// basic_auth refuses is no service user.
func TestPeopleAndProgramsBasicAuth(t *testing.T) {
	t.Parallel()
	s, up, user := runExample(t, "people-and-programs-basic_auth.Caddyfile")
	login := func(id, secret string) string { return "Authorization: " + basic(id, secret) }
	s.try(t, up, []attempt{
		{name: "a program", header: login(user.id, user.secret), status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "X-Person"},
		{name: "a program by its alias", header: login("SERVICE-202", user.secret), status: 200, passes: true, has: "X-Service-User-Id: " + user.id},
		{name: "a program that forges a person", header: login(user.id, user.secret) + "\nX-Person: alice", status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "X-Person"},
		{name: "a person", header: login("alice", "change-me"), status: 200, passes: true, has: "X-Person: alice", hasNot: "X-Service-User"},
		{name: "no password goes upstream", header: login("alice", "change-me"), status: 200, passes: true, hasNot: "Authorization"},
		{name: "a person that forges a program", header: login("alice", "change-me") + "\nX-Service-User-Id: " + user.id, status: 200, passes: true, has: "X-Person: alice", hasNot: "X-Service-User"},
		{name: "a wrong token", header: login(user.id, "x"), status: 401},
		{name: "a token with a person's name", header: login("alice", user.secret), status: 401},
		{name: "a person's password with an alias", header: login("SERVICE-202", "change-me"), status: 401},
		{name: "a wrong password", header: login("alice", "x"), status: 401},
		{name: "an unknown person", header: login("bob", "change-me"), status: 401},
		{name: "a stranger", status: 401},
		{name: "another scheme", header: "Authorization: Bearer " + user.secret, status: 401},
	})
	// Whose refusal it is: ours has a problem document.
	for _, tt := range []struct {
		who  credentials
		ours bool
	}{{credentials{}, false}, {credentials{"alice", "x"}, false}, {credentials{user.id, "x"}, true}, {credentials{"SERVICE-202", "x"}, true}} {
		r := s.get("/x", tt.who)
		if got := r.Header.Get("Content-Type") == "application/problem+json"; got != tt.ours || r.StatusCode != 401 {
			t.Errorf("%s: got %d, refused by service_users %t, want 401, %t", tt.who.id, r.StatusCode, got, tt.ours)
		}
		if challenge := r.Header.Get("Www-Authenticate"); !strings.Contains(challenge, `Basic realm="example"`) {
			t.Errorf("%s: got the challenge %q, want the same realm of both", tt.who.id, challenge)
		}
	}
}

// TestPeopleAndProgramsForwardAuth: an authenticator that knows people by a cookie
// is asked about people alone.
func TestPeopleAndProgramsForwardAuth(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	authenticator := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if c, err := r.Cookie("session"); err == nil && c.Value == "of-alice" {
			w.Header().Set("Remote-User", "alice")
			return
		}
		http.Redirect(w, r, "https://login.example.com/", http.StatusFound)
	}))
	t.Cleanup(authenticator.Close)
	_, port, _ := net.SplitHostPort(authenticator.Listener.Addr().String())
	s, up, user := runExample(t, "people-and-programs-forward_auth.Caddyfile", "AUTH_PORT="+port)
	ours, cookie := "Authorization: "+basic(user.id, user.secret), "Cookie: session=of-alice"

	s.try(t, up, []attempt{
		{name: "a program", header: ours, status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "Remote-User"},
		{name: "a program that forges a person", header: ours + "\nRemote-User: alice", status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "Remote-User"},
		{name: "a program with the session of a person", header: ours + "\n" + cookie, status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "Remote-User"},
		{name: "a wrong token", header: "Authorization: " + basic(user.id, "x"), status: 401},
		{name: "a wrong token with the session of a person", header: "Authorization: " + basic(user.id, "x") + "\n" + cookie, status: 401},
		{name: "another login", header: "Authorization: " + basic("alice", "x"), status: 401},
		{name: "ambiguous", path: "//x", status: 400},
	})
	if n := asked.Load(); n > 0 {
		t.Errorf("the authenticator was asked %d times about programs, want never", n)
	}
	s.try(t, up, []attempt{
		{name: "a person", header: cookie, status: 200, passes: true, has: "Remote-User: alice", hasNot: "X-Service-User"},
		{name: "a person that forges", header: cookie + "\nRemote-User: boss\nX-Service-User-Id: " + user.id, status: 200, passes: true, has: "Remote-User: alice", hasNot: "X-Service-User"},
		{name: "a stranger is sent to the login", status: 302},
		{name: "a stranger that forges", header: "Remote-User: boss\nX-Service-User-Id: " + user.id, status: 302},
		{name: "a token as Bearer", header: "Authorization: Bearer " + user.secret, status: 302},
	})
	if n := asked.Load(); n != 5 {
		t.Errorf("the authenticator was asked %d times about people, want 5", n)
	}
}

// TestPublicPathsOfPeople: with the matcher of docs/people-and-programs.md, only public paths and
// preflights get past the authenticator of people. "not service_user" alone sends them there too.
func TestPublicPathsOfPeople(t *testing.T) {
	t.Parallel()
	login := httptest.NewServer(http.RedirectHandler("https://login.example.com/", http.StatusFound))
	t.Cleanup(login.Close)
	page := blockWith(t, "people-and-programs.md", "caddyfile", "cors_preflight")
	checkFormat(t, "people-and-programs.md", []byte(page))
	block := strings.NewReplacer("localhost:9091", login.Listener.Addr().String(), "/api/verify", "/").Replace(page)
	s, up, user := withUpstream(t, backendsHead+hosted(block, "localhost", "127.0.0.1:{$UPSTREAM_PORT}"))
	const preflight = "Origin: https://app.example.com\nAccess-Control-Request-Method: PUT"
	ours := "Authorization: " + basic(user.id, user.secret)
	s.try(t, up, []attempt{
		{name: "a public path", path: "/healthz", status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "its query", path: "/healthz?x=1", status: 200, passes: true},
		{name: "its HEAD", method: "HEAD", path: "/healthz", status: 200, passes: true},
		{name: "a preflight", method: "OPTIONS", header: preflight, status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "a program", header: ours, status: 200, passes: true, has: "X-Service-User-Id: " + user.id},
		{name: "a stranger", status: 302},
		{name: "another method", method: "POST", path: "/healthz", status: 302},
		{name: "another case", path: "/Healthz", status: 302},
		{name: "a longer path", path: "/healthz/x", status: 302},
		{name: "another OPTIONS", method: "OPTIONS", header: "Origin: https://app.example.com", status: 302},
		{name: "a wrong token on a preflight", method: "OPTIONS", header: preflight + "\nAuthorization: " + basic(user.id, "x"), status: 401},
	})
	out, errs, _ := s.cli("lint", filepath.Join(s.dir, "Caddyfile"))
	if !strings.Contains(out+errs, `"otherwise pass" hands them on`) {
		t.Errorf("lint: got %s%s, want the warning that the page names", out, errs)
	}
}

// TestMatchersThatAreWrong shows the harm that docs/people-and-programs.md tells of:
// one matcher sends programs to the login of people. Two others are right.
func TestMatchersThatAreWrong(t *testing.T) {
	t.Parallel()
	login := httptest.NewServer(http.RedirectHandler("https://login.example.com/", http.StatusFound))
	t.Cleanup(login.Close)
	for matcher, want := range map[string]struct{ program, stranger int }{
		"not service_user":                     {200, 302},
		"not header Authorization Basic*":      {302, 302},
		`expression {http.auth.user.id} == ""`: {200, 302},
	} {
		s, _, user := withUpstream(t, guarded("", "otherwise pass", "\t@people "+matcher+"\n\tforward_auth @people "+login.Listener.Addr().String()+" {\n\t\turi /\n\t}"))
		if got := s.get("/x", user).StatusCode; got != want.program {
			t.Errorf("%s: got %d for a program, want %d", matcher, got, want.program)
		}
		if got := s.get("/x", credentials{}).StatusCode; got != want.stranger {
			t.Errorf("%s: got %d for a stranger, want %d", matcher, got, want.stranger)
		}
	}
}
