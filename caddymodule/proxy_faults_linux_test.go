//go:build linux

package caddymodule

import (
	"bufio"
	"cmp"
	goflag "flag" // flag is a function here
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var peers = goflag.Int("peers", 10, "how many bad upstreams and bad clients of each kind TestProxyBadPeers meets")

// peersCaddyfile has a guarded site for each proxy.
const peersCaddyfile = `
{
	skip_install_trust
	auto_https disable_redirects
	servers {
		protocols h1 h2 h2c h3
	}
	log {
		level FATAL
	}
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	service_users_proxy /down 127.0.0.1:{$DOWN_PORT}
	service_users_proxy /slow 127.0.0.1:{$UPSTREAM_PORT} {
		timeout 100ms
	}
	service_users_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

https://app.example:{$TLS_PORT} {
	bind 127.0.0.1
	tls internal
	service_users
	service_users_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$STOCK_PORT} {
	bind 127.0.0.1
	service_users
	reverse_proxy /down 127.0.0.1:{$DOWN_PORT}
	reverse_proxy /slow 127.0.0.1:{$UPSTREAM_PORT} {
		transport http {
			response_header_timeout 100ms
		}
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
`

// startPeers starts a Caddy with a Caddyfile like peersCaddyfile and an upstream. login is the begin of a
// request, behind the target.
func startPeers(t *testing.T, caddyfile string) (s *server, up *script, login string) {
	t.Helper()
	s, up = newServer(t), new(script)
	s.moreports("STOCK_PORT", "DOWN_PORT")
	if strings.Contains(caddyfile, "TLS_PORT") {
		s.moreports("TLS_PORT")
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+s.ports["UPSTREAM_PORT"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go up.accept(l)
	withCaddyfile(s, caddyfile)
	s.mustCLI("group", "create", "everything", "--rule", "allow * /{rest...}")
	user := s.create("billing-sync", "--group", "everything")
	return s, up, "HTTP/1.1\r\nHost: app.example\r\nAuthorization: " + basic(user.id, user.secret) + "\r\n"
}

// TestProxyBadPeers meets bad upstreams and bad clients. The answers are those of reverse_proxy, or better, and the
// process holds no more goroutines, connections and memory afterwards.
func TestProxyBadPeers(t *testing.T) {
	t.Parallel()
	s, up, login := startPeers(t, peersCaddyfile)

	// ask sends a request, reads the answer and returns its status and its end.
	ask := func(port, target, header string) string {
		conn, err := net.Dial("tcp", "127.0.0.1:"+s.ports[port])
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, "GET "+target+" "+login+header+"\r\n")
		for in := bufio.NewReader(conn); ; {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				return err.Error()
			}
			if resp.StatusCode == http.StatusEarlyHints {
				continue
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				return fmt.Sprint(resp.StatusCode, " ", err)
			}
			return fmt.Sprint(resp.StatusCode)
		}
	}
	upstreams := map[string]struct {
		target, answer, want string
		stock                string // "" means the same
		dose                 int    // 0 means all
	}{
		"down":       {target: "/down", want: "502"},
		"slow":       {target: "/slow", answer: "never", want: "504"},
		"hints":      {target: "/slow", answer: "hints forever", want: "504", dose: 2},
		"trailers":   {answer: "one trailer", want: "200"},
		"codings":    {answer: "two codings", want: "502"},
		"closes":     {answer: "closes", want: "502"},
		"early":      {answer: "short", want: "200 unexpected EOF"},
		"chunk":      {answer: "bad chunk", want: "200 unexpected EOF"},
		"status":     {answer: "bad status", want: "502"},
		"no status":  {answer: "no status", want: "502"},
		"two":        {answer: "other twice", want: "502"},
		"switched":   {answer: "switched", want: "502", stock: "200"},
		"huge":       {answer: "huge", want: "502", dose: 4},
		"works":      {answer: "type", want: "200"},
		"no trailer": {answer: "short chunk", want: "200 unexpected EOF"},
	}

	// A client begins a request, waits until the upstream has it, and goes away.
	leave := func(request string, reads int) error {
		conn, err := net.Dial("tcp", "127.0.0.1:"+s.ports["API_PORT"])
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, request); err != nil {
			return err
		}
		_, err = io.ReadFull(conn, make([]byte, reads))
		_ = conn.(*net.TCPConn).SetLinger(0)
		return err
	}
	clients := map[string]func() error{
		"stops reading": func() error { return leave("GET / "+login+"X-Answer: big\r\n\r\n", 1000) },
		"stops reading a stream": func() error {
			return leave("GET / "+login+"X-Answer: endless\r\n\r\n", 1000)
		},
		"stops reading hints": func() error {
			return leave("GET / "+login+"X-Answer: hints forever\r\n\r\n", 1000)
		},
		"stops sending": func() error {
			return leave("POST / "+login+"Content-Length: 100000\r\nX-Answer: hints first\r\n\r\nabc", 20)
		},
		"stops sending chunks": func() error {
			return leave("POST / "+login+"Transfer-Encoding: chunked\r\nX-Answer: hints first\r\n\r\n3\r\nabc", 20)
		},
		"leaves while it waits": func() error {
			return leave("GET / "+login+"X-Answer: hints, then never\r\n\r\n", 20)
		},
		"leaves a WebSocket": func() error {
			return leave("GET / "+login+"Connection: Upgrade\r\nUpgrade: websocket\r\nX-Answer: switched\r\n\r\n", 20)
		},
	}
	// The same over HTTP/2 and HTTP/3.
	leaveH2 := func(r wireRequest) error {
		conn, err := net.Dial("tcp", "127.0.0.1:"+s.ports["API_PORT"])
		if err != nil {
			return err
		}
		defer conn.Close()
		c := speakH2(t, conn)
		c.send(1, r)
		for {
			if frame, err := c.ReadFrame(); err != nil || frame.Header().Type == http2.FrameHeaders {
				return err
			}
		}
	}
	leaveH3 := func(r wireRequest) error {
		c := dialH3(t, s.addr("TLS_PORT"))
		defer func() { _ = c.CloseWithError(0x100, "") }()
		stream, err := c.OpenStreamSync(t.Context())
		if err != nil {
			return err
		}
		_ = stream.SetDeadline(time.Now().Add(patience))
		_, _ = stream.Write(r.h3())
		_, err = io.ReadFull(stream, make([]byte, 5)) // as long as a 103
		stream.CancelRead(quic.StreamErrorCode(http3.ErrCodeRequestCanceled))
		stream.CancelWrite(quic.StreamErrorCode(http3.ErrCodeRequestCanceled))
		return err
	}
	_, authorization, _ := strings.Cut(strings.TrimSpace(login), "Authorization: ")
	for name, r := range map[string]wireRequest{
		"stops reading":         {fields: wireFields("GET", "/", "x-answer: big")},
		"stops reading hints":   {fields: wireFields("GET", "/", "x-answer: hints forever")},
		"stops sending":         {fields: wireFields("POST", "/", "x-answer: hints first"), body: "abc", open: true},
		"leaves while it waits": {fields: wireFields("GET", "/", "x-answer: hints, then never")},
	} {
		r.fields = append(r.fields, hpack.HeaderField{Name: "authorization", Value: authorization})
		clients[name+", HTTP/2"] = func() error { return leaveH2(r) }
		clients[name+", HTTP/3"] = func() error { return leaveH3(r) }
	}
	meet := func(dose int) {
		var running sync.WaitGroup
		slots := make(chan struct{}, 16)
		run := func(check func()) {
			slots <- struct{}{}
			running.Go(func() { defer func() { <-slots }(); check() })
		}
		for n := range dose {
			for name, tt := range upstreams {
				if tt.dose != 0 && n >= tt.dose {
					continue
				}
				run(func() {
					header := "X-Answer: " + tt.answer + "\r\n"
					if got := ask("API_PORT", cmp.Or(tt.target, "/"), header); got != tt.want {
						t.Errorf("upstream %q: got %s, want %s", name, got, tt.want)
					}
					if n > 0 {
						return
					}
					if got, want := ask("STOCK_PORT", cmp.Or(tt.target, "/"), header), cmp.Or(tt.stock, tt.want); got != want {
						t.Errorf("upstream %q: got %s from reverse_proxy, want %s", name, got, want)
					}
				})
			}
			for name, client := range clients {
				// A closed h2c connection leaves some 12 KB of package http2 in the heap, also of a Caddy with reverse_proxy
				// alone.
				if n >= 50 && strings.HasSuffix(name, "HTTP/2") {
					continue
				}
				run(func() {
					if err := client(); err != nil {
						t.Errorf("client %q: %v", name, err)
					}
				})
			}
		}
		running.Wait()
	}
	meet(10)
	eventually(t, "the upstream has only idle connections", func() bool { return up.open.Load() <= 64 })
	before := s.holdings()
	meet(*peers)
	// Some 9 MB are of the connections of package http2 and of package quic, after 1500 peers as after 10 000.
	limit := holdings{before.goroutines + 40, before.files + 40, before.heap + 16<<20}
	var after holdings
	defer func() { t.Logf("before %+v, after %+v, upstream connections %d", before, after, up.open.Load()) }()
	eventually(t, "goroutines, files and memory are as before", func() bool {
		after = s.holdings()
		return after.goroutines <= limit.goroutines && after.files <= limit.files && after.heap <= limit.heap && up.open.Load() <= 64
	})
}

const proxyErrorsCaddyfile = `
{
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	request_body {
		max_size 10
	}
	service_users_proxy 127.0.0.1:{$DOWN_PORT}
}

http://:{$STOCK_PORT} {
	bind 127.0.0.1
	service_users
	service_users_proxy 127.0.0.1:{$DOWN_PORT}
	handle_errors {
		respond "{err.status_code} by the site"
	}
}
`

// TestProxyErrors checks the answers to a failure of the upstream.
func TestProxyErrors(t *testing.T) {
	t.Parallel()
	s, _, login := startPeers(t, proxyErrorsCaddyfile)
	const problem = `{"type":"about:blank","title":"Bad Gateway","status":502,"detail":"the upstream gave no valid answer"}`
	for _, tt := range []struct{ port, method, header, body, want string }{
		{"API_PORT", "GET", "", "", "Content-Type: application/problem+json|" + problem},
		{"API_PORT", "HEAD", "", "", "Content-Type: application/problem+json|"},
		{"API_PORT", "POST", "Content-Length: 3\r\n", "abc", "Connection: close|" + problem},
		{"API_PORT", "POST", "Content-Length: 3\r\n", "", "Connection: close|" + problem}, // the body never comes
		{"API_PORT", "POST", "Content-Length: 3\r\nContent-Type: application/grpc\r\n", "abc", "Grpc-Status: 14|"},
		{"API_PORT", "GET", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "", "Content-Type: application/problem+json|" + problem},
		{"STOCK_PORT", "GET", "", "", "|502 by the site"},
		{"STOCK_PORT", "GET", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "", "|502 by the site"},
	} {
		conn, err := net.Dial("tcp", "127.0.0.1:"+s.ports[tt.port])
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, tt.method+" / "+login+tt.header+"\r\n"+tt.body)
		resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: tt.method})
		if err != nil {
			t.Fatalf("%+v: %v", tt, err)
		}
		var text strings.Builder
		_ = resp.Header.Write(&text)
		fmt.Fprintf(&text, "Connection: %s\r\n|", map[bool]string{true: "close"}[resp.Close])
		_, _ = io.Copy(&text, resp.Body)
		conn.Close()
		header, body, _ := strings.Cut(tt.want, "|")
		got := strings.TrimSpace(text.String())
		if resp.StatusCode != 502 || !strings.Contains(got, header) || !strings.HasSuffix(got, "|"+body) {
			t.Errorf("%s %q: got %d %q, want 502 %q", tt.method, tt.header, resp.StatusCode, got, tt.want)
		}
	}
	if log := s.log.String(); !strings.Contains(log, `"logger":"http.handlers.service_users_proxy","msg":"the upstream failed"`) {
		t.Errorf("the log does not name the failure")
	}
}

const proxyOptionsCaddyfile = `
{
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	service_users_proxy 127.0.0.1:{$UPSTREAM_PORT} {
		flush
		max_conns 2
	}
}
`

// TestProxyOptions checks max_conns and flush, and that the body of a request is not asked for before the upstream
// can have it.
func TestProxyOptions(t *testing.T) {
	t.Parallel()
	s, up, login := startPeers(t, proxyOptionsCaddyfile)
	open := func(request string) (net.Conn, *bufio.Reader) {
		t.Helper()
		conn, err := net.Dial("tcp", "127.0.0.1:"+s.ports["API_PORT"])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, request)
		return conn, bufio.NewReader(conn)
	}
	read := func(what string, in *bufio.Reader, want string) {
		t.Helper()
		for got := ""; !strings.HasSuffix(got, want); {
			c, err := in.ReadByte()
			if err != nil {
				t.Fatalf("%s: got %q %v, want %q", what, got, err, want)
			}
			got += string(c)
		}
	}

	// Each part arrives before the upstream sends the next one.
	up.next = make(chan struct{})
	_, in := open("GET / " + login + "X-Answer: parts\r\n\r\n")
	read("flush", in, "\r\n\r\na")
	up.next <- struct{}{}
	read("flush", in, "b")

	conn, in := open("POST / " + login + "Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	read("a body on demand", in, "HTTP/1.1 100 Continue\r\n\r\n")
	_, _ = io.WriteString(conn, "abc")
	read("a body on demand", in, "\r\n\r\nok")
	got := up.take()
	if last := got[len(got)-1]; !strings.HasSuffix(last, "\r\n\r\nabc") || !strings.Contains(last, "Expect: 100-continue\r\n") {
		t.Errorf("the upstream got %q", last)
	}

	// Two requests are under way, four wait, and all are answered.
	eventually(t, "one idle connection is left", func() bool { return up.open.Load() <= 1 })
	up.peak.Store(0)
	var waiting []*bufio.Reader
	for range 6 {
		_, in := open("GET / " + login + "X-Answer: parts\r\n\r\n")
		waiting = append(waiting, in)
	}
	for range waiting {
		up.next <- struct{}{}
	}
	for _, in := range waiting {
		read("max_conns", in, "\r\n\r\nab")
	}
	if peak := up.peak.Load(); peak > 2 {
		t.Errorf("the upstream had %d connections at once, want 2", peak)
	}
}
