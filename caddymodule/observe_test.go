package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

const observeCaddyfile = `
{
	debug
	metrics
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
	}
}

(upstream) {
	header >X-Decision "{http.service_users.decision} {http.service_users.rule}"
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users {
		mode observe
		self /_self
		public GET /open
	}
	import upstream
}

http://:{$ENFORCE_PORT} {
	bind 127.0.0.1
	service_users {
		mode enforce
		self /_self
	}
	import upstream
}

# Whether the inner or the outer one observes, both have to let a request pass.
http://:{$NESTED_PORT} {
	bind 127.0.0.1
	route {
		service_users {
			mode observe
		}
		service_users
		import upstream
	}
}

http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	@somebody header X-Test-Login *
	vars @somebody http.auth.user.id {header.X-Test-Login}
	service_users_admin {
		admins alice
		managers carol team=finance group=readers
	}
}
`

// startObserve starts a server with an observing and an enforcing site, and the
// groups "readers", which is enforced, and "draft", which only observes.
func startObserve(t *testing.T) (s *server, up *recorder, groups map[string]admin.Group) {
	t.Helper()
	s = newServer(t)
	s.moreports("ENFORCE_PORT", "NESTED_PORT")
	up = startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, observeCaddyfile)
	groups = make(map[string]admin.Group)
	for _, body := range []string{
		`{"name":"readers","rules":["allow GET /v1/{rest...}","deny GET /v1/secret"]}`,
		`{"name":"draft","mode":"observe","rules":["allow POST /v2/{rest...}","allow GET /v1/{rest...}","deny GET /v1/draft"]}`,
	} {
		var g admin.Group
		if got := s.local("POST", "/permission_groups", body, &g); got.StatusCode != 201 {
			t.Fatalf("creating a group: %d %s", got.StatusCode, got.body)
		}
		groups[g.Name] = g
	}
	return s, up, groups
}

// wouldDeny lists what was counted, as "COUNT WOULD METHOD PATH EXAMPLE GROUP RULE GRANT"
// without the users.
func (s *server) wouldDeny(effect access.Effect) (list []string) {
	s.t.Helper()
	var answer admin.WouldDenyList
	s.local("GET", "/service_users/would_deny?would="+string(effect), "", &answer)
	for _, w := range answer.WouldDeny {
		group := "-"
		if w.PermissionGroup != nil {
			group = w.PermissionGroup.Name
		}
		list = append(list, fmt.Sprintf("%d %s %s %s %s %s %s %q", w.Count, w.Would, w.Method, w.Path, w.Example, group, w.RuleID, w.Grant))
		if w.FirstAt.IsZero() || w.LastAt.Before(w.FirstAt) {
			s.t.Errorf("%s: first %v, last %v", list[len(list)-1], w.FirstAt, w.LastAt)
		}
	}
	slices.Sort(list)
	return list
}

// ourLog returns the lines that a logger of ours has written with a message.
func (s *server) ourLog(message string) (lines []map[string]any) {
	for line := range strings.Lines(s.log.String()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && strings.Contains(fmt.Sprint(entry["logger"]), "service_users") && strings.Contains(fmt.Sprint(entry["msg"]), message) {
			lines = append(lines, entry)
		}
	}
	return lines
}

// TestObserve sends requests to a site that observes and to one that enforces,
// and looks at everything that tells of them.
func TestObserve(t *testing.T) {
	t.Parallel()
	s, up, groups := startObserve(t)
	reader := s.create("reader", "--group", "readers", "--group", "draft")
	none := s.create("none")
	allow, deny, allowDraft, denyDraft := groups["readers"].Rules[0].ID, groups["readers"].Rules[1].ID, groups["draft"].Rules[0].ID, groups["draft"].Rules[2].ID

	for _, row := range []struct {
		name         string
		who          credentials
		port         string
		method, path string
		want         int
		decision     string // and the rule
	}{
		{"a rule allows it", reader, "API_PORT", "GET", "/v1/people/7", 200, "allow " + allow},
		{"no rule allows it", none, "API_PORT", "GET", "/v1/people/7", 200, "observe"},
		{"again", none, "API_PORT", "GET", "/v1/people/8", 200, "observe"},
		{"another method", none, "API_PORT", "HEAD", "/v1/people/8", 200, "observe"},
		{"a deny", reader, "API_PORT", "GET", "/v1/secret", 403, "deny"},
		{"nobody", credentials{}, "API_PORT", "GET", "/v1/people/7", 401, "deny"},
		{"a wrong token", credentials{none.id, reader.secret}, "API_PORT", "GET", "/v1/people/7", 401, "deny"},
		{"an ambiguous path", none, "API_PORT", "GET", "/v1/%2e%2e/x", 400, "deny"},
		{"public", credentials{}, "API_PORT", "GET", "/open", 200, ""},
		{"a group that observes would allow it", reader, "API_PORT", "POST", "/v2/x", 200, "observe"},
		{"a group that observes would deny it", reader, "API_PORT", "GET", "/v1/draft", 200, "allow " + allow},

		{"enforced, a rule allows it", reader, "ENFORCE_PORT", "GET", "/v1/people/7", 200, "allow " + allow},
		{"enforced, no rule allows it", none, "ENFORCE_PORT", "GET", "/v1/people/7", 403, "deny"},
		{"enforced, a deny", reader, "ENFORCE_PORT", "GET", "/v1/secret", 403, "deny"},
		{"enforced, a group that observes would allow it", reader, "ENFORCE_PORT", "POST", "/v2/x", 403, "deny"},
		{"enforced, a group that observes would deny it", reader, "ENFORCE_PORT", "GET", "/v1/draft", 200, "allow " + allow},
		{"enforced inside, a rule allows it", reader, "NESTED_PORT", "GET", "/v1/people/7", 200, "allow " + allow},
		{"enforced inside, no rule allows it", none, "NESTED_PORT", "PUT", "/v1/people/7", 403, ""}, // the inner one answers
	} {
		up.reset()
		got := s.do(row.method, row.port, row.path, row.who, "", "X-Service-User-Id: evil")
		raw := strings.Join(up.requests(), "")
		if got.StatusCode != row.want || (raw != "") != (row.want == 200) {
			t.Errorf("%s: got %d, upstream %q, want %d", row.name, got.StatusCode, raw, row.want)
		}
		// Caddy leaves a placeholder as it stands that nobody has set.
		decision := strings.NewReplacer("{http.service_users.decision}", "", "{http.service_users.rule}", "").Replace(got.Header.Get("X-Decision"))
		if decision = strings.TrimSpace(decision); decision != row.decision {
			t.Errorf("%s: the placeholders are %q, want %q", row.name, decision, row.decision)
		}
		if row.want == 200 && row.who.id != "" {
			identity := "X-Service-User-Groups: \r\nX-Service-User-Id: " + none.id + "\r\nX-Service-User-Name: none\r\n"
			if row.who == reader { // a group that observes is no group in effect
				identity = "X-Service-User-Groups: readers\r\nX-Service-User-Id: " + reader.id + "\r\nX-Service-User-Name: reader\r\n"
			}
			if !strings.Contains(raw, identity) || strings.Contains(raw, "Authorization") || strings.Contains(raw, "evil") {
				t.Errorf("%s: the upstream got %q, want %q in it", row.name, raw, identity)
			}
		}
		if id := got.Header.Get(DecisionHeader); (id != "") != (row.want == 403) || id != "" && !strings.Contains(got.body, id) {
			t.Errorf("%s: the decision id is %q, the body %s", row.name, id, got.body)
		}
	}

	// Everything above that enforcing would decide otherwise, and nothing else.
	for effect, want := range map[access.Effect][]string{
		access.Deny: {
			`1 deny HEAD /v1/people/{id} /v1/people/8 -  "allow HEAD /v1/people/{id}"`,
			`1 deny POST /v2/x /v2/x -  "allow POST /v2/x"`,
			`1 deny PUT /v1/people/{id} /v1/people/7 -  "allow PUT /v1/people/{id}"`,
			`2 deny GET /v1/draft /v1/draft draft ` + denyDraft + ` ""`,
			`2 deny GET /v1/people/{id} /v1/people/8 -  "allow GET /v1/people/{id}"`,
		},
		access.Allow: {`2 allow POST /v2/x /v2/x draft ` + allowDraft + ` ""`},
	} {
		if got := s.wouldDeny(effect); !slices.Equal(got, want) {
			t.Errorf("would %s: got\n%s\nwant\n%s", effect, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}

	metrics := s.do("GET", "CADDY_PORT", "/metrics", credentials{}, "").body
	for outcome, want := range map[string]int{
		"granted": 6, "observed": 5, "no_rule": 3, "denied_by_rule": 2, "public": 1, "no_credential": 1, "ambiguous": 1, "wrong_secret": 1,
	} {
		if line := fmt.Sprintf(`caddy_service_users_requests_total{outcome="%s"} %d`+"\n", outcome, want); !strings.Contains(metrics, line) {
			t.Errorf("the metrics have no line %q", line)
		}
	}

	if n := len(s.ourLog("this site only observes")); n != 2 {
		t.Errorf("%d warnings of sites that only observe, want 2", n)
	}
	levels := make(map[string]int)
	for _, entry := range s.ourLog("enforcing would decide otherwise") {
		levels[fmt.Sprint(entry["level"])]++
		levels[fmt.Sprint(entry["would"], " ", entry["rule"], " ", entry["method"], " ", entry["path"])]++
	}
	for key, want := range map[string]int{
		"info": 6, "debug": 3, "deny  GET /v1/people/7": 1, "deny  GET /v1/people/8": 1, "deny " + denyDraft + " GET /v1/draft": 2, "allow " + allowDraft + " POST /v2/x": 2,
	} {
		if levels[key] != want {
			t.Errorf("the log tells %d times of %q, want %d: %v", levels[key], key, want, levels)
		}
	}
	if got := s.ourLog("not allowed"); len(got) != 5 || got[0]["rule"] != deny {
		t.Errorf("%d refusals in the log, want 5: %v", len(got), got)
	}

	// What the list proposes helps, and is counted no more.
	if got := s.local("POST", "/permission_groups", `{"name":"people","rules":["allow GET /v1/people/{id}"]}`, nil); got.StatusCode != 201 {
		t.Fatal(got.body)
	}
	s.mustCLI("group", "add", "people", "none")
	if got := s.local("DELETE", "/service_users/would_deny", "", nil); got.StatusCode != 204 {
		t.Errorf("forgetting: got %d %s", got.StatusCode, got.body)
	}
	for _, port := range []string{"API_PORT", "ENFORCE_PORT"} {
		if got := s.do("GET", port, "/v1/people/9", none, "").Header.Get("X-Decision"); !strings.HasPrefix(got, "allow rule_") {
			t.Errorf("after the grant at %s: got %q", port, got)
		}
	}
	// A group that observes no longer grants and refuses.
	if got := s.local("PATCH", "/permission_groups/"+groups["draft"].ID, `{"mode":"enforce"}`, nil); got.StatusCode != 200 {
		t.Fatal(got.body)
	}
	for path, want := range map[string]int{"POST /v2/x": 200, "GET /v1/draft": 403, "GET /v1/people/7": 200} {
		method, path, _ := strings.Cut(path, " ")
		for _, port := range []string{"API_PORT", "ENFORCE_PORT"} {
			if got := s.do(method, port, path, reader, "").StatusCode; got != want {
				t.Errorf("the group enforced, %s %s at %s: got %d, want %d", method, path, port, got, want)
			}
		}
	}
	if list := append(s.wouldDeny(access.Deny), s.wouldDeny(access.Allow)...); len(list) != 0 {
		t.Errorf("counted afterwards: %q", list)
	}
}

// guard is a handler over a real store, with a service user that is in no group
// but for one that denies /denied, and one that may GET /v1/….
type guard struct {
	t            testing.TB
	h            *Handler
	now          atomic.Int64 // Unix seconds
	log          *observer.ObservedLogs
	none, reader credentials
}

func newGuard(t testing.TB, h Handler) *guard {
	t.Helper()
	g := &guard{t: t, h: &h}
	g.now.Store(time.Now().Unix())
	live := &shared{
		path: filepath.Join(t.TempDir(), "s.db"), decisions: 10, ready: make(chan struct{}),
		opts: store.Options{Log: zap.NewNop(), Now: func() time.Time { return time.Unix(g.now.Load(), 0) }},
	}
	if err := live.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = live.Destruct() })
	g.h.storeHandle = storeHandle{shared: live}
	core, logs := observer.New(zap.DebugLevel)
	g.h.log, g.log = zap.New(core), logs
	if err := g.h.prepare(); err != nil {
		t.Fatal(err)
	}
	open := live.live.Load()
	group := func(name string, rules ...string) string {
		var list []access.Rule
		for _, text := range rules {
			list = append(list, must(access.ParseRule(text)))
		}
		return must(open.store.CreateGroup(t.Context(), store.Local, store.Group{Name: name, Mode: access.Enforce, Rules: list})).ID
	}
	user := func(name string, groups ...string) credentials {
		u, token, err := open.store.CreateServiceUser(t.Context(), store.Local, store.ServiceUser{Profile: access.Profile{Name: name, Active: true}, Groups: groups}, &store.Token{})
		if err != nil {
			t.Fatal(err)
		}
		return credentials{u.ID, token.Secret}
	}
	denied := group("denied", "deny * /denied")
	g.none, g.reader = user("none", denied), user("reader", denied, group("readers", "allow GET /v1/{rest...}", "allow GET /denied"))
	return g
}

// serve sends one request through the handler; what comes behind it answers 204
// and keeps the header that it got.
func (g *guard) serve(r *http.Request) (*httptest.ResponseRecorder, http.Header) {
	g.t.Helper()
	w := httptest.NewRecorder()
	var behind http.Header
	r = prepared(r)
	caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, strings.TrimSuffix(r.RemoteAddr, ":1234"))
	err := g.h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		behind = r.Header.Clone()
		w.WriteHeader(http.StatusNoContent)
		return nil
	}))
	if err != nil {
		g.t.Error(err)
	}
	return w, behind
}

// ask is serve for a request from another machine; header holds "Name: value" lines.
func (g *guard) ask(method, path, body string, who credentials, header ...string) (*httptest.ResponseRecorder, http.Header) {
	g.t.Helper()
	r := httptest.NewRequestWithContext(g.t.Context(), method, path, strings.NewReader(body))
	r.RemoteAddr = "192.0.2.7:1234"
	if body == "" {
		r.Body, r.ContentLength = http.NoBody, 0
	}
	if who.id != "" {
		r.SetBasicAuth(who.id, who.secret)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	return g.serve(r)
}

// TestObserveBesides combines observe mode with the other options: it stands in
// for a rule, and for nothing else.
func TestObserveBesides(t *testing.T) {
	type row struct {
		name         string
		method, path string
		who          string // "none", "reader", "bearer" (none's token), "wrong", ""
		want         int
		identity     bool // whether one goes upstream
	}
	for _, tt := range []struct {
		name    string
		handler Handler
		rows    []row
	}{
		{"nothing else", Handler{}, []row{
			{"no rule", "GET", "/x", "none", 204, true}, {"any method", "PURGE", "/x", "none", 204, true}, {"a rule", "GET", "/v1/x", "reader", 204, true},
			{"a deny", "GET", "/denied", "none", 403, false}, {"a deny in another case", "GET", "/DENIED/", "none", 403, false}, {"a deny over an allow", "GET", "/denied", "reader", 403, false},
			{"nobody", "GET", "/x", "", 401, false}, {"wrong", "GET", "/x", "wrong", 401, false}, {"Bearer", "GET", "/x", "bearer", 401, false}, {"a login of others", "GET", "/x", "foreign", 401, false},
			{"ambiguous", "GET", "/x/../y", "none", 400, false}, {"CONNECT", "CONNECT", "/x", "none", 501, false}, {"TRACE", "TRACE", "/x", "none", 405, false},
		}},
		{"require_tls", Handler{RequireTLS: true}, []row{{"unencrypted", "GET", "/x", "none", 400, false}, {"nobody", "GET", "/x", "", 401, false}, {"denied", "GET", "/denied", "none", 400, false}}},
		{"otherwise pass", Handler{Otherwise: "pass"}, []row{
			{"nobody", "GET", "/x", "", 204, false}, {"nobody, denied to all", "GET", "/denied", "", 204, false}, {"no rule", "GET", "/x", "none", 204, true}, {"a deny", "GET", "/denied", "none", 403, false},
			{"wrong", "GET", "/x", "wrong", 401, false}, {"another scheme", "GET", "/x", "bearer", 204, false}, {"a login of others", "GET", "/x", "foreign", 204, false},
		}},
		{"otherwise pass unknown", Handler{Otherwise: "pass unknown"}, []row{{"a login of others", "GET", "/x", "foreign", 204, false}, {"wrong", "GET", "/x", "wrong", 401, false}}},
		{"bearer", Handler{Bearer: true, Otherwise: "pass"}, []row{{"no rule", "GET", "/x", "bearer", 204, true}, {"a deny", "GET", "/denied", "bearer", 403, false}}},
		{"public", Handler{Public: []string{"GET /x", "GET /denied", "GET /when when request.header('X-A') == 'b'"}}, []row{
			{"nobody", "GET", "/x", "", 204, false}, {"somebody", "GET", "/x", "none", 204, false}, {"public wins over a deny", "GET", "/denied", "none", 204, false},
			{"nobody elsewhere", "GET", "/y", "", 401, false}, {"somebody elsewhere", "GET", "/y", "none", 204, true},
			{"nobody under a condition", "GET", "/when", "", 401, false}, {"somebody under a condition", "GET", "/when", "none", 204, true},
		}},
		{"ready", Handler{Ready: "/ready"}, []row{{"a probe", "GET", "/ready", "", 200, false}}},
		{"self", Handler{Self: &Self{Path: "/_self"}}, []row{
			{"who", "GET", "/_self", "none", 200, false}, {"nobody", "GET", "/_self", "", 401, false}, {"no rotation", "POST", "/_self/rotate", "none", 404, false},
			{"below", "GET", "/_self/x", "none", 204, true},
		}},
		{"enforce", Handler{Mode: "enforce"}, []row{{"no rule", "GET", "/x", "none", 403, false}, {"a rule", "GET", "/v1/x", "reader", 204, true}}},
		{"enforce, otherwise pass", Handler{Mode: "enforce", Otherwise: "pass"}, []row{{"a login of others", "GET", "/x", "foreign", 401, false}}},
	} {
		if tt.handler.Mode == "" {
			tt.handler.Mode = "observe"
		}
		g := newGuard(t, tt.handler)
		for _, row := range tt.rows {
			var who credentials
			header := []string{"X-Service-User-Id: evil", "X-Service-User-Groups: admins"}
			switch row.who {
			case "none":
				who = g.none
			case "reader":
				who = g.reader
			case "wrong":
				who = credentials{g.none.id, g.reader.secret}
			case "foreign":
				who = credentials{"alice", "password"}
			case "bearer":
				header = append(header, "Authorization: Bearer "+g.none.secret)
			}
			w, behind := g.ask(row.method, row.path, "", who, header...)
			if w.Code != row.want || (behind != nil) != (row.want == 204) {
				t.Errorf("%s, %s: got %d, passed %t, want %d", tt.name, row.name, w.Code, behind != nil, row.want)
			}
			id := behind.Get("X-Service-User-Id")
			if (id != "") != row.identity || id == "evil" || strings.Contains(behind.Get("X-Service-User-Groups"), "admins") || (behind.Get("Authorization") != "") != (row.who == "foreign" && row.want == 204) {
				t.Errorf("%s, %s: went on as %q", tt.name, row.name, behind)
			}
		}
	}
}

// TestObserveCan: the corner says what the site would do.
func TestObserveCan(t *testing.T) {
	for mode, rows := range map[string]map[string]string{
		"observe": {"GET /x": "no_rule", "POST /x": "no_rule", "GET /v1/x": "no_rule", "GET /denied": "denied", "GET /denied/": "denied", "GET /_self": "allowed", "POST /_self/x": "no_rule"},
		"enforce": {"GET /x": "no_rule", "POST /x": "no_rule", "GET /v1/x": "no_rule", "GET /denied": "denied", "GET /denied/": "denied", "GET /_self": "allowed", "POST /_self/x": "no_rule"},
	} {
		g := newGuard(t, Handler{Mode: mode, Self: &Self{Path: "/_self"}})
		for request, answer := range rows {
			want := answer == "allowed" || answer == "no_rule" && mode == "observe"
			method, path, _ := strings.Cut(request, " ")
			w, _ := g.ask("POST", "/_self/can", fmt.Sprintf(`{"method":%q,"path":%q}`, method, path), g.none, "Content-Type: application/json")
			if got, want := w.Body.String(), fmt.Sprintf(`{"allowed":%t,"answer":%q}`, want, answer); w.Code != 200 || got != want {
				t.Errorf("%s, %s: got %d %s, want %s", mode, request, w.Code, got, want)
			}
			up, _ := g.ask(method, path, "", g.none)
			if passes := up.Code < 400; passes != want && path != "/_self" {
				t.Errorf("%s, %s: the site answers %d, and the corner says %t", mode, request, up.Code, want)
			}
		}
		if list, _ := g.h.live(t.Context()).recall.Observed(); mode == "enforce" && len(list) != 0 {
			t.Errorf("%s: a question was counted: %+v", mode, list)
		}
	}
}

// TestCanConditions: the corner asks conditions about the request that asks, from
// where it comes, with what it may say.
func TestCanConditions(t *testing.T) {
	g := newGuard(t, Handler{Self: &Self{Path: "/_self"}})
	open := g.h.live(t.Context())
	var rules []access.Rule
	for _, text := range []string{
		`allow GET /header when request.header("X-Env") == "prod"`, `allow GET /proto when request.header("X-Forwarded-Proto") == "https"`,
		`allow GET /identity when request.header("X-Service-User-Id") != ""`, `allow GET /credential when request.header("Authorization") != ""`,
		`allow GET /near when cidr("192.0.2.0/24").containsIP(request.remote_ip)`, `allow GET /far when cidr("198.51.100.0/24").containsIP(request.remote_ip)`,
		`allow GET /later when now > timestamp("2020-01-01T00:00:00Z")`, `allow GET /error when user.labels.none == ""`, `allow GET /p/{id} when params.id == "7" && request.method == "GET" && request.path == "/p/7"`,
	} {
		rules = append(rules, must(access.ParseRule(text)))
	}
	id := must(open.store.CreateGroup(t.Context(), store.Local, store.Group{Name: "conditions", Mode: access.Enforce, Rules: rules})).ID
	must(open.store.UpdateServiceUser(t.Context(), store.Local, g.none.id, 0, func(u *store.ServiceUser) error { u.Groups = []string{id}; return nil }))
	for path, want := range map[string]bool{
		"/header": true, "/proto": false, "/identity": false, "/credential": false, "/near": true, "/far": false, "/later": true, "/error": false, "/p/7": true, "/p/8": false,
	} {
		headers := []string{"Content-Type: application/json", "X-Env: prod", "X-Forwarded-Proto: https", "X-Forwarded-For: 198.51.100.7", "X-Service-User-Id: x"}
		may, _ := g.ask("POST", "/_self/can", `{"method":"GET","path":"`+path+`"}`, g.none, headers...)
		does, behind := g.ask("GET", path, "", g.none, headers...)
		if want && (behind.Get("X-Forwarded-Proto") != "https" || behind.Get("X-Forwarded-For") != "198.51.100.7") {
			t.Errorf("%s: went on as %q, and what conditions do not see is Caddy's to replace", path, behind)
		}
		for what, w := range map[string]*httptest.ResponseRecorder{"may it": may, "does it": does} {
			if got := w.Code == 204 || w.Body.String() == `{"allowed":true,"answer":"allowed"}`; got != want {
				t.Errorf("%s, %s: got %d %s, want %t", what, path, w.Code, w.Body, want)
			}
		}
	}
}

// TestExpiryNotice: a caller is told of an end that is near, and of no other.
func TestExpiryNotice(t *testing.T) {
	g := newGuard(t, Handler{Mode: "observe"})
	open := g.h.live(t.Context())
	now := g.now.Load()
	for name, tt := range map[string]struct {
		end  int64
		want bool
	}{
		"never":           {0, false},
		"soon":            {now + 60, true},
		"within 14 days":  {now + 14*24*3600 - 60, true},
		"after 14 days":   {now + 14*24*3600 + 60, false},
		"in 300 years":    {now + 300*365*24*3600, false},
		"in 584 years":    {now + 18_446_744_073 + 60, false}, // where a count of nanoseconds begins anew
		"the last of all": {time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).Unix(), false},
	} {
		var end time.Time
		if tt.end != 0 {
			end = time.Unix(tt.end, 0)
		}
		must(open.store.UpdateServiceUser(t.Context(), store.Local, g.none.id, 0, func(u *store.ServiceUser) error { u.ExpiresAt = end; return nil }))
		w, _ := g.ask("GET", "/x", "", g.none)
		want := ""
		if tt.want {
			want = end.UTC().Format(time.RFC3339)
		}
		if got := w.Header().Get("Service-User-Token-Expires"); got != want || w.Code != 204 {
			t.Errorf("%s: got %d and %q, want %q", name, w.Code, got, want)
		}
	}
}

// TestObservedFlood: kinds of requests without end are counted up to a bound,
// told once each, and never refused.
func TestObservedFlood(t *testing.T) {
	g := newGuard(t, Handler{Mode: "observe"})
	const bound, more = 10_000, 50
	for i := range bound + more {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/flood/"+strings.Map(func(c rune) rune { return c - '0' + 'a' }, fmt.Sprint(i)), nil)
		r.SetBasicAuth(g.none.id, g.none.secret)
		if w, _ := g.serve(r); w.Code != 204 {
			t.Fatalf("request %d: got %d", i, w.Code)
		}
	}
	list, missed := g.h.live(t.Context()).recall.Observed()
	if told := g.log.FilterMessage("enforcing would decide otherwise").Len(); len(list) != bound || missed != more || told != bound {
		t.Errorf("got %d kinds, %d not counted and %d lines, want %d, %d and %d", len(list), missed, told, bound, more, bound)
	}
}
