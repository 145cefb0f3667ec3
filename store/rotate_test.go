package store

import (
	"encoding/json"
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

// itself is the service user of the world as an actor.
func (w *world) itself() Actor { return Actor{Name: w.user.ID, Operation: "op_of_itself"} }

func (w *world) rotate(token string, grace time.Duration) (*Issued, Token, error) {
	issued, old, err := w.RotateToken(ctx, w.itself(), w.user.ID, token, grace)
	return issued, old, w.issue(issued, err)
}

// shown is the token with this secret as requests see it.
func (w *world) shown(secret string) (access.Token, access.Reason) {
	p, why := w.Directory().Authenticate(access.Credential{ID: w.user.ID, Secret: secret}, netip.MustParseAddr("192.0.2.1"), w.now().Unix())
	if why != access.Granted {
		return access.Token{}, why
	}
	return p.Token(), why
}

// written waits until no first use is left to be written.
func (w *world) written(t tb, token string) {
	t.Helper()
	eventually(t, "the first use on disk", func() bool { return !w.uses.first.has(token) })
}

// usedUnwritten is NoteUse before anybody is woken to write it.
func (w *world) usedUnwritten(token string) {
	w.uses.first.mu.Lock()
	defer w.uses.first.mu.Unlock()
	w.uses.first.pending[token] = firstUse{w.user.ID, w.now()}
}

// row is the record of a token.
func (w *world) row(id string) Token { return must(w.Token(ctx, Local, w.user.ID, id)) }

// live lists the tokens that can be used.
func (w *world) live() (ids []string) {
	for _, k := range must(w.tokensOf(w.user.ID)) {
		if s := k.State(w.now()); s == TokenActive || s == TokenRetiring {
			ids = append(ids, k.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestRotateToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	end := w.now().Add(10 * time.Hour)
	mustDo(w.changeToken(func(k *Token) {
		k.Description, k.Metadata, k.NotBefore, k.ExpiresAt = "ci", "{}", w.now(), end
		k.AllowedIPs, k.Groups = []string{"192.0.2.0/24"}, []string{w.readers.ID}
	}))
	w.clock.add(time.Hour)
	known := len(trail(t, w.Store))
	next, old, err := w.rotate(w.token.ID, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	want := Token{
		ID: next.ID, UserID: w.user.ID, Hint: access.Hint(next.Secret), Description: "ci", Metadata: "{}", AllowedIPs: []string{"192.0.2.0/24"},
		Groups: []string{w.readers.ID}, NotBefore: end.Add(-10 * time.Hour), ExpiresAt: end, CreatedAt: w.now(), CreatedBy: w.user.ID, UpdatedAt: w.now(), Version: 1,
	}
	if got := w.row(next.ID); toJSON(got) != toJSON(want) || toJSON(next.Token) != toJSON(want) {
		t.Errorf("the successor: got %s, want %s", toJSON(got), toJSON(want))
	}
	if got := w.row(w.token.ID); toJSON(got) != toJSON(old) || got.ReplacedBy != next.ID || !got.RetiresAt.Equal(w.now().Add(2*time.Hour)) || !got.ExpiresAt.Equal(end) {
		t.Errorf("the old one: got %s", toJSON(got))
	}
	var actions []string
	for _, e := range trail(t, w.Store)[known:] {
		actions = append(actions, e.Action)
		if e.Actor != w.user.ID || e.Operation != "op_of_itself" {
			t.Errorf("audit record of %s: got the actor %s of %s", e.Action, e.Actor, e.Operation)
		}
		for _, secret := range w.secrets {
			absent(t, "the audit trail", slices.Concat(e.Before, e.After), secret)
		}
	}
	if got := strings.Join(actions, " "); got != "token.create token.rotate" {
		t.Errorf("audit records: got %q", got)
	}

	if got, why := w.shown(w.token.Secret); why != access.Granted || !got.Retiring || got.Unused || got.ExpiresAt != old.RetiresAt.Unix() {
		t.Errorf("the old one in the directory: got %+v, %v", got, why)
	}
	if got, why := w.shown(next.Secret); why != access.Granted || got.Retiring || !got.Unused || got.ExpiresAt != end.Unix() {
		t.Errorf("the successor in the directory: got %+v, %v", got, why)
	}
	w.clock.add(2 * time.Hour)
	if _, why := w.shown(w.token.Secret); why != access.TokenExpired {
		t.Errorf("the old one after its grace: got %v", why)
	}
	if _, _, err := w.rotate(w.token.ID, time.Hour); kind(err) != "conflict" || errors.Is(err, ErrReplaced) {
		t.Errorf("rotated after its grace: got %v", err)
	}
	w.clock.add(7 * time.Hour)
	if _, why := w.shown(next.Secret); why != access.TokenExpired {
		t.Errorf("the successor after the end of the old one: got %v", why)
	}
}

// Neither the grace nor the successor lasts longer than the old token, or than
// the operator allows.
func TestRotateLimits(t *testing.T) {
	t.Parallel()
	hour := func(n int) time.Time { return newClock().Now().Add(time.Duration(n) * time.Hour) }
	for _, row := range []struct {
		name               string
		before, opts       Options // while the token is made, and when it is rotated
		end                time.Time
		grace              time.Duration
		wantEnd, wantGrace time.Time
	}{
		{"for ever", Options{}, Options{}, time.Time{}, time.Hour, time.Time{}, hour(1)},
		{"an end", Options{}, Options{}, hour(9), time.Hour, hour(9), hour(1)},
		{"an end before the grace", Options{}, Options{}, hour(1), 5 * time.Hour, hour(1), hour(1)},
		{"an end as by default", Options{TokenTTL: 9 * time.Hour}, Options{TokenTTL: 20 * time.Hour}, time.Time{}, time.Hour, hour(9), hour(1)},
		{"an end beyond a new limit", Options{}, Options{MaxTokenTTL: 4 * time.Hour}, hour(9), time.Hour, hour(4), hour(1)},
		{"an end within the limit", Options{}, Options{MaxTokenTTL: 40 * time.Hour}, hour(9), time.Hour, hour(9), hour(1)},
		{"for ever, and a new limit", Options{}, Options{MaxTokenTTL: 4 * time.Hour}, time.Time{}, time.Hour, hour(4), hour(1)},
		{"fractions of a second", Options{}, Options{}, hour(9), time.Second + time.Millisecond, hour(9), hour(0).Add(time.Second)},
	} {
		w := newWorld(t, row.before)
		if !row.end.IsZero() {
			mustDo(w.changeToken(func(k *Token) { k.ExpiresAt = row.end }))
		}
		mustDo(w.Close())
		row.opts.Now, row.opts.Peppers = w.opts.Now, w.opts.Peppers
		w.Store = open(t, w.path, row.opts)
		next, _, err := w.rotate(w.token.ID, row.grace)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if got := w.row(next.ID).ExpiresAt; !got.Equal(row.wantEnd) {
			t.Errorf("%s: the successor ends at %v, want %v", row.name, got, row.wantEnd)
		}
		if got := w.row(w.token.ID).RetiresAt; !got.Equal(row.wantGrace) {
			t.Errorf("%s: the grace ends at %v, want %v", row.name, got, row.wantGrace)
		}
	}
}

// Whoever lost the answer asks again.
func TestRotateAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	mustDo(w.changeToken(func(k *Token) { k.ExpiresAt = w.now().Add(10 * time.Hour) }))
	lost, first, err := w.rotate(w.token.ID, time.Hour)
	mustDo(err)
	w.clock.add(time.Minute)
	known := len(trail(t, w.Store))
	next, old, err := w.rotate(w.token.ID, 5*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if !old.RetiresAt.Equal(first.RetiresAt) || old.ReplacedBy != next.ID {
		t.Errorf("the old one: got %s, want the grace as it was, %v", toJSON(old), first.RetiresAt)
	}
	if got := w.row(lost.ID); !got.RevokedAt.Equal(w.now()) || got.ReplacedBy != next.ID || got.Version != 2 {
		t.Errorf("the lost one: got %s, want it revoked", toJSON(got))
	}
	if _, why := w.shown(lost.Secret); why != access.TokenRevoked {
		t.Errorf("the lost one in the directory: got %v", why)
	}
	if !next.ExpiresAt.Equal(old.ExpiresAt) {
		t.Errorf("the successor ends at %v, want %v", next.ExpiresAt, old.ExpiresAt)
	}
	var actions []string
	for _, e := range trail(t, w.Store)[known:] {
		actions = append(actions, e.Action)
	}
	if got := strings.Join(actions, " "); got != "token.create token.revoke token.rotate" {
		t.Errorf("audit records: got %q", got)
	}
	want := []string{w.token.ID, next.ID}
	slices.Sort(want)
	if got := w.live(); !slices.Equal(got, want) {
		t.Errorf("live: got %v, want %v", got, want)
	}
}

// A successor that stays cannot be replaced by the old token any more.
func TestRotateReplaced(t *testing.T) {
	t.Parallel()
	bob := Actor{Name: "human:bob"}
	for _, row := range []struct {
		name   string
		stays  bool
		before func(w *world, next *Issued)
	}{
		{"lost", false, func(*world, *Issued) {}},
		{"used, and not yet on disk", true, func(w *world, next *Issued) {
			w.usedUnwritten(next.ID)
		}},
		{"used just now", true, func(w *world, next *Issued) { w.noteFirst(w.user.ID, next.ID) }},
		{"used, on disk", true, func(w *world, next *Issued) { w.noteFirst(w.user.ID, next.ID); w.written(t, next.ID) }},
		{"used, then the store was opened again", true, func(w *world, next *Issued) {
			w.noteFirst(w.user.ID, next.ID)
			mustDo(w.Close())
			w.Store = open(t, w.path, w.opts)
		}},
		{"used in another process", true, func(w *world, next *Issued) {
			other := open(t, w.path, w.opts)
			other.noteFirst(w.user.ID, next.ID)
			mustDo(other.Close())
		}},
		{"another token was used", false, func(w *world, _ *Issued) {
			w.noteFirst(w.user.ID, w.token.ID)
			w.written(t, w.token.ID)
		}},
		{"changed by an admin", true, func(w *world, next *Issued) {
			_, err := w.UpdateToken(ctx, bob, w.user.ID, next.ID, 0, func(k *Token) error { k.ExpiresAt = w.now().Add(time.Minute); return nil })
			mustDo(err)
		}},
		{"revoked by an admin", true, func(w *world, next *Issued) { mustDo(w.revoke(ctx, bob, w.user.ID, next.ID)) }},
		{"refreshed by an admin", true, func(w *world, next *Issued) {
			mustDo(w.issue(w.refreshOf(ctx, bob, w.user.ID, next.ID, time.Minute)))
		}},
		{"rotated itself", true, func(w *world, next *Issued) { mustDo(third(w.rotate(next.ID, time.Minute))) }},
	} {
		w := newWorld(t, Options{})
		next, _, err := w.rotate(w.token.ID, time.Hour)
		mustDo(err)
		row.before(w, next)
		before := dump(t, w.Store)
		_, _, err = w.rotate(w.token.ID, time.Hour)
		if got := errors.Is(err, ErrReplaced); got != row.stays || !got && err != nil {
			t.Errorf("%s: got %v, want that it stays: %t", row.name, err, row.stays)
		}
		if row.name != "used just now" && row.stays {
			same(t, row.name, dump(t, w.Store), before)
		}
		if _, why := w.shown(w.token.Secret); why != access.Granted {
			t.Errorf("%s: the old one: got %v, want granted", row.name, why)
		}
	}
}

// What an admin issued is not for the old token to replace.
func TestRotateRefreshed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	next := must(w.refreshOf(ctx, alice, w.user.ID, w.token.ID, time.Hour))
	if _, _, err := w.rotate(w.token.ID, time.Hour); !errors.Is(err, ErrReplaced) {
		t.Errorf("got %v, want that it is replaced", err)
	}
	if got, why := w.shown(next.Secret); why != access.Granted || got.Unused {
		t.Errorf("the successor: got %+v, %v", got, why)
	}
}

// A successor is narrowed to what its predecessor was, though the group is gone.
func TestRotateNarrowedToADeletedGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	extra := addGroup(w.Store, "extra", "allow GET /v1/{x}")
	mustDo(w.changeToken(func(k *Token) { k.Groups = []string{extra.ID} }))
	mustDo(w.DeleteGroup(ctx, alice, extra.ID, 0))
	next, _, err := w.rotate(w.token.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if got := probe(w.Store, w.user.ID, next.Secret, "GET /v1/x"); got != access.NoRule {
		t.Errorf("got %v, want no_rule", got)
	}
}

// The successor rotates later, and so on.
func TestRotateChain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	end := w.now().Add(100 * time.Hour)
	mustDo(w.changeToken(func(k *Token) { k.ExpiresAt = end }))
	token := w.token
	for range 5 {
		next, old, err := w.rotate(token.ID, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		w.noteFirst(w.user.ID, next.ID)
		if _, _, err := w.rotate(token.ID, time.Hour); !errors.Is(err, ErrReplaced) {
			t.Errorf("the old one again: got %v, want that it is replaced", err)
		}
		if !next.ExpiresAt.Equal(end) || !old.RetiresAt.Equal(w.now().Add(time.Hour)) {
			t.Errorf("got the end %v and the grace %v", next.ExpiresAt, old.RetiresAt)
		}
		w.clock.add(10 * time.Hour)
		token = next
	}
	if got := w.live(); !slices.Equal(got, []string{token.ID}) {
		t.Errorf("live: got %v, want the last one", got)
	}
}

func TestRotateRefused(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, want string
		do         func(w *world) error
	}{
		{"no grace", "invalid value grace", func(w *world) error { return third(w.rotate(w.token.ID, 0)) }},
		{"less than a second", "invalid value grace", func(w *world) error { return third(w.rotate(w.token.ID, time.Second-1)) }},
		{"no such token", "not found", func(w *world) error { return third(w.rotate("token_x", time.Hour)) }},
		{"another's token", "not found", func(w *world) error {
			_, token := addUser(w.Store, "other")
			return third(w.rotate(token.ID, time.Hour))
		}},
		{"no such service user", "not found", func(w *world) error {
			return third(w.RotateToken(ctx, w.itself(), "service_x", w.token.ID, time.Hour))
		}},
		{"deleted", "not found", func(w *world) error {
			mustDo(w.deleteUser(ctx, alice, w.user.ID, 0))
			return third(w.rotate(w.token.ID, time.Hour))
		}},
		{"revoked", "conflict", func(w *world) error {
			mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
			return third(w.rotate(w.token.ID, time.Hour))
		}},
		{"expired", "conflict", func(w *world) error {
			mustDo(w.changeToken(func(k *Token) { k.ExpiresAt = w.now().Add(time.Second) }))
			w.clock.add(time.Second)
			return third(w.rotate(w.token.ID, time.Hour))
		}},
		{"deactivated", "conflict", func(w *world) error {
			mustDo(w.changeUser(func(u *ServiceUser) { u.Active = false }))
			return third(w.rotate(w.token.ID, time.Hour))
		}},
		{"the service user has expired", "conflict", func(w *world) error {
			mustDo(w.changeUser(func(u *ServiceUser) { u.ExpiresAt = w.now().Add(time.Second) }))
			w.clock.add(time.Second)
			return third(w.rotate(w.token.ID, time.Hour))
		}},
		{"a manager of others", "not found", func(w *world) error {
			mustDo(w.changeUser(func(u *ServiceUser) { u.Teams = []string{"a"} }))
			return third(w.RotateToken(ctx, Actor{Name: "human:m", Scope: &Scope{Teams: []string{"b"}}}, w.user.ID, w.token.ID, time.Hour))
		}},
		{"a manager of less", "not allowed permission_groups", func(w *world) error {
			mustDo(w.changeUser(func(u *ServiceUser) { u.Teams = []string{"a"} }))
			return third(w.RotateToken(ctx, Actor{Name: "human:m", Scope: &Scope{Teams: []string{"a"}}}, w.user.ID, w.token.ID, time.Hour))
		}},
		{"as many live tokens as there can be", "conflict", func(w *world) error {
			for range maxLiveTokens - 1 {
				mustDo(second(w.CreateToken(ctx, alice, w.user.ID, Token{})))
			}
			return third(w.rotate(w.token.ID, time.Hour))
		}},
	} {
		w := newWorld(t, Options{})
		err := row.do(w)
		if got := kind(err); got != row.want || errors.Is(err, ErrReplaced) {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
		for _, e := range trail(t, w.Store) {
			if e.Actor == w.user.ID || e.Action == "token.rotate" {
				t.Errorf("%s: left %+v behind", row.name, e)
			}
		}
	}
}

// A client that loses every answer makes no more rows than others could, and the
// place of a lost successor is free again.
func TestRotateTooOften(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	for range maxLiveTokens - 2 {
		mustDo(second(w.CreateToken(ctx, alice, w.user.ID, Token{})))
	}
	for n := range maxRotations {
		if _, _, err := w.rotate(w.token.ID, 10*time.Hour); err != nil {
			t.Fatalf("rotation %d: %v", n, err)
		}
	}
	before := dump(t, w.Store)
	if _, _, err := w.rotate(w.token.ID, 10*time.Hour); !errors.Is(err, ErrTooOften) || kind(err) != "conflict: too often" {
		t.Errorf("one more: got %v, want too often", err)
	}
	same(t, "one more", dump(t, w.Store), before)
	w.clock.add(time.Hour)
	if _, _, err := w.rotate(w.token.ID, 10*time.Hour); err != nil {
		t.Errorf("an hour later: %v", err)
	}
	if got := len(w.live()); got != maxLiveTokens {
		t.Errorf("live: got %d, want %d", got, maxLiveTokens)
	}
}

// Rotations are bounded by chain: those of one token and its successors, asked for again
// or one after the other, stand in the way of no other token, no other service user and
// no admin.
func TestRotateTooOftenByChain(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(token, successor string) string{
		"the answer is lost":  func(token, _ string) string { return token },
		"one after the other": func(_, successor string) string { return successor },
	} {
		w := newWorld(t, Options{})
		second := must(w.CreateToken(ctx, alice, w.user.ID, Token{}))
		mustDo(w.issue(second, nil))
		other, others := addUser(w.Store, "other")
		exhaust := func(token string) string {
			t.Helper()
			for n := range maxRotations {
				issued, _, err := w.rotate(token, time.Hour)
				if err != nil {
					t.Fatalf("%s: rotation %d: %v", name, n, err)
				}
				token = next(token, issued.ID)
			}
			if _, _, err := w.rotate(token, time.Hour); !errors.Is(err, ErrTooOften) {
				t.Errorf("%s: one more: got %v, want too often", name, err)
			}
			return token
		}
		first := exhaust(w.token.ID)
		exhaust(second.ID) // as often
		if _, _, err := w.RotateToken(ctx, Actor{Name: other.ID}, other.ID, others.ID, time.Hour); err != nil {
			t.Errorf("%s: another service user: %v", name, err)
		}
		if name == "the answer is lost" {
			first = w.row(first).ReplacedBy
		}
		for n, grace := range []time.Duration{time.Hour, 0, time.Hour} {
			issued, _, err := w.RefreshToken(ctx, alice, w.user.ID, first, 0, grace, 0)
			if err != nil {
				t.Fatalf("%s: refresh %d by an admin: %v", name, n, err)
			}
			mustDo(w.issue(issued, nil))
			first = issued.ID
		}
		if _, _, err := w.rotate(first, time.Hour); !errors.Is(err, ErrTooOften) {
			t.Errorf("%s: after the refresh: got %v, want too often, since it is the same chain", name, err)
		}
		w.clock.add(time.Hour)
		if _, _, err := w.rotate(first, time.Hour); err != nil {
			t.Errorf("%s: an hour later: %v", name, err)
		}
	}
}

// A long grace lets a chain grow up to the bound of live tokens, for itself alone.
func TestRotateFillsNobodysPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	second := must(w.CreateToken(ctx, alice, w.user.ID, Token{}))
	mustDo(w.issue(second, nil))
	token, err := w.token.ID, error(nil)
	for n := 0; err == nil; n++ {
		if n > 2*maxLiveTokens {
			t.Fatal("the chain has no bound")
		}
		if n%maxRotations == 0 {
			w.clock.add(time.Hour)
		}
		var issued *Issued
		if issued, _, err = w.rotate(token, 1000*time.Hour); err == nil {
			token = issued.ID
		}
	}
	if got := len(w.live()); kind(err) != "conflict" || errors.Is(err, ErrTooOften) || got != maxLiveTokens {
		t.Errorf("the chain ended with %v and %d live tokens, want a conflict at %d", err, got, maxLiveTokens)
	}
	if _, _, err := w.rotate(second.ID, time.Hour); err != nil {
		t.Errorf("another token: %v", err)
	}
	for n, grace := range []time.Duration{time.Hour, 0} {
		issued, _, err := w.RefreshToken(ctx, alice, w.user.ID, token, 0, grace, 0)
		if err != nil {
			t.Fatalf("refresh %d by an admin: %v", n, err)
		}
		mustDo(w.issue(issued, nil))
		token = issued.ID
	}
	if made, err := w.CreateToken(ctx, alice, w.user.ID, Token{}); w.issue(made, err) != nil {
		t.Errorf("a new token: %v", err)
	}
}

// Whatever comes together: one successor is left, and it is the one that the old
// token names.
func TestRotateTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	other := open(t, w.path, w.opts) // another process
	var wg sync.WaitGroup
	var mu sync.Mutex
	secrets := make(map[string]string)
	for i := range maxRotations {
		wg.Go(func() {
			issued, _, err := []*Store{w.Store, other}[i%2].RotateToken(ctx, w.itself(), w.user.ID, w.token.ID, time.Hour)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			secrets[issued.ID] = issued.Secret
		})
	}
	wg.Wait()
	successor := w.row(w.token.ID).ReplacedBy
	want := []string{w.token.ID, successor}
	slices.Sort(want)
	if got := w.live(); !slices.Equal(got, want) {
		t.Errorf("live: got %v, want %v", got, want)
	}
	eventually(t, "both directories", func() bool { return w.Directory().Revision() == other.Directory().Revision() })
	for id, secret := range secrets {
		if _, why := w.shown(secret); (why == access.Granted) != (id == successor) {
			t.Errorf("%s: got %v, the successor is %s", id, why, successor)
		}
	}
	trail(t, w.Store)
}

// A use and a rotation that come together: whoever was first is right, and a use
// that was over before always wins.
func TestRotateWhileUsed(t *testing.T) {
	t.Parallel()
	for range 5 {
		w := newWorld(t, Options{})
		next, _, err := w.rotate(w.token.ID, time.Hour)
		mustDo(err)
		used := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { w.noteFirst(w.user.ID, next.ID); close(used) })
		for range 4 {
			wg.Go(func() {
				<-used
				if _, _, err := w.rotate2(w.token.ID); !errors.Is(err, ErrReplaced) {
					t.Errorf("rotated after the use: got %v, want that it is replaced", err)
				}
			})
		}
		wg.Wait()
		if _, why := w.shown(next.Secret); why != access.Granted {
			t.Errorf("the successor in use: got %v", why)
		}
	}
}

// rotate2 is rotate for several at once.
func (w *world) rotate2(token string) (*Issued, Token, error) {
	return w.RotateToken(ctx, w.itself(), w.user.ID, token, time.Hour)
}

func TestFirstUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	other := open(t, w.path, w.opts)
	next, _, err := w.rotate(w.token.ID, time.Hour)
	mustDo(err)
	known := len(trail(t, w.Store))
	at := w.now()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { w.noteFirst(w.user.ID, next.ID) })
	}
	wg.Wait()
	w.written(t, next.ID)
	w.clock.add(time.Minute)
	w.noteFirst(w.user.ID, next.ID) // by a request that still has the old directory
	w.written(t, next.ID)

	if got := w.row(next.ID); !got.LastUsedAt.Equal(at) || got.UseCount != 0 || got.Version != 1 {
		t.Errorf("got %+v, want its first use at %v, and otherwise unchanged", got, at)
	}
	for _, s := range []*Store{w.Store, other} {
		eventually(t, "the use in the directory", func() bool {
			u, _ := s.Directory().User(w.user.ID)
			return !slices.ContainsFunc(u.Tokens, func(k access.Token) bool { return k.Unused })
		})
	}
	events := trail(t, w.Store)[known:]
	if len(events) != 1 || events[0].Action != "token.first_use" || events[0].Actor != w.user.ID || events[0].Resource != next.ID {
		t.Fatalf("audit records: got %+v, want one of the first use", events)
	}
	var after struct {
		ID         string
		LastUsedAt time.Time `json:"last_used_at"`
	}
	if err := json.Unmarshal(events[0].After, &after); err != nil || after.ID != next.ID || !after.LastUsedAt.Equal(at) {
		t.Errorf("the audit record shows %s", events[0].After)
	}
}

// A first use that cannot be written counts, and is written later; one of a
// token that is gone is forgotten.
func TestFirstUseCannotBeWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	next, _, err := w.rotate(w.token.ID, time.Hour)
	mustDo(err)
	space := noSpace(w.Store, "tokens")
	w.usedUnwritten(next.ID)
	if err := w.writeUses(ctx); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("got %v, want that there is no space", err)
	}
	if _, _, err := w.rotate(w.token.ID, time.Hour); !errors.Is(err, ErrReplaced) {
		t.Errorf("rotated meanwhile: got %v, want that it is replaced", err)
	}
	space()
	w.noteFirst(w.user.ID, next.ID) // nothing new: nobody is woken
	if !w.uses.first.has(next.ID) {
		t.Error("forgotten before it was written")
	}
	mustDo(w.writeUses(ctx))
	if got := w.row(next.ID); got.LastUsedAt.IsZero() || w.uses.first.has(next.ID) {
		t.Errorf("with space again: got %+v", got)
	}
	before := dump(t, w.Store)
	for i, user := range []string{w.user.ID, "service_x"} {
		token := fmt.Sprint("token_gone", i)
		w.noteFirst(user, token)
		w.written(t, token)
	}
	same(t, "tokens that are gone", dump(t, w.Store), before)
}

// What was woken in vain is tried again by itself.
func TestFirstUseIsTriedAgain(t *testing.T) {
	t.Parallel()
	core, log := observer.New(zap.ErrorLevel)
	w := newWorld(t, Options{Log: zap.New(core)})
	next, _, err := w.rotate(w.token.ID, time.Hour)
	mustDo(err)
	space := noSpace(w.Store, "tokens")
	w.noteFirst(w.user.ID, next.ID)
	eventually(t, "the attempt to write it", func() bool { return log.FilterMessageSnippet("first use").Len() == 1 })
	space()
	w.written(t, next.ID)
	if w.row(next.ID).LastUsedAt.IsZero() {
		t.Error("not written")
	}
}

// What is noted before the store closes is written, even if nobody was woken yet.
func TestFirstUseAtTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	next, _, err := w.rotate(w.token.ID, time.Hour)
	mustDo(err)
	w.usedUnwritten(next.ID)
	mustDo(w.Close())
	w.Store = open(t, w.path, w.opts)
	if w.row(next.ID).LastUsedAt.IsZero() {
		t.Error("lost")
	}
}

// noSpace makes every update of a table fail, with the text "no space", until the returned function is
// called.
func noSpace(s *Store, table string) (space func()) {
	if *pgtest.On {
		must(s.write.ExecContext(ctx, `
			CREATE OR REPLACE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no space'; END $$;
			CREATE TRIGGER no_space BEFORE UPDATE ON `+table+` FOR EACH ROW EXECUTE FUNCTION no_space()`))
		return func() { must(s.write.ExecContext(ctx, `DROP TRIGGER no_space ON `+table)) }
	}
	must(s.write.ExecContext(ctx, `CREATE TEMP TRIGGER full BEFORE UPDATE ON main.`+table+` BEGIN SELECT RAISE(ABORT, 'no space'); END`))
	return func() { must(s.write.ExecContext(ctx, `DROP TRIGGER full`)) }
}

// A token that two nodes rotate has one successor, however far the nodes are behind each other. The use of
// a successor counts on its own node at once, and on the other one as soon as it is written; if that
// node has replaced the successor meanwhile, the log says that two may have the secret.
func TestRotateOnTwoNodes(t *testing.T) {
	t.Parallel()
	draw := random(t)
	core, logs := observer.New(zap.WarnLevel)
	w := newWorld(t, Options{Log: zap.New(core), Poll: time.Hour})
	other := *w
	other.Store = open(t, w.path, w.opts)
	nodes := [2]*world{w, &other}
	if IsURL(w.path) { // the nodes do not hear of each other
		w.engine.(*postgresEngine).channel, other.engine.(*postgresEngine).channel = "a", "b"
	}
	successor, want := "", 0
	pending, written := [2][]string{}, make(map[string]bool)
	for range 80 {
		i := draw.IntN(2)
		n := nodes[i]
		switch draw.IntN(4) {
		case 0, 1:
			w.clock.add(time.Hour) // not too often
			issued, _, err := n.rotate(w.token.ID, 1000*time.Hour)
			if used := written[successor] || slices.Contains(pending[i], successor); used != errors.Is(err, ErrReplaced) || !used && err != nil {
				t.Fatalf("rotate, used %v: got %v", used, err)
			}
			if err == nil {
				successor = issued.ID
			}
		case 2:
			if successor != "" {
				n.usedUnwritten(successor)
				pending[i] = append(pending[i], successor)
			}
		case 3:
			mustDo(n.writeUses(ctx))
			for _, token := range pending[i] {
				if !written[token] && token != successor {
					want++
				}
				written[token] = true
			}
			if pending[i] = nil; written[successor] { // another chain
				mustDo(w.RevokeToken(ctx, alice, w.user.ID, successor, 0))
				mustDo(w.RevokeToken(ctx, alice, w.user.ID, w.token.ID, 0))
				w.token, successor = must(w.CreateToken(ctx, alice, w.user.ID, Token{})), ""
				other.token = w.token
			}
		}
		live := []string{w.token.ID}
		if successor != "" {
			live = append(live, successor)
		}
		slices.Sort(live)
		mustDo(w.refresh(ctx))
		if got := w.live(); !slices.Equal(got, live) {
			t.Fatalf("live: got %v, want %v", got, live)
		}
		if got := logs.FilterMessageSnippet("two may hold the same secret").Len(); got != want {
			t.Fatalf("log: got %d lines, want %d", got, want)
		}
	}
	trail(t, w.Store)
}
