package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

func TestAuditQuery(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still) // 1 readers, 2 closers, 3 billing-sync, 4 its token
	from := w.now()
	w.clock.add(time.Minute)
	mustDo(w.changeUser(func(u *ServiceUser) { u.Owner = "x" }))       // 5
	mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))           // 6
	must(w.refreshOf(ctx, w.itself(), w.user.ID, w.token.ID, 0))       // 7 8
	w.clock.add(time.Minute)                                           //
	mustDo(w.NoteAttempt(ctx, alice, w.user.ID, Attempt{Status: 403})) // 9
	manager := Actor{Name: "human:carol", Scope: &Scope{Teams: []string{"ops"}}}
	all := len(trail(t, w.Store))
	for _, row := range []struct {
		q    AuditQuery
		want []int64
	}{
		{AuditQuery{}, []int64{9, 8, 7, 6, 5, 4, 3, 2, 1}},
		{AuditQuery{Actor: "local"}, []int64{4, 3, 2, 1}},
		{AuditQuery{Actor: alice.Name}, []int64{9, 6, 5}},
		{AuditQuery{Actor: "alice"}, []int64{9, 6, 5}},
		{AuditQuery{Actor: "billing-sync"}, []int64{8, 7}},
		{AuditQuery{Actor: "system"}, nil},
		{AuditQuery{Actor: w.user.ID}, []int64{8, 7}},
		{AuditQuery{Action: "token.create"}, []int64{7, 4}},
		{AuditQuery{Action: "token."}, []int64{8, 7, 4}},
		{AuditQuery{Action: "token.rotate"}, nil},
		{AuditQuery{Action: "refused"}, []int64{9}},
		{AuditQuery{Resource: w.user.ID}, []int64{9, 8, 7, 6, 5, 4, 3}},
		{AuditQuery{Resource: w.token.ID}, []int64{8, 4}},
		{AuditQuery{Resource: "billing-sync"}, []int64{9, 8, 7, 6, 5, 4, 3}},
		{AuditQuery{Resource: "readers"}, []int64{3, 1}},
		{AuditQuery{Since: from.Add(time.Minute)}, []int64{9, 8, 7, 6, 5}},
		{AuditQuery{Until: from.Add(time.Minute)}, []int64{4, 3, 2, 1}},
		{AuditQuery{Since: from.Add(time.Second), Until: from.Add(2 * time.Minute)}, []int64{8, 7, 6, 5}},
		{AuditQuery{Before: 3}, []int64{2, 1}},
		{AuditQuery{Before: 1}, nil},
		{AuditQuery{Action: "token.", Actor: w.user.ID, Resource: w.token.ID, Since: from, Before: 9}, []int64{8}},
	} {
		for _, limit := range []int{1, 2, 100} {
			q := row.q
			q.Limit = limit
			var got []int64
			for more := true; more; {
				page, next, err := w.AuditEvents(ctx, Local, q)
				if err != nil || next && len(page) != limit {
					t.Fatalf("%+v: got %v, %t, %v", q, page, next, err)
				}
				for _, e := range page {
					got, q.Before = append(got, e.Seq), e.Seq
				}
				more = next
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("%+v by %d: got %v, want %v", row.q, limit, got, row.want)
			}
		}
	}
	for field, queries := range map[string][]AuditQuery{
		"actor":       {{Actor: "loc"}, {Actor: "readers"}, {Actor: "alic_"}, {Actor: w.token.ID}, {Actor: "human:bob", Since: from}},
		"resource_id": {{Resource: "loc"}, {Resource: "Readers"}, {Resource: "billing%"}, {Resource: "local"}, {Resource: newID("token", from)}},
		"action":      {{Action: "token"}, {Action: "TOKEN."}, {Action: "%."}, {Action: "_oken."}, {Action: "."}, {Action: "token.creat"}},
	} {
		for _, q := range queries {
			q.Limit = 1
			var e *Error
			if list, _, err := w.AuditEvents(ctx, Local, q); !errors.As(err, &e) || e.Kind != ErrInvalid || e.Field != field {
				t.Errorf("%+v: got %v, %v, want an error about %s", q, list, err, field)
			}
		}
	}
	_, _, err := w.AuditEvents(ctx, manager, AuditQuery{Limit: 1})
	_, other := w.VerifyAudit(ctx, manager, AuditHead{})
	if kind(err) != "not allowed" || kind(other) != "not allowed" || len(trail(t, w.Store)) != all {
		t.Errorf("by a manager: got %s and %s, want not allowed", kind(err), kind(other))
	}
}

// A name selects the records of every service user that has or had it, and so does the name of an actor.
func TestAuditFormerName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{Retention: time.Hour})
	issue := func(u ServiceUser) { must(w.CreateToken(ctx, Actor{Name: u.ID}, u.ID, Token{})) }
	purged := w.user
	issue(purged)
	mustDo(w.DeleteServiceUser(ctx, Local, purged.ID, 0, 0))
	w.clock.add(2 * time.Hour)
	mustDo(w.purge(ctx))
	renamed, _, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: purged.Name}}, nil)
	mustDo(err)
	issue(renamed)
	must(w.UpdateServiceUser(ctx, Local, renamed.ID, 0, func(u *ServiceUser) error { u.Name = "other"; return nil }))
	present, _, err := w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: purged.Name}}, nil)
	mustDo(err)
	issue(present)
	for _, row := range []struct {
		q    AuditQuery
		want []string
	}{
		{AuditQuery{Resource: purged.Name, Action: "service_user.create"}, []string{present.ID, renamed.ID, purged.ID}},
		{AuditQuery{Resource: "other", Action: "service_user.create"}, []string{renamed.ID}},
		{AuditQuery{Resource: present.ID, Action: "service_user.create"}, []string{present.ID}},
		{AuditQuery{Actor: purged.Name}, []string{present.ID, renamed.ID, purged.ID}},
		{AuditQuery{Actor: "other"}, []string{renamed.ID}},
		{AuditQuery{Actor: purged.ID}, []string{purged.ID}},
	} {
		row.q.Limit = 100
		list, _, err := w.AuditEvents(ctx, Local, row.q)
		var got []string
		for _, e := range list {
			if got = append(got, e.Resource); row.q.Actor != "" {
				got[len(got)-1] = e.Actor
			}
		}
		if err != nil || !slices.Equal(got, row.want) {
			t.Errorf("%+v: got %q, %v, want %q", row.q, got, err, row.want)
		}
	}
}

// An actor of a local door is found by its name, and by "local".
func TestAuditLocal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)                                                                          // 1 to 4 by local
	for i, by := range []string{"local:erin", "local, said to be erin", "human:erin", "localhost"} { // 5 to 8
		mustDo(second(w.UpdateServiceUser(ctx, Actor{Name: by}, w.user.ID, 0, func(u *ServiceUser) error { u.Owner = fmt.Sprint(i); return nil })))
	}
	for actor, want := range map[string][]int64{
		"local": {6, 5, 4, 3, 2, 1}, "erin": {7, 6, 5}, "local:erin": {5}, "local, said to be erin": {6}, "human:erin": {7}, "localhost": {8},
	} {
		var got []int64
		for _, e := range must(first2(w.AuditEvents(ctx, Local, AuditQuery{Actor: actor, Limit: 9}))) {
			got = append(got, e.Seq)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", actor, got, want)
		}
	}
}

// The table of actions has each action in the source, and no other.
func TestAuditActions(t *testing.T) {
	t.Parallel()
	written := map[string]bool{}
	action := regexp.MustCompile(`^"((service_user|token|permission_group|rule|member|permission|store)\.[a-z_]+|refused)"$`)
	for _, path := range must(filepath.Glob("*.go")) {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file := must(parser.ParseFile(token.NewFileSet(), path, nil, 0))
		ast.Inspect(file, func(n ast.Node) bool {
			if _, ok := n.(*ast.ImportSpec); ok {
				return false
			}
			if c, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(c.Names[0].Name, "Event") {
				return false // an event that is no record
			}
			if text, ok := n.(*ast.BasicLit); ok && action.MatchString(text.Value) {
				written[strings.Trim(text.Value, `"`)] = true
			}
			return true
		})
	}
	if got, want := slices.Sorted(maps.Keys(written)), sorted(AuditActions); !slices.Equal(got, want) {
		t.Errorf("got the actions %q in the source, and in the table %q", got, want)
	}
	w := newWorld(t, still)
	if err := w.change(ctx, Local, func(t *tx) error { return t.audit("token.steal", "", nil, nil) }); err == nil {
		t.Error("an action that is not in the table was recorded")
	}
}

// Whatever is done to the trail behind the store's back shows, with the first
// record that is bad.
func TestVerifyAudit(t *testing.T) {
	t.Parallel()
	const cut = `DELETE FROM audit_events WHERE seq > 4; UPDATE meta SET audit_seq = 4, audit_hash = (SELECT hash FROM audit_events WHERE seq = 4)`
	type row struct {
		name, sql string
		known     int64 // the record that was noted down; 0 is none
		bad       int64
		problem   string
	}
	rows := []row{
		{"untouched", `SELECT 1`, 0, 0, ""},
		{"untouched, with a known head", `SELECT 1`, 6, 0, ""},
		{"untouched, with an earlier head", `SELECT 1`, 2, 0, ""},
		{"the first is deleted", `DELETE FROM audit_events WHERE seq = 1`, 0, 1, "missing"},
		{"one in the middle is deleted", `DELETE FROM audit_events WHERE seq = 3`, 0, 3, "missing"},
		{"two in the middle are deleted", `DELETE FROM audit_events WHERE seq IN (3, 4)`, 0, 3, "missing"},
		{"deleted, and the others renumbered", `DELETE FROM audit_events WHERE seq = 3; UPDATE audit_events SET seq = seq - 1 WHERE seq = 4`, 0, 3, "does not follow"},
		{"the tail is cut", `DELETE FROM audit_events WHERE seq > 4`, 0, 5, "cut"},
		{"the tail is cut, and the head forged", cut, 0, 0, ""}, // only who knows a head can tell
		{"the same, with a known head", cut, 6, 5, "cut"},
		{"the same, with a head before the cut", cut, 3, 0, ""},
		{"all is deleted", `DELETE FROM audit_events; UPDATE meta SET audit_seq = 0, audit_hash = ''`, 6, 1, "cut"},
		{"two change places", `UPDATE audit_events SET seq = 99 WHERE seq = 3; UPDATE audit_events SET seq = 3 WHERE seq = 4; UPDATE audit_events SET seq = 4 WHERE seq = 99`, 0, 3, "does not follow"},
		{"the head is forged", `UPDATE meta SET audit_hash = 'x'`, 0, 7, "head"},
		{"the number of the head is forged", `UPDATE meta SET audit_seq = 5`, 0, 7, "head"},
		{"the first two are edited", `UPDATE audit_events SET actor = 'x' WHERE seq < 3`, 0, 1, "changed"},
	}
	for _, column := range []string{"id", "actor", "action", "resource_id", "before", "after", "operation_id", "hash"} {
		rows = append(rows, row{"edited " + column, `UPDATE audit_events SET ` + column + ` = ` + column + ` || 'x' WHERE seq = 3`, 0, 3, "changed"})
	}
	rows = append(rows,
		row{"edited at", `UPDATE audit_events SET at = at + 1 WHERE seq = 3`, 0, 3, "changed"},
		row{"edited seq", `UPDATE audit_events SET seq = 42 WHERE seq = 6`, 0, 6, "missing"},
		row{"edited prev_hash", `UPDATE audit_events SET prev_hash = 'x' WHERE seq = 3`, 0, 3, "does not follow"},
	)
	for _, row := range rows {
		w := newWorld(t, still)
		mustDo(w.changeUser(func(u *ServiceUser) { u.Owner = "x" }))
		mustDo(w.AddMember(ctx, alice, w.closers.ID, w.user.ID))
		var known AuditHead
		if row.known > 0 {
			e := trail(t, w.Store)[row.known-1]
			known = AuditHead{e.Seq, e.Hash}
		}
		must(w.write.ExecContext(ctx, row.sql))
		r, err := w.VerifyAudit(ctx, Local, known)
		if err != nil || r.BadSeq != row.bad || !strings.Contains(r.Problem, row.problem) || (r.Problem == "") != (row.bad == 0) || row.bad > 0 && r.Records != row.bad-1 {
			t.Errorf("%s: got %+v, %v, want %d %q", row.name, r, err, row.bad, row.problem)
		}
	}

	// A trail that is written anew from some record on is whole, but not the one
	// that was known.
	w := newWorld(t, still)
	head := w.AuditHead()
	other := AuditHead{2, head.Hash}
	if r, err := w.VerifyAudit(ctx, Local, other); err != nil || r.BadSeq != 2 || !strings.Contains(r.Problem, "known") {
		t.Errorf("another known record: got %+v, %v, want 2", r, err)
	}
	if r, err := w.VerifyAudit(ctx, Local, head); err != nil || r.BadSeq != 0 || r.Records != 4 || r.Head != head || head.Seq != 4 {
		t.Errorf("the head: got %+v, %v, want %+v", r, err, head)
	}
}

// Refused attempts are written, as many as one can read.
func TestNoteAttempt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, still)
	carol := Actor{Name: "human:carol", Operation: "op_x", Scope: &Scope{}}
	anybody := Actor{Name: Anonymous}
	last := func() (e AuditEvent, a Attempt) {
		e = must(w.trail(ctx, "", 0, 1))[0]
		mustDo(json.Unmarshal(e.After, &a))
		return e, a
	}
	note := func(by Actor, n int) (written int) {
		before := len(trail(t, w.Store))
		for range n {
			mustDo(w.NoteAttempt(ctx, by, w.user.ID, Attempt{Operation: "DELETE /service_users/{id}", Status: 403, Code: "ERR_X", Login: "someone"}))
		}
		return len(trail(t, w.Store)) - before
	}
	check := func(what string, by Actor, n, want int, leftOut int64) {
		t.Helper()
		got := note(by, n)
		e, a := last()
		if got != want || want > 0 && (e.Actor != by.Name || e.Action != "refused" || e.Resource != w.user.ID || e.Operation != by.Operation || len(e.Before) != 0) {
			t.Errorf("%s: got %d records, the last %+v, want %d", what, got, e, want)
		}
		if wanted := (Attempt{"DELETE /service_users/{id}", 403, "ERR_X", "someone", "", leftOut}); want == 1 && a != wanted {
			t.Errorf("%s: got %+v, want %+v", what, a, wanted)
		}
	}
	check("the first", carol, 1, 1, 0)
	check("many", carol, 70, 59, 0)
	check("another one known", alice, 1, 1, 0)
	check("nobody", anybody, 15, 10, 0)
	w.clock.add(time.Minute - time.Nanosecond)
	check("too early", carol, 1, 0, 0)
	w.clock.add(time.Nanosecond)
	check("a minute later", carol, 1, 1, 12)
	check("and again", carol, 1, 1, 0)
	check("nobody, a minute later", anybody, 1, 0, 0)
	w.clock.add(time.Hour)
	check("nobody, later", anybody, 1, 1, 6)
	check("a manager that is none any more", Actor{Name: w.user.ID, Scope: &Scope{UserID: w.user.ID}}, 1, 1, 0)

	mustDo(w.NoteAttempt(ctx, anybody, "", Attempt{Login: "x" + w.token.Secret}))
	if e, a := last(); a.Login != "(a token in the place of the id)" || strings.Contains(fmt.Sprintf("%+v", e), w.token.Secret) {
		t.Errorf("a secret: got %+v", e)
	}
	if r := must(w.VerifyAudit(ctx, Local, AuditHead{})); r.BadSeq != 0 {
		t.Errorf("the trail: got %+v", r)
	}
}

// However many attempts of one are refused, the single one of another is written: of a
// member beside a member, a stranger or a manager, of strangers by the login they name.
func TestAttemptsNoisyNeighbour(t *testing.T) {
	t.Parallel()
	member := func(w *world, name string) Actor {
		u, _ := addUser(w.Store, name)
		return Actor{Name: u.ID}
	}
	stranger := Actor{Name: Anonymous}
	for name, row := range map[string]struct {
		noisy, quiet     func(w *world) Actor
		noisyAs, quietAs string // the logins of strangers
		written          int    // of the noisy one
	}{
		"two members":                  {noisy: func(w *world) Actor { return member(w, "n") }, quiet: func(w *world) Actor { return member(w, "q") }, written: 10},
		"two people":                   {noisy: func(*world) Actor { return Actor{Name: "human:n"} }, quiet: func(*world) Actor { return Actor{Name: "human:q"} }, written: 10},
		"a member and a manager":       {noisy: func(w *world) Actor { return member(w, "n") }, quiet: func(*world) Actor { return Actor{Name: "human:m", Scope: &Scope{}} }, written: 10},
		"a manager and a member":       {noisy: func(*world) Actor { return Actor{Name: "human:m", Scope: &Scope{}} }, quiet: func(w *world) Actor { return member(w, "q") }, written: 60},
		"a stranger and a member":      {noisy: func(*world) Actor { return stranger }, noisyAs: "nobody", quiet: func(w *world) Actor { return member(w, "q") }, written: 10},
		"a member and a stranger":      {noisy: func(w *world) Actor { return member(w, "n") }, quiet: func(*world) Actor { return stranger }, quietAs: "nobody", written: 10},
		"strangers of two logins":      {noisy: func(*world) Actor { return stranger }, noisyAs: "a", quiet: func(*world) Actor { return stranger }, quietAs: "b", written: 10},
		"strangers of none and of one": {noisy: func(*world) Actor { return stranger }, noisyAs: "nobody", quiet: func(*world) Actor { return stranger }, quietAs: "b", written: 10},
	} {
		w := newWorld(t, still)
		for _, alias := range []string{"a", "b"} {
			mustDo(third(w.CreateServiceUser(ctx, Local, ServiceUser{Profile: access.Profile{Name: "user " + alias, Alias: alias, Active: true}}, nil)))
		}
		noisy, quiet := row.noisy(w), row.quiet(w)
		before := len(trail(t, w.Store))
		for range 20_000 {
			mustDo(w.NoteAttempt(ctx, noisy, "", Attempt{Login: row.noisyAs}))
		}
		if got := len(trail(t, w.Store)) - before; got != row.written {
			t.Errorf("%s: got %d of the noisy one, want %d", name, got, row.written)
		}
		mustDo(w.NoteAttempt(ctx, quiet, "", Attempt{Login: row.quietAs}))
		var a Attempt
		e := must(w.trail(ctx, "", 0, 1))[0]
		mustDo(json.Unmarshal(e.After, &a))
		if e.Actor != quiet.Name || a.Login != row.quietAs || a.LeftOut != 0 {
			t.Errorf("%s: got %+v as the last record, want the one of %s", name, e, quiet.Name)
		}
	}
}

// Attempts at the same time share a bucket.
func TestAttemptsAtOnce(t *testing.T) {
	t.Parallel()
	var a attempts
	var wg sync.WaitGroup
	var admitted atomic.Int64
	now := newClock().Now()
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if _, ok := a.admit("alice", memberShare, now); ok {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got := admitted.Load(); got != int64(memberShare.most) {
		t.Errorf("got %d attempts admitted, want %d", got, memberShare.most)
	}
}

// Buckets take bounded memory, and strangers leave those of known actors alone.
func TestAttemptsBound(t *testing.T) {
	t.Parallel()
	var a attempts
	now := newClock().Now()
	written := func(n int, prefix string, of share) (ok int) {
		for i := range n {
			if _, admitted := a.admit(fmt.Sprint(prefix, i), of, now); admitted {
				ok++
			}
		}
		return ok
	}
	// The last ten share a bucket, with all others.
	if got := written(20_000, "stranger", strangerShare); got != maxStrangers+strangerShare.most {
		t.Errorf("strangers: got %d, want %d", got, maxStrangers+strangerShare.most)
	}
	if got := written(2*maxKnown, "member", memberShare); got != maxKnown+memberShare.most {
		t.Errorf("members: got %d, want %d", got, maxKnown+memberShare.most)
	}
	if got := len(a.known.byName) + len(a.strangers.byName); got > maxKnown+maxStrangers+2 {
		t.Errorf("got %d buckets", got)
	}
	now = now.Add(time.Minute)
	if got := written(100, "new", memberShare); got != 100 {
		t.Errorf("a minute later: got %d, want 100", got)
	}
	if got := written(100, "new", strangerShare); got != 0 {
		t.Errorf("strangers, a minute later: got %d, want 0", got)
	}
	now = now.Add(time.Hour)
	if got := written(100, "new", strangerShare); got != 100 || len(a.strangers.byName) != 100 {
		t.Errorf("strangers, an hour later: got %d in %d buckets, want 100", got, len(a.strangers.byName))
	}
}
