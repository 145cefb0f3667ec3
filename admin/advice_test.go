package admin

import (
	"testing"

	"github.com/serviceusers/caddy-service-users/store"
)

// TestAdvice: the error for a mistake names the field, the parameter, the id or the method that the
// client probably meant.
func TestAdvice(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"billing sync","create_token":false}`, `201`),
		r(`POST /service_users/service_1/tokens {}`, `201`),
		r(`POST /permission_groups {"name":"g"}`, `201`),

		// Fields, also in a merge patch, in a list and of an embedded struct.
		r(`POST /service_users {"displayname":"x"}`, `400 ERR_NGROK_214 [displayname] there is no such field; did you mean display_name?`),
		r(`POST /service_users {"groups":[]}`, `400 ERR_NGROK_214 [groups] there is no such field; did you mean permission_groups?`),
		r(`POST /service_users {"ttl":"1d"}`, `400 ERR_NGROK_214 [ttl] there is no such field; did you mean token_ttl?`),
		r(`PATCH /service_users/service_1 {"Owner":"x"}`, `400 ERR_NGROK_214 [Owner] there is no such field; did you mean owner?`),
		r(`PATCH /service_users/service_1 {"lable":{}}`, `400 ERR_NGROK_214 [lable] there is no such field; did you mean labels?`, `Content-Type: application/merge-patch+json`),
		r(`POST /permission_groups {"name":"h","rules":[{"effect":"allow","pth":"/"}]}`, `400 ERR_NGROK_214 [rules.0.pth] there is no such field; did you mean path?`),
		r(`POST /service_users/service_1/tokens/token_1/refresh {"xyz":1}`, `400 ERR_NGROK_214 [xyz] there is no such field; known here: grace`),

		// Query parameters.
		r(`GET /service_users?limt=5`, `400 ERR_NGROK_231 [limt] there is no such query parameter; did you mean limit?`),
		r(`GET /audit_events?resource=x`, `400 ERR_NGROK_231 [resource] there is no such query parameter; did you mean resource_id?`),
		r(`POST /service_users?name=x {}`, `400 ERR_NGROK_231 [name] there is no such query parameter; known here: wait`),

		// A name in the place of an id, in a path and in a body.
		r(`GET /service_users/billing%20sync`, `404 ERR_NOT_FOUND there is no such resource; "billing sync" is not an id, which begins with service_; GET /service_users?name=billing+sync has the id of a name`),
		r(`PATCH /bot_users/billing-sync {}`, `404 ERR_NOT_FOUND there is no such resource; "billing-sync" is not an id, which begins with service_; GET /service_users?name=billing-sync`),
		r(`GET /permission_groups/g/rules`, `404 ERR_NOT_FOUND there is no such resource; "g" is not an id, which begins with group_; GET /permission_groups?name=g has the id of a name`),
		r(`PUT /permission_groups/group_1/members/billing {}`, `404 ERR_NOT_FOUND there is no such resource; "billing" is not an id, which begins with service_; GET /service_users?name=billing`),
		r(`DELETE /service_users/service_1/tokens/first`, `404 ERR_NOT_FOUND there is no such resource; "first" is not an id, which begins with token_`),
		r(`POST /service_users/explain {"service_user_id":"billing sync","method":"GET","url":"/"}`, `400 ERR_INVALID_VALUE [service_user_id] "billing sync" is not an id, which begins with service_; GET /service_users?name=billing+sync`),
		r(`POST /api_keys {"owner_id":"billing"}`, `400 ERR_INVALID_VALUE [owner_id] must be the id of the service user that the key is for, service_…; only a caller that is a service user can leave it out; GET /service_users?name=NAME has the id of a name`),
		r(`POST /service_users {"name":"x","permission_groups":["g"]}`, `400 ERR_INVALID_VALUE [permission_groups] there is no permission group "g"; it is named by its id`),

		// A secret in the place of an id is not repeated.
		r(`GET /service_users/csu_00000000000000000000000000000000000000000000nyr1a`, `404 ERR_NOT_FOUND there is no such resource; "csu_…" is not an id`),

		r(`PUT /service_users {}`, `405 ERR_METHOD_NOT_ALLOWED the method "PUT" is not allowed here; allowed: GET, HEAD, POST`),
	)
}
