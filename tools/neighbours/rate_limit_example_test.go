package neighbours

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// TestRateLimitExample runs the example with fewer requests: each service user has a limit of its own, its answers say
// so, and a refusal says when the next request may come.
func TestRateLimitExample(t *testing.T) {
	const file = "../../examples/ratelimit/Caddyfile"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if difference, found := caddyfile.FormattingDifference(file, text); found {
		t.Errorf("%s:%d: not as \"caddy fmt\" writes it", file, difference.Line)
	}
	policy := regexp.MustCompile("RateLimit-Policy `\"each\";q=(\\d+);w=(\\d+)`[^$]*zone each {[^$]*events (\\d+)\\s+window (\\d+)s\n").FindSubmatch(text)
	if policy == nil || string(policy[1]) != string(policy[3]) || string(policy[2]) != string(policy[4]) {
		t.Errorf("the header names another limit than the zone: %q", policy)
	}

	s := newSite(t)
	_, port, _ := net.SplitHostPort(s.address)
	_, upstream, _ := net.SplitHostPort(s.upstream.address)
	t.Setenv("API_PORT", port)
	t.Setenv("UPSTREAM_PORT", upstream)
	t.Setenv("SERVICE_USERS_STORE", os.Getenv("STORE"))
	if output, err := asCaddy("service-user", "lint", "--strict", file); err != nil {
		t.Errorf("lint --strict %s: %v\n%s", file, err, output)
	}
	if output, err := asCaddy("validate", "--config", file, "--adapter", "caddyfile"); err != nil {
		t.Errorf("validate %s: %v\n%s", file, err, output)
	}
	s.address = "localhost:" + port
	if err := s.loadFile(strings.NewReplacer("q=100", "q=2", "events 100", "events 2", "window 60s", "window 1h").Replace(string(text))); err != nil {
		t.Fatal(err)
	}
	const has = `"each";q=2;w=60`
	for _, who := range []login{s.create("one"), s.create("two")} {
		for i := range 2 {
			got := s.expect(fmt.Sprint("request ", i), "/v1/x", who, 200, answerFor(who.id))
			if got.header.Get("RateLimit-Policy") != has || got.header.Get("RateLimit") != "" {
				t.Errorf("an answer: got %q and %q, want the policy alone", got.header.Get("RateLimit-Policy"), got.header.Get("RateLimit"))
			}
		}
		for range 2 {
			got := s.expect("one more", "/v1/x", who, 429, "")
			after := got.header.Get("Retry-After")
			seconds, err := strconv.Atoi(after)
			if err != nil || seconds < 1 || seconds > 3601 {
				t.Errorf("Retry-After: got %q, want the rest of an hour", after)
			}
			if want := `"each";r=0;t=` + after; got.header.Get("RateLimit") != want || got.header.Get("RateLimit-Policy") != has {
				t.Errorf("a refusal: got %q and %q, want %q and %q", got.header.Get("RateLimit"), got.header.Get("RateLimit-Policy"), want, has)
			}
			if got.header.Get("Content-Type") != "application/problem+json" || !strings.Contains(got.body, `"status":429`) {
				t.Errorf("a refusal: got %s %s", got.header.Get("Content-Type"), got.body)
			}
		}
	}
	got := s.get("/v1/x", login{})
	if got.status != 401 || got.header.Get("RateLimit-Policy") != "" || got.header.Get("RateLimit") != "" {
		t.Errorf("a stranger: got %d %v, want 401 without a limit", got.status, got.header)
	}
}
