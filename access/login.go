package access

import "net/netip"

// Logins returns a principal for each token that a service user can log in with, at an instant and
// from an address; with the zero address, from any address. If a usable token is not narrowed, Logins
// returns its principal alone, because no other token allows more.
//
// Without a usable token, the reason is that of the last token, or NoCredential without any token, or
// that of the service user.
func (d *Directory) Logins(userID string, address netip.Addr, now int64) (list []Principal, reason Reason) {
	p, reason := d.Principal(userID, "", address, now)
	if reason != Granted {
		return nil, reason
	}
	reason = NoCredential
	a := p.row.account()
	for range a.count {
		t := a.tokens.token()
		// A service user can have thousands of tokens that have ended. To look up each of them
		// would take time in the square of their number.
		reason = a.usable(&t, address, now)
		if reason == Granted || reason == UserAddress || reason == TokenAddress {
			p, reason = d.Principal(userID, t.longID(), address, now)
		}
		switch {
		case reason == Granted && t.bits&isNarrowed == 0:
			return []Principal{p}, Granted
		case reason == Granted:
			list = append(list, p)
		}
	}
	if len(list) > 0 {
		reason = Granted
	}
	return list, reason
}
