package store

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
)

// still keeps the worker from writing before it is asked to.
var still = Options{UseInterval: time.Hour}

func (w *world) principal(secret string) access.Principal {
	p, why := w.Directory().Authenticate(access.Credential{ID: w.user.ID, Secret: secret}, addrOf("192.0.2.1"), w.now().Unix())
	if why != access.Granted {
		panic(why.String())
	}
	return p
}

// use is a request of the world's service user.
func (w *world) use(secret, from, rule string) {
	w.Use(w.principal(secret), w.now().Unix(), addrOf(from), rule)
}

// used is what is known of the use of a token.
func used(k Token) string {
	return fmt.Sprintf("%d %d %s from %v by %v", k.UseCount, unix(k.LastUsedAt), k.LastUsedIP, k.UsedFrom, k.UsedRules)
}

// onDisk is the same as it was written, with when the service user was active.
func (w *world) onDisk(token string) string {
	rows := must(w.read.QueryContext(ctx, selectToken+` WHERE id = $1`, token))
	k := must(collect(rows, scanToken))[0]
	var active int64
	mustDo(w.read.QueryRowContext(ctx, `SELECT last_active_at FROM service_users WHERE id = $1`, k.UserID).Scan(&active))
	return fmt.Sprint(used(k), " active ", active)
}

func (w *world) reopen(t *testing.T) {
	t.Helper()
	mustDo(w.Close())
	opts := still
	opts.Now, opts.Peppers = w.opts.Now, w.opts.Peppers
	w.Store = open(t, w.path, opts)
}

// A use without a rule, once it is on disk, adds up with the next one.
func TestUseWithoutRuleThenMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	at := w.now().Unix()
	w.use(w.token.Secret, "192.0.2.1", "")
	w.reopen(t)
	w.use(w.token.Secret, "192.0.2.1", "rule_a")
	want := fmt.Sprintf("2 %d 192.0.2.1 from map[192.0.2.1:%d] by map[rule_a:%d]", at, at, at)
	if got := used(must(w.tokensOf(w.user.ID))[0]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Figures show at once, are on disk when they are flushed or the store closes, and
// are no change of anything.
func TestUseIsCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	w.clock.add(time.Second)
	second := must(w.CreateToken(ctx, Local, w.user.ID, Token{}))
	before, at := trail(t, w.Store), w.now().Unix()
	revision := w.Directory().Revision()
	check := func(when, want, disk string) {
		t.Helper()
		for how, got := range map[string]string{
			"one": used(w.row(w.token.ID)), "listed": used(must(w.tokensOf(w.user.ID))[1]),
			"of all": used(must(first(w.FindTokens(ctx, Local, TokenQuery{Live: true, Before: second.ID, Limit: 1})))[0]),
			"edited": used(must(w.UpdateToken(ctx, Local, w.user.ID, w.token.ID, 0, func(*Token) error { return nil }))),
		} {
			if got != want {
				t.Errorf("%s, %s: got %s, want %s", when, how, got, want)
			}
		}
		if got := w.onDisk(w.token.ID); got != disk {
			t.Errorf("%s, on disk: got %s, want %s", when, got, disk)
		}
	}
	const none = "0 0  from map[] by map[] active 0"
	check("never", "0 0  from map[] by map[]", none)
	for range 3 {
		w.use(w.token.Secret, "192.0.2.1", "rule_a")
	}
	w.clock.add(time.Minute)
	w.use(w.token.Secret, "2001:db8::2", "")
	want := fmt.Sprintf("4 %d 2001:db8::2 from map[192.0.2.1:%d 2001:db8::2:%d] by map[rule_a:%d]", at+60, at, at+60, at)
	check("unwritten", want, none)
	if u := must(w.readUser(ctx, Local, w.user.ID)); unix(u.LastActiveAt) != at+60 {
		t.Errorf("last active: got %v, want %d", u.LastActiveAt, at+60)
	}
	if list, _, err := w.page(ctx, Local, userPage{Limit: 1}); err != nil || unix(list[0].LastActiveAt) != at+60 {
		t.Errorf("last active in the list: got %v, %v", list, err)
	}
	w.uses.take()
	check("taken", want, none)
	mustDo(w.FlushUse(ctx))
	check("flushed", want, fmt.Sprint(want, " active ", at+60))
	mustDo(w.FlushUse(ctx))
	check("flushed again", want, fmt.Sprint(want, " active ", at+60))

	// More is added, whatever the order in which it comes.
	w.Use(w.principal(w.token.Secret), at+30, addrOf("192.0.2.1"), "rule_b")
	want = fmt.Sprintf("5 %d 2001:db8::2 from map[192.0.2.1:%d 2001:db8::2:%d] by map[rule_a:%d rule_b:%d]", at+60, at+30, at+60, at, at+30)
	if got := used(w.row(w.token.ID)); got != want {
		t.Errorf("a late one: got %s, want %s", got, want)
	}
	if got := used(w.row(second.ID)); got != "0 0  from map[] by map[]" {
		t.Errorf("another token: got %s, want nothing", got)
	}
	w.reopen(t)
	check("reopened", want, fmt.Sprint(want, " active ", at+60))
	if after := trail(t, w.Store); len(after) != len(before) || w.Directory().Revision() != revision || w.row(w.token.ID).Version != 1 {
		t.Errorf("got %d audit records, revision %d, version %d; want %d, %d, 1", len(after), w.Directory().Revision(), w.row(w.token.ID).Version, len(before), revision)
	}
	// Over a Unix socket there is no address.
	w.Use(w.principal(second.Secret), at, netip.Addr{}, "")
	if got, want := used(w.row(second.ID)), fmt.Sprintf("1 %d  from map[] by map[]", at); got != want {
		t.Errorf("without an address: got %s, want %s", got, want)
	}
}

// A filter sees the use that is not on disk yet: a service user that called just now is not stale.
func TestFilterSeesUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	stale := func(u *ServiceUser) (bool, error) { return u.LastActiveAt.IsZero(), nil }
	names := func(sort string) string {
		var names []string
		list, _, err := w.ServiceUsers(ctx, Local, UserQuery{Limit: 10, Filter: stale, Sort: sort})
		for _, u := range list {
			names = append(names, u.Name)
		}
		return fmt.Sprint(names, err)
	}
	before := fmt.Sprint([]string{w.user.Name}, error(nil))
	if got := names(""); got != before {
		t.Errorf("never used: got %s, want %s", got, before)
	}
	w.use(w.token.Secret, "192.0.2.1", "rule_a")
	for _, sort := range []string{"", "name", "-role"} {
		if got := names(sort); got != "[] <nil>" {
			t.Errorf("used, sorted by %q: got %s, want none", sort, got)
		}
	}
	// This list shows what is on disk, by which it is sorted.
	if got := names("last_active_at"); got != before {
		t.Errorf("sorted by use: got %s, want %s", got, before)
	}
	mustDo(w.FlushUse(ctx))
	if got := names("last_active_at"); got != "[] <nil>" {
		t.Errorf("flushed: got %s, want none", got)
	}
}

// The last addresses and rules are kept, wherever the writing falls.
func TestUseIsBounded(t *testing.T) {
	t.Parallel()
	for _, flush := range []int{-1, 3, 10, 15} {
		w := newWorld(t, still)
		from, by := map[string]int64{}, map[string]int64{}
		for i := range 20 {
			address, rule := fmt.Sprint("192.0.2.", i), fmt.Sprint("rule_", i)
			w.use(w.token.Secret, address, rule)
			if i >= 20-access.MaxSeen {
				from[address], by[rule] = w.now().Unix(), w.now().Unix()
			}
			if i == flush {
				mustDo(w.FlushUse(ctx))
			}
			w.clock.add(time.Second)
		}
		want := fmt.Sprintf("20 %d 192.0.2.19 from %v by %v", w.now().Unix()-1, from, by)
		if got := used(w.row(w.token.ID)); got != want {
			t.Errorf("flushed after %d: got %s, want %s", flush, got, want)
		}
		mustDo(w.FlushUse(ctx))
		if got := used(w.row(w.token.ID)); got != want {
			t.Errorf("flushed after %d and at the end: got %s, want %s", flush, got, want)
		}
	}
}

// Requests that still hold an older directory count as well.
func TestUseWhileTheTokenChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	old := w.principal(w.token.Secret)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 500 {
				w.Use(old, w.now().Unix(), addrOf("192.0.2.1"), "rule_a")
				w.use(w.token.Secret, "192.0.2.2", "rule_b")
			}
		})
		mustDo(w.changeToken(func(k *Token) { k.Description = fmt.Sprint(i) }))
		w.row(w.token.ID)
	}
	wg.Wait()
	check := func(when string, want int64) {
		t.Helper()
		if got := w.row(w.token.ID); got.UseCount != want || len(got.UsedFrom) != 2 || len(got.UsedRules) != 2 {
			t.Errorf("%s: got %s, want %d from two addresses by two rules", when, used(got), want)
		}
	}
	check("unwritten", 4000)
	mustDo(w.FlushUse(ctx))
	check("flushed", 4000)
	mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
	w.Use(old, w.now().Unix(), addrOf("192.0.2.1"), "")
	check("revoked meanwhile", 4001)
	w.reopen(t)
	check("reopened", 4001)

	// A service user that is deleted, and one that is purged, meanwhile.
	mustDo(w.deleteUser(ctx, alice, w.user.ID, 0))
	w.Use(old, w.now().Unix(), addrOf("192.0.2.1"), "")
	mustDo(w.FlushUse(ctx))
	w.clock.add(w.opts.Retention)
	mustDo(w.purge(ctx))
	w.Use(old, w.now().Unix(), addrOf("192.0.2.1"), "")
	mustDo(w.FlushUse(ctx))
	if left := w.uses.of(w.user.ID); len(left) != 0 {
		t.Errorf("of a token that is gone: got %v kept, want nothing", left)
	}
}

// Uses that are counted while a flush or Close runs are not counted twice, and each use before Close
// is on disk.
func TestUseWhileTheStoreFlushesAndCloses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	p := w.principal(w.token.Secret)
	for range 10 {
		var began, ended atomic.Int64 // uses, counted before and after the call
		earlier := w.row(w.token.ID).UseCount
		var users, flusher sync.WaitGroup
		s, stop, flushed := w.Store, make(chan struct{}), make(chan struct{})
		for range 4 {
			users.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						began.Add(1)
						s.Use(p, 1000, addrOf("192.0.2.1"), "rule_a")
						ended.Add(1)
					}
				}
			})
		}
		flusher.Go(func() {
			for range 5 {
				mustDo(s.FlushUse(ctx))
			}
			close(flushed)
		})
		<-flushed
		least := ended.Load()
		mustDo(s.Close())
		most := began.Load()
		close(stop)
		users.Wait()
		flusher.Wait()
		w.reopen(t)
		if got := w.row(w.token.ID).UseCount - earlier; got < least || got > most {
			t.Fatalf("got %d uses on disk, want %d to %d", got, least, most)
		}
	}
}

// The figures of a first use wait for the record of that use, also when the store closes.
func TestFirstUseIsCountedAtTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	token := w.token.ID
	for range 20 {
		next, _, err := w.rotate(token, time.Hour)
		mustDo(err)
		w.use(next.Secret, "192.0.2.1", "rule_a")
		w.reopen(t)
		if got := w.row(next.ID); got.UseCount != 1 || got.LastUsedAt.IsZero() {
			t.Fatalf("got %s on disk, want one use", used(got))
		}
		w.clock.add(time.Hour) // a rotation is allowed 10 times in an hour
		token = next.ID
	}
}

// A count is exact at any instant of its way to the disk, for readers and for
// changes.
func TestUseWhileItIsWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	w.use(w.token.Secret, "192.0.2.1", "")
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				mustDo(w.FlushUse(ctx))
			}
		}
	})
	defer writer.Wait()
	defer close(stop)
	for n := range int64(100) {
		w.use(w.token.Secret, "192.0.2.1", "")
		if got, want := must(w.Token(ctx, Local, w.user.ID, w.token.ID)).UseCount, n+2; got != want {
			t.Fatalf("read: got %d, want %d", got, want)
		}
		list, _, err := w.FindTokens(ctx, Local, TokenQuery{UserID: w.user.ID, Limit: 10})
		if err != nil || list[0].UseCount != n+2 {
			t.Fatalf("listed: got %d and %v, want %d", list[0].UseCount, err, n+2)
		}
		changed := must(w.UpdateToken(ctx, Local, w.user.ID, w.token.ID, 0, func(k *Token) error {
			k.Description = fmt.Sprint(n)
			return nil
		}))
		if changed.UseCount != n+2 {
			t.Fatalf("changed: got %d, want %d", changed.UseCount, n+2)
		}
	}
}

// What cannot be written shows all the same, and is written once it can be.
func TestUseCannotBeWritten(t *testing.T) {
	t.Parallel()
	core, log := observer.New(zap.ErrorLevel)
	w := newWorld(t, Options{UseInterval: time.Hour, Log: zap.New(core)})
	space := noSpace(w.Store, "service_users")
	disk := w.onDisk(w.token.ID)
	for i := range int64(3) {
		w.use(w.token.Secret, "192.0.2.1", "rule_a")
		if err := w.FlushUse(ctx); err == nil || !strings.Contains(err.Error(), "no space") {
			t.Errorf("got %v, want that there is no space", err)
		}
		if got := w.row(w.token.ID); got.UseCount != i+1 || w.onDisk(w.token.ID) != disk {
			t.Errorf("use %d: got %s, on disk %s", i+1, used(got), w.onDisk(w.token.ID))
		}
	}
	if n := log.FilterMessageSnippet("tries again").Len(); n != 1 {
		t.Errorf("got %d log entries, want one", n)
	}
	space()
	w.reopen(t)
	if got := w.row(w.token.ID); got.UseCount != 3 || !strings.HasPrefix(w.onDisk(w.token.ID), used(got)) {
		t.Errorf("with space again: got %s, on disk %s", used(got), w.onDisk(w.token.ID))
	}
	w.use(w.token.Secret, "192.0.2.1", "rule_a")
	mustDo(w.Close())
	w.use(w.token.Secret, "192.0.2.1", "rule_a")
	if err := w.FlushUse(ctx); err == nil {
		t.Error("flush of a use behind Close: got no error")
	}
	w.reopen(t)
	if got := w.row(w.token.ID); got.UseCount != 4 {
		t.Errorf("after Close: got %s, want the four uses before it", used(got))
	}

	// Close reports a loss.
	w.clock.add(time.Second)
	noSpace(w.Store, "service_users")
	w.use(w.token.Secret, "192.0.2.1", "rule_a")
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("closed without space: got %v, want that there is no space", err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("closed again: got %v", err)
	}
}

// The first use of a token that a service user made itself is a change as well,
// which comes before the figures.
func TestFirstUseIsCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	next, _, err := w.rotate(w.token.ID, time.Hour)
	mustDo(err)
	at := w.now().Unix()
	w.use(next.Secret, "192.0.2.1", "rule_a")
	w.written(t, next.ID)
	w.clock.add(time.Second)
	w.use(next.Secret, "192.0.2.1", "rule_a")
	mustDo(w.FlushUse(ctx))
	if got, want := w.onDisk(next.ID), fmt.Sprintf("2 %d 192.0.2.1 from map[192.0.2.1:%[1]d] by map[rule_a:%[1]d] active %[1]d", at+1); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var actions []string
	for _, e := range must(w.trail(ctx, next.ID, 0, 10)) {
		actions = append(actions, e.Action)
	}
	if want := []string{"token.first_use", "token.create"}; !slices.Equal(actions, want) {
		t.Errorf("audit records: got %v, want %v", actions, want)
	}

	// While it cannot be written the figures wait for it.
	again, _, err := w.rotate(next.ID, time.Hour)
	mustDo(err)
	w.usedUnwritten(again.ID)
	w.Use(w.principal(again.Secret), at+1, addrOf("192.0.2.1"), "")
	mustDo(w.FlushUse(ctx))
	if got := w.onDisk(again.ID); !strings.HasPrefix(got, "0 0 ") || w.row(again.ID).UseCount != 1 {
		t.Errorf("got %s on disk and %s shown, want nothing and one use", got, used(w.row(again.ID)))
	}
	mustDo(w.writeUses(ctx))
	mustDo(w.FlushUse(ctx))
	if got := w.onDisk(again.ID); !strings.HasPrefix(got, "1 ") {
		t.Errorf("behind its first use: got %s, want one use", got)
	}
}

// Tokens are found by their id alone, and all of them listed, as far as one sees.
func TestAllTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	made := func(name string, teams ...string) (ServiceUser, *Issued) {
		w.clock.add(time.Second)
		u, k, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: name, Teams: teams}}, &Token{})
		mustDo(err)
		return u, k
	}
	a, ka := made("a", "ops")
	b, kb := made("b", "hr", "ops")
	gone, kgone := made("gone", "ops")
	_, kc := made("c", "hr")
	w.clock.add(time.Second)
	must(w.refreshOf(ctx, Local, a.ID, ka.ID, time.Hour))
	next := must(w.trail(ctx, "", 0, 2))[1].Resource // of a's refresh
	mustDo(w.deleteUser(ctx, Local, gone.ID, 0))
	kd := must(w.CreateToken(ctx, Local, b.ID, Token{}))
	mustDo(w.revoke(ctx, Local, b.ID, kd.ID))
	manager := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"ops"}}}
	nobody := Actor{Name: "human:dave", Scope: &Scope{}}
	check := func(who string, by Actor, want ...string) {
		t.Helper()
		for limit := 1; limit <= 6; limit++ {
			var got []string
			for before, more := "", true; more; {
				list, next, err := w.FindTokens(ctx, by, TokenQuery{Live: true, Before: before, Limit: limit})
				if err != nil || next && len(list) != limit {
					t.Fatalf("%s by %d: got %v, %t, %v", who, limit, list, next, err)
				}
				for _, k := range list {
					got, before = append(got, k.ID), k.ID
				}
				more = next
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s by %d: got %v, want %v", who, limit, got, want)
			}
		}
	}
	check("admin", Local, next, kc.ID, kb.ID, ka.ID, w.token.ID)
	check("manager", manager, next, kb.ID, ka.ID)
	check("nobody", nobody)
	w.clock.add(time.Hour) // the end of the grace
	check("manager later", manager, next, kb.ID)
	must(w.UpdateToken(ctx, Local, b.ID, kb.ID, 0, func(k *Token) error {
		k.ExpiresAt = w.now().Add(time.Hour)
		return nil
	}))
	check("before it expires", manager, next, kb.ID)
	w.clock.add(time.Hour)
	check("expired", manager, next)
	for _, row := range []struct {
		by              Actor
		id, owner, want string
	}{
		{Local, ka.ID, a.ID, "ok"}, {Local, kd.ID, b.ID, "ok"}, {manager, kb.ID, b.ID, "ok"}, {manager, kc.ID, "", "not found"},
		{Local, kgone.ID, "", "not found"}, {Local, "token_x", "", "not found"}, {nobody, ka.ID, "", "not found"},
	} {
		if owner, err := w.TokenOwner(ctx, row.by, row.id); owner != row.owner || kind(err) != row.want || err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("owner of %s for %s: got %q, %s, want %q, %s", row.id, row.by.Name, owner, kind(err), row.owner, row.want)
		}
	}
	// What cannot be read is not the same as what there is not.
	must(w.write.ExecContext(ctx, `ALTER TABLE service_users RENAME COLUMN owner TO taken_away`))
	if _, err := w.TokenOwner(ctx, Local, ka.ID); !strings.HasPrefix(kind(err), "broken: ") {
		t.Errorf("owner in a broken store: got %s, want that it is broken", kind(err))
	}
}

// BenchmarkFlushUse writes the figures of ten thousand tokens, each used once: a hundred service users have
// as many tokens as there can be.
func BenchmarkFlushUse(b *testing.B) {
	w := newWorld(b, still)
	const users, tokens = 100, 100 * maxLiveTokens
	credentials := make([]access.Credential, tokens)
	for i := range users {
		credentials[i].ID = must(first(w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("n", i), Active: true}}, nil))).ID
	}
	sqlTx := must(w.write.BeginTx(ctx, nil))
	for i := range credentials {
		c := access.Credential{ID: credentials[i%users].ID, Secret: access.NewSecret()}
		hash, pepper := w.opts.Peppers.Hash(c.Secret)
		k := Token{ID: newID("token", w.now()), UserID: c.ID, CreatedAt: w.now(), Version: 1}
		mustDo((&tx{Tx: sqlTx, ctx: ctx}).insert("token", "tokens", k.columns(),
			column{name: "hash", field: hex.EncodeToString(hash[:])}, column{name: "pepper_id", field: pepper}))
		credentials[i] = c
	}
	mustDo(sqlTx.Commit())
	w.Close()
	w.Store = open(b, w.path, Options{UseInterval: time.Hour, Now: w.clock.Now, Peppers: w.opts.Peppers})
	using := make([]access.Principal, tokens)
	for i, c := range credentials {
		var why access.Reason
		if using[i], why = w.Directory().Authenticate(c, netip.Addr{}, w.now().Unix()); why != access.Granted {
			b.Fatal(why)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i, p := range using {
			w.Use(p, w.now().Unix(), addrOf(fmt.Sprintf("192.0.2.%d", i%8)), "rule_a")
		}
		b.StartTimer()
		mustDo(w.FlushUse(ctx))
	}
	b.StopTimer()
	if got, want := number(w.read, `SELECT SUM(use_count) FROM tokens`), b.N*tokens; got != want {
		b.Fatalf("got %d uses on disk, want %d", got, want)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*tokens), "µs/token")
}
