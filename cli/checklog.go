package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/caddymodule"
)

// checkLogCommand adds "check-log", which tells before service users stand in
// front of an API which of its requests they would refuse as ambiguous.
func (c *cli) checkLogCommand(root *cobra.Command) {
	relax := access.RelaxByName()
	chosen := make(map[string]*bool)
	checkLog := c.localCommand(root, "check-log FILE", "Tells which requests of an access log would be refused as ambiguous",
		"caddy service-user check-log access.log --allow-semicolon", 1, 1,
		func(args []string) error {
			var allow access.Relax
			for name, set := range chosen {
				if *set {
					allow |= relax[name]
				}
			}
			in := io.Reader(os.Stdin)
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer file.Close()
				in = file
			}
			result, err := checkLog(in, allow)
			if err != nil {
				return fmt.Errorf("reading %s: %w", args[0], err)
			}
			return c.printCheck(result)
		})
	checkLog.Long = `Tells which requests of an access log would be refused as ambiguous, why, and
which options would let them pass. It reads the JSON that Caddy writes, the
common and combined formats, and lines such as "GET /path"; "-" is the standard
input. Queries and what looks like a secret are not printed.`
	for _, name := range slices.Sorted(maps.Keys(relax)) {
		chosen[name] = checkLog.Flags().Bool(strings.ReplaceAll(name, "_", "-"), false, "check as with the option "+name)
	}
}

// logCheck is what became of a log. Requests are told apart by the reason, of
// which there are few, so that a log of any size fits.
type logCheck struct {
	Checked int         `json:"checked"`
	Pass    int         `json:"pass"`
	Refused int         `json:"refused"`
	Other   int         `json:"other_lines"` // that are no request
	Reasons []logReason `json:"reasons"`
}

// logReason is one reason for refusals.
type logReason struct {
	Count   int      `json:"count"`
	Status  int      `json:"status"`
	Why     string   `json:"why"`
	Options []string `json:"options"` // that together let its requests pass; none do if empty
	Example string   `json:"example"`
}

// longestLine is the longest line of a log that is looked at.
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
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Why, b.Why), slices.Compare(a.Options, b.Options))
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
		reasons[key] = &logReason{Status: p.Status, Why: why, Options: options, Example: r.example()}
	}
	reasons[key].Count++
}

var positions = regexp.MustCompile(` at position \d+`)
var codePoints = regexp.MustCompile(`U\+[0-9A-F]{4,6}`)
var escapes = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// generalReason leaves out of a reason what differs from request to request.
func generalReason(detail string) string {
	detail = codePoints.ReplaceAllString(positions.ReplaceAllString(detail, ""), "a character")
	return escapes.ReplaceAllStringFunc(detail, strings.ToUpper)
}

// loggedRequest is what a log tells of a request.
type loggedRequest struct {
	method, target string
	host           string // "" is unknown
	authorizations int    // how many Authorization fields it had, as far as known
	overridden     bool   // whether a header named another method, as far as known
}

// problem judges a request as [Handler] does.
func (r loggedRequest) problem(allow access.Relax) access.Problem {
	if p := access.CheckMethod(r.method); !p.OK() {
		return p
	}
	if r.host != "" {
		if _, p := access.CheckHost(r.host); !p.OK() {
			return p
		}
	}
	target := r.target
	if allow&access.MergedSlashes != 0 {
		target = access.MergeSlashes(target)
	}
	if _, p := allow.CheckTarget(target); !p.OK() {
		return p
	}
	if r.authorizations > 1 {
		return access.Problem{Status: 400, Detail: "the request has more than one Authorization field"}
	}
	if r.overridden {
		return caddymodule.MethodOverride
	}
	return access.Problem{}
}

// optionsFor returns the options that together let a request pass: the one that
// its first problem names may only lead to the next.
func (r loggedRequest) optionsFor(p access.Problem, allow access.Relax) []string {
	options := []string{}
	for p.Option != "" {
		options = append(options, p.Option)
		allow |= access.RelaxByName()[p.Option]
		if p = r.problem(allow); p.OK() {
			return options
		}
	}
	return []string{}
}

// parseLogLine finds the request in a line.
func parseLogLine(line []byte) (loggedRequest, bool) {
	if i := bytes.Index(line, []byte("\t{")); i >= 0 && bytes.Contains(line[:i], []byte("http.log.access")) {
		line = line[i+1:] // Caddy's format for the console
	}
	if line[0] == '{' {
		return parseJSONLine(line)
	}
	text := string(line)
	if _, quoted, ok := strings.Cut(text, `"`); ok {
		if r, ok := parseRequestLine(unquoteLog(quoted)); ok {
			return r, true
		}
	}
	if !plainRequest.MatchString(text) {
		return loggedRequest{}, false
	}
	r, ok := parseRequestLine(text)
	if !ok {
		r.method, r.target, _ = strings.Cut(text, " ")
	}
	return r, true
}

// plainRequest is a request on a line of its own.
var plainRequest = regexp.MustCompile(`^([A-Z][A-Z_-]* (/\S*|\*|[a-z]+://\S*)|[A-Za-z_-]+ (/|\*|[a-z]+://).* HTTP/\d(\.\d)?)$`)

func parseJSONLine(line []byte) (r loggedRequest, ok bool) {
	var entry struct {
		Logger  string          `json:"logger"`
		Request json.RawMessage `json:"request"`
	}
	if json.Unmarshal(line, &entry) != nil || len(entry.Request) == 0 {
		return r, false
	}
	if entry.Logger != "" && !strings.HasPrefix(entry.Logger, "http.log.access") {
		return r, false // an error of a request that has a line of its own
	}
	if entry.Request[0] == '"' { // as people configure other servers
		var text string
		if json.Unmarshal(entry.Request, &text) != nil {
			return r, false
		}
		return parseRequestLine(text)
	}
	var request struct {
		Method  string         `json:"method"`
		URI     string         `json:"uri"`
		Host    string         `json:"host"`
		Headers map[string]any `json:"headers"`
	}
	if json.Unmarshal(entry.Request, &request) != nil || request.Method == "" || request.URI == "" {
		return r, false
	}
	r = loggedRequest{method: request.Method, target: request.URI, host: request.Host}
	for name, list := range request.Headers {
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

// parseRequestLine splits "GET /path HTTP/1.1".
func parseRequestLine(text string) (r loggedRequest, ok bool) {
	m := requestLine.FindStringSubmatch(text)
	if m == nil {
		return r, false
	}
	return loggedRequest{method: m[1], target: m[2]}, true
}

var requestLine = regexp.MustCompile(`(?s)^(\S+) (.+) HTTP/\d(?:\.\d)?$`)

// unquoteLog reads a quoted string of Apache or nginx up to its closing quote.
func unquoteLog(s string) string {
	var out []byte
	for i := 0; i < len(s) && s[i] != '"'; i++ {
		if s[i] != '\\' || i+1 == len(s) {
			out = append(out, s[i])
			continue
		}
		i++
		if s[i] == 'x' && i+2 < len(s) {
			if b, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				out = append(out, byte(b))
				i += 2
				continue
			}
		}
		if control := strings.IndexByte("btnvfr", s[i]); control >= 0 {
			out = append(out, "\b\t\n\v\f\r"[control])
		} else {
			out = append(out, s[i])
		}
	}
	return string(out)
}

// example shows a request in visible ASCII, without what may be secret: the
// query, parameters, and whatever is as long as a token.
func (r loggedRequest) example() string {
	method := r.method
	if !plainMethod.MatchString(method) {
		method = "…"
	}
	target := strconv.QuoteToASCII(r.target)
	target = target[1 : len(target)-1]
	if scheme, _, ok := strings.Cut(target, "://"); ok && plainMethod.MatchString(scheme) {
		target = scheme + "://…"
	} else if target[0] != '/' && target != "*" {
		target = "…"
	}
	text := method + " " + mask(target)
	if _, p := access.CheckHost(r.host); r.host != "" && !p.OK() {
		text += " Host: " + mask(strconv.QuoteToASCII(r.host))
	}
	return cell(text)
}

var plainMethod = regexp.MustCompile(`^[A-Za-z-]{1,32}$`)

const longestExample = 100

// mask leaves out of a target what may be secret.
func mask(target string) string {
	target = queries.ReplaceAllString(target, "$1…")
	target = parameters.ReplaceAllString(target, "$1…")
	target = access.MaskSecrets(longWords.ReplaceAllString(target, "$1$2…"))
	if len(target) > longestExample {
		target = strings.ToValidUTF8(target[:longestExample], "") + "…"
	}
	return target
}

var (
	queries    = regexp.MustCompile(`(?i)(\?|#|%(?:25)*3f|%(?:25)*23).*`)
	parameters = regexp.MustCompile(`(?i)((?:;|%(?:25)*3b)[^/;=%]*(?:=|%(?:25)*3d))[^/;]+`)
	longWords  = regexp.MustCompile(`(csu_)[0-9A-Za-z]+|([0-9A-Za-z_-]{4})[0-9A-Za-z_-]{28,}`)
)

func (c *cli) printCheck(l logCheck) error {
	err := c.print(l, func(w io.Writer) {
		if len(l.Reasons) > 0 {
			fmt.Fprintln(w, "COUNT\tSTATUS\tWHY\tOPTION\tEXAMPLE")
		}
		for _, r := range l.Reasons {
			fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\n", r.Count, r.Status, r.Why, dash(strings.Join(r.Options, ", ")), r.Example)
		}
	})
	if err == nil && c.output == outputTable {
		_, err = fmt.Fprintf(c.stdout, "checked %s: %d pass, %d would be refused\n", plural(l.Checked, "request"), l.Pass, l.Refused)
		if err == nil && l.Other > 0 {
			_, err = fmt.Fprintf(c.stdout, "lines without a request: %d\n", l.Other)
		}
	}
	if err == nil && l.Refused > 0 {
		err = fmt.Errorf("%d of %s would be refused", l.Refused, plural(l.Checked, "request"))
	}
	return err
}
