//go:build unix

package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// TestPostgres is a small dose of the suite. With -postgres all of it runs on PostgreSQL.
func TestPostgres(t *testing.T) {
	if *pgtest.On {
		t.Skip("the whole suite runs")
	}
	pgtest.Shared(t)
	*pgtest.On = true
	t.Cleanup(func() { *pgtest.On = false })
	for _, row := range []struct {
		name string
		test func(*testing.T)
	}{
		{"Counts", TestCounts},
		{"OpenAtOnce", TestOpenAtOnce},
		{"BadRowIsRefused", TestBadRowIsRefused},
		{"UndeleteGroup", TestUndeleteGroup},
		{"ClaimExpiringAtOnce", TestClaimExpiringAtOnce},
	} {
		t.Run(row.name, row.test)
	}
}

// Each error says what to do, and none has the password.
func TestPostgresRefuses(t *testing.T) {
	server := pgtest.Shared(t)
	schema := server.NewSchema(t, pgtest.Role)
	good := server.TCPURL(pgtest.Role, schema)
	const password = "Pa5w0rd"
	wrong := strings.Replace(good, pgtest.Password, password, 1)
	foreign := server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role))
	runSQL(t, foreign, `CREATE TABLE things (a TEXT)`)
	newer := server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role))
	mustDo(must(Open(ctx, newer, Options{})).Close())
	runSQL(t, newer, fmt.Sprintf(`UPDATE store_schema SET version = %d`, schemaVersion+1))
	for _, row := range []struct{ name, url, want string }{
		{"a password with a slash", "postgres://store:" + password + "/1@127.0.0.1/test", "%2F for /"},
		{"a password with a percent", "postgres://store:" + password + "%zz@127.0.0.1/test", "%2F for /"},
		{"a password with an @", "postgres://store:1@" + password + "@127.0.0.1/test", "%2F for /"},
		{"a number as the beginning of a password with a slash", "postgres://store:1/" + password + "@127.0.0.1/test", "%2F for /"},
		{"too many slashes", "postgres:////store:" + password + "@127.0.0.1/test", "%2F for /"},
		{"a port that is none", "postgres://store:" + password + "@127.0.0.1:port/test", "not valid"},
		{"a wrong sslmode", wrong + "&sslmode=maybe", "not valid"},
		{"a wrong password", wrong, `is the password of the role "store" right`},
		{"a missing database", strings.Replace(good, "/test?", "/other?", 1), `CREATE DATABASE "other" OWNER "store"`},
		{"nobody listens", strings.Replace(wrong, fmt.Sprint(":", server.Port), ":1", 1), "does the server run"},
		{"no TLS", strings.Replace(wrong, "sslmode=disable", "sslmode=require", 1), "sslmode"},
		{"no schema", strings.Replace(good, schema, "missing", 1), `CREATE SCHEMA service_users AUTHORIZATION "store"`},
		{"no right to the schema", server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Superuser)), "CREATE SCHEMA service_users"},
		{"another program's", foreign, `has tables of another program, such as "things"`},
		{"newer", newer, "made by a newer version"},
	} {
		s, err := Open(ctx, row.url, Options{})
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", row.name)
			continue
		}
		for _, secret := range []string{password, pgtest.Password} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error has the password: %v", row.name, err)
			}
		}
		if !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v, want %q", row.name, err, row.want)
		}
	}
	if _, err := Open(ctx, good, Options{Existing: true}); err == nil || !strings.Contains(err.Error(), "has no store") {
		t.Errorf("an existing store is wanted: got %v", err)
	}
}

// A change is in force on another node: by a notification, and without one by the next look.
func TestPostgresNodes(t *testing.T) {
	place := pgtest.URL(t)
	for _, row := range []struct {
		name string
		poll time.Duration
		lose func(statement string) string
	}{
		{"notified", time.Hour, func(s string) string { return s }},
		{"not notified", 50 * time.Millisecond, nil},
	} {
		a, b := open(t, place, Options{Poll: row.poll}), open(t, place, Options{Poll: row.poll})
		if row.lose == nil {
			a.engine.(*postgresEngine).channel = "nobody_listens"
		}
		for range 3 {
			addUser(a, fmt.Sprint("u", a.Directory().Revision()))
			want := a.Directory().Revision()
			eventually(t, row.name+": the change on the other node", func() bool { return b.Directory().Revision() == want })
		}
		mustDo(a.Close())
		mustDo(b.Close())
	}
}

// When the connection is lost, a change is made once. When the answer to COMMIT is lost, the store
// finds out whether the change was made.
func TestPostgresLostAnswer(t *testing.T) {
	server := pgtest.Shared(t)
	for name, row := range map[string]struct {
		statement string
		forward   bool
	}{
		"committed": {"commit\x00", true}, "not committed": {"commit\x00", false},
		"in the middle": {"INSERT INTO audit_events", false}, "after the lock": {"FOR UPDATE\x00", true},
	} {
		t.Run(name, func(t *testing.T) {
			var lose atomic.Bool
			at := must(url.Parse(server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role))))
			at.Host = pgtest.Proxy(t, at.Host, func(sent []byte) (bool, bool) {
				return bytes.Contains(sent, []byte(row.statement)) && lose.CompareAndSwap(true, false), row.forward
			})
			s := open(t, at.String(), Options{UseInterval: time.Hour})
			lose.Store(true)
			u, _, err := s.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "a"}}, nil)
			if lose.Load() {
				t.Fatal("the answer was not lost")
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := s.Directory().User(u.ID); !ok {
				t.Error("the service user is not in the directory")
			}
			if events := trail(t, s); len(events) != 1 {
				t.Errorf("audit records: got %d, want 1", len(events))
			}
		})
	}
}

// Behind a pooler of transactions notifications do not arrive. The store notices it, and finds the changes
// of others all the same.
func TestPostgresPooler(t *testing.T) {
	t.Parallel()
	at := pgtest.Shared(t).Pooler(t)
	core, logs := observer.New(zap.WarnLevel)
	a, b := open(t, at, Options{}), open(t, at, Options{Log: zap.New(core)})
	eventually(t, "a word about the pooler", func() bool {
		return logs.FilterMessageSnippet("notifications of the database do not arrive").Len() == 1
	})
	for range 3 {
		addUser(a, fmt.Sprint("u", a.Directory().Revision()), addGroup(a, fmt.Sprint("g", a.Directory().Revision()), "allow GET /a").ID)
		want := a.Directory().Revision()
		eventually(t, "the change on the other node", func() bool { return b.Directory().Revision() == want })
	}
	whole(t, a)
}

// A receipt counts the nodes that answer requests, and names those that are late.
func TestPostgresReceipt(t *testing.T) {
	at := pgtest.URL(t)
	a, b, c := open(t, at, Options{NodeID: "node_a"}), open(t, at, Options{NodeID: "node_b"}), open(t, at, Options{NodeID: "node_c", MaxStaleness: time.Minute})
	wait := func(d time.Duration) Receipt {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return must(a.Wait(ctx, a.Directory().Revision()))
	}
	for i := range 20 {
		addUser(a, fmt.Sprint("u", i))
		if r := wait(time.Minute); r.Applied != 3 || r.All != 3 || len(r.Late) > 0 {
			t.Fatalf("got %+v, want 3 of 3", r)
		}
		for _, s := range []*Store{b, c} {
			if got, want := s.Directory().Revision(), a.Directory().Revision(); got != want {
				t.Fatalf("acknowledged by all: a node has revision %d, want %d", got, want)
			}
		}
	}
	// A database that lacks the change has another list of nodes.
	waiting, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if r, err := a.Wait(waiting, a.Directory().Revision()+1); err == nil {
		t.Errorf("of a revision that the database lacks: got %+v", r)
	}
	// A node that cannot load the change is late.
	mustDo(c.lock(ctx))
	addUser(a, "late")
	now := time.Now()
	r := late(t, a, "node_c")
	if r.Applied != 2 || r.All != 3 || r.Until.Before(now.Add(50*time.Second)) || r.Until.After(now.Add(2*time.Minute)) {
		t.Errorf("got %+v, want 2 of 3, and node_c for a minute", r)
	}
	if err := a.ForgetNode(ctx, Local, "node_c"); !errors.Is(err, ErrConflict) {
		t.Errorf("forgetting a live node: got %v", err)
	}
	// Once its time is over it does not count, and can be forgotten.
	runSQL(t, at, `UPDATE nodes SET seen_at = seen_at - 100000 WHERE id = 'node_c'`)
	if r := wait(time.Minute); r.Applied != 2 || r.All != 2 {
		t.Errorf("its time is over: got %+v, want 2 of 2", r)
	}
	mustDo(a.ForgetNode(ctx, Local, "node_c"))
	if err := a.ForgetNode(ctx, Local, "node_c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("forgetting it twice: got %v", err)
	}
	// It comes back with the last revision.
	c.unlock()
	if r := wait(time.Minute); r.Applied < 2 {
		t.Errorf("got %+v", r)
	}
	eventually(t, "the node again", func() bool { return len(must(a.Nodes(ctx, Local))) == 3 })
	if r := wait(time.Minute); r.Applied != 3 {
		t.Errorf("got %+v, want 3 of 3", r)
	}
	// A node that ends well leaves at once.
	mustDo(b.Close())
	if r := wait(time.Minute); r.All != 2 {
		t.Errorf("after the end of one: got %+v, want 2 of 2", r)
	}
}

// Nodes that start together make a new store once, and upgrade an older schema once.
func TestPostgresUpgrade(t *testing.T) {
	at := pgtest.URL(t)
	core, logs := observer.New(zap.InfoLevel)
	together := func(check func(i int, s *Store)) {
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				s, err := Open(ctx, at, Options{Log: zap.New(core)})
				if err != nil {
					t.Error(err)
					return
				}
				check(i, s)
				mustDo(s.Close())
			})
		}
		wg.Wait()
	}
	together(func(i int, s *Store) { addUser(s, fmt.Sprint("u", i)) })
	if n := logs.FilterMessageSnippet("there was no store").Len(); n != 1 {
		t.Errorf("stores that were made: got %d, want 1", n)
	}
	before, version := upgrades, schemaVersion
	t.Cleanup(func() { upgrades, schemaVersion = before, version })
	upgrades = append(slices.Clone(upgrades), `ALTER TABLE meta ADD COLUMN further TEXT NOT NULL DEFAULT 'x'`)
	schemaVersion++
	together(func(_ int, s *Store) {
		var further string
		mustDo(s.read.QueryRowContext(ctx, `SELECT further FROM meta WHERE further < 'y' COLLATE "C"`).Scan(&further))
		if n := s.Directory().Len(); n != 10 {
			t.Errorf("service users: got %d, want 10", n)
		}
	})
	if n := logs.FilterMessage("the store was upgraded").Len(); n != 1 {
		t.Errorf("upgrades: got %d, want 1", n)
	}
	upgrades, schemaVersion = before, version
	if s, err := Open(ctx, at, Options{}); !errors.Is(err, ErrNewer) {
		t.Errorf("an older program: got %v, %v, want ErrNewer", s, err)
	}
}

// A store of schema version 9 is upgraded.
func TestPostgresUpgradeNotices(t *testing.T) {
	at, clock := pgtest.URL(t), newClock()
	s := must(Open(ctx, at, Options{Now: clock.Now}))
	_, _, err := s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "a", Active: true}}, &Token{ExpiresAt: s.Now().Add(20 * day)})
	mustDo(err)
	objects := func(s *Store) string {
		query, _ := s.catalogue()
		return strings.Join(must(collect(must(s.read.QueryContext(ctx, `SELECT relname FROM (`+query+`) o`)), scanString)), " ")
	}
	want := objects(s)
	mustDo(s.Close())
	runSQL(t, at, `ALTER TABLE tokens DROP COLUMN notice_end, DROP COLUMN notice_days; UPDATE store_schema SET version = 9`)
	clock.add(15 * day)
	s = open(t, at, Options{Now: clock.Now})
	same(t, "tables and indexes", objects(s), want)
	if got := claimed(s); got != "a 7" {
		t.Errorf("claimed: got %q, want a 7", got)
	}
}

// The figures of several nodes add up, and the last use wins, while changes go on.
func TestPostgresFigures(t *testing.T) {
	at := pgtest.URL(t)
	clock := newClock()
	opts := Options{UseInterval: time.Hour, Now: clock.Now}
	a, b := open(t, at, opts), open(t, at, opts)
	g := addGroup(a, "g", "allow GET /a")
	u, token := addUser(a, "a", g.ID)
	eventually(t, "the service user on both nodes", func() bool { _, ok := b.Directory().User(u.ID); return ok })
	const rounds, uses = 20, 5
	var wg sync.WaitGroup
	for i, s := range []*Store{a, b} {
		wg.Go(func() {
			address := addrOf(fmt.Sprint("192.0.2.", i))
			p, why := s.Directory().Authenticate(access.Credential{ID: u.ID, Secret: token.Secret}, address, clock.Now().Unix())
			if why != access.Granted {
				t.Error(why)
			}
			for n := range rounds {
				for range uses {
					s.Use(p, clock.Now().Unix()+int64(n), address, "")
				}
				mustDo(s.FlushUse(ctx))
			}
		})
		wg.Go(func() {
			for n := range rounds {
				mustDo(second(s.UpdateServiceUser(ctx, Local, u.ID, 0, func(u *ServiceUser) error {
					u.Description = fmt.Sprint(i, " ", n)
					return nil
				})))
			}
		})
	}
	wg.Wait()
	for _, s := range []*Store{a, b} { // rows that the other node had were left for later
		mustDo(s.FlushUse(ctx))
	}
	k := must(a.Token(ctx, Local, u.ID, token.ID))
	last := clock.Now().Unix() + rounds - 1
	if k.UseCount != 2*rounds*uses || unix(k.LastUsedAt) != last || k.UsedFrom["192.0.2.0"] != last || k.UsedFrom["192.0.2.1"] != last {
		t.Errorf("got %d uses, the last at %v, from %v; want %d", k.UseCount, k.LastUsedAt, k.UsedFrom, 2*rounds*uses)
	}
	if events := trail(t, a); len(events) != 3+2*rounds {
		t.Errorf("audit records: got %d, want %d", len(events), 3+2*rounds)
	}
}

// A copy has every row of the original, on either engine.
func TestCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{Refusals: access.NewRecall(10), refusalPoll: time.Hour})
	load(w.Store, permission("p.q", "allow GET /p"))
	mustDo(w.GrantPermission(ctx, alice, w.readers.ID, "p.q"))
	gone, _ := addUser(w.Store, "gone", w.readers.ID)
	mustDo(w.DeleteServiceUser(ctx, alice, gone.ID, 0, 0))
	mustDo(w.DeleteGroup(ctx, alice, w.closers.ID, 0))
	w.opts.Refusals.Keep(refusal(decisionID(1), w.user.ID, "/v1/100%/\x00", w.now()))
	w.keepRefusals(ctx)
	for i := range 1200 {
		mustDo(w.NoteAttempt(ctx, Actor{Name: fmt.Sprint("human:", i)}, "", Attempt{Status: 403}))
	}
	opts := Options{Peppers: w.opts.Peppers, Now: w.clock.Now}
	file, second := filepath.Join(t.TempDir(), "copy.db"), pgtest.URL(t)
	for _, row := range [][2]string{{w.path, second}, {second, file}, {w.path, filepath.Join(t.TempDir(), "copy.db")}} {
		var last int64
		from, to := row[0], row[1]
		r, err := Copy(ctx, from, to, opts, func(rows int64) { last = rows })
		if err != nil {
			t.Fatalf("to %s: %v", to, err)
		}
		if r.Revision != w.Directory().Revision() || r.Head != w.AuditHead() || r.Tables["refusals"] != 1 || r.Tables["audit_events"] != r.Head.Seq || last < 1000 {
			t.Errorf("to %s: got %+v and %d rows, want revision %d, head %v", to, r, last, w.Directory().Revision(), w.AuditHead())
		}
		s := open(t, to, opts)
		same(t, to, dump(t, s), dump(t, w.Store))
		same(t, to, dirText(t, s), dirText(t, w.Store))
		if _, err := Copy(ctx, w.path, to, opts, nil); !errors.Is(err, ErrConflict) {
			t.Errorf("a second copy to %s: got %v, want a conflict", to, err)
		}
		mustDo(s.Close())
	}
	if _, err := Copy(ctx, "nowhere.db", pgtest.URL(t), opts, nil); err == nil {
		t.Error("a copy of nothing: got no error")
	}
	for _, table := range must(newSchema(ctx)).tables {
		if !slices.Contains(copyOrder, table) {
			t.Errorf("a copy leaves out the table %s", table)
		}
	}
}

// A copy that is interrupted leaves its target empty, and is not a node of it. Changes of the original while it is
// copied are not in the copy, which says so.
func TestCopyInterrupted(t *testing.T) {
	w := newWorld(t, Options{})
	for i := range 550 {
		mustDo(w.NoteAttempt(ctx, Actor{Name: fmt.Sprint("human:", i)}, "", Attempt{Status: 403}))
	}
	second := pgtest.URL(t)
	for _, row := range [][2]string{{w.path, second}, {second, filepath.Join(t.TempDir(), "copy.db")}} {
		from, to := row[0], row[1]
		stopped, stop := context.WithCancel(ctx)
		if _, err := Copy(stopped, from, to, Options{}, func(int64) {
			if nodes := 0; IsURL(to) {
				if err := must(sql.Open("pgx", to)).QueryRow(`SELECT count(*) FROM nodes`).Scan(&nodes); err != nil || nodes > 0 {
					t.Errorf("to %s: got %d nodes, %v, want none", to, nodes, err)
				}
			}
			stop()
		}); !errors.Is(err, context.Canceled) {
			t.Errorf("to %s: got %v, want that it was interrupted", to, err)
		}
		s := open(t, to, Options{})
		if s.Directory().Revision() != 0 || s.AuditHead().Seq != 0 {
			t.Errorf("to %s: got revision %d, want 0", to, s.Directory().Revision())
		}
		mustDo(s.Close())

		original, changed := open(t, from, Options{}), false
		before := original.Directory().Revision()
		r, err := Copy(ctx, from, to, Options{}, func(int64) {
			if !changed {
				addUser(original, "meanwhile")
			}
			changed = true
		})
		if err != nil || r.Revision != before || r.Last != before+1 {
			t.Errorf("to %s: got %+v, %v, want revision %d of %d", to, r, err, before, before+1)
		}
		mustDo(original.Close())
	}
}
