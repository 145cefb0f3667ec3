package caddymodule

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	pageLink    = regexp.MustCompile(`\]\(([^()\s]+)\)|(?:href|src)="([^"\s]+)"`)
	pageHeading = regexp.MustCompile(`^#{1,6} +(.*)$`)
	spans       = regexp.MustCompile("`[^`\n]*`")
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	namedPage   = regexp.MustCompile(`\bdocs/[a-z-]+\.md\b`)
)

// markdown is a page: its lines without blocks of code, and the anchors that GitHub gives its headings.
type markdown struct {
	lines   []string
	anchors map[string]bool
}

func readMarkdown(text string) markdown {
	page, code, times := markdown{anchors: make(map[string]bool)}, false, make(map[string]int)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
			line = ""
		}
		if code {
			line = ""
		}
		page.lines = append(page.lines, line)
		heading := pageHeading.FindStringSubmatch(strings.TrimSpace(line))
		if heading == nil {
			continue
		}
		title := pageLink.ReplaceAllString(strings.ReplaceAll(heading[1], "[", ""), "")
		anchor := strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
		times[anchor]++
		if n := times[anchor]; n > 1 { // as GitHub numbers headings that are there again
			anchor = fmt.Sprintf("%s-%d", anchor, n-1)
		}
		page.anchors[anchor] = true
	}
	return page
}

// TestLinks: each link of a page to a file of this repository, or to a heading, leads there; and each page
// that a file of the program or of an example names is there.
func TestLinks(t *testing.T) {
	pages := make(map[string]markdown)
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (name == "node_modules" || name == ".git" || name == "testdata"):
			return filepath.SkipDir
		case entry.IsDir():
		case strings.HasSuffix(name, ".md"):
			pages[path] = readMarkdown(string(must(os.ReadFile(path))))
		case strings.HasSuffix(name, "_test.go"):
		case strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "Caddyfile") || name == "Caddyfile.example":
			for _, page := range namedPage.FindAllString(string(must(os.ReadFile(path))), -1) {
				if _, err := os.Stat("../" + page); err != nil {
					t.Errorf("%s names %s, which is not there", path, page)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for path, page := range pages {
		for i, line := range page.lines {
			for _, link := range pageLink.FindAllStringSubmatch(spans.ReplaceAllString(line, ""), -1) {
				target, anchor, hasAnchor := strings.Cut(link[1]+link[2], "#")
				if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
					continue
				}
				links++
				to := path
				if target != "" {
					to = filepath.Join(filepath.Dir(path), target)
				}
				if _, err := os.Stat(to); err != nil {
					t.Errorf("%s:%d: the link %s leads to no file", path, i+1, target)
				} else if hasAnchor && !pages[to].anchors[anchor] {
					t.Errorf("%s:%d: %s has no heading #%s", path, i+1, to, anchor)
				}
			}
		}
	}
	if len(pages) < 25 || links < 300 {
		t.Errorf("found %d links in %d pages, fewer than were there", links, len(pages))
	}
}
