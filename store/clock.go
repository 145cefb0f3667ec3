package store

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// wall is the wall clock, except that it never goes back, so that expired credentials stay expired.
// While the clock of the machine is behind the latest time shown, time passes at the rate of the
// machine's monotonic clock.
type wall struct {
	read func() time.Time
	last atomic.Pointer[instant] // renewed once a second
	back bool                    // logBack has logged that the clock went back
	// Of compare: how far the clock is before that of the database, and whether that is logged.
	ahead atomic.Int64
	wrong bool
}

type instant struct {
	shown time.Time // the latest time that Now returned …
	read  time.Time // … and the reading of the machine's clock at that moment
}

// Now returns the time. It reads the clock once and never blocks.
func (w *wall) Now() time.Time {
	now, last := w.read(), w.last.Load()
	seconds := now.Unix()
	switch {
	case last == nil || seconds > last.shown.Unix():
		// If this fails, another goroutine has just stored a newer instant.
		w.last.CompareAndSwap(last, &instant{shown: now, read: now})
		return now
	case seconds == last.shown.Unix():
		return now
	}
	// The clock of the machine went back. Sub uses the monotonic readings, which the step does
	// not affect; max guards against a clock without them (Options.Now).
	return last.shown.Add(max(now.Sub(last.read), 0))
}

// behind returns how far the clock of the machine is behind Now. Round(0) strips the monotonic
// readings, which would hide the difference.
func (w *wall) behind() time.Duration { return w.Now().Round(0).Sub(w.read().Round(0)) }

// raise sets the clock to at least t.
func (w *wall) raise(t time.Time) {
	if now := w.Now(); t.After(now) {
		w.last.Store(&instant{shown: t, read: w.read()})
	}
}

// A lag up to clockLag is normal. A lag above clockWrong means that the clock is wrong now, or was
// wrong when it set the latest time.
const (
	clockLag   = 2 * time.Second
	clockWrong = 24 * time.Hour
)

// logBack logs, once for each time, that the clock of the machine went back. Only one goroutine may
// call it.
func (w *wall) logBack(log *zap.Logger, advice string) {
	lag := w.behind()
	logged := w.back
	w.back = lag > clockLag
	if !w.back || logged {
		return
	}
	fields := []zap.Field{
		zap.Time("clock", w.read().UTC()), zap.Time("latest", w.Now().UTC()), zap.Duration("behind", lag),
	}
	if lag <= clockWrong {
		log.Warn("the clock went back; expired credentials stay expired, "+
			"and time continues from the latest time seen", fields...)
		return
	}
	log.Error("the clock is far behind the latest time seen, by which tokens are still judged. "+
		"Set the clock; if it was wrong before, "+advice, fields...)
}

// clockDifference is how far the clock may differ from that of the database.
const clockDifference = 5 * time.Second

// compare compares the clock with that of the database, which showed a time at some moment since sent. It
// logs when a difference begins and ends. Only one goroutine may call it.
func (w *wall) compare(log *zap.Logger, sent, database time.Time) {
	// The database may have read its clock at any moment of the round trip, so only a time before or
	// after all of it shows a difference.
	ahead := max(sent.Sub(database), 0) + min(w.Now().Sub(database), 0)
	w.ahead.Store(int64(ahead))
	wrong, logged := ahead.Abs() > clockDifference, w.wrong
	w.wrong = wrong
	switch {
	case wrong && !logged:
		log.Warn("the clock of this node differs from that of the database, and tokens end by the clock of "+
			"this node: set the clock that is wrong; if this one was ahead, restart Caddy too",
			zap.Duration("ahead", ahead), zap.Time("clock", sent.UTC()))
	case logged && !wrong:
		log.Info("the clock of this node agrees with that of the database again", zap.Duration("ahead", ahead))
	}
}

// ClockDifference returns how far the store's clock was ahead of the database's when this node last
// reported, without the part that the time on the way may explain. It is negative for a clock that is
// behind, and 0 with SQLite.
func (s *Store) ClockDifference() time.Duration { return time.Duration(s.clock.ahead.Load()) }
