package access

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// tsv reads a case file: the columns of each row that is not a comment, the
// first one without its Go escapes.
func tsv(tb testing.TB, file string) [][]string {
	tb.Helper()
	text, err := os.ReadFile("../testdata/" + file)
	if err != nil {
		tb.Fatal(err)
	}
	var rows [][]string
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		columns := strings.Split(line, "\t")
		if len(columns) != 3 {
			tb.Fatalf("%s:%d: got %d columns, want 3", file, i+1, len(columns))
		}
		if columns[0], err = strconv.Unquote(`"` + columns[0] + `"`); err != nil {
			tb.Fatalf("%s:%d: %v", file, i+1, err)
		}
		rows = append(rows, columns)
	}
	return rows
}

// basic spells a credential as the value of an Authorization field.
func basic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}

// secret returns the nth secret of the tests.
func secret(n int) string { return formatSecret([32]byte{byte(n >> 16), byte(n >> 8), byte(n)}) }

// token returns an unpeppered token with the nth secret.
func token(n int) Token {
	hash, _ := Peppers{}.Hash(secret(n))
	return Token{ID: fmt.Sprint("token_", n), Hash: hash}
}

// user returns an active member with the nth token, in these groups.
func user(n int, groups ...string) User {
	return User{Profile: Profile{ID: fmt.Sprint("service_", n), Name: fmt.Sprint("user ", n), Role: Member, Active: true}, Groups: groups, Tokens: []Token{token(n)}}
}

// here is a client's address.
var here = netip.MustParseAddr("192.0.2.1")

// login is the credential of user n.
func login(n int) Credential { return Credential{ID: fmt.Sprint("service_", n), Secret: secret(n)} }

// group returns an enforcing group named like its id, from rules in the
// one-line form.
func group(tb testing.TB, id string, texts ...string) Group {
	tb.Helper()
	g := Group{ID: id, Name: id, Mode: Enforce}
	for _, text := range texts {
		r, err := ParseRule(text)
		if err != nil {
			tb.Fatal(err)
		}
		g.Rules = append(g.Rules, r)
	}
	return g
}

// with applies changes that must be accepted.
func with(tb testing.TB, d *Directory, c Changes) *Directory {
	tb.Helper()
	next, err := d.With(c)
	if err != nil {
		tb.Fatal(err)
	}
	return next
}

// enter authenticates a credential that must be accepted.
func enter(tb testing.TB, d *Directory, c Credential) Principal {
	tb.Helper()
	p, why := d.Authenticate(c, here, 1000)
	if why != Granted {
		tb.Fatalf("credential of %s: got %v, want %v", c, why, Granted)
	}
	return p
}

// collect lets the garbage collector run until what is waited for is done, or it is in
// vain: cleanups run a little later.
func collect(done func() bool) {
	for range 10 {
		runtime.GC()
		if done() {
			return
		}
		runtime.Gosched()
	}
}

// rowOf is a user as it is in a table, in the first class.
func rowOf(u User) userRow { return alone(&u) }

// action reads "METHOD [HOST]PATH".
func action(text string) Action {
	method, target, _ := strings.Cut(text, " ")
	slash := strings.Index(target, "/")
	return Action{Method: method, Host: target[:slash], Path: target[slash:]}
}

func TestReasons(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range Reasons() {
		name := r.String()
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" || seen[name] {
			t.Errorf("reason %d: got the name %q, want a snake-case name of its own", r, name)
		}
		seen[name] = true
	}
	if Granted != 0 || (Decision{Reason: NoRule}).Allowed() || !(Decision{Reason: Granted}).Allowed() {
		t.Error("only Granted is allowed")
	}
}
