package admin

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// AuditQuery chooses records of the audit trail.
type AuditQuery struct {
	// the largest number of records on the page
	Limit string `query:"limit" integer:"1-100" default:"100"`
	// only records before the record with this number (seq)
	BeforeID string `query:"before_id"`
	// "true" adds the number of records of all pages to the answer
	TotalCount string `query:"total_count"`
	// only by human:NAME, local (all local callers), local:USER, system, anonymous, or a service
	// user by its id or any of its names; an unknown actor is an error
	Actor string `query:"actor"`
	// only this action, such as token.revoke; "token." means all of tokens; an unknown action is
	// an error
	Action string `query:"action"`
	// only about the resource with this id, or about every service user and permission group that
	// has or had this name; also about its tokens and its memberships; an unknown resource is an
	// error
	ResourceID string `query:"resource_id"`
	// only records of this time or later: RFC 3339, or a duration before now such as 7d, or a day
	// such as 2026-11-21, which begins at midnight UTC
	Since string `query:"since"`
	// only records before this time, in the forms of since
	Until string `query:"until"`
	// "true" adds names to the records, beside ids
	Names string `query:"names"`
}

// AuditEvent is one record of the audit trail: a change or a refused attempt, its actor, and the
// resource before and after the change. It contains no secret.
type AuditEvent struct {
	ID          string          `json:"id"`           // audit_…
	URI         string          `json:"uri"`          // the path of the record in this API
	Seq         int64           `json:"seq"`          // the number of the record: 1, 2, 3 … without a gap
	CreatedAt   time.Time       `json:"created_at"`   // the time of the change
	UpdatedAt   time.Time       `json:"updated_at"`   // the same as created_at: a record never changes
	Actor       string          `json:"actor"`        // human:NAME, service_…, local, local:USER, …
	Action      string          `json:"action"`       // such as token.revoke
	ResourceID  string          `json:"resource_id"`  // the id of the resource that was changed
	Before      json.RawMessage `json:"before"`       // the resource before the change; null if it did not exist
	After       json.RawMessage `json:"after"`        // the resource after the change; null if it no longer exists
	OperationID string          `json:"operation_id"` // the operation id of the answer and of the log
	PrevHash    string          `json:"prev_hash"`    // the hash of the record before this one
	Hash        string          `json:"hash"`         // covers prev_hash and every other field before it

	// with the parameter names: the last name of the service user that is the actor
	ActorName string `json:"actor_name,omitempty"`
	// with the parameter names: the last name of the service user or permission group, or of the
	// service user that the token belongs to
	ResourceName string `json:"resource_name,omitempty"`
}

// AuditEventList is one page of the audit trail.
type AuditEventList struct {
	AuditEvents []AuditEvent `json:"audit_events"` // newest first
	Page
}

// listAuditEvents lists the records of the audit trail, newest first. This operation requires the
// rights of an admin.
func (a *API) listAuditEvents(c *call, q AuditQuery) (AuditEventList, error) {
	limit, err := ListQuery{Limit: q.Limit}.limit()
	if err != nil {
		return AuditEventList{}, err
	}
	chosen := store.AuditQuery{Actor: q.Actor, Action: q.Action, Resource: q.ResourceID, Limit: limit}
	now := a.store.Now()
	if chosen.Since, err = parsePast("since", q.Since, now); err != nil {
		return AuditEventList{}, err
	}
	if chosen.Until, err = parsePast("until", q.Until, now); err != nil {
		return AuditEventList{}, err
	}
	if q.Since != "" && q.Until != "" && !chosen.Since.Before(chosen.Until) {
		return AuditEventList{}, invalidField("since", fmt.Sprintf(
			"%s is not before until, %s; until is the end, which does not belong to it",
			chosen.Since.Format(time.RFC3339), chosen.Until.Format(time.RFC3339)))
	}
	if chosen.Names, err = boolean("names", q.Names); err != nil {
		return AuditEventList{}, err
	}
	if chosen.Total, err = total(q.TotalCount); err != nil {
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
			// A record has no path of its own: the URI is a list of one.
			ID: e.ID, URI: "/audit_events?before_id=" + strconv.FormatInt(e.Seq+1, 10) + "&limit=1",
			Seq: e.Seq, CreatedAt: e.At, UpdatedAt: e.At, Actor: e.Actor, Action: e.Action,
			ResourceID: e.Resource, Before: rawOrNull(e.Before), After: rawOrNull(e.After),
			OperationID: e.Operation, PrevHash: e.PrevHash, Hash: e.Hash,
			ActorName: e.ActorName, ResourceName: e.ResourceName,
		}
		last = strconv.FormatInt(e.Seq, 10)
	}
	list.Page = page(c, more, last, limit)
	list.TotalCount = chosen.Total
	return list, nil
}

func rawOrNull(text json.RawMessage) json.RawMessage {
	if len(text) == 0 {
		return json.RawMessage("null")
	}
	return text
}

// VerifyQuery may contain a head of the audit trail from an earlier time, to compare with.
type VerifyQuery struct {
	Head string `query:"head"` // the number and the hash of a record, SEQ:HASH, from the log or an earlier answer
}

// head parses the head in the query. It returns the zero head if the query has none.
func (q VerifyQuery) head() (known store.AuditHead, err error) {
	if q.Head == "" {
		return known, nil
	}
	known, ok := store.ParseAuditHead(q.Head)
	if !ok {
		return known, invalidField("head",
			"is not the number of a record and its hash, SEQ:HASH, from the answer of an earlier verify")
	}
	return known, nil
}

// AuditReport is the result of a check of the audit trail.
type AuditReport struct {
	OK       bool   `json:"ok"`        // whether every record is good
	Records  int64  `json:"records"`   // the number of good records, counted from the first record
	Head     string `json:"head"`      // the last record, SEQ:HASH; keep it elsewhere and send it to a later check
	FirstBad int64  `json:"first_bad"` // the number of the first bad record; 0 if all are good
	Problem  string `json:"problem"`   // the fault of the first bad record; "" if all are good
}

// verifyAudit follows the hash chain of the whole audit trail and reports the first bad record.
// This operation requires the rights of an admin.
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
