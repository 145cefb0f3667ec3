package caddymodule

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

const clientsCaddyfile = `
{
	admin {$CADDY_ADMIN}
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle THROTTLE
	}
}

http://localhost:{$API_PORT} {
	bind 127.0.0.1
	service_users {
		realm "Example API"
		self /_service_user {
			rotate 1h
		}
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
`

// clientsAPI is the API behind the guard, as the programs of docs/clients.md call it.
type clientsAPI struct {
	mu     sync.Mutex
	export []byte
	busy   map[string]int    // service user: requests to /v1/busy
	files  map[string]string // path: service user, type, length and SHA-256 of the last upload
	moved  int               // requests that followed the redirect to another host
}

// startClientsAPI listens on the port of the upstream. The path /v1/moved leads to elsewhere.
func startClientsAPI(t *testing.T, port string) *clientsAPI {
	t.Helper()
	api := &clientsAPI{busy: make(map[string]int), files: make(map[string]string), export: make([]byte, 3<<20)}
	for i := range api.export {
		api.export[i] = byte(rand.Uint32())
	}
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		api.mu.Lock()
		defer api.mu.Unlock()
		api.moved++
	}))
	t.Cleanup(other.Close)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/people/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for %s", r.PathValue("id"), r.Header.Get("X-Service-User-Name"))
	})
	mux.HandleFunc("GET /v1/export/{name}", func(w http.ResponseWriter, r *http.Request) {
		// A stream of unknown length.
		query := r.URL.Query().Encode()
		fmt.Fprintf(w, "%s?%s for %s", r.PathValue("name"), query, r.Header.Get("X-Service-User-Name"))
		for piece := api.export; len(piece) > 0; {
			n := min(len(piece), 256<<10)
			_, _ = w.Write(piece[:n])
			_ = http.NewResponseController(w).Flush()
			piece = piece[n:]
		}
	})
	mux.HandleFunc("PUT /v1/files/{name}", func(w http.ResponseWriter, r *http.Request) {
		digest := sha256.New()
		n, err := io.Copy(digest, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		user, kind := r.Header.Get("X-Service-User-Name"), r.Header.Get("Content-Type")
		api.mu.Lock()
		defer api.mu.Unlock()
		api.files[r.PathValue("name")] = fmt.Sprintf("%s %s %d %x", user, kind, n, digest.Sum(nil))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /v1/busy", func(w http.ResponseWriter, r *http.Request) {
		api.mu.Lock()
		defer api.mu.Unlock()
		if user := r.Header.Get("X-Service-User-Id"); api.busy[user] == 0 {
			api.busy[user]++
			w.Header().Set("Retry-After", "1")
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "done")
	})
	mux.Handle("GET /v1/moved", http.RedirectHandler(other.URL+"/", http.StatusFound))
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux}}
	server.Start()
	t.Cleanup(server.Close)
	return api
}

// clientProgram is a program of docs/clients.md: the first code block under a heading.
type clientProgram struct {
	heading, file string
	build         []string // a command, run once, or nil
	run           []string // the command in front of the arguments
	missing       string   // the Debian packages that bring the program
	optional      bool     // skip it in CI, too: .ci/run does not install it, or not in this version
}

// The programs for .NET and PowerShell have no row: Debian has neither dotnet nor pwsh. A change of
// them needs a look at their documentation instead.
var clientPrograms = []clientProgram{
	{heading: "curl", file: "api.sh", run: []string{"sh", "api.sh"}, missing: "curl"},
	{heading: "wget", file: "api.sh", run: []string{"sh", "api.sh"}, missing: "wget"},
	{heading: "Python, urllib", file: "api.py", run: []string{"python3", "api.py"}, missing: "python3"},
	{heading: "Python, requests", file: "api.py", run: []string{"python3", "api.py"}, missing: "python3-requests"},
	{heading: "Node", file: "api.mjs", run: []string{"node", "api.mjs"}, missing: "nodejs (20)", optional: true},
	{heading: "Go", file: "api.go", build: []string{"go", "build", "-o", "api", "api.go"}, run: []string{"./api"}},
	{heading: "Java", file: "Api.java", missing: "default-jdk-headless", optional: true,
		build: []string{"javac", "Api.java"},
		run:   []string{"java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "Api"}},
	{heading: "PHP, curl extension", file: "api.php", run: []string{"php", "api.php"}, missing: "php-cli, php-curl"},
	{heading: "PHP, streams", file: "api.php", run: []string{"php", "api.php"}, missing: "php-cli"},
}

func clientsPage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// codeUnder returns the first code block under a heading of the second level.
func codeUnder(t *testing.T, page, heading string) string {
	t.Helper()
	_, section, found := strings.Cut(page, "\n## "+heading+"\n")
	_, block, opened := strings.Cut(section, "\n```")
	_, block, named := strings.Cut(block, "\n")
	block, _, closed := strings.Cut(block, "\n```\n")
	if !found || !opened || !named || !closed {
		t.Fatalf("docs/clients.md has no code block under %q", heading)
	}
	return block + "\n"
}

// ownPATH is PATH without the directory in which TestMain puts this binary under other names, such
// as curl.
func ownPATH(t testing.TB) string {
	t.Helper()
	fake, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if dir != filepath.Dir(fake) {
			list = append(list, dir)
		}
	}
	return strings.Join(list, string(filepath.ListSeparator))
}

// clientRun runs one program as the owner of an id and a token.
type clientRun struct {
	t         *testing.T
	dir       string
	command   []string
	env       []string
	tokenFile string
}

// cmd returns a command in a process group of its own.
func (c *clientRun) cmd(url string, args ...string) *exec.Cmd {
	cmd := exec.Command(c.command[0], slices.Concat(c.command[1:], args)...)
	cmd.Dir, cmd.Env = c.dir, append(slices.Clip(c.env), "API_URL="+url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// call returns the two outputs of the program, and whether it ended well.
func (c *clientRun) call(url string, args ...string) (stdout, stderr string, ok bool) {
	c.t.Helper()
	var out, errs bytes.Buffer
	cmd := c.cmd(url, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errs, time.Second
	err := cmd.Start()
	if err == nil {
		late := time.AfterFunc(time.Minute, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		defer late.Stop()
		err = cmd.Wait()
	}
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return out.String(), errs.String(), err == nil
}

// expect compares the outputs with pieces that they must have.
func (c *clientRun) expect(url string, args []string, ok bool, stdout string, stderr ...string) {
	c.t.Helper()
	out, errs, got := c.call(url, args...)
	if got != ok || out != stdout {
		c.t.Errorf("%v: got success %v and %.200q, want %v and %.200q; standard error: %s",
			args, got, out, ok, stdout, errs)
	}
	for _, piece := range stderr {
		if !regexp.MustCompile(piece).MatchString(errs) {
			c.t.Errorf("%v: standard error is %q, want %q in it", args, errs, piece)
		}
	}
}

// TestClientsPage runs each program of docs/clients.md against a real server, with everything that
// the page says about it.
func TestClientsPage(t *testing.T) {
	t.Parallel()
	page := clientsPage(t)
	s, strict := newServer(t), newServer(t)
	api := startClientsAPI(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, strings.Replace(clientsCaddyfile, "THROTTLE", "off", 1))
	withCaddyfile(strict, strings.Replace(clientsCaddyfile, "THROTTLE", "1 1h", 1))
	s.mustCLI("group", "create", "clients",
		"--rule", "allow GET /v1/{rest...}", "--rule", "allow PUT /v1/files/{name}")
	for range 2 { // from now on, the strict server throttles wrong tokens from this address
		strict.get("/v1/people/7", credentials{"service_x", "wrong"})
	}
	path := ownPATH(t)
	checkClientsAnswers(t, page, s, strict)
	checkClientsCommands(t, page, path, s)

	t.Run("programs", func(t *testing.T) {
		for _, program := range clientPrograms {
			t.Run(program.heading, func(t *testing.T) {
				t.Parallel()
				c := &clientRun{t: t, dir: t.TempDir()}
				code := codeUnder(t, page, program.heading)
				file := filepath.Join(c.dir, program.file)
				if err := os.WriteFile(file, []byte(code), 0o600); err != nil {
					t.Fatal(err)
				}
				c.install(program, path)
				name := strings.ToLower(strings.NewReplacer(" ", "-", ",", "").Replace(program.heading))
				user := s.owner(c, name)
				c.walk(program, s, strict, api, name, user)
			})
		}
	})
	if api.moved != 0 {
		t.Errorf("%d requests followed a redirect to another host", api.moved)
	}
}

// install finds the program's interpreter, and builds the program.
func (c *clientRun) install(program clientProgram, path string) {
	c.t.Helper()
	c.env = append(os.Environ(), "PATH="+path)
	find := func(command []string) []string {
		if strings.HasPrefix(command[0], "./") {
			return command
		}
		if file := lookPath(command[0], path, programProbes[command[0]+program.heading]...); file != "" {
			return append([]string{file}, command[1:]...)
		}
		advice := "install the Debian packages " + program.missing + " to run this: there is no " + command[0]
		if program.optional {
			c.t.Skip(advice)
		}
		testkit.Missing(c.t, advice)
		return nil
	}
	c.command = find(program.run)
	if program.heading == "curl" || program.heading == "wget" {
		find([]string{program.heading})
	}
	if program.build != nil {
		command := find(program.build)
		build := exec.Command(command[0], command[1:]...)
		build.Dir = c.dir
		if out, err := build.CombinedOutput(); err != nil {
			c.t.Fatalf("%v: %v: %s", program.build, err, out)
		}
	}
}

// lookPath returns the first program of a name in a PATH, or "". With a probe, it returns the path
// that the program prints, and passes over programs that fail with these arguments.
func lookPath(name, path string, probe ...string) string {
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err != nil || info.IsDir() {
			continue
		}
		if probe == nil {
			return file
		}
		if out, err := exec.Command(file, probe...).Output(); err == nil {
			return strings.TrimSpace(string(out))
		}
	}
	return ""
}

// programProbes are arguments with which an interpreter fails if it lacks a library, and otherwise
// prints its own path. (The python3 in PATH may be a slow script that looks for the real one.)
var programProbes = map[string][]string{
	"python3Python, urllib":   {"-c", "import sys; print(sys.executable)"},
	"python3Python, requests": {"-c", "import requests, sys; print(sys.executable)"},
	"nodeNode":                {"-e", "require('fs').openAsBlob.call; console.log(process.execPath)"},
	"phpPHP, curl extension":  {"-r", "curl_init(); echo PHP_BINARY;"},
}

// owner makes a service user whose token ends in 9 days and some hours, and the environment of its
// owner.
func (s *server) owner(c *clientRun, name string) credentials {
	c.t.Helper()
	user := s.create(name, "--group", "clients", "--ttl", "235h")
	c.tokenFile = filepath.Join(c.dir, "secret", "token")
	if err := os.Mkdir(filepath.Dir(c.tokenFile), 0o700); err != nil {
		c.t.Fatal(err)
	}
	c.store(user.secret)
	c.env = append(c.env, "API_ID="+user.id, "API_TOKEN_FILE="+c.tokenFile)
	return user
}

func (c *clientRun) store(token string) {
	c.t.Helper()
	if err := os.WriteFile(c.tokenFile, []byte(token+" \r\n"), 0o600); err != nil { // as some editors do
		c.t.Fatal(err)
	}
}

// walk does with one program everything that the page promises.
func (c *clientRun) walk(program clientProgram, s, strict *server, api *clientsAPI, name string, user credentials) {
	t, url := c.t, "http://"+s.addr("API_PORT")
	const ends = `ends in 9 days|(?i)service-user-token-expires: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`
	export := "/v1/export/a%20b%2Bc?filter[name]=x&ids={1,2}"
	if program.heading == "Java" {
		export = strings.NewReplacer("{", "%7B", "}", "%7D").Replace(export)
	}
	want := "a b+c?filter%5Bname%5D=x&ids=%7B1%2C2%7D for " + name + string(api.export)
	c.expect(url, []string{"GET", export}, true, want, ends)
	if _, errs, ok := c.call(url, "HEAD", "/v1/people/7"); !ok {
		t.Errorf("HEAD failed: %s", errs)
	}

	upload := filepath.Join(c.dir, "upload")
	if err := os.WriteFile(upload, api.export[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	c.expect(url, []string{"PUT", "/v1/files/" + name, upload}, true, "")
	want = fmt.Sprintf("%s application/octet-stream %d %x", name, len(api.export)-1, sha256.Sum256(api.export[1:]))
	api.mu.Lock()
	if got := api.files[name]; got != want {
		t.Errorf("upload: got %q, want %q", got, want)
	}
	api.mu.Unlock()

	detail := `"detail":"[^"]{20,}`
	c.expect(url, []string{"GET", "/v1//people"}, false, "", "400", detail)
	c.expect(url, []string{"PUT", "/v1/people/7", upload}, false, "", "403", detail, `"decision_id":"decision_`)
	c.expect(url, []string{"GET", "/v1/moved"}, false, "", "302")
	c.stumbles(program, s, name, user)
	c.rotates(s, user)
	// The first answer is a 503. The program sends the new token.
	c.expect(url, []string{"GET", "/v1/busy"}, true, "done")

	if program.heading == "wget" {
		detail = "401" // wget does not show the body of a 401
	}
	wrong := testkit.Altered(c.token())
	c.store(wrong)
	c.expect(url, []string{"rotate", "/_service_user"}, false, "", "401", detail)
	if c.token() != wrong {
		t.Error("a refused rotation changed the file")
	}
	url = "http://" + strict.addr("API_PORT")
	c.expect(url, []string{"GET", "/v1/people/7"}, false, "", "429", "too many failed attempts")
	for server, reason := range map[*server]string{s: "bad_checksum", strict: "unknown_id"} {
		// The server logs an attempt before it answers.
		n := strings.Count(server.log.String(), `"reason":"`+reason+`","login":"`+user.id+`"`)
		if n != 1 {
			t.Errorf("a wrong token was sent %d times, want once (%s)", n, reason)
		}
	}
}

// rotates checks that the program replaces the token in its file, and that both tokens work.
func (c *clientRun) rotates(s *server, user credentials) {
	t, old := c.t, c.token()
	leftover := c.tokenFile + ".new"
	if err := os.WriteFile(leftover, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.expect("http://"+s.addr("API_PORT"), []string{"rotate", "/_service_user"}, true, "")
	fresh := c.token()
	if fresh == old || typedSecret.FindString(fresh) != fresh {
		t.Errorf("rotate left %.8q… in the file", fresh)
	}
	if mode := modeOf(t, c.tokenFile); mode != 0o600 {
		t.Errorf("the new file has the mode %o, want 600", mode)
	}
	_ = os.Remove(leftover) // a program need not use this name
	if files, err := os.ReadDir(filepath.Dir(c.tokenFile)); err != nil || len(files) != 1 {
		t.Errorf("rotate left %v (%v), want one file", files, err)
	}
	for which, secret := range map[string]string{"old token in its grace": old, "new token": fresh} {
		if got := s.get("/v1/people/7", credentials{user.id, secret}); got.StatusCode != 200 {
			t.Errorf("the %s: got %d %s", which, got.StatusCode, got.body)
		}
	}
}

// modeOf returns the permissions of a file.
func modeOf(t *testing.T, file string) os.FileMode {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func (c *clientRun) token() string {
	c.t.Helper()
	text, err := os.ReadFile(c.tokenFile)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
