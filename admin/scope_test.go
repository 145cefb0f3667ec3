package admin

import (
	"errors"
	"fmt"
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
	events, _, err := s.store.AuditEvents(t.Context(), store.Local, store.AuditQuery{Limit: 1})
	if err != nil || len(events) != 1 || events[0].Actor != "human:alice" {
		t.Errorf("audit trail: got %+v, %v, want human:alice", events, err)
	}
}

// What a manager learns: of service users of its teams, as far as its own groups
// reach. What lies beyond looks like what exists for nobody.
func TestManagerLearns(t *testing.T) {
	s := serve(t, store.Options{DefaultGroup: "everyone"})
	s.run(
		r(`PUT /service_users/permissions {"permissions":[{"key":"held","name":"Held","category":"c","rules":["allow GET /held"]},{"key":"hidden","name":"Hidden","category":"c","rules":["allow GET /hidden"]},{"key":"loose","name":"Loose","rules":["allow GET /loose"]}]}`, `200`),
		r(`POST /permission_groups {"name":"everyone","rules":["allow GET /hello"]}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"readers","rules":["allow GET /v1/{x}"],"permissions":["held"]}`, `201 {"id":"group_2"}`),
		r(`POST /permission_groups {"name":"hidden","rules":["allow PUT /v1/{x}","deny GET /v1/me"],"permissions":["hidden"]}`, `201 {"id":"group_3"}`),
		r(`POST /permission_groups {"name":"by label","member_condition":"user.labels.env == 'dev'","rules":["allow GET /dev"]}`, `201 {"id":"group_4"}`),
		r(`POST /permission_groups {"name":"watch","mode":"observe","rules":["deny GET /v1/a"]}`, `201 {"id":"group_5"}`),
		r(`POST /permission_groups {"name":"hidden watch","mode":"observe","rules":["deny GET /v1/b"]}`, `201 {"id":"group_6"}`),
		r(`POST /permission_groups {"name":"spare","rules":["allow DELETE /v1/{x}"]}`, `201 {"id":"group_7"}`),
		r(`POST /service_users {"name":"manager","role":"manager","teams":["ops"],"labels":{"env":"dev"},"permission_groups":["group_2","group_5","group_7"]}`, `201 {"id":"service_1","token":"csu_1"}`),
		r(`POST /service_users/service_1/tokens {"permission_groups":["group_2","group_3"]}`, `201 {"token":"csu_2"}`),
		r(`POST /service_users {"name":"mate","teams":["ops"],"labels":{"env":"dev"},"permission_groups":["group_2","group_3","group_5","group_6"]}`, `201 {"id":"service_2","token_id":"token_3"}`),
		r(`POST /service_users {"name":"plain","teams":["ops","hr"],"labels":{"env":"prod"}}`, `201 {"id":"service_3"}`),
		r(`POST /service_users {"name":"stranger","teams":["hr"],"labels":{"env":"dev"},"permission_groups":["group_2","group_5"]}`, `201 {"id":"service_4","token_id":"token_5"}`),
	)
	for _, user := range []string{"service_2", "service_4"} {
		s.observe(user, "GET /v1/a", false)
		s.observe(user, "GET /v1/x/y", true)
	}
	s.observe("service_2", "GET /v1/b", false)
	s.refuse("decision_mate", "service_2", "token_3", "POST /v1/a", nil)
	s.refuse("decision_stranger", "service_4", "token_5", "POST /v1/a", nil)

	as := func(secret string) {
		t.Helper()
		p, why := s.login("service_1", secret)
		by, err := s.api.ServiceUserActor(p)
		if why != access.Granted || err != nil {
			t.Fatalf("got %s, %v, want an actor", why, err)
		}
		s.by = by
	}
	as("csu_1")
	const refused = `403 ERR_NGROK_4111 `
	s.run(
		// Explained: the verdict as it is, the rules as far as it sees them.
		r(`POST /service_users/explain {"service_user_id":"service_2","method":"GET","url":"/v1/x"}`, `200 {"decision":"allow","rule":{"id":"rule_2"},"permission_group":{"id":"group_2"},`+
			`"considered":[{"rule":{"id":"rule_2"}},{"rule":{"id":"rule_6"}},{"rule":{"id":"rule_5"}},{"rule":{"id":"rule_1"}},{"rule":{"id":"held"}}]}`),
		r(`POST /service_users/explain {"service_user_id":"service_2","method":"PUT","url":"/v1/x"}`, `200 {"decision":"allow","reason":"granted","detail":"a rule allows it; the rule belongs to a permission group outside of your reach",`+
			`"rule":null,"permission_group":null,"source":"","nearest":null,"grant":null}`),
		r(`POST /service_users/explain {"service_user_id":"service_2","method":"GET","url":"/v1/me"}`, `200 {"decision":"deny","reason":"denied_by_rule","detail":"a rule denies it, and a deny wins over any allow; the rule belongs to a permission group outside of your reach",`+
			`"rule":null,"permission_group":null,"source":"","nearest":{"rule":{"id":"rule_2"},"why":"a deny wins"},"grant":null}`),
		r(`POST /service_users/explain {"service_user_id":"service_3","method":"DELETE","url":"/v1/x"}`, `200 {"decision":"deny","reason":"no_rule","grant":{"rule":"allow DELETE /v1/x","permission_groups":[{"name":"spare"}]},"nearest":{"rule":{"id":"rule_1"}}}`),
		r(`POST /service_users/explain {"service_user_id":"service_3","method":"PUT","url":"/v1/x"}`, `200 {"decision":"deny","reason":"no_rule","grant":{"rule":"allow PUT /v1/x","permission_groups":[]},"considered":[{"rule":{"id":"rule_1"}}]}`),
		r(`POST /service_users/explain {"decision_id":"decision_mate"}`, refused+`only an admin may ask for a decision`),
		r(`POST /service_users/explain {"decision_id":"decision_stranger"}`, refused+`only an admin may ask for a decision`),
		r(`POST /service_users/explain {"decision_id":"decision_x"}`, refused+`only an admin may ask for a decision`),

		r(`GET /service_users/service_2/access`, `200 {"permission_groups":[{"name":"by label","source":"condition"},{"name":"everyone"},{"name":"readers","rules":[{"id":"rule_2"},{"id":"held"}]},{"name":"watch"}]}`),
		r(`GET /service_users/service_3/access`, `200 {"permission_groups":[{"name":"everyone"}]}`),

		r(`GET /service_users/who_can?method=GET&url=/v1/x`, `200 {"service_users":[{"name":"mate","rule":{"id":"rule_2"},"permission_group":{"name":"readers"}},{"name":"manager"}],"next_page_uri":null}`),
		r(`GET /service_users/who_can?method=GET&url=/v1/x&limit=1`, `200 {"service_users":[{"name":"mate"}],"next_page_uri":"/service_users/who_can?before_id=service_2&limit=1&method=GET&url=%2Fv1%2Fx"}`),
		r(`GET /service_users/who_can?method=GET&url=/v1/x&limit=2`, `200 {"service_users":[{"name":"mate"},{"name":"manager"}],"next_page_uri":null}`),
		r(`GET /service_users/who_can?method=PUT&url=/v1/x`, `200 {"service_users":[{"name":"mate","rule":null,"permission_group":null}]}`),
		r(`GET /service_users/who_can?method=GET&url=/hello`, `200 {"service_users":[{"name":"plain"},{"name":"mate"},{"name":"manager"}]}`),

		r(`GET /service_users/would_deny`, `200 {"would_deny":[{"name":"mate","path":"/v1/a","permission_group":{"name":"watch"}},{"name":"mate","path":"/v1/x/y","permission_group":null}],"not_counted":0}`),
		r(`GET /service_users/would_deny?service_user_id=service_2`, `200 {"would_deny":[{"path":"/v1/a"},{"path":"/v1/x/y"}]}`),
		r(`GET /service_users/would_deny?would=allow`, `200 {"would_deny":[]}`),
		r(`DELETE /service_users/would_deny`, refused+`only an admin may reset the counts`),

		r(`GET /permission_groups/group_2/members`, `200 {"members":[{"name":"mate","source":"name"},{"name":"manager","source":"name"}],"next_page_uri":null}`),
		r(`GET /permission_groups/group_2/members?limit=2`, `200 {"members":[{"name":"mate"},{"name":"manager"}],"next_page_uri":null}`),
		r(`GET /permission_groups/group_2`, `200 {"member_count":2,"permissions":["held"]}`),
		r(`GET /permission_groups/group_4`, `200 {"member_count":2,"member_condition":"user.labels.env == 'dev'"}`),
		r(`GET /permission_groups/group_4/members`, `200 {"members":[{"name":"mate","source":"condition"},{"name":"manager","source":"condition"}]}`),
		r(`GET /permission_groups`, `200 {"permission_groups":[{"name":"spare","member_count":1},{"name":"watch","member_count":2},{"name":"by label","member_count":2},{"name":"readers","member_count":2},{"name":"everyone","member_count":0}]}`),

		// Of the catalogue, what its groups have.
		r(`GET /service_users/permissions`, `200 {"permissions":[{"key":"held"}]}`),
		r(`GET /service_users/permissions?category=c`, `200 {"permissions":[{"key":"held"}]}`),
		r(`GET /service_users/permissions?key=hidden`, `200 {"permissions":[]}`),
		r(`GET /service_users/permissions?key=loose`, `200 {"permissions":[]}`),
		r(`GET /service_users/permissions?key=nothing`, `200 {"permissions":[]}`),
		r(`PUT /service_users/permissions {"permissions":[{"key":"held","name":"Held","rules":["allow * /{x...}"]}]}`, refused+`only an admin may change the permission catalogue`),
		r(`PUT /service_users/permissions {"permissions":[],"replace":true}`, refused+`only an admin may change the permission catalogue`),
		r(`DELETE /service_users/permissions?key=held`, refused+`only an admin may change the permission catalogue`),
		r(`DELETE /service_users/permissions?key=hidden`, refused+`only an admin may change the permission catalogue`),
		r(`DELETE /service_users/permissions?key=nothing`, refused+`only an admin may change the permission catalogue`),
		r(`PUT /permission_groups/group_2/permissions/held`, refused+`only an admin may change a permission group`),
		r(`PUT /permission_groups/group_2/permissions/hidden`, refused+`only an admin may change a permission group`),
		r(`PUT /permission_groups/group_2/permissions/nothing`, refused+`only an admin may change a permission group`),
		r(`DELETE /permission_groups/group_2/permissions/held`, refused+`only an admin may change a permission group`),
		r(`DELETE /permission_groups/group_2/permissions/nothing`, refused+`only an admin may change a permission group`),
		r(`PATCH /permission_groups/group_2 {"permissions":["hidden"]}`, refused+`only an admin may change a permission group`),
	)

	// The very same answer for what it must not see and for what is not there.
	alike := func(hidden, nobody string, requests ...string) {
		t.Helper()
		for _, request := range requests {
			answer := func(id string) string {
				got := s.do(fmt.Sprintf(request, id))
				text := strings.ReplaceAll(got.text, got.header.Get(OperationHeader), "op")
				return fmt.Sprint(got.status, strings.ReplaceAll(text, id, "ID"))
			}
			got, want := answer(hidden), answer(nobody)
			if got != want || strings.HasPrefix(want, "2") && !strings.Contains(want, `[]`) {
				t.Errorf("%s:\n\tgot  %s\n\twant %s", fmt.Sprintf(request, hidden), got, want)
			}
		}
	}
	everywhere := func() {
		t.Helper()
		alike("service_4", "service_0",
			`POST /service_users/explain {"service_user_id":"%s","method":"GET","url":"/v1/x"}`,
			`POST /service_users/explain {"service_user_id":"%s","method":"GET","url":"/v1//x"}`,
			`POST /service_users/explain {"service_user_id":"%s","method":"get","url":"x"}`,
			`POST /service_users/explain {"service_user_id":"%s","method":"GET","url":"/v1/x","token_id":"token_5"}`,
			`POST /service_users/explain {"service_user_id":"%s","method":"GET","url":"/v1/x","token_id":"token_3"}`,
			`GET /service_users/%s/access`, `GET /service_users/%s`, `GET /service_users/%s/tokens`, `GET /service_users/%s/tokens/token_5`,
			`GET /service_users/would_deny?service_user_id=%s`, `GET /service_users/would_deny?would=allow&service_user_id=%s`,
			`PUT /permission_groups/group_2/members/%s`, `DELETE /permission_groups/group_2/members/%s`,
			`PATCH /service_users/%s {"permission_groups":["group_3"]}`, `POST /service_users/%s/tokens {"permission_groups":["group_3"]}`,
		)
		alike("group_3", "group_0",
			`GET /permission_groups/%s`, `GET /permission_groups/%s/rules`, `GET /permission_groups/%s/members`,
			`PUT /permission_groups/%s/permissions/held`, `PUT /permission_groups/%s/permissions/hidden`, `DELETE /permission_groups/%s/permissions/hidden`, `DELETE /permission_groups/%s/permissions/nothing`,
			`PATCH /permission_groups/%s {"mode":"observe"}`, `POST /permission_groups/%s/rules "allow GET /x"`, `DELETE /permission_groups/%s`, `DELETE /permission_groups/%s/rules/rule_3`,
			`PUT /permission_groups/%s/members/service_3`, `DELETE /permission_groups/%s/members/service_2`, `PUT /permission_groups/%s/members/service_4`,
			`POST /service_users {"name":"x","teams":["ops"],"permission_groups":["%s"]}`, `PATCH /service_users/service_3 {"permission_groups":["%s"]}`,
			`POST /service_users/service_3/tokens {"permission_groups":["%s"]}`,
		)
		alike("hidden", "nothing", `GET /service_users/permissions?key=%s`, `DELETE /service_users/permissions?key=%s`,
			`PUT /permission_groups/group_2/permissions/%s`, `DELETE /permission_groups/group_2/permissions/%s`, `PATCH /permission_groups/group_2 {"permissions":["%s"]}`,
			`POST /permission_groups {"name":"x","permissions":["%s"]}`, `GET /permission_groups?name=%s`)
		alike("stranger", "nobody", `GET /service_users?name=%s`)
	}
	everywhere()

	// Somebody who is in no team sees nobody, and a person no more than it was given.
	s.by = s.api.HumanManager("carol", []string{"ops"}, []string{"readers", "watch"})
	everywhere()
	s.run(
		r(`POST /service_users/explain {"service_user_id":"service_2","method":"GET","url":"/dev"}`, `200 {"decision":"allow","detail":"a rule allows it; the rule belongs to a permission group outside of your reach","rule":null}`),
		r(`GET /service_users/service_2/access`, `200 {"permission_groups":[{"name":"readers"},{"name":"watch"}]}`),
		r(`GET /service_users/service_3/access`, `200 {"permission_groups":[]}`),
		r(`GET /service_users/permissions`, `200 {"permissions":[{"key":"held"}]}`),
	)
	s.by = s.api.HumanManager("dave", nil, []string{"readers"})
	everywhere()
	s.run(
		r(`GET /service_users/who_can?method=GET&url=/hello`, `200 {"service_users":[]}`),
		r(`GET /service_users/would_deny`, `200 {"would_deny":[]}`),
		r(`GET /permission_groups/group_2/members`, `200 {"members":[]}`),
		r(`GET /permission_groups/group_2`, `200 {"member_count":0}`),
	)

	// A token that is narrowed narrows what its manager sees and gives. It widens
	// nothing: group_3 is not its own.
	as("csu_2")
	everywhere()
	s.run(
		r(`GET /permission_groups`, `200 {"permission_groups":[{"name":"readers"}]}`),
		r(`GET /permission_groups/group_5`, `404 ERR_NOT_FOUND there is no permission group "group_5"`),
		r(`GET /service_users/service_2/access`, `200 {"permission_groups":[{"name":"readers"}]}`),
		r(`POST /service_users/explain {"service_user_id":"service_2","method":"GET","url":"/hello"}`, `200 {"decision":"allow","rule":null,"detail":"a rule allows it; the rule belongs to a permission group outside of your reach"}`),
		r(`GET /service_users/would_deny`, `200 {"would_deny":[{"path":"/v1/x/y"}]}`),
		r(`PATCH /service_users/service_3 {"permission_groups":["group_7"]}`, refused+`[permission_groups] a manager can give only permission groups that it holds itself`),
	)

	s.by = store.Local
	s.run(r(`PATCH /service_users/service_1/tokens/token_2 {"permission_groups":["group_7"]}`, `200`))
	as("csu_2")
	s.run(r(`GET /permission_groups`, `200 {"permission_groups":[{"name":"spare"}]}`))

	// And nothing of all that changed anything else.
	s.by = store.Local
	s.run(
		r(`GET /permission_groups/group_2`, `200 {"etag":"\"1\"","member_count":3}`),
		r(`GET /service_users/service_3`, `200 {"etag":"\"1\""}`),
		r(`GET /service_users/permissions`, `200 {"permissions":[{"key":"held","rules":["allow GET /held"]},{"key":"hidden"},{"key":"loose"}]}`),
		r(`GET /service_users/would_deny`, `200 {"would_deny":[{},{},{},{},{}]}`),
	)
}
