//go:build linux

package caddymodule

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// BenchmarkOutage measures guarded requests while PostgreSQL works, while it is stopped by a signal, and while it
// is killed, in turns: p50 and p99 of 8 clients, in milliseconds.
//
//	go test ./caddymodule -run '^$' -bench Outage -benchtime 20x
func BenchmarkOutage(b *testing.B) {
	pg := pgtest.Own(b)
	s := newServer(b, "STORE="+pg.TCPURL(pgtest.Role, pg.NewSchema(b, pgtest.Role)))
	withCaddyfile(s, guardCaddyfile("store {env.STORE}"))
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	who := s.create("measured", "--group", "readers")
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	ask := func() time.Duration {
		r, err := http.NewRequest("GET", "http://"+s.addr("API_PORT")+"/v1/a", nil)
		if err != nil {
			b.Error(err)
			return 0
		}
		r.SetBasicAuth(who.id, who.secret)
		begun := time.Now()
		answer, err := client.Do(r)
		if err != nil {
			b.Error(err)
			return 0
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusNoContent {
			b.Errorf("got %d", answer.StatusCode)
		}
		return time.Since(begun)
	}
	took := make(map[string][]time.Duration)
	round := func(what string) {
		var mu sync.Mutex
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				for range 250 {
					d := ask()
					mu.Lock()
					took[what] = append(took[what], d)
					mu.Unlock()
				}
			})
		}
		clients.Wait()
	}
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	for range b.N {
		round("up")
		_, err := pg.Pause()
		must(err)
		round("paused")
		must(pg.Continue())
		must(pg.Kill())
		round("killed")
		must(pg.Start())
	}
	for what, all := range took {
		slices.Sort(all)
		for _, p := range []int{50, 99} {
			b.ReportMetric(float64(all[(len(all)-1)*p/100].Microseconds())/1000, fmt.Sprintf("p%d-%s-ms", p, what))
		}
	}
}
