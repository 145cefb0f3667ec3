package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
)

func newUsers(n int, groups ...string) (list []ServiceUser) {
	for i := range n {
		list = append(list, ServiceUser{Profile: access.Profile{Name: fmt.Sprintf("u%d", i), Active: true}, Groups: groups})
	}
	return list
}

// creates are the entries that create service users with a token each.
func creates(users []ServiceUser) (b Bulk, issued []Issued) {
	issued = make([]Issued, len(users))
	for i, u := range users {
		b.Entries = append(b.Entries, Entry{Part: fmt.Sprintf("users.%d", i), Change: CreateUser(u, &Token{}, &issued[i])})
	}
	return b, issued
}

// entries are the same change of several service users.
func entries(change UserChange, users ...ServiceUser) (b Bulk) {
	for _, u := range users {
		b.Entries = append(b.Entries, Entry{Part: u.ID, ID: u.ID, Change: change})
	}
	return b
}

// A bulk is one transaction: one revision, and the audit records of single changes under one
// operation.
func TestBulkIsOneChange(t *testing.T) {
	s := open(t, place(t), Options{})
	group := addGroup(s, "readers", "allow GET /v1/{x}")
	by := Actor{Name: "human:carol", Operation: NewOperationID()}
	before := s.Directory().Revision()
	create, issued := creates(newUsers(5, group.ID))
	made, err := s.ChangeUsers(ctx, by, create)
	mustDo(err)
	if got := s.Directory().Revision(); got != before+1 || len(made) != 5 {
		t.Errorf("got %d service users and revision %d, want 5 and %d", len(made), got, before+1)
	}
	var users []ServiceUser
	for i, c := range made {
		users = append(users, c.After)
		if got := probe(s, c.After.ID, issued[i].Secret, "GET /v1/x"); got != access.Granted {
			t.Errorf("%s with its token: got %s, want granted", c.After.Name, got)
		}
	}
	for _, row := range []struct {
		change UserChange
		action string
		want   access.Reason
	}{
		{SetMember(group.ID, false), "member.remove", access.NoRule},
		{SetMember(group.ID, true), "member.add", access.Granted},
		{UpdateUser(func(u *ServiceUser) error { u.Active = false; return nil }), "service_user.deactivate", access.UserInactive},
		{UpdateUser(func(u *ServiceUser) error { u.Active = true; return nil }), "service_user.reactivate", access.Granted},
		{UpdateUser(func(u *ServiceUser) error { u.Owner = "jane@example.com"; return nil }), "service_user.update", access.Granted},
		{DeleteUser(0), "service_user.delete", access.UnknownID},
		{UndeleteUser, "service_user.undelete", access.UserInactive},
	} {
		by.Operation = NewOperationID()
		before := s.Directory().Revision()
		list, err := s.ChangeUsers(ctx, by, entries(row.change, users...))
		if err != nil || s.Directory().Revision() != before+1 {
			t.Fatalf("%s: got revision %d and %v, want %d", row.action, s.Directory().Revision(), err, before+1)
		}
		events, _, err := s.AuditEvents(ctx, Local, AuditQuery{Limit: 6})
		mustDo(err)
		for i, c := range list {
			e := events[4-i]
			if e.Operation != by.Operation || e.Resource != made[i].After.ID || e.Action != row.action || e.Actor != "human:carol" {
				t.Errorf("%s: got the record %+v, want one of this bulk for %s", row.action, e, made[i].After.ID)
			}
			if c.Before.Version+1 != c.After.Version {
				t.Errorf("%s: got versions %d and %d", row.action, c.Before.Version, c.After.Version)
			}
			if got := probe(s, c.After.ID, issued[i].Secret, "GET /v1/x"); got != row.want {
				t.Errorf("after %s: got %s, want %s", row.action, got, row.want)
			}
		}
		if events[5].Operation == by.Operation {
			t.Errorf("%s: got more than one record for each service user", row.action)
		}
	}
	// Where nothing changes there is no record and no revision.
	before = s.Directory().Revision()
	list, err := s.ChangeUsers(ctx, by, entries(SetMember(group.ID, true), users...))
	mustDo(err)
	for _, c := range list {
		if c.Before.Version != c.After.Version {
			t.Errorf("got versions %d and %d for no change", c.Before.Version, c.After.Version)
		}
	}
	if got := s.Directory().Revision(); got != before {
		t.Errorf("got revision %d for no change, want %d", got, before)
	}
}

// One entry that cannot change keeps all others from changing, and a dry run says so.
func TestBulkIsAllOrNothing(t *testing.T) {
	s := open(t, place(t), Options{})
	a, _ := addUser(s, "a")
	b, _ := addUser(s, "b")
	mustDo(s.DeleteServiceUser(ctx, Local, b.ID, 0, 0))
	carol := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"finance"}}}
	before, revision := dump(t, s), s.Directory().Revision()
	create := func(edit func([]ServiceUser), groups ...string) Bulk {
		list := newUsers(3, groups...)
		edit(list)
		b, _ := creates(list)
		return b
	}
	old := entries(DeleteUser(0), a)
	old.Entries[0].Version = 9
	for _, row := range []struct {
		what string
		by   Actor
		do   Bulk
		kind error
		want string // the beginning of the error
	}{
		{"a create with a name that is taken", Local, create(func(l []ServiceUser) { l[1].Name = "A" }), ErrConflict, `users.1.name: "A" is taken`},
		{"a create of one name twice", Local, create(func(l []ServiceUser) { l[2].Name = "u0" }), ErrConflict, `users.2.name: "u0" is taken`},
		{"a create in a missing group", Local, create(func([]ServiceUser) {}, newID("group", s.Now())), ErrInvalid, `users.0.permission_groups: there is no permission group`},
		{"a deletion of a deleted one", Local, entries(DeleteUser(0), a, b), ErrNotFound, b.ID + `: there is no service user`},
		{"an undelete of one that is there", Local, entries(UndeleteUser, b, a), ErrConflict, a.ID + `: the service user is not deleted`},
		{"a change of an old version", Local, old, ErrChanged, a.ID + `: it was changed`},
		{"a manager outside of its scope", carol, entries(DeleteUser(0), a), ErrNotFound, a.ID + `: there is no service user`},
		{"a manager that creates outside of its scope", carol, create(func(l []ServiceUser) { l[0].Teams = carol.Scope.Teams }), ErrNotAllowed, `users.1.teams: a manager reaches only`},
		{"a manager that brings one back", carol, entries(UndeleteUser, b), ErrNotAllowed, b.ID + `: only an admin`},
	} {
		for _, row.do.DryRun = range []bool{true, false} {
			_, err := s.ChangeUsers(ctx, row.by, row.do)
			if !errors.Is(err, row.kind) || !strings.HasPrefix(err.Error(), row.want) {
				t.Errorf("%s, dry run %t: got %v, want %s…", row.what, row.do.DryRun, err, row.want)
			}
			same(t, row.what, dump(t, s), before)
		}
	}
	if got := s.Directory().Revision(); got != revision {
		t.Errorf("got revision %d, want %d", got, revision)
	}
}

// A dry run shows what the change then does, and leaves nothing behind.
func TestBulkDryRun(t *testing.T) {
	s := open(t, place(t), Options{})
	a, token := addUser(s, "a")
	b, _ := addUser(s, "b")
	before, revision := dump(t, s), s.Directory().Revision()
	off := UpdateUser(func(u *ServiceUser) error { u.Active = false; return nil })
	both := entries(off, a, b)
	both.DryRun = true
	preview, err := s.ChangeUsers(ctx, Local, both)
	if err != nil || len(preview) != 2 || preview[0].After.Active || !preview[0].Before.Active {
		t.Fatalf("got %+v, %v, want both inactive", preview, err)
	}
	create, _ := creates(newUsers(3))
	create.DryRun = true
	if _, err := s.ChangeUsers(ctx, Local, create); err != nil {
		t.Fatal(err)
	}
	same(t, "a dry run", dump(t, s), before)
	if got := s.Directory().Revision(); got != revision || probe(s, a.ID, token.Secret, "GET /") == access.UserInactive {
		t.Errorf("got revision %d, want %d and the service user as it was", got, revision)
	}
	both.DryRun = false
	if _, err := s.ChangeUsers(ctx, Local, both); err != nil {
		t.Errorf("got %v, want the change that was shown", err)
	}
	if got := probe(s, a.ID, token.Secret, "GET /"); got != access.UserInactive {
		t.Errorf("got %s, want inactive", got)
	}
}
