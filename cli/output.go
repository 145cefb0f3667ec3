package cli

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
)

// outputFlag is the form in which results are printed.
type outputFlag string

const (
	outputTable outputFlag = "table" // for people
	outputJSON  outputFlag = "json"  // the answer of the REST API
	outputCSV   outputFlag = "csv"   // the table, for spreadsheets
)

func (o *outputFlag) String() string { return string(*o) }
func (o *outputFlag) Type() string   { return "FORMAT" }

func (o *outputFlag) Set(text string) error {
	if !slices.Contains([]outputFlag{outputTable, outputJSON, outputCSV}, outputFlag(text)) {
		return errors.New("must be table, json or csv")
	}
	*o = outputFlag(text)
	return nil
}

// chooseOutput sets output and json from both flags; --json is short for --output json. given
// reports whether --output was set.
func (c *cli) chooseOutput(given bool) error {
	if c.json && given && c.output != outputJSON {
		return usageError{fmt.Errorf("--json and --output %s contradict each other; leave one of them out",
			c.output)}
	}
	if c.json {
		c.output = outputJSON
	}
	c.json = c.output == outputJSON
	return nil
}

// printCSV prints the rows of a table as CSV (RFC 4180).
func (c *cli) printCSV(table func(io.Writer)) error {
	var text bytes.Buffer
	table(&text)
	w := csv.NewWriter(c.stdout)
	w.UseCRLF = true
	for line := range strings.Lines(text.String()) {
		row := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		for i := range row {
			row[i] = csvCell(row[i])
		}
		_ = w.Write(row) // Error below returns its error, too
	}
	w.Flush()
	return w.Error()
}

// csvCell puts a "'" before a text that a spreadsheet would read as a formula, such as "=1+1".
// The "-" of an empty place becomes an empty cell.
func csvCell(s string) string {
	if s == "-" {
		return ""
	}
	if first := strings.TrimLeftFunc(s, unicode.IsSpace); first != "" && strings.ContainsAny(first[:1], "=+-@") {
		return "'" + s
	}
	return s
}
