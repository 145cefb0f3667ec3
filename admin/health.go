package admin

import (
	"net/http"
	"strconv"
	"time"
)

// Health says that the process lives.
type Health struct {
	Status string `json:"status"` // ok
}

// healthz says that the process lives.
func (a *API) healthz(*call, None) (Health, error) { return Health{"ok"}, nil }

// Readiness says whether requests can be decided, and on what that rests.
type Readiness struct {
	Status    string    `json:"status"`     // ok
	Store     string    `json:"store"`      // "ok", or why the store could not be read at the last attempt
	Revision  int64     `json:"revision"`   // of what requests are decided on
	CheckedAt time.Time `json:"checked_at"` // when the store was last found to hold nothing newer
	Age       int64     `json:"age"`        // seconds since then
}

// readyz says whether requests can be decided, and on what that rests.
func (a *API) readyz(*call, None) (Readiness, error) {
	out := Readiness{Status: "ok", Store: "ok", Revision: a.store.Directory().Revision(), CheckedAt: a.store.Checked().UTC()}
	if fault := a.store.Fault(); fault != "" {
		out.Store = fault
	}
	out.Age = int64(a.store.Age() / time.Second)
	if a.store.Stale() {
		e := NewError(http.StatusServiceUnavailable, "ERR_NOT_READY", "the store was not readable for longer than max_staleness; no request is let through")
		e.Details = map[string]string{"store": out.Store, "revision": strconv.FormatInt(out.Revision, 10), "checked_at": out.CheckedAt.Format(time.RFC3339), "age": strconv.FormatInt(out.Age, 10)}
		return out, e
	}
	return out, nil
}

// IsProbe reports whether a request is a probe of health or readiness, by either
// of its names.
func IsProbe(r *http.Request) (ready, ok bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false, false
	}
	switch r.URL.Path {
	case "/healthz", "/healthz/", "/service_users/healthz", "/service_users/healthz/":
		return false, true
	case "/readyz", "/readyz/", "/service_users/readyz", "/service_users/readyz/":
		return true, true
	}
	return false, false
}
