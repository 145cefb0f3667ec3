package admin

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/serviceusers/caddy-service-users/store"
)

// atOnce sends requests at the same time and counts the answers by status.
func (s *server) atOnce(requests ...*http.Request) string {
	s.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	count := make(map[int]int)
	for _, r := range requests {
		wg.Go(func() {
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				s.t.Error(err)
				return
			}
			resp.Body.Close()
			mu.Lock()
			count[resp.StatusCode]++
			mu.Unlock()
		})
	}
	wg.Wait()
	var texts []string
	for _, status := range slices.Sorted(maps.Keys(count)) {
		texts = append(texts, fmt.Sprintf("%d×%d", count[status], status))
	}
	return strings.Join(texts, " ")
}

// When several want to change the same thing at once, one does; the others are
// told, and what they say they did was done.
func TestRaces(t *testing.T) {
	s := serve(t, store.Options{})
	request := func(text, match string) *http.Request {
		method, rest, _ := strings.Cut(s.resolve(text), " ")
		path, body, _ := strings.Cut(rest, " ")
		r, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		if match != "" {
			r.Header.Set("If-Match", match)
		}
		return r
	}
	for round := range 5 {
		user := fmt.Sprintf("/service_users/service_%d", 2*round+1)
		other := fmt.Sprintf("/service_users/service_%d", 2*round+2)
		token := user + fmt.Sprintf("/tokens/token_%d", 2*round+1)
		s.must(fmt.Sprintf(`POST /service_users {"name":"user %d"}`, round))
		s.must(fmt.Sprintf(`POST /service_users {"name":"other %d"}`, round))
		var all []*http.Request
		for n := range 6 {
			all = append(all, request(fmt.Sprintf(`PATCH %s {"description":"%d"}`, user, n), `"1"`))
		}
		if got, want := s.atOnce(all...), "1×200 5×412"; got != want {
			t.Errorf("updates: got %s, want %s", got, want)
		}
		if got, want := s.atOnce(request("POST "+token+`/refresh {}`, ""), request("POST "+token+`/refresh {}`, ""), request("POST "+token+`/refresh {"grace":"1h"}`, "")), "1×201 2×409"; got != want {
			t.Errorf("refreshes: got %s, want %s", got, want)
		}
		if got, want := s.atOnce(request("DELETE "+other, ""), request("DELETE "+other, ""), request("DELETE "+other, `"1"`)), "1×204 2×404"; got != want {
			t.Errorf("deletes: got %s, want %s", got, want)
		}
		got := s.atOnce(request("DELETE "+user, ""), request("PATCH "+user+` {"description":"late"}`, ""), request("POST "+user+"/tokens {}", ""))
		if !slices.Contains([]string{"1×204 2×404", "1×200 1×204 1×404", "1×201 1×204 1×404", "1×200 1×201 1×204"}, got) {
			t.Errorf("a delete and changes: got %s, want that the delete is done and what comes behind it is 404", got)
		}
		name := fmt.Sprintf(`POST /service_users {"name":"new %d","create_token":false}`, round)
		if got, want := s.atOnce(request(name, ""), request(name, ""), request(name, "")), "1×201 2×409"; got != want {
			t.Errorf("creates: got %s, want %s", got, want)
		}
	}
}
