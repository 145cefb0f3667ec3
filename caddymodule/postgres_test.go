//go:build unix

package caddymodule

import (
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// TestStoreByURL runs a Caddy on PostgreSQL, whose URL comes from the environment and whose password
// comes from a file.
func TestStoreByURL(t *testing.T) {
	t.Parallel()
	pg := pgtest.Shared(t)
	at := pg.TCPURL(pgtest.Role, pg.NewSchema(t, pgtest.Role))
	s := startServer(t, guardCaddyfile("store {env.STORE}"), "STORE="+at)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	if got := s.get("/v1/x", user).StatusCode; got != 204 {
		t.Errorf("got %d, want 204", got)
	}
	if log := s.log.String(); !strings.Contains(log, `"store opened","store":"postgres://store@127.0.0.1:`) {
		t.Errorf("got log %s, want the place without its password", log)
	}
}
