package caddymodule

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// TestJSONDocumented: every module, and every field of its JSON, has a comment. The page of the module on the site of Caddy
// shows these comments and nothing else.
func TestJSONDocumented(t *testing.T) {
	comments := map[string]string{} // by type, and by type and field
	for _, name := range must(filepath.Glob("*.go")) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file := must(parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments))
		for _, decl := range file.Decls {
			types, ok := decl.(*ast.GenDecl)
			if !ok || types.Tok != token.TYPE {
				continue
			}
			for _, spec := range types.Specs {
				name := spec.(*ast.TypeSpec).Name.Name
				comments[name] = types.Doc.Text() + spec.(*ast.TypeSpec).Doc.Text()
				if s, ok := spec.(*ast.TypeSpec).Type.(*ast.StructType); ok {
					for _, f := range s.Fields.List {
						for _, n := range f.Names {
							comments[name+"."+n.Name] = f.Doc.Text()
						}
					}
				}
			}
		}
	}
	seen := map[reflect.Type]bool{}
	var check func(reflect.Type)
	check = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if seen[typ] || typ.PkgPath() != reflect.TypeFor[App]().PkgPath() {
			return
		}
		seen[typ] = true
		if comments[typ.Name()] == "" {
			t.Errorf("%s has no comment", typ)
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if name := f.Tag.Get("json"); !f.IsExported() || name == "-" {
				continue
			} else if text := comments[typ.Name()+"."+f.Name]; name == "" || !strings.HasSuffix(strings.TrimSpace(text), ".") {
				t.Errorf("%s.%s, %q in JSON, has the comment %q; want sentences", typ, f.Name, name, text)
			}
			check(f.Type)
		}
	}
	count := 0
	for _, info := range caddy.Modules() {
		module, err := caddy.GetModule(info)
		if err != nil {
			t.Fatal(err)
		}
		typ := reflect.TypeOf(module.New())
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		// The modules of other tests have no place in comments.
		if _, ok := comments[typ.Name()]; ok && typ.PkgPath() == reflect.TypeFor[App]().PkgPath() {
			count++
			check(typ)
		}
	}
	if count != 6 || len(seen) < 9 || !seen[reflect.TypeFor[Throttle]()] {
		t.Errorf("got %d modules with %d types, want the 6 of this plugin, and the types of their fields", count, len(seen))
	}
}

// TestJSONTwins: examples/json has each Caddyfile example in JSON, as "caddy adapt --pretty" prints it without the variables
// of the environment; -update writes them.
func TestJSONTwins(t *testing.T) {
	examples := []string{"../Caddyfile.example"}
	err := filepath.WalkDir("../examples", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, "Caddyfile") {
			examples = append(examples, path)
		}
		return err
	})
	if err != nil || len(examples) < 9 {
		t.Fatalf("got %q, %v", examples, err)
	}
	variable := regexp.MustCompile(`\{\$(\w+)`)
	twins := map[string]bool{}
	for _, path := range examples {
		if strings.Contains(path, "/ratelimit/") {
			continue // tools/neighbours has its module
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range variable.FindAllSubmatch(text, -1) {
			t.Setenv(string(name[1]), "") // which sets it back after the test
			os.Unsetenv(string(name[1]))
		}
		got, err := adapt(text)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		got = append(got, '\n')
		twin := filepath.Join("../examples/json", strings.TrimPrefix(strings.TrimPrefix(path, "../"), "examples/")+".json")
		twins[twin] = true
		if *update {
			if err := os.MkdirAll(filepath.Dir(twin), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(twin, got, 0o644); err != nil {
				t.Fatal(err)
			}
		} else if want, err := os.ReadFile(twin); err != nil || string(want) != string(got) {
			t.Errorf("%s is not %s in JSON (%v); \"go test ./caddymodule -run JSONTwins -update\" writes it", twin, path, err)
		}
	}
	err = filepath.WalkDir("../examples/json", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !twins[path] {
			t.Errorf("%s has no Caddyfile", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
