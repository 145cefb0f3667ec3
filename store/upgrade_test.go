package store

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// testdata/schema-1.db is a store as the last program with schema version 1 left
// it. Its own test helpers made the rows by its own methods, with a clock that
// was moved on by hand: first without a pepper, then with the one of newWorld and
// the default group "everyone". Afterwards VACUUM made its pages smaller, so that
// it takes little space. The file is never made again: it is what is out there.
//
// testdata/schema-3.db is the same store, upgraded and used by the last program with
// schema version 3: with permissions, a token that retires when it is quiet, figures
// of use, and a tombstone. Nor is it made again.
//
// testdata/schema-4.db is that one, upgraded and used by the last program with schema
// version 4: with names that read alike, a narrowed token of an admin, and a service
// user that a manager has made. Nor is it made again.
//
// testdata/schema-6.db is that one, upgraded and used by the last program with schema
// version 6: with a service user that was deleted twice, one that was inactive when it
// was deleted, and a deleted group with a member and a permission. Nor is it made again.
//
// testdata/schema-7.db is that one, upgraded and used by the last program with schema
// version 7: with an idempotency key, a token that retires, and another service user and
// another group that were deleted. Nor is it made again.
//
// testdata/schema-8.db is that one, upgraded and used by the last program with schema
// version 8: with a used token that has an end, and a group that was deleted and came
// back. Nor is it made again.
//
// testdata/schema-9.db is that one, upgraded and used by the last program with schema
// version 9: with a token that ends ten days later, and a refusal. Nor is it made again.
const (
	schema1 = "testdata/schema-1.db"
	schema3 = "testdata/schema-3.db"
	schema4 = "testdata/schema-4.db"
	schema6 = "testdata/schema-6.db"
	schema7 = "testdata/schema-7.db"
	schema8 = "testdata/schema-8.db"
	schema9 = "testdata/schema-9.db"
)

var (
	tables1 = []string{"meta", "service_users", "tokens", "permission_groups", "rules", "members", "audit_events"}
	tables3 = append([]string{"permissions", "group_permissions"}, tables1...)
	tables7 = append([]string{"deleted_links", "audit_subjects", "idempotency_keys"}, tables3...)
	tables9 = append([]string{"refusals"}, tables7...)
)

// atSchema1 is an instant a little behind the last change in them.
var atSchema1 = time.Date(2026, 1, 2, 3, 20, 0, 0, time.UTC)

// copyOfSchema1 is a copy that may be upgraded, with the options to open it.
func copyOfSchema1(t *testing.T) (path string, opts Options) { return copyOfSchema(t, schema1) }

func copyOfSchema(t *testing.T, file string) (path string, opts Options) {
	path = place(t)
	mustDo(os.WriteFile(path, must(os.ReadFile(file)), 0o600))
	c := new(clock)
	c.nanos.Store(atSchema1.UnixNano())
	return path, Options{Now: c.Now, Peppers: must(access.ParsePeppers("0123456789abcdef")), DefaultGroup: "everyone"}
}

// unopened reads a database without writing a byte.
func unopened(t *testing.T, path string) *sql.DB {
	db := must(sql.Open("sqlite", "file:"+path+"?mode=ro&immutable=1"))
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func number(db *sql.DB, query string) (n int) {
	mustDo(db.QueryRowContext(ctx, query).Scan(&n))
	return n
}

// schemaOf is what makes the tables and indexes, without comments and spacing.
func schemaOf(db *sql.DB) string {
	list := must(collect(must(db.QueryContext(ctx, `SELECT type || ' ' || name || ': ' || COALESCE(sql, '') FROM sqlite_master ORDER BY type, name`)), scanString))
	text := regexp.MustCompile(`--[^\n]*`).ReplaceAllString(strings.Join(list, "\n\n"), "")
	text = regexp.MustCompile(`\s+`).ReplaceAllString(text, " ")
	return regexp.MustCompile(` ?([(),]) ?`).ReplaceAllString(text, "$1") // ALTER TABLE has a style of its own
}

// columnsOf are the columns of tables, each as "a, b, c".
func columnsOf(db *sql.DB, tables []string) map[string]string {
	columns := make(map[string]string)
	for _, table := range tables {
		rows := must(db.QueryContext(ctx, `SELECT * FROM `+table+` LIMIT 0`))
		columns[table] = strings.Join(must(rows.Columns()), ", ")
		rows.Close()
	}
	return columns
}

// dumpColumns is every row of tables, but only these columns of it.
func dumpColumns(db *sql.DB, tables []string, columns map[string]string) string {
	var out strings.Builder
	for _, table := range tables {
		out.WriteString(table + dumpTables(db, `(SELECT `+columns[table]+` FROM `+table+`)`))
	}
	return out.String()
}

func TestUpgrade(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	for _, row := range []struct {
		file    string
		version int
		tables  []string
		holds   []string
	}{
		{schema1, 1, tables1, []string{"| admin |", "| manager |", "| member |", "| observe |", `["finance","ops"]`, "token.rotate", "token.first_use", "permission_group.delete"}},
		{schema3, 3, tables3, []string{"people.export", `{"192.0.2.9":`, "service_user.delete"}},
		{schema4, 4, tables3, []string{"| Root |", "| human:admin |", "narrowed admin", "made-by-lead"}},
		{schema6, 6, tables3, []string{"gone-active", "gone-inactive", "permission_group.delete", "salary.view"}},
		{schema7, 7, tables7, []string{"request-7", "gone-keyed", "| human:carol |", "made with a key"}},
		{schema8, 8, tables7, []string{"| user-8 |", "made-at-8", "permission_group.undelete", `{"192.0.2.8":`}},
		{schema9, 9, tables9, []string{"| user-9 |", "made-at-9", "team nine", "/v9/refused"}},
	} {
		t.Run(row.file, func(t *testing.T) { testUpgrade(t, row.file, row.version, row.tables, row.holds) })
	}
}

func testUpgrade(t *testing.T, file string, version int, tables, holds []string) {
	path, opts := copyOfSchema(t, file)
	logs, watched := observer.New(zap.InfoLevel)
	opts.Log = zap.New(logs)
	old := unopened(t, path)
	if got := number(old, `PRAGMA user_version`); got != version {
		t.Fatalf("schema version of the file: got %d, want %d", got, version)
	}
	columns := columnsOf(old, tables)
	columns["tokens"] = strings.NewReplacer(", quiet_after", "", `, "quiet_after"`, "").Replace(columns["tokens"]) // gone since 6
	before := dumpColumns(old, tables, columns)
	for _, part := range holds {
		if !strings.Contains(before, part) {
			t.Errorf("%s is not in the file; the test shows little", part)
		}
	}
	mustDo(old.Close())

	s := open(t, path, opts)
	if got := number(s.read, `PRAGMA user_version`); got != schemaVersion {
		t.Errorf("schema version: got %d, want %d", got, schemaVersion)
	}
	fresh := open(t, place(t), Options{})
	same(t, "schema", schemaOf(s.read), schemaOf(fresh.read))
	for _, pragma := range []string{"application_id", "encoding", "auto_vacuum"} {
		got, want := "", ""
		mustDo(s.read.QueryRowContext(ctx, `PRAGMA `+pragma).Scan(&got))
		mustDo(fresh.read.QueryRowContext(ctx, `PRAGMA `+pragma).Scan(&want))
		if got != want {
			t.Errorf("%s: got %s, want %s", pragma, got, want)
		}
	}
	same(t, "rows", dumpColumns(s.read, tables, columns), before)
	checkCounts(t, s)
	if events := trail(t, s); len(events) < 20 {
		t.Errorf("audit records: got %d; the test shows little", len(events))
	}

	// A copy of it as it was is kept.
	kept := fmt.Sprintf("%s.v%d-backup", path, version)
	if mode := must(os.Stat(kept)).Mode(); mode != 0o600 {
		t.Errorf("mode of the copy: got %v, want -rw-------", mode)
	}
	backup := unopened(t, kept)
	if got := number(backup, `PRAGMA user_version`); got != version {
		t.Errorf("schema version of the copy: got %d, want %d", got, version)
	}
	if got := number(backup, `PRAGMA application_id`); got != applicationID {
		t.Errorf("application id of the copy: got %#x, want %#x", got, applicationID)
	}
	same(t, "rows of the copy", dumpColumns(backup, tables, columns), before)
	if told := watched.FilterField(zap.String("copy", kept)).Len(); told != 1 {
		t.Errorf("lines of the log that name the copy: got %d, want 1", told)
	}
	checkSchema1(t, s)

	// Opened again, nothing more happens.
	rows, directory := dump(t, s), dirText(t, s)
	mustDo(s.Close())
	content := readFile(path)
	again := open(t, path, opts)
	same(t, "rows, opened again", dump(t, again), rows)
	same(t, "directory, opened again", dirText(t, again), directory)
	mustDo(again.Close())
	if string(readFile(path)) != string(content) {
		t.Error("the file was changed when it was opened again")
	}

	// What is new works on it.
	s = open(t, path, opts)
	readers := must(s.groupNamed("readers"))
	load(s, permission("people.export", "allow POST /v1/export"))
	must(s.UpdateGroup(ctx, alice, readers.ID, 0, func(g *Group) error {
		g.MemberCondition, g.Permissions = `user.labels.env == "prod"`, []string{"people.export"}
		g.Rules = append(g.Rules, rules(`allow GET /v1/own/{id} when params.id in user.labels.people.split(",")`)...)
		return nil
	}))
	u, token, err := s.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "new", Active: true, Labels: map[string]string{"env": "prod", "people": "9"}}}, &Token{})
	mustDo(err)
	for action, want := range map[string]access.Reason{
		"POST /v1/export": access.Granted, "GET /v1/own/9": access.Granted, "GET /v1/own/7": access.NoRule, "GET /v1/people": access.Granted, "GET /v1/status": access.Granted,
	} {
		if got := probe(s, u.ID, token.Secret, action); got != want {
			t.Errorf("a new service user, %s: got %v, want %v", action, got, want)
		}
	}
	for action, want := range map[string]access.Reason{"POST /v1/export": access.Granted, "GET /v1/own/7": access.Granted, "GET /v1/own/9": access.NoRule} {
		if got := probe(s, "billing@example", secrets1["active"], action); got != want {
			t.Errorf("an old service user, %s: got %v, want %v", action, got, want)
		}
	}
	trail(t, s)
}

// The upgrade to version 7 takes from the audit trail what that has of deletions, and of the resources
// that a record concerns.
func TestUpgradeTrail(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	path, opts := copyOfSchema(t, schema6)
	opts.Retention = 100 * 365 * 24 * time.Hour
	s := open(t, path, opts)
	deleted := make(map[string]ServiceUser)
	for _, u := range must(first2(s.ServiceUsers(ctx, Local, UserQuery{Deleted: true, Limit: 100}))) {
		deleted[u.Name] = u
	}
	for name, want := range map[string]string{"gone-active": "human:bob true", "gone-inactive": "human:carol false"} {
		if got := fmt.Sprint(deleted[name].DeletedBy, " ", deleted[name].WasActive); got != want {
			t.Errorf("%s: got deleted by %s, want %s", name, got, want)
		}
	}
	groups := must(first2(s.DeletedGroups(ctx, Local, "auditors", "", 9)))
	if len(groups) != 1 || groups[0].DeletedBy != "human:bob" || !slices.Equal(groups[0].Permissions, []string{"salary.view"}) {
		t.Fatalf("deleted groups: got %+v", groups)
	}
	auditors, keepers, auditor := groups[0].ID, must(s.groupNamed("keepers")).ID, must(s.userNamed("auditor")).ID
	for id, want := range map[string]string{
		auditors: "permission_group.delete service_user.create permission_group.create",
		keepers:  "service_user.delete service_user.undelete service_user.delete member.add service_user.create permission_group.create",
		auditor:  "member.add service_user.create",
	} {
		var got []string
		for _, e := range must(s.trail(ctx, id, 0, 99)) {
			got = append(got, e.Action)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("the trail of %s: got %v, want %s", id, got, want)
		}
	}
	g, _, lost, err := s.UndeleteGroup(ctx, alice, auditors)
	if err != nil || !slices.Equal(lost, []string{"its members, which an earlier version did not keep"}) ||
		!slices.Equal(g.Permissions, []string{"salary.view"}) || len(g.Rules) != 1 || g.MemberCount != 0 {
		t.Errorf("undelete: got %+v, %q, %v", g, lost, err)
	}
	trail(t, s)
}

// After a restore of an older backup the trail has deletions that the tables do not have: of a group
// that exists again, or of one that the backup did not have yet.
func TestUpgradeAfterRestore(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	for name, statements := range map[string][]string{
		"the group is back": {
			`UPDATE permission_groups SET deleted_at = 0 WHERE name = 'auditors'`,
			`INSERT INTO group_permissions SELECT id, 'salary.view', 1 FROM permission_groups WHERE name = 'auditors'`,
		},
		"there is no such group": {
			`DELETE FROM rules WHERE group_id IN (SELECT id FROM permission_groups WHERE name = 'auditors')`,
			`DELETE FROM permission_groups WHERE name = 'auditors'`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, opts := copyOfSchema(t, schema6)
			runSQL(t, path, strings.Join(statements, ";"))
			s := open(t, path, opts)
			for _, g := range must(first2(s.Groups(ctx, Local, "auditors", "", 9))) {
				if err := s.DeleteGroup(ctx, alice, g.ID, 0); err != nil {
					t.Fatal(err)
				}
				if _, _, _, err := s.UndeleteGroup(ctx, alice, g.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A token of an earlier version is reported when its end comes near.
func TestUpgradeNotices(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	path, opts := copyOfSchema(t, schema9)
	opts.Now = func() time.Time { return time.Date(2026, 1, 8, 0, 0, 0, 0, time.UTC) } // four days before the end
	s := open(t, path, opts)
	if got := claimed(s); got != "user-9 7" {
		t.Errorf("got %q, want user-9 7", got)
	}
}

// secrets1 are the secrets of the tokens in the file.
var secrets1 = map[string]string{
	"root":      "csu_yNG7GDFxOHQ3Q46Rkojd3hUEC4fQtOOBOeCLLIWcJzn4GNfGq",
	"lead":      "csu_RLjPhS4uMKhVryl7ufUUTHlEFD9YY0ZIBRAOiyxRqcX2iiQFP",
	"active":    "csu_dJDfUzAaxvxD5JbjKamyjH7wthosp30YOeHsXJyaikp04cqtO",
	"narrowed":  "csu_4GiFql26CKb0fdGyVW070oETJ28xAGEcbQxT6NK0kA12JcGwd",
	"retiring":  "csu_fqfZpa5xHzYvCMh3xdPBEWovfQOUULNdIysNC6tQ9ba3dewgO",
	"successor": "csu_Mw03dCRp20Gntzhw4djpcAfwzXe0UjrGSmIee6Ht7Ez1HRdca",
	"revoked":   "csu_O6j9yjkdsb1zfFul9vSMe9HaofbwehCZxZU94kREQUu3FpCv1",
	"later":     "csu_PP9F7oeaZAzIQeTdX4OCqNRmX2mZ4UTruNHhxiBJqcZ0wzTjR",
	"expired":   "csu_qxeKNzv9OztNdiLvPIp5IbCW7KEe2oQuUSvHHpIGnT43cJ2PE",
	"rotated":   "csu_kRNfY5UwGFayo2xSYXdUYP5QcaPPyrl7iCkkXlNHgum0gn07Y",
	"used":      "csu_Gopq6aNzOdTCJw11dcnvMvbsIJCpE6N4flPYvu8VEdu3g2K0F",
	"paused":    "csu_hPYBcpAOBJWz4ykcULmNO6JlPpsj3q87q4UTgpMyZxA2yP2Xa",
	"former":    "csu_gu5zPBN9zE50UZ25HaNuciBHToOlaMkrMgQ5aQf5bRy0QDQQD",
}

// checkSchema1 checks what the service users of the file may do.
func checkSchema1(t *testing.T, s *Store) {
	t.Helper()
	logins := make(map[string]string)
	for _, u := range must(first(s.page(ctx, Local, userPage{Limit: 100}))) {
		logins[u.Name] = u.ID
	}
	for _, row := range []struct {
		login, secret, action string
		want                  access.Reason
	}{
		{logins["root"], "root", "GET /v1/people", access.NoRule},
		{logins["root"], "root", "GET /v1/status", access.Granted},
		{logins["root"], "root", "GET /v1/me", access.Granted},
		{logins["root"], "lead", "GET /v1/status", access.WrongSecret},
		{logins["lead"], "lead", "GET /v1/people", access.Granted},
		{logins["lead"], "lead", "POST /v1/people/7", access.Granted},
		{logins["lead"], "lead", "PATCH /v1/people/7", access.DeniedByRule},
		{logins["billing-sync"], "active", "GET /v1/people", access.Granted},
		{"billing@example", "active", "PUT /v2/anything", access.Granted},
		{"billing@example", "active", "GET /v1/people/secret", access.DeniedByRule},
		{"billing@example", "active", "GET /gone", access.NoRule},
		{"billing@example", "narrowed", "GET /v1/people", access.NoRule},
		{"billing@example", "narrowed", "DELETE /v1/people", access.DeniedByRule},
		{"billing@example", "retiring", "GET /v1/people", access.Granted},
		{"billing@example", "successor", "GET /v1/people", access.Granted},
		{"billing@example", "revoked", "GET /v1/people", access.TokenRevoked},
		{"billing@example", "later", "GET /v1/people", access.TokenNotYet},
		{"billing@example", "expired", "GET /v1/people", access.TokenExpired},
		{"billing@example", "rotated", "GET /v1/people", access.Granted},
		{"billing@example", "used", "GET /v1/people", access.Granted},
		{logins["paused"], "paused", "GET /v1/people", access.UserInactive},
		{"former@example", "former", "GET /v1/people", access.UnknownID},
		{"", "active", "GET /v1/people", access.Granted},
	} {
		if got := probe(s, row.login, secrets1[row.secret], row.action); got != row.want {
			t.Errorf("%s by %s (%s): got %v, want %v", row.action, row.login, row.secret, got, row.want)
		}
	}
}

// A copy that is there already is not written over.
func TestUpgradeKeepsOlderCopies(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	path, opts := copyOfSchema(t, schema3)
	mustDo(os.WriteFile(path+".v3-backup", []byte("older"), 0o600))
	open(t, path, opts)
	if got := string(readFile(path + ".v3-backup")); got != "older" {
		t.Errorf("the older copy: got %d bytes, want it as it was", len(got))
	}
	if got := number(unopened(t, path+".v3-backup-2"), `PRAGMA user_version`); got != 3 {
		t.Errorf("schema version of the copy: got %d, want 3", got)
	}
}

// Several programs that start at once upgrade it once.
func TestUpgradeAtOnce(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	path, opts := copyOfSchema1(t)
	stores := make([]*Store, 6)
	errs := make([]error, len(stores))
	var wg sync.WaitGroup
	for i := range stores {
		wg.Go(func() { stores[i], errs[i] = Open(ctx, path, opts) })
	}
	wg.Wait()
	for i, s := range stores {
		if errs[i] != nil {
			t.Errorf("store %d: %v", i, errs[i])
			continue
		}
		defer s.Close()
		checkSchema1(t, s)
	}
	if files := list(filepath.Dir(path)); !slices.Contains(files, "store.db.v1-backup") || slices.Contains(files, "store.db.v1-backup-2") {
		t.Errorf("files: got %v, want one copy", files)
	}
}

// An upgrade that fails leaves the database to the older program.
func TestUpgradeFails(t *testing.T) {
	pgtest.SQLiteOnly(t, "PostgreSQL has no store with an older schema")
	path, opts := copyOfSchema1(t)
	// Only the second table of the upgrade is in its way.
	runSQL(t, path, `CREATE TABLE group_permissions (a)`)
	before := dumpTables(unopened(t, path), tables1...)
	s, err := Open(ctx, path, opts)
	if err == nil {
		s.Close()
		t.Fatal("opened; want an error")
	}
	if want := "upgrading the schema from version 1"; !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want %s and the path", err, want)
	}
	after := unopened(t, path)
	if got := number(after, `PRAGMA user_version`); got != 1 {
		t.Errorf("schema version: got %d, want 1", got)
	}
	if got := number(after, `SELECT COUNT(*) FROM sqlite_master WHERE name = 'permissions'`); got != 0 {
		t.Error("the first table of the upgrade was made")
	}
	same(t, "rows", dumpTables(after, tables1...), before)
	if files := list(path[:strings.LastIndexByte(path, '/')]); !slices.Equal(files, []string{"store.db"}) {
		t.Errorf("files: got %v, want the database alone", fmt.Sprint(files))
	}
}
