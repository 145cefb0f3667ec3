package admin

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// The catalogue: loaded as a whole, given to groups by its keys.
func TestPermissions(t *testing.T) {
	s := serve(t, store.Options{})
	const uri = "/service_users/permissions"
	permission := func(key, name, description, category, rules, created, updated string) string {
		return fmt.Sprintf(`{"key":"%s","uri":"/service_users/permissions?key=%s","name":"%s","description":"%s","category":"%s","rules":[%s],"created_at":"%s","created_by":"local","updated_at":"%s"}`, key, key, name, description, category, rules, created, updated)
	}
	list := func(permissions ...string) string {
		return `200 = {"permissions":[` + strings.Join(permissions, ",") + `],"uri":"/service_users/permissions","next_page_uri":null}`
	}
	change := func(created, updated, unchanged, deleted int) string {
		return fmt.Sprintf(`200 = {"created":%d,"updated":%d,"unchanged":%d,"deleted":%d,"uri":"/service_users/permissions"}`, created, updated, unchanged, deleted)
	}
	put := func(body string) string { return "PUT " + uri + " " + body }
	view := `{"key":"people.address.view","name":"View","description":"d","category":"Address","rules":["allow GET /v1/people/{id}/address"]}`
	edit := `{"key":"people.address.edit","name":"Edit","category":"Address","rules":["allow PUT,PATCH /v1/people/{id}/address","deny PUT /v1/people/me/address"]}`
	s.run(
		r(`GET `+uri, list()),
		r(put(`{"permissions":[`+view+`,`+edit+`]}`), change(2, 0, 0, 0)),
		r(put(`{"permissions":[`+view+`,`+edit+`]}`), change(0, 0, 2, 0)),
		r(`PUT `+uri+`/ {"permissions":[{"key":"reports.view","name":"Reports","rules":["allow GET  api.example.com/v1/reports  when user.role == 'member'"]},`+strings.Replace(edit, `"Edit"`, `"Change"`, 1)+`]}`, change(1, 1, 0, 0)),
		r(put(`{"permissions":[]}`), change(0, 0, 0, 0)),
		r(put(`{}`), change(0, 0, 0, 0)),
		r(`PUT `+uri, change(0, 0, 0, 0)),
	)
	shownView := permission("people.address.view", "View", "d", "Address", `"allow GET /v1/people/{id}/address"`, "t+2s", "t+2s")
	shownEdit := permission("people.address.edit", "Change", "", "Address", `"allow PUT,PATCH /v1/people/{id}/address","deny PUT /v1/people/me/address"`, "t+2s", "t+4s")
	shownReports := permission("reports.view", "Reports", "", "", `"allow GET api.example.com/v1/reports when user.role == 'member'"`, "t+4s", "t+4s")
	s.run(
		r(`GET `+uri+`?key=people.address.view`, list(shownView)),
		r(`GET `+uri+`/?category=Address&key=people.address.edit`, list(shownEdit)),
		r(`GET `+uri+`?category=Address`, `200 {"permissions":[{"category":"Address"},{"category":"Address"}]}`),
		r(`GET `+uri+`?category=address`, `400 ERR_INVALID_VALUE [category] no permission has the category "address"`),
		r(`GET `+uri+`?category=People&key=people.address.view`, `400 ERR_INVALID_VALUE [category]`),
		r(`GET `+uri+`?key=people.address`, list()),
		r(`GET `+uri+`?key=reports.view`, list(shownReports)),
		r(`GET `+uri+`?key=`, `400 ERR_NGROK_230 [key] is empty`),
		r(`GET `+uri+`?name=View`, `400 ERR_NGROK_231 [name]`),
		r(`HEAD `+uri, `200`),

		// Loaded to replace: what is not in it goes.
		r(put(`{"permissions":[`+view+`],"replace":true}`), change(0, 0, 1, 2)),
		r(`GET `+uri, list(shownView)),
		r(put(`{"permissions":[`+edit+`,`+view+`],"replace":true}`), change(1, 0, 1, 0)),
	)

	// What is wrong, and where. Nothing of such a list is taken.
	one := func(member string) string {
		return put(`{"permissions":[` + view + `,{"key":"new","name":"New","rules":["allow GET /new"]` + member + `}]}`)
	}
	with := func(key, name, rules string) string {
		return put(fmt.Sprintf(`{"permissions":[%s,{"key":"new","name":"New","rules":["allow GET /new"]},{"key":%q,"name":%q,"rules":%s}]}`, view, key, name, rules))
	}
	const badKey = `must be lower-case words of letters, digits and "_", joined by dots, at most 64 characters, such as people.address.view`
	s.run(
		r(put(`{"permissions":[`+view+`,`+edit+`,`+view+`]}`), `400 ERR_INVALID_VALUE [permissions.2] the key "people.address.view" is in the list twice, as permissions.0 and permissions.2`),
		r(with("New", "n", `["allow GET /x"]`), `400 ERR_INVALID_VALUE [permissions.2.key] "New" `+badKey),
		r(with("", "n", `["allow GET /x"]`), `400 ERR_INVALID_VALUE [permissions.2.key] "" `+badKey),
		r(with("a..b", "n", `["allow GET /x"]`), `400 ERR_INVALID_VALUE [permissions.2.key] "a..b" `+badKey),
		r(with("é", "n", `["allow GET /x"]`), `400 ERR_INVALID_VALUE [permissions.2.key] "é" `+badKey),
		r(with("a/b", "n", `["allow GET /x"]`), `400 ERR_INVALID_VALUE [permissions.2.key] "a/b" `+badKey),
		r(with(strings.Repeat("a", 65), "n", `["allow GET /x"]`), `400 ERR_INVALID_VALUE [permissions.2.key]`),
		r(with("x", "", `["allow GET /x"]`), `400 ERR_INVALID_VALUE [permissions.2.name] must not be empty`),
		r(with("x", " n", `["allow GET /x"]`), `400 ERR_INVALID_VALUE [permissions.2.name] must not begin or end with white space`),
		r(with("x", "n", `[]`), `400 ERR_INVALID_VALUE [permissions.2.rules] a permission stands for 1 to 500 rules`),
		r(with("x", "n", `null`), `400 ERR_INVALID_VALUE [permissions.2.rules] a permission stands for 1 to 500 rules`),
		r(with("x", "n", `["allow GET /x"`+strings.Repeat(`,"allow GET /x"`, 500)+`]`), `400 ERR_INVALID_VALUE [permissions.2.rules] a permission stands for 1 to 500 rules`),
		r(with("x", "n", `["allow GET /x","allow get /x"]`), `400 ERR_INVALID_VALUE [permissions.2.rules.1] rule "allow get /x": method "get": methods are written in upper case, "GET"`),
		r(with("x", "n", `["allow GET x"]`), `400 ERR_INVALID_VALUE [permissions.2.rules.0] rule "allow GET x": path "x": a path starts with "/"`),
		r(with("x", "n", `["allow GET /x when user.nam == 'a'"]`), `400 ERR_INVALID_VALUE [permissions.2.rules.0] rule "allow GET /x when user.nam == 'a'": condition "user.nam == 'a'": at character 5: undefined field 'nam'`),
		r(with("x", "n", `["allow GET /x when params.id == 'a'"]`), `400 ERR_INVALID_VALUE [permissions.2.rules.0] rule "allow GET /x when params.id == 'a'": condition "params.id == 'a'": the path has no {id}`),
		r(with("x", "n", `[{"effect":"allow","methods":["GET"],"path":"/x"}]`), `400 ERR_INVALID_VALUE [permissions.2.rules.0] must not be a JSON object`),
		r(with("x", "n", `"allow GET /x"`), `400 ERR_INVALID_VALUE [permissions.2.rules] must not be a JSON string`),
		r(one(`,"description":"a\u0000b"`), `400 ERR_INVALID_VALUE [permissions.1.description] must not hold the control character U+0000`),
		r(one(`,"category":"a\nb"`), `400 ERR_INVALID_VALUE [permissions.1.category] must not hold the control character U+000A`),
		r(one(`,"category":"`+strings.Repeat("é", 256)+`"`), `400 ERR_INVALID_VALUE [permissions.1.category] is 256 characters long`),
		r(one(`,"groups":[]`), `400 ERR_NGROK_214 [permissions.1.groups] there is no such field`),
		r(one(`,"key":"other"`), `400 ERR_NGROK_213 [permissions.1.key] the field appears in the body twice`),
		r(put(`{"permission":[]}`), `400 ERR_NGROK_214 [permission]`),
		r(put(`{"permissions":{}}`), `400 ERR_INVALID_VALUE [permissions] must not be a JSON object`),
		r(put(`{"permissions":[],"replace":"yes"}`), `400 ERR_INVALID_VALUE [replace] must not be a JSON string`),
		r(put(`[]`), `400 ERR_INVALID_VALUE the body must not be a JSON array`),
		r(`PUT `+uri+`?replace=true {}`, `400 ERR_NGROK_231 [replace]`),
		r(put(`{"permissions":[{"key":"new","name":"New","rules":["allow GET /new"],"description":"`+strings.Repeat("x", maxBody)+`"}]}`), `413 ERR_BODY_TOO_LARGE`),
		r(`POST `+uri+` {}`, `405 ERR_METHOD_NOT_ALLOWED`),
		r(`GET `+uri+`?key=new`, list()),

		// To move them is a change as well.
		r(put(`{"permissions":[`+view+`,`+edit+`],"replace":true}`), change(0, 0, 2, 0)),
		r(`GET /audit_events?limit=1`, `200 {"audit_events":[{"action":"permission.reorder","resource_id":"permissions",`+
			`"before":{"permissions":["people.address.edit","people.address.view"]},"after":{"permissions":["people.address.view","people.address.edit"]}}]}`),
		r(put(`{"permissions":[`+edit+`,`+view+`],"replace":true}`), change(0, 0, 2, 0)),
	)

	// In groups: given when the group is made or changed, or one by one.
	s.run(
		r(`POST /permission_groups {"name":"g","permissions":["people.address.view","people.address.edit","people.address.view"],"rules":["allow GET /own"]}`,
			`201 {"id":"group_1","permissions":["people.address.edit","people.address.view"],"rules":[{"text":"allow GET /own"}]}`),
		r(`POST /permission_groups {"name":"h","permissions":["people.address.view","nothing"]}`, `400 ERR_INVALID_VALUE [permissions] there is no permission "nothing" in the catalogue; load it first`),
		r(`POST /permission_groups {"name":"h","permissions":"people.address.view"}`, `400 ERR_INVALID_VALUE [permissions] must not be a JSON string`),
		r(`POST /permission_groups {"name":"h","permissions":[""]}`, `400 ERR_INVALID_VALUE [permissions] there is no permission ""`),
		r(`POST /permission_groups {"name":"h"}`, `201 {"id":"group_2","permissions":[]}`),
		r(`PUT /permission_groups/group_2/permissions/people.address.view`, `204`),
		r(`PUT /permission_groups/group_2/permissions/people.address.view/ {}`, `204`),
		r(`GET /permission_groups/group_2`, `200 {"permissions":["people.address.view"],"rules":[],"etag":"\"2\""}`),
		r(`PUT /permission_groups/group_2/permissions/nothing`, `400 ERR_INVALID_VALUE [permissions] there is no permission "nothing" in the catalogue; load it first`),
		r(`PUT /permission_groups/group_2/permissions/people.address.view {"key":"x"}`, `400 ERR_NGROK_214 [key]`),
		r(`PUT /permission_groups/group_0/permissions/people.address.view`, `404 ERR_NOT_FOUND there is no permission group "group_0"`),
		r(`PUT /permission_groups/h/permissions/people.address.view`, `404 ERR_NOT_FOUND there is no such resource`),
		r(`PUT /permission_groups/group_2/permissions/`, `404 ERR_NOT_FOUND`),
		r(`GET /permission_groups/group_2/permissions`, `404 ERR_NOT_FOUND`),
		r(`GET /permission_groups/group_2/permissions/people.address.view`, `405 ERR_METHOD_NOT_ALLOWED Allow: PUT, DELETE, OPTIONS`),
		r(`PATCH /permission_groups/group_2 {"description":"d"}`, `200 {"permissions":["people.address.view"]}`),
		r(`PATCH /permission_groups/group_2 {"permissions":["people.address.edit"]}`, `200 {"permissions":["people.address.edit"]}`),
		r(`PATCH /permission_groups/group_2 {"permissions":["nothing"]}`, `400 ERR_INVALID_VALUE [permissions] there is no permission "nothing"`),
		r(`GET /permission_groups`, `200 {"permission_groups":[{"name":"h","permissions":["people.address.edit"]},{"name":"g"}]}`),

		r(`POST /service_users {"name":"a","permission_groups":["group_2"]}`, `201 {"token":"csu_1"}`),
	)
	s.expect("service_1", "PUT /v1/people/7/address", map[string]access.Reason{"csu_1": access.Granted})
	s.expect("service_1", "PUT /v1/people/me/address", map[string]access.Reason{"csu_1": access.DeniedByRule})
	s.expect("service_1", "GET /v1/people/7/address", map[string]access.Reason{"csu_1": access.NoRule})
	if got, want := s.why(`service_1 PUT /v1/people/7/address`), `allow granted people.address.edit of group_2 by name`; got != want {
		t.Errorf("explain: got %s, want %s", got, want)
	}

	// Groups follow what is loaded, at once. What a group has stays.
	s.run(
		r(put(`{"permissions":[{"key":"people.address.edit","name":"Edit","rules":["allow PUT /v2/people/{id}/address"]}]}`), change(0, 1, 0, 0)),
	)
	s.expect("service_1", "PUT /v1/people/7/address", map[string]access.Reason{"csu_1": access.NoRule})
	s.expect("service_1", "PUT /v2/people/7/address", map[string]access.Reason{"csu_1": access.Granted})
	s.run(
		r(`DELETE `+uri+`?key=people.address.edit`, `409 ERR_CONFLICT [permissions] the permission "people.address.edit" is given to g, h; withdraw it there first`),
		r(put(`{"permissions":[],"replace":true}`), `409 ERR_CONFLICT [permissions] the permission "people.address.edit" is given to g, h; withdraw it there first`),
		r(put(`{"replace":true}`), `409 ERR_CONFLICT [permissions]`),
		r(`GET `+uri, `200 {"permissions":[{"key":"people.address.edit"},{"key":"people.address.view"}]}`),
		r(`DELETE /permission_groups/group_2/permissions/people.address.edit`, `204`),
		r(`DELETE /permission_groups/group_2/permissions/people.address.edit/`, `204`),
		r(`GET /permission_groups/group_2`, `200 {"permissions":[]}`),
	)
	s.expect("service_1", "PUT /v2/people/7/address", map[string]access.Reason{"csu_1": access.NoRule})
	s.run(
		r(`DELETE /permission_groups/group_0/permissions/people.address.edit`, `404 ERR_NOT_FOUND there is no permission group "group_0"`),
		r(`PATCH /permission_groups/group_1 {"permissions":null}`, `200 {"permissions":[],"rules":[{"text":"allow GET /own"}]}`),
		r(`DELETE `+uri, `400 ERR_INVALID_VALUE [key] name the permission to delete`),
		r(`DELETE `+uri+`?key=`, `400 ERR_NGROK_230 [key]`),
		r(`DELETE `+uri+`?key=people.address.edit&key=people.address.view`, `400 ERR_NGROK_232 [key]`),
		r(`DELETE `+uri+`?category=Address`, `400 ERR_NGROK_231 [category]`),
		r(`DELETE `+uri+`?key=people.address.edit`, `204`),
		r(`DELETE `+uri+`?key=people.address.edit`, `404 ERR_NOT_FOUND there is no permission "people.address.edit"`),
		r(`DELETE `+uri+`/?key=people.address.view`, `204`),
		r(`GET `+uri, list()),
	)

	// Any script in names, and what would be syntax elsewhere.
	s.run(
		r(put(`{"permissions":[{"key":"u","name":"Адреса <b>&{{7}}","description":"第一行\nsecond 😀","category":"Données: ’a’","rules":["allow GET /v1/é/{id}"]}]}`), change(1, 0, 0, 0)),
		r(`GET `+uri+`?category=`+url.QueryEscape("Données: ’a’"), `200 {"permissions":[{"key":"u","name":"Адреса <b>&{{7}}","description":"第一行\nsecond 😀","rules":["allow GET /v1/é/{id}"]}]}`),
	)
}

// The example loads as it stands, each permission for its own rules.
func TestExampleCatalogue(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "examples", "hibob-permissions.json"))
	if err != nil {
		t.Fatal(err)
	}
	var in Catalogue
	if err := json.Unmarshal(text, &in); err != nil {
		t.Fatal(err)
	}
	s := serve(t, store.Options{})
	want := fmt.Sprintf(`200 = {"created":%d,"updated":0,"unchanged":0,"deleted":0,"uri":"/service_users/permissions"}`, len(in.Permissions))
	s.run(r("PUT /service_users/permissions "+string(text), want))
	var list PermissionList
	if err := json.Unmarshal([]byte(s.do("GET /service_users/permissions").raw), &list); err != nil {
		t.Fatal(err)
	}
	var all []string
	for i, p := range in.Permissions {
		got := list.Permissions[i]
		if got.Key != p.Key || got.Name != p.Name || got.Description != p.Description || got.Category != p.Category || !slices.Equal(got.Rules, p.Rules) {
			t.Errorf("permission %d: got %+v, want %+v", i, got, p)
		}
		all = append(all, fmt.Sprintf("%q", p.Key))
	}
	if warnings := s.must(`POST /permission_groups {"name":"all","permissions":[` + strings.Join(all, ",") + `]}`)["warnings"]; warnings != nil {
		t.Errorf("all in one group: got the warnings %v, want none", warnings)
	}
}

// TestGroupPreview: a preview shows the members and the rules that come and go, and changes nothing.
func TestGroupPreview(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /permission_groups {"name":"readers","rules":["allow GET /a"]}`, `201`),
		r(`POST /permission_groups {"name":"others","rules":["allow GET /a"]}`, `201`),
		r(`POST /service_users {"name":"a","permission_groups":["group_1"]}`, `201`),
		r(`POST /service_users {"name":"b","labels":{"env":"prod"},"permission_groups":["group_2"]}`, `201`),
		r(`POST /service_users {"name":"c"}`, `201`), // its label is missing, so the condition is in doubt
	)
	const uri = `POST /permission_groups/group_1/preview `
	const none = `{"count":0,"service_users":[]}`
	const b = `"count":1,"service_users":[{"id":"service_2","name":"b"}]`
	s.run(
		r(uri+`{}`, `200 {"effects":[],"joins":`+none+`,"leaves":`+none+`}`),
		r(uri+`{"member_condition":"user.labels.env == \"prod\""}`,
			`200 {"permission_group":{"member_count":2},"effects":[],"joins":{`+b+`},"leaves":`+none+`}`),
		r(uri+`{"member_condition":"user.labels.env == \"prod\"","rules":["deny GET /b"]}`,
			`200 {"effects":[{"gains":[],"loses":["deny GET /b"],"count":2},{"gains":[],"loses":["allow GET /a","deny GET /b"],"count":1}],"joins":{`+b+`}}`),
		r(uri+`{"mode":"observe"}`, `200 {"effects":[{"gains":[],"loses":["allow GET /a"],"count":1,"service_users":[{"id":"service_1","name":"a"}]}]}`),
		r(`PATCH /permission_groups/group_1 {"member_condition":"user.name != \"a\""}`, `200 {"member_count":3}`),
		r(uri+`{"member_condition":""}`, `200 {"joins":`+none+`,"leaves":{"count":2}}`),
		r(`GET /permission_groups/group_1`, `200 {"member_condition":"user.name != \"a\"","rules":[{"text":"allow GET /a"}]}`),
	)
}
