package store

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/internal/filelock"
)

// keeper keeps the last good copy of a node in step with its directory. Its rule: the copy has every
// change that this node has reported to the database as in force, or there is no copy. So a node that is
// killed, and starts while the database is away, does not let in a token that a receipt called revoked.
//
// A nil keeper keeps no copy.
type keeper struct {
	store   *Store
	dir     string
	refused error // why the copy that was there cannot be used; nil for none

	inbox   sync.Mutex // of arrived alone: a disk that hangs must not keep a change from coming into force
	arrived []*loaded  // the directories that follow has taken since the last keep

	mu      sync.Mutex
	lock    *os.File  // of the directory; nil while another store has it
	id      string    // of the store in the database
	log     *copyLog  // the copy on disk; nil for none
	useless bool      // the files in the directory must be removed: log is nil, broken, or of another history
	pending []*loaded // changes in force that log or next lacks
	making  bool      // a goroutine makes a log
	news    int       // how often all rows were read
	from    int64     // the revision that the log being made, or next, began with
	latest  *loaded   // the last one of follow; nil before
	next    *copyLog  // a whole log that is not in the place of log yet
	removed bool      // the head was removed, and that is not on disk yet
	closed  bool      // another process may have the directory
	due     bool      // the head lacks the last report
	headed  time.Time // when the head was written
	failure error     // of the last attempt to write a new log or a head
	retry   time.Time // the earliest time to make a log again
	fault   string    // why the copy is not up to date; "" for none
}

const (
	// copyRetry is the pause after a failed attempt to make a log.
	copyRetry = time.Minute
	// minCopyGrowth is the least number of bytes of changes after which a new log is made.
	minCopyGrowth = 1 << 20
)

// newKeeper returns the keeper of a directory, and the copy in it, or nil if it cannot be used.
func newKeeper(s *Store, dir string) (k *keeper, held *loaded, h copyHead) {
	k = &keeper{store: s, dir: dir}
	err := k.own()
	if err == nil {
		if h, err = readCopyHead(dir, s.path); err == nil {
			held, k.log, err = readCopy(dir, h, s.opts)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if k.refused, k.useless = err, held == nil || err != nil; k.useless {
		held, k.log = nil, nil
	} else {
		k.id, k.latest = h.Store, held
		k.clean(h.Log)
	}
	return k, held, h
}

var errCopyInUse = errors.New("another process, or the store before a reload, keeps its copy there")

// own takes the directory, unless this store has it.
func (k *keeper) own() error {
	if k.lock != nil {
		return nil
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(k.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := filelock.Lock(f); err != nil {
		f.Close()
		return fmt.Errorf("%w: %w", errCopyInUse, err)
	}
	k.lock = f
	return nil
}

// of says which store the database has.
func (k *keeper) of(id string) {
	if k != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.id = cmp.Or(k.id, id)
	}
}

// follow takes the next directory before it is in force. The caller has the turn of the store.
func (k *keeper) follow(next *loaded) {
	if k != nil {
		k.inbox.Lock()
		defer k.inbox.Unlock()
		k.arrived = append(k.arrived, next)
	}
}

// take takes the directories that follow has left, in their order.
func (k *keeper) take() {
	k.inbox.Lock()
	arrived := k.arrived
	k.arrived = nil
	k.inbox.Unlock()
	for _, next := range arrived {
		k.latest = &loaded{position: next.position, directory: next.directory}
		if next.changes != nil {
			k.pending = append(k.pending, next)
			continue
		}
		k.next.remove() // of another history
		k.useless, k.pending, k.from, k.next = true, nil, 0, nil
		k.news++
	}
}

// kept brings the copy up to date, and returns the latest revision that may be reported as in force.
func (s *Store) kept() int64 {
	at := s.inForce.Load()
	if s.copy != nil {
		return min(at.revision, s.copy.keep())
	}
	return at.revision
}

// keep is kept without the revision in force.
func (k *keeper) keep() (revision int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return 0
	}
	k.take()
	err := k.own()
	if err == nil {
		err = k.update()
		k.noteHead()
	} else { // the copy there belongs to another store, or cannot be written
		k.pending, k.useless = nil, true
	}
	revision = math.MaxInt64
	switch {
	case errors.Is(err, errCopyInUse): // the node that has it reports for it
	case k.useless && k.maybeOnDisk(): // a later process may be able to use it
		revision = 0
		err = fmt.Errorf("it cannot be removed, so this node reports no change to the database, and receipts "+
			"name it as late; make the directory writable: %w", err)
	case k.log != nil:
		revision = k.log.at.revision
	}
	before := k.fault
	k.fault = ""
	if err = cmp.Or(err, k.failure); err != nil {
		k.fault = err.Error()
	} else if k.log == nil {
		k.fault = "the copy is being made"
	}
	switch log := k.store.log.With(zap.String("directory", k.dir)); {
	case k.fault == before:
	case errors.Is(err, errCopyInUse):
		log.Info("this store keeps no last good copy yet", zap.Error(err))
	case err != nil:
		log.Error("the last good copy of the store cannot be kept; without it, a start while the database is "+
			"away answers no request", zap.Error(err))
	case k.log != nil:
		log.Info("the last good copy of the store is kept")
	}
	return revision
}

// update removes a useless copy, puts a new log in place, and appends the changes.
func (k *keeper) update() error {
	if k.useless {
		if err := k.drop(); err != nil {
			return err
		}
	}
	if k.next != nil {
		k.place()
	}
	if k.log != nil {
		if err := k.append(k.log); err != nil {
			k.useless, k.failure, k.retry = true, err, time.Now().Add(copyRetry)
			return errors.Join(err, k.drop())
		}
	}
	k.pending = slices.DeleteFunc(k.pending, func(p *loaded) bool { return k.from == 0 || p.revision <= k.from })
	return nil
}

// place puts the new log in the place of the other one.
func (k *keeper) place() {
	next, old := k.next, k.log
	k.next, k.from = nil, 0
	err := k.append(next)
	if err == nil {
		err = errors.Join(k.writeHead(next), SyncDir(k.dir))
	}
	if err != nil {
		next.remove()
		k.failure, k.retry = err, time.Now().Add(copyRetry)
		return
	}
	k.log, k.failure = next, nil
	old.remove()
}

// append writes the pending changes to a log, and waits until they are on disk.
func (k *keeper) append(l *copyLog) error {
	before := l.at
	for _, p := range k.pending {
		if p.revision > l.at.revision {
			if p.since != l.at.revision {
				return fmt.Errorf("the changes from revision %d to %d are missing; please report it", l.at.revision, p.since)
			}
			if err := l.append(frameChange, p.position, copyFrame{Changes: *p.changes}); err != nil {
				return err
			}
		}
	}
	if l.at == before {
		return nil
	}
	return l.file.Sync()
}

func (k *keeper) writeHead(l *copyLog) error {
	return writeCopyHead(k.dir, copyHead{
		Store: k.id, URL: k.store.path, Log: filepath.Base(l.file.Name()), Size: l.size, Digest: hex.EncodeToString(l.chain[:]),
		Revision: l.at.revision, Acknowledged: *k.store.acked.Load(), MaxStaleness: k.store.opts.MaxStaleness,
	})
}

// acknowledge notes in the head that the database has taken a report, now or at a later look.
func (k *keeper) acknowledge() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.due = true
	k.noteHead()
}

// headEvery is how often the head is written at most: changes can come many times a second, and the log has them
// on disk. It is a variable for tests.
var headEvery = time.Second

// noteHead writes the head if it is due.
func (k *keeper) noteHead() {
	if !k.due || time.Since(k.headed) < headEvery || k.lock == nil || k.useless || k.log == nil {
		return
	}
	if _, err := os.Lstat(k.log.file.Name()); err != nil { // somebody has removed it
		k.failure, k.useless = err, true
		return
	}
	k.failure = k.writeHead(k.log)
	k.headed, k.due = time.Now(), false
}

// renew starts to make a new log, if there is none, or if the changes in it have become longer than the rest.
func (k *keeper) renew() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lock == nil || k.useless || k.making || k.next != nil || k.latest == nil || time.Now().Before(k.retry) ||
		k.log != nil && k.log.size-k.log.base <= max(k.log.base, minCopyGrowth) {
		return
	}
	// Not the directory in force: follow may have been called already for the one after it.
	at, news := k.latest, k.news
	k.making, k.from = true, at.revision
	k.store.start(func(ctx context.Context) {
		var l *copyLog
		err := k.store.safely("making the last good copy", func() (err error) {
			l, err = writeCopyLog(k.dir, at, k.store.opts.Peppers.IDs(), ctx.Done())
			return err
		})
		k.mu.Lock()
		defer k.mu.Unlock()
		k.making = false
		switch {
		case err != nil:
			k.failure, k.retry, k.from = err, time.Now().Add(copyRetry), 0
		case news != k.news:
			l.remove()
		default:
			k.next = l
		}
	})
}

// maybeOnDisk reports whether a copy that is not to be used may be on disk.
func (k *keeper) maybeOnDisk() bool {
	_, err := os.Lstat(filepath.Join(k.dir, copyHeadName))
	return k.removed || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR)
}

// drop removes the copy. The head goes first: without it the rest is nothing.
func (k *keeper) drop() error {
	err := os.Remove(filepath.Join(k.dir, copyHeadName))
	if k.removed = k.removed || err == nil; k.removed {
		err = SyncDir(k.dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	k.log.remove()
	k.log, k.useless, k.removed = nil, false, false
	if !k.making && k.next == nil {
		k.clean("")
	}
	return nil
}

// clean removes all files of copies but one log and its head.
func (k *keeper) clean(log string) {
	for _, pattern := range []string{"*.log", ".copy-*"} {
		names, _ := filepath.Glob(filepath.Join(k.dir, pattern))
		for _, name := range names {
			if filepath.Base(name) != log {
				os.Remove(name)
			}
		}
	}
}

// leave calls the function that removes this node from the database. After that no receipt waits for the
// node, so the copy goes first, even if the node then cannot leave.
func (k *keeper) leave(remove func() error) error {
	if k == nil {
		return remove()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next.remove()
	k.next = nil
	err := k.own()
	if err == nil {
		err = k.drop()
	}
	if err != nil && !errors.Is(err, errCopyInUse) && k.maybeOnDisk() {
		return fmt.Errorf("the last good copy cannot be removed: %w", err)
	}
	return remove()
}

// close gives the directory back, with the copy in it. From then on k changes nothing there.
func (k *keeper) close() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.next.remove()
	if k.log != nil {
		k.log.file.Close()
	}
	k.lock.Close() // without a file, an error
}

// KeepsCopy reports whether this node is to keep a last good copy.
func (s *Store) KeepsCopy() bool { return s.copy != nil }

// CopyFault returns why this node keeps no last good copy that is up to date, or "" if it does, or if it is
// not to keep one.
func (s *Store) CopyFault() string {
	k := s.copy
	if k == nil {
		return ""
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fault
}
