package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// RestoreReport is the result of a restore.
type RestoreReport struct {
	Revision       int64  `json:"revision"`        // of the store after the restore
	ServiceUsers   int64  `json:"service_users"`   // after the restore
	Head           string `json:"head"`            // of the audit trail after the restore, SEQ:HASH
	BackupRevision int64  `json:"backup_revision"` // the revision of the backup
	RevisionBefore int64  `json:"revision_before"` // the revision of the store before the restore
	LostChanges    int64  `json:"lost_changes"`    // undone changes since the backup; the audit trail still has them
	RevivedTokens  int64  `json:"revived_tokens"`  // tokens that were revoked, deleted or deactivated since the backup
}

// restoreAudit is the form of a restore in the audit trail, for the state before and after it.
type restoreAudit struct {
	Revision       int64  `json:"revision"`
	ServiceUsers   int64  `json:"service_users"`
	Head           string `json:"head"`                      // of the trail before the restore, or of the backup
	BackupRevision int64  `json:"backup_revision,omitempty"` // the revision of the backup
}

// restoreStep is called after each step of a restore. Tests let it fail.
var restoreStep = func(step string) error { return nil }

// RestoreFile makes the store at path from a backup. No process may have that store open, and none
// can open it until RestoreFile returns. A backup with a finding of [CheckFile] is rejected, and so
// is a backup of another store, unless the store was never changed. The audit trail keeps all of
// its records, and the revision rises.
//
// With replace, which is for a store that cannot be opened, the backup takes the place of any store,
// and the files of that store are renamed. So are side files that a lost database left behind.
// aside is the new path of the renamed files, or "".
func RestoreFile(
	ctx context.Context, path string, by Actor, backup io.Reader, opts Options, replace bool,
) (r RestoreReport, aside string, err error) {
	if path, err = resolve(path); err != nil {
		return r, "", err
	}
	dir, err := besides(path, "restore")
	if err != nil {
		return r, "", err
	}
	defer os.RemoveAll(dir)
	temp := filepath.Join(dir, "backup.db")
	copied, err := receive(ctx, temp, path, backup, opts)
	if err != nil {
		return r, "", err
	}
	var held *sql.DB
	there := filesOf(path)
	if len(there) > 0 {
		// The lock stays until the new store is in its place.
		if held, err = holdExclusive(path); err != nil {
			return r, "", err
		}
		defer held.Close()
		replace = replace || there[0] != "" // only side files are left
	}
	before := held
	if replace {
		before = nil
	}
	if r, err = makeStore(ctx, temp, by, copied, before, opts); err != nil {
		return r, "", err
	}
	if err := restoreStep("made"); err != nil {
		return r, "", err
	}
	switch {
	case held != nil && !replace:
		// The log of the old store must be gone: SQLite would read it into the new one.
		if _, err = held.ExecContext(ctx, `PRAGMA journal_mode = DELETE`); err == nil {
			err = os.Rename(temp, path)
		}
	case held != nil:
		if aside, err = moveAside(path); err != nil {
			break
		}
		fallthrough
	default:
		// Link, unlike Rename, fails when another process has made a store at path meanwhile.
		err = os.Link(temp, path)
	}
	if err == nil {
		err = errors.Join(restoreStep("placed"), SyncDir(filepath.Dir(path)))
	}
	return r, aside, err
}

// makeStore turns the database of a backup at path into a store. If before has a store, the new
// store continues that one. before may be nil.
func makeStore(
	ctx context.Context, path string, by Actor, backup Contents, before *sql.DB, opts Options,
) (r RestoreReport, err error) {
	s, err := Open(ctx, path, quiet(opts))
	if err != nil {
		return r, err
	}
	err = s.change(ctx, by, func(t *tx) error {
		r.BackupRevision = backup.Revision
		state := restoreAudit{Head: AuditHead{}.String()}
		if before != nil {
			sqlTx, err := before.BeginTx(ctx, nil)
			if err != nil {
				return explainSQLite(err)
			}
			defer sqlTx.Rollback()
			if state, err = t.continueStore(&tx{Tx: sqlTx, ctx: ctx}, backup.Head, &r); err != nil {
				return err
			}
		}
		r.Revision, r.ServiceUsers = t.revision, backup.ServiceUsers
		err := t.audit("store.restore", "", state,
			restoreAudit{t.revision, backup.ServiceUsers, backup.Head.String(), backup.Revision})
		if err == nil {
			last := t.events[len(t.events)-1]
			r.Head = AuditHead{last.Seq, last.Hash}.String()
		}
		return err
	})
	if err = errors.Join(err, s.Close()); err != nil { // Close empties and removes the log
		return r, err
	}
	// Only the last connection to a database removes the log.
	if _, err := os.Lstat(path + "-wal"); err == nil {
		return r, errors.New("the new store is open elsewhere")
	}
	return r, nil
}

// continueStore makes the store of t, which was made from a backup with this head, the continuation
// of the store of before: it keeps its identity, a higher revision and all of its audit trail.
func (t *tx) continueStore(before *tx, backup AuditHead, r *RestoreReport) (state restoreAudit, err error) {
	was, err := before.contents()
	if err != nil {
		return state, fmt.Errorf("reading the store: %w", explainSQLite(err))
	}
	// ours: the trail of the store contains the head of the backup, so the store continued from
	// the backup. theirs: the backup contains the head of the store.
	ours, err := before.trailHas(backup)
	if err != nil {
		return state, err
	}
	theirs, err := t.trailHas(was.Head)
	switch {
	case err != nil:
		return state, err
	case !theirs && (!ours || backup.Seq == 0): // every trail "has" the head of a backup without records
		return state, conflict("", "this is a backup of another store, or of one that went another way: "+
			"neither audit trail goes on from the other; "+
			"to replace the store all the same, move the store and the files beside it away, "+
			"and restore again")
	}
	if ours {
		r.LostChanges = was.Head.Seq - backup.Seq
		if err := t.appendTrail(before, backup.Seq); err != nil {
			return state, err
		}
	}
	var instance string
	var created int64
	if err := before.row(`SELECT instance_id, created_at FROM meta`).Scan(&instance, &created); err != nil {
		return state, fmt.Errorf("reading the store: %w", err)
	}
	if err := t.exec("writing the identity of the store",
		`UPDATE meta SET instance_id = $1, created_at = $2`, instance, created); err != nil {
		return state, err
	}
	t.revision, r.RevisionBefore = max(t.revision, was.Revision+1), was.Revision
	r.RevivedTokens, err = t.revived(before)
	return restoreAudit{was.Revision, was.ServiceUsers, was.Head.String(), 0}, err
}

// appendTrail appends the audit records of another store above a number.
func (t *tx) appendTrail(from *tx, seq int64) error {
	rows, err := from.query(selectAudit+` WHERE seq > $1 ORDER BY seq`, seq)
	if err != nil {
		return fmt.Errorf("reading the audit trail: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		e, err := scanAudit(rows)
		if err == nil {
			err = t.writeAudit(e)
		}
		if err != nil {
			return err
		}
		t.head = AuditHead{e.Seq, e.Hash}
	}
	return rows.Err()
}

// revived counts the valid tokens that were revoked in the store of before, or whose service user was deleted
// or inactive there.
func (t *tx) revived(before *tx) (n int64, err error) {
	ended, err := all(before, "comparing tokens", scanString, `
		SELECT t.id FROM tokens t JOIN service_users u ON u.id = t.service_user_id
		WHERE t.revoked_at <> 0 OR u.deleted_at <> 0 OR NOT u.active`)
	for i := 0; err == nil && i < len(ended); i++ {
		var valid int64
		err = t.row(`
			SELECT COUNT(*) FROM tokens t JOIN service_users u ON u.id = t.service_user_id
			WHERE t.id = $1 AND t.revoked_at = 0 AND u.deleted_at = 0 AND u.active`, ended[i]).Scan(&valid)
		n += valid
	}
	return n, err
}

// trailHas reports whether the audit trail contains a record. Every trail contains the head 0, the
// one before the first record.
func (t *tx) trailHas(head AuditHead) (found bool, err error) {
	if head.Seq == 0 {
		return true, nil
	}
	hash, err := hashOf(t.ctx, t.QueryRowContext, head.Seq)
	return hash == head.Hash, err
}

// receive writes a backup to a new file at path, checks all of it, and upgrades its schema. The
// file gets the owner of the store at the path store.
func receive(ctx context.Context, path, store string, backup io.Reader, opts Options) (Contents, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return Contents{}, err
	}
	_, err = io.Copy(file, backup)
	if err = errors.Join(err, giveTo(file, store), file.Close()); err != nil {
		return Contents{}, fmt.Errorf("receiving the backup: %w", err)
	}
	if err := restoreStep("received"); err != nil {
		return Contents{}, err
	}
	report, err := checkAndUpgrade(ctx, path, opts, AuditHead{})
	if err != nil {
		return Contents{}, err
	}
	if n := len(report.Findings); n > 0 {
		const shown = 5
		text := strings.Join(report.Findings[:min(n, shown)], "; ")
		if n > shown {
			text += fmt.Sprintf("; and %d more", n-shown)
		}
		return Contents{}, invalid("", "the backup is refused, and nothing was changed: %s", text)
	}
	return report.Contents, nil
}

// CanReplace reports whether an error of [Open] is caused by the contents of the file, so that a
// backup may replace it, and not by the disk, a lock or a permission.
func CanReplace(err error) bool { return err != nil && !isExternalFault(err) }

// filesOf lists the files of a database at path by their suffixes: "" for the database itself,
// which comes first, and those of Companions.
func filesOf(path string) (there []string) {
	for _, suffix := range append([]string{""}, Companions()...) {
		if _, err := os.Lstat(path + suffix); err == nil {
			there = append(there, suffix)
		}
	}
	return there
}

// moveAside renames the files of a database that this process holds. It renames the database before
// its side files, so an interrupted move leaves nothing at path that Open accepts. When SQLite
// closes a database that is not in its place any more, it neither writes the log into the database
// nor removes the log.
func moveAside(path string) (aside string, err error) {
	aside = path + ".aside"
	for n := 2; len(filesOf(aside)) > 0; n++ {
		aside = fmt.Sprintf("%s.aside-%d", path, n)
	}
	for _, suffix := range filesOf(path) {
		if err := os.Rename(path+suffix, aside+suffix); err != nil {
			return aside, err
		}
	}
	return aside, nil
}

// holdExclusive opens a database and keeps other processes from opening it until held is closed. It
// fails if another process has the database open. For a file that is not a database SQLite cannot
// check that, and holdExclusive succeeds without a lock.
func holdExclusive(path string) (held *sql.DB, err error) {
	ofdLocking()
	held, err = sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+
		"?mode=rw&_pragma=locking_mode(EXCLUSIVE)&_txlock=exclusive")
	if err != nil {
		return nil, err
	}
	held.SetMaxOpenConns(1) // the lock belongs to the connection
	sqlTx, err := held.Begin()
	switch {
	case err == nil:
		// In this locking mode the end of a transaction does not release the lock.
		if err = sqlTx.Rollback(); err != nil {
			held.Close()
			return nil, err
		}
	case sqliteCode(err) == sqliteBusy:
		held.Close()
		return nil, conflict("", "another process has %q open; stop it first", path)
	}
	return held, nil
}
