//go:build linux

package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// startFleet starts Caddys on an empty store. There is a pooler of transactions before the last of them. Every
// second one forwards by service_users_proxy.
func startFleet(t testing.TB, nodes int, caddyfile string) *fleet {
	t.Helper()
	f := &fleet{t: t, database: pgtest.Shared(t), past: []fleetWorld{{}}, since: []time.Time{{}}}
	pooled, err := url.Parse(f.database.Pooler(t))
	if err != nil {
		t.Fatal(err)
	}
	role := pooled.User.Username()
	f.schema = strings.TrimPrefix(role, "pooled_")
	for i := range nodes {
		name := fmt.Sprint("fleet_", role, "_", i)
		place := f.database.SocketURL(role, f.schema) + "&application_name=" + name
		if i == nodes-1 {
			place = pooled.String() + "&application_name=" + name
		}
		// The address says at which node a token was used.
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i))}}
		n := &fleetNode{
			server: newServer(t, "SERVICE_USERS_STORE="+place, "PROXY="+[]string{"reverse_proxy", "service_users_proxy"}[i%2]), name: name,
			client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 20, DialContext: dialer.DialContext}},
		}
		t.Cleanup(n.client.CloseIdleConnections)
		upstream, err := net.Listen("tcp", "127.0.0.1:"+n.ports["UPSTREAM_PORT"])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { upstream.Close() })
		go func() { _ = http.Serve(upstream, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) }()
		if err := os.WriteFile(n.caddyfile(), []byte(caddyfile), 0o600); err != nil {
			t.Fatal(err)
		}
		n.start(n.caddyfile())
		f.nodes, f.base, f.known = append(f.nodes, n), append(f.base, 0), append(f.known, make(map[int]int))
		f.identify(n)
	}
	return f
}

// identify finds the id of a node that has started.
func (f *fleet) identify(n *fleetNode) {
	var newest string
	if err := f.database.QueryRow("SELECT id FROM "+f.schema+".nodes ORDER BY started_at DESC LIMIT 1", nil, &newest); err != nil {
		f.t.Fatal(err)
	}
	if !slices.ContainsFunc(f.nodes, func(n *fleetNode) bool { return n.id == newest }) {
		n.id = newest
	}
}

func (n *fleetNode) caddyfile() string { return n.dir + "/Caddyfile" }

// send sends a request and returns the whole answer. It may run in any goroutine.
func (n *fleetNode) send(method, port string, at *url.URL, host string, who credentials, body any, header http.Header) (status int, h http.Header, text []byte, err error) {
	var in io.Reader = http.NoBody
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return 0, nil, nil, err
		}
		in = bytes.NewReader(encoded)
	}
	at.Scheme, at.Host = "http", "127.0.0.1:"+n.ports[port]
	if port == "CADDY_PORT" {
		at.Host = n.addr(port)
	}
	r, err := http.NewRequest(method, at.String(), in)
	if err != nil {
		return 0, nil, nil, err
	}
	if header != nil {
		r.Header = header.Clone()
	}
	if r.Host = host; body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if who.id != "" {
		r.SetBasicAuth(who.id, who.secret)
	}
	resp, err := n.client.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, text, err
}

// admin makes an administrative request, which must succeed.
func (n *fleetNode) admin(method, uri string, in, out any, header ...string) (http.Header, error) {
	at, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	given := make(http.Header)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		given.Add(name, value)
	}
	status, h, text, err := n.send(method, "CADDY_PORT", at, "", credentials{}, in, given)
	if err == nil && status/100 != 2 {
		err = fmt.Errorf("%s %s at %s: got %d %s", method, uri, n.name, status, text)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(text, out)
	}
	return h, err
}

// rotate lets a service user rotate its token.
func (n *fleetNode) rotate(who credentials) (id, secret string, err error) {
	status, _, text, err := n.send("POST", "API_PORT", &url.URL{Path: "/_self/rotate"}, "", who, struct{}{}, nil)
	var out struct{ ID, Token string }
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("a rotation at %s: got %d %s", n.name, status, text)
	}
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	return out.ID, out.Token, err
}

// revision returns the revision that a node decides by, or 0.
func (n *fleetNode) revision() int64 {
	var ready admin.Readiness
	_, _ = n.admin("GET", "/service_users/readyz", nil, &ready)
	return ready.Revision
}
