package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite"
)

// Contents describes the contents of a store or of a backup.
type Contents struct {
	Schema       int   // the version of the schema
	Revision     int64 // the number of the last change
	ServiceUsers int64 // that are not deleted
	Head         AuditHead
}

func (h AuditHead) String() string { return strconv.FormatInt(h.Seq, 10) + ":" + h.Hash }

// Backup is a copy of the store at one revision: a SQLite database in one file. Close removes the
// file.
type Backup struct {
	Contents
	Size   int64
	SHA256 [sha256.Size]byte
	file   *os.File
	dir    string
}

// Read reads the bytes of the copy.
func (b *Backup) Read(p []byte) (int, error) { return b.file.Read(p) }

// Close removes the copy.
func (b *Backup) Close() error { return errors.Join(b.file.Close(), os.RemoveAll(b.dir)) }

// restoreTimeout limits the transaction of a restore, which writes every row.
const restoreTimeout = 10 * time.Minute

// Backup copies the store while it is in use, with the usage of tokens up to now. The copy contains
// the hashes of all tokens, so the audit trail first records the actor; if that fails, so does
// Backup. Only admins may call it. The caller must close the copy.
func (s *Store) Backup(ctx context.Context, by Actor) (*Backup, error) {
	if by.Scope != nil {
		return nil, notAllowed("only an admin may back up the store")
	}
	if err := s.FlushUse(ctx); err != nil {
		return nil, err
	}
	err := s.change(ctx, by, func(t *tx) error { return t.audit("store.backup", "", nil, nil) })
	if err != nil {
		return nil, err
	}
	dir, err := besides(s.path, "backup")
	if err != nil {
		return nil, err
	}
	b, err := s.copyTo(ctx, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("backing up the store: %w", err), os.RemoveAll(dir))
	}
	return b, nil
}

func (s *Store) copyTo(ctx context.Context, dir string) (*Backup, error) {
	path := filepath.Join(dir, "backup.db")
	db, err := sql.Open("sqlite", sqliteDSN(s.path, "rw", ""))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// SQLite has opened the file by now. An earlier check would not notice a file that was
	// replaced in between.
	if err := s.inPlace(); err != nil {
		return nil, err
	}
	if err := vacuumInto(ctx, conn, path); err != nil {
		return nil, err
	}
	b := &Backup{dir: dir}
	if b.Contents, err = ReadContents(ctx, path); err != nil {
		return nil, err
	}
	// Opening and closing a file drops the POSIX locks of this process on it. Here that does no
	// harm.
	if b.file, err = os.Open(path); err != nil { // the copy: nobody has it open as a database
		return nil, err
	}
	digest := sha256.New()
	if b.Size, err = io.Copy(digest, b.file); err == nil {
		_, err = b.file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, b.file.Close())
	}
	digest.Sum(b.SHA256[:0])
	return b, nil
}

// vacuumInto copies a database into a new file that only its owner can read.
func vacuumInto(ctx context.Context, conn *sql.Conn, path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // VACUUM INTO accepts an empty file
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, `VACUUM INTO $1`, path)
	return explainSQLite(err)
}

// besides creates a directory beside the database, for files that only the owner can read. The
// directory for temporary files may be too small: the files can be as large as the database.
func besides(path, what string) (string, error) {
	return os.MkdirTemp(filepath.Dir(path), "."+what+"-*")
}

// ReadContents returns the contents of a database that no process has open, such as a backup.
func ReadContents(ctx context.Context, path string) (c Contents, err error) {
	if err := knownFile(path); err != nil {
		return c, err
	}
	db, err := openAtRest(path)
	if err != nil {
		return c, err
	}
	defer db.Close()
	sqlTx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return c, explainSQLite(err)
	}
	defer sqlTx.Rollback()
	c, err = (&tx{Tx: sqlTx, ctx: ctx}).contents()
	return c, explainSQLite(err)
}

// knownFile rejects a path that cannot be a database, with an error that says why.
func knownFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%q is not a file", path)
	case info.Size() == 0:
		return fmt.Errorf("%w: the file is empty", ErrNotOurs)
	}
	return nil
}

// openAtRest opens a database for reading. Without a log beside the database SQLite writes nothing,
// so the database can be in a directory without write permission.
func openAtRest(path string) (*sql.DB, error) {
	ofdLocking()
	place, err := resolve(path)
	if err != nil {
		return nil, err
	}
	extra := ""
	if _, err := os.Stat(place + "-wal"); errors.Is(err, fs.ErrNotExist) {
		extra = "immutable=1"
	}
	return sql.Open("sqlite", sqliteDSN(place, "ro", extra))
}

func (t *tx) contents() (c Contents, err error) {
	if err = t.row(`PRAGMA user_version`).Scan(&c.Schema); err == nil {
		err = t.row(`SELECT revision, audit_seq, audit_hash FROM meta`).
			Scan(&c.Revision, &c.Head.Seq, &c.Head.Hash)
	}
	if err == nil {
		err = t.row(`SELECT COUNT(*) FROM service_users WHERE deleted_at = 0`).Scan(&c.ServiceUsers)
	}
	return c, err
}

// Restored is the result of a restore.
type Restored struct {
	Before  Contents // of the store before the restore
	Backup  Contents // of the backup
	After   Contents // of the store now
	Lost    int64    // the number of changes since the backup that were undone; the audit trail still has them
	Revived int64    // the number of tokens that were revoked or deleted since the backup and are valid again
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

// Restore replaces the contents of the store by those of a backup, in one transaction. This is a
// change like any other, with a higher revision, which every process that has the store open takes
// over. Restore rejects a backup with a finding of [CheckFile], and a backup of another store,
// unless this store was never changed. The audit trail keeps all of its records. Only admins may
// call it.
func (s *Store) Restore(ctx context.Context, by Actor, backup io.Reader) (r Restored, err error) {
	if by.Scope != nil {
		return r, notAllowed("only an admin may restore the store")
	}
	dir, err := besides(s.path, "restore")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "backup.db")
	if r.Backup, err = receive(ctx, path, s.path, backup, s.opts); err != nil {
		return r, err
	}
	if err := restoreStep("checked"); err != nil {
		return r, err
	}
	if err := s.lock(ctx); err != nil {
		return r, fmt.Errorf("waiting for another change: %w", err)
	}
	defer s.unlock()
	if err := s.inPlace(); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreTimeout)
	defer cancel()
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	// With immutable=1 SQLite takes no lock on the backup and looks for no log beside it.
	uri := "file:" + (&url.URL{Path: path}).EscapedPath() + "?mode=ro&immutable=1"
	if _, err := conn.ExecContext(ctx, `ATTACH $1 AS incoming`, uri); err != nil {
		return r, fmt.Errorf("opening the backup: %w", err)
	}
	defer func() {
		if _, err := conn.ExecContext(ctx, `DETACH incoming`); err != nil {
			// The connection still has the backup attached; ErrBadConn makes the pool
			// replace it.
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
	}()
	sqlTx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return r, fmt.Errorf("beginning a change: %w", err)
	}
	defer sqlTx.Rollback()
	if err := s.logInPlace(); err != nil {
		return r, err
	}
	t := &tx{
		Tx: sqlTx, store: s, ctx: ctx, by: by,
		now: s.Now().UTC().Truncate(time.Second), directory: s.Directory(),
	}
	if err := t.restore(&r); err != nil {
		return r, err
	}
	if err := restoreStep("copied"); err != nil {
		return r, err
	}
	if err := s.finish(t); err != nil {
		return r, err
	}
	return r, restoreStep("committed")
}

// ownColumns are the columns of meta that identify this store and its progress. A restore does not
// take them from the backup.
var ownColumns = []string{"id", "instance_id", "created_at", "revision", "audit_seq", "audit_hash"}

// restore replaces the rows of the store by those of the database that is attached as "incoming".
func (t *tx) restore(r *Restored) (err error) {
	if r.Before, err = t.contents(); err != nil {
		return fmt.Errorf("reading what is in force: %w", err)
	}
	// ours: this trail contains the head of the backup, so the store continued from the backup.
	ours, err := t.trailHas("main", r.Backup.Head)
	if err != nil {
		return err
	}
	// theirs: the backup contains the head of this trail, so the backup continued from the
	// store.
	theirs, err := t.trailHas("incoming", r.Before.Head)
	switch {
	case err != nil:
		return err
	case !theirs && (!ours || r.Backup.Head.Seq == 0): // every trail "has" the head of a backup without records
		return conflict("", "this is a backup of another store, or of one that went another way: "+
			"neither audit trail goes on from the other; "+
			"to replace the store all the same, stop Caddy, move the store and the files beside it away, "+
			"and restore with --store")
	}
	if ours {
		r.Lost = r.Before.Head.Seq - r.Backup.Head.Seq
	}
	if err := t.row(`
		SELECT COUNT(*)
		FROM incoming.tokens b JOIN incoming.service_users bu ON bu.id = b.service_user_id
			JOIN main.tokens t ON t.id = b.id JOIN main.service_users u ON u.id = t.service_user_id
		WHERE b.revoked_at = 0 AND bu.deleted_at = 0
			AND (t.revoked_at <> 0 OR u.deleted_at <> 0)`).Scan(&r.Revived); err != nil {
		return fmt.Errorf("comparing tokens: %w", err)
	}
	// The tables are replaced one by one, so the references are right only at the end.
	if _, err := t.exec(`PRAGMA defer_foreign_keys = 1`); err != nil {
		return err
	}
	want, err := newSchema(t.ctx)
	if err != nil {
		return err
	}
	for _, table := range want.tables {
		// With ours, the trail of the store continues that of the backup. Keeping it keeps
		// every record.
		if table == "meta" || table == "audit_events" && ours {
			continue
		}
		columns := strings.Join(want.columns[table], ", ")
		if _, err := t.exec(`DELETE FROM main.` + table); err != nil {
			return fmt.Errorf("replacing %s: %w", table, err)
		}
		if _, err := t.exec(`
			INSERT INTO main.` + table + ` (` + columns + `)
			SELECT ` + columns + ` FROM incoming.` + table); err != nil {
			return fmt.Errorf("replacing %s: %w", table, err)
		}
	}
	head := r.Backup.Head
	if ours {
		head = r.Before.Head
	}
	// The revision has to rise although the backup has a lower one: other processes read
	// revisions above the one that they know.
	t.revision = max(r.Before.Revision, r.Backup.Revision, t.directory.Revision()) + 1
	for _, column := range want.columns["meta"] {
		if slices.Contains(ownColumns, column) {
			continue
		}
		if _, err := t.exec(`
			UPDATE main.meta SET ` + column + ` = (SELECT ` + column + ` FROM incoming.meta)`); err != nil {
			return fmt.Errorf("replacing meta: %w", err)
		}
	}
	if _, err := t.exec(`UPDATE main.meta SET revision = $1, audit_seq = $2, audit_hash = $3`,
		t.revision, head.Seq, head.Hash); err != nil {
		return fmt.Errorf("counting the revision: %w", err)
	}
	return t.auditRestore(r)
}

// auditRestore writes the audit record of a restore. It is the last step, since r.After counts it.
func (t *tx) auditRestore(r *Restored) error {
	before := restoreAudit{r.Before.Revision, r.Before.ServiceUsers, r.Before.Head.String(), 0}
	after := restoreAudit{t.revision, r.Backup.ServiceUsers, r.Backup.Head.String(), r.Backup.Revision}
	if err := t.audit("store.restore", "", before, after); err != nil {
		return err
	}
	var err error
	r.After, err = t.contents()
	return err
}

// trailHas reports whether the audit trail of a schema ("main" or "incoming") contains a record.
// Every trail contains the head 0, the one before the first record.
func (t *tx) trailHas(schema string, head AuditHead) (found bool, err error) {
	if head.Seq == 0 {
		return true, nil
	}
	err = t.row(`SELECT EXISTS (SELECT 1 FROM `+schema+`.audit_events WHERE seq = $1 AND hash = $2)`,
		head.Seq, head.Hash).Scan(&found)
	if err != nil {
		return false, fmt.Errorf("reading the audit trail: %w", err)
	}
	return found, nil
}

// restoredSince reports whether the store was restored after p. The rows then have their revisions
// from the backup, so that the revisions do not show which rows are new.
func (p position) restoredSince(ctx context.Context, q *sql.Tx) (restored bool, err error) {
	if p.seq == 0 {
		return false, nil // no directory was read yet
	}
	err = q.QueryRowContext(ctx, `
		SELECT EXISTS (SELECT 1 FROM audit_events WHERE seq > $1 AND action = 'store.restore')`,
		p.seq).Scan(&restored)
	if err != nil {
		return false, fmt.Errorf("reading the audit trail: %w", err)
	}
	return restored, nil
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

// RestoreNew makes a store from a backup at a path without a store. It first renames side files
// that a lost database left behind. With replace, which is for a store that cannot be opened, it
// also renames a store at path, unless another process has it open. aside is the new path of the
// renamed files, or "".
func RestoreNew(
	ctx context.Context, path string, by Actor, backup io.Reader, opts Options, replace bool,
) (r Restored, aside string, err error) {
	if path, err = resolve(path); err != nil {
		return r, "", err
	}
	if _, err := os.Lstat(path); err == nil && !replace {
		return r, "", conflict("", "%q is there already; move it away first", path)
	}
	dir, err := besides(path, "restore")
	if err != nil {
		return r, "", err
	}
	defer os.RemoveAll(dir)
	temp := filepath.Join(dir, "backup.db")
	if r.Backup, err = receive(ctx, temp, path, backup, opts); err != nil {
		return r, "", err
	}
	s, err := Open(ctx, temp, quiet(opts))
	if err != nil {
		return r, "", err
	}
	err = s.change(ctx, by, func(t *tx) error {
		r.Before = Contents{Schema: schemaVersion}
		return t.auditRestore(&r)
	})
	if err = errors.Join(err, s.Close()); err != nil { // Close empties and removes the log
		return r, "", err
	}
	r.After.Revision++ // change counts the revision after auditRestore has read it
	// Only the last connection to a database removes the log.
	if _, err := os.Lstat(temp + "-wal"); err == nil {
		return r, "", errors.New("the new store is open elsewhere")
	}
	if err := restoreStep("made"); err != nil {
		return r, "", err
	}
	// there[0] is "" for the database itself, and otherwise the suffix of a side file.
	if there := filesOf(path); len(there) > 0 && (replace || there[0] != "") {
		if aside, err = moveAside(path); err != nil {
			return r, aside, err
		}
	}
	// Link, unlike Rename, fails when another process has made a store at path meanwhile.
	if err := os.Link(temp, path); err != nil {
		return r, aside, err
	}
	return r, aside, syncDir(filepath.Dir(path))
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

// moveAside renames the files of a database. It renames the database before its side files, so an
// interrupted move leaves nothing at path that Open accepts.
func moveAside(path string) (aside string, err error) {
	// The lock stays while the files move. When SQLite closes a database that is not in its
	// place any more, it neither writes the log into the database nor removes the log.
	release, err := holdExclusive(path)
	if err != nil {
		return "", err
	}
	defer release()
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

// holdExclusive keeps other processes from opening a database until release is called. It fails if
// another process has the database open. For a file that is not a database SQLite cannot check
// that, and holdExclusive succeeds without a lock.
func holdExclusive(path string) (release func(), err error) {
	ofdLocking()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+
		"?mode=rw&_pragma=locking_mode(EXCLUSIVE)&_txlock=exclusive")
	if err != nil {
		return nil, err
	}
	sqlTx, err := db.Begin()
	var e *sqlite.Error
	switch {
	case err == nil:
		return func() { sqlTx.Rollback(); db.Close() }, nil
	case errors.As(err, &e) && e.Code()&0xff == sqliteBusy:
		db.Close()
		return nil, conflict("", "another process has %q open; stop it first", path)
	}
	return func() { db.Close() }, nil
}

// objects are the tables, indexes, views and triggers of a database.
type objects struct {
	tables  []string
	columns map[string][]string // by table
	indexes []string
	others  []string // views and triggers, such as "trigger tokens_added"
}

// newSchema returns the objects of a new store.
func newSchema(ctx context.Context) (o objects, err error) {
	db, err := sql.Open("sqlite", "file::memory:")
	if err != nil {
		return o, err
	}
	defer db.Close()
	// Each connection to ":memory:" has its own database.
	db.SetMaxOpenConns(1)
	if err := initSQLite(ctx, db, time.Time{}); err != nil {
		return o, err
	}
	sqlTx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return o, err
	}
	defer sqlTx.Rollback()
	return (&tx{Tx: sqlTx, ctx: ctx}).objects()
}

func (t *tx) objects() (o objects, err error) {
	rows, err := t.query(`
		SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY name`)
	if err != nil {
		return o, err
	}
	all, err := collect(rows, func(rows *sql.Rows) (v [2]string, err error) {
		err = rows.Scan(&v[0], &v[1])
		return v, err
	})
	if err != nil {
		return o, err
	}
	o.columns = make(map[string][]string)
	for _, v := range all {
		switch name := v[1]; v[0] {
		case "table":
			rows, err := t.query(`SELECT name FROM pragma_table_info($1)`, name)
			if err != nil {
				return o, err
			}
			if o.columns[name], err = collect(rows, scanString); err != nil {
				return o, err
			}
			o.tables = append(o.tables, name)
		case "index":
			o.indexes = append(o.indexes, name)
		default:
			o.others = append(o.others, v[0]+" "+name)
		}
	}
	return o, nil
}

// missing lists the objects of o that from does not have, each with its kind: "table x", "column
// x.y".
func (o objects) missing(from objects) (list []string) {
	for _, table := range o.tables {
		if from.columns[table] == nil {
			list = append(list, "table "+table)
			continue
		}
		for _, column := range o.columns[table] {
			if !slices.Contains(from.columns[table], column) {
				list = append(list, "column "+table+"."+column)
			}
		}
	}
	for _, index := range o.indexes {
		if !slices.Contains(from.indexes, index) {
			list = append(list, "index "+index)
		}
	}
	for _, other := range o.others {
		if !slices.Contains(from.others, other) {
			list = append(list, other)
		}
	}
	return list
}

// ParseAuditHead parses the text form of a head: SEQ:HASH.
func ParseAuditHead(text string) (h AuditHead, ok bool) {
	seq, hash, _ := strings.Cut(text, ":")
	n, err := strconv.ParseInt(seq, 10, 64)
	if _, notHex := hex.DecodeString(hash); err != nil || n < 1 || len(hash) != 2*sha256.Size || notHex != nil {
		return h, false
	}
	return AuditHead{n, hash}, true
}
