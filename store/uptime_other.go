//go:build !linux

package store

import "time"

// uptime is unknown here.
var uptime = func() (boot string, since time.Duration) { return "", 0 }
