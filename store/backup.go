package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// Backup copies the store while it is in use, with the usage of tokens up to now. The copy contains
// the hashes of all tokens, so the audit trail first records the actor; if that fails, so does
// Backup. Only admins may call it. The caller must close the copy.
func (s *Store) Backup(ctx context.Context, by Actor) (*Backup, error) {
	if by.Scope != nil {
		return nil, notAllowed("only an admin may back up the store")
	}
	if err := s.canCopy(); err != nil {
		return nil, err
	}
	if err := s.flushAll(ctx); err != nil {
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
	if err := copySQLite(ctx, s.path, path); err != nil {
		return nil, err
	}
	// A check before the copy would not notice a file that was replaced in between.
	if err := s.inPlace(); err != nil {
		return nil, err
	}
	b := &Backup{dir: dir}
	var err error
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

// Pristine reports whether the file at path is a backup that no program has opened as a store: its
// last change is the backup, and no log and no note is beside it.
func Pristine(ctx context.Context, path string) bool {
	path, err := resolve(path)
	if err != nil || len(filesOf(path)) > 1 || knownFile(path) != nil {
		return false
	}
	ofdLocking()
	var action string
	err = checkSQLite(ctx, path, func(ctx context.Context, db *sql.DB) error {
		return db.QueryRowContext(ctx, `
			SELECT action FROM audit_events WHERE seq = (SELECT audit_seq FROM meta)`).Scan(&action)
	})
	return err == nil && action == "store.backup"
}

// knownFile rejects a path that cannot be a database, with an error that says why.
func knownFile(path string) error {
	path, err := resolve(path)
	if err != nil {
		return err
	}
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
	return sql.Open(sqliteDriver, sqliteDSN(place, "ro", withoutLog(place)))
}

func (t *tx) contents() (c Contents, err error) {
	if c.Schema, err = t.database().version(t.ctx, t.Tx); err == nil {
		err = t.row(`SELECT revision, audit_seq, audit_hash FROM meta`).
			Scan(&c.Revision, &c.Head.Seq, &c.Head.Hash)
	}
	if err == nil {
		err = t.row(`SELECT COUNT(*) FROM service_users WHERE deleted_at = 0`).Scan(&c.ServiceUsers)
	}
	return c, err
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
