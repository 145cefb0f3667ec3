package caddymodule

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// troubles is docs/troubleshooting.md: the text of each section, by its heading.
type troubles map[string]string

// The parts of the page: a span of code, a block of commands, the decision in its examples.
var (
	codeSpan     = regexp.MustCompile("`([^`\n]+)`")
	commandBlock = regexp.MustCompile("(?s)```sh\n(.*?)```\n")
)

const exampleDecision = "decision_3MR7vYJK7YenWBW6m9cXsWLAneA"

func readTroubles(t *testing.T) troubles {
	t.Helper()
	text, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	page := make(troubles)
	for _, part := range regexp.MustCompile(`(?m)^#+ `).Split(string(text), -1)[1:] {
		heading, rest, _ := strings.Cut(part, "\n")
		if page[heading] != "" {
			t.Errorf("the heading %q is there twice", heading)
		}
		page[heading] = rest
	}
	return page
}

// commands returns the lines of the blocks of commands of a section.
func (p troubles) commands(heading string) (lines []string) {
	for _, block := range commandBlock.FindAllStringSubmatch(p[heading], -1) {
		lines = append(lines, strings.Split(strings.TrimSpace(block[1]), "\n")...)
	}
	return lines
}

// rows returns the rows of the tables of a section that have a column of texts, by the text. The
// cells of a row are those after the text.
func (p troubles) rows(heading string) map[string][]string { return rowsOf(p[heading]) }

func rowsOf(section string) map[string][]string {
	rows, column := make(map[string][]string), -1
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		switch {
		case !strings.HasPrefix(line, "|"):
			column = -1
		case column < 0:
			column = slices.IndexFunc(cells, func(cell string) bool { return strings.HasPrefix(cell, "text") })
			if column < 0 {
				column = len(cells) // a table without texts
			}
		case column < len(cells) && strings.HasPrefix(cells[column], "`"):
			rows[strings.Trim(cells[column], "`")] = cells[column+1:]
		}
	}
	return rows
}

// untried complains about each row of a section without a case in tried, and about cases without a row.
func untried[V any](t *testing.T, rows map[string][]string, tried map[string]V) {
	t.Helper()
	for text := range rows {
		if _, ok := tried[text]; !ok {
			t.Errorf("no case tries the row %q", text)
		}
	}
	for text := range tried {
		if rows[text] == nil {
			t.Errorf("the page has no row %q", text)
		}
	}
}

// quotes reports whether a text has a text of the page, in which "…" is anything within a line.
func quotes(text, quote string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(quote), "…", ".*")
	return regexp.MustCompile(pattern).MatchString(text)
}

// literals returns the string constants of the program, each with a NUL in the place of a verb or of
// an operand that is not a constant.
func literals(t *testing.T) string {
	t.Helper()
	verb := regexp.MustCompile(`%(\[\d+\])?[#0-9]*[a-zA-Z]`)
	var all strings.Builder
	var flat func(e ast.Expr) string
	flat = func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.BasicLit:
			if text, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
				return verb.ReplaceAllString(text, "\x00")
			}
		case *ast.BinaryExpr:
			return flat(e.X) + flat(e.Y)
		}
		return "\x00"
	}
	files := 0
	for _, dir := range []string{"access", "store", "admin", "caddymodule", "cli"} {
		for _, file := range must(filepath.Glob("../" + dir + "/*.go")) {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			files++
			ast.Inspect(must(parser.ParseFile(token.NewFileSet(), file, nil, 0)), func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BinaryExpr:
					all.WriteString(flat(n) + "\x00\x00")
					return n.Op != token.ADD
				case *ast.BasicLit:
					all.WriteString(flat(n) + "\x00\x00")
				}
				return true
			})
		}
	}
	if files < 50 {
		t.Fatalf("read %d files", files)
	}
	return all.String()
}

// foreign are the spans of code with a space that are not of this program.
var foreign = []string{
	"journalctl -u caddy -o cat", "base64 -w0", "user = ID:TOKEN", "Via: 1.1 Caddy", "max_header_size",
	"ready PATH", "headers none", "otherwise pass", "service_users sanitize", "POST …/can", "group add",
	"400 Bad Request", "400 Bad Request: missing required Host header", "Client sent an HTTP request to an HTTPS server",
	"unrecognized directive: service_users", "connection refused; is Caddy running, and is its address right",
	"no such file or directory; is Caddy running, and is its address right", "host not allowed", "unknown flag",
	"permission denied; only the user of Caddy may open the socket",
	"no such file or directory; --create, or \"caddy run\", makes a new store",
}

// TestTroubleshootingPage: each entry of the page ends in a command, each command and flag is
// there, and each text that the page quotes is a text of the program. The tests of the tables
// produce the texts of their rows; see tried.
func TestTroubleshootingPage(t *testing.T) {
	t.Parallel()
	page := readTroubles(t)
	if len(page) < 30 {
		t.Fatalf("the page has %d sections", len(page))
	}
	text := literals(t)
	names := string(must(os.ReadFile("testdata/names.txt")))
	produced := make(map[string]bool)
	for heading := range page {
		if heading == "Store faults" { // its texts are looked up, too
			continue
		}
		for quote := range page.rows(heading) {
			produced[quote] = true
		}
	}
	for heading, section := range page {
		if parent := len(page.rows(heading)) == 0 && !strings.Contains(section, "```"); !parent &&
			!strings.HasSuffix(strings.TrimRight(section, "\n"), "```") {
			t.Errorf("%s: the entry does not end in a command", heading)
		}
		commands := page.commands(heading)
		for _, span := range codeSpan.FindAllStringSubmatch(commandBlock.ReplaceAllString(section, ""), -1) {
			span := strings.ReplaceAll(span[1], `\|`, "|")
			program, _, many := strings.Cut(span, " ")
			switch {
			case slices.Contains(strings.Fields("caddy curl grep"), program) && many:
				commands = append(commands, span)
			case strings.HasPrefix(span, "caddy_service_users_"):
				if !regexp.MustCompile(`\b` + span + `\b`).MatchString(names) {
					t.Errorf("%s: there is no metric %s", heading, span)
				}
			case !many || slices.Contains(foreign, span) || produced[span]:
			default:
				for _, part := range strings.Split(span, "…") {
					if !strings.Contains(text, strings.TrimSpace(part)) {
						t.Errorf("%s: no text of the program has %q of `%s`", heading, part, span)
					}
				}
			}
		}
		for _, command := range commands {
			checkCommand(t, command)
		}
	}
	checkTroubleLinks(t, page)
}

// checkTroubleLinks complains about an anchor that no heading of the page has.
func checkTroubleLinks(t *testing.T, page troubles) {
	t.Helper()
	anchors := make(map[string]bool)
	for heading := range page {
		anchor := strings.ToLower(regexp.MustCompile(`[^\w -]`).ReplaceAllString(heading, ""))
		anchors[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	for heading, section := range page {
		for _, link := range regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(section, -1) {
			if !anchors[link[1]] {
				t.Errorf("%s: the link #%s leads nowhere", heading, link[1])
			}
		}
	}
}

// checkCommand complains about a command line that the program would refuse.
func checkCommand(t *testing.T, line string) {
	t.Helper()
	line = strings.NewReplacer("DECISION", "decision_2x", "USER", "billing-sync").Replace(line)
	words := shellWords(line)
	switch {
	case words[0] == "grep" || words[0] == "curl": // the sections run them
	case len(words) < 2 || words[0] != "caddy":
		t.Errorf("%s: not a command of Caddy", line)
	default:
		checkWords(t, line, words)
	}
}

// checkWords complains about the words of a command, the first of which is caddy.
func checkWords(t *testing.T, line string, words []string) {
	t.Helper()
	if words[1] != "service-user" {
		known, ok := caddycmd.Commands()[words[1]]
		cmd := new(cobra.Command)
		switch {
		case slices.Contains([]string{"completion", "help", "--version"}, words[1]): // of cobra
			return
		case !ok:
			t.Errorf("%s: Caddy has no such command", line)
		case known.CobraFunc != nil:
			known.CobraFunc(cmd)
		}
		if known.Flags != nil {
			cmd.Flags().AddGoFlagSet(known.Flags)
		}
		if err := cmd.ParseFlags(words[2:]); err != nil && !errors.Is(err, pflag.ErrHelp) {
			t.Errorf("%s: %v", line, err)
		}
		return
	}
	if slices.Equal(words[len(words)-1:], []string{"--create"}) { // works without a command
		return
	}
	cmd, args, err := serviceUserCommand(t).Find(words[2:])
	if err != nil || cmd.HasSubCommands() {
		t.Errorf("%s: got %q, %v, want a command", line, cmd.CommandPath(), err)
		return
	}
	cmd.SetErr(io.Discard)
	if err := cmd.ParseFlags(args); err != nil && !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("%s: %v", line, err)
	} else if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil && !slices.Contains(args, "--help") {
		t.Errorf("%s: %v", line, err)
	}
}
