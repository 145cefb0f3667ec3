package admin

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// The life of tokens. Each answer is acknowledged only when it holds.
func TestTokens(t *testing.T) {
	s := serve(t, store.Options{})
	const tokens = "/service_users/service_1/tokens"
	show := func(id, rest string) string {
		return `{"id":"` + id + `","uri":"` + tokens + `/` + id + `","service_user_id":"service_1",` + rest + `}`
	}
	const unused = `"last_used_at":null,"last_used_ip":"","use_count":0,"used_from":[],`
	const ci = `"description":"ci","metadata":"","hint":"hint","state":"active","allowed_ips":[],"permission_groups":[],"expires_at":"t+7776003s","not_before":null,"retires_at":null,"revoked_at":null,` +
		`"created_at":"t+3s","created_by":"local","updated_at":"t+3s",` + unused + `"replaced_by":"","drain":null,"etag":"\"1\""`
	s.run(
		r(`POST /permission_groups {"name":"g","rules":["allow GET /v1/{x}"]}`, `201`),
		r(`POST /service_users {"name":"a","permission_groups":["group_1"]}`, `201 {"token_id":"token_1","token":"csu_1"}`),
		r(`POST `+tokens+` {"description":"ci","ttl":"90d"}`, `201 = `+show("token_2", ci+`,"token":"csu_2"`)),
		r(`GET `+tokens+`/token_2`, `200 = `+show("token_2", ci)),
		r(`GET `+tokens+`/token_2/`, `200 = `+show("token_2", ci)),
		r(`GET `+tokens+`?limit=1`, `200 = {"tokens":[`+show("token_2", ci)+`],"uri":"`+tokens+`","next_page_uri":"`+tokens+`?before_id=token_2\u0026limit=1"}`),
		r(`GET `+tokens, `200 {"tokens":[{"id":"token_2"},{"id":"token_1","expires_at":null}],"next_page_uri":null}`),

		r(`PATCH `+tokens+`/token_2 {"metadata":"m","allowed_ips":["192.0.2.1"],"permission_groups":["group_1"],"not_before":"t+5s"}`, `200 = `+show("token_2", strings.NewReplacer(
			`"metadata":""`, `"metadata":"m"`, `"allowed_ips":[]`, `"allowed_ips":["192.0.2.1/32"]`, `"permission_groups":[]`, `"permission_groups":["group_1"]`,
			`"not_before":null`, `"not_before":"t+5s"`, `"updated_at":"t+3s"`, `"updated_at":"t+8s"`, `\"1\"`, `\"2\"`).Replace(ci))),
		r(`PATCH `+tokens+`/token_2 {"ttl":"1h"}`, `200 {"description":"ci","metadata":"m","expires_at":"t+3609s"}`),
		r(`PATCH `+tokens+`/token_2 {"description":"","metadata":"","allowed_ips":[],"permission_groups":null,"expires_at":"","not_before":null}`,
			`200 {"description":"","metadata":"","allowed_ips":[],"permission_groups":[],"expires_at":null,"not_before":null,"etag":"\"4\""}`),
		r(`PATCH `+tokens+`/token_2 {"expires_at":"t+5s"}`, `400 ERR_INVALID_VALUE [expires_at]`),
		r(`PATCH `+tokens+`/token_0 {}`, `404 ERR_NOT_FOUND there is no token "token_0"`),
	)
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_1": access.Granted, "csu_2": access.Granted})

	// Refreshed with a grace: both are good until it ends.
	s.run(
		r(`POST `+tokens+`/token_2/refresh {"grace":"24h"}`, `201 {"id":"token_3","token":"csu_3","state":"active","replaces":"token_2","replaced_by":"","expires_at":null,"etag":"\"1\""}`),
		r(`GET `+tokens+`/token_2`, `200 {"state":"retiring","retires_at":"t+86413s","revoked_at":null,"replaced_by":"token_3","use_count":0,"last_used_at":null,"last_used_ip":"","etag":"\"5\""}`),
		r(`POST `+tokens+`/token_2/refresh {"grace":"24h"}`, `409 ERR_CONFLICT the token is retiring`),
		r(`POST `+tokens+`/token_2/refresh`, `409 ERR_CONFLICT the token is retiring`),
	)
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_2": access.Granted, "csu_3": access.Granted})
	s.clock.Store(int64(86412 * time.Second))
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_2": access.Granted, "csu_3": access.Granted})
	s.run(
		r(`GET `+tokens+`/token_2`, `200 {"state":"revoked","retires_at":"t+86413s","revoked_at":null}`),
		r(`POST `+tokens+`/token_2/refresh {"grace":"24h"}`, `409 ERR_CONFLICT the token is revoked`),
	)
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_2": access.TokenExpired, "csu_3": access.Granted})

	// Refreshed at once, in all the ways to say so.
	s.run(
		r(`POST `+tokens+`/token_3/refresh`, `201 {"id":"token_4","token":"csu_4","replaces":"token_3"}`),
		r(`GET `+tokens+`/token_3`, `200 {"state":"revoked","retires_at":null,"revoked_at":"t+86415s","replaced_by":"token_4"}`),
		r(`POST `+tokens+`/token_4/refresh {}`, `201 {"id":"token_5","token":"csu_5"}`),
		r(`POST `+tokens+`/token_5/refresh/ {"grace":"0"}`, `201 {"id":"token_6","token":"csu_6"}`),
		r(`POST `+tokens+`/token_6/refresh {"grace":"0d"}`, `201 {"id":"token_7","token":"csu_7"}`),
		r(`POST `+tokens+`/token_7/refresh {"grace":null}`, `201 {"id":"token_8","token":"csu_8"}`),
		r(`POST `+tokens+`/token_8/refresh {"grace":""}`, `201 {"id":"token_9","token":"csu_9"}`),
		r(`POST `+tokens+`/token_3/refresh`, `409 ERR_CONFLICT the token is revoked`),
		r(`POST `+tokens+`/token_0/refresh`, `404 ERR_NOT_FOUND there is no token`),
		r(`GET `+tokens+`/token_9/refresh`, `405 ERR_METHOD_NOT_ALLOWED Allow: POST, OPTIONS`),
	)
	for _, secret := range []string{"csu_3", "csu_4", "csu_5", "csu_6", "csu_7", "csu_8"} {
		s.expect("service_1", "GET /v1/x", map[string]access.Reason{secret: access.TokenRevoked})
	}

	// Revoked, and revoked again. The record stays.
	s.run(
		r(`DELETE `+tokens+`/token_9`, `204`),
		r(`GET `+tokens+`/token_9`, `200 {"state":"revoked","revoked_at":"t+86425s","etag":"\"2\""}`),
		r(`DELETE `+tokens+`/token_9/`, `204`),
		r(`GET `+tokens+`/token_9`, `200 {"state":"revoked","revoked_at":"t+86425s","etag":"\"2\""}`),
		r(`DELETE `+tokens+`/token_0`, `404 ERR_NOT_FOUND there is no token`),
		r(`GET `+tokens+`?limit=2`, `200 {"tokens":[{"id":"token_9","state":"revoked"},{"id":"token_8","state":"revoked"}]}`),
	)
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_9": access.TokenRevoked, "csu_1": access.Granted})

	// Expired, and refreshed then: the successor lives as long again, the old
	// one gets no grace.
	s.run(
		r(`POST `+tokens+` {"ttl":"1m30s"}`, `201 {"id":"token_10","expires_at":"t+86521s","token":"csu_10"}`),
		r(`POST `+tokens+` {"expires_at":"t+86500s","not_before":"t+86450s"}`, `201 {"id":"token_11","state":"pending","not_before":"t+86450s"}`),
	)
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_10": access.Granted, "csu_11": access.TokenNotYet})
	s.clock.Store(int64(86520 * time.Second))
	s.run(
		r(`GET `+tokens+`/token_10`, `200 {"state":"expired"}`),
		r(`GET `+tokens+`?limit=2`, `200 {"tokens":[{"id":"token_11","state":"expired"},{"id":"token_10","state":"expired"}]}`),
		r(`POST `+tokens+`/token_10/refresh {"grace":"24h"}`, `201 {"id":"token_12","state":"active","expires_at":"t+86613s"}`),
		r(`GET `+tokens+`/token_10`, `200 {"state":"revoked","retires_at":null,"revoked_at":"t+86523s"}`),
	)

	// A token of one service user is none of another.
	s.run(
		r(`POST /service_users {"name":"b"}`, `201 {"token_id":"token_13"}`),
		r(`GET /service_users/service_2/tokens/token_1`, `404 ERR_NOT_FOUND there is no token`),
		r(`PATCH /service_users/service_2/tokens/token_1 {"description":"x"}`, `404 ERR_NOT_FOUND there is no token`),
		r(`POST /service_users/service_2/tokens/token_1/refresh`, `404 ERR_NOT_FOUND there is no token`),
		r(`DELETE /service_users/service_2/tokens/token_1`, `404 ERR_NOT_FOUND there is no token`),
		r(`GET /service_users/service_2/tokens`, `200 {"tokens":[{"id":"token_13"}]}`),

		// Switched off and on, and deleted: with all its tokens.
		r(`PATCH /service_users/service_1 {"active":false}`, `200 {"active":false}`),
		r(`POST `+tokens+` {}`, `201 {"id":"token_14","state":"active"}`),
	)
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_1": access.UserInactive, "csu_14": access.UserInactive})
	s.run(r(`PATCH /service_users/service_1 {"active":true}`, `200 {"active":true}`))
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_1": access.Granted, "csu_14": access.Granted})
	s.run(
		r(`DELETE /service_users/service_1`, `204`),
		r(`GET `+tokens+`/token_1`, `404 ERR_NOT_FOUND there is no service user`),
		r(`POST `+tokens+`/token_1/refresh`, `404 ERR_NOT_FOUND there is no service user`),
	)
	s.expect("service_1", "GET /v1/x", map[string]access.Reason{"csu_1": access.UnknownID})
}

// The default and the longest lifetime, and the most tokens there can be.
func TestTokenBounds(t *testing.T) {
	s := serve(t, store.Options{TokenTTL: 24 * time.Hour, MaxTokenTTL: 48 * time.Hour})
	const tokens = "/service_users/service_1/tokens"
	s.run(
		r(`POST /service_users {"name":"a"}`, `201 {"expires_at":null}`),
		r(`GET `+tokens+`/token_1`, `200 {"expires_at":"t+86401s"}`),
		r(`POST `+tokens+` {}`, `201 {"expires_at":"t+86403s"}`),
		r(`POST `+tokens, `201 {"expires_at":"t+86404s"}`),
		r(`POST `+tokens+` {"expires_at":""}`, `201 {"expires_at":"t+86405s"}`),
		r(`POST `+tokens+` {"ttl":"2d"}`, `201 {"expires_at":"t+172806s"}`),
		r(`POST `+tokens+` {"ttl":"1.9s"}`, `201 {"expires_at":"t+8s"}`),
		r(`POST `+tokens+` {"ttl":"48h1s"}`, `400 ERR_INVALID_VALUE [expires_at] must lie within 48h0m0s (max_token_ttl)`),
		r(`PATCH `+tokens+`/token_1 {"expires_at":null}`, `400 ERR_INVALID_VALUE [expires_at] must lie within`),
		r(`PATCH `+tokens+`/token_1 {"ttl":"3d"}`, `400 ERR_INVALID_VALUE [expires_at] must lie within`),
		r(`PATCH `+tokens+`/token_1 {"description":"x"}`, `200 {"expires_at":"t+86401s"}`),
	)
	for range 94 {
		s.run(r(`POST `+tokens+` {"ttl":"1h"}`, `201`))
	}
	s.run(
		r(`POST `+tokens+` {}`, `201`),
		r(`POST `+tokens+` {}`, `409 ERR_CONFLICT the service user has 100 live tokens already`),
		r(`DELETE `+tokens+`/token_1`, `204`),
		r(`POST `+tokens+` {}`, `201`),
	)
}

// Permission groups, their rules and members, as documented.
func TestGroups(t *testing.T) {
	s := serve(t, store.Options{})
	rule := func(id, effect, methods, host, path, text string) string {
		return `{"id":"` + id + `","uri":"/permission_groups/group_1/rules/` + id + `","effect":"` + effect + `","methods":[` + methods + `],"host":"` + host + `","path":"` + path + `","when":"","name":"","description":"","text":"` + text + `"}`
	}
	first := rule("rule_1", "allow", `"GET"`, "", "/v1/people/{id}", "allow GET /v1/people/{id}")
	group := func(rules, rest string) string {
		return `{"id":"group_1","uri":"/permission_groups/group_1","name":"people-readers","description":"","mode":"enforce","member_condition":"","permissions":[],"rules":[` + rules + `],` + rest + `}`
	}
	made := group(first, `"member_count":0,"created_at":"t+1s","created_by":"local","updated_at":"t+1s","etag":"\"1\""`)
	s.run(
		r(`POST /permission_groups {"name":"people-readers","mode":"enforce","member_condition":"","rules":["allow GET /v1/people/{id}"]}`, `201 = `+made),
		r(`GET /permission_groups/group_1`, `200 = `+made),
		r(`GET /permission_groups/group_1/`, `200 = `+made),
		r(`GET /permission_groups`, `200 = {"permission_groups":[`+made+`],"uri":"/permission_groups","next_page_uri":null}`),
		r(`GET /permission_groups/group_1/rules`, `200 = {"rules":[`+first+`],"uri":"/permission_groups/group_1/rules","next_page_uri":null}`),
		r(`POST /permission_groups {"name":"people-readers"}`, `409 ERR_NGROK_4112 [name] "people-readers" is taken`),
		r(`POST /permission_groups {}`, `400 ERR_INVALID_VALUE [name]`),
		r(`POST /permission_groups/ {"name":"empty","mode":"observe","description":"d"}`, `201 {"id":"group_2","mode":"observe","description":"d","rules":[],"member_count":0}`),
		r(`GET /permission_groups`, `200 {"permission_groups":[{"id":"group_2"},{"id":"group_1"}]}`),

		// Rules, as text and as an object.
		r(`POST /permission_groups/group_1/rules "deny DELETE /v1/{rest...}"`, `201 = `+rule("rule_2", "deny", `"DELETE"`, "", "/v1/{rest...}", "deny DELETE /v1/{rest...}")),
		r(`POST /permission_groups/group_1/rules/ {"effect":"allow","methods":["GET","PUT","GET"],"host":"API.example.com","path":"/v2","name":"n","description":"d"}`,
			`201 = {"id":"rule_3","uri":"/permission_groups/group_1/rules/rule_3","effect":"allow","methods":["GET","PUT"],"host":"api.example.com","path":"/v2","when":"","name":"n","description":"d","text":"allow GET,PUT api.example.com/v2"}`),
		r(`GET /permission_groups/group_1`, `200 {"etag":"\"3\"","updated_at":"t+11s","rules":[{"id":"rule_1"},{"id":"rule_2"},{"id":"rule_3"}]}`),
		r(`GET /permission_groups/group_1/rules`, `200 {"rules":[{"id":"rule_1"},{"id":"rule_2"},{"id":"rule_3"}],"next_page_uri":null}`),
		r(`POST /permission_groups/group_0/rules "allow GET /"`, `404 ERR_NOT_FOUND there is no permission group`),
		r(`GET /permission_groups/group_1/rules/rule_1`, `405 ERR_METHOD_NOT_ALLOWED Allow: DELETE, OPTIONS`),
		r(`DELETE /permission_groups/group_2/rules/rule_2`, `404 ERR_NOT_FOUND there is no rule`),
		r(`DELETE /permission_groups/group_1/rules/rule_0`, `404 ERR_NOT_FOUND there is no rule`),
		r(`DELETE /permission_groups/group_1/rules/x`, `404 ERR_NOT_FOUND`),
		r(`DELETE /permission_groups/group_1/rules/rule_2`, `204`),
		r(`DELETE /permission_groups/group_1/rules/rule_2`, `404 ERR_NOT_FOUND there is no rule`),

		// An update replaces the rules; those that are the same keep their ids.
		r(`PATCH /permission_groups/group_1 {"rules":["deny * /x",{"effect":"allow","methods":["GET"],"path":"/v1/people/{id}"}]}`, `200 {"rules":[{"id":"rule_4","methods":["*"],"text":"deny * /x"},{"id":"rule_1"}],"etag":"\"5\""}`),
		r(`PATCH /permission_groups/group_1 {"rules":["deny * /x","allow GET /v1/people/{id}"]}`, `200 {"etag":"\"5\"","updated_at":"t+21s"}`),
		r(`PATCH /permission_groups/group_1 {"description":"d"}`, `200 {"name":"people-readers","description":"d","rules":[{"id":"rule_4"},{"id":"rule_1"}]}`),
		r(`PATCH /permission_groups/group_1 {"rules":null}`, `200 {"rules":[]}`),
		r(`PATCH /permission_groups/group_1 {"rules":["allow GET /v1/people/{id}"],"mode":"observe","name":"readers"}`, `200 {"name":"readers","mode":"observe","rules":[{"id":"rule_5"}]}`),
		r(`PATCH /permission_groups/group_1 {"name":"empty"}`, `409 ERR_NGROK_4112 [name]`),
		r(`PATCH /permission_groups/group_1 {"name":""}`, `400 ERR_INVALID_VALUE [name]`),
		r(`PATCH /permission_groups/group_1 {"mode":"enforce","member_condition":null}`, `200 {"mode":"enforce","member_condition":""}`),

		// Members, from either side.
		r(`POST /service_users {"name":"a","permission_groups":["group_1","group_1"]}`, `201 {"permission_groups":["group_1"],"token":"csu_1"}`),
		r(`POST /service_users {"name":"b"}`, `201 {"permission_groups":[],"token":"csu_2"}`),
	)
	s.expect("service_1", "GET /v1/people/7", map[string]access.Reason{"csu_1": access.Granted})
	s.expect("service_2", "GET /v1/people/7", map[string]access.Reason{"csu_2": access.NoRule})
	s.run(
		r(`PUT /permission_groups/group_1/members/service_2`, `204`),
		r(`GET /service_users/service_2`, `200 {"permission_groups":["group_1"],"etag":"\"2\"","updated_at":"t+31s"}`),
		r(`PUT /permission_groups/group_1/members/service_2/ {}`, `204`),
		r(`GET /service_users/service_2`, `200 {"permission_groups":["group_1"],"etag":"\"2\""}`),
		r(`GET /permission_groups/group_1/members`, `200 = {"members":[{"id":"service_2","name":"b","source":"name"},{"id":"service_1","name":"a","source":"name"}],"uri":"/permission_groups/group_1/members","next_page_uri":null}`),
		r(`GET /permission_groups/group_1/members?limit=1`, `200 {"members":[{"id":"service_2"}],"next_page_uri":"/permission_groups/group_1/members?before_id=service_2&limit=1"}`),
		r(`GET /permission_groups/group_1`, `200 {"member_count":2}`),
		r(`POST /permission_groups/group_1/members {}`, `405 ERR_METHOD_NOT_ALLOWED Allow: GET, HEAD, OPTIONS`),
		r(`PUT /permission_groups/group_1/members/service_0`, `404 ERR_NOT_FOUND there is no service user`),
		r(`PUT /permission_groups/group_0/members/service_1`, `404 ERR_NOT_FOUND there is no permission group`),
		r(`PUT /permission_groups/group_1/members/a`, `404 ERR_NOT_FOUND`),
		r(`DELETE /permission_groups/group_0/members/service_1`, `404 ERR_NOT_FOUND there is no permission group`),
	)
	s.expect("service_2", "GET /v1/people/7", map[string]access.Reason{"csu_2": access.Granted})
	s.run(r(`POST /permission_groups/group_1/rules "deny GET /v1/people/7"`, `201`))
	s.expect("service_2", "GET /v1/people/7", map[string]access.Reason{"csu_2": access.DeniedByRule})
	s.run(
		r(`DELETE /permission_groups/group_1/members/service_2`, `204`),
		r(`DELETE /permission_groups/group_1/members/service_2`, `204`),
		r(`GET /service_users/service_2`, `200 {"permission_groups":[],"etag":"\"3\""}`),
		r(`PATCH /service_users/service_2 {"permission_groups":["group_2","group_1"]}`, `200 {"permission_groups":["group_1","group_2"]}`),
		r(`DELETE /service_users/service_1`, `204`),
		r(`GET /permission_groups/group_1`, `200 {"member_count":1}`),
		r(`GET /permission_groups/group_1/members`, `200 {"members":[{"id":"service_2"}]}`),
		r(`PUT /permission_groups/group_1/members/service_1`, `404 ERR_NOT_FOUND there is no service user`),
		r(`DELETE /permission_groups/group_1`, `204`),
		r(`DELETE /permission_groups/group_1`, `404 ERR_NOT_FOUND there is no permission group`),
		r(`GET /permission_groups/group_1`, `404 ERR_NOT_FOUND`),
		r(`GET /permission_groups/group_1/rules`, `404 ERR_NOT_FOUND`),
		r(`GET /permission_groups/group_1/members`, `404 ERR_NOT_FOUND`),
		r(`PATCH /permission_groups/group_1 {}`, `404 ERR_NOT_FOUND`),
		r(`GET /service_users/service_2`, `200 {"permission_groups":["group_2"]}`),
		r(`POST /permission_groups {"name":"readers"}`, `201 {"id":"group_3"}`),
		r(`POST /service_users {"name":"c","permission_groups":["group_1"]}`, `400 ERR_INVALID_VALUE [permission_groups] there is no permission group`),
		r(`GET /service_users?name=c`, `200 {"service_users":[]}`),
	)
	s.expect("service_2", "GET /v1/people/7", map[string]access.Reason{"csu_2": access.NoRule})
}

// A secret is shown once, and one that comes back in the wrong place goes
// nowhere from there. What every server checks at its end does the rest.
func TestSecrets(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"a"}`, `201 {"token":"csu_1"}`),
		r(`POST /service_users/service_1/tokens {}`, `201 {"token":"csu_2"}`),
		r(`POST /service_users/service_1/tokens/token_1/refresh {"grace":"1h"}`, `201 {"token":"csu_3"}`),
		r(`POST /permission_groups {"name":"g"}`, `201`),
		r(`GET /service_users`, `200`), r(`GET /service_users/service_1`, `200`), r(`GET /service_users/service_1/tokens`, `200`),
		r(`GET /service_users/service_1/tokens/token_1`, `200`), r(`GET /service_users/service_1/tokens/token_2`, `200`), r(`GET /service_users/service_1/tokens/token_3`, `200`),
		r(`PATCH /service_users/service_1 {"owner":"o"}`, `200`), r(`PATCH /service_users/service_1/tokens/token_3 {"description":"d"}`, `200`),

		r(`GET /service_users/csu_1`, `404`),
		r(`GET /csu_1`, `404`),
		r(`DELETE /service_users/service_1/tokens/csu_1`, `404`),
		r(`GET /service_users?before_id=csu_1`, `400 ERR_NGROK_227 [before_id]`),
		r(`GET /service_users?limit=csu_1`, `400 ERR_NGROK_244 [limit]`),
		r(`GET /service_users?name=csu_1`, `200 {"service_users":[]}`),
		r(`GET /service_users`, `200`, "Authorization: Bearer csu_1"),
		r(`POST /service_users {"name":"b","token":"csu_1"}`, `400 ERR_NGROK_214 [token]`),
		r(`PATCH /service_users/service_1 {"active":"csu_1"}`, `400 ERR_INVALID_VALUE [active]`),
		r(`PATCH /service_users/service_1 csu_1`, `400 ERR_NGROK_213`),
		r(`PATCH /service_users/service_1 {}`, `412`, `If-Match: csu_1`),
		r(`PATCH /service_users/service_1 {}`, `415`, `Content-Type: csu_1`),
		r(`POST /service_users/explain {"service_user_id":"csu_1","method":"GET","url":"/"}`, `400 ERR_INVALID_VALUE [service_user_id]`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/","token_id":"csu_1"}`, `400 ERR_INVALID_VALUE [token_id]`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/","headers":{"Authorization":"Bearer csu_1"}}`, `200 {"decision":"deny"}`),
		r(`POST /service_users/explain {"decision_id":"csu_1"}`, `404`),
		r(`GET /service_users/would_deny?service_user_id=csu_1`, `400 ERR_INVALID_VALUE [service_user_id]`),
		r(`GET /service_users/permissions?key=csu_1`, `200 {"permissions":[]}`),
		r(`POST /permission_groups {"name":"h","member_condition":"user.name == 'csu_1'"}`, `400 ERR_INVALID_VALUE [member_condition] holds a secret`),
		r(`PUT /service_users/permissions {"permissions":[{"key":"a","name":"A","description":"csu_1","rules":["allow GET /"]}]}`, `400 ERR_INVALID_VALUE [permissions.0.description] holds a secret`),
	)
	// No refusal repeats a secret, and no text that is kept takes one.
	s.run(
		r(`POST /service_users/service_1/tokens {"ttl":"csu_2"}`, `400 ERR_INVALID_VALUE [ttl] "csu_…" is not a duration`),
		r(`POST /permission_groups/group_1/rules "csu_2"`, `400 ERR_INVALID_VALUE rule "csu_…"`),
		r(`POST /permission_groups/group_1/rules "allow GET /csu_2"`, `400 ERR_INVALID_VALUE [rules] holds a secret`),
		r(`GET /service_users?csu_2=1`, `400 ERR_NGROK_231 [csu_…]`),
		r(`POST /service_users {"name":"x","role":"csu_2"}`, `400 ERR_INVALID_VALUE [role] "csu_…" is none of`),
		r(`POST /service_users {"name":"x","teams":["csu_2"]}`, `400 ERR_INVALID_VALUE [teams] holds a secret`),
		r(`POST /service_users/service_1/tokens {"metadata":"{\"key\":\"csu_2\"}"}`, `400 ERR_INVALID_VALUE [metadata] holds a secret`),
		r(`POST /api_keys {"owner_id":"service_1","metadata":"csu_2"}`, `400 ERR_INVALID_VALUE [metadata] holds a secret`),
		r(`PATCH /api_keys/token_3 {"metadata":"csu_2"}`, `400 ERR_INVALID_VALUE [metadata] holds a secret`),
	)
	s.run(r(`POST /permission_groups {"name":"h","rules":["allow GET /x when user.name == 'csu_2' || user.nam == 'x'"]}`, `400 ERR_INVALID_VALUE [rules.0]`))
	// Only its own answer tells the asker what it asked.
	for _, echo := range []row{
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/csu_2"}`, `200 {"path":"/csu_2"}`),
	} {
		shown := s.issued[s.real["csu_2"]]
		s.run(echo)
		s.issued[s.real["csu_2"]] = shown
	}

	refused := s.log.FilterMessage("request refused").Len()
	if want := 26; refused != want {
		t.Errorf("log: got %d refusals, want %d", refused, want)
	}
	events, _, err := s.store.AuditEvents(t.Context(), store.Local, store.AuditQuery{Limit: 100})
	if err != nil || len(events) != 8 {
		t.Fatalf("audit trail: got %d records, %v, want 8", len(events), err)
	}
	for _, e := range events {
		text := string(e.Before) + string(e.After)
		for name, secret := range s.real {
			if strings.HasPrefix(name, "csu_") && strings.Contains(text, secret) {
				t.Errorf("audit trail: %s stands in %s", name, text)
			}
		}
		if e.Actor != "local" || !store.ValidID("op", e.Operation) {
			t.Errorf("audit trail: got actor %q and operation %q, want local and an id", e.Actor, e.Operation)
		}
	}
	var made Token
	if err := json.Unmarshal([]byte(s.do(`POST /service_users/service_1/tokens {}`).raw), &made); err != nil || !strings.HasSuffix(made.Secret, made.Hint) || len(made.Hint) != 4 {
		t.Errorf("hint: got %q, %v, want the last four characters of the secret", made.Hint, err)
	}
	if got := fmt.Sprint(s.login("service_1", "csu_3")); strings.Contains(got, "csu_") {
		t.Errorf("principal: got %s, want no secret in it", got)
	}
}
