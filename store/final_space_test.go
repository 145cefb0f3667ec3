package store

import (
	"slices"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// HTTP drops a space at the end of a list, so no new name of a group or team may end in one. A group
// or service user of an older version keeps such a name, and can change in everything else.
func TestNamesThatEndInASpace(t *testing.T) {
	pgtest.SQLiteOnly(t, "the names are of an older schema")
	w := newWorld(t, Options{})
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), `" must not end in a space; write "`) {
			t.Errorf("%s: got %v, want that a name must not end in a space", what, err)
		}
	}
	teams := func(list ...string) func(*ServiceUser) error {
		return func(u *ServiceUser) error { u.Teams = list; return nil }
	}
	_, err := w.CreateGroup(ctx, alice, Group{Name: "zz "})
	refused("a new group", err)
	_, err = w.UpdateGroup(ctx, alice, w.readers.ID, 0, func(g *Group) error { g.Name += " "; return nil })
	refused("a new name", err)
	_, _, err = w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "new", Teams: []string{"T "}}}, nil)
	refused("the team of a new service user", err)
	_, err = w.UpdateServiceUser(ctx, alice, w.user.ID, 0, teams("ok", "T "))
	refused("a new team", err)

	mustDo(w.Close())
	runSQL(t, w.path, `UPDATE service_users SET teams = '["T "]' WHERE id = '`+w.user.ID+`';`+
		`UPDATE permission_groups SET name = 'zz ' WHERE id = '`+w.readers.ID+`'`)
	w.Store = open(t, w.path, w.opts)
	report := must(w.Check(ctx, Local, AuditHead{}))
	notes := slices.DeleteFunc(report.Notes, func(n string) bool { return !strings.Contains(n, "end in a space") })
	if len(report.Findings) != 0 || len(notes) != 2 {
		t.Errorf("got the findings %q and the notes %q, want no finding and two notes", report.Findings, notes)
	}
	g := must(w.UpdateGroup(ctx, alice, w.readers.ID, 0, func(g *Group) error { g.Description = "old"; return nil }))
	u := must(w.UpdateServiceUser(ctx, alice, w.user.ID, 0, func(u *ServiceUser) error { u.Owner = "carol"; return nil }))
	if g.Name != "zz " || g.Description != "old" || !slices.Equal(u.Teams, []string{"T "}) || u.Owner != "carol" {
		t.Errorf("got %+v and %+v", g, u)
	}
	u = must(w.UpdateServiceUser(ctx, alice, w.user.ID, 0, teams("T ", "ok")))
	if !slices.Equal(u.Teams, []string{"T ", "ok"}) {
		t.Errorf("got the teams %q", u.Teams)
	}
	_, err = w.UpdateServiceUser(ctx, alice, w.user.ID, 0, teams("T ", "x "))
	refused("a new team beside an old one", err)
	must(w.UpdateGroup(ctx, alice, w.readers.ID, 0, func(g *Group) error { g.Name = "zz"; return nil }))
}
