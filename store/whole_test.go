package store

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// checkCounts compares the numbers of rows that are kept with those that are there.
func checkCounts(t tb, s *Store) {
	t.Helper()
	for table, where := range map[string]string{
		"service_users": "deleted_at = 0", "tokens": "revoked_at = 0", "permission_groups": "deleted_at = 0", "rules": "TRUE", "group_permissions": "TRUE", "members": "TRUE",
	} {
		from := table
		if !*pgtest.On {
			from += ` NOT INDEXED`
		}
		got, want := number(s.read, `SELECT `+table+` FROM meta`), number(s.read, `SELECT COUNT(*) FROM `+from+` WHERE `+where)
		if got != want {
			t.Errorf("the number of %s: got %d, want %d", table, got, want)
		}
	}
}

// Whatever is done, the numbers of rows are kept.
func TestCounts(t *testing.T) {
	w := newWorld(t, Options{Retention: time.Hour, UseInterval: time.Hour})
	second, _ := addUser(w.Store, "second", w.readers.ID, w.closers.ID)
	third, _ := addUser(w.Store, "third", w.closers.ID)
	for _, row := range []struct {
		name string
		do   func() error
	}{
		{"load permissions", func() error {
			load(w.Store, permission("p.q", "allow GET /p"), permission("p.r", "deny GET /r"))
			return nil
		}},
		{"grant", func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "p.q") }},
		{"add a rule", func() error { _, err := w.AddRule(ctx, alice, w.readers.ID, rules("allow GET /z")[0]); return err }},
		{"replace rules", func() error { return w.changeGroup(func(g *Group) { g.Rules = rules("allow GET /v1/{x}") }) }},
		{"create a token", func() error { _, err := w.CreateToken(ctx, alice, w.user.ID, Token{}); return err }},
		{"refresh a token", func() error { _, err := w.refreshOf(ctx, alice, w.user.ID, w.token.ID, 0); return err }},
		{"delete a service user", func() error { return w.deleteUser(ctx, alice, second.ID, 0) }},
		{"bring it back", func() error { _, err := w.UndeleteServiceUser(ctx, alice, second.ID); return err }},
		{"delete another", func() error { return w.deleteUser(ctx, alice, third.ID, 0) }},
		{"purge it", func() error { w.clock.add(2 * time.Hour); return w.purge(ctx) }},
		{"withdraw", func() error { return w.WithdrawPermission(ctx, alice, w.readers.ID, "p.q") }},
		{"delete a group", func() error { return w.DeleteGroup(ctx, alice, w.closers.ID, 0) }},
		{"delete the first", func() error { return w.deleteUser(ctx, alice, w.user.ID, 0) }},
	} {
		if err := row.do(); err != nil {
			t.Errorf("%s: got %v", row.name, err)
		}
		checkCounts(t, w.Store)
		again := open(t, w.path, w.opts) // a full load takes them
		same(t, row.name+": directory, opened again", dirText(t, again), dirText(t, w.Store))
		mustDo(again.Close())
	}
}

// A table that is read in part refuses the whole.
func TestPartOfATableIsRefused(t *testing.T) {
	pgtest.SQLiteOnly(t, "the test damages the file")
	for _, row := range []struct{ table, lose string }{
		{"service_users", `DELETE FROM service_users WHERE name = 'second'`},
		{"tokens", `DELETE FROM tokens`},
		{"permission_groups", `UPDATE permission_groups SET deleted_at = 1 WHERE name = 'closers'`},
		{"rules", `DELETE FROM rules WHERE effect = 'deny'`},
		{"group_permissions", `DELETE FROM group_permissions`},
		{"members", `DELETE FROM members`},
	} {
		t.Run(row.table, func(t *testing.T) {
			w := newWorld(t, Options{})
			_, _, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "second"}}, nil)
			mustDo(err)
			load(w.Store, permission("p.q", "deny GET /p"))
			mustDo(w.GrantPermission(ctx, Local, w.readers.ID, "p.q"))
			mustDo(w.Close())
			// The rows go without the trigger that would count them: as if they were
			// not found.
			var triggers []string
			db := must(sql.Open("sqlite", "file:"+w.path))
			for _, name := range must(collect(must(db.QueryContext(ctx, `SELECT name FROM sqlite_master WHERE type = 'trigger'`)), scanString)) {
				triggers = append(triggers, `DROP TRIGGER `+name)
			}
			mustDo(db.Close())
			runSQL(t, w.path, strings.Join(triggers, ";")+";"+row.lose)
			s, err := Open(ctx, w.path, w.opts)
			if err == nil {
				s.Close()
				t.Fatal("opened; want an error")
			}
			for _, part := range []string{w.path, "the table " + row.table + " is not whole", "service-user check --store", "service-user restore FILE --store"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("got %v, want %q in it", err, part)
				}
			}
		})
	}
}

// An index that has lost its entries hides rows from those who ask by it.
func TestIndexThatLostItsEntries(t *testing.T) {
	pgtest.SQLiteOnly(t, "the test damages the file")
	for _, row := range []struct{ table, index, columns, want string }{
		{"members", "members_service_user", "service_user_id, group_id", "the table members is not whole: 0 of its rows were read, and 2 were written"},
		{"tokens", "tokens_service_user", "service_user_id, id", "the table tokens is not whole: 0 of its rows were read, and 1 were written"},
		{"rules", "rules_group", "group_id, position", "the table rules is not whole: 0 of its rows were read, and 3 were written"},
	} {
		w := newWorld(t, Options{})
		mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
		mustDo(w.Close())
		runSQL(t, w.path, fmt.Sprintf(`CREATE INDEX none ON %[1]s (%[2]s) WHERE rowid < 0; PRAGMA writable_schema = 1;
			CREATE TEMP TABLE root AS SELECT name, rootpage FROM main.sqlite_master WHERE name IN ('none', '%[3]s');
			UPDATE main.sqlite_master SET rootpage = (SELECT rootpage FROM root WHERE root.name <> sqlite_master.name) WHERE name IN ('none', '%[3]s')`, row.table, row.columns, row.index))
		if s, err := Open(ctx, w.path, w.opts); err == nil {
			s.Close()
			t.Errorf("%s: opened; want an error", row.index)
		} else if !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v, want %s", row.index, err, row.want)
		}
	}
}

// A page that is damaged in the middle of a table ends the scan, and what was read
// before is not taken for all.
func TestCorruptPageMidScan(t *testing.T) {
	pgtest.SQLiteOnly(t, "the test damages the file")
	w := newWorld(t, Options{Poll: time.Hour})
	text := strings.Repeat("x", 2000)
	for i := range 40 {
		_, _, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("u", i), Description: text}, Groups: []string{w.readers.ID}}, &Token{Metadata: text})
		mustDo(err)
	}
	mustDo(w.Close())
	content, db := readFile(w.path), unopened(t, w.path)
	for _, table := range []string{"service_users", "tokens"} {
		pages := must(collect(must(db.QueryContext(ctx, `SELECT pageno FROM dbstat WHERE name = $1 AND pagetype = 'leaf' ORDER BY pageno`, table)), func(rows *sql.Rows) (n int, err error) {
			err = rows.Scan(&n)
			return n, err
		}))
		if len(pages) < 5 {
			t.Fatalf("pages of %s: got %v; the test shows little", table, pages)
		}
		for _, page := range []int{pages[0], pages[len(pages)/2], pages[len(pages)-1]} {
			damaged := slices.Clone(content)
			clear(damaged[(page-1)*4096 : page*4096])
			path := place(t)
			mustDo(os.WriteFile(path, damaged, 0o600))
			s, err := Open(ctx, path, w.opts)
			if err == nil {
				s.Close()
				t.Fatalf("page %d of %s: opened; want an error", page, table)
			}
			for _, part := range []string{path, "malformed", "service-user check", "service-user restore FILE"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("page %d of %s: got %v, want %q in it", page, table, err, part)
				}
			}
		}
	}
}

// Every database that is refused is refused whole: with its name, the reason, and
// how to get out of it; and nothing beside it is made or written.
func TestRefusalsSayWhatToDo(t *testing.T) {
	pgtest.SQLiteOnly(t, "the test damages the file")
	store := func(path string) *Store {
		s := must(Open(ctx, path, Options{Poll: time.Hour}))
		addUser(s, "a", addGroup(s, "g", "allow GET /a").ID)
		return s
	}
	exec := func(statement string) func(string) {
		return func(path string) {
			mustDo(store(path).Close())
			runSQL(t, path, statement)
		}
	}
	for _, row := range []struct {
		name   string
		make   func(path string)
		reason string
	}{
		{"another program's", func(p string) { runSQL(t, p, `CREATE TABLE t (a)`) }, "belongs to another program"},
		{"of a newer version", exec(fmt.Sprintf(`PRAGMA user_version = %d`, schemaVersion+1)), fmt.Sprintf("schema version %d", schemaVersion+1)},
		{"copied in half", func(p string) {
			mustDo(store(p).Close())
			b := readFile(p)
			mustDo(os.WriteFile(p, b[:len(b)/2/4096*4096], 0o600))
		}, "malformed"},
		{"copied in half, within a page", func(p string) {
			mustDo(store(p).Close())
			b := readFile(p)
			mustDo(os.WriteFile(p, b[:len(b)/2+100], 0o600))
		}, "malformed"},
		{"with another's log", func(p string) {
			mustDo(store(p).Close())
			other := filepath.Join(filepath.Dir(filepath.Dir(p)), "other.db")
			s := store(other)
			mustDo(os.WriteFile(p+"-wal", readFile(other+"-wal"), 0o600))
			mustDo(s.Close())
		}, "the log beside it"},
		{"a hash of zero length", exec(`UPDATE tokens SET hash = ''`), "the hash is damaged"},
		{"a rule that no longer parses", exec(`UPDATE rules SET path = 'a'`), "rule_"},
		{"cut to nothing", func(p string) { mustDo(store(p).Close()); mustDo(os.Truncate(p, 0)) }, "the file is empty"},
		{"an audit trail that ends elsewhere", exec(`DELETE FROM audit_events WHERE seq = (SELECT audit_seq FROM meta)`), "audit trail"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d", "my store.db")
			mustDo(os.Mkdir(filepath.Dir(path), 0o700))
			row.make(path)
			before := filesAt(t, path)
			s, err := Open(ctx, path, Options{})
			if err == nil {
				s.Close()
				t.Fatal("opened; want an error")
			}
			for _, part := range []string{fmt.Sprintf("%q", path), row.reason, "caddy service-user check --store '" + path + "'", "caddy service-user restore FILE --store '" + path + "'"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("got %v, want %q in it", err, part)
				}
			}
			after := filesAt(t, path)
			delete(after, filepath.Base(path)+"-shm") // an index, made anew at will
			delete(before, filepath.Base(path)+"-shm")
			for name, content := range before {
				if string(after[name]) != string(content) {
					t.Errorf("%s: got %d bytes, want them as they were, %d", name, len(after[name]), len(content))
				}
				delete(after, name)
			}
			for name := range after {
				t.Errorf("%s was made", name)
			}
		})
	}
}
