package access

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
)

// Uses counts how the active tokens are used, until [Uses.Take] takes the counts away. The zero
// value is empty. Its methods may be called concurrently.
//
// The id of a service user selects a shard, and a request has the lock of the shard for as long as
// it counts. So each use is in exactly one count, also while another goroutine takes the counts.
type Uses struct {
	shards [useShards]useShard
}

type useShard struct {
	mu    sync.Mutex
	users map[string][]*Use // by service user; most use one token at a time
	_     [48]byte          // padding, so that no two locks share a line of the processor's cache
}

// useShards is far more than there are processors, so that two requests rarely need the same lock.
const useShards = 64

// useKey is the first half of a token's hash: 128 bits, which are different for every token. Unlike
// the id of the token, it costs nothing to read.
type useKey [16]byte

// Use is how a token was used for some time.
type Use struct {
	key useKey

	Token  string // the id of the token
	Count  int64
	Last   int64              // Unix seconds
	LastIP netip.Addr         // the latest address; a request over a Unix socket has none
	From   []Seen[netip.Addr] // the latest addresses, at most MaxSeen
	Rules  []Seen[string]     // the ids of the latest rules, at most MaxSeen
}

// Seen is a value, and the time when it was recorded last.
type Seen[K comparable] struct {
	Value K
	At    int64 // Unix seconds
}

// MaxSeen is the number of addresses, and of rules, that a Use remembers.
const MaxSeen = 8

func (s *Uses) shard(userID string) *useShard {
	return &s.shards[maphash.String(shardSeed, userID)%useShards]
}

// Note records a use of the principal's token. rule is the id of the rule that allowed the request,
// or "".
func (s *Uses) Note(p Principal, now int64, from netip.Addr, rule string) {
	if p.hash == nil { // the zero Principal
		return
	}
	shard := s.shard(p.id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	key := useKey(p.hash[:])
	tokens := shard.users[p.id]
	i := slices.IndexFunc(tokens, func(u *Use) bool { return u.key == key })
	if i < 0 {
		if shard.users == nil {
			shard.users = make(map[string][]*Use)
		}
		i, tokens = len(tokens), append(tokens, &Use{key: key, Token: p.TokenID()})
		shard.users[p.id] = tokens
	}
	u := tokens[i]
	u.Count++
	u.Last = max(u.Last, now)
	if from.IsValid() {
		if u.Last == now {
			u.LastIP = from
		}
		u.From = note(u.From, from, now)
	}
	if rule != "" {
		u.Rules = note(u.Rules, rule, now)
	}
}

// note records a value in a list, in the place of the oldest one when the list is full.
func note[K comparable](list []Seen[K], value K, now int64) []Seen[K] {
	oldest := 0
	for i := range list {
		if list[i].Value == value {
			list[i].At = max(list[i].At, now)
			return list
		}
		if list[i].At < list[oldest].At {
			oldest = i
		}
	}
	if len(list) < MaxSeen {
		return append(list, Seen[K]{value, now})
	}
	if list[oldest].At <= now {
		list[oldest] = Seen[K]{value, now}
	}
	return list
}

// Each calls f for each count of a service user. No use of that service user is counted meanwhile, so
// f must be quick; it must not keep u.
func (s *Uses) Each(userID string, f func(u *Use)) {
	shard := s.shard(userID)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	for _, u := range shard.users[userID] {
		f(u)
	}
}

// Take removes all counts and calls f for each of them, which is f's to keep.
func (s *Uses) Take(f func(userID string, u *Use)) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		users := shard.users
		shard.users = nil
		shard.mu.Unlock()
		for user, tokens := range users {
			for _, u := range tokens {
				f(user, u)
			}
		}
	}
}
