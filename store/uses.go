package store

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"
)

// firstUses has the first uses of tokens that are not on disk yet. They already count for
// [Store.RotateToken].
type firstUses struct {
	mu      sync.Mutex
	pending map[string]firstUse // by token
	wake    chan struct{}       // contains a value while there is something to write
}

type firstUse struct {
	user string
	at   time.Time
}

func (f *firstUses) has(token string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.pending[token]
	return ok
}

// note adds a first use, unless it has one of the token already.
func (f *firstUses) note(token string, use firstUse) {
	f.mu.Lock()
	_, known := f.pending[token]
	if !known {
		f.pending[token] = use
	}
	f.mu.Unlock()
	if !known {
		select {
		case f.wake <- struct{}{}:
		default: // the writer has not looked since the last wake
		}
	}
}

func (f *firstUses) all() map[string]firstUse {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.pending)
}

func (f *firstUses) remove(token string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pending, token)
}

// noteFirst records the first use of a token that the directory shows as unused. It never waits for
// the disk: the use counts when noteFirst returns, and is on disk a little later.
func (s *Store) noteFirst(userID, tokenID string) {
	s.uses.first.note(tokenID, firstUse{userID, s.Now()})
}

// retryUses is the pause after a failed attempt to write first uses.
const retryUses = time.Second

// recordUses writes first uses until the store closes.
func (s *Store) recordUses(ctx context.Context) {
	var again <-chan time.Time
	failing := failureLatch{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.uses.first.wake:
		case <-again:
		}
		again = nil
		err := s.safely("writing first uses", func() error { return s.writeUses(context.WithoutCancel(ctx)) })
		if err != nil {
			again = time.After(retryUses)
		}
		failing.report(err, func() {
			s.log.Error("the first use of a token cannot be written; the store tries again", zap.Error(err))
		})
	}
}

func (s *Store) writeUses(ctx context.Context) error {
	for token, use := range s.uses.first.all() {
		var fault *Error
		// An *Error means that the token is gone, for example purged, so its first use is
		// dropped.
		if err := s.recordUse(ctx, token, use); err != nil && !errors.As(err, &fault) {
			return err
		}
		s.uses.first.remove(token)
	}
	return nil
}

// recordUse writes the first use of a token; later uses change nothing. It is a change of the
// directory, which no longer shows the token as unused, but it keeps the version of the token.
//
// RotateToken on another node does not see the use before it is written, and may have replaced the token,
// as for a client that has lost the answer. Then the token has ended, and the log says so.
func (s *Store) recordUse(ctx context.Context, token string, use firstUse) error {
	lost := false
	err := s.change(ctx, Actor{Name: use.user, Operation: NewOperationID()}, func(t *tx) error {
		before, err := t.token(use.user, token)
		if err != nil || !before.LastUsedAt.IsZero() {
			return err
		}
		lost = !before.RevokedAt.IsZero() && before.ReplacedBy != "" && before.RefreshedAt.IsZero()
		if err := t.exec("writing the first use of the token",
			`UPDATE tokens SET last_used_at = $2 WHERE id = $1`, token, use.at.Unix()); err != nil {
			return err
		}
		if err := t.touchUser(use.user); err != nil {
			return err
		}
		// The JSON of a Token leaves out its usage. In this record the time of use is the
		// change.
		type used struct {
			Token
			LastUsedAt time.Time `json:"last_used_at,omitzero"`
		}
		return t.audit("token.first_use", token, before, used{before, use.at.UTC().Truncate(time.Second)})
	})
	if err == nil && lost {
		s.log.Warn("a token was used that a rotation on another node had replaced as unused; "+
			"two may hold the same secret", zap.String("service_user", use.user), zap.String("token", token))
	}
	return err
}
