package caddymodule

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	goflag "flag" // flag is a function here
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go/quicvarint"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var leanEverywhere = goflag.Bool("lean", false, "run the tests with service_users_proxy in the place of reverse_proxy, where a Caddyfile has it")

// lean returns a Caddyfile with service_users_proxy in the place of reverse_proxy.
func lean(caddyfile string) string {
	return strings.ReplaceAll(caddyfile, "\treverse_proxy ", "\tservice_users_proxy ")
}

// throughBoth runs a test with reverse_proxy, and with service_users_proxy in its place.
func throughBoth(t *testing.T, test func(t *testing.T, proxy func(caddyfile string) string)) {
	t.Run("reverse_proxy", func(t *testing.T) {
		t.Parallel()
		test(t, func(caddyfile string) string { return caddyfile })
	})
	t.Run("service_users_proxy", func(t *testing.T) {
		t.Parallel()
		test(t, lean)
	})
}

// pairUpstreams are the routes of pairCaddyfile.
const pairUpstreams = `
	header X-Ours 1
	handle /unix/* {
		reverse_proxy unix/{$UPSTREAM_SOCKET} {
			header_up X-Added {http.request.host}
			header_up -X-Removed
			header_up Host other.example
		}
	}
	handle /h2c/* {
		reverse_proxy h2c://127.0.0.1:{$H2C_PORT}
	}
	handle {
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
}
`

// pairCaddyfile serves the same upstreams by reverse_proxy and by service_users_proxy, over HTTP/1.1,
// cleartext HTTP/2, TLS, and HTTP/3. 127.0.0.2 is a trusted proxy.
var pairCaddyfile = `
{
	skip_install_trust
	auto_https disable_redirects
	servers {
		protocols h1 h2 h2c h3
		trusted_proxies static 127.0.0.2
	}
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

(stock) {` + pairUpstreams + `
(lean) {` + lean(pairUpstreams) + `
http://:{$API_PORT} {
	bind 127.0.0.1
	import stock
}

https://app.example:{$TLS_PORT} {
	bind 127.0.0.1
	tls internal
	import stock
}

http://:{$LEAN_PORT} {
	bind 127.0.0.1
	import lean
}

https://app.example:{$LEAN_TLS_PORT} {
	bind 127.0.0.1
	tls internal
	import lean
}
`

// startPair starts a Caddy with pairCaddyfile and its upstreams.
func startPair(t *testing.T) (*server, *script) {
	t.Helper()
	s := newServer(t)
	s.moreports("TLS_PORT", "LEAN_PORT", "LEAN_TLS_PORT", "H2C_PORT")
	socket := filepath.Join(s.dir, "up.sock")
	s.env = append(s.env, "UPSTREAM_SOCKET="+socket)
	up := new(script)
	for network, address := range map[string]string{"tcp": "127.0.0.1:" + s.ports["UPSTREAM_PORT"], "unix": socket} {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go up.accept(l)
	}
	up.h2c(t, "127.0.0.1:"+s.ports["H2C_PORT"])
	path := filepath.Join(s.dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(pairCaddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(path)
	for _, port := range []string{"TLS_PORT", "LEAN_TLS_PORT"} { // the certificate is made after the start
		eventually(t, "the certificate is there", func() bool {
			conn, err := dialTLS(s.addr(port))
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	return s, up
}

func dialTLS(addr string) (net.Conn, error) {
	return tls.Dial("tcp", addr, &tls.Config{ServerName: "app.example", InsecureSkipVerify: true, NextProtos: []string{"h2"}})
}

// script is an upstream that keeps the raw bytes of each request. The header X-Answer names its answer.
type script struct {
	open, peak atomic.Int64  // connections
	next       chan struct{} // has the answer "parts" go on
	mu         sync.Mutex
	got        []string
}

func (up *script) keep(text string) {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.got = append(up.got, text)
}

// take returns the requests since the last call.
func (up *script) take() []string {
	up.mu.Lock()
	defer up.mu.Unlock()
	got := up.got
	up.got = nil
	return got
}

func (up *script) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go up.serve(conn)
	}
}

func (up *script) serve(conn net.Conn) {
	up.mu.Lock()
	up.peak.Store(max(up.peak.Load(), up.open.Add(1)))
	up.mu.Unlock()
	defer up.open.Add(-1)
	defer conn.Close()
	var raw bytes.Buffer
	in := bufio.NewReader(io.TeeReader(conn, &raw))
	for {
		raw.Reset()
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		text, _, _ := strings.Cut(raw.String(), "\r\n\r\n")
		switch r.Header.Get("X-Answer") {
		case "closes":
			return
		case "hints first", "hints, then never":
			_, _ = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\n")
			_, _ = io.Copy(io.Discard, in)
			return
		case "hints forever":
			for err == nil {
				_, err = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")
			}
			return
		case "never":
			_, _ = io.Copy(io.Discard, in)
			return
		case "parts":
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
			<-up.next
			_, _ = io.WriteString(conn, "b")
			continue
		case "big", "endless":
			head := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
			if r.Header.Get("X-Answer") == "big" {
				head += "Content-Length: 67108864\r\n"
			}
			_, _ = io.WriteString(conn, head+"\r\n")
			for range 64 {
				if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}
		if r.Header.Get("X-Answer") != "early" {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return // not a whole request
			}
			text = raw.String()
		}
		up.keep(text)
		answer, ok := answers[r.Header.Get("X-Answer")]
		if before, after, ok := strings.Cut(answer, "11MIB"); ok { // not a part of the table: each caddy that a test starts would make it
			answer = before + strings.Repeat("x", 11<<20) + after
		}
		if !ok {
			answer = "200 OK\nContent-Length: 2\n\nok"
		}
		head, body, _ := strings.Cut(answer, "\n\n")
		if r.Method == http.MethodHead {
			body = ""
		}
		head = "HTTP/1.1 " + strings.TrimPrefix(strings.ReplaceAll(head, "\n", "\r\n"), "HTTP/1.1 ")
		if old, ok := strings.CutPrefix(head, "HTTP/1.1 HTTP/1.0 "); ok {
			head = "HTTP/1.0 " + old
		}
		if _, err := io.WriteString(conn, strings.ReplaceAll(head, "|", "\r\n\r\nHTTP/1.1 ")+"\r\n\r\n"+body); err != nil {
			return
		}
		if r.Header.Get("Upgrade") != "" && strings.HasPrefix(answer, "101") {
			_, _ = io.Copy(conn, in)
			return
		}
		if !strings.Contains(head, "Content-Length: ") && !strings.Contains(head, "chunked") || strings.Contains(head, "BREAKS") {
			return // the end of the connection is the end of the body
		}
	}
}

// answers are the answers of script: the status line without its protocol, header and body. "|" begins
// another one. An answer that is passed on in parts has a Content-Type, since reverse_proxy sometimes lets
// net/http guess one: it depends on the first part of the body, which may or may not come before the first
// flush.
var answers = map[string]string{
	"empty":        "200 OK\nContent-Length: 0\n\n",
	"type":         "200 OK\nContent-Type: application/json\nContent-Length: 2\n\n{}",
	"chunked":      "200 OK\nTransfer-Encoding: chunked\nContent-Type: a/b\n\n3\r\nabc\r\n0\r\n\r\n",
	"no chunk":     "200 OK\nTransfer-Encoding: chunked\nContent-Type: text/plain\n\n0\r\n\r\n",
	"until close":  "HTTP/1.0 200 OK\nContent-Type: text/plain\n\nabc",
	"created":      "201 Made\nLocation: /x\nContent-Length: 0\n\n",
	"none":         "204 No Content\nContent-Length: 0\n\n",
	"unchanged":    "304 Not Modified\nEtag: \"x\"\nContent-Length: 17\n\n",
	"redirect":     "301 Moved Permanently\nLocation: http://x.example/\nContent-Length: 0\n\n",
	"missing":      "404 Not Found\nContent-Length: 4\n\ngone",
	"fault":        "500 Internal Server Error\nContent-Length: 4\n\noops",
	"odd":          "799 Odd\nContent-Length: 0\n\n",
	"trailers":     "200 OK\nTransfer-Encoding: chunked\nContent-Type: a/b\nTrailer: X-Sum, X-More\n\n3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
	"one trailer":  "200 OK\nTransfer-Encoding: chunked\nContent-Type: a/b\nTrailer: X-Sum\n\n3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Surprise: 2\r\n\r\n",
	"surprise":     "200 OK\nTransfer-Encoding: chunked\nContent-Type: a/b\n\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
	"hints":        "103 Early Hints\nLink: </a>; rel=preload\nX-Hint: 1|103 Early Hints\nLink: </b>|200 OK\nContent-Length: 2\n\nok",
	"processing":   "102 Processing|200 OK\nContent-Length: 2\n\nok",
	"continue":     "100 Continue|200 OK\nContent-Length: 2\n\nok",
	"hop hints":    "103 Early Hints\nConnection: X-Hop\nX-Hop: 1\nKeep-Alive: 1\nLink: </a>|200 OK\nContent-Length: 2\n\nok",
	"events":       "200 OK\nContent-Type: text/event-stream\nTransfer-Encoding: chunked\n\n9\r\ndata: 1\n\n\r\n0\r\n\r\n",
	"hops":         "200 OK\nConnection: X-Hop, keep-alive\nX-Hop: 1\nKeep-Alive: timeout=5\nAlt-Svc: h3=\":443\"\nProxy-Authenticate: Basic\nTe: x\nUpgrade: h2c\nX-End: 1\nContent-Length: 2\n\nok",
	"named":        "200 OK\nServer: up\nDate: Thu, 01 Jan 1970 00:00:00 GMT\nVia: 1.1 up\nContent-Length: 2\n\nok",
	"cookies":      "200 OK\nSet-Cookie: a=1\nSet-Cookie: b=2\nVary: a\nVary: b\nX-Ours: 2\nX-Empty:\nContent-Length: 2\n\nok",
	"compressed":   "200 OK\nContent-Encoding: gzip\nContent-Length: 2\n\nok",
	"incremental":  "200 OK\nIncremental: ?1\nContent-Type: a/b\nContent-Length: 2\n\nok",
	"early":        "413 Content Too Large\nContent-Length: 3\nConnection: close\n\nbig",
	"switched":     "101 Switching Protocols\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\n\n",
	"switched h2c": "101 Switching Protocols\nConnection: Upgrade\nUpgrade: h2c\n\n",
	"same twice":   "200 OK\nContent-Length: 2\nContent-Length: 2\n\nok",
	"other twice":  "200 OK\nContent-Length: 2\nContent-Length: 3\n\nok",
	"two lengths":  "200 OK\nContent-Length: 2\nTransfer-Encoding: chunked\nContent-Type: a/b\n\n3\r\nabc\r\n0\r\n\r\n",
	"two codings":  "200 OK\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\nContent-Type: a/b\n\n3\r\nabc\r\n0\r\n\r\n",
	"gzip, then":   "200 OK\nTransfer-Encoding: gzip, chunked\nContent-Type: a/b\n\n3\r\nabc\r\n0\r\n\r\n",
	"minus":        "200 OK\nContent-Length: -2\n\nok",
	"folded":       "200 OK\nX-A: a\n b\nContent-Length: 2\n\nok",
	"no reason":    "200\nContent-Length: 2\n\nok",
	"100 hints":    strings.Repeat("103 Early Hints\nLink: </a>|", 100) + "200 OK\nContent-Length: 2\n\nok",
	"bad hint":     "103 Early Hints\nX Y: 1|200 OK\nContent-Length: 2\n\nok",
	"short":        "200 OK\nContent-Length: 9\nX-End: BREAKS\n\nok",
	"short chunk":  "200 OK\nTransfer-Encoding: chunked\nContent-Type: a/b\nX-End: BREAKS\n\n9\r\nok",
	"bad chunk":    "200 OK\nTransfer-Encoding: chunked\nContent-Type: a/b\nX-End: BREAKS\n\nx\r\nok",
	"bad name":     "200 OK\nX Y: 1\nContent-Length: 2\n\nok",
	"bad status":   "2000 OK\nContent-Length: 2\n\nok",
	"no status":    "OK\nContent-Length: 2\n\nok",
	"huge":         "200 OK\nX-Big: 11MIB\nContent-Length: 2\n\nok",
}

// h2c serves cleartext HTTP/2. Its answer is the request.
func (up *script) h2c(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var text strings.Builder
		fmt.Fprintf(&text, "%s %s %s %s %d %q %v\n", r.Method, r.RequestURI, r.Host, r.Proto, r.ContentLength, body, err)
		_ = r.Header.Write(&text)
		_ = r.Trailer.Write(&text)
		up.keep(text.String())
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = io.WriteString(w, "ok")
		w.Header().Set("Grpc-Status", "0")
	})
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

// The reasons for which service_users_proxy may differ from reverse_proxy.
const (
	noCompression = "service_users_proxy asks for no compression where the client asks for none"
	noUserAgent   = "where Connection names User-Agent, reverse_proxy sends the one of net/http, service_users_proxy none"
	problemAnswer = "the answer to a failure of the upstream has a problem document"
	refused101    = "reverse_proxy answers a 101 that nobody asked for with an empty 200, service_users_proxy with 502"
)

// wireText makes a proxyRow the bytes of a request.
var wireText = strings.NewReplacer("\n", "\r\n", "␊", "\n", "␍", "\r")

// proxyRow is a request over HTTP/1.1.
type proxyRow struct {
	request string // with "\n" for the end of a line, and "␊" and "␍" for a bare LF and CR
	answer  string // a key of answers
	trusted bool   // the client is a trusted proxy
	differs string // the reason
}

var dates = regexp.MustCompile(`(?i)date: (Mon|Tue|Wed|Thu|Fri|Sat|Sun), .. ... [^1]... [^\r\n]* GMT`)

// TestProxyIsReverseProxy sends the same raw requests through reverse_proxy and service_users_proxy, and
// compares the bytes that the upstream and the client get. Rows that differ name the reason.
func TestProxyIsReverseProxy(t *testing.T) {
	t.Parallel()
	for name, answer := range answers {
		inParts := strings.Contains(answer, "Incremental: ") || !strings.Contains(answer, "Content-Length: ")
		if inParts && !strings.Contains(answer, "Content-Type: ") && !strings.HasPrefix(answer, "101 ") {
			t.Errorf("%s: the answer needs a Content-Type; see answers", name)
		}
	}
	s, up := startPair(t)
	compare := func(t *testing.T, differs string, ask func(port string) string) {
		t.Helper()
		stock := ask("API_PORT") + "\n==> " + strings.Join(up.take(), "\n")
		lean := ask("LEAN_PORT") + "\n==> " + strings.Join(up.take(), "\n")
		t.Logf("%q", lean)
		switch {
		case differs == "" && stock != lean:
			t.Errorf("reverse_proxy:\n%q\nservice_users_proxy:\n%q", stock, lean)
		case differs != "" && stock == lean:
			t.Errorf("no difference, although %s:\n%q", differs, stock)
		}
	}
	t.Run("h1", func(t *testing.T) {
		for _, row := range proxyRows() {
			text := row.request
			if row.answer != "" {
				text = strings.Replace(text, "\n", "\nX-Answer: "+row.answer+"\n", 1)
			}
			t.Run(strings.NewReplacer("\n", ";", " ", "_", "/", "|").Replace(text[:min(len(text), 150)]), func(t *testing.T) {
				compare(t, row.differs, func(port string) string {
					return askRaw(t, s.addr(port), wireText.Replace(text), row.trusted)
				})
			})
		}
	})
	secure := map[string]string{"API_PORT": "TLS_PORT", "LEAN_PORT": "LEAN_TLS_PORT"}
	for name, ask := range map[string]func(t *testing.T, port string, r wireRequest) string{
		"h2c": func(t *testing.T, port string, r wireRequest) string {
			conn, err := net.Dial("tcp", s.addr(port))
			if err != nil {
				t.Fatal(err)
			}
			return askH2(t, conn, r)
		},
		"h2": func(t *testing.T, port string, r wireRequest) string {
			conn, err := dialTLS(s.addr(secure[port]))
			if err != nil {
				t.Fatal(err)
			}
			return askH2(t, conn, r)
		},
		"h3": func(t *testing.T, port string, r wireRequest) string { return askH3(t, s.addr(secure[port]), r) },
	} {
		t.Run(name, func(t *testing.T) {
			for i, row := range proxyH2Rows {
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					compare(t, row.differs, func(port string) string {
						text := ask(t, port, row.wireRequest)
						// Over HTTP/3 a reset may overtake the part of the answer before it.
						if _, reset, ok := strings.Cut(text, " canceled by remote"); ok && name == "h3" {
							return "canceled by remote" + reset
						}
						if !strings.Contains(text, "\n:status: ") && !strings.Contains(text, "canceled") {
							t.Errorf("no answer: %q", text)
						}
						return text
					})
				})
			}
		})
	}
}

// askRaw sends raw bytes, and returns the bytes of the answer and its end.
func askRaw(t *testing.T, addr, request string, trusted bool) string {
	t.Helper()
	var dialer net.Dialer
	if trusted {
		dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}
	}
	conn, err := dialer.DialContext(t.Context(), "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	in := bufio.NewReader(io.TeeReader(conn, &raw))
	method, _, _ := strings.Cut(request, " ")
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err == nil && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		if err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
			_, _ = io.WriteString(conn, "ping")
			_, err = io.ReadFull(in, make([]byte, 4))
		} else if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
		}
		end := "complete"
		if err != nil {
			end = err.Error()
		}
		if strings.Contains(end, "connection reset") {
			end = "unexpected EOF" // as the bytes happen to arrive
		}
		text := strings.Replace(raw.String(), "Trailer: X-More, X-Sum", "Trailer: X-Sum, X-More", 1) // in any order
		text = dates.ReplaceAllString(text, "Date: now")
		// An empty body that is flushed before its end is seen; reverse_proxy sometimes is late.
		text = strings.Replace(text, "Date: now\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Date: now\r\nContent-Length: 0\r\n\r\n", 1)
		return text + "\n" + end
	}
}

// askH2 sends a request over HTTP/2, and returns the frames of the answer without the limits between
// those of the data.
func askH2(t *testing.T, conn net.Conn, r wireRequest) string {
	t.Helper()
	defer conn.Close()
	c := speakH2(t, conn)
	c.send(1, r)
	var text strings.Builder
	for {
		frame, err := c.ReadFrame()
		if err != nil {
			var streamErr http2.StreamError
			if errors.As(err, &streamErr) {
				continue
			}
			return text.String() + err.Error()
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = c.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			lines := []string{}
			for _, field := range f.Fields {
				lines = append(lines, field.Name+": "+field.Value)
			}
			text.WriteString(sortedFields(lines))
			if f.StreamEnded() {
				return text.String() + "end"
			}
		case *http2.DataFrame:
			text.Write(f.Data())
			if f.StreamEnded() {
				return text.String() + " end"
			}
		case *http2.RSTStreamFrame:
			return text.String() + " " + f.ErrCode.String()
		}
	}
}

// sortedFields is a header block as text, without the parts that differ between two servers.
func sortedFields(lines []string) string {
	slices.Sort(lines)
	text := strings.Replace("\n"+strings.Join(lines, "\n")+"\n", "trailer: X-More, X-Sum\n", "trailer: X-Sum, X-More\n", 1)
	return dates.ReplaceAllString(ownAltSvc.ReplaceAllString(text, ""), "date: now")
}

var ownAltSvc = regexp.MustCompile(`alt-svc: h3=":\d+"; ma=2592000\n`)

// askH3 is askH2 over HTTP/3.
func askH3(t *testing.T, addr string, r wireRequest) string {
	t.Helper()
	c := dialH3(t, addr)
	defer func() { _ = c.CloseWithError(0x100, "") }()
	stream, err := c.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SetDeadline(time.Now().Add(patience))
	_, _ = stream.Write(r.h3())
	_ = stream.Close()
	in := quicvarint.NewReader(bufio.NewReader(stream))
	var text strings.Builder
	for {
		kind, err := quicvarint.Read(in)
		if err != nil {
			return text.String() + " " + err.Error()
		}
		length, _ := quicvarint.Read(in)
		payload := make([]byte, length)
		if _, err := io.ReadFull(in, payload); err != nil {
			return text.String() + " " + err.Error()
		}
		if kind == h3Data {
			text.Write(payload)
		}
		if kind != h3Headers {
			continue
		}
		lines := []string{}
		for next := qpack.NewDecoder().Decode(payload); ; {
			field, err := next()
			if err != nil {
				break
			}
			lines = append(lines, field.Name+": "+field.Value)
		}
		text.WriteString(sortedFields(lines))
	}
}

// proxyH2Rows are requests over HTTP/2 and HTTP/3.
var proxyH2Rows = []struct {
	wireRequest
	differs string
}{
	{wireRequest: wireRequest{fields: wireFields("GET", "/")}, differs: noCompression},
	{wireRequest: wireRequest{fields: wireFields("GET", "/a%2Fb/%C3%A4?x=%zz;y", "accept-encoding: br", "te: trailers", "cookie: a=1", "cookie: b=2")}},
	{wireRequest: wireRequest{fields: wireFields("HEAD", "/", "accept-encoding: br")}},
	{wireRequest: wireRequest{fields: wireFields("OPTIONS", "*", "accept-encoding: br")}},
	{wireRequest: wireRequest{fields: wireFields("POST", "/", "accept-encoding: br", "content-length: 3"), body: "abc"}},
	{wireRequest: wireRequest{fields: wireFields("POST", "/", "accept-encoding: br"), body: "abc"}},
	{wireRequest: wireRequest{fields: wireFields("POST", "/", "accept-encoding: br")}},
	{wireRequest: wireRequest{fields: wireFields("POST", "/", "accept-encoding: br", "trailer: x-sum"), body: "abc", trailer: []hpack.HeaderField{{Name: "x-sum", Value: "1"}}}},
	{wireRequest: wireRequest{fields: wireFields("POST", "/", "accept-encoding: br"), body: "abc", trailer: []hpack.HeaderField{{Name: "x-sum", Value: "1"}}}},
	{wireRequest: wireRequest{fields: wireFields("POST", "/", "accept-encoding: br", "content-length: 3", "trailer: x-sum"), body: "abc", trailer: []hpack.HeaderField{{Name: "x-sum", Value: "1"}}}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/", "accept-encoding: br", "x-answer: trailers")}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/", "accept-encoding: br", "x-answer: surprise")}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/", "accept-encoding: br", "x-answer: hints")}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/", "accept-encoding: br", "x-answer: hops")}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/", "accept-encoding: br", "x-answer: short")}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/", "accept-encoding: br", "x-answer: until close")}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/", "accept-encoding: br", "x-answer: no status")}, differs: problemAnswer},
	{wireRequest: wireRequest{fields: wireFields("POST", "/h2c/x", "accept-encoding: br", "content-type: application/grpc", "te: trailers"), body: "\x00\x00\x00\x00\x00"}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/h2c/x?y", "accept-encoding: br")}},
	{wireRequest: wireRequest{fields: wireFields("GET", "/unix/x?y", "accept-encoding: br", "x-removed: 1")}},
}

// proxyRows returns the requests of TestProxyIsReverseProxy over HTTP/1.1.
func proxyRows() []proxyRow {
	rows := []proxyRow{{request: "GET / HTTP/1.1\nHost: app.example\n\n", differs: noCompression}}
	add := func(line, header, body string) *proxyRow {
		text := line + " HTTP/1.1\nHost: app.example\nAccept-Encoding: br\n" + header + "\n" + body
		rows = append(rows, proxyRow{request: text})
		return &rows[len(rows)-1]
	}
	for _, line := range []string{
		"GET /", "HEAD /", "DELETE /", "OPTIONS *", "OPTIONS /", "GET http://other.example:81/x?y", "get /", "FOO-BAR /", "TRACE /",
		"GET /a%2Fb/%C3%A4/%2e%2e/..//x", "GET /a|b^c\"d", "GET /%", "GET /a?", "GET /?a;b=%zz&c=%", "GET /?" + strings.Repeat("a&", 10_001),
		"GET /?a=b#c", "GET /a;b=c", "GET /ä?ü", "GET /\\x", "GET /?q=http://x/", "CONNECT other.example:443", "CONNECT /x", "GET /unix/x", "GET /h2c/x",
		"GET x",
	} {
		add(line, "", "")
	}
	add("GET mailto:x", "", "").differs = problemAnswer
	for _, header := range []string{
		"User-Agent:\n", "User-Agent: x\n", "X-A: 1\nX-A: 2\nX-B:\n", "Connection: close\n", "Connection: keep-alive, X-A\nX-A: 1\nKeep-Alive: 5\n",
		"Connection: X-Forwarded-For, Host, Via\nVia: 1.0 x\nX-Forwarded-For: 192.0.2.1\n",
		"Te: trailers\n", "Connection: Te\nTe: trailers\n", "Te: gzip, Trailers;q=0.5\n", "Te: gzip\nTe: trailers\n", "Proxy-Connection: x\nProxy-Authorization: x\nProxy-Authenticate: x\nTrailer: x\nAlt-Svc: x\n",
		"Upgrade: x\n", "Connection: Upgrade\n", "Connection: Upgrade\nUpgrade: h2c\nHttp2-Settings: x\n", "Connection: Upgrade\nUpgrade: \xffx\n",
		"X-Forwarded-For: 192.0.2.1\nX-Forwarded-For: 192.0.2.2\nX-Forwarded-Proto: https\nX-Forwarded-Host: x\nX-Forwarded-Host: y\nForwarded: for=x\nX-Real-Ip: x\n",
		"X-Forwarded-For:\nX-Forwarded-Proto:\nX-Forwarded-Host:\n",
		"Via: 1.0 x\nVia: 1.1 y\n", "Early-Data: 1\n", "Incremental: ?1\n", "Cookie: a=1\nCookie: b=2\n", "X-Raw: \xc3\xa4\xff\n", "Authorization: Basic eDp5\n", "Range: bytes=0-1\n",
		"Date: x\nServer: x\nExpect: 100-continue\n", "X-Removed: 1\nX-Added: 1\n",
	} {
		add("GET /", header, "")
		add("GET /", header, "").trusted = true
	}
	add("GET /", "Connection: User-Agent\nUser-Agent: x\n", "").differs = noUserAgent
	add("GET /unix/x", "X-Removed: 1\nX-Added: 1\nX-Forwarded-For: 192.0.2.1\n", "")
	webSocket := "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13\nX-Answer: "
	for _, answer := range []string{"switched", "switched h2c", "missing", "type", "no status"} {
		row := add("GET /", webSocket+answer+"\n", "")
		if answer == "no status" {
			row.differs = problemAnswer
		}
	}
	for header, body := range map[string]string{
		"Content-Length: 3\n": "abc", "Content-Length: 0\n": "", "Transfer-Encoding: chunked\n": "3\n abc\n0\n\n", "Content-Length: 70000\n": strings.Repeat("x", 70_000),
		"Transfer-Encoding: chunked\nTrailer: X-Sum\n": "3\nabc\n0\nX-Sum: 1\n\n", "Transfer-Encoding: chunked\nX-Y: 1\n": "3\nabc\n0\nX-Sum: 1\n\n",
		"Content-Length: 3\nExpect: 100-continue\n": "abc", "Transfer-Encoding: chunked\nX-Y: 2\n": "0\n\n", "Content-Length: 3\nX-Answer: early\n": "abc",
		"Content-Length: 3\nX-Answer: no status\n": "abc", "Content-Length: 3\nIncremental: ?1\n": "abc",
	} {
		body = strings.Replace(body, " abc", "abc", 1)
		for _, method := range []string{"POST /", "GET /"} {
			row := add(method, header, body)
			if strings.Contains(header, "no status") {
				row.differs = problemAnswer
			}
		}
	}
	// Requests whose end two programs could see at different places.
	for _, framing := range []string{
		"Content-Length: 3\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n", "Transfer-Encoding: chunked\nContent-Length: 3\n\n0\n\n",
		"Content-Length: 3\nContent-Length: 3\n\nabc", "Content-Length: 3\nContent-Length: 4\n\nabc", "Content-Length: 3, 3\n\nabc",
		"Content-Length: +3\n\nabc", "Content-Length: 0x3\n\nabc", "Content-Length: -1\n\n", "Content-Length: 3 \n\nabc", "Content-Length : 3\n\nabc",
		"Content-Length: 99999999999999999999\n\n", "Content-Length:\n\n", "X-A: a\n Content-Length: 3\n\nabc", "Content_Length: 3\n\n",
		"Transfer-Encoding: gzip, chunked\n\n0\n\n", "Transfer-Encoding: identity\n\n", "Transfer-Encoding: Chunked\n\n3\nabc\n0\n\n",
		"Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n", "Transfer-Encoding: chunked\nTransfer-Encoding: identity\n\n0\n\n",
		"Transfer-Encoding : chunked\n\n0\n\n", "Transfer-Encoding: \x0bchunked\n\n0\n\n", "Transfer-Encoding: xchunked\n\n0\n\n", "Transfer_Encoding: chunked\n\n",
		"Connection: Content-Length\nContent-Length: 3\n\nabc", "Connection: Transfer-Encoding\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n",
		"Transfer-Encoding: chunked\n\n03;x=y\nabc\n0;z\n\n", "Transfer-Encoding: chunked\nTrailer: Content-Length\n\n0\nContent-Length: 3\n\n",
		"Transfer-Encoding: chunked\nTrailer: Host, X-Sum\n\n0\nHost: x\nX-Sum: 1\n\n", "X-A: a␊Content-Length: 3\n\nabc", "X-A: a␍Content-Length: 3\n\nabc",
		"X-A: a\x00b\n\n", "Host: other.example\n\n", "\xffX: 1\n\n", "Expect: 200-ok\n\n", "Content-Length: 3\nExpect: 100-continue\nConnection: Expect\n\nabc",
	} {
		rows = append(rows, proxyRow{request: "POST / HTTP/1.1\nHost: app.example\nAccept-Encoding: br\n" + framing})
	}
	for i, chunks := range []string{"3\nabc\n0\nX Y: 1\n\n", "0x3\nabc\n0\n\n", "-1\nabc\n0\n\n", "3\nabcd\n0\n\n", "3\nabc0\n\n", "ffffffffffffffffff\nabc\n0\n\n", "3␊abc␊0␊␊", "3␍abc\n0\n\n"} {
		rows = append(rows, proxyRow{differs: map[bool]string{true: problemAnswer}[i > 0], request: "POST / HTTP/1.1\nHost: app.example\nAccept-Encoding: br\nTransfer-Encoding: chunked\n\n" + chunks})
	}
	for _, line := range []string{"GET  / HTTP/1.1", "GET / HTTP/1.1 ", "GET\t/\tHTTP/1.1", "GET / HTTP/1.2", "GET / HTTP/2.0", "GET / http/1.1", "GET /", "G\x00T / HTTP/1.1", "GET /a b HTTP/1.1", " GET / HTTP/1.1"} {
		rows = append(rows, proxyRow{request: line + "\nHost: app.example\nAccept-Encoding: br\n\n"})
	}
	for _, answer := range slices.Sorted(maps.Keys(answers)) {
		for _, method := range []string{"GET", "HEAD"} {
			row := add(method+" /", "", "")
			row.answer = answer
			switch answer {
			case "other twice", "two codings", "gzip, then", "minus", "bad status", "no status", "huge":
				row.differs = problemAnswer
			case "switched", "switched h2c":
				row.differs = refused101
			}
		}
	}
	for _, old := range []string{"GET / HTTP/1.0\nAccept-Encoding: br\n\n", "GET / HTTP/1.0\nHost: x\nAccept-Encoding: br\nConnection: keep-alive\n\n", "GET /unix/x HTTP/1.0\nAccept-Encoding: br\n\n"} {
		rows = append(rows, proxyRow{request: old})
	}
	return rows
}

// TestProxySettings checks settings that no Caddyfile, or only the environment, brings.
func TestProxySettings(t *testing.T) {
	caddy.DefaultStorage.Path = t.TempDir()
	t.Setenv("UPSTREAM", "localhost:9000")
	for settings, refusal := range map[string]string{
		`"address": "localhost"`:               "",
		`"address": "http://localhost"`:        "",
		`"address": ":9000"`:                   "",
		`"address": "[::1]:9000"`:              "",
		`"address": "unix//run/{env.NO_SUCH}"`: "only placeholders such as {env.UPSTREAM} have a value",
		`"address": "{env.UPSTREAM}"`:          "",
		`"address": "h2c://{env.UPSTREAM}"`:    "",
		`"address": "{http.request.host}:80"`:  "use reverse_proxy for an upstream that depends on the request",
		`"address": ""`:                        "it is neither one TCP address",
		`"timeout": 1`:                         "it is neither one TCP address",
		`"address": "localhost:443"`:           "TLS to the upstream is left to reverse_proxy",
		`"address": "x:1", "timeout": -1`:      "cannot be negative",
		`"address": "x:1", "max_conns": -1`:    "cannot be negative",
		`"address": "x:1", "retries": 3`:       `unknown field "retries"`,
		`"address": "x:1", "header_up": {"set": {"Host": ["{http.reverse_proxy.upstream.host}"]}}`: "only reverse_proxy sets",
	} {
		var config caddy.Config
		if err := json.Unmarshal([]byte(`{
			"admin": {"disabled": true}, "logging": {"logs": {"default": {"writer": {"output": "discard"}}}},
			"apps": {"http": {"servers": {"s": {"listen": ["localhost:0"], "routes": [{"handle": [{"handler": "service_users_proxy", `+settings+`}]}]}}}}
		}`), &config); err != nil {
			t.Fatal(err)
		}
		err := caddy.Validate(&config)
		if refusal == "" && err != nil || refusal != "" && (err == nil || !strings.Contains(err.Error(), refusal)) {
			t.Errorf("%s: got %v, want %q", settings, err, refusal)
		}
	}
}
