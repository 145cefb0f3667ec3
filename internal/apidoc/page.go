package main

import (
	"bytes"
	_ "embed" // the template and the style
	"encoding/json"
	"fmt"
	"html/template"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	//go:embed page.html
	pageTemplate string
	//go:embed page.css
	pageStyle string
)

// curl returns a command that sends the request to the local door. A database is sent from a file,
// and written to a file.
func (e example) curl(database string, answer string) string {
	method, target, _ := strings.Cut(e.Request, " ")
	words, sends := []string{"curl -s"}, e.Body != nil || e.kind() == database
	if method != "GET" && (method != "POST" || !sends) {
		words[0] += " -X " + method
	}
	target = "localhost:2019" + target
	if strings.ContainsAny(target, "?&") {
		target = quote(target)
	}
	words[0] += " " + target
	for _, h := range e.Headers {
		words = append(words, "-H "+quote(h))
	}
	if e.kind() == database {
		words = append(words, "--data-binary @service_users.backup")
	}
	if answer == database {
		words = append(words, "-o service_users.backup")
	}
	if e.Body != nil {
		if e.kind() == "application/json" {
			words = append(words, "-H 'Content-Type: application/json'")
		}
		var body bytes.Buffer
		_ = json.Compact(&body, e.Body) // the decoder has accepted it
		words = append(words, "-d "+quote(body.String()))
	}
	return strings.Join(words, " \\\n  ")
}

func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// shownOperation is an operation as the page shows it.
type shownOperation struct {
	*operation
	Method, Path string
}

// Title returns the operationId as words: "listServiceUsers" becomes "List service users".
func (o shownOperation) Title() string {
	name, _, _ := strings.Cut(o.OperationID, "_")
	words := regexp.MustCompile(`[A-Z]+[a-z]*`).ReplaceAllStringFunc(name, func(word string) string {
		if strings.ToUpper(word) == word || word == "APIKey" || word == "APIKeys" {
			return " " + strings.Replace(word, "K", " k", 1)
		}
		return " " + strings.ToLower(word)
	})
	return upperFirst(words)
}

// Done returns the answer without an error, and its status.
func (o shownOperation) Done() member[*response] { return o.Responses[0] }

// Failures returns the answers to requests that fail.
func (o shownOperation) Failures() ordered[*response] { return o.Responses[1:] }

// Answer returns the example of the answer, indented.
func (o shownOperation) Answer() string {
	var out bytes.Buffer
	for _, m := range o.Responses[0].Value.Content {
		if json.Indent(&out, m.Value.Example, "", "  ") != nil {
			return ""
		}
	}
	return out.String()
}

// render returns the document as a page for people. The page needs no script, and nothing from
// another place.
func render(doc *document) ([]byte, error) {
	page := template.New("").Funcs(template.FuncMap{
		"base": path.Base,
		"anchor": func(tag string) string {
			return strings.ToLower(strings.ReplaceAll(tag, " ", "-"))
		},
		"kind": func(types any) string { // "string", or "string or null" for a list
			if list, ok := types.([]any); ok {
				return fmt.Sprint(list[0], " or null")
			}
			return fmt.Sprint(types)
		},
		"null": func(types any) string {
			if _, more := types.([]any); more {
				return " or null"
			}
			return ""
		},
		"operations": func(tag string) (list []shownOperation) {
			for _, item := range doc.Paths {
				for _, op := range *item.Value {
					if op.Value.Tags[0] == tag {
						list = append(list, shownOperation{op.Value, strings.ToUpper(op.Name), item.Name})
					}
				}
			}
			return list
		},
		"required": func(s *schema, name string) bool { return slices.Contains(s.Required, name) },
		"status": func(response string) string { // "404" for NotFound
			for _, f := range failures {
				if f.name == response {
					return strings.Replace(f.status, "default", "other", 1)
				}
			}
			return ""
		},
		"style": func() template.CSS { return template.CSS(pageStyle) },
	})
	page, err := page.Parse(pageTemplate)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = page.Execute(&out, doc)
	return out.Bytes(), err
}
