package caddymodule

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// A handler does not see its neighbours. What depends on them is checked here,
// by walking the routes of the http app when a configuration starts.

// checkRoutes refuses routes in which one of our handlers cannot keep its
// promises.
func checkRoutes(app *caddyhttp.App) error {
	for name, server := range app.Servers {
		lists := []caddyhttp.RouteList{server.Routes}
		if server.Errors != nil {
			lists = append(lists, server.Errors.Routes)
		}
		for _, route := range server.NamedRoutes {
			lists = append(lists, caddyhttp.RouteList{*route})
		}
		for _, list := range lists {
			if err := checkActorHeaders(list); err != nil {
				return fmt.Errorf("server %s: %w", name, err)
			}
		}
	}
	return nil
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
