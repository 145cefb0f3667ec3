package access

import (
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// runeClass is a set of facts about a rune; the high byte is its canonical combining
// class. 0 is a rune that no path holds: a control, format, separator or unassigned
// character.
type runeClass uint16

const (
	runeVisible   runeClass = 1 << iota // a letter, mark, number, punctuation or symbol
	runeFolds                           // see foldsToASCII
	runeSeparates                       // its compatibility form (NFKC) holds a separator
	runeMoves                           // NFC may reorder it, or join it to a rune before it
	runeJoins                           // the second of two runes that NFC makes one of
	runeComposed                        // NFC made it of two runes
	runeNeverNFC                        // text in NFC does not hold it
)

func (c runeClass) combining() uint8 { return uint8(c >> 8) }

// runeTable makes a rune of a path cost little more than an ASCII letter. To normalise
// U+FDFA, as the check would have to without it, takes two hundred times as long.
type runeTable struct {
	blocks [unicode.MaxRune>>8 + 1]*[256]runeClass // many are the same one
	joined runeMap                                 // two runes → the one that NFC makes of them
	apart  runeMap                                 // the reverse
}

// runes makes the table when the first path comes that is not ASCII, within some 50 ms.
var runes = sync.OnceValue(func() *runeTable {
	t, none := new(runeTable), new([256]runeClass)
	for i := range t.blocks {
		t.blocks[i] = none
	}
	var composed []rune
	for _, table := range []*unicode.RangeTable{unicode.L, unicode.M, unicode.N, unicode.P, unicode.S} {
		for r := range allRunes(table) {
			if t.blocks[r>>8] == none {
				t.blocks[r>>8] = new([256]runeClass)
			}
			t.blocks[r>>8][r&0xff] = classify(r)
			if !norm.NFD.IsNormalString(string(r)) && t.class(r)&runeNeverNFC == 0 && !unicode.Is(unicode.Hangul, r) {
				composed = append(composed, r)
			}
		}
	}
	for _, r := range composed {
		apart := norm.NFD.String(string(r))
		second, size := utf8.DecodeLastRuneInString(apart)
		first, _ := utf8.DecodeRuneInString(norm.NFC.String(apart[:len(apart)-size]))
		t.joined.put(pair(first, second), uint64(r))
		t.apart.put(uint64(r), pair(first, second))
		t.blocks[r>>8][r&0xff] |= runeComposed
		t.blocks[second>>8][second&0xff] |= runeJoins
	}
	shared := make(map[[256]runeClass]*[256]runeClass)
	for i, block := range t.blocks {
		if shared[*block] == nil {
			shared[*block] = block
		}
		t.blocks[i] = shared[*block]
	}
	return t
})

// allRunes lists the runes of a table.
func allRunes(table *unicode.RangeTable) func(yield func(rune) bool) {
	return func(yield func(rune) bool) {
		for _, span := range table.R16 {
			for r := rune(span.Lo); r <= rune(span.Hi); r += rune(span.Stride) {
				yield(r)
			}
		}
		for _, span := range table.R32 {
			for r := rune(span.Lo); r <= rune(span.Hi); r += rune(span.Stride) {
				yield(r)
			}
		}
	}
}

func classify(r rune) runeClass {
	c, s := runeVisible, string(r)
	if foldsToASCII(r) {
		c |= runeFolds
	}
	if strings.ContainsAny(norm.NFKC.String(s), `/\.%;?#`) {
		c |= runeSeparates
	}
	p := norm.NFC.PropertiesString(s)
	if !p.BoundaryBefore() {
		c |= runeMoves
	}
	if !norm.NFC.IsNormalString(s) {
		c |= runeNeverNFC
	}
	return c | runeClass(p.CCC())<<8
}

func (t *runeTable) class(r rune) runeClass { return t.blocks[r>>8][r&0xff] }

// nfc reads a text, rune by rune, and finds out whether it is in normalisation form C.
type nfc struct {
	starter rune      // the last rune of combining class 0
	class   runeClass // of it
	last    uint8     // the combining class of the last rune
	moving  uint8     // runes since the last one that stays where it is
}

// maxMoving bounds the marks on a letter, as the Stream-Safe Text Format does (Unicode
// Standard Annex 15, section 13).
const maxMoving = 30

// next reports whether the text is in NFC up to and with this rune (Unicode, section
// 3.11): nothing in it would be moved, or joined to the last starter.
func (n *nfc) next(t *runeTable, r rune, c runeClass) bool {
	if c&(runeMoves|runeNeverNFC) == 0 {
		*n = nfc{starter: r, class: c}
		return true
	}
	combining, last := c.combining(), n.last
	n.moving++
	if c&runeNeverNFC != 0 || n.moving > maxMoving || combining != 0 && last > combining {
		return false
	}
	if last == 0 || last < combining {
		switch {
		case c&runeJoins == 0:
			if joinsHangul(n.starter, r) {
				return false
			}
		case t.joined.value(pair(n.starter, r)) != 0 || n.class&runeComposed != 0 && t.joinsPart(n.starter, r, combining):
			return false
		}
	}
	n.last = combining
	if combining == 0 {
		n.starter, n.class = r, c
	}
	return true
}

// joinsHangul reports the joining of Hangul syllables by the rule of Unicode, section
// 3.12; for other scripts the table has it.
func joinsHangul(a, b rune) bool {
	return 'ᅡ' <= b && b <= 'ᅵ' && 'ᄀ' <= a && a <= 'ᄒ' || 'ᆨ' <= b && b <= 'ᇂ' && '가' <= a && a <= '힣' && (a-'가')%28 == 0
}

// joinsPart reports whether NFC joins b to what is left of a without the marks that b
// would go before.
func (t *runeTable) joinsPart(a, b rune, combining uint8) bool {
	for t.class(a)&runeComposed != 0 {
		parts := t.apart.value(uint64(a))
		if t.class(rune(parts&unicode.MaxRune)).combining() <= combining {
			return false
		}
		if a = rune(parts >> 32); t.joined.value(pair(a, b)) != 0 {
			return true
		}
	}
	return false
}

func pair(a, b rune) uint64 { return uint64(a)<<32 | uint64(b) }

// runeMap holds the thousand compositions of Unicode. A look-up in a map of Go would
// take several times as long.
type runeMap [1 << 12]struct{ key, value uint64 }

func (m *runeMap) slot(key uint64) uint64 {
	i := key * 0x9e3779b97f4a7c15 >> 52
	for m[i].key != key && m[i].key != 0 {
		i = (i + 1) % uint64(len(m))
	}
	return i
}

func (m *runeMap) put(key, value uint64) {
	i := m.slot(key)
	m[i].key, m[i].value = key, value
}

// value returns 0 when there is none.
func (m *runeMap) value(key uint64) uint64 { return m[m.slot(key)].value }
