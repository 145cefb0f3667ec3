//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
)

const (
	small     = 10_000 // service users
	few       = 8      // nodes on the large store
	processes = 4      // of all nodes
)

func (b *bench) run(ctx context.Context, parts []string) (err error) {
	known := map[string]func(context.Context) error{
		"small": func(ctx context.Context) error { return b.revoked(ctx, b.nodes, small) },
		"large": func(ctx context.Context) error { return b.revoked(ctx, few, b.large) },
		"rate":  b.rate,
		"start": b.start,
	}
	for _, part := range parts {
		if known[part] == nil {
			return fmt.Errorf("there is no part %q; parts are small, large, rate, start", part)
		}
	}
	if b.server, err = pgtest.Start(settings...); err != nil {
		return err
	}
	if err := b.printHead(); err != nil {
		return err
	}
	for _, part := range parts {
		if err := known[part](ctx); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return nil
}

func (b *bench) printHead() error {
	var version string
	if err := b.server.QueryRow(`SHOW server_version`, nil, &version); err != nil {
		return err
	}
	commits, err := b.commits(200)
	if err != nil {
		return err
	}
	fmt.Printf("# Fleet, measured %s\n\n", time.Now().UTC().Format("2 January 2006, 15:04 UTC"))
	fmt.Printf("%d processors for everything: the server, the nodes, a pooler or proxy. PostgreSQL %s, fsync on; "+
		"a commit of one row takes %s ms (p50), %s ms (p99).\n",
		runtime.NumCPU(), version, ms(at(commits, 50)), ms(at(commits, 99)))
	return nil
}

// commits measures the commit of one row.
func (b *bench) commits(n int) (list []time.Duration, err error) {
	if err := b.server.Exec(`CREATE TABLE commits (n BIGINT)`); err != nil {
		return nil, err
	}
	for i := range n {
		begun := time.Now()
		if err := b.server.Exec(fmt.Sprintf(`INSERT INTO commits VALUES (%d)`, i)); err != nil {
			return nil, err
		}
		list = append(list, time.Since(begun))
	}
	return list, nil
}

// database returns the store with a number of service users.
func (b *bench) database(ctx context.Context, users int) (db *database, err error) {
	if b.stores[users] == nil {
		b.stores[users], err = fill(ctx, b.server, users)
	}
	return b.stores[users], err
}

// pause is the time between two revocations, so that they do not come in step with anything.
func pause() time.Duration { return rand.N(100 * time.Millisecond) }

// revoked measures revocations while notifications arrive, and while they do not.
func (b *bench) revoked(ctx context.Context, nodes, users int) error {
	db, err := b.database(ctx, users)
	if err != nil {
		return err
	}
	fmt.Printf("\n## %d nodes, %s service users: milliseconds after a revocation is acknowledged\n\n", nodes, thousands(users))
	fmt.Println("| | revocations | acknowledged after p50 | p99 | everywhere p50 | p99 | max | receipt p50 | p99 | max " +
		"| CPU ms a revocation: server | nodes | MiB a node |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	every := func(string) bool { return true }
	unnoticed := func(payload string) bool { return payload != "" }
	for _, row := range []struct {
		name        string
		revocations int
		lose        func(string) bool // nil: without a proxy
		pooler      bool
	}{
		{"notifications arrive", b.revocations, nil, false},
		{"all are lost", b.revocations / 3, every, false},
		{"all but the test of the node are lost", b.revocations / 6, unnoticed, false},
		{"pgbouncer, pool of transactions", b.revocations / 3, nil, true},
	} {
		url := db.direct()
		switch {
		case row.lose != nil:
			p, through, err := startProxy(db, row.lose)
			if err != nil {
				return err
			}
			defer p.Close()
			url = through
		case row.pooler:
			through, stop, err := db.StartPooler(db.schema, 20)
			if err != nil {
				return err
			}
			defer stop()
			url = through
		}
		if err := b.revokedBy(db, url, nodes, row.name, row.revocations); err != nil {
			return fmt.Errorf("%s: %w", row.name, err)
		}
	}
	return nil
}

// settle is the time after which nodes that have just started know whether they hear notifications.
const settle = 5 * time.Second

// revokedBy measures one row.
func (b *bench) revokedBy(db *database, url string, nodes int, name string, revocations int) error {
	f, err := startFleet(url, nodes, processes)
	if err != nil {
		return err
	}
	defer f.stop()
	time.Sleep(settle)
	tokens, err := db.take(revocations)
	if err != nil {
		return err
	}
	before, err := db.usage()
	if err != nil {
		return err
	}
	work := f.cpu()
	list, err := f.revoke(0, tokens)
	if err != nil {
		return err
	}
	after, err := db.usage()
	if err != nil {
		return err
	}
	each := func(d time.Duration) string { return ms(d / time.Duration(len(list))) }
	var change, everywhere, receipt []time.Duration
	for _, r := range list {
		change, everywhere, receipt = append(change, r.change), append(everywhere, r.everywhere), append(receipt, r.receipt)
	}
	fmt.Printf("| %s | %d | %s | %s | %s | **%s** | %s | %s | %s | %s | %s | %s | %.0f |\n", name, len(list),
		ms(at(change, 50)), ms(at(change, 99)), ms(at(everywhere, 50)), ms(at(everywhere, 99)), ms(at(everywhere, 100)),
		ms(at(receipt, 50)), ms(at(receipt, 99)), ms(at(receipt, 100)),
		each(after.cpu-before.cpu), each(f.cpu()-work), f.peak())
	b.picture.add(nodes, db.users, name, everywhere)
	return nil
}

// rate measures changes as fast as they go, and what they cost.
func (b *bench) rate(ctx context.Context) error {
	db, err := b.database(ctx, small)
	if err != nil {
		return err
	}
	fmt.Printf("\n## Changes a second, %s service users\n\n", thousands(small))
	fmt.Println("| nodes | that change | changes a second | last one everywhere after ms | connections idle | at most | WAL bytes a change | " +
		"reports a change | database: CPU ms a change | bytes to and from a node a change |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|")
	for _, nodes := range []int{1, 10, 100} {
		for _, writers := range []int{1, 4} {
			if writers > nodes {
				continue
			}
			if err := b.rateOf(db, nodes, writers); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) rateOf(db *database, nodes, writers int) error {
	f, err := startFleet(db.direct(), nodes, processes)
	if err != nil {
		return err
	}
	defer f.stop()
	idle := 0
	// A node closes a connection that it has not used for five seconds.
	for range 16 {
		time.Sleep(500 * time.Millisecond)
		if idle, err = db.connections(); err != nil || idle <= nodes {
			break
		}
	}
	if err != nil {
		return err
	}
	tokens, err := db.take(int(b.lasts.Seconds()) * 400 * writers)
	if err != nil {
		return err
	}
	most, ended := idle, make(chan struct{})
	var counting error
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-ended:
				tick.Stop()
				return
			case <-tick.C:
				n, err := db.connections()
				if most = max(most, n); err != nil {
					counting = err
				}
			}
		}
	}()
	before, err := db.usage()
	if err != nil {
		return err
	}
	changes, took, behind, err := f.write(writers, tokens, b.lasts)
	close(ended)
	<-counted
	if err != nil || counting != nil {
		return cmp.Or(err, counting)
	}
	time.Sleep(1100 * time.Millisecond) // the statistics of PostgreSQL are a second late
	after, err := db.usage()
	if err != nil {
		return err
	}
	each := func(n int64) float64 { return float64(n) / float64(changes) }
	fmt.Printf("| %d | %d | **%.0f** | %s | %d | %d | %.0f | %.1f | %.2f | |\n", nodes, writers, float64(changes)/took.Seconds(), ms(behind),
		idle, most, each(after.wal-before.wal), each(after.reports-before.reports), each(int64(after.cpu-before.cpu))/1e6)
	return nil
}

func (b *bench) start(ctx context.Context) error { return nil }

// at returns a percentile, the least value that so many percent of the list do not exceed.
func at(list []time.Duration, percent int) time.Duration {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[max(int(math.Ceil(float64(len(sorted)*percent)/100))-1, 0)]
}

// ms writes a time in milliseconds.
func ms(d time.Duration) string {
	if n := float64(d) / float64(time.Millisecond); n < 9.95 {
		return fmt.Sprintf("%.1f", n)
	} else {
		return fmt.Sprintf("%.0f", n)
	}
}

func thousands(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
