//go:build unix

package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// eventually waits until a condition is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited for: %s", what)
		}
	}
}

const wrongPassword = "a-wrong-password"

// TestStoreByURL starts a Caddy whose database is not there yet. Other sites work at once, those with service
// users once there is the database. Reloads with a wrong place are refused in words, and the store in force
// stays. No message of all that has a password.
func TestStoreByURL(t *testing.T) {
	t.Parallel()
	pg := pgtest.Shared(t)
	for _, statement := range []string{
		"DROP DATABASE IF EXISTS late WITH (FORCE)", "DROP ROLE IF EXISTS poor",
		"CREATE ROLE poor LOGIN PASSWORD '" + pgtest.Password + "'",
	} {
		if err := pg.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	url := func(role, password, rest string) string {
		return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/%s", role, password, pg.Port, rest)
	}
	late := url(pgtest.Role, pgtest.Password, "late?sslmode=disable&search_path=own")
	secret := filepath.Join(t.TempDir(), "place")
	if err := os.WriteFile(secret, []byte(late+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	caddyfile := func(settings string) string {
		guarded := strings.Replace(guardCaddyfile(settings), "service_users\n\trespond", "service_users {\n\t\tready /ready\n\t}\n\trespond", 1)
		return strings.Replace(guarded, "{\n\tservice_users", "{\n\tmetrics\n\tservice_users", 1) +
			"http://localhost:{$ADMIN_PORT} {\n\tbind 127.0.0.1\n\trespond open\n}\n"
	}
	s := newServer(t, "STORE="+late)
	s.run(writeFile(t, filepath.Join(s.dir, "Caddyfile"), caddyfile("store {env.STORE}")))
	s.waitFor("/config/")
	var said strings.Builder // all that Caddy says
	say := func(text string) string { said.WriteString(text); return text }
	asks := func(path string) *response {
		resp := s.do("GET", "CADDY_PORT", path, credentials{}, "")
		say(resp.body)
		return resp
	}

	if got := s.do("GET", "ADMIN_PORT", "/", credentials{}, ""); got.body != "open" {
		t.Errorf("a site without service users: got %q, want open", got.body)
	}
	begun := time.Now()
	for _, path := range []string{"/v1/x", "/ready"} {
		if got := s.get(path, credentials{"service_1", "csu_x"}); got.StatusCode != 503 {
			t.Errorf("%s: got %d, want 503", path, got.StatusCode)
		}
	}
	if took := time.Since(begun); took > startupWait {
		t.Errorf("the answers 503 took %s, want them at once", took)
	}
	words := []string{"127.0.0.1", fmt.Sprint(pg.Port), "late", "store", "CREATE DATABASE"}
	_, listed, code := s.cli("list")
	for what, text := range map[string]string{
		"the log": s.log.String(), "the command list": say(listed), "readyz": asks("/service_users/readyz").body,
	} {
		for _, word := range words {
			if !strings.Contains(text, word) {
				t.Errorf("%s says %s, want %q in it", what, text, word)
			}
		}
	}
	if code == 0 {
		t.Error("the command list succeeds without a store")
	}
	if !strings.Contains(asks("/metrics").body, "caddy_service_users_store_up 0") {
		t.Error("want the metric store_up to be 0")
	}
	if status, text := s.load(caddyfile("store {env.STORE}\n\t\ttoken_ttl 90d")); status != 200 {
		t.Errorf("a reload that waits for the same store: %s", say(text))
	}

	for _, statement := range []string{"CREATE DATABASE late OWNER " + pgtest.Role} {
		if err := pg.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the schema is missing", func() bool { return strings.Contains(asks("/service_users/readyz").body, "CREATE SCHEMA") })
	pg.ExecIn(t, "late", "CREATE SCHEMA own AUTHORIZATION "+pgtest.Role)
	eventually(t, "the store is open", func() bool { return s.get("/ready", credentials{}).StatusCode == 200 })
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")

	// The same place by a file is the same store.
	if status, text := s.load(caddyfile("store {file." + secret + "}")); status != 200 {
		t.Errorf("the place from a file: %s", say(text))
	}
	for name, tt := range map[string]struct {
		place string
		want  []string
	}{
		"a wrong password": {url(pgtest.Role, wrongPassword, "late?sslmode=disable"),
			[]string{"127.0.0.1", "late", "store", "password"}},
		"a missing database": {url(pgtest.Role, pgtest.Password, "none?sslmode=disable"), []string{"CREATE DATABASE"}},
		"a schema of another program": {url(pgtest.Role, pgtest.Password, "late?sslmode=disable&search_path=own,other"),
			[]string{"tables of another program", "add search_path=service_users to the URL"}},
		"a role without rights": {url("poor", pgtest.Password, "test?sslmode=disable"), []string{"poor", "127.0.0.1", "name the right database and schema"}},
		"no TLS":                {url(pgtest.Role, pgtest.Password, "late?sslmode=require"), []string{"TLS", "sslmode"}},
		"no server": {"postgres://store:" + pgtest.Password + "@127.0.0.1:1/late?sslmode=disable",
			[]string{"127.0.0.1", "port 1,", "does the server run"}},
		"an unknown parameter": {url(pgtest.Role, pgtest.Password, "late?sslmode=disable&serch_path=own"),
			[]string{"serch_path", "parameter"}},
		"no colon":       {"postgres//store:" + pgtest.Password + "@127.0.0.1/late", []string{`"postgres//"`, "postgres://ROLE"}},
		"another scheme": {"postgress://store:" + pgtest.Password + "@127.0.0.1/late", []string{`"postgress://"`, "postgres://ROLE"}},
		"a bad port":     {"postgres://store:" + pgtest.Password + "@127.0.0.1:54x32/late", []string{"invalid port", "postgres://ROLE"}},
		"a slash in the password": {"postgres://store:12/" + pgtest.Password + "@127.0.0.1/late",
			[]string{"%2F", "postgres://ROLE"}},
		"words": {"host=127.0.0.1 user=store password=" + pgtest.Password, []string{"postgres://ROLE"}},
	} {
		if strings.HasPrefix(name, "a schema of another") {
			pg.ExecIn(t, "late", "CREATE SCHEMA other AUTHORIZATION store; CREATE TABLE other.things (id INT)")
			tt.place = strings.Replace(tt.place, "own,other", "other", 1)
		}
		status, text := s.load(caddyfile("store `" + tt.place + "`"))
		if say(text); status == 200 {
			t.Errorf("%s: a reload took it", name)
		}
		for _, want := range tt.want {
			if !strings.Contains(strings.ReplaceAll(text, `\"`, `"`), want) {
				t.Errorf("%s: got %s, want %q in it", name, text, want)
			}
		}
		if got := s.get("/v1/x", user).StatusCode; got != 204 {
			t.Errorf("%s: afterwards got %d, want 204", name, got)
		}
	}

	for _, path := range []string{
		"/service_users", "/service_users/readyz", "/audit_events", "/metrics", "/config/", "/service_users/health",
	} {
		asks(path)
	}
	for what, text := range map[string]string{"an answer": said.String(), "the log": s.log.String()} {
		for _, password := range []string{pgtest.Password, wrongPassword} {
			if at := strings.Index(text, password); at >= 0 {
				t.Errorf("%s has the password: %s", what, text[max(at-200, 0):at+len(password)])
			}
		}
	}
	if log := s.log.String(); !strings.Contains(log, fmt.Sprintf(`"store opened","store":"postgres://store@127.0.0.1:%d/late?search_path=own"`, pg.Port)) {
		t.Errorf("got log %s, want the place without its password", log)
	}
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFatalBoot checks which errors fail the start of a Caddy, and that attempts to open the store end with
// the configuration.
func TestFatalBoot(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	pg := pgtest.Shared(t)
	foreign, newer := pg.NewSchema(t, pgtest.Role), pg.NewSchema(t, pgtest.Role)
	made, err := store.Open(t.Context(), pg.SocketURL(pgtest.Role, newer), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(made.Close(), pg.Exec("CREATE TABLE "+foreign+".things (id INT); UPDATE "+newer+".store_schema SET version = 999"))
	if err != nil {
		t.Fatal(err)
	}
	for place, want := range map[string]error{
		pg.SocketURL(pgtest.Role, foreign): store.ErrNotOurs, pg.SocketURL(pgtest.Role, newer): store.ErrNewer,
		"postgres://127.0.0.1:1/none": nil, pg.SocketURL(pgtest.Role, "none"): nil,
	} {
		s := &shared{path: place, opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}
		if err := s.start(); !errors.Is(err, want) || want != nil && !strings.Contains(err.Error(), `role "store"`) {
			t.Errorf("%s: got %v, want %v", place, err, want)
		}
		if live := (&storeHandle{shared: s}).live(context.Background()); live != nil || s.fault.Load() == nil {
			t.Errorf("%s: want no store, and the reason", place)
		}
		s.Destruct() // it waits for the goroutine
	}
}

// TestNodeID checks that a process keeps the id of its node over a restart, and that no other open store has it.
func TestNodeID(t *testing.T) {
	data := t.TempDir()
	t.Setenv("XDG_DATA_HOME", data)
	core, logs := observer.New(zap.InfoLevel)
	claim := func(machine string) (string, *os.File) { return nodeID(machine, zap.New(core)) }
	first, file := claim("alpha")
	if !nodeForm.MatchString(first) {
		t.Fatalf("got the id %q", first)
	}
	info, err := file.Stat()
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: got mode %v, %v, want 0600", info.Mode(), err)
	}
	if id, _ := claim("alpha"); id != "" || logs.FilterMessageSnippet("in use").Len() != 1 {
		t.Errorf("while the store is open: got the id %q, want none", id)
	}
	if id, file := claim("beta"); id == first || id == "" || file == nil {
		t.Errorf("on another machine: got the id %q, want another one than %q", id, first)
	}
	file.Close()
	again, file := claim("alpha")
	if again != first {
		t.Errorf("after a restart: got the id %q, want %q", again, first)
	}
	if err := errors.Join(file.Truncate(20), file.Close()); err != nil {
		t.Fatal(err)
	}
	if id, _ := claim("alpha"); !nodeForm.MatchString(id) || id == first {
		t.Errorf("after a crash while the file was written: got the id %q, want a new one", id)
	}
	t.Setenv("XDG_DATA_HOME", filepath.Join(file.Name(), "in-a-file"))
	if id, _ := claim("alpha"); id != "" || logs.FilterLevelExact(zap.WarnLevel).Len() != 1 {
		t.Errorf("in a directory that cannot be made: got the id %q, want none and a warning", id)
	}
}
