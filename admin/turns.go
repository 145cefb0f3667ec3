package admin

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// turns lets each actor make one costly request at a time. The zero value is ready.
type turns struct {
	mu   sync.Mutex
	busy map[string]chan struct{} // by actor; closed when the costly request of the actor ends
}

// maxTurn limits the time that a request waits for the costly request before it.
const maxTurn = 5 * time.Second

var errBusy = NewError(http.StatusTooManyRequests, "ERR_BUSY",
	"another costly request of yours is still being answered; wait for its answer, then try again")

// take waits until the actor has no other costly request in progress. It returns a function that
// the caller must call at the end of the new request. After maxTurn it returns an error with the
// status 429; if ctx ends earlier, it returns the cause.
func (t *turns) take(ctx context.Context, actor string) (done func(), err error) {
	timeout := time.NewTimer(maxTurn)
	defer timeout.Stop()
	for {
		t.mu.Lock()
		before := t.busy[actor]
		if before == nil {
			if t.busy == nil {
				t.busy = make(map[string]chan struct{})
			}
			mine := make(chan struct{})
			t.busy[actor] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.busy, actor)
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-before: // several requests may have waited: try again
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timeout.C:
			return nil, errBusy
		}
	}
}
