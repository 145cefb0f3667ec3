package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// AuditEvent is one record of the audit trail: who changed what, and how it
// looked before and after. Secrets and hashes never stand in it.
type AuditEvent struct {
	Seq       int64 // 1, 2, 3 … without a gap
	ID        string
	At        time.Time
	Actor     string
	Action    string // service_user.create, token.revoke, …
	Resource  string // the id of what was changed
	Before    json.RawMessage
	After     json.RawMessage
	Operation string
	PrevHash  string
	Hash      string
}

// digest chains a record to the one before it.
func (e *AuditEvent) digest() string {
	record := toJSON([]any{e.PrevHash, e.Seq, e.ID, e.At.Unix(), e.Actor, e.Action, e.Resource, string(e.Before), string(e.After), e.Operation})
	sum := sha256.Sum256([]byte(record))
	return hex.EncodeToString(sum[:])
}

// audit writes a record of what the transaction does. before and after are
// anything that JSON can hold; nil means that it did not, or does no longer,
// exist.
func (t *tx) audit(action, resource string, before, after any) error {
	e := AuditEvent{ID: t.newID("audit"), At: t.now, Actor: t.by.Name, Action: action, Resource: resource, Operation: t.by.Operation}
	if before != nil {
		e.Before = json.RawMessage(toJSON(before))
	}
	if after != nil {
		e.After = json.RawMessage(toJSON(after))
	}
	if err := t.row(`SELECT audit_seq + 1, audit_hash FROM meta`).Scan(&e.Seq, &e.PrevHash); err != nil {
		return fmt.Errorf("reading the head of the audit trail: %w", err)
	}
	e.Hash = e.digest()
	if _, err := t.exec(`
		INSERT INTO audit_events (seq, id, at, actor, action, resource_id, before, after, operation_id, prev_hash, hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		e.Seq, e.ID, e.At.Unix(), e.Actor, e.Action, e.Resource, string(e.Before), string(e.After), e.Operation, e.PrevHash, e.Hash); err != nil {
		return fmt.Errorf("writing the audit trail: %w", err)
	}
	if _, err := t.exec(`UPDATE meta SET audit_seq = $1, audit_hash = $2`, e.Seq, e.Hash); err != nil {
		return fmt.Errorf("writing the head of the audit trail: %w", err)
	}
	t.events++
	return nil
}

// AuditEvents returns up to limit records before the one numbered before (0 is
// the newest), newest first, of one resource or, with "", of all.
func (s *Store) AuditEvents(ctx context.Context, resource string, before int64, limit int) ([]AuditEvent, error) {
	return inRead(ctx, s, Local, func(t *tx) ([]AuditEvent, error) {
		rows, err := t.query(`
			SELECT seq, id, at, actor, action, resource_id, before, after, operation_id, prev_hash, hash
			FROM audit_events
			WHERE ($1 = '' OR resource_id = $1) AND ($2 = 0 OR seq < $2)
			ORDER BY seq DESC LIMIT $3`, resource, before, limit)
		if err != nil {
			return nil, fmt.Errorf("reading the audit trail: %w", err)
		}
		return collect(rows, func(rows *sql.Rows) (e AuditEvent, err error) {
			var at int64
			var was, is string
			err = rows.Scan(&e.Seq, &e.ID, &at, &e.Actor, &e.Action, &e.Resource, &was, &is, &e.Operation, &e.PrevHash, &e.Hash)
			e.At, e.Before, e.After = fromUnix(at), json.RawMessage(was), json.RawMessage(is)
			return e, err
		})
	})
}

// collect reads all rows and reports the error that ended a scan early.
func collect[T any](rows *sql.Rows, scan func(*sql.Rows) (T, error)) ([]T, error) {
	defer rows.Close()
	list := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}
