//go:build unix

package store

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// giveTo gives a new file of root to the owner of the store at path, so that a server that runs as
// that owner can use it. Without a database, the owner of its side files counts, or else the owner
// of the directory. giveTo does nothing for other users, which cannot give files away.
func giveTo(file *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	has, owner := info.Sys().(*syscall.Stat_t), ownerOf(path)
	if owner == nil || has.Uid == owner.Uid && has.Gid == owner.Gid {
		return nil
	}
	// By descriptor, because the name may lead to another file by now.
	return file.Chown(int(owner.Uid), int(owner.Gid))
}

// ownerOf returns the attributes of the file that determines the owner of the store at path. It
// returns nil if no such file can be examined.
func ownerOf(path string) *syscall.Stat_t {
	for _, suffix := range append([]string{""}, Companions()...) {
		info, err := os.Lstat(path + suffix)
		if err != nil {
			continue
		}
		// Earlier versions left the note (.seen) with root as its owner, so root says
		// nothing about the server.
		if stat := info.Sys().(*syscall.Stat_t); suffix == "" || stat.Uid != 0 {
			return stat
		}
	}
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return nil
	}
	return info.Sys().(*syscall.Stat_t)
}

// ownNote reports whether the note (.seen) beside the database at path belongs to the owner of the
// database. It returns true if the note does not exist.
func ownNote(path string) bool {
	note, err := os.Lstat(path + ".seen")
	if err != nil {
		return true // the note does not exist
	}
	has, owner := note.Sys().(*syscall.Stat_t), ownerOf(path)
	return owner == nil || has.Uid == owner.Uid && has.Gid == owner.Gid
}

// giveNote returns the command that makes the note readable for the owner of the store.
func giveNote(path string) string {
	note := ShellWord(path + ".seen")
	owner := ownerOf(path)
	if owner == nil {
		return "chmod 600 " + note
	}
	return fmt.Sprintf("chown %d:%d %s && chmod 600 %s", owner.Uid, owner.Gid, note, note)
}
