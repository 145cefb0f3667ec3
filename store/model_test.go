package store

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/serviceusers/caddy-service-users/access"
)

// model is what a store should be, in the simplest words.
type model struct {
	now         int64
	users       map[string]*modelUser
	groups      map[string]*modelGroup
	permissions map[string][]string // rules by key
}

type modelUser struct {
	name    string
	env     string // the label; "" is none
	active  bool
	expires int64 // 0 is never
	groups  map[string]bool
	tokens  map[string]*modelToken
}

type modelToken struct {
	secret  string
	revoked bool
	ends    int64 // 0 is never
	narrow  []string
}

type modelGroup struct {
	name        string
	observe     bool
	condition   string
	rules       []string
	permissions []string
}

// decide answers a request for the model. Rules and requests come from a small
// stock, for which covers is written out.
func (m *model) decide(user, token, action string) access.Reason {
	u := m.users[user]
	if u == nil {
		return access.UnknownID
	}
	k := u.tokens[token]
	switch {
	case k.revoked:
		return access.TokenRevoked
	case !u.active:
		return access.UserInactive
	case u.expires != 0 && m.now >= u.expires:
		return access.UserExpired
	case k.ends != 0 && m.now >= k.ends:
		return access.TokenExpired
	}
	answer := access.NoRule
	for id, g := range m.groups {
		member, doubt := m.member(u, id)
		if g.name == modelDefault {
			member = true
		}
		if g.observe || !member && !doubt {
			continue
		}
		list := slices.Clone(g.rules)
		for _, key := range g.permissions {
			list = append(list, m.permissions[key]...)
		}
		for _, r := range list {
			target, condition, _ := strings.Cut(r, " when ")
			holds, doubtful := evaluate(condition, u)
			switch deny := strings.HasPrefix(r, "deny"); {
			case !slices.Contains(covers[target], action):
			case deny && (holds || doubtful):
				return access.DeniedByRule
			case !deny && holds && member && (len(k.narrow) == 0 || slices.Contains(k.narrow, id)):
				answer = access.Granted
			}
		}
	}
	return answer
}

// member reports whether a service user is in a group, by name or by condition,
// or whether that cannot be said.
func (m *model) member(u *modelUser, group string) (member, doubt bool) {
	if u.groups[group] {
		return true, false
	}
	if condition := m.groups[group].condition; condition != "" {
		return evaluate(condition, u)
	}
	return false, false
}

// conditions are all that the model knows.
var conditions = []string{"", `user.labels.env == "a"`, `user.labels.env != "a"`, `has(user.labels.env)`, `user.name == "a"`, `!(user.name in ["a", "b"])`}

func evaluate(condition string, u *modelUser) (holds, doubt bool) {
	switch condition {
	case "":
		return true, false
	case conditions[1]:
		return u.env == "a", u.env == ""
	case conditions[2]:
		return u.env != "a" && u.env != "", u.env == ""
	case conditions[3]:
		return u.env != "", false
	case conditions[4]:
		return u.name == "a", false
	case conditions[5]:
		return u.name != "a" && u.name != "b", false
	}
	panic("the model does not know " + condition)
}

const modelDefault = "everyone"

var actions = []string{"GET /a", "GET /b", "POST /a", "DELETE /a/b"}

// covers says which of the actions each rule is about, apart from its condition.
var covers = map[string][]string{
	"allow GET /a":           {"GET /a"},
	"allow POST,DELETE /{x}": {"POST /a"},
	"allow * /{rest...}":     actions,
	"allow GET /{x}":         {"GET /a", "GET /b"},
	"allow DELETE /a/{x}":    {"DELETE /a/b"},
	"deny POST /a":           {"POST /a"},
	"deny GET /b":            {"GET /b"},
	"deny * /a/{rest...}":    {"GET /a", "POST /a", "DELETE /a/b"},
}

// The store does what the model does, whatever is done to it in whatever order;
// another store on the same file, and one that is opened again, agree.
func TestModel(t *testing.T) {
	t.Parallel()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		mustDo(flag.Set("rapid.checks", "15"))
	}
	dir := t.TempDir()
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		path, clock := filepath.Join(dir, fmt.Sprint(run)), newClock()
		// A nanosecond passes at every look, so that ids sort as they were made and
		// the same draws do the same.
		now := func() time.Time { clock.add(1); return clock.Now() }
		opts := Options{Now: now, DefaultGroup: modelDefault, TokenTTL: time.Hour, Poll: time.Millisecond}
		s, other := must(Open(ctx, path, opts)), must(Open(ctx, path, opts))
		defer func() { mustDo(s.Close()); mustDo(other.Close()); mustDo(os.Remove(path)) }()
		m := &model{clock.Now().Unix(), make(map[string]*modelUser), make(map[string]*modelGroup), make(map[string][]string)}

		pick := func(t *rapid.T, from []string, what string) string {
			if len(from) == 0 {
				t.Skip("there is no " + what)
			}
			slices.Sort(from)
			return rapid.SampledFrom(from).Draw(t, what)
		}
		pickUser := func(t *rapid.T) string { return pick(t, slices.Collect(maps.Keys(m.users)), "service user") }
		pickGroup := func(t *rapid.T) string { return pick(t, slices.Collect(maps.Keys(m.groups)), "group") }
		pickToken := func(t *rapid.T) (string, string) {
			user := pickUser(t)
			return user, pick(t, slices.Collect(maps.Keys(m.users[user].tokens)), "token")
		}
		drawName := rapid.SampledFrom([]string{"a", "b", "c", modelDefault})
		drawEnv := rapid.SampledFrom([]string{"", "a", "b"})
		labels := func(env string) map[string]string {
			if env == "" {
				return nil
			}
			return map[string]string{"env": env}
		}
		drawCondition := rapid.SampledFrom(conditions)
		drawRule := rapid.Custom(func(t *rapid.T) string {
			rule := rapid.SampledFrom(slices.Sorted(maps.Keys(covers))).Draw(t, "rule")
			if when := drawCondition.Draw(t, "when"); when != "" {
				rule += " when " + when
			}
			return rule
		})
		drawRules := func(t *rapid.T) []string { return rapid.SliceOfN(drawRule, 0, 3).Draw(t, "rules") }
		drawPermissions := func(t *rapid.T) []string {
			return slices.DeleteFunc(slices.Sorted(maps.Keys(m.permissions)), func(key string) bool { return !rapid.Bool().Draw(t, "with "+key) })
		}
		given := func(key string) bool {
			for _, g := range m.groups {
				if slices.Contains(g.permissions, key) {
					return true
				}
			}
			return false
		}
		drawGroups := func(t *rapid.T) []string {
			return slices.DeleteFunc(slices.Sorted(maps.Keys(m.groups)), func(id string) bool { return !rapid.Bool().Draw(t, "with "+m.groups[id].name) })
		}
		taken := func(name, but string) bool {
			for id, u := range m.users {
				if u.name == name && id != but {
					return true
				}
			}
			return false
		}
		groupTaken := func(name, but string) bool {
			for id, g := range m.groups {
				if g.name == name && id != but {
					return true
				}
			}
			return false
		}
		ok := func(err error, conflict bool) bool {
			if got := kind(err); got != "ok" && !(conflict && (got == "conflict name" || got == "conflict: taken name")) || conflict && err == nil {
				t.Fatalf("got %s, want a conflict: %t", got, conflict)
			}
			return err == nil
		}
		writer := func(t *rapid.T) *Store { // either may write
			if rapid.Bool().Draw(t, "by the other store") {
				s, other = other, s
			}
			return s
		}
		ttl := func() int64 { return m.now + int64(opts.TokenTTL/time.Second) }

		t.Repeat(map[string]func(*rapid.T){
			"create service user": func(t *rapid.T) {
				name, env, groups, active := drawName.Draw(t, "name"), drawEnv.Draw(t, "env"), drawGroups(t), rapid.Bool().Draw(t, "active")
				u, token, err := writer(t).CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: name, Labels: labels(env), Active: active}, Groups: groups}, &Token{})
				if ok(err, taken(name, "")) {
					made := &modelUser{name, env, active, 0, make(map[string]bool), map[string]*modelToken{token.ID: {secret: token.Secret, ends: ttl()}}}
					for _, g := range groups {
						made.groups[g] = true
					}
					m.users[u.ID] = made
				}
			},
			"update service user": func(t *rapid.T) {
				id, name, env, active, groups := pickUser(t), drawName.Draw(t, "name"), drawEnv.Draw(t, "env"), rapid.Bool().Draw(t, "active"), drawGroups(t)
				life := int64(rapid.IntRange(1, 100).Draw(t, "life"))
				_, err := writer(t).UpdateServiceUser(ctx, Local, id, 0, func(u *ServiceUser) error {
					u.Name, u.Labels, u.Active, u.Groups, u.ExpiresAt = name, labels(env), active, groups, time.Unix(m.now+life, 0)
					return nil
				})
				if ok(err, taken(name, id)) {
					u := m.users[id]
					u.name, u.env, u.active, u.expires, u.groups = name, env, active, m.now+life, make(map[string]bool)
					for _, g := range groups {
						u.groups[g] = true
					}
				}
			},
			"delete service user": func(t *rapid.T) {
				id := pickUser(t)
				ok(writer(t).deleteUser(ctx, Local, id, 0), false)
				delete(m.users, id)
			},
			"create token": func(t *rapid.T) {
				user, narrow := pickUser(t), drawGroups(t)
				token, err := writer(t).CreateToken(ctx, Local, user, Token{Groups: narrow})
				ok(err, false)
				m.users[user].tokens[token.ID] = &modelToken{token.Secret, false, ttl(), narrow}
			},
			"revoke token": func(t *rapid.T) {
				user, id := pickToken(t)
				ok(writer(t).revoke(ctx, Local, user, id), false)
				m.users[user].tokens[id].revoked = true
			},
			"refresh token": func(t *rapid.T) {
				user, id := pickToken(t)
				old, grace := m.users[user].tokens[id], int64(rapid.IntRange(0, 100).Draw(t, "grace"))
				token, err := writer(t).refreshOf(ctx, Local, user, id, time.Duration(grace)*time.Second)
				if kind(err) == "conflict" {
					t.Skip("it has ended")
				}
				ok(err, false)
				m.users[user].tokens[token.ID] = &modelToken{token.Secret, false, ttl(), old.narrow}
				if grace == 0 || m.now >= old.ends {
					old.revoked = true
				} else {
					old.ends = min(old.ends, m.now+grace)
				}
			},
			"create group": func(t *rapid.T) {
				name, condition, texts, keys := drawName.Draw(t, "name"), drawCondition.Draw(t, "condition"), drawRules(t), drawPermissions(t)
				g, err := writer(t).CreateGroup(ctx, Local, Group{Name: name, MemberCondition: condition, Rules: rules(texts...), Permissions: keys})
				if ok(err, groupTaken(name, "")) {
					m.groups[g.ID] = &modelGroup{name, false, condition, texts, keys}
				}
			},
			"update group": func(t *rapid.T) {
				id, name, texts, observe := pickGroup(t), drawName.Draw(t, "name"), drawRules(t), rapid.Bool().Draw(t, "observe")
				condition, keys := drawCondition.Draw(t, "condition"), drawPermissions(t)
				_, err := writer(t).UpdateGroup(ctx, Local, id, 0, func(g *Group) error {
					g.Name, g.Rules, g.Mode, g.MemberCondition, g.Permissions = name, rules(texts...), access.Enforce, condition, keys
					if observe {
						g.Mode = access.Observe
					}
					return nil
				})
				if ok(err, groupTaken(name, id)) {
					m.groups[id] = &modelGroup{name, observe, condition, texts, keys}
				}
			},
			"delete group": func(t *rapid.T) {
				id := pickGroup(t)
				ok(writer(t).DeleteGroup(ctx, Local, id, 0), false)
				delete(m.groups, id)
				for _, u := range m.users {
					delete(u.groups, id)
				}
			},
			"add rule": func(t *rapid.T) {
				id, text := pickGroup(t), drawRule.Draw(t, "rule")
				_, err := writer(t).AddRule(ctx, Local, id, rules(text)[0])
				ok(err, false)
				m.groups[id].rules = append(m.groups[id].rules, text)
			},
			"remove rule": func(t *rapid.T) {
				id := pickGroup(t)
				list := must(s.Group(ctx, Local, id)).Rules
				if len(list) == 0 {
					t.Skip("there is no rule")
				}
				i := rapid.IntRange(0, len(list)-1).Draw(t, "rule")
				ok(writer(t).RemoveRule(ctx, Local, id, list[i].ID), false)
				m.groups[id].rules = slices.Delete(slices.Clone(m.groups[id].rules), i, i+1)
			},
			"add member": func(t *rapid.T) {
				group, user := pickGroup(t), pickUser(t)
				ok(writer(t).AddMember(ctx, Local, group, user), false)
				m.users[user].groups[group] = true
			},
			"remove member": func(t *rapid.T) {
				group, user := pickGroup(t), pickUser(t)
				ok(writer(t).RemoveMember(ctx, Local, group, user), false)
				delete(m.users[user].groups, group)
			},
			"load permissions": func(t *rapid.T) {
				next, replace, stuck := make(map[string][]string), rapid.Bool().Draw(t, "replace"), false
				var list []Permission
				for _, key := range []string{"p", "q", "r"} {
					if rapid.Bool().Draw(t, "with "+key) {
						next[key] = append(drawRules(t), drawRule.Draw(t, "last rule"))
						list = append(list, permission(key, next[key]...))
					} else if old, known := m.permissions[key]; known && !replace {
						next[key] = old
					} else {
						stuck = stuck || known && given(key)
					}
				}
				_, err := writer(t).LoadPermissions(ctx, Local, list, replace)
				if got := kind(err); stuck != (got == "conflict permissions") || !stuck && err != nil {
					t.Fatalf("got %v, want a conflict: %t", err, stuck)
				}
				if !stuck {
					m.permissions = next
				}
			},
			"give or withdraw a permission": func(t *rapid.T) {
				id, key := pickGroup(t), pick(t, slices.Collect(maps.Keys(m.permissions)), "permission")
				if g := m.groups[id]; slices.Contains(g.permissions, key) {
					ok(writer(t).WithdrawPermission(ctx, Local, id, key), false)
					g.permissions = slices.DeleteFunc(slices.Clone(g.permissions), func(k string) bool { return k == key })
				} else {
					ok(writer(t).GrantPermission(ctx, Local, id, key), false)
					g.permissions = append(slices.Clone(g.permissions), key)
				}
			},
			"delete a permission": func(t *rapid.T) {
				key := pick(t, slices.Collect(maps.Keys(m.permissions)), "permission")
				if got, want := kind(writer(t).DeletePermission(ctx, Local, key)), given(key); want != (got == "conflict permissions") || !want && got != "ok" {
					t.Fatalf("got %s, want a conflict: %t", got, want)
				}
				if !given(key) {
					delete(m.permissions, key)
				}
			},
			"time passes": func(t *rapid.T) {
				seconds := rapid.IntRange(1, 60).Draw(t, "seconds")
				clock.add(time.Duration(seconds) * time.Second)
				m.now += int64(seconds)
			},
			"": func(t *rapid.T) {
				eventually(t, "every change", func() bool { return s.Directory().Revision() >= other.Directory().Revision() })
				for user, u := range m.users {
					for token, k := range u.tokens {
						for _, action := range actions {
							if got, want := probe(s, user, k.secret, action), m.decide(user, token, action); got != want {
								t.Fatalf("%s by %s of %s: got %v, want %v", action, token, user, got, want)
							}
						}
					}
				}
				for id := range m.groups {
					members := 0
					for _, u := range m.users {
						if in, _ := m.member(u, id); in {
							members++
						}
					}
					if got := s.Directory().MemberCount(id); got != members {
						t.Fatalf("members of %s: got %d, want %d", m.groups[id].name, got, members)
					}
				}
				if got := s.Directory().Len(); got != len(m.users) {
					t.Fatalf("service users: got %d, want %d", got, len(m.users))
				}
			},
		})
		again := must(Open(ctx, path, opts))
		defer again.Close()
		want := dirText(t, again)
		for _, running := range []*Store{s, other} {
			eventually(t, "the directory of a store that is opened again", func() bool { return dirText(t, running) == want })
		}
	})
}
