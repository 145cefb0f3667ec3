//go:build !unix

package store

import "os"

// giveTo does nothing on this system: only a Unix root has files to give away.
func giveTo(*os.File, string) error { return nil }

// ownNote reports that every note is the owner's.
func ownNote(string) bool { return true }

// giveNote returns the command that makes the note readable again (Windows).
func giveNote(path string) string { return "icacls " + ShellWord(path+".seen") + " /reset" }
