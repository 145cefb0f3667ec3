package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// An older copy in the place of a store is refused at a start until it is accepted.
func TestOlderCopyIsRefused(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note is beside the file")
	for _, row := range []struct {
		name string
		do   func(t *testing.T, w *world, copied string) // puts something in the place of the closed store
		want string                                      // what the refusal says; "" is none
	}{
		{"the same", func(*testing.T, *world, string) {}, ""},
		{"an older copy", func(t *testing.T, w *world, copied string) { mustDo(os.Rename(copied, w.path)) }, "the store holds revision 3, and revision 5 was in force before: it is an older copy, or its log was lost"},
		{"an older copy that was changed elsewhere", func(t *testing.T, w *world, copied string) {
			s := must(Open(ctx, copied, w.opts))
			for i := range 4 {
				addUser(s, fmt.Sprint("other", i))
			}
			mustDo(s.Close())
			mustDo(os.Rename(copied, w.path))
		}, "it is an older copy that was changed since"},
		{"another store", func(t *testing.T, w *world, _ string) {
			mustDo(os.Remove(w.path))
			mustDo(must(Open(ctx, w.path+"2", Options{})).Close())
			mustDo(os.Rename(w.path+"2", w.path))
		}, ""},
		{"a new copy", func(t *testing.T, w *world, _ string) { mustDo(os.WriteFile(w.path, readFile(w.path), 0o600)) }, ""},
		{"no note", func(t *testing.T, w *world, copied string) {
			mustDo(os.Remove(w.path + ".seen"))
			mustDo(os.Rename(copied, w.path))
		}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			copied := backup(t, w.Store)
			mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
			addUser(w.Store, "later")
			mustDo(w.Close())
			if mode := must(os.Stat(w.path + ".seen")).Mode(); mode != 0o600 {
				t.Errorf("mode of the note: got %v, want -rw-------", mode)
			}
			row.do(t, w, copied)
			file, note := readFile(w.path), readFile(w.path+".seen")
			s, err := Open(ctx, w.path, w.opts)
			if row.want == "" {
				if err != nil {
					t.Fatalf("got %v, want it opened", err)
				}
				mustDo(s.Close())
				return
			}
			if err == nil {
				s.Close()
				t.Fatal("opened; want an error")
			}
			advice := "if you have restored it on purpose, run: caddy service-user accept-older --store " + w.path
			if !errors.Is(err, ErrOlder) || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), advice) {
				t.Errorf("got %v, want %q and %q", err, row.want, advice)
			}
			if string(readFile(w.path)) != string(file) || string(readFile(w.path+".seen")) != string(note) {
				t.Error("the refusal has changed the database or the note")
			}
			mustDo(AcceptOlder(ctx, w.path, w.clock.Now()))
			for _, name := range []string{"x", "y"} {
				s = open(t, w.path, w.opts)
				if got := probe(s, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
					t.Errorf("accepted: got %v, want granted", got)
				}
				addUser(s, name)
				mustDo(s.Close())
			}
		})
	}
}

// A database without its log has lost what was in it.
func TestLostLogIsNoticed(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note is beside the file")
	w := newWorld(t, Options{})
	mustDo(must(Open(ctx, w.path, w.opts)).Close()) // a note
	mustDo(must(readMark(ctx, w.read)).write(w.path))
	alone := place(t)
	mustDo(os.WriteFile(alone, readFile(w.path), 0o600))
	mustDo(os.WriteFile(alone+".seen", readFile(w.path+".seen"), 0o600))
	if s, err := Open(ctx, alone, w.opts); !errors.Is(err, ErrOlder) {
		if err == nil {
			s.Close()
		}
		t.Errorf("got %v, want that it is older", err)
	}
}

// Another store starts; the log names both.
func TestAnotherStoreIsNamed(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note is beside the file")
	path := place(t)
	mustDo(must(Open(ctx, path, Options{})).Close())
	before := Mark{Instance: "store_before", Revision: 57}
	mustDo(before.write(path))
	core, logs := observer.New(zap.WarnLevel)
	s := open(t, path, Options{Log: zap.New(core)})
	told := logs.FilterMessageSnippet("is not the one that was at this path").FilterField(zap.String("before", "store_before")).FilterField(zap.String("instance", onSQLite(s).progress.instance))
	if told.Len() != 1 {
		t.Errorf("lines of the log that name both: got %d, want 1; %v", told.Len(), logs.All())
	}
	mustDo(s.Close())
	if got := must(Seen(path)); got.Instance != onSQLite(s).progress.instance || got.Revision != 0 {
		t.Errorf("the note: got %+v, want the one of the new store", got)
	}
}

// A note that cannot be read refuses the start: an older copy would not be noticed.
func TestUnreadableNote(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note is beside the file")
	for name, spoil := range map[string]func(note string){
		"cut":         func(note string) { mustDo(os.WriteFile(note, readFile(note)[:20], 0o600)) },
		"empty":       func(note string) { mustDo(os.Truncate(note, 0)) },
		"null":        func(note string) { mustDo(os.WriteFile(note, []byte("null"), 0o600)) },
		"of nothing":  func(note string) { mustDo(os.WriteFile(note, []byte("{}"), 0o600)) },
		"a directory": func(note string) { mustDo(os.Remove(note)); mustDo(os.Mkdir(note, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := place(t)
			mustDo(must(Open(ctx, path, Options{})).Close())
			spoil(path + ".seen")
			before := readFile(path)
			s, err := Open(ctx, path, Options{})
			if err == nil {
				s.Close()
				t.Fatal("opened; want an error")
			}
			for _, part := range []string{path + ".seen", "an older copy of the store would not be noticed", "run: caddy service-user accept-older --store " + path} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("got %v, want it to say %q", err, part)
				}
			}
			same(t, "the database", string(readFile(path)), string(before))
			if name == "a directory" {
				mustDo(os.Remove(path + ".seen"))
			}
			mustDo(AcceptOlder(ctx, path, time.Now()))
			open(t, path, Options{})
		})
	}
}

// The first start after an upgrade warns of a note that cannot be read, and writes a
// new one; the next start relies on it.
func TestUnreadableNoteOfAnEarlierVersion(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note is beside the file")
	path, opts := copyOfSchema(t, schema3)
	mustDo(os.WriteFile(path+".seen", []byte("{"), 0o600))
	core, logs := observer.New(zap.WarnLevel)
	opts.Log = zap.New(core)
	mustDo(must(Open(ctx, path, opts)).Close())
	if got := logs.FilterMessageSnippet("this start does not notice an older copy").Len(); got != 1 {
		t.Errorf("lines of the log about the note: got %d, want 1: %v", got, logs.All())
	}
	if m, err := Seen(path); err != nil || m.Instance == "" {
		t.Errorf("the note: got %+v, %v", m, err)
	}
	mustDo(os.WriteFile(path+".seen", []byte("{"), 0o600))
	if s, err := Open(ctx, path, opts); err == nil {
		s.Close()
		t.Error("the second start: opened, want an error")
	}
}

// While the database is not what is in force nothing is noted: an operator may be
// accepting another one.
func TestNothingIsNotedWithAFault(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note is beside the file")
	w := newWorld(t, Options{})
	old := backup(t, w.Store)
	addUser(w.Store, "later")
	restore(t, w.path, old)
	eventually(t, "a fault", func() bool { return w.Fault() != "" })
	mustDo(AcceptOlder(ctx, w.path, w.clock.Now()))
	mustDo(w.Close())
	if got := must(Seen(w.path)).Revision; got != 3 {
		t.Errorf("revision of the note: got %d, want the accepted one, 3", got)
	}
	open(t, w.path, w.opts)
}

// Of two processes the one that has come further is noted.
func TestNoteOnlyRises(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note is beside the file")
	w := newWorld(t, Options{})
	mustDo(w.Close())
	m := must(Seen(w.path))
	m.Revision, m.AuditSeq, m.AuditHash, m.Clock = 57, 70, "hash", m.Clock.Add(time.Hour)
	s := must(Open(ctx, w.path, w.opts))
	mustDo(m.write(w.path))
	addUser(s, "b")
	mustDo(s.Close())
	if got := must(Seen(w.path)); got != m {
		t.Errorf("the note: got %+v, want %+v", got, m)
	}
}

// What cannot be noted leaves nothing behind.
func TestMarkThatCannotBeWritten(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note is beside the file")
	path := place(t)
	m := Mark{Instance: "store_x", Clock: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)}
	if err := m.write(path); err == nil {
		t.Error("the year 10000: got no error")
	}
	if left := must(os.ReadDir(filepath.Dir(path))); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
