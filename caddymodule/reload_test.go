package caddymodule

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/store"
)

// reload loads a Caddyfile into the running server and returns what the command
// said, and whether it was taken.
func (s *server) reload(caddyfile string) (string, bool) {
	s.t.Helper()
	path := filepath.Join(s.dir, "next.Caddyfile")
	if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(caddyBinary(), "reload", "--config", path, "--adapter", "caddyfile", "--address", s.addr("CADDY_PORT"))
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return string(out), err == nil
}

// TestReload reloads under load: the store stays open, no request is dropped,
// and every one is answered right.
func TestReload(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxyCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")

	load := startLoad(s, user)
	for i := range 5 {
		if out, ok := s.reload(strings.Replace(proxyCaddyfile, "service_users\n\treverse", "service_users {\n\t\trealm \"another\"\n\t}\n\treverse", i%2)); !ok {
			t.Errorf("reload %d was refused: %s", i, out)
		}
		s.mustCLI("update", "billing-sync", "--owner", "somebody")
	}
	answered, wrong, dropped := load()
	if wrong != 0 || dropped != 0 || answered == 0 {
		t.Errorf("of %d requests %d were answered wrongly and %d dropped", answered, wrong, dropped)
	}
	if n := strings.Count(s.log.String(), "store opened"); n != 1 {
		t.Errorf("the store was opened %d times, want once", n)
	}
}

// TestFailedReload reloads with configurations that fail late, under load: the
// one in force stays, requests that already got to the other are answered from
// it, and the admin endpoint, which Caddy does not roll back, works on.
func TestFailedReload(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxyCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")

	load := startLoad(s, user)
	for i := range 5 {
		// An address that is not ours fails the http app, after other listeners of
		// it may have begun to accept.
		if _, ok := s.reload(proxyCaddyfile + "\nhttp://localhost:1 {\n\tbind 192.0.2.1\n\trespond x\n}\n"); ok {
			t.Error("a configuration with an address that is not ours was taken")
		}
		if out, ok := s.reload(strings.Replace(proxyCaddyfile, "{$SERVICE_USERS_STORE}", "/nowhere/service_users.db", 1)); ok || !strings.Contains(out, "does not exist; create it first") {
			t.Errorf("a store that cannot be opened: taken %t, said %s", ok, out)
		}
		s.mustCLI("show", "billing-sync")
		if got := s.get("/v1/x", user).StatusCode; got != 200 {
			t.Errorf("after failed reload %d: got %d, want 200", i, got)
		}
	}
	if answered, wrong, dropped := load(); wrong != 0 || dropped != 0 || answered == 0 {
		t.Errorf("of %d requests %d were answered wrongly and %d dropped", answered, wrong, dropped)
	}
}

// guardCaddyfile is a guarded site without an upstream, whose settings of service
// users are those given.
func guardCaddyfile(settings string) string {
	return "{\n\tservice_users {\n" + settings + "\n\t}\n}\nhttp://localhost:{$API_PORT} {\n\tbind 127.0.0.1\n\tservice_users\n\trespond 204\n}\n"
}

// TestReloadOntoMissingStore: a reload makes no store in the place of one that has
// service users, since their clients would be locked out.
func TestReloadOntoMissingStore(t *testing.T) {
	t.Parallel()
	s := newServer(t, "SERVICE_USERS_VOLUME=/nowhere")
	file := func(name string) string { return filepath.Join(s.dir, name) }
	withCaddyfile(s, guardCaddyfile("store service_users.db"))
	if log := s.log.String(); !strings.Contains(log, `"level":"warn"`) || !strings.Contains(log, "a new one without any service user was made") {
		t.Errorf("the first start: got log %s, want a warning that a store was made", log)
	}
	if out, ok := s.reload(guardCaddyfile("store second.db")); !ok {
		t.Errorf("a store without service users: got %s, want another one taken", out)
	}
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	if err := errors.Join(os.Symlink("nowhere.db", file("dangling.db")), os.Symlink("second.db", file("link.db"))); err != nil {
		t.Fatal(err)
	}

	const create = "to go on with an empty store on purpose, make it first: caddy service-user --store "
	defaultPlace := filepath.Join(s.dir, "data", "caddy", "service_users.db")
	for _, row := range []struct{ name, settings, missing, want string }{
		{"a typo", "store secnod.db", file("secnod.db"), create + file("secnod.db") + " --create"},
		{"the default place", "token_ttl 90d", defaultPlace, create + defaultPlace + " --create"},
		{"a placeholder that is another directory now", "store {env.HOME}/typo.db", file("typo.db"), create + file("typo.db") + " --create"},
		{"a volume that is not mounted", "store {env.SERVICE_USERS_VOLUME}/service_users.db", "/nowhere/service_users.db", "does not exist; create it first"},
		{"a link that leads nowhere", "store dangling.db", file("nowhere.db"), create + file("dangling.db") + " --create"},
	} {
		out, ok := s.reload(guardCaddyfile(row.settings))
		if ok || !strings.Contains(strings.ToLower(out), strings.ToLower(row.want)) || !strings.Contains(out, file("second.db")) && !strings.Contains(row.want, "create it first") {
			t.Errorf("%s: taken: %t, got %s, want a refusal that says %q and names the store in force", row.name, ok, out, row.want)
		}
		if _, err := os.Lstat(row.missing); err == nil {
			t.Errorf("%s: %s was made", row.name, row.missing)
		}
		if got := s.get("/v1/x", user).StatusCode; got != 204 {
			t.Errorf("%s: afterwards got %d, want 204", row.name, got)
		}
	}
	if out, ok := s.reload(guardCaddyfile("store link.db")); !ok {
		t.Errorf("a link to the store in force: got %s, want it taken", out)
	}
	s.mustCLI("show", "billing-sync")

	// The advice works, at once.
	_, stderr, code := s.cli("--store", file("secnod.db"), "--create")
	if code != 0 || stderr != "made the store "+file("secnod.db")+"\n" {
		t.Errorf("--create: got %d, %s", code, stderr)
	}
	if out, ok := s.reload(guardCaddyfile("store secnod.db")); !ok {
		t.Errorf("a store that was made on purpose: got %s, want it taken", out)
	}
	if got := s.get("/v1/x", user).StatusCode; got != 401 {
		t.Errorf("an empty store: got %d, want 401", got)
	}
	if out, ok := s.reload(guardCaddyfile("store second.db")); !ok {
		t.Errorf("back again: got %s, want it taken", out)
	}

	// The file vanishes, and another setting has the same path opened again.
	for _, suffix := range append(store.Companions(), "") {
		_ = os.Remove(file("second.db") + suffix)
	}
	out, ok := s.reload(guardCaddyfile("store second.db\ntoken_ttl 90d"))
	if ok || !strings.Contains(out, "would lock out the 1 service user") {
		t.Errorf("a store that vanished: taken: %t, got %s", ok, out)
	}
	if got := s.get("/v1/x", user).StatusCode; got != 204 {
		t.Errorf("a store that vanished: got %d, want 204 out of memory", got)
	}
}

// startLoad sends requests that have to be answered with 200 until the function
// it returns is called; that one tells how it went.
func startLoad(s *server, user credentials) func() (answered, wrong, dropped int64) {
	stop := make(chan struct{})
	var running sync.WaitGroup
	var answered, wrong, dropped atomic.Int64
	for range 4 {
		running.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			for {
				select {
				case <-stop:
					return
				default:
				}
				req, err := http.NewRequest("GET", "http://"+s.addr("API_PORT")+"/v1/x", nil)
				if err != nil {
					s.t.Error(err)
					return
				}
				req.SetBasicAuth(user.id, user.secret)
				resp, err := client.Do(req)
				for again := 0; err != nil && again < 3; again++ {
					// Caddy closes idle connections on a reload, and the kernel those that
					// wait at a listener that closes, with or without this plugin; a request
					// that meets the closing has to be sent again.
					resp, err = client.Do(req)
				}
				if err != nil {
					dropped.Add(1)
					s.t.Logf("dropped: %v", err)
					continue
				}
				resp.Body.Close()
				answered.Add(1)
				if resp.StatusCode != 200 {
					wrong.Add(1)
					s.t.Logf("answered: %s", resp.Status)
				}
			}
		})
	}
	return func() (int64, int64, int64) {
		close(stop)
		running.Wait()
		return answered.Load(), wrong.Load(), dropped.Load()
	}
}

// TestRequestInFlight reloads twice while a request is at the upstream: it goes
// on, although the modules that it began with have been cleaned up.
func TestRequestInFlight(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:"+s.ports["UPSTREAM_PORT"])
	if err != nil {
		t.Fatal(err)
	}
	upstream := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
	})}
	go func() { _ = upstream.Serve(l) }()
	defer upstream.Close()
	withCaddyfile(s, proxyCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")

	status := make(chan int)
	go func() { status <- s.get("/v1/x", user).StatusCode }()
	<-arrived
	for i := range 2 {
		if out, ok := s.reload(strings.Replace(proxyCaddyfile, "service_users\n\treverse", "service_users {\n\t\tbearer\n\t}\n\treverse", 1-i)); !ok {
			t.Errorf("reload %d was refused: %s", i, out)
		}
	}
	close(release)
	if got := <-status; got != 200 {
		t.Errorf("got %d, want 200", got)
	}
}

// TestSecondProcess changes the file behind the server's back.
func TestSecondProcess(t *testing.T) {
	t.Parallel()
	s := startServer(t, exampleCaddyfile(t))
	file := filepath.Join(s.dir, "service_users.db")
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}", "--store", file)
	user := s.create("billing-sync", "--group", "readers", "--store", file)
	for _, tt := range []struct {
		args []string
		want int
	}{
		{[]string{"show", "billing-sync"}, 200},
		{[]string{"deactivate", "billing-sync"}, 401},
		{[]string{"reactivate", "billing-sync"}, 200},
		{[]string{"group", "delete", "readers", "--yes"}, 403},
	} {
		s.mustCLI(append(tt.args, "--store", file)...)
		deadline := time.Now().Add(time.Second)
		got := 0
		for got != tt.want && time.Now().Before(deadline) {
			got = s.get("/v1/x", user).StatusCode
		}
		if got != tt.want {
			t.Errorf("a second after %s: got %d, want %d", strings.Join(tt.args, " "), got, tt.want)
		}
	}
}

// TestRefusedStores starts with files that must not be taken for a store.
func TestRefusedStores(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		prepare func(path string) error
		want    string
	}{
		"empty":             {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "the file is empty, and a store never is"},
		"not a database":    {func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("no", 9000)), 0o600) }, "the file is not a SQLite database"},
		"a directory":       {func(p string) error { return os.Mkdir(p, 0o700) }, "this is a directory"},
		"missing directory": {func(p string) error { return os.Remove(filepath.Dir(p)) }, "does not exist; create it first"},
	} {
		s := newServer(t)
		dir := filepath.Join(s.dir, "store")
		path := filepath.Join(dir, "service_users.db")
		if err := errors.Join(os.Mkdir(dir, 0o700), tt.prepare(path)); err != nil {
			t.Fatal(err)
		}
		example, err := filepath.Abs("../Caddyfile.example")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a Caddy that starts would go on for ever
		defer cancel()
		cmd := exec.CommandContext(ctx, caddyBinary(), "run", "--config", example, "--adapter", "caddyfile")
		cmd.Dir, cmd.Env = s.dir, append(s.env, "SERVICE_USERS_STORE="+path)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), tt.want) || !strings.Contains(string(out), path) {
			t.Errorf("%s: got %v %s, want a refusal that names %s and says %q", name, err, out, path, tt.want)
		}
	}
}

// TestEarlyRequest checks that a request which comes before the store is open
// waits for it, and that one of a configuration that never starts does not wait
// for ever.
func TestEarlyRequest(t *testing.T) {
	early := &shared{path: filepath.Join(t.TempDir(), "s.db"), opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}
	handle := storeHandle{shared: early, abandoned: make(chan struct{})}
	got := make(chan *liveStore)
	go func() { got <- handle.live(context.Background()) }()
	if err := early.start(); err != nil {
		t.Fatal(err)
	}
	defer early.Destruct()
	if open := <-got; open == nil || open.store == nil {
		t.Error("a request before the start got no store")
	}

	never := &shared{opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}
	abandoned := make(chan struct{})
	close(abandoned)
	handle = storeHandle{shared: never, abandoned: abandoned}
	if open := handle.live(context.Background()); open != nil {
		t.Errorf("a configuration that never started got the store %s", open.store.Path())
	}
}

// TestCleanupHalfProvisioned checks that an app whose Provision failed can be
// cleaned up, as Caddy does.
func TestCleanupHalfProvisioned(t *testing.T) {
	app := &App{Store: "postgress://x"}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	if err := app.Provision(ctx); err == nil || !strings.Contains(err.Error(), "neither the path of a SQLite database") {
		t.Errorf("got %v, want a refusal of the URL", err)
	}
	for range 2 {
		if err := app.Cleanup(); err != nil {
			t.Error(err)
		}
	}
}
