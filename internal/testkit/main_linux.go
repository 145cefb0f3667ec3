package testkit

import (
	"os"
	"syscall"
)

// inMemory gives temporary files a place in memory, unless TMPDIR names a place or memory lacks the room. A test
// makes hundreds of changes, and each would wait for the disk; only a loss of power could show the difference.
func inMemory() {
	const dir, tmpfs, noExec, room = "/dev/shm", 0x01021994, 8, 2 << 30
	var fs syscall.Statfs_t
	if os.Getenv("TMPDIR") != "" || syscall.Statfs(dir, &fs) != nil || fs.Type != tmpfs || fs.Flags&noExec != 0 ||
		fs.Bavail*uint64(fs.Bsize) < room {
		return
	}
	if file, err := os.CreateTemp(dir, "testkit-*"); err == nil {
		file.Close()
		os.Remove(file.Name())
		os.Setenv("TMPDIR", dir)
	}
}
