//go:build unix

package store

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// server is the user, and the group, that the unprivileged server of a test has.
const server = 23456

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away; run the tests as root too")
	}
}

// owners lists the files beside a store, itself included, each with its owner.
func owners(path string) (list []string) {
	for _, entry := range must(os.ReadDir(filepath.Dir(path))) {
		stat := must(entry.Info()).Sys().(*syscall.Stat_t)
		list = append(list, fmt.Sprintf("%s %d:%d %o", entry.Name(), stat.Uid, stat.Gid, stat.Mode&0o7777))
	}
	return list
}

// given returns what the files beside a store are when all are the server's.
func given(names ...string) (list []string) {
	for _, name := range names {
		list = append(list, fmt.Sprintf("%s %d:%d 600", name, server, server))
	}
	return list
}

// Root leaves nothing beside the store of an unprivileged server that this server
// cannot read.
func TestRootGivesFilesToTheOwner(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	asRoot(t)
	for _, row := range []struct {
		name string
		do   func(t *testing.T, path string)
		want []string
	}{
		{"a change", func(t *testing.T, path string) {
			s := must(Open(ctx, path, Options{}))
			addUser(s, "a")
			if got, want := fmt.Sprint(owners(path)), fmt.Sprint(given("store.db", "store.db-shm", "store.db-wal", "store.db.seen")); got != want {
				t.Errorf("while it is open: got %s, want %s", got, want)
			}
			mustDo(s.Close())
		}, given("store.db", "store.db.seen")},
		{"a note that root left", func(t *testing.T, path string) {
			mustDo(os.Chown(path+".seen", 0, 0))
			mustDo(must(Open(ctx, path, Options{})).Close())
		}, given("store.db", "store.db.seen")},
		{"a note that root left, accepted", func(t *testing.T, path string) {
			mustDo(os.Chown(path+".seen", 0, 0))
			mustDo(AcceptOlder(ctx, path, must(Holds(ctx, path)).Clock))
		}, given("store.db", "store.db.seen")},
		{"a store of an earlier version", func(t *testing.T, path string) {
			mustDo(os.Remove(path + ".seen"))
			mustDo(os.WriteFile(path, must(os.ReadFile(schema3)), 0o600))
			mustDo(must(Open(ctx, path, Options{})).Close())
		}, given("store.db", "store.db.seen", "store.db.v3-backup")},
		{"a new store in the place of one that is lost", func(t *testing.T, path string) {
			mustDo(os.Remove(path))
			mustDo(os.Remove(path + ".seen"))
			if made, err := Create(ctx, path, newClock().Now()); !made {
				t.Errorf("got %v, want it made", err)
			}
			mustDo(must(Open(ctx, path, Options{Existing: true})).Close())
		}, given("store.db", "store.db.seen")},
		{"a restore in the place of one that is damaged", func(t *testing.T, path string) {
			copied := restorable(t)
			mustDo(os.WriteFile(path, []byte("damaged"), 0o600))
			_, _, err := RestoreFile(ctx, path, alice, copied, Options{}, true)
			mustDo(err)
		}, given("store.db", "store.db.aside", "store.db.aside.seen")},
		{"a restore in the place of one that is lost", func(t *testing.T, path string) {
			mustDo(os.Chmod(filepath.Dir(path), 0o777))
			mustDo(os.Chown(filepath.Dir(path), 0, 0)) // the note tells
			mustDo(os.Remove(path))
			_, _, err := RestoreFile(ctx, path, alice, restorable(t), Options{}, false)
			mustDo(err)
		}, given("store.db", "store.db.aside.seen")},
		{"a restore", func(t *testing.T, path string) {
			_, _, err := RestoreFile(ctx, path, alice, restorable(t), Options{}, false)
			mustDo(err)
			mustDo(must(Open(ctx, path, Options{})).Close())
		}, given("store.db", "store.db.seen")},
		{"a symbolic link to it", func(t *testing.T, path string) {
			link := place(t)
			mustDo(os.Symlink(path, link))
			s := must(Open(ctx, link, Options{}))
			addUser(s, "a")
			mustDo(s.Close())
		}, given("store.db", "store.db.seen")},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := place(t)
			mustDo(must(Open(ctx, path, Options{})).Close())
			for _, file := range []string{filepath.Dir(path), path, path + ".seen"} {
				mustDo(os.Chown(file, server, server))
			}
			row.do(t, path)
			if got, want := fmt.Sprint(owners(path)), fmt.Sprint(row.want); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// restorable returns a backup that every new store takes.
func restorable(t *testing.T) io.Reader {
	s := open(t, place(t), Options{})
	addUser(s, "restored")
	return bytes.NewReader(must(io.ReadAll(must(s.Backup(ctx, alice)))))
}

// A note that the server cannot read names the command that helps.
func TestNoteOfRoot(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	asRoot(t)
	path, opts := copyOfSchema(t, schema3)
	mustDo(os.Chown(path, server, server))
	core, logs := observer.New(zap.WarnLevel)
	opts.Log = zap.New(core)
	e := &sqliteEngine{files: files{path: path}, store: &Store{log: opts.Log}}
	advice := fmt.Sprintf("chown %d:%d %s.seen && chmod 600 %[3]s.seen", server, server, path)
	denied := &os.PathError{Op: "open", Path: path + ".seen", Err: syscall.EACCES}
	if err := e.unread(ctx, unopened(t, path), denied); err != nil {
		t.Errorf("a store of an earlier version: got %v, want a warning", err)
	}
	if told := logs.FilterField(zap.String("advice", "run: "+advice)).Len(); told != 1 {
		t.Errorf("lines of the log with the advice: got %d, want 1: %v", told, logs.All())
	}
	mustDo(must(Open(ctx, path, opts)).Close())
	if err := e.unread(ctx, unopened(t, path), denied); err == nil || !strings.Contains(err.Error(), advice) {
		t.Errorf("got %v, want a refusal with %q", err, advice)
	}
}
