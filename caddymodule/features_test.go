package caddymodule

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/testkit"
	"github.com/serviceusers/caddy-service-users/store"
)

// guarded is a Caddyfile with one guarded site, made of the options of the
// directive, what follows it, and what stands in the global options.
func guarded(global, options, behind string) string {
	return "{\n\tservice_users {\n\t\tstore {$SERVICE_USERS_STORE}\n" + global + "\n\t}\n}\nhttp://:{$API_PORT} {\n\tbind 127.0.0.1\n\tservice_users {\n" +
		options + "\n\t}\n" + behind + "\n\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}\n}\n"
}

// withUpstream starts a server behind which a recording upstream stands, with a
// service user that may do everything.
func withUpstream(t *testing.T, caddyfile string) (*server, *recorder, credentials) {
	t.Helper()
	s := newServer(t)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, caddyfile)
	s.mustCLI("group", "create", "everything", "--rule", "allow * /{rest...}")
	return s, up, s.create("billing-sync", "--group", "everything")
}

// attempt is one request and what has to become of it.
type attempt struct {
	name   string
	method string // "" is GET
	path   string // "" is /x
	header string // "Name: value" lines, separated by "\n"
	status int
	has    string // what the upstream has to see, a line; "" is nothing in particular
	hasNot string // what it must not see
	passes bool   // whether it reaches the upstream
}

func (s *server) try(t *testing.T, up *recorder, attempts []attempt) {
	t.Helper()
	for _, a := range attempts {
		up.reset()
		if a.method == "" {
			a.method = "GET"
		}
		if a.path == "" {
			a.path = "/x"
		}
		request := a.method + " " + a.path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
		if a.header != "" {
			request += strings.ReplaceAll(a.header, "\n", "\r\n") + "\r\n"
		}
		status := exchange(t, s.addr("API_PORT"), request+"\r\n")
		got := up.requests()
		if status != a.status || (len(got) == 1) != a.passes {
			t.Errorf("%s: got %d and %d requests upstream, want %d, passes %t", a.name, status, len(got), a.status, a.passes)
			continue
		}
		raw := strings.Join(got, "")
		if a.has != "" && !strings.Contains(raw, a.has+"\r\n") {
			t.Errorf("%s: upstream got %q, want %q in it", a.name, raw, a.has)
		}
		if a.hasNot != "" && strings.Contains(strings.ToLower(raw), strings.ToLower(a.hasNot)) {
			t.Errorf("%s: upstream got %q, want no %q in it", a.name, raw, a.hasNot)
		}
	}
}

func TestPublic(t *testing.T) {
	t.Parallel()
	s, up, user := withUpstream(t, guarded("", "public GET,HEAD /open/{rest...}\npublic POST /hook\npublic GET files.example/{rest...}\nkeep_authorization", ""))
	ours := "Authorization: " + basic(user.id, user.secret)
	s.try(t, up, []attempt{
		{name: "public", path: "/open/a", status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "forged", path: "/open/a", header: "X-Service-User-Id: evil", status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "another method", method: "DELETE", path: "/open/a", status: 401},
		{name: "another path", path: "/hook", status: 401},
		{name: "another host", path: "/files", status: 401},
		{name: "ambiguous", path: "/open/%2e%2e/x", status: 400},
		{name: "a foreign credential", path: "/open/a", header: "Authorization: Bearer ey.foreign", status: 200, passes: true, has: "Authorization: Bearer ey.foreign"},
		{name: "a foreign login", path: "/open/a", header: "Authorization: " + basic("someone", "password"), status: 200, passes: true, has: "Authorization: " + basic("someone", "password")},
		{name: "ours", path: "/open/a", header: ours, status: 200, passes: true, hasNot: "Authorization"},
		{name: "ours as Bearer", path: "/open/a", header: "Authorization: Bearer " + user.secret, status: 200, passes: true, hasNot: "Authorization"},
		{name: "two", path: "/open/a", header: ours + "\nAuthorization: Bearer x", status: 200, passes: true, hasNot: "Authorization"},
		{name: "not public", header: ours, status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "Authorization"},
	})
}

func TestOtherwisePass(t *testing.T) {
	t.Parallel()
	s, up, user := withUpstream(t, guarded("", "otherwise pass\nready /ready", ""))
	s.try(t, up, []attempt{
		{name: "nothing", status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "forged", header: "X-Service-User-Id: evil\nConnection: X-Y", status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "another scheme", header: "Authorization: Bearer ey.foreign", status: 200, passes: true, has: "Authorization: Bearer ey.foreign", hasNot: "X-Service-User"},
		{name: "our secret as another scheme", header: "Authorization: Bearer " + user.secret, status: 200, passes: true, hasNot: "Authorization"},
		{name: "Basic, right", header: "Authorization: " + basic(user.id, user.secret), status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "Authorization"},
		{name: "Basic, wrong", header: "Authorization: " + basic(user.id, "x"), status: 401},
		{name: "Basic, malformed", header: "Authorization: Basic", status: 401},
		{name: "Basic, any case", header: "Authorization: bASIC !", status: 401},
		{name: "two", header: "Authorization: Bearer a\nAuthorization: Bearer b", status: 400},
		{name: "ambiguous", path: "//x", status: 400},
		{name: "a probe is answered here", path: "/ready", status: 200},
	})
}

// TestSpellingsOfALogin sends a valid login as only a lenient upstream would read it,
// to paths and sites that leave the credentials of others alone. It arrives nowhere.
func TestSpellingsOfALogin(t *testing.T) {
	t.Parallel()
	s, up, user := withUpstream(t, guarded("", "public GET /open/{rest...}\nkeep_authorization\notherwise pass unknown", ""))
	right := basic(user.id, user.secret)
	encoded := strings.TrimPrefix(right, "Basic ")
	login := user.id + ":" + user.secret
	every := func(n int, what, text string) string {
		var b strings.Builder
		for i := range len(text) {
			if i > 0 && i%n == 0 {
				b.WriteString(what)
			}
			b.WriteByte(text[i])
		}
		return b.String()
	}
	percent := func(text string) string { return "%" + every(2, "%", hex.EncodeToString([]byte(text))) }
	b64 := base64.StdEncoding.EncodeToString
	dropped := map[string]string{
		"a foreign byte in the base64":      "Basic " + every(30, "!", encoded),
		"an 8-bit byte in the base64":       "Basic " + every(50, "\xa0", encoded),
		"a dash in the base64":              "Basic " + every(20, "-", encoded),
		"a blank in the base64":             "Basic " + every(60, " ", encoded),
		"a tab behind the scheme":           "Basic\t" + encoded,
		"two blanks behind the scheme":      "Basic  " + encoded,
		"quotes":                            `Basic "` + encoded + `"`,
		"quotes around all":                 `"` + right + `"`,
		"two schemes":                       "Basic " + right,
		"another scheme before":             "Bearer " + right,
		"two schemes in a list":             "Bearer x, " + right,
		"percent escapes":                   "Basic " + percent(login),
		"percent escapes of the base64":     "Basic " + percent(encoded),
		"percent escapes, another scheme":   "Token " + percent(login),
		"hex":                               "Basic " + hex.EncodeToString([]byte(login)),
		"hex, another scheme":               "Token " + hex.EncodeToString([]byte(user.secret)),
		"base64 of base64":                  "Basic " + b64([]byte(encoded)),
		"base64 of UTF-16":                  "Token " + b64([]byte(every(1, "\x00", login))),
		"no padding":                        strings.TrimRight(right, "="),
		"no scheme":                         encoded,
		"no blank":                          "Basic" + encoded,
		"the token, cut":                    "Bearer " + user.secret[:len(user.secret)-1],
		"the token, cut to its half":        "Bearer " + user.secret[:27],
		"the token without its prefix":      "Bearer " + user.secret[4:],
		"the token, cut, as Basic":          basic("alice", user.secret[:40]),
		"the id with a mistyped token":      "Basic  " + b64([]byte(user.id+":secret")),
		"Basic of others, not strictly":     strings.Replace(basic("alice", "secret"), " ", "  ", 1),
		"Basic of others, no colon":         "Basic YWxpY2U=",
		"Basic of others, a control inside": basic("alice", "a\x01"),
	}
	var attempts []attempt
	for name, value := range dropped {
		attempts = append(attempts, attempt{name: name + ", public", path: "/open/x", header: "Authorization: " + value, status: 200, passes: true, hasNot: "Authorization"})
		a := attempt{name: name + ", otherwise", header: "Authorization: " + value, status: 401}
		if !strings.HasPrefix(value, "Basic ") {
			a.status, a.passes, a.hasNot = 200, true, "Authorization"
		}
		attempts = append(attempts, a)
	}
	for _, value := range []string{"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", basic("alice", "secret"), "Negotiate YIIBkw==", `Digest username="alice", realm="basic", uri="/"`, "Token csu_short"} {
		for _, path := range []string{"/open/x", "/x"} {
			attempts = append(attempts, attempt{name: value, path: path, header: "Authorization: " + value, status: 200, passes: true, has: "Authorization: " + value})
		}
	}
	s.try(t, up, attempts)
	const line = "an Authorization field was dropped"
	if got := strings.Count(s.log.String(), line); got != 1 {
		t.Errorf("got %d lines with %q, want 1 for the site", got, line)
	}
	if log := s.log.String(); strings.Contains(log, user.secret[:25]) || strings.Contains(log, encoded[:60]) {
		t.Errorf("the log holds the login")
	}
}

// TestMethodOverrideIsRefused: no header makes an upstream see another method than
// the rules did.
func TestMethodOverrideIsRefused(t *testing.T) {
	t.Parallel()
	s, up, user := withUpstream(t, guarded("", "public GET /open/{rest...}\notherwise pass\nkeep X-Method-Override X-Authentik-*", ""))
	ours := "Authorization: " + basic(user.id, user.secret) + "\n"
	s.try(t, up, []attempt{
		{name: "another method", header: ours + "X-HTTP-Method-Override: DELETE", status: 400},
		{name: "in another spelling", header: ours + "x!http*method-override: delete", status: 400},
		{name: "its kin", header: ours + "X-HTTP-Method: DELETE", status: 400},
		{name: "of two values", header: ours + "X-HTTP-Method: GET\nX-HTTP-Method: DELETE", status: 400},
		{name: "on a public path", path: "/open/x", header: "X-HTTP-Method-Override: DELETE", status: 400},
		{name: "without identity", header: "X-HTTP-Method-Override: DELETE", status: 400},
		{name: "before the credential is looked at", header: "Authorization: " + basic("nobody", "x") + "\nX-HTTP-Method-Override: DELETE", status: 400},
		{name: "the same method", header: ours + "X-HTTP-Method-Override: get", status: 200, passes: true, hasNot: "Override"},
		{name: "kept", header: ours + "X-Method-Override: DELETE", status: 200, passes: true, has: "X-Method-Override: DELETE"},
		{name: "a family that is kept", header: ours + "X-Authentik-Username: alice", status: 200, passes: true, has: "X-Authentik-Username: alice"},
		{name: "one that is not", header: ours + "X-Remote-Groups: admin", status: 200, passes: true, hasNot: "admin"},
	})
}

func TestOtherwisePassUnknown(t *testing.T) {
	t.Parallel()
	s, up, user := withUpstream(t, guarded("", "otherwise pass unknown\nbearer\nready /ready\nself /self\nrealm x", "\troute /inner/* {\n\t\tservice_users {\n\t\t\totherwise pass unknown\n\t\t}\n\t}"))
	s.create("with-alias", "--alias", "SERVICE-202")
	off := s.create("inactive", "--alias", "off@example.com")
	s.mustCLI("deactivate", "inactive")
	login := func(id, secret string) string { return "Authorization: " + basic(id, secret) }
	foreign := attempt{status: 200, passes: true, hasNot: "X-Service-User"}
	var attempts []attempt
	for _, id := range []string{"alice", "alice@example.com", "Älice Müller", "", "service", "SERVICE-203", strings.Repeat("a", 300)} {
		a := foreign
		a.name, a.header, a.has = "another login: "+id, login(id, "pässword: 1"), login(id, "pässword: 1")
		attempts = append(attempts, a)
	}
	s.try(t, up, append(attempts, []attempt{
		{name: "nothing", status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "forged", header: login("alice", "x") + "\nX-Service-User-Id: evil\nConnection: Authorization", status: 200, passes: true, has: login("alice", "x"), hasNot: "X-Service-User"},
		{name: "another login, at a handler in a handler", path: "/inner/x", header: login("alice", "x"), status: 200, passes: true, has: login("alice", "x"), hasNot: "X-Service-User"},
		{name: "ours", header: login(user.id, user.secret), status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "Authorization"},
		{name: "ours, at a handler in a handler", path: "/inner/x", header: login(user.id, user.secret), status: 200, passes: true, has: "X-Service-User-Id: " + user.id, hasNot: "Authorization"},
		{name: "a wrong token", header: login(user.id, "x"), status: 401},
		{name: "an alias", header: login("SERVICE-202", "x"), status: 401},
		{name: "an alias of an inactive one", header: login("off@example.com", off.secret), status: 401},
		{name: "the form of an id", header: login("service_1", "x"), status: 401},
		{name: "the form of an id, in capitals", header: login("SERVICE_1", "x"), status: 401},
		{name: "a secret with another login", header: login("alice", user.secret), status: 401},
		{name: "a secret as the login", header: login(user.secret, "x"), status: 401},
		{name: "no colon", header: "Authorization: Basic YWxpY2U=", status: 401},
		{name: "no padding", header: "Authorization: " + strings.TrimRight(basic("alice", "x"), "="), status: 401},
		{name: "stray bits", header: "Authorization: Basic YTpjZB==", status: 401},
		{name: "two spaces", header: strings.Replace(login("alice", "x"), "Basic ", "Basic  ", 1), status: 401},
		{name: "a wrong Bearer token", header: "Authorization: Bearer x", status: 401},
		{name: "two", header: login("alice", "x") + "\n" + login("alice", "x"), status: 400},
		{name: "ambiguous", path: "//x", header: login("alice", "x"), status: 400},
		{name: "a probe is answered here", path: "/ready", header: login("alice", "x"), status: 200},
		{name: "the self-service corner is ours", path: "/self", header: login("alice", "x"), status: 401},
	}...))
}

func TestCORSPreflight(t *testing.T) {
	t.Parallel()
	const preflight = "Origin: https://app.example\nAccess-Control-Request-Method: DELETE"
	s, up, user := withUpstream(t, guarded("", "cors_preflight", ""))
	s.try(t, up, []attempt{
		{name: "a preflight", method: "OPTIONS", header: preflight, status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "forged", method: "OPTIONS", header: preflight + "\nX-Service-User-Id: evil", status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "no origin", method: "OPTIONS", header: "Access-Control-Request-Method: GET", status: 401},
		{name: "no method", method: "OPTIONS", header: "Origin: https://app.example", status: 401},
		{name: "a bad method", method: "OPTIONS", header: "Origin: https://app.example\nAccess-Control-Request-Method: CONNECT", status: 401},
		{name: "two origins", method: "OPTIONS", header: preflight + "\nOrigin: https://b.example", status: 401},
		{name: "no OPTIONS", header: preflight, status: 401},
		{name: "with a credential it is judged", method: "OPTIONS", header: preflight + "\nAuthorization: " + basic(user.id, "x"), status: 401},
		{name: "and may pass", method: "OPTIONS", header: preflight + "\nAuthorization: " + basic(user.id, user.secret), status: 200, passes: true, has: "X-Service-User-Id: " + user.id},
	})
	s, up, _ = withUpstream(t, guarded("", "realm off", ""))
	s.try(t, up, []attempt{{name: "off by default", method: "OPTIONS", header: preflight, status: 401}})
}

func TestRelaxedTargets(t *testing.T) {
	t.Parallel()
	s, up, user := withUpstream(t, guarded("", "allow_encoded_slash\nallow_semicolon\nmerge_slashes", "\turi /rewritten/* strip_prefix /rewritten\n\trewrite /gone/* /x"))
	s.mustCLI("rule", "add", "everything", "deny * /admin/{rest...}")
	ours := "Authorization: " + basic(user.id, user.secret)
	s.try(t, up, []attempt{
		{name: "an encoded slash stays encoded", path: "/a%2Fb", header: ours, status: 200, passes: true, has: "GET /a%2Fb HTTP/1.1"},
		{name: "a semicolon", path: "/a;v=1/b", header: ours, status: 200, passes: true, has: "GET /a;v=1/b HTTP/1.1"},
		{name: "slashes are merged for the upstream too", path: "/a//b/%41?c=//d", header: ours, status: 200, passes: true, has: "GET /a/b/%41?c=//d HTTP/1.1"},
		{name: "a deny by an encoded slash", path: "/admin%2Fx", header: ours, status: 403},
		{name: "a deny by a parameter", path: "/admin;x/y", header: ours, status: 403},
		{name: "a deny by two slashes", path: "//admin//x", header: ours, status: 403},
		{name: "what was not relaxed", path: "/a%25b", header: ours, status: 400},
		{name: "dot segments", path: "/a/..;/b", header: ours, status: 400},
		{name: "rules see the rewritten path", path: "/rewritten/admin/x", header: ours, status: 403},
		{name: "dot segments behind a prefix", path: "/rewritten/%2e%2e/x", header: ours, status: 400},
		{name: "the original is checked too", path: "/gone/a%5cb", header: ours, status: 400},
		{name: "gone", path: "/gone/ab", header: ours, status: 200, passes: true, has: "GET /x HTTP/1.1"},
		{name: "rewritten", path: "/rewritten/x", header: ours, status: 200, passes: true, has: "GET /x HTTP/1.1"},
	})
}

func TestNestedHandlers(t *testing.T) {
	t.Parallel()
	s, up, user := withUpstream(t, guarded("", "realm outer\nheaders id name", "\troute /inner/* {\n\t\tservice_users {\n\t\t\theaders id groups\n\t\t}\n\t}\n\troute /none/* {\n\t\tservice_users {\n\t\t\theaders none\n\t\t}\n\t}"))
	ours := "Authorization: " + basic(user.id, user.secret)
	s.try(t, up, []attempt{
		{name: "outer", header: ours, status: 200, passes: true, has: "X-Service-User-Name: billing-sync", hasNot: "X-Service-User-Groups"},
		{name: "the inner one wins", path: "/inner/x", header: ours, status: 200, passes: true, has: "X-Service-User-Groups: everything", hasNot: "X-Service-User-Name"},
		{name: "none", path: "/none/x", header: ours, status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "refused by the outer", path: "/inner/x", status: 401},
	})
	if n := strings.Count(strings.Join(up.requests(), ""), "X-Service-User-Id"); n > 1 {
		t.Errorf("%d identities upstream, want one", n)
	}
}

func TestErrorsCaddy(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, guarded("", "errors caddy", "\thandle_errors {\n\t\tservice_users sanitize\n\t\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}\n\t}"))
	up.reset()
	status := exchange(t, s.addr("API_PORT"), "GET /x HTTP/1.1\r\nHost: app.example\r\nConnection: close, X-Service-User-Id\r\nX-Service-User-Id: evil\r\nAuthorization: "+basic("a", "b")+"\r\n\r\n")
	got := strings.Join(up.requests(), "")
	if status != 200 || !strings.HasPrefix(got, "GET /x ") { // the error upstream answers
		t.Errorf("got %d, upstream %q, want the error route's answer", status, got)
	}
	for _, leak := range []string{"evil", "Authorization", "X-Service-User"} {
		if strings.Contains(got, leak) {
			t.Errorf("the error upstream got %q, want no %s", got, leak)
		}
	}
}

// TestPlaceholdersWithoutIdentity: no request without an identity brings the name of a placeholder upstream.
func TestPlaceholdersWithoutIdentity(t *testing.T) {
	t.Parallel()
	proxy := "\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT} {\n"
	for i, name := range slices.Sorted(maps.Keys(placeholders)) {
		proxy += fmt.Sprintf("\t\theader_up X-%d [{%s}]\n", i, name)
	}
	proxy += "\t}\n"
	sanitize := "\t\tservice_users sanitize\n" + proxy + "\t}\n"
	s, up, user := withUpstream(t, strings.Replace(guarded("", "errors caddy\npublic GET /open", proxy+"\thandle_errors {\n"+sanitize),
		"\tbind 127.0.0.1\n", "\tbind 127.0.0.1\n\troute /errors {\n"+sanitize, 1))
	for _, tt := range []struct{ path, header, has string }{
		{"/open", "", ""},
		{"/errors", "", ""},
		{"/x", "", ": [deny]"},
		{"/x", "Authorization: " + basic("a", "b") + "\r\n", ": [a]"},
		{"/x;y", "", ": [deny]"},
		{"/x", "Authorization: " + basic(user.id, user.secret) + "\r\n", ": [" + user.id + "]"},
	} {
		up.reset()
		status := exchange(t, s.addr("API_PORT"), "GET "+tt.path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"+tt.header+"\r\n")
		got := strings.Join(up.requests(), "")
		if status != 200 || strings.Contains(got, "{") || !strings.Contains(got, tt.has) || !strings.Contains(got, ": []") {
			t.Errorf("%s with %q: got %d, upstream %q, want %q in it and no name of a placeholder", tt.path, tt.header, status, got, tt.has)
		}
	}
}

// Who guesses too often waits for the answer, but not who shares a proxy's
// connection with others, and only so many at once.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		request := func(vars map[string]any) *http.Request {
			return httptest.NewRequestWithContext(context.WithValue(t.Context(), caddyhttp.VarsCtxKey, vars), "GET", "/", nil)
		}
		waits := func(r *http.Request, want time.Duration, when string) {
			begun := time.Now()
			if delay(r); time.Since(begun) != want {
				t.Errorf("%s: waited for %s, want %s", when, time.Since(begun), want)
			}
		}
		direct := request(nil)
		gone, leave := context.WithCancel(direct.Context())
		leave()
		waits(direct, holdFor, "a client")
		waits(direct.WithContext(gone), 0, "a client that is gone")
		waits(request(map[string]any{caddyhttp.TrustedProxyVarKey: true}), 0, "a trusted proxy")
		for range maxHeld {
			go delay(direct)
		}
		synctest.Wait()
		waits(direct, 0, "one too many")
		time.Sleep(holdFor)
		synctest.Wait()
		waits(direct, holdFor, "later")
	})
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	s, _, user := withUpstream(t, guarded("throttle 5 1h", "realm x", ""))
	wrong := credentials{user.id, testkit.Altered(user.secret)}
	bodies := make(map[string]bool)
	for i := range 9 {
		who := wrong
		if i >= 7 {
			who = credentials{"unknown" + strconv.Itoa(i), "x"} // from the same address
		}
		got := s.get("/x", who)
		want := 401
		if i >= 5 {
			want = 429
			bodies[got.body] = true
			if retry, err := strconv.Atoi(got.Header.Get("Retry-After")); err != nil || retry < 700 || retry > 721 {
				t.Errorf("attempt %d: Retry-After %q", i, got.Header.Get("Retry-After"))
			}
			if got.Header.Get("Www-Authenticate") != "" {
				t.Errorf("attempt %d: a challenge beside 429", i)
			}
		}
		if got.StatusCode != want {
			t.Errorf("attempt %d: got %d, want %d", i, got.StatusCode, want)
		}
	}
	if len(bodies) != 1 {
		t.Errorf("got %d different bodies, want one for every reason", len(bodies))
	}
	if got := s.get("/x", user).StatusCode; got != 200 {
		t.Errorf("the right secret: got %d, want 200", got)
	}
	if got := s.get("/x", credentials{}).StatusCode; got != 401 {
		t.Errorf("no credential is no failure: got %d, want 401", got)
	}
	metrics := s.do("GET", "CADDY_PORT", "/metrics", credentials{}, "").body
	for _, line := range []string{
		`caddy_service_users_requests_total{outcome="bad_checksum"} 5`, `caddy_service_users_requests_total{outcome="throttled"} 4`,
		`caddy_service_users_store_up 1`, `caddy_service_users_revision 2`, `caddy_service_users_panics_total 0`,
		`caddy_service_users_requests_total{outcome="granted"} 1`, `caddy_service_users_requests_total{outcome="no_credential"} 1`,
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics have no line %q", line)
		}
	}
	if !strings.Contains(s.log.String(), `"msg":"authentication failed","client_ip":"127.0.0.1","reason":"bad_checksum","login":"`+user.id+`"`) {
		t.Error("the log has no line in the form that log watchers read")
	}

	off, _, _ := withUpstream(t, guarded("throttle off", "realm x", ""))
	for i := range 40 {
		if got := off.get("/x", credentials{"a", "x"}).StatusCode; got != 401 {
			t.Fatalf("switched off, attempt %d: got %d, want 401", i, got)
		}
	}
}

// TestThrottleSurvivesReload checks that a reload is no amnesty.
func TestThrottleSurvivesReload(t *testing.T) {
	t.Parallel()
	caddyfile := guarded("throttle 3 1h", "realm one", "")
	s, _, _ := withUpstream(t, caddyfile)
	for range 4 {
		s.get("/x", credentials{"a", "x"})
	}
	if out, ok := s.reload(strings.Replace(caddyfile, "realm one", "realm two", 1)); !ok {
		t.Fatal(out)
	}
	if got := s.get("/x", credentials{"a", "x"}).StatusCode; got != 429 {
		t.Errorf("after a reload: got %d, want 429", got)
	}
}

// TestPlaintext checks which requests count as readable on their way.
func TestPlaintext(t *testing.T) {
	for name, tt := range map[string]struct {
		peer    string
		tls     bool
		trusted bool
		proto   string
		client  string // behind the proxy
		want    bool
	}{
		"another machine":              {peer: "192.0.2.1:1", want: false},
		"another machine, encrypted":   {peer: "192.0.2.1:1", tls: true, want: true},
		"a claim of nobody we trust":   {peer: "192.0.2.1:1", proto: "https", want: false},
		"a trusted proxy, encrypted":   {peer: "192.0.2.1:1", trusted: true, proto: "https", want: true},
		"a trusted proxy, unencrypted": {peer: "192.0.2.1:1", trusted: true, proto: "http", want: false},
		"this machine":                 {peer: "127.0.0.1:1", want: true},
		"this machine, IPv6":           {peer: "[::1]:1", want: true},
		"this machine, mapped":         {peer: "[::ffff:127.0.0.1]:1", want: true},
		"a Unix socket":                {peer: "@", want: true},

		"a proxy on this machine, encrypted":         {peer: "127.0.0.1:1", trusted: true, proto: "https", client: "192.0.2.7", want: true},
		"a proxy on this machine, unencrypted":       {peer: "127.0.0.1:1", trusted: true, proto: "http", client: "192.0.2.7", want: false},
		"a proxy on this machine, of another scheme": {peer: "127.0.0.1:1", trusted: true, proto: "wss", client: "192.0.2.7", want: true},
		"a proxy on this machine that does not say":  {peer: "127.0.0.1:1", trusted: true, client: "192.0.2.7", want: true},
		"a proxy and a client on this machine":       {peer: "127.0.0.1:1", trusted: true, proto: "http", client: "127.0.0.9", want: true},
		"a proxy that names no client":               {peer: "127.0.0.1:1", trusted: true, proto: "http", client: "127.0.0.1", want: true},
		"a claim on this machine of nobody we trust": {peer: "127.0.0.1:1", proto: "http", client: "127.0.0.1", want: true},
		"a proxy at a Unix socket, unencrypted":      {peer: "@", trusted: true, proto: "http", client: "192.0.2.7", want: false},
		"a proxy at a Unix socket that names nobody": {peer: "@", trusted: true, proto: "http", want: true},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.TLS = nil
		if tt.tls {
			r.TLS = new(tls.ConnectionState)
		}
		r.RemoteAddr = tt.peer
		r.Header.Set("X-Forwarded-Proto", tt.proto)
		r = prepared(r)
		caddyhttp.SetVar(r.Context(), caddyhttp.TrustedProxyVarKey, tt.trusted)
		client, _ := netip.ParseAddr(tt.client)
		if got := isPrivate(r, varsOf(r), client); got != tt.want {
			t.Errorf("%s: got %t, want %t", name, got, tt.want)
		}
	}
}

// prepared gives a request what Caddy's server would.
func prepared(r *http.Request) *http.Request {
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), httptest.NewRecorder(), nil)
}

// TestCannotDecide checks that a store which was never loaded is neither an
// answer nor a way in.
func TestCannotDecide(t *testing.T) {
	abandoned := make(chan struct{})
	close(abandoned)
	h := &Handler{
		Ready: "/ready", Public: []string{"GET /open"}, log: zap.NewNop(),
		storeHandle: storeHandle{shared: &shared{opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}, abandoned: abandoned},
	}
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, id, secret string
		want             int
	}{
		{"/x", "", "", 503}, {"/x", "a", "b", 503}, {"/ready", "", "", 503}, {"/%2e%2e/x", "a", "b", 400}, {"/open", "", "", 204},
	} {
		r := prepared(httptest.NewRequestWithContext(t.Context(), "GET", tt.path, nil))
		if tt.id != "" {
			r.SetBasicAuth(tt.id, tt.secret)
		}
		w := httptest.NewRecorder()
		err := h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}))
		if err != nil || w.Code != tt.want {
			t.Errorf("%s as %q: got %d, %v, want %d", tt.path, tt.id, w.Code, err, tt.want)
		}
		if tt.want == 503 && tt.path == "/x" && w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", tt.path)
		}
	}
}

// TestRequireTLS checks the refusal of an unencrypted credential.
func TestRequireTLS(t *testing.T) {
	live := &shared{path: filepath.Join(t.TempDir(), "s.db"), opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}
	if err := live.start(); err != nil {
		t.Fatal(err)
	}
	defer live.Destruct()
	for requireTLS, want := range map[bool]int{true: 400, false: 401} {
		h := &Handler{RequireTLS: requireTLS, storeHandle: storeHandle{shared: live}, log: zap.NewNop()}
		if err := h.prepare(); err != nil {
			t.Fatal(err)
		}
		r := prepared(httptest.NewRequestWithContext(context.Background(), "GET", "/x", nil))
		r.RemoteAddr = "192.0.2.1:1"
		r.SetBasicAuth("a", "b")
		w := httptest.NewRecorder()
		if err := h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })); err != nil {
			t.Fatal(err)
		}
		if w.Code != want {
			t.Errorf("require_tls %t: got %d, want %d", requireTLS, w.Code, want)
		}
	}
}

// TestStale checks that nothing is decided on a directory that is too old, and that
// everything is again when the store is back.
func TestStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	live := &shared{path: path, opts: store.Options{Log: zap.NewNop(), MaxStaleness: time.Second}, ready: make(chan struct{})}
	if err := live.start(); err != nil {
		t.Fatal(err)
	}
	defer live.Destruct()
	h := &Handler{Ready: "/ready", Public: []string{"GET /open"}, storeHandle: storeHandle{shared: live}, log: zap.NewNop()}
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	answers := func() (list [4]int) {
		for i, target := range []string{"/x", "/ready", "/open"} {
			r := prepared(httptest.NewRequestWithContext(t.Context(), "GET", target, nil))
			if target == "/x" {
				r.SetBasicAuth("a", "b")
			}
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })); err != nil {
				t.Fatal(err)
			}
			list[i] = w.Code
		}
		w := httptest.NewRecorder()
		door := &SiteDoor{storeHandle: storeHandle{shared: live}, log: zap.NewNop(), origin: http.NewCrossOriginProtection()}
		if err := door.ServeHTTP(w, prepared(httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", nil)), nil); err != nil {
			t.Fatal(err)
		}
		list[3] = w.Code
		return list
	}
	become := func(want [4]int) {
		t.Helper()
		var got [4]int
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if got = answers(); got == want {
				return
			}
		}
		t.Errorf("/x, /ready, /open and the door's /readyz: got %v, want %v", got, want)
	}
	if err := os.Rename(path, path+".aside"); err != nil {
		t.Fatal(err)
	}
	become([4]int{503, 503, 200, 503})
	if err := os.Rename(path+".aside", path); err != nil {
		t.Fatal(err)
	}
	become([4]int{401, 200, 200, 200})
}

// TestDoubtfulPlace checks that the log tells of a store that will not stay, and of
// one that others may open by another name.
func TestDoubtfulPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	warnings := func() *observer.ObservedLogs {
		core, logs := observer.New(zap.WarnLevel)
		live := &shared{path: path, opts: store.Options{Log: zap.New(core)}, ready: make(chan struct{})}
		if err := live.start(); err != nil {
			t.Fatal(err)
		}
		live.Destruct()
		return logs.FilterMessage("the store is on unsuitable storage")
	}
	logs := warnings()
	doubts, err := store.StorageWarnings(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := logs.Len(); got != len(doubts) {
		t.Errorf("got %d warnings, want %q", got, doubts)
	}
	for _, doubt := range doubts {
		if logs.FilterField(zap.String("why", doubt)).Len() != 1 {
			t.Errorf("no warning %q", doubt)
		}
	}
	if runtime.GOOS != "linux" {
		return
	}
	if err := os.Link(path, path+"-too"); err != nil {
		t.Fatal(err)
	}
	if got := warnings().Len(); got != len(doubts)+1 {
		t.Errorf("with a hard link: got %d warnings, want %d", got, len(doubts)+1)
	}
}

// TestExpiredStaysExpired checks that requests are judged by the clock of the store:
// here that of the machine was an hour ahead before the last restart.
func TestExpiredStaysExpired(t *testing.T) {
	path, ctx := filepath.Join(t.TempDir(), "s.db"), t.Context()
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s, err := store.Open(ctx, path, store.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	u, lasting, err := s.CreateServiceUser(ctx, store.Local, store.ServiceUser{Profile: access.Profile{Name: "a", Active: true}}, &store.Token{})
	if err != nil {
		t.Fatal(err)
	}
	ending, err := s.CreateToken(ctx, store.Local, u.ID, store.Token{ExpiresAt: now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(time.Hour))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	live := &shared{path: path, opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}
	if err := live.start(); err != nil {
		t.Fatal(err)
	}
	defer live.Destruct()
	h := &Handler{storeHandle: storeHandle{shared: live}, log: zap.NewNop()}
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	r := prepared(httptest.NewRequestWithContext(ctx, "GET", "/x", nil))
	rq := request{r: r, vars: varsOf(r)}
	rq.use(live.live.Load())
	if got, least := rq.action.Now, time.Now().Add(59*time.Minute).Unix(); got < least {
		t.Errorf("the time that conditions see: got %d, want at least %d", got, least)
	}
	for secret, want := range map[string]int{lasting.Secret: 403, ending.Secret: 401} {
		r := prepared(httptest.NewRequestWithContext(ctx, "GET", "/x", nil))
		r.SetBasicAuth(u.ID, secret)
		w := httptest.NewRecorder()
		if err := h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })); err != nil {
			t.Fatal(err)
		}
		if w.Code != want {
			t.Errorf("got %d, want %d", w.Code, want)
		}
	}
}
