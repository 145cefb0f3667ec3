package admin

import (
	"cmp"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// API keys are tokens under the name and in the form that the ngrok API gives them. An unmodified
// client of that API can issue, label, list and revoke them.

// APIKeyInput is the body that issues an API key.
type APIKeyInput struct {
	// the id of the service user; by default the caller, if it is a service user
	OwnerID     Opt[string] `json:"owner_id,omitzero"`
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

	ExpiresAt  *time.Time       `json:"expires_at"`   // the time when the key expires; null means never
	LastUsedAt *time.Time       `json:"last_used_at"` // the time of the last use; null means never
	State      store.TokenState `json:"state"`        // the state of the key at the time of the answer
}

// APIKeyList is one page of API keys.
type APIKeyList struct {
	Keys []APIKey `json:"keys"` // newest first
	Page
}

// APIKeyListQuery chooses a page of API keys.
type APIKeyListQuery struct {
	ListQuery
	// a condition in CEL over obj, such as
	// obj.owner_id == "service_…" && obj.created_at > timestamp("2026-01-01T00:00:00Z")
	Filter string `query:"filter"`
}

// createAPIKey issues a token for a service user, as an API key. Without owner_id the key is for
// the caller, as in the ngrok API. Only this answer contains the secret. The answer is 404 if there
// is no such service user. The answer is 409 if the service user has 100 live tokens already.
func (a *API) createAPIKey(c *call, in APIKeyInput) (APIKey, error) {
	owner := cmp.Or(in.OwnerID.Value, c.by.Name)
	if !store.ValidID("service", owner) {
		return APIKey{}, invalidField("owner_id", "must be the id of the service user that the key is for, "+
			"service_…; only a caller that is a service user can leave it out; "+
			"GET /service_users?name=NAME has the id of a name")
	}
	token := store.Token{Description: in.Description.Value, Metadata: in.Metadata.Value}
	issued, err := a.store.CreateToken(c.Context(), c.by, owner, token)
	if err != nil {
		return APIKey{}, err
	}
	out := showAPIKey(issued.Token, a.store.Now())
	out.Token = &issued.Secret
	return out, nil
}

// listAPIKeys lists the API keys of all service users, newest first. It leaves out keys that are
// revoked or expired.
func (a *API) listAPIKeys(c *call, q APIKeyListQuery) (APIKeyList, error) {
	read := func(before string, limit int, _ bool) ([]store.Token, bool, error) {
		q := store.TokenQuery{Live: true, Before: before, Limit: limit}
		return a.store.FindTokens(c.Context(), c.by, q)
	}
	if q.Filter != "" {
		done, err := a.heavy.take(c.Context(), c.by.Name)
		if err != nil {
			return APIKeyList{}, err
		}
		defer done()
		now := a.store.Now()
		keys := filterKind[store.Token]{func(t *store.Token) map[string]any { return keyFields(t, now) },
			"API keys", "make the filter simpler"}
		fits, err := keys.compile(c.Context(), q.Filter, now)
		if err != nil {
			return APIKeyList{}, err
		}
		read = filtered(read, fits)
	}
	keys, page, err := newestFirst(c, q.ListQuery, "token", read, func(t store.Token) (APIKey, string) {
		return showAPIKey(t, a.store.Now()), t.ID
	})
	return APIKeyList{keys, page}, err
}

// readTokens reads a page of tokens that are older than before, newest first.
type readTokens = func(before string, limit int, count bool) (list []store.Token, more bool, err error)

// filtered returns a function that reads the tokens which meet a filter, some in each transaction. The
// budget of the filter limits their number.
func filtered(read readTokens, fits func(*store.Token) (bool, error)) readTokens {
	return func(before string, limit int, count bool) ([]store.Token, bool, error) {
		found := []store.Token{}
		for more := true; more; {
			tokens, next, err := read(before, store.FilteredAtOnce, count)
			if err != nil {
				return nil, false, err
			}
			more = next
			for i := range tokens {
				before = tokens[i].ID
				switch fit, err := fits(&tokens[i]); {
				case err != nil:
					return nil, false, err
				case fit && len(found) == limit:
					return found, true, nil
				case fit:
					found = append(found, tokens[i])
				}
			}
		}
		return found, false, nil
	}
}

// keyFields returns the fields of obj for an API key.
func keyFields(t *store.Token, now time.Time) map[string]any {
	k := showAPIKey(*t, now)
	return map[string]any{
		"id": k.ID, "uri": k.URI, "description": k.Description, "metadata": k.Metadata, "owner_id": k.OwnerID,
		"created_at": filterTime(t.CreatedAt), "updated_at": filterTime(t.UpdatedAt),
		"expires_at": filterTime(t.ExpiresAt), "last_used_at": filterTime(t.LastUsedAt),
		"state": string(k.State),
	}
}

// getAPIKey returns an API key without its secret.
func (a *API) getAPIKey(c *call, _ None) (APIKey, error) {
	t, err := a.liveKey(c)
	if err != nil {
		return APIKey{}, err
	}
	return showAPIKey(t, a.store.Now()), nil
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
	return showAPIKey(t, a.store.Now()), nil
}

// deleteAPIKey revokes an API key for good.
func (a *API) deleteAPIKey(c *call, _ None) (None, error) {
	t, err := a.liveKey(c)
	if err != nil {
		return None{}, err
	}
	return None{}, a.store.RevokeToken(c.Context(), c.by, t.UserID, t.ID, c.version)
}

func showAPIKey(t store.Token, now time.Time) APIKey {
	return APIKey{
		ID: t.ID, URI: "/api_keys/" + t.ID, Description: t.Description, Metadata: t.Metadata,
		CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt, OwnerID: t.UserID, ETag: etag(t.Version),
		ExpiresAt: OrNull(t.ExpiresAt), LastUsedAt: OrNull(t.LastUsedAt), State: t.State(now),
	}
}
