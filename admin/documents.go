package admin

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the page
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"path"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
)

// document returns a route to a text that is the same for every caller. The first request builds
// the text; later requests get the same bytes and ETag.
func document(a *API, path, kind string, op func() []byte) route {
	made := sync.OnceValues(func() ([]byte, string) {
		text := op()
		return text, fmt.Sprintf(`"%x"`, sha256.Sum256(text))
	})
	serve := func(w http.ResponseWriter, r *http.Request) {
		if err := decodeQuery(r, new(None)); err != nil {
			WriteError(w, a.log, actorOf(r.Context()).Operation, err)
			return
		}
		text, tag := made()
		h := w.Header()
		h.Set("ETag", tag)
		h.Set("Cache-Control", "private, no-cache") // in place of no-store: the ETag saves a second transfer
		h.Set("Content-Security-Policy", referencePolicy)
		if strings.Contains(r.Header.Get("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", kind)
		_, _ = w.Write(text) // the client may be gone
	}
	out := reflect.TypeFor[string]()
	if kind == "application/json" {
		out = reflect.TypeFor[map[string]any]()
	}
	return route{
		method: "GET", path: path, status: http.StatusOK, serve: serve, op: op,
		in: reflect.TypeFor[None](), out: out, kind: kind,
	}
}

var (
	//go:embed reference.html
	referencePage string
	//go:embed reference.css
	referenceStyle string
	// referencePolicy is the Content-Security-Policy of the page. It allows the style of the
	// page, by its hash, and nothing else.
	referencePolicy = "default-src 'none'; style-src 'sha256-" + hash(referenceStyle) + "'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// openAPI returns this document: the OpenAPI 3.1 description of the API.
func (a *API) openAPI() []byte {
	text, err := json.MarshalIndent(describeAPI(a.routes()), "", "  ")
	if err != nil {
		panic(err) // impossible: the document contains only texts, numbers, lists and objects
	}
	return append(text, '\n')
}

// reference returns the OpenAPI document as a page for people.
func (a *API) reference() []byte {
	var doc any
	if err := json.Unmarshal(a.openAPI(), &doc); err != nil {
		panic(err) // impossible: openAPI just encoded it
	}
	page := template.New("").Funcs(template.FuncMap{
		"base": func(ref any) string { return path.Base(fmt.Sprint(ref)) },
		"kind": func(types any) string { // "string", or "string or null" for the list [string null]
			return strings.ReplaceAll(strings.Trim(fmt.Sprint(types), "[]"), " ", " or ")
		},
		"methods": func() []string { return []string{"get", "post", "put", "patch", "delete"} },
		"null": func(types any) string {
			if _, more := types.([]any); more {
				return " or null"
			}
			return ""
		},
		"title": func(tag string) string {
			return strings.ToUpper(tag[:1]) + strings.ReplaceAll(tag[1:], "_", " ")
		},
		"upper": strings.ToUpper,
		"style": func() template.CSS { return template.CSS(referenceStyle) },
	})
	var out bytes.Buffer
	if err := template.Must(page.Parse(referencePage)).Execute(&out, doc); err != nil {
		panic(err) // impossible: the page and the document are part of the program, and a test renders them
	}
	return out.Bytes()
}

// version returns the version of this module in the running program, or "dev" if the build
// information has none or the module is replaced.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	module := path.Dir(reflect.TypeFor[API]().PkgPath()) // this package is one directory below
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == module && m.Replace == nil && strings.HasPrefix(m.Version, "v") {
			return m.Version
		}
	}
	return "dev"
}
