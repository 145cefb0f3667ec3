package store

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// RefreshToken issues a successor of a token: a new secret with the same description, metadata,
// addresses, groups and, up to Options.MaxTokenTTL, lifetime; a ttl that is not 0 is its lifetime. If
// the token is not valid yet, neither is the successor. old is the replaced token after the change.
// It ends after the grace; a grace of 0 revokes it at once.
func (s *Store) RefreshToken(
	ctx context.Context, by Actor, userID, id string, version int64, grace, ttl time.Duration,
) (issued *Issued, old Token, err error) {
	err = s.change(ctx, by, func(t *tx) error {
		if t.again != nil {
			issued = t.again[0]
			old, err = t.token(userID, id)
			return err
		}
		before, err := t.tokenToChange(userID, id, version)
		if err != nil {
			return err
		}
		issued, old, err = t.refresh(before, grace, ttl)
		return err
	})
	return issued, old, err
}

// refresh makes the change of RefreshToken.
func (t *tx) refresh(before Token, grace, ttl time.Duration) (issued *Issued, old Token, err error) {
	if err := checkGrace(grace); err != nil {
		return nil, old, err
	}
	switch state := before.State(t.now); {
	case state == TokenRevoked || state == TokenRetiring:
		return nil, old, conflict("",
			"the token is %s and has been replaced or ended already; create a new one instead",
			state)
	// An expired token has no use for a grace: it is revoked.
	case state == TokenExpired:
		grace = 0
	}
	next := before.successor()
	if before.NotBefore.After(t.now) {
		next.NotBefore = before.NotBefore
	}
	if ttl > 0 {
		next.ExpiresAt = t.now.Add(ttl)
	} else if !before.ExpiresAt.IsZero() {
		// The successor gets the whole lifetime of the old token again, not the
		// rest of it.
		lifetime := before.ExpiresAt.Sub(before.CreatedAt)
		if limit := t.store.opts.MaxTokenTTL; limit > 0 {
			lifetime = min(lifetime, limit)
		}
		next.ExpiresAt = t.now.Add(lifetime)
	}
	if issued, err = t.createToken(next, before.Groups); err != nil {
		return nil, old, err
	}
	t.store.withUse(before.UserID, &before)
	old = before
	old.ReplacedBy = issued.ID
	old.RefreshedAt, old.CountAtRefresh = t.now, before.UseCount
	if grace > 0 {
		old.RetiresAt = earlier(t.now.Add(grace), before.ExpiresAt)
	} else {
		old.RevokedAt = t.now
	}
	if err := t.writeToken(&old); err != nil {
		return nil, old, err
	}
	if err := t.checkLive(before.UserID, ""); err != nil {
		return nil, old, err
	}
	return issued, old, t.audit("token.refresh", before.ID, before, old)
}

// Replaced is a token that a refresh has replaced, and its successor.
type Replaced struct {
	Old Token
	New *Issued
}

// RefreshTokens returns a change that refreshes each token of a service user that is valid now and
// not retiring, as [Store.RefreshToken] does. It appends them to done, oldest first, and fails if
// that makes more than MaxBulk.
func RefreshTokens(grace time.Duration, done *[]Replaced) UserChange {
	return func(t *tx, id string, version int64) (before, after ServiceUser, err error) {
		*done = slices.DeleteFunc(*done, func(r Replaced) bool { return r.Old.UserID == id }) // of another try
		before, err = t.visibleUser(id, false)
		if err := cmp.Or(err, checkVersion(before.Version, version), t.withinScope(&before, &before)); err != nil {
			return before, after, err
		}
		if t.again != nil {
			return before, before, t.replacedBefore(id, done)
		}
		tokens, err := all(t, "reading tokens", scanToken, selectToken+` WHERE service_user_id = $1 ORDER BY id`, id)
		for _, k := range tokens {
			if k.State(t.now) != TokenActive {
				continue
			}
			if len(*done) == MaxBulk {
				return before, after, invalid("", "more than %d tokens are too many for one request; "+
					"choose fewer service users", MaxBulk)
			}
			issued, old, err := t.refresh(k, grace, 0)
			if err != nil {
				return before, after, err
			}
			*done = append(*done, Replaced{old, issued})
		}
		return before, before, err
	}
}

// replacedBefore appends the tokens of a service user to done that a request with the same
// idempotency key has replaced before.
func (t *tx) replacedBefore(id string, done *[]Replaced) error {
	for i := range t.again {
		if issued := t.again[i]; issued.UserID == id {
			old, err := one(t, scanToken, "token", issued.ID,
				selectToken+` WHERE service_user_id = $1 AND replaced_by = $2`, id, issued.ID)
			if err != nil {
				return err
			}
			*done = append(*done, Replaced{old, issued})
		}
	}
	t.again = slices.DeleteFunc(t.again, func(k *Issued) bool { return k.UserID == id })
	return nil
}

// successor returns a new token with the fields of k that a replacement keeps.
func (k *Token) successor() Token {
	return Token{
		UserID: k.UserID, AllowedIPs: k.AllowedIPs, Groups: k.Groups,
		// Older versions accepted secrets in these texts.
		Description: access.MaskSecrets(k.Description), Metadata: access.MaskSecrets(k.Metadata),
	}
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
		u, err := t.visibleUser(userID, false)
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
		case TokenActive, TokenPending:
			old.RetiresAt = earlier(t.now.Add(grace), before.ExpiresAt)
			old.RefreshedAt, old.CountAtRefresh = t.now, before.UseCount
		case TokenRetiring:
			if unused, err = t.unusedSuccessor(before); err != nil {
				return err
			}
		default:
			return conflict("", "the token is %s", state)
		}
		next := before.successor()
		next.NotBefore, next.ExpiresAt = before.NotBefore, before.ExpiresAt
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
