package caddymodule

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
)

// pageExample returns the example of docs/self-service.md for pages of another origin: the options
// of the site without its proxy.
func pageExample(t *testing.T) string {
	t.Helper()
	_, text, _ := strings.Cut(string(must(os.ReadFile("../docs/self-service.md"))), "\n## Pages of another origin\n")
	_, text, _ = strings.Cut(text, "```caddyfile\napi.example.com {\n")
	text, rest, ok := strings.Cut(text, "\treverse_proxy localhost:8080\n}\n```")
	if !ok || rest == "" {
		t.Fatal("the example is not in its place")
	}
	return text
}

// TestPages: with the example of the documentation, a page of another origin can read every answer:
// also refusals, and answers of an upstream that sets the header itself.
func TestPages(t *testing.T) {
	t.Parallel()
	example := pageExample(t)
	header, _, _ := strings.Cut(example, "\tservice_users {")
	caddy := strings.Replace(example, "cors_preflight\n", "cors_preflight\n\t\terrors caddy\n", 1)
	const line = "\theader Access-Control-Allow-Origin https://app.example.com\n"
	const guard = "\tservice_users {\n\t\tcors_preflight\n\t}\n"
	const guardCaddy = "\tservice_users {\n\t\tcors_preflight\n\t\terrors caddy\n\t}\n"
	sites := []struct {
		name, site string
		// The number of Access-Control-Allow-Origin fields of a 401, 403 and 400, and of a 200. Browsers
		// accept one.
		refused, passed int
	}{
		{"the example", example, 1, 1},
		{"the example, errors caddy", caddy + "\thandle_errors {\n" + header + "\t\trespond \"{err.message}\" {err.status_code}\n\t}\n", 1, 1},
		{"errors caddy without an error route", caddy, 0, 1},
		{"at once", line + guard, 1, 2},
		{"at once, errors caddy", line + guardCaddy, 1, 2},
		{"a default", strings.Replace(line, "header ", "header ?", 1) + guard, 1, 1},
		{"behind the guard", "\troute {\n" + guard + line + "\t\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}\n\t}\n", 0, 2},
		{"nothing", guard, 0, 1},
	}
	s := newServer(t)
	caddyfile := "{\n\tservice_users {\n\t\tstore {$SERVICE_USERS_STORE}\n\t\tthrottle off\n\t}\n}\n" +
		"http://:{$UPSTREAM_PORT} {\n\tbind 127.0.0.1\n" + line + "\trespond ok\n}\n"
	port := func(i int) string { return fmt.Sprintf("PAGE_PORT_%d", i) }
	for i, site := range sites {
		s.moreports(port(i))
		caddyfile += "http://:{$" + port(i) + "} {\n\tbind 127.0.0.1\n" + site.site + "\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}\n}\n"
	}
	withCaddyfile(s, caddyfile)
	s.mustCLI("group", "create", "people", "--rule", "allow GET /v1/{rest...}")
	user := s.create("clerk", "--group", "people")
	const origin = "Origin: https://app.example.com"
	for i, site := range sites {
		for want, ask := range map[int]func() *response{
			401: func() *response { return s.do("GET", port(i), "/v1/x", credentials{}, "", origin) },
			403: func() *response { return s.do("GET", port(i), "/x", user, "", origin) },
			400: func() *response { return s.do("GET", port(i), "/v1//x", user, "", origin) },
			200: func() *response { return s.do("GET", port(i), "/v1/x", user, "", origin) },
		} {
			got, count := ask(), site.refused
			if want == 200 {
				count = site.passed
			}
			if values := got.Header.Values("Access-Control-Allow-Origin"); got.StatusCode != want || len(values) != count {
				t.Errorf("%s: got %d %q, want %d and %d fields", site.name, got.StatusCode, values, want, count)
			}
			if exposed := got.Header.Get("Access-Control-Expose-Headers"); want == 403 && strings.HasPrefix(site.name, "the example") &&
				(!strings.Contains(exposed, DecisionHeader) || got.Header.Get(DecisionHeader) == "") {
				t.Errorf("%s: the page reads %q, and the id is %q", site.name, exposed, got.Header.Get(DecisionHeader))
			}
		}
	}
	// A page may look around in the corner, and not rotate.
	for request, want := range map[string]int{"GET /_service_user/": 200, "POST /_service_user/can": 200, "POST /_service_user/rotate": 404, "PUT /_service_user": 405} {
		method, path, _ := strings.Cut(request, " ")
		body := map[bool]string{true: `{"method":"GET","path":"/v1/x"}`}[path == "/_service_user/can"]
		for i := range 2 {
			got := s.do(method, port(i), path, user, body, origin)
			if values := got.Header.Values("Access-Control-Allow-Origin"); got.StatusCode != want || len(values) != 1 {
				t.Errorf("%s: got %d %q", request, got.StatusCode, values)
			}
		}
	}
	// The request before that of the page has no credential. The page may then send its own.
	for i := range 2 {
		got := s.do("OPTIONS", port(i), "/v1/x", credentials{}, "", origin, "Access-Control-Request-Method: PATCH", "Access-Control-Request-Headers: authorization,content-type")
		for name, part := range map[string]string{"Access-Control-Allow-Origin": "https://app.example.com", "Access-Control-Allow-Headers": "Authorization", "Access-Control-Allow-Methods": "PATCH", "Vary": "Origin"} {
			if !strings.Contains(got.Header.Get(name), part) || got.StatusCode != http.StatusNoContent {
				t.Errorf("a preflight: got %d, %s %q, want %s", got.StatusCode, name, got.Header.Get(name), part)
			}
		}
		if got := s.do("OPTIONS", port(i), "/v1/x", credentials{}, "", origin); got.StatusCode != 401 {
			t.Errorf("OPTIONS without a method: got %d, want 401", got.StatusCode)
		}
	}
}
