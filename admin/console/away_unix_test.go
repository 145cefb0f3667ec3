//go:build unix

package console

import (
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// While the database is away, the page of health says by what this node decides, and that the others are not known.
func TestHealthAway(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	place, err := url.Parse(server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role)))
	if err != nil {
		t.Fatal(err)
	}
	var away atomic.Bool
	place.Host = pgtest.Proxy(t, place.Host, func([]byte) (end, forward bool) { return away.Load(), false })
	s := newSiteAt(t, place.String(), store.Options{NodeName: "gate-1"})
	text, _ := s.get("/console/health", 200)
	wantIn(t, text, "<dd>database</dd>")
	wantNone(t, text, "Last good copy", "not known")
	away.Store(true)
	for deadline := time.Now().Add(time.Minute); s.store.Fault() == ""; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the store has no fault")
		}
	}
	text, _ = s.get("/console/health", 200)
	wantIn(t, text, "<dd>memory <small>what was read before the fault</small></dd>", "<bdi>gate-1</bdi>",
		"the other nodes are not known, since the store cannot be read: its database cannot be reached",
		`<span class="badge warn">late</span>`, `<td><span class="none">unknown</span></td>`)
}
