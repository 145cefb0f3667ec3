package store

import (
	"math"
	"time"
)

// moment is an instant that a later process can compare with its own time.
type moment struct {
	Clock  time.Time     `json:"clock"`
	Boot   string        `json:"boot,omitempty"`   // the start of the machine; "" is unknown
	Uptime time.Duration `json:"uptime,omitempty"` // since that start, in nanoseconds, with the time asleep
}

// since returns the time between two moments. It does not depend on the clock unless the machine was started
// between them. If the clock went back too, the time is unknown, and since returns the longest duration.
func (m moment) since(before moment) time.Duration {
	passed := m.Clock.Round(0).Sub(before.Clock)
	if m.Boot != "" && m.Boot == before.Boot {
		passed = m.Uptime - before.Uptime
	}
	if passed < -clockLag {
		return math.MaxInt64
	}
	return max(passed, 0)
}
