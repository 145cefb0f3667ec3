package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
)

// A manager of the teams finance and ops, which holds the groups readers and
// base, among service users that it reaches and others.
func TestScope(t *testing.T) {
	for _, withDefault := range []bool{false, true} {
		t.Run(fmt.Sprintf("default group %t", withDefault), func(t *testing.T) {
			t.Parallel()
			testScope(t, withDefault)
		})
	}
}

func testScope(t *testing.T, withDefault bool) {
	opts := Options{}
	if withDefault {
		opts.DefaultGroup = "base"
	}
	s := open(t, place(t), opts)
	base, readers, writers := addGroup(s, "base", "allow GET /base"), addGroup(s, "readers", "allow GET /v1/{x}"), addGroup(s, "writers", "allow * /v1/{x}")
	ids := map[string]string{"base": base.ID, "readers": readers.ID, "writers": writers.ID, "nobody": newID("service", s.Now()), "nogroup": newID("group", s.Now())}
	tokens := make(map[string]*Issued)
	add := func(name string, role access.Role, teams string, groups ...string) {
		u := ServiceUser{Profile: access.Profile{Name: name, Active: true, Role: role, Teams: strings.Fields(teams)}}
		for _, g := range groups {
			u.Groups = append(u.Groups, ids[g])
		}
		u, token, err := s.CreateServiceUser(ctx, Local, u, &Token{})
		mustDo(err)
		ids[name], tokens[name] = u.ID, token
	}
	add("manager", access.Manager, "finance ops", "readers", "base")
	add("plain", "", "finance")
	add("reader", "", "finance", "readers")
	add("both", "", "finance hr", "readers") // shares one team, and has a foreign one
	add("writer", "", "finance", "writers")
	add("mixed", "", "ops", "readers", "writers")
	add("admin", access.Admin, "finance")
	add("peer", access.Manager, "finance")
	add("outsider", "", "hr", "readers")
	add("capital", "", "Finance")
	add("similar", "", "financex fin.nce")
	add("nowhere", "", "")
	manager, _ := s.Directory().User(ids["manager"])
	by := Actor{Name: manager.ID, Scope: &Scope{UserID: manager.ID, Teams: manager.Teams, Groups: s.Directory().EffectiveGroups(manager)}}
	blind := Actor{Name: "human:carol", Scope: &Scope{}}

	names := func(list []ServiceUser) string {
		var out []string
		for _, u := range list {
			out = append(out, u.Name)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	groupNames := func(list []Group) string {
		var out []string
		for _, g := range list {
			out = append(out, g.Name)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	const visible = "admin both manager mixed peer plain reader writer"
	for _, row := range []struct {
		by            Actor
		users, groups string
	}{{by, visible, "base readers"}, {blind, "", ""}, {Local, "admin both capital manager mixed nowhere outsider peer plain reader similar writer", "base readers writers"}} {
		users, more, err := s.page(ctx, row.by, userPage{Limit: 100})
		if got := names(users); got != row.users || more || err != nil {
			t.Errorf("list of %s: got %q, %t, %v, want %q", row.by.Name, got, more, err, row.users)
		}
		groups, more, err := s.Groups(ctx, row.by, "", "", 100)
		if got := groupNames(groups); got != row.groups || more || err != nil {
			t.Errorf("groups of %s: got %q, %t, %v, want %q", row.by.Name, got, more, err, row.groups)
		}
		for name, id := range ids {
			want := "not found"
			if slices.Contains(strings.Fields(row.users), name) {
				want = "ok"
			}
			if got := kind(second(s.readUser(ctx, row.by, id))); got != want {
				t.Errorf("%s reads %s: got %s, want %s", row.by.Name, name, got, want)
			}
			if got := kind(third(s.FindTokens(ctx, row.by, TokenQuery{UserID: id, Limit: 10}))); got != want {
				t.Errorf("%s lists the tokens of %s: got %s, want %s", row.by.Name, name, got, want)
			}
			if token := tokens[name]; token != nil {
				if got := kind(second(s.Token(ctx, row.by, id, token.ID))); got != want {
					t.Errorf("%s reads the token of %s: got %s, want %s", row.by.Name, name, got, want)
				}
			}
			want = "not found"
			if slices.Contains(strings.Fields(row.groups), name) {
				want = "ok"
			}
			if got := kind(second(s.Group(ctx, row.by, id))); got != want {
				t.Errorf("%s reads the group %s: got %s, want %s", row.by.Name, name, got, want)
			}
			if got := kind(third(s.Members(ctx, row.by, id, "", 10))); got != want {
				t.Errorf("%s lists the members of %s: got %s, want %s", row.by.Name, name, got, want)
			}
		}
	}
	if list, _, err := s.page(ctx, by, userPage{Name: "outsider", Limit: 10}); len(list) != 0 || err != nil {
		t.Errorf("looking for an outsider by name: got %v, %v", list, err)
	}
	if list, _, err := s.Groups(ctx, by, "writers", "", 10); len(list) != 0 || err != nil {
		t.Errorf("looking for a foreign group by name: got %v, %v", list, err)
	}
	members, _, err := s.Members(ctx, by, readers.ID, "", 10)
	if got := len(members); got != 4 || err != nil { // manager, reader, both, mixed; not outsider
		t.Errorf("members that the manager sees: got %v, %v, want 4", members, err)
	}

	update := func(name string, edit func(*ServiceUser)) error {
		_, err := s.UpdateServiceUser(ctx, by, ids[name], 0, func(u *ServiceUser) error { edit(u); return nil })
		return err
	}
	create := func(u ServiceUser) error {
		_, _, err := s.CreateServiceUser(ctx, by, u, &Token{})
		return err
	}
	describe := func(u *ServiceUser) { u.Description = "changed" }
	type row struct {
		name, want string
		do         func() error
	}
	var rows []row
	// Whatever would touch the service user itself.
	for name, want := range map[string]string{
		"manager": "not allowed", "admin": "not allowed role", "peer": "not allowed role", "writer": "not allowed permission_groups", "mixed": "not allowed permission_groups",
		"outsider": "not found", "capital": "not found", "similar": "not found", "nowhere": "not found", "nobody": "not found",
	} {
		tokenID := newID("token", s.Now())
		if tokens[name] != nil {
			tokenID = tokens[name].ID
		}
		rows = append(rows,
			row{"describe " + name, want, func() error { return update(name, describe) }},
			row{"demote " + name, want, func() error {
				return update(name, func(u *ServiceUser) { u.Role, u.Groups, u.Description = access.Member, nil, "x" })
			}},
			row{"adopt " + name, want, func() error {
				return update(name, func(u *ServiceUser) { u.Teams = []string{"ops", "finance"}; u.Owner = "x" })
			}},
			row{"delete " + name, want, func() error { return s.deleteUser(ctx, by, ids[name], 0) }},
			row{"mint a token for " + name, want, func() error { return second(s.CreateToken(ctx, by, ids[name], Token{})) }},
			row{"narrowed for " + name, want, func() error { return second(s.CreateToken(ctx, by, ids[name], Token{Groups: []string{readers.ID}})) }},
			row{"refresh the token of " + name, want, func() error { return second(s.refreshOf(ctx, by, ids[name], tokenID, 0)) }},
			row{"revoke the token of " + name, want, func() error { return s.revoke(ctx, by, ids[name], tokenID) }},
			row{"update the token of " + name, want, func() error {
				return second(s.UpdateToken(ctx, by, ids[name], tokenID, 0, func(k *Token) error { k.Description = "x"; return nil }))
			}},
			row{"add to base " + name, want, func() error { return s.AddMember(ctx, by, base.ID, ids[name]) }},
			row{"remove from readers " + name, want, func() error { return s.RemoveMember(ctx, by, readers.ID, ids[name]) }},
		)
	}
	noop := map[string]bool{ // nothing would change, so nothing is refused
		"add to base manager": true, "remove from readers admin": true, "remove from readers peer": true, "remove from readers writer": true,
	}
	rows = append(rows,
		row{"make an admin", "not allowed role", func() error { return update("plain", func(u *ServiceUser) { u.Role = access.Admin }) }},
		row{"make a manager", "not allowed role", func() error { return update("plain", func(u *ServiceUser) { u.Role = access.Manager }) }},
		row{"give a foreign group", "not allowed permission_groups", func() error { return update("plain", func(u *ServiceUser) { u.Groups = []string{writers.ID} }) }},
		row{"give a foreign group beside its own", "not allowed permission_groups", func() error {
			return update("reader", func(u *ServiceUser) { u.Groups = append(u.Groups, writers.ID) })
		}},
		row{"add a foreign team", "not allowed teams", func() error { return update("plain", func(u *ServiceUser) { u.Teams = append(u.Teams, "hr") }) }},
		row{"remove a foreign team", "not allowed teams", func() error { return update("both", func(u *ServiceUser) { u.Teams = []string{"finance"} }) }},
		row{"exchange for a foreign team", "not allowed teams", func() error { return update("plain", func(u *ServiceUser) { u.Teams = []string{"hr"} }) }},
		row{"let go", "not allowed teams", func() error { return update("plain", func(u *ServiceUser) { u.Teams = nil }) }},
		row{"team of another case", "not allowed teams", func() error { return update("plain", func(u *ServiceUser) { u.Teams = append(u.Teams, "Finance") }) }},
		row{"create an admin", "not allowed role", func() error {
			return create(ServiceUser{Profile: access.Profile{Name: "n", Role: access.Admin, Teams: []string{"ops"}}})
		}},
		row{"create a manager", "not allowed role", func() error {
			return create(ServiceUser{Profile: access.Profile{Name: "n", Role: access.Manager, Teams: []string{"ops"}}})
		}},
		row{"create without a team", "not allowed teams", func() error { return create(ServiceUser{Profile: access.Profile{Name: "n"}}) }},
		row{"create in a foreign team", "not allowed teams", func() error { return create(ServiceUser{Profile: access.Profile{Name: "n", Teams: []string{"hr"}}}) }},
		row{"create in a foreign team too", "not allowed teams", func() error {
			return create(ServiceUser{Profile: access.Profile{Name: "n", Teams: []string{"hr", "ops"}}})
		}},
		row{"create with a foreign group", "not allowed permission_groups", func() error {
			return create(ServiceUser{Profile: access.Profile{Name: "n", Teams: []string{"ops"}}, Groups: []string{writers.ID}})
		}},
		row{"add a member to a foreign group", "not found", func() error { return s.AddMember(ctx, by, writers.ID, ids["plain"]) }},
		row{"remove a member of a foreign group", "not found", func() error { return s.RemoveMember(ctx, by, writers.ID, ids["writer"]) }},
		row{"add a member to no group", "not found", func() error { return s.AddMember(ctx, by, ids["nogroup"], ids["plain"]) }},
		row{"create a group", "not allowed", func() error { return second(s.CreateGroup(ctx, by, Group{Name: "mine"})) }},
	)
	for group, want := range map[string]string{readers.ID: "not allowed", writers.ID: "not found", ids["nogroup"]: "not found"} {
		rows = append(rows,
			row{"rename a group", want, func() error {
				return second(s.UpdateGroup(ctx, by, group, 0, func(g *Group) error { g.Name = "x"; return nil }))
			}},
			row{"observe", want, func() error {
				return second(s.UpdateGroup(ctx, by, group, 0, func(g *Group) error { g.Mode = access.Observe; return nil }))
			}},
			row{"change no group", want, func() error { return second(s.UpdateGroup(ctx, by, group, 0, func(*Group) error { return nil })) }},
			row{"delete a group", want, func() error { return s.DeleteGroup(ctx, by, group, 0) }},
			row{"add a rule", want, func() error { return second(s.AddRule(ctx, by, group, rules("allow * /{rest...}")[0])) }},
			row{"remove a rule", want, func() error { return s.RemoveRule(ctx, by, group, readers.Rules[0].ID) }},
		)
	}
	if withDefault { // a scope that lacks the default group reaches nobody
		narrow := by
		narrow.Scope = &Scope{UserID: by.Scope.UserID, Teams: by.Scope.Teams, Groups: []string{readers.ID}}
		rows = append(rows, row{"lacking the default group", "not allowed permission_groups", func() error {
			return second(s.CreateToken(ctx, narrow, ids["plain"], Token{}))
		}})
	}
	for _, r := range rows {
		if noop[r.name] {
			r.want = "ok"
		}
		before, revision := dump(t, s), s.Directory().Revision()
		if got := kind(r.do()); got != r.want {
			t.Errorf("%s: got %s, want %s", r.name, got, r.want)
		}
		same(t, r.name, dump(t, s), before)
		if got := s.Directory().Revision(); got != revision {
			t.Errorf("%s: revision: got %d, want %d", r.name, got, revision)
		}
	}

	// What a manager may do. Each is one revision, in its name.
	for _, r := range []row{
		{"describe", "", func() error { return update("plain", describe) }},
		{"rename, label and bind", "", func() error {
			return update("plain", func(u *ServiceUser) {
				u.Name, u.Alias, u.Owner, u.Labels, u.AllowedIPs = "plainer", "plain@example", "carol", map[string]string{"a": "b"}, []string{"10.0.0.0/8"}
			})
		}},
		{"deactivate", "", func() error { return update("plain", func(u *ServiceUser) { u.Active = false }) }},
		{"give an own group", "", func() error { return update("plain", func(u *ServiceUser) { u.Groups = []string{readers.ID} }) }},
		{"take an own group", "", func() error { return update("reader", func(u *ServiceUser) { u.Groups = nil }) }},
		{"add an own team", "", func() error { return update("both", func(u *ServiceUser) { u.Teams = append(u.Teams, "ops") }) }},
		{"remove an own team", "", func() error { return update("both", func(u *ServiceUser) { u.Teams = []string{"hr", "ops"} }) }},
		{"add a member", "", func() error { return s.AddMember(ctx, by, base.ID, ids["reader"]) }},
		{"remove a member", "", func() error { return s.RemoveMember(ctx, by, base.ID, ids["reader"]) }},
		{"create", "", func() error {
			return create(ServiceUser{Profile: access.Profile{Name: "n", Teams: []string{"ops"}}, Groups: []string{readers.ID, base.ID}})
		}},
		{"mint", "", func() error { return second(s.CreateToken(ctx, by, ids["reader"], Token{})) }},
		{"update a token", "", func() error {
			return second(s.UpdateToken(ctx, by, ids["reader"], tokens["reader"].ID, 0, func(k *Token) error { k.Description = "x"; return nil }))
		}},
		{"refresh", "", func() error { return second(s.refreshOf(ctx, by, ids["reader"], tokens["reader"].ID, 0)) }},
		{"revoke", "", func() error { return s.revoke(ctx, by, ids["plain"], tokens["plain"].ID) }},
		{"delete", "", func() error { return s.deleteUser(ctx, by, ids["reader"], 0) }},
	} {
		revision := s.Directory().Revision()
		if got := kind(r.do()); got != "ok" || s.Directory().Revision() != revision+1 {
			t.Errorf("%s: got %s and revision %d, want ok and %d", r.name, got, s.Directory().Revision(), revision+1)
		}
		if e := must(s.trail(ctx, "", 0, 1))[0]; e.Actor != manager.ID {
			t.Errorf("%s: actor: got %s, want %s", r.name, e.Actor, manager.ID)
		}
	}
	// Its own way up: every decision about itself stays as it was.
	if u := must(s.readUser(ctx, by, manager.ID)); u.Role != access.Manager || u.Version != 1 {
		t.Errorf("the manager itself: got %+v", u)
	}
}
