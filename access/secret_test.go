package access

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNewSecret(t *testing.T) {
	whole := regexp.MustCompile("^" + SecretPattern + "$")
	within := regexp.MustCompile(SecretPattern)
	seen := make(map[string]bool)
	for range 10_000 {
		s := NewSecret()
		if len(s) != SecretLength || !whole.MatchString(s) || !WellFormedSecret(s) || !validToken(s) {
			t.Fatalf("got %q, want a well-formed secret", s)
		}
		if got := within.FindString("token=" + s + "\n"); got != s {
			t.Fatalf("got %q from a text that holds %q", got, s)
		}
		if seen[s] {
			t.Fatalf("got %q twice", s)
		}
		seen[s] = true
		if got := Hint(s); len(got) != 4 || !strings.HasSuffix(s, got) {
			t.Fatalf("got the hint %q of %q", got, s)
		}
	}
}

// TestFormatSecret pins the format: the numbers come from another program.
func TestFormatSecret(t *testing.T) {
	ones := [32]byte(slices.Repeat([]byte{0xff}, 32))
	for _, row := range []struct {
		seed [32]byte
		want string
	}{
		{[32]byte{}, "csu_00000000000000000000000000000000000000000000nyr1a"},
		{ones, "csu_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp12TtPM6"},
	} {
		if got := formatSecret(row.seed); got != row.want {
			t.Errorf("seed %x: got %s, want %s", row.seed, got, row.want)
		}
	}
}

// checksum is the CRC-32 of a body in base 62, by way of math/big, whose digits
// have the two cases the other way round.
func checksum(body string) string {
	digits := big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))).Text(62)
	swapped := strings.Map(func(r rune) rune {
		if r >= 'A' {
			return r ^ 0x20
		}
		return r
	}, digits)
	return strings.Repeat("0", 6-len(swapped)) + swapped
}

func TestWellFormedSecret(t *testing.T) {
	seed := rapid.SliceOfN(rapid.Byte(), 32, 32)
	rapid.Check(t, func(t *rapid.T) {
		s := formatSecret([32]byte(seed.Draw(t, "seed")))
		if body := s[:len(s)-6]; s != body+checksum(body) || !WellFormedSecret(s) {
			t.Fatalf("got %s, want the checksum %s", s, checksum(body))
		}
		for i := range len(s) {
			for c := range 256 {
				changed := s[:i] + string([]byte{byte(c)}) + s[i+1:]
				if changed != s && WellFormedSecret(changed) {
					t.Fatalf("%q with 0x%02x at %d is well-formed", s, byte(c), i)
				}
			}
			if i > 0 && s[i] != s[i-1] && WellFormedSecret(s[:i-1]+s[i:i+1]+s[i-1:i]+s[i+1:]) {
				t.Fatalf("%q with %d and %d exchanged is well-formed", s, i-1, i)
			}
			if WellFormedSecret(s[:i]) || WellFormedSecret(s[i+1:]) || WellFormedSecret(s[:i]+s[i+1:]) || WellFormedSecret(s[:i]+"0"+s[i:]) {
				t.Fatalf("%q, cut or stretched at %d, is well-formed", s, i)
			}
		}
	})
	for _, s := range []string{"", "csu_", strings.ToUpper(secret(1)), " " + secret(1), secret(1) + "\n", strings.Repeat("z", SecretLength)} {
		if WellFormedSecret(s) {
			t.Errorf("%q is well-formed", s)
		}
	}
	// The checksum of another prefix fits the rest, but it is no secret of ours.
	other := "abc_" + secret(1)[4:SecretLength-6]
	if WellFormedSecret(other + checksum(other)) {
		t.Errorf("%q is well-formed", other+checksum(other))
	}
}

func TestPepperHash(t *testing.T) {
	h := sha256.Sum256([]byte(secret(1)))
	if got, id := (Peppers{}).Hash(secret(1)); got != h || id != "" {
		t.Errorf("without a pepper: got %x, %q, want %x", got, id, h)
	}
	for _, size := range []int{16, 31, 32, 33, 55, 63, 64, 65, 128, 1000} {
		key := strings.Repeat("k", size-1) + "!"
		p, err := ParsePeppers(key)
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write(h[:])
		got, id := p.Hash(secret(1))
		if want := Hash(mac.Sum(nil)); got != want {
			t.Errorf("key of %d bytes: got %x, want %x", size, got, want)
		}
		if id == "" || id != current(p) || !p.Knows(id) || strings.Contains(key, id) {
			t.Errorf("key of %d bytes: got the id %q, current %q", size, id, current(p))
		}
		if digest := p.digest(secret(1)); digest[0] != h || digest[1] != got || digest[2] != (Hash{}) {
			t.Errorf("key of %d bytes: got the digests %x", size, digest[:3])
		}
	}
}

// TestDigestOfLongSecret: what is longer than any secret belongs to no token,
// not even to one whose secret it begins with.
func TestDigestOfLongSecret(t *testing.T) {
	longest := strings.Repeat("x", MaxTokenBytes)
	hash, _ := Peppers{}.Hash(longest)
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Users: []User{
		{Profile: Profile{ID: "a", Role: Member, Active: true}, Tokens: []Token{{ID: "token_1", Hash: hash}}},
	}})
	for _, id := range []string{"a", ""} {
		if _, got := d.Authenticate(Credential{id, longest}, here, 0); got != Granted {
			t.Errorf("id %q, secret of %d bytes: got %v, want %v", id, len(longest), got, Granted)
		}
		if _, got := d.Authenticate(Credential{id, longest + "x"}, here, 0); got != BadChecksum {
			t.Errorf("id %q, secret of %d bytes: got %v, want %v", id, len(longest)+1, got, BadChecksum)
		}
	}
}

const (
	oldKey   = "0123456789abcdef-old"
	newKey   = "0123456789abcdef-new"
	otherKey = "0123456789abcdef-other"
)

func TestParsePeppers(t *testing.T) {
	nine := ""
	for i := range 9 {
		nine += fmt.Sprintf("0123456789abcdef%d\n", i)
	}
	for _, row := range []struct{ text, want string }{
		{"", "holds no key"},
		{"\n \n# a comment\n", "holds no key"},
		{"short", "line 1 has 5 bytes, at least 16"},
		{"# new\n" + newKey + "\n\n123456789012345\n", "line 4 has 15 bytes"},
		{newKey + "\n" + oldKey + "\n  " + newKey + "  \n", "line 3 is in the file twice"},
		{nine, "holds 9 keys, at most 8"},
	} {
		p, err := ParsePeppers(row.text)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: got %v, want %q in it", row.text, err, row.want)
		}
		if err != nil && (strings.Contains(err.Error(), newKey) || current(p) != "") {
			t.Errorf("%q: got %v and a pepper %q, want neither a key nor a pepper", row.text, err, current(p))
		}
	}
	p, err := ParsePeppers("# current\r\n" + newKey + "\r\n\r\n  " + oldKey + "\t\n" + oldKey + " with spaces")
	if err != nil {
		t.Fatal(err)
	}
	alone, _ := ParsePeppers(newKey)
	if ids := p.IDs(); len(ids) != 3 || ids[0] != current(p) || current(p) != current(alone) || ids[1] == ids[2] {
		t.Errorf("got the ids %q and %q as the current one, want that of %q", ids, current(p), newKey)
	}
	if !p.Knows("") || p.Knows("00000000") || !(Peppers{}).Knows("") || (Peppers{}).Knows(current(p)) || current(Peppers{}) != "" {
		t.Error("only the listed peppers, and none at all, are known")
	}
	if _, err := ParsePeppers(nine[:8*18]); err != nil {
		t.Errorf("eight keys: got %v", err)
	}
}

func TestPepperRotation(t *testing.T) {
	peppers := func(text string) (p Peppers) {
		if text != "" {
			var err error
			if p, err = ParsePeppers(text); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	for _, row := range []struct {
		hashed, file string
		want         Reason
	}{
		{"", "", Granted},
		{"", newKey, Granted},
		{"", newKey + "\n" + oldKey, Granted},
		{oldKey, oldKey, Granted},
		{oldKey, newKey + "\n" + oldKey, Granted},
		{oldKey, otherKey + "\n" + newKey + "\n" + oldKey, Granted},
		{oldKey, newKey, WrongSecret},
		{oldKey, newKey + "\n" + otherKey, WrongSecret},
		{oldKey, "", WrongSecret},
	} {
		hash, id := peppers(row.hashed).Hash(secret(1))
		u := user(1)
		u.Tokens = []Token{{ID: "token_1", Hash: hash, Pepper: id}}
		d := with(t, NewDirectory(peppers(row.file), ""), Changes{Users: []User{u}})
		for _, c := range []Credential{login(1), {Secret: secret(1)}} {
			if _, got := d.Authenticate(c, here, 0); got != row.want {
				t.Errorf("hashed with %q, file %q, id %q: got %v, want %v", row.hashed, row.file, c.ID, got, row.want)
			}
		}
	}
	// A hash whose pepper is misnamed fits none: neither as unpeppered nor by another key.
	bare, _ := Peppers{}.Hash(secret(1))
	hash, _ := peppers(oldKey).Hash(secret(1))
	both := peppers(newKey + "\n" + oldKey)
	for _, token := range []Token{
		{ID: "token_1", Hash: hash, Pepper: ""},
		{ID: "token_1", Hash: hash, Pepper: current(both)},
		{ID: "token_1", Hash: hash, Pepper: "00000000"},
		{ID: "token_1", Hash: bare, Pepper: current(both)},
		{ID: "token_1", Hash: bare, Pepper: "00000000"},
	} {
		u := user(1)
		u.Tokens = []Token{token}
		d := with(t, NewDirectory(both, ""), Changes{Users: []User{u}})
		for _, c := range []Credential{login(1), {Secret: secret(1)}} {
			if _, got := d.Authenticate(c, here, 0); got != WrongSecret {
				t.Errorf("hash %x, pepper named %q, id %q: got %v, want %v", token.Hash[:4], token.Pepper, c.ID, got, WrongSecret)
			}
		}
	}
}

// current returns the id of the pepper that hashes new secrets.
func current(p Peppers) string {
	_, id := p.Hash("")
	return id
}
