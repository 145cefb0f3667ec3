package access

import (
	"strings"
	"testing"
)

// TestDoubts: a row has a valid rule and a part of its warning; "" means no warning.
func TestDoubts(t *testing.T) {
	for _, row := range []struct{ rule, want string }{
		// Methods.
		{"deny DELTE /v1/people/{id}", "DELTE: did you mean DELETE?"},
		{"deny GET,DELTE /v1/people/{id}", "DELTE: did you mean DELETE?"},
		{"deny GTE /v1", "GTE: did you mean GET?"},
		{"deny PSOT /v1", "PSOT: did you mean POST?"},
		{"deny DEL /v1", "DEL: did you mean DELETE?"},
		{"deny OPTION /v1", "OPTION: did you mean OPTIONS?"},
		{"deny PROPFND /v1", "PROPFND: did you mean PROPFIND?"},
		{"deny PRUGE /v1", "PRUGE: did you mean PURGE?"},
		{"deny ANY /v1", "ANY: did you mean *?"},
		{"deny ALL /v1", "ALL: did you mean *?"},
		{"deny GET,HEAD,POST,PUT,PATCH,DELETE,OPTIONS /v1", ""},
		{"deny PURGE,PROPFIND,PROPPATCH,M-SEARCH,LIST,POLL,BAN,FROBNICATE /v1", ""},
		{"deny * /v1", ""},

		// Paths.
		{"deny GET /v1/people/:id", ":id: write {id} for a parameter"},
		{"deny GET /v1/:group/x", ":group: write {group} for a parameter"},
		{"deny GET /v1/$id", "$id: write {id} for a parameter"},
		{"deny GET /v1/<id>", "<id>: write {id} for a parameter"},
		{"deny GET /v1/<int:id>/x", "<int:id>: write {id} for a parameter"},
		{"deny GET /v1/[id]", "[id]: write {id} for a parameter"},
		{"deny GET /v1/[...slug]", "[...slug]: write {slug...} for a parameter"},
		{"deny GET /v1/:id.json", ":id.json: only these very characters match"},
		{"deny GET /v1/pe*ple", "pe*ple: only these very characters match"},
		{"deny GET /v1/[0-9]+", "[0-9]+: only these very characters match"},
		{"deny GET /v1/.+", ".+: only these very characters match"},
		{"deny GET /^v1$", "^v1$: only these very characters match"},
		{"deny GET /v1/(a|b)", "(a|b): only these very characters match"},
		{"deny GET /v1/people:batch/{id}/@me/a+b/People(7)/~x/a=b,c/it's/!", ""},
		{"deny GET /v1/{rest...}", ""},

		// Conditions.
		{`deny GET /a when now.getHours("Europe/Berln") < 6`, "Europe/Berln: it is not a time zone such as Europe/Berlin or +01:00; an allow with this condition never applies, and a deny always"},
		{`allow GET /a when now.getDayOfWeek("+25") == 1`, "+25: it is not a time zone"},
		{`allow GET /a when user.created_at.getFullYear("Mars") > 2000`, "Mars: it is not a time zone"},
		{`allow GET /a when now.getHours("Europe/Berlin") < 6 && now.getHours("+01:00") > 1 && now.getHours("UTC") != 3`, ""},
		{`allow GET /a when now.getDayOfWeek() == 7`, "7: the weekday is from 0, Sunday, to 6, Saturday"},
		{`allow GET /a when now.getDayOfWeek("UTC") in [1, 7]`, "7: the weekday"},
		{`allow GET /a when 7 != now.getDayOfWeek()`, "7: the weekday"},
		{`allow GET /a when now.getHours() >= 8 && now.getHours() < 24 && now.getDayOfWeek() in [1, 2, 6] && now.getMonth() == 11`, ""},
		{`allow GET /a when user.role == "admn"`, "admn: a role is admin, manager or member"},
		{`allow GET /a when !(user.role in ["admin", "owner"])`, "owner: a role is"},
		{`allow GET /a when user.role != "member" || "Admin" == user.role`, "Admin: a role is"},
		{`allow GET /a when user.id == "billing-sync"`, "billing-sync: an id begins with service_"},
		{`allow * /a when request.method == "get"`, "get: a method is in upper case"},
		{`deny GET /a when request.method == "POST"`, "POST: the rule is not about this method"},
		{`deny GET,POST /a when request.method in ["POST", "HEAD"]`, ""},
		{`allow GET /a when request.host == "API.example.com"`, "API.example.com: a host is in lower case"},
		{`allow GET /a when request.host == "api.example.com:443"`, "api.example.com:443: a host is in lower case, without a port"},
		{`allow GET /{x} when request.path == "a"`, `a: a path begins with "/"`},
		{`allow GET /a when request.remote_ip == "10.0.0.0/8"`, "10.0.0.0/8: an address is like 192.0.2.7; cidr is for networks"},
		{`allow GET /a when request.remote_ip in ["10.0.0.1", "10.0.0.256"]`, "10.0.0.256: an address is like"},
		{`allow GET /a when cidr("10.0.0.0/8").containsIP(request.remote_ip) || request.remote_ip == "2001:db8::1" || request.remote_ip.startsWith("10.")`, ""},
		{`allow GET /a when request.path.matches("^/a[^b]+$") && user.name.matches("\\$x|^a(b|c$)")`, ""},
		{`allow GET /{id} when params.id in user.labels.people.split(",") && user.labels[?"env"].orValue("x") == "7" && "a" in user.teams`, ""},
	} {
		r, err := ParseRule(row.rule)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		got := strings.Join(Doubts(r), "\n")
		if row.want == "" && got != "" || !strings.HasPrefix(got, map[bool]string{true: "is probably a mistake: "}[got != ""]+row.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: got %q, want one warning with %q", row.rule, got, row.want)
		}
	}

	// A condition of a membership is a rule without the rest.
	if got := Doubts(Rule{When: `user.role == "admn"`}); len(got) != 1 || !strings.Contains(got[0], "admn: a role is") {
		t.Errorf("a membership: got %q", got)
	}
	if got := Doubts(Rule{When: `user.role == "admin"`}); got != nil {
		t.Errorf("a membership: got %q", got)
	}
}

// TestNeverRules: rules that are errors, and so need no warning.
func TestNeverRules(t *testing.T) {
	for _, rule := range []string{
		"deny get /v1", "deny Delete /v1", "deny GET https://api.example.com/v1", "deny GET /v1/*", "deny GET /v1/**", "deny GET /v1/{id:[0-9]+}",
		"deny GET /v1/${id}", "deny GET /v1/{{id}}", "deny GET /v1/%7Bid%7D", "deny GET /v1/people?x=1", `deny GET /v1/\d+`,
		`deny GET /v1 when request.header("X Env") == "a"`, `deny GET /v1 when request.header("X-Env:") == "a"`, `deny GET /v1 when user.labels.env == 7`,
		`deny GET /v1 when cidr("10.0.0.0/33").containsIP(request.remote_ip)`, `deny GET /v1 when cidr("10.0.0.1").containsIP(request.remote_ip)`,
		`deny GET /v1 when ip("10.0.0.0/8") == ip(request.remote_ip)`,
		`deny GET /v1 when user.name.matches("[a-")`, `deny GET /v1 when now > timestamp("2026-13-01T00:00:00Z")`,
	} {
		if r, err := ParseRule(rule); err == nil {
			t.Errorf("%s: accepted as %s", rule, r)
		}
	}
	if _, err := (Rule{Effect: Deny, Methods: []string{"GET"}, Path: "/v1/people "}).Check(); err == nil {
		t.Error("a space at the end of the path is accepted")
	}
}
