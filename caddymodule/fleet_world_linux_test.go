//go:build linux

package caddymodule

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/internal/oracle"
)

// fleetWorld is the content of a store after some changes. Service users and tokens stay at their places.
type fleetWorld struct {
	groups []fleetGroup
	users  []fleetUser
}

type fleetGroup struct {
	oracle.Group
	deleted bool
	former  []int // the members by name at the deletion
}

type fleetUser struct {
	oracle.User
	id              string
	active, deleted bool
	tokens          []fleetToken
}

type fleetToken struct {
	id, secret string
	narrowed   []string
	ended      bool // revoked, or refreshed without a grace
	replaced   bool // refreshed with a grace
	rotations  int  // by which it came to be
}

func (w fleetWorld) clone() fleetWorld {
	w.groups, w.users = slices.Clone(w.groups), slices.Clone(w.users)
	for i := range w.users {
		w.users[i].tokens = slices.Clone(w.users[i].tokens)
	}
	return w
}

// status is the answer to a request with a token of a service user. There may be no such yet.
func (w fleetWorld) status(user, token int, a oracle.Action) int {
	if user >= len(w.users) || token >= len(w.users[user].tokens) {
		return http.StatusUnauthorized
	}
	u := w.users[user]
	k := u.tokens[token]
	if u.deleted || !u.active || k.ended {
		return http.StatusUnauthorized
	}
	rules := oracle.World{DefaultGroup: fleetDefault}
	for _, g := range w.groups {
		if !g.deleted {
			rules.Groups = append(rules.Groups, g.Group)
		}
	}
	if rules.Decide(u.User, k.narrowed, a).Verdict == oracle.Granted {
		return http.StatusOK
	}
	return http.StatusForbidden
}

const fleetDefault = "everyone"

// one draws one of some.
func one[T any](draw *rand.Rand, of ...T) T { return of[draw.IntN(len(of))] }

// drawFleetAction draws a request that no check before the rules refuses.
func drawFleetAction(draw *rand.Rand) oracle.Action {
	for {
		path := "/"
		for range draw.IntN(4) {
			path += one(draw, "a", "a", "a", "A", "é", "a b", "3", "7") + "/"
		}
		if path != "/" && draw.IntN(2) == 0 {
			path = strings.TrimSuffix(path, "/")
		}
		a := oracle.Action{
			Method: one(draw, "GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS", "PROPFIND", "PURGE"),
			Host:   one(draw, "h.example", "h.example", "x.h.example", "x.h.example", "y.x.h.example", "xh.example"),
			Path:   path, Address: netip.MustParseAddr("127.0.0.1"), Now: time.Now().Unix(),
			Header: one(draw, nil, map[string][]string{"X-Env": {"prod"}}, map[string][]string{"X-Env": {"prod", "test"}}),
		}
		if _, problem := access.Judge(a.Method, a.Host, (&url.URL{Path: path}).EscapedPath(), 0); problem.OK() {
			return a
		}
	}
}

func drawFleetRule(draw *rand.Rand) oracle.Rule {
	if draw.IntN(2) == 0 {
		return oracle.Rule{Methods: []string{"*"}, Path: "/{rest...}"}
	}
	r := oracle.Rule{
		Deny: draw.IntN(3) == 0, Host: one(draw, "", "h.example", "x.h.example", "*.h.example"),
		Methods: one(draw, []string{"*"}, []string{"GET"}, []string{"HEAD"}, []string{"POST"}, []string{"PROPFIND"}, []string{"GET", "PURGE"}, []string{"DELETE", "OPTIONS"}),
	}
	for i := range draw.IntN(3) {
		r.Path += "/" + one(draw, "a", "a", "a", "A", "é", fmt.Sprintf("{p%d}", i), fmt.Sprintf("{p%d}", i))
	}
	if r.Path += one(draw, "/", "", "", "/{rest...}"); r.Path == "" {
		r.Path = "/"
	}
	if draw.IntN(3) == 0 {
		r.When = one(draw, oracle.Whens...).Text
		if strings.Contains(r.When, "params.p0") && !strings.Contains(r.Path, "{p0}") || strings.Contains(r.When, "params.rest") && !strings.Contains(r.Path, "{rest...}") {
			r.When = ""
		}
	}
	return r
}

func drawFleetRules(draw *rand.Rand) (rules []oracle.Rule) {
	for range 1 + draw.IntN(4) {
		rules = append(rules, drawFleetRule(draw))
	}
	return rules
}

func ruleInputs(rules []oracle.Rule) (in []admin.RuleInput) {
	for _, r := range rules {
		effect := access.Allow
		if r.Deny {
			effect = access.Deny
		}
		in = append(in, admin.RuleInput{Effect: effect, Methods: r.Methods, Host: r.Host, Path: r.Path, When: r.When})
	}
	return in
}

func mode(observe bool) access.Mode {
	if observe {
		return access.Observe
	}
	return access.Enforce
}

// drawSome draws the ids of some groups that are there.
func (w *fleetWorld) drawSome(draw *rand.Rand) (ids []string) {
	for _, g := range w.groups {
		if !g.deleted && draw.IntN(3) == 0 {
			ids = append(ids, g.ID)
		}
	}
	return ids
}

// drawProfile draws the fields that rules look at.
func (w *fleetWorld) drawProfile(draw *rand.Rand) (u oracle.User, in admin.ServiceUserInput) {
	u = oracle.User{
		Manager: draw.IntN(2) == 0, Teams: one(draw, nil, []string{"ops"}, []string{"dev", "ops"}), Groups: w.drawSome(draw),
		Labels: maps.Clone(one(draw, nil, map[string]string{"env": "prod"}, map[string]string{"env": "prod", "home": "a"}, map[string]string{"env": "test", "level": "2"}, map[string]string{"home": "b", "level": "0"}, map[string]string{"level": "high"})),
	}
	role := access.Member
	if u.Manager {
		role = access.Manager
	}
	in = admin.ServiceUserInput{
		Role: admin.Some(role), Teams: admin.Some(u.Teams), Labels: admin.Some(u.Labels), PermissionGroups: admin.Some(u.Groups),
	}
	return u, in
}

// fleetStep is a change. plan has made it in the newest world already, but for the ids and secrets that the
// answer has.
type fleetStep struct {
	text string
	user int // whom it concerns; -1 is all
	send func(f *fleet, n *fleetNode) error
}

const (
	fleetUsers  = 6
	fleetGroups = 5
)

// planForAll draws a change of a group.
func (w *fleetWorld) planForAll(draw *rand.Rand) *fleetStep {
	there := len(w.groups)
	for _, g := range w.groups {
		if g.deleted {
			there--
		}
	}
	if there == 0 || there < fleetGroups && draw.IntN(4) == 0 {
		i := len(w.groups)
		g := oracle.Group{Name: fmt.Sprint("g", i), Observe: draw.IntN(3) == 0, Rules: drawFleetRules(draw)}
		if i == 0 {
			g.Name = fleetDefault
		}
		if draw.IntN(2) == 0 {
			g.Condition = one(draw, oracle.Memberships...).Text
		}
		g.ID = "the new group"
		w.groups = append(w.groups, fleetGroup{Group: g})
		return &fleetStep{fmt.Sprintf("create group %s: %+v", g.Name, g), -1, func(f *fleet, n *fleetNode) error {
			in := admin.GroupInput{
				Name: admin.Some(g.Name), Mode: admin.Some(mode(g.Observe)), MemberCondition: admin.Some(g.Condition), Rules: admin.Some(ruleInputs(g.Rules)),
			}
			var out admin.Group
			err := f.change(n, "POST", "/permission_groups", in, &out)
			f.newest(func(w *fleetWorld) { w.groups[i].ID = out.ID })
			return err
		}}
	}
	i := draw.IntN(len(w.groups))
	g := &w.groups[i]
	at := "/permission_groups/" + g.ID
	patch := func(text string, in admin.GroupInput) *fleetStep {
		return &fleetStep{fmt.Sprintf("%s of %s: %+v", text, g.Name, g.Group), -1, func(f *fleet, n *fleetNode) error {
			return f.change(n, "PATCH", at, in, nil)
		}}
	}
	if g.deleted {
		g.deleted = false
		for _, n := range g.former {
			w.users[n].Groups = append(slices.Clone(w.users[n].Groups), g.ID)
		}
		return &fleetStep{"undelete group " + g.Name, -1, func(f *fleet, n *fleetNode) error {
			return f.change(n, "POST", at+"/undelete", nil, nil)
		}}
	}
	switch draw.IntN(6) {
	case 0:
		g.Observe = !g.Observe
		return patch("mode", admin.GroupInput{Mode: admin.Some(mode(g.Observe))})
	case 1:
		g.Condition = one(draw, oracle.Memberships...).Text
		return patch("condition", admin.GroupInput{MemberCondition: admin.Some(g.Condition)})
	case 2:
		g.deleted, g.former = true, nil
		for n := range w.users {
			u := &w.users[n]
			if slices.Contains(u.Groups, g.ID) {
				g.former = append(g.former, n)
				u.Groups = slices.DeleteFunc(slices.Clone(u.Groups), func(id string) bool { return id == g.ID })
			}
		}
		return &fleetStep{"delete group " + g.Name, -1, func(f *fleet, n *fleetNode) error {
			return f.change(n, "DELETE", at, nil, nil)
		}}
	case 3:
		r := drawFleetRule(draw)
		g.Rules = append(slices.Clone(g.Rules), r)
		return &fleetStep{fmt.Sprintf("add rule to %s: %+v", g.Name, r), -1, func(f *fleet, n *fleetNode) error {
			return f.change(n, "POST", at+"/rules", ruleInputs([]oracle.Rule{r})[0], nil)
		}}
	default:
		g.Rules = drawFleetRules(draw)
		return patch("rules", admin.GroupInput{Rules: admin.Some(ruleInputs(g.Rules))})
	}
}

// planForOne draws a change of a service user that no other change concerns at the same time.
func (w *fleetWorld) planForOne(draw *rand.Rand, busy map[int]bool) *fleetStep {
	i := draw.IntN(fleetUsers)
	if i >= len(w.users) {
		return w.planUser(draw)
	}
	if busy[i] {
		return nil
	}
	u := &w.users[i]
	at := "/service_users/" + u.id
	step := func(text, method, path string, in any) *fleetStep {
		return &fleetStep{fmt.Sprintf("%s of user %d", text, i), i, func(f *fleet, n *fleetNode) error {
			return f.change(n, method, path, in, nil)
		}}
	}
	if u.deleted {
		u.deleted, u.active = false, false
		return step("undelete", "POST", at+"/undelete", nil)
	}
	if !u.active && draw.IntN(2) == 0 {
		u.active = true
		return step("reactivate", "PATCH", at, admin.ServiceUserInput{Active: admin.Some(true)})
	}
	switch draw.IntN(12) {
	case 0:
		u.active = false
		return step("deactivate", "PATCH", at, admin.ServiceUserInput{Active: admin.Some(false)})
	case 1:
		u.deleted = true
		return step("delete", "DELETE", at, nil)
	case 2, 3:
		var in admin.ServiceUserInput
		u.User, in = w.drawProfile(draw)
		return step(fmt.Sprintf("profile: %+v", u.User), "PATCH", at, in)
	case 4, 5:
		g := w.groups[draw.IntN(len(w.groups))]
		if g.deleted {
			return nil
		}
		path := "/permission_groups/" + g.ID + "/members/" + u.id
		if slices.Contains(u.Groups, g.ID) {
			u.Groups = slices.DeleteFunc(slices.Clone(u.Groups), func(id string) bool { return id == g.ID })
			return step("end of membership in "+g.Name, "DELETE", path, nil)
		}
		u.Groups = append(slices.Clone(u.Groups), g.ID)
		return step("membership in "+g.Name, "PUT", path, nil)
	case 6, 7:
		return w.planToken(draw, i)
	}
	var live []int
	for n, k := range u.tokens {
		if !k.ended {
			live = append(live, n)
		}
	}
	if len(live) == 0 {
		return w.planToken(draw, i)
	}
	n := one(draw, live...)
	k := &u.tokens[n]
	path := at + "/tokens/" + k.id
	next, made := fleetToken{narrowed: k.narrowed, rotations: k.rotations}, len(u.tokens)
	switch kind := draw.IntN(6); {
	case kind < 2 || k.replaced || len(live) > 20:
		k.ended = true
		return step(fmt.Sprint("revoke token ", n), "DELETE", path, nil)
	case kind == 2:
		k.narrowed = w.drawSome(draw)
		return step(fmt.Sprintf("narrow token %d to %q", n, k.narrowed), "PATCH", path, admin.TokenInput{PermissionGroups: admin.Some(k.narrowed)})
	case kind == 3 && u.active && k.rotations < 5:
		k.replaced = true
		next.rotations++
		u.tokens = append(u.tokens, next)
		who := credentials{u.id, k.secret}
		return &fleetStep{fmt.Sprintf("rotation of token %d of user %d", n, i), i, func(f *fleet, node *fleetNode) error {
			id, secret, err := node.rotate(who)
			f.issued(i, made, id, secret)
			return err
		}}
	}
	grace := one(draw, "", "1h")
	k.ended, k.replaced = grace == "", grace != ""
	u.tokens = append(u.tokens, next)
	return &fleetStep{fmt.Sprintf("refresh of token %d of user %d, grace %q", n, i, grace), i, func(f *fleet, node *fleetNode) error {
		var out admin.Token
		err := f.change(node, "POST", path+"/refresh", admin.RefreshInput{Grace: admin.Some(grace)}, &out)
		f.issued(i, made, out.ID, out.Secret)
		return err
	}}
}

func (w *fleetWorld) planUser(draw *rand.Rand) *fleetStep {
	i := len(w.users)
	profile, in := w.drawProfile(draw)
	in.Name = admin.Some(fmt.Sprint("u", i))
	w.users = append(w.users, fleetUser{User: profile, active: true, tokens: []fleetToken{{}}})
	return &fleetStep{fmt.Sprintf("create user %d: %+v", i, profile), i, func(f *fleet, n *fleetNode) error {
		var out admin.ServiceUser
		err := f.change(n, "POST", "/service_users", admin.NewServiceUser{ServiceUserInput: in}, &out)
		f.newest(func(w *fleetWorld) { w.users[i].id = out.ID })
		f.issued(i, 0, out.TokenID, out.Token)
		return err
	}}
}

// planToken draws a new token, which may be asked for at two nodes with the same key: the answer of the
// first seems to be lost. Only the second secret is right then.
func (w *fleetWorld) planToken(draw *rand.Rand, i int) *fleetStep {
	u := &w.users[i]
	k := fleetToken{narrowed: w.drawSome(draw)}
	u.tokens = append(u.tokens, k)
	made, key, path := len(u.tokens)-1, "", "/service_users/"+u.id+"/tokens"
	if draw.IntN(3) == 0 {
		key = fmt.Sprint("key-", i, "-", made, "-", draw.Uint64())
	}
	return &fleetStep{fmt.Sprintf("create token %d of user %d, narrowed to %q, key %q", made, i, k.narrowed, key), i, func(f *fleet, n *fleetNode) error {
		in := admin.TokenInput{PermissionGroups: admin.Some(k.narrowed)}
		var out admin.Token
		if key == "" {
			err := f.change(n, "POST", path, in, &out)
			f.issued(i, made, out.ID, out.Secret)
			return err
		}
		var first admin.Token
		up := f.up()
		_, err := up[(slices.Index(up, n)+1)%len(up)].admin("POST", path, in, &first, "Idempotency-Key: "+key)
		if err == nil {
			err = f.change(n, "POST", path, in, &out, "Idempotency-Key: "+key)
		}
		if err == nil && (first.ID != out.ID || first.Secret == out.Secret) {
			err = fmt.Errorf("the same key at two nodes: got %s and %s", first.ID, out.ID)
		}
		f.issued(i, made, out.ID, out.Secret)
		return err
	}}
}
