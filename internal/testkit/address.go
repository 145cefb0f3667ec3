package testkit

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// lastPort is the port that FreeAddress returned last. It is below the range from
// which the system takes the ports of connections, so that none is taken before the
// server listens.
var lastPort = 10_000 + rand.IntN(15_000)

// FreeAddress returns an address of this machine on which nobody listens. It is not for tests that run in parallel.
func FreeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		lastPort++
		address := fmt.Sprintf("127.0.0.1:%d", lastPort)
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}
