package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// A deleted group gives no right to anybody, and comes back as it was.
func TestUndeleteGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{UseInterval: time.Hour, DefaultGroup: "everyone"})
	load(w.Store, permission("people.export", "allow POST /v1/export"))
	everyone := addGroup(w.Store, "everyone", "allow GET /v9")
	mustDo(w.changeGroup(func(g *Group) {
		g.MemberCondition, g.Permissions, g.Description = `user.labels.env == "prod"`, []string{"people.export"}, "reads"
	}))
	prod, prodToken, err := w.CreateServiceUser(ctx, Local,
		ServiceUser{Profile: access.Profile{Name: "prod", Active: true, Teams: []string{"ops"}, Labels: map[string]string{"env": "prod"}}}, &Token{})
	mustDo(err)
	gone, _ := addUser(w.Store, "gone", w.readers.ID)
	mustDo(w.deleteUser(ctx, alice, gone.ID, 0))
	narrowed := must(w.CreateToken(ctx, alice, w.user.ID, Token{Groups: []string{w.readers.ID}}))
	mustDo(w.AddMember(ctx, alice, everyone.ID, w.user.ID))
	lead, _, err := w.CreateServiceUser(ctx, Local,
		ServiceUser{Profile: access.Profile{Name: "lead", Active: true, Role: access.Manager, Teams: []string{"ops"}}, Groups: []string{w.readers.ID}}, nil)
	mustDo(err)
	manager := func() Actor {
		u, _ := w.Directory().User(lead.ID)
		return Actor{Name: lead.ID, Scope: &Scope{UserID: lead.ID, Teams: u.Teams, Groups: w.Directory().EffectiveGroups(u)}}
	}
	stale := manager()
	answers := func(when string, in access.Reason) {
		t.Helper()
		for _, row := range []struct {
			login, secret, action string
			want                  access.Reason
		}{
			{w.user.ID, w.token.Secret, "GET /v1/x", in}, {w.user.ID, w.token.Secret, "POST /v1/export", in}, {prod.ID, prodToken.Secret, "GET /v1/x", in},
			{w.user.ID, narrowed.Secret, "GET /v1/x", in}, {w.user.ID, w.token.Secret, "GET /v9", access.Granted},
			// The token has the allows of the deleted group only, not those of all groups.
			{w.user.ID, narrowed.Secret, "GET /v9", access.NoRule},
		} {
			if got := probe(w.Store, row.login, row.secret, row.action); got != row.want {
				t.Errorf("%s, %s by %s: got %s, want %s", when, row.action, row.login, got, row.want)
			}
		}
	}
	before := must(w.Group(ctx, Local, w.readers.ID))
	answers("before", access.Granted)
	w.clock.add(time.Minute)
	events := len(trail(t, w.Store))
	mustDo(w.DeleteGroup(ctx, alice, w.readers.ID, before.Version))
	answers("deleted", access.NoRule)
	w.reopen(t)
	answers("deleted, opened again", access.NoRule)
	if n := number(w.read, `SELECT (SELECT COUNT(*) FROM members WHERE group_id = '`+w.readers.ID+`') + (SELECT COUNT(*) FROM group_permissions)`); n != 0 {
		t.Errorf("rows by which the group could give a right: got %d, want 0", n)
	}
	for name, err := range map[string]error{
		"read": second(w.Group(ctx, Local, w.readers.ID)), "update": w.changeGroup(func(*Group) {}), "add a member": w.AddMember(ctx, alice, w.readers.ID, prod.ID),
		"narrow a token": second(w.CreateToken(ctx, alice, w.user.ID, Token{Groups: []string{w.readers.ID}})), "delete again": w.DeleteGroup(ctx, alice, w.readers.ID, 0),
		"grant": w.GrantPermission(ctx, alice, w.readers.ID, "people.export"), "as its manager": w.AddMember(ctx, stale, w.readers.ID, prod.ID),
	} {
		if err == nil {
			t.Errorf("%s a deleted group: got no error", name)
		}
	}
	if got := manager().Scope.Groups; len(got) != 0 {
		t.Errorf("groups of its manager: got %v, want none", got)
	}

	// The record has all that the deletion took away.
	made := trail(t, w.Store)[events:]
	var record struct {
		Name, Mode         string
		Permissions        []string
		Rules              []struct{ Text string }
		Members            []string
		MembersByCondition []string `json:"members_by_condition"`
	}
	mustDo(json.Unmarshal(made[0].Before, &record))
	want := sorted([]string{w.user.ID, gone.ID, lead.ID})
	if len(made) != 1 || record.Name != "readers" || record.Mode != "enforce" || len(record.Rules) != 2 || !slices.Equal(record.Permissions, []string{"people.export"}) ||
		!slices.Equal(record.Members, want) || !slices.Equal(record.MembersByCondition, []string{prod.ID}) {
		t.Errorf("%d records of the deletion: got %+v", len(made), record)
	}
	list, more, err := w.DeletedGroups(ctx, Local, "readers", "", 9)
	if err != nil || more || len(list) != 1 || list[0].ID != w.readers.ID || !list[0].DeletedAt.Equal(w.now()) || list[0].DeletedBy != alice.Name ||
		list[0].MemberCount != 3 || len(list[0].Rules) != 2 || !slices.Equal(list[0].Permissions, []string{"people.export"}) {
		t.Errorf("deleted groups: got %+v, %t, %v", list, more, err)
	}
	if list, _, err := w.DeletedGroups(ctx, Local, "everyone", "", 9); err != nil || len(list) != 0 {
		t.Errorf("deleted groups with the name of a living one: got %v, %v", list, err)
	}
	if _, _, err := w.DeletedGroups(ctx, stale, "", "", 9); kind(err) != "not allowed" {
		t.Errorf("deleted groups, for a manager: got %s, want not allowed", kind(err))
	}

	w.clock.add(time.Minute)
	g, was, lost, err := w.UndeleteGroup(ctx, alice, w.readers.ID)
	mustDo(err)
	answers("undeleted", access.Granted)
	back := before
	back.UpdatedAt, back.Version = w.now(), before.Version+2
	same(t, "undeleted", toJSON(auditGroup(g)), toJSON(auditGroup(back)))
	same(t, "read again", toJSON(auditGroup(must(w.Group(ctx, Local, g.ID)))), toJSON(auditGroup(back)))
	if len(lost) != 0 || was.DeletedBy != alice.Name || was.DeletedAt.IsZero() || g.MemberCount != before.MemberCount {
		t.Errorf("undeleted: got %q lost, deleted by %q, %d members, want none, alice, %d", lost, was.DeletedBy, g.MemberCount, before.MemberCount)
	}
	if list := must(first2(w.DeletedGroups(ctx, Local, "", "", 9))); len(list) != 0 {
		t.Errorf("deleted groups: got %v, want none", list)
	}
	if n := number(w.read, `SELECT COUNT(*) FROM deleted_links`); n != 0 {
		t.Errorf("links that are kept: got %d, want 0", n)
	}
	// A service user that was deleted before is a member again when it comes back.
	if u := must(w.UndeleteServiceUser(ctx, alice, gone.ID)); !slices.Equal(u.Groups, []string{w.readers.ID}) {
		t.Errorf("groups of a service user that comes back: got %v", u.Groups)
	}
	w.reopen(t)
	answers("opened again", access.Granted)
	mustDo(w.DeleteGroup(ctx, alice, w.readers.ID, 0))
	answers("deleted once more", access.NoRule)
	checkCounts(t, w.Store)
	trail(t, w.Store)
}

// A group in observe mode comes back in observe mode.
func TestUndeleteGroupKeepsMode(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	mustDo(w.changeGroup(func(g *Group) { g.Mode = access.Observe }))
	mustDo(w.DeleteGroup(ctx, alice, w.readers.ID, 0))
	g, _, _, err := w.UndeleteGroup(ctx, alice, w.readers.ID)
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); err != nil || g.Mode != access.Observe || got != access.NoRule {
		t.Errorf("got %s, %s, %v, want observe and no rule", g.Mode, got, err)
	}
}

func TestUndeleteGroupRefused(t *testing.T) {
	t.Parallel()
	remove := func(w *world) error { return w.DeleteGroup(ctx, alice, w.readers.ID, 0) }
	for _, row := range []struct {
		name, want string
		do         func(w *world) error
	}{
		{"at once", "ok", remove},
		{"just in time", "ok", func(w *world) error { err := remove(w); w.clock.add(time.Hour - time.Second); return err }},
		{"too late", "conflict", func(w *world) error { err := remove(w); w.clock.add(time.Hour); return err }},
		{"purged", "conflict", func(w *world) error { err := remove(w); w.clock.add(time.Hour); return errors.Join(err, w.purge(ctx)) }},
		{"not deleted", "conflict", func(w *world) error { return nil }},
		{"unknown", "not found", func(w *world) error { w.readers.ID = newID("group", w.now()); return nil }},
		{"name taken", "conflict name", func(w *world) error { err := remove(w); addGroup(w.Store, "readers"); return err }},
		{"name free again", "ok", func(w *world) error {
			err := remove(w)
			return errors.Join(err, w.DeleteGroup(ctx, alice, addGroup(w.Store, "readers").ID, 0))
		}},
	} {
		w := newWorld(t, Options{UseInterval: time.Hour, Retention: time.Hour})
		mustDo(row.do(w))
		before := dump(t, w.Store)
		manager := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"ops"}, Groups: []string{w.readers.ID}}}
		if _, _, _, err := w.UndeleteGroup(ctx, manager, w.readers.ID); kind(err) != "not allowed" {
			t.Errorf("%s, by a manager: got %s, want not allowed", row.name, kind(err))
		}
		same(t, row.name+", by a manager", dump(t, w.Store), before)
		_, _, _, err := w.UndeleteGroup(ctx, alice, w.readers.ID)
		if kind(err) != row.want {
			t.Errorf("%s: got %s, want %s", row.name, kind(err), row.want)
		}
		if err != nil {
			same(t, row.name, dump(t, w.Store), before)
		}
		trail(t, w.Store)
	}
}

// An undelete does not bring back links that it should not, and says so.
func TestUndeleteGroupLoses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{UseInterval: time.Hour, Retention: time.Hour})
	load(w.Store, permission("p.gone", "allow GET /gone"), permission("p.again", "allow GET /again"), permission("p.kept", "allow GET /kept"))
	mustDo(w.changeGroup(func(g *Group) { g.Permissions = []string{"p.again", "p.gone", "p.kept"} }))
	other, token := addUser(w.Store, "other", w.readers.ID)
	mustDo(w.deleteUser(ctx, alice, w.user.ID, 0))
	w.clock.add(30 * time.Minute)
	mustDo(w.DeleteGroup(ctx, alice, w.readers.ID, 0))
	mustDo(w.DeletePermission(ctx, alice, "p.gone"))
	mustDo(w.DeletePermission(ctx, alice, "p.again"))
	w.clock.add(30 * time.Minute)
	mustDo(w.purge(ctx)) // of the service user, whose retention is over
	load(w.Store, permission("p.again", "allow * /{rest...}"), permission("p.kept", "allow GET /other"))
	g, _, lost, err := w.UndeleteGroup(ctx, alice, w.readers.ID)
	mustDo(err)
	want := []string{
		"the member " + w.user.ID + ", which was removed meanwhile", "the permission p.again, which was removed meanwhile",
		"the permission p.gone, which was removed meanwhile",
	}
	if !slices.Equal(lost, want) || !slices.Equal(g.Permissions, []string{"p.kept"}) || g.MemberCount != 1 {
		t.Errorf("got %q lost, permissions %v, %d members, want %q, p.kept, 1", lost, g.Permissions, g.MemberCount, want)
	}
	for action, want := range map[string]access.Reason{"GET /v1/x": access.Granted, "GET /other": access.Granted, "GET /kept": access.NoRule, "GET /again": access.NoRule, "DELETE /x": access.NoRule} {
		if got := probe(w.Store, other.ID, token.Secret, action); got != want {
			t.Errorf("%s: got %s, want %s", action, got, want)
		}
	}
	e := must(w.trail(ctx, w.readers.ID, 0, 1))[0]
	if e.Action != "permission_group.undelete" || e.Actor != alice.Name || !strings.Contains(string(e.After), `"not_restored":["the member service_`) {
		t.Errorf("audit record: got %+v", e)
	}
}

// When the retention is over nothing of a deleted group stays but its id.
func TestPurgeGroups(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{UseInterval: time.Hour, Retention: time.Hour})
	mustDo(w.changeGroup(func(g *Group) { g.Description, g.MemberCondition = "private1", `user.name == "private2"` }))
	mustDo(w.DeleteGroup(ctx, alice, w.readers.ID, 0))
	w.clock.add(time.Hour - time.Second)
	before := dump(t, w.Store)
	mustDo(w.purge(ctx))
	same(t, "too early", dump(t, w.Store), before)
	w.clock.add(time.Second)
	mustDo(w.purge(ctx))
	rest := dumpTables(w.read, "permission_groups", "rules", "members", "deleted_links")
	for _, text := range []string{"private", "readers", "/v2", w.user.ID} {
		if strings.Contains(rest, text) {
			t.Errorf("%q is still in it: %s", text, rest)
		}
	}
	if !strings.Contains(rest, w.readers.ID) || !strings.Contains(rest, "closers") {
		t.Errorf("got %s, want the id, and the other group", rest)
	}
	if e := must(w.trail(ctx, w.readers.ID, 0, 1))[0]; e.Action != "permission_group.purge" || e.Actor != "system" {
		t.Errorf("audit record: got %+v", e)
	}
	if list := must(first2(w.DeletedGroups(ctx, Local, "", "", 9))); len(list) != 0 {
		t.Errorf("deleted groups: got %v, want none", list)
	}
	checkCounts(t, w.Store)
	_, report, err := examined(t, w.Store)
	if err != nil || len(report.Findings)+len(report.Notes) > 0 {
		t.Errorf("the check: got %q, %q, %v, want none", report.Findings, report.Notes, err)
	}
	w.reopen(t)
	addGroup(w.Store, "readers")
}

// A record is found by every resource that it concerns.
func TestAuditSubjects(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	prod, _, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "prod", Labels: map[string]string{"env": "prod"}}}, nil)
	mustDo(err)
	by := addGroup(w.Store, "by condition")
	must(w.UpdateGroup(ctx, alice, by.ID, 0, func(g *Group) error { g.MemberCondition = `user.labels.env == "prod"`; return nil }))
	var token Token
	ids := map[string]string{"user": w.user.ID, "token": w.token.ID, "readers": w.readers.ID, "closers": w.closers.ID, "prod": prod.ID, "by": by.ID, "p.q": "p.q"}
	for _, row := range []struct {
		name, want string // the resources that show the record
		do         func() error
	}{
		{"add a member", "closers user", func() error { return w.AddMember(ctx, alice, w.closers.ID, w.user.ID) }},
		{"remove a member", "closers user", func() error { return w.RemoveMember(ctx, alice, w.closers.ID, w.user.ID) }},
		{"change its groups", "closers readers user", func() error { return w.changeUser(func(u *ServiceUser) { u.Groups = []string{w.closers.ID} }) }},
		{"change another field", "user", func() error { return w.changeUser(func(u *ServiceUser) { u.Owner = "x" }) }},
		{"change a token", "token user", func() error { return w.changeToken(func(k *Token) { k.Description = "x" }) }},
		{"narrow a token", "closers token user", func() error { return w.changeToken(func(k *Token) { k.Groups = []string{w.closers.ID} }) }},
		{"create a token", "user", func() error { k, err := w.CreateToken(ctx, alice, w.user.ID, Token{}); token = k.Token; return err }},
		{"revoke it", "user", func() error { return w.revoke(ctx, alice, w.user.ID, token.ID) }},
		{"load a permission", "p.q", func() error { load(w.Store, permission("p.q", "allow GET /q")); return nil }},
		{"grant it", "closers p.q", func() error { return w.GrantPermission(ctx, alice, w.closers.ID, "p.q") }},
		{"change the catalogue", "p.q", func() error { load(w.Store, permission("p.q", "allow GET /r")); return nil }},
		{"withdraw it", "closers p.q", func() error { return w.WithdrawPermission(ctx, alice, w.closers.ID, "p.q") }},
		{"add a rule", "closers", func() error { return second(w.AddRule(ctx, alice, w.closers.ID, rules("allow GET /x")[0])) }},
		{"delete a group", "closers user", func() error { return w.DeleteGroup(ctx, alice, w.closers.ID, 0) }},
		{"bring it back", "closers user", func() error { _, _, _, err := w.UndeleteGroup(ctx, alice, w.closers.ID); return err }},
		{"delete a group with a condition", "by prod", func() error { return w.DeleteGroup(ctx, alice, by.ID, 0) }},
		{"bring that back", "by prod", func() error { _, _, _, err := w.UndeleteGroup(ctx, alice, by.ID); return err }},
		{"refused at a token", "token user", func() error {
			return w.NoteAttempt(ctx, alice, w.token.ID, Attempt{Status: 403, Of: w.user.ID})
		}},
		{"delete a service user", "closers user", func() error { return w.deleteUser(ctx, alice, w.user.ID, 0) }},
		{"bring that back", "closers user", func() error { return second(w.UndeleteServiceUser(ctx, alice, w.user.ID)) }},
	} {
		before := w.AuditHead().Seq
		mustDo(row.do())
		if after := w.AuditHead().Seq; after != before+1 {
			t.Errorf("%s: got %d records, want 1", row.name, after-before)
		}
		var got []string
		for name, id := range ids {
			list, err := w.trail(ctx, id, 0, 1)
			if err != nil && name != "p.q" { // the trail knows p.q only from its first record on
				t.Fatal(err)
			}
			if len(list) == 1 && list[0].Seq == before+1 {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != row.want {
			t.Errorf("%s: the trails of %v show it, want %s", row.name, got, row.want)
		}
	}
	// The index can be made again from the records.
	want := dumpTables(w.read, "audit_subjects")
	must(w.write.ExecContext(ctx, `DELETE FROM audit_subjects`))
	sqlTx := must(w.write.BeginTx(ctx, nil))
	for _, e := range must(w.trail(ctx, "", 0, 1<<30)) {
		for _, id := range e.subjects() {
			must(sqlTx.ExecContext(ctx, `INSERT INTO audit_subjects (resource_id, seq) VALUES ($1, $2)`, id, e.Seq))
		}
	}
	mustDo(sqlTx.Commit())
	same(t, "made again", dumpTables(w.read, "audit_subjects"), want)
	if r := must(w.VerifyAudit(ctx, Local, AuditHead{})); r.BadSeq != 0 {
		t.Errorf("verify: got %+v", r)
	}
}

// The deletion of a large group is one record.
func TestDeleteLargeGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	const members = 500
	for i := range members {
		addUser(w.Store, fmt.Sprint("n", i), w.closers.ID)
	}
	before := w.AuditHead().Seq
	mustDo(w.DeleteGroup(ctx, alice, w.closers.ID, 0))
	n := number(w.read, fmt.Sprintf(`SELECT COUNT(*) FROM audit_subjects WHERE seq = %d`, before+1))
	if got := w.AuditHead().Seq - before; got != 1 || n != members {
		t.Errorf("got %d records and %d service users that it concerns, want 1 and %d", got, n, members)
	}
	g, _, lost, err := w.UndeleteGroup(ctx, alice, w.closers.ID)
	if err != nil || len(lost) != 0 || g.MemberCount != members {
		t.Errorf("got %d members, %q, %v, want %d", g.MemberCount, lost, err, members)
	}
}

// The trail shows the user of the machine, and "local" finds all local callers.
func TestLocalActors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	said := must(SaidLocal("header", "alice"))
	actors := []Actor{Local, LocalUser("bob"), said, {Name: "human:local"}, {Name: "localhost"}}
	for i, by := range actors {
		_, _, err := w.CreateServiceUser(ctx, by, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("n", i)}}, nil)
		mustDo(err)
	}
	for actor, want := range map[string]string{
		"local": "n0 n1 n2", "local:bob": "n1", "local, said to be alice": "n2", "human:local": "n3", "localhost": "n4", "bob": "n1",
	} {
		var got []string
		list, _, err := w.ServiceUsers(ctx, Local, UserQuery{Creator: actor, Search: "n", Limit: 9})
		mustDo(err)
		for _, u := range list {
			if u.Name != "billing-sync" {
				got = append(got, u.Name)
			}
		}
		slices.Sort(got) // the ids do not sort those of one second
		if strings.Join(got, " ") != want {
			t.Errorf("created by %q: got %v, want %s", actor, got, want)
		}
		events, _, err := w.AuditEvents(ctx, Local, AuditQuery{Actor: actor, Action: "service_user.create", Limit: 9})
		mustDo(err)
		got = nil
		for _, e := range events {
			if !strings.Contains(string(e.After), `"billing-sync"`) {
				got = append(got, e.Resource)
			}
		}
		if len(got) != len(strings.Fields(want)) {
			t.Errorf("records by %q: got %v, want %s", actor, got, want)
		}
	}
	if _, _, err := w.ServiceUsers(ctx, Local, UserQuery{Creator: "local:", Limit: 9}); err == nil {
		t.Error("created by \"local:\": got no error")
	}
	for _, name := range []string{strings.Repeat("x", 65), "a\nb", "a\u202eb", "a\x00b", "\xff", w.token.Secret} {
		if _, err := SaidLocal("header", name); err == nil || strings.Contains(err.Error(), w.token.Secret) {
			t.Errorf("%q: got %v, want an error without the name", name, err)
		}
	}
}
