package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

func TestAuditTrail(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(r(`POST /service_users {"name":"a","teams":["ops"]}`, `201 {"id":"service_1","token_id":"token_1"}`)) // 1 2
	s.by = HumanAdmin("alice")
	s.run(
		r(`PATCH /service_users/service_1 {"owner":"x"}`, `200`),                             // 3
		r(`POST /service_users/service_1/tokens/token_1/refresh {"grace":"1h"}`, `201`),      // 4 5
		r(`POST /service_users {"name":"b","create_token":false}`, `201 {"id":"service_2"}`), // 6
		r(`GET /audit_events/verify`, `200 {"ok":true,"records":6,"first_bad":0,"problem":""}`),
	)
	s.by = s.api.HumanManager("carol", []string{"ops"}, nil)
	s.run(
		r(`GET /audit_events`, `403 ERR_NGROK_4111 only an admin may read the audit trail`),    // 7
		r(`GET /audit_events/verify`, `403 ERR_NGROK_4111 only an admin may verify the audit`), // 8
		r(`PATCH /service_users/service_1 {"role":"admin"}`, `403 ERR_NGROK_4111 [role]`),      // 9
		r(`GET /service_users/service_2`, `404`),                                               // no attempt: it does not exist for it
		r(`PATCH /service_users/service_1 {"name":""}`, `400`),                                 // nor is this one
	)
	s.by = HumanAdmin("alice")
	s.run(
		r(`GET /audit_events?limit=3`, `200 {"audit_events":[`+
			`{"seq":9,"actor":"human:carol","action":"refused","resource_id":"service_1","before":null,"after":{"operation":"PATCH /service_users/{id}","status":403,"code":"ERR_NGROK_4111"},"created_at":"t+8s","updated_at":"t+8s"},`+
			`{"seq":8,"resource_id":"","after":{"operation":"GET /audit_events/verify"}},{"seq":7,"after":{"operation":"GET /audit_events"}}],"uri":"/audit_events","next_page_uri":"/audit_events?before_id=7&limit=3"}`),
		r(`GET /audit_events?before_id=7&limit=3`, `200 {"audit_events":[{"seq":6,"uri":"/audit_events?before_id=7&limit=1"},{"seq":5},{"seq":4}],"next_page_uri":"/audit_events?before_id=4&limit=3"}`),
		r(`GET /audit_events?before_id=4&limit=3`, `200 {"audit_events":[{"seq":3,"action":"service_user.update","before":{"name":"a"},"after":{"owner":"x"}},{"seq":2,"action":"token.create","before":null},{"seq":1,"prev_hash":""}],"next_page_uri":null}`),
		r(`GET /audit_events?before_id=1`, `200 = {"audit_events":[],"uri":"/audit_events","next_page_uri":null}`),
		r(`GET /audit_events?actor=human:alice`, `200 {"audit_events":[{"seq":6},{"seq":5},{"seq":4},{"seq":3}]}`),
		r(`GET /audit_events?actor=human:alice&action=token.&limit=1`, `200 {"audit_events":[{"seq":5,"action":"token.refresh"}],"next_page_uri":"/audit_events?action=token.&actor=human%3Aalice&before_id=5&limit=1"}`),
		r(`GET /audit_events?action=token.create`, `200 {"audit_events":[{"seq":4},{"seq":2}]}`),
		r(`GET /audit_events?action=token`, `400 ERR_INVALID_VALUE [action] there is no action "token"; the actions are service_user.create, `),
		r(`GET /audit_events?action=TOKEN.`, `400 ERR_INVALID_VALUE [action]`),
		r(`GET /audit_events?action=.`, `400 ERR_INVALID_VALUE [action]`),
		r(`GET /audit_events?resource_id=service_1`, `200 {"audit_events":[{"seq":9},{"seq":5},{"seq":4},{"seq":3},{"seq":2},{"seq":1}]}`),
		r(`GET /audit_events?since=2026-01-02T03:04:09Z&until=2026-01-02T03:04:12Z`, `200 {"audit_events":[{"seq":7},{"seq":6}]}`),
		r(`GET /audit_events?since=2026-01-02T04:04:13%2B01:00`, `200 {"audit_events":[{"seq":9}]}`),
		r(`GET /audit_events?since=yesterday`, `400 ERR_INVALID_VALUE [since] "yesterday" is not a time`),
		r(`GET /audit_events?until=1`, `400 ERR_INVALID_VALUE [until]`),
		r(`GET /audit_events?since=2026-01-02T03:04:12Z&until=2026-01-02T03:04:12Z`, `400 ERR_INVALID_VALUE [since] 2026-01-02T03:04:12Z is not before until`),
		r(`GET /audit_events?since=2026-01-03&until=2026-01-02`, `400 ERR_INVALID_VALUE [since] 2026-01-03T00:00:00Z is not before until`),
		r(`GET /audit_events?since=2026-01-02&limit=1`, `200 {"audit_events":[{"seq":9}]}`),
		r(`GET /audit_events?since=2026-01-03`, `200 {"audit_events":[]}`),
		r(`GET /audit_events?until=2026-01-02`, `200 {"audit_events":[]}`),
		r(`GET /audit_events?until=1d12h`, `200 {"audit_events":[]}`),
		r(`GET /audit_events?since=7d&limit=1`, `200 {"audit_events":[{"seq":9}]}`),
		r(`GET /audit_events?since=2026-11-31`, `400 ERR_INVALID_VALUE [since] "2026-11-31" is not a time such as 7d (ago), 2026-11-21`),
		r(`GET /audit_events?since=-7d`, `400 ERR_INVALID_VALUE [since]`),
		r(`GET /audit_events?total_count=true&actor=alice&limit=1`, `200 {"audit_events":[{"seq":6}],"total_count":4,"next_page_uri":"/audit_events?actor=alice&before_id=6&limit=1&total_count=true"}`),
		r(`GET /audit_events?total_count=true&actor=alice&before_id=4`, `200 {"audit_events":[{"seq":3}],"total_count":4}`),
		r(`GET /audit_events?total_count=yes`, `400 ERR_INVALID_VALUE [total_count] must be true or false`),
		r(`GET /audit_events?names=yes`, `400 ERR_INVALID_VALUE [names] must be true or false`),
		r(`GET /audit_events?before_id=0`, `400 ERR_INVALID_VALUE [before_id] is not the number (seq) of a record`),
		r(`GET /audit_events?before_id=x`, `400 ERR_INVALID_VALUE [before_id]`),
		r(`GET /audit_events?limit=101`, `400 ERR_NGROK_233 [limit]`),
		r(`GET /audit_events?actor=`, `400 ERR_NGROK_230 [actor]`),
		r(`GET /audit_events?user=x`, `400 ERR_NGROK_231 [user]`),
		r(`DELETE /audit_events`, `405 ERR_METHOD_NOT_ALLOWED Allow: GET, HEAD, OPTIONS`),
		r(`POST /audit_events/verify {}`, `405 ERR_METHOD_NOT_ALLOWED Allow: GET, HEAD, OPTIONS`),
		r(`HEAD /audit_events`, `200`),
	)
	for _, e := range parse(s.do(`GET /audit_events`).raw).(map[string]any)["audit_events"].([]any) {
		e := e.(map[string]any)
		if !store.ValidID("audit", e["id"].(string)) || !store.ValidID("op", e["operation_id"].(string)) || len(e["hash"].(string)) != 64 {
			t.Errorf("got the record %v", e)
		}
	}

	// A head that was noted down is followed, and shows a trail that was cut.
	head := s.must(`GET /audit_events/verify`)["head"].(string)
	hash := strings.TrimPrefix(head, "9:")
	for _, bad := range []string{"9", "x:" + hash, "0:" + hash, "-1:" + hash, ":" + hash, "9:" + hash[1:], "9:" + hash + "0", hash} {
		s.run(r(`GET /audit_events/verify?head=`+bad, `400 ERR_INVALID_VALUE [head] is not the number of a record and its hash`))
	}
	s.run(
		r(`GET /audit_events/verify?head=`+head, `200 {"ok":true,"records":9,"head":"`+head+`","first_bad":0,"problem":""}`),
		r(`GET /audit_events/verify?head=3:`+hash, `200 {"ok":false,"records":2,"first_bad":3}`),
		r(`GET /audit_events/verify?head=10:`+hash, `200 {"ok":false,"records":9,"first_bad":10,"problem":"the trail was cut: it ends with record 9, and record 10 was known"}`),
	)
	db := pgtest.DB(t, s.place)
	tamper := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	tamper(`DELETE FROM audit_events WHERE seq > 7`)
	s.run(r(`GET /audit_events/verify`, `200 {"ok":false,"records":7,"head":"`+head+`","first_bad":8,"problem":"the trail was cut, or its head was changed: it ends with record 7, and its head is record 9"}`))
	tamper(`UPDATE meta SET audit_seq = 7, audit_hash = (SELECT hash FROM audit_events WHERE seq = 7)`)
	s.run(
		r(`GET /audit_events/verify`, `200 {"ok":true,"records":7}`),
		r(`GET /audit_events/verify?head=`+head, `200 {"ok":false,"records":7,"first_bad":8}`),
	)
	tamper(`UPDATE audit_events SET actor = 'human:mallory' WHERE seq = 3`)
	s.run(r(`GET /audit_events/verify`, `200 {"ok":false,"records":2,"first_bad":3,"problem":"its content was changed: its hash is another one"}`))
}

// Who does not even get in leaves a trace, too.
func TestRefusedAtTheDoor(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(r(`POST /service_users {"name":"a","create_token":false}`, `201 {"id":"service_1"}`))
	for _, row := range []struct {
		method, path, login string
		by                  store.Actor
		err                 *Error
		want                string
	}{
		{"DELETE", "/service_users/" + s.real["service_1"], "bob", store.Actor{Name: store.Anonymous}, ErrUnauthenticated,
			`{"actor":"anonymous","resource_id":"service_1","after":{"operation":"DELETE /service_users/{id}","status":401,"code":"ERR_UNAUTHENTICATED","login":"bob"}}`},
		{"GET", "/nothing", "", store.Actor{Name: s.real["service_1"]}, ErrNotEntitled,
			`{"actor":"service_1","resource_id":"","after":{"operation":"GET /…","status":403,"code":"ERR_NGROK_4111"}}`},
	} {
		w := httptest.NewRecorder()
		s.api.Refuse(w, httptest.NewRequest(row.method, row.path, nil), row.by, row.login, row.err, WriteError)
		if w.Code != row.err.Status || !strings.Contains(w.Body.String(), row.err.Code) {
			t.Errorf("%s %s: got %d %s, want %d", row.method, row.path, w.Code, w.Body, row.err.Status)
		}
		s.run(r(`GET /audit_events?limit=1`, `200 {"audit_events":[`+row.want+`]}`))
	}
}

func TestOptionsAndHead(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	s.run(
		r(`OPTIONS /service_users`, `204 Allow: GET, HEAD, POST, OPTIONS`),
		r(`OPTIONS /service_users/service_1`, `204 Allow: GET, HEAD, PATCH, DELETE, OPTIONS`),
		r(`OPTIONS /service_users/service_0`, `204 Allow: GET, HEAD, PATCH, DELETE, OPTIONS`),
		r(`OPTIONS /service_users/service_1/tokens/token_1/refresh`, `204 Allow: POST, OPTIONS`),
		r(`OPTIONS /service_users/service_1/undelete/`, `204 Allow: POST, OPTIONS`),
		r(`OPTIONS /api_keys`, `204 Allow: GET, HEAD, POST, OPTIONS`),
		r(`OPTIONS /audit_events/verify`, `204 Allow: GET, HEAD, OPTIONS`),
		r(`OPTIONS /service_users/readyz`, `204 Allow: GET, HEAD, PATCH, DELETE, OPTIONS`),
		r(`OPTIONS /nothing`, `404 ERR_NOT_FOUND`),
		r(`HEAD /nothing`, `404`),
		r(`HEAD /service_users/service_1`, `200`),
		r(`HEAD /service_users/service_0`, `404`),
		r(`HEAD /service_users/service_1/tokens`, `200`),
		r(`HEAD /service_users/service_1/tokens/token_1/refresh`, `405 Allow: POST, OPTIONS`),
		r(`HEAD /bot_users`, `200`),
		r(`HEAD /service_users/healthz`, `200`),
	)
}

// A refresh answers with the old token as well, and with its drain meter.
func TestDrain(t *testing.T) {
	s := serve(t, store.Options{UseInterval: time.Hour})
	s.run(r(`POST /service_users {"name":"a"}`, `201 {"id":"service_1","token_id":"token_1","token":"csu_1"}`)) // t+1
	old, _ := s.login("service_1", "csu_1")
	use := func() { s.store.Use(old, s.now().Unix(), testAddr, "rule_a") }
	use()
	s.run(
		r(`GET /service_users/service_1/tokens/token_1`, `200 {"use_count":1,"last_used_at":"t+1s","last_used_ip":"192.0.2.1","used_from":[{"address":"192.0.2.1","last_used_at":"t+1s"}],"drain":null}`),
		r(`POST /service_users/service_1/tokens/token_1/refresh {"grace":"1000s"}`, `201 {"id":"token_2","token":"csu_2","replaces":"token_1","drain":null,`+ // t+3
			`"replaced":{"id":"token_1","state":"retiring","replaced_by":"token_2","use_count":1,"retires_at":"t+1003s","drain":{"since":"t+3s","use_count":0,"last_used_at":null,"used_from":[],"ends_at":"t+1003s"}}}`),
	)
	s.clock.Add(int64(10 * time.Second))
	use() // t+13, by a request that holds the directory from before
	s.run(
		r(`GET /service_users/service_1/tokens/token_1`, `200 {"state":"retiring","use_count":2,"drain":{"since":"t+3s","use_count":1,"last_used_at":"t+13s","used_from":[{"address":"192.0.2.1","last_used_at":"t+13s"}],"ends_at":"t+1003s"}}`),
		r(`GET /service_users/service_1/tokens`, `200 {"tokens":[{"id":"token_2","use_count":0,"drain":null},{"id":"token_1","drain":{"use_count":1}}]}`),
	)
	s.clock.Add(int64(1000 * time.Second))
	s.run(
		r(`GET /service_users/service_1/tokens/token_1`, `200 {"state":"revoked","use_count":2,"revoked_at":null,"retires_at":"t+1003s","drain":{"use_count":1,"ends_at":"t+1003s"}}`),
		// Without a grace it ends at once.
		r(`POST /service_users/service_1/tokens/token_2/refresh`, `201 {"id":"token_3","token":"csu_3","replaces":"token_2","replaced":{"state":"revoked","drain":{"since":"t+1017s","use_count":0,"ends_at":"t+1017s"}}}`),
		r(`POST /service_users/service_1/tokens/token_2/refresh`, `409 ERR_CONFLICT the token is revoked and has been replaced or ended already`),
		r(`POST /service_users/service_1/tokens/token_3/refresh`, `412 ERR_CHANGED`, `If-Match: "7"`),
		r(`GET /service_users/service_1`, `200 {"last_active_at":"t+13s"}`),
	)
}

func TestHealth(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`GET /service_users/healthz`, `200 = {"status":"ok"}`),
		r(`GET /service_users/readyz`, `200 = {"status":"ok","store":"ok","source":"database","copy":"","revision":0,"checked_at":"t+0s","age":2}`),
		r(`POST /service_users {"name":"a","create_token":false}`, `201`),
		r(`GET /service_users/readyz/`, `200 {"status":"ok","store":"ok","revision":1}`),
		r(`GET /service_users/healthz?x=1`, `400 ERR_NGROK_231 [x]`),
	)
	if *pgtest.On {
		return // its watcher looks at once
	}
	s = serve(t, store.Options{MaxStaleness: time.Hour})
	s.clock.Add(int64(2 * time.Hour)) // nobody looks at the store meanwhile
	for deadline := time.Now().Add(time.Minute); !s.store.Stale() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	s.run(
		r(`GET /service_users/healthz`, `200 = {"status":"ok"}`),
		r(`GET /service_users/readyz`, `503 {"error_code":"ERR_NOT_READY","details":{"store":"ok","source":"database","revision":"0","checked_at":"t+0s"}}`),
	)
	for request, want := range map[string][2]bool{
		"GET /healthz": {false, true}, "HEAD /healthz/": {false, true}, "GET /service_users/healthz": {false, true}, "GET /readyz": {true, true}, "GET /readyz/": {true, true},
		"HEAD /service_users/readyz": {true, true}, "GET /service_users/readyz/": {true, true}, "POST /readyz": {}, "GET /readyz/x": {}, "GET /": {}, "GET /service_users": {}, "GET /READYZ": {},
	} {
		method, path, _ := strings.Cut(request, " ")
		ready, ok := IsProbe(httptest.NewRequest(method, path, http.NoBody))
		if got := [2]bool{ready, ok}; got != want {
			t.Errorf("%s: got %v, want %v", request, got, want)
		}
	}
}
