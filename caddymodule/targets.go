package caddymodule

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/serviceusers/caddy-service-users/access"
)

// A FastCGI program gets more than the current target of a request: REQUEST_URI is the original
// target, and SCRIPT_NAME and PATH_INFO are two parts of the current one. The program may route by
// any of them, so all of them must be allowed.

// target is a method and a path, as [access.CheckTarget] returns it.
type target struct{ method, path string }

// of returns the action with this target instead of its own.
func (t target) of(a access.Action) access.Action {
	a.Method, a.Path = t.method, t.path
	return a
}

// phpSplits are the extensions at which php-fpm divides a path by itself, where Caddy has not
// divided it (cgi.fix_pathinfo, security.limit_extensions).
var phpSplits = []string{".php", ".phar"}

// further returns the targets, beside the current one, on which an upstream may act: the original
// target, both mixtures of the two, and the parts of each path.
// The raw paths are those of the two targets, as they were received.
func (h *Handler) further(
	r *http.Request, current, original target, raw, originalRaw string,
) (list []target, p access.Problem) {
	around := h.surroundings()
	if around.currentOnly && len(around.splits) == 0 {
		return nil, p
	}
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		// The FastCGI transport sends the remainder of a file matcher where its own
		// PATH_INFO is empty.
		if remainder, _ := repl.GetString("http.matchers.file.remainder"); remainder != "" {
			text := (&url.URL{Path: "/" + strings.TrimPrefix(remainder, "/")}).EscapedPath()
			path, p := h.relax.CheckTarget(text)
			if !p.OK() {
				p.Detail = "a file matcher divides the path, and the rest is not valid: " + p.Detail
				return nil, p
			}
			list = append(list, target{current.method, path})
		}
	}
	if list, p = h.addParts(list, current, raw, around.splits); !p.OK() {
		return nil, p
	}
	if !around.currentOnly && original != current {
		for _, t := range [...]target{
			{current.method, original.path}, original, {original.method, current.path},
		} {
			list = append(list, t)
			spelling := originalRaw
			if t.path == current.path {
				spelling = raw
			}
			if list, p = h.addParts(list, t, spelling, around.splits); !p.OK() {
				return nil, p
			}
		}
	}
	// Each target is judged once.
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] == current || slices.Contains(list[:i], list[i]) {
			list = slices.Delete(list, i, i+1)
		}
	}
	return list, access.Problem{}
}

// addParts appends the two parts, script and PATH_INFO, into which FastCGI divides the path of a
// target behind the first occurrence of an extension. raw is the path before it was decoded.
func (h *Handler) addParts(list []target, t target, raw string, splits []string) ([]target, access.Problem) {
	path := access.PlainPath(t.path)
	for _, extensions := range [...][]string{splits, phpSplits} {
		for _, extension := range extensions {
			i := indexFold(path, extension)
			if i < 0 || i+len(extension) == len(path) {
				continue
			}
			script, info, p := h.relax.Split(raw, i+len(extension))
			if !p.OK() {
				p.Detail = "FastCGI divides the path, and a part is not valid: " + p.Detail
				return nil, p
			}
			list = append(list, target{t.method, script}, target{t.method, info})
		}
	}
	return list, access.Problem{}
}

// indexFold returns the index of the first occurrence of an ASCII extension, in upper or lower
// case, or -1. The empty extension divides nothing, as in FastCGI.
func indexFold(path, extension string) int {
	for i := range max(0, len(path)-len(extension)+1) {
		if extension != "" && path[i]|0x20 == extension[0]|0x20 && // most bytes differ from the first one
			strings.EqualFold(path[i:i+len(extension)], extension) {
			return i
		}
	}
	return -1
}

// isPublic reports whether every target of a request needs no credential.
func (h *Handler) isPublic(rq *request) bool {
	private := func(t target) bool { return !h.public.Covers(t.of(rq.action)) }
	return h.public.Covers(rq.action) && !slices.ContainsFunc(rq.further, private)
}

// refuses reports whether a decision keeps a request from the next handler.
func (h *Handler) refuses(d access.Decision) bool {
	return !d.Allowed() && !(d.Reason == access.NoRule && h.observes())
}

// decide appends the decision about each target of a request to into, the current target first. which
// is the one that counts: the first that refuses, else the first without a rule, else the first.
func (h *Handler) decide(rq *request, into []access.Decision) (decisions []access.Decision, which int) {
	decisions = append(into, rq.directory.Authorize(rq.principal, rq.action))
	for _, t := range rq.further {
		decisions = append(decisions, rq.directory.Authorize(rq.principal, t.of(rq.action)))
	}
	which = slices.IndexFunc(decisions, h.refuses)
	if which < 0 {
		which = max(0, slices.IndexFunc(decisions, func(d access.Decision) bool { return !d.Allowed() }))
	}
	return decisions, which
}

// authorize decides about every target of a request, and counts the requests that pass only because
// the handler observes. It returns one decision and the action that this decision is about: the
// first that refuses, else the first without a rule, else the decision about the current target.
func (h *Handler) authorize(rq *request) (access.Action, access.Decision) {
	var few [4]access.Decision // so that few targets need no allocation
	decisions, which := h.decide(rq, few[:0])
	decided, decision := rq.action, decisions[which]
	refused := h.refuses(decision)
	// A stream is judged again for all targets, so a header that one of them needs is kept.
	decision.Header = slices.ContainsFunc(decisions, func(d access.Decision) bool { return d.Header })
	switch {
	case decision.Allowed():
		metrics.reasons[access.Granted].Inc()
	case !refused:
		metrics.observed.Inc()
	}
	wouldDeny := false
	for i, d := range decisions {
		wouldDeny = wouldDeny || !refused && (!d.Allowed() || d.Would.Effect == access.Deny)
		action := rq.action
		if i > 0 {
			action = rq.further[i-1].of(action)
		}
		if i == which {
			decided = action
		}
		if !refused && !d.Allowed() {
			h.count(rq, action, access.Decision{}, true)
		}
		if d.Would.Effect != "" {
			h.count(rq, action, d, false)
		}
	}
	if wouldDeny {
		metrics.wouldDeny.Inc()
	}
	return decided, decision
}

// forwardTargets gives the targets of a request the form in which they go upstream: the current one,
// and the original one, which FastCGI forwards too.
func (h *Handler) forwardTargets(r *http.Request) {
	if target := h.relax.Forwarded(r.RequestURI); target != r.RequestURI {
		forward(r, target)
	}
	original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	target := h.relax.Forwarded(original.RequestURI)
	if !ok || target == original.RequestURI {
		return
	}
	u := *original.URL // a copy: other holders of the context see the old URL
	original.URL = &u
	forward(&original, target)
	*r = *r.WithContext(context.WithValue(r.Context(), caddyhttp.OriginalRequestCtxKey, original))
}
