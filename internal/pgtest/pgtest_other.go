//go:build !unix

package pgtest

import "testing"

// URL skips the test.
func URL(t testing.TB) string {
	t.Skip("the tests run PostgreSQL on Unix only")
	return ""
}

// Rows is for Unix alone, as [URL] is.
func Rows(testing.TB, string) string { return "" }
