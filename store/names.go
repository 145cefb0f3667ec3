package store

import (
	"database/sql/driver"
	"errors"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
	"modernc.org/sqlite"
)

// checkOldName checks the name that a service user already has. Names from before the rules of
// [checkNewName] stay valid.
func checkOldName(name string) error { return checkName("name", name) }

// checkNewName checks a new name for a service user.
func checkNewName(name string) error {
	if err := checkOldName(name); err != nil {
		return err
	}
	if !norm.NFC.IsNormalString(name) {
		return invalid("name", "must be in Unicode normalisation form C; send it as %q", norm.NFC.String(name))
	}
	for _, r := range name {
		switch {
		// NFKC turns for example the full-width comma into ",".
		case strings.ContainsAny(norm.NFKC.String(string(r)), ",:"+looksLikeSeparator):
			return invalid("name",
				"must not hold %q (U+%04X): a comma or colon, or a character that looks like one, "+
					"separates names elsewhere", r, r)
		case r != ' ' && (unicode.IsSpace(r) || unicode.Is(unicode.Z, r) || strings.ContainsRune(blank, r)):
			return invalid("name", "must not hold the space U+%04X; write a plain one", r)
		}
	}
	key := nameKey(name)
	switch {
	case key == "":
		return invalid("name", "must hold a visible character")
	case idForm.MatchString(key):
		return invalid("name", "must not look like an id")
	}
	if scripts := scriptsOf(name); !highlyRestrictive(scripts) {
		return invalid("name", "mixes the scripts %s, in which letters look alike; write it in one",
			strings.Join(scripts, " and "))
	}
	return nil
}

// looksLikeSeparator holds the characters that people read as a comma or a colon and that belong
// to no script (Unicode Technical Standard 39, confusables.txt). The rule about mixed scripts
// refuses those of one script.
const looksLikeSeparator = "\u02d0\u02f8\u201a\u205a\u2236\ua789"

// blank holds characters that show nothing although Unicode does not call them spaces: a Braille
// pattern without dots, the object replacement, a note without a head, two blank hieroglyphs.
const blank = "\u2800\ufffc\U0001d159\U00013441\U00013442"

// nameKey returns the same key for all names that read alike. Case and compatibility characters
// make no difference to it (NFKC_Casefold, Unicode, section 3.13). Neither do invisible characters,
// nor several spaces in place of one.
func nameKey(name string) string {
	visible := func(s string) string {
		return strings.Map(func(r rune) rune {
			switch {
			case unicode.In(r, unicode.Cf, unicode.Variation_Selector,
				unicode.Other_Default_Ignorable_Code_Point):
				return -1
			case unicode.Is(unicode.Cherokee, r):
				// cases.Fold maps lower-case Cherokee to upper case and the
				// reverse, so both begin as upper case.
				return unicode.ToUpper(r)
			}
			return r
		}, s)
	}
	key := norm.NFKC.String(visible(name))
	// Folding can produce sequences that are not normalised, so each step normalises again.
	key = norm.NFKC.String(cases.Fold().String(key))
	return strings.Join(strings.Fields(norm.NFC.String(visible(key))), " ")
}

// The upgrade to schema version 5 computes the keys in SQL, with this function.
func init() {
	key := func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		name, ok := args[0].(string)
		if !ok {
			return nil, errors.New("a name is text")
		}
		return nameKey(name), nil
	}
	sqlite.MustRegisterDeterministicScalarFunction("service_user_name_key", 1, key)
}

// scriptsOf lists the scripts of a text, each once, without Common and Inherited characters, which
// occur in all scripts. A Common letter, such as a mathematical one, counts as the letter that it
// is a variant of.
func scriptsOf(text string) (list []string) {
	for _, r := range text {
		letters := string(r)
		if r >= utf8.RuneSelf && unicode.Is(unicode.Common, r) && unicode.IsLetter(r) {
			letters = norm.NFKC.String(letters)
		}
		for _, r := range letters {
			of := func(script string) bool { return unicode.Is(unicode.Scripts[script], r) }
			if of("Common") || of("Inherited") || slices.ContainsFunc(list, of) {
				continue
			}
			for script := range unicode.Scripts {
				if of(script) {
					list = append(list, script)
				}
			}
		}
	}
	return list
}

// highlyRestrictive reports whether one name may mix these scripts, by the restriction level
// "highly restrictive" (Unicode Technical Standard 39, section 5.2).
func highlyRestrictive(scripts []string) bool {
	if len(scripts) <= 1 {
		return true
	}
	return slices.ContainsFunc([][]string{
		{"Latin", "Han", "Hiragana", "Katakana"}, {"Latin", "Han", "Bopomofo"}, {"Latin", "Han", "Hangul"},
	}, func(together []string) bool {
		return !slices.ContainsFunc(scripts, func(s string) bool { return !slices.Contains(together, s) })
	})
}
