package main

import (
	"bytes"
	"encoding/json"
)

// The types of an OpenAPI 3.1 document, with the members that this one has.
type (
	document struct {
		OpenAPI    string                        `json:"openapi"`
		Info       info                          `json:"info"`
		Servers    []server                      `json:"servers"`
		Security   []map[string][]string         `json:"security"`
		Tags       []tag                         `json:"tags"`
		Paths      ordered[*ordered[*operation]] `json:"paths"`
		Components components                    `json:"components"`
	}
	info struct {
		Title       string            `json:"title"`
		Version     string            `json:"version"`
		Description string            `json:"description"`
		Contact     map[string]string `json:"contact"`
		License     map[string]string `json:"license"`
	}
	server struct {
		URL         string `json:"url"`
		Description string `json:"description"`
	}
	tag struct {
		Name        string `json:"name"`
		Description string `json:"description"`
	}
	operation struct {
		OperationID string             `json:"operationId"`
		Summary     string             `json:"summary"`
		Description string             `json:"description"`
		Tags        []string           `json:"tags"`
		Parameters  []parameter        `json:"parameters,omitempty"`
		RequestBody *body              `json:"requestBody,omitempty"`
		Responses   ordered[*response] `json:"responses"`
		Samples     []sample           `json:"x-codeSamples"`
	}
	parameter struct {
		Name        string  `json:"name"`
		In          string  `json:"in"`
		Description string  `json:"description"`
		Required    bool    `json:"required,omitempty"`
		Schema      *schema `json:"schema"`
	}
	body struct {
		Description string         `json:"description"`
		Required    bool           `json:"required,omitempty"`
		Content     ordered[media] `json:"content"`
	}
	// A reference to a response may have a description of its own.
	response struct {
		Ref         string          `json:"$ref,omitempty"`
		Description string          `json:"description,omitempty"`
		Headers     ordered[header] `json:"headers,omitempty"`
		Content     ordered[media]  `json:"content,omitempty"`
	}
	media struct {
		Schema  *schema         `json:"schema"`
		Example json.RawMessage `json:"example,omitempty"`
	}
	header struct {
		Ref         string  `json:"$ref,omitempty"`
		Description string  `json:"description,omitempty"`
		Schema      *schema `json:"schema,omitempty"`
	}
	// sample is an example of a request. The name of the member is that of Redoc.
	sample struct {
		Lang   string `json:"lang"`
		Source string `json:"source"`
	}
	components struct {
		Schemas         ordered[*schema]           `json:"schemas"`
		Responses       ordered[*response]         `json:"responses"`
		Headers         ordered[header]            `json:"headers"`
		SecuritySchemes ordered[map[string]string] `json:"securitySchemes"`
	}
)

// schema is a JSON schema (OpenAPI 3.1 uses the draft 2020-12), with the keywords that the document
// needs.
type schema struct {
	Ref                  string           `json:"$ref,omitempty"`
	Description          string           `json:"description,omitempty"`
	Type                 any              `json:"type,omitempty"` // a name, or a list of them
	Format               string           `json:"format,omitempty"`
	Enum                 []string         `json:"enum,omitempty"`
	Default              any              `json:"default,omitempty"`
	Minimum              json.Number      `json:"minimum,omitempty"`
	Maximum              json.Number      `json:"maximum,omitempty"`
	OneOf                []*schema        `json:"oneOf,omitempty"`
	Items                *schema          `json:"items,omitempty"`
	Properties           ordered[*schema] `json:"properties,omitempty"`
	Required             []string         `json:"required,omitempty"`
	AdditionalProperties any              `json:"additionalProperties,omitempty"` // a *schema, or false
}

// ordered is a JSON object whose members keep their order.
type ordered[T any] []member[T]

type member[T any] struct {
	Name  string
	Value T
}

// add appends a member.
func (o *ordered[T]) add(name string, value T) { *o = append(*o, member[T]{name, value}) }

// get returns the value of a member, or the zero value.
func (o ordered[T]) get(name string) (value T) {
	for _, m := range o {
		if m.Name == name {
			return m.Value
		}
	}
	return value
}

// MarshalJSON writes the members in their order.
func (o ordered[T]) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	out.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			out.WriteByte(',')
		}
		if err := encoder.Encode(m.Name); err != nil {
			return nil, err
		}
		out.WriteByte(':')
		if err := encoder.Encode(m.Value); err != nil {
			return nil, err
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}
