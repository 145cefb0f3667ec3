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

// checkOldName checks a name that a service user has. Names from before the rules of
// [checkNewName] stay valid.
func checkOldName(name string) error { return checkName("name", name) }

// checkNewName checks the name that a service user is given.
func checkNewName(name string) error {
	if err := checkOldName(name); err != nil {
		return err
	}
	if !norm.NFC.IsNormalString(name) {
		return invalid("name", "must be in Unicode normalisation form C; send it as %q", norm.NFC.String(name))
	}
	for _, r := range name {
		switch {
		case strings.ContainsAny(norm.NFKC.String(string(r)), ",:"+looksLikeSeparator):
			return invalid("name", "must not hold %q (U+%04X): a comma or colon, or a character that looks like one, separates names elsewhere", r, r)
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
		return invalid("name", "mixes the scripts %s, in which letters look alike; write it in one", strings.Join(scripts, " and "))
	}
	return nil
}

// looksLikeSeparator are characters of no script, or of all, that people read as a comma
// or a colon (Unicode Technical Standard 39, confusables.txt). Those of one script are
// refused beside letters of another.
const looksLikeSeparator = "\u02d0\u02f8\u201a\u205a\u2236\ua789"

// blank are characters that are no space and show nothing: a Braille pattern without
// dots, an object that is not there, a note without a head, and two blank hieroglyphs.
const blank = "\u2800\ufffc\U0001d159\U00013441\U00013442"

// nameKey returns the form that all names share which read alike: it has neither case
// nor compatibility characters (NFKC_Casefold, Unicode, section 3.13), nothing that
// cannot be seen, and one space for several.
func nameKey(name string) string {
	visible := func(s string) string {
		return strings.Map(func(r rune) rune {
			switch {
			case unicode.In(r, unicode.Cf, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point):
				return -1
			case unicode.Is(unicode.Cherokee, r):
				return unicode.ToUpper(r) // cases.Fold exchanges its two cases
			}
			return r
		}, s)
	}
	key := norm.NFKC.String(visible(name))
	key = norm.NFKC.String(cases.Fold().String(key))
	return strings.Join(strings.Fields(norm.NFC.String(visible(key))), " ")
}

// The upgrade to version 5 of the schema writes keys by this function of SQL.
func init() {
	sqlite.MustRegisterDeterministicScalarFunction("service_user_name_key", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		name, ok := args[0].(string)
		if !ok {
			return nil, errors.New("a name is text")
		}
		return nameKey(name), nil
	})
}

// scriptsOf lists the scripts of a text, each once, without what all scripts share.
// A letter that is shared, such as a mathematical one, counts as what it stands for.
func scriptsOf(text string) (list []string) {
	for _, r := range text {
		stands := string(r)
		if r >= utf8.RuneSelf && unicode.Is(unicode.Common, r) && unicode.IsLetter(r) {
			stands = norm.NFKC.String(stands)
		}
		for _, r := range stands {
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

// highlyRestrictive reports whether scripts may stand in one name, by the restriction
// level of that name (Unicode Technical Standard 39, section 5.2).
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
