package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// backupTo backs a store up into a file.
func backupTo(t testing.TB, s *Store) (path string, b Contents) {
	t.Helper()
	copied := must(s.Backup(ctx, alice))
	text := must(io.ReadAll(copied))
	if copied.Size != int64(len(text)) || copied.SHA256 != sha256.Sum256(text) {
		t.Errorf("the backup: got %d bytes and another digest, or not %d", len(text), copied.Size)
	}
	mustDo(copied.Close())
	path = place(t)
	mustDo(os.WriteFile(path, text, 0o600))
	return path, copied.Contents
}

// restoreFrom closes a store and restores a backup into its file.
func restoreFrom(s *Store, path string) (RestoreReport, error) {
	mustDo(s.Close())
	file := must(os.Open(path))
	defer file.Close()
	r, aside, err := RestoreFile(ctx, s.path, alice, file, s.opts, false)
	if err == nil && aside != "" {
		err = fmt.Errorf("the old store was moved to %s", aside)
	}
	return r, err
}

// restore restores a backup into the store, and opens it again.
func (w *world) restore(t testing.TB, path string) (RestoreReport, error) {
	t.Helper()
	r, err := restoreFrom(w.Store, path)
	w.Store = open(t, w.path, w.opts)
	return r, err
}

// rows is every row of every table but for what each store, and each change, has of
// its own.
func rows(t tb, s *Store) string {
	t.Helper()
	return dumpTables(s.read, "service_users", "tokens", "permission_groups", "rules", "permissions", "group_permissions", "members")
}

// withoutRevision is what a directory says, but for its revision.
func withoutRevision(t tb, s *Store) string {
	t.Helper()
	_, text, _ := strings.Cut(dirText(t, s), " users ")
	return text
}

// well fails the test when a check finds something.
func well(t tb, what string, report CheckReport, err error) {
	t.Helper()
	if err != nil || len(report.Findings) > 0 {
		t.Errorf("%s: got %q, %v, want no finding", what, report.Findings, err)
	}
}

// tidy fails the test when something lies beside the database that does not belong
// there.
func tidy(t tb, path string) {
	t.Helper()
	for _, e := range must(os.ReadDir(filepath.Dir(path))) {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("beside the database: got %s, want nothing", e.Name())
		}
	}
}

// A backup is a state between two changes, however many there are at once.
func TestBackupWhileChanging(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	w := newWorld(t, Options{})
	var busy sync.WaitGroup
	stop := make(chan struct{})
	for worker := range 3 {
		busy.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				u, k := addUser(w.Store, fmt.Sprint("w", worker, "-", i), w.readers.ID)
				mustDo(w.revoke(ctx, Local, u.ID, k.ID))
				if i%3 == 0 {
					mustDo(w.deleteUser(ctx, Local, u.ID, 0))
				}
			}
		})
	}
	var paths []string
	var backups []Contents
	for range 5 {
		path, b := backupTo(t, w.Store)
		paths, backups = append(paths, path), append(backups, b)
	}
	close(stop)
	busy.Wait()
	events := trail(t, w.Store)
	for i, path := range paths {
		b := backups[i]
		report, err := CheckFile(ctx, path, w.opts, b.Head)
		well(t, "a backup", report, err)
		if report.Contents != b {
			t.Errorf("contents: got %+v, want %+v", report.Contents, b)
		}
		if got := events[b.Head.Seq-1].Hash; got != b.Head.Hash {
			t.Errorf("the head of the backup: got %s, want that of record %d, %s", b.Head.Hash, b.Head.Seq, got)
		}
		users, changes := int64(0), make(map[string]bool)
		for _, e := range events[:b.Head.Seq] {
			changes[e.Operation+e.Resource] = true
			switch e.Action {
			case "service_user.create":
				users++
			case "service_user.delete":
				users--
			}
		}
		if b.ServiceUsers != users {
			t.Errorf("service users at record %d: got %d, want %d", b.Head.Seq, b.ServiceUsers, users)
		}
		if i > 0 && b.Revision <= backups[i-1].Revision {
			t.Errorf("revision: got %d after %d", b.Revision, backups[i-1].Revision)
		}
	}
	report, err := w.Check(ctx, alice, backups[0].Head)
	well(t, "the running store", report, err)
	mustDo(w.Close()) // a note that is just being written is a temporary file
	tidy(t, w.path)
}

// A restore brings back the state of the backup, and loses no record of the changes since. A process
// that has the store open keeps it from being restored.
func TestRestore(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	t.Parallel()
	w := newWorld(t, Options{})
	must(w.LoadPermissions(ctx, alice, []Permission{{Key: "a.b", Name: "A", Rules: rules("allow GET /v3")}}, false))
	mustDo(w.GrantPermission(ctx, alice, w.readers.ID, "a.b"))
	paused, _ := addUser(w.Store, "paused", w.readers.ID)
	seenRows, seen := rows(t, w.Store), withoutRevision(t, w.Store)
	path, backup := backupTo(t, w.Store)

	mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
	must(w.UpdateServiceUser(ctx, alice, paused.ID, 0, func(u *ServiceUser) error { u.Active = false; return nil }))
	later, laterToken := addUser(w.Store, "later", w.readers.ID)
	mustDo(w.DeleteGroup(ctx, alice, w.closers.ID, 0))
	must(w.UpdateGroup(ctx, alice, w.readers.ID, 0, func(g *Group) error { g.Rules = rules("allow * /{rest...}"); return nil }))
	before, changed := trail(t, w.Store), dump(t, w.Store)
	revision := w.Directory().Revision()
	instance := must(readMark(ctx, w.read)).Instance

	other := open(t, w.path, w.opts)
	if _, err := restoreFrom(w.Store, path); kind(err) != "conflict" || !strings.Contains(err.Error(), "another process has") {
		t.Errorf("a store that is open elsewhere: got %v, want a conflict", err)
	}
	same(t, "a store that is open elsewhere", dump(t, other), changed)
	mustDo(other.Close())

	got, err := w.restore(t, path)
	if err != nil {
		t.Fatal(err)
	}
	events := trail(t, w.Store)
	last := events[len(events)-1]
	want := RestoreReport{
		Revision: revision + 1, ServiceUsers: 2, Head: AuditHead{last.Seq, last.Hash}.String(),
		BackupRevision: backup.Revision, RevisionBefore: revision,
		LostChanges: int64(len(before)) - backup.Head.Seq, RevivedTokens: 2,
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if w.Directory().Revision() != got.Revision || w.Fault() != "" {
		t.Errorf("got revision %d and the fault %q, want %d", w.Directory().Revision(), w.Fault(), got.Revision)
	}
	if got := must(readMark(ctx, w.read)).Instance; got != instance {
		t.Errorf("instance: got %s, want that of before, %s", got, instance)
	}
	same(t, "rows", rows(t, w.Store), seenRows)
	same(t, "directory", withoutRevision(t, w.Store), seen)
	if why := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); why != access.Granted {
		t.Errorf("a token that was revoked since: got %v, want granted", why)
	}
	if why := probe(w.Store, later.ID, laterToken.Secret, "GET /v1/x"); why == access.Granted {
		t.Errorf("a service user that was made since: got %v, want a refusal", why)
	}
	if len(events) != len(before)+1 || last.Action != "store.restore" || last.Actor != alice.Name {
		t.Errorf("audit trail: got %d records, the last %+v, want %d and the restore", len(events), last, len(before)+1)
	}
	if !slices.EqualFunc(events[:len(before)], before, func(a, b AuditEvent) bool { return a.Hash == b.Hash }) {
		t.Error("audit trail: got other records than before")
	}
	after := fmt.Sprintf(`{"revision":%d,"service_users":2,"head":"%v","backup_revision":%d}`, revision+1, backup.Head, backup.Revision)
	if string(last.After) != after {
		t.Errorf("after: got %s, want %s", last.After, after)
	}
	was := fmt.Sprintf(`{"revision":%d,"service_users":3,"head":"%d:%s"}`, revision, len(before), before[len(before)-1].Hash)
	if string(last.Before) != was {
		t.Errorf("before: got %s, want %s", last.Before, was)
	}

	// Everything continues from there, and once more.
	mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
	must(w.restore(t, path))
	must(w.restore(t, path))
	if got := w.Directory().Revision(); got != revision+4 {
		t.Errorf("revision: got %d, want %d", got, revision+4)
	}
	same(t, "directory", withoutRevision(t, w.Store), seen)
	report, err := w.Check(ctx, alice, backup.Head)
	well(t, "the restored store", report, err)
	tidy(t, w.path)
}

// A running store whose file gets the content of a restored copy of it reads all of its rows again:
// the rows of a backup have old revisions.
func TestRestoredUnderfoot(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	w := newWorld(t, Options{})
	path, _ := backupTo(t, w.Store)
	mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
	later, laterToken := addUser(w.Store, "later", w.readers.ID)
	copied := open(t, backup(t, w.Store), w.opts)
	r := must(restoreFrom(copied, path))
	restore(t, w.path, copied.path)
	eventually(t, "the restored rows", func() bool { return w.Directory().Revision() == r.Revision })
	if why := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); why != access.Granted {
		t.Errorf("a token that was revoked since: got %v, want granted", why)
	}
	if why := probe(w.Store, later.ID, laterToken.Secret, "GET /v1/x"); why == access.Granted {
		t.Errorf("a service user that was made since: got %v, want a refusal", why)
	}
	same(t, "directory", dirText(t, w.Store), dirText(t, open(t, w.path, w.opts)))
}

// A running store whose file was replaced by a restored one keeps its directory, and says so.
func TestRestoredInPlaceOfAnOpenOne(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	w := newWorld(t, Options{})
	path, _ := backupTo(t, w.Store)
	mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
	to := place(t)
	must(first(RestoreFile(ctx, to, alice, must(os.Open(path)), w.opts, false)))
	mustDo(os.Rename(to, w.path))
	eventually(t, "a fault", func() bool { return strings.Contains(w.Fault(), "another file has taken its place") })
	if why := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); why != access.TokenRevoked {
		t.Errorf("a request: got %v, want token_revoked", why)
	}
	if err := w.AddMember(ctx, alice, w.closers.ID, w.user.ID); !errors.Is(err, errGone) {
		t.Errorf("a change: got %v, want that the database was taken away", err)
	}
}

// A backup that is newer than the store is restored as well: the store was put back to an older file
// before. A store that was never changed takes any backup.
func TestRestoreAhead(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	w := newWorld(t, Options{})
	old := backup(t, w.Store)
	addUser(w.Store, "later", w.readers.ID)
	seen := withoutRevision(t, w.Store)
	path, b := backupTo(t, w.Store)
	for name, s := range map[string]*Store{"older": open(t, old, w.opts), "new": open(t, place(t), w.opts)} {
		instance := must(readMark(ctx, s.read)).Instance
		r, err := restoreFrom(s, path)
		if err != nil || r.LostChanges != 0 || r.Revision <= b.Revision {
			t.Errorf("%s: got %+v, %v, want a higher revision than %d and nothing lost", name, r, err, b.Revision)
		}
		s = open(t, s.path, w.opts)
		if got := must(readMark(ctx, s.read)).Instance; got != instance {
			t.Errorf("%s: instance: got %s, want that of before, %s", name, got, instance)
		}
		same(t, name, withoutRevision(t, s), seen)
		if events := trail(t, s); int64(len(events)) != b.Head.Seq+1 {
			t.Errorf("%s: audit trail: got %d records, want those of the backup and one more, %d", name, len(events), b.Head.Seq+1)
		}
	}

	to := place(t)
	r, _, err := RestoreFile(ctx, to, alice, must(os.Open(path)), w.opts, false)
	if err != nil || r.Revision != b.Revision+1 || r.ServiceUsers != 2 {
		t.Errorf("no store: got %+v, %v, want revision %d", r, err, b.Revision+1)
	}
	moved := open(t, to, w.opts)
	same(t, "no store", withoutRevision(t, moved), seen)
	if got, want := moved.AuditHead().String(), r.Head; got != want || moved.Directory().Revision() != r.Revision {
		t.Errorf("no store: got head %v at %d, want %v at %d", got, moved.Directory().Revision(), want, r.Revision)
	}
	tidy(t, to)
}

// A database that cannot be opened makes room for a backup, and is kept. One that
// somebody has open does not.
func TestRestoreInPlaceOf(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	t.Parallel()
	w := newWorld(t, Options{})
	path, b := backupTo(t, w.Store)
	seen := withoutRevision(t, w.Store)
	for i, row := range badBackups {
		bad := place(t)
		mustDo(os.WriteFile(bad, must(os.ReadFile(path)), 0o600))
		row.damage(bad)
		mustDo(os.WriteFile(bad+".seen", nil, 0o600))
		if s, err := Open(ctx, bad, w.opts); err == nil {
			mustDo(s.Close()) // what a check alone finds
		} else if !CanReplace(err) {
			t.Errorf("%s: %v: got that nothing may replace it", row.name, err)
		}
		damaged := must(os.ReadFile(bad))
		r, aside, err := RestoreFile(ctx, bad, alice, must(os.Open(path)), w.opts, true)
		if err != nil || aside != bad+".aside" || r.Revision != b.Revision+1 {
			t.Errorf("%s: got %+v, %q, %v, want it restored, and the other aside", row.name, r, aside, err)
			continue
		}
		if !bytes.Equal(damaged, must(os.ReadFile(aside))) || len(filesOf(aside)) < 2 {
			t.Errorf("%s: aside: got another database or only %q", row.name, filesOf(aside))
		}
		report, err := CheckFile(ctx, bad, w.opts, b.Head)
		well(t, row.name, report, err)
		if i == 0 {
			_, again, err := RestoreFile(ctx, bad, alice, must(os.Open(path)), w.opts, true)
			if err != nil || again != bad+".aside-2" {
				t.Errorf("once more: got %q, %v, want it aside as the second", again, err)
			}
			same(t, row.name, withoutRevision(t, open(t, bad, w.opts)), seen)
		}
		tidy(t, bad)
	}
	for _, err := range []error{nil, fmt.Errorf("opening: %w", &os.PathError{Err: os.ErrPermission}), context.DeadlineExceeded} {
		if CanReplace(err) {
			t.Errorf("%v: got that a backup may replace it", err)
		}
	}
	before := dump(t, w.Store)
	if _, _, err := RestoreFile(ctx, w.path, alice, must(os.Open(path)), w.opts, true); kind(err) != "conflict" || !strings.Contains(err.Error(), "has") {
		t.Errorf("a store that is open: got %v, want a conflict", err)
	}
	same(t, "a store that is open", dump(t, w.Store), before)
	mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
}

// A store that was killed leaves a log, which is part of what is moved aside.
func TestRestoreInPlaceOfAKilled(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	w := newWorld(t, Options{})
	path, _ := backupTo(t, w.Store)
	killed := copyOf(t, w.path)
	log := readFile(killed + "-wal")
	if len(log) == 0 {
		t.Fatal("the log is empty; the test shows nothing")
	}
	far := must(readMark(ctx, w.read))
	far.Revision++
	mustDo(far.write(killed))
	if _, err := Open(ctx, killed, w.opts); !errors.Is(err, ErrOlder) {
		t.Fatalf("got %v, want that it is older", err)
	}
	_, aside, err := RestoreFile(ctx, killed, alice, must(os.Open(path)), w.opts, true)
	if err != nil {
		t.Fatalf("got %v, want it restored", err)
	}
	if !bytes.Equal(readFile(aside+"-wal"), log) {
		t.Error("the log aside: got another one than there was")
	}
	mustDo(os.Remove(aside + ".seen"))
	same(t, "rows aside", dump(t, open(t, aside, w.opts)), dump(t, w.Store))
}

// What is left of a store that is gone keeps another one from beginning in its place,
// but not a backup of it.
func TestRestoreInPlaceOfOneThatIsGone(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	w := newWorld(t, Options{})
	path, b := backupTo(t, w.Store)
	for _, suffix := range []string{"-wal", "-shm", ".seen"} {
		gone := place(t)
		mustDo(os.WriteFile(gone+suffix, []byte("{}"), 0o600))
		if _, err := Open(ctx, gone, w.opts); !CanReplace(err) {
			t.Errorf("%s: got %v, want a refusal", suffix, err)
		}
		r, aside, err := RestoreFile(ctx, gone, alice, must(os.Open(path)), w.opts, false)
		if err != nil || aside != gone+".aside" || r.Revision != b.Revision+1 {
			t.Errorf("%s: got %+v, %q, %v, want it restored, and the rest aside", suffix, r, aside, err)
			continue
		}
		same(t, suffix, withoutRevision(t, open(t, gone, w.opts)), withoutRevision(t, w.Store))
	}
}

// An older schema is brought up to date before it is taken.
func TestRestoreOlderSchema(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	t.Parallel()
	path, opts := copyOfSchema1(t)
	before := must(os.ReadFile(path))
	report, err := CheckFile(ctx, path, opts, AuditHead{})
	well(t, "version 1", report, err)
	if report.Schema != 1 || report.ServiceUsers == 0 {
		t.Errorf("got %+v, want schema 1, and its service users", report.Contents)
	}
	if !bytes.Equal(before, must(os.ReadFile(path))) {
		t.Error("the check changed the file")
	}
	upgraded, _ := copyOfSchema1(t)
	going := open(t, upgraded, opts)
	want := withoutRevision(t, going)
	fresh := open(t, place(t), opts)
	must(restoreFrom(fresh, path))
	same(t, "a new store", withoutRevision(t, open(t, fresh.path, opts)), want)
	addUser(going, "later")
	must(restoreFrom(going, path))
	going = open(t, upgraded, opts)
	same(t, "the store that it is of", withoutRevision(t, going), want)
	report, err = going.Check(ctx, alice, AuditHead{})
	well(t, "restored", report, err)
}

// badBackups are files that must not be restored, made out of a good one, with what
// has to be said about them.
var badBackups = []struct {
	name   string
	damage func(path string)
	says   []string
}{
	{"empty", func(path string) { mustDo(os.WriteFile(path, nil, 0o600)) }, []string{"the file is empty"}},
	{"garbage", func(path string) { mustDo(os.WriteFile(path, bytes.Repeat([]byte("no database "), 1000), 0o600)) }, []string{"not a SQLite database"}},
	{"truncated", func(path string) { mustDo(os.Truncate(path, must(os.Stat(path)).Size()/2)) }, []string{"malformed"}},
	{"only the header", func(path string) { mustDo(os.Truncate(path, 100)) }, nil},
	{"a page overwritten", func(path string) {
		file := must(os.OpenFile(path, os.O_WRONLY, 0))
		must(file.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), 3*4096))
		mustDo(file.Close())
	}, []string{"restore a backup"}},
	{"another program's", execute(`PRAGMA application_id = 7`), []string{"another program"}},
	{"newer", execute(fmt.Sprintf(`PRAGMA user_version = %d`, schemaVersion+1)), []string{"newer version"}},
	{"no version", execute(`PRAGMA user_version = 0`), []string{"no schema version"}},
	{"no table", execute(`DROP TABLE members`), []string{"the table members is missing"}},
	{"no column", execute(`ALTER TABLE rules DROP COLUMN description`), []string{"the column rules.description is missing"}},
	{"no index", execute(`DROP INDEX tokens_hash`), []string{"the index tokens_hash is missing"}},
	{"a trigger", execute(`CREATE TRIGGER t AFTER INSERT ON tokens BEGIN DELETE FROM rules; END`), []string{"the trigger t does not belong"}},
	{"a view", execute(`ALTER TABLE members RENAME TO m; CREATE VIEW members AS SELECT * FROM m`), []string{"members"}},
	{"a broken audit trail", execute(`UPDATE audit_events SET actor = 'nobody' WHERE seq = 2`), []string{"record 2: its content was changed"}},
	{"a cut audit trail", execute(`DELETE FROM audit_events WHERE seq > 2`), []string{"record 3: the trail was cut"}},
	{"a gap in the audit trail", execute(`DELETE FROM audit_events WHERE seq = 2`), []string{"record 2: the record is missing"}},
	{"a search of the audit trail that finds nothing", execute(`DELETE FROM audit_subjects WHERE resource_id LIKE 'service\_%' ESCAPE '\'`), []string{"service_", "audit_subjects lacks the record"}},
	{"rules", execute(`UPDATE rules SET path = path || '%'`), []string{"group_", "rule_", "write it decoded"}},
	{"a condition", execute(`UPDATE permission_groups SET member_condition = 'user'`), []string{"group_", `condition "user"`}},
	{"a condition of a rule", execute(`UPDATE rules SET condition = 'nonsense('`), []string{"rule_", `condition "nonsense("`}},
	{"a permission", execute(`INSERT INTO permissions VALUES ('p.q', '', '', '', 0, '["allow"]', 0, '', 0)`), []string{"the permission p.q cannot be enforced"}},
	{"a hash", execute(`UPDATE tokens SET hash = substr(hash, 3)`), []string{"token_", "the hash is damaged"}},
	{"a hash that is none", execute(`UPDATE tokens SET hash = 'zz' || substr(hash, 3)`), []string{"token_", "the hash is damaged"}},
	{"teams", execute(`UPDATE service_users SET teams = '{'`), []string{"service_", `the value "{" is damaged`}},
	{"labels", execute(`UPDATE service_users SET labels = '[]'`), []string{"service_", `the value "[]" is damaged`}},
	{"addresses", execute(`UPDATE tokens SET allowed_ips = '["x"]'`), []string{"token_", "is damaged"}},
	{"figures", execute(`UPDATE tokens SET used_from = ''`), []string{"token_", `the value "" is damaged`}},
	{"a role", execute(`UPDATE service_users SET role = 'king'`), []string{"service_", `role "king"`}},
	{"a mode", execute(`UPDATE permission_groups SET mode = 'sometimes'`), []string{"group_", `mode "sometimes"`}},
	{"a token of nobody", execute(`UPDATE tokens SET service_user_id = 'service_x'`), []string{"of tokens belongs to none of the service_users"}},
	{"a member of nothing", execute(`INSERT INTO members SELECT 'group_x', id, 0 FROM service_users`), []string{"of members belongs to none of the permission_groups"}},
	{"a rule of nothing", execute(`UPDATE rules SET group_id = 'group_x'`), []string{"of rules belongs to none of the permission_groups"}},
	{"a row of the future", execute(`UPDATE service_users SET revision = 1000`), []string{"service_", "service_users.revision holds a value"}},
	{"no meta", execute(`DELETE FROM meta`), []string{"the row of meta cannot be read"}},
	{"two things at once", execute(`UPDATE tokens SET hash = ''; UPDATE service_users SET teams = '{'`), []string{"service_", `the value "{" is damaged`}},
	{"a hash of a token that was revoked long ago", execute(`UPDATE tokens SET hash = 'zz' || substr(hash, 3), revoked_at = 1`), []string{"token_", "tokens.hash holds a value"}},
	{"addresses of a token that was revoked long ago", execute(`UPDATE tokens SET allowed_ips = '{', revoked_at = 1`), []string{"token_", `the value "{" is damaged`}},
	{"teams of a deleted service user", execute(`UPDATE service_users SET teams = '{', deleted_at = 1`), []string{"service_", `the value "{" is damaged`}},
}

func execute(text string) func(string) {
	return func(path string) {
		db := must(sql.Open("sqlite", "file:"+path))
		defer db.Close()
		_, err := db.Exec(text)
		mustDo(err)
	}
}

// A bad backup is refused with every finding, and nothing at all changes.
func TestRestoreRefuses(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	t.Parallel()
	w := newWorld(t, Options{})
	good, backup := backupTo(t, w.Store)
	mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
	seen, seenFiles := dump(t, w.Store), map[string][]byte(nil)
	mustDo(w.Close())
	seenFiles = filesAt(t, w.path)
	for _, row := range badBackups {
		t.Run(row.name, func(t *testing.T) {
			path := place(t)
			mustDo(os.WriteFile(path, must(os.ReadFile(good)), 0o600))
			row.damage(path)
			damaged := filesAt(t, path)
			report, err := CheckFile(ctx, path, w.opts, AuditHead{})
			if err != nil || len(report.Findings) == 0 {
				t.Errorf("the check: got %q, %v, want findings", report.Findings, err)
			}
			if len(row.says) > 0 && strings.HasSuffix(row.says[0], "_") && len(report.Findings) != 1 {
				t.Errorf("the check: got %q, want one finding for one row", report.Findings)
			}
			for _, f := range report.Findings {
				if strings.Contains(f, "\n") {
					t.Errorf("a finding of several lines: %q", f)
				}
			}
			if !maps.EqualFunc(damaged, filesAt(t, path), bytes.Equal) {
				t.Error("the check changed the file")
			}
			_, err = restoreFrom(w.Store, path)
			if kind(err) != "invalid value" {
				t.Errorf("the restore: got %v, want that it is refused", err)
			}
			for _, text := range row.says {
				if !slices.ContainsFunc(report.Findings, func(f string) bool { return strings.Contains(f, text) }) {
					t.Errorf("the check: got %q, want one with %q", report.Findings, text)
				}
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("the restore: got %v, want %q in it", err, text)
				}
			}
			if _, _, err := RestoreFile(ctx, place(t), alice, must(os.Open(path)), w.opts, true); kind(err) != "invalid value" {
				t.Errorf("a new store: got %v, want that it is refused", err)
			}
			if !maps.EqualFunc(seenFiles, filesAt(t, w.path), bytes.Equal) {
				t.Error("the restore changed the store")
			}
		})
	}
	w.Store = open(t, w.path, w.opts)
	same(t, "the store", dump(t, w.Store), seen)
	if _, err := CheckFile(ctx, filepath.Join(t.TempDir(), "none"), w.opts, AuditHead{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v, want that there is none", err)
	}
	if _, err := CheckFile(ctx, t.TempDir(), w.opts, AuditHead{}); err == nil {
		t.Error("a directory: got no error")
	}
	report, err := CheckFile(ctx, good, w.opts, AuditHead{Seq: backup.Head.Seq, Hash: strings.Repeat("0", 64)})
	if err != nil || len(report.Findings) != 1 || !strings.Contains(report.Findings[0], "is not the record that was known") {
		t.Errorf("another head: got %q, %v, want one finding", report.Findings, err)
	}
	tidy(t, w.path)
	must(restoreFrom(w.Store, good)) // no trace of the refused ones is left
}

// The backup of a store that went another way, or of another one, is told from one
// that the store in force goes on from.
func TestRestoreOfAnother(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	t.Parallel()
	w := newWorld(t, Options{})
	fork := backup(t, w.Store)
	for name, path := range map[string]string{"another store": place(t), "another way": fork} {
		other := open(t, path, w.opts)
		addUser(other, "somebody")
		file, _ := backupTo(t, other)
		mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
		mustDo(w.RemoveMember(ctx, alice, w.closers.ID, w.user.ID))
		seen := dump(t, w.Store)
		if _, err := w.restore(t, file); kind(err) != "conflict" || !strings.Contains(err.Error(), "another store") {
			t.Errorf("%s: got %v, want a conflict", name, err)
		}
		same(t, name, dump(t, w.Store), seen)
	}
	empty := backup(t, open(t, place(t), w.opts))
	if _, err := w.restore(t, empty); kind(err) != "conflict" {
		t.Errorf("a store without anything in it: got %v, want a conflict", err)
	}
	manager := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"a"}}}
	_, one := w.Backup(ctx, manager)
	_, two := w.Check(ctx, manager, AuditHead{})
	for _, err := range []error{one, two} {
		if kind(err) != "not allowed" {
			t.Errorf("a manager: got %v, want that it is not allowed", err)
		}
	}
	tidy(t, w.path)
}

// A restore that fails, at any step before the last, leaves the store as it was.
func TestRestoreFails(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	w := newWorld(t, Options{})
	path, _ := backupTo(t, w.Store)
	addUser(w.Store, "later")
	seen := dump(t, w.Store)
	mustDo(w.Close())
	defer func() { restoreStep = func(string) error { return nil } }()
	broken := errors.New("broken")
	for _, at := range []string{"received", "made"} {
		restoreStep = func(step string) error {
			if step == at {
				return broken
			}
			return nil
		}
		if _, err := restoreFrom(w.Store, path); !errors.Is(err, broken) {
			t.Errorf("%s: got %v, want it to fail there", at, err)
		}
		tidy(t, w.path)
		w.Store = open(t, w.path, w.opts)
		same(t, at, dump(t, w.Store), seen)
		mustDo(w.Close())
	}
	restoreStep = func(string) error { return nil }
	cut := io.MultiReader(bytes.NewReader(must(os.ReadFile(path))[:5000]), brokenReader{broken})
	if _, _, err := RestoreFile(ctx, w.path, alice, cut, w.opts, false); !errors.Is(err, broken) {
		t.Errorf("a backup that ends early: got %v, want its error", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := RestoreFile(cancelled, w.path, alice, must(os.Open(path)), w.opts, false); err == nil {
		t.Error("a caller that is gone: got no error")
	}
	tidy(t, w.path)
	w.Store = open(t, w.path, w.opts)
	same(t, "in the end", dump(t, w.Store), seen)
	mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
	must(w.restore(t, path))
}

type brokenReader struct{ err error }

func (f brokenReader) Read([]byte) (int, error) { return 0, f.err }

// A process that is killed leaves the old store or the new one, whole.
func TestRestoreIsKilled(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	for at, want := range map[string]access.Reason{"received": access.DeniedByRule, "made": access.DeniedByRule, "placed": access.Granted} {
		w := newWorld(t, Options{})
		path, _ := backupTo(t, w.Store)
		mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
		mustDo(w.Close())
		cmd, lines := startChild(t, w.path, "restore "+path+" "+at)
		if line, err := lines.ReadString('\n'); err != nil || strings.TrimSpace(line) != at {
			t.Fatalf("the other process: got %q, %v, want %s", line, err, at)
		}
		_ = cmd.Wait()
		report, err := CheckFile(ctx, w.path, w.opts, AuditHead{})
		well(t, at, report, err)
		again := open(t, w.path, w.opts)
		if got := probe(again, w.user.ID, w.token.Secret, "GET /v1/x"); got != want {
			t.Errorf("killed when %s: got %v, want %v", at, got, want)
		}
		must(restoreFrom(again, path))
	}
}

// A store that was killed has a log. A restore into it writes the log into the old file before the
// new one takes its place.
func TestRestoreIntoAKilled(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	w := newWorld(t, Options{})
	path, b := backupTo(t, w.Store)
	addUser(w.Store, "later")
	events := len(trail(t, w.Store))
	killed := copyOf(t, w.path)
	if len(readFile(killed+"-wal")) == 0 {
		t.Fatal("the log is empty; the test shows nothing")
	}
	r, aside, err := RestoreFile(ctx, killed, alice, must(os.Open(path)), w.opts, false)
	if err != nil || aside != "" || r.LostChanges != int64(events)-b.Head.Seq {
		t.Errorf("got %+v, %q, %v, want %d lost", r, aside, err, int64(events)-b.Head.Seq)
	}
	report, err := CheckFile(ctx, killed, w.opts, b.Head)
	well(t, "the restored store", report, err)
	s := open(t, killed, w.opts)
	if got := len(trail(t, s)); got != events+1 || s.Directory().Len() != 1 {
		t.Errorf("got %d records and %d service users, want %d and 1", got, s.Directory().Len(), events+1)
	}
}

// unwritable are values that no API takes, each with what a check says, and whether they
// harm a process that loads them.
var unwritable = []struct {
	name, damage string
	says         string
	harms        bool
}{
	{"a description of 300 MB", `UPDATE service_users SET description = CAST(zeroblob(300000000) AS TEXT)`, "service_users.description is too large", true},
	{"a display name of 1 MB", `UPDATE service_users SET display_name = REPLACE(hex(zeroblob(500000)), '0', 'a')`, "service_users.display_name is too large", true},
	{"metadata of 1 MB", `UPDATE tokens SET metadata = hex(zeroblob(500000))`, "tokens.metadata is too large", true},
	{"a large description of a group", `UPDATE permission_groups SET description = hex(zeroblob(500000))`, "permission_groups.description is too large", true},
	{"a large condition", `UPDATE rules SET condition = hex(zeroblob(500000))`, "rules.condition is too large", true},
	{"a large id", `UPDATE rules SET id = hex(zeroblob(500000)) WHERE id = (SELECT MIN(id) FROM rules)`, "rules.id is too large", true},
	{"invalid UTF-8", `UPDATE service_users SET owner = CAST(x'61ff62' AS TEXT)`, "service_users.owner is not valid UTF-8", true},
	{"invalid UTF-8 in a rule", `UPDATE rules SET name = CAST(x'61ff62' AS TEXT)`, "rules.name is not valid UTF-8", true},
	{"invalid UTF-8 in a team", `UPDATE service_users SET teams = CAST(x'5b22ff225d' AS TEXT)`, "service_users.teams is not valid UTF-8", true},
	{"invalid UTF-8 in a creator", `UPDATE tokens SET created_by = CAST(x'ff' AS TEXT)`, "tokens.created_by is not valid UTF-8", false}, // which is not loaded
	{"an escape character", `UPDATE service_users SET description = 'a' || char(27) || '[2J'`, "description: must not hold the control character U+001B", false},
	{"an escape character in a name", `UPDATE service_users SET name = char(27) || 'x', name_key = service_user_name_key(char(27) || 'x')`, "name: must not hold the control character U+001B", false},
	{"2001 characters", `UPDATE service_users SET description = REPLACE(hex(zeroblob(1001)), '0', 'a')`, "description: is 2002 characters long", false},
	{"no name", `UPDATE service_users SET name = '', name_key = service_user_name_key('')`, "name: must not be empty", false},
	{"the name of an id", `UPDATE service_users SET name = 'service_000000000000000000000000000', name_key = service_user_name_key('service_000000000000000000000000000')`, "name: must not look like an id", false},
	{"an alias that is none", `UPDATE service_users SET alias = 'a b'`, "alias: must be", false},
	{"a team that is none", `UPDATE service_users SET teams = '["a,b"]'`, "teams: ", false},
	{"a label that is none", `UPDATE service_users SET labels = '{"":"x"}'`, "labels: ", false},
	{"a label with an escape character", `UPDATE service_users SET labels = '{"k":"\u001b"}'`, "labels: must not hold the control character U+001B", false},
	{"a token's description", `UPDATE tokens SET description = char(10)`, "description: must not hold the control character U+000A", false},
	{"a token's metadata", `UPDATE tokens SET metadata = hex(zeroblob(3000))`, "metadata: must be valid UTF-8 of at most 4096 bytes", false},
	{"a group's name", `UPDATE permission_groups SET name = ',' || name`, "name: ", false},
	{"a group's description", `UPDATE permission_groups SET description = char(7)`, "description: must not hold the control character U+0007", false},
	{"a rule's name", `UPDATE rules SET name = char(8206)`, "rules.name: must not hold the control character U+200E", false},
	{"a rule's description", `UPDATE rules SET description = char(27)`, "rules.description: must not hold the control character U+001B", false},
	{"a permission's key", `INSERT INTO permissions VALUES ('A b', 'n', '', '', 0, '["allow GET /a"]', 0, 'x', 0)`, "key: ", false},
	{"a permission's category", `INSERT INTO permissions VALUES ('a', 'n', '', char(27), 0, '["allow GET /a"]', 0, 'x', 0)`, "category: must not hold the control character U+001B", false},
	{"a permission without rules", `INSERT INTO permissions VALUES ('a', 'n', '', '', 0, '[]', 0, 'x', 0)`, "rules: a permission stands for 1 to 500 rules", false},
	{"a creation after the year 9999", `UPDATE service_users SET created_at = 300000000000`, "service_users.created_at holds a value that is never written there", false},
	{"a use after the year 9999", `UPDATE tokens SET last_used_at = 300000000000`, "tokens.last_used_at holds a value that is never written there", false},
	{"an end before 1970", `UPDATE service_users SET expires_at = -5`, "service_users.expires_at holds a value that is never written there", false},
	{"a rule of long ago", `UPDATE rules SET created_at = -99999999999999`, "rules.created_at holds a value that is never written there", false},
	{"a group of another time", `UPDATE permission_groups SET updated_at = 300000000000`, "permission_groups.updated_at holds a value that is never written there", false},
	{"less than no use", `UPDATE tokens SET use_count = -7`, "tokens.use_count holds a value that is never written there", false},
	{"an id that nobody can name", `UPDATE tokens SET id = 'token_'`, "tokens.id holds a value that is never written there", false},
	{"an id of another kind", `UPDATE rules SET id = REPLACE(id, 'rule_', 'group_')`, "rules.id holds a value that is never written there", false},
	{"a hint with an escape character", `UPDATE tokens SET hint = char(27) || '[2J'`, "tokens.hint holds a value that is never written there", false},
	{"an address that is none", `UPDATE tokens SET last_used_ip = '192.0.2.7' || char(0)`, "tokens.last_used_ip holds a value that is never written there", false},
	{"figures of an address that is none", `UPDATE tokens SET used_from = '{"\u001b[2J":1}'`, "the figures of use hold", false},
	{"figures of a rule that is none", `UPDATE tokens SET used_rules = '{"\u001b[2J":1}'`, "the figures of use hold", false},
	{"a group that is none", `UPDATE tokens SET permission_groups = '["everything"]'`, "is not an id", false},
	{"bytes in the place of a name", `UPDATE service_users SET name = CAST(name AS BLOB)`, "service_users.name holds a value that is never written there", false},
	{"many conditions", `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1001)
		INSERT INTO rules SELECT printf('rule_%027d', i), group_id, i, effect, methods, host, path, 'user.name == "x"', '', '', 0 FROM n, (SELECT * FROM rules LIMIT 1)`,
		"rules: has 1001 rules with a condition", false},
}

// What no API takes is a finding, and refused by a restore; a start refuses only what
// harms it.
func TestUnwritable(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	t.Parallel()
	w := newWorld(t, Options{})
	good, _ := backupTo(t, w.Store)
	seen := dump(t, w.Store)
	mustDo(w.Close())
	for _, row := range unwritable {
		path := place(t)
		mustDo(os.WriteFile(path, must(os.ReadFile(good)), 0o600))
		execute(row.damage)(path)
		report, err := CheckFile(ctx, path, w.opts, AuditHead{})
		if err != nil || !slices.ContainsFunc(report.Findings, func(f string) bool { return strings.Contains(f, row.says) && len(f) < 1000 }) || len(report.Notes) > 0 {
			t.Errorf("%s: the check: got %q, %q, %v, want %q", row.name, report.Findings, report.Notes, err, row.says)
		}
		if _, err = restoreFrom(w.Store, path); kind(err) != "invalid value" || !strings.Contains(err.Error(), row.says) || len(err.Error()) > 5000 {
			t.Errorf("%s: the restore: got %.500v, want that it is refused", row.name, err)
		}
		s, err := Open(ctx, path, w.opts)
		if err == nil {
			mustDo(s.Close())
		}
		if harmful := errors.Is(err, ErrDamaged) && len(err.Error()) < 2000; row.harms != harmful || !row.harms && err != nil {
			t.Errorf("%s: the start: got %.500v, want that it is refused: %t", row.name, err, row.harms)
		}
	}
	w.Store = open(t, w.path, w.opts)
	same(t, "the restores", dump(t, w.Store), seen)
	if _, err := restoreFrom(w.Store, good); err != nil {
		t.Errorf("the backup as it was: %v", err)
	}
}

// Who has a time that JSON cannot show is shown all the same, and can be ended.
func TestTimeBeyondText(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	t.Parallel()
	for _, at := range []int64{math.MaxInt64, 300000000000, -300000000000, math.MinInt64} {
		w := newWorld(t, Options{})
		path := w.path
		mustDo(w.Store.Close())
		execute(fmt.Sprintf(`UPDATE service_users SET created_at = %[1]d, updated_at = %[1]d, last_active_at = %[1]d;
			UPDATE tokens SET created_at = %[1]d, last_used_at = %[1]d`, at))(path)
		s := open(t, path, w.opts)
		list, _, err := s.ServiceUsers(ctx, Local, UserQuery{Limit: 10})
		if _, fault := json.Marshal(list); err != nil || fault != nil || len(list) == 0 {
			t.Errorf("%d: the list: got %v, %v, %d of them", at, err, fault, len(list))
		}
		if _, _, err := s.RefreshToken(ctx, Local, w.user.ID, w.token.ID, 0, time.Hour, 0); err != nil {
			t.Errorf("%d: the refresh: %v", at, err)
		}
		mustDo(s.RevokeToken(ctx, Local, w.user.ID, w.token.ID, 0))
		mustDo(s.DeleteServiceUser(ctx, Local, w.user.ID, 0, 0))
	}
}

// What could be written once is a note of the check; it restores, and goes on.
func TestNotes(t *testing.T) {
	pgtest.SQLiteOnly(t, "the backup is a file; PostgreSQL has pg_dump")
	t.Parallel()
	w := newWorld(t, Options{})
	secret := w.token.Secret
	good, _ := backupTo(t, w.Store)
	for name, damage := range map[string]string{
		"a secret in a description":   `UPDATE service_users SET description = 'use ` + secret + `'`,
		"a secret in a label":         `UPDATE service_users SET labels = '{"k":"` + secret + `"}'`,
		"a secret in metadata":        `UPDATE tokens SET metadata = '` + secret + `'`,
		"a secret in a rule":          `UPDATE rules SET description = '` + secret + `'`,
		"an end after the year 9999":  `UPDATE service_users SET expires_at = 300000000000`,
		"a token of after that year":  `UPDATE tokens SET expires_at = 300000000000`,
		"a secret in a group":         `UPDATE permission_groups SET description = '` + secret + `'`,
		"a secret beside an escape 1": `UPDATE permission_groups SET description = '` + secret + `' || char(10)`,
	} {
		path := place(t)
		mustDo(os.WriteFile(path, must(os.ReadFile(good)), 0o600))
		execute(damage)(path)
		report, err := CheckFile(ctx, path, w.opts, AuditHead{})
		if err != nil || len(report.Findings) > 0 || len(report.Notes) == 0 || strings.Contains(fmt.Sprint(report), secret) {
			t.Errorf("%s: the check: got %q, %q, %v, want a note", name, report.Findings, report.Notes, err)
		}
		if _, _, err := RestoreFile(ctx, place(t), alice, must(os.Open(path)), w.opts, false); err != nil {
			t.Errorf("%s: the restore: %v", name, err)
		}
	}
}
