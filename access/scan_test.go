package access

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// found describes what stands in a text: offsets, and whether it is encoded.
func found(text string, secrets ...string) string {
	var out []string
	for _, f := range FindSecrets([]byte(text)) {
		how := "plain"
		if f.Base64 {
			how = "base64"
		}
		out = append(out, fmt.Sprintf("%d %s #%d", f.Offset, how, slices.Index(secrets, f.Secret)))
	}
	return strings.Join(out, ", ")
}

func TestFindSecrets(t *testing.T) {
	const (
		a = "csu_00000000000000000000000000000000000000000000nyr1a"
		b = "csu_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp12TtPM6"
	)
	std, raw, url := base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding
	basic := std.EncodeToString([]byte("service_37gS6Q5p7tskU13NG9SO5lXlYTc:" + a))
	wrap := func(s, with string, every int) string {
		var lines []string
		for chunk := range slices.Chunk([]byte(s), every) {
			lines = append(lines, string(chunk))
		}
		return strings.Join(lines, with)
	}
	for name, row := range map[string]struct{ text, want string }{
		"nothing":                       {"", ""},
		"alone":                         {a, "0 plain #0"},
		"two":                           {"x=" + a + "\ny=" + b, "2 plain #0, 58 plain #1"},
		"side by side":                  {a + b, "0 plain #0, 53 plain #1"},
		"inside of a word":              {"zz" + a + "zz", "2 plain #0"},
		"quoted":                        {`{"token":"` + a + `"}`, "10 plain #0"},
		"in a URL":                      {"https://id:" + a + "@host/", "11 plain #0"},
		"a wrong checksum":              {testkit.Altered(a), ""},
		"another case":                  {strings.ToUpper(a), ""},
		"too short":                     {a[:len(a)-1], ""},
		"only its prefix":               {"csu_ csu_csu_", ""},
		"behind a prefix":               {"csu_" + a, "4 plain #0"},
		"behind a false one":            {b[:30] + a, "30 plain #0"},
		"with a line break":             {a[:20] + "\n" + a[20:], ""},
		"base64":                        {std.EncodeToString([]byte(a)), "0 base64 #0"},
		"base64 without padding":        {raw.EncodeToString([]byte(a)), "0 base64 #0"},
		"base64, one before":            {std.EncodeToString([]byte(":" + a)), "2 base64 #0"},
		"base64, two before":            {std.EncodeToString([]byte("x:" + a)), "3 base64 #0"},
		"base64, three before":          {std.EncodeToString([]byte("id:" + b)), "4 base64 #1"},
		"base64, text behind":           {std.EncodeToString([]byte("x:" + a + "\n")), "3 base64 #0"},
		"base64 for URLs":               {url.EncodeToString([]byte("???:" + b + "???")), "6 base64 #1"},
		"base64 cut at its end":         {raw.EncodeToString([]byte(a))[:70], ""},
		"base64, a wrong checksum":      {std.EncodeToString([]byte(testkit.Altered(a))), ""},
		"a Basic header":                {"Authorization: Basic " + basic + "\r\n", "69 base64 #0"},
		"base64 behind a slash":         {"/x/" + basic, "51 base64 #0"},
		"base64 in lines":               {wrap(basic, "\n", 76), "48 base64 #0"},
		"base64 in lines, CRLF":         {wrap(basic, "\r\n", 64), "48 base64 #0"},
		"base64 in indented lines":      {wrap(basic, "\n\t  ", 60), "48 base64 #0"},
		"base64 in very many lines":     {wrap(basic, "\n              ", 56), "48 base64 #0"},
		"base64, lines too far":         {wrap(basic, "\n"+strings.Repeat(" ", 300), 56), ""},
		"base64 with a space":           {wrap(basic, " ", 60), ""},
		"base64 with a space in a line": {wrap(basic[:100], "\n", 60) + " " + basic[100:], ""},
		"base64 first":                  {basic + " " + b, "48 base64 #0, 121 plain #1"},
		"base64 of base64":              {std.EncodeToString([]byte(basic)), ""},
		"both":                          {"t: " + b + "\nh: " + basic, "3 plain #1, 108 base64 #0"},
	} {
		if got := found(row.text, a, b); got != row.want {
			t.Errorf("%s: got %q, want %q", name, got, row.want)
		}
	}
}

// TestFindSecretsEverywhere: whatever stands around a secret, however many bytes
// stand before it in the same base64, it is found, and within MaxFoundBytes.
func TestFindSecretsEverywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := formatSecret([32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed")))
		before := rapid.SliceOfN(rapid.Byte(), 0, 80).Draw(t, "before")
		behind := rapid.SliceOfN(rapid.Byte(), 0, 80).Draw(t, "behind")
		text := slices.Concat(before, []byte(secret), behind)
		encoding := rapid.SampledFrom([]*base64.Encoding{nil, base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding}).Draw(t, "encoding")
		if encoding != nil {
			text = []byte("Basic " + encoding.EncodeToString(text) + "\n")
		}
		list := FindSecrets(text)
		if len(list) != 1 || list[0].Secret != secret || list[0].Base64 != (encoding != nil) {
			t.Fatalf("got %v in %q, want %q", list, text, secret)
		}
		at := list[0].Offset
		if again := FindSecrets(text[at:min(len(text), at+MaxFoundBytes)]); len(again) != 1 || again[0].Offset != 0 {
			t.Fatalf("got %v from the offset on, want it there", again)
		}
	})
}

// TestFindSecretsBeforeBinary: base64 mixes the last character of a secret with
// what stands behind it.
func TestFindSecretsBeforeBinary(t *testing.T) {
	for n := range 200 {
		for _, before := range []string{"", "x", "xx"} {
			for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawURLEncoding} {
				text := encoding.EncodeToString([]byte(before + secret(n) + "\xff\xbf"))
				if list := FindSecrets([]byte(text)); len(list) != 1 || list[0].Secret != secret(n) {
					t.Errorf("%s: got %v, want %s", text, list, secret(n))
				}
			}
		}
	}
}

// TestFindSecretsAsThePattern: what is found plain is what the published pattern
// matches with a right checksum.
func TestFindSecretsAsThePattern(t *testing.T) {
	pattern := regexp.MustCompile(SecretPattern)
	rapid.Check(t, func(t *rapid.T) {
		pieces := rapid.SliceOf(rapid.SampledFrom([]string{
			"csu_", "csu", "_", " ", "0", "nyr1a", "\x00", "é", strings.Repeat("0", 44),
			"csu_00000000000000000000000000000000000000000000nyr1a", "csu_00000000000000000000000000000000000000000000nyr1b",
		})).Draw(t, "pieces")
		text := strings.Join(pieces, "")
		var want []string
		for at := range text {
			if m := pattern.FindStringIndex(text[at:]); m != nil && m[0] == 0 && WellFormedSecret(text[at:at+m[1]]) {
				want = append(want, fmt.Sprintf("%d plain #0", at))
			}
		}
		if got := found(text, formatSecret([32]byte{})); got != strings.Join(want, ", ") {
			t.Fatalf("%q: got %q, want %q", text, got, want)
		}
	})
}

func FuzzFindSecrets(f *testing.F) {
	f.Add([]byte("csu_00000000000000000000000000000000000000000000nyr1a"))
	f.Add([]byte(base64.StdEncoding.EncodeToString([]byte("a:csu_00000000000000000000000000000000000000000000nyr1a"))))
	f.Fuzz(func(t *testing.T, text []byte) {
		last := -1
		for _, s := range FindSecrets(text) {
			if !WellFormedSecret(s.Secret) || s.Offset <= last || s.Offset >= len(text) {
				t.Errorf("got %+v %s behind offset %d in %q", s, s.Secret, last, text)
			}
			last = s.Offset
		}
	})
}

// TestFindDigest: a token is found by the SHA-256 of its secret under whichever
// pepper it was hashed, whatever has become of it, and by nothing else.
func TestFindDigest(t *testing.T) {
	old, err := ParsePeppers(strings.Repeat("o", 32))
	if err != nil {
		t.Fatal(err)
	}
	both, err := ParsePeppers(strings.Repeat("n", 32) + "\n" + strings.Repeat("o", 32))
	if err != nil {
		t.Fatal(err)
	}
	lost, err := ParsePeppers(strings.Repeat("l", 32))
	if err != nil {
		t.Fatal(err)
	}
	u := user(1)
	u.Active, u.Tokens = false, nil
	for i, peppers := range []Peppers{{}, old, both, lost} {
		token := Token{ID: fmt.Sprint("token_", i), ExpiresAt: 1, Revoked: i == 0}
		token.Hash, token.Pepper = peppers.Hash(secret(i))
		u.Tokens = append(u.Tokens, token)
	}
	d := with(t, NewDirectory(both, ""), Changes{Revision: 1, Users: []User{u}})
	for i, want := range []string{"token_0", "token_1", "token_2", ""} {
		got := ""
		if u, token := d.FindDigest(sha256.Sum256([]byte(secret(i)))); token != nil {
			if got = token.ID; u.ID != user(1).ID {
				t.Errorf("%s: got the service user %s, want %s", got, u.ID, login(1))
			}
		}
		if got != want {
			t.Errorf("secret %d: got %q, want %q", i, got, want)
		}
	}
	for i := 1; i < 4; i++ { // as it stands in a stolen database
		if _, token := d.FindDigest(u.Tokens[i].Hash); token != nil {
			t.Errorf("the hash of token %d: got %s, want none", i, token.ID)
		}
	}
	if _, token := d.FindDigest([32]byte{}); token != nil {
		t.Errorf("no digest: got %s, want none", token.ID)
	}
	if _, token := new(Directory).FindDigest(sha256.Sum256([]byte(secret(0)))); token != nil {
		t.Errorf("an empty directory: got %s, want none", token.ID)
	}
}

// TestFindDigestOfMany: the other tokens of a service user cost no memory. A refused secret that is right
// is looked for by its digest, at each request.
func TestFindDigestOfMany(t *testing.T) {
	u := user(1)
	u.Tokens = nil
	for i := range 100 {
		u.Tokens = append(u.Tokens, Token{ID: fmt.Sprint("token_", i), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		u.Tokens[i].Hash, u.Tokens[i].Pepper = Peppers{}.Hash(secret(i))
	}
	allocations := func(tokens int) float64 {
		u := u
		u.Tokens = u.Tokens[:tokens]
		d := with(t, NewDirectory(Peppers{}, ""), Changes{Revision: 1, Users: []User{u}})
		digest := sha256.Sum256([]byte(secret(tokens - 1)))
		return testing.AllocsPerRun(10, func() {
			if owner, found := d.FindDigest(digest); found == nil || found.ID != u.Tokens[tokens-1].ID || owner.Name != u.Name {
				t.Fatalf("got %v, %v, want the token %d", owner, found, tokens-1)
			}
		})
	}
	if one, many := allocations(1), allocations(100); many > one {
		t.Errorf("got %v allocations for 100 tokens and %v for one, want as many", many, one)
	}
}

// TestScannerPatterns: the patterns in examples/secret-scanning match every
// secret, whole, and are the one that is documented.
func TestScannerPatterns(t *testing.T) {
	for file, row := range map[string]struct {
		line string // the pattern is its group
		want int    // how often it stands there
	}{
		"gitleaks.toml":          {`(?m)^regex = '''(.*)'''$`, 1},
		"trufflehog.yaml":        {`(?m)^ +token: '(.*)'$`, 1},
		"caddy_service_users.py": {`re\.compile\(r"(.*)"\)`, 1},
		"README.md":              {"(?m)^(csu_\\[.*)$", 1},
	} {
		text, err := os.ReadFile(filepath.Join("../examples/secret-scanning", file))
		if err != nil {
			t.Error(err)
			continue
		}
		matches := regexp.MustCompile(row.line).FindAllStringSubmatch(string(text), -1)
		if len(matches) != row.want {
			t.Errorf("%s: got %d patterns, want %d", file, len(matches), row.want)
		}
		for _, m := range matches {
			pattern, err := regexp.Compile(m[1])
			if err != nil || !strings.Contains(m[1], SecretPattern) {
				t.Errorf("%s: got the pattern %s (%v), want %s in it", file, m[1], err, SecretPattern)
				continue
			}
			for range 100 {
				secret := NewSecret()
				for _, around := range []string{"%s", "TOKEN=%s\n", `{"token": "%s"}`, "-u id:%s", "https://id:%s@host/", "\t'%s';"} {
					text := fmt.Sprintf(around, secret)
					if got := pattern.FindString(text); !strings.Contains(got, secret) {
						t.Fatalf("%s: got %q in %q, want the secret", file, got, text)
					}
				}
				if got := pattern.FindString("token=" + secret[:SecretLength-1]); got != "" {
					t.Fatalf("%s: got %q where no secret is", file, got)
				}
			}
		}
	}
}
