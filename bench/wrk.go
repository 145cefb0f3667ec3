//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// script is the script of wrk: it sends the requests of a file, one after the other.
const script = `
local requests, n, i = {}, 0, 0
function init(args)
	local file = assert(io.open(args[1], "rb"))
	for request in file:read("*a"):gmatch("[^%z]+") do
		n = n + 1
		requests[n] = request
	end
	file:close()
end
function request()
	i = i % n + 1
	return requests[i]
end
`

// answers are the figures of a slice.
type answers struct {
	requests float64
	rate     float64       // a second
	p50, p99 time.Duration // of the latency
	refused  float64       // answers that are neither 2xx nor 3xx
	broken   float64       // not answered: failed connections and timeouts
}

// drive sends the requests of a subject, as many at a time as asked for: by wrk, or in another
// protocol by this program.
func (b *bench) drive(ctx context.Context, t *subject, atOnce int, slice time.Duration) (answers, time.Duration, error) {
	args := []string{"wrk", "--threads", "1", "--connections", strconv.Itoa(atOnce),
		"--duration", fmt.Sprintf("%ds", int(slice/time.Second)), "--timeout", "30s", "--latency",
		"--script", filepath.Join(b.dir, "requests.lua"), "http://" + t.address + "/", "--", t.requests}
	read := parseWrk
	if t.protocol != "" {
		args = []string{b.self, "role", "load", t.protocol, t.address, t.requests, strconv.Itoa(atOnce), slice.String()}
		read = parseLoad
	}
	args = b.pinned(b.cpus.load, args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for us to pass on
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return answers{}, 0, ctx.Err()
	}
	if err != nil {
		return answers{}, 0, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	a, err := read(string(out))
	return a, cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime(), err
}

var (
	wrkRequests = regexp.MustCompile(`(?m)^\s*(\d+) requests in `)
	wrkRate     = regexp.MustCompile(`(?m)^Requests/sec:\s*([\d.]+)$`)
	wrkLatency  = regexp.MustCompile(`(?m)^\s*(50|99)%\s+([\d.]+)(us|ms|s|m|h)\s*$`)
	wrkRefused  = regexp.MustCompile(`(?m)^\s*Non-2xx or 3xx responses: (\d+)$`)
	wrkErrors   = regexp.MustCompile(`(?m)^\s*Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)$`)
)

// parseWrk parses the output of "wrk --latency".
func parseWrk(text string) (a answers, err error) {
	number := func(pattern *regexp.Regexp) (sum float64, found bool) {
		match := pattern.FindStringSubmatch(text)
		if match == nil {
			return 0, false
		}
		for _, digits := range match[1:] {
			n, _ := strconv.ParseFloat(digits, 64) // the pattern lets nothing else through
			sum += n
		}
		return sum, true
	}
	var counted, rated bool
	a.requests, counted = number(wrkRequests)
	a.rate, rated = number(wrkRate)
	if !counted || !rated {
		return a, errors.New("wrk has not printed its figures:\n" + text)
	}
	a.refused, _ = number(wrkRefused)
	a.broken, _ = number(wrkErrors)
	for _, match := range wrkLatency.FindAllStringSubmatch(text, -1) {
		d, err := time.ParseDuration(match[2] + match[3])
		if err != nil {
			return a, fmt.Errorf("the latency of wrk: %w", err)
		}
		if match[1] == "50" {
			a.p50 = d
		} else {
			a.p99 = d
		}
	}
	return a, nil
}
