package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// UserQuery chooses a page of service users. The zero value is all of them,
// newest first.
type UserQuery struct {
	Name    string // exactly this name; "" is any
	Search  string // stands in the name, display name, alias, owner, description or id, whatever the case of ASCII letters
	Role    string // "" is any
	Team    string // "" is any
	Status  string // "active", "inactive" or "expired"; "" is any
	Deleted bool   // tombstones instead
	Creator string // the name of the [Actor] that made it, or of a service user that is this one; "" is any
	Sort    string // one of UserSorts, with "-" before it for descending; "" is "-created_at"

	After  *Place                           // only those behind this place in the order
	Filter func(*ServiceUser) (bool, error) // nil is all; it is asked in the order of the list, while no transaction is open
	Limit  int                              // at most so many; at least 1
}

// Place is a place in a sorted list: the key of a row, and its id.
type Place struct {
	Key any    `json:"key"`
	ID  string `json:"id"`
}

// UserSorts are the fields that service users can be sorted by, with the column.
var UserSorts = map[string]string{"created_at": "id", "name": "name", "role": "role", "last_active_at": "last_active_at"}

// maxFiltered bounds how many rows a filter looks at for one page, of which so many are
// read at once.
const (
	maxFiltered    = 100_000
	filteredAtOnce = 500
)

// ServiceUsers lists service users. more reports whether others follow behind the
// last one. It ends with ctx.
func (s *Store) ServiceUsers(ctx context.Context, by Actor, q UserQuery) (list []ServiceUser, more bool, err error) {
	if q.Filter != nil {
		if list, more, err = s.filterUsers(ctx, by, q); err != nil {
			return nil, false, err
		}
	}
	list, err = inReadWithUse(ctx, s, by, func(t *tx) ([]ServiceUser, error) {
		found := list
		if q.Filter == nil {
			var err error
			if found, err = t.listUsers(q); err != nil {
				return nil, err
			}
			if more = len(found) > q.Limit; more {
				found = found[:q.Limit]
			}
		}
		return found, t.complete(q, found)
	})
	return list, more, err
}

// filterUsers lists the service users that meet a filter. The ids are read first, in
// their order, and then the rows by and by; a row that does not belong to the list any
// more by then is left out.
func (s *Store) filterUsers(ctx context.Context, by Actor, q UserQuery) (list []ServiceUser, more bool, err error) {
	ids, err := inRead(ctx, s, by, func(t *tx) ([]string, error) {
		where, order, args := t.choose(q)
		rows, err := t.query(fmt.Sprintf(`SELECT id FROM service_users%s%s LIMIT %d`, where, order, maxFiltered+1), args...)
		if err != nil {
			return nil, err
		}
		return collect(rows, scanString)
	})
	if err != nil {
		return nil, false, err
	}
	list = []ServiceUser{}
	beyond := len(ids) > maxFiltered
	for chunk := range slices.Chunk(ids[:min(len(ids), maxFiltered)], filteredAtOnce) {
		rows, err := inRead(ctx, s, by, func(t *tx) (map[string]*ServiceUser, error) { return t.usersOf(q, chunk) })
		if err != nil {
			return nil, false, err
		}
		for _, id := range chunk {
			u := rows[id]
			if u == nil {
				continue
			}
			if err := context.Cause(ctx); err != nil {
				return nil, false, err
			}
			switch fits, err := q.Filter(u); {
			case err != nil:
				return nil, false, err
			case fits && len(list) == q.Limit:
				return list, true, nil
			case fits:
				list = append(list, *u)
			}
		}
	}
	if beyond && len(list) == 0 {
		return nil, false, &Error{ErrInvalid, "filter", fmt.Sprintf("%d service users were looked at and none fits; narrow the list by q, role, team or status as well", maxFiltered)}
	}
	return list, beyond, nil // the rest is on the next page
}

// usersOf reads those of the ids that belong to a list.
func (t *tx) usersOf(q UserQuery, ids []string) (map[string]*ServiceUser, error) {
	where, _, args := t.choose(q)
	places := make([]string, len(ids))
	for i, id := range ids {
		args = append(args, id)
		places[i] = fmt.Sprintf("$%d", len(args))
	}
	rows, err := t.query(selectUser+where+` AND id IN (`+strings.Join(places, ", ")+`)`, args...)
	if err != nil {
		return nil, err
	}
	list, err := collect(rows, scanUser)
	users := make(map[string]*ServiceUser, len(list))
	for i := range list {
		users[list[i].ID] = &list[i]
	}
	return users, err
}

// KeyOf returns what a service user is sorted by.
func (q UserQuery) KeyOf(u ServiceUser) Place {
	switch strings.TrimPrefix(q.Sort, "-") {
	case "name":
		return Place{u.Name, u.ID}
	case "role":
		return Place{string(u.Role), u.ID}
	case "last_active_at":
		return Place{unix(u.LastActiveAt), u.ID}
	default:
		return Place{u.ID, u.ID}
	}
}

// choose returns the conditions and the order of a list, for SQL.
func (t *tx) choose(q UserQuery) (clause, order string, args []any) {
	var where []string
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	if q.Deleted {
		where = append(where, `deleted_at > 0`)
	} else {
		where = append(where, `deleted_at = 0`)
	}
	if q.Name != "" {
		where = append(where, `name = `+arg(q.Name))
	}
	if q.Role != "" {
		where = append(where, `role = `+arg(q.Role))
	}
	if q.Team != "" {
		where = append(where, hasTeam(arg(toJSON(q.Team))))
	}
	visible := "TRUE"
	if scope := t.by.Scope; scope != nil {
		teams := []string{"FALSE"}
		for _, team := range scope.Teams {
			teams = append(teams, hasTeam(arg(toJSON(team))))
		}
		visible = "(" + strings.Join(teams, " OR ") + ")"
		where = append(where, visible)
	}
	if q.Creator != "" { // a manager learns no name of one that it does not see
		creator := arg(q.Creator)
		where = append(where, `(created_by = `+creator+` OR created_by IN (SELECT id FROM service_users WHERE name = `+creator+` AND `+visible+`))`)
	}
	now := arg(t.now.Unix())
	switch q.Status {
	case "active":
		where = append(where, `active AND (expires_at = 0 OR expires_at > `+now+`)`)
	case "inactive":
		where = append(where, `NOT active AND `+now+` = `+now)
	case "expired":
		where = append(where, `expires_at > 0 AND expires_at <= `+now)
	default:
		where = append(where, now+` = `+now)
	}
	if q.Search != "" {
		pattern := arg(q.Search)
		var any []string
		for _, column := range []string{"name", "display_name", "alias", "owner", "description", "id"} {
			any = append(any, `REPLACE(LOWER(`+column+`), LOWER(`+pattern+`), '') <> LOWER(`+column+`)`)
		}
		where = append(where, "("+strings.Join(any, " OR ")+")")
	}
	field, down := strings.CutPrefix(q.Sort, "-")
	if q.Sort == "" {
		field, down = "created_at", true
	}
	column, direction, beyond := UserSorts[field], "ASC", ">"
	if down {
		direction, beyond = "DESC", "<"
	}
	if q.After != nil {
		key, id := arg(q.After.Key), arg(q.After.ID)
		where = append(where, fmt.Sprintf(`(%[1]s %[2]s %[3]s OR %[1]s = %[3]s AND id %[2]s %[4]s)`, column, beyond, key, id))
	}
	return ` WHERE ` + strings.Join(where, " AND "), ` ORDER BY ` + column + ` ` + direction + `, id ` + direction, args
}

// listUsers reads a page of a list, and one more row when there is one.
func (t *tx) listUsers(q UserQuery) ([]ServiceUser, error) {
	where, order, args := t.choose(q)
	rows, err := t.query(fmt.Sprintf(`%s%s%s LIMIT %d`, selectUser, where, order, q.Limit+1), args...)
	if err != nil {
		return nil, err
	}
	return collect(rows, scanUser)
}

// complete adds to the rows of a list what is not in them.
func (t *tx) complete(q UserQuery, list []ServiceUser) (err error) {
	sortedByUse := strings.TrimPrefix(q.Sort, "-") == "last_active_at"
	for i := range list {
		u := &list[i]
		if u.Groups, err = t.groupsOf(u.ID); err != nil {
			return err
		}
		if sortedByUse {
			continue // the key of the next page is what is on disk
		}
		if q.Filter != nil { // the row was read some time ago, and uses were written since
			var at int64
			switch err := t.row(`SELECT last_active_at FROM service_users WHERE id = $1`, u.ID).Scan(&at); {
			case err == nil:
				u.LastActiveAt = fromUnix(at)
			case !errors.Is(err, sql.ErrNoRows): // it is gone altogether
				return err
			}
		}
		t.store.withActivity(u)
	}
	return nil
}

// hasTeam finds a team in a column of JSON text. Team names hold no quotes, so a
// quoted one is found whole. LIKE would do, but for SQLite it takes "Finance" for
// "finance".
func hasTeam(arg string) string { return `REPLACE(teams, ` + arg + `, '') <> teams` }
