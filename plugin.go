// Package serviceusers registers the Caddy modules of caddy-service-users.
//
// It holds no code of its own: "xcaddy build --with MODULE" imports the root
// of a module, so this file imports the plugin. Read caddymodule next.
package serviceusers

import _ "github.com/serviceusers/caddy-service-users/caddymodule"
