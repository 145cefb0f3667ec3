package caddymodule

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// BenchmarkProxy is the way of a request through a proxy to an upstream on this machine and back, without
// the connection to the client: through reverse_proxy, service_users_proxy, and both behind the guard. The
// upstream costs the same in all of them.
func BenchmarkProxy(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go answerAlways(l)
	ctx, err := caddy.ProvisionContext(&caddy.Config{Logging: noLogs()})
	if err != nil {
		b.Fatal(err)
	}
	stock := &reverseproxy.Handler{Upstreams: reverseproxy.UpstreamPool{{Dial: l.Addr().String()}}}
	lean := &Proxy{Address: l.Addr().String()}
	if err := errors.Join(stock.Provision(ctx), lean.Provision(ctx)); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = errors.Join(stock.Cleanup(), lean.Cleanup()) }()
	g := newGuard(b, Handler{})
	guarded := func(proxy caddyhttp.MiddlewareHandler) caddyhttp.MiddlewareHandler {
		return middleware(func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
			return g.h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				return proxy.ServeHTTP(w, r, next)
			}))
		})
	}
	for _, proxy := range []struct {
		name    string
		handler caddyhttp.MiddlewareHandler
	}{
		{"reverse_proxy", stock}, {"service_users_proxy", lean},
		{"guarded reverse_proxy", guarded(stock)}, {"guarded service_users_proxy", guarded(lean)},
	} {
		b.Run(proxy.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				w := statusWriter{header: make(http.Header)}
				for pb.Next() {
					r := httptest.NewRequest("GET", "/v1/x", nil)
					r.SetBasicAuth(g.reader.id, g.reader.secret)
					r.Header.Set("User-Agent", "x")
					r.Header.Set("Accept-Encoding", "identity")
					r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), nil, new(caddyhttp.Server))
					caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, "192.0.2.1")
					caddyhttp.SetVar(r.Context(), caddyhttp.TrustedProxyVarKey, false)
					clear(w.header)
					if err := proxy.handler.ServeHTTP(&w, r, nil); err != nil || w.status != 200 {
						b.Errorf("got %d %v", w.status, err)
						return
					}
				}
			})
		})
	}
}

// middleware is a function as a handler.
type middleware func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error

func (m middleware) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return m(w, r, next)
}

// answerAlways answers every request without a body that comes in one piece with the same bytes.
func answerAlways(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for head := make([]byte, 4096); ; {
				if _, err := conn.Read(head); err != nil {
					return
				}
				_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello, world\n"))
			}
		}()
	}
}
