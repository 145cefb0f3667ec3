//go:build unix

package caddymodule

import (
	"os"
	"syscall"
)

// lock locks a file until it is closed. It fails at once if the file is locked.
func lock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }
