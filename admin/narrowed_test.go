package admin

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// A token of an admin that is narrowed does nothing on the admin API: one that is made
// so, one that is narrowed later, its successor, and one that is narrowed to a group
// that is gone. Another token of the same admin goes on.
func TestNarrowedAdmin(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /permission_groups {"name":"readers"}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"gone"}`, `201 {"id":"group_2"}`),
		r(`POST /service_users {"name":"root","role":"admin","permission_groups":["group_1","group_2"]}`, `201 {"id":"service_1","token":"csu_1"}`),
		r(`POST /service_users/service_1/tokens {"permission_groups":["group_1"]}`, `201 {"id":"token_2","token":"csu_2"}`),
		r(`POST /service_users/service_1/tokens`, `201 {"id":"token_3","token":"csu_3"}`),
		r(`POST /service_users/service_1/tokens {"permission_groups":["group_2"]}`, `201 {"id":"token_4","token":"csu_4"}`),
		r(`POST /service_users/service_1/tokens/token_2/refresh {"grace":"1h"}`, `201 {"id":"token_5","token":"csu_5"}`),
		r(`DELETE /permission_groups/group_2`, `204`),
		r(`PATCH /service_users/service_1/tokens/token_3 {"permission_groups":["group_1"]}`, `200`),
	)
	check := func(secret string, want error) {
		t.Helper()
		p, why := s.login("service_1", secret)
		by, err := s.api.ServiceUserActor(p)
		if why != access.Granted || !errors.Is(err, want) || by.Name != s.real["service_1"] {
			t.Errorf("%s: got %s, %+v, %v, want %v", secret, why, by, err, want)
		}
	}
	check("csu_1", nil)
	for _, secret := range []string{"csu_2", "csu_3", "csu_4", "csu_5"} {
		check(secret, ErrNarrowed)
	}
	s.run(r(`PATCH /service_users/service_1/tokens/token_3 {"permission_groups":[]}`, `200`))
	check("csu_3", nil)
	if e := ErrNarrowed; e.Status != 403 || !strings.Contains(e.Msg, "narrowed") || !strings.Contains(e.Msg, "use a token") {
		t.Errorf("got %d %q, want 403 with the reason and a way out", e.Status, e.Msg)
	}

	// A manager's reaches what it did.
	s.run(r(`PATCH /service_users/service_1 {"role":"manager","teams":["x"]}`, `200`))
	p, _ := s.login("service_1", "csu_2")
	if by, err := s.api.ServiceUserActor(p); err != nil || by.Scope == nil || len(by.Scope.Groups) != 1 {
		t.Errorf("a manager: got %+v, %v, want one group", by.Scope, err)
	}
}

// Such a token that the program before this rule has made is refused as well.
func TestNarrowedAdminOfBefore(t *testing.T) {
	text, err := os.ReadFile("../store/testdata/schema-4.db")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	peppers, err := access.ParsePeppers("0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 20, 0, 0, time.UTC)
	s, err := store.Open(t.Context(), path, store.Options{Peppers: peppers, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	users, _, err := s.ServiceUsers(t.Context(), store.Local, store.UserQuery{Name: "root", Limit: 1})
	if err != nil || len(users) != 1 {
		t.Fatalf("got %d service users, %v, want root", len(users), err)
	}
	for secret, want := range map[string]error{
		"csu_w4lJrbYrzvxgPYv0YmCCSXJua3SlkFKvXBj3oMm0uFb1exjCg": ErrNarrowed,
		"csu_yNG7GDFxOHQ3Q46Rkojd3hUEC4fQtOOBOeCLLIWcJzn4GNfGq": nil,
	} {
		p, why := s.Directory().Authenticate(access.Credential{ID: users[0].ID, Secret: secret}, netip.MustParseAddr("192.0.2.1"), now.Unix())
		if _, err := New(s, nil, nil).ServiceUserActor(p); why != access.Granted || !errors.Is(err, want) {
			t.Errorf("got %s, %v, want %v", why, err, want)
		}
	}
}

// The list of what somebody has made is found by id and by name, and a manager learns
// no name by it.
func TestCreatedBy(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`POST /service_users {"name":"lead","role":"manager","teams":["finance"]}`, `201 {"id":"service_1","token":"csu_1"}`),
		r(`POST /service_users {"name":"chief","role":"manager","teams":["finance","ops"]}`, `201 {"id":"service_2","token":"csu_2"}`),
		r(`POST /service_users {"name":"stranger","role":"manager","teams":["ops"]}`, `201 {"id":"service_3","token":"csu_3"}`),
	)
	as := func(user, secret string) {
		t.Helper()
		p, _ := s.login(user, secret)
		by, err := s.api.ServiceUserActor(p)
		if err != nil {
			t.Fatal(err)
		}
		s.by = by
	}
	as("service_1", "csu_1")
	s.run(r(`POST /service_users {"name":"a","teams":["finance"]}`, `201 {"id":"service_4"}`), r(`POST /service_users {"name":"b","teams":["finance"]}`, `201 {"id":"service_5"}`))
	as("service_3", "csu_3")
	s.run(r(`POST /service_users {"name":"c","teams":["ops"]}`, `201 {"id":"service_6"}`))
	s.by = HumanAdmin("alice")
	s.run(r(`POST /service_users {"name":"d","teams":["finance"]}`, `201 {"id":"service_7"}`), r(`PATCH /service_users/service_6 {"teams":["finance"]}`, `200`))
	check := func(rows map[string]string) {
		t.Helper()
		for query, want := range rows {
			for _, limit := range []string{"", "&limit=1", "&sort=name&limit=1"} {
				if got := strings.Join(s.follow(s.resolve("/service_users?"+query)+limit, "service_users"), " "); got != want && limit != "&sort=name&limit=1" || len(got) != len(want) {
					t.Errorf("%s%s: got %q, want %q", query, limit, got, want)
				}
			}
		}
	}
	check(map[string]string{
		"created_by=lead": "b a", "created_by=service_1": "b a", "created_by=stranger": "c", "created_by=chief": "",
		"created_by=human:alice": "d", "created_by=alice": "d", "created_by=local": "stranger chief lead", "created_by=lead&team=ops": "", "deleted=true&created_by=lead": "",
	})
	// A manager that was deleted is still known by its id and name.
	s.run(r(`DELETE /service_users/service_1`, `204`), r(`DELETE /service_users/service_5`, `204`))
	check(map[string]string{"created_by=lead": "a", "created_by=service_1": "a", "deleted=true&created_by=lead": "b"})
	// This one sees c, and not that it is stranger's: only its id.
	s.run(r(`PATCH /service_users/service_2 {"teams":["finance"]}`, `200`))
	as("service_2", "csu_2")
	check(map[string]string{"created_by=service_3": "c", "created_by=lead": "a"})
	const unknown = `400 ERR_INVALID_VALUE [created_by]`
	s.run(r(`GET /service_users?created_by=stranger`, unknown), r(`GET /service_users?created_by=nobody`, unknown))
	s.run(r(`GET /service_users?created_by=lead&created_by=x`, `400`))
}
