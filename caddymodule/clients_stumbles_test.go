package caddymodule

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// stumbles checks that a program without its id, its token or a place for a new token sends no
// request, and so makes no failed attempt and ends no token.
func (c *clientRun) stumbles(program clientProgram, s *server, name string, user credentials) {
	var sent atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { sent.Add(1) }))
	defer elsewhere.Close()
	noID, noToken := *c, *c
	isID := func(v string) bool { return strings.HasPrefix(v, "API_ID=") }
	noID.env = slices.DeleteFunc(slices.Clone(c.env), isID)
	noToken.env = append(slices.Clip(c.env), "API_TOKEN_FILE="+c.tokenFile+".missing")
	noID.expect(elsewhere.URL, []string{"GET", "/v1/people/7"}, false, "", "")
	noToken.expect(elsewhere.URL, []string{"GET", "/v1/people/7"}, false, "", "")
	if n := sent.Load(); n != 0 {
		c.t.Errorf("%d requests were sent without an id or a token", n)
	}
	c.readOnly(s, name, user)
	if program.file == "api.sh" {
		c.terminated()
	}
}

// readOnly rotates with a token file in a directory in which even root can create no file.
func (c *clientRun) readOnly(s *server, name string, user credentials) {
	if runtime.GOOS != "linux" {
		return
	}
	f, err := os.Open(c.tokenFile)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	mounted := *c
	mounted.env = append(slices.Clip(c.env), fmt.Sprintf("API_TOKEN_FILE=/proc/%d/fd/%d", os.Getpid(), f.Fd()))
	url := "http://" + s.addr("API_PORT")
	mounted.expect(url, []string{"GET", "/v1/people/7"}, true, "7 for "+name)
	mounted.expect(url, []string{"rotate", "/_service_user"}, false, "")
	if got := s.get("/_service_user", user); !strings.Contains(got.body, `"retiring":false`) {
		c.t.Errorf("rotate ended the old token, and could not write the new one: %s", got.body)
	}
}

// terminated ends a script during a request, and looks for a copy of the token.
func (c *clientRun) terminated() {
	t := c.t
	started := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	}))
	defer silent.Close()
	tmp := t.TempDir()
	cmd := c.cmd(silent.URL, "GET", "/")
	cmd.Env = append(cmd.Env, "TMPDIR="+tmp)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-started:
	case <-time.After(time.Minute):
		t.Error("the script sent no request")
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	if err := cmd.Wait(); err == nil {
		t.Error("the script ended well, want the status of SIGTERM")
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("the script left %v (%v)", left, err)
	}
}
