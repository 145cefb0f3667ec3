package store

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// A file system that does not keep a store is known.
func TestDoubtfulFileSystem(t *testing.T) {
	pgtest.SQLiteOnly(t, "it is about files")
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &fs); err != nil || uint32(fs.Type) != 0x01021994 {
		t.Skip("run this where /dev/shm is a tmpfs: mount -t tmpfs tmpfs /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "store-test-")
	if err != nil {
		t.Skipf("run this where /dev/shm can be written: %v", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "store.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := StorageWarnings(path); err != nil || len(got) != 1 || !strings.HasPrefix(got[0], "tmpfs: ") {
		t.Errorf("on tmpfs: got %q, %v", got, err)
	}
	// The others cannot be mounted here.
	defer func(old string) { unsafeFileSystems[uint32(fs.Type)] = old }(unsafeFileSystems[uint32(fs.Type)])
	delete(unsafeFileSystems, uint32(fs.Type))
	if got, err := StorageWarnings(path); err != nil || len(got) > 0 {
		t.Errorf("on another: got %q, %v, want none", got, err)
	}
	for _, name := range []string{"NFS", "SMB", "CIFS", "SMB2", "overlay", "tmpfs"} {
		found := name == "tmpfs" // just taken out
		for _, text := range unsafeFileSystems {
			found = found || strings.HasPrefix(text, name+": ")
		}
		if !found {
			t.Errorf("%s is not known", name)
		}
	}
	if err := os.Link(path, path+"-too"); err != nil {
		t.Fatal(err)
	}
	if got, err := StorageWarnings(path); err != nil || len(got) != 1 || !strings.Contains(got[0], "hard link") {
		t.Errorf("with a hard link: got %q, %v", got, err)
	}
	for _, missing := range []string{"none.db", "none/store.db"} {
		if _, err := StorageWarnings(filepath.Join(dir, missing)); err == nil {
			t.Errorf("%s does not exist: got no error", missing)
		}
	}
}
