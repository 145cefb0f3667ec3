//go:build linux

// Command bench measures the cost of this plugin, end to end, beside its peers,
// and prints tables in Markdown. bench/run builds and starts it.
//
// Subjects are servers under load: one after the other for a short slice, in
// an order that rotates from turn to turn. A machine is never quiet, so each
// figure is divided by that of the reference in the same turn, and the tables have
// the medians of these ratios with their quartiles. Subjects that are compared are
// in one section; sections run one after the other (sections.go). Every subject is a
// program of its own, and sees nothing but requests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	dir        string // everything that is written; removed at the end
	repository string
	caddy      string // the program with the plugin
	self       string // this program
	cpus       struct{ proxy, upstream, load string }
	processors int
	slice      time.Duration
	rounds     int
	only       *regexp.Regexp
	quick      bool
	gateways   []*gateway

	upstream string // its address
	port     int    // the last one that was given away
	started  int    // processes and files, so far
	running  []*process
	made     map[string]*stock // stores that exist already
	sections []*section        // so far
	about    string            // a sentence about the run
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "role" {
		if err := play(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	b := &bench{port: 20000 + os.Getpid()%10000, made: make(map[string]*stock)}
	flag.DurationVar(&b.slice, "slice", time.Second, "how long a subject is under load in a turn; `whole seconds`")
	flag.IntVar(&b.rounds, "rounds", 10, "how many turns a section has")
	processors := 2
	if runtime.NumCPU() >= 4 {
		processors = 4
	}
	flag.IntVar(&b.processors, "processors", processors, "how many processors all programs have: `2 or 4`, half of them for the proxy")
	peers := flag.String("peers", "Oathkeeper,oauth2-proxy", "the `gateways` to build and measure; Traefik is another one, whose first build takes a quarter of an hour")
	write := flag.Bool("write", false, "write docs/benchmark.md, docs/benchmark.svg and the tables in README.md and docs/performance.md")
	only := flag.String("only", "", "measure only subjects whose \"section/name\" matches this `regexp`, and what they are compared with")
	flag.BoolVar(&b.quick, "quick", false, "a smoke run: one turn of most subjects, in a minute; its figures mean nothing")
	flag.StringVar(&b.caddy, "caddy", "", "the `program` to measure, instead of a build by xcaddy.sh")
	flag.StringVar(&b.repository, "repository", ".", "the `directory` of the sources")
	flag.StringVar(&b.dir, "work", "", "the `directory` of everything that is written; removed at the end")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "Usage: bench/run [flags]\n\n")
		flag.PrintDefaults()
		fmt.Fprint(flag.CommandLine.Output(), "\nExample: bench/run -only same -rounds 30\n")
	}
	flag.Parse()
	var err error
	b.only, err = regexp.Compile(*only)
	for _, g := range gateways {
		if slices.Contains(strings.Split(*peers, ","), g.name) && !b.quick {
			b.gateways = append(b.gateways, g)
		}
	}
	if err != nil || flag.NArg() > 0 || b.processors != 2 && b.processors != 4 || *write && (b.quick || *only != "") || b.slice < time.Second || b.slice%time.Second != 0 || b.rounds < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if b.quick {
		b.rounds = 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if b.dir == "" {
		b.dir, err = os.MkdirTemp("", "bench-")
	}
	if err == nil {
		if *write {
			err = b.write(ctx)
		} else {
			err = b.run(ctx)
		}
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// play runs one of the roles of the processes that this program starts from its own binary.
func play(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "upstream":
		return answerAlways(args[1], "Content-Type: text/plain\r\n", "hello, world\n")
	case len(args) == 2 && args[0] == "authority": // to Oathkeeper a server of tokens
		return answerAlways(args[1], "Content-Type: application/json\r\n"+strings.Join(identity, "\r\n")+"\r\n", `{"access_token":"a","token_type":"bearer","expires_in":86400}`)
	case len(args) == 6 && args[0] == "load":
		atOnce, _ := strconv.Atoi(args[4])
		lasts, err := time.ParseDuration(args[5])
		if err != nil {
			return err
		}
		return load(args[1], args[2], args[3], atOnce, lasts)
	case len(args) == 6 && args[0] == "flood":
		connections, _ := strconv.Atoi(args[3])
		rate, _ := strconv.Atoi(args[4])
		lasts, err := time.ParseDuration(args[5])
		if err != nil {
			return err
		}
		return flood(args[1], args[2], connections, rate, lasts)
	}
	return fmt.Errorf("no such role: %q", args)
}

func (b *bench) run(ctx context.Context) (err error) {
	for _, program := range []string{"wrk", "nginx"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("there is no %s in PATH: apt-get install wrk nginx", program)
		}
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	defer func() { b.stop(append([]*process(nil), b.running...)...) }()

	if _, err := exec.LookPath("taskset"); err != nil || runtime.NumCPU() < b.processors {
		return fmt.Errorf("this needs taskset (apt-get install util-linux) and %d processors", b.processors)
	}
	b.cpus.proxy, b.cpus.upstream, b.cpus.load = "0", "1", "1"
	if b.processors == 4 {
		b.cpus.proxy, b.cpus.upstream, b.cpus.load = "0,1", "2", "3"
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.dir, "requests.lua"), []byte(script), 0o600); err != nil {
		return err
	}
	if b.upstream, err = b.role("upstream"); err != nil {
		return err
	}
	b.printHead()
	for _, section := range []func(context.Context) error{
		b.sameProcess, b.protocols, b.sizes, b.peers, b.slow, b.refusals, b.floods, b.tuning,
	} {
		if err := section(ctx); err != nil {
			return err
		}
	}
	return nil
}

// processors are those of the machine.
var processors = float64(runtime.NumCPU())

// build makes the program to measure, as an operator would.
func (b *bench) build(ctx context.Context) error {
	if b.caddy != "" {
		return nil
	}
	b.caddy = filepath.Join(b.dir, "caddy")
	cmd := exec.CommandContext(ctx, filepath.Join(b.repository, "xcaddy.sh"), "build")
	cmd.Env = append(os.Environ(), "XCADDY_OUTPUT="+b.caddy)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("xcaddy.sh build: %w\n%s", err, out)
	}
	return nil
}

// role starts this program as a server of its own beside the proxies.
func (b *bench) role(name string) (address string, err error) {
	if address, err = b.freeAddress(); err != nil {
		return "", err
	}
	p, err := b.start(name, b.cpus.upstream, []string{"GOMAXPROCS=1"}, b.self, "role", name, address)
	if err != nil {
		return "", err
	}
	return address, p.await(context.Background(), "", address, request("/"), 200)
}

// pinned makes a program run on some processors only.
func (b *bench) pinned(cpus string, args ...string) []string {
	if cpus == "" {
		return args
	}
	return append([]string{"taskset", "--cpu-list", cpus}, args...)
}

func (b *bench) printHead() {
	first := func(args ...string) string {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = b.repository
		out, _ := cmd.CombinedOutput()
		line, _, _ := strings.Cut(string(out), "\n")
		return strings.TrimSpace(line)
	}
	line := func(file, name string) string {
		text, _ := os.ReadFile(file)
		for l := range strings.Lines(string(text)) {
			if key, value, found := strings.Cut(l, ":"); found && strings.TrimSpace(key) == name {
				return strings.TrimSpace(value)
			}
		}
		return "?"
	}
	memory, _ := strconv.Atoi(strings.TrimSuffix(line("/proc/meminfo", "MemTotal"), " kB"))
	commit := first("git", "describe", "--always", "--dirty", "--exclude=*")
	fmt.Printf("# Benchmark of %s\n\n", time.Now().UTC().Format("2 January 2006, 15:04 UTC"))
	fmt.Printf("| | |\n|---|---|\n")
	fmt.Printf("| machine | %s, %d processors, %.0f GiB, Linux %s |\n", line("/proc/cpuinfo", "model name"), runtime.NumCPU(), float64(memory)/(1<<20), first("uname", "-r"))
	fmt.Printf("| programs | %s, Caddy %s, plugin %s, %s, %s |\n", runtime.Version(), strings.Fields(first(b.caddy, "version") + " ?")[0], commit,
		strings.TrimPrefix(first("nginx", "-v"), "nginx version: "), strings.Join(strings.Fields(first("wrk", "-v") + " ? ?")[:2], " "))
	command := "bench/run"
	flag.Visit(func(f *flag.Flag) {
		if f.Name != "work" && f.Name != "repository" && f.Name != "caddy" {
			command += strings.TrimSuffix(fmt.Sprintf(" -%s=%s", f.Name, f.Value), "=true")
		}
	})
	fmt.Printf("| command | `%s` |\n", strings.ReplaceAll(command, "|", `\|`))
	b.about = fmt.Sprintf("One run of `%s` on %s: %s, %d processors, %d of them for the proxy.",
		command, time.Now().UTC().Format("2 January 2006"), line("/proc/cpuinfo", "model name"), b.processors, b.processors/2)
	fmt.Printf("| processors | proxy (with its authority) %s, upstream and flood %s, load %s |\n", b.cpus.proxy, b.cpus.upstream, b.cpus.load)
	fmt.Printf("| load | wrk, HTTP/1.1 without TLS, GET, 32 connections unless said, slices of %s, %d turns unless said |\n\n", b.slice, b.rounds)
	fmt.Println("Figures are medians over the turns; ratios are taken within a turn and come with their quartiles. " +
		"CPU is that of the proxy, in seconds per 100 000 requests." +
		" Other load on the machine can only increase it. So under much other load the least of all turns, and its ratio to the least of the reference, are the steadiest figures." +
		" \"Foreign\" is the share of all processors that programs outside of the benchmark used.")
}
