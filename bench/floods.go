//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// floods measures the answers to good callers while others guess. Each turn has a
// server of its own, since a flood may keep one busy for long afterwards.
func (b *bench) floods(ctx context.Context) error {
	s := b.section("flood", "Good callers (4 connections) while 32 connections send wrong secrets")
	s.connections = 4
	if !b.quick {
		s.slice = max(s.slice, 2*time.Second)
	}
	s.rounds = max(1, b.rounds/3)

	users, err := b.stock(ctx, 10_000)
	if err != nil {
		return err
	}
	plugin := func(throttle string) func(*subject) error {
		return b.site(nil, storeOption(users, throttle), guarded(""), users)
	}
	cached := func(t *subject) error { return b.serveBasicAuth(ctx, t, 1, 14, true) }
	const bounded, unbounded = ", 10 000 guesses/s", ", as many as are answered"
	s.add("plugin"+bounded, "", 200, plugin(""))
	s.add("plugin"+unbounded, "", 200, plugin(""))
	if !b.quick {
		s.add("plugin, `throttle off`"+bounded, "", 200, plugin("throttle off"))
		s.add("plugin, `throttle off`"+unbounded, "", 200, plugin("throttle off"))
	}
	s.add("`basic_auth` with hash_cache, 1 account, bcrypt 14"+bounded, "", 200, cached)
	s.choose()

	guesses := make(map[*subject]string)
	for _, t := range s.subjects {
		b.started++
		guesses[t] = filepath.Join(b.dir, fmt.Sprintf("%d.guesses", b.started))
		if err := os.WriteFile(guesses[t], []byte(strings.Join(wrong(t, users), "\x00")), 0o600); err != nil {
			return err
		}
	}
	for turn := range s.rounds {
		for i := range s.subjects {
			t := s.subjects[(turn+i)%len(s.subjects)]
			fmt.Fprintf(os.Stderr, "%s, turn %d of %d: %s\n", s.name, turn+1, s.rounds, t.name)
			rate := 0
			if strings.HasSuffix(t.name, bounded) {
				rate = 10_000
			}
			if err := s.flood(ctx, t, guesses[t], rate); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	if len(s.subjects) == 0 {
		return nil
	}
	fmt.Printf("\n## %s\n\n", s.title)
	fmt.Printf("Slices of %s, %d turns. The generator of the flood shares a processor with the upstream, and of two processors also with wrk. Log lines are those of the flood, per 100 000 guesses.\n\n", s.slice, s.rounds)
	fmt.Println("| subject | alone: req/s | p50 ms | p99 ms | under the flood: req/s | of alone | p50 ms | p99 ms | guesses answered/s | log lines |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|")
	for _, t := range s.subjects {
		q := spread(ratios(t.turns["rate"], t.turns["rate alone"]))
		fmt.Printf("| %s | %s | %s | %s | %s | %s (%s–%s) | %s | %s | %s | %s |\n", t.name, t.median("rate alone"), t.median("p50 alone"), t.median("p99 alone"),
			t.median("rate"), digits(q.median), digits(q.low), digits(q.high), t.median("p50"), t.median("p99"), t.median("guesses"), t.median("lines"))
	}
	return nil
}

// wrong returns guesses: a wrong secret, each time another one, for accounts
// that there are.
func wrong(t *subject, users *stock) (calls []string) {
	for i, l := range users.logins {
		id, secret := l.id, access.NewSecret()
		if strings.Contains(t.name, "basic_auth") {
			id, secret = "user-0", "wrong-"+strconv.Itoa(i)
		}
		calls = append(calls, request(l.path, basic(id, secret)))
	}
	return calls
}

// flood is one turn of a subject.
func (s *section) flood(ctx context.Context, t *subject, guesses string, rate int) error {
	before := slices.Clone(s.b.running)
	defer func() {
		s.b.stop(slices.DeleteFunc(slices.Clone(s.b.running), func(p *process) bool { return slices.Contains(before, p) })...)
	}()
	if err := s.prepare(ctx, t); err != nil {
		return err
	}
	defer os.Remove(t.requests)
	if _, err := s.measure(ctx, t); err != nil {
		return err
	}
	last := len(t.turns["rate"]) - 1
	for _, name := range []string{"rate", "p50", "p99"} {
		t.turns[name+" alone"] = append(t.turns[name+" alone"], t.turns[name][last])
	}
	for name := range t.turns { // the figures that measure has recorded belong to the flood
		if !strings.HasSuffix(name, " alone") && name != "guesses" {
			t.turns[name] = t.turns[name][:last]
		}
	}

	lasts := s.slice + time.Second
	args := s.b.pinned(s.b.cpus.upstream, s.b.self, "role", "flood", t.address, guesses, "32", strconv.Itoa(rate), lasts.String())
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for us to pass on
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	lines := t.process.lines()
	if err := cmd.Start(); err != nil {
		return err
	}
	time.Sleep(lasts/2 - s.slice/2) // the flood rises before the slice and ends after it
	a, _, err := s.b.drive(ctx, t, s.connections, s.slice)
	if ended := cmd.Wait(); err == nil {
		err = ended
	}
	if err != nil {
		return err
	}
	answered, err := strconv.ParseFloat(strings.TrimSpace(out.String()), 64)
	if err != nil {
		return fmt.Errorf("the flood: %w", err)
	}
	t.wrong += a.broken + a.refused
	for name, figure := range map[string]float64{
		"rate": a.rate, "p50": a.p50.Seconds() * 1e3, "p99": a.p99.Seconds() * 1e3,
		"guesses": answered / lasts.Seconds(), "lines": (t.process.lines() - lines) * 1e5 / max(1, answered),
	} {
		t.turns[name] = append(t.turns[name], figure)
	}
	return nil
}
