package caddymodule

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// slowUpstream is an upstream whose answers take as long as a test wants.
type slowUpstream struct {
	mu     sync.Mutex
	seen   map[string]bool // by the query of the request
	finish chan struct{}   // ends the bodies of known length
}

func startSlow(t *testing.T, port string) *slowUpstream {
	t.Helper()
	up := &slowUpstream{seen: make(map[string]bool), finish: make(chan struct{})}
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: up}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return up
}

func (up *slowUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	up.mu.Lock()
	up.seen[r.URL.RawQuery] = true
	up.mu.Unlock()
	switch r.URL.Path {
	case "/v1/poll": // nothing, for ever
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	case "/v1/upload":
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			fmt.Fprintf(w, "%d bytes", n)
		}
	case "/v1/download":
		w.Header().Set("Content-Length", "6")
		_, _ = io.WriteString(w, "abc")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-up.finish:
			_, _ = io.WriteString(w, "def")
		case <-r.Context().Done():
		}
	default: // lines, for ever
		for r.Context().Err() == nil {
			_, _ = io.WriteString(w, "{\"n\":1}\n")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// waitFor waits until a request has arrived or is over.
func (up *slowUpstream) waitFor(t *testing.T, e *underway) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		up.mu.Lock()
		seen := up.seen[e.name]
		up.mu.Unlock()
		if seen || isClosed(e.over) {
			return
		}
	}
	t.Fatalf("%s: the request does not arrive", e.name)
}

// underway is a request that is under way.
type underway struct {
	name   string
	sends  bool // a body
	over   chan struct{}
	status int
	text   string // what was read of lines is left out
	err    error
}

// uploadBytes is the length of an upload, of which a byte is sent now and then.
const uploadBytes = 10_000

func (up *slowUpstream) sendBody(t *testing.T, body *io.PipeWriter) {
	for n := 1; ; n++ {
		select {
		case <-t.Context().Done():
			_ = body.CloseWithError(io.ErrUnexpectedEOF)
			return
		case <-up.finish:
			_, _ = body.Write(make([]byte, uploadBytes-n+1))
			_ = body.Close()
			return
		case <-time.After(50 * time.Millisecond):
		}
		if _, err := body.Write([]byte{'x'}); err != nil {
			return
		}
	}
}

// begin sends a request over "h1", "h2" or "h3". kind is the last part of its path;
// "chunked" is an upload that does not say its length, "grpc" a call.
func begin(t *testing.T, s *server, up *slowUpstream, protocol, kind, name string, user credentials) *underway {
	t.Helper()
	e := &underway{name: fmt.Sprintf("%s-%s-%s", name, protocol, kind), over: make(chan struct{})}
	var via http.RoundTripper
	base := "http://" + s.addr("API_PORT")
	if protocol == "h3" {
		transport := &http3.Transport{TLSClientConfig: h3TLS()}
		transport.Dial = func(ctx context.Context, _ string, tls *tls.Config, conf *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, "127.0.0.1:"+s.ports["TLS_PORT"], tls, conf)
		}
		t.Cleanup(func() { _ = transport.Close() })
		via, base = transport, "https://app.example:"+s.ports["TLS_PORT"]
	} else {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetHTTP1(protocol == "h1")
		transport.Protocols.SetUnencryptedHTTP2(protocol == "h2")
		t.Cleanup(transport.CloseIdleConnections)
		via = transport
	}
	path := map[string]string{"chunked": "upload", "grpc": "lines"}[kind]
	if path == "" {
		path = kind
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", base+"/v1/"+path+"?"+e.name, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(user.id, user.secret)
	if kind == "upload" || kind == "chunked" || kind == "grpc" {
		body, into := io.Pipe()
		r.Method, r.Body, e.sends = "POST", body, true
		if kind == "upload" {
			r.ContentLength = uploadBytes
		}
		if kind == "grpc" {
			r.Header.Set("Content-Type", "application/grpc")
		}
		go up.sendBody(t, into)
	}
	go func() {
		defer close(e.over)
		var resp *http.Response
		if resp, e.err = via.RoundTrip(r); e.err != nil {
			return
		}
		defer resp.Body.Close()
		e.status = resp.StatusCode
		if path == "lines" {
			_, e.err = io.Copy(io.Discard, resp.Body)
			return
		}
		var text []byte
		text, e.err = io.ReadAll(resp.Body)
		e.text = string(text)
	}()
	return e
}

// isCut waits until an exchange ends, which must not look like its proper end.
func (e *underway) isCut(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case <-e.over:
		if e.err == nil {
			t.Errorf("%s: ended with %d %q, want no proper end", e.name, e.status, e.text)
		}
	case <-time.After(within):
		t.Errorf("%s: goes on", e.name)
	}
}

func (e *underway) goesOn(t *testing.T) {
	t.Helper()
	if isClosed(e.over) {
		t.Errorf("%s: ended with %d %q %v", e.name, e.status, e.text, e.err)
	}
}

var kindsUnderWay = []string{"lines", "poll", "upload", "chunked", "download", "grpc"}

// TestUnderWay takes the right to requests away that are still under way after some
// seconds, whatever their headers say: exactly those that lost it are cut.
func TestUnderWay(t *testing.T) {
	t.Parallel()
	throughBoth(t, testUnderWay)
}

func testUnderWay(t *testing.T, proxy func(string) string) {
	s := newServer(t)
	s.moreports("TLS_PORT")
	up := startSlow(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxy(wireCaddyfile))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	losing := map[string]func(user string){
		"revoked":     func(user string) { s.mustCLI("token", "revoke", user, s.tokenID(user), "--yes") },
		"refreshed":   func(user string) { s.mustCLI("token", "refresh", user, s.tokenID(user), "--yes") },
		"deactivated": func(user string) { s.mustCLI("deactivate", user) },
		"deleted":     func(user string) { s.mustCLI("delete", user, "--yes") },
		"ruleless":    func(user string) { s.mustCLI("group", "remove", "readers", user) },
	}
	stays := s.create("stays", "--group", "readers")
	var all, staying []*underway
	for _, protocol := range []string{"h1", "h2", "h3"} {
		for _, kind := range kindsUnderWay {
			staying = append(staying, begin(t, s, up, protocol, kind, "stays", stays))
		}
	}
	for name := range losing {
		user := s.create(name, "--group", "readers")
		for _, protocol := range []string{"h1", "h2", "h3"} {
			for _, kind := range kindsUnderWay {
				all = append(all, begin(t, s, up, protocol, kind, name, user))
			}
		}
	}
	for _, e := range slices.Concat(all, staying) {
		up.waitFor(t, e)
	}
	for name, lose := range losing {
		lose(name)
	}
	for _, e := range all {
		e.isCut(t, watchAfter+patience)
	}
	for _, e := range staying {
		e.goesOn(t)
	}
}

// TestUnderWayAfterExpiry: a body of known length is sent to its end although its token
// expires meanwhile, and not although it is revoked then.
func TestUnderWayAfterExpiry(t *testing.T) {
	t.Parallel()
	throughBoth(t, testUnderWayAfterExpiry)
}

func testUnderWayAfterExpiry(t *testing.T, proxy func(string) string) {
	s := newServer(t)
	s.moreports("TLS_PORT")
	up := startSlow(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxy(wireCaddyfile))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET,POST /v1/{rest...}")
	protocols := []string{"h1", "h2", "h3"}

	// expiring begins exchanges of each kind, and returns once the token has expired.
	expiring := func(name string) (known []*underway) {
		t.Helper()
		user := s.create(name, "--group", "readers")
		for ttl := 4 * time.Second; ; ttl *= 2 { // long enough for all to begin
			out := strings.Fields(s.mustCLI("token", "create", name, "--ttl", ttl.String()))
			user.secret = out[slices.Index(out, "token")+1]
			var unknown []*underway
			known = nil
			refused := false
			for _, protocol := range protocols {
				for _, kind := range kindsUnderWay {
					e := begin(t, s, up, protocol, kind, name+ttl.String(), user)
					if up.waitFor(t, e); kind == "upload" || kind == "download" {
						known = append(known, e)
					} else {
						unknown = append(unknown, e)
					}
					refused = refused || isClosed(e.over) && e.status == http.StatusUnauthorized
				}
			}
			if refused && ttl < time.Minute {
				continue
			}
			for _, e := range unknown {
				e.isCut(t, ttl+watchAfter+patience)
			}
			return known
		}
	}
	outlives := expiring("outlives")
	revoked := expiring("revoked")
	for _, e := range slices.Concat(outlives, revoked) {
		e.goesOn(t)
	}
	for _, field := range strings.Fields(s.mustCLI("token", "list", "revoked")) {
		if strings.HasPrefix(field, "token_") {
			s.mustCLI("token", "revoke", "revoked", field, "--yes")
		}
	}
	for _, e := range revoked {
		e.isCut(t, patience)
	}
	close(up.finish)
	for _, e := range outlives {
		select {
		case <-e.over:
		case <-time.After(patience):
			t.Fatalf("%s: does not end", e.name)
		}
		if want := map[bool]string{true: fmt.Sprint(uploadBytes, " bytes"), false: "abcdef"}[e.sends]; e.err != nil || e.status != 200 || e.text != want {
			t.Errorf("%s: got %d %q %v, want 200 %q", e.name, e.status, e.text, e.err, want)
		}
	}
}

// TestUnderWayOfFiles cuts the download of a file, which has no upstream that could be
// left, to a client that reads nothing meanwhile.
func TestUnderWayOfFiles(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	const size = 64 << 20
	if err := os.WriteFile(filepath.Join(s.dir, "large"), make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	withCaddyfile(s, strings.Replace(guarded("", "realm files", "\troot * "+s.dir), "reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}", "file_server", 1))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /large")
	user := s.create("billing-sync", "--group", "readers")
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.addr("API_PORT")+"/large", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(user.id, user.secret)
	resp, err := new(http.Transport).RoundTrip(r)
	if err != nil || resp.StatusCode != 200 || resp.ContentLength != size {
		t.Fatalf("got %v, %v", resp, err)
	}
	defer resp.Body.Close()
	s.mustCLI("token", "revoke", "billing-sync", s.tokenID("billing-sync"), "--yes")
	cut := "caddy_service_users_cut_streams_total 1\n"
	deadline := time.Now().Add(watchAfter + patience)
	for text := ""; !strings.Contains(text, cut); time.Sleep(50 * time.Millisecond) {
		metrics, err := http.Get("http://localhost:" + s.ports["CADDY_PORT"] + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		all, _ := io.ReadAll(metrics.Body)
		metrics.Body.Close()
		if text = string(all); time.Now().After(deadline) {
			t.Fatal("the download goes on")
		}
	}
	if n, err := io.Copy(io.Discard, resp.Body); err == nil || n >= size/2 {
		t.Errorf("after the revocation: got %d of %d bytes, %v", n, size, err)
	}
}
