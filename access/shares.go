package access

import (
	"cmp"
	queue "container/heap"
	"maps"
	"slices"
)

// shares records which service user owns which items of a bounded memory. When the memory is full,
// the user with the most items loses its oldest one. A call takes time that is logarithmic in the
// number of users. The zero value is empty.
type shares[T any] struct {
	users   map[string]*share[T]
	largest shareHeap[T]
	fresh   map[*share[T]]bool // those with fresh items
	added   int64
}

// share is the items of one service user, the oldest first.
type share[T any] struct {
	user  string
	items []item[T]
	fresh int  // the number of the last items that takeFresh has not returned yet, at most maxFresh
	cut   bool // older items were taken
	index int  // the position in the heap
}

type item[T any] struct {
	value T
	added int64 // a serial number: an older item has a smaller one
}

// maxFresh bounds the items of a user that wait for takeFresh. A user with more loses its oldest ones.
const maxFresh = 500

// add adds an item to the share of a user.
func (s *shares[T]) add(user string, value T) {
	s.added++
	one := item[T]{value, s.added}
	u := s.users[user]
	if u != nil {
		u.items = append(u.items, one)
		queue.Fix(&s.largest, u.index)
	} else {
		if s.users == nil {
			s.users, s.fresh = make(map[string]*share[T]), make(map[*share[T]]bool)
		}
		u = &share[T]{user: user, items: []item[T]{one}}
		s.users[user] = u
		queue.Push(&s.largest, u)
	}
	if u.fresh = min(u.fresh+1, maxFresh); u.fresh == 1 {
		s.fresh[u] = true
	}
}

// takeFresh returns items that it has not returned before, those of each user oldest first, and at most
// this number. If there are more, no user gets more than another one, as far as the other one has any.
func (s *shares[T]) takeFresh(most int) (values []T) {
	users := slices.SortedFunc(maps.Keys(s.fresh), func(a, b *share[T]) int { return cmp.Compare(a.fresh, b.fresh) })
	for i, u := range users {
		left := len(users) - i
		part := min(u.fresh, (most-len(values)+left-1)/left)
		first := len(u.items) - u.fresh
		for _, one := range u.items[first : first+part] {
			values = append(values, one.value)
		}
		if u.fresh -= part; u.fresh == 0 {
			delete(s.fresh, u)
		}
	}
	return values
}

// isLargest reports whether the user has items, and no other user has more.
func (s *shares[T]) isLargest(user string) bool {
	u := s.users[user]
	return u != nil && len(u.items) == len(s.largest[0].items)
}

// takeFromLargest removes and returns the oldest item of the user with the most items. If several
// users have the most, it takes the oldest of all their items. It panics if all shares are empty.
func (s *shares[T]) takeFromLargest() T {
	u := s.largest[0]
	value := u.items[0].value
	u.cut = true
	if u.items = u.items[1:]; len(u.items) == 0 {
		queue.Pop(&s.largest)
		delete(s.users, u.user)
		delete(s.fresh, u)
	} else {
		u.fresh = min(u.fresh, len(u.items))
		queue.Fix(&s.largest, 0)
	}
	return value
}

// shareHeap is a [queue.Interface] with the largest share first.
type shareHeap[T any] []*share[T]

func (h shareHeap[T]) Len() int { return len(h) }

func (h shareHeap[T]) Less(i, j int) bool {
	a, b := h[i].items, h[j].items
	if len(a) != len(b) {
		return len(a) > len(b)
	}
	return a[0].added < b[0].added // no share in the heap is empty
}

func (h shareHeap[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *shareHeap[T]) Push(u any) {
	u.(*share[T]).index = len(*h)
	*h = append(*h, u.(*share[T]))
}

func (h *shareHeap[T]) Pop() any {
	last := len(*h) - 1
	u := (*h)[last]
	(*h)[last] = nil // free the share for the garbage collector
	*h = (*h)[:last]
	return u
}
