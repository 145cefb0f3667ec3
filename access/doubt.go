package access

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Doubts returns the reasons for which a rule is probably a mistake: the rule is valid, and names a
// method, a segment or a value that no request has. Each text continues a sentence that begins with
// the rule. For the condition of a membership, the rule has this condition alone.
func Doubts(r Rule) (texts []string) {
	add := func(subject, advice string) {
		texts = append(texts, "is probably a mistake: "+subject+": "+advice)
	}
	for _, m := range r.Methods {
		if near := NearestWord(m, knownMethods); m == "ALL" || m == "ANY" {
			add(m, "did you mean *?")
		} else if near != m && near != "" {
			add(m, "did you mean "+near+"?")
		}
	}
	for part := range strings.SplitSeq(r.Path, "/") {
		if m := foreignParam.FindStringSubmatch(part); m != nil {
			add(part, "write {"+m[2]+m[1]+"} for a parameter")
		} else if foreignPattern.MatchString(part) {
			add(part, "only these very characters match; "+
				"write {name} for any segment, or {rest...} at the end for all that follow")
		}
	}
	ast, err := ParseExpression(whenEnv(), r.When)
	if err != nil { // there is no condition
		return texts
	}
	isCall := celast.KindMatcher(celast.CallKind)
	for _, e := range celast.MatchDescendants(celast.NavigateAST(ast.NativeRep()), isCall) {
		name, args := e.AsCall().FunctionName(), e.Children()
		for i, arg := range args {
			of := name
			if comparison.MatchString(name) {
				of = fieldOf(args[1-i])
			} else if strings.HasPrefix(name, "get") {
				of = "time zone"
			}
			for _, e := range slices.Concat(arg.AsList().Elements(), []celast.Expr{arg}) {
				if e.Kind() != celast.LiteralKind {
					continue
				}
				value := fmt.Sprint(e.AsLiteral().Value())
				if p, ok := possible[of]; ok && !p.is(value) {
					add(value, p.advice)
				} else if of == "request.method" && !newMethodSet(&r).covers(methodBit(value), value) {
					add(value, "the rule is not about this method")
				}
			}
		}
	}
	return texts
}

// fieldOf returns the field that an expression reads, such as "user.role", or else the function that
// it calls.
func fieldOf(e celast.Expr) string {
	if of, name, ok := member(e); ok {
		return of.AsIdent() + "." + name
	}
	return e.AsCall().FunctionName()
}

// foreignParam matches a segment that is a parameter in another notation: :id, $id, <id>, <int:id>,
// [id] or [...rest]. foreignPattern matches a segment that other programs read as a pattern.
// comparison matches the names that CEL gives to ==, != and in.
var (
	foreignParam   = regexp.MustCompile(`^[:$<\[](?:\w+:|(\.{3}))?([A-Za-z_]\w*)[>\]]?$`)
	foreignPattern = regexp.MustCompile(`^:|[*^|<>\[\]]|\.\+|\$$`)
	comparison     = regexp.MustCompile(`^(?:_[=!]=_|@in)$`)
)

// knownMethods are the methods of HTTP, and those that other protocols add to them.
var knownMethods = slices.Concat(registered[:], strings.Fields(`ACL BIND CHECKIN CHECKOUT COPY LABEL LINK LIST LOCK
	M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY ORDERPATCH POLL PROPFIND PROPPATCH PURGE QUERY REBIND
	REPORT SEARCH SUBSCRIBE UNBIND UNCHECKOUT UNLINK UNLOCK UNSUBSCRIBE UPDATE`))

// possible describes the values that conditions compare, and the time zones that functions take.
// Networks and addresses are missing: a wrong one does not compile.
var possible = map[string]struct {
	is     func(string) bool
	advice string
}{
	"user.role":         {func(s string) bool { return Role(s).Valid() }, "a role is admin, manager or member"},
	"user.id":           {like(`^service_`), "an id begins with service_; a name is in user.name"},
	"request.method":    {like(`^[A-Z-]+$`), "a method is in upper case"},
	"request.host":      {like(`^[a-z0-9._-]+$|^\[`), "a host is in lower case, without a port"},
	"request.path":      {like(`^/`), `a path begins with "/"`},
	"request.remote_ip": {isAddress, "an address is like 192.0.2.7; cidr is for networks"},
	"getDayOfWeek":      {like(`^[0-6]$`), "the weekday is from 0, Sunday, to 6, Saturday"},
	"time zone": {isZone, "it is not a time zone such as Europe/Berlin or +01:00; " +
		"an allow with this condition never applies, and a deny always"},
}

func like(pattern string) func(string) bool { return regexp.MustCompile(pattern).MatchString }

func isAddress(s string) bool { return new(netip.Addr).UnmarshalText([]byte(s)) == nil }

func isZone(s string) bool {
	return !types.IsError(types.Timestamp{}.Receive("getHours", "", []ref.Val{types.String(s)}))
}
