package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/serviceusers/caddy-service-users/admin"
)

const outcomeCaddyfile = `
{
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle 3 1h
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	log
	route {
		tracing {
			span guarded
		}
		service_users {
			public GET /open
			self /_self
			otherwise pass
		}
		respond 204
	}
}

http://:{$OBSERVE_PORT} {
	bind 127.0.0.1
	log
	route {
		service_users {
			mode observe
		}
		service_users
		respond 204
	}
}
`

// accessLine returns the fields of ours in the last line of the access log, as "NAME=VALUE" in the order of names.
func (s *server) accessLine(path string) (fields []string) {
	for line := range strings.Lines(s.log.String()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) != nil || entry["msg"] != "handled request" || !strings.Contains(line, `"uri":"`+path+`"`) {
			continue
		}
		fields = nil
		for _, name := range slices.Sorted(maps.Keys(entry)) {
			if slices.Contains([]string{"outcome", "service_user", "token", "rule", "decision_id"}, name) {
				fields = append(fields, fmt.Sprint(name, "=", entry[name]))
			}
			if strings.Count(line, `"`+name+`":`) > 1 && name == "outcome" {
				s.t.Errorf("%s: the field %s is in the line twice: %s", path, name, line)
			}
		}
	}
	return fields
}

// TestOutcome compares the fields of the access log, for each outcome of a request, and those of the spans.
func TestOutcome(t *testing.T) {
	t.Parallel()
	s := newServer(t, "OTEL_TRACES_EXPORTER=console", "OTEL_SDK_DISABLED=false")
	s.moreports("OBSERVE_PORT")
	withCaddyfile(s, outcomeCaddyfile)
	var group admin.Group
	s.local("POST", "/permission_groups", `{"name":"readers","rules":["allow GET /v1/{rest...}","deny GET /v1/secret"]}`, &group)
	user, other := s.create("billing-sync", "--group", "readers"), s.create("expired", "--group", "readers")
	allow, deny := group.Rules[0].ID, group.Rules[1].ID
	tokenOf := func(c credentials) string {
		words := strings.Fields(s.mustCLI("token", "list", c.id))
		return words[slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "token_") })]
	}
	token, expired := tokenOf(user), tokenOf(other)
	s.mustCLI("deactivate", "expired")
	who := func(c credentials, token string, more ...string) []string {
		return append(more, "service_user="+c.id, "token="+token)
	}
	wrong := credentials{user.id, "csu_wrong"}
	for _, row := range []struct {
		port, path string
		c          credentials
		status     int
		want       []string
	}{
		{"API_PORT", "/v1/a", user, 204, who(user, token, "outcome=granted", "rule="+allow)},
		{"API_PORT", "/v1/secret", user, 403, who(user, token, "decision_id=", "outcome=denied_by_rule", "rule="+deny)},
		{"API_PORT", "/v2/b", user, 403, who(user, token, "decision_id=", "outcome=no_rule")},
		{"API_PORT", "/v1/c", other, 401, who(other, expired, "outcome=user_inactive")},
		{"API_PORT", "/v1/d", wrong, 401, []string{"outcome=bad_checksum"}},
		{"API_PORT", "/v1/e", credentials{}, 204, []string{"outcome=passed"}},
		{"API_PORT", "/open", credentials{}, 204, []string{"outcome=public"}},
		{"API_PORT", "/v1/%2e%2e/f", user, 400, []string{"outcome=ambiguous"}},
		{"API_PORT", "/_self", user, 200, who(user, token, "outcome=self_service")},
		// An observing handler, and behind it one that enforces, which has the last word.
		{"OBSERVE_PORT", "/v1/g", user, 204, who(user, token, "outcome=granted", "rule="+allow)},
		{"OBSERVE_PORT", "/v2/h", user, 403, who(user, token, "decision_id=", "outcome=no_rule")},
	} {
		got := s.do("GET", row.port, row.path, row.c, "")
		if got.StatusCode != row.status {
			t.Errorf("%s: got %d, want %d", row.path, got.StatusCode, row.status)
		}
		want := slices.Clone(row.want)
		for i, field := range want {
			if field == "decision_id=" {
				want[i] += got.Header.Get(DecisionHeader)
			}
		}
		slices.Sort(want)
		var line []string
		waitUntil(t, "the line of "+row.path, func() bool { line = s.accessLine(row.path); return line != nil })
		if !slices.Equal(line, want) {
			t.Errorf("%s: got %v, want %v", row.path, line, want)
		}
	}
	for range 4 {
		s.get("/v1/i", wrong)
	}
	waitUntil(t, "429", func() bool { return slices.Equal(s.accessLine("/v1/i"), []string{"outcome=throttled"}) })

	// Caddy writes the spans when it ends.
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.exited
	spans := s.log.String()
	for name, value := range map[string]string{"outcome": "denied_by_rule", "service_user": user.id, "token": token, "rule": deny} {
		if want := fmt.Sprintf(`{"Key":"service_users.%s","Value":{"Type":"STRING","Value":"%s"}}`, name, value); !strings.Contains(spans, want) {
			t.Errorf("no span has %s", want)
		}
	}
	if strings.Contains(spans, user.secret) {
		t.Error("a secret is in the log")
	}
}

// recordingSpan keeps its attributes.
type recordingSpan struct {
	noop.Span
	recording bool
	list      []attribute.KeyValue
}

func (s *recordingSpan) IsRecording() bool                        { return s.recording }
func (s *recordingSpan) SetAttributes(list ...attribute.KeyValue) { s.list = append(s.list, list...) }

// TestShow: a span that records gets the attributes, and one that does not, or a site without an access log, costs
// no allocation.
func TestShow(t *testing.T) {
	o := outcome{"granted", "service_1", "token_1", "rule_1", ""}
	request := func(server *caddyhttp.Server, span *recordingSpan) *http.Request {
		r := httptest.NewRequest("GET", "/", nil)
		if span != nil {
			r = r.WithContext(trace.ContextWithSpan(context.Background(), span))
		}
		return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), httptest.NewRecorder(), server)
	}
	span := &recordingSpan{recording: true}
	r := request(new(caddyhttp.Server), span)
	show(r, varsOf(r), func() outcome { return o })
	want := []attribute.KeyValue{
		attribute.String("service_users.outcome", "granted"), attribute.String("service_users.service_user", "service_1"),
		attribute.String("service_users.token", "token_1"), attribute.String("service_users.rule", "rule_1"),
	}
	if !slices.Equal(span.list, want) {
		t.Errorf("got %v, want %v", span.list, want)
	}
	span.list = nil // a second handler refuses: nothing of the first one stays
	show(r, varsOf(r), func() outcome { return outcome{outcome: "denied", decisionID: "5"} })
	want = []attribute.KeyValue{
		attribute.String("service_users.outcome", "denied"), attribute.String("service_users.service_user", ""),
		attribute.String("service_users.token", ""), attribute.String("service_users.rule", ""),
		attribute.String("service_users.decision_id", "5"),
	}
	if !slices.Equal(span.list, want) {
		t.Errorf("the second one: got %v, want %v", span.list, want)
	}
	for name, r := range map[string]*http.Request{
		"no access log": request(new(caddyhttp.Server), nil), "a span that does not record": request(new(caddyhttp.Server), new(recordingSpan)),
	} {
		vars := varsOf(r)
		if n := testing.AllocsPerRun(100, func() { show(r, vars, func() outcome { t.Error(name); return o }) }); n != 0 {
			t.Errorf("%s: got %v allocations, want none", name, n)
		}
		if vars[outcomeVar] != nil {
			t.Errorf("%s: the outcome was kept", name)
		}
	}
}

// BenchmarkShow is the cost of a request without an access log and a trace, and with an access log.
func BenchmarkShow(b *testing.B) {
	for name, server := range map[string]*caddyhttp.Server{"off": {}, "log": {Logs: new(caddyhttp.ServerLogConfig)}} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest("GET", "/", nil)
			r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), httptest.NewRecorder(), server)
			vars := varsOf(r)
			b.ReportAllocs()
			for b.Loop() {
				delete(vars, outcomeVar)
				show(r, vars, func() outcome { return outcome{"granted", "service_1", "token_1", "rule_1", ""} })
			}
		})
	}
}
