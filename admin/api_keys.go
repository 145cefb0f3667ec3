package admin

import (
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// API keys are tokens under the name and in the form that the ngrok API gives them. An unmodified
// client of that API can issue, label, list and revoke them.

// APIKeyInput is the body that issues an API key.
type APIKeyInput struct {
	OwnerID     Opt[string] `json:"owner_id,omitzero"`    // the id of the service user; required
	Description Opt[string] `json:"description,omitzero"` // the purpose of the key, for people
	Metadata    Opt[string] `json:"metadata,omitzero"`    // free text, at most 4096 bytes
}

// APIKeyUpdate is the body that changes an API key.
type APIKeyUpdate struct {
	Description Opt[string] `json:"description,omitzero"` // the purpose of the key, for people
	Metadata    Opt[string] `json:"metadata,omitzero"`    // free text, at most 4096 bytes
}

// APIKey is a token in the form of the ngrok API. Only the answer that issues it contains its
// secret, in the field token.
type APIKey struct {
	ID          string    `json:"id"`          // token_…, the id of the token
	URI         string    `json:"uri"`         // the path of the API key in this API
	Description string    `json:"description"` // the purpose of the key, for people
	Metadata    string    `json:"metadata"`    // free text
	CreatedAt   time.Time `json:"created_at"`  // the time of issue
	UpdatedAt   time.Time `json:"updated_at"`  // the time of the last change
	Token       *string   `json:"token"`       // the secret in the answer that issues the key, otherwise null
	OwnerID     string    `json:"owner_id"`    // the id of the service user
	ETag        string    `json:"etag"`        // the version, for If-Match
}

// APIKeyList is one page of API keys.
type APIKeyList struct {
	Keys []APIKey `json:"keys"` // newest first
	Page
}

// createAPIKey issues a token for a service user, as an API key. Only this answer contains the
// secret. The answer is 404 if there is no such service user. The answer is 409 if the service user
// has 100 live tokens already.
func (a *API) createAPIKey(c *call, in APIKeyInput) (APIKey, error) {
	if !store.ValidID("service", in.OwnerID.Value) {
		return APIKey{}, invalidField("owner_id",
			"must be the id of the service user that the key is for, service_…")
	}
	token := store.Token{Description: in.Description.Value, Metadata: in.Metadata.Value}
	issued, err := a.store.CreateToken(c.Context(), c.by, in.OwnerID.Value, token)
	if err != nil {
		return APIKey{}, err
	}
	out := showAPIKey(issued.Token)
	out.Token = &issued.Secret
	return out, nil
}

// listAPIKeys lists the API keys of all service users, newest first. It leaves out keys that are
// revoked or expired.
func (a *API) listAPIKeys(c *call, q ListQuery) (APIKeyList, error) {
	keys, page, err := newestFirst(c, q, "token", func(before string, limit int) ([]store.Token, bool, error) {
		return a.store.AllTokens(c.Context(), c.by, before, limit)
	}, func(t store.Token) (APIKey, string) { return showAPIKey(t), t.ID })
	return APIKeyList{keys, page}, err
}

// getAPIKey returns an API key without its secret.
func (a *API) getAPIKey(c *call, _ None) (APIKey, error) {
	t, err := a.liveKey(c)
	if err != nil {
		return APIKey{}, err
	}
	return showAPIKey(t), nil
}

// liveKey finds a token by its id alone. A revoked or expired token is not found: in the ngrok API
// a key is gone once it was deleted.
func (a *API) liveKey(c *call) (store.Token, error) {
	id := c.PathValue("id")
	owner, err := a.store.TokenOwner(c.Context(), c.by, id)
	if err != nil {
		return store.Token{}, err
	}
	t, err := a.store.Token(c.Context(), c.by, owner, id)
	if state := t.State(a.store.Now()); err == nil && (state == store.TokenRevoked || state == store.TokenExpired) {
		err = errNotFound
	}
	return t, err
}

// updateAPIKey sets the fields that the body contains; the others stay.
func (a *API) updateAPIKey(c *call, in APIKeyUpdate) (APIKey, error) {
	t, err := a.liveKey(c)
	if err != nil {
		return APIKey{}, err
	}
	t, err = a.store.UpdateToken(c.Context(), c.by, t.UserID, t.ID, c.version, func(t *store.Token) error {
		in.Description.to(&t.Description)
		in.Metadata.to(&t.Metadata)
		return nil
	})
	if err != nil {
		return APIKey{}, err
	}
	return showAPIKey(t), nil
}

// deleteAPIKey revokes an API key for good.
func (a *API) deleteAPIKey(c *call, _ None) (None, error) {
	t, err := a.liveKey(c)
	if err != nil {
		return None{}, err
	}
	return None{}, a.store.RevokeToken(c.Context(), c.by, t.UserID, t.ID, c.version)
}

func showAPIKey(t store.Token) APIKey {
	return APIKey{
		ID: t.ID, URI: "/api_keys/" + t.ID, Description: t.Description, Metadata: t.Metadata,
		CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt, OwnerID: t.UserID, ETag: etag(t.Version),
	}
}
