package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

var update = flag.Bool("update", false, "write the examples in testdata again")

// exampleOf is one request and its answer, as the OpenAPI document shows them.
type exampleOf struct {
	Request string          `json:"request"`
	Headers []string        `json:"headers,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`
	Answer  json.RawMessage `json:"answer,omitempty"`
}

// examples leads two service users through their lives. The first request of each operation is its
// example in the OpenAPI document.
var examples = []row{
	r(`PUT /service_users/permissions {"permissions":[{"key":"people.view","name":"View people","category":"People","rules":["allow GET /v1/people/{id}"]}]}`, ``),
	r(`GET /service_users/permissions?category=People`, ``),
	r(`POST /permission_groups {"name":"people-readers","rules":["allow GET /v1/people","deny GET /v1/people/me"]}`, ``),
	r(`PUT /permission_groups/group_1/permissions/people.view`, ``),
	r(`POST /permission_groups/group_1/rules {"effect":"allow","methods":["GET"],"path":"/v1/teams/{id}"}`, ``),
	r(`GET /permission_groups/group_1/rules`, ``),
	r(`POST /permission_groups/group_1/preview {"mode":"observe"}`, ``),
	r(`PATCH /permission_groups/group_1 {"description":"Reads people and teams."}`, ``),
	r(`GET /permission_groups/group_1`, ``),
	r(`GET /permission_groups?name=people-readers`, ``),

	r(`POST /service_users {"name":"billing-sync","teams":["finance"],"labels":{"env":"prod"},"token_ttl":"90d"}`, ``),
	r(`GET /service_users?team=finance&limit=20`, ``),
	r(`PATCH /service_users/service_1 {"owner":"jane@example.com","labels":{"env":"staging"}}`, ``, `If-Match: "1"`),
	r(`PUT /permission_groups/group_1/members/service_1`, ``),
	r(`GET /permission_groups/group_1/members`, ``),
	r(`GET /service_users/service_1`, ``),
	r(`GET /service_users/service_1/access`, ``),
	r(`POST /service_users/bulk {"do":"update","filter":"'finance' in obj.teams","set":{"labels":{"env":"prod"}},"add":{"teams":["payments"]},"dry_run":true}`, ``),

	r(`POST /service_users/service_1/tokens {"description":"CI","allowed_ips":["192.0.2.0/24"],"ttl":"90d"}`, ``, `Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324`),
	r(`PATCH /service_users/service_1/tokens/token_2 {"description":"CI of the billing repository"}`, ``),
	r(`GET /service_users/service_1/tokens/token_2`, ``),
	r(`POST /service_users/service_1/tokens/token_2/refresh {"grace":"24h"}`, ``),
	r(`GET /service_users/service_1/tokens?limit=2`, ``),
	r(`GET /service_users/tokens?ends_within=14d`, ``),
	r(`POST /service_users/find_tokens {"digests":["digest of csu_1"]}`, ``),
	r(`DELETE /service_users/service_1/tokens/token_2`, ``),

	r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/v1/people/7"}`, ``),
	r(`GET /service_users/service_1/refusals`, ``),
	r(`GET /service_users/who_can?method=GET&url=/v1/people/7`, ``),
	r(`GET /service_users/would_deny`, ``),
	r(`DELETE /service_users/would_deny`, ``),
	r(`GET /audit_events?action=token.&limit=1`, ``),
	r(`GET /audit_events/verify`, ``),
	r(`POST /service_users/backup`, ``),
	r(`GET /service_users/check`, ``),
	r(`GET /service_users/healthz`, ``),
	r(`GET /service_users/readyz`, ``),
	r(`GET /service_users/traffic`, ``),

	r(`POST /bot_users {"name":"report-mailer"}`, ``),
	r(`GET /bot_users?limit=1`, ``),
	r(`GET /bot_users/service_2`, ``),
	r(`PATCH /bot_users/service_2 {"description":"Mails the monthly report."}`, ``),
	r(`POST /api_keys {"owner_id":"service_2","description":"CI"}`, ``),
	r(`GET /api_keys?filter=obj.description=="CI"&limit=1`, ``),
	r(`GET /api_keys/token_4`, ``),
	r(`PATCH /api_keys/token_4 {"metadata":"build 17"}`, ``),
	r(`DELETE /api_keys/token_4`, ``),
	r(`DELETE /bot_users/service_2`, ``),

	r(`DELETE /permission_groups/group_1/members/service_1`, ``),
	r(`DELETE /permission_groups/group_1/permissions/people.view`, ``),
	r(`DELETE /permission_groups/group_1/rules/rule_1`, ``),
	r(`DELETE /service_users/permissions?key=people.view`, ``),
	r(`DELETE /permission_groups/group_1`, ``),
	r(`POST /permission_groups/group_1/undelete`, ``),
	r(`DELETE /service_users/service_1?unless_used_within=24h`, ``),
	r(`POST /service_users/service_1/undelete`, ``),
	r(`GET /service_users/openapi.json`, ``),
	r(`GET /service_users/reference`, ``),
	r(`GET /nodes`, ``),
}

// The examples of the OpenAPI document are requests that succeed, with the answers that the API
// gives. After a change of the API, "go generate ./admin" writes them again.
func TestExamples(t *testing.T) {
	pgtest.SQLiteOnly(t, "the examples have a backup, and no address of a node")
	const file = "testdata/examples.json"
	s := serve(t, store.Options{NodeName: "gate-1", Version: "v1.0.0", MaxStaleness: time.Hour})
	// SQLite has no node to forget.
	made := map[string]exampleOf{"DELETE /nodes/{id}": {Request: s.shown("DELETE /nodes/node_2")}}
	for _, row := range examples {
		request := strings.Replace(row.do, "digest of csu_1", fmt.Sprintf("%x", sha256.Sum256([]byte(s.real["csu_1"]))), 1)
		method, rest, _ := strings.Cut(s.resolve(request), " ")
		target, body, _ := strings.Cut(rest, " ")
		headers := row.headers
		if body != "" {
			headers = append([]string{"Content-Type: application/json"}, headers...)
		}
		if *pgtest.On && strings.HasSuffix(target, "/backup") {
			continue // pg_dump makes the backups of PostgreSQL
		}
		if strings.HasSuffix(target, "/would_deny") {
			s.observe("service_1", "DELETE /v1/people/7", true)
		}
		if strings.HasSuffix(target, "/refusals") {
			s.recall.Keep(access.Recalled{
				At: s.now(), UserID: s.real["service_1"], Status: 401, Reason: access.BadCredential, Why: "the token ends in a line break",
				Action: access.Action{Method: "GET", Host: "api.example.com", Path: "/v1/people/7", Address: netip.MustParseAddr("192.0.2.7")},
			})
		}
		if strings.HasSuffix(target, "/traffic") {
			s.api.Traffic = new(Traffic)
			s.api.Traffic.Add(Minute{At: s.now().UTC(), Allowed: 1482, Denied: 3, NoLogin: 1})
		}
		s.clock.Add(int64(1e9))
		got := s.exchange(method, target, strings.NewReader(body), headers...)
		if got.status >= 300 {
			t.Fatalf("%s: got %d %s", row.do, got.status, got.text)
		}
		probe, _ := http.NewRequest(method, target, nil)
		_, pattern := s.api.mux.Handler(probe)
		if _, twice := made[pattern]; twice {
			continue
		}
		method, rest, _ = strings.Cut(request, " ")
		target, body, _ = strings.Cut(rest, " ")
		e := exampleOf{Request: s.shown(method + " " + target), Headers: row.headers}
		if body != "" {
			e.Body = json.RawMessage(s.shown(body))
		}
		kind := got.header.Get("Content-Type")
		switch document := strings.HasSuffix(target, "openapi.json"); {
		case document:
			e.Answer = json.RawMessage(`{"openapi":"3.1.0"}`)
		case kind == "application/json":
			e.Answer = json.RawMessage(s.shown(got.text))
		}
		made[pattern] = e
	}
	for _, route := range s.api.routes() {
		if _, ok := made[route.method+" "+route.path]; !ok {
			t.Errorf("%s %s: no example; add a request to the list", route.method, route.path)
		}
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "\t")
	if err := encoder.Encode(made); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%s is not what the API answers, run \"go generate ./admin\": %v\ngot %s", file, err, out.Bytes())
	}
}

var (
	otherID    = regexp.MustCompile(`\b(audit|op|node)_[0-9A-Za-z]{27}\b`)
	exampleID  = regexp.MustCompile(`\b(service|token|group|rule|audit|op|node)_\d{1,3}\b`)
	exampleCSU = regexp.MustCompile(`\bcsu_\d+\b`)
	randomHash = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
)

// shown replaces everything random by values of the real form that are the same each time. The
// secret is not a valid one.
func (s *server) shown(text string) string {
	text = exampleID.ReplaceAllStringFunc(otherID.ReplaceAllString(text, "${1}_0"), func(name string) string {
		prefix, _, _ := strings.Cut(name, "_")
		return prefix + "_" + fmt.Sprintf("%x", sha256.Sum256([]byte(name)))[:27]
	})
	text = exampleCSU.ReplaceAllString(text, "csu_"+strings.Repeat("EXAMPLE", 7))
	text = strings.ReplaceAll(text, `"hint":"hint"`, `"hint":"MPLE"`)
	return s.resolve(randomHash.ReplaceAllString(text, strings.Repeat("5e", 32)))
}
