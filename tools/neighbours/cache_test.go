package neighbours

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A cache that shares nothing between requests that wait for the same answer.
const cache = "cache {\ndisable_coalescing\n}\n"

// TestCacheBefore runs a cache before the guard. An answer to a request with
// credentials is not stored (RFC 9111 section 3.5), as with basic_auth in the same
// place; an answer on a public path is.
func TestCacheBefore(t *testing.T) {
	guard := "service_users {\npublic GET /public\n}\n"
	for name, directives := range map[string]string{
		"in the adapter's order":                "reverse_proxy {upstream}\n" + guard + cache,
		"in a route":                            "route {\n" + cache + guard + "reverse_proxy {upstream}\n}",
		"in a handle block":                     cache + "handle {\n" + guard + "reverse_proxy {upstream}\n}",
		"handlers with routes behind the guard": cache + guard + "intercept {\n@gone status 404\nhandle_response @gone {\nrespond gone\n}\n}\nreverse_proxy {upstream}\n",
		"for some paths":                        "cache /v1/*" + strings.TrimPrefix(cache, "cache") + "cache /public" + strings.TrimPrefix(cache, "cache") + guard + "reverse_proxy {upstream}\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.run("", directives)
			one, two := s.create("one"), s.create("two")
			for i, header := range [][2]string{
				{"Cache-Control", "max-age=60"}, {"Cache-Control", "public, s-maxage=60, must-revalidate"}, {"Cache-Control", ""},
				{"Vary", "Authorization"}, {"Vary", "Accept, authorization"}, {"Vary", "Accept-Encoding"},
			} {
				s.upstream.answerWith(header[0], header[1], nil)
				path := fmt.Sprintf("/v1/%d", i)
				s.expect("the first service user", path, one, 200, answerFor(one.id))
				s.expect("a stranger", path, login{}, 401, "")
				s.expect("a wrong token", path, login{one.id, two.secret}, 401, "")
				s.expect("the second service user", path, two, 200, answerFor(two.id))
				s.expect("the first service user again", path, one, 200, answerFor(one.id))
			}
			for _, header := range s.upstream.requests() {
				if got := header.Values("Authorization"); len(got) > 0 {
					t.Errorf("the upstream got %q, want no Authorization", got)
				}
			}

			s.upstream.answerWith("", "", nil)
			s.expect("a public path", "/public", login{}, 200, answerFor(""))
			if got := s.expect("a public path again", "/public", login{}, 200, answerFor("")); !strings.Contains(got.header.Get("Cache-Status"), "hit") {
				t.Errorf("a public path again: got Cache-Status %q, want a hit", got.header.Get("Cache-Status"))
			}
		})
	}
}

// TestCacheBeforeBasicAuth is the reference for TestCacheBefore: the same cache
// before stock basic_auth.
func TestCacheBeforeBasicAuth(t *testing.T) {
	s := newSite(t)
	s.run("", cache+"basic_auth {\nalice "+passwordHash+"\n}\nreverse_proxy {upstream}\n")
	s.expect("alice", "/v1/x", login{"alice", "change-me"}, 200, answerFor(""))
	s.expect("a stranger", "/v1/x", login{}, 401, "")
}

// passwordHash is bcrypt of "change-me".
const passwordHash = "$2a$10$bO2qzp6r5wqCRqinxDhyt.cuMJObX2Caqgf/zhsbAaudJzfwRL2N2"

// TestCacheBeforeCoalesces asks while a request of a service user is upstream. A
// cache that coalesces requests would give its answer to all that wait, so the
// configuration has to switch that off.
func TestCacheBeforeCoalesces(t *testing.T) {
	s := newSite(t)
	s.run("", cache+"service_users\nreverse_proxy {upstream}\n")
	one, two := s.create("one"), s.create("two")
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	s.upstream.answerWith("", "", hold)

	answers := make(chan answer, 2)
	for _, who := range []login{one, two} {
		go func() { answers <- s.get("/v1/x", who) }()
		select {
		case <-s.upstream.arrived:
		case <-time.After(time.Minute):
			t.Fatal("the request does not get upstream: it waits for the answer to another one")
		}
	}
	s.expect("a stranger", "/v1/x", login{}, 401, "")
	release()
	bodies := []string{(<-answers).body, (<-answers).body}
	if !slices.Contains(bodies, answerFor(one.id)) || !slices.Contains(bodies, answerFor(two.id)) {
		t.Errorf("got %q, want each service user its own answer, %q and %q", bodies, answerFor(one.id), answerFor(two.id))
	}
}

// TestCacheBeforeRefused loads caches before the guard that give away answers even
// to requests with credentials.
func TestCacheBeforeRefused(t *testing.T) {
	const guard = "service_users\nreverse_proxy {upstream}\n"
	const intercept = "intercept {\n@gone status 404\nhandle_response @gone {\nrespond gone\n}\n}\n"
	for name, directives := range map[string]string{
		"it coalesces":                      "cache\n" + guard,
		"it coalesces, in a route":          "route {\ncache\n" + guard + "}",
		"it stores in spite of credentials": "cache {\ndisable_coalescing\nmode bypass\n}\n" + guard,
		"it ignores the request":            "cache {\ndisable_coalescing\nmode bypass_request\n}\n" + guard,
		"it is keyed by the credential":     "cache {\ndisable_coalescing\nkey {\nheaders authorization\n}\n}\n" + guard,
		"intercept behind it":               "route {\n" + cache + intercept + guard + "}",
		"intercept before it":               "route {\n" + intercept + cache + guard + "}",
		"intercept around the guard":        cache + "route {\n" + intercept + guard + "}",
		"forward_auth behind it":            "route {\n" + cache + "forward_auth {upstream} {\nuri /auth\n}\n" + guard + "}",
	} {
		t.Run(name, func(t *testing.T) {
			if err := newSite(t).load("", directives); err == nil || !strings.Contains(err.Error(), "cache") {
				t.Errorf("got %v, want a refusal that names the cache", err)
			}
		})
	}
	if err := newSite(t).load("cache {\ndisable_coalescing\n}", "cache\n"+guard); err == nil || !strings.Contains(err.Error(), "disable_coalescing") {
		t.Errorf("the global option, which Souin does not read: got %v, want a refusal that names disable_coalescing", err)
	}
}

// TestCacheBehind runs a cache behind the guard, whose key has to hold the
// identity. With Souin v1.7.7 each refused one would give the answer of one service
// user to the other, but for "cache_keys without it", which Souin misreads.
func TestCacheBehind(t *testing.T) {
	for _, tt := range []struct {
		name, global, block string
		loads               bool
	}{
		{"nothing", "", "", false},
		{"the id header", "", "key {\nheaders X-Service-User-Id\n}", true},
		{"the id header among others", "", "key {\nheaders Accept x-service-user-id\n}", true},
		{"another header", "", "key {\nheaders Accept\n}", false},
		{"a placeholder", "", "key {\ntemplate {http.auth.user.id}-{http.request.method}-{http.request.uri}\n}", true},
		{"the header's placeholder", "", "key {\ntemplate {http.request.header.X-Service-User-Id}-{http.request.uri}\n}", true},
		{"another placeholder", "", "key {\ntemplate {http.request.uri}\n}", false},
		{"a template wins over headers", "", "key {\nheaders X-Service-User-Id\ntemplate {http.request.uri}\n}", false},
		{"headers outside of the key", "", "headers X-Service-User-Id", false},
		{"cache_keys, which Souin misreads", "", "cache_keys {\n/v1 {\nheaders X-Service-User-Id\n}\n}", false},
		{"cache_keys for everything", "", "cache_keys {\n.* {\nheaders X-Service-User-Id\n}\n}", false},
		{"cache_keys without it", "", "key {\nheaders X-Service-User-Id\n}\ncache_keys {\n/v1 {\ndisable_host\n}\n}", false},
		{"cache_keys beside a template", "", "key {\ntemplate {http.auth.user.id}-{http.request.uri}\n}\ncache_keys {\n/v1 {\ndisable_host\n}\n}", true},
		{"the global option", "cache {\nkey {\nheaders X-Service-User-Id\n}\n}", "", true},
		{"the global option, overridden", "cache {\nkey {\nheaders X-Service-User-Id\n}\n}", "key {\nhide\n}", false},
		{"global cache_keys, which Souin ignores", "cache {\ncache_keys {\n.* {\nheaders X-Service-User-Id\n}\n}\n}", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			err := s.load(tt.global, "route {\nservice_users\ncache {\n"+tt.block+"\n}\nreverse_proxy {upstream}\n}")
			if !tt.loads {
				if err == nil || !strings.Contains(err.Error(), "cache") {
					t.Errorf("got %v, want a refusal that names the cache", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			one, two := s.create("one"), s.create("two")
			for range 2 {
				s.expect("the first service user", "/v1/x", one, 200, answerFor(one.id))
				s.expect("the second service user", "/v1/x", two, 200, answerFor(two.id))
				s.expect("a stranger", "/v1/x", login{}, 401, "")
			}
			if got := len(s.upstream.requests()); got != 2 {
				t.Errorf("the upstream got %d requests, want one of each service user, since the cache has the others", got)
			}
		})
	}

	t.Run("in the adapter's order", func(t *testing.T) {
		s := newSite(t)
		s.run("order cache after service_users", "cache {\nkey {\nheaders X-Service-User-Id\n}\n}\nservice_users\nreverse_proxy {upstream}\n")
		one, two := s.create("one"), s.create("two")
		s.expect("the first service user", "/v1/x", one, 200, answerFor(one.id))
		s.expect("the second service user", "/v1/x", two, 200, answerFor(two.id))
		if err := newSite(t).load("order cache after service_users", "cache\nservice_users\nreverse_proxy {upstream}\n"); err == nil || !strings.Contains(err.Error(), "cache") {
			t.Errorf("without the key: got %v, want a refusal that names the cache", err)
		}
	})
}
