//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/serviceusers/caddy-service-users/bench/plot"
)

// summary has the rows of the tables and of the picture of ratios, in their order.
var summary = []struct {
	section, subject string
	name             string
	short            bool // is in README.md too
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
	{"peers", "Oathkeeper, 10 000 clients, warm", "Oathkeeper, 10 000 clients, all in its cache", true},
	{"peers", "oauth2-proxy, 10 000 accounts", "oauth2-proxy, 10 000 accounts, SHA-1", true},
	{"peers", "Traefik, no check", "Traefik, no check", false},
	{"peers", "Traefik `basicAuth`, 1 account", "Traefik `basicAuth`, one account, SHA-1", false},
	{"peers", "Traefik `basicAuth`, 10 000 accounts", "Traefik `basicAuth`, 10 000 accounts, SHA-1", true},
	{"peers", "Traefik `forwardAuth` to an authority", "Traefik `forwardAuth`", true},
}

// write runs all sections and writes the page of their tables, the picture, and the tables of other pages.
func (b *bench) write(ctx context.Context) error {
	page, err := os.Create(filepath.Join(b.dir, "benchmark.md"))
	if err != nil {
		return err
	}
	os.Stdout = page
	if err := b.run(ctx); err != nil {
		return err
	}
	if err := page.Close(); err != nil {
		return err
	}
	text, err := os.ReadFile(page.Name())
	if err != nil {
		return err
	}
	docs := filepath.Join(b.repository, "docs")
	if err := os.WriteFile(filepath.Join(docs, "benchmark.md"), text, 0o644); err != nil {
		return err
	}
	picture, err := os.Create(filepath.Join(docs, "benchmark.svg"))
	if err != nil {
		return err
	}
	plot.Ratios(picture, b.charts()...)
	if err := picture.Close(); err != nil {
		return err
	}
	for _, table := range tables {
		file := filepath.Join(b.repository, table.file)
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		replaced, err := replaceTable(string(text), table.name, table.text(b))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := os.WriteFile(file, []byte(replaced), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// tables are those in other pages.
var tables = []struct {
	file, name string
	text       func(*bench) string
}{
	{"README.md", "peers", func(b *bench) string { return b.peersTable(true) }},
	{"docs/performance.md", "peers", func(b *bench) string { return b.peersTable(false) }},
	{"docs/performance.md", "protocols", (*bench).protocolsTable},
	{"docs/performance.md", "flood", (*bench).floodTable},
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

// median returns the median of the ratios of a figure of a subject; NaN if it was not measured. The
// reference itself has 1.
func (b *bench) median(section, subject, figure string) float64 {
	for _, s := range b.sections {
		if t := s.find(subject); s.name == section && t != nil && len(t.turns[figure]) > 0 {
			if of := s.find(t.against); of != nil {
				return spread(ratios(t.turns[figure], of.turns[figure])).median
			}
			return 1
		}
	}
	return math.NaN()
}

// peersTable is the table of [summary].
func (b *bench) peersTable(short bool) string {
	var text strings.Builder
	text.WriteString(b.about + "\n\n| | requests a second | CPU of a request |")
	if !short {
		text.WriteString(" p99 |")
	}
	text.WriteString("\n|---|---|---|" + map[bool]string{false: "---|"}[short] + "\n")
	for _, row := range summary {
		rate := b.median(row.section, row.subject, "rate")
		if math.IsNaN(rate) || short && !row.short {
			continue
		}
		fmt.Fprintf(&text, "| %s | %s | %s |", row.name, ratioText(rate), ratioText(b.median(row.section, row.subject, "cpu")))
		if !short {
			fmt.Fprintf(&text, " %s |", ratioText(b.median(row.section, row.subject, "p99")))
		}
		text.WriteString("\n")
	}
	return text.String()
}

// ratioText writes a ratio with as many digits as two runs agree on.
func ratioText(ratio float64) string {
	switch {
	case ratio >= 100:
		return fmt.Sprintf("%.0f", ratio)
	case ratio >= 0.1:
		return fmt.Sprintf("%.2f", ratio)
	case ratio >= 0.001:
		return fmt.Sprintf("%.3f", ratio)
	default:
		return digits(ratio)
	}
}

var protocolRow = regexp.MustCompile(`^(.+): bare reverse_proxy$`)

// eachProtocol calls f with the rows of section "protocols", and their ratios: rate, CPU and p99 of the
// guarded reverse_proxy, then those of the guarded service_users_proxy.
func (b *bench) eachProtocol(f func(name string, ratios []float64)) {
	for _, s := range b.sections {
		for _, t := range s.subjects {
			match := protocolRow.FindStringSubmatch(t.name)
			if match == nil || s.name != "protocols" {
				continue
			}
			var list []float64
			for _, guarded := range []string{": plugin", ": " + lean} {
				for _, figure := range []string{"rate", "cpu", "p99"} {
					list = append(list, b.median(s.name, match[1]+guarded, figure))
				}
			}
			f(match[1], list)
		}
	}
}

func (b *bench) protocolsTable() string {
	var text strings.Builder
	text.WriteString("| | `reverse_proxy`: requests a second | CPU of a request | p99 | `service_users_proxy`: requests a second | CPU of a request | p99 |\n|---|---|---|---|---|---|---|\n")
	b.eachProtocol(func(name string, list []float64) {
		text.WriteString("| " + name + " |")
		for _, ratio := range list {
			text.WriteString(" " + ratioText(ratio) + " |")
		}
		text.WriteString("\n")
	})
	return text.String()
}

func (b *bench) floodTable() string {
	var text strings.Builder
	text.WriteString("| | good requests a second, relative to no flood | p99, ms |\n|---|---|---|\n")
	for _, s := range b.sections {
		for _, t := range s.subjects {
			if s.name == "flood" {
				fmt.Fprintf(&text, "| %s | %s | %s |\n", t.name, ratioText(spread(ratios(t.turns["rate"], t.turns["rate alone"])).median), t.median("p99"))
			}
		}
	}
	return text.String()
}

// charts are the tables of peers and of protocols as pictures.
func (b *bench) charts() []plot.Chart {
	columns := []string{"requests a second (more is better)", "CPU of a request (less is better)"}
	peers := plot.Chart{Title: "relative to Caddy without a check", Columns: columns}
	for _, row := range summary {
		rate := b.median(row.section, row.subject, "rate")
		if !math.IsNaN(rate) {
			peers.Rows = append(peers.Rows, plot.Row{Name: strings.NewReplacer("`", "", "**", "").Replace(row.name), Marked: strings.HasPrefix(row.name, "**"),
				Ratios: []float64{rate, b.median(row.section, row.subject, "cpu")}})
		}
	}
	protocols := plot.Chart{Title: "with this plugin, by protocol and body", Columns: columns}
	b.eachProtocol(func(name string, list []float64) {
		protocols.Rows = append(protocols.Rows, plot.Row{Name: name + ": reverse_proxy", Ratios: list[:2]},
			plot.Row{Name: name + ": service_users_proxy", Marked: true, Ratios: list[3:5]})
	})
	return []plot.Chart{peers, protocols}
}
