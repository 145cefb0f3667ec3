package access

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/textproto"
	"reflect"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// evaluation gives the variables of an expression their values. It is a [cel.Activation].
type evaluation struct {
	user   *User
	action Action
	params map[string]string
	needs  []string // the unknown facts that the expression has read
	probe  bool     // UnknownTime counts
}

var errUnknown = errors.New("the question does not give it")

// needsPath is the entry of needs for the path of a [Question].
const needsPath = "path"

// need returns errUnknown, and adds name to needs, if the action does not have the fact.
func (e *evaluation) need(fact Unknown, name string) error {
	if e.action.Unknown&fact == 0 || fact == UnknownTime && !e.probe {
		return nil
	}
	if !slices.Contains(e.needs, name) {
		e.needs = append(e.needs, name)
	}
	return errUnknown
}

// ResolveName returns the value of a variable.
func (e *evaluation) ResolveName(name string) (any, bool) {
	switch name {
	case "user":
		return e.user, true
	case "request":
		return &celRequest{&e.action, e}, true
	case "params":
		if err := e.need(unknownParams, needsPath); err != nil {
			return types.WrapErr(err), true
		}
		return e.params, true
	case "now":
		if err := e.need(UnknownTime, "at"); err != nil {
			return types.WrapErr(err), true
		}
		return types.Timestamp{Time: time.Unix(e.action.Now, 0).UTC()}, true
	}
	return nil, false
}

// Parent returns nil: every variable is in e.
func (e *evaluation) Parent() cel.Activation { return nil }

var errHeaderGone = errors.New("the headers of this request have not been kept")

var errLongValue = fmt.Errorf("a condition cannot read a value of more than %d bytes", maxValueBytes)

// The types of the variables that have fields or keys.
var (
	requestType = cel.ObjectType("request")
	textMap     = cel.MapType(cel.StringType, cel.StringType)
)

// celFields contains the fields of each object type, with their types and the functions that read
// them.
var celFields = map[string]map[string]*types.FieldType{
	"user": userFields(),
	"request": {
		"method": Field(cel.StringType, func(r *celRequest) (any, error) { return r.Method, nil }),
		"host": Field(cel.StringType, func(r *celRequest) (any, error) {
			return r.Host, r.e.need(UnknownHost, "host")
		}),
		"path": Field(cel.StringType, func(r *celRequest) (any, error) {
			if len(r.Path) > maxValueBytes {
				return nil, errLongValue
			}
			return PlainPath(r.Path), r.e.need(unknownPath, needsPath)
		}),
		"remote_ip": Field(cel.StringType, func(r *celRequest) (any, error) {
			return AddressText(r.Address), r.e.need(UnknownAddress, "remote_ip")
		}),
	},
}

// userFields returns the fields of the variable user.
func userFields() map[string]*types.FieldType {
	fields := map[string]*types.FieldType{
		"role":   Field(cel.StringType, func(u *User) (any, error) { return string(u.Role), nil }),
		"teams":  Field(cel.ListType(cel.StringType), func(u *User) (any, error) { return u.Teams, nil }),
		"labels": Field(textMap, func(u *User) (any, error) { return u.Labels, nil }),
		"created_at": Field(cel.TimestampType, func(u *User) (any, error) {
			return types.Timestamp{Time: time.Unix(u.CreatedAt, 0).UTC()}, nil
		}),
	}
	for _, text := range slices.Concat(loginTexts, otherTexts) {
		get := func(u *User) (any, error) { return *text.of(&u.Profile), nil }
		fields[text.name] = Field(cel.StringType, get)
	}
	return fields
}

// SameField reports whether two service users have the same value in a field that conditions read.
// The field is in the form of [Group.Reads], for example "labels.env".
func SameField(field string, a, b *User) bool {
	if key, ok := strings.CutPrefix(field, "labels."); ok {
		// A condition can distinguish a missing label from an empty one.
		of, has := a.Labels[key]
		other, otherHas := b.Labels[key]
		return of == other && has == otherHas
	}
	switch field {
	case "teams":
		return slices.Equal(sortedCopy(a.Teams), sortedCopy(b.Teams))
	case "labels":
		return maps.Equal(a.Labels, b.Labels)
	}
	get := celFields["user"][field].GetFrom // of a compiled condition, so the field exists
	of, _ := get(a)                         // cannot fail for a service user
	other, _ := get(b)
	return of == other
}

// Field describes one field of a variable of type T, which get reads. A field that is nil or empty
// counts as not set.
func Field[T any](kind *cel.Type, get func(T) (any, error)) *types.FieldType {
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
			if errors.Is(err, errUnknown) { // a request has it
				return true
			}
			// An empty list or map is not nil, so IsZero does not find it.
			if r := reflect.ValueOf(v); r.Kind() == reflect.Slice || r.Kind() == reflect.Map {
				return r.Len() > 0
			}
			return err == nil && v != nil && !reflect.ValueOf(v).IsZero()
		},
	}
}

// AddressText returns an address as conditions see it: without a zone, and IPv4 in its short form.
// The invalid address is "".
func AddressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().WithZone("").String()
}

// WithFields returns an option that declares a variable of an object type of the same name, with
// these fields.
func WithFields(name string, fields map[string]*types.FieldType) cel.EnvOption {
	return func(env *cel.Env) (*cel.Env, error) {
		env, err := cel.CustomTypeProvider(variableType{env.CELTypeProvider(), name, fields})(env)
		if err != nil {
			return nil, err
		}
		return cel.Variable(name, cel.ObjectType(name))(env)
	}
}

// variableType is the type provider of CEL with the type of one of our variables added.
type variableType struct {
	types.Provider
	name   string
	fields map[string]*types.FieldType
}

func (p variableType) FindStructType(name string) (*types.Type, bool) {
	if name == p.name {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Provider.FindStructType(name)
}

func (p variableType) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if name == p.name {
		f, ok := p.fields[field]
		return f, ok
	}
	return p.Provider.FindStructFieldType(name, field)
}

// celRequest is the variable request. It implements [ref.Val] itself, because CEL calls its method
// header; the fields of celFields alone would not need that.
type celRequest struct {
	*Action
	e *evaluation
}

func (r *celRequest) header(name ref.Val) ref.Val {
	text, ok := name.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(name)
	}
	if r.HeaderGone {
		return types.WrapErr(errHeaderGone)
	}
	key := textproto.CanonicalMIMEHeaderKey(string(text))
	values, given := r.Header[key]
	if !given {
		if err := r.e.need(UnknownHeader, "headers."+key); err != nil {
			return types.WrapErr(err)
		}
	}
	// Several fields of one name are one value, separated by commas (RFC 9110, section 5.3).
	value := strings.Join(values, ", ")
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
