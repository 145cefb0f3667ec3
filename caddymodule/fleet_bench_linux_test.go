//go:build linux

package caddymodule

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
)

// BenchmarkFleet measures the time from the answer to a revocation at one node until the others refuse the
// token, and the time of a revocation that waits for a receipt.
//
//	go test ./caddymodule -run '^$' -bench Fleet -benchtime 500x
func BenchmarkFleet(b *testing.B) {
	f := startFleet(b, 3, fleetCaddyfile)
	var u admin.ServiceUser
	in := admin.NewServiceUser{ServiceUserInput: admin.ServiceUserInput{Name: admin.Some("measured")}}
	if _, err := f.nodes[0].admin("POST", "/service_users", in, &u); err != nil {
		b.Fatal(err)
	}
	// made makes a token that every node accepts.
	made := func() (k admin.Token) {
		if _, err := f.nodes[0].admin("POST", "/service_users/"+u.ID+"/tokens?wait=5s", admin.TokenInput{}, &k); err != nil {
			b.Fatal(err)
		}
		for _, n := range f.nodes {
			f.until(n, credentials{u.ID, k.Secret}, http.StatusOK)
		}
		return k
	}
	revoke := func(k admin.Token, query string) time.Duration {
		begun := time.Now()
		if _, err := f.nodes[0].admin("DELETE", "/service_users/"+u.ID+"/tokens/"+k.ID+query, nil, nil); err != nil {
			b.Fatal(err)
		}
		return time.Since(begun)
	}
	report := func(b *testing.B, name string, took []time.Duration) {
		slices.Sort(took)
		for _, p := range []int{50, 99} {
			b.ReportMetric(float64(took[(len(took)-1)*p/100].Microseconds())/1000, fmt.Sprintf("p%d-%s-ms", p, name))
		}
	}
	for _, row := range []struct {
		name string
		node int
	}{{"direct", 1}, {"pooler", 2}} {
		b.Run("revoked/"+row.name, func(b *testing.B) {
			var changes, elsewhere []time.Duration
			for range b.N {
				k := made()
				var asking sync.WaitGroup
				var refused time.Time
				asking.Go(func() {
					f.until(f.nodes[row.node], credentials{u.ID, k.Secret}, http.StatusUnauthorized)
					refused = time.Now()
				})
				begun := time.Now()
				took := revoke(k, "")
				asking.Wait()
				changes = append(changes, took)
				elsewhere = append(elsewhere, max(refused.Sub(begun.Add(took)), 0))
			}
			report(b, "change", changes)
			report(b, "elsewhere", elsewhere)
		})
	}
	b.Run("receipt", func(b *testing.B) {
		var took []time.Duration
		for range b.N {
			took = append(took, revoke(made(), "?wait=5s"))
		}
		report(b, "receipt", took)
	})
}

// until asks a node again and again until it answers with a status.
func (f *fleet) until(n *fleetNode, who credentials, want int) {
	for deadline := time.Now().Add(time.Minute); ; {
		status, _, _, err := n.send("GET", "API_PORT", &url.URL{Path: "/_self"}, "", who, nil, nil)
		if err == nil && status == want {
			return
		}
		if err != nil || time.Now().After(deadline) {
			f.t.Errorf("%s: got %d, %v, want %d", n.name, status, err, want)
			return
		}
	}
}
