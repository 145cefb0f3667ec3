package caddymodule

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// secretsCaddyfile logs all that it can and has every kind of refusal.
const secretsCaddyfile = `
{
	debug
	metrics
	servers {
		protocols h1 h2 h2c
		trace
	}
	service_users {
		store {$SERVICE_USERS_STORE}
		pepper_file {$PEPPER}
		throttle 40 1m
	}
}

(log) {
	bind 127.0.0.1
	log
	log_append candidate {http.auth.candidate.id}
	log_append user {http.auth.user.id}
}

http://:{$API_PORT} {
	import log
	service_users {
		self /_service_user {
			rotate
		}
		public GET /public/{rest...}
		keep_authorization
		headers id name display_name groups role teams token_id
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$BEARER_PORT} {
	import log
	service_users {
		bearer
		otherwise pass
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$ERRORS_PORT} {
	import log
	service_users {
		errors caddy
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	handle_errors {
		service_users sanitize
		header X-Error "{err.message} {http.auth.candidate.id}"
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
}

http://:{$FORWARD_PORT} {
	import log
	service_users {
		forward_authorization
	}
	reverse_proxy 127.0.0.1:{$FORWARDED_PORT}
}

http://:{$ADMIN_PORT} {
	import log
	service_users_admin
}
`

// canary is a secret and the forms in which it would give itself away.
type canary struct {
	credentials
	forms []string
}

func newCanary(c credentials) canary {
	sum := sha256.Sum256([]byte(c.secret))
	forms := []string{strings.TrimPrefix(c.secret, "csu_"), hex.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(sum[:]), string(sum[:])}
	for shift := range 3 { // base64, wherever in a longer text it begins
		encoded := base64.RawStdEncoding.EncodeToString([]byte("::"[:shift] + c.secret))
		forms = append(forms, encoded[4:len(encoded)-1])
	}
	return canary{c, forms}
}

// in returns the part of a text that gives the canary away, "" when nothing does.
func (c canary) in(text string) string {
	for _, form := range c.forms {
		if i := strings.Index(text, form); i >= 0 {
			return text[max(0, i-120):min(len(text), i+len(form)+40)]
		}
	}
	return ""
}

// TestSecretStays presents secrets, right and wrong, wherever a client can put
// one, with everything logged, and looks for them in everything that the server
// has said, stored and forwarded.
//
// "held" is where credentials belong. "spilled" is what a client puts into its
// URL, cookies and other headers: the access log and Caddy's own messages about
// the request hold those, whatever a handler does, and an upstream that the
// request may reach gets them. They are looked for everywhere else.
func TestSecretStays(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.moreports("BEARER_PORT", "ERRORS_PORT", "FORWARD_PORT", "FORWARDED_PORT")
	pepper := filepath.Join(s.dir, "pepper")
	if err := os.WriteFile(pepper, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "PEPPER="+pepper)
	up, forwarded := startRecorder(t, s.ports["UPSTREAM_PORT"]), startRecorder(t, s.ports["FORWARDED_PORT"])
	withCaddyfile(s, secretsCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	held := newCanary(s.create("held", "--group", "readers", "--role", "admin", "--alias", "held.alias"))
	other := newCanary(s.create("other", "--group", "readers"))
	off := newCanary(s.create("off"))
	s.mustCLI("deactivate", "off")
	spilled := newCanary(credentials{held.id, strings.Fields(s.mustCLI("token", "create", "held"))[3]})
	strict := []canary{held, other, off}

	// Everything that the server says, and who asked.
	type said struct{ to, text string }
	var heard []said
	used := map[string]bool{} // outcomes that were seen, so that the test proves something
	var mu sync.Mutex         // of heard and used
	ask := func(port, request string) int {
		t.Helper()
		conn, err := net.Dial("tcp", s.addr(port))
		if err != nil {
			t.Error(err)
			return 0
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, request); err != nil {
			t.Error(err)
			return 0
		}
		var raw bytes.Buffer
		resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), nil)
		if err != nil {
			t.Errorf("%q: %v", request, err)
			return 0
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, said{port + " " + request, raw.String()})
		used[fmt.Sprint(port, resp.StatusCode)] = true
		return resp.StatusCode
	}
	get := func(path string, lines ...string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n"
	}
	post := func(path, body string, lines ...string) string {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", len(body)), "Content-Type: application/json", "", body)
		return "POST " + path + " HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n" + strings.Join(lines, "\r\n")
	}
	authorization := func(value string) string { return "Authorization: " + value }
	chunked := func(trailer string) string {
		return "POST /v1/x HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n" + authorization(basic(held.id, held.secret)) +
			"\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n3\r\nabc\r\n0\r\n" + trailer + "\r\n\r\n"
	}

	ask("ADMIN_PORT", get("/service_users")) // a door throttles malformed credentials too: those below may all get 429
	sites := []string{"API_PORT", "BEARER_PORT", "ERRORS_PORT", "ADMIN_PORT", "FORWARD_PORT"}
	var asking sync.WaitGroup
	for _, port := range sites {
		for _, path := range []string{"/v1/x", "/v2/x", "/public/x", "/_service_user", "/v1/%2e%2e/x", "/service_users"} {
			values := []string{
				basic(held.id, held.secret), "basic" + strings.TrimPrefix(basic(held.id, held.secret), "Basic"), basic("held.alias", held.secret),
				basic(off.id, off.secret), basic(held.id, other.secret), basic("nobody", held.secret), basic(held.secret, held.id), basic(held.secret, ""), basic("", held.secret),
				basic(held.id, held.secret+"x"), basic(held.id, testkit.Altered(held.secret)), basic("my user", held.secret), basic(held.id, " "+held.secret), strings.TrimRight(basic(held.id, held.secret), "="), basic(held.id+":"+held.secret, held.secret), "Basic " + held.secret, "Basic  " + held.secret,
				"Bearer " + held.secret, "bearer " + held.secret, "Bearer " + off.secret, "Bearer " + held.secret + "x", "Bearer  " + held.secret, "Bearer " + held.id + ":" + held.secret,
				"Token " + held.secret, held.secret, "Digest username=\"" + held.id + "\", response=\"" + held.secret + "\"",
				basic(held.id, held.secret) + "\r\nAuthorization: Bearer " + held.secret, "Bearer " + held.secret + "\r\nAuthorization: " + basic(held.id, held.secret),
				basic(held.id, held.secret) + "\r\nProxy-Authorization: " + basic(held.id, held.secret),
				basic(held.id, held.secret) + "\r\nX-Forwarded-Access-Token: " + spilled.secret + "\r\nX-Service-User-Token: " + spilled.secret,
			}
			asking.Go(func() { // side by side, since what the throttle refuses is answered late
				for _, value := range values {
					ask(port, get(path, authorization(value)))
				}
			})
		}
		ask(port, chunked("Authorization: "+basic(held.id, held.secret)))
		ask(port, chunked("Authorization: Bearer "+held.secret))
		ask(port, post("/v1/x", "abc", authorization(basic(held.id, held.secret))))
		ask(port, post("/_service_user/can", `{"method":"GET","path":"/v1/x"}`, authorization(basic(held.id, held.secret))))
		ask(port, post("/_service_user/can", `{"method":`, authorization(basic(held.id, held.secret))))
	}
	asking.Wait()
	for _, want := range []string{"API_PORT200", "API_PORT400", "API_PORT401", "API_PORT403", "API_PORT429", "BEARER_PORT200", "ERRORS_PORT200", "FORWARD_PORT200", "ADMIN_PORT200", "ADMIN_PORT401"} {
		if !used[want] {
			t.Errorf("nothing was answered %s", want)
		}
	}
	// The admin API, with the canary as the credential and as somebody's data.
	admin := authorization("Bearer " + held.secret)
	for _, path := range []string{"/service_users", "/service_users?q=held", "/service_users/" + held.id, "/service_users/" + held.id + "/tokens", "/service_users/" + off.id + "/tokens",
		"/permission_groups", "/audit_events", "/service_users/none", "/openapi.json", "/healthz", "/readyz", "/service_users/" + held.id + "/access",
		"/service_users/would_deny", "/service_users/who_can?method=GET&url=/v1/x", "/service_users/permissions"} {
		ask("ADMIN_PORT", get(path, admin))
		ask("CADDY_PORT", strings.Replace(get(path, admin), "Host: app.example", "Host: "+s.addr("CADDY_PORT"), 1))
	}
	for _, body := range []string{`{"name":"held"}`, `{"name":`, `{"name":"x","token":1}`} {
		ask("ADMIN_PORT", post("/service_users", body, admin))
	}
	for _, path := range []string{"/metrics", "/config/", "/debug/vars", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline", "/reverse_proxy/upstreams"} {
		if status := ask("CADDY_PORT", "GET "+path+" HTTP/1.1\r\nHost: "+s.addr("CADDY_PORT")+"\r\nConnection: close\r\n\r\n"); status != 200 {
			t.Errorf("%s: got %d, want 200", path, status)
		}
	}
	for _, args := range [][]string{{"list"}, {"show", "held"}, {"token", "list", "held"}, {"group", "list"}, {"group", "show", "readers"}} {
		heard = append(heard, said{strings.Join(args, " "), s.mustCLI(args...)}, said{strings.Join(args, " ") + " --json", s.mustCLI(append(args, "--json")...)})
	}
	stdout, stderr, _ := s.cli("create", "held") // the name is taken
	heard = append(heard, said{"create held", stdout + stderr})

	// What clients spill. Nothing of it gets through: there is no credential.
	up.mu.Lock()
	before := len(up.got)
	up.mu.Unlock()
	for _, port := range []string{"API_PORT", "FORWARD_PORT", "ADMIN_PORT"} {
		for _, request := range []string{
			get("/v1/" + spilled.secret), get("/v1/x?token=" + spilled.secret), get("/v1/x?a=b&access_token=" + spilled.secret), get("/v1/x", "Cookie: token="+spilled.secret),
			get("/v1/x", "X-Api-Key: "+spilled.secret), get("/v1/x", "X-Auth-Token: "+spilled.secret), get("/v1/x", "Referer: https://app.example/?t="+spilled.secret),
			get("/v1/x", "User-Agent: "+spilled.secret), get("/v1/x", "Origin: "+spilled.secret),
			get("http://" + held.id + ":" + spilled.secret + "@app.example/v1/x"), get("//" + held.id + ":" + spilled.secret + "@app.example/v1/x"),
			get("/v1/%2e%2e/" + spilled.secret), get("/v1/" + spilled.secret + ";x"), get("/service_users/" + spilled.secret), get("/service_users?q=" + spilled.secret),
			// With a credential, on a path that no rule allows.
			get("/v2/"+spilled.secret, authorization(basic(other.id, other.secret))), get("/v2/x?token="+spilled.secret, authorization(basic(other.id, other.secret))),
			post("/v1/x", `{"token":"`+spilled.secret+`"}`), post("/service_users", `{"name":`+spilled.secret+`}`, admin),
		} {
			if status := ask(port, request); status < 400 {
				// The admin may look for anything, and find nothing.
				t.Errorf("%s %q: got %d", port, request, status)
			}
		}
	}

	// Stop, so that all is written, and look.
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(time.Minute):
		t.Fatal("the server does not end")
	}
	for _, h := range heard {
		for _, c := range append(strict, spilled) {
			if strings.HasPrefix(h.to, "FORWARD_PORT") && strings.Contains(h.to, c.secret) {
				continue // what the client itself said, if it comes back, is no news
			}
			if found := c.in(h.text); found != "" {
				t.Errorf("%q: the answer holds %q", h.to, found)
			}
		}
	}
	up.mu.Lock()
	for i, raw := range up.got {
		for _, c := range append(strict, spilled) {
			if found := c.in(raw); found != "" {
				t.Errorf("request %d upstream (%d before the spills) holds %q", i, before, found)
			}
		}
	}
	if before < 20 {
		t.Errorf("%d requests reached the upstream, want at least 20", before)
	}
	up.mu.Unlock()
	for _, raw := range forwarded.requests() {
		credential := regexp.MustCompile("\r\nAuthorization: [Bb]asic [A-Za-z0-9+/=]+\r\n").FindAllString(raw, -1)
		if len(credential) != 1 || held.in(strings.Replace(raw, credential[0], "", 1)) != "" || spilled.in(raw) != "" {
			t.Errorf("with forward_authorization the upstream got %q", raw)
		}
	}
	ours, lines := 0, 0
	for line := range strings.Lines(s.log.String()) {
		lines++
		var entry struct{ Logger, Msg string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			entry.Logger = "?"
		}
		own := strings.Contains(entry.Logger, "service_users")
		if own {
			ours++
		}
		for _, c := range strict {
			if found := c.in(line); found != "" {
				t.Errorf("the log (%s, %s) holds %q", entry.Logger, entry.Msg, found)
			}
		}
		// Caddy's own lines about a request: the access log, its errors, its debug messages.
		aboutRequest := strings.Contains(line, `"request":{`) || entry.Logger == "admin.api"
		if found := spilled.in(line); found != "" && (own || !aboutRequest) {
			t.Errorf("the log (%s, %s) holds %q", entry.Logger, entry.Msg, found)
		}
		if strings.Contains(line, "panic") {
			t.Errorf("a panic: %s", line)
		}
	}
	if ours < 50 || lines < 500 {
		t.Errorf("%d lines of the log, %d of them ours: too few to prove something", lines, ours)
	}
	files := 0
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, c := range append(strict, spilled) {
			if found := c.in(string(text)); found != "" {
				t.Errorf("%s holds %q", path, found)
			}
		}
		if strings.HasPrefix(filepath.Base(path), "service_users.db") {
			if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: mode %v (%v), want nobody else to read it", path, info.Mode(), err)
			}
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Errorf("looked at %d files: %v", files, err)
	}
}

// TestPlaceholdersAreData puts placeholders wherever text comes from a client or
// an admin. Nothing expands them.
func TestPlaceholdersAreData(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	file := filepath.Join(s.dir, "file-canary")
	if err := os.WriteFile(file, []byte("canary-of-the-file"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "CANARY=canary-of-the-environment")
	s.moreports("ERRORS_PORT")
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, `
{
	debug
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
	}
}

(site) {
	bind 127.0.0.1
	log
	log_append who {http.auth.user.name}
	log_append teams {http.auth.user.teams}
	log_append groups {http.auth.user.groups}
	log_append candidate {http.auth.candidate.id}
	header >X-Who "{http.auth.user.name} {http.auth.user.teams}"
}

http://:{$API_PORT} {
	import site
	service_users {
		realm "Example API"
		headers id name display_name groups role teams token_id
		public GET /public/{rest...}
		strip X-Env-Canary
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT} {
		header_up X-Name {http.auth.user.name}
	}
}

http://:{$ERRORS_PORT} {
	import site
	service_users {
		errors caddy
	}
	handle_errors {
		respond "{err.message} {http.auth.candidate.id} {http.auth.user.name} {http.service_users.decision_id}"
	}
}
`)
	var all strings.Builder
	canaries := []string{"{env.CANARY}", "{file." + file + "}", "{http.request.header.Authorization}", "{$CANARY}", "{http.vars.service_users.identity}", "{{env `CANARY`}}"}
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}", "--description", canaries[0])
	for _, args := range [][]string{{"group", "create", canaries[0]}, {"create", "x", "--team", canaries[0]}, {"create", "x", "--alias", canaries[0]}} {
		_, stderr, code := s.cli(args...)
		if code == 0 {
			t.Errorf("%q was taken", args)
		}
		all.WriteString(stderr)
	}
	for i, text := range canaries {
		user := s.create(text, "--display-name", text, "--description", text, "--owner", text, "--team", "a team", "--label", "a="+text, "--group", "readers")
		path := "/v1/" + strings.NewReplacer("{", "%7B", "}", "%7D", "`", "%60", " ", "%20").Replace(text)
		up.reset()
		r := s.get(path, user, "X-Text: "+text, "X-Env-Canary: "+text)
		got := up.requests()
		if r.StatusCode != 200 && !strings.Contains(text, "/") || r.StatusCode == 200 && len(got) != 1 {
			t.Errorf("%s: got %d %s", text, r.StatusCode, r.body)
		}
		for _, raw := range got {
			want := []string{"\r\nX-Service-User-Name: " + text + "\r\n", "\r\nX-Service-User-Display-Name: " + text + "\r\n", "\r\nX-Name: " + text + "\r\n", "\r\nX-Text: " + text + "\r\n", "GET " + path + " "}
			for _, w := range want {
				if !strings.Contains(raw, w) {
					t.Errorf("%s: the upstream got %q, want %q in it", text, raw, w)
				}
			}
			if strings.Count(raw, "Basic ") != 0 {
				t.Errorf("%s: the upstream got %q", text, raw)
			}
			all.WriteString(raw)
		}
		if who := r.Header.Get("X-Who"); r.StatusCode == 200 && i < 3 && who != text+" a team" {
			t.Errorf("%s: a placeholder of ours became %q", text, who)
		}
		for _, r := range []*response{
			r, s.get(path, credentials{}), s.get(path, credentials{text, text}), s.get("/public/x", user, "X-Text: "+text), s.get("/public/"+path[4:], credentials{}),
			s.get("/v2/"+path[4:], user), s.get("/v1/"+path[4:]+"/%2e%2e/"+path[4:], user), s.do("GET", "ERRORS_PORT", "/v2/"+path[4:], user, ""),
			s.do("GET", "ERRORS_PORT", path, credentials{text, text}, ""), s.do("GET", "ERRORS_PORT", "/v1/%2e%2e/"+path[4:], credentials{"env.CANARY", text}, ""),
			s.do("GET", "CADDY_PORT", "/service_users/"+path[4:], credentials{}, ""), s.do("GET", "CADDY_PORT", "/service_users", credentials{}, ""),
		} {
			fmt.Fprint(&all, r.StatusCode, r.Header, r.body)
			if r.StatusCode == 401 && r.Request.URL.Port() == s.ports["API_PORT"] && r.Header.Get("WWW-Authenticate") != `Basic realm="Example API", charset="UTF-8"` {
				t.Errorf("the challenge is %q", r.Header.Get("WWW-Authenticate"))
			}
		}
		if i == 0 {
			all.WriteString(s.mustCLI("show", text))
			if show := s.mustCLI("show", text, "--json"); !strings.Contains(show, text) {
				t.Errorf("show prints %s, want %s in it", show, text)
			}
		}
	}
	all.WriteString(s.log.String())
	for _, canary := range []string{"canary-of-the-environment", "canary-of-the-file"} {
		if i := strings.Index(all.String(), canary); i >= 0 {
			t.Errorf("%s was expanded: %q", canary, all.String()[max(0, i-300):i+60])
		}
	}
}

// fail2ban reads a filter of fail2ban as fail2ban does: the pattern of the time
// is cut out of a line before the pattern of a failure is tried.
func fail2ban(t *testing.T) (address func(line string) string) {
	t.Helper()
	text, err := os.ReadFile("../examples/fail2ban/filter.d/caddy-service-users.conf")
	if err != nil {
		t.Fatal(err)
	}
	option := func(name string) string {
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, name+" = "); ok {
				return strings.TrimSuffix(value, "\n")
			}
		}
		t.Fatalf("the filter has no %s", name)
		return ""
	}
	date := regexp.MustCompile(strings.ReplaceAll(option("datepattern"), "{EPOCH}", `\d{10,11}\b(?:\.\d{3,6})?`))
	failure := regexp.MustCompile(strings.ReplaceAll(option("failregex"), "<ADDR>", `(?P<addr>[0-9a-fA-F:.]+)`))
	return func(line string) string {
		at := date.FindStringIndex(line)
		if at == nil {
			return ""
		}
		if match := failure.FindStringSubmatch(line[:at[0]] + line[at[1]:]); match != nil {
			return match[failure.SubexpIndex("addr")]
		}
		return ""
	}
}

// TestFail2ban reads the log of a real server with the filter of the examples.
func TestFail2ban(t *testing.T) {
	t.Parallel()
	address := fail2ban(t)
	s := newServer(t)
	startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, strings.Replace(proxyCaddyfile, "service_users\n", "log\n\tservice_users\n", 1))
	user := s.create("billing-sync")
	failures := 0
	for range 35 { // above 30 they are answered 429, and count as well
		s.get("/v1/x", credentials{user.id, "wrong"})
		failures++
	}
	for _, header := range []string{"Digest x", "Basic " + user.id + ":x", basic(user.id, "x\n")} { // those whose line has one field more
		s.get("/v1/x", credentials{}, "Authorization: "+header)
		failures++
	}
	fake := `x","logger":"http.handlers.service_users","msg":"authentication failed","client_ip":"192.0.2.66","reason":"wrong secret","login":"x`
	s.get("/v1/x", credentials{fake, fake}, "User-Agent: "+fake)
	failures++
	s.get("/v1/x?"+strings.NewReplacer(`"`, "%22", " ", "%20").Replace(fake), credentials{}, "User-Agent: "+fake) // waits for the challenge: not a failure
	s.get("/v1/x", user, "User-Agent: "+fake)                                                                     // not allowed: no failure either
	matched := 0
	for line := range strings.Lines(s.log.String()) {
		switch got := address(strings.TrimSuffix(line, "\n")); got {
		case "":
		case "127.0.0.1":
			matched++
		default:
			t.Errorf("the address of %s is read as %s", line, got)
		}
	}
	if matched != failures {
		t.Errorf("%d lines match, want %d", matched, failures)
	}
	line := `{"level":"info","ts":1795293000.1234567,"logger":"http.handlers.service_users","msg":"authentication failed","client_ip":"2001:db8::7","reason":"unknown id","login":"x"}`
	if got := address(line); got != "2001:db8::7" {
		t.Errorf("%s: got the address %q", line, got)
	}
}
