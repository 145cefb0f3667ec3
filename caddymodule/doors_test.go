package caddymodule

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// demoAdmin is the documented login of Caddyfile.example.
var demoAdmin = credentials{"admin", "change-me"}

// TestSiteDoorOfExample checks who gets in at the admin site of the example.
func TestSiteDoorOfExample(t *testing.T) {
	t.Parallel()
	s := startServer(t, exampleCaddyfile(t))
	admin := s.create("ops", "--role", "admin")
	manager := s.create("team-lead", "--role", "manager", "--team", "finance")
	member := s.create("worker", "--team", "finance")
	s.create("elsewhere", "--team", "legal")

	for _, tt := range []struct {
		name   string
		who    credentials
		header string
		path   string
		want   int
	}{
		{"nobody", credentials{}, "", "/service_users", 401},
		{"a person", demoAdmin, "", "/service_users", 200},
		{"a wrong password", credentials{"admin", "x"}, "", "/service_users", 401},
		{"a service user by Basic meets the people's login", admin, "", "/service_users", 401},
		{"an admin", credentials{}, "Authorization: Bearer " + admin.secret, "/service_users", 200},
		{"any case of the scheme", credentials{}, "Authorization: bearer " + admin.secret, "/service_users", 200},
		{"a manager", credentials{}, "Authorization: Bearer " + manager.secret, "/service_users", 200},
		{"a member", credentials{}, "Authorization: Bearer " + member.secret, "/service_users", 403},
		{"a wrong token", credentials{}, "Authorization: Bearer " + testkit.Altered(member.secret), "/service_users", 401},
		{"two credentials", demoAdmin, "Authorization: Bearer " + admin.secret, "/service_users", 400},
		{"another site's page", demoAdmin, "Sec-Fetch-Site: cross-site", "/service_users", 200},
		{"the process lives", credentials{}, "", "/healthz", 200},
		{"ready", credentials{}, "", "/readyz", 200},
		{"a way around the login", credentials{}, "", "/healthz/../service_users", 401},
		{"a path that only the door knows", credentials{}, "", "/.well-known/service-users/x", 401},
	} {
		var header []string
		if tt.header != "" {
			header = []string{tt.header}
		}
		got := s.do("GET", "ADMIN_PORT", tt.path, tt.who, "", header...)
		if got.StatusCode != tt.want {
			t.Errorf("%s: got %d, want %d: %s", tt.name, got.StatusCode, tt.want, got.body)
		}
	}

	// A page of another origin cannot use the login of a person.
	got := s.do("POST", "ADMIN_PORT", "/service_users", demoAdmin, `{"name":"forged"}`, "Content-Type: application/json", "Sec-Fetch-Site: cross-site")
	if got.StatusCode != 403 {
		t.Errorf("cross-site create: got %d, want 403: %s", got.StatusCode, got.body)
	}
	got = s.do("POST", "ADMIN_PORT", "/service_users", demoAdmin, `{"name":"by-a-person"}`, "Content-Type: application/json")
	if got.StatusCode != 201 || !strings.Contains(got.body, `"created_by":"human:admin"`) {
		t.Errorf("create by a person: got %d %s, want 201 and created_by human:admin", got.StatusCode, got.body)
	}
	got = s.do("GET", "ADMIN_PORT", "/service_users", credentials{}, "", "Authorization: Bearer "+manager.secret)
	if strings.Contains(got.body, "elsewhere") || !strings.Contains(got.body, "worker") {
		t.Errorf("a manager sees %s, want only its teams", got.body)
	}
}

const doorsCaddyfile = `
{
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

# People, named, behind whatever sets {http.auth.user.id}.
http://:{$ADMIN_PORT} {
	bind 127.0.0.1
	@somebody header X-Test-Login *
	vars @somebody http.auth.user.id {header.X-Test-Login}
	service_users_admin {
		admins alice
		managers carol team=finance group=readers
	}
}

# Behind our own handler: an id that it has set is never a person.
http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	service_users_admin {
		admins *
	}
}
`

// TestActors checks who acts at a door, and as whom.
func TestActors(t *testing.T) {
	t.Parallel()
	s := startServer(t, doorsCaddyfile)
	admin := s.create("ops", "--role", "admin")
	s.mustCLI("group", "create", "readers", "--rule", "allow * /{rest...}")
	s.mustCLI("group", "create", "writers")
	member := s.create("alice", "--group", "readers", "--team", "finance")
	s.mustCLI("group", "add", "readers", "ops")
	s.create("other", "--group", "writers", "--team", "finance")

	narrowed := credentials{admin.id, strings.Fields(s.mustCLI("token", "create", "ops", "--group", "readers"))[3]}

	login := func(name string) string { return "X-Test-Login: " + name }
	for _, tt := range []struct {
		name               string
		method, path, body string
		who                credentials
		header             string
		want               int
	}{
		{"a named person", "GET", "/service_users", "", credentials{}, login("alice"), 200},
		{"a person nobody named", "GET", "/service_users", "", credentials{}, login("mallory"), 403},
		{"nobody", "GET", "/service_users", "", credentials{}, "", 401},
		{"an admin by Basic", "GET", "/service_users", "", admin, "", 200},
		{"a member by Basic", "GET", "/service_users", "", member, "", 403},
		{"an admin by a narrowed token", "GET", "/service_users", "", narrowed, "", 403},
		{"an admin by a narrowed token, as a Bearer", "GET", "/service_users", "", credentials{}, "Authorization: Bearer " + narrowed.secret, 403},
		{"a person who manages", "POST", "/service_users", `{"name":"new","teams":["finance"],"permission_groups":[]}`, credentials{}, login("carol"), 201},
		{"outside of the team", "POST", "/service_users", `{"name":"new2","teams":["legal"]}`, credentials{}, login("carol"), 403},
		{"a role", "POST", "/service_users", `{"name":"new3","teams":["finance"],"role":"admin"}`, credentials{}, login("carol"), 403},
		{"a group", "POST", "/permission_groups", `{"name":"mine"}`, credentials{}, login("carol"), 403},
	} {
		header := []string{"Content-Type: application/json"}
		if tt.header != "" {
			header = append(header, tt.header)
		}
		if got := s.do(tt.method, "ADMIN_PORT", tt.path, tt.who, tt.body, header...); got.StatusCode != tt.want {
			t.Errorf("%s: got %d, want %d: %s", tt.name, got.StatusCode, tt.want, got.body)
		}
	}

	// Behind our own handler "admins *" means people; a member stays a member.
	if got := s.get("/service_users", member); got.StatusCode != 403 {
		t.Errorf("a member behind the handler: got %d, want 403: %s", got.StatusCode, got.body)
	}
	if got := s.get("/service_users", admin); got.StatusCode != 200 {
		t.Errorf("an admin behind the handler: got %d, want 200: %s", got.StatusCode, got.body)
	}
	if got := s.get("/service_users", narrowed); got.StatusCode != 403 || !strings.Contains(got.body, "narrowed") {
		t.Errorf("a narrowed token of an admin behind the handler: got %d, want 403 that says why: %s", got.StatusCode, got.body)
	}
}

// TestActorHeader checks that the header of a person is believed only directly
// behind a forward_auth that owns it.
func TestActorHeader(t *testing.T) {
	t.Parallel()
	auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := r.Header.Get("X-Test-Login"); name != "" {
			w.Header().Set("Remote-User", name)
		}
	}))
	defer auth.Close()
	caddyfile := func(site string) string {
		return "{\n\tservice_users {\n\t\tstore {$SERVICE_USERS_STORE}\n\t}\n}\nhttp://:{$ADMIN_PORT} {\n\tbind 127.0.0.1\n" +
			strings.ReplaceAll(site, "AUTH", strings.TrimPrefix(auth.URL, "http://")) + "\n}\n"
	}
	const forwardAuth = "forward_auth AUTH {\n uri /\n copy_headers Remote-User\n}\n"
	const door = "service_users_admin {\n admins alice\n actor_header Remote-User\n}\n"

	s := startServer(t, caddyfile(forwardAuth+"handle {\n"+door+"}\n")) // a block changes nothing
	for _, tt := range []struct {
		name   string
		header []string
		want   int
	}{
		{"a person", []string{"X-Test-Login: alice"}, 200},
		{"another person", []string{"X-Test-Login: bob"}, 403},
		{"a forged header", []string{"Remote-User: alice"}, 401},
		{"a forged header beside a login", []string{"X-Test-Login: bob", "Remote-User: alice"}, 403},
	} {
		if got := s.do("GET", "ADMIN_PORT", "/service_users", credentials{}, "", tt.header...); got.StatusCode != tt.want {
			t.Errorf("%s: got %d, want %d: %s", tt.name, got.StatusCode, tt.want, got.body)
		}
	}

	for name, site := range map[string]string{
		"nothing before it":       door,
		"a matcher before it":     "@some path /x\n" + strings.Replace(forwardAuth, "forward_auth", "forward_auth @some", 1) + door,
		"another header":          strings.Replace(forwardAuth, "copy_headers Remote-User", "copy_headers X-Other", 1) + door,
		"something between":       "route {\n" + forwardAuth + "request_header Remote-User alice\n" + door + "}\n",
		"in a block for others":   forwardAuth + "handle /x {\n" + forwardAuth + "}\nhandle {\n vars a b\n" + door + "}\n",
		"a handler that is none":  "reverse_proxy /x AUTH\n" + door,
		"in the error route only": "handle_errors {\n" + door + "}\n",
	} {
		s := newServer(t)
		path := filepath.Join(s.dir, "Caddyfile")
		if err := os.WriteFile(path, []byte(caddyfile(site)), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a Caddy that starts would go on for ever
		defer cancel()
		cmd := exec.CommandContext(ctx, caddyBinary(), "run", "--config", path, "--adapter", "caddyfile")
		cmd.Dir, cmd.Env = s.dir, s.env
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "actor_header Remote-User is believed only directly behind a forward_auth") {
			t.Errorf("%s: got %v %s, want the load refused", name, err, out)
		}
	}
}

// TestLocalDoorWithoutApp checks what the admin endpoint says when no
// configuration has service users.
func TestLocalDoorWithoutApp(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	path := filepath.Join(s.dir, "Caddyfile")
	if err := os.WriteFile(path, []byte("http://:{$API_PORT} {\n\tbind 127.0.0.1\n\trespond ok\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(path)
	s.waitFor("/config/")
	resp := s.do("GET", "CADDY_PORT", "/service_users", credentials{}, "")
	var body struct {
		Code string `json:"error_code"`
	}
	if err := json.Unmarshal([]byte(resp.body), &body); err != nil || resp.StatusCode != 404 || body.Code != "ERR_NOT_CONFIGURED" {
		t.Errorf("got %d %s, want 404 ERR_NOT_CONFIGURED", resp.StatusCode, resp.body)
	}
}

// TestActorHeaderDuringReload reloads a site whose door is proven, and one whose
// door is not, under requests that send the actor header themselves: nobody is
// ever believed.
func TestActorHeaderDuringReload(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	auth := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer auth.Close()
	proven := `{
	admin {$CADDY_ADMIN}
	persist_config off
	grace_period 1s
}

http://localhost:{$ADMIN_PORT} {
	# %d
	forward_auth ` + strings.TrimPrefix(auth.URL, "http://") + ` {
		uri /verify
		copy_headers X-Admin
	}
	service_users_admin {
		actor_header X-Admin
		admins boss
	}
}
`
	leaky := strings.Replace(proven, "copy_headers X-Admin", "@anon status 200\n\t\thandle_response @anon {\n\t\t\tvars anonymous yes\n\t\t}", 1)
	withCaddyfile(s, strings.Replace(proven, "%d", "first", 1))
	done := make(chan struct{})
	var clients sync.WaitGroup
	var requests atomic.Int64
	for range 4 {
		clients.Go(func() {
			for !isClosed(done) {
				if got := s.do("GET", "ADMIN_PORT", "/service_users", credentials{}, "", "X-Admin: boss").StatusCode; got != 401 {
					t.Errorf("got %d, want 401", got)
					return
				}
				requests.Add(1)
			}
		})
	}
	for i := range *reloads / 6 {
		before := requests.Load()
		if out, ok := s.reload(strings.Replace(proven, "%d", strconv.Itoa(i), 1)); !ok {
			t.Errorf("a reload was refused: %s", out)
		}
		if out, ok := s.reload(leaky); ok {
			t.Errorf("a door that believes a client was taken: %s", out)
		}
		for deadline := time.Now().Add(time.Minute); requests.Load() == before && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	close(done)
	clients.Wait()
	t.Logf("%d requests", requests.Load())
}
