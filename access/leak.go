package access

import (
	"bytes"
	"regexp"
	"strings"
)

// Leak is the worst thing that a text gives away.
type Leak uint8

// The leaks, in the order of the harm that they do.
const (
	NoLeak     Leak = iota
	LoginLeak       // the id of a service user with a colon behind it, as in credentials
	SecretLeak      // a secret, or so much of one that the rest can be found out
)

// cutDigits is how many random characters of a secret a text may show. Behind 16,
// 27 are unknown: 160 bits, or 128 to a reader who knows the whole checksum (32 bits)
// from elsewhere, such as [Hint].
const cutDigits = 16

const (
	minLeak     = len(SecretPrefix) + cutDigits + 1
	longestWord = 100 // in which the prefix of a secret is not taken for chance
	leakLayers  = 2
)

// FindLeak finds secrets and logins of ours in a text, as any lenient reader could:
// whole or cut, in another case, with foreign bytes between, with escapes (percent, \x,
// \u, &#x, quoted-printable), in UTF-16, and inside of base64 and hexadecimal digits,
// two layers deep. A piece of a secret without its beginning is no leak unless only
// its prefix is missing: it looks like any other word.
//
// The request path, logs, the audit trail and stored texts all rely on this function.
// Its time grows in proportion to the text; a text that is made to take more than any
// real one counts as a secret.
func FindLeak(text string) Leak {
	if len(text) < minLeak {
		return NoLeak
	}
	var buf [512]byte
	plain := spaceFor(&buf, len(text))
	for i := range len(text) {
		if text[i] != 0 {
			plain = append(plain, text[i])
		}
	}
	budget := 8*len(text) + 16<<10
	return leakIn(plain, leakLayers, true, &budget)
}

// leakIn looks into a text, and into the texts that it encodes.
func leakIn(text []byte, layers int, escapes bool, budget *int) Leak {
	if *budget -= len(text); *budget < 0 {
		return SecretLeak
	}
	var buf [512]byte
	digits, found, escaped := plainLeak(spaceFor(&buf, len(text)), text)
	if found == SecretLeak || holdsJoined(digits) {
		return SecretLeak
	}
	if escaped && escapes {
		found = max(found, escapedLeak(text, layers, budget))
	}
	if layers == 0 {
		return found
	}
	if len(digits) >= 2*minLeak {
		found = max(found, hexLeak(digits, layers-1, budget))
	}
	// Decoders that skip foreign bytes differ about the digits 62 and 63.
	for _, alphabet := range []string{"", "+/", "-_"} {
		if alphabet != "" {
			if !bytes.ContainsAny(text, alphabet) {
				continue
			}
			digits = digits[:0]
			for _, c := range text {
				if digitValues[c] >= 0 || c == alphabet[0] || c == alphabet[1] {
					digits = append(digits, c)
				}
			}
		}
		if found < SecretLeak && len(digits) >= (minLeak*4+2)/3 {
			found = max(found, base64Leak(digits, layers-1, budget))
		}
	}
	return found
}

func escapedLeak(text []byte, layers int, budget *int) Leak {
	var buf [512]byte
	return leakIn(unescape(spaceFor(&buf, len(text)), text), layers, false, budget)
}

// base64Leak decodes the base64 digits of a text. Nothing is known of the bytes before a
// secret, so the first group of four may begin at any of four places.
func base64Leak(digits []byte, layers int, budget *int) (found Leak) {
	var buf [512]byte
	decoded := spaceFor(&buf, len(digits))
	for skip := range 4 {
		if found = max(found, leakIn(textOf(decodeBase64(decoded, digits[skip:])), layers, true, budget)); found == SecretLeak {
			break
		}
	}
	return found
}

// hexLeak decodes the hexadecimal digits among letters and decimal digits.
func hexLeak(digits []byte, layers int, budget *int) (found Leak) {
	var buf, decoded [512]byte
	hexDigits := spaceFor(&buf, len(digits))
	for _, c := range digits {
		if hexValues[c] >= 0 {
			hexDigits = append(hexDigits, c)
		}
	}
	if len(hexDigits) < 2*minLeak {
		return NoLeak
	}
	for skip := range 2 {
		found = max(found, leakIn(textOf(decodeHex(spaceFor(&decoded, len(digits)), hexDigits[skip:])), layers, true, budget))
	}
	return found
}

// spaceFor is an empty slice for n bytes.
func spaceFor(buf *[512]byte, n int) []byte {
	if n > len(buf) {
		return make([]byte, 0, n)
	}
	return buf[:0]
}

// plainLeak finds a secret or login that is in a text in one piece. It appends the letters and decimal
// digits of the text to digits, and reports whether some bytes are escaped.
func plainLeak(digits, text []byte) (_ []byte, found Leak, escaped bool) {
	begin := 0 // of the base62 digits before i
	for i, c := range text {
		if digitValues[c] >= 0 {
			digits = append(digits, c)
			continue
		}
		if isBareSecret(text[begin:i]) {
			return digits, SecretLeak, escaped
		}
		switch c {
		case '_':
			if at := i + 1 - len(SecretPrefix); at >= begin && foldsTo(text[at:], SecretPrefix) && isCutSecret(text, at) {
				return digits, SecretLeak, escaped
			}
			if at := i + 1 - len(userPrefix); at >= begin && foldsTo(text[at:], userPrefix) {
				if n := countDigits(text[i+1:]); n == idDigits && i+1+n < len(text) && text[i+1+n] == ':' {
					found = LoginLeak
				}
			}
		case '%', '=', '\\', '&':
			_, n := escapedByte(text[i:])
			escaped = escaped || n > 0
		}
		begin = i + 1
	}
	if isBareSecret(text[begin:]) {
		found = SecretLeak
	}
	return digits, found, escaped
}

// isBareSecret reports whether a word is a secret without its prefix.
func isBareSecret(word []byte) bool {
	return len(word) == randomDigits+checkDigits && WellFormedSecret(SecretPrefix+string(word))
}

// isCutSecret reports whether the prefix at this place begins a secret, whole or cut.
// Random base64url, as in the tokens of others, has this prefix once in some thousand
// tokens: amid a word it must be spelled exactly, and a long word needs a checksum.
func isCutSecret(text []byte, at int) bool {
	if countDigits(text[at+len(SecretPrefix):]) <= cutDigits {
		return false
	}
	begin, end := at, at
	for begin > 0 && isWordByte(text[begin-1]) {
		begin--
	}
	if begin == at {
		return true
	}
	for end < len(text) && isWordByte(text[end]) {
		end++
	}
	if end-begin <= longestWord {
		return bytes.HasPrefix(text[at:], []byte(SecretPrefix))
	}
	return len(text)-at >= SecretLength && WellFormedSecret(string(text[at:][:SecretLength]))
}

// holdsJoined reports whether the digits of a text, with everything else left out,
// hold a whole secret.
func holdsJoined(digits []byte) bool {
	const prefix = len(SecretPrefix) - 1 // its underscore is no digit
	for i := prefix; i <= len(digits)-(randomDigits+checkDigits); i++ {
		if digits[i-1]|0x20 == 'u' && digits[i-2]|0x20 == 's' && digits[i-3]|0x20 == 'c' &&
			WellFormedSecret(SecretPrefix+string(digits[i:][:randomDigits+checkDigits])) {
			return true
		}
	}
	return false
}

// wholeSecret is a secret in one piece; what follows without a gap may belong to it.
var wholeSecret = regexp.MustCompile(`(?i)csu_[0-9A-Za-z]{49,}`)

// MaskSecrets returns a text without the secrets of ours in it: "csu_…" in the place
// of a whole one. From the first segment on that holds one in another form, nothing is
// left, since the rest of a secret may follow.
func MaskSecrets(text string) string {
	if FindLeak(text) != SecretLeak {
		return text
	}
	text = wholeSecret.ReplaceAllLiteralString(text, SecretPrefix+"…")
	if FindLeak(text) != SecretLeak {
		return text
	}
	for begin := 0; begin < len(text); {
		end := begin + strings.IndexByte(text[begin:]+"/", '/')
		if segment := []byte(text[begin:end]); FindLeak(text[begin:end]) == SecretLeak {
			mask := "…"
			for at := range segment {
				if foldsTo(segment[at:], SecretPrefix) && isCutSecret(segment, at) {
					begin, mask = begin+at, SecretPrefix+mask
					break
				}
			}
			if text = text[:begin] + mask; FindLeak(text) != SecretLeak {
				return text
			}
			break
		}
		begin = end + 1
	}
	return "…"
}

// maxForeign is the longest credential of others that is looked through.
const maxForeign = 16 << 10

// CheckForeign returns why the value of an Authorization field must not be left to
// another authenticator, or "". It must not when it gives away a login or a secret of
// ours, in whatever spelling, and when it is Basic in a form that RFC 7617 and RFC
// 4648 do not allow, which other programs may read in another way than this one. Other
// schemes may hold anything else.
func CheckForeign(value string) (why string) {
	if len(value) > maxForeign {
		return "it is longer than 16 KiB"
	}
	switch FindLeak(value) {
	case SecretLeak:
		return "it holds a token of a service user, or a part of one"
	case LoginLeak:
		return "it holds the id of a service user, as a login"
	}
	scheme := strings.TrimLeftFunc(value, func(r rune) bool { return r >= 0x80 || digitValue(byte(r)) < 0 })
	if len(scheme) < len("basic") || !strings.EqualFold(scheme[:len("basic")], "basic") {
		return ""
	}
	login, ok := BasicLogin(value)
	if !ok {
		return "it is Basic, but not in the one form that RFC 7617 allows"
	}
	if len(login) >= len(userPrefix) && strings.EqualFold(login[:len(userPrefix)], userPrefix) {
		return "it holds a login that has the form of the id of a service user"
	}
	return ""
}

func foldsTo(text []byte, lower string) bool {
	if len(text) < len(lower) {
		return false
	}
	for i := range len(lower) {
		if lowerASCII(text[i]) != lower[i] {
			return false
		}
	}
	return true
}

// countDigits returns with how many base62 digits a text begins.
func countDigits(text []byte) int {
	for i, c := range text {
		if digitValues[c] < 0 {
			return i
		}
	}
	return len(text)
}

func isWordByte(c byte) bool { return digitValues[c] >= 0 || c == '_' || c == '-' }

// textOf keeps what may be text of decoded bytes, in place: the blocks that are mostly
// printable ASCII, with their neighbours. A wrong start, or text that is not
// base64, decodes to random bytes, of which a tenth stays.
func textOf(b []byte) []byte {
	const block = 12
	isText := func(at int) bool {
		if at >= len(b) {
			return false
		}
		some := b[at:min(len(b), at+block)]
		var n int
		for _, c := range some {
			n += int(printable[c])
		}
		return 3*n >= 2*len(some)
	}
	n := 0
	before, here := false, isText(0)
	for at := 0; at < len(b); at += block {
		behind := isText(at + block)
		if before || here || behind {
			n += copy(b[n:], b[at:min(len(b), at+block)])
		} else if n > 0 && b[n-1] != gap {
			b[n] = gap
			n++
		}
		before, here = here, behind
	}
	return b[:n]
}

const gap = 0xff // between texts; no part of one

// decodeBase64 decodes base64 digits and leaves out NUL, so that UTF-16 reads as ASCII.
func decodeBase64(dst, digits []byte) []byte {
	dst = dst[:len(digits)]
	n := 0
	put := func(b uint32) {
		if dst[n] = byte(b); dst[n] != 0 {
			n++
		}
	}
	for len(digits) >= 4 {
		bits := base64Values[digits[0]]<<18 | base64Values[digits[1]]<<12 | base64Values[digits[2]]<<6 | base64Values[digits[3]]
		put(bits >> 16)
		put(bits >> 8)
		put(bits)
		digits = digits[4:]
	}
	switch len(digits) {
	case 2:
		put(base64Values[digits[0]]<<2 | base64Values[digits[1]]>>4)
	case 3:
		bits := base64Values[digits[0]]<<10 | base64Values[digits[1]]<<4 | base64Values[digits[2]]>>2
		put(bits >> 8)
		put(bits)
	}
	return dst[:n]
}

// decodeHex decodes pairs of hexadecimal digits, and leaves out NUL as well.
func decodeHex(dst, digits []byte) []byte {
	for i := 0; i+1 < len(digits); i += 2 {
		if b := byte(hexValues[digits[i]])<<4 | byte(hexValues[digits[i+1]]); b != 0 {
			dst = append(dst, b)
		}
	}
	return dst
}

// escapes lists what stands before two hexadecimal digits, in lower case.
var escapes = []string{"%", "=", `\x`, `\u00`, "%u00", "&#x"}

// escapedByte returns the byte that a text begins with in an escaped form, and how
// long that form is, or 0.
func escapedByte(text []byte) (b byte, n int) {
	for _, intro := range escapes {
		n := len(intro)
		if n+1 < len(text) && hexValues[text[n]] >= 0 && hexValues[text[n+1]] >= 0 && foldsTo(text, intro) {
			b = byte(hexValues[text[n]])<<4 | byte(hexValues[text[n+1]])
			if n += 2; intro == "&#x" && n < len(text) && text[n] == ';' {
				n++
			}
			return b, n
		}
	}
	return 0, 0
}

// unescape undoes escapes, also those of escapes, and leaves out NUL.
func unescape(dst, text []byte) []byte {
	for range 3 {
		dst = dst[:0] // the writer never overtakes the reader
		for i := 0; i < len(text); {
			b, n := text[i], 1
			if b == '%' || b == '=' || b == '\\' || b == '&' {
				if e, length := escapedByte(text[i:]); length > 0 {
					b, n = e, length
				}
			}
			if b != 0 {
				dst = append(dst, b)
			}
			i += n
		}
		if len(dst) == len(text) {
			break
		}
		text = dst
	}
	return dst
}

// Tables by byte: the values of base64 digits, in both alphabets, and 1 for printable
// ASCII and blanks.
var (
	base64Values [256]uint32
	printable    [256]uint8
)

func init() {
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
		base64Values[c] = uint32(i)
	}
	base64Values['-'], base64Values['_'] = base64Values['+'], base64Values['/']
	for c := range 256 {
		if ' ' <= c && c < 0x7f || c == '\t' || c == '\r' || c == '\n' {
			printable[c] = 1
		}
	}
}
