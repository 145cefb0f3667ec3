package console

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/html"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// hostile is a name of 255 characters with markup, placeholders and an emoji.
var hostile = `<b onclick="x">&amp;'{{.}}{id}` + "\U0001f600" + strings.Repeat("w", 255-31)

func (s *site) haveUser(in admin.ServiceUserInput) (u admin.ServiceUser) {
	s.t.Helper()
	s.call("POST", "/service_users", in, &u)
	return u
}

// useToken records a request with a token.
func (s *site) useToken(user, secret, from string) {
	s.t.Helper()
	c := access.Credential{ID: user, Secret: secret}
	p, why := s.store.Directory().Authenticate(c, netip.MustParseAddr(from), s.store.Now().Unix())
	if why != access.Granted {
		s.t.Fatalf("the login got %s", why)
	}
	s.store.Use(p, s.store.Now().Unix(), netip.MustParseAddr(from), "")
}

func TestUserPage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	readers, writers := s.group("readers", []string{"allow GET /v1/people"}), s.group("writers", nil)
	u := s.haveUser(admin.ServiceUserInput{
		Name: admin.Some("billing-sync"), Role: admin.Some(access.Manager), Teams: admin.Some([]string{"finance"}),
		PermissionGroups: admin.Some([]string{readers.ID}),
	})
	var narrow admin.Token
	s.call("POST", u.URI+"/tokens", admin.TokenInput{
		Description: admin.Some("laptop"), Metadata: admin.Some("host=7"), AllowedIPs: admin.Some([]string{"10.0.0.0/8"}),
		PermissionGroups: admin.Some([]string{writers.ID}), NotBefore: admin.Some("2099-01-01T00:00:00Z"),
		ExpiresAt: admin.Some("2099-01-02T00:00:00Z"),
	}, &narrow)
	s.recall.Keep(access.Recalled{
		ID: "decision_1", Status: 403, At: time.Now(), UserID: u.ID, Reason: access.NoRule,
		Action: access.Action{Method: "PUT", Host: "api.example.com", Path: "/v1/people"},
	})
	at := "/console/service_users/" + u.ID
	text, _ := s.get(at, 200)
	wantIn(t, text,
		"manages the service users of its teams", "named as a member", "allow GET /v1/people",
		"…"+narrow.Hint, "laptop", "host=7", "10.0.0.0/8", "<bdi>writers</bdi>", `<span class="badge warn">pending</span>`, "begins",
		`datetime="2099-01-02T00:00:00Z"`,
		"Refresh replaces a token", "Revoke refuses one token", "Deactivate refuses all its tokens",
		"no rule allows it", `href="/console/explain?decision_id=decision_1"`,
		"service_user.create", `href="/console/audit?resource_id=`+u.ID+`"`,
	)
	if n := strings.Count(text, "<h1"); n != 1 {
		t.Errorf("got %d headings of the first level, want 1", n)
	}
	s.post(at+"/deactivate", "", 303)
	text, _ = s.get(at, 200)
	wantIn(t, text, "It is inactive", "Reactivate accepts them again")
	s.post(at+"/reactivate", "", 303)
}

func TestDrain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("billing-sync")
	at := "/console/service_users/" + u.ID
	text, _ := s.post(at+"/tokens/"+u.TokenID+"/refresh", "grace=24h&key=k1", 200)
	wantIn(t, text, "csu_")
	text, _ = s.get(at, 200)
	wantIn(t, text, "retiring", "Nobody has used it", at+"/tokens/"+u.TokenID+"/revoke\">Revoke it</a>", "ends in ")
	s.useToken(u.ID, u.Token, "10.0.0.7")
	s.call("PATCH", u.URI, admin.ServiceUserInput{Owner: admin.Some("ops")}, nil) // writes the uses
	for deadline := time.Now().Add(time.Minute); !strings.Contains(text, "still used by 10.0.0.7"); {
		if text, _ = s.get(at, 200); time.Now().After(deadline) {
			t.Fatalf("the page does not show the use of the old token:\n%s", text)
		}
	}
	wantNone(t, text, "Nobody has used it")
}

func TestGroupsOfUser(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u, g := s.create("billing-sync"), s.group("readers", []string{"allow GET /v1/people"})
	at := "/console/service_users/" + u.ID
	text, _ := s.get(at, 200)
	wantIn(t, text, `list="groups"`, `<option value="readers">`, "No group")
	text, _ = s.post(at+"/groups", "group=reader%3Cs", 400)
	wantIn(t, text, "there is no permission group &#34;reader&lt;s&#34;", `value="reader&lt;s"`, "autofocus")
	s.post(at+"/groups", "group=readers", 303)
	text, _ = s.get(at, 200)
	wantIn(t, text, at+"/groups/"+g.ID+"/leave", "allow GET /v1/people")
	s.post(at+"/groups/"+g.ID+"/leave", "", 303)

	// A condition makes it a member: the page cannot end that.
	s.call("PATCH", g.URI, admin.GroupInput{MemberCondition: admin.Some(`user.name == "billing-sync"`)}, nil)
	text, _ = s.get(at, 200)
	wantIn(t, text, "member by the condition of the group")
	wantNone(t, text, "/leave")
}

func TestTokenForm(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.create("billing-sync")
	at := "/console/service_users/" + u.ID + "/tokens/new"
	text, _ := s.get(at, 200)
	wantIn(t, text, "after 90d", "after 365d", time.Now().UTC().AddDate(0, 0, 7).Format("2006-01-02"), "> never</label>")
	text, _ = s.post(at, "key=k1&description=laptop&allowed_ips=10.0.0&ttl=30d", 400)
	wantIn(t, text, `value="laptop"`, `value="10.0.0"`, `value="30d" checked`, `id="e-allowed_ips"`, `name="allowed_ips" value="10.0.0" autocomplete="off" autofocus`)
	if n := strings.Count(text, "autofocus"); n != 1 {
		t.Errorf("%d elements want the focus, not 1", n)
	}
	text, _ = s.post(at, "key=k1&description=laptop&allowed_ips=10.0.0.7,+10.1.0.0/16", 200)
	wantIn(t, text, "csu_")
	text, _ = s.get("/console/service_users/"+u.ID, 200)
	wantIn(t, text, "<code>10.0.0.7", "<code>10.1.0.0/16</code>")

	// The person went back and changed the form.
	text, _ = s.post(at, "key=k1&description=another", 422)
	wantIn(t, text, "This form was sent before", `value="another"`)
	_, rest, _ := strings.Cut(text, `name="key" value="`)
	key, _, _ := strings.Cut(rest, `"`)
	text, _ = s.post(at, "key="+key+"&description=another", 200)
	wantIn(t, text, "csu_")

	s = newSiteWith(t, store.Options{TokenTTL: 30 * 24 * time.Hour, MaxTokenTTL: 90 * 24 * time.Hour})
	u = s.create("billing-sync")
	text, _ = s.get("/console/service_users/"+u.ID+"/tokens/new", 200)
	wantIn(t, text, "after 90d", "at "+time.Now().UTC().AddDate(0, 0, 30).Format("2006-01-02"), "as the operator has set")
	wantNone(t, text, "after 365d", "never")
}

// TestQuestions checks that each question names its object, and that a hostile name stays text.
func TestQuestions(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	g := s.group("readers", nil)
	u := s.haveUser(admin.ServiceUserInput{
		Name: admin.Some(hostile), DisplayName: admin.Some("\u05d0\u05d1" + hostile[:200]), Owner: admin.Some(hostile),
		Labels: admin.Some(map[string]string{"k": hostile}), PermissionGroups: admin.Some([]string{g.ID}),
	})
	s.call("PATCH", u.URI+"/tokens/"+u.TokenID, admin.TokenInput{Description: admin.Some(hostile), Metadata: admin.Some(hostile)}, nil)
	at := "/console/service_users/" + u.ID
	escaped := html.EscapeString(hostile)
	for _, path := range []string{
		"", "/deactivate", "/delete", "/tokens/new", "/tokens/" + u.TokenID + "/refresh", "/tokens/" + u.TokenID + "/revoke",
	} {
		text, _ := s.get(at+path, 200)
		wantIn(t, text, "<bdi>"+escaped+"</bdi>")
		wantNone(t, text, "<b onclick", "csu_")
	}
	text, _ := s.get(at+"/tokens/"+u.TokenID+"/revoke", 200)
	wantIn(t, text, "Revoke the token …"+u.Token[len(u.Token)-4:]+" of <bdi>")
	s.useToken(u.ID, u.Token, "10.0.0.7")
	text, _ = s.post(at+"/delete", "", 409)
	wantIn(t, text, "This service user is in use.", "10.0.0.7", "Delete it anyway", escaped)
	s.post(at+"/delete", "sure=yes", 303)
	text, _ = s.get(at, 200)
	wantIn(t, text, escaped, "Undelete")
	text, _ = s.post(at+"/groups", "group=readers", 404)
	wantIn(t, text, "It may have been deleted meanwhile", "Your input is kept", `name="group" value="readers"`)
	_, header := s.post(at+"/undelete", "", 303)
	if to := header.Get("Location"); strings.Contains(to, "onclick") {
		t.Errorf("the redirect has the name: %s", to)
	}
}

// TestErrorKeepsInput checks the page of an error that no form can show beside a field.
func TestErrorKeepsInput(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u, g := s.create("gone"), s.group("readers", nil)
	s.call("DELETE", u.URI, nil, nil)
	s.call("DELETE", g.URI, nil, nil)
	input := "name=%3Cnew%3E&labels=a%3D1%0D%0Ab%3D2&permission_groups=x&permission_groups=y&role=member&etag=%221%22&key=k1&group=readers&do=save"
	kept := []string{
		"Your input is kept", `<button>Send again</button>`, `name="name" value="&lt;new&gt;"`,
		`name="permission_groups" value="x"><input type="hidden" name="permission_groups" value="y"`, `name="etag" value="&#34;1&#34;"`, "b=2",
	}
	for _, path := range []string{
		"service_users/" + u.ID + "/edit", "service_users/" + u.ID + "/tokens/new",
		"permission_groups/" + g.ID + "/edit", "permission_groups/" + g.ID + "/permissions",
	} {
		text, _ := s.post("/console/"+path, input, 404)
		wantIn(t, text, append(kept, "It may have been deleted meanwhile")...)
	}
	v := s.create("there")
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"service_users/new", "service_users/" + v.ID + "/edit", "service_users/" + v.ID + "/groups", "service_users/bulk",
		"permission_groups/" + g.ID + "/edit",
	} {
		text, _ := s.post("/console/"+path, "do=add_to_group&id="+v.ID+"&"+input, 503)
		wantIn(t, text, append(kept, "the store cannot be used right now")...)
	}
	text, _ := s.post("/console/service_users/new", input+"&owner=csu_"+strings.Repeat("a", 49), 503)
	wantNone(t, text, "csu_a", "Send again")
	text, _ = s.post("/console/service_users/new", "name="+strings.Repeat("x", maxForm), 400)
	wantIn(t, text, "longer than 1 MiB")
	wantNone(t, text, "Send again")
}

// TestStrangersInput checks which input the page for a caller without a login keeps.
func TestStrangersInput(t *testing.T) {
	t.Parallel()
	page := func(w http.ResponseWriter, r *http.Request) {
		err := admin.ErrUnauthenticated
		if strings.HasSuffix(r.URL.Path, "/throttled") {
			err = admin.NewError(http.StatusTooManyRequests, "ERR_NGROK_226", "too many attempts")
		}
		ErrorPage(r)(w, zap.NewNop(), "op_1", err)
	}
	server := httptest.NewServer(http.HandlerFunc(page))
	defer server.Close()
	for _, row := range []struct {
		name, path, origin, site, form string
		kept                           bool
	}{
		{"a login that is gone", "", server.URL, "same-origin", "name=x", true},
		{"plain HTTP", "", server.URL, "", "name=x", true},
		{"a foreign page", "", "https://evil.example", "cross-site", "name=x", false},
		{"a foreign page over plain HTTP", "", "http://evil.example", "", "name=x", false},
		{"a page of a neighbour", "", "http://x.127.0.0.1", "same-site", "name=x", false},
		{"a sandboxed page", "", "null", "", "name=x", false},
		{"no browser", "", "", "", "name=x", false},
		{"throttled", "/throttled", server.URL, "", "name=x", false},
		{"a secret", "", server.URL, "", "name=x&owner=csu_" + strings.Repeat("a", 49), false},
		{"a secret as a name", "", server.URL, "", "name=x&csu_" + strings.Repeat("a", 49) + "=", false},
		{"many fields", "", server.URL, "", "name=x" + strings.Repeat("&id=y", maxFields-1), true},
		{"too many fields", "", server.URL, "", "name=x" + strings.Repeat("&a", maxFields), false},
		{"too much", "", server.URL, "", "name=x&owner=" + strings.Repeat("o", maxStranger), false},
	} {
		req, err := http.NewRequest("POST", server.URL+"/console/service_users/new"+row.path, strings.NewReader(row.form))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{
			"Origin": row.origin, "Sec-Fetch-Site": row.site, "Content-Type": "application/x-www-form-urlencoded",
		} {
			if value != "" {
				req.Header.Set(name, value)
			}
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		if err := resp.Write(&text); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got := strings.Contains(text.String(), "Send again") && strings.Contains(text.String(), `name="name" value="x"`)
		if got != row.kept || !row.kept && strings.Contains(text.String(), `value="x"`) {
			t.Errorf("%s: kept is %t, want %t:\n%s", row.name, got, row.kept, text.String())
		}
		wantNone(t, text.String(), "csu_a", `aria-label="Pages">
<a`)
	}
}
