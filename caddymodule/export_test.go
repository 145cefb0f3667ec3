package caddymodule

import (
	"os"
	"time"
)

// SERVICE_USERS_TEST_DRAIN is another drain for a process of a test.
func init() {
	if d, err := time.ParseDuration(os.Getenv("SERVICE_USERS_TEST_DRAIN")); err == nil {
		drain = d
	}
}
