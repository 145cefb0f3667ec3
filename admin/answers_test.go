package admin

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/store"
)

// A person is not named after a permission whose key reads like an actor.
func TestAuditNameOfLocal(t *testing.T) {
	s := serve(t, store.Options{})
	s.by = store.Local
	s.run(r(`PUT /service_users/permissions {"permissions":[{"key":"local","name":"root","rules":["allow GET /a"]}]}`, `200`))
	if got := s.do(`GET /audit_events?names=true`).raw; strings.Contains(got, "actor_name") {
		t.Errorf("got %s", got)
	}
}

// Filters of the trail take names, also those of deleted, purged and renamed resources. An unknown
// value is an error.
func TestAuditNames(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"boss","role":"admin"}`, `201 {"id":"service_1","token_id":"token_1","token":"csu_1"}`),                          // 1 2
		r(`POST /service_users {"name":"old \"bot\"","labels":{"name":"boss"}}`, `201 {"id":"service_2","token_id":"token_2"}`),                         // 3 4
		r(`POST /permission_groups {"name":"readers","rules":[{"effect":"allow","methods":["GET"],"path":"/","name":"boss"}]}`, `201 {"id":"group_1"}`), // 5
		r(`PATCH /permission_groups/group_1 {"name":"viewers"}`, `200`),                                                                                 // 6
		r(`PUT /service_users/permissions {"permissions":[{"key":"a.b","name":"View","rules":["allow GET /a"]}]}`, `200`),                               // 7
	)
	p, _ := s.login("service_1", "csu_1")
	by, err := s.api.ServiceUserActor(p)
	if err != nil {
		t.Fatal(err)
	}
	s.by = by
	s.run(r(`DELETE /service_users/service_2`, `204`)) // 8
	s.by = HumanAdmin("carol")
	s.run(r(`DELETE /permission_groups/group_1`, `204`)) // 9
	check := func(rows map[string]string) {
		t.Helper()
		for query, want := range rows {
			s.run(r(`GET /audit_events?`+s.resolve(query), want))
		}
	}
	seqs := func(list ...int) string {
		var records []string
		for _, seq := range list {
			records = append(records, fmt.Sprintf(`{"seq":%d}`, seq))
		}
		return `200 {"audit_events":[` + strings.Join(records, ",") + `]}`
	}
	bot := url.QueryEscape(`old "bot"`)
	rows := map[string]string{
		"resource_id=boss": seqs(2, 1), "resource_id=service_1": seqs(2, 1), "resource_id=token_1": seqs(2), "resource_id=a.b": seqs(7),
		"resource_id=" + bot: seqs(8, 4, 3), "resource_id=viewers": seqs(9, 6, 5), "resource_id=readers": seqs(9, 6, 5), "resource_id=group_1": seqs(9, 6, 5),
		"actor=boss": seqs(8), "actor=service_1": seqs(8), "actor=carol": seqs(9), "actor=human:carol": seqs(9), "actor=local": seqs(7, 6, 5, 4, 3, 2, 1),
		"actor=system": seqs(), "actor=anonymous": seqs(), "actor=" + bot: seqs(), "action=token.rotate": seqs(), "action=member.": seqs(),
		"actor=boss&resource_id=" + bot: seqs(8), "actor=carol&resource_id=boss": seqs(),
		"actor=human:boss":         `400 ERR_INVALID_VALUE [actor] the audit trail does not know "human:boss"; an actor is local, human:NAME`,
		"actor=viewers":            `400 ERR_INVALID_VALUE [actor]`,
		"actor=readers":            `400 ERR_INVALID_VALUE [actor]`,
		"actor=service_0":          `400 ERR_INVALID_VALUE [actor]`,
		"resource_id=svc-000":      `400 ERR_INVALID_VALUE [resource_id] the audit trail does not know "svc-000"; name a service user`,
		"resource_id=Boss":         `400 ERR_INVALID_VALUE [resource_id]`,
		"resource_id=token_0":      `400 ERR_INVALID_VALUE [resource_id]`,
		"resource_id=View":         `400 ERR_INVALID_VALUE [resource_id]`,
		"resource_id=%25":          `400 ERR_INVALID_VALUE [resource_id]`,
		"resource_id=local":        `400 ERR_INVALID_VALUE [resource_id]`,
		"action=bogus":             `400 ERR_INVALID_VALUE [action] there is no action "bogus"; the actions are service_user.create, service_user.update, `,
		"action=token.&limit=1":    `200 {"audit_events":[{"seq":4}]}`,
		"names=true&limit=2":       `200 {"audit_events":[{"seq":9,"actor":"human:carol","resource_id":"group_1","resource_name":"viewers"},{"seq":8,"actor_name":"boss","resource_name":"old \"bot\""}]}`,
		"names=true&action=token.": `200 {"audit_events":[{"seq":4,"resource_name":"old \"bot\""},{"seq":2,"resource_name":"boss"}]}`,
	}
	check(rows)
	if got := s.do(`GET /audit_events`).raw; strings.Contains(got, "resource_name") || strings.Contains(got, "actor_name") {
		t.Errorf("got names that nobody asked for: %s", got)
	}
}

// An unchanged resource is not sent again; a list has no version, and is.
func TestIfNoneMatch(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	s.must(`POST /permission_groups {"name":"g"}`)
	for _, uri := range []string{"/service_users/service_1", "/service_users/service_1/tokens/token_1", "/permission_groups/group_1", "/api_keys/token_1", "/bot_users/service_1"} {
		tag := s.do("GET " + uri).header.Get("ETag")
		for header, want := range map[string]int{
			tag: 304, "W/" + tag: 304, `*`: 304, `"0", W/` + tag + ` ,"99"`: 304, `"99"`: 200, strings.Trim(tag, `"`): 200, `"0,` + tag[1:]: 200, `"x", *`: 200,
		} {
			for _, method := range []string{"GET ", "HEAD "} {
				got := s.do(method+uri, "If-None-Match: "+header)
				if got.status != want || got.header.Get("ETag") != tag || want == 304 && (got.raw != "" || got.header.Get("Content-Type") != "") {
					t.Errorf("%s%s If-None-Match %s: got %d with ETag %s and %q, want %d", method, uri, header, got.status, got.header.Get("ETag"), got.raw, want)
				}
				if got.header.Get("Accept-Patch") != acceptPatch {
					t.Errorf("%s%s: got Accept-Patch %q", method, uri, got.header.Get("Accept-Patch"))
				}
			}
		}
		changed := s.do(`PATCH `+uri+` {"description":"`+uri+`"}`, `If-None-Match: "99"`).header.Get("ETag")
		s.run(r(`GET `+uri, `200`, `If-None-Match: `+tag), r(`GET `+uri, `304`, `If-None-Match: `+tag, `If-None-Match: `+changed))
	}
	s.run(
		r(`GET /service_users`, `200`, `If-None-Match: *`),
		r(`GET /service_users/service_0`, `404`, `If-None-Match: *`),
		r(`GET /service_users/service_1?deleted=x`, `400`, `If-None-Match: *`),
		r(`POST /service_users/service_1 {}`, `405`),
	)
	for line, want := range map[string]string{
		`POST /service_users/service_1 {}`: acceptPatch, `PUT /permission_groups/group_1 {}`: acceptPatch, `OPTIONS /api_keys/token_1`: acceptPatch,
		`POST /service_users {"name":"b"}`: "", `GET /service_users`: "", `DELETE /service_users`: "",
	} {
		if got := s.do(line).header.Get("Accept-Patch"); got != want {
			t.Errorf("%s: got Accept-Patch %q, want %q", line, got, want)
		}
	}
}

// Each list says how many entries its pages have together, when it is asked.
func TestTotalCount(t *testing.T) {
	s := crowd(t)
	s.must(`POST /permission_groups {"name":"g","rules":["allow GET /a"],"member_condition":"user.role == 'member'"}`)
	s.must(`POST /permission_groups {"name":"h"}`)
	s.must(`POST /service_users/service_1/tokens {}`)
	check := func(rows map[string]int) {
		t.Helper()
		for uri, want := range rows {
			uri, join := s.resolve(uri), "?"
			if strings.Contains(uri, "?") {
				join = "&"
			}
			if got := s.do("GET " + uri).raw; strings.Contains(got, "total_count") {
				t.Errorf("%s: got a count that nobody asked for: %s", uri, got)
			}
			for next := any(uri + join + "total_count=true&limit=1"); next != nil; {
				got := s.must("GET " + next.(string))
				if got["total_count"] != float64(want) && fmt.Sprint(got["total_count"]) != fmt.Sprint(want) {
					t.Errorf("%s: got %v, want %d", next, got["total_count"], want)
				}
				next = got["next_page_uri"]
			}
		}
	}
	check(map[string]int{
		"/service_users": 5, "/bot_users": 5, "/service_users?team=ops": 3, "/service_users?sort=name": 5, "/service_users?deleted=true": 1, "/service_users?q=nothing": 0,
		"/service_users?filter=" + url.QueryEscape(`"ops" in obj.teams`): 3, "/service_users?sort=-name&filter=" + url.QueryEscape(`"ops" in obj.teams`): 3,
		"/service_users/service_1/tokens": 2, "/permission_groups": 2, "/permission_groups?name=g": 1, "/permission_groups/group_1/members": 3,
		"/api_keys": 6, "/service_users/who_can?method=GET&url=/a": 3, // two of them cannot log in
		"/audit_events": 16, "/audit_events?action=token.": 7,
	})
	s.by = s.api.HumanManager("carol", []string{"hr"}, nil)
	check(map[string]int{"/service_users": 2, "/permission_groups": 0, "/service_users?filter=true": 2})
}

// A filter knows every field of the answer that tells service users apart.
func TestFilterFields(t *testing.T) {
	s := crowd(t)
	s.must(`POST /permission_groups {"name":"g"}`)
	s.must(`PATCH /service_users/service_2 {"permission_groups":["group_1"]}`)
	for query, want := range map[string]string{
		`"group_1" in obj.permission_groups`:                         "Beta",
		`obj.permission_groups == []`:                                "100% delta gamma alpha",
		`obj.permission_groups.exists(g, g == "group_1")`:            "Beta",
		`obj.uri == "/service_users/service_1"`:                      "alpha",
		`obj.deleted_at == null`:                                     "100% delta gamma Beta alpha",
		`obj.deleted_at > now - duration("1h")`:                      "",
		`has(obj.expires_at)`:                                        "delta",
		`obj.expires_at != null && obj.expires_at < now`:             "delta",
		`obj.last_active_at == null || obj.last_active_at < now`:     "100% delta gamma Beta alpha",
		`!has(obj.labels.env) || obj.labels.env != "prod"`:           "delta gamma Beta",
		`obj.labels[?"env"].orValue("") == "test" && .obj.active`:    "Beta",
		`obj.?alias.orValue("") == "d@example"`:                      "delta",
		`size(obj.labels) == 2 && obj.labels.exists(k, k == "tier")`: "100%",
	} {
		for path, member := range map[string]string{"/service_users": "service_users", "/bot_users": "bot_users"} {
			text := s.resolve(query)
			if got := strings.Join(s.follow(path+"?filter="+url.QueryEscape(text), member), " "); got != want {
				t.Errorf("%s of %s: got %q, want %q", text, path, got, want)
			}
		}
	}
	if got := strings.Join(s.follow("/service_users?deleted=true&filter="+url.QueryEscape(`obj.deleted_at > now.subtract("1h")`), "service_users"), " "); got != "gone" {
		t.Errorf("of the deleted ones: got %q", got)
	}
}

// A search does not match the random part of an id.
func TestSearchByID(t *testing.T) {
	s := crowd(t)
	id := s.real["service_1"]
	for q, want := range map[string]string{
		id: "alpha", strings.ToUpper(id): "alpha", id[:len(id)-4]: "alpha", id[:len("service_")]: "", id[len("service_"):]: "", id[len(id)-6:]: "", "ser": "", "e_": "", id + "x": "",
	} {
		got := s.do("GET /service_users?q=" + q)
		if got.status != http.StatusOK || strings.Join(s.follow("/service_users?q="+q, "service_users"), " ") != want {
			t.Errorf("%s: got %s, want %q", q, got.raw, want)
		}
	}
}
