package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"
)

// The events that Options.Notify gets besides those of the audit trail, whose names are the actions.
const (
	EventDegraded  = "store.degraded"  // the store cannot be read, or the directory is too old
	EventRecovered = "store.recovered" // the end of that
)

// notifyAudit passes committed audit records on, with the names that their fields have in the API.
func (s *Store) notifyAudit(events []AuditEvent) {
	for _, e := range events {
		s.opts.Notify(e.Action, map[string]any{
			"seq": e.Seq, "id": e.ID, "created_at": e.At.Format(time.RFC3339), "actor": e.Actor, "action": e.Action,
			"resource_id": e.Resource, "before": eventJSON(e.Before), "after": eventJSON(e.After),
			"operation_id": e.Operation, "prev_hash": e.PrevHash, "hash": e.Hash,
		})
	}
}

// eventJSON is a value for JSON documents and, as its text, for placeholders.
type eventJSON json.RawMessage

// String implements [fmt.Stringer].
func (t eventJSON) String() string { return string(t) }

// MarshalJSON implements [json.Marshaler].
func (t eventJSON) MarshalJSON() ([]byte, error) { return json.RawMessage(t).MarshalJSON() }

// notifyHealth reports the first fault of the store, and its end.
func (s *Store) notifyHealth() {
	fault := s.Fault()
	if fault == "" && s.stale.Load() {
		fault = "the store was not readable for longer than max_staleness"
	}
	if s.degraded.Swap(fault != "") == (fault != "") {
		return
	}
	event := EventRecovered
	if fault != "" {
		event = EventDegraded
	}
	s.opts.Notify(event, s.HealthEvent(fault))
}

// HealthEvent returns the data of EventDegraded with this fault, or of EventRecovered without one.
func (s *Store) HealthEvent(fault string) map[string]any {
	source, asOf := s.Source()
	return map[string]any{
		"store": s.path, "node": s.opts.NodeName, "revision": s.Directory().Revision(), "source": source,
		"as_of": asOf.UTC().Format(time.RFC3339), "error": fault,
	}
}

// Expiring is a token that ends soon, with its service user.
type Expiring struct {
	TokenID, UserID string
	Name, Owner     string // of the service user
	ExpiresAt       time.Time
	Days            int64 // 14, 7 or 1: the end is at most that many days ahead
}

// claimsAtOnce is how many tokens ClaimExpiring returns at most for each of the times.
const claimsAtOnce = 500

// ClaimExpiring returns tokens whose end is at most 14, 7 or 1 days ahead. All calls in all processes
// together return a token once for each of these times, even if the caller then fails to report it. After a
// time when nobody called, only the nearest time counts. A time before the creation of the token does not, and
// neither does a token that is replaced, or whose service user is inactive. A read-only node has none. The list beside an
// error has the tokens that were claimed before it.
func (s *Store) ClaimExpiring(ctx context.Context) (list []Expiring, err error) {
	if s.opts.ReadOnly {
		return nil, nil
	}
	err = s.safely("claiming the tokens that end soon", func() error {
		after := int64(0)
		for _, days := range []int64{1, 7, 14} {
			some, err := s.claim(ctx, after, days)
			if err != nil {
				return err
			}
			list, after = append(list, some...), days
		}
		return nil
	})
	for i := range list {
		if u, ok := s.Directory().User(list[i].UserID); ok {
			list[i].Name, list[i].Owner = u.Name, u.Owner
		}
	}
	return list, err
}

// claim claims tokens whose end is more than a number of days ahead, and at most another one.
func (s *Store) claim(ctx context.Context, after, days int64) (list []Expiring, err error) {
	scan := func(rows *sql.Rows) (e Expiring, err error) {
		e.Days = days
		err = rows.Scan(&e.TokenID, &e.UserID, (*unixTime)(&e.ExpiresAt))
		return e, err
	}
	const due = `expires_at > $1 AND expires_at <= $2 AND created_at < expires_at - $3
		AND (notice_end <> expires_at OR notice_days > $4) AND revoked_at = 0 AND retires_at = 0
		AND EXISTS (SELECT 1 FROM service_users u WHERE u.id = service_user_id AND deleted_at = 0 AND active)`
	const day = 24 * 60 * 60
	now := s.Now().Unix()
	args := params{now + after*day, now + days*day, days * day, days}
	// The search may pass a million tokens, so it keeps no change waiting. "expires_at > 0" is there for the index
	// tokens_notices.
	found, err := inRead(ctx, s, Local, func(t *tx) ([]Expiring, error) {
		return all(t, "looking for tokens that end soon", scan, `SELECT id, service_user_id, expires_at FROM tokens
			WHERE expires_at > 0 AND `+due+` ORDER BY expires_at LIMIT $5`, append(args, claimsAtOnce)...)
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	ids := make([]string, len(found))
	for i, e := range found {
		ids[i] = e.TokenID
	}
	these := args.list(ids)
	err = s.aside(ctx, func(t *tx) error {
		list, err = all(t, "claiming tokens that end soon", scan, `UPDATE tokens
			SET notice_end = expires_at, notice_days = $4
			WHERE id IN (SELECT id FROM tokens WHERE id IN (`+these+`) AND `+due+t.store.lockRows()+`)
			RETURNING id, service_user_id, expires_at`, args...)
		if err != nil {
			return err
		}
		return t.Commit()
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}
