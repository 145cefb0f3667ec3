package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/intercept"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// A handler does not see its neighbours. The walk in this file follows the routes
// of every server in the order in which requests pass them, once per
// configuration, and neighbours.go judges each handler that it meets. The walk
// proves the places in which our handlers are safe; the load fails, or warns,
// where it cannot. "caddy service-user lint" runs the same walk on a file.

// Finding is a mistake, or a doubt, about the routes around our handlers.
type Finding struct {
	Fatal   bool   // fails the load; else it is a doubt, which is logged
	load    bool   // only the log of a load has it: Caddyfile.example has it on purpose
	Server  string // the name of the server in the http app
	Route   string // the matchers on the way, and the place in the server's configuration; "" is the whole server
	Message string // the harm, and the way out
}

func (f Finding) String() string {
	text := f.Message
	if f.Route != "" {
		text = f.Route + ": " + text
	}
	if f.Server != "" {
		text = "server " + f.Server + ": " + text
	}
	return text
}

// checkRoutes returns the fatal findings as an error, and logs the doubts.
func checkRoutes(list []Finding) error {
	var fatal []string
	for _, f := range list {
		if f.Fatal {
			fatal = append(fatal, f.String())
			continue
		}
		caddy.Log().Named("service_users").Warn(f.Message, zap.String("server", f.Server), zap.String("route", f.Route))
	}
	switch len(fatal) {
	case 0:
		return nil
	case 1:
		return errors.New(fatal[0])
	}
	for i := range fatal {
		fatal[i] = fmt.Sprintf("(%d) %s", i+1, fatal[i])
	}
	return fmt.Errorf("%d mistakes in the routes: %s", len(fatal), strings.Join(fatal, "; "))
}

// findings walks the servers in the order of their names. It also sets the place
// of each of our handlers, and ticks off the doors of this configuration that
// may believe a header.
func (a *App) findings(app *caddyhttp.App) (list []Finding) {
	ours := newOurHandlers(a)
	for _, name := range slices.Sorted(maps.Keys(app.Servers)) {
		list = append(list, ours.walkServer(name, app.Servers[name])...)
	}
	list = append(list, ours.sharedUpstreams()...)
	for _, guard := range a.guards {
		if ours.number[guard] == 0 {
			list = append(list, Finding{Fatal: ours.cacheCount > 0, Message: "service_users runs inside of a module that this check does not know, so nothing is known about its neighbours; use it directly in a site, a handle or a route block"})
			continue
		}
		guard.place, guard.sites = ours.placeOf(guard), ours.hostsOf[guard]
	}
	for _, door := range a.doors {
		proven, met := ours.doors[door]
		if door.believes = proven; door.ActorHeader != "" && !met {
			list = append(list, Finding{Fatal: true, Message: fmt.Sprintf("service_users_admin: actor_header %s is believed only where every way to the door is known, and none was found to this one: it is inside of a module that this check does not know, or no request reaches it; use it directly in a site, a handle or a route block", door.ActorHeader)})
		}
	}
	return list
}

// flow describes the requests that can come to one point of the routes. The zero
// value is that of a point that no request reaches.
type flow struct {
	reached  bool // a request can come here
	raw      bool // some have passed none of our handlers
	unjudged bool // some have passed none that judges
	judged   bool // some have been judged by rules
	known    bool // some carry the identity of a service user
	stranger bool // some were left by "otherwise pass" to an authenticator, and none has seen them yet
	certain  bool // every request that the last guard let go on comes here, unless it is answered before
	stripped bool // "service_users sanitize" has removed Authorization from some
	asked    bool // Caddy's authentication handler has seen some
	nested   bool // some are inside of a handler that runs routes of its own after the answer
	carries  bool // some may carry the target of the client in a header or a variable

	guard   int // our last handler: a number of ourHandlers.guards from 1, 0 is none
	rewrite int // a change of method or path since the guard judged: a number of walk.rewrites from 1
	reader  int // a handler that read our identity before we set it: a number of walk.readers from 1
	cache   int // a cache that some have passed: a number of walk.caches from 1

	// Actor headers, as bits. A door believes one that the authenticator directly
	// before owns: each of its answers that goes on has removed the value of the
	// client, and some have set one. The walk gathers both inside of its
	// handle_response blocks.
	owned, removed, set uint64
	visited             uint64 // the named routes that some have been through, as bits
}

// walk is the way through one server.
type walk struct {
	*ourHandlers
	server *caddyhttp.Server
	name   string
	found  []Finding
	seen   map[Finding]bool

	path       []string // the place in the configuration
	words      []string // the matchers on the way
	hosts      []string // the host matchers among them
	inErrors   bool     // an error route
	inResponse int      // how many handle_response blocks are around
	grouped    int      // how many groups were followed
	again      bool     // requests may have been through these routes before, and have met their groups
	circle     bool     // a named route invokes itself

	bits    map[string]uint64           // of named routes; beyond 64 several have the same
	groups  map[string]*caddyhttp.Route // by name, the first route of the list that a group is in
	invoked map[invocation]*invoked

	rewrites []rewriting
	readers  []reader
	caches   []Finding // without a message it is safe before a guard

	ours       bool            // one of our handlers was met
	sites      map[string]bool // the hosts that were met
	guarded    map[string]bool // the hosts with a guard directly among their routes
	within     map[string]bool // the hosts with a guard anywhere below
	examples   []Finding       // people with the password of Caddyfile.example
	proxied    []candidate     // proxies that requests reach without passing our handlers
	errorPaths []candidate     // error routes that lead to a proxy
}

// candidate is reported only if its site turns out to be guarded.
type candidate struct {
	Finding
	site, what string
	addresses  []string
	blamed     bool // another finding names it already
}

// walkServer follows the routes of a server.
func (o *ourHandlers) walkServer(name string, server *caddyhttp.Server) []Finding {
	w := &walk{
		ourHandlers: o, server: server, name: name, seen: make(map[Finding]bool), bits: make(map[string]uint64),
		groups: make(map[string]*caddyhttp.Route), invoked: make(map[invocation]*invoked),
		sites: make(map[string]bool), guarded: make(map[string]bool), within: make(map[string]bool),
	}
	start := flow{reached: true, raw: true, unjudged: true}
	for i, name := range slices.Sorted(maps.Keys(server.NamedRoutes)) {
		w.bits[name] = 1 << (i % 64)
	}
	before := len(o.guards)
	w.at(func() { w.routes(server.Routes, start) }, "routes")
	if server.Errors != nil {
		w.at(func() { w.errors(server.Errors.Routes, start) }, "errors", "routes")
	}
	w.meetUninvoked()
	w.settle()
	if w.circle {
		w.refuseCircle(before)
	}
	if w.ours && server.Logs != nil && server.Logs.ShouldLogCredentials {
		w.found = append(w.found, Finding{Fatal: true, Message: "log_credentials writes the secrets of service users to the access log; remove it from the global option \"servers\""})
	}
	if w.ours {
		w.found = append(w.found, w.examples...)
	}
	for i := range w.found {
		w.found[i].Server = name
	}
	return w.found
}

// refuseCircle gives up where named routes invoke each other in a circle: nothing is
// proven about the guards, and doors and caches are refused.
func (w *walk) refuseCircle(before int) {
	for n := before + 1; n <= len(w.guards); n++ {
		w.keepOriginals(n)
	}
	if w.ours && (len(w.caches) > 0 || len(w.actors) > 0) {
		w.found = append(w.found, Finding{Fatal: true, Message: "named routes invoke each other in a circle, so it is not known what comes before a cache or a door with actor_header; invoke each of them in one direction only"})
	}
}

// settle reports the candidates, now that the guarded sites are known.
func (w *walk) settle() {
	for _, c := range w.proxied {
		switch {
		case w.guarded[c.site]:
			if !c.blamed {
				w.report(c.Finding)
			}
		case !w.within[c.site]:
			c.Server = w.name
			w.open = append(w.open, c)
		}
	}
	for _, c := range w.errorPaths {
		if w.within[c.site] || !w.sites[c.site] && w.within[""] {
			w.report(c.Finding)
		}
	}
}

// add reports a finding at the current place, once.
func (w *walk) add(fatal bool, format string, args ...any) {
	w.report(w.here(fatal, format, args...))
}

// report reports a finding, once: a named route can be followed several times.
func (w *walk) report(f Finding) {
	if !w.seen[f] {
		w.seen[f] = true
		w.found = append(w.found, f)
	}
}

func (w *walk) here(fatal bool, format string, args ...any) Finding {
	route := strings.Join(w.path, "/")
	if len(w.words) > 0 {
		route = strings.Join(w.words, ", ") + " [" + route + "]"
	}
	return Finding{Fatal: fatal, Route: route, Message: fmt.Sprintf(format, args...)}
}

func (w *walk) site() string {
	if len(w.hosts) == 0 {
		return ""
	}
	return w.hosts[len(w.hosts)-1]
}

// at runs a step of the walk one level deeper in the configuration.
func (w *walk) at(step func(), parts ...string) {
	n := len(w.path)
	w.path = append(w.path, parts...)
	step()
	w.path = w.path[:n]
}

// routes follows a list of routes. Only the first matching route of a group runs:
// the walk holds back the requests that have met it until the group is over.
func (w *walk) routes(list caddyhttp.RouteList, in flow) flow {
	for i := 0; i < len(list); {
		group, end := list[i].Group, i+1
		for group != "" && end < len(list) && list[end].Group == group {
			end++
		}
		if group != "" && w.groups[group] == nil {
			w.groups[group] = &list[i]
		}
		if group != "" {
			w.grouped++
		}
		continued := group != "" && (w.again || w.groups[group] != &list[i]) // some may have met it before
		if group != "" && w.groups[group] != &list[i] && w.ours {
			w.add(len(w.actors) > 0, "the group %s is in more than one place: requests that have met it in one skip it in the other, so it is not known what runs; give each place a group of its own", group)
		}
		rest, done := in, flow{}
		for ; i < end; i++ {
			var through, past flow
			conditional := continued || group != "" && i > 0 && list[i-1].Group == group
			w.at(func() { through, past = w.route(list[i], conditional, rest) }, strconv.Itoa(i))
			done, rest = w.join(done, through), past
			if continued {
				rest = w.join(rest, in)
			}
		}
		in = w.join(rest, done)
	}
	return in
}

// route follows a route. It returns the requests that leave it through its
// handlers, and those that do not match.
func (w *walk) route(route caddyhttp.Route, conditional bool, in flow) (through, past flow) {
	words, hosts := len(w.words), len(w.hosts)
	defer func() { w.words, w.hosts = w.words[:words], w.hosts[:hosts] }()
	if text := matcherText(route.MatcherSets); text != "" {
		w.words = append(w.words, text)
	}
	if hosts := matchedHosts(route.MatcherSets); hosts != "" {
		w.hosts = append(w.hosts, hosts)
	}
	if !w.inErrors {
		w.sites[w.site()] = true
	}
	w.matchers(route.MatcherSets, in)
	enter, past := w.byIdentity(route.MatcherSets, in)
	if matchesAll(route.MatcherSets) {
		past = flow{}
	} else {
		conditional = true
	}
	if conditional {
		enter.certain = false
	}
	through = enter
	for i, handler := range route.Handlers {
		w.at(func() { through = w.handler(handler, through) }, "handle", strconv.Itoa(i))
	}
	if route.Terminal {
		through = flow{}
	}
	through.certain = through.reached && (through.certain || in.certain)
	return through, past
}

// errors follows error routes. Requests come to them from anywhere before.
func (w *walk) errors(list caddyhttp.RouteList, in flow) (out flow) {
	inErrors, words := w.inErrors, len(w.words)
	defer func() { w.inErrors, w.words = inErrors, w.words[:words] }()
	w.inErrors, w.words = true, append(w.words, "handle_errors")
	in.owned = 0
	return w.routes(list, in)
}

// handler follows one handler. It returns the requests that come to the next.
func (w *walk) handler(handler caddyhttp.MiddlewareHandler, in flow) (out flow) {
	switch h := handler.(type) {
	case *caddyhttp.Subroute:
		w.at(func() { out = w.routes(h.Routes, in) }, "routes")
		if h.Errors != nil {
			w.at(func() { out = w.join(out, w.errors(h.Errors.Routes, in)) }, "errors", "routes")
		}
		return out
	case *caddyhttp.Invoke:
		return w.invoke(h.Name, in)
	case *Handler:
		return w.guard(h, in)
	case *SiteDoor:
		return w.door(h, in)
	case *reverseproxy.Handler:
		return w.proxy(h, in)
	case *intercept.Intercept:
		// Its routes run when the request has been answered, on the request as the
		// handlers behind have left it.
		after := flow{reached: in.reached, known: true, nested: true, cache: in.cache, guard: in.guard}
		if w.responses(h.HandleResponse, after); in.unjudged {
			in.carries = true // they may hand on the original target, and have it from guards behind
		}
	}
	return w.neighbour(handler, in)
}

// responses follows handle_response routes. It returns the requests that come to
// the next handler after them.
func (w *walk) responses(list []caddyhttp.ResponseHandler, in flow) (out flow) {
	w.inResponse++
	defer func() { w.inResponse-- }()
	in.certain, in.nested, in.owned, in.removed, in.set = false, true, 0, 0, 0
	for i, response := range list {
		if response.StatusCode.String() == "" { // else the answer goes to the client
			w.at(func() { out = w.join(out, w.routes(response.Routes, in)) }, "handle_response", strconv.Itoa(i), "routes")
		}
	}
	return out
}

// invocation is one way to come to a named route. Ways that differ only in which
// guard, rewrite, reader or cache came before are the same one.
type invocation struct {
	name, site           string
	inErrors, inResponse bool
	in                   flow
}

type invoked struct {
	in, out flow
	open    bool // the walk is inside
	grouped int  // how many groups are inside
}

// invoke follows a named route, once for each way to come to it, so that the walk
// ends and takes time in proportion to the routes.
func (w *walk) invoke(name string, in flow) flow {
	route, ok := w.server.NamedRoutes[name]
	if !ok {
		return flow{} // Caddy answers with an error
	}
	bit := w.bits[name]
	key := invocation{name, w.site(), w.inErrors, w.inResponse > 0, in}
	key.in.guard, key.in.rewrite, key.in.reader, key.in.cache = min(in.guard, 1), w.certainty(in.rewrite), min(in.reader, 1), w.risk(in.cache)
	if known := w.invoked[key]; known != nil {
		w.connect(known.in.guard, in.guard)
		if known.open && in.reached { // anything may have happened on the way
			w.circle = true
			return flow{reached: true, raw: true, unjudged: true, judged: true, known: true, cache: len(w.caches), nested: true, carries: true, guard: in.guard}
		}
		w.grouped += known.grouped
		return known.out
	}
	here := &invoked{in: in, open: true}
	w.invoked[key] = here
	path, again, grouped := w.path, w.again, w.grouped
	w.path, w.again = []string{"named_routes", name}, again || in.visited&bit != 0
	through, past := w.route(*route, false, in)
	w.path, w.again = path, again
	here.out, here.open = w.join(through, past), false
	if here.grouped = min(1, w.grouped-grouped); here.grouped > 0 {
		here.out.visited |= bit
	}
	return here.out
}

// meetUninvoked makes the guards of named routes known that nothing invokes.
func (w *walk) meetUninvoked() {
	found, ours := w.found, w.ours
	w.inErrors = true
	for _, name := range slices.Sorted(maps.Keys(w.server.NamedRoutes)) {
		w.invoke(name, flow{})
	}
	w.found, w.ours, w.inErrors = found, ours, false
}

// join returns the requests of both flows. Their guards share a fate from here on.
func (w *walk) join(a, b flow) flow {
	switch {
	case !a.reached:
		return b
	case !b.reached:
		return a
	}
	w.connect(a.guard, b.guard)
	out := flow{
		reached: true, raw: a.raw || b.raw, unjudged: a.unjudged || b.unjudged, judged: a.judged || b.judged, known: a.known || b.known, stranger: a.stranger || b.stranger,
		certain: a.certain || b.certain, stripped: a.stripped || b.stripped, asked: a.asked || b.asked,
		nested: a.nested || b.nested, carries: a.carries || b.carries,
		guard: max(a.guard, b.guard), rewrite: a.rewrite, cache: a.cache, reader: max(a.reader, b.reader),
		owned: a.owned & b.owned, removed: a.removed & b.removed, set: a.set | b.set, visited: a.visited | b.visited,
	}
	if w.certainty(b.rewrite) > w.certainty(a.rewrite) {
		out.rewrite = b.rewrite
	}
	if w.risk(b.cache) > w.risk(a.cache) {
		out.cache = b.cache
	}
	return out
}
