package console

import (
	"database/sql"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// explainURL is the address of the page with a question.
func explainURL(pairs ...string) string {
	query := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		query.Set(pairs[i], pairs[i+1])
	}
	return "/console/explain?" + query.Encode()
}

// Each kind of answer of explain is a page that says the reason and the way on.
func TestExplainAnswers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	soon := s.store.Now().Add(time.Minute)
	reader, off, ended, near := s.create("reader"), s.create("off"), s.create("ended"), s.create("near")
	late, gone := s.create("late"), s.create("gone")
	s.create("empty")
	s.group("readers", []string{
		"allow GET /v1/people/{id}", "deny * /v1/people/7", "allow GET /env when request.header('X-Env') == 'dev'",
		"allow GET /from when request.remote_ip == '10.1.2.3'", "allow GET api.example.com/h",
		"allow GET /late when now > timestamp('2050-01-01T00:00:00Z')",
	}, reader, off, ended, near, late, gone)
	s.group("writers", []string{"allow PUT /v1/people/{id}"})
	watch := s.group("watch", []string{"allow DELETE /v1/people/{id}"}, reader)
	s.call("PATCH", watch.URI, map[string]any{"mode": "observe"}, nil)
	s.call("PATCH", off.URI, map[string]any{"active": false}, nil)
	s.call("PATCH", ended.URI, map[string]any{"expires_at": soon}, nil)
	s.call("PATCH", near.URI, map[string]any{"allowed_ips": []string{"10.0.0.0/8"}}, nil)
	for _, u := range []admin.ServiceUser{late, gone} {
		var list admin.TokenList
		s.call("GET", u.URI+"/tokens", nil, &list)
		change := map[string]any{"expires_at": soon}
		if u.ID == gone.ID {
			s.call("DELETE", list.Tokens[0].URI, nil, nil)
		} else {
			s.call("PATCH", list.Tokens[0].URI, change, nil)
		}
	}
	s.ahead.Store(int64(time.Hour))
	for _, row := range []struct {
		ask  []string
		want []string
	}{
		{[]string{"user", "reader", "url", "/v1/people/8"}, []string{"Allowed: a rule allows it", "which names it as a member",
			"allow GET /v1/people/{id}", ">allow</span>"}},
		{[]string{"user", reader.ID, "method", "HEAD", "url", "/v1/people/8"}, []string{"Allowed", `value="HEAD"`}},
		{[]string{"user", "reader", "url", "/v1/people/7"}, []string{"Refused: a rule denies it", "deny * /v1/people/7",
			"No other rule helps", "The nearest rule:", "a deny wins", ">deny</span>"}},
		{[]string{"user", "reader", "method", "PUT", "url", "/v1/people/8"}, []string{"Refused: no rule allows it",
			"no rule covers the request", "the method PUT is not among GET", "allow PUT /v1/people/8", ">readers</option>",
			"a new group for <bdi>reader</bdi> alone", "Join <bdi>writers</bdi>"}},
		{[]string{"user", "reader", "method", "DELETE", "url", "/v1/people/8"}, []string{"the permission group only observes"}},
		{[]string{"user", "empty", "url", "/v1/people/8"}, []string{"Refused: no rule allows it", "have no rule", "Join <bdi>readers</bdi>"}},
		{[]string{"user", "reader", "url", "/env"}, []string{"It also depends on <code>headers.X-Env</code>"}},
		{[]string{"user", "reader", "url", "/env", "header", "x-env: dev"}, []string{"Allowed", `name="header" value="x-env: dev"`}},
		{[]string{"user", "reader", "url", "/env", "header", "X-Env:"}, []string{"Refused", "its condition does not hold"}},
		{[]string{"user", "reader", "url", "/from"}, []string{"It also depends on the address,"}},
		{[]string{"user", "reader", "url", "/from", "remote_ip", "10.1.2.3"}, []string{"Allowed", `value="10.1.2.3"`}},
		{[]string{"user", "reader", "url", "/h"}, []string{"It also depends on the host of a whole URL,"}},
		{[]string{"user", "reader", "url", "https://api.example.com/h"}, []string{"Allowed", "GET api.example.com/h"}},
		{[]string{"user", "reader", "url", "/late"}, []string{"It also depends on the time,", `name="at"`}},
		{[]string{"user", "reader", "url", "/late", "at", "2051-01-01T00:00:00Z"}, []string{"Allowed"}},
		{[]string{"user", "reader", "url", "/v1//people"}, []string{"Refused: the request is refused with status 400 before any rule is read", "merge_slashes",
			"No rule can allow it."}},
		{[]string{"user", "reader", "method", "TRACE", "url", "/"}, []string{"refused with status 405"}},
		{[]string{"user", "off", "url", "/v1/people/8"}, []string{"Refused: it cannot authenticate: the service user is deactivated", "reactivate it"}},
		{[]string{"user", "off", "url", "/v1//people"}, []string{"refused with status 400", "Besides, nobody can log in now: the service user is deactivated."}},
		{[]string{"user", "ended", "url", "/v1/people/8"}, []string{"the service user has expired", "a later end"}},
		{[]string{"user", "near", "url", "/v1/people/8"}, []string{"Allowed", "only from 10.0.0.0/8", "It also depends on the address,"}},
		{[]string{"user", "near", "url", "/v1/people/8", "remote_ip", "192.0.2.1"}, []string{"not among the allowed_ips", "more addresses"}},
		{[]string{"user", "late", "url", "/v1/people/8"}, []string{"the token has expired", "give it a new token"}},
		{[]string{"user", "gone", "url", "/v1/people/8"}, []string{"Refused: it cannot authenticate", "give it a new token"}},
	} {
		text, _ := s.get(explainURL(row.ask...), 200)
		wantIn(t, text, append(row.want, `<section class="answer `, `<ol class="path">`)...)
		answer, _, _ := strings.Cut(text, "<details>")
		wantNone(t, answer, "ZgotmplZ", "not asked: give")
		if t.Failed() {
			t.Fatalf("of the question %q", row.ask)
		}
	}
	text, _ := s.get("/console/explain", 200)
	wantNone(t, text, `class="answer`, `role="alert"`)
	for _, row := range []struct {
		ask   []string
		field string
		want  string
	}{
		{[]string{"user", "nobody", "url", "/x"}, "user", "there is no service user &#34;nobody&#34;"},
		{[]string{"url", "/x"}, "user", "there is no service user"},
		{[]string{"user", "reader", "url", "x"}, "url", "neither a path"},
		{[]string{"user", "reader"}, "url", "neither a path"},
		{[]string{"user", "reader", "url", "/x", "method", "<b>"}, "method", "is not a method"},
		{[]string{"user", "reader", "url", "/x", "remote_ip", "here"}, "remote_ip", "is not an address"},
		{[]string{"user", "reader", "url", "/x", "site", "api.example.com"}, "site", "only a running Caddy"},
		{[]string{"user", "reader", "url", "/x", "at", "noon"}, "at", "at: "},
		{[]string{"decision_id", "decision_x"}, "decision_id", "this decision is not remembered"},
	} {
		text, _ := s.get(explainURL(row.ask...), 400)
		wantIn(t, text, row.want, `id="fault"`)
		for i := 0; i < len(row.ask); i += 2 {
			wantIn(t, text, fmt.Sprintf(`name=%q value="%s"`, row.ask[i], strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(row.ask[i+1])))
		}
		_, input, _ := strings.Cut(text, `name="`+row.field+`"`)
		input, _, _ = strings.Cut(input, ">")
		wantIn(t, input, `aria-invalid="true"`)
	}
}

// refuse keeps a refusal of a request, as a Caddy does.
func (s *site) refuse(id string, u admin.ServiceUser, method, path string) {
	s.t.Helper()
	var list admin.TokenList
	s.call("GET", u.URI+"/tokens", nil, &list)
	d := s.store.Directory()
	p, _ := d.Principal(u.ID, list.Tokens[0].ID, netip.Addr{}, s.store.Now().Unix())
	action := access.Action{Method: method, Host: "api.example.com", Path: path, Now: s.store.Now().Unix()}
	decision := d.Authorize(p, action)
	if decision.Allowed() {
		s.t.Fatalf("%s %s is allowed", method, path)
	}
	kept := access.Recalled{
		ID: id, Status: 403, At: s.store.Now(), UserID: u.ID, TokenID: list.Tokens[0].ID, Action: action,
		Revision: d.Revision(), Reason: decision.Reason,
	}
	if decision.Rule != nil {
		kept.Rule, kept.Group = *decision.Rule, decision.Group.ID
	}
	s.recall.Keep(kept)
}

// A refusal of the past is explained by its id, as it was and as it would be now, as long as the node
// remembers it.
func TestExplainRefusal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("reader")
	g := s.group("readers", []string{"allow GET /v1/x", "deny GET /v1/me"}, u)
	s.refuse("decision_a", u, "PUT", "/v1/x")
	s.refuse("decision_b", u, "GET", "/v1/me")
	text, _ := s.get("/console/service_users/"+u.ID, 200)
	wantIn(t, text, `href="/console/explain?decision_id=decision_a"`, `href="/console/explain?decision_id=decision_b"`)
	s.recall.Keep(access.Recalled{
		Status: 401, At: s.store.Now(), UserID: u.ID, Reason: access.WrongSecret,
		Action: access.Action{Method: "GET", Host: "api.example.com", Path: "/v1/<x>&user=y", Address: netip.MustParseAddr("192.0.2.1")},
	})
	text, _ = s.get("/console/service_users/"+u.ID, 200)
	link := "/console/explain?user=" + u.ID + "&amp;method=GET&amp;url=https://api.example.com%2fv1%2f%3cx%3e%26user%3dy&amp;remote_ip=192.0.2.1"
	wantIn(t, text, link)
	text, _ = s.get(strings.ReplaceAll(link, "&amp;", "&"), 200)
	wantIn(t, text, "Refused", "/v1/&lt;x&gt;&amp;user=y")
	a, b := explainURL("decision_id", "decision_a"), explainURL("decision_id", " decision_b ")
	text, _ = s.get(a, 200)
	wantIn(t, text, "Refused: no rule allows it", "Decided ", `value="https://api.example.com/v1/x"`, "allow PUT /v1/x")
	wantNone(t, text, "Now it would be")
	text, _ = s.get(b, 200)
	wantIn(t, text, "Refused: a rule denies it", "deny GET /v1/me", "No other rule helps")

	form := url.Values{"rule": {"allow PUT /v1/x"}, "group": {g.ID}, "user": {u.ID}}
	_, header := s.post(a, form.Encode(), 303)
	text, _ = s.get(header.Get("Location"), 200)
	wantIn(t, text, "The rule was added.", "Now it would be: <strong>allow</strong>")
	wantNone(t, text, "To allow it")

	s.call("DELETE", g.URI, nil, nil)
	text, _ = s.get(b, 200)
	wantIn(t, text, "deleted since", "deny GET /v1/me")
	s.call("DELETE", u.URI, nil, nil)
	text, _ = s.get(b, 200)
	wantIn(t, text, "the service user is deleted", ">reader</bdi>")
	s.recall.Keep(access.Recalled{ID: "decision_c", Status: 403, At: s.store.Now(), UserID: "service_purged", Reason: access.NoRule})
	text, _ = s.get(explainURL("decision_id", "decision_c"), 200)
	wantIn(t, text, "service_purged", "Refused: no rule allows it")
}

// Each button of an answer allows the request.
func TestGrants(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("<b>reader</b>")
	readers := s.group("readers", nil, u)
	writers := s.group("writers", []string{"allow PUT /v1/{id}"})
	path := func(p string) string { return explainURL("user", u.ID, "method", "PUT", "url", p) }
	for _, row := range []struct {
		path string
		form url.Values
		news string
	}{
		{"/a", url.Values{"rule": {"allow PUT /a"}, "group": {readers.ID}}, "The rule was added."},
		{"/b", url.Values{"rule": {"allow PUT /b"}, "group": {readers.ID}, "join": {"new"}}, "It is now a member of the group."},
		{"/v1/c", url.Values{"rule": {"allow PUT /v1/c"}, "group": {readers.ID}, "join": {writers.ID}}, "It is now a member of the group."},
	} {
		text, _ := s.get(path(row.path), 200)
		wantIn(t, text, "Refused", row.form.Get("rule"), "&lt;b&gt;")
		row.form.Set("user", u.ID)
		row.form.Set("name", u.Name)
		_, header := s.post(path(row.path), row.form.Encode(), 303)
		text, _ = s.get(header.Get("Location"), 200)
		wantIn(t, text, "Allowed", row.news)
	}
	var list admin.GroupList
	s.call("GET", "/permission_groups", nil, &list)
	names := ""
	for _, g := range list.PermissionGroups {
		names += fmt.Sprintf("%s: %d, ", g.Name, len(g.Rules))
	}
	if want := "only -b-reader--b-: 1, writers: 1, readers: 1, "; names != want {
		t.Errorf("got the groups %q, want %q", names, want)
	}
	s.post("/console/explain", "rule=allow+GET+/&group=group_x", 404)
	s.post("/console/explain", "rule=nonsense&group="+readers.ID, 400)
}

// A manager is offered neither decisions nor rules, but the groups that it may give.
func TestExplainForManagers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u, other := s.create("reader"), s.create("other")
	s.call("PATCH", u.URI, map[string]any{"teams": []string{"x"}}, nil)
	s.call("PATCH", other.URI, map[string]any{"teams": []string{"x"}}, nil)
	s.group("finance", []string{"allow PUT /f", "deny GET /v1/me"}, other)
	writers := s.group("writers", []string{"allow PUT /v1/{id}"})
	s.create("stranger")
	s.by = s.api.HumanManager("carol", []string{"x"}, []string{"writers"})
	question := explainURL("user", "reader", "method", "PUT", "url", "/v1/c")
	text, _ := s.get(question, 200)
	wantIn(t, text, "Refused: no rule allows it", "Join <bdi>writers</bdi>", "An admin can add the rule <code><bdi>allow PUT /v1/c")
	wantNone(t, text, "Add the rule", `name="decision_id"`)
	text, _ = s.get(explainURL("user", "other", "method", "PUT", "url", "/v1/c"), 200)
	wantIn(t, text, "Refused: no rule allows it", "An admin can add the rule")
	wantNone(t, text, "Join ", "finance") // joining is refused: the manager does not hold all of its groups
	text, _ = s.get(explainURL("user", "other", "url", "/v1/me"), 200)
	wantIn(t, text, "a permission group outside of your reach")
	wantNone(t, text, "finance", "deny GET", "No other rule helps")
	text, _ = s.get(explainURL("user", "stranger", "url", "/v1/me"), 400)
	wantIn(t, text, "there is no service user")
	form := url.Values{"user": {u.ID}, "join": {writers.ID}}
	_, header := s.post(question, form.Encode(), 303)
	text, _ = s.get(header.Get("Location"), 200)
	wantIn(t, text, "Allowed")
	s.post("/console/explain", url.Values{"group": {writers.ID}, "rule": {"allow GET /x"}}.Encode(), 403)
	s.get("/console/audit", 403)
	text, _ = s.get("/console/health", 200)
	wantNone(t, text, "Requests in 24 hours")
}

// The trail shows each change in a few words.
func TestAudit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("reader")
	g := s.group("readers", []string{"allow GET /v1/x", "deny GET /v1/me"}, u)
	s.call("PATCH", g.URI, map[string]any{"rules": []any{"allow GET /v1/x", map[string]any{"effect": "allow", "methods": []string{"PUT"}, "path": "/v1/y", "name": "why"}}}, nil)
	s.call("PATCH", u.URI, map[string]any{"active": false, "expires_at": "2050-01-02T03:04:05Z"}, nil)
	s.call("PATCH", u.URI, map[string]any{"labels": map[string]string{"env": "dev", "version": "<i>"}, "teams": []string{"a", "b"}}, nil)
	s.call("PATCH", u.URI, map[string]any{"labels": map[string]string{"env": "prod", "version": "<i>"}, "description": "note"}, nil)
	text, _ := s.get("/console/audit?resource_id=reader", 200)
	wantIn(t, text, `href="/console/audit?resource_id=`+u.ID+`"><bdi>reader</bdi>`, "<bdi>human:test</bdi>",
		"<del><bdi>active: on</bdi></del><ins><bdi>active: off</bdi></ins><ins><bdi>expires at: 2050-01-02 03:04:05 UTC</bdi></ins></td>",
		"<td><ins><bdi>labels env: dev</bdi></ins><ins><bdi>labels version: &lt;i&gt;</bdi></ins><ins><bdi>teams: a</bdi></ins><ins><bdi>teams: b</bdi></ins></td>",
		"<td><del><bdi>labels env: dev</bdi></del><ins><bdi>description: note</bdi></ins><ins><bdi>labels env: prod</bdi></ins></td>",
		"<td><ins><bdi>permission groups: readers</bdi></ins></td>", "service_user.create", "token.create", "member.add")
	wantNone(t, text, "<td>permission_group.update", "bdi>version", "updated", "csu_")
	text, _ = s.get("/console/audit?action=permission_group.update", 200)
	wantIn(t, text, "<td><del><bdi>rules: deny GET /v1/me</bdi></del><ins><bdi>rules name: why</bdi></ins><ins><bdi>rules: allow PUT /v1/y</bdi></ins></td>",
		`<option value="token.revoke">`, `name="action" value="permission_group.update"`)
	wantNone(t, text, "allow GET /v1/x")
	s.call("DELETE", g.URI, nil, nil)
	text, _ = s.get("/console/audit?action=permission_group.&resource_id=readers", 200)
	wantIn(t, text, "<td>permission_group.delete", "<del><bdi>rules: allow GET /v1/x</bdi></del>")

	for address, want := range map[string]string{
		"actor=nobody": "actor", "action=nope": "there is no action", "resource_id=x": "does not know", "since=soon": "since", "until=%3Cb%3E": "until",
	} {
		text, _ := s.get("/console/audit?"+address, 400)
		wantIn(t, text, want, `id="fault"`, `aria-invalid="true"`)
	}
	text, _ = s.get("/console/audit?actor=human:nobody&since=1h", 400)
	wantIn(t, text, `value="human:nobody"`, `value="1h"`)
	text, _ = s.get("/console/audit?until=2020-01-01", 200)
	wantIn(t, text, "No record meets these filters.")
}

// The chain is verified on demand, and the list of older records goes on without it.
func TestAuditChain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for i := range 30 { // 60 records
		s.create(fmt.Sprintf("user-%d", i))
	}
	text, _ := s.get("/console/audit?action=service_user.&since=1d", 200)
	wantNone(t, text, "unbroken", "Older records")
	text, _ = s.get("/console/audit?since=1d", 200)
	wantIn(t, text, `href="/console/audit?since=1d&amp;verify=yes"`)
	text, _ = s.get("/console/audit?since=1d&verify=yes", 200)
	wantIn(t, text, "All 60 records are in an unbroken chain", "record 60<", "record 11<", `href="/console/audit?before_id=11&amp;since=1d"`)
	text, _ = s.get("/console/audit?before_id=11&since=1d", 200)
	wantIn(t, text, "record 10<", "record 1<")
	wantNone(t, text, "unbroken", "record 11<", "Older records")
}

// A long list of changes stays short, and a change of the order alone is none.
func TestLongDifference(t *testing.T) {
	t.Parallel()
	lines := func(record string) []string { return inWords([]byte(record), map[string]string{"group_1": "readers"}) }
	was := lines(`{"id":"x","rules":[{"id":"1","text":"a"},{"id":"2","text":"b"}],"permission_groups":["group_1","group_2"]}`)
	is := lines(`{"rules":[{"id":"2","text":"b"},{"id":"1","text":"a"}],"permission_groups":["group_1","group_2"],"n":1500000}`)
	if want := []string{"permission groups: readers", "permission groups: group_2", "rules: a", "rules: b"}; !slices.Equal(was, want) {
		t.Errorf("got %q, want %q", was, want)
	}
	if lost, got := without(was, is), without(is, was); len(lost) != 0 || fmt.Sprint(got) != "[n: 1500000]" {
		t.Errorf("lost %q, got %q", lost, got)
	}
	if all := without(was, lines("null")); len(all) != 4 {
		t.Errorf("of a deletion: lost %q", all)
	}
	many := lines(`{"list":["` + strings.Join(strings.Split("abcdefghijklmnopqrstuvwxyz", ""), `","`) + `"]}`)
	if short := without(many, nil); len(short) != 11 || short[9] != "list: j" || short[10] != "… and 16 more" {
		t.Errorf("got %q", short)
	}
}

// Health shows the requests of 24 hours and the tokens that end first.
func TestHealth(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	text, _ := s.get("/console/health", 200)
	wantIn(t, text, ">ok</span>", "<dt>Revision</dt>", "<strong>0 tokens</strong> within 7 days, <strong>0 tokens</strong> within 30 days.")
	wantNone(t, text, "Requests in 24 hours", "<table>")

	for i, end := range []time.Duration{40, 3, 20, 1} {
		in := map[string]any{"name": fmt.Sprintf("user-%d", i), "owner": "<carol>", "token_ttl": fmt.Sprint(int(end), "d")}
		s.call("POST", "/service_users", in, nil)
	}
	s.create("endless")
	now := s.store.Now().UTC().Truncate(time.Minute)
	s.api.Traffic = new(admin.Traffic)
	text, _ = s.get("/console/health", 200)
	wantIn(t, text, "This Caddy was started 0 minutes ago.", "2 tokens</strong> within 7 days, <strong>3 tokens</strong> within 30 days.",
		"ends in 3 days", "ends in 20 days", "&lt;carol&gt;")
	wantNone(t, text, ">user-0<", "endless")
	if first, second := strings.Index(text, ">user-3<"), strings.Index(text, ">user-1<"); first < 0 || second < first {
		t.Errorf("got the ends at %d and %d, want the earlier one first", first, second)
	}
	s.api.Traffic.Add(admin.Minute{At: now.Add(-3 * time.Hour), Denied: 12})
	s.api.Traffic.Add(admin.Minute{At: now, Denied: 3})
	text, _ = s.get("/console/health", 200)
	wantIn(t, text, `aria-label="Denied: 15 requests in 24 hours, at most 12 a minute"`, "peak 12 a minute",
		`aria-label="Not ready: 0 requests in 24 hours"`, "24 h ago", "This Caddy was started 2 minutes ago.")
	for i := range 24 * 60 {
		s.api.Traffic.Add(admin.Minute{At: now.Add(time.Duration(i-24*60) * time.Minute), Allowed: 1})
	}
	text, _ = s.get("/console/health", 200)
	wantNone(t, text, "was started")
	if len(text) > 20<<10 {
		t.Errorf("got a page of %d bytes", len(text))
	}
}

// A chart shows short bursts and small numbers, and leaves out minutes that the clock cannot place.
func TestCharts(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	minutes := []admin.Minute{
		{At: now.Add(-25 * time.Hour), Allowed: 1e9}, {At: now.Add(10 * time.Minute), Allowed: 1e9}, // the clock was set
		{At: now.Add(-24*time.Hour + time.Minute), Allowed: 1},
		{At: now.Add(-11 * time.Minute), Allowed: 1000}, {At: now.Add(-11 * time.Minute), Allowed: 3},
		{At: now, Allowed: 500, Refused: 2},
	}
	list := charts(minutes, now)
	allowed := list[0]
	if allowed.Total != 1504 || allowed.Peak != 1000 {
		t.Errorf("got %+v", allowed)
	}
	if want := "M0 40v-2h1v2zM285 40v-40h1v40zM287 40v-20h1v20z"; allowed.Path != want {
		t.Errorf("got the path %s, want %s", allowed.Path, want)
	}
	if list[1].Path != "" || list[1].Peak != 0 {
		t.Errorf("without a request: got %+v", list[1])
	}
	if list[3].Total != 2 || list[3].Path != "M287 40v-40h1v40z" {
		t.Errorf("got %+v", list[3])
	}
}

// Many ending tokens make neither a long page nor a wrong count.
func TestHealthOfMany(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var users []fields
	for i := range 120 {
		users = append(users, fields{"name": fmt.Sprintf("user-%03d", i), "token_ttl": fmt.Sprint(120+i, "h")})
	}
	s.call("POST", "/service_users/bulk", fields{"do": "create", "users": users}, nil)
	text, _ := s.get("/console/health", 200)
	wantIn(t, text, "within 7 days", "<strong>120 tokens</strong> within 30 days.", ">user-000<", ">user-049<",
		`href="/console/service_users?sort=next_token_end&amp;status=all"`)
	wantNone(t, text, ">user-050<")
	text, _ = s.get("/console/service_users?sort=next_token_end&status=all", 200)
	wantIn(t, text, ">user-000<", ">user-099<")
}

// A store that cannot be read has its fault on the page of health, which does not need the store.
func TestHealthWithoutStore(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := os.Rename(s.store.Path(), s.store.Path()+".moved"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); s.store.Fault() == ""; {
		if time.Now().After(deadline) {
			t.Fatal("the store has no fault")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	text, _ := s.get("/console/health", 200)
	wantIn(t, text, "store unreachable", "Unknown while the store cannot be read.", "<dt>Revision</dt>")
}

// The page of health shows the nodes of a store in PostgreSQL to admins, and forgets one that is gone.
func TestNodes(t *testing.T) {
	t.Parallel()
	place := pgtest.URL(t)
	s := newSiteAt(t, place, store.Options{NodeName: "gate-1"})
	s.create("billing-sync")
	db, err := sql.Open("pgx", place)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	id := func(n int) string { return fmt.Sprint("node_", strings.Repeat("0", 26), n) }
	for n, ago := range []time.Duration{time.Hour + time.Minute, 0} { // one is gone, one is late
		if _, err := db.Exec(`INSERT INTO nodes VALUES ($1, '<b>gate', 'v1', '192.0.2.7', $2, $2, 0, 3600000)`,
			id(n), time.Now().Add(-ago).UnixMilli()); err != nil {
			t.Fatal(err)
		}
	}
	var text string
	const live = `<span class="badge on">live</span>`
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && !strings.Contains(text, live); {
		text, _ = s.get("/console/health", 200) // late until its next report, a second after the change
	}
	wantIn(t, text, "<h2>Nodes</h2>", `<bdi>gate-1</bdi> <small>this one</small>`, live,
		`<bdi>&lt;b&gt;gate</bdi>`, `<span class="badge warn">late</span>`, `<span class="badge off">gone</span>`,
		`action="/console/health/`+id(0)+`/forget"`)
	wantNone(t, text, `action="/console/health/`+id(1), "style=")
	_, header := s.post("/console/health/"+id(0)+"/forget", "", 303)
	text, _ = s.get(header.Get("Location"), 200)
	wantIn(t, text, "The node is removed from the list.")
	wantNone(t, text, id(0))
	text, _ = s.post("/console/health/"+id(1)+"/forget", "", 409)
	wantIn(t, text, "may answer requests until")
	s.by = store.Actor{Name: "human:carol", Scope: &store.Scope{Teams: []string{"finance"}}}
	text, _ = s.get("/console/health", 200)
	wantNone(t, text, "<h2>Nodes</h2>")
	s.post("/console/health/"+id(1)+"/forget", "", 403)

	text, _ = newSite(t).get("/console/health", 200) // SQLite has one process
	wantNone(t, text, "<h2>Nodes</h2>")
}

// Names are text on each page, wherever they come from.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const name, shown = `<b a="1">'&{{.}}`, `&lt;b a=&#34;1&#34;&gt;&#39;&amp;{{.}}`
	long := strings.Repeat("🦄", 200)
	u := s.create(name)
	s.call("PATCH", u.URI, map[string]any{"owner": name, "description": long, "expires_at": s.store.Now().Add(time.Hour)}, nil)
	s.group("readers", nil, u)
	for path, want := range map[string]string{
		"/console/audit": "<ins><bdi>owner: " + shown, "/console/audit?resource_id=" + u.ID: "<bdi>" + shown,
		"/console/health": "<bdi>" + shown, explainURL("user", name, "url", "/<i>"): "<bdi>" + shown,
		explainURL("user", name, "url", "/i{x}"): "/i{x}", explainURL("user", u.ID, "url", "/é"): "<bdi>" + shown,
	} {
		text, _ := s.get(path, 200)
		wantIn(t, text, want)
		wantNone(t, text, "<b a", "<i>", "ZgotmplZ")
	}
	for _, path := range []string{"/console/audit?actor=%3Ci%3E", "/console/audit?action=%3Ci%3E", explainURL("user", "<i>"), explainURL("decision_id", "<i>")} {
		text, _ := s.get(path, 400)
		wantIn(t, text, `value="&lt;i&gt;"`)
		wantNone(t, text, "<i>")
	}
}
