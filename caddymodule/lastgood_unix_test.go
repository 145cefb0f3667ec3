//go:build unix

package caddymodule

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// TestLastGoodCopy kills a Caddy while its database is away. It starts again from its last good copy, is ready, and
// says so everywhere, until the database is back or max_staleness is over.
func TestLastGoodCopy(t *testing.T) {
	t.Parallel()
	pg := pgtest.Shared(t)
	place, err := url.Parse(pg.TCPURL(pgtest.Role, pg.NewSchema(t, pgtest.Role)))
	if err != nil {
		t.Fatal(err)
	}
	var away atomic.Bool
	place.Host = pgtest.Proxy(t, place.Host, func([]byte) (end, forward bool) { return away.Load(), false })
	s := newServer(t, "STORE="+place.String(), "SERVICE_USERS_TEST_DRAIN=10ms")
	caddyfile := func(settings string) string {
		guarded := strings.Replace(guardCaddyfile("store {env.STORE}\n"+settings), "service_users\n\trespond", "service_users {\n\t\tready /ready\n\t}\n\trespond", 1)
		return strings.Replace(guarded, "{\n", "{\n\tmetrics\n", 1) +
			"http://localhost:{$ADMIN_PORT} {\n\tbind 127.0.0.1\n\trespond open\n}\n" +
			"http://localhost:{$UPSTREAM_PORT} {\n\tbind 127.0.0.1\n\tservice_users_admin {\n\t\tadmins alice\n\t}\n}\n"
	}
	file := filepath.Join(s.dir, "Caddyfile")
	kill := func() {
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	has := func(lines ...string) {
		t.Helper()
		until(t, func() (any, bool) {
			metrics := s.do("GET", "CADDY_PORT", "/metrics", credentials{}, "").body
			for _, line := range lines {
				if !strings.Contains(metrics, "\ncaddy_service_users_"+line+"\n") {
					return line + " is missing in " + metrics, false
				}
			}
			return nil, true
		})
	}
	s.start(writeFile(t, file, caddyfile("")))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user, revoked := s.create("billing-sync", "--group", "readers"), s.create("gone", "--group", "readers")
	has("copy_kept 1", `store_source{source="database"} 1`)

	// After a reload with another option, another store keeps the copy.
	if out, ok := s.reload(caddyfile("token_ttl 90d")); !ok {
		t.Fatal(out)
	}
	until(t, func() (any, bool) { log := s.log.String(); return log, strings.Contains(log, `"store closed"`) })
	has("copy_kept 1")
	if log := s.log.String(); strings.Contains(log, `"level":"error"`) {
		t.Errorf("got errors in %s", log)
	}
	s.mustCLI("token", "revoke", "gone", identifier.FindString(s.mustCLI("token", "list", "gone")), "--yes", "--wait", "30s")

	answers := func(when, source string, ready bool) {
		t.Helper()
		has(`store_source{source="` + source + `"} 1`)
		or503 := func(want int) int {
			if !ready {
				return 503
			}
			return want
		}
		for _, row := range []struct {
			path string
			who  credentials
			want int
		}{
			{"/v1/x", user, or503(204)}, {"/v2/x", user, or503(403)}, {"/v1/x", revoked, or503(401)},
			{"/v1/x", credentials{user.id, revoked.secret}, or503(401)}, {"/ready", credentials{}, or503(200)},
		} {
			if got := s.get(row.path, row.who).StatusCode; got != row.want {
				t.Errorf("%s, %s: got %d, want %d", when, row.path, got, row.want)
			}
		}
		if got := s.do("GET", "ADMIN_PORT", "/", credentials{}, "").body; got != "open" {
			t.Errorf("%s: a site without service users: got %q, want open", when, got)
		}
		stranger := map[bool]string{true: `{"status":"ok"}`, false: `{"status":"not ready"}`}[ready]
		if got := s.do("GET", "UPSTREAM_PORT", "/readyz", credentials{}, ""); got.StatusCode != or503(200) || got.body != stranger+"\n" {
			t.Errorf("%s: readyz says to strangers %d %q, want %s", when, got.StatusCode, got.body, stranger)
		}
		if got := s.do("GET", "CADDY_PORT", "/service_users/readyz", credentials{}, ""); !strings.Contains(got.body, `"source":"`+source+`"`) {
			t.Errorf("%s: readyz says %s, want %s", when, got.body, source)
		}
		state, warning := "live", ""
		if source != "database" {
			state, warning = "late", "the other nodes are not known, since the store cannot be read: its database cannot be reached\n"
		}
		if !ready {
			state = "gone"
		}
		// A node is late for a moment after its start. Another row is that of a node that was killed.
		self := regexp.MustCompile(` ` + state + ` .* ` + source + `\n`)
		until(t, func() (any, bool) {
			stdout, stderr, code := s.cli("node", "list")
			return fmt.Sprintf("%s: %d %s%s, want %v and %q", when, code, stdout, stderr, self, warning),
				code == 0 && stderr == warning && self.MatchString(stdout)
		})
	}
	restart := func(settings string) {
		t.Helper()
		away.Store(true)
		kill()
		s.run(writeFile(t, file, caddyfile(settings)))
		s.waitFor("/config/")
	}

	restart("")
	answers("from the copy", "copy", true)
	has("store_up 0", "copy_kept 1", `store_source{source="database"} 0`)
	if stdout := s.mustCLI("health"); !strings.Contains(stdout, "source    copy\n") || !strings.Contains(stdout, "copy      ok\n") {
		t.Errorf("health: got %s", stdout)
	}
	if _, stderr, code := s.cli("create", "x"); code == 0 || !strings.Contains(stderr, "its database cannot be reached") {
		t.Errorf("a change from the copy: got %d, %s", code, stderr)
	}
	for _, want := range []string{`"requests are answered from the last good copy`, `"service_users":2,"source":"copy"`} {
		if log := s.log.String(); !strings.Contains(log, want) {
			t.Errorf("the log has no %s: %s", want, log)
		}
	}

	away.Store(false)
	answers("with the database", "database", true)
	has("store_up 1")
	away.Store(true)
	answers("from memory", "memory", true)

	restart("max_staleness 4s") // longer than a busy machine may need for a report
	until(t, func() (any, bool) { got := s.get("/ready", credentials{}).StatusCode; return got, got == 503 })
	answers("after max_staleness", "copy", false)
	away.Store(false)
	answers("with the database again", "database", true)

	// A copy that cannot be kept: the file in the place of its directory.
	away.Store(true)
	kill()
	copies, _ := filepath.Glob(filepath.Join(s.dir, "data", "caddy", "service_users.copy.*"))
	if len(copies) != 1 {
		t.Fatalf("got the copies %q, want one", copies)
	}
	if err := os.RemoveAll(copies[0]); err != nil {
		t.Fatal(err)
	}
	writeFile(t, copies[0], "")
	away.Store(false)
	s.run(writeFile(t, file, caddyfile("")))
	s.waitFor("/service_users")
	has("copy_kept 0", "store_up 1")
	answers("without a copy", "database", true)
	if log := s.log.String(); strings.Count(log, "the last good copy of the store cannot be kept") != 1 {
		t.Errorf("got log %s, want one line that no copy is kept", log)
	}
}
