// Prose counts five habits that make a reader search for the noun of a sentence, in the
// comments of hand-written production code, in Markdown outside of code blocks, and in the texts
// of HTML templates.
// CONTRIBUTING.md shows the words to write instead. Prose fails when one habit is more
// frequent than the limit.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var habits = []struct {
	name    string
	pattern *regexp.Regexp
}{
	{`"what …" as a noun`, regexp.MustCompile(`(?i)\bwhat (is|was|are|were|has|would|may|cannot|a|an|the|it|they)\b`)},
	{`"is no …"`, regexp.MustCompile(`(?i)\b(is|are|was|were) (no|none|nobody|nothing)\b`)},
	{`"tell", "told"`, regexp.MustCompile(`(?i)\b(tell|tells|told|telling)\b`)},
	{`"stand", "stands"`, regexp.MustCompile(`(?i)\b(stands?|stood|standing)\b`)},
	{`"who …", "whoever" as a noun`, regexp.MustCompile(`(?i)\b(whoever|who (has|is|does|asks))\b`)},
}

var codeBlock = regexp.MustCompile("(?s)```.*?```")

// markup is all of a template but its texts.
var markup = regexp.MustCompile("(?s){{.*?}}|<[^>]*>")

func main() {
	limit := flag.Float64("limit", 0.5, "the most that is accepted, per 1,000 words")
	show := flag.Bool("show", false, "print the places")
	flag.Parse()
	if err := run(flag.Args(), *limit, *show); err != nil {
		fmt.Fprintln(os.Stderr, "prose:", err)
		os.Exit(1)
	}
}

func run(roots []string, limit float64, show bool) error {
	words, counts := 0, make([]int, len(habits))
	comment := func(place token.Position, text string) {
		text = strings.Join(strings.Fields(text), " ")
		words += len(strings.Fields(text))
		for i, habit := range habits {
			for _, at := range habit.pattern.FindAllStringIndex(text, -1) {
				counts[i]++
				if show {
					fmt.Printf("%s: %s: …%s…\n", place, habit.name, text[max(0, at[0]-40):min(len(text), at[1]+40)])
				}
			}
		}
	}
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
				text, err := os.ReadFile(path)
				text = codeBlock.ReplaceAllFunc(text, func(block []byte) []byte {
					return bytes.Repeat([]byte("\n"), bytes.Count(block, []byte("\n")))
				})
				for i, line := range strings.Split(string(text), "\n") {
					comment(token.Position{Filename: path, Line: i + 1}, line)
				}
				return err
			}
			if err == nil && filepath.Base(filepath.Dir(path)) == "templates" && strings.HasSuffix(path, ".html") {
				text, err := os.ReadFile(path)
				comment(token.Position{Filename: path}, string(markup.ReplaceAll(text, []byte(" "))))
				return err
			}
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, path, nil, parser.ParseComments)
			if err != nil || ast.IsGenerated(file) {
				return err
			}
			for _, group := range file.Comments {
				comment(files.Position(group.Pos()), group.Text())
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	var failed []string
	for i, habit := range habits {
		rate := 1000 * float64(counts[i]) / float64(max(words, 1))
		fmt.Printf("%-32s %5d %5.1f\n", habit.name, counts[i], rate)
		if rate > limit {
			failed = append(failed, habit.name)
		}
	}
	fmt.Printf("%d words\n", words)
	if failed != nil {
		return fmt.Errorf("more than %g in 1,000 words: %s", limit, strings.Join(failed, ", "))
	}
	return nil
}
