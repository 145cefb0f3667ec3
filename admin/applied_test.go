package admin

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/store"
)

// Every operation that can change the store takes the parameter wait, checks it before the change, and
// answers with the header. All others refuse it.
func TestWait(t *testing.T) {
	s := serve(t, store.Options{})
	doc, changing := readOpenAPI(), 0
	for _, route := range s.api.routes() {
		for _, row := range []struct{ wait, problem string }{
			{"31s", "not a duration of at most 30s"}, {"-1s", "not a duration"}, {"2", "not a duration"}, {"", "is empty"},
		} {
			path, body := fill(route.path, "x"), " {}"
			if route.method == http.MethodGet || route.method == http.MethodDelete {
				body = ""
			}
			if !route.changes() {
				row.problem = "nothing is changed in the store here"
			}
			got := s.ask(route.method + " " + path + "?wait=" + row.wait + body)
			if got.status != 400 || !strings.Contains(got.text, row.problem) || got.header.Get(AppliedHeader) != "" {
				if route.method != http.MethodGet || got.status != 400 { // the document refuses all parameters alike
					t.Errorf("%s %s?wait=%s: got %d %s, want 400 %s", route.method, route.path, row.wait, got.status, got.text, row.problem)
				}
			}
		}
		documented := false
		for _, p := range doc.Paths[route.path][strings.ToLower(route.method)].Parameters {
			documented = documented || p.Name == "wait" && p.In == "query"
		}
		if documented != route.changes() {
			t.Errorf("%s %s: documented: %t, want %t", route.method, route.path, documented, route.changes())
		}
		if route.changes() {
			changing++
		}
	}
	if changing < 20 {
		t.Errorf("operations that change the store: got %d", changing)
	}
	if got := s.store.Directory().Revision(); got != 0 {
		t.Errorf("a wrong wait changed the store: got revision %d", got)
	}
	const key = "Idempotency-Key: k"
	one := `^1/1$`
	for _, row := range []struct {
		line, header string
		status       int
		headers      []string
	}{
		{`POST /service_users?wait=2s {"name":"a"}`, one, 201, nil},
		{`POST /service_users?wait=0s {"name":"b"}`, one, 201, nil},
		{`POST /service_users?wait=30s {"name":"a"}`, `^$`, 409, nil}, // nothing was changed
		{`POST /service_users {"name":"c"}`, `^$`, 201, nil},          // not asked
		{`POST /service_users/service_1/tokens?wait=2s {}`, one, 201, []string{key}},
		{`POST /service_users/service_1/tokens?wait=3s {}`, one, 201, []string{key}}, // the same request
		{`POST /service_users/service_1/tokens {}`, `^$`, 201, []string{key}},
		{`PATCH /service_users/service_1?wait=2s {"owner":"o"}`, one, 200, nil},
		{`PATCH /service_users/service_1?wait=2s {"owner":"o"}`, one, 200, nil}, // changes nothing
		{`PUT /service_users/permissions?wait=2s {"permissions":[]}`, one, 200, nil},
		{`DELETE /service_users/service_1/tokens/token_1?wait=2s`, one, 204, nil},
		{`DELETE /service_users/service_1/tokens/token_1?wait=2s`, one, 204, nil}, // revoked before
		{`DELETE /service_users/service_1?unless_used_within=1h&wait=2s`, one, 204, nil},
		{`DELETE /service_users/service_1?wait=2s`, `^$`, 404, nil},
		{`POST /service_users/bulk?wait=2s {"do":"deactivate","ids":["service_2"]}`, one, 200, nil},
		{`POST /service_users/bulk?wait=2s {"do":"reactivate","ids":["service_2"],"dry_run":true}`, `^$`, 400, nil},
		{`POST /bot_users?wait=2s {"name":"d"}`, one, 201, nil},
	} {
		got := s.ask(row.line, row.headers...)
		if header := got.header.Get(AppliedHeader); got.status != row.status || !regexp.MustCompile(row.header).MatchString(header) {
			t.Errorf("%s: got %d, %q, want %d, %s: %s", row.line, got.status, header, row.status, row.header, got.text)
		}
	}
}
