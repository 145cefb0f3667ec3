package caddymodule

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// TestForwardedTargetIsJudged: the rules see the path that goes upstream, whichever parts of the URL a
// handler before this one has changed.
func TestForwardedTargetIsJudged(t *testing.T) {
	for name, change := range map[string]func(r *http.Request){
		"path":   func(r *http.Request) { r.URL.Path = "/denied" },
		"opaque": func(r *http.Request) { r.URL.Opaque = "//elsewhere/x" },
		"host":   func(r *http.Request) { r.URL.Host = "elsewhere" },
	} {
		h := new(Handler)
		r := rewritten(t, "GET /v1/x", "")
		r.URL.Host = ""
		if p := h.judge(&request{r: r, vars: varsOf(r)}); !p.OK() {
			t.Fatalf("unchanged: got %+v", p)
		}
		change(r)
		if p := h.judge(&request{r: r, vars: varsOf(r)}); p.Status != 400 {
			t.Errorf("%s: got %+v, want a 400", name, p)
		}
	}
}

// TestForeignAuthorizationIsDropped: a public path hands on no credential unless keep_authorization is
// on.
func TestForeignAuthorizationIsDropped(t *testing.T) {
	for _, keep := range []bool{false, true} {
		g := newGuard(t, Handler{Public: []string{"GET /open"}, KeepAuthorization: keep})
		w, behind := g.ask("GET", "/open", "", credentials{}, "Authorization: Bearer ey.foreign")
		if got := behind["Authorization"] != nil; w.Code != 204 || got != keep {
			t.Errorf("keep_authorization %t: got %d and the field %q", keep, w.Code, behind["Authorization"])
		}
	}
}

// TestPreflightWithBody: a preflight has no body.
func TestPreflightWithBody(t *testing.T) {
	g := newGuard(t, Handler{CORSPreflight: true})
	for body, want := range map[string]int{"": 204, "x": 401} {
		r := httptest.NewRequest("OPTIONS", "/x", strings.NewReader(body))
		r.Header.Set("Origin", "https://app.example")
		r.Header.Set("Access-Control-Request-Method", "DELETE")
		if w, _ := g.serve(r); w.Code != want {
			t.Errorf("the body %q: got %d, want %d", body, w.Code, want)
		}
	}
}

// TestNestedOtherwise: a handler with "otherwise pass" judges the service user that a handler before it
// has found, although the credential is gone.
func TestNestedOtherwise(t *testing.T) {
	for target, want := range map[string]int{"/v1/x": 204, "/denied": 403, "/x": 403} {
		g := newGuard(t, Handler{})
		inner := &Handler{Otherwise: "pass", storeHandle: g.h.storeHandle, log: zap.NewNop()}
		if err := inner.prepare(); err != nil {
			t.Fatal(err)
		}
		var id string
		w := g.askRewritten(g.reader, "GET /v1/y", "", func(w http.ResponseWriter, r *http.Request) error {
			forward(r, target)
			// The upstream gets the current target alone.
			inner.around.currentOnly = true
			return inner.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				id = r.Header.Get("X-Service-User-Id")
				w.WriteHeader(http.StatusNoContent)
				return nil
			}))
		})
		if w.Code != want || want == 204 && id != g.reader.id {
			t.Errorf("%s: got %d and the id %q, want %d", target, w.Code, id, want)
		}
	}
}

// TestIdentityValues compares every identity header and placeholder with its value. A handler behind
// may add to one header without changing another.
func TestIdentityValues(t *testing.T) {
	g := newGuard(t, Handler{Headers: []string{"id", "name", "display_name", "groups", "role", "teams", "token_id"}})
	live := g.h.shared.live.Load()
	must(live.store.UpdateServiceUser(t.Context(), store.Local, g.reader.id, 0, func(u *store.ServiceUser) error {
		u.DisplayName, u.Teams, u.Role = "The reader", []string{"finance", "legal"}, access.Manager
		return nil
	}))
	token := must2(live.store.FindTokens(t.Context(), store.Local, store.TokenQuery{UserID: g.reader.id, Limit: 1}))[0].ID
	want := map[string]string{
		"id": g.reader.id, "name": "reader", "display_name": "The reader", "groups": "denied,readers",
		"role": "manager", "teams": "finance,legal", "token_id": token,
	}
	called := false
	g.askRewritten(g.reader, "GET /v1/x", "", func(w http.ResponseWriter, r *http.Request) error {
		called = true
		repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		for word, value := range want {
			name := "X-Service-User-" + strings.ReplaceAll(word, "_", "-")
			if got := r.Header.Values(name); !slices.Equal(got, []string{value}) {
				t.Errorf("%s: got %q, want %q", name, got, value)
			}
			if got, _ := repl.GetString("http.auth.user." + word); got != value && word != "display_name" {
				t.Errorf("placeholder of %s: got %q, want %q", word, got, value)
			}
		}
		before := r.Header.Get("X-Service-User-Name")
		r.Header.Add("X-Service-User-Id", "x")
		if got := r.Header.Get("X-Service-User-Name"); got != before {
			t.Errorf("another value of the id changes the name to %q", got)
		}
		return nil
	})
	if !called {
		t.Error("the request did not pass")
	}
}

// TestSelfWhoHidesConditions: a service user sees its rules without their conditions.
func TestSelfWhoHidesConditions(t *testing.T) {
	c := newCorner(t, Handler{})
	must(c.open.store.UpdateGroup(t.Context(), store.Local, c.readers.ID, 0, func(g *store.Group) error {
		g.Rules = append(g.Rules, must(access.ParseRule("allow GET /v4 when request.remote_ip == '192.0.2.77'")))
		return nil
	}))
	body := bodyOf(c.ask(c.own.Secret, "GET", "/_self", ""))
	if !strings.Contains(body, `"allow GET /v4"`) || strings.Contains(body, "192.0.2.77") {
		t.Errorf("got %s, want the rule without its condition", body)
	}
}

// door returns a site door over the store of the guard.
func (g *guard) door() *SiteDoor {
	return &SiteDoor{storeHandle: g.h.storeHandle, log: g.h.log, origin: http.NewCrossOriginProtection()}
}

// knock asks a door for its service users, and returns the answer.
func (g *guard) knock(door *SiteDoor, header string) *httptest.ResponseRecorder {
	g.t.Helper()
	r := prepared(httptest.NewRequest("GET", "/service_users", nil))
	caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, "192.0.2.1")
	r.Header.Set("Authorization", header)
	w := httptest.NewRecorder()
	if err := door.ServeHTTP(w, r, nil); err != nil {
		g.t.Fatal(err)
	}
	return w
}

// TestUseIsCounted: requests to the self-service corner and to a door are uses of the token.
func TestUseIsCounted(t *testing.T) {
	g := newGuard(t, Handler{Self: &Self{Path: "/self"}})
	uses := func() int64 {
		return must2(g.h.shared.live.Load().store.FindTokens(t.Context(), store.Local, store.TokenQuery{UserID: g.reader.id, Limit: 1}))[0].UseCount
	}
	if w, _ := g.ask("GET", "/self", "", g.reader); w.Code != 200 || uses() != 1 {
		t.Errorf("the corner: got %d and %d uses, want 1", w.Code, uses())
	}
	if got := g.knock(g.door(), basic(g.reader.id, g.reader.secret)).Code; got != 403 || uses() != 2 {
		t.Errorf("the door: got %d and %d uses, want 2", got, uses())
	}
}

// TestGuessesAtTheDoor: a door throttles failed logins as a Handler does, logs each in the line that
// programs read, and the audit trail has them.
func TestGuessesAtTheDoor(t *testing.T) {
	for name, wrong := range map[string]string{
		"Basic": basic("service_x", "wrong"), "Bearer": "Bearer wrong",
	} {
		g := newGuard(t, Handler{})
		live := g.h.shared.live.Load()
		live.throttle = access.NewThrottle(3, time.Hour)
		door := g.door()
		for i, want := range []int{401, 401, 401, 429, 429} {
			begin := time.Now()
			w := g.knock(door, wrong)
			if w.Code != want {
				t.Errorf("%s, attempt %d: got %d, want %d", name, i, w.Code, want)
			}
			// A throttled attempt is answered as by a Handler.
			wait, delayed := w.Header().Get("Retry-After"), time.Since(begin) >= holdFor
			if (wait != "") != (want == 429) || want == 429 && !delayed {
				t.Errorf("%s, attempt %d: got Retry-After %q, delayed: %t", name, i, wait, delayed)
			}
		}
		if got := g.log.FilterMessage("authentication failed").Len(); got != 5 {
			t.Errorf("%s: got %d lines in the log, want 5", name, got)
		}
		// The secret is checked before the throttle.
		if got := g.knock(door, basic(g.reader.id, g.reader.secret)).Code; got != 403 {
			t.Errorf("%s: a right login got %d, want the 403 of a member", name, got)
		}
		list, _, err := live.store.AuditEvents(t.Context(), store.Local, store.AuditQuery{Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(list, func(e store.AuditEvent) bool { return e.Actor == store.Anonymous }) {
			t.Errorf("%s: the audit trail has no attempt: %+v", name, list)
		}
	}
}

// TestThrottleBehindProxy: the address of a trusted proxy that names no client does not count, since all
// its clients share it.
func TestThrottleBehindProxy(t *testing.T) {
	for trusted, throttled := range map[bool]bool{true: false, false: true} {
		live := &liveStore{
			store: newGuard(t, Handler{}).h.shared.live.Load().store, throttle: access.NewThrottle(1, time.Hour), recall: access.NewRecall(1),
		}
		r := prepared(httptest.NewRequest("GET", "/x", nil))
		caddyhttp.SetVar(r.Context(), caddyhttp.TrustedProxyVarKey, trusted)
		address := peerAddress(r)
		fail := func(name string) bool {
			wait := live.failedLogin(zap.NewNop(), r, login{value: basic(name, "x"), reason: access.UnknownID}, address).retryAfter
			return wait > 0
		}
		if fail("a") {
			t.Errorf("trusted %t: the first attempt is throttled", trusted)
		}
		if got := fail("b"); got != throttled {
			t.Errorf("trusted %t: another login is throttled: %t, want %t", trusted, got, throttled)
		}
		if !fail("a") {
			t.Errorf("trusted %t: the same login is not throttled", trusted)
		}
		if wait := live.failedLogin(zap.NewNop(), r, login{reason: access.NoCredential}, netip.MustParseAddr("192.0.2.99")).retryAfter; wait != 0 {
			t.Errorf("trusted %t: a request without a credential has to wait for %s", trusted, wait)
		}
	}
}

// TestRetiringIsNoticed: a client hears of the end of a token that is retiring, however far it is.
func TestRetiringIsNoticed(t *testing.T) {
	g := newGuard(t, Handler{})
	s := g.h.shared.live.Load().store
	token := must2(s.FindTokens(t.Context(), store.Local, store.TokenQuery{UserID: g.reader.id, Limit: 1}))[0].ID
	if w, _ := g.ask("GET", "/v1/x", "", g.reader); w.Header()["Service-User-Token-Expires"] != nil {
		t.Fatal("got a notice before the refresh")
	}
	const grace = 30 * 24 * time.Hour
	if _, _, err := s.RefreshToken(t.Context(), store.Local, g.reader.id, token, 0, grace, 0); err != nil {
		t.Fatal(err)
	}
	want := time.Unix(g.now.Load(), 0).Add(grace).UTC().Format(time.RFC3339)
	if w, _ := g.ask("GET", "/v1/x", "", g.reader); w.Header().Get("Service-User-Token-Expires") != want || w.Code != 204 {
		t.Errorf("got %d and %q, want %q", w.Code, w.Header().Get("Service-User-Token-Expires"), want)
	}
}

// waiting is the context of a request; asked is closed once somebody waits for its end.
type waiting struct {
	context.Context
	once  sync.Once
	asked chan struct{}
}

func (c *waiting) Done() <-chan struct{} {
	c.once.Do(func() { close(c.asked) })
	return c.Context.Done()
}

// TestInstantOfEarlyRequest: a request that waits for the store is judged by the clock of the store,
// which was an hour ahead before the last restart.
func TestInstantOfEarlyRequest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	ahead := time.Duration(0)
	s := must(store.Open(t.Context(), path, store.Options{Now: func() time.Time { return time.Now().Add(ahead) }}))
	u, token, err := s.CreateServiceUser(t.Context(), store.Local, store.ServiceUser{Profile: access.Profile{Name: "a", Active: true}},
		&store.Token{ExpiresAt: time.Now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ahead = time.Hour
	s = must(store.Open(t.Context(), path, store.Options{Now: func() time.Time { return time.Now().Add(ahead) }}))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	early := &shared{path: path, opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}
	h := &Handler{storeHandle: storeHandle{shared: early}, log: zap.NewNop()}
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	ctx := &waiting{Context: t.Context(), asked: make(chan struct{})}
	r := prepared(httptest.NewRequestWithContext(ctx, "GET", "/x", nil))
	r.SetBasicAuth(u.ID, token.Secret)
	w, done := httptest.NewRecorder(), make(chan error, 1)
	go func() {
		done <- h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil }))
	}()
	select {
	case <-ctx.asked:
	case <-time.After(time.Minute):
		t.Fatal("the request does not wait for the store")
	}
	if err := early.start(); err != nil {
		t.Fatal(err)
	}
	defer early.Destruct()
	if err := <-done; err != nil || w.Code != 401 {
		t.Errorf("an expired token: got %d, %v, want 401", w.Code, err)
	}
}
