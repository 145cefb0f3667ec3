package access

import "hash/maphash"

// shards is an immutable map in many parts. A new version copies only the shards that change, and
// shares the others with the old version. Readers need no lock. The zero value is empty.
type shards[K comparable, V any] struct {
	table *[shardCount]map[K]V
}

// shardCount is a compromise: a new version copies the table (8 KiB), and each shard that changes
// (1/1024 of the entries).
const shardCount = 1024

// shardSeed is random, so that nobody can choose keys that all fall into one shard.
var shardSeed = maphash.MakeSeed()

func shardOf[K comparable](key K) uint64 {
	return maphash.Comparable(shardSeed, key) % shardCount
}

func (s shards[K, V]) get(key K) (v V, ok bool) {
	if s.table == nil {
		return v, false
	}
	v, ok = s.table[shardOf(key)][key]
	return v, ok
}

// edit begins a new version. It does not change s.
func (s shards[K, V]) edit() *shardEdit[K, V] {
	e := &shardEdit[K, V]{table: new([shardCount]map[K]V)}
	if s.table != nil {
		*e.table = *s.table
	}
	return e
}

// shardEdit is a new version of shards under construction. Only one goroutine may use it at a time.
type shardEdit[K comparable, V any] struct {
	table *[shardCount]map[K]V
	owned [shardCount]bool // shards that this edit has already copied
}

// shard returns the shard of a key, for writing. It copies the shard before the first change.
func (e *shardEdit[K, V]) shard(key K) map[K]V {
	i := shardOf(key)
	if !e.owned[i] {
		copied := make(map[K]V, len(e.table[i])+1)
		for k, v := range e.table[i] {
			copied[k] = v
		}
		e.table[i], e.owned[i] = copied, true
	}
	return e.table[i]
}

func (e *shardEdit[K, V]) get(key K) (v V, ok bool) {
	v, ok = e.table[shardOf(key)][key]
	return v, ok
}

func (e *shardEdit[K, V]) set(key K, v V) { e.shard(key)[key] = v }

func (e *shardEdit[K, V]) remove(key K) {
	if _, ok := e.get(key); ok { // do not copy a shard for nothing
		delete(e.shard(key), key)
	}
}

func (e *shardEdit[K, V]) done() shards[K, V] { return shards[K, V]{e.table} }
