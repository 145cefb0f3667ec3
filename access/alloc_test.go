package access

import (
	"fmt"
	"strings"

	"testing"
)

// busy is a directory with ten thousand service users and a thousand rules,
// and the credential of one of them.
func busy(tb testing.TB) (*Directory, Credential) {
	tb.Helper()
	peppers, err := ParsePeppers(newKey + "\n" + oldKey)
	if err != nil {
		tb.Fatal(err)
	}
	var c Changes
	for g := range 100 {
		var texts []string
		for i := range 5 {
			texts = append(texts, fmt.Sprintf("allow GET,POST /v1/team%d/things%d/{id}", g, i), fmt.Sprintf("deny DELETE /v1/team%d/things%d/{rest...}", g, i))
		}
		c.Groups = append(c.Groups, group(tb, fmt.Sprintf("group_%d", g), texts...))
	}
	for n := range 10_000 {
		u := user(n, fmt.Sprintf("group_%d", n%100), fmt.Sprintf("group_%d", n*7%100))
		u.Tokens[0].Hash, u.Tokens[0].Pepper = peppers.Hash(secret(n))
		c.Users = append(c.Users, u)
	}
	return with(tb, NewDirectory(peppers, ""), c), login(9999)
}

// noAllocs fails when one run of f allocates.
func noAllocs(t *testing.T, what string, f func()) {
	t.Helper()
	if got := testing.AllocsPerRun(100, f); got != 0 {
		t.Errorf("%s: got %v allocations, want 0", what, got)
	}
}

func TestNoAllocations(t *testing.T) {
	for _, target := range []string{"/", "/v1/people/7", "/v1/people/7.json?limit=10&x=%20", "/v1/team9/things1/person_2abCDefGHI"} {
		noAllocs(t, "CheckTarget "+target, func() {
			if _, problem := CheckTarget(target); !problem.OK() {
				t.Fatal(problem)
			}
		})
	}
	noAllocs(t, "CheckHost", func() { CheckHost("api.example.com:8443") })
	noAllocs(t, "CheckMethod", func() { CheckMethod("PROPFIND") })

	d, credential := busy(t)
	for _, c := range []struct {
		what       string
		credential Credential
		want       Reason
	}{
		{"live token", credential, Granted},
		{"Bearer", Credential{Secret: credential.Secret}, Granted},
		{"unknown id", Credential{ID: "nobody", Secret: credential.Secret}, UnknownID},
		{"wrong secret", Credential{ID: credential.ID, Secret: secret(10_000)}, WrongSecret},
		{"bad checksum", Credential{ID: credential.ID, Secret: "x"}, BadChecksum},
	} {
		noAllocs(t, "Authenticate, "+c.what, func() {
			if _, got := d.Authenticate(c.credential, here, 0); got != c.want {
				t.Fatalf("%s: got %v, want %v", c.what, got, c.want)
			}
		})
	}

	p, why := d.Authenticate(credential, here, 0)
	if why != Granted {
		t.Fatal(why)
	}
	for _, a := range []struct {
		action Action
		want   Reason
	}{
		{Action{"GET", "api.example.com", "/v1/team99/things1/7"}, Granted},
		{Action{"GET", "api.example.com", "/v1/team99/things1/person_2abCDefGHIjkLMnoPQRsTUvWXyz"}, Granted},
		{Action{"DELETE", "api.example.com", "/V1/Team99/Things1/7/"}, DeniedByRule},
		{Action{"PROPFIND", "api.example.com", "/v1/team99/things1/7"}, NoRule},
		{Action{"GET", "api.example.com", "/"}, NoRule},
		{Action{"GET", "api.example.com", "/v1/team99/things1/" + strings.Repeat("A", 200)}, Granted},
	} {
		noAllocs(t, fmt.Sprint("Authorize ", a.action), func() {
			if got := d.Authorize(p, a.action).Reason; got != a.want {
				t.Fatalf("%v: got %v, want %v", a.action, got, a.want)
			}
		})
	}
}

func BenchmarkCheckTarget(b *testing.B) {
	for _, bench := range []struct{ name, target string }{
		{"plain", "/v1/people/7/address?limit=10"},
		{"dotted", "/v1/people/7/address.json"},
		{"escaped", "/v1/people/a%20b/address"},
		{"unicode", "/v1/people/J%C3%BCrgen"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				CheckTarget(bench.target)
			}
		})
	}
}

func BenchmarkParseBasic(b *testing.B) {
	value := basic("service_2abcdefghijklmnopqrstuvwxyz", NewSecret())
	b.ReportAllocs()
	for b.Loop() {
		ParseBasic(value)
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	d, credential := busy(b)
	for _, bench := range []struct {
		name       string
		credential Credential
	}{
		{"right", credential},
		{"bearer", Credential{Secret: credential.Secret}},
		{"wrong", Credential{ID: credential.ID, Secret: secret(10_000)}},
		{"unknown", Credential{ID: "nobody", Secret: secret(10_000)}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				d.Authenticate(bench.credential, here, 0)
			}
		})
	}
}

func BenchmarkAuthorize(b *testing.B) {
	d, credential := busy(b)
	p, _ := d.Authenticate(credential, here, 0)
	for _, bench := range []struct{ name, path string }{
		{"lower", "/v1/team99/things1/7"},
		{"mixed", "/v1/team99/things1/person_2abCDefGHIjkLMnoPQRsTUvWXyz"},
		{"unicode", "/v1/team99/things1/é"},
		{"none", "/v2/other"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			action := Action{"GET", "api.example.com", bench.path}
			for b.Loop() {
				d.Authorize(p, action)
			}
		})
	}
}

// BenchmarkOverlap walks 1024 patterns over 10 levels that all cover the path,
// with a method that none of them covers.
func BenchmarkOverlap(b *testing.B) {
	var texts []string
	for n := range 1024 {
		path := ""
		for i := range 10 {
			if n>>i&1 == 0 {
				path += "/a"
			} else {
				path += fmt.Sprintf("/{p%d}", i)
			}
		}
		texts = append(texts, "allow GET "+path)
	}
	d := with(b, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(b, "g", texts...)}, Users: []User{user(1, "g")}})
	p := enter(b, d, login(1))
	b.ReportAllocs()
	action := Action{"POST", "", strings.Repeat("/a", 10)}
	for b.Loop() {
		d.Authorize(p, action)
	}
}

// BenchmarkWith applies one change of a user to a large directory.
func BenchmarkWith(b *testing.B) {
	d, _ := busy(b)
	u := user(77, "group_1", "group_2")
	b.ReportAllocs()
	for b.Loop() {
		with(b, d, Changes{Users: []User{u}})
	}
}
