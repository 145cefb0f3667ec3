package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// AuditEvent is one record of the audit trail: the actor, the action, the resource, and the state
// of the resource before and after. It never contains secrets or hashes.
type AuditEvent struct {
	Seq       int64 // 1, 2, 3 … without a gap
	ID        string
	At        time.Time
	Actor     string
	Action    string // service_user.create, token.revoke, …
	Resource  string // the id of the changed resource
	Before    json.RawMessage
	After     json.RawMessage
	Operation string
	PrevHash  string
	Hash      string

	ActorName    string // of a service user; only if the query asks for names
	ResourceName string // likewise; for a token it is the name of its service user
}

// AuditActions lists the actions of the audit trail, those of one kind together.
var AuditActions = strings.Fields(`
	service_user.create service_user.update service_user.deactivate service_user.reactivate
	service_user.delete service_user.undelete service_user.purge
	token.create token.reissue token.update token.refresh token.rotate token.revoke token.first_use
	permission_group.create permission_group.update permission_group.delete
	permission_group.undelete permission_group.purge
	rule.add rule.remove member.add member.remove
	permission.create permission.update permission.delete permission.reorder
	store.backup store.restore refused`)

// digest returns the hash of a record: SHA-256, in hex, over the previous record's hash and every
// field of this one. It makes the trail a chain.
func (e *AuditEvent) digest() string {
	record := toJSON([]any{
		e.PrevHash, e.Seq, e.ID, e.At.Unix(), e.Actor, e.Action, e.Resource,
		string(e.Before), string(e.After), e.Operation,
	})
	sum := sha256.Sum256([]byte(record))
	return hex.EncodeToString(sum[:])
}

// audit adds a record to the audit trail. writeTrail writes it at the end of the transaction. before and
// after are any values that JSON can represent. before is nil when the action creates the resource,
// after is nil when the action removes it.
func (t *tx) audit(action, resource string, before, after any) error {
	if !slices.Contains(AuditActions, action) {
		return fmt.Errorf("%q is not among the actions of the audit trail", action)
	}
	e := AuditEvent{
		ID: t.newID("audit"), At: t.now, Actor: t.by.Name, Action: action,
		Resource: resource, Operation: t.by.Operation,
	}
	if before != nil {
		e.Before = json.RawMessage(toJSON(before))
	}
	if after != nil {
		e.After = json.RawMessage(toJSON(after))
	}
	// Changes run one after another, in all processes, so no other record can get the same number.
	e.Seq, e.PrevHash = t.head.Seq+1, t.head.Hash
	e.Hash = e.digest()
	t.head = AuditHead{e.Seq, e.Hash}
	t.events = append(t.events, e)
	return nil
}

// writeTrail writes the audit records, the new head of the trail and the revision.
func (t *tx) writeTrail() error {
	if err := t.writeAudit(t.events...); err != nil {
		return err
	}
	return t.exec("writing the head of the audit trail", `
		UPDATE meta SET revision = $1, audit_seq = $2, audit_hash = $3`, t.revision, t.head.Seq, t.head.Hash)
}

// writeAudit writes records behind the last one of the audit trail.
func (t *tx) writeAudit(events ...AuditEvent) error {
	var rows, subjects [][]any
	for _, e := range events {
		rows = append(rows, []any{e.Seq, e.ID, e.At.Unix(), e.Actor, e.Action, e.Resource, string(e.Before),
			string(e.After), e.Operation, e.PrevHash, e.Hash})
		for _, id := range e.subjects() {
			subjects = append(subjects, []any{id, e.Seq})
		}
	}
	if err := t.execRows("writing the audit trail", `
		INSERT INTO audit_events (
			seq, id, at, actor, action, resource_id, before, after, operation_id, prev_hash, hash)
		VALUES ROWS`, rows); err != nil {
		return err
	}
	// Rows may be left of a trail that was cut.
	return t.execRows("indexing the audit trail",
		`INSERT INTO audit_subjects (resource_id, seq) VALUES ROWS ON CONFLICT DO NOTHING`, subjects)
}

// logAudit writes committed audit records to the log. If somebody later cuts or rewrites the audit
// trail, a comparison with the log shows it.
func (s *Store) logAudit(events []AuditEvent) {
	for _, e := range events {
		if c := s.log.Check(zap.InfoLevel, "audit"); c != nil {
			c.Write(zap.Int64("seq", e.Seq), zap.String("hash", e.Hash), zap.String("actor", e.Actor),
				zap.String("action", e.Action), zap.String("resource", e.Resource),
				zap.String("operation_id", e.Operation))
		}
	}
}

// AuditQuery selects records of the audit trail. The zero value selects all of them.
type AuditQuery struct {
	Actor    string // the name of an [Actor], without its prefix too, or that a service user has or had; "" is any
	Action   string // such as "token.revoke", or "token." for all actions with that beginning; "" is any
	Resource string // an id, or a name that service users or groups have or had, to which records relate; "" is any
	Since    time.Time
	Until    time.Time
	Before   int64 // only records with a smaller number; 0 is all
	Limit    int
	Names    bool // whether the records have names beside ids
	Total    *int // if not nil, it gets the number of records of all pages
}

// AuditEvents lists records of the audit trail, newest first. more reports whether the limit cut
// the list. The error is [ErrInvalid] for an actor, action or resource that is unknown. Only admins
// may call it.
func (s *Store) AuditEvents(ctx context.Context, by Actor, q AuditQuery) (list []AuditEvent, more bool, err error) {
	list, err = inRead(ctx, s, by, func(t *tx) ([]AuditEvent, error) {
		if err := t.admit("read the audit trail"); err != nil {
			return nil, err
		}
		actors, resources, err := t.auditNames(q)
		if err != nil {
			return nil, err
		}
		args := params{unix(q.Since), unix(q.Until)}
		where := ` WHERE at >= $1 AND (at < $2 OR $2 = 0)`
		if q.Actor != "" {
			where += ` AND (` + madeBy("actor", args.add(q.Actor)) + ` OR actor IN (` + args.list(actors) + `))`
		}
		if q.Action != "" {
			action := args.add(q.Action)
			where += ` AND (action = ` + action + `
				OR ` + action + ` LIKE '%.' AND SUBSTR(action, 1, LENGTH(` + action + `)) = ` + action + `)`
		}
		if q.Resource != "" {
			named := args.list(append(resources, q.Resource))
			where += ` AND seq IN (SELECT seq FROM audit_events WHERE resource_id IN (` + named + `)
				UNION SELECT seq FROM audit_subjects WHERE resource_id IN (` + named + `))`
		}
		if q.Total != nil {
			err := t.row(`SELECT COUNT(*) FROM audit_events`+where, args...).Scan(q.Total)
			if err != nil {
				return nil, fmt.Errorf("counting the audit trail: %w", err)
			}
		}
		if q.Before != 0 {
			where += ` AND seq < ` + args.add(q.Before)
		}
		// One more record than the limit shows whether there is another page.
		where += ` ORDER BY seq DESC LIMIT ` + args.add(q.Limit+1)
		list, err := all(t, "reading the audit trail", scanAudit, selectAudit+where, args...)
		for i := range list {
			if e := &list[i]; q.Names && err == nil {
				if ValidID("service", e.Actor) { // the key of a permission can be "local"
					e.ActorName, err = t.nameOf(e.Actor)
				}
				if err == nil {
					e.ResourceName, err = t.nameOf(e.Resource)
				}
			}
		}
		return list, err
	})
	list, more = cut(list, q.Limit)
	return list, more, err
}

// auditNames returns the ids of the actors and the resources that a query names. It rejects values
// that the trail does not know: they would select nothing, as if nothing had happened.
func (t *tx) auditNames(q AuditQuery) (actors, resources []string, err error) {
	if q.Action != "" && !slices.ContainsFunc(AuditActions, func(a string) bool {
		return a == q.Action || strings.HasSuffix(q.Action, ".") && strings.HasPrefix(a, q.Action)
	}) {
		return nil, nil, invalid("action", "there is no action %q; the actions are %s; "+
			`"token." selects all that begin so`, q.Action, strings.Join(AuditActions, ", "))
	}
	if q.Resource != "" {
		resources, err = t.inTrail("resource_id", q.Resource, "resource_id = $1", "name a service user or "+
			"a permission group by its id or name, a token by its id, or a permission by its key")
	}
	if q.Actor != "" && !slices.Contains([]string{Local.Name, "system", Anonymous}, q.Actor) && err == nil {
		actors, err = t.inTrail("actor", q.Actor, madeBy("actor", "$1"),
			"an actor is local, human:NAME, system, anonymous, or a service user by its id or name")
	}
	return actors, resources, err
}

// madeBy returns a condition that a column with the name of an [Actor] meets if arg means the actor.
// The prefix of a person need not be written, and "local" means everybody at a local door.
func madeBy(column, arg string) string {
	return strings.NewReplacer("COLUMN", column, "ARG", arg).Replace(`(
		COLUMN = ARG
		OR ARG <> 'local' AND COLUMN IN ('human:' || ARG, 'local:' || ARG, 'local, said to be ' || ARG)
		OR ARG = 'local' AND SUBSTR(COLUMN, 1, 6) IN ('local:', 'local,'))`)
}

// inTrail returns the ids of the service users and groups that have or had a text as their id or name.
// The column of the trail may have the text, too: then records meet the condition is. advice completes
// the error for a text that is neither.
func (t *tx) inTrail(column, text, is, advice string) (ids []string, err error) {
	for _, q := range [][2]string{
		{text, `SELECT id FROM service_users WHERE id = $1 OR name = $1
		UNION SELECT id FROM permission_groups WHERE $2 = 'resource_id' AND (id = $1 OR name = $1)`},
		{text, `SELECT ` + column + ` FROM audit_events WHERE ` + is + `
		UNION SELECT resource_id FROM audit_subjects WHERE $2 = 'resource_id' AND resource_id = $1 LIMIT 1`},
		// Only the trail has the name of a purged service user, and the former name of a
		// renamed one. The JSON of their records begins with id and name.
		{`","name":` + toJSON(text) + `,`, `SELECT DISTINCT resource_id FROM audit_events
		WHERE ($2 = 'resource_id' OR SUBSTR(resource_id, 1, 8) = 'service_')
			AND '{"id":"' || resource_id || $1 IN (
				SUBSTR(before, 1, 7 + LENGTH(resource_id || $1)),
				SUBSTR(after, 1, 7 + LENGTH(resource_id || $1)))`},
	} {
		if len(ids) > 0 && idForm.MatchString(text) { // no name looks like an id
			break
		}
		found, err := all(t, "looking for the "+column, scanString, q[1], q[0], column)
		if err != nil {
			return nil, err
		}
		ids = append(ids, found...)
	}
	if len(ids) == 0 {
		err = invalid(column, "the audit trail does not know %q; %s", text, advice)
	}
	return ids, err
}

// nameOf returns the last name of a service user or group, or of the service user that a token
// belongs to. It is "" for other ids. The trail has it even after a purge.
func (t *tx) nameOf(id string) (string, error) {
	texts, err := all(t, "reading a name", scanString, `
		SELECT CASE after WHEN '' THEN before ELSE after END FROM audit_events
		WHERE resource_id = $1 AND $1 <> '' AND action <> 'refused' AND before || after <> ''
		ORDER BY seq DESC LIMIT 1`, id)
	if err != nil || len(texts) == 0 {
		return "", err
	}
	var of struct {
		Name   string `json:"name"`
		UserID string `json:"service_user_id"`
	}
	_ = json.Unmarshal([]byte(texts[0]), &of) // VerifyAudit finds a record that was damaged
	if of.UserID != "" && of.UserID != id {
		return t.nameOf(of.UserID)
	}
	return of.Name, nil
}

// hashOf returns the hash of a record of the audit trail, and "" without such a record. row is
// QueryRowContext of the database or of a transaction.
func hashOf(ctx context.Context, row func(context.Context, string, ...any) *sql.Row, seq int64) (string, error) {
	var hash string
	err := row(ctx, `SELECT hash FROM audit_events WHERE seq = $1`, seq).Scan(&hash)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("reading the audit trail: %w", err)
	}
	return hash, nil
}

const selectAudit = `
	SELECT seq, id, at, actor, action, resource_id, before, after, operation_id, prev_hash, hash
	FROM audit_events`

func scanAudit(rows *sql.Rows) (e AuditEvent, err error) {
	var at int64
	var was, is string
	err = rows.Scan(&e.Seq, &e.ID, &at, &e.Actor, &e.Action, &e.Resource, &was, &is,
		&e.Operation, &e.PrevHash, &e.Hash)
	e.At, e.Before, e.After = fromUnix(at), json.RawMessage(was), json.RawMessage(is)
	return e, err
}

// AuditHead is the last record of the audit trail. An admin who keeps a copy of it can later detect
// that records up to it were cut or rewritten: see [Store.VerifyAudit].
type AuditHead struct {
	Seq  int64
	Hash string
}

// AuditHead returns the head of the audit trail at the last read of the store.
func (s *Store) AuditHead() AuditHead {
	p := s.inForce.Load()
	return AuditHead{p.seq, p.hash}
}

// AuditReport is the result of verifying the audit trail.
type AuditReport struct {
	Head    AuditHead
	Records int64  // how many records are good, from the first on
	BadSeq  int64  // the number of the first bad record; 0 means that all are good
	Problem string // the fault of that record
}

// VerifyAudit reads the whole audit trail and follows its chain. known is a head from an earlier
// time, or the zero value. Only admins may call it. A broken trail is not an error: BadSeq and
// Problem of the report describe it.
func (s *Store) VerifyAudit(ctx context.Context, by Actor, known AuditHead) (AuditReport, error) {
	return inReadOf(ctx, s, by, s.opts.timeouts.whole, func(t *tx) (AuditReport, error) {
		if err := t.admit("verify the audit trail"); err != nil {
			return AuditReport{}, err
		}
		return t.verifyAudit(known)
	})
}

func (t *tx) verifyAudit(known AuditHead) (r AuditReport, err error) {
	if err := t.row(`SELECT audit_seq, audit_hash FROM meta`).Scan(&r.Head.Seq, &r.Head.Hash); err != nil {
		return r, fmt.Errorf("reading the head of the audit trail: %w", err)
	}
	rows, err := t.query(selectAudit + ` ORDER BY seq`)
	if err != nil {
		return r, fmt.Errorf("reading the audit trail: %w", err)
	}
	defer rows.Close()
	bad := func(seq int64, format string, args ...any) (AuditReport, error) {
		r.BadSeq, r.Problem = seq, fmt.Sprintf(format, args...)
		return r, nil
	}
	prev := ""
	for rows.Next() {
		e, err := scanAudit(rows)
		if err != nil {
			return r, fmt.Errorf("reading the audit trail: %w", err)
		}
		switch next := r.Records + 1; {
		case e.Seq != next:
			return bad(next, "the record is missing; the next one has the number %d", e.Seq)
		case e.PrevHash != prev:
			return bad(next, "it does not follow the record before it: its prev_hash is another one")
		case e.Hash != e.digest():
			return bad(next, "its content was changed: its hash is another one")
		// The chain is consistent up to here, but a forger with access to the database can
		// compute a new chain. Only the head that the caller kept elsewhere reveals that.
		case e.Seq == known.Seq && e.Hash != known.Hash:
			return bad(next, "it is not the record that was known as number %d: its hash is %s",
				known.Seq, e.Hash)
		}
		r.Records, prev = e.Seq, e.Hash
	}
	if err := rows.Err(); err != nil {
		return r, fmt.Errorf("reading the audit trail: %w", err)
	}
	switch {
	case r.Records < known.Seq:
		return bad(r.Records+1, "the trail was cut: it ends with record %d, and record %d was known",
			r.Records, known.Seq)
	case r.Head.Seq != r.Records || r.Head.Hash != prev:
		return bad(r.Records+1, "the trail was cut, or its head was changed: "+
			"it ends with record %d, and its head is record %d", r.Records, r.Head.Seq)
	}
	return r, nil
}

// collect reads all rows. If an error ends the scan early, it returns that error. The list is never
// nil.
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
