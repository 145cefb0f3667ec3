package caddymodule

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// tryLogins sends a credential for each row of 401 that is about the form of a credential.
func tryLogins(t *testing.T, p *patient) {
	name, user := p.user("allow * /{rest...}")
	id, secret := user.id, user.secret
	inList := map[string]string{
		"the token ends in a line break":                        basic(id, secret+"\n"),
		"the token has spaces or quotes around it":              basic(id, `"`+secret+`"`),
		"the token is URL-encoded":                              basic(id, "csu%5F"+secret[4:]),
		"the token is empty":                                    basic(id, ""),
		"the token has another length":                          basic(id, secret[:20]),
		"the token has a typo":                                  basic(id, testkit.Altered(secret)),
		"the token is the id of a token":                        basic(id, p.tokenID(name)),
		"the credential is not base64":                          "Basic " + id + ":" + secret,
		"the base64 has another form than RFC 7617":             basic(id, secret) + "=",
		"the secret is not that of a token of the service user": basic(id, access.NewSecret()),
	}
	inLog := map[string]string{
		"the token is in the place of the id":    basic(secret, id),
		"no colon is between id and token":       "Basic " + base64.StdEncoding.EncodeToString([]byte(secret)),
		"the scheme is neither Basic nor Bearer": secret,
		"Bearer is off on this site":             "Bearer " + secret,
		"unknown_id":                             basic("SERVICE-1", secret),
	}
	for _, list := range []map[string]string{inList, inLog} {
		for text, value := range list {
			got := p.get("/v1/x", credentials{}, "Authorization: "+value)
			if got.StatusCode != 401 || strings.Contains(got.body, text) {
				t.Errorf("%s: got %d %s", text, got.StatusCode, got.body)
			}
		}
	}
	if got := p.get("/v1/x", credentials{}); got.StatusCode != 401 {
		t.Errorf("without a credential: got %d", got.StatusCode)
	}
	shown, logged := p.page.split401(t)
	for text := range ends {
		delete(shown, text)
	}
	untried(t, shown, inList)
	untried(t, logged, inLog)
	patterns := []string{`outcome="no_credential"`}
	for _, texts := range []map[string]string{inList, inLog} {
		for text := range texts {
			patterns = append(patterns, text)
		}
	}
	out := p.section("401", []string{"billing-sync", name}, patterns...)
	list, _, _ := strings.Cut(out, `"msg":"authentication failed"`)
	for text := range inList {
		if !strings.Contains(list, text) {
			t.Errorf("%s is not in the list:\n%s", text, list)
		}
	}
	for text := range inLog {
		if strings.Contains(list, text) {
			t.Errorf("%s is in the list, too:\n%s", text, list)
		}
	}
}

// split401 returns the rows of 401 that the list of refusals shows, and those that only the log has.
func (p troubles) split401(t *testing.T) (shown, logged map[string][]string) {
	t.Helper()
	first, rest, ok := strings.Cut(p["401"], "```sh\n")
	if !ok {
		t.Fatal("401 has no command")
	}
	return rowsOf(first), rowsOf(rest)
}

// ends makes, for each row of 401 about a credential that was right once, a credential that has come
// to this end.
var ends = map[string]func(p *patient, name string, c credentials) credentials{
	"the token has expired": func(p *patient, name string, c credentials) credentials {
		return p.token(c, name, "--ttl", "1s")
	},
	"the token is not valid yet": func(p *patient, name string, c credentials) credentials {
		return p.token(c, name, "--not-before", "2090-01-01T00:00:00Z")
	},
	"the token is revoked": func(p *patient, name string, c credentials) credentials {
		p.mustCLI("token", "revoke", name, p.tokenID(name), "--yes")
		return c
	},
	"the address is not among the allowed_ips of the token": func(p *patient, name string, c credentials) credentials {
		return p.token(c, name, "--allowed-ip", "192.0.2.1")
	},
	"the address is not among the allowed_ips of the service user": func(p *patient, name string, c credentials) credentials {
		p.mustCLI("update", name, "--add-allowed-ip", "192.0.2.1")
		return c
	},
	"the service user is deactivated": func(p *patient, name string, c credentials) credentials {
		p.mustCLI("deactivate", name)
		return c
	},
	"the service user has expired": func(p *patient, name string, c credentials) credentials {
		p.mustCLI("update", name, "--expires-at", time.Now().Add(3*time.Second).UTC().Format(time.RFC3339))
		return c
	},
}

// token issues another token.
func (p *patient) token(c credentials, name string, args ...string) credentials {
	p.t.Helper()
	if c.secret = printedToken(p.mustCLI(append([]string{"token", "create", name}, args...)...)); c.secret == "" {
		p.t.Fatal("no token was printed")
	}
	return c
}

// printedToken returns the token in an output, or "".
func printedToken(out string) string { return typedSecret.FindString(out) }

// tryEnded brings a credential to each end, looks for it in the list, and mends it by the command of
// the row.
func tryEnded(t *testing.T, p *patient) {
	shown, _ := p.page.split401(t)
	type ended struct {
		credentials
		name string
	}
	tried := make(map[string]ended)
	for text, end := range ends {
		name, user := p.user("allow * /{rest...}")
		tried[text] = ended{end(p, name, user), name}
	}
	for text, it := range tried {
		if shown[text] == nil {
			t.Errorf("the page has no row %q", text)
			continue
		}
		for deadline := time.Now().Add(patience); p.get("/v1/x", it.credentials).StatusCode != 401; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the credential does not end", text)
			}
		}
		out := p.follow("caddy service-user explain billing-sync --refusals", "billing-sync", it.name)
		if !strings.Contains(out, text) {
			t.Errorf("%s is not in the list:\n%s", text, out)
		}
		cell := shown[text][len(shown[text])-1]
		mend := codeSpan.FindAllStringSubmatch(cell, -1)
		if mend == nil {
			t.Errorf("%s: the row has no command", text)
			continue
		}
		out = p.follow(mend[len(mend)-1][1], "billing-sync", it.name, "token_2x…", p.tokenID(it.name), "192.0.2.7", "127.0.0.1")
		if secret := printedToken(out); secret != "" {
			it.secret = secret
		}
		if got := p.get("/v1/x", it.credentials); got.StatusCode != 200 {
			t.Errorf("%s: after %s: got %d, want 200: %s", text, mend[len(mend)-1][1], got.StatusCode, out)
		}
	}
}

// tryRules makes a service user and a request for each row of 403.
func tryRules(t *testing.T, p *patient) {
	narrowed := func(name string) { // its token has no group that allows anything
		p.mustCLI("group", "create", name+"-other", "--rule", "allow GET /other")
	}
	const x, api = "GET /v1/x", "api.example.com"
	tried := map[string]struct {
		rules   []string
		request string
		change  func(name string)
	}{
		"the method … is not among":                          {[]string{"allow GET /v1/x"}, "POST /v1/x", nil},
		"the path is longer than":                            {[]string{"allow GET /v1/people/{id}"}, "GET /v1/people/7/", nil},
		"the path is shorter than":                           {[]string{"allow GET /v1/{rest...}"}, "GET /v1", nil},
		"the path has … where … has":                         {[]string{"allow GET /v1/People"}, "GET /v1/people", nil},
		"the path has nothing where … has":                   {[]string{"allow GET /v1/people/{id}"}, "GET /v1/people/", nil},
		"the host … is not":                                  {[]string{"allow GET www.example.com/v1/x"}, x, nil},
		"its condition does not hold":                        {[]string{`allow GET /v1/x when user.labels.?env.orValue("dev") == "prod"`}, x, nil},
		"its condition cannot be evaluated":                  {[]string{`allow GET /v1/x when user.labels.env == "prod"`}, x, nil},
		"the token is restricted to other permission groups": {[]string{"allow GET /v1/x"}, x, narrowed},
		"the permission group only observes": {[]string{"allow GET /v1/x"}, x, func(name string) {
			p.mustCLI("group", "update", name, "--mode", "observe")
		}},
		"a deny wins": {[]string{"allow * /{rest...}", "deny GET /v1/x"}, x, nil},
	}
	rows := p.page.rows("403")
	untried(t, rows, tried)
	for text, tt := range tried {
		name, user := p.user(tt.rules...)
		if tt.change != nil {
			tt.change(name)
		}
		if strings.Contains(text, "restricted") {
			user = p.token(user, name, "--group", name+"-other")
		}
		ask := func() (int, string) {
			return p.raw(tt.request + " HTTP/1.1\r\nHost: " + api + "\r\nAuthorization: " + basic(user.id, user.secret))
		}
		status, body := ask()
		decision := identifier.FindString(body)
		if status != 403 || decision == "" {
			t.Errorf("%s: got %d %s", text, status, body)
			continue
		}
		out := p.follow("caddy service-user explain DECISION", "DECISION", decision)
		if _, table, _ := strings.Cut(out, "APPLIES"); !quotes(table, text) {
			t.Errorf("%s is not in the table:\n%s", text, out)
		}
		cells := rows[text]
		mend := strings.Trim(cells[len(cells)-1], "`")
		if !strings.HasPrefix(mend, "caddy ") {
			continue
		}
		p.section("403", []string{exampleDecision, decision, "billing-sync", name}, "^decided +20", "^"+name+" ", "^request +GET api.example.com/v1/people/7$")
		out = p.follow(mend, "billing-sync", name, "people-readers", name, "token_2x…", p.tokenID(name))
		if status, body := ask(); status != 200 {
			t.Errorf("%s: after %s: got %d %s: %s", text, mend, status, body, out)
		}
	}
}
