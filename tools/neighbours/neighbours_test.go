// Tests of service_users beside handlers of other plugins, in one build with them:
// a cache (Souin), a rate limiter, an authenticator for people, and an MCP server behind. They have a
// module of their own, so that none of their dependencies reaches the plugin.
package neighbours

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	_ "github.com/caddyserver/cache-handler"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/greenpau/caddy-security"
	_ "github.com/mholt/caddy-ratelimit"

	_ "github.com/serviceusers/caddy-service-users"
	"github.com/serviceusers/caddy-service-users/admin"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// login is the name and the password of a request; the zero value sends none.
type login struct{ id, secret string }

// site is a Caddy in this process, in front of an upstream of the test. Only one
// runs at a time.
type site struct {
	t        *testing.T
	admin    string // the address of Caddy's admin endpoint
	address  string // the address of the site, part of every cache key
	upstream *upstream
}

// newSite returns a site that does not run yet.
func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("STORE", dir+"/service_users.db")
	return &site{t: t, admin: testkit.FreeAddress(t), address: testkit.FreeAddress(t), upstream: startUpstream(t)}
}

// load runs a site whose block holds these directives, with {upstream} for the
// address of the upstream, behind these global options.
func (s *site) load(global, directives string) error {
	s.t.Helper()
	return s.loadFile(fmt.Sprintf("{\n%s\nservice_users {\nstore {env.STORE}\n}\n}\nhttp://%s {\n%s\n}\n",
		global, s.address, strings.ReplaceAll(directives, "{upstream}", s.upstream.address)))
}

// loadFile runs a Caddyfile, quietly and with an admin endpoint of its own.
func (s *site) loadFile(caddyfile string) error {
	s.t.Helper()
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		s.t.Fatal(err)
	}
	config["admin"] = map[string]any{"listen": s.admin, "config": map[string]any{"persist": false}}
	config["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{"writer": map[string]any{"output": "discard"}}}}
	if text, err = json.Marshal(config); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			s.t.Error(err)
		}
	})
	return caddy.Load(text, true)
}

// run loads what has to load.
func (s *site) run(global, directives string) {
	s.t.Helper()
	if err := s.load(global, directives); err != nil {
		s.t.Fatal(err)
	}
}

// create makes a service user that may do everything.
func (s *site) create(name string) login {
	s.t.Helper()
	client := &admin.Client{Base: "http://" + s.admin}
	var group, user struct{ ID, Token string }
	for _, step := range []struct {
		path    string
		in, out any
	}{
		{"/permission_groups", map[string]any{"name": "for-" + name, "rules": []string{"allow * /{rest...}"}}, &group},
		{"/service_users", map[string]any{"name": name}, &user},
	} {
		if err := client.Do(s.t.Context(), http.MethodPost, step.path, step.in, step.out); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := client.Do(s.t.Context(), http.MethodPut, "/permission_groups/"+group.ID+"/members/"+user.ID, nil, nil); err != nil {
		s.t.Fatal(err)
	}
	return login{user.ID, user.Token}
}

// answer is the part of a response that tests compare.
type answer struct {
	status int
	body   string
	header http.Header
}

// get asks the site. Redirections are answers.
func (s *site) get(path string, who login, header ...string) answer {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+s.address+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if who != (login{}) {
		req.SetBasicAuth(who.id, who.secret)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{resp.StatusCode, string(body), resp.Header}
}

// expect asks the site and compares status and body; an empty body is any.
func (s *site) expect(what, path string, who login, status int, body string) answer {
	s.t.Helper()
	got := s.get(path, who)
	if got.status != status || body != "" && got.body != body {
		s.t.Errorf("%s: got %d %q, want %d %q (%s)", what, got.status, got.body, status, body, got.header.Get("Cache-Status"))
	}
	return got
}

// upstream answers every request with the id of the service user that it came
// with, or "nobody". A cache may keep the answer for a minute.
type upstream struct {
	address string
	arrived chan struct{} // gets a value for each request that is held

	mu   sync.Mutex
	seen []http.Header
	more [2]string     // a header of answers, name and value
	hold chan struct{} // not nil: answers wait until it is closed
}

func startUpstream(t *testing.T) *upstream {
	u := &upstream{arrived: make(chan struct{})}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.seen = append(u.seen, r.Header)
		hold, more := u.hold, u.more
		u.mu.Unlock()
		if hold != nil {
			u.arrived <- struct{}{}
			<-hold
		}
		w.Header().Set("Cache-Control", "max-age=60")
		if more[0] != "" {
			w.Header().Set(more[0], more[1])
		}
		io.WriteString(w, answerFor(r.Header.Get("X-Service-User-Id")))
	}))
	t.Cleanup(server.Close)
	u.address = server.Listener.Addr().String()
	return u
}

// answerWith changes the answers from now on.
func (u *upstream) answerWith(name, value string, hold chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.more, u.hold = [2]string{name, value}, hold
}

// answerFor is the body of the upstream's answer to a service user.
func answerFor(id string) string {
	if id == "" {
		id = "nobody"
	}
	return "for " + id
}

// requests returns the headers of the requests since it was called last.
func (u *upstream) requests() []http.Header {
	u.mu.Lock()
	defer u.mu.Unlock()
	seen := u.seen
	u.seen = nil
	return seen
}

// TestMain makes the test binary a caddy as well, which asCaddy starts.
func TestMain(m *testing.M) {
	if os.Getenv("NEIGHBOURS_CADDY") != "" {
		caddycmd.Main()
		return
	}
	dir, err := os.MkdirTemp("", "neighbours")
	if err != nil {
		panic(err)
	}
	caddy.DefaultStorage.Path = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// asCaddy runs a command of caddy in a process of its own.
func asCaddy(args ...string) (output string, err error) {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "NEIGHBOURS_CADDY=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
