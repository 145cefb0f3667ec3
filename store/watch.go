package store

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"runtime"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// minPoll is the shortest time between two looks.
	minPoll = 5 * time.Millisecond
	// fastPoll is the time between two looks without notifications, and while the store cannot
	// be read.
	fastPoll = 25 * time.Millisecond
	// renewInterval is how often the connections are opened again while the store cannot be read.
	renewInterval = time.Second
)

// watcher looks for changes that another process made to the same file. PRAGMA data_version is a
// counter in shared memory that increases with every commit of another connection. A notification
// starts a look: each commit writes to the log.
type watcher struct {
	*sqliteEngine
	notes   *fsnotify.Watcher // nil without notifications
	conn    *sql.Conn         // values of data_version can be compared on one connection only
	seen    int64             // the last data_version of conn; -1 for none
	written time.Time         // the time of the last notification
	renewed time.Time         // the time at which the connections were last opened again
	gone    bool              // a look found a file that was not in its place, and none has succeeded since
}

// watch looks for changes until the store closes.
func (e *sqliteEngine) watch(ctx context.Context) {
	w := watcher{sqliteEngine: e}
	defer w.release()
	var events <-chan fsnotify.Event
	var lost <-chan error
	if w.notes = newNotifier(e.store.opts); w.notes != nil {
		defer w.notes.Close()
		events, lost = w.notes.Events, w.notes.Errors
	}
	var looked time.Time
	// The first look finds the changes before the first notification.
	timer := time.NewTimer(w.pause())
	if w.notes != nil {
		timer.Reset(0)
	}
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-events:
			switch event.Name {
			case e.path, e.path + "-wal", e.path + "-shm", filepath.Dir(e.path):
				w.written = time.Now()
				timer.Reset(minPoll - time.Since(looked))
			}
		case <-lost: // such as fsnotify.ErrEventOverflow
			w.written = time.Now()
			timer.Reset(minPoll - time.Since(looked))
		case <-timer.C:
			w.look(ctx)
			looked = time.Now()
			timer.Reset(w.pause())
		}
	}
}

// newNotifier returns nil if there is an interval, or where notifications cannot be had. On BSD and
// macOS, fsnotify opens and closes every file of a directory that it watches, and thereby drops the
// locks of SQLite.
func newNotifier(opts Options) *fsnotify.Watcher {
	if opts.Poll > 0 || runtime.GOOS != "linux" && runtime.GOOS != "windows" {
		return nil
	}
	notes, err := fsnotify.NewWatcher()
	if err != nil { // such as too many of them on this machine
		return nil
	}
	return notes
}

// pause returns the time until the next look.
func (w *watcher) pause() time.Duration {
	s := w.store
	switch {
	case s.opts.Poll > 0:
		return s.opts.Poll
	case s.Fault() != "":
		return fastPoll
	// Adding a directory again costs one system call. It also finds a directory that was
	// replaced.
	case w.notes == nil || w.notes.Add(filepath.Dir(w.path)) != nil:
		w.written = time.Now() // a change before the next Add has no notification
		return fastPoll
	}
	// A commit first writes to the log, then waits for the disk, and only then increases
	// data_version, without a notification. So the looks go on for a while after each
	// notification, and become rarer the longer it has been.
	pause := min(max(time.Since(w.written)/4, minPoll), s.opts.idlePoll)
	if s.opts.MaxStaleness > 0 {
		pause = min(pause, s.opts.MaxStaleness/4)
	}
	return pause
}

// look looks once, reports the result, and after an error opens the connections again.
func (w *watcher) look(ctx context.Context) {
	s := w.store
	err := s.safely("looking for changes", func() error {
		// A cancelled query returns its connection a little later. Close must not find one
		// in use.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.timeouts.change)
		defer cancel()
		return w.catchUp(ctx)
	})
	if ctx.Err() == nil {
		s.report(err, s.clock.read())
	}
	// A connection that was opened while another file was at the path still reads that file,
	// even if the right one has come back since. A new connection would create a new log, so it
	// must wait until the right log is there.
	switch {
	case errors.Is(err, errGone):
		w.gone = true
	case err == nil && w.gone: // its own connection is older
		w.gone = false
		dropIdle(s.read)
	case err != nil && w.inPlace() == nil && w.logInPlace() == nil && time.Since(w.renewed) > renewInterval:
		w.renewed = time.Now()
		w.release()
		dropIdle(s.read)
	}
}

// catchUp loads the changes of other processes, if there are any.
func (w *watcher) catchUp(ctx context.Context) error {
	s := w.store
	if err := w.inPlace(); err != nil {
		return err
	}
	if w.conn == nil {
		conn, err := s.read.Conn(ctx)
		if err != nil {
			return err
		}
		w.conn, w.seen = conn, -1
	}
	var version int64
	// For a context that can end, the driver would start a goroutine.
	if err := w.conn.QueryRowContext(context.Background(), `PRAGMA data_version`).Scan(&version); err != nil {
		w.release()
		return err
	}
	// While the connection has both files open, no process creates them again.
	pair, err := w.statLog()
	if err != nil {
		return err
	}
	if w.logged.Load() == nil {
		w.logged.Store(&pair)
	}
	if version == w.seen {
		return nil
	}
	if err := s.refresh(ctx); err != nil {
		return err
	}
	w.seen = version
	return nil
}

// release closes the connection.
func (w *watcher) release() {
	w.logged.Store(nil)
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}
