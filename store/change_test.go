package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// world is a store in which one service user may GET /v1/… by one token.
type world struct {
	*Store
	path    string
	clock   *clock
	readers Group // user is in it
	closers Group // denies the same; nobody is in it
	user    ServiceUser
	token   *Issued
	secrets []string // every secret that was issued
}

func (w *world) now() time.Time { return w.Now() }

func newWorld(t testing.TB, opts Options) *world {
	w := &world{path: place(t), clock: newClock()}
	opts.Now = w.clock.Now
	opts.Peppers = must(access.ParsePeppers("0123456789abcdef"))
	w.Store = open(t, w.path, opts)
	w.readers = addGroup(w.Store, "readers", "allow GET /v1/{x}", "allow GET /v2")
	w.closers = addGroup(w.Store, "closers", "deny * /v1/{rest...}")
	w.user, w.token = addUser(w.Store, "billing-sync", w.readers.ID)
	w.secrets = []string{w.token.Secret}
	return w
}

// issue remembers the secret that a call returned.
func (w *world) issue(issued *Issued, err error) error {
	if err == nil {
		w.secrets = append(w.secrets, issued.Secret)
	}
	return err
}

// changeUser, changeToken and changeGroup edit the ones of the world.
func (w *world) changeUser(edit func(*ServiceUser)) error {
	_, err := w.UpdateServiceUser(ctx, alice, w.user.ID, 0, func(u *ServiceUser) error { edit(u); return nil })
	return err
}

func (w *world) changeToken(edit func(*Token)) error {
	_, err := w.UpdateToken(ctx, alice, w.user.ID, w.token.ID, 0, func(k *Token) error { edit(k); return nil })
	return err
}

func (w *world) changeGroup(edit func(*Group)) error {
	_, err := w.UpdateGroup(ctx, alice, w.readers.ID, 0, func(g *Group) error { edit(g); return nil })
	return err
}

var alice = Actor{Name: "human:alice", Operation: "op_of_alice"}

// Every mutation is one revision with its audit records, and holds when the
// call returns. want is the answer to GET /v1/x with the first secret.
func TestChange(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name    string
		actions string
		want    access.Reason
		do      func(w *world) error
	}{
		{"create a service user", "service_user.create", access.Granted, func(w *world) error {
			_, _, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "n", Labels: map[string]string{"a": "b"}}}, nil)
			return err
		}},
		{"create a service user with a token", "service_user.create token.create", access.Granted, func(w *world) error {
			u, issued, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "n", Alias: "n@example", Active: true}, Groups: []string{w.readers.ID}}, &Token{})
			for _, login := range []string{u.ID, u.Alias} {
				if got := probe(w.Store, login, issued.Secret, "GET /v1/x"); got != access.Granted {
					return fmt.Errorf("the new one as %s: got %v, want granted", login, got)
				}
			}
			return w.issue(issued, err)
		}},
		{"rename", "service_user.update", access.Granted, func(w *world) error { return w.changeUser(func(u *ServiceUser) { u.Name = "other" }) }},
		{"deactivate", "service_user.deactivate", access.UserInactive, func(w *world) error { return w.changeUser(func(u *ServiceUser) { u.Active = false }) }},
		{"reactivate", "service_user.deactivate, service_user.reactivate", access.Granted, func(w *world) error {
			return cmp.Or(w.changeUser(func(u *ServiceUser) { u.Active = false }), w.changeUser(func(u *ServiceUser) { u.Active = true }))
		}},
		{"leave the group", "service_user.update", access.NoRule, func(w *world) error { return w.changeUser(func(u *ServiceUser) { u.Groups = nil }) }},
		{"enter a group that denies", "service_user.update", access.DeniedByRule, func(w *world) error {
			return w.changeUser(func(u *ServiceUser) { u.Groups = append(u.Groups, w.closers.ID) })
		}},
		{"bind to an address", "service_user.update", access.UserAddress, func(w *world) error {
			return w.changeUser(func(u *ServiceUser) { u.AllowedIPs = []string{"10.0.0.0/8"} })
		}},
		{"expire", "service_user.update", access.UserExpired, func(w *world) error {
			err := w.changeUser(func(u *ServiceUser) { u.ExpiresAt = w.clock.Now().Add(time.Second) })
			w.clock.add(time.Second)
			return err
		}},
		{"raise the role", "service_user.update", access.Granted, func(w *world) error { return w.changeUser(func(u *ServiceUser) { u.Role = access.Admin }) }},
		{"delete", "service_user.delete", access.UnknownID, func(w *world) error { return w.deleteUser(ctx, alice, w.user.ID, 0) }},
		{"delete this version", "service_user.delete", access.UnknownID, func(w *world) error { return w.deleteUser(ctx, alice, w.user.ID, w.user.Version) }},
		{"create a token", "token.create", access.Granted, func(w *world) error {
			return w.issue(w.CreateToken(ctx, alice, w.user.ID, Token{Description: "ci", Metadata: "{}"}))
		}},
		{"narrow the token", "token.update", access.NoRule, func(w *world) error {
			return w.changeToken(func(k *Token) { k.Groups = []string{w.closers.ID} })
		}},
		{"bind the token to an address", "token.update", access.TokenAddress, func(w *world) error {
			return w.changeToken(func(k *Token) { k.AllowedIPs = []string{"2001:db8::/32"} })
		}},
		{"let the token begin later", "token.update", access.TokenNotYet, func(w *world) error {
			return w.changeToken(func(k *Token) { k.NotBefore = w.clock.Now().Add(time.Second) })
		}},
		{"let the token expire", "token.update", access.TokenExpired, func(w *world) error {
			err := w.changeToken(func(k *Token) { k.ExpiresAt = w.clock.Now().Add(time.Second) })
			w.clock.add(time.Second)
			return err
		}},
		{"refresh the token at once", "token.create token.refresh", access.TokenRevoked, func(w *world) error {
			issued, err := w.refreshOf(ctx, alice, w.user.ID, w.token.ID, 0)
			if got := probe(w.Store, w.user.ID, issued.Secret, "GET /v1/x"); got != access.Granted {
				return fmt.Errorf("the successor: got %v, want granted", got)
			}
			return w.issue(issued, err)
		}},
		{"refresh the token with a grace", "token.create token.refresh", access.Granted, func(w *world) error {
			return w.issue(w.refreshOf(ctx, alice, w.user.ID, w.token.ID, time.Hour))
		}},
		{"refresh the token and let the grace end", "token.create token.refresh", access.TokenExpired, func(w *world) error {
			err := w.issue(w.refreshOf(ctx, alice, w.user.ID, w.token.ID, time.Hour))
			w.clock.add(time.Hour)
			return err
		}},
		{"revoke the token", "token.revoke", access.TokenRevoked, func(w *world) error { return w.revoke(ctx, alice, w.user.ID, w.token.ID) }},
		{"create a group", "permission_group.create", access.Granted, func(w *world) error {
			_, err := w.CreateGroup(ctx, alice, Group{Name: "g", Rules: rules("deny * /{rest...}")})
			return err
		}},
		{"rename the group", "permission_group.update", access.Granted, func(w *world) error { return w.changeGroup(func(g *Group) { g.Name = "x" }) }},
		{"observe", "permission_group.update", access.NoRule, func(w *world) error { return w.changeGroup(func(g *Group) { g.Mode = access.Observe }) }},
		{"replace the rules", "permission_group.update", access.NoRule, func(w *world) error {
			return w.changeGroup(func(g *Group) { g.Rules = rules("allow POST /v1/{x}") })
		}},
		{"remove every rule", "permission_group.update", access.NoRule, func(w *world) error { return w.changeGroup(func(g *Group) { g.Rules = nil }) }},
		{"name a rule", "permission_group.update", access.Granted, func(w *world) error {
			return w.changeGroup(func(g *Group) { g.Rules[0].Name = "people" })
		}},
		{"delete the group", "permission_group.delete", access.NoRule, func(w *world) error { return w.DeleteGroup(ctx, alice, w.readers.ID, 0) }},
		{"delete this version of the group", "permission_group.delete", access.NoRule, func(w *world) error {
			return w.DeleteGroup(ctx, alice, w.readers.ID, w.readers.Version)
		}},
		{"let nobody in by condition", "permission_group.update", access.Granted, func(w *world) error {
			return w.changeGroup(func(g *Group) { g.MemberCondition = `user.name == "another"` })
		}},
		{"add a rule with a condition that holds", "rule.add", access.DeniedByRule, func(w *world) error {
			_, err := w.AddRule(ctx, alice, w.readers.ID, rules(`deny GET /v1/{x} when params.x == "x" && user.name == "billing-sync"`)[0])
			return err
		}},
		{"add a rule with a condition that does not hold", "rule.add", access.Granted, func(w *world) error {
			_, err := w.AddRule(ctx, alice, w.readers.ID, rules(`deny GET /v1/{x} when params.x == "y"`)[0])
			return err
		}},
		{"put conditions on the rules", "permission_group.update", access.NoRule, func(w *world) error {
			return w.changeGroup(func(g *Group) { g.Rules[0].When = `user.labels.env == "prod"` })
		}},
		{"load permissions", "permission.create permission.create", access.Granted, func(w *world) error {
			_, err := w.LoadPermissions(ctx, alice, permissionList("p q"), false)
			return err
		}},
		{"give permissions", "permission.create, permission_group.update", access.DeniedByRule, func(w *world) error {
			_, err := w.LoadPermissions(ctx, alice, []Permission{permission("p", "deny * /v1/{rest...}")}, false)
			return cmp.Or(err, w.GrantPermission(ctx, alice, w.readers.ID, "p"))
		}},
		{"delete a group with permissions", "permission.create, permission_group.update, permission_group.delete, permission.delete", access.NoRule, func(w *world) error {
			_, err := w.LoadPermissions(ctx, alice, permissionList("p"), false)
			return cmp.Or(err, w.GrantPermission(ctx, alice, w.readers.ID, "p"), w.DeleteGroup(ctx, alice, w.readers.ID, 0), w.DeletePermission(ctx, alice, "p"))
		}},
		{"add a rule", "rule.add", access.DeniedByRule, func(w *world) error {
			_, err := w.AddRule(ctx, alice, w.readers.ID, rules("deny GET /v1/x")[0])
			return err
		}},
		{"remove a rule", "rule.remove", access.NoRule, func(w *world) error { return w.RemoveRule(ctx, alice, w.readers.ID, w.readers.Rules[0].ID) }},
		{"let everybody into a group that denies", "permission_group.update", access.DeniedByRule, func(w *world) error {
			_, err := w.UpdateGroup(ctx, alice, w.closers.ID, 0, func(g *Group) error { g.MemberCondition = "true"; return nil })
			return err
		}},
		{"let in whoever has a label, which this one has not", "permission_group.update", access.DeniedByRule, func(w *world) error {
			_, err := w.UpdateGroup(ctx, alice, w.closers.ID, 0, func(g *Group) error { g.MemberCondition = `user.labels.env == "prod"`; return nil })
			return err
		}},
		{"add a member", "member.add", access.DeniedByRule, func(w *world) error { return w.AddMember(ctx, alice, w.closers.ID, w.user.ID) }},
		{"remove a member", "member.remove", access.NoRule, func(w *world) error { return w.RemoveMember(ctx, alice, w.readers.ID, w.user.ID) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
				t.Fatalf("to begin with: got %v, want granted", got)
			}
			revision, known := w.Directory().Revision(), len(trail(t, w.Store))
			if err := row.do(w); err != nil {
				t.Fatal(err)
			}
			if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != row.want {
				t.Errorf("GET /v1/x afterwards: got %v, want %v", got, row.want)
			}
			var stored int64
			mustDo(w.read.QueryRowContext(ctx, `SELECT revision FROM meta`).Scan(&stored))
			want := revision + int64(strings.Count(row.actions, ",")) + 1
			if got := w.Directory().Revision(); got != want || stored != want {
				t.Errorf("revision: got %d in the directory and %d in the store, want %d", got, stored, want)
			}
			var actions []string
			for _, e := range trail(t, w.Store)[known:] {
				actions = append(actions, e.Action)
				checkEvent(t, w, e)
			}
			if got, want := strings.Join(actions, " "), strings.ReplaceAll(row.actions, ",", ""); got != want {
				t.Errorf("audit records: got %q, want %q", got, want)
			}
			again := open(t, w.path, w.opts)
			same(t, "opened again", dirText(t, again), dirText(t, w.Store))
			mustDo(again.Close())
			mustDo(w.Close())
			for name, content := range filesAt(t, w.path) {
				for _, secret := range w.secrets {
					absent(t, name, content, secret)
				}
			}
		})
	}
}

// checkEvent checks one audit record of a change by alice.
func checkEvent(t *testing.T, w *world, e AuditEvent) {
	t.Helper()
	if e.Actor != alice.Name || e.Operation != alice.Operation || !e.At.Equal(w.clock.Now()) && !e.At.Before(w.clock.Now()) || !ValidID("audit", e.ID) {
		t.Errorf("audit record of %s: got %+v", e.Action, e)
	}
	type record struct {
		ID      string
		Key     string // of a permission, which has no id and no version
		Version int64
	}
	var before, after record
	for _, side := range []struct {
		what  string
		text  json.RawMessage
		place *record
		empty bool
	}{{"before", e.Before, &before, strings.HasSuffix(e.Action, ".create")}, {"after", e.After, &after, strings.HasSuffix(e.Action, ".delete")}} {
		if side.empty != (len(side.text) == 0) {
			t.Errorf("%s of %s: got %q, want it empty: %t", side.what, e.Action, side.text, side.empty)
		}
		if len(side.text) > 0 {
			if err := json.Unmarshal(side.text, side.place); err != nil || cmp.Or(side.place.ID, side.place.Key) != e.Resource {
				t.Errorf("%s of %s: got %s (%v), want the record of %s", side.what, e.Action, side.text, err, e.Resource)
			}
		}
		for _, secret := range w.secrets {
			absent(t, side.what+" of "+e.Action, side.text, secret)
			hash, _ := w.opts.Peppers.Hash(secret)
			if text := fmt.Sprintf("%x", hash); strings.Contains(string(side.text), text) {
				t.Errorf("%s of %s holds the hash of a token", side.what, e.Action)
			}
		}
	}
	if string(e.Before) == string(e.After) {
		t.Errorf("the record of %s shows no difference: %s", e.Action, e.After)
	}
	if len(e.After) > 0 && after.Key == "" && after.Version != before.Version+1 {
		t.Errorf("version of %s: got %d after %d, want one more", e.Action, after.Version, before.Version)
	}
}

// A record that is tampered with no longer fits its hash.
func TestAuditDigest(t *testing.T) {
	e := AuditEvent{
		Seq: 1, ID: "i", At: time.Unix(2, 0), Actor: "a", Action: "c", Resource: "r",
		Before: json.RawMessage("{}"), After: json.RawMessage("[]"), Operation: "o", PrevHash: "p",
	}
	digest := e.digest()
	if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(`["p",1,"i",2,"a","c","r","{}","[]","o"]`))); digest != sum {
		t.Errorf("digest: got %s, want %s", digest, sum)
	}
	for name, change := range map[string]func(*AuditEvent){
		"seq": func(e *AuditEvent) { e.Seq++ }, "id": func(e *AuditEvent) { e.ID = "" }, "at": func(e *AuditEvent) { e.At = e.At.Add(time.Second) },
		"actor": func(e *AuditEvent) { e.Actor = "b" }, "action": func(e *AuditEvent) { e.Action = "b" }, "resource": func(e *AuditEvent) { e.Resource = "b" },
		"before": func(e *AuditEvent) { e.Before = nil }, "after": func(e *AuditEvent) { e.After = nil }, "operation": func(e *AuditEvent) { e.Operation = "b" },
		"prev_hash": func(e *AuditEvent) { e.PrevHash = "" },
		"two moved": func(e *AuditEvent) { e.Before, e.After = e.After, e.Before },
	} {
		changed := e
		change(&changed)
		if changed.digest() == digest {
			t.Errorf("a changed %s: got the same digest", name)
		}
	}
}

func TestNothingToChange(t *testing.T) {
	w := newWorld(t, Options{})
	mustDo(w.changeUser(func(u *ServiceUser) {
		u.Teams, u.AllowedIPs, u.ExpiresAt = []string{"a", "b"}, []string{"192.0.2.0/24", "2001:db8::/32"}, w.clock.Now().Add(time.Hour)
		u.Labels = map[string]string{"env": "prod"}
	}))
	mustDo(w.changeToken(func(k *Token) { k.AllowedIPs, k.ExpiresAt = []string{"192.0.2.1/32"}, w.clock.Now().Add(time.Hour) }))
	spare := must(w.CreateToken(ctx, alice, w.user.ID, Token{}))
	mustDo(w.revoke(ctx, alice, w.user.ID, spare.ID))
	load(w.Store, permissionList("p q")...)
	mustDo(w.changeGroup(func(g *Group) { g.Permissions, g.MemberCondition = []string{"p", "q"}, "true" }))
	w.clock.add(time.Minute)
	berlin := time.FixedZone("", 7200)
	for _, row := range []struct {
		name string
		do   func() error
	}{
		{"service user, no edit", func() error { return w.changeUser(func(*ServiceUser) {}) }},
		{"service user, lists in another spelling", func() error {
			return w.changeUser(func(u *ServiceUser) {
				u.Teams, u.AllowedIPs = []string{"b", "a", "b"}, []string{"2001:DB8::1/32", "192.0.2.77/24"}
				u.Groups = []string{w.readers.ID, w.readers.ID}
			})
		}},
		{"service user, the instant in another spelling", func() error {
			return w.changeUser(func(u *ServiceUser) { u.ExpiresAt = u.ExpiresAt.In(berlin).Add(time.Millisecond) })
		}},
		{"service user, equal labels", func() error { return w.changeUser(func(u *ServiceUser) { u.Labels = maps.Clone(u.Labels) }) }},
		{"service user, what is not for the caller", func() error {
			return w.changeUser(func(u *ServiceUser) {
				u.ID, u.CreatedBy, u.Version, u.CreatedAt, u.UpdatedAt, u.DeletedAt, u.LastActiveAt = "x", "x", 9, time.Time{}, time.Time{}, w.clock.Now(), w.clock.Now()
			})
		}},
		{"token, no edit", func() error { return w.changeToken(func(*Token) {}) }},
		{"token, another spelling", func() error {
			return w.changeToken(func(k *Token) { k.AllowedIPs, k.ExpiresAt = []string{"192.0.2.1"}, k.ExpiresAt.In(berlin) })
		}},
		{"token, what is not for the caller", func() error {
			return w.changeToken(func(k *Token) {
				k.ID, k.UserID, k.Hint, k.ReplacedBy, k.RevokedAt, k.RetiresAt, k.UseCount, k.LastUsedIP = "x", "x", "x", "x", w.clock.Now(), w.clock.Now(), 9, "x"
			})
		}},
		{"group, no edit", func() error { return w.changeGroup(func(*Group) {}) }},
		{"group, equal rules", func() error {
			return w.changeGroup(func(g *Group) { g.Rules = rules("allow GET,GET /v1/{x}", "allow  GET\t/v2") })
		}},
		{"group, permissions in another order", func() error {
			return w.changeGroup(func(g *Group) { g.Permissions = []string{"q", "p", "q"} })
		}},
		{"give a permission that it has", func() error { return w.GrantPermission(ctx, alice, w.readers.ID, "p") }},
		{"withdraw a permission that it has not", func() error { return w.WithdrawPermission(ctx, alice, w.closers.ID, "p") }},
		{"load what is there", func() error { return second(w.LoadPermissions(ctx, alice, permissionList("p q"), true)) }},
		{"group, what is not for the caller", func() error {
			return w.changeGroup(func(g *Group) { g.ID, g.MemberCount, g.CreatedBy, g.Version = w.closers.ID, 9, "x", 9 })
		}},
		{"add a member that is one", func() error { return w.AddMember(ctx, alice, w.readers.ID, w.user.ID) }},
		{"remove a member that is none", func() error { return w.RemoveMember(ctx, alice, w.closers.ID, w.user.ID) }},
		{"revoke what is revoked", func() error { return w.revoke(ctx, alice, w.user.ID, spare.ID) }},
	} {
		before := dump(t, w.Store)
		if err := row.do(); err != nil {
			t.Errorf("%s: got %v, want no error", row.name, err)
		}
		same(t, row.name, dump(t, w.Store), before)
	}
}

// A refused change leaves no trace.
func TestRefusedChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{MaxTokenTTL: 24 * time.Hour})
	other, _ := addUser(w.Store, "other")
	mustDo(w.changeUser(func(u *ServiceUser) { u.Alias = "sync@example" }))
	gone, goneToken := addUser(w.Store, "gone", w.closers.ID)
	mustDo(w.deleteUser(ctx, Local, gone.ID, 0))
	goneGroup := addGroup(w.Store, "gone", "allow GET /")
	mustDo(w.DeleteGroup(ctx, Local, goneGroup.ID, 0))
	revoked := must(w.CreateToken(ctx, Local, w.user.ID, Token{}))
	mustDo(w.revoke(ctx, Local, w.user.ID, revoked.ID))
	retiring := must(w.CreateToken(ctx, Local, w.user.ID, Token{}))
	must(w.refreshOf(ctx, Local, w.user.ID, retiring.ID, time.Hour))
	full, _ := addUser(w.Store, "full")
	for range maxLiveTokens - 1 {
		must(w.CreateToken(ctx, Local, full.ID, Token{}))
	}
	w.user, w.readers = must(w.readUser(ctx, Local, w.user.ID)), must(w.Group(ctx, Local, w.readers.ID))
	mine := errors.New("no, thanks")
	noUser, noGroup, noToken := newID("service", w.clock.Now()), newID("group", w.clock.Now()), newID("token", w.clock.Now())

	create := func(u ServiceUser) error {
		_, _, err := w.CreateServiceUser(ctx, alice, u, &Token{})
		return err
	}
	updateUser := func(id string, version int64) error {
		_, err := w.UpdateServiceUser(ctx, alice, id, version, func(u *ServiceUser) error { u.Owner = "x"; return nil })
		return err
	}
	updateToken := func(user, id string, version int64) error {
		_, err := w.UpdateToken(ctx, alice, user, id, version, func(k *Token) error { k.Description = "x"; return nil })
		return err
	}
	updateGroup := func(id string, version int64) error {
		_, err := w.UpdateGroup(ctx, alice, id, version, func(g *Group) error { g.Description = "x"; g.Rules = nil; return nil })
		return err
	}
	createToken := func(user string, k Token) error {
		_, err := w.CreateToken(ctx, alice, user, k)
		return err
	}
	refresh := func(user, id string, grace time.Duration) error {
		_, err := w.refreshOf(ctx, alice, user, id, grace)
		return err
	}
	addRule := func(group, text string) error {
		_, err := w.AddRule(ctx, alice, group, access.Rule{Effect: "allow", Methods: []string{"GET"}, Path: text})
		return err
	}
	for _, row := range []struct {
		name, want string
		do         func() error
	}{
		{"create, name taken", "conflict: taken name", func() error { return create(ServiceUser{Profile: access.Profile{Name: w.user.Name}}) }},
		{"create, alias taken", "conflict: taken alias", func() error { return create(ServiceUser{Profile: access.Profile{Name: "n", Alias: w.user.Alias}}) }},
		{"create, unknown group", "invalid value permission_groups", func() error {
			return create(ServiceUser{Profile: access.Profile{Name: "n"}, Groups: []string{noGroup}})
		}},
		{"create, deleted group", "invalid value permission_groups", func() error {
			return create(ServiceUser{Profile: access.Profile{Name: "n"}, Groups: []string{w.readers.ID, goneGroup.ID}})
		}},
		{"create, bad token", "invalid value expires_at", func() error {
			_, _, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "n"}}, &Token{ExpiresAt: w.clock.Now()})
			return err
		}},
		{"update, name taken", "conflict: taken name", func() error { return w.changeUser(func(u *ServiceUser) { u.Name = other.Name }) }},
		{"update, alias taken", "conflict: taken alias", func() error {
			_, err := w.UpdateServiceUser(ctx, alice, other.ID, 0, func(u *ServiceUser) error { u.Alias = w.user.Alias; return nil })
			return err
		}},
		{"update, unknown group", "invalid value permission_groups", func() error { return w.changeUser(func(u *ServiceUser) { u.Groups = []string{noGroup} }) }},
		{"update, the edit refuses", "broken: no, thanks", func() error {
			_, err := w.UpdateServiceUser(ctx, alice, w.user.ID, 0, func(u *ServiceUser) error { u.Name = "x"; return mine })
			return err
		}},
		{"update, unknown", "not found", func() error { return updateUser(noUser, 0) }},
		{"update, deleted", "not found", func() error { return updateUser(gone.ID, 0) }},
		{"update, the id of a group", "not found", func() error { return updateUser(w.readers.ID, 0) }},
		{"update, older version", "changed", func() error { return updateUser(w.user.ID, w.user.Version-1) }},
		{"update, version to come", "changed", func() error { return updateUser(w.user.ID, w.user.Version+1) }},
		{"delete, unknown", "not found", func() error { return w.deleteUser(ctx, alice, noUser, 0) }},
		{"delete, deleted", "not found", func() error { return w.deleteUser(ctx, alice, gone.ID, 0) }},
		{"delete, older version", "changed", func() error { return w.deleteUser(ctx, alice, w.user.ID, w.user.Version-1) }},
		{"token for nobody", "not found", func() error { return createToken(noUser, Token{}) }},
		{"token for a deleted one", "not found", func() error { return createToken(gone.ID, Token{}) }},
		{"token for too long", "invalid value expires_at", func() error {
			return createToken(w.user.ID, Token{ExpiresAt: w.clock.Now().Add(24*time.Hour + time.Second)})
		}},
		{"token with an unknown group", "invalid value permission_groups", func() error { return createToken(w.user.ID, Token{Groups: []string{noGroup}}) }},
		{"token, one too many", "conflict", func() error { return createToken(full.ID, Token{}) }},
		{"update token, unknown", "not found", func() error { return updateToken(w.user.ID, noToken, 0) }},
		{"update token, of another one", "not found", func() error { return updateToken(other.ID, w.token.ID, 0) }},
		{"update token, of a deleted one", "not found", func() error { return updateToken(gone.ID, goneToken.ID, 0) }},
		{"update token, older version", "changed", func() error { return updateToken(w.user.ID, w.token.ID, 7) }},
		{"update token, for too long", "invalid value expires_at", func() error { return w.changeToken(func(k *Token) { k.ExpiresAt = w.clock.Now().Add(25 * time.Hour) }) }},
		{"update token, for ever", "invalid value expires_at", func() error { return w.changeToken(func(k *Token) { k.ExpiresAt = time.Time{} }) }},
		{"update token, unknown group", "invalid value permission_groups", func() error { return w.changeToken(func(k *Token) { k.Groups = []string{"group_x"} }) }},
		{"refresh, unknown", "not found", func() error { return refresh(w.user.ID, noToken, 0) }},
		{"refresh, of another one", "not found", func() error { return refresh(other.ID, w.token.ID, 0) }},
		{"refresh, revoked", "conflict", func() error { return refresh(w.user.ID, revoked.ID, 0) }},
		{"refresh, retiring", "conflict", func() error { return refresh(w.user.ID, retiring.ID, 0) }},
		{"refresh, negative grace", "invalid value grace", func() error { return refresh(w.user.ID, w.token.ID, -1) }},
		{"refresh with a grace, one too many", "conflict", func() error {
			return refresh(full.ID, must(w.tokensOf(full.ID))[0].ID, time.Hour)
		}},
		{"revoke, unknown", "not found", func() error { return w.revoke(ctx, alice, w.user.ID, noToken) }},
		{"revoke, of another one", "not found", func() error { return w.revoke(ctx, alice, other.ID, w.token.ID) }},
		{"group, name taken", "conflict name", func() error { _, err := w.CreateGroup(ctx, alice, Group{Name: "readers"}); return err }},
		{"group, second rule bad", "invalid value rules", func() error {
			_, err := w.CreateGroup(ctx, alice, Group{Name: "g", Rules: append(rules("allow GET /"), access.Rule{})})
			return err
		}},
		{"update group, name taken", "conflict name", func() error { return w.changeGroup(func(g *Group) { g.Name = "closers" }) }},
		{"update group, bad rule", "invalid value rules", func() error {
			return w.changeGroup(func(g *Group) {
				g.Rules = append(rules("allow PUT /"), access.Rule{Effect: "allow", Methods: []string{"GET"}, Path: "x"})
			})
		}},
		{"update group, unknown", "not found", func() error { return updateGroup(noGroup, 0) }},
		{"update group, deleted", "not found", func() error { return updateGroup(goneGroup.ID, 0) }},
		{"update group, older version", "changed", func() error { return updateGroup(w.readers.ID, w.readers.Version+1) }},
		{"delete group, unknown", "not found", func() error { return w.DeleteGroup(ctx, alice, noGroup, 0) }},
		{"delete group, deleted", "not found", func() error { return w.DeleteGroup(ctx, alice, goneGroup.ID, 0) }},
		{"delete group, older version", "changed", func() error { return w.DeleteGroup(ctx, alice, w.readers.ID, w.readers.Version+1) }},
		{"add rule, unknown group", "not found", func() error { return addRule(noGroup, "/") }},
		{"add rule, deleted group", "not found", func() error { return addRule(goneGroup.ID, "/") }},
		{"add rule, bad", "invalid value rules", func() error { return addRule(w.readers.ID, "/%41") }},
		{"remove rule, unknown", "not found", func() error { return w.RemoveRule(ctx, alice, w.readers.ID, "rule_x") }},
		{"remove rule, of another group", "not found", func() error { return w.RemoveRule(ctx, alice, w.readers.ID, w.closers.Rules[0].ID) }},
		{"add member, unknown", "not found", func() error { return w.AddMember(ctx, alice, w.readers.ID, noUser) }},
		{"add member, deleted", "not found", func() error { return w.AddMember(ctx, alice, w.readers.ID, gone.ID) }},
		{"add member, unknown group", "not found", func() error { return w.AddMember(ctx, alice, noGroup, w.user.ID) }},
		{"add member, deleted group", "not found", func() error { return w.AddMember(ctx, alice, goneGroup.ID, w.user.ID) }},
		{"remove member, deleted", "not found", func() error { return w.RemoveMember(ctx, alice, w.closers.ID, gone.ID) }},
	} {
		before, directory := dump(t, w.Store), w.Directory()
		if got := kind(row.do()); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
		same(t, row.name, dump(t, w.Store), before)
		if w.Directory() != directory {
			t.Errorf("%s: the directory was replaced", row.name)
		}
	}
	for what, err := range map[string]error{
		"a deleted service user": second(w.readUser(ctx, Local, gone.ID)),
		"a token of it":          second(w.Token(ctx, Local, gone.ID, goneToken.ID)),
		"the tokens of it":       third(w.FindTokens(ctx, Local, TokenQuery{UserID: gone.ID, Limit: 10})),
		"a deleted group":        second(w.Group(ctx, Local, goneGroup.ID)),
		"the members of it":      third(w.Members(ctx, Local, goneGroup.ID, "", 10)),
		"a token by another one": second(w.Token(ctx, Local, other.ID, w.token.ID)),
	} {
		if got := kind(err); got != "not found" {
			t.Errorf("%s: got %s, want not found", what, got)
		}
	}
	if list, _, err := w.Members(ctx, Local, w.closers.ID, "", 10); err != nil || len(list) != 0 || must(w.Group(ctx, Local, w.closers.ID)).MemberCount != 0 {
		t.Errorf("members of a group whose only one was deleted: got %v, %v, want none", list, err)
	}
	if n := must(w.Group(ctx, Local, w.readers.ID)).MemberCount; n != 1 {
		t.Errorf("member_count: got %d, want 1", n)
	}
}

func second[T any](_ T, err error) error        { return err }
func third[T, U any](_ T, _ U, err error) error { return err }

func (s *Store) tokensOf(user string) ([]Token, error) {
	list, _, err := s.FindTokens(ctx, Local, TokenQuery{UserID: user, Limit: 1000})
	return list, err
}

// An edit may change the record that it is given in place.
func TestEditInPlace(t *testing.T) {
	w := newWorld(t, Options{})
	mustDo(w.changeUser(func(u *ServiceUser) {
		u.Labels, u.Teams, u.AllowedIPs = map[string]string{"env": "test"}, []string{"a", "b"}, []string{"10.0.0.0/8", "192.0.2.0/24"}
		u.Groups = []string{w.readers.ID, w.closers.ID}
	}))
	mustDo(w.changeUser(func(u *ServiceUser) {
		u.Labels["env"], u.Teams[0], u.AllowedIPs[0] = "prod", "c", "198.51.100.0/24"
		u.Groups = slices.DeleteFunc(u.Groups, func(id string) bool { return id == w.closers.ID })
	}))
	u := must(w.readUser(ctx, Local, w.user.ID))
	if got, want := fmt.Sprint(u.Labels, u.Teams, u.AllowedIPs, u.Groups), fmt.Sprint(map[string]string{"env": "prod"}, []string{"b", "c"}, []string{"192.0.2.0/24", "198.51.100.0/24"}, []string{w.readers.ID}); got != want {
		t.Errorf("service user: got %s, want %s", got, want)
	}
	mustDo(w.changeToken(func(k *Token) { k.AllowedIPs, k.Groups = []string{"192.0.2.0/24"}, []string{w.readers.ID} }))
	mustDo(w.changeToken(func(k *Token) { k.AllowedIPs[0], k.Groups[0] = "192.0.2.1", w.closers.ID }))
	k := must(w.Token(ctx, Local, w.user.ID, w.token.ID))
	if got, want := fmt.Sprint(k.AllowedIPs, k.Groups), fmt.Sprint([]string{"192.0.2.1/32"}, []string{w.closers.ID}); got != want {
		t.Errorf("token: got %s, want %s", got, want)
	}
	mustDo(w.changeGroup(func(g *Group) { g.Rules[0].Methods[0] = "PUT"; g.Rules = slices.Delete(g.Rules, 1, 2) }))
	if got, want := ruleTexts(must(w.Group(ctx, Local, w.readers.ID)).Rules), "allow PUT /v1/{x}"; got != want {
		t.Errorf("group: got %s, want %s", got, want)
	}
}

func ruleTexts(list []access.Rule) string {
	var texts []string
	for _, r := range list {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, "; ")
}

// What a call returns is what is read afterwards.
func TestReturnedRecords(t *testing.T) {
	w := newWorld(t, Options{})
	same := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got\n%+v\nwant what was returned\n%+v", what, got, want)
		}
	}
	later := w.clock.Now().Add(90*time.Minute + 700*time.Millisecond).In(time.FixedZone("", -3600))
	all := ServiceUser{
		Profile: access.Profile{ID: "x", Name: "all", DisplayName: "Ä", Description: "a\nb", Owner: "o@example", Alias: "all@example", Active: true, Role: access.Manager,
			Teams: []string{"z", "a", "a"}, Labels: map[string]string{"k": "v"}}, AllowedIPs: []string{"10.1.2.3/8", "::ffff:192.0.2.1"}, ExpiresAt: later,
		CreatedAt: later, CreatedBy: "x", UpdatedAt: later, LastActiveAt: later, DeletedAt: later, Groups: []string{w.readers.ID, w.readers.ID}, Version: 9,
	}
	u, issued, err := w.CreateServiceUser(ctx, alice, all, &Token{
		ID: "x", UserID: "x", Description: "d", Hint: "x", Metadata: "{\n}", AllowedIPs: []string{"10.1.2.3"}, Groups: []string{w.readers.ID, w.readers.ID}, ExpiresAt: later, NotBefore: w.clock.Now(),
		CreatedAt: later, CreatedBy: "x", UpdatedAt: later, LastUsedAt: later, LastUsedIP: "x", UseCount: 9, RetiresAt: later, RevokedAt: later, ReplacedBy: "x", Version: 9,
	})
	mustDo(err)
	same("service user", must(w.readUser(ctx, Local, u.ID)), u)
	same("token", must(w.Token(ctx, Local, u.ID, issued.ID)), issued.Token)
	if u.CreatedBy != alice.Name || u.Version != 1 || issued.UserID != u.ID || issued.Version != 1 || issued.Hint != access.Hint(issued.Secret) {
		t.Errorf("what the store sets itself: got %+v and %+v", u, issued.Token)
	}
	if want := w.clock.Now().Add(90 * time.Minute); !u.ExpiresAt.Equal(want) || u.ExpiresAt.Location() != time.UTC {
		t.Errorf("expires_at: got %v, want %v: whole seconds, UTC", u.ExpiresAt, want)
	}
	w.clock.add(time.Minute)
	u = must(w.UpdateServiceUser(ctx, alice, u.ID, u.Version, func(u *ServiceUser) error {
		u.Labels, u.Teams, u.AllowedIPs, u.ExpiresAt, u.Groups, u.CreatedBy = nil, nil, nil, later.Add(time.Hour), []string{w.closers.ID}, "x"
		return nil
	}))
	same("updated service user", must(w.readUser(ctx, Local, u.ID)), u)
	k := must(w.UpdateToken(ctx, alice, u.ID, issued.ID, 1, func(k *Token) error {
		k.Groups, k.AllowedIPs, k.NotBefore, k.RevokedAt, k.Description = nil, nil, time.Time{}, later, "e"
		return nil
	}))
	same("updated token", must(w.Token(ctx, Local, u.ID, k.ID)), k)
	for _, grace := range []time.Duration{0, time.Hour} {
		next := must(w.refreshOf(ctx, alice, u.ID, issued.ID, grace))
		same("successor", must(w.Token(ctx, Local, u.ID, next.ID)), next.Token)
		issued = next
	}
	load(w.Store, permissionList("p q")...)
	g := must(w.CreateGroup(ctx, alice, Group{ID: "x", Name: "g", Description: "d", MemberCondition: `user.name == "all"`, Permissions: []string{"q", "p", "q"}, MemberCount: 9, Rules: []access.Rule{{ID: "x", Effect: "allow", Methods: []string{"GET"}, Path: "/", Host: "A.Example", Name: "n", Description: "d"}}}))
	same("group", must(w.Group(ctx, Local, g.ID)), g)
	if !slices.Equal(g.Permissions, []string{"p", "q"}) || g.MemberCount != 1 {
		t.Errorf("group: got %+v, want two permissions and one member", g)
	}
	g = must(w.UpdateGroup(ctx, alice, g.ID, g.Version, func(g *Group) error {
		g.Rules, g.CreatedBy, g.MemberCount = append(rules("deny * /"), g.Rules...), "x", 9
		g.Permissions, g.MemberCondition = g.Permissions[1:], ""
		return nil
	}))
	same("updated group", must(w.Group(ctx, Local, g.ID)), g)
	if g.MemberCount != 0 {
		t.Errorf("updated group: got %d members, want none", g.MemberCount)
	}
	r := must(w.AddRule(ctx, alice, g.ID, access.Rule{ID: "x", Effect: "deny", Methods: []string{"GET"}, Path: "/x", Description: "d"}))
	same("rule", must(w.Group(ctx, Local, g.ID)).Rules[2], r)
}

func TestUpdateGroupKeepsRules(t *testing.T) {
	w := newWorld(t, Options{})
	g := addGroup(w.Store, "g", "allow GET /a", "allow GET /b", "allow GET /b", "allow GET /c")
	g = must(w.UpdateGroup(ctx, alice, g.ID, 0, func(g *Group) error { g.Rules[3].Name = "see"; return nil }))
	old := g.Rules
	made := func() string {
		return fmt.Sprint(must(collect(must(w.read.QueryContext(ctx, `SELECT id || ' ' || created_at FROM rules WHERE group_id = $1 AND id = $2`, g.ID, old[1].ID)), scanString)))
	}
	before := made()
	w.clock.add(time.Minute)
	g = must(w.UpdateGroup(ctx, alice, g.ID, 0, func(g *Group) error {
		// As a caller does it that knows no ids.
		g.Rules = append(rules("allow GET /new", "allow GET /c", "allow GET /b", "allow GET /b", "allow GET /b"), access.Rule{Effect: "allow", Methods: []string{"GET"}, Path: "/c", Name: "see"})
		return nil
	}))
	if got, want := ruleTexts(g.Rules), "allow GET /new; allow GET /c; allow GET /b; allow GET /b; allow GET /b; allow GET /c"; got != want {
		t.Errorf("order: got %s, want %s", got, want)
	}
	for i, want := range []string{"", "", old[1].ID, old[2].ID, "", old[3].ID} {
		known := slices.ContainsFunc(old, func(r access.Rule) bool { return r.ID == g.Rules[i].ID })
		if want == "" && known || want != "" && g.Rules[i].ID != want {
			t.Errorf("id of rule %d (%s): got %s, want %q", i, g.Rules[i], g.Rules[i].ID, want)
		}
	}
	if after := made(); after != before {
		t.Errorf("a rule that stays: got %s, want %s", after, before)
	}
	r := must(w.AddRule(ctx, alice, g.ID, rules("allow GET /last")[0]))
	if list := must(w.Group(ctx, Local, g.ID)).Rules; list[len(list)-1].ID != r.ID {
		t.Errorf("a rule that is added stands at %s, want it at the end", ruleTexts(list))
	}
}

func TestNamesAreFreeAgain(t *testing.T) {
	w := newWorld(t, Options{})
	seen := make(map[string]bool)
	for range 5 {
		u, issued, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: "n", Alias: "a@example", Active: true}, Groups: []string{w.readers.ID}}, &Token{})
		mustDo(err)
		g := must(w.CreateGroup(ctx, alice, Group{Name: "g"}))
		for _, id := range []string{u.ID, issued.ID, g.ID} {
			if seen[id] {
				t.Errorf("%s was used before", id)
			}
			seen[id] = true
		}
		if got := probe(w.Store, "a@example", issued.Secret, "GET /v1/x"); got != access.Granted {
			t.Errorf("by its alias: got %v, want granted", got)
		}
		mustDo(w.deleteUser(ctx, alice, u.ID, 0))
		mustDo(w.DeleteGroup(ctx, alice, g.ID, 0))
		for _, login := range []string{u.ID, "a@example"} {
			if got := probe(w.Store, login, issued.Secret, "GET /v1/x"); got != access.UnknownID {
				t.Errorf("%s after its end: got %v, want unknown_id", login, got)
			}
		}
	}
	var tombstones int
	mustDo(w.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM service_users WHERE deleted_at > 0 AND name = 'n'`).Scan(&tombstones))
	if tombstones != 5 {
		t.Errorf("tombstones: got %d, want 5", tombstones)
	}
	// An alias can move from one to another.
	a, token := addUser(w.Store, "n", w.readers.ID)
	mustDo(w.changeUser(func(u *ServiceUser) { u.Alias = "a@example" }))
	mustDo(w.changeUser(func(u *ServiceUser) { u.Alias = "" }))
	must(w.UpdateServiceUser(ctx, alice, a.ID, 0, func(u *ServiceUser) error { u.Alias = "a@example"; return nil }))
	if got := probe(w.Store, "a@example", token.Secret, "GET /v1/x"); got != access.Granted {
		t.Errorf("an alias that moved: got %v, want granted", got)
	}
}

// There is a limit for live tokens, and what has ended does not count.
func TestLiveTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{})
	var last string
	create := func(life time.Duration) error {
		var k Token
		if life > 0 {
			k.ExpiresAt = w.clock.Now().Add(life)
		}
		issued, err := w.CreateToken(ctx, alice, w.user.ID, k)
		if err == nil {
			last = issued.ID
		}
		return err
	}
	refresh := func(grace time.Duration) error {
		issued, err := w.refreshOf(ctx, alice, w.user.ID, last, grace)
		if err == nil {
			last = issued.ID
		}
		return err
	}
	for range maxLiveTokens - 3 {
		mustDo(create(0))
	}
	for i, step := range []struct {
		name, want string
		do         func() error
	}{
		{"replace one with a grace", "ok", func() error { return refresh(time.Hour) }},
		{"the last place", "ok", func() error { return create(0) }},
		{"one too many", "conflict", func() error { return create(0) }},
		{"replace one with a grace, one too many", "conflict", func() error { return refresh(time.Hour) }},
		{"replace one at once", "ok", func() error { return refresh(0) }},
		{"the grace has ended", "ok", func() error { w.clock.add(time.Hour); return create(time.Minute) }},
		{"one too many", "conflict", func() error { return create(0) }},
		{"one has expired", "ok", func() error { w.clock.add(time.Minute); return create(0) }},
		{"one too many", "conflict", func() error { return create(0) }},
		{"one is revoked", "ok", func() error {
			mustDo(w.revoke(ctx, alice, w.user.ID, w.token.ID))
			return create(0)
		}},
		{"one too many", "conflict", func() error { return create(0) }},
	} {
		if got := kind(step.do()); got != step.want {
			t.Errorf("step %d, %s: got %s, want %s", i, step.name, got, step.want)
		}
	}
}

// What has expired can still be changed, and can come back.
func TestChangeTheExpired(t *testing.T) {
	w := newWorld(t, Options{})
	end := w.clock.Now().Add(time.Minute)
	mustDo(w.changeUser(func(u *ServiceUser) { u.ExpiresAt = end }))
	mustDo(w.changeToken(func(k *Token) { k.ExpiresAt = end }))
	w.clock.add(time.Hour)
	for name, err := range map[string]error{
		"service user":               w.changeUser(func(u *ServiceUser) { u.Owner = "x" }),
		"token":                      w.changeToken(func(k *Token) { k.Description = "x" }),
		"service user, brought back": w.changeUser(func(u *ServiceUser) { u.ExpiresAt = time.Time{} }),
		"token, brought back":        w.changeToken(func(k *Token) { k.ExpiresAt = w.clock.Now().Add(time.Hour) }),
	} {
		if err != nil {
			t.Errorf("%s: got %v, want no error", name, err)
		}
	}
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
		t.Errorf("brought back: got %v, want granted", got)
	}
}

func TestTokenState(t *testing.T) {
	now := newClock().Now()
	past, ahead := now.Add(-time.Second), now.Add(time.Second)
	for _, row := range []struct {
		token Token
		want  TokenState
	}{
		{Token{}, TokenActive},
		{Token{ExpiresAt: ahead}, TokenActive},
		{Token{NotBefore: now}, TokenActive},
		{Token{NotBefore: ahead}, TokenPending},
		{Token{NotBefore: ahead, ExpiresAt: ahead.Add(time.Second)}, TokenPending},
		{Token{NotBefore: ahead, RetiresAt: ahead}, TokenRetiring},
		{Token{NotBefore: ahead, RevokedAt: now}, TokenRevoked},
		{Token{ExpiresAt: now}, TokenExpired},
		{Token{ExpiresAt: past}, TokenExpired},
		{Token{RetiresAt: ahead}, TokenRetiring},
		{Token{RetiresAt: now}, TokenRevoked},
		{Token{RetiresAt: ahead, ExpiresAt: past}, TokenExpired},
		{Token{RevokedAt: now}, TokenRevoked},
		{Token{RevokedAt: past, RetiresAt: ahead}, TokenRevoked},
		{Token{RevokedAt: past, ExpiresAt: past}, TokenRevoked},
	} {
		if got := row.token.State(now); got != row.want {
			t.Errorf("%+v: got %s, want %s", row.token, got, row.want)
		}
	}
}

func TestRefreshToken(t *testing.T) {
	const day = 24 * time.Hour
	for _, row := range []struct {
		name            string
		opts            Options
		lifetime        time.Duration // of the old token; 0 is none
		after           time.Duration // when it is refreshed
		grace, lastsFor time.Duration // the old one from then on; 0 is not at all
		want            time.Duration // lifetime of the new one; 0 is unlimited
		end             TokenState    // of the old one
	}{
		{"at once", Options{}, 0, day, 0, 0, 0, TokenRevoked},
		{"with a grace", Options{}, 0, day, time.Hour, time.Hour, 0, TokenRevoked},
		{"same lifetime", Options{}, 10 * day, day, time.Hour, time.Hour, 10 * day, TokenRevoked},
		{"a grace behind the end", Options{}, 2 * day, day, 9 * day, day, 2 * day, TokenExpired},
		{"expired", Options{}, day, day, time.Hour, 0, day, TokenRevoked},
		{"its own lifetime, not the default", Options{TokenTTL: 30 * day}, 10 * day, day, 0, 0, 10 * day, TokenRevoked},
		{"the default for what never ended", Options{TokenTTL: 30 * day}, 0, day, 0, 0, 30 * day, TokenRevoked},
		{"a lifetime that is no longer allowed", Options{MaxTokenTTL: 5 * day}, 10 * day, day, 0, 0, 5 * day, TokenRevoked},
		{"unlimited, which is no longer allowed", Options{MaxTokenTTL: 5 * day}, 0, day, 0, 0, 5 * day, TokenRevoked},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			token := Token{Description: "ci", Metadata: "m", AllowedIPs: []string{"192.0.2.0/24"}, Groups: []string{w.readers.ID}}
			if row.lifetime > 0 {
				token.ExpiresAt = w.clock.Now().Add(row.lifetime)
			}
			old := must(w.CreateToken(ctx, alice, w.user.ID, token))
			row.opts.Now, row.opts.Peppers = w.clock.Now, w.opts.Peppers
			s := open(t, w.path, row.opts)
			w.clock.add(row.after)
			next := must(s.refreshOf(ctx, alice, w.user.ID, old.ID, row.grace))
			got := next.ExpiresAt.Sub(next.CreatedAt)
			if next.ExpiresAt.IsZero() {
				got = 0
			}
			if got != row.want {
				t.Errorf("lifetime of the successor: got %v, want %v", got, row.want)
			}
			if next.Description != "ci" || next.Metadata != "m" || !slices.Equal(next.AllowedIPs, token.AllowedIPs) || !slices.Equal(next.Groups, token.Groups) || next.Secret == old.Secret {
				t.Errorf("successor: got %+v, want what the old one had", next.Token)
			}
			if was := must(s.Token(ctx, Local, w.user.ID, old.ID)); was.ReplacedBy != next.ID {
				t.Errorf("replaced_by: got %q, want %q", was.ReplacedBy, next.ID)
			}
			use := func(secret string) bool { return probe(s, w.user.ID, secret, "GET /v1/x") == access.Granted }
			if row.lastsFor > 0 {
				w.clock.add(row.lastsFor - time.Nanosecond)
				if !use(old.Secret) || must(s.Token(ctx, Local, w.user.ID, old.ID)).State(s.Now()) != TokenRetiring {
					t.Errorf("the old one just before its end: got %v, want granted", probe(s, w.user.ID, old.Secret, "GET /v1/x"))
				}
				w.clock.add(time.Nanosecond)
			}
			if use(old.Secret) {
				t.Error("the old one still passes")
			}
			if state := must(s.Token(ctx, Local, w.user.ID, old.ID)).State(s.Now()); state != row.end {
				t.Errorf("the old one is %s, want %s", state, row.end)
			}
			if !use(next.Secret) {
				t.Errorf("the new one: got %v, want granted", probe(s, w.user.ID, next.Secret, "GET /v1/x"))
			}
		})
	}
}

// A token that is narrowed to a group stays narrowed when the group is deleted,
// also when something else of it changes or it is replaced.
func TestNarrowedToADeletedGroup(t *testing.T) {
	w := newWorld(t, Options{})
	extra := addGroup(w.Store, "extra", "allow GET /v1/{x}")
	mustDo(w.AddMember(ctx, alice, extra.ID, w.user.ID))
	mustDo(w.changeToken(func(k *Token) { k.Groups = []string{extra.ID} }))
	mustDo(w.DeleteGroup(ctx, alice, extra.ID, 0))
	mustDo(w.changeToken(func(k *Token) { k.Description = "x" }))
	next, err := w.refreshOf(ctx, alice, w.user.ID, w.token.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{w.token.Secret, next.Secret} {
		if got := probe(w.Store, w.user.ID, secret, "GET /v1/x"); got != access.NoRule {
			t.Errorf("got %v, want no_rule", got)
		}
	}
	if !slices.Equal(next.Groups, []string{extra.ID}) {
		t.Errorf("the successor: got %v, want %s", next.Groups, extra.ID)
	}
}

func TestTokenTTL(t *testing.T) {
	const day = 24 * time.Hour
	for _, row := range []struct {
		opts  Options
		asked time.Duration // 0 is nothing
		want  time.Duration // 0 is unlimited, -1 is refused
	}{
		{Options{}, 0, 0},
		{Options{}, 400 * day, 400 * day},
		{Options{TokenTTL: 90 * day}, 0, 90 * day},
		{Options{TokenTTL: 90 * day}, 91 * day, 91 * day},
		{Options{TokenTTL: 90 * day, MaxTokenTTL: 365 * day}, 0, 90 * day},
		{Options{TokenTTL: 90 * day, MaxTokenTTL: 365 * day}, 365 * day, 365 * day},
		{Options{TokenTTL: 90 * day, MaxTokenTTL: 365 * day}, 365*day + 999*time.Millisecond, 365 * day}, // whole seconds count
		{Options{TokenTTL: 90 * day, MaxTokenTTL: 365 * day}, 365*day + time.Second, -1},
		{Options{MaxTokenTTL: 30 * day}, 0, 30 * day},
		{Options{TokenTTL: 90 * day, MaxTokenTTL: 30 * day}, 0, 30 * day},
	} {
		row.opts.Now = newClock().Now
		s := open(t, place(t), row.opts)
		u := must(first(s.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "a"}}, nil)))
		var token Token
		if row.asked > 0 {
			token.ExpiresAt = s.Now().Add(row.asked)
		}
		got := time.Duration(-1)
		if issued, err := s.CreateToken(ctx, Local, u.ID, token); err == nil && issued.ExpiresAt.IsZero() {
			got = 0
		} else if err == nil {
			got = issued.ExpiresAt.Sub(issued.CreatedAt)
		}
		if got != row.want {
			t.Errorf("%v of default %v and at most %v: got %v, want %v", row.asked, row.opts.TokenTTL, row.opts.MaxTokenTTL, got, row.want)
		}
	}
}

// A shorter limit does not touch the tokens that there are.
func TestTokenBeyondTheLimit(t *testing.T) {
	w := newWorld(t, Options{})
	end := w.clock.Now().Add(400 * 24 * time.Hour)
	mustDo(w.changeToken(func(k *Token) { k.ExpiresAt = end }))
	s := open(t, w.path, Options{Now: w.clock.Now, Peppers: w.opts.Peppers, MaxTokenTTL: time.Hour})
	for _, row := range []struct {
		name, want string
		edit       func(*Token)
	}{
		{"describe", "ok", func(k *Token) { k.Description = "x" }},
		{"shorten a little", "invalid value expires_at", func(k *Token) { k.ExpiresAt = end.Add(-time.Hour) }},
		{"shorten", "ok", func(k *Token) { k.ExpiresAt = w.clock.Now().Add(time.Hour) }},
	} {
		_, err := s.UpdateToken(ctx, alice, w.user.ID, w.token.ID, 0, func(k *Token) error { row.edit(k); return nil })
		if got := kind(err); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

func first[T, U any](v T, _ U, err error) (T, error) { return v, err }

// Changes from many goroutines come one after the other, and readers see the
// revision only ever rise.
func TestConcurrentChanges(t *testing.T) {
	const writers, each = 16, 8
	w := newWorld(t, Options{})
	start := w.Directory().Revision()
	var wg, watching sync.WaitGroup
	done := make(chan struct{})
	watching.Go(func() {
		last := start
		for {
			now := w.Directory().Revision()
			if now < last {
				t.Errorf("the directory went from revision %d back to %d", last, now)
			}
			last = now
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for i := range writers {
		wg.Go(func() {
			u, token, err := w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("u", i), Active: true}}, &Token{})
			if err != nil {
				t.Error(err)
				return
			}
			for n := range each {
				var err error
				want := access.Granted
				if n%2 == 0 {
					err = w.AddMember(ctx, alice, w.readers.ID, u.ID)
				} else {
					err, want = w.RemoveMember(ctx, alice, w.readers.ID, u.ID), access.NoRule
				}
				if got := probe(w.Store, u.ID, token.Secret, "GET /v1/x"); got != want || err != nil {
					t.Errorf("writer %d, change %d: got %v, %v, want %v", i, n, got, err, want)
				}
			}
		})
	}
	wg.Wait()
	close(done)
	watching.Wait()
	if got, want := w.Directory().Revision(), start+writers*(1+each); got != want {
		t.Errorf("revision: got %d, want %d", got, want)
	}
	trail(t, w.Store)
}

func TestCancelledChange(t *testing.T) {
	w := newWorld(t, Options{})
	before := dump(t, w.Store)
	gone, cancel := context.WithCancelCause(ctx)
	change := func() error { return w.AddMember(gone, alice, w.closers.ID, w.user.ID) }
	<-w.writing // a change is under way
	waiting := make(chan error)
	go func() { waiting <- change() }()
	cancel(errors.New("hung up"))
	if err := <-waiting; err == nil || !strings.Contains(err.Error(), "hung up") {
		t.Errorf("cancelled while waiting: got %v, want the cause", err)
	}
	w.writing <- struct{}{}
	for range 20 {
		if err := change(); err == nil {
			t.Fatal("cancelled before: got no error")
		}
	}
	same(t, "rows", dump(t, w.Store), before)
	// Who hangs up in the middle of a change does not stop it half-way.
	middle, hangUp := context.WithCancel(ctx)
	_, err := w.UpdateServiceUser(middle, alice, w.user.ID, 0, func(u *ServiceUser) error { hangUp(); u.Active = false; return nil })
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); err != nil || got != access.UserInactive {
		t.Errorf("cancelled in the middle: got %v, %v, want the change", got, err)
	}
	trail(t, w.Store)
}

func TestPanicInEdit(t *testing.T) {
	w := newWorld(t, Options{})
	before := dump(t, w.Store)
	func() {
		defer func() { _ = recover() }()
		_ = w.changeUser(func(u *ServiceUser) { u.Name = "x"; panic("a fault in an edit") })
	}()
	same(t, "rows", dump(t, w.Store), before)
	if err := w.changeUser(func(u *ServiceUser) { u.Name = "x" }); err != nil {
		t.Errorf("the next change: got %v, want no error", err)
	}
}

// A full disk refuses changes and nothing else, and recovers by itself.
func TestDiskFull(t *testing.T) {
	pgtest.SQLiteOnly(t, "the disk of PostgreSQL is elsewhere")
	w := newWorld(t, Options{})
	limit := func(pages int) {
		_, err := w.write.ExecContext(ctx, fmt.Sprintf(`PRAGMA max_page_count = %d`, pages))
		mustDo(err)
	}
	limit(1) // means as many as there are
	before, err := "", error(nil)
	for i := 0; err == nil; i++ {
		before = dump(t, w.Store)
		_, _, err = w.CreateServiceUser(ctx, alice, ServiceUser{Profile: access.Profile{Name: fmt.Sprint("n", i), Description: strings.Repeat("x", maxText)}}, nil)
	}
	if _, full := FaultReason(err); !full || kind(err)[:7] != "broken:" {
		t.Errorf("got %v, want that the database is full", err)
	}
	same(t, "rows", dump(t, w.Store), before)
	if got := probe(w.Store, w.user.ID, w.token.Secret, "GET /v1/x"); got != access.Granted {
		t.Errorf("requests meanwhile: got %v, want granted", got)
	}
	limit(1 << 30)
	if err := w.revoke(ctx, alice, w.user.ID, w.token.ID); err != nil {
		t.Errorf("with space again: got %v, want no error", err)
	}
	trail(t, w.Store)
}

// A change that could not be enforced is not committed.
func TestUnenforceableChange(t *testing.T) {
	w := newWorld(t, Options{})
	runSQL(t, w.path, `PRAGMA busy_timeout = 5000; UPDATE rules SET path = '/%' WHERE group_id = '`+w.closers.ID+`'`)
	before := dump(t, w.Store)
	if _, err := w.AddRule(ctx, alice, w.closers.ID, rules("allow GET /x")[0]); err == nil || !strings.Contains(err.Error(), "building the directory") {
		t.Errorf("got %v, want that the directory cannot be built", err)
	}
	same(t, "rows", dump(t, w.Store), before)
}

// The default group holds for everybody from the change that makes it, or
// gives it its name, to the one that ends it.
func TestDefaultGroup(t *testing.T) {
	w := newWorld(t, Options{DefaultGroup: "everyone"})
	get := func() access.Reason { return probe(w.Store, w.user.ID, w.token.Secret, "GET /v3") }
	for _, step := range []struct {
		name string
		want access.Reason
		do   func() error
	}{
		{"none", access.NoRule, func() error { return nil }},
		{"made", access.Granted, func() error {
			_, err := w.CreateGroup(ctx, alice, Group{Name: "everyone", Rules: rules("allow GET /v3")})
			return err
		}},
		{"deleted", access.NoRule, func() error { return w.DeleteGroup(ctx, alice, must(w.groupNamed("everyone")).ID, 0) }},
		{"made again", access.DeniedByRule, func() error {
			_, err := w.CreateGroup(ctx, alice, Group{Name: "everyone", Rules: rules("deny GET /v3")})
			return err
		}},
		{"renamed", access.NoRule, func() error {
			_, err := w.UpdateGroup(ctx, alice, must(w.groupNamed("everyone")).ID, 0, func(g *Group) error { g.Name = "nobody"; return nil })
			return err
		}},
		{"renamed back", access.DeniedByRule, func() error {
			_, err := w.UpdateGroup(ctx, alice, must(w.groupNamed("nobody")).ID, 0, func(g *Group) error { g.Name = "everyone"; return nil })
			return err
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := get(); got != step.want {
			t.Errorf("%s: got %v, want %v", step.name, got, step.want)
		}
	}
}

func (s *Store) groupNamed(name string) (Group, error) {
	list, _, err := s.Groups(ctx, Local, name, "", 1)
	if err == nil && len(list) == 0 {
		err = notFound("permission group", name)
	}
	return list[0], err
}
