package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/ksuid"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// What every service user shows, whose values are those of a fresh one.
const fresh = `"display_name":"","description":"","owner":"","alias":"","active":true,"role":"member","teams":[],"labels":{},"allowed_ips":[],` +
	`"expires_at":null,"created_at":"t+1s","created_by":"local","updated_at":"t+1s","last_active_at":null,"permission_groups":[],"obstacle":null,"token_count":1,"next_token_end":null,"editable":true,"etag":"\"1\""`

// The contract of a client that was written for the ngrok API.
func TestContract(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"a"}`, `201 = {"id":"service_1","uri":"/service_users/service_1","name":"a",`+fresh+`,"token_id":"token_1","token":"csu_1"}`),
		r(`GET /service_users/service_1`, `200 = {"id":"service_1","uri":"/service_users/service_1","name":"a",`+fresh+`}`),
		r(`GET /service_users/service_1/`, `200 = {"id":"service_1","uri":"/service_users/service_1","name":"a",`+fresh+`}`),
		r(`GET /service_users`, `200 = {"service_users":[{"id":"service_1","uri":"/service_users/service_1","name":"a",`+fresh+`}],"uri":"/service_users","next_page_uri":null}`),
		r(`HEAD /service_users/service_1`, `200`),
		r(`HEAD /service_users`, `200`),
		r(`HEAD /service_users/service_0`, `404`),

		// A create: active is true when it is absent. Both slash forms, no redirect.
		r(`POST /service_users {"name":"b","active":false}`, `201 {"name":"b","active":false,"token":"csu_2"}`),
		r(`POST /service_users/ {"name":"c","active":true,"create_token":true}`, `201 {"active":true,"token":"csu_3"}`),
		r(`POST /service_users {"name":"d","create_token":false}`, `201 = {"id":"service_4","uri":"/service_users/service_4","name":"d",`+strings.NewReplacer("t+1s", "t+10s", `"obstacle":null`, `"obstacle":"the service user has no token"`, `"token_count":1`, `"token_count":0`).Replace(fresh)+`}`),
		r(`POST /service_users {}`, `400 ERR_NGROK_4109 [name] must not be empty`),
		r(`POST /service_users`, `400 ERR_NGROK_4109 [name] must not be empty`),
		r(`POST /service_users {"name":""}`, `400 ERR_NGROK_4109 [name]`),
		r(`POST /service_users {"name":null}`, `400 ERR_NGROK_4109 [name]`),
		r(`POST /service_users {"name":"`+strings.Repeat("é", 255)+`","create_token":false}`, `201`),
		r(`POST /service_users {"name":"`+strings.Repeat("é", 256)+`"}`, `400 ERR_NGROK_4110 [name] is 256 characters long`),
		r(`POST /service_users {"name":"a"}`, `409 ERR_NGROK_4112 [name] "a" is taken`),
		r(`POST /service_users {"name":"service_0"}`, `400 ERR_INVALID_VALUE [name] must not look like an id`),
		r(`POST /service_users {"name":"x","alias":"service_0"}`, `400 ERR_INVALID_VALUE [alias]`),
		r(`POST /service_users {"name":"x","permission_groups":["group_0"]}`, `400 ERR_INVALID_VALUE [permission_groups] there is no permission group`),

		// An update: absent is keep, present is set. The id is never in the body.
		r(`PATCH /service_users/service_1 {"display_name":"A","description":"d\ne","owner":"o","alias":"al","role":"manager","teams":["y","x","x"],"labels":{"k":"v"},"allowed_ips":["10.1.2.3/8","::1"],"expires_at":"t+999s"}`,
			`200 = {"id":"service_1","uri":"/service_users/service_1","name":"a","display_name":"A","description":"d\ne","owner":"o","alias":"al","active":true,"role":"manager","teams":["x","y"],"labels":{"k":"v"},`+
				`"allowed_ips":["10.0.0.0/8","::1/128"],"expires_at":"t+999s","created_at":"t+1s","created_by":"local","updated_at":"t+21s","last_active_at":null,"permission_groups":[],"obstacle":null,"token_count":1,"next_token_end":"t+999s","editable":true,"etag":"\"2\""}`),
		r(`PATCH /service_users/service_1/ {"active":false}`, `200 {"name":"a","display_name":"A","active":false,"role":"manager","teams":["x","y"],"labels":{"k":"v"},"alias":"al","expires_at":"t+999s","etag":"\"3\""}`),
		r(`PATCH /service_users/service_1 {}`, `200 {"display_name":"A","updated_at":"t+22s","etag":"\"3\""}`),
		r(`PATCH /service_users/service_1`, `200 {"display_name":"A","updated_at":"t+22s","etag":"\"3\""}`),
		r(`PATCH /service_users/service_1 {"name":"a","active":false}`, `200 {"updated_at":"t+22s","etag":"\"3\""}`),
		r(`PATCH /service_users/service_1 {"name":"a2","active":true,"display_name":"","description":null,"owner":"","alias":"","role":"member","teams":[],"labels":null,"allowed_ips":null,"expires_at":""}`,
			`200 = {"id":"service_1","uri":"/service_users/service_1","name":"a2",`+strings.NewReplacer(`"updated_at":"t+1s"`, `"updated_at":"t+26s"`, `\"1\"`, `\"4\"`).Replace(fresh)+`}`),
		r(`PATCH /service_users/service_1 {"name":""}`, `400 ERR_NGROK_4109 [name]`),
		r(`PATCH /service_users/service_1 {"name":"b"}`, `409 ERR_NGROK_4112 [name]`),
		r(`PATCH /service_users/service_0 {"name":"x"}`, `404 ERR_NOT_FOUND there is no service user`),
		r(`PATCH /service_users/service_1 {"id":"service_0"}`, `400 ERR_NGROK_214 [id] there is no such field`),
		r(`PATCH /service_users/service_1 {"created_at":"t+1s"}`, `400 ERR_NGROK_214 [created_at]`),
		r(`PATCH /service_users/service_1 {"create_token":true}`, `400 ERR_NGROK_214 [create_token]`),

		// The client clears the id of its argument; used again, it sends none.
		r(`GET /service_users/`, `404 ERR_NOT_FOUND`),
		r(`HEAD /service_users/`, `404`),
		r(`PATCH /service_users/ {"active":false}`, `404 ERR_NOT_FOUND`),
		r(`DELETE /service_users/`, `404 ERR_NOT_FOUND`),
		r(`DELETE /service_users/ {}`, `404 ERR_NOT_FOUND`),
		r(`GET /service_users/service_1`, `200 {"active":true,"etag":"\"4\""}`),

		r(`DELETE /service_users/service_2`, `204`),
		r(`DELETE /service_users/service_2`, `404 ERR_NOT_FOUND there is no service user "service_2"`),
		r(`GET /service_users/service_2`, `404 ERR_NOT_FOUND`),
		r(`PATCH /service_users/service_2 {}`, `404 ERR_NOT_FOUND`),
		r(`GET /service_users/service_2/tokens`, `404 ERR_NOT_FOUND`),
		r(`POST /service_users/service_2/tokens {}`, `404 ERR_NOT_FOUND`),
		r(`POST /service_users {"name":"b","create_token":false}`, `201 {"id":"service_6","name":"b"}`),
		r(`DELETE /service_users/service_3/`, `204`),

		// What the client sends besides, or might.
		r(`GET /service_users/service_1`, `200`, "Ngrok-Version: 2"),
		r(`GET /service_users/service_1`, `200`, "Ngrok-Version: 1999"),
		r(`GET /service_users/service_1`, `200`, "Authorization: Bearer", "User-Agent: ngrok-api-go//go1.26.8", "Accept-Encoding: gzip"),
		r(`GET /service_users/service_1`, `200`, "Authorization: Basic !!", "Authorization: Bearer x"),
		r(`GET /service_users/service_1`, `200`, "Accept: text/html", "Origin: https://evil.invalid", "X-Forwarded-Host: host.invalid"),
		r(`OPTIONS /service_users`, `204`, "Origin: https://evil.invalid", "Access-Control-Request-Method: POST"),
		r(`GET /service_users/service_1`, `304`, `If-None-Match: "4"`),
	)
	if id, err := ksuid.Parse(strings.TrimPrefix(s.real["service_1"], "service_")); err != nil || !id.Time().Equal(start.Add(time.Second)) {
		t.Errorf("id: got %s of %s, %v, want that it tells when it was made", s.real["service_1"], id.Time(), err)
	}
	if got := s.do(`GET /service_users/service_1`); !strings.Contains(got.raw, `"created_at":"2026-01-02T03:04:06Z"`) {
		t.Errorf("created_at: got %s, want RFC 3339 in UTC and whole seconds", got.raw)
	}
	if got, want := s.do(`GET /service_users/service_1`).header.Get("ETag"), `"4"`; got != want {
		t.Errorf("ETag: got %s, want %s", got, want)
	}
}

// No path leads anywhere but the ones that are listed, and none is redirected.
func TestPaths(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	s.must(`POST /permission_groups {"name":"g","rules":["allow GET /"]}`)
	real := s.real["service_1"]
	for _, path := range []string{
		"/", "/service_user", "/service_usersx", "/Service_Users", "/SERVICE_USERS", "/api_key", "/bot_user", "/audit_event", "/favicon.ico", "/config/", "/service_users;x", "/service_users.json",
		"/service_users/service_1/x", "/service_users/service_1/tokens/token_1/x", "/service_users/service_1/tokens/token_1/refresh/x", "/service_users/service_1/access/x", "/service_users/service_0/access", "/service_users/x/access", "/service_users/access", "/service_users/explain/x", "/service_users/who_can/x",
		"/service_users/service_1%2F", "/service_users/service_1%2f", "/service_users%2Fservice_1", "/service_users%2F", "/service_users/%2F", "/service_users/%2F/", "/service_users/service_1%2Ftokens", "/service_users/service_1/tokens%2Ftoken_1",
		"/service_users/x%2F..%2Fservice_1", "/service_users/..%2Fservice_users", "/service_users/..%2f..%2fetc%2fpasswd", `/service_users/..\..\x`,
		"/..", "/../service_users", "/./service_users", "/service_users/.", "/service_users/..", "/service_users/../service_users", "/service_users/./service_1", "/service_users/x/../service_1", "/service_users/service_1/.", "/service_users/service_1/..",
		"/service_users/%2e", "/service_users/%2e%2e", "/service_users/%2e%2e/service_users", "/service_users/%2e%2e%2fservice_users", "/service_users/%252e%252e", "/%2e%2e/service_users", "/service_users/..;/service_users", "/service_users/service_1;x=y",
		"//", "//service_users", "//service_users/service_1", "/service_users//", "/service_users//service_1", "/service_users/service_1//", "/service_users//tokens", "/service_users/service_1//tokens", "///service_users///service_1",
		"/service_users/service_1:", "/service_users/:", "/:", "/service_users:80", "/service_users/service_1:undelete", "/service_users/http://evil.invalid/",
		"/service_users/service_1%00", "/service_users/%00", "/service_users/%0a", "/service_users/%ff", "/service_users/service_1%20", "/service_users/%20service_1", "/service_users/service_1+", "/service_users/*", "/service_users/{id}", "/service_users/%7Bid%7D",
		"/service_users/token_1", "/service_users/group_1", "/service_users/service_", "/service_users/_" + real[8:], "/service_users/Service_" + real[8:], "/service_users/" + real[:34], "/service_users/" + real + "0", "/service_users/a", "/service_users/" + strings.Repeat("x", 10<<10), "/service_users/service_" + strings.Repeat("0", 10<<10),
		"/permission_groups/service_1", "/permission_groups/service_1/rules", "/permission_groups/group_1/members/service_1/x", "/permission_groups/group_0/rules", "/permission_groups/group_0/members",
		"/x%3Fy%23z%252F", "/bot_users/", "/bot_users/token_1", "/bot_users/service_1/tokens", "/bot_users/service_1%2F", "/bot_users//service_1", "/api_keys/", "/api_keys/service_1", "/api_keys/token_1/refresh", "/api_keys/token_1%2F", "/api_keys//token_1",
		"/service_users/service_1/tokens/", "/service_users/service_0/tokens", "/service_users/service_0/tokens/token_1", "/service_users/service_1/tokens/token_0", "/service_users/service_1/tokens/x", "/permission_groups/", "/permission_groups/group_1/rules/", "/permission_groups/group_1/members/",
	} {
		s.run(r("GET "+path, "404 ERR_NOT_FOUND there is no"))
	}
	s.run(r("DELETE /service_users/service_"+strings.Repeat("x", 10<<10), "404 ERR_NOT_FOUND there is no such resource")) // and not told it again
	for _, path := range []string{"/service_users/", "/service_users//", "/service_users//service_1/", "/service_users//service_1", "/service_users/./service_1", "/permission_groups/", "/permission_groups/group_1/rules/", "/permission_groups/group_1/members/", "/service_users/service_1/tokens/", "/bot_users/", "/api_keys/", "/api_keys//token_1"} {
		for _, method := range []string{"PUT", "PATCH", "DELETE"} {
			s.run(r(method+" "+path+" {}", "404 ERR_NOT_FOUND there is no"))
		}
	}
	s.run(
		r(`PATCH /service_users/service_1%2F {"active":false}`, `404 ERR_NOT_FOUND there is no`),
		r(`DELETE /service_users/service_1%2F`, `404 ERR_NOT_FOUND there is no`),
		r(`POST /service_users%2F {"name":"x"}`, `404 ERR_NOT_FOUND there is no`),
	)
	s.run(
		// The same path, written in another way.
		r("GET /service_users/%73ervice_"+real[8:], `200 {"id":"service_1","uri":"/service_users/service_1"}`),
		r("GET /%73ervice_users?limit=1", `200 {"uri":"/service_users"}`),
		r("GET http://evil.invalid/service_users?limit=1", `200 {"uri":"/service_users"}`),
		r("GET http://host.invalid", `404 ERR_NOT_FOUND`),
		r("GET foo:bar", `404 ERR_NOT_FOUND`),
		r("GET foo:/service_users", `200 {"uri":"/service_users"}`),
	)

	for path, allow := range map[string]string{
		"/service_users":                                  "GET, HEAD, POST",
		"/service_users/service_1":                        "GET, HEAD, PATCH, DELETE",
		"/service_users/x":                                "GET, HEAD, PATCH, DELETE",
		"/service_users/service_1/tokens":                 "GET, HEAD, POST",
		"/service_users/service_1/tokens/token_1":         "GET, HEAD, PATCH, DELETE",
		"/service_users/service_1/tokens/token_1/refresh": "POST",
		"/permission_groups":                              "GET, HEAD, POST",
		"/permission_groups/group_1":                      "GET, HEAD, PATCH, DELETE",
		"/permission_groups/group_1/rules":                "GET, HEAD, POST",
		"/permission_groups/group_1/rules/rule_1":         "DELETE",
		"/permission_groups/group_1/members":              "GET, HEAD",
		"/permission_groups/group_1/members/service_1":    "PUT, DELETE",
		"/permission_groups/group_1/permissions/a.b":      "PUT, DELETE",
		"/service_users/service_1/access":                 "GET, HEAD",
		"/bot_users":                                      "GET, HEAD, POST",
		"/bot_users/service_1":                            "GET, HEAD, PATCH, DELETE",
		"/api_keys":                                       "GET, HEAD, POST",
		"/api_keys/token_1":                               "GET, HEAD, PATCH, DELETE",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "get", "Post"} {
			if !slices.Contains(strings.Split(allow, ", "), method) {
				s.run(r(method+" "+path, `405 ERR_METHOD_NOT_ALLOWED the method "`+method+`" is not allowed here; allowed: `+allow+" Allow: "+allow+", OPTIONS"))
			}
		}
	}
	s.run(r("GET /service_users", `200 {"service_users":[{"id":"service_1","etag":"\"1\""}]}`))
}

// Lists: newest first, whatever the limit, and whatever is deleted meanwhile.
func TestPaging(t *testing.T) {
	for _, list := range []struct {
		member, uri string
		create      func(s *server, i int) string // answers the id
		remove      func(s *server, id string)
	}{
		{"service_users", "/service_users",
			func(s *server, i int) string {
				return s.must(fmt.Sprintf(`POST /service_users {"name":"user %d","create_token":false}`, i))["id"].(string)
			},
			func(s *server, id string) { s.run(r("DELETE /service_users/"+id, "204")) }},
		{"bot_users", "/bot_users",
			func(s *server, i int) string {
				return s.must(fmt.Sprintf(`POST /bot_users {"name":"user %d","create_token":false}`, i))["id"].(string)
			},
			func(s *server, id string) { s.run(r("DELETE /bot_users/"+id, "204")) }},
		{"keys", "/api_keys",
			func(s *server, i int) string {
				if i == 0 {
					s.must(`POST /bot_users {"name":"owner","create_token":false}`)
				}
				return s.must(`POST /api_keys {"owner_id":"service_1"}`)["id"].(string)
			},
			func(s *server, id string) { s.run(r("DELETE /api_keys/"+id, "204")) }},
		{"tokens", "/service_users/service_1/tokens",
			func(s *server, i int) string {
				if i == 0 {
					s.must(`POST /service_users {"name":"owner","create_token":false}`)
				}
				return s.must(`POST /service_users/service_1/tokens {}`)["id"].(string)
			},
			nil}, // a revoked token stays in the list
		{"permission_groups", "/permission_groups",
			func(s *server, i int) string {
				return s.must(fmt.Sprintf(`POST /permission_groups {"name":"group %d"}`, i))["id"].(string)
			},
			func(s *server, id string) { s.run(r("DELETE /permission_groups/"+id, "204")) }},
		{"members", "/permission_groups/group_1/members",
			func(s *server, i int) string {
				if i == 0 {
					s.must(`POST /permission_groups {"name":"g"}`)
				}
				return s.must(fmt.Sprintf(`POST /service_users {"name":"user %d","create_token":false,"permission_groups":["group_1"]}`, i))["id"].(string)
			},
			func(s *server, id string) { s.run(r("DELETE /permission_groups/group_1/members/"+id, "204")) }},
	} {
		t.Run(list.member, func(t *testing.T) {
			s := serve(t, store.Options{})
			var want []string
			for i := range 6 {
				want = append([]string{list.create(s, i)}, want...)
			}
			for _, limit := range []int{1, 2, 3, 5, 6, 7, 100} {
				pages := s.walk(fmt.Sprintf("%s?limit=%d", list.uri, limit), list.member, limit, nil)
				if got := slices.Concat(pages...); !slices.Equal(got, want) {
					t.Errorf("limit %d: got %q, want %q", limit, got, want)
				}
				if got, want := len(pages), (6+limit-1)/limit; got != want {
					t.Errorf("limit %d: got %d pages, want %d", limit, got, want)
				}
			}
			if list.remove == nil {
				return
			}
			// Between two pages the last row seen goes, which is the cursor, and
			// the first of the next page, and a new one comes.
			created := 6
			pages := s.walk(list.uri+"?limit=2", list.member, 2, func(seen []string) {
				i := slices.Index(want, seen[len(seen)-1])
				list.remove(s, want[i])
				if i+1 < len(want) {
					list.remove(s, want[i+1])
				}
				list.create(s, created)
				created++
			})
			if got, want := slices.Concat(pages...), []string{want[0], want[1], want[3], want[4]}; !slices.Equal(got, want) {
				t.Errorf("walk during deletes: got %q, want %q", got, want)
			}
			// The whole rest goes, so there is no next page after all.
			first := s.must("GET " + list.uri + "?limit=1")
			for _, id := range slices.Concat(s.walk(list.uri, list.member, 100, nil)...) {
				list.remove(s, id)
			}
			next := parse(s.do("GET " + s.toLink(first)).text)
			if want := parse(fmt.Sprintf(`{%q:[],"uri":%q,"next_page_uri":null}`, list.member, list.uri)); !has(next, want) {
				t.Errorf("page after everything went: got %v, want %v", next, want)
			}
		})
	}

	t.Run("defaults", func(t *testing.T) {
		s := serve(t, store.Options{})
		for i := range 101 {
			s.clock.Add(1e9)
			if _, _, err := s.store.CreateServiceUser(t.Context(), store.Local, store.ServiceUser{Profile: access.Profile{Name: strconv.Itoa(i)}}, nil); err != nil {
				t.Fatal(err)
			}
		}
		pages := s.walk("/service_users", "service_users", 100, nil)
		if len(pages) != 2 || len(pages[0]) != 100 || len(pages[1]) != 1 {
			t.Errorf("no limit: got %d pages, want one of 100 and one of 1", len(pages))
		}
		s.run(
			r("GET /service_users?name=7", `200 {"service_users":[{"name":"7"}],"uri":"/service_users","next_page_uri":null}`),
			r("GET /service_users?name=7&limit=1", `200 {"service_users":[{"name":"7"}],"next_page_uri":null}`),
			r("GET /service_users?name=nobody", `200 = {"service_users":[],"uri":"/service_users","next_page_uri":null}`),
			r("GET /service_users?before_id=service_0", `200 = {"service_users":[],"uri":"/service_users","next_page_uri":null}`),
			r("GET /service_users?before_id=service_"+strings.Repeat("z", 27)+"&limit=1", `200 {"service_users":[{"name":"100"}]}`),

			// A filter comes before the pages, and the link keeps it.
			r(`GET /service_users?filter=obj.name%3D%3D"0"&limit=1`, `200 {"service_users":[{"name":"0"}],"uri":"/service_users","next_page_uri":null}`),
			r("GET /service_users?filter=false&limit=1", `200 = {"service_users":[],"uri":"/service_users","next_page_uri":null}`),
		)
		page := s.must(`GET /bot_users?filter=obj.name.endsWith("0")&limit=2`) // 100 and 90
		last := page["bot_users"].([]any)[1].(map[string]any)
		if got, want := page["next_page_uri"], fmt.Sprintf("/bot_users?before_id=%s&filter=obj.name.endsWith%%28%%220%%22%%29&limit=2", last["id"]); last["name"] != "90" || got != want {
			t.Errorf("link behind %v: got %v, want %s", last["name"], got, want)
		}
		s.run(
			r("GET "+page["next_page_uri"].(string), `200 {"bot_users":[{"name":"80"},{"name":"70"}]}`),
		)
	})
}

// walk reads all pages of a list and returns the ids of each. between is called
// with all ids so far before the next page is read.
func (s *server) walk(uri, member string, limit int, between func(seen []string)) (pages [][]string) {
	s.t.Helper()
	for {
		object := s.must("GET " + uri)
		var ids []string
		for _, v := range object[member].([]any) {
			ids = append(ids, v.(map[string]any)["id"].(string))
		}
		if len(ids) > limit {
			s.t.Errorf("%s: got %d entries, want at most %d", uri, len(ids), limit)
		}
		pages = append(pages, ids)
		next, there := object["next_page_uri"]
		if !there || len(pages) > 200 {
			s.t.Fatalf("%s: got no next_page_uri, or no end of the pages: %v", uri, object)
		}
		if next == nil {
			return pages
		}
		if len(ids) == 0 {
			s.t.Fatalf("%s: got an empty page with the next link %v", uri, next)
		}
		path, _, _ := strings.Cut(uri, "?")
		want := fmt.Sprintf("%s?before_id=%s&limit=%d", path, ids[len(ids)-1], limit)
		if next != want {
			s.t.Errorf("%s: got next_page_uri %v, want %s", uri, next, want)
		}
		if between != nil {
			between(slices.Concat(pages...))
		}
		uri = want
	}
}

func (s *server) toLink(list map[string]any) string { return list["next_page_uri"].(string) }

// An answer to a store that cannot be used tells nothing of it; the log does.
func TestBrokenStore(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	s.run(
		r(`GET /service_users`, `503 ERR_STORE_UNAVAILABLE the store cannot be used right now`),
		r(`GET /service_users/service_1`, `503 ERR_STORE_UNAVAILABLE`),
		r(`POST /service_users {"name":"b"}`, `503 ERR_STORE_UNAVAILABLE`),
		r(`PATCH /service_users/service_1 {"name":"b"}`, `503 ERR_STORE_UNAVAILABLE`),
		r(`DELETE /service_users/service_1`, `503 ERR_STORE_UNAVAILABLE`),
		r(`POST /service_users {"nam":"b"}`, `400 ERR_NGROK_214 [nam]`),
		r(`GET /service_users/service_1/x`, `404 ERR_NOT_FOUND`),
	)
	got := s.do(`GET /permission_groups`)
	operation := got.header.Get(OperationHeader)
	var found string
	for _, entry := range s.log.FilterMessage("request refused").All() {
		if entry.ContextMap()["operation_id"] == operation {
			found = fmt.Sprint(entry.Level, entry.ContextMap())
		}
	}
	if !strings.Contains(found, "error") || !strings.Contains(found, "closed") || strings.Contains(got.raw, "closed") {
		t.Errorf("cause: got log %q and answer %s, want it in the log alone", found, got.raw)
	}
}

// What is wrong with the store is told in words that tell nothing else.
func TestTroubleIsNamed(t *testing.T) {
	for _, row := range []struct {
		err    error
		status int
		code   string
		msg    string
	}{
		{syscall.ENOSPC, 507, "ERR_STORE_FULL", "the disk of the store is full; nothing was changed, make room first"},
		{syscall.EIO, 503, "ERR_STORE_UNAVAILABLE", "the store cannot be used right now: its disk has an error; nothing was changed, try again later"},
		{context.DeadlineExceeded, 503, "ERR_STORE_UNAVAILABLE", "the store cannot be used right now: it is busy; nothing was changed, try again later"},
		{fmt.Errorf("%w: %w", store.ErrUncertain, syscall.EIO), 503, "ERR_STORE_UNAVAILABLE", "the store cannot be used right now: its disk has an error; it is not known whether the change was made, so look before you try again"},
		{errors.New("else"), 503, "ERR_STORE_UNAVAILABLE", "the store cannot be used right now; nothing was changed, try again later"},
	} {
		w := httptest.NewRecorder()
		WriteError(w, zap.NewNop(), "op_1", fmt.Errorf("committing: %w", row.err))
		var e Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if w.Code != row.status || e.Code != row.code || e.Msg != row.msg || (w.Header().Get("Retry-After") != "") != (row.status == 503) {
			t.Errorf("%v: got %d %s %q, Retry-After %q, want %d %s %q", row.err, w.Code, e.Code, e.Msg, w.Header().Get("Retry-After"), row.status, row.code, row.msg)
		}
	}

	if *pgtest.On {
		return // the rest is about a file
	}
	s := serve(t, store.Options{})
	if err := os.Rename(s.store.Path(), s.store.Path()+".aside"); err != nil {
		t.Fatal(err)
	}
	s.run(r(`POST /service_users {"name":"a"}`, `503 ERR_STORE_UNAVAILABLE the store cannot be used right now: its database was taken away; nothing was changed`))
	if err := os.Rename(s.store.Path()+".aside", s.store.Path()); err != nil {
		t.Fatal(err)
	}
}

// Of several updates of the same version one wins.
func TestLostRace(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	var wg sync.WaitGroup
	statuses := make([]int, 8)
	for i := range statuses {
		wg.Go(func() {
			req, _ := http.NewRequest("PATCH", s.URL+"/service_users/"+s.real["service_1"], strings.NewReader(fmt.Sprintf(`{"owner":"%d"}`, i)))
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("If-Match", `"1"`)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
				statuses[i] = resp.StatusCode
			}
		})
	}
	wg.Wait()
	slices.Sort(statuses)
	if want := []int{200, 412, 412, 412, 412, 412, 412, 412}; !slices.Equal(statuses, want) {
		t.Errorf("got %d, want %d", statuses, want)
	}
	s.run(r(`GET /service_users/service_1`, `200 {"etag":"\"2\""}`))
}

// foreign is a client that does what clients of the ngrok API do: rooted paths,
// whatever the path of its base; a Bearer key; links followed as they are; the
// status of an error taken from the body. A redirect would turn a POST into a
// GET, so there must be none.
type foreign struct {
	t    *testing.T
	base *url.URL
}

// foreignError is what such a client makes of a refusal.
type foreignError struct {
	ErrorCode  string            `json:"error_code"`
	StatusCode int32             `json:"status_code"`
	Msg        string            `json:"msg"`
	Details    map[string]string `json:"details"`
}

func (e *foreignError) Error() string {
	return fmt.Sprintf("HTTP %d: %s [%s]", e.StatusCode, e.Msg, e.ErrorCode)
}

type foreignUser struct {
	ID        string `json:"id"`
	URI       string `json:"uri"`
	Name      string `json:"name"`
	Active    bool   `json:"active"`
	CreatedAt string `json:"created_at"`
}

type foreignList struct {
	ServiceUsers []foreignUser `json:"service_users"`
	URI          string        `json:"uri"`
	NextPageURI  *string       `json:"next_page_uri"`
}

func (c *foreign) do(method, link string, in, out any) error {
	ref, err := url.Parse(link)
	if err != nil {
		return err
	}
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, c.base.ResolveReference(ref).String(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer key")
	req.Header.Set("Ngrok-Version", "2")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		c.t.Fatalf("%s %s: got %s to %s, want no redirect", method, link, resp.Status, resp.Header.Get("Location"))
	}
	if resp.StatusCode >= 400 {
		e := new(foreignError)
		if err := json.NewDecoder(resp.Body).Decode(e); err != nil {
			return err
		}
		return e
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// list walks as the client's iterator does: a page without items is the end.
func (c *foreign) list(link string) (names []string, err error) {
	for {
		var page foreignList
		if err := c.do("GET", link, nil, &page); err != nil {
			return names, err
		}
		for _, u := range page.ServiceUsers {
			names = append(names, u.Name)
		}
		if len(page.ServiceUsers) == 0 || page.NextPageURI == nil {
			return names, nil
		}
		link = *page.NextPageURI
	}
}

func TestForeignClient(t *testing.T) {
	s := serve(t, store.Options{})
	for _, path := range []string{"", "/", "/some/path/", "/some/path?query=x"} {
		base, err := url.Parse(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		c := &foreign{t, base}
		type create struct {
			Name   string `json:"name,omitempty"`
			Active *bool  `json:"active,omitempty"`
		}
		type update struct {
			Name   *string `json:"name,omitempty"`
			Active *bool   `json:"active,omitempty"`
		}
		is := func(err error, status int32, code string) {
			t.Helper()
			var e *foreignError
			if !errors.As(err, &e) || e.StatusCode != status || e.ErrorCode != code || e.Msg == "" || !store.ValidID("op", e.Details["operation_id"]) {
				t.Errorf("got %v, want HTTP %d [%s] with an operation id", err, status, code)
			}
		}
		yes, no, empty := true, false, ""

		var a, b, got foreignUser
		is(c.do("POST", "/service_users", create{}, &a), 400, "ERR_NGROK_4109")
		if err := c.do("POST", "/service_users", create{Name: "a"}, &a); err != nil || !a.Active || a.Name != "a" || a.CreatedAt == "" {
			t.Fatalf("create: got %+v, %v", a, err)
		}
		is(c.do("POST", "/service_users", create{Name: "a"}, &b), 409, "ERR_NGROK_4112")
		if err := c.do("POST", "/service_users", create{Name: "b", Active: &no}, &b); err != nil || b.Active {
			t.Fatalf("create inactive: got %+v, %v", b, err)
		}
		if err := c.do("GET", a.URI, nil, &got); err != nil || got != a {
			t.Errorf("get by uri: got %+v, %v, want %+v", got, err, a)
		}
		if err := c.do("PATCH", "/service_users/"+b.ID, update{Active: &yes}, &got); err != nil || !got.Active || got.Name != "b" {
			t.Errorf("update: got %+v, %v", got, err)
		}
		is(c.do("PATCH", "/service_users/"+b.ID, update{Name: &empty}, &got), 400, "ERR_NGROK_4109")
		is(c.do("PATCH", "/service_users/", update{Active: &no}, &got), 404, "ERR_NOT_FOUND")
		is(c.do("GET", "/service_users/", nil, &got), 404, "ERR_NOT_FOUND")
		is(c.do("DELETE", "/service_users/", nil, nil), 404, "ERR_NOT_FOUND")
		is(c.do("GET", "/service_users?limit=0", nil, &got), 400, "ERR_NGROK_233")

		for i := range 5 {
			s.clock.Add(1e9)
			if err := c.do("POST", "/service_users", create{Name: fmt.Sprint(i)}, &got); err != nil {
				t.Fatal(err)
			}
		}
		want := []string{"4", "3", "2", "1", "0"}
		for _, query := range []string{"", "?limit=1", "?limit=2", "?limit=3", "?limit=100"} {
			names, err := c.list("/service_users" + query)
			if err != nil || len(names) != 7 || !slices.Equal(names[:5], want) {
				t.Errorf("list %s: got %q, %v, want %q and then a and b", query, names, err, want)
			}
		}
		var page foreignList
		for c.do("GET", "/service_users?limit=3", nil, &page) == nil && len(page.ServiceUsers) > 0 {
			for _, u := range page.ServiceUsers {
				if err := c.do("DELETE", u.URI, nil, nil); err != nil {
					t.Fatal(err)
				}
			}
			page = foreignList{}
		}
		is(c.do("GET", a.URI, nil, &got), 404, "ERR_NOT_FOUND")
		is(c.do("DELETE", a.URI, nil, nil), 404, "ERR_NOT_FOUND")
		if names, err := c.list("/service_users"); err != nil || len(names) != 0 {
			t.Errorf("list at the end: got %q, %v, want nothing", names, err)
		}
	}
}

// Keys and bot users, as such a client sends and reads them: what is nil or empty
// is left out, and a pointer to "" is sent.
func TestForeignKeys(t *testing.T) {
	s := serve(t, store.Options{})
	base, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := &foreign{t, base}
	type create struct {
		Description string  `json:"description,omitempty"`
		Metadata    string  `json:"metadata,omitempty"`
		OwnerID     *string `json:"owner_id,omitempty"`
	}
	type update struct {
		Description *string `json:"description,omitempty"`
		Metadata    *string `json:"metadata,omitempty"`
	}
	type key struct {
		ID          string  `json:"id"`
		URI         string  `json:"uri"`
		Description string  `json:"description"`
		Metadata    string  `json:"metadata"`
		CreatedAt   string  `json:"created_at"`
		Token       *string `json:"token"`
		OwnerID     string  `json:"owner_id"`
	}
	is := func(err error, status int32, code string) {
		t.Helper()
		var e *foreignError
		if !errors.As(err, &e) || e.StatusCode != status || e.ErrorCode != code {
			t.Errorf("got %v, want HTTP %d [%s]", err, status, code)
		}
	}
	var bot foreignUser
	// A client of this API has no place for a token here, so none is made (see TestNoFirstTokenForNgrok).
	if err := c.do("POST", "/bot_users", map[string]string{"name": "a"}, &bot); err != nil || !bot.Active || bot.URI != "/bot_users/"+bot.ID {
		t.Fatalf("create a bot user: got %+v, %v", bot, err)
	}
	var made, got key
	is(c.do("POST", "/api_keys", create{}, &got), 400, "ERR_INVALID_VALUE")
	if err := c.do("POST", "/api_keys", create{Description: "ci", OwnerID: &bot.ID}, &made); err != nil || made.Token == nil || made.Description != "ci" || made.OwnerID != bot.ID || made.CreatedAt == "" {
		t.Fatalf("create a key: got %+v, %v", made, err)
	}
	made.Token = nil // from now on
	if err := c.do("GET", made.URI, nil, &got); err != nil || got != made {
		t.Errorf("get: got %+v, %v, want %+v", got, err, made)
	}
	empty, m := "", "m"
	if err := c.do("PATCH", made.URI, update{Metadata: &m}, &got); err != nil || got.Description != "ci" || got.Metadata != "m" || got.Token != nil {
		t.Errorf("set the metadata: got %+v, %v", got, err)
	}
	if err := c.do("PATCH", made.URI, update{Description: &empty}, &got); err != nil || got.Description != "" || got.Metadata != "m" {
		t.Errorf("empty the description: got %+v, %v", got, err)
	}
	if err := c.do("PATCH", made.URI, update{}, &got); err != nil || got.Description != "" || got.Metadata != "m" {
		t.Errorf("change nothing: got %+v, %v", got, err)
	}
	is(c.do("PATCH", "/api_keys/", update{Metadata: &m}, &got), 404, "ERR_NOT_FOUND")
	is(c.do("DELETE", "/api_keys/", nil, nil), 404, "ERR_NOT_FOUND")
	if err := c.do("DELETE", made.URI, nil, nil); err != nil {
		t.Errorf("delete: got %v", err)
	}
	is(c.do("GET", made.URI, nil, &got), 404, "ERR_NOT_FOUND")
	is(c.do("DELETE", made.URI, nil, nil), 404, "ERR_NOT_FOUND")
}
