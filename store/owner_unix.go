//go:build unix

package store

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// giveTo gives a file that root has just created to the owner of the store at path,
// so that a server that runs as that owner can use it. Where there is no database the
// owner is taken from the files that it left, or else from its directory. Other users
// than root can give nothing away; for them it does nothing.
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
	return file.Chown(int(owner.Uid), int(owner.Gid)) // by descriptor: its name may lead elsewhere by now
}

// ownerOf returns the attributes of the file that tells who owns the store at path;
// nil when none can be looked at.
func ownerOf(path string) *syscall.Stat_t {
	for _, suffix := range append([]string{""}, Companions()...) {
		info, err := os.Lstat(path + suffix)
		if err != nil {
			continue
		}
		// Earlier versions left the note to root, which says nothing about the server.
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

// ownNote reports whether the note beside the database at path belongs to the owner
// of the database.
func ownNote(path string) bool {
	note, err := os.Lstat(path + ".seen")
	if err != nil {
		return true // there is none
	}
	has, owner := note.Sys().(*syscall.Stat_t), ownerOf(path)
	return owner == nil || has.Uid == owner.Uid && has.Gid == owner.Gid
}

// giveNote is the command that makes the note readable for the owner of the store.
func giveNote(path string) string {
	note := ShellWord(path + ".seen")
	owner := ownerOf(path)
	if owner == nil {
		return "chmod 600 " + note
	}
	return fmt.Sprintf("chown %d:%d %s && chmod 600 %s", owner.Uid, owner.Gid, note, note)
}
