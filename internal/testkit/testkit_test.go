package testkit

import "testing"

func TestAltered(t *testing.T) {
	for c := range 128 {
		text := "csu_" + string(rune(c))
		if got := Altered(text); got == text || got[:4] != "csu_" || len(got) != len(text) {
			t.Errorf("%q: got %q, want another last character", text, got)
		}
	}
}
