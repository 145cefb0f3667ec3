package access

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
)

// principals makes users and returns them as they authenticate.
func principals(t *testing.T, users int) (list []Principal) {
	var c Changes
	for n := range users {
		c.Users = append(c.Users, user(n))
	}
	d := with(t, NewDirectory(Peppers{}, ""), c)
	for n := range users {
		list = append(list, enter(t, d, login(n)))
	}
	return list
}

// Each use is in exactly one count, while many requests count and others take the counts.
func TestUsesAtOnce(t *testing.T) {
	const users, goroutines, rounds = 300, 4, 50
	list := principals(t, users)
	var uses Uses
	var mu sync.Mutex
	taken := make(map[string][]*Use)
	take := func() {
		uses.Take(func(user string, u *Use) {
			mu.Lock()
			defer mu.Unlock()
			taken[user] = append(taken[user], u)
		})
	}
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			from := netip.AddrFrom4([4]byte{192, 0, 2, byte(g)})
			for round := range rounds {
				for _, p := range list {
					uses.Note(p, int64(1000+round), from, fmt.Sprint("rule_", g))
				}
				take()
			}
		})
	}
	all.Wait()
	take()
	for _, p := range list {
		var sum, last int64
		from, rules := make(map[netip.Addr]bool), make(map[string]bool)
		for _, u := range taken[p.ID()] {
			if u.Token != p.TokenID() {
				t.Errorf("%s: got the token %s, want %s", p, u.Token, p.TokenID())
			}
			sum, last = sum+u.Count, max(last, u.Last)
			for _, seen := range u.From {
				from[seen.Value] = true
			}
			for _, seen := range u.Rules {
				rules[seen.Value] = true
			}
		}
		if sum != goroutines*rounds || last != 1000+rounds-1 || len(from) != goroutines || len(rules) != goroutines {
			t.Fatalf("%s: got %d uses, the last at %d, from %v by %v", p, sum, last, from, rules)
		}
	}
}

// A count has the latest values, whatever the order in which they come.
func TestUses(t *testing.T) {
	p := principals(t, 2)
	var uses Uses
	address := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) }
	for n := range MaxSeen + 3 {
		uses.Note(p[0], int64(1000+n), address(n), fmt.Sprint("rule_", n))
	}
	uses.Note(p[0], 1005, address(5), "rule_5")                // known
	uses.Note(p[0], 999, address(99), "rule_late")             // older than all that are kept
	uses.Note(p[0], 1000+MaxSeen+2, netip.Addr{}, "")          // over a Unix socket, by no rule
	uses.Note(p[1], 1, here, "")                               // another token
	uses.Note(Principal{}, 2000, here, "rule_of_no principal") // counts nothing
	seen := 0
	uses.Each(p[0].ID(), func(u *Use) {
		seen++
		if u.Count != MaxSeen+6 || u.Last != 1000+MaxSeen+2 || u.LastIP != address(MaxSeen+2) {
			t.Errorf("got %d uses, the last at %d from %v", u.Count, u.Last, u.LastIP)
		}
		if len(u.From) != MaxSeen || len(u.Rules) != MaxSeen {
			t.Fatalf("got %d addresses and %d rules, want %d", len(u.From), len(u.Rules), MaxSeen)
		}
		for _, from := range u.From {
			if n := from.At - 1000; n < 3 || from.Value != address(int(n)) {
				t.Errorf("got %v at %d, want none older than 1003", from.Value, from.At)
			}
		}
	})
	counts := 0
	uses.Take(func(string, *Use) { counts++ })
	uses.Take(func(string, *Use) { counts++ })
	if seen != 1 || counts != 2 {
		t.Errorf("got %d counts of one service user and %d of all, want 1 and 2", seen, counts)
	}
}
