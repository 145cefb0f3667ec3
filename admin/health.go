package admin

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Health is the answer of a running process.
type Health struct {
	Status string `json:"status"` // "ok"
}

// healthz answers as long as the process runs, whatever the state of the store.
func (a *API) healthz(*call, None) (Health, error) { return Health{"ok"}, nil }

// Readiness describes the directory that requests are checked against.
type Readiness struct {
	Status    string    `json:"status"`     // "ok"
	Store     string    `json:"store"`      // "ok", or the fault of the last attempt to read the store
	Source    string    `json:"source"`     // "database"; "memory": read before a fault; "copy": the last good copy
	Copy      string    `json:"copy"`       // "ok", or why this node keeps no last good copy; "" with SQLite
	Revision  int64     `json:"revision"`   // the revision of the directory that requests are checked against
	CheckedAt time.Time `json:"checked_at"` // the time when the store last had nothing newer than this revision
	Age       int64     `json:"age"`        // seconds since checked_at
}

// readyz reports whether requests can be decided: 503 if the store could not be read for longer
// than max_staleness. It also returns the revision that decisions use, and its age.
func (a *API) readyz(*call, None) (Readiness, error) {
	out := Readiness{
		Status: "ok", Store: cmp.Or(a.store.Fault(), "ok"),
		Revision: a.store.Directory().Revision(), CheckedAt: a.store.Checked().UTC(),
	}
	out.Age = int64(a.store.Age() / time.Second)
	out.Source, _ = a.store.Source()
	if a.store.KeepsCopy() {
		out.Copy = cmp.Or(a.store.CopyFault(), "ok")
	}
	if a.store.Stale() {
		e := NewError(http.StatusServiceUnavailable, "ERR_NOT_READY",
			"the store was not readable for longer than max_staleness; no request is let through")
		e.Details = map[string]string{
			"store":      out.Store,
			"source":     out.Source,
			"revision":   strconv.FormatInt(out.Revision, 10),
			"checked_at": out.CheckedAt.Format(time.RFC3339),
			"age":        strconv.FormatInt(out.Age, 10),
		}
		return out, e
	}
	return out, nil
}

// IsProbe reports whether a request is a probe (ok), and whether it asks for readiness rather than
// health (ready). A probe has a short and a long path: /healthz and /service_users/healthz.
func IsProbe(r *http.Request) (ready, ok bool) {
	name := strings.TrimPrefix(strings.TrimSuffix(r.URL.Path, "/"), "/service_users")
	ready, health := name == "/readyz", name == "/healthz"
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	return reads && ready, reads && (ready || health)
}
