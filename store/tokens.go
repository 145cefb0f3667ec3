package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// CreateToken issues a token for a service user.
func (s *Store) CreateToken(ctx context.Context, by Actor, userID string, token NewToken) (issued *Issued, err error) {
	err = s.change(ctx, by, func(t *tx) error {
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
		if _, err := t.visibleUser(userID); err != nil {
			return Token{}, err
		}
		k, err := t.token(userID, id)
		s.withUse(userID, &k)
		return k, err
	})
}

// Tokens lists the tokens of a service user, newest first. before is the id of a token: the list
// has only older ones; "" is all. more reports whether the limit cut the list.
func (s *Store) Tokens(
	ctx context.Context, by Actor, userID, before string, limit int,
) (list []Token, more bool, err error) {
	list, err = inReadWithUse(ctx, s, by, func(t *tx) ([]Token, error) {
		if _, err := t.visibleUser(userID); err != nil {
			return nil, err
		}
		rows, err := t.query(selectToken+`
			WHERE service_user_id = $1 AND ($2 = '' OR id < $2) ORDER BY id DESC LIMIT $3`,
			userID, before, limit+1)
		if err != nil {
			return nil, err
		}
		list, err := collect(rows, scanToken)
		for i := range list {
			s.withUse(list[i].UserID, &list[i])
		}
		return list, err
	})
	if len(list) > limit {
		list, more = list[:limit], true
	}
	return list, more, err
}

// AllTokens lists the tokens of all service users that are valid now or will be, newest first.
// before, limit and more are as in [Store.Tokens].
func (s *Store) AllTokens(
	ctx context.Context, by Actor, before string, limit int,
) (list []Token, more bool, err error) {
	list, err = inReadWithUse(ctx, s, by, func(t *tx) ([]Token, error) {
		where := `revoked_at = 0 AND (retires_at = 0 OR retires_at > $1) AND (expires_at = 0 OR expires_at > $1)
			AND ($2 = '' OR id < $2)`
		args := []any{t.now.Unix(), before, limit + 1}
		teams := "TRUE"
		if by.Scope != nil {
			teams = "FALSE"
			for _, team := range by.Scope.Teams {
				args = append(args, toJSON(team))
				teams += " OR " + hasTeam(fmt.Sprintf("$%d", len(args)))
			}
		}
		// A deleted service user keeps its tokens until it is purged.
		where += ` AND service_user_id IN (
			SELECT id FROM service_users WHERE deleted_at = 0 AND (` + teams + `))`
		rows, err := t.query(selectToken+` WHERE `+where+` ORDER BY id DESC LIMIT $3`, args...)
		if err != nil {
			return nil, err
		}
		list, err := collect(rows, scanToken)
		for i := range list {
			s.withUse(list[i].UserID, &list[i])
		}
		return list, err
	})
	if len(list) > limit {
		list, more = list[:limit], true
	}
	return list, more, err
}

// TokenOwner returns the id of the service user that a token belongs to.
func (s *Store) TokenOwner(ctx context.Context, by Actor, id string) (userID string, err error) {
	return inRead(ctx, s, by, func(t *tx) (string, error) {
		var owner string
		switch err := t.row(`SELECT service_user_id FROM tokens WHERE id = $1`, id).Scan(&owner); {
		case errors.Is(err, sql.ErrNoRows):
			return "", notFound("token", id)
		case err != nil:
			return "", fmt.Errorf("looking for the token: %w", err)
		}
		switch _, err := t.visibleUser(owner); {
		case errors.Is(err, ErrNotFound):
			return "", notFound("token", id)
		case err != nil:
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
		if err := t.reachUser(userID); err != nil {
			return err
		}
		before, err := t.token(userID, id)
		if err != nil {
			return err
		}
		if err := checkVersion(before.Version, version); err != nil {
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

// RefreshToken issues a successor of a token: a new secret with the same description, metadata,
// addresses, groups and, up to Options.MaxTokenTTL, lifetime. old is the replaced token after the
// change. It ends after the grace; a grace of 0 revokes it at once.
func (s *Store) RefreshToken(
	ctx context.Context, by Actor, userID, id string, version int64, grace time.Duration,
) (issued *Issued, old Token, err error) {
	err = s.change(ctx, by, func(t *tx) error {
		if err := t.reachUser(userID); err != nil {
			return err
		}
		before, err := t.token(userID, id)
		if err != nil {
			return err
		}
		if err := checkVersion(before.Version, version); err != nil {
			return err
		}
		if err := checkGrace(grace); err != nil {
			return err
		}
		switch state := before.State(t.now); {
		case state == TokenRevoked || state == TokenRetiring:
			return conflict("",
				"the token is %s and has been replaced or ended already; create a new one instead",
				state)
		// An expired token has no use for a grace: it is revoked.
		case state == TokenExpired:
			grace = 0
		}
		next := Token{
			// Older versions accepted secrets in these texts.
			UserID:      userID,
			Description: access.MaskSecrets(before.Description),
			Metadata:    access.MaskSecrets(before.Metadata),
			AllowedIPs:  before.AllowedIPs,
			Groups:      before.Groups,
		}
		if !before.ExpiresAt.IsZero() {
			// The successor gets the whole lifetime of the old token again, not the
			// rest of it.
			lifetime := before.ExpiresAt.Sub(before.CreatedAt)
			if limit := s.opts.MaxTokenTTL; limit > 0 {
				lifetime = min(lifetime, limit)
			}
			next.ExpiresAt = t.now.Add(lifetime)
		}
		if issued, err = t.createToken(next, before.Groups); err != nil {
			return err
		}
		s.withUse(userID, &before)
		old = before
		old.ReplacedBy = issued.ID
		old.RefreshedAt, old.CountAtRefresh = t.now, before.UseCount
		if grace > 0 {
			old.RetiresAt = earlier(t.now.Add(grace), before.ExpiresAt)
		} else {
			old.RevokedAt = t.now
		}
		if err := t.writeToken(&old); err != nil {
			return err
		}
		if err := t.checkLive(userID, ""); err != nil {
			return err
		}
		return t.audit("token.refresh", id, before, old)
	})
	return issued, old, err
}

// earlier returns the earlier of at and end. A zero end means "never".
func earlier(at, end time.Time) time.Time {
	if !end.IsZero() && end.Before(at) {
		return end
	}
	return at
}

// checkGrace checks how long a replaced token stays valid.
func checkGrace(grace time.Duration) error {
	switch {
	case grace < 0:
		return invalid("grace", "must not be negative")
	case grace > 0 && grace < time.Second:
		return invalid("grace", "must be at least a second, or 0")
	}
	return nil
}

// RotateToken lets a service user replace one of its own tokens. The successor has a new secret and
// the same description, metadata, addresses and groups. It ends when the old token would have
// ended, or earlier. The old token stays valid for the grace, which is at least a second, but not
// beyond its own end. old is the old token after the change.
//
// A client that lost the answer can call RotateToken again with the old token. It gets another
// successor, and the end of the grace stays the same. The first successor is revoked if it was
// never used. If it was used or changed, the error is [ErrReplaced]: two clients have the same
// secret, and one of them should not.
func (s *Store) RotateToken(
	ctx context.Context, by Actor, userID, id string, grace time.Duration,
) (issued *Issued, old Token, err error) {
	err = s.change(ctx, by, func(t *tx) error {
		if grace < time.Second {
			return invalid("grace", "must be at least a second")
		}
		u, err := t.visibleUser(userID)
		if err != nil {
			return err
		}
		if err := t.withinScope(&u, &u); err != nil {
			return err
		}
		// The service user was valid when it authenticated, but that may have changed
		// since.
		if !u.Active || !u.ExpiresAt.IsZero() && !t.now.Before(u.ExpiresAt) {
			return conflict("", "the service user is deactivated or has expired")
		}
		before, err := t.token(userID, id)
		if err != nil {
			return err
		}
		s.withUse(userID, &before)
		old = before
		unused := Token{}
		switch state := before.State(t.now); state {
		case TokenActive:
			old.RetiresAt = earlier(t.now.Add(grace), before.ExpiresAt)
			old.RefreshedAt, old.CountAtRefresh = t.now, before.UseCount
		case TokenRetiring:
			if unused, err = t.unusedSuccessor(before); err != nil {
				return err
			}
		default:
			return conflict("", "the token is %s", state)
		}
		next := Token{
			UserID:      userID,
			Description: access.MaskSecrets(before.Description),
			Metadata:    access.MaskSecrets(before.Metadata),
			AllowedIPs:  before.AllowedIPs,
			Groups:      before.Groups,
			NotBefore:   before.NotBefore,
			ExpiresAt:   before.ExpiresAt,
		}
		if limit := s.opts.MaxTokenTTL; limit > 0 && next.ExpiresAt.After(t.now.Add(limit)) {
			next.ExpiresAt = t.now.Add(limit)
		}
		if issued, err = t.createToken(next, before.Groups); err != nil {
			return err
		}
		// The client did not receive the first successor; the new one replaces it.
		if unused.ID != "" {
			after := unused
			after.RevokedAt, after.ReplacedBy = t.now, issued.ID
			if err := t.writeToken(&after); err != nil {
				return err
			}
			if err := t.audit("token.revoke", unused.ID, unused, after); err != nil {
				return err
			}
		}
		old.ReplacedBy = issued.ID
		if err := t.writeToken(&old); err != nil {
			return err
		}
		if err := t.checkLive(userID, issued.ID); err != nil {
			return err
		}
		return t.audit("token.rotate", id, before, old)
	})
	return issued, old, err
}

// unusedSuccessor returns the successor of a retiring token if another one may replace it: the
// service user created it itself, it was never used, and it was not changed. Otherwise the error is
// [ErrReplaced].
func (t *tx) unusedSuccessor(old Token) (Token, error) {
	next, err := t.token(old.UserID, old.ReplacedBy)
	if err != nil {
		return next, err
	}
	no := &Error{Kind: ErrReplaced}
	switch {
	// The first use counts from the moment of the request, also while it is not on disk yet.
	case !next.LastUsedAt.IsZero() || t.store.uses.first.has(next.ID):
		no.Msg = "the token has been replaced by " + next.ID +
			", which is in use; go on with that one, or ask an admin for a new token"
	case next.CreatedBy != next.UserID:
		no.Msg = "the token has been replaced by another actor; go on with the new one, " + next.ID
	// A first use does not count in the version; every other change does.
	case next.Version != 1:
		no.Msg = "the token has been replaced by " + next.ID +
			", which was changed or ended since; ask an admin for a new token"
	default:
		return next, nil
	}
	return next, no
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
	if err := t.update("tokens", k.ID, tokenColumns.changed(k)...); err != nil {
		return fmt.Errorf("writing the token: %w", err)
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
	secret := access.NewSecret()
	hash, pepper := t.store.opts.Peppers.Hash(secret)
	token.copyManagedFields(Token{
		ID: t.newID("token"), UserID: token.UserID, Hint: access.Hint(secret), Version: 1,
		CreatedAt: t.now, CreatedBy: t.by.Name, UpdatedAt: t.now,
	})
	row := append(tokenColumns.added(&token), value{"hash", hex.EncodeToString(hash[:])}, value{"pepper_id", pepper})
	if err := t.insert("tokens", row...); err != nil {
		return nil, fmt.Errorf("writing the token: %w", err)
	}
	if err := t.touchUser(token.UserID); err != nil {
		return nil, err
	}
	if err := t.audit("token.create", token.ID, nil, token); err != nil {
		return nil, err
	}
	return &Issued{token, secret}, nil
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
	rows, err := t.query(`
		SELECT id, replaced_by, recent, created_by = service_user_id, live, live AND retires_at > 0 AND EXISTS (
			SELECT 1 FROM tokens s WHERE s.id = k.replaced_by AND s.created_by = s.service_user_id)
		FROM (SELECT id, service_user_id, created_by, replaced_by, retires_at, created_at > $3 AS recent,
				revoked_at = 0 AND (expires_at = 0 OR expires_at > $2)
					AND (retires_at = 0 OR retires_at > $2) AS live
			FROM tokens WHERE service_user_id = $1) k
		WHERE recent OR live`, userID, t.now.Unix(), t.now.Add(-time.Hour).Unix())
	if err != nil {
		return fmt.Errorf("counting tokens: %w", err)
	}
	links, err := collect(rows, func(rows *sql.Rows) (l link, err error) {
		err = rows.Scan(&l.id, &l.next, &l.recent, &l.own, &l.live, &l.rotatedAway)
		return l, err
	})
	if err != nil {
		return fmt.Errorf("counting tokens: %w", err)
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

// reachUser rejects an actor that may not change this service user.
func (t *tx) reachUser(id string) error {
	u, err := t.visibleUser(id)
	if err != nil {
		return err
	}
	return t.withinScope(&u, &u)
}

func (t *tx) token(userID, id string) (Token, error) {
	rows, err := t.query(selectToken+` WHERE id = $1 AND service_user_id = $2`, id, userID)
	if err != nil {
		return Token{}, fmt.Errorf("reading the token: %w", err)
	}
	list, err := collect(rows, scanToken)
	switch {
	case err != nil:
		return Token{}, fmt.Errorf("reading the token: %w", err)
	case len(list) == 0:
		return Token{}, notFound("token", id)
	}
	return list[0], nil
}
