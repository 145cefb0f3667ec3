package console

import (
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

func TestCreateForm(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	g := s.group("readers", nil)
	model := s.make(fields{"name": "model", "display_name": "Model", "owner": "carol@example.com",
		"teams": []string{"ops"}, "labels": fields{"env": "prod"},
		"permission_groups": []string{g.ID}, "alias": "old-login"})
	in90d := func() string { return s.store.Now().UTC().AddDate(0, 0, 90).Format("> after 90d <small>2006-01-02") }
	before := in90d()
	text, _ := s.get("/console/service_users/new", 200)
	if strings.Count(text, before) != 2 && strings.Count(text, in90d()) != 2 { // of the token, and of the account
		t.Errorf("got no two presets %q:\n%s", before, text)
	}
	text, _ = s.get("/console/service_users/new?like="+model.ID, 200)
	wantIn(t, text, "New service user like <bdi>model</bdi>", `value="carol@example.com"`, `value="ops"`,
		"env=prod</textarea>", fmt.Sprintf(`value="%s" checked`, g.ID), `name="name" value="" required`)
	wantNone(t, text, "old-login") // a login is of one service user
	s.get("/console/service_users/new?like=nobody", 404)

	form := "role=member&name=job&owner=ops&teams=ops%2C+legal&labels=a%3D1%0D%0Ab%3Dx%3Dy&ttl=7d&ends=30d&key=k1"
	text, _ = s.post("/console/service_users/new", form+"&permission_groups="+g.ID, 200)
	job, err := s.admin.FindServiceUser(t.Context(), "job")
	if err != nil {
		t.Fatal(err)
	}
	wantIn(t, text, "<bdi>job</bdi> is ready", "csu_",
		"The token ends <time datetime="+job.NextTokenEnd.Format(`"2006-01-02T15:04:05Z"`))
	if left := job.NextTokenEnd.Sub(s.store.Now()).Hours() / 24; left < 6.9 || left > 7 {
		t.Errorf("its token ends in %v days, want 7", left)
	}
	if left := job.ExpiresAt.Sub(s.store.Now()).Hours() / 24; left < 29.9 || left > 30 {
		t.Errorf("it ends in %v days, want 30", left)
	}
	got, want := fmt.Sprint(job.Labels, job.Teams, job.PermissionGroups), "map[a:1 b:x=y] [legal ops] ["+g.ID+"]"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// The time in the field goes before the choice, and a fault keeps both.
	form = "role=member&name=job&ends=30d&ttl=7d&expires_at=2099-01-02T03:04&key=k2"
	text, _ = s.post("/console/service_users/new", form, 409)
	wantIn(t, text, `value="2099-01-02T03:04"`, `name="ends" value="30d" checked`, `name="ttl" value="7d" checked`)
	s.post("/console/service_users/new", strings.Replace(form, "name=job", "name=job2", 1), 200)
	if job, err = s.admin.FindServiceUser(t.Context(), "job2"); err != nil || job.ExpiresAt.Year() != 2099 {
		t.Errorf("got %v (%v), want 2099", job.ExpiresAt, err)
	}
}

func TestEditForm(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	u := s.make(fields{"name": "job", "labels": fields{"a": "1", "b": "2"}, "expires_at": "2099-01-02T03:04:00Z"})
	at := "/console/service_users/" + u.ID + "/edit"
	text, _ := s.get(at, 200)
	wantIn(t, text, `value="2099-01-02T03:04"`, "a=1\nb=2</textarea>")
	form := "role=member&name=job&labels=a%3D3&etag=" + url.QueryEscape(u.ETag)
	s.post(at, form, 303)
	if got := s.user(u.ID); fmt.Sprint(got.Labels) != "map[a:3]" || got.ExpiresAt != nil {
		t.Errorf("got the labels %v and the end %v", got.Labels, got.ExpiresAt)
	}
	text, _ = s.post(at, form+"&owner=mine", 412) // the version is the old one
	wantIn(t, text, "Somebody has changed this", `value="mine"`, "The service user as it is now")
	s.post(at, button(t, text, "role", "member")+"&name=job&owner=mine", 303)
	if got := s.user(u.ID); got.Owner != "mine" {
		t.Errorf("got the owner %q", got.Owner)
	}
}

func TestHostileNames(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const markup, holder = `<script>alert("1")</script>&amp;`, "{http.request.uri} ${x} {{.Name}} %s"
	create := func(name, key string, status int) string {
		t.Helper()
		form := url.Values{"role": {"member"}, "name": {name}, "key": {key}}
		text, _ := s.post("/console/service_users/new", form.Encode(), status)
		return text
	}
	for i, name := range []string{markup, holder, strings.Repeat("m", 255), "emoji 😀🚀", "\u05d0\u05d1\u05d2 1-2"} {
		u := s.make(fields{"name": name, "display_name": name, "owner": name})
		as := "<bdi>" + html.EscapeString(name) + "</bdi>"
		text, _ := s.get("/console/service_users?sort=-created_at", 200)
		wantIn(t, text, `href="/console/service_users/`+u.ID+`">`+as, "<td>"+as)
		text, _ = s.get("/console/service_users/new?like="+u.ID, 200)
		wantIn(t, text, as, `value="`+html.EscapeString(name)+`"`)
		text = create(name, "a"+u.ID, 409)
		wantIn(t, text, `value="`+html.EscapeString(name)+`"`, "is taken by another service user")
		short := fmt.Sprint(i, name[:min(len(name), 200)])
		text = create(short, "b"+u.ID, 200)
		wantIn(t, text, "<h1><bdi>"+html.EscapeString(short)+"</bdi> is ready</h1>")
		text, _ = s.post("/console/service_users/bulk", "do=deactivate&id="+u.ID, 200)
		wantIn(t, text, as)
		wantNone(t, text, "<script>alert")
	}
	for _, name := range []string{"\u202eright", strings.Repeat("m", 256), "\u05d0b"} { // these look like another name
		wantIn(t, create(name, "k", 400), `value="`+name+`"`, ` e-name"`, `id="e-name"`)
	}
}

// TestSnippets runs the programs that the page of a new token shows, as they are but for the address.
func TestSnippets(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	text, _ := s.post("/console/service_users/new", "role=member&name=billing-sync&key=k1", 200)
	u, err := s.admin.FindServiceUser(t.Context(), "billing-sync")
	if err != nil {
		t.Fatal(err)
	}
	secret := regexp.MustCompile(`csu_\w+`).FindString(text)
	if n := strings.Count(text, secret); n != 1 {
		t.Errorf("the page has the token %d times, want once", n)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secret+" \r\n"), 0o600); err != nil { // as some editors do
		t.Fatal(err)
	}
	var moved atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { moved.Add(1) }))
	t.Cleanup(func() { // after the programs
		other.Close()
		if n := moved.Load(); n != 0 {
			t.Errorf("%d requests followed the redirect to another host", n)
		}
	})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch id, token, _ := r.BasicAuth(); {
		case id != u.ID || token != secret:
			http.Error(w, "wrong", http.StatusUnauthorized)
		default:
			w.Header().Set("Location", other.URL)
			w.WriteHeader(http.StatusFound)
		}
		fmt.Fprint(w, "hello "+r.Method+" "+r.URL.Path)
	}))
	t.Cleanup(api.Close)
	for _, p := range []struct {
		name, file, missing string
		build, run          []string
	}{
		{name: "curl", file: "call.sh", run: []string{"sh", "call.sh"}, missing: "curl"},
		{name: "python", file: "call.py", run: []string{"python3", "call.py"}, missing: "python3-requests"},
		{name: "node", file: "call.mjs", run: []string{"node", "call.mjs"}, missing: "nodejs"},
		{name: "go", file: "call.go", build: []string{"go", "build", "call.go"}, run: []string{"./call"}},
		{name: "java", file: "Call.java"}, // takes seconds to start; a change of it needs a run by hand
	} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			m := regexp.MustCompile(`(?s)<code id="s-` + p.name + `">(.*?)</code>`).FindStringSubmatch(text)
			if m == nil || strings.Count(m[1], u.ID) != 1 || strings.Contains(m[1], secret) {
				t.Fatalf("got %q, want a program with the id and without the token", m)
			}
			dir := t.TempDir()
			const address = "https://api.example.com/v1/people"
			code := strings.Replace(html.UnescapeString(m[1]), address, api.URL+"/moved", 1)
			if err := os.WriteFile(filepath.Join(dir, p.file), []byte(code), 0o600); err != nil {
				t.Fatal(err)
			}
			run := func(command ...string) string {
				cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
				cmd.Dir, cmd.Env = dir, append(os.Environ(), "API_TOKEN_FILE="+file)
				out, err := cmd.CombinedOutput()
				switch {
				case errors.Is(err, exec.ErrNotFound), strings.Contains(string(out), "No module named"):
					testkit.Missing(t, "install the Debian package "+p.missing+" to run this")
				case err != nil:
					t.Fatalf("%v: %v: %s", command, err, out)
				}
				return string(out)
			}
			if p.build != nil {
				run(p.build...)
			}
			if p.run != nil {
				wantIn(t, run(p.run...), "302", "hello GET /moved")
			}
		})
	}
}
