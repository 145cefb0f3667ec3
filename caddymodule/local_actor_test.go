package caddymodule

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSaidActors: the local door writes the word of its caller into the trail, and says that it
// is only a word. A site door ignores it.
func TestSaidActors(t *testing.T) {
	t.Parallel()
	s := startServer(t, exampleCaddyfile(t))
	create := func(port, name string, who credentials, headers ...string) (status int, by string) {
		t.Helper()
		headers = append(headers, "Content-Type: application/json")
		got := s.do("POST", port, "/service_users", who, `{"name":"`+name+`","create_token":false}`, headers...)
		var u struct {
			By string `json:"created_by"`
		}
		_ = json.Unmarshal([]byte(got.body), &u)
		return got.StatusCode, u.By
	}
	for i, row := range []struct {
		header, want string
		status       int
	}{
		{"", "local", 201},
		{"alice", "local, said to be alice", 201},
		{"Zoë Müller", "local, said to be Zoë Müller", 201},
		{"a\tb", "", 400},
		{strings.Repeat("x", 65), "", 400},
		{"csu_yNG7GDFxOHQ3Q46Rkojd3hUEC4fQtOOBOeCLLIWcJzn4GNfGq", "", 400},
	} {
		var headers []string
		if row.header != "" {
			headers = []string{"Service-Users-Caller: " + row.header}
		}
		if status, by := create("CADDY_PORT", "n"+string(rune('a'+i)), credentials{}, headers...); status != row.status || by != row.want {
			t.Errorf("%q: got %d by %q, want %d by %q", row.header, status, by, row.status, row.want)
		}
	}
	if status, by := create("ADMIN_PORT", "site", demoAdmin, "Service-Users-Caller: alice"); status != 201 || by != "human:admin" {
		t.Errorf("at the site door: got %d by %q, want 201 by human:admin", status, by)
	}
}

// TestRemoteActors: Caddy's remote administration has verified a certificate, so its callers are
// not "local", whatever they say.
func TestRemoteActors(t *testing.T) {
	r, _ := http.NewRequest("GET", "/service_users", nil)
	r.Header.Set("Service-Users-Caller", "alice")
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "ops", Organization: []string{"example"}}}}}
	if by, err := localActor(r); err != nil || by.Name != "certificate:CN=ops,O=example" || by.Scope != nil {
		t.Errorf("got %+v, %v, want the certificate", by, err)
	}
}

// TestExampleSocket: Caddyfile.example runs with a socket that only its user may open, and the CLI
// finds it by CADDY_ADMIN and by --config. So do the other examples.
func TestExampleSocket(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.env = slices.DeleteFunc(s.env, func(v string) bool { return strings.HasPrefix(v, "CADDY_ADMIN=") })
	path := filepath.Join(s.dir, "Caddyfile.example")
	if err := os.WriteFile(path, []byte(exampleCaddyfile(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(path)
	socket := filepath.Join(s.dir, "caddy.sock")
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if info, err := os.Stat(socket); err == nil && info.Mode().Perm() == 0o600 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is no socket of mode 0600:\n%s", s.log)
		}
	}
	// "health" is a process of its own, in the directory of the server.
	// Caddy opens the socket before it loads the configuration.
	for deadline := time.Now().Add(patience); ; {
		out, errs, code := s.cli("health", "--config", "Caddyfile.example")
		if code == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("with --config: got %d %s%s", code, out, errs)
		}
	}
	s.env = append(s.env, "CADDY_ADMIN=unix/caddy.sock")
	if out, errs, code := s.cli("health"); code != 0 {
		t.Errorf("with CADDY_ADMIN: got %d %s%s", code, out, errs)
	}
	// A reload with another text for the same socket removes it; the commands of the page do not.
	text := strings.Replace(exampleCaddyfile(t), "Example API", "Another API", 1)
	if err := os.WriteFile(filepath.Join(s.dir, "Caddyfile"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	shell := func(line, admin string) (string, error) {
		line = strings.NewReplacer("/run/caddy/admin.sock", socket, "caddy ", caddyBinary()+" ").Replace(line)
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir, cmd.Env = s.dir, append(s.env, "CADDY_ADMIN="+admin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	lines := readTroubles(t).commands("A reload removes the socket")
	for _, line := range append(lines, lines...) {
		if out, err := shell(line, "unix/caddy.sock|0600"); err != nil {
			t.Errorf("%s: got %v: %s", line, err, out)
		}
	}
	if out, err := shell(lines[1], "unix/"+socket); err != nil {
		t.Errorf("another text: got %v: %s", err, out)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("Caddy did not remove the socket; the page says that it does")
		}
	}
	files, err := filepath.Glob("../examples/*.Caddyfile")
	more, _ := filepath.Glob("../examples/*/*.Caddyfile")
	if files = append(files, more...); err != nil || len(files) < 5 {
		t.Fatalf("got %d examples, %v, at least 5 were there", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), "\tadmin {$CADDY_ADMIN:unix/caddy.sock|0600}\n") {
			t.Errorf("%s: got %v, want the admin endpoint on a socket with its rights", file, err)
		}
	}
}
