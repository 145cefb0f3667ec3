package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// explain asks for an explanation and returns it under the names that rows use.
func (s *server) explain(body string) (e Explanation) {
	s.t.Helper()
	got := s.do("POST /service_users/explain " + body)
	text := offset.ReplaceAllString(got.text, start.Format(`"`+time.RFC3339+`"`))
	if err := json.Unmarshal([]byte(text), &e); err != nil || got.status != 200 {
		s.t.Fatalf("%s: got %d %s", body, got.status, got.text)
	}
	for _, problem := range checkExplanation(e) {
		s.t.Errorf("%s: %s\n\t%s", body, problem, got.text)
	}
	return e
}

// checkExplanation finds what contradicts itself in an explanation.
func checkExplanation(e Explanation) (problems []string) {
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	allowed := e.Decision == "allow"
	if !allowed && e.Decision != "deny" || allowed != (e.Reason == "granted") || e.Detail == "" || e.Considered == nil {
		wrong("got decision %q, reason %q, detail %q, considered %v", e.Decision, e.Reason, e.Detail, e.Considered)
	}
	if (e.Rule != nil) != (e.PermissionGroup != nil) || e.Rule == nil && e.Source != "" {
		wrong("got rule %v, permission group %v and source %q, want all or none", e.Rule, e.PermissionGroup, e.Source)
	}
	if allowed && (e.Nearest != nil || e.Grant != nil) {
		wrong("got nearest %v and grant %v of what is allowed", e.Nearest, e.Grant)
	}
	if e.Grant != nil && (e.Reason != "no_rule" && e.DecisionID == "" || e.Grant.PermissionGroups == nil) {
		wrong("got grant %v with reason %s", e.Grant, e.Reason)
	}
	if e.Nearest != nil && e.Nearest.Rule.Effect != access.Allow {
		wrong("got nearest %v, want an allow", e.Nearest.Rule)
	}
	applies := true
	for i, c := range e.Considered {
		if c.Applies && !applies {
			wrong("considered %d: got a rule that applies behind one that does not", i)
		}
		if applies = c.Applies; !applies && c.Why == "" {
			wrong("considered %d: got no reason why %q does not apply", i, c.Rule.Text)
		}
		if c.Rule.ID == "" || c.PermissionGroup.ID == "" || c.PermissionGroup.Name == "" || c.Source == "" {
			wrong("considered %d: got %+v, want all of it", i, c)
		}
	}
	return problems
}

// why asks "service_1 GET /v1/x", with further members of the question behind it,
// and tells the answer in a few words.
func (s *server) why(question string) string {
	s.t.Helper()
	parts := strings.SplitN(question, " ", 4)
	more := ""
	if len(parts) == 4 {
		more = "," + strings.Trim(parts[3], "{}")
		if strings.HasSuffix(parts[3], "}}") {
			more += "}"
		}
	}
	return brief(s.explain(fmt.Sprintf(`{"service_user_id":%q,"method":%q,"url":%q%s}`, parts[0], parts[1], parts[2], more)))
}

func brief(e Explanation) string {
	text := e.Decision + " " + e.Reason
	if e.Rule != nil {
		text += " " + e.Rule.ID + " of " + e.PermissionGroup.ID
		if e.Source != "" {
			text += " by " + e.Source
		}
	}
	if e.Now != "" {
		text += ", now " + e.Now
	}
	if e.Grant != nil {
		text += "; grant " + e.Grant.Rule
		for _, g := range e.Grant.PermissionGroups {
			text += ", join " + g.ID
		}
	}
	if e.Nearest != nil {
		text += "; nearest " + e.Nearest.Rule.ID + ": " + e.Nearest.Why
	}
	return text
}

// people is a store with somebody for every reason.
func people(t testing.TB) *server {
	s := serve(t, store.Options{DefaultGroup: "everyone"})
	s.run(
		r(`POST /permission_groups {"name":"everyone","rules":["allow GET /hello","deny GET /hello/private"]}`, `201 {"id":"group_1"}`),
		r(`POST /permission_groups {"name":"readers","rules":["allow GET /v1/people/{id}","allow GET,PUT /v1/people/{id}/address","deny * /v1/people/7/address"]}`, `201 {"id":"group_2"}`),
		r(`POST /permission_groups {"name":"hosts","rules":["allow GET api.example.com/h/{x}","deny GET *.internal.example.com/h/{x}","allow PUT *.example.com/h/{x}"]}`, `201 {"id":"group_3"}`),
		r(`POST /permission_groups {"name":"conditions","rules":["allow GET /c/{id} when params.id == 'x' && request.header('X-Env') == 'dev'","allow GET /label when user.labels.env == 'dev'",`+
			`"deny GET /doubt/{x} when user.labels.env == 'dev'","allow GET /doubt/{x}","allow GET /from when request.remote_ip == '10.1.2.3'","allow GET /late when now > timestamp('2026-01-02T03:10:00Z')"]}`, `201 {"id":"group_4"}`),
		r(`POST /permission_groups {"name":"team","member_condition":"user.labels.team == 'a'","rules":["allow GET /team","deny GET /team/secret"]}`, `201 {"id":"group_5"}`),
		r(`POST /permission_groups {"name":"watch","mode":"observe","rules":["allow DELETE /v1/people/{id}","deny GET /v1/people/8"]}`, `201 {"id":"group_6"}`),
		r(`POST /permission_groups {"name":"writers","rules":["allow DELETE /v1/people/{id}"]}`, `201 {"id":"group_7"}`),
		r(`POST /permission_groups {"name":"careful","rules":["allow DELETE /v1/people/{id}","deny DELETE /v1/people/7"]}`, `201 {"id":"group_8"}`),

		r(`POST /service_users {"name":"reader","labels":{"team":"a"},"permission_groups":["group_2","group_3","group_4","group_6"]}`, `201 {"id":"service_1","token":"csu_1"}`),
		r(`POST /service_users/service_1/tokens {"permission_groups":["group_3"]}`, `201 {"id":"token_2"}`),
		r(`POST /service_users/service_1/tokens {"permission_groups":["group_2","group_7"],"allowed_ips":["192.0.2.0/24"]}`, `201 {"id":"token_3"}`),
		r(`POST /service_users/service_1/tokens {"ttl":"1m"}`, `201 {"id":"token_4"}`),
		r(`POST /service_users/service_1/tokens {"not_before":"t+9000s"}`, `201 {"id":"token_5"}`),
		r(`POST /service_users/service_1/tokens {}`, `201 {"id":"token_6"}`),
		r(`DELETE /service_users/service_1/tokens/token_6`, `204`),
		r(`POST /service_users {"name":"nobody"}`, `201 {"id":"service_2","token_id":"token_7"}`),
		r(`POST /service_users {"name":"inactive","active":false,"permission_groups":["group_2"]}`, `201 {"id":"service_3"}`),
		r(`POST /service_users {"name":"expired","expires_at":"t+60s","permission_groups":["group_2"]}`, `201 {"id":"service_4"}`),
		r(`POST /service_users {"name":"near","allowed_ips":["10.0.0.0/8"],"permission_groups":["group_2"]}`, `201 {"id":"service_5"}`),
		r(`POST /service_users/service_1/tokens {}`, `201 {"id":"token_11"}`),
		r(`POST /service_users/service_1/tokens/token_11/refresh {"grace":"1h"}`, `201 {"id":"token_12"}`),
	)
	s.clock.Store(int64(100 * time.Second))
	return s
}

// Why a request would be allowed or refused. "…" at the end of a row is anything.
func TestExplain(t *testing.T) {
	s := people(t)
	for _, row := range []struct{ ask, want string }{
		// By name, by default, by condition.
		{`service_1 GET /v1/people/7`, `allow granted rule_3 of group_2 by name`},
		{`service_1 HEAD /v1/people/7`, `allow granted rule_3 of group_2 by name`},
		{`service_1 PUT /v1/people/8/address`, `allow granted rule_4 of group_2 by name`},
		{`service_1 GET /hello`, `allow granted rule_1 of group_1 by default`},
		{`service_2 GET /hello`, `allow granted rule_1 of group_1 by default`},
		{`service_2 GET /hello/private`, `deny denied_by_rule rule_2 of group_1 by default; nearest rule_1: the path is longer than /hello`},
		{`service_1 GET /team`, `allow granted rule_15 of group_5 by condition`},
		{`service_1 GET /team/secret`, `deny denied_by_rule rule_16 of group_5 by condition; nearest …`},
		{`service_2 GET /team`, `deny no_rule; grant allow GET /team; nearest rule_15: the permission group's condition of membership cannot be evaluated, so its allows do not apply`},
		{`service_2 GET /team/secret`, `deny denied_by_rule rule_16 of group_5 by doubt; nearest rule_15: the path is longer than /team`},

		// A deny wins, in any spelling.
		{`service_1 GET /v1/people/7/address`, `deny denied_by_rule rule_5 of group_2 by name; nearest rule_4: a deny wins`},
		{`service_1 GET /V1/PEOPLE/7/ADDRESS/`, `deny denied_by_rule rule_5 of group_2 by name; nearest …`},

		// No rule; what would help.
		{`service_1 POST /v1/people`, `deny no_rule; grant allow POST /v1/people; nearest …`},
		{`service_2 POST /`, `deny no_rule; grant allow POST /; nearest …`},
		{`service_1 DELETE /v1/people/7`, `deny no_rule; grant allow DELETE /v1/people/7, join group_7; nearest rule_17: the permission group only observes`},
		{`service_1 DELETE /v1/people/9`, `deny no_rule; grant allow DELETE /v1/people/9, join group_8, join group_7; nearest rule_17: the permission group only observes`},
		{`service_2 DELETE /v1/people/9`, `deny no_rule; grant allow DELETE /v1/people/9, join group_8, join group_7; nearest …`},
		{`service_1 GET /v1/people/8`, `allow granted rule_3 of group_2 by name`},
		{`service_1 FROB /v1/people/9`, `deny no_rule; grant allow FROB /v1/people/9; nearest rule_3: the method FROB is not among GET`},

		// A host is in an absolute URL only.
		{`service_1 GET https://api.example.com/h/1`, `allow granted rule_6 of group_3 by name`},
		{`service_1 GET http://API.example.com.:8443/h/1?x=1`, `allow granted rule_6 of group_3 by name`},
		{`service_1 GET /h/1`, `deny no_rule; grant allow GET /h/1; nearest …`},
		{`service_1 GET https://other.example.com/h/1`, `deny no_rule; grant allow GET /h/1; nearest …`},
		{`service_1 PUT https://other.example.com/h/1`, `allow granted rule_8 of group_3 by name`},
		{`service_1 GET https://a.b.internal.example.com/h/1`, `deny denied_by_rule rule_7 of group_3 by name; nearest …`},
		{`service_1 GET https://[::1]:443/h/1`, `deny no_rule; grant allow GET /h/1; nearest …`},
		{`service_1 GET https://api.example.com`, `deny no_rule; grant allow GET /; nearest …`},

		// Conditions: what they look at, what fails, what is in doubt.
		{`service_1 GET /c/x {"headers":{"x-env":"dev"}}`, `allow granted rule_9 of group_4 by name`},
		{`service_1 GET /c/x`, `deny no_rule; grant allow GET /c/x; nearest rule_9: not asked: give headers.X-Env`},
		{`service_1 GET /c/y {"headers":{"X-Env":"dev"}}`, `deny no_rule; grant allow GET /c/y; nearest rule_9: its condition does not hold: params.id == 'x' && request.header('X-Env') == 'dev'`},
		{`service_1 GET /label`, `deny no_rule; grant allow GET /label; nearest rule_10: its condition cannot be evaluated: no such key: env`},
		{`service_1 GET /doubt/1`, `deny denied_by_rule rule_11 of group_4 by name; nearest rule_12: a deny wins`},
		{`service_1 GET /from {"remote_ip":"10.1.2.3"}`, `allow granted rule_13 of group_4 by name`},
		{`service_1 GET /from {"remote_ip":"::ffff:10.1.2.3"}`, `allow granted rule_13 of group_4 by name`},
		{`service_1 GET /from`, `deny no_rule; grant allow GET /from; nearest rule_13: not asked: give remote_ip`},
		{`service_1 GET /late`, `deny no_rule; grant allow GET /late; nearest rule_14: not asked: give at; now its condition does not hold: now > timestamp('2026-01-02T03:10:00Z')`},

		// Tokens: narrowed, tied to addresses, and what is wrong with them.
		{`service_1 GET /v1/people/7 {"token_id":"token_1"}`, `allow granted rule_3 of group_2 by name`},
		{`service_1 GET /v1/people/7 {"token_id":"token_2"}`, `deny no_rule; grant allow GET /v1/people/7; nearest rule_3: the token is restricted to other permission groups`},
		{`service_1 GET /v1/people/7/address {"token_id":"token_2"}`, `deny denied_by_rule rule_5 of group_2 by name; nearest rule_4: the token is restricted to other permission groups`},
		{`service_1 GET https://api.example.com/h/1 {"token_id":"token_2"}`, `allow granted rule_6 of group_3 by name`},
		{`service_1 GET /v1/people/7 {"token_id":"token_3"}`, `allow granted rule_3 of group_2 by name`},
		{`service_1 DELETE /v1/people/9 {"token_id":"token_3"}`, `deny no_rule; grant allow DELETE /v1/people/9, join group_7; nearest rule_17: the permission group only observes`},
		{`service_1 DELETE /v1/people/9 {"token_id":"token_2"}`, `deny no_rule; grant allow DELETE /v1/people/9; nearest rule_17: the permission group only observes`},
		{`service_1 GET /v1/people/7 {"token_id":"token_3","remote_ip":"192.0.2.9"}`, `allow granted rule_3 of group_2 by name`},
		{`service_1 GET /v1/people/7 {"token_id":"token_3","remote_ip":"198.51.100.9"}`, `deny token_address`},
		{`service_1 GET /v1/people/7 {"token_id":"token_4"}`, `deny token_expired`},
		{`service_1 GET /v1/people/7 {"token_id":"token_5"}`, `deny token_not_yet_valid`},
		{`service_1 GET /v1/people/7 {"token_id":"token_6"}`, `deny token_revoked`},
		{`service_1 GET /v1/people/7 {"token_id":"token_11"}`, `allow granted rule_3 of group_2 by name`},

		// What is wrong with the service user.
		{`service_3 GET /v1/people/7`, `deny user_inactive`},
		{`service_3 POST /v1/people/7`, `deny user_inactive; nearest rule_3: the method POST is not among GET`},
		{`service_4 GET /v1/people/7`, `deny user_expired`},
		{`service_5 GET /v1/people/7`, `allow granted rule_3 of group_2 by name`},
		{`service_5 GET /v1/people/7 {"remote_ip":"10.9.9.9"}`, `allow granted rule_3 of group_2 by name`},
		{`service_5 GET /v1/people/7 {"remote_ip":"192.0.2.1"}`, `deny user_address`},

		// What no rule is asked about.
		{`service_1 GET /v1//people`, `deny ambiguous`},
		{`service_1 CONNECT /hello`, `deny ambiguous`},
		{`service_1 TRACE /hello`, `deny ambiguous`},
	} {
		want, more := strings.CutSuffix(row.want, "…")
		if got := s.why(row.ask); got != want && !(more && strings.HasPrefix(got, want)) {
			t.Errorf("%s\n\tgot  %s\n\twant %s", row.ask, got, row.want)
		}
	}

	// The words for it, and what was asked about, as it was understood.
	for ask, want := range map[string]string{
		`service_1 GET /v1/people/7`:          `a rule allows it`,
		`service_1 PUT /v1/people/7`:          `no rule allows it`,
		`service_1 GET /v1/people/7/address`:  `a rule denies it, and a deny wins over any allow`,
		`service_3 GET /hello`:                `it cannot authenticate: the service user is deactivated`,
		`service_4 GET /hello`:                `it cannot authenticate: the service user has expired`,
		`service_1 GET /v1//people`:           `the request is refused with status 400 before any rule is read: the path has an empty segment at position 4; the option merge_slashes would let it pass`,
		`service_1 GET /a%2Fb`:                `the request is refused with status 400 before any rule is read: the path holds %2F at position 2, which programs read differently; the option allow_encoded slash would let it pass`,
		`service_1 GET /a/../b`:               `the request is refused with status 400 before any rule is read: the path has a dot segment at position 3`,
		`service_1 GET /a#b`:                  `the request is refused with status 400 before any rule is read: the path holds the byte 0x23 at position 2, which is not allowed in a path`,
		`service_1 CONNECT /hello`:            `the request is refused with status 501 before any rule is read: the method CONNECT is not supported`,
		`service_1 TRACE /a/../b`:             `the request is refused with status 405 before any rule is read: the method TRACE is not allowed`,
		`service_3 TRACE https://example.com`: `the request is refused with status 405 before any rule is read: the method TRACE is not allowed`,
	} {
		question := strings.Split(ask, " ")
		e := s.explain(fmt.Sprintf(`{"service_user_id":%q,"method":%q,"url":%q}`, question[0], question[1], question[2]))
		if e.Detail != want || e.ServiceUserID != question[0] || e.Method != question[1] || e.Revision != s.store.Directory().Revision() {
			t.Errorf("%s\n\tgot  %s, %s %s, revision %d\n\twant %s", ask, e.Detail, e.ServiceUserID, e.Method, e.Revision, want)
		}
	}
	// Why a rule does not apply, or does not decide.
	for _, row := range []struct{ ask, rule, why string }{
		{`service_1 DELETE /v1/people/7`, "rule_17", `the permission group only observes`},
		{`service_1 GET /v1/people/8`, "rule_18", `the permission group only observes`},
		{`service_2 GET /team`, "rule_15", `the permission group's condition of membership cannot be evaluated, so its allows do not apply`},
		{`service_2 GET /team`, "rule_16", `the path is shorter than /team/secret`},
		{`service_1 GET /label`, "rule_10", `its condition cannot be evaluated: no such key: env`},
		{`service_1 GET /from`, "rule_13", `not asked: give remote_ip`},
		{`service_1 GET /late`, "rule_14", `not asked: give at; now its condition does not hold: now > timestamp('2026-01-02T03:10:00Z')`},
		{`service_1 GET /h/1`, "rule_6", `not asked: give host`},
		{`service_1 GET https://b.example.com/h/1`, "rule_6", `the host "b.example.com" is not api.example.com`},
		{`service_1 GET https://a.internal.example.com/h/1`, "rule_8", `the method GET is not among PUT; the host "a.internal.example.com" is not *.example.com`},
		{`service_1 GET /v1/people/7/address`, "rule_4", `a deny wins`},
		{`service_1 GET /v1/people/7/address`, "rule_5", ``},
		{`service_1 GET /v1/people/7/address`, "rule_3", `the path is longer than /v1/people/{id}`},
		{`service_1 POST /hello/you`, "rule_2", `the method POST is not among GET; the path has "you" where /hello/private has "private"`},
	} {
		question := strings.Split(row.ask, " ")
		e := s.explain(fmt.Sprintf(`{"service_user_id":%q,"method":%q,"url":%q}`, question[0], question[1], question[2]))
		got := "not considered"
		for _, c := range e.Considered {
			if c.Rule.ID == row.rule {
				got = c.Why
			}
		}
		if got != row.why {
			t.Errorf("%s: %s: got %q, want %q", row.ask, row.rule, got, row.why)
		}
	}
	for url, want := range map[string]string{
		`/v1/pe%6Fple/a%20b?x=1`: ` /v1/people/a%20b`, `https://API.example.com.:8443/%C3%A9/`: `api.example.com /%C3%A9/`, `http://h`: `h /`, `http://[::1]`: `[::1] /`, `/`: ` /`, `/a//b`: ` /a//b`,
	} {
		if e := s.explain(fmt.Sprintf(`{"service_user_id":"service_1","method":"GET","url":%q}`, url)); e.Host+" "+e.Path != want {
			t.Errorf("%s: got host and path %q, want %q", url, e.Host+" "+e.Path, want)
		}
	}
}

// TestExplainSite: with a site, a request is judged by the options of that site.
func TestExplainSite(t *testing.T) {
	s := people(t)
	const post, user = `POST /service_users/explain `, `"service_user_id":"service_1","method":"GET",`
	s.run(r(post+`{`+user+`"url":"/","site":"api.example.com"}`, `400 ERR_INVALID_VALUE [site] is not known here: only a running Caddy knows the options of its sites`))
	var asked string
	s.api.Sites = func(host string) (access.Relax, error) {
		asked = host
		if host == "strict.example.com" {
			return 0, nil
		}
		if host != "api.example.com" {
			return 0, errors.New("serves nothing")
		}
		return access.MergedSlashes | access.EncodedSlash, nil
	}
	s.run(
		r(post+`{`+user+`"url":"/v1//people/7","site":"API.example.com:8443"}`, `200 {"decision":"allow","host":"api.example.com","path":"/v1/people/7"}`),
		r(post+`{`+user+`"url":"/h/1","site":"api.example.com"}`, `200 {"decision":"allow","host":"api.example.com"}`), // a rule with a host
		r(post+`{`+user+`"url":"https://api.example.com:8443//h/1","site":"api.example.com"}`, `200 {"decision":"allow","host":"api.example.com","path":"/h/1"}`),
		r(post+`{`+user+`"url":"/v1/people/a%2Fb","site":"api.example.com"}`, `200 {"decision":"allow","path":"/v1/people/a%2Fb"}`),
		r(post+`{`+user+`"url":"/v1/people%2F7","site":"api.example.com"}`, `200 {"decision":"deny","reason":"no_rule"}`),
		r(post+`{`+user+`"url":"/v1/people/7;x","site":"api.example.com"}`, `200 {"decision":"deny","reason":"ambiguous"}`),
		r(post+`{`+user+`"url":"/v1/../x","site":"api.example.com"}`, `200 {"decision":"deny","reason":"ambiguous"}`),
		r(post+`{`+user+`"url":"/v1//people/7","site":"strict.example.com"}`, `200 {"decision":"deny","reason":"ambiguous","host":"strict.example.com","path":"/v1//people/7"}`),
		r(post+`{`+user+`"url":"/v1//people/7"}`, `200 {"decision":"deny","reason":"ambiguous","host":""}`),
		r(post+`{`+user+`"url":"https://api.example.com/v1//people/7"}`, `200 {"decision":"deny","reason":"ambiguous"}`),
		r(post+`{`+user+`"url":"https://other.example.com/","site":"api.example.com"}`, `400 ERR_INVALID_VALUE [url] has another host than the site`),
		r(post+`{`+user+`"url":"https://a b/","site":"api.example.com"}`, `400 ERR_INVALID_VALUE [url] the Host must be a name of letters, digits, "-", "_" and dots, or an IP address, with an optional port`),
		r(post+`{`+user+`"url":"/","site":"a b"}`, `400 ERR_INVALID_VALUE [site] the Host must be a name of letters, digits, "-", "_" and dots, or an IP address, with an optional port`),
		r(post+`{`+user+`"url":"/","site":"Another"}`, `400 ERR_INVALID_VALUE [site] serves nothing`),
		r(post+`{"decision_id":"decision_x","site":"api.example.com"}`, `400 ERR_INVALID_VALUE [decision_id] must be the only field: the decision determines the others`),
	)
	if asked != "another" {
		t.Errorf("asked about the site %q, want its name in lower case", asked)
	}
}

// One answer as a whole, member by member.
func TestExplanationShape(t *testing.T) {
	s := serve(t, store.Options{})
	rule := func(n, group int, effect, method, path string) string {
		return fmt.Sprintf(`{"id":"rule_%d","uri":"/permission_groups/group_%d/rules/rule_%d","effect":"%s","methods":["%s"],"host":"","path":"%s","when":"","name":"","description":"","text":"%s %s %s"}`, n, group, n, effect, method, path, effect, method, path)
	}
	const readers = `{"id":"group_1","uri":"/permission_groups/group_1","name":"readers","mode":"enforce"}`
	const writers = `{"id":"group_2","uri":"/permission_groups/group_2","name":"writers","mode":"enforce"}`
	const history = `{"id":"people.history","uri":"/service_users/permissions?key=people.history","effect":"allow","methods":["GET"],"host":"","path":"/v1/people/{id}/history","when":"","name":"","description":"","text":"allow GET /v1/people/{id}/history","permission":"people.history"}`
	considered := func(rule, why string) string {
		return `{"rule":` + rule + `,"permission_group":` + readers + `,"source":"name","applies":` + fmt.Sprint(why == "") + `,"why":"` + why + `","not_asked":[]}`
	}
	allow, deny := rule(1, 1, "allow", "GET", "/v1/people/{id}"), rule(2, 1, "deny", "GET", "/v1/people/me")
	s.run(
		r(`PUT /service_users/permissions {"permissions":[{"key":"people.history","name":"History","rules":["allow GET /v1/people/{id}/history"]}]}`, `200`),
		r(`POST /permission_groups {"name":"readers","rules":["allow GET /v1/people/{id}","deny GET /v1/people/me"],"permissions":["people.history"]}`, `201`),
		r(`POST /permission_groups {"name":"writers","rules":["allow PUT /v1/people/{id}"]}`, `201`),
		r(`POST /service_users {"name":"a","permission_groups":["group_1"]}`, `201`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"GET","url":"/v1/people/7"}`, `200 = {"decision":"allow","reason":"granted","detail":"a rule allows it",`+
			`"service_user_id":"service_1","method":"GET","host":"","path":"/v1/people/7","rule":`+allow+`,"permission_group":`+readers+`,"source":"name","considered":[`+
			considered(allow, "")+`,`+considered(deny, `the path has \"7\" where /v1/people/me has \"me\"`)+`,`+considered(history, `the path is shorter than /v1/people/{id}/history`)+
			`],"nearest":null,"grant":null,"not_asked":[],"obstacle":null,"revision":4}`),
		r(`POST /service_users/explain/ {"service_user_id":"service_1","method":"PUT","url":"https://api.example.com/v1/people/7/history"}`, `200 = {"decision":"deny","reason":"no_rule","detail":"no rule allows it",`+
			`"service_user_id":"service_1","method":"PUT","host":"api.example.com","path":"/v1/people/7/history","rule":null,"permission_group":null,"source":"","considered":[`+
			considered(history, `the method PUT is not among GET`)+`,`+considered(allow, `the method PUT is not among GET; the path is longer than /v1/people/{id}`)+`,`+
			considered(deny, `the method PUT is not among GET; the path has \"7\" where /v1/people/me has \"me\"`)+
			`],"nearest":`+considered(history, `the method PUT is not among GET`)+`,"grant":{"rule":"allow PUT /v1/people/7/history","permission_groups":[]},"not_asked":[],"obstacle":null,"revision":4}`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"PUT","url":"/v1/people/7"}`, `200 {"grant":{"rule":"allow PUT /v1/people/7","permission_groups":[`+writers+`]}}`),
		r(`POST /service_users/explain {"service_user_id":"service_1","method":"PUT","url":"//"}`, `200 = {"decision":"deny","reason":"ambiguous",`+
			`"detail":"the request is refused with status 400 before any rule is read: the path has an empty segment at position 1; the option merge_slashes would let it pass",`+
			`"service_user_id":"service_1","method":"PUT","host":"","path":"//","rule":null,"permission_group":null,"source":"","considered":[],"nearest":null,"grant":null,"not_asked":[],"obstacle":null,"revision":4}`),
	)
}

// What is not a question, with the field that is at fault.
func TestExplainStrict(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /service_users {"name":"a"}`)
	s.must(`POST /service_users {"name":"b"}`)
	const post, user = `POST /service_users/explain `, `"service_user_id":"service_1",`
	const noURL = `400 ERR_INVALID_VALUE [url] is neither a path such as /v1/people/7 nor an absolute URL such as https://api.example.com/v1/people/7`
	const noMethod = `400 ERR_INVALID_VALUE [method] is not a method such as GET`
	const noHost = `400 ERR_INVALID_VALUE [url] the Host must be a name of letters, digits, "-", "_" and dots, or an IP address, with an optional port`
	const alone = `400 ERR_INVALID_VALUE [decision_id] must be the only field: the decision determines the others`
	s.run(
		r(post+`{}`, `400 ERR_INVALID_VALUE [service_user_id] name a service user, or a decision_id`),
		r(`POST /service_users/explain`, `400 ERR_INVALID_VALUE [service_user_id] name a service user, or a decision_id`),
		r(post+`{"method":"GET","url":"/"}`, `400 ERR_INVALID_VALUE [service_user_id] name a service user, or a decision_id`),
		r(post+`{"decision_id":"","method":"GET","url":"/"}`, `400 ERR_INVALID_VALUE [service_user_id] name a service user, or a decision_id`),
		r(post+`{"service_user_id":"a","method":"GET","url":"/"}`, `400 ERR_INVALID_VALUE [service_user_id] "a" is not an id, which begins with service_`),
		r(post+`{"service_user_id":"token_1","method":"GET","url":"/"}`, `400 ERR_INVALID_VALUE [service_user_id] "token_1" is not an id, which begins with service_`),
		r(post+`{"service_user_id":"service_0","method":"GET","url":"/"}`, `404 ERR_NOT_FOUND there is no service user "service_0"`),
		r(post+`{"service_user_id":"service_0"}`, `404 ERR_NOT_FOUND there is no service user "service_0"`),
		r(post+`{"service_user_id":7}`, `400 ERR_INVALID_VALUE [service_user_id] must not be a JSON number`),
		r(post+`{`+user+`"url":"/"}`, noMethod),
		r(post+`{`+user+`"method":"get","url":"/"}`, noMethod),
		r(post+`{`+user+`"method":"GET ","url":"/"}`, noMethod),
		r(post+`{`+user+`"method":"*","url":"/"}`, noMethod),
		r(post+`{`+user+`"method":"PRI","url":"/"}`, noMethod),
		r(post+`{`+user+`"method":"GET,PUT","url":"/"}`, noMethod),
		r(post+`{`+user+`"method":"`+strings.Repeat("A", 33)+`","url":"/"}`, noMethod),
		r(post+`{`+user+`"method":["GET"],"url":"/"}`, `400 ERR_INVALID_VALUE [method] must not be a JSON array`),
		r(post+`{`+user+`"method":"GET"}`, noURL),
		r(post+`{`+user+`"method":"TRACE"}`, noURL),
		r(post+`{`+user+`"method":"GET","url":"v1/people"}`, noURL),
		r(post+`{`+user+`"method":"GET","url":" /v1"}`, noURL),
		r(post+`{`+user+`"method":"GET","url":"api.example.com/v1"}`, noURL),
		r(post+`{`+user+`"method":"GET","url":"ftp://api.example.com/v1"}`, noURL),
		r(post+`{`+user+`"method":"GET","url":"*"}`, noURL),
		r(post+`{`+user+`"method":"GET","url":"?x=1"}`, noURL),
		r(post+`{`+user+`"method":"GET","url":"https://"}`, noHost),
		r(post+`{`+user+`"method":"GET","url":"https:///v1"}`, noHost),
		r(post+`{`+user+`"method":"GET","url":"https://a b/v1"}`, noHost),
		r(post+`{`+user+`"method":"GET","url":"https://user:pass@api.example.com/v1"}`, noHost),
		r(post+`{`+user+`"method":"GET","url":"https://api.example.com:99999/v1"}`, noHost),
		r(post+`{`+user+`"method":"GET","url":"https://*.example.com/v1"}`, noHost),
		r(post+`{`+user+`"method":"GET","url":7}`, `400 ERR_INVALID_VALUE [url] must not be a JSON number`),
		r(post+`{`+user+`"method":"GET","url":"/","remote_ip":"10.0.0.0/8"}`, `400 ERR_INVALID_VALUE [remote_ip] is not an address such as 192.0.2.7`),
		r(post+`{`+user+`"method":"GET","url":"/","remote_ip":"192.0.2.7:80"}`, `400 ERR_INVALID_VALUE [remote_ip] is not an address such as 192.0.2.7`),
		r(post+`{`+user+`"method":"GET","url":"/","remote_ip":"localhost"}`, `400 ERR_INVALID_VALUE [remote_ip] is not an address such as 192.0.2.7`),
		r(post+`{`+user+`"method":"GET","url":"/","token_id":"token_0"}`, `400 ERR_INVALID_VALUE [token_id] the service user has no such token, or it was revoked long ago`),
		r(post+`{`+user+`"method":"GET","url":"/","token_id":"token_2"}`, `400 ERR_INVALID_VALUE [token_id] the service user has no such token, or it was revoked long ago`),
		r(post+`{`+user+`"method":"GET","url":"/","token_id":"csu_1"}`, `400 ERR_INVALID_VALUE [token_id] the service user has no such token, or it was revoked long ago`),
		r(post+`{`+user+`"method":"GET","url":"/","headers":{"X-Env":"a","x-env":"b"}}`, `400 ERR_INVALID_VALUE [headers.X-Env] appears twice, in upper and in lower case`),
		r(post+`{`+user+`"method":"GET","url":"/","headers":{"X-Env":["a","b"]}}`, `400 ERR_INVALID_VALUE [headers.X-Env] must not be a JSON array`),
		r(post+`{`+user+`"method":"GET","url":"/","headers":["X-Env: a"]}`, `400 ERR_INVALID_VALUE [headers] must not be a JSON array`),
		r(post+`{`+user+`"method":"GET","path":"/"}`, `400 ERR_NGROK_214 [path] there is no such field`),
		r(post+`{`+user+`"method":"GET","url":"/","now":"t+1s"}`, `400 ERR_NGROK_214 [now] there is no such field`),
		r(`POST /service_users/explain?method=GET {}`, `400 ERR_NGROK_231 [method] there is no such query parameter`),

		r(post+`{"decision_id":"decision_x"}`, `404 ERR_NOT_FOUND this decision is not remembered: the store keeps the latest decisions, and after a flood of them only the node that refused`),
		r(post+`{"decision_id":"decision_x","service_user_id":"service_1"}`, alone),
		r(post+`{"decision_id":"decision_x","token_id":"token_1"}`, alone),
		r(post+`{"decision_id":"decision_x","method":"GET"}`, alone),
		r(post+`{"decision_id":"decision_x","url":"/"}`, alone),
		r(post+`{"decision_id":"decision_x","remote_ip":"192.0.2.1"}`, alone),
		r(post+`{"decision_id":"decision_x","headers":{}}`, alone),
		r(post+`{"decision_id":7}`, `400 ERR_INVALID_VALUE [decision_id] must not be a JSON number`),
		r(`PUT /service_users/explain {}`, `405 ERR_METHOD_NOT_ALLOWED`),

		// A deleted service user has nothing to explain.
		r(`DELETE /service_users/service_2`, `204`),
		r(post+`{"service_user_id":"service_2","method":"GET","url":"/"}`, `404 ERR_NOT_FOUND there is no service user "service_2"`),
	)
}

// What a grant says is enough, and no more than a rule can say: the rule, added to
// a group of the service user, or membership in one of the groups.
func TestGrant(t *testing.T) {
	s := people(t)
	type asked struct{ user, method, url, token string }
	ask := func(q asked) Explanation {
		t.Helper()
		return s.explain(fmt.Sprintf(`{"service_user_id":%q,"method":%q,"url":%q,"token_id":%q}`, q.user, q.method, q.url, q.token))
	}
	long := strings.Repeat("/a", 31)
	for _, row := range []struct {
		asked
		grant, join string
	}{
		{asked{"service_2", "DELETE", "/v1/people/9", ""}, "allow DELETE /v1/people/9", "group_8 group_7"},
		{asked{"service_2", "DELETE", "/v1/people/7", ""}, "allow DELETE /v1/people/7", "group_7"}, // the other denies it
		{asked{"service_1", "DELETE", "/v1/people/9", "token_2"}, "allow DELETE /v1/people/9", ""}, // its token goes no further
		{asked{"service_1", "DELETE", "/v1/people/9", "token_3"}, "allow DELETE /v1/people/9", "group_7"},
		{asked{"service_2", "GET", "https://api.example.com/h/1", ""}, "allow GET /h/1", "group_3"},
		{asked{"service_2", "GET", "https://a.internal.example.com/h/1", ""}, "allow GET /h/1", ""},
		{asked{"service_2", "GET", "/doubt/1", ""}, "allow GET /doubt/1", ""}, // in doubt a deny holds
		{asked{"service_2", "HEAD", "/", ""}, "allow HEAD /", ""},
		{asked{"service_2", "OPTIONS", "/a/", ""}, "allow OPTIONS /a/", ""},
		{asked{"service_2", "FROB-NICATE", "/a:b@c", ""}, "allow FROB-NICATE /a:b@c", ""},
		{asked{"service_2", "GET", "/%C3%A9%20x/y", ""}, "allow GET /é x/y", ""},
		{asked{"service_2", "GET", "/a%20when%20b", ""}, "allow GET /{id}", ""},
		{asked{"service_2", "GET", "/a%20when/b", ""}, "allow GET /{id}/b", ""},
		{asked{"service_2", "GET", "/%7Bid%7D/*/x*/b", ""}, "allow GET /{id}/{id2}/{id3}/b", ""},
		{asked{"service_2", "GET", long + "/b", ""}, "allow GET " + long + "/b", ""},
		{asked{"service_2", "GET", long + "/b/", ""}, "allow GET " + long + "/{rest...}", ""},
		{asked{"service_2", "GET", long + "/b/c/d", ""}, "allow GET " + long + "/{rest...}", ""},
	} {
		before := ask(row.asked)
		if before.Grant == nil {
			t.Errorf("%v: got no grant, %s", row.asked, brief(before))
			continue
		}
		var join []string
		for _, g := range before.Grant.PermissionGroups {
			join = append(join, g.ID)
		}
		if before.Grant.Rule != row.grant || strings.Join(join, " ") != row.join {
			t.Errorf("%v: got grant %q, join %q, want %q, %q", row.asked, before.Grant.Rule, join, row.grant, row.join)
		}
		group := map[string]string{"service_1": "group_3", "service_2": "group_1"}[row.user]
		if row.token == "token_3" {
			group = "group_2"
		}
		made := s.rename(s.must("POST /permission_groups/" + group + "/rules " + fmt.Sprintf("%q", before.Grant.Rule))["id"].(string))
		if e := ask(row.asked); e.Decision != "allow" || e.Rule.ID != made {
			t.Errorf("%v: got %s with the rule %q added to %s, want allow by it", row.asked, brief(e), before.Grant.Rule, group)
		}
		s.run(r("DELETE /permission_groups/"+group+"/rules/"+made, "204"))
		for _, g := range join {
			s.run(r("PUT /permission_groups/"+g+"/members/"+row.user, "204"))
			if e := ask(row.asked); e.Decision != "allow" || e.PermissionGroup.ID != g || e.Source != "name" {
				t.Errorf("%v: got %s as a member of %s, want allow by it", row.asked, brief(e), g)
			}
			s.run(r("DELETE /permission_groups/"+g+"/members/"+row.user, "204"))
		}
		if after := ask(row.asked); brief(after) != brief(before) {
			t.Errorf("%v: got %s afterwards, want %s again", row.asked, brief(after), brief(before))
		}
	}
}

// refuse remembers a refusal as the data path does, of "GET /v1/x" by a token, as
// the store is at this instant. The rule is one of the group that decided.
func (s *server) refuse(id, user, token, action string, header map[string][]string) {
	s.t.Helper()
	d := s.store.Directory()
	address := netip.MustParseAddr("192.0.2.1")
	p, why := d.Principal(s.real[user], s.real[token], address, s.now().Unix())
	method, path, _ := strings.Cut(action, " ")
	a := access.Action{Method: method, Host: "api.example.com", Path: path, Address: address, Header: header, Now: s.now().Unix()}
	decision := d.Authorize(p, a)
	if why != access.Granted || decision.Allowed() {
		s.t.Fatalf("%s %s: got %s, %s, want a refusal", user, action, why, decision.Reason)
	}
	kept := access.Recalled{ID: id, Status: 403, At: s.now(), UserID: p.ID(), TokenID: p.TokenID(), Action: a, Revision: d.Revision(), Reason: decision.Reason}
	if decision.Rule != nil {
		kept.Rule, kept.Group = *decision.Rule, decision.Group.ID
	}
	s.recall.Keep(kept)
}

// A refusal of the past: what was decided then stays, the rules are those of
// today, and "now" tells when it would come out otherwise.
func TestExplainDecision(t *testing.T) {
	s := serve(t, store.Options{})
	decision := func(id string) string { return `POST /service_users/explain {"decision_id":"` + id + `"}` }
	told := func(id string) string {
		t.Helper()
		e := s.explain(`{"decision_id":"` + id + `"}`)
		if e.DecisionID != id || e.DecidedAt == nil {
			t.Errorf("%s: got decision id %q, decided at %v", id, e.DecisionID, e.DecidedAt)
		}
		return brief(e)
	}
	expect := func(want map[string]string) {
		t.Helper()
		for id, want := range want {
			if got := told(id); got != want {
				t.Errorf("%s\n\tgot  %s\n\twant %s", id, got, want)
			}
		}
	}
	s.run(
		r(`POST /permission_groups {"name":"readers","rules":["allow GET /v1/{id}","deny GET /v1/me"]}`, `201`),
		r(`POST /permission_groups {"name":"envs","rules":["allow GET /env","deny GET /env when request.header('X-Env') == 'prod'","deny GET /from when request.remote_ip == '192.0.2.1'"]}`, `201`),
		r(`POST /permission_groups {"name":"writers","rules":["allow PUT /v1/{id}"]}`, `201`),
		r(`POST /service_users {"name":"a","teams":["x"],"permission_groups":["group_1","group_2"]}`, `201 {"id":"service_1","token_id":"token_1"}`),
		r(`POST /service_users/service_1/tokens {"permission_groups":["group_2"]}`, `201 {"id":"token_2"}`),
		r(`POST /service_users {"name":"b","permission_groups":["group_1"]}`, `201 {"id":"service_2","token_id":"token_3"}`),
	)
	s.refuse("decision_put", "service_1", "token_1", "PUT /v1/7", nil)
	s.refuse("decision_me", "service_1", "token_1", "GET /v1/me", nil)
	s.refuse("decision_env", "service_1", "token_1", "GET /env", map[string][]string{"X-Env": {"prod"}})
	s.refuse("decision_from", "service_1", "token_1", "GET /from", nil)
	s.refuse("decision_narrow", "service_1", "token_2", "GET /v1/7", nil)
	s.refuse("decision_b", "service_2", "token_3", "GET /v2\x00x", nil)
	s.refuse("decision_b_me", "service_2", "token_3", "GET /v1/me", nil)

	// As it was.
	s.run(
		r(decision("decision_put"), `200 {"decision":"deny","reason":"no_rule","detail":"no rule allows it","service_user_id":"service_1","method":"PUT","host":"api.example.com","path":"/v1/7",`+
			`"rule":null,"permission_group":null,"source":"","considered":[{"rule":{"id":"rule_1"}},{"rule":{"id":"rule_2"}},{"rule":{"id":"rule_4"}},{"rule":{"id":"rule_5"}},{"rule":{"id":"rule_3"}}],`+
			`"grant":{"rule":"allow PUT /v1/7","permission_groups":[{"id":"group_3"}]},"revision":6,"decision_id":"decision_put","decided_at":"t+6s"}`),
		r(decision("decision_me"), `200 {"decision":"deny","reason":"denied_by_rule","detail":"a rule denies it, and a deny wins over any allow","rule":{"id":"rule_2","uri":"/permission_groups/group_1/rules/rule_2","text":"deny GET /v1/me"},`+
			`"permission_group":{"id":"group_1","uri":"/permission_groups/group_1","name":"readers","mode":"enforce"},"grant":null,"revision":6}`),
		r(decision("decision_b"), `200 {"path":"/v2%2Fx","service_user_id":"service_2"}`),
	)
	for _, id := range []string{"decision_put", "decision_me", "decision_env", "decision_b"} {
		if text := s.do(decision(id)).text; strings.Contains(text, `"now"`) {
			t.Errorf("%s: got %s, want no word of now, since nothing has changed", id, text)
		}
	}
	expect(map[string]string{
		"decision_put":    `deny no_rule; grant allow PUT /v1/7, join group_3; nearest rule_1: the method PUT is not among GET`,
		"decision_me":     `deny denied_by_rule rule_2 of group_1; nearest rule_1: a deny wins`,
		"decision_from":   `deny denied_by_rule rule_5 of group_2; nearest rule_3: the path has "from" where /env has "env"`,
		"decision_narrow": `deny no_rule; grant allow GET /v1/7; nearest rule_1: the token is restricted to other permission groups`,
		"decision_b_me":   `deny denied_by_rule rule_2 of group_1; nearest rule_1: a deny wins`,
	})
	// Headers are not kept, so a deny by a header still applies.
	if got, want := told("decision_env"), `deny denied_by_rule rule_4 of group_2; nearest rule_3: a deny wins`; got != want {
		t.Errorf("decision_env: got %s, want %s", got, want)
	}

	s.run(
		r(`POST /permission_groups {"name":"headers","rules":["deny GET /header when request.header('X-Env') == 'prod'"]}`, `201 {"id":"group_4"}`),
		r(`POST /service_users {"name":"c","permission_groups":["group_4"]}`, `201 {"id":"service_3","token_id":"token_4"}`),
	)
	s.refuse("decision_header", "service_3", "token_4", "GET /header", map[string][]string{"X-Env": {"prod"}})
	if got, want := told("decision_header"), `deny denied_by_rule rule_7 of group_4`; got != want {
		t.Errorf("decision_header: got %s, want %s, and no grant, which a deny would beat", got, want)
	}
	s.run(r(`DELETE /permission_groups/group_4`, `204`), r(`DELETE /service_users/service_3`, `204`))

	// The rules change: what decided then is still told.
	s.run(
		r(`PUT /permission_groups/group_3/members/service_1`, `204`),
		r(`DELETE /permission_groups/group_1/rules/rule_2`, `204`),
		r(`PATCH /service_users/service_1/tokens/token_2 {"permission_groups":[]}`, `200`),
	)
	expect(map[string]string{
		"decision_put":    `deny no_rule, now allow`,
		"decision_me":     `deny denied_by_rule rule_2 of group_1, now allow`,
		"decision_narrow": `deny no_rule, now allow`,
		"decision_b_me":   `deny denied_by_rule rule_2 of group_1, now allow`,
	})
	s.run(r(decision("decision_me"), `200 {"now":"allow","considered":[{"rule":{"id":"rule_1"},"applies":true},{"rule":{"id":"rule_6"}},{"rule":{"id":"rule_4"}},{"rule":{"id":"rule_5"}},{"rule":{"id":"rule_3"}}],"revision":6}`))
	s.run(r(`PATCH /permission_groups/group_1 {"name":"people","mode":"observe","rules":["allow DELETE /v1/{id}"]}`, `200`))
	expect(map[string]string{
		"decision_b_me": `deny denied_by_rule rule_2 of group_1; grant allow GET /v1/me; nearest rule_8: the method GET is not among DELETE`,
	})
	s.run(
		r(decision("decision_b_me"), `200 {"permission_group":{"id":"group_1","name":"people","mode":"observe"}}`),
		r(`DELETE /permission_groups/group_1`, `204`),
		r(decision("decision_b_me"), `200 {"permission_group":{"id":"group_1","uri":"/permission_groups/group_1","name":""},"considered":[],"nearest":null}`),
	)

	// Somebody who could not even authenticate any more gains nothing by a grant.
	s.run(r(`PATCH /service_users/service_1 {"active":false}`, `200`))
	expect(map[string]string{
		"decision_put":  `deny no_rule`,
		"decision_from": `deny denied_by_rule rule_5 of group_2; nearest rule_3: the path has "from" where /env has "env"`,
	})
	s.run(r(`PATCH /service_users/service_1 {"active":true,"permission_groups":[]}`, `200`))
	expect(map[string]string{"decision_put": `deny no_rule; grant allow PUT /v1/7, join group_3`})
	s.run(r(`PATCH /service_users/service_1 {"active":false}`, `200`))
	expect(map[string]string{"decision_put": `deny no_rule`})
	s.run(
		r(`DELETE /service_users/service_1`, `204`),
		r(decision("decision_me"), `200 = {"decision":"deny","reason":"denied_by_rule","detail":"a rule denies it, and a deny wins over any allow","service_user_id":"service_1","method":"GET","host":"api.example.com","path":"/v1/me",`+
			`"rule":{"id":"rule_2","uri":"/permission_groups/group_1/rules/rule_2","effect":"deny","methods":["GET"],"host":"","path":"/v1/me","when":"","name":"","description":"","text":"deny GET /v1/me"},`+
			`"permission_group":{"id":"group_1","uri":"/permission_groups/group_1","name":"","mode":""},"source":"","considered":[],"nearest":null,"grant":null,"not_asked":[],"obstacle":"the service user is deleted","revision":6,"decision_id":"decision_me","decided_at":"t+6s"}`),
	)

	// Decisions may be about anybody, so they are for admins; a manager does not
	// even learn which there are.
	s.by = s.api.HumanManager("carol", []string{"x"}, []string{"writers"})
	for _, id := range []string{"decision_put", "decision_b", "decision_x"} {
		s.run(r(decision(id), `403 ERR_NGROK_4111 only an admin may ask for a decision`))
	}

	// As many as the node keeps, where a flood of one leaves those of another alone, and
	// none where nobody decides.
	s.by = store.Local
	for i := range 100 {
		s.refuse(fmt.Sprintf("decision_%d", i), "service_2", "token_3", "GET /v1/me", nil)
	}
	s.run(
		r(decision("decision_0"), `404 ERR_NOT_FOUND this decision is not remembered`), r(decision("decision_50"), `200 {"decision_id":"decision_50"}`),
		r(decision("decision_put"), `200 {"service_user_id":"service_1"}`),
	)
	s.refuse("decision_last", "service_2", "token_3", "GET /v1/me", nil)
	s.run(r(decision("decision_99"), `200`), r(decision("decision_last"), `200`), r(decision("decision_put"), `200`))
	s.api = New(s.store, nil, nil)
	s.run(
		r(decision("decision_last"), `404 ERR_NOT_FOUND`),
		r(`GET /service_users/would_deny`, `200 = {"would_deny":[],"not_counted":0,"uri":"/service_users/would_deny","next_page_uri":null}`),
		r(`DELETE /service_users/would_deny`, `204`),
	)
}
