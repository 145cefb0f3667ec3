package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// CreateToken issues a token for a service user, from the fields that a caller may choose.
func (s *Store) CreateToken(ctx context.Context, by Actor, userID string, token Token) (issued *Issued, err error) {
	err = s.change(ctx, by, func(t *tx) error {
		if t.again != nil {
			issued = t.again[0]
			return nil
		}
		if err := t.reachUser(userID); err != nil {
			return err
		}
		token.UserID = userID
		if issued, err = t.createToken(token, nil); err != nil {
			return err
		}
		// checkLive counts the new token too. Its error rolls the token back.
		return t.checkLive(userID, "")
	})
	return issued, err
}

// Token returns one token of a service user.
func (s *Store) Token(ctx context.Context, by Actor, userID, id string) (Token, error) {
	return inReadWithUse(ctx, s, by, func(t *tx) (Token, error) {
		if _, err := t.visibleUser(userID, false); err != nil {
			return Token{}, err
		}
		k, err := t.token(userID, id)
		s.withUse(userID, &k)
		return k, err
	})
}

// TokenQuery selects a page of tokens, newest first. The zero value selects all of them.
type TokenQuery struct {
	UserID     string        // the id of a service user; "" is any
	State      TokenState    // "" is any
	Live       bool          // without State, only tokens that are neither revoked nor expired
	EndsWithin time.Duration // only tokens whose expiry or grace ends within this time; 0 is any
	UnusedFor  time.Duration // only tokens that were usable for this time, without a use in it; 0 is any
	Before     string        // only tokens older than the one with this id; "" is all
	Limit      int
	Bare       bool // reads only ID, UserID and LastUsedAt of the tokens, to count many in little time
}

// FindTokens lists tokens of service users that the actor sees. more reports whether the limit cut
// the list.
func (s *Store) FindTokens(ctx context.Context, by Actor, q TokenQuery) (list []Token, more bool, err error) {
	list, err = inReadWithUse(ctx, s, by, func(t *tx) ([]Token, error) {
		if q.UserID != "" {
			if _, err := t.visibleUser(q.UserID, false); err != nil {
				return nil, err
			}
		}
		return t.findTokens(q)
	})
	list, more = cut(list, q.Limit)
	return list, more, err
}

// findTokens reads up to one token more than the limit.
func (t *tx) findTokens(q TokenQuery) (list []Token, err error) {
	args := params{cmp.Or(q.Before, "token_~"), q.Limit + 1} // no id is after token_~
	where := ` WHERE id < $1`
	if q.UserID != "" {
		where += ` AND service_user_id = ` + args.add(q.UserID)
	} else { // a deleted service user keeps its tokens until it is purged
		where += ` AND EXISTS (SELECT 1 FROM service_users u
			WHERE u.id = service_user_id AND deleted_at = 0 AND ` + t.by.Scope.sees(&args) + `)`
	}
	if q.State != "" {
		where += ` AND ` + tokenState(args.add(t.now.Unix())) + ` = ` + args.add(string(q.State))
	} else if q.Live {
		where += ` AND ` + tokenState(args.add(t.now.Unix())) + ` NOT IN ('expired', 'revoked')`
	}
	if q.EndsWithin > 0 { // the first condition is that of an index
		end := args.add(t.now.Add(q.EndsWithin).Unix())
		where += ` AND (expires_at > 0 OR retires_at > 0) AND (expires_at > 0 AND expires_at <= ` + end + `
			OR retires_at > 0 AND retires_at <= ` + end + `)`
	}
	since := t.now.Add(-q.UnusedFor)
	if q.UnusedFor > 0 {
		at := args.add(since.Unix())
		where += ` AND created_at <= ` + at + ` AND not_before <= ` + at + ` AND last_used_at <= ` + at
	}
	selection, scan := selectToken, scanToken
	if q.Bare {
		selection = `SELECT id, service_user_id, last_used_at FROM tokens`
		scan = func(rows *sql.Rows) (k Token, err error) {
			err = rows.Scan(&k.ID, &k.UserID, (*unixTime)(&k.LastUsedAt))
			return k, err
		}
	}
	for {
		page, err := all(t, "reading tokens", scan, selection+where+` ORDER BY id DESC LIMIT $2`, args...)
		for _, k := range page {
			t.store.withUse(k.UserID, &k)
			if q.UnusedFor == 0 || !k.LastUsedAt.After(since) { // a use may not be on disk yet
				list = append(list, k)
			}
		}
		if err != nil || len(list) > q.Limit || len(page) <= q.Limit {
			return list, err
		}
		args[0] = page[len(page)-1].ID
	}
}

// TokenOwner returns the id of the service user that a token belongs to.
func (s *Store) TokenOwner(ctx context.Context, by Actor, id string) (userID string, err error) {
	return inRead(ctx, s, by, func(t *tx) (string, error) {
		owner, err := one(t, scanString, "token", id, `SELECT service_user_id FROM tokens WHERE id = $1`, id)
		if err != nil {
			return "", err
		}
		if _, err = t.visibleUser(owner, false); errors.Is(err, ErrNotFound) {
			err = notFound("token", id)
		}
		if err != nil {
			return "", err
		}
		return owner, nil
	})
}

// UpdateToken changes the fields of a token that a caller may choose. version is as in
// [Store.UpdateServiceUser].
func (s *Store) UpdateToken(
	ctx context.Context, by Actor, userID, id string, version int64, edit func(*Token) error,
) (Token, error) {
	var token Token
	err := s.change(ctx, by, func(t *tx) error {
		before, err := t.tokenToChange(userID, id, version)
		if err != nil {
			return err
		}
		s.withUse(userID, &before)
		token = before.clone()
		if err := edit(&token); err != nil {
			return err
		}
		token.copyManagedFields(before)
		if err := t.checkToken(&token, &before, before.Groups); err != nil {
			return err
		}
		if toJSON(token) == toJSON(before) {
			return nil
		}
		if err := t.writeToken(&token); err != nil {
			return err
		}
		return t.audit("token.update", id, before, token)
	})
	return token, err
}

// RevokeToken ends a token for good; its record stays. If the token is revoked already, RevokeToken
// changes nothing and returns no error.
func (s *Store) RevokeToken(ctx context.Context, by Actor, userID, id string, version int64) error {
	return s.change(ctx, by, func(t *tx) error {
		if err := t.reachUser(userID); err != nil {
			return err
		}
		before, err := t.token(userID, id)
		if err != nil || !before.RevokedAt.IsZero() {
			return err
		}
		if err := checkVersion(before.Version, version); err != nil {
			return err
		}
		after := before
		after.RevokedAt = t.now
		if err := t.writeToken(&after); err != nil {
			return err
		}
		return t.audit("token.revoke", id, before, after)
	})
}

// writeToken writes the row of a token after a change, with a new version. It does not write the
// figures of usage.
func (t *tx) writeToken(k *Token) error {
	k.UpdatedAt, k.Version = t.now, k.Version+1
	if err := t.update("token", "tokens", k.ID, k.columns()); err != nil {
		return err
	}
	return t.touchUser(k.UserID)
}

// createToken creates the secret and writes the row, which contains only the hash of the secret.
// inherited are groups that the token may be limited to although they were deleted.
func (t *tx) createToken(token Token, inherited []string) (*Issued, error) {
	if ttl := t.store.opts.defaultTTL(); token.ExpiresAt.IsZero() && ttl > 0 {
		token.ExpiresAt = t.now.Add(ttl)
	}
	if err := t.checkToken(&token, nil, inherited); err != nil {
		return nil, err
	}
	token.copyManagedFields(Token{
		ID: t.newID("token"), UserID: token.UserID, Version: 1,
		CreatedAt: t.now, CreatedBy: t.by.Name, UpdatedAt: t.now,
	})
	secret, hash := t.newSecret(&token)
	if err := t.insert("token", "tokens", token.columns(), hash...); err != nil {
		return nil, err
	}
	if err := t.touchUser(token.UserID); err != nil {
		return nil, err
	}
	if err := t.audit("token.create", token.ID, nil, token); err != nil {
		return nil, err
	}
	t.issued = append(t.issued, token.ID)
	return &Issued{token, secret}, nil
}

// newSecret returns a new secret for a token, and the columns with its hash. It sets the hint.
func (t *tx) newSecret(k *Token) (secret string, hash []column) {
	secret = access.NewSecret()
	sum, pepper := t.store.opts.Peppers.Hash(secret)
	k.Hint = access.Hint(secret)
	return secret, []column{
		{name: "pepper_id", field: pepper}, {name: "hash", field: hex.EncodeToString(sum[:])},
	}
}

// checkLive rejects more live tokens than a service user can have. Tokens in the grace of a
// rotation do not count, so that a client, or a thief, that rotates endlessly cannot use up the
// tokens of others.
//
// rotated is the id of the token that a rotation created, or "". With rotated, two more rules apply
// to its chain, which is the token and all tokens that it replaced, one after another: tokens of
// the chain in their grace do count, and the service user may create at most maxRotations of them
// in an hour.
func (t *tx) checkLive(userID, rotated string) error {
	type link struct {
		id, next    string
		recent, own bool // created within an hour; created by the service user itself
		live        bool
		rotatedAway bool // in the grace of a rotation
	}
	links, err := all(t, "counting tokens", func(rows *sql.Rows) (l link, err error) {
		err = rows.Scan(&l.id, &l.next, &l.recent, &l.own, &l.live, &l.rotatedAway)
		return l, err
	}, `
		SELECT id, replaced_by, recent, created_by = service_user_id, live, live AND retires_at > 0 AND EXISTS (
			SELECT 1 FROM tokens s WHERE s.id = k.replaced_by AND s.created_by = s.service_user_id)
		FROM (SELECT id, service_user_id, created_by, replaced_by, retires_at, created_at > $3 AS recent,
				revoked_at = 0 AND (expires_at = 0 OR expires_at > $2)
					AND (retires_at = 0 OR retires_at > $2) AS live
			FROM tokens WHERE service_user_id = $1) k
		WHERE recent OR live`, userID, t.now.Unix(), t.now.Add(-time.Hour).Unix())
	if err != nil {
		return err
	}
	chain := map[string]bool{rotated: rotated != ""}
	for grown := true; grown; { // a successor is newer and mostly comes later in the rows
		grown = false
		for _, l := range slices.Backward(links) {
			if chain[l.next] && !chain[l.id] {
				chain[l.id], grown = true, true
			}
		}
	}
	made, live := 0, 0
	for _, l := range links {
		if l.recent && l.own && chain[l.id] {
			made++
		}
		if l.live && (!l.rotatedAway || chain[l.id]) {
			live++
		}
	}
	switch {
	case made > maxRotations:
		return &Error{Kind: ErrTooOften, Msg: fmt.Sprintf(
			"the token and those before it were rotated %d times within an hour, the most there can be; "+
				"try again later, or ask an admin for a new token", maxRotations)}
	case live > maxLiveTokens:
		return conflict("",
			"the service user has %d live tokens already, the most there can be; revoke one first",
			maxLiveTokens)
	}
	return nil
}

// checkToken checks the fields, the longest lifetime, and that the groups exist. known are the
// groups that the token is limited to already; they are not checked, because one of them may have
// been deleted since. Leaving it out could widen the token: no groups means all groups.
func (t *tx) checkToken(token, before *Token, known []string) error {
	if err := token.check(t.now, before); err != nil {
		return err
	}
	if limit := t.store.opts.MaxTokenTTL; limit > 0 && (before == nil || !before.ExpiresAt.Equal(token.ExpiresAt)) {
		if token.ExpiresAt.IsZero() || token.ExpiresAt.After(t.now.Add(limit)) {
			return invalid("expires_at", "must lie within %s (max_token_ttl)", limit)
		}
	}
	for _, id := range token.Groups {
		if slices.Contains(known, id) {
			continue
		}
		if err := t.checkGiven("permission_groups", id); err != nil {
			return err
		}
	}
	return nil
}

// tokenToChange reads a token of a service user that the actor may change. version is as in
// [Store.UpdateServiceUser].
func (t *tx) tokenToChange(userID, id string, version int64) (Token, error) {
	if err := t.reachUser(userID); err != nil {
		return Token{}, err
	}
	k, err := t.token(userID, id)
	return k, cmp.Or(err, checkVersion(k.Version, version))
}

// reachUser rejects an actor that may not change this service user.
func (t *tx) reachUser(id string) error {
	u, err := t.visibleUser(id, false)
	if err != nil {
		return err
	}
	return t.withinScope(&u, &u)
}

func (t *tx) token(userID, id string) (Token, error) {
	return one(t, scanToken, "token", id, selectToken+` WHERE id = $1 AND service_user_id = $2`, id, userID)
}
