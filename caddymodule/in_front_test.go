package caddymodule

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// front is a proxy of examples in front of Caddy, with TLS for api.example.com.
type front struct {
	t    *testing.T
	addr string
	up   *standIn
}

// startFront runs the Caddyfile of an example and the program in front of it, each with its configuration from
// the example, but with other ports and files.
func startFront(t *testing.T, program, caddyfile, config string, replace ...string) (*server, *front) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + program)
	}
	if err != nil {
		testkit.Missing(t, "install the Debian package "+program+" to run this")
	}
	if l, err := net.Listen("tcp", "127.0.0.3:0"); err != nil {
		t.Skip("needs the addresses 127.0.0.0/8, which Linux has")
	} else {
		l.Close()
	}
	s := newServer(t)
	s.moreports("PROBE_PORT", "FRONT_PORT")
	streams := &backend{subs: make(map[chan string]struct{})}
	up := startStandIn(t, s.ports["UPSTREAM_PORT"], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/events" || r.URL.Path == "/v1/ws" {
			streams.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprintln(w, r.RequestURI, r.Header.Get("X-Service-User-Name"), r.Header.Get("X-Forwarded-Proto"))
	}))
	text := string(must(os.ReadFile("../examples/" + caddyfile)))
	withCaddyfile(s, strings.NewReplacer(
		"\tservice_users {\n\t\tstore", "\tskip_install_trust\n\tlocal_certs\n\tauto_https disable_redirects\n\tservice_users {\n\t\tstore",
		"shutdown_delay 10s", "shutdown_delay 1m").Replace(text))

	writeCertificate(t, s.dir)
	pairs := append(replace, "/etc/ssl/", s.dir+"/", "/etc/haproxy/", s.dir+"/",
		"127.0.0.1:8080", "127.0.0.1:"+s.ports["API_PORT"], "127.0.0.1:8443", "127.0.0.1:"+s.ports["API_PORT"],
		"port 8085", "port "+s.ports["PROBE_PORT"], "listen 443", "listen 127.0.0.1:"+s.ports["FRONT_PORT"],
		"bind :443", "bind 127.0.0.1:"+s.ports["FRONT_PORT"])
	conf := filepath.Join(s.dir, "front.conf")
	text = strings.NewReplacer(pairs...).Replace(string(must(os.ReadFile("../examples/" + config))))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-db", "-f", conf)
	if program == "nginx" {
		whole := "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {}\nhttp {\naccess_log off;\n"
		for _, word := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			whole += word + "_temp_path " + word + "_temp;\n"
		}
		if err := os.WriteFile(conf+".whole", []byte(whole+"include "+conf+";\n}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd = exec.Command(path, "-p", s.dir, "-e", "stderr", "-c", conf+".whole")
	}
	log := newLog(t)
	cmd.Stdout, cmd.Stderr = log.file, log.file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", program, log)
		}
	})
	f := &front{t, "127.0.0.1:" + s.ports["FRONT_PORT"], up}
	until(t, func() (any, bool) {
		conn, err := f.dial(t.Context(), "127.0.0.3") // Caddy makes its certificate after the start
		if err == nil {
			conn.Close()
		}
		return err, err == nil
	})
	return s, f
}

// writeCertificate makes a certificate for api.example.com, as nginx and HAProxy read it.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"api.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))})
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))})
	both := append(certificate, private...) // HAProxy wants both in one file, and nginx finds the part that it needs
	for _, name := range []string{"api.example.com.pem", "api.example.com.key"} {
		if err := os.WriteFile(filepath.Join(dir, name), both, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// dial connects from an address; protocols is empty for HTTP/1.1.
func (f *front) dial(ctx context.Context, from string, protocols ...string) (net.Conn, error) {
	config := &tls.Config{ServerName: "api.example.com", InsecureSkipVerify: true, NextProtos: protocols}
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, Config: config}
	conn, err := d.DialContext(ctx, "tcp", f.addr)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	return conn, err
}

// raw sends bytes from an address and returns the answer with its body.
func (f *front) raw(from, request string) *response {
	f.t.Helper()
	conn := must(f.dial(f.t.Context(), from))
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		f.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		f.t.Fatalf("%q: %v", request, err)
	}
	body, _ := io.ReadAll(resp.Body)
	return &response{resp, string(body)}
}

// request is a GET of a target; header holds "Name: value" lines.
func (c credentials) request(target string, header ...string) string {
	text := "GET " + target + " HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n"
	if c.id != "" {
		header = append(header, "Authorization: "+basic(c.id, c.secret))
	}
	return text + strings.Join(append(header, "", ""), "\r\n")
}

// TestInFront runs the examples for nginx and HAProxy, with the real programs. Through each of them the guard sees
// the address and the request of the client.
func TestInFront(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ name, program, caddyfile, config string }{
		{"nginx", "nginx", "nginx/Caddyfile", "nginx/nginx.conf"},
		{"HAProxy", "haproxy", "haproxy/Caddyfile", "haproxy/haproxy.cfg"},
		{"HAProxy with the PROXY protocol", "haproxy", "haproxy/proxy-protocol.Caddyfile", "haproxy/proxy-protocol.cfg"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, f := startFront(t, row.program, row.caddyfile, row.config,
				"inter 2s fall 3 rise 2", "inter 50ms fall 1 rise 1", "\ttimeout http-request", "\ttimeout check 10s\n\ttimeout http-request")
			s.mustCLI("group", "create", "callers", "--rule", "allow * /v1/{rest...}")
			here := s.create("here", "--allowed-ip", "127.0.0.3", "--group", "callers")
			other := s.create("other", "--group", "callers")

			// allowed_ips judge the client, and believe no header of it.
			forged := []string{"X-Forwarded-For: 127.0.0.3", "X-Real-IP: 127.0.0.3", "Forwarded: for=127.0.0.3", "X_Forwarded_For: 127.0.0.3",
				"X-Forwarded-Host: forged.example", "X-Forwarded-Port: 666", "X-Client-IP: 127.0.0.3", "X-SSL-Client-Verify: SUCCESS"}
			for _, tt := range []struct {
				from   string
				header []string
				want   int
			}{{"127.0.0.3", nil, 200}, {"127.0.0.3", forged, 200}, {"127.0.0.4", nil, 401}, {"127.0.0.4", forged, 401}, {"127.0.0.3", []string{"X-Forwarded-For: 127.0.0.4"}, 200}, {"127.0.0.1", forged, 401}} {
				got := f.raw(tt.from, here.request("/v1/x", tt.header...))
				if got.StatusCode != tt.want || tt.want == 200 && got.body != "/v1/x here https\n" {
					t.Errorf("from %s with %q: got %d %q, want %d", tt.from, tt.header, got.StatusCode, got.body, tt.want)
				}
				challenge := got.Header.Get("WWW-Authenticate")
				if tt.want == 401 && (!strings.HasPrefix(challenge, "Basic realm=") || !strings.Contains(got.body, "401")) {
					t.Errorf("a 401: got the challenge %q and the body %q", challenge, got.body)
				}
			}
			for _, h := range f.up.headers() {
				if got := h.Get("X-Forwarded-For"); !strings.HasPrefix(got, "127.0.0.3") || h.Get("Authorization") != "" {
					t.Errorf("the upstream got X-Forwarded-For %q and Authorization %q", got, h.Get("Authorization"))
				}
				for _, name := range []string{"Forwarded", "X-Forwarded-Port", "X-Client-Ip", "X-Ssl-Client-Verify"} {
					if got := h.Values(name); len(got) > 0 {
						t.Errorf("the upstream got %s %q of the client", name, got)
					}
				}
				if got := h.Values("X-Forwarded-Host"); len(got) != 1 || got[0] != "api.example.com" {
					t.Errorf("the upstream got X-Forwarded-Host %q", got)
				}
			}

			// The path of the client arrives as it was sent, or the request is refused.
			for target, want := range map[string]int{
				"/v1/%41?q=%2F": 200, "/v1/a/": 200, "/v1/~a:b@c": 200,
				"/v1//x": 400, "/v1/./x": 400, "/v1/../admin": 400, "/v1/%2e%2e/admin": 400, "/v1/a%2Fb": 400, "/v1/a;b": 400,
				"/v1/%252e": 400, "/v1/a%00": 400, "/v1/a%5cb": 400, "/v2/x": 403, "/V1/x": 403, "/v1/\xff": 400, "/v1/a#/b": 400,
				"http://api.example.com/v1/x": 0, "//api.example.com/v1/x": 400, "*": 400,
			} {
				got := f.raw("127.0.0.3", other.request(target))
				path := strings.TrimSuffix(got.body, " other https\n")
				if got.StatusCode != want && want != 0 || got.StatusCode == 200 && path != strings.TrimPrefix(target, "http://api.example.com") {
					t.Errorf("%q: got %d %q, want %d", target, got.StatusCode, got.body, want)
				}
			}
			f.up.headers()

			// A request that proxies could divide differently does not reach the connection of another client.
			for _, lines := range []string{
				"Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4", "Content-Length: 4\r\nTransfer-Encoding: xchunked",
				"Content-Length: 4\r\nTransfer-Encoding : chunked", "Content-Length: 4\r\nTransfer-Encoding:\vchunked", "Content-Length: 4\r\nContent-Length: 60",
				"Content-Length: 4\nTransfer-Encoding: chunked", "Content-Length: 4\r\nTransfer-Encoding: identity, chunked", "Content-Length: +4",
			} {
				conn := must(f.dial(t.Context(), "127.0.0.4"))
				_, _ = io.WriteString(conn, "POST /v1/x HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: "+basic(other.id, other.secret)+"\r\n"+lines+
					"\r\n\r\n0\r\n\r\nGET /v1/stolen HTTP/1.1\r\nHost: api.example.com\r\nX-Rest: ")
				for range 2 {
					if got := f.raw("127.0.0.3", here.request("/v1/victim")); got.StatusCode != 200 || got.body != "/v1/victim here https\n" {
						t.Errorf("after %q: another client got %d %q", lines, got.StatusCode, got.body)
					}
				}
				conn.Close()
			}
			for _, h := range f.up.headers() {
				if strings.Contains(fmt.Sprint(h), "Rest") {
					t.Errorf("the upstream got a smuggled request: %v", h)
				}
			}

			// HTTP/2, a WebSocket, a stream, and a refusal that does not wait for an upload.
			transport := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return f.dial(ctx, "127.0.0.3", "h2", "http/1.1")
			}}
			defer transport.CloseIdleConnections()
			r := must(http.NewRequestWithContext(t.Context(), "GET", "https://api.example.com/v1/%41", nil))
			r.SetBasicAuth(here.id, here.secret)
			resp := must(transport.RoundTrip(r))
			if body := must(io.ReadAll(resp.Body)); resp.ProtoMajor != 2 || string(body) != "/v1/%41 here https\n" {
				t.Errorf("HTTP/2: got %s %d %q", resp.Proto, resp.StatusCode, body)
			}
			conn := must(f.dial(t.Context(), "127.0.0.3"))
			defer conn.Close()
			handshake := strings.Replace(here.request("/v1/ws"), "Connection: close", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13", 1)
			_, _ = io.WriteString(conn, handshake)
			in := bufio.NewReader(conn)
			if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 {
				t.Errorf("a WebSocket: got %v, %v", resp, err)
			} else if _, err := conn.Write([]byte("\x81\x84\x00\x00\x00\x00echo")); err != nil || must(readFrame(in)) != "echo" {
				t.Errorf("a WebSocket brings no echo: %v", err)
			}
			events := must(f.dial(t.Context(), "127.0.0.3"))
			defer events.Close()
			_, _ = io.WriteString(events, here.request("/v1/events"))
			for got, buf := []byte(nil), make([]byte, 1024); !bytes.Contains(got, []byte("data: hello\n")); {
				n, err := events.Read(buf)
				if got = append(got, buf[:n]...); err != nil {
					t.Fatalf("an event stream: got %q, %v", got, err)
				}
			}
			upload := strings.Replace(credentials{}.request("/v1/x", "Content-Length: 1000000000"), "GET", "POST", 1)
			if got := f.raw("127.0.0.3", upload+"a part"); got.StatusCode != 401 {
				t.Errorf("an upload without a credential: got %d", got.StatusCode)
			}

			// A client around the proxy is not believed.
			around := must(dialFrom("tcp", "127.0.0.4", s.addr("API_PORT"))(t.Context(), "", ""))
			if strings.HasPrefix(row.config, "haproxy/proxy") {
				_, _ = io.WriteString(around, "PROXY TCP4 127.0.0.3 127.0.0.1 1234 443\r\n")
				around = tls.Client(around, &tls.Config{ServerName: "api.example.com", InsecureSkipVerify: true})
			}
			if got := exchangeOn(around, here.request("/v1/x", "X-Forwarded-For: 127.0.0.3", "X-Forwarded-Proto: https")); got != 401 && got != 400 {
				t.Errorf("around the proxy: got %d, want a refusal", got)
			}
			if row.config == "haproxy/haproxy.cfg" { // a gateway that ends gets no new requests, while it goes on with others
				if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				defer end(s)
				until(t, func() (any, bool) {
					got := f.raw("127.0.0.3", here.request("/v1/x"))
					return got.Status, got.StatusCode == 503 && !strings.Contains(got.Header.Get("Content-Type"), "problem")
				})
			}
		})
	}
}
