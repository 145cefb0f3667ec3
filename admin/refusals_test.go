package admin

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// TestRefusals: the refusals of a service user, those of strangers in its name too, for an admin and
// for the managers that see the service user.
func TestRefusals(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"manager","role":"manager","teams":["finance"]}`, `201 {"id":"service_1","token":"csu_1"}`),
		r(`POST /service_users {"name":"reader","teams":["finance"]}`, `201 {"id":"service_2","token_id":"token_2"}`),
		r(`POST /service_users {"name":"outsider","teams":["hr"]}`, `201 {"id":"service_3","token_id":"token_3"}`),
		r(`GET /service_users/service_2/refusals`, `200 = {"refusals":[],"since":"t+0s","uri":"/service_users/service_2/refusals","next_page_uri":null}`),
	)
	s.clock.Add(int64(time.Minute))
	s.refuse("decision_1", "service_2", "token_2", "GET /v1/x", nil)
	s.refuse("decision_2", "service_3", "token_3", "GET /v1/y", nil)
	s.clock.Add(int64(time.Minute))
	s.recall.Keep(access.Recalled{
		At: s.now(), UserID: s.real["service_2"], Status: 429, Reason: access.WrongSecret,
		Action: access.Action{Method: "PUT", Host: "api.example.com", Path: "/v1/z", Address: netip.MustParseAddr("2001:db8::7")},
	})
	want := `200 = {"refusals":[` +
		`{"at":"t+124s","status":429,"reason":"wrong_secret","detail":"the secret is not that of a token of the service user","decision_id":"","token_id":"",` +
		`"remote_ip":"2001:db8::7","method":"PUT","host":"api.example.com","path":"/v1/z"},` +
		`{"at":"t+64s","status":403,"reason":"no_rule","detail":"no rule allows it","decision_id":"decision_1","token_id":"token_2",` +
		`"remote_ip":"192.0.2.1","method":"GET","host":"api.example.com","path":"/v1/x"}],"since":"t+0s","uri":"/service_users/service_2/refusals","next_page_uri":null}`
	s.run(
		r(`GET /service_users/service_2/refusals`, want),
		r(`GET /service_users/service_0/refusals`, `404`),
		r(`GET /service_users/x/refusals`, `404`),
	)
	p, _ := s.login("service_1", "csu_1")
	s.by, _ = s.api.ServiceUserActor(p)
	s.run(
		r(`GET /service_users/service_2/refusals`, want),
		r(`GET /service_users/service_3/refusals`, `404`),
	)

	// A node that keeps none does not say that there were none.
	s.by, s.api.recall = store.Local, access.NewRecall(-1)
	s.run(r(`GET /service_users/service_2/refusals`, `404 ERR_NOT_FOUND this node keeps no refusals: its option decisions is off, or it is not a running Caddy; search the log for service_2`))
	got := s.do(`POST /service_users/explain {"decision_id":"decision_9"}`)
	if got.status != 404 || !strings.Contains(got.text, "search the logs for decision_9, then ask with the service user, method, host and path that are there: "+
		"caddy service-user explain USER METHOD URL") {
		t.Errorf("a forgotten decision: got %d %s", got.status, got.text)
	}
}

// TestRefusalsOfNodes: the refusals of another node, and of this one before a restart, are in the store, and
// those who may see them are the same.
func TestRefusalsOfNodes(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"manager","role":"manager","teams":["finance"]}`, `201 {"id":"service_1","token":"csu_1"}`),
		r(`POST /service_users {"name":"reader","teams":["finance"]}`, `201 {"id":"service_2","token_id":"token_2","token":"csu_2"}`),
		r(`POST /service_users {"name":"outsider","teams":["hr"]}`, `201 {"id":"service_3","token_id":"token_3"}`),
		r(`POST /permission_groups {"name":"g","rules":["allow GET /v1/{x}"]}`, `201 {"id":"group_1"}`),
	)
	s.clock.Add(int64(time.Minute))
	here := s.recall
	s.recall = access.NewRecall(10)
	other, err := store.Open(t.Context(), s.place, store.Options{NodeName: "b", Now: s.now, Poll: time.Hour, Refusals: s.recall})
	if err != nil {
		t.Fatal(err)
	}
	s.refuse("decision_1", "service_2", "token_2", "GET /v1/x", nil)
	s.refuse("decision_2", "service_2", "token_2", "GET "+access.MaskSecrets("/v1/"+s.real["csu_2"]), nil)
	s.refuse("decision_3", "service_3", "token_3", "GET /v1/y", nil)
	s.recall.Keep(access.Recalled{Status: 401, At: s.now(), UserID: s.real["service_2"], Reason: access.WrongSecret})
	s.recall = here
	s.clock.Add(int64(time.Second))
	s.refuse("decision_4", "service_2", "token_2", "GET /v1/z", nil)
	if err := other.Close(); err != nil { // writes them
		t.Fatal(err)
	}
	both, err := s.store.Refusal(t.Context(), store.Local, "decision_1")
	if err != nil {
		t.Fatal(err)
	}
	s.recall.Keep(both) // in memory and in the store
	row := func(n int, second, path, node string) string {
		return fmt.Sprintf(`{"at":"t+%ss","status":403,"reason":"no_rule","detail":"no rule allows it","decision_id":"decision_%d","token_id":"token_2","remote_ip":"192.0.2.1","method":"GET","host":"api.example.com","path":"/v1/%s"%s}`,
			second, n, path, node)
	}
	const b = `,"node":"b"`
	list := r(`GET /service_users/service_2/refusals`, `200 {"refusals":[`+row(4, "65", "z", "")+`,`+row(1, "64", "x", b)+`,`+row(2, "64", "csu_…", b)+`],"since":"t+0s"}`)
	explain := func(id string) string { return `POST /service_users/explain {"decision_id":"` + id + `"}` }
	s.run(
		list,
		r(explain("decision_1"), `200 {"decision":"deny","reason":"no_rule","detail":"no rule allows it","path":"/v1/x","node":"b","decided_at":"t+64s"}`),
		r(explain("decision_3"), `200 {"decision":"deny","service_user_id":"service_3","path":"/v1/y","node":"b"}`),
		r(`PUT /permission_groups/group_1/members/service_2`, `204`),
		r(`PUT /permission_groups/group_1/members/service_3`, `204`),
		r(explain("decision_3"), `200 {"decision":"deny","now":"allow"}`),
		r(explain("decision_2"), `200 {"decision":"deny","path":"/v1/csu_…","detail":"no rule allows it; its path had a secret, which is not kept, so that the rules of today are asked without it"}`),
	)
	if got := s.do(explain("decision_2")); strings.Contains(got.text, `"now"`) {
		t.Errorf("a path with a mask: got %s, want no decision of today", got.text)
	}
	p, _ := s.login("service_1", "csu_1")
	s.by, _ = s.api.ServiceUserActor(p)
	s.run(
		list,
		r(`GET /service_users/service_3/refusals`, `404`),
		r(explain("decision_1"), `403`), r(explain("decision_9"), `403`),
	)
	s.by, s.api.recall = store.Local, access.NewRecall(-1)
	s.run(
		r(`GET /service_users/service_3/refusals`, `200 {"since":"t+78s"}`),
		r(`GET /service_users/service_1/refusals`, `404`),
	)
}

// TestDoubtfulRules: the answer to each write of a rule that can never apply says so.
func TestDoubtfulRules(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /permission_groups {"name":"g","member_condition":"user.role == 'admn'","rules":["deny DELTE /v1/people/{id}","allow GET /v1/:id"]}`,
			`201 {"id":"group_1","warnings":["rule_1 \"deny DELTE /v1/people/{id}\" is probably a mistake: DELTE: did you mean DELETE?",`+
				`"rule_2 \"allow GET /v1/:id\" is probably a mistake: :id: write {id} for a parameter",`+
				`"member_condition \"user.role == 'admn'\" is probably a mistake: admn: a role is admin, manager or member"]}`),
		r(`PATCH /permission_groups/group_1 {"member_condition":"user.role == 'admin'","rules":["deny GET /v1 when now.getDayOfWeek() == 7"]}`,
			`200 {"warnings":["rule_3 \"deny GET /v1 when now.getDayOfWeek() == 7\" is probably a mistake: 7: the weekday is from 0, Sunday, to 6, Saturday"]}`),
		r(`POST /permission_groups/group_1/rules {"effect":"deny","methods":["PURGE","GTE"],"path":"/v1"}`,
			`201 {"warnings":["rule_4 \"deny PURGE,GTE /v1\" is probably a mistake: GTE: did you mean GET?"]}`),
		r(`PUT /service_users/permissions {"permissions":[{"key":"a","name":"A","rules":["allow GET /v1/a","allow GET /v1/$id"]}]}`,
			`200 = {"created":1,"updated":0,"unchanged":0,"deleted":0,"uri":"/service_users/permissions","warnings":["a \"allow GET /v1/$id\" is probably a mistake: $id: write {id} for a parameter"]}`),
		r(`POST /permission_groups {"name":"h","permissions":["a"]}`, `201 {"warnings":["a \"allow GET /v1/$id\" is probably a mistake: $id: write {id} for a parameter"]}`),
	)
}
