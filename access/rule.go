package access

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
)

// Effect says whether a rule allows or denies the requests that it covers.
type Effect string

// The two effects. A deny wins over any allow, in any order.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// Rule is one line of a permission group: an effect on requests with these methods, this host and
// this path. [Rule.Check] validates a Rule and returns its canonical form.
type Rule struct {
	ID      string   // set by the store
	Effect  Effect   // allow or deny
	Methods []string // "*" alone, or names in upper case; GET covers HEAD

	// Host is a host name such as "api.example.com"; "" is any host. The "*" in "*.example.com"
	// is exactly one label in an allow, and one or more labels in a deny.
	Host string

	Path        string // a pattern, written decoded: "/v1/people/{id}", "/v1/{rest...}"
	When        string // a condition in CEL, see [Condition]; "" is always
	Name        string // optional, for people
	Description string // optional, for people

	// Permission is the key of the catalogued permission that the rule comes from. It is "" for
	// a rule of the group itself.
	Permission string
}

// The bounds of a rule. The number of segments bounds the work of a match.
const (
	maxPatternBytes    = 2048
	maxPatternSegments = 32
	maxMethods         = 32
)

// ParseRule parses the one-line form of a rule,
//
//	EFFECT METHODS [HOST]PATH [when CONDITION]
//
// for example "allow GET,HEAD /v1/people/{id}" or "deny DELETE api.example.com/v1/{rest...}". It
// returns the canonical form of the rule, as [Rule.Check] does.
func ParseRule(text string) (Rule, error) {
	effect, rest := cutWord(text)
	methods, target := cutWord(rest)
	if target == "" {
		return Rule{}, fmt.Errorf("rule %q: write it as \"EFFECT METHODS PATH\","+
			" for example \"allow GET,HEAD /v1/people/{id}\"", text)
	}
	r := Rule{Effect: Effect(effect), Methods: strings.Split(methods, ",")}
	// parsePattern rejects a path that contains " when ", so the first one begins the
	// condition.
	target, condition, conditional := strings.Cut(target, " when ")
	r.When = strings.TrimSpace(condition)
	if conditional && r.When == "" {
		return Rule{}, fmt.Errorf("rule %q: a condition follows \"when\";"+
			" leave the word out when there is none", text)
	}
	target = strings.TrimRight(target, " \t")
	if i := strings.IndexByte(target, '/'); i > 0 {
		r.Host, r.Path = target[:i], target[i:]
	} else {
		r.Path = target
	}
	r, err := r.Check()
	if err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", text, err)
	}
	return r, nil
}

// cutWord splits a text after its first word, at spaces and tabs.
func cutWord(s string) (word, rest string) {
	s = strings.TrimLeft(s, " \t")
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], strings.TrimLeft(s[i:], " \t")
	}
	return s, ""
}

// String returns the one-line form. [ParseRule] returns the same rule for it, without ID, Name,
// Description and Permission.
func (r Rule) String() string {
	text := string(r.Effect) + " " + strings.Join(r.Methods, ",") + " " + r.Host + r.Path
	if r.When != "" {
		text += " when " + r.When
	}
	return text
}

// Check returns the rule in its canonical form (host in lower case, methods without repetition).
// Its errors say how to correct the rule.
func (r Rule) Check() (Rule, error) {
	r, _, _, err := r.compile(nil)
	return r, err
}

// compile is Check, and also returns the parsed path and the compiled condition, which is nil for a
// rule without a condition. known contains compiled conditions by text, which compile reuses.
func (r Rule) compile(known map[string]*Condition) (checked Rule, pattern []segment, when *Condition, err error) {
	if r.Effect != Allow && r.Effect != Deny {
		err = fmt.Errorf("effect %q: a rule begins with \"allow\" or \"deny\"", r.Effect)
	}
	if err == nil {
		r.Methods, err = checkMethods(r.Methods)
	}
	if err == nil {
		r.Host, err = checkHostPattern(r.Host)
	}
	if err == nil {
		pattern, err = parsePattern(r.Path)
	}
	if when = known[r.When]; err == nil && when == nil && r.When != "" {
		when, err = ParseWhen(r.When)
	}
	if err == nil && when != nil {
		err = when.checkParams(pattern)
	}
	if err != nil {
		return Rule{}, nil, nil, err
	}
	return r, pattern, when, nil
}

func checkMethods(methods []string) ([]string, error) {
	if len(methods) == 0 || len(methods) > maxMethods {
		return nil, fmt.Errorf("a rule names 1 to %d methods, or \"*\" for all", maxMethods)
	}
	var out []string
	for _, m := range methods {
		switch {
		case m == "*" && len(methods) > 1:
			return nil, errors.New("method \"*\" cannot be combined with others: it already covers them")
		case m == "*":
		case m == "CONNECT" || m == "TRACE" || m == "TRACK" || m == "PRI":
			return nil, fmt.Errorf("method %q never passes, so no rule can name it", m)
		case validMethod(m):
		case validMethod(strings.ToUpper(m)):
			return nil, fmt.Errorf("method %q: methods are written in upper case, %q",
				m, strings.ToUpper(m))
		default:
			return nil, fmt.Errorf("method %q is not a word of A-Z and \"-\";"+
				" several are separated by commas without spaces", m)
		}
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out, nil
}

func checkHostPattern(host string) (string, error) {
	if host == "" {
		return "", nil
	}
	name, wildcard := strings.CutPrefix(host, "*.")
	// A colon after the last "]" begins a port; one before it is part of an IPv6 address.
	withPort := strings.LastIndexByte(name, ':') > strings.LastIndexByte(name, ']')
	switch clean, p := CheckHost(name); {
	case strings.Contains(name, "*"):
		return "", fmt.Errorf("host %q: \"*\" is allowed only at the front, as in \"*.example.com\"", host)
	case !p.OK() || withPort || strings.HasSuffix(name, "."):
		return "", fmt.Errorf("host %q is not a host name without a port,"+
			" such as \"api.example.com\" or \"*.example.com\"", host)
	case wildcard && name[0] == '[':
		return "", fmt.Errorf("host %q: \"*.\" needs a name behind it, not an address", host)
	case wildcard:
		return "*." + clean, nil
	case !strings.ContainsAny(clean, ".[") && clean != "localhost":
		// In "allow GET v1/people", the host would be "v1": most likely a forgotten slash.
		return "", fmt.Errorf("host %q has no domain; if it begins the path, write a slash before it,"+
			" as in \"/%s/…\"", host, host)
	default:
		return clean, nil
	}
}

// segment is one piece of a path pattern between slashes.
type segment struct {
	kind segmentKind
	text string // the literal, or the parameter's name
}

type segmentKind uint8

const (
	literalSegment segmentKind = iota
	paramSegment               // {name}: one segment, not empty
	restSegment                // {name...}: the rest of the path, which may be empty; always last
)

// parsePattern parses a path pattern. A pattern that ends in "/" has an empty literal as its last
// segment. parsePattern rejects a pattern that no request can match without lifted refusals, such
// as one with a "%".
func parsePattern(path string) ([]segment, error) {
	isOtherSpace := func(r rune) bool { return unicode.IsSpace(r) && !unicode.Is(unicode.Zs, r) }
	switch {
	case path == "" || path[0] != '/':
		return nil, fmt.Errorf("path %q: a path starts with \"/\"", path)
	case len(path) > maxPatternBytes:
		return nil, fmt.Errorf("the path has %d bytes, at most %d are allowed", len(path), maxPatternBytes)
	case strings.Contains(path, "%"):
		return nil, fmt.Errorf("path %q: %s", path, escapeAdvice(path))
	case strings.ContainsAny(path, "?#"):
		return nil, fmt.Errorf("path %q: only the path is matched; leave out \"?\", \"#\" and what follows",
			path)
	case strings.ContainsAny(path, `\;`):
		return nil, fmt.Errorf("path %q: no pattern can hold \"\\\" or \";\"; "+
			"write a parameter such as {name} for the segment", path)
	case strings.Contains(path+" ", " when "): // the one-line form could not express the rule
		return nil, fmt.Errorf("path %q: \" when \" begins a condition and cannot be part of a path", path)
	case strings.ContainsFunc(path, isOtherSpace):
		return nil, fmt.Errorf("path %q holds white space that never passes", path)
	case strings.ContainsFunc(path, unicode.IsControl):
		return nil, fmt.Errorf("path %q can never match: the path holds a control character", path)
	}
	// No option applies to patterns: sites with different options may share the rule.
	f := findings{raw: path}
	f.checkPath(path)
	if p := f.problem(); p.Need&^(MergedSlashes|TrailingDot) != 0 {
		return nil, fmt.Errorf("path %q cannot be a pattern: %w; write a parameter such as {name}"+
			" for the segment", path, p)
	} else if !p.OK() {
		return nil, fmt.Errorf("path %q can never match: %w", path, p)
	}
	parts := strings.Split(path[1:], "/")
	if len(parts) > maxPatternSegments {
		return nil, fmt.Errorf("the path has %d segments, at most %d are allowed",
			len(parts), maxPatternSegments)
	}
	segments := make([]segment, len(parts))
	seen := make(map[string]bool)
	for i, part := range parts {
		s, err := parseSegment(part)
		if err != nil {
			return nil, fmt.Errorf("path %q: %w", path, err)
		}
		if s.kind == restSegment && i < len(parts)-1 {
			return nil, fmt.Errorf("path %q: {%s...} takes all that follows, so it must be at the end",
				path, s.text)
		}
		if s.kind != literalSegment {
			if seen[s.text] {
				return nil, fmt.Errorf("path %q: the name {%s} appears in it twice", path, s.text)
			}
			seen[s.text] = true
		}
		segments[i] = s
	}
	return segments, nil
}

// patternOf returns the parsed path of a rule that has been checked.
func patternOf(r *Rule) []segment {
	segments, err := parsePattern(r.Path)
	if err != nil {
		panic("access: an unchecked rule: " + err.Error())
	}
	return segments
}

// escapeAdvice returns advice on how to write the first percent-encoding of a path.
func escapeAdvice(path string) string {
	_, rest, _ := strings.Cut(path, "%")
	const decoded = "write it decoded, without \"%\": requests are decoded before they are matched"
	if len(rest) < 2 {
		return decoded
	}
	char, err := url.PathUnescape("%" + rest[:2])
	switch {
	case err != nil:
		return decoded
	case strings.Contains("/\\;?#", char):
		return fmt.Sprintf("%s; for a segment with an encoded %q write a parameter such as {name}", decoded, char)
	case ' ' <= char[0] && char[0] <= '~' && char != "%":
		return fmt.Sprintf("%s; %q in the place of %q", decoded, char, "%"+rest[:2])
	}
	return decoded
}

func parseSegment(part string) (segment, error) {
	switch {
	case strings.HasPrefix(part, "*") || strings.HasSuffix(part, "*"):
		return segment{}, fmt.Errorf("%q is not a wildcard here; write {name} for a whole segment,"+
			" or {rest...} at the end for all that follow", part)
	case !strings.ContainsAny(part, "{}"):
		return segment{literalSegment, part}, nil
	}
	name, open := strings.CutPrefix(part, "{")
	name, closed := strings.CutSuffix(name, "}")
	name, rest := strings.CutSuffix(name, "...")
	switch {
	case !open || !closed || !validParam(name):
		return segment{}, fmt.Errorf("segment %q: a parameter is {name} or {name...}, fills a whole segment,"+
			" and its name is letters, digits and \"_\"", part)
	case rest:
		return segment{restSegment, name}, nil
	}
	return segment{paramSegment, name}, nil
}

func validParam(name string) bool {
	return name != "" && len(name) <= 64 && (name[0] < '0' || name[0] > '9') && strings.Trim(name, base62+"_") == ""
}
