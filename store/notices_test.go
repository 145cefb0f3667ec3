package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

const day = 24 * time.Hour

// claimed is what a call of ClaimExpiring returns, as "USER DAYS", sorted.
func claimed(s *Store) string {
	var list []string
	for _, e := range must(s.ClaimExpiring(ctx)) {
		list = append(list, fmt.Sprintf("%s %d", e.Name, e.Days))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// Two nodes and the one that follows a restart report each token 14, 7 and 1 days ahead, and each time once.
func TestClaimExpiring(t *testing.T) {
	w := newWorld(t, Options{})
	b := open(t, w.path, Options{Now: w.clock.Now, Peppers: w.opts.Peppers})
	ids := make(map[string][2]string)
	begun := w.now()
	add := func(name string, life time.Duration) {
		token := Token{}
		if life > 0 {
			token.ExpiresAt = w.now().Add(life)
		}
		u, k, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: name, Owner: "team " + name, Active: true}}, &token)
		mustDo(err)
		ids[name] = [2]string{u.ID, k.ID}
	}
	for name, life := range map[string]time.Duration{
		"month": 30 * day, "fortnight": 14 * day, "ten": 10 * day, "day": day, "never": 0, "extended": 20 * day,
		"shortened": 200 * day, "revoked": 16 * day, "refreshed": 16 * day, "inactive": 16 * day, "deleted": 16 * day,
	} {
		add(name, life)
	}
	end := func(name string, life time.Duration) {
		must(w.UpdateToken(ctx, alice, ids[name][0], ids[name][1], 0, func(k *Token) error { k.ExpiresAt = w.now().Add(life); return nil }))
	}
	active := func(name string, is bool) {
		must(w.UpdateServiceUser(ctx, alice, ids[name][0], 0, func(u *ServiceUser) error { u.Active = is; return nil }))
	}
	for _, row := range []struct {
		at   time.Duration // after the beginning
		do   func()
		want string
	}{
		{0, nil, ""},
		{2 * day, nil, "deleted 14, inactive 14, refreshed 14, revoked 14"},
		{3*day + time.Hour, func() {
			mustDo(w.DeleteServiceUser(ctx, alice, ids["deleted"][0], 0, 0))
			mustDo(w.RevokeToken(ctx, alice, ids["revoked"][0], ids["revoked"][1], 0))
			_, _, err := w.RefreshToken(ctx, alice, ids["refreshed"][0], ids["refreshed"][1], 0, 30*day, 0)
			mustDo(err)
			active("inactive", false)
		}, "ten 7"},
		{6 * day, nil, "extended 14, refreshed 14"}, // the successor, with the lifetime of the old one
		{7*day + time.Hour, nil, "fortnight 7"},
		{9 * day, nil, "ten 1"},
		{10 * day, func() { end("extended", 40*day); end("shortened", 3*day) }, "shortened 7"},
		{11 * day, func() { end("shortened", 20*time.Hour) }, "shortened 1"},
		{13*day + time.Hour, func() { active("inactive", true) }, "fortnight 1, inactive 7, refreshed 7"},
		// No node looked while 14 days were ahead.
		{24 * day, nil, "month 7"},
		{29*day + time.Hour, nil, "month 1"},
		{36 * day, nil, "extended 14"},
		{49*day + 23*time.Hour, nil, "extended 1"},
		{60 * day, nil, ""},
	} {
		w.clock.nanos.Store(begun.Add(row.at).UnixNano())
		if row.do != nil {
			row.do()
		}
		if got := claimed(w.Store); got != row.want {
			t.Errorf("after %v: got %q, want %q", row.at, got, row.want)
		}
		if got := claimed(b); got != "" {
			t.Errorf("after %v, the other node: got %q, want nothing", row.at, got)
		}
	}
	add("again", 20*day)
	w.clock.add(6 * day)
	u, _ := w.Directory().User(ids["again"][0])
	got, want := must(w.ClaimExpiring(ctx)), Expiring{ids["again"][1], u.ID, "again", "team again", w.now().Add(14 * day).Truncate(time.Second), 14}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	mustDo(w.Close())
	if got := claimed(open(t, w.path, Options{Now: w.clock.Now, Peppers: w.opts.Peppers})); got != "" {
		t.Errorf("after a restart: got %q, want nothing", got)
	}
	only := open(t, w.path, Options{Now: w.clock.Now, Peppers: w.opts.Peppers, ReadOnly: true})
	if w.clock.add(7 * day); claimed(only) != "" || claimed(b) != "again 7" {
		t.Error("a read-only node claimed a token")
	}
}

// Nodes that look at the same time share the tokens, whose rows the writer of their use may hold meanwhile.
func TestClaimExpiringAtOnce(t *testing.T) {
	w := newWorld(t, Options{})
	nodes := []*Store{w.Store, open(t, w.path, Options{Now: w.clock.Now, Peppers: w.opts.Peppers}), open(t, w.path, Options{Now: w.clock.Now, Peppers: w.opts.Peppers})}
	const tokens = 60
	for range tokens {
		must(w.CreateToken(ctx, Local, w.user.ID, Token{ExpiresAt: w.now().Add(20 * day)}))
	}
	w.clock.add(10 * day)
	var mu sync.Mutex
	times := make(map[string]int)
	var wg sync.WaitGroup
	for range 3 {
		for _, s := range nodes {
			wg.Go(func() {
				list, err := s.ClaimExpiring(ctx)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				for _, e := range list {
					times[e.TokenID]++
				}
			})
		}
	}
	wg.Wait()
	for _, e := range must(w.ClaimExpiring(ctx)) { // one that another node's transaction held
		times[e.TokenID]++
	}
	for id, n := range times {
		if n != 1 {
			t.Errorf("%s: claimed %d times", id, n)
		}
	}
	if len(times) != tokens {
		t.Errorf("claimed: got %d tokens, want %d", len(times), tokens)
	}
}

// Of more tokens than one call takes, each is claimed for the nearest time. A look that finds none waits for no change.
func TestClaimMany(t *testing.T) {
	w := newWorld(t, Options{})
	k := must(w.CreateToken(ctx, Local, w.user.ID, Token{ExpiresAt: w.now().Add(20 * day)}))
	runSQL(t, w.path, `INSERT INTO tokens (id, hash, service_user_id, description, hint, pepper_id, expires_at, not_before,
			allowed_ips, metadata, permission_groups, created_at, created_by, updated_at, last_used_at, last_used_ip, use_count,
			retires_at, revoked_at, replaced_by, version)
		SELECT id || n, hash || n, service_user_id, description, hint, pepper_id, expires_at, not_before,
			allowed_ips, metadata, permission_groups, created_at, created_by, updated_at, last_used_at, last_used_ip, use_count,
			retires_at, revoked_at, replaced_by, version
		FROM tokens JOIN (WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 600) SELECT n FROM n) x
			ON tokens.id = '`+k.ID+`'`)
	w.clock.add(19*day + time.Hour)
	for _, want := range []int{claimsAtOnce, 601 - claimsAtOnce} {
		list := must(w.ClaimExpiring(ctx))
		if len(list) != want || slices.ContainsFunc(list, func(e Expiring) bool { return e.Days != 1 }) {
			t.Errorf("got %d tokens, want %d, each a day ahead", len(list), want)
		}
	}
	mustDo(w.lock(ctx)) // as a change does
	defer w.unlock()
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if list, err := w.ClaimExpiring(soon); err != nil || len(list) != 0 {
		t.Errorf("during a change: got %d tokens, %v, want none", len(list), err)
	}
}

// A claim that fails claims nothing.
func TestClaimFails(t *testing.T) {
	w := newWorld(t, Options{})
	must(w.CreateToken(ctx, Local, w.user.ID, Token{ExpiresAt: w.now().Add(20 * day)}))
	w.clock.add(10 * day)
	runSQL(t, w.path, `ALTER TABLE tokens RENAME COLUMN notice_days TO aside`)
	if list, err := w.ClaimExpiring(ctx); err == nil || len(list) > 0 {
		t.Errorf("got %v, want an error", list)
	}
	runSQL(t, w.path, `ALTER TABLE tokens RENAME COLUMN aside TO notice_days`)
	if got := claimed(w.Store); got != "billing-sync 14" {
		t.Errorf("after the fault: got %q", got)
	}
}

// heard collects events.
type heard struct {
	mu   sync.Mutex
	list []string
	data []map[string]any
}

func (h *heard) notify(event string, data map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list, h.data = append(h.list, event), append(h.data, data)
}

func (h *heard) names() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.list, " ")
}

// Each record that a node adds to the audit trail is an event there, and nowhere else. What was undone is none.
func TestEventsAreTheTrail(t *testing.T) {
	here, there := new(heard), new(heard)
	w := newWorld(t, Options{Notify: here.notify})
	b := open(t, w.path, Options{Notify: there.notify, Now: w.clock.Now, Peppers: w.opts.Peppers})
	mustDo(w.changeUser(func(u *ServiceUser) { u.Owner = "people" }))
	if err := w.changeUser(func(u *ServiceUser) { u.Name = "a,b" }); err == nil {
		t.Error("a name with a comma was taken")
	}
	rename := UpdateUser(func(u *ServiceUser) error { u.DisplayName = "B"; return nil })
	must(w.ChangeUsers(ctx, alice, Bulk{Entries: []Entry{{ID: w.user.ID, Change: rename}}, DryRun: true}))
	must(w.ChangeUsers(ctx, alice, Bulk{Entries: []Entry{{ID: w.user.ID, Change: rename}}}))
	mustDo(w.NoteAttempt(ctx, alice, "", Attempt{Status: 403}))
	mustDo(w.RevokeToken(ctx, alice, w.user.ID, w.token.ID, 0))
	events := trail(t, w.Store)
	for i, e := range events {
		if i >= len(here.list) {
			break
		}
		text := string(must(json.Marshal(here.data[i])))
		if here.list[i] != e.Action || here.data[i]["seq"] != e.Seq || here.data[i]["hash"] != e.Hash ||
			!strings.Contains(text, `"after":{`) || !json.Valid([]byte(text)) || strings.Contains(text, w.token.Secret) {
			t.Errorf("event %d: got %s %s, want %+v", i, here.list[i], text, e)
		}
		if got, want := fmt.Sprint(here.data[i]["after"]), string(e.After); got != want {
			t.Errorf("event %d, the placeholder: got %s, want %s", i, got, want)
		}
	}
	if len(here.list) != len(events) {
		t.Errorf("got %d events, want %d: %s", len(here.list), len(events), here.names())
	}
	eventually(t, "the change at the other node", func() bool { return b.Directory().Revision() == w.Directory().Revision() })
	if got := there.names(); got != "" {
		t.Errorf("the other node: got %s, want nothing", got)
	}
}

// A node reports the beginning and the end of a fault of its store, each once.
func TestEventsOfHealth(t *testing.T) {
	h := new(heard)
	w := newWorld(t, Options{Notify: h.notify, NodeName: "edge-1", Poll: time.Millisecond, MaxStaleness: time.Hour})
	before := h.names()
	news := func() string { return strings.TrimSpace(strings.TrimPrefix(h.names(), before)) }
	for _, want := range []string{"store.degraded store.recovered", "store.degraded store.recovered store.degraded store.recovered"} {
		back := hide(t, w.path)
		eventually(t, "the fault", func() bool { return strings.HasSuffix(news(), "degraded") })
		w.clock.add(2 * time.Hour)
		eventually(t, "the end of max_staleness", w.Stale)
		back()
		eventually(t, "the end of the fault", func() bool { return strings.HasSuffix(news(), "recovered") })
		if got := news(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	down, up := h.data[len(h.data)-2], h.data[len(h.data)-1]
	if down["error"] == "" || down["source"] != FromMemory || down["node"] != "edge-1" || up["error"] != "" || up["source"] != FromDatabase {
		t.Errorf("got %v, then %v", down, up)
	}
}
