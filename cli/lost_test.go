package cli

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/internal/clitest"
	"github.com/serviceusers/caddy-service-users/store"
)

// lossy is an API whose answers to POST can be lost, after the request was done or before.
type lossy struct {
	*store.Store
	url        string
	lose, done bool
}

func newLossy(t *testing.T) *lossy {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "service_users.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l, api := &lossy{Store: s}, admin.New(s, nil, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !l.lose || r.Method != http.MethodPost {
			api.Serve(w, r, store.Local)
			return
		}
		if l.done {
			api.Serve(httptest.NewRecorder(), r, store.Local)
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(server.Close)
	l.url = strings.TrimPrefix(server.URL, "http://")
	return l
}

// run runs a command, and returns its exit code and its outputs.
func (l *lossy) run(args ...string) (code int, out string) {
	var text bytes.Buffer
	code = clitest.Run(&text, &text, append([]string{"--address", l.url}, args...)...)
	return code, text.String()
}

// live counts the tokens of all service users that can be used.
func (l *lossy) live(t *testing.T) (n int) {
	t.Helper()
	list, _, err := l.FindTokens(t.Context(), store.Local, store.TokenQuery{Live: true, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range list {
		if k.RetiresAt.IsZero() {
			n++
		}
	}
	return n
}

// works reports whether a file has the secret of a token that can be used, and nothing else.
func (l *lossy) works(path string) bool {
	text, _ := os.ReadFile(path)
	_, why := l.Directory().Authenticate(access.Credential{Secret: string(text)}, netip.Addr{}, l.Now().Unix())
	return why == access.Granted
}

// A command that issues secrets into files, and gets no answer, is completed by the same command: whether
// the request was done or not, the secrets arrive, and nothing is issued twice.
func TestLostAnswer(t *testing.T) {
	for _, row := range []struct {
		name        string
		files       []string // in the directory $DIR
		users, live int      // at the end
		args        string
	}{
		{"create many", []string{"a", "b%2F1", "c"}, 4, 4, `create --from $CSV --secret-dir $DIR --yes`},
		{"create", []string{"new"}, 2, 2, `create x --ttl 90d --label env=prod --label tier=1 --secret-file $DIR/new`},
		{"token create", []string{"new"}, 1, 2, `token create billing-sync --description ci --ttl 90d --secret-file $DIR/new`},
		{"token refresh", []string{"new"}, 1, 1, `token refresh billing-sync $TOKEN --grace 1h --secret-file $DIR/new`},
		{"token refresh at once", []string{"new"}, 1, 1, `token refresh billing-sync $TOKEN --yes --secret-file $DIR/new`},
	} {
		for _, done := range []bool{true, false} {
			l := newLossy(t)
			_, issued, err := l.CreateServiceUser(t.Context(), store.Local, store.ServiceUser{Profile: access.Profile{Name: "billing-sync", Active: true}}, new(store.Token))
			if err != nil {
				t.Fatal(err)
			}
			dir, csv := t.TempDir(), filepath.Join(t.TempDir(), "users.csv")
			if err := errors.Join(os.Chmod(dir, 0o700), os.WriteFile(csv, []byte("name,labels,ttl\na,x=1;y=2,90d\nb/1,,\nc,,\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
			args := strings.Fields(strings.NewReplacer("$DIR", dir, "$CSV", csv, "$TOKEN", issued.ID).Replace(row.args))
			// The first run gets no answer, nor does the second.
			for range 2 {
				l.lose, l.done = true, done
				if code, out := l.run(args...); code != exitUnreachable || !strings.Contains(out, "; the same command completes it") {
					t.Errorf("%s, done: %t: got %d %s, want that the same command completes it", row.name, done, code, out)
				}
			}
			l.lose = false
			code, out := l.run(args...)
			if code != 0 || strings.Contains(out, access.SecretPrefix) {
				t.Errorf("%s, done: %t: the same command again: got %d %s", row.name, done, code, out)
			}
			for _, file := range row.files {
				if !l.works(filepath.Join(dir, file)) {
					t.Errorf("%s, done: %t: the secret in %s does not work", row.name, done, file)
				}
			}
			if users, live := l.Directory().Len(), l.live(t); users != row.users || live != row.live {
				t.Errorf("%s, done: %t: got %d service users and %d live tokens, want %d and %d", row.name, done, users, live, row.users, row.live)
			}
			if code, out := l.run(args...); code != exitFailed || !strings.Contains(out, "exists already") {
				t.Errorf("%s, done: %t: a further run: got %d %s, want that the file exists", row.name, done, code, out)
			}
		}
	}
}

// What becomes of the files of a run without an answer, if the next run is not the same or comes too late.
func TestLostAnswerIsNotCompleted(t *testing.T) {
	l, dir, other := newLossy(t), t.TempDir(), t.TempDir()
	csv, file := filepath.Join(other, "users.csv"), filepath.Join(other, "token")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := func() (names []string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	want := func(what string, wantCode int, text string, args ...string) {
		t.Helper()
		if code, out := l.run(args...); code != wantCode || !strings.Contains(out, text) {
			t.Errorf("%s: got %d %s, want %d …%s", what, code, out, wantCode, text)
		}
	}
	many := []string{"create", "--from", csv, "--secret-dir", dir, "--yes"}
	write(csv, "name\na\nb\n")
	l.lose, l.done = true, true
	want("a lost answer", exitUnreachable, "completes it", many...)
	l.lose = false
	want("a dry run", exitFailed, "the same command without --dry-run completes it", append(many[:5:5], "--dry-run")...)
	// Another list does not end what this one has begun.
	write(csv, "name\nb\nc\n")
	want("another list", exitFailed, "an earlier run with other arguments is not complete; repeat that command, or remove its files", many...)
	if got := files(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got the files %q, want a and b", got)
	}
	// A run that was cut when it had written one of the secrets.
	write(csv, "name\na\nb\n")
	write(filepath.Join(dir, "a"), "csu_"+strings.Repeat("0", 49))
	want("the list again", 0, "created 2 service users", many...)
	if !l.works(filepath.Join(dir, "a")) || !l.works(filepath.Join(dir, "b")) || l.live(t) != 2 {
		t.Errorf("got %d live tokens, want 2 with their secrets in files", l.live(t))
	}
	// Service users that are gone are not made again under the key. Only the file with a secret stays.
	write(csv, "name\nd\ne\n")
	l.lose = true
	want("a lost answer", exitUnreachable, "completes it", many...)
	l.lose = false
	write(filepath.Join(dir, "d"), "csu_"+strings.Repeat("0", 49))
	want("a delete", 0, "", "delete", "e", "--yes")
	want("after a delete", exitNotFound, "there is no service user", many...)
	if got := files(); !slices.Equal(got, []string{"a", "b", "d"}) {
		t.Errorf("got the files %q, want a, b and d", got)
	}

	// The file of --secret-file can be that of somebody else: it gets no secret.
	write(file, keyMark+"chosen by another")
	theirs, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	want("a file with a key", 0, "", "token", "create", "d", "--secret-file", file)
	if text, err := io.ReadAll(theirs); err != nil || string(text) != keyMark+"chosen by another" || !l.works(file) {
		t.Errorf("got %q, %v in the file of somebody else", text, err)
	}
	l.lose = true
	want("no file", exitUnreachable, "the request may have been done, and its token is lost then: look before you repeat it", "token", "create", "d")
}
