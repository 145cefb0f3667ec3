package cli

import (
	"flag"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/serviceusers/caddy-service-users/internal/curl"
	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite what the golden files in testdata expect")

// The test binary is also "caddy" and "curl", which sessions start as processes.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "caddy" {
		caddycmd.Main()
		return
	}
	testkit.Prepare()
	testscript.Main(m, map[string]func(){"curl": curl.Main})
}

var lastPort atomic.Int32

// freePort returns a port that nobody listens on. Ports from 25,000 on are those of
// connections.
func freePort() string {
	lastPort.CompareAndSwap(0, 2_000+rand.Int32N(6_000))
	for {
		port := strconv.Itoa(int(lastPort.Add(1)))
		// To listen and close would not do: a child that begins meanwhile has the socket open for a moment.
		conn, err := net.Dial("tcp", "localhost:"+port)
		if err != nil {
			return port
		}
		conn.Close()
	}
}
