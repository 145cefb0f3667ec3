package caddymodule

import (
	"encoding/json"
	"fmt"
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
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/tracing"
)

// currentTarget lists the handlers that neither forward nor use the original target of a request,
// unless their configuration names it.
var currentTarget = map[string]bool{
	"authentication": true, "copy_response": true, "copy_response_headers": true, "encode": true, "error": true,
	"file_server": true, "headers": true, "intercept": true, "log_append": true, "map": true,
	"request_body": true, "rewrite": true, "static_response": true, "timeouts": true, "tracing": true, "vars": true,
}

// neighbour follows any other handler: neither ours nor a proxy, and without routes that go on.
func (w *serverWalk) neighbour(handler caddyhttp.MiddlewareHandler, in flow) flow {
	out := in
	name := strings.TrimPrefix(moduleID(handler), "http.handlers.")
	text := configuration(handler)
	w.checkReader(handler, text, &out, in)
	if in.guard != 0 && (!currentTarget[name] || namesOriginal(text)) {
		w.unknownUpstream(text, in)
	}
	switch h := handler.(type) {
	case *encode.Encode, *logging.LogAppend, *tracing.Tracing:
		return out // between an authenticator and its door, these handlers change nothing
	case *headers.Handler:
		w.checkHeaders("a headers handler (request_header, copy_headers)", h.Request, in)
		if w.inResponse > 0 {
			w.trackActors(h.Request, &out)
		}
		if w.leavesActors(h.Request) {
			return out
		}
	case *rewrite.Rewrite:
		w.rewrite(h, &out)
		_, query, _ := strings.Cut(h.URI, "?")
		query += configuration(h.Query)
		out.carriesTarget = out.carriesTarget || in.unjudged && (namesOriginal(query) ||
			strings.Contains(query, "{http.request.uri}") ||
			strings.Contains(query, "{http.request.uri.path"))
	case *caddyhttp.VarsMiddleware, *intercept.Intercept:
	case *caddyauth.Authentication:
		w.basicAuth(h, in)
		out.authenticated, out.waiting, out.basicless = true, false, false
	case *caddyhttp.StaticResponse:
		if h.StatusCode.String() != "103" { // Early Hints, after which the request goes on
			return flow{}
		}
	case *caddyhttp.StaticError, *reverseproxy.CopyResponseHandler:
		return flow{}
	case *fileserver.FileServer:
		w.reportWaiting("file_server", in)
		if !h.PassThru {
			return flow{}
		}
	default:
		out.removed, out.set = 0, 0
		if strings.Contains(name, "cache") || strings.Contains(name, "souin") {
			w.cache(name, text, &out)
		}
	}
	out.owned = 0 // this handler may have changed the request
	if strings.Contains(text, `"routes":`) || strings.Contains(text, `"handle_response":`) {
		out.nested = out.reached
	}
	return out
}

// examplePassword is the hash of the password that Caddyfile.example uses by default.
const examplePassword = "$2a$10$bO2qzp6r5wqCRqinxDhyt.cuMJObX2Caqgf/zhsbAaudJzfwRL2N2"

// basicAuth reports a basic_auth that never sees credentials, and people who log in with the
// password of Caddyfile.example.
func (w *serverWalk) basicAuth(h *caddyauth.Authentication, in flow) {
	if basic, ok := h.Providers["http_basic"].(*caddyauth.HTTPBasicAuth); ok {
		for _, account := range basic.Accounts {
			if account.Password == examplePassword {
				w.examples = append(w.examples, Finding{load: true, Message: fmt.Sprintf("people "+
					"log in as %q with the password of Caddyfile.example, which "+
					"everybody knows; put the output of \"caddy hash-password\" in the place of its hash "+
					"(Caddyfile.example reads that from ADMIN_PASSWORD_HASH) before anybody else reaches this site",
					account.Username)})
			}
		}
	}
	switch {
	case h.Providers["http_basic"] == nil:
	case in.identified:
		who := "nobody in"
		if in.waiting {
			who = "no service user in"
		}
		w.addFinding(false, "basic_auth behind service_users lets %s: service_users has removed "+
			"Authorization; remove basic_auth, or let people and service users in side by side "+
			"with \"otherwise pass unknown\" and \"basic_auth @people\", where @people is \"not "+
			"service_user\"", who)
	case in.basicless:
		w.addFinding(false, "basic_auth behind service_users with \"otherwise pass\" gets no Basic "+
			"login in mode enforce, since service_users takes them all; write \"otherwise pass "+
			"unknown\"")
	case in.stripped:
		w.addFinding(false, "basic_auth behind \"service_users sanitize\" lets nobody in: "+
			"Authorization has been removed; put \"service_users sanitize\" behind it, in a "+
			"route block")
	}
}

// reader is a finding about a handler that reads the identity of service users before the guard
// sets it.
type reader struct {
	Finding
	before int // the reader before it on the same way: a number of serverWalk.readers from 1; 0 without one
}

// checkReader records a handler that reads the identity of service users where the guard has not
// run yet, and a handler that keeps the client's target for later.
func (w *serverWalk) checkReader(handler any, text string, out *flow, in flow) {
	if !out.reached || !in.unjudged {
		return
	}
	switch handler.(type) {
	case *rewrite.Rewrite, *caddyhttp.StaticResponse, *caddyhttp.StaticError, *logging.LogAppend, *tracing.Tracing,
		*reverseproxy.Handler:
	default:
		out.carriesTarget = out.carriesTarget || strings.Contains(text, "{http.request.uri") ||
			namesOriginal(text)
	}
	if w.namesIdentity(handler, text) {
		directive := strings.TrimPrefix(moduleID(handler), "http.handlers.")
		switch directive {
		case "headers":
			if directive = "header"; handler.(*headers.Handler).Request != nil {
				directive = "request_header"
			}
		case "static_response":
			directive = "respond"
		case "authentication":
			directive = "basic_auth"
		}
		// reportReaders reports it, once a guard comes behind.
		f := w.finding(true, "%s names the identity of service users and runs before service_users, "+
			"which sets it: everybody looks the same there, or as a client likes; move it "+
			"behind, by a route block or by the global option \"order %[1]s after service_users\"",
			directive)
		w.readers = append(w.readers, reader{f, in.reader})
		out.reader = len(w.readers)
	}
}

// reportReaders reports a reader, by its number, and those before it.
func (w *serverWalk) reportReaders(n int) {
	for n != 0 && !w.seen[w.readers[n-1].Finding] {
		f := w.readers[n-1].Finding
		n = w.readers[n-1].before
		defer w.report(f) // in the order of the routes
	}
}

// namesIdentity reports whether the configuration of a handler names our placeholders or headers in
// a way that takes effect before the next handler runs.
func (w *serverWalk) namesIdentity(handler any, text string) bool {
	switch h := handler.(type) {
	case *maphandler.Handler, *tracing.Tracing, *intercept.Intercept:
		return false // they evaluate placeholders later: on use, or after the answer
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
			return strings.Contains(lower, strings.ToLower(prefix)) ||
				strings.Contains(folded, "httprequestheader"+foldName(prefix))
		})
}

// withoutLate removes the header operations that are harmless before the guard: deletions, and
// operations on the answer that wait for the answer.
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

// rewriting is a finding about a change of the method or the path behind a guard.
type rewriting struct {
	Finding
	tryFiles bool // the change only chooses the file of a PHP program
}

// certainty orders rewrites by their number: 0 without one, 1 a rewrite that may happen, 2 a rewrite
// that certainly happens.
func (w *serverWalk) certainty(n int) int {
	if n > 0 && w.rewrites[n-1].Fatal {
		return 2
	}
	return min(n, 1)
}

// rewrite follows a handler that changes the method or the path. Of several rewrites, a certain one
// is kept, else the first.
func (w *serverWalk) rewrite(h *rewrite.Rewrite, out *flow) {
	text := rewriteText(h)
	if text == "" || !out.judged || w.certainty(out.rewrite) == 2 || out.rewrite != 0 && !out.certain {
		return
	}
	requests := "requests"
	if out.certain {
		requests = "every request"
	}
	f := w.finding(out.certain, "%q changes %s after service_users has judged it: its rules see another "+
		"method or path than the upstream; put service_users behind it", text, requests)
	w.rewrites = append(w.rewrites, rewriting{f, h.URI == "{http.matchers.file.relative}"})
	out.rewrite = len(w.rewrites)
}

// rewriteText describes the change that a rewrite makes to the method and the path. It returns ""
// for a change of the query alone, which rules do not see.
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

func moduleID(v any) string {
	if m, ok := v.(caddy.Module); ok {
		return string(m.CaddyModule().ID)
	}
	return ""
}

// configuration returns a provisioned module as JSON. The JSON may lack nested modules.
// configuration returns "" for a module without a JSON form.
func configuration(module any) string {
	text, err := json.Marshal(module)
	if err != nil {
		return ""
	}
	return string(text)
}
