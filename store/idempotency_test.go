package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// once is the actor with an idempotency key for a request.
func (a Actor) once(key, request string) Actor {
	a.Once = &Once{Key: key, Request: request}
	return a
}

// keys counts the idempotency keys in the database.
func (w *world) keys() (n int) {
	mustDo(w.Store.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM idempotency_keys`).Scan(&n))
	return n
}

// create issues a token to the service user of the world.
func (w *world) create(by Actor) (*Issued, error) {
	issued, err := w.CreateToken(ctx, by, w.user.ID, Token{Description: "ci"})
	return issued, w.issue(issued, err)
}

// A repeated request gets the token of the first one, with another secret; the first secret ends.
func TestOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	by := alice.once("k", "create")
	made := must(w.create(by))
	w.clock.add(time.Minute)
	known := len(trail(t, w.Store))
	again := must(w.create(by))
	want := made.Token
	want.Hint, want.Version, want.UpdatedAt = access.Hint(again.Secret), 2, w.now()
	if toJSON(again.Token) != toJSON(want) || toJSON(w.row(made.ID)) != toJSON(want) {
		t.Errorf("got %s, and on disk %s, want %s", toJSON(again.Token), toJSON(w.row(made.ID)), toJSON(want))
	}
	if n := len(must(w.tokensOf(w.user.ID))); n != 2 {
		t.Errorf("tokens: got %d, want 2", n)
	}
	for secret, want := range map[string]access.Reason{made.Secret: access.WrongSecret, again.Secret: access.Granted} {
		if got := probe(w.Store, w.user.ID, secret, "GET /v1/x"); got != want {
			t.Errorf("%s: got %v, want %v", secret, got, want)
		}
	}
	events := trail(t, w.Store)[known:]
	if len(events) != 1 || events[0].Action != "token.reissue" || events[0].Resource != made.ID || events[0].Actor != alice.Name {
		t.Errorf("audit records: got %v", events)
	}
	for _, file := range filesAt(t, w.path) {
		for _, secret := range w.secrets {
			absent(t, "the store", file, secret)
		}
	}
	if w.keys() != 1 {
		t.Errorf("keys: got %d, want 1", w.keys())
	}

	// Another actor has its own keys, another key is another token.
	for name, by := range map[string]Actor{"another actor": Local.once("k", "create"), "another key": alice.once("k2", "create"), "no key": alice} {
		if other := must(w.create(by)); other.ID == made.ID {
			t.Errorf("%s: got the same token", name)
		}
	}
	// The key holds for 24 hours from the first request, and not from its repetition.
	w.clock.add(24*time.Hour - time.Minute - time.Second)
	if last := must(w.create(by)); last.ID != made.ID {
		t.Errorf("after almost 24 hours: got another token")
	}
	w.clock.add(time.Second)
	next := must(w.create(by))
	if next.ID == made.ID {
		t.Errorf("after 24 hours: got the same token")
	}
	if again := must(w.create(by)); again.ID != next.ID {
		t.Errorf("the key again: got another token")
	}
	if w.keys() != 3 {
		t.Errorf("keys: got %d, want 3", w.keys())
	}
	w.clock.add(24 * time.Hour)
	must(w.create(by))
	if w.keys() != 1 { // a new key removes those that have ended
		t.Errorf("keys a day later: got %d, want 1", w.keys())
	}
}

// A repetition is refused if the token has a user, or if there is nothing left to give.
func TestOnceRefused(t *testing.T) {
	t.Parallel()
	carol := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"ops"}}}
	for _, row := range []struct {
		name, want string
		by         Actor
		between    func(w *world, k *Issued) error
	}{
		{"used", "conflict token_id", alice, func(w *world, k *Issued) error {
			w.use(k.Secret, "192.0.2.1", "rule_a")
			return w.FlushUse(ctx)
		}},
		{"used, not on disk yet", "conflict token_id", alice, func(w *world, k *Issued) error {
			w.use(k.Secret, "192.0.2.1", "rule_a")
			return nil
		}},
		{"used for the first time, not on disk yet", "conflict token_id", alice, func(w *world, k *Issued) error {
			w.usedUnwritten(k.ID)
			return nil
		}},
		{"revoked", "conflict token_id", alice, func(w *world, k *Issued) error { return w.revoke(ctx, alice, w.user.ID, k.ID) }},
		{"refreshed", "conflict token_id", alice, func(w *world, k *Issued) error {
			return second(w.refreshOf(ctx, alice, w.user.ID, k.ID, time.Hour))
		}},
		{"expired", "conflict token_id", alice, func(w *world, k *Issued) error {
			_, err := w.UpdateToken(ctx, alice, w.user.ID, k.ID, 0, func(k *Token) error { k.ExpiresAt = w.now().Add(time.Hour); return nil })
			w.clock.add(time.Hour)
			return err
		}},
		{"pending", "ok", alice, func(w *world, k *Issued) error {
			_, err := w.UpdateToken(ctx, alice, w.user.ID, k.ID, 0, func(k *Token) error { k.NotBefore = w.now().Add(time.Hour); return nil })
			return err
		}},
		{"its service user is deactivated", "ok", alice, func(w *world, _ *Issued) error {
			return w.changeUser(func(u *ServiceUser) { u.Active = false })
		}},
		{"its service user is deleted", "not found", alice, func(w *world, _ *Issued) error {
			return w.deleteUser(ctx, alice, w.user.ID, 0)
		}},
		{"out of the manager's sight", "not found", carol, func(w *world, _ *Issued) error {
			return w.changeUser(func(u *ServiceUser) { u.Teams = nil })
		}},
		{"out of the manager's reach", "not allowed role", carol, func(w *world, _ *Issued) error {
			return w.changeUser(func(u *ServiceUser) { u.Role = access.Admin })
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, still)
			mustDo(w.changeUser(func(u *ServiceUser) { u.Teams, u.Groups = []string{"ops"}, nil }))
			by := row.by.once("k", "create")
			made := must(w.create(by))
			mustDo(row.between(w, made))
			known := len(trail(t, w.Store))
			again, err := w.create(by)
			if kind(err) != row.want {
				t.Fatalf("got %v, want %s", err, row.want)
			}
			if err == nil {
				if again.ID != made.ID {
					t.Errorf("got another token")
				}
				return
			}
			if kind(err) == "conflict token_id" && !strings.Contains(err.Error(), made.ID) {
				t.Errorf("got %v, want the id of the token", err)
			}
			if len(trail(t, w.Store)) != known {
				t.Errorf("the refused repetition changed something")
			}
		})
	}
}

// Another request under the key is refused, and so is one that issues no token. A request that
// failed leaves its key free.
func TestOnceAnotherRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	by := alice.once("k", "create")
	if _, err := w.CreateToken(ctx, by, w.user.ID, Token{ExpiresAt: w.now().Add(-time.Hour)}); kind(err) != "invalid value expires_at" {
		t.Fatalf("got %v", err)
	}
	by = alice.once("k", "create, mended")
	made := must(w.create(by))
	_, err := w.create(alice.once("k", "other"))
	if !errors.Is(err, ErrKeyUsed) || kind(err) != "key used Idempotency-Key" {
		t.Errorf("another request: got %v", err)
	}
	if again := must(w.create(by)); again.ID != made.ID {
		t.Errorf("the same request behind it: got another token")
	}
	before := dump(t, w.Store)
	_, _, err = w.CreateServiceUser(ctx, alice.once("k3", "create"), ServiceUser{Profile: access.Profile{Name: "tokenless"}}, nil)
	if kind(err) != "invalid value Idempotency-Key" {
		t.Errorf("a request without a token: got %v", err)
	}
	same(t, "the store", dump(t, w.Store), before)
}

// Each call that issues tokens answers a repetition as it answered the first time.
func TestOnceEverywhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	for name, call := range map[string]func(by Actor) (string, *Issued, error){
		"create a service user": func(by Actor) (string, *Issued, error) {
			u, k, err := w.CreateServiceUser(ctx, by, ServiceUser{Profile: access.Profile{Name: "one"}, Groups: []string{w.readers.ID}}, &Token{})
			return toJSON(u), k, err
		},
		"refresh": func(by Actor) (string, *Issued, error) {
			k, old, err := w.RefreshToken(ctx, by, w.user.ID, w.token.ID, 1, time.Hour, 0)
			return toJSON(old), k, err
		},
	} {
		by := alice.once(name, name)
		was, made, err := call(by)
		mustDo(err)
		is, again, err := call(by)
		if err != nil || is != was || again.ID != made.ID || again.Secret == made.Secret {
			t.Errorf("%s: got %s with %v, %v; want %s with %s and another secret", name, is, again, err, was, made.ID)
		}
	}
}

// Of requests at the same time one issues the token, and the secret of the last one is valid.
func TestOnceTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	var wg sync.WaitGroup
	got := make([]*Issued, 8)
	for i := range got {
		wg.Go(func() { got[i] = must(w.CreateToken(ctx, alice.once("k", "create"), w.user.ID, Token{})) })
	}
	wg.Wait()
	valid := 0
	for _, k := range got {
		if k.ID != got[0].ID {
			t.Errorf("got the tokens %s and %s", k.ID, got[0].ID)
		}
		if probe(w.Store, w.user.ID, k.Secret, "GET /v1/x") == access.Granted {
			valid++
		}
	}
	if valid != 1 {
		t.Errorf("valid secrets: got %d, want 1", valid)
	}
}

// The lists of tokens choose as the states and times of the tokens say.
func TestFindTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	const day = 24 * time.Hour
	now, n, secrets := w.now(), 0, make(map[string]string)
	for _, ends := range []time.Duration{0, 3 * day, 20 * day} {
		for _, begins := range []time.Duration{0, 2 * day} {
			for _, fate := range []string{"kept", "used", "refreshed", "revoked"} {
				w.clock.add(time.Second)
				k := Token{Description: fmt.Sprint(ends, begins, fate)}
				if ends > 0 {
					k.ExpiresAt = now.Add(ends)
				}
				if begins > 0 {
					k.NotBefore = now.Add(begins)
				}
				made := must(w.CreateToken(ctx, Local, w.user.ID, k))
				n++
				if fate == "used" {
					secrets[made.ID] = made.Secret
				}
				switch fate {
				case "refreshed":
					must(w.refreshOf(ctx, Local, w.user.ID, made.ID, 5*day))
					n++
				case "revoked":
					mustDo(w.revoke(ctx, Local, w.user.ID, made.ID))
				}
			}
		}
	}
	find := func(q TokenQuery) (list []Token) {
		t.Helper()
		q.Limit = 3
		for more := true; more; {
			page, next, err := w.FindTokens(ctx, Local, q)
			if err != nil || next && len(page) != q.Limit {
				t.Fatalf("%+v: got %d tokens, %t, %v", q, len(page), next, err)
			}
			list = append(list, page...)
			if more = next; more {
				q.Before = page[len(page)-1].ID
			}
		}
		return list
	}
	check := func(q TokenQuery, fits func(Token) bool) {
		t.Helper()
		var got, want []string
		for _, k := range find(q) {
			got = append(got, k.ID)
		}
		for _, k := range find(TokenQuery{UserID: q.UserID}) {
			if fits(k) {
				want = append(want, k.ID)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v later, %+v: got %v, want %v", w.now().Sub(now), q, got, want)
		}
	}
	for _, later := range []time.Duration{day, 2 * day, 3 * day, 4 * day, 6 * day, 30 * day} {
		w.clock.nanos.Store(now.Add(later).UnixNano())
		if later == 4*day { // uses that are in memory count
			for _, k := range find(TokenQuery{}) {
				if secret := secrets[k.ID]; secret != "" && k.State(w.now()) == TokenActive {
					w.use(secret, "192.0.2.1", "")
				}
			}
		}
		for _, user := range []string{"", w.user.ID} {
			for _, state := range TokenStates {
				check(TokenQuery{UserID: user, State: state}, func(k Token) bool { return k.State(w.now()) == state })
			}
			live := func(k Token) bool {
				return !slices.Contains([]TokenState{TokenRevoked, TokenExpired}, k.State(w.now()))
			}
			check(TokenQuery{UserID: user, Live: true}, live)
			for _, within := range []time.Duration{time.Second, 2 * day, 14 * day} {
				check(TokenQuery{UserID: user, Live: true, EndsWithin: within}, func(k Token) bool {
					end := earlier(w.now().Add(1000*day), k.ExpiresAt)
					return live(k) && !earlier(end, k.RetiresAt).After(w.now().Add(within))
				})
				check(TokenQuery{UserID: user, Live: true, UnusedFor: within}, func(k Token) bool {
					last := k.CreatedAt
					for _, at := range []time.Time{k.NotBefore, k.LastUsedAt} {
						if at.After(last) {
							last = at
						}
					}
					return live(k) && !last.After(w.now().Add(-within))
				})
			}
		}
	}
	if got := len(find(TokenQuery{})); got != n+1 {
		t.Errorf("all tokens: got %d, want %d", got, n+1)
	}
}
