package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// The bounds of the refusals in a store: how many there are, and how many are written in a second.
// Options.Refusals may have a lower limit. So a flood of refusals keeps the database busy for some
// milliseconds of each second.
const (
	refusalsKept   = 10_000
	refusalsAtOnce = 500
)

// refusalQueue has the refusals that are taken from memory and not on disk yet.
type refusalQueue struct {
	pending []access.Recalled
	failing failureLatch
}

// refusalText is the column text of the table refusals in JSON. Its names stay, since later versions of the
// program read it.
type refusalText struct {
	Status   int         `json:"status"`
	TokenID  string      `json:"token_id"`
	Method   string      `json:"method"`
	Host     string      `json:"host"`
	Path     string      `json:"path"` // see access.PathText
	Address  netip.Addr  `json:"remote_ip"`
	Revision int64       `json:"revision"`
	Reason   string      `json:"reason"`
	Rule     access.Rule `json:"rule"`
	Group    string      `json:"permission_group"`
}

// keepRefusals writes some of the refusals that are not on disk yet. Only one goroutine calls it.
func (s *Store) keepRefusals(ctx context.Context) {
	q := &s.refusals
	if len(q.pending) == 0 {
		q.pending = s.opts.Refusals.Unwritten(refusalsAtOnce)
	}
	if len(q.pending) == 0 {
		return
	}
	err := s.safely("writing refusals", func() error { return s.aside(ctx, (*tx).addRefusals) })
	if err == nil {
		q.pending = nil
	}
	q.failing.report(err, func() {
		s.log.Error("refusals cannot be written, and only this node can explain them; the store tries again",
			zap.Error(err))
	})
}

// addRefusals writes those in the queue, and removes older ones.
func (t *tx) addRefusals() error {
	var rows [][]any
	for _, r := range t.store.refusals.pending {
		rows = append(rows, []any{r.ID, r.At.Unix(), r.UserID, t.store.opts.NodeName, toJSON(refusalText{
			r.Status, r.TokenID, access.MaskSecrets(r.Action.Method), access.MaskSecrets(r.Action.Host),
			access.MaskSecrets(r.PathText()), r.Action.Address, r.Revision, r.Reason.String(), r.Rule, r.Group,
		})})
	}
	// An earlier try may have written them, if its answer was lost.
	if err := t.execRows("writing refusals", `
		INSERT INTO refusals (id, at, service_user_id, node, text) VALUES ROWS ON CONFLICT DO NOTHING`,
		rows); err != nil {
		return err
	}
	// The service users with the most lose their oldest ones, as in access.Recall. So that they need not be
	// sorted each second, up to 5 % more may stay.
	var n int
	most := min(refusalsKept, t.store.opts.Refusals.Limit())
	if err := t.row(`SELECT COUNT(*) FROM refusals`).Scan(&n); err != nil || n <= most+most/20 {
		return errors.Join(err, t.Commit())
	}
	return t.removeRefusals(`id IN (
		SELECT id FROM (
			SELECT id, at, ROW_NUMBER() OVER (PARTITION BY service_user_id ORDER BY at DESC, id DESC) AS place
			FROM refusals) ranked
		ORDER BY place, at DESC, id DESC LIMIT $2 OFFSET $1)`, most, n)
}

// retireRefusals removes the refusals that are older than Options.Retention.
func (t *tx) retireRefusals() error {
	return t.removeRefusals(`at <= $1`, t.now.Add(-t.store.opts.Retention).Unix())
}

// removeRefusals removes refusals and commits. It leaves out those that another node removes at the same
// time.
func (t *tx) removeRefusals(where string, args ...any) error {
	ids, err := all(t, "looking for old refusals", scanString,
		`SELECT id FROM refusals WHERE `+where+t.store.lockRows(), args...)
	if err != nil {
		return err
	}
	var old params
	list := old.list(ids)
	return cmp.Or(t.exec("removing old refusals", `DELETE FROM refusals WHERE id IN (`+list+`)`, old...), t.Commit())
}

const selectRefusal = `SELECT id, at, service_user_id, node, text FROM refusals`

func scanRefusal(rows *sql.Rows) (r access.Recalled, err error) {
	var v refusalText
	if err := rows.Scan(&r.ID, (*unixTime)(&r.At), &r.UserID, &r.Node, jsonText{&v}); err != nil {
		return r, err
	}
	// The reverse of access.PathText: only a kept %2F is "%2F" there.
	path, err := url.PathUnescape(strings.ReplaceAll(v.Path, "%2F", "%00"))
	reason := slices.IndexFunc(access.Reasons(), func(r access.Reason) bool { return r.String() == v.Reason })
	if err == nil && reason < 0 {
		err = fmt.Errorf("%q is not a reason", v.Reason)
	}
	r.Status, r.TokenID, r.Revision = v.Status, v.TokenID, v.Revision
	r.Reason, r.Rule, r.Group = access.Reason(reason), v.Rule, v.Group
	r.Action = access.Action{Method: v.Method, Host: v.Host, Path: path, Address: v.Address, Now: r.At.Unix()}
	return r, err
}

// Refusal returns the refusal with a decision id, of any node, as far as the store has it. Only admins may
// call it.
func (s *Store) Refusal(ctx context.Context, by Actor, id string) (access.Recalled, error) {
	return inRead(ctx, s, by, func(t *tx) (r access.Recalled, err error) {
		if err := t.admit("ask for a decision"); err != nil {
			return r, err
		}
		return one(t, scanRefusal, "decision", id, selectRefusal+` WHERE id = $1`, id)
	})
}

// Refusals returns the latest refusals of a service user that the store has, of all nodes, the newest
// first. If the actor may not see the service user, the error is [ErrNotFound].
func (s *Store) Refusals(ctx context.Context, by Actor, userID string) ([]access.Recalled, error) {
	return inRead(ctx, s, by, func(t *tx) ([]access.Recalled, error) {
		if _, err := t.visibleUser(userID, false); err != nil {
			return nil, err
		}
		return all(t, "reading refusals", scanRefusal, selectRefusal+`
			WHERE service_user_id = $1 ORDER BY at DESC, id DESC LIMIT 1000`, userID)
	})
}
