package access

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

// everyOption are all options at once.
const everyOption = TrailingDot<<1 - 1

// spellings are targets that an option lets pass, and that some program reads as a
// path of "/admin/é x".
var spellings = map[Relax][]string{
	EncodedHash: {
		"/admin%23", "/admin%23x", "/admin%23/x", "/admin%23/../x", "/ADMIN%23x", "/%61dmin%23", "/admin/%23", "/admin/%C3%A9%20x%23", "/admin/%C3%89%20X%23y", "/admin%23%23", "/admin%23a/b",
	},
	EncodedQuestionMark: {
		"/admin%3F", "/admin%3fx", "/admin%3Fx=y/z", "/ADMIN%3Fx", "/%61dmin%3F", "/admin/%3F", "/admin/%C3%A9%20x%3F", "/admin/%C3%89%20X%3Fy", "/admin%3F%3F", "/admin%3Fa/b", "/admin%3F?x",
	},
	EncodedBackslash: {
		"/admin%5C", "/admin%5Cx", "/admin%5cx", "/ADMIN%5Cx", "/%61dmin%5Cx", "/admin/%5C", "/admin%5C%5Cx", "/admin%5C%C3%A9%20x", "/admin%5C%C3%89%20X", "/admin%5Ca/b",
	},
	EncodedSlash: {
		"/admin%2F", "/admin%2Fx", "/admin%2fx", "/ADMIN%2Fx", "/%61dmin%2Fx", "/admin/%2F", "/admin%2F%2Fx", "/admin/%2F/x", "/admin%2F%C3%A9%20x", "/admin%2F%C3%89%20X", "/admin%2Fa/b",
	},
	EncodedPercent: {
		"/%2561dmin", "/%2561dmin/x", "/%252561dmin", "/%25%36%31dmin", "/%2541dmin", "/adm%2569n/x", "/admin%252Fx", "/admin%253Bx", "/admin%2523x", "/admin%253Fx", "/admin%255Cx", "/admin%25252Fx", "/%25u0061dmin",
		"/admin/%25C3%25A9%20x", "/admin/%25E9%20x", "/admin/e%25CC%2581%20x", "/admin%2520", "/admin%252E", "/%25EF%25BD%2581dmin", "/admin%25EF%25BC%258Fx", "/a%25E2%2580%258Bdmin",
	},
	Semicolon: {
		"/admin;", "/admin;x", "/admin%3Bx", "/admin%3b", "/admin;x/y", "/ADMIN;x", "/%61dmin;x=y", "/admin;;x", "/admin/%C3%A9%20x;y", "/admin;a/%C3%A9%20x;b", "/admin;a=1;b=2/x",
	},
	EdgeSpace: {
		"/%20admin", "/admin%20", "/%20admin%20", "/%20%20admin", "/admin/%20x", "/%20ADMIN/x", "/%20%61dmin", "/admin%20/x", "/%20admin/", "/admin/%20%C3%A9%20x", "/admin/%C3%A9%20x%20",
	},
	Latin1: {
		"/admin/%E9%20x", "/admin/%e9%20x", "/ADMIN/%E9%20X", "/admin/%C9%20x", "/adm%E9in", "/admin%E9", "/%E9admin", "/admin%A0", "/%A0admin", "/ad%ADmin", "/admin/%A0%E9%20x", "/%61dmin%AD",
	},
	Lookalikes: {
		"/" + percent("admin／x"), "/" + percent("admin？x"), "/" + percent("admin＃"), "/" + percent("admin；x"), "/" + percent("admin＼x"), "/" + percent("admin．"), "/" + percent("admin…"), "/" + percent("％61dmin"),
		"/" + percent("ADMIN／x"), "/" + percent("ａｄｍｉｎ／x"), "/" + percent("admin﹨x"), "/" + percent("admin﹖"), "/" + percent("admin⁇"), "/" + percent("admin/é x？"),
	},
	UnicodeSpaces: {
		"/" + percent("admin\u00a0"), "/" + percent("\u00a0admin"), "/" + percent("\u3000admin"), "/" + percent("admin\u202f"), "/" + percent("ADMIN\u2003"), "/" + percent("admin/é\u00a0x"), "/" + percent("admin/é\u202fx"),
		"/" + percent("admin/é\u3000x"), "/" + percent("admin/é\u1680x"), "/" + percent("\u205fadmin/x"), "/" + percent("admin\u2009/x"),
	},
	FormatCharacters: {
		"/" + percent("ad\u200cmin"), "/" + percent("\u200badmin"), "/" + percent("admin\u200d"), "/" + percent("ad\u00admin/x"), "/" + percent("\ufeffadmin"), "/" + percent("ADM\u2060IN"), "/" + percent("ad\u202emin"), "/" + percent("admin/é\u200c x"),
		"/" + percent("a\u200cd\u200dm\u200bin"), "/" + percent("admin\U000e0041"), "/" + percent("ad\u200c\ufe0fmin"), "/" + percent("a\u061cdmin"),
	},
	NonNFC: {
		"/admin/e%CC%81%20x", "/ADMIN/E%CC%81%20X", "/admin/E%CC%81%20x", "/admin/e%cc%81%20x", "/%61dmin/e%CC%81%20x", "/admin/e%CC%81%20x/", "/admin/%65%CC%81%20x", "/Admin/E%CC%81%20x", "/admin/e%CD%81%20x", "/admin/E%CD%81%20X", "/%EF%BC%A1dmin/e%CC%81%20x",
	},
	RawBrackets: {
		"/[admin]", "/[ADMIN]", "/%5Badmin%5D", "/[%61dmin]", "/[admin%5D", "/%5badmin]", "/[admin]/", "/[Admin]", "/%5BADMIN]", "/[admi%6e]", "/[aDmIn]/",
	},
	MergedSlashes: {
		"//admin", "/admin//x", "///admin", "//ADMIN", "//%61dmin", "/admin//", "//admin//x", "/admin///x", "/admin//%C3%A9%20x", "//admin/?x", "//Admin//x",
	},
	TrailingDot: {
		"/admin.", "/admin..", "/ADMIN.", "/admin./x", "/admin/x.", "/%61dmin.", "/admin%2E", "/admin/%C3%A9%20x.", "/admin/.x./", "/admin.../", "/admin%2e/x",
	},
}

// TestDenyOfSpellings: a deny covers each spelling that an option lets pass, whichever way an upstream
// reads it, for that option and for all of them. Without the option the target is refused.
func TestDenyOfSpellings(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Revision: 1, Users: []User{user(1, "g")},
		Groups: []Group{group(t, "g", "allow * /{rest...}", "deny * /admin/{rest...}", "deny * /[admin]", "deny * /x/{rest...}")},
	})
	p, _ := d.Authenticate(login(1), here, 1)
	for _, o := range Options() {
		list := spellings[o.Relax]
		if len(list) < 10 {
			t.Errorf("%s %s: got %d spellings, want ten", o.Family, o.Word, len(list))
		}
		for _, target := range list {
			if _, p := CheckTarget(target); p.OK() && !strings.HasPrefix(target, "/%5Badmin%5D") {
				t.Errorf("%s: passes without %s", target, o.Word)
			}
			for _, allow := range []Relax{o.Relax, everyOption} {
				path, problem := allow.CheckTarget(target)
				if !problem.OK() {
					if allow == o.Relax && !strings.Contains(target, "/../") {
						t.Errorf("%s with %s: %v", target, o.Word, problem)
					}
					continue
				}
				if got := d.Authorize(p, Action{Method: "GET", Path: path}).Reason; got != DeniedByRule {
					t.Errorf("%s with %v: got %s, want a deny", target, allow.Lines(), got)
				}
			}
		}
	}
}

// TestDenyOfInvisibleCharacters: a deny covers a path with characters that a program may ignore, such as a
// Linux directory that ignores case (NFKC_Casefold), also those that need no option.
func TestDenyOfInvisibleCharacters(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Revision: 1, Users: []User{user(1, "g")},
		Groups: []Group{group(t, "g", "allow * /{rest...}", "deny * /admin/{rest...}", "deny * /my files/{rest...}")},
	})
	p, _ := d.Authenticate(login(1), here, 1)
	for _, target := range []string{
		"/" + percent("ad\u034fmin"), "/" + percent("ad\ufe0fmin"), "/" + percent("ADM\ufe0eIN/x"), "/" + percent("ad\u115fmin"), "/" + percent("\u17b4admin"), "/" + percent("admin\u180b/x"), "/" + percent("ad\U000e0100min"),
		"/" + percent("ａd\ufe0fmin"), "/ad%25C2%2580min", "/ad%25C2%259Fmin/x", "/ad%25EF%25B8%258Fmin", "/" + percent("my\ufefffiles/x"),
	} {
		path, problem := everyOption.CheckTarget(target)
		if got := d.Authorize(p, Action{Method: "GET", Path: path}).Reason; !problem.OK() || got != DeniedByRule {
			t.Errorf("%s: got %s, %v, want a deny", target, got, problem)
		}
	}
	for _, target := range []string{"/a/" + percent("..\u034f/admin"), "/a/" + percent(".\ufe0f./x"), "/a/" + percent("\u115f..")} {
		if _, problem := CheckTarget(target); problem.OK() {
			t.Errorf("%s passes", target)
		}
		if _, problem := everyOption.CheckTarget(target); !strings.Contains(problem.Detail, "some programs read a dot segment") {
			t.Errorf("%s: got %q, want a dot segment", target, problem.Detail)
		}
	}
	if _, problem := CheckTarget("/" + percent("☕\ufe0f/x")); !problem.OK() {
		t.Errorf("an emoji: %v", problem)
	}
}

// TestTurkishLetters: they pass, a deny takes them for an "i", and an allow is exact.
func TestTurkishLetters(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Revision: 1, Users: []User{user(1, "g")},
		Groups: []Group{group(t, "g", "allow * /ılıca", "allow * /İzmir", "allow * /{a}/{b}", "deny * /admin/{rest...}", "deny * /dış/{rest...}")},
	})
	p, _ := d.Authenticate(login(1), here, 1)
	for path, want := range map[string]Reason{
		"/ılıca": Granted, "/ilica": NoRule, "/Ilıca": NoRule, "/İzmir": Granted, "/izmir": NoRule, "/i\u0307zmir": NoRule, "/Izmir": NoRule,
		"/admın/x": DeniedByRule, "/admİn/x": DeniedByRule, "/ADMIN/x": DeniedByRule, "/admi\u0307n/x": DeniedByRule, "/ADMİN": DeniedByRule, "/ADMıN": DeniedByRule,
		"/dış/x": DeniedByRule, "/DIŞ/x": DeniedByRule, "/diş/x": DeniedByRule, "/dİş/x": DeniedByRule,
	} {
		matched, problem := CheckTarget(percent(path))
		if !problem.OK() || matched != path {
			t.Errorf("%s: got %q, %v", path, matched, problem)
		}
		if got := d.Authorize(p, Action{Method: "GET", Path: path}).Reason; got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

// TestPublicReadings: a public rule covers a request only if it covers every reading, since no deny
// applies to it.
func TestPublicReadings(t *testing.T) {
	s, err := NewRuleset(group(t, "", "allow GET /files/{name}", "allow GET /open/{rest...}").Rules)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]bool{
		"/files/a": true, "/files/C%23": true, "/files/who%3F": true, "/files/100%25": true, "/files/%20a": true, "/files/caf%E9": true, "/files/e%CC%81": true,
		"/files/a%2Fb": false, "/files/a%5Cb": false, "/files/%23": false, "/files/a%252Fb": false, "/files%23/x": false, "/files%2Fa": false,
		"/open/a%2Fb": true, "/open/a%23%5C": true, "/open%2Fa": false, "/open%23/a": false, "/open%3F/a": false,
	} {
		path, problem := everyOption.CheckTarget(target)
		if got := s.Covers(Action{Method: "GET", Path: path}); !problem.OK() || got != want {
			t.Errorf("%s: got %v, %v, want %v", target, got, problem, want)
		}
	}
}

// TestReadingsAreBounded: a path with too many readings is refused, and quickly.
func TestReadingsAreBounded(t *testing.T) {
	for _, target := range []string{
		"/" + strings.Repeat("%25", 1) + strings.Repeat("25", 100), "/" + strings.Repeat("a%2523b%253F;%255C%2F", 200),
		"/" + strings.Repeat("a%23%3F%5C%2F%2520;e%CC%81%E9", 3), "/" + strings.Repeat("%25", 8000), "/" + strings.Repeat("%2f%5c%20a.", 1400),
	} {
		path, p := everyOption.CheckTarget(target)
		if p.OK() {
			if _, complete := readings(path); !complete {
				t.Errorf("%.60s: passes with more readings than are compared", target)
			}
		} else if p.Need != 0 {
			t.Errorf("%.60s: got advice of %v, want none", target, p.Need.Lines())
		}
	}
	// The bytes that normalisation reads are few: a stranger decides about them.
	for _, target := range []string{
		"/" + percent(strings.Repeat("e\u0301\u00a0", 100)) + "%23;%5C%2F", "/" + strings.Repeat("a"+strings.Repeat("%CC%81", 29), 8) + percent("\u3000") + "%23;%5C%2F",
		"/" + strings.Repeat("%E9", 200) + "%23;%5C%2F", "/%" + strings.Repeat("25", 58) + percent(strings.Repeat("\ufdfa", 10)), "/" + percent(strings.Repeat("\ufdfa", 100)) + "%23",
	} {
		f := findings{raw: target, allow: everyOption}
		path := f.decodePath(0)
		list, _ := readings(path)
		size := 0
		for _, reading := range list {
			if strings.ContainsFunc(reading, func(r rune) bool { return r >= utf8.RuneSelf }) {
				size += len(reading)
			}
		}
		if size > 12<<10 {
			t.Errorf("%.60s: got %d readings of %d bytes", target, len(list), size)
		}
	}
	// The walk itself fails closed.
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Revision: 1, Users: []User{user(1, "g")}, Groups: []Group{group(t, "g", "allow * /{rest...}")},
	})
	p, _ := d.Authenticate(login(1), here, 1)
	if got := d.Authorize(p, Action{Method: "GET", Path: "/%" + strings.Repeat("25", 100)}); got.Allowed() {
		t.Error("a path with too many readings: got allowed")
	}
	if list, complete := readings("/%" + strings.Repeat("25", 100)); complete || len(list) > maxReadings {
		t.Errorf("got %d readings, complete %t", len(list), complete)
	}
}

// upstreams are conversions of a path as programs make them, written without regard to readers.
var upstreams = []func(string) string{
	func(p string) string { // decodes once more, strictly
		if u, err := url.PathUnescape(p); err == nil {
			return u
		}
		return p
	},
	func(p string) string { return strings.Split(p, "#")[0] },
	func(p string) string { return strings.Split(p, "?")[0] },
	func(p string) string { return strings.Split(p, ";")[0] },
	func(p string) string { // Tomcat
		for {
			i := strings.Index(p, ";")
			if i < 0 {
				return p
			}
			j := strings.Index(p[i:], "/")
			if j < 0 {
				return p[:i]
			}
			p = p[:i] + p[i+j:]
		}
	},
	func(p string) string {
		return strings.Map(func(r rune) rune { return map[bool]rune{true: '/', false: r}[r == '\\'] }, p)
	},
	func(p string) string {
		return strings.Join(strings.FieldsFunc(p, func(r rune) bool { return r == '/' }), "/")
	},
	strings.ToLower,
	norm.NFC.String, norm.NFD.String, norm.NFKC.String,
	strings.TrimSpace,
	func(p string) string { // each segment
		parts := strings.Split(p, "/")
		for i := range parts {
			parts[i] = strings.TrimSpace(parts[i])
		}
		return strings.Join(parts, "/")
	},
	func(p string) string { // Windows
		parts := strings.Split(p, "/")
		for i := range parts {
			parts[i] = strings.TrimRight(parts[i], ". ")
		}
		return strings.Join(parts, "/")
	},
	func(p string) string {
		return strings.Map(func(r rune) rune {
			if unicode.Is(unicode.Cf, r) {
				return -1
			}
			return r
		}, p)
	},
	func(p string) string {
		return strings.Map(func(r rune) rune {
			if unicode.IsSpace(r) {
				return ' '
			}
			return r
		}, p)
	},
	func(p string) string { // NFKC_Casefold, nearly
		return norm.NFKC.String(strings.Map(func(r rune) rune {
			if unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
				return -1
			}
			return r
		}, norm.NFD.String(strings.ToLower(p))))
	},
	func(p string) string { // removes control characters
		return strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return -1
			}
			return r
		}, p)
	},
	func(p string) string { return strings.ToValidUTF8(p, "") },
	func(p string) string { // Python's fallback
		if utf8.ValidString(p) {
			return p
		}
		p, _ = charmap.ISO8859_1.NewDecoder().String(p)
		return p
	},
	func(p string) string { // the fallback for cp1252
		if utf8.ValidString(p) {
			return p
		}
		p, _ = charmap.Windows1252.NewDecoder().String(p)
		return p
	},
}

// reaches reports whether a path, as an upstream has converted it, is one of "/admin/{rest...}" or has a
// dot segment.
func reaches(path string) bool {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	return strings.EqualFold(parts[0], "admin") || slices.Contains(parts, "..")
}

// TestDenyOfAnyReading: whatever some upstreams make of a target, one after the other, a deny of the
// result refuses the request.
func TestDenyOfAnyReading(t *testing.T) {
	d := with(t, NewDirectory(Peppers{}, ""), Changes{
		Revision: 1, Users: []User{user(1, "g")}, Groups: []Group{group(t, "g", "allow * /{rest...}", "deny * /admin/{rest...}")},
	})
	p, _ := d.Authenticate(login(1), here, 1)
	pieces := []string{
		"/", "/", "a", "admin", "admin", "dmin", "ADMIN", "ad", "min", ".", "..", "%2F", "%2f", "%5C", "%23", "%3F", ";", "%3B", "%20", "%2520", "%252F", "%2561", "%61", "%252e", "%2E", "%255C", "%253B", "%2523", "%25", "%252525",
		"%E9", "%A0", "%AD", "%C3%A9", "e%CC%81", "%EF%BC%8F", "%EF%BC%8E", "%EF%BC%9F", "%EF%BC%85", "%E2%80%A6", "%E2%80%8C", "%C2%A0", "%E3%80%80", "%EF%BC%A1", "%ef%bd%84min", "%C4%B1", "|", "[", "x", "%25C2%25A0", "%25E2%2580%258C", "61dmin",
		"%EF%B8%8F", "%CD%8F", "%25C2%2580", "%EF%BB%BF", "%AA", "%BA",
	}
	passed, denied := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for range 200 { // many in one run of rapid, which is slow itself
			target := "/"
			for range 1 + random.IntN(6) {
				target += pieces[random.IntN(len(pieces))]
			}
			allow := Relax(random.Uint32()) & everyOption
			if random.IntN(2) == 0 {
				allow = everyOption
			}
			path, problem := allow.CheckTarget(target)
			if !problem.OK() {
				continue
			}
			passed++
			allowed := d.Authorize(p, Action{Method: "GET", Path: path}).Allowed()
			for range 20 {
				read := PlainPath(path)
				var steps []int
				for range random.IntN(6) {
					step := random.IntN(len(upstreams))
					steps = append(steps, step)
					read = upstreams[step](read)
				}
				if !reaches(read) {
					continue
				}
				if allowed {
					t.Fatalf("%s is allowed with %v, but the upstreams %v read %q", target, allow.Lines(), steps, read)
				}
				denied++
			}
		}
	})
	if passed < 500 || denied < 500 {
		t.Errorf("got %d targets and %d denied readings; the test shows little", passed, denied)
	}
}

// TestPositions: the position in a detail counts the raw path, as the client wrote it.
func TestPositions(t *testing.T) {
	for _, row := range []struct {
		target string
		allow  Relax
		want   string
	}{
		{"/%61/%2e%2e/b", 0, "a dot segment at position 5"},
		{"/%C3%A9/e%CC%81", 0, "not in Unicode normalisation form C at position 9"},
		{"/%61%20/b", 0, "the path segment at position 1 begins or ends with a space"},
		{"/%61%61%E2%80%8B", 0, "U+200B at position 7, a format character"},
		{"/%61%61%E2%80%AE", NonNFC, "U+202E at position 7"},
		{"/%61/b./c", 0, "the path segment at position 5 ends in a dot"},
		{"/%61%2Fb", 0, "%2F at position 4"},
		{"/%61%2Fb%23", EncodedSlash, "%23 at position 8"},
		{"//a//%2561", MergedSlashes, "%25 at position 5"},
		{"///%61//./b", MergedSlashes, "a dot segment at position 8"},
		{"//a//b", 0, "an empty segment at position 1"},
		{"/%61//b", 0, "an empty segment at position 5"},
		{"/%61/%E9/%80", Latin1, "not valid UTF-8 at position 9"},
		{"/%61/%E9", 0, "not valid UTF-8 at position 5"},
		{"/%C3%A9|", 0, "the byte 0x7c at position 7"},
		{"/%C3%A9;", 0, "the byte 0x3b at position 7"},
		{"/%C3%A9\"", 0, "the byte 0x22 at position 7"},
		{"/%C3%A9%0a", 0, "a control character at position 7"},
		{"/%C3%A9%zz", 0, "an invalid percent-encoding at position 7"},
		{"//%C3%A9//%252e%252e", MergedSlashes | EncodedPercent, "some programs read a dot segment, because of the character at position "},
		{"/%C3%A9/%E3%80%80", 0, "U+3000 at position 8, a space that is not ASCII"},
		{"/%C3%A9/%EF%BC%8F", 0, "U+FF0F at position 8, which some programs read as a separator"},
		{"/%C3%A9/%C5%BF", everyOption, "U+017F at position 8, which equals an ASCII letter"},
	} {
		_, p := row.allow.CheckTarget(row.target)
		if !strings.Contains(p.Detail, row.want) {
			t.Errorf("%s: got %q, want %q in it", row.target, p.Detail, row.want)
		}
		for _, o := range Options() {
			for _, name := range []string{o.Family, o.Word, o.Alias} {
				if strings.Contains(name, "_") && strings.Contains(p.Detail, name) {
					t.Errorf("%s: the detail %q names an option", row.target, p.Detail)
				}
			}
		}
	}
}

// TestAdvice: it names the options with which the request passes, and none if it does not pass.
func TestAdvice(t *testing.T) {
	for target, want := range map[string]string{
		"/a%2Fb":                               "allow_encoded slash",
		"/a%2Fb%23c;d":                         "allow_encoded hash slash semicolon",
		"/a//b%2Fc.":                           "allow_encoded slash, merge_slashes, allow_trailing_dot",
		"/a|%20":                               "allow_encoded space, allow_raw brackets",
		"/" + percent("e\u0301\u3000b？\u200c"): "allow_unicode lookalikes spaces format non_nfc",
		"/%E2%80%80a":                          "allow_unicode spaces non_nfc", // canonically equal to another space
		"/a%2F..%2Fb":                          "", "/..;/a": "", "/a%2Fb%00": "", "/a;b\"": "", "/a%2f%c5%bf": "", "/%252e%252e": "", "/%2Fa": "", "/a%5C%80": "", "/a?b#": "",
	} {
		_, p := Judge("GET", "a", target, 0)
		if got := strings.Join(p.Need.Lines(), ", "); got != want || p.OK() {
			t.Errorf("%s: got the options %q, want %q", target, got, want)
		}
	}
	_, p := Judge("GET", "a", "/a%2Fb;c//d", EncodedSlash|MergedSlashes)
	if got := p.Advice(); got != "the path holds the byte 0x3b at position 6, which programs read differently; the option allow_encoded semicolon would let it pass" {
		t.Errorf("got %q", got)
	}
}

// TestOptions: each has one name, which finds it, and the others lead to it.
func TestOptions(t *testing.T) {
	var all Relax
	for _, o := range Options() {
		if all&o.Relax != 0 {
			t.Errorf("%s is there twice", o.Word)
		}
		all |= o.Relax
		found, err := FindOption(o.Family, o.Word)
		if err != nil || found != o {
			t.Errorf("%s %s: got %v, %v", o.Family, o.Word, found, err)
		}
		if got, want := o.Relax.Lines(), strings.TrimSpace(o.Family+" "+o.Word); !slices.Equal(got, []string{want}) {
			t.Errorf("got the lines %q, want %q", got, want)
		}
		if found, err := FindOption("", o.Alias); o.Alias != "" && (err != nil || found != o) {
			t.Errorf("%s: got %v, %v", o.Alias, found, err)
		}
	}
	if all != everyOption {
		t.Errorf("got the options %b, want %b", all, everyOption)
	}
	for _, row := range []struct{ family, word, want string }{
		{"allow_encoded", "hsh", `unknown option "hsh"; did you mean hash?`},
		{"allow_encoded", "zzz", `unknown option "zzz"; known are hash, question_mark, backslash, slash, percent, semicolon, space, latin1`},
		{"allow_encoded", "", `unknown option ""; known are hash, question_mark, backslash, slash, percent, semicolon, space, latin1`},
		{"allow_encoded", "format", `format is an option of allow_unicode; write "allow_unicode format"`},
		{"allow_raw", "hash", `hash is an option of allow_encoded; write "allow_encoded hash"`},
		{"allow_raw", "merge_slashes", `merge_slashes is an option of its own; write it without allow_raw`},
		{"allow_encoded", "allow_semicolon", `allow_semicolon has the name semicolon here`},
		{"allow_raw", "allow_semicolon", `allow_semicolon is an option of allow_encoded; write "allow_encoded semicolon"`},
		{"", "hash", `hash is an option of allow_encoded; write "allow_encoded hash"`},
		{"", "", `unknown option ""; known are merge_slashes, allow_trailing_dot`},
		{"", "merge_slash", `unknown option "merge_slash"; did you mean merge_slashes?`},
	} {
		if _, err := FindOption(row.family, row.word); fmt.Sprint(err) != row.want {
			t.Errorf("%s %q: got %v, want %s", row.family, row.word, err, row.want)
		}
	}
}
