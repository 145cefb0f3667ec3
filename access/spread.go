package access

import "sync"

// spread is an immutable array of spreadSize pointers to parts. It has two levels, so a new version
// copies little. A part may be nil. In the zero value all parts are nil.
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

// each calls f for every part that is not nil.
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

// spreadEdit is a new version of a spread under construction.
type spreadEdit[T any] struct {
	spread[T]
	owned [leafCount]bool       // leaves that this edit has already copied
	locks [leafCount]sync.Mutex // by leaf: a goroutine locks it before it reads or writes a part
}

// lock locks the leaf that contains part n, and returns the lock for the caller to unlock.
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
