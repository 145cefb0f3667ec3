package admin

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

var testAddr = netip.MustParseAddr("192.0.2.1")

// API keys as the ngrok client sends and reads them.
func TestAPIKeys(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /bot_users {"name":"a","create_token":false}`, `201 {"id":"service_1"}`),
		r(`POST /service_users {"name":"b","teams":["ops"],"create_token":false}`, `201 {"id":"service_2"}`),
		r(`GET /api_keys`, `200 = {"keys":[],"uri":"/api_keys","next_page_uri":null}`),

		// The secret is in the answer that issues it, and null from then on.
		r(`POST /api_keys {"owner_id":"service_1"}`, `201 = {"id":"token_1","uri":"/api_keys/token_1","description":"","metadata":"","created_at":"t+4s","updated_at":"t+4s","token":"csu_1","owner_id":"service_1","etag":"\"1\"","expires_at":null,"last_used_at":null,"state":"active"}`),
		r(`POST /api_keys/ {"owner_id":"service_2","description":"ci","metadata":"{\"a\":1}"}`, `201 {"id":"token_2","description":"ci","metadata":"{\"a\":1}","token":"csu_2","owner_id":"service_2"}`),
		r(`GET /api_keys/token_1`, `200 = {"id":"token_1","uri":"/api_keys/token_1","description":"","metadata":"","created_at":"t+4s","updated_at":"t+4s","token":null,"owner_id":"service_1","etag":"\"1\"","expires_at":null,"last_used_at":null,"state":"active"}`),
		r(`GET /api_keys/token_1/`, `200 {"token":null}`),
		r(`PATCH /api_keys/token_1 {"description":"d","metadata":"m"}`, `200 {"id":"token_1","description":"d","metadata":"m","token":null,"updated_at":"t+8s"}`),
		r(`PATCH /api_keys/token_1 {"description":""}`, `200 {"description":"","metadata":"m"}`),
		r(`PATCH /api_keys/token_1 {}`, `200 {"description":"","metadata":"m"}`),
		r(`PATCH /api_keys/token_1`, `200 {"description":"","metadata":"m"}`),
		r(`GET /api_keys`, `200 {"keys":[{"id":"token_2","token":null},{"id":"token_1","token":null,"metadata":"m"}],"uri":"/api_keys","next_page_uri":null}`),
		// The same token under its own name.
		r(`GET /service_users/service_1/tokens`, `200 {"tokens":[{"id":"token_1","metadata":"m","state":"active"}]}`),

		r(`POST /api_keys {}`, `400 ERR_INVALID_VALUE [owner_id] must be the id of the service user`),
		r(`POST /api_keys {"owner_id":"a"}`, `400 ERR_INVALID_VALUE [owner_id]`),
		r(`POST /api_keys {"owner_id":"service_0"}`, `404 ERR_NOT_FOUND there is no service user "service_0"`),
		r(`POST /api_keys {"owner_id":"service_1","ttl":"1d"}`, `400 ERR_NGROK_214 [ttl]`),
		r(`POST /api_keys {"owner_id":7}`, `400 ERR_INVALID_VALUE [owner_id]`),
		r(`PATCH /api_keys/token_1 {"owner_id":"service_2"}`, `400 ERR_NGROK_214 [owner_id]`),
		r(`PATCH /api_keys/token_1 {"description":"x"}`, `412 ERR_CHANGED`, `If-Match: "1"`),
		r(`DELETE /api_keys/token_1`, `412 ERR_CHANGED`, `If-Match: "1"`),
		r(`GET /api_keys/`, `404 ERR_NOT_FOUND`),
		r(`DELETE /api_keys/`, `404 ERR_NOT_FOUND`),
		r(`GET /api_keys/token_0`, `404 ERR_NOT_FOUND`),
		r(`GET /api_keys/service_1`, `404 ERR_NOT_FOUND`),
		r(`PUT /api_keys/token_1 {}`, `405 ERR_METHOD_NOT_ALLOWED Allow: GET, HEAD, PATCH, DELETE, OPTIONS`),
		r(`GET /api_keys?limit=0`, `400 ERR_NGROK_233 [limit]`),
		r(`GET /api_keys?limit=x`, `400 ERR_NGROK_244 [limit]`),
		r(`GET /api_keys?before_id=service_1`, `400 ERR_NGROK_227 [before_id]`),
		r(`GET /api_keys?q=x`, `400 ERR_NGROK_231 [q]`),
		r(`HEAD /api_keys`, `200`),
	)
	s.expect("service_1", "GET /", map[string]access.Reason{"csu_1": access.NoRule})

	// null is empty, and no owner is none.
	s.run(
		r(`PATCH /api_keys/token_2 {"description":null}`, `200 {"description":"","metadata":"{\"a\":1}"}`),
		r(`PATCH /api_keys/token_2 {"metadata":null}`, `200 {"description":"","metadata":""}`),
		r(`PATCH /api_keys/token_2 {"description":7}`, `400 ERR_INVALID_VALUE [description] must not be a JSON number`),
		r(`PATCH /api_keys/token_2 {"metadata":"`+strings.Repeat("x", 4097)+`"}`, `400 ERR_INVALID_VALUE [metadata]`),
		r(`PATCH /api_keys/token_2 {"token":"x"}`, `400 ERR_NGROK_214 [token]`),
		r(`PATCH /api_keys/token_2 {"id":"token_2"}`, `400 ERR_NGROK_214 [id]`),
		r(`PATCH /api_keys/ {"description":"x"}`, `404 ERR_NOT_FOUND`),
		r(`PATCH /api_keys/token_0 {"description":"x"}`, `404 ERR_NOT_FOUND`),
		r(`DELETE /api_keys/token_0`, `404 ERR_NOT_FOUND`),
		r(`POST /api_keys {"owner_id":null}`, `400 ERR_INVALID_VALUE [owner_id] must be the id`),
		r(`POST /api_keys`, `400 ERR_INVALID_VALUE [owner_id] must be the id`),
		r(`POST /api_keys {"owner_id":"token_1"}`, `400 ERR_INVALID_VALUE [owner_id]`),
		r(`HEAD /api_keys/token_2`, `200`),
		r(`HEAD /api_keys/token_0`, `404`),
	)

	// Revoked, it is gone; its record is not.
	s.run(
		r(`DELETE /api_keys/token_1`, `204`),
		r(`GET /api_keys/token_1`, `404 ERR_NOT_FOUND`),
		r(`PATCH /api_keys/token_1 {"description":"x"}`, `404 ERR_NOT_FOUND`),
		r(`DELETE /api_keys/token_1`, `404 ERR_NOT_FOUND`),
		r(`GET /api_keys`, `200 {"keys":[{"id":"token_2"}]}`),
		r(`GET /service_users/service_1/tokens/token_1`, `200 {"state":"revoked"}`),
	)
	s.expect("service_1", "GET /", map[string]access.Reason{"csu_1": access.TokenRevoked})

	// Pages, and one whose cursor is gone.
	s.run(
		r(`POST /api_keys {"owner_id":"service_1"}`, `201 {"id":"token_3"}`),
		r(`POST /api_keys {"owner_id":"service_2"}`, `201 {"id":"token_4"}`),
		r(`GET /api_keys?limit=2`, `200 {"keys":[{"id":"token_4"},{"id":"token_3"}],"next_page_uri":"/api_keys?before_id=token_3&limit=2"}`),
		r(`DELETE /api_keys/token_3`, `204`),
		r(`GET /api_keys?before_id=token_3&limit=2`, `200 {"keys":[{"id":"token_2"}],"next_page_uri":null}`),
		r(`GET /api_keys?before_id=token_2`, `200 {"keys":[],"next_page_uri":null}`),
	)

	// A manager has those of its teams.
	s.by = s.api.HumanManager("carol", []string{"ops"}, nil)
	s.run(
		r(`POST /service_users {"name":"c","teams":["ops"],"create_token":false}`, `201 {"id":"service_3"}`),
		r(`POST /api_keys {"owner_id":"service_3"}`, `201 {"id":"token_5"}`),
		r(`POST /api_keys {"owner_id":"service_1"}`, `404 ERR_NOT_FOUND`),
		r(`PATCH /api_keys/token_5 {"description":"x"}`, `200 {"description":"x"}`),
	)
	s.by = store.Local
	s.run(r(`POST /api_keys {"owner_id":"service_1"}`, `201 {"id":"token_6"}`))
	s.by = s.api.HumanManager("carol", []string{"ops"}, nil)
	s.run(
		r(`GET /api_keys`, `200 {"keys":[{"id":"token_5"},{"id":"token_4"},{"id":"token_2"}]}`),
		r(`GET /api_keys/token_6`, `404 ERR_NOT_FOUND`),
		r(`PATCH /api_keys/token_6 {"description":"x"}`, `404 ERR_NOT_FOUND`),
		r(`DELETE /api_keys/token_6`, `404 ERR_NOT_FOUND`),
		r(`DELETE /api_keys/token_5`, `204`),
	)
	// With its owner a key is gone too.
	s.by = store.Local
	s.run(
		r(`DELETE /bot_users/service_1`, `204`),
		r(`GET /api_keys/token_6`, `404 ERR_NOT_FOUND`),
		r(`GET /api_keys`, `200 {"keys":[{"id":"token_4"},{"id":"token_2"}]}`),
		r(`POST /service_users/service_1/undelete`, `200`),
		r(`GET /api_keys/token_6`, `200 {"owner_id":"service_1","etag":"\"1\"","expires_at":null,"last_used_at":null,"state":"active"}`),
	)
}

// Clients of the ngrok API, at /bot_users or by their header, get a service user without
// a first token: they have no place for its secret.
func TestNoFirstTokenForNgrok(t *testing.T) {
	s := serve(t, store.Options{})
	for i, row := range []struct {
		path, body, header string
		tokens             int
	}{
		{"/service_users", ``, "", 1},
		{"/service_users", ``, "Ngrok-Version: 2", 0},
		{"/service_users/", ``, "ngrok-version: 1999", 0},
		{"/service_users", ``, "Ngrok-Version:", 0},
		{"/service_users", `,"create_token":false`, "Ngrok-Version: 2", 0},
		{"/service_users", `,"create_token":true`, "Ngrok-Version: 2", 1},
		{"/bot_users", ``, "", 0},
		{"/bot_users/", ``, "", 0},
		{"/bot_users", ``, "Ngrok-Version: 2", 0},
		{"/bot_users", `,"create_token":true`, "", 1},
	} {
		var headers []string
		if row.header != "" {
			headers = append(headers, row.header)
		}
		made := s.do(fmt.Sprintf(`POST %s {"name":"user %d"%s}`, row.path, i, row.body), headers...)
		if made.status != 201 {
			t.Fatalf("%+v: got %d, %s", row, made.status, made.text)
		}
		list := s.must(fmt.Sprintf("GET /service_users/service_%d/tokens", i+1))["tokens"].([]any)
		if shown := strings.Contains(made.text, `"token"`); len(list) != row.tokens || shown != (row.tokens > 0) {
			t.Errorf("%+v: got %d tokens, the answer %s", row, len(list), made.text)
		}
	}
}

// Service users under their old name.
func TestBotUsers(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /bot_users {"name":"a","active":false,"create_token":false}`, `201 {"id":"service_1","uri":"/bot_users/service_1","name":"a","active":false,"created_at":"t+1s"}`),
		r(`POST /bot_users {"name":"b","create_token":true}`, `201 {"id":"service_2","active":true,"token_id":"token_1","token":"csu_1"}`),
		r(`POST /bot_users {"name":"b"}`, `409 ERR_NGROK_4112 [name]`),
		r(`POST /bot_users {}`, `400 ERR_NGROK_4109 [name]`),
		r(`GET /bot_users/service_1`, `200 {"uri":"/bot_users/service_1"}`),
		r(`GET /service_users/service_1`, `200 {"uri":"/service_users/service_1"}`),
		r(`PATCH /bot_users/service_1 {"active":true}`, `200 {"uri":"/bot_users/service_1","name":"a","active":true}`),
		r(`GET /bot_users`, `200 {"bot_users":[{"id":"service_2","uri":"/bot_users/service_2"},{"id":"service_1"}],"uri":"/bot_users","next_page_uri":null}`),
		r(`GET /bot_users?limit=1`, `200 {"bot_users":[{"id":"service_2"}],"next_page_uri":"/bot_users?before_id=service_2&limit=1"}`),
		r(`GET /bot_users?before_id=service_2&limit=1`, `200 {"bot_users":[{"id":"service_1"}],"next_page_uri":null}`),
		r(`DELETE /bot_users/service_2`, `204`),
		r(`GET /bot_users/service_2`, `404 ERR_NOT_FOUND`),
		r(`GET /bot_users/`, `404 ERR_NOT_FOUND`),
		r(`PATCH /bot_users/ {}`, `404 ERR_NOT_FOUND`),
		r(`DELETE /bot_users/`, `404 ERR_NOT_FOUND`),
		r(`PATCH /bot_users/service_1 {"name":""}`, `400 ERR_NGROK_4109 [name]`),
		r(`PATCH /bot_users/service_1 {}`, `200 {"name":"a","active":true}`),
		r(`PATCH /bot_users/service_1 {"active":null}`, `400 ERR_INVALID_VALUE [active] must be true or false, not null`),
		r(`PATCH /bot_users/service_1 {"id":"service_1"}`, `400 ERR_NGROK_214 [id]`),
		r(`PATCH /bot_users/service_2 {}`, `404 ERR_NOT_FOUND`),
		r(`DELETE /bot_users/service_2`, `404 ERR_NOT_FOUND`),
		r(`POST /bot_users/ {"name":"`+strings.Repeat("x", 256)+`"}`, `400 ERR_NGROK_4110 [name]`),
		r(`HEAD /bot_users/service_1`, `200`),
		r(`GET /service_users`, `200 {"service_users":[{"id":"service_1"}]}`),
	)
}
