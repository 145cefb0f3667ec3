package caddymodule

import (
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
)

// matchers looks at the matchers of a route: file matchers split paths, and the matcher
// service_user needs a guard before it.
func (w *serverWalk) matchers(sets caddyhttp.MatcherSets, in flow) {
	for _, set := range sets {
		for _, matcher := range set {
			switch m := matcher.(type) {
			case *fileserver.MatchFile:
				w.addSplits(m.SplitPath)
			case *caddyhttp.MatchNot:
				w.matchers(m.MatcherSets, in)
			case *MatchServiceUser:
				if in.unstripped && !w.inErrors {
					w.addFinding(false, "the matcher service_user looks at requests that "+
						"service_users has not seen: nobody is a service user there; "+
						"move the route behind service_users")
				}
			}
		}
	}
}

// byIdentity divides the requests at a route whose only matcher is "service_user" or "not
// service_user". At any other route, any request may enter or pass.
func (w *serverWalk) byIdentity(sets caddyhttp.MatcherSets, in flow) (enter, past flow) {
	if len(sets) != 1 || len(sets[0]) != 1 || w.inErrors {
		return in, in
	}
	matcher := sets[0][0]
	not, inverted := matcher.(*caddyhttp.MatchNot)
	if inverted && len(not.MatcherSets) == 1 && len(not.MatcherSets[0]) == 1 {
		matcher = not.MatcherSets[0][0]
	}
	if _, ours := matcher.(*MatchServiceUser); !ours {
		return in, in
	}
	programs, others := in, in
	programs.reached, programs.unstripped = in.reached && in.identified, false
	programs.waiting, programs.basicless = false, false
	others.identified = false
	if inverted {
		return others, programs
	}
	return programs, others
}

// matchesAll reports whether every request gets into a route.
func matchesAll(sets caddyhttp.MatcherSets) bool {
	return len(sets) == 0 || slices.ContainsFunc(sets, func(set caddyhttp.MatcherSet) bool {
		return !slices.ContainsFunc(set, func(matcher any) bool {
			path, ok := matcher.(*caddyhttp.MatchPath)
			return !ok || !slices.Contains(*path, "*") // "/*" does not match the empty path
		})
	})
}

// matchedHosts returns the hosts of a route, sorted and with spaces between. It returns "" for a
// route that matches any host.
func matchedHosts(sets caddyhttp.MatcherSets) string {
	var hosts []string
	for _, set := range sets {
		n := len(hosts)
		for _, matcher := range set {
			if host, ok := matcher.(*caddyhttp.MatchHost); ok {
				hosts = append(hosts, *host...)
			}
		}
		if len(hosts) == n {
			return ""
		}
	}
	slices.Sort(hosts)
	return strings.Join(slices.Compact(hosts), " ")
}

// matcherText describes the matchers of a route. It leaves out values that may be secret.
func matcherText(sets caddyhttp.MatcherSets) string {
	var alternatives []string
	for _, set := range sets {
		var parts []string
		for _, matcher := range set {
			switch m := matcher.(type) {
			case *caddyhttp.MatchHost:
				parts = append(parts, strings.Join(*m, " "))
			case *caddyhttp.MatchPath:
				parts = append(parts, "path "+strings.Join(*m, " "))
			case *caddyhttp.MatchMethod:
				parts = append(parts, "method "+strings.Join(*m, " "))
			default:
				parts = append(parts, "matcher "+strings.TrimPrefix(moduleID(m), "http.matchers."))
			}
		}
		slices.Sort(parts) // Caddy keeps the matchers in a map
		alternatives = append(alternatives, strings.Join(parts, " and "))
	}
	return strings.Join(alternatives, " or ")
}
