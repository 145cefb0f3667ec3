package access

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"
)

// Use counts what a token is used for, for a while: when, how often, from where
// and by which rules. Requests write it without a lock; it is read as a whole when
// it has been taken out of the token.
type Use struct {
	cell  *atomic.Pointer[Use]
	count atomic.Int64
	last  atomic.Int64 // Unix seconds
	from  recent[netip.Addr]
	rules recent[string]
}

// recentCount is how many addresses, and how many rules, are remembered of a token.
const recentCount = 8

// recent remembers the last of the values that it has seen. Most see one: it lies
// with them, which spares the garbage collector a visit.
type recent[K comparable] struct {
	slots [recentCount]atomic.Pointer[seen[K]]
	first seen[K]
}

type seen[K comparable] struct {
	value K
	at    atomic.Int64
}

// begin takes down the first value, before anybody else has r.
func (r *recent[K]) begin(value K, now int64) {
	r.first.value = value
	r.first.at.Store(now)
	r.slots[0].Store(&r.first)
}

// note takes down that a value was seen. When two do so at once for a value that
// is new, one of them may be lost; the next time it is there.
func (r *recent[K]) note(value K, now int64) {
	oldest := 0
	for i := range r.slots {
		s := r.slots[i].Load()
		if s == nil {
			oldest = i
			break
		}
		if s.value == value {
			if s.at.Load() != now {
				s.at.Store(now)
			}
			return
		}
		if s.at.Load() < r.slots[oldest].Load().at.Load() {
			oldest = i
		}
	}
	old := r.slots[oldest].Load()
	if old != nil && old.at.Load() == now {
		return // more of them within a second than can be remembered
	}
	s := &seen[K]{value: value}
	s.at.Store(now)
	r.slots[oldest].CompareAndSwap(old, s)
}

// Seen is a value with the instant at which it was seen last, in Unix seconds.
type Seen[K comparable] struct {
	Value K
	At    int64
}

func (r *recent[K]) list() (list []Seen[K]) {
	for i := range r.slots {
		if s := r.slots[i].Load(); s != nil {
			list = append(list, Seen[K]{s.value, s.at.Load()})
		}
	}
	slices.SortStableFunc(list, func(a, b Seen[K]) int { return cmp.Compare(b.At, a.At) })
	return list
}

// Note takes down that the principal's token was used. rule is the id of the rule
// that let it through, or "". The result is not nil when a new count has begun:
// whoever keeps the figures has to know of it.
func (p Principal) Note(now int64, from netip.Addr, rule string) (begun *Use) {
	cell := p.Token.use
	if cell == nil {
		return nil
	}
	u := cell.Load()
	if u == nil {
		begun = &Use{cell: cell}
		begun.from.begin(from, now)
		if rule != "" {
			begun.rules.begin(rule, now)
		}
		if cell.CompareAndSwap(nil, begun) {
			u = begun
		} else if u, begun = cell.Load(), nil; u == nil {
			return nil // it was taken at this very moment
		}
	}
	u.count.Add(1)
	if u.last.Load() < now {
		u.last.Store(now)
	}
	u.from.note(from, now)
	if rule != "" {
		u.rules.note(rule, now)
	}
	return begun
}

// Take ends the count. What requests write that are under way goes into it for
// some moments more.
func (u *Use) Take() { u.cell.CompareAndSwap(u, nil) }

// Figures are what was counted.
type Figures struct {
	Count int64
	Last  int64              // Unix seconds; 0 is never
	From  []Seen[netip.Addr] // the latest first
	Rules []Seen[string]     // the latest first
}

// Figures returns what was counted so far.
func (u *Use) Figures() Figures {
	return Figures{u.count.Load(), u.last.Load(), u.from.list(), u.rules.list()}
}
