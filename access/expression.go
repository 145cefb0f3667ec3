package access

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
)

// The bounds of the types in an expression. Checking an expression takes time that grows with the
// third power of the depth of its types. A map that has a variable as its key as well as its value
// has a type of twice the size.
const (
	maxNesting      = 64
	maxComputedKeys = 4
)

// ParseExpression parses and checks an expression. It refuses an expression whose types would take
// long to check: a check cannot be interrupted, and costs are not known before it. Its errors give
// the position of a mistake in characters from 1.
func ParseExpression(env *cel.Env, text string) (*cel.Ast, error) {
	ast, issues := env.Parse(text)
	if issues.Err() != nil {
		return nil, firstIssue(issues)
	}
	computed := 0
	switch depth := nesting(celast.NavigateAST(ast.NativeRep()), &computed); {
	case depth > maxNesting:
		return nil, fmt.Errorf("it nests lists, maps and loops %d deep, at most %d are allowed",
			depth, maxNesting)
	case computed > maxComputedKeys:
		return nil, fmt.Errorf("it has %d maps whose keys are not written out, at most %d are allowed",
			computed, maxComputedKeys)
	}
	if ast, issues = env.Check(ast); issues.Err() != nil {
		return nil, firstIssue(issues)
	}
	return ast, nil
}

// firstIssue returns the first mistake in an expression, with its position.
func firstIssue(issues *cel.Issues) error {
	first := issues.Errors()[0]
	message := strings.TrimSuffix(first.Message, " (in container '')")
	if m := unknownCEL.FindStringSubmatch(message); m != nil {
		known := slices.Concat(slices.Sorted(maps.Keys(celFields["user"])),
			slices.Sorted(maps.Keys(celFields["request"])), []string{"user", "request", "params", "obj"})
		if nearest := NearestWord(m[1], known); nearest != "" && nearest != m[1] {
			message += "; did you mean " + nearest + "?"
		}
	}
	if first.Location.Column() < 0 { // the mistake has no position
		return errors.New(message)
	}
	return fmt.Errorf("at character %d: %s", first.Location.Column()+1, message)
}

// unknownCEL finds the name in an error of CEL about a name that it does not know.
var unknownCEL = regexp.MustCompile(`^(?:undefined field|undeclared reference to) '(\w+)'`)

// nesting returns the depth of the types of an expression, at most, and counts the maps with keys
// that are not written out.
func nesting(e celast.NavigableExpr, computed *int) (depth int) {
	parts := e.Children()
	loop := 0
	if e.Kind() == celast.ComprehensionKind { // the variable of a loop is as deep as its list
		loop, parts = nesting(parts[0], computed), parts[1:]
	}
	for _, part := range parts {
		depth = max(depth, nesting(part, computed))
	}
	switch e.Kind() {
	case celast.ListKind:
		depth++
	case celast.MapKind:
		depth++
		for _, entry := range e.AsMap().Entries() {
			if entry.AsMapEntry().Key().Kind() != celast.LiteralKind {
				*computed++
			}
		}
	}
	return loop + depth
}
