package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"
)

// firstUses holds the first uses of tokens that are not on disk yet. They count
// already: see [Store.RotateToken].
type firstUses struct {
	mu      sync.Mutex
	pending map[string]firstUse // by token
	wake    chan struct{}       // holds one value when there is something to write
}

type firstUse struct {
	user string
	at   time.Time
}

func (f *firstUses) begin() {
	f.pending, f.wake = make(map[string]firstUse), make(chan struct{}, 1)
}

func (f *firstUses) has(token string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.pending[token]
	return ok
}

// noteFirst takes down that a token was used for the first time. It is meant for
// tokens that the directory shows as unused, and waits for nothing: the use
// counts when it returns, and is on disk a little later.
func (s *Store) noteFirst(userID, tokenID string) {
	s.uses.mu.Lock()
	_, known := s.uses.pending[tokenID]
	if !known {
		s.uses.pending[tokenID] = firstUse{userID, s.now()}
	}
	s.uses.mu.Unlock()
	if !known {
		select {
		case s.uses.wake <- struct{}{}:
		default: // somebody is about to look anyway
		}
	}
}

// retryUses is how long a first use that could not be written waits for the next
// attempt.
const retryUses = time.Second

// recordUses writes first uses until the store closes, and then what is left.
func (s *Store) recordUses(ctx context.Context) {
	var again <-chan time.Time
	failing := false
	for closing := false; !closing; {
		select {
		case <-ctx.Done():
			closing = true
		case <-s.uses.wake:
		case <-again:
		}
		again = nil
		err := s.safely("writing first uses", func() error { return s.writeUses(context.WithoutCancel(ctx)) })
		if err != nil {
			again = time.After(retryUses)
			if !failing {
				s.log.Error("the first use of a token cannot be written; it is tried again", zap.Error(err))
			}
		}
		failing = err != nil
	}
}

func (s *Store) writeUses(ctx context.Context) error {
	s.uses.mu.Lock()
	pending := maps.Clone(s.uses.pending)
	s.uses.mu.Unlock()
	for token, use := range pending {
		var fault *Error
		if err := s.recordUse(ctx, token, use); err != nil && !errors.As(err, &fault) {
			return err
		}
		s.uses.mu.Lock()
		delete(s.uses.pending, token)
		s.uses.mu.Unlock()
	}
	return nil
}

// recordUse writes the first use of a token; a later one changes nothing. It is
// a change of the directory, which shows the token as used from then on, but
// none of the fields that its version counts.
func (s *Store) recordUse(ctx context.Context, token string, use firstUse) error {
	return s.change(ctx, Actor{Name: use.user, Operation: NewOperationID()}, func(t *tx) error {
		before, err := t.token(use.user, token)
		if err != nil || !before.LastUsedAt.IsZero() {
			return err
		}
		if _, err := t.exec(`UPDATE tokens SET last_used_at = $2 WHERE id = $1`, token, use.at.Unix()); err != nil {
			return fmt.Errorf("writing the first use of the token: %w", err)
		}
		if err := t.touchUser(use.user); err != nil {
			return err
		}
		type used struct {
			Token
			LastUsedAt time.Time `json:"last_used_at,omitzero"`
		}
		return t.audit("token.first_use", token, before, used{before, use.at.UTC().Truncate(time.Second)})
	})
}
