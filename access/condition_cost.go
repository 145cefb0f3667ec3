package access

import (
	"math"
	"regexp/syntax"
	"slices"
	"strings"

	"cel.dev/cel-go/checker"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

// valueSizes is a [checker.CostEstimator]. It gives CEL an upper bound for the size of each value
// that a condition can read. The store enforces the bounds for service users, and errLongValue
// those for requests.
type valueSizes struct{}

// sizeOf contains the bounds by path of the value: bytes of a text, elements of a list or map.
var sizeOf = valueBounds()

func valueBounds() map[string]uint64 {
	bounds := map[string]uint64{
		"user.role": 8, "user.teams": 32, "user.teams.@items": 64,
		"user.labels": 64, "user.labels.@keys": 63, "user.labels.@values": 255,
		"request.method": 32, "request.host": 255, "request.path": maxValueBytes, "request.remote_ip": 45,
		"params": maxPatternSegments, "params.@keys": 64, "params.@values": maxValueBytes,
	}
	for _, text := range slices.Concat(loginTexts, otherTexts) {
		bounds["user."+text.name] = text.size
	}
	return bounds
}

// EstimateSize returns the bound of a value, or nil if CEL knows the size itself.
func (valueSizes) EstimateSize(node checker.AstNode) *checker.SizeEstimate {
	path := node.Path()
	// CEL gives user.labels.?env and params[?"id"] an empty path: find their map in the
	// expression.
	if e := node.Expr(); len(path) == 0 && e.Kind() == celast.CallKind {
		if f := e.AsCall().FunctionName(); f == operators.OptSelect || f == operators.OptIndex {
			switch of := e.AsCall().Args()[0]; {
			case isVariable(of, "params"):
				path = []string{"params", "@values"}
			case of.Kind() != celast.SelectKind:
			case of.AsSelect().FieldName() == "labels" && isVariable(of.AsSelect().Operand(), "user"):
				path = []string{"user", "labels", "@values"}
			}
		}
	}
	size, ok := sizeOf[strings.Join(path, ".")]
	if !ok && len(path) == 3 && path[1] == "labels" { // user.labels.env
		size, ok = sizeOf["user.labels.@values"], true
	}
	if !ok && len(path) == 2 && path[0] == "params" { // params.id
		size, ok = sizeOf["params.@values"], true
	}
	if !ok {
		return nil
	}
	return &checker.SizeEstimate{Max: size}
}

// EstimateCallCost estimates the cost of a function call where CEL has no estimate, or where its
// estimate is far too low or too high. It returns nil to leave the estimate to CEL.
func (valueSizes) EstimateCallCost(
	function, overload string, target *checker.AstNode, args []checker.AstNode,
) *checker.CallEstimate {
	if target != nil {
		args = slices.Concat([]checker.AstNode{*target}, args)
	}
	size := func(i int) checker.SizeEstimate {
		if s := args[i].ComputedSize(); s != nil {
			return *s
		}
		return checker.UnknownSizeEstimate()
	}
	costs := func(e checker.CostEstimate) *checker.CallEstimate {
		most := e.Add(checker.FixedCostEstimate(1)).Max
		return &checker.CallEstimate{CostEstimate: checker.CostEstimate{Min: 1, Max: most}}
	}
	equality := function == operators.Equals || function == operators.NotEquals
	switch {
	case overload == "request_header_string":
		e := costs(checker.FixedCostEstimate(maxValueBytes / 10))
		e.ResultSize = &checker.SizeEstimate{Max: maxValueBytes}
		return e
	case function == "orValue":
		e, result := costs(checker.CostEstimate{}), size(0).Union(size(1))
		e.ResultSize = &result
		return e
	case function == overloads.Matches:
		// Every byte of the text, and its end, may pass every instruction of the pattern.
		pattern, _ := literal(args[1].Expr())
		instructions := checker.FixedSizeEstimate(PatternSteps(pattern))
		steps := size(0).Add(checker.FixedSizeEstimate(1)).Multiply(instructions)
		return costs(steps.MultiplyByCostFactor(0.05))
	case overload == overloads.ContainsString:
		return costs(size(0).Add(size(1)).MultiplyByCostFactor(0.1))
	case (equality || function == operators.In) && CanNest(args[0].Type()) && CanNest(args[1].Type()):
		// Comparing lists of lists compares everything in them, and their sizes are
		// unknown.
		return costs(checker.UnknownCostEstimate())
	case equality && len(args[0].Type().Parameters()) > 0:
		return costs(checker.CostEstimate{Max: min(size(0).Max, size(1).Max)}.MultiplyByCostFactor(2))
	case strings.HasSuffix(overload, "_tz"):
		return costs(checker.FixedCostEstimate(400)) // the function reads the time zone from a file
	case slices.Contains(readsText, overload):
		return costs(size(0).MultiplyByCostFactor(0.1))
	case slices.Contains(readsAddress, overload):
		e := costs(size(len(args) - 1).MultiplyByCostFactor(0.5)) // the text is the last argument
		e.ResultSize = &checker.SizeEstimate{Max: 16}
		return e
	}
	return nil
}

// readsText lists the functions that read a whole text and do not return a text.
var readsText = []string{
	overloads.SizeString, overloads.SizeStringInst,
	overloads.StringToInt, overloads.StringToUint, overloads.StringToDouble,
	overloads.StringToBool, overloads.StringToTimestamp, overloads.StringToDuration,
}

// readsAddress lists the functions that parse a text as an address. If the text is not an address,
// their error quotes it, which takes time too.
var readsAddress = []string{
	"is_ip", "is_cidr", "string_to_ip", "string_to_cidr", "ip_is_canonical",
	"cidr_contains_ip_string", "cidr_contains_cidr_string",
}

// CanNest reports whether a value of this type may contain lists or maps: a list of lists, for
// example, or a value of unknown type.
func CanNest(t *types.Type) bool {
	return t.Kind() == types.DynKind || slices.ContainsFunc(t.Parameters(), func(of *types.Type) bool {
		return of.Kind() == types.DynKind || len(of.Parameters()) > 0
	})
}

// PatternSteps returns the number of instructions that a regular expression compiles to. Matching
// costs up to this number for each byte of the text. PatternSteps returns [math.MaxUint64] for an
// invalid pattern.
func PatternSteps(pattern string) uint64 {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return math.MaxUint64
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return math.MaxUint64
	}
	return uint64(len(prog.Inst))
}
