//go:build linux

package caddymodule

import (
	goflag "flag" // flag is a function here
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/internal/oracle"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

var (
	fleetRounds = goflag.Int("fleet", 18, "how many rounds of changes TestFleet makes at three nodes of one store in PostgreSQL")
	fleetSeed   = goflag.Uint64("fleetseed", 0, "the seed of TestFleet, which it prints; 0 is another one each time")
)

const fleetCaddyfile = `
{
	log {
		level WARN
	}
	service_users {
		store {env.SERVICE_USERS_STORE}
		throttle off
		default_group everyone
		use_interval 1s
		max_staleness 2s
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users {
		self /_self {
			rotate 1h
		}
	}
	{$PROXY} 127.0.0.1:{$UPSTREAM_PORT}
}
`

// fleetWaits are the values of the parameter wait; "" is none.
var fleetWaits = []string{"", "2s", "2s", "50ms"}

// fleetStaleness is max_staleness there.
const fleetStaleness = 2 * time.Second

// fleetNode is a Caddy of a fleet.
type fleetNode struct {
	*server
	name    string // of its connections to the database
	id      string // node_…
	client  *http.Client
	down    bool // it is killed or stopped; only the goroutine of the test reads it
	since   time.Time
	receipt *fleetReceipt // of its last change, if it asked for one
}

// fleetReceipt is the header Service-User-Applied.
type fleetReceipt struct {
	applied, all int
	late         []string
}

// fleet is some Caddys with one store, and the states that the store has been in.
type fleet struct {
	t        testing.TB
	database *pgtest.Server
	schema   string
	nodes    []*fleetNode
	wait     string      // for receipts of the next changes
	counted  credentials // of a service user that no change concerns
	tokenURI string
	uses     int64 // of its token
	asked    atomic.Int64
	all      atomic.Int64 // receipts by all nodes
	passed   atomic.Int64 // answers 200
	refused  atomic.Int64 // answers 503

	mu     sync.Mutex
	past   []fleetWorld  // the last one may be about to come
	since  []time.Time   // from when on no node may answer from an earlier one than this, but for its staleness
	base   []int         // for each node, the world that it has at least
	known  []map[int]int // for each node and service user, the world that the last answers came from
	steps  []string      // for the message of a failure
	sealed bool          // a failure was reported
}

// newest edits the newest world.
func (f *fleet) newest(edit func(w *fleetWorld)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit(&f.past[len(f.past)-1])
}

// issued notes a token that was issued, from which moment requests use it.
func (f *fleet) issued(user, token int, id, secret string) {
	f.newest(func(w *fleetWorld) {
		w.users[user].tokens[token].id, w.users[user].tokens[token].secret = id, secret
	})
}

// change makes a change at a node.
func (f *fleet) change(n *fleetNode, method, uri string, in, out any, header ...string) error {
	if f.wait != "" {
		uri += "?wait=" + f.wait
	}
	h, err := n.admin(method, uri, in, out, header...)
	if err != nil || f.wait == "" {
		return err
	}
	text, r := h.Get("Service-User-Applied"), new(fleetReceipt)
	if text == "unknown" { // the database took longer than the wait to answer
		return nil
	}
	numbers, late, isLate := strings.Cut(text, "; late=")
	late, until, _ := strings.Cut(late, "; until=")
	if _, err := fmt.Sscanf(numbers, "%d/%d", &r.applied, &r.all); err != nil {
		return fmt.Errorf("%s %s: the receipt %q: %w", method, uri, text, err)
	}
	if isLate {
		r.late = strings.Split(late, ",")
		if at, err := time.Parse(time.RFC3339, until); err != nil || at.After(time.Now().Add(fleetStaleness+10*time.Second)) {
			return fmt.Errorf("%s %s: the receipt %q: %w", method, uri, text, err)
		}
	}
	if r.applied+len(r.late) != r.all || r.applied == 0 {
		return fmt.Errorf("%s %s: the receipt %q does not add up", method, uri, text)
	}
	n.receipt = r
	return nil
}

// believe asks the nodes at once that have a change by a receipt.
func (f *fleet) believe(r *fleetReceipt, world int, s *fleetStep) {
	if len(r.late) == 0 {
		f.all.Add(1)
	}
	draw := rand.New(rand.NewPCG(uint64(world), 0))
	for i, n := range f.nodes {
		switch late := slices.Contains(r.late, n.id); {
		// A node counts for 5 s longer than its max_staleness, from its last report, which was up to 2 s before its end.
		case n.down && !late && time.Since(n.since) < fleetStaleness+3*time.Second:
			f.fail("%s: the receipt %+v counts %s, which is down since %v", s.text, r, n.id, time.Since(n.since))
		case !n.down && !late:
			f.has(n, world, s.user)
			for range 5 {
				if user, token, ok := f.draw(draw); ok && (user == s.user || s.user < 0) {
					f.ask(i, user, token, drawFleetAction(draw), 0)
				}
			}
		}
	}
}

// up lists the nodes that run.
func (f *fleet) up() []*fleetNode {
	return slices.DeleteFunc(slices.Clone(f.nodes), func(n *fleetNode) bool { return n.down })
}

// fail reports the first failure.
func (f *fleet) fail(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.sealed {
		f.sealed = true
		f.t.Errorf("%s\nafter these steps:\n%s", fmt.Sprintf(format, args...), strings.Join(f.steps, "\n"))
	}
}

// draw draws a token that there is.
func (f *fleet) draw(draw *rand.Rand) (user, token int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := f.past[len(f.past)-1]
	if len(last.users) == 0 {
		return 0, 0, false
	}
	user = draw.IntN(len(last.users))
	if len(last.users[user].tokens) == 0 {
		return 0, 0, false
	}
	token = draw.IntN(len(last.users[user].tokens))
	for range 2 { // mostly one that is valid
		if last.users[user].tokens[token].ended {
			token = draw.IntN(len(last.users[user].tokens))
		}
	}
	return user, token, last.users[user].tokens[token].secret != ""
}

// ask sends a request to node i. The answer must be that of a world between the last one that the node is
// known to have and the newest. It returns false if the node did not decide: with 503 or, if it is killed,
// without an answer.
func (f *fleet) ask(i, user, token int, a oracle.Action, least int) (status int, decided bool) {
	n, sent := f.nodes[i], time.Now()
	f.mu.Lock()
	u := f.past[len(f.past)-1].users[user]
	who := credentials{u.id, u.tokens[token].secret}
	least = max(least, f.base[i], f.known[i][user])
	for world, since := range f.since {
		if sent.Sub(since) > fleetStaleness {
			least = max(least, world)
		}
	}
	f.mu.Unlock()
	status, _, text, err := n.send(a.Method, "API_PORT", &url.URL{Path: a.Path}, a.Host, who, nil, a.Header)
	f.asked.Add(1)
	switch {
	case err != nil:
		return 0, false
	case status == http.StatusServiceUnavailable:
		f.refused.Add(1)
		return status, false
	case status == http.StatusOK:
		f.passed.Add(1)
	}
	f.mu.Lock()
	for world := least; world < len(f.past); world++ {
		if f.past[world].status(user, token, a) == status {
			f.known[i][user] = max(f.known[i][user], world)
			f.mu.Unlock()
			return status, true
		}
	}
	newest := len(f.past) - 1
	want := f.past[newest].status(user, token, a)
	f.mu.Unlock()
	f.fail("node %d, token %d of user %d, %s %s%s %v: got %d %q, which no world from %d to the newest, %d, gives; the newest gives %d",
		i, token, user, a.Method, a.Host, a.Path, a.Header, status, text, least, newest, want)
	return status, true
}

// watch asks every node all the time, until stop is called.
func (f *fleet) watch(seed uint64) (stop func()) {
	var running sync.WaitGroup
	done := make(chan struct{})
	for i := range f.nodes {
		draw := rand.New(rand.NewPCG(seed, uint64(i+1)))
		running.Go(func() {
			pause := time.NewTicker(3 * time.Millisecond)
			defer pause.Stop()
			for {
				select {
				case <-done:
					return
				case <-pause.C:
				}
				if user, token, ok := f.draw(draw); ok {
					f.ask(i, user, token, drawFleetAction(draw), 0)
				}
			}
		})
	}
	return func() {
		close(done)
		running.Wait()
	}
}

// round makes one to three changes at once, at different nodes, and asks every node afterwards.
func (f *fleet) round(draw *rand.Rand) {
	if f.t.Failed() {
		return
	}
	f.mu.Lock()
	next := f.past[len(f.past)-1].clone()
	f.mu.Unlock()
	up := f.up()
	var steps []*fleetStep
	if len(next.groups) < 2 || draw.IntN(3) == 0 {
		steps = append(steps, next.planForAll(draw))
	} else {
		busy := make(map[int]bool)
		for n := 1 + draw.IntN(len(up)); n > 0; n-- {
			before := fmt.Sprint(next)
			if s := next.planForOne(draw, busy); s != nil {
				if fmt.Sprint(next) == before { // nothing changes, and a node that is down may have that
					send := s.send
					s.send = func(f *fleet, n *fleetNode) error {
						err := send(f, n)
						n.receipt = nil
						return err
					}
				}
				busy[s.user] = true
				steps = append(steps, s)
			}
		}
	}
	f.wait = one(draw, fleetWaits...)
	draw.Shuffle(len(up), func(i, j int) { up[i], up[j] = up[j], up[i] })
	f.make(next, steps, up)
	f.check(draw)
}

// make makes the steps at the nodes, at the same time. They lead to the world next.
func (f *fleet) make(next fleetWorld, steps []*fleetStep, at []*fleetNode) {
	f.mu.Lock()
	f.past, f.since = append(f.past, next), append(f.since, time.Now().Add(time.Hour))
	world := len(f.past) - 1
	for i, s := range steps {
		f.steps = append(f.steps, fmt.Sprintf("%3d at %s: %s", world, at[i].name, s.text))
	}
	f.mu.Unlock()
	var making sync.WaitGroup
	for i, s := range steps {
		at[i].receipt = nil
		making.Go(func() {
			if err := s.send(f, at[i]); err != nil {
				f.fail("%s: %v", s.text, err)
				return
			}
			f.has(at[i], world, s.user)
			if r := at[i].receipt; r != nil {
				f.believe(r, world, s)
			}
		})
	}
	making.Wait()
	f.mu.Lock()
	f.since[world] = time.Now()
	f.mu.Unlock()
	var revision int64
	deadline := time.Now().Add(time.Minute)
	for _, n := range at {
		own := n.revision()
		for ; own == 0 && time.Now().Before(deadline); own = n.revision() { // it cannot read the store right now
			time.Sleep(time.Millisecond)
		}
		revision = max(revision, own)
	}
	for _, n := range f.up() {
		for n.revision() < revision {
			if time.Now().After(deadline) {
				f.fail("%s has revision %d, want %d", n.name, n.revision(), revision)
				return
			}
			time.Sleep(time.Millisecond)
		}
		f.has(n, world, -1)
	}
}

// has notes that a node has a world, for one service user or for all (-1).
func (f *fleet) has(n *fleetNode, world, user int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.nodes, n)
	if user < 0 {
		f.base[i] = max(f.base[i], world)
	} else {
		f.known[i][user] = max(f.known[i][user], world)
	}
}

// check asks every node that runs. Each has the newest world.
func (f *fleet) check(draw *rand.Rand) {
	for i, n := range f.nodes {
		if n.down {
			continue
		}
		for range 20 {
			if user, token, ok := f.draw(draw); ok {
				f.decide(i, user, token, drawFleetAction(draw))
			}
		}
	}
}

// decide asks a node until it decides.
func (f *fleet) decide(i, user, token int, a oracle.Action) (status int) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if status, decided := f.ask(i, user, token, a, 0); decided {
			return status
		}
	}
	f.fail("node %d does not decide", i)
	return 0
}

// passing draws a request that is let in. While there is none, it makes changes.
func (f *fleet) passing(draw *rand.Rand) (user, token int, a oracle.Action, ok bool) {
	for try := range 100_000 {
		if try%1000 == 999 {
			f.round(draw)
		}
		if user, token, ok = f.draw(draw); ok {
			a = drawFleetAction(draw)
			f.mu.Lock()
			status := f.past[len(f.past)-1].status(user, token, a)
			f.mu.Unlock()
			if status == http.StatusOK {
				return user, token, a, true
			}
		}
	}
	f.fail("no request is let in")
	return 0, 0, a, false
}

// deactivate is a change that ends what passing has found.
func (f *fleet) deactivate(user int) (next fleetWorld, s *fleetStep) {
	f.mu.Lock()
	next = f.past[len(f.past)-1].clone()
	f.mu.Unlock()
	next.users[user].active = false
	at := "/service_users/" + next.users[user].id
	return next, &fleetStep{fmt.Sprintf("deactivate user %d", user), user, func(f *fleet, n *fleetNode) error {
		return f.change(n, "PATCH", at, admin.ServiceUserInput{Active: admin.Some(false)}, nil)
	}}
}

// Three Caddys on one store in PostgreSQL decide as the oracle does, while changes are made at any of
// them: while they run, by a state that is not older than the last one that they have shown, and at last by
// the newest. Nodes are killed and stopped, and lose their connections to the database.
func TestFleet(t *testing.T) {
	t.Parallel()
	seed := *fleetSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -fleetseed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	f := startFleet(t, 3, fleetCaddyfile)
	f.startCounting()
	begun := time.Now().Truncate(time.Second)
	for i, n := range f.nodes {
		f.use(n, 3+2*i)
	}
	k := f.count(15)
	// Times are in seconds, and all uses may be in one.
	if len(k.UsedFrom) != 3 || k.LastUsedAt == nil || k.LastUsedAt.Before(begun) ||
		!slices.ContainsFunc(k.UsedFrom, func(a admin.SeenAddress) bool {
			return a.Address == k.LastUsedIP && a.LastUsedAt.Equal(*k.LastUsedAt)
		}) {
		t.Errorf("uses at three nodes: got %+v, want three addresses, among them the last", k)
	}
	for range 4 { // groups, and service users
		f.round(draw)
	}
	stop := f.watch(seed)
	defer stop()
	var killed *fleetNode
	for round := range *fleetRounds {
		switch round % 48 {
		case 6:
			killed = f.nodes[draw.IntN(2)] // behind the pooler, connections outlive a node
			f.kill(draw, killed)
		case 8:
			f.revive(killed)
		case 14:
			long := fleetStaleness + 100*time.Millisecond
			if round > 48 && draw.IntN(2) == 0 {
				long += 6 * time.Second // it does not count any more
			}
			f.freeze(draw, f.nodes[draw.IntN(3)], long)
		}
		var losing sync.WaitGroup
		if n := f.nodes[draw.IntN(3)]; draw.IntN(4) == 0 {
			when := time.Duration(draw.IntN(20)) * time.Millisecond
			losing.Go(func() {
				<-time.After(when)
				f.disconnect(n)
			})
		}
		f.round(draw)
		losing.Wait()
		if t.Failed() {
			return
		}
	}
	for _, n := range f.nodes {
		var report admin.AuditReport
		if _, err := n.admin("GET", "/audit_events/verify", nil, &report); err != nil || !report.OK {
			t.Errorf("the audit trail at %s: got %+v, %v", n.name, report, err)
		}
		if log := n.log.String(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
			t.Errorf("%s: its log has a race or a panic", n.name)
		}
	}
	f.count(f.uses)
	t.Logf("%d worlds; %d answers, %d of them 200, %d of them 503; %d receipts by all", len(f.past), f.asked.Load(), f.passed.Load(), f.refused.Load(), f.all.Load())
	if f.passed.Load() == 0 || f.all.Load() == 0 {
		t.Error("the test shows nothing")
	}
}
