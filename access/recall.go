package access

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Recall remembers, in bounded memory, what an admin may ask about later: the
// last refusals by their decision ids, and what observe mode has counted. It is
// lost when the process ends. The zero value remembers nothing.
//
// Both memories are shared out among the service users: as long as there is room
// one may have all of it, and when there is none the one that has most makes room,
// so that no flood of one hides what another did.
type Recall struct {
	mu        sync.Mutex
	decisions []Recalled
	byID      map[string]int // the place in decisions
	limit     int
	kept      shares[int] // places in decisions

	observed map[observedKey]*Observed
	counted  shares[observedKey]
	missed   int64
}

// maxObserved bounds the rows of [Recall.Observed].
const maxObserved = 10_000

// maxRecalledPath bounds the path that is kept of a request.
const maxRecalledPath = 1024

// Recalled is one decision as it was made.
type Recalled struct {
	ID       string // decision_…
	At       time.Time
	UserID   string
	TokenID  string
	Action   Action // without headers
	Revision int64  // of the directory that decided
	Reason   Reason
	Rule     Rule   // the zero value when none decided
	Group    string // its id
}

// NewRecall remembers so many decisions.
func NewRecall(decisions int) *Recall {
	return &Recall{limit: decisions, byID: make(map[string]int), observed: make(map[observedKey]*Observed)}
}

// Keep remembers a decision.
func (m *Recall) Keep(r Recalled) {
	if m.limit <= 0 {
		return
	}
	r.Action.Header = nil
	// A copy, so that the rest of the request can go.
	r.Action.Method, r.Action.Host, r.Action.Path = strings.Clone(r.Action.Method), strings.Clone(r.Action.Host), strings.Clone(clip(r.Action.Path))
	m.mu.Lock()
	defer m.mu.Unlock()
	place := len(m.decisions)
	if place < m.limit {
		m.decisions = append(m.decisions, r)
	} else {
		place = m.kept.takeFromLargest()
		delete(m.byID, m.decisions[place].ID)
		m.decisions[place] = r
	}
	m.byID[r.ID] = place
	m.kept.add(r.UserID, place)
}

func clip(path string) string {
	if len(path) > maxRecalledPath {
		path = strings.ToValidUTF8(path[:maxRecalledPath], "")
	}
	return path
}

// Decision returns the decision of this id, when it is still remembered.
func (m *Recall) Decision(id string) (Recalled, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.byID[id]
	if !ok {
		return Recalled{}, false
	}
	return m.decisions[i], true
}

// Observed counts the requests of one service user that enforcing would have
// decided otherwise than they were, by method and pattern of the path.
type Observed struct {
	UserID  string
	Method  string
	Pattern string // parts of a path that look like ids are parameters
	Effect  Effect // what enforcing would have done
	GroupID string // of the observing group; "" when the whole handler observes
	RuleID  string // the rule that would have decided; "" is none: no allow applies
	Count   int64
	First   time.Time
	Last    time.Time
	Path    string // of the last one
}

type observedKey struct {
	user, method, pattern, group, rule string
	effect                             Effect
}

// Grant returns the smallest rule that would allow what was counted.
func (o *Observed) Grant() string { return "allow " + o.Method + " " + o.Pattern }

// Observe counts a request. A decision that observing would not have changed is
// not counted; passed says that the handler let it pass although no rule allows
// it.
func (m *Recall) Observe(p Principal, a Action, d Decision, passed bool, at time.Time) (first, counted bool) {
	key := observedKey{user: p.id, method: a.Method}
	switch {
	case d.Would.Effect != "":
		key.effect, key.group, key.rule = d.Would.Effect, d.Would.Group.ID, d.Would.Rule.ID
	case passed:
		key.effect = Deny
	default:
		return false, false
	}
	_, key.pattern, _ = strings.Cut(strings.TrimPrefix(smallestRule(a.Method, a.Path, looksLikeID), "allow "), " ")
	m.mu.Lock()
	defer m.mu.Unlock()
	o, known := m.observed[key]
	if !known {
		full := len(m.observed) >= maxObserved
		if m.observed == nil || full && m.counted.isLargest(key.user) {
			m.missed++
			return false, false
		}
		if full {
			oldest := m.counted.takeFromLargest()
			m.missed += m.observed[oldest].Count
			delete(m.observed, oldest)
		}
		key.user, key.method = strings.Clone(key.user), strings.Clone(key.method)
		o = &Observed{
			UserID: key.user, Method: key.method, Pattern: key.pattern, Effect: key.effect, GroupID: key.group, RuleID: key.rule, First: at,
		}
		m.observed[key] = o
		m.counted.add(key.user, key)
	}
	o.Count++
	o.Last, o.Path = at, strings.Clone(PlainPath(clip(a.Path)))
	return !known, true
}

// looksLikeID reports whether a segment of a path names one thing of many: it
// holds a digit, but for a version such as "v1", or is very long.
func looksLikeID(segment string) bool {
	version := len(segment) <= 4 && strings.TrimLeft(segment, "v") != segment && strings.Trim(segment[1:], "0123456789") == ""
	return len(segment) > 40 || !version && strings.ContainsAny(segment, "0123456789")
}

// Observed returns what was counted, the most frequent first, and how many
// requests were not counted any more because there were too many kinds of them.
func (m *Recall) Observed() (list []Observed, missed int64) {
	m.mu.Lock()
	for _, o := range m.observed {
		list = append(list, *o)
	}
	missed = m.missed
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b Observed) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.UserID, b.UserID), strings.Compare(a.Method, b.Method),
			strings.Compare(a.Pattern, b.Pattern), strings.Compare(a.GroupID, b.GroupID), strings.Compare(a.RuleID, b.RuleID), strings.Compare(string(a.Effect), string(b.Effect)))
	})
	return list, missed
}

// ForgetObserved begins to count again.
func (m *Recall) ForgetObserved() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.observed, m.counted, m.missed = make(map[observedKey]*Observed), shares[observedKey]{}, 0
}
