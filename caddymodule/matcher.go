package caddymodule

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(MatchServiceUser{})
}

// MatchServiceUser matches requests that a service_users handler has let through as a service user.
// Behind "otherwise pass", the requests that another authenticator has to check are "not
// service_user". Before the handler, the matcher matches nothing.
type MatchServiceUser struct{}

// CaddyModule describes the module to Caddy.
func (MatchServiceUser) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.matchers.service_user",
		New: func() caddy.Module { return new(MatchServiceUser) },
	}
}

// UnmarshalCaddyfile reads the matcher:
//
//	service_user
func (*MatchServiceUser) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	for d.Next() {
		if d.NextArg() || d.NextBlock(0) {
			return d.Errf("the matcher service_user takes no argument and no block (got %q): "+
				"it matches every service user; rules decide about the rights of each", d.Val())
		}
	}
	return nil
}

// MatchWithError reports whether a request was let through as a service user.
// The error is always nil.
func (*MatchServiceUser) MatchWithError(r *http.Request) (bool, error) {
	return varsOf(r).identity() != nil, nil
}

// Interface guards
var (
	_ caddyhttp.RequestMatcherWithError = (*MatchServiceUser)(nil)
	_ caddyfile.Unmarshaler             = (*MatchServiceUser)(nil)
)
