//go:build unix

package cli

import (
	"bytes"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/clitest"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

// Each command that takes a place works with a URL or says what to do, and none prints the password.
func TestPostgres(t *testing.T) {
	server, dir := pgtest.Shared(t), t.TempDir()
	url := func() string { return server.TCPURL(pgtest.Role, server.NewSchema(t, pgtest.Role)) }
	db, second, empty := url(), url(), url()
	const wrong = "Pa5w0rd"
	bad := strings.Replace(db, pgtest.Password, wrong, 1)
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(pgtest.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ONE", db)
	t.Setenv("TWO", second)
	places := strings.NewReplacer("DB", db, "SECOND", second, "EMPTY", empty, "BAD", bad, "DIR", dir,
		"FILED", strings.Replace(db, pgtest.Password, "{file."+password+"}", 1))
	gone := "node_" + strings.Repeat("0", 27)
	for _, row := range []struct {
		args string
		code int
		want string // in the output
	}{
		{`--store EMPTY list`, 1, `The first start of a node that is not read-only makes a store, or --create`},
		{`--store DB --create`, 0, "made the store postgres://store@127.0.0.1"},
		{`--store DB --create`, 0, "the store is postgres://store@127.0.0.1"},
		{`--store DB create billing-sync`, 0, "token"},
		{`--store {env.ONE} show billing-sync`, 0, "billing-sync"},
		{`--store FILED show billing-sync`, 0, "billing-sync"},
		{`--store {env.MISSING} list`, 2, "--store: evaluated placeholder {env.MISSING} is empty"},
		{`--store BAD list`, 1, `database "test", role "store": `},
		{`--store BAD --create`, 1, `is the password of the role "store" right`},
		{`--store DB check`, 0, "findings       none"},
		{`--store DB audit verify`, 0, "records  2"},
		{`--store DB health`, 0, "revision  1"},
		{`--store DB node list`, 0, "ID  NAME  VERSION"}, // a command is not a node
		{`--store DB node forget ` + gone, 3, `there is no node "` + gone + `"`},
		{`--store DB backup DIR/x`, 4, "run pg_dump with the database \"test\" on host 127.0.0.1; to make a SQLite file of it, run: caddy service-user copy"},
		{`--store DB restore DIR/x --yes`, 2, `"copy --from FILE --to URL" makes a store`},
		{`--store DB accept-older --yes`, 2, "after a restore of PostgreSQL, restart Caddy"},
		{`copy --from BAD --to DIR/x`, 1, `database "test", role "store": `},
		{`copy --from DIR/none --to BAD`, 1, "no such file"},
		{`copy --from EMPTY --to DIR/x`, 1, "the schema has no store"},
		{`copy --from {env.ONE} --to {env.TWO}`, 0, "copied revision 1 from postgres://store@127.0.0.1"},
		{`copy --from DB --to DIR/x --json`, 0, `"last_revision": 1`},
		{`copy --from DIR/x --to BAD`, 1, `database "test", role "store": `},
		{`copy --from DIR/x --to SECOND`, 4, "is not empty: it has revision 1; name another place"},
		{`--store SECOND show billing-sync`, 0, "billing-sync"},
		{`--store SECOND check`, 0, "findings       none"},
		// A mistake that leads a URL elsewhere does not show its password.
		{`--store DBX list`, 1, ""},
		{`--store xDB list`, 2, "begins with postgres://"},
		{`--url DB list`, 2, "not a URL such as https://admin.example.com"},
		{`--address DB list`, 2, "not the address of an admin endpoint"},
		{`--config DB list`, 1, "no such file"},
		{`--store DB --pepper-file DB list`, 1, "pepper_file"},
		{`--url https://x --credentials-file DB list`, 1, "does not exist"},
		{`--store DB create y --secret-file DB`, 1, "does not exist"},
		{`--store DB create --from DB --yes`, 1, "no such file"},
		{`DB`, 2, "unknown command"},
		{`--store DB show DB`, 3, "there is no service user"},
		{`backup DB`, 2, `FILE is not a URL; --store names a store in PostgreSQL`},
		{`restore DB`, 2, "FILE is not a URL"},
		{`check DB`, 2, "FILE is not a URL"},
		{`permission load DB`, 2, "FILE is not a URL"},
		{`check-log DB`, 2, "FILE is not a URL"},
		{`scan DB`, 1, "no such file"},
		{`lint DB`, 1, "no such file"},
	} {
		var out bytes.Buffer
		code := clitest.Run(&out, &out, strings.Fields(places.Replace(row.args))...)
		if code != row.code || !strings.Contains(out.String(), row.want) {
			t.Errorf("%s: got %d and\n%swant %d and %q", row.args, code, out.String(), row.code, row.want)
		}
		if text := out.String(); strings.Contains(text, pgtest.Password) || strings.Contains(text, wrong) {
			t.Errorf("%s: the output has the password: %s", row.args, text)
		}
	}
	forgets(t, db)
}

// forgets lets a node of the store end without a word, and forgets it.
func forgets(t *testing.T, place string) {
	s, err := store.Open(t.Context(), place, store.Options{NodeName: "gate-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, err := s.Nodes(t.Context(), store.Local)
	if err != nil || len(list) != 1 {
		t.Fatalf("got %v, %v, want one node", list, err)
	}
	db, err := sql.Open("pgx", place)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	gone := "node_" + strings.Repeat("0", 27)
	if _, err := db.Exec(`INSERT INTO nodes SELECT $1, name, version, address, started_at, $2, revision, max_staleness FROM nodes`,
		gone, time.Now().Add(-2*time.Hour).UnixMilli()); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ args, want string }{
		{"node list", " gone "}, {"node list", "gate-1"}, {"node forget " + list[0].ID, "and may answer requests until"},
		{"node forget " + gone, "forgot " + gone}, {"node forget " + gone, "there is no node"},
	} {
		var out bytes.Buffer
		if clitest.Run(&out, &out, append([]string{"--store", place}, strings.Fields(row.args)...)...); !strings.Contains(out.String(), row.want) {
			t.Errorf("%s: got %s, want %q", row.args, out.String(), row.want)
		}
	}
}
