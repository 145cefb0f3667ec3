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

// Mark is how far a store has come, as it is noted beside the database in a file
// of its own, PATH.seen. A database that was restored from a backup, or has lost
// its log, has not come as far.
type Mark struct {
	Instance  string    `json:"instance"` // which store
	Revision  int64     `json:"revision"` // the highest that was in force
	AuditSeq  int64     `json:"audit_seq"`
	AuditHash string    `json:"audit_hash"`
	Clock     time.Time `json:"clock"` // the latest that it ever was; of a database, its last change
}

// ErrOlder is a store that is older than it was before, or has another history.
var ErrOlder = errors.New("older than before")

// Seen returns what is noted beside the database at path; without a note, zero.
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
		return Mark{}, fmt.Errorf("%q is damaged: %w", path+".seen", cmp.Or(err, errors.New("it names no store")))
	}
	return m, nil
}

// write notes a mark beside the database at path: whole, or not at all. The note
// belongs to the owner of the database.
func (m Mark) write(path string) error {
	text, err := json.Marshal(m) // fails after the year 9999
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".seen-*") // 0600
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	err = errors.Join(err, giveTo(file, path), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path+".seen")
	}
	if err != nil {
		os.Remove(file.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Holds returns how far the database at path has come, without opening it as a
// store.
func Holds(ctx context.Context, path string) (m Mark, err error) {
	ofdLocking()
	if path, err = resolve(path); err != nil {
		return m, err
	}
	err = checkSQLite(ctx, path, func(ctx context.Context, db *sql.DB) (err error) {
		m, err = holds(ctx, db)
		return err
	})
	return m, withRecovery(err, path)
}

func holds(ctx context.Context, db *sql.DB) (m Mark, err error) {
	var at int64
	err = db.QueryRowContext(ctx, `
		SELECT instance_id, revision, audit_seq, audit_hash, COALESCE((SELECT at FROM audit_events WHERE seq = audit_seq), created_at)
		FROM meta`).Scan(&m.Instance, &m.Revision, &m.AuditSeq, &m.AuditHash, &at)
	m.Clock = fromUnix(at)
	return m, explainSQLite(err)
}

// AcceptOlder notes that the database at path is to be taken as it is, and that it
// is now. No store must be open on it.
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

// takeUp compares the store with what is noted beside it. It refuses an older copy,
// and sets the clock to where it was.
func (s *Store) takeUp(ctx context.Context, db *sql.DB) error {
	seen, err := Seen(s.path)
	if err != nil {
		if err := s.unread(ctx, db, err); err != nil {
			return err
		}
	}
	held, err := holds(ctx, db)
	if err != nil {
		return err
	}
	s.instance = held.Instance
	if seen.Instance != held.Instance {
		if seen.Instance != "" {
			s.log.Warn("this is another store than was here before; if that was not meant, put the other one back",
				zap.String("store", s.path), zap.String("instance", held.Instance), zap.String("before", seen.Instance), zap.Int64("revision_before", seen.Revision))
		}
		return nil
	}
	again := fmt.Sprintf("if you have restored it on purpose, run: caddy service-user accept-older --store %s", ShellWord(s.path))
	if held.Revision < seen.Revision {
		return fmt.Errorf("%w: the store holds revision %d, and revision %d was in force before: it is an older copy, or its log was lost; %s", ErrOlder, held.Revision, seen.Revision, again)
	}
	hash := held.AuditHash
	if held.AuditSeq != seen.AuditSeq {
		err = db.QueryRowContext(ctx, `SELECT hash FROM audit_events WHERE seq = $1`, seen.AuditSeq).Scan(&hash)
		if errors.Is(err, sql.ErrNoRows) {
			hash, err = "", nil
		}
		if err != nil {
			return fmt.Errorf("reading the audit trail: %w", err)
		}
	}
	if hash != seen.AuditHash {
		return fmt.Errorf("%w: the store holds revision %d, but its audit trail has not the record %d that was there at revision %d: it is an older copy that was changed since; %s", ErrOlder, held.Revision, seen.AuditSeq, seen.Revision, again)
	}
	s.clock.raise(seen.Clock)
	if ownNote(s.path) {
		s.noted = seen
	} // else it is written again, for the owner of the store
	return nil
}

// noteSince is the version of the schema from which on every version of the program
// gives the note to the owner of the store.
const noteSince = 5

// unread refuses a start without the note that is there, since an older copy of the
// store would not be noticed. A store of an earlier version may have a note that its
// owner cannot read, left by root; the first start replaces it.
func (s *Store) unread(ctx context.Context, db *sql.DB, cause error) error {
	mend := fmt.Sprintf("if this is the newest copy of the store, run: caddy service-user accept-older --store %s", ShellWord(s.path))
	if errors.Is(cause, fs.ErrPermission) {
		mend = "run: " + giveNote(s.path)
	}
	var version int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return explainSQLite(err)
	}
	if version >= noteSince {
		return fmt.Errorf("the note of how far the store has come cannot be read, and without it an older copy of the store would not be noticed: %w; %s", cause, mend)
	}
	s.log.Warn("the note of how far the store has come cannot be read: this start does not notice an older copy of the store, and writes a new note; from the next start on a note that cannot be read is refused",
		zap.String("store", s.path), zap.Error(cause), zap.String("advice", mend))
	return nil
}

// seenEvery is how often it is looked whether there is something to note. The clock
// alone is noted once in clockEvery.
const (
	seenEvery  = time.Second
	clockEvery = time.Minute
)

// keepSeen notes how far the store has come, until it closes.
func (s *Store) keepSeen(ctx context.Context) {
	tick := time.NewTicker(seenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			_ = s.safely("noting", func() error { s.note(0); return nil })
			return
		case <-tick.C:
			_ = s.safely("noting", func() error { s.note(clockEvery); return nil })
		}
	}
}

// note writes how far the store has come if it came further than was noted, or if
// that is some time ago. It does not while the database is not what is in force:
// an operator may just be accepting an older one.
func (s *Store) note(after time.Duration) {
	s.tellOfClock()
	at := s.head.Load()
	m := Mark{Instance: s.instance, Revision: at.revision, AuditSeq: at.seq, AuditHash: at.hash, Clock: s.now().UTC().Truncate(time.Second)}
	if s.Fault() != "" || m.Revision == s.noted.Revision && m.Instance == s.noted.Instance && m.Clock.Sub(s.noted.Clock) <= after {
		return
	}
	// Another process may have come further.
	if other, err := Seen(s.path); err == nil && other.Instance == m.Instance {
		if other.Revision > m.Revision {
			m.Revision, m.AuditSeq, m.AuditHash = other.Revision, other.AuditSeq, other.AuditHash
		}
		if other.Clock.After(m.Clock) {
			m.Clock = other.Clock
		}
	}
	err := m.write(s.path)
	if err == nil {
		s.noted = m
	}
	s.noting.tell(err, func() {
		s.log.Error("it cannot be noted how far the store has come; after a restart an older copy of it might not be noticed", zap.String("store", s.path), zap.Error(err))
	})
}

// once tells of a trouble when it begins.
type once struct{ on bool }

func (o *once) tell(err error, tell func()) {
	if err != nil && !o.on {
		tell()
	}
	o.on = err != nil
}
