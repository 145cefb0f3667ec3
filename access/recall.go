package access

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Recall keeps, in bounded memory, information for later questions of admins: the latest refusals
// by their decision ids, and the counts of observe mode. The information is lost when the process
// ends, except for the refusals that a store takes by [Recall.Unwritten]. The zero value keeps nothing.
//
// The service users share both memories. One service user may fill a memory as long as there is
// room. When it is full, the service user with the most entries loses its oldest one, so the
// requests of one service user cannot push out the entries of the others. Refusals without a decision
// id, which strangers can cause, have a memory of their own.
type Recall struct {
	Since time.Time // every decision after it was kept

	mu        sync.Mutex
	decisions []Recalled
	byID      map[string]int // index in decisions, by decision id
	limit     int            // the most decisions that are kept
	kept      shares[int]    // indices in decisions
	others    *Recall        // refusals without a decision id

	observed map[ObservedKind]*Observed
	counted  shares[ObservedKind] // the keys of observed
	missed   int64                // requests that are not counted in observed
}

// maxObserved bounds the rows of [Recall.Observed].
const maxObserved = 10_000

// The bounds of the memory of refusals: the path of a request in bytes, the refusals without a
// decision id, which take at most 2 KiB each, and the length of the list of [Recall.Refusals].
const (
	maxRecalledPath = 1024
	maxOthers       = 2000
	maxRefusals     = 1000
)

// Recalled is one refusal as it was made.
type Recalled struct {
	ID       string // decision_…; "" if the rules were not asked
	Status   int    // of the answer
	Why      string // the reason in more words; "" if Reason says all
	At       time.Time
	UserID   string
	TokenID  string
	Action   Action // without headers; Path is the one that was sent if ID is ""
	Revision int64  // of the directory that decided
	Reason   Reason
	Rule     Rule   // the rule that decided; the zero value if none did
	Group    string // the id of the rule's permission group
	Node     string // the name of the node that refused it, if the store has it; "" in memory
}

// PathText returns the path of the request as the function [PathText] writes it.
func (r *Recalled) PathText() string {
	if r.ID == "" {
		return r.Action.Path
	}
	return PathText(r.Action.Path)
}

// NewRecall returns a Recall that keeps up to this number of decisions.
func NewRecall(decisions int) *Recall {
	return &Recall{
		limit: decisions, byID: make(map[string]int), observed: make(map[ObservedKind]*Observed),
		others: &Recall{limit: min(decisions, maxOthers), byID: make(map[string]int)},
	}
}

// Keep adds a refusal. It keeps neither the headers nor more than maxRecalledPath bytes of the path.
func (m *Recall) Keep(r Recalled) {
	if m.limit <= 0 {
		return
	}
	if r.ID == "" && m.others != nil {
		m.others.Keep(r)
		return
	}
	r.Action.Header = nil
	// Copies: these strings may be parts of larger ones, which would stay in memory.
	r.Action.Method, r.Action.Host = strings.Clone(clip(r.Action.Method)), strings.Clone(r.Action.Host)
	r.Action.Path = strings.Clone(clip(r.Action.Path))
	m.mu.Lock()
	defer m.mu.Unlock()
	place := len(m.decisions)
	if place < m.limit {
		m.decisions = append(m.decisions, r)
	} else {
		place = m.kept.takeFromLargest()
		old := m.decisions[place]
		delete(m.byID, old.ID)
		if m.kept.users[old.UserID] == nil { // no share is left that says so
			m.Since = old.At
		}
		m.decisions[place] = r
	}
	m.byID[r.ID] = place
	m.kept.add(r.UserID, place)
}

// clip shortens a path to maxRecalledPath bytes.
func clip(path string) string {
	if len(path) > maxRecalledPath {
		// The cut may split a character; ToValidUTF8 removes the rest of it.
		path = strings.ToValidUTF8(path[:maxRecalledPath], "")
	}
	return path
}

// Decision returns the decision with this id. It reports false if the decision is not kept, or not
// kept any more.
func (m *Recall) Decision(id string) (Recalled, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.byID[id]
	if !ok {
		return Recalled{}, false
	}
	return m.decisions[i], true
}

// Limit returns the most decisions that m keeps. With 0 or less it keeps none.
func (m *Recall) Limit() int { return m.limit }

// Unwritten returns refusals with a decision id that it has not returned before, at most this number. The
// service users share the number, and a service user with very many loses its oldest ones.
func (m *Recall) Unwritten(most int) (list []Recalled) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, place := range m.kept.takeFresh(most) {
		list = append(list, m.decisions[place])
	}
	return list
}

// Refusals returns the latest refusals of a service user, the newest first. The list contains every
// refusal after since. Refusals reports false if m keeps nothing.
func (m *Recall) Refusals(user string) (list []Recalled, since time.Time, ok bool) {
	if m.limit <= 0 {
		return nil, since, false
	}
	for _, part := range []*Recall{m, m.others} {
		part.mu.Lock()
		from := part.Since
		if s := part.kept.users[user]; s != nil {
			items := s.items[max(0, len(s.items)-maxRefusals):]
			for _, one := range slices.Backward(items) {
				list = append(list, part.decisions[one.value])
			}
			if s.cut || len(items) < len(s.items) {
				from = list[len(list)-1].At
			}
		}
		part.mu.Unlock()
		if from.After(since) {
			since = from
		}
	}
	slices.SortStableFunc(list, func(a, b Recalled) int { return b.At.Compare(a.At) })
	return list, since, true
}

// Observed counts the requests of one kind that would have had another decision if the observing
// groups had been enforced.
type Observed struct {
	ObservedKind
	Count int64
	First time.Time
	Last  time.Time
	Path  string // of the last request, see PathText
}

// ObservedKind is one service user, one method and one pattern of the path, with the decision that
// the groups in observe mode would have made.
type ObservedKind struct {
	UserID  string
	Method  string
	Pattern string // the path, with parameters for segments that look like ids
	Effect  Effect // the decision if the groups were enforced
	GroupID string // the observing group; "" if the whole handler is in observe mode
	RuleID  string // the rule that would have decided; "" if no allow applies
}

// Grant returns the smallest rule that would allow the counted requests.
func (o *Observed) Grant() string { return "allow " + o.Method + " " + o.Pattern }

// Observe counts a request whose decision would have been different without observe mode, and
// ignores every other request. passed means that the handler let the request pass although no rule
// allows it. Observe reports whether it counted the request, and whether the request is the first
// one of its row in [Recall.Observed].
func (m *Recall) Observe(p Principal, a Action, d Decision, passed bool, at time.Time) (first, counted bool) {
	key := ObservedKind{UserID: p.id, Method: a.Method}
	switch {
	case d.Would.Effect != "":
		key.Effect, key.GroupID, key.RuleID = d.Would.Effect, d.Would.Group.ID, d.Would.Rule.ID
	case passed:
		key.Effect = Deny
	default:
		return false, false
	}
	key.Pattern = smallestPattern(a.Path, looksLikeID)
	m.mu.Lock()
	defer m.mu.Unlock()
	o, known := m.observed[key]
	if !known {
		full := len(m.observed) >= maxObserved
		// A user with the most rows would only replace its own: its new row is not counted.
		if m.observed == nil || full && m.counted.isLargest(key.UserID) {
			m.missed++
			return false, false
		}
		if full {
			oldest := m.counted.takeFromLargest()
			m.missed += m.observed[oldest].Count // requests that no row counts any more
			delete(m.observed, oldest)
		}
		key.UserID, key.Method = strings.Clone(key.UserID), strings.Clone(key.Method)
		o = &Observed{ObservedKind: key, First: at}
		m.observed[key] = o
		m.counted.add(key.UserID, key)
	}
	o.Count++
	o.Last, o.Path = at, strings.Clone(PathText(clip(a.Path)))
	return !known, true
}

// looksLikeID reports whether a segment of a path is likely to be an id: it contains a digit, or
// has more than 40 bytes. A version such as "v1" is not an id.
func looksLikeID(segment string) bool {
	version := len(segment) <= 4 && strings.TrimLeft(segment, "v") != segment &&
		strings.Trim(segment[1:], "0123456789") == ""
	return len(segment) > 40 || !version && strings.ContainsAny(segment, "0123456789")
}

// Observed returns the counts, the largest first. missed is the number of requests that are not in
// the list, because there were more than maxObserved kinds of them.
func (m *Recall) Observed() (list []Observed, missed int64) {
	m.mu.Lock()
	for _, o := range m.observed {
		list = append(list, *o)
	}
	missed = m.missed
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b Observed) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count),
			strings.Compare(a.UserID, b.UserID), strings.Compare(a.Method, b.Method),
			strings.Compare(a.Pattern, b.Pattern), strings.Compare(a.GroupID, b.GroupID),
			strings.Compare(a.RuleID, b.RuleID), strings.Compare(string(a.Effect), string(b.Effect)))
	})
	return list, missed
}

// ForgetObserved removes all counts of observe mode and begins to count again.
func (m *Recall) ForgetObserved() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.observed, m.counted, m.missed = make(map[ObservedKind]*Observed), shares[ObservedKind]{}, 0
}
