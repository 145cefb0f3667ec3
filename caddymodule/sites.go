package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/serviceusers/caddy-service-users/access"
)

// siteOptions returns the options of the guarded site that serves a host name in the configuration
// in force. Like Caddy, it prefers a site that names the host to a wildcard, and a wildcard to a site
// without a name. Some sites have guards with different options: those of a request are not known
// then.
func siteOptions(host string) (access.Relax, error) {
	app, err := running()
	if err != nil {
		return 0, ErrNotConfigured
	}
	app.routes() // the walk sets the sites of each guard
	var found []*Handler
	best := 1
	for _, guard := range app.guards {
		if match := guard.serves(host); match > best {
			best, found = match, []*Handler{guard}
		} else if match == best {
			found = append(found, guard)
		}
	}
	if len(found) == 0 {
		return 0, errors.New("no guarded site of the running Caddy serves this host")
	}
	different := func(guard *Handler) bool { return guard.relax != found[0].relax }
	if slices.ContainsFunc(found, different) {
		return 0, errors.New("has several service_users blocks with different options, " +
			"so those of the request are not known; leave out the site")
	}
	return found[0].relax, nil
}

// serves returns 0 if no request for a host reaches the guard; otherwise 3 if a site names the host,
// 2 for a wildcard and 1 for a site without a name.
func (h *Handler) serves(host string) (best int) {
	r := (&http.Request{Host: host}).WithContext(
		context.WithValue(context.Background(), caddy.ReplacerCtxKey, caddy.NewReplacer()))
	for _, site := range h.sites {
		match := 1
		for _, level := range site {
			patterns := strings.Fields(level)
			if ok, err := caddyhttp.MatchHost(patterns).MatchWithError(r); !ok || err != nil {
				match = 0
				break
			}
			if match = 2; slices.Contains(patterns, host) {
				match = 3
			}
		}
		best = max(best, match)
	}
	return best
}
