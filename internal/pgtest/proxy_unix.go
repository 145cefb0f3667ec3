//go:build unix

package pgtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy passes the traffic of a store to the server at a TCP address, and returns its own address. It calls cut
// with each part that the store sends. If cut reports end, the connection ends, and the store gets no answer
// to the part. With forward the server has got the part.
func Proxy(t testing.TB, to string, cut func(sent []byte) (end, forward bool)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go pass(c, to, cut)
		}
	}()
	return l.Addr().String()
}

func pass(c net.Conn, to string, cut func([]byte) (end, forward bool)) {
	defer c.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	var mu sync.Mutex
	ended := false
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			mu.Lock()
			if !ended {
				_, _ = c.Write(buf[:n])
			}
			mu.Unlock()
			if err != nil {
				c.Close()
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if end, forward := cut(buf[:n]); end {
			mu.Lock()
			ended = true
			mu.Unlock()
			if forward {
				_, _ = server.Write(buf[:n])
				// The server ends the connection after the statements that it has got.
				_ = server.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, server)
			}
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}
