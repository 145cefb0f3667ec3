package store

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
)

// Packed rows are what was written, or an error.
func TestEachPacked(t *testing.T) {
	for _, row := range []struct {
		name, values string   // of the columns a, b, n
		want         []string // nil is an error
	}{
		{"none", ``, []string{}},
		{"one", `('a', 'b', 1)`, []string{`"a" "b" 1`}},
		{"three", `('a', 'b', 1), ('c', 'd', 2), ('e', 'f', 3)`, []string{`"a" "b" 1`, `"c" "d" 2`, `"e" "f" 3`}},
		{"empty texts", `('', '', 0), ('', '', 0)`, []string{`"" "" 0`, `"" "" 0`}},
		{"limits", `('', '', 9223372036854775807), ('', '', -9223372036854775808)`, []string{`"" "" 9223372036854775807`, `"" "" -9223372036854775808`}},
		{"a zero byte", `('a' || char(0) || 'b', char(0), 1)`, []string{`"a\x00b" "\x00" 1`}},
		{"bytes", `(x'ff00fe', x'', 1)`, []string{`"\xff\x00\xfe" "" 1`}},
		{"no UTF-8", `(CAST(x'c328' AS TEXT), 'b', 1)`, []string{`"\xc3(" "b" 1`}},
		{"null", `('a', 'b', 1), ('c', NULL, 2), ('d', 'e', 3)`, nil},
		{"null alone", `(NULL, NULL, NULL)`, nil},
		{"a fraction", `('a', 'b', 1.5)`, nil},
		{"a whole fraction", `('a', 'b', 1e300)`, nil},
		{"no number", `('a', 'b', 'c')`, nil},
		{"the end of a field", `('a' || char(31) || 'x', 'b', 1)`, nil},
		{"the end of a field for one that is missing", `('a' || char(31) || 'x', 'b', ''), ('c', '', 1)`, nil},
		{"the end of a row", `('a' || char(30) || 'x', 'b', 1)`, nil},
		{"the end of a row at the end", `('a', 'b', '1' || char(30))`, nil},
		{"one row for two", `('a', 'b', '1' || char(30) || 'c' || char(31) || 'd' || char(31) || '2')`, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			db := must(sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "rows.db")))
			defer db.Close()
			must(db.Exec(`CREATE TABLE rows (a TEXT, b TEXT, n BIGINT)`))
			if row.values != "" {
				must(db.Exec(`INSERT INTO rows VALUES ` + row.values))
			}
			tx := must(db.Begin())
			defer tx.Rollback()
			got := []string{}
			err := must(pack(ctx, tx, heading{}, nil, selection{`a, b, n`, `rows`}))[0].each(func(f *fields) error {
				a, b, n := f.text(), f.text(), f.number()
				if f.err == nil {
					got = append(got, fmt.Sprintf("%q %q %d", a, b, n))
				}
				return nil
			})
			if (err != nil) != (row.want == nil) {
				t.Errorf("got %q, %v, want %q", got, err, row.want)
			} else if err == nil && strings.Join(got, "; ") != strings.Join(row.want, "; ") {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// Service users that changed are the same ones, however many are read at once.
func TestLoadChanged(t *testing.T) {
	w := newWorld(t, Options{})
	var since int64
	for n := range 12 {
		if n == 3 {
			since = w.Directory().Revision()
		}
		u, _ := addUser(w.Store, fmt.Sprint("user", n), []string{w.readers.ID, w.closers.ID}[:n%3]...)
		if n%4 == 2 {
			mustDo(w.deleteUser(ctx, Local, u.ID, 0))
		}
	}
	tx := must(w.read.BeginTx(ctx, nil))
	defer tx.Rollback()
	load := func(atOnce int) string {
		var read rowCounts
		users, removed, err := w.loadChanged(ctx, tx, since, atOnce, &read)
		mustDo(err)
		slices.SortFunc(users, func(a, b access.User) int { return strings.Compare(a.ID, b.ID) })
		slices.Sort(removed)
		return fmt.Sprintf("%+v\n%q\n%+v", users, removed, read)
	}
	want := load(changedAtOnce)
	if !strings.Contains(want, "\n[7 7 ") {
		t.Errorf("all at once: got %s", want)
	}
	for atOnce := 1; atOnce < 12; atOnce++ {
		if got := load(atOnce); got != want {
			t.Errorf("%d at once: got %s\nwant %s", atOnce, got, want)
		}
	}
}
