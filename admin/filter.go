package admin

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"

	"github.com/serviceusers/caddy-service-users/store"
)

// A filter is an expression in CEL over obj, a service user as the API shows it,
// and now. Times are timestamps, or null when there is none. As in the ngrok API,
// a timestamp has subtract("7d").

// maxFilterBytes bounds the text of a filter.
const maxFilterBytes = 2000

// filterCost bounds what a filter may cost for one service user, in the units of
// CEL.
const filterCost = 10_000

var filterEnv = sync.OnceValue(func() *cel.Env {
	env, err := cel.NewEnv(
		cel.Variable("obj", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("now", cel.TimestampType),
		cel.OptionalTypes(),
		ext.Strings(),
		cel.ExtendedValidations(),
		cel.Function("subtract", cel.MemberOverload("timestamp_subtract_string", []*cel.Type{cel.TimestampType, cel.StringType}, cel.TimestampType,
			cel.BinaryBinding(func(at, span ref.Val) ref.Val {
				d, err := ParseDuration(string(span.(types.String)))
				if err != nil {
					return types.WrapErr(err)
				}
				return types.Timestamp{Time: at.(types.Timestamp).Time.Add(-d)}
			}))),
	)
	if err != nil {
		panic("admin: the language of filters: " + err.Error())
	}
	return env
})

// filterFields are the fields of obj.
func filterFields(u *store.ServiceUser) map[string]any {
	labels := make(map[string]string, len(u.Labels))
	maps.Copy(labels, u.Labels)
	return map[string]any{
		"id": u.ID, "name": u.Name, "display_name": u.DisplayName, "description": u.Description, "owner": u.Owner, "alias": u.Alias,
		"active": u.Active, "role": string(u.Role), "teams": some(u.Teams), "labels": labels, "allowed_ips": some(u.AllowedIPs),
		"created_at": filterTime(u.CreatedAt), "updated_at": filterTime(u.UpdatedAt), "expires_at": filterTime(u.ExpiresAt),
		"last_active_at": filterTime(u.LastActiveAt), "created_by": u.CreatedBy,
	}
}

func filterTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

func compileFilter(text string, now time.Time) (func(*store.ServiceUser) (bool, error), error) {
	bad := func(format string, args ...any) error {
		return NewError(http.StatusBadRequest, "invalid_cel_expression", fmt.Sprintf(format, args...)).field("filter")
	}
	if len(text) > maxFilterBytes {
		return nil, bad("has %d bytes, at most %d are allowed", len(text), maxFilterBytes)
	}
	env := filterEnv()
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		first := issues.Errors()[0]
		return nil, bad("is not valid at character %d: %s", first.Location.Column()+1, first.Message)
	}
	if ast.OutputType() != cel.BoolType && ast.OutputType() != cel.DynType {
		return nil, bad("is a %s, and must be true or false", ast.OutputType())
	}
	fields := filterFields(new(store.ServiceUser))
	if unknown := unknownField(ast.NativeRep().Expr(), fields); unknown != "" {
		return nil, bad("obj has no %q; it has %s", unknown, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(filterCost))
	if err != nil {
		return nil, bad("%s", err)
	}
	return func(u *store.ServiceUser) (bool, error) {
		out, _, err := program.Eval(map[string]any{"obj": filterFields(u), "now": types.Timestamp{Time: now.UTC()}})
		switch {
		case err != nil && strings.Contains(err.Error(), "cost limit"):
			return false, bad("costs too much for %s; make it simpler", u.ID)
		case err != nil:
			return false, nil // such as a label that this one does not have
		}
		fits, ok := out.(types.Bool)
		if !ok {
			return false, bad("is a %s for %s, and must be true or false", out.Type(), u.ID)
		}
		return bool(fits), nil
	}, nil
}

// unknownField finds a field of obj that there is not.
func unknownField(root celast.Expr, fields map[string]any) (unknown string) {
	celast.PreOrderVisit(root, celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() != celast.SelectKind {
			return
		}
		operand, name := e.AsSelect().Operand(), e.AsSelect().FieldName()
		if operand.Kind() != celast.IdentKind || operand.AsIdent() != "obj" || unknown != "" {
			return
		}
		if _, known := fields[name]; !known {
			unknown = name
		}
	}))
	return unknown
}
