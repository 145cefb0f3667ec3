//go:build linux

package caddymodule

import (
	"errors"
	goflag "flag" // flag is a function here
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

var (
	reloads     = goflag.Int("reloads", 30, "how often TestReloadsLeakNothing loads a configuration, of which a tenth fails; TestActorHeaderDuringReload does it for each six of them")
	revocations = goflag.Int("revocations", 15, "how many tokens each goroutine of TestRevokedAtOnce revokes")
)

// faultsCaddyfile answers by itself: respond comes before the proxy.
const faultsCaddyfile = `
{
	log {
		level ERROR
	}
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users
	service_users_proxy /proxied localhost:1
	respond "let in"
}
`

// fetch asks the admin endpoint. A reload ends the endpoint that answers, and with it
// what waits at its listener: such a request is sent again.
func (s *server) fetch(method, path, caddyfile string) (int, string) {
	s.t.Helper()
	for again := 0; ; again++ {
		req, err := http.NewRequest(method, "http://"+s.addr("CADDY_PORT")+path, strings.NewReader(caddyfile))
		if err != nil {
			s.t.Fatal(err)
		}
		req.Header.Set("Content-Type", "text/caddyfile")
		req.Header.Set("Cache-Control", "must-revalidate")
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err == nil {
			var text []byte
			text, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil {
				return resp.StatusCode, string(text)
			}
		}
		if again == 20 {
			s.t.Fatal(err)
		}
	}
}

// load sends a configuration to the running server and returns the status and the
// answer.
func (s *server) load(caddyfile string) (int, string) {
	s.t.Helper()
	return s.fetch("POST", "/load", caddyfile)
}

// holdings are what a process holds that can leak.
type holdings struct{ goroutines, files, heap int }

func (s *server) holdings() holdings {
	s.t.Helper()
	find := func(path, pattern string) int {
		_, text := s.fetch("GET", path, "")
		found := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if found == nil {
			s.t.Fatalf("%s: no %s", path, pattern)
		}
		n, _ := strconv.Atoi(found[1])
		return n
	}
	var h holdings
	h.heap = find("/debug/pprof/heap?debug=1&gc=1", `# HeapAlloc = (\d+)`)
	h.goroutines = find("/debug/pprof/goroutine?debug=1", `total (\d+)`)
	h.files = s.files()
	return h
}

// files counts what the process has open.
func (s *server) files() int {
	s.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(list)
}

// Reloads, of which a tenth fails in one way or another, leak nothing, and no
// request is answered wrongly meanwhile.
func TestReloadsLeakNothing(t *testing.T) {
	t.Parallel()
	s := withCaddyfile(newServer(t), faultsCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	late := "\nhttp://localhost:1 {\n\tbind 192.0.2.1\n\trespond x\n}\n"
	failures := []struct{ caddyfile, want string }{
		{faultsCaddyfile + "\nhttp://x {\n\tnonsense\n}\n", "nonsense"},
		{faultsCaddyfile + late, "192.0.2.1"},
		{strings.Replace(faultsCaddyfile, "{$SERVICE_USERS_STORE}", "/nowhere/service_users.db", 1), "create it first"},
		{strings.Replace(faultsCaddyfile, "throttle off", "throttle off\n\t\tpepper_file /nowhere/peppers", 1), "pepper_file"},
		{strings.Replace(faultsCaddyfile, "throttle off", "throttle off\n\t\ttoken_ttl 2h\n\t\tmax_token_ttl 1h", 1), "token_ttl"},
		{strings.Replace(faultsCaddyfile, "throttle off", "throttle off\n\t\tretention 1h", 1) + late, "192.0.2.1"}, // another store, then
	}
	good := []string{faultsCaddyfile, strings.Replace(faultsCaddyfile, "\tservice_users\n", "\tservice_users {\n\t\trealm another\n\t}\n", 1)}
	for n := range 2 * len(good) {
		if status, text := s.load(good[n%len(good)]); status != 200 {
			t.Fatalf("reload: got %d %s", status, text)
		}
	}
	for _, f := range failures {
		if status, text := s.load(f.caddyfile); status == 200 || !strings.Contains(text, f.want) {
			t.Fatalf("a load that must fail: got %d %s, want %q", status, text, f.want)
		}
	}
	before := s.holdings()

	stop := make(chan struct{})
	var running sync.WaitGroup
	var answered, again atomic.Int64
	for _, ask := range []struct {
		credentials
		path string
		want int
	}{
		{user, "/v1/x", 200}, {user, "/v1/x", 200}, {user, "/v2", 403}, {credentials{user.id, testkit.Altered(user.secret)}, "/v1/x", 401}, {credentials{}, "/v1/x", 401},
	} {
		running.Go(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				req, _ := http.NewRequest("GET", "http://"+s.addr("API_PORT")+ask.path, nil)
				if ask.id != "" {
					req.SetBasicAuth(ask.id, ask.secret)
				}
				resp, err := transport.RoundTrip(req)
				if err != nil { // see startLoad
					again.Add(1)
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				answered.Add(1)
				if resp.StatusCode != ask.want {
					t.Errorf("%s by %q: got %d, want %d", ask.path, ask.id, resp.StatusCode, ask.want)
					return
				}
			}
		})
	}
	failed := 0
	for n := range *reloads {
		if n%10 == 9 {
			f := failures[n/10%len(failures)]
			if status, text := s.load(f.caddyfile); status == 200 || !strings.Contains(text, f.want) {
				t.Errorf("reload %d: got %d %s, want %q", n, status, text, f.want)
			}
			failed++
			continue
		}
		if status, text := s.load(good[n%len(good)]); status != 200 {
			t.Errorf("reload %d: got %d %s", n, status, text)
		}
	}
	close(stop)
	running.Wait()
	if n := answered.Load(); n == 0 || again.Load() > int64(10**reloads) { // two of each goroutine by reload
		t.Errorf("answered: got %d requests, and %d without an answer", n, again.Load())
	}
	// What a configuration used is given back some seconds after its end; only then
	// the heap is as it was, but for what Caddy itself keeps.
	const moreGoroutines, moreFiles, moreHeap = 15, 8, 8 << 20
	limit := moreHeap
	if *reloads < 1000 {
		limit += *reloads * (1 << 20)
	}
	var after holdings
	for deadline := time.Now().Add(2 * drain); ; {
		after = s.holdings()
		if after.goroutines <= before.goroutines+moreGoroutines && after.files <= before.files+moreFiles && after.heap <= before.heap+limit || time.Now().After(deadline) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if after.goroutines > before.goroutines+moreGoroutines || after.files > before.files+moreFiles || after.heap > before.heap+limit {
		t.Errorf("after %d reloads: got %+v, before %+v", *reloads, after, before)
	}
	t.Logf("%d reloads, %d of them failed; %d requests, %d without an answer; before %+v, after %+v", *reloads, failed, answered.Load(), again.Load(), before, after)
}

// limitFiles sets how many files the process may have open; 0 is as many as may be.
func (s *server) limitFiles(n uint64) {
	s.t.Helper()
	const nofile = 7 // RLIMIT_NOFILE
	var limit struct{ now, most uint64 }
	prlimit := func(set, get unsafe.Pointer) {
		if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(s.cmd.Process.Pid), nofile, uintptr(set), uintptr(get), 0, 0); errno != 0 {
			s.t.Skipf("run this where prlimit(2) may set the limits of another process of the same user: %v", errno)
		}
	}
	prlimit(nil, unsafe.Pointer(&limit))
	if limit.now = n; n == 0 {
		limit.now = limit.most
	}
	prlimit(unsafe.Pointer(&limit), nil)
}

// A server that may open no more files goes on deciding what comes over the
// connections that it has, and recovers.
func TestNoMoreFiles(t *testing.T) {
	t.Parallel()
	s := withCaddyfile(newServer(t), faultsCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	user := s.create("billing-sync", "--group", "readers")
	api := &admin.Client{Base: "http://" + s.addr("CADDY_PORT"), HTTP: &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}}
	var made admin.Token
	if err := api.Do(t.Context(), "POST", "/service_users/"+user.id+"/tokens", admin.TokenInput{}, &made); err != nil {
		t.Fatal(err)
	}

	kept := make([]*http.Transport, 4)
	ask := func(transport *http.Transport, c credentials, path string) (int, error) {
		req, _ := http.NewRequest("GET", "http://"+s.addr("API_PORT")+path, nil)
		req.SetBasicAuth(c.id, c.secret)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	round := func(when string, second int) {
		t.Helper()
		for _, transport := range kept {
			for _, row := range []struct {
				credentials
				path string
				want int
			}{
				{user, "/v1/x", 200}, {user, "/v2", 403}, {credentials{user.id, "wrong"}, "/v1/x", 401}, {credentials{user.id, made.Secret}, "/v1/x", second},
			} {
				if got, err := ask(transport, row.credentials, row.path); got != row.want {
					t.Errorf("%s: %s: got %d, %v, want %d", when, row.path, got, err, row.want)
				}
			}
		}
	}
	for i := range kept {
		kept[i] = &http.Transport{MaxConnsPerHost: 1}
		defer kept[i].CloseIdleConnections()
	}
	round("before", 200)

	s.limitFiles(1) // fewer than it has: none can be added
	fresh := &http.Transport{ResponseHeaderTimeout: 200 * time.Millisecond, DisableKeepAlives: true}
	if got, err := ask(fresh, user, "/v1/x"); err == nil {
		t.Errorf("a new connection without files: got %d; the test shows nothing", got)
	}
	for range 50 {
		round("without files", 200)
	}
	// A change works, or is refused; it never hangs and never does half.
	err := api.Do(t.Context(), "DELETE", "/service_users/"+user.id+"/tokens/"+made.ID, nil, nil)
	want := 401
	var refusal *admin.Error
	switch {
	case errors.As(err, &refusal) && refusal.Status == 503:
		want = 200
	case err != nil:
		t.Errorf("a change without files: got %v, want none, or a refusal with 503", err)
	}
	t.Logf("a change without files: %v", err)
	round("after a change without files", want)

	s.limitFiles(0)
	deadline := time.Now().Add(time.Minute)
	for {
		fresh := &http.Transport{ResponseHeaderTimeout: time.Second, DisableKeepAlives: true}
		if got, err := ask(fresh, user, "/v1/x"); err == nil && got == 200 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("a new connection with files again: got %d, %v, want 200", got, err)
		}
	}
	var ready admin.Readiness
	for ready.Store != "ok" && time.Now().Before(deadline) {
		if err := api.Do(t.Context(), "GET", "/service_users/readyz", nil, &ready); err != nil {
			t.Fatal(err)
		}
	}
	if ready.Store != "ok" {
		t.Errorf("the store with files again: got %q, want ok", ready.Store)
	}
	if err := api.Do(t.Context(), "DELETE", "/service_users/"+user.id+"/tokens/"+made.ID, nil, nil); err != nil {
		t.Errorf("a change with files again: %v", err)
	}
	round("with files again", 401)
}

// The request that follows an acknowledged revocation is refused, whoever else
// changes and asks at the same time.
func TestRevokedAtOnce(t *testing.T) {
	t.Parallel()
	s := withCaddyfile(newServer(t), faultsCaddyfile)
	s.mustCLI("group", "create", "readers", "--rule", "allow GET /v1/{rest...}")
	var running sync.WaitGroup
	var done atomic.Int64
	for n := range 8 {
		user := s.create(fmt.Sprint("u", n), "--group", "readers")
		running.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			api := &admin.Client{Base: "http://" + s.addr("CADDY_PORT"), HTTP: client}
			ask := func(secret string) int {
				req, _ := http.NewRequest("GET", "http://"+s.addr("API_PORT")+"/v1/x", nil)
				req.SetBasicAuth(user.id, secret)
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return 0
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				return resp.StatusCode
			}
			tokens := "/service_users/" + user.id + "/tokens"
			for range *revocations {
				var made, next admin.Token
				if err := api.Do(t.Context(), "POST", tokens, admin.TokenInput{}, &made); err != nil {
					t.Error(err)
					return
				}
				if got := ask(made.Secret); got != 200 {
					t.Errorf("a new token: got %d, want 200", got)
				}
				if err := api.Do(t.Context(), "POST", tokens+"/"+made.ID+"/refresh", admin.RefreshInput{}, &next); err != nil {
					t.Error(err)
					return
				}
				if got := ask(made.Secret); got != 401 {
					t.Errorf("a token right after it was refreshed: got %d, want 401", got)
				}
				if got := ask(next.Secret); got != 200 {
					t.Errorf("its successor: got %d, want 200", got)
				}
				if err := api.Do(t.Context(), "DELETE", tokens+"/"+next.ID, nil, nil); err != nil {
					t.Error(err)
					return
				}
				if got := ask(next.Secret); got != 401 {
					t.Errorf("a token right after it was revoked: got %d, want 401", got)
				}
				done.Add(1)
			}
		})
	}
	running.Wait()
	t.Logf("%d tokens refreshed and revoked", done.Load())
	if strings.Contains(s.log.String(), "DATA RACE") {
		t.Error("the server has a data race")
	}
}
