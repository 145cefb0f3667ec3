package access

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// Throttle counts failed attempts per login id and per client address, in a bounded amount of
// memory. Callers use it only after a wrong secret, so it never delays a request with the right
// one.
//
// Each key has a token bucket. A bucket is stored as one number: the instant at which it will be
// full again (the generic cell rate algorithm, ITU-T I.371). Each failure moves that instant into
// the future. A table of fixed size contains the buckets by the hash of the key. A new key in a
// full set replaces the key whose bucket will be full first, since that bucket is the first to be
// forgotten.
type Throttle struct {
	burst    int64 // the number of failures that may come at once
	interval int64 // nanoseconds until one failure is forgotten
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

// NewThrottle returns a Throttle that accepts n failures of one login id, or from one address,
// within a period. [Throttle.Fail] asks for a delay after more of them.
func NewThrottle(n int, period time.Duration) *Throttle {
	return &Throttle{burst: int64(n), interval: max(1, int64(period)/int64(n)), seed: maphash.MakeSeed()}
}

// Fail counts a failed attempt. It returns 0 while the rate of failures is accepted. Above that
// rate it returns the time that the client should wait. Fail does not count an empty login, or an
// invalid address: the client behind a trusted proxy may be unknown.
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

// addressKey returns the network of an address that one client usually has for itself: a single
// IPv4 address, or an IPv6 /64. It reports false for an invalid address.
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
	key |= 1 // 0 marks a free cell
	shard := &t.buckets[key>>8%throttleShards]
	set := &shard.sets[key>>16%throttleSets]
	at := now.UnixNano()

	shard.mu.Lock()
	defer shard.mu.Unlock()
	// Take the cell of the key, or else the one that is full first. Free cells have full 0.
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
		// This failure is not counted, so even a flood of failures delays a client for a
		// short time only.
		return time.Duration(over)
	}
	cell.full = full
	return 0
}
