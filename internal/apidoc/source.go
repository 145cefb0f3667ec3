package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// source is the part of the Go source that describes the API.
type source struct {
	routes     []route
	operations map[string]operationSource // methods of API by name
	types      map[string]ast.Expr        // types of package admin by name
	patches    map[string]string          // bodies and their merge patches, by type name
	enums      map[string][]string        // values of string types by name, such as access.Role
	texts      map[string]string          // string constants of package admin by name
	words      map[string]string          // comments of types and constants by name
	positions  *token.FileSet
}

// route is one entry of API.routes.
type route struct {
	method, path string
	status       string // of an answer without an error
	operation    string // the method of API
	kind         string // the Content-Type of the answer
	document     bool   // the answer is the same for every caller
	versioned    bool   // the operation compares If-Match
	issuing      bool   // the operation takes an Idempotency-Key
	reading      bool   // the operation changes nothing, although its method is not GET
	tag          string
	tagText      string
}

// operationSource is a method of API that serves a route.
type operationSource struct {
	comment string
	in, out ast.Expr // in is nil if the operation has no input
}

// readSource reads package admin in the directory api, and the packages whose string types it uses.
func readSource(api string, others ...string) (*source, error) {
	s := &source{
		operations: map[string]operationSource{}, types: map[string]ast.Expr{},
		patches: map[string]string{}, enums: map[string][]string{}, texts: map[string]string{},
		words: map[string]string{}, positions: token.NewFileSet(),
	}
	var routes *ast.FuncDecl
	var comments []*ast.CommentGroup
	for _, dir := range append([]string{api}, others...) {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(names) == 0 {
			return nil, errors.Join(err, fmt.Errorf("no Go files in %s", dir))
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			mode := parser.ParseComments | parser.SkipObjectResolution
			file, err := parser.ParseFile(s.positions, name, nil, mode)
			if err != nil {
				return nil, err
			}
			prefix := ""
			if dir != api {
				prefix = file.Name.Name + "."
			}
			for _, d := range file.Decls {
				switch d := d.(type) {
				case *ast.GenDecl:
					s.readDeclaration(d, prefix)
				case *ast.FuncDecl:
					if dir == api && d.Recv != nil {
						s.readMethod(d)
						if d.Name.Name == "routes" {
							routes, comments = d, file.Comments
						}
					}
				}
			}
		}
	}
	if routes == nil {
		return nil, fmt.Errorf("package %s has no method routes", api)
	}
	return s, s.readRoutes(routes, comments)
}

// readDeclaration collects types with their comments, and string constants.
func (s *source) readDeclaration(d *ast.GenDecl, prefix string) {
	for _, spec := range d.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			name := prefix + spec.Name.Name
			s.words[name] = plainText(d.Doc) + plainText(spec.Doc) + plainText(spec.Comment)
			if prefix == "" {
				s.types[name] = spec.Type
			}
		case *ast.ValueSpec:
			if d.Tok != token.CONST || len(spec.Values) != 1 {
				continue
			}
			value, ok := spec.Values[0].(*ast.BasicLit)
			if !ok || value.Kind != token.STRING {
				continue
			}
			text, _ := strconv.Unquote(value.Value) // the parser has accepted it
			if typ, ok := spec.Type.(*ast.Ident); ok {
				s.enums[prefix+typ.Name] = append(s.enums[prefix+typ.Name], text)
			} else if prefix == "" {
				s.texts[spec.Names[0].Name] = text
			}
		}
	}
}

// readMethod collects a method of API, or the type of a merge patch: the one that asMergePatch of a
// body makes with new.
func (s *source) readMethod(d *ast.FuncDecl) {
	receiver, ok := d.Recv.List[0].Type.(*ast.StarExpr)
	if !ok {
		return
	}
	of, ok := receiver.X.(*ast.Ident)
	switch {
	case ok && of.Name == "API" && d.Type.Results != nil:
		op := operationSource{comment: plainText(d.Doc), out: d.Type.Results.List[0].Type}
		if params := d.Type.Params.List; len(params) > 0 {
			op.in = params[len(params)-1].Type
		}
		s.operations[d.Name.Name] = op
	case ok && d.Name.Name == "asMergePatch":
		ast.Inspect(d.Body, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && nameOf(call.Fun) == "new" {
				s.patches[of.Name] = nameOf(call.Args[0])
			}
			return true
		})
	}
}

// readRoutes reads the list that API.routes returns. A comment above a route, "Tag: description",
// begins a group of routes.
func (s *source) readRoutes(f *ast.FuncDecl, comments []*ast.CommentGroup) error {
	result, ok := f.Body.List[0].(*ast.ReturnStmt)
	if !ok {
		return errors.New("API.routes must begin with the return of its list")
	}
	var tag, tagText string
	for _, element := range result.Results[0].(*ast.CompositeLit).Elts {
		line := s.positions.Position(element.Pos()).Line
		for _, c := range comments {
			if s.positions.Position(c.End()).Line == line-1 {
				tag, tagText, _ = strings.Cut(plainText(c), ": ")
			}
		}
		r := route{status: "200", kind: "application/json", tag: tag, tagText: upperFirst(tagText)}
		call := element.(*ast.CallExpr)
		if nameOf(call.Fun) == "reading" {
			r.reading = true
			call = call.Args[0].(*ast.CallExpr)
		}
		if nameOf(call.Fun) == "issuing" {
			r.issuing = true
			call = call.Args[0].(*ast.CallExpr)
		}
		if nameOf(call.Fun) == "versioned" {
			r.versioned = true
			call = call.Args[0].(*ast.CallExpr)
		}
		r.operation = nameOf(call.Args[len(call.Args)-1])
		switch kind := nameOf(call.Fun); kind {
		case "handle":
			r.method, r.path, r.status = s.text(call.Args[1]), s.text(call.Args[2]), s.text(call.Args[3])
		case "handleBackup":
			r.method, r.path, r.kind = s.text(call.Args[1]), s.text(call.Args[2]), s.texts["DatabaseType"]
		case "document":
			r.method, r.path, r.kind, r.document = "GET", s.text(call.Args[1]), s.text(call.Args[2]), true
		default:
			return fmt.Errorf("line %d of API.routes calls %s, which apidoc does not know", line, kind)
		}
		if tag == "" || tagText == "" || s.operations[r.operation].out == nil {
			return fmt.Errorf("%s %s: the route has no group, or no method of API", r.method, r.path)
		}
		s.routes = append(s.routes, r)
	}
	return nil
}

// text returns the value of a literal or of a string constant.
func (s *source) text(e ast.Expr) string {
	if literal, ok := e.(*ast.BasicLit); ok {
		return strings.Trim(literal.Value, `"`)
	}
	return s.texts[nameOf(e)]
}

// field is a field of a struct, also of a struct that is embedded in it.
type field struct {
	name    string // in Go
	typ     ast.Expr
	tag     reflect.StructTag
	comment string
}

// fields lists the fields of a struct of package admin. A field hides those of the same name in
// embedded structs.
func (s *source) fields(typeName string) (list []field) {
	t, ok := s.types[typeName].(*ast.StructType)
	if !ok {
		return nil
	}
	var own []string
	for _, f := range t.Fields.List {
		for _, name := range f.Names {
			own = append(own, name.Name)
		}
	}
	for _, f := range t.Fields.List {
		if f.Names == nil {
			inner := s.fields(nameOf(f.Type))
			list = append(list, slices.DeleteFunc(inner, func(f field) bool { return slices.Contains(own, f.name) })...)
		}
		for _, name := range f.Names {
			out := field{name: name.Name, typ: f.Type, comment: plainText(f.Doc) + plainText(f.Comment)}
			if f.Tag != nil {
				text, _ := strconv.Unquote(f.Tag.Value) // the parser has accepted it
				out.tag = reflect.StructTag(text)
			}
			list = append(list, out)
		}
	}
	return list
}

// nameOf returns the name of an identifier, of a selector without its operand unless that is a
// package with string types, or of the type behind a pointer.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.StarExpr:
		return nameOf(e.X)
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// plainText returns a comment as plain text, each paragraph on one line.
func plainText(group *ast.CommentGroup) string {
	p := comment.Printer{TextWidth: -1}
	return strings.TrimSpace(string(p.Text(new(comment.Parser).Parse(group.Text()))))
}

// sentence removes the Go name from the beginning of a doc comment: "getToken returns …" becomes
// "Returns …", and "Token is a token …" becomes "A token …".
func sentence(text, name string) string {
	text = strings.TrimPrefix(text, name+" ")
	text = strings.TrimPrefix(text, "is ")
	return upperFirst(strings.ReplaceAll(text, "\n\n", " "))
}

func upperFirst(text string) string {
	n := min(1, len(text))
	return strings.ToUpper(text[:n]) + text[n:]
}
