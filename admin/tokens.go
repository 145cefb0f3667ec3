package admin

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// createToken issues a token for a service user. Only this answer contains the secret. The answer is
// 409 if the service user has 100 live tokens already.
func (a *API) createToken(c *call, in TokenInput) (Token, error) {
	id, err := c.id("id", "service")
	if err != nil {
		return Token{}, err
	}
	var t store.Token
	if err := in.apply(&t, a.store.Now()); err != nil {
		return Token{}, err
	}
	issued, err := a.store.CreateToken(c.Context(), c.by, id, t)
	if err != nil {
		return Token{}, err
	}
	return c.showIssued(issued, a.store.Now()), nil
}

// apply copies the fields that the body contains into t. A ttl counts from now.
func (in *TokenInput) apply(t *store.Token, now time.Time) error {
	in.Description.to(&t.Description)
	in.Metadata.to(&t.Metadata)
	in.AllowedIPs.to(&t.AllowedIPs)
	in.PermissionGroups.to(&t.Groups)
	if in.ExpiresAt.Set && in.TTL.Set {
		return NewError(400, "ERR_INVALID_VALUE", "give ttl or expires_at, not both").field("ttl")
	}
	if in.TTL.Set {
		d, err := ParseDuration(in.TTL.Value)
		if err != nil || d < time.Second {
			return invalidField("ttl", fmt.Sprintf("%q is not a duration such as 90d or 36h", in.TTL.Value))
		}
		t.ExpiresAt = now.UTC().Add(d)
	}
	for _, f := range []struct {
		name  string
		in    Opt[string]
		place *time.Time
	}{{"expires_at", in.ExpiresAt, &t.ExpiresAt}, {"not_before", in.NotBefore, &t.NotBefore}} {
		if f.in.Set {
			at, err := parseTime(f.name, f.in.Value)
			if err != nil {
				return err
			}
			*f.place = at
		}
	}
	return nil
}

// listTokens lists the tokens of a service user, newest first. The list includes expired and
// revoked tokens.
func (a *API) listTokens(c *call, q ListQuery) (TokenList, error) {
	id, err := c.id("id", "service")
	if err != nil {
		return TokenList{}, err
	}
	tokens, page, err := newestFirst(c, q, "token", func(before string, limit int) ([]store.Token, bool, error) {
		return a.store.Tokens(c.Context(), c.by, id, before, limit)
	}, func(t store.Token) (Token, string) { return showToken(t, a.store.Now()), t.ID })
	return TokenList{tokens, page}, err
}

// tokenIDs returns the two ids in the path of a token.
func (c *call) tokenIDs() (user, token string, err error) {
	if user, err = c.id("id", "service"); err == nil {
		token, err = c.id("token_id", "token")
	}
	return user, token, err
}

// getToken returns a token without its secret.
func (a *API) getToken(c *call, _ None) (Token, error) {
	user, id, err := c.tokenIDs()
	if err != nil {
		return Token{}, err
	}
	t, err := a.store.Token(c.Context(), c.by, user, id)
	if err != nil {
		return Token{}, err
	}
	return c.showToken(t, a.store.Now()), nil
}

// updateToken sets the fields that the body contains; the others stay.
func (a *API) updateToken(c *call, in TokenInput) (Token, error) {
	user, id, err := c.tokenIDs()
	if err != nil {
		return Token{}, err
	}
	t, err := guarded(c, func(version int64) (store.Token, error) {
		return a.store.UpdateToken(c.Context(), c.by, user, id, version, func(t *store.Token) error {
			return in.apply(t, a.store.Now())
		})
	})
	if err != nil {
		return Token{}, err
	}
	return c.showToken(t, a.store.Now()), nil
}

// revokeToken revokes a token for good. The record of the token stays. If the token is revoked
// already, the request succeeds and changes nothing.
func (a *API) revokeToken(c *call, _ None) (None, error) {
	user, id, err := c.tokenIDs()
	if err != nil {
		return None{}, err
	}
	return guarded(c, func(version int64) (None, error) {
		return None{}, a.store.RevokeToken(c.Context(), c.by, user, id, version)
	})
}

// refreshToken replaces a token: it issues a new token with the same description, addresses, groups
// and lifetime. The old token ends with the grace, or at once without a grace. The answer is 409 if
// the token is retiring or revoked.
func (a *API) refreshToken(c *call, in RefreshInput) (Token, error) {
	user, id, err := c.tokenIDs()
	if err != nil {
		return Token{}, err
	}
	grace, err := durationField("grace", in.Grace)
	if err != nil {
		return Token{}, err
	}
	var old store.Token
	issued, err := guarded(c, func(version int64) (issued *store.Issued, err error) {
		issued, old, err = a.store.RefreshToken(c.Context(), c.by, user, id, version, grace)
		return issued, err
	})
	if err != nil {
		return Token{}, err
	}
	out := c.showIssued(issued, a.store.Now())
	replaced := showToken(old, a.store.Now())
	out.Replaces, out.Replaced = id, &replaced
	return out, nil
}

// durationField parses an optional duration; "" or an absent field gives 0.
func durationField(name string, in Opt[string]) (time.Duration, error) {
	if in.Value == "" {
		return 0, nil
	}
	d, err := ParseDuration(in.Value)
	if err != nil {
		return 0, invalidField(name, err.Error())
	}
	return d, nil
}

// showIssued is showToken for a new token, with its secret.
func (c *call) showIssued(issued *store.Issued, now time.Time) Token {
	out := c.showToken(issued.Token, now)
	out.Secret = issued.Secret
	return out
}

// showToken converts a token for an answer about it alone, and sets its ETag.
func (c *call) showToken(t store.Token, now time.Time) Token {
	c.header.Set("ETag", etag(t.Version))
	return showToken(t, now)
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
		if m[a] != m[b] {
			return int(m[b] - m[a])
		}
		return strings.Compare(a, b)
	}) {
		if m[address] >= since {
			list = append(list, SeenAddress{address, time.Unix(m[address], 0).UTC()})
		}
	}
	return list
}
