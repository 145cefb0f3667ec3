package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
	"go.uber.org/zap"
)

// A handler does not see its neighbours. What depends on them is checked here,
// by walking the routes of the http app when a configuration starts, or when
// somebody asks: "caddy service-user lint".

// finding is something in the routes that does not fit our handlers.
type finding struct {
	fatal   bool   // certain misuse, which fails the load; else doubt, which is warned about
	server  string // the name of the server in the http app
	route   string // what a request must match to get there, and the place below the server's configuration; "" is the whole server
	message string // what is wrong and what to do about it
}

func (f finding) String() string {
	place := "server " + f.server
	if f.route != "" {
		place += ": " + f.route
	}
	return place + ": " + f.message
}

// checkRoutes refuses routes in which one of our handlers cannot keep its
// promises, and warns where it may not.
func checkRoutes(list []finding) error {
	var fatal []string
	for _, f := range list {
		if f.fatal {
			fatal = append(fatal, f.String())
			continue
		}
		caddy.Log().Named("service_users").Warn(f.message, zap.String("server", f.server), zap.String("route", f.route))
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

// findings walks the provisioned routes of every server, in the order of their
// names. A server without one of our handlers has none.
func findings(app *caddyhttp.App) (list []finding) {
	for _, name := range slices.Sorted(maps.Keys(app.Servers)) {
		list = append(list, serverFindings(name, app.Servers[name])...)
	}
	return list
}

func serverFindings(name string, server *caddyhttp.Server) []finding {
	w := &walk{
		server: server,
		sites:  make(map[string]bool), guarded: make(map[string]bool), guardsWithin: make(map[string]bool),
	}
	w.routes(server.Routes, "routes", []world{{}})
	if server.Errors != nil {
		w.errors(server.Errors.Routes, "errors/routes", []world{{}})
	}
	list := w.found
	for _, p := range w.unguarded {
		if w.guarded[p.site] {
			list = append(list, p.finding)
		}
	}
	for _, p := range w.unsanitized {
		if site := p.site; w.guardsWithin[site] || !w.sites[site] && w.guardsWithin[""] {
			list = append(list, p.finding)
		}
	}
	if w.ours && server.Logs != nil && server.Logs.ShouldLogCredentials {
		list = append(list, finding{fatal: true, message: "log_credentials writes the secrets of service users to the access log; remove it from the global option \"servers\""})
	}
	lists := []caddyhttp.RouteList{server.Routes}
	if server.Errors != nil {
		lists = append(lists, server.Errors.Routes)
	}
	for _, name := range slices.Sorted(maps.Keys(server.NamedRoutes)) {
		lists = append(lists, caddyhttp.RouteList{*server.NamedRoutes[name]})
	}
	for _, routes := range lists {
		if err := checkActorHeaders(routes); err != nil {
			list = append(list, finding{fatal: true, message: err.Error()})
		}
	}
	var out []finding
	for _, f := range list { // a named route is walked as often as it is invoked
		if f.server = name; !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// walk goes through the routes of a server as requests do. It does not know
// which requests match, so it follows all the ways that there are at once: a
// world is one of them, and what certainly happens is what happens in each.
type walk struct {
	server *caddyhttp.Server
	found  []finding

	words      []string // what a request has matched to get here
	site       []string // the host matchers among it
	conditions []int    // a number for each matcher among it
	last       int      // the number that was given out last
	invoked    []string // the named routes that we are in
	inErrors   bool     // an error route

	handlers []seenHandler // of ours, that have been met
	rewrites []seenRewrite
	proxied  []candidate // proxies that answer requests which our handler has not seen

	ours         bool            // one of our handlers was met
	sites        map[string]bool // which hosts were met
	guarded      map[string]bool // and had our handler directly among their routes
	guardsWithin map[string]bool // or anywhere below
	unguarded    []candidate     // findings that hold for guarded sites only
	unsanitized  []candidate
}

// world is what a request has been through. Its numbers are 1-based indices; 0
// is none.
type world struct {
	cleaned   int    // the last of our handlers that it passed, whatever it does
	judged    int    // the last that checked it
	rewritten int    // what has changed its method or path since
	groups    string // the route groups that are satisfied, each as "\x00name\x00"
}

type seenHandler struct {
	*Handler
	conditions []int // under which it runs
}

type seenRewrite struct {
	candidate
	certain  bool // it happens to every request that the handler before has judged
	tryFiles bool // it only chooses the file of a PHP program
}

// candidate is reported only if its site turns out to be guarded.
type candidate struct {
	site, path, what string
	finding
}

// add reports a finding here.
func (w *walk) add(fatal bool, path, format string, args ...any) {
	w.found = append(w.found, w.here(fatal, path, format, args...))
}

func (w *walk) here(fatal bool, path, format string, args ...any) finding {
	route := path
	if len(w.words) > 0 {
		route = strings.Join(w.words, ", ") + " [" + path + "]"
	}
	return finding{fatal: fatal, route: route, message: fmt.Sprintf(format, args...)}
}

func (w *walk) currentSite() string {
	if len(w.site) == 0 {
		return ""
	}
	return w.site[len(w.site)-1]
}

// routes follows a list of routes from the worlds in which requests come to it
// to those in which they leave it.
func (w *walk) routes(list caddyhttp.RouteList, path string, in []world) []world {
	for i, route := range list {
		first := !slices.ContainsFunc(list[:i], func(r caddyhttp.Route) bool { return r.Group == route.Group })
		in = w.route(route, fmt.Sprintf("%s/%d", path, i), route.Group == "" || first, in)
		if group := route.Group; group != "" && !slices.ContainsFunc(list[i+1:], func(r caddyhttp.Route) bool { return r.Group == group }) {
			for j := range in { // nobody asks any more
				in[j].groups = strings.ReplaceAll(in[j].groups, "\x00"+group+"\x00", "")
			}
			in = union(in)
		}
	}
	return in
}

func (w *walk) route(route caddyhttp.Route, path string, first bool, in []world) []world {
	words, site, conditions := w.words, w.site, w.conditions
	defer func() { w.words, w.site, w.conditions = words, site, conditions }()

	always := matchesAll(route.MatcherSets)
	var enter, pass []world
	for _, x := range in {
		if route.Group == "" {
			enter = append(enter, x)
		} else if group := "\x00" + route.Group + "\x00"; strings.Contains(x.groups, group) {
			pass = append(pass, x)
			continue
		} else {
			y := x
			y.groups += group
			enter = append(enter, y)
		}
		if !always {
			pass = append(pass, x)
		}
	}
	if !always || !first {
		w.condition()
	}
	if text := matcherText(route.MatcherSets); text != "" {
		w.words = append(slices.Clip(w.words), text)
	}
	if hosts := matchedHosts(route.MatcherSets); hosts != "" {
		w.site = append(slices.Clip(w.site), hosts)
	}
	if !w.inErrors {
		w.sites[w.currentSite()] = true
	}
	for i, handler := range route.Handlers {
		enter = w.handler(handler, fmt.Sprintf("%s/handle/%d", path, i), enter)
	}
	if route.Terminal {
		enter = nil
	}
	return union(enter, pass)
}

// condition notes that what follows does not happen to every request.
func (w *walk) condition() {
	w.last++
	w.conditions = append(slices.Clip(w.conditions), w.last)
}

// errors follows error routes, which requests come to from anywhere before.
func (w *walk) errors(list caddyhttp.RouteList, path string, in []world) []world {
	words, inErrors := w.words, w.inErrors
	defer func() { w.words, w.inErrors = words, inErrors }()
	w.words, w.inErrors = append(slices.Clip(w.words), "handle_errors"), true
	return w.routes(list, path, in)
}

// handler follows one handler. It returns the worlds in which the next one runs.
func (w *walk) handler(handler caddyhttp.MiddlewareHandler, path string, in []world) []world {
	switch h := handler.(type) {
	case *caddyhttp.Subroute:
		out := w.routes(h.Routes, path+"/routes", in)
		if h.Errors != nil {
			out = union(out, w.errors(h.Errors.Routes, path+"/errors/routes", in))
		}
		return out
	case *caddyhttp.Invoke:
		route, ok := w.server.NamedRoutes[h.Name]
		if !ok || slices.Contains(w.invoked, h.Name) {
			return nil
		}
		invoked := w.invoked
		defer func() { w.invoked = invoked }()
		w.invoked = append(slices.Clip(invoked), h.Name)
		return w.route(*route, "named_routes/"+h.Name, true, in)
	case *Handler:
		return w.guard(h, path, in)
	case *reverseproxy.Handler:
		return w.proxy(h, path, in)
	case *rewrite.Rewrite:
		return w.rewrite(h, path, in)
	case *headers.Handler:
		w.headers("a headers handler (request_header, copy_headers)", h.Request, path, in)
		return in
	case *SiteDoor:
		w.ours = true
		return nil
	case *caddyhttp.StaticResponse:
		if h.StatusCode.String() == "103" {
			return in
		}
		return nil
	case *caddyhttp.StaticError, *reverseproxy.CopyResponseHandler:
		return nil
	case *fileserver.FileServer:
		if h.PassThru {
			return in
		}
		return nil
	}
	return in
}

// guard follows one of our own handlers.
func (w *walk) guard(h *Handler, path string, in []world) []world {
	w.ours = true
	site := w.currentSite()
	if !w.inErrors {
		w.guarded[site], w.guardsWithin[""] = true, true
		for _, site := range w.site {
			w.guardsWithin[site] = true
		}
		if len(in) == 0 && len(w.proxied) > 0 {
			var blamed []string
			for _, p := range w.proxied {
				if p.site == site {
					blamed = append(blamed, p.what)
					w.unguarded = slices.DeleteFunc(w.unguarded, func(u candidate) bool { return u.path == p.path })
				}
			}
			if len(blamed) == 0 {
				blamed = []string{w.proxied[len(w.proxied)-1].what}
			}
			w.add(true, path, "service_users never runs: %s before it takes every request, unchecked; put service_users first", strings.Join(slices.Compact(blamed), " and "))
		}
	}
	w.handlers = append(w.handlers, seenHandler{h, w.conditions})
	out := slices.Clone(in)
	for i := range out {
		out[i].cleaned = len(w.handlers)
		if !h.SanitizeOnly {
			out[i].judged, out[i].rewritten = len(w.handlers), 0
		}
	}
	return union(out)
}

// proxy follows a reverse_proxy: the upstream that everything here is about, or
// a forward_auth, which only asks somebody and goes on.
func (w *walk) proxy(h *reverseproxy.Handler, path string, in []world) []world {
	// A scratch walk tells whether any answer lets the request go on.
	scratch := &walk{server: w.server, invoked: w.invoked, sites: map[string]bool{}, guarded: map[string]bool{}, guardsWithin: map[string]bool{}}
	goesOn := len(scratch.responses(h, path, []world{{}})) > 0
	if goesOn && h.Rewrite != nil && h.Rewrite.Method != "" && h.Rewrite.URI != "" {
		return w.responses(h, path, in)
	}
	what := "reverse_proxy"
	if len(h.Upstreams) > 0 && h.Upstreams[0].Dial != "" {
		what += " " + h.Upstreams[0].Dial
	}
	p := candidate{site: w.currentSite(), path: path, what: what}

	if slices.ContainsFunc(in, func(x world) bool { return x.cleaned == 0 }) {
		if w.inErrors {
			p.finding = w.here(true, path, "this error route leads to %s, and nothing removes forged identity headers and credentials on the way; put \"service_users sanitize\" before it", what)
			w.unsanitized = append(w.unsanitized, p)
		} else {
			p.finding = w.here(false, path, "requests get to %s without passing service_users: unchecked, with whatever identity headers the client sends; put service_users before it, with \"public\" rules for what needs no credential, or else \"service_users sanitize\"", what)
			w.unguarded = append(w.unguarded, p)
			w.proxied = append(w.proxied, p)
		}
	}
	for _, x := range in {
		if x.judged == 0 || x.rewritten == 0 {
			continue
		}
		switch by := w.rewrites[x.rewritten-1]; {
		case by.tryFiles && moduleID(h.Transport) == "http.reverse_proxy.transport.fastcgi":
		case by.certain:
			w.found = append(w.found, by.finding)
		default:
			by.fatal = false
			by.message = strings.Replace(by.message, "every request", "requests", 1)
			w.found = append(w.found, by.finding)
		}
	}
	if h.Rewrite != nil && slices.ContainsFunc(in, func(x world) bool { return x.judged != 0 }) {
		if text := rewriteText(h.Rewrite); text != "" {
			w.add(false, path, "%s has a %q of its own: it forwards another request than service_users has judged; rewrite in front of service_users instead", what, text)
		}
	}
	if h.Headers != nil {
		w.headers("header_up of "+what, h.Headers.Request, path, in)
	}
	return w.responses(h, path, in)
}

// responses follows the handle_response routes of a reverse_proxy. Where they
// do not answer themselves, the next handler does.
func (w *walk) responses(h *reverseproxy.Handler, path string, in []world) (out []world) {
	conditions := w.conditions
	defer func() { w.conditions = conditions }()
	w.condition()
	for i, response := range h.HandleResponse {
		if len(response.Routes) > 0 && response.StatusCode.String() == "" {
			out = union(out, w.routes(response.Routes, fmt.Sprintf("%s/handle_response/%d/routes", path, i), in))
		}
	}
	return out
}

// rewrite follows a handler that changes the method or the path.
func (w *walk) rewrite(h *rewrite.Rewrite, path string, in []world) []world {
	text := rewriteText(h)
	if text == "" {
		return in
	}
	out := slices.Clone(in)
	for i, x := range out {
		if x.judged == 0 {
			continue
		}
		under := w.handlers[x.judged-1].conditions
		certain := !slices.ContainsFunc(w.conditions, func(c int) bool { return !slices.Contains(under, c) })
		if x.rewritten != 0 && (w.rewrites[x.rewritten-1].certain || !certain) {
			continue
		}
		f := w.here(true, path, "%q changes every request after service_users has judged it: its rules see another method or path than the upstream; put service_users behind it", text)
		w.rewrites = append(w.rewrites, seenRewrite{candidate{finding: f}, certain, h.URI == "{http.matchers.file.relative}"})
		out[i].rewritten = len(w.rewrites)
	}
	return union(out)
}

// rewriteText tells what a rewrite does to the method and the path. "" is
// nothing: rules do not see the query.
func rewriteText(h *rewrite.Rewrite) string {
	switch path, _, _ := strings.Cut(h.URI, "?"); {
	case h.Method != "":
		return "method " + h.Method
	case path != "":
		return "rewrite " + path
	case h.StripPathPrefix != "":
		return "uri strip_prefix " + h.StripPathPrefix
	case h.StripPathSuffix != "":
		return "uri strip_suffix " + h.StripPathSuffix
	case len(h.URISubstring) > 0:
		return "uri replace"
	case len(h.PathRegexp) > 0:
		return "uri path_regexp"
	}
	return ""
}

// headers looks for operations on identity headers that our handler has set, or
// kept clients from setting.
func (w *walk) headers(by string, ops *headers.HeaderOps, path string, in []world) {
	if ops == nil {
		return
	}
	var seen []int
	for _, x := range in {
		for _, n := range []int{x.cleaned, x.judged} {
			if n == 0 || slices.Contains(seen, n) {
				continue
			}
			seen = append(seen, n)
			if name, verb := touchedHeader(w.handlers[n-1].Handler, ops); name != "" {
				w.add(false, path, "%s %s the identity header %s after service_users, so that the upstream believes something else than what was checked; leave it out", by, verb, name)
			}
		}
	}
}

// touchedHeader returns an identity header of our handler, or a name like one,
// that header operations change, and how.
func touchedHeader(h *Handler, ops *headers.HeaderOps) (name, verb string) {
	prefix := foldName(h.HeaderPrefix)
	like := func(name string) bool { return strings.HasPrefix(foldName(name), prefix) }
	for _, name := range slices.Sorted(maps.Keys(ops.Set)) {
		if like(name) {
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

// deletesHeader reports whether a pattern of a deletion meets a header, as
// Caddy reads it.
func deletesHeader(pattern, name string) bool {
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	before, starts := strings.CutPrefix(pattern, "*")
	middle, ends := strings.CutSuffix(before, "*")
	switch {
	case starts && ends:
		return strings.Contains(name, middle)
	case starts:
		return strings.HasSuffix(name, before)
	case ends:
		return strings.HasPrefix(name, middle)
	}
	return pattern == name
}

// union returns the worlds of all lists, each once.
func union(lists ...[]world) (out []world) {
	seen := make(map[world]bool)
	for _, list := range lists {
		for _, x := range list {
			if !seen[x] {
				seen[x] = true
				out = append(out, x)
			}
		}
	}
	return out
}

// matchesAll reports whether every request gets into a route.
func matchesAll(sets caddyhttp.MatcherSets) bool {
	return len(sets) == 0 || slices.ContainsFunc(sets, func(set caddyhttp.MatcherSet) bool {
		return !slices.ContainsFunc(set, func(matcher any) bool {
			path, ok := matcher.(*caddyhttp.MatchPath)
			return !ok || !slices.Contains(*path, "*") && !slices.Contains(*path, "/*")
		})
	})
}

// matchedHosts returns the hosts that a route is for, "" for any.
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

// matcherText says what a request has to match, without values that may be
// secret.
func matcherText(sets caddyhttp.MatcherSets) string {
	var alternatives []string
	for _, set := range sets {
		var words []string
		for _, matcher := range set {
			switch m := matcher.(type) {
			case *caddyhttp.MatchHost:
				words = append(words, strings.Join(*m, " "))
			case *caddyhttp.MatchPath:
				words = append(words, "path "+strings.Join(*m, " "))
			case *caddyhttp.MatchMethod:
				words = append(words, "method "+strings.Join(*m, " "))
			default:
				words = append(words, "matcher "+strings.TrimPrefix(moduleID(m), "http.matchers."))
			}
		}
		slices.Sort(words) // Caddy keeps them in a map
		alternatives = append(alternatives, strings.Join(words, " and "))
	}
	return strings.Join(alternatives, " or ")
}

func moduleID(v any) string {
	if m, ok := v.(caddy.Module); ok {
		return string(m.CaddyModule().ID)
	}
	return ""
}

// checkActorHeaders refuses a site door that believes a header which a client
// could have sent: the handler directly before it must be a forward_auth that
// deletes the header and sets it from the answer, for every request that gets
// to the door.
func checkActorHeaders(list caddyhttp.RouteList) error {
	for i, route := range list {
		for j, handler := range route.Handlers {
			if sub, ok := handler.(*caddyhttp.Subroute); ok {
				if err := checkActorHeaders(sub.Routes); err != nil {
					return err
				}
				if sub.Errors != nil {
					if err := checkActorHeaders(sub.Errors.Routes); err != nil {
						return err
					}
				}
				continue
			}
			door, ok := handler.(*SiteDoor)
			if !ok || door.ActorHeader == "" {
				continue
			}
			var before caddyhttp.MiddlewareHandler
			if j > 0 {
				before = route.Handlers[j-1]
			} else if i > 0 && len(list[i-1].MatcherSets) == 0 && len(list[i-1].Handlers) > 0 {
				before = list[i-1].Handlers[len(list[i-1].Handlers)-1]
			}
			if !setsHeader(before, door.ActorHeader) {
				return fmt.Errorf("service_users_admin: actor_header %s is believed only directly behind a forward_auth without a matcher that has \"copy_headers %[1]s\"; put both into one handle block, with nothing between", door.ActorHeader)
			}
		}
	}
	return nil
}

// setsHeader reports whether a handler is a forward_auth (a reverse_proxy that
// goes on after a good answer) that owns a request header.
func setsHeader(handler caddyhttp.MiddlewareHandler, name string) bool {
	proxy, ok := handler.(*reverseproxy.Handler)
	if !ok {
		return false
	}
	name = http.CanonicalHeaderKey(name)
	var deletes, sets bool
	for _, response := range proxy.HandleResponse {
		for _, route := range response.Routes {
			for _, h := range route.Handlers {
				ops, ok := h.(*headers.Handler)
				if !ok || ops.Request == nil {
					continue
				}
				deletes = deletes || len(route.MatcherSets) == 0 && slices.Contains(ops.Request.Delete, name)
				sets = sets || len(ops.Request.Set[name]) > 0
			}
		}
	}
	return deletes && sets
}
