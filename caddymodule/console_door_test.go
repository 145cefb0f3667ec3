package caddymodule

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

const consoleDoorsCaddyfile = `
{
	debug
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	log
	@somebody header X-Test-Login *
	vars @somebody http.auth.user.id {header.X-Test-Login}
	service_users_admin {
		admins alice
		managers erin team=finance
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	@somebody header X-Test-Login *
	vars @somebody http.auth.user.id {header.X-Test-Login}
	service_users_admin {
		admins alice
		console off
	}
}
`

const fromBrowser = "Accept: text/html,application/xhtml+xml,*/*;q=0.8"

// TestConsoleDoor checks who gets pages at a door, and that programs get the same answers as at a
// door without a console.
func TestConsoleDoor(t *testing.T) {
	t.Parallel()
	s := startServer(t, consoleDoorsCaddyfile)
	admin := s.create("ops", "--role", "admin")
	const list, alice, page = "/console/service_users", "X-Test-Login: alice", "text/html; charset=utf-8"
	bearer := "Authorization: Bearer " + admin.secret
	group := strings.Fields(s.mustCLI("group", "create", "readers", "--rule", "allow GET /{rest...}"))[1]
	erin, sameSite := "X-Test-Login: erin", "Sec-Fetch-Site: same-origin"
	for _, tt := range []struct {
		name, method, path string
		header             []string
		want               int
		location, kind     string
	}{
		{"a browser at the root", "GET", "/", []string{alice, fromBrowser}, 303, list, page},
		{"a browser below the root", "GET", "/console/", []string{alice, fromBrowser}, 303, list, page},
		{"without the slash", "GET", "/console", []string{alice}, 303, list, page},
		{"the list", "GET", list, []string{alice, fromBrowser}, 200, "", page},
		{"no such page", "GET", "/console/nothing", []string{alice}, 404, "", page},
		{"a stranger", "GET", list, []string{fromBrowser}, 401, "", page},
		{"another person", "GET", list, []string{"X-Test-Login: mallory"}, 403, "", page},
		{"a service user", "GET", list, []string{bearer, fromBrowser}, 403, "", page},
		{"a form", "POST", list + "/new", []string{alice, sameSite}, 400, "", page},
		{"a form of another site", "POST", list + "/new", []string{alice, "Sec-Fetch-Site: cross-site"}, 403, "", page},
		{"a form of another origin, in an old browser", "POST", list + "/new", []string{alice, "Origin: https://example.net"}, 403, "", page},
		{"a link with the method of a form", "GET", list + "/bulk?do=delete", []string{alice}, 404, "", page},
		{"a method that no page has", "DELETE", list, []string{alice}, 404, "", page},
		{"a method in the query", "GET", list + "?_method=POST", []string{alice}, 200, "", page},
		{"a manager", "GET", list, []string{erin}, 200, "", page},
		{"a form for admins, sent by a manager", "POST", "/console/permission_groups/" + group + "/edit?do=save", []string{erin, sameSite}, 404, "", page},
		{"a service user outside of the team of a manager", "POST", list + "/" + admin.id + "/deactivate", []string{erin, sameSite}, 404, "", page},
		{"the same, by its page", "GET", list + "/" + admin.id, []string{erin}, 404, "", page},
		{"the trail, for a manager", "GET", "/console/audit", []string{erin}, 403, "", page},
		{"REST, by a browser", "GET", "/service_users", []string{alice, fromBrowser}, 200, "", "application/json"},
	} {
		got := s.do(tt.method, "ADMIN_PORT", tt.path, credentials{}, "", append(tt.header, "Content-Type: application/x-www-form-urlencoded")...)
		if got.StatusCode != tt.want || got.Header.Get("Location") != tt.location || got.Header.Get("Content-Type") != tt.kind {
			t.Errorf("%s: got %d to %q as %q, want %d to %q as %q\n%s", tt.name, got.StatusCode, got.Header.Get("Location"),
				got.Header.Get("Content-Type"), tt.want, tt.location, tt.kind, got.body)
		}
		for _, challenge := range got.Header["Www-Authenticate"] {
			if strings.HasPrefix(challenge, "Basic") {
				t.Errorf("%s: a browser would ask for the login of a service user: %s", tt.name, challenge)
			}
		}
		if policy := got.Header.Get("Content-Security-Policy"); got.Header.Get("Location") == "" && tt.kind == page &&
			!(strings.HasPrefix(policy, "default-src 'none'; ") && strings.HasSuffix(policy, "; frame-ancestors 'none'") &&
				!strings.Contains(policy, "unsafe") && got.Header.Get("Cache-Control") == "no-store") {
			t.Errorf("%s: got the policy %q and %q for caches", tt.name, policy, got.Header["Cache-Control"])
		}
	}

	stranger := s.do("GET", "ADMIN_PORT", list, credentials{}, "", fromBrowser)
	if !strings.Contains(stranger.body, "log in as a person") || strings.Contains(stranger.body, "with the credentials") {
		t.Errorf("a stranger at the console: got %s, want the way to log in as a person", stranger.body)
	}

	// At the door without a console, its paths are paths of REST that do not exist. At the other one,
	// programs get the same.
	operation := regexp.MustCompile(`op_\w+`)
	asked := func(port, path string, header ...string) string {
		got := s.do("GET", port, path, credentials{}, "", header...)
		if kind := got.Header.Get("Content-Type"); !strings.HasSuffix(kind, "json") {
			t.Errorf("%s at %s: got %q, want JSON\n%s", path, port, kind, got.body)
		}
		got.Header.Del("Date")
		return got.Status + operation.ReplaceAllString(got.body, "op_…") + strings.Join(got.Header["Www-Authenticate"], "")
	}
	missing := asked("API_PORT", "/nothing", alice)
	if !strings.HasPrefix(missing, "404") {
		t.Fatalf("got %s, want 404", missing)
	}
	for _, path := range []string{"/", "/console", "/console/", list} {
		for _, accept := range []string{fromBrowser, "Accept: */*"} {
			if got := asked("API_PORT", path, alice, accept); got != missing {
				t.Errorf("%s with the console off: got %s, want %s", path, got, missing)
			}
		}
	}
	for _, header := range [][]string{{alice}, {alice, "Accept: application/json"}, {}, {bearer, "Accept: */*"}} {
		if got, want := asked("ADMIN_PORT", "/", header...), asked("API_PORT", "/", header...); got != want {
			t.Errorf("a program at the root with %q: got %s, want %s", header, got, want)
		}
	}
	if got := asked("API_PORT", list, fromBrowser); !strings.HasPrefix(got, "401") || !strings.Contains(got, "Basic realm") {
		t.Errorf("a stranger with the console off: got %s, want 401 with the challenges of REST", got)
	}
}

// TestConsoleSecrets checks that a secret is only in the answer to the form that issues it: not in
// another page, a header, a title, the answer to the repeated form, or a log.
func TestConsoleSecrets(t *testing.T) {
	t.Parallel()
	s := startServer(t, consoleDoorsCaddyfile)
	secret, title := regexp.MustCompile(`csu_\w+`), regexp.MustCompile(`<title>.*</title>`)
	ask := func(method, path string, form url.Values) *response {
		return s.do(method, "ADMIN_PORT", "/console/"+path, credentials{}, form.Encode(), "X-Test-Login: alice",
			"Content-Type: application/x-www-form-urlencoded", "Sec-Fetch-Site: same-origin")
	}
	var secrets []string
	issue := func(path string, form url.Values) {
		t.Helper()
		form.Set("key", "key of "+path)
		got := ask("POST", path, form)
		found := secret.FindString(got.body)
		if got.StatusCode != 200 || found == "" || got.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%s: got %d without a secret, or for a cache: %s", path, got.StatusCode, got.body)
		}
		if strings.Contains(fmt.Sprint(got.Header)+title.FindString(got.body), found) {
			t.Errorf("%s: the header or the title has the secret", path)
		}
		secrets = append(secrets, found)
		if got := ask("POST", path, form); secret.MatchString(got.body) {
			t.Errorf("%s: the repeated form shows a secret: %d %s", path, got.StatusCode, got.body)
		}
	}
	issue("service_users/new", url.Values{"name": {"by-form"}, "role": {"member"}})
	user := strings.Fields(s.mustCLI("show", "by-form"))[1]
	token := func() string {
		return regexp.MustCompile(`token_\w+`).FindString(s.mustCLI("token", "list", "by-form"))
	}
	issue("service_users/"+user+"/tokens/new", url.Values{"description": {"ci"}})
	issue("service_users/"+user+"/tokens/"+token()+"/refresh", url.Values{"grace": {"1h"}})
	issue("service_users/bulk", url.Values{"id": {user}, "do": {"rotate"}, "grace": {"1h"}, "sure": {"yes"}})

	for _, path := range []string{"service_users?q=by-form", "service_users.csv", "service_users/" + user, "audit", "health"} {
		if got := ask("GET", path, nil); got.StatusCode != 200 || secret.MatchString(got.body) {
			t.Errorf("%s: got %d, or a secret: %s", path, got.StatusCode, got.body)
		}
	}
	log := s.log.String()
	if !strings.Contains(log, "/console/service_users/new") {
		t.Error("the log has no line about the form, so the test proves nothing")
	}
	for _, one := range secrets {
		if strings.Contains(log, one) {
			t.Errorf("the log has the secret %s", one)
		}
	}
}
