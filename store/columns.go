package store

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/serviceusers/caddy-service-users/access"
)

// column connects a column of a table with a field of one record.
type column struct {
	name string
	// field is a pointer to the field, or a value around the pointer that converts it: see
	// unixTime, jsonText and seenTimes.
	field any
	fixed bool // only INSERT, and statements of their own, write the column

	// The rest applies to texts.
	people bool // people write it: a search looks at it, and purge empties it
	limit  int  // for checkText; 0 leaves the check to the record
}

// profileColumns returns the columns that the store and the directory share, in the order in which
// checkTexts examines them.
func profileColumns(p *access.Profile) []column {
	return []column{
		{name: "id", field: &p.ID, fixed: true},
		{name: "name", field: &p.Name, people: true},
		{name: "display_name", field: &p.DisplayName, people: true, limit: maxName},
		{name: "owner", field: &p.Owner, people: true, limit: maxName},
		{name: "description", field: &p.Description, people: true, limit: maxText},
		{name: "alias", field: &p.Alias, people: true},
		{name: "active", field: &p.Active},
		{name: "role", field: &p.Role},
		{name: "teams", field: jsonText{&p.Teams}},
		{name: "labels", field: jsonText{&p.Labels}},
	}
}

// columns returns the columns that belong to fields. revision and name_key are not among them.
func (u *ServiceUser) columns() []column {
	return append(profileColumns(&u.Profile),
		column{name: "allowed_ips", field: jsonText{&u.AllowedIPs}},
		column{name: "expires_at", field: (*unixTime)(&u.ExpiresAt)},
		column{name: "created_at", field: (*unixTime)(&u.CreatedAt), fixed: true},
		column{name: "created_by", field: &u.CreatedBy, fixed: true},
		column{name: "updated_at", field: (*unixTime)(&u.UpdatedAt)},
		column{name: "last_active_at", field: (*unixTime)(&u.LastActiveAt), fixed: true},
		column{name: "deleted_at", field: (*unixTime)(&u.DeletedAt)},
		column{name: "deleted_by", field: &u.DeletedBy},
		column{name: "was_active", field: &u.WasActive},
		column{name: "version", field: &u.Version})
}

// columns returns the columns that belong to fields. The figures of usage are fixed: figures.go writes
// them.
func (k *Token) columns() []column {
	return []column{
		{name: "id", field: &k.ID, fixed: true},
		{name: "service_user_id", field: &k.UserID, fixed: true},
		{name: "description", field: &k.Description},
		{name: "hint", field: &k.Hint, fixed: true},
		{name: "metadata", field: &k.Metadata},
		{name: "allowed_ips", field: jsonText{&k.AllowedIPs}},
		{name: "permission_groups", field: jsonText{&k.Groups}},
		{name: "expires_at", field: (*unixTime)(&k.ExpiresAt)},
		{name: "not_before", field: (*unixTime)(&k.NotBefore)},
		{name: "created_at", field: (*unixTime)(&k.CreatedAt), fixed: true},
		{name: "created_by", field: &k.CreatedBy, fixed: true},
		{name: "updated_at", field: (*unixTime)(&k.UpdatedAt)},
		{name: "last_used_at", field: (*unixTime)(&k.LastUsedAt), fixed: true},
		{name: "last_used_ip", field: &k.LastUsedIP, fixed: true},
		{name: "use_count", field: &k.UseCount, fixed: true},
		{name: "retires_at", field: (*unixTime)(&k.RetiresAt)},
		{name: "revoked_at", field: (*unixTime)(&k.RevokedAt)},
		{name: "replaced_by", field: &k.ReplacedBy},
		{name: "version", field: &k.Version},
		{name: "used_from", field: (*seenTimes)(&k.UsedFrom), fixed: true},
		{name: "used_rules", field: (*seenTimes)(&k.UsedRules), fixed: true},
		{name: "refreshed_at", field: (*unixTime)(&k.RefreshedAt)},
		{name: "count_at_refresh", field: &k.CountAtRefresh},
	}
}

func (g *Group) columns() []column {
	return []column{
		{name: "id", field: &g.ID, fixed: true},
		{name: "name", field: &g.Name},
		{name: "description", field: &g.Description},
		{name: "mode", field: &g.Mode},
		{name: "member_condition", field: &g.MemberCondition},
		{name: "created_at", field: (*unixTime)(&g.CreatedAt), fixed: true},
		{name: "created_by", field: &g.CreatedBy, fixed: true},
		{name: "updated_at", field: (*unixTime)(&g.UpdatedAt)},
		{name: "deleted_at", field: (*unixTime)(&g.DeletedAt)},
		{name: "deleted_by", field: &g.DeletedBy},
		{name: "version", field: &g.Version},
	}
}

var (
	selectUser  = selects("service_users", new(ServiceUser).columns())
	selectToken = selects("tokens", new(Token).columns())
	selectGroup = selects("permission_groups", new(Group).columns())
)

func selects(table string, columns []column) string {
	return `SELECT ` + strings.Join(names(columns), ", ") + ` FROM ` + table
}

func names(columns []column) (names []string) {
	for _, c := range columns {
		names = append(names, c.name)
	}
	return names
}

func scanUser(rows *sql.Rows) (u ServiceUser, err error) {
	err = scan(rows, u.columns())
	return u, err
}

func scanToken(rows *sql.Rows) (k Token, err error) {
	err = scan(rows, k.columns())
	return k, err
}

func scanGroup(rows *sql.Rows) (g Group, err error) {
	err = scan(rows, g.columns())
	return g, err
}

func scan(rows *sql.Rows, columns []column) error {
	fields := make([]any, len(columns))
	for i, c := range columns {
		fields[i] = c.field
	}
	return rows.Scan(fields...)
}

// texts returns the texts of a service user that people write.
func (u *ServiceUser) texts() (texts []*string) {
	for _, c := range u.columns() {
		if c.people {
			texts = append(texts, c.field.(*string))
		}
	}
	return texts
}

// checkTexts checks the texts that have a limit.
func (u *ServiceUser) checkTexts() error {
	for _, c := range u.columns() {
		if c.limit > 0 {
			if err := checkText(c.name, *c.field.(*string), c.limit); err != nil {
				return err
			}
		}
	}
	return nil
}

// all reads the rows of a query. what names them in an error, for example "reading rules".
func all[T any](t *tx, what string, scan func(*sql.Rows) (T, error), query string, args ...any) (list []T, err error) {
	rows, err := t.query(query, args...)
	if err == nil {
		list, err = collect(rows, scan)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return list, nil
}

// one reads the only row of a query. Without a row the error is [ErrNotFound]. kind and id name the
// record in errors.
func one[T any](t *tx, scan func(*sql.Rows) (T, error), kind, id, query string, args ...any) (v T, err error) {
	list, err := all(t, "reading the "+kind, scan, query, args...)
	switch {
	case err != nil:
		return v, err
	case len(list) == 0:
		return v, notFound(kind, id)
	}
	return list[0], nil
}

// cut cuts a list to a limit, and reports whether it had more entries.
func cut[T any](list []T, limit int) ([]T, bool) {
	return list[:min(len(list), limit)], len(list) > limit
}

// insert writes a row from the columns of a record and further ones. kind names the record in errors.
func (t *tx) insert(kind, table string, columns []column, more ...column) error {
	columns = append(columns, more...)
	var args params
	places := make([]string, len(columns))
	for i, c := range columns {
		places[i] = args.add(c.field)
	}
	return t.exec("writing the "+kind, `INSERT INTO `+table+` (`+strings.Join(names(columns), ", ")+`)
		VALUES (`+strings.Join(places, ", ")+`)`, args...)
}

// update writes the columns that are not fixed into the row with this id.
func (t *tx) update(kind, table, id string, columns []column, more ...column) error {
	sets, args := []string{}, params{id}
	for _, c := range append(columns, more...) {
		if !c.fixed {
			sets = append(sets, c.name+" = "+args.add(c.field))
		}
	}
	return t.exec("writing the "+kind, `UPDATE `+table+` SET `+strings.Join(sets, ", ")+` WHERE id = $1`, args...)
}

// params are the arguments of a statement that is put together.
type params []any

// add adds an argument, and returns its place in the statement, such as "$1".
func (p *params) add(v any) string {
	*p = append(*p, v)
	return fmt.Sprintf("$%d", len(*p))
}

// list adds several arguments, and returns their places for IN (…).
func (p *params) list(values []string) string {
	list := `NULL` // equals nothing, and makes a list of an empty one
	for _, v := range values {
		list += `, ` + p.add(v)
	}
	return list
}

// storable replaces zero bytes, and each byte that is not UTF-8: PostgreSQL rejects them in texts.
// The digests of the audit trail do not depend on the latter.
func storable(text string) string {
	if !utf8.ValidString(text) {
		text = string([]rune(text))
	}
	return strings.ReplaceAll(text, "\x00", "\uFFFD")
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
