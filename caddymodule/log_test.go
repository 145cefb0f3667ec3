package caddymodule

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// gate is a writer that takes nothing while it is shut.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	text strings.Builder
}

func (g *gate) Write(text []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.Write(text)
}

func (g *gate) Sync() error { return nil }

func (g *gate) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.String()
}

// TestPromptLog writes lines to a log that blocks. None waits for it, the first ones are there later, in order, and
// the others are counted.
func TestPromptLog(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	lines := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}), g, zap.InfoLevel)
	errs, seen := observer.New(zap.ErrorLevel)
	core := zapcore.NewTee(lines, errs)
	log := moduleLog(zap.New(core)).Named("x").With(zap.Int("with", 1))
	before := count(metrics.droppedLines)
	for i := range maxLogLines + 7 {
		log.Info(fmt.Sprint("line ", i), zap.Int("n", i))
	}
	log.Debug("below the level")
	if got := count(metrics.droppedLines) - before; got != 7 {
		t.Errorf("dropped: got %d, want 7", got)
	}
	close(g.open)
	waitUntil(t, "the last line", func() bool { return strings.Contains(g.String(), fmt.Sprintf(`"n":%d}`+"\n", maxLogLines-1)) })
	var want strings.Builder
	for i := range maxLogLines {
		fmt.Fprintf(&want, `{"msg":"line %d","with":1,"n":%d}`+"\n", i, i)
	}
	if got := g.String(); got != want.String() {
		t.Errorf("got %s", got[max(0, len(got)-400):])
	}
	log.Info("a line is written when the call returns")
	if !strings.HasSuffix(g.String(), "\"with\":1}\n") || seen.Len() != 0 {
		t.Errorf("got %d lines of a writer for errors", seen.Len())
	}
	log.Error("e")
	if seen.FilterMessage("e").Len() != 1 {
		t.Error("the writer for errors has not got its line")
	}
}

// TestLogOfTheNextConfiguration: its lines do not wait for a log that takes none.
func TestLogOfTheNextConfiguration(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	defer close(g.open)
	current := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), g, zap.InfoLevel))
	log := prompt(func() *zap.Logger { return current }).Named("store")
	log.Info("nobody takes it")
	core, seen := observer.New(zap.InfoLevel)
	current = zap.New(core)
	log.Info("the next one takes it")
	if seen.Len() != 1 {
		t.Errorf("got %d lines, want 1", seen.Len())
	}
}

// TestLogPanics: a writer of the log that panics costs its line, and not Caddy.
func TestLogPanics(t *testing.T) {
	saved := writeErrors
	writeErrors = zapcore.AddSync(io.Discard)
	defer func() { writeErrors = saved }()
	core, seen := observer.New(zap.InfoLevel)
	core = zapcore.RegisterHooks(core, func(e zapcore.Entry) error {
		if e.Message == "bad" {
			panic("a writer of a test")
		}
		return nil
	})
	log := moduleLog(zap.New(core))
	before := count(metrics.droppedLines)
	log.Info("bad")
	log.Info("good")
	if got := count(metrics.droppedLines) - before; got != 1 || seen.FilterMessage("good").Len() != 1 {
		t.Errorf("dropped: got %d, want 1; the next line: got %d, want 1", got, seen.FilterMessage("good").Len())
	}
}

const blockedCaddyfile = `
{
	log {
		output stderr
	}
	service_users {
		store {$SERVICE_USERS_STORE}
		max_staleness 5m
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	respond 204
}

http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	@somebody header X-Test-Login *
	vars @somebody http.auth.user.id {header.X-Test-Login}
	service_users_admin {
		admins alice
	}
}
`

// TestBlockedLog lets the pipe behind the log fill up. Requests are answered, changes are made, and those of another
// process are noticed.
func TestBlockedLog(t *testing.T) {
	t.Parallel()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	const size = 4096
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, write.Fd(), 1031 /* F_SETPIPE_SZ */, size); errno != 0 {
		t.Skip("pipes have another size here:", errno)
	}
	s := newServer(t)
	s.errs = write
	up := make(chan struct{})
	drained := make(chan struct{})
	go func() { // until Caddy has started, and at the end, since Caddy's own lines block too
		defer close(drained)
		buf := make([]byte, size)
		for !isClosed(up) {
			if _, err := read.Read(buf); err != nil {
				return
			}
		}
	}()
	withCaddyfile(s, blockedCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	close(up)
	s.mustCLI("show", "billing-sync") // one more line, for the reader to notice
	<-drained
	t.Cleanup(func() { go func() { _, _ = io.Copy(io.Discard, read) }() })
	write.Close()

	for i := range 60 {
		if got := s.get("/v2/x", user).StatusCode; got != http.StatusForbidden {
			t.Errorf("refusal %d: got %d, want 403", i, got)
		}
		if got := s.get("/v1/x", credentials{user.id, "wrong"}).StatusCode; got != http.StatusUnauthorized && got != http.StatusTooManyRequests {
			t.Errorf("failed login %d: got %d, want 401 or 429", i, got)
		}
	}
	if got := s.get("/v1/x", user).StatusCode; got != http.StatusNoContent {
		t.Errorf("got %d, want 204", got)
	}
	got := s.do("PATCH", "ADMIN_PORT", "/service_users/"+user.id, credentials{}, `{"active":false}`, "X-Test-Login: alice", "Content-Type: application/json")
	if got.StatusCode != http.StatusOK {
		t.Errorf("a change: got %d %s", got.StatusCode, got.body)
	}
	if got := s.get("/v1/x", user).StatusCode; got != http.StatusUnauthorized && got != http.StatusTooManyRequests {
		t.Errorf("after it: got %d, want 401 or 429", got)
	}
	if _, stderr, code := s.cli("--store", filepath.Join(s.dir, "service_users.db"), "reactivate", "billing-sync"); code != 0 {
		t.Fatal(stderr)
	}
	waitUntil(t, "the change of another process", func() bool { return s.get("/v1/x", user).StatusCode == http.StatusNoContent })
}

// TestFullLog has logs on a full disk.
func TestFullLog(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	s := newServer(t)
	withCaddyfile(s, strings.NewReplacer("output stderr", "output file /dev/full", "http://:{$API_PORT} {", "http://:{$API_PORT} {\n\tlog").Replace(blockedCaddyfile))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	for path, want := range map[string]int{"/v1/x": 204, "/v2/x": 403} {
		if got := s.get(path, user).StatusCode; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	if log := s.log.String(); !strings.Contains(log, "no space left on device") {
		t.Errorf("standard error: got %s, want the error of the disk", log)
	}
}

// TestLogAfterReload: the lines of a store that stays open go to the log of the new configuration.
func TestLogAfterReload(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	withCaddyfile(s, blockedCaddyfile)
	file := filepath.Join(s.dir, "second.log")
	if out, ok := s.reload(strings.Replace(blockedCaddyfile, "output stderr", "output file "+file, 1)); !ok {
		t.Fatal(out)
	}
	s.mustCLI("group", "create", "after")
	text, err := os.ReadFile(file)
	if err != nil || strings.Count(string(text), `"msg":"audit"`) != 1 {
		t.Errorf("the new log: got %v, %s, want a line audit", err, text)
	}
	if strings.Contains(s.log.String(), `"msg":"audit"`) {
		t.Error("the line went to the log of the configuration before")
	}
}
