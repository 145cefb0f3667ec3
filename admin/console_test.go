package admin

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// The filters by group, label, owner and hint, and the orders by the end of tokens.
func TestListByTokensAndGroups(t *testing.T) {
	s := serve(t, store.Options{DefaultGroup: "everyone"})
	s.run(
		r(`POST /permission_groups {"name":"readers"}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"testers","member_condition":"user.labels.env == \"test\""}`, `201 {"id":"group_2"}`),
		r(`POST /permission_groups {"name":"everyone"}`, `201 {"id":"group_3"}`),
		r(`POST /service_users {"name":"later","token_ttl":"20d","permission_groups":["group_1"],"labels":{"env":"prod"},"owner":"ann"}`, `201 {"token_id":"token_1","token_count":1}`),
		r(`POST /service_users {"name":"soon","token_ttl":"13d","labels":{"env":"test"},"teams":["ops"]}`, `201 {"token_id":"token_2"}`),
		r(`POST /service_users {"name":"endless","labels":{"env":""},"owner":"Ann"}`, `201 {"token_id":"token_3","next_token_end":null}`),
		r(`POST /service_users {"name":"none","create_token":false}`, `201 {"token_count":0,"next_token_end":null,"editable":true}`),
		r(`POST /service_users {"name":"closed","token_ttl":"1d","active":false,"expires_at":"2026-01-02T05:04:05Z"}`, `201 {"token_count":1,"next_token_end":"t+7200s"}`),
		r(`POST /service_users/service_3/tokens {"not_before":"2026-02-01T00:00:00Z"}`, `201 {"id":"token_5"}`),
		r(`GET /service_users/service_3`, `200 {"token_count":2,"next_token_end":null}`),
	)
	hint := func(secret string) string { return access.Hint(s.real[secret]) }
	for query, want := range map[string]string{
		"group=readers": "later", "group=" + s.real["group_1"]: "later", "group=testers": "soon", "group=everyone": "closed none endless soon later",
		"label=env": "endless soon later", "label=env%3Dprod": "later", "label=env%3D": "endless", "label=Env": "",
		"owner=ann": "later", "owner=an": "", "label=env&group=testers": "soon",
		"q=" + hint("csu_1"): "later", "q=" + hint("csu_1")[1:]: "", "q=" + hint("csu_5"): "endless",
		"sort=usable":         "soon endless later closed none",
		"sort=-usable":        "none closed later endless soon",
		"sort=next_token_end": "closed soon later endless none", "sort=-next_token_end": "later soon closed none endless",
		"sort=status": "later soon endless none closed", "sort=usable&status=active": "soon endless later none",
	} {
		for _, limit := range []string{"", "&limit=1", "&limit=2"} {
			if got := strings.Join(s.follow("/service_users?"+query+limit, "service_users"), " "); got != want {
				t.Errorf("%s%s: got %q, want %q", query, limit, got, want)
			}
		}
		count := strings.Count(want, " ") + min(len(want), 1)
		if got := parse(s.do("GET /service_users?limit=1&total_count=true&" + query).raw).(map[string]any)["total_count"]; got != float64(count) {
			t.Errorf("%s: got a total of %v, want %d", query, got, count)
		}
	}
	// A token that has ended is found if no other one has the hint. Time moves service users to the edge
	// and away from it.
	s.run(
		r(`DELETE /service_users/service_1/tokens/token_1`, `204`),
		r(`GET /service_users?q=`+hint("csu_1"), `200 {"service_users":[{"name":"later","token_count":0,"next_token_end":null}]}`),
	)
	s.clock.Add(int64(14 * 24 * time.Hour))
	s.run(
		r(`GET /service_users?sort=usable`, `200 {"service_users":[{"name":"endless"},{"name":"closed"},{"name":"none"},{"name":"soon","token_count":0},{"name":"later"}]}`),
		r(`GET /service_users?status=expired`, `200 {"service_users":[{"name":"closed","token_count":0,"next_token_end":null}]}`),
		r(`GET /service_users?group=nobody`, `400 ERR_INVALID_VALUE [group] there is no permission group "nobody"`),
		r(`GET /service_users?group=group_0`, `400 ERR_INVALID_VALUE [group] there is no permission group`),
		r(`GET /service_users?group=readers&deleted=true`, `400 ERR_INVALID_VALUE [group] works only without deleted`),
		r(`GET /service_users?label=%3Dx`, `400 ERR_INVALID_VALUE [label]`),
		r(`DELETE /service_users/service_2`, `204`),
		r(`GET /service_users?deleted=true&label=env%3Dtest&team=ops&sort=usable`, `200 {"service_users":[{"name":"soon","token_count":0,"next_token_end":null,"editable":true}]}`),
	)
}

// A manager learns nothing by the new filters about groups and service users that it does not see, and
// editable says which service users it may change.
func TestListOfManager(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /permission_groups {"name":"readers"}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"secret"}`, `201 {"id":"group_2"}`),
		r(`POST /service_users {"name":"mine","teams":["ops"],"permission_groups":["group_1"]}`, `201`),
		r(`POST /service_users {"name":"beyond","teams":["ops"],"permission_groups":["group_2"]}`, `201`),
		r(`POST /service_users {"name":"boss","teams":["ops"],"role":"admin"}`, `201`),
		r(`POST /service_users {"name":"other","teams":["hr"],"owner":"ann"}`, `201 {"token":"csu_4"}`),
	)
	for _, editable := range []string{`true`, `false`} {
		s.run(r(`GET /service_users?sort=name`, `200 {"service_users":[{"name":"beyond","editable":`+editable+`},{"name":"boss","editable":`+editable+`},{"name":"mine","editable":true}`+
			map[string]string{`true`: `,{"name":"other","editable":true}`, `false`: ``}[editable]+`]}`))
		s.by = s.api.HumanManager("carol", []string{"ops"}, []string{"readers"})
	}
	s.run(
		r(`PATCH /service_users/service_2 {"owner":"x"}`, `403`),
		r(`GET /service_users?group=readers`, `200 {"service_users":[{"name":"mine"}]}`),
		r(`GET /service_users?group=secret`, `400 ERR_INVALID_VALUE [group] there is no permission group "secret"`),
		r(`GET /service_users?group=group_2`, `400 ERR_INVALID_VALUE [group] there is no permission group`),
		r(`GET /service_users?owner=ann&total_count=true`, `200 {"service_users":[],"total_count":0}`),
		r(`GET /service_users?total_count=true&q=`+url.QueryEscape(access.Hint(s.real["csu_4"])), `200 {"service_users":[],"total_count":0}`),
	)
}

// A bulk rotates the valid tokens of the chosen service users, once for each key.
func TestBulkRotate(t *testing.T) {
	s := serve(t, store.Options{})
	const bulk, tokens = `POST /service_users/bulk `, `/service_users/service_1/tokens`
	const key = `Idempotency-Key: k-1`
	s.run(
		r(`POST /service_users {"name":"a","token_ttl":"90d"}`, `201 {"token_id":"token_1","token":"csu_1"}`),
		r(`POST `+tokens+` {"description":"ci"}`, `201 {"id":"token_2","token":"csu_2"}`),
		r(`POST `+tokens+` {"not_before":"2027-01-01T00:00:00Z"}`, `201 {"id":"token_3"}`),
		r(`POST `+tokens+`/token_2/refresh {"grace":"1h"}`, `201 {"id":"token_4","token":"csu_4"}`),
		r(`POST /service_users {"name":"b"}`, `201 {"id":"service_2","token_id":"token_5","token":"csu_5"}`),
		r(`POST /service_users {"name":"c","create_token":false}`, `201 {"id":"service_3"}`),

		r(bulk+`{"do":"rotate","ids":["service_1"]}`, `400 ERR_INVALID_VALUE [grace]`),
		r(bulk+`{"do":"rotate","ids":["service_1"],"grace":"0s"}`, `400 ERR_INVALID_VALUE [grace]`),
		r(bulk+`{"do":"deactivate","ids":["service_1"],"grace":"1h"}`, `400 ERR_INVALID_VALUE [grace] goes only with "do": rotate`),
		r(bulk+`{"do":"rotate","filter":"true","grace":"24h","dry_run":true}`,
			`200 {"do":"rotate","dry_run":true,"changed":2,"unchanged":1,"service_users":[{"name":"c","changed":false},{"name":"b","tokens":[{"id":"","replaces":"token_5"}]},{"name":"a","tokens":[{"id":"","replaces":"token_1"},{"id":"","replaces":"token_4","description":"ci"}]}]}`),
	)
	if got := s.do(bulk + `{"do":"rotate","filter":"true","grace":"24h","dry_run":true}`); strings.Contains(got.text, "csu_") || strings.Contains(got.text, `"tokens":null`) {
		t.Errorf("a dry run: got %s, want no secret", got.text)
	}
	s.expect("service_1", "GET /", map[string]access.Reason{"csu_1": access.NoRule, "csu_4": access.NoRule})
	const rotate = bulk + `{"do":"rotate","filter":"obj.name < 'c'","grace":"24h"}`
	s.run(
		r(rotate, `200 {"changed":2,"service_users":[{"name":"b","tokens":[{"id":"token_6","token":"csu_6","replaces":"token_5","replaced":{"state":"retiring"}}]},{"name":"a","tokens":[{"id":"token_7","token":"csu_7","replaces":"token_1"},{"id":"token_8","token":"csu_8","replaces":"token_4"}]}]}`, key),
		r(rotate, `200 {"changed":2,"service_users":[{"name":"b","tokens":[{"id":"token_6","token":"csu_9","replaces":"token_5"}]},{"name":"a","tokens":[{"id":"token_7","token":"csu_10","replaces":"token_1"},{"id":"token_8","token":"csu_11"}]}]}`, key),
		r(`GET `+tokens+`/token_4`, `200 {"state":"retiring","replaced_by":"token_8"}`),
		r(`GET `+tokens+`/token_3`, `200 {"state":"pending"}`),
	)
	s.expect("service_1", "GET /", map[string]access.Reason{
		"csu_1": access.NoRule, "csu_7": access.WrongSecret, "csu_8": access.WrongSecret, "csu_10": access.NoRule, "csu_11": access.NoRule,
	})
	// Service users that the filter does not select any more would lose the secrets that they have.
	s.run(
		r(`PATCH /service_users/service_2 {"name":"z"}`, `200`),
		r(rotate, `409 ERR_CONFLICT the request was answered before, for service users that are not chosen any more`, key),
		r(bulk+`{"do":"rotate","ids":["service_3"],"grace":"24h"}`, `200 {"changed":0,"unchanged":1}`),
	)
	s.expect("service_1", "GET /", map[string]access.Reason{"csu_10": access.NoRule})
}

// A repeated request with If-None-Match changes nothing, and its answer names the token.
func TestIdempotencyKeyNew(t *testing.T) {
	s := serve(t, store.Options{})
	const key, fresh = `Idempotency-Key: k-1`, `If-None-Match: *`
	const answered = `412 {"error_code":"ERR_ANSWERED","details":{"token_id":"token_1","service_user_id":"service_1"}}`
	s.run(
		r(`POST /service_users {"name":"a"}`, `201 {"id":"service_1","token_id":"token_1","token":"csu_1"}`, key, fresh),
		r(`POST /service_users {"name":"a"}`, answered, key, fresh),
		r(`POST /service_users {"name":"b"}`, `422 ERR_KEY_USED [Idempotency-Key] the key was sent before`, key, fresh),
		r(`POST /service_users {"name":"a"}`, `400 ERR_INVALID_VALUE [If-None-Match]`, key, `If-None-Match: "1"`),
		r(`POST /service_users {"name":"a"}`, `409 ERR_NGROK_4112 [name]`, fresh), // without a key the header has no meaning
	)
	s.expect("service_1", "GET /", map[string]access.Reason{"csu_1": access.NoRule})
	p, _ := s.login("service_1", "csu_1")
	s.store.Use(p, s.now().Unix(), testAddr, "")
	s.run(
		r(`POST /service_users {"name":"a"}`, answered, key, fresh), // the token may be in use
		r(`POST /service_users/bulk {"do":"create","users":[{"name":"b"},{"name":"c"}]}`, `200 {"service_users":[{"id":"service_2","token_id":"token_2","token":"csu_2"},{"token_id":"token_3","token":"csu_3"}]}`, `Idempotency-Key: k-2`, fresh),
		r(`GET /audit_events?limit=1`, `200 {"audit_events":[{"action":"token.create"}]}`),
	)
	if got := s.do(`POST /service_users/bulk {"do":"create","users":[{"name":"b"},{"name":"c"}]}`, `Idempotency-Key: k-2`, fresh); got.status != 412 ||
		!strings.Contains(s.rename(got.text), `"token_id":"token_2,token_3"`) || !strings.Contains(s.rename(got.text), `"service_user_id":"service_2,service_3"`) {
		t.Errorf("a bulk: got %d %s", got.status, got.text)
	}
	s.by = store.Actor{Name: "human:carol"}
	s.run(r(`POST /service_users {"name":"d"}`, `201 {"name":"d"}`, key, fresh)) // another actor has its own keys
}
