package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// membersOf are those of a group with their sources, such as "a:name b:condition".
func membersOf(s *Store, by Actor, group string) string {
	var list []string
	for before, more := "", true; more; {
		page, next, err := s.Members(ctx, by, group, before, 2)
		mustDo(err)
		for _, m := range page {
			list = append(list, m.Name+":"+string(m.Source))
			before = m.ID
		}
		more = next
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// Whatever changes on either side, the service user or the condition, moves it in
// and out at once, with the tokens that it has; here and in another process.
func TestMemberCondition(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	other := open(t, w.path, w.opts)
	g := must(w.CreateGroup(ctx, alice, Group{Name: "prod", MemberCondition: `user.labels.env == "prod"`, Rules: rules("allow GET /prod", "deny DELETE /prod")}))
	narrowed := must(w.CreateToken(ctx, alice, w.user.ID, Token{Groups: []string{g.ID}}))
	elsewhere := must(w.CreateToken(ctx, alice, w.user.ID, Token{Groups: []string{w.readers.ID}}))
	condition := func(text string) func() error {
		return func() error {
			_, err := w.UpdateGroup(ctx, alice, g.ID, 0, func(g *Group) error { g.MemberCondition = text; return nil })
			return err
		}
	}
	user := func(edit func(*ServiceUser)) func() error { return func() error { return w.changeUser(edit) } }
	label := func(key, value string) func() error {
		return user(func(u *ServiceUser) { u.Labels = map[string]string{key: value} })
	}
	both := func(a, b func() error) func() error {
		return func() error { mustDo(a()); return b() }
	}
	const in, out, doubt = "in", "out", "in doubt"
	for _, step := range []struct {
		name, want, members string
		do                  func() error
	}{
		{"no such label", doubt, "", func() error { return nil }},
		{"another value", out, "", label("env", "test")},
		{"the value", in, "billing-sync:condition", label("env", "prod")},
		{"named too", in, "billing-sync:name", func() error { return w.AddMember(ctx, alice, g.ID, w.user.ID) }},
		{"named, another value", in, "billing-sync:name", label("env", "test")},
		{"named, no such label", in, "billing-sync:name", label("a", "b")},
		{"not named any more", doubt, "", func() error { return w.RemoveMember(ctx, alice, g.ID, w.user.ID) }},
		{"a condition that asks first", out, "", condition(`has(user.labels.env) && user.labels.env == "prod"`)},
		{"the value again", in, "billing-sync:condition", label("env", "prod")},
		{"observed", out, "billing-sync:condition", func() error {
			_, err := w.UpdateGroup(ctx, alice, g.ID, 0, func(g *Group) error { g.Mode = access.Observe; return nil })
			return err
		}},
		{"enforced", in, "billing-sync:condition", func() error {
			_, err := w.UpdateGroup(ctx, alice, g.ID, 0, func(g *Group) error { g.Mode = access.Enforce; return nil })
			return err
		}},
		{"a condition on its name", in, "billing-sync:condition", condition(`user.name.startsWith("billing-")`)},
		{"renamed", out, "", user(func(u *ServiceUser) { u.Name = "sync" })},
		{"renamed back", in, "billing-sync:condition", user(func(u *ServiceUser) { u.Name = "billing-sync" })},
		{"a condition on its teams", out, "", condition(`"ops" in user.teams`)},
		{"in the team", in, "billing-sync:condition", user(func(u *ServiceUser) { u.Teams = []string{"finance", "ops"} })},
		{"out of the team", out, "", user(func(u *ServiceUser) { u.Teams = []string{"finance"} })},
		{"a condition on its role", out, "", condition(`user.role == "manager"`)},
		{"a manager", in, "billing-sync:condition", user(func(u *ServiceUser) { u.Role = access.Manager })},
		{"an admin", out, "", user(func(u *ServiceUser) { u.Role = access.Admin })},
		{"a condition on its owner", out, "", condition(`user.owner.endsWith("@example")`)},
		{"owned", in, "billing-sync:condition", user(func(u *ServiceUser) { u.Owner = "carol@example" })},
		{"a condition on its alias", out, "", condition(`has(user.alias)`)},
		{"with an alias", in, "billing-sync:condition", user(func(u *ServiceUser) { u.Alias = "b@example" })},
		{"a condition on its display name", out, "", condition(`user.display_name == "漢字"`)},
		{"displayed", in, "billing-sync:condition", user(func(u *ServiceUser) { u.DisplayName = "漢字" })},
		{"a condition on its id", in, "billing-sync:condition", func() error { return condition(fmt.Sprintf(`user.id == %q`, w.user.ID))() }},
		{"a condition on its making", in, "billing-sync:condition", condition(`user.created_at < timestamp("2026-01-03T00:00:00Z")`)},
		{"one that is made later stays out", in, "billing-sync:condition", func() error {
			w.clock.add(48 * time.Hour)
			return second(first(w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "late", Labels: map[string]string{"env": "prod"}}}, nil)))
		}},
		{"everybody", in, "billing-sync:condition late:condition", condition("true")},
		{"nobody", out, "", condition("false")},
		{"those with the label", in, "billing-sync:condition late:condition", condition(`user.labels.env == "prod"`)},
		{"one that is made with the label", in, "billing-sync:condition late:condition made:condition", func() error {
			return second(first(w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "made", Labels: map[string]string{"env": "prod"}}}, nil)))
		}},
		{"one that is made without it", in, "billing-sync:condition late:condition made:condition", func() error {
			return second(first(w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "plain"}}, nil)))
		}},
		{"one that is made with it and named", in, "billing-sync:condition both:name late:condition made:condition", func() error {
			return second(first(w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "both"}, Groups: []string{g.ID}}, nil)))
		}},
		{"no condition", out, "both:name", condition("")},
		{"a condition again, and the label was changed meanwhile", out, "both:name late:condition made:condition", both(label("env", "test"), condition(`user.labels.env == "prod"`))},
		{"the label and a token", in, "billing-sync:condition both:name late:condition made:condition", both(label("env", "prod"), func() error {
			return w.revoke(ctx, alice, w.user.ID, w.token.ID)
		})},
		{"deactivated", "inactive", "billing-sync:condition both:name late:condition made:condition", user(func(u *ServiceUser) { u.Active = false })},
		{"reactivated", in, "billing-sync:condition both:name late:condition made:condition", user(func(u *ServiceUser) { u.Active = true })},
		{"another one deleted", in, "billing-sync:condition both:name late:condition", func() error {
			return w.deleteUser(ctx, alice, must(w.userNamed("made")).ID, 0)
		}},
		{"the group deleted", out, "", func() error { return w.DeleteGroup(ctx, alice, g.ID, 0) }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		check := func(where string, s *Store) {
			ask := func(token *Issued, action string) access.Reason { return probe(s, w.user.ID, token.Secret, action) }
			got := "?"
			switch get, remove := ask(narrowed, "GET /prod"), ask(elsewhere, "DELETE /prod"); {
			case get == access.Granted && remove == access.DeniedByRule:
				got = in
			case get == access.NoRule && remove == access.NoRule:
				got = out
			case get == access.NoRule && remove == access.DeniedByRule:
				got = doubt
			case get == access.UserInactive && remove == access.UserInactive:
				got = "inactive"
			}
			if got != step.want {
				t.Errorf("%s%s: it is %s, want %s", step.name, where, got, step.want)
			}
			if got := ask(elsewhere, "GET /prod"); got == access.Granted {
				t.Errorf("%s%s: by a token for another group: got granted", step.name, where)
			}
			if step.name == "the group deleted" {
				return
			}
			if got := membersOf(s, Local, g.ID); got != step.members {
				t.Errorf("%s%s: members: got %q, want %q", step.name, where, got, step.members)
			}
			if got, want := must(s.Group(ctx, Local, g.ID)).MemberCount, len(strings.Fields(step.members)); got != want {
				t.Errorf("%s%s: member_count: got %d, want %d", step.name, where, got, want)
			}
		}
		check("", w.Store)
		eventually(t, step.name+", in another process", func() bool { return other.Directory().Revision() == w.Directory().Revision() })
		check(", in another process", other)
		again := must(Open(ctx, w.path, w.opts))
		check(", opened again", again)
		same(t, step.name+", opened again", dirText(t, again), dirText(t, w.Store))
		mustDo(again.Close())
	}
	trail(t, w.Store)
}

func (s *Store) userNamed(name string) (ServiceUser, error) {
	list, _, err := s.page(ctx, Local, userPage{Name: name, Limit: 1})
	if err == nil && len(list) == 0 {
		err = notFound("service user", name)
	}
	return list[0], err
}

// A service user holds its first token when it joins by condition.
func TestCreatedByCondition(t *testing.T) {
	w := newWorld(t, Options{})
	must(w.UpdateGroup(ctx, alice, w.readers.ID, 0, func(g *Group) error { g.MemberCondition = `"finance" in user.teams`; return nil }))
	for _, row := range []struct {
		teams string
		want  access.Reason
	}{{"finance", access.Granted}, {"ops finance", access.Granted}, {"ops", access.NoRule}, {"", access.NoRule}} {
		u, token, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "in " + row.teams + "!", Active: true, Teams: strings.Fields(row.teams)}}, &Token{})
		mustDo(err)
		if got := probe(w.Store, u.ID, token.Secret, "GET /v1/x"); got != row.want {
			t.Errorf("in the teams %q: got %v, want %v", row.teams, got, row.want)
		}
		if len(u.Groups) != 0 || len(must(w.readUser(ctx, Local, u.ID)).Groups) != 0 {
			t.Errorf("in the teams %q: got the groups %v, want none that names it", row.teams, u.Groups)
		}
	}
}

// Everybody is in the default group, whatever its condition; its members are those
// that it names or that meet the condition.
func TestDefaultGroupWithACondition(t *testing.T) {
	w := newWorld(t, Options{DefaultGroup: "everyone"})
	get := func() access.Reason { return probe(w.Store, w.user.ID, w.token.Secret, "GET /all") }
	sources := func(id string) string {
		u, _ := w.Directory().User(w.user.ID)
		for _, m := range w.Directory().Memberships(u) {
			if m.Group.ID == id {
				return string(m.Source)
			}
		}
		return ""
	}
	g := must(w.CreateGroup(ctx, alice, Group{Name: "everyone", MemberCondition: `user.labels.env == "prod"`, Rules: rules("allow GET /all")}))
	change := func(edit func(*Group)) func() error {
		return func() error {
			_, err := w.UpdateGroup(ctx, alice, g.ID, 0, func(g *Group) error { edit(g); return nil })
			return err
		}
	}
	label := func(value string) func() error {
		return func() error {
			return w.changeUser(func(u *ServiceUser) { u.Labels = map[string]string{"env": value} })
		}
	}
	for _, step := range []struct {
		name, source, members string
		want                  access.Reason
		do                    func() error
	}{
		{"cannot be said", "default", "", access.Granted, func() error { return nil }},
		{"does not hold", "default", "", access.Granted, label("test")},
		{"holds", "condition", "billing-sync:condition", access.Granted, label("prod")},
		{"named", "name", "billing-sync:name", access.Granted, func() error { return w.AddMember(ctx, alice, g.ID, w.user.ID) }},
		{"named, another name", "name", "billing-sync:name", access.Granted, change(func(g *Group) { g.Name = "some" })},
		{"another name", "condition", "billing-sync:condition", access.Granted, func() error { return w.RemoveMember(ctx, alice, g.ID, w.user.ID) }},
		{"another name, does not hold", "", "", access.NoRule, label("test")},
		{"the default again", "default", "", access.Granted, change(func(g *Group) { g.Name = "everyone" })},
		{"no condition", "default", "", access.Granted, change(func(g *Group) { g.MemberCondition = "" })},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := get(); got != step.want {
			t.Errorf("%s: got %v, want %v", step.name, got, step.want)
		}
		if got := sources(g.ID); got != step.source {
			t.Errorf("%s: source: got %q, want %q", step.name, got, step.source)
		}
		if got := membersOf(w.Store, Local, g.ID); got != step.members || must(w.Group(ctx, Local, g.ID)).MemberCount != len(strings.Fields(step.members)) {
			t.Errorf("%s: members: got %q, want %q, and as many counted", step.name, got, step.members)
		}
		again := must(Open(ctx, w.path, w.opts))
		same(t, step.name+", opened again", dirText(t, again), dirText(t, w.Store))
		mustDo(again.Close())
	}
}

// Members by name and by condition come in one list, newest first, and a manager
// sees and counts those of its teams.
func TestMembersOfBothSources(t *testing.T) {
	w := newWorld(t, Options{})
	g := must(w.CreateGroup(ctx, alice, Group{Name: "g", MemberCondition: `user.name.startsWith("c")`}))
	want := map[string][]string{}
	for i := range 12 {
		w.clock.add(time.Nanosecond)
		u := ServiceUser{Profile: access.Profile{Name: fmt.Sprintf("%s%02d", []string{"n", "c", "cn", "x"}[i%4], i), Teams: [][]string{{"a"}, {"b"}, {"a", "b"}}[i%3]}}
		source := access.ByName
		switch i % 4 {
		case 0, 2:
			u.Groups = []string{g.ID}
		case 1:
			source = access.ByCondition
		case 3:
			source = ""
		}
		u = must(first(w.CreateServiceUser(ctx, alice, u, nil)))
		if source != "" {
			for _, seen := range append(slices.Clone(u.Teams), "") {
				want[seen] = slices.Insert(want[seen], 0, fmt.Sprint(Member{u.ID, u.Name, source}))
			}
		}
	}
	for team, want := range want {
		by := Local
		if team != "" {
			by = Actor{Name: "human:m", Scope: &Scope{Teams: []string{team}, Groups: []string{g.ID}}}
		}
		for _, limit := range []int{1, 2, 4, len(want) - 1, len(want), 100} {
			var got []string
			for before, more := "", true; more; {
				page, next, err := w.Members(ctx, by, g.ID, before, limit)
				if err != nil || len(page) == 0 || len(page) > limit || next && len(page) < limit {
					t.Fatalf("team %q by %d: got a page of %d, more %t, %v", team, limit, len(page), next, err)
				}
				for _, m := range page {
					got = append(got, fmt.Sprint(m))
					before = m.ID
				}
				more = next
			}
			if !slices.Equal(got, want) {
				t.Errorf("team %q by %d: got %v, want %v", team, limit, got, want)
			}
		}
		groups, _, err := w.Groups(ctx, by, "g", "", 10)
		if err != nil || len(groups) != 1 || groups[0].MemberCount != len(want) || must(w.Group(ctx, by, g.ID)).MemberCount != len(want) {
			t.Errorf("team %q: got %+v, %v, want %d members counted", team, groups, err, len(want))
		}
	}
	if list, more, err := w.Members(ctx, Actor{Name: "human:m", Scope: &Scope{Groups: []string{g.ID}}}, g.ID, "", 10); len(list) != 0 || more || err != nil {
		t.Errorf("a manager without teams: got %v, %t, %v, want nobody", list, more, err)
	}
}

// The conditions of rules follow the service user and the group at once.
func TestRuleConditions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	other := open(t, w.path, w.opts)
	text := `allow GET /own/{id} when params.id in user.labels.people.split(",")`
	mustDo(w.changeGroup(func(g *Group) {
		g.Rules = rules(text, `deny DELETE /{rest...} when user.labels.frozen == "yes"`, "allow DELETE /x")
	}))
	labels := func(m map[string]string) func() error {
		return func() error { return w.changeUser(func(u *ServiceUser) { u.Labels = m }) }
	}
	for _, step := range []struct {
		name                string
		seven, nine, remove access.Reason // GET /own/7, GET /own/9, DELETE /x
		do                  func() error
	}{
		{"neither can be evaluated", access.NoRule, access.NoRule, access.DeniedByRule, func() error { return nil }},
		{"labels", access.Granted, access.NoRule, access.Granted, labels(map[string]string{"people": "7,8", "frozen": "no"})},
		{"other labels", access.NoRule, access.Granted, access.DeniedByRule, labels(map[string]string{"people": "8,9", "frozen": "yes"})},
		{"one label less", access.NoRule, access.Granted, access.DeniedByRule, labels(map[string]string{"people": "8,9"})},
		{"another condition", access.Granted, access.NoRule, access.DeniedByRule, func() error {
			return w.changeGroup(func(g *Group) { g.Rules[0].When = `params.id == "7"` })
		}},
		{"no condition", access.Granted, access.Granted, access.DeniedByRule, func() error { return w.changeGroup(func(g *Group) { g.Rules[0].When = "" }) }},
		{"a rule taken away", access.Granted, access.Granted, access.Granted, func() error {
			return w.RemoveRule(ctx, alice, w.readers.ID, must(w.Group(ctx, Local, w.readers.ID)).Rules[1].ID)
		}},
		{"a rule added", access.DeniedByRule, access.Granted, access.Granted, func() error {
			return second(w.AddRule(ctx, alice, w.readers.ID, rules(`deny * /own/{n} when int(params.n) < 8`)[0]))
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		eventually(t, step.name+", in another process", func() bool { return other.Directory().Revision() == w.Directory().Revision() })
		for where, s := range map[string]*Store{"": w.Store, ", in another process": other} {
			for action, want := range map[string]access.Reason{"GET /own/7": step.seven, "GET /own/9": step.nine, "DELETE /x": step.remove} {
				if got := probe(s, w.user.ID, w.token.Secret, action); got != want {
					t.Errorf("%s%s: %s: got %v, want %v", step.name, where, action, got, want)
				}
			}
		}
	}
	r := rules(text)[0]
	if got := must(w.AddRule(ctx, alice, w.closers.ID, r)); got.When != r.When || got.String() != text {
		t.Errorf("a rule with a condition: got %s, want %s", got, text)
	}
	if e := must(w.trail(ctx, w.closers.ID, 0, 1))[0]; !strings.Contains(string(e.After), `params.id in user.labels.people.split(`) {
		t.Errorf("audit record: got %s, want the condition in it", e.After)
	}
}

// A group takes ten thousand rules, a thousand of them with a condition.
func TestManyConditions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	const when = `user.name == "billing-sync" && request.path.endsWith("/%d")`
	list := numberedRules(maxConditions+500, "")
	for i := range maxConditions {
		list[i].When = fmt.Sprintf(when, i)
	}
	wantInvalid(t, "1001 conditions", w.changeGroup(func(g *Group) {
		g.Rules = slices.Clone(list)
		g.Rules[maxConditions].When = "true"
	}), "rules", "has 1001 rules with a condition, at most 1000")
	start := time.Now()
	mustDo(w.changeGroup(func(g *Group) { g.Rules = list }))
	t.Logf("to write %d rules: %v", len(list), time.Since(start))
	// The others without a change of them all, which takes its time.
	runSQL(t, w.path, fmt.Sprintf(`PRAGMA busy_timeout = 5000;
		BEGIN IMMEDIATE;
		WITH RECURSIVE n (i) AS (SELECT %d UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO rules SELECT 'rule_' || i, '%s', 100000 + i, 'allow', 'GET', '', '/n/' || i, '', '', '', 0 FROM n;
		UPDATE meta SET revision = revision + 1;
		UPDATE permission_groups SET revision = (SELECT revision FROM meta) WHERE id = '%[3]s';
		COMMIT`, len(list), maxRules-1, w.readers.ID))
	mustDo(w.refresh(ctx))
	ask := func(when string, answers map[string]access.Reason) {
		t.Helper()
		for action, want := range answers {
			if got := probe(w.Store, w.user.ID, w.token.Secret, action); got != want {
				t.Errorf("%s: %s: got %v, want %v", when, action, got, want)
			}
		}
	}
	ask("all", map[string]access.Reason{"GET /n/0": access.Granted, "GET /n/999": access.Granted, "GET /n/1000": access.Granted, "GET /n/9999": access.Granted, "GET /n/10000": access.NoRule})
	if got := len(must(w.Group(ctx, Local, w.readers.ID)).Rules); got != maxRules {
		t.Errorf("rules: got %d, want %d", got, maxRules)
	}
	before := dump(t, w.Store)
	wantInvalid(t, "one rule more", w.changeGroup(func(g *Group) { g.Rules = append(g.Rules, rules("allow GET /x")...) }), "rules", "at most 10000")
	if err := second(w.AddRule(ctx, alice, w.readers.ID, rules("allow GET /x")[0])); kind(err) != "conflict rules" {
		t.Errorf("add one rule more: got %v, want a conflict", err)
	}
	mustDo(w.changeGroup(func(*Group) {}))
	same(t, "rows", dump(t, w.Store), before)
	start = time.Now()
	mustDo(w.RemoveRule(ctx, alice, w.readers.ID, "rule_9999"))
	t.Logf("to remove one of them: %v", time.Since(start))
	ask("one less", map[string]access.Reason{"GET /n/0": access.Granted, "GET /n/9998": access.Granted, "GET /n/9999": access.NoRule})
	wantInvalid(t, "add one condition more", second(w.AddRule(ctx, alice, w.readers.ID, rules("allow GET /x when true")[0])), "rules", "has 1001 rules with a condition, at most 1000")
	mustDo(second(w.AddRule(ctx, alice, w.readers.ID, rules("allow GET /x")[0])))
	for _, r := range must(w.Group(ctx, Local, w.readers.ID)).Rules[:2] {
		mustDo(w.RemoveRule(ctx, alice, w.readers.ID, r.ID))
	}
	mustDo(second(w.AddRule(ctx, alice, w.readers.ID, rules("allow GET /x when true")[0])))
	ask("some exchanged", map[string]access.Reason{"GET /n/0": access.NoRule, "GET /n/1": access.NoRule, "GET /n/2": access.Granted, "GET /x": access.Granted})
	start = time.Now()
	again := open(t, w.path, w.opts)
	t.Logf("to open it: %v", time.Since(start))
	same(t, "opened again", dirText(t, again), dirText(t, w.Store))
}

// A condition that changes moves thousands of service users, each by what it is.
func TestManyMembersByCondition(t *testing.T) {
	t.Parallel()
	const n = 4000
	w := newWorld(t, Options{})
	runSQL(t, w.path, fmt.Sprintf(`PRAGMA busy_timeout = 5000;
		BEGIN IMMEDIATE;
		WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO service_users
		SELECT 'service_' || i, 'n' || i, '', '', '', '', TRUE, 'member', '[]', CASE i %% 4 WHEN 3 THEN '{}' ELSE '{"k":"' || (i %% 4) || '"}' END,
			'[]', 0, 0, 'local', 0, 0, 0, 1, (SELECT revision + 1 FROM meta), 'n' || i, '', FALSE FROM n;
		UPDATE meta SET revision = revision + 1;
		COMMIT`, n-1))
	eventually(t, "all of them", func() bool { return w.Directory().Len() == n+1 })
	for _, step := range []struct {
		condition string
		want      int
		reason    access.Reason // for the one of the world, which has no labels
	}{
		{`user.labels.k == "1"`, n / 4, access.DeniedByRule},
		{`user.labels.k == "2"`, n / 4, access.DeniedByRule},
		{`user.labels.k in ["1", "2"]`, n / 2, access.DeniedByRule},
		{`!has(user.labels.k)`, n/4 + 1, access.DeniedByRule},
		{`user.name.startsWith("n")`, n, access.Granted},
		{`true`, n + 1, access.DeniedByRule},
		{``, 0, access.Granted},
	} {
		start := time.Now()
		must(w.UpdateGroup(ctx, alice, w.closers.ID, 0, func(g *Group) error { g.MemberCondition = step.condition; return nil }))
		t.Logf("%d service users, %s: %v", n, step.condition, time.Since(start))
		count, listed := w.Directory().MemberCount(w.closers.ID), 0
		w.Directory().Members(w.closers.ID, func(*access.User, access.Source) { listed++ })
		if count != step.want || listed != step.want {
			t.Errorf("%s: got %d members, %d of them listed, want %d", step.condition, count, listed, step.want)
		}
		if list, more, err := w.Members(ctx, Local, w.closers.ID, "", 100); len(list) != min(step.want, 100) || more != (step.want > 100) || err != nil {
			t.Errorf("%s: got a page of %d, more %t, %v", step.condition, len(list), more, err)
		}
		if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != step.reason {
			t.Errorf("%s: got %v, want %v", step.condition, got, step.reason)
		}
	}
}
