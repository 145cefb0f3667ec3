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

// document is a route to a text that is the same for everybody: made once, when
// somebody asks for it, and with an ETag.
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
		h.Set("Cache-Control", "private, no-cache")
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
	return route{"GET", path, http.StatusOK, serve, op, reflect.TypeFor[None](), out, kind, false}
}

var (
	//go:embed reference.html
	referencePage string
	//go:embed reference.css
	referenceStyle string
	// referencePolicy lets the page have its style and nothing else.
	referencePolicy = "default-src 'none'; style-src 'sha256-" + hash(referenceStyle) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// openAPI shows the OpenAPI 3.1 document of this API, which is this one.
func (a *API) openAPI() []byte {
	text, err := json.MarshalIndent(describeAPI(a.routes()), "", "  ")
	if err != nil {
		panic(err) // cannot be: it is made of texts and numbers
	}
	return append(text, '\n')
}

// reference shows the OpenAPI document to people, as a page.
func (a *API) reference() []byte {
	var doc any
	if err := json.Unmarshal(a.openAPI(), &doc); err != nil {
		panic(err) // cannot be: it was just written
	}
	page := template.New("").Funcs(template.FuncMap{
		"base":    func(ref any) string { return path.Base(fmt.Sprint(ref)) },
		"kind":    func(types any) string { return strings.ReplaceAll(strings.Trim(fmt.Sprint(types), "[]"), " ", " or ") },
		"methods": func() []string { return []string{"get", "post", "put", "patch", "delete"} },
		"null": func(types any) string {
			if _, more := types.([]any); more {
				return " or null"
			}
			return ""
		},
		"title": func(tag string) string { return strings.ToUpper(tag[:1]) + strings.ReplaceAll(tag[1:], "_", " ") },
		"upper": strings.ToUpper,
		"style": func() template.CSS { return template.CSS(referenceStyle) },
	})
	var out bytes.Buffer
	if err := template.Must(page.Parse(referencePage)).Execute(&out, doc); err != nil {
		panic(err) // cannot be: the same document as ever
	}
	return out.Bytes()
}

// version returns the version of this module in the running program.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == path.Dir(reflect.TypeFor[API]().PkgPath()) && m.Replace == nil && strings.HasPrefix(m.Version, "v") {
			return m.Version
		}
	}
	return "dev"
}
