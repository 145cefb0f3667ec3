package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Node is a process that has the store open and answers requests from it.
type Node struct {
	ID           string // node_…
	Name         string // of its machine
	Version      string // of the program
	Address      string // by which the database knows it
	StartedAt    time.Time
	SeenAt       time.Time // the time of its last report, by the clock of the database
	Revision     int64     // in force at that time
	MaxStaleness time.Duration
	Until        time.Time // it answers no request after this time, unless it reports again
	Live         bool      // that time is not over
	Self         bool      // it is this process
}

// Receipt says on which nodes a revision is in force.
type Receipt struct {
	Applied, All int
	Late         []string  // the ids of the others
	Until        time.Time // the late ones may answer from an earlier revision until then
}

// reportWait is how long a node waits for the answer to a report. A report whose answer comes later does
// not count.
const reportWait = 2 * time.Second

// lastMoments is how long after MaxStaleness a node may still answer a request: its report may be on the
// way, and it looks at its age once a second.
const lastMoments = 5 * time.Second

// Nodes lists the nodes of the store by id. A store in SQLite knows its own process only.
func (s *Store) Nodes(ctx context.Context, by Actor) ([]Node, error) {
	if by.Scope != nil {
		return nil, notAllowed("only an admin may list the nodes")
	}
	return s.nodes(ctx)
}

// ForgetNode removes a node that ended without a word. Until the time of the node is over, the error is
// an [ErrConflict].
func (s *Store) ForgetNode(ctx context.Context, by Actor, id string) error {
	if by.Scope != nil {
		return notAllowed("only an admin may forget a node")
	}
	list, err := s.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range list {
		switch {
		case n.ID != id:
		case n.Live:
			return conflict("", "the node %s has reported at %s, and may answer requests until %s; "+
				"stop it, or wait until then", id, n.SeenAt.Format(time.RFC3339), n.Until.Format(time.RFC3339))
		default:
			return s.forgetNode(ctx, id)
		}
	}
	return notFound("node", id)
}

// Wait returns when a revision is in force on every node that answers requests, or when ctx ends. A node
// that starts later begins with at least that revision.
func (s *Store) Wait(ctx context.Context, revision int64) (r Receipt, err error) {
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		// A query that begins just before the end of ctx is worth its answer.
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportWait)
		list, err := s.nodes(asking)
		cancel()
		if err != nil {
			return r, err
		}
		r = Receipt{}
		for _, n := range list {
			switch {
			case n.Self && s.inForce.Load().revision >= revision, n.Live && n.Revision >= revision:
				r.Applied++
			case !n.Live:
				continue
			default:
				r.Late = append(r.Late, n.ID)
				if n.Until.After(r.Until) {
					r.Until = n.Until
				}
			}
			r.All++
		}
		if len(r.Late) == 0 {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-time.After(pause):
		}
	}
}

// nodes returns this process.
func (e *sqliteEngine) nodes(context.Context) ([]Node, error) {
	s := e.store
	return []Node{{
		ID: "node_self", StartedAt: s.begun, SeenAt: s.Checked(), Revision: s.inForce.Load().revision,
		MaxStaleness: s.opts.MaxStaleness, Live: true, Self: true,
	}}, nil
}

func (e *sqliteEngine) join(context.Context) (time.Time, error) { return e.store.clock.read(), nil }

func (e *sqliteEngine) forgetNode(_ context.Context, id string) error { return notFound("node", id) }

// databaseTime is the time of the database in milliseconds.
const databaseTime = `CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)`

func (e *postgresEngine) nodes(ctx context.Context) ([]Node, error) {
	rows, err := e.store.read.QueryContext(ctx, `
		SELECT id, name, version, address, started_at, seen_at, revision, max_staleness, `+databaseTime+`
		FROM nodes ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("reading the nodes: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (n Node, err error) {
		var started, seen, staleness, now int64
		err = rows.Scan(&n.ID, &n.Name, &n.Version, &n.Address, &started, &seen, &n.Revision, &staleness, &now)
		n.StartedAt, n.SeenAt = time.UnixMilli(started).UTC(), time.UnixMilli(seen).UTC()
		n.MaxStaleness = time.Duration(staleness) * time.Millisecond
		n.Until = n.SeenAt.Add(n.MaxStaleness + lastMoments)
		n.Live, n.Self = n.Until.After(time.UnixMilli(now)), n.ID == e.node
		return n, err
	})
}

func (e *postgresEngine) forgetNode(ctx context.Context, id string) error {
	_, err := e.store.write.ExecContext(ctx, `DELETE FROM nodes WHERE id = $1`, id)
	return err
}

// join registers this node, or registers it again after its time was over. It does so only with the last
// revision, so that no node begins to answer requests from an earlier one.
func (e *postgresEngine) join(ctx context.Context) (asOf time.Time, err error) {
	for {
		asOf = e.store.clock.read()
		joined, err := e.tryJoin(ctx)
		if err != nil {
			return asOf, fmt.Errorf("registering the node: %w", err)
		}
		if joined {
			return asOf, nil
		}
		if err := e.store.refresh(ctx); err != nil {
			return asOf, err
		}
	}
}

func (e *postgresEngine) tryJoin(ctx context.Context) (joined bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	s := e.store
	sqlTx, err := s.write.BeginTx(ctx, readCommitted)
	if err != nil {
		return false, err
	}
	defer sqlTx.Rollback()
	// While this transaction lasts, no change commits.
	var last int64
	if err := sqlTx.QueryRowContext(ctx, `SELECT revision FROM meta FOR SHARE`).Scan(&last); err != nil {
		return false, err
	}
	revision := s.inForce.Load().revision
	if revision != last {
		return false, nil
	}
	if _, err := sqlTx.ExecContext(ctx, `
		INSERT INTO nodes (id, name, version, address, started_at, seen_at, revision, max_staleness)
		VALUES ($1, $2, $3, COALESCE(host(inet_client_addr()), 'local'), `+databaseTime+`, `+databaseTime+`, $4, $5)
		ON CONFLICT (id) DO UPDATE
		SET name = excluded.name, version = excluded.version, address = excluded.address, seen_at = excluded.seen_at,
			revision = excluded.revision, max_staleness = excluded.max_staleness`,
		e.node, s.opts.NodeName, s.opts.Version, revision, s.opts.MaxStaleness.Milliseconds()); err != nil {
		return false, err
	}
	if err := sqlTx.Commit(); err != nil {
		return false, err
	}
	e.reported, e.reportedAt = revision, time.Now()
	return true, nil
}

// reportEvery returns how often a node reports although nothing has changed.
func (e *postgresEngine) reportEvery() time.Duration {
	return min(e.store.opts.MaxStaleness/10, 10*time.Second)
}

// reportRevision reports the revision in force to the database, on the connection of the watcher, unless it knows
// it already.
func (e *postgresEngine) reportRevision(ctx context.Context, conn *sql.Conn) error {
	s := e.store
	revision, asOf := s.inForce.Load().revision, s.clock.read()
	if revision == e.reported && time.Since(e.reportedAt) < e.reportEvery() && s.Fault() == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportWait)
	defer cancel()
	at := time.Now()
	done, err := conn.ExecContext(ctx, `
		UPDATE nodes SET seen_at = `+databaseTime+`, revision = $2
		WHERE id = $1 AND seen_at + max_staleness > `+databaseTime, e.node, revision)
	if err != nil {
		return fmt.Errorf("reporting the revision: %w", err)
	}
	n, err := done.RowsAffected()
	if err == nil && n == 0 { // the time of this node is over, or it was forgotten
		asOf, err = e.join(ctx)
	} else if err == nil {
		e.reported, e.reportedAt = revision, at
	}
	if err == nil {
		s.report(nil, asOf)
	}
	return err
}

// leave removes this node, which answers no request any more.
func (e *postgresEngine) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), reportWait)
	defer cancel()
	return e.forgetNode(ctx, e.node)
}
