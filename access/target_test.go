package access

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

// passes reports whether a decoded path passes without any option.
func passes(path string) bool {
	f := findings{raw: path}
	f.checkPath(path)
	return f.problem().OK()
}

// verdict spells the outcome of CheckMethod and CheckTarget as paths.tsv does.
func verdict(method, target string) string {
	p := CheckMethod(method)
	path := ""
	if p.OK() {
		path, p = CheckTarget(target)
	}
	if !p.OK() {
		return fmt.Sprint(p.Status)
	}
	return "match=" + path
}

func TestTargetCases(t *testing.T) {
	withMethod := regexp.MustCompile(`^([A-Z][A-Za-z-]*) ([^ ]*)$`)
	for _, row := range tsv(t, "paths.tsv") {
		method, target := "GET", row[0]
		if m := withMethod.FindStringSubmatch(row[0]); m != nil {
			method, target = m[1], m[2]
		}
		if got := verdict(method, target); got != row[1] {
			t.Errorf("%s %q: got %s, want %s (%s)", method, target, got, row[1], row[2])
		}
	}
}

// percent encodes every byte but "/", so that nothing is left to the encoder's taste.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if s[i] == '/' {
			b.WriteByte('/')
		} else {
			fmt.Fprintf(&b, "%%%02x", s[i])
		}
	}
	return b.String()
}

func TestTargetAccepted(t *testing.T) {
	for _, row := range []struct{ target, want string }{
		{"/", "/"},
		{"/?", "/"},
		{"/a/", "/a/"},
		{"/a??b", "/a"},
		{"/a?b=%zz&c=;d|{e}", "/a"},
		{"/a?//../%00", "/a"},
		{"/%2d%5F%7e", "/-_~"},
		{"/a%2Bb+c", "/a+b+c"},
		{"/a%22%3c%3E%5b%5d%5E%60%7c", "/a\"<>[]^`|"},
		{"/%7B%7B7*7%7D%7D", "/{{7*7}}"},
		{"/$%7Bjndi:x%7D", "/${jndi:x}"},
		{"/..a/.b/c..d/...e", "/..a/.b/c..d/...e"},
		{"/.%61", "/.a"},
		{"/*", "/*"},
		{"/@:80", "/@:80"},
		{"/a%20b%20%20c", "/a b  c"},
		{"/stra%C3%9fe", "/straße"},
		{"/%e6%97%a5%e6%9c%ac/%d0%b6/%ce%bb", "/日本/ж/λ"},
		{"/%f0%9f%98%80%ef%b8%8f", "/😀\ufe0f"},
		{"/" + percent("½™①Ａ"), "/½™①Ａ"},
		{"/" + strings.Repeat("a", 1<<16), "/" + strings.Repeat("a", 1<<16)},
		{strings.Repeat("/a", 1<<15), strings.Repeat("/a", 1<<15)},
		{strings.Repeat("/%61", 1<<14), strings.Repeat("/a", 1<<14)},
	} {
		if got := verdict("GET", row.target); got != "match="+row.want {
			t.Errorf("%.80q: got %.80s, want match=%.80s", row.target, got, row.want)
		}
	}
}

func TestTargetRefused(t *testing.T) {
	for _, target := range []string{
		"", "?", "?a", "#", "a", "*", "//", "///", "/a//", "/a//?b", "//a", "/%2f", "/%2F/", "\\", "/\\", "h:80", "http://h/", "file:///a",
		"/.", "/..", "/./", "/../", "/...", "/a/..", "/a./b", "/a../b", "/a/.?b", "/%2e", "/.%2E", "/a%2e", "/a%2e/b", "/x%20.", "/x.%20",
		"/%", "/%2", "/%g0", "/%0g", "/% 20", "/%+1", "/%-1", "/%0x41", "/%u0041", "/%%41", "/a%", "/a%4", "/%25", "/%2541",
		"/a;b", "/;", "/a;/..", "/a%3bb", "/a%3Fb", "/a%23", "/a%5C", "/a#", "/a\"", "/a<", "/a[", "/a{", "/a|", "/a^", "/a`",
		"/%20", "/a/%20", "/a%20/b", "/%20/a", "/a/%20b", "/a b", "/ ", " /",
		"/%00", "/a%0d%0ab", "/a%0A", "/%1f", "/%7F", "/\x00", "/\t", "/a\r\nHost: b", "/\x7f",
		"/%80", "/%ff", "/%c3", "/%c3%28", "/%a9%c3", "/é", "/\xc3\xa9", "/\xff", // raw 8-bit bytes, broken UTF-8
		"/%c0%80", "/%c0%ae", "/%c0%af", "/%c1%9c", "/%e0%80%af", "/%e0%81%9c", "/%f0%80%80%af", "/%f8%80%80%80%af", // overlong
		"/%ed%a0%80", "/%ed%b0%80", "/%ed%a0%bd%ed%b8%80", "/%f4%90%80%80", // surrogates, beyond U+10FFFF
		"/e%cc%81", "/" + percent("x\u0307\u0323"), "/" + percent("\u1100\u1161"), "/" + percent("=\u0338"), // not NFC
		"/a?b#c", "/a?#", "/a?b c", "/a?\t", "/a?\x00", "/a?\x7f", "/a?é", "/a?b\r\nX: y",
	} {
		if got := verdict("GET", target); got != "400" {
			t.Errorf("%q: got %s, want 400", target, got)
		}
	}
	for _, r := range []rune{
		0x80, 0x85, 0x9f, // C1 controls, NEL
		0xa0, 0x1680, 0x2000, 0x200a, 0x202f, 0x205f, 0x3000, 0x2028, 0x2029, // spaces and separators
		0xad, 0x061c, 0x180e, 0x200b, 0x200c, 0x200d, 0x200e, 0x202a, 0x202e, 0x2060, 0x2066, 0xfeff, 0xe0001, 0xe0041, // format, BOM, tags
		0xe000, 0xf8ff, 0xf0000, 0x10fffd, // private use
		0x0378, 0x0530, 0x2fe0, 0x10d40, 0xe0fff, 0xfdd0, 0xfffe, 0xffff, 0x1ffff, 0x10ffff, // unassigned, noncharacters
		0x017f, 0x212a, // ſ K: an ASCII letter in another case
		0xff0f, 0xff3c, 0xff0e, 0xff05, 0xff1b, 0xff1f, 0xff03, // ／ ＼ ． ％ ； ？ ＃
		0xfe52, 0xfe68, 0xfe6a, 0xfe54, 0xfe56, 0xfe5f, // ﹒ ﹨ ﹪ ﹔ ﹖ ﹟
		0x2024, 0x2025, 0x2026, 0xfe19, 0xfe30, 0x2488, 0x249b, 0x1f100, // dots: ․ ‥ … ⒈ 🄀
		0x2100, 0x2101, 0x2105, 0x2106, // ℀ ℁ ℅ ℆
		0x037e, 0x2047, 0x2048, 0x2049, 0xfe16, // ; ⁇ ⁈ ⁉ ︖
		0x2126, 0x212b, 0x0340, 0x0374, 0x1f71, 0x2329, 0xf900, 0xfb1d, 0x0958, // not NFC: a canonical double of another
	} {
		if got := verdict("GET", "/a"+percent(string(r))+"b"); got != "400" {
			t.Errorf("U+%04X: got %s, want 400", r, got)
		}
	}
}

// TestTargetRunes looks at every rune there is: what is accepted is visible and
// no common conversion makes a separator or an ASCII letter of it.
func TestTargetRunes(t *testing.T) {
	t.Parallel()
	conversions := []func(string) string{
		strings.ToLower, strings.ToUpper, strings.ToTitle, norm.NFC.String, norm.NFD.String, norm.NFKC.String, norm.NFKD.String,
	}
	accepted := 0
	for r := rune(0x80); r <= unicode.MaxRune; r++ {
		if !utf8.ValidRune(r) || !passes("/a"+string(r)+"b") {
			continue
		}
		accepted++
		if r == 'ı' || r == 'İ' { // a deny takes them for an "i"
			continue
		}
		if !unicode.IsPrint(r) {
			t.Errorf("U+%04X: accepted, but it is not visible", r)
		}
		for i, convert := range conversions {
			changed := convert(string(r))
			if strings.ContainsAny(changed, `/\.%;?#`) || i < 3 && changed[0] < 0x80 {
				t.Errorf("U+%04X: accepted, but conversion %d makes %q of it", r, i, changed)
			}
		}
	}
	if accepted < 100_000 {
		t.Errorf("got %d runes, want most of the assigned ones", accepted)
	}
}

// TestTargetDetail: the answer names the offence and the place, in visible ASCII.
func TestTargetDetail(t *testing.T) {
	for _, row := range []struct{ target, want string }{
		{"a", `must begin with "/"`},
		{"/a b", "0x20 at position 2"},
		{"/a?b#", "0x23 at position 4"},
		{"/a%2fb", "%2f at position 2"},
		{"/a%zz", "invalid percent-encoding at position 2"},
		{"/a//b", "empty segment at position 3"},
		{"/.a//b", "empty segment at position 4"},
		{"/a/../b", "the path has a dot segment at position 3"},
		{"/a/%20b", "begins or ends with a space"},
		{"/%ff", "not valid UTF-8"},
		{"/e%cc%81", "normalisation form C"},
		{"/a%e2%80%8bb", "U+200B at position 2"},
		{"/a%c5%bf", "U+017F at position 2, which equals an ASCII letter"},
		{"/a%ef%bc%8f", "U+FF0F at position 2, which some programs read as a separator"},
	} {
		_, p := CheckTarget(row.target)
		if !strings.Contains(p.Error(), row.want) {
			t.Errorf("%q: got %q, want %q in it", row.target, p.Detail, row.want)
		}
	}
}

// checkRelaxedPromises returns an error if a promise is broken for a target with some options: the path
// is the target, decoded once, and no reading has a dot segment; advice helps.
func checkRelaxedPromises(target string, allow Relax) error {
	path, p := allow.CheckTarget(target)
	if !p.OK() {
		if _, judged := Judge("GET", "a", target, allow); judged.Need&allow != 0 {
			return fmt.Errorf("%q: advice of %v, of which some are on", target, judged.Need.Lines())
		} else if _, again := (allow | judged.Need).CheckTarget(target); judged.Need != 0 && !again.OK() {
			return fmt.Errorf("%q: advice of %v does not help: %v", target, judged.Need.Lines(), again)
		}
		if path != "" || p.Status != 400 || strings.ContainsFunc(p.Detail, func(r rune) bool { return r < ' ' || r > '~' }) {
			return fmt.Errorf("%q: got path %q and %+v, want 400 with a printable detail", target, path, p)
		}
		return nil
	}
	raw, _, _ := strings.Cut(allow.Forwarded(target), "?")
	if u, err := url.PathUnescape(raw); err != nil || u != PlainPath(path) {
		return fmt.Errorf("%q: got %q, but %q is forwarded", target, path, raw)
	}
	// People send the text of a path again. "…" may be the mark of MaskSecrets.
	if again, p := allow.CheckTarget(PathText(path)); again != path && !strings.Contains(path, "…") {
		return fmt.Errorf("%q: the text %q of its path is %q, %v", target, PathText(path), again, p)
	}
	list, complete := readings(path)
	for _, reading := range list {
		for _, s := range strings.Split(PlainPath(reading), "/") {
			if s == "." || s == ".." || !complete {
				return fmt.Errorf("%q: the reading %q has a dot segment", target, reading)
			}
		}
	}
	return nil
}

// checkTargetPromises tells what is wrong with the answer to one target.
func checkTargetPromises(target string) error {
	path, p := CheckTarget(target)
	if !p.OK() {
		if path != "" || p.Status != 400 || strings.ContainsFunc(p.Detail, func(r rune) bool { return r < ' ' || r > '~' }) {
			return fmt.Errorf("%q: got path %q and %+v, want 400 with a printable detail", target, path, p)
		}
		return nil
	}
	raw, _, _ := strings.Cut(target, "?")
	if u, err := url.PathUnescape(raw); err != nil || u != path {
		return fmt.Errorf("%q: got %q, but it decodes to %q, %v", target, path, u, err)
	}
	if raw == path && PathText(path) != path {
		return fmt.Errorf("%q: its text is %q", target, PathText(path))
	}
	for _, escaped := range []string{PathText(path), percent(path), (&url.URL{Path: path}).EscapedPath()} {
		if again, p := CheckTarget(escaped); !p.OK() || again != path {
			return fmt.Errorf("%q is accepted as %q, but its escaped form %q is %q, %v", target, path, escaped, again, p.Detail)
		}
	}
	segments := strings.Split(path, "/")
	for i, s := range segments[1:] {
		if s == "." || s == ".." || s == "" && i < len(segments)-2 {
			return fmt.Errorf("%q: the accepted path %q has the segment %q", target, path, s)
		}
	}
	return nil
}

func TestTargetProperties(t *testing.T) {
	pieces := rapid.SampledFrom([]string{
		"/", "/", "/", ".", "..", "a", "A", "b7", "~", ";", "?", "#", " ", "%", "%2", "%2f", "%2F", "%5c", "%2e", "%2E", "%20", "%25", "%3b", "%3f",
		"%23", "%00", "%61", "%41", "%7b", "%c3%a9", "%C3%89", "%c3%9f", "%cc%81", "%e2%80%8b", "%ef%bc%8f", "%ef%bc%a1", "%c5%bf", "%c0%ae", "%ff",
		"*", "{x}", "\\", "é", "\x00", "'", "%e4%bd%a0", "%f0%9f%98%80",
	})
	rapid.Check(t, func(t *rapid.T) {
		target := "/" + strings.Join(rapid.SliceOfN(pieces, 0, 8).Draw(t, "pieces"), "")
		if err := checkTargetPromises(target); err != nil {
			t.Fatal(err)
		}
		if err := checkRelaxedPromises(target, Relax(rapid.Uint16().Draw(t, "options"))&everyOption); err != nil {
			t.Fatal(err)
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		if err := checkTargetPromises("/" + percent(rapid.String().Draw(t, "text"))); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPathText: the text of a path can be sent again, and keeps the marks of masked secrets.
func TestPathText(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/people/7;a=b:@!$&'()*+,~": "/v1/people/7;a=b:@!$&'()*+,~", "/queues/\x00/orders": "/queues/%2F/orders", "/a%2Fb": "/a%252Fb",
		"/C#?\\ é\xe9[|^]{}<>\"`": "/C%23%3F%5C%20%C3%A9%E9%5B%7C%5E%5D%7B%7D%3C%3E%22%60", "/wait…/csu_x…": "/wait%E2%80%A6/csu_x%E2%80%A6",
		"/v1/csu_…/x\x00csu_…y": "/v1/csu_…/x%2Fcsu_…y", "/v1/…": "/v1/…", "…": "…", "/…a": "/%E2%80%A6a",
	} {
		if got := PathText(path); got != want {
			t.Errorf("%q: got %s, want %s", path, got, want)
		}
	}
}

func FuzzTarget(f *testing.F) {
	for _, row := range tsv(f, "paths.tsv") {
		f.Add(row[0], uint16(0))
		f.Add(row[0], uint16(everyOption))
	}
	for _, list := range spellings {
		for _, target := range list {
			f.Add(target, uint16(everyOption))
		}
	}
	f.Fuzz(func(t *testing.T, target string, options uint16) {
		if err := checkTargetPromises(target); err != nil {
			t.Fatal(err)
		}
		if err := checkRelaxedPromises(target, Relax(options)&everyOption); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMethod(t *testing.T) {
	for method, want := range map[string]int{
		"GET": 0, "HEAD": 0, "POST": 0, "PUT": 0, "PATCH": 0, "DELETE": 0, "OPTIONS": 0,
		"PROPFIND": 0, "VERSION-CONTROL": 0, "M-SEARCH": 0, "A": 0, "A-": 0, "QUERY": 0, strings.Repeat("A", 32): 0,
		"CONNECT": 501, "TRACE": 405, "TRACK": 405, "PRI": 400,
		"": 400, "get": 400, "Get": 400, "GEt": 400, "connect": 400, "Trace": 400, "-GET": 400, "GET1": 400, "G_T": 400, "GET ": 400, " GET": 400,
		"GET\r\n": 400, "GÉT": 400, "GE\x00T": 400, "*": 400, "GET,POST": 400, strings.Repeat("A", 33): 400,
	} {
		if got := CheckMethod(method); got.Status != want {
			t.Errorf("%q: got %d (%s), want %d", method, got.Status, got.Detail, want)
		}
	}
}

func TestHost(t *testing.T) {
	label := strings.Repeat("a", 63)
	long := label + "." + label + "." + label + "." + label[:61] // 253 bytes
	for _, row := range []struct{ host, want string }{
		{"app.example", "app.example"},
		{"APP.Example", "app.example"},
		{"app.example.", "app.example"},
		{"app.example:8443", "app.example"},
		{"app.example.:8443", "app.example"},
		{"app.example:", "app.example"},
		{"app.example:0", "app.example"},
		{"app.example:65535", "app.example"},
		{"app.example:00080", "app.example"},
		{"localhost", "localhost"},
		{"my_service-1.ns", "my_service-1.ns"},
		{"_dmarc.app.example", "_dmarc.app.example"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"127.0.0.1", "127.0.0.1"},
		{"127.0.0.1:80", "127.0.0.1"},
		{"[::1]", "[::1]"},
		{"[::1]:8443", "[::1]"},
		{"[0:0:0:0:0:0:0:1]", "[::1]"},
		{"[2001:DB8::A]:443", "[2001:db8::a]"},
		{"[::ffff:192.0.2.1]", "[::ffff:192.0.2.1]"},
		{long, long},
		{long + ".:65535", long},

		// The rest is refused.
		{"", ""}, {".", ""}, {"..", ""}, {":80", ""}, {".app.example", ""}, {"app..example", ""}, {"app.example..", ""},
		{"app.example:65536", ""}, {"app.example:99999", ""}, {"app.example:000080", ""}, {"app.example:-1", ""}, {"app.example:+80", ""},
		{"app.example:80:80", ""}, {"app.example:80a", ""}, {"app.example: 80", ""}, {"app.example:http", ""},
		{"a,b", ""}, {"a, b", ""}, {"app.example ", ""}, {" app.example", ""}, {"app.example\t", ""}, {"a\x00b", ""}, {"a\r\nb", ""},
		{"user@app.example", ""}, {"user:pass@app.example", ""}, {"app.example/", ""}, {"app.example?x", ""}, {"app.example#x", ""}, {`app\example`, ""},
		{"%61pp.example", ""}, {"app%2eexample", ""}, {"*", ""}, {"*.example", ""}, {"a*.example", ""}, {"app;example", ""}, {"{host}", ""},
		{"bücher.example", ""}, {"app。example", ""}, {"\u212aelvin.example", ""}, {"http://app.example", ""},
		{"::1", ""}, {"[::1", ""}, {"::1]", ""}, {"[]", ""}, {"[::1]x", ""}, {"[::1].", ""}, {"[::1]:x", ""}, {"[::1]:65536", ""}, {"[::1%25eth0]", ""},
		{"[fe80::1%eth0]", ""}, {"[127.0.0.1]", ""}, {"[app.example]", ""}, {"[v1.x]", ""}, {"[[::1]]", ""}, {"[::1][::1]", ""},
		{"a" + long, ""},
	} {
		got, p := CheckHost(row.host)
		if got != row.want || p.OK() != (row.want != "") || !p.OK() && p.Status != 400 {
			t.Errorf("%q: got %q, %d, want %q", row.host, got, p.Status, row.want)
		}
		if p.OK() {
			if again, p := CheckHost(got); !p.OK() || again != got {
				t.Errorf("%q is accepted as %q, which again is %q, %v", row.host, got, again, p.Detail)
			}
		}
	}
}
