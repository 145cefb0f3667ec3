package store

import (
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Once identifies a request that issues tokens, so that its repetition issues no further ones.
type Once struct {
	Key     string // the header Idempotency-Key
	Request string // a digest of the method, the path and the body
	New     bool   // the error for a repetition is an [Answered], and no token gets another secret
}

// Answered is the error for a request that was answered before, see [Once]. It has the tokens that
// the request issued, and their service users, in the same order.
type Answered struct{ Tokens, Users []string }

func (e *Answered) Error() string {
	return "the request was answered before, and its secret is not shown again; refresh the token " +
		strings.Join(e.Tokens, ", ") + " if the secret is lost"
}

// keyLife is how long a key is known.
const keyLife = 24 * time.Hour

// digest returns the key of the row. Each actor has its own keys.
func (o *Once) digest(actor string) string {
	sum := sha256.Sum256([]byte(toJSON([]string{actor, o.Key})))
	return hex.EncodeToString(sum[:])
}

// findKey looks for an earlier request with the same key, and sets again to the tokens that it
// issued, each with a new secret. The secrets that the client did not receive end. If one of the
// tokens was used or has ended, the error is [ErrConflict].
func (t *tx) findKey() error {
	once := t.by.Once
	if once == nil {
		return nil
	}
	var request string
	var ids []string
	switch err := t.row(`SELECT request, tokens FROM idempotency_keys WHERE digest = $1 AND created_at > $2`,
		once.digest(t.by.Name), t.now.Add(-keyLife).Unix()).Scan(&request, jsonText{&ids}); {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("looking for the idempotency key: %w", err)
	case request != once.Request:
		return &Error{ErrKeyUsed, "Idempotency-Key", "the key was sent before with another request " +
			"(method, path or body); send each new request with a new key"}
	}
	if once.New {
		return t.answered(ids)
	}
	for _, id := range ids {
		issued, err := t.reissue(id)
		if err != nil {
			return err
		}
		t.again = append(t.again, issued)
	}
	return nil
}

// answered returns the error for a request that issued these tokens.
func (t *tx) answered(tokens []string) error {
	done := &Answered{Tokens: tokens}
	for _, id := range tokens {
		owner, err := one(t, scanString, "token", id, `SELECT service_user_id FROM tokens WHERE id = $1`, id)
		if err == nil {
			err = t.reachUser(owner)
		}
		if err != nil {
			return err
		}
		done.Users = append(done.Users, owner)
	}
	return done
}

// reissue gives a token that was never used another secret.
func (t *tx) reissue(id string) (*Issued, error) {
	before, err := one(t, scanToken, "token", id, selectToken+` WHERE id = $1`, id)
	if err != nil {
		return nil, err
	}
	if err := t.reachUser(before.UserID); err != nil {
		return nil, err
	}
	t.store.withUse(before.UserID, &before)
	switch state := before.State(t.now); {
	case !before.LastUsedAt.IsZero() || t.store.uses.first.has(id):
		return nil, conflict("token_id", "the request was answered before, and its token %s has been used, "+
			"so a client has the secret; if the client is not yours, revoke the token", id)
	case state != TokenActive && state != TokenPending:
		return nil, conflict("token_id", "the request was answered before, and its token %s is %s by now; "+
			"send the request with a new key", id, state)
	}
	after := before
	secret, columns := t.newSecret(&after)
	after.UpdatedAt, after.Version = t.now, before.Version+1
	if err := t.update("token", "tokens", id, after.columns(),
		append(columns, column{name: "hint", field: after.Hint})...); err != nil {
		return nil, err
	}
	if err := t.touchUser(before.UserID); err != nil {
		return nil, err
	}
	return &Issued{after, secret}, t.audit("token.reissue", id, before, after)
}

// keepKey writes the key of a request and the tokens that it issued. It removes the keys that have
// ended.
func (t *tx) keepKey() error {
	once := t.by.Once
	if once == nil || t.again != nil {
		return nil
	}
	if len(t.issued) == 0 {
		return invalid("Idempotency-Key", "the request issues no token, which is all that the key protects; "+
			"leave the header out")
	}
	if err := t.exec("removing old idempotency keys", `DELETE FROM idempotency_keys WHERE created_at <= $1`,
		t.now.Add(-keyLife).Unix()); err != nil {
		return err
	}
	return t.exec("writing the idempotency key", `
		INSERT INTO idempotency_keys (digest, request, tokens, created_at) VALUES ($1, $2, $3, $4)`,
		once.digest(t.by.Name), once.Request, toJSON(t.issued), t.now.Unix())
}
