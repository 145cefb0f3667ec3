package caddymodule

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// TestTroublesOfPostgres produces each text of docs/troubleshooting.md about a store in PostgreSQL.
func TestTroublesOfPostgres(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	opened := func(at string) error {
		s, err := store.Open(t.Context(), at, store.Options{})
		if err == nil {
			err = errors.New("the store was opened")
			s.Close()
		}
		return err
	}
	url := func(from, to string) string {
		good := server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role))
		changed := strings.Replace(good, from, to, 1)
		if changed == good {
			t.Fatalf("%s does not have %s", good, from)
		}
		return changed
	}
	// prepared is an error of opening a schema in which statements were run.
	prepared := func(statements string) error {
		schema := server.NewSchema(t, pgtest.Role)
		at := server.SocketURL(pgtest.Role, schema)
		if strings.Contains(statements, "store_schema") {
			mustDo(t, closed(store.Open(t.Context(), at, store.Options{})))
		}
		mustDo(t, server.Exec("SET ROLE "+pgtest.Role+"; SET search_path = "+schema+"; "+statements+"; RESET search_path; RESET ROLE"))
		return opened(at)
	}
	role := func(name, more string) string {
		mustDo(t, server.Exec("CREATE ROLE "+name+" LOGIN PASSWORD '"+pgtest.Password+"' "+more))
		t.Cleanup(func() { mustDo(t, server.Exec("DROP ROLE "+name)) })
		return url(pgtest.Role+":", name+":")
	}
	address := "127.0.0.1:" + strings.TrimPrefix(url("@127.0.0.1:", "@@"), "postgres://"+pgtest.Role+":"+pgtest.Password+"@@")
	address, _, _ = strings.Cut(address, "/")
	tried := map[string]func() error{
		"the URL of the store is not valid": func() error { return opened(url(pgtest.Password, "a/b")) },
		"SQLSTATE 28P01":                    func() error { return opened(url(pgtest.Password, "wrong")) },
		"SQLSTATE 28000":                    func() error { return opened(server.SocketURL("nobody_here", "public")) },
		"SQLSTATE 3D000":                    func() error { return opened(url("/test?", "/nothere?")) },
		"SQLSTATE 42501":                    func() error { return opened(role("without_rights", "") + ",public") },
		"SQLSTATE 53300":                    func() error { return opened(role("without_connections", "CONNECTION LIMIT 0")) },
		"server refused TLS connection":     func() error { return opened(url("sslmode=disable", "sslmode=require")) },
		"tls: failed to verify certificate": func() error {
			return opened(url(address, foreignTLS(t)) + "&sslmode=verify-full")
		},
		"connection refused":                                         func() error { return opened(url(address, "127.0.0.1:1")) },
		"unsupported startup parameter: search_path":                 func() error { return opened(server.Pooler(t) + "&search_path=public") },
		"has tables of another program":                              func() error { return prepared("CREATE TABLE mine ()") },
		"made by a newer version":                                    func() error { return prepared("UPDATE store_schema SET version = 999") },
		"older than before: the database is an older or another one": nil, // TestOlderCopy… in store
		"reporting the revision: timeout":                            nil,
		"notifications of the database do not arrive":                nil, // TestPostgresPooler in store
		"this node is read-only":                                     nil, // TestMoveOfFleetPage
		"the last good copy of the store cannot be kept":             nil, // TestLastGoodCopy
		"the last good copy of the store cannot be used":             nil, // TestLastGoodRefused in store
	}
	rows, text := readTroubles(t).rows("A store in PostgreSQL"), literals(t)
	untried(t, rows, tried)
	for row, try := range tried {
		if try == nil {
			for _, part := range strings.Split(strings.TrimSuffix(row, ": timeout"), ": ") {
				if !strings.Contains(text, part) {
					t.Errorf("no text of the program has %q", row)
				}
			}
			continue
		}
		err := try()
		if !strings.Contains(err.Error(), row) || strings.Contains(err.Error(), pgtest.Password) {
			t.Errorf("got %v, want %q and no password", err, row)
		}
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func closed(s *store.Store, err error) error {
	if err == nil {
		err = s.Close()
	}
	return err
}

// foreignTLS returns the address of a server that answers the first message of PostgreSQL's TLS, and has a
// certificate of an unknown authority.
func foreignTLS(t *testing.T) string {
	t.Helper()
	certificates := httptest.NewUnstartedServer(nil)
	certificates.StartTLS()
	t.Cleanup(certificates.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	mustDo(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, c, 8); err == nil {
				_, _ = c.Write([]byte("S"))
				_ = tls.Server(c, certificates.TLS).Handshake()
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}
