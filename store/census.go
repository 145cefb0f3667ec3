package store

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
)

// Census counts the service users, tokens and nodes of a store.
type Census struct {
	Users   map[string]int        // by a status of UserStatuses
	Tokens  map[TokenState]int    // without revoked ones, which the directory forgets, and those that a refresh has ended
	Ending  map[time.Duration]int // usable tokens whose expiry or grace ends within this time, see CensusEnds
	Unused  int                   // service users older than UnusedFor without a use in that time
	This    NodeLag               // of this node
	Slowest NodeLag               // the longest of each kind, of all nodes that answer requests

	taken, unusedTaken time.Time
}

// NodeLag is how far a node is behind the database; zero with SQLite.
type NodeLag struct {
	Revisions int64         // the number of changes that it does not have
	Reported  time.Duration // the time since the look for changes that it reported last
}

// CensusEnds are the times of Census.Ending, and UnusedFor is that of Census.Unused.
var CensusEnds = []time.Duration{7 * 24 * time.Hour, 30 * 24 * time.Hour}

// UnusedFor is the time without a use after which Census.Unused counts a service user.
const UnusedFor = 90 * 24 * time.Hour

// The times for which counts are used again: of the directory, and of the database.
const (
	countAgain  = time.Minute
	unusedAgain = 10 * time.Minute
)

// censusTaker takes a Census in the background.
type censusTaker struct {
	asked chan chan struct{} // gets a channel that is closed after the next census
	last  atomic.Pointer[Census]
}

// Census returns the latest counts. It asks for new ones and waits for them, but not longer than this time: after
// that the counts are those of the call before, or zero. The nodes are asked at each call, the others rarely.
func (s *Store) Census(wait time.Duration) (c Census) {
	done, late := make(chan struct{}), time.After(wait)
	select {
	case s.census.asked <- done:
		select {
		case <-done:
		case <-late:
		}
	case <-late: // an earlier call is not done, or the store is closed
	}
	if last := s.census.last.Load(); last != nil {
		c = *last
	}
	return c
}

// keepCensus counts when Census asks for it, until the store closes.
func (s *Store) keepCensus(ctx context.Context) {
	failing := failureLatch{}
	for {
		select {
		case <-ctx.Done():
			return
		case done := <-s.census.asked:
			err := s.safely("counting", func() error { return s.takeCensus(context.WithoutCancel(ctx)) })
			failing.report(err, func() {
				s.log.Warn("the nodes, or the unused service users, cannot be counted for the metrics", zap.Error(err))
			})
			close(done)
		}
	}
}

func (s *Store) takeCensus(ctx context.Context) (err error) {
	var c Census
	if last := s.census.last.Load(); last != nil {
		c = *last
	}
	defer func() { s.census.last.Store(&c) }()
	now := s.Now()
	if now.Sub(c.taken) >= countAgain {
		c.taken = now
		c.count(s.Directory(), now.Unix())
	}
	nodes, err := s.Nodes(ctx, Local)
	if err != nil {
		return err
	}
	c.This, c.Slowest = NodeLag{}, NodeLag{}
	for _, n := range nodes {
		if !n.Live || n.now.IsZero() { // SQLite
			continue
		}
		lag := NodeLag{n.Lag, max(n.now.Sub(n.SeenAt), 0)}
		if n.Self { // its last changes may be in force and not reported yet
			lag.Revisions = max(n.Revision+n.Lag-s.Directory().Revision(), 0)
			c.This = lag
		}
		c.Slowest.Revisions = max(c.Slowest.Revisions, lag.Revisions)
		c.Slowest.Reported = max(c.Slowest.Reported, lag.Reported)
	}
	if now.Sub(c.unusedTaken) < unusedAgain {
		return nil
	}
	c.unusedTaken = now
	// The ids of service users sort by creation, so this query reads only an index.
	since := now.Add(-UnusedFor)
	unused, err := inReadOf(ctx, s, Local, s.opts.timeouts.look, func(t *tx) (n int, err error) {
		err = t.row(`SELECT COUNT(*) FROM service_users WHERE deleted_at = 0 AND last_active_at <= $1 AND id < $2`,
			since.Unix(), newID("service", since)).Scan(&n)
		return n, err
	})
	if err == nil {
		c.Unused = unused
	}
	return err
}

// count counts the service users and tokens of a directory at an instant (Unix seconds).
func (c *Census) count(d *access.Directory, now int64) {
	c.Users, c.Tokens, c.Ending = make(map[string]int), make(map[TokenState]int), make(map[time.Duration]int)
	d.Sketches(now, func(k *access.Sketch) { c.Users[status(k, now)]++ })
	d.Tokens(func(t access.Token) {
		revoked, retires, expires := int64(0), int64(0), t.ExpiresAt
		if t.Revoked {
			revoked = now
		}
		if t.Retiring { // the directory has one field for the ends of the token and of its grace
			retires, expires = t.ExpiresAt, 0
		}
		state := stateOf(now, revoked, retires, expires, t.NotBefore)
		if state == TokenRevoked {
			return
		}
		c.Tokens[state]++
		for _, within := range CensusEnds {
			if state != TokenExpired && t.ExpiresAt != 0 && t.ExpiresAt <= now+int64(within/time.Second) {
				c.Ending[within]++
			}
		}
	})
}
