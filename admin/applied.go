package admin

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// AppliedHeader is the response header that says on which nodes a change is in force, such as
//
//	11/12; late=node_2x…; until=2026-01-02T03:04:05Z
//
// The late nodes may answer requests from before the change until that time, and not after it. The value
// is "unknown" if the nodes could not be asked.
const AppliedHeader = "Service-User-Applied"

// WaitQuery is the parameter of every operation that changes the store.
type WaitQuery struct {
	// a duration of at most 30s, such as 2s: after a change, the answer waits up to this time until the
	// change is in force on every node, and has the header Service-User-Applied
	Wait string `query:"wait"`
}

// MaxWait is the longest wait.
const MaxWait = 30 * time.Second

var errNoWait = invalidField("wait", "nothing is changed in the store here, so there is nothing to wait for; leave it out")

// ParseWait parses the parameter wait.
func ParseWait(text string) (time.Duration, error) {
	d, err := ParseDuration(text)
	if err != nil || d > MaxWait {
		return 0, invalidField("wait", fmt.Sprintf("%q is not a duration of at most %v, such as 2s", text, MaxWait))
	}
	return d, nil
}

// applied waits until the revision in force here is in force on every node, and returns the value of
// AppliedHeader. The change is made, so nothing that happens meanwhile makes the request fail.
func (c *call) applied(w http.ResponseWriter) string {
	wait, _ := ParseWait(c.Wait) // which was checked
	// The limits of a server begin with the request. Beyond the one for reading, net/http takes the client
	// for gone. A writer without limits returns an error, which means nothing here.
	end, limits := time.Now().Add(wait+time.Minute), http.NewResponseController(w)
	_, _ = limits.SetReadDeadline(end), limits.SetWriteDeadline(end)
	ctx, cancel := context.WithTimeout(c.Context(), wait)
	defer cancel()
	r, err := c.store.Wait(ctx, c.store.Directory().Revision())
	if err != nil {
		return "unknown"
	}
	value := fmt.Sprintf("%d/%d", r.Applied, r.All)
	if len(r.Late) > 0 {
		value += "; late=" + strings.Join(r.Late, ",") +
			"; until=" + r.Until.Add(time.Second-1).UTC().Format(time.RFC3339) // rounded up
	}
	return value
}
