package admin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// TokenTTL returns the lifetime of a token that is created without an end, and the longest lifetime; 0
// is unlimited.
func (a *API) TokenTTL() (usual, longest time.Duration) { return a.store.TokenTTL() }

// createToken issues a token for a service user. Only this answer contains the secret. The answer is
// 409 if the service user has 100 live tokens already.
func (a *API) createToken(c *call, in TokenInput) (Token, error) {
	var t store.Token
	if err := in.apply(&t, a.store.Now()); err != nil {
		return Token{}, err
	}
	issued, err := a.store.CreateToken(c.Context(), c.by, c.PathValue("id"), t)
	if err != nil {
		return Token{}, err
	}
	return showIssued(issued, a.store.Now()), nil
}

// apply copies the fields that the body contains into t. A ttl counts from now.
func (in *TokenInput) apply(t *store.Token, now time.Time) error {
	in.Description.to(&t.Description)
	in.Metadata.to(&t.Metadata)
	in.AllowedIPs.to(&t.AllowedIPs)
	in.PermissionGroups.to(&t.Groups)
	if in.ExpiresAt.Set && in.TTL.Set {
		return invalidField("ttl", "give ttl or expires_at, not both")
	}
	if in.TTL.Set {
		d, err := parseDuration("ttl", in.TTL.Value)
		if err != nil {
			return err
		}
		t.ExpiresAt = now.UTC().Add(d)
	}
	if err := setTime("expires_at", in.ExpiresAt, &t.ExpiresAt); err != nil {
		return err
	}
	return setTime("not_before", in.NotBefore, &t.NotBefore)
}

// listTokens lists the tokens of a service user, newest first. The list includes expired and
// revoked tokens.
func (a *API) listTokens(c *call, q TokenListQuery) (TokenList, error) {
	return a.chooseTokens(c, q, c.PathValue("id"))
}

// listAllTokens lists the tokens of all service users, newest first.
func (a *API) listAllTokens(c *call, q TokenListQuery) (TokenList, error) {
	list, err := a.chooseTokens(c, q, "")
	names := a.store.Directory()
	for i := range list.Tokens {
		if u, ok := names.User(list.Tokens[i].ServiceUserID); ok {
			list.Tokens[i].ServiceUserName = u.Name
		}
	}
	return list, err
}

// chooseTokens lists the tokens of a service user or, if the id is "", of all.
func (a *API) chooseTokens(c *call, in TokenListQuery, user string) (TokenList, error) {
	q := store.TokenQuery{UserID: user, State: store.TokenState(in.State)}
	if in.State != "" && !slices.Contains(store.TokenStates, q.State) {
		return TokenList{}, invalidField("state",
			fmt.Sprintf("%q is none of active, pending, retiring, expired, revoked", in.State))
	}
	var err error
	if in.EndsWithin != "" {
		q.EndsWithin, err = parseDuration("ends_within", in.EndsWithin)
	}
	if in.UnusedFor != "" && err == nil {
		q.UnusedFor, err = parseDuration("unused_for", in.UnusedFor)
	}
	if err == nil && in.EndsWithin != "" && (q.State == store.TokenExpired || q.State == store.TokenRevoked) {
		err = invalidField("ends_within", "selects tokens that have not ended yet, and none is "+in.State)
	}
	if err != nil {
		return TokenList{}, err
	}
	q.Live = q.EndsWithin > 0 || q.UnusedFor > 0
	read := func(before string, limit int, count bool) ([]store.Token, bool, error) {
		q.Before, q.Limit, q.Bare = before, limit, count
		return a.store.FindTokens(c.Context(), c.by, q)
	}
	show := func(t store.Token) (Token, string) { return showToken(t, a.store.Now()), t.ID }
	tokens, page, err := newestFirst(c, in.ListQuery, "token", read, show)
	return TokenList{tokens, page}, err
}

// getToken returns a token without its secret.
func (a *API) getToken(c *call, _ None) (Token, error) {
	t, err := a.store.Token(c.Context(), c.by, c.PathValue("id"), c.PathValue("token_id"))
	if err != nil {
		return Token{}, err
	}
	return showToken(t, a.store.Now()), nil
}

// updateToken sets the fields that the body contains; the others stay.
func (a *API) updateToken(c *call, in TokenInput) (Token, error) {
	user, id := c.PathValue("id"), c.PathValue("token_id")
	t, err := a.store.UpdateToken(c.Context(), c.by, user, id, c.version, func(t *store.Token) error {
		return in.apply(t, a.store.Now())
	})
	if err != nil {
		return Token{}, err
	}
	return showToken(t, a.store.Now()), nil
}

// revokeToken revokes a token for good. The record of the token stays. If the token is revoked
// already, the request succeeds and changes nothing.
func (a *API) revokeToken(c *call, _ None) (None, error) {
	return None{}, a.store.RevokeToken(c.Context(), c.by, c.PathValue("id"), c.PathValue("token_id"), c.version)
}

// refreshToken replaces a token: it issues a new token with the same description, addresses, groups
// and, without ttl, lifetime. The old token ends with the grace, or at once without a grace. The
// answer is 409 if the token is retiring or revoked.
func (a *API) refreshToken(c *call, in RefreshInput) (Token, error) {
	var grace, ttl time.Duration
	var err error
	if in.Grace.Value != "" {
		if grace, err = ParseDuration(in.Grace.Value); err != nil {
			return Token{}, invalidField("grace", err.Error())
		}
	}
	if in.TTL.Set {
		if ttl, err = parseDuration("ttl", in.TTL.Value); err != nil {
			return Token{}, err
		}
	}
	user, id := c.PathValue("id"), c.PathValue("token_id")
	issued, old, err := a.store.RefreshToken(c.Context(), c.by, user, id, c.version, grace, ttl)
	if err != nil {
		return Token{}, err
	}
	return showRefreshed(issued, old, a.store.Now()), nil
}

// showRefreshed is showIssued for the successor of a token.
func showRefreshed(issued *store.Issued, old store.Token, now time.Time) Token {
	out := showIssued(issued, now)
	out.Replaces, out.Replaced = old.ID, new(showToken(old, now))
	return out
}

// showIssued is showToken for a new token, with its secret.
func showIssued(issued *store.Issued, now time.Time) Token {
	out := showToken(issued.Token, now)
	out.Secret = issued.Secret
	return out
}

// showToken converts a token for an answer, with its state at the time now.
func showToken(t store.Token, now time.Time) Token {
	out := Token{
		ID: t.ID, URI: "/service_users/" + t.UserID + "/tokens/" + t.ID, ServiceUserID: t.UserID,
		Description: t.Description, Metadata: t.Metadata, Hint: t.Hint, State: t.State(now),
		AllowedIPs: nonNil(t.AllowedIPs), PermissionGroups: nonNil(t.Groups),
		ExpiresAt: OrNull(t.ExpiresAt), NotBefore: OrNull(t.NotBefore),
		RetiresAt: OrNull(t.RetiresAt), RevokedAt: OrNull(t.RevokedAt),
		CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, UpdatedAt: t.UpdatedAt,
		LastUsedAt: OrNull(t.LastUsedAt), LastUsedIP: t.LastUsedIP,
		UseCount: t.UseCount, UsedFrom: showSeen(t.UsedFrom, 0),
		ReplacedBy: t.ReplacedBy, ETag: etag(t.Version),
	}
	if !t.RefreshedAt.IsZero() {
		out.Drain = &Drain{
			Since: t.RefreshedAt, UseCount: t.UseCount - t.CountAtRefresh,
			UsedFrom: showSeen(t.UsedFrom, t.RefreshedAt.Unix()), EndsAt: t.RetiresAt,
		}
		if !t.LastUsedAt.Before(t.RefreshedAt) {
			out.Drain.LastUsedAt = OrNull(t.LastUsedAt)
		}
		if !t.RevokedAt.IsZero() {
			out.Drain.EndsAt = t.RevokedAt
		}
	}
	return out
}

// showSeen lists the addresses that were seen at or after the time since, latest first. m has the
// last time of each address; times are in Unix seconds.
func showSeen(m map[string]int64, since int64) []SeenAddress {
	list := []SeenAddress{}
	for _, address := range slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), strings.Compare(a, b))
	}) {
		if m[address] >= since {
			list = append(list, SeenAddress{address, time.Unix(m[address], 0).UTC()})
		}
	}
	return list
}
