package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

func exampleCaddyfile(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestExample is the main job: the guarded API of Caddyfile.example.
func TestExample(t *testing.T) {
	t.Parallel()
	s := startServer(t, exampleCaddyfile(t))
	s.mustCLI("group", "create", "people-readers", "--rule", "allow GET /v1/people/{id}")
	s.mustCLI("group", "create", "auditors", "--rule", "allow GET /v1/{rest...}", "--rule", "deny GET /v1/people/{id}/salary")
	user := s.create("billing-sync", "--group", "people-readers", "--alias", "SERVICE-202", "--display-name", "Billing söync")
	stranger := s.create("stranger")

	for _, tt := range []struct {
		name, path string
		who        credentials
		want       int
	}{
		{"no credential", "/v1/people/7", credentials{}, 401},
		{"wrong secret", "/v1/people/7", credentials{user.id, stranger.secret}, 401},
		{"unknown id", "/v1/people/7", credentials{"SERVICE-1", user.secret}, 401},
		{"no rule", "/v1/people/7", stranger, 403},
		{"another path", "/v1/people", user, 403},
		{"a rule", "/v1/people/7", user, 200},
		{"the alias", "/v1/people/7", credentials{"SERVICE-202", user.secret}, 200},
		{"public", "/healthz", credentials{}, 200},
		{"ambiguous", "/v1/people/%2e%2e", user, 400},
	} {
		if got := s.get(tt.path, tt.who); got.StatusCode != tt.want {
			t.Errorf("%s: got %d, want %d: %s", tt.name, got.StatusCode, tt.want, got.body)
		}
	}

	r := s.get("/v1/people/7?q=1", user, "X-Service-User-Id: evil", "x-service-user-groups: root", "Connection: X-Service-User-Id", "X-Forwarded-User: root")
	for name, want := range map[string]string{
		"X-Service-User-Id": user.id, "X-Service-User-Name": "billing-sync", "X-Service-User-Groups": "people-readers",
	} {
		if got := r.upstreamHeader(name); len(got) != 1 || got[0] != want {
			t.Errorf("upstream got %s %q, want exactly %q", name, got, want)
		}
	}
	for _, name := range []string{"Authorization", "X-Forwarded-User", "X-Service-User-Role"} {
		if got := r.upstreamHeader(name); got != nil {
			t.Errorf("upstream got %s %q, want none", name, got)
		}
	}
	if !strings.HasPrefix(r.body, "GET /v1/people/7?q=1\n") {
		t.Errorf("upstream got %q, want the request as it was sent", r.body)
	}
	if got := s.get("/healthz", user).upstreamHeader("X-Service-User-Id"); got != nil {
		t.Errorf("upstream got an identity %q on a public path, want none", got)
	}

	// Every change holds for the next request.
	expect := func(what string, want int) {
		t.Helper()
		if got := s.get("/v1/people/7/salary", user).StatusCode; got != want {
			t.Errorf("%s: got %d, want %d", what, got, want)
		}
	}
	expect("before", 403)
	s.mustCLI("rule", "add", "people-readers", "allow GET /v1/people/{id}/salary")
	expect("rule added", 200)
	s.mustCLI("group", "add", "auditors", "billing-sync")
	expect("a deny wins", 403)
	s.mustCLI("group", "update", "auditors", "--mode", "observe")
	expect("an observing group neither grants nor refuses", 200)
	s.mustCLI("deactivate", "billing-sync")
	expect("deactivated", 401)
	s.mustCLI("reactivate", "billing-sync")
	expect("reactivated", 200)
	s.mustCLI("group", "remove", "people-readers", "billing-sync")
	expect("no member any more", 403)
	s.mustCLI("group", "add", "people-readers", "billing-sync")
	var tokens struct {
		Tokens []struct{ ID string }
	}
	if err := json.Unmarshal([]byte(s.mustCLI("token", "list", "billing-sync", "--json")), &tokens); err != nil || len(tokens.Tokens) != 1 {
		t.Fatalf("token list: %v, %d tokens, want 1", err, len(tokens.Tokens))
	}
	s.mustCLI("token", "revoke", "billing-sync", tokens.Tokens[0].ID, "--yes")
	expect("revoked", 401)
	user.secret = strings.Fields(s.mustCLI("token", "create", "billing-sync"))[3]
	expect("a new token", 200)
	s.mustCLI("delete", "billing-sync", "--yes")
	expect("deleted", 401)
}

// TestExamplePassword: a start with the password that everybody knows warns.
func TestExamplePassword(t *testing.T) {
	t.Parallel()
	const warning = "with the password of Caddyfile.example, which everybody knows"
	own := `$2a$10$` + strings.Repeat("x", 53)
	guarded := "http://localhost:{$ADMIN_PORT} {\n\tbind 127.0.0.1\n\tbasic_auth {\n\t\t%s %s\n\t}\n\tservice_users_admin {\n\t\tadmins *\n\t}\n}\n"
	for _, row := range []struct {
		name, caddyfile string
		env             []string
		want            string // whose login the warning names
	}{
		{"the example", exampleCaddyfile(t), nil, "admin"},
		{"the example with a password of its own", exampleCaddyfile(t), []string{"ADMIN_PASSWORD_HASH=" + own}, ""},
		{"a copy of the account", fmt.Sprintf(guarded, "root", examplePassword), nil, "root"},
		{"another account", fmt.Sprintf(guarded, "root", own), nil, ""},
		{"inside of handle", "http://localhost:{$ADMIN_PORT} {\n\tbind 127.0.0.1\n\thandle /x/* {\n\t\tbasic_auth {\n\t\t\tops " + examplePassword + "\n\t\t}\n\t}\n\tservice_users_admin {\n\t\tadmins *\n\t}\n}\n", nil, "ops"},
		{"a site that is not ours", "http://localhost:{$ADMIN_PORT} {\n\tbind 127.0.0.1\n\tbasic_auth {\n\t\tops " + examplePassword + "\n\t}\n\trespond 204\n}\nhttp://localhost:{$API_PORT} {\n\tbind 127.0.0.1\n\tservice_users\n\trespond 204\n}\n", nil, ""},
	} {
		s := startServer(t, row.caddyfile, row.env...)
		got := ""
		for line := range strings.Lines(s.log.String()) {
			if strings.HasPrefix(line, `{"level":"warn"`) && strings.Contains(line, warning) {
				_, got, _ = strings.Cut(line, `people log in as \"`)
				got, _, _ = strings.Cut(got, `\"`)
			}
		}
		if got != row.want {
			t.Errorf("%s: got a warning of the login %q, want %q", row.name, got, row.want)
		}
	}
}

// TestRefusalsAreAlike compares every kind of 401 byte for byte.
func TestRefusalsAreAlike(t *testing.T) {
	t.Parallel()
	s := startServer(t, exampleCaddyfile(t))
	user := s.create("one")
	off := s.create("two")
	s.mustCLI("deactivate", "two")
	want := ""
	for name, header := range map[string]string{
		"none": "", "unknown": basic("nobody", user.secret), "wrong": basic(user.id, off.secret), "inactive": basic(off.id, off.secret),
		"typo": basic(user.id, testkit.Altered(user.secret)), "malformed": "Basic !", "bearer": "Bearer " + user.secret, "empty": "Basic",
	} {
		conn, err := net.Dial("tcp", s.addr("API_PORT"))
		if err != nil {
			t.Fatal(err)
		}
		request := "GET /v1/people/7 HTTP/1.1\r\nHost: localhost:" + s.ports["API_PORT"] + "\r\nConnection: close\r\n"
		if header != "" {
			request += "Authorization: " + header + "\r\n"
		}
		if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(conn)
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := instant.ReplaceAllString(string(raw), "<time>")
		if want == "" {
			want = got
		}
		if got != want || !strings.HasPrefix(got, "HTTP/1.1 401 ") {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}

// TestExampleListensLocally checks that nothing but loopback is served.
func TestExampleListensLocally(t *testing.T) {
	t.Parallel()
	s := startServer(t, exampleCaddyfile(t))
	resp, err := http.Get("http://" + s.addr("CADDY_PORT") + "/config/apps/http/servers")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var servers map[string]struct{ Listen []string }
	if err := json.NewDecoder(resp.Body).Decode(&servers); err != nil {
		t.Fatal(err)
	}
	if len(servers) != 3 {
		t.Errorf("got %d servers, want 3", len(servers))
	}
	for name, server := range servers {
		for _, address := range server.Listen {
			if !strings.HasPrefix(address, "127.0.0.1:") {
				t.Errorf("%s listens at %s, want 127.0.0.1", name, address)
			}
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		ip, ok := a.(*net.IPNet)
		if !ok || ip.IP.IsLoopback() || ip.IP.To4() == nil {
			continue
		}
		for _, port := range []string{"API_PORT", "ADMIN_PORT", "UPSTREAM_PORT"} {
			if conn, err := net.Dial("tcp", net.JoinHostPort(ip.IP.String(), s.ports[port])); err == nil {
				conn.Close()
				t.Errorf("%s answers at %s, want only at 127.0.0.1", port, ip.IP)
			}
		}
	}
}

// TestSideBySide runs two copies of the example at once.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	one, two := startServer(t, exampleCaddyfile(t)), startServer(t, exampleCaddyfile(t))
	c := one.create("only-here")
	if got := one.get("/v1/x", c).StatusCode; got != 403 {
		t.Errorf("where it was made: got %d, want 403", got)
	}
	if got := two.get("/v1/x", c).StatusCode; got != 401 {
		t.Errorf("elsewhere: got %d, want 401", got)
	}
}

func basic(id, secret string) string {
	r := http.Request{Header: make(http.Header)}
	r.SetBasicAuth(id, secret)
	return r.Header.Get("Authorization")
}

// TestUpstreamNames checks how names that are not visible ASCII go upstream.
func TestUpstreamNames(t *testing.T) {
	for name, want := range map[string]string{
		"billing-sync": "billing-sync", "Billing sync": "Billing sync", "söync": "UTF-8''s%C3%B6ync", "UTF-8''x": "UTF-8''UTF-8%27%27x",
		"utf-8''x": "UTF-8''utf-8%27%27x", "100%": "100%", "a\"b\\c": "a\"b\\c", "": "", " x": "UTF-8''%20x",
	} {
		if got := extValue(name); got != want {
			t.Errorf("extValue(%q): got %q, want %q", name, got, want)
		}
	}
}
