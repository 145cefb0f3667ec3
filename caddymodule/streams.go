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

// watchAfter is the time after which a granted request that is still under way is watched. Most
// requests are over before that, and need no entry in a list that all requests would write to. A
// WebSocket is watched from the start. Tests make this time shorter.
var watchAfter = 5 * time.Second

// errCut is the error of reads and writes on a stream that was cut.
var errCut = errors.New("the service user has lost the right to this stream")

// streams is the list of the granted requests that are watched. Each was judged at its start. It is
// judged again whenever the directory changes, and at the instant at which its principal expires.
type streams struct {
	store   *store.Store
	alarms  sync.Pool // of *alarm; the timers in the pool are stopped
	mu      sync.Mutex
	open    map[*stream]struct{}
	changed chan struct{} // has room for one value: the directory has changed
	stop    chan struct{}
}

// stream is a granted request and its answer. It is also the ResponseWriter of the handlers behind
// service_users, so that a cut stops their writes, and so that the length of the answer is known.
type stream struct {
	caddyhttp.ResponseWriterWrapper
	identity identity
	action   access.Action
	further  []target
	handler  *Handler

	all    *streams
	alarm  *alarm       // rings when the stream has to be watched, judged or cut
	unread atomic.Int64 // bytes of the request's body that are still to come, if its length is known
	unsent atomic.Int64 // the same of the answer's body; negative before the answer begins
	sentAt atomic.Int64 // Unix nanoseconds: the last look that found a body of known length under way
	isHead bool
	isH2   bool

	mu      sync.Mutex
	watched bool
	isCut   atomic.Bool
	ended   bool
	cancel  context.CancelCauseFunc // nil where expired deadlines are enough to end the stream
	conn    net.Conn                // of a WebSocket over HTTP/1.1
}

type unwrapper interface{ Unwrap() http.ResponseWriter }

// alarm is a timer that is used again for another stream: a new timer costs more than one request
// should.
type alarm struct {
	timer *time.Timer
	st    *stream
}

func newStreams(s *store.Store) *streams {
	all := &streams{
		store: s, open: make(map[*stream]struct{}),
		changed: make(chan struct{}, 1), stop: make(chan struct{}),
	}
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

// lookAgain has watch judge every stream soon. It does not wait.
func (all *streams) lookAgain() {
	select {
	case all.changed <- struct{}{}:
	default: // watch is about to judge the streams anyway
	}
}

// begin returns a granted request as a stream. The caller has to call [stream.serve].
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
		st.action.Header = http.Header(rq.action.Header).Clone() // the handlers behind may change the original
	} else {
		// Most requests are over before they are judged again: to keep a copy of each header
		// costs too much. A condition that then asks for a header fails.
		st.action.Header, st.action.HeaderGone = nil, true
	}
	return st
}

// serve calls the next handler. If the stream was cut, serve aborts the connection, or the stream
// of HTTP/2 or HTTP/3: no cache or client may take the answer for a complete one.
func (st *stream) serve(r *http.Request, next caddyhttp.Handler) error {
	if r.ContentLength > 0 {
		r.Body = &countedBody{r.Body, st}
	}
	webSocket := opensWebSocket(r)
	if webSocket || r.ProtoMajor == 3 {
		// Expired deadlines do not reach the other end of a WebSocket. Over HTTP/3 they do
		// not reach a handler that waits for the context alone, without a read or a write.
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		r, st.cancel = r.WithContext(ctx), cancel
	}
	st.setAlarm(webSocket)
	defer st.end()
	err := next.ServeHTTP(st, r)
	if st.end(); st.isCut.Load() && st.conn == nil {
		panic(http.ErrAbortHandler)
	}
	return err
}

// setAlarm sets the alarm of a new stream, or has the stream watched at once.
func (st *stream) setAlarm(now bool) {
	st.alarm = st.all.alarms.Get().(*alarm)
	st.alarm.st = st
	if now {
		st.ring()
		return
	}
	st.alarm.timer.Reset(watchAfter)
}

// ring is called by the alarm: the stream is watched from now on, or judged again. If it was cut,
// its deadlines expire again.
func (st *stream) ring() {
	if st.isCut.Load() {
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
	// The directory may have changed between the look-up of the principal and this moment.
	// lookAgain did not reach the stream then, since it was not in the list yet.
	st.all.judge(st)
}

// end removes a stream from the list. Afterwards the stream cannot be cut: its handler has
// returned.
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
	// An alarm whose timer has fired may call ring at this moment, for this stream. It must not
	// get another stream, so it does not go back to the pool.
	if stopped := st.alarm.timer.Stop(); stopped && !st.watched {
		st.alarm.st = nil
		st.all.alarms.Put(st.alarm)
	}
}

// cut ends a stream, unless its handler has returned.
func (st *stream) cut() {
	st.mu.Lock()
	if st.ended || st.isCut.Swap(true) {
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

// expire makes all reads and writes between the handler and the client fail at once. Over HTTP/1.1
// the server then cancels the request; over HTTP/2 it resets the stream, for good. Elsewhere a
// write that was under way may have set another deadline, so expire runs again every second until
// the handler has returned.
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
		// Caddy's own writer must not be used while the handler uses it, so the deadline is
		// set on the writer of net/http beneath it.
		w := st.ResponseWriter
		for u, ok := w.(unwrapper); ok; u, ok = w.(unwrapper) {
			w = u.Unwrap()
		}
		_ = http.NewResponseController(w).SetWriteDeadline(past)
	}
	if !st.isH2 {
		st.alarm.timer.Reset(time.Second)
	}
}

// isTransferring reports whether a body of known length is on its way: the body of the answer or,
// before the answer begins, the body of the request.
func (st *stream) isTransferring() bool {
	if unsent := st.unsent.Load(); unsent >= 0 {
		return unsent > 0
	}
	return st.unread.Load() > 0
}

// recordLength reads the length of the answer from its header, once. An informational status (1xx)
// is not yet the answer.
func (st *stream) recordLength(status int) {
	if status < 200 || st.unsent.Load() >= 0 {
		return
	}
	length := int64(0)
	if values := st.Header()["Content-Length"]; len(values) == 1 && !st.isHead {
		length, _ = strconv.ParseInt(values[0], 10, 64)
	}
	st.unsent.Store(max(length, 0))
}

// WriteHeader writes the header, unless the stream was cut.
func (st *stream) WriteHeader(status int) {
	if st.isCut.Load() {
		return
	}
	st.recordLength(status)
	st.ResponseWriter.WriteHeader(status)
}

// Write writes a part of the body, unless the stream was cut.
func (st *stream) Write(text []byte) (int, error) {
	if st.isCut.Load() {
		return 0, errCut
	}
	st.recordLength(http.StatusOK)
	n, err := st.ResponseWriter.Write(text)
	st.unsent.Store(max(st.unsent.Load()-int64(n), 0))
	return n, err
}

// ReadFrom copies the body from a reader, in pieces: a cut takes effect between two pieces.
func (st *stream) ReadFrom(from io.Reader) (n int64, err error) {
	const piece = 256 << 10
	st.recordLength(http.StatusOK)
	for !st.isCut.Load() {
		m, err := st.ResponseWriterWrapper.ReadFrom(io.LimitReader(from, piece))
		n += m
		st.unsent.Store(max(st.unsent.Load()-m, 0))
		if err != nil || m < piece {
			return n, err
		}
	}
	return n, errCut
}

// FlushError sends the bytes that are written so far, unless the stream was cut.
func (st *stream) FlushError() error {
	if st.isCut.Load() {
		return errCut
	}
	st.recordLength(http.StatusOK)
	return http.NewResponseController(st.ResponseWriter).Flush()
}

// Hijack gives the connection to a WebSocket. The stream keeps it as well, to cut it.
func (st *stream) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(st.ResponseWriter).Hijack()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.conn = conn; err == nil && st.isCut.Load() {
		_ = conn.SetDeadline(time.Unix(1, 0))
	}
	return conn, buffered, err
}

// countedBody is a request body of known length. It counts the bytes that are still to come.
type countedBody struct {
	io.ReadCloser
	st *stream
}

func (b *countedBody) Read(into []byte) (int, error) {
	if b.st.isCut.Load() {
		return 0, errCut
	}
	n, err := b.ReadCloser.Read(into)
	if b.st.unread.Add(-int64(n)); err != nil {
		b.st.unread.Store(0)
	}
	return n, err
}

// opensWebSocket reports whether a request that has passed the sanitizer opens a WebSocket: the
// sanitizer removes every other Upgrade.
func opensWebSocket(r *http.Request) bool { return r.Header["Upgrade"] != nil || isWebSocketConnect(r) }

// isWebSocketConnect reports whether r is an extended CONNECT that opens a WebSocket over HTTP/2
// (RFC 8441) or HTTP/3 (RFC 9220). Caddy's proxy turns it into the GET that HTTP/1.1 upstreams
// know.
func isWebSocketConnect(r *http.Request) bool {
	if r.Method != http.MethodConnect {
		return false
	}
	protocol := r.Header[":protocol"]
	return r.ProtoMajor == 2 && len(protocol) == 1 && protocol[0] == "websocket" ||
		r.ProtoMajor == 3 && r.Proto == "websocket"
}

// judge cuts a stream whose request would be refused now. It also cuts the stream if nothing will
// judge it again: after close, or while the store is stale. A stream that still sends a body of
// known length outlives the expiry of its token.
func (all *streams) judge(st *stream) {
	directory, now := all.store.Directory(), all.store.Now()
	action := st.action
	action.Now = now.Unix()
	until, lasts, was := int64(0), false, st.identity.who()
	principal, reason := directory.Resume(was, action.Address, action.Now)
	if st.isTransferring() {
		st.sentAt.Store(now.UnixNano())
	}
	// After an upload, the upstream gets as much time to begin its answer as passes until the
	// next look.
	if reason == access.TokenExpired && now.UnixNano()-st.sentAt.Load() < int64(2*watchAfter) {
		lasts = true
		principal, reason = directory.ResumeExpired(was, action.Address, action.Now)
	}
	if reason == access.Granted && !isClosed(all.stop) && !all.store.Stale() {
		permits := func(a access.Action) bool {
			decision := directory.Authorize(principal, a)
			return decision.Allowed() ||
				decision.Reason == access.NoRule && st.handler.observesStill()
		}
		forbidden := func(t target) bool { return !permits(t.of(action)) }
		if permits(action) && !slices.ContainsFunc(st.further, forbidden) {
			if until = principal.Until(); lasts {
				if next := now.Add(watchAfter + time.Second - 1).Unix(); until == 0 || next < until {
					until = next // the body may be complete by then
				}
			}
			st.judgeAt(until, now) // the change may have moved its end
			return
		}
	}
	st.cut()
}

// judgeAt sets the alarm of a stream to an instant in Unix seconds; 0 is never.
func (st *stream) judgeAt(until int64, now time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.ended && !st.isCut.Load() && until != 0 {
		st.alarm.timer.Reset(time.Unix(until, 0).Sub(now))
	}
}

func (all *streams) watch() {
	for {
		select {
		case <-all.stop:
			return
		case <-all.changed:
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

// close cuts the streams that are still open. From now on no change of the directory would reach
// them.
func (all *streams) close() {
	close(all.stop)
	all.judgeAll()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false // also for a nil channel
	}
}
