//go:build unix

package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// roleURL returns the URL of a new schema for a new role. alter is the end of an ALTER ROLE for it.
func roleURL(t *testing.T, alter string) string {
	t.Helper()
	server := pgtest.Shared(t)
	role := fmt.Sprintf("role_%d", time.Now().UnixNano())
	mustDo(server.Exec("CREATE ROLE " + role + " LOGIN; ALTER ROLE " + role + " " + alter))
	return server.SocketURL(role, server.NewSchema(t, role))
}

// While a node has begun a change and is cut off from the network, no other node waits for it for
// ever.
func TestPostgresCutOff(t *testing.T) {
	server := pgtest.Shared(t)
	at := must(url.Parse(server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role))))
	direct := at.String()
	var cut atomic.Bool
	reached, release := make(chan struct{}), make(chan struct{})
	at.Host = pgtest.Proxy(t, at.Host, func(sent []byte) (bool, bool) {
		if bytes.Contains(sent, []byte("INSERT INTO audit_events")) && cut.CompareAndSwap(true, false) {
			close(reached)
			<-release // neither an answer nor the end of the connection
			return true, false
		}
		return false, false
	})
	a, b := open(t, at.String(), Options{timeouts: timeouts{idle: 300 * time.Millisecond}}), open(t, direct, Options{})
	cut.Store(true)
	made := make(chan error)
	go func() {
		_, _, err := a.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "a"}}, nil)
		made <- err
	}()
	<-reached
	_, _, err := b.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "b"}}, nil)
	if err != nil {
		t.Error(err)
	}
	close(release)
	if err := <-made; err != nil {
		t.Error(err)
	}
	if events := trail(t, b); len(events) != 2 {
		t.Errorf("audit records: got %d, want 2", len(events))
	}
}

// While the network is cut, reads and the end of the store do not hang.
func TestPostgresNoNetwork(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	at := must(url.Parse(server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role)) + "&connect_timeout=3"))
	var cut atomic.Bool
	at.Host = pgtest.Proxy(t, at.Host, func([]byte) (bool, bool) {
		if cut.Load() {
			<-t.Context().Done()
		}
		return false, false
	})
	s := must(Open(ctx, at.String(), Options{MaxStaleness: 2 * time.Second}))
	_, _, _ = s.AuditEvents(ctx, Local, AuditQuery{}) // its connection is idle now
	cut.Store(true)
	ended := make(chan error)
	go func() {
		_, _, err := s.AuditEvents(ctx, Local, AuditQuery{})
		ended <- err
	}()
	wait := time.After(time.Minute)
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a read without a network: got no error")
		}
	case <-wait:
		t.Fatal("the read hangs")
	}
	eventually(t, "the directory is too old", s.Stale)
	go func() { ended <- s.Close() }()
	select {
	case <-ended:
	case <-wait:
		t.Fatal("Close hangs")
	}
}

// A name from another authenticator can have any bytes. PostgreSQL rejects some of them as text, and
// the trail must stay whole.
func TestActorOfAnyBytes(t *testing.T) {
	for _, at := range []string{pgtest.Place(t), pgtest.URL(t)} {
		s := open(t, at, Options{})
		for _, name := range []string{"human:\xff", "human:a\x00b", "human:\xed\xa0\x80"} {
			mustDo(s.NoteAttempt(ctx, Actor{Name: name}, "", Attempt{Status: 403}))
		}
		if r := must(s.VerifyAudit(ctx, Local, AuditHead{})); r.BadSeq != 0 {
			t.Errorf("%s: got %+v", at, r)
		}
	}
}

// Databases in which a store would not be safe, or could not work, are refused in words.
func TestPostgresUnfit(t *testing.T) {
	server := pgtest.Shared(t)
	shared := server.NewSchema(t, pgtest.Role)
	mustDo(server.Exec("GRANT CREATE ON SCHEMA " + shared + " TO PUBLIC"))
	mustDo(server.Exec("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 OWNER " + pgtest.Role))
	t.Cleanup(func() { mustDo(server.Exec("DROP DATABASE latin WITH (FORCE)")) })
	latin := strings.Replace(server.SocketURL(pgtest.Role, "public"), "/test?", "/latin?", 1)
	conn := must(pgx.Connect(ctx, latin))
	must(conn.Exec(ctx, "CREATE SCHEMA own"))
	mustDo(conn.Close(ctx))
	for _, row := range []struct{ name, at, want string }{
		{"others may create functions", server.SocketURL(pgtest.Role, shared), "REVOKE CREATE ON SCHEMA"},
		{"on the path", server.SocketURL(pgtest.Role, server.NewSchema(t, pgtest.Role)+","+shared), "REVOKE CREATE ON SCHEMA"},
		{"another encoding", strings.Replace(latin, "=public", "=own", 1), "ENCODING 'UTF8'"},
		{"read only", roleURL(t, "SET default_transaction_read_only = on"), "can only be read"},
	} {
		s, err := Open(ctx, row.at, Options{})
		if err == nil {
			s.Close()
			err = errors.New("opened")
		}
		if !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v, want %q", row.name, err, row.want)
		}
	}
}

// Settings of a role that change the meaning of statements do no harm.
func TestPostgresOddRole(t *testing.T) {
	server, at := pgtest.Shared(t), roleURL(t, "SET default_transaction_isolation = serializable")
	role := must(url.Parse(at)).User.Username()
	for _, setting := range []string{
		"standard_conforming_strings = off", "TimeZone = 'Pacific/Kiritimati'", "DateStyle = 'SQL, DMY'",
		"bytea_output = escape", "transform_null_equals = on", "quote_all_identifiers = on", "client_encoding = LATIN1",
		"extra_float_digits = -15", "IntervalStyle = iso_8601", "array_nulls = off", "row_security = off",
	} {
		mustDo(server.Exec("ALTER ROLE " + role + " SET " + setting))
	}
	a, b := open(t, at, Options{}), open(t, at, Options{})
	u, token := addUser(a, "ä€", addGroup(a, "g", "allow GET /a").ID)
	eventually(t, "the service user on both nodes", func() bool { return b.Directory().Revision() == a.Directory().Revision() })
	for i, s := range []*Store{a, b} {
		address := addrOf(fmt.Sprint("192.0.2.", i))
		p, why := s.Directory().Authenticate(access.Credential{ID: u.ID, Secret: token.Secret}, address, time.Now().Unix())
		if why != access.Granted {
			t.Fatal(why)
		}
		s.Use(p, time.Now().Unix(), address, "")
		mustDo(s.FlushUse(ctx))
	}
	whole(t, a)
	other := open(t, strings.Replace(at, role, pgtest.Superuser, 1), Options{})
	if got := must(other.ServiceUser(ctx, Local, u.ID, false)).Name; got != "ä€" {
		t.Errorf("another role reads %q", got)
	}
}

// Any role of the database can send notifications. They never make a node busy.
func TestPostgresStorm(t *testing.T) {
	server := pgtest.Shared(t)
	at := must(url.Parse(server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role))))
	var looks atomic.Int64
	at.Host = pgtest.Proxy(t, at.Host, func(sent []byte) (bool, bool) {
		if bytes.Contains(sent, []byte("SELECT revision, audit_seq")) {
			looks.Add(1)
		}
		return false, false
	})
	s := open(t, at.String(), Options{})
	channel := s.engine.(*postgresEngine).channel
	stranger := must(pgx.Connect(ctx, server.SocketURL(pgtest.Superuser, "public")))
	defer stranger.Close(ctx)
	before, begun := looks.Load(), time.Now()
	for n := 0; time.Since(begun) < time.Second; n++ {
		must(stranger.Exec(context.Background(), "SELECT pg_notify($1, $2)", channel, fmt.Sprint(1_000_000+n)))
	}
	if n := looks.Load() - before; n > 300 {
		t.Errorf("got %d looks in a second", n)
	}
}
