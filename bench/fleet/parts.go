//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/pgtest"
	"github.com/serviceusers/caddy-service-users/store"
)

const (
	small     = 10_000 // service users
	few       = 8      // nodes on the large store
	processes = 4      // of all nodes
	// manyWriters is how many nodes make changes if it is not one.
	manyWriters = 4
)

// The rows of revocations.
const (
	arrive    = "notifications arrive"
	lost      = "all are lost"
	unnoticed = "those of changes are lost, and the node does not notice"
	pooled    = "pgbouncer, `pool_mode = transaction`"
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

// fleet starts nodes, each with an empty directory for its last good copy.
func (b *bench) fleet(url string, nodes int) (*fleet, error) {
	dir := ""
	if b.copies {
		b.fleets++
		dir = filepath.Join(b.dir, fmt.Sprint(b.fleets))
	}
	return startFleet(url, nodes, dir)
}

// pause is the time between two revocations, so that they do not come in step with anything.
func pause() time.Duration { return rand.N(100 * time.Millisecond) }

// revoked measures revocations while notifications arrive, and while they do not.
func (b *bench) revoked(ctx context.Context, nodes, users int) error {
	db, err := b.database(ctx, users)
	if err != nil {
		return err
	}
	fmt.Printf("\n## %d nodes, %s service users: milliseconds after a revocation is acknowledged\n\n",
		nodes, thousands(users))
	fmt.Println("| | revocations | acknowledged after p50 | p99 | everywhere p50 | p99 | max | receipt p50 | p99 | max " +
		"| CPU ms a revocation: server | nodes | MiB a node |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	revocations := func(f *fleet, name string, n int) error {
		if err := b.row(db, f, name, n); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	if nodes > few { // the work of the proxy would count
		if err := b.withFleet(db.direct(), nodes, func(f *fleet) error {
			return revocations(f, arrive, b.revocations)
		}); err != nil {
			return err
		}
	}
	p, through, err := startProxy(db)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := b.withFleet(through, nodes, func(f *fleet) error {
		if nodes <= few {
			if err := revocations(f, arrive, b.revocations); err != nil {
				return err
			}
		}
		p.lose.Store(&changes)
		if err := revocations(f, unnoticed, b.revocations/6); err != nil {
			return err
		}
		p.lose.Store(&every)
		return revocations(f, lost, b.revocations/3)
	}); err != nil {
		return err
	}
	pooler, stop, err := db.StartPooler(db.schema, 20)
	if err != nil {
		return err
	}
	defer stop()
	return b.withFleet(pooler, nodes, func(f *fleet) error { return revocations(f, pooled, b.revocations/3) })
}

// withFleet calls do with some nodes.
func (b *bench) withFleet(url string, nodes int, do func(*fleet) error) error {
	f, err := b.fleet(url, nodes)
	if err != nil {
		return err
	}
	return cmp.Or(do(f), f.stop())
}

// settle is the time after a change, of which nodes hear or not, until they know whether they hear of changes.
const settle = 8 * time.Second

// row measures one row of revocations.
func (b *bench) row(db *database, f *fleet, name string, revocations int) error {
	tokens, err := db.take(revocations + 1)
	if err != nil {
		return err
	}
	if _, err := f.revoke(0, tokens[:1]); err != nil {
		return err
	}
	time.Sleep(settle)
	before, err := db.usage()
	if err != nil {
		return err
	}
	work := f.cpu()
	list, err := f.revoke(0, tokens[1:])
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
		change, receipt = append(change, r.change), append(receipt, r.receipt)
		everywhere = append(everywhere, r.everywhere)
	}
	fmt.Printf("| %s | %d | %s | %s | %s | **%s** | %s | %s | %s | %s | %s | %s | %.0f |\n", name, len(list),
		ms(at(change, 50)), ms(at(change, 99)), ms(at(everywhere, 50)), ms(at(everywhere, 99)), ms(at(everywhere, 100)),
		ms(at(receipt, 50)), ms(at(receipt, 99)), ms(at(receipt, 100)),
		each(after.cpu-before.cpu), each(f.cpu()-work), f.peak())
	b.picture.add(f.nodes, db.users, name, everywhere)
	return nil
}

// rate measures changes as fast as they go, and what they cost.
func (b *bench) rate(ctx context.Context) error {
	db, err := b.database(ctx, small)
	if err != nil {
		return err
	}
	fmt.Printf("\n## Changes a second, %s service users\n\n", thousands(small))
	fmt.Println("| nodes | that change | changes a second | last one everywhere after ms | connections idle | at most " +
		"| WAL bytes a change | reports a change | CPU ms a change: server | nodes | MiB of the server |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, nodes := range []int{1, 10, 100} {
		for _, writers := range []int{1, manyWriters} {
			if writers > nodes {
				continue
			}
			if err := b.rateOf(db, nodes, writers); err != nil {
				return err
			}
		}
	}
	return b.bytes(db)
}

// bytes measures what a change moves between the nodes and the server: one node makes changes, one after
// another, and ten follow.
func (b *bench) bytes(db *database) error {
	const followers, changes = 10, 50
	ahead, to, err := startProxy(db)
	if err != nil {
		return err
	}
	defer ahead.Close()
	behind, from, err := startProxy(db)
	if err != nil {
		return err
	}
	defer behind.Close()
	writer, err := b.fleet(to, 1)
	if err != nil {
		return err
	}
	defer writer.stop()
	f, err := b.fleet(from, followers)
	if err != nil {
		return err
	}
	defer f.stop()
	time.Sleep(settle)
	tokens, err := db.take(changes)
	if err != nil {
		return err
	}
	before, made, followed := time.Now(), ahead.bytes.Load(), behind.bytes.Load()
	usageBefore, err := db.usage()
	if err != nil {
		return err
	}
	copies := size(f.copies)
	for _, k := range tokens {
		if _, err := writer.processes[0].ask(order{Revoke: &k}); err != nil {
			return err
		}
	}
	took := time.Since(before)
	copies = size(f.copies) - copies
	made, followed = ahead.bytes.Load()-made, behind.bytes.Load()-followed
	time.Sleep(statisticsDelay)
	usageAfter, err := db.usage()
	if err != nil {
		return err
	}
	idle, begun := behind.bytes.Load(), time.Now()
	time.Sleep(settle)
	perSecond := float64(behind.bytes.Load()-idle) / time.Since(begun).Seconds() / followers
	fmt.Printf("\nOne change after another, with %d nodes that follow: %.0f bytes to and from the node that makes it and "+
		"waits for the receipt, %.0f bytes to and from each of the others, %.0f bytes into its last good copy, and "+
		"%.0f bytes of WAL in all. A node without changes: %.0f bytes a second.\n",
		followers, float64(made)/changes, (float64(followed)-perSecond*took.Seconds()*followers)/changes/followers,
		float64(copies)/changes/followers, float64(usageAfter.wal-usageBefore.wal)/changes, perSecond)
	return nil
}

// statisticsDelay is how late the statistics of PostgreSQL may be.
const statisticsDelay = 1100 * time.Millisecond

func (b *bench) rateOf(db *database, nodes, writers int) error {
	f, err := b.fleet(db.direct(), nodes)
	if err != nil {
		return err
	}
	defer f.stop()
	idle := 0
	// A node closes a connection that it has not used for five seconds.
	for range 30 {
		time.Sleep(500 * time.Millisecond)
		if idle, err = db.connections(); err != nil || idle <= nodes {
			break
		}
	}
	if err != nil {
		return err
	}
	tokens, err := db.take(int(b.lasts.Seconds()) * 250)
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
	work := f.cpu()
	changes, took, behind, err := f.write(writers, tokens, b.lasts)
	close(ended)
	<-counted
	if err != nil || counting != nil {
		return cmp.Or(err, counting)
	}
	nodesWork := f.cpu() - work
	time.Sleep(statisticsDelay)
	after, err := db.usage()
	if err != nil {
		return err
	}
	each := func(n int64) float64 { return float64(n) / float64(changes) }
	fmt.Printf("| %d | %d | **%.0f** | %s | %d | %d | %.0f | %.1f | %.1f | %.1f | %d |\n",
		nodes, writers, float64(changes)/took.Seconds(), ms(behind), idle, most,
		each(after.wal-before.wal), each(after.reports-before.reports),
		each(int64(after.cpu-before.cpu))/1e6, each(int64(nodesWork))/1e6, after.memory>>20)
	b.picture.addRate(nodes, writers, float64(changes)/took.Seconds())
	return nil
}

// start measures the start of one node, in a new process.
func (b *bench) start(ctx context.Context) error {
	fmt.Println("\n## Start of one node: seconds from the call until it answers requests, and those of its processors")
	fmt.Println("\n| service users | from the database | CPU | MiB at most | with its copy, the database is there | CPU | MiB at most " +
		"| from its copy alone | CPU | MiB at most | MiB of the copy |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, users := range []int{small, b.large} {
		db, err := b.database(ctx, users)
		if err != nil {
			return err
		}
		p, through, err := startProxy(db)
		if err != nil {
			return err
		}
		defer p.Close()
		dir := filepath.Join(b.dir, fmt.Sprint("start-", users))
		row := "| " + thousands(users)
		for _, kind := range []struct {
			url, copies, source string
			begin               func()
		}{
			{db.direct(), "", store.FromDatabase, func() {}},
			{through, dir, store.FromDatabase, func() {}},
			{through, dir, store.FromCopy, func() { p.Close() }},
		} {
			kind.begin()
			var took, work []time.Duration
			var peak int64
			for i := range b.starts + 1 {
				f, err := startFleet(kind.url, 1, kind.copies)
				if err != nil {
					return err
				}
				a := f.processes[0].opened
				if a.Users != users || a.Source != kind.source {
					err = fmt.Errorf("the node has %d service users from the %s, want %d from the %s",
						a.Users, a.Source, users, kind.source)
				}
				f.kill()
				if err = cmp.Or(err, db.Exec("DELETE FROM "+db.schema+".nodes")); err != nil {
					return err
				}
				if i > 0 { // the first one fills caches, and makes the copy
					took, work, peak = append(took, a.Took), append(work, a.Work), max(peak, a.Peak)
				}
			}
			row += fmt.Sprintf(" | **%.2f** (%.2f–%.2f) | %.2f | %d", at(took, 50).Seconds(),
				slices.Min(took).Seconds(), slices.Max(took).Seconds(), at(work, 50).Seconds(), peak>>20)
		}
		fmt.Printf("%s | %d |\n", row, size(dir)>>20)
	}
	return nil
}

// size is that of the files in a directory.
func size(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if info, err := e.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

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
		text = text[:i] + " " + text[i:]
	}
	return text
}
