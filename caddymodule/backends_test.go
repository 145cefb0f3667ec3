package caddymodule

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// pageBlocks returns the fenced blocks of a page in a language.
func pageBlocks(t testing.TB, page, language string) (blocks []string) {
	t.Helper()
	for _, block := range strings.Split(string(must(os.ReadFile("../docs/"+page))), "\n```"+language+"\n")[1:] {
		block, _, ok := strings.Cut(block, "\n```\n")
		if !ok {
			t.Fatalf("%s: a block in %s has no end", page, language)
		}
		blocks = append(blocks, block+"\n")
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no block in %s", page, language)
	}
	return blocks
}

// blockWith returns the only block of a page that contains a text.
func blockWith(t testing.TB, page, language, text string) string {
	t.Helper()
	found := ""
	for _, block := range pageBlocks(t, page, language) {
		if strings.Contains(block, text) {
			if found != "" {
				t.Fatalf("%s: %q is in two blocks", page, text)
			}
			found = block
		}
	}
	if found == "" {
		t.Fatalf("%s: %q is in no block", page, text)
	}
	return found
}

// TestPagesLint: load has nothing against the Caddyfiles for authors of backends, for many nodes, for
// probes and for load balancers.
func TestPagesLint(t *testing.T) {
	linted := 0
	for _, page := range []string{"backends.md", "fleet.md", "probes.md", "security.md"} {
		for _, block := range pageBlocks(t, page, "caddyfile") {
			if strings.Contains(block, "cache {") {
				continue // tools/neighbours has the module
			}
			if strings.Contains(block, "tls_client_auth") {
				checkFormat(t, page, []byte(block))
				continue // the certificates are missing here
			}
			linted++
			checkFormat(t, page, []byte(block))
			want := "no findings\n"
			if strings.Contains(block, "mode observe") {
				want = "mode observe lets every service user"
			}
			got := lintCaddyfile(t, []byte(block))
			if !strings.Contains(got, want) || strings.Count(got, "\n") != 1 {
				t.Errorf("%s: got %q, want %q for\n%s", page, got, want, block)
			}
		}
	}
	if linted < 12 {
		t.Errorf("linted %d Caddyfiles, fewer than were there", linted)
	}
}

// example is a backend of docs/backends.md.
type example struct{ language, program, install string }

var examples = []example{
	{"go", "go", "install Go"},
	{"python", "python3", "install the Debian package python3"},
	{"js", "node", "install the Debian package nodejs"},
	{"php", "php", "install the Debian package php-cli"},
	{"java", "java", "install the Debian package openjdk-17-jdk-headless, or a later one"},
}

// start runs the example at a port, by the command in its first lines.
func (e example) start(t *testing.T, port string) {
	t.Helper()
	source := pageBlocks(t, "backends.md", e.language)
	first := regexp.MustCompile(`(?m)^(?://|#) (\S+): run it with "(.+?)"`).FindStringSubmatch(source[0])
	if len(source) != 1 || first == nil || strings.Count(source[0], "9000") == 0 {
		t.Fatalf("%d blocks in %s; the first has no command or no port:\n%s",
			len(source), e.language, source[0])
	}
	if _, err := exec.LookPath(e.program); err != nil {
		if e.program == "java" { // .ci/run does not install a JDK, which takes minutes
			t.Skip(e.install + " to run this")
		}
		testkit.Missing(t, e.install+" to run this")
	}
	dir := t.TempDir()
	text := strings.ReplaceAll(source[0], "9000", port)
	if err := os.WriteFile(filepath.Join(dir, first[1]), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", strings.ReplaceAll(first[2], "9000", port))
	log := newLog(t)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log.file, log.file
	// Java starts sooner so.
	cmd.Env = append(os.Environ(), "JAVA_TOOL_OPTIONS=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // "go run" starts another process
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-exited
		if t.Failed() {
			t.Logf("%s:\n%s", first[2], log)
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			conn.Close()
			return
		}
		select {
		case <-exited:
			t.Fatalf("%s ended: %s", first[2], log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %s", first[2], log)
		}
	}
}

const backendsHead = "{\n\tservice_users {\n\t\tthrottle off\n\t\tstore {$SERVICE_USERS_STORE}\n\t}\n}\n"

// hosted returns a Caddyfile of a page with another host and another backend.
func hosted(block, host, backend string) string {
	site := "\nhttp://" + host + ":{$API_PORT} {\n"
	return strings.NewReplacer(
		"\napi.example.com {\n", site+"\tbind 127.0.0.1\n",
		"\nhttp://localhost:8080 {\n", site, "localhost:9000", backend,
	).Replace("\n" + block)
}

// awkwardNames are names that a program may read wrong.
var awkwardNames = []string{
	"billing-sync", "Billing sync", "Ünïcode", "日本語 バッチ", "🤖 bot", "50%25 off", "a+b%20c",
	"ä+b%20c&d=e;f",
	`"quoted" \back 'n' <b>`, "UTF-8''x", "utf-8''y", "UTF-8''%41", strings.Repeat("🤖", 255),
}

// TestBackends starts each example of docs/backends.md behind a guard. It must read the identity of
// each service user as it is in the store, whatever the client sends, and refuse requests without one.
func TestBackends(t *testing.T) {
	t.Parallel()
	const page = "backends.md"
	s := newServer(t)
	caddyfile, ports := backendsHead, map[string]string{}
	plain := blockWith(t, page, "caddyfile", "public GET /healthz\n\t}\n\treverse_proxy")
	observe := strings.Replace(plain, "public GET", "mode observe\n\t\tpublic GET", 1)
	open := strings.Replace(plain, "/healthz", "/{rest...}", 1)
	stub := blockWith(t, page, "caddyfile", "header_up X-Service-User-Id")
	for _, e := range examples {
		ports[e.language] = freePort()
		host, backend := e.language+".example", "127.0.0.1:"+ports[e.language]
		caddyfile += hosted(plain, host, backend) + hosted(observe, "observe."+host, backend) +
			hosted(open, "open."+host, backend) + hosted(stub, "stub."+host, backend)
	}
	withCaddyfile(s, caddyfile)
	s.mustCLI("group", "create", "a.b c:d", "--rule", "allow GET /v1/{rest...}")
	s.mustCLI("group", "create", "Zulu", "--rule", "allow POST /v1/{rest...}")
	users := map[string]credentials{"alone": s.create("alone")}
	for _, name := range awkwardNames {
		users[name] = s.create(name, "--group", "a.b c:d", "--group", "Zulu")
	}
	for _, e := range examples {
		t.Run(e.language, func(t *testing.T) {
			t.Parallel()
			e.start(t, ports[e.language])
			e.identifies(t, s, users)
			e.refuses(t, s, users["alone"], ports[e.language])
		})
	}
}

// goneAround is the answer of the examples to a request without an identity.
const goneAround = "the request has not come through the gateway\n"

// identifies sends requests through the guard.
func (e example) identifies(t *testing.T, s *server, users map[string]credentials) {
	host := e.language + ".example"
	expect := func(what string, got *response, status int, body string) {
		t.Helper()
		if got.StatusCode != status || got.body != body {
			t.Errorf("%s: got %d %q, want %d %q", what, got.StatusCode, got.body, status, body)
		}
	}
	of := func(c credentials, name, groups string) string {
		return "id: " + c.id + "\nname: " + name + "\ngroups: " + groups + "\n"
	}
	const groups = "Zulu | a.b c:d"
	for _, name := range awkwardNames {
		expect(name, s.get("/v1/x", users[name], "Host: "+host), 200, of(users[name], name, groups))
	}
	alone, billing := users["alone"], users["billing-sync"]
	expect("no group", s.get("/v1/x", alone, "Host: observe."+host), 200, of(alone, "alone", ""))
	for _, forged := range []string{
		"X-Service-User-Id: " + alone.id, "x_service_user_id: " + alone.id, "X-Service-User.Name: alone",
		"X-Service-User-Name: UTF-8''alone", "X-Service-User-Groups: admins", "Connection: X-Service-User-Id",
		"Remote-User: alone",
	} {
		got := s.get("/v1/x", billing, "Host: "+host, forged)
		expect(forged, got, 200, of(billing, "billing-sync", groups))
		got = s.get("/v1/x", credentials{}, "Host: open."+host, forged)
		expect(forged+" without a credential", got, 403, goneAround)
	}
	expect("a public path", s.get("/healthz", credentials{}, "Host: "+host), 200, "ok\n")
	expect("a public path with a query", s.get("/healthz?x=1", credentials{}, "Host: "+host), 200, "ok\n")
	expect("a credential on a public path", s.get("/v1/x", billing, "Host: open."+host), 403, goneAround)
	if got := s.get("/v1/x", credentials{}, "Host: "+host); got.StatusCode != 401 {
		t.Errorf("without a credential: got %d, want 401", got.StatusCode)
	}
	expect("the stub", s.get("/v1/x", credentials{}, "Host: stub."+host), 200,
		of(credentials{id: "service_000000000000000000000000001"}, "billing-sync", "readers | writers"))
}

// refuses sends requests that go around the guard, and runs the commands of the page.
func (e example) refuses(t *testing.T, s *server, user credentials, port string) {
	id, name, groups := "X-Service-User-Id: "+user.id, "X-Service-User-Name: alone", "X-Service-User-Groups: a"
	for _, header := range [][]string{
		{}, {id}, {id, name}, {id, groups}, {name, groups}, {id, id, name, groups},
		{"X-Service-User-Id: ", name, groups}, {id + "," + user.id, name, groups},
		{id + ", " + user.id, name, groups}, {id + "0", name, groups},
		{"X-Service-User-Id: token_" + user.id[len("service_"):], name, groups},
		{"Remote-User: alone", "Authorization: " + basic(user.id, user.secret)},
	} {
		if got := around(t, port, header); got != 403 {
			t.Errorf("directly, with %q: got %d, want 403", header, got)
		}
	}
	for _, malformed := range []string{"%C3%zz", "%C3"} {
		got := around(t, port, []string{id, "X-Service-User-Name: UTF-8''" + malformed, groups})
		// The decoders of Go and Java accept bytes that are not UTF-8.
		lenient := malformed == "%C3" && (e.language == "go" || e.language == "java")
		if got != 403 && !lenient {
			t.Errorf("directly, with the malformed name %s: got %d, want 403", malformed, got)
		}
	}
	for _, step := range backendsSteps(t) {
		cmd := exec.Command("sh", "-c", strings.ReplaceAll(step.command, "localhost:9000", "127.0.0.1:"+port))
		cmd.Env = s.env
		out, err := cmd.CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != strings.TrimSpace(step.output) {
			t.Errorf("$ %s\ngot %v:\n%s\nwant:\n%s", step.command, err, out, step.output)
		}
	}
}

func backendsSteps(t *testing.T) []step {
	steps := transcript(string(must(os.ReadFile("../docs/backends.md"))))
	if len(steps) != 2 {
		t.Fatalf("got %d commands in the transcripts, want 2", len(steps))
	}
	return steps
}

// around sends a request to a backend itself, and returns the status; 0 for a closed connection.
func around(t *testing.T, port string, header []string) int {
	t.Helper()
	request := "GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1:" + port + "\r\nConnection: close\r\n"
	for _, line := range header {
		request += line + "\r\n"
	}
	return exchange(t, "127.0.0.1:"+port, request+"\r\n")
}

// TestBackendsHeaders compares the headers that arrive at a backend with docs/backends.md.
func TestBackendsHeaders(t *testing.T) {
	t.Parallel()
	_, echo, _ := strings.Cut(exampleCaddyfile(t), "# A placeholder for your API.")
	block := func(text string) string { return blockWith(t, "backends.md", "caddyfile", text) }
	all := strings.Replace(block("headers id name groups role"), "groups role", "groups display_name teams role", 1)
	errors, observe := block("handle_errors"), block("X-Service-User-Decision")
	const backend = "127.0.0.1:{$UPSTREAM_PORT}"
	caddyfile := backendsHead + hosted(all, "all.example", backend) + hosted(errors, "errors.example", backend) +
		hosted(observe, "observe.example", backend) +
		hosted(block("log_append"), "logs.example", backend) +
		hosted(strings.Replace(errors, "localhost:9000", "127.0.0.1:"+freePort(), 1), "broken.example", backend)
	echo = strings.Replace(echo, "http://localhost:", "http://:", 1) // it gets the hosts of the sites
	s := startServer(t, caddyfile+"\n#"+echo)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}", "--rule", "deny * /v1/denied")
	user := s.create("billing-sync", "--group", "readers", "--team", "b", "--team", "Z", "--team", "a")
	token := strings.Fields(strings.Split(s.mustCLI("token", "list", "billing-sync"), "\n")[1])[0]

	for _, row := range []struct {
		host, path string
		who        credentials
		status     int
		want       map[string]string // header, value; "-" is an absent one
	}{
		{"all", "/v1/x", user, 200, map[string]string{
			"Id": user.id, "Name": "billing-sync", "Groups": "readers", "Display-Name": "",
			"Role": "member", "Teams": "Z,a,b", "Token-Id": token,
		}},
		{"observe", "/v1/x", user, 200, map[string]string{"Id": user.id, "Decision": "allow"}},
		{"observe", "/v2/x", user, 200, map[string]string{"Id": user.id, "Decision": "observe"}},
		{"observe", "/healthz", user, 200, map[string]string{"Id": "-", "Decision": ""}},
		{"observe", "/v1/denied", user, 403, nil},
		{"errors", "/v1/x", user, 200, map[string]string{"Id": user.id}},
		{"errors", "/v1/denied", user, 403, map[string]string{"Id": "-", "Name": "-", "Groups": "-"}},
		// After an allow.
		{"broken", "/v1/x", user, 502, map[string]string{"Id": "-", "Name": "-", "Groups": "-"}},
		{"errors", "/v1/x", credentials{}, 401, map[string]string{"Id": "-"}},
		{"logs", "/v1/x", user, 200, map[string]string{"Id": user.id}},
	} {
		got := s.get(row.path, row.who, "Host: "+row.host+".example", "X-Service-User-Decision: allow",
			"X_Service_User_Decision: allow", "X-Request-Id: forged", "x_request_id: forged")
		if got.StatusCode != row.status {
			t.Errorf("%s%s: got %d, want %d", row.host, row.path, got.StatusCode, row.status)
		}
		for word, want := range row.want {
			values := got.upstreamHeader("X-Service-User-" + word)
			if want == "-" && len(values) != 0 || want != "-" && (len(values) != 1 || values[0] != want) {
				t.Errorf("%s%s: got %s %q, want %q", row.host, row.path, word, values, want)
			}
		}
		if strings.Contains(got.body, "X_Service_User") || len(got.upstreamHeader("Authorization")) != 0 {
			t.Errorf("%s%s: got\n%s", row.host, row.path, got.body)
		}
		switch line, _, _ := strings.Cut(got.body, "\n"); {
		case (row.host == "errors" || row.host == "broken") && row.status != 200:
			if want := "GET /errors/" + strconv.Itoa(row.status); !strings.HasPrefix(line, want) {
				t.Errorf("%s%s: got %q upstream, want %q", row.host, row.path, line, want)
			}
		case row.host == "logs":
			id := got.upstreamHeader("X-Request-Id")
			if len(id) != 1 || strings.Contains(got.body, "forged") {
				t.Fatalf("got the request ids %q, want one:\n%s", id, got.body)
			}
			until(t, func() (any, bool) { // the line comes after the answer
				state := "without the request id in the access log"
				return state, strings.Contains(s.log.String(), `"request_id":"`+id[0])
			})
		}
	}
}
