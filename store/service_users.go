package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/serviceusers/caddy-service-users/access"
)

// NewToken is what a caller may choose of a token.
type NewToken = Token

// Issued is a new token together with its secret, which is shown this once.
type Issued struct {
	Token
	Secret string
}

// CreateServiceUser makes a service user out of the fields that a caller may
// choose, a member of u.Groups, together with a first token unless token is nil.
func (s *Store) CreateServiceUser(ctx context.Context, by Actor, u ServiceUser, token *NewToken) (made ServiceUser, issued *Issued, err error) {
	err = s.change(ctx, by, func(t *tx) error {
		if u.Role == "" {
			u.Role = access.Member
		}
		if err := u.check(t.now, nil); err != nil {
			return err
		}
		if err := t.checkTaken("", u); err != nil {
			return err
		}
		u.keep(ServiceUser{ID: t.newID("service"), CreatedAt: t.now, CreatedBy: by.Name, UpdatedAt: t.now, Version: 1})
		u.Groups = sorted(u.Groups)
		if _, err := t.exec(`
			INSERT INTO service_users (id, name, display_name, description, owner, alias, active, role, teams, labels,
				allowed_ips, expires_at, created_at, created_by, updated_at, last_active_at, deleted_at, version, revision)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0, 0, $16, $17)`,
			u.ID, u.Name, u.DisplayName, u.Description, u.Owner, u.Alias, u.Active, u.Role, toJSON(u.Teams), toJSON(u.Labels),
			toJSON(u.AllowedIPs), unix(u.ExpiresAt), unix(u.CreatedAt), u.CreatedBy, unix(u.UpdatedAt), u.Version, t.revision); err != nil {
			return fmt.Errorf("writing the service user: %w", err)
		}
		for _, group := range u.Groups {
			if err := t.addMember("permission_groups", group, u.ID); err != nil {
				return err
			}
		}
		if err := t.withinScope(nil, &u); err != nil {
			return err
		}
		if err := t.audit("service_user.create", u.ID, nil, u); err != nil {
			return err
		}
		if token != nil {
			token.UserID = u.ID
			if issued, err = t.createToken(*token, nil); err != nil {
				return err
			}
		}
		made = u
		return nil
	})
	return made, issued, err
}

// ServiceUser returns the service user with this id. A deleted one is
// [ErrNotFound].
func (s *Store) ServiceUser(ctx context.Context, by Actor, id string) (ServiceUser, error) {
	return inRead(ctx, s, by, func(t *tx) (ServiceUser, error) { return t.visibleUser(id) })
}

// UserFilter chooses service users in a list.
type UserFilter struct {
	Name   string // exactly this name; "" is any
	Before string // an id: only those made before it, whether or not it still exists
	Limit  int    // at most so many; at least 1
}

// ServiceUsers lists service users, newest first. more reports whether others
// follow behind the last one.
func (s *Store) ServiceUsers(ctx context.Context, by Actor, f UserFilter) (list []ServiceUser, more bool, err error) {
	list, err = inRead(ctx, s, by, func(t *tx) ([]ServiceUser, error) {
		where, args := `deleted_at = 0 AND ($1 = '' OR id < $1) AND ($2 = '' OR name = $2)`, []any{f.Before, f.Name, f.Limit + 1}
		if by.Scope != nil {
			// Team names hold no quotes, so a quoted one is found whole. LIKE
			// would do, but for SQLite it takes "Finance" for "finance".
			clause := "FALSE"
			for _, team := range by.Scope.Teams {
				args = append(args, toJSON(team))
				clause += fmt.Sprintf(` OR REPLACE(teams, $%d, '') <> teams`, len(args))
			}
			where += " AND (" + clause + ")"
		}
		rows, err := t.query(selectUser+` WHERE `+where+` ORDER BY id DESC LIMIT $3`, args...)
		if err != nil {
			return nil, err
		}
		list, err := collect(rows, scanUser)
		for i := range list {
			if err == nil {
				list[i].Groups, err = t.groupsOf(list[i].ID)
			}
		}
		return list, err
	})
	if len(list) > f.Limit {
		list, more = list[:f.Limit], true
	}
	return list, more, err
}

// UpdateServiceUser changes the fields of a service user that a caller may
// choose. version guards against a lost update: unless it is 0 it must be the
// present one, or the answer is [ErrChanged].
func (s *Store) UpdateServiceUser(ctx context.Context, by Actor, id string, version int64, edit func(*ServiceUser) error) (ServiceUser, error) {
	var u ServiceUser
	err := s.change(ctx, by, func(t *tx) (err error) {
		before, err := t.visibleUser(id)
		if err != nil {
			return err
		}
		if err := checkVersion(before.Version, version); err != nil {
			return err
		}
		u = before.clone()
		if err := edit(&u); err != nil {
			return err
		}
		u.keep(before)
		if err := u.check(t.now, &before); err != nil {
			return err
		}
		if err := t.checkTaken(id, u); err != nil {
			return err
		}
		if u.Groups = sorted(u.Groups); !slices.Equal(u.Groups, before.Groups) {
			if err := t.setGroups(id, before.Groups, u.Groups); err != nil {
				return err
			}
		}
		if toJSON(u) == toJSON(before) {
			return nil // nothing to do, nothing to tell
		}
		u.UpdatedAt, u.Version = t.now, before.Version+1
		if _, err := t.exec(`
			UPDATE service_users SET name = $2, display_name = $3, description = $4, owner = $5, alias = $6, active = $7,
				role = $8, teams = $9, labels = $10, allowed_ips = $11, expires_at = $12, updated_at = $13, version = $14, revision = $15
			WHERE id = $1`,
			id, u.Name, u.DisplayName, u.Description, u.Owner, u.Alias, u.Active,
			u.Role, toJSON(u.Teams), toJSON(u.Labels), toJSON(u.AllowedIPs), unix(u.ExpiresAt), unix(u.UpdatedAt), u.Version, t.revision); err != nil {
			return fmt.Errorf("writing the service user: %w", err)
		}
		if err := t.withinScope(&before, &u); err != nil {
			return err
		}
		return t.audit(updateAction(before.Active, u.Active), id, before, u)
	})
	return u, err
}

func updateAction(before, after bool) string {
	switch {
	case before && !after:
		return "service_user.deactivate"
	case !before && after:
		return "service_user.reactivate"
	default:
		return "service_user.update"
	}
}

// DeleteServiceUser deletes a service user at once. A tombstone keeps its id
// from being used again and the audit trail readable.
func (s *Store) DeleteServiceUser(ctx context.Context, by Actor, id string, version int64) error {
	return s.change(ctx, by, func(t *tx) error {
		before, err := t.visibleUser(id)
		if err != nil {
			return err
		}
		if err := checkVersion(before.Version, version); err != nil {
			return err
		}
		if err := t.withinScope(&before, nil); err != nil {
			return err
		}
		if _, err := t.exec(`
			UPDATE service_users SET deleted_at = $2, updated_at = $2, active = FALSE, version = version + 1, revision = $3
			WHERE id = $1`, id, t.now.Unix(), t.revision); err != nil {
			return fmt.Errorf("deleting the service user: %w", err)
		}
		return t.audit("service_user.delete", id, before, nil)
	})
}

const selectUser = `
	SELECT id, name, display_name, description, owner, alias, active, role, teams, labels, allowed_ips,
		expires_at, created_at, created_by, updated_at, last_active_at, deleted_at, version
	FROM service_users`

func scanUser(rows *sql.Rows) (u ServiceUser, err error) {
	var teams, labels, allowed string
	var expires, created, updated, lastActive, deleted int64
	if err := rows.Scan(&u.ID, &u.Name, &u.DisplayName, &u.Description, &u.Owner, &u.Alias, &u.Active, &u.Role, &teams, &labels, &allowed,
		&expires, &created, &u.CreatedBy, &updated, &lastActive, &deleted, &u.Version); err != nil {
		return u, err
	}
	u.ExpiresAt, u.CreatedAt, u.UpdatedAt = fromUnix(expires), fromUnix(created), fromUnix(updated)
	u.LastActiveAt, u.DeletedAt = fromUnix(lastActive), fromUnix(deleted)
	return u, errors.Join(fromJSON(teams, &u.Teams), fromJSON(labels, &u.Labels), fromJSON(allowed, &u.AllowedIPs))
}

// user reads a service user that is not deleted.
func (t *tx) user(id string) (ServiceUser, error) {
	rows, err := t.query(selectUser+` WHERE id = $1 AND deleted_at = 0`, id)
	if err != nil {
		return ServiceUser{}, fmt.Errorf("reading the service user: %w", err)
	}
	list, err := collect(rows, scanUser)
	switch {
	case err != nil:
		return ServiceUser{}, fmt.Errorf("reading the service user: %w", err)
	case len(list) == 0:
		return ServiceUser{}, notFound("service user", id)
	}
	u := list[0]
	u.Groups, err = t.groupsOf(id)
	return u, err
}

// visibleUser reads a service user that the actor may see. What it may not see
// does not exist for it.
func (t *tx) visibleUser(id string) (ServiceUser, error) {
	u, err := t.user(id)
	if err == nil && t.by.Scope != nil && !t.by.Scope.Shares(u.Teams) {
		return ServiceUser{}, notFound("service user", id)
	}
	return u, err
}

// groupsOf lists the groups that name a service user, sorted.
func (t *tx) groupsOf(id string) ([]string, error) {
	rows, err := t.query(`SELECT group_id FROM members WHERE service_user_id = $1 ORDER BY group_id`, id)
	if err != nil {
		return nil, fmt.Errorf("reading permission groups: %w", err)
	}
	return collect(rows, scanString)
}

func scanString(rows *sql.Rows) (s string, err error) {
	err = rows.Scan(&s)
	return s, err
}

// setGroups makes a service user a member of exactly these groups.
func (t *tx) setGroups(id string, before, after []string) error {
	for _, group := range before {
		if !slices.Contains(after, group) {
			if _, err := t.exec(`DELETE FROM members WHERE group_id = $1 AND service_user_id = $2`, group, id); err != nil {
				return fmt.Errorf("removing a member: %w", err)
			}
		}
	}
	for _, group := range after {
		if !slices.Contains(before, group) {
			if err := t.addMember("permission_groups", group, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkTaken reports a name or alias that another service user has.
func (t *tx) checkTaken(id string, u ServiceUser) error {
	for _, f := range []struct{ field, value, query string }{
		{"name", u.Name, `SELECT id FROM service_users WHERE name = $1 AND deleted_at = 0 AND id <> $2`},
		{"alias", u.Alias, `SELECT id FROM service_users WHERE alias = $1 AND alias <> '' AND deleted_at = 0 AND id <> $2`},
	} {
		var other string
		switch err := t.row(f.query, f.value, id).Scan(&other); {
		case err == nil:
			return conflict(f.field, "%q is taken by another service user; choose another", f.value)
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("looking for the %s: %w", f.field, err)
		}
	}
	return nil
}

// touchUser tells the directory that something of a service user changed.
func (t *tx) touchUser(id string) error {
	if _, err := t.exec(`UPDATE service_users SET revision = $2 WHERE id = $1`, id, t.revision); err != nil {
		return fmt.Errorf("counting the revision: %w", err)
	}
	return nil
}

func checkVersion(present, wanted int64) error {
	if wanted != 0 && wanted != present {
		return &Error{Kind: ErrChanged, Msg: "it was changed since it was read; read it again and repeat the change"}
	}
	return nil
}

// inRead runs f in one read transaction, so that what it reads belongs together.
func inRead[T any](ctx context.Context, s *Store, by Actor, f func(*tx) (T, error)) (v T, err error) {
	if err := s.inPlace(); err != nil {
		return v, err
	}
	sqlTx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return v, fmt.Errorf("reading the store: %w", err)
	}
	defer sqlTx.Rollback()
	return f(&tx{Tx: sqlTx, store: s, ctx: ctx, by: by, now: s.now().UTC(), directory: s.Directory()})
}
