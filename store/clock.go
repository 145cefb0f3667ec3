package store

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// wall is the wall clock, but that it never goes back: what has expired stays so.
// While the clock of the machine is behind, time passes as its monotonic clock says.
type wall struct {
	read func() time.Time
	last atomic.Pointer[instant] // renewed once a second
}

type instant struct {
	shown time.Time // the latest that was shown …
	read  time.Time // … and what was read then
}

// Now returns the time. It reads the clock once and waits for nothing.
func (w *wall) Now() time.Time {
	now, last := w.read(), w.last.Load()
	seconds := now.Unix()
	switch {
	case last == nil || seconds > last.shown.Unix():
		w.last.CompareAndSwap(last, &instant{shown: now, read: now}) // else somebody else has just done it
		return now
	case seconds == last.shown.Unix():
		return now
	}
	return last.shown.Add(max(now.Sub(last.read), 0))
}

// behind returns how far the clock of the machine is behind the one that is shown.
func (w *wall) behind() time.Duration { return w.Now().Round(0).Sub(w.read().Round(0)) }

// raise sets the clock to at least t.
func (w *wall) raise(t time.Time) {
	if now := w.Now(); t.After(now) {
		w.last.Store(&instant{shown: t, read: w.read()})
	}
}

// The clock of the machine may be a little behind; a day is a mistake of now or of
// then.
const (
	clockLag   = 2 * time.Second
	clockWrong = 24 * time.Hour
)

// tellOfClock tells when the clock of the machine went back.
func (s *Store) tellOfClock() {
	lag := s.clock.behind()
	if lag <= clockLag {
		s.clockBack = false
		return
	}
	if s.clockBack {
		return
	}
	s.clockBack = true
	fields := []zap.Field{zap.Time("clock", s.clock.read().UTC()), zap.Time("latest", s.now().UTC()), zap.Duration("behind", lag)}
	if lag <= clockWrong {
		s.log.Warn("the clock went back; what has expired stays expired, and time goes on from the latest that it was", fields...)
		return
	}
	s.log.Error("the clock is far behind what it was; tokens are judged by the latest time. Set the clock; if it was wrong before, stop Caddy and run: caddy service-user accept-older --store "+ShellWord(s.path), fields...)
}
