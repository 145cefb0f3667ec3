package console

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"net/http"
	"strings"
	"time"
)

// assets is the path of the style sheet, the script and the picture. It contains a digest of them, so
// that browsers keep them until they change.
var assets = func() string {
	sum := sha256.New()
	names, _ := fs.Glob(files, "assets/*")
	for _, name := range names {
		text, _ := files.ReadFile(name)
		sum.Write(text)
	}
	return Root + "assets/" + hex.EncodeToString(sum.Sum(nil)[:6]) + "/"
}()

// ServeAsset answers a request for an asset, and reports whether it is one.
func ServeAsset(w http.ResponseWriter, r *http.Request) bool {
	name, below := strings.CutPrefix(r.URL.Path, assets)
	text, err := files.ReadFile("assets/" + name)
	if err != nil || !below || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	protect(w.Header())
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(text))
	return true
}
