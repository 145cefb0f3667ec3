package caddymodule

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

const proxyCaddyfile = `
{
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
`

// TestHostileHeaders sends every header of testdata/headers.tsv through a real
// Caddy to an upstream that keeps the raw bytes. Whatever is sent, the upstream
// gets exactly one of each identity header, with our value, or no request.
func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	throughBoth(t, testHostileHeaders)
}

func testHostileHeaders(t *testing.T, proxy func(string) string) {
	s := newServer(t)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	s = withCaddyfile(s, proxy(proxyCaddyfile))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")

	rows := 0
	for _, row := range caseRows(t, "headers.tsv") {
		lines := row.value
		if strings.HasPrefix(lines, "@h2 ") {
			continue
		}
		rows++
		request := "GET /v1/x HTTP/1.1\r\nHost: app.example\r\n"
		if !strings.Contains(lines, "Authorization: Basic c3Zj") {
			request += "Authorization: " + basic(user.id, user.secret) + "\r\n"
		}
		if trailer, ok := strings.CutPrefix(lines, "@trailer "); ok {
			request = strings.Replace(request, "GET", "POST", 1)
			if !strings.Contains(request, "Authorization") {
				request += "Authorization: " + basic(user.id, user.secret) + "\r\n"
			}
			name, _, _ := strings.Cut(trailer, ":")
			request += "Transfer-Encoding: chunked\r\nTrailer: " + name + "\r\n\r\n3\r\nabc\r\n0\r\n" + trailer + "\r\nX-Service-User-Role: admin\r\n\r\n"
		} else {
			request += lines + "\r\n\r\n"
			if strings.Contains(lines, "chunked") {
				request += "0\r\n\r\n"
			}
		}
		up.reset()
		status := exchange(t, s.addr("API_PORT"), request)
		got := up.requests()
		switch {
		case len(got) == 0 && status < 400:
			t.Errorf("%q: status %d without a request upstream", lines, status)
		case len(got) == 0 && status >= 500:
			t.Errorf("%q: status %d", lines, status)
		case len(got) > 1:
			t.Errorf("%q: %d requests upstream", lines, len(got))
		case len(got) == 1:
			checkUpstream(t, lines, got[0], user.id)
		}
		if strings.Contains(row.want, "the request at all") && len(got) != 0 {
			t.Errorf("%q: reached the upstream: %q", lines, got[0])
		}
	}
	if rows < 50 {
		t.Errorf("ran %d rows, want at least 50", rows)
	}
}

// checkUpstream checks the raw bytes that an upstream received.
func checkUpstream(t *testing.T, sent, raw, id string) {
	t.Helper()
	identity := make(map[string][]string)
	head, body, _ := strings.Cut(raw, "\r\n\r\n")
	for _, line := range append(strings.Split(head, "\r\n")[1:], strings.Split(body, "\r\n")...) {
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			continue
		}
		switch folded := foldName(name); {
		case strings.HasPrefix(folded, "xserviceuser"):
			identity[name] = append(identity[name], value)
		case folded == "authorization", folded == "proxyauthorization", folded == "connection", folded == "proxyconnection", folded == "keepalive", folded == "upgrade":
			t.Errorf("%q: the upstream got %s", sent, line)
		}
		for _, spoof := range []string{"evil", "6.6.6.6", "/admin/x", "DELETE"} {
			if strings.Contains(value, spoof) && !strings.HasPrefix(sent, "A: b") {
				t.Errorf("%q: the upstream got %s", sent, line)
			}
		}
		if value == "admin" {
			t.Errorf("%q: the upstream got %s", sent, line)
		}
	}
	want := map[string]string{"X-Service-User-Id": id, "X-Service-User-Name": "billing-sync", "X-Service-User-Groups": "readers"}
	if len(identity) != len(want) {
		t.Errorf("%q: the upstream got the identity %q, want %q", sent, identity, want)
	}
	for name, value := range want {
		if got := identity[name]; len(got) != 1 || got[0] != value {
			t.Errorf("%q: the upstream got %s %q, want exactly %q", sent, name, got, value)
		}
	}
}

// TestWebSocketUpgrade checks that only an exact WebSocket handshake keeps its
// Upgrade, with the identity beside it.
func TestWebSocketUpgrade(t *testing.T) {
	t.Parallel()
	throughBoth(t, testWebSocketUpgrade)
}

func testWebSocketUpgrade(t *testing.T, proxy func(string) string) {
	s := newServer(t)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	s = withCaddyfile(s, proxy(proxyCaddyfile))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	for lines, want := range map[string]bool{
		"Connection: Upgrade\r\nUpgrade: websocket":                                        true,
		"Connection: keep-alive, upgrade, X-Service-User-Id\r\nUpgrade: WebSocket":         true,
		"Connection: Upgrade\r\nUpgrade: h2c":                                              false,
		"Connection: Upgrade\r\nUpgrade: websocket, h2c":                                   false,
		"Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c":                        false,
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA":      false,
		"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0":                   true,
		"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\n":           false,
		"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n0": false,
		"Upgrade: websocket": false,
	} {
		up.reset()
		exchange(t, s.addr("API_PORT"), "GET /v1/x HTTP/1.1\r\nHost: app.example\r\nAuthorization: "+basic(user.id, user.secret)+"\r\n"+lines+"\r\n\r\n")
		got := up.requests()
		if len(got) != 1 {
			t.Errorf("%q: %d requests upstream, want 1", lines, len(got))
			continue
		}
		if upgrades := strings.Contains(got[0], "Upgrade: websocket"); upgrades != want || strings.Contains(got[0], "h2c") {
			t.Errorf("%q: upgrade passed: %t, want %t: %q", lines, upgrades, want, got[0])
		}
		if n := strings.Count(got[0], "\r\nX-Service-User-Id: "+user.id); n != 1 {
			t.Errorf("%q: %d identities upstream, want 1", lines, n)
		}
	}
}

// TestUpgradeAndTrailers: only the GET of a WebSocket keeps Upgrade, and only "trailers" stays in TE.
func TestUpgradeAndTrailers(t *testing.T) {
	s := must(newSanitizer(defaultPrefix, nil, nil))
	for _, tt := range []struct{ method, te, upgrade, wantTE string }{
		{"GET", "trailers", "websocket", "trailers"},
		{"POST", "x", "", ""},
		{"POST", "TRAILERS", "", ""},
		{"PUT", "trailers, x", "", ""},
	} {
		r := httptest.NewRequest(tt.method, "/v1/x", nil)
		r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Te": {tt.te}}
		s.clean(r, false, netip.Addr{})
		if up, te := r.Header.Get("Upgrade"), r.Header.Get("Te"); up != tt.upgrade || te != tt.wantTE {
			t.Errorf("%s with TE %q: got Upgrade %q and TE %q, want %q and %q", tt.method, tt.te, up, te, tt.upgrade, tt.wantTE)
		}
	}
}

// TestRefusalHeaders: the connection of a CONNECT ends, and Retry-After is never 0.
func TestRefusalHeaders(t *testing.T) {
	g := newGuard(t, Handler{})
	for _, tt := range []struct {
		method, name, want string
		refused            refusal
	}{
		{"CONNECT", "Connection", "close", refusal{status: http.StatusNotImplemented}},
		{"GET", "Connection", "", refusal{status: http.StatusBadRequest}},
		{"GET", "Retry-After", "1", refusal{status: http.StatusTooManyRequests, retryAfter: time.Millisecond}},
		{"GET", "Retry-After", "3", refusal{status: http.StatusTooManyRequests, retryAfter: 2500 * time.Millisecond}},
	} {
		r := prepared(httptest.NewRequest("GET", "/v1/x", nil))
		r.Method = tt.method
		varsOf(r)[caddyhttp.TrustedProxyVarKey] = true // so that the answer is not delayed
		w := httptest.NewRecorder()
		if err := g.h.refuse(w, r, tt.refused); err != nil {
			t.Fatal(err)
		}
		if got := w.Header().Get(tt.name); got != tt.want {
			t.Errorf("%s answered with %d: %s is %q, want %q", tt.method, tt.refused.status, tt.name, got, tt.want)
		}
	}
}

// TestHostileTargets sends every target of testdata/paths.tsv through a real
// Caddy: what is to be refused never reaches the upstream, and what passes
// arrives as it was sent.
func TestHostileTargets(t *testing.T) {
	t.Parallel()
	throughBoth(t, testHostileTargets)
}

func testHostileTargets(t *testing.T, proxy func(string) string) {
	s := newServer(t)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	s = withCaddyfile(s, proxy(proxyCaddyfile))
	s.mustCLI("group", "create", "everything", "--rule", "allow * /{rest...}", "--rule", "allow PROPFIND /{rest...}")
	user := s.create("billing-sync", "--group", "everything")

	rows := caseRows(t, "paths.tsv")
	for _, row := range rows {
		method, target := row.target()
		up.reset()
		status := exchange(t, s.addr("API_PORT"), method+" "+target+" HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\nAuthorization: "+basic(user.id, user.secret)+"\r\n\r\n")
		got := up.requests()
		if _, ok := strings.CutPrefix(row.want, "match="); ok {
			if status != 200 || len(got) != 1 || !strings.HasPrefix(got[0], method+" "+target+" HTTP/1.1\r\n") {
				t.Errorf("%s %q: got %d, upstream %q, want 200 and the target unchanged", method, target, status, got)
			}
			continue
		}
		if len(got) != 0 {
			t.Errorf("%s %q: reached the upstream: %q", method, target, got)
		}
		if want, err := strconv.Atoi(row.want); err == nil && status != want {
			t.Errorf("%s %q: got %d, want %d", method, target, status, want)
		}
	}
	if len(rows) < 80 {
		t.Errorf("ran %d rows, want at least 80", len(rows))
	}
}

// TestHostileCredentials sends every value of testdata/basic.tsv through a real
// Caddy. None of them is a live token, so each is 400 or one and the same 401;
// the log tells a credential that could be read from one that could not.
func TestHostileCredentials(t *testing.T) {
	t.Parallel()
	throughBoth(t, testHostileCredentials)
}

func testHostileCredentials(t *testing.T, proxy func(string) string) {
	s := newServer(t)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxy(strings.Replace(proxyCaddyfile, "\n\t}\n}", "\n\t\tthrottle off\n\t}\n}", 1)))
	s.create("somebody", "--alias", "svc-1")

	rows, refusal := 0, ""
	for _, row := range caseRows(t, "basic.tsv") {
		value := row.value
		if strings.ContainsAny(value, "\r\n") {
			continue // cannot stand in a header field
		}
		rows++
		target, lines := "/v1/x", ""
		if userinfo, ok := strings.CutPrefix(value, "@userinfo "); ok {
			target = userinfo
		} else if value != "@none" {
			for _, field := range strings.Split(value, "\x1f") {
				lines += "Authorization: " + field + "\r\n"
			}
		}
		logged := len(s.log.String())
		conn, err := net.Dial("tcp", s.addr("API_PORT"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n"+lines+"\r\n"); err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(conn)
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := instant.ReplaceAllString(string(raw), "<time>")
		want := "HTTP/1.1 401 "
		if row.want == "400" {
			want = "HTTP/1.1 400 "
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %s", row.written, got, want)
			continue
		}
		if want == "HTTP/1.1 401 " {
			if refusal == "" {
				refusal = got
			}
			if got != refusal {
				t.Errorf("%s: got\n%s\nwant the same as for the others,\n%s", row.written, got, refusal)
			}
		}
		if accepted := strings.HasPrefix(row.want, "accept "); accepted && strings.Contains(s.log.String()[logged:], `"reason":"bad_credential"`) {
			t.Errorf("%s: taken for no credential at all", row.written)
		}
	}
	if rows < 40 || len(up.requests()) != 0 {
		t.Errorf("ran %d rows, want at least 40; %d requests upstream, want none", rows, len(up.requests()))
	}
}

// withCaddyfile starts a prepared server.
func withCaddyfile(s *server, caddyfile string) *server {
	s.t.Helper()
	if *leanEverywhere {
		caddyfile = lean(caddyfile)
	}
	path := s.dir + "/Caddyfile"
	if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.start(path)
	if s.ports["TLS_PORT"] != "" { // the certificate is made after the start
		if err := dialH3(s.t, s.addr("TLS_PORT")).CloseWithError(0, ""); err != nil {
			s.t.Fatal(err)
		}
	}
	return s
}

// exchange sends raw bytes and returns the status of the answer, 0 when the
// connection was closed without one.
func exchange(t *testing.T, addr, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return exchangeOn(conn, request)
}

// exchangeOn is exchange on a connection, which it closes.
func exchangeOn(conn net.Conn, request string) int {
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	return resp.StatusCode
}

// recorder is an upstream that keeps the raw bytes of every request.
type recorder struct {
	mu  sync.Mutex
	got []string
}

func startRecorder(t *testing.T, port string) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	up := new(recorder)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go up.serve(conn)
		}
	}()
	return up
}

func (up *recorder) serve(conn net.Conn) {
	defer conn.Close()
	var raw bytes.Buffer
	r := bufio.NewReader(io.TeeReader(conn, &raw))
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		up.mu.Lock()
		up.got = append(up.got, raw.String())
		up.mu.Unlock()
		raw.Reset()
		answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		if req.Method == http.MethodHead { // a body would be read as the next answer
			answer = strings.TrimSuffix(answer, "ok")
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

func (up *recorder) reset() {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.got = nil
}

func (up *recorder) requests() []string {
	up.mu.Lock()
	defer up.mu.Unlock()
	return append([]string{}, up.got...)
}

// Placeholders show the service user, and nothing of whom an authenticator before
// the handler, or one of our own before this one, has found.
func TestPlaceholdersOfAnotherUser(t *testing.T) {
	g := newGuard(t, Handler{})
	r := prepared(httptest.NewRequest("GET", "/v1/x", nil))
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	for _, word := range []string{"id", "name", "role", "teams", "groups", "token_id", "email"} {
		repl.Set("http.auth.user."+word, "another")
	}
	r.SetBasicAuth(g.reader.id, g.reader.secret)
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		got := repl.ReplaceAll("{http.auth.user.id} {http.auth.user.name} {http.auth.user.role} {http.auth.user.teams} {http.auth.user.groups} {http.auth.user.token_id} {http.auth.user.email}", "-")
		if !strings.HasPrefix(got, g.reader.id+" ") || strings.Contains(got, "another") {
			t.Errorf("got %q, want those of %s", got, g.reader.id)
		}
		return nil
	})
	for range 2 {
		repl.Set("http.auth.user.id", "another")
		if err := g.h.ServeHTTP(httptest.NewRecorder(), r, next); err != nil {
			t.Fatal(err)
		}
	}
}

// A handler behind this one may write any variable: there are no placeholders then.
func TestPlaceholdersOfNobody(t *testing.T) {
	g := newGuard(t, Handler{})
	r := prepared(httptest.NewRequest("GET", "/v1/x", nil))
	r.SetBasicAuth(g.reader.id, g.reader.secret)
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		for _, v := range []any{"another", nil} {
			caddyhttp.SetVar(r.Context(), identityVar, v)
			repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
			if got := repl.ReplaceAll("{http.auth.user.id} {http.service_users.decision}", "-"); got != "- -" {
				t.Errorf("with %v: got %q, want nothing", v, got)
			}
		}
		return nil
	})
	if err := g.h.ServeHTTP(httptest.NewRecorder(), r, next); err != nil {
		t.Fatal(err)
	}
}

// TestInterceptGetsNothing checks what an intercept before service_users can
// forward once the request has been answered, and refused: neither the secret nor
// a header that the client has forged.
func TestInterceptGetsNothing(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	s = withCaddyfile(s, strings.Replace(proxyCaddyfile, "\tservice_users\n\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}", `	route {
		intercept {
			@any status 200 401 403
			handle_response @any {
				header -Content-Length
				reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
			}
		}
		service_users
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}`, 1))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	for name, tt := range map[string]struct {
		path  string
		user  credentials
		times int // the upstream is asked
	}{
		"granted":     {"/v1/x", user, 2},
		"not allowed": {"/v2/x", user, 1},
		"nobody":      {"/v1/x", credentials{}, 1},
		"wrong":       {"/v1/x", credentials{user.id, testkit.Altered(user.secret)}, 1},
	} {
		up.reset()
		resp := s.get(tt.path, tt.user, "X-Service-User-Role: admin", "X_Service_User_Teams: all", "Proxy-Authorization: Basic eDp5")
		got := up.requests()
		if len(got) != tt.times {
			t.Errorf("%s: got %s %q, and the upstream %d requests, want %d: %q", name, resp.Status, resp.body, len(got), tt.times, got)
		}
		for _, request := range got {
			if folded := foldName(request); strings.Contains(folded, "authorization") || strings.Contains(folded, "role") || strings.Contains(folded, "teams") {
				t.Errorf("%s: the upstream got %q", name, request)
			}
		}
	}
}
