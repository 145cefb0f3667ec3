package caddymodule

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
)

// TestOpenAPIAtTheDoors checks where the API describes itself, and to whom.
func TestOpenAPIAtTheDoors(t *testing.T) {
	t.Parallel()
	s := startServer(t, doorsCaddyfile)
	admin := s.create("ops", "--role", "admin")
	member := s.create("worker")
	const alice = "X-Test-Login: alice"

	for _, tt := range []struct {
		name         string
		method, port string
		path         string
		who          credentials
		header       string
		want         int
		kind         string
	}{
		{"the local door", "GET", "CADDY_PORT", "/service_users/openapi.json", credentials{}, "", 200, "application/json"},
		{"the page at the local door", "GET", "CADDY_PORT", "/service_users/reference", credentials{}, "", 200, "text/html; charset=utf-8"},
		{"the local door is shared", "GET", "CADDY_PORT", "/openapi.json", credentials{}, "", 404, ""},
		{"an admin", "GET", "ADMIN_PORT", "/service_users/openapi.json", admin, "", 200, "application/json"},
		{"an admin, by the short path", "GET", "ADMIN_PORT", "/openapi.json", admin, "", 200, "application/json"},
		{"a person", "GET", "ADMIN_PORT", "/openapi.json", credentials{}, alice, 200, "application/json"},
		{"a person reads the page", "GET", "ADMIN_PORT", "/reference", credentials{}, alice, 200, "text/html; charset=utf-8"},
		{"a slash behind", "GET", "ADMIN_PORT", "/reference/", credentials{}, alice, 200, "text/html; charset=utf-8"},
		{"only the head", "HEAD", "ADMIN_PORT", "/openapi.json", credentials{}, alice, 200, "application/json"},
		{"nobody", "GET", "ADMIN_PORT", "/openapi.json", credentials{}, "", 401, "application/problem+json"},
		{"nobody reads the page", "GET", "ADMIN_PORT", "/reference", credentials{}, "", 401, "application/problem+json"},
		{"a member", "GET", "ADMIN_PORT", "/openapi.json", member, "", 403, "application/problem+json"},
		{"another method", "POST", "ADMIN_PORT", "/openapi.json", credentials{}, alice, 405, "application/problem+json"},
		{"a parameter", "GET", "ADMIN_PORT", "/openapi.json?x=1", credentials{}, alice, 400, "application/problem+json"},
		{"something beneath", "GET", "ADMIN_PORT", "/reference/x", credentials{}, alice, 404, "application/problem+json"},
		{"another case", "GET", "ADMIN_PORT", "/OpenAPI.json", credentials{}, alice, 404, "application/problem+json"},
	} {
		var header []string
		if tt.header != "" {
			header = []string{tt.header}
		}
		got := s.do(tt.method, tt.port, tt.path, tt.who, "", header...)
		if kind := got.Header.Get("Content-Type"); got.StatusCode != tt.want || tt.kind != "" && kind != tt.kind {
			t.Errorf("%s: got %d %s, want %d %s: %.300s", tt.name, got.StatusCode, kind, tt.want, tt.kind, got.body)
		}
	}

	// The operations that need credentials are those that document it.
	var doc struct {
		Paths map[string]map[string]struct{ Responses map[string]any }
	}
	if err := json.Unmarshal([]byte(s.do("GET", "CADDY_PORT", "/service_users/openapi.json", credentials{}, "").body), &doc); err != nil {
		t.Fatal(err)
	}
	for path, item := range doc.Paths {
		for method, op := range item {
			for status, who := range map[int]credentials{401: {}, 403: member} {
				_, documented := op.Responses[strconv.Itoa(status)]
				target := strings.NewReplacer("{", "", "}", "").Replace(path)
				if got := s.do(strings.ToUpper(method), "ADMIN_PORT", target, who, ""); (got.StatusCode == status) != documented {
					t.Errorf("%s %s: %d is documented: %t, got %d", method, path, status, documented, got.StatusCode)
				}
			}
		}
	}

	// Each door tells the same, and its tag saves sending it again.
	local := s.do("GET", "CADDY_PORT", "/service_users/openapi.json", credentials{}, "")
	site := s.do("GET", "ADMIN_PORT", "/openapi.json", credentials{}, "", alice)
	if local.body != site.body || !strings.Contains(site.body, `"openapi": "3.1.0"`) {
		t.Errorf("the document: got %.100s at the local door and %.100s at the site", local.body, site.body)
	}
	again := s.do("GET", "ADMIN_PORT", "/openapi.json", credentials{}, "", alice, "If-None-Match: "+site.Header.Get("ETag"))
	if again.StatusCode != 304 || again.body != "" {
		t.Errorf("the same again: got %d and %d bytes, want 304", again.StatusCode, len(again.body))
	}
}
