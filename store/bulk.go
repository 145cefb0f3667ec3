package store

import (
	"cmp"
	"context"

	"github.com/serviceusers/caddy-service-users/access"
)

// MaxBulk is the largest number of service users that one bulk may change.
const MaxBulk = 1000

// UserChange is a change of one service user in a transaction: [CreateUser], [UpdateUser],
// [DeleteUser], [UndeleteUser], [SetMember] or [RefreshTokens]. version is as in
// [Store.UpdateServiceUser]. Without a change, before and after have the same Version.
type UserChange func(t *tx, id string, version int64) (before, after ServiceUser, err error)

// changeUser makes one change in a transaction of its own.
func (s *Store) changeUser(
	ctx context.Context, by Actor, id string, version int64, change UserChange,
) (u ServiceUser, err error) {
	err = s.change(ctx, by, func(t *tx) error {
		_, u, err = change(t, id, version)
		return err
	})
	s.withActivity(&u)
	return u, err
}

// Bulk is several changes in one transaction: all of them take effect, or none.
type Bulk struct {
	Entries []Entry
	// DryRun undoes the changes at the end. The results and the errors are those of the
	// changes.
	DryRun bool
	// Directories, if not nil, gets the directory before the changes and the one after them, which
	// a dry run does not put in force.
	Directories func(before, after *access.Directory)
}

// Entry is one change of a bulk. Its arguments are those of a [UserChange].
type Entry struct {
	Part    string // the part of the request that an error names
	ID      string
	Version int64
	Change  UserChange
}

// Changed is the effect of an [Entry]. Before is the zero value for a new service user.
type Changed struct{ Before, After ServiceUser }

// ChangeUsers makes the changes of a bulk, in their order.
func (s *Store) ChangeUsers(ctx context.Context, by Actor, b Bulk) (list []Changed, err error) {
	var work *tx
	err = s.change(ctx, by, func(t *tx) error {
		work, t.dryRun, list = t, b.DryRun, nil
		for _, e := range b.Entries {
			before, after, err := e.Change(t, e.ID, e.Version)
			if err != nil {
				return within(err, e.Part)
			}
			s.withActivity(&before)
			list = append(list, Changed{before, after})
		}
		// The service users of a filter may be others than those of the first request.
		if len(t.again) > 0 {
			return conflict("", "the request was answered before, for service users that are not chosen "+
				"any more, such as %s; send the request with a new key", t.again[0].UserID)
		}
		return nil
	})
	if err == nil && b.Directories != nil {
		b.Directories(work.directory, cmp.Or(work.next, work.directory))
	}
	return list, err
}

// UsersWhere returns service users, or with deleted tombstones, that meet a filter: all, or MaxBulk
// + 1 of them if there are more. They are as the filter gets them.
func (s *Store) UsersWhere(
	ctx context.Context, by Actor, deleted bool, filter func(*ServiceUser) (bool, error),
) (found []ServiceUser, err error) {
	q := UserQuery{Deleted: deleted, Filter: filter, Limit: MaxBulk + 1}
	for {
		some, next, err := s.ServiceUsers(ctx, by, q)
		found = append(found, some...)
		if err != nil || next == "" || len(found) > MaxBulk {
			return found, err
		}
		q.After = next
	}
}
