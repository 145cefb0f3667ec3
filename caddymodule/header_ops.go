package caddymodule

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
)

// trackActors follows the effect of header operations on the actor headers.
func (w *serverWalk) trackActors(ops *headers.HeaderOps, out *flow) {
	if ops == nil {
		return
	}
	if slices.Contains(ops.Delete, "*") { // Caddy deletes these before the other operations
		out.removed, out.set = ^uint64(0), 0
	}
	for i, name := range w.actors {
		bit := uint64(1) << i
		drop := func() { out.removed, out.set = out.removed&^bit, out.set&^bit } // nothing is proven
		named := func(field string) bool {
			// A field with a placeholder can have any name.
			return strings.Contains(field, "{") || http.CanonicalHeaderKey(field) == name
		}
		for field := range ops.Add {
			if named(field) {
				drop()
			}
		}
		for field, values := range ops.Set {
			switch {
			case !named(field):
			case strings.Contains(field, "{") || !ofAnswer(values):
				drop()
			default:
				out.removed, out.set = out.removed|bit, out.set|bit
			}
		}
		for _, pattern := range ops.Delete {
			if pattern != "*" && !strings.Contains(pattern, "{") && deletesHeader(pattern, name) {
				out.removed, out.set = out.removed|bit, out.set&^bit
			}
		}
		for field := range ops.Replace {
			if field == "*" || named(field) {
				drop()
			}
		}
	}
}

// leavesActors reports whether header operations change no actor header.
func (w *serverWalk) leavesActors(ops *headers.HeaderOps) bool {
	if ops == nil {
		return true
	}
	fields := slices.Concat(slices.Collect(maps.Keys(ops.Add)), slices.Collect(maps.Keys(ops.Set)),
		slices.Collect(maps.Keys(ops.Replace)), ops.Delete)
	return !slices.ContainsFunc(fields, func(field string) bool {
		return strings.ContainsAny(field, "{*") || slices.Contains(w.actors, http.CanonicalHeaderKey(field))
	})
}

// ofAnswer reports whether values come from the answer of the authenticator: they contain
// placeholders of the answer's headers, and no others.
func ofAnswer(values []string) bool {
	pieces := strings.Split(strings.Join(values, ","), "{")
	return len(pieces) > 1 && !slices.ContainsFunc(pieces[1:], func(piece string) bool {
		return !strings.HasPrefix(piece, "http.reverse_proxy.header.")
	})
}

// checkHeaders reports operations on identity headers behind the guard.
func (w *serverWalk) checkHeaders(by string, ops *headers.HeaderOps, in flow) {
	if ops == nil || in.guard == 0 {
		return
	}
	if name, verb := touchedHeader(w.guards[in.guard-1], ops); name != "" {
		w.addFinding(false, "%s %s the identity header %s after service_users, so that the upstream "+
			"believes another identity than service_users has checked; leave it out", by, verb, name)
	}
}

// touchedHeader returns an identity header of a guard, or a header whose name folds to the same
// prefix, that header operations change, and the verb for the change. To set an identity header to
// its own value is not a change.
func touchedHeader(h *Handler, ops *headers.HeaderOps) (name, verb string) {
	prefix := foldName(h.HeaderPrefix)
	like := func(name string) bool { return strings.HasPrefix(foldName(name), prefix) }
	for _, name := range slices.Sorted(maps.Keys(ops.Set)) {
		word, _ := strings.CutPrefix(foldName(name), prefix)
		if same := sameValue[word]; like(name) && (same == "" || !slices.Equal(ops.Set[name], []string{same})) {
			return name, "sets"
		}
	}
	for _, name := range slices.Sorted(maps.Keys(ops.Add)) {
		if like(name) {
			return name, "adds to"
		}
	}
	for _, pattern := range ops.Delete {
		if !strings.Contains(pattern, "*") && like(pattern) {
			return pattern, "deletes"
		}
		for _, own := range h.identity {
			if deletesHeader(pattern, own.name) {
				return own.name, "deletes"
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(ops.Replace)) {
		if name == "*" && len(h.identity) > 0 {
			return h.identity[0].name, "replaces in"
		}
		if like(name) {
			return name, "replaces in"
		}
	}
	return "", ""
}

// sameValue contains the placeholder with the same value for each identity header, by the folded
// last part of the header's name. A header for the decision is the operator's own, and not forged.
var sameValue = map[string]string{
	"id": "{http.auth.user.id}", "groups": "{http.auth.user.groups}", "role": "{http.auth.user.role}",
	"teams": "{http.auth.user.teams}", "tokenid": "{http.auth.user.token_id}",
	"decision": "{http.service_users.decision}",
}

// deletesHeader reports whether the pattern of a deletion matches a header, as in Caddy.
func deletesHeader(pattern, name string) bool {
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	before, starts := strings.CutPrefix(pattern, "*")
	middle, ends := strings.CutSuffix(before, "*")
	switch {
	case pattern == "*":
		return true
	case starts && ends:
		return strings.Contains(name, middle)
	case starts:
		return strings.HasSuffix(name, before)
	case ends:
		return strings.HasPrefix(name, middle)
	}
	return pattern == name
}
