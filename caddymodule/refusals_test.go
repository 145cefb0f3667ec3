package caddymodule

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest/observer"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// refusals returns the refusals of a service user that the API lists, as texts, oldest first.
func (g *guard) refusals(id string) (list []string, since time.Time) {
	g.t.Helper()
	var answer admin.RefusalList
	live := g.h.shared.live.Load()
	client := admin.Client{Base: "http://x", HTTP: &http.Client{Transport: direct(func(w http.ResponseWriter, r *http.Request) {
		live.api.Serve(w, r, store.Local)
	})}}
	if err := client.Do(g.t.Context(), "GET", "/service_users/"+id+"/refusals", nil, &answer); err != nil {
		g.t.Fatal(err)
	}
	for _, r := range answer.Refusals {
		kind := map[bool]string{true: "decision"}[strings.HasPrefix(r.DecisionID, "decision_")]
		token := map[bool]string{true: "token"}[strings.HasPrefix(r.TokenID, "token_")]
		text := strings.Join([]string{http.StatusText(r.Status), r.Reason, r.Detail, r.Method, r.Host, r.Path, r.RemoteIP, kind, token}, "|")
		list = append([]string{text}, list...)
	}
	return list, answer.Since
}

type direct func(http.ResponseWriter, *http.Request)

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	d(w, r)
	return w.Result(), nil
}

// outcomes returns the count of an outcome of requests.
func outcomes(t *testing.T, outcome string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	if err := metrics.register(registry); err != nil {
		t.Fatal(err)
	}
	for _, family := range must(registry.Gather()) {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if family.GetName() == "caddy_service_users_requests_total" && label.GetValue() == outcome {
					return metric.GetCounter().GetValue()
				}
			}
		}
	}
	t.Fatalf("there is no outcome %q", outcome)
	return 0
}

// keys lists the fields of a line of the log, in order.
func keys(line observer.LoggedEntry) string {
	var names []string
	for _, field := range line.Context {
		names = append(names, field.Key)
	}
	return strings.Join(names, " ")
}

// TestFailedLogin: a 401 of a site and of a door leaves a line with its login and its cause, a count
// of its reason, and an entry in the memory of the service user that it names.
func TestFailedLogin(t *testing.T) {
	encoded := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	for _, atDoor := range []bool{false, true} {
		g := newGuard(t, Handler{})
		g.h.shared.live.Load().throttle = nil
		id, secret := g.reader.id, g.reader.secret
		door := g.door()
		var want []string
		for _, tt := range []struct{ value, login, reason, why string }{
			{encoded(id + ":" + secret + "\n"), id, "bad_credential", "the token ends in a line break"},
			{encoded(id + ":"), id, "bad_credential", "the token is empty"},
			{"Basic " + id + ":" + secret, id, "bad_credential", "the credential is not base64"},
			{encoded(id + ":" + secret[:20]), id, "bad_checksum", "the token has another length"},
			{encoded(id + ":" + access.NewSecret()), id, "wrong_secret", ""},
			{encoded(id), "", "bad_credential", "no colon is between id and token"},
			{"Digest x", "", "bad_credential", "the scheme is neither Basic nor Bearer"},
			{encoded(secret + ":" + id), "(a token in the place of the id)", "unknown_id", "the token is in the place of the id"},
			{encoded("nobody:x"), "nobody", "unknown_id", "the id is neither an alias nor begins with service_; the name of a service user is not its id"},
			{encoded("service_nobody:x"), "service_nobody", "unknown_id", ""},
		} {
			before := outcomes(t, tt.reason)
			g.log.TakeAll()
			code, body := 0, ""
			if atDoor {
				w := g.knock(door, tt.value)
				code, body = w.Code, w.Body.String()
			} else {
				r := httptest.NewRequest("GET", "/v1/x?token="+secret, nil)
				r.Host = "API.example.com:8443"
				r.Header.Set("Authorization", tt.value)
				w, _ := g.serve(r)
				code, body = w.Code, w.Body.String()
			}
			if code != 401 || tt.why != "" && strings.Contains(body, tt.why) {
				t.Errorf("%s: got %d %s", tt.value, code, body)
			}
			line := g.log.FilterMessage("authentication failed").All()
			if len(line) != 1 {
				t.Fatalf("%s: got %d lines, want 1", tt.value, len(line))
			}
			fields := line[0].ContextMap()
			why, _ := fields["why"].(string)
			order := "client_ip reason login" + map[bool]string{true: " why"}[tt.why != ""]
			if fields["login"] != tt.login || fields["reason"] != tt.reason || why != tt.why || keys(line[0]) != order {
				t.Errorf("%s: got %v, want %q, %s, %q", tt.value, fields, tt.login, tt.reason, tt.why)
			}
			if after := outcomes(t, tt.reason); after < before+1 {
				t.Errorf("%s: the metric has %v of %s, and had %v", tt.value, after, tt.reason, before)
			}
			if tt.login == id {
				request := "GET|api.example.com|/v1/x|192.0.2.1||"
				if atDoor {
					request = "GET|example.com|/service_users|192.0.2.1||"
				}
				if why == "" {
					why = "the secret is not that of a token of the service user"
				}
				want = append(want, "Unauthorized|"+tt.reason+"|"+why+"|"+request)
			}
		}
		got, since := g.refusals(id)
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("at a door %t: got\n%s\nwant\n%s", atDoor, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if !since.Equal(time.Unix(g.now.Load(), 0)) {
			t.Errorf("since: got %s, want the start, %s", since, time.Unix(g.now.Load(), 0))
		}
		if got, _ := g.refusals(g.none.id); got != nil {
			t.Errorf("another service user: got %q", got)
		}
	}
}

// TestRefusals: the memory of a service user has its refusals of every kind, and the log has enough
// to ask again.
func TestRefusals(t *testing.T) {
	g := newGuard(t, Handler{Bearer: true})
	live := g.h.shared.live.Load()
	live.throttle = access.NewThrottle(1, time.Hour)
	ask := func(path string, who credentials, want int) {
		t.Helper()
		if w, _ := g.ask("GET", path, "", who); w.Code != want {
			t.Errorf("%s: got %d, want %d", path, w.Code, want)
		}
	}
	ask("/x?a=b", g.reader, 403)
	token := must2(live.store.FindTokens(t.Context(), store.Local, store.TokenQuery{UserID: g.reader.id, Limit: 1}))[0].ID
	line := g.log.FilterMessage("not allowed").All()[0]
	if got := keys(line); got != "client_ip reason service_user decision_id rule method path host token" ||
		line.ContextMap()["host"] != "example.com" || line.ContextMap()["token"] != token {
		t.Errorf("not allowed: got %s, %v", got, line.ContextMap())
	}
	ask("/v1//x/"+g.reader.secret, g.reader, 400)
	line = g.log.FilterMessage("request refused").All()[0]
	if got := line.ContextMap(); keys(line) != "client_ip status why login host path" || got["login"] != g.reader.id ||
		got["host"] != "example.com" || got["path"] != "/v1//x/csu_…" {
		t.Errorf("request refused: got %s, %v", keys(line), got)
	}
	ask("/v1/x", credentials{g.reader.id, "x"}, 401)
	ask("/v1/"+strings.Repeat("y", 400), credentials{g.reader.id, "x"}, 429)

	// A right secret of an inactive service user names it, also without an id.
	g.now.Add(3600)
	if _, err := live.store.UpdateServiceUser(t.Context(), store.Local, g.reader.id, 0, func(u *store.ServiceUser) error {
		u.Active = false
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/v1/x", nil)
	r.Header.Set("Authorization", "Bearer "+g.reader.secret)
	g.log.TakeAll()
	if w, _ := g.serve(r); w.Code != 401 {
		t.Errorf("Bearer: got %d", w.Code)
	}
	if got := g.log.FilterMessage("authentication failed").All()[0].ContextMap()["login"]; got != g.reader.id {
		t.Errorf("Bearer: got the login %q", got)
	}

	got, _ := g.refusals(g.reader.id)
	want := []string{
		"Forbidden|no_rule|no rule allows it|GET|example.com|/x|192.0.2.7|decision|token",
		"Bad Request|ambiguous|the path has an empty segment at position 4; the option merge_slashes would let it pass|GET|example.com|/v1//x/csu_…|192.0.2.7||",
		"Unauthorized|bad_checksum|the token has another length|GET|example.com|/v1/x|192.0.2.7||",
		"Too Many Requests|bad_checksum|the token has another length|GET|example.com|/v1/" + strings.Repeat("y", maxFailedPath-4) + "|192.0.2.7||",
		"Unauthorized|user_inactive|the service user is deactivated|GET|example.com|/v1/x|192.0.2.1||token",
	}
	if len(got) > 3 && strings.HasPrefix(got[0], "Bad") { // the first ones have the same second
		got = append(append(got[3:4:4], got[:3]...), got[4:]...)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestStoreGoneNamesRequest: the line of a 503 has the request and its login.
func TestStoreGoneNamesRequest(t *testing.T) {
	g := newGuard(t, Handler{})
	g.h.shared = &shared{ready: make(chan struct{})}
	close(g.h.shared.ready)
	if w, _ := g.ask("GET", "/v1/x", "", g.reader); w.Code != 503 {
		t.Fatalf("got %d", w.Code)
	}
	line := g.log.FilterMessage("cannot decide: the store is not loaded").All()[0]
	if got := line.ContextMap(); got["login"] != g.reader.id || got["host"] != "example.com" || got["path"] != "/v1/x" {
		t.Errorf("got %v", got)
	}
}
