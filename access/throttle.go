package access

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// Throttle counts failed attempts per login id and per client address, in a
// bounded amount of memory. It never stands in the way of a right secret: it is
// asked only after a wrong one.
//
// Each key has a token bucket, kept as the one instant at which it would be full
// again (the generic cell rate algorithm, ITU-T I.371): a failure moves that
// instant on. Keys are hashed into a table of fixed size; where it is full the
// key whose bucket fills up first, the one nearest to being forgotten anyway,
// makes room.
type Throttle struct {
	burst    int64 // failures that may come at once
	interval int64 // nanoseconds until one of them is forgotten
	seed     maphash.Seed
	buckets  [throttleShards]throttleShard
}

const (
	throttleShards = 64
	throttleWays   = 8
	throttleSets   = 128 // per shard: 64 × 128 × 8 × 16 bytes = 1 MiB
)

type throttleShard struct {
	mu   sync.Mutex
	sets [throttleSets][throttleWays]throttleCell
}

type throttleCell struct {
	key  uint64 // 0 is free
	full int64  // Unix nanoseconds
}

// NewThrottle lets failures of one login id, or from one address, be answered
// as such n times within a period.
func NewThrottle(n int, period time.Duration) *Throttle {
	return &Throttle{burst: int64(n), interval: max(1, int64(period)/int64(n)), seed: maphash.MakeSeed()}
}

// Fail counts a failed attempt. It returns 0 while the rate is kept, and above
// it how long the client had better wait. login may be empty, and address
// invalid (a trusted proxy's own): what is not known is not counted.
func (t *Throttle) Fail(login string, address netip.Addr, now time.Time) time.Duration {
	var wait time.Duration
	if login != "" {
		wait = t.fail(maphash.String(t.seed, login), now)
	}
	if network, ok := addressKey(address); ok {
		wait = max(wait, t.fail(maphash.Comparable(t.seed, network), now))
	}
	return wait
}

// addressKey is the unit in which addresses are given to clients: one IPv4
// address, or an IPv6 /64.
func addressKey(address netip.Addr) (netip.Prefix, bool) {
	address = address.Unmap().WithZone("")
	bits := 32
	if address.Is6() {
		bits = 64
	}
	network, err := address.Prefix(bits)
	return network, err == nil && network.IsValid()
}

func (t *Throttle) fail(key uint64, now time.Time) time.Duration {
	key |= 1 // never 0
	shard := &t.buckets[key>>8%throttleShards]
	set := &shard.sets[key>>16%throttleSets]
	at := now.UnixNano()

	shard.mu.Lock()
	defer shard.mu.Unlock()
	cell := &set[0]
	for i := range set {
		if set[i].key == key {
			cell = &set[i]
			break
		}
		if set[i].full < cell.full {
			cell = &set[i]
		}
	}
	if cell.key != key {
		*cell = throttleCell{key: key}
	}
	full := max(cell.full, at) + t.interval
	if over := full - at - t.burst*t.interval; over > 0 {
		return time.Duration(over) // not counted: a flood does not lock out for ever
	}
	cell.full = full
	return 0
}
