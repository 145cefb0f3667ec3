package store

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/serviceusers/caddy-service-users/access"
)

// texts looks in every column for values that harm a process that reads them: a value that is too
// large, or text that is not UTF-8.
func (c *checker) texts(want objects) {
	for _, table := range want.tables {
		columns := want.columns[table]
		chosen := make([]string, len(columns))
		for i, column := range columns {
			most := maxRowBytes
			switch table {
			case "permissions":
				most = maxPermissionBytes
			case "audit_events": // before and after may contain a group with all of its rules
				most = math.MaxInt32
			}
			// SQLite measures the value, so that a huge one never reaches this process.
			chosen[i] = fmt.Sprintf(`CASE WHEN octet_length(CAST(%[1]s AS TEXT)) > %[2]d THEN NULL ELSE %[1]s END`,
				column, most)
		}
		values, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		query := `SELECT ` + strings.Join(chosen, ", ") + ` FROM ` + table
		c.each("the table "+table, query, func(rows *sql.Rows) error {
			if err := rows.Scan(into...); err != nil {
				return err
			}
			for i, v := range values {
				switch {
				case !v.Valid:
					c.addFinding("%s: %s.%s is too large; %s",
						clip(values[0].String), table, columns[i], mendByRestore)
				case !utf8.ValidString(v.String):
					c.addFinding("%s: %s.%s is not valid UTF-8; %s",
						clip(values[0].String), table, columns[i], mendByRestore)
				}
			}
			return nil
		})
	}
}

// written lists the text columns that only the program itself fills. They never hold control
// characters. (Authenticators of others name the people in created_by and actor.)
var written = []string{"hint", "pepper_id", "last_used_ip", "replaced_by", "instance_id", "action", "operation_id"}

// forms finds values that the program itself never writes: times out of range, ids that no request
// can name, bytes in place of a text.
func (c *checker) forms(want objects) {
	ids := map[string]string{
		"service_users": "service", "tokens": "token", "permission_groups": "group", "rules": "rule", "refusals": "decision",
	}
	forms := c.database().forms()
	for _, table := range want.tables {
		var wrong strings.Builder
		for _, column := range want.columns[table] {
			is := forms["blob"]
			switch {
			case column == "expires_at":
				is = `COLUMN < 0` // a time after the year 9999 is a note
			case column == "at" || strings.HasSuffix(column, "_at"):
				is = fmt.Sprintf(`COLUMN NOT BETWEEN 0 AND %d`, lastInstant)
			case column == "version" || strings.HasSuffix(column, "_count") || column == "count_at_refresh":
				is = `COLUMN < 0`
			case column == "id" && ids[table] != "":
				is += ` OR ` + strings.ReplaceAll(forms["id"], "KIND", ids[table])
			case slices.Contains(written, column):
				is += ` OR ` + forms["control"]
			case column == "hash" && table == "tokens": // the directory has no tokens that ended long ago
				is += ` OR ` + forms["hash"]
			case column == "revision" && table != "meta": // a revision above the last is never read
				is += ` OR COLUMN > (SELECT revision FROM meta)`
			}
			fmt.Fprintf(&wrong, ` WHEN %s THEN '%s'`, strings.ReplaceAll(is, "COLUMN", column), column)
		}
		query := `SELECT place, wrong FROM (SELECT ` + want.columns[table][0] + ` AS place, CASE` + wrong.String() +
			` END AS wrong FROM ` + table + `) t WHERE wrong <> ''`
		c.each("the table "+table, query, func(rows *sql.Rows) error {
			var row, column string
			err := rows.Scan(&row, &column)
			if err == nil {
				c.addFinding("%s: %s.%s holds a value that is never written there; %s",
					clip(row), table, column, mendByRestore)
			}
			return err
		})
	}
}

// values applies the rules for new values to every row. It checks each row twice: as an unchanged
// row, whose faults are findings, and as a new row, whose faults are notes, because rules that were
// introduced later do not apply to older rows. A row that cannot be read is a finding too: the
// directory has no deleted service users and no tokens that were revoked long ago.
func (c *checker) values() {
	for _, table := range []string{"service_users", "tokens"} {
		query := fmt.Sprintf(`SELECT id FROM %s WHERE expires_at > %d ORDER BY id`, table, lastInstant)
		c.each("the table "+table, query, func(rows *sql.Rows) error {
			id, err := scanString(rows)
			c.judge(id, nil, errors.New("expires_at: lies after the year 9999"))
			return err
		})
	}
	c.users()
	c.tokens()
	c.groups()
	c.catalogue()
	c.each("the table refusals", selectRefusal, func(rows *sql.Rows) error {
		r, err := scanRefusal(rows)
		c.judge(r.ID, err, nil)
		return nil
	})
}

// judge records the faults of a row: kept is the fault of the unchanged row, made that of a new one.
func (c *checker) judge(id string, kept, made error) {
	if kept != nil {
		c.addFinding("%s: %v; write it again, or %s", clip(id), kept, mendByRestore)
	} else if made != nil {
		c.addNote("%s: %v; it was right when it was written, and stays valid", clip(id), made)
	}
}

// mask puts another text in the place of each text with a secret, so that the rest of the row is
// checked too. Older versions accepted such texts, so they are notes.
func (c *checker) mask(id, other string, texts ...*string) {
	for _, text := range texts {
		if access.FindLeak(*text) == access.SecretLeak {
			c.addNote("%s: a text contains a secret, which is rejected today; "+
				"change the text, and refresh the token", clip(id))
			*text = other
		}
	}
}

// noEnd makes an end that has passed no fault: no end is before the zero time.
var noEnd time.Time

func (c *checker) users() {
	c.each("the table service_users", selectUser+` ORDER BY id`, func(rows *sql.Rows) error {
		u, err := scanUser(rows)
		if err != nil {
			c.judge(u.ID, err, nil)
			return nil
		}
		c.mask(u.ID, "x", u.texts()...)
		for i := range u.Teams {
			c.mask(u.ID, "x", &u.Teams[i])
		}
		labels := make(map[string]string)
		for k, v := range u.Labels {
			c.mask(u.ID, "x", &k, &v)
			labels[k] = v
		}
		u.Labels = labels
		if u.Name == "" && !u.DeletedAt.IsZero() {
			u.Name = "x" // it was removed with all that is personal, see purge
		}
		before, fresh := u, u.clone()
		c.judge(u.ID, u.check(noEnd, &before), fresh.check(noEnd, nil))
		return nil
	})
}

func (c *checker) tokens() {
	c.each("the table tokens", selectToken+` ORDER BY id`, func(rows *sql.Rows) error {
		k, err := scanToken(rows)
		if err != nil {
			c.judge(k.ID, err, nil)
			return nil
		}
		c.mask(k.ID, "x", &k.Description, &k.Metadata)
		before, fresh := k, k.clone()
		c.judge(k.ID, cmp.Or(k.check(noEnd, &before), checkFigures(k)), fresh.check(noEnd, nil))
		return nil
	})
}

func (c *checker) groups() {
	sizes := make(map[string][]access.Rule)
	c.each("the table rules", `
		SELECT group_id, COUNT(*), SUM(CASE WHEN condition <> '' THEN 1 ELSE 0 END)
		FROM rules GROUP BY group_id`, func(rows *sql.Rows) error {
		var group string
		var all, conditional int
		err := rows.Scan(&group, &all, &conditional)
		sizes[group] = slices.Concat(make([]access.Rule, all-conditional),
			slices.Repeat([]access.Rule{{When: "true"}}, conditional))
		return err
	})
	groups := selectGroup + ` WHERE deleted_at = 0 ORDER BY id`
	c.each("the table permission_groups", groups, func(rows *sql.Rows) error {
		g, err := scanGroup(rows)
		c.mask(g.ID, "x", &g.Name, &g.Description)
		c.mask(g.ID, "true", &g.MemberCondition)
		g.Rules = sizes[g.ID] // check only counts the rules and their conditions
		before := g
		c.judge(g.ID, g.check(&before), g.check(nil))
		return err
	})
	c.each("the table rules", `
		SELECT group_id, id, effect, methods, host, path, condition, name, description
		FROM rules ORDER BY id`, func(rows *sql.Rows) error {
		_, r, err := scanRule(rows)
		if err != nil {
			return err
		}
		c.mask(r.ID, "x", &r.Name, &r.Description)
		c.mask(r.ID, "", &r.Host, &r.When)
		c.mask(r.ID, "/x", &r.Path)
		_, fault := checkRule(r)
		c.judge(r.ID, fault, nil)
		return nil
	})
}

func (c *checker) catalogue() {
	list, err := c.permissions()
	if err != nil {
		c.addFinding("%v; load it again, or %s", err, mendByRestore)
		return
	}
	if len(list) > maxCatalogue {
		c.addFinding("the catalogue has %d permissions, at most %d are allowed; load it again with --replace",
			len(list), maxCatalogue)
	}
	for _, p := range list {
		c.mask(p.Key, "x", &p.Key, &p.Name, &p.Category, &p.Description)
		c.judge(p.Key, p.check(), nil)
	}
}

// checkFigures returns an error if a token has a value that only the program writes, and never
// writes like this.
func checkFigures(k Token) error {
	for _, group := range k.Groups {
		if !ValidID("group", group) {
			return fmt.Errorf("the permission group %q is not an id", clip(group))
		}
	}
	for rule := range k.UsedRules {
		if strings.ContainsFunc(rule, unicode.IsControl) {
			return fmt.Errorf("the figures of use hold %q, which is not a rule", clip(rule))
		}
	}
	for address := range k.UsedFrom {
		if _, err := netip.ParseAddr(address); err != nil {
			return fmt.Errorf("the figures of use hold %q, which is not an address", clip(address))
		}
	}
	return nil
}

// names adds a note for each pair of names that read alike, and for a name without the key by which
// the store finds such names.
func (c *checker) names() {
	c.each("the table service_users", `
		SELECT id, name, name_key FROM service_users ORDER BY id`, func(rows *sql.Rows) error {
		var id, name, key string
		err := rows.Scan(&id, &name, &key)
		if err == nil && key != nameKey(name) {
			c.addNote("%s: the store has no key for names that read like %q; rename the service user",
				id, name)
		}
		return err
	})
	c.each("the table service_users", `
		SELECT a.id, a.name, b.id, b.name
		FROM service_users a JOIN service_users b ON b.name_key = a.name_key AND b.id > a.id
		WHERE a.deleted_at = 0 AND b.deleted_at = 0 AND a.name_key <> ''
		ORDER BY b.id, a.id`, func(rows *sql.Rows) error {
		var id, name, other, otherName string
		err := rows.Scan(&id, &name, &other, &otherName)
		if err == nil {
			c.addNote("%s: the name %q reads like %q of %s; both stay valid; rename one",
				other, otherName, name, id)
		}
		return err
	})
}
