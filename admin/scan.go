package admin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/serviceusers/caddy-service-users/store"
)

// FindTokensInput is a list of digests of secrets, such as secrets that leaked. The secrets
// themselves are not sent.
type FindTokensInput struct {
	// the SHA-256 of each secret in 64 hexadecimal digits; at most 1000
	Digests []string `json:"digests"`
}

// FoundTokens is the list of the tokens that belong to the digests. Digests of unknown secrets are
// left out. A token is unknown as well some days after it was revoked.
type FoundTokens struct {
	Tokens []FoundToken `json:"tokens"` // in the order of the digests
}

// FoundToken is the token that a digest belongs to.
type FoundToken struct {
	Digest        string           `json:"digest"`          // the digest as in the request
	TokenID       string           `json:"token_id"`        // token_…
	ServiceUserID string           `json:"service_user_id"` // service_…
	Name          string           `json:"name"`            // the name of the service user
	State         store.TokenState `json:"state"`           // the state of the token at the time of the answer
	URI           string           `json:"uri"`             // the path of the token in this API
}

// MaxDigests is the largest number of digests in one request.
const MaxDigests = 1000

// findTokens finds the tokens of leaked secrets by the digests of the secrets. A manager gets only
// tokens of service users that it may see.
func (a *API) findTokens(c *call, in FindTokensInput) (FoundTokens, error) {
	if len(in.Digests) > MaxDigests {
		return FoundTokens{}, invalidField("digests",
			fmt.Sprintf("holds %d digests, at most %d are looked up at once", len(in.Digests), MaxDigests))
	}
	out := FoundTokens{Tokens: []FoundToken{}}
	d := a.store.Directory()
	for i, text := range in.Digests {
		digest, err := hex.DecodeString(text)
		if err != nil || len(digest) != sha256.Size {
			field := fmt.Sprintf("digests.%d", i)
			return FoundTokens{}, invalidField(field, "is not a SHA-256 in 64 hexadecimal digits")
		}
		u, known := d.FindDigest([sha256.Size]byte(digest))
		if known == nil {
			continue
		}
		t, err := a.store.Token(c.Context(), c.by, u.ID, known.ID)
		if errors.Is(err, store.ErrNotFound) {
			continue // outside the scope of the manager, or deleted meanwhile
		}
		if err != nil {
			return FoundTokens{}, err
		}
		shown := showToken(t, a.store.Now())
		out.Tokens = append(out.Tokens, FoundToken{text, t.ID, u.ID, u.Name, shown.State, shown.URI})
	}
	return out, nil
}
