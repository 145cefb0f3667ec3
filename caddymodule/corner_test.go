package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/internal/testkit"
	"github.com/serviceusers/caddy-service-users/store"
)

// TestSelfEnds: the corner shows the earliest end of the token, its grace and the service user, and
// so does the header.
func TestSelfEnds(t *testing.T) {
	const grace = 3600
	for _, tt := range []struct{ token, user, ends, next, retires int64 }{ // seconds from now; 0 is never
		{0, 0, 0, 0, grace},
		{7200, 0, 7200, 7200, grace},
		{0, 7200, 7200, 7200, grace},
		{7200, 5400, 5400, 5400, grace},
		{5400, 7200, 5400, 5400, grace},
		{7200, 60, 60, 60, 60},
		{0, 60, 60, 60, 60},
		{60, 7200, 60, 60, 60},
		{60, 0, 60, 60, 60},
	} {
		g := newGuard(t, Handler{Self: &Self{Path: "/_self", Rotate: true}})
		open, now, me := g.h.shared.live.Load().store, g.now.Load(), g.none
		at := func(seconds int64) (end time.Time) {
			if seconds != 0 {
				end = time.Unix(now+seconds, 0)
			}
			return end
		}
		shown := func(end *time.Time) int64 {
			if end == nil {
				return 0
			}
			return end.Unix() - now
		}
		token := must2(open.FindTokens(t.Context(), store.Local, store.TokenQuery{UserID: me.id, Limit: 1}))[0]
		must(open.UpdateToken(t.Context(), store.Local, me.id, token.ID, 0, func(k *store.Token) error { k.ExpiresAt = at(tt.token); return nil }))
		must(open.UpdateServiceUser(t.Context(), store.Local, me.id, 0, func(u *store.ServiceUser) error { u.ExpiresAt = at(tt.user); return nil }))
		check := func(what string, c credentials, ends int64) {
			t.Helper()
			w, _ := g.ask("GET", "/_self", "", c)
			got := shown(decodeBody[who](t, w.Result()).Token.ExpiresAt)
			header := ""
			if ends != 0 {
				header = at(ends).UTC().Format(time.RFC3339)
			}
			if notice := w.Header().Get("Service-User-Token-Expires"); got != ends || notice != header {
				t.Errorf("%+v, %s: got %d and the header %q, want %d and %q", tt, what, got, notice, ends, header)
			}
		}
		check("at first", me, tt.ends)
		w, _ := g.ask("POST", "/_self/rotate", "", me)
		out := decodeBody[rotated](t, w.Result())
		if shown(out.ExpiresAt) != tt.next || shown(out.RetiresAt) != tt.retires || w.Header().Get("Service-User-Token-Expires") != at(tt.retires).UTC().Format(time.RFC3339) {
			t.Errorf("%+v, rotate: got %s and the header %q", tt, w.Body, w.Header().Get("Service-User-Token-Expires"))
		}
		check("the old token", me, tt.retires)
		check("the successor", credentials{me.id, out.Token}, tt.next)
	}
}

// TestSelfSlash: a slash at the end of a path of the corner changes nothing.
func TestSelfSlash(t *testing.T) {
	for _, options := range []Handler{{}, {Otherwise: "pass"}, {Mode: "observe"}} {
		options.Self = &Self{Path: "/_self", Rotate: true}
		g := newGuard(t, options)
		for _, part := range []string{"", "/can", "/rotate"} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "REPORT"} {
				for name, who := range map[string]credentials{"": {}, "none": g.none} {
					body := ""
					if part == "/can" && method == "POST" {
						body = `{"method":"GET","path":"/v1/x"}`
					}
					answer := func(path string) string {
						w, behind := g.ask(method, path, body, who)
						text := w.Body.String()
						if w.Code == 201 {
							text = "a token"
						}
						return fmt.Sprint(w.Code, w.Header().Get("Allow"), text, behind)
					}
					got, want := answer("/_self"+part+"/"), answer("/_self"+part)
					allow := map[bool]string{true: "GET, HEAD", false: "POST"}[part == ""]
					refused := name == "none" && !slices.Contains(strings.Split(allow, ", "), method)
					if got != want || refused != strings.HasPrefix(want, "405"+allow) {
						t.Errorf("%s /_self%s, %q: got %s with the slash and %s without", method, part, name, got, want)
					}
				}
			}
		}
	}
}

// TestCanAgrees: the corner answers as the site does, with the 400 of the site, and for every target
// of the request.
func TestCanAgrees(t *testing.T) {
	for _, relax := range [][]string{nil, {"merge_slashes", "allow_encoded_slash", "allow_semicolon"}} {
		g := newGuard(t, Handler{Self: &Self{Path: "/_self"}, Relax: relax, Public: []string{"GET /open/{rest...}"}})
		for _, request := range []string{
			"GET /v1/x", "GET /v1/x?a=//b", "POST /v1/x", "HEAD /v1/x", "GET /v2/x", "GET /denied", "GET /denied/", "GET /open/x",
			"GET /v1/a.php", "GET /v1/a.php/v1/x", "GET /v1/a.php/x", "GET /v1/a.php/denied", "GET /open/a.php/x", "GET /open/a.php/open/x",
			"GET /v1//x", "GET //v1/x", "GET /v1/a%2Fb", "GET /v1/a%2fb", "GET /v1/a;b", "GET /v1/a%5Cb", "GET /v1/a%00b", "GET /v1/./x", "GET /v1/%2e%2e/x",
			"GET http://example.com/v1/x", "GET *", "CONNECT /v1/x", "TRACE /v1/x", "PRI /v1/x", "get /v1/x", "GET /v1/a.php/%2e",
			"REPORT /v1/x", "OPTIONS /v1/x",
		} {
			method, path, _ := strings.Cut(request, " ")
			w, _ := g.ask("POST", "/_self/can", fmt.Sprintf(`{"method":%q,"path":%q}`, method, path), g.reader)
			site := rewritten(t, request, request)
			site.Host = "example.com"
			site.SetBasicAuth(g.reader.id, g.reader.secret)
			does, _ := g.serve(site)
			if w.Code == 200 {
				may := decodeBody[canOutput](t, w.Result())
				wants := map[string]bool{"allowed": true, "no_rule": false, "denied": false}
				if want, known := wants[may.Answer]; !known || may.Allowed != want || (does.Code == 204) != may.Allowed || does.Code == 400 {
					t.Errorf("%v, %s: the corner says %+v, and the site %d %s", relax, request, may, does.Code, does.Body)
				}
				continue
			}
			_, detail, _ := strings.Cut(decodeBody[problemBody](t, w.Result()).Detail, ": ")
			real := decodeBody[problemBody](t, does.Result())
			if w.Code != 400 || !slices.Contains([]int{400, 405, 501}, does.Code) || detail == "" || !strings.HasPrefix(real.Detail, detail) {
				t.Errorf("%v, %s: the corner says %d %q, and the site %d %q", relax, request, w.Code, detail, does.Code, real.Detail)
			}
		}
	}
}

// TestCanHost: a question without a host is about the host of the request.
func TestCanHost(t *testing.T) {
	c := newCorner(t, Handler{})
	p, _ := c.principal(c.own.Secret)
	for host, want := range map[string]string{"only.example": "allowed", "ONLY.example.:8443": "allowed", "api.example": "no_rule"} {
		r := prepared(httptest.NewRequest("POST", "/_self/can", strings.NewReader(`{"method":"GET","path":"/v2"}`)))
		r.Host = host
		w := httptest.NewRecorder()
		if err := c.h.serveSelf(w, c.request(r, p)); err != nil {
			t.Fatal(err)
		}
		checkSelf(t, w.Result(), host, want)
	}
}

// TestSelfContentType: a body without Content-Type is JSON. A body of another type is not read.
func TestSelfContentType(t *testing.T) {
	const wrong = "415 the Content-Type must be application/json"
	for header, want := range map[string]string{
		"": "allowed", "Content-Type: ": "allowed", "Content-Type: application/json; charset=utf-8": "allowed",
		"Content-Type: text/plain": wrong, "Content-Type: application/x-www-form-urlencoded": wrong, "Content-Type: json": wrong,
		"Content-Encoding: gzip": "415 the body must not be compressed",
	} {
		c := newCorner(t, Handler{})
		c.untyped = header != "Content-Encoding: gzip"
		checkSelf(t, c.askOwn("POST", "/_self/can", `{"method":"GET","path":"/v1/x"}`, header), header, want)
		if resp := c.askOwn("POST", "/_self/rotate", "{}", header); want == "allowed" && resp.StatusCode != 201 {
			t.Errorf("rotate, %q: got %d", header, resp.StatusCode)
		} else if want != "allowed" {
			checkSelf(t, resp, "rotate, "+header, want)
		}
	}
}

const cornerCaddyfile = `{
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
	}
}
(refused) {
	handle_errors {
		respond "{err.message}" {err.status_code}
	}
}
http://:{$API_PORT} {
	bind 127.0.0.1
	handle_path /api/* {
		service_users {
			self /_self {
				rotate
			}
		}
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
	handle /base/* {
		uri strip_prefix /base
		service_users {
			self /_self
		}
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
	handle /old/* {
		rewrite /old/y /new/y
		service_users {
			self /_self
		}
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
	handle /without/* {
		service_users
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
	handle {
		service_users {
			self /_self
			bearer
		}
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
}
http://:{$ERRORS_PORT} {
	bind 127.0.0.1
	handle_path /api/* {
		service_users {
			self /_self
			bearer
			errors caddy
		}
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
	import refused
}
http://:{$EDIT_PORT} {
	bind 127.0.0.1
	header >WWW-Authenticate Basic XBasic
	service_users
	respond 204
}
http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	service_users_admin
}
`

// TestRefusalNamesCorner: a 403 names the path at which this client reaches the corner, also where a
// prefix is removed from paths, and questions there are about the paths of the client. No other
// refusal names it.
func TestRefusalNamesCorner(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.moreports("ERRORS_PORT", "EDIT_PORT")
	startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, cornerCaddyfile)
	s.mustCLI("group", "create", "people", "--rule", "allow GET /v1/{rest...}", "--rule", "deny * /v1/secret")
	user := s.create("clerk", "--group", "people")
	for path, corner := range map[string]string{
		"/x": "/_self", "/x?a=/x": "/_self", "/api/x": "/api/_self", "/api/v1/secret": "/api/_self", "/api/api/x": "/api/_self", "/api/%41": "/api/_self",
		"/base/x": "/base/_self", "/base/base/x?y": "/base/_self", "/old/y": "", "/old/x": "/_self", "/without/x": "",
	} {
		got := s.get(path, user)
		detail := "this service user is not allowed to do this; "
		if corner != "" {
			detail += "GET " + corner + " shows its rules, and "
		}
		detail += "an admin can have the decision explained by its id"
		problem := decodeText[problemBody](t, got.body)
		if got.StatusCode != 403 || problem.SelfService != corner || problem.Detail != detail || strings.Contains(got.body, "self_service") != (corner != "") {
			t.Errorf("%s: got %d %s, want the corner %q", path, got.StatusCode, got.body, corner)
		}
		if corner != "" && s.get(corner, user).StatusCode != 200 {
			t.Errorf("%s: the corner is not at %s", path, corner)
		}
		if call := s.get(path, user, "Content-Type: application/grpc"); call.Header.Get("Grpc-Message") != detail {
			t.Errorf("%s: got the grpc-message %q", path, call.Header.Get("Grpc-Message"))
		}
		for what, other := range map[string]*response{
			"401": s.get(path, credentials{}), "wrong": s.get(path, credentials{user.id, testkit.Altered(user.secret)}), "400": s.get(strings.Replace(path, "/x", "//x", 1)+"/%00", user),
		} {
			if other.StatusCode == 403 || strings.Contains(other.body, "_self") || other.Header.Get("Service-User-Decision-Id") != "" {
				t.Errorf("%s, %s: got %d %s", path, what, other.StatusCode, other.body)
			}
		}
	}
	s.checkCan(user)
	s.checkErrorRoute(user)
	s.checkChallenges(user)
}

// checkCan: a client below a prefix asks about the path that it would call.
func (s *server) checkCan(user credentials) {
	t := s.t
	for _, prefix := range []string{"", "/api", "/base"} {
		for path, want := range map[string]string{"/v1/x": "allowed", "/v1/secret": "denied", "/x": "no_rule", "/_self": "allowed", "/_self/can/": "allowed"} {
			got := s.do("POST", "API_PORT", prefix+"/_self/can", user, fmt.Sprintf(`{"method":"GET","path":%q}`, prefix+path))
			if out := decodeText[canOutput](t, got.body); out.Answer != want {
				t.Errorf("can %s%s: got %s, want %s", prefix, path, got.body, want)
			}
			if status := s.get(prefix+path, user).StatusCode; (status == 403) == (want == "allowed") {
				t.Errorf("%s%s: got %d, want as the corner says, %s", prefix, path, status, want)
			}
		}
		got := s.do("POST", "API_PORT", prefix+"/_self/can", user, fmt.Sprintf(`{"method":"GET","path":%q}`, prefix+"//x"))
		if want := fmt.Sprintf("path: the path has an empty segment at position %d", len(prefix)+1); !strings.Contains(got.body, want) {
			t.Errorf("%s: got %s, want %q", prefix, got.body, want)
		}
	}
}

// checkErrorRoute: an error route gets the text of the refusal, and the fields of its header.
func (s *server) checkErrorRoute(user credentials) {
	t := s.t
	got := s.do("GET", "ERRORS_PORT", "/api/x", user, "")
	if want := "this service user is not allowed to do this; GET /api/_self shows its rules, and an admin can have the decision explained by its id"; got.StatusCode != 403 || got.body != want || !strings.HasPrefix(got.Header.Get("Service-User-Decision-Id"), "decision_") {
		t.Errorf("errors caddy: got %d %q %v", got.StatusCode, got.body, got.Header)
	}
	got = s.do("GET", "ERRORS_PORT", "/api/x", credentials{}, "")
	if want := "this needs the id and token of a service user, as HTTP Basic credentials, or the token alone as a Bearer token"; got.StatusCode != 401 || got.body != want || len(got.Header["Www-Authenticate"]) != 2 {
		t.Errorf("errors caddy: got %d %q %v", got.StatusCode, got.body, got.Header)
	}
	// The answers of the corner itself are JSON in both modes.
	if got := s.do("PUT", "ERRORS_PORT", "/api/_self/", user, ""); got.StatusCode != 405 || got.Header.Get("Allow") != "GET, HEAD" || got.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("errors caddy, the corner: got %d %v %s", got.StatusCode, got.Header, got.body)
	}
}

// checkChallenges: a site and a door that take Bearer say so, and nothing about the reason.
func (s *server) checkChallenges(user credentials) {
	t := s.t
	for port, want := range map[string][]string{
		"API_PORT":    {`Basic realm="service users", charset="UTF-8"`, `Bearer realm="service users"`},
		"ERRORS_PORT": {`Basic realm="service users", charset="UTF-8"`, `Bearer realm="service users"`},
		"ADMIN_PORT":  {`Basic realm="service users admin", charset="UTF-8"`, `Bearer realm="service users admin"`},
	} {
		path := map[string]string{"API_PORT": "/_self", "ERRORS_PORT": "/api/_self", "ADMIN_PORT": "/service_users"}[port]
		first := ""
		for _, header := range []string{"", "Bearer x", "bearer " + testkit.Altered(user.secret), "Bearer", basic(user.id, "x"), basic("nobody", user.secret), "Digest x"} {
			var fields []string
			if header != "" {
				fields = []string{"Authorization: " + header}
			}
			got := s.do("GET", port, path, credentials{}, "", fields...)
			if got.StatusCode != 401 || !slices.Equal(got.Header["Www-Authenticate"], want) {
				t.Errorf("%s, %q: got %d %q", port, header, got.StatusCode, got.Header["Www-Authenticate"])
			}
			if port == "ADMIN_PORT" { // each answer has the id of its operation
				continue
			}
			got.Header.Del("Date")
			if text := fmt.Sprint(got.Header, got.body); first == "" {
				first = text
			} else if text != first {
				t.Errorf("%s, %q: got %s, want %s", port, header, text, first)
			}
		}
	}
	// Without Bearer, the 401 does not name it. An edit of the challenge stays with its answer.
	for range 3 {
		if got := s.do("GET", "EDIT_PORT", "/x", credentials{}, ""); !slices.Equal(got.Header["Www-Authenticate"], []string{`XBasic realm="service users", charset="UTF-8"`}) || strings.Contains(got.body, "Bearer") {
			t.Errorf("an edited challenge: got %q %s", got.Header["Www-Authenticate"], got.body)
		}
	}
}

// TestRotateEndless: a token without an end stays without one however it is replaced, unless
// token_ttl gives its successor an end. A bulk rotation leaves it alone.
func TestRotateEndless(t *testing.T) {
	t.Parallel()
	for _, ttl := range []string{"", "\t\ttoken_ttl 90d\n"} {
		s := newServer(t)
		startRecorder(t, s.ports["UPSTREAM_PORT"])
		withCaddyfile(s, guarded(ttl, "\t\tself /_self {\n\t\t\trotate\n\t\t}", ""))
		for way, replace := range map[string]func(c credentials, uri, id string) *response{
			"corner": func(c credentials, _, _ string) *response { return s.do("POST", "API_PORT", "/_self/rotate", c, "") },
			"REST": func(_ credentials, uri, _ string) *response {
				return s.local("POST", uri+"/refresh", `{"grace":"1h"}`, nil)
			},
			"CLI": func(_ credentials, _, id string) *response {
				return &response{body: s.mustCLI("token", "refresh", "CLI", id, "--grace", "1h", "--json")}
			},
		} {
			c := s.create(way)
			var list admin.TokenList
			s.local("GET", "/service_users/"+c.id+"/tokens", "", &list)
			token := list.Tokens[0]
			s.mustCLI("token", "update", way, token.ID, "--expires-at", "")
			if ended := decodeText[who](t, s.get("/_self", c).body).Token.ExpiresAt; ended != nil {
				t.Fatalf("%s: the token ends at %s, want never", way, ended)
			}
			got := replace(c, token.URI, token.ID).body
			next := decodeText[struct {
				Token     string     `json:"token"`
				ExpiresAt *time.Time `json:"expires_at"`
			}](t, got)
			if end := next.ExpiresAt; next.Token == "" || (end != nil) != (ttl != "") || end != nil && time.Until(*end).Round(time.Hour) != 90*24*time.Hour {
				t.Errorf("%s, %q: got %s", way, ttl, got)
			}
			shown := decodeText[who](t, s.get("/_self", credentials{c.id, next.Token}).body).Token.ExpiresAt
			if (shown == nil) != (next.ExpiresAt == nil) || shown != nil && !shown.Equal(*next.ExpiresAt) {
				t.Errorf("%s, %q: the successor shows %v, want %v", way, ttl, shown, next.ExpiresAt)
			}
			s.mustCLI("token", "revoke", way, token.ID, "--yes")
		}
		dir := filepath.Join(s.dir, "secrets")
		must(0, os.Mkdir(dir, 0o700))
		if got := s.mustCLI("token", "rotate", "--ends-within", "36500d", "--grace", "1h", "--secret-dir", dir, "--dry-run", "--json"); ttl == "" && strings.Contains(got, "token_") {
			t.Errorf("a bulk rotation: got %s, want no token", got)
		}
	}
}

// decodeText is decodeBody for a text.
func decodeText[T any](t testing.TB, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return v
}
