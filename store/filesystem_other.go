//go:build !linux

package store

// StorageWarnings lists reasons why the place of a store is unsafe. It knows only Linux file
// systems, so here it returns none.
func StorageWarnings(string) ([]string, error) { return nil, nil }
