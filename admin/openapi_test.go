package admin

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// openAPI is the OpenAPI document as a client reads it.
type openAPI struct {
	Info  struct{ Version string }
	Tags  []struct{ Name, Description string }
	Paths map[string]map[string]struct {
		OperationID, Summary, Description string
		Tags                              []string
		Parameters                        []struct {
			Name, In, Description string
			Required              bool
			Schema                shape
		}
		RequestBody *struct {
			Description string
			Required    bool
			Content     map[string]struct{ Schema shape }
		}
		Responses map[string]answerShape
	}
	Components struct {
		Schemas   map[string]shape
		Responses map[string]answerShape
	}
}

type answerShape struct {
	Ref         string `json:"$ref"`
	Description string
	Headers     map[string]any
	Content     map[string]struct{ Schema shape }
}

// resolve follows a reference to an answer that operations share.
func (a answerShape) resolve(doc openAPI) answerShape {
	if a.Ref != "" {
		return doc.Components.Responses[filepath.Base(a.Ref)]
	}
	return a
}

// shape is a JSON schema.
type shape map[string]any

var readOpenAPI = sync.OnceValue(func() (doc openAPI) {
	if err := json.Unmarshal(New(nil, nil, nil).openAPI(), &doc); err != nil {
		panic(err)
	}
	return doc
})

// undocumented finds what an answer to a request, byte for byte, has that the
// document does not say, and the other way round.
func (s *server) undocumented(request []byte, status int, h http.Header, body []byte) (problems []string) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(request)))
	if err != nil {
		return nil // the listener refused it
	}
	if r.Method == http.MethodOptions && status == http.StatusNoContent {
		return nil // what may be asked, not an operation
	}
	doc := readOpenAPI()
	expected := doc.Components.Responses["Error"]
	r, missing := s.api.locate(r)
	if _, pattern := s.api.mux.Handler(r); missing == nil && pattern != "" {
		method, path, _ := strings.Cut(pattern, " ")
		answers := doc.Paths[path][strings.ToLower(method)].Responses
		answer, documented := answers[fmt.Sprint(status)]
		if !documented && status >= 500 {
			answer, documented = answers["default"]
		}
		if !documented {
			return []string{fmt.Sprintf("the document has no status %d for %s", status, pattern)}
		}
		expected = answer.resolve(doc)
	}
	if _, documented := expected.Headers["ETag"]; documented != (h.Get("ETag") != "") {
		problems = append(problems, fmt.Sprintf("got ETag %q, documented: %t", h.Get("ETag"), documented))
	}
	content, ok := expected.Content[h.Get("Content-Type")]
	switch {
	case !ok && h.Get("Content-Type") != "" || ok != (len(expected.Content) > 0):
		return append(problems, fmt.Sprintf("got Content-Type %q, want one of %q", h.Get("Content-Type"), slices.Collect(maps.Keys(expected.Content))))
	case !ok || r.Method == http.MethodHead:
		return problems
	}
	return append(problems, doc.check("body", content.Schema, parse(string(body)))...)
}

// check finds where a value is not as a schema says, members without a schema
// among them.
func (doc openAPI) check(at string, s shape, v any) (problems []string) {
	wrong := func(format string, args ...any) {
		problems = append(problems, at+": "+fmt.Sprintf(format, args...))
	}
	types, nullable := s["type"].([]any)
	if !nullable && s["type"] != nil {
		types = []any{s["type"]}
	}
	if len(types) > 0 && !slices.Contains(types, any(kindOf(v))) {
		wrong("got a %s, want %q", kindOf(v), types)
		return problems
	}
	for keyword, rule := range s {
		switch keyword {
		case "type", "description", "default", "required":
		case "$ref":
			problems = append(problems, doc.check(at, doc.Components.Schemas[filepath.Base(rule.(string))], v)...)
		case "oneOf":
			fits := 0
			for _, one := range rule.([]any) {
				if len(doc.check(at, one.(map[string]any), v)) == 0 {
					fits++
				}
			}
			if fits != 1 {
				wrong("fits %d of %v, want one", fits, rule)
			}
		case "enum":
			if !slices.Contains(rule.([]any), v) {
				wrong("got %v, want one of %v", v, rule)
			}
		case "minimum", "maximum":
			if n, _ := v.(float64); keyword == "minimum" && n < rule.(float64) || keyword == "maximum" && n > rule.(float64) {
				wrong("got %v, want a %s of %v", v, keyword, rule)
			}
		case "format":
			if text, ok := v.(string); ok && rule == "date-time" {
				if _, err := time.Parse(time.RFC3339, text); err != nil {
					wrong("got %q, want a time", text)
				}
			} else if rule != "date-time" && rule != "int64" {
				wrong("this test does not know the format %v", rule)
			}
		case "items":
			list, _ := v.([]any)
			for i, element := range list {
				problems = append(problems, doc.check(at+"."+strconv.Itoa(i), rule.(map[string]any), element)...)
			}
		case "properties", "additionalProperties":
		default:
			wrong("this test does not know the keyword %q", keyword)
		}
	}
	object, ok := v.(map[string]any)
	if !ok || s["type"] == nil {
		return problems
	}
	properties, _ := s["properties"].(map[string]any)
	others, free := s["additionalProperties"].(map[string]any)
	for name, member := range object {
		if p, ok := properties[name].(map[string]any); ok {
			problems = append(problems, doc.check(at+"."+name, p, member)...)
		} else if free {
			problems = append(problems, doc.check(at+"."+name, others, member)...)
		} else {
			wrong("there is no property %q", name)
		}
	}
	required, _ := s["required"].([]any)
	for _, name := range required {
		if _, ok := object[name.(string)]; !ok {
			wrong("got no %q", name)
		}
	}
	return problems
}

// kindOf names the JSON schema type of a value.
func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case float64:
		if v == float64(int64(v)) {
			return "integer"
		}
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	default:
		return "object"
	}
}

// What the test of every answer would find.
func TestOpenAPICheck(t *testing.T) {
	doc := openAPI{}
	doc.Components.Schemas = map[string]shape{
		"Word": {"type": "string", "enum": []any{"a", "b"}},
		"Node": {
			"type": "object", "required": []any{"n"}, "additionalProperties": false,
			"properties": map[string]any{
				"n":    map[string]any{"type": "integer", "minimum": 1.0, "maximum": 9.0},
				"at":   map[string]any{"type": []any{"string", "null"}, "format": "date-time"},
				"word": map[string]any{"$ref": "#/components/schemas/Word"},
				"next": map[string]any{"oneOf": []any{map[string]any{"$ref": "#/components/schemas/Node"}, map[string]any{"type": "null"}}},
				"list": map[string]any{"type": "array", "items": map[string]any{"$ref": "#/components/schemas/Word"}},
				"map":  map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "boolean"}},
			},
		},
	}
	for text, want := range map[string]string{
		`{"n":1}`: "",
		`{"n":9,"at":"2026-01-02T03:04:05Z","word":"a","next":{"n":2},"list":["b","a"],"map":{"x":true}}`: "",
		`{"n":1,"at":null,"next":null,"list":[],"map":{}}`:                                                "",
		`[]`:                           "a: got a array",
		`null`:                         "a: got a null",
		`{}`:                           `a: got no "n"`,
		`{"n":0}`:                      "a.n: got 0",
		`{"n":10}`:                     "a.n: got 10",
		`{"n":1.5}`:                    "a.n: got a number",
		`{"n":1,"m":1}`:                `a: there is no property "m"`,
		`{"n":1,"at":"today"}`:         `a.at: got "today"`,
		`{"n":1,"word":null}`:          "a.word: got a null",
		`{"n":1,"word":"c"}`:           "a.word: got c",
		`{"n":1,"next":{}}`:            "a.next: fits 0",
		`{"n":1,"next":{"n":1,"m":1}}`: "a.next: fits 0",
		`{"n":1,"list":null}`:          "a.list: got a null",
		`{"n":1,"list":["a","c"]}`:     "a.list.1: got c",
		`{"n":1,"map":{"x":1}}`:        "a.map.x: got a integer",
	} {
		got := strings.Join(doc.check("a", doc.Components.Schemas["Node"], parse(text)), "; ")
		if !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	if got := doc.check("a", shape{"pattern": "x"}, "x"); len(got) != 1 {
		t.Errorf("an unknown keyword: got %q, want one problem", got)
	}
}

// The document and the routes are about the same operations, each under a name
// of its own.
func TestOpenAPIRoutes(t *testing.T) {
	a := New(nil, nil, nil)
	var routes, described []string
	for _, r := range a.routes() {
		routes = append(routes, r.method+" "+r.path)
	}
	names := map[string]string{}
	for path, item := range readOpenAPI().Paths {
		for method, op := range item {
			line := strings.ToUpper(method) + " " + path
			described = append(described, line)
			if !regexp.MustCompile(`^[a-z][A-Za-z]+(_[a-z_]+)?$`).MatchString(op.OperationID) {
				t.Errorf("%s: got operationId %q, want the name of a method", line, op.OperationID)
			}
			if other := names[op.OperationID]; other != "" {
				t.Errorf("%s and %s: both have the operationId %s", line, other, op.OperationID)
			}
			names[op.OperationID] = line
			var params []string
			for _, p := range op.Parameters {
				if p.In == "path" {
					params = append(params, "{"+p.Name+"}")
				}
			}
			if want := regexp.MustCompile(`\{[^}]*\}`).FindAllString(path, -1); !slices.Equal(params, want) {
				t.Errorf("%s: got path parameters %q, want %q", line, params, want)
			}
		}
	}
	slices.Sort(routes)
	slices.Sort(described)
	if !slices.Equal(routes, described) {
		t.Errorf("got operations\n%q, want those of the routes\n%q", described, routes)
	}
	for id, want := range map[string]string{"createServiceUser": "POST /service_users", "refreshToken": "POST /service_users/{id}/tokens/{token_id}/refresh", "openAPI": "GET /service_users/openapi.json"} {
		if names[id] != want {
			t.Errorf("%s: got %q, want %q", id, names[id], want)
		}
	}
	for line, want := range map[string]string{
		"getServiceUser": "Service users", "undeleteServiceUser": "Service users", "access": "Decisions", "refreshToken": "Tokens",
		"addRule": "Permission groups", "removeMember": "Permission groups", "grantPermission": "Permission groups",
		"getGroup": "Permission groups", "loadPermissions": "Catalogue", "getServiceUser_bot_users": "Names of ngrok",
	} {
		method, path, _ := strings.Cut(names[line], " ")
		if got := readOpenAPI().Paths[path][strings.ToLower(method)].Tags; !slices.Equal(got, []string{want}) {
			t.Errorf("%s: got tags %q, want %q", line, got, want)
		}
	}
}

// The types of Go become those of JSON.
func TestOpenAPISchemas(t *testing.T) {
	doc := readOpenAPI()
	for place, want := range map[string]string{
		"Token.hint":                              `{"type":"string"}`,
		"Token.use_count":                         `{"type":"integer","format":"int64"}`,
		"Token.created_at":                        `{"type":"string","format":"date-time"}`,
		"Token.expires_at":                        `{"type":["string","null"],"format":"date-time"}`,
		"Token.state":                             `{"$ref":"#/components/schemas/TokenState"}`,
		"Token.allowed_ips":                       `{"type":"array","items":{"type":"string"}}`,
		"ServiceUser.labels":                      `{"type":"object","additionalProperties":{"type":"string"}}`,
		"ServiceUserInput.name":                   `{"type":["string","null"]}`,
		"ServiceUserInput.active":                 `{"type":"boolean"}`,
		"ServiceUserInput.role":                   `{"oneOf":[{"$ref":"#/components/schemas/Role"},{"type":"null"}]}`,
		"ServiceUserInput.teams":                  `{"type":["array","null"],"items":{"type":"string"}}`,
		"ServiceUserInput.labels":                 `{"type":["object","null"],"additionalProperties":{"type":"string"}}`,
		"NewServiceUser.name":                     `{"type":["string","null"]}`,
		"GroupInput.rules":                        `{"type":["array","null"],"items":{"$ref":"#/components/schemas/RuleInput"}}`,
		"Explanation.rule":                        `{"oneOf":[{"$ref":"#/components/schemas/Rule"},{"type":"null"}]}`,
		"Explanation.decided_at":                  `{"type":"string","format":"date-time"}`,
		"GroupRef.mode":                           `{"type":"string","enum":["enforce","observe",""]}`,
		"TokenList.next_page_uri":                 `{"type":["string","null"]}`,
		"Mode":                                    `{"type":"string","enum":["enforce","observe"]}`,
		"RuleInput":                               `{"oneOf":[{"$ref":"#/components/schemas/RuleText"},{"$ref":"#/components/schemas/RuleObject"}]}`,
		"RuleText":                                `{"type":"string"}`,
		"RuleObject required":                     `["effect","methods","path"]`,
		"RuleObject closed":                       `false`,
		"NewServiceUser required":                 `null`,
		"NewServiceUser closed":                   `false`,
		"ServiceUserList required":                `["next_page_uri","service_users","uri"]`,
		"ServiceUserList closed":                  `null`,
		"GET /service_users limit":                `{"type":"integer","minimum":1,"maximum":100,"default":100}`,
		"GET /audit_events limit":                 `{"type":"integer","minimum":1,"maximum":100,"default":100}`,
		"GET /service_users/would_deny would":     `{"$ref":"#/components/schemas/Effect","default":"deny"}`,
		"POST /service_users/{id}/tokens body":    `false`,
		"POST /permission_groups/{id}/rules body": `true`,
	} {
		var got any
		words := strings.Fields(place)
		name, field, isField := strings.Cut(words[0], ".")
		s := doc.Components.Schemas[name]
		properties, _ := s["properties"].(map[string]any)
		switch {
		case words[0] == "GET":
			for _, p := range doc.Paths[words[1]]["get"].Parameters {
				if p.Name == words[2] {
					got = map[string]any(p.Schema)
				}
			}
		case words[0] == "POST":
			got = doc.Paths[words[1]]["post"].RequestBody.Required
		case isField:
			got = properties[field]
		case len(words) == 1:
			got = map[string]any(s)
		case words[1] == "required":
			got = s["required"]
		case words[1] == "closed":
			got = s["additionalProperties"]
		}
		if object, ok := got.(map[string]any); ok {
			object = maps.Clone(object)
			delete(object, "description")
			got = object
		}
		if want := parse(want); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", place, got, want)
		}
	}
}

// Everything is said in words.
func TestOpenAPIWords(t *testing.T) {
	doc := readOpenAPI()
	need := func(text, what string) {
		t.Helper()
		if strings.TrimSpace(text) == "" {
			t.Errorf("%s: no description; write a comment where it is declared", what)
		}
	}
	for path, item := range doc.Paths {
		for method, op := range item {
			need(op.Description, method+" "+path)
			need(op.Summary, method+" "+path+", summary")
			if strings.HasPrefix(op.Description, op.OperationID) || strings.ToUpper(op.Description[:1]) != op.Description[:1] || strings.HasSuffix(op.Summary, ".") {
				t.Errorf("%s %s: got %q and %q, want a sentence without the name, and its beginning without a full stop", method, path, op.Description, op.Summary)
			}
			for _, p := range op.Parameters {
				need(p.Description, method+" "+path+" "+p.Name)
			}
			if op.RequestBody != nil {
				need(op.RequestBody.Description, method+" "+path+", body")
			}
			for status, answer := range op.Responses {
				if answer.Ref == "" {
					need(answer.Description, method+" "+path+" "+status)
				}
			}
		}
	}
	for _, tag := range doc.Tags {
		need(tag.Description, tag.Name)
	}
	for name, answer := range doc.Components.Responses {
		need(answer.Description, name)
	}
	for name, s := range doc.Components.Schemas {
		text, _ := s["description"].(string)
		need(text, name)
		if first, _, _ := strings.Cut(text, " "); first == name || first == "Is" || first == "is" || first != "" && strings.ToUpper(first[:1]) != first[:1] {
			t.Errorf("%s: got %q, want a description that does not begin with the Go name", name, text)
		}
		properties, _ := s["properties"].(map[string]any)
		for field, p := range properties {
			text, _ := p.(map[string]any)["description"].(string)
			need(text, name+"."+field)
		}
	}
}

// Texts with a type of their own are described with all that they may be.
func TestOpenAPIEnums(t *testing.T) {
	declared := map[string][]any{}
	for _, dir := range []string{"../access", "../store"} {
		files, _ := filepath.Glob(dir + "/*.go")
		for _, name := range files {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if spec, ok := n.(*ast.ValueSpec); ok && spec.Type != nil && len(spec.Values) == 1 {
					if value, ok := spec.Values[0].(*ast.BasicLit); ok && value.Kind == token.STRING {
						text, _ := strconv.Unquote(value.Value)
						declared[fmt.Sprint(spec.Type)] = append(declared[fmt.Sprint(spec.Type)], text)
					}
				}
				return true
			})
		}
	}
	schemas := readOpenAPI().Components.Schemas
	for _, typ := range []string{"Effect", "Mode", "Role", "TokenState"} {
		if got, want := schemas[typ]["enum"], declared[typ]; !reflect.DeepEqual(got, any(want)) {
			t.Errorf("%v: got %v, want %v", typ, got, want)
		}
	}
}

// If-Match is documented where it is compared. What changes anything else refuses
// it, but for "*", rather than let the caller believe it was.
func TestOpenAPIIfMatch(t *testing.T) {
	t.Parallel()
	s := serve(t, store.Options{})
	for path, item := range readOpenAPI().Paths {
		for method, op := range item {
			documented := false
			for _, p := range op.Parameters {
				documented = documented || p.Name == "If-Match" && p.In == "header"
			}
			body := " {}"
			if method == "get" || method == "delete" {
				body = ""
			}
			looked := func(value, text string) bool {
				for _, id := range []string{"service_0", "group_0", "token_0", "node_0"} { // one is of the right form
					if got := s.ask(strings.ToUpper(method)+" "+fill(path, id)+body, "If-Match: "+value); got.status == 412 && strings.Contains(got.text, text) {
						return true
					}
				}
				return false
			}
			if compared := looked("nonsense", "must be the ETag"); documented != compared {
				t.Errorf("%s %s: If-Match is documented: %t, compared: %t", method, path, documented, compared)
			}
			if refused := looked(`"1"`, "compares no versions"); refused != (method != "get" && !documented) {
				t.Errorf("%s %s: If-Match is documented: %t, refused: %t", method, path, documented, refused)
			}
			if _, ok := op.Responses["412"]; ok != (method != "get") {
				t.Errorf("%s %s: 412 is documented: %t, want %t", method, path, ok, method != "get")
			}
			if looked("*", "compares no versions") {
				t.Errorf("%s %s: If-Match: * is refused", method, path)
			}
		}
	}
}

// Each operation lists the answers to failing requests that it can give, and no others. 401, 403
// and 429 depend on the door; package caddymodule tests them.
func TestOpenAPIFailures(t *testing.T) {
	t.Parallel()
	s := serve(t, store.Options{NodeID: unknownNode})
	s.must(`PUT /service_users/permissions {"permissions":[{"key":"p","name":"P","rules":["allow GET /p"]}]}`)
	s.must(`POST /permission_groups {"name":"taken","permissions":["p"]}`)
	s.must(`POST /permission_groups {"name":"other"}`)
	s.must(`POST /service_users {"name":"taken"}`)
	s.must(`POST /service_users {"name":"other"}`)
	s.must(`DELETE /service_users/service_2/tokens/token_2`)
	for range 99 { // and the first one
		s.must(`POST /service_users/service_1/tokens {}`)
	}
	p, _ := s.login("service_1", "csu_1")
	s.store.Use(p, s.now().Unix(), testAddr, "rule_x")
	conflicts := map[string]string{
		"createServiceUser":           `POST /service_users {"name":"taken"}`,
		"updateServiceUser":           `PATCH /service_users/service_2 {"name":"taken"}`,
		"deleteServiceUser":           `DELETE /service_users/service_1?unless_used_within=24h`,
		"createServiceUser_bot_users": `POST /bot_users {"name":"taken"}`,
		"updateServiceUser_bot_users": `PATCH /bot_users/service_2 {"name":"taken"}`,
		"deleteServiceUser_bot_users": `DELETE /bot_users/service_1?unless_used_within=24h`,
		"undeleteServiceUser":         `POST /service_users/service_1/undelete`,
		"bulkServiceUsers":            `POST /service_users/bulk {"do":"create","users":[{"name":"taken"}]}`,
		"undeleteGroup":               `POST /permission_groups/group_1/undelete`,
		"refreshToken":                `POST /service_users/service_2/tokens/token_2/refresh`,
		"createToken":                 `POST /service_users/service_1/tokens {}`,
		"createAPIKey":                `POST /api_keys {"owner_id":"service_1"}`,
		"createGroup":                 `POST /permission_groups {"name":"taken"}`,
		"updateGroup":                 `PATCH /permission_groups/group_2 {"name":"taken"}`,
		"previewGroup":                `POST /permission_groups/group_2/preview {"name":"taken"}`,
		"loadPermissions":             `PUT /service_users/permissions {"permissions":[],"replace":true}`,
		"deletePermission":            `DELETE /service_users/permissions?key=p`,
		"forgetNode":                  `DELETE /nodes/` + unknownNode,
	}
	// The requests for 404 of operations that refuse an empty input before they look.
	inputs := map[string]string{
		"addRule": ` "allow GET /x"`, "createAPIKey": ` {"owner_id":"service_0"}`,
		"explain": ` {"service_user_id":"service_0"}`, "deletePermission": `?key=none`,
		"bulkServiceUsers": ` {"do":"delete","ids":["service_0"]}`,
		"listAllTokens":    `?service_user_id=service_0`,
	}
	large, huge := fmt.Sprintf(` {"x":%q}`, strings.Repeat("x", maxBody)), fmt.Sprintf(` {"x":%q}`, strings.Repeat("x", maxBulkBody))
	for path, item := range readOpenAPI().Paths {
		for method, op := range item {
			line := strings.ToUpper(method) + " "
			body := ""
			if method != "get" && method != "delete" {
				body = " {}"
			}
			can := map[string]bool{
				"400": s.ask(line+fill(path, "x")+"?undocumented=1").status == 400,
				"409": conflicts[op.OperationID] != "" && s.do(conflicts[op.OperationID]).status == 409,
				"413": body != "" && (s.do(line+fill(path, "service_0")+large).status == 413 || s.do(line+fill(path, "service_0")+huge).status == 413),
				"415": body != "" && s.do(line+fill(path, "service_0")+body, "Content-Type: text/plain").status == 415,
			}
			for _, id := range []string{"service_0", "group_0", "token_0", "node_0"} { // one is of the right form
				can["404"] = can["404"] || s.ask(line+fill(path, id)+cmp.Or(inputs[op.OperationID], body)).status == 404
			}
			if op.OperationID == "addRule" || op.OperationID == "backup" {
				delete(can, "409") // after 10,000 rules, and in PostgreSQL
			}
			for status, given := range can {
				if _, documented := op.Responses[status]; documented != given {
					t.Errorf("%s %s: %s is documented: %t, given: %t", method, path, status, documented, given)
				}
			}
			if _, ok := op.Responses["405"]; ok || len(op.Responses) < 3 {
				t.Errorf("%s %s: got answers %v", method, path, slices.Sorted(maps.Keys(op.Responses)))
			}
		}
	}
}

// fill puts an id into a path, and others where there are more.
func fill(path, id string) string {
	others := map[string]string{"{id}": id, "{token_id}": "token_0", "{rule_id}": "rule_0", "{service_user_id}": "service_0"}
	return regexp.MustCompile(`\{\w+\}`).ReplaceAllStringFunc(path, func(name string) string { return cmp.Or(others[name], "x") })
}

// ask is do for a request that may go to a document or to a backup, whose answers are
// not of the form that all others have.
func (s *server) ask(request string, headers ...string) reply {
	s.t.Helper()
	method, path, _ := strings.Cut(request, " ")
	path, _, _ = strings.Cut(path, " ")
	for _, other := range []string{"GET /service_users/openapi.json", "GET /service_users/reference", "POST /service_users/backup"} {
		if !strings.HasPrefix(request, other) {
			continue
		}
		return s.exchange(method, path, nil, headers...)
	}
	return s.do(request, headers...)
}

// What may be sent is what is documented: every parameter and field is known, and
// what may be null can be.
func TestOpenAPIInputs(t *testing.T) {
	s := serve(t, store.Options{})
	doc := readOpenAPI()
	for path, item := range doc.Paths {
		for method, op := range item {
			line := strings.ToUpper(method) + " " + fill(path, "x")
			query, required := []string{}, false
			for _, p := range op.Parameters {
				if p.In != "query" {
					continue
				}
				query, required = append(query, p.Name+"=1"), required || p.Required
				for bound, step := range map[string]int{"minimum": -1, "maximum": 1} {
					n, ok := p.Schema[bound].(float64)
					if !ok || strings.Contains(path, "{") {
						continue
					}
					at := s.do(fmt.Sprintf("%s?%s=%d", line, p.Name, int(n)))
					beyond := s.do(fmt.Sprintf("%s?%s=%d", line, p.Name, int(n)+step))
					if field := fmt.Sprintf("%q:", p.Name); strings.Contains(at.text, field) || !strings.Contains(beyond.text, field) {
						t.Errorf("%s: the %s of %s: got %s at it and %s beyond", line, bound, p.Name, at.text, beyond.text)
					}
				}
			}
			if got := s.ask(line); method == "get" || method == "delete" {
				if refused := got.status == 400; refused != required {
					t.Errorf("%s: without parameters: got %d, one is documented as required: %t", line, got.status, required)
				}
			}
			if got := s.ask(line + "?" + strings.Join(query, "&")); strings.Contains(got.text, "ERR_NGROK_23") {
				t.Errorf("%s: documented parameters: got %s", line, got.text)
			}
			if got := s.ask(line + "?undocumented=1"); !strings.Contains(got.text, "ERR_NGROK_231") {
				t.Errorf("%s: another parameter: got %d %s, want ERR_NGROK_231", line, got.status, got.text)
			}
			if op.RequestBody == nil {
				continue
			}
			if _, database := op.RequestBody.Content[DatabaseType]; database && len(op.RequestBody.Content) == 1 {
				if got := s.do(line + " {}"); got.status != 415 {
					t.Errorf("%s: JSON: got %d %s, want 415", line, got.status, got.text)
				}
				continue
			}
			body := op.RequestBody.Content["application/json"].Schema
			for _, s := range []string{"RuleInput", "RuleObject"} { // its other form is a text
				if body["$ref"] == "#/components/schemas/"+s {
					body = shape{"$ref": "#/components/schemas/RuleObject"}
				}
			}
			object := doc.Components.Schemas[filepath.Base(body["$ref"].(string))]
			if object["additionalProperties"] != false {
				t.Errorf("%s: the body is open, want additionalProperties false", line)
			}
			for name, p := range object["properties"].(map[string]any) {
				p := shape(p.(map[string]any))
				nullable := len(doc.check("", p, nil)) == 0
				got := s.do(fmt.Sprintf("%s {%q:null}", line, name))
				if strings.Contains(got.text, "ERR_NGROK_214") {
					t.Errorf("%s: %s: got %s, want a field that is known", line, name, got.text)
				}
				if refused := strings.Contains(got.text, "not null") || strings.Contains(got.text, "JSON null"); nullable && refused || p["type"] == "boolean" && object["required"] == nil && !refused {
					t.Errorf("%s: %s: null is documented: %t; got %s", line, name, nullable, got.text)
				}
			}
		}
	}
}

// The documents have the version of the program, and an ETag.
func TestOpenAPIServed(t *testing.T) {
	s := serve(t, store.Options{})
	if got := readOpenAPI().Info.Version; got != Version() {
		t.Errorf("got version %q, want %q", got, Version())
	}
	for path, kind := range map[string]string{"/service_users/openapi.json": "application/json", "/service_users/reference": "text/html; charset=utf-8", "/service_users/openapi.json/": "application/json"} {
		first := s.ask("GET " + path)
		if strings.Contains(first.text, "v0.0.0") || !strings.Contains(first.text, Version()) {
			t.Errorf("%s: the version of the program is not in it", path)
		}
		if got := first.header.Get("Content-Type"); first.status != 200 || got != kind || len(first.text) < 1000 {
			t.Errorf("%s: got %d %s, %d bytes; want 200 %s", path, first.status, got, len(first.text), kind)
		}
		documented := readOpenAPI().Paths[strings.TrimSuffix(path, "/")]["get"].Responses["200"]
		media, _, _ := strings.Cut(kind, ";")
		if _, ok := documented.Content[media]; !ok || len(documented.Content) != 1 || documented.Headers["ETag"] == nil {
			t.Errorf("%s: got documented %+v, want %s and an ETag", path, documented, media)
		}
		for name, want := range map[string]string{"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"} {
			if got := first.header.Get(name); got != want {
				t.Errorf("%s: got %s %q, want %q", path, name, got, want)
			}
		}
		tag := first.header.Get("ETag")
		for header, want := range map[string]int{tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, `"x"`: 200} {
			if got := s.ask("GET "+path, "If-None-Match: "+header); got.status != want || got.header.Get("ETag") != tag || want == 304 && got.text != "" {
				t.Errorf("%s: If-None-Match %s: got %d, want %d", path, header, got.status, want)
			}
		}
		if got := s.ask("GET " + path + "?x=1").status; got != 400 {
			t.Errorf("%s: an unknown parameter: got %d, want 400", path, got)
		}
	}
}

// The page holds the whole document, needs nothing from elsewhere, and may not
// even load it.
func TestReference(t *testing.T) {
	s := serve(t, store.Options{})
	got := s.ask("GET /service_users/reference")
	ids := map[string]bool{}
	for _, m := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(got.text, -1) {
		if ids[m[1]] {
			t.Errorf("the id %q stands there twice", m[1])
		}
		ids[m[1]] = true
	}
	for _, m := range regexp.MustCompile(` (?:href|src|action)="([^"]*)"`).FindAllStringSubmatch(got.text, -1) {
		anchor, inside := strings.CutPrefix(m[1], "#")
		if inside && !ids[anchor] || !inside && m[1] != "openapi.json" {
			t.Errorf("the link %q leads nowhere", m[1])
		}
	}
	for _, item := range readOpenAPI().Paths {
		for _, op := range item {
			if !ids[op.OperationID] || !strings.Contains(got.text, op.OperationID) {
				t.Errorf("%s is not on the page", op.OperationID)
			}
		}
	}
	for name := range readOpenAPI().Components.Schemas {
		if !ids[name] {
			t.Errorf("%s is not on the page", name)
		}
	}
	for _, bad := range []string{"<script", "http:", "https:", "ZgotmplZ", "no value", "nil&gt;", " style=", "map["} {
		if strings.Contains(got.text, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	_, style, _ := strings.Cut(got.text, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	if got := got.header.Get("Content-Security-Policy"); got != want {
		t.Errorf("got Content-Security-Policy %q, want %q", got, want)
	}
}
