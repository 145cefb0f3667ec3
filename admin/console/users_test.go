package console

import (
	"encoding/csv"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

type fields = map[string]any

// make creates a service user from fields of the API.
func (s *site) make(in fields) (u admin.ServiceUser) {
	s.t.Helper()
	s.call(http.MethodPost, "/service_users", in, &u)
	return u
}

func (s *site) user(id string) (u admin.ServiceUser) {
	s.t.Helper()
	s.call(http.MethodGet, "/service_users/"+id+"?deleted=true", nil, &u)
	return u
}

// rows returns the names in the list, in their order.
func rows(text string) (names []string) {
	name := regexp.MustCompile(`<th scope="row"><a [^>]*><bdi>(.*?)</bdi>`)
	for _, m := range name.FindAllStringSubmatch(text, -1) {
		names = append(names, html.UnescapeString(m[1]))
	}
	return names
}

// button returns the fields that a form sends with one of its buttons. The hidden fields of all forms
// of the page count as its own.
func button(t *testing.T, text, name, value string) string {
	t.Helper()
	wantIn(t, text, fmt.Sprintf(`name=%q value=%q`, name, value))
	form := url.Values{name: {value}}
	hidden := regexp.MustCompile(`<input type="hidden" name="(.*?)" value="(.*?)"`)
	for _, m := range hidden.FindAllStringSubmatch(text, -1) {
		form.Add(m[1], html.UnescapeString(m[2]))
	}
	return form.Encode()
}

func TestListFiltersAndColumns(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	g := s.group("readers", nil)
	ops := s.make(fields{"name": "b-sync", "display_name": "First", "teams": []string{"ops"},
		"permission_groups": []string{g.ID}, "labels": fields{"env": "prod"}, "token_ttl": "6d1h"})
	s.make(fields{"name": "a-mailer", "role": "manager", "teams": []string{"legal"}})
	s.make(fields{"name": "off", "active": false})
	gone := s.make(fields{"name": "gone"})
	s.call(http.MethodDelete, "/service_users/"+gone.ID, nil, nil)
	var tokens admin.TokenList
	s.call(http.MethodGet, "/service_users/"+ops.ID+"/tokens", nil, &tokens)
	for query, want := range map[string]string{
		"":                            "b-sync a-mailer", // the one that ends soon is first
		"?sort=name":                  "a-mailer b-sync",
		"?sort=-name":                 "b-sync a-mailer",
		"?team=ops":                   "b-sync",
		"?role=manager":               "a-mailer",
		"?group=" + g.ID:              "b-sync",
		"?label=env%3Dprod":           "b-sync",
		"?label=env%3Dtest":           "",
		"?q=firs":                     "b-sync",
		"?q=" + tokens.Tokens[0].Hint: "b-sync",
		"?status=inactive":            "off",
		"?status=all&sort=name":       "a-mailer b-sync off",
		"?status=deleted":             "gone",
	} {
		text, _ := s.get("/console/service_users"+query, 200)
		if got := strings.Join(rows(text), " "); got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
	text, _ := s.get("/console/service_users?sort=name", 200)
	wantIn(t, text, `<span class="tag">readers</span>`, "ends in 6 days", `aria-sort="ascending"`,
		"2 service users", `?sort=name&amp;status=all">Show inactive (1)`,
		`data-menu="reactivate" aria-label="Actions for b-sync"`)
	wantNone(t, text, `value="undelete"`)
	text, _ = s.get("/console/service_users?status=deleted", 200)
	wantIn(t, text, `<option value="undelete">`, `<span class="badge off">deleted</span>`)
	wantNone(t, text, `value="delete"`, `value="reactivate"`, "data-menu=")
	text, _ = s.get("/console/service_users?team=nobody", 200)
	wantIn(t, text, "No service user meets these filters")
}

func TestListShowsFaultsBesideTheirField(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create("billing-sync")
	for query, wants := range map[string][]string{
		"label=%3Dx": {
			`value="=x" placeholder="KEY=VALUE" size="12" aria-invalid="true" aria-describedby="fault"><small class="error">begins with the`,
		},
		"q=" + strings.Repeat("x", 256): {
			`aria-invalid="true" aria-describedby="fault"><small class="error">has 256 characters`, strings.Repeat("x", 256),
		},
		"group=no%3Cb%3E&team=finance": {
			`<option selected>no&lt;b&gt;</option></select><small class="error">there is no permission group`,
			`value="finance"`,
		},
		"role=boss":  {`</select><small class="error">&#34;boss&#34; is none of admin, manager`},
		"status=odd": {`</select><small class="error">&#34;odd&#34; is none of`},
		"sort=odd":   {`role="alert">sort: `},
		"cursor=odd": {`role="alert">cursor: `},
	} {
		text, _ := s.get("/console/service_users?"+query, 400)
		wantIn(t, text, wants...)
		wantNone(t, text, "No service user")
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	group := s.group("readers", nil)
	var in []fields
	for i := range 250 {
		in = append(in, fields{"name": fmt.Sprintf("job-%03d", i), "display_name": "Job of the night",
			"teams": []string{"finance"}, "permission_groups": []string{group.ID}, "token_ttl": "90d"})
	}
	s.call(http.MethodPost, "/service_users/bulk", fields{"do": "create", "users": in}, nil)
	for _, sort := range []string{"", "sort=-created_at&"} {
		seen := make(map[string]bool)
		pages := 0
		for path := "/console/service_users?" + sort + "team=finance"; path != ""; pages++ {
			text, _ := s.get(path, 200)
			if len(text) > 100_000 {
				t.Errorf("the page has %d bytes, want at most 100,000", len(text))
			}
			for _, name := range rows(text) {
				seen[name] = true
			}
			wantIn(t, text, "250 service users")
			first := html.EscapeString("/console/service_users?" + sort + "team=finance")
			if back := `<a rel="first" href="` + first + `">`; (pages > 0) != strings.Contains(text, back) {
				t.Errorf("page %d: a link to the first page: %v", pages, pages == 0)
			}
			next := regexp.MustCompile(`<a rel="next" href="(.*?)"`).FindStringSubmatch(text)
			if path = ""; next != nil {
				path = html.UnescapeString(next[1])
			}
		}
		if len(seen) != 250 || pages != 3 {
			t.Errorf("%q: got %d service users on %d pages, want 250 on 3", sort, len(seen), pages)
		}
	}
}

func TestListOfAManager(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	foreign := s.group("foreign", nil)
	s.make(fields{"name": "mine", "teams": []string{"ops"}})
	s.make(fields{"name": "more-rights", "teams": []string{"ops"}, "permission_groups": []string{foreign.ID}})
	s.make(fields{"name": "theirs", "teams": []string{"legal"}})
	s.by = store.Actor{Name: "human:carol", Scope: &store.Scope{Teams: []string{"ops"}}}
	text, _ := s.get("/console/service_users?sort=name", 200)
	if got := strings.Join(rows(text), " "); got != "mine more-rights" {
		t.Errorf("got %q", got)
	}
	wantIn(t, text, `aria-label="Actions for mine"`)
	wantNone(t, text, `aria-label="Actions for more-rights"`, ">deleted</option>")
	text, _ = s.get("/console/service_users/new", 200)
	wantNone(t, text, `type="radio" name="role"`, "foreign")
	text, _ = s.post("/console/service_users/new", "role=member&name=new&teams=legal&key=k1", 403)
	wantIn(t, text, `value="legal"`, ` e-teams"`, "a manager")
	s.post("/console/service_users/new", "role=member&name=new&teams=ops&key=k2", 200)
}

func TestRowMenu(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.make(fields{"name": "billing-sync"})
	at := "/console/service_users/" + u.ID
	_, header := s.get(at+"/refresh", 303)
	if got, want := header.Get("Location"), at+"/tokens/"+u.TokenID+"/refresh"; got != want {
		t.Errorf("with one token: got %s, want %s", got, want)
	}
	var fresh admin.Token
	s.call(http.MethodPost, "/service_users/"+u.ID+"/tokens/"+u.TokenID+"/refresh", fields{"grace": "1h"}, &fresh)
	_, header = s.get(at+"/refresh", 303) // a retiring token is not one to refresh
	if got, want := header.Get("Location"), at+"/tokens/"+fresh.ID+"/refresh"; got != want {
		t.Errorf("with a retiring token: got %s, want %s", got, want)
	}
	s.call(http.MethodPost, "/service_users/"+u.ID+"/tokens", fields{}, nil)
	if _, header = s.get(at+"/refresh", 303); header.Get("Location") != at+"#tokens" {
		t.Errorf("with two tokens: got %s", header.Get("Location"))
	}
	s.get("/console/service_users/service_1/refresh", 404)

	s.post(at+"/deactivate", "", 303)
	text, _ := s.get("/console/service_users?status=inactive", 200)
	wantIn(t, text, `data-menu="deactivate"`)
	text, _ = s.get(at+"/reactivate", 200)
	wantIn(t, text, "Reactivate <bdi>billing-sync</bdi>?", "Its tokens work again", "It was never used.")
	s.post(at+"/reactivate", "", 303)
	if !s.user(u.ID).Active {
		t.Error("the service user is still inactive")
	}
	s.get("/console/service_users/service_1/reactivate", 404)
}

// TestBulkAndUndo changes service users, of which one is in the wanted state already, and takes the
// change back.
func TestBulkAndUndo(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	g := s.group("readers", nil)
	on, off := s.create("on"), s.make(fields{"name": "off", "active": false, "permission_groups": []string{g.ID}})
	in := func(u admin.ServiceUser) bool { return len(s.user(u.ID).PermissionGroups) > 0 }
	active := func(u admin.ServiceUser) bool { return s.user(u.ID).Active }
	const path = "/console/service_users/bulk?sort=name&team=x"
	ids := "&id=" + on.ID + "&id=" + off.ID
	for _, c := range []struct {
		form, undo string
		state      func(admin.ServiceUser) bool
		was, is    [2]bool
	}{
		{"do=deactivate", "reactivate", active, [2]bool{true, false}, [2]bool{false, false}},
		{"do=reactivate", "deactivate", active, [2]bool{true, false}, [2]bool{true, true}},
		{"do=add_to_group&group=" + g.ID, "remove_from_group", in, [2]bool{false, true}, [2]bool{true, true}},
		{"do=remove_from_group&group=" + g.ID, "add_to_group", in, [2]bool{false, true}, [2]bool{false, false}},
	} {
		check := func(when string, want [2]bool) {
			t.Helper()
			if got := [2]bool{c.state(on), c.state(off)}; got != want {
				t.Errorf("%s %s: got %v, want %v", c.form, when, got, want)
			}
		}
		text, _ := s.post(path, c.form+ids, 200)
		wantIn(t, text, "1 service user will change; 1 already in that state.",
			`href="/console/service_users?sort=name&amp;team=x"`)
		check("asked", c.was)
		text, _ = s.post(path, button(t, text, "sure", "yes")+strings.TrimPrefix("&"+c.form, "&do=x"), 200)
		wantIn(t, text, `role="status">1 service user changed; 1 already in that state.`)
		check("done", c.is)
		text, _ = s.post(path, button(t, text, "do", c.undo), 200)
		wantIn(t, text, "1 service user will change.")
		check("undo asked", c.is)
		form := button(t, text, "sure", "yes")
		if strings.Contains(c.form, "group=") {
			form += "&group=" + g.ID
		}
		s.post(path, form, 200)
		check("undone", c.was)
	}
}

func TestBulkDeleteAndUndelete(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u, other := s.create("gone"), s.create("stays")
	const path = "/console/service_users/bulk"
	text, _ := s.post(path, "do=delete&id="+u.ID, 200)
	wantIn(t, text, "Their tokens are refused", `class="danger"`)
	text, _ = s.post(path, button(t, text, "sure", "yes"), 200)
	if s.user(u.ID).DeletedAt == nil {
		t.Fatal("it is not deleted")
	}
	text, _ = s.post(path, button(t, text, "do", "undelete"), 200)
	wantIn(t, text, "inactive until you reactivate them")
	text, _ = s.post(path, button(t, text, "sure", "yes"), 200)
	wantNone(t, text, "Undo")
	if u := s.user(u.ID); u.DeletedAt != nil || u.Active {
		t.Errorf("got %+v, want it back, and inactive", u)
	}
	// A manager cannot undelete, so there is no Undo.
	s.call(http.MethodPatch, "/service_users/"+other.ID, fields{"teams": []string{"ops"}}, nil)
	s.by = store.Actor{Name: "human:carol", Scope: &store.Scope{Teams: []string{"ops"}}}
	text, _ = s.post(path, "do=delete&sure=yes&id="+other.ID, 200)
	wantIn(t, text, "1 service user changed")
	wantNone(t, text, "Undo")
	s.post(path, "do=deactivate", 400)
	s.post(path, "do=create&id="+u.ID, 400)
	s.post(path, "do=deactivate&id="+u.ID, 404) // not in the manager's team
}

func TestBulkRotate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("billing-sync")
	const path = "/console/service_users/bulk"
	text, _ := s.post(path, "do=rotate&id="+u.ID, 200)
	wantIn(t, text, `<option value="24h" selected>after 24h`, "a new token in place of")
	wantNone(t, text, "csu_")
	text, _ = s.post(path, "do=rotate&grace=1x&id="+u.ID, 400)
	wantIn(t, text, `role="alert">grace: `)
	text, _ = s.post(path, "do=rotate&grace=1h&id="+u.ID, 200)
	form := button(t, text, "sure", "yes") + "&grace=1h"
	text, _ = s.post(path, form, 200)
	wantIn(t, text, "csu_", "The tokens are shown only now")
	text, _ = s.post(path, form, 200)
	wantIn(t, text, "This form was sent before", u.ID)
	wantNone(t, text, "csu_")
}

func TestExport(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.make(fields{"name": "b-sync", "display_name": `=1+1 "x"`, "teams": []string{"ops", "legal"},
		"labels": fields{"env": "prod", "a": "1,2"}})
	s.make(fields{"name": "a-off", "active": false})
	page, _ := s.get("/console/service_users?status=all&sort=name", 200)
	wantIn(t, page, `<button formaction="/console/service_users.csv">`, `name="sort" value="name"`)
	text, header := s.get("/console/service_users.csv?sort=name&status=all", 200)
	if got := header.Get("Content-Type"); got != "text/csv; charset=utf-8" {
		t.Errorf("got the type %q", got)
	}
	_, body, _ := strings.Cut(text, "\r\n\r\n")
	list, err := csv.NewReader(strings.NewReader(body)).ReadAll()
	if err != nil || len(list) != 3 {
		t.Fatalf("got %d lines (%v): %s", len(list), err, body)
	}
	want := `b-sync|'=1+1 "x"||member|legal, ops|a=1,2` + "\nenv=prod||true"
	if got := strings.Join(list[2][1:9], "|"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if list[1][1] != "a-off" || list[1][8] != "false" || list[1][9] == "" {
		t.Errorf("got %q", list[1])
	}
	s.get("/console/service_users.csv?label=%3Dx", 400)
}
