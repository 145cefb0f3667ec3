package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

var ctx = context.Background()

// TestMain lets the test binary stand in for another process: see child.
func TestMain(m *testing.M) {
	if path := os.Getenv("STORE_TEST_CHILD"); path != "" {
		child(path, os.Getenv("STORE_TEST_DO"))
		return
	}
	testkit.Prepare()
	os.Exit(m.Run())
}

func must[T any](v T, err error) T {
	mustDo(err)
	return v
}

func mustDo(err error) {
	if err != nil {
		panic(err)
	}
}

// clock is a clock that stands still until it is moved.
type clock struct{ nanos atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.nanos.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) Now() time.Time      { return time.Unix(0, c.nanos.Load()).UTC() }
func (c *clock) add(d time.Duration) { c.nanos.Add(int64(d)) }

// tb is what the helpers need of a *testing.T and a *rapid.T.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// place names a database that does not exist yet.
func place(t testing.TB) string { return pgtest.Place(t) }

// open opens a store that is closed when the test ends.
func open(t testing.TB, path string, opts Options) *Store {
	t.Helper()
	s, err := Open(ctx, path, opts)
	if err != nil {
		t.Fatalf("opening %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing %s: %v", path, err)
		}
	})
	return s
}

// clone copies a closed store to a new place.
func clone(t testing.TB, path string) (to string) {
	to = place(t)
	if !IsURL(path) {
		mustDo(os.WriteFile(to, readFile(path), 0o600))
		return to
	}
	mustDo(must(Open(ctx, to, Options{})).Close())
	from := must(url.Parse(path)).Query().Get("search_path")
	statements := "DELETE FROM meta;"
	for _, table := range []string{
		"service_users", "tokens", "permission_groups", "rules", "permissions", "group_permissions", "members",
		"deleted_links", "audit_events", "audit_subjects", "refusals", "meta", // last, since triggers change it
	} {
		statements += fmt.Sprintf("INSERT INTO %s SELECT * FROM %s.%[1]s;", table, from)
	}
	runSQL(t, to, statements)
	return to
}

// hide takes the database of a store away until back is called.
func hide(t testing.TB, path string) (back func()) {
	if IsURL(path) {
		runSQL(t, path, `ALTER TABLE meta RENAME TO meta_aside`)
		return func() { runSQL(t, path, `ALTER TABLE meta_aside RENAME TO meta`) }
	}
	mustDo(os.Rename(path, path+".aside"))
	return func() { mustDo(os.Rename(path+".aside", path)) }
}

// examined is the result of a check, in SQLite that of a backup at path.
func examined(t *testing.T, s *Store) (path string, r CheckReport, err error) {
	if *pgtest.On {
		r, err = s.Check(ctx, Local, AuditHead{})
		return "", r, err
	}
	path, _ = backupTo(t, s)
	r, err = CheckFile(ctx, path, s.opts, AuditHead{})
	return path, r, err
}

// onSQLite returns the engine of a store in a SQLite file.
func onSQLite(s *Store) *sqliteEngine { return s.engine.(*sqliteEngine) }

func rules(texts ...string) []access.Rule {
	list := []access.Rule{}
	for _, text := range texts {
		list = append(list, must(access.ParseRule(text)))
	}
	return list
}

// addUser makes an active service user in these groups.
func addUser(s *Store, name string, groups ...string) (ServiceUser, *Issued) {
	u, token, err := s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: name, Active: true}, Groups: groups}, &Token{})
	mustDo(err)
	return u, token
}

func addGroup(s *Store, name string, texts ...string) Group {
	return must(s.CreateGroup(ctx, Local, Group{Name: name, Rules: rules(texts...)}))
}

// probe asks the directory for the answer to a request such as "GET /v1/x".
func probe(s *Store, login, secret, action string) access.Reason {
	method, path, _ := strings.Cut(action, " ")
	d := s.Directory()
	p, why := d.Authenticate(access.Credential{ID: login, Secret: secret}, netip.MustParseAddr("192.0.2.1"), s.Now().Unix())
	if why == access.Granted {
		why = d.Authorize(p, access.Action{Method: method, Host: "api.example.com", Path: path}).Reason
	}
	return why
}

// same fails the test with the lines that differ.
func same(t tb, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	only := func(a, b string) string {
		lines := strings.Split(b, "\n")
		return strings.Join(slices.DeleteFunc(strings.Split(a, "\n"), func(line string) bool { return slices.Contains(lines, line) }), "\n\t")
	}
	t.Errorf("%s: got\n\t%s\nwant\n\t%s", what, only(got, want), only(want, got))
}

// dump is every row of every table, as text.
func dump(t tb, s *Store) string {
	t.Helper()
	return dumpTables(s.read, allTables...)
}

var allTables = []string{"meta", "service_users", "tokens", "permission_groups", "rules", "permissions", "group_permissions", "members", "deleted_links", "audit_events", "audit_subjects", "refusals"}

func dumpTables(db *sql.DB, tables ...string) string {
	var out strings.Builder
	for _, table := range tables {
		rows := must(db.QueryContext(ctx, `SELECT * FROM `+table+` ORDER BY 1, 2`))
		values := make([]any, len(must(rows.Columns())))
		for i := range values {
			values[i] = new(any)
		}
		for rows.Next() {
			mustDo(rows.Scan(values...))
			out.WriteString(table)
			for _, v := range values {
				text := fmt.Sprint(*v.(*any))
				switch text { // SQLite has numbers
				case "false":
					text = "0"
				case "true":
					text = "1"
				}
				out.WriteString(" | " + text)
			}
			out.WriteByte('\n')
		}
		mustDo(rows.Err())
		rows.Close()
	}
	return out.String()
}

// dirText is everything that a directory says of the rows in the store.
func dirText(t tb, s *Store) string {
	t.Helper()
	rows := must(s.read.QueryContext(ctx, `SELECT id FROM service_users UNION SELECT id FROM permission_groups ORDER BY id`))
	return describe(s.Directory(), must(collect(rows, scanString)))
}

// describe is everything that a directory says of these ids.
func describe(d *access.Directory, ids []string) string {
	var out strings.Builder
	fmt.Fprintln(&out, "revision", d.Revision(), "users", d.Len())
	for _, id := range ids {
		if u, ok := d.User(id); ok {
			// A database returns the rows of tokens in any order.
			u.Tokens = slices.SortedFunc(slices.Values(u.Tokens), func(a, b access.Token) int { return strings.Compare(a.ID, b.ID) })
			fmt.Fprintf(&out, "%s %v\n", must(json.Marshal(u)), d.EffectiveGroups(u))
		}
		if g, ok := d.Group(id); ok {
			fmt.Fprintf(&out, "%s\n", must(json.Marshal(g)))
		}
	}
	return out.String()
}

// trail returns the audit trail, oldest first, after recomputing its chain.
func trail(t tb, s *Store) []AuditEvent {
	t.Helper()
	events := must(s.trail(ctx, "", 0, 1<<30))
	slices.Reverse(events)
	prev := ""
	for i, e := range events {
		record := must(json.Marshal([]any{prev, i + 1, e.ID, e.At.Unix(), e.Actor, e.Action, e.Resource, string(e.Before), string(e.After), e.Operation}))
		sum := sha256.Sum256(record)
		if e.Seq != int64(i+1) || e.PrevHash != prev || e.Hash != hex.EncodeToString(sum[:]) {
			t.Fatalf("the audit trail is broken at record %d: %+v", i+1, e)
		}
		prev = e.Hash
	}
	var seq int64
	var head string
	mustDo(s.read.QueryRowContext(ctx, `SELECT audit_seq, audit_hash FROM meta`).Scan(&seq, &head))
	if seq != int64(len(events)) || head != prev {
		t.Fatalf("the head of the audit trail: got %d %s, want %d %s", seq, head, len(events), prev)
	}
	return events
}

// kind is the kind and the field of an error, such as "conflict name".
func kind(err error) string {
	var e *Error
	switch {
	case err == nil:
		return "ok"
	case !errors.As(err, &e):
		return "broken: " + err.Error()
	case errors.Is(err, ErrInvalid):
		return strings.TrimSpace(ErrInvalid.Error() + " " + e.Field)
	default:
		return strings.TrimSpace(e.Kind.Error() + " " + e.Field)
	}
}

// eventually waits for something that happens without being asked for.
func eventually(t tb, what string, ok func() bool) {
	t.Helper()
	tick, deadline := time.NewTicker(time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("in vain waited for: %s", what)
		}
	}
}

// mended waits for the end of a fault.
func mended(t tb, s *Store) {
	t.Helper()
	defer func() {
		if fault := s.Fault(); fault != "" {
			t.Errorf("the fault: %s", fault)
		}
	}()
	eventually(t, "the end of the fault", func() bool { return s.Fault() == "" })
}

// filesAt returns the files of a database: itself, its log, its index. In PostgreSQL it returns the
// rows.
func filesAt(t tb, path string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	if IsURL(path) {
		db := must(sql.Open("pgx", path))
		defer db.Close()
		files["rows"] = []byte(dumpTables(db, allTables...))
		return files
	}
	for _, e := range must(os.ReadDir(filepath.Dir(path))) {
		if strings.HasPrefix(e.Name(), filepath.Base(path)) {
			files[e.Name()] = must(os.ReadFile(filepath.Join(filepath.Dir(path), e.Name())))
		}
	}
	return files
}

// absent fails the test when a secret, or its plain hash, stands in text.
func absent(t tb, where string, text []byte, secret string) {
	t.Helper()
	sum := sha256.Sum256([]byte(secret))
	for what, part := range map[string]string{
		"secret": secret, "secret without its prefix": secret[len(access.SecretPrefix):],
		"hash": string(sum[:]), "hash in hex": hex.EncodeToString(sum[:]),
	} {
		if bytes.Contains(text, []byte(part)) {
			t.Errorf("the %s of a token stands in %s", what, where)
		}
	}
}

func addrOf(text string) netip.Addr { return netip.MustParseAddr(text) }
