package access

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

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

// PathText returns the text by which people see a matched path, or a segment of one. If they send this
// text again, CheckTarget returns the same path. PathText escapes each byte that cannot be sent as it
// is: the text of "/100%/é" is "/100%25/%C3%A9". It does not escape the marks of [MaskSecrets].
func PathText(path string) string {
	var text strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case c == dataSlash:
			text.WriteString("%2F")
		case pathBytes[c] == pathBad || pathBytes[c] == pathBracket || c == '%':
			fmt.Fprintf(&text, "%%%02X", c)
		default:
			text.WriteByte(c)
		}
	}
	return escapedMask.ReplaceAllString(text.String(), "${1}${2}…")
}

// escapedMask matches a mark of MaskSecrets with its "…" in the escaped form.
var escapedMask = regexp.MustCompile(`(csu_)%E2%80%A6|(^|/)%E2%80%A6$`)

// Forwarded returns the form in which a target goes upstream. With [MergedSlashes] each run of slashes
// in its path is one slash. With [RawBrackets] a raw "|" or "^" is encoded: net/url would do so, and
// would decode each %2F in the same path. Every other target is forwarded as it was received.
func (allow Relax) Forwarded(target string) string {
	if allow&(MergedSlashes|RawBrackets) == 0 || !strings.HasPrefix(target, "/") {
		return target
	}
	raw, query, found := strings.Cut(target, "?")
	if allow&MergedSlashes != 0 {
		raw = mergeSlashes(raw)
	}
	if allow&RawBrackets != 0 {
		raw = strings.ReplaceAll(strings.ReplaceAll(raw, "|", "%7C"), "^", "%5E")
	}
	if found {
		raw += "?" + query
	}
	return raw
}

// CheckTarget is the function [CheckTarget] without the refusals that these options lift. With
// [MergedSlashes] it merges the slashes itself.
func (allow Relax) CheckTarget(target string) (path string, p Problem) { return allow.check(target, 0) }

// Split checks the two parts of a raw path, before and behind byte i of the path that it decodes to,
// each as a path of its own. FastCGI passes them on in their decoded form, so each %2F in them is a
// slash.
func (allow Relax) Split(raw string, i int) (script, info string, p Problem) {
	at := rawIndex(raw, i)
	if script, p = allow.CheckTarget(raw[:at]); !p.OK() {
		return "", "", p
	}
	rest := raw[at:]
	if len(rest) > 2 && strings.EqualFold(rest[:3], "%2F") {
		rest, at = "/"+rest[3:], at+2
	} else if !strings.HasPrefix(rest, "/") {
		rest, at = "/"+rest, at-1
	}
	info, p = allow.check(rest, at)
	return PlainPath(script), PlainPath(info), p
}

// check is CheckTarget for the part of a target that begins at byte shift.
func (allow Relax) check(target string, shift int) (path string, p Problem) {
	if target == "" || target[0] != '/' {
		return "", ambiguous("the request target must begin with \"/\"")
	}
	raw, query, _ := strings.Cut(target, "?")
	for i := range len(query) {
		if c := query[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return "", ambiguous("the query holds the byte 0x%02x at position %d", c, len(raw)+1+i)
		}
	}
	f := findings{raw: raw, shift: shift, allow: allow}
	path = raw
	plain := true
	for i := range len(raw) {
		if class := pathBytes[raw[i]]; class != pathOK {
			plain = false
			if class != pathPlain { // for a dot, checkPath looks at the bytes beside it
				path = f.decodePath(i)
				break
			}
		}
	}
	if strings.Contains(path, "//") { // nothing has been decoded
		path = f.decodePath(0)
	}
	if !plain && f.hard.format == "" {
		f.checkPath(path)
	}
	if p = f.problem(); !p.OK() {
		return "", p
	}
	if f.lifted.format != "" {
		if danger := misread(path); danger != "" {
			at := rawIndex(raw, f.lifted.at) + shift
			return "", ambiguous("some programs read %s, because of the character at position %d",
				danger, at)
		}
	}
	return path, p
}

// findings collects the offences of one path. The zero value of an offence means that there is none.
type findings struct {
	raw    string // as the client sent it
	shift  int    // the position of raw in the target
	allow  Relax
	need   Relax   // the options that the path needs, those of allow too
	hard   offence // the first one that no option lifts
	soft   offence // the first one that an option lifts, which is not in allow
	lifted offence // the first one that allow lifts, or that passes without an option

	unicode bool // checkUnicode has read the path
}

// offence is a place of a path that programs read differently.
type offence struct {
	format string // of the detail, see findings.problem
	at     int    // the byte in the decoded path
	char   rune   // the character, if the detail names it
}

// The formats of the details. The raw position is argument 1, the escape or byte there 2, and the
// character 3.
const (
	holdsByte    = "the path holds %[2]s at position %[1]d, which is not allowed in a path"
	holdsMark    = "the path holds %[2]s at position %[1]d, which programs read differently"
	badEscape    = "the path holds an invalid percent-encoding at position %[1]d"
	controlByte  = "the path holds a control character at position %[1]d"
	emptySegment = "the path has an empty segment at position %[1]d"
	noName       = "the path segment at position %[1]d has nothing before its semicolon"
	dotSegment   = "the path has a dot segment at position %[1]d"
	blankSegment = "the path segment at position %[1]d holds nothing but spaces"
	edgeSpace    = "the path segment at position %[1]d begins or ends with a space"
	trailingDot  = "the path segment at position %[1]d ends in a dot"
	notUTF8      = "the path is not valid UTF-8 at position %[1]d"
	notNFC       = "the path is not in Unicode normalisation form C at position %[1]d"
	holdsSpace   = "the path holds %[3]U at position %[1]d, a space that is not ASCII"
	holdsFormat  = "the path holds %[3]U at position %[1]d, a format character"
	holdsHidden  = "the path holds %[3]U at position %[1]d, a control, separator or unassigned character"
	holdsASCII   = "the path holds %[3]U at position %[1]d, which equals an ASCII letter when case is ignored"
	holdsLook    = "the path holds %[3]U at position %[1]d, which some programs read as a separator"
)

// add adds an offence at byte i of the decoded path. option is the option that lifts it, or 0.
func (f *findings) add(option Relax, i int, format string, char rune) {
	f.need |= option
	first := &f.soft
	if option == 0 {
		first = &f.hard
	} else if f.allow&option != 0 {
		first = &f.lifted
	}
	if first.format == "" || i < first.at {
		*first = offence{format, i, char}
	}
}

// problem returns the problem of the first offence that is not lifted, if there is one.
func (f *findings) problem() Problem {
	o := cmp.Or(f.hard, f.soft)
	if o.format == "" {
		return Problem{}
	}
	at := rawIndex(f.raw, o.at)
	if o.format == emptySegment {
		at++ // the slash behind the one that is kept
	}
	var holds string
	switch rest := f.raw[min(at, len(f.raw)):]; {
	case strings.HasPrefix(rest, "%") && len(rest) > 2:
		holds = rest[:3]
	case rest != "":
		holds = fmt.Sprintf("the byte 0x%02x", rest[0])
	}
	p := ambiguous(o.format, at+f.shift, holds, o.char)
	if f.hard.format == "" {
		p.Need = f.need &^ f.allow
	}
	return p
}

// rawIndex returns the index in a raw path of byte i of the path that decodePath makes of it.
func rawIndex(raw string, i int) (at int) {
	for ; i > 0 && at < len(raw); i-- {
		switch raw[at] {
		case '%':
			at += 3
		case '/':
			for at++; at < len(raw) && raw[at] == '/'; at++ { // merged slashes
			}
		default:
			at++
		}
	}
	return min(at, len(raw))
}

// The classes of raw path bytes.
const (
	pathBad     = iota
	pathOK      // letters, digits and other bytes that are always legal
	pathPlain   // ".": legal, but checkPath must look at the bytes beside it
	pathMark    // ";": checkPath refuses it
	pathBracket // a byte that browsers do not encode: "[", "]", "|" and "^"
	pathEscape  // "%"
)

// pathBytes contains the class of each byte.
var pathBytes = func() (table [256]uint8) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~!$&'()*+,=:@/") {
		table[c] = pathOK
	}
	for _, c := range []byte("[]|^") {
		table[c] = pathBracket
	}
	table['.'], table[';'], table['%'] = pathPlain, pathMark, pathEscape
	return table
}()

// decodePath decodes every %XX of the raw path exactly once, and merges slashes. The first byte that is not
// a plain one is at from. It adds an invalid escape, a raw byte that is not legal and an empty segment
// to the findings.
func (f *findings) decodePath(from int) string {
	raw := f.raw
	out := make([]byte, len(raw))
	if i := strings.Index(raw, "//"); i >= 0 {
		from = min(from, i)
	}
	n := copy(out, raw[:from])
	for i := from; i < len(raw); i++ {
		c := raw[i]
		switch pathBytes[c] {
		case pathEscape:
			high, low := int8(-1), int8(-1)
			if i+2 < len(raw) {
				high, low = hexValues[raw[i+1]], hexValues[raw[i+2]]
			}
			if high|low < 0 { // one of them is -1
				f.add(0, n, badEscape, 0)
				return ""
			}
			i += 2
			if c = byte(high)<<4 | byte(low); c == '/' { // rules must not take it for a separator
				c = dataSlash
			} else if c == dataSlash {
				c = 1 // a control character too
			}
		case pathBracket:
			f.add(RawBrackets, n, holdsByte, 0)
		case pathBad:
			f.add(0, n, holdsByte, 0)
			return ""
		default:
			if c == '/' && n > 0 && raw[i-1] == '/' {
				f.add(MergedSlashes, n-1, emptySegment, 0)
				continue
			}
		}
		out[n] = c
		n++
	}
	return string(out[:n])
}

// hexValues contains the value of each hexadecimal digit, and -1 for all other bytes.
var hexValues = func() (table [256]int8) {
	for c := range table {
		table[c] = int8(strings.IndexByte("0123456789abcdef", lowerASCII(byte(c))))
	}
	return table
}()

// pathMarks contains the option that each byte of a decoded path needs, whether or not the byte was
// encoded.
var pathMarks = [256]Relax{
	'#': EncodedHash, '?': EncodedQuestionMark, '\\': EncodedBackslash, dataSlash: EncodedSlash,
	'%': EncodedPercent, ';': Semicolon,
}

// checkPath checks a decoded path. The path must be valid UTF-8 in NFC. It may contain only
// letters, marks, numbers, punctuation, symbols, and spaces inside of segments. It must not contain
// a rune that case-folds to ASCII, except for the Turkish "ı" and "İ", or a rune whose compatibility
// form contains a separator. No segment may be empty but the last one, begin with a space, or end in
// "." or a space.
func (f *findings) checkPath(path string) {
	bits, before := byte(0), byte('/') // bits is the OR of all bytes: 0x80 or more if one is not ASCII
	for i := 1; i < len(path); i++ {
		c := path[i]
		// In most paths no two bytes make checkSegments necessary.
		if seamLeft[before]&seamRight[c] != 0 {
			f.checkSegments(path, i)
			// checkSegments has checked the rest of the path, but not its runes:
			// checkUnicode must.
			bits, before = utf8.RuneSelf, 0
			break
		}
		bits |= c
		before = c
	}
	if before == '.' || before == ' ' { // the end of the path is the end of a segment too
		f.checkSegments(path, len(path))
	}
	if bits >= utf8.RuneSelf {
		f.checkUnicode(path)
	}
}

// seamLeft and seamRight find neighbouring bytes that may make a segment which checkSegments
// refuses. A byte a followed by a byte b is suspicious if seamLeft[a] and seamRight[b] have a bit
// in common.
var seamLeft, seamRight = func() (left, right [256]uint8) {
	const (
		end   = 1 << iota // "/", "." or " " before the end of a segment
		begin             // " " at the beginning of a segment
		any               // any byte before a control character or a mark
	)
	for c := range left {
		left[c] = any
		if c < 0x20 || c == 0x7f || pathMarks[c] != 0 {
			right[c] = any
		}
	}
	left['/'] |= begin | end
	left['.'] |= end
	left[' '] |= end
	right['/'] |= end
	right[' '] |= begin
	return left, right
}()

// checkSegments checks the segments of a path, from the segment of the byte at i on.
func (f *findings) checkSegments(path string, i int) {
	// An upstream may read a %2F or %5C as a separator, and a semicolon as the beginning of
	// parameters. So the parts between them must be valid segments too: "a%2F..%2Fb" and "..;x"
	// do not pass. Only such a part may be empty.
	for start := strings.LastIndexByte(path[:i], '/') + 1; start <= len(path); {
		end := start
		for ; end < len(path) && path[end] != '/'; end++ {
			c := path[end]
			if pathMarks[c] != 0 {
				f.add(pathMarks[c], end, holdsMark, 0)
				if c == dataSlash || c == '\\' {
					break
				}
			} else if c < 0x20 || c == 0x7f {
				f.add(0, end, controlByte, 0)
			}
		}
		part := path[start:end]
		name, _, parameters := strings.Cut(part, ";") // parameters is true if there is a ";"
		switch {
		case name == "" && parameters:
			f.add(0, start, noName, 0)
		case name == "":
			if start > 0 && path[start-1] == '/' && end < len(path) && path[end] == '/' {
				f.add(MergedSlashes, start-1, emptySegment, 0)
			}
		case strings.Trim(name, ". ") == "" && strings.Contains(name, "."):
			f.add(0, start, dotSegment, 0) // also "...", which some programs take for "../.."
		case strings.Trim(name, " ") == "":
			f.add(0, start, blankSegment, 0)
		case name[0] == ' ' || name[len(name)-1] == ' ' || part[len(part)-1] == ' ':
			f.add(EdgeSpace, start, edgeSpace, 0)
		}
		if strings.HasSuffix(strings.TrimRight(name, " "), ".") {
			f.add(TrailingDot, start, trailingDot, 0)
		}
		start = end + 1
	}
}

// checkUnicode checks the runes of a path that are not ASCII.
func (f *findings) checkUnicode(path string) {
	f.unicode = true
	table := runes()
	var text nfc
	normal := true
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
			option := Latin1
			if !isLatin1(path, i) {
				option = 0
			}
			f.add(option, i, notUTF8, 0)
			text = nfc{}
			continue
		}
		if normal && !text.next(table, r, c) {
			normal = false
			f.add(NonNFC, i, notNFC, 0)
		}
		switch {
		case c&runeFormat != 0 && c&runeVisible != 0: // it needs no option, but has readings
			f.lifted = cmp.Or(f.lifted, offence{holdsFormat, i, r})
		case foldsToASCII(r):
			f.add(0, i, holdsASCII, r)
		case c&runeSpace != 0:
			f.add(UnicodeSpaces, i, holdsSpace, r)
		case c&runeFormat != 0:
			f.add(FormatCharacters, i, holdsFormat, r)
		case c&runeVisible == 0:
			f.add(0, i, holdsHidden, r)
		case c&runeSeparates != 0:
			f.add(Lookalikes, i, holdsLook, r)
		}
	}
}

// foldsToASCII reports whether r is a rune that some programs take for an ASCII letter, and others do
// not: "ſ" and the Kelvin sign. The Turkish "ı" and "İ" are letters that real paths contain: a deny
// takes them for "i" (see foldCase).
func foldsToASCII(r rune) bool { return r == 'ſ' || r == '\u212a' }
