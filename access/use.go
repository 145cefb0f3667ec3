package access

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"
)

// Uses counts what the tokens are used for that are active, until they are counted
// anew. Requests write it without a lock.
//
// It is a table of pairs of slots, in one of which a token's count is found by its
// hash. Where three are active that share a pair, one is begun again, and when the
// table grows, all are: whoever keeps the figures adds up those of a token.
type Uses struct {
	slots atomic.Pointer[[]useSlots]
	begun atomic.Int64 // counts, since everything was begun anew
}

type useSlots [2]atomic.Pointer[Use]

// The bounds of the number of pairs.
const (
	minUseSlots = 1 << 9
	maxUseSlots = 1 << 18
)

// NewUses returns an empty count.
func NewUses() *Uses {
	s := new(Uses)
	s.Renew()
	return s
}

// Renew begins everything anew. What requests write that are under way goes into
// the old counts for some moments more.
func (s *Uses) Renew() {
	n := minUseSlots
	for begun := s.begun.Swap(0); crowded(begun, n); {
		n *= 2
	}
	slots := make([]useSlots, n)
	s.slots.Store(&slots)
}

// crowded reports whether so many counts are better spread over more pairs: three
// share one of so few only rarely.
func crowded(begun int64, pairs int) bool { return 2*begun > int64(pairs) && pairs < maxUseSlots }

// Note takes down that the principal's token was used. rule is the id of the rule
// that let it through, or "". The result is not nil when a new count has begun:
// whoever keeps the figures has to know of it.
func (s *Uses) Note(p Principal, now int64, from netip.Addr, rule string) (begun *Use) {
	if p.hash == nil {
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
		slots[1].Store(slots[0].Load())
		slots[0].Store(u)
		begun = u
		if crowded(s.begun.Add(1), len(*all)) {
			larger := make([]useSlots, 2*len(*all))
			s.slots.CompareAndSwap(all, &larger)
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

// Use counts what a token is used for, for a while: when, how often, from where
// and by which rules. What most requests write lies together.
type Use struct {
	token useKey
	count atomic.Int64
	last  atomic.Int64 // Unix seconds
	from  recent[netip.Addr]
	rules recent[string]
	_     [24]byte // to 128 bytes, two lines of the processor's cache
}

// useKey is the beginning of a token's hash, which no two of them share.
type useKey [16]byte

// recentCount is how many addresses, and how many rules, are remembered of a token.
const recentCount = 8

// recent remembers the last of the values that it has seen, and the first one apart:
// most see no other.
type recent[K comparable] struct {
	first  seen[K]
	others atomic.Pointer[[recentCount]atomic.Pointer[seen[K]]]
}

type seen[K comparable] struct {
	value K
	at    atomic.Int64 // 0 is nothing
}

// begin takes down the first value, before anybody else has r.
func (r *recent[K]) begin(value K, now int64) {
	r.first.value = value
	r.first.at.Store(now)
}

// note takes down that a value was seen. When two do so at once for a value that
// is new, one of them may be lost; the next time it is there.
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
		return // more of them within a second than can be remembered
	}
	s := &seen[K]{value: value}
	s.at.Store(now)
	others[oldest].CompareAndSwap(old, s)
}

// Seen is a value with the instant at which it was seen last, in Unix seconds.
type Seen[K comparable] struct {
	Value K
	At    int64
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
