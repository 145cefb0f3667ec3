package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// send sends a request whose body or answer is a database.
func (s *server) send(path string, body []byte, headers ...string) (reply, []byte) {
	s.t.Helper()
	r := s.exchange("POST", path, bytes.NewReader(body), headers...)
	return r, []byte(r.raw)
}

func TestBackup(t *testing.T) {
	pgtest.SQLiteOnly(t, "pg_dump makes the backups of PostgreSQL")
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	got, copied := s.send("/service_users/backup", nil)
	sum := sha256.Sum256(copied)
	digest := "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
	for name, want := range map[string]string{
		"Content-Type": "application/vnd.sqlite3", "Content-Length": fmt.Sprint(len(copied)), "Repr-Digest": digest,
		"Cache-Control": "no-store", "Content-Disposition": `attachment; filename="service_users.backup"`,
	} {
		if got := got.header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if got.status != 200 || !bytes.HasPrefix(copied, []byte("SQLite format 3\x00")) || bytes.Contains(copied, []byte("csu_")) {
		t.Errorf("got %d and %d bytes, want 200 and a database without secrets", got.status, len(copied))
	}
	if _, ok := readOpenAPI().Paths["/service_users/backup"]["post"].Responses["200"].Headers["Repr-Digest"]; !ok {
		t.Error("the digest of a backup is not documented")
	}
	s.run(r(`GET /audit_events?limit=1`, `200 {"audit_events":[{"action":"store.backup","actor":"local"}]}`))

	s.run(
		r(`POST /service_users/restore`, `405`), // a store is restored while no server runs
		r(`GET /service_users/check`, `200 {"ok":true,"service_users":1,"findings":[]}`),
		r(`GET /service_users/check?head=1`, `400 ERR_INVALID_VALUE [head]`),
		r(`GET /service_users/check?head=1:`+strings.Repeat("0", 64), `200 {"ok":false}`),
	)
}

// A manager neither takes a backup nor checks the store.
func TestBackupIsForAdmins(t *testing.T) {
	pgtest.SQLiteOnly(t, "pg_dump makes the backups of PostgreSQL")
	s := serve(t, store.Options{})
	for _, row := range []struct {
		by     store.Actor
		status int
	}{
		{store.Local, 200},
		{HumanAdmin("alice"), 200},
		{store.Actor{Name: "service_" + strings.Repeat("0", 27)}, 200},
		{s.api.HumanManager("carol", []string{"finance"}, nil), 403},
	} {
		s.by = row.by
		if got, _ := s.send("/service_users/backup", nil); got.status != row.status {
			t.Errorf("%s: backup: got %d, want %d", row.by.Name, got.status, row.status)
		}
		if got := s.do("GET /service_users/check"); got.status != row.status {
			t.Errorf("%s: check: got %d, want %d", row.by.Name, got.status, row.status)
		}
	}
}

// What comes is what was sent, or an error.
func TestClientBackup(t *testing.T) {
	pgtest.SQLiteOnly(t, "pg_dump makes the backups of PostgreSQL")
	s := serve(t, store.Options{})
	for name, client := range map[string]*Client{"a listener": {Base: s.URL}, "a store": Offline(s.store, store.Local)} {
		var copied bytes.Buffer
		size, sum, err := client.Backup(t.Context(), &copied)
		if want := sha256.Sum256(copied.Bytes()); err != nil || size != int64(copied.Len()) || !bytes.Equal(sum, want[:]) {
			t.Fatalf("%s: got %d bytes, %x, %v, want %d and their digest", name, size, sum, err, copied.Len())
		}
	}
	answer := func(digest, body string) *Client {
		return &Client{Base: "http://x", HTTP: &http.Client{Transport: roundTrip(func(*http.Request) *http.Response {
			h := http.Header{"Content-Type": {DatabaseType}, OperationHeader: {"op_0"}}
			if digest != "" {
				h.Set("Repr-Digest", digest)
			}
			return &http.Response{StatusCode: 200, Header: h, Body: io.NopCloser(strings.NewReader(body))}
		})}}
	}
	for name, client := range map[string]*Client{
		"no digest": answer("", "x"), "a bad digest": answer("sha-256=x", "x"), "another digest": answer(reprDigest(make([]byte, 32)), "x"),
	} {
		if _, _, err := client.Backup(t.Context(), io.Discard); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	if _, _, err := Offline(s.store, store.Actor{Name: "human:c", Scope: &store.Scope{}}).Backup(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "only an admin") {
		t.Errorf("a refusal: got %v, want its message", err)
	}
}
