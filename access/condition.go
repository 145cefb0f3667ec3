package access

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"net/textproto"
	"reflect"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
	"time"
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
//   - user: id, name, display_name, alias, owner, role, teams, labels, created_at;
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

// evaluation gives the variables of an expression their values. It is a [cel.Activation].
type evaluation struct {
	user   *User
	action Action
	params map[string]string
}

// ResolveName returns the value of a variable.
func (e *evaluation) ResolveName(name string) (any, bool) {
	switch name {
	case "user":
		return e.user, true
	case "request":
		return &celRequest{&e.action}, true
	case "params":
		return e.params, true
	case "now":
		return types.Timestamp{Time: time.Unix(e.action.Now, 0).UTC()}, true
	}
	return nil, false
}

// Parent returns nil: every variable is in e.
func (e *evaluation) Parent() cel.Activation { return nil }

var errHeaderGone = errors.New("the headers of this request have not been kept")

var errLongValue = fmt.Errorf("a condition cannot read a value of more than %d bytes", maxValueBytes)

// boundedValue returns an error for a value that is longer than the cost of a condition allows for.
func boundedValue(s string) (any, error) {
	if len(s) > maxValueBytes {
		return nil, errLongValue
	}
	return s, nil
}

// The types of the variables that have fields or keys.
var (
	userType    = cel.ObjectType("user")
	requestType = cel.ObjectType("request")
	textMap     = cel.MapType(cel.StringType, cel.StringType)
)

// celFields contains the fields of each object type, with their types and the functions that read
// them.
var celFields = map[string]map[string]*types.FieldType{
	"user": {
		"id":           field(cel.StringType, func(u *User) (any, error) { return u.ID, nil }),
		"name":         field(cel.StringType, func(u *User) (any, error) { return u.Name, nil }),
		"display_name": field(cel.StringType, func(u *User) (any, error) { return u.DisplayName, nil }),
		"alias":        field(cel.StringType, func(u *User) (any, error) { return u.Alias, nil }),
		"owner":        field(cel.StringType, func(u *User) (any, error) { return u.Owner, nil }),
		"role":         field(cel.StringType, func(u *User) (any, error) { return string(u.Role), nil }),
		"teams":        field(cel.ListType(cel.StringType), func(u *User) (any, error) { return u.Teams, nil }),
		"labels":       field(textMap, func(u *User) (any, error) { return u.Labels, nil }),
		"created_at": field(cel.TimestampType, func(u *User) (any, error) {
			return types.Timestamp{Time: time.Unix(u.CreatedAt, 0).UTC()}, nil
		}),
	},
	"request": {
		"method": field(cel.StringType, func(r *celRequest) (any, error) { return r.Method, nil }),
		"host":   field(cel.StringType, func(r *celRequest) (any, error) { return r.Host, nil }),
		"path": field(cel.StringType, func(r *celRequest) (any, error) {
			return boundedValue(PlainPath(r.Path))
		}),
		"remote_ip": field(cel.StringType, func(r *celRequest) (any, error) {
			return addressText(r.Address), nil
		}),
	},
}

// field describes one field of a variable of type T, which get reads.
func field[T any](kind *cel.Type, get func(T) (any, error)) *types.FieldType {
	from := func(v any) (any, error) {
		t, ok := v.(T)
		if !ok {
			return nil, fmt.Errorf("not a %s", kind)
		}
		return get(t)
	}
	return &types.FieldType{
		Type:    kind,
		GetFrom: from,
		IsSet: func(v any) bool { // for has(user.alias)
			v, err := from(v)
			// An empty list or map is not nil, so IsZero does not find it.
			if r := reflect.ValueOf(v); r.Kind() == reflect.Slice || r.Kind() == reflect.Map {
				return r.Len() > 0
			}
			return err == nil && !reflect.ValueOf(v).IsZero()
		},
	}
}

// addressText returns an address as conditions see it: without a zone, and IPv4 in its short form.
// The invalid address is "".
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().WithZone("").String()
}

// variableTypes is the type provider of CEL with the types of our variables added.
type variableTypes struct {
	types.Provider
	of []string // the names of the types to add: keys of celFields
}

func (p variableTypes) fields(name string) (map[string]*types.FieldType, bool) {
	return celFields[name], slices.Contains(p.of, name)
}

func (p variableTypes) FindStructType(name string) (*types.Type, bool) {
	if _, ok := p.fields(name); ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Provider.FindStructType(name)
}

func (p variableTypes) FindStructFieldNames(name string) ([]string, bool) {
	if fields, ok := p.fields(name); ok {
		return slices.Sorted(maps.Keys(fields)), true
	}
	return p.Provider.FindStructFieldNames(name)
}

func (p variableTypes) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if fields, ok := p.fields(name); ok {
		f, ok := fields[field]
		return f, ok
	}
	return p.Provider.FindStructFieldType(name, field)
}

// celRequest is the variable request. It implements [ref.Val] itself, because CEL calls its method
// header; the fields of celFields alone would not need that.
type celRequest struct{ *Action }

func (r *celRequest) header(name ref.Val) ref.Val {
	text, ok := name.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(name)
	}
	if r.HeaderGone {
		return types.WrapErr(errHeaderGone)
	}
	// Several fields of one name are one value, separated by commas (RFC 9110, section 5.3).
	value := strings.Join(r.Header[textproto.CanonicalMIMEHeaderKey(string(text))], ", ")
	if len(value) > maxValueBytes {
		return types.WrapErr(errLongValue)
	}
	return types.String(value)
}

func (r *celRequest) Type() ref.Type          { return requestType }
func (r *celRequest) Value() any              { return r }
func (r *celRequest) Equal(o ref.Val) ref.Val { return types.Bool(o == ref.Val(r)) }
func (r *celRequest) ConvertToType(ref.Type) ref.Val {
	return types.WrapErr(errNoConversion)
}
func (r *celRequest) ConvertToNative(reflect.Type) (any, error) { return nil, errNoConversion }

var errNoConversion = errors.New("a request cannot be converted")

// membershipEnv is the environment for conditions of membership. Making an environment is slow, so
// it is made once, when the first condition is parsed.
var membershipEnv = sync.OnceValue(func() *cel.Env {
	return newEnv([]string{"user"}, cel.Variable("user", userType))
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
	return newEnv([]string{"user", "request"},
		cel.Variable("user", userType),
		cel.Variable("request", requestType),
		cel.Variable("params", textMap),
		cel.Variable("now", cel.TimestampType),
		cel.Function("header", cel.MemberOverload("request_header_string", parameters, cel.StringType, header)),
	)
})

// newEnv makes an environment with these variables. withFields are the types of those that have
// fields.
func newEnv(withFields []string, variables ...cel.EnvOption) *cel.Env {
	options := append([]cel.EnvOption{
		cel.OptionalTypes(),
		ext.Strings(),
		ext.Network(),
		cel.ExtendedValidations(),
		func(env *cel.Env) (*cel.Env, error) {
			return cel.CustomTypeProvider(variableTypes{env.CELTypeProvider(), withFields})(env)
		},
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
	ast, issues := env.Parse(text)
	if issues.Err() == nil {
		if err := CheckNesting(ast); err != nil {
			return nil, fmt.Errorf("condition %q: %w", text, err)
		}
		ast, issues = env.Check(ast)
	}
	if issues.Err() != nil {
		return nil, fmt.Errorf("condition %q: %s", text, firstIssue(issues))
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("condition %q is a %s, and must be true or false; compare it with something",
			text, ast.OutputType())
	}
	reads := make(map[string]bool)
	if err := collectReads(ast.NativeRep().Expr(), reads); err != nil {
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

// firstIssue formats the first mistake in an expression, with its position in characters from 1.
func firstIssue(issues *cel.Issues) string {
	first := issues.Errors()[0]
	message := strings.TrimSuffix(first.Message, " (in container '')")
	if first.Location.Column() < 0 { // the mistake has no position
		return message
	}
	return fmt.Sprintf("at character %d: %s", first.Location.Column()+1, message)
}

// valueSizes is a [checker.CostEstimator]. It gives CEL an upper bound for the size of each value
// that a condition can read. The store enforces the bounds for service users, and [boundedValue]
// those for requests.
type valueSizes struct{}

// sizeOf contains the bounds by path of the value: bytes of a text, elements of a list or map.
var sizeOf = map[string]uint64{
	"user.id": 64, "user.name": 255, "user.display_name": 255, "user.alias": 64, "user.owner": 255, "user.role": 8,
	"user.teams": 32, "user.teams.@items": 64,
	"user.labels": 64, "user.labels.@keys": 63, "user.labels.@values": 255,
	"request.method": 32, "request.host": 255, "request.path": maxValueBytes, "request.remote_ip": 45,
	"params": maxPatternSegments, "params.@keys": 64, "params.@values": maxValueBytes,
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
	case (equality || function == operators.In) && canNest(args[0].Type()) && canNest(args[1].Type()):
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

// canNest reports whether a value of this type may contain lists or maps: a list of lists, for
// example, or a value of unknown type.
func canNest(t *types.Type) bool {
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

// collectReads adds an entry to reads for each value that an expression reads: fields of the
// service user under their names, parameters of the path as "params.NAME", or "params" for any of
// them, and readsHeader. It returns an error for an expression whose reads or cost are not known in
// advance, such as one that uses the variable user without a field.
func collectReads(e celast.Expr, reads map[string]bool) error {
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
	case celast.SelectKind:
		return collectReads(e.AsSelect().Operand(), reads)
	case celast.CallKind:
		call := e.AsCall()
		all := call.Args()
		switch name := call.FunctionName(); {
		case name == "header" && call.IsMemberFunction():
			if name, ok := literal(all[0]); ok && !httpguts.ValidHeaderFieldName(name) {
				return fmt.Errorf("%q is not the name of a header", name)
			}
			reads[readsHeader] = true
			if isVariable(call.Target(), "request") {
				return collectAllReads(all, reads)
			}
		case name == "format" || name == "join":
			return fmt.Errorf("%s is not allowed in a condition: nothing bounds the text that it makes",
				name)
		case name == overloads.Matches:
			if _, ok := literal(all[len(all)-1]); !ok { // EstimateCallCost reads the pattern
				return errors.New("matches needs its pattern written out, as in matches(\"^[a-z]+$\")")
			}
		}
		if call.IsMemberFunction() {
			all = slices.Concat([]celast.Expr{call.Target()}, all)
		}
		return collectAllReads(all, reads)
	case celast.ListKind:
		return collectAllReads(e.AsList().Elements(), reads)
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			both := []celast.Expr{entry.AsMapEntry().Key(), entry.AsMapEntry().Value()}
			if err := collectAllReads(both, reads); err != nil {
				return err
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
		parts := []celast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()}
		return collectAllReads(parts, reads)
	}
	return nil
}

// readsHeader is the entry in reads for a header of any name. It cannot be a field of the service
// user, whose names have no such prefix.
const readsHeader = "request.header"

func collectAllReads(list []celast.Expr, reads map[string]bool) error {
	for _, e := range list {
		if err := collectReads(e, reads); err != nil {
			return err
		}
	}
	return nil
}

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
