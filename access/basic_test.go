package access

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestBasicCases(t *testing.T) {
	hash, _ := Peppers{}.Hash("tok")
	d := with(t, NewDirectory(Peppers{}, ""), Changes{Users: []User{
		{Profile: Profile{ID: "svc-1", Role: Member, Active: true}, Tokens: []Token{{ID: "token_1", Hash: hash}}},
	}})
	for _, row := range tsv(t, "basic.tsv") {
		value := row[0]
		if strings.HasPrefix(value, "@") || strings.Contains(value, "\x1f") {
			continue // a credential elsewhere, or several fields: not for the parser
		}
		c, ok := ParseBasic(value)
		got := "401"
		if ok {
			got = "accept " + c.ID + " " + c.Secret
		}
		if ok && row[1] == "401" {
			// The form of an id is met as well by an id that is not known.
			if _, why := d.Authenticate(c, here, 0); why == UnknownID {
				continue
			}
		}
		if got != row[1] {
			t.Errorf("%q: got %s, want %s (%s)", value, got, row[1], row[2])
		}
	}
}

func TestParseBasic(t *testing.T) {
	id, tok := strings.Repeat("i", MaxLoginBytes), strings.Repeat("t", MaxTokenBytes)
	visible := ""
	for c := byte(0x21); c <= 0x7e; c++ {
		visible += string(rune(c))
	}
	for _, want := range []Credential{
		{"a", "b"}, {id, tok}, {"a", ":"}, {"a", "::b:"}, {"a", visible}, {"-._@09AZaz", "x"}, {"client@old.example", "="},
	} {
		if got, ok := ParseBasic(basic(want.ID, want.Secret)); !ok || got != want {
			t.Errorf("%q: got %q, %q, %v", want.ID+":"+want.Secret, got.ID, got.Secret, ok)
		}
	}
	for _, c := range []Credential{
		{"", ""}, {"", "b"}, {"a", ""}, {id + "i", "b"}, {"a", tok + "t"}, {"a b", "c"}, {"a", "b c"}, {"a", " b"}, {"a", "b "}, {"a", "b\n"}, {"a\x00", "b"},
		{"a", "b\x00"}, {"a", "\x7f"}, {"a", "é"}, {"ä", "b"}, {"a/b", "c"}, {"a%41", "b"}, {"a,b", "c"}, {"{a}", "b"}, {"a+b", "c"}, {"\ufeffa", "b"},
	} {
		if got, ok := ParseBasic(basic(c.ID, c.Secret)); ok || got != (Credential{}) {
			t.Errorf("%q: got %q, %q, want a refusal", c.ID+":"+c.Secret, got.ID, got.Secret)
		}
	}
	for _, value := range []string{
		"basic", "basic ", " Basic YTpi", "Basic YTpi ", "Basic  YTpi", "Basic\u00a0YTpi", "BasicYTpi", "Basi YTpi", "Basic, YTpi", "Basic=YTpi",
		"Basic YTpi\n", "Basic YT\r\npi", "Basic \nYTpi", "Basic YTp", "Basic YTpi=", "Basic YTpi====", "Basic YTpiY", "Basic YTpiYw", "Basic YTpiYw=",
		"Basic YTpiYx==", // stray bits behind the last byte
		"Basic YTpi YTpi", "Basic YTpi,YTpi", "Basic YTp_Pw==", "Basic YTp-Pg==", "Basic =", "Basic ====", "Basic YTpi\x00", "Ｂasic YTpi",
		"Basic " + strings.Repeat("YTpi", MaxCredentialBytes),
	} {
		if got, ok := ParseBasic(value); ok {
			t.Errorf("%.60q: got %q, %q, want a refusal", value, got.ID, got.Secret)
		}
	}
}

func TestParseBearer(t *testing.T) {
	longest := strings.Repeat("t", MaxTokenBytes)
	for _, row := range []struct{ value, want string }{ // "" is refused
		{"Bearer tok", "tok"},
		{"bearer tok", "tok"},
		{"BEARER tok", "tok"},
		{"Bearer " + secret(1), secret(1)},
		{"Bearer a:b", "a:b"},
		{"Bearer YTpi==", "YTpi=="},
		{"Bearer " + longest, longest},

		{"Bearer " + longest + "t", ""}, {"Bearer", ""}, {"Bearer ", ""}, {"Bearer  tok", ""}, {"Bearer tok ", ""}, {"Bearer\ttok", ""}, {" Bearer tok", ""},
		{"Bearer to k", ""}, {"Bearer tok\n", ""}, {"Bearer t\x00k", ""}, {"Bearer tök", ""}, {"Bearer tok\x7f", ""}, {"Bearertok", ""},
		{"Basic YTpi", ""}, {"Token tok", ""}, {"tok", ""}, {"", ""}, {"Bearer " + strings.Repeat("t", 2*MaxCredentialBytes), ""},
	} {
		got, ok := ParseBearer(row.value)
		if got != (Credential{Secret: row.want}) || ok != (row.want != "") {
			t.Errorf("%.60q: got %q, %q, %v, want %q", row.value, got.ID, got.Secret, ok, row.want)
		}
	}
}

func TestValidLogin(t *testing.T) {
	for c := range 256 {
		s := "a" + string([]byte{byte(c)})
		want := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@-", byte(c)) >= 0
		if got := ValidLogin(s); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
	if ValidLogin("") || !ValidLogin(strings.Repeat("a", 64)) || ValidLogin(strings.Repeat("a", 65)) {
		t.Error("a login has 1 to 64 characters")
	}
}

// checkBasicPromises compares ParseBasic with net/http, which is more lenient,
// and with its own spelling of what it read.
func checkBasicPromises(value string) error {
	c, ok := ParseBasic(value)
	if !ok {
		return nil
	}
	r := http.Request{Header: http.Header{"Authorization": {value}}}
	if id, secret, ok := r.BasicAuth(); !ok || id != c.ID || secret != c.Secret {
		return fmt.Errorf("%q: got %q, %q, but net/http reads %q, %q, %v", value, c.ID, c.Secret, id, secret, ok)
	}
	if again := basic(c.ID, c.Secret); again[6:] != value[6:] || !strings.EqualFold(again[:6], value[:6]) {
		return fmt.Errorf("%q: accepted, but the one spelling is %q", value, again)
	}
	return nil
}

func TestBasicProperties(t *testing.T) {
	piece := rapid.SampledFrom([]string{"a", "svc-1", ":", ":", "tok", "@", "_", " ", "\n", "é", "\x00", "", "="})
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(piece, 0, 6).Draw(t, "text"), "")
		value := []byte(rapid.SampledFrom([]string{"Basic ", "basic ", "BASIC "}).Draw(t, "scheme") + base64.StdEncoding.EncodeToString([]byte(text)))
		if rapid.Bool().Draw(t, "damaged") {
			i := rapid.IntRange(0, len(value)-1).Draw(t, "place")
			value[i] = rapid.SampledFrom([]byte("AQgw=+/-_ \r\n:9")).Draw(t, "byte")
		}
		if err := checkBasicPromises(string(value)); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzBasic(f *testing.F) {
	for _, row := range tsv(f, "basic.tsv") {
		f.Add(row[0])
	}
	f.Fuzz(func(t *testing.T, value string) {
		if err := checkBasicPromises(value); err != nil {
			t.Fatal(err)
		}
		if c, ok := ParseBearer(value); ok && !strings.EqualFold("Bearer "+c.Secret, value) {
			t.Fatalf("%q: got the Bearer token %q", value, c.Secret)
		}
	})
}

// TestCredentialPrints: whatever prints a credential prints its id at most.
func TestCredentialPrints(t *testing.T) {
	c := Credential{ID: "svc-1", Secret: secret(1)}
	holder := struct {
		Credential *Credential
		List       []Credential
		Any        any
	}{&c, []Credential{c}, c}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{c, &c, holder, []Credential{c}, map[string]Credential{"": c}} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, c.Secret) || strings.Contains(got, fmt.Sprintf("%x", c.Secret)) {
				t.Errorf("%s of %T: got %s, want no secret", verb, v, got)
			}
		}
		if got := fmt.Sprintf(verb, c); !strings.Contains(got, "svc-1") && verb != "%x" {
			t.Errorf("%s: got %s, want the id in it", verb, got)
		}
	}
	if got, err := json.Marshal(holder); err != nil || strings.Contains(string(got), c.Secret) {
		t.Errorf("JSON: got %s, %v, want no secret", got, err)
	}
}
