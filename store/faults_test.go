package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"modernc.org/sqlite"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// The store of the tests opens its databases through faultyDriver. It is SQLite's
// own, but for databases in a directory that has a plan: there every call asks
// the plan, before and after it.

func init() {
	sql.Register("faulty", faultyDriver{})
	sqliteDriver = "faulty"
}

// plan is told of every call: of "exec", "query", "begin", "commit", "rollback",
// "next", "open", before it is made and after it went well, with its statement.
// The error that it returns is what the caller gets.
type plan func(when, call, statement string) error

var plans sync.Map // by directory

// withPlan has the databases in a directory follow a plan, until the test ends.
func withPlan(t testing.TB, dir string, p plan) {
	plans.Store(dir, p)
	t.Cleanup(func() { plans.Delete(dir) })
}

type faultyDriver struct{}

func (faultyDriver) Open(dsn string) (driver.Conn, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, err
	}
	p, ok := plans.Load(filepath.Dir(u.Path))
	if !ok {
		return itself().Open(dsn)
	}
	c := faultyConn{plan: p.(plan)}
	err = c.plan.around("open", "", func() error {
		inner, err := itself().Open(dsn)
		if err == nil {
			c.sqliteConn = inner.(sqliteConn)
		}
		return err
	})
	if err != nil {
		if c.sqliteConn != nil {
			c.Close()
		}
		return nil, err
	}
	return c, nil
}

// around makes a call, unless the plan is against it.
func (p plan) around(call, statement string, do func() error) error {
	if err := p("before", call, statement); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return p("after", call, statement)
}

// sqliteConn is what a connection of SQLite's driver can do.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// itself is SQLite's own driver.
var itself = sync.OnceValue(func() driver.Driver {
	db := must(sql.Open("sqlite", ""))
	defer db.Close()
	return db.Driver()
})

type faultyConn struct {
	sqliteConn
	plan plan
}

func (c faultyConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (result driver.Result, err error) {
	list := []string{query}
	if len(args) == 0 {
		list = statements(query) // so that a plan comes in between them
	}
	for _, statement := range list {
		err = c.plan.around("exec", statement, func() (err error) {
			result, err = c.sqliteConn.ExecContext(ctx, statement, args)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return result, nil
}

// statements takes a script apart.
func statements(script string) (list []string) {
	part := ""
	for piece := range strings.SplitSeq(comments.ReplaceAllString(script, ""), ";") {
		part += piece + ";"
		if end := strings.TrimSpace(piece); !strings.Contains(part, "CREATE TRIGGER") || end == "END" || end == "" {
			if end != "" {
				list = append(list, part)
			}
			part = ""
		}
	}
	return list
}

var comments = regexp.MustCompile(`--[^\n]*`)

func (c faultyConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	var rows driver.Rows
	err := c.plan.around("query", query, func() (err error) {
		rows, err = c.sqliteConn.QueryContext(ctx, query, args)
		return err
	})
	if err != nil {
		if rows != nil {
			rows.Close()
		}
		return nil, err
	}
	return faultyRows{rows, c.plan, query}, nil
}

type faultyRows struct {
	driver.Rows
	plan  plan
	query string
}

func (r faultyRows) Next(dest []driver.Value) error {
	return r.plan.around("next", r.query, func() error { return r.Rows.Next(dest) })
}

func (c faultyConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	var tx driver.Tx
	err := c.plan.around("begin", "", func() (err error) {
		tx, err = c.sqliteConn.BeginTx(ctx, opts)
		return err
	})
	if err != nil {
		if tx != nil {
			_ = tx.Rollback()
		}
		return nil, err
	}
	return faultyTx{tx, c.plan}, nil
}

type faultyTx struct {
	driver.Tx
	plan plan
}

// A COMMIT that fails has rolled back, as SQLite's does.
func (tx faultyTx) Commit() error {
	if err := tx.plan("before", "commit", ""); err != nil {
		_ = tx.Tx.Rollback()
		return err
	}
	if err := tx.Tx.Commit(); err != nil {
		return err
	}
	return tx.plan("after", "commit", "")
}

func (tx faultyTx) Rollback() error {
	err := tx.Tx.Rollback() // SQLite's ends the transaction whatever it says
	return errors.Join(tx.plan("before", "rollback", ""), err)
}

var errFault = errors.New("a fault that the test made")

// failing fails one call, or all from one on, and counts.
type failing struct {
	calls  atomic.Int64
	from   atomic.Int64           // the number of the call; 0 is none
	all    bool                   // and all after it
	failed atomic.Pointer[string] // which it was
}

// begin counts anew and fails the n-th call.
func (f *failing) begin(n int64) {
	f.end()
	f.calls.Store(0)
	f.failed.Store(nil)
	f.from.Store(n)
}

func (f *failing) end() { f.from.Store(0) }

func (f *failing) plan(when, call, statement string) error {
	n, from := f.calls.Add(1), f.from.Load()
	if from == 0 || n < from || n > from && !f.all {
		return nil
	}
	text := fmt.Sprintf("call %d, %s %s %s", n, when, call, strings.Join(strings.Fields(statement), " "))
	f.failed.CompareAndSwap(nil, &text)
	return errFault
}

func (f *failing) String() string {
	if text := f.failed.Load(); text != nil {
		return *text + " failed"
	}
	return "no call failed"
}

var callStep = flag.Int64("callstep", 11, "tests of faults let every so many-th call of the database fail; 1 is each")

// callByCall runs do with 1, 2, 3 … or some of them until it says that there was no
// such call.
func callByCall(t *testing.T, least int64, do func(n int64) bool) {
	t.Helper()
	start := 1 + random(t).Int64N(*callStep)
	n := start
	for do(n) {
		n += *callStep
	}
	if n < least {
		t.Errorf("calls that failed: got %d; the test shows little", n)
	}
	t.Logf("calls %d to %d, every %d", start, n-1, *callStep)
}

// Whichever call fails while a new store is made and opened: there is none
// afterwards, or a whole one.
func TestCallsFailAtCreation(t *testing.T) {
	pgtest.SQLiteOnly(t, "the driver of SQLite fails")
	t.Parallel()
	callByCall(t, 30, func(n int64) bool {
		path, f := place(t), new(failing)
		withPlan(t, filepath.Dir(path), f.plan)
		f.begin(n)
		s, err := Open(ctx, path, Options{Poll: time.Hour})
		failed := f.failed.Load() != nil
		if err == nil {
			mustDo(s.Close())
		} else if !errors.Is(err, errFault) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want the fault and the path", f, err)
		}
		f.end()
		for _, name := range list(filepath.Dir(path)) {
			if !strings.HasPrefix(name, filepath.Base(path)) {
				t.Errorf("%s: left behind: %s", f, name)
			}
		}
		s, err = Open(ctx, path, Options{Poll: time.Hour})
		if err != nil {
			t.Errorf("%s: opened again: %v", f, err)
			return failed
		}
		addUser(s, "a")
		whole(t, s)
		mustDo(s.Close())
		return failed
	})
}

// Whichever call fails while a store is opened, it is refused, or opens as it is.
func TestCallsFailAtOpening(t *testing.T) {
	pgtest.SQLiteOnly(t, "the driver of SQLite fails")
	t.Parallel()
	w := newWorld(t, Options{})
	want := dirText(t, w.Store)
	callByCall(t, 30, func(n int64) bool {
		path, f := copyOf(t, w.path), new(failing)
		withPlan(t, filepath.Dir(path), f.plan)
		f.begin(n)
		opts := w.opts
		opts.Poll = time.Hour
		s, err := Open(ctx, path, opts)
		failed := f.failed.Load() != nil
		f.end()
		if err != nil {
			if !errors.Is(err, errFault) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: got %v, want the fault and the path", f, err)
			}
			if s, err = Open(ctx, path, opts); err != nil {
				t.Fatalf("%s: opened again: %v", f, err)
			}
		}
		same(t, f.String(), dirText(t, s), want)
		whole(t, s)
		mustDo(s.Close())
		return failed
	})
}

// Whichever call of a change fails: what was acknowledged holds, what was not is
// done whole or not at all, and the next change works.
func TestCallsFailInAChange(t *testing.T) {
	pgtest.SQLiteOnly(t, "the driver of SQLite fails")
	t.Parallel()
	for name, change := range map[string]func(w *world) error{
		"create": func(w *world) error {
			_, _, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "n", Active: true}, Groups: []string{w.readers.ID}}, &Token{})
			return err
		},
		"revoke":  func(w *world) error { return w.revoke(ctx, alice, w.user.ID, w.token.ID) },
		"refresh": func(w *world) error { return w.issue(w.refreshOf(ctx, alice, w.user.ID, w.token.ID, 0)) },
		"delete":  func(w *world) error { return w.deleteUser(ctx, alice, w.user.ID, 0) },
		"rule": func(w *world) error {
			_, err := w.AddRule(ctx, alice, w.readers.ID, rules("deny GET /v1/x")[0])
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			callByCall(t, 30, func(n int64) bool {
				w, f := newWorld(t, Options{Poll: time.Hour}), new(failing)
				mustDo(w.Close())
				withPlan(t, filepath.Dir(w.path), f.plan)
				w.Store = open(t, w.path, w.opts)
				old, dump1 := w.Directory(), dump(t, w.Store)
				f.begin(n)
				err := change(w)
				failed := f.failed.Load() != nil
				f.end()
				switch {
				case err == nil && w.Directory() == old:
					t.Errorf("%s: acknowledged, and the directory is the old one", f)
				case err != nil && w.Directory() != old:
					t.Errorf("%s: not acknowledged (%v), and the directory is a new one", f, err)
				case err != nil && !errors.Is(err, errFault):
					t.Errorf("%s: got %v, want the fault", f, err)
				}
				if strings.Contains(f.String(), "after commit") && !errors.Is(err, ErrUncertain) {
					t.Errorf("%s: got %v, want that it is not known", f, err)
				}
				if err != nil && !strings.Contains(f.String(), "after commit") {
					same(t, f.String()+": rows", dump(t, w.Store), dump1)
				}
				if err := w.refresh(ctx); err != nil {
					t.Errorf("%s: reading it again: %v", f, err)
				}
				addUser(w.Store, "next")
				whole(t, w.Store)
				mustDo(w.Close())
				return failed
			})
		})
	}
}

// Whichever call of a poll fails, the directory is the old one or the new one,
// and the next poll mends it. When all calls fail, the fault is told.
func TestCallsFailInAPoll(t *testing.T) {
	pgtest.SQLiteOnly(t, "the driver of SQLite fails")
	t.Parallel()
	for _, all := range []bool{false, true} {
		w, f := newWorld(t, Options{Poll: time.Hour}), &failing{all: all}
		spare := must(w.CreateToken(ctx, alice, w.user.ID, Token{}))
		withPlan(t, filepath.Dir(w.path), f.plan) // w itself has its connection for writing already
		opts := w.opts
		opts.Poll = time.Millisecond
		watcher := open(t, w.path, opts)
		ids := []string{w.user.ID, w.readers.ID, w.closers.ID}
		for n := 1 + random(t).Int64N(*callStep); n < 60; n += *callStep {
			old := describe(w.Directory(), ids)
			f.begin(n)
			must(w.UpdateToken(ctx, alice, w.user.ID, spare.ID, 0, func(k *Token) error { k.AllowedIPs = []string{fmt.Sprintf("192.0.2.%d/32", n)}; return nil }))
			now := describe(w.Directory(), ids)
			check := func() bool {
				got := describe(watcher.Directory(), ids)
				if got != old && got != now {
					t.Fatalf("%s: neither the old directory nor the new one: %s", f, got)
				}
				return got == now
			}
			if all {
				eventually(t, "the fault", func() bool { check(); return strings.Contains(watcher.Fault(), errFault.Error()) })
				if got := probe(watcher, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
					t.Errorf("%s: a request: got %v, want granted", f, got)
				}
				f.end()
			}
			eventually(t, f.String()+": the change", check)
			f.end()
			mended(t, watcher)
			check()
		}
	}
}

// While the database answers nothing, requests are decided, and changes end when
// their callers give up.
func TestCallsHang(t *testing.T) {
	pgtest.SQLiteOnly(t, "the driver of SQLite fails")
	t.Parallel()
	w := newWorld(t, Options{})
	mustDo(w.Close())
	var hang atomic.Pointer[chan struct{}]
	withPlan(t, filepath.Dir(w.path), func(when, call, statement string) error {
		if c := hang.Load(); c != nil {
			<-*c
		}
		return nil
	})
	w.Store = open(t, w.path, w.opts)
	release := make(chan struct{})
	hang.Store(&release)
	first := make(chan error)
	go func() { first <- w.revoke(ctx, alice, w.user.ID, w.token.ID) }()
	eventually(t, "a change under way", func() bool { return len(w.writing) == 0 })
	impatient, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := w.AddMember(impatient, alice, w.closers.ID, w.user.ID); err == nil {
		t.Error("a change of somebody who gave up: got no error")
	}
	for range 1000 {
		if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
			t.Fatalf("a request meanwhile: got %v, want granted", got)
		}
	}
	hang.Store(nil)
	close(release)
	if err := <-first; err != nil {
		t.Errorf("the change that hung: %v", err)
	}
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.TokenRevoked {
		t.Errorf("a request afterwards: got %v, want token_revoked", got)
	}
	whole(t, w.Store)
}

// whole fails the test unless the database is sound, its audit trail holds, and
// the directory is what a new start reads.
func whole(t testing.TB, s *Store) {
	t.Helper()
	if !IsURL(s.path) {
		var report string
		mustDo(s.read.QueryRowContext(ctx, `PRAGMA integrity_check`).Scan(&report))
		if report != "ok" {
			t.Errorf("the database is damaged: %s", report)
		}
		mustDo(s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM pragma_foreign_key_check`).Scan(&report))
		if report != "0" {
			t.Errorf("rows that lead nowhere: %s", report)
		}
	}
	if r, err := s.VerifyAudit(ctx, Local, AuditHead{}); err != nil || r.Problem != "" || r.Head != s.AuditHead() {
		t.Errorf("the audit trail: got %+v, %v, want the head %+v", r, err, s.AuditHead())
	}
	opts := s.opts
	opts.Poll = time.Hour
	again, err := Open(ctx, s.path, opts)
	if err != nil {
		t.Errorf("opened again: %v", err)
		return
	}
	same(t, "the directory, against a new start", dirText(t, s), dirText(t, again))
	mustDo(again.Close())
}

// fillUp creates service users until there is no room for one, and checks what is
// left.
func fillUp(t testing.TB, w *world) {
	t.Helper()
	text := strings.Repeat("x", maxText)
	for n := 0; ; n++ {
		before, rows := w.Directory(), dump(t, w.Store)
		_, _, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("filler", n), Description: text}}, &Token{Metadata: text})
		if err == nil {
			if n > 1000 {
				t.Fatal("the disk does not get full")
			}
			continue
		}
		var e *sqlite.Error
		if !errors.As(err, &e) || e.Code()&0xff != 13 {
			t.Errorf("a change without room: got %v, want SQLITE_FULL", err)
		}
		if w.Directory() != before {
			t.Error("a change without room: the directory is another one")
		}
		same(t, "a change without room: rows", dump(t, w.Store), rows)
		break
	}
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
		t.Errorf("a request without room: got %v, want granted", got)
	}
	if fault := w.Fault(); fault != "" {
		t.Errorf("the store can be read, and says: %s", fault)
	}
	whole(t, w.Store)
}

// A disk that is full indeed does what TestDiskFull shows.
func TestDiskIsFull(t *testing.T) {
	pgtest.SQLiteOnly(t, "the driver of SQLite fails")
	if os.Getuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("run this as root on Linux: it mounts a small file system")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("run this where root may mount a tmpfs (in a container: with CAP_SYS_ADMIN): %s", out)
	}
	defer func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	}()
	w := &world{path: filepath.Join(dir, "store.db"), clock: newClock()}
	s, err := Open(ctx, w.path, Options{Now: w.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	w.Store = s
	defer func() { mustDo(w.Close()) }()
	w.readers = addGroup(s, "readers", "allow GET /v1/{x}")
	w.user, w.token = addUser(s, "billing-sync", w.readers.ID)
	mustDo(os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 300<<10), 0o600))
	fillUp(t, w)
	// Whoever starts on it reads what there is.
	again, err := Open(ctx, w.path, Options{Now: w.clock.Now})
	if err != nil {
		t.Errorf("opened on a full disk: %v", err)
	} else {
		same(t, "opened on a full disk", dirText(t, again), dirText(t, s))
		mustDo(again.Close())
	}
	mustDo(os.Remove(filepath.Join(dir, "ballast")))
	addUser(s, "room")
	mustDo(s.revoke(ctx, alice, w.user.ID, w.token.ID))
	if got := probe(s, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.TokenRevoked {
		t.Errorf("a request with room again: got %v, want token_revoked", got)
	}
	whole(t, s)
}

// Another process that does not let go of the lock: a change ends with an error
// after a while, whoever is behind it as well; everything else goes on.
func TestLockedForLong(t *testing.T) {
	pgtest.SQLiteOnly(t, "the driver of SQLite fails")
	t.Parallel()
	w := newWorld(t, Options{})
	mustDo(w.revoke(ctx, alice, w.user.ID, must(w.CreateToken(ctx, alice, w.user.ID, Token{})).ID))
	_, err := w.write.ExecContext(ctx, `PRAGMA busy_timeout = 20`) // instead of 5 seconds
	mustDo(err)
	db := must(sql.Open("sqlite", sqliteDSN(w.path, "rw", "_txlock=immediate")))
	defer db.Close()
	tx := must(db.BeginTx(ctx, nil))
	defer tx.Rollback()

	const n = 20
	before := w.Directory()
	errs := make(chan error, n)
	for i := range n {
		go func() {
			_, _, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("n", i)}}, nil)
			errs <- err
		}()
	}
	for left := n; left > 0; {
		select {
		case err := <-errs:
			left--
			var e *sqlite.Error
			if !errors.As(err, &e) || e.Code()&0xff != 5 {
				t.Errorf("a change: got %v, want SQLITE_BUSY", err)
			}
		default:
			if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
				t.Fatalf("a request: got %v, want granted", got)
			}
			if _, err := w.readUser(ctx, Local, w.user.ID); err != nil {
				t.Fatalf("a look-up: %v", err)
			}
		}
	}
	if w.Directory() != before || w.Fault() != "" {
		t.Errorf("after it: revision %d, fault %q, want %d and none", w.Directory().Revision(), w.Fault(), before.Revision())
	}
	mustDo(tx.Rollback())
	mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.TokenRevoked {
		t.Errorf("a request with the lock let go: got %v, want token_revoked", got)
	}
	whole(t, w.Store)
}

// A change does not wait for ever for those before it.
func TestTurn(t *testing.T) {
	pgtest.SQLiteOnly(t, "the driver of SQLite fails")
	synctest.Test(t, func(t *testing.T) {
		s := &Store{opts: Options{}.filled(), writing: make(chan struct{}, 1)} // somebody has the turn
		begun := time.Now()
		_, _, err := s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "n"}}, nil)
		if err == nil || !strings.Contains(err.Error(), "try again later") {
			t.Errorf("got %v, want advice to try again later", err)
		}
		if got := time.Since(begun); got != s.opts.timeouts.turn {
			t.Errorf("waited: got %v, want %v", got, s.opts.timeouts.turn)
		}
	})
}
