package caddymodule

import (
	"math"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// again returns a function that makes the same request of the reader each time,
// and returns the status.
func (g *guard) again(path string) func() int {
	g.h.log = zap.NewNop()
	r := prepared(httptest.NewRequest("GET", path, nil))
	caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, "192.0.2.1")
	r.SetBasicAuth(g.reader.id, g.reader.secret)
	authorization := r.Header["Authorization"]
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { w.WriteHeader(204); return nil })
	w := statusWriter{header: make(http.Header)}
	return func() int {
		clear(r.Header)
		r.Header["Authorization"] = authorization
		clear(w.header)
		if err := g.h.ServeHTTP(&w, r, next); err != nil {
			g.t.Fatal(err)
		}
		return w.status
	}
}

// A request that is let through costs at most five allocations: the two parts of the
// credential, the name and the values of its identity headers, and the stream that it
// is while it lasts, with what placeholders show of it. An upload costs one more, and
// so does a cache before the handler.
func TestHandlerAllocations(t *testing.T) {
	again := newGuard(t, Handler{}).again("/v1/x")
	least := math.Inf(1)
	for range 3 { // another goroutine may allocate meanwhile
		least = min(least, testing.AllocsPerRun(100, func() {
			if status := again(); status != 204 {
				t.Fatalf("got %d", status)
			}
		}))
	}
	if most := 5.0; least > most {
		t.Errorf("got %v allocations, want %v at most", least, most)
	}
}

// BenchmarkHandler is the way of a request through the handler, again and again
// the same one.
func BenchmarkHandler(b *testing.B) {
	for name, tt := range map[string]struct {
		mode, path string
		want       int
	}{"allowed": {"enforce", "/v1/x", 204}, "observed": {"observe", "/x/7", 204}, "refused": {"enforce", "/x/7", 403}} {
		b.Run(name, func(b *testing.B) {
			g := newGuard(b, Handler{Mode: tt.mode})
			g.h.log = zap.NewNop()
			again := g.again(tt.path)
			b.ReportAllocs()
			for b.Loop() {
				if got := again(); got != tt.want {
					b.Fatalf("got %d", got)
				}
			}
		})
	}
}

// statusWriter keeps the status of an answer and nothing else.
type statusWriter struct {
	header http.Header
	status int
}

func (w *statusWriter) Header() http.Header            { return w.header }
func (w *statusWriter) WriteHeader(status int)         { w.status = status }
func (w *statusWriter) Write(text []byte) (int, error) { return len(text), nil }
