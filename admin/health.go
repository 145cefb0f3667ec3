package admin

import (
	"net/http"
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
	out.Age = int64(a.store.Now().Sub(out.CheckedAt) / time.Second)
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
