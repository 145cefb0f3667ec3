package store

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

func TestOpenMakesAPrivateFile(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	path := place(t)
	s := open(t, path, Options{})
	addUser(s, "a")
	files := filesAt(t, path)
	if len(files) != 3 {
		t.Errorf("files of an open store: got %d, want the database, -wal and -shm", len(files))
	}
	for name := range files {
		if mode := must(os.Stat(filepath.Join(filepath.Dir(path), name))).Mode(); mode != 0o600 {
			t.Errorf("mode of %s: got %v, want -rw-------", name, mode)
		}
	}
	if got := must(os.ReadDir(filepath.Dir(path))); len(got) != 3 {
		t.Errorf("files left behind: got %v", got)
	}
}

func TestOpenTakesAnyName(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	for _, name := range []string{
		"plain", "with space.db", "100%.db", "%41.db", "a?mode=memory.db", "a#b.db", "a:b.db", ":memory:", "a&b=c+d;e.db", "ü 漢字.db", `back\slash"quote'.db`, "-dash",
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{filepath.Join(t.TempDir(), name), t.TempDir() + "//" + name, name} {
				t.Chdir(t.TempDir()) // for the relative one
				s, err := Open(ctx, path, Options{})
				if err != nil {
					t.Fatalf("opening %q: %v", path, err)
				}
				u, _ := addUser(s, "a")
				mustDo(s.Close())
				if _, err := os.Stat(path); err != nil {
					t.Errorf("the store is not at its place: %v", err)
				}
				s = open(t, path, Options{})
				if _, ok := s.Directory().User(u.ID); !ok {
					t.Errorf("opened %q again: the service user is gone", path)
				}
			}
		})
	}
}

// runSQL makes or changes a database by these statements.
func runSQL(t testing.TB, path, statements string) {
	t.Helper()
	if IsURL(path) {
		db := must(sql.Open("pgx", path))
		defer db.Close()
		_, err := db.Exec(strings.NewReplacer("PRAGMA busy_timeout = 5000;", "", "BEGIN IMMEDIATE", "BEGIN",
			"PRAGMA user_version =", "UPDATE store_schema SET version =", "char(", "chr(").Replace(statements))
		mustDo(err)
		return
	}
	db := must(sql.Open("sqlite", "file:"+path))
	defer db.Close()
	_, err := db.Exec(statements)
	mustDo(err)
}

func TestOpenRefuses(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	ours := fmt.Sprintf("PRAGMA application_id = %d;", applicationID)
	for _, row := range []struct {
		name   string
		make   func(path string)
		kind   error // may be nil
		advice string
	}{
		{"an empty file", func(p string) { mustDo(os.WriteFile(p, nil, 0o644)) }, ErrNotOurs, "restore it from a backup, or remove the file"},
		{"one byte", func(p string) { mustDo(os.WriteFile(p, []byte("x"), 0o644)) }, ErrNotOurs, "name another file"},
		{"a text", func(p string) { mustDo(os.WriteFile(p, []byte(strings.Repeat("hello\n", 2000)), 0o644)) }, ErrNotOurs, "name another file"},
		{"zeros", func(p string) { mustDo(os.WriteFile(p, make([]byte, 8192), 0o644)) }, ErrNotOurs, "name another file"},
		{"a foreign database", func(p string) { runSQL(t, p, `CREATE TABLE t (a)`) }, ErrNotOurs, "another program"},
		{"a foreign database of a known kind", func(p string) { runSQL(t, p, `PRAGMA application_id = 252006673; CREATE TABLE t (a)`) }, ErrNotOurs, "0x0f055111"},
		{"a foreign database with a log", func(p string) { runSQL(t, p, `PRAGMA journal_mode = WAL; CREATE TABLE t (a)`) }, ErrNotOurs, "another program"},
		{"no schema version", func(p string) { runSQL(t, p, ours+`CREATE TABLE t (a)`) }, ErrNotOurs, "restore it from a backup"},
		{"a negative schema version", func(p string) { runSQL(t, p, ours+`PRAGMA user_version = -1; CREATE TABLE t (a)`) }, ErrNotOurs, "restore it from a backup"},
		{"a newer schema", func(p string) {
			runSQL(t, p, fmt.Sprintf(`%s PRAGMA user_version = %d; CREATE TABLE t (a)`, ours, schemaVersion+1))
		}, ErrNewer, "update the program"},
		{"a directory", func(p string) { mustDo(os.Mkdir(p, 0o755)) }, nil, "name a file in it"},
		{"a missing directory", func(p string) { mustDo(os.Remove(filepath.Dir(p))) }, nil, "create it first: mkdir -p "},
		{"a file for a directory", func(p string) { mustDo(os.Remove(filepath.Dir(p))); mustDo(os.WriteFile(filepath.Dir(p), nil, 0o644)) }, nil, "is a file and not a directory; name another directory"},
		{"a note of a store that is gone", func(p string) { mustDo(Mark{Instance: "store_before", Revision: 57}.write(p)) }, ErrNotOurs, "the database is gone"},
		{"a dangling link", func(p string) { mustDo(os.Symlink(p+"-nowhere", p)) }, nil, "no such file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d", "store.db")
			mustDo(os.Mkdir(filepath.Dir(path), 0o700))
			row.make(path)
			mode := func() string {
				info, err := os.Stat(path)
				if err != nil {
					return "none"
				}
				return info.Mode().String()
			}
			before, modeBefore, filesBefore := readFile(path), mode(), fmt.Sprint(list(filepath.Dir(path)))
			s, err := Open(ctx, path, Options{})
			if err == nil {
				s.Close()
				t.Fatal("opened; want an error")
			}
			if row.kind != nil && !errors.Is(err, row.kind) {
				t.Errorf("kind: got %v, want %v", err, row.kind)
			}
			if !strings.Contains(err.Error(), row.advice) || !strings.Contains(err.Error(), path) {
				t.Errorf("message: got %q, want the path and %q", err, row.advice)
			}
			if after := readFile(path); !bytes.Equal(after, before) || mode() != modeBefore {
				t.Errorf("the file was changed: %d bytes %s, before %d bytes %s", len(after), mode(), len(before), modeBefore)
			}
			if files := fmt.Sprint(list(filepath.Dir(path))); files != filesBefore {
				t.Errorf("files: got %s, before %s", files, filesBefore)
			}
		})
	}
}

func list(dir string) (names []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func readFile(path string) []byte {
	b, _ := os.ReadFile(path)
	return b
}

// A database that is damaged, or holds something that cannot be enforced, is
// not served in part.
// refuses reports whether f panics, as mustDo does.
func refuses(f func()) (panics bool) {
	defer func() { panics = recover() != nil }()
	f()
	return false
}

func TestOpenTakesAllOrNothing(t *testing.T) {
	t.Parallel()
	exec := func(statement string) func(string) {
		return func(path string) { runSQL(t, path, statement) }
	}
	for _, row := range []struct {
		name   string
		damage func(path string) // in PostgreSQL it may fail
	}{
		{"cut in half", func(p string) { b := readFile(p); mustDo(os.WriteFile(p, b[:len(b)/2], 0o600)) }},
		{"garbage behind the first page", func(p string) {
			b := readFile(p)
			for i := 4096; i < len(b); i++ {
				b[i] = byte(i * 7)
			}
			mustDo(os.WriteFile(p, b, 0o600))
		}},
		{"no meta row", exec(`DELETE FROM meta`)},
		{"a table is missing", exec(`DROP TABLE tokens`)},
		{"teams are no list", exec(`UPDATE service_users SET teams = '{'`)},
		{"addresses are none", exec(`UPDATE service_users SET allowed_ips = '["10.0.0.0/99"]'`)},
		{"a token's addresses are none", exec(`UPDATE tokens SET allowed_ips = '[7]'`)},
		{"a token's groups are no list", exec(`UPDATE tokens SET permission_groups = 'x'`)},
		{"an unknown role", exec(`UPDATE service_users SET role = 'root'`)},
		{"an unknown mode", exec(`UPDATE permission_groups SET mode = 'off'`)},
		{"an unknown effect", exec(`UPDATE rules SET effect = 'permit'`)},
		{"a condition that cannot be compiled", exec(`UPDATE rules SET condition = 'user.name =='`)},
		{"a condition over a parameter that the path does not have", exec(`UPDATE rules SET condition = 'params.id == ""'`)},
		{"a membership that cannot be compiled", exec(`UPDATE permission_groups SET member_condition = 'user.nme == ""'`)},
		{"a membership over the request", exec(`UPDATE permission_groups SET member_condition = 'request.host == ""'`)},
		{"a permission's rules are no list", exec(`UPDATE permissions SET rules = '{}'`)},
		{"a permission's rule is none", exec(`UPDATE permissions SET rules = '["allow"]'`)},
		{"a path that never matches", exec(`UPDATE rules SET path = '/a%2fb'`)},
		{"no methods", exec(`UPDATE rules SET methods = ''`)},
		{"a short hash", exec(`UPDATE tokens SET hash = 'abcd'`)},
		{"a long hash", exec(`UPDATE tokens SET hash = hash || hash`)},
		{"a hash that is not hex", exec(`UPDATE tokens SET hash = replace(hash, substr(hash, 1, 1), 'g')`)},
		{"an empty hash", exec(`UPDATE tokens SET hash = '` + strings.Repeat("0", 64) + `'`)},
		{"text for a number", exec(`UPDATE service_users SET expires_at = 'never'`)},
		{"a fraction for a number", exec(`UPDATE tokens SET not_before = 1.5`)},
		{"a name that holds the end of a field", exec(`UPDATE service_users SET name = 'a' || char(31) || 'b'`)},
		{"a name that holds the end of a row", exec(`UPDATE service_users SET name = 'a' || char(30) || 'b'`)},
		{"a name that holds a whole row", exec(`UPDATE service_users SET name = (
			SELECT concat_ws(char(31), name, '', '', '', 1, 'member', '[]', '{}', '[]', 0, 0, 0) || char(30) || concat_ws(char(31), 'service_x', 'x')
			FROM service_users)`)},
		{"a null", exec(`PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', ''); PRAGMA writable_schema = RESET; UPDATE tokens SET pepper_id = NULL`)},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := place(t)
			s := open(t, path, Options{})
			g := addGroup(s, "g", "allow GET /a")
			addUser(s, "a", g.ID)
			load(s, permission("p", "allow GET /p"))
			mustDo(s.GrantPermission(ctx, Local, g.ID, "p"))
			mustDo(s.Close())
			if IsURL(path) && (row.name == "a fraction for a number" || refuses(func() { row.damage(path) })) {
				t.Skip("PostgreSQL refuses the damage, or rounds it")
			}
			if !IsURL(path) {
				row.damage(path)
			}
			if s, err := Open(ctx, path, Options{}); err == nil {
				s.Close()
				t.Error("opened; want an error")
			}
		})
	}
}

// A page that is damaged is either never read, or refuses the whole: no part of
// a table is taken for all of it.
func TestOpenDamagedPages(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	t.Parallel()
	path := place(t)
	s := open(t, path, Options{})
	text := strings.Repeat("x", maxText)
	var ids []string
	for i := range 20 { // enough for tables of several pages
		g := must(s.CreateGroup(ctx, Local, Group{Name: fmt.Sprint("g", i), Description: text, Rules: []access.Rule{{Effect: "deny", Methods: []string{"GET"}, Path: "/", Description: text}}}))
		ids = append(ids, g.ID)
	}
	for i := range 12 {
		u, _, err := s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("u", i), Description: text}, Groups: ids[:20]}, &Token{Metadata: text})
		mustDo(err)
		ids = append(ids, u.ID)
	}
	want := describe(s.Directory(), ids)
	mustDo(s.Close())
	content := readFile(path)
	const size = 4096
	refused := 0
	for at := size; at < len(content); at += size {
		damaged := slices.Clone(content)
		clear(damaged[at : at+size])
		copied := place(t)
		mustDo(os.WriteFile(copied, damaged, 0o600))
		s, err := Open(ctx, copied, Options{})
		if err != nil {
			refused++
			continue
		}
		same(t, fmt.Sprint("page ", at/size+1), describe(s.Directory(), ids), want)
		mustDo(s.Close())
	}
	if refused < 20 {
		t.Errorf("refused: got %d of %d damaged pages; the test shows little", refused, len(content)/size)
	}
}

func TestOpenMendsTheMode(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	path := place(t)
	s := open(t, path, Options{})
	addUser(s, "a")
	copied := copyOf(t, path) // with its log, as after an unclean end
	for name := range filesAt(t, copied) {
		mustDo(os.Chmod(filepath.Join(filepath.Dir(copied), name), 0o644))
	}
	open(t, copied, Options{})
	for name := range filesAt(t, copied) {
		if mode := must(os.Stat(filepath.Join(filepath.Dir(copied), name))).Mode(); mode != 0o600 {
			t.Errorf("mode of %s: got %v, want -rw-------", name, mode)
		}
	}
}

// copyOf copies the files of an open store elsewhere, as they lie on the disk.
func copyOf(t testing.TB, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy.db")
	for name, content := range filesAt(t, path) {
		mustDo(os.WriteFile(to+strings.TrimPrefix(name, filepath.Base(path)), content, 0o600))
	}
	return to
}

func TestOpenAfterAnUncleanEnd(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	path := place(t)
	s := open(t, path, Options{})
	g := addGroup(s, "g", "allow GET /a")
	for i := range 20 {
		addUser(s, fmt.Sprint("u", i), g.ID)
	}
	u, token := addUser(s, "revoked", g.ID)
	mustDo(s.revoke(ctx, Local, u.ID, token.ID))
	copied := copyOf(t, path)
	if files := filesAt(t, copied); len(files["copy.db-wal"]) == 0 {
		t.Fatal("the log is empty; the test shows nothing")
	}
	again := open(t, copied, Options{})
	same(t, "rows after an unclean end", dump(t, again), dump(t, s))
	same(t, "directory after an unclean end", dirText(t, again), dirText(t, s))
	trail(t, again)
}

// A database may be opened by a symbolic link. Its log, and what else belongs to it,
// lies beside the file itself.
func TestOpenByALink(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	path, link := place(t), filepath.Join(t.TempDir(), "link.db")
	s := open(t, path, Options{})
	g := addGroup(s, "g", "allow GET /a")
	killed := copyOf(t, path)
	mustDo(os.Symlink(killed, link))
	report, err := CheckFile(ctx, link, Options{}, AuditHead{})
	if well(t, "before it is opened", report, err); report.Revision != s.Directory().Revision() {
		t.Errorf("a check: got revision %d, want %d, which is in the log", report.Revision, s.Directory().Revision())
	}
	if m, err := Holds(ctx, link); err != nil || m.Revision != report.Revision {
		t.Errorf("it holds: got revision %d, %v, want %d", m.Revision, err, report.Revision)
	}
	linked := open(t, link, Options{})
	same(t, "rows", dump(t, linked), dump(t, s))
	addUser(linked, "u", g.ID)
	mustDo(linked.Close())
	mustDo(AcceptOlder(ctx, link, linked.Now()))
	if m, err := Seen(link); err != nil || m.Revision != report.Revision+1 {
		t.Errorf("the note: got revision %d, %v, want %d", m.Revision, err, report.Revision+1)
	}
	if names := list(filepath.Dir(link)); len(names) != 1 {
		t.Errorf("beside the link: got %q, want nothing", names)
	}
}

func TestOpenAtOnce(t *testing.T) {
	const n = 20
	path := place(t)
	stores := make([]*Store, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if stores[i], errs[i] = Open(ctx, path, Options{}); errs[i] == nil {
				_, _, errs[i] = stores[i].CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("u", i)}}, nil)
			}
		})
	}
	wg.Wait()
	for i, s := range stores {
		if errs[i] != nil {
			t.Errorf("store %d: %v", i, errs[i])
		}
		if s != nil {
			defer s.Close()
		}
	}
	if t.Failed() {
		return
	}
	for i, s := range stores {
		eventually(t, fmt.Sprintf("all service users in the directory of store %d", i), func() bool { return s.Directory().Len() == n })
	}
	if events := trail(t, stores[0]); len(events) != n {
		t.Errorf("audit records: got %d, want %d", len(events), n)
	}
	if IsURL(path) {
		return
	}
	left := must(os.ReadDir(filepath.Dir(path)))
	left = slices.DeleteFunc(left, func(f os.DirEntry) bool { return strings.Contains(f.Name(), ".seen") }) // after a second, and in the making
	if len(left) != 3 {
		t.Errorf("files: got %v, want the database, -wal and -shm", left)
	}
}

func TestEveryConnectionIsSetUp(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	s := open(t, place(t), Options{})
	want := map[string]string{
		"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000", "trusted_schema": "0", "cell_size_check": "1", "query_only": "1",
	}
	check := func(name string, db *sql.DB, n int) {
		for i := range n {
			conn := must(db.Conn(ctx))
			defer conn.Close() // at the end, so that every turn gets another one
			got := make(map[string]string)
			for pragma := range want {
				var v string
				mustDo(conn.QueryRowContext(ctx, `PRAGMA `+pragma).Scan(&v))
				got[pragma] = v
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("connection %d of the %s pool: got %v, want %v", i, name, got, want)
			}
		}
	}
	check("reading", s.read, 7) // the eighth is the watcher's
	want["query_only"] = "0"
	check("writing", s.write, 1)
	if n := s.write.Stats().MaxOpenConnections; n != 1 {
		t.Errorf("writers: got %d, want 1", n)
	}
}

func TestReadersCannotWrite(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has transactions that only read, and a pooler knows no settings")
	s := open(t, place(t), Options{})
	if _, err := s.read.ExecContext(ctx, `DELETE FROM meta`); err == nil {
		t.Error("the reading pool wrote; want an error")
	}
}

func TestClose(t *testing.T) {
	path := place(t)
	s := open(t, path, Options{})
	u, token := addUser(s, "a", addGroup(s, "g", "allow GET /a").ID)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("closing: got %v, want nil", err)
		}
	}
	if got := probe(s, u.ID, token.Secret, "GET /a").String(); got != "granted" {
		t.Errorf("a request after Close: got %s, want granted", got)
	}
	if err := s.revoke(ctx, Local, u.ID, token.ID); err == nil {
		t.Error("a change after Close: got no error")
	}
	if _, err := s.readUser(ctx, Local, u.ID); err == nil {
		t.Error("a look-up after Close: got no error")
	}
	if files := list(filepath.Dir(path)); !IsURL(path) && !slices.Equal(files, []string{"store.db", "store.db.seen"}) {
		t.Errorf("files after a clean end: got %v, want the database, and what was seen of it", files)
	}
}

func TestOpenLeaksNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts /proc/self/fd")
	}
	count := func() int { return len(must(os.ReadDir("/proc/self/fd"))) }
	path, foreign, broken := place(t), place(t), place(t)
	runSQL(t, foreign, `CREATE TABLE t (a TEXT)`)
	mustDo(must(Open(ctx, broken, Options{})).Close())
	runSQL(t, broken, `DROP TABLE tokens`)
	mustDo(must(Open(ctx, path, Options{})).Close())
	before := count()
	for range 10 {
		s := must(Open(ctx, path, Options{}))
		must(s.CreateGroup(ctx, Local, Group{Name: fmt.Sprint("g", s.Directory().Revision())}))
		mustDo(s.Close())
		for _, bad := range []string{foreign, broken} {
			if _, err := Open(ctx, bad, Options{}); err == nil {
				t.Fatal("opened; want an error")
			}
		}
	}
	if after := count(); after != before {
		t.Errorf("open files: got %d, before %d", after, before)
	}
}

// What is acknowledged is on the disk even when the process is killed at once.
func TestKilled(t *testing.T) {
	path := place(t)
	acknowledged := make(map[string]bool)
	for round := range 3 {
		cmd, lines := startChild(t, path, "create for ever")
		for range 15 + 7*round {
			acknowledged[must(lines.ReadString('\n'))] = true
		}
		mustDo(cmd.Process.Kill())
		for { // what was said before the end counts too
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			acknowledged[line] = true
		}
		_ = cmd.Wait()
		s := open(t, path, Options{})
		for line := range acknowledged {
			if _, ok := s.Directory().User(strings.TrimSpace(line)); !ok {
				t.Errorf("round %d: %s was acknowledged and is gone", round, strings.TrimSpace(line))
			}
		}
		if report := must(s.Check(ctx, Local, AuditHead{})); len(report.Findings) > 0 {
			t.Errorf("round %d: the database is damaged: %s", round, report.Findings)
		}
		trail(t, s)
		mustDo(s.Close())
	}
}

// A function that works on a file refuses the URL of a store in PostgreSQL, without its password.
func TestFilesRefuseURL(t *testing.T) {
	const at = "postgres://store:Pa5w0rd@127.0.0.1/test"
	for name, call := range map[string]func() error{
		"Create":       func() error { return second(Create(ctx, at, time.Now())) },
		"Holds":        func() error { return second(Holds(ctx, at)) },
		"Seen":         func() error { return second(Seen(at)) },
		"AcceptOlder":  func() error { return AcceptOlder(ctx, at, time.Now()) },
		"CheckFile":    func() error { return second(CheckFile(ctx, at, Options{}, AuditHead{})) },
		"ReadContents": func() error { return second(ReadContents(ctx, at)) },
		"RestoreFile": func() error {
			return third(RestoreFile(ctx, at, Local, strings.NewReader(""), Options{}, false))
		},
	} {
		if err := call(); !errors.Is(err, errNoFile) || strings.Contains(err.Error(), "Pa5w0rd") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if Pristine(ctx, at) {
		t.Error("Pristine: got true")
	}
}
