package access

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Problem says why a request is ambiguous and is refused before any rule is
// read. Its zero value means that nothing is wrong.
type Problem struct {
	Status int    // 400, 405 or 501
	Detail string // what is wrong and where, safe to show to the caller
	Option string // the option that would let it pass; "" is none
}

// OK reports whether there is no problem.
func (p Problem) OK() bool { return p.Status == 0 }

// Error makes a Problem usable as an error.
func (p Problem) Error() string { return p.Detail }

func ambiguous(format string, args ...any) Problem {
	return Problem{Status: 400, Detail: fmt.Sprintf(format, args...)}
}

// Advice returns the detail, with the option that would let it pass.
func (p Problem) Advice() string {
	if p.Option == "" {
		return p.Detail
	}
	return p.Detail + "; the option " + p.Option + " would let it pass"
}

// allowedBy says which option of the operator would let it pass.
func (p Problem) allowedBy(option Relax) Problem {
	p.Option = option.String()
	return p
}

// Relax is a set of refusals that an operator lifts for an upstream that is
// known to read such targets as the rules do.
type Relax uint8

// What can be relaxed. Dot segments, however they are spelled, never pass.
const (
	EncodedSlash   Relax = 1 << iota // %2F is data inside of a segment
	EncodedPercent                   // %25 is a percent sign
	Semicolon                        // ";" and %3B
	MergedSlashes                    // "//" is "/"; see MergeSlashes
	TrailingDot                      // a segment may end in a dot
	NonNFC                           // text need not be in normalisation form C
)

var relaxNames = []string{"allow_encoded_slash", "allow_encoded_percent", "allow_semicolon", "merge_slashes", "allow_trailing_dot", "allow_non_nfc"}

// RelaxByName returns the options under the names that operators write.
func RelaxByName() map[string]Relax {
	options := make(map[string]Relax)
	for i, name := range relaxNames {
		options[name] = 1 << i
	}
	return options
}

// String returns the name of a single option.
func (allow Relax) String() string {
	for i, name := range relaxNames {
		if allow == 1<<i {
			return name
		}
	}
	return fmt.Sprintf("relax(%#x)", uint8(allow))
}

// CheckMethod refuses the methods that never pass: CONNECT, extended or not
// (501: its body would reach a pooled upstream connection unframed), TRACE and
// TRACK (405), PRI, and anything that is not [A-Z][A-Z-]{0,31}.
func CheckMethod(method string) Problem {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return Problem{}
	case "CONNECT":
		return Problem{Status: 501, Detail: "the method CONNECT is not supported"}
	case "TRACE", "TRACK":
		return Problem{Status: 405, Detail: "the method " + method + " is not allowed"}
	case "PRI":
		return ambiguous("the method PRI belongs to the HTTP/2 preface")
	}
	if !validMethod(method) {
		return ambiguous("the method is not a word of A-Z and \"-\" of at most 32 characters")
	}
	return Problem{}
}

func validMethod(m string) bool {
	if m == "" || len(m) > 32 || m[0] == '-' {
		return false
	}
	for i := range len(m) {
		if (m[i] < 'A' || m[i] > 'Z') && m[i] != '-' {
			return false
		}
	}
	return true
}

// CheckTarget checks a request target as it stands in the request line (or in
// the :path of HTTP/2) and returns the decoded path that rules are matched
// against. A target that two programs could read differently is a Problem.
//
// Accepted is the origin form only (RFC 9112, section 3.2.1): a raw path of
// RFC 3986 pchar and "/" without ";", decoded exactly once to what checkPath
// takes, and a query without "#", space, control or raw 8-bit byte. The path
// of a target without escapes is a slice of it: nothing is allocated.
func CheckTarget(target string) (path string, p Problem) { return Relax(0).CheckTarget(target) }

// dataSlash stands in a matched path for a slash that is data inside of a
// segment, %2F. No other byte of a path can be it.
const dataSlash = '\x00'

// PlainPath returns a matched path as it decodes: with slashes for what
// [EncodedSlash] kept apart.
func PlainPath(path string) string { return strings.ReplaceAll(path, string(dataSlash), "/") }

// MergeSlashes replaces each run of slashes in the path of a target by one. The
// result is what has to be checked and forwarded.
func MergeSlashes(target string) string {
	raw, query, found := strings.Cut(target, "?")
	for strings.Contains(raw, "//") {
		raw = strings.ReplaceAll(raw, "//", "/")
	}
	if found {
		raw += "?" + query
	}
	return raw
}

// CheckTarget is [CheckTarget] without the refusals that the operator lifts.
func (allow Relax) CheckTarget(target string) (path string, p Problem) {
	if target == "" || target[0] != '/' {
		return "", ambiguous("the request target must begin with \"/\"")
	}
	raw, query, _ := strings.Cut(target, "?")
	for i := range len(query) {
		if c := query[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return "", ambiguous("the query holds the byte 0x%02x at position %d", c, len(raw)+1+i)
		}
	}
	escaped, plain := false, true
	for i := range len(raw) {
		switch class := pathBytes[raw[i]]; class {
		case pathOK:
		case pathPlain:
			plain = false
		case pathEscape:
			escaped = true
		default:
			p = ambiguous("the path holds the byte 0x%02x at position %d, which must not stand in a path", raw[i], i)
			if raw[i] != ';' {
				return "", p
			}
			if plain = false; allow&Semicolon == 0 {
				return "", p.allowedBy(Semicolon)
			}
		}
	}
	path = raw
	if escaped {
		if path, p = allow.decodePath(raw); !p.OK() {
			return "", p
		}
	}
	if plain && !escaped {
		p = checkSegmentsASCII(path)
	} else {
		p = allow.checkPath(path)
	}
	if !p.OK() {
		return "", p
	}
	return path, p
}

// The classes of raw path bytes.
const (
	pathBad    = iota
	pathOK     // letters, digits and what needs no second look
	pathPlain  // legal, but checkPath must look at its neighbours: "." and "/"
	pathEscape // "%"
)

var pathBytes = func() (table [256]uint8) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~!$&'()*+,=:@/") {
		table[c] = pathOK
	}
	table['.'] = pathPlain
	table['%'] = pathEscape
	return table
}()

// checkSegmentsASCII is checkPath for a path without escapes and dots: all
// that can be wrong is an empty segment.
func checkSegmentsASCII(path string) Problem {
	if i := strings.Index(path, "//"); i >= 0 {
		return emptySegment(i)
	}
	return Problem{}
}

func emptySegment(i int) Problem {
	return ambiguous("the path has an empty segment at position %d", i+1).allowedBy(MergedSlashes)
}

// decodePath decodes every %XX exactly once. It refuses an invalid escape and
// one that decodes to a character on which programs disagree.
func (allow Relax) decodePath(raw string) (string, Problem) {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c != '%' {
			out = append(out, c)
			continue
		}
		if i+2 >= len(raw) || hexValue(raw[i+1]) < 0 || hexValue(raw[i+2]) < 0 {
			return "", ambiguous("the path holds an invalid percent-encoding at position %d", i)
		}
		c = byte(hexValue(raw[i+1])<<4 | hexValue(raw[i+2]))
		if c < 0x20 || c == 0x7f || strings.IndexByte(`/\%;?#`, c) >= 0 {
			p := ambiguous("the path holds %s at position %d, which programs read differently", raw[i:i+3], i)
			option := map[byte]Relax{'/': EncodedSlash, '%': EncodedPercent, ';': Semicolon}[c]
			if option == 0 {
				return "", p
			}
			if allow&option == 0 {
				return "", p.allowedBy(option)
			}
			if c == '/' {
				c = dataSlash
			}
		}
		out = append(out, c)
		i += 2
	}
	return string(out), Problem{}
}

func hexValue(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// checkPath checks a decoded path: valid UTF-8 in NFC, letters, marks, numbers,
// punctuation, symbols and inner spaces only, no rune that case-folds to ASCII
// or whose compatibility form holds a separator, no empty segment but the last,
// no segment that ends in "." or a space or begins with a space.
func (allow Relax) checkPath(path string) Problem {
	ascii := true
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c >= utf8.RuneSelf {
			ascii = false
			break
		}
		if c == dataSlash && allow&EncodedSlash != 0 {
			continue
		}
		if c < 0x20 || c == 0x7f {
			return ambiguous("the path holds a control character at position %d", i)
		}
	}
	if !ascii {
		if p := allow.checkUnicode(path); !p.OK() {
			return p
		}
	}
	// A slash that is data, and what stands before a semicolon, are looked at as
	// an upstream would that takes them for a separator and for parameters.
	for start := 1; start <= len(path); {
		segment, more := path[start:], false
		if i := strings.IndexAny(segment, "/\x00"); i >= 0 {
			segment, more = segment[:i], true
		}
		name, _, parameters := strings.Cut(segment, ";")
		switch {
		case name == "" && (more || parameters):
			return emptySegment(start - 1)
		case name == "":
		case strings.Trim(name, ".") == "":
			return ambiguous("the path has a dot segment at position %d", start)
		case name[len(name)-1] == '.' && allow&TrailingDot == 0:
			return ambiguous("the path segment at position %d ends in a dot", start).allowedBy(TrailingDot)
		case name[0] == ' ' || name[len(name)-1] == ' ' || segment[len(segment)-1] == ' ':
			return ambiguous("the path segment at position %d begins or ends with a space", start)
		}
		start += len(segment) + 1
	}
	return Problem{}
}

func (allow Relax) checkUnicode(path string) Problem {
	if !utf8.ValidString(path) {
		return ambiguous("the path is not valid UTF-8")
	}
	if allow&NonNFC == 0 && !norm.NFC.IsNormalString(path) {
		return ambiguous("the path is not in Unicode normalisation form C").allowedBy(NonNFC)
	}
	for i, r := range path {
		switch {
		case r < utf8.RuneSelf:
		case !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S):
			return ambiguous("the path holds U+%04X at position %d, a control, format, separator or unassigned character", r, i)
		case foldsToASCII(r):
			return ambiguous("the path holds U+%04X at position %d, which equals an ASCII letter when case is ignored", r, i)
		case strings.ContainsAny(norm.NFKC.String(string(r)), `/\.%;?#`):
			return ambiguous("the path holds U+%04X at position %d, which some programs read as a separator", r, i)
		}
	}
	return Problem{}
}

// foldsToASCII reports whether r becomes an ASCII letter in some spelling of
// case-insensitive comparison: by simple folding (U+017F, U+212A) or by going
// through upper or lower case (U+0130, U+0131).
func foldsToASCII(r rune) bool {
	if unicode.ToLower(r) < utf8.RuneSelf || unicode.ToUpper(r) < utf8.RuneSelf {
		return true
	}
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		if f < utf8.RuneSelf {
			return true
		}
	}
	return false
}

// CheckHost reads a Host field (or :authority) and returns the name that rules
// are matched against: lower case, without the port and one trailing dot. Only
// letters, digits, "-", "_" and dots, or an IP literal, are accepted.
func CheckHost(host string) (name string, p Problem) {
	const advice = "the Host must be a name of letters, digits, \"-\", \"_\" and dots, or an IP address, with an optional port"
	name = host
	if strings.HasPrefix(host, "[") {
		literal, port, ok := strings.Cut(host[1:], "]")
		addr, err := netip.ParseAddr(literal)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" || !validPortSuffix(port) {
			return "", ambiguous(advice)
		}
		return "[" + addr.String() + "]", Problem{}
	}
	if i := strings.IndexByte(host, ':'); i >= 0 {
		if !validPortSuffix(host[i:]) {
			return "", ambiguous(advice)
		}
		name = host[:i]
	}
	name = strings.TrimSuffix(name, ".")
	if !validHostName(name) {
		return "", ambiguous(advice)
	}
	return strings.ToLower(name), Problem{}
}

func validPortSuffix(s string) bool {
	if s == "" {
		return true
	}
	if s[0] != ':' || len(s) > 6 {
		return false
	}
	n := 0
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n <= 65535
}

func validHostName(name string) bool {
	if name == "" || len(name) > 253 || name[0] == '.' || strings.Contains(name, "..") || name[len(name)-1] == '.' {
		return false
	}
	for i := range len(name) {
		if c := name[i]; digitValue(c) < 0 && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}
