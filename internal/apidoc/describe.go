package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"go/ast"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// version is the version in the generated files. Package admin puts the version of the program in
// its place when it serves them.
const version = "v0.0.0"

const (
	mergePatchType  = "application/merge-patch+json"
	problemType     = "application/problem+json"
	operationHeader = "Ngrok-Operation-Id"
)

// describer collects the parts of the document that operations share.
type describer struct {
	src      *source
	examples map[string]example
	schemas  ordered[*schema] // by type name
	closed   bool             // new schemas of structs allow no further properties
	problems []error
}

// describe returns the OpenAPI document. It returns an error for everything in the source that has
// no description, and for types that it does not know.
func describe(src *source, examples map[string]example) (*document, error) {
	d := &describer{src: src, examples: examples}
	doc := &document{
		OpenAPI: "3.1.0",
		Info: info{
			Title: "Service users", Version: version, Description: sentence(src.words["API"], "API"),
			Contact: map[string]string{
				"name": "caddy-service-users",
				"url":  "https://github.com/serviceusers/caddy-service-users",
			},
			License: map[string]string{"name": "Apache License 2.0", "identifier": "Apache-2.0"},
		},
		Servers:  []server{{"/", "the server that this document comes from"}},
		Security: []map[string][]string{{"basic": {}}, {"bearer": {}}},
	}
	// Requests come first. A type that requests and answers share then has a closed schema,
	// because the API refuses unknown fields.
	d.closed = true
	for _, r := range src.routes {
		d.input(r)
	}
	d.closed = false
	names := map[string]bool{}
	for _, r := range src.routes {
		op := d.operation(r)
		if names[op.OperationID] { // several paths share one method, but each needs an id of its own
			op.OperationID += "_" + strings.Split(r.path, "/")[1]
		}
		names[op.OperationID] = true
		if !slices.Contains(doc.Tags, tag{r.tag, r.tagText}) {
			doc.Tags = append(doc.Tags, tag{r.tag, r.tagText})
		}
		item := doc.Paths.get(r.path)
		if item == nil {
			item = &ordered[*operation]{}
			doc.Paths.add(r.path, item)
		}
		item.add(strings.ToLower(r.method), op)
	}
	doc.Components = d.components()
	return doc, errors.Join(d.problems...)
}

func (d *describer) components() components {
	c := components{
		Headers: ordered[header]{
			{"ETag", textHeader("the version of the resource, for If-Match or If-None-Match")},
			{"Repr-Digest", textHeader("the SHA-256 of the body, in the form of RFC 9530")},
			{operationHeader, textHeader("the id of the operation, also in the log and the audit trail")},
		},
		SecuritySchemes: ordered[map[string]string]{
			{"basic", map[string]string{
				"type": "http", "scheme": "basic",
				"description": "the id of a service user with the role admin or manager " +
					"and one of its tokens, or the login of a person that the operator has named",
			}},
			{"bearer", map[string]string{
				"type": "http", "scheme": "bearer",
				"description": "a token of such a service user",
			}},
		},
	}
	if applied := d.src.texts["AppliedHeader"]; applied != "" {
		c.Headers.add(applied, textHeader("only with the parameter wait: the number of nodes on which the change is in force "+
			"and the number of all, such as 12/12; or 11/12; late=node_…; until=2026-01-02T03:04:05Z, where the late nodes "+
			"may answer requests from before the change until that time; or unknown"))
	}
	problem := d.schema(ast.NewIdent("Error"))
	for _, f := range failures {
		c.Responses.add(f.name, &response{
			Description: f.text,
			Headers:     ordered[header]{{operationHeader, header{Ref: "#/components/headers/" + operationHeader}}},
			Content:     ordered[media]{{problemType, media{Schema: problem}}},
		})
	}
	slices.SortFunc(d.schemas, func(a, b member[*schema]) int { return cmp.Compare(a.Name, b.Name) })
	c.Schemas = d.schemas
	return c
}

// failures are the answers to requests that fail, with the reasons that are the same for every
// operation.
var failures = []struct{ status, name, text string }{
	{"400", "BadRequest", "a field or a parameter is unknown or has an invalid value"},
	{"401", "Unauthorized", "the credentials are missing or wrong; only at the site door"},
	{"403", "Forbidden", "the caller may not do this"},
	{"404", "NotFound", "there is no such resource, or the caller may not see it"},
	{"409", "Conflict", "the present state does not allow it"},
	{"412", "PreconditionFailed", "If-Match is not the present version of the resource, " +
		"or the operation compares no versions; or the request has If-None-Match and was answered before"},
	{"413", "PayloadTooLarge", "the body is too large"},
	{"415", "UnsupportedMediaType", "the Content-Type is missing or wrong, or the body is compressed"},
	{"422", "UnprocessableContent", "the Idempotency-Key was sent before with another request"},
	{"429", "TooManyRequests", "too many failed logins, or too many costly requests at a time"},
	{"default", "Error", "the store cannot be used: 503, or 507 if its disk is full; " +
		"or this Caddy has no service users: 404, only at the local door"},
}

// operation returns the description of one route. Its operationId is the name of the method of API.
func (d *describer) operation(r route) *operation {
	source := d.src.operations[r.operation]
	text := sentence(reason.ReplaceAllString(source.comment, ""), r.operation)
	if text == "" {
		d.problem("%s: no description; write a comment above the method", r.operation)
	}
	summary, _, _ := strings.Cut(text, ". ")
	op := &operation{
		OperationID: r.operation, Summary: strings.TrimSuffix(summary, "."), Description: text,
		Tags: []string{r.tag},
	}
	segments := strings.Split(r.path, "/")
	for i, segment := range segments {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			name = strings.TrimSuffix(name, "}")
			of := strings.ReplaceAll(segments[i-1], "_", " ")
			op.Parameters = append(op.Parameters, parameter{
				Name: name, In: "path", Required: true, Schema: &schema{Type: "string"},
				Description: "the " + name[strings.LastIndexByte(name, '_')+1:] + " of one of the " + of,
			})
		}
	}
	query, body := d.input(r)
	op.Parameters = append(op.Parameters, query...)
	if r.changes() {
		for _, f := range d.src.fields("WaitQuery") {
			op.Parameters = append(op.Parameters, d.parameter(f))
		}
	}
	if r.versioned {
		op.Parameters = append(op.Parameters, parameter{
			Name: "If-Match", In: "header", Schema: &schema{Type: "string"},
			Description: "the ETag of an earlier answer; the answer is 412 if the resource has changed since",
		})
	}
	if r.issuing {
		op.Parameters = append(op.Parameters, parameter{
			Name: "Idempotency-Key", In: "header", Schema: &schema{Type: "string"},
			Description: "1 to 255 characters, such as a UUID. Within 24 hours the same request with the same key " +
				"issues no further token: it answers with the first one and another secret, and the first secret " +
				"ends. The answer is 409 if the token was used or has ended",
		}, parameter{
			Name: "If-None-Match", In: "header", Schema: &schema{Type: "string", Enum: []string{"*"}},
			Description: "only beside Idempotency-Key: the repetition of a request changes nothing, and its " +
				"answer is 412 with token_id and service_user_id in details",
		})
	}
	done := d.done(r, source.out)
	shown, ok := d.examples[r.method+" "+r.path]
	if !ok {
		d.problem("%s %s: no example; add a request to admin/examples_test.go, "+
			`and run "go test ./admin -run Examples -update"`, r.method, r.path)
	}
	op.Samples = []sample{{"Shell", shown.curl(d.src.texts["DatabaseType"], r.kind)}}
	for i := range done.Content {
		done.Content[i].Value.Example = shown.Answer
	}
	if body != nil && shown.Body != nil {
		for i, m := range body.Content {
			if shown.kind() == m.Name {
				body.Content[i].Value.Example = shown.Body
			}
		}
	}
	op.RequestBody = body
	op.Responses.add(r.status, done)
	if tag := done.Headers.get("ETag"); tag.Ref != "" && r.method == http.MethodGet {
		op.Parameters = append(op.Parameters, parameter{
			Name: "If-None-Match", In: "header", Schema: &schema{Type: "string"},
			Description: "the ETag of an earlier answer; the answer is 304 if the resource has not changed since",
		})
		op.Responses.add("304", &response{
			Description: http.StatusText(http.StatusNotModified), Headers: done.Headers,
		})
	}
	d.failures(r, source.comment, &op.Responses)
	return op
}

// changes reports whether the operation can change the store.
func (r route) changes() bool { return r.method != http.MethodGet && !r.reading }

// reason finds the sentences in the comment of an operation that give the reason for a status.
var reason = regexp.MustCompile(` The answer is (4\d\d) if ([^.]+)\.`)

// failures adds the answers to requests that fail, each with a status that the operation can give.
// A reason in the comment of the operation replaces the general one.
func (d *describer) failures(r route, comment string, to *ordered[*response]) {
	can := map[string]string{"400": ""} // every operation refuses unknown parameters
	if name := path.Base(r.path); name != "healthz" && name != "readyz" {
		can["401"], can["403"], can["429"] = "", "", ""
	}
	if strings.Contains(r.path, "{") {
		can["404"] = ""
	}
	switch r.method {
	case "POST", "PUT", "PATCH":
		can["412"], can["413"], can["415"] = "", "", ""
	case "DELETE":
		can["412"] = ""
	}
	if r.issuing {
		can["409"], can["422"] = "", ""
	}
	for _, m := range reason.FindAllStringSubmatch(comment, -1) {
		can[m[1]] = m[2]
	}
	for _, f := range failures {
		if text, ok := can[f.status]; ok || f.status == "default" {
			to.add(f.status, &response{Ref: "#/components/responses/" + f.name, Description: text})
		}
	}
}

// done returns the answer of an operation without an error.
func (d *describer) done(r route, out ast.Expr) *response {
	id := header{Ref: "#/components/headers/" + operationHeader}
	status, _ := strconv.Atoi(r.status)
	done := &response{Description: http.StatusText(status), Headers: ordered[header]{{operationHeader, id}}}
	if applied := d.src.texts["AppliedHeader"]; applied != "" && r.changes() {
		done.Headers.add(applied, header{Ref: "#/components/headers/" + applied})
	}
	if nameOf(out) == "None" {
		return done
	}
	kind, _, _ := strings.Cut(r.kind, ";")
	var s *schema
	switch {
	case r.document && kind == "application/json":
		s = &schema{Type: "object", AdditionalProperties: &schema{}}
	case kind != "application/json": // a page or a database
		s = &schema{Type: "string"}
	default:
		s = d.schema(out)
	}
	done.Content.add(kind, media{Schema: s})
	if shown := d.schemas.get(path.Base(s.Ref)); r.document || shown != nil && shown.Properties.get("etag") != nil {
		done.Headers.add("ETag", header{Ref: "#/components/headers/ETag"})
	}
	if kind == d.src.texts["DatabaseType"] {
		done.Headers.add("Repr-Digest", header{Ref: "#/components/headers/Repr-Digest"})
	}
	return done
}

// input returns the query parameters or the body of an operation.
func (d *describer) input(r route) (query []parameter, b *body) {
	in := d.src.operations[r.operation].in
	name := nameOf(in)
	if in == nil || name == "None" {
		return nil, nil
	}
	for _, f := range d.src.fields(name) {
		if f.tag.Get("query") != "" {
			query = append(query, d.parameter(f))
		}
	}
	if query != nil {
		return query, nil
	}
	s := d.schema(in)
	b = &body{Description: "the input of the operation", Required: true}
	b.Content.add("application/json", media{Schema: s})
	if r.method == http.MethodPatch {
		patch := s
		if merge := d.src.patches[name]; merge != "" {
			patch = d.schema(ast.NewIdent(merge))
		}
		b.Content.add(mergePatchType, media{Schema: patch})
	}
	if shown := d.schemas.get(path.Base(s.Ref)); shown != nil {
		b.Description, b.Required = shown.Description, shown.OneOf != nil || shown.Required != nil
	}
	return nil, b
}

func textHeader(description string) header {
	return header{Description: description, Schema: &schema{Type: "string"}}
}

// example is a request that was sent to the API, and its answer.
type example struct {
	Request string          // method and path, with the query
	Headers []string        // of the request, without the Content-Type of JSON
	Body    json.RawMessage // of the request
	Answer  json.RawMessage // nil unless the answer is JSON
}

// kind returns the Content-Type of the body.
func (e example) kind() string {
	for _, h := range e.Headers {
		if kind, ok := strings.CutPrefix(h, "Content-Type: "); ok {
			return kind
		}
	}
	return "application/json"
}
