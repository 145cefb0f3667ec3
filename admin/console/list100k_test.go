package console

import (
	"database/sql"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// fill100k adds 100,000 service users with two tokens each to a new store. Half of the tokens end
// in the next 100 days, every 20th is revoked, and every tenth service user is inactive.
const fill100k = `
	WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99999)
	INSERT INTO service_users (id, name, display_name, description, owner, alias, active, role, teams, labels,
		allowed_ips, expires_at, created_at, created_by, updated_at, last_active_at, deleted_at, version, revision, name_key)
	SELECT printf('service_%027d', i), printf('svc-%06d', i * 7919 % 100000), printf('Service %d of billing', i),
		printf('Copies the rows of ledger %d into the warehouse each night', i), printf('person%d@example.com', i % 500), '',
		i % 10 <> 0, CASE i % 100 WHEN 0 THEN 'admin' WHEN 1 THEN 'manager' ELSE 'member' END,
		CASE i % 3 WHEN 0 THEN '["finance"]' ELSE '["hr","ops"]' END,
		CASE i % 4 WHEN 0 THEN '{"env":"prod","tier":"1"}' ELSE '{"env":"test"}' END,
		'[]', 0, $1 - 100000 + i, 'local', $1 - 100000 + i, CASE i % 5 WHEN 0 THEN 0 ELSE $1 - i * 31 % 1000000 END, 0, 1, 1,
		printf('svc-%06d', i * 7919 % 100000) FROM n;
	WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 199999)
	INSERT INTO tokens (id, service_user_id, description, hint, hash, pepper_id, expires_at, not_before, allowed_ips,
		metadata, permission_groups, created_at, created_by, updated_at, last_used_at, last_used_ip, use_count,
		retires_at, revoked_at, replaced_by, version)
	SELECT printf('token_%027d', i), printf('service_%027d', i / 2), 'a token', printf('%04d', i % 10000),
		lower(hex(randomblob(32))), '', CASE i % 2 WHEN 0 THEN 0 ELSE $1 + 60 + i * 37 % 8640000 END, 0, '[]', '', '[]',
		$1 - 100000, 'local', $1 - 100000, 0, '', 0, 0, CASE i % 20 WHEN 1 THEN 1 ELSE 0 END, '', 1 FROM n;
	INSERT INTO members (group_id, service_user_id, created_at)
	SELECT g.id, u.id, 0 FROM permission_groups g, service_users u WHERE g.name = 'readers' AND u.role = 'manager';
	WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
	INSERT INTO audit_events (seq, id, at, actor, action, resource_id, before, after, operation_id, prev_hash, hash)
	SELECT i + s, printf('audit_%027d', i), $1 - 100000 + i, 'human:carol', CASE i % 9 WHEN 0 THEN 'token.create' ELSE 'service_user.update' END,
		printf('service_%027d', i - 1), '{"name":"a","active":true}', '{"name":"b","active":true}', 'op_' || i, '', '' FROM n, (SELECT max(seq) AS s FROM audit_events);`

// api100k returns the API over a store with many service users.
func api100k(b *testing.B) (*admin.API, *store.Store) {
	path := filepath.Join(b.TempDir(), "store.db")
	s, err := store.Open(b.Context(), path, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	groups := map[string]string{"readers": "", "finance": `"finance" in user.teams`}
	for i := range 50 {
		groups[fmt.Sprint("group ", i)] = ""
	}
	for name, condition := range groups {
		g := store.Group{Name: name, Mode: "enforce", MemberCondition: condition, Rules: []access.Rule{{Effect: access.Allow, Methods: []string{"GET"}, Path: "/" + strings.ReplaceAll(name, " ", "-")}}}
		if _, err := s.CreateGroup(b.Context(), store.Local, g); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(fill100k, time.Now().Unix()); err != nil {
		b.Fatal(err)
	}
	if s, err = store.Open(b.Context(), path, store.Options{}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return admin.New(s, nil, nil), s
}

// pages100k are pages of the console, by name.
func pages100k() map[string]string {
	list := map[string]string{
		"list": "", "active and inactive": "status=all", "inactive": "status=inactive", "expired": "status=expired", "deleted": "status=deleted",
		"role": "role=manager", "team": "team=finance", "group by name": "group=readers", "group by condition": "group=finance",
		"label": "label=tier", "label with a value": "label=env%3Dprod", "text": "q=ledger+4711", "text of none": "q=xyz", "text of most": "q=e", "hint": "q=0042",
		"text and team": "q=svc-04&team=hr",
	}
	for field := range store.UserSorts {
		list["sort "+field], list["sort -"+field] = "sort="+field, "sort=-"+field
	}
	for name, query := range list {
		list[name] = "/console/service_users?" + query
	}
	maps.Copy(list, map[string]string{
		"as a manager": "/console/service_users", "second page": "/console/service_users", "tenth page by name": "/console/service_users?sort=name",
		"one": fmt.Sprintf("/console/service_users/service_%027d", 4711), "new": "/console/service_users/new",
		"groups": "/console/permission_groups", "audit": "/console/audit", "audit of one": fmt.Sprintf("/console/audit?resource_id=service_%027d", 4711),
		"audit by actor": "/console/audit?actor=human%3Acarol", "audit by action": "/console/audit?action=permission_group.create", "health": "/console/health",
		"JSON": "/service_users", "tokens that end": "/service_users/tokens?limit=1&total_count=true&ends_within=30d",
		"tokens of no use": "/service_users/tokens?unused_for=200d", "JSON with a count": "/service_users?total_count=true&sort=usable&status=active",
		"explain": "/console/explain?method=GET&url=%2Ffinance&user=svc-000001",
	})
	return list
}

var nextPage = regexp.MustCompile(`<a rel="next" href="([^"]*)"`)

// BenchmarkPages100k makes pages of the console over 100,000 service users with two tokens each. It
// reports the times in which 50 and 95 of 100 answers are complete, and the time of a processor: on a
// machine that does other work, the first two say little.
func BenchmarkPages100k(b *testing.B) {
	api, db := api100k(b)
	api.Traffic = new(admin.Traffic)
	for i := range 24 * 60 {
		api.Traffic.Add(admin.Minute{At: db.Now().Add(time.Duration(i-24*60) * time.Minute), Allowed: int64(i), Denied: int64(i % 7)})
	}
	pages := New(api, db.Now, nil)
	get := func(b *testing.B, by store.Actor, uri string) string {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, uri, nil)
		if Takes(r) {
			pages.Serve(w, r, by)
		} else {
			api.Serve(w, r, by)
		}
		if w.Code != http.StatusOK {
			b.Fatalf("%s: got %d %s", uri, w.Code, w.Body)
		}
		return w.Body.String()
	}
	list := pages100k()
	for _, name := range slices.Sorted(maps.Keys(list)) {
		b.Run(name, func(b *testing.B) {
			by, uri := admin.HumanAdmin("carol"), list[name]
			switch name {
			case "as a manager":
				by = api.HumanManager("carol", []string{"finance"}, []string{"finance"})
			case "second page":
				uri = behind(b, get(b, by, uri))
			case "tenth page by name":
				for range 9 {
					uri = behind(b, get(b, by, uri))
				}
			}
			var took []time.Duration
			b.ReportAllocs()
			used, size := cpu(), 0
			for b.Loop() {
				begun := time.Now()
				size = len(get(b, by, uri))
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "p95-ms")
			b.ReportMetric(float64((cpu()-used).Microseconds())/1000/float64(len(took)), "cpu-ms/op")
			b.ReportMetric(float64(size), "B/page")
			b.ReportMetric(0, "ns/op") // p50 says it
		})
	}
}

// behind returns the address of the next page.
func behind(b *testing.B, page string) string {
	m := nextPage.FindStringSubmatch(page)
	if m == nil {
		b.Fatal("there is no next page")
	}
	return strings.ReplaceAll(m[1], "&amp;", "&")
}

// cpu is how much time of a processor the process has used.
func cpu() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
