package store

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// One statement loads a change of service users as a transaction does, and leaves all other changes to it.
func TestLoadAtOnce(t *testing.T) {
	t.Parallel()
	at := pgtest.URL(t)
	a := open(t, at, Options{})
	readers := addGroup(a, "readers", "allow GET /v1/{x}")
	u, token := addUser(a, "user", readers.ID)
	gone, _ := addUser(a, "gone")
	b := open(t, at, Options{})
	conn := must(b.read.Conn(ctx))
	defer conn.Close()
	users := func(l *loaded) string {
		var list []string
		l.directory.Export(func(u *access.User) { list = append(list, fmt.Sprintf("%+v", *u)) })
		return strings.Join(list, "\n")
	}
	for _, row := range []struct {
		name   string
		change func() error
		usual  bool
	}{
		{"nothing", func() error { return nil }, false},
		{"a revoked token", func() error { return a.RevokeToken(ctx, Local, u.ID, token.ID, 0) }, false},
		{"a new service user", func() error { addUser(a, "new", readers.ID); return nil }, false},
		{"a deleted service user", func() error { return a.deleteUser(ctx, Local, gone.ID, 0) }, false},
		{"a new group", func() error { addGroup(a, "closers", "deny * /v1/{rest...}"); return nil }, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			mustDo(b.lock(ctx)) // the watcher of b waits
			defer b.unlock()
			mustDo(b.reload(ctx, conn))
			mustDo(row.change())
			got, now, err := b.loadAtOnce(ctx, conn, `(SELECT version FROM store_schema), `+nowMilli)
			if err != nil || now == 0 {
				t.Fatalf("got the time %d, %v", now, err)
			}
			if row.usual != (got == nil) {
				t.Fatalf("got %v, want the usual way: %t", got, row.usual)
			}
			if row.usual {
				return
			}
			tx := must(conn.BeginTx(ctx, snapshot))
			defer tx.Rollback()
			want := must(b.load(ctx, tx))
			if got.position != want.position || users(got) != users(want) || !reflect.DeepEqual(got.changes, want.changes) {
				t.Errorf("got %+v\n%s\nwant %+v\n%s", got.position, users(got), want.position, users(want))
			}
		})
	}
}
