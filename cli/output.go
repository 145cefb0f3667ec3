package cli

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/serviceusers/caddy-service-users/admin"
)

// outputFlag is the form in which results are printed.
type outputFlag string

const (
	outputTable outputFlag = "table" // for people
	outputJSON  outputFlag = "json"  // what REST answers
	outputCSV   outputFlag = "csv"   // the same for spreadsheets
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

// forPeople reports whether results are printed as tables.
func (c *cli) forPeople() bool { return c.output == outputTable }

// printCSV prints a result as RFC 4180 says: a list with a header row, anything
// else as rows of a name and a value. Names are those of REST.
func (c *cli) printCSV(v any) error {
	w := csv.NewWriter(c.stdout)
	w.UseCRLF = true
	for _, row := range csvRows(v) {
		for i := range row {
			row[i] = csvCell(row[i])
		}
		_ = w.Write(row) // Flush keeps the error
	}
	w.Flush()
	return w.Error()
}

// csvList is a result that is a list, although it holds more than that.
type csvList interface {
	csvList() any // a slice of structs
}

// csvRows turns what REST answers into rows, whatever it is.
func csvRows(v any) (rows [][]string) {
	list, isList := listIn(v)
	if !isList {
		rows = append(rows, []string{"key", "value"})
		value := reflect.ValueOf(v)
		for _, f := range fieldsOf(value.Type(), csvField{}) {
			if text := f.of(value); text != "" || !f.optional {
				rows = append(rows, []string{f.name, text})
			}
		}
		return rows
	}
	fields := fieldsOf(list.Type().Elem(), csvField{})
	for range list.Len() + 1 {
		rows = append(rows, nil)
	}
	for _, f := range fields {
		column, empty := []string{f.name}, true
		for i := range list.Len() {
			text := f.of(list.Index(i))
			column, empty = append(column, text), empty && text == ""
		}
		if f.optional && empty {
			continue // such as the secret, which no list holds
		}
		for i, text := range column {
			rows[i] = append(rows[i], text)
		}
	}
	return rows
}

// listIn returns the list that a result is: a page of something, or nothing but a
// slice.
func listIn(v any) (list reflect.Value, ok bool) {
	switch v := v.(type) {
	case csvList:
		return reflect.ValueOf(v.csvList()), true
	case admin.Access:
		return reflect.ValueOf(accessRows(v)), true
	}
	value := reflect.ValueOf(v)
	if _, page := value.Type().FieldByName("Page"); !page && value.NumField() != 1 {
		return list, false
	}
	for i := range value.NumField() {
		if value.Field(i).Kind() == reflect.Slice {
			return value.Field(i), true
		}
	}
	return list, false
}

// accessRow is a rule of a service user, with the group that it comes from.
type accessRow struct {
	PermissionGroup admin.GroupRef `json:"permission_group"`
	Source          string         `json:"source"`
	Rule            *admin.Rule    `json:"rule"` // nil: the group has none
}

func accessRows(a admin.Access) (rows []accessRow) {
	for _, g := range a.PermissionGroups {
		if len(g.Rules) == 0 {
			rows = append(rows, accessRow{g.GroupRef, g.Source, nil})
		}
		for _, r := range g.Rules {
			rows = append(rows, accessRow{g.GroupRef, g.Source, &r})
		}
	}
	return rows
}

// csvField is a place in a struct that makes one cell.
type csvField struct {
	name     string // as REST calls it; those of inner objects are joined by dots
	optional bool   // REST leaves it out when it is empty
	path     []int
}

// fieldsOf lists the cells that a struct makes, below a place in others. One within
// its own kind, such as the token that a token replaces, makes none.
func fieldsOf(t reflect.Type, at csvField, within ...reflect.Type) (fields []csvField) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
		return []csvField{at}
	}
	if slices.Contains(within, t) {
		return nil
	}
	within = append(slices.Clone(within), t)
	for i := range t.NumField() {
		name, options, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		in := csvField{at.name, at.optional || strings.Contains(options, "omit"), append(slices.Clone(at.path), i)}
		switch {
		case name == "-":
			continue
		case at.name != "" && name != "":
			in.name += "." + name
		case name != "":
			in.name = name
		}
		fields = append(fields, fieldsOf(t.Field(i).Type, in, within...)...)
	}
	return fields
}

// of returns the text of the cell for one struct.
func (f csvField) of(v reflect.Value) string {
	for _, i := range f.path {
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if !v.IsValid() {
			return ""
		}
		v = v.Field(i)
	}
	separator := ","
	if strings.HasSuffix(f.name, "rules") || strings.HasSuffix(f.name, "warnings") || strings.HasSuffix(f.name, "findings") {
		separator = "\n" // they hold commas
	}
	return csvText(v, separator)
}

// csvText writes a value: lists of words with a separator, rules and labels one a
// line, and what is more complicated as JSON.
func csvText(v reflect.Value, separator string) string {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if !v.IsValid() || v.IsZero() && (v.Kind() == reflect.Struct || v.Kind() == reflect.Slice) {
		return ""
	}
	switch x := v.Interface().(type) {
	case time.Time:
		return x.Format(time.RFC3339)
	case []string:
		return strings.Join(x, separator)
	case []admin.Rule:
		texts := make([]string, len(x))
		for i, r := range x {
			texts[i] = r.Text
		}
		return strings.Join(texts, "\n")
	case map[string]string:
		var pairs []string
		for _, key := range slices.Sorted(maps.Keys(x)) {
			pairs = append(pairs, key+"="+x[key])
		}
		return strings.Join(pairs, "\n")
	}
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Bool, reflect.Int, reflect.Int64:
		return fmt.Sprint(v.Interface())
	case reflect.Slice:
		if v.Len() == 0 {
			return ""
		}
	}
	text, err := json.Marshal(v.Interface())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// csvCell keeps a spreadsheet from taking a text for a formula, by a "'" before
// it, and a terminal from being controlled by it. Lines stay lines.
func csvCell(s string) string {
	first := strings.TrimLeftFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.Is(unicode.C, r) })
	formula := first != "" && strings.ContainsAny(first[:1], "=+-@") || s != "" && strings.ContainsAny(s[:1], "\t\r\n")
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = cell(lines[i])
	}
	s = strings.Join(lines, "\n")
	if formula {
		s = "'" + s
	}
	return s
}
