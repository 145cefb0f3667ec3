//go:build unix

package store

import (
	"context"
	"errors"
	"fmt"
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

// newRole makes a role that may log in. The rights name it ROLE, and the schema service_users.
func newRole(t *testing.T, server *pgtest.Server, schema string, rights ...string) (at string) {
	t.Helper()
	role := fmt.Sprintf("role_%s_%d", schema, roles.Add(1))
	names := strings.NewReplacer("ROLE", role, "service_users", schema)
	mustDo(server.Exec("CREATE ROLE " + role + " LOGIN"))
	t.Cleanup(func() { mustDo(server.Exec("DROP OWNED BY " + role + "; DROP ROLE " + role)) })
	for _, statement := range rights {
		mustDo(server.Exec(names.Replace(statement)))
	}
	return server.SocketURL(role, schema)
}

var roles atomic.Int64

// The rights of docs/fleet.md. The owner of the tables grants them after the first start, which made the tables.
var (
	// nodeRights are those of a node that neither makes nor upgrades the tables.
	nodeRights = []string{
		`GRANT USAGE ON SCHEMA service_users TO ROLE`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA service_users TO ROLE`,
		`REVOKE UPDATE, DELETE ON service_users.audit_events, service_users.audit_subjects FROM ROLE`,
		`REVOKE INSERT, UPDATE, DELETE ON service_users.store_schema FROM ROLE`,
		`REVOKE INSERT, DELETE ON service_users.meta FROM ROLE`,
	}
	// readOnlyRights are those of a node with Options.ReadOnly.
	readOnlyRights = []string{
		`GRANT USAGE ON SCHEMA service_users TO ROLE`,
		`GRANT SELECT ON ALL TABLES IN SCHEMA service_users TO ROLE`,
		`GRANT INSERT, UPDATE, DELETE ON service_users.nodes TO ROLE`,
	}
)

// A node whose role has the documented rights, and no others, does everything but upgrades.
func TestPostgresRights(t *testing.T) {
	server := pgtest.Shared(t)
	schema := server.NewSchema(t, pgtest.Superuser)
	// The first start needs CREATE, and its role owns the tables.
	maker := newRole(t, server, schema, `GRANT USAGE, CREATE ON SCHEMA service_users TO ROLE`)
	mustDo(must(Open(ctx, maker, Options{})).Close())
	at := newRole(t, server, schema, nodeRights...)
	core, logs := observer.New(zap.WarnLevel)
	clock := newClock()
	opts := Options{Retention: time.Hour, MaxStaleness: 1000 * time.Hour, Now: clock.Now, Log: zap.New(core)}
	w := &world{Store: open(t, at, opts), path: at, clock: clock}
	w.readers = addGroup(w.Store, "readers", "allow GET /v1/{x}")
	w.user, w.token = addUser(w.Store, "billing-sync", w.readers.ID)
	load(w.Store, permission("a.b"), permission("a.c"))
	mustDo(w.GrantPermission(ctx, alice, w.readers.ID, "a.b"))
	mustDo(w.WithdrawPermission(ctx, alice, w.readers.ID, "a.b"))
	mustDo(w.GrantPermission(ctx, alice, w.readers.ID, "a.c"))
	mustDo(w.DeletePermission(ctx, alice, "a.b"))
	rule := must(w.AddRule(ctx, alice, w.readers.ID, rules("allow GET /v2")[0]))
	mustDo(w.RemoveRule(ctx, alice, w.readers.ID, rule.ID))
	mustDo(w.RemoveMember(ctx, alice, w.readers.ID, w.user.ID))
	mustDo(w.AddMember(ctx, alice, w.readers.ID, w.user.ID))
	once := alice
	once.Once = &Once{Key: "k", Request: "r"}
	must(w.CreateToken(ctx, once, w.user.ID, Token{}))
	clock.add(keyLife)
	once.Once = &Once{Key: "l", Request: "r"} // removes the other key
	must(w.CreateToken(ctx, once, w.user.ID, Token{}))
	next, _, err := w.rotate(w.token.ID, time.Hour)
	mustDo(err)
	p, why := w.Directory().Authenticate(access.Credential{ID: w.user.ID, Secret: next.Secret}, addrOf("192.0.2.1"), w.now().Unix())
	if why != access.Granted {
		t.Fatal(why)
	}
	w.Use(p, w.now().Unix(), addrOf("192.0.2.1"), "")
	mustDo(w.flushAll(ctx))
	mustDo(w.NoteAttempt(ctx, alice, "", Attempt{Status: 403}))
	gone, _ := addUser(w.Store, "gone", w.readers.ID)
	mustDo(w.DeleteGroup(ctx, alice, w.readers.ID, 0))
	must2(w.UndeleteGroup(ctx, alice, w.readers.ID))
	mustDo(w.DeleteGroup(ctx, alice, w.readers.ID, 0))
	mustDo(w.DeleteServiceUser(ctx, alice, gone.ID, 0, 0))
	clock.add(2 * time.Hour)
	mustDo(w.purge(ctx))
	if r := must(w.Wait(ctx, w.Directory().Revision())); r.Applied != 1 {
		t.Errorf("the receipt: got %+v, want this node", r)
	}
	whole(t, w.Store)
	mustDo(w.Close())
	if lines := logs.FilterMessageSnippet("clock").Len(); logs.Len() != lines {
		t.Errorf("the log: got %v, want nothing", logs.All())
	}

	// An upgrade is for the role that owns the tables.
	before, version := upgrades, schemaVersion
	t.Cleanup(func() { upgrades, schemaVersion = before, version })
	upgrades, schemaVersion = append(slices.Clone(upgrades), `ALTER TABLE meta ADD COLUMN further TEXT NOT NULL DEFAULT 'x'`), schemaVersion+1
	if _, err := Open(ctx, at, Options{}); err == nil || !strings.Contains(err.Error(), "docs/fleet.md") {
		t.Errorf("an upgrade without the right: got %v", err)
	}
	mustDo(must(Open(ctx, maker, Options{})).Close())
	mustDo(must(Open(ctx, at, Options{})).Close())
}

// A read-only node answers requests, changes nothing, and says so.
func TestPostgresReadOnly(t *testing.T) {
	server := pgtest.Shared(t)
	schema := server.NewSchema(t, pgtest.Role)
	owner := server.SocketURL(pgtest.Role, schema)
	refused := func(name, at, want string) {
		t.Helper()
		s, err := Open(ctx, at, Options{ReadOnly: true})
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	refused("no file", filepath.Join(t.TempDir(), "a.db"), "no such file")
	refused("no store", owner, "The first start of a node that is not read-only makes a store")
	core, logs := observer.New(zap.WarnLevel)
	clock := newClock()
	w := &world{Store: open(t, owner, Options{Now: clock.Now, UseInterval: time.Hour, Retention: time.Hour, MaxStaleness: 1000 * time.Hour}), clock: clock}
	w.readers = addGroup(w.Store, "readers", "allow GET /v1/{x}")
	w.user, w.token = addUser(w.Store, "billing-sync", w.readers.ID)
	load(w.Store, permission("a.b"))
	gone, _ := addUser(w.Store, "gone")
	mustDo(w.DeleteServiceUser(ctx, alice, gone.ID, 0, 0))
	goneGroup := addGroup(w.Store, "gone")
	mustDo(w.DeleteGroup(ctx, alice, goneGroup.ID, 0))
	refused("no rights", newRole(t, server, schema), "the rights of docs/fleet.md")
	refused("no right to nodes", newRole(t, server, schema, readOnlyRights[:2]...), "docs/fleet.md lists the rights")
	at := newRole(t, server, schema, readOnlyRights...)
	runSQL(t, owner, fmt.Sprintf(`UPDATE store_schema SET version = %d`, schemaVersion-1))
	refused("older", at, "first start a node of this version that is not read-only")
	runSQL(t, owner, fmt.Sprintf(`UPDATE store_schema SET version = %d`, schemaVersion))

	s := open(t, at, Options{ReadOnly: true, NodeID: "node_reader", MaxStaleness: 1000 * time.Hour, Now: clock.Now, UseInterval: 5 * time.Millisecond, Log: zap.New(core)})
	clock.add(2 * time.Hour) // the tombstones can be purged
	before := dumpTables(w.read, append(slices.Clone(allTables), "idempotency_keys")...)
	by := alice
	by.Once = &Once{Key: "k", Request: "r"}
	profile := access.Profile{Name: "another", Active: true}
	edit := func(u *ServiceUser) error { u.Description = "x"; return nil }
	for name, change := range map[string]func() error{
		"CreateServiceUser": func() error {
			return third(s.CreateServiceUser(ctx, by, ServiceUser{Profile: profile}, &Token{}))
		},
		"UpdateServiceUser":   func() error { return second(s.UpdateServiceUser(ctx, alice, w.user.ID, 0, edit)) },
		"DeleteServiceUser":   func() error { return s.DeleteServiceUser(ctx, alice, w.user.ID, 0, 0) },
		"UndeleteServiceUser": func() error { return second(s.UndeleteServiceUser(ctx, alice, gone.ID)) },
		"ChangeUsers": func() error {
			return second(s.ChangeUsers(ctx, alice, Bulk{DryRun: true, Entries: []Entry{{ID: w.user.ID, Change: RefreshTokens(time.Hour, new([]Replaced))}}}))
		},
		"CreateToken": func() error { return second(s.CreateToken(ctx, by, w.user.ID, Token{})) },
		"UpdateToken": func() error {
			return second(s.UpdateToken(ctx, alice, w.user.ID, w.token.ID, 0, func(*Token) error { return nil }))
		},
		"RevokeToken":  func() error { return s.RevokeToken(ctx, alice, w.user.ID, w.token.ID, 0) },
		"RefreshToken": func() error { return third(s.RefreshToken(ctx, by, w.user.ID, w.token.ID, 0, time.Hour, 0)) },
		"RotateToken":  func() error { return third(s.RotateToken(ctx, w.itself(), w.user.ID, w.token.ID, time.Hour)) },
		"CreateGroup":  func() error { return second(s.CreateGroup(ctx, alice, Group{Name: "another"})) },
		"UpdateGroup": func() error {
			return second(s.UpdateGroup(ctx, alice, w.readers.ID, 0, func(*Group) error { return nil }))
		},
		"PreviewGroup": func() error {
			_, _, _, err := s.PreviewGroup(ctx, alice, w.readers.ID, func(*Group) error { return nil })
			return err
		},
		"DeleteGroup": func() error { return s.DeleteGroup(ctx, alice, w.readers.ID, 0) },
		"UndeleteGroup": func() error {
			_, _, _, err := s.UndeleteGroup(ctx, alice, goneGroup.ID)
			return err
		},
		"AddRule":            func() error { return second(s.AddRule(ctx, alice, w.readers.ID, rules("allow GET /v2")[0])) },
		"RemoveRule":         func() error { return s.RemoveRule(ctx, alice, w.readers.ID, w.readers.Rules[0].ID) },
		"AddMember":          func() error { return s.AddMember(ctx, alice, w.readers.ID, w.user.ID) },
		"RemoveMember":       func() error { return s.RemoveMember(ctx, alice, w.readers.ID, w.user.ID) },
		"LoadPermissions":    func() error { return second(s.LoadPermissions(ctx, alice, permissionList("b.c"), false)) },
		"DeletePermission":   func() error { return s.DeletePermission(ctx, alice, "a.b") },
		"GrantPermission":    func() error { return s.GrantPermission(ctx, alice, w.readers.ID, "a.b") },
		"WithdrawPermission": func() error { return s.WithdrawPermission(ctx, alice, w.readers.ID, "a.b") },
		"ForgetNode":         func() error { return s.ForgetNode(ctx, alice, "node_reader") },
	} {
		if err := change(); kind(err) != "read-only" || !strings.HasPrefix(err.Error(), "this node is read-only; ask another one") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := s.Backup(ctx, alice); !errors.Is(err, ErrConflict) {
		t.Errorf("Backup: got %v", err)
	}
	mustDo(s.NoteAttempt(ctx, alice, "", Attempt{Status: 403}))
	p, why := s.Directory().Authenticate(access.Credential{ID: w.user.ID, Secret: w.token.Secret}, addrOf("192.0.2.1"), s.Now().Unix())
	if why != access.Granted {
		t.Fatal(why)
	}
	s.Use(p, s.Now().Unix(), addrOf("192.0.2.1"), "")
	s.dropUses(ctx)
	s.Use(p, s.Now().Unix(), addrOf("192.0.2.1"), "")
	mustDo(s.FlushUse(ctx))
	if k := must(s.Token(ctx, alice, w.user.ID, w.token.ID)); k.UseCount != 2 || !k.LastUsedAt.Equal(clock.Now().Truncate(time.Second)) {
		t.Errorf("the use there: got %d, %v", k.UseCount, k.LastUsedAt)
	}
	if s.uses.first.has(w.token.ID) {
		t.Error("a first use waits for ever")
	}
	// It is a node like others for a receipt.
	eventually(t, "a report", func() bool { return must(w.Wait(ctx, w.Directory().Revision())).Applied == 2 })
	same(t, "the tables", dumpTables(w.read, append(slices.Clone(allTables), "idempotency_keys")...), before)
	mustDo(w.RevokeToken(ctx, alice, w.user.ID, w.token.ID, 0))
	if r := must(w.Wait(ctx, w.Directory().Revision())); r.Applied != 2 || probe(s, w.user.ID, w.token.Secret, "GET /v1/x") != access.TokenRevoked {
		t.Errorf("a revocation: got %+v", r)
	}
	mustDo(s.Close())
	if list := must(w.Nodes(ctx, alice)); len(list) != 1 {
		t.Errorf("after its end: got %v", list)
	}
	if lines := logs.FilterMessageSnippet("clock").Len(); logs.Len() != lines {
		t.Errorf("the log: got %v, want nothing", logs.All())
	}
}

func must2[A, B, C any](a A, b B, c C, err error) { mustDo(err) }

// A read-only node keeps the usage of the tokens that were used last.
func TestDropUses(t *testing.T) {
	s := &Store{uses: newRecorder()}
	tokens := make(map[string]usage)
	for i := range mostUses + 2 {
		tokens[fmt.Sprint("token", i)] = usage{last: int64(i)}
	}
	s.uses.pending["user"] = tokens
	s.dropUses(ctx)
	_, oldest := tokens["token1"]
	if _, next := tokens["token2"]; oldest || !next || len(tokens) != mostUses {
		t.Errorf("got %d tokens, the oldest %v, the next %v; want %d without the two oldest", len(tokens), oldest, next, mostUses)
	}
}

// A clock that differs from the database's by more than 5 s is reported once, and so is the end of that.
func TestPostgresClock(t *testing.T) {
	at := pgtest.URL(t)
	var offset atomic.Int64
	offset.Store(int64(-time.Minute))
	core, logs := observer.New(zap.InfoLevel)
	// Each report compares the clocks.
	s := open(t, at, Options{MaxStaleness: 500 * time.Millisecond, Poll: 10 * time.Millisecond, Log: zap.New(core),
		Now: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }})
	lines := func(text string) int { return logs.FilterMessageSnippet(text).Len() }
	// Also after a restart with a clock that was set back, the first report tells.
	if lines("differs from that of the database") != 1 {
		t.Errorf("at the start: got %v, want a warning", logs.All())
	}
	if d := s.ClockDifference(); d > -50*time.Second || d < -70*time.Second {
		t.Errorf("a minute behind: got %v", d)
	}
	offset.Store(0)
	eventually(t, "an end of the difference", func() bool { return lines("agrees with that of the database again") == 1 })
	if d := s.ClockDifference().Abs(); d > clockDifference {
		t.Errorf("the right time: got %v", d)
	}
	offset.Store(int64(time.Hour))
	eventually(t, "a difference again", func() bool { return lines("differs from that of the database") == 2 })
	// The clock of the machine is right again, but that of the store never goes back.
	offset.Store(0)
	eventually(t, "the word that it went back", func() bool { return lines("the clock") == 4 })
	if d := s.ClockDifference(); d < 50*time.Minute || lines("restart Caddy") != 2 {
		t.Errorf("an hour ahead: got %v and %v", d, logs.All())
	}
}

// The time on the way is not a difference.
func TestCompareClocks(t *testing.T) {
	c := newClock()
	sent := c.Now()
	c.add(20 * time.Second) // the answer
	for _, row := range []struct{ database, want time.Duration }{
		{0, 0}, {10 * time.Second, 0}, {20 * time.Second, 0}, {-time.Second, time.Second}, {23 * time.Second, -3 * time.Second},
		{-5 * time.Second, 5 * time.Second}, {-6 * time.Second, 6 * time.Second}, {26 * time.Second, -6 * time.Second},
	} {
		core, logs := observer.New(zap.WarnLevel)
		s := Store{clock: wall{read: c.Now}}
		for range 2 {
			s.clock.compare(zap.New(core), sent, sent.Add(row.database))
		}
		warned := 0
		if row.want.Abs() > clockDifference {
			warned = 1
		}
		if got := s.ClockDifference(); got != row.want || logs.Len() != warned {
			t.Errorf("%v: got %v and %v, want %v", row.database, got, logs.All(), row.want)
		}
	}
}

// A node that joins while changes are made never answers from an earlier revision than one that was
// acknowledged by all.
func TestPostgresJoin(t *testing.T) {
	t.Parallel()
	at := pgtest.URL(t)
	a := open(t, at, Options{})
	u, _ := addUser(a, "u")
	done := make(chan struct{})
	var acknowledged atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			mustDo(second(a.UpdateServiceUser(ctx, Local, u.ID, 0, func(u *ServiceUser) error { u.Description = fmt.Sprint(n); return nil })))
			revision := a.Directory().Revision()
			waiting, cancel := context.WithTimeout(ctx, time.Second)
			if r := must(a.Wait(waiting, revision)); len(r.Late) == 0 {
				acknowledged.Store(revision)
			}
			cancel()
		}
	})
	for range 30 {
		s := must(Open(ctx, at, Options{NodeID: "node_b"}))
		if want, got := acknowledged.Load(), s.Directory().Revision(); got < want {
			t.Errorf("it answers from revision %d, and %d was acknowledged by all", got, want)
		}
		mustDo(s.Close())
	}
	close(done)
	wg.Wait()
	if acknowledged.Load() == 0 {
		t.Error("nothing was acknowledged; the test shows nothing")
	}

	// Its row is there before its directory is up to date, so a receipt calls it late.
	b := open(t, at, Options{NodeID: "node_b", MaxStaleness: 500 * time.Millisecond})
	mustDo(b.lock(ctx))
	runSQL(t, at, `UPDATE nodes SET seen_at = seen_at - 10000000 WHERE id = 'node_b'`) // its time is over
	eventually(t, "its row", func() bool {
		return slices.ContainsFunc(must(a.Nodes(ctx, Local)), func(n Node) bool { return n.ID == "node_b" && n.Live })
	})
	mustDo(second(a.UpdateServiceUser(ctx, Local, u.ID, 0, func(u *ServiceUser) error { u.Description = "late"; return nil })))
	late(t, a, "node_b")
	b.unlock()
	eventually(t, "the revision there", func() bool { return b.Directory().Revision() == a.Directory().Revision() })
	if r := must(a.Wait(ctx, a.Directory().Revision())); r.Applied != 2 {
		t.Errorf("after it has joined: got %+v, want both", r)
	}
}

// late waits for a receipt of the newest revision of s that names this node alone as late. Others may need time.
func late(t tb, s *Store, id string) (r Receipt) {
	t.Helper()
	eventually(t, id+" alone is late", func() bool {
		waiting, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		r = must(s.Wait(waiting, s.Directory().Revision()))
		return slices.Equal(r.Late, []string{id})
	})
	return r
}

// Of two processes with one id, the one that started last has it, and the other gets another.
func TestPostgresSameNode(t *testing.T) {
	at := pgtest.URL(t)
	opts := Options{NodeID: "node_a", MaxStaleness: 500 * time.Millisecond, Poll: 10 * time.Millisecond}
	first := open(t, at, opts)
	opts.Now = func() time.Time { return time.Now().Add(time.Second) }
	second := open(t, at, opts)
	eventually(t, "a row for each", func() bool { return len(must(first.Nodes(ctx, Local))) == 2 })
	for _, s := range []*Store{first, second} {
		for _, n := range must(s.Nodes(ctx, Local)) {
			if n.Self && (n.ID == "node_a") != (s == second) {
				t.Errorf("got the id %s for the one that started last: %v", n.ID, s == second)
			}
		}
	}
	mustDo(first.Close())
	if list := must(second.Nodes(ctx, Local)); len(list) != 1 || list[0].ID != "node_a" {
		t.Errorf("after the end of the first: got %v", list)
	}
}

// The clock of the database is set forward by an hour while a node is cut off. The node goes on to answer
// requests, so no receipt leaves it out.
func TestPostgresClockJump(t *testing.T) {
	at := pgtest.URL(t)
	a := open(t, at, Options{NodeID: "node_a", MaxStaleness: time.Hour})
	b := open(t, at, Options{NodeID: "node_b", MaxStaleness: time.Hour})
	mustDo(b.lock(ctx)) // it loads nothing
	defer b.unlock()
	addGroup(a, "g")
	runSQL(t, at, `UPDATE nodes SET seen_at = seen_at - 2 * 3600000 WHERE id = 'node_b'`)
	receipt := func() Receipt {
		waiting, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		return must(a.Wait(waiting, a.Directory().Revision()))
	}
	if r := receipt(); r.All != 1 {
		t.Fatalf("without a jump: got %+v, want the node that has not reported left out", r)
	}
	pg := a.engine.(*postgresEngine)
	now := *pg.looked.Load()
	pg.compareLooks(look{now.asOf, now.at + 3600_000})
	if r := receipt(); r.All != 2 || !slices.Equal(r.Late, []string{"node_b"}) {
		t.Errorf("after the jump: got %+v, want node_b late", r)
	}
	if err := a.ForgetNode(ctx, Local, "node_b"); !errors.Is(err, ErrConflict) {
		t.Errorf("forgetting it: got %v, want a conflict", err)
	}
}
