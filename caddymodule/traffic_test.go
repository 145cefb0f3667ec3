package caddymodule

import (
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// trafficOf reads the minutes that an API lists.
func trafficOf(t *testing.T, api *admin.API) []admin.Minute {
	t.Helper()
	var list admin.TrafficList
	if err := api.Client(store.Local).Do(t.Context(), "GET", "/service_users/traffic", nil, &list); err != nil {
		t.Fatal(err)
	}
	return list.Minutes
}

// A minute of the list is a minute of the clock, with the requests since the one before it. A process
// without requests has minutes too, and the list keeps 24 hours of them.
func TestTrafficMinutes(t *testing.T) {
	kept := new(admin.Traffic)
	api := admin.New(nil, nil, nil)
	api.Traffic = kept
	synctest.Test(t, func(t *testing.T) {
		midnight := time.Now().UTC() // where the clock of a bubble begins
		var allowed atomic.Int64
		time.Sleep(17 * time.Second)
		watchTraffic(kept, func() admin.Minute { return admin.Minute{Allowed: allowed.Load(), Denied: 2} },
			admin.Minute{Denied: 1})
		allowed.Store(3)
		time.Sleep(44 * time.Second) // 1:01
		allowed.Store(10)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		want := []admin.Minute{
			{At: midnight.Add(time.Minute), Allowed: 3, Denied: 1},
			{At: midnight.Add(2 * time.Minute), Allowed: 7},
			{At: midnight.Add(3 * time.Minute)},
		}
		got := trafficOf(t, api)
		if len(got) != len(want) {
			t.Fatalf("got %d minutes, want %d: %v", len(got), len(want), got)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("minute %d: got %+v, want %+v", i, got[i], want[i])
			}
		}
		time.Sleep(30 * time.Hour)
		synctest.Wait()
		got = trafficOf(t, api)
		oldest, newest := midnight.Add(6*time.Hour+4*time.Minute), midnight.Add(30*time.Hour+3*time.Minute)
		if len(got) != 24*60 || !got[0].At.Equal(oldest) || !got[len(got)-1].At.Equal(newest) {
			t.Errorf("got %d minutes from %s to %s, want 1440 from %s to %s", len(got), got[0].At, got[len(got)-1].At, oldest, newest)
		}
	})
}

// The traffic belongs to the process: a reload that opens another store goes on with it, and starts
// no second watch.
func TestTrafficOutlivesReload(t *testing.T) {
	var apis []*admin.API
	for _, name := range []string{"a.db", "b.db"} {
		s := &shared{path: filepath.Join(t.TempDir(), name), opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		defer s.Destruct()
		apis = append(apis, s.live.Load().api)
	}
	at := time.Now().UTC().Add(-time.Hour).Truncate(time.Minute)
	apis[0].Traffic.Add(admin.Minute{At: at, Refused: 1})
	for i, api := range apis {
		found := false
		for _, m := range trafficOf(t, api) {
			found = found || m.At.Equal(at) && m.Refused == 1
		}
		if !found {
			t.Errorf("store %d: the minute is not in the list", i)
		}
	}
	watching.Do(func() { t.Error("no watch runs") })
}

// Each outcome that the metrics count is in one number of a minute.
func TestTrafficOutcomes(t *testing.T) {
	c := newCollectors()
	for _, reason := range access.Reasons() {
		c.reasons[reason].Inc()
	}
	c.observed.Inc()
	c.public.Inc()
	c.passed.Inc()
	c.ambiguous.Add(5)
	c.throttled.Inc()
	c.unavailable.Add(7)
	want := admin.Minute{Allowed: 4, Denied: 2, NoLogin: int64(len(access.Reasons())-3) + 1, Refused: 5, NotReady: 7}
	if got := c.traffic(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
