package admin

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// What a manager sees and changes: members that share a team with it and hold
// no group that it does not hold. What it does not see does not exist for it.
func TestManager(t *testing.T) {
	s := serve(t, store.Options{DefaultGroup: "everyone"})
	s.run(
		r(`POST /permission_groups {"name":"readers","rules":["allow GET /v1/{x}"]}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"writers","rules":["allow PUT /v1/{x}"]}`, `201 {"id":"group_2"}`),
		r(`POST /permission_groups {"name":"everyone","rules":["allow GET /hello"]}`, `201 {"id":"group_3"}`),
		r(`POST /service_users {"name":"manager","role":"manager","teams":["finance","ops"],"permission_groups":["group_1"]}`, `201 {"id":"service_1","token":"csu_1"}`),
		r(`POST /service_users {"name":"reader","teams":["finance"],"permission_groups":["group_1"]}`, `201 {"id":"service_2"}`),
		r(`POST /service_users {"name":"writer","teams":["finance","hr"],"permission_groups":["group_1","group_2"]}`, `201 {"id":"service_3"}`),
		r(`POST /service_users {"name":"admin","role":"admin","teams":["ops"]}`, `201 {"id":"service_4"}`),
		r(`POST /service_users {"name":"outsider","teams":["hr"],"permission_groups":["group_1"]}`, `201 {"id":"service_5","token_id":"token_5"}`),
		r(`POST /service_users {"name":"plain"}`, `201 {"id":"service_6"}`),
		r(`POST /service_users {"name":"peer","role":"manager","teams":["ops"]}`, `201 {"id":"service_7"}`),
	)
	p, why := s.login("service_1", "csu_1")
	by, err := s.api.ServiceUserActor(p)
	if why != access.Granted || err != nil {
		t.Fatalf("got %s, %v, want an actor", why, err)
	}
	s.by = by
	const refused = `403 ERR_NGROK_4111 `
	s.run(
		// What it sees.
		r(`GET /service_users`, `200 {"service_users":[{"name":"peer"},{"name":"admin"},{"name":"writer"},{"name":"reader"},{"name":"manager"}],"next_page_uri":null}`),
		r(`GET /service_users?limit=2`, `200 {"service_users":[{"name":"peer"},{"name":"admin"}],"next_page_uri":"/service_users?before_id=service_4&limit=2"}`),
		r(`GET /service_users?limit=2&before_id=service_4`, `200 {"service_users":[{"name":"writer"},{"name":"reader"}],"next_page_uri":"/service_users?before_id=service_2&limit=2"}`),
		r(`GET /service_users?limit=2&before_id=service_2`, `200 {"service_users":[{"name":"manager"}],"next_page_uri":null}`),
		r(`GET /service_users?name=outsider`, `200 {"service_users":[]}`),
		r(`GET /service_users/service_1`, `200 {"name":"manager"}`),
		r(`GET /service_users/service_4/tokens`, `200 {"tokens":[{"service_user_id":"service_4"}]}`),
		r(`GET /permission_groups`, `200 {"permission_groups":[{"name":"everyone"},{"name":"readers"}]}`),
		r(`GET /permission_groups/group_1/rules`, `200 {"rules":[{"path":"/v1/{x}"}]}`),
		r(`GET /permission_groups/group_1/members`, `200 {"members":[{"name":"writer"},{"name":"reader"},{"name":"manager"}],"next_page_uri":null}`),

		// What it changes, and who is said to have done it.
		r(`POST /service_users {"name":"new","teams":["ops"],"permission_groups":["group_1"]}`, `201 {"id":"service_8","created_by":"service_1","token_id":"token_8","token":"csu_8"}`),
		r(`PATCH /service_users/service_8 {"description":"d","teams":["finance","ops"],"permission_groups":[],"labels":{"a":"b"}}`, `200 {"created_by":"service_1"}`),
		r(`POST /service_users/service_8/tokens {"permission_groups":["group_1"]}`, `201 {"created_by":"service_1"}`),
		r(`POST /service_users/service_2/tokens/token_2/refresh {"grace":"1h"}`, `201`),
		r(`DELETE /service_users/service_2/tokens/token_2`, `204`),
		r(`PUT /permission_groups/group_1/members/service_8`, `204`),
		r(`DELETE /permission_groups/group_1/members/service_8`, `204`),
		r(`PATCH /service_users/service_8 {"active":false}`, `200 {"active":false}`),
		r(`DELETE /service_users/service_8`, `204`),

		// What it sees but must not change.
		r(`PATCH /service_users/service_1 {"description":"x"}`, refused+`a manager cannot change itself`),
		r(`DELETE /service_users/service_1`, refused+`a manager cannot change itself`),
		r(`POST /service_users/service_1/tokens {}`, refused+`a manager cannot change itself`),
		r(`POST /service_users/service_1/tokens/token_1/refresh`, refused+`a manager cannot change itself`),
		r(`PUT /permission_groups/group_3/members/service_1`, refused+`a manager cannot change itself`),
		r(`PATCH /service_users/service_3 {"description":"x"}`, refused+`[permission_groups] a manager reaches only`),
		r(`PATCH /service_users/service_3 {"permission_groups":[]}`, refused+`[permission_groups]`),
		r(`POST /service_users/service_3/tokens {}`, refused+`[permission_groups]`),
		r(`POST /service_users/service_3/tokens/token_3/refresh {"grace":"1h"}`, refused+`[permission_groups]`),
		r(`PATCH /service_users/service_3/tokens/token_3 {"ttl":"1d"}`, refused+`[permission_groups]`),
		r(`DELETE /service_users/service_3/tokens/token_3`, refused+`[permission_groups]`),
		r(`DELETE /service_users/service_3`, refused+`[permission_groups]`),
		r(`DELETE /permission_groups/group_1/members/service_3`, refused+`[permission_groups]`),
		r(`PATCH /service_users/service_4 {"active":false}`, refused+`[role] a manager reaches only`),
		r(`PATCH /service_users/service_4 {"role":"member"}`, refused+`[role]`),
		r(`DELETE /service_users/service_4`, refused+`[role]`),
		r(`POST /service_users/service_4/tokens {}`, refused+`[role]`),
		r(`PATCH /service_users/service_7 {"active":false}`, refused+`[role]`),
		r(`POST /service_users {"name":"x","role":"manager","teams":["ops"]}`, refused+`[role]`),
		r(`POST /service_users {"name":"x","role":"admin","teams":["ops"]}`, refused+`[role]`),
		r(`POST /service_users {"name":"x","teams":["hr"]}`, refused+`[teams]`),
		r(`POST /service_users {"name":"x","teams":["ops","hr"]}`, refused+`[teams] a manager can add and remove only teams`),
		r(`POST /service_users {"name":"x"}`, refused+`[teams]`),
		r(`POST /service_users {}`, `400 ERR_NGROK_4109 [name]`),
		r(`POST /service_users {"name":"x","teams":["ops"],"permission_groups":["group_2"]}`, refused+`[permission_groups]`),
		r(`PATCH /service_users/service_2 {"permission_groups":["group_1","group_2"]}`, refused+`[permission_groups]`),
		r(`PATCH /service_users/service_2 {"role":"manager"}`, refused+`[role]`),
		r(`PATCH /service_users/service_2 {"teams":[]}`, refused+`[teams]`),
		r(`PATCH /service_users/service_2 {"teams":["finance","hr"]}`, refused+`[teams]`),

		// What does not exist for it: the same answer as for what exists for nobody.
		r(`GET /service_users/service_5`, `404 ERR_NOT_FOUND there is no service user "service_5"`),
		r(`GET /service_users/service_0`, `404 ERR_NOT_FOUND there is no service user "service_0"`),
		r(`PATCH /service_users/service_5 {"active":false}`, `404 ERR_NOT_FOUND there is no service user "service_5"`),
		r(`PATCH /service_users/service_5 {}`, `404 ERR_NOT_FOUND`, `If-Match: "9"`),
		r(`DELETE /service_users/service_5`, `404 ERR_NOT_FOUND`),
		r(`GET /service_users/service_5/tokens`, `404 ERR_NOT_FOUND`),
		r(`GET /service_users/service_5/tokens/token_5`, `404 ERR_NOT_FOUND there is no service user`),
		r(`POST /service_users/service_5/tokens {}`, `404 ERR_NOT_FOUND`),
		r(`POST /service_users/service_5/tokens/token_5/refresh`, `404 ERR_NOT_FOUND there is no service user`),
		r(`DELETE /service_users/service_5/tokens/token_5`, `404 ERR_NOT_FOUND`),
		r(`GET /service_users/service_6`, `404 ERR_NOT_FOUND`),
		r(`PUT /permission_groups/group_1/members/service_5`, `404 ERR_NOT_FOUND`),
		r(`DELETE /permission_groups/group_1/members/service_5`, `404 ERR_NOT_FOUND`),
		r(`GET /permission_groups/group_2`, `404 ERR_NOT_FOUND there is no permission group "group_2"`),
		r(`GET /permission_groups?name=writers`, `200 {"permission_groups":[]}`),
		r(`GET /permission_groups/group_2/rules`, `404 ERR_NOT_FOUND`),
		r(`GET /permission_groups/group_2/members`, `404 ERR_NOT_FOUND`),
		r(`PUT /permission_groups/group_2/members/service_2`, `404 ERR_NOT_FOUND there is no permission group "group_2"`),
		r(`PATCH /permission_groups/group_2 {"mode":"observe"}`, `404 ERR_NOT_FOUND`),
		r(`DELETE /permission_groups/group_2`, `404 ERR_NOT_FOUND`),

		// Groups are an admin's business.
		r(`POST /permission_groups {"name":"x"}`, refused+`only an admin may create a permission group`),
		r(`PATCH /permission_groups/group_1 {"mode":"observe"}`, refused+`only an admin may change a permission group`),
		r(`DELETE /permission_groups/group_1`, refused+`only an admin may delete a permission group`),
		r(`POST /permission_groups/group_1/rules "allow * /{rest...}"`, refused+`only an admin may change the rules`),
		r(`DELETE /permission_groups/group_1/rules/rule_1`, refused+`only an admin may change the rules`),
	)
	s.by = store.Local
	s.run(
		r(`GET /service_users/service_1`, `200 {"etag":"\"1\""}`),
		r(`GET /service_users/service_3`, `200 {"etag":"\"1\"","permission_groups":["group_1","group_2"]}`),
		r(`GET /service_users/service_5`, `200 {"etag":"\"1\""}`),
		r(`GET /service_users?name=x`, `200 {"service_users":[]}`),
		r(`GET /permission_groups/group_1`, `200 {"etag":"\"1\""}`),
	)
}

// What a service user's role makes of it here, and what people are.
func TestActors(t *testing.T) {
	s := serve(t, store.Options{DefaultGroup: "everyone"})
	s.must(`POST /permission_groups {"name":"everyone"}`)
	s.must(`POST /permission_groups {"name":"g"}`)
	s.must(`POST /permission_groups {"name":"other"}`)
	actor := func(a store.Actor) string {
		if a.Scope == nil {
			return a.Name + " everything"
		}
		groups := slices.Clone(a.Scope.Groups)
		slices.Sort(groups)
		return strings.Join([]string{a.Name, a.Scope.UserID, strings.Join(a.Scope.Teams, ","), strings.Join(groups, ",")}, " ")
	}
	for _, row := range []struct{ body, want string }{
		{`{"name":"a","role":"admin","teams":["x"],"permission_groups":["group_2"]}`, "service_1 everything"},
		{`{"name":"b","role":"manager","teams":["x","y"],"permission_groups":["group_2"]}`, "service_2 service_2 x,y group_1,group_2"},
		{`{"name":"c","role":"manager"}`, "service_3 service_3  group_1"},
		{`{"name":"d","role":"member","teams":["x"]}`, "refused"},
		{`{"name":"e"}`, "refused"},
	} {
		made := s.do("POST /service_users " + row.body)
		object := parse(made.text).(map[string]any)
		p, why := s.login(object["id"].(string), object["token"].(string))
		a, err := s.api.ServiceUserActor(p)
		got := s.rename(actor(a))
		if errors.Is(err, ErrNotEntitled) && a.Scope == nil {
			got = "refused"
		}
		if got != row.want || why != access.Granted {
			t.Errorf("%s: got %q, %v, %s, want %q", row.body, got, err, why, row.want)
		}
	}
	for want, a := range map[string]store.Actor{
		"human:alice everything":           HumanAdmin("alice"),
		"human:carol  x,y group_2,group_3": s.api.HumanManager("carol", []string{"x", "y"}, []string{"g", "other"}),
		"human:dave  x ":                   s.api.HumanManager("dave", []string{"x"}, nil),
		"human:erin  x group_2":            s.api.HumanManager("erin", []string{"x"}, []string{"g", "nothing of this name"}),
	} {
		if got := s.rename(actor(a)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}

	// A manager without teams sees nobody, not even itself.
	s.by = s.api.HumanManager("dave", nil, nil)
	s.run(
		r(`GET /service_users`, `200 = {"service_users":[],"uri":"/service_users","next_page_uri":null}`),
		r(`GET /permission_groups`, `200 = {"permission_groups":[],"uri":"/permission_groups","next_page_uri":null}`),
		r(`GET /service_users/service_2`, `404 ERR_NOT_FOUND`),
		r(`POST /service_users {"name":"x","create_token":false}`, `403 ERR_NGROK_4111 [teams]`),
	)
	// A person's changes carry the name.
	s.by = HumanAdmin("alice")
	s.run(
		r(`POST /service_users {"name":"f"}`, `201 {"created_by":"human:alice","id":"service_6","token_id":"token_6"}`),
		r(`GET /service_users/service_6/tokens/token_6`, `200 {"created_by":"human:alice"}`),
		r(`POST /permission_groups {"name":"h"}`, `201 {"created_by":"human:alice"}`),
	)
	events, err := s.store.AuditEvents(t.Context(), "", 0, 1)
	if err != nil || len(events) != 1 || events[0].Actor != "human:alice" {
		t.Errorf("audit trail: got %+v, %v, want human:alice", events, err)
	}
}
