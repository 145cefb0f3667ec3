package caddymodule

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// TestUpdatesAtOnce: updates of one service user that come at once, from processes
// that read it first, lose nothing of each other.
func TestUpdatesAtOnce(t *testing.T) {
	t.Parallel()
	s := startServer(t, exampleCaddyfile(t))
	s.create("billing-sync")
	s.mustCLI("group", "create", "readers")
	var running sync.WaitGroup
	for i := range 3 {
		for _, args := range [][]string{
			{"--add-team", fmt.Sprint("team", i)}, {"--label", fmt.Sprintf("key%d=x", i)}, {"--add-allowed-ip", fmt.Sprintf("192.0.2.%d", i)},
		} {
			running.Go(func() {
				if _, stderr, code := s.cli(append([]string{"update", "billing-sync"}, args...)...); code != 0 {
					t.Errorf("update %v: got %d %s", args, code, stderr)
				}
			})
		}
	}
	running.Go(func() { s.cli("group", "add", "readers", "billing-sync") })
	running.Wait()
	got := s.mustCLI("show", "billing-sync")
	for _, want := range []string{"team0, team1, team2", "key0=x", "key1=x", "key2=x", "192.0.2.0/32, 192.0.2.1/32, 192.0.2.2/32", "readers"} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant %q in it", got, want)
		}
	}
}
