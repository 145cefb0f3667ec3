package access

import (
	"cmp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

// judgeRune is what the table of runes is made to spare: it normalises each rune of a
// path.
func judgeRune(r rune) (c runeClass) {
	switch {
	case r == 'ſ' || r == '\u212a':
		return 0
	case unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S):
		c |= runeVisible
	case unicode.Is(unicode.Zs, r):
		c |= runeSpace
	case unicode.Is(unicode.Cf, r):
		c |= runeFormat
	}
	if c&runeVisible != 0 && unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
		c |= runeFormat
	}
	if strings.ContainsAny(norm.NFKC.String(string(r)), `/\.%;?#`) {
		c |= runeSeparates
	}
	return c
}

// Every rune has the facts in the table that Unicode's own tables give it.
func TestRuneTable(t *testing.T) {
	const asked = runeVisible | runeSpace | runeFormat | runeSeparates
	table, separators := runes(), 0
	for r := rune(utf8.RuneSelf); r <= unicode.MaxRune; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		class, want := table.class(r), judgeRune(r)
		if want&(runeVisible|runeSpace|runeFormat) == 0 { // refused as such, whatever else it is
			want &^= runeSeparates
		}
		if class&asked != want {
			t.Errorf("U+%04X: got %b, want %b", r, class&asked, want)
		}
		if want&runeSeparates != 0 {
			separators++
		}
		if class == 0 {
			continue
		}
		p := norm.NFC.PropertiesString(string(r))
		if got, want := class&runeMoves == 0, p.BoundaryBefore(); got != want || class.combining() != p.CCC() {
			t.Errorf("U+%04X: got boundary %t, combining class %d, want %t, %d", r, got, class.combining(), want, p.CCC())
		}
	}
	if separators < 50 {
		t.Errorf("runes with a separator in their compatibility form: got %d; the test shows little", separators)
	}
	if blocks := distinct(table.blocks[:]); blocks > 400 {
		t.Errorf("blocks of the table: got %d, want fewer", blocks)
	}
}

func distinct[T comparable](list []T) int {
	seen := make(map[T]bool)
	for _, v := range list {
		seen[v] = true
	}
	return len(seen)
}

// inNFC asks the table.
func inNFC(s string) bool {
	var text nfc
	for _, r := range s {
		if r < utf8.RuneSelf {
			text = nfc{starter: r, class: runes().class(r)}
		} else if !text.next(runes(), r, runes().class(r)) {
			return false
		}
	}
	return true
}

// The table knows normalisation form C: for each rune alone, between others, and for
// everything that NFC joins, reorders or keeps apart.
func TestRuneTableNFC(t *testing.T) {
	t.Parallel()
	check := func(s string) {
		if got, want := inNFC(s), norm.NFC.IsNormalString(s); got != want {
			t.Errorf("%+q: in NFC: got %t, want %t", s, got, want)
		}
	}
	var joining []rune
	for r := rune(utf8.RuneSelf); r <= unicode.MaxRune; r++ {
		class := runes().class(r)
		if class == 0 {
			continue
		}
		check(string(r))
		check("a" + string(r) + "b")
		check("\u0323" + string(r) + "\u0301")
		check("ཱ" + string(r) + "\u1161\u11a8")
		if class&runeMoves != 0 {
			joining = append(joining, r)
		}
		if apart := norm.NFD.String(string(r)); apart != string(r) {
			check(apart)
			check("x" + apart + "\u0323")
			first, size := utf8.DecodeRuneInString(apart)
			for _, between := range []string{"\u0323", "\u0301", "\u0338", "\u0345", "a", "\u200d"} {
				if runes().class([]rune(between)[0]) != 0 || between == "a" {
					check(string(first) + between + apart[size:])
				}
			}
		}
	}
	if len(joining) < 900 {
		t.Errorf("runes that join another: got %d; the test shows little", len(joining))
	}
	for _, first := range "aeiAEo=<qἀΩ\u00e9\u1ea1日가각가\u09c7\u0b47\u0dd9\u1025\U00011131\U000114b9" {
		for _, second := range joining {
			check(string(first) + string(second))
			for _, third := range []rune{0x0301, 0x0323, 0x0345, 0x0334, 0x09be, 0x1161, 0x11a8} {
				check(string(first) + string(second) + string(third))
				check(string(first) + string(third) + string(second))
			}
		}
	}
	check("a" + strings.Repeat("\u0323", maxMoving))
	check("a" + strings.Repeat("\u0323", maxMoving+1))
	if inNFC("a" + strings.Repeat("\u0323", 1000)) {
		t.Error("a thousand marks on one letter: got in NFC, want a bound")
	}
}

// The table judges a text as its runes and its normalisation do.
func TestRuneTableTexts(t *testing.T) {
	piece := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
		"e\u0301", "\u00e9", "\u0323", "\u0301", "\u0345", "\u1161", "\u1100", "각", "가", "\u11a8", "\ufffd", "\xff", "\u017f", "\uff0f", "\ufdfa", "ক", "\u09be", "\u200d", "a", "/",
	}))
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(piece, 1, 12).Draw(t, "pieces"), "")
		for _, allow := range []Relax{0, NonNFC} {
			want := utf8.ValidString(text) && (allow == NonNFC || norm.NFC.IsNormalString(text))
			for _, r := range text {
				want = want && (r < utf8.RuneSelf || judgeRune(r)&^runeFormat == runeVisible)
			}
			f := findings{raw: text, allow: allow}
			f.checkUnicode(text)
			if p := f.problem(); p.OK() != want {
				t.Errorf("%+q, %d: got %q, want that it passes: %t", text, allow, p.Detail, want)
			}
		}
	})
}

// repeated is a target of 4096 bytes: a unit again and again.
func repeated(unit string) string {
	const size = 4096
	return "/" + strings.Repeat(unit, (size-1)/len(unit)) + strings.Repeat("a", (size-1)%len(unit))
}

// costRatio is the cost of a target to that of one of ASCII letters, of the same
// length: the shortest times of both, taken in turns.
func costRatio(target string, rounds int) float64 {
	letters := repeated("a")
	best := [2]time.Duration{time.Hour, time.Hour}
	for range rounds {
		for i, text := range []string{target, letters} {
			start := time.Now()
			Relax(0).CheckTarget(text)
			best[i] = min(best[i], time.Since(start))
		}
	}
	return float64(best[0]) / float64(best[1])
}

// slowUnits are units of a target, besides a rune alone, that make the check work.
var slowUnits = []string{
	"%61", "a.b/", ".a/", "a/%61", "a%20", percent("0\u0323\u0301"), percent("ক\u09be"), percent("각\u11a8"), "a" + percent("\u1161"),
	"0" + percent(strings.Repeat("\u0323", maxMoving)), "a" + percent("é") + "/", "b" + percent("\u0301"), percent("é\u0331"), percent("ǖ\u0331"),
}

// What a target of many equal parts costs does not grow with what each of them is: no
// part of it is normalised, and no refusal is written that an option lifts.
func TestTargetAllocations(t *testing.T) {
	for _, row := range []struct {
		unit  string
		allow Relax
	}{
		{percent("\ufdfa"), 0}, {percent("½"), 0}, {percent("각"), 0}, {percent("ı"), 0}, {"b" + percent("\u0301"), 0}, {percent("\ufdfa"), NonNFC}, {percent("e\u0301"), NonNFC},
		{"a;b", Semicolon}, {"%3b", Semicolon}, {"%25", EncodedPercent}, {"a%2f", EncodedSlash}, {"a./", TrailingDot}, {"%23", EncodedHash}, {"%3F", EncodedQuestionMark}, {"a%5C", EncodedBackslash}, {"%20a/", EdgeSpace}, {"%E9", Latin1},
		{percent("？"), Lookalikes}, {percent("\u3000"), UnicodeSpaces}, {"a" + percent("\u200c"), FormatCharacters}, {"[]", RawBrackets}, {"a|", RawBrackets},
	} {
		target := "/a" + strings.Repeat(row.unit, 200) + "a"
		got := testing.AllocsPerRun(10, func() {
			if _, p := row.allow.CheckTarget(target); !p.OK() {
				t.Fatalf("%s: %v", row.unit, p)
			}
		})
		most := 2.0 // the bytes that are decoded, and their string
		if row.allow != 0 {
			most = 40 // and some for each reading
		}
		if got > most {
			t.Errorf("200 times %s: got %v allocations, want at most %v", row.unit, got, most)
		}
	}
}

// BenchmarkTargetCost looks for the rune that costs most per byte of a target, among
// all that are assigned, alone and behind a letter. Its figures are the cost of the
// worst rune, and of the worst of slowUnits, to that of ASCII letters.
func BenchmarkTargetCost(b *testing.B) {
	type unit struct {
		text  string
		ratio float64
	}
	runes()
	var all []unit
	for r := rune(utf8.RuneSelf); r <= unicode.MaxRune; r++ {
		if runes().class(r) != 0 {
			for _, before := range []string{"", "a"} {
				text := before + percent(string(r))
				all = append(all, unit{text, costRatio(repeated(text), 3)})
			}
		}
	}
	byRatio := func(a, b unit) int { return cmp.Compare(b.ratio, a.ratio) }
	slices.SortFunc(all, byRatio)
	runeUnits := all[:300]
	var others []unit
	for _, text := range slowUnits {
		others = append(others, unit{text: text})
	}
	for b.Loop() {
		for _, list := range [][]unit{runeUnits, others} {
			for i := range list {
				list[i].ratio = costRatio(repeated(list[i].text), 2000)
			}
			slices.SortFunc(list, byRatio)
			for _, u := range list[:5] {
				b.Logf("%.40s: %.2f", u.text, u.ratio)
			}
		}
	}
	b.ReportMetric(runeUnits[0].ratio, "rune-ratio")
	b.ReportMetric(others[0].ratio, "unit-ratio")
	b.ReportMetric(0, "ns/op")
}
