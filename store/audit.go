package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
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
	t.events = append(t.events, e)
	return nil
}

// tell writes what was committed to the log, so that a trail that is cut or
// written anew later can be told from the log.
func (s *Store) tell(events []AuditEvent) {
	for _, e := range events {
		if c := s.log.Check(zap.InfoLevel, "audit"); c != nil {
			c.Write(zap.Int64("seq", e.Seq), zap.String("hash", e.Hash), zap.String("actor", e.Actor), zap.String("action", e.Action),
				zap.String("resource", e.Resource), zap.String("operation_id", e.Operation))
		}
	}
}

// AuditQuery chooses records of the audit trail. The zero value is all of them.
type AuditQuery struct {
	Actor    string // "" is any
	Action   string // such as "token.revoke", or "token." for all that begin so
	Resource string // an id
	Since    time.Time
	Until    time.Time
	Before   int64 // only records with a smaller number; 0 is all
	Limit    int
}

// AuditEvents lists records of the audit trail, newest first. It is for admins.
func (s *Store) AuditEvents(ctx context.Context, by Actor, q AuditQuery) (list []AuditEvent, more bool, err error) {
	list, err = inRead(ctx, s, by, func(t *tx) ([]AuditEvent, error) {
		if err := t.admit("read the audit trail"); err != nil {
			return nil, err
		}
		rows, err := t.query(selectAudit+`
			WHERE ($1 = '' OR actor = $1) AND ($2 = '' OR action = $2 OR $3 <> '' AND SUBSTR(action, 1, LENGTH($3)) = $3) AND ($4 = '' OR resource_id = $4)
				AND at >= $5 AND ($6 = 0 OR at < $6) AND ($7 = 0 OR seq < $7)
			ORDER BY seq DESC LIMIT $8`, q.Actor, q.Action, actionPrefix(q.Action), q.Resource, unix(q.Since), unix(q.Until), q.Before, q.Limit+1)
		if err != nil {
			return nil, fmt.Errorf("reading the audit trail: %w", err)
		}
		return collect(rows, scanAudit)
	})
	if len(list) > q.Limit {
		list, more = list[:q.Limit], true
	}
	return list, more, err
}

// actionPrefix makes "token." match every action that begins so.
func actionPrefix(action string) string {
	if !strings.HasSuffix(action, ".") {
		return ""
	}
	return action
}

const selectAudit = `
	SELECT seq, id, at, actor, action, resource_id, before, after, operation_id, prev_hash, hash
	FROM audit_events`

func scanAudit(rows *sql.Rows) (e AuditEvent, err error) {
	var at int64
	var was, is string
	err = rows.Scan(&e.Seq, &e.ID, &at, &e.Actor, &e.Action, &e.Resource, &was, &is, &e.Operation, &e.PrevHash, &e.Hash)
	e.At, e.Before, e.After = fromUnix(at), json.RawMessage(was), json.RawMessage(is)
	return e, err
}

// AuditHead is the last record of the audit trail: whoever noted it down can tell
// later whether the trail was cut or written anew before it.
type AuditHead struct {
	Seq  int64
	Hash string
}

// AuditHead returns the head of the audit trail as it was read last.
func (s *Store) AuditHead() AuditHead {
	if p := s.head.Load(); p != nil {
		return AuditHead{p.seq, p.hash}
	}
	return AuditHead{}
}

// AuditReport is what verifying the audit trail came to.
type AuditReport struct {
	Head    AuditHead
	Records int64  // that were found to be good, from the first on
	BadSeq  int64  // the number of the first bad record; 0 is none
	Problem string // what is wrong with it; "" is nothing
}

// VerifyAudit reads the whole audit trail and follows its chain. known is a head
// from an earlier time, or the zero value.
func (s *Store) VerifyAudit(ctx context.Context, by Actor, known AuditHead) (AuditReport, error) {
	return inRead(ctx, s, by, func(t *tx) (AuditReport, error) {
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
		case e.Seq == known.Seq && e.Hash != known.Hash:
			return bad(next, "it is not the record that was known as number %d: its hash is %s", known.Seq, e.Hash)
		}
		r.Records, prev = e.Seq, e.Hash
	}
	if err := rows.Err(); err != nil {
		return r, fmt.Errorf("reading the audit trail: %w", err)
	}
	switch {
	case r.Records < known.Seq:
		return bad(r.Records+1, "the trail was cut: it ends with record %d, and record %d was known", r.Records, known.Seq)
	case r.Head.Seq != r.Records || r.Head.Hash != prev:
		return bad(r.Records+1, "the trail was cut, or its head was changed: it ends with record %d, and its head is record %d", r.Records, r.Head.Seq)
	}
	return r, nil
}

// Attempt is something that an actor tried on the admin API and was refused.
type Attempt struct {
	Operation string `json:"operation"` // "DELETE /service_users/{id}"
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Login     string `json:"login,omitempty"`    // who somebody without an identity said to be
	LeftOut   int64  `json:"left_out,omitempty"` // so many before it were not written down: there were too many
}

// Anonymous is the name of an actor that nobody knows.
const Anonymous = "anonymous"

// attempts bounds how many refused attempts are written down. Each actor has a bucket
// of its own, and each service user has one for strangers that name it as their login,
// so that no flood of one hides what another did. All other strangers share a bucket,
// and so do those for whom there is no bucket left: known actors never wait for
// strangers.
type attempts struct {
	mu               sync.Mutex
	known, strangers buckets
}

type buckets struct {
	byName map[string]*bucket
	full   time.Time // until then no bucket can be dropped
}

type bucket struct {
	left    int
	refill  time.Time
	leftOut int64
}

// The bounds of the memory of attempts and, of strangers, of what they can have written.
const (
	maxKnown     = 10_000
	maxStrangers = 1000
)

// share is how many attempts of an actor are written within a time; the others are
// counted.
type share struct {
	most int
	per  time.Duration
}

var (
	entitledShare = share{60, time.Minute} // admins and managers
	memberShare   = share{10, time.Minute} // anybody known who is neither
	strangerShare = share{10, time.Hour}
)

func (a *attempts) admit(name string, of share, now time.Time) (leftOut int64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list, most := &a.known, maxKnown
	if of == strangerShare {
		list, most = &a.strangers, maxStrangers
	}
	b := list.bucket(name, most, now)
	if !now.Before(b.refill) {
		b.left, b.refill = of.most, now.Add(of.per)
	}
	if b.left == 0 {
		b.leftOut++
		return 0, false
	}
	b.left--
	leftOut, b.leftOut = b.leftOut, 0
	return leftOut, true
}

// bucket returns the bucket of a name or, when there are too many, the shared one.
func (l *buckets) bucket(name string, most int, now time.Time) *bucket {
	if l.byName == nil {
		l.byName = make(map[string]*bucket)
	}
	if l.byName[name] == nil && len(l.byName) >= most {
		if !now.Before(l.full) {
			l.full = now.Add(strangerShare.per)
			maps.DeleteFunc(l.byName, func(_ string, b *bucket) bool {
				if now.Before(b.refill) && b.refill.Before(l.full) {
					l.full = b.refill
				}
				return !now.Before(b.refill)
			})
		}
		if len(l.byName) >= most {
			name = ""
		}
	}
	if l.byName[name] == nil {
		l.byName[name] = new(bucket)
	}
	return l.byName[name]
}

// shareOf returns which bucket an attempt counts in, and how large it is.
func (s *Store) shareOf(by Actor, login string) (name string, of share) {
	d := s.Directory()
	if by.Name == Anonymous {
		if u, ok := d.User(login); ok {
			return u.ID, strangerShare
		}
		return "", strangerShare
	}
	if u, ok := d.User(by.Name); by.Scope != nil || ok && u.Role != access.Member {
		return by.Name, entitledShare
	}
	return by.Name, memberShare
}

// NoteAttempt writes a refused attempt on a resource ("" is none) into the audit
// trail. Under a flood some are left out, and their number stands in the next one.
func (s *Store) NoteAttempt(ctx context.Context, by Actor, resource string, what Attempt) error {
	name, of := s.shareOf(by, what.Login)
	leftOut, ok := s.attempts.admit(name, of, s.now())
	if !ok {
		return nil
	}
	what.LeftOut = leftOut
	if access.FindLeak(what.Login) == access.SecretLeak {
		what.Login = "(a token in the place of the id)"
	}
	by.Scope = nil // the record is ours; who has just lost its rights is written down as well
	return s.change(ctx, by, func(t *tx) error { return t.audit("refused", resource, nil, what) })
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
