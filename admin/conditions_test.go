package admin

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// Conditions in groups and rules: shown as they were given, and members by
// condition beside those by name.
func TestConditions(t *testing.T) {
	s := serve(t, store.Options{})
	const when = `"when":"request.remote_ip == '10.0.0.1' && params.id != user.name"`
	s.run(
		r(`POST /permission_groups {"name":"devs","member_condition":"user.labels.env == 'dev'","rules":["allow GET /v1/{id} when request.remote_ip == '10.0.0.1' && params.id != user.name"]}`,
			`201 {"member_condition":"user.labels.env == 'dev'","member_count":0,"rules":[{"path":"/v1/{id}",`+when+`,"text":"allow GET /v1/{id} when request.remote_ip == '10.0.0.1' && params.id != user.name"}]}`),
		r(`POST /permission_groups/group_1/rules {"effect":"allow","methods":["PUT"],"path":"/v1/{id}",`+when+`,"name":"n"}`, `201 {`+when+`,"name":"n","text":"allow PUT /v1/{id} when request.remote_ip == '10.0.0.1' && params.id != user.name"}`),
		r(`GET /permission_groups/group_1`, `200 {"rules":[{`+when+`},{`+when+`}]}`),
		r(`POST /service_users {"name":"a","labels":{"env":"dev"}}`, `201 {"id":"service_1"}`),
		r(`POST /service_users {"name":"b","labels":{"env":"prod"}}`, `201 {"id":"service_2"}`),
		r(`POST /service_users {"name":"c","permission_groups":["group_1"]}`, `201 {"id":"service_3"}`),
		r(`POST /service_users {"name":"d","labels":{"env":"dev"},"permission_groups":["group_1"]}`, `201 {"id":"service_4"}`),
		r(`POST /service_users {"name":"e"}`, `201 {"id":"service_5"}`), // of which it cannot be said
		r(`GET /permission_groups/group_1/members`, `200 = {"members":[{"id":"service_4","name":"d","source":"name"},{"id":"service_3","name":"c","source":"name"},{"id":"service_1","name":"a","source":"condition"}],"uri":"/permission_groups/group_1/members","next_page_uri":null}`),
		r(`GET /permission_groups/group_1/members?limit=2`, `200 {"members":[{"name":"d"},{"name":"c"}],"next_page_uri":"/permission_groups/group_1/members?before_id=service_3&limit=2"}`),
		r(`GET /permission_groups/group_1/members?limit=2&before_id=service_3`, `200 {"members":[{"name":"a"}],"next_page_uri":null}`),
		r(`GET /permission_groups/group_1`, `200 {"member_count":3}`),
		r(`GET /service_users/service_1`, `200 {"permission_groups":[]}`), // that it was named for

		// In and out, from either side; a name stays whatever the condition says.
		r(`PATCH /service_users/service_2 {"labels":{"env":"dev"}}`, `200`),
		r(`PATCH /service_users/service_1 {"labels":{}}`, `200`),
		r(`DELETE /permission_groups/group_1/members/service_4`, `204`),
		r(`GET /permission_groups/group_1/members`, `200 {"members":[{"name":"d","source":"condition"},{"name":"c","source":"name"},{"name":"b","source":"condition"}]}`),
		r(`DELETE /permission_groups/group_1/members/service_2`, `204`), // which takes away no more than a name
		r(`GET /permission_groups/group_1`, `200 {"member_count":3}`),
		r(`PATCH /permission_groups/group_1 {"member_condition":"user.labels.?env.orValue('') == '' || user.name in ['b']"}`, `200 {"member_count":4}`),
		r(`GET /permission_groups/group_1/members`, `200 {"members":[{"name":"e","source":"condition"},{"name":"c","source":"name"},{"name":"b","source":"condition"},{"name":"a","source":"condition"}]}`),
		r(`PATCH /permission_groups/group_1 {"member_condition":null}`, `200 {"member_condition":"","member_count":1}`),
		r(`PATCH /permission_groups/group_1 {"member_condition":"user.name != 'a' && user.role == 'member'"}`, `200 {"member_count":4}`),
		r(`DELETE /service_users/service_5`, `204`),
		r(`GET /permission_groups`, `200 {"permission_groups":[{"member_count":3}]}`),
	)
}

// A condition that cannot be is refused with its place in the text, and the field
// that it stands in. Nothing of such a request is taken.
func TestBadConditions(t *testing.T) {
	s := serve(t, store.Options{})
	s.must(`POST /permission_groups {"name":"g","rules":["allow GET /"]}`)
	quoted := func(condition string) string { return strings.ReplaceAll(condition, `"`, `\"`) }
	for _, row := range []struct{ condition, want string }{
		{`user.nam == 'a'`, `condition "user.nam == 'a'": at character 5: undefined field 'nam'`},
		{`user.name == "é" && user.nam == "a"`, `condition "user.name == \"é\" && user.nam == \"a\"": at character 25: undefined field 'nam'`},
		{`usr.name == 'a'`, `condition "usr.name == 'a'": at character 1: undeclared reference to 'usr'`},
		{`user.name = 'a'`, `condition "user.name = 'a'": at character 11: Syntax error`},
		{`user.name == 'a' &&`, `condition "user.name == 'a' &&": at character 20: Syntax error`},
		{`user.name == 7`, `condition "user.name == 7": at character 11: found no matching overload for '_==_'`},
		{`user.name`, `condition "user.name" is a string, and must be true or false; compare it with something`},
		{`user == user`, `condition "user == user": name a field of user, such as user.name`},
		{`user.name.matches('(')`, `condition "user.name.matches('(')": at character 19: invalid matches argument`},
		{`[1,2,3].all(a, [1,2,3].all(b, user.teams.all(c, user.teams.all(d, user.teams.all(e, c == d && d == e)))))`, `condition "[1,2,3].all(a, [1,2,3].all(b, user.teams.all(c, user.teams.all(d, user.teams.all(e, c == d && d == e)))))" can cost too much in every request (up to `},
		{` true`, `condition " true": write it without white space around it`},
		{"true\\n&& true", `condition "true\n&& true": write it on one line, without control characters`},
	} {
		text := quoted(row.condition)
		wants := func(field, before string) string {
			if field == "" {
				return `400 ERR_INVALID_VALUE ` + before + row.want
			}
			return `400 ERR_INVALID_VALUE [` + field + `] ` + before + row.want
		}
		object := `{"effect":"allow","methods":["GET"],"path":"/x","when":"` + text + `"}`
		s.run(
			r(`POST /permission_groups {"name":"h","member_condition":"`+text+`"}`, wants("member_condition", "")),
			r(`PATCH /permission_groups/group_1 {"member_condition":"`+text+`"}`, wants("member_condition", "")),
			r(`POST /permission_groups {"name":"h","rules":[`+object+`]}`, wants("rules.0", "")),
			r(`PATCH /permission_groups/group_1 {"rules":["allow GET /","allow GET /y",`+object+`]}`, wants("rules.2", "")),
			r(`POST /permission_groups/group_1/rules `+object, wants("", "")),
		)
		if strings.HasPrefix(row.condition, " ") || strings.Contains(row.condition, `\n`) {
			continue // a line of text has no such condition
		}
		line := "allow GET /x when " + row.condition
		s.run(
			r(`POST /permission_groups {"name":"h","rules":["allow GET /y","`+quoted(line)+`"]}`, wants("rules.1", fmt.Sprintf("rule %q: ", line))),
			r(`POST /permission_groups/group_1/rules "`+quoted(line)+`"`, wants("", fmt.Sprintf("rule %q: ", line))),
		)
	}
	s.run(
		// What is there in rules only, or for this path only.
		r(`PATCH /permission_groups/group_1 {"member_condition":"now > timestamp('2026-01-01T00:00:00Z')"}`, `400 ERR_INVALID_VALUE [member_condition] condition "now > timestamp('2026-01-01T00:00:00Z')": at character 1: undeclared reference to 'now'`),
		r(`PATCH /permission_groups/group_1 {"member_condition":"params.id == 'a'"}`, `400 ERR_INVALID_VALUE [member_condition] condition "params.id == 'a'": at character 1: undeclared reference to 'params'`),
		r(`PATCH /permission_groups/group_1 {"member_condition":"request.path == '/'"}`, `400 ERR_INVALID_VALUE [member_condition] condition "request.path == '/'": at character`),
		r(`PATCH /permission_groups/group_1 {"rules":["allow GET /v1/{id} when params.name == 'a'"]}`, `400 ERR_INVALID_VALUE [rules.0] rule "allow GET /v1/{id} when params.name == 'a'": condition "params.name == 'a'": the path has no {name}`),
		r(`POST /permission_groups/group_1/rules "allow GET /v1/{id} when request.header('a b') == 'x'"`, `400 ERR_INVALID_VALUE rule "allow GET /v1/{id} when request.header('a b') == 'x'": condition "request.header('a b') == 'x'": "a b" is not the name of a header`),
		r(`POST /permission_groups/group_1/rules "allow GET /x when user.name == '`+strings.Repeat("x", 2000)+`'"`, `400 ERR_INVALID_VALUE`),
		r(`PATCH /permission_groups/group_1 {"member_condition":"user.name == '`+strings.Repeat("x", 2000)+`'"}`, `400 ERR_INVALID_VALUE [member_condition]`),
		r(`POST /permission_groups/group_1/rules "allow GET /x when"`, `400 ERR_INVALID_VALUE rule "allow GET /x when": `),
		r(`GET /permission_groups`, `200 {"permission_groups":[{"etag":"\"1\"","member_condition":"","rules":[{"text":"allow GET /"}]}]}`),
	)
}

// The answer to a write tells of rules that never apply or add nothing; a later
// answer does not.
func TestWarnings(t *testing.T) {
	s := serve(t, store.Options{DefaultGroup: "everyone"})
	// The default group is not compared with itself.
	if made := s.must(`POST /permission_groups {"name":"everyone","rules":["allow GET /hello/{x...}","deny DELETE /{x...}"]}`); made["warnings"] != nil {
		t.Errorf("the default group: got the warnings %v, want none", made["warnings"])
	}
	s.run(
		r(`POST /permission_groups {"name":"g","rules":["allow GET /v1/{id}","allow GET /v1/7","allow GET /hello/you","allow DELETE /v1/{id}","allow GET /x when false","deny PUT /v1/{id}","deny PUT /v1/7"]}`,
			`201 {"id":"group_2","warnings":["rule_4 \"allow GET /v1/7\" adds nothing: allowed already by rule_3 \"allow GET /v1/{id}\"",`+
				`"rule_5 \"allow GET /hello/you\" adds nothing: allowed already by rule_1 \"allow GET /hello/{x...}\"",`+
				`"rule_6 \"allow DELETE /v1/{id}\" never applies: denied by rule_2 \"deny DELETE /{x...}\"",`+
				`"rule_7 \"allow GET /x when false\" never applies: its condition is false",`+
				`"rule_9 \"deny PUT /v1/7\" adds nothing: denied already by rule_8 \"deny PUT /v1/{id}\""]}`),
		r(`PATCH /permission_groups/group_2 {"rules":["allow GET /v1/{id}","allow GET /v1/7"]}`, `200 {"warnings":["rule_4 \"allow GET /v1/7\" adds nothing: allowed already by rule_3 \"allow GET /v1/{id}\""]}`),
		r(`PATCH /permission_groups/group_2 {"description":"d"}`, `200 {"warnings":["rule_4 \"allow GET /v1/7\" adds nothing: allowed already by rule_3 \"allow GET /v1/{id}\""]}`),

		// For a new rule, those that are about it: what it is worth, and what it
		// makes worthless.
		r(`POST /permission_groups/group_2/rules "allow GET /v2/1"`, `201 {"id":"rule_10"}`),
		r(`POST /permission_groups/group_2/rules "allow GET /v2/{id}"`, `201 {"id":"rule_11","warnings":["rule_10 \"allow GET /v2/1\" adds nothing: allowed already by rule_11 \"allow GET /v2/{id}\""]}`),
		r(`POST /permission_groups/group_2/rules "allow GET /v2/2"`, `201 {"id":"rule_12","warnings":["rule_12 \"allow GET /v2/2\" adds nothing: allowed already by rule_11 \"allow GET /v2/{id}\""]}`),
		r(`POST /permission_groups/group_2/rules "deny * /v2/{x...}"`, `201 {"id":"rule_13","warnings":["rule_10 \"allow GET /v2/1\" never applies: denied by rule_13 \"deny * /v2/{x...}\"",`+
			`"rule_11 \"allow GET /v2/{id}\" never applies: denied by rule_13 \"deny * /v2/{x...}\"","rule_12 \"allow GET /v2/2\" never applies: denied by rule_13 \"deny * /v2/{x...}\""]}`),
		r(`POST /permission_groups/group_2/rules "allow DELETE /x"`, `201 {"id":"rule_14","warnings":["rule_14 \"allow DELETE /x\" never applies: denied by rule_2 \"deny DELETE /{x...}\""]}`),

		// Those of permissions count, under their keys.
		r(`PUT /service_users/permissions {"permissions":[{"key":"three","name":"Three","rules":["allow GET /v3/{id}","deny GET /v3/no"]}]}`, `200`),
		r(`POST /permission_groups {"name":"h","permissions":["three"],"rules":["allow GET /v3/7","allow GET /v3/no"]}`, `201 {"id":"group_3","warnings":["rule_15 \"allow GET /v3/7\" adds nothing: allowed already by three \"allow GET /v3/{id}\"",`+
			`"rule_16 \"allow GET /v3/no\" never applies: denied by three \"deny GET /v3/no\""]}`),
		r(`POST /permission_groups/group_3/rules "allow * /v3/{x...}"`, `201 {"id":"rule_17","warnings":["rule_15 \"allow GET /v3/7\" adds nothing: allowed already by rule_17 \"allow * /v3/{x...}\"","three \"allow GET /v3/{id}\" adds nothing: allowed already by rule_17 \"allow * /v3/{x...}\""]}`),

		// A default group that observes holds nobody back.
		r(`PATCH /permission_groups/group_1 {"mode":"observe"}`, `200`),
	)
	for _, request := range []string{
		`GET /permission_groups/group_2`, `GET /permission_groups/group_2/rules`, `GET /permission_groups`,
		`POST /permission_groups {"name":"i","rules":["allow DELETE /x","allow GET /hello/you"]}`,
		`POST /permission_groups {"name":"j","rules":["allow GET /v1/7 when user.name == 'a'","allow GET /v1/{id} when user.name == 'b'","allow PUT /v1/7","allow GET a.example.com/v1/7"]}`,
		`POST /permission_groups/group_2/rules "allow GET /v9"`,
	} {
		if got := s.do(request); got.status >= 300 || strings.Contains(got.text, "warnings") {
			t.Errorf("%s: got %d %s, want no warnings", request, got.status, got.text)
		}
	}
}

// As many rules as there can be make no request wait for seconds. The log says how
// long each took.
func TestManyRules(t *testing.T) {
	t.Parallel()
	s := serve(t, store.Options{})
	rules := make([]string, 10_000)
	for i := range rules {
		rules[i] = fmt.Sprintf(`"allow GET /v1/r%d/{id}"`, i)
	}
	// timed sends a request and looks at the beginning of the answer. It leaves out
	// what is done to other answers, which would take longer than the request.
	timed := func(request, want string) {
		t.Helper()
		method, rest, _ := strings.Cut(s.resolve(request), " ")
		target, body, _ := strings.Cut(rest, " ")
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		began := time.Now()
		s.api.Serve(w, r, store.Local)
		took := time.Since(began)
		got := s.rename(fmt.Sprintf("%d %.300s", w.Code, w.Body.Bytes()))
		if !strings.HasPrefix(got, want) {
			t.Errorf("%.80s: got %s, want %s", request, got, want)
		}
		t.Logf("%.60s: %v, %d bytes", request, took.Round(time.Millisecond), w.Body.Len())
	}
	question := func(method, path string) string {
		return fmt.Sprintf(`POST /service_users/explain {"service_user_id":"service_1","method":%q,"url":%q}`, method, path)
	}
	all := strings.Join(rules, ",")
	timed(`POST /permission_groups {"name":"g","rules":[`+strings.Join(rules[1:], ",")+`]}`, `201 {"id":"group_1"`)
	timed(`POST /permission_groups/group_1/rules "allow GET /v1/r0/{id}"`, `201 {"id":"rule_`)
	timed(`GET /permission_groups/group_1`, `200 {"id":"group_1"`)
	timed(`POST /permission_groups/group_1/rules "allow GET /more"`, `409 {"error_code":"ERR_CONFLICT","status_code":409,"msg":"rules: the permission group has 10000 rules, the most there can be"`)
	timed(`POST /permission_groups {"name":"h","rules":["allow GET /more",`+all+`]}`, `400 {"error_code":"ERR_INVALID_VALUE","status_code":400,"msg":"rules: has 10001 entries, at most 10000 are allowed"`)
	timed(`PATCH /permission_groups/group_1 {"description":"d"}`, `200 {"id":"group_1"`)
	timed(`POST /service_users {"name":"a","permission_groups":["group_1"]}`, `201 {"id":"service_1"`)
	timed(question("GET", "/v1/r9999/x"), `200 {"decision":"allow","reason":"granted"`)
	timed(question("PUT", "/v1/r9999/x"), `200 {"decision":"deny","reason":"no_rule"`)
	timed(`GET /service_users/service_1/access`, `200 {"service_user_id":"service_1"`)
	timed(`GET /service_users/who_can?method=GET&url=/v1/r9999/x`, `200 {"service_users":[{"id":"service_1"`)

	// Conditions have a limit of their own.
	for i := range 1001 {
		rules[i] = fmt.Sprintf(`"allow GET /c when user.name == 'u%d'"`, 1000-i)
	}
	timed(`POST /permission_groups {"name":"h","rules":[`+strings.Join(rules[:1001], ",")+`]}`, `400 {"error_code":"ERR_INVALID_VALUE","status_code":400,"msg":"rules: has 1001 rules with a condition, at most 1000 are allowed in one permission group"`)
	timed(`POST /permission_groups {"name":"h","rules":[`+strings.Join(rules[1:1001], ",")+`]}`, `201 {"id":"group_2"`)
	timed(`PATCH /service_users/service_1 {"name":"u0","permission_groups":["group_2"]}`, `200 {"id":"service_1"`)
	timed(question("GET", "/c"), `200 {"decision":"allow","reason":"granted"`)
}
