package caddymodule

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// TestLint lints the Caddyfiles of testdata/lint: NAME.txt beside each holds the findings.
func TestLint(t *testing.T) {
	files, err := filepath.Glob("testdata/lint/*.Caddyfile")
	if err != nil || len(files) == 0 {
		t.Fatalf("no Caddyfiles: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".Caddyfile"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			checkFormat(t, file, text)
			golden := strings.TrimSuffix(file, ".Caddyfile") + ".txt"
			got := lintCaddyfile(t, text)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// TestLintThroughProxy lints the same Caddyfiles with service_users_proxy in the place of reverse_proxy. The
// findings are the same.
func TestLintThroughProxy(t *testing.T) {
	files, err := filepath.Glob("testdata/lint/*.Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	linted := 0
	for _, file := range files {
		text := string(must(os.ReadFile(file)))
		// Lines with a block, or with more than one upstream, are left to reverse_proxy.
		replaced := regexp.MustCompile(`(?m)^(\t+)reverse_proxy( [@/*]\S*)? ([^\s{}@/*][^\s]*)$`).ReplaceAllString(text, "${1}service_users_proxy$2 $3")
		if replaced == text || strings.Contains(replaced, "\treverse_proxy ") || strings.Contains(replaced, "https://") {
			continue
		}
		linted++
		t.Run(strings.TrimSuffix(filepath.Base(file), ".Caddyfile"), func(t *testing.T) {
			got := strings.ReplaceAll(lintCaddyfile(t, []byte(replaced)), "service_users_proxy", "reverse_proxy")
			if want := string(must(os.ReadFile(strings.TrimSuffix(file, ".Caddyfile") + ".txt"))); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
	if linted < 30 {
		t.Errorf("linted %d files, want 30 at least", linted)
	}
}

// lintCaddyfile lints a Caddyfile in an empty directory, and complains about every file
// that it leaves there, in the home directory or among the temporary ones.
func lintCaddyfile(t *testing.T, caddyfile []byte) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"TMPDIR", "HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		t.Setenv(name, dir)
	}
	for _, name := range []string{"API_PORT", "ADMIN_PORT", "UPSTREAM_PORT"} {
		t.Setenv(name, freePort())
	}
	t.Setenv("SERVICE_USERS_STORE", filepath.Join(dir, "service_users.db"))
	storage := caddy.DefaultStorage.Path
	caddy.DefaultStorage.Path = dir
	defer func() { caddy.DefaultStorage.Path = storage }()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(caddyfile, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := lintText(t, config)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	return got
}

// lintText returns the findings of a configuration, one on each line.
func lintText(t *testing.T, config []byte) string {
	t.Helper()
	list, err := Lint(config)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		return "no findings\n"
	}
	var text strings.Builder
	for _, f := range list {
		level := "warning"
		if f.Fatal {
			level = "error"
		}
		fmt.Fprintf(&text, "%s: %s\n", level, f)
	}
	return text.String()
}

// TestLintRoutes lints routes that no Caddyfile is adapted to.
func TestLintRoutes(t *testing.T) {
	const guard, proxy, rewrite = `{"handler":"service_users"}`, `{"handler":"reverse_proxy","upstreams":[{"dial":"localhost:9000"}]}`, `{"handler":"rewrite","uri":"/x"}`
	const header, early, respond = `{"handler":"headers"}`, `{"handler":"static_response","status_code":103}`, `{"handler":"static_response"}`
	const other = `{"handler":"reverse_proxy","upstreams":[{"dial":"localhost:9001"}]}`
	const sanitize = `{"handler":"service_users","sanitize_only":true}`
	const asks = `{"handler":"reverse_proxy","upstreams":[{"dial":"localhost:9000"}],"handle_response":[{"routes":[{"handle":[{"handler":"headers"}]}]}]}`
	route := func(match string, handlers ...string) string {
		return `{"match":[` + match + `],"handle":[` + strings.Join(handlers, ",") + `]}`
	}
	with := func(fields, route string) string { return strings.Replace(route, "{", "{"+fields+",", 1) }
	sub := func(routes string, errors ...string) string {
		text := `{"handler":"subroute","routes":[` + routes + `]`
		if errors != nil {
			text += `,"errors":{"routes":[` + strings.Join(errors, ",") + `]}`
		}
		return text + "}"
	}
	list := func(routes ...string) string { return strings.Join(routes, ",") }
	const some, host = `{"path":["/a/*"]}`, `{"host":["api.example.com"]}`
	const never, unchecked, changed, leads = "error: .*never runs", "warning: .*without passing service_users", "changes (every request|requests) after", "error: .*this error route leads"

	for name, tt := range map[string]struct {
		routes, more string   // the routes of the server, and its other fields
		want         []string // one for each line
	}{
		"clean":                           {route("", guard, proxy), "", nil},
		"one route":                       {route("", proxy, guard), "", []string{never}},
		"two routes":                      {list(route("", proxy), route("", guard)), "", []string{never}},
		"a guard of a host behind it":     {list(route("", proxy), route(host, guard, proxy)), "", []string{never}},
		"hosts of their own":              {list(route(`{"host":["www.example.com"]}`, other), route(host, guard, proxy)), "", nil},
		"a matcher set that is empty":     {list(route(some+",{}", proxy), route("", guard)), "", []string{never}},
		"early hints go on":               {route("", early, proxy, guard), "", []string{never}},
		"an answer comes before":          {route("", respond, proxy, guard), "", nil},
		"a guarded upstream comes before": {route("", guard, proxy, guard, proxy), "", nil},
		"a terminal route":                {list(with(`"terminal":true`, route(some, header)), route("", guard, proxy)), "", nil},
		"a terminal route that goes on":   {list(with(`"terminal":true`, route("", asks)), route("", guard, proxy)), "", []string{never}},
		"a route that goes on":            {list(route("", asks), route("", guard, proxy)), "", []string{unchecked}},
		"sanitize is no judgement":        {list(route("", sanitize, rewrite, proxy), route("", guard, proxy)), "", nil},
		"a suffix that goes":              {route("", guard, `{"handler":"rewrite","strip_path_suffix":"/x"}`, proxy), "", []string{"error: .*" + changed}},
		"try_files and an http upstream":  {route("", guard, `{"handler":"rewrite","uri":"{http.matchers.file.relative}"}`, proxy), "", []string{"error: .*" + changed}},
		"a matched terminal route":        {list(with(`"terminal":true`, route(some, proxy)), route("", guard, proxy)), "", []string{unchecked}},
		"a group":                         {list(with(`"group":"g"`, route(some, proxy)), with(`"group":"g"`, route("", guard, proxy))), "", []string{unchecked}},
		"a group whose first takes all":   {list(with(`"group":"g"`, route("", guard)), with(`"group":"g"`, route("", rewrite)), route("", proxy)), "", nil},
		"a group, then the rest": {list(with(`"group":"g"`, route(some, guard)), with(`"group":"g"`, route("", guard, rewrite)), route("", proxy)), "",
			[]string{"error: .*" + changed}},
		"a rewrite of the rest of a group": {list(route("", guard), with(`"group":"g"`, route(some, proxy)), with(`"group":"g"`, route("", rewrite, proxy))), "",
			[]string{"warning: .*" + changed}},
		"a rewrite, then another guard":            {route("", guard, rewrite, guard, proxy), "", nil},
		"a rewrite that may happen, and that does": {list(route("", guard), route(some, rewrite), route("", rewrite, proxy)), "", []string{"error: .*" + changed}},

		"errors of a subroute":                  {route("", sub(route("", guard), route("", proxy))), "", []string{leads}},
		"errors of a guarded subroute":          {route("", guard, sub(route("", header), route("", proxy))), "", nil},
		"errors of a subroute, sanitised":       {route("", sub(route("", guard), route("", `{"handler":"service_users","sanitize_only":true}`, proxy))), "", nil},
		"errors of a subroute go on":            {route("", sub(route("", guard), route("", header)), proxy), "", []string{unchecked}},
		"errors of the server":                  {route("", guard, proxy), `,"errors":{"routes":[` + route("", proxy) + `]}`, []string{leads}},
		"errors of a host that is not guarded":  {list(route(`{"host":["www.example.com"]}`, other), route(host, guard, proxy)), `,"errors":{"routes":[` + route(`{"host":["www.example.com"]}`, other) + `]}`, nil},
		"errors of a host that is":              {list(route(`{"host":["www.example.com"]}`, other), route(host, guard, proxy)), `,"errors":{"routes":[` + route(host, proxy) + `]}`, []string{leads}},
		"errors of a host without routes":       {route("", guard, proxy), `,"errors":{"routes":[` + route(host, proxy) + `]}`, []string{leads}},
		"errors of a host around a guarded one": {route(host, sub(route(`{"host":["a.example.com"]}`, guard, proxy))), `,"errors":{"routes":[` + route(host, proxy) + `]}`, []string{leads}},

		"a named route that is not invoked":  {route("", guard, proxy), `,"named_routes":{"x":` + route("", proxy, guard) + `}`, nil},
		"a named route invoked twice":        {list(route(some, `{"handler":"invoke","name":"x"}`), route("", `{"handler":"invoke","name":"x"}`)), `,"named_routes":{"x":` + route("", proxy, guard) + `}`, []string{never}},
		"a named route that invokes itself":  {route("", `{"handler":"invoke","name":"x"}`), `,"named_routes":{"x":` + route("", guard, `{"handler":"invoke","name":"x"}`) + `}`, nil},
		"a named route that does not exist":  {route("", guard, `{"handler":"invoke","name":"x"}`), "", nil},
		"headers that are replaced wherever": {route("", guard, `{"handler":"headers","request":{"replace":{"*":[{"search":"a","replace":"b"}]}}}`, proxy), "", []string{"warning: .*replaces in the identity header"}},
		"headers that end in":                {route("", guard, `{"handler":"headers","request":{"delete":["*-id"]}}`, proxy), "", []string{"warning: .*deletes the identity header X-Service-User-Id"}},
		"headers that hold":                  {route("", guard, `{"handler":"headers","request":{"delete":["*user-n*"]}}`, proxy), "", []string{"warning: .*deletes the identity header X-Service-User-Name"}},
		"headers that do not":                {route("", guard, `{"handler":"headers","request":{"delete":["*-trace","x-s-*","*admin*"]},"response":{"set":{"X-Service-User-Id":["x"]}}}`, proxy), "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			config := `{"apps":{"http":{"servers":{"s":{"listen":["localhost:1"],"routes":[` + tt.routes + `]` + tt.more + `}}}}}`
			text := lintText(t, []byte(config))
			got, want := strings.Split(strings.TrimSuffix(text, "\n"), "\n"), tt.want
			if want == nil {
				want = []string{"no findings"}
			}
			ok := len(got) == len(want)
			for i := 0; ok && i < len(got); i++ {
				ok = regexp.MustCompile(want[i]).MatchString(got[i])
			}
			if !ok {
				t.Errorf("%s\ngot:\n%s\nwant:\n%s", config, text, strings.Join(want, "\n"))
			}
		})
	}
}

// TestExamplesAreClean: nothing is to be said about the Caddyfiles that we show.
func TestExamplesAreClean(t *testing.T) {
	files := []string{"../Caddyfile.example"}
	for _, pattern := range []string{"../examples/*Caddyfile", "../examples/*/*Caddyfile"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		if strings.Contains(file, "/ratelimit/") {
			continue // tools/neighbours has its module
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := lintCaddyfile(t, text); got != "no findings\n" {
			t.Errorf("%s: got:\n%s", file, got)
		}
	}
}

// TestMisuseFailsTheLoad: what lint calls an error fails "caddy run" and a
// reload, which keeps the configuration in force; what it calls a warning is a
// line of the log that names server and route.
func TestMisuseFailsTheLoad(t *testing.T) {
	t.Parallel()
	const guarded, unguarded = "service_users\n\treverse_proxy", "route {\n\t\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}\n\t\tservice_users\n\t}\n\treverse_proxy"
	mistake := strings.Replace(proxyCaddyfile, guarded, unguarded, 1)
	const errors = "\thandle_errors {\n\t\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}\n\t}\n"
	two := strings.Replace(mistake, "\troute {\n", errors+"\troute {\n", 1)
	doubt := strings.Replace(proxyCaddyfile, guarded, "reverse_proxy", 1)
	doubt = strings.Replace(doubt, "\treverse_proxy", "\thandle /open/* {\n\t\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}\n\t}\n\thandle /v1/* {\n\t\tservice_users\n\t\treverse_proxy 127.0.0.1:{$UPSTREAM_PORT}\n\t}\n\treverse_proxy", 1)
	if mistake == proxyCaddyfile || two == mistake || doubt == proxyCaddyfile {
		t.Fatal("proxyCaddyfile has changed")
	}

	for name, tt := range map[string]struct {
		caddyfile string
		want      []string
	}{
		"one": {mistake, []string{"server srv0: ", "service_users never runs: reverse_proxy 127.0.0.1:"}},
		"two": {two, []string{"2 mistakes in the routes: (1) server srv0: ", "service_users never runs", "; (2) server srv0: handle_errors", "service_users sanitize"}},
	} {
		s := newServer(t)
		path := filepath.Join(s.dir, "Caddyfile")
		if err := os.WriteFile(path, []byte(tt.caddyfile), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a Caddy that starts would go on for ever
		defer cancel()
		cmd := exec.CommandContext(ctx, caddyBinary(), "run", "--config", path, "--adapter", "caddyfile")
		cmd.Dir, cmd.Env = s.dir, s.env
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err == nil {
			t.Errorf("%s: the configuration was taken", name)
		}
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: got %s, want %q", name, &out, want)
			}
		}
	}

	s := newServer(t)
	startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, proxyCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	if out, ok := s.reload(mistake); ok || !strings.Contains(out, "service_users never runs") {
		t.Errorf("a reload with a mistake: taken %t, said %s", ok, out)
	}
	if got := s.get("/v1/x", user).StatusCode; got != 200 {
		t.Errorf("after the failed reload: got %d, want 200", got)
	}
	if got := s.get("/v1/x", credentials{}).StatusCode; got != 401 {
		t.Errorf("after the failed reload, without credentials: got %d, want 401", got)
	}
	if out, ok := s.reload(doubt); !ok {
		t.Fatalf("a reload with a doubt was refused: %s", out)
	}
	if line := regexp.MustCompile(`"level":"warn".*"logger":"service_users".*requests get to reverse_proxy .*"server":"srv0","route":"[^"]*path /open/\*`); !line.MatchString(s.log.String()) {
		t.Error("no line of the log warns of the way past service_users")
	}
}
