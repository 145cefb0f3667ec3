package access

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"unsafe"
)

// What many requests count at once is what there is, however often the table grows
// and is begun anew meanwhile.
func TestUsesAtOnce(t *testing.T) {
	const users, goroutines, rounds = 3 * minUseSlots, 4, 20
	var c Changes
	for n := range users {
		c.Users = append(c.Users, user(n))
	}
	d := with(t, NewDirectory(Peppers{}, ""), c)
	var who []Principal
	for n := range users {
		who = append(who, enter(t, d, login(n)))
	}
	uses := NewUses()
	var mu sync.Mutex
	begun := make(map[string][]*Use)
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			from := netip.AddrFrom4([4]byte{192, 0, 2, byte(g)})
			for round := range rounds {
				for _, p := range who {
					if u := uses.Note(p, int64(1000+round), from, fmt.Sprint("rule_", g)); u != nil {
						mu.Lock()
						begun[p.TokenID()] = append(begun[p.TokenID()], u)
						mu.Unlock()
					}
				}
				if round%7 == 6 {
					uses.Renew()
				}
			}
		})
	}
	all.Wait()
	if size := len(*uses.slots.Load()); size < users/2 || size > 8*users {
		t.Errorf("got %d pairs of slots for %d tokens in use", size, users)
	}
	counts := 0
	for _, p := range who {
		var sum, last int64
		from, rules := make(map[netip.Addr]bool), make(map[string]bool)
		for _, u := range begun[p.TokenID()] {
			f := u.Figures()
			sum, last = sum+f.Count, max(last, f.Last)
			for _, seen := range f.From {
				from[seen.Value] = true
			}
			for _, seen := range f.Rules {
				rules[seen.Value] = true
			}
		}
		counts += len(begun[p.TokenID()])
		if sum != goroutines*rounds || last != 1000+rounds-1 || len(from) != goroutines || len(rules) != goroutines {
			t.Fatalf("%s: got %d uses, the last at %d, from %v by %v", p, sum, last, from, rules)
		}
	}
	if renewed := goroutines * (rounds / 7); counts > users*3*(renewed+1) {
		t.Errorf("%d counts were begun for %d tokens", counts, users)
	}
}

// A token in use keeps its count; tokens that share a pair of slots do not count for
// one another.
func TestUses(t *testing.T) {
	const users = 200
	var c Changes
	for n := range users {
		c.Users = append(c.Users, user(n))
	}
	d := with(t, NewDirectory(Peppers{}, ""), c)
	uses := NewUses()
	slots := make([]useSlots, 1) // every one is in the way of every other
	uses.slots.Store(&slots)
	uses.begun.Store(-users * users)
	sums := make([]int64, users)
	counts := make([][]*Use, users)
	for i := range users * 10 {
		n := i * i % users
		if u := uses.Note(enter(t, d, login(n)), 1000, here, ""); u != nil {
			counts[n] = append(counts[n], u)
		}
		sums[n]++
	}
	for n, list := range counts {
		var sum int64
		for _, u := range list {
			sum += u.Figures().Count
		}
		if sum != sums[n] {
			t.Errorf("user %d: got %d uses, want %d", n, sum, sums[n])
		}
	}
	// Two that share a pair are not in the way of each other.
	uses.slots.Store(&slots)
	slots[0][0].Store(nil)
	slots[0][1].Store(nil)
	begun := 0
	for i := range 10 {
		if uses.Note(enter(t, d, login(i%2)), 1000, here, "") != nil {
			begun++
		}
	}
	if begun != 2 {
		t.Errorf("two tokens began %d counts", begun)
	}
	uses.Renew()
	p := enter(t, d, login(1))
	if uses.Note(p, 1000, here, "") == nil || uses.Note(p, 1000, here, "") != nil {
		t.Error("the second use began a count")
	}
	if uses.Note(Principal{}, 1000, here, "") != nil {
		t.Error("nobody's use began a count")
	}
	if nobody, _ := d.Principal("service_1", "", here, 1000); uses.Note(nobody, 1000, here, "") != nil {
		t.Error("a use without a token began a count")
	}
	if size := unsafe.Sizeof(Use{}); size != 128 && unsafe.Sizeof(size) == 8 {
		t.Errorf("a count has %d bytes, want two lines of 64", size)
	}
}
