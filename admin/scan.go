package admin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/serviceusers/caddy-service-users/store"
)

// FindTokensInput asks whose the secrets are that somebody has found, without
// telling them.
type FindTokensInput struct {
	Digests []string `json:"digests"` // the SHA-256 of each secret in hexadecimal digits, at most 1000
}

// FoundTokens holds the tokens that are known. Tokens that were revoked some days
// ago are not known any more.
type FoundTokens struct {
	Tokens []FoundToken `json:"tokens"` // those that are known
}

// FoundToken is the token that a digest belongs to.
type FoundToken struct {
	Digest        string           `json:"digest"`          // as it was asked for
	TokenID       string           `json:"token_id"`        // token_…
	ServiceUserID string           `json:"service_user_id"` // service_…
	Name          string           `json:"name"`            // of the service user
	State         store.TokenState `json:"state"`           // what it is good for now
	URI           string           `json:"uri"`             // of the token
}

// MaxDigests is how many digests are looked up at once.
const MaxDigests = 1000

// findTokens says which tokens secrets belong to that somebody has found, by their
// digests. A manager is told about the service users that it sees only.
func (a *API) findTokens(c *call, in FindTokensInput) (FoundTokens, error) {
	if len(in.Digests) > MaxDigests {
		return FoundTokens{}, invalidField("digests", fmt.Sprintf("holds %d digests, at most %d are looked up at once", len(in.Digests), MaxDigests))
	}
	out := FoundTokens{Tokens: []FoundToken{}}
	d := a.store.Directory()
	for i, text := range in.Digests {
		digest, err := hex.DecodeString(text)
		if err != nil || len(digest) != sha256.Size {
			return FoundTokens{}, invalidField(fmt.Sprintf("digests.%d", i), "is not a SHA-256 in 64 hexadecimal digits")
		}
		u, known := d.FindDigest([sha256.Size]byte(digest))
		if known == nil {
			continue
		}
		t, err := a.store.Token(c.Context(), c.by, u.ID, known.ID)
		if errors.Is(err, store.ErrNotFound) {
			continue // out of the manager's scope, or deleted meanwhile
		}
		if err != nil {
			return FoundTokens{}, err
		}
		shown := showToken(t, a.store.Now())
		out.Tokens = append(out.Tokens, FoundToken{text, t.ID, u.ID, u.Name, shown.State, shown.URI})
	}
	return out, nil
}
