package caddymodule

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
)

// FuzzRequest reads arbitrary bytes as net/http would and checks what is
// promised of a request that is not refused: what would be forwarded is the
// target as it was received, and decodes once to exactly the path that was
// judged, which has no way up in it.
func FuzzRequest(f *testing.F) {
	for _, row := range caseRows(f, "paths.tsv") {
		f.Add("GET "+row.value+" HTTP/1.1\r\nHost: app.example\r\n\r\n", uint16(0))
		f.Add(row.value+" HTTP/1.1\r\nHost: app.example:8080\r\nUpgrade: h2c\r\n\r\n", uint16(0xffff))
	}
	f.Fuzz(func(t *testing.T, raw string, relax uint16) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		received := r.RequestURI
		h := &Handler{relax: access.Relax(relax)}
		r = prepared(r)
		rq := request{r: r, vars: varsOf(r)}
		problem := h.judge(&rq)
		action, further := rq.action, rq.further
		if !problem.OK() {
			switch problem.Status {
			case 400, 405, 425, 501:
				return
			}
			t.Fatalf("%q: refused with %d", received, problem.Status)
		}
		forwarded := r.URL.RequestURI()
		if want := h.relax.Forwarded(received); forwarded != want {
			t.Errorf("%q: %q would be forwarded, want %q", received, forwarded, want)
		}
		rawPath, _, _ := strings.Cut(forwarded, "?")
		decoded, err := url.PathUnescape(rawPath)
		if err != nil || decoded != access.PlainPath(action.Path) {
			t.Errorf("%q: forwarded %q decodes to %q (%v), judged %q", received, rawPath, decoded, err, action.Path)
		}
		for _, f := range append(further, target{r.Method, decoded}) { // of unknown surroundings
			for _, segment := range strings.Split(access.PlainPath(f.path), "/") {
				name, _, _ := strings.Cut(segment, ";")
				if name == "." || name == ".." || f.path[0] != '/' {
					t.Errorf("%q: %q has a dot segment", received, f.path)
				}
			}
		}
		if !strings.HasPrefix(decoded, "/") || strings.ContainsAny(decoded, "\x00\r\n\x7f") || action.Host == "" {
			t.Errorf("%q: judged %q at %q", received, action.Path, action.Host)
		}
		if relax == 0 && strings.ContainsAny(decoded, ";%#?\\") {
			t.Errorf("%q: judged %q", received, action.Path)
		}
	})
}

// The login that FuzzKeptAuthorization hides, and the longest value in which it does, in bytes.
const (
	keptID     = "service_37gS6Q5p7tskU13NG9SO5lXlYTc"
	keptSecret = "csu_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp12TtPM6"
	maxSpelt   = 2 << 10
)

// spell writes a login as a recipe says, a letter for each step. A text that becomes too long, or that looks
// like random bytes before it is encoded, is "".
func spell(recipe, foreign string) string {
	text := keptID + ":" + keptSecret
	split := func(text string, n int) string {
		var b strings.Builder
		for i := range len(text) {
			if i > 0 && i%n == 0 {
				b.WriteString(foreign)
			}
			b.WriteByte(text[i])
		}
		return b.String()
	}
	format := func(format string) string {
		var b strings.Builder
		for i := range len(text) {
			fmt.Fprintf(&b, format, text[i])
		}
		return b.String()
	}
	steps := recipe[:min(len(recipe), 8)]
	for i := range len(steps) {
		if len(text) > maxSpelt || strings.IndexByte("buh", steps[i]) >= 0 && isSparse(text) {
			return ""
		}
		switch steps[i] {
		case 's':
			text = keptSecret
		case 'b':
			text = base64.StdEncoding.EncodeToString([]byte(text))
		case 'u':
			text = base64.RawURLEncoding.EncodeToString([]byte(text))
		case 'h':
			text = hex.EncodeToString([]byte(text))
		case 'p':
			text = format("%%%02x")
		case 'P':
			text = url.QueryEscape(text)
		case 'j':
			text = format(`\u%04x`)
		case 'w':
			text = strings.ReplaceAll(format("%c\x00"), "\u0000", "\x00")
		case 'q':
			text = `"` + text + `"`
		case 'f':
			text = split(text, 7)
		case 'F':
			text = split(text, 40)
		case 'c':
			text = text[:len(text)*3/4]
		case 'C':
			text = text[len(text)/8:]
		case 'B':
			text = "Basic " + text
		case 'T':
			text = "bAsIc\t" + text
		case 'R':
			text = "Bearer " + text
		}
	}
	return text
}

// isSparse reports whether a text, inside of an encoding, looks like random bytes to access.FindLeak.
func isSparse(text string) bool {
	text = strings.ReplaceAll(text, "\x00", "")
	other := func(c byte) int {
		if c >= ' ' && c < 0x7f || c == '\t' || c == '\r' || c == '\n' {
			return 0
		}
		return 1
	}
	sum := 0
	for i := range len(text) {
		sum += other(text[i])
		if i >= 12 {
			sum -= other(text[i-12])
		}
		if sum > 4 {
			return true
		}
	}
	return false
}

// readings are the texts that lenient programs make of a text, up to two layers deep:
// decoders of PHP, Python, Node and the shell, each told again in its own way.
func readings(text string, layers int) []string {
	all := []string{text, strings.ReplaceAll(text, "\x00", "")}
	for range 3 {
		text = lenientPercent.ReplaceAllStringFunc(text, func(escape string) string {
			b, _ := hex.DecodeString(escape[len(escape)-2:])
			return string(b)
		})
		all = append(all, text, strings.ReplaceAll(text, "\x00", ""))
	}
	if layers == 0 {
		return all
	}
	seen := make(map[string]bool)
	for _, field := range append(strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t,;=\"'", r) }), text, afterFirst(text, " "), afterFirst(text, "\t"), afterFirst(text, ":")) {
		if len(field) < 28 || seen[field] { // too short for what must not be shown
			continue
		}
		seen[field] = true
		for _, alphabet := range []string{lenientLetters + "+/", lenientLetters + "-_", lenientLetters} { // without either: both are skipped
			var digits []byte
			for _, c := range []byte(field) {
				if strings.IndexByte(alphabet, c) >= 0 {
					digits = append(digits, c)
				}
			}
			encoding := base64.RawStdEncoding
			if strings.HasSuffix(alphabet, "_") {
				encoding = base64.RawURLEncoding
			}
			if len(digits)%4 == 1 { // one digit too many
				digits = digits[:len(digits)-1]
			}
			if decoded, err := encoding.DecodeString(string(digits)); err == nil && !seen[string(decoded)] {
				seen[string(decoded)] = true
				all = append(all, readings(string(decoded), layers-1)...)
			}
		}
		digits := lenientNotHex.ReplaceAllString(field, "")
		if decoded, err := hex.DecodeString(digits[:len(digits)&^1]); err == nil {
			all = append(all, readings(string(decoded), layers-1)...)
		}
	}
	return all
}

const lenientLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

var (
	lenientPercent = regexp.MustCompile(`%[0-9A-Fa-f]{2}|\\u00[0-9A-Fa-f]{2}`)
	lenientNotHex  = regexp.MustCompile(`[^0-9A-Fa-f]`)
	// So much of the secret, at the beginning of a word, is more than may be shown.
	lenientCut = regexp.MustCompile(`(^|[^0-9A-Za-z_-])` + keptSecret[:21])
)

func afterFirst(text, sep string) string { _, after, _ := strings.Cut(text, sep); return after }

// FuzzKeptAuthorization hides a login in a value of Authorization that is left to
// others. Whatever is kept, no lenient reader finds the login or the secret in it, and
// Basic decodes strictly.
func FuzzKeptAuthorization(f *testing.F) {
	for _, recipe := range []string{
		"", "R", "sR", "q", "sqR", "bB", "bT", "uB", "bqB", "bBB", "bRB", "bfB", "bFB", "bcB", "bCB", "scR", "hB", "shR", "pB", "bpB", "pbB", "PbB", "jB", "wbB", "wpR", "bbB",
		"bfbB", "hbB", "bhR", "bB" + "b", "fR", "sfR", "sFR", "cbB", "scbR", "bBbB", "jbR", "phB", "wubR",
	} {
		for _, foreign := range []string{"!", "\t", "%", "\xff", "\xff\xfe", "-", `"`} {
			f.Add("", recipe, foreign, "")
		}
		f.Add("Digest username=\"", recipe, " ", "\", realm=\"x\"")
	}
	for _, value := range []string{"Bearer eyJhbGciOiJub25lIn0.e30.", basic("someone", "password"), "Negotiate YIIB", "Basic Og==", "Basic", "basic  Og==", "Basic\tOg==", "\"Basic Og==\""} {
		f.Add(value, "ccccccccc", "", "")
	}
	h := new(Handler)
	if err := h.prepare(); err != nil {
		f.Fatal(err)
	}
	h.log = zap.NewNop()
	f.Fuzz(func(t *testing.T, before, recipe, foreign, behind string) {
		value := before + spell(recipe, foreign) + behind
		if len(value) > maxSpelt {
			return
		}
		r := &http.Request{Header: make(http.Header)}
		h.keepForeign(&request{r: r, authorization: []string{value}})
		if r.Header["Authorization"] == nil {
			return
		}
		if access.HasScheme(value, "basic") {
			if login, ok := access.BasicLogin(value); !ok || strings.HasPrefix(login, "service_") {
				t.Errorf("%q is kept", value)
			}
		}
		for _, reading := range readings(value, 2) {
			if strings.Contains(reading, keptSecret) || strings.Contains(reading, keptID+":") || lenientCut.MatchString(reading) {
				t.Fatalf("%q is kept, and reads as %q", value, reading)
			}
		}
	})
}

// TestKeepForeignLogsOnce: one line for each handler says why something was dropped.
func TestKeepForeignLogsOnce(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	h := new(Handler)
	if err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	h.log = zap.New(core)
	for _, values := range [][]string{nil, {"Bearer ey.foreign"}, {basic("a", "b")}} {
		r := &http.Request{Header: make(http.Header)}
		if h.keepForeign(&request{r: r, authorization: values}); !slices.Equal(r.Header["Authorization"], values) || logs.Len() != 0 {
			t.Errorf("%q: got %q kept and %d lines, want all and none", values, r.Header["Authorization"], logs.Len())
		}
	}
	for _, values := range [][]string{{"Basic\t" + basic(keptID, keptSecret)[6:]}, {"Basic x"}, {"Bearer a", "Bearer b"}, {"Bearer " + keptSecret}} {
		r := &http.Request{Header: make(http.Header)}
		if h.keepForeign(&request{r: r, authorization: values}); len(r.Header) != 0 {
			t.Errorf("%q: got %q kept", values, r.Header)
		}
	}
	lines := logs.TakeAll()
	if len(lines) != 1 || lines[0].ContextMap()["why"] != "it holds a token of a service user, or a part of one" || access.FindLeak(fmt.Sprint(lines)) != access.NoLeak {
		t.Errorf("got %v, want one line with the reason", lines)
	}
}
