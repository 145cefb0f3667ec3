package admin

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAPIPage holds docs/api.md to the API: it names every operation and no other,
// every parameter and every field.
func TestAPIPage(t *testing.T) {
	page, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("`([^`\n]+)`")
	documented := make(map[string]bool)
	_, resources, _ := strings.Cut(string(page), "\n## Resources\n")
	resources, _, _ = strings.Cut(resources, "\n## ")
	for line := range strings.Lines(resources) {
		cells := strings.Split(line, " | ")
		var methods []string
		for _, m := range code.FindAllStringSubmatch(cells[0], -1) {
			method, path, whole := strings.Cut(m[1], " ")
			if methods = append(methods, method); !whole {
				continue
			}
			for _, method := range methods {
				documented[method+" "+path] = true
			}
			methods = nil
		}
	}
	words := make(map[string]bool)
	for _, m := range regexp.MustCompile("[A-Za-z_]+").FindAllString(strings.Join(code.FindAllString(string(page), -1), " "), -1) {
		words[m] = true
	}
	for _, block := range strings.Split(string(page), "```") {
		if strings.Contains(block, `"`) { // the examples in JSON
			for _, m := range regexp.MustCompile(`"([a-z_]+)"`).FindAllStringSubmatch(block, -1) {
				words[m[1]] = true
			}
		}
	}
	doc := readOpenAPI()
	for path, item := range doc.Paths {
		for method, op := range item {
			name := strings.ToUpper(method) + " " + path
			if !documented[name] {
				t.Errorf("docs/api.md does not name %s", name)
			}
			delete(documented, name)
			for _, p := range op.Parameters {
				if p.In == "query" && !words[p.Name] {
					t.Errorf("docs/api.md does not name the parameter %s of %s", p.Name, name)
				}
			}
		}
	}
	for name := range documented {
		t.Errorf("docs/api.md names %s, which there is not", name)
	}
	for name, schema := range doc.Components.Schemas {
		properties, _ := schema["properties"].(map[string]any)
		for _, field := range slices.Sorted(maps.Keys(properties)) {
			if !words[field] {
				t.Errorf("docs/api.md does not name the field %s of %s", field, name)
			}
		}
	}
}
