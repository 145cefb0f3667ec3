package store

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"modernc.org/sqlite"
)

//go:embed schema.sql
var schema string

// counts are the triggers that keep the numbers of rows in meta since version 4. A
// version that changes them has to drop the old ones first.
//
//go:embed counts.sql
var counts string

// upgrades bring an older database up to date: upgrades[i] leads from version
// i+1 to i+2. The list is only ever appended to; schema.sql always makes the
// newest version.
var upgrades = []string{
	// 2: the catalogue of permissions.
	`CREATE TABLE permissions (
		key         TEXT   PRIMARY KEY,
		name        TEXT   NOT NULL,
		description TEXT   NOT NULL,
		category    TEXT   NOT NULL,
		position    BIGINT NOT NULL,
		rules       TEXT   NOT NULL,
		created_at  BIGINT NOT NULL,
		created_by  TEXT   NOT NULL,
		updated_at  BIGINT NOT NULL
	);
	CREATE TABLE group_permissions (
		group_id       TEXT   NOT NULL REFERENCES permission_groups (id),
		permission_key TEXT   NOT NULL REFERENCES permissions (key),
		created_at     BIGINT NOT NULL,
		PRIMARY KEY (group_id, permission_key)
	);
	CREATE INDEX group_permissions_permission ON group_permissions (permission_key);`,
	// 3: the use of tokens, and tombstones.
	`ALTER TABLE tokens ADD COLUMN used_from        TEXT   NOT NULL DEFAULT '{}';
	ALTER TABLE tokens ADD COLUMN used_rules       TEXT   NOT NULL DEFAULT '{}';
	ALTER TABLE tokens ADD COLUMN refreshed_at     BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE tokens ADD COLUMN count_at_refresh BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE tokens ADD COLUMN quiet_after      BIGINT NOT NULL DEFAULT 0;
	CREATE INDEX tokens_quiet ON tokens (quiet_after) WHERE quiet_after > 0 AND revoked_at = 0;
	CREATE INDEX service_users_deleted ON service_users (deleted_at) WHERE deleted_at > 0;`,
	// 4: how many rows there are.
	`ALTER TABLE meta ADD COLUMN service_users     BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN tokens            BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN permission_groups BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN rules             BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN group_permissions BIGINT NOT NULL DEFAULT 0;
	ALTER TABLE meta ADD COLUMN members           BIGINT NOT NULL DEFAULT 0;
	UPDATE meta SET
		service_users     = (SELECT COUNT(*) FROM service_users WHERE deleted_at = 0),
		tokens            = (SELECT COUNT(*) FROM tokens WHERE revoked_at = 0),
		permission_groups = (SELECT COUNT(*) FROM permission_groups WHERE deleted_at = 0),
		rules             = (SELECT COUNT(*) FROM rules),
		group_permissions = (SELECT COUNT(*) FROM group_permissions),
		members           = (SELECT COUNT(*) FROM members);` + counts,
	// 5: names that read alike. From here on the note beside the database belongs to
	// its owner ([noteSince]).
	`ALTER TABLE service_users ADD COLUMN name_key TEXT NOT NULL DEFAULT '';
	UPDATE service_users SET name_key = service_user_name_key(name);
	CREATE INDEX service_users_name_key ON service_users (name_key) WHERE deleted_at = 0;`,
}

// schemaVersion is the version that this program reads and writes.
var schemaVersion = 1 + len(upgrades)

// applicationID marks our databases (PRAGMA application_id): "CSU" and a zero.
const applicationID = 0x43535500

// The kinds of database that are refused.
var (
	ErrNotOurs = errors.New("not a store of service users")
	ErrNewer   = errors.New("made by a newer version")
	ErrDamaged = errors.New("damaged")
)

// ofdLocking makes SQLite use open file description locks, which other code in
// the process cannot drop by opening and closing the file. It has to be said
// before the first database is opened; where it is not to be had POSIX locks
// do, as everywhere else.
var ofdLocking = sync.OnceFunc(func() { _, _ = sqlite.OFDLocking(true) })

// sqliteDriver is a variable so that tests can put one in between that fails.
var sqliteDriver = "sqlite"

// openSQLite opens the database for reading and for writing, making it when
// there is none, unless it has to exist. admit may refuse it before anything is
// written to it.
func openSQLite(ctx context.Context, path string, now time.Time, log *zap.Logger, existing bool, admit func(context.Context, *sql.DB) error) (read, write *sql.DB, file os.FileInfo, err error) {
	ofdLocking()
	file, err = os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if missing := hasDirectory(path); missing != nil {
			err = missing
		} else if !existing {
			var made bool
			if made, err = createSQLite(ctx, path, now); err == nil {
				file, err = os.Stat(path) // it may be somebody else's
			}
			if made {
				log.Warn("there was no store, and a new one without any service user was made; if clients have credentials already, name the right file, or restore a backup", zap.String("store", path))
			}
		}
	}
	switch {
	case err != nil:
		return nil, nil, nil, err
	case file.IsDir():
		return nil, nil, nil, errors.New("this is a directory; name a file in it")
	case file.Size() == 0:
		return nil, nil, nil, fmt.Errorf("%w: the file is empty, and a store never is; restore it from a backup, or remove the file to begin a new store", ErrNotOurs)
	}
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

// maxReading is how many connections read; all of them are kept, since to open one
// costs more than most of what they are for.
const maxReading = 8

// dropIdle closes the connections that nobody uses.
func dropIdle(db *sql.DB) {
	db.SetMaxIdleConns(0)
	db.SetMaxIdleConns(maxReading)
}

// resolve returns the absolute path of a database. Where that is a symbolic link it
// returns what the link leads to, for there SQLite has the log.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return filepath.EvalSymlinks(path)
	}
	return path, nil
}

// Companions are the ends of the names of the files that belong to a database and lie
// beside it: SQLite's log, its index, its journal, and the note of what was seen.
func Companions() []string { return []string{"-wal", "-shm", "-journal", ".seen"} }

// makePrivate takes the database, and the log and its index that may lie beside
// it, away from everybody but their owner.
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

// sqliteDSN names a database together with what every connection to it sets:
// a pool would run a PRAGMA statement on one of its connections only.
func sqliteDSN(path, mode, extra string) string {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?mode=" + mode
	if mode != "ro" {
		dsn += "&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" +
			"&_pragma=foreign_keys(1)&_pragma=trusted_schema(0)&_pragma=cell_size_check(1)"
	} else {
		dsn += "&_pragma=busy_timeout(5000)"
	}
	if extra != "" {
		dsn += "&" + extra
	}
	return dsn
}

// hasDirectory reports an error when a database at path would have no directory.
func hasDirectory(path string) error {
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return fmt.Errorf("the directory %q does not exist; create it first", dir)
	}
	return nil
}

// createSQLite makes a new database beside its place and moves it there whole,
// so that a file at the place is either no store or a complete one. When
// another process is faster, its store is taken, and made is false.
func createSQLite(ctx context.Context, path string, now time.Time) (made bool, err error) {
	dir := filepath.Dir(path)
	for _, suffix := range Companions() {
		if _, err := os.Lstat(path + suffix); err == nil {
			if _, err := os.Lstat(path); err == nil {
				return false, nil // another process was faster
			}
			return false, fmt.Errorf("%w: the database is gone, but %q, which belongs to it, is still there; restore the database from a backup, or remove that too to begin a new store", ErrNotOurs, path+suffix)
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
	err = os.Link(temp, path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return false, fmt.Errorf("creating it: %w", err)
	}
	return err == nil, syncDir(dir)
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
	if _, err := tx.ExecContext(ctx, `
		INSERT INTO meta (id, instance_id, revision, audit_seq, audit_hash, created_at)
		VALUES (1, $1, 0, 0, '', $2)`,
		newID("store", now), now.Unix()); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d`, applicationID, schemaVersion)); err != nil {
		return err
	}
	return tx.Commit()
}

// checkSQLite looks at a file without changing it, and has admit, if it is ours,
// look at it too.
func checkSQLite(ctx context.Context, path string, admit func(context.Context, *sql.DB) error) error {
	extra := withoutLog(path)
	db, err := sql.Open(sqliteDriver, sqliteDSN(path, "ro", extra))
	if err != nil {
		return err
	}
	defer db.Close()
	var id, version int
	if err := db.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&id); err != nil {
		return explainSQLite(err)
	}
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return explainSQLite(err)
	}
	if id != applicationID {
		return fmt.Errorf("%w: the database belongs to another program (application id %#08x); name another file", ErrNotOurs, uint32(id))
	}
	if err := checkSchema(version); err != nil {
		return err
	}
	if extra == "" {
		if err := checkLog(ctx, db, path); err != nil {
			return err
		}
	}
	return admit(ctx, db)
}

// withoutLog says, where nothing is in a log, what keeps SQLite from making one
// beside a database that may be somebody else's.
func withoutLog(path string) string {
	if _, err := os.Stat(path + "-wal"); errors.Is(err, fs.ErrNotExist) {
		return "immutable=1"
	}
	return ""
}

// checkLog refuses a log that was written for another database. SQLite would take
// its pages for newer ones of this one.
func checkLog(ctx context.Context, withLog *sql.DB, path string) error {
	alone, err := sql.Open(sqliteDriver, sqliteDSN(path, "ro", "immutable=1")) // looks at no log
	if err != nil {
		return err
	}
	defer alone.Close()
	var id, idOfLog string
	if err := withLog.QueryRowContext(ctx, `SELECT instance_id FROM meta`).Scan(&idOfLog); err != nil {
		return explainSQLite(err)
	}
	// Somebody may be writing the log into the file just now.
	if err := alone.QueryRowContext(ctx, `SELECT instance_id FROM meta`).Scan(&id); err == nil && id != idOfLog {
		return fmt.Errorf("%w: the file is of the store %s, and the log beside it, %q, of the store %s; put back the log that belongs to it", ErrDamaged, id, path+"-wal", idOfLog)
	}
	return nil
}

// checkSchema refuses a version of the schema that this program does not know.
func checkSchema(version int) error {
	switch {
	case version > schemaVersion:
		return fmt.Errorf("%w: the database has schema version %d, this program knows %d; update the program, or restore a backup that the older one made", ErrNewer, version, schemaVersion)
	case version < 1:
		return fmt.Errorf("%w: the database has no schema version; restore it from a backup", ErrNotOurs)
	}
	return nil
}

// The SQLite result codes that mean something to an operator.
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

func explainSQLite(err error) error {
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case sqliteNotADB:
			return fmt.Errorf("%w: the file is not a SQLite database; name another file", ErrNotOurs)
		case sqliteCorrupt:
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		case sqliteCantOpen:
			return fmt.Errorf("the file cannot be opened; it and its directory must be readable and writable for this user: %w", err)
		}
	}
	return err
}

// upgradeSQLite brings an older schema up to date, all steps in one
// transaction, and leaves a copy of the database as it was.
func upgradeSQLite(ctx context.Context, db *sql.DB, path string, log *zap.Logger) error {
	tx, err := db.BeginTx(ctx, nil) // nobody else can write from here on
	if err != nil {
		return explainSQLite(err)
	}
	defer tx.Rollback()
	var version int
	if err := tx.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return explainSQLite(err)
	}
	if err := checkSchema(version); err != nil || version == schemaVersion {
		return err
	}
	copied, err := copySQLite(ctx, path)
	if err != nil {
		return fmt.Errorf("copying the database before its schema is upgraded from version %d: %w", version, err)
	}
	defer os.Remove(copied)
	for v := version; v < schemaVersion; v++ {
		if _, err := tx.ExecContext(ctx, upgrades[v-1]); err != nil {
			return fmt.Errorf("%w: upgrading the schema from version %d: %w", ErrDamaged, v, err)
		}
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA user_version = %d`, schemaVersion)); err != nil {
		return err
	}
	kept, err := linkFree(copied, fmt.Sprintf("%s.v%d-backup", path, version))
	if err != nil {
		return fmt.Errorf("keeping a copy of the database before its schema is upgraded: %w", err)
	}
	if err := tx.Commit(); err != nil {
		os.Remove(kept)
		return err
	}
	log.Info("the store was upgraded; a copy of it as it was is kept", zap.String("store", path),
		zap.Int("from", version), zap.Int("to", schemaVersion), zap.String("copy", kept))
	return nil
}

// copySQLite writes what is committed into a new file beside the database, which
// only its owner can read, and returns its name.
func copySQLite(ctx context.Context, path string) (name string, err error) {
	file, err := os.CreateTemp(filepath.Dir(path), ".copy-*.db") // 0600
	if err != nil {
		return "", err
	}
	defer file.Close()
	name = file.Name()
	defer func() {
		if err != nil {
			os.Remove(name)
		}
	}()
	if err := giveTo(file, path); err != nil {
		return "", err
	}
	db, err := sql.Open(sqliteDriver, sqliteDSN(path, "ro", ""))
	if err != nil {
		return "", err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, `VACUUM INTO $1`, name); err != nil { // fills an empty file
		return "", explainSQLite(err)
	}
	return name, file.Sync()
}

// linkFree gives a file the wanted name, or that one with a number where it is
// taken, for good.
func linkFree(file, want string) (name string, err error) {
	name = want
	for n := 2; ; n++ {
		err := os.Link(file, name)
		if err == nil {
			return name, syncDir(filepath.Dir(name))
		}
		if !errors.Is(err, fs.ErrExist) || n > 1000 {
			return "", err
		}
		name = fmt.Sprintf("%s-%d", want, n)
	}
}

// syncDir makes a new directory entry durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// isTrouble reports whether an error comes from around the database, not from what
// it holds: the disk, a lock, the end of patience.
func isTrouble(err error) bool {
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case sqliteBusy, sqliteLocked, sqliteReadOnly, sqliteIOErr, sqliteFull, sqliteCantOpen:
			return true
		}
	}
	var p *fs.PathError
	return errors.As(err, &p) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// damage marks an error of a load: what a store holds cannot be enforced.
func damage(err error) error {
	if isTrouble(err) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrNewer) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// withRecovery adds to the refusal of a database how to get out of it.
func withRecovery(err error, path string) error {
	if !errors.Is(err, ErrNotOurs) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrDamaged) {
		return err
	}
	word := ShellWord(path)
	return fmt.Errorf("%w. To look closer, run: caddy service-user check --store %s; to put a backup in its place: caddy service-user restore FILE --store %s", err, word, word)
}

// ShellWord quotes a path for a command line where the shell needs it.
func ShellWord(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[0-9A-Za-z@%+=:,./_-]+$`)
