package caddymodule

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/clitest"
)

// caddyBinary is the program that tests start: the one that
// SERVICE_USERS_TEST_CADDY names, such as a build by xcaddy, or this test binary
// under the name caddy.
func caddyBinary() string {
	if path := os.Getenv("SERVICE_USERS_TEST_CADDY"); path != "" {
		return path
	}
	return "caddy"
}

// server is a Caddy that runs as a process of its own.
type server struct {
	t     testing.TB
	dir   string   // its working directory; the store is service_users.db in it
	env   []string // ports, store, and directories away from the home directory
	ports map[string]string
	cmd   *exec.Cmd
	log   *processLog
	as    *syscall.SysProcAttr // whom it runs as; nil is the user of the tests
	errs  *os.File             // its standard error; nil is the log

	exited <-chan struct{} // closed when the process has ended
}

// startServer runs a Caddyfile with API_PORT, ADMIN_PORT, UPSTREAM_PORT and
// CADDY_ADMIN set to free ports, and waits until its admin endpoint answers.
func startServer(t *testing.T, caddyfile string, env ...string) *server {
	t.Helper()
	s := newServer(t, env...)
	path := filepath.Join(s.dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(path)
	return s
}

// quickExit keeps a process that is built with the race detector from waiting a second
// before it ends.
const quickExit = "GORACE=atexit_sleep_ms=10"

// newServer prepares the surroundings of a server that is not started yet.
func newServer(t testing.TB, env ...string) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, dir: dir, ports: make(map[string]string)}
	for _, name := range []string{"API_PORT", "ADMIN_PORT", "UPSTREAM_PORT", "CADDY_PORT"} {
		s.ports[name] = freePort()
	}
	s.env = append(os.Environ(), quickExit,
		"API_PORT="+s.ports["API_PORT"], "ADMIN_PORT="+s.ports["ADMIN_PORT"], "UPSTREAM_PORT="+s.ports["UPSTREAM_PORT"],
		"CADDY_ADMIN=localhost:"+s.ports["CADDY_PORT"],
		"SERVICE_USERS_STORE="+filepath.Join(dir, "service_users.db"),
		"HOME="+dir, "XDG_DATA_HOME="+filepath.Join(dir, "data"), "XDG_CONFIG_HOME="+filepath.Join(dir, "config"))
	s.env = append(s.env, env...)
	return s
}

// start runs a Caddyfile and waits until service users are there.
func (s *server) start(caddyfile string) {
	s.t.Helper()
	s.run(caddyfile)
	s.waitFor("/service_users")
}

// run starts the process; it is ended with the test.
func (s *server) run(caddyfile string) {
	s.t.Helper()
	s.log = newLog(s.t)
	s.cmd = exec.Command(caddyBinary(), "run", "--config", caddyfile, "--adapter", "caddyfile")
	s.cmd.Dir, s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr, s.cmd.SysProcAttr = s.dir, s.env, s.log.file, s.log.file, s.as
	if s.as != nil {
		s.cmd.Path = filepath.Join(s.dir, "caddy")
	}
	if s.errs != nil {
		s.cmd.Stderr = s.errs
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, log := s.cmd, s.log
	exited := make(chan struct{})
	s.exited = exited
	go func() { _ = cmd.Wait(); close(exited) }()
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			s.t.Errorf("the server did not end by itself:\n%s", log)
		}
		if s.t.Failed() {
			s.t.Logf("server log:\n%s", log)
		}
	})
}

// waitFor waits until the admin endpoint answers a path with 200.
func (s *server) waitFor(path string) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		select {
		case <-s.exited:
			s.t.Fatalf("the server ended at once:\n%s", s.log)
		default:
		}
		if resp, err := http.Get("http://localhost:" + s.ports["CADDY_PORT"] + path); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("the server does not come up:\n%s", s.log)
}

// caseRow is one row of a case file: the value without its escapes, as it stands
// there, and what has to become of it.
type caseRow struct{ value, written, want string }

// caseRows reads a case file of testdata.
func caseRows(tb testing.TB, file string) (rows []caseRow) {
	tb.Helper()
	text, err := os.ReadFile("../testdata/" + file)
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		columns := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if strings.HasPrefix(line, "#") || len(columns) != 3 {
			continue
		}
		value, err := strconv.Unquote(`"` + strings.ReplaceAll(strings.ReplaceAll(columns[0], `\"`, `"`), `"`, `\"`) + `"`)
		if err != nil {
			tb.Fatalf("%s: %s: %v", file, columns[0], err)
		}
		rows = append(rows, caseRow{value, columns[0], columns[1]})
	}
	return rows
}

// target splits a row of paths.tsv into the method, GET unless it names one, and
// the target.
func (row caseRow) target() (method, target string) {
	if word, rest, ok := strings.Cut(row.value, " "); ok && word != "" && word[0] >= 'A' && word[0] <= 'Z' && !strings.Contains(rest, " ") {
		return word, rest
	}
	return "GET", row.value
}

// addr returns host:port of one of the ports.
func (s *server) addr(name string) string { return "localhost:" + s.ports[name] }

// cli runs "caddy service-user" on the server and returns its outputs and its exit code. A
// command that may read a file is a process, which has the directory of the server.
func (s *server) cli(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	var out, errs bytes.Buffer
	inProcess := slices.Contains(strings.Fields("create show list update delete deactivate reactivate token group rule"), args[0])
	if inProcess && os.Getenv("SERVICE_USERS_TEST_CADDY") == "" && !slices.Contains(args, "--store") && !slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "--secret-") }) {
		code = clitest.Run(&out, &errs, append([]string{"--address", s.addr("CADDY_PORT")}, args...)...)
		return out.String(), errs.String(), code
	}
	cmd := exec.Command(caddyBinary(), append([]string{"service-user"}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.env, &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// mustCLI is cli for what has to work.
func (s *server) mustCLI(args ...string) string {
	s.t.Helper()
	stdout, stderr, code := s.cli(args...)
	if code != 0 {
		s.t.Fatalf("caddy service-user %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// create makes a service user and returns its credentials.
func (s *server) create(name string, args ...string) credentials {
	s.t.Helper()
	var c credentials
	for line := range strings.Lines(s.mustCLI(append([]string{"create", name}, args...)...)) {
		switch fields := strings.Fields(line); fields[0] {
		case "id":
			c.id = fields[1]
		case "token":
			c.secret = fields[1]
		}
	}
	if c.id == "" || c.secret == "" {
		s.t.Fatalf("create %s printed no credentials", name)
	}
	return c
}

type credentials struct{ id, secret string }

// get asks the guarded API, with credentials unless they are empty.
func (s *server) get(path string, c credentials, header ...string) *response {
	s.t.Helper()
	return s.do("GET", "API_PORT", path, c, "", header...)
}

// do sends one request; header holds "Name: value" lines, also that of the Host.
func (s *server) do(method, port, path string, c credentials, body string, header ...string) *response {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://"+s.addr(port)+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	if c.id != "" {
		req.SetBasicAuth(c.id, c.secret)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Add(name, value)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return &response{resp, string(text)}
}

type response struct {
	*http.Response
	body string
}

// upstreamHeader returns the values of a request header as the demo upstream of
// Caddyfile.example saw them.
func (r *response) upstreamHeader(name string) (values []string) {
	for line := range strings.Lines(r.body) {
		if n, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); ok && strings.EqualFold(n, name) {
			values = append(values, v)
		}
	}
	return values
}

// lastPort is the port that was given out last. Ports lie below the range from
// which the system takes those of connections, so that none is taken before the
// server listens.
var lastPort atomic.Int32

// freePort returns a port that nobody listens on.
func freePort() string {
	lastPort.CompareAndSwap(0, 10_000+rand.Int32N(15_000))
	for {
		port := strconv.Itoa(int(lastPort.Add(1)))
		// To listen and close would not do: a child that begins meanwhile has the socket open for a moment.
		conn, err := net.Dial("tcp", "localhost:"+port)
		if err != nil {
			return port
		}
		conn.Close()
	}
}

// processLog is the output of a process, in a file: unlike a pipe, it has every line that the process
// wrote before an answer once the answer is there.
type processLog struct{ file *os.File }

func newLog(t testing.TB) *processLog {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return &processLog{file}
}

func (l *processLog) String() string {
	text, err := os.ReadFile(l.file.Name())
	if err != nil {
		return err.Error()
	}
	return string(text)
}
