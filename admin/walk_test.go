package admin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// A service user from its first day to its last, as an admin goes through it with
// the example catalogue. At each step the explanation and what a request with the
// token comes to say the same.
func TestWalkThrough(t *testing.T) {
	catalogue, err := os.ReadFile(filepath.Join("..", "examples", "hibob-permissions.json"))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, store.Options{})
	s.run(r(`PUT /service_users/permissions `+string(catalogue), `200 {"updated":0,"deleted":0}`))

	// may compares what a token is explained to be good for with what it is.
	may := func(user, token, secret string, want map[string]access.Reason) {
		t.Helper()
		for action, want := range want {
			var method, path string
			fmt.Sscan(action, &method, &path)
			e := s.explain(fmt.Sprintf(`{"service_user_id":%q,"token_id":%q,"method":%q,"url":%q,"remote_ip":"192.0.2.1"}`, user, token, method, "https://api.example.com"+path))
			if got := s.request(user, secret, action); got != want || e.Reason != want.String() {
				t.Errorf("%s with %s: %s: got %s, explained as %s, want %s", user, secret, action, got, brief(e), want)
			}
		}
	}
	const address, history, edit = "GET /v1/people/7/address", "GET /v1/people/7/address/history", "PUT /v1/people/7/address"

	// A new one is shown its token once, and may do nothing. No person logs in as it.
	s.by = HumanAdmin("alice")
	s.run(
		r(`POST /service_users {"name":"billing-sync","display_name":"Billing sync","labels":{"kind":"integration"}}`, `201 {"id":"service_1","active":true,"role":"member","created_by":"human:alice","permission_groups":[],"token_id":"token_1","token":"csu_1"}`),
		r(`GET /service_users/service_1/access`, `200 {"permission_groups":[]}`),
		r(`GET /service_users/who_can?method=GET&url=/v1/people/7/address`, `200 {"service_users":[]}`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/v1/people/7/address"}`, `200 {"decision":"deny","reason":"no_rule","considered":[],"nearest":null,"grant":{"rule":"allow GET /v1/people/7/address","permission_groups":[]}}`),
	)
	if p, why := s.login("service_1", "csu_1"); why != access.Granted {
		t.Errorf("a new service user: got %s, want that it can log in", why)
	} else if _, err := s.api.ServiceUserActor(p); !errors.Is(err, ErrNotEntitled) {
		t.Errorf("a new service user: got %v, want that it may not use the admin API", err)
	}
	may("service_1", "token_1", "csu_1", map[string]access.Reason{address: access.NoRule, history: access.NoRule, edit: access.NoRule, "GET /v1/people": access.NoRule, "GET /": access.NoRule})

	// A group takes it in by its condition, with the token that it has.
	s.run(
		r(`POST /permission_groups {"name":"integrations","member_condition":"user.labels.kind == 'integration'","permissions":["directory.view","people.address.view"]}`, `201 {"id":"group_1","member_count":1}`),
		r(`GET /permission_groups/group_1/members`, `200 {"members":[{"name":"billing-sync","source":"condition"}]}`),
		r(`GET /service_users/service_1/access`, `200 {"permission_groups":[{"name":"integrations","source":"condition","rules":[{"permission":"directory.view"},{"permission":"directory.view"},{"permission":"directory.view"},{"permission":"people.address.view"}]}]}`),
		r(`GET /service_users/who_can?method=GET&url=/v1/people/7/address`, `200 {"service_users":[{"name":"billing-sync","rule":{"id":"people.address.view"},"permission_group":{"name":"integrations"}}]}`),
	)
	may("service_1", "token_1", "csu_1", map[string]access.Reason{address: access.Granted, "GET /v1/people": access.Granted, "GET /v1/people/7": access.Granted, edit: access.NoRule})

	// The history of a section is a right of its own, and so is to edit it.
	may("service_1", "token_1", "csu_1", map[string]access.Reason{history: access.NoRule, "GET /v1/people/7/history": access.NoRule, "GET /v1/people/7/payroll": access.NoRule})
	if got, want := s.why(`service_1 GET /v1/people/7/address/history`), `deny no_rule; grant allow GET /v1/people/7/address/history; nearest people.address.view: the path is longer than /v1/people/{id}/address`; got != want {
		t.Errorf("history:\n\tgot  %s\n\twant %s", got, want)
	}
	s.run(r(`PUT /permission_groups/group_1/permissions/people.address.history`, `204`))
	may("service_1", "token_1", "csu_1", map[string]access.Reason{history: access.Granted, edit: access.NoRule, "GET /v1/people/7/home/history": access.NoRule})
	s.run(r(`DELETE /permission_groups/group_1/permissions/people.address.view`, `204`))
	may("service_1", "token_1", "csu_1", map[string]access.Reason{history: access.Granted, address: access.NoRule})
	s.run(r(`PATCH /permission_groups/group_1 {"permissions":["people.address.edit","people.address.view"]}`, `200`))
	may("service_1", "token_1", "csu_1", map[string]access.Reason{history: access.NoRule, address: access.Granted, edit: access.Granted, "PATCH /v1/people/7/address": access.Granted, "DELETE /v1/people/7/address": access.NoRule})

	// A dedicated group, by name, and a token that is good for this one only.
	s.run(
		r(`POST /permission_groups {"name":"reports","permissions":["reports.view"],"rules":["deny GET /v1/reports/salaries/download"]}`, `201 {"id":"group_2"}`),
		r(`PUT /permission_groups/group_2/members/service_1`, `204`),
		r(`POST /service_users/service_1/tokens {"description":"reports only","permission_groups":["group_2"]}`, `201 {"id":"token_2","token":"csu_2"}`),
	)
	may("service_1", "token_1", "csu_1", map[string]access.Reason{"GET /v1/reports/1/download": access.Granted, "GET /v1/reports/salaries/download": access.DeniedByRule, address: access.Granted})
	may("service_1", "token_2", "csu_2", map[string]access.Reason{"GET /v1/reports/1/download": access.Granted, "GET /v1/reports/salaries/download": access.DeniedByRule, address: access.NoRule})

	// Switched off every token is refused, and on again as it was.
	s.run(r(`PATCH /service_users/service_1 {"active":false}`, `200 {"active":false}`))
	may("service_1", "token_1", "csu_1", map[string]access.Reason{address: access.UserInactive, "GET /v1/reports": access.UserInactive})
	may("service_1", "token_2", "csu_2", map[string]access.Reason{"GET /v1/reports": access.UserInactive})
	s.run(
		r(`GET /service_users/who_can?method=GET&url=/v1/people/7/address`, `200 {"service_users":[]}`),
		r(`PATCH /service_users/service_1 {"active":true}`, `200 {"active":true}`),
	)
	may("service_1", "token_1", "csu_1", map[string]access.Reason{address: access.Granted, "GET /v1/reports": access.Granted})

	// Refreshed, the old token is dead at once; with a grace it is not, until that ends.
	s.run(r(`POST /service_users/service_1/tokens/token_1/refresh`, `201 {"id":"token_3","token":"csu_3"}`))
	may("service_1", "token_1", "csu_1", map[string]access.Reason{address: access.TokenRevoked})
	may("service_1", "token_3", "csu_3", map[string]access.Reason{address: access.Granted})
	s.run(r(`POST /service_users/service_1/tokens/token_3/refresh {"grace":"24h"}`, `201 {"id":"token_4","token":"csu_4"}`))
	may("service_1", "token_3", "csu_3", map[string]access.Reason{address: access.Granted})
	may("service_1", "token_4", "csu_4", map[string]access.Reason{address: access.Granted})
	s.clock.Add(24 * 3600 * 1e9)
	may("service_1", "token_3", "csu_3", map[string]access.Reason{address: access.TokenExpired})
	may("service_1", "token_4", "csu_4", map[string]access.Reason{address: access.Granted})

	// Its label goes, and with it what the condition gave; not what it was named for.
	s.run(r(`PATCH /service_users/service_1 {"labels":{"kind":"report"}}`, `200`))
	may("service_1", "token_4", "csu_4", map[string]access.Reason{address: access.NoRule, "GET /v1/reports": access.Granted})

	// A role is for the admin API, and gives nothing here.
	s.run(r(`PATCH /service_users/service_1 {"role":"manager","teams":["hr"]}`, `200`))
	may("service_1", "token_4", "csu_4", map[string]access.Reason{address: access.NoRule, "GET /v1/reports": access.Granted})

	// One that it makes as a manager outlives it, whatever becomes of the maker.
	p, why := s.login("service_1", "csu_4")
	if s.by, err = s.api.ServiceUserActor(p); why != access.Granted || err != nil {
		t.Fatalf("manager: got %s, %v", why, err)
	}
	s.run(r(`POST /service_users {"name":"night-report","teams":["hr"],"permission_groups":["group_2"]}`, `201 {"id":"service_2","created_by":"service_1","token_id":"token_5","token":"csu_5"}`))
	s.by = HumanAdmin("alice")
	s.run(
		r(`DELETE /service_users/service_1`, `204`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/v1/reports"}`, `404 ERR_NOT_FOUND there is no service user "service_1"`),
	)
	if got := s.request("service_1", "csu_4", "GET /v1/reports"); got != access.UnknownID {
		t.Errorf("deleted: got %s, want %s", got, access.UnknownID)
	}
	may("service_2", "token_5", "csu_5", map[string]access.Reason{"GET /v1/reports": access.Granted, "GET /v1/reports/salaries/download": access.DeniedByRule, address: access.NoRule})
}
