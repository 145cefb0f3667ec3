package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

// Mark is the progress of a store. A file beside the database, PATH.seen (the note), contains it. A
// database that was restored from a backup, or has lost its log, is behind its note.
type Mark struct {
	Instance  string `json:"instance"` // the id of the store
	Revision  int64  `json:"revision"` // the highest revision that was in force
	AuditSeq  int64  `json:"audit_seq"`
	AuditHash string `json:"audit_hash"`
	// Clock is the latest time that the store's clock has shown. In the mark of a database it
	// is the time of the last change.
	Clock time.Time `json:"clock"`
}

// ErrOlder is the error for a store that is older than before, or has another history.
var ErrOlder = errors.New("older than before")

// Seen returns the note beside the database at path. Without a note it returns the zero Mark.
func Seen(path string) (m Mark, err error) {
	if path, err = resolve(path); err != nil {
		return Mark{}, err
	}
	text, err := os.ReadFile(path + ".seen")
	if errors.Is(err, fs.ErrNotExist) {
		return Mark{}, nil
	}
	if err != nil {
		return Mark{}, err
	}
	if err := json.Unmarshal(text, &m); err != nil || m.Instance == "" {
		return Mark{}, fmt.Errorf("%q is damaged: %w", path+".seen",
			cmp.Or(err, errors.New("it does not name a store")))
	}
	return m, nil
}

// write writes the note beside the database at path. It replaces the file in one step, and gives it
// to the owner of the database.
func (m Mark) write(path string) error {
	text, err := json.Marshal(m) // Marshal fails for years after 9999
	if err != nil {
		return err
	}
	err = replaceFile(path+".seen", ".seen-*", text, func(file *os.File) error { return giveTo(file, path) })
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// replaceFile replaces a file by a line of text in one step, by way of a temporary file beside it. prepare, unless it
// is nil, gets the temporary file before it has its name.
func replaceFile(path, temporary string, text []byte, prepare func(*os.File) error) error {
	file, err := os.CreateTemp(filepath.Dir(path), temporary) // 0600
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	if prepare != nil {
		err = errors.Join(err, prepare(file))
	}
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}

// Holds returns the mark of the database at path without opening it as a store.
func Holds(ctx context.Context, path string) (m Mark, err error) {
	ofdLocking()
	if path, err = resolve(path); err != nil {
		return m, err
	}
	err = checkSQLite(ctx, path, func(ctx context.Context, db *sql.DB) (err error) {
		m, err = readMark(ctx, db)
		return err
	})
	return m, withRecovery(err, path)
}

// readMark returns the mark of a database.
func readMark(ctx context.Context, db *sql.DB) (m Mark, err error) {
	var at int64
	err = db.QueryRowContext(ctx, `
		SELECT instance_id, revision, audit_seq, audit_hash,
			COALESCE((SELECT at FROM audit_events WHERE seq = audit_seq), created_at)
		FROM meta`).Scan(&m.Instance, &m.Revision, &m.AuditSeq, &m.AuditHash, &at)
	m.Clock = fromUnix(at)
	return m, explainSQLite(err)
}

// AcceptOlder makes the present state of the database at path, and the time now, its note, so that
// [Open] accepts it. No store may be open on the database.
func AcceptOlder(ctx context.Context, path string, now time.Time) error {
	path, err := resolve(path)
	if err != nil {
		return err
	}
	m, err := Holds(ctx, path)
	if err != nil {
		return err
	}
	m.Clock = now.UTC().Truncate(time.Second)
	if err := m.write(path); err != nil {
		return fmt.Errorf("noting what was accepted: %w", err)
	}
	return nil
}

// compareWithNote compares the database with its note before [Open] uses it. It rejects an older
// copy, and sets the clock to the latest time in the note.
func (e *sqliteEngine) compareWithNote(ctx context.Context, db *sql.DB) error {
	seen, err := Seen(e.path)
	if err != nil {
		if err := e.unread(ctx, db, err); err != nil {
			return err
		}
	}
	held, err := readMark(ctx, db)
	if err != nil {
		return err
	}
	e.progress.instance = held.Instance
	if seen.Instance != held.Instance {
		if seen.Instance != "" {
			e.store.log.Warn("this store is not the one that was at this path before; "+
				"if that is a mistake, put the earlier one back",
				zap.String("store", e.path), zap.String("instance", held.Instance),
				zap.String("before", seen.Instance), zap.Int64("revision_before", seen.Revision))
		}
		return nil
	}
	again := fmt.Sprintf("if you have restored it on purpose, run: caddy service-user accept-older --store %s",
		ShellWord(e.path))
	if held.Revision < seen.Revision {
		return fmt.Errorf("%w: the store holds revision %d, and revision %d was in force before: "+
			"it is an older copy, or its log was lost; %s", ErrOlder, held.Revision, seen.Revision, again)
	}
	// An older copy that was changed since can have the same revision, or a higher one. Its
	// audit trail differs.
	hash := held.AuditHash
	if held.AuditSeq != seen.AuditSeq {
		if hash, err = hashOf(ctx, db.QueryRowContext, seen.AuditSeq); err != nil {
			return err
		}
	}
	if hash != seen.AuditHash {
		return fmt.Errorf("%w: the store holds revision %d, "+
			"but its audit trail does not have the record %d that was there at revision %d: "+
			"it is an older copy that was changed since; %s",
			ErrOlder, held.Revision, seen.AuditSeq, seen.Revision, again)
	}
	e.store.clock.raise(seen.Clock)
	// Otherwise noted stays zero, so that keepNote writes a note that the owner of the store
	// can read.
	if ownNote(e.path) {
		e.progress.noted = seen
	}
	return nil
}

// noteSince is the schema version since which every version of the program gives the note to the
// owner of the store.
const noteSince = 5

// unread rejects a start if the note exists and cannot be read, because an older copy of the store
// would not be noticed. Stores with a schema before noteSince are an exception: root may have left
// a note that the owner cannot read. The first start replaces it.
func (e *sqliteEngine) unread(ctx context.Context, db *sql.DB, cause error) error {
	mend := fmt.Sprintf("if this is the newest copy of the store, run: caddy service-user accept-older --store %s",
		ShellWord(e.path))
	if errors.Is(cause, fs.ErrPermission) {
		mend = "run: " + giveNote(e.path)
	}
	var version int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return explainSQLite(err)
	}
	if version >= noteSince {
		return fmt.Errorf("the note of how far the store has come cannot be read, "+
			"and without it an older copy of the store would not be noticed: %w; %s", cause, mend)
	}
	e.store.log.Warn("the note of how far the store has come cannot be read: "+
		"this start does not notice an older copy of the store, and writes a new note; "+
		"from the next start on a note that cannot be read is refused",
		zap.String("store", e.path), zap.Error(cause), zap.String("advice", mend))
	return nil
}

// progress is what the note must say, as far as known. After Open only keepNote uses it.
type progress struct {
	instance string // the id of the store in the database
	noted    Mark   // the last note that was written or found
	failure  failureLatch
}

// noteEvery is how often the store checks whether the note must be written. If only the clock has
// changed, it is written once in clockEvery.
const (
	noteEvery  = time.Second
	clockEvery = time.Minute
)

// keepNote keeps the note up to date.
func (e *sqliteEngine) keepNote(context.Context) {
	_ = e.store.safely("noting", func() error { e.writeNote(clockEvery); return nil })
}

// writeNote writes the note if the revision has changed, or if the clock has advanced by more than
// after since the last note. It does not write while the store has a fault: an operator may be
// accepting an older database at that moment.
func (e *sqliteEngine) writeNote(after time.Duration) {
	e.store.clock.logBack(e.store.log, e.older())
	at, noted := e.store.inForce.Load(), e.progress.noted
	m := Mark{
		Instance: e.progress.instance, Revision: at.revision, AuditSeq: at.seq, AuditHash: at.hash,
		Clock: e.store.Now().UTC().Truncate(time.Second),
	}
	if e.store.Fault() != "" ||
		m.Revision == noted.Revision && m.Instance == noted.Instance && m.Clock.Sub(noted.Clock) <= after {
		return
	}
	// Another process with the same store may have written a later note.
	if other, err := Seen(e.path); err == nil && other.Instance == m.Instance {
		if other.Revision > m.Revision {
			m.Revision, m.AuditSeq, m.AuditHash = other.Revision, other.AuditSeq, other.AuditHash
		}
		if other.Clock.After(m.Clock) {
			m.Clock = other.Clock
		}
	}
	err := m.write(e.path)
	if err == nil {
		e.progress.noted = m
	}
	e.progress.failure.report(err, func() {
		e.store.log.Error("the note of how far the store has come cannot be written; "+
			"after a restart an older copy of the store might not be noticed",
			zap.String("store", e.path), zap.Error(err))
	})
}

// failureLatch logs a failure once, when it begins.
type failureLatch struct{ failing bool }

// report calls log if err is not nil and the error before it was nil.
func (l *failureLatch) report(err error, log func()) {
	if err != nil && !l.failing {
		log()
	}
	l.failing = err != nil
}
