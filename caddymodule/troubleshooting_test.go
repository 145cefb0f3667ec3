package caddymodule

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/clitest"
)

// troubledCaddyfile has one guarded site for every host, one behind a FastCGI program that nobody
// runs, and a backend that answers with the headers that it gets.
const troubledCaddyfile = `
{
	servers {
		trusted_proxies static 127.0.0.2/32
		trusted_proxies_strict
	}
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
		use_interval 1s
	}
	log access-file {
		include http.log.access
		output file access.log
	}
}
http://php.example:{$API_PORT} {
	bind 127.0.0.1
	service_users
	php_fastcgi 127.0.0.1:{$FPM_PORT}
}
http://:{$API_PORT} {
	bind 127.0.0.1
	log
	service_users {
		self /_service_user
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	service_users_admin {
		admins carol
	}
}
http://:{$UPSTREAM_PORT} {
	bind 127.0.0.1
	respond /missing 404
	respond "the backend of {http.request.header.X-Service-User-Id}"
}
`

// patient is a server in trouble, and the page that helps.
type patient struct {
	*server
	page troubles
	n    int // of the service users so far
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	s := newServer(t)
	s.moreports("FPM_PORT")
	binary, err := exec.LookPath(caddyBinary())
	if err := errors.Join(err, os.Symlink(binary, filepath.Join(s.dir, "caddy"))); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "PATH="+s.dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return &patient{server: withCaddyfile(s, troubledCaddyfile), page: readTroubles(t)}
}

// user makes a service user with rules of its own, and returns its name and credentials.
func (p *patient) user(rules ...string) (name string, c credentials) {
	p.t.Helper()
	p.n++
	name = fmt.Sprint("user-", p.n)
	args := []string{"group", "create", name}
	for _, rule := range rules {
		args = append(args, "--rule", rule)
	}
	p.mustCLI(args...)
	return name, p.create(name, "--group", name)
}

// follow runs a command line of the page as a reader would, with the names of the page replaced, and
// returns both outputs.
func (p *patient) follow(line string, names ...string) string {
	p.t.Helper()
	out, _ := p.enter(line, names...)
	return out
}

// inShell are the commands that depend on the working directory, the environment or a shell.
var inShell = regexp.MustCompile(`--store|--config| lint| check-log| backup|--secret-file|--url|['";]`)

// enter is follow, and also returns the exit code.
func (p *patient) enter(line string, names ...string) (output string, code int) {
	p.t.Helper()
	line = strings.NewReplacer(append(names, "localhost:2019", p.addr("CADDY_PORT"),
		"https://api.example.com", p.addr("API_PORT"))...).Replace(line)
	var out bytes.Buffer
	args, ok := strings.CutPrefix(line, "caddy service-user ")
	if ok && !inShell.MatchString(line) && os.Getenv("SERVICE_USERS_TEST_CADDY") == "" {
		code = clitest.Run(&out, &out, append([]string{"--address", p.addr("CADDY_PORT")}, strings.Fields(args)...)...)
		return out.String(), code
	}
	if err := os.WriteFile(filepath.Join(p.dir, "caddy.log"), []byte(p.log.String()), 0o600); err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, p.env, &out, &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// section runs the commands of a section until their outputs match each pattern: the log may come
// some moments after the answer.
func (p *patient) section(heading string, names []string, patterns ...string) string {
	p.t.Helper()
	lines := p.page.commands(heading)
	if len(lines) == 0 {
		p.t.Fatalf("the page has no commands under %q", heading)
	}
	return p.shows(heading, lines, names, patterns...)
}

// shows runs commands until their outputs match each pattern, and returns the outputs.
func (p *patient) shows(what string, lines, names []string, patterns ...string) (out string) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out = ""
		for _, line := range lines {
			out += p.follow(line, names...)
		}
		missing := slices.IndexFunc(patterns, func(pattern string) bool {
			return !regexp.MustCompile("(?m)" + pattern).MatchString(out)
		})
		if missing < 0 {
			return out
		}
		if time.Now().After(deadline) {
			p.t.Errorf("%s: want %s in\n%s", what, patterns[missing], out)
			return out
		}
	}
}

// raw sends a request as it is, and returns the status and the body.
func (p *patient) raw(request string) (status int, body string) {
	p.t.Helper()
	conn, err := net.Dial("tcp", p.addr("API_PORT"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request+"\r\n\r\n"); err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestTroubles produces the situations of the page on a running Caddy, and follows its commands.
func TestTroubles(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	for name, try := range map[string]func(*testing.T, *patient){
		"400": tryAmbiguous, "401": tryLogins, "401 that end": tryEnded, "403": tryRules, "admins": tryAdmins,
		"clients": tryClients, "backends": tryBackends, "statuses": tryStatuses, "command line": tryCommandLine,
	} {
		t.Run(name, func(t *testing.T) {
			was := p.server.t
			defer func() { p.server.t = was }()
			p.server.t = t
			try(t, p)
		})
	}
	tryBrokenStore(t, p)
}

// tryAmbiguous sends a request for each row of the tables of 400.
func tryAmbiguous(t *testing.T, p *patient) {
	_, user := p.user("allow * /{rest...}")
	login := "\r\nAuthorization: " + basic(user.id, user.secret)
	const host = " HTTP/1.1\r\nHost: api.example.com"
	plain := func() (int, string) {
		s := httptest.NewTLSServer(http.NotFoundHandler())
		defer s.Close()
		resp, err := http.Get("http://" + s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, string(must(io.ReadAll(resp.Body)))
	}
	// These do not come to the handler over a loopback connection of a Caddyfile.
	guarded := func(h Handler, change func(*http.Request)) (int, string) {
		g := newGuard(t, h)
		r := httptest.NewRequest("GET", "/v1/x", nil)
		r.SetBasicAuth(g.reader.id, g.reader.secret)
		change(r)
		w, _ := g.serve(r)
		return w.Code, w.Body.String()
	}
	requests := map[string]string{
		"the path has an empty segment":                     "GET //v1/x" + host + login,
		"the path has a dot segment":                        "GET /v1/%2e%2e/x" + host + login,
		"the path holds the byte":                           "GET /v1/<x" + host + login,
		"the query holds the byte":                          "GET /v1/x?q=\xe9" + host + login,
		"the Host must be a name of letters":                "GET /v1/x HTTP/1.1\r\nHost: api~example" + login,
		"the method is not a word of A-Z":                   "get /v1/x" + host + login,
		"the request has more than one Authorization field": "GET /v1/x" + host + login + login,
		"names another method than the request has":         "GET /v1/x" + host + login + "\r\nX-HTTP-Method-Override: DELETE",
		"400 Bad Request":                                   "GET /v1/x" + host + "\r\nAuthorization: Basic YWJj\r\nZGVm",
		"400 Bad Request: missing required Host header":     "GET /v1/x HTTP/1.1" + login,
	}
	tried := map[string]func() (int, string){
		"Client sent an HTTP request to an HTTPS server": plain,
		"credentials must not be sent unencrypted": func() (int, string) {
			return guarded(Handler{RequireTLS: true}, func(*http.Request) {})
		},
		"the request target is not the one that would be forwarded": func() (int, string) {
			return guarded(Handler{}, func(r *http.Request) { r.URL.Path = "/v2/x" })
		},
	}
	for text, request := range requests {
		tried[text] = func() (int, string) { return p.raw(request) }
	}
	untried(t, p.page.rows("400"), tried)
	for text, ask := range tried {
		if status, body := ask(); status != 400 || !strings.Contains(body, text) {
			t.Errorf("%s: got %d %s", text, status, body)
		}
	}
	// Each of them is in the log, except for those that no handler sees.
	patterns := []string{"^1 +400 +the path has an empty segment +merge_slashes +GET //v1/x$"}
	for text := range requests {
		if !strings.HasPrefix(text, "400") {
			patterns = append(patterns, regexp.QuoteMeta(text)+`.*"login":"`+user.id)
		}
	}
	if out := p.section("400", nil, patterns...); strings.Contains(out, "400 Bad Request") {
		t.Errorf("an answer of the server is in the log:\n%s", out)
	}
}
