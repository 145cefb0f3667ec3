package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// Every order is walked by its places, whatever ties there are, and whatever comes
// and goes meanwhile.
func TestSorts(t *testing.T) {
	t.Parallel()
	roles := []access.Role{access.Admin, access.Manager, access.Member}
	for field := range UserSorts {
		for limit := 1; limit <= 4; limit++ {
			s := open(t, place(t), still)
			var users []ServiceUser
			number := map[string]int{}
			end := func(u ServiceUser) int { // in days
				if i := number[u.ID]; i%3 == 2 {
					return 2 + i%5*10
				}
				return 0
			}
			rank := func(u ServiceUser) int { // 0 is at the edge
				switch {
				case !u.Active || number[u.ID]%3 == 0:
					return 2
				case end(u) == 0 || end(u) > 14:
					return 1
				}
				return 0
			}
			never := func(u ServiceUser) bool { return end(u) == 0 }
			add := func(i int) {
				// Names of either case, in an order that is not that of their making.
				name := fmt.Sprint(string("bBaA"[i%4]), i*7%5, "-", i)
				u, _, err := s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{
					Name: name, DisplayName: fmt.Sprint(i % 2), Role: roles[i%3], Active: i%4 > 0, Teams: [][]string{nil, {"a"}, {"a", "b"}, {"b"}}[i%4],
				}}, nil)
				mustDo(err)
				switch i % 3 { // no token, one that has no end, and two of which one ends
				case 2:
					must(s.CreateToken(ctx, Local, u.ID, Token{ExpiresAt: s.Now().Add(time.Duration(2+i%5*10) * 24 * time.Hour)}))
					fallthrough
				case 1:
					must(s.CreateToken(ctx, Local, u.ID, Token{}))
				}
				number[u.ID] = i
				u.LastActiveAt = fromUnix(int64(i % 3 * 100))
				must(s.write.ExecContext(ctx, `UPDATE service_users SET last_active_at = $1 WHERE id = $2`, unix(u.LastActiveAt), u.ID))
				users = append(users, u)
			}
			for i := range 10 {
				add(i)
			}
			for i, sort := range []string{field, "-" + field, field, "-" + field} {
				q := UserQuery{Sort: sort, Limit: limit}
				change := i >= 2
				want := slices.SortedFunc(slices.Values(users), func(a, b ServiceUser) int {
					c := cmp.Or(map[string]int{
						"name": strings.Compare(a.Name, b.Name), "role": strings.Compare(string(a.Role), string(b.Role)), "last_active_at": a.LastActiveAt.Compare(b.LastActiveAt),
						"display_name": strings.Compare(a.DisplayName, b.DisplayName), "teams": slices.Compare(a.Teams, b.Teams),
						"status": strings.Compare(fmt.Sprint(!a.Active), fmt.Sprint(!b.Active)), "next_token_end": cmp.Compare(end(a), end(b)),
						"usable": cmp.Compare(rank(a), rank(b)),
					}[field], strings.Compare(a.ID, b.ID))
					if field == "usable" && rank(a) == rank(b) { // the newest first
						c = -c
					}
					if field == "next_token_end" && never(a) != never(b) { // last in both directions
						return strings.Compare(fmt.Sprint(never(a)), fmt.Sprint(never(b)))
					}
					if sort[0] == '-' {
						return -c
					}
					return c
				})
				there := ids(want, func(u ServiceUser) string { return u.Name })
				gone := map[string]bool{}
				var got []string
				for more := true; more; {
					page, next, err := s.ServiceUsers(ctx, Local, q)
					if err != nil || len(page) > limit || next != "" && len(page) < limit || !change && len(page) == 0 {
						t.Fatalf("%s by %d: got a page of %d, %v, %v", sort, limit, len(page), next, err)
					}
					for _, u := range page {
						got = append(got, u.Name)
					}
					if more, q.After = next != "", next; !change || !more {
						continue
					}
					last := page[len(page)-1]
					if behind := slices.Index(there, last.Name) + 2; len(gone) < 3 && behind > 1 && behind < len(there) {
						gone[there[behind]] = true // one that was to come
						mustDo(s.deleteUser(ctx, Local, want[behind].ID, 0))
						mustDo(s.deleteUser(ctx, Local, last.ID, 0)) // and the one that the place names
						users = slices.DeleteFunc(users, func(u ServiceUser) bool { return u.ID == last.ID || u.ID == want[behind].ID })
						add(20 + 10*i + len(gone))
					}
				}
				seen := map[string]bool{}
				for _, name := range got {
					if seen[name] {
						t.Errorf("%s by %d: got %s twice", sort, limit, name)
					}
					seen[name] = true
				}
				got = slices.DeleteFunc(got, func(name string) bool { return !slices.Contains(there, name) }) // without who came
				there = slices.DeleteFunc(there, func(name string) bool { return gone[name] })
				if !slices.Equal(got, there) {
					t.Errorf("%s by %d, with changes %t: got %v, want %v", sort, limit, change, got, there)
				}
			}
		}
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	expires := w.now().Add(time.Hour)
	for _, u := range []ServiceUser{
		{Profile: access.Profile{Name: "100%", DisplayName: "Half_Way", Owner: "o'Neill", Role: access.Admin, Teams: []string{"ops"}, Active: true}},
		{Profile: access.Profile{Name: "100x", DisplayName: "HalfXWay", Alias: "alias@example", Teams: []string{"Ops", "hr"}, Active: true}, ExpiresAt: expires},
		{Profile: access.Profile{Name: "bang!", Description: `back\slash`, Role: access.Manager, Teams: []string{"hr"}}},
		{Profile: access.Profile{Name: "ÄPFEL", Description: "!%", Teams: []string{"ops", "hr"}}, ExpiresAt: expires},
		{Profile: access.Profile{Name: "gone", Teams: []string{"ops"}}},
	} {
		w.clock.add(time.Second)
		u, _, err := w.CreateServiceUser(ctx, Local, u, nil)
		mustDo(err)
		if u.Name == "gone" {
			mustDo(w.deleteUser(ctx, Local, u.ID, 0))
		}
	}
	manager := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"hr"}}}
	later := expires.Add(time.Second)
	for _, row := range []struct {
		by   Actor
		q    UserQuery
		at   time.Time // later, or now
		want string
	}{
		{Local, UserQuery{Status: "active"}, expires.Add(-time.Second), "100x 100% billing-sync"},
		{Local, UserQuery{Status: "expired"}, expires.Add(-time.Second), ""},
		{Local, UserQuery{}, expires, "ÄPFEL bang! 100x 100% billing-sync"},
		{Local, UserQuery{Search: "half"}, expires, "100x 100%"},
		{Local, UserQuery{Search: "0%"}, expires, "100%"},
		{Local, UserQuery{Search: "%"}, expires, "ÄPFEL 100%"},
		{Local, UserQuery{Search: "f_w"}, expires, "100%"},
		{Local, UserQuery{Search: "!"}, expires, "ÄPFEL bang!"},
		{Local, UserQuery{Search: "!%"}, expires, "ÄPFEL"},
		{Local, UserQuery{Search: "!!"}, expires, ""},
		{Local, UserQuery{Search: `\`}, expires, "bang!"},
		{Local, UserQuery{Search: "BANG"}, expires, "bang!"},
		{Local, UserQuery{Search: "halfx"}, expires, "100x"},
		{Local, UserQuery{Search: "ÄPF"}, expires, "ÄPFEL"},
		{Local, UserQuery{Search: "Äpfel"}, expires, "ÄPFEL"},
		{Local, UserQuery{Search: "O'NEILL"}, expires, "100%"},
		{Local, UserQuery{Search: "ALIAS@"}, expires, "100x"},
		{Local, UserQuery{Search: w.user.ID}, expires, "billing-sync"},
		{Local, UserQuery{Search: strings.ToUpper(w.user.ID[:20])}, expires, "billing-sync"},
		{Local, UserQuery{Search: w.user.ID[10:]}, expires, ""},
		{Local, UserQuery{Search: "service_"}, expires, ""},
		{Local, UserQuery{Search: "vice"}, expires, ""},
		{Local, UserQuery{Search: "gone"}, expires, ""},
		{Local, UserQuery{Name: "100%"}, expires, "100%"},
		{Local, UserQuery{Name: "BANG!"}, expires, ""},
		{Local, UserQuery{Deleted: true}, expires, "gone"},
		{Local, UserQuery{Deleted: true, Team: "hr"}, expires, ""},
		{Local, UserQuery{Role: "admin"}, expires, "100%"},
		{Local, UserQuery{Role: "member"}, expires, "ÄPFEL 100x billing-sync"},
		{Local, UserQuery{Team: "ops"}, expires, "ÄPFEL 100%"},
		{Local, UserQuery{Team: "Ops"}, expires, "100x"},
		{Local, UserQuery{Team: "op"}, expires, ""},
		{Local, UserQuery{Status: "active"}, expires, "100% billing-sync"},
		{Local, UserQuery{Status: "inactive"}, expires, "ÄPFEL bang!"},
		{Local, UserQuery{Status: "expired"}, expires, "ÄPFEL 100x"},
		{Local, UserQuery{Status: "expired", Team: "hr", Role: "member", Search: "example"}, later, "100x"},
		{Local, UserQuery{Status: "inactive", Team: "hr", Sort: "name"}, later, "bang! ÄPFEL"},
		{Local, UserQuery{Team: "hr", Filter: func(u *ServiceUser) (bool, error) { return u.Role == access.Member, nil }}, later, "ÄPFEL 100x"},
		{manager, UserQuery{}, later, "ÄPFEL bang! 100x"},
		{manager, UserQuery{Sort: "name"}, later, "100x bang! ÄPFEL"},
		{manager, UserQuery{Search: "half"}, later, "100x"},
		{manager, UserQuery{Team: "ops"}, later, "ÄPFEL"},
		{manager, UserQuery{Deleted: true}, later, ""},
		{Actor{Name: "human:dave", Scope: &Scope{}}, UserQuery{}, later, ""},
	} {
		w.clock.nanos.Store(row.at.UnixNano())
		for limit := 1; limit <= 7; limit += 3 {
			q := row.q
			q.Limit = limit
			var got []string
			for more := true; more; {
				page, next, err := w.ServiceUsers(ctx, row.by, q)
				if err != nil || next != "" && len(page) != limit {
					t.Fatalf("%s %+v by %d: got %v, %v, %v", row.by.Name, row.q, limit, page, next, err)
				}
				for _, u := range page {
					got = append(got, u.Name)
				}
				more, q.After = next != "", next
			}
			if strings.Join(got, " ") != row.want {
				t.Errorf("%s %+v by %d: got %q, want %q", row.by.Name, row.q, limit, got, row.want)
			}
		}
	}
	fault := invalid("filter", "x")
	if _, _, err := w.ServiceUsers(ctx, Local, UserQuery{Limit: 1, Filter: func(*ServiceUser) (bool, error) { return false, fault }}); err != fault {
		t.Errorf("a filter that fails: got %v, want its error", err)
	}
}

// A hint finds tokens that have ended if no other token has it that the actor sees.
func TestSearchHint(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	for _, team := range []string{"hr", "ops"} {
		u, k, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "of " + team, Teams: []string{team}, Active: true}}, &Token{})
		mustDo(err)
		must(w.write.ExecContext(ctx, `UPDATE tokens SET hint = 'Ab1z' WHERE id = $1`, k.ID))
		if team == "hr" {
			mustDo(w.revoke(ctx, Local, u.ID, k.ID))
		}
	}
	manager := func(team string) Actor { return Actor{Name: "human:carol", Scope: &Scope{Teams: []string{team}}} }
	for _, row := range []struct {
		by         Actor
		text, want string
	}{
		{Local, "Ab1z", "of ops"}, {Local, "ab1z", ""}, {Local, "b1z", ""}, {manager("ops"), "Ab1z", "of ops"}, {manager("hr"), "Ab1z", "of hr"}, {manager("it"), "Ab1z", ""},
	} {
		list := must(first2(w.ServiceUsers(ctx, row.by, UserQuery{Search: row.text, Limit: 9})))
		if got := strings.Join(ids(list, func(u ServiceUser) string { return u.Name }), " "); got != row.want {
			t.Errorf("%s by %+v: got %q, want %q", row.text, row.by.Scope, got, row.want)
		}
	}
}

// SQL finds tokens by the states that they have in Go.
func TestFindTokensByState(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	now := unix(w.now())
	times := []int64{0, now - 1, now, now + 1}
	for _, revoked := range times {
		for _, retires := range times {
			for _, expires := range times {
				for _, begins := range times {
					k := must(w.CreateToken(ctx, Local, w.user.ID, Token{}))
					must(w.write.ExecContext(ctx, `UPDATE tokens SET revoked_at = $1, retires_at = $2, expires_at = $3, not_before = $4 WHERE id = $5`, revoked, retires, expires, begins, k.ID))
				}
			}
		}
	}
	var want, got []string
	for _, k := range must(first2(w.FindTokens(ctx, Local, TokenQuery{Limit: 1000}))) {
		want = append(want, k.ID+" "+string(k.State(w.now())))
	}
	for _, state := range TokenStates {
		for before, more := "", true; more; {
			list, next, err := w.FindTokens(ctx, Local, TokenQuery{State: state, Limit: 7, Before: before, Bare: state == TokenExpired})
			mustDo(err)
			for _, k := range list {
				got, before = append(got, k.ID+" "+string(state)), k.ID
			}
			more = next
		}
	}
	slices.Sort(want)
	if slices.Sort(got); !slices.Equal(got, want) || len(got) < 256 {
		t.Errorf("got %q, want %q", got, want)
	}
	live := must(first2(w.FindTokens(ctx, Local, TokenQuery{Live: true, Limit: 1000})))
	if n := len(slices.DeleteFunc(want, func(s string) bool { return strings.HasSuffix(s, "expired") || strings.HasSuffix(s, "revoked") })); len(live) != n {
		t.Errorf("live: got %d, want %d", len(live), n)
	}
}

// TestFilterHoldsNothing: while a filter is asked, no transaction is open; what is
// deleted or moved away meanwhile is left out; and the list ends with its context.
func TestFilterHoldsNothing(t *testing.T) {
	pgtest.SQLiteOnly(t, "the log of SQLite grows while a read is open")
	t.Parallel()
	w := newWorld(t, still)
	for i := range FilteredAtOnce + 20 {
		w.clock.add(time.Second)
		mustDo(third(w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprintf("user %03d", i), Teams: []string{"ops"}, Active: true}}, nil)))
	}
	newest := must(first2(w.ServiceUsers(ctx, Local, UserQuery{Limit: FilteredAtOnce + 20})))
	db, err := sql.Open("sqlite", w.path)
	mustDo(err)
	defer db.Close()
	scope := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"ops"}}}
	asked := 0
	list, more, err := w.ServiceUsers(ctx, scope, UserQuery{Limit: 100, Filter: func(u *ServiceUser) (bool, error) {
		asked++
		if asked == 1 { // of the first part, which is read
			w.clock.add(time.Second)
			for _, behind := range []int{FilteredAtOnce + 5, FilteredAtOnce + 6} {
				mustDo(w.deleteUser(ctx, Local, newest[behind].ID, 0))
			}
			mustDo(second(w.UpdateServiceUser(ctx, Local, newest[FilteredAtOnce+7].ID, 0, func(u *ServiceUser) error { u.Teams = nil; return nil })))
			var busy, log, done int
			eventually(t, "no transaction is open while the filter is asked", func() bool { // but those of the looks for changes
				mustDo(db.QueryRow(`PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &log, &done))
				return busy == 0
			})
		}
		return asked > FilteredAtOnce, nil
	}})
	if err != nil || more != "" || len(list) != 17 || asked != FilteredAtOnce+17 {
		t.Errorf("got %d of %d asked, %v, %v, want 17", len(list), asked, more, err)
	}
	if len(list) > 0 && (list[0].ID != newest[FilteredAtOnce].ID || list[len(list)-1].ID != newest[len(newest)-1].ID) {
		t.Errorf("got from %s to %s", list[0].Name, list[len(list)-1].Name)
	}

	gone, cancel := context.WithCancel(ctx)
	asked = 0
	_, _, err = w.ServiceUsers(gone, Local, UserQuery{Limit: 1, Filter: func(*ServiceUser) (bool, error) {
		if asked++; asked == 3 {
			cancel()
		}
		return false, nil
	}})
	if !errors.Is(err, context.Canceled) || asked != 3 {
		t.Errorf("the client has gone: asked %d times, got %v", asked, err)
	}
}

// first2 leaves out whether there are more.
func first2[T, N any](list T, _ N, err error) (T, error) { return list, err }
