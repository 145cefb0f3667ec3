package access

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Relax is a set of options, each of which lifts one refusal. An operator sets an option if the
// upstream reads such targets in the same way as the rules do.
type Relax uint8

// The options. No option lifts the refusal of dot segments, in any spelling.
const (
	EncodedSlash   Relax = 1 << iota // %2F passes, as data inside of a segment
	EncodedPercent                   // %25 passes, as a percent sign
	Semicolon                        // ";" and %3B pass
	MergedSlashes                    // "//" passes, as "/"; see MergeSlashes
	TrailingDot                      // a segment that ends in a dot passes
	NonNFC                           // text that is not in normalisation form C passes
)

// relaxNames contains the names of the options, in the order of the constants.
var relaxNames = []string{
	"allow_encoded_slash", "allow_encoded_percent", "allow_semicolon",
	"merge_slashes", "allow_trailing_dot", "allow_non_nfc",
}

// RelaxByName returns the options by their names in the configuration.
func RelaxByName() map[string]Relax {
	options := make(map[string]Relax)
	for i, name := range relaxNames {
		options[name] = 1 << i
	}
	return options
}

// CheckTarget checks a request target in the form of the request line (or of the :path of HTTP/2),
// and returns the decoded path that rules are matched against. It returns a Problem for a target
// that two programs could read differently.
//
// CheckTarget accepts only the origin form (RFC 9112, section 3.2.1): a raw path of RFC 3986 pchar
// and "/" without ";", and a query without "#", space, control or raw 8-bit byte. It decodes the
// path exactly once, and checkPath must accept the result. For a target without escapes,
// CheckTarget returns a slice of the target and does not allocate.
func CheckTarget(target string) (path string, p Problem) { return Relax(0).CheckTarget(target) }

// dataSlash is the byte in a matched path for %2F, a slash that is data inside of a segment. A path
// cannot contain this byte otherwise, since control characters are refused.
const dataSlash = '\x00'

// PlainPath returns a matched path with a slash for each %2F, which [EncodedSlash] had kept apart
// from other slashes.
func PlainPath(path string) string { return strings.ReplaceAll(path, string(dataSlash), "/") }

// MergeSlashes replaces each run of slashes in the path of a target by one slash. The caller checks
// the result, and forwards the result and not the original target.
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

// CheckTarget is the function [CheckTarget] without the refusals that these options lift.
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
		switch class { // pathPlain needs nothing here: checkPath looks at dots
		case pathBad:
			if p := allow.badByte(raw, i); !p.OK() {
				return "", p
			}
		case pathEscape:
			if path, p = allow.decodePath(raw, i); !p.OK() {
				return "", p
			}
			break scan // decodePath has read the rest
		}
	}
	if !plain {
		p = allow.checkPath(path)
	} else if i := strings.Index(path, "//"); i >= 0 { // the only problem of a path of pathOK bytes
		p = emptySegment(i)
	}
	if !p.OK() {
		return "", p
	}
	return path, p
}

// The classes of raw path bytes.
const (
	pathBad    = iota
	pathOK     // letters, digits and other bytes that are always legal
	pathPlain  // ".": legal, but checkPath must look at the bytes beside it
	pathEscape // "%"
)

// pathBytes contains the class of each byte.
var pathBytes = func() (table [256]uint8) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~!$&'()*+,=:@/") {
		table[c] = pathOK
	}
	table['.'] = pathPlain
	table['%'] = pathEscape
	return table
}()

func emptySegment(i int) Problem {
	return ambiguous("the path has an empty segment at position %d", i+1).allowedBy(MergedSlashes)
}

// badByte returns the problem of a raw path with a pathBad byte at i. It returns the zero Problem
// for a semicolon with the option Semicolon.
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

// decodePath decodes every %XX exactly once. The first %XX begins at from. decodePath returns a
// problem for an invalid escape, for an escape of a character that programs read differently, and
// for the raw bytes that badByte refuses.
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
			if high|low < 0 { // one of them is -1
				return "", ambiguous("the path holds an invalid percent-encoding at position %d", i)
			}
			if c = byte(high)<<4 | byte(low); c < utf8.RuneSelf && pathMarks[c] {
				option := pathOptions[c]
				if allow&option == 0 {
					p := ambiguous("the path holds %s at position %d,"+
						" which programs read differently", raw[i:i+3], i)
					if option != 0 {
						p = p.allowedBy(option)
					}
					return "", p
				}
				if c == '/' { // rules must not take it for a separator
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

// hexValues contains the value of each hexadecimal digit, and -1 for all other bytes.
var hexValues = func() (table [256]int8) {
	for c := range table {
		table[c] = int8(strings.IndexByte("0123456789abcdef", lowerASCII(byte(c))))
	}
	return table
}()

// pathMarks is true for each byte that must not be escaped in a path. pathOptions contains the
// option that allows the escape of a byte, or 0.
var (
	pathMarks = func() (table [256]bool) {
		for c := range table {
			table[c] = c < 0x20 || c == 0x7f || strings.IndexByte(`/\%;?#`, byte(c)) >= 0
		}
		return table
	}()
	pathOptions = [256]Relax{'/': EncodedSlash, '%': EncodedPercent, ';': Semicolon}
)

// checkPath checks a decoded path. The path must be valid UTF-8 in NFC. It may contain only
// letters, marks, numbers, punctuation, symbols, and spaces inside of segments. It must not contain
// a rune that case-folds to ASCII, or a rune whose compatibility form contains a separator. Only
// the last segment may be empty. No segment may begin with a space, or end in "." or a space.
func (allow Relax) checkPath(path string) Problem {
	bits, before := byte(0), byte('/') // bits is the OR of all bytes: 0x80 or more if one is not ASCII
	for i := 1; i < len(path); i++ {
		c := path[i]
		// In most paths no two bytes make checkSegments necessary.
		if seamLeft[before]&seamRight[c] != 0 {
			if p := allow.checkSegments(path, i); !p.OK() {
				return p
			}
			// checkSegments has checked the rest of the path, but not its runes:
			// checkUnicode must.
			bits = utf8.RuneSelf
			break
		}
		bits |= c
		before = c
	}
	if before == '.' || before == ' ' { // the end of the path is the end of a segment too
		if p := allow.checkSegments(path, len(path)); !p.OK() {
			return p
		}
	}
	if bits < utf8.RuneSelf {
		return Problem{}
	}
	return allow.checkUnicode(path)
}

// seamLeft and seamRight find neighbouring bytes that may make a segment which checkSegments
// refuses. A byte a followed by a byte b is suspicious if seamLeft[a] and seamRight[b] have a bit
// in common.
var seamLeft, seamRight = func() (left, right [256]uint8) {
	const (
		end     = 1 << iota // "/", "." or " " before the end of a segment, or before ";"
		begin               // " " at the beginning of a segment
		control             // any byte before a control character
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

// checkSegments checks the segments of a path, from the segment of the byte at i on.
func (allow Relax) checkSegments(path string, i int) Problem {
	// An upstream may read a %2F as a separator, and a semicolon as the beginning of
	// parameters. So the parts between them must be valid segments too: "a%2F..%2Fb" and "..;x"
	// do not pass.
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
		name, _, parameters := strings.Cut(segment, ";") // parameters is true if there is a ";"
		if name == "" {
			if more || parameters {
				return emptySegment(start - 1)
			}
			break
		}
		last := name[len(name)-1]
		spaced := last == ' ' || name[0] == ' ' || segment[len(segment)-1] == ' '
		if last == '.' || spaced {
			switch {
			case strings.Trim(name, ".") == "": // also "...", which some programs take for "../.."
				return ambiguous("the path has a dot segment at position %d", start)
			case spaced:
				return ambiguous("the path segment at position %d begins or ends with a space", start)
			case allow&TrailingDot == 0:
				p := ambiguous("the path segment at position %d ends in a dot", start)
				return p.allowedBy(TrailingDot)
			}
		}
		start = end + 1
	}
	return Problem{}
}

// checkUnicode checks the runes of a path that are not ASCII.
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
		if i > 0 && path[i-1] < utf8.RuneSelf { // a mark may join the ASCII letter before it
			text = nfc{starter: rune(path[i-1])}
		}
		// The usual case: a rune that NFC leaves as it is, in any text.
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
		// p keeps the first problem. The loop goes on, because invalid UTF-8 and text that
		// is not in NFC anywhere in the path are reported instead of p.
		switch {
		case c&(runeVisible|runeFolds|runeSeparates) == runeVisible || !p.OK():
		case c == 0:
			p = ambiguous("the path holds U+%04X at position %d,"+
				" a control, format, separator or unassigned character", r, i)
		case c&runeFolds != 0:
			p = ambiguous("the path holds U+%04X at position %d,"+
				" which equals an ASCII letter when case is ignored", r, i)
		default:
			p = ambiguous("the path holds U+%04X at position %d,"+
				" which some programs read as a separator", r, i)
		}
	}
	return p
}

// foldsToASCII reports whether some case-insensitive comparison takes r for an ASCII letter: U+0130,
// U+0131, U+017F and U+212A.
func foldsToASCII(r rune) bool {
	return unicode.ToLower(r) < utf8.RuneSelf || unicode.ToUpper(r) < utf8.RuneSelf
}
