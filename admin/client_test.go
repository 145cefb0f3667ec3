package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// One suite for a client over the network and one that serves itself.
func TestClient(t *testing.T) {
	for _, kind := range []string{"network", "offline"} {
		t.Run(kind, func(t *testing.T) {
			s := serve(t, store.Options{})
			c := &Client{Base: s.URL}
			if kind == "offline" {
				c = Offline(s.store, HumanAdmin("alice"))
			} else {
				s.by = HumanAdmin("alice")
			}
			testClient(t, s, c)
		})
	}
}

func testClient(t *testing.T, s *server, c *Client) {
	ctx := t.Context()
	// do sends one request that must succeed.
	do := func(method, uri string, in, out any) {
		t.Helper()
		s.clock.Add(int64(time.Second))
		if err := c.Do(ctx, method, uri, in, out); err != nil {
			t.Fatalf("%s %s: %v", method, uri, err)
		}
	}
	var g Group
	do("POST", "/permission_groups", GroupInput{Name: Some("readers"), Rules: Some([]RuleInput{{Text: "allow GET /v1/{x}"}, {Effect: "deny", Methods: []string{"*"}, Path: "/x", Name: "n"}})}, &g)
	if len(g.Rules) != 2 || g.Rules[0].Text != "allow GET /v1/{x}" || g.Rules[1].Name != "n" || g.CreatedBy != "human:alice" {
		t.Errorf("group: got %+v", g)
	}
	var u ServiceUser
	do("POST", "/service_users", NewServiceUser{ServiceUserInput: ServiceUserInput{Name: Some("a/b ?&%+é"), Teams: Some([]string{"x"}), PermissionGroups: Some([]string{g.ID})}}, &u)
	if !u.Active || u.Token == "" || u.TokenID == "" || !slices.Equal(u.PermissionGroups, []string{g.ID}) {
		t.Errorf("service user: got %+v", u)
	}
	var all []string
	for i := range 25 {
		s.clock.Add(int64(time.Second))
		made, _, err := s.store.CreateServiceUser(ctx, store.Local, store.ServiceUser{Profile: access.Profile{Name: fmt.Sprint("user ", i)}, Groups: []string{g.ID}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, made.ID)
	}
	slices.Reverse(all)

	// Only what is set goes out.
	var changed ServiceUser
	do("PATCH", u.URI, ServiceUserInput{Owner: Some("o"), Active: Some(false)}, &changed)
	if changed.Owner != "o" || changed.Active || !slices.Equal(changed.Teams, []string{"x"}) || changed.Token != "" {
		t.Errorf("update: got %+v", changed)
	}
	do("PATCH", u.URI, ServiceUserInput{Teams: Some([]string(nil)), Labels: Some(map[string]string{"k": "v"})}, &changed)
	if changed.Owner != "o" || len(changed.Teams) != 0 || changed.Labels["k"] != "v" {
		t.Errorf("update with a nil list: got %+v", changed)
	}
	var token Token
	do("POST", u.URI+"/tokens/"+u.TokenID+"/refresh", RefreshInput{Grace: Some("1h")}, &token)
	if token.Secret == "" || token.Replaces != u.TokenID || token.ExpiresAt != nil {
		t.Errorf("refreshed token: got %+v", token)
	}
	var shorter Token
	do("PATCH", token.URI, TokenInput{TTL: Some("1d")}, &shorter)
	if shorter.ExpiresAt == nil || shorter.Secret != "" {
		t.Errorf("updated token: got %+v", shorter)
	}
	do("DELETE", token.URI, nil, nil)
	do("PUT", g.URI+"/members/"+all[0], nil, nil)
	do("GET", u.URI, nil, nil)

	// Pages.
	var ids []string
	pages := 0
	if err := All(ctx, c, "/service_users?limit=10", func(l ServiceUserList) Page {
		for _, u := range l.ServiceUsers {
			ids = append(ids, u.ID)
		}
		pages++
		return l.Page
	}); err != nil || pages != 3 || !slices.Equal(ids, append(slices.Clone(all), u.ID)) {
		t.Errorf("all: got %d service users on %d pages, %v, want 26 on 3", len(ids), pages, err)
	}
	ids = nil
	if err := All(ctx, c, g.URI+"/members?limit=7", func(l MemberList) Page {
		for _, m := range l.Members {
			ids = append(ids, m.ID)
		}
		return l.Page
	}); err != nil || !slices.Equal(ids, append(slices.Clone(all), u.ID)) {
		t.Errorf("all members: got %d, %v, want 26", len(ids), err)
	}
	calls := 0
	err := All(ctx, c, "/service_users?limit=0", func(l ServiceUserList) Page { calls++; return l.Page })
	if got := describe(err); got != "400 ERR_NGROK_233 limit: must lie between 1 and 100" || calls != 0 {
		t.Errorf("all with a bad limit: got %s after %d pages", got, calls)
	}

	// By id or name.
	for _, row := range []struct{ idOrName, want string }{
		{u.ID, u.ID}, {"a/b ?&%+é", u.ID}, {"user 24", all[0]},
		{s.real["service_0"], `404 ERR_NOT_FOUND there is no service user "` + s.real["service_0"] + `"`},
		{"nobody", `404 ERR_NOT_FOUND there is no service user "nobody"`},
		{g.ID, `404 ERR_NOT_FOUND there is no service user "` + g.ID + `"`},
		{"user", `404 ERR_NOT_FOUND there is no service user "user"`}, {"USER 24", `404 ERR_NOT_FOUND there is no service user "USER 24"`},
		{"../permission_groups", `404 ERR_NOT_FOUND there is no service user "../permission_groups"`}, {"user 24&limit=1", `404 ERR_NOT_FOUND there is no service user "user 24&limit=1"`},
		{"", "400 ERR_NGROK_230 name: is empty; leave it out or give it a value"}, // never the first of all
	} {
		found, err := c.FindServiceUser(ctx, row.idOrName)
		if got := found.ID + describe(err); got != row.want {
			t.Errorf("service user %q: got %s, want %s", row.idOrName, got, row.want)
		}
	}
	for _, row := range []struct{ idOrName, want string }{
		{g.ID, g.ID}, {"readers", g.ID},
		{s.real["group_0"], `404 ERR_NOT_FOUND there is no permission group "` + s.real["group_0"] + `"`},
		{"writers", `404 ERR_NOT_FOUND there is no permission group "writers"`},
		{u.ID, `404 ERR_NOT_FOUND there is no permission group "` + u.ID + `"`},
		{"", "400 ERR_NGROK_230 name: is empty; leave it out or give it a value"},
	} {
		found, err := c.FindGroup(ctx, row.idOrName)
		if got := found.ID + describe(err); got != row.want {
			t.Errorf("group %q: got %s, want %s", row.idOrName, got, row.want)
		}
	}

	// Errors.
	do("DELETE", u.URI, nil, nil)
	for _, row := range []struct {
		method, uri string
		in          any
		want        string
	}{
		{"DELETE", u.URI, nil, `404 ERR_NOT_FOUND there is no service user "` + u.ID + `"`},
		{"GET", "/nothing", nil, "404 ERR_NOT_FOUND there is no such resource"},
		{"PUT", "/service_users", nil, `405 ERR_METHOD_NOT_ALLOWED the method "PUT" is not allowed here; allowed: GET, HEAD, POST`},
		{"POST", "/service_users", ServiceUserInput{}, "400 ERR_NGROK_4109 name: must not be empty"},
		{"POST", "/service_users", ServiceUserInput{Name: Some("user 1")}, `409 ERR_NGROK_4112 name: "user 1" is taken by another service user; choose another`},
		{"POST", "/service_users", map[string]any{"x": 1}, "400 ERR_NGROK_214 x: there is no such field; known here: name, display_name, description, owner, alias, active, role, teams, labels, allowed_ips, expires_at, permission_groups, create_token, token_ttl"},
		{"POST", "/service_users", "x", "400 ERR_INVALID_VALUE the body must not be a JSON string"},
	} {
		err := c.Do(ctx, row.method, row.uri, row.in, nil)
		if got := describe(err); got != row.want || IsNotFound(err) != strings.HasPrefix(row.want, "404") {
			t.Errorf("%s %s: got %s, want %s", row.method, row.uri, got, row.want)
		}
	}
	if err := c.Do(ctx, "POST", "/service_users", func() {}, nil); err == nil {
		t.Error("a body that is no JSON: got no error")
	}
	if err := c.Do(ctx, "GET", "/%zz", nil, nil); err == nil {
		t.Error("a path that is none: got no error")
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.Do(gone, "GET", "/service_users", nil, nil); err == nil || IsNotFound(err) {
		t.Errorf("a caller that has gone: got %v, want an error", err)
	}
}

// describe tells what the callers of a client tell apart.
func describe(err error) string {
	var e *Error
	var u *UnreachableError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		if !store.ValidID("op", e.Details["operation_id"]) && !strings.HasPrefix(e.Msg, "there is no") {
			return "no operation id: " + e.Msg
		}
		return fmt.Sprintf("%d %s %s", e.Status, e.Code, e.Msg)
	case errors.As(err, &u):
		return "unreachable: " + strings.TrimPrefix(u.Error(), u.Base+": ")
	default:
		return "other: " + err.Error()
	}
}

// Whatever is not this API must not pass for it.
func TestUnreachable(t *testing.T) {
	for _, row := range []struct {
		status           int
		kind, body, want string
	}{
		{404, "text/html", "<h1>404</h1>", "unreachable: answered 404 Not Found, not as the service-user API does"},
		{404, "text/plain", "404 page not found\n", "unreachable: answered 404 Not Found: 404 page not found, not as the service-user API does"},
		{403, "application/json", `{"error":"host not allowed: x"}`, "403  BASE answered 403 Forbidden: host not allowed: x"},
		{403, "application/problem+json", `{"title":"Forbidden","detail":"not from here, csu_00000000000000000000000000000000000000000000nyr1a"}`, "403  BASE answered 403 Forbidden: not from here, csu_…"},
		{401, "", "", "401  BASE answered 401 Unauthorized"},
		{429, "", "", "429  BASE answered 429 Too Many Requests"},
		{429, "application/problem+json", `{"error_code":"ERR_NGROK_226","status_code":429,"msg":"too many"}`, "429 ERR_NGROK_226 too many"},
		{404, "application/json", `{}`, "unreachable: answered 404 Not Found, not as the service-user API does"},
		{404, "application/json", `null`, "unreachable: answered 404 Not Found, not as the service-user API does"},
		{404, "application/json", ``, "unreachable: answered 404 Not Found, not as the service-user API does"},
		{404, "application/json", `{"error_code":7}`, "unreachable: answered 404 Not Found, not as the service-user API does"},
		{502, "text/html", "<h1>Bad Gateway</h1>", "unreachable: answered 502 Bad Gateway, not as the service-user API does"},
		{200, "text/html", "<h1>Welcome</h1>", "unreachable: answered 200 OK, not as the service-user API does"},
		{200, "application/json", `[]`, "unreachable: answered 200 OK, not as the service-user API does"},
		{200, "application/json", `{"id":7}`, "unreachable: answered 200 OK, not as the service-user API does"},
		{200, "application/json", ``, "unreachable: answered 200 OK, not as the service-user API does"},
		{302, "text/html", "", "unreachable: answered 302 Found to BASE/login, not as the service-user API does"},
		{304, "", "", "unreachable: answered 304 Not Modified to BASE/login, not as the service-user API does"},
		{404, "application/problem+json", `{"error_code":"ERR_NOT_FOUND","status_code":404,"msg":"there is no x","details":{}}`, "404 ERR_NOT_FOUND there is no x"},
	} {
		var sent http.Header
		other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sent = r.Header
			if r.URL.Path == "/login" {
				fmt.Fprint(w, `{"id":"no"}`) // a page that would pass
				return
			}
			w.Header().Set("Content-Type", row.kind)
			w.Header().Set("Location", "/login?code=secret")
			w.WriteHeader(row.status)
			fmt.Fprint(w, row.body)
		}))
		c := &Client{Base: other.URL, Header: http.Header{"X-Test": {"yes"}}}
		noBase := func(err error) string {
			text := describe(err)
			if e := (*Error)(nil); errors.As(err, &e) && e.Details == nil { // of another program
				text = fmt.Sprintf("%d %s %v", e.Status, e.Code, err)
			}
			return strings.ReplaceAll(text, other.URL, "BASE")
		}
		for _, method := range []string{"GET", "POST"} {
			if got := noBase(c.Do(t.Context(), method, "/service_users/x", nil, nil)); got != row.want {
				t.Errorf("%s, %d %s, nothing expected: got %s, want %s", method, row.status, row.body, got, row.want)
			}
			var u ServiceUser
			if got := noBase(c.Do(t.Context(), method, "/service_users/x", ServiceUserInput{Name: Some("x")}, &u)); got != row.want {
				t.Errorf("%s, %d %s: got %s, want %s", method, row.status, row.body, got, row.want)
			}
		}
		if sent.Get("X-Test") != "yes" || sent.Get("Content-Type") != "application/json" {
			t.Errorf("headers: got %v", sent)
		}
		other.Close()
		if err := c.Do(t.Context(), "GET", "/service_users", nil, nil); !strings.HasPrefix(describe(err), "unreachable: ") {
			t.Errorf("nothing listens: got %v, want unreachable", err)
		}
		if _, err := c.FindGroup(t.Context(), "x"); !strings.HasPrefix(describe(err), "unreachable: ") || IsNotFound(err) {
			t.Errorf("nothing listens: got %v, want unreachable and not as not found", err)
		}
	}
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, `{"service_users":`)
	}))
	defer cut.Close()
	if got := describe((&Client{Base: cut.URL}).Do(t.Context(), "GET", "/service_users", nil, nil)); !strings.HasPrefix(got, "unreachable: unexpected EOF") {
		t.Errorf("an answer that is cut: got %s, want unreachable", got)
	}
}

// An error that was made outside of the API reads the same.
func TestWriteError(t *testing.T) {
	operation := store.NewOperationID()
	for _, err := range []error{ErrUnauthenticated, ErrNotEntitled, fmt.Errorf("door: %w", ErrNotEntitled), errors.New("secret path /var/x"), context.Canceled, &store.Error{Kind: store.ErrConflict, Field: "alias", Msg: "m"}} {
		w := httptest.NewRecorder()
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		WriteError(w, zap.NewNop(), operation, err)
		for _, problem := range checkAnswer("GET", w.Code, w.Result().Header, w.Body.Bytes()) {
			t.Errorf("%v: %s\n\t%s", err, problem, w.Body)
		}
		if strings.Contains(w.Body.String(), "/var/x") || !strings.Contains(w.Body.String(), operation) {
			t.Errorf("%v: got %s", err, w.Body)
		}
	}
	if ErrNotEntitled.Details != nil || ErrNotEntitled.Title != "" {
		t.Errorf("a shared error was written to: %+v", ErrNotEntitled)
	}
}

// TestPanicInThisProcess checks that a panic of an operation that a client calls in this process is an
// error. net/http would catch it at a request of its own; here it would end Caddy.
func TestPanicInThisProcess(t *testing.T) {
	api := New(nil, nil, nil) // every operation panics
	err := api.Client(store.Local).Do(t.Context(), http.MethodGet, "/service_users", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "panic: ") || !strings.Contains(err.Error(), "listServiceUsers") {
		t.Errorf("got %v, want the panic with its place", err)
	}
}
