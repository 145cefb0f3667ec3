//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// section is a list of subjects that are compared with each other, turn by turn.
type section struct {
	b           *bench
	name, title string
	note        string
	subjects    []*subject
	connections int
	slice       time.Duration
	rounds      int
	last        column // of the table
}

// column is one that not every section has.
type column struct {
	title string
	of    func(*subject) string
}

// subject is a server under a certain load.
type subject struct {
	name    string
	against string // the subject that it is compared with
	status  int    // of every answer
	start   func(*subject) error
	sees    string // the upstream gets this with every request
	guards  bool   // answers otherwise if a request has no credential

	process  *process
	beside   *process // works for it: counts as a part of it
	protocol string   // "": HTTP/1.1 without TLS
	address  string
	calls    []string
	warm     bool // every call has to be made once before
	requests string

	turns map[string][]float64 // the figures of each turn, by name
	wrong float64              // answers that are not the expected ones
}

func (b *bench) section(name, title string) *section {
	s := &section{b: b, name: name, title: title, connections: 32, slice: b.slice, rounds: b.rounds}
	b.sections = append(b.sections, s)
	return s
}

// add adds a subject. start starts it and calls [subject.serve].
func (s *section) add(name, against string, status int, start func(*subject) error) *subject {
	t := &subject{name: name, against: against, status: status, start: start, turns: make(map[string][]float64)}
	s.subjects = append(s.subjects, t)
	return t
}

// checks says that the subject checks credentials, and sends something of the caller upstream.
func (t *subject) checks(sees string) { t.sees, t.guards = sees, true }

// serve says which process answers which requests at which address.
func (t *subject) serve(p *process, address string, calls []string) {
	t.process, t.address, t.calls = p, address, calls
}

func (s *section) find(name string) *subject {
	i := slices.IndexFunc(s.subjects, func(t *subject) bool { return t.name == name })
	if i < 0 {
		return nil
	}
	return s.subjects[i]
}

// choose keeps the subjects that the command line names, and the subjects of their comparisons.
func (s *section) choose() {
	wanted := make(map[string]bool)
	for _, t := range s.subjects {
		if s.b.only.MatchString(s.name + "/" + t.name) {
			for ; t != nil && !wanted[t.name]; t = s.find(t.against) {
				wanted[t.name] = true
			}
		}
	}
	s.subjects = slices.DeleteFunc(s.subjects, func(t *subject) bool { return !wanted[t.name] })
}

// run measures the section and prints its table.
func (s *section) run(ctx context.Context) error {
	s.choose()
	if len(s.subjects) == 0 {
		return nil
	}
	before := slices.Clone(s.b.running)
	defer func() {
		s.b.stop(slices.DeleteFunc(slices.Clone(s.b.running), func(p *process) bool { return slices.Contains(before, p) })...)
	}()
	for _, t := range slices.Clone(s.subjects) {
		err := s.prepare(ctx, t)
		var without *missing
		if errors.As(err, &without) {
			fmt.Fprintln(os.Stderr, err)
			s.subjects = slices.DeleteFunc(s.subjects, func(other *subject) bool { return other == t })
			if reason, _, _ := strings.Cut(err.Error(), "\n"); !strings.Contains(s.note, reason) {
				s.note += " Missing is " + reason + "."
			}
		} else if err != nil {
			return err
		}
	}
	var foreign []float64
	for turn := range s.rounds {
		order := slices.Clone(s.subjects)
		shift := turn % len(order)
		order = append(order[shift:], order[:shift]...)
		if turn%2 == 1 {
			slices.Reverse(order)
		}
		for _, t := range order {
			fmt.Fprintf(os.Stderr, "%s, turn %d of %d: %s\n", s.name, turn+1, s.rounds, t.name)
			share, err := s.measure(ctx, t)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			foreign = append(foreign, share)
		}
	}
	s.print(spread(foreign))
	return nil
}

// missing is why a program cannot be had. Its subjects are left out.
type missing struct{ error }

// prepare starts a subject and waits until it answers as it should.
func (s *section) prepare(ctx context.Context, t *subject) error {
	if err := t.start(t); err != nil {
		return err
	}
	if err := t.process.await(ctx, t.protocol, t.address, t.calls[0], t.status); err != nil {
		return err
	}
	if t.sees != "" {
		target, rest, _ := strings.Cut(t.calls[0], " HTTP/1.1\r\n")
		target, _, _ = strings.Cut(target, "?")
		if status, head, err := ask(t.protocol, t.address, target+"?head=1 HTTP/1.1\r\n"+rest); !strings.Contains(head, t.sees) {
			return fmt.Errorf("%s: got %d (%v); the upstream has not got %q but\n%s", t.name, status, err, t.sees, head)
		}
	}
	if t.guards {
		if status, _, err := ask(t.protocol, t.address, authorization.ReplaceAllString(t.calls[0], "")); err != nil || status == t.status {
			return fmt.Errorf("%s: without a credential: got %d, %v", t.name, status, err)
		}
	}
	if t.warm {
		for _, call := range t.calls {
			if status, _, err := ask(t.protocol, t.address, call); status != t.status {
				return fmt.Errorf("%s: got %d (%v), want %d", t.name, status, err, t.status)
			}
		}
	}
	s.b.started++
	t.requests = filepath.Join(s.b.dir, fmt.Sprintf("%d.requests", s.b.started))
	return os.WriteFile(t.requests, []byte(strings.Join(t.calls, "\x00")), 0o600)
}

var authorization = regexp.MustCompile(`Authorization: .*\r\n`)

// cpu is the processor time of a subject.
func (t *subject) cpu() time.Duration {
	sum := t.process.cpu()
	if t.beside != nil {
		sum += t.beside.cpu()
	}
	return sum
}

// measure puts a subject under load for a slice. It returns the share of the
// machine that others used meanwhile.
func (s *section) measure(ctx context.Context, t *subject) (foreign float64, err error) {
	t.process.settle(ctx)
	begun, busy, ours := time.Now(), machineBusy(), s.b.cpu()
	cpu, lines := t.cpu(), t.process.lines()
	a, load, err := s.b.drive(ctx, t, s.connections, s.slice)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("%w\n%s (%v):\n%s", err, t.process.name, t.process.cmd.ProcessState, tail(t.process.log))
	}
	cpu, lines = t.cpu()-cpu, t.process.lines()-lines
	others := machineBusy() - busy - (s.b.cpu() - ours) - load
	foreign = max(0, others.Seconds()/time.Since(begun).Seconds()/processors)

	t.wrong += a.broken
	if t.status < 400 {
		t.wrong += a.refused
	} else {
		t.wrong += a.requests - a.refused
	}
	per100k := 1e5 / max(1, a.requests) // a slow one may have answered nothing
	for name, figure := range map[string]float64{
		"rate": a.rate, "cpu": cpu.Seconds() * per100k, "lines": lines * per100k,
		"p50": a.p50.Seconds() * 1e3, "p99": a.p99.Seconds() * 1e3, "rss": t.process.resident(),
	} {
		t.turns[name] = append(t.turns[name], figure)
	}
	return foreign, nil
}

func (s *section) print(foreign quartiles) {
	fmt.Printf("\n## %s\n\n", s.title)
	if s.note != "" {
		fmt.Printf("%s ", s.note)
	}
	fmt.Printf("%d turns. Foreign: %.0f %% (%.0f–%.0f).\n\n", s.rounds, 100*foreign.median, 100*foreign.low, 100*foreign.high)
	last := s.last
	if last.of == nil {
		last = column{"RSS MiB", func(t *subject) string { return fmt.Sprintf("%.0f", slices.Max(t.turns["rss"])) }}
	}
	fmt.Printf("| subject | answer | req/s | ratio | CPU-s/100k | CPU ratio | least CPU | its ratio | p50 ms | p99 ms | %s |\n", last.title)
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, t := range s.subjects {
		rate, cpu, least := "1", "1", "1"
		if of := s.find(t.against); of != nil {
			rate, cpu, least = t.ratio("rate", of), t.ratio("cpu", of), digits(slices.Min(t.turns["cpu"])/slices.Min(of.turns["cpu"]))
		}
		answer := fmt.Sprint(t.status)
		if t.wrong > 0 {
			answer += fmt.Sprintf(" but %.0f", t.wrong)
		}
		fmt.Printf("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", t.name, answer, t.median("rate"), rate, t.median("cpu"), cpu,
			digits(slices.Min(t.turns["cpu"])), least, t.median("p50"), t.median("p99"), last.of(t))
	}
}

// relate prints the ratios of a subject to another one than its reference.
func (s *section) relate(name, to string) {
	if t, of := s.find(name), s.find(to); t != nil && of != nil && len(t.turns["rate"]) > 0 {
		fmt.Printf("\n%s, relative to %s: req/s %s, CPU %s.\n", name, to, t.ratio("rate", of), t.ratio("cpu", of))
	}
}

// ratio returns the median, with its quartiles, of the ratios of a figure to the same figure of
// another subject in the same turn.
func (t *subject) ratio(name string, of *subject) string {
	q := spread(ratios(t.turns[name], of.turns[name]))
	return fmt.Sprintf("%s (%s–%s)", digits(q.median), digits(q.low), digits(q.high))
}

func (t *subject) median(name string) string { return digits(spread(t.turns[name]).median) }

// digits writes a figure with about three digits that count.
func digits(f float64) string {
	switch size := math.Abs(f); {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return "–"
	case size == 0:
		return "0"
	case size >= 100:
		return fmt.Sprintf("%.0f", f)
	case size >= 10:
		return fmt.Sprintf("%.1f", f)
	case size >= 1:
		return fmt.Sprintf("%.2f", f)
	case size >= 0.01:
		return fmt.Sprintf("%.3f", f)
	default:
		return fmt.Sprintf("%.5f", f)
	}
}
