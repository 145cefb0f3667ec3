package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// errCut is why the context of a stream is cancelled.
var errCut = errors.New("the service user has lost the right to this stream")

// streams holds the open WebSockets, event streams and gRPC calls. Other
// requests are judged at their start and are over soon; these go on, so they
// are judged again whenever the directory changes, and when they expire.
type streams struct {
	store *store.Store
	mu    sync.Mutex
	open  map[*stream]struct{}
	look  chan struct{} // one value: the directory has changed
	stop  chan struct{}
}

type stream struct {
	principal access.Principal
	action    access.Action
	address   netip.Addr
	cut       context.CancelCauseFunc
}

func newStreams(s *store.Store) *streams {
	all := &streams{store: s, open: make(map[*stream]struct{}), look: make(chan struct{}, 1), stop: make(chan struct{})}
	s.OnChange(func() {
		select {
		case all.look <- struct{}{}:
		default: // somebody is about to look anyway
		}
	})
	go all.watch()
	return all
}

// isStream reports whether a request may stay open: a WebSocket, an event
// stream, a gRPC call.
func isStream(r *http.Request) bool {
	if r.Header["Upgrade"] != nil {
		return true
	}
	for _, accept := range r.Header["Accept"] {
		if strings.Contains(strings.ToLower(accept), "text/event-stream") {
			return true
		}
	}
	return strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), "application/grpc")
}

// add keeps an eye on a stream. The request that is returned has to be served
// in the place of r, and done called when it is over.
func (all *streams) add(r *http.Request, p access.Principal, a access.Action) (watched *http.Request, done func()) {
	ctx, cut := context.WithCancelCause(r.Context())
	st := &stream{p, a, clientAddress(r), cut}
	all.mu.Lock()
	all.open[st] = struct{}{}
	all.mu.Unlock()
	metrics.openStreams.Inc()

	var expiry *time.Timer
	if until := p.Until(); until != 0 {
		expiry = time.AfterFunc(time.Until(time.Unix(until, 0)), func() { all.judge(st) })
	}
	// The directory may have changed since the principal was looked up, before
	// the stream was in the list.
	all.judge(st)
	return r.WithContext(ctx), func() {
		if expiry != nil {
			expiry.Stop()
		}
		cut(nil)
		all.mu.Lock()
		delete(all.open, st)
		all.mu.Unlock()
		metrics.openStreams.Dec()
	}
}

// judge cuts a stream that would not be let through now.
func (all *streams) judge(st *stream) {
	directory := all.store.Directory()
	principal, why := directory.Resume(st.principal, st.address, all.store.Now().Unix())
	if why == access.Granted && directory.Authorize(principal, st.action).Allowed() {
		return
	}
	all.mu.Lock()
	_, open := all.open[st]
	delete(all.open, st) // it is judged once more at most
	all.mu.Unlock()
	if open {
		metrics.cutStreams.Inc()
		st.cut(errCut)
	}
}

func (all *streams) watch() {
	for {
		select {
		case <-all.stop:
			return
		case <-all.look:
		}
		all.mu.Lock()
		list := make([]*stream, 0, len(all.open))
		for st := range all.open {
			list = append(list, st)
		}
		all.mu.Unlock()
		for _, st := range list {
			all.judge(st)
		}
	}
}

func (all *streams) close() { close(all.stop) }
