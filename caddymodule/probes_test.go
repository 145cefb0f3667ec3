package caddymodule

import (
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// startProbes runs the Caddyfile of docs/probes.md, with other ports, on loopback. The page must name
// its port everywhere.
func startProbes(t *testing.T, option string) *server {
	t.Helper()
	return startServer(t, probesCaddyfile(t, option))
}

// probesCaddyfile returns the Caddyfile for startProbes.
func probesCaddyfile(t *testing.T, option string) string {
	t.Helper()
	text := pageBlocks(t, "probes.md", "caddyfile")[0]
	replaced := strings.NewReplacer(
		"/var/lib/caddy/service_users.db", "{$SERVICE_USERS_STORE}\n\t\t"+option,
		"\napi.example.com {", "\nhttp://localhost:{$API_PORT} {\n\tbind 127.0.0.1",
		"\n:8085 {", "\n:{$ADMIN_PORT} {\n\tbind 127.0.0.1", "localhost:9000", "127.0.0.1:{$UPSTREAM_PORT}",
	).Replace(text)
	if strings.Count(replaced, "bind") != 2 {
		t.Fatalf("the page has other sites than this test knows:\n%s", text)
	}
	return replaced
}

// end ends a server that would take the ten seconds of the page to end.
func end(s *server) { _ = s.cmd.Process.Kill(); <-s.exited }

// probe sends a request as the kubelet does: with the address of the pod as the host.
func (s *server) probe(method, path string, header ...string) (status int, body string) {
	s.t.Helper()
	header = append(header, "Host: 10.0.0.7:8085", "User-Agent: kube-probe/1.31", "Connection: close")
	got := s.do(method, "ADMIN_PORT", path, credentials{}, "", header...)
	return got.StatusCode, got.body
}

// until polls until ok, and complains with the last state when that takes too long.
func until(t testing.TB, ok func() (state any, ok bool)) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		state, done := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %v", state)
		}
	}
}

// TestProbes runs the Caddyfile of docs/probes.md: the requests of probes, a store that breaks, and
// the end of the process.
func TestProbes(t *testing.T) {
	t.Parallel()
	s := startProbes(t, "")
	defer end(s)
	for _, tt := range []struct {
		request string
		status  int
	}{
		{"GET /ready", 200}, {"HEAD /ready", 200}, {"GET /ready?now", 200}, {"GET /live", 200},
		{"HEAD /live", 200},
		{"GET /", 404}, {"GET /ready/", 404}, {"GET /ready/x", 404}, {"GET /readyz", 404}, {"GET /live/x", 404},
		{"GET /v1/x", 404}, {"POST /v1/x", 404}, {"GET /service_users", 404}, {"GET /metrics", 404},
		{"POST /ready", 200}, {"DELETE /ready", 200}, {"OPTIONS /ready", 200}, {"GET //ready", 400},
		{"GET /Ready", 401}, {"GET /READY", 401}, // Caddy's matchers ignore case, the guard does not
	} {
		method, path, _ := strings.Cut(tt.request, " ")
		status, body := s.probe(method, path, "Authorization: Basic !") // a probe needs no credential
		if status != tt.status {
			t.Errorf("%s: got %d %q, want %d", tt.request, status, body, tt.status)
		}
	}
	steps := transcript(string(must(os.ReadFile("../docs/probes.md"))))
	if _, body := s.probe("GET", "/ready"); len(steps) != 1 || steps[0].output != body {
		t.Errorf("got %q, want the only answer of %q", body, steps)
	}
	check := haproxyCheck(t)
	for request, want := range map[string]int{
		"GET /ready HTTP/1.1\r\nHost: [fd00::7]:8085\r\nConnection: close\r\n\r\n": 200,
		check:                         200,
		"GET /ready HTTP/1.0\r\n\r\n": 400, // the short form of HAProxy
		"GET /live HTTP/1.0\r\n\r\n":  200,
		"OPTIONS / HTTP/1.0\r\n\r\n":  404, // the default of HAProxy
	} {
		if got := exchange(t, s.addr("ADMIN_PORT"), request); got != want {
			t.Errorf("%q: got %d, want %d", request, got, want)
		}
	}
	kubernetesProbes(t, s)

	// A store that breaks leaves the gateway ready: it decides by its memory.
	user := s.create("billing-sync")
	breakStore(t, s)
	until(t, func() (any, bool) {
		metrics := s.do("GET", "CADDY_PORT", "/metrics", credentials{}, "").body
		return metrics, strings.Contains(metrics, "\ncaddy_service_users_store_up 0\n")
	})
	s.states(t, "without a store", 200, user, 403)

	// At the end, the gateway stays live and goes on.
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until(t, func() (any, bool) {
		status, _ := s.probe("GET", "/ready")
		return status, status == 503
	})
	s.states(t, "at the end", 503, user, 403)
	if got := exchange(t, s.addr("ADMIN_PORT"), check); got != 503 {
		t.Errorf("the check of HAProxy at the end: got %d, want 503", got)
	}
	t.Run("wget", func(t *testing.T) { healthcheck(t, s, false) })
}

// states compares the status of /ready and that of the API, and expects a live gateway.
func (s *server) states(t *testing.T, when string, ready int, user credentials, api int) {
	t.Helper()
	for path, want := range map[string]int{"/ready": ready, "/live": 200} {
		if got, _ := s.probe("GET", path); got != want {
			t.Errorf("%s, %s: got %d, want %d", path, when, got, want)
		}
	}
	if got := s.get("/v1/x", user).StatusCode; got != api {
		t.Errorf("the API, %s: got %d, want %d", when, got, api)
	}
}

// haproxyCheck returns the request of HAProxy's check.
func haproxyCheck(t *testing.T) string {
	t.Helper()
	block := pageBlocks(t, "probes.md", "haproxy")[0]
	form := regexp.MustCompile(`http-check send meth (\S+) uri (\S+) ver (\S+) hdr Host (\S+)\n`)
	found := form.FindStringSubmatch(block)
	if found == nil {
		t.Fatalf("no check in\n%s", block)
	}
	return found[1] + " " + found[2] + " " + found[3] + "\r\nHost: " + found[4] + "\r\n\r\n"
}

// kubernetesProbes sends the three probes of Kubernetes. Only the readiness probe asks for /ready.
func kubernetesProbes(t *testing.T, s *server) {
	t.Helper()
	form := regexp.MustCompile(`(\w+)Probe:\n\s+httpGet:\n\s+path: (\S+)\n\s+port: 8085\n`)
	probes := form.FindAllStringSubmatch(pageBlocks(t, "probes.md", "yaml")[0], -1)
	if len(probes) != 3 {
		t.Fatalf("got the probes %q, want three", probes)
	}
	for _, probe := range probes {
		want := map[string]string{"readiness": "/ready", "liveness": "/live", "startup": "/live"}[probe[1]]
		if status, _ := s.probe("GET", probe[2]); status != 200 || probe[2] != want {
			t.Errorf("the %s probe: got %s with %d, want %s with 200", probe[1], probe[2], status, want)
		}
	}
}

// breakStore replaces the database of a running server by another file.
func breakStore(t *testing.T, s *server) {
	t.Helper()
	path := s.dir + "/service_users.db"
	if err := os.Rename(path, path+".old"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestProbesOfStaleGateway: only max_staleness makes a gateway unready, and then it stays live.
func TestProbesOfStaleGateway(t *testing.T) {
	t.Parallel()
	s := startProbes(t, "max_staleness 4s") // longer than a busy machine may need for a look
	defer end(s)
	user := s.create("billing-sync")
	t.Run("wget", func(t *testing.T) { healthcheck(t, s, true) })
	breakStore(t, s)
	until(t, func() (any, bool) {
		status, _ := s.probe("GET", "/ready")
		return status, status == 503
	})
	s.states(t, "with a stale directory", 503, user, 503)
	if _, out, code := s.cli("health"); code != 1 || !strings.Contains(out, "is let through: the database was taken away") {
		t.Errorf("health of a stale directory: got %d, %s, want the fault of the store", code, out)
	}
	if err := os.Rename(s.dir+"/service_users.db.old", s.dir+"/service_users.db"); err != nil {
		t.Fatal(err)
	}
	until(t, func() (any, bool) {
		status, _ := s.probe("GET", "/ready")
		return status, status == 200
	})
}

// TestProbesOfAFailedStart: a gateway that cannot open its store ends with code 1. Caddy starts its
// apps in any order, so the gateway may serve until then: it is live and not ready.
func TestProbesOfAFailedStart(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	breakStore(t, s)
	text := strings.Replace(probesCaddyfile(t, ""), "shutdown_delay 10s", "shutdown_delay 300ms", 1)
	if err := os.WriteFile(s.dir+"/Caddyfile", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		s.run(s.dir + "/Caddyfile")
		served := 0
		for ended := false; !ended; {
			select {
			case <-s.exited:
				ended = true
			case <-time.After(10 * time.Millisecond):
			}
			for target, want := range map[string]int{"ADMIN_PORT /ready": 503, "ADMIN_PORT /live": 200, "API_PORT /v1/x": 503} {
				port, path, _ := strings.Cut(target, " ")
				resp, err := http.Get("http://" + s.addr(port) + path)
				if err != nil {
					continue // not yet, or not any more
				}
				resp.Body.Close()
				if served++; resp.StatusCode != want {
					t.Errorf("%s: got %d, want %d", path, resp.StatusCode, want)
				}
			}
		}
		if code := s.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(s.log.String(), "service_users.db") {
			t.Errorf("got the exit code %d, want 1, and a log that names the file", code)
		}
		t.Logf("%d answers before the end", served)
	}
}

// TestProbesOfAMissingVolume: a gateway with an empty directory is ready and lets nobody in. The
// command of the page for that case finds it.
func TestProbesOfAMissingVolume(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	fields := strings.Fields(strings.ReplaceAll(pageBlocks(t, "probes.md", "sh")[0], "/var/lib/caddy", s.dir))
	if stdout, stderr, code := s.cli(fields[2:]...); code != 1 || !strings.Contains(stderr, "no such file") {
		t.Errorf("before the start: got %d, %s%s, want 1", code, stdout, stderr)
	}
	if left := must(os.ReadDir(s.dir)); len(left) != 0 {
		t.Errorf("the command has made %v", left)
	}
	if err := os.WriteFile(s.dir+"/Caddyfile", []byte(probesCaddyfile(t, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(s.dir + "/Caddyfile")
	defer end(s)
	s.states(t, "with a new store", 200, credentials{"service_3MR7vBwJSkkyw3nVqXrLVPnYYbq", "csu_x"}, 401)
	if stdout, stderr, code := s.cli(fields[2:]...); code != 0 {
		t.Errorf("with a store: got %d, %s%s, want 0", code, stdout, stderr)
	}
}

// healthcheck runs the commands for Docker.
func healthcheck(t *testing.T, s *server, healthy bool) {
	if _, err := exec.LookPath("wget"); err != nil {
		testkit.Missing(t, "install the Debian package wget to run this")
	}
	docker := regexp.MustCompile(`CMD (wget .+)\n`).FindStringSubmatch(pageBlocks(t, "probes.md", "dockerfile")[0])
	test := regexp.MustCompile(`test: \["CMD", (.+)\]\n`)
	compose := test.FindStringSubmatch(pageBlocks(t, "probes.md", "yaml")[1])
	if docker == nil || compose == nil {
		t.Fatal("the page has no checks of Docker")
	}
	if got := strings.NewReplacer(`", "`, " ", `"`, "").Replace(compose[1]); got != docker[1] {
		t.Errorf("Compose runs %q, want %q", got, docker[1])
	}
	command := strings.ReplaceAll(docker[1], "8085", s.ports["ADMIN_PORT"])
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if (err == nil) != healthy {
		t.Errorf("%s: got %v %s, want healthy %v", docker[1], err, out, healthy)
	}
}
