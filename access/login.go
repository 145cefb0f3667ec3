package access

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Logins returns a principal for each token that a service user can log in with, at an instant and
// from an address; with the zero address, from any address. If a usable token is not narrowed, Logins
// returns its principal alone, because no other token allows more.
//
// Without a usable token, reason is that of one token, or NoCredential without any token, or that
// of the service user; tokens counts the unusable tokens, as in "1 expired, 2 revoked".
func (d *Directory) Logins(userID string, address netip.Addr, now int64) (
	list []Principal, reason Reason, tokens string,
) {
	p, reason := d.Principal(userID, "", address, now)
	if reason != Granted {
		return nil, reason, ""
	}
	reason = NoCredential
	count := make(map[string]int)
	a := p.row.account()
	for range a.count {
		t := a.tokens.token()
		p, why := Principal{}, a.usable(&t, address, now)
		// A service user can have thousands of tokens that have ended. To look up each of them
		// would take time in the square of their number.
		if why == Granted || why == UserAddress || why == TokenAddress {
			p, why = d.Principal(userID, t.longID(), address, now)
		}
		text := tokenText[why]
		switch {
		case why == Granted && t.bits&isNarrowed == 0:
			return []Principal{p}, Granted, ""
		case why == Granted:
			list = append(list, p)
		case why == TokenNotYet:
			text += time.Unix(t.notBefore, 0).UTC().Format(time.RFC3339)
		}
		count[text]++
		reason = why
	}
	if len(list) > 0 {
		return list, Granted, ""
	}
	var texts []string
	for _, text := range slices.Sorted(maps.Keys(count)) {
		texts = append(texts, fmt.Sprintf("%d %s", count[text], text))
	}
	return nil, reason, strings.Join(texts, ", ")
}

// tokenText has the words for a token that cannot be used.
var tokenText = map[Reason]string{
	TokenExpired: "expired", TokenNotYet: "not valid before ", TokenRevoked: "revoked",
	TokenAddress: "kept to other addresses",
}
