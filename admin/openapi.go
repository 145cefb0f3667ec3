package admin

import (
	"embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"net/http"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// sources are the files with the operations and types of the API. The OpenAPI document takes its
// descriptions from the comments in them.
//
//go:embed api.go api_keys.go audit.go backup.go documents.go errors.go explain.go health.go permission_groups.go permissions.go scan.go service_users.go tokens.go types.go who_can.go would_deny.go
var sources embed.FS

// enums lists the values of each string type that has a fixed set of values.
var enums = map[reflect.Type][]any{
	reflect.TypeFor[access.Effect](): {access.Allow, access.Deny},
	reflect.TypeFor[access.Mode]():   {access.Enforce, access.Observe},
	reflect.TypeFor[access.Role]():   {access.Member, access.Manager, access.Admin},
	reflect.TypeFor[store.TokenState](): {
		store.TokenActive, store.TokenRetiring, store.TokenExpired, store.TokenRevoked,
	},
}

// object is a JSON object of the document. encoding/json sorts its names, so the document is the
// same each time.
type object = map[string]any

// schema is a JSON schema (OpenAPI 3.1 uses the draft 2020-12), with the keywords that the document
// needs.
type schema struct {
	Ref                  string             `json:"$ref,omitempty"`
	Description          string             `json:"description,omitempty"`
	Type                 any                `json:"type,omitempty"` // a name, or a list of them
	Format               string             `json:"format,omitempty"`
	Enum                 []any              `json:"enum,omitempty"`
	Default              any                `json:"default,omitempty"`
	Minimum              json.Number        `json:"minimum,omitempty"`
	Maximum              json.Number        `json:"maximum,omitempty"`
	OneOf                []*schema          `json:"oneOf,omitempty"`
	Items                *schema            `json:"items,omitempty"`
	Properties           map[string]*schema `json:"properties,omitempty"`
	Required             []string           `json:"required,omitempty"`
	AdditionalProperties any                `json:"additionalProperties,omitempty"` // a *schema, or false
}

// describeAPI returns the OpenAPI document for routes.
func describeAPI(routes []route) object {
	d := describer{text: map[string]string{}, collections: map[string]bool{}, schemas: map[string]*schema{}}
	d.readSources()
	paths, tags, tagged, named := map[string]object{}, []object{}, map[string]bool{}, map[any]bool{}
	// Requests come first. A type that requests and answers share then has a closed schema,
	// because the API refuses unknown fields.
	d.closed = true
	for _, r := range routes {
		d.input(r)
		paths[r.path] = make(object)
		segments := strings.Split(r.path, "/")
		for i := range len(segments) - 1 {
			d.collections[segments[i]] = d.collections[segments[i]] || strings.HasPrefix(segments[i+1], "{")
		}
	}
	d.closed = false
	for _, r := range routes {
		op := d.operation(r)
		if named[op["operationId"]] { // several paths share one method, but each needs an id of its own
			op["operationId"] = fmt.Sprint(op["operationId"], "_", strings.Split(r.path, "/")[1])
		}
		named[op["operationId"]] = true
		if tag := op["tags"].([]string)[0]; !tagged[tag] {
			tags, tagged[tag] = append(tags, object{"name": tag}), true
		}
		paths[r.path][strings.ToLower(r.method)] = op
	}
	d.schema(reflect.TypeFor[Error]())
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Service users", "version": version(),
			"description": sentence(d.text["API"], "API is "),
			"license":     object{"name": "Apache License 2.0", "identifier": "Apache-2.0"},
		},
		"servers":  []object{{"url": "/", "description": "the server that this document comes from"}},
		"security": []object{{"basic": []string{}}, {"bearer": []string{}}},
		"tags":     tags,
		"paths":    paths,
		"components": object{
			"schemas": d.schemas,
			"responses": object{"Error": object{
				"description": d.text["Error"],
				"headers":     object{OperationHeader: reference("headers", OperationHeader)},
				"content": object{
					"application/problem+json": object{"schema": reference("schemas", "Error")},
				},
			}},
			"headers": object{
				"ETag":          header("the version of the resource, for If-Match or If-None-Match"),
				"Repr-Digest":   header("the SHA-256 of the body, in the form of RFC 9530"),
				OperationHeader: header("the id of the operation, also in the log and the audit trail"),
			},
			"securitySchemes": object{
				"basic": object{
					"type": "http", "scheme": "basic",
					"description": "the id of a service user with the role admin or manager " +
						"and one of its tokens, or the login of a person that the operator has named",
				},
				"bearer": object{
					"type": "http", "scheme": "bearer",
					"description": "a token of such a service user",
				},
			},
		},
	}
}

// describer collects the schemas of the types that the routes use.
type describer struct {
	text        map[string]string  // comments by name: "Token", "Token.Hint", "refreshToken"
	collections map[string]bool    // path segments before the id of a member, such as "tokens"
	schemas     map[string]*schema // by type name
	closed      bool               // new schemas of structs allow no further properties
}

// operation returns the description of one route. Its operationId is the name of the method of API,
// and its tag is the last collection in the path.
func (d *describer) operation(r route) object {
	name := runtime.FuncForPC(reflect.ValueOf(r.op).Pointer()).Name() // …/admin.(*API).getToken-fm
	name = strings.TrimSuffix(name[strings.LastIndexByte(name, '.')+1:], "-fm")
	text := sentence(d.text[name], name+" ")
	summary, _, _ := strings.Cut(text, ". ")

	segments := strings.Split(r.path, "/")[1:]
	tag, parameters := segments[0], []object{}
	for i, segment := range segments {
		if d.collections[segment] {
			tag = segment
		}
		if param, ok := strings.CutPrefix(segment, "{"); ok {
			param = strings.TrimSuffix(param, "}")
			field := param[strings.LastIndexByte(param, '_')+1:]
			text := "the " + field + " of one of the " + strings.ReplaceAll(segments[i-1], "_", " ")
			parameters = append(parameters, object{
				"name": param, "in": "path", "description": text,
				"required": true, "schema": schema{Type: "string"},
			})
		}
	}
	query, body := d.input(r)
	parameters = append(parameters, query...)
	if r.versioned {
		text := "the ETag of an earlier answer; the answer is 412 if the resource has changed since"
		parameters = append(parameters, object{
			"name": "If-Match", "in": "header", "description": text, "schema": schema{Type: "string"},
		})
	}
	headers := object{OperationHeader: reference("headers", OperationHeader)}
	done := object{"description": http.StatusText(r.status), "headers": headers}
	if r.out != reflect.TypeFor[None]() {
		out := d.schema(r.out)
		kind, _, _ := strings.Cut(r.kind, ";")
		done["content"] = object{kind: object{"schema": out}}
		_, fixed := r.op.(func() []byte) // a document
		if shown := d.schemas[path.Base(out.Ref)]; fixed || shown != nil && shown.Properties["etag"] != nil {
			headers["ETag"] = reference("headers", "ETag")
		}
		if kind == DatabaseType {
			headers["Repr-Digest"] = reference("headers", "Repr-Digest")
		}
	}
	op := object{
		"operationId": name, "summary": strings.TrimSuffix(summary, "."), "description": text,
		"tags": []string{tag}, "parameters": parameters,
		"responses": object{strconv.Itoa(r.status): done, "default": reference("responses", "Error")},
	}
	if body != nil {
		op["requestBody"] = body
	}
	return op
}

// input returns the description of the query parameters or of the body of an operation.
func (d *describer) input(r route) (query []object, body object) {
	if r.in == reflect.TypeFor[None]() {
		return nil, nil
	}
	if r.in == reflect.TypeFor[upload]() {
		in := object{DatabaseType: object{"schema": schema{Type: "string"}}}
		text := "a backup; the header Repr-Digest may contain its SHA-256"
		return nil, object{"description": text, "required": true, "content": in}
	}
	if r.in.Kind() == reflect.Struct {
		for _, f := range reflect.VisibleFields(r.in) {
			if name := f.Tag.Get("query"); name != "" {
				query = append(query, object{
					"name": name, "in": "query", "description": d.fieldText(r.in, f),
					"required": f.Tag.Get("required") != "", "schema": d.parameter(f),
				})
			}
		}
	}
	if query != nil {
		return query, nil
	}
	in := d.schema(r.in)
	content := object{"application/json": object{"schema": in}}
	body = object{"description": "the input of the operation", "required": true, "content": content}
	if r.method == http.MethodPatch {
		patch := in
		if m, ok := reflect.New(r.in).Interface().(mergeable); ok {
			merge, _ := m.asMergePatch()
			patch = d.schema(reflect.TypeOf(merge).Elem())
		}
		content[mergePatchType] = object{"schema": patch}
	}
	if s := d.schemas[path.Base(in.Ref)]; s != nil {
		body["description"], body["required"] = s.Description, s.OneOf != nil || s.Required != nil
	}
	return nil, body
}

// parameter returns the schema of a field of a query. The field is a string in Go; the tags
// `integer:"MIN-MAX"` and `default:"…"` describe the values that it accepts.
func (d *describer) parameter(f reflect.StructField) *schema {
	s := d.schema(f.Type)
	word := f.Tag.Get("default")
	if word != "" {
		s.Default = word
	}
	if low, high, ok := strings.Cut(f.Tag.Get("integer"), "-"); ok {
		s.Type, s.Minimum, s.Maximum = "integer", json.Number(low), json.Number(high)
		if word != "" {
			s.Default = json.Number(word)
		}
	}
	return s
}

// schema returns the schema of a type. For a struct or an enum it returns a reference, and adds the
// schema itself to d.schemas.
func (d *describer) schema(t reflect.Type) *schema {
	named := reference("schemas", t.Name())
	switch {
	case d.schemas[t.Name()] != nil:
		return named
	case t == reflect.TypeFor[time.Time]():
		return &schema{Type: "string", Format: "date-time"}
	case t == reflect.TypeFor[json.RawMessage](): // before and after in the audit trail
		return orNull(&schema{Type: "object", AdditionalProperties: &schema{}})
	case enums[t] != nil:
		d.schemas[t.Name()] = &schema{Type: "string", Enum: enums[t]}
		return named
	case strings.HasPrefix(t.Name(), "Opt["):
		value, _ := t.FieldByName("Value")
		if value.Type.Kind() == reflect.Bool { // null is an error: errNullBoolean
			return d.schema(value.Type)
		}
		return orNull(d.schema(value.Type))
	case t == reflect.TypeFor[RuleInput]():
		// RuleInput has two forms in JSON, which its Go type does not show.
		d.schemas["RuleText"] = &schema{Type: "string", Description: d.text["RuleInput.Text"]}
		d.schemas["RuleObject"] = new(schema)
		d.object(t, d.schemas["RuleObject"])
		d.schemas[t.Name()] = &schema{
			Description: d.text[t.Name()],
			OneOf:       []*schema{reference("schemas", "RuleText"), reference("schemas", "RuleObject")},
		}
		return named
	}
	switch t.Kind() {
	case reflect.Bool:
		return &schema{Type: "boolean"}
	case reflect.Int, reflect.Int64:
		return &schema{Type: "integer", Format: "int64"}
	case reflect.String:
		return &schema{Type: "string"}
	case reflect.Pointer:
		return orNull(d.schema(t.Elem()))
	case reflect.Slice:
		return &schema{Type: "array", Items: d.schema(t.Elem())}
	case reflect.Map:
		return &schema{Type: "object", AdditionalProperties: d.schema(t.Elem())}
	case reflect.Struct:
		d.schemas[t.Name()] = new(schema) // first, because a field may have the same type, as in Token
		d.object(t, d.schemas[t.Name()])
		return named
	default:
		return &schema{} // anything
	}
}

// object fills s with the schema of a struct. Its properties have the names in the `json` tags.
func (d *describer) object(t reflect.Type, s *schema) {
	s.Type, s.Description, s.Properties = "object", d.text[t.Name()], make(map[string]*schema)
	if d.closed {
		s.AdditionalProperties = false
	}
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		optional, kind := strings.HasPrefix(options, "omit"), f.Type
		if optional && kind.Kind() == reflect.Pointer {
			kind = kind.Elem() // omitempty leaves a nil pointer out, so the value is never null
		}
		s.Properties[name] = d.schema(kind)
		if f.Tag.Get("empty") != "" { // an enum that may also be ""
			s.Properties[name] = &schema{Type: "string", Enum: append(slices.Clone(enums[kind]), "")}
		}
		s.Properties[name].Description = d.fieldText(t, f)
		if !optional {
			s.Required = append(s.Required, name)
		}
	}
	slices.Sort(s.Required)
}

// fieldText returns the comment of a field of t or of a struct that t embeds.
func (d *describer) fieldText(t reflect.Type, f reflect.StructField) string {
	for _, i := range f.Index[:len(f.Index)-1] {
		t = t.Field(i).Type
	}
	return d.text[t.Name()+"."+f.Name]
}

func header(description string) object {
	return object{"description": description, "schema": schema{Type: "string"}}
}

func reference(kind, name string) *schema { return &schema{Ref: "#/components/" + kind + "/" + name} }

func orNull(s *schema) *schema {
	if s.Ref != "" {
		return &schema{OneOf: []*schema{s, {Type: "null"}}}
	}
	s.Type = []any{s.Type, "null"}
	return s
}

// readSources fills d.text with the comments of types, fields and operations in sources.
func (d *describer) readSources() {
	files, _ := sources.ReadDir(".")
	for _, f := range files {
		source, _ := sources.ReadFile(f.Name())
		// The source cannot have a syntax error, because it is compiled into this program.
		mode := parser.ParseComments | parser.SkipObjectResolution
		file, _ := parser.ParseFile(token.NewFileSet(), "", source, mode)
		var above *ast.CommentGroup
		var owner string
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GenDecl:
				above = n.Doc
			case *ast.TypeSpec:
				owner = n.Name.Name
				d.text[owner] = plainText(above)
			case *ast.Field:
				for _, name := range n.Names {
					d.text[owner+"."+name.Name] = plainText(n.Doc) + plainText(n.Comment)
				}
			case *ast.FuncDecl:
				owner = n.Name.Name
				// Methods of API have the receiver a. Those of other types may have
				// the name of an operation.
				if n.Recv != nil && len(n.Recv.List[0].Names) == 1 &&
					n.Recv.List[0].Names[0].Name == "a" {
					d.text[owner] = plainText(n.Doc)
				}
			}
			return true
		})
	}
}

// plainText returns a comment as plain text, each paragraph on one line.
func plainText(group *ast.CommentGroup) string {
	p := comment.Printer{TextWidth: -1}
	return strings.TrimSpace(string(p.Text(new(comment.Parser).Parse(group.Text()))))
}

// sentence removes the name from the beginning of a doc comment, and begins the rest with a capital
// letter: "getToken returns …" becomes "Returns …".
func sentence(text, name string) string {
	text = strings.TrimPrefix(text, name)
	n := min(1, len(text))
	return strings.ToUpper(text[:n]) + text[n:]
}
