package caddymodule_test

import (
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/rogpeppe/go-internal/testscript"

	_ "github.com/serviceusers/caddy-service-users/cli"
	"github.com/serviceusers/caddy-service-users/internal/curl"
	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// The test binary is also "caddy": TestMain puts a command of that name into
// PATH, which tests start as a process of its own, with real ports, and a
// "curl" beside it.
func TestMain(m *testing.M) {
	testkit.Prepare()
	testscript.Main(m, map[string]func(){"caddy": caddycmd.Main, "curl": curl.Main})
}
