// Package testkit holds the small helpers that the tests of several packages share.
package testkit

import (
	"os"
	"testing"
)

// Altered returns text with another last character, which is a digit. A test that
// replaces a random character by a fixed one alters nothing once in a while.
func Altered(text string) string {
	last := len(text) - 1
	if text[last] == '0' {
		return text[:last] + "1"
	}
	return text[:last] + "0"
}

// Missing skips a test that needs something which this machine does not have. advice says how to get
// it. With CI=true the test fails, since CI runs every test.
func Missing(t testing.TB, advice string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(advice)
	}
	t.Skip(advice)
}
