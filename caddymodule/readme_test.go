package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// TestReadme runs every command of the transcripts against a real server and
// compares what is printed with what the text says. Ids, secrets and times differ
// from run to run; an id that a text repeats must repeat. What Caddy itself logs
// is not in the texts.
func TestReadme(t *testing.T) {
	t.Parallel()
	for file, row := range map[string]struct {
		atLeast       int
		runs, isThere string // the Caddyfile at the beginning, and a path of its admin endpoint
	}{
		"README.md":                      {9, "Caddyfile.example", "/service_users"},
		"docs/permissions.md":            {35, "Caddyfile.example", "/service_users"},
		"docs/coming-from-basic-auth.md": {25, "examples/coming-from-basic-auth/1-before.Caddyfile", "/config/"},
		// Guides, which show their own Caddyfiles.
		"docs/quick-start.md": {12, "", "/service_users"},
		"docs/running.md":     {6, "", "/service_users"},
		"docs/rotation.md":    {7, "Caddyfile.example", "/service_users"},
		"docs/incident.md":    {10, "Caddyfile.example", "/service_users"},
		"docs/upgrading.md":   {8, "Caddyfile.example", "/service_users"},
		"docs/hardening.md":   {2, "", "/service_users"},

		"docs/coming-from-others.md": {6, "", "/service_users"},
	} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile("../" + file)
			if err != nil {
				t.Fatal(err)
			}
			steps := transcript(string(text))
			if len(steps) < row.atLeast {
				t.Fatalf("the text has %d commands in its transcripts, at least %d were there", len(steps), row.atLeast)
			}
			runTranscript(t, steps, row.runs, row.isThere)
		})
	}
}

// runTranscript runs the commands where the repository's Caddyfile.example and
// examples lie beside a built caddy, which runs one of them. Without a Caddyfile, caddy runs the first
// file of the steps when they come to it, in front of a stand-in for the API.
func runTranscript(t *testing.T, steps []step, caddyfile, isThere string) {
	s := newServer(t)
	binary, err := exec.LookPath(caddyBinary())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(s.dir, "caddy")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(s.dir, "examples"), os.DirFS("../examples")); err != nil {
		t.Fatal(err)
	}
	example := filepath.Join(s.dir, "Caddyfile.example")
	if err := os.WriteFile(example, []byte(exampleCaddyfile(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.quietCurl(steps)
	start := func() {
		s.run(filepath.Join(s.dir, caddyfile))
		s.waitFor(isThere)
	}
	if caddyfile != "" {
		start()
	}

	requests := 0
	actual := map[string]string{} // what the text calls something, and what it is here
	real := func(line string) string {
		line = s.here(line)
		for there, here := range actual {
			line = strings.ReplaceAll(line, there, here)
		}
		return line
	}
	for _, step := range steps {
		if step.file != "" {
			s.save(step)
			if caddyfile == "" {
				caddyfile = step.file
				s.standIn()
				start()
			}
			continue
		}
		if typedSecret.MatchString(step.command) {
			t.Errorf("$ %s: a secret that is typed in stays in the history of the shell", step.command)
		}
		if strings.HasPrefix(step.command, "curl ") {
			requests++
		}
		if strings.Contains(step.command, "access.log") { // a line may come after the answer
			for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
				text, err := os.ReadFile(filepath.Join(s.dir, "access.log"))
				if err == nil && bytes.Count(text, []byte("\n")) >= requests {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("access.log has too few lines for %d requests: %v", requests, err)
				}
			}
		}
		cmd := exec.Command("sh", "-c", real(step.command))
		cmd.Dir, cmd.Env = s.dir, s.env
		out, err := cmd.CombinedOutput()
		if mistake := strings.Contains("\n"+step.output, "\ncaddy service-user: "); (err != nil) != mistake {
			t.Fatalf("$ %s\n%v: %s", step.command, err, out)
		}
		learn(actual, step.output, string(out))
		if got, want := stable(string(out)), stable(real(step.output)); got != want {
			t.Errorf("$ %s\ngot:\n%s\nwant:\n%s", step.command, got, want)
		}
	}
}

// TestComingFromBasicAuthPage: the Caddyfiles that the page shows are those that its
// commands run.
func TestComingFromBasicAuthPage(t *testing.T) {
	text, err := os.ReadFile("../docs/coming-from-basic-auth.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../examples/coming-from-basic-auth/*.Caddyfile")
	if err != nil || len(files) != 3 {
		t.Fatalf("got %q, %v, want 3 files", files, err)
	}
	shown := strings.Split(string(text), "```caddyfile\n")[1:]
	if len(shown) != len(files) {
		t.Fatalf("the page shows %d Caddyfiles, want %d", len(shown), len(files))
	}
	for i, block := range shown {
		block, _, _ = strings.Cut(block, "```")
		file, err := os.ReadFile(files[i])
		block = strings.ReplaceAll(block, "mode observe", "mode enforce") // a command of the page does the opposite
		if err != nil || !strings.Contains(string(file), block) {
			t.Errorf("%s (%v) does not hold\n%s", files[i], err, block)
		}
	}
}

// TestOldLoginsAreFound: the command of docs/coming-from-basic-auth.md for the clients that have not
// moved lists logins of any characters, and neither ids of service users nor requests without a login.
func TestOldLoginsAreFound(t *testing.T) {
	dir, logins := t.TempDir(), []string{"Carol", "app1", "billing", "carol@example.com", "service_old", "web-app.2", "Zoë"}
	var log strings.Builder
	for _, login := range append(logins, "", "service_3MR7vBwJSkkyw3nVqXrLVPnYYbq") {
		fmt.Fprintf(&log, `{"msg":"handled request","user_id":%q,"status":200}`+"\n", login)
	}
	if err := os.WriteFile(filepath.Join(dir, "access.log"), []byte(log.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	steps := transcript(string(must(os.ReadFile("../docs/coming-from-basic-auth.md"))))
	i := slices.IndexFunc(steps, func(s step) bool { return strings.Contains(s.command, `"user_id"`) })
	if i < 0 {
		t.Fatal("no command of the page looks for old logins")
	}
	cmd := exec.Command("sh", "-c", steps[i].command)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	for _, login := range logins {
		if !strings.Contains(string(out), `1 "user_id":"`+login+`"`+"\n") {
			t.Errorf("%s is missing", login)
		}
	}
	if err != nil || strings.Count(string(out), "\n") != len(logins) {
		t.Errorf("got %v\n%s", err, out)
	}
}

// TestPermissionsPage holds the rules, conditions and JSON of docs/permissions.md
// to what it says about them.
func TestPermissionsPage(t *testing.T) {
	text, err := os.ReadFile("../docs/permissions.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("`([^`]+)`")
	var rules, conditions, documents int
	under := "" // the first heading of the table
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, " | ")
		first := code.FindStringSubmatch(cells[0])
		switch {
		case !strings.HasPrefix(line, "|"):
			under = ""
		case under == "":
			under = strings.Trim(cells[0], "| \n")
		case first == nil:
		case under == "condition":
			conditions++
			if _, err := access.ParseRule("allow GET /{id} when " + first[1]); err != nil {
				t.Error(err)
			}
		case under == "rule":
			rules++
			for i, covers := range []bool{true, false} {
				for _, request := range code.FindAllStringSubmatch(cells[i+1], -1) {
					if got := covered(t, first[1], request[1]); got != covers {
						t.Errorf("%s covers %s: got %v, want %v", first[1], request[1], got, covers)
					}
				}
			}
		}
	}
	for _, block := range strings.Split(string(text), "```json\n")[1:] {
		documents++
		block, _, _ = strings.Cut(block, "```")
		if !json.Valid([]byte(block)) {
			t.Errorf("not JSON: %s", block)
		}
	}
	if rules < 7 || conditions < 16 || documents < 2 {
		t.Errorf("found %d rules, %d conditions and %d documents, fewer than were there", rules, conditions, documents)
	}
}

// covered reports whether a rule decides about a request, such as
// "GET api.example.com/v1/x".
func covered(t *testing.T, rule, request string) bool {
	t.Helper()
	method, target, _ := strings.Cut(request, " ")
	host, path, _ := strings.Cut(target, "/")
	return decides(t, rule, access.Action{Method: method, Host: host, Path: "/" + path})
}

// decides reports whether a rule decides about an action.
func decides(t *testing.T, rule string, action access.Action) bool {
	t.Helper()
	r, err := access.ParseRule(rule)
	if err != nil {
		t.Fatal(err)
	}
	r.ID = "rule"
	group := access.Group{ID: "group", Mode: access.Enforce, Rules: []access.Rule{r}}
	user := access.User{Profile: access.Profile{ID: "user", Role: access.Member, Active: true}, Groups: []string{"group"}}
	d, err := access.NewDirectory(access.Peppers{}, "").With(access.Changes{Groups: []access.Group{group}, Users: []access.User{user}})
	if err != nil {
		t.Fatal(err)
	}
	p, _ := d.Principal("user", "", netip.Addr{}, 0)
	return d.Authorize(p, action).Rule != nil
}

// TestRuleOfTargetsPage: the rule of docs/targets.md for one value of a parameter covers this value
// alone, in both spellings.
func TestRuleOfTargetsPage(t *testing.T) {
	rule := regexp.MustCompile("`(allow GET [^`]+ when [^`]+)`").FindStringSubmatch(string(must(os.ReadFile("../docs/targets.md"))))
	if rule == nil {
		t.Fatal("the page has no rule with a condition")
	}
	for target, want := range map[string]bool{
		"/api/queues/%2F/orders": true, "/api/queues/%2f/orders": true,
		"/api/queues/a/orders": false, "/api/queues/a%2Fb/orders": false,
	} {
		action, problem := access.Judge("GET", "localhost", target, must(access.FindOption("allow_encoded", "slash")).Relax)
		if got := decides(t, rule[1], action); got != want || !problem.OK() {
			t.Errorf("%s covers %s: got %v %v, want %v", rule[1], target, got, problem, want)
		}
	}
}

// quietCurl lets the commands find the real curl, if it is installed and none of them makes it show its progress: it starts
// in a hundredth of the time of the one in this binary.
func (s *server) quietCurl(steps []step) {
	s.t.Helper()
	curl := lookPath("curl", ownPATH(s.t))
	for _, step := range steps {
		if strings.Contains(step.command, "curl ") && !strings.Contains(step.command, " -s ") || curl == "" {
			return
		}
	}
	bin := filepath.Join(s.dir, "bin")
	if err := errors.Join(os.Mkdir(bin, 0o700), os.Symlink(curl, filepath.Join(bin, "curl"))); err != nil {
		s.t.Fatal(err)
	}
	s.env = append(s.env, "no_proxy=*", "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// step is a command of a text with its output, or a file that the text shows.
type step struct{ command, output, file string }

// save writes a file of a text into the directory of the server.
func (s *server) save(file step) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, file.file), []byte(s.here(file.output)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// here replaces the addresses and directories of a text by those of the server.
func (s *server) here(text string) string {
	return strings.NewReplacer(
		"localhost:8080", s.addr("API_PORT"), "localhost:8081", s.addr("ADMIN_PORT"), "localhost:9000", s.addr("UPSTREAM_PORT"),
		"localhost:8000", s.addr("UPSTREAM_PORT"), // of an old gateway
		"unix/caddy.sock|0600", "{$CADDY_ADMIN}", "unix//run/caddy/admin.sock|0600", "{$CADDY_ADMIN}", "/var/lib/caddy", s.dir,
	).Replace(text)
}

// standIn serves the API of the guides: "caddy respond" as docs/quick-start.md starts it.
func (s *server) standIn() {
	s.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:"+s.ports["UPSTREAM_PORT"])
	if err != nil {
		s.t.Fatal(err)
	}
	api := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s by [%s]", r.Method, r.URL.RequestURI(), r.Header.Get("X-Service-User-Name"))
	})}
	go func() { _ = api.Serve(listener) }()
	s.t.Cleanup(func() { _ = api.Close() })
}

// transcript reads the console blocks of a Markdown text, and its Caddyfiles that begin with their
// name as a comment.
func transcript(text string) (steps []step) {
	inside, file := false, regexp.MustCompile(`^# ([a-zA-Z.-]*Caddyfile[a-zA-Z.-]*)$`)
	language := ""
	for line := range strings.Lines(text) {
		named := file.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case strings.HasPrefix(line, "```"):
			language = strings.TrimSpace(line)
			inside = language == "```console"
		case language == "```caddyfile" && named != nil:
			steps = append(steps, step{file: named[1]})
			inside = true
		case !inside:
		case strings.HasPrefix(line, "$ "):
			steps = append(steps, step{command: strings.TrimSpace(line[2:])})
		default:
			steps[len(steps)-1].output += line
		}
	}
	return steps
}

var (
	identifier  = regexp.MustCompile(`(service|token|group|rule|decision)_[0-9A-Za-z]{27}|csu_[0-9A-Za-z]{49}|…[0-9A-Za-z]{4}`)
	typedSecret = regexp.MustCompile(access.SecretPattern)
	instant     = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ|(?m)^Date: .*$|\b[0-9a-f]{64}\b`)
	ownLog      = regexp.MustCompile(`(?m)^\{"level":.*\n`)
)

// learn pairs the ids that a text shows with those that were printed.
func learn(actual map[string]string, text, printed string) {
	known, here := identifier.FindAllString(text, -1), identifier.FindAllString(printed, -1)
	for i := range min(len(known), len(here)) {
		if _, ok := actual[known[i]]; !ok {
			actual[known[i]] = here[i]
		}
	}
}

// stable replaces what differs from run to run: times and digests.
func stable(text string) string {
	text = ownLog.ReplaceAllString(strings.ReplaceAll(text, "\r", ""), "")
	return strings.TrimSpace(instant.ReplaceAllString(text, "<time>"))
}

// TestConfigurationPage: each option in the tables of docs/configuration.md parses as it is written
// there, and no option of a block is missing.
func TestConfigurationPage(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	values := strings.NewReplacer(
		"FIELD VALUE", "X-Tenant acme", "METHODS [HOST]PATH [when CONDITION]", "GET api.example.com/{id} when params.id != ''", "PREFIX", "X-Client-", "HEADER…", "X-A X-B",
		"TEXT", `"an API"`, "allow_encoded WORD…", "allow_encoded hash slash", "allow_unicode WORD…", "allow_unicode spaces",
		"allow_raw WORD…", "allow_raw brackets", "WORD…", "id name", "PATH", "/a", "[GRACE]", "1h", "DURATION|off", "14d", "ATTEMPTS DURATION", "30 1m", "DURATION", "90d",
		"ID… team=TEAM… [group=GROUP…]", "carol team=finance group=readers", "ID…", "carol", "NAME", "Remote-User", "NUMBER", "7",
		"enforce|observe", "observe", "problem|caddy", "caddy", "[unknown]", "unknown", "<br>", "\n", "`", "",
	)
	blocks := map[string]string{
		"The directive `service_users`":       ":8080 {\n\tservice_users {\n%s\n\t}\n\treverse_proxy localhost:9000\n}\n",
		"The global option `service_users`":   "{\n\tservice_users {\n%s\n\t}\n}\n:8080 {\n\tservice_users\n\treverse_proxy localhost:9000\n}\n",
		"The directive `service_users_proxy`": ":8080 {\n\tservice_users\n\tservice_users_proxy localhost:9000 {\n%s\n\t}\n}\n",
		"The directive `service_users_admin`": ":8081 {\n\tservice_users_admin {\n%s\n\t}\n}\n",
	}
	for heading, block := range blocks {
		_, section, ok := strings.Cut(string(text), "\n## "+heading+"\n")
		if !ok {
			t.Fatalf("the page has no section %s", heading)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		documented := make(map[string]bool)
		for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z].*?`) \\| ").FindAllStringSubmatch(section, -1) {
			for _, option := range strings.Split(strings.ReplaceAll(row[1], `\|`, "|"), "`, `") {
				lines := values.Replace(option)
				name, _, _ := strings.Cut(lines, " ")
				documented[name] = true
				if _, err := adapt([]byte(fmt.Sprintf(block, lines))); err != nil {
					t.Errorf("%s: the option %s: %v", heading, option, err)
				}
			}
		}
		_, err := adapt([]byte(fmt.Sprintf(block, "xxxxxxxxxxxx")))
		_, known, _ := strings.Cut(fmt.Sprint(err), "; known are ")
		known, _, _ = strings.Cut(known, ", at ")
		for _, name := range strings.Split(known, ", ") {
			if !documented[name] {
				t.Errorf("%s: the page does not have the option %s", heading, name)
			}
			// The example in the error about its arguments parses, too.
			_, few := adapt([]byte(fmt.Sprintf(block, name)))
			_, many := adapt([]byte(fmt.Sprintf(block, name+" a b c d")))
			_, right, ok := strings.Cut(fmt.Sprint(few, many), "; write it as in: ")
			right, _, _ = strings.Cut(right, ", at ")
			if _, err := adapt([]byte(fmt.Sprintf(block, right))); ok && err != nil {
				t.Errorf("%s: the example %q: %v", heading, right, err)
			}
		}
	}
}
