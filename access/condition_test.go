package access

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// asker is the service user that conditions are asked about here.
var asker = User{
	Profile: Profile{ID: "service_1", Name: "billing-sync", DisplayName: "Billing sync", Alias: "billing", Owner: "ops@example.com", Role: Manager,
		Teams: []string{"finance", "ops"}, Labels: map[string]string{"env": "prod", "people": "7,8", "level": "3"}}, CreatedAt: 1_700_000_000,
}

// asking is its request, with a path that /v1/{id}/{rest...} matches.
var asking = Action{
	Method: "GET", Host: "api.example.com", Path: "/v1/7/a/b", Address: netip.MustParseAddr("::ffff:192.0.2.7"),
	Header: map[string][]string{
		"X-Env": {"prod"}, "Accept": {"text/html", "application/json"}, "Etag": {""},
		"X-Full": {strings.Repeat("x", maxValueBytes)}, "X-Long": {strings.Repeat("x", maxValueBytes-2), "x"},
	},
	Now: time.Date(2026, 7, 16, 22, 30, 0, 0, time.UTC).Unix(), // a Thursday
}

var pathParams = map[string]string{"id": "7", "rest": "a/b"}

// judged says what a condition comes to.
func judged(c *Condition, e *evaluation) string {
	holds, err := c.isTrue(e)
	if err != nil {
		return "error: " + err.Error()
	}
	return fmt.Sprint(holds)
}

func TestConditions(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{`true`, "true"},
		{`false`, "false"},
		{`1 + 1 == 2 && !("a" == "b") || false`, "true"},
		{`1 / 0 == 1`, "error: division by zero"},
		{`1 / 0 == 1 || true`, "true"},
		{`1 / 0 == 1 && false`, "false"},

		// Every field of user.
		{`user.id == "service_1"`, "true"},
		{`user.name == "billing-sync"`, "true"},
		{`user.display_name == "Billing sync"`, "true"},
		{`user.alias == "billing"`, "true"},
		{`user.owner.endsWith("@example.com")`, "true"},
		{`user.role == "manager"`, "true"},
		{`user.role in ["admin", "member"]`, "false"},
		{`"ops" in user.teams`, "true"},
		{`"o" in user.teams`, "false"},
		{`user.teams == ["finance", "ops"] && user.teams != ["ops", "finance"]`, "true"},
		{`user.teams[1] == "ops" && size(user.teams) == 2`, "true"},
		{`user.teams[2] == "ops"`, "error: index out of bounds: 2"},
		{`user.teams.exists(t, t.startsWith("fin")) && user.teams.all(t, t != "")`, "true"},
		{`user.teams.exists_one(t, t > "g")`, "true"},
		{`user.teams.filter(t, t == "ops").map(t, t + "!") == ["ops!"]`, "true"},
		{`user.labels.env == "prod"`, "true"},
		{`user.labels["env"] == "prod"`, "true"},
		{`user.labels.nothing == "prod"`, "error: no such key: nothing"},
		{`user.labels == {"env": "prod", "people": "7,8", "level": "3"}`, "true"},
		{`user.labels.exists(k, user.labels[k] == "prod")`, "true"},
		{`"env" in user.labels && !("nothing" in user.labels)`, "true"},
		{`int(user.labels.level) >= 3`, "true"},
		{`user.created_at == timestamp("2023-11-14T22:13:20Z")`, "true"},
		{`now - user.created_at > duration("720h")`, "true"},

		// What may be missing.
		{`has(user.labels.env) && !has(user.labels.nothing)`, "true"},
		{`has(user.alias) && has(user.teams) && has(user.labels) && has(user.created_at)`, "true"},
		{`user.labels.?env.orValue("test") == "prod"`, "true"},
		{`user.labels.?nothing.orValue("test") == "test"`, "true"},
		{`user.labels[?"nothing"].hasValue()`, "false"},
		{`user.labels.?env == optional.of("prod")`, "true"},
		{`params.id in user.labels.?people.orValue("").split(",")`, "true"},

		// Every field of request.
		{`request.method == "GET"`, "true"},
		{`request.host == "api.example.com"`, "true"},
		{`request.path == "/v1/7/a/b"`, "true"},
		{`request.path.startsWith("/v1/" + user.labels.level)`, "false"},
		{`request.remote_ip == "192.0.2.7"`, "true"},
		{`has(request.path) && has(request.remote_ip)`, "true"},
		{`cidr("192.0.2.0/24").containsIP(request.remote_ip)`, "true"},
		{`cidr("192.0.2.0/24").containsIP(ip(request.remote_ip))`, "true"},
		{`cidr("2001:db8::/32").containsIP(request.remote_ip)`, "false"},
		{`ip(request.remote_ip).family() == 4 && ip(request.remote_ip) == ip("192.0.2.7")`, "true"},

		// A header is its fields, joined; "" when it is absent.
		{`request.header("X-Env") == "prod"`, "true"},
		{`request.header("x-eNV") == "prod"`, "true"},
		{`request.header("X-" + "env") == "prod"`, "true"},
		{`request.header("Accept") == "text/html, application/json"`, "true"},
		{`"application/json" in request.header("Accept").split(", ")`, "true"},
		{`request.header("ETag") == "" && request.header("Authorization") == ""`, "true"},
		{`request.header("X-" + " bad") == ""`, "true"},
		{`request.header("X-Full").size() == 2048`, "true"},
		{`request.header("X-Long") == ""`, "error: a condition cannot read a value of more than 2048 bytes"},
		{`request.header("X-Long") == "" || true`, "true"},

		// The parameters of the path.
		{`params.id == "7" && params["rest"] == "a/b"`, "true"},
		{`params.?id.orValue("") == "7" && has(params.id) && "id" in params`, "true"},
		{`params.exists(p, p == "rest") && params.size() == 2`, "true"},
		{`params["i" + "d"] == "7"`, "true"},
		{`params["x" + "y"] == "7"`, "error: no such key: xy"},
		{`params.rest.split("/")[1] == "b"`, "true"},

		// The time, in UTC or in a zone.
		{`now == timestamp("2026-07-16T22:30:00Z")`, "true"},
		{`now < timestamp("2026-07-16T22:30:00Z")`, "false"},
		{`now.getHours() == 22 && now.getDayOfWeek() == 4`, "true"},
		{`now.getHours("Europe/Berlin") == 0 && now.getDayOfWeek("Europe/Berlin") == 5`, "true"},
		{`now.getHours("-02:00") == 20`, "true"},
		{`now.getHours("Europe/Nowhere") == 0`, "error: unknown time zone Europe/Nowhere"},

		// The functions of text.
		{`user.name.matches("^[a-z]+-[a-z]+$") && matches(user.name, "sync")`, "true"},
		{`user.name.contains("ling-s") && !user.name.contains("Sync")`, "true"},
		{`user.display_name.lowerAscii().replace(" ", "-") == user.name`, "true"},
		{`user.name.substring(0, 4) + user.name.charAt(7) == "bill-"`, "true"},
		{`user.name.indexOf("-") == 7 && user.name.lastIndexOf("x") == -1`, "true"},
		{`" a ".trim() == "a" && "ab".reverse() == "ba" && "a".upperAscii() == "A"`, "true"},
		{`user.name.split("-") == ["billing", "sync"] && user.name.split("-", 1).size() == 1`, "true"},
		{`user.name.substring(20) == ""`, "error: index out of range: 20"},
		{`int(user.name) == 1`, "error: type conversion error from 'string' to 'int'"},

		{`.user.name == "billing-sync" && .params.id == "7" && .request.header("X-Env") == "prod"`, "true"},
		{`true // a remark`, "true"},
	} {
		c, err := ParseWhen(row.text)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := judged(c, &evaluation{user: &asker, action: asking, params: pathParams}); got != row.want {
			t.Errorf("%s: got %s, want %s", row.text, got, row.want)
		}
		if c.String() != row.text {
			t.Errorf("%s: got the text %q", row.text, c)
		}
	}
}

// TestConditionsOverNothing: a service user that has only what it must have, and a
// request of which nothing is known.
func TestConditionsOverNothing(t *testing.T) {
	for text, want := range map[string]string{
		`has(user.alias) || has(user.owner) || has(user.display_name) || has(user.teams) || has(user.labels)`: "false",
		`user.alias == "" && user.teams == [] && user.labels == {}`:                                           "true",
		`user.labels.env == "prod"`:                                                  "error: no such key: env",
		`has(user.labels.env)`:                                                       "false",
		`user.labels.?env.hasValue()`:                                                "false",
		`user.teams.all(t, false) && !user.labels.exists(k, true)`:                   "true",
		`request.remote_ip == "" && request.host == "" && request.header("X") == ""`: "true",
		`has(request.remote_ip)`:                                                     "false",
		`cidr("192.0.2.0/24").containsIP(request.remote_ip)`:                         "error: IP Address \"\" parse error during conversion from string: ParseAddr(\"\"): unable to parse IP",
		`params.id == "7"`:                                                           "error: no such key: id",
		`params.size() == 0`:                                                         "true",
		`now == timestamp("1970-01-01T00:00:00Z") && user.created_at == now && has(user.created_at)`: "true",
	} {
		c, err := ParseWhen(text)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, u := range []*User{{}, {Profile: Profile{Teams: []string{}, Labels: map[string]string{}}}} {
			if got := judged(c, &evaluation{user: u}); got != want {
				t.Errorf("%s: got %s, want %s", text, got, want)
			}
		}
	}
}

// TestConditionMistakes: the message says where, and what to write instead.
func TestConditionMistakes(t *testing.T) {
	const tooCostly = ` can cost too much in every request (up to N, at most 8000); avoid loops within loops, and over the parts of a text: "a" in text.split(",") is cheaper`
	unbounded := strings.Replace(tooCostly, "up to N", "unbounded", 1)
	number := regexp.MustCompile(`up to [0-9]+`)
	for _, row := range []struct{ text, want string }{
		{``, `: write it without white space around it`},
		{` true`, `: write it without white space around it`},
		{"true\u00a0", `: write it without white space around it`},
		{"true &&\nfalse", `: write it on one line, without control characters`},
		{"true &&\tfalse", `: write it on one line, without control characters`},
		{"user.name == \"\u200b\"", `: write it on one line, without control characters`},
		{"user.name == \"\u2028\"", `: write it on one line, without control characters`},
		{"user.name == \"\xff\"", ` is not valid UTF-8`},

		{`person.name == "x"`, `: at character 1: undeclared reference to 'person'`},
		{`name == "x"`, `: at character 1: undeclared reference to 'name'`},
		{`user.nmae == "x"`, `: at character 5: undefined field 'nmae'; did you mean name?`},
		{`user.role == "x" && usr.label["x"] == ""`, `: at character 21: undeclared reference to 'usr'; did you mean user?`},
		{`user.label["x"] == ""`, `: at character 5: undefined field 'label'; did you mean labels?`},
		{`user.tokens == []`, `: at character 5: undefined field 'tokens'`},
		{`user["name"] == "x"`, `: at character 5: found no matching overload for '_[_]' applied to '(user, string)'`},
		{`request.body == "x"`, `: at character 8: undefined field 'body'`},
		{`request.header == "x"`, `: at character 8: undefined field 'header'`},
		{`request.header(1) == "x"`, `: at character 15: found no matching overload for 'header' applied to 'request.(int)'`},
		{`params.id.x == "x"`, `: at character 10: type 'string' does not support field selection`},
		{`now.year == 2026`, `: at character 4: type 'timestamp' does not support field selection`},
		{`user.name = "x"`, `: at character 11: Syntax error: token recognition error at: '= '`},
		{`user.name == "é" & true`, `: at character 18: Syntax error: token recognition error at: '& '`},
		{`((true)`, `: at character 8: Syntax error: missing ')' at '<EOF>'`},
		{`user.name == 'a' || user.labels.x == 5`, `: at character 35: found no matching overload for '_==_' applied to '(string, int)'`},
		{`"a" in user.name`, `: at character 5: found no matching overload for '@in' applied to '(string, string)'`},
		{`user.teams.exists(t, u)`, `: at character 22: undeclared reference to 'u'`},
		{`user.name.matches("(")`, `: at character 19: invalid matches argument`},
		{`now < timestamp("tomorrow")`, `: at character 17: invalid timestamp argument`},
		{`env("HOME") == ""`, `: at character 4: undeclared reference to 'env'`},
		{strings.Repeat("(", 300) + "true" + strings.Repeat(")", 300), `: expression recursion limit exceeded: 250`},

		{`user.name`, ` is a string, and must be true or false; compare it with something`},
		{`user.teams.size()`, ` is a int, and must be true or false; compare it with something`},
		{`user.labels.?on`, ` is a optional_type(string), and must be true or false; compare it with something`},
		{`dyn(true)`, ` is a dyn, and must be true or false; compare it with something`},
		{`user`, ` is a user, and must be true or false; compare it with something`},

		// What is read of the service user is always known.
		{`user == user`, `: name a field of user, such as user.name`},
		{`[user].exists(u, u.name == "x")`, `: name a field of user, such as user.name`},
		{`dyn(user).name == "x"`, `: name a field of user, such as user.name`},
		{`(true ? user : user).name == "x"`, `: name a field of user, such as user.name`},
		{`.user == .user`, `: name a field of user, such as user.name`},
		{`["a"].exists(user, .user.name == "x")`, `: user is a variable already; choose another name for the loop's variable`},
		{`["a"].map(request, request) == []`, `: request is a variable already; choose another name for the loop's variable`},
		{`["a"].all(x, ["b"].all(params, params == x))`, `: params is a variable already; choose another name for the loop's variable`},
		{`optional.of(user.name).optMap(now, now == "x") == optional.of(true)`, `: now is a variable already; choose another name for the loop's variable`},
		{`optional.of(user).hasValue()`, `: name a field of user, such as user.name`},
		{`{"a": user}.size() == 1 && {1: 2}.size() == 1`, `: name a field of user, such as user.name`},
		{`{user.name: [user]}.size() == 1`, `: name a field of user, such as user.name`},
		{`user.?name.orValue("") == "x"`, `: the field name is always there; select it without "?"`},
		{`user.?labels.?env.orValue("") == "x"`, `: the field labels is always there; select it without "?"`},
		{`request.?path.orValue("") == "x"`, `: the field path is always there; select it without "?"`},
		{`request == request`, `: name a field of request, such as request.path`},
		{`[request].exists(r, r.path == "x")`, `: name a field of request, such as request.path`},
		{`dyn(request).header("X") == "x"`, `: name a field of request, such as request.path`},
		{`user{name: "x"}.name == "x"`, `: a user cannot be made here`},
		{`google.protobuf.StringValue{value: "x"} == "x"`, `: a google.protobuf.StringValue cannot be made here`},

		{`request.header("a b") == "x"`, `: "a b" is not the name of a header`},
		{`request.header("") == "x"`, `: "" is not the name of a header`},
		{`request.header("X-É") == "x"`, `: "X-É" is not the name of a header`},
		{`["a"].exists(h, h == request.header("X:"))`, `: "X:" is not the name of a header`},

		// What it can cost is bounded, whatever it is asked about.
		{"true || " + strings.Repeat("x", maxConditionBytes-8), `: at character 9: undeclared reference to '` + strings.Repeat("x", maxConditionBytes-8) + "'"},
		{strings.Repeat("x", maxConditionBytes+1), `the condition has 2001 bytes, at most 2000 are allowed`},
		{`user.name.matches(user.alias)`, `: matches needs its pattern written out, as in matches("^[a-z]+$")`},
		{`matches("a", request.header("X"))`, `: matches needs its pattern written out, as in matches("^[a-z]+$")`},
		{`user.name.matches("a" + "b")`, `: matches needs its pattern written out, as in matches("^[a-z]+$")`},
		{`"%s".format([user.name]) == "x"`, `: format is not allowed in a condition: nothing bounds the text that it makes`},
		{`user.teams.join() == "x"`, `: join is not allowed in a condition: nothing bounds the text that it makes`},
		{`request.path.matches("(.{0,1000}){0,1}b")`, tooCostly},
		{`[[1]] == [[1]]`, unbounded},
		{`[[1]]` + strings.Repeat(".map(x, [x, x])", 20) + `.exists(x, x == x)`, unbounded},
		{`[[1]]` + strings.Repeat(".map(x, [x, x])", 20) + `.exists(x, x in [x])`, unbounded},
		{`dyn([[1]]) == dyn([[1]])`, unbounded},
		{`user.name.split(",").exists(s, s.trim() == "x")`, unbounded},
		{`request.path.split("/").exists(s, s == "x")`, tooCostly},
		{`request.path.lowerAscii().lowerAscii().lowerAscii().lowerAscii() == "x"`, tooCostly},
		{`user.labels.exists(k, user.labels.exists(l, user.labels[k] == l + "x"))`, tooCostly},
		{`user.labels.all(k, user.labels.all(l, int(request.path) > 1))`, tooCostly},
		{`user.labels.all(k, user.labels.all(l, timestamp(request.header("X")) < now))`, tooCostly},
		{`user.labels.all(k, user.labels.all(l, request.path.size() > 1))`, tooCostly},
		{`user.labels.all(k, user.labels.all(l, bool(request.path)))`, tooCostly},
		{`user.labels.all(k, now.getHours("Europe/Berlin") == 1)`, tooCostly},
		{`user.labels.all(k, user.labels == {"a": "b"} || user.labels == user.labels)`, tooCostly},
		{`[1].all(a, [{a: a}].all(b, [{b: b}].all(c, [{c: c}].all(d, [{d: d}].all(e, [{e: e}].all(f, true))))))`, `: it has 5 maps whose keys are not written out, at most 4 are allowed`},
		{strings.Repeat("[", 80) + strings.Repeat("]", 80) + ` == []`, `: it nests lists, maps and loops 80 deep, at most 64 are allowed`},
		{`[1]` + strings.Repeat(".map(x, [[x]])", 22) + ` == []`, `: it nests lists, maps and loops 67 deep, at most 64 are allowed`},
		{`[request.path]` + strings.Repeat(".map(x, x + x)", 5) + `.exists(x, x == "")`, tooCostly},
	} {
		want := row.want
		if !strings.HasPrefix(want, "the condition has") {
			want = fmt.Sprintf("condition %q%s", row.text, want)
		}
		if _, err := ParseWhen(row.text); err == nil || number.ReplaceAllString(err.Error(), "up to N") != want {
			t.Errorf("%.80q: got %v, want %s", row.text, err, want)
		}
	}
}

// TestMembershipConditions: they are over the service user alone.
func TestMembershipConditions(t *testing.T) {
	for text, want := range map[string]string{
		`user.labels.env == "prod" && user.role != "admin"`: "true",
		`"it" in user.teams`:            "false",
		`user.labels.region == "eu"`:    "error: no such key: region",
		`request.method == "GET"`:       `: at character 1: undeclared reference to 'request'`,
		`request.header("X") == ""`:     `: at character 1: undeclared reference to 'request'`,
		`user.labels.env == params.env`: `: at character 20: undeclared reference to 'params'`,
		`user.created_at < now`:         `: at character 19: undeclared reference to 'now'`,
		`user`:                          ` is a user, and must be true or false; compare it with something`,
		` user.name == "x"`:             `: write it without white space around it`,
	} {
		c, err := ParseMembership(text)
		if err != nil {
			if want = fmt.Sprintf("condition %q%s", text, want); err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
			continue
		}
		got := "error"
		if member, err := c.Member(&asker); err == nil {
			got = fmt.Sprint(member)
		} else {
			got = "error: " + err.Error()
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

func TestConditionReads(t *testing.T) {
	for text, want := range map[string]string{
		`true`:                                 "",
		`request.path == params.id`:            "",
		`user.name == "x"`:                     "name",
		`.user.name == "x"`:                    "name",
		`user.created_at < now`:                "created_at",
		`user.id == user.alias`:                "alias id",
		`has(user.owner)`:                      "owner",
		`"x" in user.teams`:                    "teams",
		`"labels" in user.teams`:               "teams",
		`user.teams[0] == user.role`:           "role teams",
		`user.display_name.contains("labels")`: "display_name",

		// One label …
		`user.labels.env == "x"`:                  "labels.env",
		`user.labels["env"] == "x"`:               "labels.env",
		`user.labels["a.b/c"] == "x"`:             "labels.a.b/c",
		`has(user.labels.env)`:                    "labels.env",
		`"env" in user.labels`:                    "labels.env",
		`user.labels.?env.orValue("") == "x"`:     "labels.env",
		`user.labels[?"env"].hasValue()`:          "labels.env",
		`.user.labels.env == "x"`:                 "labels.env",
		`user.labels.env == user.labels["level"]`: "labels.env labels.level",
		// … or any.
		`user.labels == {"a": "b"}`:                                           "labels",
		`has(user.labels)`:                                                    "labels",
		`user.labels.size() > 1`:                                              "labels",
		`user.labels["e" + "nv"] == "x"`:                                      "labels",
		`user.labels[user.name] == "x"`:                                       "labels name",
		`user.labels[?params.id].hasValue()`:                                  "labels",
		`params.id in user.labels`:                                            "labels",
		`user.labels.exists(k, k == "env")`:                                   "labels",
		`[user.labels].exists(l, l.env == "x")`:                               "labels",
		`dyn(user.labels).env == "x"`:                                         "labels",
		`(true ? user.labels : {}).env == "x"`:                                "labels",
		`{"a": user.labels}.a.env == "x"`:                                     "labels",
		`optional.of(user.labels).optMap(l, "env" in l) == optional.of(true)`: "labels",

		// Wherever it stands.
		`user.teams.exists(t, t == user.labels.env)`:                             "labels.env teams",
		`["a"].all(t, request.header(user.labels.header) == t)`:                  "labels.header",
		`["a"].map(t, user.name).size() == 1`:                                    "name",
		`["a"].filter(t, t == user.owner).exists_one(t, t == user.alias)`:        "alias owner",
		`{user.id: user.name}.size() == 1 || [user.role] == []`:                  "id name role",
		`true || (false ? user.id : user.name) == ""`:                            "id name",
		`[?user.labels.?env].size() > 0 && {?"a": user.labels.?level} == {}`:     "labels.env labels.level",
		`user.labels.?env.optMap(e, e == user.labels.home) == optional.of(true)`: "labels.env labels.home",
		`params.id.startsWith(user.name)`:                                        "name",
	} {
		c, err := ParseWhen(text)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := strings.Join(c.Reads(), " "); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// TestConditionParams: a condition can only look at what the path has.
func TestConditionParams(t *testing.T) {
	for _, row := range []struct{ path, when, missing string }{
		{"/{id}", `params.id == "x"`, ""},
		{"/{id}/{rest...}", `params["rest"] == params.id`, ""},
		{"/{id}", `params.exists(p, params[p] == "x")`, ""},
		{"/{id}", `params["i" + "d"] == "x"`, ""},
		{"/{id}", `params.ID == "x"`, "ID"},
		{"/id", `params.id == "x"`, "id"},
		{"/{id}", `params.id == params.rest`, "rest"},
		{"/{id}", `params["a.b"] == "x"`, "a.b"},
		{"/{id}", `"name" in params`, "name"},
		{"/{id}", `params.?name.hasValue()`, "name"},
		{"/{id}", `has(params.name)`, "name"},
		{"/{id}", `["a"].exists(t, t == params.name)`, "name"},
		{"/{id}", `.params.name == "x"`, "name"},
	} {
		_, err := ParseRule("deny * " + row.path + " when " + row.when)
		want := fmt.Sprintf("rule %q: condition %q: the path has no {%s}", "deny * "+row.path+" when "+row.when, row.when, row.missing)
		if row.missing == "" && err != nil || row.missing != "" && (err == nil || err.Error() != want) {
			t.Errorf("%s when %s: got %v, want the missing parameter %q", row.path, row.when, err, row.missing)
		}
	}
}

// decided is what one rule decides about a request of asker's; an allow of
// everything stands beside a deny.
func decided(t *testing.T, rule string, a Action) Reason {
	t.Helper()
	rules := []string{rule}
	if strings.HasPrefix(rule, "deny") {
		rules = append(rules, "allow * /{all...}")
	}
	u := asker
	u.Active, u.Groups = true, []string{"g"}
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(t, "g", rules...)}, Users: []User{u}})
	p, why := d.Principal(u.ID, "", a.Address, a.Now)
	if why != Granted {
		t.Fatal(why)
	}
	return d.Authorize(p, a).Reason
}

// TestWhen: an allow applies when its condition is true; a deny, unless it is
// false.
func TestWhen(t *testing.T) {
	for when, want := range map[string][2]Reason{
		`user.labels.env == "prod"`:                         {Granted, DeniedByRule},
		`user.labels.env == "test"`:                         {NoRule, Granted},
		`user.labels.nothing == "x"`:                        {NoRule, DeniedByRule},
		`!(user.labels.nothing == "x")`:                     {NoRule, DeniedByRule},
		`request.header("X-Long") == ""`:                    {NoRule, DeniedByRule},
		`request.header("X-Full") == ""`:                    {NoRule, Granted},
		`has(user.labels.nothing)`:                          {NoRule, Granted},
		`now.getHours("Europe/Nowhere") > 100`:              {NoRule, DeniedByRule},
		`user.labels.nothing == "x" && user.role == "boss"`: {NoRule, Granted},
	} {
		for i, effect := range []string{"allow", "deny"} {
			if got := decided(t, effect+" GET /v1/{rest...} when "+when, asking); got != want[i] {
				t.Errorf("%s when %s: got %v, want %v", effect, when, got, want[i])
			}
		}
	}
}

// TestParams: what the parameters of the path stand for, whichever way the path is
// read.
func TestParams(t *testing.T) {
	long := strings.Repeat("x", maxValueBytes)
	for _, row := range []struct {
		rule, path string
		want       Reason
	}{
		{`allow GET /v1/{id} when params.id == "7"`, "/v1/7", Granted},
		{`allow GET /v1/{id} when params.id == "7"`, "/v1/8", NoRule},
		{`allow GET /{a}/x/{b} when params.a == "1" && params.b == "2"`, "/1/x/2", Granted},
		{`allow GET /{a}/{b} when params == {"a": "1", "b": "2"}`, "/1/2", Granted},
		{`allow GET /v1/{rest...} when params.rest == ""`, "/v1/", Granted},
		{`allow GET /v1/{rest...} when params.rest == "a/b/"`, "/v1/a/b/", Granted},
		{`allow GET /v1/{rest...} when params.rest == "É"`, "/v1/É", Granted},
		{`allow GET /{id} when params.id == "` + long[:1900] + `"`, "/" + long[:1900], Granted},
		{`allow GET /{id} when params.id.size() == 2047`, "/" + long[1:], Granted},
		{`allow GET /{id} when params.id.size() == 2048`, "/" + long, Granted},
		{`allow GET /{id} when params.id.size() > 1`, "/" + long + "x", NoRule},
		{`deny GET /{id} when params.id == "x"`, "/" + long + "x", DeniedByRule},
		{`allow GET /{rest...} when params.rest.size() > 1`, "/x/" + long, NoRule},
		{`allow GET /{id}/{rest...} when params.id == "x"`, "/x/" + long + "x", NoRule}, // all of them are bounded
		{`allow GET /{id} when request.path == ""`, "/" + long, NoRule},
		{`deny GET /{id} when request.path == ""`, "/" + long, DeniedByRule},
		{`deny GET /{id} when request.path == ""`, "/" + long[1:], Granted},

		// A deny also covers what lacks the trailing slash or all of the rest.
		{`deny GET /v1/{id}/ when params.id == "7"`, "/v1/7", DeniedByRule},
		{`deny GET /v1/{id} when params.id == "7"`, "/V1/7/", DeniedByRule},
		{`deny GET /v1/{id}/{rest...} when params.rest == ""`, "/v1/7", DeniedByRule},
		{`deny GET /v1/{id} when params.id == "7"`, "/v1/8", Granted},

		// A slash that is data, and a semicolon: an allow takes them as they are …
		{`allow GET /v1/{id} when params.id == "7/8"`, "/v1/7\x008", Granted},
		{`allow GET /v1/{id} when params.id == "7;a=b"`, "/v1/7;a=b", Granted},
		{`allow GET /v1/{id} when params.id == "7"`, "/v1/7;a=b", NoRule},
		{`allow GET /v1/{id} when request.path == "/v1/7/8"`, "/v1/7\x008", Granted},
		// … and a deny as anybody might.
		{`deny GET /v1/{id} when params.id == "7/8"`, "/v1/7\x008", DeniedByRule},
		{`deny GET /v1/{id}/8 when params.id == "7"`, "/v1/7\x008", DeniedByRule},
		{`deny GET /v1/{id} when params.id == "7;a=b"`, "/v1/7;a=b", DeniedByRule},
		{`deny GET /v1/{id} when params.id == "7"`, "/v1/7;a=b", DeniedByRule},
		{`deny GET /v1/{rest...} when params.rest == "7/8"`, "/v1/7;a\x008", DeniedByRule},
		{`deny GET /v1/{id} when params.id == "8"`, "/v1/7;a=b", Granted},
	} {
		a := asking
		a.Path = row.path
		if got := decided(t, row.rule, a); got != row.want {
			t.Errorf("%.60s, %.60q: got %v, want %v", row.rule, row.path, got, row.want)
		}
	}
}

// costly are conditions that are accepted, and close to what is allowed.
var costly = map[string]string{
	"loops":    `[0,1,2,3,4,5,6,7,8,9].all(a, [0,1,2,3,4,5,6,7,8,9].all(b, [0,1,2,3,4,5,6].all(c, a + b + c < 100)))`,
	"regexp":   `request.path.matches("` + strings.Repeat(".*", 35) + `b")`,
	"states":   `user.name.matches("(.{0,300}){0,1}b")`,
	"case":     `request.path.lowerAscii().lowerAscii().lowerAscii() == ""`,
	"reverse":  `request.path.reverse().reverse().reverse() == ""`,
	"lists":    `[[1]]` + strings.Repeat(".map(x, x + x)", 9) + `.exists(x, [1,2,3,4,5,6].all(y, x == x))`,
	"maps":     `[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50].all(x, user.labels == user.labels)`,
	"labels":   `user.labels.exists(k, user.labels[k].contains(k + k) || user.labels[k].endsWith("x"))`,
	"teams":    `user.teams.exists(t, request.path.contains("/" + t + "/"))`,
	"zones":    `[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18].exists(t, now.getHours("Europe/Berlin") == 100)`,
	"no zone":  `[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18].all(t, now.getHours("Europe/Nowhere") == 100 || true)`,
	"split":    `request.path.split("").size() > 3000 || params.rest.split("").size() > 3000`,
	"replace":  `request.path.replace("a", "bb").size() == 1`,
	"header":   `"x" in request.header("X-Full").split("")`,
	"errors":   `user.teams.all(t, isIP(t) || isCIDR(t) || int(t) == 1 || double(t) == 1.0 || ip(t).family() == 4 || duration(t) == duration("1s") || true)`,
	"no IP":    `[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50].all(s, isIP(user.display_name) || true)`,
	"no bool":  `user.teams.all(t, bool(request.path) || true)`,
	"quote":    `user.teams.all(s, [1,2,3,4,5,6,7].all(t, strings.quote(user.display_name) == "" || true))`,
	"time":     `user.teams.all(s, [1,2,3,4,5,6].all(t, timestamp(user.display_name) == now || true))`,
	"contains": `[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16].exists(x, request.path.contains(user.name))`,
}

// TestCostlyConditions: they are accepted, so that the benchmark is about them.
func TestCostlyConditions(t *testing.T) {
	for name, text := range costly {
		if c, err := ParseWhen(text); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if c.cost < maxConditionCost/4 {
			t.Errorf("%s: costs %d of %d, want more", name, c.cost, maxConditionCost)
		}
	}
}

// heavy is as much as conditions are asked about.
func heavy() *evaluation {
	u := asker
	u.ID, u.Name, u.DisplayName, u.Owner, u.Alias = strings.Repeat("i", 64), strings.Repeat("𝓍", 255), strings.Repeat("𝓍", 255), strings.Repeat("𝓍", 255), strings.Repeat("a", 64)
	u.Labels, u.Teams = make(map[string]string), nil
	for i := range 64 {
		u.Labels[fmt.Sprintf("%061d%02d", 0, i)] = strings.Repeat("𝓍", 254) + "b"
	}
	for i := range 32 {
		u.Teams = append(u.Teams, fmt.Sprintf("%s%02d", strings.Repeat("t", 62), i))
	}
	a := asking
	a.Path = "/" + strings.Repeat("a", maxValueBytes-1)
	return &evaluation{user: &u, action: a, params: map[string]string{"id": a.Path, "rest": a.Path}}
}

// BenchmarkCondition evaluates cheap conditions, and the most expensive ones that
// are known to be accepted.
func BenchmarkCondition(b *testing.B) {
	texts := map[string]string{
		"cheap name":   `user.name == "billing-sync"`,
		"cheap label":  `user.labels.?env.orValue("") == "prod"`,
		"cheap params": `params.id in user.labels.people.split(",")`,
		"cheap IP":     `cidr("192.0.2.0/24").containsIP(request.remote_ip)`,
		"cheap header": `request.header("X-Env") == "prod"`,
	}
	for name, text := range costly {
		texts["costly "+name] = text
	}
	full := heavy()
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		b.Run(name, func(b *testing.B) {
			c, err := ParseWhen(texts[name])
			if err != nil {
				b.Fatal(err)
			}
			e := full
			if strings.HasPrefix(name, "cheap") {
				e = &evaluation{user: &asker, action: asking, params: pathParams}
			}
			b.ReportAllocs()
			for b.Loop() {
				c.isTrue(e)
			}
		})
	}
}

// checkConditionPromises tells what is wrong with the reading of one text.
func checkConditionPromises(text string) error {
	m, membershipErr := ParseMembership(text)
	c, err := ParseWhen(text)
	if err != nil {
		if membershipErr == nil {
			return fmt.Errorf("%q: a condition of membership, but not of a rule: %v", text, err)
		}
		return nil
	}
	if c.String() != text || c.cost == 0 || c.cost > maxConditionCost || !slices.IsSorted(c.Reads()) {
		return fmt.Errorf("%q: got the text %q, the cost %d and the fields %q", text, c, c.cost, c.Reads())
	}
	if m != nil && (!slices.Equal(m.Reads(), c.Reads()) || len(m.params) > 0) {
		return fmt.Errorf("%q: reads %q as a membership and %q in a rule", text, m.Reads(), c.Reads())
	}
	known := []string{"id", "name", "display_name", "alias", "owner", "role", "teams", "labels", "created_at"}
	for _, field := range c.Reads() {
		if !slices.Contains(known, field) && !strings.HasPrefix(field, "labels.") {
			return fmt.Errorf("%q: reads the field %q", text, field)
		}
	}
	for _, e := range []*evaluation{{user: &asker, action: asking, params: pathParams}, {user: new(User)}, heavy()} {
		if first, again := judged(c, e), judged(c, e); first != again || strings.Contains(first, "internal error") {
			return fmt.Errorf("%q: is %s, and then %s", text, first, again)
		}
		if m != nil {
			if got, want := judged(m, &evaluation{user: e.user}), judged(c, e); got != want {
				return fmt.Errorf("%q: is %s as a membership and %s in a rule", text, got, want)
			}
		}
	}
	// What a user has that the condition does not read makes no difference.
	other := heavy()
	bare := User{}
	for _, field := range c.Reads() {
		switch name, label, _ := strings.Cut(field, "."); {
		case name == "labels" && label == "":
			bare.Labels = other.user.Labels
		case name == "labels":
			if value, ok := other.user.Labels[label]; ok && bare.Labels == nil {
				bare.Labels = map[string]string{label: value}
			} else if ok {
				bare.Labels[label] = value
			}
		case name == "id":
			bare.ID = other.user.ID
		case name == "name":
			bare.Name = other.user.Name
		case name == "display_name":
			bare.DisplayName = other.user.DisplayName
		case name == "alias":
			bare.Alias = other.user.Alias
		case name == "owner":
			bare.Owner = other.user.Owner
		case name == "role":
			bare.Role = other.user.Role
		case name == "teams":
			bare.Teams = other.user.Teams
		case name == "created_at":
			bare.CreatedAt = other.user.CreatedAt
		}
	}
	want := judged(c, other)
	other.user = &bare
	if got := judged(c, other); got != want {
		return fmt.Errorf("%q reads %q, but is %s over a user with all fields and %s over one with these", text, c.Reads(), want, got)
	}
	return nil
}

// TestConditionPromises draws conditions and checks their promises.
func TestConditionPromises(t *testing.T) {
	for name, text := range costly {
		if err := checkConditionPromises(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		if err := checkConditionPromises(drawCondition(t, []string{"params.id", "params.rest", "user.owner", "user.labels[user.id]"})); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzCondition(f *testing.F) {
	for _, text := range []string{
		`user.labels.env == "prod" && !("ops" in user.teams)`, `params.id in user.labels.?people.orValue("").split(",")`,
		`cidr("192.0.2.0/24").containsIP(request.remote_ip)`, `now.getHours("Europe/Berlin") < 12`, `request.header("X-Env").matches("^p.*d$")`,
		`["a"].exists(user, .user.name == "x")`, `[[1]].map(x, [x, x]).exists(x, x == x)`, `now - user.created_at > duration("1h")`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if err := checkConditionPromises(text); err != nil {
			t.Fatal(err)
		}
	})
}
