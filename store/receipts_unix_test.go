//go:build unix

package store

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

var rounds = flag.Int("rounds", 30, "how many rounds TestPostgresReceipts has")

// A receipt is true, although nodes are held up, and lose their connections and parts of their traffic: in each
// round one node revokes a token, and the test asks each node for it after the answer. The token works on no
// node but the late ones, and there only until the time in the receipt.
func TestPostgresReceipts(t *testing.T) {
	f := newFleet(t)
	all, named, over := 0, 0, 0
	for f.round = range *rounds {
		if f.round%20 == 10 && !f.isHeld("node_d") { // longer than its time
			f.hold("node_d", 1700*time.Millisecond)
		}
		maker, other := f.someNode(), f.someNode()
		var exact string // the node that is late in any case
		switch f.draw.IntN(5) {
		case 0:
			if other != maker {
				f.hold(other, time.Duration(f.draw.IntN(40))*time.Millisecond)
			}
		case 1:
			if other != maker {
				exact = other
				f.hold(other, time.Hour)
			}
		case 2:
			mustDo(f.server.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '` + other + `'`))
		case 3:
			f.delay[other].Store(int64(time.Duration(f.draw.IntN(60)) * time.Millisecond))
		case 4:
			f.drop[other].Store(other != maker)
		}
		s, old := f.nodes[maker], f.token
		var err error
		if f.token, _, err = s.RefreshToken(ctx, Local, f.user, old.ID, 0, 0, 0); err != nil {
			t.Fatalf("round %d: %v", f.round, err)
		}
		revision := s.Directory().Revision()
		patience := time.Duration(f.draw.IntN(100)) * time.Millisecond
		if f.round%10 == 9 && exact == "" {
			patience = time.Minute
		}
		r := f.wait(s, revision, patience)
		f.check(r, revision, old)
		switch {
		case exact != "": // in the end it is the only late one, but for those that are held longer
			eventually(t, fmt.Sprintf("round %d: all but the nodes that are held", f.round), func() bool {
				r = f.wait(s, revision, 50*time.Millisecond)
				f.check(r, revision, old)
				if r.All > 0 && !slices.Contains(r.Late, exact) && !f.nodes[exact].Stale() {
					t.Fatalf("round %d: got %+v, and %s cannot have the change", f.round, r, exact)
				}
				return r.All > 0 && !slices.ContainsFunc(r.Late, func(id string) bool { return !f.isHeld(id) })
			})
			named++
			f.release(exact)
		case len(r.Late) == 0:
			all++
		}
		f.delay[other].Store(0)
		f.drop[other].Store(false)
		over += f.promised()
	}
	if all == 0 || *rounds > 50 && (named == 0 || over == 0) {
		t.Errorf("of %d receipts %d were by all, %d named a node that was held, and %d were kept by a node whose time was over; "+
			"the test shows nothing", *rounds, all, named, over)
	}
}

// briefly makes a receipt wait less for a node after its time.
var briefly = timeouts{lastMoments: 300 * time.Millisecond}

// fleet is four nodes, each behind a proxy, and a service user with one token.
type fleet struct {
	t        *testing.T
	server   *pgtest.Server
	db       *sql.DB
	draw     *rand.Rand
	nodes    map[string]*Store
	delay    map[string]*atomic.Int64 // of each part that the node sends
	drop     map[string]*atomic.Bool  // the node loses connections
	held     map[string]*hold
	user     string
	token    *Issued
	round    int
	promises []promise
}

// hold keeps a node from loading changes.
type hold struct {
	timer *time.Timer
	over  chan struct{}
}

// promise is a part of a receipt: a node may answer from before a revision until a time.
type promise struct {
	node     string
	revision int64
	until    time.Time
}

func newFleet(t *testing.T) *fleet {
	f := &fleet{
		t: t, server: pgtest.Shared(t), draw: random(t), nodes: map[string]*Store{}, held: map[string]*hold{},
		delay: map[string]*atomic.Int64{}, drop: map[string]*atomic.Bool{},
	}
	at := must(url.Parse(f.server.TCPURL(pgtest.Role, f.server.NewSchema(t, pgtest.Role))))
	f.db = must(sql.Open("pgx", at.String()))
	t.Cleanup(func() { f.db.Close() })
	to := at.Host
	for _, id := range []string{"node_a", "node_b", "node_c", "node_d"} {
		delay, drop := new(atomic.Int64), new(atomic.Bool)
		var parts atomic.Int64
		f.delay[id], f.drop[id] = delay, drop
		at.Host = pgtest.Proxy(t, to, func([]byte) (end, forward bool) {
			<-time.After(time.Duration(delay.Load()))
			n := parts.Add(1)
			return drop.Load() && n%3 == 0, n%2 == 0
		})
		f.nodes[id] = open(t, at.String()+"&application_name="+id, Options{NodeID: id, MaxStaleness: time.Second, timeouts: briefly})
	}
	t.Cleanup(func() { // before the stores close
		for id := range f.held {
			f.release(id)
		}
	})
	u, token := addUser(f.nodes["node_a"], "u", addGroup(f.nodes["node_a"], "g", "allow GET /a").ID)
	f.user, f.token = u.ID, token
	return f
}

func (f *fleet) hold(id string, d time.Duration) {
	if f.isHeld(id) {
		return
	}
	s, over := f.nodes[id], make(chan struct{})
	mustDo(s.lock(ctx))
	f.held[id] = &hold{over: over, timer: time.AfterFunc(d, func() { s.unlock(); close(over) })}
}

func (f *fleet) release(id string) {
	if h := f.held[id]; h != nil && h.timer.Stop() {
		f.nodes[id].unlock()
	} else if h != nil {
		<-h.over
	}
	delete(f.held, id)
}

func (f *fleet) isHeld(id string) bool {
	if h := f.held[id]; h != nil {
		select {
		case <-h.over:
			f.release(id)
		default:
			return true
		}
	}
	return false
}

// someNode returns a node that can make a change.
func (f *fleet) someNode() string {
	var free []string
	for _, id := range slices.Sorted(maps.Keys(f.nodes)) {
		if !f.isHeld(id) {
			free = append(free, id)
		}
	}
	return free[f.draw.IntN(len(free))]
}

// wait returns a receipt, or an empty one if the node could not ask the database.
func (f *fleet) wait(s *Store, revision int64, d time.Duration) Receipt {
	waiting, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	r, err := s.Wait(waiting, revision)
	if err != nil && r.All != 0 || r.Applied+len(r.Late) != r.All || r.All > len(f.nodes) {
		f.t.Fatalf("round %d: got %+v, %v", f.round, r, err)
	}
	return r
}

// check asks each node for a token that a revision has revoked.
func (f *fleet) check(r Receipt, revision int64, revoked *Issued) {
	f.t.Helper()
	if r.All == 0 {
		return
	}
	for id, s := range f.nodes {
		if slices.Contains(r.Late, id) {
			f.promises = append(f.promises, promise{id, revision, r.Until})
		} else if !s.Stale() && probe(s, f.user, revoked.Secret, "GET /a") == access.Granted {
			f.t.Fatalf("round %d: got %+v, and the token works on %s", f.round, r, id)
		}
	}
}

// promised checks the promises, and counts those of nodes that still have an earlier revision when their
// time is over.
func (f *fleet) promised() (over int) {
	latest := make(map[string]promise) // a node answers from its revision until then at the latest
	for _, p := range must(collect(must(f.db.QueryContext(ctx, `SELECT id, revision, seen_at + max_staleness FROM nodes`)),
		func(rows *sql.Rows) (p promise, err error) {
			var until int64
			err = rows.Scan(&p.node, &p.revision, &until)
			p.until = time.UnixMilli(until).Add(briefly.lastMoments)
			return p, err
		})) {
		latest[p.node] = p
	}
	f.promises = slices.DeleteFunc(f.promises, func(p promise) bool {
		s, now := f.nodes[p.node], time.Now()
		stale, revision := s.Stale(), s.Directory().Revision()
		// The row of a node that has joined again is older than its directory: it answers nothing before
		// it has loaded all changes.
		if row := latest[p.node]; !stale && revision < p.revision && row.revision < p.revision && row.until.After(p.until) {
			f.t.Fatalf("round %d: %s may answer from revision %d until %v, but a receipt of revision %d says %v",
				f.round, p.node, row.revision, row.until, p.revision, p.until)
		}
		if now.After(p.until) && revision < p.revision {
			over++
			if !stale {
				f.t.Fatalf("round %d: %s answers from revision %d at %v, but a receipt of revision %d says until %v",
					f.round, p.node, revision, now, p.revision, p.until)
			}
		}
		return revision >= p.revision
	})
	return over
}
