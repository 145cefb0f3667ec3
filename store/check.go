package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// CheckReport is the result of a check of a store.
type CheckReport struct {
	Contents
	Tables   map[string]int64 // the number of rows by table
	Findings []string         // damage, each with advice; empty if the store is sound
	Notes    []string         // values that were valid once and would be rejected today; a restore accepts them
}

// maxFindings limits a report, because a single lost page can damage very many rows.
const maxFindings = 100

const mendByRestore = "restore a backup"

// Check examines everything in the running store. It checks that SQLite finds its pages and indexes
// whole, that every reference leads to a row, that every row contains values that can be written
// and enforced, and that the chain of the audit trail is unbroken. known is a head of the trail
// from an earlier time, or the zero value. Only admins may call it.
func (s *Store) Check(ctx context.Context, by Actor, known AuditHead) (CheckReport, error) {
	return inReadOf(ctx, s, by, s.opts.timeouts.whole, func(t *tx) (CheckReport, error) {
		if err := t.admit("check the store"); err != nil {
			return CheckReport{}, err
		}
		c := checker{tx: t}
		c.all(s.opts, known)
		// Without a connection or in no time nothing can be read, which is not damage.
		var revision int64
		err := t.row(`SELECT revision FROM meta`).Scan(&revision)
		if err = cmp.Or(t.ctx.Err(), err); isLost(err) || t.ctx.Err() != nil {
			return CheckReport{}, fmt.Errorf("the check could not end: %w", err)
		}
		if fault := s.Fault(); fault != "" {
			c.addFinding("the store cannot be read: %s", fault)
		}
		return c.CheckReport, nil
	})
}

// CheckFile is like Check for a database file that need not be open, such as a backup. It upgrades
// an older schema in a copy and leaves the file unchanged. An error means that the file could not
// be examined.
func CheckFile(ctx context.Context, path string, opts Options, known AuditHead) (CheckReport, error) {
	if _, err := resolve(path); err != nil {
		return CheckReport{}, err
	} else if info, err := os.Stat(path); err != nil {
		return CheckReport{}, err
	} else if info.IsDir() {
		return CheckReport{}, fmt.Errorf("%q is a directory; name a file in it", path)
	}
	report, older, err := checkAtRest(ctx, path, opts, known)
	if !older || err != nil {
		return report, err
	}
	dir, err := os.MkdirTemp("", "service-users-check-*")
	if err != nil {
		return report, err
	}
	defer os.RemoveAll(dir)
	updated := filepath.Join(dir, "updated.db")
	if err := copySQLite(ctx, path, updated); err != nil {
		return report, err
	}
	schema := report.Schema
	report, err = checkAndUpgrade(ctx, updated, opts, known)
	// The report describes the file, not the upgraded copy.
	report.Schema = schema
	return report, err
}

// checkAndUpgrade checks a file that belongs to this process, and upgrades its schema.
func checkAndUpgrade(ctx context.Context, path string, opts Options, known AuditHead) (CheckReport, error) {
	report, older, err := checkAtRest(ctx, path, opts, known)
	if err != nil || !older {
		return report, err
	}
	// Open upgrades the schema and then loads the rows. If only the load fails, the check below
	// reports the rows; so err counts only if the schema is still old.
	s, err := Open(ctx, path, quiet(opts))
	if err == nil {
		err = s.Close()
	}
	after, older, second := checkAtRest(ctx, path, opts, known)
	if older || second != nil {
		return report, errors.Join(err, second)
	}
	after.Schema = report.Schema
	return after, nil
}

// quiet returns options for a store that this process alone has open, for a short time: no log, and
// no polling for the changes of other processes.
func quiet(opts Options) Options {
	opts.Log, opts.Unlisted = zap.NewNop(), true
	opts = opts.filled()
	opts.Poll = opts.timeouts.change
	return opts
}

// checkAtRest checks a file as it is. older reports that its schema has to be upgraded before the
// rows can be read; then only SQLite's own checks have run.
func checkAtRest(
	ctx context.Context, path string, opts Options, known AuditHead,
) (report CheckReport, older bool, err error) {
	c := checker{}
	if err := knownFile(path); err != nil {
		c.addFinding("%v", err)
		return c.CheckReport, false, nil
	}
	db, err := openAtRest(path)
	if err != nil {
		return c.CheckReport, false, err
	}
	defer db.Close()
	sqlTx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return c.CheckReport, false, explainSQLite(err)
	}
	defer sqlTx.Rollback()
	if err := checkOurs(ctx, sqlTx.QueryRowContext); err != nil {
		c.addFinding("%v", err)
		return c.CheckReport, false, ctx.Err()
	}
	c.tx = &tx{Tx: sqlTx, ctx: ctx}
	if c.Schema, err = sqliteVersion(ctx, sqlTx); err != nil {
		return c.CheckReport, false, explainSQLite(err)
	}
	if c.Schema < schemaVersion {
		c.database().checkPages(&c)
		return c.CheckReport, len(c.Findings) == 0, ctx.Err()
	}
	c.all(opts, known)
	return c.CheckReport, false, ctx.Err()
}

// checker collects findings in one transaction.
type checker struct {
	*tx
	CheckReport
	left int // the number of findings above maxFindings
}

func (c *checker) addFinding(format string, args ...any) {
	if len(c.Findings) < maxFindings {
		c.Findings = append(c.Findings, finding(format, args))
		return
	}
	c.left++
}

// addNote is like addFinding for a value that is not damage.
func (c *checker) addNote(format string, args ...any) {
	if len(c.Notes) < maxFindings {
		c.Notes = append(c.Notes, finding(format, args))
	}
}

func finding(format string, args []any) string {
	// Errors of SQLite and CEL can have several lines.
	return clip(strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}

// each calls row for every row of a query. An error in reading is a finding; what names the place
// in it.
func (c *checker) each(what, query string, row func(*sql.Rows) error) {
	rows, err := c.query(query)
	if err == nil {
		defer rows.Close()
		for err == nil && rows.Next() {
			err = row(rows)
		}
		err = errors.Join(err, rows.Err())
	}
	if err != nil {
		c.addFinding("%s cannot be read: %v; %s", what, err, mendByRestore)
	}
}

func (c *checker) all(opts Options, known AuditHead) {
	c.database().checkPages(c)
	want, err := newSchema(c.ctx)
	if err != nil {
		c.addFinding("the schema cannot be made: %v", err)
		return
	}
	got, err := c.objects()
	if err != nil {
		c.addFinding("the schema cannot be read: %v; %s", err, mendByRestore)
		return
	}
	missing := want.missing(got)
	for _, what := range missing {
		c.addFinding("the %s is missing; %s", what, mendByRestore)
	}
	for _, what := range got.others {
		// A further index changes no result.
		if !slices.Contains(want.others, what) && !strings.HasPrefix(what, "index ") {
			c.addFinding("the %s does not belong to a store; drop it, or %s", what, mendByRestore)
		}
	}
	if len(missing) > 0 {
		return // the queries below need all tables and columns
	}
	if c.Contents, err = c.contents(); err != nil {
		c.addFinding("the row of meta cannot be read: %v; %s", err, mendByRestore)
	}
	c.Tables = make(map[string]int64)
	for _, table := range want.tables {
		c.each("the table "+table, `SELECT COUNT(*) FROM `+table, func(rows *sql.Rows) error {
			var n int64
			err := rows.Scan(&n)
			c.Tables[table] = n
			return err
		})
	}
	c.texts(want)
	// Each check below can rely on the ones before it: load parses texts, and values relies on
	// rows that can be read. So a damaged row is one finding.
	if len(c.Findings) == 0 {
		c.load(opts)
	}
	if len(c.Findings) == 0 {
		c.forms(want)
		c.names()
		c.values()
	}
	if report, err := c.verifyAudit(known); err != nil {
		c.addFinding("%v; %s", err, mendByRestore)
	} else if report.BadSeq != 0 {
		c.addFinding("the audit trail is broken at record %d: %s; "+
			"find out who changed it, and keep a copy before you %s",
			report.BadSeq, report.Problem, mendByRestore)
	} else if len(c.Findings) == 0 {
		c.subjects()
	}
	if c.left > 0 {
		c.Findings = append(c.Findings, fmt.Sprintf("and %d more", c.left))
	}
}

// subjects looks for records of the audit trail that a search by a resource would not find. The chain
// does not cover the table audit_subjects.
func (c *checker) subjects() {
	type subject struct {
		resource string
		seq      int64
	}
	// A trail can have millions of subjects: their hashes take less memory.
	seed, there := maphash.MakeSeed(), make(map[uint64]struct{})
	c.each("the table audit_subjects", `SELECT resource_id, seq FROM audit_subjects`, func(rows *sql.Rows) error {
		var s subject
		err := rows.Scan(&s.resource, &s.seq)
		there[maphash.Comparable(seed, s)] = struct{}{}
		return err
	})
	c.each("the audit trail", selectAudit+` ORDER BY seq`, func(rows *sql.Rows) error {
		e, err := scanAudit(rows)
		for _, state := range []json.RawMessage{e.Before, e.After} {
			if len(state) > 0 && !json.Valid(state) {
				c.addFinding("record %d of the audit trail has a state that is not JSON; %s", e.Seq, mendByRestore)
			}
		}
		for _, id := range e.subjects() {
			if _, ok := there[maphash.Comparable(seed, subject{id, e.Seq})]; !ok {
				c.addFinding("%s: audit_subjects lacks the record %d of the audit trail; "+
					"find out who removed it, and %s", clip(id), e.Seq, mendByRestore)
			}
		}
		return err
	})
}

// load builds a directory as a start does. Its error names the first row that cannot be read or
// enforced.
func (c *checker) load(opts Options) {
	opts = quiet(opts)
	// This Store is not open: load needs only its options, log and clock.
	s := &Store{opts: opts, log: opts.Log, clock: wall{read: opts.Now}}
	s.engine = c.database()
	s.inForce.Store(&loaded{directory: access.NewDirectory(opts.Peppers, opts.DefaultGroup)})
	if _, err := s.load(c.ctx, c.Tx); err != nil {
		c.addFinding("the directory cannot be built: %v; write it again, or %s", err, mendByRestore)
	}
}
