package admin

import (
	"net/http"
	"slices"
	"sync"
	"time"
)

// trafficMinutes is the number of minutes that Traffic remembers.
const trafficMinutes = 24 * 60

// Traffic remembers the requests of this node by outcome and minute, for 24 hours. The zero value
// remembers none. Its methods may be called concurrently.
type Traffic struct {
	mu      sync.Mutex
	minutes []Minute // oldest first
}

// Minute counts the requests of one minute.
type Minute struct {
	At       time.Time `json:"at"`        // the end of the minute: a full minute of the clock of this node
	Allowed  int64     `json:"allowed"`   // let through: by a rule, as public, in mode observe, or to another authenticator
	Denied   int64     `json:"denied"`    // 403: no rule, or a deny
	NoLogin  int64     `json:"no_login"`  // 401 and 429: no usable credential
	Refused  int64     `json:"refused"`   // 400, 405, 425 and 501: ambiguous requests
	NotReady int64     `json:"not_ready"` // 503: requests that could not be decided
}

// Add appends a minute, and forgets the oldest one after 24 hours.
func (t *Traffic) Add(m Minute) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.minutes) == trafficMinutes {
		t.minutes = slices.Delete(t.minutes, 0, 1)
	}
	t.minutes = append(t.minutes, m)
}

// TrafficList is the list of the last minutes of this node.
type TrafficList struct {
	// oldest first, at most 24 hours; the current minute is not in it
	Minutes []Minute `json:"minutes"`
	URI     string   `json:"uri"` // the path of this answer
}

// traffic lists the requests of this node by outcome and minute, for the last 24 hours. This operation
// requires the rights of an admin. The answer is 404 if the node is not a running Caddy.
func (a *API) traffic(c *call, _ None) (TrafficList, error) {
	if c.by.Scope != nil {
		return TrafficList{}, NewError(http.StatusForbidden, "ERR_NGROK_4111", "only an admin may see the traffic of a node")
	}
	if a.Traffic == nil {
		return TrafficList{}, NewError(http.StatusNotFound, "ERR_NOT_FOUND",
			"this node counts no requests: it is not a running Caddy")
	}
	a.Traffic.mu.Lock()
	defer a.Traffic.mu.Unlock()
	return TrafficList{append([]Minute{}, a.Traffic.minutes...), c.URL.Path}, nil
}
