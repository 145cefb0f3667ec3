package neighbours

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// TestPeopleAndPrograms runs the Caddyfile for caddy-security: service users get
// through by Basic, people by the session that the portal gives them.
func TestPeopleAndPrograms(t *testing.T) {
	const file = "people-and-programs-caddy-security.Caddyfile"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if difference, found := caddyfile.FormattingDifference(file, text); found {
		t.Errorf("%s:%d: not as \"caddy fmt\" writes it", file, difference.Line)
	}
	s := newSite(t)
	_, apiPort, _ := net.SplitHostPort(s.address)
	_, upstreamPort, _ := net.SplitHostPort(s.upstream.address)
	key := rand.Text()
	for name, value := range map[string]string{
		"API_PORT": apiPort, "UPSTREAM_PORT": upstreamPort, "SERVICE_USERS_STORE": os.Getenv("STORE"),
		"PEOPLE_FILE": t.TempDir() + "/people.json", "LOGIN_KEY": key,
	} {
		t.Setenv(name, value)
	}
	if output, err := asCaddy("service-user", "lint", "--strict", file); err != nil {
		t.Errorf("lint --strict %s: %v\n%s", file, err, output)
	}
	s.address = "localhost:" + apiPort
	if err := s.loadFile(string(text)); err != nil {
		t.Fatal(err)
	}
	user := s.create("billing-sync")
	s.upstream.requests()

	s.expect("a service user", "/v1/x", user, 200, answerFor(user.id))
	s.expect("a service user where people log in", "/login", user, 200, answerFor(user.id))
	s.expect("a wrong token", "/v1/x", login{user.id, "x"}, 401, "")
	for _, header := range s.upstream.requests() {
		if header.Get("Authorization") != "" || header.Get("Cookie") != "" {
			t.Errorf("the upstream got %q of a program, want no credential", header)
		}
	}
	s.expect("a login of people as Basic", "/v1/x", login{"alice", "x"}, 401, "")
	stranger := s.get("/v1/x", login{}, "X-Service-User-Id", user.id)
	if to := stranger.header.Get("Location"); stranger.status != 302 || !strings.Contains(to, "/login") {
		t.Errorf("a stranger: got %d to %q, want 302 to /login", stranger.status, to)
	}
	if page := s.get("/login", login{}); page.status != 200 || !strings.Contains(page.body, "<form") {
		t.Errorf("the page where people log in: got %d %q, want 200 and a form", page.status, page.body)
	}
	if got := s.upstream.requests(); len(got) > 0 {
		t.Errorf("the upstream got %q, want nothing of strangers", got)
	}

	for _, key := range []string{key, rand.Text()} {
		want, body := 200, answerFor("")
		if key != os.Getenv("LOGIN_KEY") {
			want, body = 302, ""
		}
		for _, header := range [][2]string{{"Cookie", "AUTHP_ACCESS_TOKEN=" + session(t, key)}, {"Authorization", "access_token=" + session(t, key)}} {
			got := s.get("/v1/x", login{}, header[0], header[1], "X-Service-User-Id", user.id)
			if got.status != want || body != "" && got.body != body {
				t.Errorf("a person by %s: got %d %q, want %d %q", header[0], got.status, got.body, want, body)
			}
		}
	}
	both := s.get("/v1/x", user, "Cookie", "AUTHP_ACCESS_TOKEN="+session(t, key))
	if both.status != 200 || both.body != answerFor(user.id) {
		t.Errorf("a service user with the session of a person: got %d %q, want it to be the service user", both.status, both.body)
	}
}

// session is the token of a person who has logged in (RFC 7519, HS512).
func session(t *testing.T, key string) string {
	t.Helper()
	claims, err := json.Marshal(map[string]any{
		"sub": "alice", "roles": []string{"authp/user"}, "iss": "http://localhost/login", "exp": time.Now().Add(time.Hour).Unix(),
	})
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS512","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	mac := hmac.New(sha512.New, []byte(key))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
