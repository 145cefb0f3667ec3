//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// fleet is some nodes in a few processes.
type fleet struct {
	nodes     int
	copies    string // the directory of their last good copies
	processes []*process
}

// process is one that runs [serve].
type process struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	orders  *json.Encoder
	answers *json.Decoder
	mu      sync.Mutex
	opened  answer
	peak    int64 // its memory
}

// startFleet starts nodes at the URL, spread over some processes. Those whose last good copies are in the
// directory begin with them.
func startFleet(url string, nodes int, copies string) (f *fleet, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f = &fleet{nodes: nodes, copies: copies}
	var starting errgroup.Group
	for i := range min(processes, nodes) {
		p := &process{cmd: exec.Command(self, nodesArg)}
		p.cmd.Stderr = os.Stderr
		in, err := p.cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		p.in, p.orders, p.answers = in, json.NewEncoder(in), json.NewDecoder(out)
		if err := p.cmd.Start(); err != nil {
			return nil, errors.Join(err, f.stop())
		}
		f.processes = append(f.processes, p)
		o := opening{Name: fmt.Sprintf("bench-%d", i), URL: url, Nodes: (nodes - i + processes - 1) / processes, Copies: copies}
		starting.Go(func() (err error) {
			p.opened, err = p.ask(order{Open: &o})
			return err
		})
	}
	if err := starting.Wait(); err != nil {
		return nil, errors.Join(err, f.stop())
	}
	return f, nil
}

// stop ends the nodes, which leave the list of nodes, and waits for them.
func (f *fleet) stop() (err error) {
	for _, p := range f.processes {
		p.in.Close()
	}
	for _, p := range f.processes {
		err = errors.Join(err, p.cmd.Wait())
	}
	return err
}

// kill ends the nodes without a word. One that ends properly does not begin with its copy again: receipts do
// not wait for it.
func (f *fleet) kill() {
	for _, p := range f.processes {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// ask sends an order and returns the answer.
func (p *process) ask(o order) (a answer, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err = p.orders.Encode(o); err == nil {
		err = p.answers.Decode(&a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	p.peak = a.Peak
	return a, err
}

// place is the process of a node, and its number there. Neighbours are in different processes.
func (f *fleet) place(node int) (*process, int) {
	return f.processes[node%len(f.processes)], node / len(f.processes)
}

// revocation is one that was measured.
type revocation struct {
	change     time.Duration // until it was acknowledged
	everywhere time.Duration // from there until the last node had it in force
	receipt    time.Duration // from there until the receipt by all
}

// revoke lets a node revoke tokens, one after another, each when the one before is in force everywhere.
func (f *fleet) revoke(node int, tokens []token) (list []revocation, err error) {
	writer, n := f.place(node)
	for _, k := range tokens {
		a, err := writer.ask(order{Node: n, Revoke: &k})
		if err != nil {
			return nil, err
		}
		if a.Receipt.Applied != f.nodes || a.Receipt.All != f.nodes {
			return nil, fmt.Errorf("a receipt after %v by %d of %d nodes, want all %d",
				a.Took, a.Receipt.Applied, a.Receipt.All, f.nodes)
		}
		last, err := f.since(a.Revision)
		if err != nil {
			return nil, err
		}
		list = append(list, revocation{
			time.Duration(a.Revoked - a.Begun), time.Duration(max(last-a.Revoked, 0)), time.Duration(a.Applied - a.Revoked),
		})
		time.Sleep(pause())
	}
	return list, nil
}

// since returns the time at which a revision was in force at the last of the nodes.
func (f *fleet) since(revision int64) (last int64, err error) {
	for _, p := range f.processes {
		a, err := p.ask(order{Seen: []int64{revision}})
		if err != nil {
			return 0, err
		}
		for _, at := range a.Seen[0] {
			if at == 0 {
				return 0, fmt.Errorf("the revision %d is not in force everywhere, and its receipt says so", revision)
			}
			last = max(last, at)
		}
	}
	return last, nil
}

// write lets some nodes revoke tokens as fast as they can, for some time. It returns the number of changes, the
// time that they took, and the time from the last one until it was in force everywhere.
func (f *fleet) write(writers int, tokens []token, lasts time.Duration) (changes int, took, behind time.Duration, err error) {
	var writing errgroup.Group
	var mu sync.Mutex
	var revision int64
	begun := time.Now()
	for i := range writers {
		some := tokens[i*len(tokens)/writers : (i+1)*len(tokens)/writers]
		p, n := f.place(i)
		writing.Go(func() error {
			a, err := p.ask(order{Node: n, Write: some, For: lasts})
			mu.Lock()
			defer mu.Unlock()
			changes, revision = changes+a.Changes, max(revision, a.Revision)
			return err
		})
	}
	if err := writing.Wait(); err != nil {
		return 0, 0, 0, err
	}
	took = time.Since(begun)
	ended := time.Now()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if last, err := f.since(revision); err == nil {
			return changes, took, max(time.Unix(0, last).Sub(ended), 0), nil
		} else if time.Now().After(deadline) {
			return 0, 0, 0, err
		}
	}
}

// cpu is the processor time of all processes.
func (f *fleet) cpu() (sum time.Duration) {
	for _, p := range f.processes {
		sum += cpu(p.cmd.Process.Pid)
	}
	return sum
}

// peak is the most memory that a process had, for each of its nodes, in MiB.
func (f *fleet) peak() float64 {
	var sum int64
	for _, p := range f.processes {
		sum += p.peak
	}
	return float64(sum) / float64(f.nodes) / (1 << 20)
}
