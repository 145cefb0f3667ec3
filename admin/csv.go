package admin

import "regexp"

// CSVCell puts a "'" before each part of a text that a spreadsheet would run as a formula, such as
// "=1+1". A part begins with the text, or after a semicolon, which separates cells in some languages.
func CSVCell(text string) string { return formula.ReplaceAllString(text, "$1'$2") }

// formula finds the sign of a formula, also of full width, with the spaces before it.
var formula = regexp.MustCompile(`((?:^|;)(?:` + space + `*")*)(` + space + `*[=+@＝＋－＠-])`)

const space = `[\s\v\x{85}\pZ]`
