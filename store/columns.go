package store

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// column connects a column of a table with a field of the records T in it.
type column[T any] struct {
	name string
	// field returns a pointer to the field, or a value around the pointer that converts it: see
	// unixTime, jsonText and seenTimes.
	field func(*T) any
	fixed bool // only INSERT, and statements of their own, write the column

	// The rest applies to texts.
	people bool // people write it: a search looks at it, and purge empties it
	limit  int  // for checkText; 0 leaves the check to the record
}

// textColumn returns a column that people write. limit is the most characters; 0 leaves all checks to
// the check of the record.
func textColumn[T any](name string, limit int, field func(*T) *string) column[T] {
	return column[T]{name: name, people: true, limit: limit, field: func(v *T) any { return field(v) }}
}

// columns are the columns of a table that belong to the fields of a record, in the order in which
// check examines them. revision, and columns with computed values, are not among them.
type columns[T any] []column[T]

// profileColumns are the columns that the store and the directory share.
var profileColumns = columns[access.Profile]{
	{name: "id", fixed: true, field: func(p *access.Profile) any { return &p.ID }},
	textColumn("name", 0, func(p *access.Profile) *string { return &p.Name }),
	textColumn("display_name", maxName, func(p *access.Profile) *string { return &p.DisplayName }),
	textColumn("owner", maxName, func(p *access.Profile) *string { return &p.Owner }),
	textColumn("description", maxText, func(p *access.Profile) *string { return &p.Description }),
	textColumn("alias", 0, func(p *access.Profile) *string { return &p.Alias }),
	{name: "active", field: func(p *access.Profile) any { return &p.Active }},
	{name: "role", field: func(p *access.Profile) any { return &p.Role }},
	{name: "teams", field: func(p *access.Profile) any { return jsonText{&p.Teams} }},
	{name: "labels", field: func(p *access.Profile) any { return jsonText{&p.Labels} }},
}

var userColumns = append(lift(profileColumns, func(u *ServiceUser) *access.Profile { return &u.Profile }),
	columns[ServiceUser]{
		{name: "allowed_ips", field: func(u *ServiceUser) any { return jsonText{&u.AllowedIPs} }},
		{name: "expires_at", field: func(u *ServiceUser) any { return (*unixTime)(&u.ExpiresAt) }},
		{name: "created_at", fixed: true, field: func(u *ServiceUser) any { return (*unixTime)(&u.CreatedAt) }},
		{name: "created_by", fixed: true, field: func(u *ServiceUser) any { return &u.CreatedBy }},
		{name: "updated_at", field: func(u *ServiceUser) any { return (*unixTime)(&u.UpdatedAt) }},
		{name: "last_active_at", fixed: true, field: func(u *ServiceUser) any { return (*unixTime)(&u.LastActiveAt) }},
		{name: "deleted_at", field: func(u *ServiceUser) any { return (*unixTime)(&u.DeletedAt) }},
		{name: "version", field: func(u *ServiceUser) any { return &u.Version }},
	}...)

// The figures of usage are fixed: figures.go writes them.
var tokenColumns = columns[Token]{
	{name: "id", fixed: true, field: func(k *Token) any { return &k.ID }},
	{name: "service_user_id", fixed: true, field: func(k *Token) any { return &k.UserID }},
	{name: "description", field: func(k *Token) any { return &k.Description }},
	{name: "hint", fixed: true, field: func(k *Token) any { return &k.Hint }},
	{name: "metadata", field: func(k *Token) any { return &k.Metadata }},
	{name: "allowed_ips", field: func(k *Token) any { return jsonText{&k.AllowedIPs} }},
	{name: "permission_groups", field: func(k *Token) any { return jsonText{&k.Groups} }},
	{name: "expires_at", field: func(k *Token) any { return (*unixTime)(&k.ExpiresAt) }},
	{name: "not_before", field: func(k *Token) any { return (*unixTime)(&k.NotBefore) }},
	{name: "created_at", fixed: true, field: func(k *Token) any { return (*unixTime)(&k.CreatedAt) }},
	{name: "created_by", fixed: true, field: func(k *Token) any { return &k.CreatedBy }},
	{name: "updated_at", field: func(k *Token) any { return (*unixTime)(&k.UpdatedAt) }},
	{name: "last_used_at", fixed: true, field: func(k *Token) any { return (*unixTime)(&k.LastUsedAt) }},
	{name: "last_used_ip", fixed: true, field: func(k *Token) any { return &k.LastUsedIP }},
	{name: "use_count", fixed: true, field: func(k *Token) any { return &k.UseCount }},
	{name: "retires_at", field: func(k *Token) any { return (*unixTime)(&k.RetiresAt) }},
	{name: "revoked_at", field: func(k *Token) any { return (*unixTime)(&k.RevokedAt) }},
	{name: "replaced_by", field: func(k *Token) any { return &k.ReplacedBy }},
	{name: "version", field: func(k *Token) any { return &k.Version }},
	{name: "used_from", fixed: true, field: func(k *Token) any { return (*seenTimes)(&k.UsedFrom) }},
	{name: "used_rules", fixed: true, field: func(k *Token) any { return (*seenTimes)(&k.UsedRules) }},
	{name: "refreshed_at", field: func(k *Token) any { return (*unixTime)(&k.RefreshedAt) }},
	{name: "count_at_refresh", field: func(k *Token) any { return &k.CountAtRefresh }},
}

var groupColumns = columns[Group]{
	{name: "id", fixed: true, field: func(g *Group) any { return &g.ID }},
	{name: "name", field: func(g *Group) any { return &g.Name }},
	{name: "description", field: func(g *Group) any { return &g.Description }},
	{name: "mode", field: func(g *Group) any { return &g.Mode }},
	{name: "member_condition", field: func(g *Group) any { return &g.MemberCondition }},
	{name: "created_at", fixed: true, field: func(g *Group) any { return (*unixTime)(&g.CreatedAt) }},
	{name: "created_by", fixed: true, field: func(g *Group) any { return &g.CreatedBy }},
	{name: "updated_at", field: func(g *Group) any { return (*unixTime)(&g.UpdatedAt) }},
	{name: "version", field: func(g *Group) any { return &g.Version }},
}

var (
	selectUser, scanUser   = userColumns.selects("service_users"), userColumns.scan
	selectToken, scanToken = tokenColumns.selects("tokens"), tokenColumns.scan
	selectGroup, scanGroup = groupColumns.selects("permission_groups"), groupColumns.scan
)

// lift converts the columns of a struct P to columns of the records T that contain it.
func lift[T, P any](list columns[P], part func(*T) *P) columns[T] {
	var out columns[T]
	for _, c := range list {
		out = append(out, column[T]{c.name, func(v *T) any { return c.field(part(v)) }, c.fixed, c.people, c.limit})
	}
	return out
}

func (list columns[T]) names() (names []string) {
	for _, c := range list {
		names = append(names, c.name)
	}
	return names
}

func (list columns[T]) selects(table string) string {
	return `SELECT ` + strings.Join(list.names(), ", ") + ` FROM ` + table
}

func (list columns[T]) scan(rows *sql.Rows) (v T, err error) {
	fields := make([]any, len(list))
	for i, c := range list {
		fields[i] = c.field(&v)
	}
	err = rows.Scan(fields...)
	return v, err
}

// peoplesTexts returns the texts that people write.
func (list columns[T]) peoplesTexts(v *T) (texts []*string) {
	for _, c := range list {
		if c.people {
			texts = append(texts, c.field(v).(*string))
		}
	}
	return texts
}

// check checks the texts that have a limit.
func (list columns[T]) check(v *T) error {
	for _, c := range list {
		if c.limit > 0 {
			if err := checkText(c.name, *c.field(v).(*string), c.limit); err != nil {
				return err
			}
		}
	}
	return nil
}

// value is a value for a column.
type value struct {
	column string
	value  any
}

// added returns the values for an INSERT.
func (list columns[T]) added(v *T) (row []value) {
	for _, c := range list {
		row = append(row, value{c.name, c.field(v)})
	}
	return row
}

// changed returns the values for an UPDATE.
func (list columns[T]) changed(v *T) (row []value) {
	for _, c := range list {
		if !c.fixed {
			row = append(row, value{c.name, c.field(v)})
		}
	}
	return row
}

func (t *tx) insert(table string, row ...value) error {
	var names, places []string
	var args []any
	for i, v := range row {
		names, args = append(names, v.column), append(args, v.value)
		places = append(places, fmt.Sprintf("$%d", i+1))
	}
	_, err := t.exec(`INSERT INTO `+table+` (`+strings.Join(names, ", ")+`) VALUES (`+
		strings.Join(places, ", ")+`)`, args...)
	return err
}

func (t *tx) update(table, id string, row ...value) error {
	sets, args := []string{}, []any{id}
	for _, v := range row {
		args = append(args, v.value)
		sets = append(sets, fmt.Sprintf("%s = $%d", v.column, len(args)))
	}
	_, err := t.exec(`UPDATE `+table+` SET `+strings.Join(sets, ", ")+` WHERE id = $1`, args...)
	return err
}

// unixTime is a time that is Unix seconds in the database; the zero time is 0.
type unixTime time.Time

// Scan implements [sql.Scanner].
func (i *unixTime) Scan(src any) error {
	var n sql.NullInt64
	err := n.Scan(src)
	*i = unixTime(fromUnix(n.Int64))
	return err
}

// Value implements [driver.Valuer].
func (i *unixTime) Value() (driver.Value, error) { return unix(time.Time(*i)), nil }

// jsonText is a pointer to a list or map that is JSON in the database.
type jsonText struct{ v any }

// Scan implements [sql.Scanner].
func (j jsonText) Scan(src any) error {
	var text sql.NullString
	if err := text.Scan(src); err != nil {
		return err
	}
	return fromJSON(text.String, j.v)
}

// Value implements [driver.Valuer].
func (j jsonText) Value() (driver.Value, error) { return toJSON(j.v), nil }

// seenTimes are times by address or rule. They are JSON in the database; nil is "{}".
type seenTimes map[string]int64

// Scan implements [sql.Scanner].
func (m *seenTimes) Scan(src any) error {
	if src == "{}" {
		return nil
	}
	return jsonText{m}.Scan(src)
}

// Value implements [driver.Valuer].
func (m *seenTimes) Value() (driver.Value, error) {
	if *m == nil {
		return "{}", nil
	}
	return toJSON(m), nil
}
