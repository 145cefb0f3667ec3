package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// Issued is a new token with its secret, which is shown only this once.
type Issued struct {
	Token
	Secret string
}

// CreateServiceUser creates a service user from the fields that a caller may choose. It becomes a
// member of u.Groups. Unless token is nil, it gets a first token from the fields of token that a
// caller may choose.
func (s *Store) CreateServiceUser(
	ctx context.Context, by Actor, u ServiceUser, token *Token,
) (made ServiceUser, issued *Issued, err error) {
	if token != nil {
		issued = new(Issued)
	}
	made, err = s.changeUser(ctx, by, "", 0, CreateUser(u, token, issued))
	return made, issued, err
}

// CreateUser returns a change that does what [Store.CreateServiceUser] does. It writes the first token
// to issued.
func CreateUser(u ServiceUser, token *Token, issued *Issued) UserChange {
	return func(t *tx, _ string, _ int64) (before, made ServiceUser, err error) {
		if t.again != nil {
			return t.recreate(u.Name, token, issued)
		}
		if u.Role == "" {
			u.Role = access.Member
		}
		if err := u.check(t.now, nil); err != nil {
			return before, made, err
		}
		if err := t.checkTaken("", u, ""); err != nil {
			return before, made, err
		}
		u.copyManagedFields(ServiceUser{
			Profile:   access.Profile{ID: t.newID("service")},
			CreatedAt: t.now, CreatedBy: t.by.Name, UpdatedAt: t.now, Version: 1,
		})
		u.Groups = sorted(u.Groups)
		if err := t.insert("service user", "service_users", u.columns(), t.derived(u)...); err != nil {
			return before, made, err
		}
		for _, group := range u.Groups {
			if err := t.addMember("permission_groups", group, u.ID); err != nil {
				return before, made, err
			}
		}
		// The check needs the memberships, so it follows them. Its error rolls everything
		// back.
		if err := t.withinScope(nil, &u); err != nil {
			return before, made, err
		}
		if err := t.audit("service_user.create", u.ID, nil, u); err != nil {
			return before, made, err
		}
		if token != nil {
			token.UserID = u.ID
			first, err := t.createToken(*token, nil)
			if err != nil {
				return before, made, err
			}
			*issued = *first
		}
		return before, u, nil
	}
}

// recreate answers a repeated request that created a service user, from the tokens that the request
// issued, in their order.
func (t *tx) recreate(name string, token *Token, issued *Issued) (before, made ServiceUser, err error) {
	var id string
	if token != nil {
		*issued, t.again = *t.again[0], t.again[1:]
		id = issued.UserID
		made, err = t.user(id, false)
		return before, made, err
	}
	// The key has only the ids of tokens. Another service user may have the name by now.
	err = t.row(`SELECT id FROM service_users WHERE name = $1 AND deleted_at = 0 AND created_by = $2`,
		name, t.by.Name).Scan(&id)
	if err == nil {
		made, err = t.visibleUser(id, false)
	}
	if errors.Is(err, sql.ErrNoRows) || errors.Is(err, ErrNotFound) {
		err = conflict("", "the request was answered before, and its service user %q is gone; "+
			"send the request with a new key", name)
	}
	return before, made, err
}

// ServiceUser returns the service user with this id. With deleted it also returns a tombstone;
// otherwise a deleted service user is [ErrNotFound].
func (s *Store) ServiceUser(ctx context.Context, by Actor, id string, deleted bool) (ServiceUser, error) {
	return inReadWithUse(ctx, s, by, func(t *tx) (ServiceUser, error) {
		u, err := t.visibleUser(id, deleted)
		s.withActivity(&u)
		return u, err
	})
}

// UpdateServiceUser changes the fields of a service user that a caller may choose. version prevents
// lost updates: unless it is 0 it must be the present version, or the error is [ErrChanged].
func (s *Store) UpdateServiceUser(
	ctx context.Context, by Actor, id string, version int64, edit func(*ServiceUser) error,
) (ServiceUser, error) {
	return s.changeUser(ctx, by, id, version, UpdateUser(edit))
}

// UpdateUser returns a change that edits the fields of a service user that a caller may choose.
func UpdateUser(edit func(*ServiceUser) error) UserChange {
	return func(t *tx, id string, version int64) (before, u ServiceUser, err error) {
		before, err = t.visibleUser(id, false)
		if err := cmp.Or(err, checkVersion(before.Version, version)); err != nil {
			return before, u, err
		}
		u = before.clone()
		if err := edit(&u); err != nil {
			return before, u, err
		}
		u.copyManagedFields(before)
		if err := u.check(t.now, &before); err != nil {
			return before, u, err
		}
		if err := t.checkTaken(id, u, before.Name); err != nil {
			return before, u, err
		}
		if u.Groups = sorted(u.Groups); !slices.Equal(u.Groups, before.Groups) {
			if err := t.setGroups(id, before.Groups, u.Groups); err != nil {
				return before, u, err
			}
		}
		if toJSON(u) == toJSON(before) {
			return before, u, nil // no change, so no audit record and no revision
		}
		if err := t.writeUser(&u); err != nil {
			return before, u, err
		}
		if err := t.withinScope(&before, &u); err != nil {
			return before, u, err
		}
		return before, u, t.audit(updateAction(before.Active, u.Active), id, before, u)
	}
}

// writeUser writes the row of a service user after a change, with a new version.
func (t *tx) writeUser(u *ServiceUser) error {
	u.UpdatedAt, u.Version = t.now, u.Version+1
	return t.update("service user", "service_users", u.ID, u.columns(), t.derived(*u)...)
}

// derived returns the values of the columns that are not fields of a service user.
func (t *tx) derived(u ServiceUser) []column {
	return []column{{name: "revision", field: t.revision}, {name: "name_key", field: nameKey(u.Name)}}
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

// DeleteServiceUser deletes a service user at once. A tombstone keeps its id from being used again
// and the audit trail readable; within Options.Retention the service user can be brought back.
// version is as in [Store.UpdateServiceUser]. If unused is not 0 and the service user was active
// within that time, it stays, and the error is an [InUse].
func (s *Store) DeleteServiceUser(ctx context.Context, by Actor, id string, version int64, unused time.Duration) error {
	_, err := s.changeUser(ctx, by, id, version, DeleteUser(unused))
	return err
}

// DeleteUser returns a change that does what [Store.DeleteServiceUser] does.
func DeleteUser(unused time.Duration) UserChange {
	return func(t *tx, id string, version int64) (before, after ServiceUser, err error) {
		before, err = t.visibleUser(id, false)
		if err := cmp.Or(err, checkVersion(before.Version, version)); err != nil {
			return before, after, err
		}
		if err := t.withinScope(&before, nil); err != nil {
			return before, after, err
		}
		if unused > 0 {
			if err := t.checkUnused(id, unused); err != nil {
				return before, after, err
			}
		}
		after = before
		after.DeletedAt, after.Active = t.now, false
		after.DeletedBy, after.WasActive = t.by.Name, before.Active
		if err := t.writeUser(&after); err != nil {
			return before, after, err
		}
		return before, after, t.audit("service_user.delete", id, before, nil)
	}
}

// InUse is the error that keeps a service user from being deleted. It describes the clients that
// the deletion would break.
type InUse struct {
	Part       string // the part of a bulk that the error is about, or ""
	LastUsedAt time.Time
	Addresses  []string // of its requests, the latest first
	Rules      []string // that allowed its requests, the latest first
}

func (e *InUse) Error() string {
	part := e.Part
	if part != "" {
		part += ": "
	}
	return part + fmt.Sprintf("the service user was used at %s from %s; "+
		"deactivate it first, or delete it without the condition",
		e.LastUsedAt.Format(time.RFC3339), strings.Join(e.Addresses, ", "))
}

// Unwrap makes an InUse an [ErrConflict].
func (e *InUse) Unwrap() error { return &Error{ErrConflict, "unless_used_within", e.Error()} }

func (t *tx) checkUnused(id string, within time.Duration) error {
	// The uses of all tokens count, also of those that have ended.
	tokens, err := all(t, "reading tokens", scanToken, selectToken+` WHERE service_user_id = $1`, id)
	if err != nil {
		return err
	}
	var all usage
	for _, k := range tokens {
		t.store.withUse(id, &k)
		all.merge(usage{last: unix(k.LastUsedAt), from: k.UsedFrom, rules: k.UsedRules})
	}
	if last := fromUnix(all.last); !last.IsZero() && last.After(t.now.Add(-within)) {
		return &InUse{LastUsedAt: last, Addresses: byNewest(all.from), Rules: byNewest(all.rules)}
	}
	return nil
}

// byNewest lists the keys of a map of times, the latest first.
func byNewest(m map[string]int64) []string {
	return slices.SortedFunc(maps.Keys(m),
		func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), strings.Compare(a, b)) })
}

// UndeleteServiceUser brings a deleted service user back, inactive, with its tokens and groups as
// they were. Only admins may call it.
func (s *Store) UndeleteServiceUser(ctx context.Context, by Actor, id string) (ServiceUser, error) {
	return s.changeUser(ctx, by, id, 0, UndeleteUser)
}

// UndeleteUser is a [UserChange] that does what [Store.UndeleteServiceUser] does.
func UndeleteUser(t *tx, id string, version int64) (before, u ServiceUser, err error) {
	if err := t.admit("bring a service user back"); err != nil {
		return before, u, err
	}
	before, err = t.visibleUser(id, true)
	if err := cmp.Or(err, checkVersion(before.Version, version)); err != nil {
		return before, u, err
	}
	if err := t.checkRestorable("service user", before.Name, before.DeletedAt); err != nil {
		return before, u, err
	}
	// Another service user may have taken the name or the alias since the deletion.
	if err := t.checkTaken(id, before, ""); err != nil {
		return before, u, err
	}
	u = before
	u.DeletedAt, u.DeletedBy, u.Active, u.WasActive = time.Time{}, "", false, false
	if err := t.writeUser(&u); err != nil {
		return before, u, err
	}
	return before, u, t.audit("service_user.undelete", id, before, u)
}

// checkRestorable rejects an undelete, with an [ErrConflict], if the record is not deleted or the
// retention is over. name is that of the record; kind names its kind in the error.
func (t *tx) checkRestorable(kind, name string, deleted time.Time) error {
	switch {
	case deleted.IsZero():
		return conflict("", "the %s is not deleted", kind)
	// purge empties the name.
	case name == "" || !t.now.Before(deleted.Add(t.store.opts.Retention)):
		return conflict("", "the %s was deleted too long ago, at %s, and cannot be brought back",
			kind, deleted.Format(time.RFC3339))
	}
	return nil
}

// purge removes personal data, tokens and memberships of tombstones older than Options.Retention,
// and all contents of deleted groups. Their ids stay in the tables, so that no id is used again, and
// so does the audit trail. It also removes refusals that are as old.
func (s *Store) purge(ctx context.Context) error {
	if err := s.aside(ctx, (*tx).retireRefusals); err != nil {
		return fmt.Errorf("removing old refusals: %w", err)
	}
	for {
		// Each round purges up to 100 tombstones, so that other changes get their turn in
		// between.
		cutoff := s.Now().Add(-s.opts.Retention).Unix()
		tombstones := func(t *tx) ([]string, error) {
			return all(t, "looking for tombstones", scanString, `
				SELECT id FROM service_users WHERE deleted_at > 0 AND deleted_at <= $1 AND name <> ''
				UNION ALL
				SELECT id FROM permission_groups WHERE deleted_at > 0 AND deleted_at <= $1 AND name <> ''
				ORDER BY id LIMIT 100`, cutoff)
		}
		ids, err := inRead(ctx, s, Local, tombstones)
		if err != nil || len(ids) == 0 {
			return err
		}
		err = s.change(ctx, Actor{Name: "system", Operation: NewOperationID()}, func(t *tx) error {
			ids, err := tombstones(t) // another node may have purged some since
			if err != nil {
				return err
			}
			for _, id := range ids {
				purge := t.purgeUser
				if ValidID("group", id) {
					purge = t.purgeGroup
				}
				if err := purge(id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("purging tombstones: %w", err)
		}
	}
}

func (t *tx) purgeUser(id string) error {
	u, err := t.user(id, true)
	if err != nil {
		return err
	}
	for _, text := range u.texts() {
		*text = ""
	}
	u.Teams, u.Labels, u.AllowedIPs, u.Version = []string{}, map[string]string{}, []string{}, u.Version+1
	// The row keeps its revision: the directory contains no deleted service users.
	if err := t.update("service user", "service_users", id, u.columns(),
		column{name: "name_key", field: ""}); err != nil {
		return err
	}
	if err := t.execAll("purging the service user", id, `DELETE FROM members WHERE service_user_id = $1`,
		`DELETE FROM tokens WHERE service_user_id = $1`, `DELETE FROM refusals WHERE service_user_id = $1`); err != nil {
		return err
	}
	return t.audit("service_user.purge", id, nil, nil)
}

// user reads a service user. With deleted it also returns a tombstone.
func (t *tx) user(id string, deleted bool) (ServiceUser, error) {
	u, err := one(t, scanUser, "service user", id, selectUser+` WHERE id = $1`, id)
	switch {
	case err != nil:
		return u, err
	case !deleted && !u.DeletedAt.IsZero():
		return ServiceUser{}, notFound("service user", id)
	}
	u.Groups, err = t.groupsOf(id)
	return u, err
}

// visibleUser reads a service user if the actor may see it, and returns [ErrNotFound] otherwise. With
// deleted it also returns a tombstone.
func (t *tx) visibleUser(id string, deleted bool) (ServiceUser, error) {
	u, err := t.user(id, deleted)
	if err == nil && t.by.Scope != nil && !t.by.Scope.Shares(u.Teams) {
		return ServiceUser{}, notFound("service user", id)
	}
	return u, err
}

// groupsOf returns the ids of the groups that name a service user as a member, sorted.
func (t *tx) groupsOf(id string) ([]string, error) {
	return all(t, "reading permission groups", scanString,
		`SELECT group_id FROM members WHERE service_user_id = $1 ORDER BY group_id`, id)
}

func scanString(rows *sql.Rows) (s string, err error) {
	err = rows.Scan(&s)
	return s, err
}

func scanPair(rows *sql.Rows) (v [2]string, err error) {
	err = rows.Scan(&v[0], &v[1])
	return v, err
}

// setGroups makes a service user a member of exactly these groups.
func (t *tx) setGroups(id string, before, after []string) error {
	for _, group := range before {
		if !slices.Contains(after, group) {
			if err := t.exec("removing a member",
				`DELETE FROM members WHERE group_id = $1 AND service_user_id = $2`,
				group, id); err != nil {
				return err
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

// checkTaken returns an [ErrTaken] for a name that reads like that of another service user, or
// for an alias that another one has. kept is the present name of the service user; it is not
// checked, because names from older versions may read alike. Changes run one after another, so no
// other change can take the name before this one commits.
func (t *tx) checkTaken(id string, u ServiceUser, kept string) error {
	for _, f := range []struct{ field, value, key, query string }{
		// The order puts an equal spelling before others that read alike, so that the error
		// names it.
		{"name", u.Name, nameKey(u.Name), `
			SELECT name FROM service_users
			WHERE name_key = $1 AND deleted_at = 0 AND id <> $2 ORDER BY name <> $3`},
		{"alias", u.Alias, u.Alias, `
			SELECT alias FROM service_users
			WHERE alias = $1 AND alias <> '' AND deleted_at = 0 AND id <> $2 ORDER BY alias <> $3`},
	} {
		if f.field == "name" && u.Name == kept {
			continue
		}
		var taken string
		switch err := t.row(f.query, f.key, id, f.value).Scan(&taken); {
		case err == nil && taken != f.value:
			return &Error{ErrTaken, f.field, fmt.Sprintf(
				"%q is taken by another service user, in a spelling that reads alike; choose another",
				f.value)}
		case err == nil:
			return &Error{ErrTaken, f.field,
				fmt.Sprintf("%q is taken by another service user; choose another", f.value)}
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("looking for the %s: %w", f.field, err)
		}
	}
	return nil
}

// touchUser marks a service user as changed in this revision, so that the directory reads it again.
func (t *tx) touchUser(id string) error {
	return t.exec("counting the revision", `UPDATE service_users SET revision = $2 WHERE id = $1`, id, t.revision)
}

func checkVersion(present, wanted int64) error {
	if wanted != 0 && wanted != present {
		return &Error{Kind: ErrChanged, Msg: "it was changed since it was read; " +
			"read it again and repeat the change"}
	}
	return nil
}

// inRead runs f in one read transaction, so that all its queries see the same state.
func inRead[T any](ctx context.Context, s *Store, by Actor, f func(*tx) (T, error)) (T, error) {
	return inReadOf(ctx, s, by, s.opts.timeouts.change, f)
}

// inReadOf is like inRead, with the longest time that the transaction takes.
func inReadOf[T any](
	ctx context.Context, s *Store, by Actor, longest time.Duration, f func(*tx) (T, error),
) (v T, err error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	if err := s.inPlace(); err != nil {
		return v, err
	}
	sqlTx, err := s.read.BeginTx(ctx, snapshot)
	if err != nil {
		return v, fmt.Errorf("reading the store: %w", err)
	}
	defer func() {
		sqlTx.Rollback()
		if isIO(err) { // the connection may have a file open that is no longer in its place
			dropIdle(s.read)
		}
	}()
	return f(&tx{Tx: sqlTx, store: s, ctx: ctx, by: by, now: s.Now().UTC(), directory: s.Directory()})
}
