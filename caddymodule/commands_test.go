package caddymodule

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// serviceUserCommand returns "caddy service-user" as package cli has registered it.
func serviceUserCommand(t *testing.T) *cobra.Command {
	t.Helper()
	root, cmd := &cobra.Command{Use: "caddy"}, &cobra.Command{Use: "service-user"}
	root.AddCommand(cmd)
	caddycmd.Commands()["service-user"].CobraFunc(cmd)
	return cmd
}

// leaves returns the commands that have none below them.
func leaves(cmd *cobra.Command) (all []*cobra.Command) {
	if !cmd.HasSubCommands() {
		return []*cobra.Command{cmd}
	}
	for _, sub := range cmd.Commands() {
		all = append(all, leaves(sub)...)
	}
	return all
}

// TestExamples runs the example of every command, one after the other.
func TestExamples(t *testing.T) {
	t.Parallel()
	s := startServer(t, exampleCaddyfile(t))
	if err := os.WriteFile(filepath.Join(s.dir, "access.log"), []byte("GET /v1/people;x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "config.yml"), []byte("token: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(s.dir, "examples"), os.DirFS("../examples")); err != nil {
		t.Fatal(err)
	}
	ids := make(map[string]string) // the newest of a kind
	examples := make(map[string]string)
	for _, cmd := range leaves(serviceUserCommand(t)) {
		name := strings.TrimPrefix(cmd.CommandPath(), "caddy service-user ")
		examples[name] = cmd.Example
	}
	id := regexp.MustCompile(`\b(token|rule|service)_[0-9A-Za-z]{27}\b`)
	for _, name := range []string{
		"group create", "create", "list", "show", "update", "deactivate", "reactivate",
		"token create", "token list", "token update", "token refresh", "token rotate", "token revoke",
		"group list", "group show", "group update", "group remove", "group add",
		"rule add", "rule list", "explain", "access", "who-can", "would-deny",
		"permission load", "permission list", "permission show", "permission grant", "permission withdraw", "permission delete",
		"rule remove", "delete", "group delete", "group undelete", "audit list", "audit verify", "health", "node list", "undelete", "lint", "check-log", "scan", "backup", "check", "restore", "accept-older", "version",
	} {
		words := shellWords(examples[name])
		delete(examples, name)
		if name == "restore" { // it needs the store for itself
			s.stop()
		}
		for i, word := range words {
			if kind, _, ok := strings.Cut(word, "_"); ok && ids[kind] != "" && !strings.HasPrefix(word, "service_users.") {
				words[i] = ids[kind]
			}
		}
		out := s.mustCLI(words[2:]...)
		for _, m := range id.FindAllStringSubmatch(out, -1) {
			ids[m[1]] = m[0]
		}
	}
	delete(examples, "node forget") // these two need PostgreSQL; package cli runs them
	delete(examples, "copy")
	for name := range examples {
		t.Errorf("the example of %q was not run", name)
	}
}

// shellWords splits a line as a shell does that knows double quotes only.
func shellWords(line string) (words []string) {
	for _, m := range regexp.MustCompile(`"([^"]*)"|[^ "]+`).FindAllStringSubmatch(line, -1) {
		words = append(words, strings.Trim(m[0], `"`))
	}
	return words
}

// TestPagesNameCommands: each "caddy service-user COMMAND" of the pages is a command.
func TestPagesNameCommands(t *testing.T) {
	root := serviceUserCommand(t)
	// Options may come before the command. The first word is of the command, unless a command is
	// not named at all, as in "caddy service-user --store PATH --create".
	command := regexp.MustCompile("caddy service-user(?: --[a-z-]+ [^ `]+)* ([a-z-]+(?: [a-z-]+)?)")
	named := 0
	for _, page := range allPages(t) {
		text := string(must(os.ReadFile(page)))
		for _, found := range command.FindAllStringSubmatch(text, -1) {
			if strings.HasPrefix(found[1], "-") {
				continue
			}
			named++
			if cmd, _, err := root.Find(strings.Fields(found[1])); err != nil || cmd == root {
				t.Errorf("%s names %q, which is not a command", page, found[0])
			}
		}
	}
	if named < 100 {
		t.Errorf("found %d commands, fewer than were there", named)
	}
}

// shellToken matches a part of a line of a shell: a separator, a comment, a quoted text, a variable, or
// other characters of a word.
var shellToken = regexp.MustCompile(`[|&;<>()]+|\s+|#[^\n]*|'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s|&;<>()'"\\]+`)

// caddyCommands returns the words of each command of Caddy in a line of a shell.
func caddyCommands(line string) (commands [][]string) {
	var words []string
	word, inside := "", false
	end := func() {
		if inside {
			words = append(words, word)
		}
		word, inside = "", false
	}
	command := func() {
		end()
		for i, word := range words {
			// "sudo -u caddy caddy run" has the command after the user. "systemctl reload caddy" has none.
			if strings.TrimPrefix(word, "./") == "caddy" && i+1 < len(words) && regexp.MustCompile("^[a-z-]+$").MatchString(words[i+1]) && words[i+1] != "caddy" {
				commands = append(commands, append([]string{"caddy"}, words[i+1:]...))
				break
			}
		}
		words = nil
	}
	for _, token := range shellToken.FindAllString(line, -1) {
		switch {
		case strings.ContainsAny(token[:1], "|&;<>()"):
			command()
		case strings.TrimSpace(token) == "":
			end()
		case token[0] == '#' && !inside:
			command()
			return commands
		default:
			word, inside = word+strings.Trim(token, `'"`), true
		}
	}
	command()
	return commands
}

// TestCaddyCommands: the words of a command end where those of the shell do.
func TestCaddyCommands(t *testing.T) {
	for line, want := range map[string]string{
		`./caddy reload --config Caddyfile`:                          "caddy|reload|--config|Caddyfile",
		`sudo -u caddy caddy service-user list | head -n 1`:          "caddy|service-user|list",
		`caddy service-user check FILE >out   # a backup`:            "caddy|service-user|check|FILE",
		`x=$(caddy service-user rule add g "allow GET /a|b") && y`:   "caddy|service-user|rule|add|g|allow GET /a|b",
		`caddy service-user list --filter 'obj.name == "x"'`:         `caddy|service-user|list|--filter|obj.name == "x`,
		`systemctl reload caddy`:                                     "",
		`install -m 0755 caddy /usr/local/bin/caddy`:                 "",
		`caddy service-user token rotate --grace 1h; caddy stop # x`: "caddy|service-user|token|rotate|--grace|1h caddy|stop",
	} {
		var got []string
		for _, words := range caddyCommands(line) {
			got = append(got, strings.Join(words, "|"))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

// TestPagesCommands: each command of Caddy in a block of a page in console, sh or text is there, with its
// flags and its number of arguments.
func TestPagesCommands(t *testing.T) {
	t.Parallel()
	block := regexp.MustCompile("(?ms)^ *```(console|sh|dockerfile)\n(.*?)^ *```$")
	checked, times := make(map[string]bool), 0
	for _, page := range allPages(t) {
		for _, found := range block.FindAllStringSubmatch(string(must(os.ReadFile(page))), -1) {
			for line := range strings.Lines(strings.ReplaceAll(found[2], "\\\n", " ")) {
				line, isCommand := strings.CutPrefix(strings.TrimSpace(line), "$ ")
				if found[1] == "console" && !isCommand {
					continue
				}
				for _, words := range caddyCommands(line) {
					times++
					if key := strings.Join(words, "\x00"); !checked[key] {
						checked[key] = true
						checkWords(t, page+": "+line, words)
					}
				}
			}
		}
	}
	if times < 200 {
		t.Errorf("found %d commands, fewer than were there", times)
	}
}

// allPages returns the pages of this repository for its users.
func allPages(t *testing.T) []string {
	t.Helper()
	return append(must(filepath.Glob("../docs/*.md")), must(filepath.Glob("../*.md"))...)
}

// TestPagesCaddyfiles: each block of a page in caddyfile is a Caddyfile, or a part of a site or of its options.
func TestPagesCaddyfiles(t *testing.T) {
	t.Parallel()
	block, blocks := regexp.MustCompile("(?ms)^ *```caddyfile\n(.*?)^ *```$"), 0
	for _, page := range allPages(t) {
		for _, found := range block.FindAllStringSubmatch(string(must(os.ReadFile(page))), -1) {
			blocks++
			if regexp.MustCompile(`(?m)^\s*(order )?(cache|rate_limit|on .* exec)\b`).MatchString(found[1]) {
				continue // of modules that are not in this build; tools/neighbours has them
			}
			var err error
			for _, whole := range []string{found[1], ":8080 {\n" + found[1] + "}\n", ":8080 {\nservice_users {\n" + found[1] + "}\n}\n"} {
				if _, err = adapt([]byte(whole)); err == nil {
					break
				}
			}
			if err != nil {
				t.Errorf("%s: %v\n%s", page, err, found[1])
			}
		}
	}
	if blocks < 30 {
		t.Errorf("found %d blocks, fewer than were there", blocks)
	}
}
