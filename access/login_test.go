package access

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestLogins: the tokens by which a service user can log in, and the obstacle if there is no such token.
func TestLogins(t *testing.T) {
	prefixes := func(texts ...string) (list []netip.Prefix) {
		for _, text := range texts {
			list = append(list, netip.MustParsePrefix(text))
		}
		return list
	}
	tokens := func(edit ...func(*Token)) (list []Token) {
		for i, f := range edit {
			k := token(i + 1)
			f(&k)
			list = append(list, k)
		}
		return list
	}
	plain := func(*Token) {}
	narrowed := func(k *Token) { k.Groups = []string{"g"} }
	revoked := func(k *Token) { k.Revoked = true }
	expired := func(k *Token) { k.ExpiresAt = 100 }
	later := func(at int64) func(*Token) { return func(k *Token) { k.NotBefore = at } }
	from := func(p ...string) func(*Token) { return func(k *Token) { k.AllowedIPs = prefixes(p...) } }
	for _, row := range []struct {
		what    string
		user    func(*User)
		address netip.Addr
		want    string
	}{
		{"a plain token", func(u *User) { u.Tokens = tokens(plain) }, netip.Addr{}, "[token_1] granted"},
		{"no token", func(u *User) { u.Tokens = nil }, netip.Addr{}, "[] no_credential"},
		{"inactive", func(u *User) { u.Active = false }, netip.Addr{}, "[] user_inactive"},
		{"expired", func(u *User) { u.ExpiresAt = 100 }, netip.Addr{}, "[] user_expired"},
		{"the plain one of two", func(u *User) { u.Tokens = tokens(narrowed, plain) }, netip.Addr{}, "[token_2] granted"},
		{"narrowed ones only", func(u *User) { u.Tokens = tokens(narrowed, expired, narrowed) }, netip.Addr{}, "[token_1 token_3] granted"},
		{"one that has ended", func(u *User) { u.Tokens = tokens(expired) }, netip.Addr{}, "[] token_expired"},
		{"none that is left", func(u *User) { u.Tokens = tokens(expired, revoked, later(900), later(500)) }, netip.Addr{},
			"[] token_not_yet_valid"},
		{"the user's addresses", func(u *User) { u.AllowedIPs = prefixes("10.0.0.0/8") }, here, "[] user_address"},
		{"the user's addresses, any", func(u *User) { u.AllowedIPs = prefixes("10.0.0.0/8") }, netip.Addr{}, "[token_1] granted"},
		{"the tokens' addresses", func(u *User) { u.Tokens = tokens(from("10.0.0.0/8"), from("2001:db8::/32")) }, here, "[] token_address"},
		{"addresses that meet", func(u *User) {
			u.AllowedIPs, u.Tokens = prefixes("192.0.2.0/24", "10.0.0.0/8"), tokens(from("10.1.0.0/16"))
		}, netip.Addr{}, "[token_1] granted"},
		// Without an address, a token that any address may use comes first.
		{"one tied of two", func(u *User) { u.Tokens = tokens(from("10.0.0.0/8"), plain) }, netip.Addr{}, "[token_2] granted"},
		{"tied ones only", func(u *User) { u.Tokens = tokens(from("10.0.0.0/8"), from("10.1.0.0/16")) }, netip.Addr{}, "[token_1] granted"},
		{"tied, and narrowed", func(u *User) { u.Tokens = tokens(from("10.0.0.0/8"), narrowed) }, netip.Addr{}, "[token_2 token_1] granted"},
	} {
		u := user(1, "g")
		row.user(&u)
		d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g", "allow GET /a")}, Users: []User{u}})
		list, reason := d.Logins(u.ID, row.address, 200)
		ids := []string{}
		for _, p := range list {
			ids = append(ids, p.TokenID())
		}
		got := strings.TrimSpace(fmt.Sprint(ids, " ", reason))
		if got != row.want {
			t.Errorf("%s: got %s, want %s", row.what, got, row.want)
		}
		// The same as a login with each secret says.
		var usable []string
		for _, k := range u.Tokens {
			address := row.address
			for n := range 30 {
				if c := (Credential{ID: u.ID, Secret: secret(n)}); k.Hash == token(n).Hash && address.IsValid() {
					if _, why := d.Authenticate(c, address, 200); why == Granted {
						usable = append(usable, k.ID)
					}
				}
			}
		}
		if row.address.IsValid() && (len(usable) > 0) != (len(list) > 0) {
			t.Errorf("%s: got %q, logins say %q", row.what, ids, usable)
		}
	}
	if list, reason := NewDirectory(Peppers{}, "").Logins("service_1", netip.Addr{}, 0); list != nil || reason != UnknownID {
		t.Errorf("nobody: got %v, %v", list, reason)
	}
}

// A service user may have made a token each hour for years: the time grows with their number alone.
func TestLoginsOfManyTokens(t *testing.T) {
	u := user(1, "g")
	u.Tokens = nil
	for i := range 100_000 {
		k := token(i)
		k.ExpiresAt = 100
		u.Tokens = append(u.Tokens, k)
	}
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g", "allow GET /a")}, Users: []User{u}})
	begun := time.Now()
	if _, reason := d.Logins(u.ID, netip.Addr{}, 200); reason != TokenExpired {
		t.Errorf("got %v", reason)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
