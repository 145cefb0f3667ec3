package caddymodule

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// watchAfter is how long a granted request is under way until it is watched: most are
// over before, and cost no entry in a list that all of them would write. A WebSocket
// is watched from the start. It is shorter in tests.
var watchAfter = 5 * time.Second

// errCut is why a stream ends.
var errCut = errors.New("the service user has lost the right to this stream")

// streams holds the granted requests that are watched. They were judged at their
// start, and are judged again whenever the directory changes, and when they expire.
type streams struct {
	store  *store.Store
	alarms sync.Pool // of *alarm, none of which is set
	mu     sync.Mutex
	open   map[*stream]struct{}
	look   chan struct{} // one value: the directory has changed
	stop   chan struct{}
}

// stream is a granted request and its answer. It is the ResponseWriter of the
// handlers behind, so that a cut ends what they write, and its length is known.
type stream struct {
	caddyhttp.ResponseWriterWrapper
	identity identity
	action   access.Action
	further  []target
	handler  *Handler

	all    *streams
	alarm  *alarm // rings when it is to be watched, judged or cut
	unread atomic.Int64
	unsent atomic.Int64 // of an answer of known length; negative before it begins
	sentAt atomic.Int64 // when it was last seen to send a body of known length, in Unix nanoseconds
	isHead bool
	isH2   bool

	mu      sync.Mutex
	watched bool
	gone    atomic.Bool // it is cut
	ended   bool
	cancel  context.CancelCauseFunc // nil where the deadlines end everything
	conn    net.Conn                // of a WebSocket over HTTP/1.1
}

// alarm is a timer that is used again and again, since it costs more than a request
// should.
type alarm struct {
	timer *time.Timer
	st    *stream
}

func newStreams(s *store.Store) *streams {
	all := &streams{store: s, open: make(map[*stream]struct{}), look: make(chan struct{}, 1), stop: make(chan struct{})}
	all.alarms.New = func() any {
		a := new(alarm)
		a.timer = time.AfterFunc(math.MaxInt64, func() { a.st.ring() })
		return a
	}
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

// begin returns a granted request as a stream. Its serve has to be called.
func (all *streams) begin(h *Handler, w http.ResponseWriter, rq *request, decision access.Decision) *stream {
	st := &stream{
		all: all, handler: h, action: rq.action, further: rq.further,
		isHead: rq.r.Method == http.MethodHead, isH2: rq.r.ProtoMajor == 2,
	}
	st.ResponseWriter = w
	st.identity.principal, st.identity.decision = rq.principal, decision
	st.unread.Store(max(rq.r.ContentLength, 0))
	st.unsent.Store(-1)
	if decision.Header || opensWebSocket(rq.r) {
		st.action.Header = http.Header(rq.action.Header).Clone() // what serves the request may change it
	} else {
		st.action.Header, st.action.HeaderGone = nil, true
	}
	return st
}

// serve calls the next handler, and ends the connection or stream of HTTP/2 or
// HTTP/3 without a proper end when it was cut: no cache or client may take the
// answer for a whole one.
func (st *stream) serve(r *http.Request, next caddyhttp.Handler) error {
	if r.ContentLength > 0 {
		r.Body = &countedBody{r.Body, st}
	}
	if webSocket := opensWebSocket(r); webSocket || r.ProtoMajor == 3 {
		// Nothing else reaches the other end of a WebSocket, or a handler that waits
		// for it while nothing is read or written over HTTP/3.
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		r, st.cancel = r.WithContext(ctx), cancel
		st.begun(webSocket)
	} else {
		st.begun(false)
	}
	defer st.end()
	err := next.ServeHTTP(st, r)
	if st.end(); st.gone.Load() && st.conn == nil {
		panic(http.ErrAbortHandler)
	}
	return err
}

// begun sets the alarm of a stream, or has it watched at once.
func (st *stream) begun(now bool) {
	st.alarm = st.all.alarms.Get().(*alarm)
	st.alarm.st = st
	if now {
		st.ring()
		return
	}
	st.alarm.timer.Reset(watchAfter)
}

// ring has a stream watched, or judged or cut again.
func (st *stream) ring() {
	if st.gone.Load() {
		st.expire()
		return
	}
	st.mu.Lock()
	if !st.watched && !st.ended {
		st.watched = true
		st.identity.alone()
		st.all.mu.Lock()
		st.all.open[st] = struct{}{}
		st.all.mu.Unlock()
		metrics.openStreams.Inc()
	}
	st.mu.Unlock()
	// The directory may have changed since the principal was looked up, before the
	// stream was in the list.
	st.all.judge(st)
}

// end takes a stream out of the list. A handler that has returned cannot be cut.
func (st *stream) end() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.ended {
		return
	}
	st.ended = true
	if st.watched {
		st.all.mu.Lock()
		delete(st.all.open, st)
		st.all.mu.Unlock()
		metrics.openStreams.Dec()
	}
	if stopped := st.alarm.timer.Stop(); stopped && !st.watched { // else it may be ringing
		st.alarm.st = nil
		st.all.alarms.Put(st.alarm)
	}
}

// cut ends a stream whose handler has not returned.
func (st *stream) cut() {
	st.mu.Lock()
	if st.ended || st.gone.Swap(true) {
		st.mu.Unlock()
		return
	}
	if st.cancel != nil {
		st.cancel(errCut)
	}
	st.mu.Unlock()
	metrics.cutStreams.Inc()
	st.expire()
}

// expire lets everything that the handler of a stream does with the client fail at
// once. Over HTTP/1.1 the server then cancels the request, over HTTP/2 it resets the
// stream. A write that was under way may have set another deadline, so this is done
// until the handler has returned.
func (st *stream) expire() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.ended {
		return
	}
	past := time.Unix(1, 0)
	if st.conn != nil {
		_ = st.conn.SetDeadline(past)
	} else {
		_ = http.NewResponseController(st.ResponseWriter).SetReadDeadline(past)
		// Caddy's own writer cannot be used at the same time as the handler uses it.
		w := st.ResponseWriter
		for u, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok; u, ok = w.(interface{ Unwrap() http.ResponseWriter }) {
			w = u.Unwrap()
		}
		_ = http.NewResponseController(w).SetWriteDeadline(past)
	}
	if !st.isH2 {
		st.alarm.timer.Reset(time.Second)
	}
}

// sends reports whether a body of known length is on its way: the answer's, and
// before it the request's.
func (st *stream) sends() bool {
	if unsent := st.unsent.Load(); unsent >= 0 {
		return unsent > 0
	}
	return st.unread.Load() > 0
}

// answers takes the length of the answer from its header.
func (st *stream) answers(status int) {
	if status < 200 || st.unsent.Load() >= 0 {
		return
	}
	length := int64(0)
	if values := st.Header()["Content-Length"]; len(values) == 1 && !st.isHead {
		length, _ = strconv.ParseInt(values[0], 10, 64)
	}
	st.unsent.Store(max(length, 0))
}

// WriteHeader writes the header, unless the stream is cut.
func (st *stream) WriteHeader(status int) {
	if st.gone.Load() {
		return
	}
	st.answers(status)
	st.ResponseWriter.WriteHeader(status)
}

// Write writes a part of the body, unless the stream is cut.
func (st *stream) Write(text []byte) (int, error) {
	if st.gone.Load() {
		return 0, errCut
	}
	st.answers(http.StatusOK)
	n, err := st.ResponseWriter.Write(text)
	st.unsent.Store(max(st.unsent.Load()-int64(n), 0))
	return n, err
}

// ReadFrom copies the body from a reader, in pieces, so that a cut comes between two.
func (st *stream) ReadFrom(from io.Reader) (n int64, err error) {
	const piece = 256 << 10
	st.answers(http.StatusOK)
	for !st.gone.Load() {
		m, err := st.ResponseWriterWrapper.ReadFrom(io.LimitReader(from, piece))
		n += m
		st.unsent.Store(max(st.unsent.Load()-m, 0))
		if err != nil || m < piece {
			return n, err
		}
	}
	return n, errCut
}

// FlushError sends what is written so far, unless the stream is cut.
func (st *stream) FlushError() error {
	if st.gone.Load() {
		return errCut
	}
	st.answers(http.StatusOK)
	return http.NewResponseController(st.ResponseWriter).Flush()
}

// Hijack hands the connection over, to a WebSocket, and keeps it for a cut.
func (st *stream) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(st.ResponseWriter).Hijack()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.conn = conn; err == nil && st.gone.Load() {
		_ = conn.SetDeadline(time.Unix(1, 0))
	}
	return conn, buffered, err
}

// countedBody counts what is still to come of a request body of known length.
type countedBody struct {
	io.ReadCloser
	st *stream
}

func (b *countedBody) Read(into []byte) (int, error) {
	if b.st.gone.Load() {
		return 0, errCut
	}
	n, err := b.ReadCloser.Read(into)
	if b.st.unread.Add(-int64(n)); err != nil {
		b.st.unread.Store(0)
	}
	return n, err
}

// opensWebSocket reports whether a request that has passed the sanitizer opens a
// WebSocket.
func opensWebSocket(r *http.Request) bool { return r.Header["Upgrade"] != nil || isWebSocketConnect(r) }

// isWebSocketConnect reports whether r is an extended CONNECT that opens a WebSocket
// over HTTP/2 (RFC 8441) or HTTP/3 (RFC 9220). Caddy's proxy makes it the GET that
// HTTP/1.1 upstreams know.
func isWebSocketConnect(r *http.Request) bool {
	if r.Method != http.MethodConnect {
		return false
	}
	protocol := r.Header[":protocol"]
	return r.ProtoMajor == 2 && len(protocol) == 1 && protocol[0] == "websocket" || r.ProtoMajor == 3 && r.Proto == "websocket"
}

// judge cuts a stream that would not be let through now, or that nobody would look at
// again. One that still sends a body of known length outlives the expiry of its token.
func (all *streams) judge(st *stream) {
	directory, now := all.store.Directory(), all.store.Now()
	action := st.action
	action.Now = now.Unix()
	until, lasts, was := int64(0), false, st.identity.who()
	principal, reason := directory.Resume(was, action.Address, action.Now)
	if st.sends() {
		st.sentAt.Store(now.UnixNano())
	}
	// Behind an upload, the upstream has the same time to begin its answer as the
	// next look takes to come.
	if reason == access.TokenExpired && now.UnixNano()-st.sentAt.Load() < int64(2*watchAfter) {
		lasts = true
		principal, reason = directory.ResumeExpired(was, action.Address, action.Now)
	}
	if reason == access.Granted && !isClosed(all.stop) && !all.store.Stale() {
		permits := func(a access.Action) bool {
			decision := directory.Authorize(principal, a)
			return decision.Allowed() || decision.Reason == access.NoRule && st.handler.observesStill()
		}
		if permits(action) && !slices.ContainsFunc(st.further, func(t target) bool { return !permits(t.of(action)) }) {
			if until = principal.Until(); lasts {
				if next := now.Add(watchAfter + time.Second - 1).Unix(); until == 0 || next < until {
					until = next // it may have sent everything by then
				}
			}
			st.judgeAt(until, now) // its end may be another one than before
			return
		}
	}
	st.cut()
}

// judgeAt has a stream judged at an instant in Unix seconds; 0 is never.
func (st *stream) judgeAt(until int64, now time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.ended && !st.gone.Load() && until != 0 {
		st.alarm.timer.Reset(time.Unix(until, 0).Sub(now))
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
