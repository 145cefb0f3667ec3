package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
)

// files is the path of a database, and the files that were there when the database was opened.
type files struct {
	path   string // absolute
	opened os.FileInfo
	logged atomic.Pointer[logPair] // set while the watcher has both files open; nil if unknown
}

// inPlace returns an error if the file of the database is not at its path any more. SQLite would go
// on writing to the open file, and these changes would be lost.
func (f *files) inPlace() error {
	info, err := os.Stat(f.path)
	switch {
	case err != nil:
	case !os.SameFile(info, f.opened):
		err = errors.New("another file has taken its place")
	case info.Size() == 0:
		err = errors.New("the file was emptied")
	}
	if err != nil {
		return fmt.Errorf("%w; put it back, or restart: %w", errGone, err)
	}
	return nil
}

// logInPlace returns an error if the log of the database or its index is not at its path. Both are
// there for as long as a process has the database open. Changes in a log that was removed or
// replaced are lost at the next start.
func (f *files) logInPlace() error {
	_, err := f.statLog()
	return err
}

// logPair is the log of a database and the index of the log.
type logPair [2]os.FileInfo

// statLog is like logInPlace, and also returns the two files.
func (f *files) statLog() (pair logPair, err error) {
	known := f.logged.Load()
	for i, suffix := range []string{"-wal", "-shm"} {
		pair[i], err = os.Stat(f.path + suffix)
		if err == nil && known != nil && !os.SameFile(pair[i], known[i]) {
			err = errors.New("another file has taken its place")
		}
		if err != nil {
			return pair, fmt.Errorf("%w: %q, which belongs to it; put it back, or restart: %w",
				errGone, f.path+suffix, err)
		}
	}
	return pair, nil
}

// ExplainPath adds advice to an error about the file at path, for the person who named it. It
// returns nil if err is nil.
func ExplainPath(path string, err error) error {
	dir := filepath.Dir(path)
	info, missing := os.Stat(dir)
	switch {
	case err == nil:
		return nil
	case errors.Is(missing, fs.ErrNotExist):
		return fmt.Errorf("the directory %q does not exist; create it first: mkdir -p %s", dir, ShellWord(dir))
	case missing == nil && !info.IsDir(), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%q, or a part of it, is a file and not a directory; name another directory", dir)
	case errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%q is a directory; name a file in it", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; the user of this process (uid %d) needs rights to the file and to the "+
			"directory %q: give it these, or run this as the owner", err, os.Geteuid(), dir)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w; mount the file system for writing, or name a file elsewhere", err)
	}
	return err
}
