package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/stdlib"
)

// CopyReport is the result of [Copy].
type CopyReport struct {
	Contents                  // of the copy
	Last     int64            // the revision of the original at the end
	Tables   map[string]int64 // the number of rows by table
	From, To string           // the places, without a password
}

// Copy copies the store at from into a new one at to: from SQLite into PostgreSQL, the reverse, or between
// two of a kind. Either is a place as in [Open]. The copy has the same ids, hashes, audit trail and
// tombstones, and the id of the store. It has one revision of the original, which stays in use; later
// changes are not in it. A store at to that was ever changed is an [ErrConflict]. After an error, or if
// ctx ends before the copy is complete, the target is empty. rows, if not nil, is called with the number
// of rows so far.
func Copy(ctx context.Context, from, to string, opts Options, rows func(int64)) (r CopyReport, err error) {
	source, err := openSource(ctx, from)
	if err != nil {
		return r, err
	}
	defer source.close()
	s, err := Open(ctx, to, quiet(opts))
	if err != nil {
		return r, err
	}
	r.From, r.To = source.name, s.path
	if err = errors.Join(s.fill(ctx, source, &r, rows), s.Close()); err != nil {
		err = fmt.Errorf("copying %q to %q: %w", r.From, r.To, err)
	}
	return r, err
}

// copySource is a store that is read at one revision.
type copySource struct {
	db   *sql.DB
	tx   *tx
	name string
}

func (c *copySource) close() {
	if c.tx != nil {
		c.tx.Rollback()
	}
	if c.db != nil {
		c.db.Close()
	}
}

func openSource(ctx context.Context, from string) (c *copySource, err error) {
	c = &copySource{name: from}
	e := engine(&sqliteEngine{files: files{path: from}})
	if IsURL(from) {
		pg, err := newPostgres(from)
		if err != nil {
			return nil, err
		}
		c.db, c.name, e = stdlib.OpenDB(*pg.config), pg.name, pg
	} else if err = knownFile(from); err == nil {
		c.db, err = openAtRest(from)
	}
	if err == nil {
		err = c.begin(ctx, e)
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("reading the store %q: %w", c.name, e.advise(explainSQLite(err)))
	}
	return c, nil
}

func (c *copySource) begin(ctx context.Context, e engine) error {
	sqlTx, err := c.db.BeginTx(ctx, snapshot)
	if err != nil {
		return err
	}
	c.tx = &tx{Tx: sqlTx, ctx: ctx, store: &Store{engine: e}}
	if !IsURL(c.name) {
		if err := checkOurs(ctx, sqlTx.QueryRowContext); err != nil {
			return err
		}
	}
	if version, err := e.version(ctx, sqlTx); err != nil || version != schemaVersion {
		return cmp.Or(err, fmt.Errorf("its schema has version %d, and this program copies version %d; an older store gets "+
			"it when Caddy starts with it, and a newer one needs the newer program", version, schemaVersion))
	}
	return nil
}

// fill fills an empty store with the rows of another one, in one transaction.
func (s *Store) fill(ctx context.Context, from *copySource, r *CopyReport, told func(int64)) error {
	if err := s.turn(ctx); err != nil {
		return err
	}
	defer s.unlock()
	sqlTx, err := s.beginChange(ctx)
	if err != nil {
		return err
	}
	defer sqlTx.Rollback()
	t := &tx{Tx: sqlTx, ctx: ctx, store: s}
	there, err := t.contents()
	if err == nil && (there.Revision > 0 || there.Head.Seq > 0) {
		err = conflict("", "the store %s is not empty: it has revision %d; name another place", s.path, there.Revision)
	}
	if err != nil {
		return err
	}
	want, err := newSchema(ctx)
	if err != nil {
		return err
	}
	// Triggers change meta, so it comes last. The other tables come before those that refer to them.
	if err := t.exec("emptying the target", `DELETE FROM meta`); err != nil {
		return err
	}
	total := int64(0)
	r.Tables = make(map[string]int64)
	for _, table := range copyOrder {
		sent, received := sha256.New(), sha256.New()
		var rows [][]any
		flush := func() error {
			err := t.execRows("writing the table "+table,
				`INSERT INTO `+table+` (`+strings.Join(want.columns[table], ", ")+`) VALUES ROWS`, rows)
			r.Tables[table] += int64(len(rows))
			total += int64(len(rows))
			rows = nil
			if told != nil {
				told(total)
			}
			return err
		}
		if err := from.tx.eachRow(table, want.columns[table], sent, func(values []any) error {
			if rows = append(rows, values); len(rows) < rowsAtOnce {
				return nil
			}
			return flush()
		}); err != nil {
			return err
		}
		if err := flush(); err != nil {
			return err
		}
		if err := t.eachRow(table, want.columns[table], received, func([]any) error { return nil }); err != nil {
			return err
		}
		if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
			return fmt.Errorf("the copy of the table %s differs from the original", table)
		}
	}
	if r.Contents, err = t.contents(); err != nil {
		return err
	}
	// The copy is read as at a start.
	if _, err := s.load(ctx, sqlTx); err != nil {
		return err
	}
	if trail, err := t.verifyAudit(r.Head); err != nil {
		return err
	} else if trail.BadSeq != 0 {
		return fmt.Errorf("the audit trail is broken at record %d: %s; %s", trail.BadSeq, trail.Problem, mendByRestore)
	}
	if err := from.db.QueryRowContext(ctx, `SELECT revision FROM meta`).Scan(&r.Last); err != nil {
		return err
	}
	return sqlTx.Commit()
}

// copyOrder are the tables of a store, each before those that refer to it.
var copyOrder = []string{
	"service_users", "tokens", "permission_groups", "rules", "permissions", "group_permissions", "members",
	"deleted_links", "audit_events", "audit_subjects", "idempotency_keys", "refusals",
	"meta",
}

// booleans are the columns of the type BOOLEAN.
var booleans = []string{"active", "was_active"}

// eachRow calls f for each row of a table, in the order of its first columns, and adds the row to a digest
// that is the same on both engines.
func (t *tx) eachRow(table string, columns []string, digest hash.Hash, f func([]any) error) error {
	order := `1, 2, 3`[:min(3*len(columns)-2, 7)]
	rows, err := t.query(`SELECT ` + strings.Join(columns, ", ") + ` FROM ` + table + ` ORDER BY ` + order)
	if err != nil {
		return fmt.Errorf("reading the table %s: %w", table, err)
	}
	defer rows.Close()
	for rows.Next() {
		values, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return fmt.Errorf("reading the table %s: %w", table, err)
		}
		for i, column := range columns {
			if n, ok := values[i].(int64); ok && slices.Contains(booleans, column) {
				values[i] = n != 0 // SQLite has numbers
			} else if text, ok := values[i].(string); ok {
				values[i] = storable(text) // earlier versions wrote any bytes
			}
		}
		fmt.Fprintf(digest, "%#v\n", values)
		if err := f(values); err != nil {
			return err
		}
	}
	return rows.Err()
}
