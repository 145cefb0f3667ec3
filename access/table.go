package access

import (
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// table holds service users in little memory: an immutable map by id, and by the
// hashes of their tokens, of rows of bytes without a pointer in them, which the
// garbage collector passes over. A new version shares every shard that a change
// does not touch; readers need no lock. The zero value is empty.
type table struct {
	shards spread[userShard]
	hashes spread[hashShard]
	count  int
}

// userShard is one part of the users.
type userShard struct {
	edit  uint64   // the number of the edit that wrote it
	begin uint32   // where the arena goes on with what that edit has written
	index []uint32 // open addressing by the hash of the id, some bits of it above the place + 1; 0 is free
	rows  []uint32 // by place: where the row begins, + 1; 0 is nobody
	arena []byte   // the rows, and what is left of old ones
	count int      // users
	live  int      // bytes of arena that belong to rows
}

// hashShard is one part of the index of token hashes: open addressing, 32 bits of
// the hash above a ref + 1; 0 is free.
type hashShard struct {
	edit  uint64 // the number of the edit that wrote it
	slots []uint64
	count int // entries
}

// A ref says where a user is: the shard above the place.
const (
	placeBits = 19
	placeMask = 1<<placeBits - 1
)

// spread is an immutable array of spreadSize parts, on two levels, so that a new
// version copies little. A part may be nil. The zero value has none.
type spread[T any] struct {
	leaves *[leafCount]*leaf[T]
}

type leaf[T any] [leafSize]*T

const (
	leafCount  = 256
	leafSize   = 32
	spreadSize = leafCount * leafSize
)

func (s spread[T]) at(n uint64) *T {
	if s.leaves == nil || s.leaves[n/leafSize] == nil {
		return nil
	}
	return s.leaves[n/leafSize][n%leafSize]
}

// each calls f for every part that there is.
func (s spread[T]) each(f func(*T)) {
	if s.leaves == nil {
		return
	}
	for _, l := range s.leaves {
		if l == nil {
			continue
		}
		for _, part := range l {
			if part != nil {
				f(part)
			}
		}
	}
}

// spreadEdit is a version of a spread in the making.
type spreadEdit[T any] struct {
	spread[T]
	owned [leafCount]bool // leaves that this edit has already copied
	locks [leafCount]sync.Mutex
}

// lock returns the lock of the leaf of a part, locked.
func (e *spreadEdit[T]) lock(n uint64) *sync.Mutex {
	l := &e.locks[n/leafSize]
	l.Lock()
	return l
}

func (e *spreadEdit[T]) begin(s spread[T]) {
	e.leaves = new([leafCount]*leaf[T])
	if s.leaves != nil {
		*e.leaves = *s.leaves
	}
}

func (e *spreadEdit[T]) set(n uint64, part *T) {
	at := n / leafSize
	if !e.owned[at] {
		copied := new(leaf[T])
		if e.leaves[at] != nil {
			*copied = *e.leaves[at]
		}
		e.leaves[at], e.owned[at] = copied, true
	}
	e.leaves[at][n%leafSize] = part
}

var edits atomic.Uint64 // numbers of edits

// idHash is what a user is looked for by.
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
		if place := entry&placeMask - 1; entry>>placeBits == indexBits(h) && s.rowAt(place).idIs(id) {
			return place, true
		}
	}
}

// indexBits are those bits of a hash that stand in the index beside a place.
func indexBits(h uint64) uint32 { return uint32(h>>32) >> placeBits }

func (s *userShard) rowAt(place uint32) userRow { return userRow(s.arena[s.rows[place]-1:]) }

// owner returns the row of the user that a token with this hash belongs to, or nil.
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

// each calls f for every user, in no order. f may keep it.
func (t *table) each(sets []*groupSet, f func(*User)) {
	t.shards.each(func(s *userShard) {
		for place := range s.rows {
			if s.rows[place] != 0 {
				f(s.rowAt(uint32(place)).decode(sets))
			}
		}
	})
}

// edit begins a new version. The old one stays as it is.
func (t *table) edit() *tableEdit {
	e := &tableEdit{number: edits.Add(1), next: *t}
	e.shards.begin(t.shards)
	e.hashes.begin(t.hashes)
	return e
}

// tableEdit is a version in the making. Several goroutines may change it at once, each
// other users.
type tableEdit struct {
	number uint64       // shards that bear it belong to this edit
	next   table        // but for the shards
	added  atomic.Int64 // to next.count
	room   room         // in shards that are new
	shards spreadEdit[userShard]
	hashes spreadEdit[hashShard]
}

// room is how much a shard is made for, so that it need not grow in many steps.
type room struct{ users, tokens int }

// expect makes room for so many users and tokens, when the table is empty. What
// they say may be wrong, so that there is a bound.
func (e *tableEdit) expect(users, tokens int64) {
	if e.next.count == 0 {
		e.room = room{int(min(max(users, 0), 1<<20) / spreadSize), int(min(max(tokens, 0), 1<<21) / spreadSize)}
	}
}

// rowBytes is about how many bytes the row of a user has, with its tokens.
const rowBytes = 180

// shard returns a shard that may be written.
func (e *tableEdit) shard(n uint64) *userShard {
	s := e.shards.at(n)
	switch {
	case s == nil:
		slots := 8
		for slots*3 < e.room.users*4 {
			slots *= 2
		}
		s = &userShard{index: make([]uint32, slots), rows: make([]uint32, 0, e.room.users), arena: make([]byte, 0, e.room.users*rowBytes)}
	case s.edit == e.number:
		return s
	default:
		s = s.clone()
	}
	s.edit, s.begin = e.number, uint32(len(s.arena))
	e.shards.set(n, s)
	return s
}

// clone copies a shard, without what is left of old rows when that is more than
// half.
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
	known bool // there is a row at the place
	twice bool // … which this edit has written
}

func newWritten(id string) written {
	w := written{id: id, hash: idHash(id)}
	w.shard = w.hash % spreadSize
	return w
}

// find looks for a user.
func (e *tableEdit) find(w *written) {
	defer e.shards.lock(w.shard).Unlock()
	e.findLocked(w)
}

func (e *tableEdit) findLocked(w *written) {
	if s := e.shards.at(w.shard); s != nil {
		w.place, w.known = s.find(w.hash, w.id)
		w.twice = w.known && s.edit == e.number && s.rows[w.place]-1 >= s.begin
	}
}

// get returns a user as the edit has it so far.
func (e *tableEdit) get(w *written, sets []*groupSet) *User {
	defer e.shards.lock(w.shard).Unlock()
	return e.shards.at(w.shard).rowAt(w.place).decode(sets)
}

func (w *written) ref() uint32 { return uint32(w.shard)<<placeBits | w.place }

// maxPlaces bounds the users of a shard, and with them the table.
const maxPlaces = placeMask

// set writes a user: its row in two parts, and the hashes of its tokens. One that is
// there already is replaced; its old hashes have to be removed before.
func (e *tableEdit) set(w *written, row, setIDs []byte, tokens []Token) error {
	if err := e.setRow(w, row, setIDs); err != nil {
		return err
	}
	for i := range tokens {
		e.setHash(tokens[i].Hash, w.ref())
	}
	return nil
}

var (
	errTwice = errors.New("appears twice in the changes")
	errFull  = errors.New("does not fit: the directory can hold no more service users")
)

func (e *tableEdit) setRow(w *written, row, setIDs []byte) error {
	defer e.shards.lock(w.shard).Unlock()
	if e.findLocked(w); w.twice {
		return errTwice
	}
	s := e.shard(w.shard)
	if len(s.rows) >= maxPlaces || uint64(len(s.arena)) > math.MaxUint32-1<<20 {
		return errFull
	}
	if w.known {
		s.live -= s.rowAt(w.place).size()
	} else {
		w.place = s.add(w.hash)
		e.added.Add(1)
	}
	start := len(s.arena)
	s.rows[w.place] = uint32(start) + 1
	s.arena = binary.AppendUvarint(s.arena, uint64(len(setIDs)+len(row)))
	s.arena = append(append(s.arena, setIDs...), row...)
	s.live += len(s.arena) - start
	return nil
}

// add makes a place for one more user.
func (s *userShard) add(h uint64) (place uint32) {
	s.count++
	if s.count*4 > len(s.index)*3 {
		s.rehash(len(s.index) * 2)
	}
	if s.count <= len(s.rows) { // there is a free one
		place = uint32(slices.Index(s.rows, 0))
	} else {
		place = uint32(len(s.rows))
		s.rows = append(s.rows, 0)
	}
	s.put(h, place)
	return place
}

func (s *userShard) put(h uint64, place uint32) {
	mask := uint64(len(s.index) - 1)
	i := h >> 32
	for s.index[i&mask] != 0 {
		i++
	}
	s.index[i&mask] = indexBits(h)<<placeBits | place + 1
}

func (s *userShard) rehash(size int) {
	s.index = make([]uint32, size)
	for place := range s.rows {
		if s.rows[place] != 0 {
			s.put(s.rowAt(uint32(place)).idHash(), uint32(place))
		}
	}
}

// remove takes a user out, whose hashes have been removed.
func (e *tableEdit) remove(w *written) {
	defer e.shards.lock(w.shard).Unlock()
	s := e.shard(w.shard)
	s.live -= s.rowAt(w.place).size()
	s.rows[w.place] = 0
	s.count--
	e.added.Add(-1)
	s.rehash(len(s.index))
}

// removeHashes takes the hashes of a user's tokens out.
func (e *tableEdit) removeHashes(w *written, u *User) {
	for i := range u.Tokens {
		e.removeHash(u.Tokens[i].Hash, w.ref())
	}
}

// hashShard returns a shard that may be written.
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

// hashSlots makes slots for so many entries and some more. They are used to seven
// eighths: few requests look for a hash, and what they pass is side by side.
func hashSlots(entries int) []uint64 {
	some := slices.Grow([]uint64(nil), 4+entries*8/7)
	some = some[:cap(some)]
	clear(some)
	return some
}

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

func (s *hashShard) put(entry uint64) {
	size := uint64(len(s.slots))
	i := (entry >> 32) % size
	for s.slots[i] != 0 {
		i = (i + 1) % size
	}
	s.slots[i] = entry
}

// removeHash takes an entry out and moves those behind it up, so that no search
// stops too early.
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
	for next := (at + 1) % size; slots[next] != 0; next = (next + 1) % size {
		entry := slots[next]
		slots[next] = 0
		shard.put(entry)
	}
}

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

// tight returns a slice that has not much more memory than it needs.
func tight[T any](s []T) []T {
	if cap(s)-len(s) > len(s)/16+16 {
		return append(make([]T, 0, len(s)), s...)
	}
	return s
}
