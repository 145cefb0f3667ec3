package caddymodule

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// patience is how long a test waits for what has to come. Nothing is measured
// with it.
const patience = time.Minute

// wireCaddyfile serves one API over HTTP/1.1, cleartext HTTP/2 and HTTP/3.
const wireCaddyfile = `
{
	skip_install_trust
	auto_https disable_redirects
	servers {
		protocols h1 h2 h2c h3
	}
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

https://app.example:{$TLS_PORT}, https://:{$TLS_PORT} {
	bind 127.0.0.1
	tls internal
	service_users
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
`

// moreports gives a server more free ports, as environment variables too.
func (s *server) moreports(names ...string) {
	for _, name := range names {
		s.ports[name] = freePort()
		s.env = append(s.env, name+"="+s.ports[name])
	}
}

func startWire(t *testing.T, proxy func(string) string) (*server, *recorder) {
	t.Helper()
	s := newServer(t)
	s.moreports("TLS_PORT")
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	return withCaddyfile(s, proxy(wireCaddyfile)), up
}

// wireRequest is a request field by field, so that a test can say what no client
// library would.
type wireRequest struct {
	fields  []hpack.HeaderField
	body    string
	trailer []hpack.HeaderField
	open    bool // the body never ends
}

// wire sends a request and returns the status of the answer, 0 when the stream
// or the connection was ended without one.
type wire func(wireRequest) int

// wireFields makes the header of a request. A pseudo header given here takes
// the place of the usual one; "-" leaves it out.
func wireFields(method, path string, more ...string) (list []hpack.HeaderField) {
	pseudo := map[string]string{":method": method, ":scheme": "http", ":authority": "app.example", ":path": path}
	var rest []hpack.HeaderField
	for _, line := range more {
		name, value, _ := strings.Cut(line, ": ")
		if strings.HasPrefix(name, ":") {
			pseudo[name] = value
			continue
		}
		rest = append(rest, hpack.HeaderField{Name: name, Value: value})
	}
	for _, name := range slices.Sorted(maps.Keys(pseudo)) {
		if pseudo[name] != "-" {
			list = append(list, hpack.HeaderField{Name: name, Value: pseudo[name]})
		}
	}
	return append(list, rest...)
}

// h2Conn is a cleartext HTTP/2 connection, frame by frame.
type h2Conn struct {
	net.Conn
	*http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func dialH2(t *testing.T, addr string) *h2Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return speakH2(t, conn)
}

// speakH2 begins HTTP/2 on a connection.
func speakH2(t *testing.T, conn net.Conn) *h2Conn {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	c := &h2Conn{Conn: conn, Framer: http2.NewFramer(conn, bufio.NewReader(conn))}
	c.enc = hpack.NewEncoder(&c.block)
	c.Framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.Framer.AllowIllegalWrites = true
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return c
}

// headers writes one header block, in as many frames as it takes.
func (c *h2Conn) headers(stream uint32, fields []hpack.HeaderField, end bool) {
	c.block.Reset()
	for _, f := range fields {
		_ = c.enc.WriteField(f)
	}
	block, first := c.block.Bytes(), true
	for first || len(block) > 0 {
		part := block[:min(len(block), 16<<10)]
		block = block[len(part):]
		// The server may have hung up; what it answered is read then.
		if first {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndStream: end, EndHeaders: len(block) == 0})
		} else {
			_ = c.WriteContinuation(stream, len(block) == 0, part)
		}
		first = false
	}
}

// send writes a whole request.
func (c *h2Conn) send(stream uint32, r wireRequest) {
	c.headers(stream, r.fields, r.body == "" && r.trailer == nil && !r.open)
	if r.body != "" {
		_ = c.WriteData(stream, r.trailer == nil && !r.open, []byte(r.body))
	}
	if r.trailer != nil {
		c.headers(stream, r.trailer, true)
	}
}

// statuses reads until every one of some streams has been answered or reset.
func (c *h2Conn) statuses(streams ...uint32) map[uint32]int {
	got := make(map[uint32]int)
	for len(got) < len(streams) {
		frame, err := c.ReadFrame()
		var streamErr http2.StreamError
		if err != nil && !errors.As(err, &streamErr) {
			return got
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			status, _ := strconv.Atoi(f.PseudoValue("status"))
			if status >= 200 {
				got[f.StreamID] = status
			}
		case *http2.RSTStreamFrame:
			// What was answered stays; a stream of before may be reset a second time.
			if _, answered := got[f.StreamID]; !answered && slices.Contains(streams, f.StreamID) {
				got[f.StreamID] = 0
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				return got
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = c.WriteSettingsAck()
			}
		}
	}
	return got
}

// overH2 sends each request on a connection of its own.
func overH2(t *testing.T, addr string) wire {
	return func(r wireRequest) int {
		t.Helper()
		c := dialH2(t, addr)
		defer c.Close()
		c.send(1, r)
		return c.statuses(1)[1]
	}
}

// h3Conn is an HTTP/3 connection, frame by frame (RFC 9114).
type h3Conn struct{ *quic.Conn }

func dialH3(t testing.TB, addr string) h3Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		conn, err := quic.DialAddr(ctx, strings.Replace(addr, "localhost", "127.0.0.1", 1), h3TLS(), nil)
		if err == nil {
			c := h3Conn{conn}
			control, err := conn.OpenUniStream()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := control.Write([]byte{0x00, 0x04, 0x00}); err != nil { // the control stream and empty SETTINGS
				t.Fatal(err)
			}
			return c
		}
		if ctx.Err() != nil {
			t.Fatalf("no HTTP/3 connection: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // the certificate is still being made
	}
}

func h3TLS() *tls.Config {
	return &tls.Config{ServerName: "app.example", InsecureSkipVerify: true, NextProtos: []string{http3.NextProtoH3}, MinVersion: tls.VersionTLS13}
}

const (
	h3Data    = 0x0
	h3Headers = 0x1
)

func h3Frame(kind uint64, payload []byte) []byte {
	return append(quicvarint.Append(quicvarint.Append(nil, kind), uint64(len(payload))), payload...)
}

func h3HeaderFrame(fields []hpack.HeaderField) []byte {
	var block bytes.Buffer
	enc := qpack.NewEncoder(&block)
	for _, f := range fields {
		_ = enc.WriteField(qpack.HeaderField{Name: f.Name, Value: f.Value})
	}
	return h3Frame(h3Headers, block.Bytes())
}

// h3 returns the frames of a request.
func (r wireRequest) h3() []byte {
	out := h3HeaderFrame(r.fields)
	if r.body != "" {
		out = append(out, h3Frame(h3Data, []byte(r.body))...)
	}
	if r.trailer != nil {
		out = append(out, h3HeaderFrame(r.trailer)...)
	}
	return out
}

// send sends one request and reads the status of the answer.
func (c h3Conn) send(r wireRequest) (status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := c.OpenStreamSync(ctx)
	if err != nil {
		return 0, err
	}
	_ = stream.SetDeadline(time.Now().Add(patience))
	_, _ = stream.Write(r.h3()) // the server may have stopped reading
	if !r.open {
		_ = stream.Close()
	}
	in := quicvarint.NewReader(bufio.NewReader(stream))
	for {
		kind, err := quicvarint.Read(in)
		if err != nil {
			return 0, err
		}
		length, err := quicvarint.Read(in)
		if err != nil {
			return 0, err
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(in, payload); err != nil {
			return 0, err
		}
		if kind != h3Headers {
			continue
		}
		if status := h3Status(payload); status >= 200 {
			_, _ = io.Copy(io.Discard, in)
			return status, nil
		}
	}
}

// h3Status returns the status in a block of fields, 0 when there is none.
func h3Status(block []byte) int {
	next := qpack.NewDecoder().Decode(block)
	for {
		f, err := next()
		if err != nil {
			return 0
		}
		if f.Name == ":status" {
			status, _ := strconv.Atoi(f.Value)
			return status
		}
	}
}

// overH3 sends the requests on one connection, and on another one when the
// server has ended it.
func overH3(t *testing.T, addr string) wire {
	c := dialH3(t, addr)
	t.Cleanup(func() { _ = c.CloseWithError(0x100, "") })
	return func(r wireRequest) int {
		t.Helper()
		r.fields = slices.Clone(r.fields)
		for i := range r.fields {
			if r.fields[i] == (hpack.HeaderField{Name: ":scheme", Value: "http"}) {
				r.fields[i].Value = "https"
			}
		}
		status, _ := c.send(r)
		if c.Context().Err() != nil {
			c = dialH3(t, addr)
		}
		return status
	}
}

// headerRows reads testdata/headers.tsv as fields of HTTP/2 and HTTP/3, where a
// name is lower case and a line break cannot end a field.
func headerRows(t *testing.T) (rows []wireRequest) {
	t.Helper()
	for _, row := range caseRows(t, "headers.tsv") {
		sent := row.value
		var fields []hpack.HeaderField
		add := func(line string) {
			name, value, _ := strings.Cut(line, ":")
			fields = append(fields, hpack.HeaderField{Name: strings.ToLower(name), Value: strings.TrimPrefix(value, " ")})
		}
		if trailer, ok := strings.CutPrefix(sent, "@trailer "); ok {
			add(trailer)
			rows = append(rows, wireRequest{body: "abc", trailer: fields})
			continue
		}
		if one, ok := strings.CutPrefix(sent, "@h2 "); ok {
			add(one)
		} else {
			for line := range strings.SplitSeq(sent, "\r\n") {
				if last := len(fields) - 1; last >= 0 && strings.HasPrefix(line, " ") {
					fields[last].Value += "\r\n" + line
					continue
				}
				add(line)
			}
		}
		rows = append(rows, wireRequest{fields: fields})
	}
	return rows
}

// more hostile headers, which only make sense field by field.
var wireRows = []wireRequest{
	{fields: wireLines("X-Service-User-Id: evil")}, // upper case is malformed here
	{fields: wireLines("x-service-user-id: evil", "X-Service-User-Id: evil", "x-service-user-id: evil")},
	{fields: wireLines("x-service-user-id\x00: evil")},
	{fields: wireLines("x-service-user-id : evil")},
	{fields: wireLines(" x-service-user-id: evil")},
	{fields: wireLines("x-service-user-id:evil: evil")},
	{fields: wireLines("x-foo: a\nx-service-user-id: evil")},
	{fields: wireLines("x-foo: a\rx-service-user-id: evil")},
	{fields: wireLines("x-foo: a\x00")},
	{fields: wireLines(": evil")},
	{fields: wireLines("te: trailers")},
	{fields: wireLines("te: trailers, x-service-user-id")},
	{fields: wireLines("te: gzip")},
	{fields: wireLines("transfer-encoding: chunked"), body: "0\r\n\r\nGET /v1/evil HTTP/1.1\r\nHost: app.example\r\n\r\n"},
	{fields: wireLines("content-length: 0"), body: "GET /v1/evil HTTP/1.1\r\nHost: app.example\r\n\r\n"},
	{fields: wireLines("content-length: 3", "content-length: 5"), body: "abc"},
	{fields: wireLines("content-length: +3"), body: "abc"},
	{fields: wireLines("content-length: 99"), body: "abc"},
	{fields: wireLines("expect: 100-continue"), body: "abc"},
	{fields: wireLines("trailer: x-service-user-id"), body: "abc", trailer: wireLines("x-service-user-id: evil")},
	{fields: wireLines("trailer: x-harmless"), body: "abc", trailer: wireLines("x-harmless: a", "x-service-user-id: evil", "authorization: evil")},
	{fields: wireLines(), body: "abc", trailer: wireLines("x-service-user-id: evil", "x_service_user_role: admin", "x-service-user-role: admin", "x-undeclared: evil")},
	{fields: wireLines("trailer: x-service-user-id, authorization, host, content-length"), body: "abc",
		trailer: wireLines("authorization: evil", "host: evil", "content-length: 99", "transfer-encoding: evil")},
	{fields: wireLines(), body: "abc", trailer: wireLines(":path: /admin/x", ":method: DELETE")},
	{fields: wireLines("cookie: a=1", "cookie: b=2")},
	{fields: wireLines("early-data: 1"), body: "abc"}, // refused with 425
}

func wireLines(lines ...string) []hpack.HeaderField {
	list := []hpack.HeaderField{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		list = append(list, hpack.HeaderField{Name: name, Value: value})
	}
	return list
}

// hostileHeaders sends every row over a protocol: the upstream gets exactly one
// of each identity header, with our value, or no request.
func hostileHeaders(t *testing.T, send wire, up *recorder, user credentials) {
	t.Helper()
	rows := headerRows(t)
	if len(rows) < 54 {
		t.Errorf("%d rows of headers.tsv, want at least 54", len(rows))
	}
	// A stream may be reset while its request is still on the way, so the
	// upstream is looked at when everything is sent, path by path.
	rows = append(rows, wireRows...)
	statuses := make(map[string]int)
	methods := make(map[string]string)
	what := make(map[string]string)
	up.reset()
	for i, row := range rows {
		path := fmt.Sprintf("/v1/row-%d", i)
		what[path] = fmt.Sprintf("%q %q", row.fields, row.trailer)
		methods[path] = "GET"
		if row.body != "" {
			methods[path] = "POST"
		}
		credential := "authorization: " + basic(user.id, user.secret)
		for _, f := range row.fields {
			if f.Name == "authorization" {
				credential = "x-no: credential"
			}
		}
		row.fields = append(wireFields(methods[path], path, credential), row.fields...)
		statuses[path] = send(row)
	}
	arrived := make(map[string]int)
	for _, raw := range up.requests() {
		path := strings.Fields(raw)[1]
		arrived[path]++
		if methods[path] == "" || !strings.HasPrefix(raw, methods[path]+" "+path+" HTTP/1.1\r\nHost: app.example\r\n") {
			t.Errorf("nobody sent what the upstream got: %q", raw)
			continue
		}
		checkUpstream(t, strings.TrimPrefix(what[path], "["), raw, user.id)
	}
	for path, status := range statuses {
		malformedBody := strings.Contains(what[path], "] [") && status == http.StatusBadGateway
		switch n := arrived[path]; {
		case n > 1:
			t.Errorf("%s: %d requests upstream", what[path], n)
		case n == 0 && status != 0 && (status < 400 || status >= 500) && !malformedBody:
			t.Errorf("%s: status %d without a request upstream", what[path], status)
		}
	}
	if len(arrived) < 30 {
		t.Errorf("%d rows reached the upstream, want at least 30: the others prove little", len(arrived))
	}
}

// atOnce returns the requests upstream without those of rows whose stream may be
// reset while they are still on the way.
func (up *recorder) atOnce() []string {
	return slices.DeleteFunc(up.requests(), func(raw string) bool {
		return strings.Contains(raw, " /v1/row-") || strings.Contains(raw, " /v1/longer ")
	})
}

// hostileTargets sends every target of testdata/paths.tsv over a protocol.
func hostileTargets(t *testing.T, send wire, up *recorder, user credentials) {
	t.Helper()
	rows := caseRows(t, "paths.tsv")
	for _, row := range rows {
		method, target := row.target()
		up.reset()
		status := send(wireRequest{fields: wireFields(method, target, "authorization: "+basic(user.id, user.secret))})
		got := up.atOnce()
		if strings.HasPrefix(row.want, "match=") {
			if status != 200 || len(got) != 1 || !strings.HasPrefix(got[0], method+" "+target+" HTTP/1.1\r\n") {
				t.Errorf("%s %q: got %d, upstream %q, want 200 and the target unchanged", method, target, status, got)
			}
			continue
		}
		if len(got) != 0 {
			t.Errorf("%s %q: reached the upstream: %q", method, target, got)
		}
		if want, err := strconv.Atoi(row.want); err == nil && status != want && status != 0 && status != 400 {
			t.Errorf("%s %q: got %d, want %d or the end of the stream", method, target, status, want)
		}
	}
	if len(rows) < 80 {
		t.Errorf("ran %d rows, want at least 80", len(rows))
	}
}

// wireOddities are requests that must not reach the upstream, whoever refuses
// them.
var wireOddities = map[string]wireRequest{
	"CONNECT with a host":           {fields: wireFields("CONNECT", "-", ":scheme: -", ":authority: app.example:443")},
	"CONNECT with a body":           {fields: wireFields("CONNECT", "-", ":scheme: -", ":authority: app.example:80"), body: smuggled},
	"CONNECT with an open body":     {fields: wireFields("CONNECT", "-", ":scheme: -", ":authority: app.example:80"), body: smuggled, open: true},
	"CONNECT to the upstream":       {fields: wireFields("CONNECT", "-", ":scheme: -", ":authority: 127.0.0.1:22"), body: smuggled},
	"extended CONNECT, spelled so":  {fields: wireFields("CONNECT", "/v1/x", ":protocol: WebSocket"), body: smuggled, open: true},
	"extended CONNECT, another":     {fields: wireFields("CONNECT", "/v1/x", ":protocol: connect-udp"), body: smuggled},
	"a protocol without CONNECT":    {fields: wireFields("GET", "/v1/x", ":protocol: websocket")},
	"no path":                       {fields: wireFields("GET", "-")},
	"an empty path":                 {fields: wireFields("GET", "")},
	"an asterisk":                   {fields: wireFields("GET", "*")},
	"a space in the path":           {fields: wireFields("GET", "/v1/x HTTP/1.1")},
	"a line break in the path":      {fields: wireFields("GET", "/v1/x HTTP/1.1\r\nHost: evil\r\n\r\nGET /v1/evil")},
	"a fragment":                    {fields: wireFields("GET", "/v1/x#/../evil")},
	"a byte above ASCII":            {fields: wireFields("GET", "/v1/\xff")},
	"a NUL in the path":             {fields: wireFields("GET", "/v1/\x00")},
	"an absolute path":              {fields: wireFields("GET", "http://app.example/v1/x")},
	"no method":                     {fields: wireFields("-", "/v1/x")},
	"an empty method":               {fields: wireFields("", "/v1/x")},
	"a request line as the method":  {fields: wireFields("GET /v1/evil HTTP/1.1", "/v1/x")},
	"a line break in the method":    {fields: wireFields("GET /v1/evil HTTP/1.1\r\nHost: evil\r\n\r\nGET", "/v1/x")},
	"a method in lower case":        {fields: wireFields("get", "/v1/x")},
	"PRI":                           {fields: wireFields("PRI", "/v1/x")},
	"TRACE":                         {fields: wireFields("TRACE", "/v1/x")},
	"a long method":                 {fields: wireFields(strings.Repeat("A", 33), "/v1/x")},
	"two methods":                   {fields: append(wireFields("GET", "/v1/x"), hpack.HeaderField{Name: ":method", Value: "DELETE"})},
	"two paths":                     {fields: append(wireFields("GET", "/v1/x"), hpack.HeaderField{Name: ":path", Value: "/v1/evil"})},
	"two authorities":               {fields: append(wireFields("GET", "/v1/x"), hpack.HeaderField{Name: ":authority", Value: "evil.example"})},
	"an unknown pseudo header":      {fields: wireFields("GET", "/v1/x", ":evil: 1")},
	"a status":                      {fields: wireFields("GET", "/v1/x", ":status: 200")},
	"no authority":                  {fields: wireFields("GET", "/v1/x", ":authority: -")},
	"an empty authority":            {fields: wireFields("GET", "/v1/x", ":authority: ")},
	"userinfo in the authority":     {fields: wireFields("GET", "/v1/x", ":authority: evil@app.example")},
	"a path in the authority":       {fields: wireFields("GET", "/v1/x", ":authority: app.example/evil")},
	"a space in the authority":      {fields: wireFields("GET", "/v1/x", ":authority: app.example evil")},
	"a list in the authority":       {fields: wireFields("GET", "/v1/x", ":authority: app.example,evil.example")},
	"an escape in the authority":    {fields: wireFields("GET", "/v1/x", ":authority: %61pp.example")},
	"a port out of range":           {fields: wireFields("GET", "/v1/x", ":authority: app.example:99999")},
	"another host field":            {fields: wireFields("GET", "/v1/x", "host: evil.example")},
	"a pseudo header at the end":    {fields: append(wireFields("GET", "/v1/x", ":authority: -", "a: b"), hpack.HeaderField{Name: ":authority", Value: "app.example"})},
	"a body longer than it says":    {fields: wireFields("POST", "/v1/longer", "content-length: 3"), body: "abc" + smuggled},
	"early data of an unsafe kind":  {fields: wireFields("POST", "/v1/x", "early-data: 1"), body: "abc"},
	"two credentials":               {fields: wireFields("GET", "/v1/x", "authorization: Basic e2M6fQ==")},
	"the credential in the trailer": {body: "abc"}, // filled in by the test
}

const smuggled = "GET /v1/evil HTTP/1.1\r\nHost: app.example\r\nX-Service-User-Id: evil\r\n\r\n"

func oddities(t *testing.T, send wire, up *recorder, user credentials) {
	t.Helper()
	auth := hpack.HeaderField{Name: "authorization", Value: basic(user.id, user.secret)}
	for name, r := range wireOddities {
		switch {
		case name == "the credential in the trailer":
			r.fields, r.trailer = wireFields("POST", "/v1/x", "trailer: authorization"), []hpack.HeaderField{auth}
		case name == "a pseudo header at the end":
			r.fields = append([]hpack.HeaderField{auth}, r.fields...)
		default:
			r.fields = append(slices.Clone(r.fields), auth)
		}
		up.reset()
		if status := send(r); status != 0 && (status < 400 || status >= 500 && status != 501) {
			t.Errorf("%s: got %d", name, status)
		}
		for _, got := range up.atOnce() {
			t.Errorf("%s: reached the upstream: %q", name, got)
		}
	}
	for _, got := range up.requests() { // what a body that is longer than it says began
		if strings.Count(got, "HTTP/1.1") != 1 {
			t.Errorf("smuggled: %q", got)
		}
	}
}

// TestHTTP2 sends everything hostile over cleartext HTTP/2, as frames.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	throughBoth(t, testHTTP2)
}

func testHTTP2(t *testing.T, proxy func(string) string) {
	s, up := startWire(t, proxy)
	s.mustCLI("group", "create", "everything", "--rule", "allow * /{rest...}", "--rule", "allow PROPFIND /{rest...}")
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	reader := s.create("billing-sync", "--group", "readers")
	all := s.create("everybody", "--group", "everything")
	send := overH2(t, s.addr("API_PORT"))
	t.Run("headers", func(t *testing.T) { hostileHeaders(t, send, up, reader) })
	t.Run("targets", func(t *testing.T) { hostileTargets(t, send, up, all) })
	t.Run("oddities", func(t *testing.T) { oddities(t, send, up, all) })
	t.Run("streams", func(t *testing.T) { interleaved(t, s, up, reader, all) })
	t.Run("alive", func(t *testing.T) { alive(t, s, send, up, all) })
}

// TestHTTP3 does the same over HTTP/3.
func TestHTTP3(t *testing.T) {
	t.Parallel()
	throughBoth(t, testHTTP3)
}

func testHTTP3(t *testing.T, proxy func(string) string) {
	s, up := startWire(t, proxy)
	s.mustCLI("group", "create", "everything", "--rule", "allow * /{rest...}", "--rule", "allow PROPFIND /{rest...}")
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	reader := s.create("billing-sync", "--group", "readers")
	all := s.create("everybody", "--group", "everything")
	send := overH3(t, s.addr("TLS_PORT"))
	t.Run("headers", func(t *testing.T) { hostileHeaders(t, send, up, reader) })
	t.Run("targets", func(t *testing.T) { hostileTargets(t, send, up, all) })
	t.Run("oddities", func(t *testing.T) { oddities(t, send, up, all) })
	t.Run("alive", func(t *testing.T) { alive(t, s, send, up, all) })
	t.Run("client", func(t *testing.T) {
		transport := &http3.Transport{TLSClientConfig: h3TLS()}
		defer transport.Close()
		transport.Dial = func(ctx context.Context, _ string, tls *tls.Config, conf *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, "127.0.0.1:"+s.ports["TLS_PORT"], tls, conf)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		up.reset()
		r, err := http.NewRequestWithContext(ctx, "POST", "https://app.example:"+s.ports["TLS_PORT"]+"/v1/x", io.LimitReader(strings.NewReader("abc"), 3))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth(reader.id, reader.secret)
		r.Trailer = http.Header{"X-Service-User-Id": {"evil"}, "X-Other": {"evil"}}
		resp, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got := up.atOnce()
		if resp.ProtoMajor != 3 || resp.StatusCode != 200 || len(got) != 1 {
			t.Fatalf("got %s %d, %d requests upstream, want HTTP/3, 200 and 1", resp.Proto, resp.StatusCode, len(got))
		}
		checkUpstream(t, "trailers of a client", got[0], reader.id)
	})
}

// alive checks that a plain request still gets through.
func alive(t *testing.T, s *server, send wire, up *recorder, user credentials) {
	t.Helper()
	up.reset()
	if status := send(wireRequest{fields: wireFields("GET", "/v1/x", "authorization: "+basic(user.id, user.secret))}); status != 200 || len(up.atOnce()) != 1 {
		t.Errorf("a plain request: got %d, %d requests upstream, want 200 and 1", status, len(up.atOnce()))
	}
	if log := s.log.String(); strings.Contains(log, "panic") {
		t.Errorf("the log tells of a panic")
	}
}

// interleaved sends requests of two service users, and one of nobody, on
// streams of one connection that are open at the same time.
func interleaved(t *testing.T, s *server, up *recorder, one, two credentials) {
	const rounds = 200
	c := dialH2(t, s.addr("API_PORT"))
	defer c.Close()
	up.reset()
	auth := func(c credentials) string { return "authorization: " + basic(c.id, c.secret) }
	for i := range uint32(rounds) {
		_ = c.SetDeadline(time.Now().Add(patience))
		a, b, n := i*6+1, i*6+3, i*6+5
		c.headers(a, wireFields("POST", fmt.Sprintf("/v1/%s/%d", one.id, i), auth(one)), false)
		c.headers(b, wireFields("POST", fmt.Sprintf("/v1/%s/%d", two.id, i), auth(two)), false)
		c.headers(n, wireFields("POST", "/v1/nobody"), false)
		for _, stream := range []uint32{b, n, a} {
			_ = c.WriteData(stream, true, []byte("abc"))
		}
		if got := c.statuses(a, b, n); got[a] != 200 || got[b] != 200 || got[n] != 401 {
			t.Fatalf("round %d: got %d, %d and %d, want 200, 200 and 401", i, got[a], got[b], got[n])
		}
	}
	got := up.atOnce()
	if len(got) != 2*rounds {
		t.Errorf("%d requests upstream, want %d", len(got), 2*rounds)
	}
	for _, raw := range got {
		_, path, _ := strings.Cut(raw, "/v1/")
		id, _, _ := strings.Cut(path, "/")
		if strings.Count(raw, "X-Service-User-Id: ") != 1 || !strings.Contains(raw, "\r\nX-Service-User-Id: "+id+"\r\n") {
			t.Fatalf("the request of %s arrived as %q", id, raw)
		}
	}

	// The same on a kept HTTP/1.1 connection: credentials count for one request.
	conn, err := net.Dial("tcp", s.addr("API_PORT"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	in := bufio.NewReader(conn)
	for i, tt := range []struct {
		header string
		want   int
	}{{auth(one) + "\r\n", 200}, {"", 401}, {auth(two) + "\r\n", 200}, {"", 401}} {
		if _, err := io.WriteString(conn, "GET /v1/x HTTP/1.1\r\nHost: app.example\r\n"+tt.header+"\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != tt.want {
			t.Errorf("request %d on one connection: got %d, want %d", i, resp.StatusCode, tt.want)
		}
	}
}

// TestEarlyData holds the handshake of a resumed HTTP/3 connection back, so that
// a request arrives as 0-RTT data, which somebody else may have recorded: only a
// safe one is served.
func TestEarlyData(t *testing.T) {
	t.Parallel()
	throughBoth(t, testEarlyData)
}

func testEarlyData(t *testing.T, proxy func(string) string) {
	s, up := startWire(t, proxy)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	tickets := make(chan struct{}, 16)
	config := h3TLS()
	config.ClientSessionCache = &ticketCache{ClientSessionCache: tls.NewLRUClientSessionCache(8), got: tickets}

	first := dialH3(t, s.addr("TLS_PORT")) // waits for the certificate
	_ = first.CloseWithError(0x100, "")
	addr, err := net.ResolveUDPAddr("udp", "127.0.0.1:"+s.ports["TLS_PORT"])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	plain, err := quic.DialAddr(ctx, addr.String(), config, nil)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-tickets:
	case <-ctx.Done():
		t.Fatal("the server gives no session ticket")
	}
	_ = plain.CloseWithError(0x100, "")

	// The handshake may be over before the request is looked at, and then it is none
	// of early data; so it is tried until one comes in time.
	for method, want := range map[string]int{"POST": 425, "GET": 200} {
		status, requests := 0, 0
		for attempt := 0; status != want && attempt < 20; attempt++ {
			up.reset()
			conn, err := quic.DialAddrEarly(ctx, addr.String(), config, nil)
			if err != nil {
				t.Fatal(err)
			}
			control, err := conn.OpenUniStream()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = control.Write([]byte{0x00, 0x04, 0x00})
			fields := wireFields(method, "/v1/x", ":scheme: https", "authorization: "+basic(user.id, user.secret))
			if status, err = (h3Conn{conn}).send(wireRequest{fields: fields}); err != nil {
				t.Fatal(err)
			}
			requests = len(up.requests())
			_ = conn.CloseWithError(0x100, "")
		}
		if status != want {
			t.Errorf("%s in early data: got %d, want %d", method, status, want)
		}
		if method == "POST" && requests != 0 || method == "GET" && requests != 1 {
			t.Errorf("%s in early data: %d requests upstream", method, requests)
		}
	}
}

// ticketCache tells when a session ticket has come.
type ticketCache struct {
	tls.ClientSessionCache
	got chan<- struct{}
}

func (c *ticketCache) Put(key string, state *tls.ClientSessionState) {
	c.ClientSessionCache.Put(key, state)
	if state != nil {
		select {
		case c.got <- struct{}{}:
		default:
		}
	}
}

// backend is an upstream for what stays open: WebSockets, event streams, gRPC.
type backend struct {
	mu   sync.Mutex
	got  []http.Header // of each request, with its trailers under "trailer "
	subs map[chan string]struct{}
}

func startBackend(t *testing.T, port string) *backend {
	t.Helper()
	up := &backend{subs: make(map[chan string]struct{})}
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: up, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return up
}

func (up *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := r.Header.Clone()
	defer func() {
		for name, values := range r.Trailer {
			header["trailer "+name] = values
		}
	}()
	up.mu.Lock()
	up.got = append(up.got, header)
	up.mu.Unlock()
	switch {
	case r.Header.Get("Upgrade") == "websocket":
		up.webSocket(w)
	case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
		_, _ = io.Copy(io.Discard, r.Body)
		up.mu.Lock()
		for name, values := range r.Trailer {
			header["trailer "+name] = values
		}
		up.mu.Unlock()
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		_, _ = w.Write([]byte{0, 0, 0, 0, 0})
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set("Grpc-Message", "fine over "+r.Proto)
	default:
		events := make(chan string, 8)
		up.mu.Lock()
		up.subs[events] = struct{}{}
		up.mu.Unlock()
		defer func() {
			up.mu.Lock()
			delete(up.subs, events)
			up.mu.Unlock()
		}()
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: hello\n\n")
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case text := <-events:
				_, _ = io.WriteString(w, "data: "+text+"\n\n")
			}
		}
	}
}

// webSocket accepts a WebSocket and sends back what comes in.
func (up *backend) webSocket(w http.ResponseWriter) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	// The accept value belongs to the key of RFC 6455, section 1.3.
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	_ = rw.Flush()
	for {
		text, err := readFrame(rw.Reader)
		if err != nil {
			return
		}
		_, _ = conn.Write(append([]byte{0x81, byte(len(text))}, text...))
	}
}

// readFrame reads one short WebSocket text frame, masked or not.
func readFrame(r io.Reader) (string, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	if head[0] != 0x81 {
		return "", fmt.Errorf("a frame of the kind %#x", head[0])
	}
	mask := make([]byte, 4)
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, mask); err != nil {
			return "", err
		}
	}
	text := make([]byte, head[1]&0x7f)
	_, err := io.ReadFull(r, text)
	for i := range text {
		text[i] ^= mask[i%4]
	}
	return string(text), err
}

// headers returns what the requests that reached the backend had in their header.
func (up *backend) headers() []http.Header {
	up.mu.Lock()
	defer up.mu.Unlock()
	var list []http.Header
	for _, h := range up.got {
		list = append(list, maps.Clone(h))
	}
	return list
}

func (up *backend) reset() {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.got = nil
}

// broadcast sends an event to every open event stream.
func (up *backend) broadcast(text string) {
	up.mu.Lock()
	defer up.mu.Unlock()
	for events := range up.subs {
		select {
		case events <- text:
		default:
		}
	}
}

// checkHeader checks the header of the only request that reached a backend.
func (up *backend) checkHeader(t *testing.T, what string, user credentials) http.Header {
	t.Helper()
	got := up.headers()
	if len(got) != 1 {
		t.Fatalf("%s: %d requests upstream, want 1", what, len(got))
	}
	checkIdentity(t, what, got[0], user.id)
	return got[0]
}

// checkIdentity checks that a header holds one identity and no credential.
func checkIdentity(t *testing.T, what string, header http.Header, id string) {
	t.Helper()
	n := 0
	for name, values := range header {
		switch folded := foldName(strings.TrimPrefix(name, "trailer ")); {
		case folded == "xserviceuserid":
			if n += len(values); len(values) != 1 || values[0] != id {
				t.Errorf("%s: the upstream got %s %q, want exactly %q", what, name, values, id)
			}
		case strings.HasPrefix(folded, "xserviceuser") && len(values) != 1, strings.Contains(folded, "authorization"):
			t.Errorf("%s: the upstream got %s %q", what, name, values)
		}
	}
	if n != 1 {
		t.Errorf("%s: the upstream got %d identities, want 1", what, n)
	}
}

const streamsCaddyfile = `
{
	servers {
		protocols h1 h2 h2c
	}
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	reverse_proxy /v1/grpc/* h2c://127.0.0.1:{$UPSTREAM_PORT}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
`

// tokenID returns the id of the only token of a service user.
func (s *server) tokenID(user string) string {
	s.t.Helper()
	for _, field := range strings.Fields(s.mustCLI("token", "list", user)) {
		if strings.HasPrefix(field, "token_") {
			return field
		}
	}
	s.t.Fatalf("%s has no token", user)
	return ""
}

// TestStreams opens WebSockets and event streams through the real proxy and
// takes the right to them away: exactly the streams that lost it are cut.
func TestStreams(t *testing.T) {
	t.Parallel()
	throughBoth(t, testStreams)
}

func testStreams(t *testing.T, proxy func(string) string) {
	s := newServer(t)
	up := startBackend(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxy(streamsCaddyfile))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	s.mustCLI("group", "create", "few")
	s.mustCLI("rule", "add", "few", "allow GET /v1/{rest...}")

	t.Run("web socket", func(t *testing.T) {
		s.t = t
		user := s.create("socket", "--group", "readers")
		up.reset()
		conn, in := openWebSocket(t, s, user)
		header := up.checkHeader(t, "a WebSocket", user)
		if header.Get("Upgrade") != "websocket" || header.Get("Sec-Websocket-Protocol") != "chat" {
			t.Errorf("the handshake arrived as %q", header)
		}
		echo := func(text string) {
			t.Helper()
			_ = conn.SetDeadline(time.Now().Add(patience))
			if _, err := conn.Write(append([]byte{0x81, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...)); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if got, err := readFrame(in); got != text {
				t.Fatalf("got %q (%v), want %q", got, err, text)
			}
		}
		echo("hello")
		s.mustCLI("group", "create", "unrelated")
		s.mustCLI("update", "socket", "--owner", "somebody else")
		s.mustCLI("group", "add", "few", "socket")
		s.mustCLI("group", "remove", "readers", "socket") // allowed by the other group
		echo("still here")
		s.mustCLI("token", "revoke", "socket", s.tokenID("socket"), "--yes")
		_ = conn.SetDeadline(time.Now().Add(patience))
		if got, err := readFrame(in); err == nil {
			t.Errorf("after the revocation: got %q, want the end", got)
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the revocation: the WebSocket stays open")
		}
	})

	t.Run("events", func(t *testing.T) {
		s.t = t
		bystander := s.create("bystander", "--group", "readers")
		stays := openEvents(t, s, bystander)
		defer stays.Close()
		for name, lose := range map[string]func(user string){
			"revoked":     func(user string) { s.mustCLI("token", "revoke", user, s.tokenID(user), "--yes") },
			"refreshed":   func(user string) { s.mustCLI("token", "refresh", user, s.tokenID(user), "--yes") },
			"deactivated": func(user string) { s.mustCLI("deactivate", user) },
			"deleted":     func(user string) { s.mustCLI("delete", user, "--yes") },
			"no member":   func(user string) { s.mustCLI("group", "remove", "readers", user) },
			"denied":      func(user string) { s.mustCLI("group", "add", "deniers", user) },
			"elsewhere":   func(user string) { s.mustCLI("update", user, "--set-allowed-ip", "192.0.2.0/24") },
			"expired":     nil, // by itself
		} {
			if name == "denied" {
				s.mustCLI("group", "create", "deniers", "--rule", "deny GET /v1/events")
			}
			user := "watcher-" + strings.ReplaceAll(name, " ", "-")
			c := s.create(user, "--group", "readers")
			var stream net.Conn
			wait := patience
			if lose != nil {
				stream = openEvents(t, s, c)
				lose(user)
			}
			for ttl := 2 * time.Second; stream == nil; ttl *= 2 { // long enough for the stream to open
				out := strings.Fields(s.mustCLI("token", "create", user, "--ttl", ttl.String()))
				c.secret = out[slices.Index(out, "token")+1]
				wait = patience + ttl
				var err error
				if stream, err = tryEvents(s, c); err != nil && (ttl > time.Minute || !strings.Contains(err.Error(), "HTTP/1.1 401")) {
					t.Fatal(err)
				}
			}
			_ = stream.SetDeadline(time.Now().Add(wait))
			if text, err := io.ReadAll(stream); errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(string(text), "data:") {
				t.Errorf("%s: the stream goes on: %q (%v)", name, text, err)
			}
			stream.Close()
		}
		_ = stays.SetDeadline(time.Now().Add(patience))
		up.broadcast("news")
		buf := make([]byte, 64)
		if n, err := stays.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "data: news") {
			t.Errorf("the stream of somebody else: got %q (%v), want the news", buf[:n], err)
		}
	})

	t.Run("grpc", func(t *testing.T) {
		s.t = t
		user := s.create("caller", "--group", "readers")
		for te, arrives := range map[string]string{"trailers": "trailers", "trailers, x": "", "TRAILERS": "", "x": ""} {
			up.reset()
			c := dialH2(t, s.addr("API_PORT"))
			c.send(1, wireRequest{
				fields: wireFields("POST", "/v1/grpc/Call", "content-type: application/grpc", "te: "+te, "trailer: x-service-user-id", "authorization: "+basic(user.id, user.secret)),
				body:   "\x00\x00\x00\x00\x00", trailer: wireLines("x-service-user-id: evil", "x-other: evil"),
			})
			var status, message string
			for message == "" {
				frame, err := c.ReadFrame()
				if err != nil {
					t.Errorf("te %q: %v", te, err)
					break
				}
				switch f := frame.(type) {
				case *http2.RSTStreamFrame, *http2.GoAwayFrame:
					message = "reset"
				case *http2.DataFrame:
					if f.StreamEnded() {
						message = "none"
					}
				case *http2.MetaHeadersFrame:
					status += f.PseudoValue("status")
					for _, field := range f.RegularFields() {
						if field.Name == "grpc-message" && f.StreamEnded() {
							message = field.Value
						}
					}
					if f.StreamEnded() && message == "" {
						message = "none"
					}
				}
			}
			c.Close()
			if te != "trailers" && (message == "reset" || status == "400") {
				continue // Go's server refuses it already
			}
			if status != "200" || message != "fine over HTTP/2.0" {
				t.Errorf("te %q: got the status %s and the trailer %q", te, status, message)
				continue
			}
			header := up.checkHeader(t, "te "+te, user)
			if got := header.Get("Te"); got != arrives {
				t.Errorf("te %q: the upstream got %q, want %q", te, got, arrives)
			}
			for name := range header {
				if strings.HasPrefix(name, "trailer ") {
					t.Errorf("te %q: the upstream got the trailer %s", te, name)
				}
			}
		}
	})
}

// openWebSocket opens a WebSocket; header holds "Name: value" lines.
func openWebSocket(t *testing.T, s *server, user credentials, header ...string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr("API_PORT"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "GET /v1/ws HTTP/1.1\r\nHost: app.example\r\nAuthorization: "+basic(user.id, user.secret)+"\r\nConnection: Upgrade, X-Service-User-Id\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nX-Service-User-Id: evil\r\n"+
		strings.Join(append(header, ""), "\r\n")+"\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("handshake: got %v %v, want 101", resp, err)
	}
	return conn, in
}

// openEvents opens an event stream and reads the first event; header holds
// "Name: value" lines.
func openEvents(t *testing.T, s *server, user credentials, header ...string) net.Conn {
	t.Helper()
	conn, err := tryEvents(s, user, header...)
	if err != nil {
		t.Fatalf("no first event: %v", err)
	}
	return conn
}

func tryEvents(s *server, user credentials, header ...string) (net.Conn, error) {
	conn, err := net.Dial("tcp", s.addr("API_PORT"))
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	_, err = io.WriteString(conn, "GET /v1/events HTTP/1.1\r\nHost: app.example\r\nAuthorization: "+basic(user.id, user.secret)+"\r\nAccept: text/event-stream\r\n"+strings.Join(append(header, ""), "\r\n")+"\r\n")
	var got []byte
	buf := make([]byte, 1024)
	for err == nil && !strings.HasSuffix(string(got), "data: hello\n\n\r\n") {
		var n int
		n, err = conn.Read(buf)
		got = append(got, buf[:n]...)
		if status, _, ok := strings.Cut(string(got), "\r\n"); ok && !strings.HasPrefix(status, "HTTP/1.1 200 ") {
			err = errors.New("refused")
		}
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("got %q: %w", got, err)
	}
	return conn, nil
}

const neighboursCaddyfile = `
{
	servers :{$TRUSTED_PORT} {
		trusted_proxies static 127.0.0.1/32
	}
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
	}
}

# Nothing listens at the first upstream.
http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	reverse_proxy 127.0.0.1:{$CLOSED_PORT} 127.0.0.1:{$UPSTREAM_PORT} {
		lb_policy round_robin
		lb_try_duration 2s
		lb_try_interval 10ms
		header_up X-Attempt one
		header_up -X-Removed
	}
}

http://:{$NESTED_PORT} {
	bind 127.0.0.1
	route {
		service_users {
			headers id teams token_id
		}
		route {
			service_users {
				headers id name groups
			}
			reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
		}
	}
}

http://:{$ERRORS_PORT} {
	bind 127.0.0.1
	service_users {
		errors caddy
	}
	reverse_proxy 127.0.0.1:{$CLOSED_PORT}
	handle_errors {
		service_users sanitize
		rewrite * /error/{err.status_code}
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
}

http://:{$TRUSTED_PORT} {
	service_users
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
`

// TestNeighbours puts other handlers around ours: retries, a second directive,
// error routes, trusted proxies.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.moreports("CLOSED_PORT", "NESTED_PORT", "ERRORS_PORT", "TRUSTED_PORT")
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, neighboursCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers", "--team", "finance")
	forged := "X-Service-User-Id: evil\r\nX_Service_User_Id: evil\r\nX!Service-User-Role: admin\r\nConnection: X-Service-User-Id\r\nProxy-Authorization: Basic evil\r\n"
	request := func(line, authorization, more string) string {
		if authorization != "" {
			authorization = "Authorization: " + authorization + "\r\n"
		}
		return line + " HTTP/1.1\r\nHost: app.example\r\n" + authorization + forged + more + "\r\n"
	}
	own := basic(user.id, user.secret)

	t.Run("retries", func(t *testing.T) {
		get, post := request("GET /v1/x", own, "X-Removed: a\r\n"), request("POST /v1/x", own, "X-Removed: a\r\nContent-Length: 3\r\n")+"abc"
		for _, r := range []string{get, post, post, get, get, post, post, get} { // every second one meets the closed port first
			up.reset()
			if status := exchange(t, s.addr("API_PORT"), r); status != 200 {
				t.Errorf("got %d, want 200", status)
			}
			got := up.requests()
			if len(got) != 1 {
				t.Fatalf("%d requests upstream, want 1", len(got))
			}
			checkUpstream(t, r, got[0], user.id)
			if !strings.Contains(got[0], "\r\nX-Attempt: one\r\n") || strings.Contains(got[0], "X-Removed") {
				t.Errorf("header_up did not run: %q", got[0])
			}
		}
	})

	t.Run("nested", func(t *testing.T) {
		up.reset()
		if status := exchange(t, s.addr("NESTED_PORT"), request("GET /v1/x", own, "")); status != 200 {
			t.Errorf("got %d, want 200", status)
		}
		if got := up.requests(); len(got) != 1 {
			t.Errorf("%d requests upstream, want 1", len(got))
		} else {
			checkUpstream(t, "nested", got[0], user.id) // nothing of the outer one's teams and token_id
		}
		up.reset()
		for _, authorization := range []string{"", basic(user.id, "x"), "Bearer " + user.secret} {
			if status := exchange(t, s.addr("NESTED_PORT"), request("GET /v1/x", authorization, "")); status != 401 || len(up.requests()) != 0 {
				t.Errorf("%q: got %d, %d requests upstream, want 401 and 0", authorization, status, len(up.requests()))
			}
		}
	})

	t.Run("error routes", func(t *testing.T) {
		for _, tt := range []struct {
			line, authorization string
			want                int
		}{
			{"GET /v1/x", "", 401},
			{"GET /v1/x", basic(user.id, "wrong"), 401},
			{"GET /v1/x", "Bearer " + user.secret, 401},
			{"GET /v2/x", own, 403},
			{"GET /v1/%2e%2e/x", own, 400},
			{"TRACE /v1/x", own, 405},
			{"GET /v1/x", own + "\r\nAuthorization: Bearer evil", 400},
			{"GET /v1/x", own, 502}, // let through, and then there is no upstream
		} {
			up.reset()
			if status := exchange(t, s.addr("ERRORS_PORT"), request(tt.line, tt.authorization, "")); status != tt.want && status != 200 {
				t.Errorf("%s: got %d, want the error route's answer", tt.line, status)
			}
			got := up.requests()
			if len(got) != 1 {
				t.Errorf("%s %d: %d requests at the error upstream, want 1", tt.line, tt.want, len(got))
				continue
			}
			if !strings.Contains(got[0], fmt.Sprintf(" /error/%d HTTP/1.1\r\n", tt.want)) {
				t.Errorf("%s: the error upstream got %q, want /error/%d", tt.line, got[0], tt.want)
			}
			for line := range strings.SplitSeq(got[0], "\r\n") {
				name, value, _ := strings.Cut(line, ":")
				if folded := foldName(name); strings.HasPrefix(folded, "xserviceuser") || strings.Contains(folded, "authorization") || strings.Contains(value, user.secret) {
					t.Errorf("%s %d: the error upstream got %q", tt.line, tt.want, line)
				}
			}
		}
	})

	t.Run("trusted proxies", func(t *testing.T) {
		names := []string{"Forwarded", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Forwarded-Method",
			"X-Forwarded-Uri", "X-Forwarded-Prefix", "X-Forwarded-Port", "X-Forwarded-Scheme", "X-Forwarded-Server"}
		var lines string
		for _, name := range names {
			lines += name + ": for=192.0.2.7\r\n"
		}
		lines += "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: front.example\r\nX-Forwarded-User: evil\r\nX-HTTP-Method-Override: GET\r\nX!Forwarded-For: 6.6.6.6\r\n"
		for port, trusted := range map[string]bool{"TRUSTED_PORT": true, "NESTED_PORT": false} {
			up.reset()
			if status := exchange(t, s.addr(port), request("GET /v1/x", own, lines)); status != 200 {
				t.Fatalf("%s: got %d, want 200", port, status)
			}
			got := up.requests()
			if len(got) != 1 {
				t.Fatalf("%s: %d requests upstream, want 1", port, len(got))
			}
			checkUpstream(t, port, got[0], user.id)
			for _, name := range names {
				if kept := strings.Contains(strings.ToLower(got[0]), "\r\n"+strings.ToLower(name)+": for=192.0.2.7\r\n"); kept != trusted {
					t.Errorf("%s: %s arrived: %t, want %t", port, name, kept, trusted)
				}
			}
			for _, line := range []string{"X-Forwarded-For: 192.0.2.7, 127.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: front.example"} {
				if kept := strings.Contains(got[0], "\r\n"+line+"\r\n"); kept != trusted {
					t.Errorf("%s: %s arrived: %t, want %t", port, line, kept, trusted)
				}
			}
		}
	})
}

// TestRefusalsDoNotWait withholds the body of a request that is refused: the
// answer comes all the same, and the connection is closed.
func TestRefusalsDoNotWait(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.moreports("ERRORS_PORT")
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxyCaddyfile+`
http://:{$ERRORS_PORT} {
	bind 127.0.0.1
	service_users {
		errors caddy
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
`)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	own := "Authorization: " + basic(user.id, user.secret) + "\r\n"
	var all sync.WaitGroup
	for _, tt := range []struct {
		line, header string
		want         int
	}{
		{"POST /v1/x", "", 401},
		{"POST /v1/x", "Authorization: " + basic(user.id, "wrong") + "\r\n", 401},
		{"POST /v2/x", own, 403},
		{"POST /v1/../x", own, 400},
		{"POST /v1/x", own + "Authorization: Basic e2M6fQ==\r\n", 400},
		{"POST /v1/x", own + "Early-Data: 1\r\n", 425},
		{"TRACK /v1/x", own, 405},
		{"CONNECT /v1/x", own, 501},
	} {
		for _, body := range []string{"Content-Length: 1000000\r\n\r\n", "Content-Length: 1000000\r\n\r\nabc", "Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n",
			"Transfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"} {
			for _, port := range []string{"API_PORT", "ERRORS_PORT"} {
				all.Go(func() { // most of them wait
					what := fmt.Sprintf("%s %d with %q at %s", tt.line, tt.want, body, port)
					conn, err := net.Dial("tcp", s.addr(port))
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(patience))
					if _, err := io.WriteString(conn, tt.line+" HTTP/1.1\r\nHost: app.example\r\n"+tt.header+body); err != nil {
						t.Error(err)
						return
					}
					resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Errorf("%s: %v", what, err)
						return
					}
					if resp.StatusCode != tt.want || !resp.Close {
						t.Errorf("%s: got %d, close %t, want %d and Connection: close", what, resp.StatusCode, resp.Close, tt.want)
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Errorf("%s: reading the answer: %v", what, err)
					}
				})
			}
		}
	}
	all.Wait()
	if got := up.requests(); len(got) != 0 {
		t.Errorf("%d requests reached the upstream: %q", len(got), got[0])
	}
}

// TestLimits sends too much of everything. The process lives, answers properly
// and does not keep the memory.
func TestLimits(t *testing.T) {
	t.Parallel()
	throughBoth(t, testLimits)
}

func testLimits(t *testing.T, proxy func(string) string) {
	s, up := startWire(t, proxy)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	own := basic(user.id, user.secret)
	wrong := basic(user.id, "wrong")
	many := func(n int, line string) string { return strings.Repeat(line, n) }
	slash := "/" + many(4096, "a/")

	h1 := map[string]string{
		"15 KiB header":            "GET /v1/x HTTP/1.1\r\nHost: a\r\nX-Long: " + many(15<<10, "a") + "\r\nAuthorization: " + wrong + "\r\n\r\n",
		"15 KiB credential":        "GET /v1/x HTTP/1.1\r\nHost: a\r\nAuthorization: Basic " + many(15<<10, "A") + "\r\n\r\n",
		"100 Authorization fields": "GET /v1/x HTTP/1.1\r\nHost: a\r\n" + many(100, "Authorization: "+own+"\r\n") + "\r\n",
		"1000 identity headers":    "GET /v1/x HTTP/1.1\r\nHost: a\r\n" + many(500, "X-Service-User-Id: evil\r\n") + "Authorization: " + wrong + "\r\n\r\n",
		"10 000 header lines":      "GET /v1/x HTTP/1.1\r\nHost: a\r\n" + many(10000, "X-A: b\r\n") + "\r\n",
		"10 000 different headers": "GET /v1/x HTTP/1.1\r\nHost: a\r\n" + func() (b string) {
			var w strings.Builder
			for i := range 10000 {
				fmt.Fprintf(&w, "X-Service-User-%d: evil\r\n", i)
			}
			return w.String()
		}() + "\r\n",
		"8 KiB path":          "GET " + slash + " HTTP/1.1\r\nHost: a\r\nAuthorization: " + own + "\r\n\r\n",
		"8 KiB of escapes":    "GET /" + many(2700, "%41") + " HTTP/1.1\r\nHost: a\r\nAuthorization: " + own + "\r\n\r\n",
		"8 KiB of slashes":    "GET " + many(8192, "/") + " HTTP/1.1\r\nHost: a\r\nAuthorization: " + own + "\r\n\r\n",
		"8 KiB query":         "GET /?" + many(8192, "a") + " HTTP/1.1\r\nHost: a\r\nAuthorization: " + own + "\r\n\r\n",
		"1 MiB path":          "GET /" + many(1<<20, "a") + " HTTP/1.1\r\nHost: a\r\n\r\n",
		"1 MiB header value":  "GET /v1/x HTTP/1.1\r\nHost: a\r\nX-Long: " + many(1<<20, "a") + "\r\n\r\n",
		"1 MiB header name":   "GET /v1/x HTTP/1.1\r\nHost: a\r\n" + many(1<<20, "a") + ": b\r\n\r\n",
		"1 MiB connection":    "GET /v1/x HTTP/1.1\r\nHost: a\r\nConnection: " + many(1<<17, "X-A, a,") + "\r\n\r\n",
		"1000 nominations":    "GET /v2/x HTTP/1.1\r\nHost: a\r\nAuthorization: " + own + "\r\nConnection: " + many(1000, "a,") + "close\r\n\r\n",
		"a long method":       many(8<<10, "A") + " /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
		"a long host":         "GET /v1/x HTTP/1.1\r\nHost: " + many(8<<10, "a") + "\r\nAuthorization: " + own + "\r\n\r\n",
		"a chunk of nonsense": "POST /v2/x HTTP/1.1\r\nHost: a\r\nAuthorization: " + own + "\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
	}
	h2 := map[string]wireRequest{
		"15 KiB header":            {fields: wireFields("GET", "/v1/x", "x-long: "+many(15<<10, "a"), "authorization: "+wrong)},
		"100 Authorization fields": {fields: wireFields("GET", "/v1/x", slices.Repeat([]string{"authorization: " + own}, 100)...)},
		"10 000 header lines":      {fields: wireFields("GET", "/v1/x", slices.Repeat([]string{"x-a: b"}, 10000)...)},
		"8 KiB path":               {fields: wireFields("GET", slash, "authorization: "+own)},
		"1 MiB header value":       {fields: wireFields("GET", "/v1/x", "x-long: "+many(1<<20, "b"))},
		"8 KiB trailer":            {fields: wireFields("POST", "/v2/x", "authorization: "+own), body: "abc", trailer: wireLines("x-long: " + many(8<<10, "a"))},
	}
	good := func(status int) bool {
		return slices.Contains([]int{0, 400, 401, 403, 405, 414, 425, 429, 431, 501, 503}, status)
	}
	overCleartext, overTLS := overH2(t, s.addr("API_PORT")), overH3(t, s.addr("TLS_PORT"))
	pass := func() {
		for name, request := range h1 {
			status := exchange(t, s.addr("API_PORT"), request)
			// A server that stops reading may cut the answer off.
			if !good(status) || status == 0 && len(request) < 16<<10 {
				t.Errorf("%s: got %d", name, status)
			}
		}
		for name, request := range h2 {
			if status := overCleartext(request); !good(status) {
				t.Errorf("%s over HTTP/2: got %d", name, status)
			}
			if status := overTLS(request); !good(status) {
				t.Errorf("%s over HTTP/3: got %d", name, status)
			}
		}
	}
	pass()
	before := residentBytes(t, s.cmd.Process.Pid)
	for range 4 {
		pass()
	}
	// Headers that never end keep a connection and little else.
	for range 100 {
		conn, err := net.Dial("tcp", s.addr("API_PORT"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /v1/x HTTP/1.1\r\nHost: a\r\nAuthorization: "+own+"\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
	}
	after := residentBytes(t, s.cmd.Process.Pid)
	t.Logf("resident: %d MiB, then %d MiB", before>>20, after>>20)
	if after-before > 128<<20 {
		t.Errorf("the process has grown by %d MiB", (after-before)>>20)
	}
	if got := up.requests(); len(got) != 0 {
		t.Errorf("%d requests reached the upstream: %.200q", len(got), got[0])
	}
	alive(t, s, overCleartext, up, user)
	alive(t, s, overTLS, up, user)
}

// residentBytes returns how much memory a process holds; 0 where there is no
// /proc.
func residentBytes(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "statm"))
	if err != nil {
		return 0
	}
	pages, _ := strconv.Atoi(strings.Fields(string(text))[1])
	return pages * os.Getpagesize()
}
