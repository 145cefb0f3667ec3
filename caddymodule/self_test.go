package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// corner is a handler with a self-service corner over a real store, and a
// service user that may GET /v1/…, but not /v1/secret.
type corner struct {
	t    *testing.T
	h    *Handler
	open *liveStore
	log  *observer.ObservedLogs
	now  atomic.Int64 // Unix seconds
	user store.ServiceUser
	own  store.Issued // its first token

	untyped bool // ask sends a body without Content-Type

	readers, closers, watchers store.Group // closers denies; watchers only observes
}

// newCorner has a corner at /_self that rotates, unless the handler says more.
func newCorner(t *testing.T, h Handler) *corner {
	t.Helper()
	c := &corner{t: t, h: &h}
	c.now.Store(1_800_000_000)
	if h.Self == nil {
		h.Self = &Self{Path: "/_self", Rotate: true}
	}
	if err := c.h.prepare(); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	c.h.log, c.log = zap.New(core), logs
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store.db"), store.Options{Now: func() time.Time { return time.Unix(c.now.Load(), 0) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	c.open = &liveStore{store: s}
	group := func(name string, mode access.Mode, rules ...string) store.Group {
		g := store.Group{Name: name, Mode: mode}
		for _, text := range rules {
			r, err := access.ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			g.Rules = append(g.Rules, r)
		}
		return must(s.CreateGroup(context.Background(), store.Local, g))
	}
	c.readers = group("readers", access.Enforce, "allow GET /v1/{x}", "allow GET only.example/v2")
	c.closers = group("closers", access.Enforce, "allow GET /v1/{x}", "deny GET /v1/secret")
	c.watchers = group("watchers", access.Observe, "allow GET /v3")
	u, issued, err := s.CreateServiceUser(context.Background(), store.Local, store.ServiceUser{
		Profile: access.Profile{Name: "billing-sync", DisplayName: "Billing <sync>", Active: true}, Groups: []string{c.readers.ID, c.closers.ID, c.watchers.ID},
	}, &store.Token{})
	if err != nil {
		t.Fatal(err)
	}
	c.user, c.own = u, *issued
	return c
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// events returns the newest records of the audit trail.
func (c *corner) events(n int) []store.AuditEvent {
	list, _, err := c.open.store.AuditEvents(c.t.Context(), store.Local, store.AuditQuery{Limit: n})
	if err != nil {
		c.t.Fatal(err)
	}
	return list
}

// principal authenticates as the handler does.
func (c *corner) principal(secret string) (access.Principal, bool) {
	p, why := c.open.store.Directory().Authenticate(access.Credential{ID: c.user.ID, Secret: secret}, netip.Addr{}, c.now.Load())
	if why != access.Granted {
		return p, false
	}
	c.open.store.Use(p, c.now.Load(), netip.Addr{}, "")
	return p, true
}

// ask sends a request with a secret to the corner; header holds "Name: value".
func (c *corner) ask(secret, method, path, body string, header ...string) *http.Response {
	c.t.Helper()
	p, ok := c.principal(secret)
	if !ok {
		return &http.Response{StatusCode: http.StatusUnauthorized, Body: http.NoBody}
	}
	r := httptest.NewRequest(method, "http://api.example"+path, strings.NewReader(body))
	if body == "" {
		r.Body, r.ContentLength = http.NoBody, 0
	} else if !c.untyped {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, line := range header {
		if name, value, ok := strings.Cut(line, ": "); ok {
			r.Header.Set(name, value)
		}
	}
	r = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: "192.0.2.7"}))
	if !c.h.Self.owns(r.URL.Path) {
		c.t.Fatalf("%s does not belong to the corner", r.URL.Path)
	}
	w := httptest.NewRecorder()
	if err := c.h.serveSelf(w, c.request(r, p)); err != nil {
		c.t.Errorf("%s %s: got the error %v", method, path, err)
	}
	resp := w.Result()
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		c.t.Errorf("%s %s: got Cache-Control %q", method, path, got)
	}
	if got := resp.Header.Get("Connection"); (resp.StatusCode >= 400 && body != "") != (got == "close") {
		c.t.Errorf("%s %s: got status %d and Connection %q", method, path, resp.StatusCode, got)
	}
	kind := "application/json"
	if resp.StatusCode >= 400 {
		kind = "application/problem+json"
	}
	if got := resp.Header.Get("Content-Type"); got != kind {
		c.t.Errorf("%s %s: got Content-Type %q, want %q", method, path, got, kind)
	}
	return resp
}

// request is a request of p as the handler hands it to the corner.
func (c *corner) request(r *http.Request, p access.Principal) *request {
	rq := &request{r: r, vars: varsOf(r), address: netip.MustParseAddr("192.0.2.7"), principal: p}
	rq.use(c.open)
	rq.directory = c.open.store.Directory()
	return rq
}

// rotate asks for a successor that must be granted.
func (c *corner) rotate(secret string) rotated {
	c.t.Helper()
	resp := c.ask(secret, "POST", "/_self/rotate", "")
	out := decodeBody[rotated](c.t, resp)
	if resp.StatusCode != http.StatusCreated || out.Token == "" {
		c.t.Fatalf("rotate: got status %d, %+v", resp.StatusCode, out)
	}
	return out
}

func decodeBody[T any](t *testing.T, resp *http.Response) (v T) {
	t.Helper()
	d := json.NewDecoder(resp.Body)
	if resp.StatusCode < 400 {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func bodyOf(resp *http.Response) string {
	return string(must(io.ReadAll(resp.Body)))
}

func TestSelfOwns(t *testing.T) {
	c := &Self{Path: "/_self"}
	for path, want := range map[string]bool{
		"/_self": true, "/_self/can": true, "/_self/rotate": true, "/_self/": true, "/_self/can/": true, "/_self/rotate/": true,
		"/_self//": false, "/_self/can//": false, "/_self/x": false, "/_self/x/": false, "/_self/can/x": false, "/_selfcan": false, "/_SELF": false, "/x/_self": false, "/": false, "": false, "/can": false,
	} {
		if got := c.owns(path); got != want {
			t.Errorf("owns %q: got %t, want %t", path, got, want)
		}
		if (*Self)(nil).owns(path) {
			t.Errorf("none owns %q", path)
		}
	}
}

func TestSelfWho(t *testing.T) {
	c := newCorner(t, Handler{})
	want := `{"id":"` + c.user.ID + `","name":"billing-sync","display_name":"Billing \u003csync\u003e","groups":["closers","readers"],` +
		`"rules":["allow GET /v1/{x}","deny GET /v1/secret","allow GET only.example/v2"],` +
		`"token":{"id":"` + c.own.ID + `","expires_at":null,"retiring":false}}`
	resp := c.ask(c.own.Secret, "GET", "/_self?x=y", "")
	if got := bodyOf(resp); resp.StatusCode != 200 || got != want {
		t.Errorf("got %d %s\nwant %s", resp.StatusCode, got, want)
	}
	if resp := c.ask(c.own.Secret, "HEAD", "/_self", ""); resp.StatusCode != 200 {
		t.Errorf("HEAD: got status %d", resp.StatusCode)
	}

	ctx := context.Background()
	must(c.open.store.UpdateToken(ctx, store.Local, c.user.ID, c.own.ID, 0, func(k *store.Token) error {
		k.Groups, k.ExpiresAt = []string{c.readers.ID, c.watchers.ID}, time.Unix(c.now.Load()+60, 0)
		return nil
	}))
	got := decodeBody[who](t, c.ask(c.own.Secret, "GET", "/_self", ""))
	if rules := strings.Join(got.Rules, "; "); rules != "deny GET /v1/secret; allow GET /v1/{x}; allow GET only.example/v2" || strings.Join(got.Groups, " ") != "readers" {
		t.Errorf("a narrowed token: got the groups %v and the rules %q", got.Groups, rules)
	}
	if got.Token.ExpiresAt == nil || got.Token.ExpiresAt.Unix() != c.now.Load()+60 {
		t.Errorf("expires_at: got %v", got.Token.ExpiresAt)
	}
	next := c.rotate(c.own.Secret)
	if got := decodeBody[who](t, c.ask(c.own.Secret, "GET", "/_self", "")).Token; !got.Retiring || got.ID != c.own.ID {
		t.Errorf("the old token: got %+v, want it retiring", got)
	}
	if got := decodeBody[who](t, c.ask(next.Token, "GET", "/_self", "")).Token; got.Retiring || got.ID != next.ID {
		t.Errorf("the successor: got %+v", got)
	}

	u, issued, err := c.open.store.CreateServiceUser(ctx, store.Local, store.ServiceUser{Profile: access.Profile{Name: "empty", Active: true}}, &store.Token{})
	if err != nil {
		t.Fatal(err)
	}
	c.user = u
	if got := bodyOf(c.ask(issued.Secret, "GET", "/_self", "")); !strings.Contains(got, `"display_name":"","groups":[],"rules":[],`) {
		t.Errorf("a service user without anything: got %s", got)
	}
}

func TestSelfMethods(t *testing.T) {
	c := newCorner(t, Handler{})
	for path, allow := range map[string]string{
		"/_self": "GET, HEAD", "/_self/can": "POST", "/_self/rotate": "POST",
		"/_self/": "GET, HEAD", "/_self/can/": "POST", "/_self/rotate/": "POST",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"} {
			if strings.Contains(allow, method) {
				continue
			}
			for _, body := range []string{"", "{}"} {
				resp := c.ask(c.own.Secret, method, path, body)
				problem := decodeBody[problemBody](t, resp)
				if resp.StatusCode != 405 || resp.Header.Get("Allow") != allow || problem.Status != 405 || problem.Title != "Method Not Allowed" {
					t.Errorf("%s %s: got status %d, Allow %q, %+v", method, path, resp.StatusCode, resp.Header.Get("Allow"), problem)
				}
			}
		}
	}
	if got := c.events(1)[0].Action; strings.HasPrefix(got, "token.") && got != "token.create" {
		t.Errorf("got the change %s", got)
	}
}

func TestSelfCan(t *testing.T) {
	c := newCorner(t, Handler{Public: []string{"GET /healthz"}, Ready: "/ready"})
	for _, row := range []struct {
		ask  string
		want string // the answer, or the status and a piece of the detail
	}{
		{`{"method":"GET","path":"/v1/x"}`, "allowed"},
		{`{"method":"GET","path":"/v1/x?q=1&r"}`, "allowed"},
		{`{"method":"HEAD","path":"/v1/x"}`, "allowed"},
		{`{"method":"GET","path":"/v1/%78"}`, "allowed"},
		{`{"method":"GET","path":"/v1/x/"}`, "no_rule"},
		{`{"method":"POST","path":"/v1/x"}`, "no_rule"},
		{`{"method":"GET","path":"/v1/secret"}`, "denied"},
		{`{"method":"GET","path":"/v1/%73ecret"}`, "denied"},
		{`{"method":"GET","path":"/v3"}`, "no_rule"}, // a group that only observes
		{`{"method":"GET","path":"/v2"}`, "no_rule"},
		{`{"method":"GET","path":"/v2","host":"ONLY.example:8443"}`, "allowed"},
		{`{"method":"GET","path":"/v2","host":""}`, "no_rule"},
		{`{"method":"GET","path":"/healthz"}`, "allowed"}, // public
		{`{"method":"POST","path":"/healthz"}`, "no_rule"},
		{`{"method":"GET","path":"/ready"}`, "allowed"},
		{`{"method":"GET","path":"/_self"}`, "allowed"},
		{`{"method":"POST","path":"/_self/can"}`, "allowed"},
		{`{"method":"GET","path":"/v1/x` + strings.Repeat("x", 60<<10) + `"}`, "allowed"},

		{``, `400 method: `},
		{`{}`, `400 method: `},
		{`{"method":"GET"}`, `400 path: the request target must begin with "/"`},
		{`{"method":"get","path":"/v1/x"}`, `400 method: `},
		{`{"method":"CONNECT","path":"/v1/x"}`, `400 method: the method CONNECT is not supported`},
		{`{"method":"TRACE","path":"/v1/x"}`, `400 method: the method TRACE`},
		{`{"method":"GET","path":"v1/x"}`, `400 path: `},
		{`{"method":"GET","path":"http://api.example/v1/x"}`, `400 path: `},
		{`{"method":"GET","path":"/v1/../x"}`, `400 path: the path has a dot segment at position 4`},
		{`{"method":"GET","path":"/v1//x"}`, `400 path: the path has an empty segment at position 4`},
		{`{"method":"GET","path":"/v1/a%2Fb"}`, `400 path: the path holds %2F at position 5, which programs read differently`},
		{`{"method":"GET","path":"/v1/x?a b"}`, `400 path: the query holds`},
		{`{"method":"GET","path":"/v1/é"}`, `400 path: `},
		{`{"method":"GET","path":"/v1/x","host":"a b"}`, `400 host: `},
		{`{"method":"GET","path":"/v1/x","url":"y"}`, `400 url: there is no such field`},
		{`{"Method":"GET","path":"/v1/x"}`, `400 Method: there is no such field`},
		{`{"method":"GET","path":"/v1/x","path":"/v1/y"}`, `400 path: the field appears in the body twice`},
		{`{"method":"GET","path":7}`, `400 path: must not be a JSON number`},
		{`{"method":"GET","path":"/v1/x"} {}`, `400 the body is not valid JSON`},
		{`{"method":"GET","path":"/v1/x"`, `400 the body is not valid JSON`},
		{`null`, `400 the body must be a JSON object`},
		{`[]`, `400 the body must not be a JSON array`},
		{`{"method":"GET","path":"/` + strings.Repeat("x", 64<<10) + `"}`, `413 the body is larger than 65536 bytes`},
	} {
		checkSelf(t, c.ask(c.own.Secret, "POST", "/_self/can", row.ask), row.ask, row.want)
	}
}

// checkSelf compares an answer with that of "can", or with a status and a piece of the detail of a
// problem.
func checkSelf(t *testing.T, resp *http.Response, ask, want string) {
	t.Helper()
	if !strings.Contains(want, " ") {
		want = fmt.Sprintf(`{"allowed":%t,"answer":%q}`, want == "allowed", want)
		if got := bodyOf(resp); resp.StatusCode != 200 || got != want {
			t.Errorf("%.80s: got %d %s, want %s", ask, resp.StatusCode, got, want)
		}
		return
	}
	problem := decodeBody[problemBody](t, resp)
	status, detail, _ := strings.Cut(want, " ")
	if got := resp.Status; !strings.HasPrefix(got, status) || problem.Status != resp.StatusCode || !strings.HasPrefix(problem.Detail, detail) {
		t.Errorf("%.80s: got %d %q, want %s", ask, resp.StatusCode, problem.Detail, want)
	}
}

// What the operator lets pass is judged here as it is elsewhere.
func TestSelfCanRelaxed(t *testing.T) {
	c := newCorner(t, Handler{Relax: []string{"merge_slashes", "allow_encoded_slash"}})
	for path, want := range map[string]string{"/v1//x": "allowed", "//v1/x": "allowed", "/v1//secret": "denied", "/v1/a%2Fb": "allowed", "/v1/a/b": "no_rule", "/v1/a;b": "400 path: "} {
		checkSelf(t, c.ask(c.own.Secret, "POST", "/_self/can", `{"method":"GET","path":"`+path+`"}`), path, want)
	}
}

// TestSelfDefaultGrace: the old token stays valid for an hour unless the operator says otherwise.
func TestSelfDefaultGrace(t *testing.T) {
	c := newCorner(t, Handler{Self: &Self{Path: "/_self", Rotate: true}})
	if out := c.rotate(c.own.Secret); out.RetiresAt.Unix() != c.now.Load()+3600 {
		t.Errorf("got %v, want an hour", out.RetiresAt)
	}
}

func TestSelfRotate(t *testing.T) {
	c := newCorner(t, Handler{Self: &Self{Path: "/_self", Rotate: true, Grace: 60e9}})
	end := c.now.Load() + 3600
	ctx := context.Background()
	must(c.open.store.UpdateToken(ctx, store.Local, c.user.ID, c.own.ID, 0, func(k *store.Token) error { k.ExpiresAt = time.Unix(end, 0); return nil }))
	out := c.rotate(c.own.Secret)
	if out.Replaces != c.own.ID || out.ExpiresAt == nil || out.ExpiresAt.Unix() != end || out.RetiresAt == nil || out.RetiresAt.Unix() != c.now.Load()+60 {
		t.Errorf("got %+v", out)
	}
	events := c.events(2)
	for i, action := range []string{"token.rotate", "token.create"} {
		if e := events[i]; e.Action != action || e.Actor != c.user.ID || e.Operation == "" {
			t.Errorf("audit record: got %s by %s, want %s by the service user", e.Action, e.Actor, action)
		}
	}

	// The answer is lost.
	c.now.Add(10)
	again := c.rotate(c.own.Secret)
	if again.ID == out.ID || again.RetiresAt.Unix() != c.now.Load()+50 || again.ExpiresAt.Unix() != end {
		t.Errorf("again: got %+v", again)
	}
	if _, ok := c.principal(out.Token); ok {
		t.Error("the lost successor is still accepted")
	}
	if n := c.log.FilterLevelExact(zap.WarnLevel).Len(); n != 0 {
		t.Errorf("warnings: got %d, want none", n)
	}

	// It arrives, and is used.
	if _, ok := c.principal(again.Token); !ok {
		t.Fatal("the successor is refused")
	}
	for range 2 {
		checkSelf(t, c.ask(c.own.Secret, "POST", "/_self/rotate", ""), "rotate", "409 the token has been replaced by "+again.ID+", which is in use")
	}
	if _, ok := c.principal(again.Token); !ok {
		t.Error("the successor in use is refused after somebody tried to replace it")
	}
	warnings := c.log.FilterLevelExact(zap.WarnLevel).All()
	if len(warnings) != 2 {
		t.Fatalf("warnings: got %d, want one for each attempt", len(warnings))
	}
	fields := warnings[0].ContextMap()
	if fields["service_user"] != c.user.ID || fields["token"] != c.own.ID || fields["client_ip"] != "192.0.2.7" {
		t.Errorf("the warning says %v", fields)
	}

	// The grace ends; the successor rotates in its turn.
	c.now.Add(50)
	if resp := c.ask(c.own.Secret, "POST", "/_self/rotate", ""); resp.StatusCode != 401 {
		t.Errorf("after the grace: got status %d", resp.StatusCode)
	}
	if last := c.rotate(again.Token); last.Replaces != again.ID || last.ExpiresAt.Unix() != end {
		t.Errorf("the successor: got %+v", last)
	}
	for _, entry := range c.log.All() {
		for name, value := range entry.ContextMap() {
			if s, ok := value.(string); ok && strings.Contains(s, access.SecretPrefix) {
				t.Errorf("%s: %s holds a secret", entry.Message, name)
			}
		}
	}
}

func TestSelfRotateRefused(t *testing.T) {
	ctx := context.Background()
	for _, row := range []struct {
		name, want string
		self       Self
		body       string
		header     string
		before     func(c *corner)
	}{
		{name: "off", want: "404 tokens cannot be rotated here", self: Self{Path: "/_self"}},
		{name: "a field", want: "400 grace: there is no such field", body: `{"grace":"9h"}`},
		{name: "a form", want: "415 ", body: `grace=9h`, header: "Content-Type: application/x-www-form-urlencoded"},
		{name: "a page elsewhere", want: "403 a page of another origin", header: "Sec-Fetch-Site: cross-site"},
		{name: "another origin", want: "403 a page of another origin", header: "Origin: https://evil.example"},
		{name: "refreshed by an admin", want: "409 the token has been replaced by another actor", before: func(c *corner) {
			if _, _, err := c.open.store.RefreshToken(ctx, store.Local, c.user.ID, c.own.ID, 0, time.Hour, 0); err != nil {
				panic(err)
			}
		}},
		{name: "too often", want: "429 ", before: func(c *corner) {
			for range 10 {
				c.rotate(c.own.Secret)
			}
		}},
		{name: "no store", want: "503 the store cannot be changed right now", before: func(c *corner) { c.open.store.Close() }},
	} {
		if row.self.Path == "" {
			row.self = Self{Path: "/_self", Rotate: true}
		}
		c := newCorner(t, Handler{Self: &row.self})
		if row.before != nil {
			row.before(c)
		}
		revision := c.open.store.Directory().Revision()
		var header []string
		if row.header != "" {
			header = append(header, row.header)
		}
		resp := c.ask(c.own.Secret, "POST", "/_self/rotate", row.body, header...)
		checkSelf(t, resp, row.name, row.want)
		if wait := resp.Header.Get("Retry-After"); (wait != "") != (resp.StatusCode == 429 || resp.StatusCode == 503) {
			t.Errorf("%s: got Retry-After %q", row.name, wait)
		}
		if got := c.open.store.Directory().Revision(); got != revision {
			t.Errorf("%s: something was changed", row.name)
		}
	}
	for _, body := range []string{"{}", " {} "} {
		if resp := newCorner(t, Handler{}).askOwn("POST", "/_self/rotate", body); resp.StatusCode != 201 {
			t.Errorf("the body %q: got status %d", body, resp.StatusCode)
		}
	}
}

// askOwn asks with the first token.
func (c *corner) askOwn(method, path, body string, header ...string) *http.Response {
	c.t.Helper()
	return c.ask(c.own.Secret, method, path, body, header...)
}

// A token that is revoked between its check and its rotation gets no successor.
func TestSelfRotateTooLate(t *testing.T) {
	c := newCorner(t, Handler{})
	p, _ := c.principal(c.own.Secret)
	if err := c.open.store.RevokeToken(context.Background(), store.Local, c.user.ID, c.own.ID, 0); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/_self/rotate", nil)
	r = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, map[string]any{}))
	if err := c.h.serveSelf(w, c.request(r, p)); err != nil || w.Code != 409 {
		t.Errorf("got status %d, %v", w.Code, err)
	}
	if n := len(must2(c.open.store.FindTokens(context.Background(), store.Local, store.TokenQuery{UserID: c.user.ID, Limit: 10}))); n != 1 {
		t.Errorf("got %d tokens, want 1", n)
	}
}

func must2[T, U any](v T, _ U, err error) T { return must(v, err) }

// A thief and the owner: whoever comes second is told so, and nobody gets two.
func TestSelfRotateRace(t *testing.T) {
	c := newCorner(t, Handler{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 4 {
				resp := c.askOwn("POST", "/_self/rotate", "")
				switch resp.StatusCode {
				case 201:
					c.principal(decodeBody[rotated](t, resp).Token)
				case 409:
				default:
					t.Errorf("got status %d", resp.StatusCode)
				}
			}
		})
	}
	wg.Wait()
	live := 0
	for _, k := range must2(c.open.store.FindTokens(context.Background(), store.Local, store.TokenQuery{UserID: c.user.ID, Limit: 100})) {
		if k.State(c.open.store.Now()) == store.TokenActive {
			live++
		}
	}
	if live != 1 {
		t.Errorf("live successors: got %d, want 1", live)
	}
	if resp := c.askOwn("POST", "/_self/rotate", ""); resp.StatusCode != 409 {
		t.Errorf("in the end: got status %d, want 409", resp.StatusCode)
	}
}

// A token that nobody has to be told about costs nothing.
func TestSelfNoteUse(t *testing.T) {
	c := newCorner(t, Handler{})
	p, _ := c.principal(c.own.Secret)
	if n := testing.AllocsPerRun(100, func() { c.open.store.Use(p, c.now.Load(), netip.Addr{}, "") }); n != 0 || p.Unused() {
		t.Errorf("got %v allocations, unused %t", n, p.Unused())
	}
}
