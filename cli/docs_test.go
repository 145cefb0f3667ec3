package cli

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const (
	cliDocs      = "../docs/cli.md"
	cliDocsBelow = "<!-- What follows is written by: go test ./cli -run CLIDocs -update -->\n"
)

// TestCLIDocs: every command and every flag stands in docs/cli.md, with the text
// that --help shows.
func TestCLIDocs(t *testing.T) {
	text, err := os.ReadFile(cliDocs)
	if err != nil {
		t.Fatal(err)
	}
	byHand, written, ok := strings.Cut(string(text), cliDocsBelow)
	if !ok {
		t.Fatalf("%s has no line %s", cliDocs, cliDocsBelow)
	}
	leaves := commandTree()
	want := describe(leaves)
	if *update {
		if err := os.WriteFile(cliDocs, []byte(byHand+cliDocsBelow+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if written == want {
		return
	}
	t.Errorf("%s does not say what the commands do; -update writes it", cliDocs)
	for _, cmd := range leaves { // what it is about
		if section := describeCommand(cmd); !strings.Contains(written, section) {
			t.Errorf("got no section\n%s", section)
		}
	}
}

// describe writes the reference of all commands.
func describe(leaves []*cobra.Command) string {
	var b strings.Builder
	b.WriteString("\n## Flags of every command\n")
	b.WriteString(flagTable(leaves[0].InheritedFlags().FlagUsages()))
	b.WriteString("\n## Commands\n")
	for _, cmd := range leaves {
		b.WriteString(describeCommand(cmd))
	}
	return b.String()
}

func describeCommand(cmd *cobra.Command) string {
	var b strings.Builder
	name := strings.TrimPrefix(cmd.CommandPath(), "caddy service-user ")
	usages := strings.Split(cmd.Use, " | ")
	for i, usage := range usages {
		_, arguments, _ := strings.Cut(usage, " ")
		usages[i] = "`" + strings.TrimSpace(name+" "+arguments) + "`"
	}
	fmt.Fprintf(&b, "\n### %s\n\n%s\n%s\n```sh\n%s\n```\n",
		strings.Join(usages, ", "), cmd.Long, flagTable(cmd.LocalFlags().FlagUsages()), strings.TrimSpace(cmd.Example))
	return b.String()
}

// flagTable makes a table of a text of usage. It is empty without flags.
func flagTable(usages string) string {
	table := ""
	for _, m := range flagUsage.FindAllStringSubmatch(usages, -1) {
		short, name, kind, usage := m[1], m[2], m[3], m[4]
		if name == "help" {
			continue
		}
		if strings.HasPrefix(kind, " string") {
			kind = " TEXT"
		}
		flag := "`--" + name + kind + "`"
		if short != "" {
			flag += ", `-" + short + "`"
		}
		table += fmt.Sprintf("| %s | %s |\n", flag, strings.ReplaceAll(usage, "|", `\|`))
	}
	if table != "" {
		table = "\n| flag | |\n|---|---|\n" + table
	}
	return table
}

var flagUsage = regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([a-z-]+)( \S+)?   +(.*)$`)
