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

// chooseOutput settles on one form: --json is short for --output json.
func (c *cli) chooseOutput(given bool) error {
	if c.json && given && c.output != outputJSON {
		return usageError{fmt.Errorf("--json and --output %s contradict each other; leave one of them out", c.output)}
	}
	if c.json {
		c.output = outputJSON
	}
	c.json = c.output == outputJSON
	return nil
}

// printCSV prints the rows of a table as RFC 4180 says.
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
		_ = w.Write(row) // Flush keeps the error
	}
	w.Flush()
	return w.Error()
}

// csvCell keeps a spreadsheet from taking a text for a formula, by a "'" before it. The
// "-" of an empty place becomes one.
func csvCell(s string) string {
	if s == "-" {
		return ""
	}
	if first := strings.TrimLeftFunc(s, unicode.IsSpace); first != "" && strings.ContainsAny(first[:1], "=+-@") {
		return "'" + s
	}
	return s
}
