package store

import (
	"database/sql"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

var flips = flag.Int("flips", 8, "how many damaged copies of each kind the tests of damage open")

// chronicle is a store with its whole history: what its directory was at each
// revision, and what became of each secret.
type chronicle struct {
	closed  map[string][]byte // its files after a clean end: the database alone
	open    map[string][]byte // and with changes in the log, as after kill -9
	ids     []string
	states  map[int64]state // by revision
	opts    Options
	secrets []credential
}

type state struct {
	text    string // of the directory
	answers string // to each secret
}

type credential struct{ id, secret string }

// newChronicle makes service users, some with revoked tokens, half of the changes
// before a clean end and half after it.
func newChronicle(t testing.TB) *chronicle {
	t.Helper()
	c := &chronicle{states: make(map[int64]state), opts: Options{Now: newClock().Now, Poll: time.Hour}}
	path := place(t)
	var users, tokens []string
	// What a directory is described by are ids, which come one after another; so the
	// states are taken at the end, from copies of each revision.
	files := make(map[int64]map[string][]byte)
	s := open(t, path, c.opts)
	keep := func() { files[s.Directory().Revision()] = filesAt(t, path) }
	group := func(name string, texts ...string) {
		c.ids = append(c.ids, addGroup(s, name, texts...).ID)
		keep()
	}
	user := func(n int) {
		u, token, err := s.CreateServiceUser(ctx, Local, ServiceUser{
			Profile: access.Profile{Name: fmt.Sprint("user", n), DisplayName: strings.Repeat("display ", 4), Description: strings.Repeat("d", 200), Active: true}, Groups: c.ids[:1],
		}, &Token{})
		mustDo(err)
		keep()
		c.ids, users, tokens = append(c.ids, u.ID), append(users, u.ID), append(tokens, token.ID)
		c.secrets = append(c.secrets, credential{u.ID, token.Secret})
		if n%2 == 1 {
			spare := must(s.CreateToken(ctx, Local, u.ID, Token{}))
			c.secrets = append(c.secrets, credential{u.ID, spare.Secret})
			keep()
			mustDo(s.revoke(ctx, Local, u.ID, spare.ID))
			keep()
		}
	}
	group("readers", "allow GET /v1/{rest...}", "deny GET /v1/secret")
	for n := range 10 {
		user(n)
	}
	mustDo(s.Close())
	c.closed = filesAt(t, path)
	s = open(t, path, c.opts)
	for n := range 6 {
		user(10 + n)
		mustDo(s.revoke(ctx, Local, users[n], tokens[n]))
		keep()
	}
	mustDo(s.deleteUser(ctx, Local, users[7], 0))
	keep()
	group("closers", "deny * /v1/{rest...}")
	c.open = filesAt(t, path)
	for revision, content := range files {
		s := open(t, c.put(t, content), c.opts)
		c.states[revision] = c.state(s)
		mustDo(s.Close())
	}
	return c
}

// put writes files into a new directory and returns the place of the database.
func (c *chronicle) put(t testing.TB, files map[string][]byte) string {
	t.Helper()
	path := place(t)
	for name, content := range files {
		mustDo(os.WriteFile(filepath.Join(filepath.Dir(path), name), content, 0o600))
	}
	return path
}

func (c *chronicle) state(s *Store) state {
	var answers strings.Builder
	for _, k := range c.secrets {
		fmt.Fprintln(&answers, k.id, probe(s, k.id, k.secret, "GET /v1/x"))
	}
	return state{describe(s.Directory(), c.ids), answers.String()}
}

// revision is the one that a set of files shows.
func (c *chronicle) revision(t testing.TB, files map[string][]byte) int64 {
	s := open(t, c.put(t, files), c.opts)
	defer s.Close()
	return s.Directory().Revision()
}

// The outcomes of opening a damaged store.
const (
	refused    = "refused"
	asItIs     = "the present state"
	asItWas    = "an earlier state"
	unlikeBoth = "something else"
)

// outcome opens damaged files and says what came of it.
func (c *chronicle) outcome(t testing.TB, what string, files map[string][]byte, latest int64) (outcome string) {
	t.Helper()
	path := c.put(t, files)
	defer func() {
		if v := recover(); v != nil {
			t.Fatalf("%s: it panics: %v\n%s", what, v, debug.Stack())
		}
		mustDo(os.RemoveAll(filepath.Dir(path)))
	}()
	s, err := Open(ctx, path, c.opts)
	if err != nil {
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%s: refused: got %v, want that it names the file", what, err)
		}
		return refused
	}
	defer s.Close()
	got := c.state(s)
	switch was, ok := c.states[s.Directory().Revision()]; {
	case !ok || got != was:
		// What was revoked or never issued must not come in, whatever became of the rest.
		now := strings.Split(c.states[latest].answers, "\n")
		for i, answer := range strings.Split(got.answers, "\n") {
			if strings.HasSuffix(answer, access.Granted.String()) && answer != now[i] {
				t.Errorf("%s: a token comes in that must not: got %q, want %q", what, answer, now[i])
			}
		}
		outcome = unlikeBoth
		if users := c.len(latest); s.Directory().Len() != users {
			t.Errorf("%s: half a directory: got %d service users, want %d", what, s.Directory().Len(), users)
		}
	case s.Directory().Revision() == latest:
		outcome = asItIs
	default:
		outcome = asItWas
	}
	// It can be worked on, or says that it cannot.
	_, _, _ = s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "after"}}, &Token{})
	return outcome
}

func (c *chronicle) len(revision int64) (n int) {
	mustDo(second(fmt.Sscanf(c.states[revision].text, "revision %d users %d", new(int64), &n)))
	return n
}

// tally counts outcomes, and fails the test at one that is not allowed.
type tally map[string]int

func (n tally) add(t testing.TB, what, got string, allowed ...string) {
	t.Helper()
	n[got]++
	if !slices.Contains(allowed, got) {
		t.Errorf("%s: got %s, want %v", what, got, allowed)
	}
}

func (n tally) String() string {
	var parts []string
	for _, outcome := range slices.Sorted(maps.Keys(n)) {
		parts = append(parts, fmt.Sprintf("%s %d times", outcome, n[outcome]))
	}
	return strings.Join(parts, ", ")
}

// change is files with one of them damaged.
func change(files map[string][]byte, name string, damage func([]byte) []byte) map[string][]byte {
	next := maps.Clone(files)
	if content := damage(slices.Clone(files[name])); content == nil {
		delete(next, name)
	} else {
		next[name] = content
	}
	return next
}

const pageSize = 4096

// A store that is damaged is refused, or opens with what it was at a revision;
// only a byte inside of a value can change what nobody can tell.
func TestDamaged(t *testing.T) {
	pgtest.SQLiteOnly(t, "the test damages files")
	t.Parallel()
	c := newChronicle(t)
	draw := random(t)
	atClose, atEnd := c.revision(t, c.closed), c.revision(t, c.open)
	flip := func(at int, with byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= with; return b }
	}
	anywhere := func(b []byte) (int, byte) { return draw.IntN(len(b)), byte(1 + draw.IntN(255)) }

	for _, row := range []struct {
		name, file string
		files      map[string][]byte
		latest     int64
		allowed    []string
	}{
		{"database, closed", "store.db", c.closed, atClose, []string{refused, asItIs, unlikeBoth}},
		{"database, with a log", "store.db", c.open, atEnd, []string{refused, asItIs, unlikeBoth}},
		{"log", "store.db-wal", c.open, atEnd, []string{refused, asItIs, asItWas}},
		{"index of the log", "store.db-shm", c.open, atEnd, []string{asItIs}},
	} {
		content, found := row.files[row.file], make(tally)
		for range *flips {
			at, with := anywhere(content)
			what := fmt.Sprintf("%s, byte %d ^ %#02x", row.name, at, with)
			found.add(t, what, c.outcome(t, what, change(row.files, row.file, flip(at, with)), row.latest), row.allowed...)
		}
		t.Logf("%s: a byte of %d: %s", row.name, len(content), found)
		found = make(tally)
		for n := range *flips {
			length := draw.IntN(len(content))
			if n%2 == 0 { // at the end of a page, or of a frame of the log
				length = pageSize * draw.IntN(len(content)/pageSize+1)
				if row.file == "store.db-wal" {
					length = 32 + (pageSize+24)*draw.IntN((len(content)-32)/(pageSize+24)+1)
				}
			}
			length = min(length, len(content)-1)
			what := fmt.Sprintf("%s, cut after %d of %d", row.name, length, len(content))
			allowed := slices.DeleteFunc(slices.Clone(row.allowed), func(s string) bool { return s == unlikeBoth })
			found.add(t, what, c.outcome(t, what, change(row.files, row.file, func(b []byte) []byte { return b[:length] }), row.latest), allowed...)
		}
		t.Logf("%s: cut: %s", row.name, found)
	}

	for _, row := range []struct {
		name    string
		files   map[string][]byte
		latest  int64
		allowed []string
	}{
		{"garbage for a header", change(c.closed, "store.db", func(b []byte) []byte { copy(b, "garbage garbage garbage"); return b }), atClose, []string{refused}},
		{"garbage for a header, with a log", change(c.open, "store.db", func(b []byte) []byte { copy(b, "garbage garbage garbage"); return b }), atEnd, []string{refused, asItIs}},
		{"nothing", change(c.closed, "store.db", func([]byte) []byte { return []byte{} }), atClose, []string{refused}},
		{"nothing, with a log", change(c.open, "store.db", func([]byte) []byte { return []byte{} }), atEnd, []string{refused}},
		{"zeros", change(c.closed, "store.db", func(b []byte) []byte { clear(b); return b }), atClose, []string{refused}},
		{"no database, with a log", change(c.open, "store.db", func([]byte) []byte { return nil }), atEnd, []string{refused}},
		{"no log", change(c.open, "store.db-wal", func([]byte) []byte { return nil }), atEnd, []string{refused, asItWas}},
		{"an empty log", change(c.open, "store.db-wal", func([]byte) []byte { return []byte{} }), atEnd, []string{refused, asItWas}},
		{"no index", change(c.open, "store.db-shm", func([]byte) []byte { return nil }), atEnd, []string{asItIs}},
		{"an earlier database under a later log", change(c.open, "store.db", func([]byte) []byte { return c.closed["store.db"] }), atEnd, []string{refused, asItIs, asItWas}},
		{"two halves", change(c.closed, "store.db", func(b []byte) []byte { copy(b[len(b)/2/pageSize*pageSize:], make([]byte, len(b))); return b }), atClose, []string{refused}},
		{"twice", change(c.closed, "store.db", func(b []byte) []byte { return append(b, b...) }), atClose, []string{refused, asItIs}},
	} {
		found := make(tally)
		found.add(t, row.name, c.outcome(t, row.name, row.files, row.latest), row.allowed...)
		t.Logf("%s: %s", row.name, found)
	}
}

// Under a running store anything may become of the files: requests go on from
// what was read last, and when they are taken away or emptied it says so and
// refuses changes until they are back. What others write into them SQLite may not
// see for as long as it answers out of the log and of what it remembers, and when it
// has seen it, it may remember that.
func TestDamagedUnderfoot(t *testing.T) {
	pgtest.SQLiteOnly(t, "the test damages files")
	t.Parallel()
	aside := func(suffixes ...string) func(path string, old map[string][]byte) {
		return func(path string, _ map[string][]byte) {
			for _, suffix := range suffixes {
				mustDo(os.Rename(path+suffix, path+suffix+".aside"))
			}
		}
	}
	inPlace := func(suffix string, damage func(old, now []byte) []byte) func(path string, old map[string][]byte) {
		return func(path string, old map[string][]byte) {
			write(path+suffix, damage(old["store.db"+suffix], must(os.ReadFile(path+suffix))))
		}
	}
	nothing := func(_, _ []byte) []byte { return nil }
	garbage := func(_, now []byte) []byte { return []byte(strings.Repeat("garbage ", len(now)/8)) }
	exchanged := func(suffix string) func(path string, old map[string][]byte) {
		return func(path string, old map[string][]byte) {
			content := must(os.ReadFile(path + suffix))
			aside(suffix)(path, old)
			write(path+suffix, content)
		}
	}
	for _, row := range []struct {
		name   string
		damage func(path string, old map[string][]byte)
		seen   bool // at once
		lost   bool // putting it back is not enough, it takes a new start
	}{
		{"database taken away", aside(""), true, false},
		{"database emptied", inPlace("", nothing), true, true},
		{"database cut", inPlace("", func(_, now []byte) []byte { return now[:pageSize] }), false, true},
		{"garbage written into the database", inPlace("", garbage), false, true},
		{"older copy written into the database", inPlace("", func(old, _ []byte) []byte { return old }), false, true},
		{"log taken away", aside("-wal"), true, false},
		{"log exchanged for a copy", exchanged("-wal"), true, false},
		{"log emptied", inPlace("-wal", nothing), false, true},
		{"garbage written into the log", inPlace("-wal", garbage), false, true},
		{"index taken away", aside("-shm"), true, false},
		{"index exchanged for a copy", exchanged("-shm"), true, false},
		{"index emptied", inPlace("-shm", nothing), false, true},
		{"garbage written into the index", inPlace("-shm", garbage), false, true},
		{"all taken away", aside("", "-wal", "-shm"), true, false},
		{"older copy in the place of all", func(path string, old map[string][]byte) {
			aside("", "-wal", "-shm")(path, old)
			write(path, old["store.db"])
		}, true, false},
	} {
		for _, logged := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, changes in the log %t", row.name, logged), func(t *testing.T) {
				t.Parallel()
				w := &world{path: place(t)}
				w.Store = must(Open(ctx, w.path, Options{Poll: time.Millisecond}))
				defer w.Close() // it may fail when there is nothing to write the log into
				w.readers = addGroup(w.Store, "readers", "allow GET /v1/{x}")
				w.user, w.token = addUser(w.Store, "billing-sync", w.readers.ID)
				stays, token := addUser(w.Store, "stays", w.readers.ID)
				checkpoint := func() {
					mustDo(second(w.write.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)))
				}
				checkpoint()
				old := filesAt(t, w.path)
				mustDo(w.revoke(ctx, Local, w.user.ID, w.token.ID))
				if !logged {
					checkpoint()
				}
				// A connection that is opened just then would make a new log.
				eventually(t, "both connections of the watcher", func() bool { return w.read.Stats().OpenConnections >= 2 && onSQLite(w.Store).logged.Load() != nil })
				answers := func(when string) {
					t.Helper()
					if got := probe(w.Store, stays.ID, token.Secret, "GET /v1/x"); got != access.Granted {
						t.Errorf("%s: a token: got %v, want granted", when, got)
					}
					if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.TokenRevoked {
						t.Errorf("%s: a revoked token: got %v, want token_revoked", when, got)
					}
				}
				row.damage(w.path, old)
				answers("damaged")
				if row.seen {
					eventually(t, "a fault", func() bool { return w.Fault() != "" })
				}
				_, _, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "after"}}, nil)
				if row.seen && err == nil {
					t.Error("a change: got no error")
				}
				answers("after a change")
				if row.lost {
					return
				}
				// Connections that are opened meanwhile have the wrong files, and nobody may get one later.
				var conns []*sql.Conn
				for range maxReading - 1 { // the watcher has one
					conn, err := w.read.Conn(ctx)
					if err != nil {
						break // there is nothing to open
					}
					_, _ = conn.ExecContext(ctx, `SELECT COUNT(*) FROM tokens`) // opens them
					conns = append(conns, conn)
				}
				for _, conn := range conns {
					mustDo(conn.Close())
				}
				for _, suffix := range []string{"", "-wal", "-shm"} {
					_ = os.Rename(w.path+suffix+".aside", w.path+suffix) // those that are
				}
				mended(t, w.Store)
				answers("mended")
				must(w.CreateToken(ctx, Local, stays.ID, Token{}))
				whole(t, w.Store)
				if err := onSQLite(w.Store).logInPlace(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// write writes into a file as "cp" does: it stays the same file.
func write(path string, content []byte) {
	f := must(os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600))
	must(f.Write(content))
	mustDo(f.Close())
}
