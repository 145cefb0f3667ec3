//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that was started here, with the children that it had
// when it was ready.
type process struct {
	name   string
	pids   []int
	log    string // the file of its output
	cmd    *exec.Cmd
	begun  time.Time
	took   time.Duration // to its first answer
	exited chan struct{}
}

// start runs a program, pinned to some processors, its output in a file.
func (b *bench) start(name, cpus string, env []string, args ...string) (*process, error) {
	b.started++
	p := &process{name: name, log: filepath.Join(b.dir, fmt.Sprintf("%d.log", b.started)), exited: make(chan struct{})}
	output, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	args = b.pinned(cpus, args...)
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = b.dir, output, output
	p.cmd.Env = append(os.Environ(), "HOME="+b.dir, "XDG_DATA_HOME="+b.dir, "XDG_CONFIG_HOME="+b.dir)
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for us to pass on
	p.begun = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p.pids = []int{p.cmd.Process.Pid}
	go func() { _ = p.cmd.Wait(); close(p.exited) }()
	b.running = append(b.running, p)
	return p, nil
}

// stop ends processes, by force when they take too long.
func (b *bench) stop(list ...*process) {
	for _, p := range list {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, p := range list {
		select {
		case <-p.exited:
		case <-time.After(2 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.exited
		}
		for i := range b.running {
			if b.running[i] == p {
				b.running = append(b.running[:i], b.running[i+1:]...)
				break
			}
		}
		_ = os.Remove(p.log)
	}
}

// await sends a request until its answer has the status.
func (p *process) await(ctx context.Context, protocol, address, request string, status int) error {
	begun := time.Now()
	var last any
	for time.Since(begun) < 2*time.Minute && ctx.Err() == nil {
		select {
		case <-p.exited:
			return fmt.Errorf("%s has ended:\n%s", p.name, tail(p.log))
		default:
		}
		got, _, err := ask(protocol, address, request)
		if got == status {
			if p.took == 0 {
				p.took, p.pids = time.Since(p.begun), family(p.cmd.Process.Pid)
			}
			return nil
		}
		if last = got; err != nil {
			last = err
		}
		time.Sleep(2 * time.Millisecond)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%s: got %v, want %d; the first request was\n%.300s\n%s", p.name, last, status, request, tail(p.log))
}

// ask sends a request, over a connection of its own, and returns the status and the body of the answer.
func ask(protocol, address, request string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var resp *http.Response
	if protocol == "" {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			return 0, "", err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Write([]byte(request)); err != nil {
			return 0, "", err
		}
		if resp, err = http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			return 0, "", err
		}
	} else {
		r, err := parse(request, protocol, address)
		if err != nil {
			return 0, "", err
		}
		client := transport(protocol)
		defer (&http.Client{Transport: client}).CloseIdleConnections()
		if resp, err = send(ctx, client, r); err != nil {
			return 0, "", err
		}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func tail(file string) string {
	text, _ := os.ReadFile(file)
	return string(text[max(0, len(text)-2000):])
}

// family is a process and its children.
func family(pid int) []int {
	list := []int{pid}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		if f := statFields(file); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			list = append(list, child)
		}
	}
	return list
}

// statFields returns the fields of /proc/PID/stat from the third one. The second field is the name
// of the program, which may contain any byte.
func statFields(file string) []string {
	text, _ := os.ReadFile(file)
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
}

const tick = 10 * time.Millisecond // of /proc: USER_HZ is 100 on Linux

// cpu is the processor time that a process has used, with its children.
func (p *process) cpu() (sum time.Duration) {
	for _, pid := range p.pids {
		f := statFields(fmt.Sprintf("/proc/%d/stat", pid))
		if len(f) < 13 {
			continue
		}
		for _, ticks := range f[11:13] { // utime, stime
			n, _ := strconv.Atoi(ticks)
			sum += time.Duration(n) * tick
		}
	}
	return sum
}

// cpu is the processor time of this program and of all that it has started.
func (b *bench) cpu() time.Duration {
	self := process{pids: []int{os.Getpid()}}
	sum := self.cpu()
	for _, p := range b.running {
		sum += p.cpu()
	}
	return sum
}

// resident is the memory that a process has, with its children, in MiB.
func (p *process) resident() (sum float64) {
	for _, pid := range p.pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if f := strings.Fields(string(text)); len(f) > 1 {
			pages, _ := strconv.Atoi(f[1])
			sum += float64(pages*os.Getpagesize()) / (1 << 20)
		}
	}
	return sum
}

// lines counts the lines that a process has written.
func (p *process) lines() float64 {
	text, _ := os.ReadFile(p.log)
	return float64(bytes.Count(text, []byte("\n")))
}

// settle waits until a process has nothing left to do from the slice before,
// such as hashes that nobody waits for any more.
func (p *process) settle(ctx context.Context) {
	for begun := time.Now(); time.Since(begun) < 20*time.Second && ctx.Err() == nil; {
		before := p.cpu()
		time.Sleep(50 * time.Millisecond)
		if p.cpu()-before <= 2*tick {
			return
		}
	}
}

// machineBusy is the processor time that everybody has used since the start of
// the machine.
func machineBusy() (sum time.Duration) {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	for i, ticks := range strings.Fields(strings.TrimPrefix(line, "cpu")) {
		if i == 3 || i == 4 || i > 7 { // idle, iowait; guests are counted elsewhere
			continue
		}
		n, _ := strconv.Atoi(ticks)
		sum += time.Duration(n) * tick
	}
	return sum
}

// freeAddress returns a free address of the loopback interface.
func (b *bench) freeAddress() (string, error) {
	for b.port < 32000 {
		b.port++
		address := fmt.Sprintf("127.0.0.1:%d", b.port)
		if l, err := net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", errors.New("no port below 32000 is free")
}
