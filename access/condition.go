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

// Condition is a compiled expression in the Common Expression Language
// (https://cel.dev) that is true or false, over
//
//   - user: id, name, display_name, alias, owner, role, teams, labels, created_at;
//
// and in a rule also over
//
//   - request: method, host, path, remote_ip, and header(name), which is "" for a
//     header that is absent or never arrives;
//   - params: what the parameters of the rule's path stand for;
//   - now: the instant of the request.
//
// What it can cost is bounded when it is compiled, and so is the length of what it
// is asked about when it is evaluated.
type Condition struct {
	text    string
	program cel.Program
	cost    uint64
	reads   []string // fields of user, sorted: "name", "labels.env", "labels" for any of them
	params  []string // parameters of the path, sorted; "" is any of them
	header  bool     // it looks at a header of the request
}

// The bounds of conditions. A unit of cost takes 250 ns at most.
const (
	maxConditionBytes = 2000
	maxConditionCost  = 8_000  // of one, at worst
	conditionBudget   = 50_000 // of all that one request asks
	maxValueBytes     = 2048   // of a path or header that a condition looks at
)

// ParseMembership compiles the condition of a group's membership, over user
// alone.
func ParseMembership(text string) (*Condition, error) {
	return compileCondition(membershipEnv(), text)
}

// ParseWhen compiles the condition of a rule.
func ParseWhen(text string) (*Condition, error) {
	return compileCondition(whenEnv(), text)
}

// Reads lists the fields of the service user that the condition looks at, sorted:
// "name", "teams", "labels.env", or "labels" when it may be any label.
func (c *Condition) Reads() []string { return c.reads }

// String returns the expression as it was written.
func (c *Condition) String() string { return c.text }

// Member reports whether a service user meets the condition of a membership. An
// error means that it cannot be said, such as for a label that it does not have.
func (c *Condition) Member(u *User) (bool, error) {
	return c.isTrue(&evaluation{user: u})
}

// checkParams refuses a condition that looks at a parameter that the path does
// not have.
func (c *Condition) checkParams(segments []segment) error {
	for _, name := range c.params {
		if name != "" && !slices.ContainsFunc(segments, func(s segment) bool { return s.kind != literalSegment && s.text == name }) {
			return fmt.Errorf("condition %q: the path has no {%s}", c.text, name)
		}
	}
	return nil
}

func (c *Condition) isTrue(e *evaluation) (bool, error) {
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

// evaluation is what an expression is asked about. It gives the variables their
// values.
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

// Parent returns nil: there are no other variables.
func (e *evaluation) Parent() cel.Activation { return nil }

var errHeaderGone = errors.New("the header of this request has not been kept")

var errLongValue = fmt.Errorf("a value of more than %d bytes is not looked at", maxValueBytes)

func boundedValue(s string) (any, error) {
	if len(s) > maxValueBytes {
		return nil, errLongValue
	}
	return s, nil
}

// The two types of variables that have fields.
var (
	userType    = cel.ObjectType("user")
	requestType = cel.ObjectType("request")
	textMap     = cel.MapType(cel.StringType, cel.StringType)
)

// celFields says what the fields of the variables are, and how to read one.
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
		"method":    field(cel.StringType, func(r *celRequest) (any, error) { return r.Method, nil }),
		"host":      field(cel.StringType, func(r *celRequest) (any, error) { return r.Host, nil }),
		"path":      field(cel.StringType, func(r *celRequest) (any, error) { return boundedValue(PlainPath(r.Path)) }),
		"remote_ip": field(cel.StringType, func(r *celRequest) (any, error) { return addressText(r.Address), nil }),
	},
}

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
		IsSet: func(v any) bool { // has(user.alias)
			v, err := from(v)
			if r := reflect.ValueOf(v); r.Kind() == reflect.Slice || r.Kind() == reflect.Map {
				return r.Len() > 0
			}
			return err == nil && !reflect.ValueOf(v).IsZero()
		},
	}
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().WithZone("").String()
}

// variableTypes adds the types of some variables to those of CEL.
type variableTypes struct {
	types.Provider
	of []string
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

// celRequest is the request as a value of CEL, since it has a method.
type celRequest struct{ *Action }

func (r *celRequest) header(name ref.Val) ref.Val {
	text, ok := name.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(name)
	}
	if r.HeaderGone {
		return types.WrapErr(errHeaderGone)
	}
	value := strings.Join(r.Header[textproto.CanonicalMIMEHeaderKey(string(text))], ", ") // RFC 9110, section 5.3
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

var membershipEnv = sync.OnceValue(func() *cel.Env { return newEnv([]string{"user"}, cel.Variable("user", userType)) })

var whenEnv = sync.OnceValue(func() *cel.Env {
	return newEnv([]string{"user", "request"},
		cel.Variable("user", userType),
		cel.Variable("request", requestType),
		cel.Variable("params", textMap),
		cel.Variable("now", cel.TimestampType),
		cel.Function("header", cel.MemberOverload("request_header_string", []*cel.Type{requestType, cel.StringType}, cel.StringType,
			cel.BinaryBinding(func(request, name ref.Val) ref.Val {
				r, ok := request.(*celRequest)
				if !ok {
					return types.MaybeNoSuchOverloadErr(request)
				}
				return r.header(name)
			}))),
	)
})

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
	for _, overload := range readsAddress { // of which ext has a guess of its own
		options = append(options, cel.CostEstimatorOptions(checker.OverloadCostEstimate(overload,
			func(e checker.CostEstimator, target *checker.AstNode, args []checker.AstNode) *checker.CallEstimate {
				return e.EstimateCallCost("", overload, target, args)
			})))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		panic("access: the language of conditions: " + err.Error())
	}
	return env
}

func compileCondition(env *cel.Env, text string) (*Condition, error) {
	switch {
	case len(text) > maxConditionBytes:
		return nil, fmt.Errorf("the condition has %d bytes, at most %d are allowed", len(text), maxConditionBytes)
	case !utf8.ValidString(text):
		return nil, fmt.Errorf("condition %q is not valid UTF-8", text)
	case strings.TrimSpace(text) != text || text == "":
		return nil, fmt.Errorf("condition %q: write it without white space around it", text)
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.Is(unicode.C, r) || unicode.In(r, unicode.Zl, unicode.Zp) }):
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
		return nil, fmt.Errorf("condition %q is a %s, and must be true or false; compare it with something", text, ast.OutputType())
	}
	reads := make(map[string]bool)
	if err := collectReads(ast.NativeRep().Expr(), reads); err != nil {
		return nil, fmt.Errorf("condition %q: %w", text, err)
	}
	estimate, err := env.EstimateCost(ast, valueSizes{})
	if err != nil {
		return nil, fmt.Errorf("condition %q: %w", text, err)
	}
	if estimate.Max > maxConditionCost {
		return nil, fmt.Errorf("condition %q can cost too much in every request (%s, at most %d); avoid loops within loops, and over the parts of a text: \"a\" in text.split(\",\") is cheaper", text, costText(estimate.Max), maxConditionCost)
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, fmt.Errorf("condition %q: %w", text, err)
	}
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

func costText(cost uint64) string {
	if cost > 1e15 {
		return "unbounded"
	}
	return fmt.Sprintf("up to %d", cost)
}

// firstIssue tells the first mistake with its place, in characters from 1.
func firstIssue(issues *cel.Issues) string {
	first := issues.Errors()[0]
	message := strings.TrimSuffix(first.Message, " (in container '')")
	if first.Location.Column() < 0 {
		return message
	}
	return fmt.Sprintf("at character %d: %s", first.Location.Column()+1, message)
}

// valueSizes bounds the sizes of the values that conditions look at. The store
// keeps to those of the service user, [boundedValue] to the others.
type valueSizes struct{}

var sizeOf = map[string]uint64{
	"user.id": 64, "user.name": 255, "user.display_name": 255, "user.alias": 64, "user.owner": 255, "user.role": 8,
	"user.teams": 32, "user.teams.@items": 64,
	"user.labels": 64, "user.labels.@keys": 63, "user.labels.@values": 255,
	"request.method": 32, "request.host": 255, "request.path": maxValueBytes, "request.remote_ip": 45,
	"params": maxPatternSegments, "params.@keys": 64, "params.@values": maxValueBytes,
}

func (valueSizes) EstimateSize(node checker.AstNode) *checker.SizeEstimate {
	path := node.Path()
	if e := node.Expr(); len(path) == 0 && e.Kind() == celast.CallKind {
		if f := e.AsCall().FunctionName(); f == operators.OptSelect || f == operators.OptIndex {
			switch of := e.AsCall().Args()[0]; {
			case isVariable(of, "params"):
				path = []string{"params", "@values"}
			case of.Kind() == celast.SelectKind && of.AsSelect().FieldName() == "labels" && isVariable(of.AsSelect().Operand(), "user"):
				path = []string{"user", "labels", "@values"}
			}
		}
	}
	size, ok := sizeOf[strings.Join(path, ".")]
	if !ok && len(path) == 3 && path[1] == "labels" { // user.labels.env
		size, ok = sizeOf["user.labels.@values"], true
	}
	if !ok && len(path) == 2 && path[0] == "params" {
		size, ok = sizeOf["params.@values"], true
	}
	if !ok {
		return nil
	}
	return &checker.SizeEstimate{Max: size}
}

// EstimateCallCost tells what a function costs where CEL does not know, or where
// its guess is far too low or too high.
func (valueSizes) EstimateCallCost(function, overload string, target *checker.AstNode, args []checker.AstNode) *checker.CallEstimate {
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
		return &checker.CallEstimate{CostEstimate: checker.CostEstimate{Min: 1, Max: e.Add(checker.FixedCostEstimate(1)).Max}}
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
		pattern, _ := literal(args[1].Expr())
		steps := size(0).Add(checker.FixedSizeEstimate(1)).Multiply(checker.FixedSizeEstimate(PatternSteps(pattern)))
		return costs(steps.MultiplyByCostFactor(0.05))
	case overload == overloads.ContainsString:
		return costs(size(0).Add(size(1)).MultiplyByCostFactor(0.1))
	case (equality || function == operators.In) && canNest(args[0].Type()) && canNest(args[1].Type()):
		return costs(checker.UnknownCostEstimate())
	case equality && len(args[0].Type().Parameters()) > 0:
		return costs(checker.CostEstimate{Max: min(size(0).Max, size(1).Max)}.MultiplyByCostFactor(2))
	case strings.HasSuffix(overload, "_tz"):
		return costs(checker.FixedCostEstimate(400)) // it reads the time zone from a file
	case slices.Contains(readsText, overload):
		return costs(size(0).MultiplyByCostFactor(0.1))
	case slices.Contains(readsAddress, overload):
		e := costs(size(len(args) - 1).MultiplyByCostFactor(0.5))
		e.ResultSize = &checker.SizeEstimate{Max: 16}
		return e
	}
	return nil
}

// readsText are the functions that read a whole text and make no text of it.
var readsText = []string{
	overloads.SizeString, overloads.SizeStringInst, overloads.StringToInt, overloads.StringToUint, overloads.StringToDouble,
	overloads.StringToBool, overloads.StringToTimestamp, overloads.StringToDuration,
}

// readsAddress are the functions that read an address from a text. It is quoted in
// the error when it is none.
var readsAddress = []string{
	"is_ip", "is_cidr", "string_to_ip", "string_to_cidr", "ip_is_canonical", "cidr_contains_ip_string", "cidr_contains_cidr_string",
}

// canNest reports whether a value of this type may hold values that hold others.
func canNest(t *types.Type) bool {
	return t.Kind() == types.DynKind || slices.ContainsFunc(t.Parameters(), func(of *types.Type) bool {
		return of.Kind() == types.DynKind || len(of.Parameters()) > 0
	})
}

// PatternSteps counts the instructions of a regular expression: every byte of a text may
// have to pass each of them. A pattern that is not valid has the largest number.
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

// collectReads collects what an expression reads: fields of the service user under their
// names, parameters of the path as "params.NAME", or "params" for any, and
// readsHeader. It refuses what cannot be followed or bounded.
func collectReads(e celast.Expr, reads map[string]bool) error {
	if of, name, ok := member(e); ok {
		inner, field, _ := member(of)
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
			return fmt.Errorf("%s cannot stand in a condition: nothing bounds the text that it makes", name)
		case name == overloads.Matches:
			if _, ok := literal(all[len(all)-1]); !ok {
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
			if err := collectAllReads([]celast.Expr{entry.AsMapEntry().Key(), entry.AsMapEntry().Value()}, reads); err != nil {
				return err
			}
		}
	case celast.StructKind:
		return fmt.Errorf("a %s cannot be made here", e.AsStruct().TypeName())
	case celast.ComprehensionKind:
		c := e.AsComprehension()
		for _, name := range []string{c.IterVar(), c.IterVar2(), c.AccuVar()} {
			if slices.Contains([]string{"user", "request", "params", "now"}, name) {
				return fmt.Errorf("%s is a variable already; name the one of the loop otherwise", name)
			}
		}
		return collectAllReads([]celast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()}, reads)
	}
	return nil
}

// readsHeader is the mark of a condition that looks at a header; no field has this
// name.
const readsHeader = "request.header"

func collectAllReads(list []celast.Expr, reads map[string]bool) error {
	for _, e := range list {
		if err := collectReads(e, reads); err != nil {
			return err
		}
	}
	return nil
}

// isVariable reports whether an expression is this variable, also with the dot
// before it that CEL allows.
func isVariable(e celast.Expr, name string) bool {
	return e.Kind() == celast.IdentKind && strings.TrimPrefix(e.AsIdent(), ".") == name
}

func literal(e celast.Expr) (string, bool) {
	if e.Kind() != celast.LiteralKind {
		return "", false
	}
	text, ok := e.AsLiteral().(types.String)
	return string(text), ok
}

// member takes a.b, has(a.b), a["b"], a.?b, a[?"b"] and "b" in a apart.
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
