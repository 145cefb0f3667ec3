package access

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// at is an instant of the tests.
func at(seconds int64) time.Time { return time.Unix(seconds, 0) }

// remembered lists the ids of the decisions from 0 to n that are remembered.
func remembered(m *Recall, n int) string {
	var ids []string
	for i := range n {
		id := fmt.Sprint("decision_", i)
		if r, ok := m.Decision(id); ok && r.ID == id && r.At.Equal(at(int64(i))) {
			ids = append(ids, fmt.Sprint(i))
		} else if ok || r.ID != "" {
			ids = append(ids, fmt.Sprintf("%d is %s", i, r.ID))
		}
	}
	return strings.Join(ids, " ")
}

// TestRecallRing: the last decisions are remembered, in whatever number.
func TestRecallRing(t *testing.T) {
	for _, row := range []struct {
		limit, kept int
		want        string
	}{
		{0, 0, ""}, {0, 3, ""}, {-1, 3, ""},
		{1, 0, ""}, {1, 1, "0"}, {1, 2, "1"}, {1, 7, "6"},
		{3, 1, "0"}, {3, 3, "0 1 2"}, {3, 4, "1 2 3"}, {3, 5, "2 3 4"}, {3, 6, "3 4 5"}, {3, 7, "4 5 6"}, {3, 100, "97 98 99"},
		{10, 4, "0 1 2 3"},
	} {
		m := NewRecall(row.limit)
		for i := range row.kept {
			m.Keep(Recalled{ID: fmt.Sprint("decision_", i), At: at(int64(i))})
		}
		if got := remembered(m, row.kept+1); got != row.want {
			t.Errorf("%d decisions, %d remembered: got %q, want %q", row.kept, row.limit, got, row.want)
		}
		if got := len(m.byID); got != min(row.kept, max(row.limit, 0)) || len(m.decisions) != got {
			t.Errorf("%d decisions, %d remembered: got %d ids and %d decisions", row.kept, row.limit, got, len(m.decisions))
		}
	}
}

// TestRecallKeeps: all of a decision but the headers, and not the request around it.
func TestRecallKeeps(t *testing.T) {
	m := NewRecall(3)
	action := Action{Method: "GET", Host: "h.example", Path: "/a\x00b", Address: here, Now: 7, Header: map[string][]string{"Cookie": {"secret"}}}
	want := Recalled{
		ID: "decision_1", At: at(7), UserID: "service_1", TokenID: "token_1", Action: action, Revision: 3, Reason: DeniedByRule,
		Rule: Rule{ID: "rule_1", Effect: Deny, Methods: []string{"GET"}, Path: "/a"}, Group: "group_1",
	}
	m.Keep(want)
	want.Action.Header = nil
	if got, ok := m.Decision("decision_1"); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if action.Header == nil {
		t.Error("the header of the request was changed")
	}
	if got, ok := m.Decision("decision_2"); ok || !reflect.DeepEqual(got, Recalled{}) {
		t.Errorf("an unknown id: got %+v, %v", got, ok)
	}
	var nothing Recall
	nothing.Keep(want)
	if _, ok := nothing.Decision("decision_1"); ok {
		t.Error("the zero value remembers a decision")
	}
}

// TestRecallClips: of a long path the beginning is kept, as valid UTF-8.
func TestRecallClips(t *testing.T) {
	m := NewRecall(1)
	for _, row := range []struct{ path, want string }{
		{"/", "/"},
		{"/" + strings.Repeat("a", 1023), "/" + strings.Repeat("a", 1023)},
		{"/" + strings.Repeat("a", 1024), "/" + strings.Repeat("a", 1023)},
		{"/" + strings.Repeat("é", 600), "/" + strings.Repeat("é", 511)},
		{"/a" + strings.Repeat("é", 600), "/a" + strings.Repeat("é", 511)},
		{"/" + strings.Repeat("😀", 300), "/" + strings.Repeat("😀", 255)},
		{"/" + strings.Repeat("日", 10_000), "/" + strings.Repeat("日", 341)},
	} {
		m.Keep(Recalled{ID: "decision_1", Action: Action{Path: row.path}})
		got, _ := m.Decision("decision_1")
		if got.Action.Path != row.want || !utf8.ValidString(got.Action.Path) {
			t.Errorf("%d bytes: got %d bytes, %.20q…, want %d", len(row.path), len(got.Action.Path), got.Action.Path, len(row.want))
		}
		p := Principal{id: "service_1"}
		m.ForgetObserved()
		m.Observe(p, Action{Method: "GET", Path: row.path}, Decision{Reason: NoRule}, true, at(1))
		if list, _ := m.Observed(); len(list) != 1 || list[0].Path != PathText(row.want) {
			t.Errorf("%d bytes, observed: got %+v", len(row.path), list)
		}
	}
}

// observing is a principal with decisions that observing changes or not.
var (
	observing  = Principal{id: "service_1"}
	wouldDeny  = Decision{Reason: Granted, Would: Would{Deny, &Rule{ID: "rule_1"}, &Group{ID: "group_1"}}}
	wouldAllow = Decision{Reason: NoRule, Would: Would{Allow, &Rule{ID: "rule_2"}, &Group{ID: "group_2"}}}
)

func TestObserved(t *testing.T) {
	m := NewRecall(0) // which is about decisions only
	other := Principal{id: "service_2"}
	for i, row := range []struct {
		p              Principal
		request        string
		decision       Decision
		passed         bool
		first, counted bool
	}{
		{observing, "GET /a", Decision{Reason: Granted}, false, false, false},
		{observing, "GET /a", Decision{Reason: NoRule}, false, false, false},
		{observing, "GET /a", Decision{Reason: DeniedByRule}, false, false, false},
		{observing, "GET /a/1", wouldDeny, false, true, true},
		{observing, "GET /a/22", wouldDeny, false, false, true},
		{observing, "GET /a/x333", wouldDeny, true, false, true},
		{observing, "POST /a/1", wouldDeny, false, true, true},
		{other, "GET /a/1", wouldDeny, false, true, true},
		{observing, "GET /a/1", wouldAllow, false, true, true},
		{observing, "GET /a/1", wouldAllow, true, false, true},
		{observing, "GET /a/1", Decision{Reason: NoRule}, true, true, true},
		{observing, "GET /b", Decision{Reason: NoRule}, true, true, true},
	} {
		first, counted := m.Observe(row.p, action(row.request), row.decision, row.passed, at(int64(i)))
		if first != row.first || counted != row.counted {
			t.Errorf("%d, %s: got %v, %v, want %v, %v", i, row.request, first, counted, row.first, row.counted)
		}
	}
	list, missed := m.Observed()
	want := []Observed{
		{ObservedKind{"service_1", "GET", "/a/{id}", Deny, "group_1", "rule_1"}, 3, at(3), at(5), "/a/x333"},
		{ObservedKind{"service_1", "GET", "/a/{id}", Allow, "group_2", "rule_2"}, 2, at(8), at(9), "/a/1"},
		{ObservedKind{"service_1", "GET", "/a/{id}", Deny, "", ""}, 1, at(10), at(10), "/a/1"},
		{ObservedKind{"service_1", "GET", "/b", Deny, "", ""}, 1, at(11), at(11), "/b"},
		{ObservedKind{"service_1", "POST", "/a/{id}", Deny, "group_1", "rule_1"}, 1, at(6), at(6), "/a/1"},
		{ObservedKind{"service_2", "GET", "/a/{id}", Deny, "group_1", "rule_1"}, 1, at(7), at(7), "/a/1"},
	}
	if !reflect.DeepEqual(list, want) || missed != 0 {
		t.Errorf("got %+v, %d missed\nwant %+v", list, missed, want)
	}
	list[0].Count = 100
	if again, _ := m.Observed(); !reflect.DeepEqual(again, want) {
		t.Errorf("after the list was changed: got %+v\nwant %+v", again, want)
	}
	m.ForgetObserved()
	if list, missed := m.Observed(); len(list) != 0 || missed != 0 {
		t.Errorf("forgotten: got %+v, %d missed", list, missed)
	}
	if first, counted := m.Observe(observing, action("GET /a/1"), wouldDeny, false, at(20)); !first || !counted {
		t.Errorf("after it was forgotten: got %v, %v", first, counted)
	}
	var nothing Recall
	if first, counted := nothing.Observe(observing, action("GET /a/1"), wouldDeny, false, at(1)); first || counted {
		t.Errorf("the zero value: got %v, %v", first, counted)
	}
	if list, missed := nothing.Observed(); len(list) != 0 || missed != 1 {
		t.Errorf("the zero value: got %+v, %d missed, want one missed", list, missed)
	}
}

// TestObservedOrder: by count, then by everything that tells two rows apart.
func TestObservedOrder(t *testing.T) {
	m := NewRecall(0)
	want := []string{
		"7 service_2 POST /b group_2 rule_2 deny",
		"1 service_1 GET /a group_1 rule_1 allow", "1 service_1 GET /a group_1 rule_1 deny", "1 service_1 GET /a group_1 rule_2 deny",
		"1 service_1 GET /a group_2 rule_1 deny", "1 service_1 GET /b group_1 rule_1 deny", "1 service_1 POST /a group_1 rule_1 deny", "1 service_2 GET /a group_1 rule_1 deny",
	}
	for i := range want {
		var count int
		var user, method, path, group, rule, effect string
		if _, err := fmt.Sscan(want[len(want)-1-i], &count, &user, &method, &path, &group, &rule, &effect); err != nil {
			t.Fatal(err)
		}
		for range count {
			m.Observe(Principal{id: user}, action(method+" "+path), Decision{Would: Would{Effect(effect), &Rule{ID: rule}, &Group{ID: group}}}, false, at(1))
		}
	}
	list, _ := m.Observed()
	for i, o := range list {
		if got := fmt.Sprint(o.Count, " ", o.UserID, " ", o.Method, " ", o.Pattern, " ", o.GroupID, " ", o.RuleID, " ", o.Effect); got != want[i] {
			t.Errorf("row %d: got %s, want %s", i, got, want[i])
		}
	}
}

// TestObservedBound: beyond some kinds of requests only those that are known are
// counted, and the others by their number.
func TestObservedBound(t *testing.T) {
	m := NewRecall(0)
	path := func(i int) Action {
		return Action{Method: "GET", Path: "/" + strings.Map(func(r rune) rune { return r - '0' + 'a' }, fmt.Sprint(i))}
	}
	for i := range maxObserved + 3 {
		first, counted := m.Observe(observing, path(i), wouldDeny, false, at(1))
		if want := i < maxObserved; first != want || counted != want {
			t.Fatalf("%d: got %v, %v, want %v", i, first, counted, want)
		}
	}
	if first, counted := m.Observe(observing, path(5), wouldDeny, false, at(2)); first || !counted {
		t.Errorf("a known one: got %v, %v", first, counted)
	}
	if list, missed := m.Observed(); len(list) != maxObserved || missed != 3 || list[0].Count != 2 {
		t.Errorf("got %d rows and %d missed, want %d and 3", len(list), missed, maxObserved)
	}
	m.ForgetObserved()
	if first, _ := m.Observe(observing, path(maxObserved+1), wouldDeny, false, at(1)); !first {
		t.Error("after it was forgotten: not counted")
	}
	if _, missed := m.Observed(); missed != 0 {
		t.Errorf("after it was forgotten: got %d missed", missed)
	}
}

// TestObservedPattern: what looks like an id is a parameter.
func TestObservedPattern(t *testing.T) {
	for _, row := range []struct{ path, want string }{
		{"/", "/"},
		{"/people", "/people"},
		{"/people/", "/people/"},
		{"/people/7", "/people/{id}"},
		{"/people/7/", "/people/{id}/"},
		{"/people/7/address/22", "/people/{id}/address/{id2}"},
		{"/1/2/3", "/{id}/{id2}/{id3}"},
		{"/v1/people", "/v1/people"}, {"/v2", "/v2"}, {"/v12/x", "/v12/x"}, {"/v123/x", "/v123/x"},
		{"/v1234/x", "/{id}/x"}, {"/v/x", "/v/x"}, {"/vv1/x", "/{id}/x"}, {"/v1a/x", "/{id}/x"}, {"/1v/x", "/{id}/x"}, {"/V1/x", "/{id}/x"},
		{"/oauth2/token", "/{id}/token"},
		{"/550e8400-e29b-41d4-a716-446655440000", "/{id}"},
		{"/" + strings.Repeat("a", 40), "/" + strings.Repeat("a", 40)},
		{"/" + strings.Repeat("a", 41), "/{id}"},
		{"/" + strings.Repeat("é", 21), "/{id}"},
		{"/{id}/7", "/{id}/{id2}"},
		{"/a when b/x", "/{id}/x"},
		{"/a\x00b/x", "/{id}/x"},
		{strings.Repeat("/a", 40), strings.Repeat("/a", 31) + "/{rest...}"},
		{strings.Repeat("/7", 3) + strings.Repeat("/a", 2000), "/{id}/{id2}/{id3}" + strings.Repeat("/a", 28) + "/{rest...}"},
	} {
		m := NewRecall(0)
		a := Action{Method: "GET", Path: row.path}
		m.Observe(observing, a, wouldDeny, false, at(1))
		list, _ := m.Observed()
		if list[0].Pattern != row.want || list[0].Grant() != "allow GET "+row.want {
			t.Errorf("%.50q: got %q, want %q", row.path, list[0].Pattern, row.want)
		}
		if err := grants(list[0].Grant(), a); err != nil {
			t.Errorf("%.50q: %v", row.path, err)
		}
	}
}

// TestObservedGrant: the grant is a rule that covers what was counted, and it takes
// little memory.
func TestObservedGrant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := NewRecall(0)
		a := Action{Method: rapid.SampledFrom([]string{"GET", "POST", "M-SEARCH"}).Draw(t, "method"), Path: drawPath(t)}
		m.Observe(observing, a, wouldDeny, false, at(1))
		list, _ := m.Observed()
		if err := grants(list[0].Grant(), a); err != nil {
			t.Fatalf("%q: %v", a.Path, err)
		}
		if len(list[0].Pattern) > 1500 || len(list[0].Path) > 3*maxRecalledPath { // a byte may need an escape
			t.Fatalf("%q: got a pattern of %d bytes and a path of %d", a.Path, len(list[0].Pattern), len(list[0].Path))
		}
	})
}

// TestRecallTogether: many goroutines remember and ask at once.
func TestRecallTogether(t *testing.T) {
	m := NewRecall(50)
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 200 {
				id := fmt.Sprint("decision_", worker, "_", i)
				m.Keep(Recalled{ID: id, Revision: int64(i)})
				if r, ok := m.Decision(id); ok && (r.ID != id || r.Revision != int64(i)) {
					t.Errorf("%s: got %+v", id, r)
				}
				m.Observe(observing, action("GET /a/1"), wouldDeny, false, at(int64(i)))
				m.Observe(observing, action("GET /"+strings.Repeat("b", 1+i%7)), wouldAllow, false, at(int64(i)))
				m.Observed()
			}
		})
	}
	all.Wait()
	list, missed := m.Observed()
	total := int64(0)
	for _, o := range list {
		total += o.Count
	}
	if len(list) != 8 || total != 2*8*200 || missed != 0 || len(m.byID) != 50 || len(m.decisions) != 50 {
		t.Errorf("got %d rows, %d counted, %d missed, %d of %d decisions", len(list), total, missed, len(m.byID), len(m.decisions))
	}
	for id, i := range m.byID {
		if m.decisions[i].ID != id {
			t.Errorf("%s stands for %s", id, m.decisions[i].ID)
		}
	}
	all.Go(m.ForgetObserved)
	all.Go(func() { m.Observe(observing, action("GET /a/1"), wouldDeny, false, at(1)) })
	all.Wait()
}

// TestRecallUnwritten: each refusal with a decision is returned once, those of one service user in their order,
// and a flood of one service user waits, or is left out, but not the refusals of others.
func TestRecallUnwritten(t *testing.T) {
	m := NewRecall(2000)
	n := 0
	keep := func(user string, times int) {
		for range times {
			n++
			m.Keep(Recalled{ID: fmt.Sprint("decision_", n), UserID: user, At: at(int64(n))})
		}
	}
	take := func(most int) string {
		counts, last := map[string]int{}, map[string]int64{}
		for _, r := range m.Unwritten(most) {
			if counts[r.UserID]++; r.At.Unix() <= last[r.UserID] {
				t.Errorf("%s: %d comes after %d", r.UserID, r.At.Unix(), last[r.UserID])
			}
			last[r.UserID] = r.At.Unix()
		}
		return fmt.Sprint(counts)
	}
	expect := func(most int, want string) {
		t.Helper()
		if got := take(most); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	expect(10, "map[]")
	keep("a", 3)
	keep("b", 1)
	m.Keep(Recalled{UserID: "a", At: at(1)})
	expect(10, "map[a:3 b:1]")
	expect(10, "map[]")
	keep("flood", 10_000) // 500 of them wait
	keep("c", 2)
	expect(10, "map[c:2 flood:8]")
	keep("d", 20)
	expect(10, "map[d:5 flood:5]")
	expect(100, "map[d:15 flood:85]")
	expect(1000, "map[flood:402]")
	expect(1000, "map[]")
	for i := range 5 { // more users than fit: each waits its turn
		keep(fmt.Sprint(i), 1)
	}
	if first, second := len(m.Unwritten(3)), len(m.Unwritten(3)); first != 3 || second != 2 {
		t.Errorf("got %d and %d, want 3 and 2", first, second)
	}
	m = NewRecall(2) // what leaves memory does not wait
	keep("e", 2)
	keep("f", 1)
	expect(10, "map[e:1 f:1]")
}

// BenchmarkRecall remembers a decision and counts a request.
func BenchmarkRecall(b *testing.B) {
	m := NewRecall(10_000)
	a := Action{Method: "GET", Host: "api.example.com", Path: "/v1/people/7/address"}
	b.Run("keep", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.Keep(Recalled{ID: "decision_1", Action: a})
		}
	})
	b.Run("observe", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.Observe(observing, a, wouldDeny, false, at(1))
		}
	})
}

// TestRecallNoisyNeighbour: however many refusals one service user has, and whenever,
// the few of others can be explained, and the memory stays bounded.
func TestRecallNoisyNeighbour(t *testing.T) {
	const limit, flood = 10_000, 20_000
	for name, row := range map[string]struct {
		noisy     []string
		afterThem bool // the quiet ones come last
	}{
		"before": {noisy: []string{"service_n"}}, "behind": {noisy: []string{"service_n"}, afterThem: true},
		"two":    {noisy: []string{"service_n", "service_m"}},
		"a team": {noisy: strings.Split("abcdefghi", "")},
	} {
		m := NewRecall(limit)
		quiet := func() {
			for user := range 50 {
				for i := range 1 + user%3 {
					m.Keep(Recalled{ID: fmt.Sprint("decision_quiet_", user, "_", i), UserID: fmt.Sprint("service_", user)})
				}
			}
		}
		if !row.afterThem {
			quiet()
		}
		for i := range flood {
			for _, user := range row.noisy {
				m.Keep(Recalled{ID: fmt.Sprint("decision_", user, "_", i), UserID: user})
			}
		}
		if row.afterThem {
			quiet()
		}
		for user := range 50 {
			for i := range 1 + user%3 {
				id := fmt.Sprint("decision_quiet_", user, "_", i)
				if r, ok := m.Decision(id); !ok || r.UserID != fmt.Sprint("service_", user) {
					t.Errorf("%s: %s: got %+v, %v", name, id, r, ok)
				}
			}
		}
		for _, user := range row.noisy { // each has its share, of the last ones
			share := (limit - 99) / len(row.noisy)
			for _, i := range []int{flood - 1, flood - share + 1} {
				if _, ok := m.Decision(fmt.Sprint("decision_", user, "_", i)); !ok {
					t.Errorf("%s: the decision %d of %s is not remembered", name, i, user)
				}
			}
		}
		if len(m.decisions) != limit || len(m.byID) != limit || len(m.kept.users) != 50+len(row.noisy) || len(m.kept.largest) != len(m.kept.users) {
			t.Errorf("%s: got %d decisions, %d ids, %d users", name, len(m.decisions), len(m.byID), len(m.kept.users))
		}
	}
}

// TestObservedNoisyNeighbour: the same of what observe mode has counted.
func TestObservedNoisyNeighbour(t *testing.T) {
	path := func(i int) Action {
		return Action{Method: "GET", Path: "/" + strings.Map(func(r rune) rune { return r - '0' + 'a' }, fmt.Sprint(i))}
	}
	for _, afterThem := range []bool{false, true} {
		m := NewRecall(0)
		quiet := func() {
			for user := range 50 {
				if first, counted := m.Observe(Principal{id: fmt.Sprint("service_", user)}, action("GET /once"), Decision{Reason: NoRule}, true, at(1)); !first || !counted {
					t.Errorf("service_%d: got %v, %v", user, first, counted)
				}
			}
		}
		if !afterThem {
			quiet()
		}
		for i := range 20_000 {
			m.Observe(Principal{id: "service_n"}, path(i), wouldDeny, false, at(1))
		}
		if afterThem {
			quiet()
		}
		list, missed := m.Observed()
		users, total := map[string]int{}, missed
		for _, o := range list {
			users[o.UserID]++
			total += o.Count
		}
		if len(list) != maxObserved || len(users) != 51 || users["service_n"] != maxObserved-50 || total != 20_050 {
			t.Errorf("got %d rows of %d users, %d of the noisy one, %d requests in all", len(list), len(users), users["service_n"], total)
		}
	}
}

// TestShares checks that the user with most items makes room, and loses its oldest first.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s shares[int]
		naive := map[string][]int{}
		for i := range 200 {
			user := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "user")
			most, oldest := 0, 0
			for _, items := range naive {
				most = max(most, len(items))
			}
			for _, items := range naive {
				if len(items) == most && (oldest == 0 || items[0] < oldest) {
					oldest = items[0]
				}
			}
			if got, want := s.isLargest(user), most > 0 && len(naive[user]) == most; got != want {
				t.Fatalf("%s of %v is the largest: got %v", user, naive, got)
			}
			if oldest > 0 && rapid.Bool().Draw(t, "take") {
				if got := s.takeFromLargest(); got != oldest {
					t.Fatalf("taken from %v: got %d, want %d", naive, got, oldest)
				}
				for user, items := range naive {
					if items[0] == oldest {
						if naive[user] = items[1:]; len(items) == 1 {
							delete(naive, user)
						}
					}
				}
				continue
			}
			s.add(user, i+1)
			naive[user] = append(naive[user], i+1)
		}
		if len(s.users) != len(naive) || len(s.largest) != len(naive) {
			t.Fatalf("got %d users, want %d", len(s.users), len(naive))
		}
	})
}

// refusalsOf is the list of the refusals of a service user, as their instants, and the instant from
// which on the list is whole.
func refusalsOf(m *Recall, user string) string {
	list, since, ok := m.Refusals(user)
	if !ok {
		return "none kept"
	}
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprint(r.At.Unix(), map[bool]string{true: "!"}[r.ID == ""]))
	}
	return fmt.Sprintf("%s since %d", strings.Join(out, " "), since.Unix())
}

// TestRecallRefusals: the refusals of a service user with and without a decision id, the newest
// first, and no more than is true about the time before.
func TestRecallRefusals(t *testing.T) {
	m := NewRecall(4)
	m.Since = at(5)
	keep := func(user string, second int64, decision bool) {
		r := Recalled{UserID: user, At: at(second)}
		if decision {
			r.ID = fmt.Sprint("decision_", user, second)
		}
		m.Keep(r)
	}
	check := func(user, want string) {
		t.Helper()
		if got := refusalsOf(m, user); got != want {
			t.Errorf("%s: got %q, want %q", user, got, want)
		}
	}
	check("a", " since 5")
	keep("a", 10, true)
	keep("a", 11, false)
	keep("a", 12, true)
	keep("b", 13, false)
	check("a", "12 11! 10 since 5")
	check("b", "13! since 5")
	for second := range int64(20) { // strangers name a: nobody else loses anything, nor a its decisions
		keep("a", 20+second, false)
	}
	check("a", "39! 38! 37! 12 10 since 37")
	check("b", "13! since 5")
	check("c", " since 5")
	for second := range int64(10) {
		keep("b", 50+second, true)
	}
	check("a", "39! 38! 37! 12 since 37")
	check("b", "59 58 57 13! since 57")

	// When the last entry of somebody is gone, nothing is said about that time.
	m = NewRecall(2)
	for i, user := range []string{"a", "b", "c"} {
		keep(user, int64(10+i), true)
	}
	check("a", " since 10")
	check("c", "12 since 10")

	for _, limit := range []int{0, -1} {
		m = NewRecall(limit)
		keep("a", 10, true)
		keep("a", 11, false)
		check("a", "none kept")
	}
}

// TestRecallOthersBound: refusals without a decision id take little memory, however many strangers
// send, and under whatever name.
func TestRecallOthersBound(t *testing.T) {
	m := NewRecall(1_000_000)
	long := strings.Repeat("x", 16<<10)
	for i := range 3 * maxOthers {
		m.Keep(Recalled{UserID: fmt.Sprint("service_", i%3*i), At: at(int64(i)), Action: Action{Method: long, Path: long}})
	}
	kept := m.others.decisions
	if len(kept) != maxOthers || cap(kept) > 2*maxOthers || len(m.decisions) != 0 {
		t.Fatalf("got %d refusals without a decision, want %d", len(kept), maxOthers)
	}
	for _, r := range kept {
		if size := len(r.Action.Method) + len(r.Action.Path); size > 2*maxRecalledPath {
			t.Fatalf("a refusal has %d bytes of texts", size)
		}
	}
	if list, _, _ := m.Refusals("service_0"); len(list) > maxRefusals {
		t.Errorf("a list has %d refusals, want at most %d", len(list), maxRefusals)
	}
	m = NewRecall(2 * maxRefusals)
	for i := range 2 * maxRefusals {
		m.Keep(Recalled{ID: fmt.Sprint("decision_", i), UserID: "a", At: at(int64(i))})
	}
	if list, since, _ := m.Refusals("a"); len(list) != maxRefusals || !since.Equal(at(maxRefusals)) {
		t.Errorf("a long list: got %d since %d, want %d since %d", len(list), since.Unix(), maxRefusals, maxRefusals)
	}
}
