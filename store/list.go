package store

import (
	"context"
	"fmt"
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
	Filter func(*ServiceUser) (bool, error) // nil is all; it is asked in the order of the list
	Limit  int                              // at most so many; at least 1
}

// Place is a place in a sorted list: the key of a row, and its id.
type Place struct {
	Key any    `json:"key"`
	ID  string `json:"id"`
}

// UserSorts are the fields that service users can be sorted by, with the column.
var UserSorts = map[string]string{"created_at": "id", "name": "name", "role": "role", "last_active_at": "last_active_at"}

// maxFiltered bounds how many rows a filter looks at for one page.
const maxFiltered = 100_000

// ServiceUsers lists service users. more reports whether others follow behind the
// last one.
func (s *Store) ServiceUsers(ctx context.Context, by Actor, q UserQuery) (list []ServiceUser, more bool, err error) {
	list, err = inReadWithUse(ctx, s, by, func(t *tx) (list []ServiceUser, err error) {
		list, more, err = t.listUsers(q)
		return list, err
	})
	return list, more, err
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

func (t *tx) listUsers(q UserQuery) (list []ServiceUser, more bool, err error) {
	var where []string
	var args []any
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
		pattern := arg("%" + likeEscape.Replace(q.Search) + "%")
		var any []string
		for _, column := range []string{"name", "display_name", "alias", "owner", "description", "id"} {
			any = append(any, `LOWER(`+column+`) LIKE LOWER(`+pattern+`) ESCAPE '!'`)
		}
		where = append(where, "("+strings.Join(any, " OR ")+")")
	}
	field, down := strings.CutPrefix(q.Sort, "-")
	if q.Sort == "" {
		field, down = "created_at", true
	}
	column, order, beyond := UserSorts[field], "ASC", ">"
	if down {
		order, beyond = "DESC", "<"
	}
	if q.After != nil {
		key, id := arg(q.After.Key), arg(q.After.ID)
		where = append(where, fmt.Sprintf(`(%[1]s %[2]s %[3]s OR %[1]s = %[3]s AND id %[2]s %[4]s)`, column, beyond, key, id))
	}
	query := selectUser + ` WHERE ` + strings.Join(where, " AND ") + ` ORDER BY ` + column + ` ` + order + `, id ` + order
	if q.Filter == nil {
		query += ` LIMIT ` + arg(q.Limit+1)
	}
	rows, err := t.query(query, args...)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	list = []ServiceUser{}
	for looked := 0; rows.Next(); looked++ {
		u, err := scanUser(rows)
		if err != nil {
			return nil, false, err
		}
		if q.Filter != nil {
			if looked >= maxFiltered && len(list) == 0 {
				return nil, false, &Error{ErrInvalid, "filter", fmt.Sprintf("%d service users were looked at and none fits; narrow the list by q, role, team or status as well", looked)}
			}
			if more = looked >= maxFiltered; more {
				break // the rest stands on the next page
			}
			if fits, err := q.Filter(&u); err != nil {
				return nil, false, err
			} else if !fits {
				continue
			}
		}
		if more = len(list) == q.Limit; more {
			break
		}
		list = append(list, u)
	}
	if err := rows.Err(); err != nil {
		return nil, false, err
	}
	rows.Close()
	for i := range list {
		if list[i].Groups, err = t.groupsOf(list[i].ID); err != nil {
			return nil, false, err
		}
		if field != "last_active_at" { // the key of the next page is what is on disk
			t.store.withActivity(&list[i])
		}
	}
	return list, more, nil
}

// hasTeam finds a team in a column of JSON text. Team names hold no quotes, so a
// quoted one is found whole. LIKE would do, but for SQLite it takes "Finance" for
// "finance".
func hasTeam(arg string) string { return `REPLACE(teams, ` + arg + `, '') <> teams` }

var likeEscape = strings.NewReplacer("!", "!!", "%", "!%", "_", "!_")
