package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func sessionBasic(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: basic ID SECRET_FILE FILE")
	}
	secret := ts.ReadFile(args[1])
	ts.Setenv("SECRET", secret)
	value := base64.StdEncoding.EncodeToString([]byte(args[0] + ":" + secret))
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte("GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic "+value+"\r\n\r\n"), 0o600))
}

func sessionHang(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hang NAME")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	ts.Check(err)
	ts.Defer(func() { listener.Close() })
	ts.Setenv(args[0], listener.Addr().String())
}

// TestPrepareRunsFirst: no command has a check of its own that hides the one of
// the flags that every command has.
func TestPrepareRunsFirst(t *testing.T) {
	for _, cmd := range commandTree() {
		if cmd.PersistentPreRunE != nil || cmd.PersistentPreRun != nil {
			t.Errorf("%s has a check of its own", cmd.CommandPath())
		}
	}
}

func TestCSVCell(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", "a=b": "a=b", "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "-": "'-", "@SUM(A1)": "'@SUM(A1)",
		" =1": "' =1", "\u00a0 =1": "'\u00a0 =1", " x": " x", "'=1": "'=1", "é": "é", "csu_x,\"y\"; ": "csu_x,\"y\"; ",
		"a;=2": "a;'=2", "a; -3": "a;' -3", "a;\"=4": "a;\"'=4", "＝5": "'＝5", "a;b-c": "a;b-c",
	} {
		if got := admin.CSVCell(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestSecretFile: the file is the user's alone, whatever the umask, and is gone
// when nothing was issued.
func TestSecretFile(t *testing.T) {
	umask := syscall.Umask(0)
	defer syscall.Umask(umask)
	c := newCLI()
	c.secretFile = filepath.Join(t.TempDir(), "secret")
	secret := ""
	err := c.issue(func(string) error {
		info, err := os.Stat(c.secretFile) // before the secret is made
		if err != nil || info.Mode() != 0o600 || keyIn([]string{c.secretFile}) == "" {
			t.Errorf("before: got %v, %v, want a file with a key, of mode 0600", info, err)
		}
		secret = "csu_x"
		return nil
	}, &secret)
	text, readErr := os.ReadFile(c.secretFile)
	info, statErr := os.Stat(c.secretFile)
	if err = errors.Join(err, readErr, statErr); err != nil {
		t.Fatal(err)
	}
	if string(text) != "csu_x" || info.Mode() != 0o600 || secret != "" {
		t.Errorf("got %q in a file of mode %v, and %q beside it, want csu_x, 0600 and nothing", text, info.Mode(), secret)
	}

	asked := false
	if err := c.issue(func(string) error { asked = true; return nil }, &secret); err == nil || asked {
		t.Errorf("a file that exists: got %v, asked: %t, want an error and no request", err, asked)
	}
	c.secretFile += ".2"
	refused := errors.New("refused")
	if err := c.issue(func(string) error { return refused }, &secret); !errors.Is(err, refused) || err.Error() != "refused" {
		t.Errorf("got %v, want the error of the request", err)
	}
	if _, err := os.Stat(c.secretFile); !os.IsNotExist(err) {
		t.Errorf("got %v, want no file where nothing was issued", err)
	}
}

func TestSiteURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://admin.example.com":           "https://admin.example.com",
		"https://admin.example.com/":          "https://admin.example.com",
		"https://admin.example.com:8443/a/b/": "https://admin.example.com:8443/a/b",
		"https://admin.example.com/a%2Fb":     "https://admin.example.com/a%2Fb",
		"HTTPS://admin.example.com":           "https://admin.example.com",
		"http://localhost:8081":               "http://localhost:8081",
		"http://127.3.2.1/x":                  "http://127.3.2.1/x",
		"http://[::1]:80":                     "http://[::1]:80",
		"http://[::ffff:127.0.0.1]":           "http://[::ffff:127.0.0.1]",
		"http://10.0.0.1":                     "",
		"http://0.0.0.0":                      "",
		"http://[::ffff:10.0.0.1]":            "",
		"http://localhost.":                   "",
		"http://127.1":                        "",
		"https://u@admin.example.com":         "",
		"https://@admin.example.com":          "",
		"https://admin.example.com?":          "",
		"https://admin.example.com#":          "",
		"https://admin.example.com/#x":        "",
		"https:///service_users":              "",
		"//admin.example.com":                 "",
		"unix//run/caddy.sock":                "",
		"":                                    "",
	} {
		got, err := siteURL(in, false)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", in, got, err, want)
		}
	}
	if got, err := siteURL("http://10.0.0.1", true); got != "http://10.0.0.1" {
		t.Errorf("insecure: got %q, %v, want it", got, err)
	}
}

// TestRemoteStaysAtItsHost: a redirect takes the credentials nowhere.
func TestRemoteStaysAtItsHost(t *testing.T) {
	asked := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer other.Close()
	sent := ""
	for _, status := range []int{301, 302, 303, 307, 308} {
		site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sent = r.Header.Get("Authorization")
			http.Redirect(w, r, other.URL, status)
		}))
		t.Setenv(tokenVariable, "csu_x")
		c := newCLI()
		c.url = site.URL
		client, err := c.remote()
		if err != nil {
			t.Fatal(err)
		}
		err = client.Do(t.Context(), http.MethodPost, "/service_users", admin.NewServiceUser{}, nil)
		site.Close()
		if exitCode(err) != exitUnreachable || sent != "Bearer csu_x" {
			t.Errorf("%d: got %v and %q at the site, want that there is no API, and the credentials", status, err, sent)
		}
	}
	if asked != 0 {
		t.Errorf("another host: got %d requests, want none", asked)
	}
}

const knownSecret = "csu_00000000000000000000000000000000000000000000nyr1a"

// TestScanStream: a secret is found on its line wherever it lies in the pieces that
// are read, and however they come.
func TestScanStream(t *testing.T) {
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("id:"+knownSecret))
	for _, before := range []int{0, 1, scanBuffer - 300, scanBuffer - 257, scanBuffer - 256, scanBuffer - 255, scanBuffer - 53, scanBuffer - 52, scanBuffer - 1, scanBuffer, 3*scanBuffer - 700} {
		for name, secret := range map[string]string{"plain": knownSecret, "base64": basic} {
			lead := strings.Repeat("x", before)
			if before > 2 {
				lead = "\n" + lead[2:] + "\n"
			}
			text := lead + secret + "\n\n" + secret
			want := fmt.Sprint(1+strings.Count(lead, "\n"), " ", 3+strings.Count(lead, "\n"))
			for how, in := range map[string]io.Reader{
				"whole": strings.NewReader(text), "in halves": iotest.HalfReader(strings.NewReader(text)), "with its end": iotest.DataErrReader(strings.NewReader(text)),
			} {
				var l leaks
				if err := l.scanStream("f", in); err != nil {
					t.Fatal(err)
				}
				var lines []string
				for _, f := range l.Found {
					lines = append(lines, fmt.Sprint(f.Line))
					if f.File != "f" || f.Hint != "yr1a" || f.Base64 != (name == "base64") || f.Digest != "47da6416abd285f7f154b1018dbd59a47690adc859b6fccc3199161a0df79c83" {
						t.Errorf("%s, %s: got %+v, want the file, hint and digest", name, how, f)
					}
				}
				if got := strings.Join(lines, " "); got != want || l.Files != 1 {
					t.Errorf("%s behind %d bytes, %s: got lines %s in %d files, want %s in 1", name, before, how, got, l.Files, want)
				}
			}
		}
	}
	var l leaks
	broken := errors.New("broken")
	if err := l.scanStream("f", io.MultiReader(strings.NewReader(knownSecret), iotest.ErrReader(broken))); err != broken || len(l.Found) != 1 {
		t.Errorf("got %v and %v, want the error, and what was before it", err, l.Found)
	}
}

// TestScanTree: large binary files are left out, and only those; what is no file,
// or leads out of the tree, is not opened.
func TestScanTree(t *testing.T) {
	dir := t.TempDir()
	large := strings.Repeat("\n", maxScanBinary) + knownSecret
	for name, text := range map[string]string{
		"tree/text":              large,
		"tree/binary":            "\x00" + large[54:],
		"tree/binary-larger":     "\x00" + large,
		"tree/binary-late":       strings.Repeat(" ", scanLead) + "\x00" + large,
		"tree/sub/.git/config":   knownSecret,
		"tree/sub/.github/x.yml": knownSecret,
		"tree/sub/-":             knownSecret,
		"away/file":              knownSecret,
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	tree := filepath.Join(dir, "tree")
	if err := errors.Join(
		os.Symlink("../away", filepath.Join(tree, "link")), os.Symlink("../away/file", filepath.Join(tree, "file-link")),
		os.Symlink(".", filepath.Join(tree, "loop")), os.Symlink("sub/-", filepath.Join(tree, "inner-link")), os.Symlink("nowhere", filepath.Join(tree, "dangling")),
		syscall.Mkfifo(filepath.Join(tree, "pipe"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	var l leaks
	if err := l.scanPath(tree); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range l.Found {
		name, _ := filepath.Rel(tree, f.File)
		got = append(got, name)
	}
	if want := strings.Fields("binary binary-late sub/- sub/.github/x.yml text"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if want := []string{filepath.Join(tree, "binary-larger")}; !slices.Equal(l.Skipped, want) || l.Unread != nil || l.Files != 5 {
		t.Errorf("got %q skipped, %q unread, %d read, want %q, none and 5", l.Skipped, l.Unread, l.Files, want)
	}
}

// TestScanUnread: what cannot be read does not keep the rest from being read, and
// is never taken for clean.
func TestScanUnread(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root reads everything")
	}
	dir := t.TempDir()
	for _, name := range []string{"a/x", "b", "c"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("nothing"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(dir, "a"), 0), os.Chmod(filepath.Join(dir, "b"), 0)); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(filepath.Join(dir, "a"), 0o700)
	var l leaks
	if err := l.scanPath(dir); err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, "a") + ": permission denied", filepath.Join(dir, "b") + ": permission denied"}
	if !slices.Equal(l.Unread, want) || l.Files != 1 {
		t.Errorf("got %q and %d files, want %q and 1", l.Unread, l.Files, want)
	}
	if err := l.verdict(); err == nil || err.Error() != "nothing found, but 2 files cannot be read" {
		t.Errorf("got %v, want an error", err)
	}
}

func TestScanVerdict(t *testing.T) {
	for _, row := range []struct {
		found, unread int
		want          string
	}{
		{0, 0, "<nil>"},
		{1, 0, "tokens found in 1 place"},
		{2, 0, "tokens found in 2 places"},
		{0, 1, "nothing found, but 1 file cannot be read"},
		{1, 2, "tokens found in 1 place, and 2 files cannot be read"},
	} {
		l := leaks{Found: make([]leak, row.found), Unread: make([]string, row.unread)}
		if got := fmt.Sprint(l.verdict()); got != row.want {
			t.Errorf("%d found, %d unread: got %s, want %s", row.found, row.unread, got, row.want)
		}
	}
}

// fakeDoor answers what it is asked for tokens, and refuses to revoke some.
type fakeDoor struct {
	asked   []int // how many digests at once
	revoked []string
}

func (d *fakeDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(admin.OperationHeader, "op_0")
	if r.Method == http.MethodDelete {
		d.revoked = append(d.revoked, r.URL.Path)
		if strings.HasSuffix(r.URL.Path, "/bad") {
			admin.WriteError(w, zap.NewNop(), "op_0", admin.ErrNotEntitled)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	var in admin.FindTokensInput
	_ = json.NewDecoder(r.Body).Decode(&in)
	d.asked = append(d.asked, len(in.Digests))
	out := admin.FoundTokens{Tokens: []admin.FoundToken{{Digest: "d1500", TokenID: "token_1500", URI: "/1500"}, {Digest: "nobody asked for this"}}}
	_ = json.NewEncoder(w).Encode(out)
}

// TestScanManyTokens: each digest is asked for once, not too many at a time.
func TestScanManyTokens(t *testing.T) {
	door := new(fakeDoor)
	s := httptest.NewServer(door)
	defer s.Close()
	var l leaks
	for i := range 2001 {
		for range 2 {
			l.Found = append(l.Found, leak{FoundToken: admin.FoundToken{Digest: fmt.Sprint("d", i)}})
		}
	}
	c := newCLI()
	c.client = &admin.Client{Base: s.URL}
	if err := c.lookUp(&l); err != nil {
		t.Fatal(err)
	}
	if want := []int{1000, 1000, 1}; !slices.Equal(door.asked, want) || !l.LookedUp {
		t.Errorf("got %d at once, looked up: %t, want %d and true", door.asked, l.LookedUp, want)
	}
	for i, f := range l.Found {
		if (f.TokenID != "") != (i/2 == 1500) {
			t.Fatalf("place %d: got token %q", i, f.TokenID)
		}
	}
}

// TestScanRevokes: every live token once, and the others when one of them fails.
func TestScanRevokes(t *testing.T) {
	door := new(fakeDoor)
	s := httptest.NewServer(door)
	defer s.Close()
	var out bytes.Buffer
	c := newCLI()
	c.yes, c.stdout, c.client = true, &out, &admin.Client{Base: s.URL}
	var l leaks
	for _, token := range []admin.FoundToken{
		{}, {TokenID: "t1", Name: "a", State: store.TokenActive, URI: "/bad"}, {TokenID: "t2", Name: "b", State: store.TokenRetiring, URI: "/t2"},
		{TokenID: "t1", Name: "a", State: store.TokenActive, URI: "/bad"}, {TokenID: "t3", Name: "c", State: store.TokenRevoked, URI: "/t3"},
		{TokenID: "t4", Name: "d", State: store.TokenExpired, URI: "/t4"},
	} {
		l.Found = append(l.Found, leak{FoundToken: token})
	}
	err := c.revokeLeaks(l)
	if want := []string{"/bad", "/t2", "/t4"}; !slices.Equal(door.revoked, want) {
		t.Errorf("got %q, want %q", door.revoked, want)
	}
	if exitCode(err) != exitNotAllowed || !strings.HasPrefix(err.Error(), "t1 of a is not revoked: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want that t1 is not revoked", err)
	}
	if got, want := out.String(), "revoked t2 of b\nrevoked t4 of d\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLastUse(t *testing.T) {
	at := func(second int) time.Time { return time.Date(2026, 11, 21, 19, 41, second, 0, time.UTC) }
	used := func(last int, from ...string) (k admin.Token) {
		when := at(last)
		k.LastUsedAt = &when
		for i, address := range from {
			k.UsedFrom = append(k.UsedFrom, admin.SeenAddress{Address: address, LastUsedAt: at(last - i)})
		}
		return k
	}
	for want, tokens := range map[string][]admin.Token{
		"It was never used.":                                                        {{}, {}},
		"It was last used 2026-11-21 19:41:05Z.":                                    {used(5)}, // over a Unix socket
		"It was last used 2026-11-21 19:41:09Z, lately from ::1.":                   {used(9, "::1"), {}, used(4)},
		"It was last used 2026-11-21 19:41:09Z, lately from ::2, ::1, ::3.":         {used(8, "::1", "::3"), used(9, "::2", "::1")},
		"It was last used 2026-11-21 19:41:09Z, lately from ::1, ::2, ::3, 2 more.": {used(9, "::1", "::2", "::3", "::4", "::5")},
	} {
		if got := lastUse(tokens); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
