// Package filelock locks files for one process.
package filelock

import (
	"os"
	"syscall"
)

var lockFile = syscall.NewLazyDLL("kernel32.dll").NewProc("LockFile")

// Lock locks a file until it is closed. It fails at once if the file is locked.
func Lock(f *os.File) error {
	if ok, _, err := lockFile.Call(f.Fd(), 1<<20, 0, 1, 0); ok == 0 { // a byte beyond the end: others may read
		return err
	}
	return nil
}
