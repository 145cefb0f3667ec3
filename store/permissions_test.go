package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// permission is one of the catalogue; without rules it stands for GET /KEY.
func permission(key string, texts ...string) Permission {
	if len(texts) == 0 {
		texts = []string{"allow GET /" + key}
	}
	return Permission{Key: key, Name: "may " + key, Rules: rules(texts...)}
}

func permissionList(keys string) (list []Permission) {
	for _, key := range strings.Fields(keys) {
		list = append(list, permission(key))
	}
	return list
}

func load(s *Store, list ...Permission) CatalogueChange {
	return must(s.LoadPermissions(ctx, Local, list, false))
}

// catalogue is what an actor sees of it, such as "a b c".
func catalogue(s *Store, by Actor) string {
	return strings.Join(ids(must(s.Permissions(ctx, by)), func(p Permission) string { return p.Key }), " ")
}

func actionsOf(events []AuditEvent) string {
	return strings.Join(ids(events, func(e AuditEvent) string { return e.Action }), " ")
}

func TestLoadPermissions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	changed := func(edit func(*Permission)) []Permission {
		p := permission("b", "allow GET /b", "deny GET /b/{x}")
		p.Description, p.Category = "d\ne", "c"
		edit(&p)
		return []Permission{p}
	}
	asIs := func(*Permission) {}
	for _, step := range []struct {
		name    string
		list    []Permission
		replace bool
		want    CatalogueChange
		order   string
		actions string
	}{
		{"nothing", nil, false, CatalogueChange{}, "", ""},
		{"nothing, in the place of nothing", nil, true, CatalogueChange{}, "", ""},
		{"the first", permissionList("c b a"), false, CatalogueChange{Created: 3}, "c b a", "permission.create permission.create permission.create"},
		{"the same", permissionList("c b a"), false, CatalogueChange{Unchanged: 3}, "c b a", ""},
		{"the same, in the place of all", permissionList("c b a"), true, CatalogueChange{Unchanged: 3}, "c b a", ""},
		{"one of them", permissionList("b"), false, CatalogueChange{Unchanged: 1}, "c b a", ""},
		{"some in another order", permissionList("a c"), false, CatalogueChange{Unchanged: 2}, "c b a", ""},
		{"others go behind the last", permissionList("z a e"), false, CatalogueChange{Created: 2, Unchanged: 1}, "c b a z e", "permission.create permission.create"},
		{"others go between", permissionList("0 c 9 b a z 1 e"), true, CatalogueChange{Created: 3, Unchanged: 5}, "0 c 9 b a z 1 e", "permission.create permission.create permission.create"},
		{"some go", permissionList("c b a"), true, CatalogueChange{Unchanged: 3, Deleted: 5}, "c b a", "permission.delete permission.delete permission.delete permission.delete permission.delete"},
		{"others in their places", permissionList("x b y"), true, CatalogueChange{Created: 2, Unchanged: 1, Deleted: 2}, "x b y", "permission.create permission.create permission.delete permission.delete"},
		{"another order", permissionList("y x b"), true, CatalogueChange{Unchanged: 3}, "y x b", "permission.reorder"},
		{"another order, and one goes", permissionList("b y"), true, CatalogueChange{Unchanged: 2, Deleted: 1}, "b y", "permission.delete permission.reorder"},
		{"more rules, and texts", changed(asIs), false, CatalogueChange{Updated: 1}, "b y", "permission.update"},
		{"a rule in another spelling", changed(func(p *Permission) { p.Rules[0].Methods = []string{"GET", "GET"} }), false, CatalogueChange{Unchanged: 1}, "b y", ""},
		{"what is not for the caller", changed(func(p *Permission) {
			p.CreatedAt, p.CreatedBy, p.UpdatedAt = w.now().Add(time.Hour), "x", w.now()
			p.Rules[0].ID, p.Rules[0].Permission = "rule_x", "y"
		}), false, CatalogueChange{Unchanged: 1}, "b y", ""},
		{"another name", changed(func(p *Permission) { p.Name = "n" }), false, CatalogueChange{Updated: 1}, "b y", "permission.update"},
		{"another description", changed(func(p *Permission) { p.Description = "" }), false, CatalogueChange{Updated: 1}, "b y", "permission.update"},
		{"another category", changed(func(p *Permission) { p.Category = "" }), false, CatalogueChange{Updated: 1}, "b y", "permission.update"},
		{"rules in another order", changed(func(p *Permission) { slices.Reverse(p.Rules) }), false, CatalogueChange{Updated: 1}, "b y", "permission.update"},
		{"a condition", changed(func(p *Permission) { p.Rules = rules("allow GET /b when user.name == \"x\"") }), false, CatalogueChange{Updated: 1}, "b y", "permission.update"},
		{"all of it", append(permissionList("a"), changed(asIs)...), true, CatalogueChange{Created: 1, Updated: 1, Deleted: 1}, "a b", "permission.create permission.update permission.delete"},
		{"the end", nil, true, CatalogueChange{Deleted: 2}, "", "permission.delete permission.delete"},
		{"it begins anew", permissionList("b"), false, CatalogueChange{Created: 1}, "b", "permission.create"},
	} {
		revision, known := w.Directory().Revision(), len(trail(t, w.Store))
		w.clock.add(time.Minute)
		if got, err := w.LoadPermissions(ctx, alice, step.list, step.replace); got != step.want || err != nil {
			t.Errorf("%s: got %+v, %v, want %+v", step.name, got, err, step.want)
		}
		if got := catalogue(w.Store, Local); got != step.order {
			t.Errorf("%s: order: got %s, want %s", step.name, got, step.order)
		}
		events := trail(t, w.Store)[known:]
		if got := actionsOf(events); got != step.actions {
			t.Errorf("%s: audit records: got %s, want %s", step.name, got, step.actions)
		}
		for _, e := range events {
			create, gone := e.Action == "permission.create", e.Action == "permission.delete"
			if e.Actor != alice.Name || e.Operation != alice.Operation || string(e.Before) == string(e.After) || create != (len(e.Before) == 0) || gone != (len(e.After) == 0) {
				t.Errorf("%s: audit record: got %+v", step.name, e)
			}
		}
		want := revision
		if step.actions != "" {
			want++
		}
		if got := w.Directory().Revision(); got != want {
			t.Errorf("%s: revision: got %d, want %d", step.name, got, want)
		}
		for _, p := range step.list {
			got := must(w.Permissions(ctx, Local))
			i := slices.IndexFunc(got, func(q Permission) bool { return q.Key == p.Key })
			if i < 0 || got[i].Name != p.Name || got[i].Description != p.Description || got[i].Category != p.Category || ruleTexts(got[i].Rules) != ruleTexts(must(checked(p.Rules))) {
				t.Errorf("%s: got %+v, want %+v", step.name, got, p)
			}
		}
	}
}

func checked(list []access.Rule) (out []access.Rule, err error) {
	for _, r := range list {
		r, err := r.Check()
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// The times and the author of a permission, and what its audit records show.
func TestPermissionRecords(t *testing.T) {
	w := newWorld(t, Options{})
	made := w.now()
	load(w.Store, permission("a"))
	w.clock.add(time.Minute)
	must(w.LoadPermissions(ctx, alice, []Permission{permission("a", "allow GET /other"), permission("b")}, false))
	want := []Permission{
		{Key: "a", Name: "may a", Rules: rules("allow GET /other"), CreatedAt: made, CreatedBy: "local", UpdatedAt: w.now()},
		{Key: "b", Name: "may b", Rules: rules("allow GET /b"), CreatedAt: w.now(), CreatedBy: alice.Name, UpdatedAt: w.now()},
	}
	for i := range want { // a decision names the permission by its key
		want[i].Rules[0].ID, want[i].Rules[0].Permission = want[i].Key, want[i].Key
	}
	if got := must(w.Permissions(ctx, Local)); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	must(w.LoadPermissions(ctx, alice, permissionList("b a"), true))
	events := trail(t, w.Store)
	for i, row := range []struct{ action, resource, before, after string }{
		{"permission.create", "a", "", `"rules":["allow GET /a"]`},
		{"permission.update", "a", `"rules":["allow GET /a"]`, `"rules":["allow GET /other"]`},
		{"permission.create", "b", "", `"rules":["allow GET /b"]`},
		{"permission.update", "a", `"rules":["allow GET /other"]`, `"rules":["allow GET /a"]`},
		{"permission.reorder", "permissions", `{"permissions":["a","b"]}`, `{"permissions":["b","a"]}`},
	} {
		e := events[len(events)-5+i]
		if e.Action != row.action || e.Resource != row.resource || !strings.Contains(string(e.Before), row.before) || !strings.Contains(string(e.After), row.after) {
			t.Errorf("record %d: got %s of %s, before %s, after %s, want %+v", i, e.Action, e.Resource, e.Before, e.After, row)
		}
	}
}

// A list is loaded whole or not at all, and the message tells the place.
func TestBadPermissions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	load(w.Store, permissionList("given used free")...)
	for _, name := range []string{"second", "first"} {
		must(w.CreateGroup(ctx, alice, Group{Name: name, Permissions: []string{"used", "given"}[:1+len(name)%2]}))
	}
	keyAdvice := func(key string) string {
		return fmt.Sprintf(`permissions.1.key: %q must be lower-case words of letters, digits and "_", joined by dots, at most 64 characters, such as people.address.view`, key)
	}
	type row struct {
		name, kind, message string
		list                []Permission
		replace             bool
	}
	var rows []row
	add := func(name, kind, message string, edit func(*Permission)) {
		p := permission("bad")
		edit(&p)
		rows = append(rows, row{name, kind, message, []Permission{permission("good"), p}, false}, row{name + ", in the place of all", kind, message, []Permission{permission("good"), p}, true})
	}
	for _, key := range []string{"", "A", "a.B", "a-b", "a b", ".a", "a.", "a..b", "a/b", "ä", "a\n", "a.b.c.d.e.f.g.h.i", strings.Repeat("k", 65)} {
		add("key "+key, "invalid value permissions.1.key", keyAdvice(key), func(p *Permission) { p.Key = key })
	}
	add("no name", "invalid value permissions.1.name", "permissions.1.name: must not be empty", func(p *Permission) { p.Name = "" })
	add("a space before the name", "invalid value permissions.1.name", "permissions.1.name: must not begin or end with white space", func(p *Permission) { p.Name = " a" })
	add("a name like an id", "invalid value permissions.1.name", "permissions.1.name: must not look like an id", func(p *Permission) { p.Name = newID("group", seconds(0)) })
	add("a long name", "invalid value permissions.1.name", "permissions.1.name: is 256 characters long, at most 255 are allowed", func(p *Permission) { p.Name = strings.Repeat("x", 256) })
	add("a name of two lines", "invalid value permissions.1.name", "permissions.1.name: must not hold the control character U+000A", func(p *Permission) { p.Name = "a\nb" })
	add("a category of two lines", "invalid value permissions.1.category", "permissions.1.category: must not hold the control character U+000A", func(p *Permission) { p.Category = "a\nb" })
	add("a long description", "invalid value permissions.1.description", "permissions.1.description: is 2001 characters long, at most 2000 are allowed", func(p *Permission) { p.Description = strings.Repeat("x", 2001) })
	add("a secret", "invalid value permissions.1.description", "permissions.1.description: holds a secret; secrets are never stored", func(p *Permission) { p.Description = access.NewSecret() })
	add("no rules", "invalid value permissions.1.rules", "permissions.1.rules: a permission stands for 1 to 500 rules", func(p *Permission) { p.Rules = nil })
	add("501 rules", "invalid value permissions.1.rules", "permissions.1.rules: a permission stands for 1 to 500 rules", func(p *Permission) { p.Rules = numberedRules(501, "") })
	add("a rule without an effect", "invalid value permissions.1.rules", `permissions.1.rules: effect "": a rule begins with "allow" or "deny"`, func(p *Permission) { p.Rules = append(p.Rules, access.Rule{}) })
	add("a rule without a slash", "invalid value permissions.1.rules", `permissions.1.rules: path "v1": a path starts with "/"`, func(p *Permission) { p.Rules[0].Path = "v1" })
	add("a rule over no parameter", "invalid value permissions.1.rules", `permissions.1.rules: condition "params.id == \"7\"": the path has no {id}`, func(p *Permission) { p.Rules[0].When = `params.id == "7"` })
	add("a secret in a condition", "invalid value permissions.1.rules.when", "permissions.1.rules.when: holds a secret; secrets are never stored", func(p *Permission) { p.Rules[0].When = "user.name == " + access.NewSecret() })
	add("a rule with a name", "invalid value permissions.1.rules", "permissions.1.rules: the rules of a permission have no name and description of their own", func(p *Permission) { p.Rules[0].Name = "n" })
	add("a rule with a description", "invalid value permissions.1.rules", "permissions.1.rules: the rules of a permission have no name and description of their own", func(p *Permission) { p.Rules[0].Description = "d" })
	const twice = `permissions.2: the key "a" is in the list twice, as permissions.0 and permissions.2`
	rows = append(rows,
		row{"a key twice", "invalid value permissions.2", twice, permissionList("a b a"), false},
		row{"a key twice, in the place of all", "invalid value permissions.2", twice, permissionList("a b a"), true},
		row{"a known key twice", "invalid value permissions.1", `permissions.1: the key "free" is in the list twice, as permissions.0 and permissions.1`, permissionList("free free"), false},
		row{"one that two groups have would go", "conflict permissions", `permissions: the permission "used" is given to first, second; withdraw it there first`, permissionList("new given free"), true},
		row{"one that a group has would go", "conflict permissions", `permissions: the permission "given" is given to first; withdraw it there first`, permissionList("used"), true},
	)
	before, directory := dump(t, w.Store), w.Directory()
	for _, r := range rows {
		n, err := w.LoadPermissions(ctx, alice, r.list, r.replace)
		if kind(err) != r.kind || err.Error() != r.message || n != (CatalogueChange{}) {
			t.Errorf("%s: got %s, %v, %+v, want %s, %s", r.name, kind(err), err, n, r.kind, r.message)
		}
		same(t, r.name, dump(t, w.Store), before)
		if w.Directory() != directory {
			t.Errorf("%s: the directory was replaced", r.name)
		}
	}
	if _, err := w.LoadPermissions(ctx, alice, []Permission{{Key: "a"}}, false); !errors.Is(err, ErrEmpty) {
		t.Errorf("no name: got %v, want %v", err, ErrEmpty)
	}
	for _, key := range []string{"a", "0", "_", "a_b.c9.0", "a.b.c.d.e.f.g.h", strings.Repeat("k", 64)} {
		if got, err := w.LoadPermissions(ctx, alice, []Permission{permission(key)}, false); got.Created != 1 || err != nil {
			t.Errorf("key %s: got %+v, %v, want it created", key, got, err)
		}
	}
}

// numberedRules are allows of as many paths.
func numberedRules(n int, when string) []access.Rule {
	list := make([]access.Rule, n)
	for i := range list {
		list[i] = access.Rule{Effect: "allow", Methods: []string{"GET"}, Path: fmt.Sprintf("/n/%d", i), When: when}
	}
	return list
}

// What is done to the permissions of a group, and to those themselves, holds for
// the next request, here and in another process.
func TestPermissionsOfGroups(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	other := open(t, w.path, w.opts)
	load(w.Store, permission("see", "allow GET /p/see"), permission("edit", "allow PUT /p/edit", "deny GET /p/secret"), permission("spare", "allow GET /p/spare"))
	another, anothersToken := addUser(w.Store, "another")
	const all = "GET /p/see, PUT /p/edit, GET /p/secret, GET /p/spare, GET /v1/x"
	update := func(edit func(*Group)) error { return w.changeGroup(edit) }
	var extra Group
	for _, step := range []struct {
		name, have string // the permissions of the group
		action     string // of the audit record; "" is no change
		may        string // of all, what the user of the world may do
		do         func() error
	}{
		{"none", "", "", "GET /v1/x", func() error { return nil }},
		{"given", "see", "permission_group.update", "GET /p/see, GET /v1/x", func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "see") }},
		{"given twice", "see", "", "GET /p/see, GET /v1/x", func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "see") }},
		{"another", "edit see", "permission_group.update", "GET /p/see, PUT /p/edit, GET /v1/x", func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "edit") }},
		{"withdrawn", "edit", "permission_group.update", "PUT /p/edit, GET /v1/x", func() error { return w.WithdrawPermission(ctx, alice, w.readers.ID, "see") }},
		{"withdrawn twice", "edit", "", "PUT /p/edit, GET /v1/x", func() error { return w.WithdrawPermission(ctx, alice, w.readers.ID, "see") }},
		{"withdrawn, unknown", "edit", "", "PUT /p/edit, GET /v1/x", func() error { return w.WithdrawPermission(ctx, alice, w.readers.ID, "nothing") }},
		{"set", "see spare", "permission_group.update", "GET /p/see, GET /p/spare, GET /v1/x", func() error {
			return update(func(g *Group) { g.Permissions = []string{"spare", "see", "spare"} })
		}},
		{"set again in another spelling", "see spare", "", "GET /p/see, GET /p/spare, GET /v1/x", func() error {
			return update(func(g *Group) { g.Permissions = []string{"spare", "see"} })
		}},
		{"another rule", "see spare", "permission.update", "GET /p/secret, GET /p/spare, GET /v1/x", func() error {
			_, err := w.LoadPermissions(ctx, alice, []Permission{permission("see", "allow GET /p/secret")}, false)
			return err
		}},
		{"a deny", "see spare", "permission.update", "GET /p/spare", func() error {
			_, err := w.LoadPermissions(ctx, alice, []Permission{permission("see", "deny * /v1/{rest...}")}, false)
			return err
		}},
		{"a condition that holds", "see spare", "permission.update", "GET /p/see, GET /p/spare, GET /v1/x", func() error {
			_, err := w.LoadPermissions(ctx, alice, []Permission{permission("see", `allow GET /p/{id} when params.id == "see" && user.name == "billing-sync"`)}, false)
			return err
		}},
		{"one that it does not have", "see spare", "permission.update", "GET /p/see, GET /p/spare, GET /v1/x", func() error {
			_, err := w.LoadPermissions(ctx, alice, []Permission{permission("edit", "deny * /{rest...}")}, false)
			return err
		}},
		{"an own rule", "see spare", "rule.add", "GET /p/see, GET /p/spare", func() error {
			_, err := w.AddRule(ctx, alice, w.readers.ID, rules("deny * /v1/{rest...}")[0])
			return err
		}},
		{"renamed", "see spare", "permission_group.update", "GET /p/see, GET /p/spare", func() error { return update(func(g *Group) { g.Name = "other" }) }},
		{"rules taken away", "see spare", "permission_group.update", "GET /p/see, GET /p/spare", func() error { return update(func(g *Group) { g.Rules = nil }) }},
		{"observed", "see spare", "permission_group.update", "", func() error { return update(func(g *Group) { g.Mode = access.Observe }) }},
		{"enforced", "see spare", "permission_group.update", "GET /p/see, GET /p/spare", func() error { return update(func(g *Group) { g.Mode = access.Enforce }) }},
		{"another group with it", "see spare", "permission_group.create", "GET /p/see, GET /p/spare", func() (err error) {
			extra, err = w.CreateGroup(ctx, alice, Group{Name: "extra", Permissions: []string{"spare"}})
			return err
		}},
		{"in the other group too", "see spare", "member.add", "GET /p/see, GET /p/spare", func() error { return w.AddMember(ctx, alice, extra.ID, w.user.ID) }},
		{"another member there", "see spare", "member.add", "GET /p/see, GET /p/spare", func() error { return w.AddMember(ctx, alice, extra.ID, another.ID) }},
		{"only there", "see", "permission_group.update", "GET /p/see, GET /p/spare", func() error { return w.WithdrawPermission(ctx, alice, w.readers.ID, "spare") }},
		{"a rule of both", "see", "permission.update", "GET /p/see, PUT /p/edit", func() error {
			_, err := w.LoadPermissions(ctx, alice, []Permission{permission("spare", "allow PUT /p/edit")}, false)
			return err
		}},
		{"the other group deleted", "see", "permission_group.delete", "GET /p/see", func() error { return w.DeleteGroup(ctx, alice, extra.ID, 0) }},
		{"what it let go of can be deleted", "see", "permission.delete", "GET /p/see", func() error { return w.DeletePermission(ctx, alice, "spare") }},
		{"all withdrawn", "", "permission_group.update", "", func() error { return update(func(g *Group) { g.Permissions = nil }) }},
	} {
		revision := w.Directory().Revision()
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		want := revision
		if step.action != "" {
			want++
			if got := must(w.trail(ctx, "", 0, 1))[0].Action; got != step.action {
				t.Errorf("%s: audit record: got %s, want %s", step.name, got, step.action)
			}
		}
		if got := w.Directory().Revision(); got != want {
			t.Errorf("%s: revision: got %d, want %d", step.name, got, want)
		}
		if got := strings.Join(must(w.Group(ctx, Local, w.readers.ID)).Permissions, " "); got != step.have {
			t.Errorf("%s: the group has %q, want %q", step.name, got, step.have)
		}
		may := func(s *Store) string {
			var granted []string
			for _, action := range strings.Split(all, ", ") {
				if probe(s, w.user.ID, w.token.Secret, action) == access.Granted {
					granted = append(granted, action)
				}
			}
			return strings.Join(granted, ", ")
		}
		if got := may(w.Store); got != step.may {
			t.Errorf("%s: may %q, want %q", step.name, got, step.may)
		}
		eventually(t, step.name+", in another process", func() bool { return other.Directory().Revision() == want })
		if got := may(other); got != step.may {
			t.Errorf("%s: in another process it may %q, want %q", step.name, got, step.may)
		}
	}
	if got := probe(w.Store, another.ID, anothersToken.Secret, "PUT /p/edit"); got != access.NoRule {
		t.Errorf("a member of the deleted group: got %v, want no_rule", got)
	}
	// The order of the catalogue changes nothing for requests.
	mustDo(w.changeGroup(func(g *Group) { g.Permissions = []string{"edit", "see"} }))
	must(w.LoadPermissions(ctx, alice, []Permission{permission("new"), permission("edit"), permission("see")}, true))
	must(w.LoadPermissions(ctx, alice, []Permission{permission("see"), permission("new"), permission("edit")}, true))
	eventually(t, "the last change, in another process", func() bool { return other.Directory().Revision() == w.Directory().Revision() })
	again := open(t, w.path, w.opts)
	same(t, "opened again", dirText(t, again), dirText(t, w.Store))
	same(t, "the other store", dirText(t, other), dirText(t, w.Store))
	trail(t, w.Store)
}

// A decision by a permission names it.
func TestDecisionNamesThePermission(t *testing.T) {
	w := newWorld(t, Options{})
	load(w.Store, permission("b.c", "deny GET /v2", "allow GET /b"), permission("a", "allow GET /a"))
	mustDo(w.changeGroup(func(g *Group) { g.Permissions = []string{"b.c", "a"} }))
	p, _ := w.Directory().Principal(w.user.ID, w.token.ID, addrOf("192.0.2.1"), w.now().Unix())
	for action, want := range map[string]string{"/v1/x": "", "/v2": "b.c", "/b": "b.c", "/a": "a"} {
		d := w.Directory().Authorize(p, access.Action{Method: "GET", Path: action})
		if d.Rule == nil || d.Rule.Permission != want || want != "" && d.Rule.ID != want || d.Group.ID != w.readers.ID {
			t.Errorf("GET %s: got %+v, want the permission %q", action, d.Rule, want)
		}
	}
	if got := ruleTexts(must(w.Group(ctx, Local, w.readers.ID)).Rules); got != ruleTexts(w.readers.Rules) {
		t.Errorf("own rules of the group: got %s, want %s", got, ruleTexts(w.readers.Rules))
	}
	e := must(w.trail(ctx, w.readers.ID, 0, 1))[0]
	if !strings.Contains(string(e.After), `"permissions":["a","b.c"]`) || strings.Contains(string(e.Before), "b.c") {
		t.Errorf("audit record: got %s, then %s", e.Before, e.After)
	}
}

func TestRefusedPermissions(t *testing.T) {
	w := newWorld(t, Options{})
	load(w.Store, permissionList("a b")...)
	mustDo(w.GrantPermission(ctx, alice, w.readers.ID, "a"))
	gone := addGroup(w.Store, "gone")
	mustDo(w.DeleteGroup(ctx, alice, gone.ID, 0))
	for _, row := range []struct {
		name, kind, message string
		do                  func() error
	}{
		{"grant, unknown", "invalid value permissions", `permissions: there is no permission "c" in the catalogue; load it first`, func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "c") }},
		{"grant, in capitals", "invalid value permissions", `permissions: there is no permission "A" in the catalogue; load it first`, func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "A") }},
		{"grant, empty", "invalid value permissions", `permissions: there is no permission "" in the catalogue; load it first`, func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "") }},
		{"grant, unknown group", "not found", `there is no permission group "group_x"; it is named by its id`, func() error { return w.GrantPermission(ctx, alice, "group_x", "b") }},
		{"grant, deleted group", "not found", fmt.Sprintf("there is no permission group %q", gone.ID), func() error { return w.GrantPermission(ctx, alice, gone.ID, "b") }},
		{"withdraw, unknown group", "not found", `there is no permission group "group_x"; it is named by its id`, func() error { return w.WithdrawPermission(ctx, alice, "group_x", "a") }},
		{"withdraw, deleted group", "not found", fmt.Sprintf("there is no permission group %q", gone.ID), func() error { return w.WithdrawPermission(ctx, alice, gone.ID, "a") }},
		{"update, one of two unknown", "invalid value permissions", `permissions: there is no permission "c" in the catalogue; load it first`, func() error {
			return w.changeGroup(func(g *Group) { g.Permissions, g.Rules = []string{"b", "c"}, nil })
		}},
		{"create, one of two unknown", "invalid value permissions", `permissions: there is no permission "c" in the catalogue; load it first`, func() error {
			return second(w.CreateGroup(ctx, alice, Group{Name: "g", Permissions: []string{"b", "c"}}))
		}},
		{"delete, given", "conflict permissions", `permissions: the permission "a" is given to readers; withdraw it there first`, func() error { return w.DeletePermission(ctx, alice, "a") }},
		{"delete, unknown", "not found", `there is no permission "c"`, func() error { return w.DeletePermission(ctx, alice, "c") }},
	} {
		before, directory := dump(t, w.Store), w.Directory()
		if err := row.do(); kind(err) != row.kind || err.Error() != row.message {
			t.Errorf("%s: got %s, %v, want %s, %s", row.name, kind(err), err, row.kind, row.message)
		}
		same(t, row.name, dump(t, w.Store), before)
		if w.Directory() != directory {
			t.Errorf("%s: the directory was replaced", row.name)
		}
	}
	mustDo(w.DeletePermission(ctx, alice, "b"))
	if got, e := catalogue(w.Store, Local), must(w.trail(ctx, "b", 0, 1))[0]; got != "a" || e.Action != "permission.delete" || len(e.After) != 0 {
		t.Errorf("deleted: got %q and %+v", got, e)
	}
}

// A manager sees what its groups have, and changes nothing.
func TestManagerAndPermissions(t *testing.T) {
	w := newWorld(t, Options{})
	load(w.Store, permissionList("c b a both free")...)
	mustDo(w.changeGroup(func(g *Group) { g.Permissions = []string{"a", "both", "c"} }))
	must(w.UpdateGroup(ctx, alice, w.closers.ID, 0, func(g *Group) error { g.Permissions = []string{"b", "both"}; return nil }))
	manager := func(groups ...string) Actor { return Actor{Name: "human:m", Scope: &Scope{Groups: groups}} }
	for _, row := range []struct {
		name string
		by   Actor
		want string
	}{
		{"an admin", Local, "c b a both free"},
		{"one group", manager(w.readers.ID), "c a both"},
		{"the other", manager(w.closers.ID), "b both"},
		{"two groups", manager(w.closers.ID, w.readers.ID), "c b a both"},
		{"no group", manager(), ""},
		{"a group that is none", manager("group_x"), ""},
	} {
		if got := catalogue(w.Store, row.by); got != row.want {
			t.Errorf("%s sees %q, want %q", row.name, got, row.want)
		}
	}
	by := manager(w.readers.ID)
	if g := must(w.Group(ctx, by, w.readers.ID)); !slices.Equal(g.Permissions, []string{"a", "both", "c"}) {
		t.Errorf("the group by a manager: got %v", g.Permissions)
	}
	before, directory := dump(t, w.Store), w.Directory()
	for name, row := range map[string]struct {
		want string
		err  error
	}{
		"load":                           {"not allowed", second(w.LoadPermissions(ctx, by, permissionList("n"), false))},
		"load what is there":             {"not allowed", second(w.LoadPermissions(ctx, by, permissionList("a"), false))},
		"load nothing":                   {"not allowed", second(w.LoadPermissions(ctx, by, nil, true))},
		"delete":                         {"not allowed", w.DeletePermission(ctx, by, "a")},
		"delete one that nobody has":     {"not allowed", w.DeletePermission(ctx, by, "free")},
		"delete one that is not there":   {"not allowed", w.DeletePermission(ctx, by, "x")},
		"grant":                          {"not allowed", w.GrantPermission(ctx, by, w.readers.ID, "b")},
		"grant what it has":              {"not allowed", w.GrantPermission(ctx, by, w.readers.ID, "a")},
		"withdraw":                       {"not allowed", w.WithdrawPermission(ctx, by, w.readers.ID, "a")},
		"grant to a foreign group":       {"not found", w.GrantPermission(ctx, by, w.closers.ID, "a")},
		"withdraw from a foreign group":  {"not found", w.WithdrawPermission(ctx, by, w.closers.ID, "b")},
		"create a group with permission": {"not allowed", second(w.CreateGroup(ctx, by, Group{Name: "g", Permissions: []string{"a"}}))},
	} {
		if got := kind(row.err); got != row.want {
			t.Errorf("%s: got %s, want %s", name, got, row.want)
		}
	}
	same(t, "rows", dump(t, w.Store), before)
	if w.Directory() != directory {
		t.Error("the directory was replaced")
	}
}

// The catalogue holds 2000 permissions, and each of them 500 rules.
func TestManyPermissions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	list := make([]Permission, maxCatalogue)
	for i := range list {
		list[i] = permission(fmt.Sprintf("p.%d", i))
	}
	const over = "permissions: the catalogue would have 2001 permissions, at most 2000 are allowed"
	for _, step := range []struct {
		name, want string
		list       []Permission
		replace    bool
	}{
		{"2001 at once", over, append(slices.Clone(list), permission("more")), false},
		{"2001 in the place of none", over, append(slices.Clone(list), permission("more")), true},
		{"2000", "", list, false},
		{"one more", over, permissionList("more"), false},
		{"one more beside known ones", over, append(slices.Clone(list[5:9]), permission("more")), false},
		{"known ones", "", list[:10], false},
		{"all, in the place of all", "", list, true},
		{"one more, in the place of one", "", append(slices.Clone(list[1:]), permission("more")), true},
	} {
		before := dump(t, w.Store)
		_, err := w.LoadPermissions(ctx, alice, step.list, step.replace)
		if step.want == "" && err != nil || step.want != "" && (kind(err) != "conflict permissions" || err.Error() != step.want) {
			t.Errorf("%s: got %v, want %q", step.name, err, step.want)
		}
		if err != nil {
			same(t, step.name, dump(t, w.Store), before)
		}
	}
	many := permission("p.1")
	many.Rules = numberedRules(maxGranted, "")
	must(w.LoadPermissions(ctx, alice, []Permission{many}, false))
	mustDo(w.changeGroup(func(g *Group) {
		for _, p := range list[1:] {
			g.Permissions = append(g.Permissions, p.Key)
		}
	}))
	for _, action := range []string{"GET /n/0", "GET /n/499", "GET /p.2", "GET /p.1999", "GET /v1/x"} {
		if got := probe(w.Store, w.user.ID, w.token.Secret, action); got != access.Granted {
			t.Errorf("%s: got %v, want granted", action, got)
		}
	}
	mustDo(w.changeGroup(func(g *Group) { g.Permissions = []string{"p.2"} }))
	for action, want := range map[string]bool{"GET /n/0": false, "GET /p.2": true, "GET /p.3": false, "GET /p.1999": false} {
		if got := probe(w.Store, w.user.ID, w.token.Secret, action); (got == access.Granted) != want {
			t.Errorf("%s, with p.2 alone: got %v", action, got)
		}
	}
}

// The catalogue that comes along as an example loads whole, and each of its
// permissions grants what its own rules say and nothing else.
func TestExampleCatalogue(t *testing.T) {
	t.Parallel()
	var file struct {
		Permissions []struct {
			Key, Name, Description, Category string
			Rules                            []string
		}
	}
	mustDo(json.Unmarshal(must(os.ReadFile(filepath.Join("..", "examples", "hibob-permissions.json"))), &file))
	var list []Permission
	requests := make(map[string]bool)
	for _, p := range file.Permissions {
		list = append(list, Permission{Key: p.Key, Name: p.Name, Description: p.Description, Category: p.Category, Rules: rules(p.Rules...)})
		for _, r := range list[len(list)-1].Rules {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
				requests[method+" "+sample(r.Path)] = true
			}
		}
	}
	s := open(t, place(t), Options{})
	if got, err := s.LoadPermissions(ctx, Local, list, true); got.Created != len(list) || len(list) < 50 || err != nil {
		t.Fatalf("loaded %+v of %d, %v", got, len(list), err)
	}
	if got := must(s.LoadPermissions(ctx, Local, list, true)); got.Unchanged != len(list) {
		t.Errorf("loaded again: got %+v, want %d unchanged", got, len(list))
	}
	g := addGroup(s, "g")
	u, token := addUser(s, "u", g.ID)
	for _, p := range list {
		must(s.UpdateGroup(ctx, Local, g.ID, 0, func(g *Group) error { g.Permissions = []string{p.Key}; return nil }))
		principal, _ := s.Directory().Principal(u.ID, token.ID, addrOf("192.0.2.1"), s.Now().Unix())
		for request := range requests {
			method, path, _ := strings.Cut(request, " ")
			want := access.NoRule
			if slices.ContainsFunc(p.Rules, func(r access.Rule) bool { return stands(r, method, path) }) {
				want = access.Granted
			}
			if got := s.Directory().Authorize(principal, access.Action{Method: method, Path: path}).Reason; got != want {
				t.Errorf("%s, %s: got %v, want %v", p.Key, request, got, want)
			}
		}
	}
}

// sample is a path that a pattern covers.
func sample(pattern string) string {
	parts := strings.Split(pattern, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, "{") {
			parts[i] = "x7"
		}
	}
	return strings.Join(parts, "/")
}

// stands reports, for a rule without a condition and {rest...}, whether it is an
// allow of this request.
func stands(r access.Rule, method, path string) bool {
	if method == "HEAD" {
		method = "GET"
	}
	pattern, parts := strings.Split(r.Path, "/"), strings.Split(path, "/")
	return r.Effect == access.Allow && slices.Contains(r.Methods, method) &&
		slices.EqualFunc(pattern, parts, func(a, b string) bool { return a == b || strings.HasPrefix(a, "{") })
}
