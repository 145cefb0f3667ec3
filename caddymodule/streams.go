package caddymodule

import (
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
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
	further   []target
	observes  func() bool // whether no rule is needed that allows it
	cut       context.CancelCauseFunc
	expiry    *time.Timer // judges it again
}

func newStreams(s *store.Store) *streams {
	all := &streams{store: s, open: make(map[*stream]struct{}), look: make(chan struct{}, 1), stop: make(chan struct{})}
	s.OnChange(func() {
		metrics.showAudit(s.AuditHead())
		all.lookAgain()
	})
	metrics.showAudit(s.AuditHead())
	go all.watch()
	return all
}

// lookAgain has every stream judged soon.
func (all *streams) lookAgain() {
	select {
	case all.look <- struct{}{}:
	default: // somebody is about to look anyway
	}
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
	content := r.Header["Content-Type"]
	return len(content) > 0 && strings.HasPrefix(strings.ToLower(content[0]), "application/grpc")
}

// add keeps an eye on a stream. The request that is returned has to be served
// in the place of r, and done called when it is over.
func (all *streams) add(r *http.Request, p access.Principal, a access.Action, further []target, observes func() bool) (watched *http.Request, done func()) {
	ctx, cut := context.WithCancelCause(r.Context())
	a.Header = http.Header(a.Header).Clone() // conditions look at it again, and what serves the request may change it
	st := &stream{principal: p, action: a, further: further, observes: observes, cut: cut}
	st.expiry = time.AfterFunc(math.MaxInt64, func() { all.judge(st) })
	all.mu.Lock()
	all.open[st] = struct{}{}
	all.mu.Unlock()
	metrics.openStreams.Inc()

	// The directory may have changed since the principal was looked up, before
	// the stream was in the list.
	all.judge(st)
	return r.WithContext(ctx), func() {
		cut(nil)
		all.mu.Lock()
		delete(all.open, st)
		all.mu.Unlock()
		st.expiry.Stop()
		metrics.openStreams.Dec()
	}
}

// judge cuts a stream that would not be let through now, or that nobody would
// look at again.
func (all *streams) judge(st *stream) {
	directory, now := all.store.Directory(), all.store.Now()
	action := st.action
	action.Now = now.Unix()
	principal, why := directory.Resume(st.principal, action.Address, action.Now)
	if why == access.Granted && !isClosed(all.stop) && !all.store.Stale() {
		permits := func(a access.Action) bool {
			decision := directory.Authorize(principal, a)
			return decision.Allowed() || decision.Reason == access.NoRule && st.observes()
		}
		if permits(action) && !slices.ContainsFunc(st.further, func(t target) bool { return !permits(t.of(action)) }) {
			all.judgeAt(st, principal.Until(), now) // its end may be another one than before
			return
		}
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

// judgeAt has a stream judged at an instant in Unix seconds; 0 is never.
func (all *streams) judgeAt(st *stream, until int64, now time.Time) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if _, open := all.open[st]; open && until != 0 {
		st.expiry.Reset(time.Unix(until, 0).Sub(now))
	}
}

func (all *streams) watch() {
	for {
		select {
		case <-all.stop:
			return
		case <-all.look:
			all.judgeAll()
		}
	}
}

func (all *streams) judgeAll() {
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

// close cuts what is still open: from now on nobody would see that it has lost
// its right.
func (all *streams) close() {
	close(all.stop)
	all.judgeAll()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false // so is nil
	}
}
