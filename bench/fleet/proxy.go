//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync/atomic"
)

// proxy passes connections on to the server, counts their bytes, and can lose notifications.
type proxy struct {
	net.Listener
	to    string
	lose  atomic.Pointer[func(payload string) bool] // says whether to lose a notification
	bytes atomic.Int64                              // in both directions
}

// The notifications that a proxy can lose. The echo of a node has no payload.
var (
	none    = func(string) bool { return false }
	changes = func(payload string) bool { return payload != "" }
	every   = func(string) bool { return true }
)

// startProxy starts a proxy before the server of a store, and returns the URL through it.
func startProxy(db *database) (p *proxy, through string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	u, err := url.Parse(db.direct())
	if err != nil {
		return nil, "", err
	}
	p = &proxy{Listener: l, to: net.JoinHostPort("127.0.0.1", strconv.Itoa(db.Port))}
	p.lose.Store(&none)
	u.Host = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.pass(c)
		}
	}()
	return p, u.String(), nil
}

func (p *proxy) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(counter{server, p}, client)
		server.Close()
	}()
	in, out := bufio.NewReaderSize(server, 64<<10), bufio.NewWriterSize(counter{client, p}, 64<<10)
	for p.message(in, out) == nil {
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
	}
}

// message passes one message of the server on: its type, its length with the four bytes of itself, and
// its contents. https://www.postgresql.org/docs/current/protocol-message-formats.html
func (p *proxy) message(in *bufio.Reader, out *bufio.Writer) error {
	head, err := in.Peek(5)
	if err != nil {
		return err
	}
	length := int64(binary.BigEndian.Uint32(head[1:])) + 1
	if head[0] != 'A' { // NotificationResponse
		_, err = io.CopyN(out, in, length)
		return err
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(in, text); err != nil {
		return err
	}
	// The id of a process, the channel and the payload, each text with a zero byte behind it.
	fields := bytes.Split(text[9:], []byte{0})
	if len(fields) > 1 && (*p.lose.Load())(string(fields[1])) {
		return nil
	}
	_, err = out.Write(text)
	return err
}

// counter counts the bytes that go into a connection.
type counter struct {
	net.Conn
	p *proxy
}

func (c counter) Write(b []byte) (int, error) {
	c.p.bytes.Add(int64(len(b)))
	return c.Conn.Write(b)
}
