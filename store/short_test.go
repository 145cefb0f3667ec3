package store

import (
	"context"
	"time"
)

// Short forms of calls whose last arguments most tests leave empty.

func (s *Store) readUser(ctx context.Context, by Actor, id string) (ServiceUser, error) {
	return s.ServiceUser(ctx, by, id, false)
}

func (s *Store) deleteUser(ctx context.Context, by Actor, id string, version int64) error {
	return s.DeleteServiceUser(ctx, by, id, version, 0)
}

func (s *Store) refreshOf(ctx context.Context, by Actor, userID, id string, grace time.Duration) (*Issued, error) {
	issued, _, err := s.RefreshToken(ctx, by, userID, id, 0, grace, 0)
	return issued, err
}

func (s *Store) revoke(ctx context.Context, by Actor, userID, id string) error {
	return s.RevokeToken(ctx, by, userID, id, 0)
}

// userPage is a page in the default order.
type userPage struct {
	Name, Before string
	Limit        int
}

func (s *Store) page(ctx context.Context, by Actor, p userPage) ([]ServiceUser, bool, error) {
	q := UserQuery{Name: p.Name, Limit: p.Limit}
	if p.Before != "" {
		q.After = PlaceOf("", p.Before)
	}
	list, next, err := s.ServiceUsers(ctx, by, q)
	return list, next != "", err
}

// trail returns up to limit records of the audit trail, of one resource or, with
// "", of all, before the one of a number or, with 0, from the newest on.
func (s *Store) trail(ctx context.Context, resource string, before int64, limit int) ([]AuditEvent, error) {
	list, _, err := s.AuditEvents(ctx, Local, AuditQuery{Resource: resource, Before: before, Limit: limit})
	return list, err
}
