package access

import (
	"bytes"
	"regexp"
	"strings"
)

// Leak says how harmful it would be to show a text.
type Leak uint8

// The leaks, from harmless to worst.
const (
	NoLeak     Leak = iota
	LoginLeak       // the id of a service user followed by a colon, as in credentials
	SecretLeak      // a secret, or enough of a secret to guess the rest
)

// cutDigits is the number of random characters of a secret that a text may show. After 16 of them,
// 27 are unknown. These are 160 bits, or 128 bits if the reader knows the whole checksum (32 bits)
// from elsewhere, such as [Hint].
const cutDigits = 16

const (
	minLeak     = len(SecretPrefix) + cutDigits + 1
	longestWord = 100 // in longer words, "csu_" may be there by chance; see isCutSecret
	leakLayers  = 2   // base64 in base64 is decoded, a third layer is not
)

// FindLeak finds our secrets and logins in a text, in every form that a lenient reader might
// decode: whole or cut, in another case, with other bytes in between, with escapes (percent, \x,
// \u, &#x, quoted-printable), in UTF-16, and inside of base64 and hexadecimal digits, two layers
// deep. A part of a secret without its beginning is not a leak, because it looks like any other
// word; a secret that lacks only its prefix is a leak. Of what base64 or hexadecimal digits encode,
// FindLeak reads text: of any 12 bytes, at least 8 are printable ASCII. It takes the rest for random bytes.
//
// The request path, logs, the audit trail and stored texts all rely on this function. Its time
// grows in proportion to the text. A text that is crafted to take longer than any real text counts
// as a secret.
func FindLeak(text string) Leak {
	if len(text) < minLeak {
		return NoLeak
	}
	var buf [512]byte
	plain := spaceFor(&buf, len(text))
	// Without NUL, UTF-16 reads as ASCII.
	for i := range len(text) {
		if text[i] != 0 {
			plain = append(plain, text[i])
		}
	}
	budget := 8*len(text) + 16<<10 // bytes to look at, in all decoded forms together
	return leakIn(plain, leakLayers, true, &budget)
}

// leakIn looks for leaks in a text and in the texts that it encodes. It decodes up to this number
// of layers of base64 or hexadecimal, and escapes only if escapes is true. It reduces budget by the
// length of each text, and reports SecretLeak when the budget is spent.
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
	// Decoders that skip other bytes disagree about the digits 62 and 63: some read "+/", some
	// "-_", and some skip both. So the text is read in all three ways.
	for _, alphabet := range []string{"", "+/", "-_"} {
		if alphabet != "" {
			if !bytes.ContainsAny(text, alphabet) { // the digits are those of the first reading
				continue
			}
			digits = digits[:0]
			for _, c := range text {
				if digitValues[c] >= 0 || c == alphabet[0] || c == alphabet[1] {
					digits = append(digits, c)
				}
			}
		}
		// Shorter base64 has no room for a leak.
		if found < SecretLeak && len(digits) >= (minLeak*4+2)/3 {
			found = max(found, base64Leak(digits, layers-1, budget))
		}
	}
	return found
}

// escapedLeak looks for leaks in a text after undoing its escapes. Unescape undoes nested escapes,
// so leakIn need not look for escapes again.
func escapedLeak(text []byte, layers int, budget *int) Leak {
	var buf [512]byte
	return leakIn(unescape(spaceFor(&buf, len(text)), text), layers, false, budget)
}

// base64Leak looks for leaks in the base64 digits of a text. The bytes before the secret are
// unknown, so its first group of four digits may begin at any of four places.
func base64Leak(digits []byte, layers int, budget *int) (found Leak) {
	var buf [512]byte
	decoded := spaceFor(&buf, len(digits))
	for skip := range 4 {
		text := textOf(decodeBase64(decoded, digits[skip:]))
		if found = max(found, leakIn(text, layers, true, budget)); found == SecretLeak {
			break
		}
	}
	return found
}

// hexLeak looks for leaks in the hexadecimal digits among letters and decimal digits. A pair of
// digits may begin at any of two places.
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
		text := textOf(decodeHex(spaceFor(&decoded, len(digits)), hexDigits[skip:]))
		found = max(found, leakIn(text, layers, true, budget))
	}
	return found
}

// spaceFor returns an empty slice with room for n bytes: buf, on the stack of the caller, if it is
// large enough.
func spaceFor(buf *[512]byte, n int) []byte {
	if n > len(buf) {
		return make([]byte, 0, n)
	}
	return buf[:0]
}

// plainLeak finds a secret or login that is in a text in one piece. It also appends the letters and
// decimal digits of the text to digits, and reports whether the text contains escaped bytes.
func plainLeak(digits, text []byte) (_ []byte, found Leak, escaped bool) {
	begin := 0 // of the run of base62 digits that ends at i
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
			at := i + 1 - len(SecretPrefix)
			if at >= begin && foldsTo(text[at:], SecretPrefix) && isCutSecret(text, at) {
				return digits, SecretLeak, escaped
			}
			at = i + 1 - len(userPrefix)
			if at >= begin && foldsTo(text[at:], userPrefix) {
				n := countDigits(text[i+1:])
				if n == idDigits && i+1+n < len(text) && text[i+1+n] == ':' {
					found = LoginLeak // and go on: a secret may follow
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

// isCutSecret reports whether the prefix at text[at:] begins a secret, whole or cut. The tokens of
// other systems are often random base64url, and one in some thousand of them contains the prefix by
// chance. So inside of a word the prefix must have the right case, and inside of a word of more
// than longestWord bytes a whole secret with the right checksum must follow.
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

// holdsJoined reports whether the letters and digits of a text, without the bytes in between,
// contain a whole secret.
func holdsJoined(digits []byte) bool {
	const prefix = len(SecretPrefix) - 1 // without the underscore, which is not a digit
	for i := prefix; i <= len(digits)-(randomDigits+checkDigits); i++ {
		// Setting the bit 0x20 makes a letter lower case.
		if digits[i-1]|0x20 == 'u' && digits[i-2]|0x20 == 's' && digits[i-3]|0x20 == 'c' &&
			WellFormedSecret(SecretPrefix+string(digits[i:][:randomDigits+checkDigits])) {
			return true
		}
	}
	return false
}

// wholeSecret matches a secret in one piece. It includes any digits directly after the secret,
// which may belong to it.
var wholeSecret = regexp.MustCompile(`(?i)csu_[0-9A-Za-z]{49,}`)

// MaskSecrets returns a text, such as a path, without our secrets. It replaces a whole secret by
// "csu_…". If a segment of the path contains a secret in another form, MaskSecrets replaces that
// segment and everything after it by "…", since the rest of the secret may follow.
func MaskSecrets(text string) string {
	if FindLeak(text) != SecretLeak {
		return text
	}
	text = wholeSecret.ReplaceAllLiteralString(text, SecretPrefix+"…")
	if FindLeak(text) != SecretLeak {
		return text
	}
	for begin := 0; begin < len(text); {
		// The added slash makes IndexByte find the end of the last segment too.
		end := begin + strings.IndexByte(text[begin:]+"/", '/')
		if segment := []byte(text[begin:end]); FindLeak(text[begin:end]) == SecretLeak {
			mask := "…"
			// Keep the part of the segment before the prefix of a secret, if the prefix
			// is readable.
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
	// The secret is spread over several segments.
	return "…"
}

// MaskLogin replaces a login id that contains a secret. Some clients swap id and token, or send the
// token as the user name.
func MaskLogin(login string) string {
	if FindLeak(login) == SecretLeak {
		return "(a token in the place of the id)"
	}
	return login
}

// maxForeign is the length of the longest credential that CheckForeign searches, in bytes.
const maxForeign = 16 << 10

// CheckForeign returns the reason why the value of an Authorization field must not be passed on to
// another authenticator, or "" if it may be. The value must not contain one of our logins or
// secrets in any spelling that FindLeak reads. If its scheme is Basic, it must have the form of RFC
// 7617 and RFC 4648, since other programs may decode a different form in another way than this one.
// Values of other schemes may contain anything else.
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
	// A lenient program may skip bytes before the scheme, so they are skipped here too.
	scheme := strings.TrimLeftFunc(value, func(r rune) bool { return r >= 0x80 || digitValue(byte(r)) < 0 })
	if !foldsTo(scheme, "basic") {
		return ""
	}
	login, ok := BasicLogin(value)
	if !ok {
		return "it is Basic, but not in the one form that RFC 7617 allows"
	}
	if foldsTo(login, userPrefix) {
		return "it holds a login that has the form of the id of a service user"
	}
	return ""
}

// countDigits returns the number of base62 digits at the beginning of a text.
func countDigits(text []byte) int {
	for i, c := range text {
		if digitValues[c] < 0 {
			return i
		}
	}
	return len(text)
}

func isWordByte(c byte) bool { return digitValues[c] >= 0 || c == '_' || c == '-' }

// textOf keeps the parts of decoded bytes that may be text: the blocks that are mostly printable
// ASCII, and the blocks next to them. It works in place. Decoding from a wrong start, or decoding a
// text that is not base64, gives random bytes; about a tenth of those blocks remains.
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
		return 3*n >= 2*len(some) // two thirds
	}
	n := 0
	before, here := false, isText(0)
	for at := 0; at < len(b); at += block {
		behind := isText(at + block)
		if before || here || behind {
			n += copy(b[n:], b[at:min(len(b), at+block)])
		} else if n > 0 && b[n-1] != gap { // texts on both sides must not join
			b[n] = gap
			n++
		}
		before, here = here, behind
	}
	return b[:n]
}

// gap is the byte that textOf puts between two texts. It is not part of any text.
const gap = 0xff

// decodeBase64 decodes base64 digits of either alphabet. It omits NUL bytes, so that UTF-16 reads
// as ASCII.
func decodeBase64(dst, digits []byte) []byte {
	dst = dst[:len(digits)]
	n := 0
	put := func(b uint32) {
		if dst[n] = byte(b); dst[n] != 0 {
			n++
		}
	}
	for len(digits) >= 4 {
		bits := base64Values[digits[0]]<<18 | base64Values[digits[1]]<<12 |
			base64Values[digits[2]]<<6 | base64Values[digits[3]]
		put(bits >> 16)
		put(bits >> 8)
		put(bits)
		digits = digits[4:]
	}
	switch len(digits) { // of the last group; one digit alone has no whole byte
	case 2:
		put(base64Values[digits[0]]<<2 | base64Values[digits[1]]>>4)
	case 3:
		bits := base64Values[digits[0]]<<10 | base64Values[digits[1]]<<4 | base64Values[digits[2]]>>2
		put(bits >> 8)
		put(bits)
	}
	return dst[:n]
}

// decodeHex decodes pairs of hexadecimal digits. It omits NUL bytes too.
func decodeHex(dst, digits []byte) []byte {
	for i := 0; i+1 < len(digits); i += 2 {
		if b := byte(hexValues[digits[i]])<<4 | byte(hexValues[digits[i+1]]); b != 0 {
			dst = append(dst, b)
		}
	}
	return dst
}

// escapes lists the beginnings of escapes in lower case; two hexadecimal digits follow them.
var escapes = []string{"%", "=", `\x`, `\u00`, "%u00", "&#x"}

// escapedByte decodes the escape at the beginning of a text: it returns the byte and the length of
// the escape. The length is 0 if the text does not begin with an escape.
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

// unescape undoes escapes, and escapes of escapes, up to three levels. It omits NUL bytes.
func unescape(dst, text []byte) []byte {
	for range 3 {
		dst = dst[:0] // text may be dst: writing stays behind reading, as an escape is longer than its byte
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

// Two tables by byte. base64Values contains the values of the base64 digits of both alphabets.
// printable contains 1 for printable ASCII, space, tab and line breaks.
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
