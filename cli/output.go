package cli

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/serviceusers/caddy-service-users/admin"
)

// The forms in which results are printed.
const (
	outputTable = "table" // for people
	outputJSON  = "json"  // the answer of the REST API
	outputCSV   = "csv"   // the table, for spreadsheets
)

// chooseOutput sets output and json from both flags; --json is short for --output json. given
// reports whether --output was set.
func (c *cli) chooseOutput(given bool) error {
	switch {
	case !slices.Contains([]string{outputTable, outputJSON, outputCSV}, c.output):
		return usagef("--output %q: must be table, json or csv", c.output)
	case c.json && given && c.output != outputJSON:
		return usagef("--json and --output %s contradict each other; leave one of them out", c.output)
	case c.json:
		c.output = outputJSON
	}
	c.json = c.output == outputJSON
	return nil
}

// table is a result for people. A row without cells is an empty line.
type table [][]any

func (t *table) add(cells ...any) { *t = append(*t, cells) }

// known returns the rows whose second cell, a text, is not empty.
func (t table) known() table {
	return slices.DeleteFunc(t, func(row []any) bool { return row[1] == "" })
}

// texts returns the cells of a row as texts that are safe for a terminal.
func texts(row []any) []string {
	list := make([]string, len(row))
	for i, v := range row {
		list[i] = cell(fmt.Sprint(v))
	}
	return list
}

// print writes a result to the standard output, in the form of --output: v as JSON, or rows. Notes
// go to the standard error, but not with JSON, which contains the same facts.
func (c *cli) print(v any, rows table, notes ...string) error {
	var err error
	switch c.output {
	case outputJSON:
		enc := json.NewEncoder(c.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case outputCSV:
		err = c.printCSV(rows)
	default:
		w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
		for _, row := range rows {
			line := texts(row)
			for i := range line {
				if line[i] == "" {
					line[i] = "-"
				}
			}
			fmt.Fprintln(w, strings.Join(line, "\t"))
		}
		err = w.Flush()
	}
	if err != nil {
		return err
	}
	for _, note := range notes {
		if note != "" {
			fmt.Fprintln(c.stderr, cell(note))
		}
	}
	return nil
}

// printCSV prints the rows of a table as CSV (RFC 4180).
func (c *cli) printCSV(rows table) error {
	w := csv.NewWriter(c.stdout)
	w.UseCRLF = true
	for _, row := range rows {
		line := texts(row)
		for i := range line {
			line[i] = admin.CSVCell(line[i])
		}
		_ = w.Write(line) // Error below returns its error, too
	}
	w.Flush()
	return w.Error()
}

// done confirms a command that has no result, such as "deleted people.view". It prints nothing
// with JSON or CSV.
func (c *cli) done(format string, args ...any) error {
	if c.output != outputTable {
		return nil
	}
	_, err := fmt.Fprintln(c.stdout, cell(fmt.Sprintf(format, args...)))
	return err
}

// cell makes text from the store or a server safe for a terminal. Characters that control the
// terminal, or change the direction of writing, become spaces.
func cell(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.C, r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// when returns a time for people, or "" for none.
func when(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

func plural(n int, word string) string {
	if n != 1 {
		word += "s"
	}
	return fmt.Sprintf("%d %s", n, word)
}
