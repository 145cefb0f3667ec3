// A test of the plugin with the Go client of the ngrok API, in version 9, which is also the
// client of the Terraform provider. It has a module of its own, so that the client does not
// reach the plugin.
package ngrok

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/ngrok/ngrok-api-go/v9"
	"github.com/ngrok/ngrok-api-go/v9/api_keys"
	"github.com/ngrok/ngrok-api-go/v9/bot_users"
	"github.com/ngrok/ngrok-api-go/v9/service_users"

	_ "github.com/serviceusers/caddy-service-users"
	"github.com/serviceusers/caddy-service-users/admin"
)

// server is a Caddy in this process, with a guarded site, the local door, and a site door.
type server struct {
	t                    *testing.T
	local, site, guarded string        // URLs
	automation           account       // has the role admin
	client               *admin.Client // at the local door
}

// account is a service user with its token.
type account struct{ ID, Token string }

func start(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	s := &server{t: t, local: freeAddress(t), site: freeAddress(t), guarded: freeAddress(t)}
	caddyfile := fmt.Sprintf(`{
		admin %s
		service_users {
			store %s/service_users.db
		}
	}
	http://%s {
		service_users_admin
	}
	http://%s {
		service_users
		respond "allowed"
	}`, s.local, dir, s.site, s.guarded)
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	config["admin"].(map[string]any)["config"] = map[string]any{"persist": false}
	config["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{"writer": map[string]any{"output": "discard"}}}}
	if text, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(text, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.local, s.site, s.guarded = "http://"+s.local, "http://"+s.site, "http://"+s.guarded
	s.client = &admin.Client{Base: s.local}
	s.must(http.MethodPost, "/service_users", map[string]any{"name": "automation", "role": "admin"}, &s.automation)
	return s
}

// must calls the API at the local door.
func (s *server) must(method, path string, in, out any) {
	s.t.Helper()
	if err := s.client.Do(s.t.Context(), method, path, in, out); err != nil {
		s.t.Fatal(err)
	}
}

// status asks the guarded site with a token.
func (s *server) status(key *ngrok.APIKey, token string) int {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodGet, s.guarded, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.SetBasicAuth(*key.OwnerID, token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// collect reads a list to its end, page by page.
func collect[T any](t *testing.T, list ngrok.Iter[*T], show func(*T) string) []string {
	t.Helper()
	shown := []string{}
	for list.Next(t.Context()) {
		shown = append(shown, show(list.Item()))
	}
	if err := list.Err(); err != nil {
		t.Errorf("list: got %v", err)
	}
	return shown
}

// made returns the result of a call that has to succeed.
func made[T any](t *testing.T) func(*T, error) T {
	return func(v *T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return *v
	}
}

// refused checks the error of a call: its status, its code, and that people can look it up.
func refused(t *testing.T, err error, status int32, code string) {
	t.Helper()
	e, ok := err.(*ngrok.Error) // as the client's own functions look at errors
	if !ok || e.StatusCode != status || e.ErrorCode != code || e.Msg == "" || !strings.HasPrefix(e.OperationID(), "op_") {
		t.Errorf("got %v, want HTTP %d [%s] with an operation id", err, status, code)
	}
	if ngrok.IsNotFound(err) != (status == 404) {
		t.Errorf("%v: got IsNotFound %v", err, ngrok.IsNotFound(err))
	}
}

// The client leads service users and keys through their lives, at both doors.
func TestClient(t *testing.T) {
	s := start(t)
	for _, door := range []struct{ name, base, key string }{
		{"site", s.site, s.automation.Token},
		{"site, with a path that the client drops", s.site + "/v1/", s.automation.Token},
		{"local", s.local, "any"},
	} {
		t.Run(door.name, func(t *testing.T) {
			config := ngrok.NewClientConfig(door.key, ngrok.WithBaseURL(door.base))
			users(t, bot_users.NewClient(config), service_users.NewClient(config))
			s.keys(t, config, door.name == "local")
		})
	}
}

// users creates, reads, changes, lists and deletes service users under both of their names.
func users(t *testing.T, bots *bot_users.Client, users *service_users.Client) {
	ctx := t.Context()
	bot, user := made[ngrok.BotUser](t), made[ngrok.ServiceUser](t)

	a := bot(bots.Create(ctx, &ngrok.BotUserCreate{Name: "a"}))
	if created, err := time.Parse(time.RFC3339, a.CreatedAt); err != nil || time.Since(created).Abs() > time.Hour || !a.Active || a.Name != "a" || a.URI != "/bot_users/"+a.ID {
		t.Errorf("created: got %+v", a)
	}
	b := user(users.Create(ctx, &ngrok.ServiceUserCreate{Name: "b", Active: new(false)}))
	if b.Active || b.Name != "b" || b.URI != "/service_users/"+b.ID {
		t.Errorf("created inactive: got %+v", b)
	}
	_, err := bots.Create(ctx, nil)
	refused(t, err, 400, "ERR_NGROK_4109")
	_, err = users.Create(ctx, &ngrok.ServiceUserCreate{Name: strings.Repeat("x", 256)})
	refused(t, err, 400, "ERR_NGROK_4110")
	_, err = bots.Create(ctx, &ngrok.BotUserCreate{Name: "b"})
	refused(t, err, 409, "ERR_NGROK_4112")
	if !ngrok.IsErrorCode(err, 4112) {
		t.Errorf("%v: got another code than 4112", err)
	}

	if got := bot(bots.Get(ctx, a.ID)); got != a {
		t.Errorf("read: got %+v, want %+v as it was created", got, a)
	}
	if got := bot(bots.Update(ctx, &ngrok.BotUserUpdate{ID: b.ID, Active: new(true)})); !got.Active || got.Name != "b" {
		t.Errorf("activated: got %+v", got)
	}
	renamed := user(users.Update(ctx, &ngrok.ServiceUserUpdate{ID: b.ID, Name: new("c")}))
	if !renamed.Active || renamed.Name != "c" || renamed.CreatedAt != b.CreatedAt {
		t.Errorf("renamed: got %+v", renamed)
	}
	if got := user(users.Update(ctx, &ngrok.ServiceUserUpdate{ID: b.ID})); got != renamed {
		t.Errorf("changed nothing: got %+v, want %+v", got, renamed)
	}
	_, err = bots.Update(ctx, &ngrok.BotUserUpdate{ID: b.ID, Name: new("")})
	refused(t, err, 400, "ERR_NGROK_4109")
	_, err = bots.Update(ctx, &ngrok.BotUserUpdate{Active: new(false)}) // the ID was forgotten
	refused(t, err, 404, "ERR_NOT_FOUND")

	// Lists: newest first, page by page.
	ids := []string{b.ID, a.ID}
	for i := range 5 {
		ids = slices.Insert(ids, 0, bot(bots.Create(ctx, &ngrok.BotUserCreate{Name: fmt.Sprint(i)})).ID)
	}
	botID, userID := func(u *ngrok.BotUser) string { return u.ID }, func(u *ngrok.ServiceUser) string { return u.ID }
	for limit := range 9 {
		paging := ngrok.Paging{}
		filtered := ngrok.FilteredPaging{Filter: new(`obj.role != "admin"`)}
		if limit > 0 {
			paging.Limit = new(fmt.Sprint(limit))
			filtered.Limit = paging.Limit
		}
		if got := collect(t, bots.List(&paging), botID); len(got) != 8 || !slices.Equal(got[:7], ids) {
			t.Errorf("bot users by %d: got %q, want %q and the admin", limit, got, ids)
		}
		if got := collect(t, users.List(&filtered), userID); !slices.Equal(got, ids) {
			t.Errorf("service users by %d: got %q, want %q", limit, got, ids)
		}
	}
	if got := collect(t, bots.List(&ngrok.Paging{BeforeID: &ids[3]}), botID); !slices.Equal(got[:3], ids[4:]) {
		t.Errorf("bot users before %s: got %q, want %q", ids[3], got, ids[4:])
	}
	recent := `obj.created_at > timestamp(time.now).subtract("1h") && obj.id in ["` + a.ID + `", "` + ids[0] + `"]`
	if got := collect(t, users.List(&ngrok.FilteredPaging{Filter: &recent, Limit: new("1")}), userID); !slices.Equal(got, []string{ids[0], a.ID}) {
		t.Errorf("service users with %s: got %q", recent, got)
	}
	list := users.List(&ngrok.FilteredPaging{Filter: new("obj.nme == 'a'")})
	if list.Next(ctx) {
		t.Errorf("a filter on a field that there is not: got %+v", list.Item())
	}
	refused(t, list.Err(), 400, "invalid_cel_expression")

	for i, id := range ids {
		remove := bots.Delete
		if i%2 == 0 {
			remove = users.Delete
		}
		if err := remove(ctx, id); err != nil {
			t.Errorf("delete: got %v", err)
		}
		refused(t, remove(ctx, id), 404, "ERR_NOT_FOUND")
	}
	_, err = bots.Get(ctx, a.ID)
	refused(t, err, 404, "ERR_NOT_FOUND")
	_, err = users.Update(ctx, &ngrok.ServiceUserUpdate{ID: b.ID, Active: new(false)})
	refused(t, err, 404, "ERR_NOT_FOUND")
	refused(t, bots.Delete(ctx, ""), 404, "ERR_NOT_FOUND")
}

// keys issues, reads, changes, lists and revokes API keys.
func (s *server) keys(t *testing.T, config *ngrok.ClientConfig, local bool) {
	ctx := t.Context()
	keys, bots := api_keys.NewClient(config), bot_users.NewClient(config)
	key := made[ngrok.APIKey](t)

	owner := made[ngrok.BotUser](t)(bots.Create(ctx, &ngrok.BotUserCreate{Name: "owner"}))
	k := key(keys.Create(ctx, &ngrok.APIKeyCreate{OwnerID: &owner.ID, Description: "ci", Metadata: `{"a":1}`}))
	if k.Token == nil || *k.OwnerID != owner.ID || k.Description != "ci" || k.Metadata != `{"a":1}` || k.URI != "/api_keys/"+k.ID {
		t.Fatalf("issued: got %+v", k)
	}
	token := *k.Token
	if got := s.status(&k, token); got != 403 {
		t.Errorf("the token of a service user without rules: got %d, want 403", got)
	}
	read := key(keys.Get(ctx, k.ID))
	if read.Token != nil || *read.OwnerID != owner.ID || read.Description != k.Description || read.Metadata != k.Metadata || read.CreatedAt != k.CreatedAt {
		t.Errorf("read: got %+v, want %+v without the token", read, k)
	}
	for _, row := range []struct {
		update                ngrok.APIKeyUpdate
		description, metadata string
	}{
		{ngrok.APIKeyUpdate{Description: new("nightly")}, "nightly", `{"a":1}`},
		{ngrok.APIKeyUpdate{Metadata: new("m")}, "nightly", "m"},
		{ngrok.APIKeyUpdate{Description: new("")}, "", "m"},
		{ngrok.APIKeyUpdate{}, "", "m"},
		{ngrok.APIKeyUpdate{Description: new("ci"), Metadata: new("")}, "ci", ""},
	} {
		row.update.ID = k.ID
		if got := key(keys.Update(ctx, &row.update)); got.Description != row.description || got.Metadata != row.metadata || got.Token != nil || *got.OwnerID != owner.ID {
			t.Errorf("%+v: got %+v", row, got)
		}
	}
	_, err := keys.Update(ctx, &ngrok.APIKeyUpdate{ID: k.ID, Metadata: new(strings.Repeat("x", 4097))})
	refused(t, err, 400, "ERR_INVALID_VALUE")

	// The owner: the caller by default, or one that there is.
	own, err := keys.Create(ctx, &ngrok.APIKeyCreate{Description: "own"})
	if local {
		refused(t, err, 400, "ERR_INVALID_VALUE")
	} else if err != nil || *own.OwnerID != s.automation.ID || own.Token == nil {
		t.Errorf("a key of the caller: got %+v, %v", own, err)
	} else if err := keys.Delete(ctx, own.ID); err != nil {
		t.Errorf("a key of the caller: delete: got %v", err)
	}
	_, err = keys.Create(ctx, &ngrok.APIKeyCreate{OwnerID: new("service_" + strings.Repeat("0", 27))})
	refused(t, err, 404, "ERR_NOT_FOUND")
	_, err = keys.Create(ctx, &ngrok.APIKeyCreate{OwnerID: new("owner")})
	refused(t, err, 400, "ERR_INVALID_VALUE")

	// Lists, with a filter or without.
	ids := []string{k.ID}
	for i := range 4 {
		ids = slices.Insert(ids, 0, key(keys.Create(ctx, &ngrok.APIKeyCreate{OwnerID: &owner.ID, Description: fmt.Sprint(i % 2)})).ID)
	}
	id := func(k *ngrok.APIKey) string {
		if k.Token != nil {
			t.Errorf("%s: a list has its token", k.ID)
		}
		return k.ID
	}
	of := fmt.Sprintf("obj.owner_id == %q", owner.ID)
	for filter, want := range map[string][]string{
		of:                                  ids,
		of + ` && obj.description == "1"`:   {ids[0], ids[2]},
		of + ` && obj.metadata != ""`:       {},
		fmt.Sprintf("obj.id == %q", ids[3]): {ids[3]},
		of + ` && obj.created_at < timestamp(time.now).subtract("1h")`: {},
	} {
		for _, limit := range []string{"1", "2", "100"} {
			if got := collect(t, keys.List(&ngrok.FilteredPaging{Filter: &filter, Limit: &limit}), id); !slices.Equal(got, want) {
				t.Errorf("keys with %s by %s: got %q, want %q", filter, limit, got, want)
			}
		}
	}
	if got := collect(t, keys.List(nil), id); len(got) != len(ids)+1 || !slices.Equal(got[:len(ids)], ids) {
		t.Errorf("keys: got %q, want %q and that of the client", got, ids)
	}
	list := keys.List(&ngrok.FilteredPaging{Limit: new("0")})
	if list.Next(ctx) {
		t.Errorf("a page of 0 keys: got %+v", list.Item())
	}
	refused(t, list.Err(), 400, "ERR_NGROK_233")

	// A revoked key is refused at once, and so are the keys of a deleted service user.
	if err := keys.Delete(ctx, k.ID); err != nil {
		t.Errorf("revoke: got %v", err)
	}
	if got := s.status(&k, token); got != 401 {
		t.Errorf("a revoked token: got %d, want 401", got)
	}
	_, err = keys.Get(ctx, k.ID)
	refused(t, err, 404, "ERR_NOT_FOUND")
	refused(t, keys.Delete(ctx, k.ID), 404, "ERR_NOT_FOUND")
	if err := bots.Delete(ctx, owner.ID); err != nil {
		t.Errorf("delete the owner: got %v", err)
	}
	_, err = keys.Get(ctx, ids[0])
	refused(t, err, 404, "ERR_NOT_FOUND")
	_, err = keys.Create(ctx, &ngrok.APIKeyCreate{OwnerID: &owner.ID})
	refused(t, err, 404, "ERR_NOT_FOUND")
}

// A caller without rights gets errors that the client reads.
func TestRefusedClients(t *testing.T) {
	s := start(t)
	var worker, lead account
	s.must(http.MethodPost, "/service_users", map[string]any{"name": "worker"}, &worker)
	s.must(http.MethodPost, "/service_users", map[string]any{"name": "lead", "role": "manager", "teams": []string{"ops"}}, &lead)
	for _, row := range []struct {
		name, key string
		status    int32
		code      string
	}{
		{"a wrong key", "key", 401, "ERR_UNAUTHENTICATED"},
		{"no key", "", 401, "ERR_UNAUTHENTICATED"},
		{"a service user without a role", worker.Token, 403, "ERR_NGROK_4111"},
		{"a manager, outside of its teams", lead.Token, 403, "ERR_NGROK_4111"},
	} {
		t.Run(row.name, func(t *testing.T) {
			config := ngrok.NewClientConfig(row.key, ngrok.WithBaseURL(s.site))
			_, err := bot_users.NewClient(config).Create(t.Context(), &ngrok.BotUserCreate{Name: "new"})
			refused(t, err, row.status, row.code)
			_, err = api_keys.NewClient(config).Create(t.Context(), nil)
			refused(t, err, row.status, row.code)
		})
	}
}
