package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"slices"
	"strings"
)

// schema returns the schema of a type. For a struct or an enum it returns a reference, and adds the
// schema itself to the components.
func (d *describer) schema(e ast.Expr) *schema {
	switch e := e.(type) {
	case *ast.Ident:
		switch e.Name {
		case "string":
			return &schema{Type: "string"}
		case "bool":
			return &schema{Type: "boolean"}
		case "int", "int64":
			return &schema{Type: "integer", Format: "int64"}
		case "any":
			return &schema{}
		}
		return d.named(e)
	case *ast.SelectorExpr:
		return d.foreign(e)
	case *ast.StarExpr:
		return orNull(d.schema(e.X))
	case *ast.ArrayType:
		return &schema{Type: "array", Items: d.schema(e.Elt)}
	case *ast.MapType:
		return &schema{Type: "object", AdditionalProperties: d.schema(e.Value)}
	case *ast.IndexExpr:
		value := d.schema(e.Index)
		if nameOf(e.X) == "Opt" && value.Type == "boolean" { // null is an error: errNullBoolean
			return value
		}
		if nameOf(e.X) == "Opt" {
			return orNull(value)
		}
	}
	return d.unknown(e)
}

// foreign returns the schema of a type of another package.
func (d *describer) foreign(e *ast.SelectorExpr) *schema {
	name := nameOf(e.X) + "." + e.Sel.Name
	switch {
	case name == "time.Time":
		return &schema{Type: "string", Format: "date-time"}
	case name == "json.RawMessage": // before and after in the audit trail
		return orNull(&schema{Type: "object", AdditionalProperties: &schema{}})
	case d.src.enums[name] == nil:
		return d.unknown(e)
	case d.src.types[e.Sel.Name] != nil:
		d.problem("%s and a type of package admin have the same name", name)
	case d.schemas.get(e.Sel.Name) == nil:
		text := sentence(d.src.words[name], e.Sel.Name)
		d.schemas.add(e.Sel.Name, &schema{Type: "string", Description: text, Enum: d.src.enums[name]})
	}
	return reference("schemas", e.Sel.Name)
}

// named returns the schema of a type of package admin.
func (d *describer) named(e *ast.Ident) *schema {
	ref := reference("schemas", e.Name)
	if d.schemas.get(e.Name) != nil {
		return ref
	}
	text := sentence(d.src.words[e.Name], e.Name)
	if e.Name == "RuleInput" { // has two forms in JSON, which its Go type does not show
		forms := []*schema{reference("schemas", "RuleText"), reference("schemas", "RuleObject")}
		d.schemas.add(e.Name, &schema{Description: text, OneOf: forms})
		d.schemas.add("RuleText", &schema{Type: "string", Description: upperFirst(d.src.fields(e.Name)[0].comment)})
		object := &schema{}
		d.schemas.add("RuleObject", object)
		d.object(e.Name, object)
		object.Description = "A rule as an object, without id and text."
		return ref
	}
	if _, ok := d.src.types[e.Name].(*ast.StructType); !ok {
		return d.unknown(e)
	}
	s := &schema{}
	d.schemas.add(e.Name, s) // first, because a field may have the same type, as in Token
	d.object(e.Name, s)
	s.Description = text
	return ref
}

// object fills s with the schema of a struct. Its properties have the names in the `json` tags.
func (d *describer) object(typeName string, s *schema) {
	s.Type = "object"
	if d.closed {
		s.AdditionalProperties = false
	}
	for _, f := range d.src.fields(typeName) {
		name, options, _ := strings.Cut(f.tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		optional, typ := strings.HasPrefix(options, "omit"), f.typ
		if pointer, ok := typ.(*ast.StarExpr); ok && optional {
			typ = pointer.X // omitempty leaves a nil pointer out, so the value is never null
		}
		p := d.schema(typ)
		if f.tag.Get("empty") != "" { // an enum that may also be ""
			enum := d.schemas.get(nameOf(typ)).Enum
			p = &schema{Type: "string", Enum: append(slices.Clone(enum), "")}
		}
		p.Description = f.comment
		if p.Description == "" {
			d.problem("%s.%s: no description; write a comment where it is declared", typeName, f.name)
		}
		s.Properties.add(name, p)
		if !optional {
			s.Required = append(s.Required, name)
		}
	}
	slices.Sort(s.Required)
}

// parameter returns a field of a query. The field is a string in Go; the tags `integer:"MIN-MAX"`
// and `default:"…"` describe the values that it accepts.
func (d *describer) parameter(f field) parameter {
	s := d.schema(f.typ)
	word := f.tag.Get("default")
	if word != "" {
		s.Default = word
	}
	if low, high, ok := strings.Cut(f.tag.Get("integer"), "-"); ok {
		s.Type, s.Minimum, s.Maximum = "integer", json.Number(low), json.Number(high)
		if word != "" {
			s.Default = json.Number(word)
		}
	}
	return parameter{
		Name: f.tag.Get("query"), In: "query", Description: f.comment,
		Required: f.tag.Get("required") != "", Schema: s,
	}
}

func (d *describer) unknown(e ast.Expr) *schema {
	d.problem("%s: apidoc does not know this kind of type", d.src.positions.Position(e.Pos()))
	return &schema{}
}

func (d *describer) problem(format string, args ...any) {
	d.problems = append(d.problems, fmt.Errorf(format, args...))
}

func reference(kind, name string) *schema { return &schema{Ref: "#/components/" + kind + "/" + name} }

func orNull(s *schema) *schema {
	if s.Ref != "" {
		return &schema{OneOf: []*schema{s, {Type: "null"}}}
	}
	s.Type = []any{s.Type, "null"}
	return s
}
