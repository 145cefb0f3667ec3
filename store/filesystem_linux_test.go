package store

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A file system that does not keep a store is known.
func TestDoubtfulFileSystem(t *testing.T) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &fs); err != nil || uint32(fs.Type) != 0x01021994 {
		t.Skip("/dev/shm is no tmpfs")
	}
	dir, err := os.MkdirTemp("/dev/shm", "store-test-")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "store.db")
	if got, err := Doubt(path); err != nil || !strings.HasPrefix(got, "tmpfs: ") {
		t.Errorf("on tmpfs: got %q, %v", got, err)
	}
	// The others cannot be mounted here.
	defer func(old string) { doubtful[uint32(fs.Type)] = old }(doubtful[uint32(fs.Type)])
	delete(doubtful, uint32(fs.Type))
	if got, err := Doubt(path); err != nil || got != "" {
		t.Errorf("on another: got %q, %v, want none", got, err)
	}
	for _, name := range []string{"NFS", "SMB", "CIFS", "SMB2", "overlay", "tmpfs"} {
		found := name == "tmpfs" // just taken out
		for _, text := range doubtful {
			found = found || strings.HasPrefix(text, name+": ")
		}
		if !found {
			t.Errorf("%s is not known", name)
		}
	}
	if _, err := Doubt(filepath.Join(dir, "none", "store.db")); err == nil {
		t.Error("a directory that does not exist: got no error")
	}
}
