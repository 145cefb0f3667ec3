package caddymodule

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unprivileged returns a server that runs as another user than root, in a directory
// that belongs to that user.
func unprivileged(t *testing.T) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a server as another user; run the tests as root too")
	}
	const id = 23456
	s := newServer(t)
	s.as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	binary, err := exec.LookPath(caddyBinary())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(binary)
	// A child of another test that begins meanwhile would have the file open for a moment, and a file that is
	// open for writing cannot run (ETXTBSY).
	syscall.ForkLock.RLock()
	err = errors.Join(err, os.WriteFile(filepath.Join(s.dir, "caddy"), text, 0o755))
	syscall.ForkLock.RUnlock()
	if err := errors.Join(err, os.Chmod(filepath.Dir(s.dir), 0o711)); err != nil {
		t.Fatal(err)
	}
	s.own()
	return s
}

// own gives all that lies in the directory of the server to its user.
func (s *server) own() {
	s.t.Helper()
	id := int(s.as.Credential.Uid)
	if err := filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Lchown(path, id, id)) }); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.exited
}

// refused starts the server, which has to end with this message.
func (s *server) refused(caddyfile, want string) {
	s.t.Helper()
	s.run(caddyfile)
	select {
	case <-s.exited:
	case <-time.After(time.Minute):
		s.t.Fatalf("it runs; want it to end with %q", want)
	}
	if got := s.log.String(); !strings.Contains(got, want) {
		s.t.Errorf("got\n%s\nwant %q", got, want)
	}
}

// TestRootBesideServer: what root does to the store of an unprivileged server does
// not keep that server from noticing an older copy.
func TestRootBesideServer(t *testing.T) {
	t.Parallel()
	s := unprivileged(t)
	file, caddyfile := filepath.Join(s.dir, "service_users.db"), filepath.Join(s.dir, "Caddyfile")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(caddyfile, []byte(guardCaddyfile("store service_users.db")), 0o644))
	s.start(caddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	s.mustCLI("backup", filepath.Join(s.dir, "backup"))
	s.stop()
	older, err := os.ReadFile(file)
	must(err)

	// Root revokes; the server knows, and knows an older copy.
	s.mustCLI("--store", file, "deactivate", "billing-sync")
	s.start(caddyfile)
	if got := s.get("/v1/x", user).StatusCode; got != 401 {
		t.Errorf("deactivated by root: got %d, want 401", got)
	}
	s.stop()
	newest, err := os.ReadFile(file)
	must(errors.Join(err, os.WriteFile(file, older, 0o600)))
	s.refused(caddyfile, "it is an older copy")
	must(os.WriteFile(file, newest, 0o600))

	// A note that the server cannot read refuses the start, and the advice helps.
	note := file + ".seen"
	for name, spoil := range map[string]func() error{
		"of root": func() error { return os.Chown(note, 0, 0) }, "of nobody's to read": func() error { return os.Chmod(note, 0) },
	} {
		must(spoil())
		advice := fmt.Sprintf("chown %d:%[1]d %s && chmod 600 %[2]s", s.as.Credential.Uid, note)
		s.refused(caddyfile, advice)
		if out, err := exec.Command("sh", "-c", advice).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s: %v %s", name, advice, err, out)
		}
		s.start(caddyfile)
		s.stop()
	}

	// What root restores belongs to the server.
	must(errors.Join(os.Remove(file), os.Remove(note)))
	s.mustCLI("--store", file, "restore", filepath.Join(s.dir, "backup"), "--yes")
	s.start(caddyfile)
	if got := s.get("/v1/x", user).StatusCode; got != 204 {
		t.Errorf("restored by root: got %d, want 204", got)
	}
	s.stop()

	// So does a store that root makes.
	must(errors.Join(os.Remove(file), os.Remove(note)))
	s.mustCLI("--store", file, "--create", "create", "billing-sync")
	s.start(caddyfile)
	s.mustCLI("show", "billing-sync")
	s.stop()

	// The first start after an upgrade warns of what root has left.
	schema3, err := os.ReadFile("../store/testdata/schema-3.db")
	must(errors.Join(err, os.WriteFile(file, schema3, 0o600), os.Chown(note, 0, 0)))
	s.start(caddyfile)
	if log := s.log.String(); !strings.Contains(log, `"level":"warn"`) || !strings.Contains(log, "this start does not notice an older copy") || !strings.Contains(log, fmt.Sprintf("chown %d:", s.as.Credential.Uid)) {
		t.Errorf("got log\n%s\nwant a warning with the command that helps", log)
	}
	s.stop()
	s.start(caddyfile) // the note is a new one
	s.stop()
}
