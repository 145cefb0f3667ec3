package store

import (
	"os"
	"strings"
	"sync"
	"time"

	sys "golang.org/x/sys/unix"
)

var bootID = sync.OnceValue(func() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
})

// uptime returns an id of the machine's start, and the time since then, which goes on while the machine
// sleeps. Without an id the time is unknown. It is a variable for tests.
var uptime = func() (boot string, since time.Duration) {
	var t sys.Timespec
	if err := sys.ClockGettime(sys.CLOCK_BOOTTIME, &t); err != nil {
		return "", 0
	}
	return bootID(), time.Duration(t.Nano())
}
