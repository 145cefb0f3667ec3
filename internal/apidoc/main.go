// Command apidoc writes the OpenAPI document of the admin API, and a page for people with the same
// content. It reads the Go source of package admin: the list of routes, the operations behind them,
// their types, and the comments of all of these. It does not run the API.
//
// "go generate ./admin" runs it. Both files are embedded in package admin, which serves them.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"log"
	"os"
	"path/filepath"
)

func main() {
	log.SetFlags(0)
	root := flag.String("root", ".", "the root of the module")
	flag.Parse()
	files, err := generate(*root)
	if err != nil {
		log.Fatalf("apidoc: %v", err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(*root, name), text, 0o644); err != nil {
			log.Fatalf("apidoc: %v", err)
		}
	}
}

// generate returns the generated files by their path below the root of the module.
func generate(root string) (map[string][]byte, error) {
	src, err := readSource(filepath.Join(root, "admin"), filepath.Join(root, "access"), filepath.Join(root, "store"))
	if err != nil {
		return nil, err
	}
	examples := map[string]example{}
	text, err := os.ReadFile(filepath.Join(root, "admin/testdata/examples.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &examples); err != nil {
		return nil, err
	}
	doc, err := describe(src, examples)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(doc); err != nil {
		return nil, err
	}
	page, err := render(doc)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"admin/openapi.json": out.Bytes(), "admin/reference.html": page}, nil
}
