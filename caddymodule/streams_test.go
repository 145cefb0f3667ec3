package caddymodule

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// openStream is a WebSocket or an event stream that a test has opened.
type openStream struct {
	net.Conn
	in     *bufio.Reader
	socket bool
}

// openBoth opens an event stream and a WebSocket.
func openBoth(t *testing.T, s *server, user credentials, header ...string) []openStream {
	t.Helper()
	events := openEvents(t, s, user, header...)
	t.Cleanup(func() { events.Close() })
	socket, in := openWebSocket(t, s, user, header...)
	return []openStream{{events, bufio.NewReader(events), false}, {socket, in, true}}
}

// goesOn checks that streams are still open: what is sent through them arrives.
func goesOn(t *testing.T, up *backend, what string, streams []openStream) {
	t.Helper()
	for _, st := range streams {
		_ = st.SetDeadline(time.Now().Add(patience))
		var got string
		var err error
		if st.socket {
			if _, err = st.Write([]byte("\x81\x84\x00\x00\x00\x00echo")); err == nil {
				got, err = readFrame(st.in)
			}
			if got != "echo" || err != nil {
				t.Errorf("%s: the WebSocket ended: got %q, %v", what, got, err)
			}
			continue
		}
		up.broadcast("news")
		for got != "data: news\n" && err == nil {
			got, err = st.in.ReadString('\n')
		}
		if err != nil {
			t.Errorf("%s: the event stream ended: %v", what, err)
		}
	}
}

// isCut checks that streams are ended.
func isCut(t *testing.T, what string, streams []openStream) {
	t.Helper()
	for _, st := range streams {
		_ = st.SetDeadline(time.Now().Add(patience))
		if text, err := io.ReadAll(st.in); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: WebSocket %t: the stream stays open: %q", what, st.socket, text)
		}
	}
}

// A handler behind ours changes the header that a condition looks at.
const changingCaddyfile = `
{
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	route {
		service_users
		request_header X-Env dev
		request_header -X-Plan
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
}
`

// TestConditionalStreams: a stream ends when the condition that let it through
// does not hold any more, and no other stream does. The request is asked about
// as it came.
func TestConditionalStreams(t *testing.T) {
	t.Parallel()
	throughBoth(t, testConditionalStreams)
}

func testConditionalStreams(t *testing.T, proxy func(string) string) {
	s := newServer(t)
	up := startBackend(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxy(changingCaddyfile))
	s.mustCLI("group", "create", "by-label", "--rule", `allow GET /v1/{rest...} when user.labels.env == "prod"`)
	s.mustCLI("group", "create", "by-header", "--rule", `allow GET /v1/{rest...} when request.header("X-Env") == "prod" && request.header("X-Plan") == "gold" && request.header("Authorization") + request.header("X-Forwarded-Proto") == ""`)
	s.mustCLI("group", "create", "by-address", "--rule", `allow GET /v1/{rest...} when cidr("127.0.0.0/8").containsIP(request.remote_ip)`)
	s.mustCLI("group", "create", "by-membership", "--condition", `user.labels.?env.orValue("") == "member"`, "--rule", "allow GET /v1/{rest...}")
	s.mustCLI("group", "create", "denied-by-label", "--rule", "allow GET /v1/{rest...}", "--rule", `deny GET /v1/{rest...} when user.labels.env == "dev"`)
	headers := []string{"X-Env: prod", "X-Plan: gold", "X-Forwarded-Proto: https"}
	byHeader := openBoth(t, s, s.create("by-header", "--group", "by-header", "--label", "env=prod"), headers...)
	plain := openBoth(t, s, s.create("plain", "--group", "by-header"), headers[:2]...) // without a header that makes a copy
	byAddress := openBoth(t, s, s.create("by-address", "--group", "by-address", "--label", "env=prod"))
	for _, row := range []struct {
		name, user, label string
		groups            []string
		lose              []string // the label afterwards
	}{
		{"another value", "value", "env=prod", []string{"--group", "by-label"}, []string{"--label", "env=dev"}},
		{"no value", "none", "env=prod", []string{"--group", "by-label"}, []string{"--label", "env-"}},
		{"no member", "member", "env=member", nil, []string{"--label", "env=prod"}},
		{"a deny that holds", "denied", "env=prod", []string{"--group", "denied-by-label"}, []string{"--label", "env=dev"}},
		{"a deny in doubt", "doubt", "env=prod", []string{"--group", "denied-by-label"}, []string{"--label", "env-"}},
	} {
		user := s.create(row.user, append(row.groups, "--label", row.label)...)
		streams := openBoth(t, s, user)
		s.mustCLI("update", row.user, "--owner", "somebody else")
		goesOn(t, up, row.name, streams)
		s.mustCLI(append([]string{"update", row.user}, row.lose...)...)
		isCut(t, row.name, streams)
		if got := s.get("/v1/events", user).StatusCode; got != 403 {
			t.Errorf("%s: a new request: got %d, want 403", row.name, got)
		}
	}
	for _, user := range []string{"by-header", "plain", "by-address"} {
		s.mustCLI("update", user, "--label", "env=dev", "--add-team", "another")
	}
	goesOn(t, up, "by header", byHeader)
	goesOn(t, up, "by header alone", plain)
	goesOn(t, up, "by address", byAddress)
}

// TestObservedStreams: where no rule is needed, none is needed to stay, until the
// site enforces.
func TestObservedStreams(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	up := startBackend(t, s.ports["UPSTREAM_PORT"])
	observing := strings.Replace(proxyCaddyfile, "\tservice_users\n\treverse", "\tservice_users {\n\t\tmode observe\n\t}\n\treverse", 1)
	withCaddyfile(s, observing)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	s.mustCLI("group", "create", "deniers", "--rule", "deny GET /v1/events")

	none := s.create("none")
	streams := openBoth(t, s, none)
	s.mustCLI("update", "none", "--owner", "somebody")
	goesOn(t, up, "no rule allows it", streams)

	loses := s.create("loses", "--group", "readers")
	lost := openBoth(t, s, loses)
	s.mustCLI("group", "remove", "readers", "loses")
	goesOn(t, up, "no rule allows it any more", lost)

	denied := s.create("denied")
	events := openEvents(t, s, denied)
	s.mustCLI("group", "add", "deniers", "denied")
	isCut(t, "denied", []openStream{{events, bufio.NewReader(events), false}})
	s.mustCLI("token", "revoke", "loses", s.tokenID("loses"), "--yes")
	isCut(t, "revoked", lost)

	stays := openEvents(t, s, s.create("reader", "--group", "readers"))
	defer stays.Close()
	if out, ok := s.reload(proxyCaddyfile); !ok {
		t.Fatal(out)
	}
	isCut(t, "enforced", streams)
	goesOn(t, up, "allowed by a rule", []openStream{{stays, bufio.NewReader(stays), false}})
}

// TestStreamsAfterGrace: a stream does not outlive its token, although the token
// had no end when the stream began.
func TestStreamsAfterGrace(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	startBackend(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxyCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	streams := openBoth(t, s, s.create("billing-sync", "--group", "readers"))
	s.mustCLI("token", "refresh", "billing-sync", s.tokenID("billing-sync"), "--grace", "1s")
	isCut(t, "after the grace", streams)
}

// newStream watches a stream of a new service user that this rule gives the right
// to it.
func newStream(t *testing.T, rule string, options ...store.Options) (all *streams, user store.ServiceUser, token *store.Issued, add func() (ctx context.Context, done func())) {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store.db"), append(options, store.Options{})[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	g := must(s.CreateGroup(t.Context(), store.Local, store.Group{Name: "readers", Mode: access.Enforce, Rules: []access.Rule{must(access.ParseRule(rule))}}))
	user, token, err = s.CreateServiceUser(t.Context(), store.Local, store.ServiceUser{Profile: access.Profile{Name: "billing-sync", Active: true}, Groups: []string{g.ID}}, &store.Token{})
	if err != nil {
		t.Fatal(err)
	}
	all = newStreams(s)
	return all, user, token, func() (context.Context, func()) {
		t.Helper()
		r := prepared(httptest.NewRequestWithContext(t.Context(), "GET", "/v1/events", nil))
		p, why := s.Directory().Authenticate(access.Credential{ID: user.ID, Secret: token.Secret}, netip.Addr{}, s.Now().Unix())
		if why != access.Granted {
			t.Fatal(why)
		}
		r.Header["Upgrade"] = []string{"websocket"} // watched from the start
		begun, over, ended := make(chan context.Context), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			defer func() { _ = recover() }() // as the server does, when the stream is cut
			rq := &request{r: r, principal: p, action: access.Action{Method: "GET", Host: "app.example", Path: "/v1/events"}}
			st := all.begin(new(Handler), httptest.NewRecorder(), rq, access.Decision{})
			_ = st.serve(r, caddyhttp.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				begun <- r.Context()
				<-over
				return nil
			}))
		}()
		return <-begun, func() { close(over); <-ended }
	}
}

// inBubble lets a store run in a bubble of synctest, which a wait for file notifications would keep
// from being idle.
var inBubble = store.Options{Poll: time.Second}

// TestStreamsExpire follows the end of a token, which may come nearer or go away
// while a stream is open.
func TestStreamsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all, user, token, add := newStream(t, "allow GET /v1/{rest...}", inBubble)
		defer all.close()
		ctx, done := add()
		defer done()
		change := func(end time.Time) {
			t.Helper()
			if _, err := all.store.UpdateServiceUser(t.Context(), store.Local, user.ID, 0, func(u *store.ServiceUser) error { u.ExpiresAt = end; return nil }); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		begin := time.Now()
		change(begin.Add(3 * time.Second))
		change(begin.Add(2 * time.Second))
		change(begin.Add(6 * time.Second)) // later than before
		if time.Sleep(4 * time.Second); ctx.Err() != nil {
			t.Error("cut although the end has been put off")
		}
		change(time.Time{})
		if time.Sleep(4 * time.Second); ctx.Err() != nil {
			t.Error("cut although it has no end any more")
		}
		if _, _, err := all.store.RefreshToken(t.Context(), store.Local, user.ID, token.ID, 0, 2*time.Second, 0); err != nil {
			t.Fatal(err)
		}
		if time.Sleep(time.Second); ctx.Err() != nil {
			t.Error("cut within the grace")
		}
		if time.Sleep(time.Second + time.Millisecond); context.Cause(ctx) != errCut {
			t.Errorf("after the grace: got %v, want %v", context.Cause(ctx), errCut)
		}
	})
}

// TestStreamsNow: a stream is judged again by the time that it is then.
func TestStreamsNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := time.Now().Add(2 * time.Second).UTC()
		all, user, _, add := newStream(t, `allow GET /v1/{rest...} when now < timestamp("`+end.Format(time.RFC3339)+`")`, inBubble)
		defer all.close()
		ctx, done := add()
		defer done()
		for _, want := range []error{nil, errCut} {
			time.Sleep(1500 * time.Millisecond)
			must(all.store.UpdateServiceUser(t.Context(), store.Local, user.ID, 0, func(u *store.ServiceUser) error { u.Owner += "x"; return nil }))
			if synctest.Wait(); context.Cause(ctx) != want {
				t.Errorf("%v before the end: got %v, want %v", time.Until(end), context.Cause(ctx), want)
			}
		}
	})
}

// TestStreamsStale: while the store is stale, no stream goes on.
func TestStreamsStale(t *testing.T) {
	t.Parallel()
	all, _, _, add := newStream(t, "allow GET /v1/{rest...}", store.Options{MaxStaleness: time.Second})
	defer all.close()
	ctx, done := add()
	defer done()
	path := all.store.Path()
	if err := os.Rename(path, path+".aside"); err != nil {
		t.Fatal(err)
	}
	defer os.Rename(path+".aside", path)
	for deadline := time.Now().Add(patience); ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the stream goes on; stale: %t", all.store.Stale())
		}
		all.lookAgain()
	}
	if got := context.Cause(ctx); got != errCut || !all.store.Stale() {
		t.Errorf("got %v, stale %t, want %v of a stale store", got, all.store.Stale(), errCut)
	}
}

// TestStreamsAreForgotten: a stream that has ended leaves the list, so that no later change
// judges it again.
func TestStreamsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all, _, _, add := newStream(t, "allow GET /v1/{rest...}")
		defer all.close()
		watched := func() int {
			all.mu.Lock()
			defer all.mu.Unlock()
			return len(all.open)
		}
		_, done := add()
		if got := watched(); got != 1 {
			t.Errorf("%d streams while one is open, want 1", got)
		}
		if done(); watched() != 0 {
			t.Errorf("%d streams after the end, want none", watched())
		}
	})
}

// TestStreamsClose: what nobody would look at again is cut.
func TestStreamsClose(t *testing.T) {
	all, _, _, add := newStream(t, "allow GET /v1/{rest...}")
	ended, done := add()
	done()
	open, done := add()
	defer done()
	if open.Err() != nil {
		t.Fatal("cut without a reason")
	}
	all.close()
	late, done := add()
	defer done()
	for name, tt := range map[string]struct {
		ctx  context.Context
		want error
	}{"ended before": {ended, context.Canceled}, "open": {open, errCut}, "opened afterwards": {late, errCut}} {
		if got := context.Cause(tt.ctx); got != tt.want {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
	}
}
