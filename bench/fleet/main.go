//go:build linux

// Command fleet measures many nodes on one store in PostgreSQL, and prints tables in Markdown. It starts the
// server itself, with the settings of a server that keeps what it has acknowledged. A node is an open store;
// a few processes have all nodes, on the same machine as the server, so the figures include the work that a
// real fleet spreads over many machines.
//
//	go run ./bench/fleet -svg docs/fleet-scale.svg
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

// nodesArg makes this program a process of nodes.
const nodesArg = "nodes-of-a-fleet"

// bench is one run.
type bench struct {
	server      *pgtest.Server
	revocations int
	lasts       time.Duration // one measurement of changes a second
	starts      int
	nodes       int
	large       int    // service users of the large store
	copies      bool   // nodes keep their last good copies …
	dir         string // … in here, each fleet in a directory of its own
	fleets      int
	stores      map[int]*database
	picture     picture
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == nodesArg {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "fleet: a process of nodes:", err)
			os.Exit(1)
		}
		return
	}
	b := bench{stores: make(map[int]*database)}
	flags := flag.NewFlagSet("fleet", flag.ExitOnError)
	parts := flags.String("parts", "small,large,rate,start",
		"measure only these `parts`: revocations with many nodes on a small store, and with 8 nodes on a large one; changes a second; cold starts")
	flags.IntVar(&b.revocations, "revocations", 200, "how many `revocations` a row has; those that lose notifications a third")
	flags.DurationVar(&b.lasts, "lasts", 5*time.Second, "how long each row of changes a second is measured")
	flags.IntVar(&b.starts, "starts", 2, "how many `starts` a row has")
	flags.IntVar(&b.nodes, "nodes", 100, "the `number` of nodes on the small store, which has 10,000 service users")
	flags.IntVar(&b.large, "users", 1_000_000, "the `number` of service users of the large store")
	flags.BoolVar(&b.copies, "copies", true, "let nodes keep their last good copies, as those of Caddy do, all on this disk")
	svg := flags.String("svg", "", "also draw the figures into this `file`")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "Usage: go run ./bench/fleet [flags]\n\n")
		flags.PrintDefaults()
		fmt.Fprint(flags.Output(), "\nExample: go run ./bench/fleet -parts small,rate -nodes 10 -revocations 50\n")
	}
	_ = flags.Parse(os.Args[1:])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	var err error
	if b.dir, err = os.MkdirTemp("", "fleet-"); err == nil {
		err = errors.Join(b.run(ctx, strings.Split(*parts, ",")), os.RemoveAll(b.dir))
	}
	if err == nil && *svg != "" {
		err = b.picture.write(*svg)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}
