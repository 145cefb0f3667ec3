package caddymodule

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// fleetURL is the place of the store on docs/fleet.md.
const fleetURL = "postgres://service_users@db.example.com/service_users?sslmode=verify-full"

// move follows the commands of docs/fleet.md on a running Caddy.
type move struct {
	*server
	real *strings.Replacer // of the places on the page
}

// page runs the only command of the page that contains a text, and returns its output.
func (m *move) page(text string) string {
	m.t.Helper()
	command := m.real.Replace(blockWith(m.t, "fleet.md", "sh", text))
	cmd := exec.Command("sh", "-e", "-c", command)
	cmd.Dir, cmd.Env = m.dir, m.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s%v: %s", command, err, out)
	}
	return string(out)
}

// caddyfile writes the Caddyfile: a global option, and a site with a corner that rotates.
func (m *move) caddyfile(global string) {
	m.t.Helper()
	text := m.real.Replace(global) + "http://localhost:{$API_PORT} {\n\tbind 127.0.0.1\n" +
		"\tservice_users {\n\t\tself /_self {\n\t\t\trotate\n\t\t}\n\t}\n\trespond 204\n}\n"
	if err := os.WriteFile(filepath.Join(m.dir, "Caddyfile"), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// reload runs the reload of the page, and waits until the n-th store is closed.
func (m *move) reload(n int) {
	m.t.Helper()
	i := slices.IndexFunc(pageBlocks(m.t, "fleet.md", "sh"), func(block string) bool { return strings.HasPrefix(block, "caddy reload ") })
	cmd := exec.Command("sh", "-c", m.real.Replace(pageBlocks(m.t, "fleet.md", "sh")[i]))
	cmd.Dir, cmd.Env = m.dir, m.env
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("reload: %v: %s", err, out)
	}
	until(m.t, func() (any, bool) {
		closed := strings.Count(m.log.String(), `"msg":"store closed"`)
		return closed, closed >= n
	})
}

// traffic sends requests until the returned function is called, which returns how many were answered
// with 204, and how many were sent. It complains about every other answer.
func (m *move) traffic(c credentials) func() (answered, sent int64) {
	stop, running := make(chan struct{}), sync.WaitGroup{}
	var answered, sent int64
	running.Go(func() {
		client, tick := new(http.Client), time.NewTicker(3*time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			sent++
			status, err := m.send(client, "GET", "API_PORT", "/v1/x", "", c)
			// The kernel closes connections that wait at a listener that closes, with or without this
			// plugin.
			for again := 0; err != nil && again < 3; again++ {
				sent++
				status, err = m.send(client, "GET", "API_PORT", "/v1/x", "", c)
			}
			switch {
			case err != nil:
				m.t.Errorf("a request got no answer: %v", err)
			case status != http.StatusNoContent:
				m.t.Errorf("a request got %d", status)
			default:
				answered++
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop); running.Wait() })
	m.t.Cleanup(end)
	return func() (int64, int64) { end(); return answered, sent }
}

// send sends a request on a connection of its own: Caddy closes idle connections on a reload.
func (m *move) send(client *http.Client, method, port, path, body string, c credentials) (int, error) {
	req, err := http.NewRequest(method, "http://"+m.addr(port)+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Close = true
	req.Header.Set("Content-Type", "application/json")
	if c.id != "" {
		req.SetBasicAuth(c.id, c.secret)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// changes changes the owner of a service user again and again until the answer is 503, and returns the
// last owner of an acknowledged change.
func (m *move) changes(id string) func() (owner string) {
	done, last := make(chan struct{}), ""
	go func() {
		defer close(done)
		client, tick := new(http.Client), time.NewTicker(5*time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(4 * patience); time.Now().Before(deadline); <-tick.C {
			owner := "owner " + time.Now().Format(time.RFC3339Nano)
			// Without an answer, the change may have been made.
			switch status, err := m.send(client, "PATCH", "CADDY_PORT", "/service_users/"+id, `{"owner":"`+owner+`"}`, credentials{}); {
			case err != nil:
			case status == http.StatusOK:
				last = owner
			case status == http.StatusServiceUnavailable:
				return
			default:
				m.t.Errorf("a change got %d", status)
			}
		}
	}()
	return func() string { <-done; return last }
}

// user returns a service user and its first token, as the CLI shows them.
func (m *move) user(name string) (user struct{ Owner string }, uses int64) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.mustCLI("show", name, "--json")), &user); err != nil {
		m.t.Fatal(err)
	}
	var tokens struct {
		Tokens []struct {
			UseCount int64 `json:"use_count"`
		} `json:"tokens"`
	}
	if err := json.Unmarshal([]byte(m.mustCLI("token", "list", name, "--json")), &tokens); err != nil {
		m.t.Fatal(err)
	}
	for _, k := range tokens.Tokens {
		uses += k.UseCount
	}
	return user, uses
}

func (m *move) rotate(c credentials) (status int, next credentials) {
	m.t.Helper()
	got := m.do("POST", "API_PORT", "/_self/rotate", c, "")
	var answer struct{ Token string }
	if got.StatusCode == http.StatusCreated {
		if err := json.Unmarshal([]byte(got.body), &answer); err != nil {
			m.t.Fatal(err)
		}
	}
	return got.StatusCode, credentials{c.id, answer.Token}
}

func (m *move) expect(when string, c credentials, want int) {
	m.t.Helper()
	if got := m.get("/v1/x", c).StatusCode; got != want {
		m.t.Errorf("%s: got %d, want %d", when, got, want)
	}
}

// TestMoveOfFleetPage follows docs/fleet.md from SQLite to PostgreSQL and back, while requests arrive. None
// fails. No acknowledged change, revocation, use or first use is lost.
func TestMoveOfFleetPage(t *testing.T) {
	t.Parallel()
	database := pgtest.Shared(t)
	at := database.SocketURL(pgtest.Role, database.NewSchema(t, pgtest.Role))
	m := &move{server: newServer(t, "SERVICE_USERS_TEST_DRAIN=2s")}
	m.real = strings.NewReplacer(
		"/etc/caddy/Caddyfile", filepath.Join(m.dir, "Caddyfile"),
		"/var/lib/caddy", m.dir, fleetURL, at,
	)
	frozen := blockWith(t, "fleet.md", "caddyfile", "read_only")
	moved := blockWith(t, "fleet.md", "caddyfile", "{\n\tservice_users {\n\t\tstore postgres")
	m.caddyfile(strings.Replace(frozen, "\t\tread_only\n", "", 1))
	m.start(filepath.Join(m.dir, "Caddyfile"))
	m.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	steady, gone := m.create("steady", "--group", "readers"), m.create("gone", "--group", "readers")
	late, robot := m.create("late", "--group", "readers"), m.create("robot", "--group", "readers")
	m.mustCLI("token", "revoke", "gone", m.token("gone"), "--yes")
	status, next := m.rotate(robot)
	if status != http.StatusCreated {
		t.Fatalf("a rotation: got %d", status)
	}
	end := m.traffic(steady)
	lastOwner := m.changes(steady.id)

	m.caddyfile(frozen)
	m.reload(1)
	owner := lastOwner()
	m.expect("revoked before", gone, http.StatusUnauthorized)
	m.expect("the first use of a successor", next, http.StatusNoContent)
	if _, stderr, code := m.cli("token", "revoke", "late", m.token("late"), "--yes"); code == 0 || !strings.Contains(stderr, "read_only") {
		t.Errorf("a revocation while frozen: got %d, %s", code, stderr)
	}
	if status, _ := m.rotate(late); status != http.StatusServiceUnavailable {
		t.Errorf("a rotation while frozen: got %d, want 503", status)
	}
	m.expect("not revoked", late, http.StatusNoContent)

	m.page("copy --from /var/lib/caddy/service_users.db")
	m.caddyfile(moved)
	m.reload(2)
	if user, _ := m.user("steady"); user.Owner != owner || owner == "" {
		t.Errorf("got the owner %q, want that of the last acknowledged change, %q", user.Owner, owner)
	}
	m.expect("revoked before", gone, http.StatusUnauthorized)
	m.mustCLI("token", "revoke", "late", m.token("late"), "--yes")
	m.expect("revoked after the move", late, http.StatusUnauthorized)
	until(t, func() (any, bool) { // the first use is written in the background
		status, _ := m.rotate(robot)
		return status, status == http.StatusConflict
	})
	m.page("mv /var/lib/caddy")
	m.mustCLI("audit", "verify")

	lastOwner = m.changes(steady.id)
	m.caddyfile(strings.Replace(moved, "\n\t}", "\n\t\tread_only\n\t}", 1))
	m.reload(3)
	owner = lastOwner()
	m.page("--to /var/lib/caddy/service_users.db")
	m.caddyfile(strings.Replace(frozen, "\t\tread_only\n", "", 1))
	m.reload(4)
	m.expect("revoked before", gone, http.StatusUnauthorized)
	m.expect("revoked before", late, http.StatusUnauthorized)
	m.expect("in use", next, http.StatusNoContent)
	answered, sent := end()
	if user, uses := m.user("steady"); user.Owner != owner || uses < answered || uses > sent {
		t.Errorf("got the owner %q and %d uses, want %q and %d to %d", user.Owner, uses, owner, answered, sent)
	}
	m.mustCLI("audit", "verify")
	m.mustCLI("check")
}

// token returns the id of the first token of a service user.
func (m *move) token(name string) string {
	m.t.Helper()
	id := identifier.FindString(m.mustCLI("token", "list", name))
	if !strings.HasPrefix(id, "token_") {
		m.t.Fatalf("%s has no token", name)
	}
	return id
}

// TestFleetExample: the first Caddyfile of docs/fleet.md is that of examples.
func TestFleetExample(t *testing.T) {
	if got := string(must(os.ReadFile("../examples/fleet.Caddyfile"))); got != blockWith(t, "fleet.md", "caddyfile", "shutdown_delay") {
		t.Errorf("examples/fleet.Caddyfile is another one:\n%s", got)
	}
}
