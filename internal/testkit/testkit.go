// Package testkit holds the small helpers that the tests of several packages share.
package testkit

// Altered returns text with another last character, which is a digit. A test that
// replaces a random character by a fixed one alters nothing once in a while.
func Altered(text string) string {
	last := len(text) - 1
	if text[last] == '0' {
		return text[:last] + "1"
	}
	return text[:last] + "0"
}
