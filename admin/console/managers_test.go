package console

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// offer is a link or a form of a page.
type offer struct{ method, path, form string }

// offers returns the links and forms of a page, with the input that the browser would send.
func offers(t *testing.T, at, page string) (list []offer) {
	t.Helper()
	_, body, _ := strings.Cut(page, "\r\n\r\n")
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	base := &url.URL{Path: at}
	if before, query, ok := strings.Cut(at, "?"); ok {
		base = &url.URL{Path: before, RawQuery: query}
	}
	for n := range doc.Descendants() {
		attr := attributes(n)
		href, linked := attr["href"]
		switch {
		case n.Data == "a" && linked:
			if to, err := base.Parse(href); err == nil && strings.HasPrefix(to.Path, Root) {
				list = append(list, offer{"GET", to.RequestURI(), ""})
			}
		case n.Data == "form":
			to, err := base.Parse(attr["action"])
			if err != nil {
				t.Fatal(err)
			}
			for _, form := range inputs(n) {
				if attr["method"] == "post" {
					list = append(list, offer{"POST", to.RequestURI(), form.Encode()})
				} else {
					list = append(list, offer{"GET", to.Path + "?" + form.Encode(), ""})
				}
			}
		}
	}
	return list
}

func attributes(n *html.Node) map[string]string {
	attr := make(map[string]string)
	for _, a := range n.Attr {
		attr[a.Key] = a.Val
	}
	return attr
}

// inputs returns what a form sends, once for each option of a select without a choice and for each
// button with a value.
func inputs(form *html.Node) []url.Values {
	sent, ways := url.Values{}, []url.Values{{}}
	for n := range form.Descendants() {
		attr := attributes(n)
		name := attr["name"]
		_, checked := attr["checked"]
		kind := attr["type"]
		switch {
		case name == "" || (kind == "radio" || kind == "checkbox") && !checked && name != "id":
		case n.Data == "input" && name == "name" && attr["value"] == "":
			sent.Set(name, "new-"+store.NewOperationID())
		case n.Data == "input" && name == "user" && attr["value"] == "":
			sent.Set(name, "editable")
		case n.Data == "input" && name == "group" && attr["value"] == "":
			sent.Set(name, "readers")
		case n.Data == "input":
			sent.Add(name, attr["value"])
		case n.Data == "textarea" && n.FirstChild != nil:
			sent.Add(name, n.FirstChild.Data)
		case n.Data == "button":
			ways = append(ways, url.Values{name: {attr["value"]}})
		case n.Data == "select":
			for o := range n.Descendants() {
				if a := attributes(o); o.Data == "option" && a["value"] != "" {
					ways = append(ways, url.Values{name: {a["value"]}})
				}
			}
		}
	}
	for i := range ways {
		for name, values := range sent {
			ways[i][name] = append(ways[i][name], values...)
		}
	}
	return ways
}

// TestNothingRefusedIsOffered follows every link and sends every form that pages offer to a manager
// and to an admin. The API refuses none of them, and no link is dead.
func TestNothingRefusedIsOffered(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"manager", "admin"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			some := func(names ...string) admin.Opt[[]string] { return admin.Some(names) }
			readers, writers := s.group("readers", []string{"allow GET /v1/people"}), s.group("writers", []string{"allow PUT /v1/people"})
			observed := s.group("observed", []string{"allow GET /v1/x"})
			s.call("PATCH", observed.URI, admin.GroupInput{Mode: admin.Some(access.Observe)}, nil)
			s.call("PUT", "/service_users/permissions", map[string]any{"permissions": []map[string]any{{
				"key": "people.view", "name": "View people", "category": "Features: People", "rules": []string{"allow GET /v1/people"},
			}}}, nil)
			name := func(text string) admin.Opt[string] { return admin.Some(text) }
			editable := s.haveUser(admin.ServiceUserInput{Name: name("editable"), Teams: some("finance"), PermissionGroups: some(readers.ID, observed.ID)})
			s.haveUser(admin.ServiceUserInput{Name: name("two-teams"), Teams: some("finance", "hr"), PermissionGroups: some(readers.ID)})
			s.haveUser(admin.ServiceUserInput{Name: name("writer"), Teams: some("finance"), PermissionGroups: some(readers.ID, writers.ID)})
			s.haveUser(admin.ServiceUserInput{Name: name("chief"), Teams: some("finance"), Role: admin.Some(access.Admin)})
			s.haveUser(admin.ServiceUserInput{Name: name("outside"), Teams: some("hr")})
			s.haveUser(admin.ServiceUserInput{Name: name("off"), Teams: some("finance"), Active: admin.Some(false)})
			gone := s.haveUser(admin.ServiceUserInput{Name: name("gone"), Teams: some("finance")})
			s.call("DELETE", gone.URI, nil, nil)
			s.call("POST", editable.URI+"/tokens", admin.TokenInput{PermissionGroups: some(readers.ID, writers.ID)}, nil)
			s.call("POST", editable.URI+"/tokens/"+editable.TokenID+"/refresh", admin.RefreshInput{Grace: name("24h")}, nil)
			s.recall.Keep(access.Recalled{
				ID: "decision_1", Status: 403, At: time.Now(), UserID: editable.ID, TokenID: editable.TokenID, Reason: access.NoRule,
				Action: access.Action{Method: "PUT", Host: "api.example.com", Path: "/v1/people", Address: netip.MustParseAddr("10.0.0.7")},
			})
			if who == "manager" {
				api := admin.New(s.store, nil, nil)
				s.by = api.HumanManager("carol", []string{"finance", "ops"}, []string{"readers", "observed"})
			}

			seen, forms := make(map[string]bool), make(map[offer]bool)
			queue := []string{"/console/service_users", "/console/service_users?status=all", "/console/service_users/" + gone.ID}
			for len(queue) > 0 {
				at := queue[0]
				queue = queue[1:]
				if seen[at] {
					continue
				}
				seen[at] = true
				if len(seen) > 600 {
					t.Fatal("the pages do not end")
				}
				want := 200
				if strings.Contains(at, "url=&") { // explain asks for a path
					want = 0
				}
				text := s.visit("GET", at, "", want)
				if strings.Contains(at, ".csv") {
					continue
				}
				for _, o := range offers(t, at, text) {
					switch {
					case o.method == "POST":
						forms[o] = true
					case !strings.Contains(o.path, "sort="):
						queue = append(queue, o.path)
					}
				}
			}
			var all []offer
			for o := range forms {
				all = append(all, o)
			}
			// Deletions come last, so that the other forms still find their objects.
			rank := func(o offer) string {
				last := strings.Contains(o.path, "/delete") || strings.Contains(o.form, "do=delete")
				return fmt.Sprint(last, strings.Contains(o.path, "/revoke"), o)
			}
			slices.SortFunc(all, func(a, b offer) int { return strings.Compare(rank(a), rank(b)) })
			for _, o := range all {
				s.visit("POST", o.path, o.form, 0)
			}
			if len(seen) < 20 || len(all) < 15 {
				t.Errorf("%s: got %d pages and %d forms, want more", who, len(seen), len(all))
			}
			var trail admin.AuditEventList
			s.call("GET", "/audit_events?action=refused", nil, &trail)
			for _, e := range trail.AuditEvents {
				t.Errorf("%s: the trail has a refused attempt: %s", who, e.After)
			}
		})
	}
}

// visit reads a page or sends a form. Its status must be want, or with 0 neither 403 nor a fault of
// the server.
func (s *site) visit(method, at, form string, want int) string {
	s.t.Helper()
	req, err := http.NewRequest(method, s.URL+at, strings.NewReader(form))
	if err != nil {
		s.t.Fatal(err)
	}
	if method == "POST" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", s.URL)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var text strings.Builder
	if err := resp.Write(&text); err != nil {
		s.t.Fatal(err)
	}
	if want != 0 && resp.StatusCode != want || resp.StatusCode == 403 || resp.StatusCode >= 500 {
		s.t.Errorf("%s %s %s: got %d, want %d\n%s", method, at, form, resp.StatusCode, want, text.String())
	}
	return text.String()
}
