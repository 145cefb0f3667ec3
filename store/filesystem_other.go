//go:build !linux

package store

// Doubt says why the file system of the directory of a path is no good place for a
// store, or "". Only Linux is asked.
func Doubt(string) (string, error) { return "", nil }
