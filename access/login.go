package access

import "net/netip"

// Logins returns a principal for each token that a service user can log in with, at an instant and
// from an address. If a usable token is not narrowed, Logins returns its principal alone, because no
// other token allows more.
//
// With the zero address, allowed_ips are no obstacle, and the tokens that have none come first. Then a
// token stands alone only if it has none, or if the service user itself has allowed_ips. Logins leaves
// out all but one of the other tokens that are not narrowed.
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
	var tied []Principal // with tokens that have allowed_ips, for the zero address
	whole := false       // tied has one that is not narrowed
	for range a.count {
		t := a.tokens.token()
		narrowed := t.bits&isNarrowed != 0
		isTied := !address.IsValid() && len(t.allowed) > 0 && len(a.allowed) == 0
		if isTied && whole && !narrowed {
			continue
		}
		// A service user can have thousands of tokens that have ended. To look up each of them
		// would take time in the square of their number.
		reason = a.usable(&t, address, now)
		if reason == Granted || reason == UserAddress || reason == TokenAddress {
			p, reason = d.Principal(userID, t.longID(), address, now)
		}
		switch {
		case reason != Granted:
		case isTied:
			tied, whole = append(tied, p), whole || !narrowed
		case !narrowed:
			return []Principal{p}, Granted
		default:
			list = append(list, p)
		}
	}
	if list = append(list, tied...); len(list) > 0 {
		reason = Granted
	}
	return list, reason
}
