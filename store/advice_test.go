package store

import (
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// TestOpenAdvice: an error of a start says what to do, for faults that the database reports and for
// those of the files.
func TestOpenAdvice(t *testing.T) {
	pgtest.SQLiteOnly(t, "the errors are those of SQLite")
	path := filepath.Join(t.TempDir(), "store.db")
	runSQL(t, path, `CREATE TABLE t (a)`)
	exec := func(options, statement string) error {
		db := must(sql.Open("sqlite", "file:"+path+"?"+options))
		t.Cleanup(func() { db.Close() })
		db.SetMaxOpenConns(1)
		_, err := db.Exec(statement)
		return err
	}
	full := exec("", `PRAGMA max_page_count = 2; INSERT INTO t VALUES (zeroblob(100000))`)
	readOnly := exec("mode=ro", `INSERT INTO t VALUES (1)`)
	mustDo(exec("", `BEGIN EXCLUSIVE`))
	locked := exec("_pragma=busy_timeout(0)", `BEGIN IMMEDIATE`)
	at := func(err error) error { return &fs.PathError{Op: "open", Path: path, Err: err} }
	for advice, err := range map[string]error{
		"the disk is full: make room on it":                          full,
		"can only be read: make it writable for this user (uid ":     readOnly,
		"keeps the database locked, such as a sqlite3 shell":         locked,
		"needs rights to the file and to the directory":              at(syscall.EACCES),
		"mount the file system for writing":                          at(syscall.EROFS),
		"is a directory; name a file in it":                          at(syscall.EISDIR),
		"is a file and not a directory; name another directory":      at(syscall.ENOTDIR),
		"caddy service-user restore FILE --store " + path:            fmt.Errorf("%w: x", ErrDamaged),
		"caddy service-user check --store " + path + "; to put a ba": fmt.Errorf("%w: x", ErrNewer),
	} {
		if err == nil {
			t.Errorf("%s: got no error to begin with", advice)
		} else if got := withRecovery(err, path).Error(); !strings.Contains(got, advice) {
			t.Errorf("%v: got %q, want %q in it", err, got, advice)
		}
	}
	if got := withRecovery(fmt.Errorf("x: %w", os.ErrClosed), path).Error(); got != "x: file already closed" {
		t.Errorf("an error without advice: got %q", got)
	}
}
