package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/serviceusers/caddy-service-users/access"
)

// The separators of fields and rows in a packed text. checkText keeps both characters out of every
// text. If one got in, the numbers of fields or rows would not match, and the load fails.
const (
	fieldEnd = "\x1f"
	rowEnd   = "\x1e"
)

var errRowDamaged = errors.New("the row is damaged")

// selection is "SELECT columns FROM from". columns are separated by ", " and never null.
type selection struct{ columns, from string }

// packed is the rows of a selection, as one text.
type packed struct {
	fields, rows int
	text         string
}

// heading is the rest of a statement that reads selections: its beginning, and the columns of one row.
type heading struct {
	with, columns, from string
	into                []any
}

// querier is a transaction or a connection.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// pack reads selections by one statement. SQLite joins the rows to one text, because the driver and
// database/sql take several times as long for a row as SQLite does. PostgreSQL plans one statement in less
// time than several, and a node waits for one answer; concat_ws has no type to resolve for each column.
func pack(ctx context.Context, q querier, head heading, args []any, selections ...selection) ([]packed, error) {
	list := make([]packed, len(selections))
	var columns, from []string
	if head.columns != "" {
		columns, from = append(columns, head.columns), append(from, head.from)
	}
	into := slices.Clone(head.into)
	for i, s := range selections {
		list[i].fields = 1 + strings.Count(s.columns, ", ")
		into = append(into, &list[i].rows, &list[i].text)
		columns = append(columns, fmt.Sprintf(`s%d.*`, i))
		from = append(from, fmt.Sprintf(`(SELECT count(*), COALESCE(string_agg(concat_ws('`+fieldEnd+`', %s), '`+rowEnd+`'), '') FROM %s) s%d`,
			s.columns, s.from, i))
	}
	err := q.QueryRowContext(ctx, head.with+` SELECT `+strings.Join(columns, `, `)+
		` FROM `+strings.Join(from, ` CROSS JOIN `), args...).Scan(into...)
	return list, err
}

// each calls f for every row.
func (p packed) each(f func(*fields) error) error {
	row := fields{values: make([]string, p.fields)}
	for text := p.text; p.rows > 0; p.rows-- {
		line, rest, more := strings.Cut(text, rowEnd)
		// count(*) says how many separators there must be.
		if more != (p.rows > 1) {
			return errRowDamaged
		}
		if err := row.read(line, f); err != nil {
			return fmt.Errorf("%q: %w", clip(row.values[0]), err)
		}
		text = rest
	}
	return nil
}

// fields are the values of one row, in order. text, number and bool return the next one.
type fields struct {
	values []string
	next   int
	err    error // the first error of number or bool
}

func (r *fields) read(line string, f func(*fields) error) error {
	r.next = 0
	last := len(r.values) - 1
	for i := range r.values {
		var more bool
		if r.values[i], line, more = strings.Cut(line, fieldEnd); more == (i == last) {
			return errRowDamaged
		}
	}
	if err := f(r); err != nil {
		return err
	}
	return r.err
}

// The largest rows that are loaded: maxPermissionBytes for a permission with its rules, maxRowBytes
// for all others. Both are larger than any row that can be written, and small enough to do no harm.
const (
	maxRowBytes        = 256 << 10
	maxPermissionBytes = 8 << 20
)

// bearable rejects values that harm the process that loads them: more bytes than any row can have,
// and text that is not UTF-8, which other programs interpret differently. A check reports other
// values that the API would not write.
func bearable(values ...string) error {
	size := 0
	for _, v := range values {
		if size += len(v); !utf8.ValidString(v) {
			return fmt.Errorf("%w: it holds text that is not valid UTF-8", errRowDamaged)
		}
	}
	return bearableSize(int64(size))
}

func bearableSize(bytes int64) error {
	if bytes > maxRowBytes {
		return fmt.Errorf("%w: it has %d bytes, and at most %d can be right", errRowDamaged, bytes, maxRowBytes)
	}
	return nil
}

// clip shortens a text to 500 bytes for a message.
func clip(text string) string {
	const most = 500
	if len(text) > most {
		// The cut may split a character; ToValidUTF8 drops the rest of it.
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

func (r *fields) text() string {
	r.next++
	return r.values[r.next-1]
}

func (r *fields) number() int64 {
	n, err := strconv.ParseInt(r.text(), 10, 64)
	// each reports the error after the row, so that callers need not check each number.
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w: %w", errRowDamaged, err)
	}
	return n
}

// bool reads what PostgreSQL writes for a BOOLEAN, and SQLite.
func (r *fields) bool() bool {
	if text := r.values[r.next]; text == "t" || text == "f" {
		r.next++
		return text == "t"
	}
	n := r.number()
	if n != 0 && n != 1 && r.err == nil {
		r.err = fmt.Errorf("%w: %d is neither true nor false", errRowDamaged, n)
	}
	return n == 1
}

// into reads the next value into a field of a [column]. It leaves an empty list or map nil.
func (r *fields) into(field any) error {
	switch field := field.(type) {
	case *string:
		*field = r.text()
	case *access.Role:
		*field = access.Role(r.text())
	case *bool:
		*field = r.bool()
	case jsonText:
		if text := r.text(); text != "[]" && text != "{}" {
			return fromJSON(text, field.v)
		}
	default:
		return fmt.Errorf("no text can be read into a %T", field)
	}
	return nil
}
