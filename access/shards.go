package access

import "hash/maphash"

// shards is an immutable map that can be changed by copying a small part of
// it: a new version shares every shard that the change does not touch. Readers
// need no lock. The zero value is empty.
type shards[K comparable, V any] struct {
	table *[shardCount]map[K]V
}

// shardCount is a compromise: a version costs one copy of the table (8 KiB)
// and of each shard that changes (1/1024 of the entries).
const shardCount = 1024

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

// each calls f for every entry, in no order.
func (s shards[K, V]) each(f func(K, V)) {
	if s.table == nil {
		return
	}
	for _, shard := range s.table {
		for k, v := range shard {
			f(k, v)
		}
	}
}

func (s shards[K, V]) len() (n int) {
	if s.table == nil {
		return 0
	}
	for _, shard := range s.table {
		n += len(shard)
	}
	return n
}

// edit begins a new version. The old one stays as it is.
func (s shards[K, V]) edit() *shardEdit[K, V] {
	e := &shardEdit[K, V]{table: new([shardCount]map[K]V)}
	if s.table != nil {
		*e.table = *s.table
	}
	return e
}

// shardEdit is a version in the making; it belongs to one goroutine.
type shardEdit[K comparable, V any] struct {
	table *[shardCount]map[K]V
	owned [shardCount]bool // shards that this edit has already copied
}

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
	if _, ok := e.get(key); ok {
		delete(e.shard(key), key)
	}
}

func (e *shardEdit[K, V]) done() shards[K, V] { return shards[K, V]{e.table} }

// tally is an immutable list of counts, which are 0 until they are added to. A new
// version shares every page that a change does not touch.
type tally struct {
	pages []*tallyPage
}

type tallyPage [128]int

func (t tally) of(i int) int {
	if i/len(tallyPage{}) >= len(t.pages) {
		return 0
	}
	return t.pages[i/len(tallyPage{})][i%len(tallyPage{})]
}

// edit begins a new version. The old one stays as it is.
func (t tally) edit() *tallyEdit {
	return &tallyEdit{pages: append([]*tallyPage(nil), t.pages...), owned: make([]bool, len(t.pages))}
}

// tallyEdit is a version in the making; it belongs to one goroutine.
type tallyEdit struct {
	pages []*tallyPage
	owned []bool // pages that this edit has already copied
}

func (e *tallyEdit) add(i, n int) {
	page := i / len(tallyPage{})
	for page >= len(e.pages) {
		e.pages, e.owned = append(e.pages, new(tallyPage)), append(e.owned, true)
	}
	if !e.owned[page] {
		copied := *e.pages[page]
		e.pages[page], e.owned[page] = &copied, true
	}
	e.pages[page][i%len(tallyPage{})] += n
}

func (e *tallyEdit) done() tally { return tally{e.pages} }
