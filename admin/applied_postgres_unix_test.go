//go:build unix

package admin

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// The header is true when a node cannot load the change, when the client goes away and when the database is lost
// during the wait. None of them makes an error of a change.
func TestWaitForNodes(t *testing.T) {
	server := pgtest.Shared(t)
	at, err := url.Parse(server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role)))
	if err != nil {
		t.Fatal(err)
	}
	to := at.Host
	open := func(id string, cut func([]byte) (bool, bool)) *store.Store {
		at.Host = pgtest.Proxy(t, to, cut)
		s, err := store.Open(t.Context(), at.String(), store.Options{NodeID: id, MaxStaleness: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	var lost atomic.Bool // the database, as soon as the nodes are read
	a := open("node_a", func(sent []byte) (bool, bool) {
		return lost.Load() && bytes.Contains(sent, []byte("FROM nodes")), false
	})
	var gate sync.Mutex // node_b gets to the database while it is open
	b := open("node_b", func([]byte) (bool, bool) {
		gate.Lock()
		defer gate.Unlock()
		return false, false
	})
	api := New(a, nil, nil)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { api.Serve(w, r, store.Local) }))
	web.Config.ReadTimeout, web.Config.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond // shorter than a wait
	web.Start()
	t.Cleanup(web.Close)
	send := func(client *Client, method, uri, wait string, in, out any) string {
		t.Helper()
		client.Wait, client.Applied = wait, ""
		if err := client.Do(t.Context(), method, uri, in, out); err != nil {
			t.Errorf("%s %s: %v", method, uri, err)
		}
		return client.Applied
	}
	check := func(what, got, want string) {
		t.Helper()
		if !regexp.MustCompile("^(" + want + ")$").MatchString(got) {
			t.Errorf("%s: got the header %q, want %s", what, got, want)
		}
	}
	client := &Client{Base: web.URL}
	var u ServiceUser
	check("both nodes", send(client, "POST", "/service_users", "30s", NewServiceUser{ServiceUserInput: ServiceUserInput{Name: Some("a")}}, &u), "2/2")
	works := func(s *store.Store) bool {
		_, why := s.Directory().Authenticate(access.Credential{ID: u.ID, Secret: u.Token}, testAddr, time.Now().Unix())
		return why == access.Granted
	}
	if !works(a) || !works(b) {
		t.Fatal("acknowledged by both, and a node does not accept the token")
	}

	const late = `1/2; late=node_b; until=(20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ)`
	gate.Lock()
	from := time.Now()
	token := u.URI + "/tokens/" + u.TokenID
	got := send(client, "DELETE", token, "500ms", nil, nil)
	check("one node is cut off", got, late)
	until, err := time.Parse(time.RFC3339, got[strings.LastIndex(got, "=")+1:])
	if err != nil || until.Before(from.Add(time.Minute)) || until.After(time.Now().Add(67*time.Second)) {
		t.Errorf("until: got %v, %v, want a minute and some seconds", until, err)
	}
	if works(a) || !works(b) {
		t.Errorf("the revoked token: works on the node that made the change: %t, on the one that is cut off: %t", works(a), works(b))
	}
	// An answer without a change, and a repetition, say the same.
	check("revoked again", send(client, "DELETE", token, "0s", nil, nil), late)
	for range 2 {
		client.Wait = "10ms"
		if err := client.PostOnce(t.Context(), "key", u.URI+"/tokens", nil, nil); err != nil {
			t.Error(err)
		}
		check("a repeated request", client.Applied, late)
	}

	// The client goes away.
	ctx, cancel := context.WithCancel(t.Context())
	gone := time.AfterFunc(50*time.Millisecond, cancel)
	defer gone.Stop()
	w, begun := httptest.NewRecorder(), time.Now()
	r := httptest.NewRequestWithContext(ctx, "PATCH", u.URI+"?wait=30s", strings.NewReader(`{"owner":"o"}`))
	r.Header.Set("Content-Type", "application/json")
	api.Serve(w, r, store.Local)
	if w.Code != 200 || time.Since(begun) > 20*time.Second {
		t.Errorf("the client went away: got %d after %v: %s", w.Code, time.Since(begun), w.Body)
	}
	check("the client went away", w.Header().Get(AppliedHeader), late)

	// The limits of the server are shorter than the wait; the node comes back during it.
	back := time.AfterFunc(time.Second, gate.Unlock)
	defer back.Stop()
	check("the node is back", send(client, "DELETE", token, "30s", nil, nil), "2/2")
	if works(b) {
		t.Error("acknowledged by both, and the revoked token works")
	}

	// The database is lost between the change and the question.
	for _, c := range []*Client{client, Offline(a, store.Local)} {
		lost.Store(true)
		var after ServiceUser
		owner := "owner of " + c.Base
		check("the database is lost", send(c, "PATCH", u.URI, "100ms", ServiceUserInput{Owner: Some(owner)}, &after), "unknown")
		lost.Store(false)
		if after.Owner != owner {
			t.Errorf("the change was not made: got %q", after.Owner)
		}
		check("the database is back", send(c, "PATCH", u.URI, "30s", ServiceUserInput{Owner: Some(owner)}, nil), "2/2")
	}
}
