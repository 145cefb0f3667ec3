package admin

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// crowd is a server with service users of all kinds: service_1 to service_6.
func crowd(t *testing.T) *server {
	s := serve(t, store.Options{UseInterval: time.Hour})
	for _, u := range []string{
		`{"name":"alpha","role":"admin","teams":["ops"],"labels":{"env":"prod"}}`,
		`{"name":"Beta","role":"manager","teams":["hr"],"labels":{"env":"test"},"owner":"evelyn"}`,
		`{"name":"gamma","teams":["ops","hr"],"active":false}`,
		`{"name":"delta","teams":["ops"],"alias":"d@example","expires_at":"2026-01-02T03:04:12Z"}`,
		`{"name":"100%","display_name":"a_b!","labels":{"env":"prod","tier":"1"}}`,
		`{"name":"gone","teams":["ops"]}`,
	} {
		s.must("POST /service_users " + u)
	}
	s.run(r(`DELETE /service_users/service_6`, `204`))
	return s
}

// follow walks a list to its end, and returns the names.
func (s *server) follow(uri, member string) (names []string) {
	s.t.Helper()
	first, err := url.Parse(uri)
	if err != nil {
		s.t.Fatal(err)
	}
	for range 50 {
		a := s.do("GET " + uri)
		page, _ := parse(a.raw).(map[string]any)
		list, _ := page[member].([]any)
		next, _ := page["next_page_uri"].(string)
		if a.status != 200 || page["next_page_uri"] != nil && len(list) == 0 || page["uri"] != first.Path {
			s.t.Fatalf("%s: got %d %s", uri, a.status, a.text)
		}
		for _, u := range list {
			names = append(names, u.(map[string]any)["name"].(string))
		}
		if next == "" {
			return names
		}
		link, err := url.Parse(next)
		if err != nil || link.Host != "" || link.Path != first.Path {
			s.t.Fatalf("%s: got the link %s", uri, next)
		}
		for name, values := range first.Query() {
			if name != "before_id" && name != "cursor" && !slices.Equal(link.Query()[name], values) {
				s.t.Errorf("%s: got the link %s, want that it keeps %s", uri, next, name)
			}
		}
		if q := link.Query(); q.Has("before_id") == q.Has("cursor") {
			s.t.Errorf("%s: got the link %s, want one place in it", uri, next)
		}
		uri = next
	}
	s.t.Fatalf("%s: the walk does not end", uri)
	return nil
}

// TestHiddenCount checks the number of service users that only the parameter status leaves out.
func TestHiddenCount(t *testing.T) {
	s := crowd(t)
	for query, want := range map[string]string{
		"status=active&total_count=true&limit=1":                      "3 2",
		"status=active&total_count=true&limit=1&sort=-last_active_at": "3 2",
		"status=inactive&total_count=true":                            "1 4",
		"status=active&total_count=true&team=ops":                     "1 2",
		"status=active&total_count=true&q=gamma":                      "0 1",
		"total_count=true":                                            "5 <nil>",
		"status=active":                                               "<nil> <nil>",
		"status=active&total_count=true&filter=true":                  "3 <nil>",
	} {
		page := parse(s.do("GET /service_users?" + query).raw).(map[string]any)
		if got := fmt.Sprint(page["total_count"], page["hidden_count"]); got != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
}

func TestLists(t *testing.T) {
	s := crowd(t)
	p, _ := s.login("service_2", "csu_2")
	s.store.Use(p, s.now().Unix(), testAddr, "")
	if err := s.store.FlushUse(t.Context()); err != nil {
		t.Fatal(err)
	}
	check := func(rows map[string]string) {
		t.Helper()
		for query, want := range rows {
			values, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			for _, limit := range []string{"", "1", "2", "3"} {
				if values.Del("limit"); limit != "" {
					values.Set("limit", limit)
				}
				for path, member := range map[string]string{"/service_users": "service_users", "/bot_users": "bot_users"} {
					if got := strings.Join(s.follow(path+"?"+values.Encode(), member), " "); got != want {
						t.Errorf("%s?%s limit %s: got %q, want %q", path, query, limit, got, want)
					}
				}
			}
		}
	}
	check(map[string]string{
		"":                                "100% delta gamma Beta alpha",
		"sort=-created_at":                "100% delta gamma Beta alpha",
		"sort=created_at":                 "alpha Beta gamma delta 100%",
		"sort=name":                       "100% Beta alpha delta gamma",
		"sort=-name":                      "gamma delta alpha Beta 100%",
		"sort=role":                       "alpha Beta gamma delta 100%",
		"sort=-role":                      "100% delta gamma Beta alpha",
		"sort=last_active_at":             "alpha gamma delta 100% Beta",
		"sort=-last_active_at":            "Beta 100% delta gamma alpha",
		"q=ALPHA":                         "alpha",
		"q=a_b":                           "100%",
		"q=%25":                           "100%",
		"q=!":                             "100%",
		"q=evelyn":                        "Beta",
		"q=D%40EXAMPLE":                   "delta",
		"q=nothing":                       "",
		"role=member":                     "100% delta gamma",
		"team=ops":                        "delta gamma alpha",
		"team=Ops":                        "",
		"status=active":                   "100% Beta alpha",
		"status=inactive":                 "gamma",
		"status=expired":                  "delta",
		"name=beta":                       "",
		"name=Beta":                       "Beta",
		"deleted=true":                    "gone",
		"deleted=false&sort=name&q=delta": "delta",
		"team=ops&role=member&sort=name&status=inactive": "gamma",
	})
	filters := map[string]string{
		`true`: "100% delta gamma Beta alpha", `false`: "",
		`obj.name == "alpha"`: "alpha",
		`obj.id == "` + s.real["service_2"] + `" || obj.id in ["` + s.real["service_3"] + `"]`: "gamma Beta",
		`obj.created_at > timestamp("2026-01-02T03:04:08Z")`:                                   "100% delta",
		`obj.created_at < now.subtract("7d")`:                                                  "",
		`obj.created_at > timestamp("2026-01-03T03:04:08Z").subtract("1d")`:                    "100% delta",
		`now > obj.created_at && obj.active`:                                                   "100% delta Beta alpha",
		`obj.labels.env == "prod"`:                                                             "100% alpha",
		`obj.labels.env != "prod"`:                                                             "Beta", // the others have none
		`!("env" in obj.labels)`:                                                               "delta gamma",
		`has(obj.labels.tier)`:                                                                 "100%",
		`obj.expires_at == null`:                                                               "100% gamma Beta alpha",
		`obj.expires_at != null && obj.expires_at < now`:                                       "delta",
		`obj.last_active_at != null`:                                                           "Beta",
		`"ops" in obj.teams && size(obj.teams) == 1`:                                           "delta alpha",
		`obj.teams.exists(t, t.startsWith("h"))`:                                               "gamma Beta",
		`obj.role in ["admin","manager"]`:                                                      "Beta alpha",
	}
	rows := map[string]string{}
	for text, want := range filters {
		rows["filter="+url.QueryEscape(text)] = want
	}
	rows["sort=name&team=ops&filter="+url.QueryEscape(`obj.active`)] = "alpha delta"
	check(rows)

	s.by = s.api.HumanManager("carol", []string{"hr"}, nil)
	check(map[string]string{"": "gamma Beta", "sort=name": "Beta gamma", "q=alpha": "", "team=ops": "gamma", "deleted=true": "", "filter=true": "gamma Beta"})
}

func TestBadLists(t *testing.T) {
	s := crowd(t)
	next := func(uri string) url.Values {
		link, err := url.Parse(parse(s.do("GET " + uri).raw).(map[string]any)["next_page_uri"].(string))
		if err != nil {
			t.Fatal(err)
		}
		return link.Query()
	}
	byName, byUse := next("/service_users?sort=name&limit=1").Get("cursor"), next("/service_users?sort=last_active_at&limit=1").Get("cursor")
	const foreign = `400 ERR_INVALID_VALUE [cursor] is not from a next_page_uri of this list`
	forge := func(list, key, id string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(list + string(store.PlaceOf(key, s.resolve(id)))))
	}
	digest, digestOfUse := (&UserListQuery{Sort: "name"}).digest(), (&UserListQuery{Sort: "last_active_at"}).digest()
	const cel = `400 invalid_cel_expression [filter] `
	long := `obj.name == "` + strings.Repeat("x", maxFilterBytes) + `"`
	many := "[" + strings.TrimSuffix(strings.Repeat("1,", 25), ",") + "]"
	costly := many + ".all(a, " + many + ".all(b, " + many + ".all(c, a + b + c > 0)))"
	for query, want := range map[string]string{
		"sort=name&cursor=" + byName:                                        `200 {"service_users":[{"name":"Beta"},{"name":"alpha"},{"name":"delta"},{"name":"gamma"}]}`,
		"sort=name&limit=3&cursor=" + byName:                                `200`,
		"sort=-name&cursor=" + byName:                                       foreign,
		"sort=role&cursor=" + byName:                                        foreign,
		"cursor=" + byName:                                                  foreign,
		"sort=name&q=a&cursor=" + byName:                                    foreign,
		"sort=name&role=admin&cursor=" + byName:                             foreign,
		"sort=name&team=ops&cursor=" + byName:                               foreign,
		"sort=name&status=active&cursor=" + byName:                          foreign,
		"sort=name&filter=true&cursor=" + byName:                            foreign,
		"sort=name&deleted=true&cursor=" + byName:                           foreign,
		"sort=name&name=x&cursor=" + byName:                                 foreign,
		"sort=name&cursor=" + byUse:                                         foreign,
		"sort=name&cursor=x":                                                foreign,
		"sort=name&cursor=" + byName[1:]:                                    foreign,
		"sort=name&cursor=" + byName + "==":                                 foreign,
		"sort=last_active_at&cursor=" + forge(digestOfUse, "", "service_0"): `200`,
		"sort=name&cursor=":                                                 `400 ERR_NGROK_230 [cursor]`,
		"sort=name&cursor=" + forge(digest, "b", "x"):                       foreign,
		"sort=name&cursor=" + forge(digest[:7], "", "service_1"):            foreign,
		"sort=name&cursor=" + forge("", "b", "service_1"):                   foreign,
		"sort=name&cursor=" + forge(digest, "b", "service_0"):               `200 {"service_users":[{"name":"delta"},{"name":"gamma"}]}`,
		"sort=name&before_id=service_1":                                     `400 ERR_INVALID_VALUE [before_id] works only in the default order`,
		"sort=created_at&before_id=service_1":                               `400 ERR_INVALID_VALUE [before_id]`,
		"sort=-created_at&before_id=service_2":                              `200 {"service_users":[{"name":"alpha"}]}`,
		"before_id=service_1&cursor=" + byName:                              `400 ERR_INVALID_VALUE [before_id]`,
		"before_id=token_1":                                                 `400 ERR_NGROK_227 [before_id]`,
		"sort=Name":                                                         `400 ERR_INVALID_VALUE [sort] "Name" is none of created_at, display_name, last_active_at, name, next_token_end, role, status, teams, usable`,
		"sort=--name":                                                       `400 ERR_INVALID_VALUE [sort]`,
		"sort=-":                                                            `400 ERR_INVALID_VALUE [sort]`,
		"sort=id":                                                           `400 ERR_INVALID_VALUE [sort]`,
		"sort=":                                                             `400 ERR_NGROK_230 [sort]`,
		"sort=name&sort=role":                                               `400 ERR_NGROK_232 [sort]`,
		"role=Admin":                                                        `400 ERR_INVALID_VALUE [role] "Admin" is none of admin, manager, member`,
		"role=":                                                             `400 ERR_NGROK_230 [role]`,
		"status=on":                                                         `400 ERR_INVALID_VALUE [status] "on" is none of active, inactive, expired`,
		"deleted=1":                                                         `400 ERR_INVALID_VALUE [deleted] must be true or false`,
		"limit=0&sort=name":                                                 `400 ERR_NGROK_233 [limit]`,
		"q=":                                                                `400 ERR_NGROK_230 [q]`,
		"filter=":                                                           `400 ERR_NGROK_230 [filter]`,
		"filter=obj.":                                                       cel + `at character`,
		"filter=1":                                                          cel + `is a int, and must be true or false`,
		"filter=obj.name":                                                   cel + `is a string, and must be true or false`,
		"filter=obj.nmae%3D%3D1":                                            cel + `obj has no "nmae"; did you mean name? (at character 4)`,
		"filter=has(obj.token)":                                             cel + `obj has no "token"`,
		"filter=obj.owned_by%3D%3D1":                                        cel + `obj has no "owned_by"; it has active, alias, allowed_ips, created_at, created_by, deleted_at, description, display_name, expires_at, id, labels, last_active_at, name, owner, permission_groups, role, teams, updated_at, uri (at character 4)`,
		"filter=user.name%3D%3D1":                                           cel + `at character 1`,
		"filter=" + url.QueryEscape(`obj.active == "true"`):                 cel + `at character 12: found no matching overload`,
		"filter=" + url.QueryEscape(`obj.name > 3`):                         cel + `at character 10: found no matching overload`,
		"filter=" + url.QueryEscape(`obj.created_at > "2026"`):              cel + `at character 16: found no matching overload`,
		"filter=" + url.QueryEscape(`obj.teams == "ops"`):                   cel + `at character 11: found no matching overload`,
		"filter=" + url.QueryEscape(`3 in obj.teams`):                       cel + `at character 3: found no matching overload`,
		"filter=" + url.QueryEscape(`obj.labels.env == 1`):                  cel + `at character 16: found no matching overload`,
		"filter=" + url.QueryEscape(`obj.alias == null`):                    cel + `at character 11: found no matching overload`,
		"filter=" + url.QueryEscape(`obj["name"] == "a"`):                   cel + `at character 4: found no matching overload`,
		"filter=" + url.QueryEscape(`[obj].exists(o, o.active)`):            cel + `name a field of obj, such as obj.name`,
		"filter=" + url.QueryEscape(`now.subtract("x") < now`):              cel + `"x" is not a duration`,
		"filter=" + url.QueryEscape(`obj.created_at < timestamp("2026-11-21")`): cel + `at character 28: invalid timestamp argument`,
		"filter=" + url.QueryEscape(`"g" in obj.permission_groups`):             cel + `permission_groups has ids, group_…, and "g" is not one`,
		"total_count=1":                                      `400 ERR_INVALID_VALUE [total_count] must be true or false`,
		"created_by=nobody":                                  `400 ERR_INVALID_VALUE [created_by] "nobody" has created no service user`,
		"filter=" + url.QueryEscape(long):                    cel + `has 2014 bytes, at most 2000 are allowed`,
		"filter=" + url.QueryEscape(costly):                  cel + `costs too much for service_5; make it simpler`,
		"filter=" + url.QueryEscape(`timestamp("x") < now`):  cel + `at character`,
		"filter=" + url.QueryEscape(`obj.name.matches("(")`): cel + `at character`,
	} {
		s.run(r("GET /service_users?"+query, want), r("GET /bot_users?"+query, want[:3]), r("HEAD /service_users?"+query, want[:3]))
	}
	s.run(
		r(`GET /service_users/service_1?deleted=x`, `400 ERR_INVALID_VALUE [deleted]`),
		r(`GET /service_users/service_6`, `404 ERR_NOT_FOUND`),
		r(`GET /service_users/service_6?deleted=false`, `404`),
		r(`GET /service_users/service_6?deleted=true`, `200 {"name":"gone","active":false,"deleted_at":"t+7s","deleted_by":"local","was_active":true}`),
		r(`GET /service_users/service_1?deleted=true`, `200 {"name":"alpha","active":true}`),
	)
}

// A delete of many names the one that is in use, as a single delete does.
func TestDeleteManyInUse(t *testing.T) {
	s := crowd(t)
	p, _ := s.login("service_1", "csu_1")
	s.store.Use(p, s.now().Unix(), testAddr, "rule_x")
	s.run(
		r(`POST /service_users/bulk {"do":"delete","ids":["service_2","service_1"],"unless_used_within":"24h"}`,
			`409 {"error_code":"ERR_IN_USE","msg":"service_1: the service user was used at 2026-01-02T03:04:12Z from 192.0.2.1; deactivate it first, or delete it without the condition","details":{"last_used_at":"t+7s","addresses":"192.0.2.1","rules":"rule_x"}}`),
		r(`GET /service_users/service_2`, `200`),
	)
}

// Deleted by mistake, or only when nobody would break.
func TestDeleteAndUndelete(t *testing.T) {
	s := crowd(t)
	s.by = HumanAdmin("alice")
	p, _ := s.login("service_1", "csu_1")
	s.store.Use(p, s.now().Unix(), testAddr, "rule_x")
	s.run(
		r(`PATCH /service_users/service_1 {}`, `200 {"last_active_at":"t+7s"}`),
		r(`DELETE /service_users/service_1?unless_used_within=24h`, `409 {"error_code":"ERR_IN_USE","details":{"last_used_at":"t+7s","addresses":"192.0.2.1","rules":"rule_x"}}`),
		r(`DELETE /service_users/service_1?unless_used_within=1s`, `204`),
		r(`DELETE /service_users/service_2?unless_used_within=24h`, `204`),
		r(`DELETE /service_users/service_3?unless_used_within=0s`, `400 ERR_INVALID_VALUE [unless_used_within] "0s" is not a duration such as 90d or 36h`),
		r(`DELETE /service_users/service_3?unless_used_within=-1h`, `400 ERR_INVALID_VALUE [unless_used_within]`),
		r(`DELETE /service_users/service_3?unless_used_within=1`, `400 ERR_INVALID_VALUE [unless_used_within]`),
		r(`DELETE /service_users/service_3?unless_used_within=`, `400 ERR_NGROK_230 [unless_used_within]`),
		r(`DELETE /service_users/service_3?unless_used_within=1h`, `412 ERR_CHANGED`, `If-Match: "9"`),

		r(`POST /service_users/service_1/undelete`, `200 {"name":"alpha","active":false,"role":"admin","teams":["ops"],"last_active_at":"t+7s","undeleted":{"deleted_at":"t+10s","deleted_by":"human:alice","was_active":true}}`),
		r(`POST /service_users/service_1/undelete`, `409 ERR_CONFLICT the service user is not deleted`),
		r(`GET /service_users/service_1/tokens`, `200 {"tokens":[{"id":"token_1","state":"active","use_count":1,"last_used_ip":"192.0.2.1"}]}`),
		r(`POST /service_users/service_0/undelete`, `404 ERR_NOT_FOUND there is no service user "service_0"`),
		r(`POST /service_users/x/undelete`, `404 ERR_NOT_FOUND`),
		r(`POST /service_users/service_2/undelete {"active":true}`, `400 ERR_NGROK_214 [active]`),
		r(`POST /service_users {"name":"Beta","create_token":false}`, `201`),
		r(`POST /service_users/service_2/undelete`, `409 ERR_NGROK_4112 [name] "Beta" is taken by another service user`),
		r(`GET /service_users/service_1/undelete`, `405 ERR_METHOD_NOT_ALLOWED Allow: POST, OPTIONS`),
	)
	s.by = s.api.HumanManager("carol", []string{"ops"}, nil)
	s.run(
		r(`POST /service_users/service_6/undelete`, `403 ERR_NGROK_4111 only an admin may bring a service user back`),
		r(`GET /service_users/service_6?deleted=true`, `200 {"name":"gone"}`),
		r(`GET /service_users/service_2?deleted=true`, `404`),
		r(`GET /service_users?deleted=true`, `200 {"service_users":[{"id":"service_6","deleted_at":"t+7s"}]}`),
	)
	s.by = HumanAdmin("alice")
	s.clock.Add(int64(30 * 24 * time.Hour))
	s.run(r(`POST /service_users/service_6/undelete`, `409 ERR_CONFLICT the service user was deleted too long ago`))
}

// A deleted permission group shows the actor of the deletion and what it had, and comes back.
func TestUndeleteGroup(t *testing.T) {
	s := crowd(t)
	s.run(
		r(`PUT /service_users/permissions {"permissions":[{"key":"p","name":"P","rules":["allow GET /p"]}]}`, `200`),
		r(`POST /permission_groups {"name":"readers","mode":"observe","permissions":["p"],"rules":["allow GET /a"]}`, `201 {"id":"group_1"}`),
		r(`PUT /permission_groups/group_1/members/service_1`, `204`),
	)
	s.by = HumanAdmin("alice")
	s.clock.Add(int64(time.Second))
	const deleted = `"deleted_at":"t+12s","deleted_by":"human:alice"`
	const tombstone = `{"id":"group_1","name":"readers","mode":"observe","permissions":["p"],"rules":[{"text":"allow GET /a"}],"member_count":1,` + deleted + `}`
	s.run(
		r(`DELETE /permission_groups/group_1`, `204`),
		r(`GET /permission_groups/group_1`, `404`),
		r(`GET /permission_groups`, `200 {"permission_groups":[]}`),
		r(`GET /permission_groups?deleted=false`, `200 {"permission_groups":[]}`),
		r(`GET /permission_groups?deleted=true`, `200 {"permission_groups":[`+tombstone+`],"next_page_uri":null}`),
		r(`GET /permission_groups?deleted=true&name=readers`, `200 {"permission_groups":[`+tombstone+`]}`),
		r(`GET /permission_groups?deleted=true&name=other`, `200 {"permission_groups":[]}`),
		r(`GET /permission_groups?deleted=1`, `400 ERR_INVALID_VALUE [deleted]`),
		r(`GET /audit_events?resource_id=service_1&action=permission_group.`, `200 {"audit_events":[{"action":"permission_group.delete","resource_id":"group_1"}]}`),
		r(`POST /permission_groups/x/undelete`, `404`),
		r(`POST /permission_groups/group_0/undelete`, `404 ERR_NOT_FOUND there is no permission group "group_0"`),
		r(`POST /permission_groups/group_1/undelete {"mode":"enforce"}`, `400 ERR_NGROK_214 [mode]`),
	)
	s.by = s.api.HumanManager("carol", []string{"ops"}, nil)
	s.run(
		r(`POST /permission_groups/group_1/undelete`, `403 ERR_NGROK_4111`),
		r(`GET /permission_groups?deleted=true`, `403 ERR_NGROK_4111 only an admin may list deleted permission groups`),
	)
	s.by = HumanAdmin("alice")
	s.run(
		r(`POST /permission_groups/group_1/undelete`, `200 {"id":"group_1","name":"readers","mode":"observe","permissions":["p"],"rules":[{"text":"allow GET /a"}],"member_count":1,"undeleted":{`+deleted+`}}`),
		r(`POST /permission_groups/group_1/undelete`, `409 ERR_CONFLICT the permission group is not deleted`),
		r(`GET /service_users/service_1`, `200 {"permission_groups":["group_1"]}`),
		r(`GET /audit_events?resource_id=service_1&action=permission_group.&limit=1`, `200 {"audit_events":[{"action":"permission_group.undelete"}]}`),
		r(`DELETE /permission_groups/group_1`, `204`),
	)
	s.clock.Add(int64(30 * 24 * time.Hour))
	s.run(r(`POST /permission_groups/group_1/undelete`, `409 ERR_CONFLICT the permission group was deleted too long ago`))
}
