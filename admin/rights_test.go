package admin

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// What a service user may do, with where each right comes from.
func TestAccess(t *testing.T) {
	s := people(t)
	rule := func(n, group int, effect, path string) string {
		return fmt.Sprintf(`{"id":"rule_%d","uri":"/permission_groups/group_%d/rules/rule_%d","effect":"%s","methods":["GET"],"host":"","path":"%s","when":"","name":"","description":"","text":"%s GET %s"}`, n, group, n, effect, path, effect, path)
	}
	everyone := `{"id":"group_1","uri":"/permission_groups/group_1","name":"everyone","mode":"enforce","source":"default","rules":[` + rule(1, 1, "allow", "/hello") + `,` + rule(2, 1, "deny", "/hello/private") + `]}`
	doubt := `{"id":"group_5","uri":"/permission_groups/group_5","name":"team","mode":"enforce","source":"doubt","rules":[` + rule(16, 5, "deny", "/team/secret") + `]}`
	s.run(
		r(`GET /service_users/service_2/access`, `200 = {"service_user_id":"service_2","permission_groups":[`+everyone+`,`+doubt+`],"obstacle":null,"uri":"/service_users/service_2/access"}`),
		r(`GET /service_users/service_2/access/`, `200 = {"service_user_id":"service_2","permission_groups":[`+everyone+`,`+doubt+`],"obstacle":null,"uri":"/service_users/service_2/access"}`),
		r(`HEAD /service_users/service_2/access`, `200`),
		// By the names of the groups; those that only observe too.
		r(`GET /service_users/service_1/access`, `200 {"permission_groups":[{"name":"conditions","source":"name"},{"name":"everyone","source":"default"},{"name":"hosts","source":"name"},{"name":"readers","source":"name"},`+
			`{"name":"team","source":"condition","rules":[{"id":"rule_15"},{"id":"rule_16"}]},{"name":"watch","mode":"observe","source":"name","rules":[{"id":"rule_17"},{"id":"rule_18"}]}]}`),
		// It is about rights, whether or not they can be used at the moment.
		r(`GET /service_users/service_3/access`, `200 {"permission_groups":[{"name":"everyone"},{"name":"readers"},{"name":"team","source":"doubt"}],"obstacle":"the service user is deactivated"}`),
		r(`GET /service_users/service_4/access`, `200 {"permission_groups":[{"name":"everyone"},{"name":"readers"},{"name":"team","source":"doubt"}]}`),

		// What changes shows at once.
		r(`PATCH /service_users/service_2 {"labels":{"team":"a"}}`, `200`),
		r(`GET /service_users/service_2/access`, `200 {"permission_groups":[{"name":"everyone"},{"name":"team","source":"condition","rules":[{"id":"rule_15"},{"id":"rule_16"}]}]}`),
		r(`PATCH /service_users/service_2 {"labels":{"team":"b"},"permission_groups":["group_1","group_5"]}`, `200`),
		r(`GET /service_users/service_2/access`, `200 {"permission_groups":[{"name":"everyone","source":"name"},{"name":"team","source":"name"}]}`),
		r(`PUT /service_users/permissions {"permissions":[{"key":"team.see","name":"See","rules":["allow GET /see","deny GET /see/not"]}]}`, `200`),
		r(`PUT /permission_groups/group_5/permissions/team.see`, `204`),
		r(`PATCH /service_users/service_2 {"permission_groups":[],"labels":{"team":"a"}}`, `200`),
		r(`GET /service_users/service_2/access`, `200 {"permission_groups":[{"name":"everyone"},{"name":"team","rules":[{"id":"rule_15"},{"id":"rule_16"},`+
			`{"id":"team.see","permission":"team.see","uri":"/service_users/permissions?key=team.see","text":"allow GET /see"},{"id":"team.see","text":"deny GET /see/not"}]}]}`),
		r(`DELETE /permission_groups/group_1`, `204`),
		r(`DELETE /permission_groups/group_5`, `204`),
		r(`GET /service_users/service_2/access`, `200 = {"service_user_id":"service_2","permission_groups":[],"obstacle":null,"uri":"/service_users/service_2/access"}`),

		r(`GET /service_users/service_0/access`, `404 ERR_NOT_FOUND there is no service user "service_0"`),
		r(`GET /service_users/x/access`, `404 ERR_NOT_FOUND there is no such resource`),
		r(`GET /service_users/service_2/access?limit=1`, `400 ERR_NGROK_231 [limit]`),
		r(`DELETE /service_users/service_2`, `204`),
		r(`GET /service_users/service_2/access`, `404 ERR_NOT_FOUND there is no service user "service_2"`),
	)
}

// Who may do something: those whom such a request would let through, at this
// instant, from anywhere or from an address.
func TestWhoCan(t *testing.T) {
	s := people(t)
	who := func(query string) string { return "GET /service_users/who_can?" + query }
	user := func(n int, name, rule, obstacle string) string {
		return fmt.Sprintf(`{"id":"service_%d","uri":"/service_users/service_%d","name":"%s","some":false,"rule":%s,"obstacle":%s}`, n, n, name, rule, obstacle)
	}
	const readers = `{"id":"rule_3","uri":"/permission_groups/group_2/rules/rule_3","effect":"allow","methods":["GET"],"host":"","path":"/v1/people/{id}","when":"","name":"","description":"","text":"allow GET /v1/people/{id}"},` +
		`"permission_group":{"id":"group_2","uri":"/permission_groups/group_2","name":"readers","mode":"enforce"}`
	s.run(
		// The inactive and the expired are apart, and tokens narrow nothing.
		r(who(`method=GET&url=/v1/people/8`), `200 = {"service_users":[`+user(5, "near", readers, `null,"not_asked":["remote_ip"]`)+`,`+user(1, "reader", readers, "null")+`],`+
			`"cannot_log_in":[`+user(4, "expired", readers, `"the service user has expired"`)+`,`+user(3, "inactive", readers, `"the service user is deactivated"`)+`],"undecided":[],"uri":"/service_users/who_can","next_page_uri":null}`),
		r(who(`method=GET&url=/v1/people/8&remote_ip=10.0.0.1`), `200 {"service_users":[{"name":"near"},{"name":"reader"}]}`),
		r(who(`method=GET&url=/v1/people/8&remote_ip=192.0.2.1`), `200 {"service_users":[{"name":"reader"}]}`),
		r(who(`method=GET&url=/v1/people/8&remote_ip=::ffff:10.0.0.1`), `200 {"service_users":[{"name":"near"},{"name":"reader"}]}`),
		r(who(`method=GET&url=/v1/people/7/address`), `200 {"service_users":[]}`), // a deny wins
		r(who(`method=DELETE&url=/v1/people/8`), `200 {"service_users":[]}`),      // who observes grants nothing
		r(who(`method=GET&url=/team`), `200 {"service_users":[{"name":"reader","rule":{"id":"rule_15"}}]}`),
		r(who(`method=GET&url=/hello`), `200 {"service_users":[{"id":"service_5"},{"id":"service_2"},{"id":"service_1"}]}`),
		r(who(`method=GET&url=https://api.example.com/h/1`), `200 {"service_users":[{"id":"service_1"}]}`),
		r(who(`method=GET&url=`+url.QueryEscape(`https://api.example.com:8443/h/1?x=1`)), `200 {"service_users":[{"id":"service_1"}]}`),
		r(who(`method=GET&url=/h/1`), `200 {"service_users":[]}`),
		r(who(`method=GET&url=/from&remote_ip=10.1.2.3`), `200 {"service_users":[{"id":"service_1"}]}`),
		r(who(`method=GET&url=/late`), `200 {"service_users":[]}`),
		r(who(`method=GET&url=/doubt/1`), `200 {"service_users":[]}`),

		// What never passes, whoever asks.
		r(who(`method=GET&url=//hello`), `400 ERR_INVALID_VALUE [url] the request is refused with status 400 before any rule is read: the path has an empty segment at position 1`),
		r(who(`method=TRACE&url=/hello`), `400 ERR_INVALID_VALUE [method] the request is refused with status 405 before any rule is read: the method TRACE is not allowed`),
		r(who(`method=CONNECT&url=/hello`), `400 ERR_INVALID_VALUE [method] the request is refused with status 501 before any rule is read: the method CONNECT is not supported`),

		// A page at a time; the question goes along in the link.
		r(who(`method=GET&url=/hello&limit=2`), `200 {"service_users":[{"id":"service_5"},{"id":"service_2"}],"uri":"/service_users/who_can","next_page_uri":"/service_users/who_can?before_id=service_2&limit=2&method=GET&url=%2Fhello"}`),
		r(who(`before_id=service_2&limit=2&method=GET&url=%2Fhello`), `200 {"service_users":[{"id":"service_1"}],"next_page_uri":null}`),
		r(who(`method=GET&url=/hello&limit=3`), `200 {"service_users":[{"id":"service_5"},{"id":"service_2"},{"id":"service_1"}],"next_page_uri":null}`),
		r(who(`method=GET&url=/v1/people/8&remote_ip=10.0.0.1&limit=1`), `200 {"service_users":[{"id":"service_5"}],"cannot_log_in":[{"id":"service_4"}],"next_page_uri":"/service_users/who_can?before_id=service_4&limit=1&method=GET&remote_ip=10.0.0.1&url=%2Fv1%2Fpeople%2F8"}`),
		r(who(`method=GET&url=/hello&before_id=service_1`), `200 {"service_users":[],"next_page_uri":null}`),
		r(who(`method=GET&url=/hello&before_id=service_0`), `200 {"service_users":[]}`),

		r(`GET /service_users/who_can`, `400 ERR_INVALID_VALUE [method] is not a method such as GET`),
		r(who(`url=/hello`), `400 ERR_INVALID_VALUE [method] is not a method such as GET`),
		r(who(`method=get&url=/hello`), `400 ERR_INVALID_VALUE [method] is not a method such as GET`),
		r(who(`method=GET`), `400 ERR_INVALID_VALUE [url] is neither a path such as /v1/people/7 nor an absolute URL`),
		r(who(`method=GET&url=hello`), `400 ERR_INVALID_VALUE [url] is neither a path`),
		r(who(`method=GET&url=https:///hello`), `400 ERR_INVALID_VALUE [url] the Host must be a name`),
		r(who(`method=GET&url=`), `400 ERR_NGROK_230 [url] is empty`),
		r(who(`method=GET&url=/hello&remote_ip=x`), `400 ERR_INVALID_VALUE [remote_ip] is not an address such as 192.0.2.7`),
		r(who(`method=GET&url=/hello&limit=0`), `400 ERR_NGROK_233 [limit]`),
		r(who(`method=GET&url=/hello&before_id=group_1`), `400 ERR_NGROK_227 [before_id] is not an id that begins with service_`),
		r(who(`method=GET&url=/hello&url=/hello`), `400 ERR_NGROK_232 [url]`),
		r(who(`method=GET&url=/hello&token_id=token_1`), `400 ERR_NGROK_231 [token_id]`),
		r(`POST /service_users/who_can {}`, `405 ERR_METHOD_NOT_ALLOWED`),

		// Whoever is switched on or off, or deleted, comes and goes at once.
		r(`PATCH /service_users/service_3 {"active":true}`, `200`),
		r(`DELETE /service_users/service_2`, `204`),
		r(who(`method=GET&url=/hello`), `200 {"service_users":[{"id":"service_5"},{"id":"service_3"},{"id":"service_1"}]}`),
	)

	if t.Failed() {
		return // the pages may have no end
	}
	var names []string
	err := All(t.Context(), &Client{Base: s.URL}, "/service_users/who_can?method=GET&url=/hello&limit=1", func(l WhoCan) Page {
		for _, u := range l.ServiceUsers {
			names = append(names, u.Name)
		}
		return l.Page
	})
	if want := []string{"near", "inactive", "reader"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("the client: got %q, %v, want %q", names, err, want)
	}

	// The same, whatever the size of the page, and as single explanations say.
	for _, action := range []string{"GET /hello", "GET /v1/people/8", "DELETE /v1/people/8", "GET /team", "PUT /v1/people/8/address"} {
		method, path, _ := strings.Cut(action, " ")
		var want []string
		for _, id := range []string{"service_5", "service_4", "service_3", "service_1"} {
			if e := s.explain(fmt.Sprintf(`{"service_user_id":%q,"method":%q,"url":%q}`, id, method, path)); e.Decision == "allow" {
				want = append(want, id)
			}
		}
		for _, limit := range []int{1, 2, 100} {
			var got []string
			for uri := fmt.Sprintf("/service_users/who_can?method=%s&url=%s&limit=%d", method, path, limit); uri != ""; {
				page := s.must("GET " + uri)
				for _, u := range page["service_users"].([]any) {
					got = append(got, u.(map[string]any)["id"].(string))
				}
				uri, _ = page["next_page_uri"].(string)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, %d a page: got %q, want %q", action, limit, got, want)
			}
		}
	}
}

// observe counts a request such as "GET /v1/x" as the data path does. passed says
// that the whole handler observes.
func (s *server) observe(user, action string, passed bool) {
	s.t.Helper()
	d := s.store.Directory()
	p, why := d.Principal(s.real[user], "", netip.Addr{}, s.now().Unix())
	if why != access.Granted {
		s.t.Fatalf("%s: got %s", user, why)
	}
	method, path, _ := strings.Cut(action, " ")
	a := access.Action{Method: method, Path: path, Now: s.now().Unix()}
	decision := d.Authorize(p, a)
	s.recall.Observe(p, a, decision, passed && decision.Reason == access.NoRule, s.now().Add(time.Millisecond))
}

// What observe mode has counted: what enforcing would refuse, or allow, with what
// it would take to go on.
func TestWouldDeny(t *testing.T) {
	s := serve(t, store.Options{})
	s.run(
		r(`GET /service_users/would_deny`, `200 = {"would_deny":[],"not_counted":0,"uri":"/service_users/would_deny","next_page_uri":null}`),
		r(`POST /permission_groups {"name":"readers","rules":["allow GET /v1/{id}"]}`, `201`),
		r(`POST /permission_groups {"name":"watch","mode":"observe","rules":["deny GET /v1/me","allow PUT /v1/{id}"]}`, `201`),
		r(`POST /service_users {"name":"a","permission_groups":["group_1","group_2"]}`, `201`),
		r(`POST /service_users {"name":"b","permission_groups":["group_1","group_2"]}`, `201`),
	)
	for range 3 {
		s.observe("service_1", "DELETE /v1/123/x", true) // the handler observes, and no rule allows it
	}
	s.clock.Add(int64(time.Minute))
	s.observe("service_1", "DELETE /v1/124/x", true)
	s.observe("service_1", "GET /v1/me", false) // the group would deny what is allowed
	s.observe("service_2", "GET /v1/me", false)
	s.observe("service_2", "GET /v1/me", false)
	s.observe("service_2", "PUT /v1/a", false) // the group would allow what is refused
	s.observe("service_2", "GET /v1/7", false) // as it is anyway
	const watch = `"permission_group":{"id":"group_2","uri":"/permission_groups/group_2","name":"watch","mode":"observe"}`
	deleted := `{"service_user_id":"service_1","name":"a","method":"DELETE","path":"/v1/{id}/x","example":"/v1/124/x","would":"deny","permission_group":null,"rule_id":"","count":4,"first_at":"t+5s","last_at":"t+65s","grant":"allow DELETE /v1/{id}/x"}`
	me := func(user, name string, count int) string {
		return fmt.Sprintf(`{"service_user_id":"%s","name":"%s","method":"GET","path":"/v1/me","example":"/v1/me","would":"deny",%s,"rule_id":"rule_2","count":%d,"first_at":"t+65s","last_at":"t+65s","grant":""}`, user, name, watch, count)
	}
	put := `{"service_user_id":"service_2","name":"b","method":"PUT","path":"/v1/a","example":"/v1/a","would":"allow",` + watch + `,"rule_id":"rule_3","count":1,"first_at":"t+65s","last_at":"t+65s","grant":""}`
	list := func(rows ...string) string {
		return `200 = {"would_deny":[` + strings.Join(rows, ",") + `],"not_counted":0,"uri":"/service_users/would_deny","next_page_uri":null}`
	}
	const uri = `GET /service_users/would_deny`
	s.run(
		r(uri, list(deleted, me("service_2", "b", 2), me("service_1", "a", 1))), // the most frequent first
		r(uri+`?would=deny`, list(deleted, me("service_2", "b", 2), me("service_1", "a", 1))),
		r(uri+`/`, list(deleted, me("service_2", "b", 2), me("service_1", "a", 1))),
		r(uri+`?would=allow`, list(put)),
		r(uri+`?service_user_id=service_1`, list(deleted, me("service_1", "a", 1))),
		r(uri+`?would=allow&service_user_id=service_1`, list()),
		r(uri+`?service_user_id=a`, list(deleted, me("service_1", "a", 1))),
		r(uri+`?permission_group_id=group_1`, list(deleted)), // by its member, and no rule allows it
		r(uri+`?permission_group_id=group_2&service_user_id=b`, list(me("service_2", "b", 2))),
		r(uri+`?permission_group_id=group_0`, `400 ERR_INVALID_VALUE [permission_group_id] there is no permission group`),

		r(uri+`?would=refuse`, `400 ERR_INVALID_VALUE [would] must be deny or allow`),
		r(uri+`?would=Deny`, `400 ERR_INVALID_VALUE [would] must be deny or allow`),
		r(uri+`?would=`, `400 ERR_NGROK_230 [would] is empty`),
		r(uri+`?service_user_id=service_0`, `400 ERR_INVALID_VALUE [service_user_id] there is no service user`),
		r(uri+`?service_user_id=group_1`, `400 ERR_INVALID_VALUE [service_user_id] there is no service user`),
		r(uri+`?limit=1`, `400 ERR_NGROK_231 [limit]`),
		r(`DELETE /service_users/would_deny?would=deny`, `400 ERR_NGROK_231 [would]`),
		r(`POST /service_users/would_deny {}`, `405 ERR_METHOD_NOT_ALLOWED`),

		// The grant is enough for what was counted.
		r(`POST /permission_groups/group_1/rules "allow DELETE /v1/{id}/x"`, `201`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"DELETE","url":"/v1/124/x"}`, `200 {"decision":"allow","rule":{"id":"rule_4"}}`),

		// Names and modes are those of today; who is gone is left out.
		r(`PATCH /service_users/service_1 {"name":"c"}`, `200`),
		r(`PATCH /permission_groups/group_2 {"mode":"enforce"}`, `200`),
		r(`DELETE /service_users/service_2`, `204`),
		r(uri, `200 {"would_deny":[{"name":"c","count":4},{"name":"c","permission_group":{"mode":"enforce"}}]}`),
		r(uri+`?would=allow`, list()),
		r(`DELETE /permission_groups/group_2`, `204`),
		r(uri, `200 {"would_deny":[{"name":"c","count":4,"permission_group":null}]}`), // not as if the handler did what the group has done

		// Begin again.
		r(`DELETE /service_users/would_deny`, `204`),
		r(uri, list()),
	)
	s.observe("service_1", "PATCH /v1/9", true)
	s.run(
		r(uri, `200 {"would_deny":[{"method":"PATCH","count":1,"grant":"allow PATCH /v1/{id}"}],"not_counted":0}`),
		r(`DELETE /service_users/would_deny/`, `204`),
		r(uri, list()),
	)

	// There is an end to the kinds that are counted, and it is told.
	for i := range 10_003 {
		s.observe("service_1", fmt.Sprintf("GET /v2/%s", strings.Map(func(c rune) rune { return c - '0' + 'a' }, fmt.Sprint(i))), true)
	}
	got := s.must(uri)
	if kinds := len(got["would_deny"].([]any)); kinds != 10_000 || got["not_counted"] != 3.0 {
		t.Errorf("10003 kinds: got %d and %v not counted, want 10000 and 3", kinds, got["not_counted"])
	}
}
