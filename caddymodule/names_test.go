package caddymodule

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// logFields returns the names of the fields that the production code of a package logs.
func logFields(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			function, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || fmt.Sprint(function.X) != "zap" {
				return true
			}
			if literal, ok := call.Args[0].(*ast.BasicLit); ok && literal.Kind == token.STRING {
				name, _ := strconv.Unquote(literal.Value)
				names = append(names, name)
			} else if function.Sel.Name == "Error" {
				names = append(names, "error")
			}
			return true
		})
	}
	return names
}

// TestNamesStay compares the names that operators' alerts, dashboards and log filters
// rely on with testdata/names.txt. A name there is never changed; new ones are written
// with -update.
func TestNamesStay(t *testing.T) {
	var fields []string
	for _, dir := range []string{"../store", "../admin", ".", "../cli"} {
		fields = append(fields, logFields(t, dir)...)
	}
	slices.Sort(fields)
	var text strings.Builder
	for _, name := range slices.Compact(fields) {
		fmt.Fprintf(&text, "field %s\n", name)
	}

	core, logged := observer.New(zapcore.DebugLevel)
	r := prepared(httptest.NewRequest("GET", "/x", nil))
	live := newGuard(t, Handler{}).h.shared.live.Load()
	live.failedLogin(zap.New(core), r, parseCredential([]string{basic("service_x", "x\n")}, false), netip.Addr{})
	for _, entry := range logged.All() {
		fmt.Fprintf(&text, "failure %q", entry.Message)
		for _, field := range entry.Context {
			fmt.Fprintf(&text, " %s", field.Key)
		}
		fmt.Fprintln(&text)
	}

	registry := prometheus.NewRegistry()
	if err := metrics.register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			fmt.Fprintf(&text, "metric %s %s", strings.ToLower(family.GetType().String()), family.GetName())
			for _, label := range metric.GetLabel() {
				fmt.Fprintf(&text, " %s=%q", label.GetName(), label.GetValue())
			}
			fmt.Fprintln(&text)
		}
	}

	const golden = "testdata/names.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("names: got\n%s\nwant\n%s", text.String(), want)
	}
}
