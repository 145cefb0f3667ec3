package caddymodule

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/encode"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/intercept"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/logging"
	maphandler "github.com/caddyserver/caddy/v2/modules/caddyhttp/map"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/tracing"

	"github.com/serviceusers/caddy-service-users/access"
)

// ourHandlers holds the facts about our handlers that the walk gathers over all
// servers.
type ourHandlers struct {
	guards    []*Handler
	number    map[*Handler]int // of guards, from 1
	parent    []int            // union-find: guards whose requests meet have one root
	originals []bool           // by root: an upstream behind may get the original target
	php       []bool           // by root: an upstream behind splits PATH_INFO off
	cached    map[*Handler]bool
	hostsOf   map[*Handler][][]string // for each way to a guard that judges, the hosts of the routes
	splits    []string                // the extensions at which paths are split, in lower case

	doors    map[*SiteDoor]bool // those that requests reach, and whether all of them come from an authenticator
	actors   []string           // the actor headers; the index is the bit in a flow
	prefixes []string           // of identity headers

	cacheCount int             // how many caches were met
	upstreams  map[string]bool // the addresses behind a guard
	open       []candidate     // proxies on sites without one
}

func newOurHandlers(a *App) *ourHandlers {
	o := &ourHandlers{
		number: make(map[*Handler]int), parent: make([]int, 1), originals: make([]bool, 1), php: make([]bool, 1),
		cached: make(map[*Handler]bool), hostsOf: make(map[*Handler][][]string), doors: make(map[*SiteDoor]bool), upstreams: make(map[string]bool),
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

// actorBit returns the bit of an actor header. Beyond 64 different ones there is
// none, and the door stays unproven.
func (o *ourHandlers) actorBit(name string) uint64 {
	return 1 << uint(slices.Index(o.actors, http.CanonicalHeaderKey(name)))
}

func (o *ourHandlers) numberOf(h *Handler) int {
	if o.number[h] == 0 {
		o.guards = append(o.guards, h)
		o.number[h] = len(o.guards)
		o.parent = append(o.parent, len(o.guards))
		o.originals, o.php = append(o.originals, false), append(o.php, false)
	}
	return o.number[h]
}

func (o *ourHandlers) root(guard int) int {
	for o.parent[guard] != guard {
		o.parent[guard] = o.parent[o.parent[guard]]
		guard = o.parent[guard]
	}
	return guard
}

// connect notes that requests of both guards meet: what comes behind counts for both.
func (o *ourHandlers) connect(a, b int) {
	if a == 0 || b == 0 {
		return
	}
	if a, b = o.root(a), o.root(b); a != b {
		o.parent[a] = b
		o.originals[b] = o.originals[b] || o.originals[a]
		o.php[b] = o.php[b] || o.php[a]
	}
}

// keepOriginals notes that an upstream behind a guard may get the original target.
func (o *ourHandlers) keepOriginals(guard int) { o.originals[o.root(guard)] = true }

// split notes that an upstream behind a guard splits paths at these extensions.
func (o *ourHandlers) split(guard int, extensions []string) {
	o.php[o.root(guard)] = true
	o.addSplits(extensions)
}

func (o *ourHandlers) addSplits(extensions []string) {
	for _, extension := range extensions {
		if extension = strings.ToLower(extension); extension != "" && !slices.Contains(o.splits, extension) {
			o.splits = append(o.splits, extension)
		}
	}
}

func (o *ourHandlers) placeOf(h *Handler) place {
	root := o.root(o.number[h])
	p := place{currentOnly: !o.originals[root], cached: o.cached[h]}
	if o.php[root] {
		p.splits = o.splits
	}
	return p
}

// guard follows one of our own handlers.
func (w *walk) guard(h *Handler, in flow) flow {
	w.ours = true
	n := w.numberOf(h)
	w.connect(in.guard, n)
	if !w.inErrors {
		w.guarded[w.site()], w.within[""] = true, true
		for _, site := range w.hosts {
			w.within[site] = true
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
			w.add(true, "a cache and a handler with routes of its own (intercept, forward_auth, handle_response) come before service_users: the cache has to see Authorization once the answer is there, and those routes must not; put the cache behind service_users, with the identity header in its key, or the other handler behind service_users")
		}
	}
	if in.carries {
		w.keepOriginals(n)
	}
	if h.observes() {
		w.add(false, "mode observe lets every service user do everything that no deny covers; remove it once \"caddy service-user would-deny\" lists nothing that is needed")
	}
	for _, text := range h.Public {
		if rule, err := access.ParseRule("allow " + text); err == nil && everyPath.MatchString(rule.Path) {
			w.add(false, "public %s opens every path to everybody; name the paths that need no credential", text)
		}
	}
	if h.Ready != "" && w.site() != "" {
		w.add(false, "ready %s answers only requests for %s: a probe that sends the address of the machine as its host gets Caddy's empty 200, also when nothing can be decided; put ready on a site without a host name, such as :8081", h.Ready, w.site())
	}
	out := in
	out.guard, out.raw, out.owned, out.removed, out.set = n, false, 0, 0, 0
	if h.SanitizeOnly {
		out.stripped = true
		return out
	}
	if !w.inErrors {
		w.hostsOf[h] = append(w.hostsOf[h], slices.Clone(w.hosts))
	}
	out.judged, out.known, out.certain, out.rewrite, out.unjudged, out.reader = true, true, true, 0, false, 0
	out.stranger = h.Otherwise != "" && !in.asked
	return out
}

// everyPath matches the pattern of a rule that covers every path.
var everyPath = regexp.MustCompile(`^/\{[^/]*\.\.\.\}$`)

// neverRuns reports a guard that no request reaches because of proxies before it.
func (w *walk) neverRuns() {
	if len(w.proxied) == 0 {
		return
	}
	var names []string
	for i := range w.proxied {
		if c := &w.proxied[i]; c.site == w.site() && !c.blamed {
			c.blamed = true
			names = append(names, c.what)
		}
	}
	if len(names) == 0 {
		names = []string{w.proxied[len(w.proxied)-1].what}
	}
	w.add(true, "service_users never runs: %s before it takes every request, unchecked; put service_users first", strings.Join(slices.Compact(names), " and "))
}

// door follows a site door. It believes its actor header only if every request
// that reaches it comes straight from an authenticator that owns the header.
func (w *walk) door(d *SiteDoor, in flow) flow {
	w.ours = true
	for _, id := range d.Admins {
		w.oneName("admins", id)
	}
	for _, m := range d.Managers {
		w.oneName("managers", m.ID)
	}
	if in.reached && in.cache != 0 {
		w.add(true, "a cache comes before service_users_admin, and can give the answer to one admin to everybody; put the door on a site, or into a route, without a cache")
	}
	if !in.reached || d.ActorHeader == "" {
		return flow{}
	}
	proven, met := w.doors[d]
	here := in.owned&w.actorBit(d.ActorHeader) != 0
	w.doors[d] = here && (proven || !met)
	if !here {
		w.add(true, "service_users_admin: actor_header %s is believed only directly behind a forward_auth without a matcher that has \"copy_headers %[1]s\", and of which every answer that goes on deletes the header and sets it; put both into one handle block, with nothing between", d.ActorHeader)
	}
	return flow{}
}

func (w *walk) oneName(option, id string) {
	if strings.Contains(id, ",") {
		w.add(false, "%s %s is the name of one person, with a comma in it; separate names by spaces", option, id)
	}
}

// proxy follows a reverse_proxy: an upstream, or a forward_auth, which asks
// somebody and goes on.
func (w *walk) proxy(h *reverseproxy.Handler, in flow) flow {
	out := w.responses(h.HandleResponse, in)
	out.certain = out.reached && in.certain
	out.owned, out.removed, out.set = out.removed&out.set, 0, 0
	text := configuration(h)
	w.read(h, text, &out, in)
	if out.reached && h.Rewrite != nil && h.Rewrite.Method != "" && h.Rewrite.URI != "" {
		out.stranger = false
		return out
	}
	c := candidate{site: w.site(), what: "reverse_proxy"}
	for i, upstream := range h.Upstreams {
		address := localAddress(upstream.Dial)
		if i == 0 && upstream.Dial != "" {
			c.what += " " + upstream.Dial
		}
		if address != "" && in.judged {
			w.upstreams[address] = true
		}
		c.addresses = append(c.addresses, address)
	}
	if in.raw {
		if w.inErrors {
			c.Finding = w.here(true, "this error route leads to %s, and nothing removes forged identity headers and credentials on the way; put \"service_users sanitize\" before it", c.what)
			w.errorPaths = append(w.errorPaths, c)
		} else {
			sanitize := `or else "service_users sanitize"`
			if in.asked {
				sanitize = `or else, in a route block, "service_users sanitize" between the authentication, which needs Authorization, and the proxy`
			}
			c.Finding = w.here(false, "requests get to %s without passing service_users: unchecked, with whatever identity headers the client sends; put service_users before it, with \"public\" rules for what needs no credential, %s", c.what, sanitize)
			w.proxied = append(w.proxied, c)
		}
	}
	w.strangers(c.what, in)
	transport := moduleID(h.Transport)
	if in.judged && in.rewrite != 0 {
		by := w.rewrites[in.rewrite-1]
		if !by.tryFiles || transport != "http.reverse_proxy.transport.fastcgi" {
			w.report(by.Finding)
		}
	}
	if h.Rewrite != nil && in.judged {
		if change := rewriteText(h.Rewrite); change != "" {
			w.add(false, "%s has a %q of its own: it forwards another request than service_users has judged; rewrite in front of service_users instead", c.what, change)
		}
	}
	if h.Headers != nil {
		w.headers("header_up of "+c.what, h.Headers.Request, in)
	}
	if in.guard != 0 {
		if t, ok := h.Transport.(*fastcgi.Transport); ok {
			w.keepOriginals(in.guard)
			w.split(in.guard, t.SplitPath)
		} else if transport != "http.reverse_proxy.transport.http" {
			w.unknownUpstream(configuration(h.Transport), in)
		}
		if namesOriginal(text) {
			w.keepOriginals(in.guard)
		}
	}
	return out
}

// namesOriginal reports whether a configuration names the original target, or a part of
// it that a matcher has kept.
func namesOriginal(text string) bool {
	return strings.Contains(text, "{http.request.orig_") || strings.Contains(text, "{http.regexp.")
}

// strangers reports an upstream that requests reach which "otherwise pass" has
// handed on and no authenticator has stopped.
func (w *walk) strangers(what string, in flow) {
	if in.stranger {
		w.add(false, "requests without credentials get to %s: \"otherwise pass\" hands them on, and no other authenticator certainly runs before it; put one behind service_users, with the matcher \"not service_user\"", what)
	}
}

// unknownUpstream notes that a module behind a guard may use the original target,
// or split the path where its configuration says so.
func (w *walk) unknownUpstream(text string, in flow) {
	w.keepOriginals(in.guard)
	var php struct {
		SplitPath []string `json:"split_path"`
	}
	if _ = json.Unmarshal([]byte(text), &php); php.SplitPath != nil { // FrankenPHP's php_server, for one
		w.split(in.guard, php.SplitPath)
	}
}

// currentTarget lists the handlers that neither hand on nor act on the original
// target of a request, unless their configuration names it.
var currentTarget = map[string]bool{
	"authentication": true, "copy_response": true, "copy_response_headers": true, "encode": true, "error": true, "file_server": true, "headers": true,
	"intercept": true, "log_append": true, "map": true, "request_body": true, "rewrite": true, "static_response": true, "timeouts": true,
	"tracing": true, "vars": true,
}

// neighbour follows a handler that is neither ours nor a proxy, and has no routes
// that go on.
func (w *walk) neighbour(handler caddyhttp.MiddlewareHandler, in flow) flow {
	out := in
	name := strings.TrimPrefix(moduleID(handler), "http.handlers.")
	text := configuration(handler)
	w.read(handler, text, &out, in)
	if in.guard != 0 && (!currentTarget[name] || namesOriginal(text)) {
		w.unknownUpstream(text, in)
	}
	switch h := handler.(type) {
	case *encode.Encode, *logging.LogAppend, *tracing.Tracing:
		return out // a door may be behind one of these and its authenticator
	case *headers.Handler:
		w.headers("a headers handler (request_header, copy_headers)", h.Request, in)
		if w.inResponse > 0 {
			w.own(h.Request, &out)
		}
		if w.leavesActors(h.Request) {
			return out
		}
	case *rewrite.Rewrite:
		w.rewrite(h, &out)
		_, query, _ := strings.Cut(h.URI, "?")
		query += configuration(h.Query)
		out.carries = out.carries || in.unjudged && (namesOriginal(query) || strings.Contains(query, "{http.request.uri}") || strings.Contains(query, "{http.request.uri.path"))
	case *caddyhttp.VarsMiddleware, *intercept.Intercept:
	case *caddyauth.Authentication:
		w.basicAuth(h, in)
		out.asked, out.stranger = true, false
	case *caddyhttp.StaticResponse:
		if h.StatusCode.String() != "103" {
			return flow{}
		}
	case *caddyhttp.StaticError, *reverseproxy.CopyResponseHandler:
		return flow{}
	case *fileserver.FileServer:
		w.strangers("file_server", in)
		if !h.PassThru {
			return flow{}
		}
	default:
		out.removed, out.set = 0, 0
		if strings.Contains(name, "cache") || strings.Contains(name, "souin") {
			w.cache(name, text, &out)
		}
	}
	out.owned = 0 // anything else may have changed the request
	if strings.Contains(text, `"routes":`) || strings.Contains(text, `"handle_response":`) {
		out.nested = out.reached
	}
	return out
}

// examplePassword is the hash that Caddyfile.example falls back to.
const examplePassword = "$2a$10$bO2qzp6r5wqCRqinxDhyt.cuMJObX2Caqgf/zhsbAaudJzfwRL2N2"

// basicAuth reports a basic_auth that has nothing to check, and the people who log
// in with the password of Caddyfile.example.
func (w *walk) basicAuth(h *caddyauth.Authentication, in flow) {
	if basic, ok := h.Providers["http_basic"].(*caddyauth.HTTPBasicAuth); ok {
		for _, account := range basic.Accounts {
			if account.Password == examplePassword {
				w.examples = append(w.examples, Finding{load: true, Message: fmt.Sprintf("people log in as %q with the password of Caddyfile.example, which everybody knows; set another one before anybody else reaches this site: export ADMIN_PASSWORD_HASH=\"$(./caddy hash-password)\"", account.Username)})
			}
		}
	}
	switch {
	case h.Providers["http_basic"] == nil:
	case in.known:
		who := "nobody in"
		if in.stranger {
			who = "no service user in"
		}
		w.add(false, "basic_auth behind service_users lets %s: service_users has removed Authorization; remove basic_auth, or let people and service users in side by side with \"otherwise pass unknown\" and \"basic_auth @people\", where @people is \"not service_user\"", who)
	case in.stripped:
		w.add(false, "basic_auth behind \"service_users sanitize\" lets nobody in: Authorization has been removed; put \"service_users sanitize\" behind it, in a route block")
	}
}

// reader is a handler that looks at our identity.
type reader struct {
	Finding
	before int // the one before, on the same way; 0 is none
}

// read notes a handler that reads our identity although our handler may not have
// run yet, and one that keeps the target of the client for later.
func (w *walk) read(handler any, text string, out *flow, in flow) {
	if !out.reached || !in.unjudged {
		return
	}
	switch handler.(type) {
	case *rewrite.Rewrite, *caddyhttp.StaticResponse, *caddyhttp.StaticError, *logging.LogAppend, *tracing.Tracing, *reverseproxy.Handler:
	default:
		out.carries = out.carries || strings.Contains(text, "{http.request.uri") || namesOriginal(text)
	}
	if w.namesIdentity(handler, text) {
		name := strings.TrimPrefix(moduleID(handler), "http.handlers.")
		directive := name
		if h, ok := handler.(*headers.Handler); ok {
			if directive = "header"; h.Request != nil {
				directive = "request_header"
			}
		} else if other := map[string]string{"static_response": "respond", "authentication": "basic_auth"}[name]; other != "" {
			directive = other
		}
		f := w.here(true, "%s names the identity of service users and runs before service_users, which sets it: everybody looks the same there, or as a client likes; move it behind, by a route block or by the global option \"order %[1]s after service_users\"", directive)
		w.readers = append(w.readers, reader{f, in.reader})
		out.reader = len(w.readers)
	}
}

func (w *walk) reportReaders(n int) {
	for n != 0 && !w.seen[w.readers[n-1].Finding] {
		f := w.readers[n-1].Finding
		n = w.readers[n-1].before
		defer w.report(f) // in the order of the routes
	}
}

// namesIdentity reports whether the configuration of a handler names our
// placeholders or headers in a way that is evaluated before the next handler runs.
func (w *walk) namesIdentity(handler any, text string) bool {
	switch h := handler.(type) {
	case *maphandler.Handler, *tracing.Tracing, *intercept.Intercept:
		return false // evaluated when somebody asks, or when the answer is there
	case *logging.LogAppend:
		if !h.Early {
			return false
		}
	case *headers.Handler, *reverseproxy.Handler:
		var tree any
		_ = json.Unmarshal([]byte(text), &tree)
		text = configuration(withoutLate(tree))
	}
	folded, lower := foldName(text), strings.ToLower(text)
	return strings.Contains(text, "{http.auth.user.") || strings.Contains(text, "{http.service_users.") ||
		slices.ContainsFunc(w.prefixes, func(prefix string) bool {
			return strings.Contains(lower, strings.ToLower(prefix)) || strings.Contains(folded, "httprequestheader"+foldName(prefix))
		})
}

// withoutLate removes the header operations that are harmless before our handler:
// deletions, and those on the answer that wait until it is there.
func withoutLate(v any) any {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "delete")
		if v["deferred"] == true || v["require"] != nil {
			return nil
		}
		for key := range v {
			v[key] = withoutLate(v[key])
		}
	case []any:
		for i := range v {
			v[i] = withoutLate(v[i])
		}
	}
	return v
}

// rewriting is a change of the method or the path behind a guard.
type rewriting struct {
	Finding
	tryFiles bool // it only chooses the file of a PHP program
}

// certainty orders rewrites: 0 is none, 1 one that may happen, 2 one that does.
func (w *walk) certainty(n int) int {
	switch {
	case n == 0:
		return 0
	case w.rewrites[n-1].Fatal:
		return 2
	}
	return 1
}

// rewrite follows a handler that changes the method or the path.
func (w *walk) rewrite(h *rewrite.Rewrite, out *flow) {
	text := rewriteText(h)
	if text == "" || !out.judged || w.certainty(out.rewrite) == 2 || out.rewrite != 0 && !out.certain {
		return
	}
	requests := "requests"
	if out.certain {
		requests = "every request"
	}
	f := w.here(out.certain, "%q changes %s after service_users has judged it: its rules see another method or path than the upstream; put service_users behind it", text, requests)
	w.rewrites = append(w.rewrites, rewriting{f, h.URI == "{http.matchers.file.relative}"})
	out.rewrite = len(w.rewrites)
}

// rewriteText describes the change that a rewrite makes to the method and the
// path. Rules do not see the query, so a change of that alone is "".
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

// localAddress returns an upstream's address in one spelling. "" is none, or one
// that is only known when a request comes.
func localAddress(dial string) string {
	host, port, err := net.SplitHostPort(dial)
	switch ip := net.ParseIP(host); {
	case strings.Contains(dial, "{"):
		return ""
	case err != nil:
		return dial // a unix socket
	case host == "" || ip.IsLoopback() || ip.IsUnspecified():
		host = "localhost"
	}
	return strings.ToLower(net.JoinHostPort(host, port))
}

// sharedUpstreams reports the sites without service users that lead to an upstream
// of a site with them.
func (o *ourHandlers) sharedUpstreams() (list []Finding) {
	for _, c := range o.open {
		if slices.ContainsFunc(c.addresses, func(address string) bool { return o.upstreams[address] }) {
			c.Message = fmt.Sprintf("%s is guarded by service_users on another site and open on this one, where clients can send any identity header; put service_users before it here too, or \"service_users sanitize\"", c.what)
			list = append(list, c.Finding)
		}
	}
	return list
}

// matchers looks at the matchers of a route: file matchers split paths, and ours
// needs a guard before it.
func (w *walk) matchers(sets caddyhttp.MatcherSets, in flow) {
	for _, set := range sets {
		for _, matcher := range set {
			switch m := matcher.(type) {
			case *fileserver.MatchFile:
				w.addSplits(m.SplitPath)
			case *caddyhttp.MatchNot:
				w.matchers(m.MatcherSets, in)
			case *MatchServiceUser:
				if in.raw && !w.inErrors {
					w.add(false, "the matcher service_user looks at requests that service_users has not seen: nobody is a service user there; move the route behind service_users")
				}
			}
		}
	}
}

// byIdentity divides the requests at a route whose only matcher is "service_user"
// or "not service_user". At any other route both ways are open to all.
func (w *walk) byIdentity(sets caddyhttp.MatcherSets, in flow) (enter, past flow) {
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
	programs.reached, programs.raw, programs.stranger = in.reached && in.known, false, false
	others.known = false
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
			return !ok || !slices.Contains(*path, "*") // "/*" leaves out the empty path
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

// matcherText describes the matchers of a route, without values that may be
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

// configuration returns a provisioned module as JSON. Modules nested in it can be
// missing there, and one that has no JSON form is "".
func configuration(module any) string {
	text, err := json.Marshal(module)
	if err != nil {
		return ""
	}
	return string(text)
}
