package access

import (
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"golang.org/x/text/unicode/rangetable"
)

// The bounds of the readings of a path: their number, and the bytes of all of them. A reading that is
// not ASCII counts unicodeWeight times, since its conversions take longer. CheckTarget refuses a path
// with more: anybody can send one.
const (
	maxReadings     = 64
	maxReadingBytes = 32 << 10
	unicodeWeight   = 16
)

// readings returns the paths that some program may take a path for: the path itself, and the results
// of all readers, applied in any order and any number of times. For "/a%2Fb%23c", for example, these
// are the path, "/a/b#c", "/a%2Fb" and "/a/b". complete is false if there are more than the bounds
// admit.
//
// A plain path, in which nothing needs an option, has no reading but itself.
func readings(path string) (list []string, complete bool) {
	list = []string{path}
	size := 0
	for i := 0; i < len(list); i++ {
		var due uint32
		for j := range len(list[i]) {
			due |= dueReaders[list[i][j]]
		}
		if size += len(list[i]); due&dueReaders[utf8.RuneSelf] != 0 {
			size += len(list[i]) * (unicodeWeight - 1)
		}
		if size > maxReadingBytes {
			return list, false
		}
		for ; due != 0; due &= due - 1 {
			reading := readers[bits.TrailingZeros32(due)].read(list[i])
			if reading == list[i] || slices.Contains(list, reading) {
				continue
			}
			if len(list) == maxReadings {
				return list, false
			}
			list = append(list, reading)
		}
	}
	return list, true
}

// readers are the conversions that programs apply to a path, each by itself. A reader changes only
// paths with one of its bytes; "\x80" is any byte that is not ASCII.
var readers = [...]struct {
	bytes string
	read  func(path string) string
}{
	{"\x00", PlainPath},
	{`\`, func(p string) string { return strings.ReplaceAll(p, `\`, "/") }},
	{"#", func(p string) string { return before(p, "#") }},
	{"?", func(p string) string { return before(p, "?") }},
	{";", func(p string) string { return before(p, ";") }},
	{";", withoutParameters},
	{"%", decodeAgain},
	{" .", trimSegments},
	{"/", mergeSlashes},
	{"\x80", norm.NFC.String},
	{"\x80", norm.NFKC.String},
	{"\x80", func(p string) string { return mapRunes(p, unifySpace) }},
	{"\x80", func(p string) string { return mapRunes(p, dropIgnorable) }},
	{"\x80", func(p string) string { return mapInvalid(p, func(b byte) rune { return rune(b) }) }},
	{"\x80", func(p string) string { return mapInvalid(p, func(byte) rune { return -1 }) }},
	{"\x80", func(p string) string { return mapInvalid(p, func(byte) rune { return utf8.RuneError }) }},
	{"\x80", latin1},
}

// dueReaders contains the readers for each byte of a path, as a set of bits.
var dueReaders = func() (due [256]uint32) {
	for i, r := range readers {
		for c := range due {
			if strings.IndexByte(r.bytes, byte(min(c, utf8.RuneSelf))) >= 0 {
				due[c] |= 1 << i
			}
		}
	}
	return due
}()

func before(s, mark string) string {
	s, _, _ = strings.Cut(s, mark)
	return s
}

// withoutParameters removes the first semicolon of each segment and everything after it.
func withoutParameters(path string) string {
	segments := strings.Split(path, "/")
	for i := range segments {
		segments[i] = before(segments[i], ";")
	}
	return strings.Join(segments, "/")
}

// decodeAgain decodes percent-escapes, and the %uXXXX of old Windows programs. It keeps invalid ones.
func decodeAgain(path string) string {
	out := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c, rest := path[i], path[i+1:]
		switch {
		case c == '%' && len(rest) > 1 && hexValues[rest[0]]|hexValues[rest[1]] >= 0:
			if c = byte(hexValues[rest[0]])<<4 | byte(hexValues[rest[1]]); c == '/' {
				c = dataSlash
			} else if c == dataSlash {
				c = 1 // a control character too, but no slash
			}
			i += 2
		case c == '%' && len(rest) > 4 && rest[0]|0x20 == 'u':
			if n, err := strconv.ParseUint(rest[1:5], 16, 16); err == nil {
				out = utf8.AppendRune(out, max(rune(n), 1))
				i += 5
				continue
			}
		}
		out = append(out, c)
	}
	return string(out)
}

// mapRunes is strings.Map, but leaves a text that is not UTF-8 as it is: other readers make it valid.
func mapRunes(path string, mapping func(rune) rune) string {
	if !utf8.ValidString(path) {
		return path
	}
	return strings.Map(mapping, path)
}

func unifySpace(r rune) rune {
	if unicode.IsSpace(r) || unicode.Is(unicode.Z, r) || r == '\ufeff' { // "\s" of JavaScript has it
		return ' '
	}
	return r
}

func dropIgnorable(r rune) rune {
	if isIgnorable(r) {
		return -1
	}
	return r
}

// isIgnorable reports whether a program may remove r, or ignore it in comparisons, as Linux does in
// directories that ignore case. The variation selectors of emoji, for example, need no option.
func isIgnorable(r rune) bool { return r >= utf8.RuneSelf && unicode.Is(ignorable, r) }

var ignorable = rangetable.Merge(unicode.Cc, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point,
	unicode.Variation_Selector)

// trimSegments removes spaces around each segment, and dots at its end, as Windows does.
func trimSegments(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = strings.TrimRight(strings.TrimLeft(s, " "), " .")
	}
	return strings.Join(segments, "/")
}

func mergeSlashes(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// mapInvalid replaces each byte that is not UTF-8, or removes it if the result is negative.
func mapInvalid(path string, mapping func(byte) rune) string {
	if utf8.ValidString(path) {
		return path
	}
	out := make([]byte, 0, 2*len(path))
	for len(path) > 0 {
		r, size := utf8.DecodeRuneInString(path)
		if r == utf8.RuneError && size == 1 {
			r = mapping(path[0])
		}
		if r >= 0 {
			out = utf8.AppendRune(out, r)
		}
		path = path[size:]
	}
	return string(out)
}

// latin1 takes every byte of a text that is not UTF-8 for a character of Latin-1.
func latin1(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	runes := make([]rune, len(path))
	for i := range len(path) {
		runes[i] = rune(path[i])
	}
	return string(runes)
}

// isSpecial reports whether a path has a character with several readings; most of them need an option.
// unicode is true if the path has runes that are not ASCII.
func isSpecial(path string) (special, unicode bool) {
	f := findings{raw: path, allow: ^Relax(0)}
	f.checkPath(path)
	return f.lifted.format != "" || f.hard.format != "", f.unicode
}

// misread returns the danger that some program reads in a path, or "".
func misread(path string) string {
	list, complete := readings(path)
	if !complete {
		return "more ways to read the path than the check has room for"
	}
	for _, reading := range list {
		if strings.HasPrefix(reading, "//") {
			return "two slashes, after which a host may follow, at the beginning of the path"
		}
		if strings.Contains(reading, ".") {
			for segment := range strings.SplitSeq(reading, "/") {
				if strings.Contains(segment, ".") && strings.Trim(segment, ". ") == "" {
					return "a dot segment"
				}
			}
		}
		for i, r := range reading {
			switch c := reading[i]; {
			case c < 0x20 && c != dataSlash || c == 0x7f:
				return "a control character"
			case r == utf8.RuneError && !strings.HasPrefix(reading[i:], "\ufffd") && !isLatin1(reading, i):
				return "invalid UTF-8"
			}
		}
	}
	return ""
}

// isLatin1 reports whether the byte at i, which is not UTF-8, can only be a character of Latin-1. The
// beginning of a sequence is refused before a continuation byte: lenient programs decode the overlong
// "\xc0\xae" as a dot. So are the control characters "\x80" to "\x9f".
func isLatin1(path string, i int) bool {
	begins := path[i] >= 0xc0 && i+1 < len(path) && path[i+1]&0xc0 == 0x80
	return path[i] >= 0xa0 && !begins
}
