package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Node is a process that has the store open and answers requests from it.
type Node struct {
	ID           string // node_…
	Name         string // of its machine
	Version      string // of the program
	Address      string // by which the database knows it
	StartedAt    time.Time
	SeenAt       time.Time // the last time of which it has reported a look for changes, by the clock of the database
	Revision     int64     // in force after that look
	Lag          int64     // the number of later changes
	MaxStaleness time.Duration
	Until        time.Time // it answers no request after this time, unless it reports again
	Live         bool      // that time is not over
	Late         bool      // it is live, and lags behind or has missed three reports
	Self         bool      // it is this process
	Source       string    // of its directory, see [Store.Source]; "" for other processes, which alone know it
	now          time.Time // by the clock of the database
}

// Receipt says on which nodes a revision is in force.
type Receipt struct {
	Applied, All int
	Late         []string  // the ids of the others
	Until        time.Time // the late ones may answer from an earlier revision until then, and not after it
}

// reportWait is how long a node waits for the answer to a report. A report whose answer comes later does
// not count.
const reportWait = 2 * time.Second

// Nodes lists the nodes of the store by id. A store in SQLite knows its own process only. If the database does
// not answer, the list beside the error has this process alone, as it knows itself, with Lag 0.
func (s *Store) Nodes(ctx context.Context, by Actor) ([]Node, error) {
	if by.Scope != nil {
		return nil, notAllowed("only an admin may list the nodes")
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.timeouts.look)
	defer cancel()
	list, err := s.nodes(ctx)
	if err != nil && !s.opts.Unlisted {
		n := s.self()
		n.Until, n.Live, n.Late = n.SeenAt.Add(n.MaxStaleness), !s.Stale(), !s.Stale()
		list = []Node{n}
	}
	return list, err
}

// self returns this process as it knows itself.
func (s *Store) self() Node {
	source, seen := s.Source()
	return Node{
		ID: *s.node.Load(), Name: s.opts.NodeName, Version: s.opts.Version, StartedAt: s.begun, SeenAt: seen,
		Revision: s.inForce.Load().revision, MaxStaleness: s.opts.MaxStaleness, Live: true, Self: true, Source: source,
	}
}

// ForgetNode removes a node that ended without a word. Until the time of the node is over, the error is
// an [ErrConflict].
func (s *Store) ForgetNode(ctx context.Context, by Actor, id string) error {
	if by.Scope != nil {
		return notAllowed("only an admin may forget a node")
	}
	list, err := s.nodes(ctx)
	if err := cmp.Or(s.changeable(), err); err != nil {
		return err
	}
	for _, n := range list {
		switch {
		case n.ID != id:
		case n.Self:
			return conflict("", "the node %s is this process; it leaves the list when it ends", id)
		case n.Live:
			return conflict("", "the node %s has reported at %s, and may answer requests until %s; "+
				"stop it, or wait until then", id, n.SeenAt.Format(time.RFC3339), n.Until.Format(time.RFC3339))
		default:
			return s.forgetNode(ctx, id)
		}
	}
	return notFound("node", id)
}

// Wait returns when a revision, which is in force here, is in force on every node that answers requests, or
// when ctx ends. A node that starts later begins with at least that revision. The error means that the
// nodes could not be asked until then.
func (s *Store) Wait(ctx context.Context, revision int64) (r Receipt, err error) {
	var begun time.Time // by the clock of the database; the revision was committed before
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		// A query that begins just before the end of ctx is worth its answer.
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportWait)
		list, err := s.nodes(asking)
		cancel()
		// Such as a primary that a failover has left behind. Its list is not the one that counts.
		if slices.ContainsFunc(list, func(n Node) bool { return n.Revision+n.Lag < revision }) {
			err = errors.New("the database that answered does not have the change")
		}
		if err == nil {
			if r = s.receipt(list, revision, &begun); len(r.Late) == 0 {
				return r, nil
			}
		}
		select {
		case <-ctx.Done():
			if len(r.Late) > 0 { // an earlier answer is true, too
				return r, nil
			}
			return r, err
		case <-time.After(pause):
		}
	}
}

// receipt counts the nodes. begun is the time of the first list.
func (s *Store) receipt(list []Node, revision int64, begun *time.Time) (r Receipt) {
	for _, n := range list {
		*begun = cmp.Or(*begun, n.now)
		switch {
		case n.Self && s.kept() >= revision, n.Live && n.Revision >= revision:
			r.Applied++
		case !n.Live:
			continue
		default:
			r.Late = append(r.Late, n.ID)
			// A node reports the time of its last look, and no look after the commit misses the change. A report
			// of a look before it may still arrive.
			if until := begun.Add(n.MaxStaleness + s.opts.timeouts.lastMoments); until.After(r.Until) {
				r.Until = until
			}
		}
		r.All++
	}
	return r
}

// nodes returns this process.
func (e *sqliteEngine) nodes(context.Context) ([]Node, error) { return []Node{e.store.self()}, nil }

func (e *sqliteEngine) join(context.Context) (time.Time, error) { return e.store.clock.read(), nil }

func (e *sqliteEngine) forgetNode(_ context.Context, id string) error { return notFound("node", id) }

// databaseTime is the time of the database in milliseconds.
const databaseTime = `CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)`

func scanMilli(row *sql.Row) (at time.Time, err error) {
	var ms int64
	err = row.Scan(&ms)
	return time.UnixMilli(ms), err
}

func (e *postgresEngine) nodes(ctx context.Context) ([]Node, error) {
	ctx, cancel := context.WithTimeout(ctx, e.store.opts.timeouts.look)
	defer cancel()
	rows, err := e.store.read.QueryContext(ctx, `
		SELECT id, name, version, address, started_at, seen_at, revision, max_staleness,
			(SELECT revision FROM meta), `+databaseTime+`
		FROM nodes ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("reading the nodes: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (n Node, err error) {
		var started, seen, staleness, last, now int64
		err = rows.Scan(&n.ID, &n.Name, &n.Version, &n.Address, &started, &seen, &n.Revision, &staleness, &last, &now)
		n.StartedAt, n.SeenAt = time.UnixMilli(started).UTC(), time.UnixMilli(seen).UTC()
		n.MaxStaleness = time.Duration(staleness) * time.Millisecond
		mayAnswer := n.MaxStaleness + e.store.opts.timeouts.lastMoments
		n.Until = n.SeenAt.Add(mayAnswer)
		n.now = time.UnixMilli(now).UTC()
		e.compareLooks(look{time.Now(), now})
		if jumped := e.jumped.Load(); jumped != nil {
			left := mayAnswer - time.Since(*jumped)
			n.Until = slices.MaxFunc([]time.Time{n.Until, n.now.Add(left)}, time.Time.Compare)
		}
		n.Live, n.Self, n.Lag = n.Until.After(n.now), n.ID == *e.store.node.Load(), max(last-n.Revision, 0)
		if n.Self {
			n.Source, _ = e.store.Source()
		}
		n.Late = n.Live && (n.Lag > 0 || n.now.Sub(n.SeenAt) > 3*reportEvery(n.MaxStaleness))
		return n, err
	})
}

func (e *postgresEngine) forgetNode(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, e.store.opts.timeouts.look)
	defer cancel()
	// Not one that has reported meanwhile: it answers requests, and receipts must count it.
	_, err := e.store.write.ExecContext(ctx, `
		DELETE FROM nodes WHERE id = $1 AND seen_at + max_staleness + $2 <= `+databaseTime,
		id, e.store.opts.timeouts.lastMoments.Milliseconds())
	return err
}

// join registers this node, or registers it again after its time was over. The row is there before the
// directory is up to date, so that no receipt is by "all" too early. [Store.Wait] reads the rows after its
// change was committed. Either it sees this row, with an earlier revision, and calls the node late. Or the
// row was committed after the change, and refresh, which begins after that, loads the change. Before that
// the node answers no request: Open has not returned, or the directory is stale.
func (e *postgresEngine) join(ctx context.Context) (asOf time.Time, err error) {
	s := e.store
	if s.opts.Unlisted {
		return s.clock.read(), s.refresh(ctx)
	}
	registering, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	revision, asOf, sent, at := s.kept(), s.clock.read(), s.Now(), time.Now()
	// The process that started last has the id. An earlier one takes another.
	now, err := scanMilli(s.write.QueryRowContext(registering, `
		INSERT INTO nodes (id, name, version, address, started_at, seen_at, revision, max_staleness)
		VALUES ($1, $2, $3, COALESCE(host(inet_client_addr()), 'local'), $4, `+databaseTime+`, $5, $6)
		ON CONFLICT (id) DO UPDATE
		SET name = excluded.name, version = excluded.version, address = excluded.address,
			started_at = excluded.started_at, seen_at = excluded.seen_at, revision = excluded.revision,
			max_staleness = excluded.max_staleness
		WHERE nodes.started_at <= excluded.started_at
		RETURNING `+databaseTime,
		s.node.Load(), s.opts.NodeName, s.opts.Version, e.started, revision, s.opts.MaxStaleness.Milliseconds()))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		s.node.Store(new(newID("node", s.Now())))
		return e.join(ctx)
	case err != nil:
		return asOf, fmt.Errorf("registering the node: %w", err)
	}
	e.reported, e.reportedAt = revision, at
	s.clock.compare(s.log, sent, now)
	return asOf, s.refresh(ctx)
}

// reportEvery returns how often a node with this MaxStaleness reports although nothing has changed.
func reportEvery(max time.Duration) time.Duration { return min(max/10, 10*time.Second) }

// reportRevision reports the revision in force to the database, on the connection of the watcher, unless it knows
// it already.
func (e *postgresEngine) reportRevision(ctx context.Context, conn *sql.Conn, l look) error {
	s := e.store
	revision, asOf := s.kept(), l.asOf
	s.copy.renew()
	if revision == e.reported && time.Since(e.reportedAt) < reportEvery(s.opts.MaxStaleness) && s.Fault() == "" {
		return nil
	}
	if s.opts.Unlisted {
		s.report(nil, asOf)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportWait)
	defer cancel()
	sent, at := s.Now(), time.Now()
	e.reportsAlone.Store(false)
	now, err := scanMilli(conn.QueryRowContext(ctx, `
		UPDATE nodes SET seen_at = $4, revision = $3
		WHERE id = $1 AND started_at = $2 AND seen_at + max_staleness > `+databaseTime+`
		RETURNING `+databaseTime, s.node.Load(), e.started, revision, l.at))
	switch {
	case errors.Is(err, sql.ErrNoRows): // the time of this node is over, or it was forgotten
		asOf, err = e.join(ctx)
	case err == nil && e.reportsAlone.Load(): // after a failover receipts would not know of it
		err = errAlone
	case err == nil:
		e.reported, e.reportedAt = revision, at
		s.clock.compare(s.log, sent, now)
		s.clock.logBack(s.log, e.older())
	}
	if err != nil {
		return fmt.Errorf("reporting the revision: %w", err)
	}
	s.report(nil, asOf)
	s.copy.acknowledge()
	return nil
}

// leave removes this node, which answers no request any more.
func (e *postgresEngine) leave(ctx context.Context) error {
	_, err := e.store.write.ExecContext(ctx, `DELETE FROM nodes WHERE id = $1 AND started_at = $2`,
		e.store.node.Load(), e.started)
	return err
}
