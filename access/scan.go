package access

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"slices"
)

// FoundSecret is a secret that stands in a text.
type FoundSecret struct {
	Offset int    // where it begins, in bytes
	Base64 bool   // it stands there encoded, as in the value of a Basic header
	Secret string `json:"-"`
}

// MaxFoundBytes is the longest stretch of a text, from the offset on, that a
// secret is looked for in: encoded and broken into lines.
const MaxFoundBytes = 256

// FindSecrets returns every secret in a text, by its form and checksum, in the
// order of the text: plain, and inside of base64, standard or URL-safe, whatever
// stands before it there. It takes what looks like a secret and has no right
// checksum for none.
func FindSecrets(text []byte) (found []FoundSecret) {
	eachIndex(text, SecretPrefix, func(at int) {
		if len(text)-at < SecretLength {
			return
		}
		if s := string(text[at:][:SecretLength]); WellFormedSecret(s) {
			found = append(found, FoundSecret{Offset: at, Secret: s})
		}
	})
	for _, m := range encodedPrefixes {
		eachIndex(text, m.marker, func(at int) {
			encoded := text[at:min(len(text), at+MaxFoundBytes)][m.skip:]
			if s := m.known + decodeSome(encoded, SecretLength-len(m.known)); WellFormedSecret(s) {
				found = append(found, FoundSecret{Offset: at, Base64: true, Secret: s})
			}
		})
	}
	slices.SortFunc(found, func(a, b FoundSecret) int { return cmp.Compare(a.Offset, b.Offset) })
	return found
}

// encodedPrefixes are what base64 makes of SecretPrefix, whose four bytes may
// begin at any of three places in a group of three: the characters that depend on
// nothing before them, how many of those belong to a group that begins earlier,
// and what of the prefix that group holds.
var encodedPrefixes = []struct {
	marker string
	skip   int
	known  string
}{
	{"Y3N1X", 0, ""},
	{"NzdV", 2, "cs"},
	{"jc3Vf", 1, "c"},
}

func eachIndex(text []byte, marker string, f func(at int)) {
	for at := 0; ; at++ {
		i := bytes.Index(text[at:], []byte(marker))
		if i < 0 {
			return
		}
		at += i
		f(at)
	}
}

// decodeSome decodes the base64 that a text begins with, up to n bytes. It reads
// over line breaks, with the indentation of the next line.
func decodeSome(text []byte, n int) string {
	digits := make([]byte, 0, 2*SecretLength)
	need := base64.RawStdEncoding.EncodedLen(n)
	broken := false // by the end of a line, and nothing but blanks since
	for _, c := range text {
		switch {
		case digitValue(c) >= 0:
			digits = append(digits, c)
		case c == '+' || c == '/' || c == '-' || c == '_': // only what stands behind a secret makes one
			digits = append(digits, '/')
		case c == '\n' || c == '\r':
			broken = true
			continue
		case broken && (c == ' ' || c == '\t'):
			continue
		default:
			return ""
		}
		if broken = false; len(digits) == need {
			break
		}
	}
	out, err := base64.RawStdEncoding.DecodeString(string(digits))
	if err != nil || len(out) < n {
		return ""
	}
	return string(out)
}

// FindDigest returns the token whose secret has this SHA-256, with its service
// user, or nil. The token may be expired, or revoked not long ago. It serves who has
// found a secret and asks whose it is, and need not tell it for that.
func (d *Directory) FindDigest(digest [sha256.Size]byte) (*User, *Token) {
	plain := Hash(digest)
	for i := range len(d.peppers.keys) + 1 {
		hash := plain
		if i > 0 {
			hash = d.peppers.keys[i-1].mac(plain)
		}
		// The hash in the row of another pepper is no digest of a secret.
		row := d.users.owner(&hash)
		if row == nil {
			continue
		}
		owner := row.decode(d.sets)
		for j := range owner.Tokens {
			if t := &owner.Tokens[j]; t.Hash == hash && t.pepper == i {
				return owner, t
			}
		}
	}
	return nil, nil
}
