package console

import (
	"bytes"
	"compress/gzip"
	"io/fs"
	"testing"
)

// TestAssetsAreSmall: all assets together are at most 60 KB compressed.
func TestAssetsAreSmall(t *testing.T) {
	t.Parallel()
	var all bytes.Buffer
	names, _ := fs.Glob(files, "assets/*")
	for _, at := range names {
		text, _ := files.ReadFile(at)
		w := gzip.NewWriter(&all)
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes in all", at, all.Len())
	}
	if n := all.Len(); n == 0 || n > 60_000 {
		t.Errorf("got %d bytes", n)
	}
}
