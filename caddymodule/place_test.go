package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// layout is the server of a configuration that a test puts together.
type layout struct {
	routes, errors []string
	named          map[string]string
}

func handle(handlers ...string) string { return `{"handle":[` + strings.Join(handlers, ",") + `]}` }

func (l *layout) String() string {
	named := make(map[string]json.RawMessage)
	for name, route := range l.named {
		named[name] = json.RawMessage(route)
	}
	return `{"listen":["localhost:1"],"automatic_https":{"disable":true},"routes":[` + strings.Join(l.routes, ",") + `],"named_routes":` + quoted(named) +
		`,"errors":{"routes":[` + strings.Join(l.errors, ",") + `]}}`
}

func quoted(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// provisioned makes the http server of a configuration, as far as the listeners,
// with a store in dir. It returns the error of the load.
func provisioned(tb testing.TB, dir, server string) (*caddyhttp.Server, *App, error) {
	tb.Helper()
	text := fmt.Sprintf(`{"logging":{"logs":{"default":{"level":"FATAL"}}},"storage":{"module":"file_system","root":%q},
		"apps":{"service_users":{"store":%q},"http":{"servers":{"s":%s}}}}`, dir, filepath.Join(dir, "s.db"), server)
	config := new(caddy.Config)
	if err := json.Unmarshal([]byte(text), config); err != nil {
		tb.Fatalf("%v: %s", err, text)
	}
	ctx, err := caddy.ProvisionContext(config)
	if err != nil {
		tb.Fatalf("%v: %s", err, text)
	}
	app, err := serviceUsers(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	web, err := ctx.App("http")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		app.started = false // gives the store back at once
		if err := app.Cleanup(); err != nil {
			tb.Error(err)
		}
	})
	return web.(*caddyhttp.App).Servers["s"], app, app.Start()
}

// TestActorHeaderAnywhere puts the door of the admin API into every nesting of
// what can hold routes, up to depth 3, with and without an authenticator around
// it. The load fails, or a client that sends the header itself gets 401.
func TestActorHeaderAnywhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Login") == "boss" {
			w.Header().Set("X-Admin", "boss")
		}
	}))
	defer upstream.Close()
	proxy := func(fields string) string {
		return fmt.Sprintf(`{"handler":"reverse_proxy","upstreams":[{"dial":%q}]%s}`, upstream.Listener.Addr(), fields)
	}
	const remove, set = `{"handler":"headers","request":{"delete":["X-Admin"]}}`, `{"handler":"headers","request":{"set":{"X-Admin":["{http.reverse_proxy.header.X-Admin}"]}}}`
	const door = `{"handler":"service_users_admin","actor_header":"X-Admin","admins":["boss"]}`
	asks := func(responses ...string) string {
		return proxy(`,"rewrite":{"method":"GET","uri":"/verify"},"handle_response":[` + strings.Join(responses, ",") + `]`)
	}
	good := `{"match":{"status_code":[2]},"routes":[` + handle(remove) + `,{"match":[{"not":[{"vars":{"{http.reverse_proxy.header.X-Admin}":[""]}}]}],"handle":[` + set + `]}]}`
	type wrapping struct {
		name string
		wrap func(l *layout, inner []string) []string
	}
	wrappings := []wrapping{
		{"subroute", func(l *layout, inner []string) []string {
			return []string{`{"handler":"subroute","routes":[` + handle(inner...) + `]}`}
		}},
		{"named route", func(l *layout, inner []string) []string {
			name := fmt.Sprintf("n%d", len(l.named))
			l.named[name] = handle(inner...)
			return []string{`{"handler":"invoke","name":"` + name + `"}`}
		}},
		{"invoked twice", func(l *layout, inner []string) []string {
			name := fmt.Sprintf("n%d", len(l.named))
			l.named[name] = handle(inner...)
			l.routes = append(l.routes, `{"match":[{"path":["/other/*"]}],`+strings.TrimPrefix(handle(`{"handler":"invoke","name":"`+name+`"}`), "{"))
			return []string{`{"handler":"invoke","name":"` + name + `"}`}
		}},
		{"errors of a subroute", func(l *layout, inner []string) []string {
			return []string{`{"handler":"subroute","routes":[` + handle(`{"handler":"error","status_code":"418"}`) + `],"errors":{"routes":[` + handle(inner...) + `]}}`}
		}},
		{"handle_errors", func(l *layout, inner []string) []string {
			l.errors = append(l.errors, handle(inner...))
			return []string{`{"handler":"error","status_code":"418"}`}
		}},
		{"intercept", func(l *layout, inner []string) []string {
			return []string{`{"handler":"intercept","handle_response":[{"routes":[` + handle(inner...) + `]}]}`, `{"handler":"static_response","body":"x"}`}
		}},
		{"handle_response", func(l *layout, inner []string) []string {
			return []string{proxy(`,"handle_response":[{"routes":[` + handle(inner...) + `]}]`)}
		}},
		{"after copy_response_headers", func(l *layout, inner []string) []string {
			return []string{proxy(`,"handle_response":[{"routes":[` + handle(append([]string{`{"handler":"copy_response_headers"}`}, inner...)...) + `]}]`)}
		}},
	}
	around := map[string][]string{
		"nothing":                      nil,
		"an authenticator":             {asks(good)},
		"one of which an answer leaks": {asks(`{"match":{"status_code":[403]},"routes":[`+handle(`{"handler":"vars"}`)+`]}`, good)},
		"one with an empty answer":     {asks(good, `{"match":{"status_code":[3]}}`)},
		"one that only sets":           {asks(`{"routes":[` + handle(set) + `]}`)},
		"one that copies the client's": {asks(`{"routes":[` + handle(remove, `{"handler":"headers","request":{"set":{"X-Admin":["{http.request.header.X-Copy}"]}}}`) + `]}`)},
		"one and another handler":      {asks(good), `{"handler":"headers","request":{"set":{"X-Admin":["boss"]}}}`},
		"one and one that deletes":     {asks(good), `{"handler":"vars","x":"y"}`},
	}
	loads, believed, refused := 0, 0, 0
	var nest func(l *layout, depth int, inner []string, names string, try func(*layout, []string, string))
	nest = func(l *layout, depth int, inner []string, names string, try func(*layout, []string, string)) {
		try(l, inner, names)
		for _, w := range wrappings {
			if depth > 0 {
				copied := &layout{append([]string(nil), l.routes...), append([]string(nil), l.errors...), make(map[string]string)}
				for name, route := range l.named {
					copied.named[name] = route
				}
				nest(copied, depth-1, w.wrap(copied, inner), w.name+" > "+names, try)
			}
		}
	}
	for name, before := range around {
		for _, inside := range []bool{false, true} { // directly before the door, or before everything around it
			inner := []string{door}
			if inside {
				inner = append(append([]string(nil), before...), door)
			} else if before == nil {
				continue
			}
			depth := 1
			if name == "nothing" || name == "an authenticator" {
				depth = 3
			}
			nest(&layout{named: make(map[string]string)}, depth, inner, "door", func(l *layout, handlers []string, names string) {
				if !inside {
					handlers = append(append([]string(nil), before...), handlers...)
				}
				full := &layout{append([]string{}, l.routes...), l.errors, l.named}
				full.routes = append(full.routes, handle(handlers...))
				where := fmt.Sprintf("%s (directly before: %t): %s", name, inside, names)
				loads++
				server, app, err := provisioned(t, dir, full.String())
				if err != nil {
					refused++
					if err := app.shared.start(); err != nil {
						t.Fatal(err)
					}
					if !strings.Contains(err.Error(), "actor_header X-Admin is believed only") {
						t.Errorf("%s: %v", where, err)
					}
				}
				// A configuration whose load failed may have answered before that.
				for _, path := range []string{"/service_users", "/other/x"} {
					r := httptest.NewRequest("GET", path, nil)
					r.Header.Set("X-Admin", "boss")
					r.Header.Set("X-Copy", "boss")
					w := httptest.NewRecorder()
					server.ServeHTTP(w, r)
					if strings.Contains(w.Body.String(), "service_users\":") || w.Code/100 == 2 && strings.Contains(w.Header().Get("Content-Type"), "json") {
						t.Errorf("%s: %s: a client is believed: %d %s", where, path, w.Code, w.Body)
					}
				}
				r := httptest.NewRequest("GET", "/service_users", nil)
				r.Header.Set("X-Login", "boss")
				w := httptest.NewRecorder()
				if server.ServeHTTP(w, r); strings.Contains(w.Body.String(), `"service_users":`) {
					if believed++; err != nil {
						t.Errorf("%s: the door believes the header although the load failed", where)
					}
				}
			})
		}
	}
	t.Logf("%d configurations, %d refused, in %d the person behind the authenticator gets in", loads, refused, believed)
	if refused < 100 || believed < 10 {
		t.Error("the test has lost its point")
	}
}

// unknownHandler is a handler that the walk has never heard of. Its configuration
// can be anything.
type unknownHandler struct {
	Key   string          `json:"key,omitempty"`
	Inner json.RawMessage `json:"inner,omitempty" caddy:"namespace=http.handlers inline_key=handler"`

	inner caddyhttp.MiddlewareHandler
}

func (unknownHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.unknown", New: func() caddy.Module { return new(unknownHandler) }}
}

func (u *unknownHandler) Provision(ctx caddy.Context) error {
	if u.Inner == nil {
		return nil
	}
	inner, err := ctx.LoadModule(u, "Inner")
	if err == nil {
		u.inner = inner.(caddyhttp.MiddlewareHandler)
	}
	return err
}

func (u *unknownHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if u.inner != nil {
		return u.inner.ServeHTTP(w, r, next)
	}
	return next.ServeHTTP(w, r)
}

// fakeCache has the configuration of Souin's cache, and of one that is not Souin's.
type fakeCache struct {
	Configuration map[string]any `json:"Configuration,omitempty"`
}

func (fakeCache) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.fake_cache", New: func() caddy.Module { return new(fakeCache) }}
}

func (fakeCache) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return next.ServeHTTP(w, r)
}

func init() {
	caddy.RegisterModule(unknownHandler{})
	caddy.RegisterModule(fakeCache{})
}

// TestPlaces tries routes around our handlers. want is a part of each finding, in
// their order; "!" before it stands for one that fails the load.
func TestPlaces(t *testing.T) {
	t.Parallel()
	const guard, proxy, pass = `{"handler":"service_users"}`, `{"handler":"reverse_proxy","upstreams":[{"dial":"localhost:9000"}]}`, `{"handler":"vars","a":"b"}`
	const intercepts = `{"handler":"intercept","handle_response":[{"routes":[{"handle":[{"handler":"static_response"}]}]}]}`
	const asks = `{"handler":"reverse_proxy","rewrite":{"method":"GET","uri":"/v"},"upstreams":[{"dial":"localhost:1"}],"handle_response":[{"routes":[{"handle":[{"handler":"vars"}]}]}]}`
	cache := func(fields, key, more string) string {
		return `{"handler":"fake_cache","Configuration":{"DefaultCache":{` + fields + `"key":{` + key + `}}` + more + `}}`
	}
	safe := cache(`"disable_coalescing":true,`, "", "")
	unknown := func(key string) string { return `{"handler":"unknown","key":` + quoted(key) + `}` }
	invoke := func(name string) string { return `{"handler":"invoke","name":"` + name + `"}` }
	when := func(path, route string) string { return `{"match":[{"path":["` + path + `"]}],` + route[1:] }
	sub := func(routes ...string) string {
		return `{"handler":"subroute","routes":[` + strings.Join(routes, ",") + `]}`
	}
	const door = `{"handler":"service_users_admin","actor_header":"X-Admin","admins":["boss"]}`
	const owns = `{"handler":"reverse_proxy","rewrite":{"method":"GET","uri":"/v"},"upstreams":[{"dial":"localhost:1"}],"handle_response":[{"routes":[{"handle":[{"handler":"headers","request":{"delete":["X-Admin"]}}]},{"handle":[{"handler":"headers","request":{"set":{"X-Admin":["{http.reverse_proxy.header.X-Admin}"]}}}]}]}]}`
	const early, both, unsafe, unkeyed = "!names the identity of service users and runs before", "!a cache and a handler with routes of its own", "!before service_users can give the answer to one service user to everybody", "!lacks the identity"

	for name, tt := range map[string]struct {
		routes []string
		errors []string
		named  map[string]string
		want   []string
		around *surroundings
	}{
		"an unknown handler before":                  {routes: []string{handle(unknown("{http.request.uri.query.a}"), guard, proxy)}},
		"one that reads the id":                      {routes: []string{handle(unknown("{http.auth.user.id}"), guard, proxy)}, want: []string{early}},
		"one that reads another of our placeholders": {routes: []string{handle(unknown("{http.service_users.rule}"), guard, proxy)}, want: []string{early}},
		"one that reads our header":                  {routes: []string{handle(unknown("{http.request.header.X_service-user-ID}"), guard, proxy)}, want: []string{early}},
		"one behind":                                 {routes: []string{handle(guard, unknown("{http.auth.user.id}"), proxy)}},
		"one in a subroute before":                   {routes: []string{handle(sub(handle(unknown("{http.auth.user.id}"))), guard, proxy)}, want: []string{early}},
		"one that only some requests meet":           {routes: []string{when("/a/*", handle(unknown("{http.auth.user.id}"))), handle(guard, proxy)}, want: []string{early}},
		"one on a way that never comes to ours":      {routes: []string{when("/a/*", handle(unknown("{http.auth.user.id}"), `{"handler":"static_response"}`)), handle(guard, proxy)}},
		"two of them":                                {routes: []string{handle(unknown("{http.auth.user.id}"), unknown("{http.auth.user.name}"), guard, proxy)}, want: []string{early, early}},
		"log_append, late":                           {routes: []string{handle(`{"handler":"log_append","key":"a","value":"{http.auth.user.id}"}`, guard, proxy)}},
		"log_append, early":                          {routes: []string{handle(`{"handler":"log_append","key":"a","value":"{http.auth.user.id}","early":true}`, guard, proxy)}, want: []string{early}},
		"a header of the answer, deferred":           {routes: []string{handle(`{"handler":"headers","response":{"deferred":true,"set":{"A":["{http.auth.user.id}"]}}}`, guard, proxy)}},
		"a header of some answers":                   {routes: []string{handle(`{"handler":"headers","response":{"require":{"status_code":[200]},"set":{"A":["{http.auth.user.id}"]}}}`, guard, proxy)}},
		"a header of the answer, at once":            {routes: []string{handle(`{"handler":"headers","response":{"set":{"A":["{http.auth.user.id}"]}}}`, guard, proxy)}, want: []string{early}},
		"a header that is deleted":                   {routes: []string{handle(`{"handler":"headers","request":{"delete":["X-Service-User-*"]}}`, guard, proxy)}},
		"map":                                        {routes: []string{handle(`{"handler":"map","source":"{http.auth.user.id}","destinations":["{a}"],"mappings":[{"input":"x","outputs":["y"]}]}`, guard, proxy)}},
		"tracing":                                    {routes: []string{handle(`{"handler":"tracing","span":"{http.auth.user.id}"}`, guard, proxy)}},
		"intercept that reads the id":                {routes: []string{handle(`{"handler":"intercept","handle_response":[{"routes":[{"handle":[{"handler":"static_response","body":"{http.auth.user.id}"}]}]}]}`, guard, proxy)}},
		"forward_auth that deletes our header":       {routes: []string{handle(strings.Replace(asks, `"rewrite"`, `"headers":{"request":{"delete":["X-Service-User-*"]}},"rewrite"`, 1), guard, proxy)}},
		"forward_auth that sends the id":             {routes: []string{handle(strings.Replace(asks, `"rewrite"`, `"headers":{"request":{"set":{"A":["{http.auth.user.id}"]}}},"rewrite"`, 1), guard, proxy)}, want: []string{early}},

		"a cache before":                              {routes: []string{handle(safe, guard, proxy)}, around: &surroundings{currentOnly: true, cached: true}},
		"a cache that coalesces":                      {routes: []string{handle(cache("", "", ""), guard, proxy)}, want: []string{unsafe}},
		"a cache that bypasses":                       {routes: []string{handle(cache(`"disable_coalescing":true,"mode":"bypass_request",`, "", ""), guard, proxy)}, want: []string{unsafe}},
		"a cache by Authorization":                    {routes: []string{handle(cache(`"disable_coalescing":true,`, `"headers":["authorization"]`, ""), guard, proxy)}, want: []string{unsafe}},
		"a cache of another kind":                     {routes: []string{handle(`{"handler":"fake_cache"}`, guard, proxy)}, want: []string{unsafe}},
		"a cache for some":                            {routes: []string{when("/a/*", handle(safe)), handle(guard, proxy)}, around: &surroundings{currentOnly: true, cached: true}},
		"a cache beside":                              {routes: []string{when("/a/*", handle(safe, `{"handler":"static_response"}`)), handle(guard, proxy)}, around: &surroundings{currentOnly: true}},
		"a cache, then intercept":                     {routes: []string{handle(safe, intercepts, guard, proxy)}, want: []string{both}},
		"intercept, then a cache":                     {routes: []string{handle(intercepts, safe, guard, proxy)}, want: []string{both}},
		"a cache, then forward_auth":                  {routes: []string{handle(safe, asks, guard, proxy)}, want: []string{both}},
		"intercept for some, a cache for others":      {routes: []string{when("/a/*", handle(intercepts)), when("/b/*", handle(safe)), handle(guard, proxy)}, want: []string{both}},
		"intercept behind ours":                       {routes: []string{handle(safe, guard, intercepts, proxy)}},
		"a cache around a named route":                {routes: []string{when("/a/*", handle(invoke("x"))), handle(safe, invoke("x"))}, named: map[string]string{"x": handle(guard, proxy)}, around: &surroundings{currentOnly: true, cached: true}},
		"intercept around a named route, too":         {routes: []string{when("/a/*", handle(safe, invoke("x"))), handle(safe, intercepts, invoke("x"))}, named: map[string]string{"x": handle(guard, proxy)}, want: []string{both}},
		"a cache behind":                              {routes: []string{handle(guard, safe, proxy)}, want: []string{unkeyed}},
		"a cache behind, by id":                       {routes: []string{handle(guard, cache("", `"headers":["x-service-user-id"]`, ""), proxy)}},
		"a cache behind, by a template":               {routes: []string{handle(guard, cache("", `"template":"{http.auth.user.id} {http.request.uri}"`, ""), proxy)}},
		"a cache behind, by a template of the header": {routes: []string{handle(guard, cache("", `"template":"{http.request.header.x-service-user-id}"`, ""), proxy)}},
		"a template that wins over the headers":       {routes: []string{handle(guard, cache("", `"headers":["x-service-user-id"],"template":"{http.request.uri}"`, ""), proxy)}, want: []string{unkeyed}},
		"another key for some paths":                  {routes: []string{handle(guard, cache("", `"headers":["x-service-user-id"]`, `,"cache_keys":{"/a":{"headers":["Accept"]}}`), proxy)}, want: []string{unkeyed}},
		"a cache behind, of another kind":             {routes: []string{handle(guard, `{"handler":"fake_cache"}`, proxy)}, want: []string{unkeyed}},
		"a cache behind sanitize":                     {routes: []string{handle(`{"handler":"service_users","sanitize_only":true}`, safe, proxy)}},
		"by id, where the id is not sent":             {routes: []string{handle(`{"handler":"service_users","headers":["name"]}`, cache("", `"headers":["x-service-user-id"]`, ""), proxy)}, want: []string{unkeyed}},

		"an http upstream":                 {routes: []string{handle(guard, proxy)}, around: &surroundings{currentOnly: true}},
		"an unknown handler behind":        {routes: []string{handle(guard, unknown(""), proxy)}, around: &surroundings{}},
		"the original target in a header":  {routes: []string{handle(guard, `{"handler":"headers","request":{"set":{"A":["{http.request.orig_uri.path}"]}}}`, proxy)}, around: &surroundings{}},
		"the original target in header_up": {routes: []string{handle(guard, strings.Replace(proxy, `"upstreams"`, `"headers":{"request":{"set":{"A":["{http.request.orig_uri}"]}}},"upstreams"`, 1))}, around: &surroundings{}},
		"the original target kept before":  {routes: []string{handle(`{"handler":"vars","a":"{http.request.uri.path}"}`, guard, proxy)}, around: &surroundings{}},
		"php":                              {routes: []string{handle(guard, strings.Replace(proxy, `"upstreams"`, `"transport":{"protocol":"fastcgi","split_path":[".PHP",".php5"]},"upstreams"`, 1))}, around: &surroundings{splits: []string{".php", ".php5"}}},
		"php for some, http for others":    {routes: []string{handle(guard), when("*.php", handle(strings.Replace(proxy, `"upstreams"`, `"transport":{"protocol":"fastcgi","split_path":[".php"]},"upstreams"`, 1))), handle(proxy)}, around: &surroundings{splits: []string{".php"}}},
		"php behind another guard":         {routes: []string{when("/a/*", handle(guard)), when("/b/*", handle(`{"handler":"service_users","realm":"b"}`)), handle(strings.Replace(proxy, `"upstreams"`, `"transport":{"protocol":"fastcgi"},"upstreams"`, 1))}, want: []string{"without passing service_users"}, around: &surroundings{}},

		"a cache before a door":                       {routes: []string{handle(safe, `{"handler":"service_users_admin","admins":["a"]}`)}, want: []string{"!a cache comes before service_users_admin"}},
		"a cache that ignores no-store":               {routes: []string{handle(cache(`"disable_coalescing":true,"mode":"bypass_response",`, "", ""), guard, proxy)}, want: []string{unsafe}},
		"a cache behind, in the error routes":         {routes: []string{handle(guard, proxy)}, errors: []string{handle(`{"handler":"service_users","sanitize_only":true}`, safe, proxy)}, want: []string{unkeyed}},
		"a cache in the error routes of another site": {routes: []string{`{"match":[{"host":["a.example.com"]}],` + handle(guard, proxy)[1:], `{"match":[{"host":["b.example.com"]}],` + handle(pass)[1:]}, errors: []string{`{"match":[{"host":["b.example.com"]}],` + handle(safe, `{"handler":"static_response"}`)[1:]}},
		"a cache before an unknown module":            {routes: []string{handle(safe, `{"handler":"unknown","inner":`+guard+`}`, proxy)}, want: []string{"!inside of a module that this check does not know"}},
		"a cache in an intercept around":              {routes: []string{handle(`{"handler":"intercept","handle_response":[{"routes":[`+handle(safe, proxy)+`]}]}`, guard, proxy)}, want: []string{unkeyed}},
		"a group in two lists, and a door":            {routes: []string{handle(`{"handler":"intercept","handle_response":[{"routes":[` + `{"group":"g",` + handle(owns)[1:] + `,` + handle(door) + `]}]}`), `{"group":"g",` + handle(pass)[1:], handle(`{"handler":"static_response"}`)}, want: []string{"!the group g is in more than one place"}},
		"a group in a route that is invoked again":    {routes: []string{handle(invoke("x")), handle(`{"handler":"rewrite","uri":"/b"}`), handle(invoke("x")), handle(proxy)}, named: map[string]string{"x": handle(sub(`{"group":"g",`+when("/a/*", handle(pass))[1:], `{"group":"g",`+handle(guard)[1:]))}, want: []string{"!changes every request after", "without passing service_users"}},
		"a door behind a deletion of everything":      {routes: []string{handle(strings.Replace(owns, `"handle_response":[`, `"handle_response":[{"match":{"status_code":[3]},"routes":[{"handle":[{"handler":"headers","request":{"set":{"X-Admin":["{http.request.uri.query.a}"]},"delete":["*"]}}]}]},`, 1), door)}, want: []string{"!is believed only"}},
		"a door behind harmless handlers":             {routes: []string{handle(owns, `{"handler":"encode"}`, `{"handler":"headers","request":{"delete":["X-Foo"]},"response":{"set":{"A":["b"]}}}`, door)}},
		"a guard on /*":                               {routes: []string{`{"match":[{"path":["/*"]}],` + handle(guard)[1:], handle(proxy)}, want: []string{"without passing service_users"}},
		"the path in the query":                       {routes: []string{handle(`{"handler":"rewrite","uri":"/index.php?q={http.request.uri.path}&{http.request.uri.query}"}`, guard, proxy)}, around: &surroundings{}},
		"the query alone":                             {routes: []string{handle(`{"handler":"rewrite","uri":"/index.php?{http.request.uri.query}"}`, guard, proxy)}, around: &surroundings{currentOnly: true}},
		"a reader behind sanitize":                    {routes: []string{handle(`{"handler":"service_users","sanitize_only":true}`, unknown("{http.auth.user.id}"), guard, proxy)}, want: []string{early}},
		"a reader before sanitize alone":              {routes: []string{handle(unknown("{http.auth.user.id}"), `{"handler":"service_users","sanitize_only":true}`, proxy)}},
		"php in an intercept around":                  {routes: []string{handle(`{"handler":"intercept","handle_response":[{"routes":[`+handle(proxy)+`]}]}`, guard, proxy)}, around: &surroundings{}},
		"an error route of programs":                  {routes: []string{handle(guard, proxy)}, errors: []string{`{"match":[{"service_user":{}}],` + handle(proxy)[1:]}, want: []string{"!this error route leads"}},
		"a circle around a guard":                     {routes: []string{handle(invoke("x"))}, named: map[string]string{"x": handle(sub(when("/a/*", handle(invoke("x"))), handle(guard)))}, around: &surroundings{}},
		"a word of another header":                    {routes: []string{handle(unknown("{http.request.remote.host} max_service_users service-user"), `{"handler":"service_users","header_prefix":"Remote-"}`, proxy)}},
		"our matcher before":                          {routes: []string{`{"match":[{"not":[{"service_user":{}}]}],` + handle(pass)[1:], handle(guard, proxy)}, want: []string{"nobody is a service user there"}},
		"our matcher behind":                          {routes: []string{handle(guard), `{"match":[{"service_user":{}}],` + handle(proxy)[1:]}},
		"a guard in an unknown module":                {routes: []string{handle(`{"handler":"unknown","inner":`+guard+`}`, proxy)}, want: []string{"inside of a module that this check does not know"}},
		"a door in an unknown module":                 {routes: []string{handle(`{"handler":"unknown","inner":{"handler":"service_users_admin","actor_header":"X-Admin"}}`)}, want: []string{"!none was found to this one"}},
		"a door that is never invoked":                {routes: []string{handle(pass)}, named: map[string]string{"x": handle(`{"handler":"service_users_admin","actor_header":"X-Admin"}`)}, want: []string{"!none was found to this one"}},
		"a guard that is never invoked":               {routes: []string{handle(guard, proxy)}, named: map[string]string{"x": handle(`{"handler":"service_users","mode":"observe"}`)}},
		"a circle":                                    {routes: []string{handle(guard, invoke("x"))}, named: map[string]string{"x": handle(sub(when("/a/*", handle(invoke("y"))), handle(proxy))), "y": handle(sub(when("/b/*", handle(invoke("x"))), handle(pass)))}, want: []string{"without passing service_users"}},
		"a circle with a cache":                       {routes: []string{handle(safe, invoke("x"))}, named: map[string]string{"x": handle(sub(when("/a/*", handle(intercepts, invoke("x"))), handle(guard, proxy)))}, want: []string{both, "!in a circle"}},
		"a group that is continued":                   {routes: []string{`{"group":"g",` + when("/a/*", handle(pass))[1:], handle(pass), `{"group":"g",` + handle(guard)[1:], handle(proxy)}, want: []string{"without passing service_users"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &layout{routes: tt.routes, errors: tt.errors, named: tt.named}
			_, app, err := provisioned(t, t.TempDir(), l.String())
			var got []string
			for _, f := range app.routes() {
				text := f.Message
				if f.Fatal {
					text = "!" + text
				}
				got = append(got, text)
			}
			if ok := len(got) == len(tt.want); !ok {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			fatal := false
			for i := 0; i < min(len(got), len(tt.want)); i++ {
				part, isFatal := strings.CutPrefix(tt.want[i], "!")
				fatal = fatal || isFatal
				if !strings.Contains(got[i], part) || strings.HasPrefix(got[i], "!") != isFatal {
					t.Errorf("got %q, want %q", got[i], tt.want[i])
				}
			}
			if (err != nil) != fatal {
				t.Errorf("the load: %v", err)
			}
			if tt.around != nil {
				if around := app.guards[0].surroundings(); fmt.Sprint(around) != fmt.Sprint(*tt.around) {
					t.Errorf("got the surroundings %+v, want %+v", around, *tt.around)
				}
			}
		})
	}
}

// BenchmarkWalk is the check of a configuration with many routes: side by side,
// nested, and with named routes that invoke each other.
func BenchmarkWalk(b *testing.B) {
	const guard, proxy = `{"handler":"service_users"}`, `{"handler":"reverse_proxy","upstreams":[{"dial":"localhost:9000"}]}`
	shapes := map[string]func(n int) *layout{
		"wide": func(n int) *layout {
			l := new(layout)
			for i := range n {
				l.routes = append(l.routes, fmt.Sprintf(`{"match":[{"path":["/%d/*"]}],"handle":[%s,%s]}`, i, guard, `{"handler":"vars","a":"b"}`))
			}
			l.routes = append(l.routes, handle(guard, proxy))
			return l
		},
		"sites": func(n int) *layout {
			l := new(layout)
			for i := range n {
				l.routes = append(l.routes, fmt.Sprintf(`{"match":[{"host":["%d.example.com"]}],"terminal":true,"handle":[%s,%s]}`, i, guard, proxy))
			}
			return l
		},
		"named": func(n int) *layout {
			l := &layout{named: make(map[string]string)}
			for i := range n { // each twice: 2^n ways
				next := fmt.Sprintf(`{"handler":"invoke","name":"n%d"}`, i+1)
				l.named[fmt.Sprintf("n%d", i)] = `{"handle":[{"handler":"subroute","routes":[{"match":[{"path":["/a/*"]}],"handle":[` + next + `]},{"handle":[` + next + `]}]}]}`
			}
			l.named[fmt.Sprintf("n%d", n)] = handle(guard, proxy)
			l.routes = []string{handle(`{"handler":"invoke","name":"n0"}`)}
			return l
		},
	}
	for name, shape := range shapes {
		for _, n := range []int{1000, 10_000} {
			if name == "named" {
				n /= 10 // Go's decoder is slow on it
			}
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				_, app, err := provisioned(b, b.TempDir(), shape(n).String())
				if err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					app.walkRoutes()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/route")
			})
		}
	}
}
