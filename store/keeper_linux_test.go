package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// mount mounts a small file system in a new directory.
func mount(t *testing.T, options string) (dir string) {
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("only root can mount a file system: %v", err)
	}
	t.Cleanup(func() { mustDo(syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

// With a full disk the node answers and reports as before, and says why it keeps no copy.
func TestLastGoodFullDisk(t *testing.T) {
	a := newAway(t)
	a.dir = mount(t, "size=256k")
	s := open(t, a.at, a.options())
	u, in := addUser(s, "u")
	a.kept(s)
	full := filepath.Join(a.dir, "full")
	fill := must(os.Create(full))
	for { // to the last byte
		if _, err := fill.Write(make([]byte, 1)); err != nil {
			break
		}
	}
	fill.Close()
	for i := 0; s.CopyFault() == ""; i++ { // until the last page of the log is full
		addGroup(s, fmt.Sprint("g", i), "allow GET /a")
		must(s.Wait(ctx, s.Directory().Revision()))
	}
	mustDo(s.RevokeToken(ctx, Local, u.ID, in.ID, 0))
	if r := must(s.Wait(ctx, s.Directory().Revision())); r.Applied != 1 {
		t.Errorf("got %+v, want the node", r)
	}
	if got := s.CopyFault(); !strings.Contains(got, "no space left") {
		t.Errorf("got the fault %q", got)
	}
	if got := probe(s, u.ID, in.Secret, "GET /a"); got != access.TokenRevoked || s.Stale() {
		t.Errorf("got %s, and stale %v", got, s.Stale())
	}
	mustDo(os.Remove(full))
	s.copy.mu.Lock()
	s.copy.retry = time.Time{}
	s.copy.mu.Unlock()
	s.copy.acknowledge()
	s.copy.renew()
	a.kept(s)
	again := a.start(t, a.dead(), a.options())
	if got := probe(again, u.ID, in.Secret, "GET /a"); got != access.TokenRevoked {
		t.Errorf("after the start from the copy: got %s", got)
	}
}

// In a directory that can only be read, a copy can neither be brought up to date nor removed. The node answers, and
// receipts name it as late. Without the database it does not start.
func TestLastGoodReadOnlyDisk(t *testing.T) {
	a := newAway(t)
	s := open(t, a.at, a.options())
	a.kept(s)
	old := a.dead()
	mustDo(s.Close())
	a.dir = mount(t, "size=256k")
	mustDo(os.CopyFS(a.dir, os.DirFS(old)))
	mustDo(syscall.Mount("tmpfs", a.dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	s = open(t, a.at, a.options())
	addGroup(s, "g", "allow GET /a")
	late(t, s, "node_a")
	if got := s.CopyFault(); !strings.Contains(got, "read-only file system") {
		t.Errorf("got the fault %q", got)
	}
	b := open(t, a.url, Options{NodeID: "node_b"})
	for _, node := range must(b.Nodes(ctx, Local)) {
		if node.ID == "node_a" && node.Revision != 0 {
			t.Errorf("the node has reported revision %d, and its copy lacks it", node.Revision)
		}
	}
	mustDo(s.Close())
	if nodes := must(b.Nodes(ctx, Local)); len(nodes) != 2 {
		t.Errorf("got %d nodes: the node left the list, and its old copy is still there", len(nodes))
	}
	a.shut.Store(true)
	if _, err := Open(ctx, a.at, a.options()); err == nil || !strings.Contains(err.Error(), "last good copy") {
		t.Errorf("got %v", err)
	}
}
