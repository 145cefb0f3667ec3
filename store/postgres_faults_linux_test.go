//go:build linux

package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

var pgKills = flag.Int("pgkills", 2, "how often TestPostgresKills ends the database")

// The database is killed, stopped, restarted and paused, and ends connections, while three nodes change the store.
// Nothing acknowledged is lost, nothing refused is made, and no node answers a request from before a change that it has
// acknowledged.
func TestPostgresKills(t *testing.T) {
	// Most of a change is its commit, which waits 30 ms.
	server, draw := pgtest.Own(t, "fsync=on", "commit_delay=30000", "commit_siblings=0"), random(t)
	var timeouts timeouts
	if draw.IntN(2) == 0 { // some changes are not known in the end
		timeouts.commit = 100 * time.Millisecond
	}
	f := &pgFleet{t: t, draw: draw}
	core, logs := observer.New(zap.ErrorLevel)
	at := server.SocketURL(pgtest.Role, server.NewSchema(t, pgtest.Role))
	for i := range 3 {
		f.writers = append(f.writers, newPGWriter(open(t, at, Options{NodeID: fmt.Sprint("node_", i), Log: zap.New(core), timeouts: timeouts}), draw.Uint64()))
	}
	for n := range *pgKills {
		fault := "kill"
		if n%2 == 1 {
			fault = []string{"pause", "end of connections", "fast stop", "immediate stop"}[n/2%4]
		}
		f.round(fmt.Sprintf("%s %d", fault, n), func() {
			switch fault {
			case "kill":
				mustDo(server.Kill())
			case "fast stop":
				mustDo(server.Stop(pgtest.Fast))
			case "immediate stop":
				mustDo(server.Stop(pgtest.Immediate))
			case "pause":
				must(server.Pause())
				<-time.After(time.Duration(draw.IntN(200)) * time.Millisecond)
				mustDo(server.Continue())
				return
			case "end of connections":
				for range 20 {
					mustDo(server.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '` + pgtest.Role + `'`))
					<-time.After(time.Duration(draw.IntN(20)) * time.Millisecond)
				}
				return
			}
			if n%2 == 0 { // otherwise it is back at once
				for _, w := range f.writers {
					eventually(t, fault+": the fault", func() bool { return w.s.Fault() != "" })
				}
			}
			mustDo(server.Start())
		})
		if t.Failed() {
			return
		}
	}
	if *pgKills >= 20 && f.refused == 0 || logs.FilterMessageSnippet("the store cannot be read").Len() == 0 {
		t.Errorf("%d changes were refused, and the logs have %d lines; the test shows little", f.refused, logs.Len())
	}
	t.Logf("%d faults, %d changes made, %d refused, %d not known", *pgKills, f.made, f.refused, f.unknown)
	if log := server.Log(); strings.Contains(log, "deadlock") {
		t.Errorf("the log of the database has a deadlock: %s", log)
	}
}

// pgFleet is some nodes, each with a writer.
type pgFleet struct {
	t                      *testing.T
	draw                   *rand.Rand
	writers                []*pgWriter
	made, refused, unknown int
}

// round lets all writers change the store while a fault happens, and checks the store when they have recovered.
func (f *pgFleet) round(when string, fault func()) {
	t, first := f.t, f.writers[0].s
	from := first.AuditHead().Seq
	group := addGroup(first, "users of "+when, "allow GET /a").ID
	for i, w := range f.writers {
		w.user, w.always = addUser(first, fmt.Sprint("u", i, " of ", when), group)
	}
	f.agree(when)
	stop := make(chan struct{})
	var running sync.WaitGroup
	for _, w := range f.writers {
		running.Go(func() { w.write(t, stop) })
		running.Go(func() { w.probe(t, when, stop) })
	}
	acknowledged := func(more int) {
		t.Helper()
		for _, w := range f.writers {
			before, _, _ := w.count()
			eventually(t, when+": acknowledged changes", func() bool { now, _, _ := w.count(); return now >= before+more })
		}
	}
	acknowledged(f.draw.IntN(5))
	<-time.After(time.Duration(f.draw.IntN(5000)) * time.Microsecond) // any instant
	fault()
	acknowledged(1)
	close(stop)
	running.Wait()
	for _, w := range f.writers {
		mended(t, w.s)
	}
	f.agree(when)
	f.check(when, from)
	whole(t, f.writers[f.draw.IntN(len(f.writers))].s)
	for _, w := range f.writers {
		idle(t, when, w.s)
		made, refused, unknown := w.count()
		f.made, f.refused, f.unknown = f.made+made, f.refused+refused, f.unknown+unknown
		w.outcomes = make(map[string]error)
	}
}

// pgWriter changes a store at one node.
type pgWriter struct {
	s        *Store
	draw     *rand.Rand
	user     ServiceUser
	always   *Issued // a token that no change concerns
	mu       sync.Mutex
	outcomes map[string]error          // of each change, by operation
	tokens   map[*Issued]access.Reason // the answer to a request with each
	unsure   map[*Issued]bool          // whether it was revoked is not known
	live     []*Issued
}

func newPGWriter(s *Store, seed uint64) *pgWriter {
	return &pgWriter{
		s: s, draw: rand.New(rand.NewPCG(seed, 0)), outcomes: make(map[string]error),
		tokens: make(map[*Issued]access.Reason), unsure: make(map[*Issued]bool),
	}
}

// count counts the changes that were made, refused, and of which that is not known.
func (w *pgWriter) count() (made, refused, unknown int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, err := range w.outcomes {
		switch {
		case err == nil:
			made++
		case errors.Is(err, ErrUncertain):
			unknown++
		default:
			refused++
		}
	}
	return made, refused, unknown
}

// write makes changes until stop is closed.
func (w *pgWriter) write(t *testing.T, stop <-chan struct{}) {
	w.live = nil
	for {
		select {
		case <-stop:
			return
		default:
			w.change(t)
		}
	}
}

// change makes a group or a token, or revokes a token.
func (w *pgWriter) change(t *testing.T) {
	by := Actor{Name: "human:writer", Operation: NewOperationID()}
	var token *Issued
	var err error
	why := access.Granted
	switch n := w.draw.IntN(5); {
	case n == 0:
		_, err = w.s.CreateGroup(ctx, by, Group{Name: "made by " + by.Operation})
	case n < 3 && len(w.live) < 10 || len(w.live) == 0:
		if token, err = w.s.CreateToken(ctx, by, w.user.ID, Token{}); err == nil {
			w.live = append(w.live, token)
		}
	default:
		i := w.draw.IntN(len(w.live))
		token, why = w.live[i], access.TokenRevoked
		if err = w.s.RevokeToken(ctx, by, w.user.ID, token.ID, 0); err == nil || errors.Is(err, ErrUncertain) {
			w.live = slices.Delete(w.live, i, i+1)
		}
	}
	if k := kind(err); k != "ok" && !strings.HasPrefix(k, "broken") {
		t.Errorf("a change that is right: got %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcomes[by.Operation] = err
	switch {
	case err == nil && token != nil:
		w.tokens[token] = why
	case errors.Is(err, ErrUncertain) && why == access.TokenRevoked:
		delete(w.tokens, token)
		w.unsure[token] = true
	}
}

// probe sends requests to the node until stop is closed. Revoked tokens are refused from the answer to the
// revocation on, and others work all the time.
func (w *pgWriter) probe(t *testing.T, when string, stop <-chan struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if got := probe(w.s, w.user.ID, w.always.Secret, "GET /a"); got != access.Granted || w.s.Stale() {
			t.Errorf("%s: a request: got %v, stale: %v", when, got, w.s.Stale())
			return
		}
		w.mu.Lock()
		var revoked []*Issued
		for token, why := range w.tokens {
			if why == access.TokenRevoked && token.UserID == w.user.ID {
				revoked = append(revoked, token)
			}
		}
		w.mu.Unlock()
		for _, token := range revoked {
			if got := probe(w.s, token.UserID, token.Secret, "GET /a"); got != access.TokenRevoked {
				t.Errorf("%s: a token whose revocation was acknowledged: got %v", when, got)
				return
			}
		}
	}
}

// agree waits until all nodes have the last revision.
func (f *pgFleet) agree(when string) {
	t, writers := f.t, f.writers
	t.Helper()
	var last int64
	mustDo(writers[0].s.read.QueryRowContext(ctx, `SELECT revision FROM meta`).Scan(&last))
	for _, w := range writers {
		eventually(t, when+": the last revision", func() bool { return w.s.Directory().Revision() == last })
	}
	if r := must(writers[0].s.Wait(ctx, last)); r.Applied != len(writers) || r.All != len(writers) {
		t.Errorf("%s: the receipt: got %+v, want all of %d", when, r, len(writers))
	}
}

// check compares the store and each directory with what the writers were told. The audit trail after a
// record has each change that was acknowledged once, and none that was refused.
func (f *pgFleet) check(when string, from int64) {
	t, writers := f.t, f.writers
	t.Helper()
	records := make(map[string]int)
	for _, op := range must(collect(must(writers[0].s.read.QueryContext(ctx, `
		SELECT operation_id FROM audit_events WHERE seq > $1 AND actor = 'human:writer'`, from)), scanString)) {
		records[op]++
	}
	for _, w := range writers {
		for op, err := range w.outcomes {
			n := records[op]
			delete(records, op)
			if n > 1 || err == nil && n == 0 || err != nil && !errors.Is(err, ErrUncertain) && n > 0 {
				t.Errorf("%s: a change with the outcome %v: got %d records", when, err, n)
			}
		}
		for token, want := range w.tokens {
			for _, other := range writers {
				if got := probe(other.s, token.UserID, token.Secret, "GET /a"); got != want {
					t.Errorf("%s: %s: a token of %s: got %v, want %v", when, other.s.opts.NodeID, w.s.opts.NodeID, got, want)
				}
			}
		}
		for token := range w.unsure { // the same everywhere
			want := probe(w.s, token.UserID, token.Secret, "GET /a")
			if want != access.Granted && want != access.TokenRevoked {
				t.Errorf("%s: a token whose revocation is not known: got %v", when, want)
			}
			for _, other := range writers {
				if got := probe(other.s, token.UserID, token.Secret, "GET /a"); got != want {
					t.Errorf("%s: %s: a token whose revocation is not known: got %v, want %v as elsewhere", when, other.s.opts.NodeID, got, want)
				}
			}
		}
	}
	if len(records) > 0 {
		t.Errorf("%s: records of changes that no writer made: %v", when, records)
	}
}

// shortTimeouts are for a store whose database is silent. A test that needs them runs alone: beside others
// a call without any fault may take as long.
var shortTimeouts = timeouts{
	turn: 2 * time.Second, change: 2 * time.Second, commit: 2 * time.Second, whole: 3 * time.Second,
	look: time.Second, idle: time.Second,
}

// ends fails the test unless a call ends.
func ends(t *testing.T, what string, call func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		t.Fatalf("%s does not end", what)
		return nil
	}
}

// idle waits until a store uses no connection but that of the watcher.
func idle(t *testing.T, what string, s *Store) {
	t.Helper()
	eventually(t, what+": the connections in use", func() bool {
		return s.write.Stats().InUse == 0 && s.read.Stats().InUse == 0
	})
}

// The database ends a connection in the middle of a change: the change is made once. It ends the connection that
// listens: the node listens again.
func TestPostgresTerminated(t *testing.T) {
	server := pgtest.Shared(t)
	for _, statement := range []string{"set_config", "FOR UPDATE", "INSERT INTO audit_events", "pg_notify", "commit\x00", "listening"} {
		schema := server.NewSchema(t, pgtest.Role)
		terminate := func(which string) {
			mustDo(server.Exec(`SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
				WHERE application_name = '` + schema + `' AND ` + which))
		}
		var armed atomic.Bool
		at := must(url.Parse(server.TCPURL(pgtest.Role, schema)))
		at.Host = pgtest.Proxy(t, at.Host, func(sent []byte) (end, forward bool) {
			if bytes.Contains(sent, []byte(statement)) && armed.CompareAndSwap(true, false) {
				terminate(`state LIKE 'idle in transaction%'`)
			}
			return false, false
		})
		core, logs := observer.New(zap.InfoLevel)
		a := open(t, server.SocketURL(pgtest.Role, schema), Options{})
		b := open(t, at.String()+"&application_name="+schema, Options{Log: zap.New(core), Poll: time.Hour})
		arrives := func(name string) { // a notification announces it
			t.Helper()
			addGroup(a, name)
			want := a.Directory().Revision()
			eventually(t, statement+": the change of another node", func() bool { return b.Directory().Revision() == want })
		}
		arrives("before")
		if statement == "listening" {
			terminate(`TRUE`)
			for _, want := range []string{"the store cannot be read", "the store can be read again"} {
				eventually(t, want, func() bool { return logs.FilterMessageSnippet(want).Len() > 0 })
			}
		}
		armed.Store(true)
		addGroup(b, "g")
		if armed.Load() == (statement != "listening") {
			t.Errorf("%s: the statement was not sent", statement)
		}
		arrives("after")
		if events := trail(t, a); len(events) != 3 {
			t.Errorf("%s: audit records: got %d, want 3", statement, len(events))
		}
		idle(t, statement, b)
	}
}

// The network swallows one statement and all that follow, while the connection stays open. The call that sent the
// statement ends, the node goes on with another connection, and the database frees the locks.
func TestPostgresSilence(t *testing.T) {
	server := pgtest.Shared(t)
	create := func(s *Store, _ string) error { return second(s.CreateGroup(ctx, alice, Group{Name: "made"})) }
	start := func(_ *Store, at string) error {
		s, err := Open(ctx, at+"&application_name=start", Options{timeouts: shortTimeouts})
		if err == nil {
			mustDo(s.Close())
		}
		return err
	}
	figures := func(s *Store, _ string) error {
		u, token := addUser(s, fmt.Sprint("u", s.Directory().Revision()))
		p, _ := s.Directory().Authenticate(access.Credential{ID: u.ID, Secret: token.Secret}, addrOf("192.0.2.1"), s.Now().Unix())
		s.Use(p, s.Now().Unix(), addrOf("192.0.2.1"), "")
		return s.FlushUse(ctx)
	}
	var running errgroup.Group
	running.SetLimit(12) // the rows wait most of the time
	for _, row := range []struct {
		name, statement string
		change          bool
		call            func(s *Store, at string) error // nil for a statement of the watcher
	}{
		{"the listener", "LISTEN ", false, nil},
		{"a look", "EXTRACT(EPOCH FROM now())", false, nil},
		{"a report", "UPDATE nodes", false, nil},
		{"the beginning of a change", "begin", true, create},
		{"the lock of a change", "FOR UPDATE", true, create},
		{"the middle of a change", "INSERT INTO audit_events", true, create},
		{"a commit", "commit\x00", true, create},
		{"a read", "FROM permission_groups", false, func(s *Store, _ string) error { return third(s.Groups(ctx, Local, "", "", 10)) }},
		{"the audit trail", "ORDER BY seq", false, func(s *Store, _ string) error { return second(s.VerifyAudit(ctx, Local, AuditHead{})) }},
		{"a check", "ORDER BY seq", false, func(s *Store, _ string) error { return second(s.Check(ctx, Local, AuditHead{})) }},
		{"the nodes", "FROM nodes", false, func(s *Store, _ string) error { return second(s.Nodes(ctx, Local)) }},
		{"figures", "FOR NO KEY UPDATE", false, figures},
		{"a connection of a start", "application_name\x00start", false, start},
		{"the tables of a start", "pg_advisory_xact_lock", false, start},
		{"the directory of a start", "FROM service_users", false, start},
		{"the node of a start", "INSERT INTO nodes", false, start},
	} {
		running.Go(func() error {
			t.Run(row.name, func(t *testing.T) {
				schema := server.NewSchema(t, pgtest.Role)
				var armed atomic.Bool
				hit, release := make(chan struct{}), make(chan struct{})
				at := must(url.Parse(server.TCPURL(pgtest.Role, schema) + "&connect_timeout=1"))
				at.Host = pgtest.Proxy(t, at.Host, func(sent []byte) (end, forward bool) {
					if bytes.Contains(sent, []byte(row.statement)) && armed.CompareAndSwap(true, false) {
						close(hit)
						<-release
						return true, false
					}
					return false, false
				})
				t.Cleanup(func() { close(release) }) // after the stores are closed
				direct := open(t, server.SocketURL(pgtest.Role, schema), Options{UseInterval: time.Hour})
				u, token := addUser(direct, "u", addGroup(direct, "g", "allow GET /a").ID)
				s := open(t, at.String()+"&application_name="+schema, Options{UseInterval: time.Hour, timeouts: shortTimeouts})
				armed.Store(true)
				var err error
				if row.call != nil {
					// A change can be made after the database has ended its connection.
					err = ends(t, row.name, func() error { return row.call(s, at.String()) })
					if err == nil && !row.change {
						t.Error("got no error")
					}
				} else if row.statement == "LISTEN " {
					mustDo(server.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '` + schema + `'`))
				} else {
					addGroup(direct, "to be reported")
					eventually(t, "the fault", func() bool { return s.Fault() != "" })
				}
				select {
				case <-hit:
				case <-time.After(time.Minute):
					t.Fatal("the statement was not sent")
				}
				if got := probe(s, u.ID, token.Secret, "GET /a"); got != access.Granted || s.Stale() {
					t.Errorf("a request: got %v, stale %v", got, s.Stale())
				}
				// All goes on.
				addGroup(direct, "another")
				want := direct.Directory().Revision()
				eventually(t, "the change of another node", func() bool { return s.Directory().Revision() == want })
				mended(t, s)
				var made bool
				mustDo(direct.read.QueryRowContext(ctx, `SELECT COUNT(*) > 0 FROM permission_groups WHERE name = 'made'`).Scan(&made))
				if made != (err == nil && row.change) && !errors.Is(err, ErrUncertain) {
					t.Errorf("the change: got %v, and it was made: %v", err, made)
				}
				if row.call != nil && !made {
					eventually(t, "the call without a fault", func() bool { return row.call(s, at.String()) == nil })
				}
				eventually(t, "a change", func() bool { return second(s.CreateGroup(ctx, alice, Group{Name: "next"})) == nil })
				if r := must(direct.Wait(ctx, s.Directory().Revision())); r.Applied != 2 {
					t.Errorf("the receipt: got %+v, want 2 nodes", r)
				}
				idle(t, "afterwards", s)
				whole(t, direct)
			})
			return nil
		})
	}
	_ = running.Wait()
}

// Reads that get no answer do not keep the watcher from connecting again.
func TestPostgresReadsHang(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	schema := server.NewSchema(t, pgtest.Role)
	release := make(chan struct{})
	at := must(url.Parse(server.TCPURL(pgtest.Role, schema) + "&application_name=" + schema))
	at.Host = pgtest.Proxy(t, at.Host, func(sent []byte) (end, forward bool) {
		if bytes.Contains(sent, []byte("FROM permissions")) {
			<-release
			return true, false
		}
		return false, false
	})
	direct := open(t, server.SocketURL(pgtest.Role, schema), Options{})
	s := open(t, at.String(), Options{timeouts: timeouts{change: time.Hour}})
	reading, cancel := context.WithCancel(ctx)
	var reads sync.WaitGroup
	end := sync.OnceFunc(func() {
		cancel()
		reads.Wait()
		close(release)
	})
	defer end()
	for range 100 {
		reads.Go(func() {
			if _, err := s.Permissions(reading, Local); err == nil {
				t.Error("a read got an answer")
			}
		})
	}
	eventually(t, "the reads", func() bool { return s.read.Stats().WaitCount >= 99 })
	mustDo(server.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '` + schema + `'`))
	addGroup(direct, "g")
	eventually(t, "the change of another node", func() bool { return s.Directory().Revision() == direct.Directory().Revision() })
	mended(t, s)
	end()
	idle(t, "afterwards", s)
}

// A node ends in time although the database answers nothing.
func TestPostgresSilentEnd(t *testing.T) {
	server := pgtest.Shared(t)
	var silent atomic.Bool
	release := make(chan struct{})
	at := must(url.Parse(server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role)) + "&connect_timeout=1"))
	at.Host = pgtest.Proxy(t, at.Host, func([]byte) (end, forward bool) {
		if silent.Load() {
			<-release
		}
		return silent.Load(), false
	})
	core, logs := observer.New(zap.WarnLevel)
	recall := access.NewRecall(10)
	s := must(Open(ctx, at.String(), Options{UseInterval: time.Hour, Refusals: recall, refusalPoll: time.Hour, Log: zap.New(core), timeouts: shortTimeouts}))
	u, token := addUser(s, "u")
	p, _ := s.Directory().Authenticate(access.Credential{ID: u.ID, Secret: token.Secret}, addrOf("192.0.2.1"), s.Now().Unix())
	s.Use(p, s.Now().Unix(), addrOf("192.0.2.1"), "")
	recall.Keep(refusal(decisionID(1), u.ID, "/a", s.Now()))
	silent.Store(true)
	err := ends(t, "the end", s.Close)
	close(release)
	if err == nil {
		t.Error("the use is lost, and there is no error")
	}
	for _, want := range []string{"the use of tokens cannot be written", "refusals cannot be written", "the node could not say that it ends"} {
		if logs.FilterMessageSnippet(want).Len() != 1 {
			t.Errorf("the log: got %v, want %q", logs.All(), want)
		}
	}
}

// toxicProxy returns a proxy before a database, whose toxics spoil the traffic.
func toxicProxy(t *testing.T, to string) *toxiproxy.Proxy {
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "database", "127.0.0.1:0", to)
	mustDo(p.Start())
	t.Cleanup(func() {
		p.Toxics.ResetToxics(ctx) // those that hold a connection would hold the end too
		p.Stop()
	})
	return p
}

// calls are all methods of a store that ask the database, and need no file.
func (w *world) calls() map[string]func() error {
	profile := access.Profile{Name: "another", Active: true}
	itself := func(u *ServiceUser) error { u.Description = "x"; return nil }
	return map[string]func() error{
		"AddMember":   func() error { return w.AddMember(ctx, alice, w.closers.ID, w.user.ID) },
		"AddRule":     func() error { return second(w.AddRule(ctx, alice, w.readers.ID, rules("allow GET /v3")[0])) },
		"AuditEvents": func() error { return third(w.AuditEvents(ctx, alice, AuditQuery{Limit: 10})) },
		"ChangeUsers": func() error {
			return second(w.ChangeUsers(ctx, alice, Bulk{Entries: []Entry{{ID: w.user.ID, Change: RefreshTokens(time.Hour, new([]Replaced))}}}))
		},
		"Check":         func() error { return second(w.Check(ctx, alice, AuditHead{})) },
		"ClaimExpiring": func() error { return second(w.ClaimExpiring(ctx)) },
		"CreateGroup":   func() error { return second(w.CreateGroup(ctx, alice, Group{Name: "another"})) },
		"CreateServiceUser": func() error {
			return third(w.CreateServiceUser(ctx, alice, ServiceUser{Profile: profile}, &Token{}))
		},
		"CreateToken":       func() error { return second(w.CreateToken(ctx, alice, w.user.ID, Token{})) },
		"DeleteGroup":       func() error { return w.DeleteGroup(ctx, alice, w.closers.ID, 0) },
		"DeletePermission":  func() error { return w.DeletePermission(ctx, alice, "a.b") },
		"DeleteServiceUser": func() error { return w.DeleteServiceUser(ctx, alice, w.user.ID, 0, 0) },
		"DeletedGroups":     func() error { return third(w.DeletedGroups(ctx, alice, "", "", 10)) },
		"FindTokens":        func() error { return third(w.FindTokens(ctx, alice, TokenQuery{Limit: 10})) },
		"FlushUse": func() error {
			p, _ := w.Directory().Authenticate(access.Credential{ID: w.user.ID, Secret: w.token.Secret}, addrOf("192.0.2.1"), w.now().Unix())
			w.Use(p, w.now().Unix(), addrOf("192.0.2.1"), "")
			return w.FlushUse(ctx)
		},
		"ForgetNode":      func() error { return w.ForgetNode(ctx, alice, "node_gone") },
		"GrantPermission": func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "a.b") },
		"Group":           func() error { return second(w.Group(ctx, alice, w.readers.ID)) },
		"Groups":          func() error { return third(w.Groups(ctx, alice, "", "", 10)) },
		"LoadPermissions": func() error { return second(w.LoadPermissions(ctx, alice, permissionList("b.c"), false)) },
		"Members":         func() error { return third(w.Members(ctx, alice, w.readers.ID, "", 10)) },
		"Nodes":           func() error { return second(w.Nodes(ctx, alice)) },
		"NoteAttempt":     func() error { return w.NoteAttempt(ctx, alice, "", Attempt{Status: 403}) },
		"Permissions":     func() error { return second(w.Permissions(ctx, alice)) },
		"PreviewGroup": func() error {
			_, _, _, err := w.PreviewGroup(ctx, alice, w.readers.ID, func(g *Group) error { g.Description = "x"; return nil })
			return err
		},
		"RefreshToken":        func() error { return third(w.RefreshToken(ctx, alice, w.user.ID, w.token.ID, 0, time.Hour, 0)) },
		"Refusal":             func() error { return second(w.Refusal(ctx, alice, decisionID(1))) },
		"Refusals":            func() error { return second(w.Refusals(ctx, alice, w.user.ID)) },
		"RemoveMember":        func() error { return w.RemoveMember(ctx, alice, w.readers.ID, w.user.ID) },
		"RemoveRule":          func() error { return w.RemoveRule(ctx, alice, w.readers.ID, w.readers.Rules[0].ID) },
		"RevokeToken":         func() error { return w.RevokeToken(ctx, alice, w.user.ID, w.token.ID, 0) },
		"RotateToken":         func() error { return third(w.RotateToken(ctx, w.itself(), w.user.ID, w.token.ID, time.Hour)) },
		"ServiceUser":         func() error { return second(w.ServiceUser(ctx, alice, w.user.ID, false)) },
		"ServiceUsers":        func() error { return third(w.ServiceUsers(ctx, alice, UserQuery{Limit: 10})) },
		"Token":               func() error { return second(w.Store.Token(ctx, alice, w.user.ID, w.token.ID)) },
		"TokenOwner":          func() error { return second(w.TokenOwner(ctx, alice, w.token.ID)) },
		"UndeleteGroup":       func() error { _, _, _, err := w.UndeleteGroup(ctx, alice, w.closers.ID); return err },
		"UndeleteServiceUser": func() error { return second(w.UndeleteServiceUser(ctx, alice, w.user.ID)) },
		"UpdateGroup": func() error {
			return second(w.UpdateGroup(ctx, alice, w.readers.ID, 0, func(g *Group) error { g.Description = "x"; return nil }))
		},
		"UpdateServiceUser": func() error { return second(w.UpdateServiceUser(ctx, alice, w.user.ID, 0, itself)) },
		"UpdateToken": func() error {
			return second(w.UpdateToken(ctx, alice, w.user.ID, w.token.ID, 0, func(k *Token) error { k.Description = "x"; return nil }))
		},
		"UsersWhere": func() error {
			return second(w.UsersWhere(ctx, alice, false, func(*ServiceUser) (bool, error) { return true, nil }))
		},
		"VerifyAudit":        func() error { return second(w.VerifyAudit(ctx, alice, AuditHead{})) },
		"WithdrawPermission": func() error { return w.WithdrawPermission(ctx, alice, w.readers.ID, "a.b") },
	}
}

// Connections that are slow, silent, half open, cut or reset: each method ends, with an error that says why, requests
// go on, and afterwards the node recovers by itself, with all connections.
func TestPostgresToxics(t *testing.T) {
	known := (&world{Store: new(Store)}).calls()
	for method := range reflect.TypeFor[*Store]().Methods() {
		withContext := method.Type.NumIn() > 1 && method.Type.In(1) == reflect.TypeFor[context.Context]()
		if _, ok := known[method.Name]; withContext && !ok && method.Name != "Wait" && method.Name != "Backup" {
			t.Errorf("the test does not call %s", method.Name)
		}
	}
	server := pgtest.Shared(t)
	var running errgroup.Group
	running.SetLimit(12) // the rows wait most of the time
	for _, row := range []struct {
		name, toxics string
		fails        string // which calls fail
	}{
		{"slow", `{"type": "latency", "stream": "upstream", "attributes": {"latency": 3, "jitter": 3}}
			{"type": "slicer", "attributes": {"average_size": 50, "size_variation": 25, "delay": 10}}`, "none"},
		{"too slow", `{"type": "latency", "attributes": {"latency": 5000}}`, "all"},
		{"silent", `{"type": "timeout", "attributes": {"timeout": 0}} {"type": "timeout", "stream": "upstream", "attributes": {"timeout": 0}}`, "all"},
		{"half open: answers are lost", `{"type": "timeout", "attributes": {"timeout": 0}}`, "all"},
		{"half open: questions are lost", `{"type": "timeout", "stream": "upstream", "attributes": {"timeout": 0}}`, "all"},
		{"reset", `{"type": "reset_peer", "attributes": {"timeout": 0}}`, "all"},
		{"ended in the middle", `{"type": "limit_data", "attributes": {"bytes": 700}}`, "some"},
		{"refused", ``, "all"},
	} {
		running.Go(func() error {
			t.Run(row.name, func(t *testing.T) { testToxics(t, server, row.toxics, row.fails) })
			return nil
		})
	}
	_ = running.Wait()
}

func testToxics(t *testing.T, server *pgtest.Server, toxics, fails string) {
	schema := server.NewSchema(t, pgtest.Role)
	direct := open(t, server.SocketURL(pgtest.Role, schema), Options{NodeID: "node_direct", UseInterval: time.Hour})
	at := must(url.Parse(server.TCPURL(pgtest.Role, schema) + "&connect_timeout=1&application_name=" + schema))
	p := toxicProxy(t, at.Host)
	at.Host = p.Listen
	w := &world{clock: newClock(), Store: open(t, at.String(), Options{NodeID: "node_toxic", UseInterval: time.Hour, timeouts: shortTimeouts})}
	w.readers = addGroup(direct, "readers", "allow GET /v1/{x}")
	w.closers = addGroup(direct, "closers")
	w.user, w.token = addUser(direct, "billing-sync", w.readers.ID)
	u, token := addUser(direct, "asks", addGroup(direct, "others", "allow GET /v1/x").ID)
	load(direct, permission("a.b"))
	eventually(t, "the directory", func() bool { return w.Directory().Revision() == direct.Directory().Revision() })

	for list := json.NewDecoder(strings.NewReader(toxics)); list.More(); {
		var toxic json.RawMessage
		mustDo(list.Decode(&toxic))
		must(p.Toxics.AddToxicJson(bytes.NewReader(toxic)))
	}
	if toxics == "" {
		p.Stop()
	}
	calls := w.calls()
	errs := make(map[string]error)
	var mu sync.Mutex
	ends(t, "a method", func() error {
		var wg sync.WaitGroup
		for name, call := range calls {
			wg.Go(func() {
				err := call()
				mu.Lock()
				defer mu.Unlock()
				errs[name] = err
			})
		}
		wg.Wait()
		return nil
	})
	for name, err := range errs {
		reason, _ := FaultReason(err)
		if fails == "all" && (kind(err) == "ok" || !strings.HasPrefix(kind(err), "broken") || reason == "") {
			t.Errorf("%s: got %v, for which the reason is %q", name, err, reason)
		}
	}
	if fails != "none" {
		eventually(t, "the fault", func() bool { return w.Fault() != "" })
		addGroup(direct, "meanwhile")
		if r := late(t, direct, "node_toxic"); r.Applied != 1 {
			t.Errorf("the receipt of another node: got %+v, want this node late", r)
		}
	}
	if got := probe(w.Store, u.ID, token.Secret, "GET /v1/x"); got != access.Granted || w.Stale() {
		t.Errorf("a request: got %v, stale %v", got, w.Stale())
	}

	p.Toxics.ResetToxics(ctx)
	if toxics == "" {
		mustDo(p.Start())
	}
	eventually(t, "a change", func() bool { return second(w.CreateGroup(ctx, alice, Group{Name: "next"})) == nil })
	mended(t, w.Store)
	if r := must(direct.Wait(ctx, w.Directory().Revision())); r.Applied != 2 {
		t.Errorf("the receipt: got %+v, want 2 nodes", r)
	}
	idle(t, "afterwards", w.Store)
	var open int
	eventually(t, "three connections at most", func() bool {
		mustDo(server.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, []any{schema}, &open))
		return open <= 3
	})
	whole(t, direct)
}

// The disk of the database is full: changes end with an error that says so, all else goes on. When the database has no
// room for its log of transactions it ends, and requests go on. With room again, all is as before.
func TestPostgresFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run this as root: it mounts a small file system")
	}
	dir := must(os.MkdirTemp("", "full-*")) // the user of the database may not go through t.TempDir()
	t.Cleanup(func() { os.Remove(dir) })
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=200m,mode=1777", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("run this where root may mount a tmpfs (in a container: with CAP_SYS_ADMIN): %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	})
	t.Setenv("TMPDIR", dir)
	server := pgtest.Own(t)
	ballast := filepath.Join(dir, "ballast")
	fill := func() {
		f := must(os.Create(ballast))
		for _, size := range []int{1 << 20, 1 << 12} {
			for part := make([]byte, size); ; {
				if _, err := f.Write(part); err != nil {
					break
				}
			}
		}
		mustDo(f.Close())
	}
	at := server.SocketURL(pgtest.Role, server.NewSchema(t, pgtest.Role))
	opts := Options{UseInterval: time.Hour, timeouts: timeouts{commit: time.Second}}
	a, b := open(t, at, opts), open(t, at, opts)
	u, token := addUser(a, "u", addGroup(a, "g", "allow GET /a").ID)
	goOn := func(when string) {
		t.Helper()
		for _, s := range []*Store{a, b} {
			if got := probe(s, u.ID, token.Secret, "GET /a"); got != access.Granted || s.Stale() {
				t.Errorf("%s: a request: got %v, stale %v", when, got, s.Stale())
			}
		}
	}
	agree := func(when string) {
		t.Helper()
		eventually(t, when+": a change", func() bool { return second(a.CreateGroup(ctx, alice, Group{Name: when})) == nil })
		mended(t, b)
		if r := must(a.Wait(ctx, a.Directory().Revision())); r.Applied != 2 {
			t.Errorf("%s: the receipt: got %+v, want 2 nodes", when, r)
		}
		whole(t, b)
	}
	eventually(t, "the directory", func() bool { return b.Directory().Revision() == a.Directory().Revision() })

	fill()
	var err error
	for n := 0; err == nil; n++ {
		if n > 1000 {
			t.Fatal("the disk does not get full")
		}
		_, _, err = a.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("filler", n), Description: strings.Repeat("x", maxText)}}, &Token{})
	}
	if reason, full := FaultReason(err); !full || errors.Is(err, ErrUncertain) {
		t.Errorf("a change without room: got %v, for the reason %q", err, reason)
	}
	goOn("full")
	if _, _, err := b.Groups(ctx, Local, "", "", 10); err != nil {
		t.Errorf("full: a read: %v", err)
	}
	if r := must(a.Wait(ctx, a.Directory().Revision())); r.Applied != 2 || a.Fault()+b.Fault() != "" {
		t.Errorf("full: got %+v, %q, %q", r, a.Fault(), b.Fault())
	}
	mustDo(os.Remove(ballast))
	agree("room")

	fill()
	mustDo(server.Exec(`SELECT pg_switch_wal()`))
	_, err = a.CreateGroup(ctx, alice, Group{Name: "lost"})
	if reason, _ := FaultReason(err); reason != "its database cannot be reached" {
		t.Errorf("a change without a log of transactions: got %v, for the reason %q", err, reason)
	}
	for _, s := range []*Store{a, b} {
		eventually(t, "the fault", func() bool { return s.Fault() != "" })
	}
	goOn("no log")
	mustDo(os.Remove(ballast))
	mustDo(server.Kill()) // unless it has ended
	mustDo(server.Start())
	agree("room again")
}

// Each node judges tokens by its own clock, and the log says that it differs. Receipts, the times of nodes and
// staleness do not depend on it.
func TestPostgresClocks(t *testing.T) {
	t.Parallel()
	at := pgtest.URL(t)
	var nodes []*Store
	offsets := []time.Duration{-time.Hour, 0, time.Hour}
	for i, offset := range offsets {
		core, logs := observer.New(zap.WarnLevel)
		s := open(t, at, Options{NodeID: fmt.Sprint("node_", i), MaxStaleness: time.Minute, UseInterval: time.Hour, Log: zap.New(core),
			Now: func() time.Time { return time.Now().Add(offset) }})
		nodes = append(nodes, s)
		if got := logs.FilterMessageSnippet("differs from that of the database").Len() == 1; got != (offset != 0) {
			t.Errorf("%v: the log: got %v", offset, logs.All())
		}
		if d := s.ClockDifference() - offset; d.Abs() > clockDifference {
			t.Errorf("%v: the difference: got %v", offset, s.ClockDifference())
		}
	}
	group := addGroup(nodes[0], "g", "allow GET /a")
	agree := func(s *Store) {
		t.Helper()
		if r := must(s.Wait(ctx, s.Directory().Revision())); r.Applied != 3 || r.All != 3 {
			t.Errorf("the receipt: got %+v, want 3 of 3", r)
		}
	}
	for i, s := range nodes {
		// The token ends in 30 minutes by the clock of the node that makes it.
		u, always := addUser(s, fmt.Sprint("u", i), group.ID)
		token := must(s.CreateToken(ctx, alice, u.ID, Token{ExpiresAt: s.Now().Add(30 * time.Minute)}))
		agree(s)
		for j, other := range nodes {
			want := access.Granted
			if j > i {
				want = access.TokenExpired
			}
			if got := probe(other, u.ID, token.Secret, "GET /a"); got != want {
				t.Errorf("a token of %v at %v: got %v, want %v", offsets[i], offsets[j], got, want)
			}
			if got := probe(other, u.ID, always.Secret, "GET /a"); got != access.Granted || other.Stale() || other.Age() > 30*time.Second {
				t.Errorf("at %v: got %v, stale %v, age %v", offsets[j], got, other.Stale(), other.Age())
			}
		}
		mustDo(s.RevokeToken(ctx, alice, u.ID, token.ID, 0))
		agree(s)
		for j, other := range nodes {
			if got := probe(other, u.ID, token.Secret, "GET /a"); got != access.TokenRevoked {
				t.Errorf("a token that %v has revoked at %v: got %v", offsets[i], offsets[j], got)
			}
		}
		eventually(t, fmt.Sprintf("no late node, as %v shows them", offsets[i]), func() bool {
			return !slices.ContainsFunc(must(s.Nodes(ctx, Local)), func(n Node) bool {
				return !n.Live || n.Late || time.Since(n.SeenAt).Abs() > 30*time.Second
			})
		})
	}
	// A node that cannot load a change is late until a time by the clock of the database.
	mustDo(nodes[2].lock(ctx))
	addGroup(nodes[0], "late")
	r := late(t, nodes[0], "node_2")
	nodes[2].unlock()
	if left := time.Until(r.Until); left < 30*time.Second || left > 2*time.Minute {
		t.Errorf("the receipt: got %+v, want node_2 late for a minute", r)
	}
	whole(t, nodes[1])
}

// Two stores in two schemas of one database do not know each other, although their nodes have the same ids: neither
// waits for the other, hears of its changes or counts its nodes.
func TestPostgresTwoStores(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	first, second := server.NewSchema(t, pgtest.Role), server.NewSchema(t, pgtest.Role)
	openFirst := func(id string) *Store {
		return must(Open(ctx, server.SocketURL(pgtest.Role, first), Options{NodeID: id}))
	}
	a := openFirst("node_a")
	addUser(a, "u", addGroup(a, "g", "allow GET /a").ID)
	revision := a.Directory().Revision()
	listener := must(pgx.Connect(ctx, server.SocketURL(pgtest.Role, first)))
	defer listener.Close(ctx)
	must(listener.Exec(ctx, "LISTEN "+pgx.Identifier{a.engine.(*postgresEngine).channel}.Sanitize()))

	// The first store is in the middle of an upgrade and of a change.
	db := must(sql.Open("pgx", server.SocketURL(pgtest.Role, first)))
	defer db.Close()
	upgrade := must(db.BeginTx(ctx, nil))
	defer upgrade.Rollback()
	must(upgrade.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('service users ' || current_schema(), 0))`))
	must(upgrade.ExecContext(ctx, `SELECT id FROM meta FOR UPDATE`))
	waiting := make(chan *Store)
	go func() { waiting <- openFirst("node_b") }()

	b := open(t, server.SocketURL(pgtest.Role, second), Options{NodeID: "node_a"})
	u, token := addUser(b, "u", addGroup(b, "g", "allow GET /a").ID)
	for n := range 5 {
		addGroup(b, fmt.Sprint("g", n))
	}
	if got := probe(a, u.ID, token.Secret, "GET /a"); got != access.UnknownID {
		t.Errorf("a token of the other store: got %v", got)
	}
	for _, s := range []*Store{a, b} {
		if r := must(s.Wait(ctx, s.Directory().Revision())); r.All != 1 || r.Applied != 1 {
			t.Errorf("the receipt: got %+v, want one node", r)
		}
	}
	select {
	case <-waiting:
		t.Error("a start did not wait for the upgrade")
	default:
	}
	mustDo(upgrade.Rollback())
	a2 := <-waiting
	addGroup(a2, "after")
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		note := must(listener.WaitForNotification(limited))
		if note.Payload == "echo" {
			continue
		}
		if want := fmt.Sprint(revision + 1); note.Payload != want {
			t.Errorf("the first notification: got %s, want %s", note.Payload, want)
		}
		break
	}
	eventually(t, "the change of the first store", func() bool { return a.Directory().Revision() == revision+1 })
	mustDo(b.Close())
	for _, s := range []*Store{a, a2} {
		whole(t, s)
		mustDo(s.Close())
	}
}
