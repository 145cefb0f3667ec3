package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/intercept"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// A handler does not know the handlers around it. serverWalk follows the routes of each server in
// the order in which requests pass them, once per configuration. The files neighbours.go,
// guards.go, proxies.go, caches.go and header_ops.go judge each handler that the walk meets. The
// walk proves that the places of our handlers are safe. Where it cannot, the load of the
// configuration fails, or logs a warning. "caddy service-user lint" runs the same walk on a file.

// Finding is a mistake, or a doubt, about the routes around our handlers.
type Finding struct {
	Fatal   bool   `json:"-"` // a mistake, which fails the load; else a doubt, which is logged
	load    bool   // logged at a load, and left out by lint: Caddyfile.example has it on purpose
	Server  string `json:"server"`  // the name of the server in the http app
	Route   string `json:"route"`   // the matchers on the way, and the path in the JSON; "" is the whole server
	Message string `json:"message"` // the harm, and the remedy
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

// checkRoutes returns the fatal findings as one error, and logs the others.
func checkRoutes(list []Finding) error {
	var fatal []string
	for _, f := range list {
		if f.Fatal {
			fatal = append(fatal, f.String())
			continue
		}
		mainLog().Warn(f.Message,
			zap.String("server", f.Server), zap.String("route", f.Route))
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

// findings walks the servers in the order of their names. It also sets the surroundings of each
// guard, and decides for each site door whether the door may believe its actor header.
func (a *App) findings(app *caddyhttp.App) (list []Finding) {
	ours := newOurHandlers(a)
	for _, name := range slices.Sorted(maps.Keys(app.Servers)) {
		list = append(list, ours.walkServer(name, app.Servers[name])...)
	}
	list = append(list, ours.sharedUpstreams()...)
	for _, guard := range a.guards {
		if ours.number[guard] == 0 {
			list = append(list, Finding{Fatal: ours.cacheCount > 0, Message: "service_users runs " +
				"inside of a module that this check does not know, so nothing is known about " +
				"its neighbours; use it directly in a site, a handle or a route block"})
			continue
		}
		guard.around, guard.sites = ours.surroundingsOf(guard), ours.hostsOf[guard]
	}
	for _, door := range a.doors {
		proven, met := ours.doors[door]
		if door.believes = proven; door.ActorHeader != "" && !met {
			list = append(list, Finding{Fatal: true, Message: fmt.Sprintf("service_users_admin: "+
				"actor_header %s is believed only where every way to the door is known, and "+
				"none was found to this one: it is inside of a module that this check does "+
				"not know, or no request reaches it; use it directly in a site, a handle or "+
				"a route block", door.ActorHeader)})
		}
	}
	return list
}

// flow describes the requests that can come to one point of the routes. In the zero value no
// request comes there.
type flow struct {
	// Each of these facts is true of at least one of the requests.
	reached       bool // it comes here
	unstripped    bool // it has passed no service_users handler
	unjudged      bool // it has passed no service_users handler that judges: at most "sanitize"
	judged        bool // it was judged by rules
	identified    bool // it carries the identity of a service user
	waiting       bool // "otherwise pass" has left it to another authenticator, which it has not passed yet
	basicless     bool // a waiting request has no Basic login: "otherwise pass" refuses such logins in mode enforce
	stripped      bool // "service_users sanitize" has removed its Authorization
	authenticated bool // it has passed Caddy's authentication handler
	nested        bool // it is inside of a handler that runs its own routes after the answer
	carriesTarget bool // it may carry the client's target in a header or a variable

	// Every request that the last guard let through comes here, unless a handler answers it
	// before.
	certain bool

	// These are numbers from 1 of the lists in serverWalk; 0 without one.
	guard   int // the last service_users handler
	rewrite int // a change of the method or the path after the guard
	reader  int // a handler that reads the identity before the guard sets it
	cache   int // a cache that some requests have passed

	// These are sets of actor headers, as bits. A door believes a header that the authenticator
	// directly before the door owns: each of its answers that go on has removed the client's
	// value, and at least one has set a value. The walk gathers removed and set inside of the
	// authenticator's handle_response blocks.
	owned, removed, set uint64
	visited             uint64 // the named routes that some requests have passed, as bits
}

// serverWalk follows the routes of one server. One serverWalk follows them once, and not
// concurrently.
type serverWalk struct {
	*ourHandlers
	server *caddyhttp.Server
	name   string
	found  []Finding
	seen   map[Finding]bool

	// The position of the walk.
	path       []string // in the server's JSON
	matched    []string // descriptions of the matchers of the routes around
	hosts      []string // the host matchers among them
	inErrors   bool     // inside of an error route
	inResponse int      // the number of handle_response blocks around
	grouped    int      // the number of groups met so far
	repeated   bool     // requests may have passed these routes before, and have met their groups
	circle     bool     // a named route invokes itself

	bits    map[string]uint64           // of named routes; beyond 64 routes several share a bit
	groups  map[string]*caddyhttp.Route // by name: the first route of the first list with this group
	invoked map[invocation]*invoked

	rewrites []rewriting
	readers  []reader
	caches   []Finding // one without a message is about a cache that is safe before a guard

	seenHandler  bool            // the walk has met a service_users handler or a door
	sites        map[string]bool // the hosts that the walk has met
	guarded      map[string]bool // the hosts with a guard directly among their routes
	guardedBelow map[string]bool // the hosts with a guard anywhere in their routes
	examples     []Finding       // people with the password of Caddyfile.example
	proxied      []candidate     // proxies that requests reach without passing our handlers
	errorPaths   []candidate     // error routes that lead to a proxy
}

// candidate is a finding that is reported only if its site turns out to be guarded.
type candidate struct {
	Finding
	site, proxy string   // proxy is the directive and its upstream
	addresses   []string // of the upstreams, as localAddress spells them
	blamed      bool     // another finding already names the proxy
}

// walkServer follows the routes of a server, and returns the findings about it.
func (o *ourHandlers) walkServer(name string, server *caddyhttp.Server) []Finding {
	w := &serverWalk{
		ourHandlers: o, server: server, name: name,
		seen: make(map[Finding]bool), bits: make(map[string]uint64),
		groups: make(map[string]*caddyhttp.Route), invoked: make(map[invocation]*invoked),
		sites: make(map[string]bool), guarded: make(map[string]bool), guardedBelow: make(map[string]bool),
	}
	start := flow{reached: true, unstripped: true, unjudged: true}
	for i, name := range slices.Sorted(maps.Keys(server.NamedRoutes)) {
		w.bits[name] = 1 << (i % 64)
	}
	before := len(o.guards)
	w.below(func() { w.routes(server.Routes, start) }, "routes")
	if server.Errors != nil {
		w.below(func() { w.errors(server.Errors.Routes, start) }, "errors", "routes")
	}
	w.meetUninvoked()
	w.reportCandidates()
	if w.circle {
		w.refuseCircle(before)
	}
	if w.seenHandler && server.Logs != nil && server.Logs.ShouldLogCredentials {
		w.found = append(w.found, Finding{Fatal: true, Message: "log_credentials writes the secrets " +
			"of service users to the access log; remove it from the global option \"servers\""})
	}
	if w.seenHandler {
		w.found = append(w.found, w.examples...)
	}
	for i := range w.found {
		w.found[i].Server = name
	}
	return w.found
}

// refuseCircle handles a server whose named routes invoke each other in a circle. Nothing is proven
// about the server's guards, numbered from before + 1. A cache or a door with an actor_header fails
// the load.
func (w *serverWalk) refuseCircle(before int) {
	for n := before + 1; n <= len(w.guards); n++ {
		w.keepOriginal(n)
	}
	if w.seenHandler && (len(w.caches) > 0 || len(w.actors) > 0) {
		w.found = append(w.found, Finding{Fatal: true, Message: "named routes invoke each other in a " +
			"circle, so it is not known what comes before a cache or a door with actor_header; " +
			"invoke each of them in one direction only"})
	}
}

// reportCandidates reports the candidates, now that the walk knows the guarded sites.
func (w *serverWalk) reportCandidates() {
	for _, c := range w.proxied {
		switch {
		case w.guarded[c.site]:
			if !c.blamed {
				w.report(c.Finding)
			}
		case !w.guardedBelow[c.site]:
			c.Server = w.name
			w.unguarded = append(w.unguarded, c)
		}
	}
	for _, c := range w.errorPaths {
		if w.guardedBelow[c.site] || !w.sites[c.site] && w.guardedBelow[""] {
			w.report(c.Finding)
		}
	}
}

// addFinding reports a finding at the current position, once.
func (w *serverWalk) addFinding(fatal bool, format string, args ...any) {
	w.report(w.finding(fatal, format, args...))
}

// report reports a finding, once: the walk can follow a named route several times.
func (w *serverWalk) report(f Finding) {
	if !w.seen[f] {
		w.seen[f] = true
		w.found = append(w.found, f)
	}
}

func (w *serverWalk) finding(fatal bool, format string, args ...any) Finding {
	route := strings.Join(w.path, "/")
	if len(w.matched) > 0 {
		route = strings.Join(w.matched, ", ") + " [" + route + "]"
	}
	return Finding{Fatal: fatal, Route: route, Message: fmt.Sprintf(format, args...)}
}

func (w *serverWalk) site() string {
	if len(w.hosts) == 0 {
		return ""
	}
	return w.hosts[len(w.hosts)-1]
}

// below runs a step of the walk at a deeper position of the configuration.
func (w *serverWalk) below(step func(), parts ...string) {
	n := len(w.path)
	w.path = append(w.path, parts...)
	step()
	w.path = w.path[:n]
}

// routes follows a list of routes. Of a group, only the first route that matches runs, so routes
// keeps the requests that have left a route of the group apart until the group ends.
func (w *serverWalk) routes(list caddyhttp.RouteList, in flow) flow {
	for i := 0; i < len(list); {
		group, end := list[i].Group, i+1
		for group != "" && end < len(list) && list[end].Group == group {
			end++
		}
		if group != "" {
			w.grouped++
			if w.groups[group] == nil {
				w.groups[group] = &list[i]
			}
		}
		elsewhere := group != "" && w.groups[group] != &list[i]
		continued := group != "" && w.repeated || elsewhere // some requests may have met the group before
		if elsewhere && w.seenHandler {
			w.addFinding(len(w.actors) > 0, "the group %s is in more than one place: requests "+
				"that have met it in one skip it in the other, so it is not known what runs; "+
				"give each place a group of its own", group)
		}
		rest, done := in, flow{}
		for ; i < end; i++ {
			var through, past flow
			conditional := continued || group != "" && i > 0 && list[i-1].Group == group
			w.below(func() { through, past = w.route(list[i], conditional, rest) }, strconv.Itoa(i))
			done, rest = w.join(done, through), past
			if continued {
				rest = w.join(rest, in)
			}
		}
		in = w.join(rest, done)
	}
	return in
}

// route follows a route. It returns through, the requests that leave the route behind its handlers,
// and past, the requests that do not match. conditional means that matching requests may skip the
// route.
func (w *serverWalk) route(route caddyhttp.Route, conditional bool, in flow) (through, past flow) {
	words, hosts := len(w.matched), len(w.hosts)
	defer func() { w.matched, w.hosts = w.matched[:words], w.hosts[:hosts] }()
	if text := matcherText(route.MatcherSets); text != "" {
		w.matched = append(w.matched, text)
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
		w.below(func() { through = w.handler(handler, through) }, "handle", strconv.Itoa(i))
	}
	if route.Terminal {
		through = flow{}
	}
	through.certain = through.reached && (through.certain || in.certain)
	return through, past
}

// errors follows error routes. Any request that comes to the routes with this error block can come
// to them.
func (w *serverWalk) errors(list caddyhttp.RouteList, in flow) (out flow) {
	inErrors, words := w.inErrors, len(w.matched)
	defer func() { w.inErrors, w.matched = inErrors, w.matched[:words] }()
	w.inErrors, w.matched = true, append(w.matched, "handle_errors")
	in.owned = 0
	return w.routes(list, in)
}

// handler follows one handler. It returns the requests that come to the next handler.
func (w *serverWalk) handler(handler caddyhttp.MiddlewareHandler, in flow) (out flow) {
	switch h := handler.(type) {
	case *caddyhttp.Subroute:
		w.below(func() { out = w.routes(h.Routes, in) }, "routes")
		if h.Errors != nil {
			w.below(func() { out = w.join(out, w.errors(h.Errors.Routes, in)) }, "errors", "routes")
		}
		return out
	case *caddyhttp.Invoke:
		return w.invoke(h.Name, in)
	case *Handler:
		return w.guard(h, in)
	case *SiteDoor:
		return w.door(h, in)
	case *reverseproxy.Handler:
		return w.proxy(h, h, in)
	case *Proxy:
		return w.proxy(h, h.full, in)
	case *intercept.Intercept:
		// Its routes run after the answer, on the request that the handlers behind have
		// changed: it may carry the identity by then.
		after := flow{reached: in.reached, identified: true, nested: true, cache: in.cache, guard: in.guard}
		if w.responses(h.HandleResponse, after); in.unjudged {
			in.carriesTarget = true // its routes may forward the original target
		}
	}
	return w.neighbour(handler, in)
}

// responses follows handle_response routes. It returns the requests that come to the next handler
// behind them.
func (w *serverWalk) responses(list []caddyhttp.ResponseHandler, in flow) (out flow) {
	w.inResponse++
	defer func() { w.inResponse-- }()
	in.certain, in.nested, in.owned, in.removed, in.set = false, true, 0, 0, 0
	for i, response := range list {
		if response.StatusCode.String() == "" { // with a status, the answer goes to the client
			follow := func() { out = w.join(out, w.routes(response.Routes, in)) }
			w.below(follow, "handle_response", strconv.Itoa(i), "routes")
		}
	}
	return out
}

// invocation is one way to come to a named route. Ways that differ only in the guard, rewrite,
// reader or cache before them count as the same.
type invocation struct {
	name, site           string
	inErrors, inResponse bool
	in                   flow
}

type invoked struct {
	in, out flow
	inside  bool // the walk has not left the route yet
	grouped int  // 1 if the route has groups
}

// invoke follows a named route, once for each way to come to it. So the walk ends, and takes a time
// in proportion to the number of routes.
func (w *serverWalk) invoke(name string, in flow) flow {
	route, ok := w.server.NamedRoutes[name]
	if !ok {
		return flow{} // Caddy answers with an error
	}
	bit := w.bits[name]
	key := invocation{name, w.site(), w.inErrors, w.inResponse > 0, in}
	key.in.guard, key.in.rewrite = min(in.guard, 1), w.certainty(in.rewrite)
	key.in.reader, key.in.cache = min(in.reader, 1), w.risk(in.cache)
	if known := w.invoked[key]; known != nil {
		w.connect(known.in.guard, in.guard)
		if known.inside && in.reached {
			// The route invokes itself any number of times: assume the worst.
			w.circle = true
			return flow{
				reached: true, unstripped: true, unjudged: true, judged: true, identified: true,
				cache: len(w.caches), nested: true, carriesTarget: true, guard: in.guard,
			}
		}
		w.grouped += known.grouped
		return known.out
	}
	here := &invoked{in: in, inside: true}
	w.invoked[key] = here
	path, again, grouped := w.path, w.repeated, w.grouped
	w.path, w.repeated = []string{"named_routes", name}, again || in.visited&bit != 0
	through, past := w.route(*route, false, in)
	w.path, w.repeated = path, again
	here.out, here.inside = w.join(through, past), false
	if here.grouped = min(1, w.grouped-grouped); here.grouped > 0 {
		here.out.visited |= bit
	}
	return here.out
}

// meetUninvoked follows the named routes that nothing invokes, so that their guards are known. No
// request reaches them, so it drops their findings.
func (w *serverWalk) meetUninvoked() {
	found, ours := w.found, w.seenHandler
	w.inErrors = true
	for _, name := range slices.Sorted(maps.Keys(w.server.NamedRoutes)) {
		w.invoke(name, flow{})
	}
	w.found, w.seenHandler, w.inErrors = found, ours, false
}

// join returns the requests of both flows. From here on they share the handlers behind, so their
// guards are connected.
func (w *serverWalk) join(a, b flow) flow {
	switch {
	case !a.reached:
		return b
	case !b.reached:
		return a
	}
	w.connect(a.guard, b.guard)
	out := flow{
		reached: true, unstripped: a.unstripped || b.unstripped, unjudged: a.unjudged || b.unjudged,
		judged: a.judged || b.judged, identified: a.identified || b.identified, waiting: a.waiting || b.waiting,
		basicless: a.basicless || b.basicless,
		certain:   a.certain || b.certain, stripped: a.stripped || b.stripped,
		authenticated: a.authenticated || b.authenticated,
		nested:        a.nested || b.nested, carriesTarget: a.carriesTarget || b.carriesTarget,
		guard: max(a.guard, b.guard), rewrite: a.rewrite, cache: a.cache, reader: max(a.reader, b.reader),
		owned: a.owned & b.owned, removed: a.removed & b.removed, set: a.set | b.set,
		visited: a.visited | b.visited,
	}
	if w.certainty(b.rewrite) > w.certainty(a.rewrite) {
		out.rewrite = b.rewrite
	}
	if w.risk(b.cache) > w.risk(a.cache) {
		out.cache = b.cache
	}
	return out
}
