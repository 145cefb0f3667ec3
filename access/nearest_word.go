package access

import "strings"

// NearestWord returns the known word that the writer of word probably meant, or "". The words may
// differ in case, in "-" and "_", in up to two letters (DELTE, DELETE), or in a part that is missing
// (ttl, token_ttl).
func NearestWord(word string, known []string) string {
	plain := func(s string) string {
		return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(s))
	}
	w := plain(word)
	if w == "" || len(w) > 64 { // no known word is as long
		return ""
	}
	for typos := range min(len(w)+1, 8)/3 + 1 {
		for _, k := range known {
			if isNear(w, plain(k), typos) {
				return k
			}
		}
	}
	for _, known := range known {
		if k := plain(known); min(len(k), len(w)) > 1 && (strings.HasPrefix(k, w) || strings.HasSuffix(k, w) ||
			strings.HasPrefix(w, k) || strings.HasSuffix(w, k)) {
			return known
		}
	}
	return ""
}

// isNear reports whether a number of typos can turn a into b. A typo is a byte that is added, missing,
// wrong, or swapped with the next.
func isNear(a, b string, typos int) bool {
	for a != "" && b != "" && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	if a == b || typos == 0 {
		return a == b
	}
	swapped := len(a) > 1 && len(b) > 1 && a[0] == b[1] && a[1] == b[0]
	return a != "" && isNear(a[1:], b, typos-1) || b != "" && isNear(a, b[1:], typos-1) ||
		a != "" && b != "" && isNear(a[1:], b[1:], typos-1) || swapped && isNear(a[2:], b[2:], typos-1)
}
