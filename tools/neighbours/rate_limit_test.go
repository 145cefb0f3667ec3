package neighbours

import (
	"strings"
	"testing"
)

// TestRateLimit gives each service user a bucket of its own. The limiter has to
// run behind the guard; before it, where the adapter puts it, {http.auth.user.id}
// is empty and everybody shares one bucket.
func TestRateLimit(t *testing.T) {
	const order = "order rate_limit after service_users"
	limit := func(key string) string {
		return "rate_limit {\nzone each {\nkey " + key + "\nwindow 1h\nevents 2\n}\n}\n"
	}
	const guard, proxy = "service_users\n", "reverse_proxy {upstream}\n"

	for name, directives := range map[string]string{
		"in the adapter's order": guard + limit("{http.auth.user.id}") + proxy,
		"in a route":             "route {\n" + limit("{http.auth.user.id}") + guard + proxy + "}",
		"for some paths":         guard + "rate_limit /v1/*" + strings.TrimPrefix(limit("user-{http.auth.user.name}-{remote_host}"), "rate_limit") + proxy,
		"by the header":          guard + limit("{http.request.header.X-Service-User-Id}") + proxy,
		"by the decision":        guard + limit("{http.service_users.rule}") + proxy,
	} {
		t.Run("refused "+name, func(t *testing.T) {
			want := order
			if strings.HasPrefix(directives, "route") {
				want = "rate_limit"
			}
			if err := newSite(t).load("", directives); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want a refusal with %q", err, want)
			}
		})
	}

	for name, config := range map[string][2]string{
		"with the order line": {order, guard + limit("{http.auth.user.id}") + proxy},
		"behind, in a route":  {"", "route {\n" + guard + limit("{http.auth.user.id}") + proxy + "}"},
		"by the header":       {"", "route {\n" + guard + limit("{http.request.header.X-Service-User-Id}") + proxy + "}"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.run(config[0], config[1])
			one, two := s.create("one"), s.create("two")
			for _, who := range []login{one, two} {
				s.expect("the first", "/v1/x", who, 200, answerFor(who.id))
				s.expect("the second", "/v1/x", who, 200, answerFor(who.id))
				s.expect("the third", "/v1/x", who, 429, "")
			}
		})
	}

	t.Run("before, by address", func(t *testing.T) { // loads as ever
		s := newSite(t)
		s.run("", guard+limit("{remote_host}")+proxy)
		who := s.create("one")
		s.expect("the first", "/v1/x", who, 200, answerFor(who.id))
		s.expect("a stranger", "/v1/x", login{}, 401, "")
		s.expect("the third", "/v1/x", who, 429, "")
	})
}
