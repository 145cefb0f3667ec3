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
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// A deleted service user comes back inactive, with its tokens and groups as they
// were.
func TestUndelete(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	mustDo(w.changeUser(func(u *ServiceUser) { u.Alias, u.Teams, u.Owner = "b@example", []string{"ops"}, "x" }))
	revoked := must(w.CreateToken(ctx, alice, w.user.ID, Token{}))
	mustDo(w.revoke(ctx, alice, w.user.ID, revoked.ID))
	w.use(w.token.Secret, "192.0.2.1", "rule_a")
	before, tokens := must(w.readUser(ctx, Local, w.user.ID)), toJSON(must(w.tokensOf(w.user.ID)))
	answer := func(when string, want access.Reason) {
		t.Helper()
		for _, login := range []string{w.user.ID, "b@example"} {
			if got := probe(w.Store, login, w.token.Secret, "GET /v1/x"); got != want {
				t.Errorf("%s, as %s: got %s, want %s", when, login, got, want)
			}
		}
	}
	answer("before", access.Granted)
	w.clock.add(time.Minute)
	mustDo(w.deleteUser(ctx, alice, w.user.ID, before.Version))
	answer("deleted", access.UnknownID)
	for name, err := range map[string]error{
		"read": second(w.readUser(ctx, Local, w.user.ID)), "update": w.changeUser(func(*ServiceUser) {}), "delete again": w.deleteUser(ctx, alice, w.user.ID, 0),
		"create a token": second(w.CreateToken(ctx, alice, w.user.ID, Token{})), "refresh": second(w.refreshOf(ctx, alice, w.user.ID, w.token.ID, 0)),
		"revoke": w.revoke(ctx, alice, w.user.ID, w.token.ID), "tokens": second(w.tokensOf(w.user.ID)), "a token": second(w.Token(ctx, Local, w.user.ID, w.token.ID)),
		"rotate": second(w.refreshOf(ctx, w.itself(), w.user.ID, w.token.ID, time.Hour)), "add as a member": w.AddMember(ctx, alice, w.closers.ID, w.user.ID),
	} {
		if kind(err) != "not found" && kind(err) != "not found permission_groups" {
			t.Errorf("%s a deleted one: got %s, want not found", name, kind(err))
		}
	}
	if u, err := w.ServiceUser(ctx, Local, w.user.ID, true); err != nil || !u.DeletedAt.Equal(w.now()) || u.Active || u.Name != before.Name || u.Version != before.Version+1 {
		t.Errorf("tombstone: got %+v, %v", u, err)
	}
	if g := must(w.Group(ctx, Local, w.readers.ID)); g.MemberCount != 0 {
		t.Errorf("members of its group: got %d, want 0", g.MemberCount)
	}
	for _, deleted := range []bool{false, true} {
		if list, _, err := w.ServiceUsers(ctx, Local, UserQuery{Deleted: deleted, Limit: 9}); err != nil || (len(list) == 1) != deleted {
			t.Errorf("list, deleted %t: got %v, %v", deleted, list, err)
		}
	}

	w.clock.add(time.Minute)
	u := must(w.UndeleteServiceUser(ctx, alice, w.user.ID))
	answer("undeleted", access.UserInactive)
	want := before
	want.Active, want.UpdatedAt, want.Version = false, w.now(), before.Version+2
	want.LastActiveAt = u.LastActiveAt
	same(t, "undeleted", toJSON(u), toJSON(want))
	same(t, "read again", toJSON(must(w.readUser(ctx, Local, w.user.ID))), toJSON(want))
	same(t, "tokens", toJSON(must(w.tokensOf(w.user.ID))), tokens)
	if k := w.row(w.token.ID); k.UseCount != 1 {
		t.Errorf("figures: got %s, want the one use", used(k))
	}
	if g := must(w.Group(ctx, Local, w.readers.ID)); g.MemberCount != 1 {
		t.Errorf("members of its group: got %d, want 1", g.MemberCount)
	}
	e := must(w.trail(ctx, w.user.ID, 0, 1))[0]
	if e.Action != "service_user.undelete" || e.Actor != alice.Name || !strings.Contains(string(e.Before), `"deleted_at"`) || strings.Contains(string(e.After), `"deleted_at"`) {
		t.Errorf("audit record: got %+v", e)
	}
	mustDo(w.changeUser(func(u *ServiceUser) { u.Active = true }))
	answer("reactivated", access.Granted)
	if got := probe(w.Store, w.user.ID, revoked.Secret, "GET /v1/x"); got != access.TokenRevoked {
		t.Errorf("a token that was revoked: got %s", got)
	}
	w.reopen(t)
	answer("reopened", access.Granted)
}

func TestUndeleteRefused(t *testing.T) {
	t.Parallel()
	remove := func(w *world) error { return w.deleteUser(ctx, alice, w.user.ID, 0) }
	add := func(w *world, u ServiceUser) error {
		_, _, err := w.CreateServiceUser(ctx, alice, u, nil)
		return err
	}
	for _, row := range []struct {
		name, want string
		do         func(w *world) error
	}{
		{"at once", "ok", remove},
		{"just in time", "ok", func(w *world) error { err := remove(w); w.clock.add(time.Hour - time.Second); return err }},
		{"too late", "conflict", func(w *world) error { err := remove(w); w.clock.add(time.Hour); return err }},
		{"purged", "conflict", func(w *world) error { err := remove(w); w.clock.add(time.Hour); return errors.Join(err, w.purge(ctx)) }},
		{"not deleted", "conflict", func(w *world) error { return nil }},
		{"unknown", "not found", func(w *world) error { w.user.ID = newID("service", w.now()); return nil }},
		{"name taken", "conflict: taken name", func(w *world) error {
			return errors.Join(remove(w), add(w, ServiceUser{Profile: access.Profile{Name: "billing-sync"}}))
		}},
		{"alias taken", "conflict: taken alias", func(w *world) error {
			return errors.Join(remove(w), add(w, ServiceUser{Profile: access.Profile{Name: "n", Alias: "b@example"}}))
		}},
		{"name free again", "ok", func(w *world) error {
			u, _, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "n"}}, nil)
			mustDo(errors.Join(err, remove(w)))
			_, err = w.UpdateServiceUser(ctx, alice, u.ID, 0, func(u *ServiceUser) error { u.Name = "billing-sync"; return nil })
			return errors.Join(err, w.deleteUser(ctx, alice, u.ID, 0))
		}},
	} {
		w := newWorld(t, Options{UseInterval: time.Hour, Retention: time.Hour})
		mustDo(w.changeUser(func(u *ServiceUser) { u.Alias, u.Teams = "b@example", []string{"ops"} }))
		mustDo(row.do(w))
		before := dump(t, w.Store)
		manager := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"ops"}, Groups: []string{w.readers.ID}}}
		if _, err := w.UndeleteServiceUser(ctx, manager, w.user.ID); kind(err) != "not allowed" {
			t.Errorf("%s, by a manager: got %s, want not allowed", row.name, kind(err))
		}
		same(t, row.name+", by a manager", dump(t, w.Store), before)
		_, err := w.UndeleteServiceUser(ctx, alice, w.user.ID)
		if kind(err) != row.want {
			t.Errorf("%s: got %s, want %s", row.name, kind(err), row.want)
		}
		if err != nil {
			same(t, row.name, dump(t, w.Store), before)
		}
		trail(t, w.Store)
	}
}

// When the retention is over nothing personal stays but in the audit trail.
func TestPurge(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{UseInterval: time.Hour, Retention: time.Hour})
	private := ServiceUser{
		Profile: access.Profile{Name: "private1", DisplayName: "private2", Description: "private3", Owner: "private4", Alias: "private5", Teams: []string{"private6"},
			Labels: map[string]string{"a": "private7"}, Active: true}, AllowedIPs: []string{"192.0.2.77/32"}, Groups: []string{w.readers.ID},
	}
	u, k, err := w.CreateServiceUser(ctx, Local, private, &Token{Description: "private8", Metadata: "private9"})
	mustDo(err)
	mustDo(w.deleteUser(ctx, alice, u.ID, 0))
	for i := range 101 { // more than one batch
		o, _, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("other", i)}}, nil)
		mustDo(errors.Join(err, w.deleteUser(ctx, alice, o.ID, 0)))
	}
	w.clock.add(time.Hour - time.Second)
	before := dump(t, w.Store)
	mustDo(w.purge(ctx))
	same(t, "too early", dump(t, w.Store), before)
	w.clock.add(time.Second)
	events := len(trail(t, w.Store))
	mustDo(w.purge(ctx))
	rest := dumpTables(w.read, "service_users", "tokens", "members")
	for _, text := range []string{"private", "192.0.2.77", "other", k.ID} {
		if strings.Contains(rest, text) {
			t.Errorf("%q still stands in it: %s", text, rest)
		}
	}
	if !strings.Contains(rest, u.ID) || strings.Count(rest, "service_users |") != 103 || !strings.Contains(rest, w.token.ID) {
		t.Errorf("got %s, want the ids, and all of who is alive", rest)
	}
	if got := must(w.ServiceUser(ctx, Local, u.ID, true)); got.ID != u.ID || got.Name != "" || got.DeletedAt.IsZero() {
		t.Errorf("tombstone: got %+v", got)
	}
	added := trail(t, w.Store)[events:]
	if len(added) != 102 || slices.ContainsFunc(added, func(e AuditEvent) bool { return e.Action != "service_user.purge" || e.Actor != "system" }) {
		t.Errorf("audit trail: got %d records, want one for each", len(added))
	}
	if of := must(w.trail(ctx, u.ID, 0, 9)); len(of) != 4 || !strings.Contains(string(of[3].After), "private4") {
		t.Errorf("of one: got %v, want its creation, its token, its end and the purge", of)
	}
	for resource, want := range map[string]string{"private1": "service_user.purge service_user.delete token.create service_user.create", k.ID: "token.create"} {
		var got []string
		for _, e := range must(first2(w.AuditEvents(ctx, Local, AuditQuery{Resource: resource, Names: true, Limit: 9}))) {
			if got = append(got, e.Action); e.ResourceName != "private1" || e.ActorName != "" {
				t.Errorf("%s %s: got the names %q and %q, want private1", resource, e.Action, e.ActorName, e.ResourceName)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("trail of %s: got %q, want %q", resource, got, want)
		}
	}
	before = dump(t, w.Store)
	mustDo(w.purge(ctx))
	same(t, "again", dump(t, w.Store), before)

	// What is left of them is no damage: a backup comes back.
	path, report, err := examined(t, w.Store)
	if err != nil || len(report.Findings)+len(report.Notes) > 0 {
		t.Errorf("the check: got %q, %q, %v, want none", report.Findings, report.Notes, err)
	}
	if !*pgtest.On {
		must(w.restore(t, path))
	}

	// Names are free, ids are not.
	if _, _, err := w.CreateServiceUser(ctx, Local, private, nil); err != nil {
		t.Errorf("the same name: got %v", err)
	}
	if _, err := w.write.ExecContext(ctx, `INSERT INTO service_users SELECT * FROM service_users WHERE id = $1`, u.ID); err == nil {
		t.Error("the same id: got no error")
	}
	w.reopen(t)
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
		t.Errorf("who is alive: got %s, want granted", got)
	}
}

// A delete on the condition that it is unused tells who would break.
func TestDeleteUnlessUsed(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	for _, row := range []struct {
		name   string
		within time.Duration
		do     func(w *world, other *Issued)
		want   string
	}{
		{"never used", hour, func(*world, *Issued) {}, "ok"},
		{"used just now", hour, func(w *world, _ *Issued) { w.use(w.token.Secret, "192.0.2.1", "rule_a") }, "0s ago from 192.0.2.1 by rule_a"},
		{"without the condition", 0, func(w *world, _ *Issued) { w.use(w.token.Secret, "192.0.2.1", "rule_a") }, "ok"},
		{"used before", hour, func(w *world, _ *Issued) { w.use(w.token.Secret, "192.0.2.1", ""); w.clock.add(hour) }, "ok"},
		{"used within, unwritten", hour, func(w *world, _ *Issued) { w.use(w.token.Secret, "192.0.2.1", ""); w.clock.add(hour - time.Second) }, "59m59s ago from 192.0.2.1 by "},
		{"used within, written", hour, func(w *world, _ *Issued) {
			w.use(w.token.Secret, "192.0.2.1", "rule_a")
			mustDo(w.FlushUse(ctx))
			w.clock.add(hour / 2)
		}, "30m0s ago from 192.0.2.1 by rule_a"},
		{"a token that is revoked since", hour, func(w *world, other *Issued) {
			w.use(other.Secret, "192.0.2.1", "")
			mustDo(w.revoke(ctx, alice, w.user.ID, other.ID))
		}, "0s ago from 192.0.2.1 by "},
		{"several tokens", hour, func(w *world, other *Issued) {
			w.use(other.Secret, "192.0.2.1", "rule_a")
			mustDo(w.FlushUse(ctx))
			w.clock.add(time.Minute)
			w.use(w.token.Secret, "192.0.2.2", "rule_b")
			w.clock.add(time.Minute)
			w.use(other.Secret, "192.0.2.3", "rule_b")
			w.clock.add(time.Minute)
		}, "1m0s ago from 192.0.2.3,192.0.2.2,192.0.2.1 by rule_b,rule_a"},
		{"inactive, but used", hour, func(w *world, _ *Issued) {
			w.use(w.token.Secret, "192.0.2.1", "")
			mustDo(w.changeUser(func(u *ServiceUser) { u.Active = false }))
		}, "0s ago from 192.0.2.1 by "},
	} {
		w := newWorld(t, still)
		other := must(w.CreateToken(ctx, Local, w.user.ID, Token{}))
		row.do(w, other)
		before := dump(t, w.Store)
		err := w.DeleteServiceUser(ctx, alice, w.user.ID, 0, row.within)
		got, used := kind(err), (*InUse)(nil)
		if errors.As(err, &used) {
			got = fmt.Sprintf("%s ago from %s by %s", w.now().Sub(used.LastUsedAt), strings.Join(used.Addresses, ","), strings.Join(used.Rules, ","))
			if !errors.Is(err, ErrConflict) || kind(err) != "conflict unless_used_within" {
				t.Errorf("%s: got %s, want a conflict", row.name, kind(err))
			}
			same(t, row.name, dump(t, w.Store), before)
		}
		if got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
		if _, err := w.readUser(ctx, Local, w.user.ID); (err == nil) != (used != nil) {
			t.Errorf("%s: got %v for the service user", row.name, err)
		}
	}
}

// Three nodes that purge at once purge each tombstone once.
func TestPurgeTogether(t *testing.T) {
	w := newWorld(t, Options{Retention: time.Hour})
	nodes := []*Store{w.Store, open(t, w.path, w.opts), open(t, w.path, w.opts)}
	want := []string{}
	for i := range 5 {
		u, _ := addUser(w.Store, fmt.Sprint("u", i))
		g := addGroup(w.Store, fmt.Sprint("g", i))
		mustDo(w.DeleteServiceUser(ctx, alice, u.ID, 0, 0))
		mustDo(w.DeleteGroup(ctx, alice, g.ID, 0))
		want = append(want, u.ID, g.ID)
	}
	w.clock.add(2 * time.Hour)
	var wg sync.WaitGroup
	for _, s := range nodes {
		wg.Go(func() { s.keepFigures(ctx) })
	}
	wg.Wait()
	got := []string{}
	for _, e := range trail(t, w.Store) {
		if strings.HasSuffix(e.Action, ".purge") {
			got = append(got, e.Resource)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("purged: got %v, want each of %v once", got, want)
	}
	mustDo(w.refresh(ctx)) // what the others purged
	whole(t, w.Store)
}
