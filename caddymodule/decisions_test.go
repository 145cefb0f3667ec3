package caddymodule

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

const decisionsCaddyfile = `
{
	debug
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
		decisions 10
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$OBSERVE_PORT} {
	bind 127.0.0.1
	service_users {
		mode observe
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$ERRORS_PORT} {
	bind 127.0.0.1
	service_users {
		errors caddy
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	handle_errors {
		respond "{http.service_users.decision_id}" 403
	}
}

http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	@somebody header X-Test-Login *
	vars @somebody http.auth.user.id {header.X-Test-Login}
	service_users_admin {
		admins alice
		managers carol team=finance group=readers
	}
}
`

func startDecisions(t *testing.T, caddyfile string) (*server, *recorder) {
	t.Helper()
	s := newServer(t)
	s.moreports("OBSERVE_PORT", "ERRORS_PORT")
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, caddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}", "--rule", "deny GET /v1/secret")
	return s, up
}

// refusedRequest sends a request that must be refused and returns its decision id.
func (s *server) refusedRequest(method, port, path string, who credentials, header ...string) string {
	s.t.Helper()
	got := s.do(method, port, path, who, "", header...)
	id := got.Header.Get(DecisionHeader)
	if got.StatusCode != 403 || !strings.HasPrefix(id, "decision_") || len(id) != len("decision_")+27 {
		s.t.Fatalf("%s %s: got %d and the decision %q, want a refusal: %s", method, path, got.StatusCode, id, got.body)
	}
	return id
}

// recalled asks the local door about a decision.
func (s *server) recalled(id string) (e admin.Explanation, status int) {
	s.t.Helper()
	status = s.local("POST", "/service_users/explain", `{"decision_id":"`+id+`"}`, &e).StatusCode
	return e, status
}

// TestDecisions asks about refusals by their ids: what was decided stays, and
// what would be decided today is told beside it.
func TestDecisions(t *testing.T) {
	t.Parallel()
	s, _ := startDecisions(t, decisionsCaddyfile)
	user, none := s.create("reader", "--group", "readers"), s.create("none")
	before := time.Now().Add(-time.Second)
	noRule := s.refusedRequest("GET", "API_PORT", "/v1/people/7?token=x", none)
	denied := s.refusedRequest("HEAD", "API_PORT", "/v1/secret", user)
	encoded := s.refusedRequest("DELETE", "OBSERVE_PORT", "/v1/%73ecret", s.createDenied("everything-denied"))
	narrowed := s.narrowed("narrowed")
	byToken := s.refusedRequest("GET", "API_PORT", "/v1/people/7", narrowed)
	byErrorPage := s.do("GET", "ERRORS_PORT", "/v2/x", none, "")
	if id := byErrorPage.Header.Get(DecisionHeader); id == "" || byErrorPage.body != id {
		t.Errorf("the error page: got %q, the header %q", byErrorPage.body, id)
	}

	var revisions []int64
	for _, row := range []struct {
		id                   string
		user                 credentials
		method, path, reason string
		rule                 string
	}{
		{noRule, none, "GET", "/v1/people/7", "no_rule", ""},
		{denied, user, "HEAD", "/v1/secret", "denied_by_rule", "deny GET /v1/secret"},
		{encoded, credentials{}, "DELETE", "/v1/secret", "denied_by_rule", "deny * /{rest...}"},
		{byToken, narrowed, "GET", "/v1/people/7", "no_rule", ""},
		{byErrorPage.body, none, "GET", "/v2/x", "no_rule", ""},
	} {
		e, status := s.recalled(row.id)
		revisions = append(revisions, e.Revision)
		if status != 200 || e.DecisionID != row.id || e.Decision != "deny" || e.Reason != row.reason || e.Method != row.method || e.Path != row.path || e.Host != "localhost" || e.Now != "" {
			t.Errorf("%s %s: got %d %+v", row.method, row.path, status, e)
			continue
		}
		if row.user.id != "" && e.ServiceUserID != row.user.id {
			t.Errorf("%s %s: got the service user %s, want %s", row.method, row.path, e.ServiceUserID, row.user.id)
		}
		if e.DecidedAt == nil || e.DecidedAt.Before(before) || e.DecidedAt.After(time.Now()) || e.Revision == 0 {
			t.Errorf("%s %s: decided at %v by revision %d", row.method, row.path, e.DecidedAt, e.Revision)
		}
		rule := ""
		if e.Rule != nil {
			rule = e.Rule.Text
		}
		if rule != row.rule || (rule != "") != (e.PermissionGroup != nil) {
			t.Errorf("%s %s: got the rule %q of %v, want %q", row.method, row.path, rule, e.PermissionGroup, row.rule)
		}
	}

	if r := revisions; r[0] != r[1] || r[1] >= r[2] || r[2] >= r[3] || r[3] != r[4] { // what was changed in between
		t.Errorf("decided by the revisions %v", r)
	}

	// What changes afterwards.
	first, _ := s.recalled(noRule)
	s.mustCLI("group", "add", "readers", "none")
	if e, _ := s.recalled(noRule); e.Decision != "deny" || e.Reason != "no_rule" || e.Now != "allow" || e.Revision != first.Revision || len(e.Considered) != 2 {
		t.Errorf("after the grant: got %+v, want the old verdict and now: allow", e)
	}
	if e, _ := s.recalled(byToken); e.Decision != "deny" || e.Now != "" {
		t.Errorf("a token that may do less than its service user: got %s, now %q", e.Decision, e.Now)
	}
	s.mustCLI("deactivate", "none")
	if e, _ := s.recalled(noRule); e.Decision != "deny" || e.Now != "" {
		t.Errorf("deactivated: got %s, now %q", e.Decision, e.Now)
	}
	s.mustCLI("group", "delete", "readers", "--yes")
	if e, _ := s.recalled(denied); e.Rule == nil || e.Rule.Text != "deny GET /v1/secret" || e.PermissionGroup == nil || e.Now != "" {
		t.Errorf("without the group: got %+v, want the rule that decided", e)
	}
	s.mustCLI("delete", "reader", "--yes")
	if e, status := s.recalled(denied); status != 200 || e.ServiceUserID != user.id || e.Reason != "denied_by_rule" {
		t.Errorf("without the service user: got %d %+v", status, e)
	}

	// A reload keeps them, as long as as many are remembered.
	s.refusedRequest("GET", "API_PORT", "/v3", s.create("another"))
	if got := s.do("GET", "OBSERVE_PORT", "/v4", s.create("observed"), ""); got.StatusCode != 200 {
		t.Fatalf("observed: got %d", got.StatusCode)
	}
	if out, ok := s.reload(strings.Replace(decisionsCaddyfile, "mode observe", "mode observe\n\t\trealm another", 1)); !ok {
		t.Fatal(out)
	}
	if e, status := s.recalled(denied); status != 200 || e.ServiceUserID != user.id {
		t.Errorf("after a reload: got %d %+v", status, e)
	}
	if got := s.wouldDeny(access.Deny); len(got) != 1 || !strings.HasPrefix(got[0], "1 deny GET /v4 ") {
		t.Errorf("after a reload: counted %q", got)
	}
}

// narrowed makes a service user that may read, and a token of it that may not.
func (s *server) narrowed(name string) credentials {
	s.t.Helper()
	c := s.create(name, "--group", "readers")
	var g admin.Group
	s.local("POST", "/permission_groups", `{"name":"`+name+`"}`, &g)
	s.mustCLI("group", "add", name, name)
	var token admin.Token
	if got := s.local("POST", "/service_users/"+c.id+"/tokens", `{"permission_groups":["`+g.ID+`"]}`, &token); got.StatusCode != 201 {
		s.t.Fatalf("a narrowed token: %d %s", got.StatusCode, got.body)
	}
	c.secret = token.Secret
	return c
}

// createDenied makes a service user to which everything is denied.
func (s *server) createDenied(name string) credentials {
	s.t.Helper()
	s.mustCLI("group", "create", name, "--rule", "deny * /{rest...}")
	return s.create(name, "--group", name)
}

// TestDecisionsAreKept: a refusal can be explained by its id in other processes, after a crash and after a
// restart.
func TestDecisionsAreKept(t *testing.T) {
	t.Parallel()
	s, _ := startDecisions(t, decisionsCaddyfile)
	none := s.create("none")
	file := filepath.Join(s.dir, "service_users.db")
	id := s.refusedRequest("GET", "API_PORT", "/v1/a", none)
	inStore := func() (any, bool) {
		out, errs, code := s.cli("explain", id, "--store", file)
		return out + errs, code == 0
	}
	until(t, inStore)
	if out := s.mustCLI("explain", "none", "--refusals", "--store", file); !strings.Contains(out, id) {
		t.Errorf("the list: got %s, want %s", out, id)
	}
	_ = s.cmd.Process.Kill()
	<-s.exited
	s.start(filepath.Join(s.dir, "Caddyfile"))
	if e, status := s.recalled(id); status != 200 || e.Path != "/v1/a" || e.ServiceUserID != none.id || e.Reason != "no_rule" {
		t.Errorf("after a crash: got %d %+v", status, e)
	}
	last := s.refusedRequest("GET", "API_PORT", "/v1/b", none)
	s.stop()
	s.start(filepath.Join(s.dir, "Caddyfile"))
	for path, id := range map[string]string{"/v1/a": id, "/v1/b": last} {
		if out := s.mustCLI("explain", id); !strings.Contains(out, "GET localhost"+path) {
			t.Errorf("after a restart: got %s, want %s", out, path)
		}
	}
}

// TestDecisionsAreBounded: as many are remembered as the operator says.
func TestDecisionsAreBounded(t *testing.T) {
	t.Parallel()
	s, _ := startDecisions(t, strings.Replace(decisionsCaddyfile, "decisions 10", "decisions 3", 1))
	none := s.create("none")
	var ids []string
	for i := range 8 {
		ids = append(ids, s.refusedRequest("GET", "API_PORT", fmt.Sprintf("/v1/%d", i), none))
		for j, id := range ids {
			e, status := s.recalled(id)
			if j > i-3 && status != 200 || status == 200 && e.Path != fmt.Sprintf("/v1/%d", j) {
				t.Errorf("after %d refusals, number %d: got %d %s", i+1, j, status, e.Path)
			}
		}
	}
	until(t, func() (any, bool) {
		out, errs, code := s.cli("explain", ids[7], "--store", filepath.Join(s.dir, "service_users.db"))
		return out + errs, code == 0
	})
	for j, id := range ids {
		if _, status := s.recalled(id); (status == 200) != (j > 4) {
			t.Errorf("number %d of 8, of which 3 are kept: got %d", j, status)
		}
	}
	s, _ = startDecisions(t, strings.Replace(decisionsCaddyfile, "decisions 10", "decisions off", 1))
	none = s.create("none")
	if _, status := s.recalled(s.refusedRequest("GET", "API_PORT", "/v1/x", none)); status != 404 {
		t.Errorf("switched off: got %d, want 404", status)
	}
	s.do("GET", "OBSERVE_PORT", "/v1/x", none, "")
	if got := s.wouldDeny(access.Deny); len(got) != 1 {
		t.Errorf("switched off: counted %q, want one row", got)
	}
}

// TestWhoMayAsk: a decision may be about anybody, so only admins are told.
func TestWhoMayAsk(t *testing.T) {
	t.Parallel()
	s, _ := startDecisions(t, strings.Replace(decisionsCaddyfile, "decisions 10", "", 1)) // ten thousand
	chief, manager := s.create("chief", "--role", "admin"), s.create("manager", "--role", "manager", "--team", "finance", "--group", "readers")
	member, off := s.create("member", "--team", "finance"), s.create("off", "--role", "admin")
	s.mustCLI("deactivate", "off")
	known, unknown := s.refusedRequest("GET", "API_PORT", "/v2/x", member), "decision_000000000000000000000000000"
	if got := s.do("GET", "OBSERVE_PORT", "/v2/x", chief, ""); got.StatusCode != 200 {
		t.Fatalf("observed: got %d", got.StatusCode)
	}
	s.do("GET", "OBSERVE_PORT", "/v2/x", member, "")

	bearer := func(c credentials) string { return "Authorization: Bearer " + c.secret }
	for _, row := range []struct {
		name, header   string
		known, unknown int
		counts         int // rows of would_deny, -1 is none of its business
		forget         int
	}{
		{"nobody", "X: y", 401, 401, -1, 401},
		{"a member, about itself", bearer(member), 403, 403, -1, 403},
		{"a manager of the member", bearer(manager), 403, 403, 1, 403},
		{"a person who manages", "X-Test-Login: carol", 403, 403, 1, 403},
		{"a person nobody named", "X-Test-Login: mallory", 403, 403, -1, 403},
		{"an admin who is switched off", bearer(off), 401, 401, -1, 401},
		{"an admin", bearer(chief), 200, 404, 2, 204},
		{"a person", "X-Test-Login: alice", 200, 404, 0, 204}, // the admin has forgotten them
	} {
		ask := func(method, path, body string) *response {
			t.Helper()
			return s.do(method, "ADMIN_PORT", path, credentials{}, body, row.header, "Content-Type: application/json")
		}
		yes, no := ask("POST", "/service_users/explain", `{"decision_id":"`+known+`"}`), ask("POST", "/service_users/explain", `{"decision_id":"`+unknown+`"}`)
		if yes.StatusCode != row.known || no.StatusCode != row.unknown {
			t.Errorf("%s: got %d and %d, want %d and %d", row.name, yes.StatusCode, no.StatusCode, row.known, row.unknown)
		}
		if row.known != 200 && (strings.Contains(yes.body, "/v2/x") || strings.Contains(yes.body, member.id) || len(yes.body) != len(no.body)) {
			t.Errorf("%s: what is known can be told from what is not: %s %s", row.name, yes.body, no.body)
		}
		list := ask("GET", "/service_users/would_deny", "")
		if counts := strings.Count(list.body, `"count":`); list.StatusCode == 200 && counts != row.counts || (list.StatusCode == 200) != (row.counts >= 0) {
			t.Errorf("%s: got the counts %d %s, want %d rows", row.name, list.StatusCode, list.body, row.counts)
		}
		if row.counts == 1 && strings.Contains(list.body, chief.id) {
			t.Errorf("%s: sees somebody of no team of its own: %s", row.name, list.body)
		}
		if got := ask("DELETE", "/service_users/would_deny", ""); got.StatusCode != row.forget {
			t.Errorf("%s: forgetting: got %d, want %d", row.name, got.StatusCode, row.forget)
		}
	}
}

// TestSecretInPath: a token that a client has put into its path is kept nowhere,
// whole or not.
func TestSecretInPath(t *testing.T) {
	t.Parallel()
	s, up := startDecisions(t, decisionsCaddyfile)
	s.mustCLI("group", "create", "draft", "--mode", "observe", "--rule", "deny GET /v1/{rest...}")
	user, spilled := s.create("reader", "--group", "readers", "--group", "draft"), s.create("spilled").secret
	var said strings.Builder
	requests := 0
	for _, form := range []string{
		spilled, spilled[:len(spilled)-1], spilled[:30], spilled + "x", "x" + spilled, spilled + "." + spilled, "%63su%5F" + spilled[4:],
		"a/" + spilled + "/b", "a=" + spilled, "x?token=" + spilled, strings.Repeat("a", 1010) + spilled,
	} {
		requests++
		id := s.refusedRequest("GET", "API_PORT", "/v2/"+form, user)
		for _, path := range []string{"/v2/" + form, "/v1/" + form} { // one that no rule allows, and one that a group would deny
			if got := s.do("GET", "OBSERVE_PORT", path, user, ""); got.StatusCode != 200 {
				t.Errorf("%s: got %d, want 200", path, got.StatusCode)
			}
		}
		e := s.local("POST", "/service_users/explain", `{"decision_id":"`+id+`"}`, nil)
		if e.StatusCode != 200 || !strings.Contains(form, "x?") && !strings.Contains(e.body, "csu_…") {
			t.Errorf("%s: the explanation does not tell that a token stood there: %d %s", form, e.StatusCode, e.body)
		}
		said.WriteString(e.body)
		said.WriteString(s.do("POST", "ADMIN_PORT", "/service_users/explain", credentials{}, `{"decision_id":"`+id+`"}`, "X-Test-Login: alice", "Content-Type: application/json").body)
		if requests == 1 {
			said.WriteString(s.mustCLI("explain", id))
		}
	}
	for _, effect := range []string{"deny", "allow"} {
		said.WriteString(s.local("GET", "/service_users/would_deny?would="+effect, "", nil).body)
	}
	said.WriteString(s.mustCLI("would-deny"))
	said.WriteString(s.do("GET", "CADDY_PORT", "/metrics", credentials{}, "").body)
	if got := len(up.requests()); got != 2*requests {
		t.Errorf("%d requests upstream, want %d", got, 2*requests)
	}
	lines := 0
	for _, message := range []string{"not allowed", "enforcing would decide otherwise"} {
		for _, entry := range s.ourLog(message) {
			lines++
			said.WriteString(fmt.Sprint(entry, "\n"))
		}
	}
	if lines < 3*requests {
		t.Errorf("%d lines of the log, want %d", lines, 3*requests)
	}
	s.stop()
	store := string(must(os.ReadFile(filepath.Join(s.dir, "service_users.db"))))
	if !strings.Contains(store, `"csu_…`) && !strings.Contains(store, `/csu_…`) {
		t.Error("the store has no refusal with a mask; the test shows little")
	}
	said.WriteString(store)
	for i := 4; i+16 <= len(spilled); i++ { // a part of it would be a help too
		if part := spilled[i : i+16]; strings.Contains(said.String(), part) {
			at := strings.Index(said.String(), part)
			t.Fatalf("%s is kept: %q", part, said.String()[max(0, at-200):at+40])
		}
	}
}

// TestDecisionsTogether refuses, lets pass, asks, lists and forgets at the same
// time: every id explains its own request.
func TestDecisionsTogether(t *testing.T) {
	t.Parallel()
	s, _ := startDecisions(t, strings.Replace(decisionsCaddyfile, "decisions 10", "decisions 1000", 1))
	var users []credentials
	for i := range 4 {
		users = append(users, s.create(fmt.Sprintf("user-%d", i)))
	}
	const rounds = 25
	var clients sync.WaitGroup
	for i, user := range users {
		clients.Go(func() {
			for n := range rounds {
				path := fmt.Sprintf("/u%d/%d", i, n)
				id := s.do("GET", "API_PORT", path, user, "").Header.Get(DecisionHeader)
				if got := s.do("GET", "OBSERVE_PORT", path, user, "").StatusCode; got != http.StatusOK {
					t.Errorf("%s: got %d", path, got)
				}
				if e, status := s.recalled(id); status != 200 || e.Path != path || e.ServiceUserID != user.id || e.DecisionID != id {
					t.Errorf("%s, %s: got %d, %s by %s", path, id, status, e.Path, e.ServiceUserID)
				}
				if n%10 == 5 {
					s.local("GET", "/service_users/would_deny", "", new(admin.WouldDenyList))
					s.local("PATCH", "/service_users/"+user.id, fmt.Sprintf(`{"owner":"round %d"}`, n), nil)
				}
			}
		})
	}
	clients.Wait()
	var answer admin.WouldDenyList
	s.local("GET", "/service_users/would_deny", "", &answer)
	counts := make(map[string]int64)
	for _, w := range answer.WouldDeny {
		counts[w.ServiceUserID] += w.Count
	}
	for i, user := range users {
		if counts[user.id] != rounds {
			t.Errorf("user %d: counted %d of %d requests", i, counts[user.id], rounds)
		}
	}
}
