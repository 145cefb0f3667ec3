package access

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
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
	path = raw
	plain := true
scan:
	for i := range len(raw) {
		class := pathBytes[raw[i]]
		if class == pathOK {
			continue
		}
		plain = false
		switch class {
		case pathBad:
			if p := allow.badByte(raw, i); !p.OK() {
				return "", p
			}
		case pathEscape:
			if path, p = allow.decodePath(raw, i); !p.OK() {
				return "", p
			}
			break scan
		}
	}
	if plain {
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

// badByte is the problem of a raw path with a byte that must not stand in it.
func (allow Relax) badByte(raw string, i int) Problem {
	if raw[i] == ';' && allow&Semicolon != 0 {
		return Problem{}
	}
	p := ambiguous("the path holds the byte 0x%02x at position %d, which is not allowed in a path", raw[i], i)
	if raw[i] == ';' {
		p = p.allowedBy(Semicolon)
	}
	return p
}

// decodePath decodes every %XX exactly once, the first of which begins at from. It
// refuses an invalid escape, one that decodes to a character on which programs
// disagree, and the raw bytes that badByte does.
func (allow Relax) decodePath(raw string, from int) (string, Problem) {
	out := make([]byte, len(raw))
	n := copy(out, raw[:from])
	for i := from; i < len(raw); i++ {
		c := raw[i]
		if c == '%' {
			high, low := int8(-1), int8(-1)
			if i+2 < len(raw) {
				high, low = hexValues[raw[i+1]], hexValues[raw[i+2]]
			}
			if high|low < 0 {
				return "", ambiguous("the path holds an invalid percent-encoding at position %d", i)
			}
			if c = byte(high)<<4 | byte(low); c < utf8.RuneSelf && pathMarks[c] {
				option := pathOptions[c]
				if allow&option == 0 {
					p := ambiguous("the path holds %s at position %d, which programs read differently", raw[i:i+3], i)
					if option != 0 {
						p = p.allowedBy(option)
					}
					return "", p
				}
				if c == '/' {
					c = dataSlash
				}
			}
			i += 2
		} else if pathBytes[c] == pathBad {
			if p := allow.badByte(raw, i); !p.OK() {
				return "", p
			}
		}
		out[n] = c
		n++
	}
	return string(out[:n]), Problem{}
}

// hexValues holds the values of hexadecimal digits; -1 is none.
var hexValues = func() (table [256]int8) {
	for c := range table {
		table[c] = int8(strings.IndexByte("0123456789abcdef", lowerASCII(byte(c))))
	}
	return table
}()

// pathMarks holds the characters that an escape in a path must not stand for, unless
// an option of pathOptions lets it.
var (
	pathMarks = func() (table [256]bool) {
		for c := range table {
			table[c] = c < 0x20 || c == 0x7f || strings.IndexByte(`/\%;?#`, byte(c)) >= 0
		}
		return table
	}()
	pathOptions = [256]Relax{'/': EncodedSlash, '%': EncodedPercent, ';': Semicolon}
)

// checkPath checks a decoded path: valid UTF-8 in NFC, letters, marks, numbers,
// punctuation, symbols and inner spaces only, no rune that case-folds to ASCII
// or whose compatibility form holds a separator, no empty segment but the last,
// no segment that ends in "." or a space or begins with a space.
func (allow Relax) checkPath(path string) Problem {
	bits, before := byte(0), byte('/')
	for i := 1; i < len(path); i++ {
		c := path[i]
		if seamLeft[before]&seamRight[c] != 0 {
			if p := allow.checkSegments(path, i); !p.OK() {
				return p
			}
			bits = utf8.RuneSelf // the rest has been read, but not its runes
			break
		}
		bits |= c
		before = c
	}
	if before == '.' || before == ' ' {
		if p := allow.checkSegments(path, len(path)); !p.OK() {
			return p
		}
	}
	if bits < utf8.RuneSelf {
		return Problem{}
	}
	return allow.checkUnicode(path)
}

// seamLeft and seamRight say which two bytes, one behind the other, can make a segment
// that checkSegments refuses: those whose entries have a bit in common.
var seamLeft, seamRight = func() (left, right [256]uint8) {
	const (
		end   = 1 << iota // of a segment, or of its part before the parameters
		begin             // of a segment, by a space
		control
	)
	for c := range left {
		left[c] = control
		if c < 0x20 || c == 0x7f {
			right[c] = control
		}
	}
	for _, c := range []byte{'/', dataSlash} {
		left[c] |= end | begin
		right[c] |= end
	}
	left['.'] |= end
	left[' '] |= end
	right[';'] |= end
	right[' '] |= begin
	return left, right
}()

// checkSegments checks the segments of a path, from that which the byte at i stands in.
func (allow Relax) checkSegments(path string, i int) Problem {
	// A slash that is data, and what stands before a semicolon, are looked at as
	// an upstream would that takes them for a separator and for parameters.
	for start := strings.LastIndexByte(path[:i], '/') + 1; start <= len(path); {
		end := start
		for ; end < len(path) && path[end] != '/'; end++ {
			if c := path[end]; c == dataSlash && allow&EncodedSlash != 0 {
				break
			} else if c < 0x20 || c == 0x7f {
				return ambiguous("the path holds a control character at position %d", end)
			}
		}
		segment, more := path[start:end], end < len(path)
		name, _, parameters := strings.Cut(segment, ";")
		if name == "" {
			if more || parameters {
				return emptySegment(start - 1)
			}
			break
		}
		if last := name[len(name)-1]; last == '.' || last == ' ' || name[0] == ' ' || segment[len(segment)-1] == ' ' {
			switch {
			case strings.Trim(name, ".") == "":
				return ambiguous("the path has a dot segment at position %d", start)
			case last != '.' || name[0] == ' ' || segment[len(segment)-1] == ' ':
				return ambiguous("the path segment at position %d begins or ends with a space", start)
			case allow&TrailingDot == 0:
				return ambiguous("the path segment at position %d ends in a dot", start).allowedBy(TrailingDot)
			}
		}
		start = end + 1
	}
	return Problem{}
}

func (allow Relax) checkUnicode(path string) Problem {
	table := runes()
	var text nfc
	var p Problem
	for i, size := 0, 1; i < len(path); i += size {
		if size = 1; path[i] < utf8.RuneSelf {
			continue
		}
		var r rune
		r, size = utf8.DecodeRuneInString(path[i:])
		if i > 0 && path[i-1] < utf8.RuneSelf {
			text = nfc{starter: rune(path[i-1])}
		}
		c := table.class(r)
		if c&^runeComposed == runeVisible && r != utf8.RuneError {
			text = nfc{starter: r, class: c}
			continue
		}
		if r == utf8.RuneError && size == 1 {
			return ambiguous("the path is not valid UTF-8")
		}
		if allow&NonNFC == 0 && !text.next(table, r, c) {
			return ambiguous("the path is not in Unicode normalisation form C").allowedBy(NonNFC)
		}
		switch {
		case c&(runeVisible|runeFolds|runeSeparates) == runeVisible || !p.OK():
		case c == 0:
			p = ambiguous("the path holds U+%04X at position %d, a control, format, separator or unassigned character", r, i)
		case c&runeFolds != 0:
			p = ambiguous("the path holds U+%04X at position %d, which equals an ASCII letter when case is ignored", r, i)
		default:
			p = ambiguous("the path holds U+%04X at position %d, which some programs read as a separator", r, i)
		}
	}
	return p
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
