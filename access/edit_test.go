package access

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// Whatever several goroutines hand over, in whatever parts, the directory is the
// same as one that is told of everything at once, and the versions before it, which
// share its shards, go on showing what they did.
func TestEditAtRandom(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	const ids, rounds, goroutines, versions = 300, 60, 4, 3
	type version struct {
		directory *Directory
		users     map[int]User
		env       string
	}
	groupsOf := func(env string) []Group {
		return []Group{group(t, "g", "allow GET /v1/{id}"), group(t, "h"), groupOf(t, "c", `user.labels["env"] == "`+env+`"`)}
	}
	envs := []string{"a", "b", "c"}
	one := func(n, round int) User {
		u := user(n, []string{"g", "h"}[:rng.IntN(3)]...)
		u.Name = fmt.Sprint(n, " in ", round)
		u.Labels = map[string]string{"env": envs[rng.IntN(2)]}
		u.Tokens = u.Tokens[:0]
		for i := range rng.IntN(4) { // in time others, and more than lie with the user
			k := token(n*1000 + (round%3)*10 + i)
			if rng.IntN(3) == 0 {
				k.Groups = []string{"h"}
			}
			u.Tokens = append(u.Tokens, k)
		}
		return u
	}
	check := func(v version, n int) {
		want, ok := v.users[n]
		d := v.directory
		got, found := d.User(fmt.Sprint("service_", n))
		if found != ok {
			t.Fatalf("user %d: got %t, want %t", n, found, ok)
		}
		if !ok {
			return
		}
		if got.Name != want.Name || got.Alias != want.Alias || !slices.Equal(got.Groups, want.Groups) || !maps.Equal(got.Labels, want.Labels) || len(got.Tokens) != len(want.Tokens) {
			t.Fatalf("user %d: got %+v, want %+v", n, got, want)
		}
		if in := slices.Contains(d.EffectiveGroups(got), "c"); in != (want.Labels["env"] == v.env) || slices.Contains(d.sets[got.groupSetID].ids, "c") != in {
			t.Fatalf("user %d: got in %t, class %q, want %t", n, in, d.sets[got.groupSetID].ids, want.Labels["env"] == v.env)
		}
		if want.Alias != "" {
			if other, _ := d.User(want.Alias); other == nil || other.ID != want.ID {
				t.Fatalf("alias %s: got %+v, want user %d", want.Alias, other, n)
			}
		}
		for i, k := range want.Tokens {
			row := d.users.owner(&k.Hash)
			if row == nil {
				t.Fatalf("user %d, token %s: it is nobody's", n, k.ID)
			}
			owner := row.decode(d.sets)
			if owner.ID != want.ID || owner.Tokens[i].Hash != k.Hash || owner.Name != want.Name || !slices.Equal(owner.Tokens[i].Groups, k.Groups) {
				t.Fatalf("user %d, token %s: got %+v", n, k.ID, owner)
			}
		}
	}
	kept := []version{{with(t, NewDirectory(Peppers{}, ""), Changes{Groups: groupsOf("a")}), nil, "a"}}
	for round := range rounds {
		base := kept[len(kept)-1]
		next := version{users: maps.Clone(base.users), env: base.env}
		if next.users == nil {
			next.users = make(map[int]User)
		}
		edit, err := base.directory.Edit(int64(round))
		if err == nil && rng.IntN(3) == 0 {
			next.env = envs[rng.IntN(3)]
			err = edit.Groups(groupsOf(next.env), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		edit.Expect(rng.Int64()-1<<62, rng.Int64()-1<<62) // which need not be true
		parts, removed := make([][]User, goroutines), make([][]string, goroutines)
		for _, n := range rng.Perm(ids)[:rng.IntN(ids)] {
			part := n % goroutines
			if _, ok := next.users[n]; ok && rng.IntN(3) == 0 {
				removed[part] = append(removed[part], fmt.Sprint("service_", n))
				delete(next.users, n)
				continue
			}
			u := one(n, round)
			if u.Alias = next.users[n].Alias; u.Alias == "" {
				u.Alias = fmt.Sprintf("alias-%d-%d", n, round)
			}
			next.users[n] = u
			parts[part] = append(parts[part], u)
		}
		for _, part := range parts { // within a part aliases may change hands
			if len(part) < 2 || rng.IntN(2) == 0 {
				continue
			}
			n, m := 0, 0
			fmt.Sscanf(part[0].ID, "service_%d", &n)
			fmt.Sscanf(part[1].ID, "service_%d", &m)
			part[0].Alias, part[1].Alias = part[1].Alias, part[0].Alias
			next.users[n], next.users[m] = part[0], part[1]
		}
		errs := make([]error, goroutines)
		var wait sync.WaitGroup
		for i := range goroutines {
			wait.Go(func() {
				half := len(parts[i]) / 2
				if half < 2 {
					half = len(parts[i])
				}
				errs[i] = errors.Join(edit.Users(parts[i][:half], removed[i]), edit.Users(parts[i][half:], nil))
			})
		}
		wait.Wait()
		next.directory, err = edit.Done()
		if err := errors.Join(append(errs, err)...); err != nil {
			t.Fatal(err)
		}
		if got, want := next.directory.Len(), len(next.users); got != want {
			t.Fatalf("round %d: got %d users, want %d", round, got, want)
		}
		want := 0
		for _, u := range next.users {
			if slices.Contains(u.Groups, "h") {
				want++
			}
		}
		if got := next.directory.MemberCount("h"); got != want {
			t.Fatalf("round %d: got %d members of h, want %d", round, got, want)
		}
		kept = append(kept[max(0, len(kept)-versions):], next)
		for range 2 {
			for _, n := range rng.Perm(ids) {
				for _, v := range kept {
					check(v, n)
				}
			}
		}
	}
}
