package caddymodule

import (
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/internal/browser"
)

// look checks the page that is open: its accessibility in light, its contrast in dark, and its width
// on a phone.
func (c *consoleTab) look(name string) {
	c.t.Helper()
	shot := func(kind string, width int64) {
		c.t.Helper()
		if *consoleShots != "" {
			c.Size(width, int64(browser.Eval[int](c.Tab, "document.documentElement.scrollHeight"))) // what sticks is at its end
			c.Shot(filepath.Join(*consoleShots, name+"-"+kind+".png"))
		}
	}
	axe := func(kind string, rules ...string) {
		c.t.Helper()
		for _, v := range c.Axe(rules...) {
			for _, n := range v.Nodes {
				c.t.Errorf("%s, %s: %s: %s: %s", name, kind, v.ID, n.HTML, n.FailureSummary)
			}
		}
	}
	others := []string{"color-contrast"}
	if *consoleAll {
		others = nil
	}
	c.LoadAxe("../tools/axe/axe.min.js")
	axe("light")
	shot("light", 1280)
	c.Scheme("dark")
	axe("dark", others...)
	shot("dark", 1280)
	c.Size(360, 740)
	if wide := c.Overflow(); wide > 0 {
		c.t.Errorf("%s: the page is %d pixels wider than a phone", name, wide)
	}
	if *consoleAll {
		axe("phone")
	}
	shot("phone", 360)
	c.Size(1280, 800)
	c.Scheme("light")
}

// hostile are names that try to leave their place in a page. The API refuses control
// characters in them, such as U+202E, and two scripts in one.
var hostile = []string{
	`<img src=x onerror=alert(1)>`, `"><script>alert(1)</script>`, "\u05d0\u05d1\u05d2", "🦊🦊🦊", strings.Repeat("w", 255), "{env.HOME}",
}

// policy is the Content-Security-Policy of each page.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; " +
	"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// eachPage looks at every page that has an address. Some service users have hostile names.
func eachPage(c *consoleTab) {
	readers := c.group("readers")
	var widest string // the page of the longest name
	fields := []string{"Authorization: " + passwordOf(demoAdmin.id)}
	for _, name := range hostile {
		body, err := json.Marshal(map[string]any{
			"name": name, "display_name": name, "owner": name, "description": name, "permission_groups": []string{readers},
		})
		if err != nil {
			c.t.Fatal(err)
		}
		made := c.s.do("POST", "CADDY_PORT", "/service_users", credentials{}, string(body), "Content-Type: application/json")
		if made.StatusCode != 201 {
			c.t.Fatalf("%q: got status %d: %s", name, made.StatusCode, made.body)
		}
		var u struct{ ID string }
		if err := json.Unmarshal([]byte(made.body), &u); err != nil {
			c.t.Fatal(err)
		}
		for _, path := range []string{u.ID, u.ID + "/edit", u.ID + "/delete"} {
			got := c.s.do("GET", "ADMIN_PORT", "/console/service_users/"+path, credentials{}, "", fields...)
			if got.StatusCode != 200 || !strings.Contains(got.body, template.HTMLEscapeString(name)) {
				c.t.Errorf("%q: %s: got status %d and a page without the name", name, path, got.StatusCode)
			}
		}
		if len(name) > 200 {
			widest = "service_users/" + u.ID
		}
	}
	for i, text := range hostile {
		name := fmt.Sprint("gone-", i)
		c.s.mustCLI("group", "create", name, "--description", text, "--rule", "allow GET /a")
		c.s.mustCLI("group", "delete", name, "--yes")
	}
	who := c.s.create("worker", "--group", "readers", "--team", "finance", "--label", "env=prod", "--ttl", "6d")
	c.wantStatus("a refusal", "/v1/payroll", who, 403)
	c.page("service_users/" + who.id)
	token := browser.Eval[string](c.Tab, "document.querySelector('a[href$=refresh]').href.split('/')[7]")
	user, group := "service_users/"+who.id, "permission_groups/"+readers
	pages := map[string]string{
		"users": "service_users?group=" + readers, "users-all": "service_users?status=all&sort=-created_at&group=" + readers, "users-none": "service_users?q=nobody",
		"users-wrong": "service_users?label=x", "users-deleted": "service_users?status=deleted",
		"user": user, "user-widest": widest, "user-widest-delete": widest + "/delete", "user-new": "service_users/new", "user-like": "service_users/new?like=worker", "user-edit": user + "/edit",
		"user-deactivate": user + "/deactivate", "user-delete": user + "/delete",
		"token-new": user + "/tokens/new", "token-refresh": user + "/tokens/" + token + "/refresh",
		"token-revoke": user + "/tokens/" + token + "/revoke",
		"groups":       "permission_groups", "groups-deleted": "permission_groups?deleted=true", "group-new": "permission_groups/new", "group": group, "group-edit": group + "/edit",
		"group-ticks": group + "/permissions", "group-endpoints": group + "/endpoints", "group-delete": group + "/delete",
		"explain": "explain", "explain-answer": "explain?user=worker&url=/v1/payroll", "explain-wrong": "explain?user=nobody&url=/",
		"audit": "audit?verify=yes&action=permission_group.", "audit-wrong": "audit?since=x", "health": "health", "error": "nothing",
	}
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		got := c.s.do("GET", "ADMIN_PORT", "/console/"+pages[name], credentials{}, "", fields...)
		if len(got.body) > 100<<10 {
			c.t.Errorf("%s: %d bytes of HTML", name, len(got.body))
		}
		if csp := got.Header.Get("Content-Security-Policy"); csp != policy {
			c.t.Errorf("%s: got the policy %q", name, csp)
		}
		c.page(pages[name])
		c.look(name)
	}
}

// managed looks at the pages of a manager, who sees one team.
func managed(c *consoleTab) {
	ledger := c.s.create("ledger", "--group", "readers", "--team", "finance")
	c.Tab = c.b.Tab(c.t, "Authorization", passwordOf("carol"))
	pages := []string{"service_users?q=ledger", "service_users/new"}
	if *consoleAll || *consoleShots != "" {
		pages = append(pages, "permission_groups", "explain", "health", "audit")
	}
	for _, page := range pages {
		name, _, _ := strings.Cut(page, "?")
		c.page(page)
		c.look("manager-" + strings.ReplaceAll(name, "/", "-"))
	}
	c.page("service_users/" + ledger.id)
	c.look("manager-user")
	c.press("readers")
	c.look("manager-group")
}

// strangers checks that pages of other sites can do nothing with the login of a person.
func strangers(c *consoleTab) {
	who := c.s.create("forged")
	c.s.mustCLI("deactivate", "forged")
	reactivate := "service_users/" + who.id + "/reactivate"
	for _, tt := range []struct {
		name, method, path, header string
		want                       int // 0: any, since the request only has to change nothing
	}{
		{"a form of another site", "POST", reactivate, "Sec-Fetch-Site: cross-site", 403},
		{"a form of an old browser", "POST", reactivate, "Origin: http://evil.example", 403},
		{"a link", "GET", reactivate, "Accept: text/html", 0},
		{"a method in a header", "GET", reactivate, "X-Http-Method-Override: POST", 0},
		{"a method that no page has", "PUT", "service_users/" + who.id, "Accept: text/html", 404},
	} {
		got := c.s.do(tt.method, "ADMIN_PORT", "/console/"+tt.path, credentials{}, "", "Authorization: "+passwordOf(demoAdmin.id), tt.header)
		if got.StatusCode != tt.want && tt.want != 0 {
			c.t.Errorf("%s: got status %d, want %d", tt.name, got.StatusCode, tt.want)
		}
		c.wantStatus(tt.name, "/v1/people/7", who, 401)
	}
	got := c.s.do("POST", "ADMIN_PORT", "/console/"+reactivate, credentials{}, "", "Authorization: "+passwordOf(demoAdmin.id))
	c.wantStatus("a form of the console: "+got.Status, "/v1/people/7", who, 403)
}
