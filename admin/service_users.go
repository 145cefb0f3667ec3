package admin

import (
	"fmt"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

func (a *API) createServiceUser(c *call, in NewServiceUser) (ServiceUser, error) {
	u := store.ServiceUser{Active: true}
	if err := in.apply(&u); err != nil {
		return ServiceUser{}, err
	}
	var token *store.NewToken
	if !in.CreateToken.Set || in.CreateToken.Value {
		token = new(store.NewToken)
	}
	u, issued, err := a.store.CreateServiceUser(c.Context(), c.by, u, token)
	if err != nil {
		return ServiceUser{}, err
	}
	out := c.showUser(u)
	if issued != nil {
		out.TokenID, out.Token = issued.ID, issued.Secret
	}
	return out, nil
}

// apply writes the fields that are present into a record.
func (in *ServiceUserInput) apply(u *store.ServiceUser) error {
	in.Name.to(&u.Name)
	in.DisplayName.to(&u.DisplayName)
	in.Description.to(&u.Description)
	in.Owner.to(&u.Owner)
	in.Alias.to(&u.Alias)
	in.Active.to(&u.Active)
	in.Role.to(&u.Role)
	in.Teams.to(&u.Teams)
	in.Labels.to(&u.Labels)
	in.AllowedIPs.to(&u.AllowedIPs)
	in.PermissionGroups.to(&u.Groups)
	if in.ExpiresAt.Set {
		at, err := parseTime("expires_at", in.ExpiresAt.Value)
		if err != nil {
			return err
		}
		u.ExpiresAt = at
	}
	return nil
}

func (a *API) listServiceUsers(c *call, q NamedListQuery) (ServiceUserList, error) {
	limit, err := q.limit()
	if err != nil {
		return ServiceUserList{}, err
	}
	before, err := q.before(store.ValidID, "service")
	if err != nil {
		return ServiceUserList{}, err
	}
	users, more, err := a.store.ServiceUsers(c.Context(), c.by, store.UserFilter{Name: q.Name, Before: before, Limit: limit})
	if err != nil {
		return ServiceUserList{}, err
	}
	list := ServiceUserList{ServiceUsers: make([]ServiceUser, len(users))}
	last := ""
	for i, u := range users {
		list.ServiceUsers[i] = showUser(u)
		last = u.ID
	}
	list.Page = page(c, more, last, limit)
	return list, nil
}

func (a *API) getServiceUser(c *call, _ None) (ServiceUser, error) {
	id, err := c.id("id", "service")
	if err != nil {
		return ServiceUser{}, err
	}
	u, err := a.store.ServiceUser(c.Context(), c.by, id)
	if err != nil {
		return ServiceUser{}, err
	}
	return c.showUser(u), nil
}

func (a *API) updateServiceUser(c *call, in ServiceUserInput) (ServiceUser, error) {
	id, err := c.id("id", "service")
	if err != nil {
		return ServiceUser{}, err
	}
	u, err := guarded(c, func(version int64) (store.ServiceUser, error) {
		return a.store.UpdateServiceUser(c.Context(), c.by, id, version, in.apply)
	})
	if err != nil {
		return ServiceUser{}, err
	}
	return c.showUser(u), nil
}

func (a *API) deleteServiceUser(c *call, _ None) (None, error) {
	id, err := c.id("id", "service")
	if err != nil {
		return None{}, err
	}
	return guarded(c, func(version int64) (None, error) {
		return None{}, a.store.DeleteServiceUser(c.Context(), c.by, id, version)
	})
}

// showUser shows the one service user that an answer is about.
func (c *call) showUser(u store.ServiceUser) ServiceUser {
	c.header.Set("ETag", etag(u.Version))
	return showUser(u)
}

func showUser(u store.ServiceUser) ServiceUser {
	return ServiceUser{
		ID: u.ID, URI: "/service_users/" + u.ID,
		Name: u.Name, DisplayName: u.DisplayName, Description: u.Description, Owner: u.Owner, Alias: u.Alias,
		Active: u.Active, Role: u.Role, Teams: some(u.Teams), Labels: u.Labels, AllowedIPs: some(u.AllowedIPs),
		ExpiresAt: showTime(u.ExpiresAt), CreatedAt: u.CreatedAt, CreatedBy: u.CreatedBy, UpdatedAt: u.UpdatedAt,
		LastActiveAt: showTime(u.LastActiveAt), PermissionGroups: some(u.Groups), ETag: etag(u.Version),
	}
}

// some makes an absent list an empty one, so that JSON says [].
func some(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// showTime makes the zero time null.
func showTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

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

// apply writes the fields that are present into a record.
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
			return NewError(400, "ERR_INVALID_VALUE", fmt.Sprintf("%q is not a duration such as 90d or 36h", in.TTL.Value)).field("ttl")
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

func (a *API) listTokens(c *call, q ListQuery) (TokenList, error) {
	id, err := c.id("id", "service")
	if err != nil {
		return TokenList{}, err
	}
	limit, err := q.limit()
	if err != nil {
		return TokenList{}, err
	}
	before, err := q.before(store.ValidID, "token")
	if err != nil {
		return TokenList{}, err
	}
	tokens, more, err := a.store.Tokens(c.Context(), c.by, id, before, limit)
	if err != nil {
		return TokenList{}, err
	}
	list := TokenList{Tokens: make([]Token, len(tokens))}
	last := ""
	for i, t := range tokens {
		list.Tokens[i] = showToken(t, a.store.Now())
		last = t.ID
	}
	list.Page = page(c, more, last, limit)
	return list, nil
}

// tokenIDs reads the two ids in the path of a token.
func (c *call) tokenIDs() (user, token string, err error) {
	if user, err = c.id("id", "service"); err == nil {
		token, err = c.id("token_id", "token")
	}
	return user, token, err
}

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

func (a *API) updateToken(c *call, in TokenInput) (Token, error) {
	user, id, err := c.tokenIDs()
	if err != nil {
		return Token{}, err
	}
	t, err := guarded(c, func(version int64) (store.Token, error) {
		return a.store.UpdateToken(c.Context(), c.by, user, id, version, func(t *store.Token) error { return in.apply(t, a.store.Now()) })
	})
	if err != nil {
		return Token{}, err
	}
	return c.showToken(t, a.store.Now()), nil
}

func (a *API) revokeToken(c *call, _ None) (None, error) {
	user, id, err := c.tokenIDs()
	if err != nil {
		return None{}, err
	}
	return None{}, a.store.RevokeToken(c.Context(), c.by, user, id)
}

func (a *API) refreshToken(c *call, in RefreshInput) (Token, error) {
	user, id, err := c.tokenIDs()
	if err != nil {
		return Token{}, err
	}
	var grace time.Duration
	if in.Grace.Value != "" {
		if grace, err = ParseDuration(in.Grace.Value); err != nil {
			return Token{}, NewError(400, "ERR_INVALID_VALUE", err.Error()).field("grace")
		}
	}
	issued, err := a.store.RefreshToken(c.Context(), c.by, user, id, grace)
	if err != nil {
		return Token{}, err
	}
	out := c.showIssued(issued, a.store.Now())
	out.Replaces = id
	return out, nil
}

func (c *call) showIssued(issued *store.Issued, now time.Time) Token {
	out := c.showToken(issued.Token, now)
	out.Secret = issued.Secret
	return out
}

func (c *call) showToken(t store.Token, now time.Time) Token {
	c.header.Set("ETag", etag(t.Version))
	return showToken(t, now)
}

// showToken shows a token with its state at an instant.
func showToken(t store.Token, now time.Time) Token {
	return Token{
		ID: t.ID, URI: "/service_users/" + t.UserID + "/tokens/" + t.ID, ServiceUserID: t.UserID,
		Description: t.Description, Metadata: t.Metadata, Hint: t.Hint, State: t.State(now),
		AllowedIPs: some(t.AllowedIPs), PermissionGroups: some(t.Groups),
		ExpiresAt: showTime(t.ExpiresAt), NotBefore: showTime(t.NotBefore), RetiresAt: showTime(t.RetiresAt), RevokedAt: showTime(t.RevokedAt),
		CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, UpdatedAt: t.UpdatedAt,
		LastUsedAt: showTime(t.LastUsedAt), LastUsedIP: t.LastUsedIP, UseCount: t.UseCount,
		ReplacedBy: t.ReplacedBy, ETag: etag(t.Version),
	}
}
