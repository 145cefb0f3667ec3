package admin

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

const unknownNode = "node_000000000000000000000000000"

// With SQLite the process is the only node, and cannot be forgotten.
func TestNodes(t *testing.T) {
	pgtest.SQLiteOnly(t, "its only node is the process")
	s := serve(t, store.Options{NodeName: "gate-1", Version: "v1.0.0"})
	s.must(`POST /service_users {"name":"a"}`)
	s.run(r(`GET /nodes`, `200 {"nodes":[{"name":"gate-1","version":"v1.0.0","address":"","revision":1,"lag":0,
		"max_staleness":0,"state":"live","until":null,"self":true}],"uri":"/nodes"}`))
	list, err := s.store.Nodes(t.Context(), store.Local)
	if err != nil {
		t.Fatal(err)
	}
	self := list[0].ID
	s.run(
		r(`DELETE /nodes/`+self, `409 ERR_CONFLICT the node `+self+` is this process`),
		r(`DELETE /nodes/`+unknownNode, `404 ERR_NOT_FOUND there is no node "`+unknownNode+`"`),
		r(`DELETE /nodes/gate-1`, `404 ERR_NOT_FOUND there is no such resource; "gate-1" is not an id, which begins with node_`),
		r(`GET /nodes?limit=2`, `400 ERR_NGROK_231 [limit]`),
		r(`GET /audit_events`, `200 {"audit_events":[{"action":"token.create"},{"action":"service_user.create"}]}`),
	)
	s.by = store.Actor{Name: "human:carol", Scope: &store.Scope{Teams: []string{"finance"}}}
	s.run(
		r(`GET /nodes`, `403 ERR_NGROK_4111 only an admin may list the nodes`),
		r(`DELETE /nodes/`+self, `403 ERR_NGROK_4111 only an admin may forget a node`),
	)
}

// Each node has its state in one word, and only one whose time is over can be forgotten. The store does not change.
func TestNodesOfPostgres(t *testing.T) {
	pgtest.URL(t) // or skips
	before := *pgtest.On
	t.Cleanup(func() { *pgtest.On = before })
	*pgtest.On = true
	s := serve(t, store.Options{NodeID: "node_00000000000000000000000000s", NodeName: "gate-1", Version: "v1.0.0"})
	s.must(`POST /service_users {"name":"a","create_token":false}`)
	s.must(`POST /service_users {"name":"b","create_token":false}`)
	now := time.Now()
	id := func(n int) string { return fmt.Sprint("node_", strings.Repeat("0", 26), n) }
	for i, row := range []struct {
		seen     time.Duration // ago
		revision int
	}{{0, 2}, {0, 1}, {31 * time.Second, 2}, {59 * time.Minute, 2}, {time.Hour + 6*time.Second, 1}} {
		if _, err := pgtest.DB(t, s.place).Exec(`
			INSERT INTO nodes VALUES ($1, 'gate-2', 'v1.0.0', '192.0.2.7', $2, $2, $3, 3600000)`,
			id(i+1), now.Add(-row.seen).UnixMilli(), row.revision); err != nil {
			t.Fatal(err)
		}
	}
	head := s.store.AuditHead()
	s.run(
		r(`GET /nodes`, `200 {"nodes":[
			{"state":"live","lag":0,"revision":2,"self":false,"address":"192.0.2.7","name":"gate-2","version":"v1.0.0"},
			{"state":"late","lag":1,"revision":1},{"state":"late","lag":0},{"state":"late","lag":0},
			{"state":"gone","lag":1,"max_staleness":3600},
			{"name":"gate-1","self":true,"address":"local"}]}`),
		r(`DELETE /nodes/`+id(4), `409 ERR_CONFLICT the node `+id(4)+` has reported at `+
			now.Add(-59*time.Minute).UTC().Format(time.RFC3339)+`, and may answer requests until `),
		r(`DELETE /nodes/`+id(5), `204`),
		r(`DELETE /nodes/`+id(5), `404 ERR_NOT_FOUND`),
		r(`DELETE /nodes/node_00000000000000000000000000s`, `409 ERR_CONFLICT the node node_00000000000000000000000000s is this process`),
	)
	if after := s.store.AuditHead(); after != head || s.store.Directory().Revision() != 2 {
		t.Errorf("got revision %d and head %v, want 2 and %v", s.store.Directory().Revision(), after, head)
	}
}
