package console

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// site is a console over a new store, at a server on loopback.
type site struct {
	*httptest.Server
	t      *testing.T
	store  *store.Store
	api    *admin.API
	recall *access.Recall
	ahead  atomic.Int64  // the nanoseconds by which the clock of the store is ahead
	by     store.Actor   // the person in front of it
	admin  *admin.Client // the API, as an admin
}

func newSite(t *testing.T) *site { return newSiteWith(t, store.Options{}) }

func newSiteWith(t *testing.T, opts store.Options) *site {
	t.Helper()
	return newSiteAt(t, filepath.Join(t.TempDir(), "test.db"), opts)
}

func newSiteAt(t *testing.T, place string, opts store.Options) *site {
	t.Helper()
	if opts.Now == nil {
		opts.Now = time.Now
	}
	now := opts.Now
	s := &site{t: t, recall: access.NewRecall(100)}
	opts.Now = func() time.Time { return now().Add(time.Duration(s.ahead.Load())) }
	db, err := store.Open(t.Context(), place, opts)
	if err != nil {
		t.Fatal(err)
	}
	s.recall.Since = db.Now()
	api := admin.New(db, s.recall, nil)
	s.store, s.api, s.by, s.admin = db, api, admin.HumanAdmin("alice"), api.Client(admin.HumanAdmin("test"))
	pages := New(api, db.Now, nil)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case ServeAsset(w, r):
		case Takes(r):
			pages.Serve(w, r, s.by)
		default:
			api.Serve(w, r, s.by)
		}
	}))
	t.Cleanup(func() {
		s.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// get reads a page, and fails the test unless it has the status.
func (s *site) get(path string, status int) (text string, header http.Header) {
	s.t.Helper()
	return s.do(http.MethodGet, path, "", status)
}

// post sends a form, and does not follow the redirect of the answer.
func (s *site) post(path, form string, status int) (text string, header http.Header) {
	s.t.Helper()
	return s.do(http.MethodPost, path, form, status)
}

func (s *site) do(method, path, form string, status int) (string, http.Header) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.URL+path, strings.NewReader(form))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", s.URL) // as a browser does
	}
	client := http.Client{
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	resp.TransferEncoding = nil // no sizes of chunks between the lines
	var text strings.Builder
	if err := resp.Write(&text); err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != status {
		s.t.Fatalf("%s %s: got %d, want %d\n%s", method, path, resp.StatusCode, status, text.String())
	}
	return text.String(), resp.Header
}

// create makes a service user by the API.
func (s *site) create(name string) (u admin.ServiceUser) {
	s.t.Helper()
	in := admin.ServiceUserInput{Name: admin.Some(name)}
	if err := s.admin.Do(s.t.Context(), http.MethodPost, "/service_users", in, &u); err != nil {
		s.t.Fatal(err)
	}
	return u
}

func wantIn(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("the page does not contain %q:\n%s", part, text)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	text, header := s.get("/console/service_users", 200)
	wantIn(t, text, "No service user yet")
	if csp := header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") {
		t.Errorf("got the policy %q", csp)
	}
	u := s.create("billing-sync")
	text, _ = s.get("/console/service_users", 200)
	wantIn(t, text, `href="/console/service_users/`+u.ID+`"`, "billing-sync")
	text, _ = s.get("/console/service_users?q=nobody", 200)
	wantIn(t, text, "No service user meets these filters")
}

func TestMarkupIsText(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create("<script>alert(1)</script>")
	text, _ := s.get("/console/service_users", 200)
	wantIn(t, text, "&lt;script&gt;alert(1)&lt;/script&gt;")
}

func TestRootLeadsToTheConsole(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, path := range []string{"/", "/console", "/console/"} {
		if _, header := s.get(path, 303); header.Get("Location") != "/console/service_users" {
			t.Errorf("%s: got the location %q", path, header.Get("Location"))
		}
	}
	s.get("/console/nothing", 404)
}

func TestRepeatedFormShowsNoSecret(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	page, _ := s.get("/console/service_users/new", 200)
	_, rest, _ := strings.Cut(page, `name="key" value="`)
	key, _, _ := strings.Cut(rest, `"`)
	form := "role=member&name=billing-sync&key=" + key
	text, header := s.post("/console/service_users/new", form, 200)
	wantIn(t, text, "csu_", "The token is shown only now")
	if header.Get("Cache-Control") != "no-store" {
		t.Errorf("got Cache-Control %q", header.Get("Cache-Control"))
	}
	text, _ = s.post("/console/service_users/new", form, 200)
	wantIn(t, text, "This form was sent before")
	if strings.Contains(text, "csu_") {
		t.Error("the repeated form shows a secret")
	}
}

func TestFaultKeepsInput(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.create("taken")
	text, _ := s.post("/console/service_users/new", "role=member&name=taken&owner=%3Cops%3E&labels=bad", 400)
	wantIn(t, text, `value="taken"`, `value="&lt;ops&gt;"`, "bad: write KEY=VALUE")
	text, _ = s.post("/console/service_users/new", "role=member&name=taken&owner=ops&key=k1", 409)
	wantIn(t, text, `value="taken"`, `aria-invalid="true"`, "is taken by another service user")
}

// call makes a change by the API. out may be nil.
func (s *site) call(method, path string, in, out any) {
	s.t.Helper()
	if err := s.admin.Do(s.t.Context(), method, path, in, out); err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// group makes a permission group by the API, with members by name.
func (s *site) group(name string, rules []string, members ...admin.ServiceUser) (g admin.Group) {
	s.t.Helper()
	s.call("POST", "/permission_groups", map[string]any{"name": name, "rules": append([]string{}, rules...)}, &g)
	for _, u := range members {
		s.call("PUT", g.URI+"/members/"+u.ID, nil, nil)
	}
	return g
}

func wantNone(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if strings.Contains(text, part) {
			t.Errorf("the page contains %q:\n%s", part, text)
		}
	}
}
