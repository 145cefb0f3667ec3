package caddymodule

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"
)

// proxy follows a handler that is a reverse_proxy, or a service_users_proxy with its own: one that ends at
// an upstream, or a forward_auth, which asks an authenticator and goes on.
func (w *serverWalk) proxy(handler caddyhttp.MiddlewareHandler, h *reverseproxy.Handler, in flow) flow {
	out := w.responses(h.HandleResponse, in)
	out.certain = out.reached && in.certain
	out.owned, out.removed, out.set = out.removed&out.set, 0, 0
	text := configuration(handler)
	w.checkReader(handler, text, &out, in)
	if out.reached && h.Rewrite != nil && h.Rewrite.Method != "" && h.Rewrite.URI != "" {
		out.waiting, out.basicless = false, false
		return out // a forward_auth: its upstream gets a request about the request
	}
	c := candidate{site: w.site(), proxy: strings.TrimPrefix(moduleID(handler), "http.handlers.")}
	for i, upstream := range h.Upstreams {
		address := localAddress(upstream.Dial)
		if i == 0 && upstream.Dial != "" {
			c.proxy += " " + upstream.Dial
		}
		if address != "" && in.judged {
			w.upstreams[address] = true
		}
		c.addresses = append(c.addresses, address)
	}
	if in.unstripped {
		if w.inErrors {
			c.Finding = w.finding(true, "this error route leads to %s, and nothing removes "+
				"forged identity headers and credentials on the way; put \"service_users "+
				"sanitize\" before it", c.proxy)
			w.errorPaths = append(w.errorPaths, c)
		} else {
			sanitize := `or else "service_users sanitize"`
			if in.authenticated {
				sanitize = "or else, in a route block, \"service_users sanitize\" between the " +
					"authentication, which needs Authorization, and the proxy"
			}
			c.Finding = w.finding(false, "requests get to %s without passing service_users: "+
				"unchecked, with whatever identity headers the client sends; put "+
				"service_users before it, with \"public\" rules for paths that need no "+
				"credential, %s", c.proxy, sanitize)
			w.proxied = append(w.proxied, c)
		}
	}
	w.reportWaiting(c.proxy, in)
	transport := moduleID(h.Transport)
	if in.judged && in.rewrite != 0 {
		by := w.rewrites[in.rewrite-1]
		if !by.tryFiles || transport != "http.reverse_proxy.transport.fastcgi" {
			w.report(by.Finding)
		}
	}
	if h.Rewrite != nil && in.judged {
		if change := rewriteText(h.Rewrite); change != "" {
			w.addFinding(false, "%s has a %q of its own: it forwards another request than "+
				"service_users has judged; rewrite in front of service_users instead", c.proxy, change)
		}
	}
	if h.Headers != nil {
		w.checkHeaders("header_up of "+c.proxy, h.Headers.Request, in)
	}
	if in.guard != 0 {
		if t, ok := h.Transport.(*fastcgi.Transport); ok {
			w.keepOriginal(in.guard)
			w.split(in.guard, t.SplitPath)
		} else if transport != "http.reverse_proxy.transport.http" {
			w.unknownUpstream(configuration(h.Transport), in)
		}
		if namesOriginal(text) {
			w.keepOriginal(in.guard)
		}
	}
	return out
}

// namesOriginal reports whether a configuration names the original target, or a part of the target
// that a matcher has captured.
func namesOriginal(text string) bool {
	return strings.Contains(text, "{http.request.orig_") || strings.Contains(text, "{http.regexp.")
}

// reportWaiting reports a handler that serves requests which "otherwise pass" has let through,
// where no other authenticator certainly runs before the handler.
func (w *serverWalk) reportWaiting(what string, in flow) {
	if in.waiting {
		w.addFinding(false, "requests without credentials get to %s: \"otherwise pass\" hands them "+
			"on, and no other authenticator certainly runs before it; put one behind "+
			"service_users, with the matcher \"not service_user\"", what)
	}
}

// unknownUpstream records that a module behind a guard may use the original target, and that it may
// split the path, if its configuration says so.
func (w *serverWalk) unknownUpstream(text string, in flow) {
	w.keepOriginal(in.guard)
	var php struct {
		SplitPath []string `json:"split_path"`
	}
	if _ = json.Unmarshal([]byte(text), &php); php.SplitPath != nil { // FrankenPHP's php_server, for one
		w.split(in.guard, php.SplitPath)
	}
}

// localAddress returns the address of an upstream in one spelling. It returns "" for an address
// that depends on the request.
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

// sharedUpstreams returns findings about sites without service_users that lead to an upstream of a
// site with it.
func (o *ourHandlers) sharedUpstreams() (list []Finding) {
	for _, c := range o.unguarded {
		if slices.ContainsFunc(c.addresses, func(address string) bool { return o.upstreams[address] }) {
			c.Message = fmt.Sprintf("%s is guarded by service_users on another site and open on "+
				"this one, where clients can send any identity header; put service_users "+
				"before it here too, or \"service_users sanitize\"", c.proxy)
			list = append(list, c.Finding)
		}
	}
	return list
}
