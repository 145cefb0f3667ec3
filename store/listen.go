package store

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/zap"
)

const (
	// slowPoll is the time between two looks at the revision, since notifications can be lost.
	slowPoll = time.Second
	// deafPoll is that time while notifications do not arrive at all.
	deafPoll = 250 * time.Millisecond
	// echoDelay is how long after its last statement the listener is sure to be idle, and echoWait
	// how long a notification may take.
	echoDelay = 100 * time.Millisecond
	echoWait  = 3 * time.Second
	// reconnect is the pause before the watcher connects again.
	reconnect = 250 * time.Millisecond
)

// watch loads the changes of other nodes until the store closes. It keeps one connection, which listens
// for notifications, and reads the newer rows.
func (e *postgresEngine) watch(ctx context.Context) {
	for ctx.Err() == nil {
		at := e.servers.at.Load()
		err := e.store.safely("looking for changes", func() error { return e.listen(ctx) })
		if ctx.Err() != nil {
			return
		}
		// A primary whose standby was promoted can run on. Its connections stay, but it commits no report.
		if !isLost(err) {
			e.servers.leave(at)
		}
		e.store.report(err, time.Time{})
		select {
		case <-ctx.Done():
		case <-time.After(jitter(reconnect)):
		}
	}
}

// jitter returns a time of about d, so that nodes do not act at the same moment.
func jitter(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5) }

// listener is the connection that listens.
type listener struct {
	*postgresEngine
	conn  *sql.Conn
	own   string    // a channel for the echo alone, so that the other nodes do not hear it
	known int64     // the revision at the last look
	due   time.Time // until then the echo must arrive; zero if none is expected
	// Since the last look, while no statement ran:
	echoed bool // the echo has arrived
	heard  bool // another notification has arrived
	deaf   bool // notifications do not arrive
	// announced says that a notification has ended the last pause.
	announced bool
}

// listen looks for changes on one connection until it is lost, or ctx ends.
func (e *postgresEngine) listen(ctx context.Context) error {
	if !e.prepared.Load() { // the store began with the last good copy
		if err := e.prepare(ctx); err != nil {
			return err
		}
	}
	// Reads that wait for an answer cannot take the connection of this pool.
	db := e.servers.openDB(&e.reportsAlone, unchecked)
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	l := listener{postgresEngine: e, conn: conn, own: newID("echo", e.store.Now())}
	// LISTEN comes before the first look, so that no change falls between them.
	listening, cancel := context.WithTimeout(ctx, e.store.opts.timeouts.look)
	defer cancel()
	for _, channel := range []string{e.channel, l.own} {
		if _, err := conn.ExecContext(listening, `LISTEN `+pgx.Identifier{channel}.Sanitize()); err != nil {
			return err
		}
	}
	l.ask()
	for ctx.Err() == nil {
		began := time.Now()
		looked, err := e.catchUp(ctx, conn, l.announced)
		if err != nil {
			return err
		}
		if err := e.reportRevision(ctx, conn, looked); err != nil {
			return err
		}
		if err := l.wait(ctx, jitter(min(l.pause(), reportEvery(e.store.opts.MaxStaleness)))); err != nil {
			return err
		}
		time.Sleep(minPoll - time.Since(began)) // any role of the database can send notifications
	}
	return nil
}

// ask makes another connection send a notification while the listener is idle. A pooler can pass one on
// that arrives while a statement of the listener runs, or just after it, or that the listener itself sends,
// and lose all others.
func (l *listener) ask() {
	l.due = time.Now().Add(echoWait)
	e, own := l.postgresEngine, l.own
	e.store.start(func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-time.After(echoDelay):
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.store.opts.timeouts.look)
			defer cancel()
			// Without the echo the listener looks more often, which is right after an error.
			_, _ = e.store.read.ExecContext(ctx, `SELECT pg_notify($1, '')`, own)
		}
	})
}

// pause returns the time until the next look. It is shorter while notifications do not arrive, as behind
// a pooler of transactions.
func (l *listener) pause() time.Duration {
	s := l.store
	revision := s.inForce.Load().revision
	if revision > l.known && (!l.heard || l.deaf) && l.due.IsZero() {
		l.ask() // nobody has announced it, or that was by chance
	}
	deaf := l.deaf && !l.echoed
	if l.echoed {
		l.due = time.Time{}
	} else if !l.due.IsZero() && time.Now().After(l.due) {
		deaf, l.due = true, time.Time{}
	}
	l.known, l.echoed, l.heard = revision, false, false
	if deaf != l.deaf {
		l.deaf = deaf
		if deaf {
			s.log.Warn("notifications of the database do not arrive; is there a pooler that drops LISTEN? "+
				"Changes of other nodes are found by asking for them",
				zap.String("store", s.path), zap.Duration("every", deafPoll))
		} else {
			s.log.Info("notifications of the database arrive", zap.String("store", s.path))
		}
	}
	switch {
	case s.opts.Poll > 0:
		return s.opts.Poll
	case deaf:
		return deafPoll
	}
	return slowPoll
}

// look is the moment of a look for changes: no change that is not in force here was committed before it.
type look struct {
	asOf time.Time // by the clock of the machine, with a monotonic reading
	at   int64     // by that of the database, in milliseconds
}

// compareLooks notices that the clock of the database was set forward, which makes the time of each node
// look over too early. A jump of less than clockLag is part of lastMoments.
func (e *postgresEngine) compareLooks(now look) {
	last := e.looked.Swap(&now)
	if last != nil && time.Duration(now.at-last.at)*time.Millisecond > now.asOf.Sub(last.asOf)+clockLag {
		e.jumped.Store(&now.asOf)
	}
}

// nowMilli is the beginning of a statement or a transaction. A change that the statement does not see is
// committed later.
const nowMilli = `CAST(EXTRACT(EPOCH FROM now()) * 1000 AS BIGINT)`

// catchUp loads the changes of other nodes, if there are any. announced says that there is probably one.
func (e *postgresEngine) catchUp(ctx context.Context, conn *sql.Conn, announced bool) (l look, err error) {
	s := e.store
	l.asOf = s.clock.read()
	if announced {
		if l.at, err = e.catchUpAtOnce(ctx, conn); err == nil && l.at > 0 {
			return l, nil
		}
		l.asOf = s.clock.read() // the usual way finds more changes, or says what is wrong
	}
	looking, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.timeouts.look)
	defer cancel()
	var at position
	if err := conn.QueryRowContext(looking, `
		SELECT revision, audit_seq, audit_hash, `+nowMilli+` FROM meta`).
		Scan(&at.revision, &at.seq, &at.hash, &l.at); err != nil {
		return l, fmt.Errorf("reading the revision: %w", err)
	}
	e.compareLooks(look{time.Now(), l.at})
	if at == s.inForce.Load().position {
		return l, nil
	}
	loading, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.timeouts.change)
	defer cancel()
	turn := loading
	if len(e.servers.configs) > 1 { // the change before may hang on a server that is not the primary any more
		turn = looking
	}
	if err := s.lock(turn); err != nil {
		return l, fmt.Errorf("waiting for a change of this node: %w", err)
	}
	defer s.unlock()
	return l, s.reload(loading, conn)
}

// catchUpAtOnce is catchUp for the usual change, by one statement: all nodes hear of a change at the same
// moment, and the database serves them all. at is 0 for another change.
func (e *postgresEngine) catchUpAtOnce(ctx context.Context, conn *sql.Conn) (at int64, err error) {
	s := e.store
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.timeouts.look)
	defer cancel()
	if err := s.lock(ctx); err != nil {
		return 0, err
	}
	defer s.unlock()
	next, at, err := s.loadAtOnce(ctx, conn, `(SELECT version FROM store_schema), `+nowMilli)
	if err != nil || next == nil {
		return 0, err
	}
	e.compareLooks(look{time.Now(), at})
	s.install(next)
	return at, nil
}

// wait returns when another node announces a revision that is not in force here, or after a time.
func (l *listener) wait(ctx context.Context, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	l.announced = false
	return l.conn.Raw(func(c any) error {
		conn := c.(*stdlib.Conn).Conn()
		over, cancel := context.WithCancel(ctx)
		cancel()
		for waiting := over; ; {
			// First come those that arrived while a statement ran.
			note, err := conn.WaitForNotification(waiting)
			if err != nil && waiting == over {
				waiting = ctx
				continue
			}
			switch {
			case err != nil && (ctx.Err() != nil || pgconn.Timeout(err)):
				return nil
			case err != nil:
				return err
			}
			if waiting == ctx {
				l.echoed, l.heard = l.echoed || note.Channel == l.own, l.heard || note.Channel != l.own
			}
			revision, err := strconv.ParseInt(note.Payload, 10, 64)
			if err == nil && revision > l.reported {
				l.announced = true
				return nil
			}
		}
	})
}
