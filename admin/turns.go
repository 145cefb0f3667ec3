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
	busy map[string]chan struct{} // by actor; closed at the end of its request
}

// maxTurn bounds how long a request waits for the one before it.
const maxTurn = 5 * time.Second

var errBusy = NewError(http.StatusTooManyRequests, "ERR_BUSY", "another costly request of yours is still being answered; wait for its answer, then try again")

// take waits until the actor makes no other costly request, and returns a function that
// ends this one. It returns an error with status 429 after maxTurn, and that of ctx
// when it ends earlier.
func (t *turns) take(ctx context.Context, actor string) (done func(), err error) {
	late := time.NewTimer(maxTurn)
	defer late.Stop()
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
		case <-before:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-late.C:
			return nil, errBusy
		}
	}
}
