package caddymodule

import (
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
)

// ourHandlers contains the facts about our handlers that the walk gathers over all servers.
type ourHandlers struct {
	guards  []*Handler
	number  map[*Handler]int // from 1; guards[number-1] is the handler
	groups  []guardGroup     // by number: union-find of the guards whose requests can meet
	cached  map[*Handler]bool
	hostsOf map[*Handler][][]string // for each way to a guard that judges, the hosts of the routes
	splits  []string                // the extensions at which paths are split, in lower case

	doors    map[*SiteDoor]bool // those that requests reach: true if all of them come from an authenticator
	actors   []string           // the actor headers; the index is the bit in a flow
	prefixes []string           // of identity headers

	cacheCount int             // the number of caches that the walk has met
	upstreams  map[string]bool // the addresses of upstreams behind a guard
	unguarded  []candidate     // proxies on sites without a guard
}

// guardGroup is a set of guards whose requests can meet. Its facts are valid at the root.
type guardGroup struct {
	parent   int  // the number of another guard of the group; its own number at the root
	original bool // an upstream behind may get the original target
	php      bool // an upstream behind splits the path into script and PATH_INFO
}

func newOurHandlers(a *App) *ourHandlers {
	o := &ourHandlers{
		number: make(map[*Handler]int), groups: make([]guardGroup, 1), // group 0 is not a guard
		cached: make(map[*Handler]bool), hostsOf: make(map[*Handler][][]string),
		doors: make(map[*SiteDoor]bool), upstreams: make(map[string]bool),
	}
	for _, door := range a.doors {
		if name := http.CanonicalHeaderKey(door.ActorHeader); name != "" && !slices.Contains(o.actors, name) {
			o.actors = append(o.actors, name)
		}
	}
	for _, guard := range a.guards {
		if !slices.Contains(o.prefixes, guard.HeaderPrefix) {
			o.prefixes = append(o.prefixes, guard.HeaderPrefix)
		}
	}
	return o
}

// actorBit returns the bit of an actor header. Only 64 different headers have a bit. For another
// one actorBit returns 0, and its door stays unproven.
func (o *ourHandlers) actorBit(name string) uint64 {
	return 1 << uint(slices.Index(o.actors, http.CanonicalHeaderKey(name)))
}

func (o *ourHandlers) numberOf(h *Handler) int {
	if o.number[h] == 0 {
		o.guards = append(o.guards, h)
		o.number[h] = len(o.guards)
		o.groups = append(o.groups, guardGroup{parent: len(o.guards)})
	}
	return o.number[h]
}

// root returns the group of a guard.
func (o *ourHandlers) root(guard int) *guardGroup {
	for o.groups[guard].parent != guard {
		o.groups[guard].parent = o.groups[o.groups[guard].parent].parent
		guard = o.groups[guard].parent
	}
	return &o.groups[guard]
}

// connect records that requests of both guards can meet: the handlers behind that point serve the
// requests of both.
func (o *ourHandlers) connect(a, b int) {
	if a == 0 || b == 0 { // no guard
		return
	}
	from, into := o.root(a), o.root(b)
	from.parent = into.parent
	into.original = into.original || from.original
	into.php = into.php || from.php
}

// keepOriginal records that an upstream behind a guard may get the original target.
func (o *ourHandlers) keepOriginal(guard int) { o.root(guard).original = true }

// split records that an upstream behind a guard splits paths at these extensions.
func (o *ourHandlers) split(guard int, extensions []string) {
	o.root(guard).php = true
	o.addSplits(extensions)
}

func (o *ourHandlers) addSplits(extensions []string) {
	for _, extension := range extensions {
		if extension = strings.ToLower(extension); extension != "" && !slices.Contains(o.splits, extension) {
			o.splits = append(o.splits, extension)
		}
	}
}

func (o *ourHandlers) surroundingsOf(h *Handler) surroundings {
	group := o.root(o.number[h])
	p := surroundings{currentOnly: !group.original, cached: o.cached[h]}
	if group.php {
		p.splits = o.splits
	}
	return p
}

// guard follows a service_users handler.
func (w *serverWalk) guard(h *Handler, in flow) flow {
	w.seenHandler = true
	n := w.numberOf(h)
	w.connect(in.guard, n)
	if !w.inErrors {
		// A guard in an error route does not guard the site.
		w.guarded[w.site()], w.guardedBelow[""] = true, true
		for _, site := range w.hosts {
			w.guardedBelow[site] = true
		}
		if !in.reached {
			w.neverRuns()
		}
	}
	if !in.reached {
		return in
	}
	if in.unjudged && !h.SanitizeOnly {
		w.reportReaders(in.reader)
	}
	if in.cache != 0 {
		w.cached[h] = true
		if f := w.caches[in.cache-1]; f.Message != "" {
			w.report(f)
		}
		if in.nested {
			w.addFinding(true, "a cache and a handler with routes of its own (intercept, "+
				"forward_auth, handle_response) come before service_users: the cache has to "+
				"see Authorization once the answer is there, and those routes must not; put "+
				"the cache behind service_users, with the identity header in its key, or the "+
				"other handler behind service_users")
		}
	}
	if in.carriesTarget {
		w.keepOriginal(n)
	}
	if h.observes() {
		w.addFinding(false, "mode observe lets every service user do everything that no deny covers; "+
			"remove it once \"caddy service-user would-deny\" lists nothing that is needed")
	}
	for _, text := range h.Public {
		rule, err := access.ParseRule("allow " + text)
		if err == nil && everyPath.MatchString(rule.Path) {
			w.addFinding(false, "public %s opens every path to everybody; name the paths that "+
				"need no credential", text)
		}
		for _, doubt := range access.Doubts(rule) {
			w.addFinding(false, "public %s %s", text, doubt)
		}
	}
	if h.Ready != "" && w.site() != "" {
		w.addFinding(false, "ready %s answers only requests for %s: a probe that sends the address "+
			"of the machine as its host gets Caddy's empty 200, also when nothing can be "+
			"decided; put ready on a site without a host name, such as :8085", h.Ready, w.site())
	}
	out := in
	out.guard, out.unstripped, out.owned, out.removed, out.set = n, false, 0, 0, 0
	if h.SanitizeOnly {
		out.stripped = true
		return out
	}
	if !w.inErrors {
		w.hostsOf[h] = append(w.hostsOf[h], slices.Clone(w.hosts))
	}
	out.judged, out.identified, out.certain = true, true, true
	out.rewrite, out.unjudged, out.reader = 0, false, 0
	out.waiting = h.Otherwise != "" && !in.authenticated
	out.basicless = out.waiting && h.Otherwise == "pass" && !h.KeepAuthorization
	return out
}

// everyPath matches the pattern of a rule that covers every path.
var everyPath = regexp.MustCompile(`^/\{[^/]*\.\.\.\}$`)

// neverRuns reports a guard that no request reaches, since proxies before it take them all.
func (w *serverWalk) neverRuns() {
	if len(w.proxied) == 0 {
		return
	}
	var names []string
	for i := range w.proxied {
		if c := &w.proxied[i]; c.site == w.site() && !c.blamed {
			c.blamed = true
			names = append(names, c.proxy)
		}
	}
	if len(names) == 0 {
		names = []string{w.proxied[len(w.proxied)-1].proxy}
	}
	w.addFinding(true, "service_users never runs: %s before it takes every request, unchecked; put "+
		"service_users first", strings.Join(slices.Compact(names), " and "))
}

// door follows a site door. The door believes its actor header only if every request that reaches
// it comes directly from an authenticator that owns the header.
func (w *serverWalk) door(d *SiteDoor, in flow) flow {
	w.seenHandler = true
	for _, id := range d.Admins {
		w.oneName("admins", id)
	}
	for _, m := range d.Managers {
		w.oneName("managers", m.ID)
	}
	if in.reached && in.cache != 0 {
		w.addFinding(true, "a cache comes before service_users_admin, and can give the answer to one "+
			"admin to everybody; put the door on a site, or into a route, without a cache")
	}
	if !in.reached || d.ActorHeader == "" {
		return flow{}
	}
	// The walk can meet a door several times, in a named route: each way must be proven.
	proven, met := w.doors[d]
	owned := in.owned&w.actorBit(d.ActorHeader) != 0
	w.doors[d] = owned && (proven || !met)
	if !owned {
		w.addFinding(true, "service_users_admin: actor_header %s is believed only directly behind a "+
			"forward_auth without a matcher that has \"copy_headers %[1]s\", and of which every "+
			"answer that goes on deletes the header and sets it; put both into one handle block, "+
			"with nothing between", d.ActorHeader)
	}
	return flow{}
}

func (w *serverWalk) oneName(option, id string) {
	if strings.Contains(id, ",") {
		w.addFinding(false, "%s %s is the name of one person, with a comma in it; separate names by "+
			"spaces", option, id)
	}
}
