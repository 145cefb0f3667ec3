package access

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"unicode/utf16"

	"pgregory.net/rapid"
)

const (
	leakID     = "service_37gS6Q5p7tskU13NG9SO5lXlYTc"
	leakSecret = "csu_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp12TtPM6"
	leakLogin  = leakID + ":" + leakSecret
)

// every puts a text behind every n bytes of another one.
func every(n int, what, text string) string {
	var b strings.Builder
	for i := range len(text) {
		if i > 0 && i%n == 0 {
			b.WriteString(what)
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// escaped writes every byte in one format, such as "%%%02x".
func escaped(format, text string) string {
	var b strings.Builder
	for i := range len(text) {
		fmt.Fprintf(&b, format, text[i])
	}
	return b.String()
}

// wide is a text in UTF-16, with the low byte first.
func wide(text string) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(text)) {
		b.WriteByte(byte(unit))
		b.WriteByte(byte(unit >> 8))
	}
	return b.String()
}

func b64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// TestFindLeak spells one login and one secret in every way that a lenient reader
// takes.
func TestFindLeak(t *testing.T) {
	for name, text := range map[string]string{
		"secret":                        leakSecret,
		"amid a text":                   "the token (" + leakSecret + ") of billing",
		"in capitals":                   strings.ToUpper(leakSecret),
		"in lower case":                 strings.ToLower(leakSecret),
		"in quotes":                     `Bearer "` + leakSecret + `"`,
		"behind an escaped blank":       "Bearer%20" + leakSecret,
		"behind letters":                "token" + leakSecret,
		"behind an underscore":          "MY_" + leakSecret,
		"behind a long word":            strings.Repeat("A", 200) + leakSecret,
		"two":                           leakSecret + leakSecret,
		"cut by one":                    leakSecret[:len(leakSecret)-1],
		"cut by its checksum":           leakSecret[:47],
		"cut to one more than harmless": leakSecret[:21],
		"cut, behind letters":           "token" + leakSecret[:40],
		"cut, with dots":                leakSecret[:40] + "...",
		"without its prefix":            leakSecret[4:],
		"without a part of its prefix":  leakSecret[2:],
		"without its prefix, in base64": b64(leakID + ":" + leakSecret[4:]),
		"in groups of four":             every(4, " ", leakSecret),
		"with line breaks":              every(20, "\r\n", leakSecret),
		"with zero-width spaces":        every(10, "\u200b", leakSecret),
		"with a quote inside":           leakSecret[:30] + `"` + leakSecret[30:],
		"Basic":                         "Basic " + b64(leakLogin),
		"Basic of a secret alone":       "Basic " + b64(":"+leakSecret),
		"a tab behind the scheme":       "Basic\t" + b64(leakLogin),
		"two schemes":                   "Basic Basic " + b64(leakLogin),
		"another scheme before":         "Bearer Basic " + b64(leakLogin),
		"no scheme":                     b64(leakLogin),
		"glued to the scheme":           "Basic" + b64(leakLogin),
		"quoted":                        `Basic "` + b64(leakLogin) + `"`,
		"as a parameter":                `Digest username="x", response="` + b64(leakLogin) + `"`,
		"no padding":                    "Basic " + strings.TrimRight(b64(leakLogin), "="),
		"padding inside":                "Basic " + b64(leakID+":") + b64(leakSecret),
		"base64 for URLs":               "Basic " + base64.URLEncoding.EncodeToString([]byte("ÿ?>"+leakLogin)),
		"base64 cut in front":           b64(leakLogin)[17:],
		"base64 cut at the end":         b64(leakLogin)[:80],
		"foreign bytes inside":          "Basic " + every(7, "!", b64(leakLogin)),
		"a blank inside":                "Basic " + every(50, " ", b64(leakLogin)),
		"percent signs inside":          "Basic " + every(5, "%", b64(leakLogin)),
		"dashes inside":                 "Basic " + every(11, "-", b64(leakLogin)),
		"8-bit bytes inside":            "Basic " + every(9, "\xff", b64(leakLogin)),
		"percent escapes":               "Basic " + escaped("%%%02x", leakLogin),
		"percent escapes of base64":     "Basic " + escaped("%%%02X", b64(leakLogin)),
		"percent escapes, twice":        escaped("%%25%02X", leakLogin),
		"percent escapes of UTF-16":     escaped("%%%02x", wide(leakLogin)),
		"one percent escape":            strings.Replace(leakSecret, "A", "%41", 1)[:40],
		"an escaped underscore":         url.QueryEscape("a b") + "csu%5F" + leakSecret[4:30],
		"escapes of C":                  escaped(`\x%02x`, leakLogin),
		"escapes of JSON":               escaped(`\u%04x`, leakLogin),
		"escapes of JavaScript":         escaped("%%u%04X", leakLogin),
		"escapes of HTML":               escaped("&#x%02x;", leakLogin),
		"quoted-printable":              escaped("=%02X", leakLogin),
		"a number of C":                 "0x" + hex.EncodeToString([]byte(leakSecret)),
		"hex":                           "Basic " + hex.EncodeToString([]byte(leakLogin)),
		"hex in capitals":               "Bearer " + strings.ToUpper(hex.EncodeToString([]byte(leakSecret))),
		"hex with colons":               escaped("%02x:", leakSecret),
		"hex of a cut one":              hex.EncodeToString([]byte(leakSecret[:25])),
		"UTF-16":                        wide(leakSecret),
		"a zero-width space in base64":  b64(leakID + ":" + every(30, "\u200b", leakSecret)),
		"amid bytes in base64":          b64(strings.Repeat("\xf0\x90", 90) + leakSecret[:21] + strings.Repeat("\xf0\x90", 90)),
		"base64 of UTF-16":              "Basic " + b64(wide(leakLogin)),
		"base64 of base64":              "Basic " + b64(b64(leakLogin)),
		"base64 of hex":                 "Basic " + b64(hex.EncodeToString([]byte(leakSecret))),
		"hex of base64":                 hex.EncodeToString([]byte(b64(leakLogin))),
		"base64 of percent escapes":     b64(escaped("%%%02x", leakLogin)),
		"base64 of Basic":               b64("Basic " + b64(leakLogin)),
		"far more than it seems":        strings.Repeat("V", 16<<10),
		"in a token of others":          "Bearer " + b64(`{"alg":"none"}`) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"ÿ":"??>","key":"`+leakSecret+`"}`)) + ".",
	} {
		if got := FindLeak(text); got != SecretLeak {
			t.Errorf("%s: got %d in %q, want a secret", name, got, text)
		}
	}
	for name, text := range map[string]string{
		"plain":                 leakID + ":x",
		"with a mistyped token": "Basic " + b64(leakID+":csu-yhjskwdA6OZ1A"),
		"in capitals":           strings.ToUpper(leakID) + ":",
		"in hex":                hex.EncodeToString([]byte(leakID + ":x")),
		"with an escaped colon": leakID + "%3Ax",
	} {
		if got := FindLeak(text); got != LoginLeak {
			t.Errorf("a login, %s: got %d in %q, want a login", name, got, text)
		}
	}
	for name, text := range map[string]string{
		"nothing":                "",
		"the prefix":             "tokens begin with csu_ and never end",
		"the prefix of a word":   "csu_channelislands",
		"a harmless cut":         leakSecret[:20],
		"a harmless cut, base64": "Basic " + b64("a:"+leakSecret[:20]),
		"a hint":                 "…" + leakSecret[49:],
		"the end":                leakSecret[24:],
		"49 other characters":    leakSecret[4:52] + "7",
		"an id":                  leakID,
		"a claim":                "Bearer e30." + b64(`{"sub":"`+leakID+`"}`) + ".",
		"a cut login":            leakID[:34] + ":x",
		"Basic of others":        "Basic " + b64("someone:password"),
		"Digest":                 `Digest username="x", realm="basic"`,
		"long":                   "Basic " + strings.Repeat("A", 2000),
		"escapes":                strings.Repeat("%25", 300) + strings.Repeat("%", 300),
	} {
		if got := FindLeak(text); got != NoLeak {
			t.Errorf("%s: got %d in %q, want none", name, got, text)
		}
	}
}

// TestFindLeakAnywhere hides a secret, whole or cut, in random surroundings.
func TestFindLeakAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := formatSecret([32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed")))
		text := secret[:rapid.IntRange(minLeak, SecretLength).Draw(t, "length")]
		spaces := rapid.StringMatching(`[ -/:-@]{0,9}`) // not a part of the word
		for range rapid.IntRange(0, leakLayers).Draw(t, "layers") {
			text = spaces.Draw(t, "before") + text + spaces.Draw(t, "behind")
			switch rapid.IntRange(0, 6).Draw(t, "encoding") {
			case 0:
				text = b64(text)
			case 1:
				text = base64.RawURLEncoding.EncodeToString([]byte(text))
			case 2:
				text = every(rapid.IntRange(1, 90).Draw(t, "each"), rapid.SampledFrom([]string{"!", "-", "_", "+", "/", "=", " ", "\t"}).Draw(t, "foreign"), b64(text))
			case 3:
				text = hex.EncodeToString([]byte(text))
			case 4:
				text = escaped("%%%02x", text)
			case 5:
				text = b64(wide(text))
			}
		}
		if got := FindLeak(text); got != SecretLeak {
			t.Fatalf("got %d in %q, want a secret", got, text)
		}
		if masked := MaskSecrets(text); FindLeak(masked) == SecretLeak || len(masked) > len(text)+len("…") {
			t.Fatalf("%q is masked as %q", text, masked)
		}
	})
}

// TestFindLeakByChance looks for secrets in random tokens of others.
func TestFindLeakByChance(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	word := func(bytes int) string {
		b := make([]byte, bytes)
		_, _ = random.Read(b)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	for range 5_000 {
		text := "Bearer " + word(60) + "." + word(300) + "." + word(32)
		if got := FindLeak(text); got != NoLeak {
			t.Fatalf("got %d in %q, want none", got, text)
		}
	}
}

func TestMaskSecrets(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "",
		"/v1/people/7":                     "/v1/people/7",
		"/v1/" + leakSecret:                "/v1/csu_…",
		"/v1/" + leakSecret + "/x":         "/v1/csu_…/x",
		"/v1/CSU_" + leakSecret[4:] + "/x": "/v1/csu_…/x",
		"/v1/" + leakSecret[:30]:           "/v1/csu_…",
		"/v1/" + leakSecret[:20]:           "/v1/" + leakSecret[:20],
		"/v1/" + b64(leakSecret) + "/x":    "/v1/…",
		"/" + leakSecret + "/" + b64(leakID+":"+leakSecret): "/csu_…/…",
		"/v1/x" + leakSecret[:21] + "/" + leakSecret[21:]:   "/v1/xcsu_…",
		"/v1/" + leakSecret[4:] + "/x":                      "/v1/…",
		"/v1/" + every(10, "/", leakSecret):                 "…",
	} {
		if got := MaskSecrets(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestCheckForeign(t *testing.T) {
	for value, want := range map[string]string{
		"":                                    "",
		"Bearer eyJhbGciOiJub25lIn0.e30.x":    "",
		`Digest username="basic"`:             "",
		"Negotiate " + b64("\x60\x82\x01"):    "",
		basicOf("someone:password"):           "",
		basicOf("Älice: :x"):                  "",
		"bASIC " + b64(":"):                   "",
		"Basic":                               "RFC 7617",
		"Basic ":                              "RFC 7617",
		"Basic  " + b64("a:b"):                "RFC 7617",
		"Basic\t" + b64("a:b"):                "RFC 7617",
		"Basic, " + b64("a:b"):                "RFC 7617",
		`"Basic ` + b64("a:b") + `"`:          "RFC 7617",
		" Basic " + b64("a:b"):                "RFC 7617",
		"Basic" + b64("a:b"):                  "RFC 7617",
		"Basic Basic " + b64("a:b"):           "RFC 7617",
		basicOf("a:b") + ", Bearer x":         "RFC 7617",
		basicOf("a:b") + "=":                  "RFC 7617",
		basicOf("a:b\x00"):                    "RFC 7617",
		basicOf("a\r\n:b"):                    "RFC 7617",
		basicOf("ab"):                         "RFC 7617",
		"Basic " + every(2, "\n", b64("a:b")): "RFC 7617",
		"Basic YTpjZB==":                      "RFC 7617", // stray bits
		"Basic " + base64.URLEncoding.EncodeToString([]byte("a:??>")): "RFC 7617",
		basicOf("service_x:y"):                      "form of the id",
		basicOf("SERVICE_x:y"):                      "form of the id",
		basicOf(leakID + ":y"):                      "holds the id",
		"Bearer " + leakID + ":y":                   "holds the id",
		basicOf(leakLogin):                          "a token of",
		"Bearer " + leakSecret:                      "a token of",
		"Bearer " + strings.Repeat("A", maxForeign): "longer than",
	} {
		if got := CheckForeign(value); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%.100q: got %q, want %q", value, got, want)
		}
	}
}

func basicOf(userPass string) string { return "Basic " + b64(userPass) }

// BenchmarkFindLeak looks through texts as the request path, logs and the store have
// to look through, and through values that cost the most for a byte.
func BenchmarkFindLeak(b *testing.B) {
	random := make([]byte, 12<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(random)
	for name, text := range map[string]string{
		"short path":                 "/v1/people/7",
		"path":                       "/v1/people/0123456789abcdef/addresses/2026-11-21",
		"login":                      leakID,
		"JWT":                        "Bearer " + base64.RawURLEncoding.EncodeToString(random[:700]),
		"16 KiB of a ticket":         "Negotiate " + b64(string(random)),
		"16 KiB of base64 of base64": b64(b64(strings.Repeat("Hello, world! ", 658))),
		"16 KiB with escapes":        strings.Repeat("%2541", 16<<10/5),
		"16 KiB, refused":            strings.Repeat("V", 16<<10),
		"16 KiB of hex":              strings.Repeat("56", 8<<10),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				FindLeak(text)
			}
		})
	}
}
