package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The files that package admin embeds are those that its source gives today.
func TestCurrent(t *testing.T) {
	files, err := generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	again, err := generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if !bytes.Equal(again[name], want) {
			t.Errorf("%s differs from one run to the next", name)
		}
		if got, err := os.ReadFile(filepath.Join("../..", name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf(`%s is not current, run "go generate ./admin": %v`, name, err)
		}
		if strings.Count(string(want), version) != 1 {
			t.Errorf("%s: got %d places for the version, want 1", name, strings.Count(string(want), version))
		}
	}
}

// testExamples are the examples for the routes in testdata.
var testExamples = map[string]example{
	"GET /odd/{id}/things": {Request: "GET /odd/7/things?a=1", Answer: json.RawMessage(`[]`)},
	"GET /things":          {Request: "GET /things", Answer: json.RawMessage(`[]`)},
	"POST /odd/{id}/undelete": {
		Request: "POST /odd/7/undelete", Headers: []string{"If-Match: *"}, Answer: json.RawMessage(`{}`),
	},
	"POST /odd": {Request: "POST /odd", Body: json.RawMessage(`[{"any": "it's"}]`), Answer: json.RawMessage(`[]`)},
}

// Routes and types of every kind that there may be can be described.
func TestDescribe(t *testing.T) {
	src, err := readSource("testdata/api", "testdata/other")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := describe(src, testExamples)
	if err != nil {
		t.Fatal(err)
	}
	for place, tt := range map[string]struct {
		got  any
		want string
	}{
		"one method at two paths": {doc.Paths.get("/things").get("get").OperationID, `"listThings_things"`},
		"the first of them":       {doc.Paths.get("/odd/{id}/things").get("get").OperationID, `"listThings"`},
		"summary":                 {doc.Paths.get("/things").get("get").Summary, `"Lists things"`},
		"description":             {doc.Paths.get("/odd/{id}/undelete").get("post").Description, `"Restores it."`},
		"no body":                 {doc.Paths.get("/odd/{id}/undelete").get("post").RequestBody, `null`},
		"parameters": {
			doc.Paths.get("/odd/{id}/undelete").get("post").Parameters,
			`[{"name":"id","in":"path","description":"the id of one of the odd","required":true,"schema":{"type":"string"}}]`,
		},
		"reason": {
			doc.Paths.get("/odd/{id}/undelete").get("post").Responses.get("409"),
			`{"$ref":"#/components/responses/Conflict","description":"it is there"}`,
		},
		"no reason": {doc.Paths.get("/things").get("get").Responses.get("409"), `null`},
		"a list as a body": {
			doc.Paths.get("/odd").get("post").RequestBody.Content.get("application/json").Schema,
			`{"type":"array","items":{"$ref":"#/components/schemas/Odd"}}`,
		},
		"properties": {
			doc.Components.Schemas.get("Odd").Properties,
			`{"size":{"description":"the size","type":"integer","format":"int64"},"any":{"description":"any value"},` +
				`"raw":{"description":"a raw value","type":["object","null"],"additionalProperties":{}},` +
				`"next":{"$ref":"#/components/schemas/Odd","description":"the next one"},` +
				`"name":{"$ref":"#/components/schemas/Color","description":"hides the field of Base"}}`,
		},
		"required":        {doc.Components.Schemas.get("Odd").Required, `["any","name","size"]`},
		"enum":            {doc.Components.Schemas.get("Color"), `{"description":"A color.","type":"string","enum":["red","green"]}`},
		"tags":            {doc.Tags, `[{"name":"Odd","description":"Routes that the real API does not have."}]`},
		"curl, quoted":    {doc.Paths.get("/odd/{id}/things").get("get").Samples[0].Source, `"curl -s 'localhost:2019/odd/7/things?a=1'"`},
		"curl, no body":   {doc.Paths.get("/odd/{id}/undelete").get("post").Samples[0].Source, `"curl -s -X POST localhost:2019/odd/7/undelete \\\n  -H 'If-Match: *'"`},
		"curl, with body": {doc.Paths.get("/odd").get("post").Samples[0].Source, `"curl -s localhost:2019/odd \\\n  -H 'Content-Type: application/json' \\\n  -d '[{\"any\":\"it'\\''s\"}]'"`},
	} {
		got, err := json.Marshal(tt.got)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: got %s, %v; want %s", place, got, err, tt.want)
		}
	}
}

// Source that would leave a gap in the document is an error that names the place.
func TestDescribeRefuses(t *testing.T) {
	good, err := os.ReadFile("testdata/api/api.go")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ old, new, want string }{
		"no comment of an operation":   {"// createOdd creates a list.\n", "", "createOdd: no description"},
		"no comment of a field":        {" // the size", "", "Size: no description"},
		"no comment of a group":        {"// Odd: routes that the real API does not have.\n", "\n", "GET /odd/{id}/things: the route has no group"},
		"no description of a group":    {"// Odd: routes", "// Odd routes", "GET /odd/{id}/things: the route has no group"},
		"an unknown operation":         {"a.undelete)", "a.other)", "POST /odd/{id}/undelete: the route has no group, or no method"},
		"an unknown function":          {`handle(a, "POST", "/odd",`, `register(a, "POST", "/odd",`, "calls register"},
		"an unknown type":              {"Size int ", "Size float32 ", "does not know this kind of type"},
		"an unknown type elsewhere":    {"Color other.Color", "Color other.Shape", "does not know this kind of type"},
		"two types with one name":      {"type Base struct", "type Color struct{}\ntype Base struct", "have the same name"},
		"no example":                   {`"/things"`, `"/new"`, "GET /new: no example"},
		"no list of routes":            {") routes()", ") list()", "has no method routes"},
		"a list that is not the first": {"	return []route{", "	_ = a\n	return []route{", "must begin with the return"},
		"a file that is not Go":        {"package api", "pakcage api", "expected 'package'"},
	} {
		dir := t.TempDir()
		text := strings.Replace(string(good), tt.old, tt.new, 1)
		if text == string(good) {
			t.Fatalf("%s: changes nothing", name)
		}
		if err := os.WriteFile(filepath.Join(dir, "api.go"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		src, err := readSource(dir, "testdata/other")
		if err == nil {
			_, err = describe(src, testExamples)
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
