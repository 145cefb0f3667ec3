package access

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"
)

// Uses counts how the active tokens are used, from one [Uses.Renew] to the next. Requests write to
// it without a lock.
//
// Uses is a table of pairs of slots. The hash of a token selects a pair, and one of its two slots
// contains the [Use] of the token. If three active tokens share a pair, one of them loses its slot
// and gets a new Use later. If the table grows, every token gets a new Use. So there may be several
// Uses of one token: the caller keeps every Use that [Uses.Note] returns, and adds up their
// figures.
type Uses struct {
	slots atomic.Pointer[[]useSlots]
	begun atomic.Int64 // the number of new Uses since the last Renew
}

type useSlots [2]atomic.Pointer[Use]

// The bounds of the number of pairs.
const (
	minUseSlots = 1 << 9
	maxUseSlots = 1 << 18
)

// NewUses returns a Uses without any Use.
func NewUses() *Uses {
	s := new(Uses)
	s.Renew()
	return s
}

// Renew starts all counts again from zero. Requests in progress may still write to the old counts
// for some moments.
func (s *Uses) Renew() {
	// Make the table large enough for as many tokens as since the last Renew.
	n := minUseSlots
	for begun := s.begun.Swap(0); crowded(begun, n); {
		n *= 2
	}
	slots := make([]useSlots, n)
	s.slots.Store(&slots)
}

// crowded reports whether a table of this number of pairs is too small for this number of Uses.
// Below that number, three active tokens share a pair only rarely.
func crowded(begun int64, pairs int) bool { return 2*begun > int64(pairs) && pairs < maxUseSlots }

// Note records a use of the principal's token. rule is the id of the rule that allowed the request,
// or "". If this use begins a new Use, Note returns the Use, and the caller must keep it: Uses may
// drop it at any time.
func (s *Uses) Note(p Principal, now int64, from netip.Addr, rule string) (begun *Use) {
	if p.hash == nil { // the zero Principal
		return nil
	}
	token := useKey(p.hash[:])
	all := s.slots.Load()
	slots := &(*all)[binary.LittleEndian.Uint64(token[:])%uint64(len(*all))]
	var u *Use
	for i := range slots {
		if kept := slots[i].Load(); kept != nil && kept.token == token {
			u = kept
			break
		}
	}
	if u == nil {
		u = &Use{token: token}
		u.from.begin(from, now)
		if rule != "" {
			u.rules.begin(rule, now)
		}
		// The older Use of the pair makes room. Two goroutines may do this at the same
		// time: one of the new Uses is then lost from the table, but not its counts, since
		// the caller keeps it.
		slots[1].Store(slots[0].Load())
		slots[0].Store(u)
		begun = u
		if crowded(s.begun.Add(1), len(*all)) {
			larger := make([]useSlots, 2*len(*all))
			s.slots.CompareAndSwap(all, &larger) // fails if another goroutine was first
		}
	}
	u.count.Add(1)
	if u.last.Load() < now { // most requests find it current, and need not write
		u.last.Store(now)
	}
	u.from.note(from, now)
	if rule != "" {
		u.rules.note(rule, now)
	}
	return begun
}

// Use counts the uses of one token for some time: how often, when, from which addresses, and by
// which rules. The fields that most requests write are next to each other.
type Use struct {
	token useKey
	count atomic.Int64
	last  atomic.Int64 // Unix seconds
	from  recent[netip.Addr]
	rules recent[string]
	_     [24]byte // padding to 128 bytes, two lines of the processor's cache
}

// useKey is the first half of a token's hash: 128 bits, which are different for every token.
type useKey [16]byte

// recentCount is the number of addresses, and of rules, that a Use remembers.
const recentCount = 8

// recent remembers the latest values of a token. The first value has a place of its own, because
// most tokens have only one value: others is nil for them.
type recent[K comparable] struct {
	first  seen[K]
	others atomic.Pointer[[recentCount]atomic.Pointer[seen[K]]]
}

type seen[K comparable] struct {
	value K
	at    atomic.Int64 // Unix seconds; 0 marks an unused place
}

// begin records the first value. No other goroutine may use r yet.
func (r *recent[K]) begin(value K, now int64) {
	r.first.value = value
	r.first.at.Store(now)
}

// note records a value. If two goroutines record new values at the same time, one value may be lost
// until it is recorded again.
func (r *recent[K]) note(value K, now int64) {
	if r.first.value == value {
		if r.first.at.Load() != now {
			r.first.at.Store(now)
		}
		return
	}
	others := r.others.Load()
	for others == nil {
		r.others.CompareAndSwap(nil, new([recentCount]atomic.Pointer[seen[K]]))
		others = r.others.Load()
	}
	oldest := 0
	for i := range others {
		s := others[i].Load()
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
		if s.at.Load() < others[oldest].Load().at.Load() {
			oldest = i
		}
	}
	old := others[oldest].Load()
	if old != nil && old.at.Load() == now {
		return // all places have values of this second
	}
	s := &seen[K]{value: value}
	s.at.Store(now)
	others[oldest].CompareAndSwap(old, s) // if another goroutine was first, the value is lost
}

// Seen is a value, and the time when it was recorded last.
type Seen[K comparable] struct {
	Value K
	At    int64 // Unix seconds
}

func (r *recent[K]) list() (list []Seen[K]) {
	if at := r.first.at.Load(); at != 0 {
		list = append(list, Seen[K]{r.first.value, at})
	}
	if others := r.others.Load(); others != nil {
		for i := range others {
			if s := others[i].Load(); s != nil {
				list = append(list, Seen[K]{s.value, s.at.Load()})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b Seen[K]) int { return cmp.Compare(b.At, a.At) })
	return list[:min(len(list), recentCount)]
}

// Figures are the counts of a Use.
type Figures struct {
	Count int64
	Last  int64              // Unix seconds; 0 is never
	From  []Seen[netip.Addr] // the latest first
	Rules []Seen[string]     // the latest first
}

// Figures returns the counts so far.
func (u *Use) Figures() Figures {
	return Figures{u.count.Load(), u.last.Load(), u.from.list(), u.rules.list()}
}
