// Command caddy is Caddy with its standard modules and this plugin, as releases have it. To add further plugins, build Caddy
// with xcaddy.
package main

import (
	_ "time/tzdata" // conditions may name time zones, and an image may have none

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/serviceusers/caddy-service-users"
)

func main() { caddycmd.Main() }
