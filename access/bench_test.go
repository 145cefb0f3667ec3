package access

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// busy is a directory with ten thousand service users and a thousand rules,
// and the credential of one of them.
func busy(tb testing.TB, peppers Peppers) (*Directory, Credential) {
	tb.Helper()
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

	d, credential := busy(t, Peppers{}) // crypto/hmac makes seven allocations a pepper
	for _, c := range []struct {
		what       string
		credential Credential
		want       Reason
	}{
		{"live token", credential, Granted},
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

	// Who comes with a Bearer token does not say its id.
	if got := testing.AllocsPerRun(100, func() { d.Authenticate(Credential{Secret: credential.Secret}, here, 0) }); got != 1 {
		t.Errorf("Authenticate, Bearer: got %v allocations, want 1", got)
	}

	// The same with conditions on other paths and for other methods, a membership by
	// condition and one in doubt, and a group that would decide otherwise.
	last := user(9999, "group_99", "group_93", "observing")
	last.Tokens[0].Hash, last.Tokens[0].Pepper = d.peppers.Hash(secret(9999))
	last.Labels = map[string]string{"env": "prod"}
	observing := group(t, "observing", "deny GET /v1/{rest...}", "allow PROPFIND /{rest...}", "allow GET /")
	observing.Mode = Observe
	met := groupOf(t, "met", `user.labels.env == "prod"`, "allow PUT /v2/x", `allow GET /v2/{id} when params.id == "7"`,
		`deny POST /v1/team99/things1/{id} when params.id == "7"`, `allow POST /v1/team99/things1/{id} when request.header("X-Env") == "prod"`)
	doubted := groupOf(t, "doubted", `user.labels.none == ""`, "deny PUT /v2/x")
	conditions := with(t, d, Changes{Groups: []Group{observing, met, doubted}, Users: []User{last}})

	for _, a := range []struct {
		action Action
		want   Reason
	}{
		{Action{Method: "GET", Host: "api.example.com", Path: "/v1/team99/things1/7"}, Granted},
		{Action{Method: "GET", Host: "api.example.com", Path: "/v1/team99/things1/person_2abCDefGHIjkLMnoPQRsTUvWXyz"}, Granted},
		{Action{Method: "DELETE", Host: "api.example.com", Path: "/V1/Team99/Things1/7/"}, DeniedByRule},
		{Action{Method: "PROPFIND", Host: "api.example.com", Path: "/v1/team99/things1/7"}, NoRule},
		{Action{Method: "GET", Host: "api.example.com", Path: "/"}, NoRule},
		{Action{Method: "GET", Host: "api.example.com", Path: "/v1/team99/things1/" + strings.Repeat("A", 200)}, Granted},
	} {
		for _, d := range []*Directory{d, conditions} {
			p, why := d.Authenticate(credential, here, 0)
			if why != Granted {
				t.Fatal(why)
			}
			would := d == conditions && a.want != DeniedByRule
			noAllocs(t, fmt.Sprintf("Authorize %v, with conditions elsewhere: %v", a.action, d == conditions), func() {
				if got := d.Authorize(p, a.action); got.Reason != a.want || (got.Would != Would{}) != would {
					t.Fatalf("%v: got %v with %+v, want %v", a.action, got.Reason, got.Would, a.want)
				}
			})
		}
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
	d, credential := busy(b, Peppers{})
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
	d, credential := busy(b, Peppers{})
	p, _ := d.Authenticate(credential, here, 0)
	for _, bench := range []struct{ name, path string }{
		{"lower", "/v1/team99/things1/7"},
		{"mixed", "/v1/team99/things1/person_2abCDefGHIjkLMnoPQRsTUvWXyz"},
		{"unicode", "/v1/team99/things1/é"},
		{"none", "/v2/other"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			action := Action{Method: "GET", Host: "api.example.com", Path: bench.path}
			for b.Loop() {
				d.Authorize(p, action)
			}
		})
	}
}

// BenchmarkDecision is the whole way from a credential to a decision, with ten
// thousand service users and a thousand rules.
func BenchmarkDecision(b *testing.B) {
	two, err := ParsePeppers(newKey + "\n" + oldKey)
	if err != nil {
		b.Fatal(err)
	}
	peppered, last := busy(b, two)
	plain, paths := crowd(b, 10_000, 100, 10)
	for _, bench := range []struct {
		name       string
		d          *Directory
		credential Credential
		path       string
	}{
		{"plain", plain, login(0), paths[0]},
		{"two peppers", peppered, last, "/v1/team99/things1/7"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			action := Action{Method: "GET", Host: "api.example.com", Path: bench.path}
			b.ReportAllocs()
			for b.Loop() {
				p, _ := bench.d.Authenticate(bench.credential, here, 0)
				if !bench.d.Authorize(p, action).Allowed() {
					b.Fatal("refused")
				}
			}
		})
	}
}

// BenchmarkAuthorizeWhen decides by a rule with a condition.
func BenchmarkAuthorizeWhen(b *testing.B) {
	for _, bench := range []struct {
		name  string
		rules []string
	}{
		{"elsewhere", []string{"allow GET /v1/people/{id}", `deny GET /v1/other/{id} when params.id == "7"`}},
		{"user", []string{`allow GET /v1/people/{id} when user.labels.env == "prod"`}},
		{"params", []string{`allow GET /v1/people/{id} when params.id == "7"`}},
		{"list", []string{`allow GET /v1/people/{id} when params.id in user.labels.people.split(",")`}},
		{"request", []string{`allow GET /v1/people/{id} when request.header("X-Env") == "prod" && request.path.startsWith("/v1/")`}},
		{"address", []string{`allow GET /v1/people/{id} when cidr("192.0.2.0/24").containsIP(request.remote_ip)`}},
		{"now", []string{`allow GET /v1/people/{id} when now.getHours("Europe/Berlin") < 18`}},
		{"failing", []string{`allow GET /v1/people/{id} when user.labels.none == ""`, "allow GET /v1/people/{id}"}},
		{"deny", []string{"allow GET /v1/people/{id}", `deny GET /v1/people/{id} when params.id == "8"`}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			u := user(1, "g")
			u.Labels = map[string]string{"env": "prod", "people": "5,6,7"}
			d := with(b, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(b, "g", bench.rules...)}, Users: []User{u}})
			p := enter(b, d, login(1))
			action := Action{Method: "GET", Path: "/v1/people/7", Address: here, Header: map[string][]string{"X-Env": {"prod"}}}
			b.ReportAllocs()
			for b.Loop() {
				if !d.Authorize(p, action).Allowed() {
					b.Fatal("refused")
				}
			}
		})
	}
}

// crowd is a directory with so many groups of some rules each, every user in two
// of them, and the paths that the groups of user 0 allow.
func crowd(b *testing.B, users, groups, rules int) (d *Directory, paths []string) {
	var c Changes
	for g := range groups {
		added := Group{ID: fmt.Sprintf("group_%d", g), Name: fmt.Sprintf("group_%d", g), Mode: Enforce}
		for i := range rules {
			added.Rules = append(added.Rules, Rule{Effect: Allow, Methods: []string{"GET"}, Path: fmt.Sprintf("/v1/team%d/things%d/{id}", g, i)})
			if g < 2 {
				paths = append(paths, fmt.Sprintf("/v1/team%d/things%d/7", g, i))
			}
		}
		c.Groups = append(c.Groups, added)
	}
	for n := range users {
		c.Users = append(c.Users, user(n, fmt.Sprintf("group_%d", n%groups), fmt.Sprintf("group_%d", (n+1)%groups)))
	}
	return with(b, NewDirectory(Peppers{}, ""), c), paths
}

// BenchmarkSize decides in directories of growing size: it must not matter how
// many service users, groups and rules there are, but for the processor's caches.
func BenchmarkSize(b *testing.B) {
	for _, bench := range []struct {
		what                 string
		users, groups, rules int
	}{
		{"users=10", 10, 10, 10},
		{"users=1000", 1000, 10, 10},
		{"users=100000", 100_000, 10, 10},
		{"users=1000000", 1_000_000, 10, 10},
		{"groups=10", 10, 10, 10},
		{"groups=1000", 10, 1000, 10},
		{"groups=10000", 10, 10_000, 10},
		{"rules=10", 1, 1, 10},
		{"rules=1000", 1, 1, 1000},
		{"rules=100000", 1, 1, 100_000},
		{"rules=1000000", 1, 1, 1_000_000},
	} {
		d, paths := crowd(b, bench.users, bench.groups, bench.rules)
		p := enter(b, d, login(0))
		rand.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
		b.Run(bench.what+"/one path", func(b *testing.B) {
			b.ReportAllocs()
			action := Action{Method: "GET", Host: "api.example.com", Path: paths[0]}
			for b.Loop() {
				d.Authorize(p, action)
			}
		})
		b.Run(bench.what+"/any path", func(b *testing.B) {
			b.ReportAllocs()
			action := Action{Method: "GET", Host: "api.example.com"}
			for i := 0; b.Loop(); i++ {
				action.Path = paths[i%len(paths)]
				d.Authorize(p, action)
			}
		})
	}
}

// BenchmarkPathLength grows with the number of segments, and no faster.
func BenchmarkPathLength(b *testing.B) {
	for n := 1; n <= maxPatternSegments; n *= 2 {
		b.Run(fmt.Sprintf("segments=%d", n), func(b *testing.B) {
			path := strings.Repeat("/people", n)
			d := with(b, NewDirectory(Peppers{}, ""), Changes{Groups: []Group{group(b, "g", "allow GET "+path, "deny GET "+path+"s")}, Users: []User{user(1, "g")}})
			p := enter(b, d, login(1))
			action := Action{Method: "GET", Path: path}
			b.ReportAllocs()
			for b.Loop() {
				if !d.Authorize(p, action).Allowed() {
					b.Fatal("refused")
				}
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
	action := Action{Method: "POST", Host: "", Path: strings.Repeat("/a", 10)}
	for b.Loop() {
		d.Authorize(p, action)
	}
}

// BenchmarkObserve decides for a user that is in a group that observes as well.
func BenchmarkObserve(b *testing.B) {
	observing := group(b, "observing", "deny GET /v1/people/{id}")
	observing.Mode = Observe
	d := with(b, NewDirectory(Peppers{}, ""), Changes{
		Groups: []Group{group(b, "g", "allow GET /v1/people/{id}"), observing},
		Users:  []User{user(1, "g", "observing"), user(2, "g")},
	})
	for n, name := range []string{"observed", "not"} {
		p := enter(b, d, login(n+1))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			action := Action{Method: "GET", Path: "/v1/people/7"}
			for b.Loop() {
				d.Authorize(p, action)
			}
		})
	}
}

// BenchmarkScale is what a directory costs by the number of its service users, each
// with two tokens and in one of 10 000 groups: to build it, to keep it, to change it,
// and to decide for a service user that was not heard of lately.
func BenchmarkScale(b *testing.B) {
	for _, users := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("users=%d", users), func(b *testing.B) {
			groups := make([]Group, 10_000)
			for g := range groups {
				groups[g] = Group{ID: fmt.Sprintf("group_%d", g), Name: fmt.Sprintf("group_%d", g), Mode: Enforce}
				for i := range 10 {
					groups[g].Rules = append(groups[g].Rules, Rule{Effect: Allow, Methods: []string{"GET"}, Path: fmt.Sprintf("/v1/team%d/things%d/{id}", g, i)})
				}
			}
			member := func(n int) User {
				u := user(n, fmt.Sprintf("group_%d", n%len(groups)))
				u.ID, u.Tokens[0].ID = fmt.Sprintf("service_%027d", n), fmt.Sprintf("token_0%026d", n)
				second := u.Tokens[0]
				second.ID = fmt.Sprintf("token_1%026d", n)
				second.Hash = sha256.Sum256([]byte(second.ID))
				u.Tokens = append(u.Tokens, second)
				return u
			}
			d := with(b, NewDirectory(Peppers{}, ""), Changes{Groups: groups})
			before := heap()
			edit, err := d.Edit(1)
			if err != nil {
				b.Fatal(err)
			}
			edit.Expect(int64(users), 2*int64(users))
			var building time.Duration
			for first := 0; first < users; first += 10_000 { // as a store hands them over
				part := make([]User, 0, 10_000)
				for n := first; n < first+10_000; n++ {
					part = append(part, member(n))
				}
				begun := time.Now()
				if err := edit.Users(part, nil); err != nil {
					b.Fatal(err)
				}
				building += time.Since(begun)
			}
			begun := time.Now()
			if d, err = edit.Done(); err != nil {
				b.Fatal(err)
			}
			building += time.Since(begun)
			size := heap() - before
			begun = time.Now()
			runtime.GC()
			collecting := time.Since(begun)
			b.Run("build", func(b *testing.B) {
				for b.Loop() {
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(building.Nanoseconds())/float64(users), "ns/user")
				b.ReportMetric(float64(size)/float64(users), "B/user")
				b.ReportMetric(float64(collecting.Microseconds())/1000, "ms/GC")
			})
			b.Run("change a user", func(b *testing.B) {
				b.ReportAllocs()
				for n := 0; b.Loop(); n++ {
					u := member(n * 7919 % users)
					u.DisplayName = "changed"
					with(b, d, Changes{Revision: 2, Users: []User{u}})
				}
			})
			b.Run("change a group", func(b *testing.B) {
				b.ReportAllocs()
				for n := 0; b.Loop(); n++ {
					g := groups[n*7919%len(groups)]
					g.Rules = append(slices.Clone(g.Rules), Rule{Effect: Deny, Methods: []string{"GET"}, Path: "/v1/other"})
					with(b, d, Changes{Revision: 2, Groups: []Group{g}})
				}
			})
			b.Run("decide", func(b *testing.B) {
				b.ReportAllocs()
				for n := 0; b.Loop(); n++ {
					who := n * 7919 % users
					p, why := d.Authenticate(Credential{fmt.Sprintf("service_%027d", who), secret(who)}, here, 0)
					if why != Granted || !d.Authorize(p, Action{Method: "GET", Path: fmt.Sprintf("/v1/team%d/things3/7", who%len(groups))}).Allowed() {
						b.Fatal(why)
					}
				}
			})
			runtime.KeepAlive(d)
		})
	}
}

// heap is how many bytes are alive.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkWith applies one change of a user to a large directory.
func BenchmarkWith(b *testing.B) {
	d, _ := busy(b, Peppers{})
	u := user(77, "group_1", "group_2")
	b.ReportAllocs()
	for b.Loop() {
		with(b, d, Changes{Users: []User{u}})
	}
}
