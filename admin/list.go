package admin

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// maxSearch limits the length of q in characters.
const maxSearch = 255

// query checks the parameters and converts them to a query for the store.
func (q *UserListQuery) query(c *call) (out store.UserQuery, err error) {
	out = store.UserQuery{
		Name: q.Name, Search: q.Q, Role: q.Role, Team: q.Team, Owner: q.Owner, Status: q.Status,
		Sort: q.Sort, Creator: q.CreatedBy,
	}
	if out.Limit, err = q.limit(); err != nil {
		return out, err
	}
	if out.Total, err = total(q.TotalCount); err != nil {
		return out, err
	}
	if out.Total != nil && q.Status != "" && q.Filter == "" {
		out.Hidden = new(int)
	}
	if out.Deleted, err = boolean("deleted", q.Deleted); err != nil {
		return out, err
	}
	if n := utf8.RuneCountInString(q.Q); n > maxSearch {
		return out, invalidField("q", fmt.Sprintf("has %d characters, at most %d are allowed", n, maxSearch))
	}
	if q.Role != "" && !access.Role(q.Role).Valid() {
		return out, invalidField("role", fmt.Sprintf("%q is none of admin, manager, member", q.Role))
	}
	if !slices.Contains([]string{"", "active", "inactive", "expired"}, q.Status) {
		return out, invalidField("status", fmt.Sprintf("%q is none of active, inactive, expired", q.Status))
	}
	if _, known := store.UserSorts[strings.TrimPrefix(q.Sort, "-")]; q.Sort != "" && !known {
		known := strings.Join(slices.Sorted(maps.Keys(store.UserSorts)), ", ")
		return out, invalidField("sort",
			fmt.Sprintf("%q is none of %s, with \"-\" before it for descending", q.Sort, known))
	}
	if key, value, given := strings.Cut(q.Label, "="); q.Label != "" {
		if out.Label = key; given {
			out.Value = &value
		}
		if key == "" {
			return out, invalidField("label", "begins with the value; give KEY or KEY=VALUE")
		}
	}
	if q.Group != "" {
		if out.Deleted {
			return out, invalidField("group",
				"works only without deleted: a tombstone is in no permission group")
		}
		if out.Group, err = c.groupNamed(q.Group); err != nil {
			return out, err
		}
	}
	if q.Sort == "-created_at" {
		out.Sort = "" // the default order, whose cursor before_id clients of the ngrok API know
	}
	if q.Filter != "" {
		if out.Filter, err = userFilter.compile(c.Context(), q.Filter, c.store.Now()); err != nil {
			return out, err
		}
	}
	before, err := q.before("service")
	switch {
	case err != nil:
		return out, err
	case before != "" && (out.Sort != "" || q.Cursor != ""):
		return out, invalidField("before_id", "works only in the default order; follow next_page_uri")
	case before != "":
		out.After = store.PlaceOf("", before)
	case q.Cursor != "":
		out.After, err = q.place()
	}
	return out, err
}

// groupNamed returns the id of a permission group with this id or name that the actor may see.
func (c *call) groupNamed(idOrName string) (string, error) {
	ids := []string{idOrName}
	if !store.ValidID("group", idOrName) {
		ids = c.store.Directory().GroupIDs(ids)
	}
	for _, id := range ids {
		switch _, err := c.store.Group(c.Context(), c.by, id); {
		case err == nil:
			return id, nil
		case !errors.Is(err, store.ErrNotFound):
			return "", err
		}
	}
	return "", invalidField("group", fmt.Sprintf(
		"there is no permission group %q; GET /permission_groups lists them", idOrName))
}

// digest identifies the list by its sort and filters. It prevents the use of a cursor with another
// list.
func (q *UserListQuery) digest() string {
	text, _ := json.Marshal([]string{ // cannot fail for strings
		q.Sort, q.Name, q.Q, q.Role, q.Team, q.Status, q.Filter, q.Deleted, q.CreatedBy,
		q.Owner, q.Group, q.Label,
	})
	sum := sha256.Sum256(text)
	return string(sum[:8])
}

// cursor encodes a position as the parameter cursor, after the digest of the list.
func (q *UserListQuery) cursor(at store.Place) string {
	return base64.RawURLEncoding.EncodeToString([]byte(q.digest() + string(at)))
}

// place decodes the parameter cursor.
func (q *UserListQuery) place() (store.Place, error) {
	text, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	at, found := strings.CutPrefix(string(text), q.digest())
	if err != nil || !found || !store.ValidID("service", store.Place(at).ID()) {
		return "", invalidField("cursor",
			"is not from a next_page_uri of this list; a cursor is valid only with the same sort and filters")
	}
	return store.Place(at), nil
}

// total parses the parameter total_count. It returns a place for the number, or nil if the caller
// does not ask for it.
func total(text string) (*int, error) {
	wanted, err := boolean("total_count", text)
	if !wanted {
		return nil, err
	}
	return new(int), nil
}

// boolean parses a parameter that is "true", "false" or absent, which means false.
func boolean(name, text string) (bool, error) {
	switch text {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, invalidField(name, "must be true or false")
}
