package caddymodule

import (
	"encoding/base64"
	goflag "flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/serviceusers/caddy-service-users/internal/browser"
)

var (
	consoleAll   = goflag.Bool("console.all", false, "TestConsole checks each page with all rules in light, in dark and at 360 pixels")
	consoleShots = goflag.String("console.shots", "", "a directory: TestConsole writes pictures of each page there, in light, in dark and at 360 pixels")
)

// cheapPassword is a hash of "change-me" that costs little CPU time: a browser sends the password
// with every request.
const cheapPassword = "ADMIN_PASSWORD_HASH=$2a$04$53rHa2CCFQYDjNhibCaDHOYDUN3xghgSUqge.SE4iZP212S6DuQXW"

// passwordOf returns the field Authorization of a person: demoAdmin, or carol, a manager.
func passwordOf(name string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+demoAdmin.secret))
}

// consoleTab is a tab in the console of a real Caddy.
type consoleTab struct {
	*browser.Tab
	t *testing.T
	s *server
	b *browser.Browser
}

// page opens a page of the console by its path below /console/.
func (c *consoleTab) page(path string) int {
	c.t.Helper()
	return c.Open("http://" + c.s.addr("ADMIN_PORT") + "/console/" + path)
}

// press presses buttons and links one after the other, each on a page without an error.
func (c *consoleTab) press(texts ...string) {
	c.t.Helper()
	for _, text := range texts {
		if status := c.Press(text); status != 200 {
			c.t.Fatalf("%s: got status %d, want 200:\n%s", text, status, c.Text())
		}
	}
}

// wantStatus sends a request to the guarded API.
func (c *consoleTab) wantStatus(when, path string, who credentials, want int) {
	c.t.Helper()
	if got := c.s.get(path, who); got.StatusCode != want {
		c.t.Fatalf("%s: got status %d, want %d: %s", when, got.StatusCode, want, got.body)
	}
}

// shown returns the credentials that the page shows, and checks that nothing else keeps the secret.
func (c *consoleTab) shown() credentials {
	c.t.Helper()
	who := credentials{
		browser.Eval[string](c.Tab, "document.getElementById('id').textContent"),
		browser.Eval[string](c.Tab, "document.getElementById('token').textContent"),
	}
	if !strings.HasPrefix(who.secret, "csu_") {
		c.t.Fatalf("got the token %q:\n%s", who.secret, c.Text())
	}
	kept := browser.Eval[string](c.Tab, "location.href + document.title + document.referrer + JSON.stringify(localStorage)")
	if strings.Contains(kept, who.secret) {
		c.t.Errorf("the browser keeps the token: %s", kept)
	}
	return who
}

// TestConsole walks through the console with a real browser and a real Caddy. Its first parts run
// one after the other, and use what the earlier ones made.
func TestConsole(t *testing.T) {
	b := browser.Start(t)
	caddyfile := strings.NewReplacer("admins admin", "admins admin\n\t\tmanagers carol team=finance group=readers",
		"admin {$ADMIN_PASSWORD_HASH", "carol {$ADMIN_PASSWORD_HASH}\n\t\tadmin {$ADMIN_PASSWORD_HASH").Replace(exampleCaddyfile(t)) + observing
	s := startServer(t, caddyfile, cheapPassword)
	catalogue, err := filepath.Abs("../examples/hibob-permissions.json")
	if err != nil {
		t.Fatal(err)
	}
	s.mustCLI("permission", "load", catalogue)
	type part struct {
		name string
		run  func(*consoleTab)
	}
	run := func(t *testing.T, p part) {
		own := *s // that fails its own part
		own.t = t
		p.run(&consoleTab{b.Tab(t, "Authorization", passwordOf(demoAdmin.id)), t, &own, b})
	}
	for _, p := range []part{
		{"first start", firstStart}, {"explain", explained}, {"observe", observed}, {"conflict", conflict},
	} {
		t.Run(p.name, func(t *testing.T) { run(t, p) })
	}
	for _, p := range []part{
		{"pages", eachPage}, {"by keys", byKeys}, {"without script", withoutScript}, {"phone", onPhone},
		{"manager", managed}, {"strangers", strangers}, {"500 service users", hundreds},
	} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			run(t, p)
		})
	}
}

// hand does the steps of a task in one way, such as by keys alone.
type hand struct {
	fill, tick func(field, value string)
	press      func(text string) // follows a link, or sends a form
	copy       func()            // presses the button that copies a token; nil without script
	look       func(page string) // checks how a page looks
}

// mouse is the hand of most people.
func (c *consoleTab) mouse() hand {
	return hand{
		fill: c.Fill, tick: c.Tick, press: func(text string) { c.t.Helper(); c.press(text) },
		copy: func() { c.t.Helper(); c.Run(chromedp.Click(chromedp.CSS("[data-copy=token]"))) },
		look: func(string) {},
	}
}

// life leads a service user from its creation to its deletion and back, beginning at the list.
func (c *consoleTab) life(name string, h hand) {
	c.t.Helper()
	h.fill("name", name)
	h.look("new-user-filled")
	h.press("Create")
	c.Want(name+" is ready", "The token is shown only now")
	who := c.shown()
	if h.copy != nil {
		c.copied(who, h.copy)
	}
	h.look("created")
	c.wantStatus("before a grant", "/v1/people/7", who, 403)

	h.press("Groups")
	h.press("New group")
	h.fill("name", name+"-rights")
	h.press("Create")
	h.press("Permissions")
	h.tick("permission", "directory.view")
	h.press("Show the effect")
	c.Want("Effect of saving")
	h.look("ticks-effect")
	h.press("Save")
	c.Want("Saved.", "directory.view")
	h.fill("user", name)
	h.press("Add")
	c.wantStatus("after the grant", "/v1/people/7", who, 200)

	h.press(name)
	h.press("Refresh")
	h.tick("grace", "1h")
	h.press("Refresh")
	h.look("issued")
	fresh := c.shown()
	fresh.id = who.id
	c.wantStatus("the new token", "/v1/people/7", fresh, 200)
	c.wantStatus("the old token, in its grace", "/v1/people/7", who, 200)
	h.press("Done")
	c.Want("still used by 127.0.0.1")
	h.look("user-drain")

	h.press("Deactivate")
	h.press("Deactivate")
	c.Want("Deactivated", "Reactivate")
	h.look("user-inactive")
	c.wantStatus("after a deactivation", "/v1/people/7", fresh, 401)

	h.press("Service users")
	h.fill("q", name)
	h.press("Apply")
	h.press("Show inactive (1)")
	h.tick("id", who.id)
	h.fill("do", "reactivate")
	h.press("Show the effect")
	h.look("bulk")
	h.press("Reactivate them")
	c.wantStatus("after a reactivation in bulk", "/v1/people/7", fresh, 200)

	h.press("Service users")
	h.fill("q", name)
	h.press("Apply")
	h.tick("id", who.id)
	h.fill("do", "delete")
	h.press("Show the effect")
	h.press("Delete them")
	c.wantStatus("after a deletion in bulk", "/v1/people/7", fresh, 401)
	c.page("service_users?status=deleted")
	h.press(name)
	h.look("user-deleted")
	h.press("Undelete")
	c.Want("Undeleted", "inactive")
	h.press("Reactivate")
	c.wantStatus("after the deletion was undone", "/v1/people/7", fresh, 200)
}

// copied checks that the button copies the token, and selects it in a browser that gives the page no
// clipboard, as over plain HTTP.
func (c *consoleTab) copied(who credentials, press func()) {
	c.t.Helper()
	press()
	c.Run(chromedp.WaitVisible("//button[.='Copied']"))
	if got := browser.Eval[string](c.Tab, "navigator.clipboard.readText()"); got != who.secret {
		c.t.Errorf("copied %q, want the token", got)
	}
	browser.Eval[int](c.Tab, "Object.defineProperty(navigator, 'clipboard', {value: undefined}), 0")
	press()
	if got := browser.Eval[string](c.Tab, "getSelection().toString()"); got != who.secret {
		c.t.Errorf("selected %q, want the token", got)
	}
}

// firstStart begins at an empty store.
func firstStart(c *consoleTab) {
	c.Open("http://" + c.s.addr("ADMIN_PORT") + "/")
	c.Want("No service user yet")
	c.look("users-empty")
	c.page("permission_groups")
	c.look("groups-empty")
	c.page("service_users")
	c.press("Create a service user")
	h := c.mouse()
	h.look = c.look
	c.life("billing-sync", h)
}

// byKeys uses the keys alone.
func byKeys(c *consoleTab) {
	reach := func(what, test string) {
		c.t.Helper()
		for range 150 {
			c.Run(chromedp.KeyEvent(kb.Tab))
			if browser.Eval[bool](c.Tab, "(e => "+test+")(document.activeElement)") {
				// The eye has to find what the keys reach.
				if !browser.Eval[bool](c.Tab, "getComputedStyle(document.activeElement).outlineStyle === 'solid'") {
					c.t.Errorf("the focus on %s is not visible", what)
				}
				return
			}
		}
		c.t.Fatalf("no key leads to %s:\n%s", what, c.Text())
	}
	h := c.mouse()
	h.fill = func(field, value string) {
		c.t.Helper()
		if field == "q" {
			c.Strike('/')
		} else {
			reach(field, fmt.Sprintf("e.name === %q && e.type !== 'hidden'", field))
		}
		c.Run(chromedp.KeyEvent(value)) // in a choice it looks for the label
		if got := c.Value(field); got != value {
			c.t.Fatalf("typed %q into %s, but it has %q", value, field, got)
		}
	}
	h.tick = func(field, value string) {
		c.t.Helper()
		choice := fmt.Sprintf("e.name === %q && (e.type === 'radio' || e.value === %q)", field, value)
		reach(field, choice)
		for range 9 {
			if browser.Eval[string](c.Tab, "document.activeElement.value") == value {
				break
			}
			c.Run(chromedp.KeyEvent(kb.ArrowDown))
		}
		if !browser.Eval[bool](c.Tab, "document.activeElement.checked") {
			c.Run(chromedp.KeyEvent(" "))
		}
	}
	h.press = func(text string) {
		c.t.Helper()
		reach(text, fmt.Sprintf("e.innerText.trim() === %q", text))
		if status := c.Leave(chromedp.KeyEvent(kb.Enter)); status != 200 {
			c.t.Fatalf("%s: got status %d, want 200", text, status)
		}
	}
	h.copy = func() {
		c.t.Helper()
		reach("the copy of the token", "e.dataset.copy === 'token'")
		c.Run(chromedp.KeyEvent(kb.Enter))
	}
	c.page("service_users")
	h.press("New service user")
	c.life("by-keys", h)
}

// withoutScript uses a browser that runs no script.
func withoutScript(c *consoleTab) {
	c.WithoutScript()
	c.page("service_users")
	c.press("New service user")
	h := c.mouse()
	h.copy = nil
	c.life("no-script", h)
}

// onPhone uses a narrow screen.
func onPhone(c *consoleTab) {
	c.Size(360, 740)
	c.page("service_users")
	h := c.mouse()
	h.press = func(text string) {
		c.t.Helper()
		c.press(text)
		if wide := c.Overflow(); wide > 0 {
			c.t.Errorf("after %s the page is %d pixels wider than the screen", text, wide)
		}
	}
	h.copy = nil // the clipboard is that of byKeys
	h.press("New service user")
	c.life("on-phone", h)
}

// explained goes from a refusal to its reason, and allows the request there.
func explained(c *consoleTab) {
	c.s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/reports")
	who := c.s.create("report-reader", "--group", "readers")
	c.wantStatus("before", "/v1/people/7/lifecycle", who, 403)
	c.page("service_users/" + who.id)
	c.press("no rule allows it")
	c.Want("Refused", "To allow it")
	c.look("explain-refused")
	c.press("Add the rule")
	c.Want("The rule was added.")
	c.look("explain-allowed")
	c.wantStatus("after", "/v1/people/7/lifecycle", who, 200)
}

// observing is a site in mode observe, in front of the same store.
const observing = `
http://observing.localhost:{$API_PORT:8080} {
	bind 127.0.0.1
	service_users {
		mode observe
	}
	respond "passed"
}
`

// observed lists the requests that mode enforce would refuse, and allows one of them.
func observed(c *consoleTab) {
	c.s.mustCLI("group", "create", "trial", "--rule", "deny GET /v1/reports", "--mode", "observe")
	who := c.s.create("trial-run", "--group", "readers", "--group", "trial")
	c.wantStatus("observed", "/v1/reports", who, 200)
	c.page("permission_groups")
	c.press("trial")
	c.Want("observe", "Would be refused", "GET /v1/reports")
	if got := c.s.get("/v1/tasks", who, "Host: observing.localhost:"+c.s.ports["API_PORT"]); got.StatusCode != 200 {
		c.t.Fatalf("in mode observe: got status %d, want 200: %s", got.StatusCode, got.body)
	}
	c.Leave(chromedp.Reload())
	c.look("group-observe")
	c.wantStatus("before", "/v1/tasks", who, 403)
	c.press("Allow this", "Enforce them")
	c.Tick("mode", "enforce")
	c.press("Show the effect")
	c.look("group-edit-effect")
	c.press("Save")
	c.wantStatus("after", "/v1/tasks", who, 200)
	c.wantStatus("enforced", "/v1/reports", who, 403)
}

// conflict saves a service user, and a group in its three forms, after another person has changed
// them: nothing is lost, and a second save replaces the other change.
func conflict(c *consoleTab) {
	open := func(path, form string) {
		c.page(path)
		c.press(form)
	}
	saved := func(name string) {
		c.t.Helper()
		if status := c.Press("Save"); status != 412 {
			c.t.Errorf("%s: got status %d, want 412", name, status)
		}
		c.look(name)
	}
	again := func(field string) {
		c.t.Helper()
		if got := c.Value(field); got != "mine" {
			c.t.Errorf("the form has %q, want the input", got)
		}
		c.Want("theirs")
		c.press("Save")
		c.Want("Saved.", "mine")
	}
	group := "permission_groups/" + c.group("readers")
	open(group, "Edit")
	c.s.mustCLI("group", "update", "readers", "--description", "theirs")
	c.Fill("description", "mine")
	saved("edit-group-conflict")
	again("description")

	open("service_users/"+c.s.create("contested").id, "Edit")
	c.s.mustCLI("update", "contested", "--owner", "theirs")
	c.Fill("owner", "mine")
	saved("edit-user-conflict")
	again("owner")

	open(group, "Permissions")
	c.s.mustCLI("group", "update", "readers", "--description", "another")
	c.Tick("permission", "directory.view")
	saved("ticks-conflict")
	c.press("Save")
	c.Want("Saved.", "directory.view")

	open(group, "Endpoints")
	c.s.mustCLI("group", "update", "readers", "--description", "one more")
	c.Tick("allow", "POST /v1/reports")
	saved("grid-conflict")
	c.press("Save")
	c.Want("Saved.", "allow GET,POST /v1/reports")
}

// group returns the id of a permission group.
func (c *consoleTab) group(name string) string {
	c.t.Helper()
	c.page("permission_groups")
	c.press(name)
	return browser.Eval[string](c.Tab, "location.pathname.split('/')[3]")
}

// hundreds sorts, filters, ticks and turns the pages of 500 service users.
func hundreds(c *consoleTab) {
	var users []string
	for i := range 500 {
		team := [...]string{"finance", "legal"}[i%2]
		users = append(users, fmt.Sprintf(`{"name":"job-%03d","display_name":"Nightly job %d","teams":[%q],`+
			`"owner":"carol@example.com"}`, i, i, team))
	}
	body := `{"do":"create","users":[` + strings.Join(users, ",") + `]}`
	if got := c.s.do("POST", "CADDY_PORT", "/service_users/bulk", credentials{}, body, "Content-Type: application/json"); got.StatusCode != 200 {
		c.t.Fatalf("got status %d: %s", got.StatusCode, got.body)
	}
	rows := "[...document.querySelectorAll('tbody th a')].map(a => a.textContent)"
	c.page("service_users?q=job-")
	c.Want("500 service users")
	c.Click("Actions for job-499")
	c.press("Deactivate")
	c.Want("Deactivate job-499?")
	c.page("explain")
	c.Run(chromedp.SendKeys(chromedp.CSS("[data-suggest]"), "job-49"))
	var found []string
	for deadline := time.Now().Add(time.Minute); len(found) != 10 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		found = browser.Eval[[]string](c.Tab, "[...document.querySelectorAll('#suggest-user option')].map(o => o.value)")
	}
	if len(found) != 10 || found[0] != "job-499" || found[9] != "job-490" {
		c.t.Errorf("the field has %q and suggests %v, want job-499 to job-490", c.Value("user"), found)
	}
	c.page("service_users?q=job-")
	c.press("Name")
	first := browser.Eval[[]string](c.Tab, rows)
	c.press("Name")
	if last := browser.Eval[[]string](c.Tab, rows); first[0] != "job-000" || last[0] != "job-499" {
		c.t.Errorf("the sorted lists begin with %s and %s", first[0], last[0])
	}
	c.Run(chromedp.SendKeys(chromedp.CSS("[name=team]"), "legal"))
	c.Leave(chromedp.KeyEvent(kb.Enter))
	c.Want("250 service users")
	seen := make(map[string]bool)
	for {
		for _, name := range browser.Eval[[]string](c.Tab, rows) {
			seen[name] = true
		}
		if !strings.Contains(c.Text(), "Next page") {
			break
		}
		c.press("Next page")
	}
	if len(seen) != 250 || !seen["job-499"] || seen["job-498"] {
		c.t.Errorf("the pages show %d service users, want 250 of team legal", len(seen))
	}
	if got := c.s.do("GET", "ADMIN_PORT", "/console/service_users?q=job-", demoAdmin, ""); len(got.body) > 100<<10 {
		c.t.Errorf("100 service users make %d bytes of HTML", len(got.body))
	}
	c.page("service_users?q=job-00&team=legal")
	c.Run(chromedp.Click(chromedp.CSS("[data-all=column]")))
	c.Fill("do", "rotate")
	c.press("Show the effect")
	c.look("bulk-rotate")
	c.press("Rotate their tokens")
	c.Want("job-009")
	c.look("bulk-rotated")
}
