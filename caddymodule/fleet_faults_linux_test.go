//go:build linux

package caddymodule

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
)

// disconnect ends the connections of a node to the database.
func (f *fleet) disconnect(n *fleetNode) {
	if err := f.database.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '` + n.name + `'`); err != nil {
		f.fail("pg_terminate_backend: %v", err)
	}
}

// kill kills a node by SIGKILL while it makes a change. The change is made, or not, as another node shows.
func (f *fleet) kill(draw *rand.Rand, n *fleetNode) {
	user, _, _, ok := f.passing(draw)
	if !ok {
		return
	}
	next, s := f.deactivate(user)
	f.mu.Lock()
	f.past, f.since = append(f.past, next), append(f.since, time.Now().Add(time.Hour))
	world := len(f.past) - 1
	f.steps = append(f.steps, fmt.Sprintf("%3d at %s, which is killed: %s", world, n.name, s.text))
	f.mu.Unlock()
	before := f.use(n, 7)
	f.count(before) // an interval later it loses nothing of these
	before, after := before, f.use(n, 7)
	f.wait = ""
	made := make(chan error)
	go func() { made <- s.send(f, n) }()
	<-time.After(time.Duration(draw.IntN(12)) * time.Millisecond)
	n.down, n.since = true, time.Now()
	_ = n.cmd.Process.Kill()
	<-n.exited
	lost := <-made
	var left bool
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		err := f.database.QueryRow(`SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = $1`, []any{n.name}, &left)
		if err != nil || left && time.Now().After(deadline) {
			f.fail("the connections of the killed %s: %v, %v", n.name, left, err)
			return
		}
		if !left {
			break
		}
	}
	var u admin.ServiceUser
	if _, err := f.up()[0].admin("GET", "/service_users/"+next.users[user].id, nil, &u); err != nil {
		f.fail("%v", err)
	}
	if lost == nil && u.Active {
		f.fail("%s has confirmed a change before it was killed, and the store does not have it", n.name)
	}
	f.newest(func(w *fleetWorld) { w.users[user].active = u.Active })
	if got := f.token().UseCount; got < before || got > after {
		f.fail("%s was killed: got %d uses, want %d to %d", n.name, got, before, after)
	} else {
		f.uses = got
	}
	f.mu.Lock()
	f.since[world] = time.Now()
	f.steps = append(f.steps, fmt.Sprintf("    %v; now the user is active: %v", lost, u.Active))
	f.mu.Unlock()
}

// revive starts a killed node again. It begins with the newest world.
func (f *fleet) revive(n *fleetNode) {
	f.mu.Lock()
	world := len(f.past) - 1
	f.steps = append(f.steps, "    "+n.name+" starts again")
	f.mu.Unlock()
	f.has(n, world, -1)
	n.client.CloseIdleConnections()
	n.start(n.caddyfile())
	f.identify(n)
	n.down = false
}

// freeze stops a node by SIGSTOP for longer than max_staleness. A request that waited at it meanwhile is not
// answered from before.
func (f *fleet) freeze(draw *rand.Rand, n *fleetNode, long time.Duration) {
	user, token, a, ok := f.passing(draw)
	if !ok {
		return
	}
	i := slices.Index(f.nodes, n)
	n.signal(syscall.SIGSTOP)
	defer n.signal(syscall.SIGCONT) // also if a step before that fails
	n.down, n.since = true, time.Now()
	f.mu.Lock()
	f.steps = append(f.steps, fmt.Sprintf("    %s is stopped for %v", n.name, long))
	f.mu.Unlock()
	next, s := f.deactivate(user)
	f.make(next, []*fleetStep{s}, f.up()[:1])
	confirmed := time.Now()
	f.mu.Lock()
	world := len(f.past) - 1
	f.mu.Unlock()
	var waiting sync.WaitGroup
	var undecided atomic.Int64
	for range 8 {
		waiting.Go(func() {
			if _, decided := f.ask(i, user, token, a, world); !decided {
				undecided.Add(1)
			}
		})
	}
	for time.Since(confirmed) < long && !f.t.Failed() {
		f.round(draw)
	}
	// It cannot read the store at first.
	if err := f.database.Exec("BEGIN; LOCK TABLE " + f.schema + ".meta"); err != nil {
		f.t.Fatal(err)
	}
	n.signal(syscall.SIGCONT)
	waiting.Wait()
	if err := f.database.Exec("COMMIT"); err != nil {
		f.t.Fatal(err)
	}
	if undecided.Load() != 8 {
		f.fail("%s was stopped for %v: of 8 requests that waited it answered %d with 503", n.name, time.Since(confirmed), undecided.Load())
	}
	n.down = false
	f.decide(i, user, token, a)
}

// startCounting makes a service user that no change concerns.
func (f *fleet) startCounting() {
	var u admin.ServiceUser
	in := admin.NewServiceUser{ServiceUserInput: admin.ServiceUserInput{Name: admin.Some("counted")}}
	if err := f.change(f.nodes[0], "POST", "/service_users", in, &u); err != nil {
		f.t.Fatal(err)
	}
	f.counted, f.tokenURI = credentials{u.ID, u.Token}, "/service_users/"+u.ID+"/tokens/"+u.TokenID
}

// use uses the token of that service user at a node, which needs no rule, and returns the number of all its
// uses.
func (f *fleet) use(n *fleetNode, times int) int64 {
	for deadline := time.Now().Add(time.Minute); times > 0; {
		status, _, text, err := n.send("GET", "API_PORT", &url.URL{Path: "/_self"}, "", f.counted, nil, nil)
		switch {
		case err == nil && status == http.StatusOK:
			times--
			f.uses++
		case err != nil || time.Now().After(deadline):
			f.fail("%s: got %d %s, %v", n.name, status, text, err)
			return f.uses
		}
	}
	return f.uses
}

// token returns that token as the last node shows it.
func (f *fleet) token() (k admin.Token) {
	if _, err := f.nodes[len(f.nodes)-1].admin("GET", f.tokenURI, nil, &k); err != nil {
		f.fail("%v", err)
	}
	return k
}

// count waits until the uses at all nodes are in the store, which takes one use_interval.
func (f *fleet) count(want int64) (k admin.Token) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if k = f.token(); k.UseCount == want {
			return k
		}
		if k.UseCount > want || time.Now().After(deadline) {
			f.fail("got %d uses, want %d", k.UseCount, want)
			return k
		}
	}
}

// signal sends a signal, and waits until the process has stopped or goes on.
func (n *fleetNode) signal(s syscall.Signal) {
	_ = n.cmd.Process.Signal(s)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
		_, state, ok := strings.Cut(string(stat), ") ")
		if err != nil || !ok || strings.HasPrefix(state, "T") == (s == syscall.SIGSTOP) {
			return
		}
	}
}
