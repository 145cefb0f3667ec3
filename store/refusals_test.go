package store

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// decisionID is the n-th decision id.
func decisionID(n int) string { return fmt.Sprintf("decision_%027d", n) }

// refusal is a refusal as the request path keeps it.
func refusal(id, user, path string, at time.Time) access.Recalled {
	return access.Recalled{
		ID: id, Status: 403, At: at.Truncate(time.Second).UTC(), UserID: user, TokenID: "token_x", Revision: 7, Reason: access.NoRule,
		Action: access.Action{Method: "GET", Host: "api.example.com", Path: path, Address: netip.MustParseAddr("192.0.2.1"), Now: at.Unix()},
	}
}

// keeping opens a store that writes refusals only when keepRefusals is called, or at its end.
func keeping(t testing.TB, path string, decisions int, opts Options) *Store {
	opts.Refusals, opts.refusalPoll = access.NewRecall(decisions), time.Hour
	return open(t, path, opts)
}

func refusalsOf(s *Store, user string) (ids []string) {
	for _, r := range must(s.Refusals(ctx, Local, user)) {
		ids = append(ids, r.ID)
	}
	return ids
}

// A refusal can be explained on each node, within seconds and after a restart, as it was made. It is no
// change of the store.
func TestRefusals(t *testing.T) {
	w := newWorld(t, Options{NodeName: "a", Refusals: access.NewRecall(100)})
	b := open(t, w.path, Options{NodeName: "b", Now: w.clock.Now, Peppers: w.opts.Peppers})
	before := dumpTables(w.read, slices.DeleteFunc(slices.Clone(allTables), func(s string) bool { return s == "refusals" })...)
	secret := w.token.Secret
	list := []access.Recalled{
		refusal(decisionID(1), w.user.ID, "/v1/x", w.now()),
		refusal(decisionID(2), w.user.ID, "/v1/a\x00b/100%/é/\xa0/…/…", w.now().Add(time.Second)), // %2F, Latin-1, no mark
		refusal(decisionID(3), w.user.ID, access.MaskSecrets("/v1/"+secret+"/x"), w.now().Add(2*time.Second)),
		refusal(decisionID(4), w.user.ID, access.MaskSecrets("/v1/"+secret[:20]+"-"+secret[20:]), w.now().Add(3*time.Second)),
	}
	list[1].Reason, list[1].Group = access.DeniedByRule, w.closers.ID
	list[1].Rule = w.closers.Rules[0]
	list[1].Action.Address = netip.Addr{}
	for _, r := range list {
		w.opts.Refusals.Keep(r)
	}
	w.opts.Refusals.Keep(access.Recalled{Status: 401, At: w.now(), UserID: w.user.ID}) // stays in memory
	check := func(s *Store) {
		t.Helper()
		for _, want := range list {
			want.Node = "a"
			got, err := s.Refusal(ctx, Local, want.ID)
			if fmt.Sprint(got) != fmt.Sprint(want) || err != nil {
				t.Errorf("got\n%+v, %v, want\n%+v", got, err, want)
			}
		}
		if got := refusalsOf(s, w.user.ID); !slices.Equal(got, []string{decisionID(4), decisionID(3), decisionID(2), decisionID(1)}) {
			t.Errorf("the list: got %v", got)
		}
	}
	eventually(t, "the refusals on disk", func() bool { return len(refusalsOf(b, w.user.ID)) == len(list) })
	check(b)
	same(t, "the rest of the store", dumpTables(w.read, slices.DeleteFunc(slices.Clone(allTables), func(s string) bool { return s == "refusals" })...), before)
	if _, r, err := examined(t, b); err != nil || len(r.Findings)+len(r.Notes) > 0 {
		t.Errorf("check: got %v %v, %v", r.Findings, r.Notes, err)
	}
	if _, err := b.Refusal(ctx, Local, decisionID(5)); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown decision: got %v", err)
	}
	if _, err := b.Refusal(ctx, Actor{Name: "human:carol", Scope: &Scope{}}, decisionID(1)); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("a manager asks for a decision: got %v", err)
	}
	if _, err := b.Refusals(ctx, Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"ops"}}}, w.user.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("a manager of another team: got %v", err)
	}
	w.opts.Refusals.Keep(refusal(decisionID(6), "service_other", "/", w.now()))
	mustDo(w.Close()) // writes the last one
	mustDo(b.Close())
	for name, content := range filesAt(t, w.path) {
		absent(t, name, content, secret)
	}
	again := open(t, w.path, Options{Now: w.clock.Now, Peppers: w.opts.Peppers})
	check(again)
	must(again.Refusal(ctx, Local, decisionID(6)))
}

// Later versions read the texts of this one.
func TestRefusalText(t *testing.T) {
	s := keeping(t, place(t), 10, Options{})
	r := refusal(decisionID(1), "service_x", "/v1/a\x00b", time.Unix(1767323045, 0))
	r.Reason, r.Group = access.DeniedByRule, "group_x"
	r.Rule = access.Rule{ID: "rule_x", Effect: access.Deny, Methods: []string{"*"}, Host: "h.example", Path: "/v1/{x}", When: "true", Name: "n", Description: "d", Permission: "p.q"}
	s.opts.Refusals.Keep(r)
	s.keepRefusals(ctx)
	same(t, "the row", dumpTables(s.read, "refusals"), `refusals | `+r.ID+` | 1767323045 | service_x |  | {"status":403,"token_id":"token_x","method":"GET","host":"api.example.com",`+
		`"path":"/v1/a%2Fb","remote_ip":"192.0.2.1","revision":7,"reason":"denied_by_rule","rule":{"ID":"rule_x","Effect":"deny","Methods":["*"],"Host":"h.example",`+
		`"Path":"/v1/{x}","When":"true","Name":"n","Description":"d","Permission":"p.q"},"permission_group":"group_x"}`+"\n")
	for _, text := range []string{`{`, `{"reason":"none"}`, `{"reason":"no_rule","path":"%zz"}`} {
		runSQL(t, s.path, `UPDATE refusals SET text = '`+text+`'`)
		if _, report, err := examined(t, s); err != nil || len(report.Findings) != 1 || !strings.Contains(report.Findings[0], r.ID) {
			t.Errorf("check of %s: got %v, %v", text, report.Findings, err)
		}
	}
}

// The store keeps as many refusals as memory does, with the same shares, and a flood neither delays the
// refusals of others nor writes many rows at once.
func TestRefusalsShares(t *testing.T) {
	s := keeping(t, place(t), 1000, Options{})
	at := s.Now()
	n := 0
	refuse := func(user string, times int) {
		for range times {
			n++
			s.opts.Refusals.Keep(refusal(decisionID(n), user, "/x", at.Add(time.Duration(n)*time.Second)))
		}
	}
	count := func(user string) int {
		return number(s.read, `SELECT COUNT(*) FROM refusals WHERE service_user_id LIKE '`+user+`%'`)
	}
	for i := range 50 {
		refuse(fmt.Sprint("service_quiet", i), 2)
	}
	s.keepRefusals(ctx)
	for round := range 8 {
		refuse("service_n", 5000)
		refuse("service_m", 700)
		refuse(fmt.Sprint("service_late", round), 1)
		s.keepRefusals(ctx)
		if got := count("service_late"); got != round+1 {
			t.Errorf("round %d: %d refusals of the quiet are on disk", round, got)
		}
		if all := count(""); all > 1050 {
			t.Errorf("round %d: got %d refusals, want at most 1050", round, all)
		}
	}
	if quiet, first, second := count("service_quiet"), count("service_n"), count("service_m"); quiet != 100 || first < 400 || second < 400 {
		t.Errorf("got %d of the quiet, %d and %d of the others", quiet, first, second)
	}
	var newest int64
	mustDo(s.read.QueryRowContext(ctx, `SELECT MAX(at) FROM refusals WHERE service_user_id = 'service_n'`).Scan(&newest))
	if behind := at.Unix() + int64(n) - newest; behind > 701+500 {
		t.Errorf("the flood is written with %d refusals between", behind)
	}
	if all := s.opts.Refusals.Unwritten(1 << 20); len(all) > 1000 {
		t.Errorf("%d refusals wait", len(all))
	}
}

// While the database fails, refusals wait; a batch that was written twice is there once.
func TestRefusalsAreTriedAgain(t *testing.T) {
	log, lines := observer.New(zap.ErrorLevel)
	s := keeping(t, place(t), 10, Options{Log: zap.New(log)})
	runSQL(t, s.path, `ALTER TABLE refusals RENAME TO elsewhere`)
	s.opts.Refusals.Keep(refusal(decisionID(1), "service_x", "/", s.Now()))
	s.keepRefusals(ctx)
	s.keepRefusals(ctx)
	if n := lines.FilterMessageSnippet("refusals cannot be written").Len(); n != 1 {
		t.Errorf("got %d lines in the log, want 1", n)
	}
	s.opts.Refusals.Keep(refusal(decisionID(2), "service_x", "/", s.Now()))
	runSQL(t, s.path, `ALTER TABLE elsewhere RENAME TO refusals`)
	s.keepRefusals(ctx)
	s.refusals.pending = []access.Recalled{must(s.Refusal(ctx, Local, decisionID(1)))} // as after a lost answer
	s.keepRefusals(ctx)
	s.keepRefusals(ctx)
	if n := number(s.read, `SELECT COUNT(*) FROM refusals`); n != 2 {
		t.Errorf("got %d refusals, want 2", n)
	}
}

// The refusals of a purged service user are removed with it, and none is older than the retention.
func TestRefusalsArePurged(t *testing.T) {
	w := newWorld(t, Options{Retention: time.Hour, UseInterval: time.Hour, Refusals: access.NewRecall(10), refusalPoll: time.Hour})
	gone, _ := addUser(w.Store, "gone")
	for i, user := range []string{w.user.ID, gone.ID} {
		w.opts.Refusals.Keep(refusal(decisionID(i), user, "/", w.now()))
	}
	w.keepRefusals(ctx)
	mustDo(w.DeleteServiceUser(ctx, alice, gone.ID, 0, 0))
	runSQL(t, w.path, `UPDATE service_users SET deleted_at = 1 WHERE deleted_at > 0`)
	mustDo(w.purge(ctx))
	if _, err := w.Refusal(ctx, Local, decisionID(1)); !errors.Is(err, ErrNotFound) {
		t.Errorf("of the purged service user: got %v", err)
	}
	must(w.Refusal(ctx, Local, decisionID(0)))
	w.clock.add(time.Hour)
	mustDo(w.purge(ctx))
	if n := number(w.read, `SELECT COUNT(*) FROM refusals`); n != 0 {
		t.Errorf("got %d refusals after the retention, want 0", n)
	}
}

// Nodes that write and remove the same refusals wait for no one, and no change waits long.
func TestRefusalsTogether(t *testing.T) {
	log, lines := observer.New(zap.WarnLevel)
	at := place(t)
	var nodes []*Store
	for range 3 {
		nodes = append(nodes, keeping(t, at, 20, Options{Log: zap.New(log), Retention: time.Hour}))
	}
	var users []string
	for i := range 4 {
		u, _ := addUser(nodes[0], fmt.Sprint("u", i))
		users = append(users, u.ID)
	}
	var wg sync.WaitGroup
	for i, s := range nodes {
		wg.Go(func() {
			for n := range 40 {
				for j, user := range users {
					s.opts.Refusals.Keep(refusal(decisionID(i*1000+n*10+j), user, "/", s.Now()))
				}
				s.keepRefusals(ctx)
			}
		})
	}
	wg.Go(func() {
		for i, user := range users[:3] {
			mustDo(nodes[i].DeleteServiceUser(ctx, alice, user, 0, 0))
			mustDo(nodes[i].change(ctx, Local, func(t *tx) error { return t.purgeUser(user) }))
		}
	})
	wg.Wait()
	if got := lines.FilterMessageSnippet("refusals").All(); len(got) > 0 {
		t.Errorf("got %v", got)
	}
	for _, s := range nodes {
		s.keepRefusals(ctx)
	}
	if n := number(nodes[0].read, `SELECT COUNT(*) FROM refusals`); n == 0 || n > 21 {
		t.Errorf("got %d refusals, want 1 to 21", n)
	}
	trail(t, nodes[1])
}

func TestPostgresRefusals(t *testing.T) {
	if *pgtest.On {
		t.Skip("the whole suite runs")
	}
	pgtest.Shared(t)
	*pgtest.On = true
	t.Cleanup(func() { *pgtest.On = false })
	t.Run("Refusals", TestRefusals)
	t.Run("Shares", TestRefusalsShares)
	t.Run("TriedAgain", TestRefusalsAreTriedAgain)
	t.Run("Purged", TestRefusalsArePurged)
	t.Run("Together", TestRefusalsTogether)
}
