package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
)

// UserQuery selects a page of service users. The zero value selects all of them, newest first.
type UserQuery struct {
	Name    string  // exactly this name; "" is any
	Search  string  // a text that found looks for, or the hint of a token; "" is any
	Role    string  // "" is any
	Team    string  // "" is any
	Owner   string  // exactly this owner; "" is any
	Group   string  // the id of a group that it is in, by name, by condition or by default; "" is any
	Label   string  // the key of a label that it has; "" is any
	Value   *string // the value of that label; nil is any
	Status  string  // "active", "inactive" or "expired"; "" is any
	Deleted bool    // list tombstones instead
	Creator string  // an [Actor], as in AuditQuery.Actor; "" is any
	Sort    string  // a key of UserSorts, after "-" for descending; "" is "-created_at"

	After Place // only service users after this place in the order; "" is all
	// Filter selects among the service users that meet the other fields; nil selects all. It is
	// called in the order of the list, while no transaction is open.
	Filter func(*ServiceUser) (bool, error)
	Limit  int  // the most service users in the page; at least 1
	Total  *int // if not nil, it gets the number of service users of all pages
	Hidden *int // if not nil, it gets the number of service users that only Status leaves out; not with Filter
}

func expired(k *access.Sketch, now int64) bool { return k.ExpiresAt != 0 && k.ExpiresAt <= now }

// maxFiltered limits how many rows a filter examines for one page. FilteredAtOnce is how many of
// them one transaction reads.
const (
	maxFiltered    = 100_000
	FilteredAtOnce = 500
)

// ServiceUsers lists service users. next is the place behind which the next page begins; "" means
// that this page is the last one. The directory in force decides which service users are in the
// list, and in which order. Then the rows are read; those that were deleted meanwhile, or are not
// visible to the actor any more, are left out.
//
// ServiceUsers returns early, with an error, when ctx ends. The error is [ErrInvalid] for an
// unknown creator.
func (s *Store) ServiceUsers(ctx context.Context, by Actor, q UserQuery) (list []ServiceUser, next Place, err error) {
	if q.Total != nil && q.Filter != nil {
		if *q.Total, err = s.countFiltered(ctx, by, q); err != nil {
			return nil, "", err
		}
		q.Total = nil
	}
	most, atOnce := q.Limit, q.Limit+1
	if q.Filter != nil {
		most, atOnce = maxFiltered, FilteredAtOnce
	}
	places, err := inRead(ctx, s, by, func(t *tx) ([]Place, error) { return t.choose(q, most+1) })
	if err != nil {
		return nil, "", err
	}
	list = []ServiceUser{} // not null in JSON
	for chunk := range slices.Chunk(places[:min(len(places), max(most, atOnce))], atOnce) {
		rows, err := inReadWithUse(ctx, s, by, func(t *tx) (map[string]*ServiceUser, error) {
			return t.usersOf(q, chunk)
		})
		if err != nil {
			return nil, "", err
		}
		for i := range chunk {
			u := rows[chunk[i].ID()]
			if u == nil {
				continue
			}
			if err := context.Cause(ctx); err != nil {
				return nil, "", err
			}
			fits := true
			if q.Filter != nil {
				if fits, err = q.Filter(u); err != nil {
					return nil, "", err
				}
			}
			switch {
			case fits && len(list) == q.Limit:
				return list, next, nil
			case fits:
				list, next = append(list, *u), chunk[i]
			}
		}
	}
	if q.Filter == nil || len(places) <= most {
		return list, "", nil
	}
	// A page without a service user has no place from which the next page could continue.
	if len(list) == 0 {
		return nil, "", invalid("filter", "%d service users were looked at and none fits; "+
			"narrow the list by q, role, team or status as well", maxFiltered)
	}
	return list, next, nil // the next page examines the other places
}

// countFiltered returns the number of service users of all pages of a list with a filter.
func (s *Store) countFiltered(ctx context.Context, by Actor, q UserQuery) (int, error) {
	q.After, q.Limit, q.Total = "", maxFiltered, nil
	list, more, err := s.ServiceUsers(ctx, by, q)
	if err == nil && more != "" {
		err = invalid("total_count", "there are too many service users to count; "+
			"narrow the list by q, role, team or status as well")
	}
	return len(list), err
}

// fewPlaces is the number of service users up to which chooseByActivity reads the activity of each.
const fewPlaces = 1000

// choose returns the first places of a list, in their order, and sets q.Total and q.Hidden. It looks
// at every service user of the directory, which takes less time than any query on the table.
func (t *tx) choose(q UserQuery, most int) (places []Place, err error) {
	fits, among, err := t.chosenBy(q)
	if err != nil {
		return nil, err
	}
	field, down := strings.CutPrefix(cmp.Or(q.Sort, "-created_at"), "-")
	byActivity := field == "last_active_at" && !q.Deleted
	now, key, total, hidden, few := t.now.Unix(), UserSorts[field], 0, 0, []string{}
	list := firstPlaces{most: most, down: down != (field == "usable"), after: q.After}
	var place []byte
	look := func(k *access.Sketch) {
		if !fits(k) {
			return
		}
		if !q.hasStatus(k, now) {
			hidden++
			return
		}
		if total++; byActivity {
			if total <= fewPlaces {
				few = append(few, string(k.ID))
			}
			return
		}
		if k.NextEnd == 0 && !down { // without an end: last in either direction
			k.NextEnd = math.MaxInt64
		}
		place = append(append(key(place[:0], k, now), 0), k.ID...)
		list.add(place)
	}
	switch {
	case q.Deleted: // purge empties the name
		tombstones, err := all(t, "reading tombstones", scanUser,
			selectUser+` WHERE deleted_at > 0 AND name <> ''`)
		if err != nil {
			return nil, err
		}
		for _, u := range tombstones {
			k := access.SketchOf(u.directoryUser(), now)
			k.ExpiresAt, k.LastActiveAt = unix(u.ExpiresAt), unix(u.LastActiveAt)
			look(&k)
		}
	case among != nil:
		for id := range among {
			if k, ok := t.directory.Sketch(id, now); ok {
				look(&k)
			}
		}
	default:
		t.directory.Sketches(now, look)
	}
	if q.Total != nil {
		*q.Total = total
	}
	if q.Hidden != nil {
		*q.Hidden = hidden
	}
	switch {
	case !byActivity:
		return list.cut(), nil
	case total > fewPlaces:
		few = nil
	}
	return t.chooseByActivity(q.After, most, down, few,
		func(k *access.Sketch) bool { return fits(k) && q.hasStatus(k, now) })
}

// chooseByActivity returns the first places in the order by last activity, which changes too often
// to be in the directory. An index has this order. Unless only few service users fit, not much of it
// has to be read to find the first places. few has the ids of these; nil is many.
func (t *tx) chooseByActivity(
	after Place, most int, down bool, few []string, fits func(*access.Sketch) bool,
) (places []Place, err error) {
	direction, beyond := "ASC", ">"
	if down {
		direction, beyond = "DESC", "<"
	}
	for size := 256; ; size *= 4 {
		args, where := params{}, ` WHERE deleted_at = 0`
		if few != nil {
			where += ` AND id IN (` + args.list(few) + `)`
		}
		if after != "" {
			where += ` AND (last_active_at, id) ` + beyond +
				` (` + args.add(after.number()) + `, ` + args.add(after.ID()) + `)`
		}
		rows, err := all(t, "reading the last activity", func(rows *sql.Rows) (Place, error) {
			var at int64
			var id string
			err := rows.Scan(&at, &id)
			return PlaceOf(string(appendNumber(nil, at)), id), err
		}, fmt.Sprintf(`SELECT last_active_at, id FROM service_users%s
			ORDER BY last_active_at %[2]s, id %[2]s LIMIT %[3]d`, where, direction, size), args...)
		if err != nil {
			return nil, err
		}
		for _, after = range rows {
			if k, ok := t.directory.Sketch(after.ID(), t.now.Unix()); ok && fits(&k) {
				places = append(places, after)
			}
			if len(places) == most {
				return places, nil
			}
		}
		if len(rows) < size {
			return places, nil
		}
	}
}

// hasStatus reports whether a service user has the status that a list asks for.
func (q *UserQuery) hasStatus(k *access.Sketch, now int64) bool {
	switch q.Status {
	case "active":
		return k.Active && !expired(k, now)
	case "inactive":
		return !k.Active
	case "expired":
		return expired(k, now)
	}
	return true
}

// chosenBy returns a function that reports whether a service user meets everything but the status of
// a list. Unless among is nil, only service users with these ids can.
func (t *tx) chosenBy(q UserQuery) (fits func(*access.Sketch) bool, among map[string]bool, err error) {
	scope := t.by.Scope
	if q.Name != "" || q.Creator != "" {
		if among, err = t.among(q); err != nil {
			return nil, nil, err
		}
	}
	hinted, err := t.withHint(q.Search)
	inGroup := t.directory.InGroup(q.Group)
	search := []byte(q.Search)
	for i, c := range search {
		search[i] = lowerByte(c)
	}
	return func(k *access.Sketch) bool {
		switch {
		case among != nil && !among[string(k.ID)],
			!scope.reaches(k),
			q.Role != "" && string(k.Role) != q.Role,
			q.Team != "" && !k.Team(q.Team),
			q.Owner != "" && string(k.Owner) != q.Owner,
			q.Group != "" && !inGroup(k):
			return false
		}
		if q.Label != "" {
			if value, ok := k.Label(q.Label); !ok || q.Value != nil && string(value) != *q.Value {
				return false
			}
		}
		return len(search) == 0 || found(k, search) || hinted[string(k.ID)]
	}, among, err
}

// found reports whether a service user is found by a search text in lower case: one of the texts
// that people write has it, in any case of ASCII letters, or the id begins with it. Any short text
// may be in the random part of an id.
func found(k *access.Sketch, search []byte) bool {
	for _, text := range [...][]byte{k.Name, k.DisplayName, k.Owner, k.Description, k.Alias} {
		if holds(text, search) {
			return true
		}
	}
	return len(search) > len("service_") && len(search) <= len(k.ID) && holds(k.ID[:len(search)], search)
}

// holds reports whether a text has a part that is in lower case, in any case of ASCII letters.
func holds(text, part []byte) bool {
	for ; len(text) >= len(part); text = text[1:] {
		i := 0
		for i < len(part) && lowerByte(text[i]) == part[i] {
			i++
		}
		if i == len(part) {
			return true
		}
	}
	return false
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// among returns the ids of the service users that have the name and the creator of a list.
// created_by has the id of a service user. A subquery finds it by name, but only among service
// users that a manager sees; otherwise the manager could test which names exist.
func (t *tx) among(q UserQuery) (map[string]bool, error) {
	args := params{}
	visible, where := t.by.Scope.sees(&args), ` WHERE deleted_at = 0`
	if q.Deleted {
		where = ` WHERE deleted_at > 0`
	}
	if q.Name != "" {
		where += ` AND name = ` + args.add(q.Name)
	}
	if q.Creator != "" {
		creator := args.add(q.Creator)
		where += ` AND (` + madeBy("created_by", creator) + ` OR created_by IN (
			SELECT id FROM service_users WHERE name = ` + creator + ` AND ` + visible + `))`
	}
	ids, err := all(t, "reading service users", scanString,
		`SELECT id FROM service_users`+where+` AND `+visible, args...)
	if err == nil && len(ids) == 0 && q.Creator != "" && q.After == "" {
		err = t.checkCreator(q.Creator)
	}
	return setOf(ids), err
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

// withHint returns the ids of the service users that have a token with a hint. Tokens that have
// ended count only if no other token has the hint.
func (t *tx) withHint(hint string) (map[string]bool, error) {
	if len(hint) != 4 {
		return nil, nil
	}
	var live, ended []string
	args := params{hint}
	visible := t.by.Scope.sees(&args) // others must not matter to a manager
	tokens, err := all(t, "looking for the hint", scanToken, selectToken+` WHERE hint = $1 AND EXISTS (
		SELECT 1 FROM service_users u WHERE u.id = service_user_id AND `+visible+`)`, args...)
	for _, k := range tokens {
		switch k.State(t.now) {
		case TokenExpired, TokenRevoked:
			ended = append(ended, k.UserID)
		default:
			live = append(live, k.UserID)
		}
	}
	if len(live) == 0 {
		live = ended
	}
	return setOf(live), err
}

func setOf(list []string) map[string]bool {
	set := make(map[string]bool, len(list))
	for _, v := range list {
		set[v] = true
	}
	return set
}

// usersOf reads the service users at places of a list, by id, with their groups. They have the
// usage that is not on disk yet, unless the list is sorted by it: the order has to be that of the
// values.
func (t *tx) usersOf(q UserQuery, places []Place) (map[string]*ServiceUser, error) {
	ids := make([]string, len(places))
	for i, at := range places {
		ids[i] = at.ID()
	}
	args := params{}
	list, err := all(t, "reading service users", scanUser, selectUser+` WHERE id IN (`+args.list(ids)+`)`, args...)
	users := make(map[string]*ServiceUser, len(list))
	for i := range list {
		u := &list[i]
		if q.Deleted == u.DeletedAt.IsZero() || t.by.Scope != nil && !t.by.Scope.Shares(u.Teams) {
			continue // since the choice of the places
		}
		users[u.ID] = u
		if strings.TrimPrefix(q.Sort, "-") != "last_active_at" {
			t.store.withActivity(u)
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

// hasTeam returns a condition that finds a team in a column of JSON text. arg is the team as JSON,
// with its quotes. Team names contain no quotes, so only a whole name matches. LIKE is not used
// because SQLite's LIKE ignores case: it takes "Finance" for "finance".
func hasTeam(arg string) string { return `REPLACE(teams, ` + arg + `, '') <> teams` }
