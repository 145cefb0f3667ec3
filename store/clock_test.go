package store

import (
	"testing"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// What has expired stays expired, whatever the clock does.
func TestClockNeverGoesBack(t *testing.T) {
	pgtest.SQLiteOnly(t, "the note beside the file has the time")
	w := newWorld(t, Options{})
	made := w.clock.Now()
	k := must(w.CreateToken(ctx, Local, w.user.ID, Token{ExpiresAt: made.Add(time.Hour)}))
	check := func(when string, want access.Reason) {
		t.Helper()
		if got := probe(w.Store, w.user.ID, k.Secret, "GET /v1/x"); got != want {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	check("before", access.Granted)
	w.clock.add(time.Hour)
	check("after", access.TokenExpired)
	w.clock.add(-30 * time.Minute)
	check("back half an hour", access.TokenExpired)
	if got, want := w.Now(), made.Add(time.Hour); got.Before(want) {
		t.Errorf("the time: got %v, want at least %v", got, want)
	}

	// So it does over a restart, and the log says so.
	mustDo(w.Close())
	w.clock.add(-3 * time.Hour)
	core, logs := observer.New(zap.WarnLevel)
	w.opts.Now, w.opts.Log = w.clock.Now, zap.New(core)
	w.Store = open(t, w.path, w.opts)
	check("after a restart", access.TokenExpired)
	if told := logs.FilterMessageSnippet("the clock went back").Len(); told != 1 {
		t.Errorf("lines of the log about the clock: got %d, want 1; %v", told, logs.All())
	}
	if got := must(w.CreateToken(ctx, Local, w.user.ID, Token{})).CreatedAt; got.Before(made.Add(time.Hour)) {
		t.Errorf("a change: got the time %v, want at least %v", got, made.Add(time.Hour))
	}

	// A clock that was wrong once is told of loudly, and can be set back.
	mustDo(w.Close())
	w.clock.add(-100 * time.Hour)
	w.Store = open(t, w.path, w.opts)
	loud := logs.FilterLevelExact(zap.ErrorLevel).FilterMessageSnippet("accept-older --store " + w.path)
	if loud.Len() != 1 {
		t.Errorf("loud lines of the log: got %d, want 1; %v", loud.Len(), logs.All())
	}
	check("far behind", access.TokenExpired)
	mustDo(w.Close())
	mustDo(AcceptOlder(ctx, w.path, w.clock.Now()))
	w.Store = open(t, w.path, w.opts)
	check("accepted", access.Granted)
}

// jumped is a time as a clock shows it that was set by a number of seconds: the
// monotonic reading, which no function of package time leaves as it is, stays.
func jumped(t time.Time, by time.Duration) time.Time {
	seconds := (*uint64)(unsafe.Pointer(&t)) // since 1885, from bit 30 on
	*seconds += uint64(int64(by/time.Second) << 30)
	return t
}

// While the clock is behind, time goes on as the monotonic one says.
func TestClockGoesOnBehind(t *testing.T) {
	start := time.Now() // with a monotonic reading
	elapsed, jump := time.Duration(0), time.Duration(0)
	c := wall{read: func() time.Time { return jumped(start.Add(elapsed), jump) }}
	at := func(want time.Duration) {
		t.Helper()
		if got := c.Now().Round(0).Sub(start.Round(0)); got != want {
			t.Errorf("after %v, with a jump of %v: got %v, want %v", elapsed, jump, got, want)
		}
	}
	at(0)
	elapsed = 10 * time.Second
	at(10 * time.Second)
	jump = -time.Hour
	at(10 * time.Second)
	elapsed = 70 * time.Second
	at(70 * time.Second)
	jump = time.Hour
	at(time.Hour + 70*time.Second)
	jump = 0
	elapsed = 80 * time.Second
	at(time.Hour + 80*time.Second)
}
