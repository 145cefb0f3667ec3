package store

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// health is whether the store can be read, and since when it cannot.
type health struct {
	clock    *wall
	begun    time.Time              // the time of Open, with a monotonic reading
	fault    atomic.Pointer[string] // the error of the last poll; nil if it succeeded
	checked  atomic.Int64           // the time of the last successful poll, in Unix nanoseconds
	fresh    atomic.Int64           // like checked, in nanoseconds since begun, so independent of the date
	acked    atomic.Pointer[moment] // like checked, for later processes
	stale    atomic.Bool
	degraded atomic.Bool // notifyHealth has reported a fault, and not its end
	copied   atomic.Bool // the directory is from the last good copy, and no poll has succeeded since
}

// succeed records that the directory was up to date at an instant of the machine's clock.
func (h *health) succeed(asOf time.Time) {
	h.checked.Store(h.clock.Now().UnixNano())
	h.fresh.Store(int64(asOf.Sub(h.begun)))
	at, ago := h.moment(), max(h.clock.read().Sub(asOf), 0)
	at.Clock, at.Uptime = at.Clock.Add(-ago), at.Uptime-ago
	h.acked.Store(&at)
}

// resume continues from the time that the copy of an earlier process was up to date. Within the limit of that
// process it may still answer, since receipts counted on it.
func (h *health) resume(head copyHead, limit time.Duration) {
	at := head.Acknowledged
	age := min(h.moment().since(at), math.MaxInt64/2) + max(limit-head.MaxStaleness, 0)
	h.clock.raise(at.Clock)
	h.succeed(h.clock.read().Add(-age))
	h.checked.Store(at.Clock.UnixNano())
	h.acked.Store(&at)
	h.copied.Store(true)
}

func (h *health) moment() moment {
	boot, since := uptime()
	return moment{Clock: h.clock.Now(), Boot: boot, Uptime: since}
}

// The sources of the directory in force.
const (
	FromDatabase = "database" // the last look at the database succeeded
	FromMemory   = "memory"   // the database is away, and this process had read the directory from it before
	FromCopy     = "copy"     // the database has been away since the start, and the directory is the last good copy
)

// Source returns where the directory in force comes from, and the time at which it was up to date.
func (s *Store) Source() (source string, asOf time.Time) {
	switch source = FromDatabase; {
	case s.copied.Load():
		source = FromCopy
	case s.Fault() != "":
		source = FromMemory
	}
	return source, s.Checked()
}

// Fault returns the error of the last attempt to read the store, or "" if it succeeded.
func (h *health) Fault() string {
	if f := h.fault.Load(); f != nil {
		return *f
	}
	return ""
}

// Checked returns the time of the last successful poll, that is, the last time at which the
// directory was found to be up to date.
func (h *health) Checked() time.Time { return time.Unix(0, h.checked.Load()) }

// Stale reports whether the last successful poll is longer ago than Options.MaxStaleness, so that
// the directory must not be used for decisions any more. Stale never blocks. With a limit it reads the
// clock: a process that was paused must not decide before watchAge looks.
func (s *Store) Stale() bool {
	return s.stale.Load() || s.opts.MaxStaleness > 0 && s.awake() > s.opts.MaxStaleness
}

// Age returns the time since the last successful poll.
func (h *health) Age() time.Duration {
	age := h.awake()
	if now, at := h.moment(), *h.acked.Load(); now.Boot != "" && now.Boot == at.Boot && now.since(at) > age+clockLag {
		age = now.since(at) // the machine has slept
	}
	return age
}

// awake is Age without the time that the machine slept.
func (h *health) awake() time.Duration {
	return max(h.clock.read().Sub(h.begun)-time.Duration(h.fresh.Load()), 0)
}

// watchAge marks the directory as stale when it becomes too old. It is a goroutine of its own,
// since the one that polls the store may hang.
func (s *Store) watchAge(context.Context) { s.setStale(s.Age() > s.opts.MaxStaleness) }

// setStale sets whether the directory is too old. It logs, and informs the listener, when that
// changes.
func (s *Store) setStale(stale bool) {
	if s.stale.Swap(stale) == stale {
		return
	}
	if stale {
		s.log.Error("the store was not readable for longer than max_staleness; "+
			"no request is let through until it is readable again",
			zap.String("store", s.path), zap.Duration("max_staleness", s.opts.MaxStaleness),
			zap.String("fault", s.Fault()))
	}
	_ = s.safely("announcing a stale directory", func() error { s.announce(); s.notifyHealth(); return nil })
}

// report stores the result of a poll, and logs it when it differs from the one before. asOf is as in
// health.succeed.
func (s *Store) report(err error, asOf time.Time) {
	before := s.Fault()
	if err == nil {
		s.succeed(asOf)
		s.copied.Store(false)
		s.setStale(false)
	}
	switch {
	case err == nil && before != "":
		s.fault.Store(nil)
		s.log.Info("the store can be read again", zap.String("store", s.path),
			zap.Int64("revision", s.Directory().Revision()))
	case err != nil && err.Error() != before:
		text := err.Error()
		s.fault.Store(&text)
		source, asOf := s.Source()
		s.log.Error("the store cannot be read; requests are answered from the last directory that was read",
			zap.String("store", s.path), zap.Int64("revision", s.Directory().Revision()),
			zap.String("source", source), zap.Time("as_of", asOf), zap.Error(err))
	}
	s.notifyHealth()
}
