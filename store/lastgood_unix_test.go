//go:build unix

package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// away is a store in PostgreSQL behind a proxy, which a test can shut.
type away struct {
	t    *testing.T
	url  string // directly
	at   string // by the proxy
	dir  string // for copies
	shut atomic.Bool
}

func newAway(t *testing.T) *away {
	server := pgtest.Shared(t)
	a := &away{t: t, url: server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role)), dir: t.TempDir()}
	at := must(url.Parse(a.url))
	at.Host = pgtest.Proxy(t, at.Host, func([]byte) (end, forward bool) { return a.shut.Load(), false })
	a.at = at.String()
	return a
}

func (a *away) options() Options {
	return Options{NodeID: "node_a", CopyDir: a.dir, Peppers: peppersForTest}
}

var peppersForTest = must(access.ParsePeppers("0123456789abcdef\nfedcba9876543210"))

// kept waits until the copy of a store has its revision, and the head says so.
func (a *away) kept(s *Store) {
	a.t.Helper()
	eventually(a.t, "the copy of the revision in force", func() bool {
		h, err := readCopyHead(s.copy.dir, s.path)
		return err == nil && h.Revision == s.Directory().Revision()
	})
}

// dead returns a copy of the files of the node, as they are if it is killed now.
func (a *away) dead() (dir string) {
	dir = a.t.TempDir()
	mustDo(os.CopyFS(dir, os.DirFS(a.dir)))
	return dir
}

// start opens the store from a copy while the database is away.
func (a *away) start(t *testing.T, dir string, opts Options) *Store {
	t.Helper()
	a.shut.Store(true)
	opts.CopyDir = dir
	s := open(t, a.at, opts)
	if source, _ := s.Source(); source != FromCopy || s.Fault() == "" {
		t.Errorf("got the source %s and the fault %q", source, s.Fault())
	}
	return s
}

// A node that starts while the database is away answers as it did before, and goes on when the database is back.
func TestLastGood(t *testing.T) {
	t.Parallel()
	a := newAway(t)
	other := open(t, a.url, Options{NodeID: "node_b", Peppers: peppersForTest})
	g := addGroup(other, "g", "allow GET /a", "deny GET /a/secret")
	var issued []*Issued
	for i := range 30 {
		_, in := addUser(other, fmt.Sprint("u", i), g.ID)
		issued = append(issued, in)
	}
	s := open(t, a.at, a.options())
	a.kept(s)
	in := func(d int) *Issued { return issued[d] }
	// Changes of all kinds, at this node and another one.
	mustDo(other.RevokeToken(ctx, Local, in(0).UserID, in(0).ID, 0))
	mustDo(second(s.UpdateServiceUser(ctx, Local, in(1).UserID, 0, func(u *ServiceUser) error { u.Active = false; return nil })))
	mustDo(second(other.UpdateServiceUser(ctx, Local, in(2).UserID, 0, func(u *ServiceUser) error {
		u.AllowedIPs, u.Labels = []string{"10.0.0.0/8"}, map[string]string{"a": "b"}
		return nil
	})))
	addGroup(other, "h", "allow GET /b")
	revision := other.Directory().Revision()
	if r := must(other.Wait(ctx, revision)); r.Applied != 2 {
		t.Fatalf("got %+v, want both nodes", r)
	}
	dir := a.dead()
	var ids []string
	for _, in := range issued {
		ids = append(ids, in.UserID)
	}
	want := describe(other.Directory(), ids)
	again := a.start(t, dir, a.options())
	same(t, "the directory", describe(again.Directory(), ids), want)
	for i, in := range issued {
		want := access.Granted
		switch i {
		case 0:
			want = access.TokenRevoked
		case 1:
			want = access.UserInactive
		case 2:
			want = probe(other, in.UserID, in.Secret, "GET /a")
		}
		if got := probe(again, in.UserID, in.Secret, "GET /a"); got != want {
			t.Errorf("user %d: got %s, want %s", i, got, want)
		}
	}
	if _, err := again.CreateGroup(ctx, Local, Group{Name: "n"}); !errors.Is(err, errAway) {
		t.Errorf("a change without the database: got %v", err)
	}
	addGroup(other, "i", "allow GET /i")
	a.shut.Store(false)
	eventually(t, "the changes after the copy", func() bool {
		source, _ := again.Source()
		return source == FromDatabase && again.Directory().Revision() == other.Directory().Revision()
	})
	same(t, "the directory with the database", dirText(t, again), dirText(t, other))
	a.kept(again) // it goes on with the same log
	if logs := must(filepath.Glob(filepath.Join(dir, "*.log"))); len(logs) != 1 {
		t.Errorf("got the logs %v, want one", logs)
	}
}

// A node that ends leaves no copy, since no receipt waits for it any more. If the database is away it cannot
// leave, and keeps the copy.
func TestLastGoodLeaves(t *testing.T) {
	t.Parallel()
	a := newAway(t)
	s := open(t, a.at, a.options())
	a.kept(s)
	mustDo(s.Close())
	if names := list(a.dir); !slices.Equal(names, []string{"lock"}) {
		t.Errorf("after the end: got %v", names)
	}
	s = open(t, a.at, a.options())
	a.kept(s)
	a.shut.Store(true)
	_ = s.Close()
	mustDo(a.start(t, a.dir, a.options()).Close())
}

var restarts = flag.Int("restarts", 5, "how many processes TestLastGoodKilled kills")

// A node is killed at some instant while tokens are revoked at another one, and starts while the database is away.
// It refuses each token of which a receipt said that it was revoked everywhere.
func TestLastGoodKilled(t *testing.T) {
	t.Parallel()
	a, draw := newAway(t), random(t)
	maker := open(t, a.url, Options{NodeID: "node_b"})
	u, token := addUser(maker, "u")
	var revoked []*Issued // everywhere
	copies, inTime := 0, 0
	for round := range *restarts {
		before := len(revoked)
		cmd, lines := startChild(t, a.at, "node "+a.dir)
		must(lines.ReadString('\n'))
		dead := make(chan struct{})
		time.AfterFunc(time.Duration(draw.IntN(60))*time.Millisecond, func() {
			mustDo(cmd.Process.Kill())
			_ = cmd.Wait()
			close(dead)
		})
		for alive := true; alive; {
			select {
			case <-dead:
				alive = false
			default:
			}
			next, _, err := maker.RefreshToken(ctx, Local, u.ID, token.ID, 0, 0, 0)
			mustDo(err)
			waiting, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
			if r := must(maker.Wait(waiting, maker.Directory().Revision())); r.Applied == 2 {
				revoked = append(revoked, token)
			}
			cancel()
			token = next
		}
		inTime += min(len(revoked)-before, 1)
		if _, err := os.Stat(filepath.Join(a.dir, copyHeadName)); err != nil {
			continue // it was killed before it had a copy, and would answer nothing
		}
		copies++
		opts := Options{NodeID: "node_a"}
		s := a.start(t, a.dead(), opts)
		for _, token := range revoked[max(len(revoked)-50, 0):] {
			if got := probe(s, u.ID, token.Secret, "GET /a"); got != access.TokenRevoked {
				t.Errorf("round %d: %s was revoked everywhere, and the copy says %s", round, token.ID, got)
			}
		}
		a.shut.Store(false)
		mustDo(s.Close())
	}
	t.Logf("%d of %d had a copy, and %d took part in a receipt", copies, *restarts, inTime)
	if copies == 0 || *restarts > 50 && (copies < *restarts/2 || inTime < *restarts/4) {
		t.Errorf("%d of %d had a copy, and %d took part in a receipt; the test shows nothing", copies, *restarts, inTime)
	}
}

// A copy is as old as the last report that the database has taken, whatever the clocks say since.
func TestLastGoodAge(t *testing.T) {
	a := newAway(t)
	opts := a.options()
	opts.MaxStaleness = time.Hour
	s := open(t, a.at, opts)
	a.kept(s)
	dir := a.dead()
	mustDo(s.Close())
	before := uptime
	t.Cleanup(func() { uptime = before })
	for _, row := range []struct {
		what      string
		clock, up time.Duration
		boot      string
		limit     time.Duration
		stale     bool
	}{
		{"at once", 0, 0, "", time.Hour, false},
		{"later", 50 * time.Minute, 50 * time.Minute, "", time.Hour, false},
		{"too late", 61 * time.Minute, 61 * time.Minute, "", time.Hour, true},
		{"the clock was set back", 0, 61 * time.Minute, "", time.Hour, true},
		{"the clock was set forward", 61 * time.Minute, time.Minute, "", time.Hour, false},
		{"the machine was started again", 50 * time.Minute, -time.Hour, "b", time.Hour, false},
		{"it was started again too late", 61 * time.Minute, -time.Hour, "b", time.Hour, true},
		{"it was started again, and the clock was set back", -time.Minute, 0, "b", time.Hour, true},
		{"a longer limit", 50 * time.Minute, 61 * time.Minute, "", 2 * time.Hour, true},
		{"a shorter limit", 11 * time.Minute, 11 * time.Minute, "", 10 * time.Minute, true},
	} {
		t.Run(row.what, func(t *testing.T) {
			uptime = func() (string, time.Duration) {
				boot, since := before()
				return boot + row.boot, since + row.up
			}
			opts := opts
			opts.MaxStaleness = row.limit
			opts.Now = func() time.Time { return time.Now().Add(row.clock) }
			copied := t.TempDir()
			mustDo(os.CopyFS(copied, os.DirFS(dir)))
			again := a.start(t, copied, opts)
			if got := again.Stale(); got != row.stale {
				t.Errorf("got stale %v at the age of %v", got, again.Age())
			}
			if at := must(readCopyHead(dir, s.path)).Acknowledged.Clock; again.Now().Before(at) {
				t.Errorf("it is %v, before the report at %v: what had expired would be valid again", again.Now(), at)
			}
		})
	}
}

// A start with a longer limit does not lengthen the time of the copy for later starts: receipts wait as long as the limit
// that was reported.
func TestLastGoodLimit(t *testing.T) {
	a := newAway(t)
	opts := a.options()
	opts.MaxStaleness = time.Hour
	s := open(t, a.at, opts)
	a.kept(s)
	dir := a.dead()
	mustDo(s.Close())
	before := uptime
	t.Cleanup(func() { uptime = before })
	opts.MaxStaleness = 2 * time.Hour
	for minutes, stale := range map[time.Duration]bool{10: false, 50: false, 61: true, 110: true} {
		uptime = func() (string, time.Duration) {
			boot, since := before()
			return boot, since + minutes*time.Minute
		}
		again := a.start(t, dir, opts)
		if got := again.Stale(); got != stale {
			t.Errorf("after %d minutes: got stale %v at the age of %v", minutes, got, again.Age())
		}
		mustDo(again.Close())
	}
}

// A database without a store is not that of the copy. The node says so, answers from the copy, and makes no store.
func TestLastGoodWiped(t *testing.T) {
	t.Parallel()
	a := newAway(t)
	s := open(t, a.at, a.options())
	u, in := addUser(s, "u")
	mustDo(s.RevokeToken(ctx, Local, u.ID, in.ID, 0))
	a.kept(s)
	opts := a.options()
	opts.CopyDir = a.dead()
	mustDo(s.Close())
	schema := must(url.Parse(a.url)).Query().Get("search_path")
	mustDo(pgtest.Shared(t).Exec("DROP SCHEMA " + schema + " CASCADE; CREATE SCHEMA " + schema + " AUTHORIZATION " + pgtest.Role))
	s = open(t, a.at, opts)
	if source, _ := s.Source(); source != FromCopy || !strings.Contains(s.Fault(), "no store") {
		t.Errorf("got the source %s and the fault %q", source, s.Fault())
	}
	if got := probe(s, u.ID, in.Secret, "GET /a"); got != access.TokenRevoked {
		t.Errorf("got %s", got)
	}
	if _, err := Open(ctx, a.url, Options{Existing: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that there is no store", err)
	}
}

// A copy that is not what this node last wrote is refused by name, and removed once the database answers.
func TestLastGoodRefused(t *testing.T) {
	t.Parallel()
	a := newAway(t)
	other := open(t, a.url, Options{NodeID: "node_b", Peppers: peppersForTest})
	u, in := addUser(other, "u")
	s := open(t, a.at, a.options())
	a.kept(s)
	older := a.dead()
	for i := range 3 {
		addGroup(other, fmt.Sprint("g", i), "allow GET /a")
		must(other.Wait(ctx, other.Directory().Revision()))
	}
	mustDo(other.RevokeToken(ctx, Local, u.ID, in.ID, 0))
	must(other.Wait(ctx, other.Directory().Revision()))
	a.kept(s)
	good := a.dead()
	mustDo(s.Close())
	h := must(readCopyHead(good, s.path))
	log, draw := must(os.ReadFile(filepath.Join(good, h.Log))), random(t)
	head := func(change func(*copyHead)) func(string) {
		return func(dir string) {
			h := h
			change(&h)
			format := h.Format
			mustDo(writeCopyHead(dir, h))
			if format != copyFormat { // as another version would write it
				text := bytes.Replace(must(os.ReadFile(filepath.Join(dir, copyHeadName))), []byte(`"format":1`), fmt.Appendf(nil, `"format":%d`, format), 1)
				mustDo(os.WriteFile(filepath.Join(dir, copyHeadName), text, 0o600))
			}
		}
	}
	write := func(name string, text []byte) func(string) {
		return func(dir string) { mustDo(os.WriteFile(filepath.Join(dir, name), text, 0o600)) }
	}
	rows := []struct {
		what, want string
		harm       func(dir string)
	}{
		{"the log was cut", "damaged", write(h.Log, log[:len(log)-1])},
		{"the log was cut at a frame", "damaged", func(dir string) {
			mustDo(os.WriteFile(filepath.Join(dir, h.Log), must(os.ReadFile(filepath.Join(older, h.Log))), 0o600))
		}},
		{"the log is empty", "damaged", write(h.Log, nil)},
		{"the log is missing", "its log is missing", func(dir string) { mustDo(os.Remove(filepath.Join(dir, h.Log))) }},
		{"the head is empty", "its head is not what was written", write(copyHeadName, nil)},
		{"the head has another time", "its head is not what was written", func(dir string) {
			text := must(os.ReadFile(filepath.Join(dir, copyHeadName)))
			mustDo(os.WriteFile(filepath.Join(dir, copyHeadName), bytes.Replace(text, []byte("20"), []byte("21"), 1), 0o600))
		}},
		{"another store", "it is of another store, postgres://else", head(func(h *copyHead) { h.URL = "postgres://else" })},
		{"a newer version", "format 2 of another version", head(func(h *copyHead) { h.Format = 2 })},
	}
	for range 40 {
		flipped := bytes.Clone(log)
		at := draw.IntN(len(log))
		flipped[at] ^= byte(1 + draw.IntN(255))
		rows = append(rows, struct {
			what, want string
			harm       func(dir string)
		}{fmt.Sprint("byte ", at, " was changed"), "damaged", write(h.Log, flipped)})
	}
	for _, row := range rows {
		dir := t.TempDir()
		mustDo(os.CopyFS(dir, os.DirFS(good)))
		row.harm(dir)
		a.shut.Store(true)
		opts := a.options()
		opts.CopyDir = dir
		if s, err := Open(ctx, a.at, opts); err == nil {
			t.Errorf("%s: it was opened", row.what)
			mustDo(s.Close())
		} else if !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "last good copy") {
			t.Errorf("%s: got %v, want %q", row.what, err, row.want)
		}
		if strings.HasPrefix(row.what, "byte") {
			continue
		}
		a.shut.Store(false)
		s := open(t, a.at, opts)
		eventually(t, row.what+": a good copy", func() bool {
			h, err := readCopyHead(dir, s.path)
			return err == nil && h.Revision == s.Directory().Revision() && s.CopyFault() == ""
		})
		if logs := must(filepath.Glob(filepath.Join(dir, "*.log"))); len(logs) != 1 {
			t.Errorf("%s: got the logs %v, want one", row.what, logs)
		}
		mustDo(s.Close())
	}
	// What follows the head is not refused, whether it is whole or not.
	for _, more := range [][]byte{{1}, make([]byte, 100), log[:200]} {
		dir := t.TempDir()
		mustDo(os.CopyFS(dir, os.DirFS(good)))
		mustDo(os.WriteFile(filepath.Join(dir, h.Log), slices.Concat(log, more), 0o600))
		s := a.start(t, dir, a.options())
		if got := probe(s, u.ID, in.Secret, "GET /a"); got != access.TokenRevoked {
			t.Errorf("with %d bytes more: got %s", len(more), got)
		}
		mustDo(s.Close())
	}
}

// A node whose copy cannot be written removes it. If it cannot do that either, it reports no later revision:
// the copy on disk would bring back what was revoked.
func TestLastGoodNotWritable(t *testing.T) {
	t.Parallel()
	a := newAway(t)
	core, logs := observer.New(zapcore.InfoLevel)
	opts := a.options()
	opts.Log = zap.New(core)
	s := open(t, a.at, opts)
	addGroup(s, "first")
	a.kept(s)
	breakLog := func() {
		s.copy.mu.Lock()
		defer s.copy.mu.Unlock()
		name := s.copy.log.file.Name()
		s.copy.log.file.Close()
		s.copy.log.file = must(os.Open(name)) // for reading
	}
	breakLog()
	addGroup(s, "a")
	if r := must(s.Wait(ctx, s.Directory().Revision())); r.Applied != 1 {
		t.Errorf("after it was removed: got %+v, want the node", r)
	}
	if list := must(filepath.Glob(filepath.Join(a.dir, "copy*"))); len(list) != 0 || s.CopyFault() == "" {
		t.Errorf("got %v and the fault %q, want no head, and a fault", list, s.CopyFault())
	}
	if got := logs.FilterMessageSnippet("cannot be kept").Len(); got != 1 {
		t.Errorf("got %d lines, want one", got)
	}
	s.copy.mu.Lock()
	s.copy.retry = time.Time{}
	s.copy.mu.Unlock()
	s.copy.acknowledge() // as the next report does, up to 10 s later
	a.kept(s)
	eventually(t, "the end of the fault", func() bool { return s.CopyFault() == "" })

	before := s.Directory().Revision()
	head := filepath.Join(a.dir, copyHeadName)
	mustDo(os.Rename(head, head+".hidden"))
	mustDo(os.MkdirAll(filepath.Join(head, "not empty"), 0o700)) // it cannot be removed
	breakLog()
	addGroup(s, "b")
	late(t, s, "node_a")
	if nodes := must(s.Nodes(ctx, Local)); nodes[0].Revision > before {
		t.Errorf("it has reported revision %d after %d", nodes[0].Revision, before)
	}
	if s.Directory().Revision() == before || s.Stale() {
		t.Error("the change is not in force")
	}
	mustDo(os.RemoveAll(head))
	if r := must(s.Wait(ctx, s.Directory().Revision())); r.Applied != 1 {
		t.Errorf("after it could be removed: got %+v, want the node", r)
	}
}

// Of two stores with one directory the first has it. The other takes it when the first has ended.
func TestLastGoodTwice(t *testing.T) {
	t.Parallel()
	a := newAway(t)
	first := open(t, a.at, a.options())
	a.kept(first)
	opts := a.options()
	opts.NodeID = "node_b"
	second := open(t, a.at, opts)
	eventually(t, "a fault", func() bool { return strings.Contains(second.CopyFault(), "another process") })
	mustDo(first.Close())
	addGroup(second, "g")
	a.kept(second)
	eventually(t, "the end of the fault", func() bool { return second.CopyFault() == "" })
}

// A new log takes the place of one whose changes have become long.
func TestLastGoodNewLog(t *testing.T) {
	t.Parallel()
	a := newAway(t)
	s := open(t, a.at, a.options())
	a.kept(s)
	before := must(readCopyHead(a.dir, s.path)).Log
	u, in := addUser(s, "u")
	eventually(t, "another log", func() bool {
		mustDo(second(s.UpdateServiceUser(ctx, Local, u.ID, 0, func(u *ServiceUser) error {
			u.Description = strings.Repeat(rand.Text(), 70)
			return nil
		})))
		must(s.Wait(ctx, s.Directory().Revision()))
		h, err := readCopyHead(a.dir, s.path)
		return err == nil && h.Log != before
	})
	mustDo(s.RevokeToken(ctx, Local, u.ID, in.ID, 0))
	a.kept(s)
	want := describe(s.Directory(), []string{u.ID})
	again := a.start(t, a.dead(), a.options())
	same(t, "the directory", describe(again.Directory(), []string{u.ID}), want)
}

// The types in a copy belong to its format: with other fields the copy of an older version would lack a rule
// or an end.
func TestLastGoodFormat(t *testing.T) {
	var text strings.Builder
	seen := make(map[reflect.Type]bool)
	var describe func(reflect.Type)
	describe = func(of reflect.Type) {
		switch of.Kind() {
		case reflect.Slice, reflect.Map, reflect.Array, reflect.Pointer:
			describe(of.Elem())
		case reflect.Struct:
			if seen[of] {
				return
			}
			seen[of] = true
			for f := range of.Fields() {
				if f.IsExported() {
					fmt.Fprintln(&text, of, f.Name, f.Type)
					describe(f.Type)
				}
			}
		}
	}
	describe(reflect.TypeFor[copyFrame]())
	const want = "35dc432e91f05912" // of copyFormat 1
	if got := fmt.Sprintf("%.8x", sha256.Sum256([]byte(text.String()))); got != want {
		t.Errorf("the types of a copy have changed: raise copyFormat, and then the digest here to %s\n%s", got, text.String())
	}
}
