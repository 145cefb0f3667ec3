package access

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	none := netip.Addr{}
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	sibling, stranger := netip.MustParseAddr("2001:db8::ffff:2"), netip.MustParseAddr("2001:db8:0:1::1")
	type attempt struct {
		login   string
		address netip.Addr
		after   time.Duration // since the first
		limited bool
	}
	for name, attempts := range map[string][]attempt{
		"a login id":                   {{"a", none, 0, false}, {"a", none, 0, false}, {"a", none, 0, false}, {"a", none, 0, true}, {"b", none, 0, false}},
		"an address":                   {{"a", v4, 0, false}, {"b", v4, 0, false}, {"c", v4, 0, false}, {"d", v4, 0, true}, {"d", v6, 0, false}},
		"an IPv4 address in IPv6 form": {{"", v4, 0, false}, {"", v4, 0, false}, {"", v4, 0, false}, {"", netip.MustParseAddr("::ffff:192.0.2.1"), 0, true}},
		"an IPv6 network":              {{"", v6, 0, false}, {"", sibling, 0, false}, {"", v6, 0, false}, {"", sibling, 0, true}, {"", stranger, 0, false}},
		"forgotten one by one":         {{"a", none, 0, false}, {"a", none, 0, false}, {"a", none, 0, false}, {"a", none, 19 * time.Second, true}, {"a", none, 20 * time.Second, false}, {"a", none, 20 * time.Second, true}},
		"a flood does not prolong it":  {{"a", none, 0, false}, {"a", none, 0, false}, {"a", none, 0, false}, {"a", none, 1, true}, {"a", none, 2, true}, {"a", none, 3, true}, {"a", none, 20 * time.Second, false}},
		"the clock goes back":          {{"a", none, time.Hour, false}, {"a", none, 0, true}, {"b", none, 0, false}},
		"nothing known":                {{"", none, 0, false}, {"", none, 0, false}, {"", none, 0, false}, {"", none, 0, false}},
	} {
		throttle := NewThrottle(3, time.Minute)
		for i, a := range attempts {
			wait := throttle.Fail(a.login, a.address, begin.Add(a.after))
			if (wait > 0) != a.limited {
				t.Errorf("%s, attempt %d: wait %s, limited %t wanted", name, i, wait, a.limited)
			}
			if wait > time.Hour+time.Minute {
				t.Errorf("%s, attempt %d: wait %s", name, i, wait)
			}
		}
	}
}

// A flood of names does not make a persistent guesser be forgotten, as long as
// it keeps on guessing, and takes no memory.
func TestThrottleUnderFlood(t *testing.T) {
	throttle := NewThrottle(3, time.Minute)
	now := time.Unix(1_000_000, 0)
	victim := netip.MustParseAddr("192.0.2.1")
	for range 4 {
		throttle.Fail("", victim, now)
	}
	if throttle.Fail("", victim, now) == 0 {
		t.Fatal("the guesser is not limited before the flood")
	}
	n := 0
	flood := func() {
		n++
		throttle.Fail(fmt.Sprint("name", n), netip.Addr{}, now)
	}
	for range 20_000 {
		flood()
	}
	if throttle.Fail("", victim, now) == 0 {
		t.Error("20000 other names make a limited guesser be forgotten")
	}
	if allocs := testing.AllocsPerRun(100, func() { throttle.Fail("a", victim, now) }); allocs != 0 {
		t.Errorf("a failure allocates %v times, want 0", allocs)
	}
}

func TestResume(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Revision: 1, Users: []User{user(1, "g")}, Groups: []Group{group(t, "g", "allow GET /a")}})
	p, why := d.Authenticate(login(1), here, 100)
	if why != Granted {
		t.Fatal(why)
	}
	changed := func(edit func(*User)) Changes {
		u := user(1, "g")
		edit(&u)
		return Changes{Revision: 2, Users: []User{u}}
	}
	for name, tt := range map[string]struct {
		change Changes
		want   Reason
		allow  bool
	}{
		"the user expired": {changed(func(u *User) { u.ExpiresAt, u.Tokens[0].ExpiresAt = 100, 100 }), UserExpired, false},
		"nothing":          {Changes{Revision: 2}, Granted, true},
		"another name":     {changed(func(u *User) { u.Name = "x" }), Granted, true},
		"another token":    {changed(func(u *User) { u.Tokens = []Token{token(2)} }), TokenRevoked, false},
		"revoked":          {changed(func(u *User) { u.Tokens[0].Revoked = true }), TokenRevoked, false},
		"expired":          {changed(func(u *User) { u.Tokens[0].ExpiresAt = 100 }), TokenExpired, false},
		"inactive":         {changed(func(u *User) { u.Active = false }), UserInactive, false},
		"deleted":          {Changes{Revision: 2, RemovedUsers: []string{"service_1"}}, UnknownID, false},
		"another address":  {changed(func(u *User) { u.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }), UserAddress, false},
		"no group":         {changed(func(u *User) { u.Groups = nil }), Granted, false},
		"no rule":          {Changes{Revision: 2, Groups: []Group{group(t, "g")}}, Granted, false},
	} {
		next := with(t, d, tt.change)
		again, why := next.Resume(p, here, 100)
		if why != tt.want {
			t.Errorf("%s: got %s, want %s", name, why, tt.want)
		}
		if got := next.Authorize(again, Action{Method: "GET", Path: "/a"}).Allowed(); got != tt.allow {
			t.Errorf("%s: allowed %t, want %t", name, got, tt.allow)
		}
		outlives := tt.want
		if outlives == TokenExpired {
			outlives = Granted
		}
		if again, why := next.ResumeExpired(p, here, 100); why != outlives || again.Until() != 0 {
			t.Errorf("%s, outliving its token: got %s until %d, want %s", name, why, again.Until(), outlives)
		}
	}
}

func TestUntil(t *testing.T) {
	for _, tt := range []struct{ user, token, want int64 }{{0, 0, 0}, {1005, 0, 1005}, {0, 1005, 1005}, {1005, 1006, 1005}, {1006, 1005, 1005}} {
		u := user(1)
		u.ExpiresAt, u.Tokens[0].ExpiresAt = tt.user, tt.token
		p := enter(t, with(t, NewDirectory(Peppers{}, ""), Changes{Users: []User{u}}), login(1))
		if got := p.Until(); got != tt.want {
			t.Errorf("user until %d, token until %d: got %d, want %d", tt.user, tt.token, got, tt.want)
		}
	}
}
