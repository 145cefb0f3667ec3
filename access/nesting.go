package access

import (
	"fmt"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
)

// The bounds of the types in an expression. To check one takes time that grows with
// the third power of how deep its types are, and each map that has a variable as its
// key as well as its value has a type of twice the size.
const (
	maxNesting      = 64
	maxComputedKeys = 4
)

// CheckNesting refuses an expression that was parsed and whose types would take long
// to check. Nothing bounds that later: it cannot be interrupted, and costs are not
// known yet.
func CheckNesting(parsed *cel.Ast) error {
	computed := 0
	depth := nesting(parsed.NativeRep().Expr(), &computed)
	switch {
	case depth > maxNesting:
		return fmt.Errorf("it nests lists, maps and loops %d deep, at most %d are allowed", depth, maxNesting)
	case computed > maxComputedKeys:
		return fmt.Errorf("it has %d maps whose keys are not written out, at most %d are allowed", computed, maxComputedKeys)
	}
	return nil
}

// nesting returns how deep the types of an expression can be, and counts the maps with
// keys that are not written out. The variable of a loop is as deep as what is looped over.
func nesting(e celast.Expr, computed *int) (depth int) {
	deepest := func(list ...celast.Expr) (depth int) {
		for _, e := range list {
			depth = max(depth, nesting(e, computed))
		}
		return depth
	}
	switch e.Kind() {
	case celast.CallKind:
		call := e.AsCall()
		depth = deepest(call.Args()...)
		if call.IsMemberFunction() {
			depth = max(depth, deepest(call.Target()))
		}
	case celast.SelectKind:
		depth = deepest(e.AsSelect().Operand())
	case celast.ComprehensionKind:
		loop := e.AsComprehension()
		depth = deepest(loop.IterRange()) + deepest(loop.AccuInit(), loop.LoopCondition(), loop.LoopStep(), loop.Result())
	case celast.ListKind:
		depth = 1 + deepest(e.AsList().Elements()...)
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			entry := entry.AsMapEntry()
			if entry.Key().Kind() != celast.LiteralKind {
				*computed++
			}
			depth = max(depth, deepest(entry.Key(), entry.Value()))
		}
		depth++
	}
	return depth
}
