package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

func TestTrouble(t *testing.T) {
	pgtest.SQLiteOnly(t, "the faults are those of a file")
	path := place(t)
	mustDo(must(Open(ctx, path, Options{})).Close())
	locked := must(sql.Open("sqlite", "file:"+path+"?mode=rw&_txlock=immediate"))
	defer locked.Close()
	first := must(locked.BeginTx(ctx, nil))
	defer func() { _ = first.Rollback() }()
	_, busy := locked.BeginTx(ctx, nil)
	_, readOnly := unopened(t, path).ExecContext(ctx, `DELETE FROM meta`)
	_, closed := locked.ExecContext(ctx, `no SQL`)
	for _, row := range []struct {
		err  error
		want string
		full bool
	}{
		{nil, "", false},
		{errors.New("anything"), "", false},
		{closed, "", false},
		{busy, "it is busy", false},
		{context.DeadlineExceeded, "it is busy", false},
		{readOnly, "its database cannot be written", false},
		{syscall.EIO, "its disk has an error", false},
		{syscall.ENOSPC, "its disk is full", true},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.EDQUOT}, "its disk is full", true},
		{fmt.Errorf("%w: by whom", errGone), "its database was taken away", false},
		{fmt.Errorf("%w: 3", ErrOlder), "its database is an older one than before", false},
		{fmt.Errorf("%w: 3", ErrDamaged), "its database is damaged", false},
	} {
		for _, err := range []error{row.err, fmt.Errorf("beginning: %w", row.err)} {
			if row.err == nil {
				err = nil
			}
			if got, full := FaultReason(err); got != row.want || full != row.full {
				t.Errorf("%v: got %q %v, want %q %v", err, got, full, row.want, row.full)
			}
		}
	}
}

// A connection that failed to write is not used again.
func TestFailedConnectionIsRenewed(t *testing.T) {
	w := newWorld(t, Options{})
	before := w.write.Stats().MaxIdleClosed
	for _, row := range []struct {
		err    error
		closed int64
	}{{syscall.EIO, 1}, {errors.New("else"), 0}} {
		err := w.change(ctx, alice, func(*tx) error { return row.err })
		if !errors.Is(err, row.err) {
			t.Errorf("got %v, want %v", err, row.err)
		}
		if got := w.write.Stats().MaxIdleClosed - before; got != row.closed {
			t.Errorf("%v: connections closed: got %d, want %d", row.err, got, row.closed)
		}
		before = w.write.Stats().MaxIdleClosed
	}
	addUser(w.Store, "b")
}

// After max_staleness nothing is decided any more, until the store is back.
func TestStale(t *testing.T) {
	w := &world{path: place(t), clock: newClock()}
	core, logs := observer.New(zap.ErrorLevel)
	w.Store = open(t, w.path, Options{Now: w.clock.Now, MaxStaleness: time.Hour, Log: zap.New(core)})
	var told atomic.Int64
	w.OnChange(func() { told.Add(1) })
	back := hide(t, w.path)
	eventually(t, "a fault", func() bool { return w.Fault() != "" })
	told.Store(0) // the first look at an empty store announces it
	w.clock.add(59 * time.Minute)
	if w.Stale() {
		t.Error("before max_staleness: got stale")
	}
	if got := w.Age(); got != 59*time.Minute {
		t.Errorf("age: got %v, want 59m", got)
	}
	w.clock.add(2 * time.Minute)
	eventually(t, "a stale store", w.Stale)
	eventually(t, "a word about it", func() bool { return told.Load() == 1 })
	if got := logs.FilterMessageSnippet("max_staleness").Len(); got != 1 {
		t.Errorf("lines of the log: got %d, want 1", got)
	}
	back()
	eventually(t, "the end of it", func() bool { return !w.Stale() && told.Load() >= 2 })
	if got := w.Age(); got != 0 {
		t.Errorf("age: got %v, want 0", got)
	}

	if *pgtest.On {
		return // the default is an hour
	}
	// Without the option it never is.
	w = newWorld(t, Options{})
	back = hide(t, w.path)
	eventually(t, "a fault", func() bool { return w.Fault() != "" })
	w.clock.add(10000 * time.Hour)
	if w.Stale() {
		t.Error("without max_staleness: got stale")
	}
	back()
}

// A look at the store that goes well ends it: after a pause of the whole process that
// is at once.
func TestStaleEndsAtOnce(t *testing.T) {
	s := open(t, place(t), Options{MaxStaleness: time.Hour})
	s.setStale(true)
	if s.report(nil, s.clock.read()); s.Stale() {
		t.Error("after a look that went well: got stale")
	}
}

// A mistake in what is done in the background is told of and counted, and the work
// goes on.
func TestPanicsAreSurvived(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	w := newWorld(t, Options{UseInterval: 10 * time.Millisecond, Log: zap.New(core)})
	idle := w.opts // the other one leaves the work to this one
	idle.UseInterval = time.Hour
	other := open(t, w.path, idle)
	rotated, _, err := w.RotateToken(ctx, Actor{Name: w.user.ID}, w.user.ID, w.token.ID, time.Hour)
	mustDo(err)
	breaks := func() { panic("of a test") }
	for _, row := range []struct {
		name, while string
		do          func()
		goesOn      func() bool
	}{
		{"watch", "looking for changes", func() { addUser(other, "b") }, func() bool { return w.Directory().Len() == 2 }},
		{"first uses", "writing first uses", func() { w.use(rotated.Secret, "192.0.2.1", "") }, func() bool {
			return !w.uses.first.has(rotated.ID) && strings.HasPrefix(w.onDisk(rotated.ID), "1 ")
		}},
		{"purge", "purging tombstones", func() {
			u, _ := addUser(other, "gone")
			mustDo(other.DeleteServiceUser(ctx, Local, u.ID, 0, 0))
			w.clock.add(w.opts.Retention + time.Hour)
		}, func() bool {
			w.clock.add(time.Hour) // until it looks again
			return number(w.read, `SELECT COUNT(*) FROM service_users WHERE deleted_at > 0 AND name <> ''`) == 0
		}},
	} {
		told := func() int { return logs.FilterField(zap.String("while", row.while)).Len() }
		w.OnChange(breaks)
		before := w.Panics()
		row.do()
		eventually(t, row.name+": a panic", func() bool { return told() > 0 && w.Panics() > before })
		w.OnChange(nil)
		eventually(t, row.name+": that the work goes on", row.goesOn)
		mended(t, w.Store)
	}
	mustDo(w.FlushUse(ctx))
}
