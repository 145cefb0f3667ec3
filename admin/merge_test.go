package admin

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/serviceusers/caddy-service-users/store"
)

const asPatch = "Content-Type: application/merge-patch+json"

// A merge patch merges labels (RFC 7396); plain JSON replaces all of them.
func TestMergePatch(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /permission_groups {"name":"g"}`)
	s.must(`POST /service_users {"name":"a","owner":"me","teams":["x","y"],"labels":{"a":"b","people":"7"},"permission_groups":["group_1"]}`)
	for _, row := range []struct{ body, kind, want string }{
		{`{"labels":{"env":"prod"}}`, asPatch, `{"a":"b","env":"prod","people":"7"}`},
		{`{"labels":{"env":"dev","none":null}}`, asPatch, `{"a":"b","env":"dev","people":"7"}`}, // "none" was not there
		{`{"labels":{"a":null}}`, asPatch + "; charset=utf-8", `{"env":"dev","people":"7"}`},
		{`{"labels":{"env":""}}`, asPatch, `{"env":"","people":"7"}`},
		{`{"labels":{}}`, asPatch, `{"env":"","people":"7"}`},
		{`{"owner":"you"}`, asPatch, `{"env":"","people":"7"}`},
		{`{}`, asPatch, `{"env":"","people":"7"}`},
		{`{"labels":{"only":"this"}}`, "Content-Type: application/json", `{"only":"this"}`},
		{`{"labels":null}`, asPatch, `{}`},
		{`{"labels":{"new":"x"}}`, asPatch, `{"new":"x"}`},
		{`{"labels":{}}`, "Content-Type: application/json", `{}`},
	} {
		for _, collection := range []string{"/service_users", "/bot_users"} {
			got, err := json.Marshal(s.must("PATCH "+collection+"/service_1 "+row.body, row.kind)["labels"])
			if err != nil || string(got) != row.want {
				t.Errorf("%s, %s: got %s, want %s", row.body, row.kind, got, row.want)
			}
		}
	}

	s.run(
		// Null empties a field, as in plain JSON; lists are replaced.
		r(`PATCH /service_users/service_1 {"owner":null,"teams":["y"]}`, `200 {"owner":"","teams":["y"],"permission_groups":["group_1"]}`, asPatch),
		r(`PATCH /service_users/service_1 {"teams":null,"permission_groups":[],"expires_at":null}`, `200 {"teams":[],"permission_groups":[],"expires_at":null}`, asPatch),
		r(`PATCH /permission_groups/group_1 {"rules":["allow GET /v1/x"],"description":null}`, `200 {"description":"","rules":[{"text":"allow GET /v1/x"}]}`, asPatch),
		r(`PATCH /service_users/service_1/tokens/token_1 {"description":"ci","metadata":null}`, `200 {"description":"ci","metadata":""}`, asPatch),
		r(`PATCH /api_keys/token_1 {"description":"cd"}`, `200 {"description":"cd"}`, asPatch),
		// It is as strict as plain JSON.
		r(`PATCH /service_users/service_1 {"labels":{"a":7}}`, `400 ERR_INVALID_VALUE [labels.a] must not be a JSON number`, asPatch),
		r(`PATCH /service_users/service_1 {"labels":{"a":{}}}`, `400 ERR_INVALID_VALUE [labels.a] must not be a JSON object`, asPatch),
		r(`PATCH /service_users/service_1 {"labels":["a"]}`, `400 ERR_INVALID_VALUE [labels] must not be a JSON array`, asPatch),
		r(`PATCH /service_users/service_1 {"labels":{"a":"1","a":null}}`, `400 ERR_NGROK_213 [labels.a]`, asPatch),
		r(`PATCH /service_users/service_1 {"labels":{"a b":"1"}}`, `400 ERR_INVALID_VALUE [labels] the key "a b"`, asPatch),
		r(`PATCH /service_users/service_1 {"Labels":{"a":"1"}}`, `400 ERR_NGROK_214 [Labels]`, asPatch),
		r(`PATCH /service_users/service_1 {"merged":{"a":"1"}}`, `400 ERR_NGROK_214 [merged]`, asPatch),
		r(`PATCH /service_users/service_1 {"active":null}`, `400 ERR_INVALID_VALUE [active] must be true or false, not null`, asPatch),
		r(`PATCH /service_users/service_1 {"name":null}`, `400 ERR_NGROK_4109 [name] must not be empty`, asPatch),
		r(`PATCH /service_users/service_1 [{"owner":"x"}]`, `400 ERR_INVALID_VALUE the body must not be a JSON array`, asPatch),
		r(`PATCH /service_users/service_1 null`, `400 ERR_NGROK_213 the body must be a JSON object`, asPatch),
		// It goes with If-Match.
		r(`PATCH /service_users/service_1 {"labels":{"a":"1"}}`, `412 ERR_CHANGED`, asPatch, `If-Match: "1"`),
		// Nothing else takes it.
		r(`POST /service_users {"name":"b"}`, `415 ERR_NGROK_210 the Content-Type must be application/json`, asPatch),
		r(`PUT /service_users/permissions {"permissions":[]}`, `415 ERR_NGROK_210`, asPatch),
		r(`POST /service_users/service_1/tokens {}`, `415 ERR_NGROK_210`, asPatch),
		r(`PATCH /service_users/service_1 {}`, `415 ERR_NGROK_210 the Content-Type must be application/json or application/merge-patch+json`, "Content-Type: application/json-patch+json"),
	)
	const accepted = "application/json, application/merge-patch+json"
	for _, row := range []struct{ do, kind, want string }{
		{`OPTIONS /service_users/service_1`, "", accepted},
		{`OPTIONS /permission_groups/group_1`, "", accepted},
		{`OPTIONS /service_users`, "", ""},
		{`PATCH /service_users/service_1 {}`, "Content-Type: text/plain", accepted},
		{`PATCH /service_users/service_1 {}`, "Content-Type:", accepted},
		{`PATCH /service_users/service_1 {}`, asPatch, ""},
		{`POST /service_users {}`, "Content-Type: text/plain", ""},
	} {
		var headers []string
		if row.kind != "" {
			headers = append(headers, row.kind)
		}
		if got := s.do(row.do, headers...).header.Get("Accept-Patch"); got != row.want {
			t.Errorf("%s %s: got Accept-Patch %q, want %q", row.do, row.kind, got, row.want)
		}
	}
}

// Two merge patches of different labels that come at once are both there.
func TestMergePatchesAtOnce(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	client := &Client{Base: s.URL}
	var u ServiceUser
	if err := client.Do(t.Context(), "GET", "/service_users/"+s.real["service_1"], nil, &u); err != nil {
		t.Fatal(err)
	}
	const n = 8
	failed := make(chan error)
	for i := range n {
		go func() {
			value := "x"
			failed <- client.Patch(t.Context(), u.URI, "", ServiceUserPatch{Labels: Some(map[string]*string{fmt.Sprint("k", i): &value})}, nil)
		}()
	}
	for range n {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	u = ServiceUser{}
	if err := client.Do(t.Context(), "GET", "/service_users/"+s.real["service_1"], nil, &u); err != nil || len(u.Labels) != n {
		t.Errorf("got labels %v, %v, want %d of them", u.Labels, err, n)
	}
}

// The lifetime of the first token can be said when its service user is made.
func TestFirstTokenTTL(t *testing.T) {
	s := serve(t, store.Options{MaxTokenTTL: 100 * 24 * 3600e9})
	s.run(
		r(`POST /service_users {"name":"a","token_ttl":"90d"}`, `201 {"id":"service_1","expires_at":null,"token_id":"token_1"}`),
		r(`GET /service_users/service_1/tokens/token_1`, `200 {"expires_at":"t+7776001s"}`),
		r(`POST /service_users {"name":"b","token_ttl":"101d"}`, `400 ERR_INVALID_VALUE [expires_at] must lie within`),
		r(`POST /service_users {"name":"b","token_ttl":"soon"}`, `400 ERR_INVALID_VALUE [token_ttl] "soon" is not a duration`),
		r(`POST /service_users {"name":"b","token_ttl":"0s"}`, `400 ERR_INVALID_VALUE [token_ttl]`),
		r(`POST /service_users {"name":"b","token_ttl":""}`, `400 ERR_INVALID_VALUE [token_ttl]`),
		r(`POST /service_users {"name":"b","token_ttl":"1d","create_token":false}`, `400 ERR_INVALID_VALUE [token_ttl] there is no first token`),
		r(`PATCH /service_users/service_1 {"token_ttl":"1d"}`, `400 ERR_NGROK_214 [token_ttl]`),
		r(`GET /service_users`, `200 {"service_users":[{"id":"service_1"}]}`),
	)
}
