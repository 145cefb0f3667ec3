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
		"rule remove", "delete", "group delete", "group undelete", "audit list", "audit verify", "health", "node list", "undelete", "lint", "check-log", "scan", "backup", "check", "restore", "accept-older",
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
	for _, page := range append(must(filepath.Glob("../docs/*.md")), "../README.md", "../CHANGELOG.md") {
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
