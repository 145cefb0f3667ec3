package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// The census has the numbers that the API lists.
func TestCensus(t *testing.T) {
	w := newWorld(t, still)
	by := Local
	later := w.clock.Now().Add(20 * 24 * time.Hour)
	token := func(edit func(*Token)) *Issued {
		k := Token{}
		edit(&k)
		return must(w.CreateToken(ctx, by, w.user.ID, k))
	}
	token(func(k *Token) { k.NotBefore = later })                                    // pending
	token(func(k *Token) { k.ExpiresAt = w.clock.Now().Add(time.Minute) })           // expires in the test
	token(func(k *Token) { k.ExpiresAt = w.clock.Now().Add(6 * 24 * time.Hour) })    // ends within 7 days
	token(func(k *Token) { k.ExpiresAt = later })                                    // ends within 30 days
	token(func(k *Token) { k.NotBefore, k.ExpiresAt = later, later.Add(time.Hour) }) // pending, and ends
	token(func(k *Token) { k.ExpiresAt = w.clock.Now().Add(31 * 24 * time.Hour) })   // ends later
	must(w.refreshOf(ctx, by, w.user.ID, token(func(*Token) {}).ID, 8*24*time.Hour)) // retiring
	must(w.refreshOf(ctx, by, w.user.ID, token(func(*Token) {}).ID, time.Minute))    // its grace ends in the test
	mustDo(w.RevokeToken(ctx, by, w.user.ID, token(func(*Token) {}).ID, 0))          // revoked
	off, _ := addUser(w.Store, "off")
	must(w.UpdateServiceUser(ctx, by, off.ID, 0, func(u *ServiceUser) error { u.Active = false; return nil }))
	ended, _ := addUser(w.Store, "ended")
	must(w.UpdateServiceUser(ctx, by, ended.ID, 0, func(u *ServiceUser) error {
		u.ExpiresAt = w.clock.Now().Add(time.Minute)
		return nil
	}))
	gone, _ := addUser(w.Store, "gone")
	mustDo(w.DeleteServiceUser(ctx, by, gone.ID, 0, 0))

	compare := func(when string) {
		t.Helper()
		c := w.Census(time.Minute)
		for _, state := range TokenStates {
			if state == TokenRevoked {
				continue
			}
			list, _, err := w.FindTokens(ctx, by, TokenQuery{State: state, Limit: 100})
			if mustDo(err); c.Tokens[state] != len(list) {
				t.Errorf("%s, %s tokens: got %d, and the list has %d", when, state, c.Tokens[state], len(list))
			}
		}
		for _, within := range CensusEnds {
			list, _, err := w.FindTokens(ctx, by, TokenQuery{Live: true, EndsWithin: within, Limit: 100})
			if mustDo(err); c.Ending[within] != len(list) {
				t.Errorf("%s, tokens that end within %s: got %d, and the list has %d", when, within, c.Ending[within], len(list))
			}
		}
		sum := 0
		for _, status := range UserStatuses {
			total := 0
			_, _, err := w.ServiceUsers(ctx, by, UserQuery{Status: status, Limit: 1, Total: &total})
			if mustDo(err); c.Users[status] != total {
				t.Errorf("%s, %s users: got %d, and the list has %d", when, status, c.Users[status], total)
			}
			sum += c.Users[status]
		}
		if sum != w.Directory().Len() {
			t.Errorf("%s: got %d users in all, want %d", when, sum, w.Directory().Len())
		}
		if !IsURL(w.path) && c.Slowest != (NodeLag{}) || c.This.Revisions != 0 || c.Slowest.Revisions != 0 {
			t.Errorf("%s: the lag: got %+v and %+v, want none", when, c.This, c.Slowest)
		}
	}
	compare("at first")
	before := w.Census(time.Minute)
	if before.Tokens[TokenPending] != 2 || before.Ending[CensusEnds[0]] != 3 || before.Ending[CensusEnds[1]] != 6 || before.Users["inactive"] != 1 {
		t.Errorf("got %+v", before)
	}
	w.clock.add(59 * time.Second)
	addUser(w.Store, "too early")
	if c := w.Census(time.Minute); c.Users["active"] != before.Users["active"] {
		t.Errorf("within a minute: got %d active users, want %d, as before", c.Users["active"], before.Users["active"])
	}
	w.clock.add(2 * time.Second)
	compare("after a minute")
	if c := w.Census(time.Minute); c.Tokens[TokenExpired] != 1 || c.Users["expired"] != 1 {
		t.Errorf("after a minute: got %+v", c)
	}
}

// A service user counts as unused if it is older than the time and was not used in it.
func TestCensusUnused(t *testing.T) {
	w := newWorld(t, still)
	addUser(w.Store, "never")
	unused := func(want int) {
		t.Helper()
		w.clock.add(unusedAgain)
		if c := w.Census(time.Minute); c.Unused != want {
			t.Errorf("at %s: got %d, want %d", w.clock.Now(), c.Unused, want)
		}
	}
	unused(0)
	w.clock.add(UnusedFor - 2*time.Hour)
	w.use(w.token.Secret, "192.0.2.1", "")
	mustDo(w.FlushUse(ctx))
	unused(0)
	w.clock.add(3 * time.Hour)
	young, _ := addUser(w.Store, "young")
	unused(1) // never
	w.clock.add(UnusedFor)
	unused(3)
	mustDo(w.DeleteServiceUser(ctx, Local, young.ID, 0, 0))
	unused(2)
	runSQL(t, w.path, `ALTER TABLE service_users RENAME COLUMN last_active_at TO aside`)
	unused(2) // the number before, since the database gives none
	runSQL(t, w.path, `ALTER TABLE service_users RENAME COLUMN aside TO last_active_at`)
	unused(2)
}

// Each new directory in force is reported once.
func TestRebuilt(t *testing.T) {
	times := make(chan time.Duration, 100)
	opts := still
	opts.Rebuilt = func(took time.Duration) { times <- took }
	w := newWorld(t, opts)
	before := len(times)
	must(w.UpdateServiceUser(ctx, Local, w.user.ID, 0, func(u *ServiceUser) error { u.Owner = "ops"; return nil }))
	mustDo(w.refresh(ctx))
	if got := len(times) - before; got != 1 {
		t.Errorf("one change: got %d directories, want 1", got)
	}
	close(times)
	for took := range times {
		if took < 0 || took > time.Minute {
			t.Errorf("got %s", took)
		}
	}
}

// The lag of the nodes is that of the slowest one that answers requests.
func TestPostgresNodeLag(t *testing.T) {
	at := pgtest.URL(t)
	s := open(t, at, Options{})
	addUser(s, "one")
	insert := func(id string, behind, seconds int) {
		runSQL(t, at, fmt.Sprintf(`INSERT INTO nodes (id, name, version, address, started_at, seen_at, revision, max_staleness)
			SELECT '%s', 'other', 'dev', 'local', 1, %s - %d, revision - %d, 3600000 FROM meta`, id, databaseTime, seconds*1000, behind))
	}
	insert("node_behind", 1, 20)
	insert("node_silent", 0, 60)
	insert("node_gone", 2, 2*3600)
	c := s.Census(time.Minute)
	if c.Slowest.Revisions != 1 || c.Slowest.Reported < time.Minute || c.Slowest.Reported > time.Hour {
		t.Errorf("the slowest node: got %+v, want 1 revision and more than a minute", c.Slowest)
	}
	if c.This.Revisions != 0 || c.This.Reported > c.Slowest.Reported-30*time.Second {
		t.Errorf("this node: got %+v, want no revision and a new report", c.This)
	}
}
