package access

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"strings"
)

// A secret is SecretPrefix + 43 base62 characters (256 random bits) + 6 base62 characters of CRC-32
// (IEEE) over everything before them. It consists of letters, digits and one underscore: a
// double-click selects all of it, and secret scanners find it.
const (
	SecretPrefix = "csu_"
	SecretLength = len(SecretPrefix) + randomDigits + checkDigits

	randomDigits = 43 // 62^43 > 2^256
	checkDigits  = 6  // 62^6 > 2^32
)

// SecretPattern is a regular expression (RE2) that finds every secret in text.
const SecretPattern = `csu_[0-9A-Za-z]{49}`

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// NewSecret returns a new secret with 256 random bits from the operating system.
func NewSecret() string {
	var seed [32]byte
	rand.Read(seed[:]) // never fails: crypto/rand ends the program instead
	return formatSecret(seed)
}

func formatSecret(seed [32]byte) string {
	body := SecretPrefix + digits62(new(big.Int).SetBytes(seed[:]), randomDigits)
	sum := crc32.ChecksumIEEE([]byte(body))
	return body + digits62(big.NewInt(int64(sum)), checkDigits)
}

// digits62 formats n in base 62, with leading zeros up to the given width. It changes n.
func digits62(n *big.Int, width int) string {
	out := make([]byte, width)
	base, rest := big.NewInt(62), new(big.Int)
	for i := width - 1; i >= 0; i-- {
		n.DivMod(n, base, rest)
		out[i] = base62[rest.Int64()]
	}
	return string(out)
}

// WellFormedSecret reports whether s has the form of a secret and the right checksum. It needs no
// store, so it distinguishes a typo from a wrong secret offline. Anyone can make a well-formed
// secret: the result does not show that a token with this secret exists.
func WellFormedSecret(s string) bool {
	if len(s) != SecretLength || !strings.HasPrefix(s, SecretPrefix) {
		return false
	}
	var check uint64
	for i := len(SecretPrefix); i < len(s); i++ {
		d := digitValue(s[i])
		if d < 0 {
			return false
		}
		if i >= len(s)-checkDigits {
			check = check*62 + uint64(d)
		}
	}
	// This is crc32.ChecksumIEEE for a string. Converting s to bytes would allocate.
	sum := ^uint32(0)
	for i := range len(s) - checkDigits {
		sum = crc32.IEEETable[byte(sum)^s[i]] ^ sum>>8
	}
	return check == uint64(^sum)
}

func digitValue(c byte) int { return int(digitValues[c]) }

// digitValues contains the value of each base62 digit, and -1 for all other bytes.
var digitValues = func() (values [256]int8) {
	for c := range values {
		values[c] = int8(strings.IndexByte(base62, byte(c)))
	}
	return values
}()

// Hint returns the last four characters of a secret. An admin can distinguish two tokens by them.
// They are part of the checksum, so they do not help to guess the secret.
func Hint(secret string) string {
	return secret[len(secret)-4:]
}

// Hash is the hash of a secret in the store: SHA-256(secret), or with a pepper HMAC-SHA-256(pepper,
// SHA-256(secret)). Secrets have 256 random bits, so a fast hash is the right one (NIST SP 800-63B,
// look-up secrets): a wrong guess costs a microsecond of CPU, not a second.
type Hash [sha256.Size]byte

// Peppers is a list of keys that are kept outside of the database. A thief of the database cannot
// check guesses without them. The first key hashes new secrets and all keys verify, so an operator
// can add or rotate a key while all tokens stay valid. The zero value means no pepper.
type Peppers struct {
	keys []pepper
}

type pepper struct {
	id  string
	key []byte
}

// minPepperBytes is the length of the shortest key. NIST SP 800-107 requires at least the wanted
// security strength, here 128 bits.
const minPepperBytes = 16

// ParsePeppers parses a pepper file, which has one key of at least 16 bytes on each line. It
// ignores blank lines and lines that begin with "#".
func ParsePeppers(text string) (Peppers, error) {
	var p Peppers
	for i, line := range strings.Split(text, "\n") {
		key := strings.TrimSpace(line)
		if key == "" || strings.HasPrefix(key, "#") {
			continue
		}
		if len(key) < minPepperBytes {
			return Peppers{}, fmt.Errorf("pepper on line %d has %d bytes, at least %d are needed:"+
				" make one with \"openssl rand -hex 32\"", i+1, len(key), minPepperBytes)
		}
		made := newPepper([]byte(key))
		if p.Knows(made.id) {
			return Peppers{}, fmt.Errorf("pepper on line %d is in the file twice", i+1)
		}
		p.keys = append(p.keys, made)
	}
	if len(p.keys) > maxPeppers {
		return Peppers{}, fmt.Errorf("the file holds %d keys, at most %d are accepted:"+
			" remove the oldest ones once no token uses them", len(p.keys), maxPeppers)
	}
	if len(p.keys) == 0 {
		return Peppers{}, errors.New("the file holds no key: put one key on a line," +
			" for example from \"openssl rand -hex 32\"")
	}
	return p, nil
}

func newPepper(key []byte) pepper {
	// The id identifies the key in a row of the database. It is a MAC of a constant, so it
	// reveals nothing about the key.
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("caddy-service-users pepper id"))
	return pepper{id: hex.EncodeToString(mac.Sum(nil)[:4]), key: key}
}

// mac returns HMAC-SHA-256 (RFC 2104) of one hash.
func (p *pepper) mac(h Hash) Hash {
	mac := hmac.New(sha256.New, p.key)
	mac.Write(h[:])
	return Hash(mac.Sum(nil))
}

// Knows reports whether the list contains the pepper with this id, so that hashes made with it can
// be verified. The id "" (no pepper) is always known.
func (p Peppers) Knows(id string) bool { return p.index(id) >= 0 }

// index returns the index in digests for the pepper with this id: 0 for no pepper, 1 + the index of
// the key otherwise. It returns -1 for an unknown pepper.
func (p Peppers) index(id string) int {
	if id == "" {
		return 0
	}
	for i := range p.keys {
		if p.keys[i].id == id {
			return i + 1
		}
	}
	return -1
}

// IDs returns the ids of the peppers in the order of the file, for messages, and for the key of a
// pool of stores.
func (p Peppers) IDs() []string {
	ids := make([]string, len(p.keys))
	for i := range p.keys {
		ids[i] = p.keys[i].id
	}
	return ids
}

// Hash returns the hash of a new secret, made with the current pepper, and the id of that pepper.
func (p Peppers) Hash(secret string) (Hash, string) {
	h := Hash(sha256.Sum256([]byte(secret)))
	if len(p.keys) == 0 {
		return h, ""
	}
	return p.keys[0].mac(h), p.keys[0].id
}

// maxPeppers bounds the work for a wrong secret, and lets digests stay on the stack.
const maxPeppers = 8

// digests contains the hashes of one secret: entry 0 without a pepper, entry i+1 with the key at
// index i.
type digests [maxPeppers + 1]Hash

// digest returns the hashes of a secret with every pepper. The work does not depend on the pepper
// with which a token was hashed. A secret longer than MaxTokenBytes, which no parser accepts, gets
// zero digests, which no token has.
func (p *Peppers) digest(secret string) (d digests) {
	var buf [MaxTokenBytes]byte // on the stack: converting the secret to bytes might allocate
	n := copy(buf[:], secret)
	if n < len(secret) {
		return d
	}
	d[0] = sha256.Sum256(buf[:n])
	for i := range p.keys {
		d[i+1] = p.keys[i].mac(d[0])
	}
	return d
}
