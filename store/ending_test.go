package store

import (
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// A retiring token whose end is set before the end of its grace ends there.
func TestEndWithinGrace(t *testing.T) {
	w := newWorld(t, still)
	if _, err := w.refreshOf(ctx, alice, w.user.ID, w.token.ID, time.Hour); err != nil {
		t.Fatal(err)
	}
	end := w.clock.Now().Add(10 * time.Minute)
	must(w.UpdateToken(ctx, alice, w.user.ID, w.token.ID, 0, func(k *Token) error { k.ExpiresAt = end; return nil }))
	for _, step := range []struct {
		pass time.Duration
		want access.Reason
	}{{9 * time.Minute, access.Granted}, {11 * time.Minute, access.TokenExpired}} {
		w.clock.add(step.pass)
		if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != step.want {
			t.Errorf("at %v: got %v, want %v", w.clock.Now(), got, step.want)
		}
	}
}

// A token is revoked without a version, and with the current one, and not with an older one.
func TestRevokeVersion(t *testing.T) {
	w := newWorld(t, Options{})
	must(w.UpdateToken(ctx, alice, w.user.ID, w.token.ID, 0, func(k *Token) error { k.Description = "changed"; return nil }))
	version := must(w.Token(ctx, alice, w.user.ID, w.token.ID)).Version
	if err := w.RevokeToken(ctx, alice, w.user.ID, w.token.ID, version-1); kind(err) != "changed" {
		t.Errorf("an older version: got %v, want that the token was changed", err)
	}
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
		t.Errorf("after the refusal: got %v, want granted", got)
	}
	mustDo(w.RevokeToken(ctx, alice, w.user.ID, w.token.ID, version))
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.TokenRevoked {
		t.Errorf("after the revocation: got %v, want token_revoked", got)
	}
	_, other := addUser(w.Store, "other", w.readers.ID)
	mustDo(w.RevokeToken(ctx, alice, other.UserID, other.ID, 0))
	if got := probe(w.Store, other.UserID, other.Secret, "GET /v1/x"); got != access.TokenRevoked {
		t.Errorf("without a version: got %v, want token_revoked", got)
	}
}
