package caddymodule

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// rewritten is a request that a handler before ours has made another one. Both
// are written "METHOD target"; the current one may be left out.
func rewritten(tb testing.TB, original, current string) *http.Request {
	tb.Helper()
	method, path, _ := strings.Cut(original, " ")
	r := prepared(httptest.NewRequestWithContext(tb.Context(), method, path, nil))
	caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, "192.0.2.7")
	if current != "" {
		r.Method, path, _ = strings.Cut(current, " ")
		forward(r, path)
	}
	return r
}

// TestFurther lists the targets that are judged beside the current one.
func TestFurther(t *testing.T) {
	http1 := surroundings{currentOnly: true}
	script := surroundings{currentOnly: true, splits: []string{".php"}}
	for _, tt := range []struct {
		name              string
		around            surroundings
		relax             access.Relax
		original, current string
		remainder         string
		want              string // "METHOD path", separated by spaces, or the status of a problem
	}{
		{"nothing", surroundings{}, 0, "GET /v1/x", "", "", ""},
		{"another query", surroundings{}, 0, "GET /v1/x?a", "GET /v1/x?b", "", ""},
		{"another spelling", surroundings{}, 0, "GET /v1/%78", "GET /v1/x", "", ""},
		{"a path", surroundings{}, 0, "GET /admin/x?y", "GET /index.html", "", "GET /admin/x"},
		{"a path, for HTTP alone", http1, 0, "GET /admin/x", "GET /index.html", "", ""},
		{"a method", surroundings{}, 0, "DELETE /x", "GET /x", "", "DELETE /x"},
		{"a method, for HTTP alone", http1, 0, "DELETE /x", "GET /x", "", ""},
		{"both", surroundings{}, 0, "DELETE /x", "GET /y", "", "GET /x DELETE /x DELETE /y"},
		{"a bad original", http1, 0, "GET /x//y", "GET /y", "", "400"},
		{"a bad method", http1, 0, "TRACE /x", "GET /x", "", "405"},

		{"PATH_INFO", surroundings{}, 0, "GET /index.php/admin/x", "", "", "GET /index.php GET /admin/x"},
		{"for HTTP alone", http1, 0, "GET /index.php/admin/x", "", "", ""},
		{"of a proven place", script, 0, "GET /index.php/admin/x", "", "", "GET /index.php GET /admin/x"},
		{"of the current alone", script, 0, "GET /index.php/admin/x", "GET /a.php/y", "", "GET /a.php GET /y"},
		{"of both", surroundings{}, 0, "POST /index.php/admin/x", "GET /a.php/y", "", "GET /a.php GET /y GET /index.php/admin/x GET /index.php GET /admin/x POST /index.php/admin/x POST /index.php POST /admin/x POST /a.php/y POST /a.php POST /y"},
		{"of another method", surroundings{}, 0, "POST /a.php/y", "GET /a.php/y", "", "GET /a.php GET /y POST /a.php/y POST /a.php POST /y"},
		{"without a slash", script, 0, "GET /index.phpadmin", "", "", "GET /index.php GET /admin"},
		{"only a slash", script, 0, "GET /index.php/", "", "", "GET /index.php GET /"},
		{"in capitals", script, 0, "GET /INDEX.pHp/x", "", "", "GET /INDEX.pHp GET /x"},
		{"the first of two", script, 0, "GET /a.php/b.php/c", "", "", "GET /a.php GET /b.php/c"},
		{"none behind", script, 0, "GET /a/index.php", "", "", ""},
		{"near the end", script, 0, "GET /ph", "", "", ""},
		{"in a directory", script, 0, "GET /.php/x", "", "", "GET /.php GET /x"},
		{"of php-fpm's own", surroundings{splits: []string{".html"}}, 0, "GET /a.php/b.html/c", "", "", "GET /a.php/b.html GET /c GET /a.php GET /b.html/c"},
		{"of an archive", script, 0, "GET /a.phar/b", "", "", "GET /a.phar GET /b"},
		{"an empty extension", surroundings{currentOnly: true, splits: []string{""}}, 0, "GET /a/b", "", "", ""},
		{"escaped", script, 0, "GET /index%2ephp/%61dmin/%C3%BC", "", "", "GET /index.php GET /admin/ü"},
		{"an escaped slash is one", script, access.EncodedSlash, "GET /index.php/admin%2Fx", "", "", "GET /index.php GET /admin/x"},
		{"even at its begin", script, access.EncodedSlash, "GET /index.php%2Fadmin/x", "", "", "GET /index.php GET /admin/x"},
		{"a percent sign", script, access.EncodedPercent, "GET /index.php/a%2541", "", "", "GET /index.php GET /a%41"},
		{"a semicolon", script, access.Semicolon, "GET /index.php/a;b", "", "", "GET /index.php GET /a;b"},
		{"a parameter in its place", script, access.Semicolon, "GET /index.php;b", "", "", "400"},
		{"a dot segment", script, access.TrailingDot, "GET /index.php../x", "", "", "400"},
		{"a space", script, 0, "GET /index.php%20x", "", "", "400"},
		{"of the original, not valid", surroundings{}, access.TrailingDot, "GET /index.php../x", "GET /y", "", "400"},
		{"of a matcher before", script, 0, "GET /index.php", "", "/admin/x", "GET /admin/x"},
		{"of a matcher before, not valid", script, 0, "GET /index.php", "", "/../x", "400"},
		{"of a matcher before, for HTTP alone", http1, 0, "GET /index.php", "", "/admin/x", ""},
	} {
		h := &Handler{around: tt.around, relax: tt.relax}
		r := rewritten(t, tt.original, tt.current)
		r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.matchers.file.remainder", tt.remainder)
		rq := request{r: r, vars: varsOf(r)}
		p := h.judge(&rq)
		var got []string
		for _, f := range rq.further {
			got = append(got, f.method, f.path)
			if a := f.of(rq.action); a.Method != f.method || a.Path != f.path || a.Host != rq.action.Host {
				t.Errorf("%s: the action is %v", tt.name, a)
			}
		}
		if !p.OK() {
			got = []string{map[int]string{400: "400", 405: "405"}[p.Status]}
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%s: got %q (%s), want %q", tt.name, got, p.Detail, tt.want)
		}
	}
}

// askRewritten is ask for a request that was rewritten; header holds "Name:
// value" lines. What comes behind the handler answers 204, or is next.
func (g *guard) askRewritten(who credentials, original, current string, next caddyhttp.HandlerFunc, header ...string) *httptest.ResponseRecorder {
	g.t.Helper()
	r := rewritten(g.t, original, current)
	if who.id != "" {
		r.SetBasicAuth(who.id, who.secret)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	if next == nil {
		next = func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(http.StatusNoContent); return nil }
	}
	w := httptest.NewRecorder()
	if err := g.h.ServeHTTP(w, r, next); err != nil {
		g.t.Error(err)
	}
	return w
}

// TestEveryTargetIsJudged has everything that decides look at all the targets.
func TestEveryTargetIsJudged(t *testing.T) {
	const index = "GET /v1/index.php"
	for _, tt := range []struct {
		name              string
		handler           Handler
		who               string // "none", "reader" or nobody
		original, current string
		want              int
	}{
		{"both allowed", Handler{}, "reader", "GET /v1/x", index, 204},
		{"HEAD", Handler{}, "reader", "HEAD /v1/x", "HEAD /v1/index.php", 204},
		{"no rule for the original", Handler{}, "reader", "GET /x", index, 403},
		{"no rule for the current", Handler{}, "reader", "GET /v1/x", "GET /index.php", 403},
		{"no rule for the method", Handler{}, "reader", "POST /v1/x", index, 403},
		{"the original is denied", Handler{}, "reader", "GET /denied", index, 403},
		{"PATH_INFO is denied", Handler{}, "reader", "GET /v1/a.php/denied", "", 403},
		{"no rule for PATH_INFO", Handler{}, "reader", "GET /v1/a.php/x", "", 403},
		{"the script is denied", Handler{around: surroundings{splits: []string{"ied"}}}, "reader", "GET /denied/v1/x", "GET /v1/x", 403},
		{"nobody", Handler{}, "", "GET /v1/x", index, 401},

		{"observed: no rule at all", Handler{Mode: "observe"}, "none", "GET /x", index, 204},
		{"observed: the original is denied", Handler{Mode: "observe"}, "none", "GET /denied", index, 403},
		{"observed: PATH_INFO is denied", Handler{Mode: "observe"}, "none", "GET /a.php/denied", "", 403},

		{"both public", Handler{Public: []string{index, "GET /open"}}, "", "GET /open", index, 204},
		{"the current is public", Handler{Public: []string{index}}, "", "GET /open", index, 401},
		{"the original is public", Handler{Public: []string{"GET /open"}}, "", "GET /open", index, 401},
		{"the method is not public", Handler{Public: []string{index, "GET /open"}}, "", "POST /open", index, 401},
		{"PATH_INFO is not public", Handler{Public: []string{"GET /open/{rest...}"}}, "", "GET /open/a.php/x", "", 401},
		{"public, for HTTP alone", Handler{Public: []string{index}, around: surroundings{currentOnly: true}}, "", "GET /open", index, 204},

		{"otherwise pass", Handler{Otherwise: "pass"}, "", "GET /denied", index, 204},
		{"ready", Handler{Ready: "/ready"}, "", "GET /denied", "GET /ready", 200},
		{"self", Handler{Self: &Self{Path: "/self"}}, "reader", "GET /denied", "GET /self", 200},
	} {
		g := newGuard(t, tt.handler)
		who := map[string]credentials{"none": g.none, "reader": g.reader}[tt.who]
		if w := g.askRewritten(who, tt.original, tt.current, nil); w.Code != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, w.Code, tt.want)
		}
	}
}

// The log and the explanation of a refusal name the target that was refused.
func TestRefusedTargetIsTold(t *testing.T) {
	g := newGuard(t, Handler{})
	for original, want := range map[string]access.Recalled{
		"GET /denied":    {Action: access.Action{Method: "GET", Path: "/denied"}, Reason: access.DeniedByRule},
		"POST /v1/x":     {Action: access.Action{Method: "POST", Path: "/v1/x"}, Reason: access.NoRule},
		"GET /a.php/b/c": {Action: access.Action{Method: "GET", Path: "/a.php/b/c"}, Reason: access.NoRule},
	} {
		g.log.TakeAll()
		w := g.askRewritten(g.reader, original, "GET /v1/index", nil)
		got, _ := g.h.shared.live.Load().recall.Decision(w.Header().Get(DecisionHeader))
		if got.Action.Method != want.Action.Method || got.Action.Path != want.Action.Path || got.Reason != want.Reason {
			t.Errorf("%s: explained as %s %s: %s", original, got.Action.Method, got.Action.Path, got.Reason)
		}
		lines := g.log.FilterMessage("not allowed").All()
		if len(lines) != 1 || lines[0].ContextMap()["path"] != want.Action.Path || lines[0].ContextMap()["method"] != want.Action.Method {
			t.Errorf("%s: logged %v", original, lines)
		}
	}
}

// Observing counts each target for which a rule is missing, but not where the
// request is refused for another one.
func TestObserveEveryTarget(t *testing.T) {
	counted := func(g *guard) (list []string) {
		observed, _ := g.h.shared.live.Load().recall.Observed()
		for _, o := range observed {
			list = append(list, string(o.Effect)+" "+o.Method+" "+o.Path)
		}
		return list
	}
	g := newGuard(t, Handler{Mode: "observe"})
	g.askRewritten(g.none, "GET /denied", "GET /index.php", nil)
	g.askRewritten(g.reader, "GET /v1/x", "GET /v1/index.php", nil)
	if got := counted(g); len(got) != 0 {
		t.Errorf("counted %q, want nothing", got)
	}
	g.askRewritten(g.reader, "POST /v1/x", "GET /index.php", nil)
	if got, want := strings.Join(counted(g), ", "), "deny GET /index.php, deny POST /index.php, deny POST /v1/x"; got != want {
		t.Errorf("counted %s, want %s", got, want)
	}

	g = newGuard(t, Handler{})
	must(g.h.shared.live.Load().store.CreateGroup(t.Context(), store.Local, store.Group{
		Name: "trial", Mode: access.Observe, MemberCondition: "true", Rules: []access.Rule{must(access.ParseRule("deny * /v1/admin/{rest...}"))},
	}))
	if w := g.askRewritten(g.reader, "GET /v1/admin/x", "GET /v1/index.php", nil); w.Code != 204 {
		t.Errorf("a deny that only observes: got %d", w.Code)
	}
	if got, want := strings.Join(counted(g), ", "), "deny GET /v1/admin/x"; got != want {
		t.Errorf("counted %s, want %s", got, want)
	}
}

// A stream is cut when one of its targets is not allowed any more.
func TestStreamOfEveryTarget(t *testing.T) {
	for _, tt := range []struct {
		mode, deny string
		cut        bool
	}{
		{"enforce", "deny * /v1/original", true}, {"enforce", "deny * /v1/info", true}, {"enforce", "deny * /v1/a.php", true},
		{"enforce", "deny * /v1/other", false}, {"observe", "deny * /v1/info", true},
	} {
		g := newGuard(t, Handler{Mode: tt.mode})
		open := g.h.shared.live.Load()
		var cause error
		func() {
			defer func() {
				if p := recover(); p != nil && p != http.ErrAbortHandler { // which ends a stream that is cut
					panic(p)
				}
			}()
			g.askRewritten(g.reader, "GET /v1/original", "GET /v1/a.php/v1/info", func(w http.ResponseWriter, r *http.Request) error {
				must(open.store.CreateGroup(t.Context(), store.Local, store.Group{
					Name: "late", Mode: access.Enforce, MemberCondition: "true", Rules: []access.Rule{must(access.ParseRule(tt.deny))},
				}))
				open.streams.judgeAll()
				cause = context.Cause(r.Context())
				return nil
			}, "Connection: Upgrade", "Upgrade: websocket")
		}()
		if (cause == errCut) != tt.cut {
			t.Errorf("%s, %s: cut by %v; want cut %t", tt.mode, tt.deny, cause, tt.cut)
		}
	}
}

// An HTTP upstream gets the current target alone, and rules for that are enough,
// unless a header hands on the original one.
func TestOriginalTargetForHTTP(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, `{
	service_users {
		store {$SERVICE_USERS_STORE}
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	handle_path /api/* {
		service_users
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
	}
	handle_path /both/* {
		service_users
		reverse_proxy 127.0.0.1:{$UPSTREAM_PORT} {
			header_up X-Url {http.request.orig_uri}
		}
	}
}
`)
	s.mustCLI("group", "create", "people", "--rule", "allow GET /v1/{rest...}", "--rule", "deny * /api/{rest...}", "--rule", "deny * /both/admin")
	user := s.create("clerk", "--group", "people")
	ours := "Authorization: " + basic(user.id, user.secret)
	s.try(t, up, []attempt{
		{name: "only the current target", path: "/api/v1/x", header: ours, status: 200, passes: true, has: "GET /v1/x HTTP/1.1"},
		{name: "no script", path: "/api/v1/a.php/x", header: ours, status: 200, passes: true, has: "GET /v1/a.php/x HTTP/1.1"},
		{name: "no rule for the current target", path: "/api/x", header: ours, status: 403},
		{name: "no rule for the original target", path: "/both/v1/x", header: ours, status: 403},
	})
}
