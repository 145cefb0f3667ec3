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
	now    int64
	users  map[string]*modelUser
	groups map[string]*modelGroup
}

type modelUser struct {
	name    string
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
	name    string
	observe bool
	rules   []string
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
		if g.observe || !u.groups[id] && g.name != modelDefault {
			continue
		}
		for _, r := range g.rules {
			switch deny := strings.HasPrefix(r, "deny"); {
			case !slices.Contains(covers[r], action):
			case deny:
				return access.DeniedByRule
			case len(k.narrow) == 0 || slices.Contains(k.narrow, id):
				answer = access.Granted
			}
		}
	}
	return answer
}

const modelDefault = "everyone"

var actions = []string{"GET /a", "GET /b", "POST /a", "DELETE /a/b"}

// covers says which of the actions each rule is about.
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
		mustDo(flag.Set("rapid.checks", "30"))
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
		m := &model{clock.Now().Unix(), make(map[string]*modelUser), make(map[string]*modelGroup)}

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
		drawRules := func(t *rapid.T) []string {
			return rapid.SliceOfN(rapid.SampledFrom(slices.Sorted(maps.Keys(covers))), 0, 3).Draw(t, "rules")
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
			if got := kind(err); got != "ok" && !(conflict && got == "conflict name") || conflict && err == nil {
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
				name, groups, active := drawName.Draw(t, "name"), drawGroups(t), rapid.Bool().Draw(t, "active")
				u, token, err := writer(t).CreateServiceUser(ctx, Local, ServiceUser{Name: name, Active: active, Groups: groups}, &NewToken{})
				if ok(err, taken(name, "")) {
					made := &modelUser{name, active, 0, make(map[string]bool), map[string]*modelToken{token.ID: {secret: token.Secret, ends: ttl()}}}
					for _, g := range groups {
						made.groups[g] = true
					}
					m.users[u.ID] = made
				}
			},
			"update service user": func(t *rapid.T) {
				id, name, active, groups := pickUser(t), drawName.Draw(t, "name"), rapid.Bool().Draw(t, "active"), drawGroups(t)
				life := int64(rapid.IntRange(1, 100).Draw(t, "life"))
				_, err := writer(t).UpdateServiceUser(ctx, Local, id, 0, func(u *ServiceUser) error {
					u.Name, u.Active, u.Groups, u.ExpiresAt = name, active, groups, time.Unix(m.now+life, 0)
					return nil
				})
				if ok(err, taken(name, id)) {
					u := m.users[id]
					u.name, u.active, u.expires, u.groups = name, active, m.now+life, make(map[string]bool)
					for _, g := range groups {
						u.groups[g] = true
					}
				}
			},
			"delete service user": func(t *rapid.T) {
				id := pickUser(t)
				ok(writer(t).DeleteServiceUser(ctx, Local, id, 0), false)
				delete(m.users, id)
			},
			"create token": func(t *rapid.T) {
				user, narrow := pickUser(t), drawGroups(t)
				token, err := writer(t).CreateToken(ctx, Local, user, NewToken{Groups: narrow})
				ok(err, false)
				m.users[user].tokens[token.ID] = &modelToken{token.Secret, false, ttl(), narrow}
			},
			"revoke token": func(t *rapid.T) {
				user, id := pickToken(t)
				ok(writer(t).RevokeToken(ctx, Local, user, id), false)
				m.users[user].tokens[id].revoked = true
			},
			"refresh token": func(t *rapid.T) {
				user, id := pickToken(t)
				old, grace := m.users[user].tokens[id], int64(rapid.IntRange(0, 100).Draw(t, "grace"))
				token, err := writer(t).RefreshToken(ctx, Local, user, id, time.Duration(grace)*time.Second)
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
				name, texts := drawName.Draw(t, "name"), drawRules(t)
				g, err := writer(t).CreateGroup(ctx, Local, Group{Name: name, Rules: rules(texts...)})
				if ok(err, groupTaken(name, "")) {
					m.groups[g.ID] = &modelGroup{name, false, texts}
				}
			},
			"update group": func(t *rapid.T) {
				id, name, texts, observe := pickGroup(t), drawName.Draw(t, "name"), drawRules(t), rapid.Bool().Draw(t, "observe")
				_, err := writer(t).UpdateGroup(ctx, Local, id, 0, func(g *Group) error {
					g.Name, g.Rules, g.Mode = name, rules(texts...), access.Enforce
					if observe {
						g.Mode = access.Observe
					}
					return nil
				})
				if ok(err, groupTaken(name, id)) {
					m.groups[id] = &modelGroup{name, observe, texts}
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
				id, text := pickGroup(t), rapid.SampledFrom(slices.Sorted(maps.Keys(covers))).Draw(t, "rule")
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
