//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// The protocols that wrk does not speak: HTTP/1.1 and HTTP/2 over TLS, HTTP/2 without TLS, and HTTP/3.
const (
	https1 = "https1"
	https2 = "https2"
	h2c    = "h2c"
	https3 = "https3"
)

// transport returns a client with connections of its own.
func transport(protocol string) http.RoundTripper {
	secure := &tls.Config{ServerName: "api.example.com", InsecureSkipVerify: true} // the certificate is from Caddy's own authority
	if protocol == https3 {
		return &http3.Transport{TLSClientConfig: secure, DisableCompression: true}
	}
	t := &http.Transport{TLSClientConfig: secure, DisableCompression: true, Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(protocol == https1)
	t.Protocols.SetHTTP2(protocol == https2)
	t.Protocols.SetUnencryptedHTTP2(protocol == h2c)
	return t
}

// parse reads the text of a request, without its body, as a request to an address.
func parse(text, protocol, address string) (*http.Request, error) {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return nil, err
	}
	r.RequestURI, r.URL.Scheme, r.URL.Host = "", "https", address
	if protocol == h2c {
		r.URL.Scheme = "http"
	}
	return r, nil
}

// send sends a request, with as many zero bytes as it announces.
func send(ctx context.Context, client http.RoundTripper, r *http.Request) (*http.Response, error) {
	r = r.WithContext(ctx)
	if r.ContentLength > 0 {
		r.Body = io.NopCloser(bytes.NewReader(zeros[:r.ContentLength]))
	}
	return client.RoundTrip(r)
}

var zeros [1 << 20]byte

// load sends the requests of a file for a while, at most atOnce at a time, and prints the figures of
// their answers. Four of them share a connection of HTTP/2 or HTTP/3.
func load(protocol, address, file string, atOnce int, lasts time.Duration) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var requests []*http.Request
	for text := range strings.SplitSeq(string(text), "\x00") {
		r, err := parse(text, protocol, address)
		if err != nil {
			return err
		}
		requests = append(requests, r)
	}
	debug.SetGCPercent(400) // the work of the client is not measured
	ctx, cancel := context.WithTimeout(context.Background(), lasts+30*time.Second)
	defer cancel()
	var refused, broken atomic.Int64
	var done sync.WaitGroup
	var client http.RoundTripper
	times := make([][]time.Duration, atOnce)
	begun := time.Now()
	for i := range atOnce {
		if protocol == https1 || i%4 == 0 {
			client = transport(protocol)
		}
		client := client
		done.Go(func() {
			for n := i; time.Since(begun) < lasts && ctx.Err() == nil; n += atOnce {
				sent := time.Now()
				resp, err := send(ctx, client, requests[n%len(requests)])
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				switch {
				case err != nil:
					broken.Add(1)
					continue
				case resp.StatusCode >= 400:
					refused.Add(1)
				}
				times[i] = append(times[i], time.Since(sent))
			}
		})
	}
	done.Wait()
	took := time.Since(begun)
	all := slices.Sorted(slices.Values(slices.Concat(times...)))
	var p50, p99 time.Duration
	if n := len(all); n > 0 {
		p50, p99 = all[n/2], all[n*99/100]
	}
	fmt.Println(len(all), float64(len(all))/took.Seconds(), int64(p50), int64(p99), refused.Load(), broken.Load())
	return nil
}

// parseLoad parses the output of [load].
func parseLoad(text string) (a answers, err error) {
	if _, err := fmt.Sscan(text, &a.requests, &a.rate, (*int64)(&a.p50), (*int64)(&a.p99), &a.refused, &a.broken); err != nil {
		return a, fmt.Errorf("the figures of the load: %w: %q", err, text)
	}
	return a, nil
}
