//go:build unix

// Package filelock locks files for one process.
package filelock

import (
	"os"
	"syscall"
)

// Lock locks a file until it is closed. It fails at once if the file is locked.
func Lock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }
