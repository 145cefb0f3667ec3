//go:build linux

package pgtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/serviceusers/caddy-service-users/internal/testkit"
)

// Own returns a server of one test, which may end it, with settings such as "work_mem=8MB". It skips or fails the
// test as [URL] does.
func Own(t testing.TB, settings ...string) *Server {
	t.Helper()
	// A process that is killed may have written half of a page.
	s, err := start(&Server{own: true, settings: append([]string{"full_page_writes=on"}, settings...)})
	if errors.Is(err, errMissing) {
		testkit.Missing(t, Advice)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.end.Close() })
	return s
}

// Log returns the log of the server.
func (s *Server) Log() string {
	text, _ := os.ReadFile(s.logFile())
	return string(text)
}

// The ways to stop a server: after it has ended all transactions, or at once, which leaves a start to recover.
const (
	Fast      = syscall.SIGINT
	Immediate = syscall.SIGQUIT
)

// Stop stops the server, and returns when it has ended.
func (s *Server) Stop(how syscall.Signal) error {
	err := s.server.Process.Signal(how)
	_ = s.server.Wait() // an immediate stop has another exit status than 0
	return err
}

// Kill kills all processes of the server with SIGKILL, and returns when they have ended. The server may be paused.
func (s *Server) Kill() error {
	// A process that is stopped starts no other.
	all, err := s.Pause()
	for _, pid := range all {
		err = errors.Join(err, ignore(syscall.Kill(pid, syscall.SIGKILL)))
	}
	_ = s.server.Wait()
	return errors.Join(err, await(all, func(state string) bool { return state == "" || state == "Z" }))
}

// Pause stops all processes of the server by SIGSTOP, and returns their ids.
func (s *Server) Pause() (all []int, err error) {
	// The first starts the others.
	first := s.server.Process.Pid
	stopped := func(state string) bool { return state == "T" || state == "" || state == "Z" }
	if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
		return nil, err
	}
	if err := await([]int{first}, stopped); err != nil {
		return nil, err
	}
	all, err = s.processes()
	for _, pid := range all {
		err = errors.Join(err, ignore(syscall.Kill(pid, syscall.SIGSTOP)))
	}
	return all, errors.Join(err, await(all, stopped))
}

// Continue lets a paused server go on.
func (s *Server) Continue() error {
	all, err := s.processes()
	for _, pid := range all {
		err = errors.Join(err, ignore(syscall.Kill(pid, syscall.SIGCONT)))
	}
	return err
}

// processes returns the ids of the server's processes, the first at the end.
func (s *Server) processes() (all []int, err error) {
	first := s.server.Process.Pid
	text, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(first), "task", fmt.Sprint(first), "children"))
	for word := range strings.FieldsSeq(string(text)) {
		var pid int
		if _, err := fmt.Sscan(word, &pid); err != nil {
			return nil, err
		}
		all = append(all, pid)
	}
	return append(all, first), err
}

// ignore drops the error of a signal to a process that has ended.
func ignore(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// await waits until the state of each process, as /proc has it, is the one meant; "" is that of no process.
func await(pids []int, meant func(state string) bool) error {
	for _, pid := range pids {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, state, _ := strings.Cut(string(stat), ") ")
			if meant(state[:min(1, len(state))]) {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d is in the state %s", pid, state)
			}
		}
	}
	return nil
}
