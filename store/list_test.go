package store

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// walk is a way to list 25 of something.
type walk struct {
	name   string
	made   []string // oldest first
	list   func(before string, limit int) ([]string, bool, error)
	delete func(id string) error // takes one out of the list; nil when there is no such thing
}

// walks are all of them, on a store of their own. Its time is the real one: many
// are made within one second.
func walks(t *testing.T) []walk {
	s := open(t, place(t), Options{})
	g := addGroup(s, "g")
	var users, tokens, groups []string
	holder := must(first(s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "holder"}}, nil)))
	for i := range 25 {
		u := must(first(s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("u", i), Teams: []string{"a"}}, Groups: []string{g.ID}}, nil)))
		users = append(users, u.ID)
		tokens = append(tokens, must(s.CreateToken(ctx, Local, holder.ID, Token{})).ID)
		groups = append(groups, addGroup(s, fmt.Sprint("g", i)).ID)
		if i%5 > 1 {
			continue
		}
		// Others between them, which the lists must skip.
		u = must(first(s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("h", i), Teams: []string{"b"}}, Groups: []string{g.ID}}, nil)))
		if i%5 == 0 {
			mustDo(s.deleteUser(ctx, Local, u.ID, 0))
		}
	}
	manager := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"a"}, Groups: []string{g.ID}}}
	holdsAll := Actor{Name: "human:dave", Scope: &Scope{Groups: groups}}
	return []walk{
		{"members", users, func(before string, limit int) ([]string, bool, error) {
			list, more, err := s.Members(ctx, manager, g.ID, before, limit)
			return ids(list, func(m Member) string { return m.ID }), more, err
		}, func(id string) error { return s.RemoveMember(ctx, Local, g.ID, id) }},
		{"service users", users, func(before string, limit int) ([]string, bool, error) {
			list, more, err := s.page(ctx, manager, userPage{Before: before, Limit: limit})
			return ids(list, func(u ServiceUser) string { return u.ID }), more, err
		}, func(id string) error { return s.deleteUser(ctx, Local, id, 0) }},
		{"groups", groups, func(before string, limit int) ([]string, bool, error) {
			list, more, err := s.Groups(ctx, holdsAll, "", before, limit)
			return ids(list, func(g Group) string { return g.ID }), more, err
		}, func(id string) error { return s.DeleteGroup(ctx, Local, id, 0) }},
		{"tokens", tokens, func(before string, limit int) ([]string, bool, error) {
			list, more, err := s.FindTokens(ctx, Local, TokenQuery{UserID: holder.ID, Before: before, Limit: limit})
			return ids(list, func(k Token) string { return k.ID }), more, err
		}, nil},
	}
}

func ids[T any](list []T, id func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = id(v)
	}
	return out
}

func TestPaging(t *testing.T) {
	t.Parallel()
	for _, l := range walks(t) {
		want := slices.Clone(l.made)
		slices.Reverse(want)
		for _, limit := range []int{1, 2, 3, 5, 25, 26, 100} {
			var got []string
			for before, more := "", true; more; {
				page, next, err := l.list(before, limit)
				if err != nil || len(page) == 0 || len(page) > limit || next && len(page) < limit {
					t.Fatalf("%s by %d: got a page of %d, more %t, %v", l.name, limit, len(page), next, err)
				}
				got, before, more = append(got, page...), page[len(page)-1], next
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s by %d: got %v, want %v", l.name, limit, got, want)
			}
		}
		if page, more, err := l.list(want[len(want)-1], 10); len(page) != 0 || more || err != nil {
			t.Errorf("%s behind the last: got %v, %t, %v", l.name, page, more, err)
		}
	}
}

// Rows that vanish during a walk, among them the cursor's, cost no other row.
func TestPagingWhileDeleting(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 2, 3, 100} {
		for _, l := range walks(t) {
			if l.delete == nil {
				continue
			}
			want, deleted := slices.Clone(l.made), make(map[string]bool)
			slices.Reverse(want)
			var got []string
			for before, more := "", true; more; {
				page, next, err := l.list(before, limit)
				if err != nil {
					t.Fatalf("%s by %d: %v", l.name, limit, err)
				}
				if len(page) == 0 {
					break // what was to come is gone
				}
				got, before, more = append(got, page...), page[len(page)-1], next
				mustDo(l.delete(before))
				if i := slices.Index(want, before) + 2; i < len(want) { // one that is still to come
					mustDo(l.delete(want[i]))
					deleted[want[i]] = true
				}
			}
			want = slices.DeleteFunc(want, func(id string) bool { return deleted[id] })
			if !slices.Equal(got, want) {
				t.Errorf("%s by %d: got %v, want %v", l.name, limit, got, want)
			}
		}
	}
}

func TestAuditPaging(t *testing.T) {
	w := newWorld(t, Options{})
	mustDo(w.changeUser(func(u *ServiceUser) { u.Owner = "x" }))
	mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
	all := trail(t, w.Store)
	for _, limit := range []int{1, 2, 100} {
		var got []AuditEvent
		for before := int64(0); before != 1; {
			page := must(w.trail(ctx, "", before, limit))
			if len(page) == 0 || len(page) > limit {
				t.Fatalf("by %d: got a page of %d", limit, len(page))
			}
			got, before = append(got, page...), page[len(page)-1].Seq
		}
		slices.Reverse(got)
		if fmt.Sprint(got) != fmt.Sprint(all) {
			t.Errorf("by %d: got %v, want %v", limit, got, all)
		}
	}
	var actions []string
	for _, e := range must(w.trail(ctx, w.user.ID, 0, 100)) {
		actions = append(actions, e.Action)
	}
	if want := []string{"member.add", "service_user.update", "token.create", "service_user.create"}; !slices.Equal(actions, want) {
		t.Errorf("of one resource: got %v, want %v", actions, want)
	}
}

func TestNewIDSorts(t *testing.T) {
	now := newClock().Now()
	last := ""
	for i := range 3 * 1000 {
		id := newID("service", now.Add(time.Duration(i)*time.Millisecond))
		if !ValidID("service", id) || id <= last {
			t.Fatalf("id %d: got %s after %s, want a valid one that sorts behind it", i, id, last)
		}
		last = id
	}
	for s, want := range map[string]bool{
		last: true, "token_" + last[8:]: false, last[:len(last)-1]: false, last + "0": false, last + "\n": false, "": false, "service_": false, "service_" + last: false,
	} {
		if got := ValidID("service", s); got != want {
			t.Errorf("ValidID(%q): got %t, want %t", s, got, want)
		}
	}
}
