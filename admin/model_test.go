package admin

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// model is what the API should show, in the simplest words. Ids and secrets go by
// the names that rows use, since the n-th that is made is the n-th to be shown;
// instants are seconds after the start, and 0 is none.
type model struct {
	*server
	now    int64
	ttl    int64 // of a token that names none; 0 is unlimited
	users  []*modelUser
	groups []*modelGroup
	rights []*modelRight // the catalogue, in its order
	trail  []string      // "ACTION RESOURCE", the oldest first
	made   map[string]int
}

type modelUser struct {
	id, name, display, description, owner, alias, role string
	active, wasActive                                  bool
	teams, allowed, groups                             []string
	labels                                             map[string]string
	expires, created, updated, used, deleted           int64
	version                                            int
	tokens                                             []*modelToken
}

type modelToken struct {
	id, secret, description, metadata             string
	allowed, groups                               []string
	expires, notBefore, created, updated, used    int64
	refreshed, retires, revoked, uses, usesBefore int64
	by                                            string // its successor
	version                                       int
}

type modelGroup struct {
	id, name, description, mode, condition string
	rights                                 []string
	rules                                  []modelRule
	created, updated                       int64
	version                                int
	deleted                                bool
	deletedAt                              int64
	former                                 []*modelUser // the members by name that the deletion took away
}

type modelRule struct{ id, text string }

type modelRight struct {
	key, name        string
	rules            []string
	created, updated int64
}

const (
	retention = 3600
	condition = `"ops" in user.teams`
)

// stock is every rule that the model knows, and which of the actions it is about.
var (
	actions = []string{"GET /a", "GET /b", "POST /a"}
	stock   = map[string][]string{
		"allow GET /a": {"GET /a"}, "allow POST,DELETE /{x}": {"POST /a"}, "allow * /{rest...}": actions, "deny POST /a": {"POST /a"}, "deny * /b": {"GET /b"},
	}
)

// property is a check of rapid's where a testing.TB is wanted.
type property struct {
	testing.TB
	t     *rapid.T
	after []func()
}

func (p *property) Errorf(format string, args ...any) { p.t.Helper(); p.t.Errorf(format, args...) }
func (p *property) Fatalf(format string, args ...any) { p.t.Helper(); p.t.Fatalf(format, args...) }
func (p *property) Fatal(args ...any)                 { p.t.Helper(); p.t.Fatal(args...) }
func (p *property) Cleanup(f func())                  { p.after = append(p.after, f) }

// below draws a number, any as likely as another: rapid itself prefers small ones.
func below(n int) *rapid.Generator[int] {
	return rapid.Map(rapid.SliceOfN(rapid.Bool(), 8, 8), func(bits []bool) (i int) {
		for _, bit := range bits {
			if i *= 2; bit {
				i++
			}
		}
		return i % n
	})
}

// evenly draws one of some.
func evenly[T any](from []T) *rapid.Generator[T] {
	return rapid.Map(below(len(from)), func(i int) T { return from[i] })
}

// name is the one that the next thing of a kind will go by.
func (m *model) name(kind string) string {
	m.made[kind]++
	return fmt.Sprintf("%s_%d", kind, m.made[kind])
}

func (m *model) write(action, resource string) { m.trail = append(m.trail, action+" "+resource) }

// tick makes now the instant of the next request.
func (m *model) tick() { m.now = int64(m.clockSeconds()) + 1 }

func (m *model) clockSeconds() int { return int(time.Duration(m.clock.Load()) / time.Second) }

func at(seconds int64) any {
	if seconds == 0 {
		return nil
	}
	return fmt.Sprintf("t+%ds", seconds)
}

// list is a sorted copy, and never null.
func list(of []string) []string {
	sorted := append([]string{}, of...)
	slices.Sort(sorted)
	return sorted
}

func deletion(u *modelUser) map[string]any {
	return map[string]any{"deleted_at": at(u.deleted), "deleted_by": "local", "was_active": u.wasActive}
}

func tag(version int) string { return fmt.Sprintf(`"%d"`, version) }

func (m *model) showUser(u *modelUser, collection string) map[string]any {
	shown := map[string]any{
		"id": u.id, "uri": collection + "/" + u.id, "name": u.name, "display_name": u.display, "description": u.description, "owner": u.owner, "alias": u.alias,
		"active": u.active, "role": u.role, "teams": list(u.teams), "labels": u.labels, "allowed_ips": list(u.allowed), "permission_groups": u.groups,
		"expires_at": at(u.expires), "created_at": at(u.created), "created_by": "local", "updated_at": at(u.updated), "last_active_at": at(u.used), "etag": tag(u.version),
		"obstacle": u.obstacle(m.now), "editable": true,
	}
	shown["token_count"], shown["next_token_end"] = u.usable(m.now)
	if u.deleted != 0 {
		maps.Copy(shown, deletion(u))
	}
	// In the order of their ids, which is that of their making.
	shown["permission_groups"] = slices.DeleteFunc(m.groupIDs(), func(id string) bool { return !slices.Contains(u.groups, id) })
	return shown
}

func (m *model) groupIDs() []string {
	ids := []string{}
	for _, g := range m.groups {
		ids = append(ids, g.id)
	}
	return ids
}

func (k *modelToken) state(now int64) string {
	switch {
	case k.revoked != 0, k.retires != 0 && now >= k.retires && k.retires != k.expires:
		return "revoked"
	case k.expires != 0 && now >= k.expires:
		return "expired"
	case k.retires != 0:
		return "retiring"
	case now < k.notBefore:
		return "pending"
	}
	return "active"
}

// ended reports whether it is no API key any more.
func (k *modelToken) ended(now int64) bool {
	return k.state(now) == "revoked" || k.state(now) == "expired"
}

func (m *model) showToken(u *modelUser, k *modelToken) map[string]any {
	from := func(since int64) []any {
		if k.used == 0 || k.used < since {
			return []any{}
		}
		return []any{map[string]any{"address": testAddr.String(), "last_used_at": at(k.used)}}
	}
	ip := ""
	if k.used != 0 {
		ip = testAddr.String()
	}
	var drain any
	if k.refreshed != 0 {
		last, ends := k.used, k.retires
		if last < k.refreshed {
			last = 0
		}
		if k.revoked != 0 {
			ends = k.revoked
		}
		drain = map[string]any{"since": at(k.refreshed), "use_count": k.uses - k.usesBefore, "last_used_at": at(last), "used_from": from(k.refreshed), "ends_at": at(ends)}
	}
	groups := slices.DeleteFunc(m.groupIDs(), func(id string) bool { return !slices.Contains(k.groups, id) })
	return map[string]any{
		"id": k.id, "uri": "/service_users/" + u.id + "/tokens/" + k.id, "service_user_id": u.id, "description": k.description, "metadata": k.metadata, "hint": "hint",
		"state": k.state(m.now), "allowed_ips": list(k.allowed), "permission_groups": groups, "expires_at": at(k.expires), "not_before": at(k.notBefore),
		"retires_at": at(k.retires), "revoked_at": at(k.revoked), "created_at": at(k.created), "created_by": "local", "updated_at": at(k.updated),
		"last_used_at": at(k.used), "last_used_ip": ip, "use_count": k.uses, "used_from": from(0), "replaced_by": k.by, "drain": drain, "etag": tag(k.version),
	}
}

func (m *model) showKey(u *modelUser, k *modelToken) map[string]any {
	return map[string]any{
		"id": k.id, "uri": "/api_keys/" + k.id, "description": k.description, "metadata": k.metadata, "created_at": at(k.created), "updated_at": at(k.updated),
		"token": nil, "owner_id": u.id, "etag": tag(k.version),
		"expires_at": at(k.expires), "last_used_at": at(k.used), "state": k.state(m.now),
	}
}

func (m *model) showRule(g *modelGroup, r modelRule) map[string]any {
	part := strings.SplitN(r.text, " ", 3)
	return map[string]any{
		"id": r.id, "uri": "/permission_groups/" + g.id + "/rules/" + r.id, "effect": part[0], "methods": strings.Split(part[1], ","), "host": "", "path": part[2],
		"when": "", "name": "", "description": "", "text": r.text,
	}
}

func (m *model) showRules(g *modelGroup) []any {
	rules := []any{}
	for _, r := range g.rules {
		rules = append(rules, m.showRule(g, r))
	}
	return rules
}

func (m *model) showGroup(g *modelGroup) map[string]any {
	return map[string]any{
		"id": g.id, "uri": "/permission_groups/" + g.id, "name": g.name, "description": g.description, "mode": g.mode, "member_condition": g.condition,
		"permissions": list(g.rights), "rules": m.showRules(g), "member_count": len(m.members(g)),
		"created_at": at(g.created), "created_by": "local", "updated_at": at(g.updated), "etag": tag(g.version),
	}
}

// members lists who is in a group, the newest first.
func (m *model) members(g *modelGroup) (members []any) {
	for _, u := range slices.Backward(m.users) {
		named, meets := slices.Contains(u.groups, g.id), g.condition != "" && slices.Contains(u.teams, "ops")
		if u.deleted != 0 || !named && !meets {
			continue
		}
		source := "condition"
		if named {
			source = "name"
		}
		members = append(members, map[string]any{"id": u.id, "name": u.name, "source": source})
	}
	return members
}

func (m *model) showRight(p *modelRight) map[string]any {
	return map[string]any{
		"key": p.key, "uri": "/service_users/permissions?key=" + p.key, "name": p.name, "description": "", "category": "", "rules": p.rules,
		"created_at": at(p.created), "created_by": "local", "updated_at": at(p.updated),
	}
}

func (m *model) group(id string) *modelGroup {
	i := slices.IndexFunc(m.groups, func(g *modelGroup) bool { return g.id == id && !g.deleted })
	if i < 0 {
		return nil
	}
	return m.groups[i]
}

func (m *model) right(key string) *modelRight {
	i := slices.IndexFunc(m.rights, func(p *modelRight) bool { return p.key == key })
	if i < 0 {
		return nil
	}
	return m.rights[i]
}

// given reports whether a group has a permission.
func (m *model) given(key string) bool {
	return slices.ContainsFunc(m.groups, func(g *modelGroup) bool { return !g.deleted && slices.Contains(g.rights, key) })
}

// refusals are the reasons for which a token cannot be used at an instant; the
// design does not say which of several is told.
func (u *modelUser) refusals(k *modelToken, now int64) (why []access.Reason) {
	add := func(is bool, reason access.Reason) {
		if is {
			why = append(why, reason)
		}
	}
	outside := func(allowed []string) bool { return len(allowed) > 0 && !slices.Contains(allowed, "192.0.2.1/32") }
	if u.deleted != 0 {
		return []access.Reason{access.UnknownID}
	}
	add(k.revoked != 0, access.TokenRevoked)
	add(k.expires != 0 && now >= k.expires || k.retires != 0 && now >= k.retires, access.TokenExpired)
	add(k.notBefore != 0 && now < k.notBefore, access.TokenNotYet)
	add(outside(k.allowed), access.TokenAddress)
	add(!u.active, access.UserInactive)
	add(u.expires != 0 && now >= u.expires, access.UserExpired)
	add(outside(u.allowed), access.UserAddress)
	return why
}

// ends reports whether a token of u has ended in the last seconds.
func (m *model) ends(u *modelUser, seconds int64) bool {
	before, _ := u.usable(m.now - seconds)
	now, _ := u.usable(m.now)
	return before != now
}

// usable counts the tokens that can be used, now or later, and says when the first of them ends.
func (u *modelUser) usable(now int64) (count int, end any) {
	var ends []int64
	for _, k := range u.tokens {
		if state := k.state(now); state == "revoked" || state == "expired" || u.deleted != 0 || u.expires != 0 && now >= u.expires {
			continue
		}
		count++
		ends = append(ends, slices.DeleteFunc([]int64{k.expires, k.retires, u.expires}, func(at int64) bool { return at == 0 })...)
	}
	if len(ends) == 0 {
		return count, nil
	}
	return count, at(slices.Min(ends))
}

// obstacle says why nobody can log in from anywhere. Why a token is of no use is
// not told apart: see parseUsers.
func (u *modelUser) obstacle(now int64) any {
	fromAnywhere := func(why access.Reason) bool { return why == access.TokenAddress || why == access.UserAddress }
	switch {
	case u.deleted != 0:
		return "the service user is deleted"
	case !u.active:
		return "the service user is deactivated"
	case u.expires != 0 && now >= u.expires:
		return "the service user has expired"
	}
	for _, k := range u.tokens {
		if len(slices.DeleteFunc(u.refusals(k, now), fromAnywhere)) == 0 {
			return nil
		}
	}
	return noToken
}

// decide says what a request of a service user that has logged in comes to.
func (m *model) decide(u *modelUser, k *modelToken, action string) access.Reason {
	answer := access.NoRule
	for _, g := range m.groups {
		member := slices.Contains(u.groups, g.id) || g.condition != "" && slices.Contains(u.teams, "ops")
		if g.deleted || g.mode == "observe" || !member {
			continue
		}
		var rules []string
		for _, r := range g.rules {
			rules = append(rules, r.text)
		}
		for _, key := range g.rights {
			rules = append(rules, m.right(key).rules...)
		}
		for _, text := range rules {
			switch {
			case !slices.Contains(stock[text], action):
			case strings.HasPrefix(text, "deny"):
				return access.DeniedByRule
			case len(k.groups) == 0 || slices.Contains(k.groups, g.id):
				answer = access.Granted
			}
		}
	}
	return answer
}

// ask sends a request. It must be refused for one of the faults, each as "STATUS
// CODE FIELD", or, when there is none, succeed and show what is wanted.
func (m *model) ask(t *rapid.T, request, ifMatch string, faults []string, status int, want func() any) bool {
	t.Helper()
	var headers []string
	if ifMatch != "" {
		headers = append(headers, "If-Match: "+ifMatch)
	}
	got := m.do(request, headers...)
	if len(faults) > 0 {
		var e Error
		_ = json.Unmarshal([]byte(got.text), &e) // do has checked its form
		line := fmt.Sprint(got.status, " ", e.Code)
		for field := range e.Details {
			if field != "operation_id" && e.Code != "ERR_IN_USE" {
				line += " " + field
			}
		}
		if !slices.Contains(faults, line) {
			t.Fatalf("%s If-Match: %s\n\tgot  %d %s\n\twant one of %q", request, ifMatch, got.status, got.text, faults)
		}
		return false
	}
	if got.status != status {
		t.Fatalf("%s If-Match: %s\n\tgot  %d %s\n\twant %d", request, ifMatch, got.status, got.text, status)
	}
	if want == nil {
		return true
	}
	if got, want := parseUsers(got.text), plain(want()); !same(got, want) {
		t.Fatalf("%s\n\tgot  %v\n\twant %v", request, got, want)
	}
	if etag, shown := parse(got.text).(map[string]any)["etag"]; shown && got.header.Get("ETag") != etag {
		t.Fatalf("%s: got ETag %s, want %s", request, got.header.Get("ETag"), etag)
	}
	return true
}

// get compares what an object's own path shows.
func (m *model) get(t *rapid.T, uri string, want func() any) {
	t.Helper()
	m.tick()
	m.ask(t, "GET "+uri, "", nil, 200, want)
}

// missing checks that there is nothing at a path.
func (m *model) missing(t *rapid.T, uri string) {
	t.Helper()
	m.ask(t, "GET "+uri, "", []string{"404 ERR_NOT_FOUND"}, 0, nil)
}

// noToken is the obstacle of a service user without a usable token.
const noToken = "the service user has no token"

var unusable = regexp.MustCompile(`the token (is|has) [a-z ]*|the address is not among the allowed_ips of the token`)

// parseUsers is parse without the reasons why tokens are of no use.
func parseUsers(text string) any { return parse(unusable.ReplaceAllString(text, noToken)) }

// plain is a value as JSON shows it.
func plain(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return parse(string(text))
}

// same compares what is shown; warnings about rules are no part of the model.
func same(got, want any) bool {
	if object, ok := got.(map[string]any); ok {
		delete(object, "warnings")
	}
	return reflect.DeepEqual(got, want)
}

// walk follows a list to its end as a client does, and compares all that it
// shows. Where the design fixes no order each must come once.
func (m *model) walk(t *rapid.T, uri, query, member string, want []any, ordered bool) {
	t.Helper()
	limit, link := evenly([]int{100, 1, 2, 3}).Draw(t, "limit"), uri
	if limit < 100 {
		query = strings.TrimPrefix(fmt.Sprintf("%s&limit=%d", query, limit), "&")
	}
	if query != "" {
		link += "?" + query
	}
	got := []any{}
	for seen := 0; ; {
		answer := m.do("GET " + link)
		page, _ := parseUsers(answer.text).(map[string]any)
		rows, _ := page[member].([]any)
		if answer.status != 200 || page["uri"] != uri || len(page) != 3 || len(rows) != min(limit, len(want)-seen) {
			t.Fatalf("GET %s: got %d %s, want %d of %s", link, answer.status, answer.text, min(limit, len(want)-seen), member)
		}
		got, seen = append(got, rows...), seen+len(rows)
		next, more := page["next_page_uri"].(string)
		if more != (seen < len(want)) || !more && page["next_page_uri"] != nil || more && !strings.HasPrefix(next, uri+"?") {
			t.Fatalf("GET %s: got next_page_uri %v after %d of %d", link, page["next_page_uri"], seen, len(want))
		}
		if link = next; !more {
			break
		}
	}
	wanted := plain(append([]any{}, want...)).([]any)
	if !ordered { // by last_active_at, as far as it is on disk
		for _, rows := range [][]any{got, wanted} {
			for _, row := range rows {
				delete(row.(map[string]any), "last_active_at")
			}
			slices.SortFunc(rows, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
	if !reflect.DeepEqual(got, wanted) {
		t.Fatalf("GET %s?%s\n\tgot  %v\n\twant %v", uri, query, got, wanted)
	}
}

// body is a request's object in the making, with what is wrong with it.
type body struct {
	t      *rapid.T
	bad    bool // may be refused for what it says
	rich   bool // has many fields
	fields map[string]any
	faults []string
}

func (b *body) wrong(is bool, fault string) {
	if is {
		b.faults = append(b.faults, fault)
	}
}

// invalidIn is the fault of a field.
func invalidIn(field string) string { return "400 ERR_INVALID_VALUE " + field }

// drawField draws whether a field is present, and with what: one of the good
// values or, when the body may be refused, a bad one, which is its fault.
func drawField[T any](b *body, field string, good []T, bad ...T) (v T, present bool) {
	switch n := below(8).Draw(b.t, "with "+field); {
	case n < 4, n < 6 && !b.rich:
		return v, false
	case n == 7 && b.bad && len(bad) > 0:
		v = evenly(bad).Draw(b.t, "bad "+field)
		b.wrong(true, invalidIn(field))
	default:
		v = evenly(good).Draw(b.t, field)
	}
	b.fields[field] = v
	return v, true
}

// text draws a field that is a text without a form.
func (b *body) text(field string, place *string) {
	if v, ok := drawField(b, field, []any{"x", "y zé", "", nil}); ok {
		*place, _ = v.(string)
	}
}

// addresses draws allowed_ips.
func (b *body) addresses(place *[]string) {
	v, ok := drawField(b, "allowed_ips", [][]string{nil, {}, {"192.0.2.1"}, {"10.1.2.3/8"}, {"192.0.2.1/32", "192.0.2.1"}}, []string{"10.0.0.0/33"})
	if !ok {
		return
	}
	*place = []string{}
	switch fmt.Sprint(v) {
	case "[192.0.2.1]", "[192.0.2.1/32 192.0.2.1]":
		*place = []string{"192.0.2.1/32"}
	case "[10.1.2.3/8]":
		*place = []string{"10.0.0.0/8"}
	}
}

// end draws when something ends.
func (b *body) end(now int64, place *int64) {
	v, ok := drawField(b, "expires_at", []any{int64(20), int64(300), "", nil}, any(int64(-1)))
	if !ok {
		return
	}
	seconds, set := v.(int64)
	if !set {
		*place = 0
		return
	}
	next := now + seconds
	if seconds < 0 && next == *place { // an end that stays as it is would be right
		next--
	}
	if b.fields["expires_at"] = at(next); next < 1 {
		next = 1
		b.fields["expires_at"] = at(next)
	}
	b.wrong(next <= now && next != *place, invalidIn("expires_at"))
	*place = next
}

// groups draws ids of groups: there are those that are live, and known ones.
func (b *body) groups(m *model, place *[]string) {
	if len(m.groups) == 0 {
		return
	}
	v, ok := drawField(b, "permission_groups", [][]string{nil, {}, m.groupIDs()[:1], m.groupIDs()[len(m.groups)-1:], m.groupIDs()}, []string{"group_0"})
	if !ok {
		return
	}
	for _, id := range v {
		b.wrong(m.group(id) == nil && !slices.Contains(*place, id), invalidIn("permission_groups"))
	}
	*place = v
}

// strange draws what no object has.
func (b *body) strange() {
	if !b.bad {
		return
	}
	switch below(7).Draw(b.t, "strange") {
	case 4:
		b.fields["nmae"] = "x"
		b.wrong(true, "400 ERR_NGROK_214 nmae")
	case 5:
		b.fields["id"] = "service_0"
		b.wrong(true, "400 ERR_NGROK_214 id")
	case 6:
		b.fields["description"] = 7
		b.wrong(true, invalidIn("description"))
	}
}

func (b *body) String() string {
	text, err := json.Marshal(b.fields)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// match draws an If-Match for what has a version.
func (b *body) match(version int) string {
	is := evenly([]string{"", "", "", "", "*", tag(version), tag(version + 1), tag(version - 1), fmt.Sprint(version)}).Draw(b.t, "If-Match")
	b.wrong(is != "" && is != "*" && is != tag(version), "412 ERR_CHANGED")
	return is
}

// TestModel does to the API whatever comes, in whatever order, and compares each
// answer, what is there afterwards, and what the secrets are good for, with the model.
func TestModel(t *testing.T) {
	t.Parallel()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := flag.Set("rapid.checks", "20"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(t0 *rapid.T) {
		p := &property{TB: t, t: t0}
		defer func() {
			for _, f := range slices.Backward(p.after) {
				f()
			}
		}()
		ttl := evenly([]int64{0, 100}).Draw(t0, "token_ttl")
		m := &model{ttl: ttl, made: make(map[string]int)}
		m.server = serve(p, store.Options{Retention: retention * time.Second, TokenTTL: time.Duration(ttl) * time.Second, UseInterval: time.Hour})
		steps := m.steps()
		for _, step := range []string{"load the catalogue", "create a permission group", "create a service user", "create a permission group", "create a service user", "add a member", "create a token", "create a service user"} {
			steps[step](t0)
		}
		what := slices.Sorted(maps.Keys(steps))
		t0.Repeat(map[string]func(*rapid.T){
			"step": func(t *rapid.T) { steps[evenly(what).Draw(t, "what")](t) },
			"":     m.tryAll,
		})
		m.lookAround(t0)
	})
}

var nobody = &modelUser{id: "service_0", deleted: 1, version: 1}

// anyUser draws a service user: mostly one that lives.
func (m *model) anyUser(t *rapid.T) *modelUser {
	live := slices.DeleteFunc(slices.Clone(m.users), func(u *modelUser) bool { return u.deleted != 0 })
	if len(live) > 0 && below(8).Draw(t, "of all") < 7 {
		return evenly(live).Draw(t, "service user")
	}
	return evenly(append(slices.Clone(m.users), nobody)).Draw(t, "any service user")
}

func (m *model) anyToken(t *rapid.T) (*modelUser, *modelToken) {
	u := m.anyUser(t)
	if len(u.tokens) == 0 {
		t.Skip("there is no token")
	}
	return u, evenly(u.tokens).Draw(t, "token")
}

var noGroup = &modelGroup{id: "group_0", version: 1, deleted: true}

func (m *model) anyGroup(t *rapid.T) *modelGroup {
	live := slices.DeleteFunc(slices.Clone(m.groups), func(g *modelGroup) bool { return g.deleted })
	if len(live) > 0 && below(8).Draw(t, "of all") < 7 {
		return evenly(live).Draw(t, "group")
	}
	return evenly(append(slices.Clone(m.groups), noGroup)).Draw(t, "any group")
}

func collection(t *rapid.T) string {
	return evenly([]string{"/service_users", "/bot_users"}).Draw(t, "collection")
}

// drawUser draws fields of a service user, and sets them.
func (m *model) drawUser(b *body, u *modelUser) {
	if v, ok := drawField(b, "name", []any{"a", "b", "Cé", "d"}); ok || u.id == "" {
		if !ok {
			v = evenly([]any{"a", "b", "Cé", "d", "e"}).Draw(b.t, "name")
		}
		if b.bad && rapid.Bool().Draw(b.t, "no name") {
			v = evenly([]any{"", nil}).Draw(b.t, "name")
			b.wrong(true, "400 ERR_NGROK_4109 name")
		}
		b.fields["name"] = v
		u.name, _ = v.(string)
	}
	b.text("display_name", &u.display)
	b.text("description", &u.description)
	b.text("owner", &u.owner)
	if v, ok := drawField(b, "alias", []any{"al", "b", "", nil}, "service_x"); ok {
		u.alias, _ = v.(string)
	}
	if v, ok := drawField(b, "active", []any{true, false}, any(nil)); ok {
		u.active, _ = v.(bool)
	}
	if v, ok := drawField(b, "role", []string{"member", "manager", "admin"}, "root"); ok {
		u.role = v
	}
	if v, ok := drawField(b, "teams", [][]string{nil, {}, {"ops"}, {"ops", "hr", "ops"}, {"hr"}}, []string{"a,b"}); ok {
		u.teams = slices.Compact(list(v))
	}
	if v, ok := drawField(b, "labels", []map[string]string{nil, {}, {"k": "v", "a.b/c": ""}}, map[string]string{"": "v"}); ok {
		u.labels = make(map[string]string)
		maps.Copy(u.labels, v)
	}
	b.addresses(&u.allowed)
	b.end(m.now, &u.expires)
	b.groups(m, &u.groups)
	b.strange()
	m.taken(b, u)
}

// taken finds a name and an alias that another one has.
func (m *model) taken(b *body, u *modelUser) {
	for _, other := range m.users {
		if other.id != u.id && other.deleted == 0 {
			b.wrong(other.name == u.name, "409 ERR_NGROK_4112 name")
			b.wrong(other.alias == u.alias && u.alias != "", "409 ERR_CONFLICT alias")
		}
	}
}

func (m *model) newToken() *modelToken {
	k := &modelToken{created: m.now, updated: m.now, version: 1}
	if m.ttl > 0 {
		k.expires = m.now + m.ttl
	}
	return k
}

// drawToken draws fields of a token, and sets them.
func (m *model) drawToken(b *body, k *modelToken) {
	b.text("description", &k.description)
	b.text("metadata", &k.metadata)
	b.addresses(&k.allowed)
	b.groups(m, &k.groups)
	b.end(m.now, &k.expires)
	if seconds, ok := drawField(b, "ttl", []int64{10, 200}); ok {
		b.fields["ttl"] = fmt.Sprintf("%ds", seconds)
		_, both := b.fields["expires_at"]
		b.wrong(both, invalidIn("ttl"))
		k.expires = m.now + seconds
	}
	if k.version == 0 && k.expires == 0 && m.ttl > 0 {
		k.expires = m.now + m.ttl
	}
	if seconds, ok := drawField(b, "not_before", []int64{5, 50, 0}); ok {
		if k.notBefore = 0; seconds > 0 {
			k.notBefore = m.now + seconds
		}
		b.fields["not_before"] = at(k.notBefore)
	}
	b.wrong(k.notBefore != 0 && k.expires != 0 && k.notBefore >= k.expires, invalidIn("not_before"))
	b.strange()
}

// clone is a record of its own.
func clone[T any](v *T) *T {
	c := *v
	return &c
}

func (m *model) addToken(u *modelUser, k *modelToken) {
	k.id, k.secret = m.name("token"), m.name("csu")
	u.tokens = append(u.tokens, k)
	m.write("token.create", k.id)
}

// steps is what can happen.
func (m *model) steps() map[string]func(*rapid.T) {
	start := func(t *rapid.T) *body {
		m.tick()
		return &body{t: t, bad: below(5).Draw(t, "bad") == 4, fields: make(map[string]any)}
	}
	tokenURI := func(u *modelUser, k *modelToken) string { return "/service_users/" + u.id + "/tokens/" + k.id }
	gone := func(b *body, u *modelUser) { b.wrong(u.deleted != 0, "404 ERR_NOT_FOUND") }
	goneGroup := func(b *body, g *modelGroup) { b.wrong(g.deleted, "404 ERR_NOT_FOUND") }
	// changed gives a service user that differs a new version.
	changed := func(action string, before, after *modelUser) bool {
		if reflect.DeepEqual(plain(m.showUser(before, "")), plain(m.showUser(after, ""))) {
			return false
		}
		after.updated, after.version = m.now, before.version+1
		m.write(action, after.id)
		return true
	}
	edited := func(action string, before, after *modelGroup) {
		if !reflect.DeepEqual(plain(m.showGroup(before)), plain(m.showGroup(after))) {
			after.updated, after.version = m.now, before.version+1
			m.write(action, after.id)
		}
		*before = *after
	}
	member := func(t *rapid.T, method, action string, is bool) {
		b, g, u := start(t), m.anyGroup(t), m.anyUser(t)
		gone(b, u)
		goneGroup(b, g)
		if m.ask(t, fmt.Sprintf("%s /permission_groups/%s/members/%s", method, g.id, u.id), "", b.faults, 204, nil) {
			after := clone(u)
			after.groups = slices.DeleteFunc(slices.Clone(u.groups), func(id string) bool { return id == g.id })
			if is {
				after.groups = append(after.groups, g.id)
			}
			changed(action, u, after)
			*u = *after
			m.get(t, "/service_users/"+u.id, func() any { return m.showUser(u, "/service_users") })
		}
	}
	right := func(t *rapid.T, method string, is bool) {
		b, g, key := start(t), m.anyGroup(t), evenly([]string{"p", "q", "r.s"}).Draw(t, "key")
		goneGroup(b, g)
		b.wrong(is && m.right(key) == nil, invalidIn("permissions"))
		if m.ask(t, fmt.Sprintf("%s /permission_groups/%s/permissions/%s", method, g.id, key), "", b.faults, 204, nil) {
			after := clone(g)
			after.rights = slices.DeleteFunc(slices.Clone(g.rights), func(k string) bool { return k == key })
			if is {
				after.rights = append(after.rights, key)
			}
			edited("permission_group.update", g, after)
			m.get(t, "/permission_groups/"+g.id, func() any { return m.showGroup(g) })
		}
	}
	drawGroup := func(b *body, g *modelGroup) {
		if v, ok := drawField(b, "name", []string{"g", "h", "i"}, "a/b", ""); ok || g.id == "" {
			if !ok {
				v = evenly([]string{"g", "h", "i", "j"}).Draw(b.t, "name")
				b.fields["name"] = v
			}
			g.name = v
		}
		for _, other := range m.groups {
			b.wrong(other.id != g.id && !other.deleted && other.name == g.name, "409 ERR_NGROK_4112 name")
		}
		b.text("description", &g.description)
		if v, ok := drawField(b, "mode", []string{"enforce", "observe"}, "off"); ok {
			g.mode = v
		}
		if v, ok := drawField(b, "member_condition", []any{condition, condition, "", nil}, "user.nam == 1"); ok {
			g.condition, _ = v.(string)
		}
		if v, ok := drawField(b, "permissions", [][]string{nil, {}, {"p"}, {"q", "p", "q"}, {"r.s"}}); ok {
			for _, key := range v {
				b.wrong(m.right(key) == nil, invalidIn("permissions"))
			}
			g.rights = slices.Compact(list(v))
		}
		if rapid.Bool().Draw(b.t, "with rules") {
			texts := rapid.SliceOfN(evenly(slices.Sorted(maps.Keys(stock))), 0, 3).Draw(b.t, "rules")
			var rules []modelRule
			left := slices.Clone(g.rules)
			for _, text := range texts {
				r := modelRule{text: text}
				if i := slices.IndexFunc(left, func(l modelRule) bool { return l.text == text }); i >= 0 {
					r = left[i]
					left = slices.Delete(left, i, i+1)
				}
				rules = append(rules, r)
			}
			g.rules, b.fields["rules"] = rules, texts
			if b.bad && rapid.Bool().Draw(b.t, "bad rule") {
				b.fields["rules"] = append(texts, "allow GET a")
				b.wrong(true, invalidIn(fmt.Sprintf("rules.%d", len(texts))))
			}
		}
		b.strange()
	}
	// named gives new rules their ids, in the order in which they are shown.
	named := func(g *modelGroup) {
		g.rules = slices.Clone(g.rules)
		for i := range g.rules {
			if g.rules[i].id == "" {
				g.rules[i].id = m.name("rule")
			}
		}
	}

	return map[string]func(*rapid.T){
		"create a service user": func(t *rapid.T) {
			b, under := start(t), collection(t)
			u := &modelUser{active: true, role: "member", labels: map[string]string{}, created: m.now, updated: m.now, version: 1}
			m.drawUser(b, u)
			issue, said := drawField(b, "create_token", []bool{true, false})
			request := fmt.Sprintf("POST %s %s", under, b)
			m.ask(t, request, "", b.faults, 201, func() any {
				u.id = m.name("service")
				m.users = append(m.users, u)
				m.write("service_user.create", u.id)
				shown := m.showUser(u, under)
				if issue || !said && under == "/service_users" {
					k := m.newToken()
					m.addToken(u, k)
					shown["token_id"], shown["token"] = k.id, k.secret
				}
				shown["obstacle"] = u.obstacle(m.now) // after its token is there
				shown["token_count"], shown["next_token_end"] = u.usable(m.now)
				return shown
			})
		},
		"change a service user": func(t *rapid.T) {
			b, u, under := start(t), m.anyUser(t), collection(t)
			after := clone(u)
			gone(b, u)
			m.drawUser(b, after)
			match := b.match(u.version)
			if m.ask(t, fmt.Sprintf("PATCH %s/%s %s", under, u.id, b), match, b.faults, 200, func() any {
				action := "service_user.update"
				if u.active && !after.active {
					action = "service_user.deactivate"
				} else if !u.active && after.active {
					action = "service_user.reactivate"
				}
				changed(action, u, after)
				*u = *after
				return m.showUser(u, under)
			}) {
				m.get(t, under+"/"+u.id, func() any { return m.showUser(u, under) })
			} else if u.deleted == 0 {
				m.get(t, under+"/"+u.id, func() any { return m.showUser(u, under) })
			}
		},
		"delete a service user": func(t *rapid.T) {
			b, u, under := start(t), m.anyUser(t), collection(t)
			gone(b, u)
			uri, match := under+"/"+u.id, b.match(u.version)
			target := uri
			if rapid.Bool().Draw(t, "unless used") {
				target += "?unless_used_within=10s"
				for _, k := range u.tokens {
					b.wrong(k.used != 0 && k.used > m.now-10, "409 ERR_IN_USE")
				}
			}
			if m.ask(t, "DELETE "+target, match, b.faults, 204, nil) {
				u.deleted, u.updated, u.active, u.wasActive, u.version = m.now, m.now, false, u.active, u.version+1
				m.write("service_user.delete", u.id)
				m.missing(t, uri)
				m.missing(t, "/service_users/"+u.id+"/tokens")
			}
		},
		"undelete a service user": func(t *rapid.T) {
			b := start(t)
			u := evenly(append(slices.Clone(m.users), nobody)).Draw(t, "service user")
			switch {
			case u == nobody:
				b.wrong(true, "404 ERR_NOT_FOUND")
			case u.deleted == 0, m.now-u.deleted >= retention:
				b.wrong(true, "409 ERR_CONFLICT")
			default:
				m.taken(b, u)
			}
			m.ask(t, "POST /service_users/"+u.id+"/undelete", "", b.faults, 200, func() any {
				undeleted := deletion(u)
				u.deleted, u.active, u.updated, u.version = 0, false, m.now, u.version+1
				m.write("service_user.undelete", u.id)
				shown := m.showUser(u, "/service_users")
				shown["undeleted"] = undeleted
				return shown
			})
		},
		"look at a tombstone": func(t *rapid.T) {
			u := m.anyUser(t)
			m.tick()
			if u == nobody {
				m.missing(t, "/service_users/service_0?deleted=true")
				return
			}
			m.get(t, "/service_users/"+u.id+"?deleted=true", func() any { return m.showUser(u, "/service_users") })
			if u.deleted != 0 {
				m.missing(t, "/bot_users/"+u.id)
			}
		},
		"create a token": func(t *rapid.T) {
			b, u := start(t), m.anyUser(t)
			k := &modelToken{}
			b.rich = true
			gone(b, u)
			m.drawToken(b, k)
			k.created, k.updated, k.version = m.now, m.now, 1
			m.ask(t, fmt.Sprintf("POST /service_users/%s/tokens %s", u.id, b), "", b.faults, 201, func() any {
				m.addToken(u, k)
				shown := m.showToken(u, k)
				shown["token"] = k.secret
				return shown
			})
		},
		"change a token": func(t *rapid.T) {
			b := start(t)
			u, k := m.anyToken(t)
			after := clone(k)
			gone(b, u)
			m.drawToken(b, after)
			match := b.match(k.version)
			m.ask(t, fmt.Sprintf("PATCH %s %s", tokenURI(u, k), b), match, b.faults, 200, func() any {
				m.edit(u, k, after)
				return m.showToken(u, k)
			})
			if u.deleted == 0 {
				m.get(t, tokenURI(u, k), func() any { return m.showToken(u, k) })
			}
		},
		"revoke a token": func(t *rapid.T) {
			b := start(t)
			u, k := m.anyToken(t)
			gone(b, u)
			match := ""
			if k.revoked == 0 {
				match = b.match(k.version)
			}
			if m.ask(t, "DELETE "+tokenURI(u, k), match, b.faults, 204, nil) {
				m.revoke(k)
				m.get(t, tokenURI(u, k), func() any { return m.showToken(u, k) })
			}
		},
		"refresh a token": func(t *rapid.T) {
			b := start(t)
			u, k := m.anyToken(t)
			gone(b, u)
			state := k.state(m.now)
			b.wrong(state == "revoked" || state == "retiring", "409 ERR_CONFLICT")
			grace, given := drawField(b, "grace", []string{"15s", "0s"}, "-1s", "0.5s")
			if !given && rapid.Bool().Draw(t, "a long grace") {
				grace = "2m"
				b.fields["grace"] = grace
			}
			match := b.match(k.version)
			m.ask(t, fmt.Sprintf("POST %s/refresh %s", tokenURI(u, k), b), match, b.faults, 201, func() any {
				next := m.newToken()
				next.description, next.metadata, next.allowed, next.groups = k.description, k.metadata, k.allowed, k.groups
				if k.expires != 0 {
					next.expires = m.now + k.expires - k.created
				}
				if m.now < k.notBefore {
					next.notBefore = k.notBefore
				}
				m.addToken(u, next)
				k.by, k.refreshed, k.usesBefore, k.updated, k.version = next.id, m.now, k.uses, m.now, k.version+1
				if seconds := map[string]int64{"15s": 15, "2m": 120}[grace]; seconds > 0 && state != "expired" {
					if k.retires = m.now + seconds; k.expires != 0 {
						k.retires = min(k.retires, k.expires)
					}
				} else {
					k.revoked = m.now
				}
				m.write("token.refresh", k.id)
				shown := m.showToken(u, next)
				shown["token"], shown["replaces"], shown["replaced"] = next.secret, k.id, m.showToken(u, k)
				return shown
			})
			if u.deleted == 0 {
				m.get(t, tokenURI(u, k), func() any { return m.showToken(u, k) })
			}
		},
		"use a token": func(t *rapid.T) {
			u, k := m.anyToken(t)
			if len(u.refusals(k, int64(m.clockSeconds()))) > 0 {
				t.Skip("it cannot be used")
			}
			p, _ := m.login(u.id, k.secret)
			k.used, k.uses = int64(m.clockSeconds()), k.uses+1
			u.used = k.used
			m.store.Use(p, m.server.now().Unix(), testAddr, "rule_x")
			m.get(t, tokenURI(u, k), func() any { return m.showToken(u, k) })
		},

		"create an API key": func(t *rapid.T) {
			b, u := start(t), m.anyUser(t)
			b.fields["owner_id"] = u.id
			gone(b, u)
			k := m.newToken()
			b.text("description", &k.description)
			b.text("metadata", &k.metadata)
			b.strange()
			m.ask(t, fmt.Sprintf("POST /api_keys %s", b), "", b.faults, 201, func() any {
				m.addToken(u, k)
				shown := m.showKey(u, k)
				shown["token"] = k.secret
				return shown
			})
		},
		"change or delete an API key": func(t *rapid.T) {
			b := start(t)
			u, k := m.anyToken(t)
			b.wrong(u.deleted != 0 || k.ended(m.now), "404 ERR_NOT_FOUND")
			match := b.match(k.version)
			if rapid.Bool().Draw(t, "delete") {
				if m.ask(t, "DELETE /api_keys/"+k.id, match, b.faults, 204, nil) {
					m.revoke(k)
					m.missing(t, "/api_keys/"+k.id)
				}
				return
			}
			after := clone(k)
			b.text("description", &after.description)
			b.text("metadata", &after.metadata)
			b.strange()
			if m.ask(t, fmt.Sprintf("PATCH /api_keys/%s %s", k.id, b), match, b.faults, 200, func() any {
				m.edit(u, k, after)
				return m.showKey(u, k)
			}) {
				m.tick()
				if !k.ended(m.now) {
					m.ask(t, "GET /api_keys/"+k.id, "", nil, 200, func() any { return m.showKey(u, k) })
				}
			}
		},

		"create a permission group": func(t *rapid.T) {
			b, g := start(t), &modelGroup{mode: "enforce", created: m.now, updated: m.now, version: 1}
			drawGroup(b, g)
			m.ask(t, fmt.Sprintf("POST /permission_groups %s", b), "", b.faults, 201, func() any {
				g.id = m.name("group")
				named(g)
				m.groups = append(m.groups, g)
				m.write("permission_group.create", g.id)
				return m.showGroup(g)
			})
		},
		"change a permission group": func(t *rapid.T) {
			b, g := start(t), m.anyGroup(t)
			after := clone(g)
			goneGroup(b, g)
			drawGroup(b, after)
			match := b.match(g.version)
			m.ask(t, fmt.Sprintf("PATCH /permission_groups/%s %s", g.id, b), match, b.faults, 200, func() any {
				named(after)
				edited("permission_group.update", g, after)
				return m.showGroup(g)
			})
			if !g.deleted {
				m.get(t, "/permission_groups/"+g.id, func() any { return m.showGroup(g) })
			}
		},
		"delete a permission group": func(t *rapid.T) {
			b, g := start(t), m.anyGroup(t)
			goneGroup(b, g)
			if m.ask(t, "DELETE /permission_groups/"+g.id, b.match(g.version), b.faults, 204, nil) {
				g.deleted, g.deletedAt, g.version, g.former = true, m.now, g.version+1, nil
				for _, u := range m.users {
					if slices.Contains(u.groups, g.id) {
						g.former = append(g.former, u)
					}
					u.groups = slices.DeleteFunc(slices.Clone(u.groups), func(id string) bool { return id == g.id })
				}
				m.write("permission_group.delete", g.id)
				m.missing(t, "/permission_groups/"+g.id)
				m.missing(t, "/permission_groups/"+g.id+"/members")
			}
		},
		"undelete a permission group": func(t *rapid.T) {
			b := start(t)
			g := evenly(append(slices.Clone(m.groups), noGroup)).Draw(t, "group")
			switch {
			case g == noGroup:
				b.wrong(true, "404 ERR_NOT_FOUND")
			case !g.deleted, m.now-g.deletedAt >= retention:
				b.wrong(true, "409 ERR_CONFLICT")
			default:
				for _, other := range m.groups {
					b.wrong(other.id != g.id && !other.deleted && other.name == g.name, "409 ERR_NGROK_4112 name")
				}
			}
			m.ask(t, "POST /permission_groups/"+g.id+"/undelete", "", b.faults, 200, func() any {
				g.deleted, g.updated, g.version = false, m.now, g.version+1
				for _, u := range g.former {
					u.groups = append(slices.Clone(u.groups), g.id)
				}
				var lost []any
				g.rights = slices.DeleteFunc(slices.Clone(g.rights), func(key string) bool {
					kept := slices.ContainsFunc(m.rights, func(p *modelRight) bool { return p.key == key && p.created <= g.deletedAt })
					if !kept {
						lost = append(lost, "the permission "+key+", which was removed meanwhile")
					}
					return !kept
				})
				m.write("permission_group.undelete", g.id)
				shown := m.showGroup(g)
				shown["undeleted"] = map[string]any{"deleted_at": at(g.deletedAt), "deleted_by": "local"}
				if lost != nil {
					shown["not_restored"] = lost
				}
				return shown
			})
		},
		"add a rule": func(t *rapid.T) {
			b, g, text := start(t), m.anyGroup(t), evenly(slices.Sorted(maps.Keys(stock))).Draw(t, "rule")
			goneGroup(b, g)
			m.ask(t, fmt.Sprintf("POST /permission_groups/%s/rules %q", g.id, text), "", b.faults, 201, func() any {
				after := clone(g)
				after.rules = append(slices.Clone(g.rules), modelRule{m.name("rule"), text})
				edited("rule.add", g, after)
				return m.showRule(g, g.rules[len(g.rules)-1])
			})
		},
		"remove a rule": func(t *rapid.T) {
			b, g, from := start(t), m.anyGroup(t), m.anyGroup(t)
			rule := "rule_0"
			if i := len(from.rules); i > 0 {
				rule = from.rules[below(i).Draw(t, "rule")].id
			}
			i := slices.IndexFunc(g.rules, func(r modelRule) bool { return r.id == rule })
			b.wrong(g.deleted || i < 0, "404 ERR_NOT_FOUND")
			if m.ask(t, fmt.Sprintf("DELETE /permission_groups/%s/rules/%s", g.id, rule), "", b.faults, 204, nil) {
				after := clone(g)
				after.rules = slices.Delete(slices.Clone(g.rules), i, i+1)
				edited("rule.remove", g, after)
				m.get(t, "/permission_groups/"+g.id, func() any { return m.showGroup(g) })
			}
		},
		"add a member":          func(t *rapid.T) { member(t, "PUT", "member.add", true) },
		"remove a member":       func(t *rapid.T) { member(t, "DELETE", "member.remove", false) },
		"give a permission":     func(t *rapid.T) { right(t, "PUT", true) },
		"withdraw a permission": func(t *rapid.T) { right(t, "DELETE", false) },
		"load the catalogue":    m.loadRights,
		"delete a permission": func(t *rapid.T) {
			b, key := start(t), evenly([]string{"p", "q", "r.s"}).Draw(t, "key")
			b.wrong(m.right(key) == nil, "404 ERR_NOT_FOUND")
			b.wrong(m.given(key), "409 ERR_CONFLICT permissions")
			if m.ask(t, "DELETE /service_users/permissions?key="+key, "", b.faults, 204, nil) {
				m.rights = slices.DeleteFunc(m.rights, func(p *modelRight) bool { return p.key == key })
				m.write("permission.delete", key)
			}
		},

		"list service users": m.listUsers,
		"list tokens": func(t *rapid.T) {
			if u := m.anyUser(t); u.deleted == 0 {
				m.listTokens(t, u)
			}
		},
		"list API keys":          m.listKeys,
		"list permission groups": m.listGroups,
		"list members": func(t *rapid.T) {
			if g := m.anyGroup(t); !g.deleted {
				m.listMembers(t, g)
			}
		},
		"list permissions":     m.listRights,
		"read the audit trail": m.readTrail,
		"time passes": func(t *rapid.T) {
			m.clock.Add(int64(evenly([]time.Duration{time.Second, 10 * time.Second, time.Minute, 5 * time.Minute, time.Hour}).Draw(t, "time")))
		},
	}
}

// lookAround looks at all that there is.
func (m *model) lookAround(t *rapid.T) {
	for _, u := range m.users {
		if u.deleted == 0 {
			m.listTokens(t, u)
		} else {
			m.get(t, "/service_users/"+u.id+"?deleted=true", func() any { return m.showUser(u, "/service_users") })
		}
	}
	for _, g := range m.groups {
		if !g.deleted {
			m.listMembers(t, g)
		}
	}
	m.listUsers(t)
	m.listKeys(t)
	m.listGroups(t)
	m.listRights(t)
	m.readTrail(t)
}

func (m *model) listTokens(t *rapid.T, u *modelUser) {
	m.walkAt(t, "/service_users/"+u.id+"/tokens", "", "tokens", func() (rows []any) {
		for _, k := range slices.Backward(u.tokens) {
			rows = append(rows, m.showToken(u, k))
		}
		return rows
	})
}

func (m *model) listKeys(t *rapid.T) {
	m.walkAt(t, "/api_keys", "", "keys", func() (rows []any) {
		keys := make(map[string]any)
		for _, u := range m.users {
			for _, k := range u.tokens {
				if u.deleted == 0 && !k.ended(m.now) {
					keys[k.id] = m.showKey(u, k)
				}
			}
		}
		for i := m.made["token"]; i > 0; i-- {
			if key, ok := keys[fmt.Sprintf("token_%d", i)]; ok {
				rows = append(rows, key)
			}
		}
		return rows
	})
}

func (m *model) listGroups(t *rapid.T) {
	query := evenly([]string{"", "", "name=g", "name=nobody"}).Draw(t, "query")
	m.walkAt(t, "/permission_groups", query, "permission_groups", func() (rows []any) {
		for _, g := range slices.Backward(m.groups) {
			if !g.deleted && (query == "" || query == "name="+g.name) {
				rows = append(rows, m.showGroup(g))
			}
		}
		return rows
	})
}

func (m *model) listMembers(t *rapid.T, g *modelGroup) {
	m.walkAt(t, "/permission_groups/"+g.id+"/members", "", "members", func() []any { return m.members(g) })
	uri := "/permission_groups/" + g.id + "/rules"
	m.get(t, uri, func() any { return map[string]any{"rules": m.showRules(g), "uri": uri, "next_page_uri": nil} })
}

func (m *model) listRights(t *rapid.T) {
	m.get(t, "/service_users/permissions", func() any {
		rows := []any{}
		for _, p := range m.rights {
			rows = append(rows, m.showRight(p))
		}
		return map[string]any{"permissions": rows, "uri": "/service_users/permissions", "next_page_uri": nil}
	})
}

// edit changes a token.
func (m *model) edit(u *modelUser, k, after *modelToken) {
	if !reflect.DeepEqual(plain(m.showToken(u, k)), plain(m.showToken(u, after))) {
		after.updated, after.version = m.now, k.version+1
		m.write("token.update", k.id)
	}
	*k = *after
}

func (m *model) revoke(k *modelToken) {
	if k.revoked == 0 {
		k.revoked, k.updated, k.version = m.now, m.now, k.version+1
		m.write("token.revoke", k.id)
	}
}

// walkAt walks a list while time stands still, as far as the states of tokens go.
func (m *model) walkAt(t *rapid.T, uri, query, member string, want func() []any) {
	t.Helper()
	m.tick()
	before := plain(want())
	m.now += 20 // pages
	if !reflect.DeepEqual(before, plain(want())) {
		return // it would change on the way
	}
	m.walk(t, uri, query, member, want(), true)
}

// loadRights loads permissions of the catalogue.
func (m *model) loadRights(t *rapid.T) {
	m.tick()
	b := &body{t: t}
	replace := below(4).Draw(t, "replace") == 3
	keys := rapid.SliceOfNDistinct(evenly([]string{"p", "q", "r.s"}), 0, 3, rapid.ID).Draw(t, "keys")
	var input []any
	var next []*modelRight
	var trail []string
	was := []string{}
	count := map[string]int{}
	for _, key := range keys {
		p := &modelRight{key: key, name: evenly([]string{"P", "Q"}).Draw(t, "name"), created: m.now, updated: m.now}
		p.rules = rapid.SliceOfN(evenly(slices.Sorted(maps.Keys(stock))), 1, 2).Draw(t, "rules")
		input = append(input, map[string]any{"key": key, "name": p.name, "rules": p.rules})
		switch before := m.right(key); {
		case before == nil:
			count["created"]++
			trail = append(trail, "permission.create "+key)
		case before.name == p.name && slices.Equal(before.rules, p.rules):
			count["unchanged"]++
			p = before
		default:
			count["updated"]++
			p.created = before.created
			trail = append(trail, "permission.update "+key)
		}
		next = append(next, p)
	}
	order := []string{}
	if !replace { // known ones keep their places
		var all []*modelRight
		for _, p := range m.rights {
			if i := slices.Index(keys, p.key); i >= 0 {
				p = next[i]
			}
			all = append(all, p)
		}
		for _, p := range next {
			if m.right(p.key) == nil {
				all = append(all, p)
			}
		}
		next = all
	} else {
		for _, p := range m.rights {
			if slices.Contains(keys, p.key) {
				was = append(was, p.key)
				continue
			}
			count["deleted"]++
			trail = append(trail, "permission.delete "+p.key)
			b.wrong(m.given(p.key), "409 ERR_CONFLICT permissions")
		}
		for _, key := range keys {
			if m.right(key) != nil {
				order = append(order, key)
			}
		}
		if !slices.Equal(was, order) {
			trail = append(trail, "permission.reorder permissions")
		}
	}
	text, _ := json.Marshal(map[string]any{"permissions": input, "replace": replace})
	m.ask(t, "PUT /service_users/permissions "+string(text), "", b.faults, 200, func() any {
		m.rights = next
		m.trail = append(m.trail, trail...)
		return map[string]any{"created": count["created"], "updated": count["updated"], "unchanged": count["unchanged"], "deleted": count["deleted"], "uri": "/service_users/permissions"}
	})
}

// listUsers walks the list of service users, narrowed and sorted in some way.
func (m *model) listUsers(t *rapid.T) {
	under := collection(t)
	query, narrow := url.Values{}, rapid.Bool().Draw(t, "narrow")
	draw := func(param string, values ...string) string {
		if !narrow && param != "sort" || below(2).Draw(t, "with "+param) == 0 {
			return ""
		}
		query.Set(param, evenly(values).Draw(t, param))
		return query.Get(param)
	}
	name, q, role, team := draw("name", "a", "Cé"), draw("q", "A", "x", "al", "%", "cÉ", "service_"), draw("role", "member", "manager", "admin"), draw("team", "ops", "hr", "Ops")
	status, sort, deleted := draw("status", "active", "inactive", "expired"), draw("sort", "name", "-name", "role", "-role", "created_at", "-created_at", "last_active_at"), draw("deleted", "true", "false")
	filter := draw("filter", "obj.active", `obj.role != "member"`, `"ops" in obj.teams`, "false", "obj.expires_at == null")
	m.tick()
	m.now += 20 // pages
	var found []*modelUser
	for _, u := range slices.Backward(m.users) {
		expired := u.expires != 0 && m.now >= u.expires
		if expired != (u.expires != 0 && m.now-20 >= u.expires) || u.obstacle(m.now) != u.obstacle(m.now-20) || m.ends(u, 20) {
			return // it would change on the way
		}
		fits := (u.deleted != 0) == (deleted == "true") && (name == "" || u.name == name) && (role == "" || u.role == role) && (team == "" || slices.Contains(u.teams, team))
		text := lower(strings.Join([]string{u.name, u.display, u.alias, u.owner, u.description}, "\n"))
		fits = fits && (strings.Contains(text, lower(q)) || len(q) > len("service_") && strings.HasPrefix(lower(m.real[u.id]), lower(q)))
		switch status {
		case "active":
			fits = fits && u.active && !expired
		case "inactive":
			fits = fits && !u.active
		case "expired":
			fits = fits && expired
		}
		switch filter {
		case "obj.active":
			fits = fits && u.active
		case `obj.role != "member"`:
			fits = fits && u.role != "member"
		case `"ops" in obj.teams`:
			fits = fits && slices.Contains(u.teams, "ops")
		case "false":
			fits = false
		case "obj.expires_at == null":
			fits = fits && u.expires == 0
		}
		if fits {
			found = append(found, u)
		}
	}
	// found is the newest first, and so are those of one key, unless it ascends.
	field, down := strings.CutPrefix(sort, "-")
	if sort != "" && !down {
		slices.Reverse(found)
	}
	slices.SortStableFunc(found, func(a, b *modelUser) int {
		order := 0
		switch field {
		case "name":
			order = strings.Compare(a.name, b.name)
		case "role":
			order = strings.Compare(a.role, b.role)
		}
		if down {
			return -order
		}
		return order
	})
	rows := []any{}
	for _, u := range found {
		rows = append(rows, m.showUser(u, under))
	}
	m.walk(t, under, query.Encode(), strings.Trim(under, "/"), rows, field != "last_active_at")
}

// lower is lower case as q has it: of ASCII letters alone.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// readTrail finds every change in the audit trail, once, and the chain whole.
func (m *model) readTrail(t *rapid.T) {
	resource := evenly([]string{"", "service_1", "group_1", "token_1", "p"}).Draw(t, "resource_id")
	if strings.HasSuffix(resource, "_1") && m.real[resource] == "" {
		resource = ""
	}
	limit := evenly([]int{7, 100, 1}).Draw(t, "limit")
	link := fmt.Sprintf("/audit_events?limit=%d", limit)
	if resource != "" {
		link += "&resource_id=" + resource
	}
	var want, got []string
	for _, line := range slices.Backward(m.trail) {
		if resource == "" || strings.HasSuffix(line, " "+resource) {
			want = append(want, line)
		}
	}
	for link != "" && len(got) <= len(m.trail) {
		var page struct {
			AuditEvents []struct {
				Action     string `json:"action"`
				ResourceID string `json:"resource_id"`
			} `json:"audit_events"`
			NextPageURI *string `json:"next_page_uri"`
		}
		if err := json.Unmarshal([]byte(m.do("GET "+link).text), &page); err != nil || len(page.AuditEvents) > limit {
			t.Fatalf("GET %s: got %d records, %v, want at most %d", link, len(page.AuditEvents), err, limit)
		}
		for _, e := range page.AuditEvents {
			got = append(got, e.Action+" "+e.ResourceID)
		}
		if link = ""; page.NextPageURI != nil {
			link = *page.NextPageURI
		}
	}
	// Records of other resources that concern this one are a matter of store.TestAuditSubjects.
	got = slices.DeleteFunc(got, func(line string) bool { return resource != "" && !strings.HasSuffix(line, " "+resource) })
	if !slices.Equal(got, want) {
		t.Fatalf("audit trail:\n\tgot  %q\n\twant %q", got, want)
	}
	var report AuditReport
	if err := json.Unmarshal([]byte(m.do("GET /audit_events/verify").text), &report); err != nil || !report.OK || report.Records != int64(len(m.trail)) {
		t.Fatalf("verify: got %+v, %v, want %d good records", report, err, len(m.trail))
	}
}

// tryAll logs in with every secret, by id and by alias, and asks for every action.
func (m *model) tryAll(t *rapid.T) {
	d, now := m.store.Directory(), m.server.now().Unix()
	for _, u := range m.users {
		for _, k := range u.tokens {
			want := u.refusals(k, int64(m.clockSeconds()))
			logins := []string{m.real[u.id]}
			if u.alias != "" && u.deleted == 0 {
				logins = append(logins, u.alias)
			}
			for _, login := range logins {
				p, got := d.Authenticate(access.Credential{ID: login, Secret: m.real[k.secret]}, testAddr, now)
				if len(want) == 0 && got != access.Granted || len(want) > 0 && !slices.Contains(want, got) {
					t.Fatalf("%s of %s, as %s: got %s, want one of %v", k.secret, u.id, m.rename(login), got, want)
				}
				for _, action := range actions {
					if got != access.Granted {
						break
					}
					method, path, _ := strings.Cut(action, " ")
					if got, want := d.Authorize(p, access.Action{Method: method, Host: "api.example.com", Path: path}).Reason, m.decide(u, k, action); got != want {
						t.Fatalf("%s of %s: %s: got %s, want %s", k.secret, u.id, action, got, want)
					}
				}
			}
		}
	}
	if got, want := d.Len(), len(slices.DeleteFunc(slices.Clone(m.users), func(u *modelUser) bool { return u.deleted != 0 })); got != want {
		t.Fatalf("service users in the directory: got %d, want %d", got, want)
	}
}
