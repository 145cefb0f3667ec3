package cli

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/internal/clitest"
)

// TestCommand runs the sessions of testdata/cli: a Caddy of its own with
// Caddyfile.example or a small Caddyfile, and "caddy service-user" as people
// type it. The words that a session has beside those of testscript are
//
//	exits CODE COMMAND…           run a command that ends with this exit code
//	says MESSAGE                  it printed nothing but this error
//	looks FILE                    it printed this; <time> and <user> are any, $NAME is a variable
//	csv FILE                      the same, with CRLF at the end of each line
//	basic ID SECRET_FILE FILE     write a request with these credentials; $SECRET is the secret
//	capture NAME REGEXP           set $NAME to what the group in REGEXP matched in it
//	waitfor CODE URL [ID SECRET]
//	                              ask again until the answer has this status; a URL
//	                              on a unix socket is unix/SOCKET!PATH
//	rest METHOD PATH [FILE]       ask the admin endpoint; status and body on stdout
//	fill FIRST LAST GROUP         create the service users of these numbers
//	database FILE APPLICATION [VERSION]
//	                              make a SQLite database of another program
//	listen [-api] NAME CODE [FILE]
//	                              another HTTP server: $NAME is its address; with
//	                              -api it claims to be the service-user API
//	hang NAME                     one that takes connections and never answers
//
// A line that begins with "caddy service-user" runs in this process, since a start of
// Caddy costs more than the command; see needsProcess for the exceptions. "exec caddy"
// is always a process.
func TestCommand(t *testing.T) {
	sessions, err := filepath.Abs("testdata/sessions") // serviceUser changes the directory
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                sessions,
		Setup:              setupSession,
		RequireUniqueNames: true,
		UpdateScripts:      *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"caddy": sessionCaddy, "exits": sessionExits, "says": sessionSays, "looks": sessionLooks, "basic": sessionBasic, "capture": sessionCapture,
			"waitfor": sessionWaitFor, "rest": sessionREST, "fill": sessionFill, "database": sessionDatabase, "listen": sessionListen, "hang": sessionHang,
		},
	})
}

// quickExit keeps a process that is built with the race detector from waiting a
// second before it ends.
const quickExit = "GORACE=atexit_sleep_ms=10"

var exampleCaddyfile, errExample = os.ReadFile("../Caddyfile.example")

// setupSession gives a session free ports, a store, "caddy" in PATH, and directories
// away from the home directory.
func setupSession(env *testscript.Env) error {
	if errExample != nil {
		return errExample
	}
	if err := os.WriteFile(filepath.Join(env.WorkDir, "Caddyfile.example"), exampleCaddyfile, 0o600); err != nil {
		return err
	}
	for _, name := range []string{"API_PORT", "STRICT_PORT", "ADMIN_PORT", "UPSTREAM_PORT", "CADDY_PORT", "FREE_PORT"} {
		env.Setenv(name, freePort())
	}
	env.Vars = append(env.Vars, quickExit)
	env.Setenv("CADDY_ADMIN", "localhost:"+env.Getenv("CADDY_PORT"))
	env.Setenv("SERVICE_USERS_STORE", filepath.Join(env.WorkDir, "service_users.db"))
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		env.Setenv(name, filepath.Join(env.WorkDir, ".home"))
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Join(env.WorkDir, ".bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return err
	}
	env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
	return os.Symlink(cmp.Or(os.Getenv("SERVICE_USERS_TEST_CADDY"), binary), filepath.Join(bin, "caddy"))
}

func sessionCaddy(ts *testscript.TestScript, neg bool, args []string) {
	if code := runCaddy(ts, args); (code != 0) != neg {
		ts.Fatalf("got exit code %d", code)
	}
}

func sessionExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || args[1] != "caddy" {
		ts.Fatalf("usage: exits CODE caddy ARGUMENT...")
	}
	if code := runCaddy(ts, args[2:]); strconv.Itoa(code) != args[0] {
		ts.Fatalf("got exit code %d, want %s", code, args[0])
	}
}

// runCaddy runs "caddy" with arguments and returns its exit code.
func runCaddy(ts *testscript.TestScript, args []string) int {
	if !needsProcess(ts, args) {
		return serviceUser(ts, args[1:])
	}
	err := ts.Exec("caddy", args...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	ts.Check(err)
	return 0
}

// needsProcess reports whether a command cannot share this process: the session sets
// PROCESS, or the command is not one of ours, reads an input, reads a configuration
// (Caddy logs that), or uses TLS (Go reads SSL_CERT_FILE once).
func needsProcess(ts *testscript.TestScript, args []string) bool {
	if os.Getenv("SERVICE_USERS_TEST_CADDY") != "" || ts.Getenv("PROCESS") != "" || args[0] != "service-user" {
		return true
	}
	input := reflect.ValueOf(ts).Elem()
	if input.FieldByName("stdin").String() != "" || input.FieldByName("ttyin").String() != "" {
		return true
	}
	return slices.ContainsFunc(args, func(arg string) bool {
		return slices.Contains([]string{"lint", "-c", "--config"}, arg) || strings.HasPrefix(arg, "https:")
	})
}

// surroundings is held while a command of a session has the working directory, the
// environment and the standard input to itself.
var surroundings sync.Mutex

// serviceUser runs "caddy service-user" in this process and returns the exit code.
func serviceUser(ts *testscript.TestScript, args []string) int {
	surroundings.Lock()
	defer surroundings.Unlock()
	before, err := os.Getwd()
	ts.Check(err)
	ts.Check(os.Chdir(ts.MkAbs(".")))
	defer func() { ts.Check(os.Chdir(before)) }()
	for _, name := range []string{idVariable, tokenVariable, "TMPDIR"} {
		before, set := os.LookupEnv(name)
		ts.Check(os.Setenv(name, ts.Getenv(name)))
		defer func() {
			if ts.Check(os.Setenv(name, before)); !set {
				ts.Check(os.Unsetenv(name))
			}
		}()
	}
	defer func(before string) { caddy.DefaultAdminListen = before }(caddy.DefaultAdminListen)
	caddy.DefaultAdminListen = ts.Getenv("CADDY_ADMIN") // Caddy reads it at its start
	none, err := os.Open(os.DevNull)
	ts.Check(err)
	defer none.Close()
	defer func(before *os.File) { os.Stdin = before }(os.Stdin)
	os.Stdin = none

	return clitest.Run(ts.Stdout(), ts.Stderr(), args...)
}

func sessionSays(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: says MESSAGE")
	}
	if got, want := ts.ReadFile("stderr"), "caddy service-user: "+args[0]+"\n"; got != want {
		ts.Fatalf("got  %swant %s", got, want)
	}
	if got := ts.ReadFile("stdout"); got != "" {
		ts.Fatalf("an error, and on stdout: %s", got)
	}
}

func sessionLooks(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: looks FILE")
	}
	sessionPrinted(ts, os.Expand(ts.ReadFile(args[0]), ts.Getenv))
}

func sessionPrinted(ts *testscript.TestScript, want string) {
	const anyTime = `\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\dZ`
	got := ts.ReadFile("stdout")
	pattern := strings.NewReplacer("<time>", anyTime, "<user>", `[^\s"]+`).Replace(regexp.QuoteMeta(want))
	if !regexp.MustCompile(`^` + pattern + `$`).MatchString(got) {
		ts.Fatalf("got:\n%swant:\n%s", got, want)
	}
}

func sessionCapture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture NAME REGEXP")
	}
	m := regexp.MustCompile(`(?m)` + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) != 2 {
		ts.Fatalf("no match for %#q in stdout", args[1])
	}
	ts.Setenv(args[0], m[1])
}

func sessionWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	const within = time.Minute
	if neg || len(args) != 2 && len(args) != 4 {
		ts.Fatalf("usage: waitfor CODE URL [ID SECRET]")
	}
	client, url := http.DefaultClient, args[1]
	if socket, path, ok := strings.Cut(strings.TrimPrefix(url, "unix/"), "!"); ok {
		client, url = onSocket(socket), "http://127.0.0.1"+path
	}
	got := ""
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		ts.Check(err)
		if len(args) == 4 {
			req.SetBasicAuth(args[2], args[3])
		}
		if resp, err := client.Do(req); err != nil {
			got = err.Error()
		} else if resp.Body.Close(); strconv.Itoa(resp.StatusCode) == args[0] {
			return
		} else {
			got = resp.Status
		}
		if time.Since(start) > within {
			ts.Fatalf("%s answers %s, not %s within %s", url, got, args[0], within)
		}
	}
}

func onSocket(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

func sessionREST(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 && len(args) != 3 {
		ts.Fatalf("usage: rest METHOD PATH [FILE]")
	}
	body := ""
	if len(args) == 3 {
		body = ts.ReadFile(args[2])
	}
	req, err := http.NewRequest(args[0], "http://"+ts.Getenv("CADDY_ADMIN")+args[1], strings.NewReader(body))
	ts.Check(err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	fmt.Fprintln(ts.Stdout(), resp.Status)
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
}

func sessionFill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: fill FIRST LAST GROUP")
	}
	first, err := strconv.Atoi(args[0])
	ts.Check(err)
	last, err := strconv.Atoi(args[1])
	ts.Check(err)
	client, err := dial(ts.Getenv("CADDY_ADMIN"))
	ts.Check(err)
	group, err := client.FindGroup(context.Background(), args[2])
	ts.Check(err)
	for n := first; n <= last; n++ {
		body := admin.NewServiceUser{CreateToken: admin.Some(false)}
		body.Name, body.PermissionGroups = admin.Some(fmt.Sprintf("number-%03d", n)), admin.Some([]string{group.ID})
		ts.Check(client.Do(context.Background(), http.MethodPost, "/service_users", body, nil))
	}
}

func sessionDatabase(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 && len(args) != 3 {
		ts.Fatalf("usage: database FILE APPLICATION [VERSION]")
	}
	statement := "CREATE TABLE t (x); PRAGMA application_id = " + args[1]
	if len(args) == 3 {
		statement += "; PRAGMA user_version = " + args[2]
	}
	db, err := sql.Open("sqlite", ts.MkAbs(args[0])) // the driver comes with the store
	ts.Check(err)
	_, err = db.Exec(statement)
	ts.Check(errors.Join(err, db.Close()))
}

func sessionListen(ts *testscript.TestScript, neg bool, args []string) {
	api := len(args) > 0 && args[0] == "-api"
	if api {
		args = args[1:]
	}
	if neg || len(args) < 2 || len(args) > 4 {
		ts.Fatalf("usage: listen [-api] NAME CODE [FILE [APPLIED]]")
	}
	code, err := strconv.Atoi(args[1])
	ts.Check(err)
	text := ""
	if len(args) > 2 {
		text = ts.ReadFile(args[2])
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		if api {
			w.Header().Set(admin.OperationHeader, "op_0")
		}
		if len(args) > 3 {
			w.Header().Set(admin.AppliedHeader, args[3])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text)
	})}
	go server.Serve(listener)
	ts.Defer(func() { server.Close() })
	ts.Setenv(args[0], listener.Addr().String())
}

// commandTree returns every command that does something.
func commandTree() (leaves []*cobra.Command) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if !cmd.HasSubCommands() {
			leaves = append(leaves, cmd)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(clitest.Tree())
	return leaves
}

// TestSessionsAreComplete: some session runs each command, and gives it each of
// its flags.
func TestSessionsAreComplete(t *testing.T) {
	missing := make(map[string]bool)
	flag := regexp.MustCompile(`(?m)^ +(?:-\w, )?(--[a-z-]+)`)
	leaves := commandTree()
	for _, cmd := range leaves {
		missing[cmd.CommandPath()] = true
		for _, f := range flag.FindAllStringSubmatch(cmd.LocalFlags().FlagUsages(), -1) {
			missing[cmd.CommandPath()+" "+f[1]] = true
		}
		for _, f := range flag.FindAllStringSubmatch(cmd.InheritedFlags().FlagUsages(), -1) {
			missing["caddy service-user "+f[1]] = true
		}
	}
	sessions, err := filepath.Glob("testdata/sessions/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, session := range sessions {
		text, err := os.ReadFile(session)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range regexp.MustCompile(`(?m)^(?:exits \d )?(caddy service-user .*)$`).FindAllStringSubmatch(string(text), -1) {
			words := strings.Fields(line[1])
			cmd, _, err := leaves[0].Root().Find(words[1:])
			if err != nil {
				t.Fatalf("%s: %s: %v", session, line[1], err)
			}
			delete(missing, cmd.CommandPath())
			for _, word := range words {
				delete(missing, cmd.CommandPath()+" "+word)
				delete(missing, "caddy service-user "+word)
			}
		}
	}
	for what := range missing {
		t.Errorf("no session has %s", what)
	}
}

// TestHelp: every text of usage ends in an example of that very command, whose
// flags and arguments are right.
func TestHelp(t *testing.T) {
	check := func(cmd *cobra.Command, under string) {
		var out bytes.Buffer
		cmd.SetOut(&out)
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		example := strings.TrimPrefix(cmd.Example, "  ")
		if !strings.HasPrefix(example+" ", under) || !strings.HasSuffix(out.String(), "\nExample:\n  "+example+"\n") {
			t.Errorf("%s --help does not end in an example that begins with %q:\n%s", cmd.CommandPath(), under, &out)
		}
		words := shellWords(example)
		found, args, err := cmd.Root().Find(words[1:])
		if err == nil {
			err = found.ParseFlags(args)
		}
		if err == nil {
			err = found.ValidateArgs(found.Flags().Args())
		}
		if err != nil {
			t.Errorf("%s: the example %q: %v", cmd.CommandPath(), example, err)
		}
	}
	above := make(map[*cobra.Command]bool)
	for _, cmd := range commandTree() {
		check(cmd, cmd.CommandPath()+" ")
		for p := cmd.Parent(); p.HasParent(); p = p.Parent() {
			above[p] = true
		}
	}
	for cmd := range above {
		check(cmd, cmd.CommandPath()+" ")
	}
}

// shellWords splits a line as a shell does that knows double quotes only.
func shellWords(line string) (words []string) {
	for _, m := range regexp.MustCompile(`"([^"]*)"|[^ "]+`).FindAllStringSubmatch(line, -1) {
		words = append(words, strings.Trim(m[0], `"`))
	}
	return words
}

// TestAdminDay: each task of the session takes as many commands as its comment says.
func TestAdminDay(t *testing.T) {
	text, err := os.ReadFile("testdata/sessions/admin_day.txtar")
	if err != nil {
		t.Fatal(err)
	}
	tasks := regexp.MustCompile(`(?m)^# (.*): (\d) commands?\b.*$`).FindAllStringSubmatchIndex(string(text), -1)
	if len(tasks) != 10 {
		t.Fatalf("got %d tasks, want 10", len(tasks))
	}
	for i, at := range tasks {
		end := len(text)
		if i+1 < len(tasks) {
			end = tasks[i+1][0]
		}
		got := strings.Count(string(text[at[0]:end]), "\ncaddy service-user ")
		if want := string(text[at[4]:at[5]]); strconv.Itoa(got) != want {
			t.Errorf("%s: got %d commands, the comment says %s", text[at[2]:at[3]], got, want)
		}
	}
}
