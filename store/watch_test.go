package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
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

	"github.com/fsnotify/fsnotify"
	"modernc.org/sqlite"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// child is another process that works on the store at path. It prints a line
// for every change that was acknowledged.
func child(path, do string) {
	if how, ok := strings.CutPrefix(do, "churn "); ok {
		churn(path, how)
		return
	}
	verb, id, _ := strings.Cut(do, " ")
	if verb == "restore" { // dies at a step
		from, at, _ := strings.Cut(id, " ")
		restoreStep = func(step string) error {
			if step == at {
				fmt.Println(step)
				mustDo(syscall.Kill(os.Getpid(), syscall.SIGKILL))
				select {}
			}
			return nil
		}
		must(first(RestoreFile(ctx, path, Local, must(os.Open(from)), Options{}, false)))
	}
	opts := Options{}
	if verb == "node" {
		headEvery = time.Second
		opts = Options{NodeID: "node_a", CopyDir: id}
	}
	s := must(Open(ctx, path, opts))
	switch verb {
	case "node":
		for tick := time.NewTicker(time.Millisecond); s.CopyFault() != ""; {
			<-tick.C
		}
		fmt.Println("ready")
		select {} // until it is killed
	case "deactivate":
		u := must(s.UpdateServiceUser(ctx, Local, id, 0, func(u *ServiceUser) error { u.Active = false; return nil }))
		fmt.Println(u.ID)
	case "pace": // one change every 20 ms or so
		tick := time.NewTicker(20 * time.Millisecond)
		for n := range must(strconv.Atoi(id)) {
			<-tick.C
			g := must(s.CreateGroup(ctx, Local, Group{Name: fmt.Sprint("pace ", n)}))
			fmt.Println(time.Now().UnixNano(), s.Directory().Revision(), g.ID)
			tick.Reset(20*time.Millisecond + time.Duration(time.Now().UnixNano()%9973)*time.Microsecond)
		}
	case "create":
		for { // until it is killed
			u, _, err := s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: newID("n", s.Now()) + "!", Active: true}}, &Token{})
			mustDo(err)
			fmt.Println(u.ID)
		}
	}
	mustDo(s.Close())
}

// startChild runs this test binary as another process.
func startChild(t testing.TB, path, do string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(must(os.Executable()))
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+path, "STORE_TEST_DO="+do)
	cmd.Stderr = os.Stderr
	out := must(cmd.StdoutPipe())
	mustDo(cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewReader(out)
}

func TestWatch(t *testing.T) {
	w := newWorld(t, Options{})
	other := open(t, w.path, w.opts)
	sees := func(what string, want access.Reason) {
		t.Helper()
		eventually(t, what, func() bool { return probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x") == want })
	}
	mustDo(other.AddMember(ctx, Local, w.closers.ID, w.user.ID))
	sees("a member that another store added", access.DeniedByRule)
	mustDo(other.DeleteGroup(ctx, Local, w.closers.ID, 0))
	sees("a group that another store deleted", access.Granted)
	must(other.UpdateGroup(ctx, Local, w.readers.ID, 0, func(g *Group) error { g.Mode = access.Observe; return nil }))
	sees("a group that another store changed", access.NoRule)
	mustDo(other.revoke(ctx, Local, w.user.ID, w.token.ID))
	sees("a token that another store revoked", access.TokenRevoked)
	u, token := addUser(other, "new")
	eventually(t, "a service user that another store made", func() bool { return probe(w.Store, u.ID, token.Secret, "GET /") == access.NoRule })

	cmd, lines := startChild(t, w.path, "deactivate "+u.ID)
	if line, err := lines.ReadString('\n'); err != nil || strings.TrimSpace(line) != u.ID {
		t.Fatalf("the other process: got %q, %v, want %s", line, err, u.ID)
	}
	for _, s := range []*Store{w.Store, other} {
		eventually(t, "a service user that another process deactivated", func() bool { return probe(s, u.ID, token.Secret, "GET /") == access.UserInactive })
	}
	mustDo(cmd.Wait())
	// One's own change takes in what others did just before.
	must(other.CreateGroup(ctx, Local, Group{Name: "a"}))
	g := addGroup(w.Store, "b")
	if list, _, err := w.Groups(ctx, Local, "a", "", 1); err != nil || len(list) != 1 {
		t.Errorf("group a: got %v, %v", list, err)
	} else if _, ok := w.Directory().Group(list[0].ID); !ok {
		t.Error("the directory after one's own change lacks the other's")
	}
	eventually(t, "both groups in the other directory", func() bool { _, ok := other.Directory().Group(g.ID); return ok })
	same(t, "directory of the other store", dirText(t, other), dirText(t, w.Store))
	for _, s := range []*Store{w.Store, other} {
		if s.Fault() != "" {
			t.Errorf("fault: got %q, want none", s.Fault())
		}
	}
	trail(t, w.Store)
}

func TestOnChange(t *testing.T) {
	w := newWorld(t, Options{})
	other := open(t, w.path, w.opts)
	var calls atomic.Int64
	w.OnChange(func() { calls.Add(1) })
	mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
	mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID)) // changes nothing
	if got := calls.Load(); got != 1 {
		t.Errorf("after one change: got %d calls, want 1", got)
	}
	mustDo(other.RemoveMember(ctx, alice, w.closers.ID, w.user.ID))
	eventually(t, "the change of another store", func() bool { return calls.Load() > 1 })
	w.OnChange(nil)
	mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
	if got := calls.Load(); got != 2 {
		t.Errorf("after two changes, and one that nobody listened to: got %d calls, want 2", got)
	}
}

// While another process holds the lock, reads go on and a change waits for it.
func TestLockedByAnother(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	w := newWorld(t, Options{})
	db := must(sql.Open("sqlite", sqliteDSN(w.path, "rw", "_txlock=immediate")))
	defer db.Close()
	tx := must(db.BeginTx(ctx, nil))
	done := make(chan error)
	go func() { done <- w.AddMember(ctx, alice, w.closers.ID, w.user.ID) }()
	eventually(t, "a change under way", func() bool { return len(w.writing) == 0 && w.write.Stats().InUse == 1 })
	if _, err := w.readUser(ctx, Local, w.user.ID); err != nil {
		t.Errorf("a look-up meanwhile: got %v, want no error", err)
	}
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
		t.Errorf("a request meanwhile: got %v, want granted", got)
	}
	mustDo(tx.Rollback())
	if err := <-done; err != nil {
		t.Errorf("the change: got %v, want no error", err)
	}
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.DeniedByRule {
		t.Errorf("a request afterwards: got %v, want denied_by_rule", got)
	}
}

// To change what another store has changed already acknowledges its change too.
func TestNothingToChangeCatchesUp(t *testing.T) {
	w := newWorld(t, Options{Poll: time.Hour})
	other := open(t, w.path, w.opts)
	mustDo(other.revoke(ctx, Local, w.user.ID, w.token.ID))
	mustDo(w.revoke(ctx, Local, w.user.ID, w.token.ID))
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.TokenRevoked {
		t.Errorf("revoked here as well: got %v, want token_revoked", got)
	}
}

// backup copies the database into a new file.
func backup(t testing.TB, s *Store) string {
	t.Helper()
	to := place(t)
	_, err := s.write.ExecContext(ctx, `VACUUM INTO $1`, to)
	mustDo(err)
	return to
}

// restore does what "sqlite3 path '.restore from'" does: it writes the content
// of another database over the one at path, in one transaction.
func restore(t testing.TB, path, from string) {
	t.Helper()
	db := must(sql.Open("sqlite", sqliteDSN(path, "rw", "")))
	defer db.Close()
	conn := must(db.Conn(ctx))
	defer conn.Close()
	mustDo(conn.Raw(func(c any) error {
		b, err := c.(interface {
			NewRestore(string) (*sqlite.Backup, error)
		}).NewRestore("file:" + from)
		if err != nil {
			return err
		}
		for more := true; more && err == nil; {
			more, err = b.Step(-1)
			if e, ok := err.(*sqlite.Error); ok && e.Code()&0xff == 5 { // busy: try again
				more, err = true, nil
			}
		}
		source, err2 := b.Commit()
		if err2 == nil && source != nil {
			err2 = source.Close()
		}
		if err == nil {
			err = err2
		}
		return err
	}))
}

// What is read must go on from what is in force: an older or another store that
// takes the place of the present one is not served, even after it was changed.
func TestRollbackIsRefused(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	for _, row := range []struct {
		name    string
		changes int // made after the backup
		ahead   int // made by another process after it was restored
	}{
		{"older", 3, 0},
		{"older by one", 1, 0},
		{"older, then changed", 3, 1},
		{"older, then changed to the same revision", 2, 2},
		{"older, then changed beyond", 2, 5},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, Options{})
			old := backup(t, w.Store)
			mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
			for i := range row.changes - 1 {
				addUser(w.Store, fmt.Sprint("later", i))
			}
			noted := must(readMark(ctx, w.read)) // as it would be a second later
			present, revision := backup(t, w.Store), w.Directory().Revision()
			seen := dirText(t, w.Store)
			if row.ahead > 0 {
				// The other process must open the older copy. The watching store writes each
				// revision into the note once, so the note stays away.
				eventually(t, "the note", func() bool { return must(Seen(w.path)).Revision == revision })
				mustDo(os.Remove(w.path + ".seen"))
			}
			restore(t, w.path, old)
			if row.ahead > 0 {
				other := open(t, w.path, w.opts)
				for i := range row.ahead {
					addUser(other, fmt.Sprint("other", i))
				}
				mustDo(other.Close())
			}
			check := func(when string) {
				t.Helper()
				if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.TokenRevoked {
					t.Errorf("%s: a revoked token: got %v, want token_revoked", when, got)
				}
				if got := w.Directory().Revision(); got != revision {
					t.Errorf("%s: revision: got %d, want %d", when, got, revision)
				}
			}
			eventually(t, "a fault", func() bool { return w.Fault() != "" })
			if got := w.Fault(); !strings.Contains(got, "caddy service-user accept-older --store "+w.path) {
				t.Errorf("fault: got %q, want what to do about it", got)
			}
			check("restored")
			if err := w.AddMember(ctx, alice, w.closers.ID, w.user.ID); err == nil || !strings.HasPrefix(kind(err), "broken:") {
				t.Errorf("a change: got %v, want that the store cannot be used", err)
			}
			check("after a refused change")
			// A new start takes it when it was accepted.
			mustDo(noted.write(w.path))
			if s, err := Open(ctx, w.path, w.opts); !errors.Is(err, ErrOlder) {
				if err == nil {
					s.Close()
				}
				t.Errorf("a new start: got %v, want that it is refused", err)
			}
			mustDo(AcceptOlder(ctx, w.path, w.clock.Now()))
			again := open(t, w.path, w.opts)
			if got := probe(again, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
				t.Errorf("a new start: got %v, want granted", got)
			}
			mustDo(again.Close())
			restore(t, w.path, present)
			mended(t, w.Store)
			same(t, "restored again", dirText(t, w.Store), seen)
			mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
		})
	}
}

// A database whose file is taken away or replaced would swallow changes.
func TestFileIsReplaced(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	for _, row := range []struct {
		name    string
		replace func(path, other string)
	}{
		{"removed", func(string, string) {}},
		{"an older one", func(path, other string) { mustDo(os.Rename(other, path)) }},
		{"an empty one", func(path, _ string) { mustDo(os.WriteFile(path, nil, 0o600)) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			old := backup(t, w.Store)
			mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
			// The watcher must not open its second connection just then: it would
			// see the wrong file.
			eventually(t, "both connections of the watcher", func() bool { return w.read.Stats().OpenConnections >= 2 })
			mustDo(os.Rename(w.path, w.path+".aside"))
			row.replace(w.path, old)
			eventually(t, "a fault", func() bool { return w.Fault() != "" })
			if err := w.AddMember(ctx, alice, w.closers.ID, w.user.ID); err == nil {
				t.Error("a change: got no error")
			}
			if _, err := w.readUser(ctx, Local, w.user.ID); err == nil {
				t.Error("a look-up: got no error")
			}
			if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.TokenRevoked {
				t.Errorf("a request: got %v, want token_revoked", got)
			}
			mustDo(os.Rename(w.path+".aside", w.path))
			mended(t, w.Store)
			mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
			trail(t, w.Store)
		})
	}
}

// A row that cannot be enforced refuses the whole revision, until it is mended.
func TestBadRowIsRefused(t *testing.T) {
	for _, row := range []struct{ name, damage, mend, fault string }{
		{"teams", `UPDATE service_users SET teams = '{', revision = 100`, `UPDATE service_users SET teams = '[]', revision = 101`, "service_"},
		{"active", `UPDATE service_users SET active = 2, revision = 100`, `UPDATE service_users SET active = 1, revision = 101`, "service_"},
		{"hash", `UPDATE service_users SET revision = 100; UPDATE tokens SET hash = hash || '00'`, `UPDATE service_users SET revision = 101; UPDATE tokens SET hash = substr(hash, 1, 64)`, "token_"},
		{"rule", `UPDATE permission_groups SET revision = 100; UPDATE rules SET path = path || '%'`, `UPDATE permission_groups SET revision = 101; UPDATE rules SET path = replace(path, '%', '')`, "rule_"},
		{"condition", `UPDATE permission_groups SET revision = 100, member_condition = 'user'`, `UPDATE permission_groups SET revision = 101, member_condition = ''`, "group_"},
		{"permission", `UPDATE permission_groups SET revision = 100; INSERT INTO permissions VALUES ('p.q', '', '', '', 0, '["allow"]', 0, '', 0); INSERT INTO group_permissions SELECT id, 'p.q', 0 FROM permission_groups`, `UPDATE permission_groups SET revision = 101; DELETE FROM group_permissions`, "p.q"},
		{"meta", `ALTER TABLE meta RENAME TO meta2; CREATE TABLE meta AS SELECT * FROM meta2 WHERE id = 7`, `DROP TABLE meta; ALTER TABLE meta2 RENAME TO meta`, "revision"},
		{"schema", `ALTER TABLE members RENAME TO members2; UPDATE service_users SET revision = 100`, `ALTER TABLE members2 RENAME TO members; UPDATE service_users SET revision = 101`, "members"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.name == "active" {
				pgtest.SQLiteOnly(t, "a BOOLEAN of PostgreSQL is true or false")
			}
			w := newWorld(t, Options{})
			change := func(statements, revision string) {
				runSQL(t, w.path, `PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE;`+statements+`;`+revision+`COMMIT`)
			}
			seen := w.Directory()
			change(row.damage, `UPDATE meta SET revision = 100;`)
			eventually(t, "a fault", func() bool { return w.Fault() != "" })
			if got := w.Fault(); !strings.Contains(got, row.fault) {
				t.Errorf("fault: got %q, want that it names %s", got, row.fault)
			}
			if w.Directory() != seen {
				t.Error("the directory was replaced")
			}
			change(row.mend, `UPDATE meta SET revision = 101;`)
			eventually(t, "the end of the fault", func() bool { return w.Fault() == "" && w.Directory().Revision() == 101 })
			if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
				t.Errorf("mended: got %v, want granted", got)
			}
		})
	}
}

func TestLowerRevision(t *testing.T) {
	w := newWorld(t, Options{})
	seen := w.Directory()
	set := func(revision int64) {
		runSQL(t, w.path, fmt.Sprintf(`PRAGMA busy_timeout = 5000; UPDATE meta SET revision = %d`, revision))
	}
	set(seen.Revision() - 1)
	eventually(t, "a fault", func() bool { return strings.Contains(w.Fault(), "older") })
	// The next change would get the number of the last one.
	if err := w.AddMember(ctx, alice, w.closers.ID, w.user.ID); err == nil || w.Directory() != seen {
		t.Errorf("a change: got %v, want an error, and the directory as before", err)
	}
	set(seen.Revision() + 1)
	mended(t, w.Store)
}

// A newer program that upgrades the file under a running one is noticed.
func TestUpgradeUnderfoot(t *testing.T) {
	w := newWorld(t, Options{})
	runSQL(t, w.path, fmt.Sprintf(`PRAGMA busy_timeout = 5000; PRAGMA user_version = %d; UPDATE service_users SET active = FALSE, revision = 100; UPDATE meta SET revision = 100`, schemaVersion+1))
	eventually(t, "a fault", func() bool { return strings.Contains(w.Fault(), "newer version") })
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
		t.Errorf("a request: got %v, want granted, as before", got)
	}
	if err := w.revoke(context.Background(), alice, w.user.ID, w.token.ID); err == nil {
		t.Error("a change: got no error")
	}
}

// notifications returns a notifier, which ends with the test. Without one it skips the test, except
// in CI.
func notifications(t *testing.T) *fsnotify.Watcher {
	t.Helper()
	notes := newNotifier(Options{})
	if notes == nil {
		testkit.Missing(t, "run this on Linux or Windows; on Linux, fs.inotify.max_user_instances may be too low")
	}
	t.Cleanup(func() { notes.Close() })
	return notes
}

// Notifications alone bring changes of others into force: of a commit, and after the directory was
// away for a while.
func TestNotifications(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	notifications(t)
	dir := filepath.Join(t.TempDir(), "a")
	mustDo(os.Mkdir(dir, 0o700))
	opts := Options{idlePoll: time.Hour, Now: newClock().Now}
	s := open(t, filepath.Join(dir, "store.db"), opts)
	other := open(t, s.path, opts)
	watches := func(s *Store) bool { return onSQLite(s).logged.Load() != nil && s.Fault() == "" }
	for _, name := range []string{"a", "b", "c"} {
		eventually(t, "the look before the first notification", func() bool { return watches(s) && watches(other) })
		g := must(other.CreateGroup(ctx, Local, Group{Name: name}))
		eventually(t, "the change "+name, func() bool { _, ok := s.Directory().Group(g.ID); return ok })
		mustDo(os.Rename(dir, dir+"2"))
		eventually(t, "a fault", func() bool { return s.Fault() != "" && other.Fault() != "" })
		mustDo(os.Rename(dir+"2", dir))
	}
}

// The pause between two looks grows after a notification, and is short without notifications.
func TestPauseBetweenLooks(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has its own watcher")
	t.Parallel()
	s := open(t, place(t), Options{Poll: time.Hour})
	notes := notifications(t)
	idle := Options{}.filled()
	stale := Options{MaxStaleness: 2 * time.Second}.filled()
	elsewhere := filepath.Join(t.TempDir(), "gone", "store.db")
	for _, row := range []struct {
		name       string
		opts       Options
		path       string
		notes      *fsnotify.Watcher
		written    time.Duration // how long the last notification is ago
		least, end time.Duration // the bounds of the pause
	}{
		{"an interval", Options{Poll: time.Minute}, s.path, nil, 0, time.Minute, time.Minute},
		{"no notifications", idle, s.path, nil, time.Hour, fastPoll, fastPoll},
		{"no directory", idle, elsewhere, notes, time.Hour, fastPoll, fastPoll},
		{"just notified", idle, s.path, notes, 0, minPoll, time.Second},
		{"a moment ago", idle, s.path, notes, 400 * time.Millisecond, 100 * time.Millisecond, time.Second},
		{"idle", idle, s.path, notes, time.Hour, time.Second, time.Second},
		{"idle with max_staleness", stale, s.path, notes, time.Hour, time.Second / 2, time.Second / 2},
	} {
		w := watcher{
			sqliteEngine: &sqliteEngine{store: &Store{opts: row.opts}, files: files{path: row.path}},
			notes:        row.notes,
			written:      time.Now().Add(-row.written),
		}
		if got := w.pause(); got < row.least || got > row.end {
			t.Errorf("%s: got %v, want %v to %v", row.name, got, row.least, row.end)
		}
	}
	text := "a fault"
	w := watcher{sqliteEngine: &sqliteEngine{store: &Store{opts: idle}, files: files{path: s.path}}, notes: notes}
	w.store.fault.Store(&text)
	if got := w.pause(); got != fastPoll {
		t.Errorf("with a fault: got %v, want %v", got, fastPoll)
	}
}

// BenchmarkChangeByAnotherProcess measures the time from the end of a change in another process
// until the change is in force here. Run it with -benchtime=300x.
func BenchmarkChangeByAnotherProcess(b *testing.B) {
	w := newWorld(b, Options{Now: time.Now})
	type arrival struct{ revision, at int64 }
	arrivals := make(chan arrival, 100+2*b.N)
	w.OnChange(func() { arrivals <- arrival{w.Directory().Revision(), time.Now().UnixNano()} })
	cmd, lines := startChild(b, w.path, fmt.Sprint("pace ", b.N))
	var took []time.Duration
	var last arrival
	for range b.N {
		var made, revision int64
		var group string
		must(fmt.Fscan(lines, &made, &revision, &group))
		for last.revision < revision {
			last = <-arrivals
		}
		took = append(took, max(time.Duration(last.at-made), 0))
	}
	mustDo(cmd.Wait())
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}
