package console

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// TestGridOfManyPaths sends a grid with very many new paths. The work must not grow with the square of
// their number: it would take minutes.
func TestGridOfManyPaths(t *testing.T) {
	s := newSite(t)
	g := s.group("g", []string{"allow GET /a"})
	lines := new(strings.Builder)
	for i := range 60_000 {
		fmt.Fprintf(lines, "/%x\n", i)
	}
	s.post("/console/permission_groups/"+g.ID+"/endpoints", "new="+lines.String(), 413)
}

// TestIDsOfPathsAreNoAddresses asks for pages with ids that would be more than one segment of the path
// of the API.
func TestIDsOfPathsAreNoAddresses(t *testing.T) {
	s := newSite(t)
	u := s.create("billing-sync")
	for _, id := range []string{"%00", "%0a", "..", "%2e%2e", u.ID + "%23", u.ID + "%3Fx=1", u.ID + "%2Ftokens", u.ID + "%2F.."} {
		for _, place := range []string{"service_users/" + id, "service_users/" + id + "/edit", "permission_groups/" + id} {
			s.get("/console/"+place, 404)
		}
		s.post("/console/service_users/"+id+"/deactivate", "", 404)
		s.post("/console/service_users/"+u.ID+"/groups/"+id+"/leave", "", 404)
	}
	text, _ := s.get("/console/service_users/"+u.ID, 200)
	wantIn(t, text, ">active<")
}

// TestEveryAnswerIsProtected checks that no answer may be kept by a cache, be framed, or be loaded by a
// page of another origin.
func TestEveryAnswerIsProtected(t *testing.T) {
	s := newSite(t)
	u := s.create("billing-sync")
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/console/service_users", 200}, {"GET", "/console/service_users.csv", 200}, {"GET", "/", 303},
		{"GET", "/console/nothing", 404}, {"GET", "/console//service_users", 307}, {"HEAD", "/console/audit", 200},
		{"OPTIONS", "/console/audit", 404}, {"GET", "/console/service_users/" + u.ID + "/refresh", 303},
		{"POST", "/console/service_users/" + u.ID + "/deactivate", 303},
	} {
		_, h := s.do(tt.method, tt.path, "", tt.status)
		if h.Get("Cache-Control") != "no-store" || h.Get("Cross-Origin-Resource-Policy") != "same-origin" ||
			h.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(h.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
			t.Errorf("%s %s: got %v", tt.method, tt.path, h)
		}
	}
}

// TestExportHasNoFormula checks that a cell is no formula, also where the separator is a semicolon or
// the signs are full-width, as spreadsheets of some languages read them.
func TestExportHasNoFormula(t *testing.T) {
	s := newSite(t)
	s.by = admin.HumanAdmin("=1+1;@x")
	for i, name := range []string{"=1", "a;=2", "a;+3", "a; -4", "＝5", "a;＠6", "a;\"=7"} {
		var u admin.ServiceUser
		in := admin.ServiceUserInput{Name: admin.Some(name), Owner: admin.Some(fmt.Sprintf("+%d", i)), Description: admin.Some("x")}
		if err := s.api.Client(s.by).Do(t.Context(), "POST", "/service_users", in, &u); err != nil {
			t.Fatal(name, err)
		}
	}
	text, _ := s.get("/console/service_users.csv", 200)
	_, text, _ = strings.Cut(text, "\r\n\r\n")
	if formula := regexp.MustCompile(`(?m)(^|[;,\t"])[\s"]*[=+@＝＋＠-].{0,5}`).FindAllString(text, -1); formula != nil {
		t.Errorf("the formulas %q are in:\n%s", formula, text)
	}
}

// TestSecretInAddress pastes a token into a search. The page must not carry it on in its links.
func TestSecretInAddress(t *testing.T) {
	s := newSite(t)
	secret := s.create("billing-sync").Token
	if secret == "" {
		var token admin.Token
		s.call("POST", "/service_users/"+s.create("other").ID+"/tokens", map[string]any{}, &token)
		secret = token.Secret
	}
	for _, path := range []string{"service_users?q=", "service_users.csv?q=", "explain?user=x&url=/v1%3Ft=", "audit?actor=", "permission_groups/new?name="} {
		text, _ := s.get("/console/"+path+secret, 400)
		wantIn(t, text, "logs and the history have it now", "Refresh the token")
		wantNone(t, text, secret)
	}
	s.get("/console/service_users?q="+access.Hint(secret), 200)
}

// TestLargeGroups checks that the trail and the page of a member stay fast and small with many rules.
func TestLargeGroups(t *testing.T) {
	lines := make([]string, 100_000)
	for i := range lines {
		lines[i] = fmt.Sprintf("rules: allow GET /v1/things/%08d", i)
	}
	if got := without(lines, lines[1:]); len(got) != 1 {
		t.Errorf("got %d lines, want 1", len(got))
	}
	s := newSite(t)
	var rules []string
	for _, line := range lines[:150] {
		rules = append(rules, strings.TrimPrefix(line, "rules: "))
	}
	u := s.create("billing-sync")
	s.group("g", rules, u)
	text, _ := s.get("/console/service_users/"+u.ID, 200)
	wantIn(t, text, "things/00000099", "and 50 more")
	wantNone(t, text, "things/00000100")
}
