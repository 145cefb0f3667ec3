//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/serviceusers/caddy-service-users/store"
)

// order is what the parent asks of a process of nodes; one field besides Node is set.
type order struct {
	Node   int // the number of the node in this process
	Open   *opening
	Revoke *token        // revoke it, and wait for the receipt
	Write  []token       // revoke them one after another …
	For    time.Duration // … until this time is over
	Seen   []int64       // since when is each of these revisions in force
}

type opening struct {
	Name   string // the nodes are NAME-0, NAME-1, …
	URL    string
	Nodes  int
	Copies string // a directory for the last good copies; "" keeps none
}

type token struct{ User, ID string }

// answer is that of a process. Times are Unix nanoseconds: the processes have one clock.
type answer struct {
	Error    string
	Took     time.Duration // of the order
	Work     time.Duration // the processor time of the process so far
	Begun    int64         // a revocation …
	Revoked  int64         // … was acknowledged …
	Applied  int64         // … and its receipt came
	Receipt  store.Receipt
	Revision int64     // after the order
	Changes  int       // made by Write
	Seen     [][]int64 // by revision and node; 0 is not yet
	Users    int       // in the directory of the node …
	Source   string    // … and where it is from
	Peak     int64     // the most memory that the process had, in bytes
}

// node is one of a fleet: a store that is open, and the times of its revisions.
type node struct {
	store *store.Store
	copy  string // the directory of its last good copy; "" for none
	mu    sync.Mutex
	seen  []seen
}

type seen struct{ revision, at int64 }

// serve is a process of nodes: it answers orders until its input ends.
func serve(in io.Reader, out io.Writer) error {
	var nodes []*node
	defer func() {
		var closing errgroup.Group
		for _, n := range nodes {
			if n != nil {
				closing.Go(n.store.Close)
			}
		}
		_ = closing.Wait()
	}()
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a answer
		var err error
		begun := time.Now()
		if o.Open != nil {
			nodes, err = open(*o.Open)
		} else {
			err = nodes[o.Node].obey(o, &a)
		}
		a.Took, a.Work = time.Since(begun), cpu(os.Getpid())
		if err == nil {
			n := nodes[o.Node]
			a.Users = n.store.Directory().Len()
			a.Source, _ = n.store.Source()
			err = awaitCopies(nodes)
		}
		if err != nil {
			a.Error = err.Error()
		}
		for _, revision := range o.Seen {
			var at []int64
			for _, n := range nodes {
				at = append(at, n.since(revision))
			}
			a.Seen = append(a.Seen, at)
		}
		a.Peak = memory(os.Getpid(), "VmHWM")
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// open opens the stores of nodes, a few at once.
func open(o opening) ([]*node, error) {
	nodes := make([]*node, o.Nodes)
	var starting errgroup.Group
	starting.SetLimit(runtime.GOMAXPROCS(0))
	for i := range nodes {
		starting.Go(func() error {
			n := &node{}
			var err error
			options := store.Options{NodeName: fmt.Sprintf("%s-%d", o.Name, i)}
			if o.Copies != "" {
				options.CopyDir = filepath.Join(o.Copies, options.NodeName)
				if err := os.MkdirAll(options.CopyDir, 0o700); err != nil {
					return err
				}
			}
			if n.store, err = store.Open(context.Background(), o.URL, options); err != nil {
				return err
			}
			n.copy = options.CopyDir
			n.note()
			n.store.OnChange(n.note)
			nodes[i] = n
			return nil
		})
	}
	return nodes, starting.Wait()
}

// awaitCopies waits until each node has its last good copy, which it makes after its start.
func awaitCopies(nodes []*node) error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		// The head of a copy is written with a report.
		i := slices.IndexFunc(nodes, func(n *node) bool {
			_, err := os.Stat(filepath.Join(n.copy, "copy.json"))
			return n.copy != "" && (err != nil || n.store.CopyFault() != "")
		})
		if i < 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no last good copy in %s: %s", nodes[i].copy, nodes[i].store.CopyFault())
		}
	}
}

// note notes the time of the revision in force.
func (n *node) note() {
	revision, at := n.store.Directory().Revision(), time.Now().UnixNano()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, seen{revision, at})
}

// since returns the time at which a revision, or a later one, was in force.
func (n *node) since(revision int64) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.seen {
		if s.revision >= revision {
			return s.at
		}
	}
	return 0
}

func (n *node) obey(o order, a *answer) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch {
	case o.Revoke != nil:
		a.Begun = time.Now().UnixNano()
		if err = n.store.RevokeToken(ctx, store.Local, o.Revoke.User, o.Revoke.ID, 0); err != nil {
			return err
		}
		a.Revoked, a.Revision = time.Now().UnixNano(), n.store.Directory().Revision()
		a.Receipt, err = n.store.Wait(ctx, a.Revision)
		a.Applied = time.Now().UnixNano()
	case o.Write != nil:
		for begun := time.Now(); len(o.Write) > a.Changes && time.Since(begun) < o.For; a.Changes++ {
			k := o.Write[a.Changes]
			if err := n.store.RevokeToken(ctx, store.Local, k.User, k.ID, 0); err != nil {
				return err
			}
		}
		a.Revision = n.store.Directory().Revision()
	}
	return err
}

// memory is a figure of the memory of a process, in bytes: VmHWM is the most that was resident, and RssAnon what
// is resident and its own.
func memory(pid int, figure string) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); name == figure {
			kB, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kB << 10
		}
	}
	return 0
}
