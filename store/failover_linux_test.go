//go:build linux

package store

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

var failovers = flag.Int("failovers", 1, "how many failovers TestPostgresFailover has")

// A failover to a synchronous standby loses no acknowledged change and brings back no refused one, whether the
// primary before is killed, is paused, or runs on. Meanwhile three nodes create and revoke tokens. They recover by
// themselves, and each receipt stays true.
func TestPostgresFailover(t *testing.T) {
	pair := pgtest.NewPair(t)
	c := &cluster{t: t, schema: pair.Primary.NewSchema(t, pgtest.Role)}
	c.at = pair.TCPURL(pgtest.Role, c.schema) + "&connect_timeout=1"
	for i := range 3 {
		c.nodes = append(c.nodes, open(t, c.at, Options{NodeID: fmt.Sprint("node_", i), MaxStaleness: 3 * time.Second, timeouts: briefly}))
	}
	c.group = addGroup(c.nodes[0], "g", "allow GET /a").ID
	done := make(chan struct{})
	var probing sync.WaitGroup
	probing.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				c.probePromises()
			}
		}
	})
	stopProbing := sync.OnceFunc(func() { close(done); probing.Wait() })
	defer stopProbing()

	draw := random(t)
	for n := range *failovers {
		how := []string{"killed", "paused", "running on"}[draw.IntN(3)]
		stop := c.write(fmt.Sprint(n))
		c.awaitChanges(3)
		<-time.After(time.Duration(draw.IntN(100)) * time.Millisecond)
		switch how {
		case "killed":
			mustDo(pair.Primary.Kill())
		case "paused":
			must(pair.Primary.Pause())
		}
		mustDo(pair.Promote())
		promoted := time.Now()
		switch how {
		case "paused": // a node that is reading would wait for it up to changeTimeout
			<-time.After(time.Duration(draw.IntN(1000)) * time.Millisecond)
			mustDo(pair.Standby.Kill())
		case "running on": // its commits hang, and the nodes leave it
			c.awaitChanges(3)
			mustDo(pair.Standby.Kill())
		}
		c.awaitChanges(3)
		took := time.Since(promoted)
		stop()
		mustDo(pair.Rebuild())
		c.check(n)
		if t.Failed() {
			t.Fatalf("failover %d, the primary before was %s", n, how)
		}
		t.Logf("failover %d, the primary before was %s: changes at all nodes after %v, %d answers are not certain",
			n, how, took.Round(time.Millisecond), c.unsure)
	}
	if c.receipts == 0 {
		t.Error("no receipt was by all; the test shows nothing about them")
	}
	stopProbing()
	c.nodes = append(c.nodes, open(t, c.at, Options{timeouts: briefly})) // it begins with what the others have
	c.check(*failovers)
}

// cluster is some nodes that change the store, and what they were answered.
type cluster struct {
	t        *testing.T
	schema   string
	at       string
	nodes    []*Store
	group    string
	made     []atomic.Int64 // the acknowledged changes, by node
	mu       sync.Mutex
	attempts []*attempt
	promised []promised
	receipts int // by all
	unsure   int
}

// answer is the answer to a change.
type answer string

const (
	yes    answer = "made"
	no     answer = "not made"
	unsure answer = "unsure"
)

func answerTo(err error) answer {
	switch {
	case err == nil:
		return yes
	case errors.Is(err, ErrUncertain):
		return unsure
	}
	return no
}

// attempt is a token that a node has tried to create, and perhaps to revoke.
type attempt struct {
	description   string
	issued        *Issued
	user          string
	made, revoked answer
}

// promised is a revoked token, which only the late nodes accept, and they only until a time.
type promised struct {
	receipt Receipt
	*attempt
}

// write lets each node change the store until stop is called.
func (c *cluster) write(round string) (stop func()) {
	c.made = make([]atomic.Int64, len(c.nodes))
	end := make(chan struct{})
	var writing sync.WaitGroup
	for i, s := range c.nodes {
		u, _ := addUser(s, fmt.Sprint("u", round, "-", i), c.group)
		writing.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
					c.writeOne(i, n, u.ID, fmt.Sprint(round, "-", i, "-", n))
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(end)
		writing.Wait()
	})
	c.t.Cleanup(stop) // before the stores close
	return stop
}

func (c *cluster) writeOne(node, n int, user, description string) {
	s, a := c.nodes[node], &attempt{user: user, description: description, revoked: no}
	defer func() {
		c.mu.Lock()
		c.attempts = append(c.attempts, a)
		c.mu.Unlock()
	}()
	note := func(err error) answer {
		var refused *Error
		if errors.As(err, &refused) {
			c.t.Errorf("%s: got %v, but nobody else changes it", description, err)
		}
		got := answerTo(err)
		if got == yes {
			c.made[node].Add(1)
		}
		return got
	}
	var err error
	a.issued, err = s.CreateToken(ctx, Local, user, Token{Description: description})
	if a.made = note(err); a.made != yes || n%50 == 3 {
		return
	}
	if a.revoked = note(s.RevokeToken(ctx, Local, user, a.issued.ID, 0)); a.revoked != yes || n%4 > 1 {
		return
	}
	patience := time.Duration(n%7) * 50 * time.Millisecond
	if n%14 == 0 {
		patience = 2 * time.Second
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if r, err := s.Wait(waiting, s.Directory().Revision()); err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.promised = append(c.promised, promised{r, a})
		if len(r.Late) == 0 {
			c.receipts++
		}
	}
}

// awaitChanges returns when each node has made some more changes.
func (c *cluster) awaitChanges(n int64) {
	for i := range c.made {
		want := c.made[i].Load() + n
		for deadline := time.Now().Add(time.Minute); c.made[i].Load() < want; <-time.After(time.Millisecond) {
			if time.Now().After(deadline) {
				c.t.Fatalf("node %d makes no change; its fault is %q", i, c.nodes[i].Fault())
			}
		}
	}
}

// probePromises asks the nodes for the tokens of receipts.
func (c *cluster) probePromises() {
	c.mu.Lock()
	list := slices.Clone(c.promised[max(len(c.promised)-100, 0):])
	c.mu.Unlock()
	for _, p := range list {
		for _, s := range c.nodes {
			if slices.Contains(p.receipt.Late, s.opts.NodeID) && time.Now().Before(p.receipt.Until) || s.Stale() {
				continue
			}
			if probe(s, p.user, p.issued.Secret, "GET /a") == access.Granted && !s.Stale() {
				c.t.Errorf("the token %s works on %s, but its receipt is %+v", p.description, s.opts.NodeID, p.receipt)
			}
		}
	}
}

// check compares the nodes with the answers.
func (c *cluster) check(round int) {
	t := c.t
	revision := func(s *Store) int64 { return s.Directory().Revision() }
	eventually(t, "all nodes at one revision, without a fault", func() bool {
		return !slices.ContainsFunc(c.nodes, func(s *Store) bool {
			return s.Fault() != "" || s.Stale() || revision(s) != revision(c.nodes[0])
		})
	})
	db := must(sql.Open("pgx", c.at))
	defer db.Close()
	found := make(map[string]answer) // whether it is revoked, by description
	for _, row := range must(collect(must(db.QueryContext(ctx, `
		SELECT description, revoked_at > 0 FROM tokens WHERE description <> ''`)),
		func(rows *sql.Rows) (row [2]string, err error) {
			var revoked bool
			err = rows.Scan(&row[0], &revoked)
			row[1] = string(no)
			if revoked {
				row[1] = string(yes)
			}
			return row, err
		})) {
		found[row[0]] = answer(row[1])
	}
	c.unsure = 0
	for _, a := range c.attempts {
		revoked, made := found[a.description]
		fact := no
		if made {
			fact = yes
		}
		for _, x := range []struct {
			what string
			said *answer
			fact answer
		}{{"creation", &a.made, fact}, {"revocation", &a.revoked, revoked}} {
			switch {
			case *x.said == unsure:
				*x.said = x.fact
				c.unsure++
			case *x.said != x.fact && (made || x.what == "creation"):
				t.Errorf("%s: the %s was answered with %q, and the database says %q", a.description, x.what, *x.said, x.fact)
			}
		}
		for _, s := range c.nodes {
			if a.issued != nil {
				granted := probe(s, a.user, a.issued.Secret, "GET /a") == access.Granted
				if granted != (made && revoked == no) {
					t.Errorf("%s on %s: got %v, made: %v, revoked: %q", a.description, s.opts.NodeID, granted, made, revoked)
				}
			}
		}
	}
	for _, s := range c.nodes {
		if r, err := s.VerifyAudit(ctx, Local, AuditHead{}); err != nil || r.Problem != "" {
			t.Errorf("failover %d: the audit trail: got %+v, %v", round, r, err)
		}
	}
}

// A host that is gone delays the first connection of a node alone.
func TestPostgresHostGone(t *testing.T) {
	t.Parallel()
	gone := must(net.Listen("tcp", "127.0.0.1:0"))
	defer gone.Close()
	var tried atomic.Int64
	go func() {
		for {
			if _, err := gone.Accept(); err != nil { // it gets no answer
				return
			}
			tried.Add(1)
		}
	}()
	server := pgtest.Shared(t)
	at := server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role)) + "&connect_timeout=1"
	s := open(t, strings.Replace(at, "@", "@"+gone.Addr().String()+",", 1), Options{})
	before := tried.Load()
	for range 3 {
		dropIdle(s.read)
		must(s.nodes(ctx))
	}
	if after := tried.Load(); before == 0 || after > before {
		t.Errorf("connections to the host that is gone: got %d and %d more, want one", before, after-before)
	}
}

// A commit whose wait for the standby was cancelled is not acknowledged before the standby has it.
func TestPostgresCancelledWait(t *testing.T) {
	t.Parallel()
	pair := pgtest.NewPair(t)
	s := open(t, pair.TCPURL(pgtest.Role, pair.Primary.NewSchema(t, pgtest.Role)), Options{})
	u, token := addUser(s, "u")
	must(pair.Standby.Pause())
	revoked := make(chan error, 1)
	go func() { revoked <- s.RevokeToken(ctx, Local, u.ID, token.ID, 0) }()
	for range 2 { // the change, and the look whether it was made
		eventually(t, "a commit that waits and is cancelled", func() (done bool) {
			mustDo(pair.Primary.QueryRow(`SELECT COALESCE(bool_or(pg_cancel_backend(pid)), FALSE) FROM pg_stat_activity
				WHERE wait_event = 'SyncRep' AND lower(query) = 'commit'`, nil, &done))
			return done
		})
	}
	select {
	case err := <-revoked:
		if !errors.Is(err, ErrUncertain) {
			t.Errorf("got %v, and the standby does not have the change; want ErrUncertain", err)
		}
	case <-time.After(time.Minute):
		t.Error("no answer")
	}
	mustDo(pair.Standby.Continue())
}

// A node that stays on a primary after the standby was promoted is late in the receipts of the new primary, and answers
// no request after the time in them. The history of the new primary continues its own.
func TestPostgresOldPrimary(t *testing.T) {
	t.Parallel()
	pair := pgtest.NewPair(t)
	schema := pair.Primary.NewSchema(t, pgtest.Role)
	a := open(t, pair.TCPURL(pgtest.Role, schema), Options{NodeID: "node_a", MaxStaleness: 20 * time.Second, timeouts: briefly})
	b := open(t, pair.Primary.TCPURL(pgtest.Role, schema), Options{NodeID: "node_b", MaxStaleness: 2 * time.Second, timeouts: briefly})
	u, token := addUser(a, "u", addGroup(a, "g", "allow GET /a").ID)
	works := func(s *Store) bool { return !s.Stale() && probe(s, u.ID, token.Secret, "GET /a") == access.Granted }
	eventually(t, "the token on the other node", func() bool { return works(b) })
	mustDo(pair.Promote())
	c := open(t, pair.Primary.TCPURL(pgtest.Role, schema), Options{NodeID: "node_c", timeouts: briefly})
	mustDo(c.RevokeToken(ctx, Local, u.ID, token.ID, 0))
	wait := func(d time.Duration) Receipt {
		waiting, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return must(c.Wait(waiting, c.Directory().Revision()))
	}
	r := wait(0)
	if works(b) && !slices.Contains(r.Late, "node_b") {
		t.Errorf("got %+v, and the token works on node_b", r)
	}
	for now := time.Now(); works(b); now = time.Now() {
		if now.After(r.Until) {
			t.Fatalf("got %+v, and the token works on node_b", r)
		}
		<-time.After(time.Millisecond)
	}
	eventually(t, "a receipt by all but node_b", func() bool { r = wait(time.Second); return len(r.Late) == 0 })
	if r.All != 2 || works(a) || works(b) {
		t.Errorf("got %+v, and the token works on node_a: %v, on node_b: %v", r, works(a), works(b))
	}
	mustDo(pair.Rebuild())
	eventually(t, "node_b does not use a standby", func() bool { return strings.Contains(b.Fault(), errStandby.Error()) })
	mustDo(pair.Primary.Kill())
	mustDo(pair.Promote())
	eventually(t, "the token is refused on node_b", func() bool { return !b.Stale() && b.Fault() == "" && !works(b) })
}

// A primary that crashes and starts again alone shows changes that no standby has, and nodes put them in force. After
// a failover these nodes keep their directory, and take no change.
func TestPostgresAhead(t *testing.T) {
	t.Parallel()
	pair := pgtest.NewPair(t)
	at := pair.TCPURL(pgtest.Role, pair.Primary.NewSchema(t, pgtest.Role))
	opts := func(id string) Options {
		return Options{NodeID: id, MaxStaleness: time.Minute, timeouts: timeouts{commit: time.Second}}
	}
	a, b := open(t, at, opts("node_a")), open(t, at, opts("node_b"))
	u, token := addUser(a, "u", addGroup(a, "g", "allow GET /a").ID)
	works := func(s *Store) bool { return probe(s, u.ID, token.Secret, "GET /a") == access.Granted }
	eventually(t, "the token on the other node", func() bool { return works(b) })
	mustDo(pair.Standby.Stop(pgtest.Fast))
	revoked := make(chan error, 1)
	go func() { revoked <- a.RevokeToken(ctx, Local, u.ID, token.ID, 0) }()
	eventually(t, "a commit that waits", func() (waits bool) {
		mustDo(pair.Primary.QueryRow(`SELECT EXISTS (SELECT 1 FROM pg_stat_activity
			WHERE wait_event = 'SyncRep' AND lower(query) = 'commit')`, nil, &waits))
		return waits
	})
	if !works(a) || !works(b) {
		t.Error("the change is in force before the standby has it")
	}
	mustDo(pair.Primary.Kill())
	mustDo(pair.Primary.Start())
	if err := <-revoked; !errors.Is(err, ErrUncertain) {
		t.Errorf("the revocation: got %v, want ErrUncertain", err)
	}
	eventually(t, "the change in force", func() bool { return !works(a) && !works(b) })
	mustDo(pair.Primary.Kill())
	mustDo(pair.Standby.Start())
	mustDo(pair.Promote())
	c := open(t, at, opts("node_c"))
	for _, s := range []*Store{a, b} {
		eventually(t, "the database is older", func() bool { return strings.Contains(s.Fault(), ErrOlder.Error()) })
	}
	if err := a.RevokeToken(ctx, Local, u.ID, token.ID, 0); !errors.Is(err, ErrOlder) {
		t.Errorf("a change: got %v, want ErrOlder", err)
	}
	if works(a) || works(b) || !works(c) {
		t.Errorf("the token works: got %v %v %v, want only on node_c", works(a), works(b), works(c))
	}
	waiting, cancel := context.WithTimeout(ctx, 0)
	defer cancel()
	if r := must(c.Wait(waiting, addGroupRevision(c))); !slices.Equal(r.Late, []string{"node_a", "node_b"}) {
		t.Errorf("the receipt: got %+v, want node_a and node_b late", r)
	}
	mustDo(a.Close())
	if again := open(t, at, opts("node_a")); !works(again) || again.Fault() != "" {
		t.Errorf("after a restart: the token works: %v, the fault: %q", works(again), again.Fault())
	}
}

// addGroupRevision makes a change and returns its revision.
func addGroupRevision(s *Store) int64 {
	addGroup(s, "another")
	return s.Directory().Revision()
}
