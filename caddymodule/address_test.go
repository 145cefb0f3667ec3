package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"pgregory.net/rapid"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// addressesCaddyfile guards one upstream by sites that a proxy at 127.0.0.2 reaches
// in several ways.
const addressesCaddyfile = `
{
	servers 127.0.0.1:{$API_PORT} {
		trusted_proxies static 127.0.0.2/31
	}
	servers 127.0.0.1:{$PROXY_PORT} {
		trusted_proxies static 127.0.0.2/31
		listener_wrappers {
			proxy_protocol {
				allow 127.0.0.0/8
			}
		}
	}
	servers unix/{$SOCKET} {
		trusted_proxies static 127.0.0.2/31
		trusted_proxies_unix
	}
	servers 127.0.0.1:{$CHAIN_PORT} {
		trusted_proxies static 127.0.0.2/31
		client_ip_headers X-None X-Chain X-Forwarded-For
	}
	servers 127.0.0.1:{$STRICT_PORT} {
		trusted_proxies static 127.0.0.2/31
		trusted_proxies_strict
	}
	servers 127.0.0.1:{$ADMIN_PORT} {
		trusted_proxies static 127.0.0.2/31
	}
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle 5 1h
	}
}

(site) {
	service_users {
		self /_self
		public GET /open when request.remote_ip == '10.1.1.1'
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$API_PORT}, http://:{$PROXY_PORT}, http://:{$CHAIN_PORT}, http://:{$STRICT_PORT} {
	bind 127.0.0.1
	import site
}

http://socket.example {
	bind unix/{$SOCKET}
	import site
}

http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	service_users_admin
}
`

func startAddresses(t *testing.T, caddyfile string) (*server, *recorder) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip("needs the addresses 127.0.0.0/8, which Linux has")
	}
	l.Close()
	s := newServer(t)
	s.moreports("PROXY_PORT", "CHAIN_PORT", "STRICT_PORT")
	s.ports["SOCKET"] = filepath.Join(s.dir, "api.sock")
	s.env = append(s.env, "SOCKET="+s.ports["SOCKET"])
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	return withCaddyfile(s, caddyfile), up
}

// dialFrom returns a function that connects to one place from an address.
func dialFrom(network, from, to string) func(context.Context, string, string) (net.Conn, error) {
	d := new(net.Dialer)
	if network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, network, to) }
}

// afterPreface lets each connection begin with a header of the PROXY protocol.
func afterPreface(line string, dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, to string) (net.Conn, error) {
		conn, err := dial(ctx, network, to)
		if err == nil {
			_, err = io.WriteString(conn, line+"\r\n")
		}
		return conn, err
	}
}

// startAppendingProxy starts a proxy that appends the address of its client to
// X-Forwarded-For and to X-Chain. It returns its address.
func startAppendingProxy(t *testing.T, dial func(context.Context, string, string) (net.Conn, error)) string {
	t.Helper()
	to := must(url.Parse("http://socket.example"))
	proxy := &httputil.ReverseProxy{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
		r.SetXForwarded() // it appends
		client := must(netip.ParseAddrPort(r.In.RemoteAddr)).Addr().String()
		r.Out.Header.Set("X-Chain", strings.Join(append(r.In.Header.Values("X-Chain"), client), ", "))
	}}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// askFrom sends one request from an address.
func askFrom(t *testing.T, from, to, method, path string, c credentials, body string, header ...string) *response {
	t.Helper()
	r := must(http.NewRequestWithContext(t.Context(), method, "http://"+to+path, strings.NewReader(body)))
	if c.id != "" {
		r.SetBasicAuth(c.id, c.secret)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	transport := &http.Transport{DialContext: dialFrom("tcp", from, to), DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return &response{resp, string(must(io.ReadAll(resp.Body)))}
}

// TestAppendingProxy stands behind a proxy that appends the client's address, as
// most do, and without trusted_proxies_strict: nowhere is an address believed that
// the client has written.
func TestAppendingProxy(t *testing.T) {
	t.Parallel()
	s, up := startAddresses(t, addressesCaddyfile)
	ban := fail2ban(t)
	s.mustCLI("group", "create", "callers", "--rule", "allow GET /near when cidr('127.0.0.0/8').containsIP(request.remote_ip)",
		"--rule", "allow GET /far when request.remote_ip == '10.1.1.1'", "--rule", "allow GET /x")
	forged := []string{"X-Forwarded-For: 10.1.1.1", "X-Chain: 10.1.1.1", "X-Real-IP: 10.1.1.1", "x_real_ip: 10.1.1.1"}
	from := "127.0.0.2" // the proxy
	doors := map[string]func(context.Context, string, string) (net.Conn, error){
		"TCP":               dialFrom("tcp", from, s.addr("API_PORT")),
		"PROXY protocol":    afterPreface("PROXY TCP4 127.0.0.2 127.0.0.1 1234 80", dialFrom("tcp", "127.0.0.1", s.addr("PROXY_PORT"))),
		"Unix socket":       dialFrom("unix", "", s.ports["SOCKET"]),
		"client_ip_headers": dialFrom("tcp", from, s.addr("CHAIN_PORT")),
		"strict":            dialFrom("tcp", from, s.addr("STRICT_PORT")),
	}
	names := []string{"TCP", "PROXY protocol", "Unix socket", "client_ip_headers", "strict"}
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			proxy := startAppendingProxy(t, doors[name])
			net := fmt.Sprintf("127.0.%d.", 10+i)
			client := net + "5"
			word := strings.ReplaceAll(strings.ToLower(name), " ", "-")
			far := s.create("far-"+word, "--allowed-ip", "10.1.1.1", "--group", "callers")
			near := s.create("near-"+word, "--allowed-ip", client, "--group", "callers")

			up.reset()
			for _, tt := range []struct {
				what, from, path string
				who              credentials
				want             int
			}{
				{"allowed_ips of another", client, "/x", far, 401},
				{"allowed_ips of its own", client, "/x", near, 200},
				{"allowed_ips of a neighbour", net + "6", "/x", near, 401},
				{"a condition that holds", client, "/near", near, 200},
				{"a condition on the forged address", client, "/far", near, 403},
				{"a public condition on the forged address", client, "/open", credentials{}, 401},
			} {
				if got := askFrom(t, tt.from, proxy, "GET", tt.path, tt.who, "", forged...); got.StatusCode != tt.want {
					t.Errorf("%s: got %d, want %d", tt.what, got.StatusCode, tt.want)
				}
			}
			seen := up.requests()
			for _, raw := range seen {
				if strings.Count(strings.ToLower(raw), "real") != 1 || !strings.Contains(raw, "\r\nX-Real-Ip: "+client+"\r\n") {
					t.Errorf("the upstream got %q, want one X-Real-IP, %s", raw, client)
				}
			}
			if len(seen) != 2 {
				t.Errorf("the upstream got %d requests, want 2", len(seen))
			}
			for path, want := range map[string]string{"/near": `{"allowed":true,"answer":"allowed"}`, "/far": `{"allowed":false,"answer":"no_rule"}`} {
				if got := askFrom(t, client, proxy, "POST", "/_self/can", near, `{"method":"GET","path":"`+path+`"}`, append(forged, "Content-Type: application/json")...); strings.TrimSpace(got.body) != want {
					t.Errorf("can %s: got %s, want %s", path, got.body, want)
				}
			}
			if got, want := s.usedFrom(near), []string{client}; !slices.Equal(got, want) {
				t.Errorf("its token was used from %q, want %q", got, want)
			}

			// A client that changes the forged part with each guess is still one.
			guesser, before := net+"7", len(s.log.String())
			for attempt := range 8 {
				guess := credentials{fmt.Sprintf("nobody-%d-%d", i, attempt), "x"}
				want := 401
				if attempt >= 5 {
					want = 429
				}
				if got := askFrom(t, guesser, proxy, "GET", "/x", guess, "", fmt.Sprintf("X-Forwarded-For: 10.2.%d.%d", i, attempt)); got.StatusCode != want {
					t.Errorf("guess %d: got %d, want %d", attempt, got.StatusCode, want)
				}
			}
			// The log comes through a pipe, and its last lines may come after the answers.
			banned, lines := make(map[string]int), 0
			for deadline := time.Now().Add(time.Minute); lines < 8 && time.Now().Before(deadline); {
				banned, lines = make(map[string]int), 0
				for line := range strings.Lines(s.log.String()[before:]) {
					if address := ban(strings.TrimSuffix(line, "\n")); address != "" {
						banned[address]++
						lines++
					}
				}
			}
			if len(banned) != 1 || banned[guesser] != 8 {
				t.Errorf("fail2ban reads %v, want 8 failures of %s alone", banned, guesser)
			}
			if got := askFrom(t, net+"8", proxy, "GET", "/x", credentials{"nobody-else-" + word, "x"}, "").StatusCode; got != 401 {
				t.Errorf("another client's guess: got %d, want 401", got)
			}
		})
	}

	t.Run("admin API", func(t *testing.T) {
		proxy := startAppendingProxy(t, dialFrom("tcp", from, s.addr("ADMIN_PORT")))
		far := s.create("far-admin", "--allowed-ip", "10.1.1.1", "--role", "admin")
		near := s.create("near-admin", "--allowed-ip", "127.0.20.5", "--role", "admin")
		before := len(s.log.String())
		for who, want := range map[credentials]int{far: 401, near: 200} {
			if got := askFrom(t, "127.0.20.5", proxy, "GET", "/service_users", who, "", forged...).StatusCode; got != want {
				t.Errorf("got %d, want %d", got, want)
			}
		}
		for attempt := range 7 {
			want := 401
			if attempt >= 5 {
				want = 429
			}
			guess := credentials{fmt.Sprintf("nobody-admin-%d", attempt), "x"}
			if got := askFrom(t, "127.0.20.7", proxy, "GET", "/service_users", guess, "", fmt.Sprintf("X-Forwarded-For: 10.3.1.%d", attempt)); got.StatusCode != want {
				t.Errorf("guess %d: got %d, want %d", attempt, got.StatusCode, want)
			}
		}
		for line := range strings.Lines(s.log.String()[before:]) {
			if address := ban(strings.TrimSuffix(line, "\n")); address != "" && !strings.HasPrefix(address, "127.0.20.") {
				t.Errorf("fail2ban reads %s in %s", address, line)
			}
		}
		if got, want := s.usedFrom(near), []string{"127.0.20.5"}; !slices.Equal(got, want) {
			t.Errorf("its token was used from %q, want %q", got, want)
		}
	})

	// One warning a configuration names both addresses.
	warnings := func() (lines []string) {
		for line := range strings.Lines(s.log.String()) {
			if strings.Contains(line, "trusted_proxies_strict") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	got := warnings()
	if len(got) != 1 || !strings.Contains(got[0], `"level":"warn"`) || !strings.Contains(got[0], `"caddy_client_ip":"10.1.1.1"`) || !strings.Contains(got[0], `"client_ip":"127.0.10.5"`) {
		t.Errorf("got the warnings %q, want one with both addresses", got)
	}
	if out, ok := s.reload(strings.ReplaceAll(addressesCaddyfile, "self /_self", "realm again")); !ok {
		t.Fatal(out)
	}
	proxy := startAppendingProxy(t, doors["TCP"])
	for range 3 {
		askFrom(t, "127.0.10.9", proxy, "GET", "/x", credentials{}, "", forged...)
	}
	if got := warnings(); len(got) != 2 {
		t.Errorf("after a reload: got %d warnings, want 2", len(got))
	}
}

// usedFrom returns the addresses that the first token of a service user was used from.
func (s *server) usedFrom(c credentials) (addresses []string) {
	s.t.Helper()
	var list admin.TokenList
	text := s.mustCLI("token", "list", c.id, "--json")
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Tokens) != 1 {
		s.t.Fatalf("token list: %v: %s", err, text)
	}
	addresses = []string{list.Tokens[0].LastUsedIP}
	for _, used := range list.Tokens[0].UsedFrom {
		if !slices.Contains(addresses, used.Address) {
			addresses = append(addresses, used.Address)
		}
	}
	return addresses
}

// TestClientAddress reads the client's address, as the upstream gets it in
// X-Real-IP, from peers of each kind.
func TestClientAddress(t *testing.T) {
	s, up := startAddresses(t, strings.Replace(addressesCaddyfile, "throttle 5 1h", "throttle off", 1))
	s.mustCLI("group", "create", "everything", "--rule", "allow GET /{rest...}")
	user := s.create("billing-sync", "--group", "everything")
	placed := s.create("placed", "--group", "everything", "--allowed-ip", "0.0.0.0/0", "--allowed-ip", "::/0")
	proxied := func(line string) func(context.Context, string, string) (net.Conn, error) {
		return afterPreface(line, dialFrom("tcp", "127.0.0.1", s.addr("PROXY_PORT")))
	}
	trusted, untrusted := dialFrom("tcp", "127.0.0.2", s.addr("API_PORT")), dialFrom("tcp", "127.0.0.9", s.addr("API_PORT"))
	socket := dialFrom("unix", "", s.ports["SOCKET"])
	t.Chdir(t.TempDir())
	named := func(name string) func(context.Context, string, string) (net.Conn, error) { // a socket file that reads like an address
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			_ = os.Remove(name)
			d := net.Dialer{LocalAddr: &net.UnixAddr{Name: name, Net: "unix"}}
			return d.DialContext(ctx, "unix", s.ports["SOCKET"])
		}
	}
	hops := func(n int) string { return "X-Forwarded-For: 198.51.100.7" + strings.Repeat(", 127.0.0.3", n) }
	for _, tt := range []struct {
		name   string
		dial   func(context.Context, string, string) (net.Conn, error)
		header string
		want   string // "" is none
	}{
		{"a stranger", untrusted, "", "127.0.0.9"},
		{"a stranger that claims", untrusted, "X-Forwarded-For: 198.51.100.7", "127.0.0.9"},
		{"a trusted proxy itself", trusted, "", "127.0.0.2"},
		{"an empty list", trusted, "X-Forwarded-For: ", "127.0.0.2"},
		{"one address", trusted, "X-Forwarded-For: 198.51.100.7", "198.51.100.7"},
		{"two", trusted, "X-Forwarded-For: 10.1.1.1, 198.51.100.7", "198.51.100.7"},
		{"two fields", trusted, "X-Forwarded-For: 10.1.1.1\nX-Forwarded-For: 198.51.100.7", "198.51.100.7"},
		{"two proxies", trusted, "X-Forwarded-For: 10.1.1.1, 198.51.100.7, 127.0.0.3", "198.51.100.7"},
		{"proxies alone", trusted, "X-Forwarded-For: 127.0.0.3, 127.0.0.2", "127.0.0.2"},
		{"IPv6", trusted, "X-Forwarded-For: 10.1.1.1, 2001:db8::7", "2001:db8::7"},
		{"IPv4 written as IPv6", trusted, "X-Forwarded-For: 10.1.1.1, ::ffff:198.51.100.7", "198.51.100.7"},
		{"a zone", trusted, "X-Forwarded-For: 10.1.1.1, fe80::7%eth0", "fe80::7"},
		{"a port", trusted, "X-Forwarded-For: 10.1.1.1:80, 198.51.100.7:4711", "198.51.100.7"},
		{"no address", trusted, "X-Forwarded-For: unknown", "127.0.0.2"},
		{"another header", trusted, "X-Chain: 198.51.100.7\nForwarded: for=198.51.100.7\nCF-Connecting-IP: 198.51.100.7", "127.0.0.2"},
		{"as many proxies as are followed", trusted, hops(maxHops - 1), "198.51.100.7"},
		{"one more", trusted, hops(maxHops), ""},
		{"very many", trusted, hops(1000), ""},
		{"the first of several headers", dialFrom("tcp", "127.0.0.2", s.addr("CHAIN_PORT")), "X-Chain: 10.1.1.1, 198.51.100.7\nX-Forwarded-For: 10.2.2.2", "198.51.100.7"},
		{"the second of several headers", dialFrom("tcp", "127.0.0.2", s.addr("CHAIN_PORT")), "X-Chain: 127.0.0.3, x\nX-Forwarded-For: 10.2.2.2, 198.51.100.7", "198.51.100.7"},
		{"strict", dialFrom("tcp", "127.0.0.2", s.addr("STRICT_PORT")), "X-Forwarded-For: 10.1.1.1, ::ffff:198.51.100.7", "198.51.100.7"},
		{"PROXY protocol: a client", proxied("PROXY TCP4 198.51.100.7 127.0.0.1 1 80"), "X-Forwarded-For: 10.1.1.1", "198.51.100.7"},
		{"PROXY protocol: an IPv6 client", proxied("PROXY TCP6 2001:db8::7 ::1 1 80"), "X-Forwarded-For: 10.1.1.1", "2001:db8::7"},
		{"PROXY protocol: IPv4 written as IPv6", proxied("PROXY TCP6 ::ffff:198.51.100.7 ::1 1 80"), "", "198.51.100.7"},
		{"PROXY protocol: a trusted proxy", proxied("PROXY TCP4 127.0.0.3 127.0.0.1 1 80"), "X-Forwarded-For: 10.1.1.1, 198.51.100.7", "198.51.100.7"},
		{"PROXY protocol: unknown", proxied("PROXY UNKNOWN"), "X-Forwarded-For: 10.1.1.1", "127.0.0.1"},
		{"a Unix socket", socket, "", ""},
		{"a Unix socket and a chain", socket, "X-Forwarded-For: 10.1.1.1, 198.51.100.7", "198.51.100.7"},
		{"a Unix socket named like an address", named("10.1.1.1:80"), "", ""},
		{"a Unix socket named like a trusted proxy", named("127.0.0.2:80"), "X-Forwarded-For: 198.51.100.7", ""},
		{"a Unix socket and no address", socket, "X-Forwarded-For: unix:", ""},
	} {
		for who, status := range map[credentials]int{user: 200, placed: 200} {
			if who == placed && tt.want == "" {
				status = 401 // no address is in no list, not even in that of all
			}
			conn, err := tt.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			up.reset()
			request := "GET /v1/x HTTP/1.1\r\nHost: socket.example\r\nConnection: close\r\nX-Real-IP: 10.9.9.9\r\nX-Real-Ip: 10.8.8.8\r\nX.Real.IP: 10.7.7.7\r\nAuthorization: " + basic(who.id, who.secret) + "\r\n"
			if tt.header != "" {
				request += strings.ReplaceAll(tt.header, "\n", "\r\n") + "\r\n"
			}
			if got := exchangeOn(conn, request+"\r\n"); got != status {
				t.Errorf("%s: got %d, want %d", tt.name, got, status)
				continue
			}
			if status != 200 {
				continue
			}
			var got []string
			for line := range strings.SplitSeq(up.requests()[0], "\r\n") {
				if name, value, _ := strings.Cut(line, ": "); strings.Contains(strings.ToLower(name), "real") {
					got = append(got, name+": "+value)
				}
			}
			var want []string
			if tt.want != "" {
				want = []string{"X-Real-Ip: " + tt.want}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: the upstream got %q, want %q", tt.name, got, want)
			}
		}
	}

	up.reset()
	s.get("/v1/x", user)
	if got := up.requests(); len(got) != 1 || strings.Contains(strings.ToLower(got[0]), "real") {
		t.Errorf("without X-Real-IP: the upstream got %q, want none either", got)
	}
}

// twoServers provisions two servers that differ in trusted_proxies_strict alone.
func twoServers(t testing.TB, settings string) (lax, strict *caddyhttp.Server) {
	t.Helper()
	text := fmt.Sprintf(`{"apps": {"http": {"servers": {"lax": {%[1]s}, "strict": {%[1]s, "trusted_proxies_strict": 1}}}}}`, settings)
	config, cleanUp, err := sandboxed([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanUp)
	ctx, err := caddy.ProvisionContext(config)
	if err != nil {
		t.Fatal(err)
	}
	servers := must(ctx.App("http")).(*caddyhttp.App).Servers
	return servers["lax"], servers["strict"]
}

// addressOf returns the client's address of a request, and Caddy's client_ip.
func addressOf(h *storeHandle, r *http.Request, server *caddyhttp.Server) (ours netip.Addr, caddys string) {
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), nil, server)
	vars := varsOf(r)
	caddys, _ = vars[caddyhttp.ClientIPVarKey].(string)
	ours = h.clientAddress(r, vars)
	clear(r.Header) // a request has one address, whatever becomes of its header
	if again := h.clientAddress(r, vars); again != ours {
		return netip.Addr{}, fmt.Sprintf("%s, and %s the second time", ours, again)
	}
	return ours, caddys
}

// TestAddressIsThatOfStrictMode compares our reading of any chain with Caddy's own
// in strict mode.
func TestAddressIsThatOfStrictMode(t *testing.T) {
	type servers struct{ lax, strict *caddyhttp.Server }
	var all []servers
	for _, settings := range []string{
		`"client_ip_headers": ["X-Forwarded-For"]`,
		`"trusted_proxies": {"source": "static", "ranges": ["10.0.0.0/8", "2001:db8::/32", "::ffff:192.0.2.0/120", "fe80::/10"]}`,
		`"trusted_proxies": {"source": "static", "ranges": ["192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/8", "127.0.0.1/8", "fd00::/8", "::1"]}, "trusted_proxies_unix": true`,
		`"trusted_proxies_unix": true`,
		`"trusted_proxies": {"source": "static", "ranges": ["0.0.0.0/0", "::/0"]}, "client_ip_headers": ["X-Chain", "x-forwarded-for"]`,
		`"trusted_proxies": {"source": "static", "ranges": ["10.0.0.0/8"]}, "trusted_proxies_unix": true, "client_ip_headers": ["Cf-Connecting-Ip", "X-Chain", "X-Forwarded-For"]`,
	} {
		lax, strict := twoServers(t, settings)
		all = append(all, servers{lax, strict})
	}
	core, logs := observer.New(zap.WarnLevel)
	h := &storeHandle{shared: &shared{opts: store.Options{Log: zap.New(core)}}, warnOfAddress: new(sync.Once)}
	entry := rapid.SampledFrom([]string{
		"10.1.1.1", "10.1.1.2", "192.168.1.1", "127.0.0.1", "203.0.113.5", "198.51.100.7", "192.0.2.1", "::ffff:192.0.2.1", "::ffff:10.1.1.1", "::ffff:203.0.113.5", "2001:db8::1",
		"2001:4860::5", "fe80::1", "fe80::1%eth0", "10.1.1.1%x", "10.1.1.1:80", "203.0.113.5:80", "[2001:db8::1]:80", "[2001:4860::5]:80", "[2001:4860::5]", "2001:4860::5:80",
		"203.0.113.5:http", ":80", "", "unknown", "unix:", "@", "_hidden", "10.1.1", "010.1.1.1", "10.1.1.1/8", `"10.1.1.1"`, "for=10.1.1.1", "10.1.1.1;10.1.1.2", "0.0.0.0", "::",
	})
	spaced := rapid.Custom(func(t *rapid.T) string {
		space := rapid.SampledFrom([]string{"", "", " ", "\t", "  "})
		return space.Draw(t, "before") + entry.Draw(t, "entry") + space.Draw(t, "after")
	})
	list := rapid.Map(rapid.SliceOfN(spaced, 0, 5), func(entries []string) string { return strings.Join(entries, ",") })
	peers := rapid.SampledFrom([]string{"10.0.0.1:1", "192.168.0.1:1", "203.0.113.9:1", "[2001:db8::9]:1", "[fe80::9%eth0]:1", "[::ffff:10.0.0.1]:1", "[::ffff:192.0.2.9]:1", "127.0.0.1:1", "@", "", "/run/x.sock"})
	differ := 0
	rapid.Check(t, func(t *rapid.T) {
		pair := rapid.SampledFrom(all).Draw(t, "servers")
		header := make(http.Header)
		for _, name := range []string{"X-Forwarded-For", "X-Chain", "Cf-Connecting-Ip"} {
			if values := rapid.SliceOfN(list, 0, 2).Draw(t, name); len(values) > 0 {
				header[name] = values
			}
		}
		request := func() *http.Request {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr, r.Header = peers.Draw(t, "peer"), header.Clone()
			return r
		}
		r := request()
		again := r.Clone(r.Context())
		got, caddys := addressOf(h, r, pair.lax)
		strict, text := addressOf(h, again, pair.strict)
		want, _ := netip.ParseAddr(text)
		if want = want.Unmap(); got != want || strict != want {
			t.Fatalf("%q from %q: got %s, and %s in strict mode, want %s", header, r.RemoteAddr, got, strict, want)
		}
		if caddys != text {
			differ++
		}
	})
	if differ == 0 {
		t.Error("no request has another client_ip without strict mode")
	}
	if logs.Len() != 1 {
		t.Errorf("got %d warnings, want 1", logs.Len())
	}
}

// BenchmarkClientAddress is the cost of a request's address.
func BenchmarkClientAddress(b *testing.B) {
	lax, strict := twoServers(b, `"trusted_proxies": {"source": "static", "ranges": ["10.0.0.0/8"]}`)
	h := &storeHandle{shared: &shared{opts: store.Options{Log: zap.NewNop()}}, warnOfAddress: new(sync.Once)}
	for _, tt := range []struct {
		name, peer, chain string
		server            *caddyhttp.Server
	}{
		{"direct", "203.0.113.5:1", "", lax},
		{"strict", "10.0.0.1:1", "203.0.113.5", strict},
		{"behind a proxy", "10.0.0.1:1", "203.0.113.5", lax},
		{"behind two", "10.0.0.1:1", "203.0.113.5, 10.0.0.2", lax},
		{"too many", "10.0.0.1:1", strings.Repeat("10.0.0.2, ", 100), lax},
	} {
		b.Run(tt.name, func(b *testing.B) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tt.peer
			r.Header.Set("X-Forwarded-For", tt.chain)
			r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), nil, tt.server)
			vars := varsOf(r)
			b.ReportAllocs()
			for b.Loop() {
				delete(vars, addressVar)
				h.clientAddress(r, vars)
			}
		})
	}
}
