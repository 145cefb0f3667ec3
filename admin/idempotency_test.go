package admin

import (
	"net/http"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// A POST that issues a token and is sent again under its key issues no second one, at each path.
func TestIdempotencyKey(t *testing.T) {
	s := serve(t, store.Options{})
	const key, tokens = `Idempotency-Key: "k-1"`, "/service_users/service_1/tokens"
	s.run(
		r(`POST /service_users {"name":"a"}`, `201 {"id":"service_1","token_id":"token_1","token":"csu_1","etag":"\"1\""}`, key),
		r(`POST /service_users {"name":"a"}`, `201 {"id":"service_1","token_id":"token_1","token":"csu_2","etag":"\"1\""}`, key),
		r(`POST /service_users/ {"name":"a"}`, `201 {"id":"service_1","token_id":"token_1","token":"csu_3"}`, `Idempotency-Key: k-1`),
		r(`POST /service_users {"name":"a"}`, `409 ERR_NGROK_4112 [name]`),
		r(`POST /service_users {"name":"a"}`, `409 ERR_NGROK_4112 [name]`, `Idempotency-Key: k-2`), // which stays free
		r(`POST `+tokens+` {"ttl":"1h"}`, `201 {"id":"token_2","token":"csu_4","expires_at":"t+3606s"}`, `Idempotency-Key: k-2`),
		r(`POST `+tokens+` {"ttl":"1h"}`, `201 {"id":"token_2","token":"csu_5","expires_at":"t+3606s","hint":"hint","state":"active"}`, `Idempotency-Key: k-2`),
		r(`POST `+tokens+`/token_2/refresh {"grace":"1h"}`, `201 {"id":"token_3","token":"csu_6","replaces":"token_2"}`, `Idempotency-Key: k-3`, `If-Match: "2"`),
		r(`POST `+tokens+`/token_2/refresh {"grace":"1h"}`, `201 {"id":"token_3","token":"csu_7","replaces":"token_2","replaced":{"id":"token_2","state":"retiring"}}`, `Idempotency-Key: k-3`, `If-Match: "2"`),
		r(`POST /api_keys {"owner_id":"service_1"}`, `201 {"id":"token_4","token":"csu_8"}`, `Idempotency-Key: k-4`),
		r(`POST /api_keys {"owner_id":"service_1"}`, `201 {"id":"token_4","token":"csu_9"}`, `Idempotency-Key: k-4`),
		r(`POST /bot_users {"name":"b","create_token":true}`, `201 {"id":"service_2","token_id":"token_5","token":"csu_10","uri":"/bot_users/service_2"}`, `Idempotency-Key: k-5`),
		r(`POST /bot_users {"name":"b","create_token":true}`, `201 {"id":"service_2","token_id":"token_5","token":"csu_11","uri":"/bot_users/service_2"}`, `Idempotency-Key: k-5`),
		r(`GET /service_users/service_1/tokens`, `200 {"tokens":[{"id":"token_4"},{"id":"token_3"},{"id":"token_2"},{"id":"token_1"}]}`),
		r(`GET /audit_events?resource_id=token_3`, `200 {"audit_events":[{"action":"token.reissue"},{"action":"token.create"}]}`),
	)
	s.expect("service_1", "GET /", map[string]access.Reason{
		"csu_1": access.WrongSecret, "csu_2": access.WrongSecret, "csu_3": access.NoRule,
		"csu_4": access.WrongSecret, "csu_5": access.NoRule, "csu_6": access.WrongSecret, "csu_7": access.NoRule,
		"csu_8": access.WrongSecret, "csu_9": access.NoRule,
	})
	// Another request, and a token with a user: its id is in the message and in the details.
	p, _ := s.login("service_1", "csu_9")
	s.store.Use(p, s.now().Unix(), testAddr, "")
	s.run(
		r(`POST /service_users {"name":"c"}`, `422 ERR_KEY_USED [Idempotency-Key] the key was sent before with another request`, key),
		r(`POST /bot_users {"name":"a"}`, `422 ERR_KEY_USED [Idempotency-Key]`, key),
		r(`POST `+tokens+` {"name":"a"}`, `400 ERR_NGROK_214 [name]`, key),
		r(`POST /service_users {"name": "a"}`, `422 ERR_KEY_USED [Idempotency-Key]`, key), // other bytes
		r(`POST /api_keys {"owner_id":"service_1"}`, `409 ERR_CONFLICT [token_id] the request was answered before, and its token token_4 has been used`, `Idempotency-Key: k-4`),
		r(`DELETE `+tokens+`/token_3`, `204`),
		r(`POST `+tokens+`/token_2/refresh {"grace":"1h"}`, `409 ERR_CONFLICT [token_id] the request was answered before, and its token token_3 is revoked by now`, `Idempotency-Key: k-3`),
		r(`POST `+tokens+` {"ttl":"1h"}`, `409 ERR_CONFLICT [token_id] the request was answered before, and its token token_2 is retiring`, `Idempotency-Key: k-2`),
		r(`POST /service_users {"name":"d","create_token":false}`, `400 ERR_INVALID_VALUE [Idempotency-Key] the request issues no token`, `Idempotency-Key: k-6`),
		r(`POST /bot_users {"name":"d"}`, `400 ERR_INVALID_VALUE [Idempotency-Key] the request issues no token`, `Idempotency-Key: k-6`),
		r(`GET /service_users?name=d`, `200 {"service_users":[]}`),
	)
	// Each person has its own keys.
	s.by = store.Actor{Name: "human:carol"}
	s.run(r(`POST /service_users {"name":"c"}`, `201 {"name":"c"}`, key))
}

// A bulk that is sent again under its key gives each of its service users the token that it has.
func TestIdempotencyKeyOfBulk(t *testing.T) {
	s := serve(t, store.Options{})
	const create = `POST /service_users/bulk {"do":"create","users":[{"name":"a"},{"name":"b","create_token":false},{"name":"c","create_token":true}]}`
	const key, ngrok = `Idempotency-Key: k-1`, `Ngrok-Version: 2`
	s.run(
		r(create, `200 {"service_users":[{"id":"service_1"},{"id":"service_2"},{"id":"service_3","token_id":"token_1","token":"csu_1"}]}`, key, ngrok),
		r(create, `200 {"service_users":[{"id":"service_1"},{"id":"service_2"},{"id":"service_3","token_id":"token_1","token":"csu_2"}]}`, key, ngrok),
		r(create, `422 ERR_KEY_USED [Idempotency-Key] the key was sent before with another request`, key), // without the header it issues another token
		// Another service user that has the name by now is not the one of the request.
		r(`DELETE /service_users/service_2`, `204`),
		r(create, `409 ERR_CONFLICT [users.1] the request was answered before, and its service user "b" is gone`, key, ngrok),
	)
	by := s.by
	s.by = store.Actor{Name: "human:carol"}
	s.run(r(`POST /service_users {"name":"b","create_token":false}`, `201 {"id":"service_4"}`))
	s.by = by
	s.run(r(create, `409 ERR_CONFLICT [users.1] the request was answered before, and its service user "b" is gone`, key, ngrok))
}

// A manager does not see a service user in the answer to a replay that has left its reach.
func TestIdempotencyKeyOfManager(t *testing.T) {
	s := serve(t, store.Options{})
	const key = `Idempotency-Key: k-1`
	s.run(r(`POST /service_users {"name":"manager","role":"manager","teams":["ops"]}`, `201 {"id":"service_1","token":"csu_1"}`))
	p, _ := s.login("service_1", "csu_1")
	by, err := s.api.ServiceUserActor(p)
	if err != nil {
		t.Fatal(err)
	}
	admin := s.by
	const mine = `POST /service_users/bulk {"do":"create","users":[{"name":"c","teams":["ops"],"create_token":false},{"name":"d","teams":["ops"]}]}`
	s.by = by
	s.run(r(mine, `200 {"service_users":[{"id":"service_2"},{"id":"service_3","token_id":"token_2","token":"csu_2"}]}`, key))
	s.by = admin
	s.run(r(`PATCH /service_users/service_2 {"teams":["hr"],"description":"salaries"}`, `200`))
	s.by = by
	s.run(r(mine, `409 ERR_CONFLICT [users.0] the request was answered before, and its service user "c" is gone`, key))
}

// The form of a key, and requests that have no use for one.
func TestIdempotencyKeyRefused(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	const create = `POST /service_users/service_1/tokens {}`
	for _, value := range []string{"", `""`, `"`, `"a`, `a"b" c`, `"a"b"`, `"a\b"`, "ü", "a\tb", strings.Repeat("x", 256), `"` + strings.Repeat("x", 256) + `"`} {
		want := "400 ERR_INVALID_VALUE [Idempotency-Key] must be one text of 1 to 255"
		if value == `a"b" c` { // a quote inside a bare text is a character like any other
			want = "201"
		}
		s.run(r(create, want, "Idempotency-Key: "+value))
	}
	s.run(
		r(create, `400 ERR_INVALID_VALUE [Idempotency-Key]`, "Idempotency-Key: a", "Idempotency-Key: a"),
		r(create, `201`, "Idempotency-Key: "+strings.Repeat("x", 255)),
		r(create, `201 {"id":"token_4"}`, `Idempotency-Key: "a \"quoted\" \\ key"`),
		r(create, `201 {"id":"token_4"}`, `Idempotency-Key: "a \"quoted\" \\ key"`),
		r(`PATCH /service_users/service_1 {"owner":"o"}`, `200 {"owner":"o"}`, "Idempotency-Key: a"),
		r(`GET /service_users`, `200`, "Idempotency-Key: a"),
		r(`DELETE /service_users/service_1`, `204`, "Idempotency-Key: a"),
	)
	issuing, doc := 0, readOpenAPI()
	for _, route := range s.api.routes() {
		if route.method != http.MethodPost {
			continue
		}
		refused := s.ask("POST "+fill(route.path, "x")+" {}", "Idempotency-Key: a")
		if got := strings.Contains(refused.text, "works only where a token is issued"); got == route.issuing || got && refused.status != 400 {
			t.Errorf("%s: refused: %t, %d", route.path, got, refused.status)
		}
		documented := false
		for _, p := range doc.Paths[route.path]["post"].Parameters {
			documented = documented || p.Name == "Idempotency-Key" && p.In == "header"
		}
		if documented != route.issuing {
			t.Errorf("%s: documented: %t, want %t", route.path, documented, route.issuing)
		}
		if route.issuing {
			issuing++
		}
	}
	if issuing < 5 {
		t.Errorf("routes that take a key: got %d", issuing)
	}
}

// The lists of tokens, of one service user and of all, and their filters.
func TestTokenLists(t *testing.T) {
	s := serve(t, store.Options{})
	const all = "/service_users/tokens"
	s.run(
		r(`POST /service_users {"name":"a","teams":["ops"]}`, `201 {"id":"service_1","token_id":"token_1"}`),
		r(`POST /service_users {"name":"b","expires_at":"t+86400s","create_token":false}`, `201 {"id":"service_2"}`),
		r(`POST /service_users/service_2/tokens {"ttl":"10d"}`, `201 {"id":"token_2","expires_at":"t+864003s"}`),
		r(`POST /service_users/service_2/tokens {"ttl":"90d","not_before":"t+86400s"}`, `201 {"id":"token_3","state":"pending"}`),
		r(`POST /service_users/service_1/tokens {"ttl":"90d"}`, `201 {"id":"token_4"}`),
		r(`POST /service_users/service_1/tokens/token_4/refresh {"grace":"24h","ttl":"20d"}`, `201 {"id":"token_5","expires_at":"t+1728006s"}`),
		r(`POST /service_users/service_1/tokens {}`, `201 {"id":"token_6"}`),
		r(`DELETE /service_users/service_1/tokens/token_6`, `204`),

		r(`GET `+all, `200 {"uri":"/service_users/tokens","next_page_uri":null,"tokens":[{"id":"token_6","service_user_name":"a"},{"id":"token_5"},{"id":"token_4"},{"id":"token_3","service_user_id":"service_2","service_user_name":"b"},{"id":"token_2"},{"id":"token_1"}]}`),
		r(`GET `+all+`?limit=2&state=active`, `200 {"tokens":[{"id":"token_5"},{"id":"token_2"}],"next_page_uri":"/service_users/tokens?before_id=token_2&limit=2&state=active"}`),
		r(`GET `+all+`?limit=2&state=active&before_id=token_2`, `200 {"tokens":[{"id":"token_1"}],"next_page_uri":null}`),
		r(`GET `+all+`?state=pending`, `200 {"tokens":[{"id":"token_3"}]}`),
		r(`GET `+all+`?state=revoked`, `200 {"tokens":[{"id":"token_6"}]}`),
		r(`GET `+all+`?ends_within=14d`, `200 {"tokens":[{"id":"token_4","state":"retiring"},{"id":"token_2"}]}`),
		r(`GET `+all+`?ends_within=14d&state=active`, `200 {"tokens":[{"id":"token_2"}]}`),
		r(`GET /service_users/service_2/tokens?ends_within=14d`, `200 {"tokens":[{"id":"token_2"}]}`),
		r(`GET /service_users/service_1/tokens?state=retiring`, `200 {"tokens":[{"id":"token_4"}]}`),

		r(`GET `+all+`?state=dead`, `400 ERR_INVALID_VALUE [state] "dead" is none of active, pending, retiring, expired, revoked`),
		r(`GET /service_users/service_1/tokens?state=Active`, `400 ERR_INVALID_VALUE [state]`),
		r(`GET `+all+`?ends_within=soon`, `400 ERR_INVALID_VALUE [ends_within]`),
		r(`GET `+all+`?unused_for=0s`, `400 ERR_INVALID_VALUE [unused_for]`),
		r(`GET `+all+`?ends_within=14d&state=revoked`, `400 ERR_INVALID_VALUE [ends_within] selects tokens that have not ended`),
		r(`GET `+all+`/`, `200 {"next_page_uri":null}`),
		r(`POST `+all+` {}`, `405 ERR_METHOD_NOT_ALLOWED`),
	)
	// Unused means the use that is shown, on disk or not; a young token is not unused.
	s.clock.Add(int64(61 * 24 * 3600 * 1e9))
	p, _ := s.login("service_1", "csu_1")
	s.store.Use(p, s.now().Unix(), testAddr, "")
	s.run(
		r(`POST /service_users/service_1/tokens {}`, `201 {"id":"token_7"}`),
		r(`GET `+all+`?unused_for=61d`, `200 {"tokens":[]}`), // 3 begins later than it was made, 2 and 5 have ended
		r(`GET `+all+`?unused_for=60d`, `200 {"tokens":[{"id":"token_3"}]}`),
		r(`GET `+all+`?unused_for=60d&state=expired`, `200 {"tokens":[{"id":"token_5"},{"id":"token_2"}]}`),
		r(`GET `+all+`?unused_for=60d&state=revoked`, `200 {"tokens":[{"id":"token_6"},{"id":"token_4"}]}`),
	)
	// A manager finds the tokens of its service users, and no sign of others.
	s.by = store.Actor{Name: "human:carol", Scope: &store.Scope{Teams: []string{"ops"}}}
	s.run(
		r(`GET `+all+`?state=active`, `200 {"tokens":[{"id":"token_7"},{"id":"token_1"}],"next_page_uri":null}`),
	)
	s.by = store.Local
	s.run(
		r(`DELETE /service_users/service_1`, `204`),
		r(`GET `+all, `200 {"tokens":[{"id":"token_3"},{"id":"token_2"}]}`),
	)
}

// A refresh can give another lifetime, and does not begin earlier than the token that it replaces.
func TestRefreshLifetime(t *testing.T) {
	s := serve(t, store.Options{MaxTokenTTL: 100 * 24 * 3600 * 1e9})
	const tokens = "/service_users/service_1/tokens"
	s.run(
		r(`POST /service_users {"name":"a","token_ttl":"1d"}`, `201 {"id":"service_1","token_id":"token_1"}`),
		r(`POST `+tokens+`/token_1/refresh {"ttl":"90d","grace":"1h","grace":"2h"}`, `400 ERR_NGROK_213 [grace]`),
		r(`POST `+tokens+`/token_1/refresh {"ttl":"soon"}`, `400 ERR_INVALID_VALUE [ttl]`),
		r(`POST `+tokens+`/token_1/refresh {"ttl":"101d"}`, `400 ERR_INVALID_VALUE [expires_at] must lie within`),
		r(`POST `+tokens+`/token_1/refresh {"ttl":"90d"}`, `201 {"id":"token_2","expires_at":"t+7776005s"}`),
		r(`POST `+tokens+`/token_2/refresh {"ttl":"25h"}`, `201 {"id":"token_3"}`),
		r(`PATCH `+tokens+`/token_3 {"not_before":"t+80000s"}`, `200 {"state":"pending"}`),
		r(`POST `+tokens+`/token_3/refresh {}`, `201 {"id":"token_4","state":"pending","not_before":"t+80000s"}`),
	)
}
