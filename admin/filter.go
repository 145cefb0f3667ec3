package admin

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// A filter is a CEL expression with two variables: obj, a service user or an API key with the fields
// that the API shows, and now. A time is a timestamp, or null if it is not set. As in the ngrok API,
// now is also time.now, and a timestamp has the methods add("7d") and subtract("7d").

// The limits of a filter. Costs are in units of CEL. [filterCosts] corrects the costs that CEL
// underestimates, so that one unit takes at most 250 ns or so.
const (
	maxFilterBytes = 2000      // length of the expression
	maxFilterSize  = 2000      // instructions of a pattern; entries of a list that the filter builds
	maxFilterText  = 10_000    // characters of a text that the filter builds
	filterRow      = 20        // cost of one row, without the expression
	filterCost     = 10_000    // cost of the expression for one row
	filterBudget   = 6_000_000 // cost of one request, for all rows: some 2 seconds of a core
)

// shift declares a method of timestamps that moves a timestamp by a duration such as "7d".
func shift(name string, sign time.Duration) cel.EnvOption {
	return cel.Function(name, cel.MemberOverload("timestamp_"+name+"_string",
		[]*cel.Type{cel.TimestampType, cel.StringType}, cel.TimestampType,
		cel.BinaryBinding(func(at, span ref.Val) ref.Val {
			d, err := ParseDuration(string(span.(types.String)))
			if err != nil {
				return types.WrapErr(err)
			}
			return types.Timestamp{Time: at.(types.Timestamp).Time.Add(sign * d)}
		})))
}

// filterKind is one kind of rows that a filter selects from.
type filterKind[R any] struct {
	fields func(*R) map[string]any // the fields of obj
	plural string                  // the rows in an error
	advice string                  // for a filter that costs too much
}

var userFilter = filterKind[store.ServiceUser]{filterFields, "service users",
	"narrow the list by q, role, team or status as well, or make the filter simpler"}

// filterEnv is the language of filters without obj: its other variables and functions.
var filterEnv = sync.OnceValue(func() *cel.Env {
	env, err := cel.NewEnv(
		cel.Variable("now", cel.TimestampType),
		cel.Variable("time.now", cel.TimestampType),
		cel.OptionalTypes(),
		ext.Strings(),
		cel.ExtendedValidations(),
		shift("add", 1),
		shift("subtract", -1),
	)
	if err != nil {
		panic("admin: the language of filters: " + err.Error())
	}
	return env
})

// compile compiles the filter of one request. The returned function reports whether a row meets the
// filter. It counts the cost of all its calls, and fails when ctx ends or the budget of the request
// is spent. It must not be called concurrently.
func (k filterKind[R]) compile(ctx context.Context, text string, now time.Time) (func(*R) (bool, error), error) {
	bad := func(format string, args ...any) error {
		msg := fmt.Sprintf(format, args...)
		return NewError(http.StatusBadRequest, "invalid_cel_expression", msg).field("filter")
	}
	if len(text) > maxFilterBytes {
		return nil, bad("has %d bytes, at most %d are allowed", len(text), maxFilterBytes)
	}
	fields := fieldTypes(k.fields(new(R)))
	env, err := filterEnv().Extend(access.WithFields("obj", fields))
	if err != nil {
		return nil, err
	}
	ast, err := access.ParseExpression(env, text)
	switch {
	case err != nil:
		known := strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
		text := err.Error()
		if part := undefinedField.FindStringSubmatch(text); part != nil {
			text = fmt.Sprintf("obj has no %q; %s (%s)", part[2], cmp.Or(part[3], "it has "+known), part[1])
		}
		return nil, bad("%s", text)
	case ast.OutputType() != cel.BoolType:
		return nil, bad("is a %s, and must be true or false", ast.OutputType())
	}
	costs := filterCosts{}
	if problem := costs.check(ast.NativeRep()); problem != "" {
		return nil, bad("%s", problem)
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostTracking(costs),
		cel.CostLimit(filterCost), cel.InterruptCheckFrequency(100))
	if err != nil {
		return nil, bad("%s", err)
	}
	left, at := filterBudget, types.Timestamp{Time: now.UTC()}
	return func(row *R) (bool, error) {
		obj := k.fields(row)
		out, details, err := program.ContextEval(ctx, map[string]any{"obj": obj, "now": at, "time.now": at})
		cost := uint64(filterCost) // an evaluation that reports no cost counts in full
		if details != nil && details.ActualCost() != nil {
			cost = min(*details.ActualCost(), cost)
		}
		left -= filterRow + int(cost)
		switch {
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case err != nil && strings.Contains(err.Error(), "cost limit"):
			return false, bad("costs too much for %s; make it simpler", obj["id"])
		case left < 0:
			return false, bad("costs too much for so many %s; %s", k.plural, k.advice)
		case err != nil:
			return false, nil // such as a label that this row does not have
		}
		return out == types.True, nil
	}, nil
}

// undefinedField finds the message of CEL about an unknown field: its place, its name, and the advice
// of package access.
var undefinedField = regexp.MustCompile(`^(at character \d+): undefined field '([^']*)'(?:; (did you mean .*))?$`)

// fieldTypes declares the fields of obj, which is a map, by the values of an empty one. With the
// types, a mistake such as obj.active == "true" is an error in place of an empty list.
func fieldTypes(obj map[string]any) map[string]*types.FieldType {
	fields := make(map[string]*types.FieldType)
	for name, value := range obj {
		kind := cel.TimestampType // which CEL also compares with null
		switch value.(type) {
		case string:
			kind = cel.StringType
		case bool:
			kind = cel.BoolType
		case []string:
			kind = cel.ListType(cel.StringType)
		case map[string]string:
			kind = cel.MapType(cel.StringType, cel.StringType)
		}
		fields[name] = access.Field(kind, func(obj map[string]any) (any, error) { return obj[name], nil })
	}
	return fields
}

// filterCosts gives the cost of calls for which CEL counts next to nothing: CEL does not know the
// types of the arguments in advance, or the calls are cheap in other programs. Its values are the
// numbers of instructions of the patterns in the filter, by pattern.
type filterCosts map[string]uint64

// CallCost returns the cost of a call after it was made, or nil for the cost that CEL counts.
func (c filterCosts) CallCost(function, overload string, args []ref.Val, result ref.Val) *uint64 {
	var size func(v ref.Val) float64
	size = func(v ref.Val) float64 {
		switch v := v.(type) {
		case types.String: // in bytes: counting its characters would take longer than many calls
			return float64(len(v))
		case *types.Optional:
			if v.HasValue() {
				return size(v.GetValue())
			}
		case traits.Sizer:
			if n, ok := v.Size().(types.Int); ok {
				return float64(n)
			}
		}
		return 0
	}
	// entries is the cost to compare n entries of a list or a map.
	entries := func(v ref.Val, n float64) float64 {
		if optional, ok := v.(*types.Optional); ok && optional.HasValue() {
			v = optional.GetValue()
		}
		switch v.(type) {
		case traits.Lister:
			return 2 * n
		case traits.Mapper:
			return 5 * n
		}
		return 0
	}
	scan := func(v ref.Val) float64 { // the cost to read a text once
		if _, list := v.(traits.Lister); list {
			return 0
		}
		return size(v) / 10
	}
	cost := 1.0
	switch function {
	case operators.Add:
		bound := float64(maxFilterText)
		if _, list := result.(traits.Lister); list {
			bound = maxFilterSize
		}
		// A cost above the limit ends the evaluation, before a chain of additions makes the
		// value any larger.
		if cost += scan(result); size(result) > bound {
			cost = filterCost + 1
		}
	case operators.Equals, operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater,
		operators.GreaterEquals:
		least := min(size(args[0]), size(args[1]))
		cost += least/10 + entries(args[0], least)
	case operators.In:
		cost += size(args[1]) * (1 + scan(args[0])/2 + entries(args[0], size(args[0])))
	case overloads.Matches:
		pattern, _ := args[1].(types.String)
		cost += (size(args[0]) + 1) * float64(c[string(pattern)]) / 20
	case overloads.Contains:
		cost += scan(args[0]) + scan(args[1])
	case overloads.Size, overloads.TypeConvertInt, overloads.TypeConvertUint, overloads.TypeConvertDouble,
		overloads.TypeConvertBool, overloads.TypeConvertString, overloads.TypeConvertBytes,
		overloads.TypeConvertTimestamp, overloads.TypeConvertDuration, "add", "subtract", "strings.quote":
		cost += 3
		for _, text := range append(args, result) {
			cost += scan(text)
		}
	default:
		if !strings.HasSuffix(overload, "_tz") {
			return nil
		}
		cost = 400 // Go reads the time zone from a file, at every call
	}
	rounded := uint64(math.Ceil(cost))
	return &rounded
}

// check looks for calls that could use much time or memory before CallCost can count them, and for
// mistakes that would only fail at run time, when the filter would silently match nothing. It
// returns the fault, or "". It also fills c with the patterns of the filter.
func (c filterCosts) check(a *celast.AST) (problem string) {
	selected := make(map[int64]bool) // the expressions of which a field is read
	celast.PreOrderVisit(a.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		switch e.Kind() {
		case celast.SelectKind:
			selected[e.AsSelect().Operand().ID()] = true
		case celast.IdentKind:
			if strings.TrimPrefix(e.AsIdent(), ".") == "obj" && !selected[e.ID()] {
				problem = "name a field of obj, such as obj.name"
			}
		case celast.ComprehensionKind:
			loop := e.AsComprehension()
			if slices.Contains([]string{loop.IterVar(), loop.IterVar2()}, "obj") {
				problem = "obj is already a variable; give the variable of the loop another name"
			}
		case celast.CallKind:
			call := e.AsCall()
			switch args := call.Args(); call.FunctionName() {
			case "format":
				problem = "a filter cannot use format, because its result can have any length; " +
					"join texts by +"
			case "add", "subtract":
				if text, ok := args[0].AsLiteral().(types.String); ok {
					if _, err := ParseDuration(string(text)); err != nil {
						problem = err.Error()
					}
				}
			case operators.OptSelect:
				selected[args[0].ID()] = true
			case overloads.Matches:
				pattern, ok := args[len(args)-1].AsLiteral().(types.String)
				c[string(pattern)] = access.PatternSteps(string(pattern))
				if !ok || c[string(pattern)] > maxFilterSize {
					problem = "matches needs a simple pattern that is written out, " +
						"as in matches(\"^[a-z]+$\")"
				}
			case operators.Equals, operators.NotEquals, operators.In:
				if deepValue(a, args[0]) && deepValue(a, args[1]) {
					problem = "compares values that may hold other values, at any depth; " +
						"compare a field of obj, or a text, with one of them"
				}
				text, ok := args[0].AsLiteral().(types.String)
				of := args[1].AsSelect().FieldName() // "" for other expressions
				if ok && call.FunctionName() == operators.In && of == "permission_groups" &&
					!store.ValidID("group", string(text)) {
					problem = fmt.Sprintf("permission_groups has ids, group_…, and %q is not one",
						string(text))
				}
			}
		}
	}))
	return problem
}

// deepValue reports whether the value of an expression may be nested more than one level deep, such
// as a list of lists. A comparison of two such values can cost far more than CEL counts.
func deepValue(a *celast.AST, e celast.Expr) bool {
	t := a.GetType(e.ID())
	if t.TypeName() == "optional_type" {
		t = t.Parameters()[0]
	}
	return access.CanNest(t)
}
