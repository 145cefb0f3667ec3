package access

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"slices"
)

// FoundSecret is a secret in a text.
type FoundSecret struct {
	Offset int    // the position where the secret begins, in bytes
	Base64 bool   // the secret is encoded, as in the value of an Authorization header with Basic
	Secret string `json:"-"`
}

// MaxFoundBytes is the most bytes that a secret may occupy in a text, from its offset on. A secret
// in base64 that is broken into lines needs the most.
const MaxFoundBytes = 256

// FindSecrets returns every secret in a text, in the order of the text: plain, and inside of
// base64, standard or URL-safe, with any bytes before it. It ignores a text that has the form of a
// secret but the wrong checksum.
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

// encodedPrefixes contains the three base64 forms of SecretPrefix. Base64 encodes groups of three
// bytes, and the prefix may begin at any of the three places in a group.
var encodedPrefixes = []struct {
	marker string // the base64 characters that depend on bytes of the prefix only
	skip   int    // the number of characters at the start of marker that belong to an earlier group
	known  string // the bytes of the prefix in that earlier group
}{
	{"Y3N1X", 0, ""},
	{"NzdV", 2, "cs"},
	{"jc3Vf", 1, "c"},
}

// eachIndex calls f with the position of each marker in a text.
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

// decodeSome decodes n bytes of the base64 at the beginning of a text. It skips line breaks and the
// indentation after them. It returns "" if the text does not begin with enough base64.
func decodeSome(text []byte, n int) string {
	digits := make([]byte, 0, 2*SecretLength)
	need := base64.RawStdEncoding.EncodedLen(n)
	broken := false // a line has ended, and only blanks have followed
	for _, c := range text {
		switch {
		case base64Values[c] > 0 || c == 'A': // the digit A has the value 0
			digits = append(digits, c)
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
	if len(digits) < need {
		return ""
	}
	return string(decodeBase64(make([]byte, 0, need), digits))
}

// FindDigest returns the token whose secret has this SHA-256, without its groups, and its service
// user, without its groups and tokens, or nil. The token may be expired, or revoked recently. A
// caller that found a leaked secret can identify its token by digest, without sending the secret.
func (d *Directory) FindDigest(digest [sha256.Size]byte) (*User, *Token) {
	plain := Hash(digest)
	for i := range len(d.peppers.keys) + 1 {
		hash := plain
		if i > 0 {
			hash = d.peppers.keys[i-1].mac(plain)
		}
		// The token must have pepper i. Otherwise a caller could find a token by the
		// peppered hash from its row, without the secret.
		row := d.users.owner(&hash)
		if row == nil {
			continue
		}
		a := row.account()
		for range a.count {
			if t := a.tokens.token(); *t.hash == hash && t.pepper == i {
				return row.profile(), new(t.decode())
			}
		}
	}
	return nil, nil
}
