package access

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
	"golang.org/x/net/http/httpguts"
)

// Condition is a compiled expression in the Common Expression Language (https://cel.dev) that is
// true or false. It may read the variable
//
//   - user: role, teams, labels, created_at, and the texts of a [Profile] but the description;
//
// and in a rule also the variables
//
//   - request: method, host, path, remote_ip, and header(name), which is "" for a
//     header that is absent or never arrives;
//   - params: the values of the parameters of the rule's path, such as params.id for "/v1/{id}";
//   - now: the instant of the request.
//
// Compiling a Condition fails if its cost may exceed a bound. Evaluating it fails if it reads a
// value that is too long.
type Condition struct {
	text    string
	program cel.Program
	cost    uint64
	reads   []string // fields of user, sorted: "name", "labels.env", "labels" for any label
	params  []string // parameters of the path, sorted; "" is any parameter
	header  bool     // the expression reads a header of the request
}

// The bounds of conditions. A unit of cost takes at most 250 ns.
const (
	maxConditionBytes = 2000
	maxConditionCost  = 8_000  // of one condition, in the worst case
	conditionBudget   = 50_000 // of all conditions that are evaluated for one request
	maxValueBytes     = 2048   // of a path or header that a condition reads
)

// ParseMembership compiles the condition of a group's membership. Its only variable is user.
func ParseMembership(text string) (*Condition, error) {
	return compileCondition(membershipEnv(), text)
}

// ParseWhen compiles the condition of a rule.
func ParseWhen(text string) (*Condition, error) {
	return compileCondition(whenEnv(), text)
}

// Reads returns the fields of the service user that the condition reads, sorted: "name", "teams",
// "labels.env", or "labels" if the condition may read any label.
func (c *Condition) Reads() []string { return c.reads }

// String returns the source text of the expression.
func (c *Condition) String() string { return c.text }

// Member reports whether a service user meets the condition of a membership. An error means that
// the expression fails, for example because the user does not have a label that it reads.
func (c *Condition) Member(u *User) (bool, error) {
	return c.isTrue(&evaluation{user: u})
}

// checkParams returns an error if the condition reads a parameter that the path does not have.
func (c *Condition) checkParams(segments []segment) error {
	for _, name := range c.params {
		isNamed := func(s segment) bool { return s.kind != literalSegment && s.text == name }
		if name != "" && !slices.ContainsFunc(segments, isNamed) {
			return fmt.Errorf("condition %q: the path has no {%s}", c.text, name)
		}
	}
	return nil
}

func (c *Condition) isTrue(e *evaluation) (bool, error) {
	// Fields of request are checked when the program reads them, but params is a plain map.
	for _, value := range e.params {
		if len(value) > maxValueBytes {
			return false, errLongValue
		}
	}
	out, _, err := c.program.Eval(e)
	if err != nil {
		return false, err
	}
	return out == types.True, nil
}

// membershipEnv is the environment for conditions of membership. Making an environment is slow, so
// it is made once, when the first condition is parsed.
var membershipEnv = sync.OnceValue(func() *cel.Env {
	return newEnv(WithFields("user", celFields["user"]))
})

// whenEnv is the environment for conditions of rules.
var whenEnv = sync.OnceValue(func() *cel.Env {
	header := cel.BinaryBinding(func(request, name ref.Val) ref.Val {
		r, ok := request.(*celRequest)
		if !ok {
			return types.MaybeNoSuchOverloadErr(request)
		}
		return r.header(name)
	})
	parameters := []*cel.Type{requestType, cel.StringType}
	return newEnv(
		WithFields("user", celFields["user"]),
		WithFields("request", celFields["request"]),
		cel.Variable("params", textMap),
		cel.Variable("now", cel.TimestampType),
		cel.Function("header", cel.MemberOverload("request_header_string", parameters, cel.StringType, header)),
	)
})

// newEnv makes an environment with these variables.
func newEnv(variables ...cel.EnvOption) *cel.Env {
	options := append([]cel.EnvOption{
		cel.OptionalTypes(),
		ext.Strings(),
		ext.Network(),
		cel.ExtendedValidations(),
	}, variables...)
	// ext.Network registers its own cost estimates, which would win over valueSizes. These
	// options pass its overloads on to valueSizes again.
	for _, overload := range readsAddress {
		estimate := func(
			e checker.CostEstimator, target *checker.AstNode, args []checker.AstNode,
		) *checker.CallEstimate {
			return e.EstimateCallCost("", overload, target, args)
		}
		options = append(options, cel.CostEstimatorOptions(checker.OverloadCostEstimate(overload, estimate)))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		panic("access: the language of conditions: " + err.Error())
	}
	return env
}

// compileCondition checks and compiles an expression. Its errors say how to write it instead.
func compileCondition(env *cel.Env, text string) (*Condition, error) {
	isControl := func(r rune) bool { return unicode.In(r, unicode.C, unicode.Zl, unicode.Zp) }
	switch {
	case len(text) > maxConditionBytes:
		return nil, fmt.Errorf("the condition has %d bytes, at most %d are allowed",
			len(text), maxConditionBytes)
	case !utf8.ValidString(text):
		return nil, fmt.Errorf("condition %q is not valid UTF-8", text)
	case strings.TrimSpace(text) != text || text == "":
		return nil, fmt.Errorf("condition %q: write it without white space around it", text)
	case strings.ContainsFunc(text, isControl):
		return nil, fmt.Errorf("condition %q: write it on one line, without control characters", text)
	}
	ast, err := ParseExpression(env, text)
	if err != nil {
		return nil, fmt.Errorf("condition %q: %w", text, err)
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("condition %q is a %s, and must be true or false; compare it with something",
			text, ast.OutputType())
	}
	reads := make(map[string]bool)
	if err := collectReads(celast.NavigateAST(ast.NativeRep()), reads); err != nil {
		return nil, fmt.Errorf("condition %q: %w", text, err)
	}
	// The bound is for the worst case: no values in a request can make a condition cost more.
	estimate, err := env.EstimateCost(ast, valueSizes{})
	if err != nil {
		return nil, fmt.Errorf("condition %q: %w", text, err)
	}
	if estimate.Max > maxConditionCost {
		return nil, fmt.Errorf("condition %q can cost too much in every request (%s, at most %d); avoid loops"+
			" within loops, and over the parts of a text: \"a\" in text.split(\",\") is cheaper",
			text, costText(estimate.Max), maxConditionCost)
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, fmt.Errorf("condition %q: %w", text, err)
	}
	// At least 1, so that any number of conditions exhausts the budget of a request at some
	// point.
	c := &Condition{text: text, program: program, cost: max(estimate.Max, 1)}
	for _, name := range slices.Sorted(maps.Keys(reads)) {
		param, ok := strings.CutPrefix(name, "params")
		switch {
		case ok:
			c.params = append(c.params, strings.TrimPrefix(param, "."))
		case name == readsHeader:
			c.header = true
		default:
			c.reads = append(c.reads, name)
		}
	}
	return c, nil
}

// costText formats a cost for an error message.
func costText(cost uint64) string {
	if cost > 1e15 { // the estimate of CEL has overflowed, or includes an unknown size
		return "unbounded"
	}
	return fmt.Sprintf("up to %d", cost)
}

// collectReads adds an entry to reads for each value that an expression reads: fields of the
// service user under their names, parameters of the path as "params.NAME", or "params" for any of
// them, and readsHeader. It returns an error for an expression whose reads or cost are not known in
// advance, such as one that uses the variable user without a field.
func collectReads(e celast.NavigableExpr, reads map[string]bool) error {
	if of, name, ok := member(e); ok {
		inner, field, _ := member(of) // for user.labels.env: inner is user, field is labels
		switch selected := e.Kind() == celast.SelectKind; {
		case isVariable(of, "params"):
			reads["params."+name] = true
			return nil
		case of.Kind() == celast.SelectKind && field == "labels" && isVariable(inner, "user"):
			reads["labels."+name] = true
			return nil
		case selected && isVariable(of, "user"):
			reads[name] = true
			return nil
		case selected && isVariable(of, "request"):
			return nil
		case isVariable(of, "user") || isVariable(of, "request"):
			return fmt.Errorf("the field %s is always there; select it without \"?\"", name)
		}
	}
	parts := e.Children()
	switch e.Kind() {
	case celast.IdentKind:
		switch {
		case isVariable(e, "user"):
			return errors.New("name a field of user, such as user.name")
		case isVariable(e, "request"):
			return errors.New("name a field of request, such as request.path")
		case isVariable(e, "params"):
			reads["params"] = true
		}
	case celast.CallKind:
		call := e.AsCall()
		switch name := call.FunctionName(); {
		case name == "header" && call.IsMemberFunction():
			if name, ok := literal(call.Args()[0]); ok && !httpguts.ValidHeaderFieldName(name) {
				return fmt.Errorf("%q is not the name of a header", name)
			}
			reads[readsHeader] = true
			if isVariable(parts[0], "request") { // the target, which is fine without a field here
				parts = parts[1:]
			}
		case name == "format" || name == "join":
			return fmt.Errorf("%s is not allowed in a condition: nothing bounds the text that it makes",
				name)
		case name == overloads.Matches:
			if _, ok := literal(parts[len(parts)-1]); !ok { // EstimateCallCost reads the pattern
				return errors.New("matches needs its pattern written out, as in matches(\"^[a-z]+$\")")
			}
		}
	case celast.StructKind:
		return fmt.Errorf("a %s cannot be made here", e.AsStruct().TypeName())
	case celast.ComprehensionKind:
		c := e.AsComprehension()
		for _, name := range []string{c.IterVar(), c.IterVar2(), c.AccuVar()} {
			// A loop variable named user would hide ours: isVariable compares names.
			if slices.Contains([]string{"user", "request", "params", "now"}, name) {
				return fmt.Errorf("%s is a variable already;"+
					" choose another name for the loop's variable", name)
			}
		}
	}
	for _, part := range parts {
		if err := collectReads(part, reads); err != nil {
			return err
		}
	}
	return nil
}

// readsHeader is the entry in reads for a header of any name. It cannot be a field of the service
// user, whose names have no such prefix.
const readsHeader = "request.header"

// isVariable reports whether an expression is this variable. CEL also allows a dot before the name,
// as in ".user".
func isVariable(e celast.Expr, name string) bool {
	return e.Kind() == celast.IdentKind && strings.TrimPrefix(e.AsIdent(), ".") == name
}

// literal returns the value of an expression that is a text in quotes.
func literal(e celast.Expr) (string, bool) {
	if e.Kind() != celast.LiteralKind {
		return "", false
	}
	text, ok := e.AsLiteral().(types.String)
	return string(text), ok
}

// member splits an expression that reads one named member: a.b, has(a.b), a["b"], a.?b, a[?"b"] and
// "b" in a all return a and "b".
func member(e celast.Expr) (of celast.Expr, name string, ok bool) {
	switch e.Kind() {
	case celast.SelectKind:
		return e.AsSelect().Operand(), e.AsSelect().FieldName(), true
	case celast.CallKind:
		args := e.AsCall().Args()
		switch e.AsCall().FunctionName() {
		case operators.Index, operators.OptIndex, operators.OptSelect:
			name, ok = literal(args[1])
			return args[0], name, ok
		case operators.In:
			name, ok = literal(args[0])
			return args[1], name, ok
		}
	}
	return nil, "", false
}
