package caddymodule

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/quicvarint"
	"golang.org/x/net/http2"
)

// connected is an open stream of HTTP/2 or HTTP/3, to a WebSocket.
type connected struct {
	write func(data []byte)
	read  func() (data []byte, err error) // of one DATA frame
}

func connectH2(t *testing.T, s *server, path string, user credentials) (int, connected) {
	t.Helper()
	c := dialH2(t, s.addr("API_PORT"))
	t.Cleanup(func() { c.Close() })
	c.headers(1, wireFields("CONNECT", path, ":protocol: websocket", "sec-websocket-version: 13", "x-service-user-id: evil", "upgrade-insecure-requests: 1", "authorization: "+basic(user.id, user.secret)), false)
	status := c.statuses(1)[1]
	return status, connected{
		func(data []byte) { _ = c.WriteData(1, false, data) },
		func() ([]byte, error) {
			for {
				frame, err := c.ReadFrame()
				if err != nil {
					return nil, err
				}
				switch f := frame.(type) {
				case *http2.DataFrame:
					return slices.Clone(f.Data()), nil
				case *http2.RSTStreamFrame:
					return nil, io.ErrUnexpectedEOF
				}
			}
		},
	}
}

func connectH3(t *testing.T, s *server, path string, user credentials) (int, connected) {
	t.Helper()
	c := dialH3(t, s.addr("TLS_PORT"))
	t.Cleanup(func() { _ = c.CloseWithError(0x100, "") })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := c.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SetDeadline(time.Now().Add(2 * patience))
	_, _ = stream.Write(h3HeaderFrame(wireFields("CONNECT", path, ":scheme: https", ":protocol: websocket", "sec-websocket-version: 13", "x-service-user-id: evil", "authorization: "+basic(user.id, user.secret))))
	in := quicvarint.NewReader(bufio.NewReader(stream))
	frame := func(want uint64) ([]byte, error) {
		for {
			kind, err := quicvarint.Read(in)
			if err != nil {
				return nil, err
			}
			length, err := quicvarint.Read(in)
			if err != nil {
				return nil, err
			}
			payload := make([]byte, length)
			if _, err := io.ReadFull(in, payload); err != nil || kind == want {
				return payload, err
			}
		}
	}
	header, err := frame(h3Headers)
	if err != nil {
		return 0, connected{}
	}
	return h3Status(header), connected{
		func(data []byte) { _, _ = stream.Write(h3Frame(h3Data, data)) },
		func() ([]byte, error) { return frame(h3Data) },
	}
}

// TestWebSocketConnect opens WebSockets by an extended CONNECT: they are judged as the
// GET that they become, and cut like others.
func TestWebSocketConnect(t *testing.T) {
	t.Parallel()
	throughBoth(t, testWebSocketConnect)
}

func testWebSocketConnect(t *testing.T, proxy func(string) string) {
	s := newServer(t, "GODEBUG=http2xconnect=1")
	s.moreports("TLS_PORT")
	up := startBackend(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxy(wireCaddyfile))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	s.mustCLI("group", "create", "writers", "--rule", "allow POST,PUT /v1/{rest...}")
	for protocol, connect := range map[string]func(*testing.T, *server, string, credentials) (int, connected){"h2": connectH2, "h3": connectH3} {
		t.Run(protocol, func(t *testing.T) {
			s.t = t
			reader, writer := s.create("reader-"+protocol, "--group", "readers"), s.create("writer-"+protocol, "--group", "writers")
			up.reset()
			for _, tt := range []struct {
				what, path string
				user       credentials
				want       int
			}{
				{"no credentials", "/v1/ws", credentials{reader.id, "wrong"}, 401},
				{"no rule for the path", "/v2/ws", reader, 403},
				{"no rule for GET", "/v1/ws", writer, 403},
				{"an ambiguous target", "/v1//ws", reader, 400},
			} {
				if status, _ := connect(t, s, tt.path, tt.user); status != tt.want {
					t.Errorf("%s: got %d, want %d", tt.what, status, tt.want)
				}
			}
			if got := up.headers(); len(got) != 0 {
				t.Errorf("%d refused requests reached the upstream", len(got))
			}
			status, socket := connect(t, s, "/v1/ws", reader)
			if status != 200 {
				t.Fatalf("got %d, want 200", status)
			}
			if header := up.checkHeader(t, protocol, reader); header.Get("Upgrade") != "websocket" || header.Get("Sec-Websocket-Version") != "13" || header[":protocol"] != nil {
				t.Errorf("the handshake arrived as %q", header)
			}
			socket.write([]byte("\x81\x84\x00\x00\x00\x00echo"))
			var got []byte
			for len(got) < 6 {
				data, err := socket.read()
				if err != nil {
					t.Fatalf("got %q, %v", got, err)
				}
				got = append(got, data...)
			}
			if text, err := readFrame(bytes.NewReader(got)); text != "echo" {
				t.Errorf("got %q, %v, want the echo", text, err)
			}
			s.mustCLI("token", "revoke", "reader-"+protocol, s.tokenID("reader-"+protocol), "--yes")
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					if data, err := socket.read(); err != nil || len(data) == 0 {
						return
					}
				}
			}()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Error("after the revocation the WebSocket stays open")
			}
		})
	}
}

// TestPreflightOverH3 sends preflights over HTTP/3, which says nothing of their length.
func TestPreflightOverH3(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.moreports("TLS_PORT")
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, strings.ReplaceAll(wireCaddyfile, "\tservice_users\n\treverse", "\tservice_users {\n\t\tcors_preflight\n\t}\n\treverse"))
	send := overH3(t, s.addr("TLS_PORT"))
	preflight := []string{"origin: https://app.example", "access-control-request-method: DELETE"}
	for _, tt := range []struct {
		what string
		r    wireRequest
		want int
	}{
		{"a preflight", wireRequest{fields: wireFields("OPTIONS", "/v1/x", preflight...)}, 200},
		{"of no length", wireRequest{fields: wireFields("OPTIONS", "/v1/x", append(preflight, "content-length: 0")...)}, 200},
		{"with a body that comes to nothing", wireRequest{fields: wireFields("OPTIONS", "/v1/x", preflight...), body: "abc"}, 200},
		{"with a body", wireRequest{fields: wireFields("OPTIONS", "/v1/x", append(preflight, "content-length: 3")...), body: "abc"}, 401},
		{"no origin", wireRequest{fields: wireFields("OPTIONS", "/v1/x", preflight[1])}, 401},
	} {
		up.reset()
		if got := send(tt.r); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.what, got, tt.want)
		}
		for _, got := range up.requests() {
			if tt.want != 200 || strings.Contains(got, "abc") || strings.Contains(got, "Transfer-Encoding") {
				t.Errorf("%s: the upstream got %q", tt.what, got)
			}
		}
	}
}

// TestRefusedCalls: a gRPC call that is refused gets the status that its client knows.
func TestRefusedCalls(t *testing.T) {
	g := newGuard(t, Handler{})
	call := func(path string, c credentials, kind string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", path, strings.NewReader("\x00\x00\x00\x00\x00"))
		r.Header.Set("Content-Type", kind)
		if c.id != "" {
			r.SetBasicAuth(c.id, c.secret)
		}
		w, _ := g.serve(r)
		return w
	}
	seen := make(map[string]string)
	for _, tt := range []struct {
		path       string
		user       credentials
		kind       string
		want       int
		code, text string
	}{
		{"/v1/x", credentials{}, "application/grpc", 401, "16", "this needs the id"},
		{"/v1/x", credentials{g.reader.id, "wrong"}, "application/grpc", 401, "16", "this needs the id"},
		{"/v1/x", g.reader, "application/grpc+proto", 403, "7", "not allowed"},
		{"/v1//x", g.reader, "Application/gRPC", 400, "13", "empty segment"},
		{"/v1/x", credentials{}, "application/json", 401, "", ""},
	} {
		w := call(tt.path, tt.user, tt.kind)
		if w.Code != tt.want || w.Header().Get("Grpc-Status") != tt.code || !strings.Contains(w.Header().Get("Grpc-Message"), tt.text) {
			t.Errorf("%s %s: got %d %q %q, want %d %q", tt.kind, tt.path, w.Code, w.Header().Get("Grpc-Status"), w.Header().Get("Grpc-Message"), tt.want, tt.code)
		}
		if isCall := tt.code != ""; isCall != (w.Body.Len() == 0) || isCall != (w.Header().Get("Content-Type") == "application/grpc") {
			t.Errorf("%s %s: got %q of the type %s", tt.kind, tt.path, w.Body, w.Header().Get("Content-Type"))
		}
		if tt.want == 401 {
			var header strings.Builder
			_ = w.Header().Write(&header)
			if before, ok := seen[tt.kind]; ok && before != header.String() {
				t.Errorf("two 401s to a call differ: %q and %q", before, header.String())
			}
			seen[tt.kind] = header.String()
		}
	}
	open := g.h.shared.live.Swap(nil)
	defer g.h.shared.live.Store(open)
	if w := call("/v1/x", g.reader, "application/grpc"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Grpc-Status") != "14" {
		t.Errorf("without a store: got %d %q, want 503 and 14", w.Code, w.Header().Get("Grpc-Status"))
	}
	if got := grpcMessage("50% \n\xc3\xa9"); got != "50%25 %0A%C3%A9" {
		t.Errorf("got %q", got)
	}
}
