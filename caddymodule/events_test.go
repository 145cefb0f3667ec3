package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

func init() { caddy.RegisterModule(recordEvents{}) }

// recordEvents is an event handler, for the Caddy that this test binary is. It appends each event of ours to a file,
// in the form of CloudEvents, and may then hang for ever or panic.
type recordEvents struct {
	Path string `json:"path"`
	Then string `json:"then,omitempty"`
}

func (recordEvents) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.record", New: func() caddy.Module { return new(recordEvents) }}
}

func (h *recordEvents) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		h.Path = d.Val()
	}
	if d.NextArg() {
		h.Then = d.Val()
	}
	return nil
}

func (h *recordEvents) Handle(_ context.Context, e caddy.Event) error {
	if e.Origin() == nil || e.Origin().CaddyModule().ID != "service_users" {
		return nil
	}
	file, err := os.OpenFile(h.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := json.Marshal(e.CloudEvent())
	if err == nil {
		_, err = fmt.Fprintf(file, "%s\n", text)
	}
	switch h.Then {
	case "hang":
		select {}
	case "panic":
		panic("a handler of a test")
	case "abort":
		return caddy.ErrEventAborted
	}
	return err
}

const eventsCaddyfile = `
{
	events {
		on * record {$EVENTS} {$THEN}
	}
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	respond 204
}
`

type recorded struct {
	Source, Type string
	Data         map[string]any
}

// eventsIn returns the events in a file of recordEvents.
func eventsIn(t *testing.T, path string) (list []recorded) {
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e recorded
		if strings.HasSuffix(line, "\n") && json.Unmarshal([]byte(line), &e) == nil {
			list = append(list, e)
		}
	}
	return list
}

// await waits until the file has an event with this name and resource.
func await(t *testing.T, path, name string) recorded {
	t.Helper()
	var found recorded
	waitUntil(t, "the event "+name, func() bool {
		list := eventsIn(t, path)
		i := slices.IndexFunc(list, func(e recorded) bool { return e.Type == name })
		if i >= 0 {
			found = list[i]
		}
		return i >= 0
	})
	return found
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited for: %s", what)
		}
	}
}

// oldStore makes a store whose token ends in three days, of twenty.
func oldStore(t *testing.T, path string) credentials {
	t.Helper()
	begun := time.Now().Add(-17 * 24 * time.Hour)
	s, err := store.Open(t.Context(), path, store.Options{Now: func() time.Time { return begun }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	u, k, err := s.CreateServiceUser(t.Context(), store.Local,
		store.ServiceUser{Profile: access.Profile{Name: "ending", Owner: "ops@example.com", Active: true}},
		&store.Token{ExpiresAt: begun.Add(20 * 24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return credentials{u.ID, k.Secret}
}

// TestEvents compares the events that a handler gets with the audit trail, also over reloads.
func TestEvents(t *testing.T) {
	t.Parallel()
	s := newServer(t, "THEN=abort")
	path := filepath.Join(s.dir, "events")
	s.env = append(s.env, "EVENTS="+path)
	ending := oldStore(t, filepath.Join(s.dir, "service_users.db"))
	withCaddyfile(s, eventsCaddyfile)
	if e := await(t, path, "token.expiring"); e.Data["service_user_id"] != ending.id || e.Data["days"] != 7.0 || e.Data["owner"] != "ops@example.com" || e.Data["service_user_name"] != "ending" {
		t.Errorf("token.expiring: got %v", e)
	}
	before := 2 // records of oldStore
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	for i := range 3 {
		if out, ok := s.reload(strings.Replace(eventsCaddyfile, "respond 204", fmt.Sprint("respond 20", i), 1)); !ok {
			t.Fatal(out)
		}
		s.mustCLI("update", "billing-sync", "--owner", fmt.Sprint("owner ", i))
	}
	s.mustCLI("deactivate", "billing-sync")
	s.mustCLI("delete", "billing-sync", "--yes")
	// Without the change of another process: its events are nobody's.
	if _, stderr, code := s.cli("--store", filepath.Join(s.dir, "service_users.db"), "group", "create", "by-file"); code != 0 {
		t.Fatal(stderr)
	}
	await(t, path, "service_user.delete")
	var trail admin.AuditEventList
	s.local("GET", "/audit_events", "", &trail)
	slices.Reverse(trail.AuditEvents)
	var want, got []string
	for _, e := range trail.AuditEvents[before:] {
		if e.Action == "permission_group.create" && strings.Contains(string(e.After), "by-file") {
			continue
		}
		want = append(want, fmt.Sprintf("%d %s %s %s %s %s", e.Seq, e.Action, e.Actor, e.ResourceID, e.OperationID, e.Hash))
	}
	for _, e := range eventsIn(t, path) {
		if e.Type != "token.expiring" {
			d := e.Data
			got = append(got, fmt.Sprintf("%.0f %s %s %s %s %s", d["seq"], e.Type, d["actor"], d["resource_id"], d["operation_id"], d["hash"]))
		}
		if e.Source != "service_users" {
			t.Errorf("%s: got the source %q", e.Type, e.Source)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("events: got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	text, _ := os.ReadFile(path)
	if n := strings.Count(string(text), `"token.expiring"`); n != 1 || strings.Contains(string(text), user.secret) {
		t.Errorf("token.expiring: got %d times, want once; and no secret", n)
	}

	db := filepath.Join(s.dir, "service_users.db")
	if err := os.Rename(db, db+".away"); err != nil {
		t.Fatal(err)
	}
	if e := await(t, path, "store.degraded"); e.Data["error"] == "" || e.Data["source"] != "memory" {
		t.Errorf("store.degraded: got %v", e)
	}
	if err := os.Rename(db+".away", db); err != nil {
		t.Fatal(err)
	}
	await(t, path, "store.recovered")

	// The way out may be another store.
	other := filepath.Join(s.dir, "other.db")
	oldStore(t, other)
	if err := os.Rename(db, db+".away"); err != nil {
		t.Fatal(err)
	}
	health := func() (list []string) {
		for _, e := range eventsIn(t, path) {
			if strings.HasPrefix(e.Type, "store.") {
				list = append(list, e.Type)
			}
		}
		return list
	}
	waitUntil(t, "the second fault", func() bool { return len(health()) == 3 })
	if out, ok := s.reload(strings.Replace(eventsCaddyfile, "{$SERVICE_USERS_STORE}", other, 1)); !ok {
		t.Fatal(out)
	}
	waitUntil(t, "its end, with the store of a reload", func() bool { return len(health()) == 4 })
	if got, want := strings.Join(health(), " "), "store.degraded store.recovered store.degraded store.recovered"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	list := slices.DeleteFunc(eventsIn(t, path), func(e recorded) bool { return e.Type != "store.recovered" })
	if data := list[len(list)-1].Data; data["store"] != other || data["source"] != "database" || data["as_of"] == "" || data["error"] != "" {
		t.Errorf("the last event: got %v, want the state of %s", data, other)
	}
}

// TestBadEventHandler has a handler that hangs or panics: requests, changes, reloads and the end of Caddy go on,
// and the handler of the next configuration gets the events since.
func TestBadEventHandler(t *testing.T) {
	t.Parallel()
	for _, then := range []string{"hang", "panic"} {
		t.Run(then, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, "THEN="+then)
			bad, good := filepath.Join(s.dir, "bad"), filepath.Join(s.dir, "good")
			s.env = append(s.env, "EVENTS="+bad)
			withCaddyfile(s, eventsCaddyfile)
			s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
			await(t, bad, "permission_group.create")
			user := s.create("billing-sync", "--group", "readers")
			for i := range 5 {
				s.mustCLI("update", "billing-sync", "--owner", fmt.Sprint("owner ", i))
				if got := s.get("/v1/x", user).StatusCode; got != 204 {
					t.Errorf("request %d: got %d, want 204", i, got)
				}
			}
			want := map[string]int{"hang": 1, "panic": 1 + 1 + 1 + 5}[then] // a panic loses nothing
			if then == "panic" {
				waitUntil(t, "the other events", func() bool { return len(eventsIn(t, bad)) >= want })
				if !strings.Contains(s.log.String(), "a handler of Caddy's app events has panicked") {
					t.Error("the log has no line of the panic")
				}
			}
			if got := len(eventsIn(t, bad)); got != want {
				t.Errorf("the bad handler: got %d events, want %d", got, want)
			}
			next := strings.NewReplacer("{$EVENTS}", good, "{$THEN}", "").Replace(eventsCaddyfile)
			if out, ok := s.reload(next); !ok {
				t.Fatal(out)
			}
			s.mustCLI("deactivate", "billing-sync")
			await(t, good, "service_user.deactivate")
			if then == "hang" {
				await(t, good, "service_user.create")
			}
		})
	}
}

// TestEventsAreDropped: more events than fit are dropped, counted, and never waited for.
func TestEventsAreDropped(t *testing.T) {
	before := count(metrics.droppedEvents)
	for range cap(events) + 3 {
		notify("test.event", nil)
	}
	if got := count(metrics.droppedEvents) - before; got < 3 {
		t.Errorf("dropped: got %d, want 3 or more", got)
	}
	for range cap(events) {
		select {
		case <-events:
		default:
		}
	}
}

// TestExpiringNeedsHandler: only a configuration with a handler for token.expiring takes the tokens. The log has the
// level debug here.
func TestExpiringNeedsHandler(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	for _, row := range []struct {
		handler *caddyevents.Subscription
		takes   bool
	}{
		{nil, false},
		{&caddyevents.Subscription{Modules: []caddy.ModuleID{"tls"}}, false},
		{&caddyevents.Subscription{Events: []string{"cert_obtained", "store.degraded"}}, false},
		{&caddyevents.Subscription{}, true},
		{&caddyevents.Subscription{Events: []string{"cert_obtained", "token.expiring"}, Modules: []caddy.ModuleID{"service_users"}}, true},
	} {
		path := filepath.Join(t.TempDir(), "service_users.db")
		oldStore(t, path)
		db, err := store.Open(ctx, path, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		app := new(caddyevents.App)
		if row.handler != nil {
			app.Subscriptions = append(app.Subscriptions, row.handler)
		}
		if err := errors.Join(app.Provision(ctx), app.Start()); err != nil {
			t.Fatal(err)
		}
		e := &emitter{&App{ctx: ctx, events: app}, new(shared)}
		e.shared.live.Store(&liveStore{store: db})
		e.emitExpiring()
		left, err := db.ClaimExpiring(ctx)
		if taken := len(left) == 0; err != nil || taken != row.takes {
			t.Errorf("%+v: took the token: got %v, want %v; %v", row.handler, taken, row.takes, err)
		}
		db.Close()
	}
}

// TestEmitterEnds: the events that wait are those of the next configuration.
func TestEmitterEnds(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	cancel()
	app := new(caddyevents.App)
	if err := app.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	const waiting = 40
	for range waiting {
		notify("test.event", nil)
	}
	for range waiting {
		(&emitter{&App{ctx: ctx, events: app}, new(shared)}).run()
	}
	if got := len(events); got != waiting {
		t.Errorf("got %d events, want %d", got, waiting)
	}
	for len(events) > 0 {
		<-events
	}
}
