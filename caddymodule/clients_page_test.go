package caddymodule

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// checkClientsAnswers compares the answers that docs/clients.md shows with those of real servers.
// Each block has a request line, and some header fields and the body of its answer.
func checkClientsAnswers(t *testing.T, page string, s, strict *server) {
	user := s.create("reader", "--group", "clients", "--ttl", "235h")
	fixed := func(text string) string { // replaces everything that differs from run to run
		text = identifier.ReplaceAllStringFunc(text, func(id string) string {
			kind, _, _ := strings.Cut(id, "_")
			return kind + "_…"
		})
		text = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`).ReplaceAllString(text, "<time>")
		wait := regexp.MustCompile(`(?m)^Retry-After: [1-9]\d*$`)
		return wait.ReplaceAllString(text, "Retry-After: <seconds>")
	}
	shown := make(map[string]bool)
	for _, block := range strings.Split(page, "\n```http\n")[1:] {
		block, _, _ = strings.Cut(block, "\n```\n")
		request, answer, _ := strings.Cut(block, "\n\n")
		head, body, _ := strings.Cut(answer, "\n\n")
		lines := strings.Split(head, "\n")
		method, path, _ := strings.Cut(request, " ")
		status := strings.Fields(lines[0])[1]
		shown[status] = true
		var got *response
		switch status {
		case "401":
			got = s.do(method, "API_PORT", path, credentials{user.id, "wrong"}, "")
		case "429":
			got = strict.do(method, "API_PORT", path, credentials{user.id, "wrong"}, "")
		case "503":
			got = withoutStore(t, method, path)
		default:
			got = s.do(method, "API_PORT", path, user, "")
		}
		have := "HTTP/1.1 " + got.Status + "\n"
		for _, line := range lines[1:] {
			name, _, _ := strings.Cut(line, ":")
			have += name + ": " + got.Header.Get(name) + "\n"
		}
		have = fixed(have + "\n" + strings.TrimSpace(got.body))
		if want := fixed(head + "\n\n" + body); have != want {
			t.Errorf("%s: got\n%s\nthe page has\n%s", request, have, want)
		}
	}
	for _, status := range []string{"201", "400", "401", "403", "429", "503"} {
		if !shown[status] {
			t.Errorf("the page shows no answer with the status %s", status)
		}
	}
}

// withoutStore returns the answer of a handler whose store is not open.
func withoutStore(t *testing.T, method, path string) *response {
	t.Helper()
	abandoned := make(chan struct{})
	close(abandoned)
	closed := &shared{opts: store.Options{Log: zap.NewNop()}, ready: make(chan struct{})}
	h := &Handler{log: zap.NewNop(), storeHandle: storeHandle{shared: closed, abandoned: abandoned}}
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	r := prepared(httptest.NewRequestWithContext(t.Context(), method, path, nil))
	if err := h.ServeHTTP(w, r, next); err != nil {
		t.Fatal(err)
	}
	resp := w.Result()
	return &response{resp, bodyOf(resp)}
}

// checkClientsCommands runs the short commands of the page in a shell: the files, the first request,
// the value of the header, and the token from the operator.
func checkClientsCommands(t *testing.T, page, path string, s *server) {
	user := s.create("typist", "--group", "clients")
	script := "set -e\n"
	for _, heading := range []string{"Keep the token in a file", "The request", "Replace the token"} {
		_, section, _ := strings.Cut(page, "\n## "+heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		for _, block := range strings.Split(section, "\n```sh\n")[1:] {
			block, _, _ = strings.Cut(block, "\n```\n")
			script += block + "\n"
		}
	}
	script = strings.NewReplacer("https://api.example.com", "http://"+s.addr("API_PORT"),
		"service_3MQkTyLfBmwNcJuBTVeoYRG1ZkP", user.id, "cat >", "echo "+user.secret+" >").Replace(script)
	home := t.TempDir()
	file := filepath.Join(home, ".config", "example-api", "token")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, old := range []string{file, file + ".new"} { // other users may read them
		if err := os.WriteFile(old, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+path, "HOME="+home)
	out, err := cmd.CombinedOutput()
	header := strings.TrimPrefix(basic(user.id, user.secret), "Basic ")
	if err != nil || !strings.Contains(string(out), "7 for typist") || !strings.HasSuffix(string(out), header) {
		t.Errorf("the commands: %v: got\n%s\nwant the answer of the API and the header %s", err, out, header)
	}
	if mode := modeOf(t, file); mode != 0o600 {
		t.Errorf("the file of the token has the mode %o, want 600", mode)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != user.secret+"\n" {
		t.Errorf("the file of the token: got %.8q… (%v)", text, err)
	}
	if lookPath("flock", path) != "" && lookPath("curl", path) != "" {
		checkClientsCrontab(t, page, script, cmd.Env, home)
	}
}

// checkClientsCrontab runs the line of the crontab, with the environment of the other commands.
func checkClientsCrontab(t *testing.T, page, script string, env []string, home string) {
	_, line, _ := strings.Cut(page, "\n```crontab\n0 3 1 * * ")
	line, _, _ = strings.Cut(line, "\n```\n")
	exports := strings.Join(regexp.MustCompile(`(?m)^export .*$`).FindAllString(script, -1), "\n")
	token := filepath.Join(home, ".config", "example-api", "token")
	old, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		filepath.Join(home, "api.sh"):             codeUnder(t, page, "curl"),
		filepath.Join(filepath.Dir(token), "env"): exports,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-c", strings.Replace(line, "sleep $s", ":", 1))
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if text, _ := os.ReadFile(token); err != nil || string(text) == string(old) {
		t.Errorf("the line of the crontab did not replace the token: %v: %s", err, out)
	}
}

// TestClientsPageEncodes: each encoding of a segment in docs/clients.md makes a path that passes.
func TestClientsPageEncodes(t *testing.T) {
	t.Parallel()
	page, path := clientsPage(t), ownPATH(t)
	const segment = "a b+c&é=ü~*'()!@:$,"
	for language, command := range map[string][]string{
		"Python":     {"python3", "-c", "import os, urllib.parse; segment = os.getenv('SEGMENT'); print(CODE)"},
		"JavaScript": {"node", "-e", "const segment = process.env.SEGMENT; console.log(CODE)"},
		"PHP":        {"php", "-r", "$segment = getenv('SEGMENT'); echo CODE;"},
		"shell":      {"jq", "sh", "-c", "segment=$SEGMENT; CODE"},
		"Go":         nil,
	} {
		code := regexp.MustCompile("(?m)^\\| " + language + " \\| `(.*)` \\|$").FindStringSubmatch(page)
		if code == nil {
			t.Errorf("the page has no row for %s", language)
			continue
		}
		out := url.PathEscape(segment)
		if command != nil {
			if lookPath(command[0], path) == "" {
				t.Logf("%s: there is no %s", language, command[0])
				continue
			}
			if command[0] == "jq" {
				command = command[1:]
			}
			expression := strings.ReplaceAll(code[1], `\|`, "|")
			for i := range command {
				command[i] = strings.ReplaceAll(command[i], "CODE", expression)
			}
			cmd := exec.Command(command[0], command[1:]...)
			cmd.Env = append(os.Environ(), "PATH="+path, "SEGMENT="+segment)
			text, err := cmd.Output()
			if err != nil {
				t.Errorf("%s: %v", language, err)
			}
			out = strings.TrimSpace(string(text))
		}
		action, problem := access.Judge("GET", "api.example.com", "/v1/files/"+out, 0)
		if !problem.OK() || action.Path != "/v1/files/"+segment {
			t.Errorf("%s: %q: got the path %q (%s), want %q", language, out, action.Path, problem.Detail, segment)
		}
	}
}

// TestClientsPageLinks: each link inside of docs/clients.md has its heading, and each heading a link.
func TestClientsPageLinks(t *testing.T) {
	page := clientsPage(t)
	anchors := make(map[string]bool)
	for _, heading := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(page, -1) {
		anchor := strings.ReplaceAll(strings.ToLower(heading[1]), " ", "-")
		anchors[regexp.MustCompile(`[^a-z0-9-]`).ReplaceAllString(anchor, "")] = false
	}
	for _, link := range regexp.MustCompile(`\]\(#([^)]*)\)`).FindAllStringSubmatch(page, -1) {
		if _, ok := anchors[link[1]]; !ok {
			t.Errorf("no heading has the anchor %s", link[1])
		}
		anchors[link[1]] = true
	}
	for anchor, linked := range anchors {
		if !linked {
			t.Errorf("the contents have no link to %s", anchor)
		}
	}
}
