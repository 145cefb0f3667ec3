package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"modernc.org/sqlite"
)

// applicationID marks the databases of this program (PRAGMA application_id): "CSU" and a zero byte.
const applicationID = 0x43535500

// The kinds of database that [Open] rejects.
var (
	ErrNotOurs = errors.New("not a store of service users")
	ErrNewer   = errors.New("made by a newer version")
	ErrDamaged = errors.New("damaged")
)

// ofdLocking makes SQLite use open file description locks. Other code in the process can drop POSIX
// locks by opening and closing the file, but not these. ofdLocking must run before the first
// database is opened. Where the system lacks such locks, SQLite uses POSIX locks as usual.
var ofdLocking = sync.OnceFunc(func() { _, _ = sqlite.OFDLocking(true) })

// sqliteEngine is the [engine] of a store in a SQLite file.
type sqliteEngine struct {
	files
	progress progress
	store    *Store
}

func (e *sqliteEngine) open(ctx context.Context) (err error) {
	s := e.store
	s.read, s.write, e.opened, err = openSQLite(ctx, e.path, s.Now(), s.log, s.opts.Existing, e.compareWithNote)
	return err
}

func (e *sqliteEngine) advise(err error) error { return withRecovery(err, e.path) }

func (e *sqliteEngine) older() string {
	return "stop Caddy, run: caddy service-user accept-older --store " + ShellWord(e.path) + ", and start it again"
}

func (e *sqliteEngine) version(ctx context.Context, q *sql.Tx) (int, error) {
	return sqliteVersion(ctx, q)
}

func (e *sqliteEngine) beginWrite(ctx context.Context) (*sql.Tx, error) {
	return e.store.write.BeginTx(ctx, nil)
}

// beginChange relies on _txlock=immediate: BEGIN takes the lock that only one writer can have.
func (e *sqliteEngine) beginChange(ctx context.Context) (*sql.Tx, error) {
	if e.store.Fault() != "" {
		// The write connection caches pages, which can hide that the file is damaged. The
		// change would succeed, and be lost at the next start. The reload reads the file.
		if err := e.store.reload(ctx, e.store.read); err != nil {
			return nil, fmt.Errorf("the store cannot be read: %w", err)
		}
	}
	sqlTx, err := e.beginWrite(ctx)
	if err != nil {
		return nil, fmt.Errorf("beginning a change: %w", err)
	}
	if err := e.logInPlace(); err != nil {
		return nil, errors.Join(err, sqlTx.Rollback())
	}
	return sqlTx, nil
}

// passing is false: SQLite itself waits for locks.
func (e *sqliteEngine) passing(error) bool { return false }

func (e *sqliteEngine) arguments(args []any) []any { return args }

// lockRows is empty: a transaction that writes has all rows.
func (e *sqliteEngine) lockRows() string { return "" }

func (e *sqliteEngine) commit(t *tx) error {
	if err := t.Commit(); err != nil {
		// After a failed commit SQLite may still have written the change to the log.
		return fmt.Errorf("%w: committing: %w", ErrUncertain, errors.Join(err, t.ctx.Err()))
	}
	return nil
}

func (e *sqliteEngine) catalogue() (objects, columns string) {
	return `SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY name`,
		`SELECT name FROM pragma_table_info($1)`
}

// checkPages runs SQLite's checks of its pages and indexes, and of foreign keys.
func (e *sqliteEngine) checkPages(c *checker) {
	c.each("the database", fmt.Sprintf(`PRAGMA integrity_check(%d)`, maxFindings), func(rows *sql.Rows) error {
		text, err := scanString(rows)
		if err == nil && text != "ok" {
			c.addFinding("the database is damaged: %s; %s", text, mendByRestore)
		}
		return err
	})
	c.each("references", `PRAGMA foreign_key_check`, func(rows *sql.Rows) error {
		var table, parent string
		var row sql.NullInt64
		var key int
		err := rows.Scan(&table, &row, &parent, &key)
		if err == nil {
			c.addFinding("row %d of %s belongs to none of the %s; delete it, or %s",
				row.Int64, table, parent, mendByRestore)
		}
		return err
	})
}

func (e *sqliteEngine) canCopy() error { return nil }

func (e *sqliteEngine) forms() map[string]string {
	return map[string]string{
		"blob": `typeof(COLUMN) = 'blob'`,
		"id":   `COLUMN NOT GLOB 'KIND_` + strings.Repeat("[0-9A-Za-z]", 27) + `'`,
		"control": `COLUMN GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*'
			OR instr(COLUMN, char(0)) > 0`,
		"hash": `length(COLUMN) <> 64 OR COLUMN GLOB '*[^0-9a-f]*'`,
	}
}

func (e *sqliteEngine) readers() int { return maxReaders }

func (e *sqliteEngine) work() []func(context.Context) {
	return []func(context.Context){e.watch, every(noteEvery, e.keepNote)}
}

func (e *sqliteEngine) end() { e.writeNote(0) }

// sqliteVersion returns the schema version of a database.
func sqliteVersion(ctx context.Context, q *sql.Tx) (version int, err error) {
	if err = q.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		err = fmt.Errorf("reading the schema version: %w", err)
	}
	return version, err
}

// sqliteDriver is a variable so that tests can insert a driver that fails.
var sqliteDriver = "sqlite"

// openSQLite opens the database, once for reading and once for writing. It creates a missing
// database, unless existing is true. admit may reject the database before anything is written to
// it.
func openSQLite(
	ctx context.Context, path string, now time.Time, log *zap.Logger, existing bool,
	admit func(context.Context, *sql.DB) error,
) (read, write *sql.DB, file os.FileInfo, err error) {
	ofdLocking()
	file, err = os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if missing := hasDirectory(path); missing != nil {
			err = missing
		} else if !existing {
			var made bool
			if made, err = createSQLite(ctx, path, now); err == nil {
				file, err = os.Stat(path) // another process may have created it
			}
			if made {
				log.Warn("there was no store, and a new one without any service user was made; "+
					"if clients have credentials already, name the right file, or restore a backup",
					zap.String("store", path))
			}
		}
	}
	switch {
	case err != nil:
		return nil, nil, nil, err
	case file.IsDir():
		return nil, nil, nil, errors.New("this is a directory; name a file in it")
	case file.Size() == 0:
		return nil, nil, nil, fmt.Errorf("%w: the file is empty, and a store never is; "+
			"restore it from a backup, or remove the file to begin a new store", ErrNotOurs)
	}
	// All checks come before the connections below, which create a log and thereby write.
	if err := checkSQLite(ctx, path, admit); err != nil {
		return nil, nil, nil, err
	}
	if err := makePrivate(path); err != nil {
		return nil, nil, nil, fmt.Errorf("the file can be read by others and that cannot be mended: %w", err)
	}
	write, err = sql.Open(sqliteDriver, sqliteDSN(path, "rw", "_txlock=immediate"))
	if err != nil {
		return nil, nil, nil, err
	}
	// SQLite allows one writer at a time. A second connection would only wait for its lock.
	write.SetMaxOpenConns(1)
	if err := upgradeSQLite(ctx, write, path, log); err != nil {
		write.Close()
		return nil, nil, nil, err
	}
	read, err = sql.Open(sqliteDriver, sqliteDSN(path, "rw", "_pragma=query_only(1)"))
	if err != nil {
		write.Close()
		return nil, nil, nil, err
	}
	read.SetMaxOpenConns(maxReading)
	read.SetMaxIdleConns(maxReading)
	return read, write, file, nil
}

// maxReading is the number of connections for reading. All of them stay open, because opening one
// costs more than most of the queries on it.
const maxReading = 8

// dropIdle closes the connections that are not in use.
func dropIdle(db *sql.DB) {
	db.SetMaxIdleConns(0)
	db.SetMaxIdleConns(maxReading)
}

// resolve returns the absolute path of a database. It follows a symbolic link, because SQLite has
// the log beside the target of the link.
func resolve(path string) (string, error) {
	if IsURL(path) {
		return "", errNoFile
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return filepath.EvalSymlinks(path)
	}
	return path, nil
}

// Companions returns the suffixes of the side files of a database: SQLite's log, the index of the
// log, its journal, and the note of how far the store has come.
func Companions() []string { return []string{"-wal", "-shm", "-journal", ".seen"} }

// makePrivate removes all permissions of group and others from the database, its log and the index
// of the log.
func makePrivate(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			err = os.Chmod(path+suffix, 0o600)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// sqliteDSN returns the data source name of a database, with the settings of every connection. A
// PRAGMA statement would set them on only one connection of a pool.
func sqliteDSN(path, mode, extra string) string {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?mode=" + mode + "&_pragma=busy_timeout(5000)"
	if mode != "ro" {
		dsn += "&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" +
			"&_pragma=foreign_keys(1)&_pragma=trusted_schema(0)&_pragma=cell_size_check(1)"
	}
	return dsn + "&" + extra
}

// hasDirectory returns an error if the directory of path does not exist.
func hasDirectory(path string) error {
	info, err := os.Stat(filepath.Dir(path))
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	return ExplainPath(path, err)
}

// createSQLite creates a new database beside path and then links it to path, so that the file at
// path is either absent or a complete store. If another process creates one first, made is false
// and that store stays.
func createSQLite(ctx context.Context, path string, now time.Time) (made bool, err error) {
	dir := filepath.Dir(path)
	for _, suffix := range Companions() {
		if _, err := os.Lstat(path + suffix); err == nil {
			if _, err := os.Lstat(path); err == nil {
				return false, nil // another process has created it between the two calls
			}
			return false, fmt.Errorf(
				"%w: the database is gone, but %q, which belongs to it, is still there; "+
					"restore the database from a backup, or remove that too to begin a new store",
				ErrNotOurs, path+suffix)
		}
	}
	file, err := os.CreateTemp(dir, ".new-*.db") // 0600
	if err != nil {
		return false, fmt.Errorf("creating it: %w", err)
	}
	temp := file.Name()
	err = errors.Join(giveTo(file, path), file.Close())
	defer func() {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
			os.Remove(temp + suffix)
		}
	}()
	if err != nil {
		return false, fmt.Errorf("creating it: %w", err)
	}
	db, err := sql.Open(sqliteDriver, sqliteDSN(temp, "rw", ""))
	if err != nil {
		return false, err
	}
	defer db.Close()
	if err := initSQLite(ctx, db, now); err != nil {
		return false, fmt.Errorf("creating it: %w", err)
	}
	if err := db.Close(); err != nil { // checkpoints and removes the log
		return false, fmt.Errorf("creating it: %w", err)
	}
	// Link, unlike Rename, never replaces a file that another process has created.
	err = os.Link(temp, path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return false, fmt.Errorf("creating it: %w", err)
	}
	return err == nil, SyncDir(dir)
}

func initSQLite(ctx context.Context, db *sql.DB, now time.Time) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, schema+counts); err != nil {
		return err
	}
	if err := insertMeta(ctx, tx, now); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d`,
		applicationID, schemaVersion)); err != nil {
		return err
	}
	return tx.Commit()
}

// checkSQLite examines a file without changing it. If it is a store, checkSQLite calls admit for
// further checks.
func checkSQLite(ctx context.Context, path string, admit func(context.Context, *sql.DB) error) error {
	extra := withoutLog(path)
	db, err := sql.Open(sqliteDriver, sqliteDSN(path, "ro", extra))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := checkOurs(ctx, db.QueryRowContext); err != nil {
		return err
	}
	if extra == "" {
		if err := checkLog(ctx, db, path); err != nil {
			return err
		}
	}
	return admit(ctx, db)
}

// withoutLog returns the option immutable=1 if the database has no log, and "" otherwise. The
// option keeps SQLite from creating a log beside a database that may belong to another program.
func withoutLog(path string) string {
	if _, err := os.Stat(path + "-wal"); errors.Is(err, fs.ErrNotExist) {
		return "immutable=1"
	}
	return ""
}

// checkLog rejects a log that was written for another database. SQLite would take its pages for
// newer pages of this one.
func checkLog(ctx context.Context, withLog *sql.DB, path string) error {
	// immutable=1 makes SQLite read only the database file, not the log.
	alone, err := sql.Open(sqliteDriver, sqliteDSN(path, "ro", "immutable=1"))
	if err != nil {
		return err
	}
	defer alone.Close()
	var id, idOfLog string
	if err := withLog.QueryRowContext(ctx, `SELECT instance_id FROM meta`).Scan(&idOfLog); err != nil {
		return explainSQLite(err)
	}
	// An error is ignored: another process may be copying the log into the file at this moment.
	if err := alone.QueryRowContext(ctx, `SELECT instance_id FROM meta`).Scan(&id); err == nil && id != idOfLog {
		return fmt.Errorf("%w: the file is of the store %s, and the log beside it, %q, of the store %s; "+
			"put back the log that belongs to it", ErrDamaged, id, path+"-wal", idOfLog)
	}
	return nil
}

// The SQLite result codes that this package distinguishes, https://sqlite.org/rescode.html.
const (
	sqliteBusy     = 5
	sqliteLocked   = 6
	sqliteReadOnly = 8
	sqliteIOErr    = 10
	sqliteCorrupt  = 11
	sqliteFull     = 13
	sqliteCantOpen = 14
	sqliteNotADB   = 26
)

// sqliteCode returns the result code of an error of SQLite, and 0 for other errors.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code() & 0xff // the low byte is the primary result code; the rest refines it
}

func explainSQLite(err error) error {
	switch sqliteCode(err) {
	case sqliteNotADB:
		return fmt.Errorf("%w: the file is not a SQLite database; name another file", ErrNotOurs)
	case sqliteCorrupt:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case sqliteCantOpen:
		return fmt.Errorf("the file cannot be opened; "+
			"it and its directory must be readable and writable for this user: %w", err)
	}
	return err
}

// SyncDir makes new entries of a directory durable. Windows does not let a process do that.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// isExternalFault reports whether an error comes from outside the contents of the database: from
// the disk, a lock, a permission or a timeout.
func isExternalFault(err error) bool {
	switch sqliteCode(err) {
	case sqliteBusy, sqliteLocked, sqliteReadOnly, sqliteIOErr, sqliteFull, sqliteCantOpen:
		return true
	}
	var p *fs.PathError
	return isPostgresFault(err) || errors.As(err, &p) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// markDamaged adds [ErrDamaged] to an error of a load that the contents of the store caused.
func markDamaged(err error) error {
	if isExternalFault(err) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrNewer) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// withRecovery adds the next steps to an error of opening a database.
func withRecovery(err error, path string) error {
	if !errors.Is(err, ErrNotOurs) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrDamaged) {
		_, full := FaultReason(err)
		switch code := sqliteCode(err); {
		case full:
			return fmt.Errorf("%w; the disk is full: make room on it", err)
		case code == sqliteBusy || code == sqliteLocked:
			return fmt.Errorf("%w; another program keeps the database locked, such as a sqlite3 shell "+
				"or a backup tool: end it", err)
		case code == sqliteReadOnly:
			return fmt.Errorf("%w; the file or its file system can only be read: "+
				"make it writable for this user (uid %d)", err, os.Geteuid())
		}
		if other := (*fs.PathError)(nil); errors.As(err, &other) && other.Path == path+".seen" {
			return err // the error about the note has its own advice
		}
		return ExplainPath(path, err)
	}
	word := ShellWord(path)
	return fmt.Errorf("%w. To look closer, run: caddy service-user check --store %s; "+
		"to put a backup in its place: caddy service-user restore FILE --store %s", err, word, word)
}

// ShellWord returns s as one word of a shell command line. It adds quotes only where they are
// needed.
func ShellWord(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[0-9A-Za-z@%+=:,./_-]+$`)
