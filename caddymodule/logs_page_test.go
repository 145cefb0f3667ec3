package caddymodule

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/store"
)

// logSource collects the messages that a function logs.
type logSource struct {
	t     *testing.T
	files *token.FileSet
	texts map[string][]string   // of a variable in the function: the constants assigned to it
	exprs map[string][]ast.Expr // likewise, anything
	found map[string]map[string]bool
}

var logLevels = map[string]string{"Debug": "debug", "Info": "info", "Warn": "warn", "Error": "error"}

// constant returns the text of a constant expression. A variable at its end is "…".
func constant(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, ok := constant(e.X)
		b, constantToo := constant(e.Y)
		if !constantToo {
			b = "…"
		}
		return a + b, ok && e.Op == token.ADD
	}
	return "", false
}

// messages returns the constants that an expression can be.
func (l *logSource) messages(e ast.Expr) []string {
	if text, ok := constant(e); ok {
		return []string{text}
	}
	return l.texts[fmt.Sprint(e)]
}

// levels returns the levels that an expression can be.
func (l *logSource) levels(e ast.Expr) (list []string) {
	if s, ok := e.(*ast.SelectorExpr); ok && (fmt.Sprint(s.X) == "zap" || fmt.Sprint(s.X) == "zapcore") {
		if name, ok := strings.CutSuffix(s.Sel.Name, "Level"); ok && logLevels[name] != "" {
			return []string{logLevels[name]}
		}
	}
	for _, value := range l.exprs[fmt.Sprint(e)] {
		list = append(list, l.levels(value)...)
	}
	return list
}

// fields returns the names of the fields below a node, and of variables in it.
func (l *logSource) fields(n ast.Node, depth int) (names []string) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if s, ok := n.Fun.(*ast.SelectorExpr); ok && fmt.Sprint(s.X) == "zap" && len(n.Args) > 0 {
				if name, ok := constant(n.Args[0]); ok {
					names = append(names, name)
				} else if s.Sel.Name == "Error" {
					names = append(names, "error")
				}
				return false
			}
		case *ast.Ident:
			if depth < 2 && (n.Name == "fields" || n.Name == "cause" || n.Name == "log") {
				for _, value := range l.exprs[n.Name] {
					names = append(names, l.fields(value, depth+1)...)
				}
			}
		}
		return true
	})
	return names
}

func (l *logSource) add(levels, messages, fields []string, at token.Pos) {
	if len(messages) == 0 || len(levels) == 0 {
		l.t.Errorf("%s: the message or the level of this line is not a constant, so docs/logs.md cannot have it", l.files.Position(at))
	}
	for _, message := range messages {
		if l.found[message] == nil {
			l.found[message] = make(map[string]bool)
		}
		for _, level := range levels {
			l.found[message]["level "+level] = true
		}
		for _, field := range fields {
			l.found[message]["field "+field] = true
		}
	}
}

// function adds the lines of a function.
func (l *logSource) function(f *ast.FuncDecl) {
	l.texts, l.exprs = make(map[string][]string), make(map[string][]ast.Expr)
	assign := func(names, values []ast.Expr) {
		for i, name := range names {
			if i < len(values) {
				l.exprs[fmt.Sprint(name)] = append(l.exprs[fmt.Sprint(name)], values[i])
				if text, ok := constant(values[i]); ok {
					l.texts[fmt.Sprint(name)] = append(l.texts[fmt.Sprint(name)], text)
				}
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if a, ok := n.(*ast.AssignStmt); ok {
			assign(a.Lhs, a.Rhs)
		}
		return true
	})
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.IfStmt: // if c := log.Check(level, message); c != nil { c.Write(fields) }
			a, ok := n.Init.(*ast.AssignStmt)
			if !ok {
				break
			}
			call, ok := a.Rhs[0].(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				break
			}
			if s, ok := call.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Check" && isLog(s.X) {
				l.add(l.levels(call.Args[0]), l.messages(call.Args[1]), l.fields(n.Body, 0), call.Pos())
			}
		case *ast.CallExpr:
			s, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || logLevels[s.Sel.Name] == "" || len(n.Args) == 0 || fmt.Sprint(s.X) == "zap" || fmt.Sprint(s.X) == "caddyhttp" {
				break
			}
			fields := l.fields(s.X, 0)
			for _, arg := range n.Args[1:] {
				fields = append(fields, l.fields(arg, 0)...)
			}
			l.add([]string{logLevels[s.Sel.Name]}, l.messages(n.Args[0]), fields, n.Pos())
		}
		return true
	})
}

// isLog reports whether an expression is log, or a field of this name, such as h.log.
func isLog(e ast.Expr) bool {
	if s, ok := e.(*ast.SelectorExpr); ok {
		return strings.EqualFold(s.Sel.Name, "log")
	}
	return fmt.Sprint(e) == "log"
}

var backquoted = regexp.MustCompile("`([^`]+)`")

// TestLogsPage compares docs/logs.md with the source: each message with its levels and fields, and each event.
func TestLogsPage(t *testing.T) {
	l := &logSource{t: t, files: token.NewFileSet(), found: make(map[string]map[string]bool)}
	for _, dir := range []string{"../access", "../store", "../admin", "../admin/console", "."} {
		paths, _ := filepath.Glob(filepath.Join(dir, "*.go"))
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(l.files, path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range file.Decls {
				// The message of a finding of lint is its text.
				if f, ok := decl.(*ast.FuncDecl); ok && f.Name.Name != "checkRoutes" {
					l.function(f)
				}
			}
		}
	}
	text, err := os.ReadFile("../docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	page := make(map[string]map[string]bool)
	events := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(line, "|\n"), " | ")
		if !strings.HasPrefix(line, "| `") || len(cells) < 3 {
			continue
		}
		name := backquoted.FindStringSubmatch(cells[0])[1]
		if len(cells) == 3 {
			events[name] = true
			continue
		}
		page[name] = make(map[string]bool)
		for _, level := range strings.Split(cells[1], ", ") {
			page[name]["level "+strings.TrimSpace(level)] = true
		}
		for _, field := range backquoted.FindAllStringSubmatch(cells[2], -1) {
			page[name]["field "+field[1]] = true
		}
	}
	for _, message := range slices.Sorted(maps.Keys(l.found)) {
		if strings.HasPrefix(message, "cannot decide") { // its function also has the level of another message
			delete(l.found[message], "level info")
		}
		want := strings.Join(slices.Sorted(maps.Keys(l.found[message])), ", ")
		if got := strings.Join(slices.Sorted(maps.Keys(page[message])), ", "); got != want {
			t.Errorf("docs/logs.md, %q: got %s; the source has %s", message, got, want)
		}
		delete(page, message)
	}
	for message := range page {
		t.Errorf("docs/logs.md has %q, and the source does not", message)
	}
	if n := len(l.found); n < 50 {
		t.Errorf("messages in the source: got %d; the test sees little", n)
	}
	for _, name := range append(slices.Clone(store.AuditActions), store.EventDegraded, store.EventRecovered, "token.expiring") {
		if !events[name] {
			t.Errorf("docs/logs.md does not have the event %s", name)
		}
		delete(events, name)
	}
	for name := range events {
		if strings.Contains(name, ".") {
			t.Errorf("docs/logs.md has the event %s, which does not exist", name)
		}
	}
}
