package caddymodule

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// tryStatuses asks for the statuses of the first table that are not of service users alone, and
// follows the command of the row.
func tryStatuses(t *testing.T, p *patient) {
	name, user := p.user("allow * /{rest...}")
	p.curlFile(user)
	const host = " HTTP/1.1\r\nHost: api.example.com\r\nConnection: close"
	login := "\r\nAuthorization: " + basic(user.id, user.secret)
	for _, tt := range []struct {
		row, request string
		status       int
		shows        string // by the command of the row
	}{
		{"| 404, 405, 500 |", "GET /missing" + host + login, 404, ""},
		{"| 405 with `TRACE` or `TRACK` |", "TRACE /v1/x" + host + login, 405, "the method TRACE is not allowed"},
		{"| 425 |", "POST /v1/x" + host + login + "\r\nEarly-Data: 1\r\nContent-Length: 0", 425, "must wait for the TLS handshake"},
		{"| 431 |", "GET /v1/x" + host + "\r\nX-Long: " + strings.Repeat("x", 30_000), 431, ""},
		{"| 501 |", "CONNECT api.example.com:443" + host + login, 501, "the method CONNECT is not supported"},
		{"| 502, 504 |", "GET /index.php HTTP/1.1\r\nHost: php.example" + login, 502, "connection refused"},
	} {
		if status, body := p.raw(tt.request); status != tt.status {
			t.Errorf("%s: got %d %s, want %d", tt.row, status, body, tt.status)
		}
		p.shows(tt.row, []string{p.rowCommand(tt.row)}, []string{"billing-sync", name}, tt.shows)
	}
	if got := p.get("/v1/x", user, "Early-Data: 1").StatusCode; got != 200 {
		t.Errorf("a safe request as early data: got %d, want 200", got)
	}

	const heading = "Is the answer ours"
	out := p.section(heading, []string{"/v1/people/7", "/missing"}, "HTTP/1.1 404 Not Found", "Via: 1.1 Caddy")
	if strings.Contains(out, "application/problem+json") {
		t.Errorf("an answer of the upstream: got\n%s", out)
	}
	_, stranger := p.user()
	p.curlFile(stranger)
	out = p.section(heading, nil, "HTTP/1.1 403 Forbidden", "application/problem.json", "Service-User-Decision-Id")
	if strings.Contains(out, "Via:") {
		t.Errorf("an answer of service_users: got\n%s", out)
	}
	p.section("Slow", nil, "HTTP/1.1 401 Unauthorized")
}

// rowCommand returns the command of a row of the first table.
func (p *patient) rowCommand(row string) string {
	p.t.Helper()
	_, rest, ok := strings.Cut(p.page["By status"], "\n"+row)
	line, _, _ := strings.Cut(rest, "\n")
	spans := codeSpan.FindAllStringSubmatch(line, -1)
	if !ok || len(spans) == 0 {
		p.t.Fatalf("the page has no command in the row %s", row)
	}
	return spans[len(spans)-1][1]
}

// curlFile writes the file of credentials that the page names.
func (p *patient) curlFile(c credentials) {
	p.t.Helper()
	text := "user = " + c.id + ":" + c.secret + "\n"
	if err := os.WriteFile(filepath.Join(p.dir, "billing-sync.curl"), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// tryClients produces the symptoms of clients.
func tryClients(t *testing.T, p *patient) {
	name, user := p.user("allow GET,POST /v1/{rest...}", "deny GET /v1/people/{id}")
	names := []string{"billing-sync", name}
	want := func(what string, got *response, status int) {
		t.Helper()
		if got.StatusCode != status {
			t.Errorf("%s: got %d, want %d", what, got.StatusCode, status)
		}
	}

	want("a line feed", p.get("/v1/x", credentials{user.id, user.secret + "\n"}), 401)
	p.section("Works with curl, not from a program", names, "the token ends in a line break")

	p.section("Browser preflight fails", nil, "HTTP/1.1 401 Unauthorized")

	upgrade := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="}
	want("a WebSocket", p.get("/v1/people/7", user, upgrade...), 403)
	p.section("WebSocket fails", names, "^deny +a rule denies it")

	want("a semicolon", p.get("/v1/x;y", user), 400)
	p.section("A path with special characters gets 400", nil, "the path holds the byte 0x3b.* allow_")

	p.mustCLI("token", "refresh", name, p.tokenID(name), "--grace", "1h")
	want("a retiring token", p.get("/v1/x", user), 200)
	p.section("A revoked token still works", names, " retiring ")
	p.section("An upload or stream is cut", names, "token.refresh")
}

// tryAdmins produces the symptoms of admins.
func tryAdmins(t *testing.T, p *patient) {
	p.follow("caddy service-user --store other.db --create create elsewhere --secret-file elsewhere")
	secret, err := os.ReadFile(filepath.Join(p.dir, "elsewhere"))
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Fields(p.follow("caddy service-user --store other.db list"))
	for len(id) > 0 && !strings.HasPrefix(id[0], "service_") {
		id = id[1:]
	}
	if got := p.get("/v1/x", credentials{id[0], string(secret)}); got.StatusCode != 401 {
		t.Errorf("a service user of another store: got %d", got.StatusCode)
	}
	out := p.section("A new service user gets 401", []string{"billing-sync", "elsewhere", "service_users.db", "other.db"},
		`there is no service user "elsewhere"`, `"store":"`+regexp.QuoteMeta(p.dir))
	revisions := regexp.MustCompile(`revision +(\d+)`).FindAllStringSubmatch(out, -1)
	if len(revisions) != 2 || revisions[0][1] == revisions[1][1] {
		t.Errorf("the revisions of two stores: got %q in\n%s", revisions, out)
	}

	stranger := p.create("stranger")
	if got := p.get("/v1/x", stranger); got.StatusCode != 403 {
		t.Errorf("a service user without a group: got %d", got.StatusCode)
	}
	p.section("A new service user gets 403", []string{"billing-sync", "stranger"}, "No permission group has this member")
	if got := p.get("/v1/people/7", stranger); got.StatusCode != 200 {
		t.Errorf("a service user with a group of its own: got %d", got.StatusCode)
	}

	// FastCGI: the path has an allow, and its two parts, script and PATH_INFO, have none.
	name, user := p.user("allow GET /app.php/info")
	ask := func() (int, string) {
		return p.raw("GET /app.php/info HTTP/1.1\r\nHost: php.example\r\nAuthorization: " + basic(user.id, user.secret))
	}
	for _, part := range []string{"/app.php", "/info"} {
		status, body := ask()
		if status != 403 {
			t.Errorf("FastCGI without %s: got %d", part, status)
		}
		p.section("A rule looks right, and the answer is 403", []string{exampleDecision, identifier.FindString(body)},
			"^request +GET php.example"+part+"$", "^would need +allow GET "+part+"$")
		p.mustCLI("rule", "add", name, "allow GET "+part)
	}
	if status, body := ask(); status != 502 { // nobody answers behind the guard
		t.Errorf("FastCGI with every rule: got %d %s", status, body)
	}

	p.section("last_active does not move", []string{"billing-sync", name}, "store +ok", "last active +20")
	p.token(user, name, "--not-before", "2090-01-01T00:00:00Z")
	p.section("The clock", []string{"billing-sync", name}, " pending ")
	p.section("503", nil, "status +ok")
}

// tryBackends produces the symptoms of backends.
func tryBackends(t *testing.T, p *patient) {
	for heading, row := range map[string]struct{ site, want string }{
		"No identity header": {"handle /v1/* {\n\t\treverse_proxy localhost:9000\n\t}\n\thandle {\n\t\tservice_users\n\t\treverse_proxy localhost:9000\n\t}",
			"requests get to reverse_proxy localhost:9000 without passing service_users"},
		"200 without a check": {"service_users {\n\t\totherwise pass\n\t}\n\treverse_proxy localhost:9000",
			"requests without credentials get to"},
		"Probes get 401, 404 or an empty 200": {"service_users {\n\t\tready /readyz\n\t}\n\treverse_proxy localhost:9000",
			"answers only requests for api.example.com: a probe that sends the address of the machine as its host"},
	} {
		if err := os.WriteFile(filepath.Join(p.dir, "Backend"), []byte("api.example.com {\n\t"+row.site+"\n}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		p.section(heading, []string{"lint Caddyfile", "lint Backend --adapter caddyfile"}, row.want)
	}

	// The address of a client behind a proxy counts only if the proxy is trusted.
	name, user := p.user("allow GET /v1/x")
	for from, want := range map[string]string{"127.0.0.1": "127.0.0.1", "127.0.0.2": "192.0.2.9"} {
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", "127.0.0.1:"+p.ports["API_PORT"])
		}}
		req := must(http.NewRequest("GET", "http://"+p.addr("API_PORT")+"/v1/x", nil))
		req.SetBasicAuth(user.id, user.secret)
		req.Header.Set("X-Forwarded-For", "192.0.2.9")
		resp := must(transport.RoundTrip(req))
		resp.Body.Close()
		transport.CloseIdleConnections()
		if resp.StatusCode != 200 {
			t.Errorf("from %s: got %d", from, resp.StatusCode)
		}
		p.section("Wrong client address", []string{"billing-sync", name}, " "+want+" ")
	}
}

// tryBrokenStore takes the store away from the running Caddy, and tries rows of the store faults.
func tryBrokenStore(t *testing.T, p *patient) {
	store := filepath.Join(p.dir, "service_users.db")
	if err := os.Rename(store, store+".away"); err != nil {
		t.Fatal(err)
	}
	const gone = "the database was taken away while it was open"
	for deadline := time.Now().Add(patience); !strings.Contains(p.follow("caddy service-user health"), gone); {
		if time.Now().After(deadline) {
			t.Fatal("health does not show the fault")
		}
	}
	p.section("Store faults", nil, gone)
	p.section("last_active does not move", []string{"billing-sync", "stranger"}, gone)
	if err := os.Rename(store+".away", store); err != nil {
		t.Fatal(err)
	}
	// A fault of a store that is opened anew: by a load, or by a command.
	rows := p.page.rows("Store faults")
	check := func(text, got string) {
		t.Helper()
		if rows[text] == nil || !quotes(got, text) {
			t.Errorf("%s (a row: %t): got %s", text, rows[text] != nil, got)
		}
	}
	for text, option := range map[string]string{
		"the directory … does not exist; create it first":                  "store none/service_users.db",
		"and a new one would lock out the":                                 "store none.db",
		"without its keys the tokens that were made with them are refused": "store {$SERVICE_USERS_STORE}\n\t\tpepper_file none",
	} {
		status, got := p.load(strings.Replace(troubledCaddyfile, "store {$SERVICE_USERS_STORE}", option, 1))
		check(text, got)
		if status == 200 {
			t.Errorf("%s: it loads", option)
		}
	}
	for text, prepare := range map[string]string{
		"not a store of service users": "head -c 9000 /dev/zero | tr '\\0' x >bad.db",
		"older than before": "caddy service-user --store bad.db --create create a --no-token; cp bad.db copy; " +
			"caddy service-user --store bad.db create b --no-token; cp copy bad.db",
	} {
		p.follow(prepare)
		check(text, p.follow("caddy service-user --store bad.db health"))
		_ = os.Remove(filepath.Join(p.dir, "bad.db"))
	}
	tryLostTokens(t, p)
}

// tryLostTokens makes a token with a pepper that Caddy does not have, and one that a restore takes
// away.
func tryLostTokens(t *testing.T, p *patient) {
	name, user := p.user("allow GET /v1/x")
	p.follow("caddy service-user backup store.backup")
	late := p.token(user, name)
	p.stop()
	p.follow("caddy service-user --store service_users.db restore store.backup --yes")
	p.follow("head -c 40 /dev/zero | tr '\\0' k >peppers")
	peppered := user
	peppered.secret = printedToken(p.follow("caddy service-user --store service_users.db --pepper-file peppers token create " + name))
	p.start(filepath.Join(p.dir, "Caddyfile"))
	for what, row := range map[string]struct {
		credentials
		want int
	}{"a token of the backup": {user, 200}, "a later one": {late, 401}, "one with a pepper": {peppered, 401}} {
		if got := p.get("/v1/x", row.credentials); got.StatusCode != row.want || row.secret == "" {
			t.Errorf("%s: got %d, want %d", what, got.StatusCode, row.want)
		}
	}
	p.section("Everybody gets 401", nil, "tokens cannot be verified: their pepper is not in the pepper file", " store.restore ")

	// With the throttle on, the attempt after the first one is a 429.
	if status, text := p.load(strings.Replace(troubledCaddyfile, "throttle off", "throttle 1 1h", 1)); status != 200 {
		t.Fatalf("got %d %s", status, text)
	}
	for _, want := range []int{401, 429} {
		if got := p.get("/v1/x", late); got.StatusCode != want {
			t.Errorf("with the throttle: got %d, want %d", got.StatusCode, want)
		}
	}
	p.shows("429", []string{p.rowCommand("| 429 |")}, []string{"billing-sync", name}, " 429 +wrong_secret ")
}

// tryCommandLine runs a command for each row of the command line.
func tryCommandLine(t *testing.T, p *patient) {
	name, user := p.user()
	other := newServer(t) // a Caddy without service users
	caddyfile := "{\n\tadmin {$CADDY_ADMIN}\n}\n"
	if err := os.WriteFile(filepath.Join(other.dir, "Caddyfile"), []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	other.run(filepath.Join(other.dir, "Caddyfile"))
	other.waitFor("/config/")
	type run struct {
		code int
		line string
	}
	tried := map[string]run{
		"connection refused; is Caddy running, and is its address right":        {6, "caddy service-user list --address localhost:" + freePort()},
		"no such file or directory; is Caddy running, and is its address right": {6, "caddy service-user list --address unix/none.sock"},
		"not as the service-user API does":                                      {6, "caddy service-user list --address " + p.addr("UPSTREAM_PORT")},
		"this Caddy has no service users":                                       {6, "caddy service-user list --address " + other.addr("CADDY_PORT")},
		"was refused: authenticate as an admin or manager": {5, "SERVICE_USER_ID=" + user.id + " SERVICE_USER_TOKEN=" + user.secret +
			"x caddy service-user list --url http://" + p.addr("ADMIN_PORT")},
		"this identity may not use the admin API": {5, "SERVICE_USER_ID=" + user.id + " SERVICE_USER_TOKEN=" + user.secret +
			" caddy service-user list --url http://" + p.addr("ADMIN_PORT")},
		"is taken by another service user": {4, "caddy service-user create " + name},
		"there is no service user":         {3, "caddy service-user show nobody"},
		"unknown flag":                     {2, "caddy service-user create x --labels a=b"},
		"no such file or directory; --create, or \"caddy run\", makes a new store": {1, "caddy service-user --store none.db list"},
		"write it decoded, without \"%\"":                                          {1, "caddy service-user rule add " + name + " 'allow GET /a%20b'"},
	}
	try := func(text string, tt run) {
		t.Helper()
		if out, code := p.enter(tt.line); code != tt.code || !strings.Contains(out, text) {
			t.Errorf("%s: got %d: %s", tt.line, code, out)
		}
		if !strings.Contains(p.page["The command line"], fmt.Sprintf("\n| %d | `%s` |", tt.code, text)) {
			t.Errorf("the page does not have %q with the code %d", text, tt.code)
		}
	}
	for text, tt := range tried {
		try(text, tt)
	}
	if status, text := other.load("{\n\tadmin " + other.addr("CADDY_PORT") + " {\n\t\torigins admin.example.com\n\t}\n}\n"); status != 200 {
		t.Fatalf("got %d %s", status, text)
	}
	const host, socket = "host not allowed", "permission denied; only the user of Caddy may open the socket"
	try(host, run{5, "caddy service-user list --address " + other.addr("CADDY_PORT")})
	tried[host], tried[socket] = run{}, run{} // see TestTroubleWithSocket
	untried(t, p.page.rows("The command line"), tried)
	p.section("The command line", nil, "status +ok")
}

// TestTroubleWithSocket: the user of another process learns why the socket does not open.
func TestTroubleWithSocket(t *testing.T) {
	t.Parallel()
	s := unprivileged(t)
	socket := filepath.Join(s.dir, "caddy.sock")
	l, err := net.Listen("unix", socket)
	if err == nil {
		err = os.Chmod(socket, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(filepath.Join(s.dir, "caddy"), "service-user", "list", "--address", "unix/"+socket)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = s.dir, s.env, s.as
	out, err := cmd.CombinedOutput()
	const text = "permission denied; only the user of Caddy may open the socket"
	page := readTroubles(t)
	if code := cmd.ProcessState.ExitCode(); code != 6 || !strings.Contains(string(out), text) {
		t.Errorf("got %v: %s", err, out)
	}
	if !strings.Contains(page["The command line"], "\n| 6 | `"+text+"` |") {
		t.Errorf("the page does not have %q", text)
	}

	const file = "it and its directory must be readable and writable for this user"
	store := filepath.Join(s.dir, "service_users.db")
	s.mustCLI("--store", store, "--create", "create", "a", "--no-token")
	if err := os.Chown(store, 0, 0); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(cmd.Path, "service-user", "list", "--store", store)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = s.dir, s.env, s.as
	out, err = cmd.CombinedOutput()
	if page.rows("Store faults")[file] == nil || !strings.Contains(string(out), file) {
		t.Errorf("got %s (%v), want %q, there and on the page", out, err, file)
	}
}
