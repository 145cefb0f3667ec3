package cli

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/serviceusers/caddy-service-users/admin"
)

// createMany creates the service users of a CSV file. With a directory for secrets it issues a token
// for each of them.
func (c *cli) createMany(path, secretDir string) error {
	file, err := openInput(path)
	if err != nil {
		return err
	}
	defer file.Close()
	users, lines, err := c.readUsers(file, secretDir != "")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	work := changeOf("create")
	work.Users, work.fault = users, func(err error) error { return inLine(err, path, lines) }
	if secretDir == "" {
		work.done += "; no tokens were issued, since there is no --secret-dir"
		return c.bulk(work)
	}
	work.question, work.done = "Create %s, with a token each?", "created %s; their tokens are in "+secretDir
	var files []string
	for _, u := range users {
		files = append(files, secretPath(secretDir, u.Name.Value))
	}
	if err := checkSecretDir(secretDir); err != nil {
		return err
	}
	work.begun = keyIn(files) != ""
	switch {
	case c.dryRun && work.begun:
		return errors.New("an earlier run got no answer; the same command without --dry-run completes it")
	case c.dryRun: // finds files that exist
		p, err := begin("--secret-dir", files)
		if err = errors.Join(err, removePending(p.made)); err != nil {
			return err
		}
	}
	work.around = func(r *admin.BulkResult, request func() error) error {
		p, err := begin("--secret-dir", files)
		if err != nil {
			return err
		}
		work.key = p.key
		if err := request(); err != nil {
			return p.failed(err)
		}
		return c.saveSecrets(r.ServiceUsers, files)
	}
	return c.bulk(work)
}

// saveSecrets moves the secrets of new service users into their files. It goes on after an error.
func (c *cli) saveSecrets(made []admin.BulkEntry, files []string) (err error) {
	var lost []string
	for i := range made {
		if failed := saveSecret(files[i], made[i].Token); failed != nil {
			lost, err = append(lost, made[i].Name+" "+made[i].TokenID), cmp.Or(err, failed)
		}
		made[i].Token = ""
	}
	if err != nil {
		err = fmt.Errorf("all service users were created, but %d of %d tokens could not be written: %w; "+
			"use \"token revoke\" and \"token create\" for: %s",
			len(lost), len(made), err, strings.Join(lost, ", "))
	}
	return err
}

// csvColumns are the columns that a file may have.
const csvColumns = "name, display_name, description, owner, alias, role, teams, labels, allowed_ips, groups, " +
	"expires_at, ttl"

// readUsers reads service users from CSV (RFC 4180), with the line of each. tokens reports whether
// each of them gets a token.
func (c *cli) readUsers(in io.Reader, tokens bool) (users []admin.NewServiceUser, lines []int, err error) {
	text, err := io.ReadAll(in)
	if err != nil {
		return nil, nil, err
	}
	if !utf8.Valid(text) {
		return nil, nil, errors.New("the file is not in UTF-8; save it as \"CSV UTF-8\"")
	}
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff")))) // a byte order mark
	columns, err := r.Read()
	if err == nil {
		err = checkColumns(columns)
	}
	if err == io.EOF {
		err = errors.New("the file is empty; its first line must name the columns: " + csvColumns)
	}
	seen := make(map[string]int) // lines by name
	for err == nil {
		var row []string
		if row, err = r.Read(); err != nil {
			break
		}
		line, _ := r.FieldPos(0)
		u, err := c.readUser(columns, row, tokens)
		name := u.Name.Value
		if err == nil && seen[name] > 0 {
			err = fmt.Errorf("the name %q is in line %d already", name, seen[name])
		}
		if err != nil {
			return nil, nil, fmt.Errorf("line %d: %w", line, err)
		}
		seen[name] = line
		users, lines = append(users, u), append(lines, line)
	}
	switch {
	case err != io.EOF:
		return nil, nil, err
	case len(users) == 0:
		return nil, nil, errors.New("there is no service user after the first line")
	}
	return users, lines, nil
}

// csvFlag returns the flag of "create" that a column of a file fills. The name of the column may be
// the plural of the flag. list reports whether the column has several values.
func csvFlag(flags *pflag.FlagSet, column string) (flag *pflag.Flag, list bool) {
	name := strings.ReplaceAll(strings.TrimPrefix(column, "permission_"), "_", "-")
	if flag = flags.Lookup(name); flag == nil {
		flag = flags.Lookup(strings.TrimSuffix(name, "s"))
	}
	return flag, flag != nil && flag.Value.Type() != "string"
}

// checkColumns checks the first line of a file, and converts the names of columns to lower case.
func checkColumns(columns []string) error {
	flags := new(newUser).flags()
	seen := make(map[*pflag.Flag]bool)
	for i, column := range columns {
		columns[i] = strings.ToLower(strings.TrimSpace(column))
		flag, _ := csvFlag(flags, columns[i])
		if flag == nil {
			return fmt.Errorf("line 1: there is no column %q; the columns, with a comma between them, "+
				"are %s", column, csvColumns)
		}
		if seen[flag] {
			return fmt.Errorf("line 1: the column %q appears twice", column)
		}
		seen[flag] = true
	}
	if !slices.Contains(columns, "name") {
		return errors.New("line 1: there is no column \"name\"")
	}
	return nil
}

// readUser converts one row of a file.
func (c *cli) readUser(columns, row []string, token bool) (admin.NewServiceUser, error) {
	var n newUser
	flags := n.flags()
	for i, column := range columns {
		flag, list := csvFlag(flags, column)
		values := []string{row[i]}
		if list {
			values = strings.Split(row[i], ";")
		}
		for _, value := range values {
			if list {
				value = strings.TrimSpace(value)
			}
			if value == "" {
				continue
			}
			if _, rest, _ := strings.Cut(value, ","); flag.Name == "label" && strings.Contains(rest, "=") {
				return n.NewServiceUser, fmt.Errorf("%s: %q: separate labels by \";\", or use "+
					"\"update --label\" for a value with \",\" and \"=\"", column, value)
			}
			if err := flag.Value.Set(value); err != nil {
				return n.NewServiceUser, fmt.Errorf("%s: %q: %w", column, value, err)
			}
		}
	}
	switch {
	case n.Name.Value == "":
		return n.NewServiceUser, errors.New("name: must not be empty")
	case n.TokenTTL.Set && !token:
		return n.NewServiceUser, errors.New("ttl: no token is issued without --secret-dir")
	}
	n.CreateToken = admin.Some(token)
	return n.body(c)
}

// inLine puts the line of the file into an error of the API about one of its service users.
func inLine(err error, path string, lines []int) error {
	var e *admin.Error
	if !errors.As(err, &e) {
		return err
	}
	for field, msg := range e.Details {
		place, ok := strings.CutPrefix(field, "users.")
		number, column, _ := strings.Cut(place, ".")
		if i, bad := strconv.Atoi(number); ok && bad == nil && i < len(lines) {
			column = strings.TrimPrefix(strings.TrimPrefix(column, "token_"), "permission_")
			return admin.NewError(e.Status, e.Code,
				fmt.Sprintf("%s: line %d: %s: %s", path, lines[i], column, msg))
		}
	}
	return err
}
