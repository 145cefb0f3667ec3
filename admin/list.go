package admin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// maxSearch limits the length of q in characters.
const maxSearch = 255

// query checks the parameters and converts them to a query for the store.
func (q *UserListQuery) query(ctx context.Context, now time.Time) (out store.UserQuery, err error) {
	out = store.UserQuery{
		Name: q.Name, Search: q.Q, Role: q.Role, Team: q.Team, Status: q.Status,
		Sort: q.Sort, Creator: q.CreatedBy,
	}
	if out.Limit, err = q.limit(); err != nil {
		return out, err
	}
	if out.Total, err = total(q.TotalCount); err != nil {
		return out, err
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
		return out, invalidField("sort", fmt.Sprintf("%q is none of name, role, created_at, last_active_at, "+
			"with \"-\" before it for descending", q.Sort))
	}
	if q.Sort == "-created_at" {
		out.Sort = "" // the default order, whose cursor before_id clients of the ngrok API know
	}
	if q.Filter != "" {
		if out.Filter, err = userFilter.compile(ctx, q.Filter, now); err != nil {
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
		out.After = &store.Place{Key: before, ID: before}
	case q.Cursor != "":
		out.After, err = q.place()
	}
	return out, err
}

// cursor is the position of a row in a list. Clients get it as base64 of its JSON.
type cursor struct {
	List string `json:"l"` // the digest of sort and filters
	Key  string `json:"k"` // the value of the row in the column of sort
	ID   string `json:"i"` // decides between rows with the same key
}

// digest identifies the list by its sort and filters. It prevents the use of a cursor with another
// list.
func (q *UserListQuery) digest() string {
	text, _ := json.Marshal([]string{ // cannot fail for strings
		q.Sort, q.Name, q.Q, q.Role, q.Team, q.Status, q.Filter, q.Deleted, q.CreatedBy,
	})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// cursor encodes a position as the parameter cursor.
func (q *UserListQuery) cursor(at store.Place) string {
	text, _ := json.Marshal(cursor{q.digest(), fmt.Sprint(at.Key), at.ID}) // cannot fail for strings
	return base64.RawURLEncoding.EncodeToString(text)
}

// place decodes the parameter cursor.
func (q *UserListQuery) place() (*store.Place, error) {
	bad := invalidField("cursor",
		"is not from a next_page_uri of this list; a cursor is valid only with the same sort and filters")
	text, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	if err != nil {
		return nil, bad
	}
	var c cursor
	if json.Unmarshal(text, &c) != nil || c.List != q.digest() || !store.ValidID("service", c.ID) {
		return nil, bad
	}
	at := &store.Place{Key: c.Key, ID: c.ID}
	if strings.TrimPrefix(q.Sort, "-") == "last_active_at" { // the only column of numbers
		if at.Key, err = strconv.ParseInt(c.Key, 10, 64); err != nil {
			return nil, bad
		}
	}
	return at, nil
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
