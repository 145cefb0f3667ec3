package access

import (
	"fmt"
	"slices"
	"strings"
)

// Relax is a set of options, each of which lifts one refusal. An operator sets an option for clients
// that cannot avoid such targets. A deny covers every reading of the path that an option opens, see
// [readings]; an allow covers the path alone.
type Relax uint16

// The options. No option lifts the refusal of dot segments, in any spelling and in any reading.
const (
	EncodedHash         Relax = 1 << iota // %23 passes
	EncodedQuestionMark                   // %3F passes
	EncodedBackslash                      // %5C passes
	EncodedSlash                          // %2F passes, as data inside of a segment
	EncodedPercent                        // %25 passes, as a percent sign
	Semicolon                             // ";" and %3B pass
	EdgeSpace                             // a segment that begins or ends with a space passes
	Latin1                                // a byte of %A0 to %FF that is not UTF-8 passes
	Lookalikes                            // a rune whose compatibility form contains a separator passes
	UnicodeSpaces                         // a space of Unicode passes
	FormatCharacters                      // a format character passes
	NonNFC                                // text that is not in normalisation form C passes
	RawBrackets                           // raw "[", "]", "|" and "^" pass
	MergedSlashes                         // "//" passes, as "/"; see Relax.Forwarded
	TrailingDot                           // a segment that ends in a dot passes
)

// Option is the name of an option in a configuration.
type Option struct {
	Relax  Relax
	Family string // the directive that lists the word; "" if Word is the directive itself
	Word   string
	Alias  string // a directive of earlier versions with the same meaning; "" for none
}

var options = []Option{
	{EncodedHash, "allow_encoded", "hash", ""},
	{EncodedQuestionMark, "allow_encoded", "question_mark", ""},
	{EncodedBackslash, "allow_encoded", "backslash", ""},
	{EncodedSlash, "allow_encoded", "slash", "allow_encoded_slash"},
	{EncodedPercent, "allow_encoded", "percent", "allow_encoded_percent"},
	{Semicolon, "allow_encoded", "semicolon", "allow_semicolon"},
	{EdgeSpace, "allow_encoded", "space", ""},
	{Latin1, "allow_encoded", "latin1", ""},
	{Lookalikes, "allow_unicode", "lookalikes", ""},
	{UnicodeSpaces, "allow_unicode", "spaces", ""},
	{FormatCharacters, "allow_unicode", "format", ""},
	{NonNFC, "allow_unicode", "non_nfc", "allow_non_nfc"},
	{RawBrackets, "allow_raw", "brackets", ""},
	{MergedSlashes, "", "merge_slashes", ""},
	{TrailingDot, "", "allow_trailing_dot", ""},
}

// Options returns the options, the words of each family together. Every other list of options, in
// configurations, flags and documents, comes from this one.
func Options() []Option { return slices.Clone(options) }

// FindOption returns the option that a word of a family means. The family "" contains the options
// that are a directive themselves, and the aliases. The error says how to correct the word.
func FindOption(family, word string) (Option, error) {
	var known []string
	for _, o := range options {
		if o.Family == family {
			if known = append(known, o.Word); o.Word == word {
				return o, nil
			}
		} else if family == "" && word == o.Alias && word != "" {
			return o, nil
		}
	}
	for _, o := range options {
		switch {
		case o.Word != word && (o.Alias != word || word == ""):
		case o.Family != "" && o.Family != family:
			return o, fmt.Errorf("%s is an option of %s; write %q", word, o.Family, o.Family+" "+o.Word)
		case o.Word == word: // found above if the family is ""
			return o, fmt.Errorf("%s is an option of its own; write it without %s", word, family)
		default:
			return o, fmt.Errorf("%s has the name %s here", word, o.Word)
		}
	}
	if nearest := NearestWord(word, known); nearest != "" {
		return Option{}, fmt.Errorf("unknown option %q; did you mean %s?", word, nearest)
	}
	return Option{}, fmt.Errorf("unknown option %q; known are %s", word, strings.Join(known, ", "))
}

// Lines returns the lines of a configuration that set these options, such as "allow_encoded hash slash".
func (r Relax) Lines() []string {
	lines := []string{}
	family := ""
	for _, o := range options {
		switch {
		case r&o.Relax == 0:
		case o.Family == "":
			lines = append(lines, o.Word)
		case o.Family == family:
			lines[len(lines)-1] += " " + o.Word
		default:
			family = o.Family
			lines = append(lines, family+" "+o.Word)
		}
	}
	return lines
}
