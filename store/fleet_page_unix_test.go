//go:build unix

package store

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// A store in a file can be read-only while it is copied. Its uses go to the store that comes after it.
func TestInherit(t *testing.T) {
	pgtest.SQLiteOnly(t, "it moves a store out of a file")
	w := newWorld(t, Options{UseInterval: time.Hour})
	next, _, err := w.rotate(w.token.ID, time.Hour)
	mustDo(err)
	opts := w.opts
	opts.ReadOnly = true
	frozen := open(t, w.path, opts)
	for secret, uses := range map[string]int{w.token.Secret: 2, next.Secret: 3} {
		p, why := frozen.Directory().Authenticate(access.Credential{ID: w.user.ID, Secret: secret}, addrOf("192.0.2.1"), w.now().Unix())
		if why != access.Granted {
			t.Fatal(why)
		}
		for range uses {
			frozen.Use(p, w.now().Unix(), addrOf("192.0.2.1"), "")
		}
	}
	revision := w.Directory().Revision()
	if err := frozen.RevokeToken(ctx, alice, w.user.ID, next.ID, 0); kind(err) != "read-only" {
		t.Errorf("a revocation: got %v", err)
	}
	mustDo(frozen.Close())
	if got := must(Holds(ctx, w.path)); got.Revision != revision || w.row(next.ID).UseCount != 0 {
		t.Errorf("the read-only store has written: got %+v", got)
	}
	w.Inherit(frozen)
	if _, _, err := w.rotate(w.token.ID, time.Hour); !errors.Is(err, ErrReplaced) {
		t.Errorf("after the first use of the successor: got %v, want ErrReplaced", err)
	}
	mustDo(w.flushAll(ctx))
	if a, b := w.row(w.token.ID), w.row(next.ID); a.UseCount != 2 || b.UseCount != 3 || b.LastUsedAt.IsZero() {
		t.Errorf("got %+v and %+v, want 2 and 3 uses", a, b)
	}
}

// No use is lost that a store takes over while it writes others.
func TestInheritWhileWriting(t *testing.T) {
	pgtest.SQLiteOnly(t, "it moves a store out of a file")
	w := newWorld(t, Options{UseInterval: time.Hour})
	w.use(w.token.Secret, "192.0.2.1", "")
	mustDo(w.flushAll(ctx))
	opts := w.opts
	opts.ReadOnly = true
	frozen := open(t, w.path, opts)
	p, why := frozen.Directory().Authenticate(access.Credential{ID: w.user.ID, Secret: w.token.Secret}, addrOf("192.0.2.1"), w.now().Unix())
	if why != access.Granted {
		t.Fatal(why)
	}
	frozen.Use(p, w.now().Unix(), addrOf("192.0.2.1"), "")
	mustDo(frozen.Close())
	before, times := w.row(w.token.ID).UseCount, int64(0)
	written := make(chan struct{})
	go func() {
		defer close(written)
		for w.uses.written() < 20 {
			mustDo(w.FlushUse(ctx))
		}
	}()
	for !isClosed(written) { // each time, frozen still has its use
		w.Inherit(frozen)
		times++
	}
	mustDo(w.FlushUse(ctx))
	if got := w.row(w.token.ID).UseCount - before; got != times {
		t.Errorf("got %d uses, want %d", got, times)
	}
}

// docs/fleet.md has the rights that the tests use.
func TestRightsOfFleetPage(t *testing.T) {
	page := string(must(os.ReadFile("../docs/fleet.md")))
	for role, rights := range map[string][]string{"node": nodeRights, "reader": readOnlyRights} {
		for _, right := range rights {
			right = strings.NewReplacer("SCHEMA service_users", "SCHEMA public", "service_users.", "", "ROLE", role).Replace(right)
			if !strings.Contains(page, right+";\n") {
				t.Errorf("the page lacks: %s", right)
			}
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
