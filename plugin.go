// Package serviceusers registers the Caddy modules and the command of
// caddy-service-users.
//
// "xcaddy build --with MODULE" imports the root of a module, so this file imports the
// packages that register something. Read caddymodule next.
package serviceusers

import (
	_ "github.com/serviceusers/caddy-service-users/caddymodule"
	_ "github.com/serviceusers/caddy-service-users/cli"
)
