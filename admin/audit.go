package admin

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// AuditQuery chooses records of the audit trail.
type AuditQuery struct {
	Limit      string `query:"limit"`       // 1-100, default 100
	BeforeID   string `query:"before_id"`   // only records before the one of this number
	Actor      string `query:"actor"`       // human:…, service_…, local, system, anonymous
	Action     string `query:"action"`      // token.revoke, or "token." for all that begin so
	ResourceID string `query:"resource_id"` // what was changed
	Since      string `query:"since"`       // RFC 3339
	Until      string `query:"until"`       // RFC 3339
}

// AuditEvent is one record of the audit trail: who changed what, and how it looked
// before and after. No secret stands in it.
type AuditEvent struct {
	ID          string          `json:"id"`           // audit_…
	URI         string          `json:"uri"`          // its path in this API
	Seq         int64           `json:"seq"`          // 1, 2, 3 … without a gap
	CreatedAt   time.Time       `json:"created_at"`   // when it was done
	UpdatedAt   time.Time       `json:"updated_at"`   // the same: a record never changes
	Actor       string          `json:"actor"`        // human:…, service_…, local, system, anonymous
	Action      string          `json:"action"`       // such as token.revoke
	ResourceID  string          `json:"resource_id"`  // the id of what was changed
	Before      json.RawMessage `json:"before"`       // null: it did not exist
	After       json.RawMessage `json:"after"`        // null: it does no longer exist
	OperationID string          `json:"operation_id"` // as in the answer and the log
	PrevHash    string          `json:"prev_hash"`    // of the record before
	Hash        string          `json:"hash"`         // over prev_hash and every other field
}

// AuditEventList is one page of the audit trail, newest first.
type AuditEventList struct {
	AuditEvents []AuditEvent `json:"audit_events"` // the newest first
	Page
}

// listAuditEvents lists who changed what, the newest first. It is for admins.
func (a *API) listAuditEvents(c *call, q AuditQuery) (AuditEventList, error) {
	limit, err := ListQuery{Limit: q.Limit}.limit()
	if err != nil {
		return AuditEventList{}, err
	}
	chosen := store.AuditQuery{Actor: q.Actor, Action: q.Action, Resource: q.ResourceID, Limit: limit}
	if chosen.Since, err = parseTime("since", q.Since); err != nil {
		return AuditEventList{}, err
	}
	if chosen.Until, err = parseTime("until", q.Until); err != nil {
		return AuditEventList{}, err
	}
	if q.BeforeID != "" {
		if chosen.Before, err = strconv.ParseInt(q.BeforeID, 10, 64); err != nil || chosen.Before < 1 {
			return AuditEventList{}, invalidField("before_id", "is not the number (seq) of a record")
		}
	}
	events, more, err := a.store.AuditEvents(c.Context(), c.by, chosen)
	if err != nil {
		return AuditEventList{}, err
	}
	list := AuditEventList{AuditEvents: make([]AuditEvent, len(events))}
	last := ""
	for i, e := range events {
		list.AuditEvents[i] = AuditEvent{
			ID: e.ID, URI: "/audit_events?before_id=" + strconv.FormatInt(e.Seq+1, 10) + "&limit=1", Seq: e.Seq, CreatedAt: e.At, UpdatedAt: e.At,
			Actor: e.Actor, Action: e.Action, ResourceID: e.Resource, Before: rawOrNull(e.Before), After: rawOrNull(e.After),
			OperationID: e.Operation, PrevHash: e.PrevHash, Hash: e.Hash,
		}
		last = strconv.FormatInt(e.Seq, 10)
	}
	list.Page = page(c, more, last, limit)
	return list, nil
}

func rawOrNull(text json.RawMessage) json.RawMessage {
	if len(text) == 0 {
		return json.RawMessage("null")
	}
	return text
}

// VerifyQuery is a head of the audit trail that was noted down before.
type VerifyQuery struct {
	Head string `query:"head"` // SEQ:HASH, as in the log and in an earlier answer
}

// head reads the head that the query may name.
func (q VerifyQuery) head() (known store.AuditHead, err error) {
	if q.Head == "" {
		return known, nil
	}
	known, ok := store.ParseAuditHead(q.Head)
	if !ok {
		return known, invalidField("head", "is not the number of a record and its hash, SEQ:HASH, as an earlier verify told it")
	}
	return known, nil
}

// AuditReport is what verifying the audit trail came to.
type AuditReport struct {
	OK       bool   `json:"ok"`        // whether every record is good
	Records  int64  `json:"records"`   // that are good, from the first on
	Head     string `json:"head"`      // SEQ:HASH; note it down elsewhere, and verify against it later
	FirstBad int64  `json:"first_bad"` // the number of the first bad record; 0 is none
	Problem  string `json:"problem"`   // what is wrong with it
}

// verifyAudit follows the chain of the whole audit trail and names the first bad
// record. It is for admins.
func (a *API) verifyAudit(c *call, q VerifyQuery) (AuditReport, error) {
	known, err := q.head()
	if err != nil {
		return AuditReport{}, err
	}
	r, err := a.store.VerifyAudit(c.Context(), c.by, known)
	if err != nil {
		return AuditReport{}, err
	}
	return AuditReport{r.BadSeq == 0, r.Records, r.Head.String(), r.BadSeq, r.Problem}, nil
}
