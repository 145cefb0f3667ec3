//go:build linux

package main

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The roles that this program plays in processes of their own.

// answerAlways is an upstream: it answers every request with the same bytes. A
// server that understood requests would cost more than some of the proxies.
func answerAlways(address, extra string) error {
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + extra + "Content-Length: 13\r\n\r\nhello, world\n")
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			for in := bufio.NewReader(conn); skipHead(in) == nil; {
				if _, err := conn.Write(answer); err != nil {
					return
				}
			}
		}()
	}
}

// skipHead reads to the end of a request without a body.
func skipHead(in *bufio.Reader) error {
	for begin := true; ; {
		part, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		if begin && string(part) == "\r\n" {
			return nil
		}
		begin = err == nil
	}
}

// flood sends the requests of a file over some connections for a while, at most
// rate of them a second (0: as fast as they are answered), and prints how many
// were answered.
func flood(address, file string, connections, rate int, lasts time.Duration) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	requests := strings.Split(string(text), "\x00")
	begun := time.Now()
	var next, answered atomic.Int64
	var done sync.WaitGroup
	for range connections {
		done.Go(func() {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(begun.Add(lasts))
			in := bufio.NewReader(conn)
			for {
				n := next.Add(1) - 1
				if rate > 0 {
					due := begun.Add(time.Duration(n) * time.Second / time.Duration(rate))
					if due.After(begun.Add(lasts)) {
						return
					}
					time.Sleep(time.Until(due))
				}
				if _, err := conn.Write([]byte(requests[int(n)%len(requests)])); err != nil {
					return
				}
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					return
				}
				if _, err := in.Discard(int(resp.ContentLength)); err != nil {
					return
				}
				answered.Add(1)
			}
		})
	}
	done.Wait()
	fmt.Println(answered.Load())
	return nil
}

// request returns the request of a plain client: no body, and few headers.
func request(target string, headers ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: bench/1\r\nAccept: */*\r\n" +
		"X-Request-Id: 5f0c1a52-7c2e-4a37-9d4b-1c5a8e9d0b11\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n"
}

func basic(id, secret string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}
