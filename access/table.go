package access

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"sync/atomic"
)

// table contains service users in little memory. It is an immutable map to their rows, by id and by
// the hashes of their tokens. Rows are bytes without pointers, so the garbage collector does not
// scan them. A new version copies only the shards that change, and shares the others with the old
// version. Readers need no lock. The zero value is empty.
type table struct {
	shards spread[userShard]
	hashes spread[hashShard]
	count  int
}

// userShard is one part of the users.
type userShard struct {
	edit  uint64   // the number of the edit that made this shard
	begin uint32   // the length of arena when that edit began: rows from there on are new
	index []uint32 // hash table by id with open addressing: indexBits of the hash above place + 1; 0 is free
	rows  []uint32 // by place: the position of the row in arena, + 1; 0 is a free place
	arena []byte   // the rows, and remains of replaced rows
	count int      // the number of users
	live  int      // the number of bytes of arena that belong to current rows
}

// hashShard is one part of the index of token hashes. It is a hash table with open addressing. An
// entry has the upper 32 bits of the first 8 bytes of the hash above a ref + 1; 0 is free.
type hashShard struct {
	edit  uint64 // the number of the edit that made this shard
	slots []uint64
	count int // the number of entries
}

// A ref is the position of a user in a table: the number of the shard above the place in the shard.
const (
	placeBits = 19
	placeMask = 1<<placeBits - 1
)

var edits atomic.Uint64 // the number of the latest tableEdit

// idHash returns the hash of the id of a user. Its lower bits select a shard, and its upper 32 bits
// a place in the index of the shard.
func idHash(id string) uint64 { return maphash.String(shardSeed, id) }

// get returns the row of a user, or nil.
func (t *table) get(id string) userRow {
	if t.count == 0 {
		return nil
	}
	h := idHash(id)
	s := t.shards.at(h % spreadSize)
	if s == nil {
		return nil
	}
	place, ok := s.find(h, id)
	if !ok {
		return nil
	}
	return s.rowAt(place)
}

// find returns the place of a user.
func (s *userShard) find(h uint64, id string) (place uint32, ok bool) {
	mask := uint64(len(s.index) - 1)
	for i := h >> 32; ; i++ {
		entry := s.index[i&mask]
		if entry == 0 {
			return 0, false
		}
		// Few other users have the same bits, so few rows are read in vain.
		if place := entry&placeMask - 1; entry>>placeBits == indexBits(h) && s.rowAt(place).idIs(id) {
			return place, true
		}
	}
}

// indexBits returns the bits of a hash that the index contains beside a place.
func indexBits(h uint64) uint32 { return uint32(h>>32) >> placeBits }

func (s *userShard) rowAt(place uint32) userRow { return userRow(s.arena[s.rows[place]-1:]) }

// owner returns the row of the user that has a token with this hash, or nil.
func (t *table) owner(hash *Hash) userRow {
	h := binary.LittleEndian.Uint64(hash[:])
	shard := t.hashes.at(h % spreadSize)
	if shard == nil {
		return nil
	}
	for i := h >> 32; ; i++ {
		entry := shard.slots[i%uint64(len(shard.slots))]
		switch {
		case entry == 0:
			return nil
		case entry>>32 != h>>32:
			continue
		}
		// The entry has 32 bits of the hash only: compare the whole hash with the tokens of
		// the user.
		ref := uint32(entry) - 1
		row := t.shards.at(uint64(ref >> placeBits)).rowAt(ref & placeMask)
		a := row.account()
		for range a.count {
			if token := a.tokens.token(); *token.hash == *hash {
				return row
			}
		}
	}
}

// each calls f for every user, in no particular order. f may keep the user.
func (t *table) each(sets []*groupSet, f func(*User)) {
	t.rows(func(row userRow) { f(row.decode(sets)) })
}

// rows calls f for the row of every user, in no particular order.
func (t *table) rows(f func(userRow)) {
	t.shards.each(func(s *userShard) {
		for place := range s.rows {
			if s.rows[place] != 0 {
				f(s.rowAt(uint32(place)))
			}
		}
	})
}

// edit begins a new version. It does not change t.
func (t *table) edit() *tableEdit {
	e := &tableEdit{number: edits.Add(1), next: *t}
	e.shards.begin(t.shards)
	e.hashes.begin(t.hashes)
	return e
}

// tableEdit is a new version of a table under construction. Several goroutines may change it at the
// same time, each with different users.
type tableEdit struct {
	number uint64       // this edit may change the shards with this number
	next   table        // the new version, without its shards
	added  atomic.Int64 // the difference to next.count
	room   room         // the size of new shards
	shards spreadEdit[userShard]
	hashes spreadEdit[hashShard]
}

// room is the expected number of users and tokens of one shard. A new shard reserves memory for
// them, so that it does not grow in many steps.
type room struct{ users, tokens int }

// expect sets the room of new shards, if the table is empty, for this number of users and tokens in
// the whole table. The numbers may be wrong, so expect limits them.
func (e *tableEdit) expect(users, tokens int64) {
	if e.next.count == 0 {
		e.room = room{
			users:  int(min(max(users, 0), 1<<20) / spreadSize),
			tokens: int(min(max(tokens, 0), 1<<21) / spreadSize),
		}
	}
}

// rowBytes is the usual length of a row, with its tokens.
const rowBytes = 180

// shard returns shard n for writing. It makes or copies the shard before the first change. The
// caller has locked the leaf of the shard.
func (e *tableEdit) shard(n uint64) *userShard {
	s := e.shards.at(n)
	switch {
	case s == nil:
		slots := 8 // a power of two, at most three quarters of which are used: see userShard.add
		for slots*3 < e.room.users*4 {
			slots *= 2
		}
		s = &userShard{
			index: make([]uint32, slots),
			rows:  make([]uint32, 0, e.room.users),
			arena: make([]byte, 0, e.room.users*rowBytes),
		}
	case s.edit == e.number:
		return s
	default:
		s = s.clone()
	}
	s.edit, s.begin = e.number, uint32(len(s.arena))
	e.shards.set(n, s)
	return s
}

// clone copies a shard. If more than half of the arena are remains of replaced rows, the copy does
// not contain them.
func (s *userShard) clone() *userShard {
	c := &userShard{index: slices.Clone(s.index), rows: slices.Clone(s.rows), count: s.count, live: s.live}
	if s.live >= len(s.arena)/2 {
		c.arena = append(make([]byte, 0, len(s.arena)+len(s.arena)/64+256), s.arena...)
		return c
	}
	c.arena = make([]byte, 0, s.live+256)
	for place := range s.rows {
		if s.rows[place] != 0 {
			r := s.rowAt(uint32(place))
			c.rows[place] = uint32(len(c.arena)) + 1
			c.arena = append(c.arena, r[:r.size()]...)
		}
	}
	return c
}

// written is a user on its way into the table.
type written struct {
	id    string
	shard uint64
	hash  uint64
	place uint32
	known bool // the table has a row of the user, at place
	twice bool // this edit has written that row
}

func newWritten(id string) written {
	w := written{id: id, hash: idHash(id)}
	w.shard = w.hash % spreadSize
	return w
}

// find sets place, known and twice of w.
func (e *tableEdit) find(w *written) {
	defer e.shards.lock(w.shard).Unlock()
	e.findLocked(w)
}

// findLocked is find for a caller that has locked the leaf of the shard.
func (e *tableEdit) findLocked(w *written) {
	if s := e.shards.at(w.shard); s != nil {
		w.place, w.known = s.find(w.hash, w.id)
		w.twice = w.known && s.edit == e.number && s.rows[w.place]-1 >= s.begin
	}
}

// get returns a user in its present state in the edit.
func (e *tableEdit) get(w *written, sets []*groupSet) *User {
	defer e.shards.lock(w.shard).Unlock()
	return e.shards.at(w.shard).rowAt(w.place).decode(sets)
}

func (w *written) ref() uint32 { return uint32(w.shard)<<placeBits | w.place }

// maxPlaces bounds the number of users in a shard: an entry of the index has room for place + 1.
const maxPlaces = placeMask

// set writes a user: its row in two parts, and the hashes of its tokens. If the user is in the
// table already, set replaces the row, and the caller must have removed the old hashes.
func (e *tableEdit) set(w *written, row, setIDs []byte, tokens []Token) error {
	if err := e.setRow(w, row, setIDs); err != nil {
		return err
	}
	for i := range tokens {
		e.setHash(tokens[i].Hash, w.ref())
	}
	return nil
}

// setRow writes the row of a user, and sets w.place. It returns an error if this edit has written
// the user already, or if the shard has no room.
func (e *tableEdit) setRow(w *written, row, setIDs []byte) error {
	defer e.shards.lock(w.shard).Unlock()
	if e.findLocked(w); w.twice {
		return fmt.Errorf("service user %s appears twice in the changes", w.id)
	}
	s := e.shard(w.shard)
	// Positions in the arena have 32 bits. The last MiB is left for the row that is added here.
	if len(s.rows) >= maxPlaces || uint64(len(s.arena)) > math.MaxUint32-1<<20 {
		return fmt.Errorf("service user %s does not fit: the directory can hold no more service users", w.id)
	}
	if w.known {
		s.live -= s.rowAt(w.place).size()
	} else {
		w.place = s.add(w.hash)
		e.added.Add(1)
	}
	// A replaced row remains in the arena until clone drops it.
	start := len(s.arena)
	s.rows[w.place] = uint32(start) + 1
	s.arena = binary.AppendUvarint(s.arena, uint64(len(setIDs)+len(row)))
	s.arena = append(append(s.arena, setIDs...), row...)
	s.live += len(s.arena) - start
	return nil
}

// add returns a free place for one more user with this hash of its id, and adds it to the index.
func (s *userShard) add(h uint64) (place uint32) {
	s.count++
	if s.count*4 > len(s.index)*3 {
		s.rehash(len(s.index) * 2)
	}
	if s.count <= len(s.rows) { // some place is free, since a user was removed
		place = uint32(slices.Index(s.rows, 0))
	} else {
		place = uint32(len(s.rows))
		s.rows = append(s.rows, 0)
	}
	s.put(h, place)
	return place
}

// put adds a place to the index, which must have a free entry.
func (s *userShard) put(h uint64, place uint32) {
	mask := uint64(len(s.index) - 1)
	i := h >> 32
	for s.index[i&mask] != 0 {
		i++
	}
	s.index[i&mask] = indexBits(h)<<placeBits | place + 1
}

// rehash makes the index again, with this number of entries.
func (s *userShard) rehash(size int) {
	s.index = make([]uint32, size)
	for place := range s.rows {
		if s.rows[place] != 0 {
			s.put(s.rowAt(uint32(place)).idHash(), uint32(place))
		}
	}
}

// remove removes a user from the table. The caller has removed the hashes of its tokens.
func (e *tableEdit) remove(w *written) {
	defer e.shards.lock(w.shard).Unlock()
	s := e.shard(w.shard)
	s.live -= s.rowAt(w.place).size()
	s.rows[w.place] = 0
	s.count--
	e.added.Add(-1)
	// An entry may not become free while others follow that were put after it: make the index
	// again.
	s.rehash(len(s.index))
}

// removeHashes removes the hashes of a user's tokens from the index.
func (e *tableEdit) removeHashes(w *written, u *User) {
	for i := range u.Tokens {
		e.removeHash(u.Tokens[i].Hash, w.ref())
	}
}

// hashShard returns part n of the index of token hashes, for writing. It makes or copies the part
// before the first change. The caller has locked the leaf of the part.
func (e *tableEdit) hashShard(n uint64) *hashShard {
	s := e.hashes.at(n)
	switch {
	case s == nil:
		s = &hashShard{edit: e.number, slots: hashSlots(e.room.tokens)}
	case s.edit == e.number:
		return s
	default:
		s = &hashShard{edit: e.number, slots: slices.Clone(s.slots), count: s.count}
	}
	e.hashes.set(n, s)
	return s
}

// hashSlots returns free slots for this number of entries, and a few more. At most seven eighths of
// the slots are used. That many make searches longer, but few requests search for a hash, and the
// slots that a search reads are next to each other.
func hashSlots(entries int) []uint64 {
	some := slices.Grow([]uint64(nil), 4+entries*8/7)
	some = some[:cap(some)] // Grow rounds up to the next size of the allocator: use all of it
	clear(some)
	return some
}

// setHash adds the hash of a token of the user at ref.
func (e *tableEdit) setHash(hash Hash, ref uint32) {
	h := binary.LittleEndian.Uint64(hash[:])
	defer e.hashes.lock(h % spreadSize).Unlock()
	shard := e.hashShard(h % spreadSize)
	shard.count++
	if shard.count*8 > len(shard.slots)*7 {
		old := shard.slots
		shard.slots = hashSlots(shard.count)
		for _, entry := range old {
			if entry != 0 {
				shard.put(entry)
			}
		}
	}
	shard.put(h>>32<<32 | uint64(ref) + 1)
}

// put adds an entry. The shard must have a free slot.
func (s *hashShard) put(entry uint64) {
	size := uint64(len(s.slots))
	i := (entry >> 32) % size
	for s.slots[i] != 0 {
		i = (i + 1) % size
	}
	s.slots[i] = entry
}

// removeHash removes the hash of a token of the user at ref.
func (e *tableEdit) removeHash(hash Hash, ref uint32) {
	h := binary.LittleEndian.Uint64(hash[:])
	defer e.hashes.lock(h % spreadSize).Unlock()
	shard := e.hashShard(h % spreadSize)
	slots, size := shard.slots, uint64(len(shard.slots))
	wanted := h>>32<<32 | uint64(ref) + 1
	at := (h >> 32) % size
	for slots[at] != wanted {
		if slots[at] == 0 {
			return
		}
		at = (at + 1) % size
	}
	slots[at] = 0
	shard.count--
	// Put the entries after the free slot again: a search for one of them would stop at the
	// slot.
	for next := (at + 1) % size; slots[next] != 0; next = (next + 1) % size {
		entry := slots[next]
		slots[next] = 0
		shard.put(entry)
	}
}

// done returns the new version. No goroutine may use the edit afterwards.
func (e *tableEdit) done() table {
	e.shards.each(func(s *userShard) {
		if s.edit == e.number {
			s.arena, s.rows = tight(s.arena), tight(s.rows)
		}
	})
	e.next.shards, e.next.hashes = e.shards.spread, e.hashes.spread
	e.next.count += int(e.added.Load())
	return e.next
}

// tight returns s, or a copy of it if s has more than 1/16 of its length as unused capacity.
func tight[T any](s []T) []T {
	if cap(s)-len(s) > len(s)/16+16 {
		return append(make([]T, 0, len(s)), s...)
	}
	return s
}
