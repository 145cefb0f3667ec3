//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/bench/plot"
)

// summary has the rows of the tables and of the picture of ratios, in their order.
var summary = []struct {
	section, subject string
	name             string
	short            bool // also in README.md
}{
	{"same", "bare reverse_proxy", "Caddy's `reverse_proxy`, no check", true},
	{"same", "with 3 `header_up`", "the same, with three `header_up`", false},
	{"same", "plugin, `headers none`", "**this plugin**, `headers none`", false},
	{"same", "plugin", "**this plugin**", true},
	{"same", "bare `service_users_proxy`", "`service_users_proxy`, no check", false},
	{"same", lean, "**this plugin** with `service_users_proxy`", true},
	{"peers", "`basic_auth` with hash_cache, 1000 accounts, warm", "Caddy `basic_auth`, 1000 accounts, all in its cache", false},
	{"slow", "`basic_auth` with hash_cache, 10 000 accounts, bcrypt 10", "Caddy `basic_auth`, 10 000 accounts, bcrypt 10", true},
	{"slow", "`basic_auth` without hash_cache, 1 account, bcrypt 14", "Caddy `basic_auth`, no cache, bcrypt 14", false},
	{"peers", "`forward_auth` to an authority", "Caddy `forward_auth`", true},
	{"peers", "nginx, no check", "nginx, no check", true},
	{"peers", "nginx `auth_basic`, 1 account", "nginx `auth_basic`, one account, SHA-1", false},
	{"peers", "nginx `auth_basic`, 10 000 accounts", "nginx `auth_basic`, 10 000 accounts, SHA-1", true},
	{"slow", "nginx auth_basic bcrypt 10, 1 account", "nginx `auth_basic`, one account, bcrypt 10", false},
	{"peers", "nginx `auth_request` to an authority", "nginx `auth_request`", true},
	{"peers", "Oathkeeper, 1000 clients, warm", "Oathkeeper, 1000 clients, all in its cache", true},
	{"peers", "oauth2-proxy, 10 000 accounts", "oauth2-proxy, 10 000 accounts, SHA-1", true},
	{"peers", "Traefik, no check", "Traefik, no check", false},
	{"peers", "Traefik `basicAuth`, 1 account", "Traefik `basicAuth`, one account, SHA-1", false},
	{"peers", "Traefik `basicAuth`, 10 000 accounts", "Traefik `basicAuth`, 10 000 accounts, SHA-1", true},
	{"peers", "Traefik `forwardAuth` to an authority", "Traefik `forwardAuth`", true},
}

// row has the ratios of a subject to its reference: requests a second, CPU of a request, p99.
type row struct {
	name   string
	short  bool
	ratios []float64
}

// row returns the ratios of a subject; false if it was not measured.
func (s *section) row(t *subject, name string) (row, bool) {
	if t == nil || len(t.turns["rate"]) == 0 {
		return row{}, false
	}
	r := row{name: name, ratios: []float64{1, 1, 1}}
	if of := s.find(t.against); of != nil {
		for i, figure := range []string{"rate", "cpu", "p99"} {
			r.ratios[i] = spread(ratios(t.turns[figure], of.turns[figure])).median
		}
	}
	return r, true
}

// peersRows are the rows of [summary], protocolRows the guarded subjects of section "protocols".
func (b *bench) peersRows() (list []row) {
	for _, line := range summary {
		for _, s := range b.sections {
			if r, measured := s.row(s.find(line.subject), line.name); s.name == line.section && measured {
				r.short = line.short
				list = append(list, r)
			}
		}
	}
	return list
}

func (b *bench) protocolRows() (list []row) {
	for _, s := range b.sections {
		for _, t := range s.subjects {
			name := strings.NewReplacer(": "+lean, ": **service_users_proxy**", ": plugin", ": reverse_proxy").Replace(t.name)
			if r, measured := s.row(t, name); s.name == "protocols" && t.against != "" && measured {
				list = append(list, r)
			}
		}
	}
	return list
}

func table(rows []row) string {
	var text strings.Builder
	text.WriteString("| | requests a second | CPU of a request | p99 |\n|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&text, "| %s | %s | %s | %s |\n", r.name, digits(r.ratios[0]), digits(r.ratios[1]), digits(r.ratios[2]))
	}
	return text.String()
}

// protocolsTable has both proxies of a protocol and body in one line.
func (b *bench) protocolsTable() string {
	var text strings.Builder
	text.WriteString("| | `reverse_proxy`: requests a second | CPU | p99 | `service_users_proxy`: requests a second | CPU | p99 |\n|---|---|---|---|---|---|---|\n")
	for pair := range slices.Chunk(b.protocolRows(), 2) {
		name, _, _ := strings.Cut(pair[0].name, ": ")
		text.WriteString("| " + name + " |")
		for _, r := range pair {
			fmt.Fprintf(&text, " %s | %s | %s |", digits(r.ratios[0]), digits(r.ratios[1]), digits(r.ratios[2]))
		}
		text.WriteString("\n")
	}
	return text.String()
}

// floodTable has good requests a second, relative to the same subject without a flood.
func (b *bench) floodTable() string {
	var text strings.Builder
	text.WriteString("| | good requests a second | p99, ms |\n|---|---|---|\n")
	for _, s := range b.sections {
		for _, t := range s.subjects {
			if alone := t.turns["rate alone"]; len(alone) > 0 {
				fmt.Fprintf(&text, "| %s | %s | %s |\n", t.name, digits(spread(ratios(t.turns["rate"], alone)).median), t.median("p99"))
			}
		}
	}
	return text.String()
}

// tables are those in other pages.
var tables = []struct {
	file, name string
	text       func(*bench) string
}{
	{"README.md", "peers", func(b *bench) string {
		return b.about + "\n\n" + table(slices.DeleteFunc(b.peersRows(), func(r row) bool { return !r.short }))
	}},
	{"docs/performance.md", "peers", func(b *bench) string { return b.about + "\n\n" + table(b.peersRows()) }},
	{"docs/performance.md", "protocols", (*bench).protocolsTable},
	{"docs/performance.md", "flood", (*bench).floodTable},
}

// chart draws rows as a picture.
func chart(title string, rows []row) plot.Chart {
	c := plot.Chart{Title: title, Columns: []string{"requests a second (more is better)", "CPU of a request (less is better)"}}
	for _, r := range rows {
		c.Rows = append(c.Rows, plot.Row{Name: strings.NewReplacer("`", "", "**", "").Replace(r.name), Marked: strings.Contains(r.name, "**"), Ratios: r.ratios[:2]})
	}
	return c
}

// write runs all sections and writes the page of their tables, the picture, and the tables of other pages.
func (b *bench) write(ctx context.Context) error {
	page, err := os.Create(filepath.Join(b.dir, "benchmark.md"))
	if err != nil {
		return err
	}
	defer page.Close()
	os.Stdout = page
	if err := b.run(ctx); err != nil {
		return err
	}
	text, err := os.ReadFile(page.Name())
	if err != nil {
		return err
	}
	var picture bytes.Buffer
	plot.Ratios(&picture, chart("relative to Caddy without a check", b.peersRows()),
		chart("with this plugin, by protocol and body", b.protocolRows()))
	files := map[string]string{"docs/benchmark.md": string(text), "docs/benchmark.svg": picture.String()}
	for _, table := range tables {
		if files[table.file] == "" {
			text, err := os.ReadFile(filepath.Join(b.repository, table.file))
			if err != nil {
				return err
			}
			files[table.file] = string(text)
		}
		if files[table.file], err = replaceTable(files[table.file], table.name, table.text(b)); err != nil {
			return fmt.Errorf("%s: %w", table.file, err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(b.repository, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// replaceTable replaces the text between the comments that mark a table in a page.
func replaceTable(page, name, table string) (string, error) {
	begin, end := "<!-- bench: "+name+" -->\n", "<!-- bench end -->\n"
	before, rest, found := strings.Cut(page, begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return "", fmt.Errorf("there is no table between %q and %q", begin, end)
	}
	return before + begin + "\n" + table + "\n" + end + after, nil
}
