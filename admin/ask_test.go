package admin

import (
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/store"
)

// A question about a pattern lists the service users that may make each request of it, and marks those
// that may make only some.
func TestWhoCanPattern(t *testing.T) {
	s := serve(t, store.Options{})
	const who = "GET /service_users/who_can?method="
	s.run(
		r(`POST /permission_groups {"name":"all","rules":["allow DELETE /v1/people/{id}"]}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"one","rules":["allow DELETE /v1/people/7"]}`, `201 {"id":"group_2"}`),
		r(`POST /permission_groups {"name":"but","rules":["deny DELETE /v1/people/me"]}`, `201 {"id":"group_3"}`),
		r(`POST /permission_groups {"name":"own","rules":["allow DELETE /v1/people/{id} when params.id == user.name"]}`, `201 {"id":"group_4"}`),
		r(`POST /permission_groups {"name":"none","rules":["deny * /v1/{rest...}"]}`, `201 {"id":"group_5"}`),
		r(`POST /service_users {"name":"every","permission_groups":["group_1"]}`, `201 {"id":"service_1"}`),
		r(`POST /service_users {"name":"literal","permission_groups":["group_2"]}`, `201 {"id":"service_2"}`),
		r(`POST /service_users {"name":"hole","permission_groups":["group_1","group_3"]}`, `201 {"id":"service_3"}`),
		r(`POST /service_users {"name":"own","permission_groups":["group_4"]}`, `201 {"id":"service_4"}`),
		r(`POST /service_users {"name":"denied","permission_groups":["group_1","group_5"]}`, `201 {"id":"service_5"}`),

		r(who+`DELETE&url=/v1/people/{id}`, `200 {"service_users":[`+
			`{"name":"own","some":true,"rule":{"id":"rule_4"}},{"name":"hole","some":true,"rule":{"id":"rule_1"}},`+
			`{"name":"literal","some":true,"rule":{"id":"rule_2"}},{"name":"every","some":false,"rule":{"id":"rule_1"},"obstacle":null}],"cannot_log_in":[],"undecided":[]}`),
		r(who+`DELETE&url=https://api.example.com/v1/people/{id}?x=1`, `200 {"service_users":[{"name":"own"},{"name":"hole"},{"name":"literal"},{"name":"every"}]}`),
		r(who+`DELETE&url=/v1/people/{id}&limit=1`, `200 {"service_users":[{"name":"own"}],"next_page_uri":"/service_users/who_can?before_id=service_4&limit=1&method=DELETE&url=%2Fv1%2Fpeople%2F%7Bid%7D"}`),
		r(who+`DELETE&url=/v1/people/7`, `200 {"service_users":[{"name":"hole","some":false},{"name":"literal","some":false},{"name":"every"}]}`),
		r(who+`DELETE&url=/{rest...}`, `200 {"service_users":[{"name":"own","some":true},{"some":true},{"some":true},{"name":"every","some":true}]}`),
		r(who+`GET&url=/v1/people/{id}`, `200 {"service_users":[]}`),

		// What can be no request is refused in the words of explain.
		r(who+`GET&url=/v1/../x`, `400 ERR_INVALID_VALUE [url] the request is refused with status 400 before any rule is read: the path has a dot segment at position 4`),
		r(who+`GET&url=/v1/{id}/../x`, `400 ERR_INVALID_VALUE [url] the request is refused with status 400 before any rule is read: the path has a dot segment at position 9`),
		r(who+`GET&url=/v1%23x`, `400 ERR_INVALID_VALUE [url] the request is refused with status 400 before any rule is read: the path holds the byte 0x23 at position 3, which is not allowed in a path`),
		r(who+`GET&url=/v1//x`, `400 ERR_INVALID_VALUE [url] the request is refused with status 400 before any rule is read: the path has an empty segment at position 4; the option merge_slashes would let it pass`),
		r(who+`TRACE&url=/v1`, `400 ERR_INVALID_VALUE [method] the request is refused with status 405 before any rule is read: the method TRACE is not allowed`),
		r(who+`GE%20T&url=/v1`, `400 ERR_INVALID_VALUE [method] is not a method such as GET`),
		r(who+`GET&url=v1/{id}`, `400 ERR_INVALID_VALUE [url] is neither a path such as /v1/people/7 nor an absolute URL`),
		r(who+`GET&url=/v1/{id}.json`, `400 ERR_INVALID_VALUE [url] path "/v1/{id}.json": segment "{id}.json": a parameter is {name} or {name...}, fills a whole segment`),
		r(who+`GET&url=/v1/{rest...}/x`, `400 ERR_INVALID_VALUE [url] path "/v1/{rest...}/x": {rest...} takes all that follows`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/v1/{id}"}`,
			`200 {"decision":"deny","reason":"ambiguous","detail":"the request is refused with status 400 before any rule is read: the path holds the byte 0x7b at position 4, which is not allowed in a path; who_can answers for every value of a parameter"}`),
	)
}

// What a question leaves out is not taken for an answer: the address, a header, the time, the host.
func TestNotAsked(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /permission_groups {"name":"g","rules":["allow GET /ip when cidr('10.0.0.0/8').containsIP(request.remote_ip)","allow GET /not when request.remote_ip != '192.0.2.1'",`+
			`"allow GET /env when request.header('x-env') == 'prod'","allow GET /plain when request.header('X-Debug') == ''","allow GET /late when now > timestamp('2027-01-01T00:00:00Z')",`+
			`"allow GET api.example.com/host","allow GET /hosted when request.host == 'api.example.com'","allow GET /{x}/ip when params.x == 'a' && request.remote_ip == '10.0.0.1'",`+
			`"allow GET /deny","deny GET /deny when request.remote_ip == '10.0.0.1'","allow GET /both when request.header('X-Env') == 'prod' && request.remote_ip == '10.0.0.1'",`+
			`"allow GET /no when user.name == 'x' && request.remote_ip == '10.0.0.1'","allow GET /early when now < timestamp('2027-01-01T00:00:00Z')"]}`, `201 {"id":"group_1"}`),
		r(`POST /service_users {"name":"a","permission_groups":["group_1"]}`, `201 {"id":"service_1"}`),
	)
	for _, row := range []struct{ ask, detail, why, facts string }{
		{`/ip`, `no rule allows it; not asked: give remote_ip`, `not asked: give remote_ip`, "remote_ip"},
		{`/ip {"remote_ip":"192.0.2.1"}`, `no rule allows it`, `its condition does not hold: cidr('10.0.0.0/8').containsIP(request.remote_ip)`, ""},
		{`/ip {"remote_ip":"10.0.0.1"}`, `a rule allows it`, ``, ""},
		{`/not`, `no rule allows it; not asked: give remote_ip`, `not asked: give remote_ip`, "remote_ip"},
		{`/not {"remote_ip":"10.0.0.1"}`, `a rule allows it`, ``, ""},
		{`/env`, `no rule allows it; not asked: give headers.X-Env`, `not asked: give headers.X-Env`, "headers.X-Env"},
		{`/env {"headers":{"X-Other":"prod"}}`, `no rule allows it; not asked: give headers.X-Env`, `not asked: give headers.X-Env`, "headers.X-Env"},
		{`/env {"headers":{"X-Env":""}}`, `no rule allows it`, `its condition does not hold: request.header('x-env') == 'prod'`, ""}, // absent
		{`/plain`, `no rule allows it; not asked: give headers.X-Debug`, `not asked: give headers.X-Debug`, "headers.X-Debug"},
		{`/plain {"headers":{"x-debug":""}}`, `a rule allows it`, ``, ""},
		{`/late`, `no rule allows it; not asked: give at`, `not asked: give at; now its condition does not hold: now > timestamp('2027-01-01T00:00:00Z')`, "at"},
		{`/late {"at":"2026-12-31T23:59:59Z"}`, `no rule allows it`, `its condition does not hold: now > timestamp('2027-01-01T00:00:00Z')`, ""},
		{`/late {"at":"2027-01-01T02:00:00+01:00"}`, `a rule allows it`, ``, ""},
		{`/early`, `a rule allows it`, ``, ""}, // now is an answer too
		{`/host`, `no rule allows it; not asked: give host`, `not asked: give host`, "host"},
		{`https://www.example.com/host`, `no rule allows it`, `the path has "host" where /ip has "ip"`, ""},
		{`/hosted`, `no rule allows it; not asked: give host`, `not asked: give host`, "host"},
		{`https://api.example.com/hosted`, `a rule allows it`, ``, ""},
		{`/a/ip`, `no rule allows it; not asked: give remote_ip`, `not asked: give remote_ip`, "remote_ip"},
		{`/b/ip`, `no rule allows it`, `its condition does not hold: params.x == 'a' && request.remote_ip == '10.0.0.1'`, ""},
		{`/deny`, `a rule denies it, and a deny wins over any allow; not asked: give remote_ip`, `a deny wins`, "remote_ip"},
		{`/deny {"remote_ip":"10.0.0.2"}`, `a rule allows it`, ``, ""},
		{`/both`, `no rule allows it; not asked: give headers.X-Env, remote_ip`, `not asked: give headers.X-Env, remote_ip`, "headers.X-Env remote_ip"},
		{`/both {"remote_ip":"10.0.0.1"}`, `no rule allows it; not asked: give headers.X-Env`, `not asked: give headers.X-Env`, "headers.X-Env"},
		{`/both {"remote_ip":"10.0.0.2"}`, `no rule allows it`, `its condition does not hold: request.header('X-Env') == 'prod' && request.remote_ip == '10.0.0.1'`, ""},
		{`/no`, `no rule allows it`, `its condition does not hold: user.name == 'x' && request.remote_ip == '10.0.0.1'`, ""},
	} {
		url, more, found := strings.Cut(row.ask, " ")
		if found {
			more = "," + more[1:len(more)-1]
		}
		e := s.explain(`{"service_user_id":"service_1","method":"GET","url":"` + url + `"` + more + `}`)
		why := ""
		if e.Nearest != nil {
			why = e.Nearest.Why
		}
		if e.Detail != row.detail || why != row.why || strings.Join(e.NotAsked, " ") != row.facts {
			t.Errorf("%s: got %q, nearest %q, not asked %q, want %q, %q, %q", row.ask, e.Detail, why, e.NotAsked, row.detail, row.why, row.facts)
		}
		if e.Decision == "allow" && strings.Contains(e.Detail, "no rule") {
			t.Errorf("%s: got %s with %s", row.ask, e.Decision, e.Detail)
		}
	}
	const deny = `{"rule":{"id":"rule_10"},"applies":true,"why":"not asked: give remote_ip; until then the deny applies","not_asked":["remote_ip"]}`
	const who = `GET /service_users/who_can?method=GET&url=`
	s.run(
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/deny"}`, `200 {"reason":"denied_by_rule","considered":[`+deny+`,{"rule":{"id":"rule_9"},"not_asked":[]},{},{},{},{},{},{},{},{},{},{},{}]}`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/late","at":"tomorrow"}`, `400 ERR_INVALID_VALUE [at] "tomorrow" is not a time such as 2030-01-31T12:00:00Z`),

		r(who+`/ip`, `200 {"service_users":[],"undecided":[{"needs":"remote_ip","rules":1}]}`),
		r(who+`/{x}`, `200 {"service_users":[{"some":true}],"undecided":[{"needs":"at","rules":2},{"needs":"headers.X-Debug","rules":1},{"needs":"headers.X-Env","rules":2},{"needs":"host","rules":2},{"needs":"remote_ip","rules":4}]}`),
		r(who+`/{x}/ip`, `200 {"service_users":[{"name":"a","some":true}],"undecided":[{"needs":"remote_ip","rules":1}]}`),
		r(who+`/b/ip`, `200 {"service_users":[],"undecided":[]}`),
		r(who+`/ip&remote_ip=10.0.0.1`, `200 {"service_users":[{"name":"a"}],"undecided":[]}`),
		r(who+`/env&header=x-env%3Dprod&header=X-Two%3D`, `200 {"service_users":[{"name":"a"}],"undecided":[]}`),
		r(who+`/env&header=X-Env%3D`, `200 {"service_users":[],"undecided":[]}`),
		r(who+`/env`, `200 {"service_users":[],"undecided":[{"needs":"headers.X-Env","rules":1}]}`),
		r(who+`/late`, `200 {"service_users":[],"undecided":[{"needs":"at","rules":1}]}`),
		r(who+`/late&at=2028-01-01T00:00:00Z`, `200 {"service_users":[{"name":"a"}],"undecided":[]}`),
		r(who+`/host`, `200 {"service_users":[],"undecided":[{"needs":"host","rules":1}]}`),
		r(who+`/deny`, `200 {"service_users":[],"undecided":[{"needs":"remote_ip","rules":1}]}`),
		r(who+`/no`, `200 {"service_users":[],"undecided":[]}`),
		r(who+`/env&header=X-Env`, `400 ERR_INVALID_VALUE [header] "X-Env": must be NAME=VALUE, once for each header`),
		r(who+`/env&header=X-Env%3Da&header=x-env%3Db`, `400 ERR_INVALID_VALUE [headers.X-Env] appears twice, in upper and in lower case`),
		r(who+`/env&header=`, `400 ERR_NGROK_230 [header] is empty`),
		r(who+`/env&at=7d`, `400 ERR_INVALID_VALUE [at]`),
	)
}

// If nobody can log in as a service user, every answer about its rights names the obstacle.
func TestObstacle(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /permission_groups {"name":"g","rules":["allow GET /a"]}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"h","rules":["allow GET /b"]}`, `201 {"id":"group_2"}`),
	)
	const groups = `"permission_groups":["group_1","group_2"]`
	for i, row := range []struct{ user, token string }{
		{`"name":"none"`, ``},
		{`"name":"inactive","active":false`, `{}`},
		{`"name":"expired","expires_at":"t+500s"`, `{}`},
		{`"name":"ended"`, `{"ttl":"1m"}`},
		{`"name":"begins"`, `{"not_before":"2027-06-01T00:00:00Z"}`},
		{`"name":"away","allowed_ips":["10.0.0.0/8"]`, `{}`},
		{`"name":"tokens away"`, `{"allowed_ips":["10.0.0.0/8"]}`},
		{`"name":"never","allowed_ips":["10.0.0.0/8"]`, `{"allowed_ips":["192.0.2.0/24"]}`},
	} {
		id := strings.Replace("service_N", "N", string(rune('1'+i)), 1)
		s.run(r(`POST /service_users {`+row.user+`,"create_token":false,`+groups+`}`, `201 {"id":"`+id+`"}`))
		if row.token != "" {
			s.run(r(`POST /service_users/`+id+`/tokens `+row.token, `201`))
		}
	}
	s.run(
		r(`POST /service_users {"name":"two",`+groups+`,"token_ttl":"1m"}`, `201 {"id":"service_9","token_id":"token_8","obstacle":null}`),
		r(`POST /service_users/service_9/tokens {}`, `201 {"id":"token_9"}`),
		r(`DELETE /service_users/service_9/tokens/token_9`, `204`),
		r(`POST /service_users {"name":"narrowed",`+groups+`,"create_token":false}`, `201 {"id":"service_10","obstacle":"the service user has no token"}`),
		r(`POST /service_users/service_10/tokens {"permission_groups":["group_2"]}`, `201 {"id":"token_10"}`),
	)
	s.clock.Store(int64(1e9 * 3600))
	const who = `GET /service_users/who_can?method=GET&url=`
	for i, row := range []struct{ from, obstacle, reason string }{
		{``, `the service user has no token`, "no_credential"},
		{``, `the service user is deactivated`, "user_inactive"},
		{``, `the service user has expired`, "user_expired"},
		{``, `the token has expired`, "token_expired"},
		{``, `the token is not valid yet`, "token_not_yet_valid"},
		{`192.0.2.1`, `the address is not among the allowed_ips of the service user`, "user_address"},
		{`192.0.2.1`, `the address is not among the allowed_ips of the token`, "token_address"},
		{`192.0.2.1`, `the address is not among the allowed_ips of the service user`, "user_address"},
		{``, `the token is revoked`, "token_revoked"},
	} {
		id := strings.Replace("service_N", "N", string(rune('1'+i)), 1)
		question := `"service_user_id":"` + id + `","method":"GET","remote_ip":"` + row.from + `"`
		s.run(
			r(`POST /service_users/explain {`+question+`,"url":"/a"}`, `200 {"decision":"deny","reason":"`+row.reason+`","detail":"it cannot authenticate: `+row.obstacle+`","obstacle":"`+row.obstacle+`","rule":null,"grant":null}`),
			r(`POST /service_users/explain {`+question+`,"url":"/a/../b"}`, `200 {"reason":"ambiguous","obstacle":"`+row.obstacle+`"}`),
		)
		if row.from != "" { // the others do not ask about an address
			s.run(
				r(`POST /service_users/explain {"service_user_id":"`+id+`","method":"GET","url":"/a"}`, `200 {"decision":"allow","obstacle":null}`),
				r(`GET /service_users/`+id, `200 {"obstacle":null}`),
				r(`GET /service_users/`+id+`/access`, `200 {"obstacle":null}`),
			)
			continue
		}
		s.run(
			r(`GET /service_users/`+id, `200 {"obstacle":"`+row.obstacle+`"}`),
			r(`GET /service_users/`+id+`/access`, `200 {"obstacle":"`+row.obstacle+`"}`),
		)
	}
	s.run(
		r(who+`/a`, `200 {"service_users":[{"name":"never"},{"name":"tokens away"},{"name":"away"}],"cannot_log_in":[{"name":"two","obstacle":"the token is revoked","rule":{"id":"rule_1"}},`+
			`{"name":"begins"},{"name":"ended"},{"name":"expired"},{"name":"inactive"},{"name":"none","obstacle":"the service user has no token"}]}`),
		r(who+`/a&remote_ip=192.0.2.1`, `200 {"service_users":[],"cannot_log_in":[{"name":"two"},{"name":"never"},{"name":"tokens away"},{"name":"away"},{},{},{},{},{}]}`),
		// The time of the question is the time of the tokens too.
		r(who+`/a&at=2027-07-01T00:00:00Z`, `200 {"service_users":[{"name":"never"},{"name":"tokens away"},{"name":"away"},{"name":"begins","obstacle":null}]}`),
		// A page ends where one of its two lists is full.
		r(who+`/a&limit=2`, `200 {"service_users":[{"name":"never"},{"name":"tokens away"}],"cannot_log_in":[{"name":"two"}],"next_page_uri":"/service_users/who_can?before_id=service_7&limit=2&method=GET&url=%2Fa"}`),
		r(who+`/c`, `200 {"service_users":[],"cannot_log_in":[]}`),

		// With narrowed tokens only, the answer is for one of them.
		r(who+`/b`, `200 {"service_users":[{"name":"narrowed"},{"name":"never"},{"name":"tokens away"},{"name":"away"}]}`),
		r(`POST /service_users/explain {"service_user_id":"service_10","method":"GET","url":"/b"}`, `200 {"decision":"allow","detail":"a rule allows it; this is for token_10, since every usable token is narrowed to permission groups","obstacle":null}`),
		r(`POST /service_users/explain {"service_user_id":"service_10","method":"GET","url":"/a"}`, `200 {"decision":"deny","reason":"no_rule","detail":"no rule allows it; this is for token_10, since every usable token is narrowed to permission groups"}`),
		r(`POST /service_users/service_10/tokens {"permission_groups":["group_1"]}`, `201 {"id":"token_11"}`),
		r(`POST /service_users/explain {"service_user_id":"service_10","method":"GET","url":"/a"}`, `200 {"decision":"allow","detail":"a rule allows it; this is for token_11, since every usable token is narrowed to permission groups"}`),
		r(`POST /service_users/service_10/tokens {}`, `201 {"id":"token_12"}`),
		r(`POST /service_users/explain {"service_user_id":"service_10","method":"GET","url":"/a"}`, `200 {"decision":"allow","detail":"a rule allows it"}`),

		r(`DELETE /service_users/service_1`, `204`),
		r(`GET /service_users/service_1?deleted=true`, `200 {"obstacle":"the service user is deleted"}`),
	)
}
