package console

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// groupAt is group, and the path of the page.
func (s *site) groupAt(name string, rules []string, members ...admin.ServiceUser) (g admin.Group, at string) {
	s.t.Helper()
	g = s.group(name, rules, members...)
	return g, Root + "permission_groups/" + g.ID
}

// stored returns a group as it is now, and its rules.
func (s *site) stored(g admin.Group) (now admin.Group, rules []string) {
	s.t.Helper()
	s.call("GET", "/permission_groups/"+g.ID, nil, &now)
	for _, r := range now.Rules {
		rules = append(rules, r.Text)
	}
	return now, rules
}

// catalogue loads the example of a catalogue.
func (s *site) catalogue() {
	s.t.Helper()
	text, err := os.ReadFile("../../examples/hibob-permissions.json")
	if err != nil {
		s.t.Fatal(err)
	}
	s.call("PUT", "/service_users/permissions", json.RawMessage(text), nil)
}

// hidden returns the value of a hidden field of a form.
func hidden(t *testing.T, page, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, `<input type="hidden" name="`+name+`" value="`)
	if !ok {
		t.Fatalf("no field %s:\n%s", name, page)
	}
	value, _, _ := strings.Cut(rest, `"`)
	return strings.ReplaceAll(value, "&#34;", `"`)
}

// wantTicked checks the ticks of a page.
func wantTicked(t *testing.T, page string, want ...string) {
	t.Helper()
	var got []string
	pattern := regexp.MustCompile(`name="(?:permission|allow)" value="([^"]*)"[^>]* checked`)
	for _, m := range pattern.FindAllStringSubmatch(page, -1) {
		got = append(got, m[1])
	}
	wantEqual(t, got, want)
}

func wantEqual(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// form writes pairs of names and values as a form.
func form(pairs ...string) string {
	values := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		values.Add(pairs[i], pairs[i+1])
	}
	return values.Encode()
}

func TestNewGroup(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	text, _ := s.get("/console/permission_groups", 200)
	wantIn(t, text, "No group yet", "Create the first group")
	text, _ = s.post("/console/permission_groups/new", form("name", "<b>", "description", `"x"`), 400)
	wantIn(t, text, `value="&lt;b&gt;"`, `value="&#34;x&#34;"`, `id="e-name"`, `aria-invalid="true"`)
	_, header := s.post("/console/permission_groups/new", form("name", "readers"), 303)
	text, _ = s.get(header.Get("Location"), 200)
	wantIn(t, text, "readers", "Saved.", "no rule of its own", "No member.")
	text, _ = s.get("/console/permission_groups", 200)
	wantIn(t, text, "readers", "1 group<")
}

// TestEffect: before a group is saved, the form shows its effect, warnings and faults.
func TestEffect(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, b := s.create("a-sync"), s.create("b-sync")
	g, at := s.groupAt("readers", []string{"allow GET /a"}, a)
	s.groupAt("others", []string{"allow GET /c"}, a, b)
	post := func(status int, rules, condition string) string {
		t.Helper()
		text, _ := s.post(at+"/edit", form("do", "preview", "name", "readers", "mode", "enforce",
			"rules", rules,
			"member_condition", condition), status)
		return text
	}
	text := post(200, "allow GET /b/{id}\r\nallow GET /b/7\r\nallow GET /c\r\ndeny GTE /d",
		`user.name == "b-sync"`)
	wantIn(t, text, "gains <code><bdi>allow GET /b/{id}<", "loses <code><bdi>allow GET /a<",
		"is refused by <code><bdi>deny GTE /d<",
		"1 new member<", a.ID, b.ID,
		"allow GET /b/7&#34; adds nothing: allowed already by &#34;allow GET /b/{id}&#34;",
		"did you mean GET")
	wantNone(t, text, "rule_", "gains <code><bdi>allow GET /c<") // another group gives it
	text = post(200, "allow GET /a", "")
	wantIn(t, text, "No service user gains or loses a right.")

	text = post(400, "allow GET /b\r\n\r\n<i>", "")
	wantIn(t, text, "&lt;i&gt;: ", `allow GET /b`, "&lt;i&gt;</textarea>", `aria-invalid="true"`)
	text = post(400, "allow GET /b", "user.nam")
	wantIn(t, text, `id="e-member_condition">`, `value="user.nam"`)
	wantNone(t, text, `id="e-member_condition"></small>`)
	if _, rules := s.stored(g); len(rules) != 1 {
		t.Errorf("the previews changed the rules to %q", rules)
	}
}

// TestSavedRulesKeepTheirDescriptions: the line of a rule has no description.
func TestSavedRulesKeepTheirDescriptions(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	g, at := s.groupAt("readers", nil)
	rule := admin.RuleInput{Effect: "allow", Methods: []string{"GET"}, Path: "/a", Name: "look-up",
		Description: "asked for by HR"}
	s.call("POST", "/permission_groups/"+g.ID+"/rules", rule, nil)
	s.post(at+"/edit", form("do", "save", "name", "readers", "mode", "enforce", "rules",
		"deny GET /b\nallow GET /a"), 303)
	s.post(at+"/endpoints", form("do", "save", "path", "/c", "allow", "GET /c"), 303)
	now, rules := s.stored(g)
	wantEqual(t, rules, []string{"deny GET /b", "allow GET /a", "allow GET /c"})
	if r := now.Rules[1]; r.Name != "look-up" || r.Description != "asked for by HR" {
		t.Errorf("got %+v", r)
	}
}

// TestGroupConflicts: after the change of another person, each form keeps its input and shows the
// group as it is now; a second save is meant.
func TestGroupConflicts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.catalogue()
	for _, row := range []struct{ page, input, kept, theirs, rules, permissions string }{
		{"edit", form("name", "mine", "mode", "enforce", "rules", "allow GET /mine"),
			">allow GET /mine</textarea>", "<bdi>allow GET /theirs<", "allow GET /mine",
			"directory.view"},
		{"permissions", form("permission", "reports.view"),
			`checked aria-label="View reports`, `<span class="tag">directory.view<`,
			"allow GET /a,allow GET /theirs", "reports.view"},
		{"endpoints", form("path", "/a", "allow", "PUT /a", "new", "/mine", "new_method", "GET"),
			`value="PUT /a" checked`, "<bdi>allow GET /theirs<",
			"allow GET /theirs,allow PUT /a,allow GET /mine", "directory.view"},
	} {
		t.Run(row.page, func(t *testing.T) {
			s.t = t
			g, at := s.groupAt("conflict-"+row.page, []string{"allow GET /a"}, s.create("user-"+row.page))
			text, _ := s.get(at+"/"+row.page, 200)
			input := row.input + "&do=save&" + form("etag", hidden(t, text, "etag"))
			s.call("POST", "/permission_groups/"+g.ID+"/rules", "allow GET /theirs", nil)
			s.call("PUT", "/permission_groups/"+g.ID+"/permissions/directory.view", nil, nil)

			text, _ = s.post(at+"/"+row.page, input, 412)
			wantIn(t, text, "Somebody has changed this", "The group as it is now", row.kept,
				row.theirs, "Effect of saving")
			s.post(at+"/"+row.page, input, 412) // the old form does not become right
			s.post(at+"/"+row.page, row.input+"&do=save&"+form("etag", hidden(t, text, "etag")), 303)
			now, rules := s.stored(g)
			wantEqual(t, rules, strings.Split(row.rules, ","))
			wantEqual(t, now.Permissions, strings.Split(row.permissions, ","))
		})
	}
}

func TestTicks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("hr-bot")
	g, at := s.groupAt("readers", []string{"deny * /admin"}, u)
	text, _ := s.get(at+"/permissions", 200)
	wantIn(t, text, "The catalogue is empty", at+"/endpoints")
	s.catalogue()
	text, _ = s.get(at+"/permissions", 200)
	wantIn(t, text, "<h2>Features</h2>", "<h2>People&#39;s data</h2>", "all of view", "all of edit",
		"all of history", "all of other",
		`value="people.address.history"`, "Employment", "Documents: Confidential Docs", "data-filter",
		`data-all="row"`)
	wantNone(t, text, "all of bank_overtime", " checked")
	if len(text) > 100<<10 {
		t.Errorf("the page has %d bytes", len(text))
	}
	ticks := form("permission", "people.address.view", "permission", "reports.view")
	text, _ = s.post(at+"/permissions", ticks+"&do=preview", 200)
	wantTicked(t, text, "reports.view", "people.address.view")
	wantIn(t, text, "gains <code><bdi>allow GET /v1/people/{id}/address<", u.ID)
	text, _ = s.post(at+"/permissions", ticks+"&permission=nothing.view&do=save", 400)
	wantTicked(t, text, "reports.view", "people.address.view")
	wantIn(t, text, "nothing.view")
	s.post(at+"/permissions", ticks+"&do=save", 303)
	now, rules := s.stored(g)
	wantEqual(t, now.Permissions, []string{"people.address.view", "reports.view"})
	wantEqual(t, rules, []string{"deny * /admin"})
	s.post(at+"/permissions", "do=save", 303)
	if now, _ = s.stored(g); len(now.Permissions) > 0 {
		t.Errorf("without a tick the group has %q", now.Permissions)
	}
}

// TestSections: columns are in the order of the levels; the other actions share the last one.
func TestSections(t *testing.T) {
	t.Parallel()
	list := []admin.Permission{
		{Key: "a.send", Category: "Data: A"}, {Key: "a.history", Category: "Data: A"},
		{Key: "a.view", Category: "Data: A"},
		{Key: "b.drop", Category: "Data: B"}, {Key: "b.send", Category: "Data: B"},
		{Key: "b.edit", Category: "Data: B: x"},
		{Key: "plain", Name: "Plain"}, {Key: "other.view", Category: "Other"},
	}
	var got []string
	for _, s := range sections(list, []string{"b.send"}) {
		got = append(got, fmt.Sprintf("%s %q", s.Name, s.Columns))
		for _, r := range s.Rows {
			line := r.Name + ":"
			for _, c := range s.Columns {
				for _, one := range r.Ticks[c] {
					line += fmt.Sprintf(" %s %t", one.Key, one.On)
				}
			}
			got = append(got, line)
		}
	}
	wantEqual(t, got, []string{
		`Data ["view" "edit" "history" ""]`, " A: a.view false a.history false a.send false",
		" B: b.drop false b.send true", " B: x: b.edit false", ` ["view" ""]`, "Plain: plain false",
		"Other: other.view false",
	})
}

func TestGrid(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("hr-bot")
	own := []string{"allow GET /a", "allow POST /a", "deny * /admin", "allow GET /b", "allow * /c",
		"allow GET x.org/d", `allow GET /e when user.name == "x"`}
	g, at := s.groupAt("desk", own, u)
	s.groupAt("others", []string{"allow GET /f", "deny GET /h"})
	text, _ := s.get(at+"/endpoints", 200)
	wantTicked(t, text, "GET /a", "POST /a", "GET /b")
	wantIn(t, text,
		`value="GET /f"`, "deny * /admin", "allow * /c", "allow GET x.org/d", "allow GET /e when")
	wantNone(t, text, `value="GET /h"`)

	ticks := form("path", "/a", "path", "/b", "path", "/f", "allow", "GET /a", "allow",
		"POST /a", "allow", "GET /f", "allow", "PUT /f",
		"new", "/v1/{id}\n/v2/{id}", "new_method", "DELETE")
	text, _ = s.post(at+"/endpoints", ticks+"&do=preview", 200)
	wantIn(t, text, "loses <code><bdi>allow GET /b<", "gains <code><bdi>allow GET,PUT /f<",
		"gains <code><bdi>allow DELETE /v2/{id}<",
		">/v1/{id}\n/v2/{id}</textarea>",
		`name="new_method" value="DELETE" aria-label="DELETE of the further paths" checked`)
	text, _ = s.post(at+"/endpoints", strings.Replace(ticks, "new=%2F", "new=", 1)+"&do=save", 400)
	wantIn(t, text, `aria-invalid="true"`, ">v1/{id}\n/v2/{id}</textarea>", `value="PUT /f" checked`)
	wantNone(t, text, `id="e-rules"></small>`)
	before, _ := s.stored(g)
	s.post(at+"/endpoints", ticks+"&do=save", 303)
	now, rules := s.stored(g)
	wantEqual(t, rules, []string{"allow GET /a", "allow POST /a", "deny * /admin", "allow * /c",
		"allow GET x.org/d",
		`allow GET /e when user.name == "x"`, "allow GET,PUT /f", "allow DELETE /v1/{id}",
		"allow DELETE /v2/{id}"})
	if now.Rules[0].ID != before.Rules[0].ID || now.Rules[5].ID != before.Rules[6].ID {
		t.Error("rules that stay have new ids")
	}
	// A path that the group has already gets the method besides its own.
	text, _ = s.post(at+"/endpoints", form("do", "save", "new", "/new"), 400)
	wantIn(t, text, "a rule names 1 to 32 methods", ">/new</textarea>")
	s.post(at+"/endpoints", form("do", "save", "new", "/f", "new_method", "POST"), 303)
	s.post(at+"/endpoints", form("do", "save", "new", "/f", "new_method", "PATCH", "path", "/f",
		"allow", "GET /f"), 303)
	if _, rules = s.stored(g); rules[len(rules)-1] != "allow GET,PATCH /f" {
		t.Errorf("got %q", rules)
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("billing-sync")
	_, at := s.groupAt("readers", nil)
	text, _ := s.post(at+"/members", form("user", "<nobody>"), 400)
	wantIn(t, text, `value="&lt;nobody&gt;"`, `id="e-user"`, `aria-invalid="true"`, "data-suggest")
	_, header := s.post(at+"/members", form("user", " billing-sync "), 303)
	text, _ = s.get(header.Get("Location"), 200)
	wantIn(t, text, "1 member<", "by name", u.ID)
	s.post(at+"/members/"+u.ID+"/remove", "", 303)
	text, _ = s.get(at, 200)
	wantIn(t, text, "No member.")
	s.get(at+"x", 404)
	s.post(at+"x/members", form("user", "billing-sync"), 404)
}

// observe counts a request of a service user as a site in mode observe does.
func (s *site) observe(u admin.ServiceUser, method, path string) {
	s.t.Helper()
	d := s.store.Directory()
	who, why := d.Principal(u.ID, "", netip.Addr{}, s.store.Now().Unix())
	if why != access.Granted {
		s.t.Fatalf("got %s", why)
	}
	a := access.Action{Method: method, Path: path, Now: s.store.Now().Unix()}
	decision := d.Authorize(who, a)
	s.recall.Observe(who, a, decision, decision.Reason == access.NoRule, time.Now())
}

// TestObserveAllowEnforce leads a group from mode observe to mode enforce.
func TestObserveAllowEnforce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u, stranger := s.create("shop"), s.create("stranger")
	s.groupAt("base", []string{"allow POST /v1/tasks"}, u)
	g, at := s.groupAt("desk", []string{"deny POST /v1/tasks"}, u)
	s.call("PATCH", "/permission_groups/"+g.ID, map[string]string{"mode": "observe"}, nil)
	text, _ := s.get(at, 200)
	wantIn(t, text, "The rules decide nothing", "None on this node")
	s.observe(u, "GET", "/v1/orders/7")        // no rule allows it
	s.observe(u, "POST", "/v1/tasks")          // the deny of the group would refuse it
	s.observe(stranger, "GET", "/v1/invoices") // is no matter of the group
	text, _ = s.get(at, 200)
	wantIn(t, text, "GET /v1/orders/{id}", "no rule allows it", "allow GET /v1/orders/{id}", "Allow this",
		"POST /v1/tasks", "Change the rules",
		"/console/explain?user="+u.ID+"&amp;method=GET&amp;url=%2fv1%2forders%2f7")
	wantNone(t, text, "/v1/invoices")

	_, header := s.post(at+"/rules", form("rule", hidden(t, text, "rule")), 303)
	text, _ = s.get(header.Get("Location"), 200)
	wantIn(t, text, "The rule was added.", "POST /v1/tasks")
	wantNone(t, text, "Allow this")

	may := func() string {
		t.Helper()
		var answer admin.Explanation
		in := admin.ExplainInput{ServiceUserID: u.ID, Method: "GET", URL: "/v1/orders/7"}
		s.call("POST", "/service_users/explain", in, &answer)
		return answer.Decision
	}
	if got := may(); got != "deny" {
		t.Errorf("in mode observe: got %s", got)
	}
	text, _ = s.get(at+"/edit", 200)
	wantIn(t, text, `value="observe" checked`)
	text, _ = s.post(at+"/edit", form("do", "preview", "name", "desk", "mode", "enforce", "etag",
		hidden(t, text, "etag"),
		"rules", "deny POST /v1/tasks\nallow GET /v1/orders/{id}"), 200)
	wantIn(t, text, `value="enforce" checked`, "gains <code><bdi>allow GET /v1/orders/{id}<",
		"is refused by <code><bdi>deny POST /v1/tasks<")
	s.post(at+"/edit", form("do", "save", "name", "desk", "mode", "enforce", "etag", hidden(t, text, "etag"),
		"rules", "allow GET /v1/orders/{id}"), 303)
	if got := may(); got != "allow" {
		t.Errorf("in mode enforce: got %s", got)
	}
	text, _ = s.get(at, 200)
	wantNone(t, text, "Change the rules") // what the group would have refused is past
}

// TestDeleteGroup: the question names the members and the rights that they lose. The list of deleted groups
// brings it back.
func TestDeleteGroup(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, b := s.create("a-sync"), s.create("b-sync")
	g, at := s.groupAt("readers", []string{"allow GET /a", "deny GET /b"}, a, b)
	s.groupAt("others", []string{"allow GET /a"}, b)
	text, _ := s.get(at+"/delete", 200)
	wantIn(t, text, "Delete the group <bdi>readers</bdi>?", "It has 2 members.", "a-sync", "b-sync",
		"loses <code><bdi>allow GET /a<", "is no longer refused by <code><bdi>deny GET /b<")
	if strings.Count(text, "loses <code><bdi>allow GET /a<") != 1 {
		t.Errorf("b-sync has the rule by another group:\n%s", text)
	}
	_, header := s.post(at+"/delete", "", 303)
	text, _ = s.get(header.Get("Location"), 200)
	wantIn(t, text, "Deleted.", "others")
	s.get(at, 404)
	s.post(at+"/edit", form("do", "save", "name", "readers"), 404)

	const deleted = "/console/permission_groups?deleted=true"
	wantIn(t, text, `href="`+deleted+`"`)
	text, _ = s.get(deleted, 200)
	wantIn(t, text, "<bdi>readers</bdi>", `action="`+at+`/undelete"`)
	wantNone(t, text, "others", "New group")
	undelete := func(want string) {
		t.Helper()
		_, header := s.post(at+"/undelete", "", 303)
		text, _ := s.get(header.Get("Location"), 200)
		wantIn(t, text, want, "<h1><bdi>readers", "deny GET /b")
	}
	undelete("its rules apply again.</p>")
	s.post(at+"/undelete", "", 409)
	text, _ = s.get(deleted, 200)
	wantIn(t, text, "No group was deleted")
	// A permission that is gone meanwhile does not come back, and neither does a group whose name another has.
	permission := map[string]any{"key": "a.view", "name": "A", "rules": []string{"allow GET /a"}}
	s.call("PUT", "/service_users/permissions", map[string]any{"permissions": []any{permission}}, nil)
	s.call("PUT", g.URI+"/permissions/a.view", nil, nil)
	s.post(at+"/delete", "", 303)
	s.call("DELETE", "/service_users/permissions?key=a.view", nil, nil)
	undelete("Members or permissions that were deleted meanwhile did not come back.")
	s.post(at+"/delete", "", 303)
	s.groupAt("readers", nil)
	s.post(at+"/undelete", "", 409)
}

// TestLargeGroup: the pages of a group with many rules and members stay small.
func TestLargeGroup(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var rules []string
	for i := range 200 {
		rules = append(rules, fmt.Sprintf("allow GET /v1/departments/%03d/people/{id}", i))
	}
	var users []fields
	for i := range 60 {
		users = append(users, fields{"name": fmt.Sprintf("machine-of-department-%03d", i)})
	}
	s.call("POST", "/service_users/bulk", fields{"do": "create", "users": users}, nil)
	g, at := s.groupAt("large", rules)
	s.call("PATCH", "/permission_groups/"+g.ID, map[string]string{"member_condition": "true"}, nil)
	for page, parts := range map[string][]string{
		"":           {"Show 100 more rules", "60 members", "Next page"},
		"/delete":    {"loses 180 more", "and 40 more"},
		"/endpoints": {"Only these paths are shown", "/v1/departments/099/"},
		"/edit":      {"/v1/departments/199/"},
	} {
		text, _ := s.get(at+page, 200)
		wantIn(t, text, parts...)
		if len(text) > 100<<10 {
			t.Errorf("%s: the page has %d bytes", page, len(text))
		}
	}
	text, _ := s.get(at+"?rules=all", 200)
	wantIn(t, text, "/v1/departments/199/")

	// Ticks that are shown change; the other paths stay.
	path := "/v1/departments/199/people/{id}"
	text, _ = s.get(at+"/endpoints", 200)
	s.post(at+"/endpoints", form("do", "save", "etag", hidden(t, text, "etag"), "path", path, "allow",
		"PUT "+path), 303)
	if _, now := s.stored(g); len(now) != 200 || now[198] != rules[198] || now[199] != "allow PUT "+path {
		t.Errorf("got %d rules, the last ones %q", len(now), now[198:])
	}
}

// TestHostileGroup: names, rules, conditions and paths of requests are text on every page.
func TestHostileGroup(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const evil = `"><script>alert(1)</script>`
	long := strings.Repeat("x", 200)
	permission := map[string]any{"key": "evil.view", "name": evil, "description": evil,
		"category": evil + ": " + evil, "rules": []string{"allow GET /" + evil}}
	s.call("PUT", "/service_users/permissions", map[string]any{"permissions": []any{permission}}, nil)
	u := s.create("<script>")
	g, at := s.groupAt("evil", []string{"allow GET /<script>/" + long,
		`deny GET /{id} when params.id == "\"><script>"`}, u)
	s.call("PATCH", "/permission_groups/"+g.ID, map[string]any{"description": evil + long,
		"member_condition": `user.name == "<script>"`,
		"permissions":      []string{"evil.view"}, "mode": "observe"}, nil)
	s.observe(u, "GET", "/<script>")
	s.observe(u, "PUT", "/"+evil)
	for _, page := range []string{"", "/edit", "/permissions", "/endpoints", "/delete"} {
		text, _ := s.get(at+page, 200)
		if got := strings.Count(text, "<script"); got != 1 { // the one of the layout
			t.Errorf("%s: %d scripts:\n%s", page, got, text)
		}
	}
	text, _ := s.post(at+"/edit", form("do", "preview", "name", evil, "description", evil, "mode", evil,
		"rules", evil, "member_condition", evil), 400)
	wantNone(t, text, "<script>")
	text, _ = s.get(at, 200)
	wantIn(t, text, "&lt;script&gt;/"+long)
	text, _ = s.get("/console/permission_groups", 200)
	wantIn(t, text, "<bdi>&#34;&gt;&lt;script&gt;")
}
