//go:build unix

package store

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// node is a node without a database: the test does the work of the watcher, in an order that the goroutines of a
// node could have.
type node struct {
	t        *testing.T
	draw     *rand.Rand
	s        *Store
	loads    []*loaded        // all that were in force, by revision
	texts    map[int64]string // what the directory of a revision says
	ids      []string
	reported int64
}

func (n *node) begin(dir string) {
	opts := Options{Log: zap.NewNop(), Now: time.Now, Peppers: peppersForTest, MaxStaleness: time.Hour}
	n.s = &Store{opts: opts, log: opts.Log, path: "postgres://test", clock: wall{read: time.Now}}
	n.s.health.clock, n.s.health.begun = &n.s.clock, time.Now()
	n.s.start()
	n.s.succeed(time.Now())
	var held *loaded
	n.s.copy, held, _ = newKeeper(n.s, dir)
	if n.s.copy.refused != nil {
		n.t.Fatal(n.s.copy.refused)
	}
	n.s.inForce.Store(&loaded{directory: access.NewDirectory(peppersForTest, "")})
	if held != nil {
		n.s.inForce.Store(held)
	}
}

// end stops the goroutines, and returns a copy of the files.
func (n *node) end() (dir string) {
	dir = n.t.TempDir()
	n.s.stop()
	mustDo(os.CopyFS(dir, os.DirFS(n.s.copy.dir)))
	n.s.copy.close()
	if h, err := readCopyHead(dir, n.s.path); err == nil { // it was killed while it wrote
		log := must(os.OpenFile(filepath.Join(dir, h.Log), os.O_WRONLY|os.O_APPEND, 0))
		must(log.Write(make([]byte, n.draw.IntN(100))))
		mustDo(log.Close())
	}
	return dir
}

func (n *node) last() *loaded { return n.loads[len(n.loads)-1] }

// change makes the next revision, with changes or as a load of all rows.
func (n *node) change(all bool) *loaded {
	next := &loaded{}
	next.revision = int64(len(n.loads)) + 1
	next.seq, next.hash = next.revision, fmt.Sprint("hash ", next.revision)
	c := access.Changes{Revision: next.revision}
	d := access.NewDirectory(peppersForTest, "")
	if !all && len(n.loads) > 0 {
		d, next.changes, next.since = n.last().directory, &c, n.last().revision
	}
	for _, id := range n.ids {
		switch n.draw.IntN(4) {
		case 0:
			hash, pepper := peppersForTest.Hash(fmt.Sprint("secret ", id))
			c.Users = append(c.Users, access.User{
				Profile: access.Profile{ID: id, Name: fmt.Sprint("at ", next.revision), Role: access.Member, Active: true},
				Tokens:  []access.Token{{ID: "token_" + id, Hash: hash, Pepper: pepper, Revoked: n.draw.IntN(2) == 0}},
			})
		case 1:
			c.RemovedUsers = append(c.RemovedUsers, id)
		}
	}
	next.directory = must(d.With(c))
	n.loads = append(n.loads, next)
	n.texts[next.revision] = describe(next.directory, n.ids)
	return next
}

// install does what [Store.install] does, and other goroutines come between.
func (n *node) install(next *loaded) {
	n.s.copy.follow(next)
	for n.draw.IntN(3) == 0 {
		n.work()
	}
	n.s.inForce.Store(next)
}

// put installs without anything in between.
func (n *node) put(next *loaded) {
	n.s.copy.follow(next)
	n.s.inForce.Store(next)
}

// work does a part of the work of the watcher, which any goroutine may do at any time.
func (n *node) work() {
	k := n.s.copy
	switch n.draw.IntN(4) {
	case 0, 1:
		n.report()
	case 2:
		k.acknowledge()
		k.renew()
	default:
		n.made()
	}
}

func (n *node) made() {
	eventually(n.t, "the end of the making of a log", func() bool {
		n.s.copy.mu.Lock()
		defer n.s.copy.mu.Unlock()
		return !n.s.copy.making
	})
}

// report checks the copy on disk against what may be reported.
func (n *node) report() {
	n.t.Helper()
	n.reported = max(n.reported, n.s.kept())
	h, err := readCopyHead(n.s.copy.dir, n.s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	mustDo(err)
	dir := n.t.TempDir()
	mustDo(os.CopyFS(dir, os.DirFS(n.s.copy.dir)))
	held, l, err := readCopy(dir, h, n.s.opts)
	mustDo(err)
	l.remove()
	if held.revision < n.reported {
		n.t.Fatalf("the copy has revision %d, and %d was reported", held.revision, n.reported)
	}
	same(n.t, "the copy", describe(held.directory, n.ids), n.texts[held.revision])
}

// fail makes the next write, or the next sync, of the log fail.
func (n *node) fail() {
	k := n.s.copy
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.log == nil {
		return
	}
	name := k.log.file.Name()
	k.log.file.Close()
	if n.draw.IntN(2) == 0 {
		k.log.file = must(os.Open(name)) // cannot be written
		return
	}
	k.log.file = n.pipe(name)
}

// pipe is a file that cannot be synced.
func (n *node) pipe(name string) *os.File {
	out, in, err := os.Pipe()
	mustDo(err)
	n.t.Cleanup(func() { out.Close(); in.Close() })
	return os.NewFile(uintptr(must(syscall.Dup(int(in.Fd())))), name)
}

var histories = flag.Int("copies", 20, "how many histories TestKeeperHistories goes through")

// In whatever order the goroutines of a node do their work, and whatever fails, the copy on disk is what was in
// force at the revision that was reported last, or at a later one, or there is none.
func TestKeeperHistories(t *testing.T) {
	draw := random(t)
	kept := 0
	for range *histories {
		n := &node{t: t, draw: draw, texts: make(map[int64]string), ids: []string{"a", "b", "c", "d", "e"}}
		n.begin(t.TempDir())
		n.install(n.change(true))
		for range 60 {
			switch draw.IntN(16) {
			case 0:
				n.install(n.change(true))
			case 1:
				n.fail()
			case 2, 3: // make another log soon
				n.s.copy.mu.Lock()
				n.s.copy.retry = time.Time{}
				if l := n.s.copy.log; l != nil {
					l.base = -2 * minCopyGrowth
				}
				n.s.copy.mu.Unlock()
			case 4: // a kill, and a start
				n.begin(n.end())
				if held := n.s.inForce.Load(); held.revision == 0 {
					all := *n.last()
					all.changes = nil
					n.install(&all)
				} else {
					if held.revision < n.reported {
						t.Fatalf("started with revision %d after %d was reported", held.revision, n.reported)
					}
					same(t, "the copy at the start", describe(held.directory, n.ids), n.texts[held.revision])
					kept++
					n.install(n.since(held))
				}
			case 5, 6, 7, 8:
				n.install(n.change(false))
			default:
				n.work()
			}
		}
		n.report()
		n.end()
	}
	if kept == 0 && *histories >= 20 {
		t.Error("no start had a copy; the test shows nothing")
	}
}

// since loads the last revision, as the changes after an earlier one.
func (n *node) since(held *loaded) *loaded {
	last := *n.last()
	if last.revision == held.revision {
		return held
	}
	c := access.Changes{Revision: last.revision}
	for _, l := range n.loads[held.revision:] {
		if l.changes == nil { // as after a restore
			last.changes = nil
			return &last
		}
	}
	for _, id := range n.ids {
		if u, ok := last.directory.User(id); !ok {
			c.RemovedUsers = append(c.RemovedUsers, id)
		} else if last.directory.Export(func(e *access.User) {
			if e.ID == id {
				u = e
			}
		}); ok {
			c.Users = append(c.Users, *u)
		}
	}
	last.changes, last.since = &c, held.revision
	return &last
}

// Tests look at the head after each report. The processes of TestLastGoodKilled have the usual pace.
func init() { headEvery = 0 }

// begun is a node with a copy of its first revision.
func begun(t *testing.T) *node {
	n := &node{t: t, draw: random(t), texts: make(map[int64]string), ids: []string{"a", "b"}}
	n.begin(t.TempDir())
	n.put(n.change(true))
	n.s.kept()
	n.s.copy.acknowledge()
	n.s.copy.renew()
	n.made()
	n.report()
	if n.s.copy.log == nil {
		t.Fatal("no copy was made")
	}
	return n
}

// A change that was written and not synced is not reported, if the copy cannot be removed.
func TestKeeperFailedSync(t *testing.T) {
	n := begun(t)
	k := n.s.copy
	k.log.file.Close()
	k.log.file = n.pipe(k.log.file.Name())
	head := filepath.Join(k.dir, copyHeadName)
	mustDo(os.Remove(head))
	mustDo(os.MkdirAll(filepath.Join(head, "not empty"), 0o700))
	n.put(n.change(false))
	for range 2 {
		if got := n.s.kept(); got > 1 {
			t.Errorf("revision %d may be reported, and is not on disk", got)
		}
	}
	mustDo(os.RemoveAll(head))
	if got := n.s.kept(); got != 2 {
		t.Errorf("without a copy: got %d", got)
	}
	n.end()
}

// A log of an earlier history, which waits for its place when all rows are read again, does not get it.
func TestKeeperOldHistory(t *testing.T) {
	n := begun(t)
	k := n.s.copy
	k.log.base = -2 * minCopyGrowth
	k.acknowledge()
	k.renew()
	n.made()
	if k.next == nil {
		t.Fatal("no log waits")
	}
	n.put(n.change(true))
	if got := n.s.kept(); got != 2 || k.log != nil {
		t.Errorf("got %d and the log %v, want none of the earlier history", got, k.log)
	}
	n.end()
}

// A change that follow has taken, and that is not in force yet, is not lost between two logs.
func TestKeeperGap(t *testing.T) {
	n := begun(t)
	k := n.s.copy
	n.fail()
	n.put(n.change(false))
	n.s.kept() // removes the copy
	next := n.change(false)
	k.follow(next)
	n.s.kept()
	k.retry = time.Time{}
	k.acknowledge()
	k.renew()
	n.s.inForce.Store(next)
	n.made()
	n.put(n.change(false))
	n.report()
	if k.log == nil || k.log.at.revision != 4 || k.failure != nil {
		t.Errorf("got the log %+v and the fault %v", k.log, k.failure)
	}
	n.end()
}

// The copy learns of a directory before requests are answered from it: a report between the two would be of a
// revision that the copy lacks.
func TestKeeperFollowsFirst(t *testing.T) {
	n := begun(t)
	before, next := n.s.inForce.Load(), n.change(false)
	n.s.copy.mu.Lock() // as while the disk hangs: the change waits for nothing
	n.s.copy.inbox.Lock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.s.install(next)
	}()
	eventually(t, "the call of follow", func() bool {
		stacks := make([]byte, 1<<20)
		return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "(*keeper).follow")
	})
	if n.s.inForce.Load() != before {
		t.Error("the next directory is in force")
	}
	n.s.copy.inbox.Unlock()
	<-done
	n.s.copy.mu.Unlock()
	if n.s.inForce.Load().position != next.position {
		t.Error("the next directory is not in force")
	}
	n.end()
}

// A log that somebody has removed is made again.
func TestKeeperLogRemoved(t *testing.T) {
	n := begun(t)
	mustDo(os.Remove(n.s.copy.log.file.Name()))
	for range 2 {
		n.s.copy.acknowledge()
		n.s.copy.renew()
		n.made()
		n.s.kept()
	}
	n.report()
	if h := must(readCopyHead(n.s.copy.dir, n.s.path)); h.Revision != 1 || n.s.CopyFault() != "" {
		t.Errorf("got %+v and the fault %q", h, n.s.CopyFault())
	}
	n.end()
}

// A store that is closed leaves the directory to the next one, whatever its last goroutines do.
func TestKeeperClosed(t *testing.T) {
	first := begun(t)
	dir := first.s.copy.dir
	first.s.copy.close()
	second := &node{t: t, draw: first.draw, texts: first.texts, ids: first.ids, loads: first.loads}
	second.begin(dir)
	before := list(dir)
	first.s.copy.follow(first.change(true))
	first.s.inForce.Store(first.last())
	if got := first.s.kept(); got != 0 {
		t.Errorf("the closed store may report %d", got)
	}
	if after := list(dir); !slices.Equal(before, after) {
		t.Errorf("got %v, want %v", after, before)
	}
	first.s.stop()
	second.end()
}

// A log whose digests are right, and whose contents are not, is refused.
func TestCopyOfNonsense(t *testing.T) {
	for what, text := range map[string]string{
		"an empty frame": "", "no gob": "p\xff\xff", "another kind": "x", "a kind alone": "c",
	} {
		dir := t.TempDir()
		chain := nextHash([32]byte{}, []byte(text))
		frame := slices.Concat([]byte{0, 0, 0, byte(len(text))}, []byte(text), chain[:])
		mustDo(os.WriteFile(filepath.Join(dir, "a.log"), frame, 0o600))
		mustDo(writeCopyHead(dir, copyHead{Log: "a.log", Size: int64(len(frame)), Digest: fmt.Sprintf("%x", chain)}))
		if _, _, err := readCopy(dir, must(readCopyHead(dir, "")), Options{}); err == nil {
			t.Errorf("%s was read", what)
		}
	}
}

// The copy was made without a pepper that is configured now: it cannot say which pepper its tokens have.
func TestCopyWithoutPepper(t *testing.T) {
	n := begun(t)
	hash, pepper := peppersForTest.Hash("secret")
	d := must(access.NewDirectory(access.Peppers{}, "").With(access.Changes{Revision: 1, Users: []access.User{{
		Profile: access.Profile{ID: "a", Role: access.Member},
		Tokens:  []access.Token{{ID: "token_a", Hash: hash, Pepper: pepper}},
	}}}))
	for what, before := range map[string][]string{"without it": nil, "with it": peppersForTest.IDs()} {
		dir := t.TempDir()
		l := must(writeCopyLog(dir, &loaded{position: position{revision: 1}, directory: d}, before, nil))
		mustDo(writeCopyHead(dir, copyHead{Log: filepath.Base(l.file.Name()), Size: l.size, Digest: fmt.Sprintf("%x", l.chain)}))
		_, _, err := readCopy(dir, must(readCopyHead(dir, "")), n.s.opts)
		if before == nil && (err == nil || !strings.Contains(err.Error(), "pepper")) || before != nil && err != nil {
			t.Errorf("%s: got %v", what, err)
		}
	}
	n.end()
}

// Only the owner reads the files.
func TestCopyModes(t *testing.T) {
	n := begun(t)
	for _, name := range list(n.s.copy.dir) {
		if mode := must(os.Stat(filepath.Join(n.s.copy.dir, name))).Mode(); mode.Perm() != 0o600 {
			t.Errorf("%s has the mode %v", name, mode)
		}
	}
	n.end()
}
