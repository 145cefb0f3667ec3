package access

import (
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"golang.org/x/text/unicode/rangetable"
)

// runeClass is a set of properties of a rune. Its high byte is the canonical combining class. A rune
// that is not visible, a space or a format character must not appear in a path: it is a control,
// separator or unassigned character.
type runeClass uint16

const (
	runeVisible   runeClass = 1 << iota // a letter, mark, number, punctuation or symbol
	runeSpace                           // a space that is not ASCII (category Zs)
	runeFormat                          // a format character (Cf), or visible and often ignored too
	runeSeparates                       // its compatibility form (NFKC) contains a separator
	runeMoves                           // NFC may reorder it, or join it to a rune before it
	runeJoins                           // NFC joins some rune and this one into one rune
	runeComposed                        // NFC joins two runes into this one
	runeNeverNFC                        // text in NFC does not contain it
)

func (c runeClass) combining() uint8 { return uint8(c >> 8) }

// runeTable makes checking any rune almost as cheap as checking an ASCII letter. Without the table,
// the check would have to normalise the text, which takes two hundred times as long for U+FDFA.
type runeTable struct {
	blocks [unicode.MaxRune>>8 + 1]*[256]runeClass // by the high bits of the rune; equal blocks are shared
	joined runeMap                                 // from a pair of runes to the rune that NFC joins them into
	apart  runeMap                                 // the reverse of joined
}

// runes makes the table, which takes about 50 ms, for the first path that is not ASCII.
var runes = sync.OnceValue(func() *runeTable {
	t, none := new(runeTable), new([256]runeClass)
	for i := range t.blocks {
		t.blocks[i] = none
	}
	var composed []rune
	for _, table := range []*unicode.RangeTable{
		unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Zs, unicode.Cf,
	} {
		rangetable.Visit(table, func(r rune) {
			if t.blocks[r>>8] == none {
				t.blocks[r>>8] = new([256]runeClass)
			}
			t.blocks[r>>8][r&0xff] = classify(r)
			// Hangul syllables are computed instead, see joinsHangul: there are 11,172
			// of them.
			isNFC := t.class(r)&runeNeverNFC == 0
			if isNFC && !norm.NFD.IsNormalString(string(r)) && !unicode.Is(unicode.Hangul, r) {
				composed = append(composed, r)
			}
		})
	}
	for _, r := range composed {
		// NFD splits a rune into all its parts. The pair is the last part and the NFC of
		// the others: "ệ" is "ẹ" and a circumflex, not "e" and two marks.
		apart := norm.NFD.String(string(r))
		second, size := utf8.DecodeLastRuneInString(apart)
		first, _ := utf8.DecodeRuneInString(norm.NFC.String(apart[:len(apart)-size]))
		t.joined.put(pair(first, second), uint64(r))
		t.apart.put(uint64(r), pair(first, second))
		t.blocks[r>>8][r&0xff] |= runeComposed
		t.blocks[second>>8][second&0xff] |= runeJoins
	}
	// Most blocks have an equal one elsewhere: sharing them saves most of the memory.
	shared := make(map[[256]runeClass]*[256]runeClass)
	for i, block := range t.blocks {
		if shared[*block] == nil {
			shared[*block] = block
		}
		t.blocks[i] = shared[*block]
	}
	return t
})

// classify returns the class of a rune, without runeJoins and runeComposed.
func classify(r rune) runeClass {
	c, s := runeVisible, string(r)
	switch {
	case foldsToASCII(r):
		c = 0
	case unicode.Is(unicode.Zs, r):
		c = runeSpace
	case unicode.Is(unicode.Cf, r):
		c = runeFormat
	case isIgnorable(r):
		c |= runeFormat
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

// nfc checks rune by rune whether a text is in normalisation form C.
type nfc struct {
	starter rune      // the last rune of combining class 0
	class   runeClass // the class of starter
	last    uint8     // the combining class of the last rune
	moving  uint8     // the number of runes since the last one without runeMoves
}

// maxMoving bounds the marks on a letter, as the Stream-Safe Text Format does (Unicode Standard
// Annex 15, section 13).
const maxMoving = 30

// next reports whether the text up to and including this rune is in NFC (Unicode, section 3.11):
// NFC would neither reorder a rune nor join one to the last starter. Do not call next again after
// false.
func (n *nfc) next(t *runeTable, r rune, c runeClass) bool {
	if c&(runeMoves|runeNeverNFC) == 0 { // NFC leaves the rune, and starts again with it
		*n = nfc{starter: r, class: c}
		return true
	}
	combining, last := c.combining(), n.last
	n.moving++
	// NFC sorts marks by their combining class, so a descending class is not in NFC.
	if c&runeNeverNFC != 0 || n.moving > maxMoving || combining != 0 && last > combining {
		return false
	}
	// A mark after another one of the same class is blocked: it cannot join the starter.
	if last == 0 || last < combining {
		switch {
		case c&runeJoins == 0:
			if joinsHangul(n.starter, r) {
				return false
			}
		case t.joined.value(pair(n.starter, r)) != 0:
			return false
		case n.class&runeComposed != 0 && t.joinsPart(n.starter, r, combining):
			return false
		}
	}
	n.last = combining
	if combining == 0 {
		n.starter, n.class = r, c
	}
	return true
}

// joinsHangul reports whether NFC joins two runes into a Hangul syllable, by the rule of Unicode,
// section 3.12. runeTable.joined contains the pairs of other scripts.
func joinsHangul(a, b rune) bool {
	leadAndVowel := 'ᄀ' <= a && a <= 'ᄒ' && 'ᅡ' <= b && b <= 'ᅵ'
	// Every 28th syllable has no trailing consonant yet.
	syllableAndTrail := '가' <= a && a <= '힣' && (a-'가')%28 == 0 && 'ᆨ' <= b && b <= 'ᇂ'
	return leadAndVowel || syllableAndTrail
}

// joinsPart reports whether NFC joins b to a part of a. The composed rune a may contain marks that
// NFC would sort after b: the part is a without these marks.
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

// runeMap is a hash table for the thousand compositions of Unicode, with open addressing. A Go map
// would take several times as long for a look-up. Key 0 marks a free slot.
type runeMap [1 << 12]struct{ key, value uint64 }

func (m *runeMap) slot(key uint64) uint64 {
	i := key * 0x9e3779b97f4a7c15 >> 52 // Fibonacci hashing: the top 12 bits of the product
	for m[i].key != key && m[i].key != 0 {
		i = (i + 1) % uint64(len(m))
	}
	return i
}

func (m *runeMap) put(key, value uint64) {
	i := m.slot(key)
	m[i].key, m[i].value = key, value
}

// value returns the value of a key, or 0 if the table does not contain the key.
func (m *runeMap) value(key uint64) uint64 { return m[m.slot(key)].value }
