package caddymodule

import "time"

// No test waits for as long as a request may be under way unwatched.
func init() { watchAfter = 500 * time.Millisecond }
