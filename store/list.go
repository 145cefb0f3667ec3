package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// UserQuery selects a page of service users. The zero value selects all of them, newest first.
type UserQuery struct {
	Name    string // exactly this name; "" is any
	Search  string // part of a text that people write, or the beginning of the id, in any case of ASCII letters
	Role    string // "" is any
	Team    string // "" is any
	Status  string // "active", "inactive" or "expired"; "" is any
	Deleted bool   // list tombstones instead
	Creator string // an [Actor], as in AuditQuery.Actor; "" is any
	Sort    string // a key of UserSorts, after "-" for descending; "" is "-created_at"

	After *Place // only service users after this place in the order
	// Filter selects among the service users that meet the other fields; nil selects all. It is
	// called in the order of the list, while no transaction is open.
	Filter func(*ServiceUser) (bool, error)
	Limit  int  // the most service users in the page; at least 1
	Total  *int // if not nil, it gets the number of service users of all pages
}

// Place is a place in a sorted list: the sort key of a row, and its id.
type Place struct {
	Key any    `json:"key"`
	ID  string `json:"id"`
}

// UserSorts has the fields that service users can be sorted by, each with its column. Ids sort by
// creation, so created_at uses the column id.
var UserSorts = map[string]string{
	"created_at":     "id",
	"name":           "name",
	"role":           "role",
	"last_active_at": "last_active_at",
}

// maxFiltered limits how many rows a filter examines for one page. FilteredAtOnce is how many of
// them one transaction reads.
const (
	maxFiltered    = 100_000
	FilteredAtOnce = 500
)

// ServiceUsers lists service users. more reports whether more of them follow the last one. It
// returns early, with an error, when ctx ends. The error is [ErrInvalid] for an unknown creator.
func (s *Store) ServiceUsers(ctx context.Context, by Actor, q UserQuery) (list []ServiceUser, more bool, err error) {
	if q.Filter != nil {
		if list, more, err = s.filterUsers(ctx, by, q); err != nil {
			return nil, false, err
		}
	}
	if q.Total != nil {
		if *q.Total, err = s.countUsers(ctx, by, q); err != nil {
			return nil, false, err
		}
	}
	list, err = inReadWithUse(ctx, s, by, func(t *tx) ([]ServiceUser, error) {
		found := list
		if q.Filter == nil {
			where, order, args := t.choose(q)
			query := fmt.Sprintf(`%s%s%s LIMIT %d`, selectUser, where, order, q.Limit+1)
			rows, err := all(t, "reading service users", scanUser, query, args...)
			if err != nil {
				return nil, err
			}
			found, more = cut(rows, q.Limit)
		}
		if len(found) == 0 && q.Creator != "" && q.After == nil {
			if err := t.checkCreator(q.Creator); err != nil {
				return nil, err
			}
		}
		return found, t.complete(q, found)
	})
	return list, more, err
}

// countUsers returns the number of service users of all pages.
func (s *Store) countUsers(ctx context.Context, by Actor, q UserQuery) (n int, err error) {
	q.After, q.Limit = nil, maxFiltered
	if q.Filter != nil {
		list, beyond, err := s.filterUsers(ctx, by, q)
		if err == nil && beyond {
			err = invalid("total_count", "there are too many service users to count; "+
				"narrow the list by q, role, team or status as well")
		}
		return len(list), err
	}
	return inRead(ctx, s, by, func(t *tx) (int, error) {
		where, _, args := t.choose(q)
		err := t.row(`SELECT COUNT(*) FROM service_users`+where, args...).Scan(&n)
		return n, err
	})
}

// checkCreator rejects a creator that is not known to the actor.
func (t *tx) checkCreator(creator string) error {
	args := params{creator}
	where := `(id = $1 OR name = $1 OR ` + madeBy("created_by", "$1") + `) AND ` + t.by.Scope.sees(&args)
	known, err := all(t, "looking for the creator", scanString,
		`SELECT id FROM service_users WHERE `+where+` LIMIT 1`, args...)
	if err == nil && len(known) == 0 && creator != Local.Name && creator != t.by.Name {
		err = invalid("created_by", "%q has created no service user and is not one; "+
			"a creator is local, human:NAME, or a service user by its id or name", creator)
	}
	return err
}

// filterUsers lists the service users that meet a filter. It first reads the ids in their order,
// and then the rows, some at a time, because a slow filter must not keep a transaction open. It
// leaves out a row that no longer belongs to the list when it is read.
func (s *Store) filterUsers(ctx context.Context, by Actor, q UserQuery) (list []ServiceUser, more bool, err error) {
	ids, err := inRead(ctx, s, by, func(t *tx) ([]string, error) {
		where, order, args := t.choose(q)
		query := fmt.Sprintf(`SELECT id FROM service_users%s%s LIMIT %d`, where, order, maxFiltered+1)
		return all(t, "reading service users", scanString, query, args...)
	})
	if err != nil {
		return nil, false, err
	}
	// Not nil, like the list that collect returns.
	list = []ServiceUser{}
	beyond := len(ids) > maxFiltered
	for chunk := range slices.Chunk(ids[:min(len(ids), maxFiltered)], FilteredAtOnce) {
		rows, err := inReadWithUse(ctx, s, by, func(t *tx) (map[string]*ServiceUser, error) {
			return t.usersOf(q, chunk)
		})
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
	// A page without a service user has no place from which the next page could continue.
	if beyond && len(list) == 0 {
		return nil, false, invalid("filter", "%d service users were looked at and none fits; "+
			"narrow the list by q, role, team or status as well", maxFiltered)
	}
	return list, beyond, nil // beyond: the next page examines the remaining ids
}

// usersOf reads the service users among ids that belong to a list, by id, for its filter. They have
// the usage that is not on disk yet, unless the list is sorted by it; see complete.
func (t *tx) usersOf(q UserQuery, ids []string) (map[string]*ServiceUser, error) {
	where, _, args := t.choose(q)
	where += ` AND id IN (` + args.list(ids) + `)`
	list, err := all(t, "reading service users", scanUser, selectUser+where, args...)
	users := make(map[string]*ServiceUser, len(list))
	for i := range list {
		users[list[i].ID] = &list[i]
		if strings.TrimPrefix(q.Sort, "-") != "last_active_at" {
			t.store.withActivity(&list[i])
		}
	}
	if err != nil {
		return nil, err
	}
	args = params{}
	members, err := all(t, "reading permission groups", scanPair, `SELECT service_user_id, group_id FROM members
		WHERE service_user_id IN (`+args.list(ids)+`) ORDER BY group_id`, args...)
	for _, m := range members {
		if u := users[m[0]]; u != nil {
			u.Groups = append(u.Groups, m[1])
		}
	}
	return users, err
}

// KeyOf returns the place of a service user in the order of the list.
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

// choose returns the WHERE and ORDER BY clauses of a list and their arguments.
func (t *tx) choose(q UserQuery) (clause, order string, args params) {
	arg := args.add
	visible := t.by.Scope.sees(&args)
	where := []string{visible, `deleted_at = 0`}
	if q.Deleted {
		where[1] = `deleted_at > 0 AND name <> ''` // purge empties the name
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
	// created_by has the id of a service user. The subquery finds it by name, but only among
	// service users that a manager sees; otherwise the manager could test which names exist.
	if q.Creator != "" {
		creator := arg(q.Creator)
		where = append(where, `(`+madeBy("created_by", creator)+` OR created_by IN (
			SELECT id FROM service_users WHERE name = `+creator+` AND `+visible+`))`)
	}
	// Every query has to use every argument, so branches that do not need now compare it with
	// itself.
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
		// Any short text may be in the random part of an id, so an id has to begin with it.
		size := `LENGTH(` + pattern + `)`
		any := []string{size + ` > 8 AND LOWER(SUBSTR(id, 1, ` + size + `)) = LOWER(` + pattern + `)`}
		// LIKE would treat "%" and "_" in the search text as wildcards.
		for _, c := range new(ServiceUser).columns() {
			if c.people {
				lower := `LOWER(` + c.name + `)`
				any = append(any, `REPLACE(`+lower+`, LOWER(`+pattern+`), '') <> `+lower)
			}
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
		// The id breaks ties between rows with the same key.
		key, id := arg(q.After.Key), arg(q.After.ID)
		where = append(where, fmt.Sprintf(`(%[1]s %[2]s %[3]s OR %[1]s = %[3]s AND id %[2]s %[4]s)`,
			column, beyond, key, id))
	}
	order = ` ORDER BY ` + column + ` ` + direction + `, id ` + direction
	return ` WHERE ` + strings.Join(where, " AND "), order, args
}

// complete adds the groups and the usage that is not on disk yet to the rows of a list.
func (t *tx) complete(q UserQuery, list []ServiceUser) (err error) {
	sortedByUse := strings.TrimPrefix(q.Sort, "-") == "last_active_at"
	for i := range list {
		u := &list[i]
		if u.Groups, err = t.groupsOf(u.ID); err != nil {
			return err
		}
		if sortedByUse {
			continue // the key of the next page has to be the value on disk
		}
		// The row was read in an earlier transaction, and usage may have been written
		// since. Without this read it would be in neither of the two figures.
		if q.Filter != nil {
			var at int64
			switch err := t.row(`SELECT last_active_at FROM service_users WHERE id = $1`, u.ID).Scan(&at); {
			case err == nil:
				u.LastActiveAt = fromUnix(at)
			case !errors.Is(err, sql.ErrNoRows): // no row: it is not in the table any more
				return err
			}
		}
		t.store.withActivity(u)
	}
	return nil
}

// hasTeam returns a condition that finds a team in a column of JSON text. arg is the team as JSON,
// with its quotes. Team names contain no quotes, so only a whole name matches. LIKE is not used
// because SQLite's LIKE ignores case: it takes "Finance" for "finance".
func hasTeam(arg string) string { return `REPLACE(teams, ` + arg + `, '') <> teams` }
