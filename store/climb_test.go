package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// ladder is a store with managers, teammates of theirs, and rungs that are out of
// their reach.
type ladder struct {
	*Store
	ids    map[string]string // of service users and groups, by name
	tokens map[string]*Issued
}

// newLadder makes the database that every row begins with.
//
// The manager holds base, readers and own; the person may give the same. Another
// manager, bound, holds readers and what refuses it something: closers, which
// names it, and sealed, by its label env. All of them are in finance and ops.
func newLadder(t *testing.T) (l *ladder, path string) {
	path = place(t)
	clock := newClock()
	s := must(Open(ctx, path, Options{Now: clock.Now}))
	l = &ladder{Store: s, ids: map[string]string{"nogroup": newID("group", s.Now())}, tokens: make(map[string]*Issued)}
	load(s, permissionList("p q")...)
	for _, g := range []Group{
		{Name: "base", Rules: rules("allow GET /base"), Permissions: []string{"p"}},
		{Name: "readers", Rules: rules("allow GET /v1/{x}")},
		{Name: "own", Rules: rules(`allow GET /own/{id} when params.id in user.labels.people.split(",")`)},
		{Name: "closers", Rules: rules("deny DELETE /v1/{rest...}")},
		{Name: "sealed", Rules: rules("deny * /v1/secret"), MemberCondition: `has(user.labels.env) && user.labels.env == "prod"`},
		// What nobody of them holds.
		{Name: "writers", Rules: rules("allow * /v1/{x}")},
		{Name: "gold", Rules: rules("allow * /gold"), MemberCondition: `has(user.labels.tier) && user.labels.tier == "gold"`},
		{Name: "onlyops", Rules: rules("allow * /ops"), MemberCondition: `user.teams == ["ops"]`},
		{Name: "roots", Rules: rules("allow * /root"), MemberCondition: `[user.name, user.alias, user.owner, user.display_name].exists(s, s.startsWith("root"))`},
		{Name: "gone", Rules: rules("allow * /gone")},
	} {
		l.ids[g.Name] = must(s.CreateGroup(ctx, Local, g)).ID
	}
	mustDo(s.DeleteGroup(ctx, Local, l.ids["gone"], 0))
	add := func(name string, role access.Role, teams, groups string, labels ...string) {
		u := ServiceUser{Profile: access.Profile{Name: name, Active: true, Role: role, Teams: strings.Fields(teams), Labels: make(map[string]string)}, Groups: l.groups(groups)}
		for _, label := range labels {
			key, value, _ := strings.Cut(label, "=")
			u.Labels[key] = value
		}
		clock.add(time.Second) // so that no two were made at one instant
		u, token, err := s.CreateServiceUser(ctx, Local, u, &Token{})
		mustDo(err)
		l.ids[name], l.tokens[name] = u.ID, token
	}
	add("manager", access.Manager, "finance ops", "base readers own", "people=1,2")
	add("bound", access.Manager, "finance ops", "readers closers", "env=prod")
	add("plain", "", "finance", "")
	add("reader", "", "finance", "readers")
	add("shared", "", "finance hr", "readers")
	add("twin", "", "finance", "own", "people=1,2")
	add("wider", "", "finance", "own", "people=1,2,3")
	add("writer", "", "finance", "readers writers")
	add("golden", "", "finance", "readers", "tier=gold")
	add("kin", "", "finance", "readers closers", "env=prod")
	add("admin", access.Admin, "finance", "")
	add("peer", access.Manager, "finance", "")
	add("outsider", "", "hr", "readers")
	mustDo(s.Close())
	return l, path
}

// groups are the ids of groups by their names.
func (l *ladder) groups(names string) (ids []string) {
	for _, name := range strings.Fields(names) {
		ids = append(ids, l.ids[name])
	}
	return ids
}

// actor is one of those who try: a service user by its name, or the person.
func (l *ladder) actor(name string) Actor {
	if name == "person" {
		return Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"finance", "ops"}, Groups: l.groups("base readers own")}}
	}
	u, _ := l.Directory().User(l.ids[name])
	return Actor{Name: u.ID, Scope: &Scope{UserID: u.ID, Teams: u.Teams, Groups: l.Directory().EffectiveGroups(u)}}
}

// What can be tried, by names.

func (l *ladder) edit(by Actor, user string, edit func(*ServiceUser)) error {
	return second(l.UpdateServiceUser(ctx, by, l.ids[user], 0, func(u *ServiceUser) error { edit(u); return nil }))
}

func (l *ladder) create(by Actor, u ServiceUser, token Token) error {
	if u.Teams == nil {
		u.Teams = []string{"finance"}
	}
	return third(l.CreateServiceUser(ctx, by, u, &token))
}

func (l *ladder) join(by Actor, group, user string) error {
	return l.AddMember(ctx, by, l.ids[group], l.ids[user])
}

func (l *ladder) leave(by Actor, group, user string) error {
	return l.RemoveMember(ctx, by, l.ids[group], l.ids[user])
}

func (l *ladder) mint(by Actor, user string, groups string) error {
	return second(l.CreateToken(ctx, by, l.ids[user], Token{Groups: l.groups(groups)}))
}

func (l *ladder) editToken(by Actor, user string, edit func(*Token)) error {
	return second(l.UpdateToken(ctx, by, l.ids[user], l.tokens[user].ID, 0, func(k *Token) error { edit(k); return nil }))
}

func (l *ladder) editGroup(by Actor, group string, edit func(*Group)) error {
	return second(l.UpdateGroup(ctx, by, l.ids[group], 0, func(g *Group) error { edit(g); return nil }))
}

func label(key, value string) func(*ServiceUser) {
	return func(u *ServiceUser) {
		if u.Labels == nil {
			u.Labels = make(map[string]string)
		}
		u.Labels[key] = value
	}
}

// everyWay is whatever can be done to a service user and its tokens.
func everyWay(user string) map[string]func(*ladder, Actor) error {
	return map[string]func(*ladder, Actor) error{
		"describe " + user:   func(l *ladder, by Actor) error { return l.edit(by, user, func(u *ServiceUser) { u.Description = "x" }) },
		"deactivate " + user: func(l *ladder, by Actor) error { return l.edit(by, user, func(u *ServiceUser) { u.Active = false }) },
		"strip " + user: func(l *ladder, by Actor) error {
			return l.edit(by, user, func(u *ServiceUser) { u.Role, u.Groups, u.Labels, u.Description = access.Member, nil, nil, "x" })
		},
		"move " + user: func(l *ladder, by Actor) error {
			return l.edit(by, user, func(u *ServiceUser) { u.Teams = []string{"finance", "ops"}; u.Description = "x" })
		},
		"delete " + user:                    func(l *ladder, by Actor) error { return l.deleteUser(ctx, by, l.ids[user], 0) },
		"mint a token for " + user:          func(l *ladder, by Actor) error { return l.mint(by, user, "") },
		"mint a narrowed token for " + user: func(l *ladder, by Actor) error { return l.mint(by, user, "readers") },
		"describe the token of " + user:     func(l *ladder, by Actor) error { return l.editToken(by, user, func(k *Token) { k.Description = "x" }) },
		"narrow the token of " + user: func(l *ladder, by Actor) error {
			return l.editToken(by, user, func(k *Token) { k.Groups = l.groups("readers") })
		},
		"refresh the token of " + user: func(l *ladder, by Actor) error {
			return second(l.refreshOf(ctx, by, l.ids[user], l.tokens[user].ID, 0))
		},
		"rotate the token of " + user: func(l *ladder, by Actor) error {
			return third(l.RotateToken(ctx, by, l.ids[user], l.tokens[user].ID, time.Second))
		},
		"revoke the token of " + user:    func(l *ladder, by Actor) error { return l.revoke(ctx, by, l.ids[user], l.tokens[user].ID) },
		"take " + user + " into readers": func(l *ladder, by Actor) error { return l.joinOrLeave(by, "readers", user) },
	}
}

// joinOrLeave changes the membership, whatever it is.
func (l *ladder) joinOrLeave(by Actor, group, user string) error {
	u := must(l.readUser(ctx, Local, l.ids[user]))
	if slices.Contains(u.Groups, l.ids[group]) {
		return l.leave(by, group, user)
	}
	return l.join(by, group, user)
}

// rung is one way to climb, or one that looks alike and is allowed. All steps but
// the last are allowed.
type rung struct {
	name      string
	by        string          // each of them tries
	want      string          // of the last step
	before    func(l *ladder) // an admin does this first
	meanwhile func(l *ladder) // and this after the manager was authenticated
	steps     steps
}

type steps = []func(*ladder, Actor) error

const (
	byRole   = "not allowed role"
	byTeams  = "not allowed teams"
	byGroups = "not allowed permission_groups"
)

func rungs() []rung {
	edit := func(user string, f func(*ServiceUser)) func(*ladder, Actor) error {
		return func(l *ladder, by Actor) error { return l.edit(by, user, f) }
	}
	editTo := func(user string, f func(*ladder, *ServiceUser)) func(*ladder, Actor) error {
		return func(l *ladder, by Actor) error { return l.edit(by, user, func(u *ServiceUser) { f(l, u) }) }
	}
	create := func(f func(l *ladder, u *ServiceUser)) func(*ladder, Actor) error {
		return func(l *ladder, by Actor) error {
			u := ServiceUser{Profile: access.Profile{Name: "new", Active: true, Labels: make(map[string]string)}}
			f(l, &u)
			return l.create(by, u, Token{})
		}
	}
	in := func(names string) func(l *ladder, u *ServiceUser) {
		return func(l *ladder, u *ServiceUser) { u.Groups = l.groups(names) }
	}
	join := func(group, user string) func(*ladder, Actor) error {
		return func(l *ladder, by Actor) error { return l.join(by, group, user) }
	}
	leave := func(group, user string) func(*ladder, Actor) error {
		return func(l *ladder, by Actor) error { return l.leave(by, group, user) }
	}
	mint := func(user, groups string) func(*ladder, Actor) error {
		return func(l *ladder, by Actor) error { return l.mint(by, user, groups) }
	}
	admin := func(f func(*ladder, Actor) error) func(*ladder) {
		return func(l *ladder) { mustDo(f(l, Local)) }
	}
	// addRule puts a condition on a rule of a group that they hold.
	addRule := func(group, text string) func(*ladder) {
		return func(l *ladder) { must(l.AddRule(ctx, Local, l.ids[group], rules(text)[0])) }
	}
	both := func(a, b func(*ladder)) func(*ladder) { return func(l *ladder) { a(l); b(l) } }

	// hazy refuses the manager something, since its grade is low, and whoever else
	// has a low grade and no label zone.
	hazy := func(l *ladder) {
		must(l.CreateGroup(ctx, Local, Group{Name: "hazy", MemberCondition: `user.labels.zone == "eu"`, Rules: rules(`deny * /v1/{x} when user.labels.grade == "low"`)}))
		mustDo(l.edit(Local, "manager", func(u *ServiceUser) { u.Labels["zone"], u.Labels["grade"] = "eu", "low" }))
	}

	list := []rung{
		// Roles.
		{name: "raise to admin", by: "manager person", want: byRole, steps: steps{edit("plain", func(u *ServiceUser) { u.Role = access.Admin })}},
		{name: "raise to manager", by: "manager person", want: byRole, steps: steps{edit("plain", func(u *ServiceUser) { u.Role = access.Manager })}},
		{name: "raise one who was made for it", by: "manager person", want: byRole, steps: steps{
			create(func(*ladder, *ServiceUser) {}),
			func(l *ladder, by Actor) error {
				l.ids["new"] = must(l.userNamed("new")).ID
				return l.edit(by, "new", func(u *ServiceUser) { u.Role = access.Manager })
			},
		}},
		{name: "create an admin", by: "manager person", want: byRole, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Role = access.Admin })}},
		{name: "create a manager", by: "manager person", want: byRole, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Role = access.Manager })}},

		// Groups that they do not hold.
		{name: "give a foreign group", by: "manager person", want: byGroups, steps: steps{editTo("plain", in("writers"))}},
		{name: "give a foreign group beside one of its own", by: "manager person", want: byGroups, steps: steps{editTo("plain", in("writers readers"))}},
		{name: "give a group that does not exist", by: "manager person", want: byGroups, steps: steps{editTo("plain", in("nogroup"))}},
		{name: "give a group that was deleted", by: "manager person", want: byGroups, steps: steps{editTo("plain", in("gone"))}},
		{name: "create with a foreign group", by: "manager person", want: byGroups, steps: steps{create(in("readers writers"))}},
		{name: "create with a group that does not exist", by: "manager person", want: byGroups, steps: steps{create(in("nogroup"))}},
		{name: "create with a group by condition", by: "manager person", want: byGroups, steps: steps{create(in("gold"))}},
		{name: "add to a foreign group", by: "manager person", want: "not found", steps: steps{join("writers", "plain")}},
		{name: "add to a group that does not exist", by: "manager person", want: "not found", steps: steps{join("nogroup", "plain")}},
		{name: "add to a group by condition", by: "manager person", want: "not found", steps: steps{join("gold", "plain")}},
		{name: "remove from a foreign group", by: "manager person", want: "not found", steps: steps{leave("writers", "writer")}},
		{name: "give what the other manager holds", by: "manager person", want: byGroups, steps: steps{editTo("plain", in("closers"))}},
		{name: "a rule for a group of its own", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error {
			return second(l.AddRule(ctx, by, l.ids["readers"], rules("allow * /{rest...}")[0]))
		}}},
		{name: "a rule for a foreign group", by: "manager person", want: "not found", steps: steps{func(l *ladder, by Actor) error {
			return second(l.AddRule(ctx, by, l.ids["writers"], rules("allow * /{rest...}")[0]))
		}}},

		// Narrowing. Tokens for those who hold more are in the loops below.
		{name: "narrow a new token to a foreign group", by: "manager person", want: byGroups, steps: steps{mint("reader", "writers")}},
		{name: "narrow a new token to a foreign group too", by: "manager person", want: byGroups, steps: steps{mint("reader", "readers writers")}},
		{name: "narrow a new token to no group", by: "manager person", want: byGroups, steps: steps{mint("reader", "nogroup")}},
		{name: "narrow the first token to a foreign group", by: "manager person", want: byGroups, steps: steps{func(l *ladder, by Actor) error {
			return l.create(by, ServiceUser{Profile: access.Profile{Name: "new"}}, Token{Groups: l.groups("writers")})
		}}},
		{name: "narrow a token to a foreign group", by: "manager person", want: byGroups, steps: steps{func(l *ladder, by Actor) error {
			return l.editToken(by, "reader", func(k *Token) { k.Groups = l.groups("writers") })
		}}},
		{name: "narrow a token to a foreign group beside one of its own", by: "manager person", want: byGroups, steps: steps{
			func(l *ladder, by Actor) error {
				return l.editToken(by, "reader", func(k *Token) { k.Groups = l.groups("readers") })
			},
			func(l *ladder, by Actor) error {
				return l.editToken(by, "reader", func(k *Token) { k.Groups = l.groups("readers writers") })
			},
		}},

		// Into a foreign group by its condition.
		{name: "join by a label", by: "manager person", want: byGroups, steps: steps{edit("plain", label("tier", "gold"))}},
		{name: "join by a label, beside the group of its own", by: "manager person", want: byGroups, steps: steps{editTo("plain", func(l *ladder, u *ServiceUser) {
			u.Groups, u.Labels = l.groups("readers"), map[string]string{"tier": "gold"}
		})}},
		{name: "join by another value first", by: "manager person", want: byGroups, steps: steps{edit("plain", label("tier", "silver")), edit("plain", label("tier", "gold"))}},
		{name: "join by a team", by: "manager person", want: byGroups, steps: steps{edit("plain", func(u *ServiceUser) { u.Teams = []string{"ops"} })}},
		{name: "join by a team in two steps", by: "manager person", want: byGroups, steps: steps{
			edit("plain", func(u *ServiceUser) { u.Teams = []string{"finance", "ops"} }), edit("plain", func(u *ServiceUser) { u.Teams = []string{"ops"} }),
		}},
		{name: "join by its name", by: "manager person", want: byGroups, steps: steps{edit("plain", func(u *ServiceUser) { u.Name = "root-sync" })}},
		{name: "join by its alias", by: "manager person", want: byGroups, steps: steps{edit("plain", func(u *ServiceUser) { u.Alias = "root@example" })}},
		{name: "join by its owner", by: "manager person", want: byGroups, steps: steps{edit("plain", func(u *ServiceUser) { u.Owner = "root@example" })}},
		{name: "join by its display name", by: "manager person", want: byGroups, steps: steps{edit("plain", func(u *ServiceUser) { u.DisplayName = "root" })}},
		{name: "create with a label that joins", by: "manager person", want: byGroups, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Labels["tier"] = "gold" })}},
		{name: "create with a team that joins", by: "manager person", want: byGroups, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Teams = []string{"ops"} })}},
		{name: "create with a name that joins", by: "manager person", want: byGroups, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Name = "root-sync" })}},
		{name: "create with an alias that joins", by: "manager person", want: byGroups, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Alias = "root@example" })}},
		{name: "out of a foreign group by its label", by: "manager person", want: byGroups, steps: steps{edit("golden", func(u *ServiceUser) { u.Labels = nil })}},
		{name: "out of a foreign deny by its label", by: "manager person", want: byGroups, before: admin(edit("reader", label("env", "prod"))), steps: steps{edit("reader", func(u *ServiceUser) { u.Labels = nil })}},

		// What the condition of a rule looks at, for a manager with fields of its own.
		{name: "the label, then the group", by: "manager", want: byGroups, steps: steps{edit("plain", label("people", "1,2,3")), join("own", "plain")}},
		{name: "the label, then the group by an update", by: "manager", want: byGroups, steps: steps{edit("plain", label("people", "1,2,3")), editTo("plain", in("own"))}},
		{name: "the label with the group", by: "manager", want: byGroups, steps: steps{editTo("plain", func(l *ladder, u *ServiceUser) {
			u.Groups, u.Labels = l.groups("own"), map[string]string{"people": "1,2,3"}
		})}},
		{name: "the group without the label", by: "manager", want: byGroups, steps: steps{join("own", "plain")}},
		{name: "the group, then the label", by: "manager", want: byGroups, steps: steps{edit("plain", label("people", "1,2")), join("own", "plain"), edit("plain", label("people", "1,2,3"))}},
		{name: "the label of one in the group", by: "manager", want: byGroups, steps: steps{edit("twin", label("people", "3"))}},
		{name: "fewer people for one in the group", by: "manager", want: byGroups, steps: steps{edit("twin", label("people", "1"))}},
		{name: "no label for one in the group", by: "manager", want: byGroups, steps: steps{edit("twin", func(u *ServiceUser) { u.Labels = nil })}},
		{name: "one of its own labels for one who has another", by: "manager", want: byGroups, steps: steps{edit("wider", label("people", "1,2"))}},
		{name: "create with the label and the group", by: "manager", want: byGroups, steps: steps{create(func(l *ladder, u *ServiceUser) {
			u.Groups, u.Labels = l.groups("own"), map[string]string{"people": "1,2,3"}
		})}},
		{name: "a label that is there and empty", by: "manager", want: byGroups,
			before: both(addRule("readers", "allow GET /marked when has(user.labels.mark)"), admin(edit("reader", label("mark", "")))),
			steps:  steps{mint("reader", "")}},
		{name: "a label that only the manager has", by: "manager", want: byGroups,
			before: both(addRule("readers", "deny GET /marked when !has(user.labels.mark)"), admin(edit("manager", label("mark", "")))),
			steps:  steps{mint("reader", "")}},
		{name: "any label", by: "manager", want: byGroups, before: addRule("own", `allow GET /any when user.labels.exists(k, k.startsWith("x"))`), steps: steps{edit("twin", label("note", "x"))}},
		{name: "a condition by the catalogue", by: "manager", want: byGroups,
			before: func(l *ladder) { load(l.Store, permission("p", `allow GET /p when user.labels.p == "1"`)) },
			steps:  steps{edit("plain", label("p", "1")), join("base", "plain")}},

		// The same for a person, who has none.
		{name: "the label of one in the group", by: "person", want: "not allowed labels", steps: steps{edit("twin", label("people", "1"))}},
		{name: "no label for one in the group", by: "person", want: "not allowed labels", steps: steps{edit("twin", func(u *ServiceUser) { u.Labels = nil })}},
		{name: "the label, then the group", by: "person", want: "not allowed labels", steps: steps{edit("plain", label("people", "1,2,3"))}},
		{name: "the group, then the label", by: "person", want: "not allowed labels", steps: steps{join("own", "plain"), edit("plain", label("people", "1,2,3"))}},
		{name: "the label with the group", by: "person", want: "not allowed labels", steps: steps{editTo("plain", func(l *ladder, u *ServiceUser) {
			u.Groups, u.Labels = l.groups("own"), map[string]string{"people": "1"}
		})}},
		{name: "an empty label", by: "person", want: "not allowed labels", steps: steps{edit("plain", label("people", ""))}},
		{name: "create with the label", by: "person", want: "not allowed labels", steps: steps{create(func(l *ladder, u *ServiceUser) { u.Labels["people"] = "1" })}},
		{name: "create with the label and the group", by: "person", want: "not allowed labels", steps: steps{create(func(l *ladder, u *ServiceUser) {
			u.Groups, u.Labels = l.groups("own"), map[string]string{"people": "1"}
		})}},
		{name: "any label", by: "person", want: "not allowed labels", before: addRule("own", `allow GET /any when user.labels.exists(k, k.startsWith("x"))`), steps: steps{edit("plain", label("note", "x"))}},
		{name: "delete, and make again by the name", by: "person", want: "not allowed name", before: addRule("own", `allow GET /named when user.name == "twin"`), steps: steps{
			func(l *ladder, by Actor) error { return l.deleteUser(ctx, by, l.ids["twin"], 0) },
			create(func(l *ladder, u *ServiceUser) { u.Name, u.Groups = "twin", l.groups("own") }),
		}},
		{name: "a condition by the catalogue", by: "person", want: "not allowed labels",
			before: func(l *ladder) { load(l.Store, permission("p", `allow GET /p when user.labels.p == "1"`)) },
			steps:  steps{edit("plain", label("p", "1"))}},
		{name: "a condition of a deny", by: "person", want: "not allowed labels", before: addRule("readers", `deny * /v1/{x} when user.labels.frozen == "yes"`), steps: steps{edit("reader", label("frozen", "no"))}},
		{name: "a condition of a group that observes", by: "person", want: "not allowed labels", before: admin(func(l *ladder, by Actor) error {
			return l.editGroup(by, "own", func(g *Group) { g.Mode = access.Observe })
		}), steps: steps{edit("plain", label("people", "1"))}},

		// Out of what refuses the manager something.
		{name: "out of a deny", by: "bound", want: byGroups, steps: steps{leave("closers", "kin")}},
		{name: "out of a deny by an update", by: "bound", want: byGroups, steps: steps{editTo("kin", in("readers"))}},
		{name: "out of a deny by a label", by: "bound", want: byGroups, steps: steps{edit("kin", label("env", "test"))}},
		{name: "out of a deny without the label", by: "bound", want: byGroups, steps: steps{edit("kin", func(u *ServiceUser) { u.Labels = nil })}},
		{name: "create without the deny", by: "bound", want: byGroups, steps: steps{create(func(l *ladder, u *ServiceUser) { u.Groups = l.groups("readers"); u.Labels["env"] = "prod" })}},
		{name: "create without the label that denies", by: "bound", want: byGroups, steps: steps{create(in("readers closers"))}},
		{name: "create, then the group", by: "bound", want: byGroups, steps: steps{create(func(*ladder, *ServiceUser) {}), func(l *ladder, by Actor) error {
			l.ids["new"] = must(l.userNamed("new")).ID
			return l.join(by, "readers", "new")
		}}},
		{name: "the group for one who is refused nothing", by: "bound", want: byGroups, steps: steps{join("readers", "plain")}},
		{name: "the group for one who is refused only one thing", by: "bound", want: byGroups, before: admin(edit("plain", label("env", "prod"))), steps: steps{join("readers", "plain")}},
		{name: "out of everything, and back into one", by: "bound", want: byGroups, steps: steps{editTo("kin", func(_ *ladder, u *ServiceUser) { u.Groups, u.Labels = nil, nil }), join("readers", "kin")}},
		{name: "a deny by the catalogue", by: "manager", want: byGroups,
			before: func(l *ladder) { load(l.Store, permission("p", "deny * /v1/secret")) }, // of base
			steps:  steps{mint("reader", "")}},
		{name: "a token for one in doubt of another grade", by: "manager", want: byGroups, before: both(hazy, admin(edit("reader", label("grade", "high")))), steps: steps{mint("reader", "")}},
		{name: "another grade for one in doubt", by: "manager", want: byGroups, before: both(hazy, admin(edit("reader", label("grade", "low")))), steps: steps{mint("reader", ""), edit("reader", label("grade", "high"))}},
		{name: "another grade of its own for one in doubt", by: "manager", want: byGroups, before: both(hazy, admin(edit("reader", label("grade", "low")))), meanwhile: admin(edit("manager", label("grade", "high"))), steps: steps{mint("reader", "")}},
		{name: "out of doubt", by: "manager", want: byGroups, before: func(l *ladder) {
			must(l.CreateGroup(ctx, Local, Group{Name: "hazy", MemberCondition: `user.labels.zone == "eu"`, Rules: rules("deny * /v1/secret")}))
		}, steps: steps{mint("reader", ""), edit("reader", label("zone", "us"))}},

		// Teams.
		{name: "into a foreign team", by: "manager person", want: byTeams, steps: steps{edit("plain", func(u *ServiceUser) { u.Teams = []string{"finance", "hr"} })}},
		{name: "into a foreign team alone", by: "manager person", want: byTeams, steps: steps{edit("plain", func(u *ServiceUser) { u.Teams = []string{"hr"} })}},
		{name: "out of a foreign team", by: "manager person", want: byTeams, steps: steps{edit("shared", func(u *ServiceUser) { u.Teams = []string{"finance"} })}},
		{name: "out of its own team into another's", by: "manager person", want: byTeams, steps: steps{edit("shared", func(u *ServiceUser) { u.Teams = []string{"hr"} })}},
		{name: "out of every team", by: "manager person", want: byTeams, steps: steps{edit("plain", func(u *ServiceUser) { u.Teams = nil })}},
		{name: "create in a foreign team", by: "manager person", want: byTeams, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Teams = []string{"hr"} })}},
		{name: "create in a foreign team too", by: "manager person", want: byTeams, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Teams = []string{"finance", "hr"} })}},
		{name: "create in no team", by: "manager person", want: byTeams, steps: steps{create(func(_ *ladder, u *ServiceUser) { u.Teams = []string{} })}},

		// Groups, rules, conditions and the catalogue are an admin's.
		{name: "observe", by: "manager person bound", want: "not allowed", steps: steps{func(l *ladder, by Actor) error {
			return l.editGroup(by, "readers", func(g *Group) { g.Mode = access.Observe })
		}}},
		{name: "observe what refuses it", by: "bound", want: "not allowed", steps: steps{func(l *ladder, by Actor) error {
			return l.editGroup(by, "closers", func(g *Group) { g.Mode = access.Observe })
		}}},
		{name: "observe a foreign group", by: "manager person", want: "not found", steps: steps{func(l *ladder, by Actor) error {
			return l.editGroup(by, "writers", func(g *Group) { g.Mode = access.Observe })
		}}},
		{name: "rename a group", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error { return l.editGroup(by, "readers", func(g *Group) { g.Name = "x" }) }}},
		{name: "a condition of membership", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error {
			return l.editGroup(by, "readers", func(g *Group) { g.MemberCondition = "true" })
		}}},
		{name: "no condition on a rule", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error {
			return l.editGroup(by, "own", func(g *Group) { g.Rules[0].When = "" })
		}}},
		{name: "no rules", by: "bound", want: "not allowed", steps: steps{func(l *ladder, by Actor) error { return l.editGroup(by, "closers", func(g *Group) { g.Rules = nil }) }}},
		{name: "remove a rule", by: "bound", want: "not allowed", steps: steps{func(l *ladder, by Actor) error {
			return l.RemoveRule(ctx, by, l.ids["closers"], must(l.Group(ctx, Local, l.ids["closers"])).Rules[0].ID)
		}}},
		{name: "delete a group", by: "bound", want: "not allowed", steps: steps{func(l *ladder, by Actor) error { return l.DeleteGroup(ctx, by, l.ids["closers"], 0) }}},
		{name: "create a group", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error { return second(l.CreateGroup(ctx, by, Group{Name: "mine"})) }}},
		{name: "another permission of its group", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error {
			_, err := l.LoadPermissions(ctx, by, []Permission{permission("p", "allow * /{rest...}")}, false)
			return err
		}}},
		{name: "give a permission", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error { return l.GrantPermission(ctx, by, l.ids["readers"], "p") }}},
		{name: "withdraw a permission", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error { return l.WithdrawPermission(ctx, by, l.ids["base"], "p") }}},
		{name: "delete a permission", by: "manager person", want: "not allowed", steps: steps{func(l *ladder, by Actor) error { return l.DeletePermission(ctx, by, "q") }}},

		// What the manager has lost since it was authenticated.
		{name: "lost a group meanwhile", by: "manager", want: byGroups, meanwhile: admin(leave("readers", "manager")), steps: steps{join("base", "plain"), editTo("plain", in("readers"))}},
		{name: "lost a group meanwhile, and adds a member", by: "manager", want: "not found", meanwhile: admin(leave("readers", "manager")), steps: steps{join("readers", "plain")}},
		{name: "lost a group meanwhile, and mints", by: "manager", want: byGroups, meanwhile: admin(leave("readers", "manager")), steps: steps{mint("reader", "")}},
		{name: "lost a group meanwhile, and narrows", by: "manager", want: byGroups, meanwhile: admin(leave("readers", "manager")), steps: steps{mint("plain", "readers")}},
		{name: "left the team meanwhile", by: "manager", want: "not found", meanwhile: admin(edit("manager", func(u *ServiceUser) { u.Teams = []string{"ops"} })), steps: steps{mint("plain", "")}},
		{name: "left the team meanwhile, and moves into it", by: "manager", want: byTeams, meanwhile: admin(edit("manager", func(u *ServiceUser) { u.Teams = []string{"ops"} })), steps: steps{
			create(func(_ *ladder, u *ServiceUser) { u.Teams = []string{"finance", "ops"} }),
		}},
		{name: "another team meanwhile", by: "manager", want: "not found", meanwhile: admin(edit("manager", func(u *ServiceUser) { u.Teams = []string{"finance", "hr", "ops"} })), steps: steps{mint("outsider", "")}},
		{name: "another group meanwhile", by: "manager", want: byGroups, meanwhile: admin(join("writers", "manager")), steps: steps{editTo("plain", in("writers"))}},
		{name: "another label meanwhile", by: "manager", want: byGroups, meanwhile: admin(edit("manager", label("people", "1"))), steps: steps{mint("twin", "")}},
		{name: "refused something meanwhile", by: "manager", want: byGroups, meanwhile: admin(join("closers", "manager")), steps: steps{mint("plain", ""), mint("reader", "")}},
		{name: "refused something meanwhile by a rule", by: "manager", want: byGroups, meanwhile: addRule("base", "deny * /v1/secret"), steps: steps{mint("reader", "")}},
	}

	// Whoever is out of reach, whatever is done to it.
	for user, want := range map[string]map[string]string{
		"manager": {"manager": "not allowed", "person": byRole},
		"bound":   {"manager": byRole, "bound": "not allowed"},
		"admin":   {"manager": byRole, "person": byRole, "bound": byRole},
		"peer":    {"manager": byRole, "person": byRole, "bound": byRole},
		"writer":  {"manager": byGroups, "person": byGroups, "bound": byGroups},
		"golden":  {"manager": byGroups, "person": byGroups, "bound": byGroups},
		"wider":   {"manager": byGroups, "bound": byGroups},
		"twin":    {"bound": byGroups},
		"reader":  {"bound": byGroups},
		"kin":     {"manager": byGroups, "person": byGroups},
		// What they do not see does not exist.
		"outsider": {"manager": "not found", "person": "not found", "bound": "not found"},
	} {
		for by, want := range want {
			for name, way := range everyWay(user) {
				list = append(list, rung{name: name, by: by, want: want, steps: steps{way}})
			}
		}
	}
	// A manager that is none any more, whatever it does, and to whom.
	for _, now := range []struct {
		name string
		do   func(l *ladder)
	}{
		{"deleted meanwhile", func(l *ladder) { mustDo(l.deleteUser(ctx, Local, l.ids["manager"], 0)) }},
		{"deactivated meanwhile", admin(edit("manager", func(u *ServiceUser) { u.Active = false }))},
		{"no manager meanwhile", admin(edit("manager", func(u *ServiceUser) { u.Role = access.Member }))},
	} {
		for _, user := range []string{"plain", "reader"} {
			for name, way := range everyWay(user) {
				list = append(list, rung{name: now.name + ", " + name, by: "manager", want: "not allowed", meanwhile: now.do, steps: steps{way}})
			}
		}
		list = append(list, rung{name: now.name + ", create", by: "manager", want: "not allowed", meanwhile: now.do, steps: steps{create(func(*ladder, *ServiceUser) {})}})
	}
	// A foreign group that takes in one who is as nobody can change it.
	for name, condition := range map[string]string{
		"its role": `user.role == "member"`, "its making": `user.created_at > timestamp("2026-01-01T00:00:00Z")`, "its id": `user.id.startsWith("service_")`,
	} {
		foreign := func(l *ladder) {
			must(l.CreateGroup(ctx, Local, Group{Name: "foreign", MemberCondition: condition + ` && user.name != "manager"`}))
		}
		list = append(list,
			rung{name: "taken in by " + name, by: "manager person", want: byGroups, before: foreign, steps: steps{mint("reader", "")}},
			rung{name: "made to be taken in by " + name, by: "manager person", want: byGroups, before: foreign, steps: steps{create(func(*ladder, *ServiceUser) {})}},
		)
	}
	// Every field that a condition can look at.
	for _, f := range []struct {
		field, expression string
		write             func(*ServiceUser) // nil: nobody can
	}{
		{"name", `user.name == "x"`, func(u *ServiceUser) { u.Name = "x" }},
		{"display_name", `user.display_name == "x"`, func(u *ServiceUser) { u.DisplayName = "x" }},
		{"owner", `user.owner == "x"`, func(u *ServiceUser) { u.Owner = "x" }},
		{"alias", `has(user.alias)`, func(u *ServiceUser) { u.Alias = "x" }},
		{"teams", `"ops" in user.teams`, func(u *ServiceUser) { u.Teams = []string{"finance", "ops"} }},
		{"labels", `user.labels[request.method] == "x"`, label("GET", "x")},
		{"labels", `user.labels.x == "x"`, label("x", "x")},
		{"labels", `user.labels["x/y"] == "x"`, label("x/y", "x")},
		{"labels", `user.labels[?"x"].orValue("") == "x"`, label("x", "x")},
		{"labels", `"x" in user.labels`, label("x", "x")},
		{"id", `user.id == "x"`, nil},
		{"created_at", `user.created_at < now`, nil},
		{"role", `user.role == "member"`, nil},
	} {
		rule := addRule("readers", "allow GET /field when "+f.expression)
		if f.write == nil {
			list = append(list, rung{name: "held to its own " + f.field, by: "manager", want: byGroups, before: rule, steps: steps{mint("reader", "")}})
			list = append(list, rung{name: "a person and the field " + f.field, by: "person", want: "ok", before: rule, steps: steps{create(in("readers")), mint("reader", "")}})
			continue
		}
		list = append(list,
			rung{name: "write " + f.expression, by: "person", want: "not allowed " + f.field, before: rule, steps: steps{edit("plain", f.write)}},
			rung{name: "write in the group " + f.expression, by: "person", want: "not allowed " + f.field, before: rule, steps: steps{edit("reader", f.write)}},
			rung{name: "create with " + f.expression, by: "person", want: "not allowed " + f.field, before: rule, steps: steps{create(func(_ *ladder, u *ServiceUser) {
				f.write(u)
			})}},
		)
		if f.field == "teams" { // those of the manager are others already
			list = append(list, rung{name: "held to its own in " + f.expression, by: "manager", want: byGroups, before: rule, steps: steps{mint("reader", "")}})
			continue
		}
		list = append(list, rung{name: "held to its own in " + f.expression, by: "manager", want: byGroups, before: both(rule, admin(edit("reader", f.write))), steps: steps{mint("reader", "")}})
		if f.field != "name" {
			list = append(list, rung{name: "write, then the group, " + f.expression, by: "manager", want: byGroups, before: rule, steps: steps{edit("plain", f.write), join("readers", "plain")}})
		}
	}

	// What they may do, next to it.
	for user, by := range map[string]string{"plain": "manager person bound", "reader": "manager person", "shared": "manager person", "twin": "manager person", "wider": "person", "kin": "bound"} {
		for name, way := range everyWay(user) {
			switch {
			case strings.HasPrefix(name, "strip") && user != "plain" && user != "reader" && user != "shared":
				continue // its labels are read
			case strings.HasPrefix(name, "take") && user == "plain":
				by = strings.TrimSuffix(by, " bound")
			case strings.HasPrefix(name, "move") && user == "shared":
				continue // out of the other team
			}
			list = append(list, rung{name: name, by: by, want: "ok", steps: steps{way}})
		}
	}
	return append(list,
		rung{name: "rename, and write what nobody looks at", by: "manager person", want: "ok", steps: steps{edit("reader", func(u *ServiceUser) {
			u.Name, u.DisplayName, u.Owner, u.Alias, u.AllowedIPs, u.Labels = "other", "x", "x", "x", []string{"10.0.0.0/8"}, map[string]string{"tier": "silver", "env": "test"}
		})}},
		rung{name: "another label of one in the group", by: "manager person", want: "ok", steps: steps{edit("twin", label("note", "x"))}},
		rung{name: "another label whose name begins alike", by: "manager person", want: "ok", steps: steps{edit("twin", label("people2", "x"))}},
		rung{name: "a label that a foreign group looks at", by: "person manager", want: "ok", steps: steps{edit("plain", label("tier", "silver"))}},
		rung{name: "the label that it has itself, then the group", by: "manager", want: "ok", steps: steps{edit("plain", label("people", "1,2")), join("own", "plain"), mint("plain", "")}},
		rung{name: "the label that it has itself with the group", by: "manager", want: "ok", steps: steps{create(func(l *ladder, u *ServiceUser) {
			u.Groups, u.Labels = l.groups("own readers base"), map[string]string{"people": "1,2"}
		})}},
		rung{name: "any label of one who is in no such group", by: "manager", want: "ok", before: addRule("own", `allow GET /any when user.labels.exists(k, k.startsWith("x"))`), steps: steps{edit("reader", label("note", "x"))}},
		rung{name: "any label of one who has none, as the manager", by: "manager", want: "ok",
			before: both(addRule("readers", `allow GET /any when user.labels.exists(k, k.startsWith("x"))`), admin(edit("manager", func(u *ServiceUser) { u.Labels = nil }))), steps: steps{mint("reader", "")}},
		rung{name: "a condition over the request", by: "manager person", want: "ok", before: addRule("readers", `allow GET /v2/{x} when params.x == "1" && request.remote_ip != "" && now > timestamp("2020-01-01T00:00:00Z")`), steps: steps{
			mint("reader", ""), edit("reader", func(u *ServiceUser) { u.Name = "other" }), join("base", "reader"),
		}},
		rung{name: "teams that are the same", by: "manager", want: "ok", before: both(addRule("readers", `allow GET /team when "ops" in user.teams`), admin(edit("reader", func(u *ServiceUser) { u.Teams = []string{"ops", "finance"} }))), steps: steps{mint("reader", "")}},
		rung{name: "a group of its own for one with a foreign team", by: "manager person", want: "ok", steps: steps{join("base", "shared")}},
		rung{name: "into and out of a team of its own", by: "manager person", want: "ok", steps: steps{
			edit("shared", func(u *ServiceUser) { u.Teams = []string{"finance", "hr", "ops"} }), edit("shared", func(u *ServiceUser) { u.Teams = []string{"hr", "ops"} }),
		}},
		rung{name: "create with every group of its own", by: "manager person", want: "ok", steps: steps{create(in("base readers"))}},
		rung{name: "create with nothing", by: "manager person bound", want: "ok", steps: steps{create(func(*ladder, *ServiceUser) {})}},
		rung{name: "create with what refuses it something", by: "bound", want: "ok", steps: steps{create(func(l *ladder, u *ServiceUser) { u.Groups = l.groups("readers closers"); u.Labels["env"] = "prod" })}},
		rung{name: "take what grants, leave what refuses", by: "bound", want: "ok", steps: steps{leave("readers", "kin"), join("readers", "kin")}},
		rung{name: "out of everything", by: "bound", want: "ok", steps: steps{editTo("kin", func(_ *ladder, u *ServiceUser) { u.Groups, u.Labels = nil, nil })}},
		rung{name: "one in doubt, as the manager is", by: "manager", want: "ok", before: func(l *ladder) {
			must(l.CreateGroup(ctx, Local, Group{Name: "hazy", MemberCondition: `user.labels.zone == "eu"`, Rules: rules("deny * /v1/secret", `allow GET /name when user.name == "x"`)}))
			mustDo(l.edit(Local, "manager", label("zone", "us")))
		}, steps: steps{mint("reader", ""), edit("reader", label("zone", "us")), join("base", "reader")}},
		rung{name: "a person and one in doubt", by: "person", want: "ok", before: func(l *ladder) {
			must(l.CreateGroup(ctx, Local, Group{Name: "hazy", MemberCondition: `user.labels.zone == "eu"`, Rules: rules("allow * /v1/secret")}))
		}, steps: steps{mint("reader", ""), edit("reader", label("zone", "us"))}},
		rung{name: "narrow to groups of its own, and to all again", by: "manager person", want: "ok", steps: steps{
			func(l *ladder, by Actor) error {
				return l.editToken(by, "reader", func(k *Token) { k.Groups = l.groups("readers base") })
			},
			func(l *ladder, by Actor) error { return l.editToken(by, "reader", func(k *Token) { k.Groups = nil }) },
		}},
		rung{name: "a token that an admin narrowed to a foreign group", by: "manager person", want: "ok", before: admin(func(l *ladder, by Actor) error {
			return l.editToken(by, "reader", func(k *Token) { k.Groups = l.groups("writers") })
		}), steps: steps{
			func(l *ladder, by Actor) error {
				return l.editToken(by, "reader", func(k *Token) { k.Description = "x" })
			},
			func(l *ladder, by Actor) error {
				return second(l.refreshOf(ctx, by, l.ids["reader"], l.tokens["reader"].ID, 0))
			},
		}},
		rung{name: "an admin meanwhile", by: "manager", want: "ok", meanwhile: admin(edit("manager", func(u *ServiceUser) { u.Role = access.Admin })), steps: steps{mint("reader", "")}},
	)
}

func TestClimbs(t *testing.T) {
	t.Parallel()
	l, first := newLadder(t)
	fresh := func(t *testing.T, opts Options) *ladder {
		return &ladder{open(t, clone(t, first), opts), maps.Clone(l.ids), l.tokens}
	}
	// The store of rungs whose only step is refused stays as it was: at the time of its clock, nothing is purged.
	clock := newClock()
	clock.add(time.Minute)
	refusing := fresh(t, Options{Now: clock.Now})
	for _, r := range rungs() {
		for _, by := range strings.Fields(r.by) {
			t.Run(by+", "+r.name, func(t *testing.T) {
				l := refusing
				if r.before != nil || r.meanwhile != nil || len(r.steps) > 1 || r.want == "ok" {
					t.Parallel()
					l = fresh(t, Options{})
				}
				if r.before != nil {
					r.before(l)
				}
				mustDo(l.refresh(ctx))
				actor := l.actor(by)
				if r.meanwhile != nil {
					r.meanwhile(l)
				}
				for i, step := range r.steps {
					before, revision := dump(t, l.Store), l.Directory().Revision()
					want := "ok"
					if i == len(r.steps)-1 {
						want = r.want
					}
					err := step(l, actor)
					if got := kind(err); got != want {
						t.Fatalf("step %d: got %s (%v), want %s", i+1, got, err, want)
					}
					if err != nil {
						same(t, "rows", dump(t, l.Store), before)
						if got := l.Directory().Revision(); got != revision {
							t.Errorf("revision: got %d, want %d", got, revision)
						}
					} else if e := must(l.trail(ctx, "", 0, 1))[0]; l.Directory().Revision() != revision+1 || e.Actor != actor.Name {
						t.Errorf("step %d: got revision %d by %s, want %d by %s", i+1, l.Directory().Revision(), e.Actor, revision+1, actor.Name)
					}
				}
			})
		}
	}
}

// A refusal does not tell a group that a manager does not hold from one that does
// not exist, or does no longer.
func TestRefusalTellsNothing(t *testing.T) {
	l, first := newLadder(t)
	l.Store = open(t, clone(t, first), Options{})
	for name, way := range map[string]func(by Actor, group string) error{
		"create": func(by Actor, g string) error {
			return l.create(by, ServiceUser{Profile: access.Profile{Name: "n"}, Groups: []string{g}}, Token{})
		},
		"update": func(by Actor, g string) error {
			return l.edit(by, "reader", func(u *ServiceUser) { u.Groups = append(u.Groups, g) })
		},
		"first token": func(by Actor, g string) error {
			return l.create(by, ServiceUser{Profile: access.Profile{Name: "n"}}, Token{Groups: []string{g}})
		},
		"token": func(by Actor, g string) error {
			return second(l.CreateToken(ctx, by, l.ids["reader"], Token{Groups: []string{g}}))
		},
		"narrow": func(by Actor, g string) error {
			return l.editToken(by, "reader", func(k *Token) { k.Groups = []string{g} })
		},
		"add":           func(by Actor, g string) error { return l.AddMember(ctx, by, g, l.ids["reader"]) },
		"remove":        func(by Actor, g string) error { return l.RemoveMember(ctx, by, g, l.ids["writer"]) },
		"remove itself": func(by Actor, g string) error { return l.RemoveMember(ctx, by, g, l.ids["reader"]) },
		"read":          func(by Actor, g string) error { return second(l.Group(ctx, by, g)) },
		"members":       func(by Actor, g string) error { return third(l.Members(ctx, by, g, "", 10)) },
		"change": func(by Actor, g string) error {
			return second(l.UpdateGroup(ctx, by, g, 7, func(g *Group) error { g.Name = "readers"; return nil }))
		},
		"delete":        func(by Actor, g string) error { return l.DeleteGroup(ctx, by, g, 7) },
		"add a rule":    func(by Actor, g string) error { return second(l.AddRule(ctx, by, g, access.Rule{})) },
		"remove a rule": func(by Actor, g string) error { return l.RemoveRule(ctx, by, g, "rule_x") },
		"give":          func(by Actor, g string) error { return l.GrantPermission(ctx, by, g, "p") },
		"withdraw":      func(by Actor, g string) error { return l.WithdrawPermission(ctx, by, g, "x") },
	} {
		for _, by := range []string{"manager", "person"} {
			told := func(group string) string {
				err := way(l.actor(by), l.ids[group])
				return strings.ReplaceAll(kind(err)+": "+fmt.Sprint(err), l.ids[group], "GROUP")
			}
			want := told("nogroup")
			if !strings.HasPrefix(want, "not ") {
				t.Errorf("%s by the %s: got %s, want a refusal", name, by, want)
			}
			for _, group := range []string{"writers", "closers", "gold", "gone"} {
				if got := told(group); got != want {
					t.Errorf("%s of %s by the %s: got %s, of none %s", name, group, by, got, want)
				}
			}
		}
	}
	// Nor does a list.
	for _, name := range []string{"writers", "nothing"} {
		for _, by := range []string{"manager", "person"} {
			if list, more, err := l.Groups(ctx, l.actor(by), name, "", 10); len(list) != 0 || more || err != nil {
				t.Errorf("the group %s by the %s: got %v, %t, %v", name, by, list, more, err)
			}
		}
	}
}
