package admin

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the documents
	"encoding/base64"
	"fmt"
	"net/http"
	"path"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
)

//go:generate go test -run ^TestExamples$ -update .
//go:generate go run ../internal/apidoc -root ..

var (
	//go:embed openapi.json
	openAPIDocument []byte
	//go:embed reference.html
	referencePage []byte
	// referencePolicy is the Content-Security-Policy of the page. It allows the style of the
	// page, by its hash, and nothing else.
	referencePolicy = "default-src 'none'; style-src 'sha256-" + styleHash(referencePage) + "'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// document returns a route to a text that is the same for every caller. The first request makes the
// text; later requests get the same bytes and ETag.
func document(a *API, path, kind string, op func() []byte) route {
	made := sync.OnceValues(func() ([]byte, string) {
		text := op()
		return text, fmt.Sprintf(`"%x"`, sha256.Sum256(text))
	})
	serve := func(w http.ResponseWriter, r *http.Request) {
		if err := decodeQuery(r); err != nil {
			WriteError(w, a.log, actorOf(r.Context()).Operation, err)
			return
		}
		text, tag := made()
		h := w.Header()
		h.Set("ETag", tag)
		h.Set("Cache-Control", "private, no-cache") // in place of no-store: the ETag saves a second transfer
		h.Set("Content-Security-Policy", referencePolicy)
		if notModified(r, tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", kind)
		_, _ = w.Write(text) // the client may be gone
	}
	return route{method: "GET", path: path, serve: serve}
}

// styleHash returns the SHA-256 of the style in a page, in base64.
func styleHash(page []byte) string {
	_, style, _ := bytes.Cut(page, []byte("<style>"))
	style, _, _ = bytes.Cut(style, []byte("</style>"))
	sum := sha256.Sum256(style)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// openAPI returns this document: the OpenAPI 3.1 description of the API.
func (a *API) openAPI() []byte { return withVersion(openAPIDocument) }

// reference returns the OpenAPI document as a page for people.
func (a *API) reference() []byte { return withVersion(referencePage) }

// withVersion replaces the version in a generated document by that of the running program.
func withVersion(text []byte) []byte {
	return bytes.Replace(text, []byte("v0.0.0"), []byte(Version()), 1)
}

// Version returns the version of this module in the running program: its tag, or a version that has the revision in its
// name. It returns "dev" if the build information has neither.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	return versionIn(info, path.Dir(reflect.TypeFor[API]().PkgPath())) // this package is one directory below
}

// versionIn returns the version of a module. The builder invents v0.0.0 and the zero pseudo-version for a module that it
// replaces by a directory; the version of a fork is that of the fork.
func versionIn(info *debug.BuildInfo, module string) string {
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path != module {
			continue
		}
		version := m.Version
		if m.Replace != nil && m.Replace.Version != "" {
			version = m.Replace.Version
		}
		if strings.HasPrefix(version, "v") && version != "v0.0.0" && !strings.HasPrefix(version, "v0.0.0-0001") {
			return version
		}
	}
	return "dev"
}
