//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The roles that this program plays in processes of their own.

// answerAlways is an upstream: it answers every request with the same bytes. A
// server that understood requests would cost more than some of the proxies.
// Two queries have an answer of their own: "?bytes=N" gets N bytes, and "?head=1"
// the head of the request.
func answerAlways(address, head, body string) error {
	usual := answer(head, body)
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
			sized := make(map[string][]byte)
			for in := bufio.NewReader(conn); ; {
				query, echo, err := readRequest(in)
				if err != nil {
					return
				}
				reply := usual
				if length, found := strings.CutPrefix(query, "bytes="); found {
					if sized[length] == nil {
						n, _ := strconv.Atoi(length)
						sized[length] = answer(head, strings.Repeat("x", n))
					}
					reply = sized[length]
				} else if query == "head=1" {
					reply = answer(head, string(echo))
				}
				if _, err := conn.Write(reply); err != nil {
					return
				}
			}
		}()
	}
}

func answer(head, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
}

// readRequest reads a request to its end. It returns the query, and the head if the query is "head=1".
func readRequest(in *bufio.Reader) (query string, head []byte, err error) {
	length := 0 // of the body
	for begin, first := true, true; ; first = false {
		part, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return "", nil, err
		}
		if begin && string(part) == "\r\n" {
			_, err := in.Discard(length)
			return query, head, err
		}
		if first {
			_, rest, _ := bytes.Cut(part, []byte("?"))
			rest, _, _ = bytes.Cut(rest, []byte(" "))
			query = string(rest)
		} else if value, found := bytes.CutPrefix(part, []byte("Content-Length: ")); begin && found {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return "", nil, err
			}
		}
		if query == "head=1" {
			head = append(head, part...)
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
