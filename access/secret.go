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

// A secret is SecretPrefix + 43 base62 characters (256 random bits) + 6 base62
// characters of CRC-32 (IEEE) over everything before them. Letters, digits and
// one underscore: a double-click selects it whole, and secret scanners find it.
const (
	SecretPrefix = "csu_"
	SecretLength = len(SecretPrefix) + randomDigits + checkDigits

	randomDigits = 43 // 62^43 > 2^256
	checkDigits  = 6  // 62^6 > 2^32
)

// SecretPattern is a regular expression (RE2) that finds every secret in text.
const SecretPattern = `csu_[0-9A-Za-z]{49}`

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// NewSecret makes a secret from 256 bits of the operating system's randomness.
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

// digits62 writes n in base 62 with leading zeros to the given width.
func digits62(n *big.Int, width int) string {
	out := make([]byte, width)
	base, rest := big.NewInt(62), new(big.Int)
	n = new(big.Int).Set(n)
	for i := width - 1; i >= 0; i-- {
		n.DivMod(n, base, rest)
		out[i] = base62[rest.Int64()]
	}
	return string(out)
}

// WellFormedSecret reports whether s has the form of a secret and a checksum
// that fits. It needs no store: a typo is told from a wrong secret offline.
// It is no proof of anything else.
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
	// crc32.ChecksumIEEE of a string, without the copy that it moves to the heap.
	sum := ^uint32(0)
	for i := range len(s) - checkDigits {
		sum = crc32.IEEETable[byte(sum)^s[i]] ^ sum>>8
	}
	return check == uint64(^sum)
}

func digitValue(c byte) int { return int(digitValues[c]) }

// digitValues are the places of characters in base62, or -1.
var digitValues = func() (values [256]int8) {
	for c := range values {
		values[c] = int8(strings.IndexByte(base62, byte(c)))
	}
	return values
}()

// Hint returns the last four characters of a secret: enough for an admin to
// tell two tokens apart, useless to anybody else (they belong to the checksum).
func Hint(secret string) string {
	if len(secret) < 4 {
		return ""
	}
	return secret[len(secret)-4:]
}

// Hash is what the store keeps of a secret: SHA-256(secret), or with a pepper
// HMAC-SHA-256(pepper, SHA-256(secret)). The secrets carry 256 random bits, so
// a fast hash is the right one (NIST SP 800-63B, look-up secrets): a wrong
// guess costs a microsecond, not a second of CPU.
type Hash [sha256.Size]byte

// Peppers is a list of keys that are kept outside of the database, so that a
// stolen database cannot be used to check guesses. The first one hashes new
// secrets, all of them verify, so that one can be added or rotated without a
// token dying. The zero value means no pepper.
type Peppers struct {
	keys []pepper
}

type pepper struct {
	id           string
	inner, outer [sha256.BlockSize]byte // the key, padded and masked as RFC 2104 says
}

// minPepperBytes is the shortest key accepted; NIST SP 800-107 asks for at
// least the security strength wanted, here 128 bits.
const minPepperBytes = 16

// ParsePeppers reads a pepper file: one key a line, at least 16 bytes, blank
// lines and lines that begin with # ignored.
func ParsePeppers(text string) (Peppers, error) {
	var p Peppers
	for i, line := range strings.Split(text, "\n") {
		key := strings.TrimSpace(line)
		if key == "" || strings.HasPrefix(key, "#") {
			continue
		}
		if len(key) < minPepperBytes {
			return Peppers{}, fmt.Errorf("pepper on line %d has %d bytes, at least %d are needed: make one with \"openssl rand -hex 32\"", i+1, len(key), minPepperBytes)
		}
		made := newPepper([]byte(key))
		for _, other := range p.keys {
			if other.id == made.id {
				return Peppers{}, fmt.Errorf("pepper on line %d is in the file twice", i+1)
			}
		}
		p.keys = append(p.keys, made)
	}
	if len(p.keys) > maxPeppers {
		return Peppers{}, fmt.Errorf("the file holds %d keys, at most %d are accepted: remove the oldest ones once no token uses them", len(p.keys), maxPeppers)
	}
	if len(p.keys) == 0 {
		return Peppers{}, errors.New("the file holds no key: put one key on a line, for example from \"openssl rand -hex 32\"")
	}
	return p, nil
}

func newPepper(key []byte) pepper {
	// The id names the key in a row of the database. It is a MAC of a constant,
	// so it tells nothing about the key.
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("caddy-service-users pepper id"))
	p := pepper{id: hex.EncodeToString(mac.Sum(nil)[:4])}
	if len(key) > sha256.BlockSize {
		sum := sha256.Sum256(key)
		key = sum[:]
	}
	copy(p.inner[:], key)
	copy(p.outer[:], key)
	for i := range p.inner {
		p.inner[i] ^= 0x36
		p.outer[i] ^= 0x5c
	}
	return p
}

// mac is HMAC-SHA-256 (RFC 2104) of one hash, on the stack: crypto/hmac costs
// five allocations and eight times the time.
func (p *pepper) mac(h Hash) Hash {
	var block [sha256.BlockSize + sha256.Size]byte
	copy(block[:], p.inner[:])
	copy(block[sha256.BlockSize:], h[:])
	h = sha256.Sum256(block[:])
	copy(block[:], p.outer[:])
	copy(block[sha256.BlockSize:], h[:])
	return sha256.Sum256(block[:])
}

// Current returns the id of the pepper that hashes new secrets; "" is none.
func (p Peppers) Current() string {
	if len(p.keys) == 0 {
		return ""
	}
	return p.keys[0].id
}

// Knows reports whether a hash made with the pepper of this id can be verified.
// The id "" (no pepper) is always known.
func (p Peppers) Knows(id string) bool { return p.index(id) >= 0 }

// index is 0 for no pepper and 1 + the key's place otherwise; -1 is unknown.
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

// IDs lists the ids of the peppers in the order of the file, for the key of a
// pool and for messages.
func (p Peppers) IDs() []string {
	ids := make([]string, len(p.keys))
	for i := range p.keys {
		ids[i] = p.keys[i].id
	}
	return ids
}

// Hash hashes a new secret with the current pepper and returns the pepper's id
// with it.
func (p Peppers) Hash(secret string) (Hash, string) {
	h := Hash(sha256.Sum256([]byte(secret)))
	if len(p.keys) == 0 {
		return h, ""
	}
	return p.keys[0].mac(h), p.keys[0].id
}

// maxPeppers bounds the work of a guess and keeps digests on the stack.
const maxPeppers = 8

// digests holds the hash of one presented secret under every pepper; entry 0
// is the one without.
type digests [maxPeppers + 1]Hash

// digest computes all of them, whoever is asking, so that the work does not
// depend on which pepper a user's token was hashed with. A secret longer than
// MaxTokenBytes, which no parser lets through, gets digests that no token has.
func (p *Peppers) digest(secret string) (d digests) {
	var buf [MaxTokenBytes]byte
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
