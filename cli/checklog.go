package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/caddymodule"
)

// checkLogCommand adds "check-log". Before an operator puts service users in front of an API, it
// reports the requests of the API's access log that would be refused as ambiguous.
func (c *cli) checkLogCommand(root *cobra.Command) {
	var allow access.Relax
	checkLog := c.localCommand(root, "check-log FILE",
		"Lists the requests of an access log that would be refused as ambiguous",
		"check-log access.log --allow-encoded slash,semicolon",
		c.onlyReads("check-log", func(args []string) error {
			file, err := openInput(args[0])
			if err != nil {
				return err
			}
			defer file.Close()
			result, err := checkLog(file, allow)
			if err != nil {
				return fmt.Errorf("reading %s: %w", args[0], err)
			}
			return c.printCheck(result)
		}))
	checkLog.Long = `Lists the requests of an access log that would be refused as ambiguous, each with
the reason and the options that would let it pass. The command reads the JSON that
Caddy writes, the common and combined formats, and lines such as "GET /path"; "-" is
the standard input. It does not print queries and tokens of service users.`
	flags, words := checkLog.Flags(), make(map[string]string) // the words of each family
	for _, o := range access.Options() {
		set := func(string) error { allow |= o.Relax; return nil }
		if o.Alias != "" {
			flags.BoolFunc(flagName(o.Alias), "", set)
			_ = flags.MarkHidden(flagName(o.Alias)) // cannot fail: the flag exists
		}
		if o.Family == "" {
			flags.BoolFunc(flagName(o.Word), "assume that the site has the option "+o.Word, set)
		} else {
			words[o.Family] += o.Word + ", "
		}
	}
	for family, known := range words {
		flags.Func(flagName(family), "assume that the site has these `WORDS` of "+family+": "+
			strings.TrimSuffix(known, ", "), func(list string) error {
			for _, word := range strings.Fields(strings.ReplaceAll(list, ",", " ")) {
				option, err := access.FindOption(family, word)
				if err != nil {
					return err
				}
				allow |= option.Relax
			}
			return nil
		})
	}
}

func flagName(option string) string { return strings.ReplaceAll(option, "_", "-") }

// logCheck is the result for a log. It groups requests by the reason for their refusal: there are
// few reasons, so a log of any size fits into memory.
type logCheck struct {
	Checked int         `json:"checked"`
	Pass    int         `json:"pass"`
	Refused int         `json:"refused"`
	Other   int         `json:"other_lines"` // lines without a request
	Reasons []logReason `json:"reasons"`
}

// logReason is one reason for refusals.
type logReason struct {
	Count   int      `json:"count"`
	Status  int      `json:"status"`
	Why     string   `json:"why"`
	Options []string `json:"options"` // the lines of options that together let the requests pass; empty if none do
	Example string   `json:"example"`
}

// longestLine is the longest line of a log that checkLog reads.
const longestLine = 1 << 20

// checkLog reads a log to its end, line by line.
func checkLog(in io.Reader, allow access.Relax) (result logCheck, err error) {
	reasons := make(map[string]*logReason)
	lines := bufio.NewReaderSize(in, longestLine)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = lines.ReadSlice('\n')
			}
			line = []byte("too long")
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			result.add(line, allow, reasons)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return result, err
		}
	}
	result.Reasons = []logReason{}
	for _, reason := range reasons {
		result.Reasons = append(result.Reasons, *reason)
	}
	slices.SortFunc(result.Reasons, func(a, b logReason) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Why, b.Why),
			slices.Compare(a.Options, b.Options))
	})
	return result, nil
}

func (l *logCheck) add(line []byte, allow access.Relax, reasons map[string]*logReason) {
	r, ok := parseLogLine(line)
	if !ok {
		l.Other++
		return
	}
	l.Checked++
	p := r.problem(allow)
	if p.OK() {
		l.Pass++
		return
	}
	l.Refused++
	why, options := generalReason(p.Detail), r.optionsFor(p, allow)
	key := fmt.Sprint(p.Status, why, options)
	if reasons[key] == nil {
		reasons[key] = &logReason{Status: p.Status, Why: why, Options: options, Example: r.example(p)}
	}
	reasons[key].Count++
}

var positions = regexp.MustCompile(` at position \d+`)
var codePoints = regexp.MustCompile(`U\+[0-9A-F]{4,6}`)
var escapes = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// generalReason removes the parts of a reason that differ from request to request.
func generalReason(detail string) string {
	detail = codePoints.ReplaceAllString(positions.ReplaceAllString(detail, ""), "a character")
	return escapes.ReplaceAllStringFunc(detail, strings.ToUpper)
}

// loggedRequest is the part of a request that a log has.
type loggedRequest struct {
	method, target string
	host           string // "" if unknown
	authorizations int    // the number of Authorization fields, if the log has headers
	overridden     bool   // a header names another method, if the log has headers
}

// problem judges a request as the handler does.
func (r loggedRequest) problem(allow access.Relax) access.Problem {
	_, p := access.Judge(r.method, cmp.Or(r.host, "localhost"), r.target, allow)
	switch {
	case !p.OK():
		return p
	case r.overridden:
		return caddymodule.MethodOverride
	case r.authorizations > 1:
		return caddymodule.TwoCredentials
	}
	return p
}

// optionsFor returns the options that together let a request with the problem p pass, as lines of a
// configuration. It returns none if the request has another problem, which no option lifts.
func (r loggedRequest) optionsFor(p access.Problem, allow access.Relax) []string {
	if !r.problem(allow | p.Need).OK() {
		return []string{}
	}
	return p.Need.Lines()
}

var (
	// combinedLine is a line of the common or the combined format, up to the request line.
	combinedLine = regexp.MustCompile(`^[^"\[]*\[[^\]]*\] "((?:[^"\\]|\\.)*)"`)
	// plainLine is a line with a request only; without a version, the method is in upper case.
	plainLine = regexp.MustCompile(`^([A-Z][A-Z_-]* (/\S*|\*|[a-z]+://\S*)|` +
		`[A-Za-z_-]+ (/|\*|[a-z]+://).* HTTP/\d(\.\d)?)$`)
	requestLine = regexp.MustCompile(`(?s)^(\S+) (.+?)( HTTP/\d(?:\.\d)?)?$`)
)

// parseLogLine finds the request in a line.
func parseLogLine(line []byte) (loggedRequest, bool) {
	if line[0] == '{' {
		return parseJSONLine(line)
	}
	text := string(line)
	quoted := combinedLine.FindStringSubmatch(text)
	if quoted != nil {
		text = quoted[1]
		// Apache and nginx escape bytes as Go does, such as \xff.
		if unquoted, err := strconv.Unquote(`"` + text + `"`); err == nil {
			text = unquoted
		}
	} else if !plainLine.MatchString(text) {
		return loggedRequest{}, false
	}
	m := requestLine.FindStringSubmatch(text)
	if m == nil || quoted != nil && m[3] == "" {
		return loggedRequest{}, false
	}
	return loggedRequest{method: m[1], target: m[2]}, true
}

func parseJSONLine(line []byte) (r loggedRequest, ok bool) {
	var entry struct {
		Logger  string `json:"logger"`
		Request struct {
			Method  string         `json:"method"`
			URI     string         `json:"uri"`
			Host    string         `json:"host"`
			Headers map[string]any `json:"headers"` // a filter of the log may replace a list
		} `json:"request"`
	}
	if json.Unmarshal(line, &entry) != nil || entry.Request.Method == "" || entry.Request.URI == "" {
		return r, false
	}
	if entry.Logger != "" && !strings.HasPrefix(entry.Logger, "http.log.access") {
		return r, false // an error of a request that has a line of its own
	}
	r = loggedRequest{method: entry.Request.Method, target: entry.Request.URI, host: entry.Request.Host}
	for name, list := range entry.Request.Headers {
		values, _ := list.([]any)
		if name == "Authorization" {
			r.authorizations = len(values)
		}
		for _, v := range values {
			text, _ := v.(string)
			r.overridden = r.overridden || caddymodule.OverridesMethod(name, text, r.method)
		}
	}
	return r, true
}

// longestExample is the longest example, in bytes.
const longestExample = 100

// example shows a request with the problem p, without its query and without secrets.
func (r loggedRequest) example(p access.Problem) string {
	target, _, query := strings.Cut(r.target, "?")
	if query {
		target += "?…"
	}
	if !strings.HasPrefix(target, "/") {
		target = "…" // a password can be in an absolute URL
	}
	text := r.method + " " + target
	if p.Part == "host" {
		text += " Host: " + r.host
	}
	text = cell(access.MaskSecrets(text))
	if len(text) > longestExample {
		text = strings.ToValidUTF8(text[:longestExample], "") + "…"
	}
	return text
}

func (c *cli) printCheck(l logCheck) error {
	var rows table
	if len(l.Reasons) > 0 {
		rows.add("COUNT", "STATUS", "WHY", "OPTION", "EXAMPLE")
	}
	for _, r := range l.Reasons {
		rows.add(r.Count, r.Status, r.Why, strings.Join(r.Options, ", "), r.Example)
	}
	err := c.print(l, rows)
	if err == nil {
		err = c.done("checked %s: %d pass, %d would be refused",
			plural(l.Checked, "request"), l.Pass, l.Refused)
	}
	if err == nil && l.Other > 0 {
		err = c.done("lines without a request: %d", l.Other)
	}
	if err == nil && l.Refused > 0 {
		err = fmt.Errorf("%d of %s would be refused", l.Refused, plural(l.Checked, "request"))
	}
	return err
}
