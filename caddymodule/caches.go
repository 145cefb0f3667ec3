package caddymodule

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// souin is the part of the configuration of Souin's cache that decides about the identity.
type souin struct {
	Configuration struct {
		DefaultCache struct {
			Key               cacheKey `json:"key"`
			Mode              string   `json:"mode"`
			DisableCoalescing bool     `json:"disable_coalescing"`
		}
		CacheKeys map[string]cacheKey `json:"cache_keys"` // by a pattern of paths
	}
}

// cacheKey is the key of answers in a cache. A key with a template ignores headers.
type cacheKey struct {
	Template string   `json:"template"`
	Headers  []string `json:"headers"`
}

// cache follows a cache. A cache before a guard must not give one service user's answer to others.
// The key of a cache behind a guard must contain the identity. The walk understands only the
// configuration of Souin (http.handlers.cache).
func (w *serverWalk) cache(name, text string, out *flow) {
	if !out.reached {
		return
	}
	var c souin
	_ = json.Unmarshal([]byte(text), &c) // the configuration of another cache leaves c empty
	standard := c.Configuration.DefaultCache
	keys := slices.AppendSeq([]cacheKey{standard.Key}, maps.Values(c.Configuration.CacheKeys))
	f := w.finding(true, "%s before service_users can give the answer to one service user to everybody: "+
		"put it behind service_users, with the identity header in its key, or give Souin's cache the "+
		"option disable_coalescing, no mode but strict, and no Authorization in its keys", name)
	// Coalescing gives one answer to all requests that wait for the same path. Other modes, and
	// a key with Authorization, make Souin store answers in spite of credentials.
	if standard.DisableCoalescing && (standard.Mode == "" || standard.Mode == "strict") &&
		!strings.Contains(strings.ToLower(fmt.Sprint(keys)), "authorization") {
		f.Message = ""
	}
	w.caches = append(w.caches, f)
	out.cache = len(w.caches)
	w.cacheCount++
	if !out.identified && !w.inErrors {
		return
	}
	names := []string{"X-Service-User-Id"}
	if out.guard != 0 {
		names = identityNames(w.guards[out.guard-1])
	}
	if standard.Key.Template != "" {
		keys = keys[:1] // a template replaces all other keys
	}
	if slices.ContainsFunc(keys, func(key cacheKey) bool { return !key.hasIdentity(names) }) {
		f := w.finding(true, "the key of %s behind service_users lacks the identity, so the answer "+
			"to one service user would be given to another; add it to the key, as in \"key { "+
			"headers %s }\" of Souin's cache", name, append(names, "X-Service-User-Id")[0])
		if out.guard == 0 { // an error route, whose site may have no service_users handler
			w.errorPaths = append(w.errorPaths, candidate{Finding: f, site: w.site()})
		} else {
			w.report(f)
		}
	}
}

// hasIdentity reports whether a key distinguishes service users: by one of these identity headers,
// or by a placeholder.
func (k cacheKey) hasIdentity(names []string) bool {
	if k.Template == "" {
		return slices.ContainsFunc(k.Headers, func(header string) bool {
			return slices.Contains(names, http.CanonicalHeaderKey(header))
		})
	}
	return strings.Contains(k.Template, "{http.auth.user.id}") ||
		strings.Contains(k.Template, "{http.auth.user.token_id}") ||
		slices.ContainsFunc(names, func(name string) bool {
			placeholder := "{http.request.header." + strings.ToLower(name) + "}"
			return strings.Contains(strings.ToLower(k.Template), placeholder)
		})
}

// risk orders caches by their number: 0 without one, 1 a cache that is safe before a guard, 2 one that
// is not.
func (w *serverWalk) risk(n int) int {
	if n > 0 && w.caches[n-1].Message != "" {
		return 2
	}
	return min(n, 1)
}

// identityNames returns the identity headers of a handler that distinguish service users.
func identityNames(h *Handler) (names []string) {
	for _, header := range h.identity {
		for _, word := range []string{"Id", "Token-Id"} {
			if header.name == http.CanonicalHeaderKey(h.HeaderPrefix+word) {
				names = append(names, header.name)
			}
		}
	}
	return names
}
