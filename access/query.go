package access

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/text/unicode/norm"
)

// ruleQuery is one look-up of a request in a tree.
type ruleQuery struct {
	groups indices   // only rules of these groups count
	bit    methodSet // of the request's method
	deny   bool      // the look-up is for a deny
	row    userRow   // the user that conditions read
	user   *User     // row, decoded for the first condition; groups and tokens may be missing
	action Action
	path   string // the path to look up: action.Path, or another form of it (see policy.denied)
	spent  uint64 // the cost of the conditions so far
	header bool   // an evaluated condition reads a header
	open   bool   // an evaluated condition depends on the path of a Question, or was too costly
	unread bool   // the path has more readings than denied has compared
}

var slash = []byte("/")

// find returns an entry that covers the rest of a path, or nil. more is false if no segment
// remains. That differs from one empty segment: it is the difference between "/v1" and "/v1/". find
// prefers literals to parameters, and parameters to {rest...}, so a decision names the most
// specific rule.
func (n *node) find(path []byte, more bool, q *ruleQuery) *entry {
	if !more {
		if e := q.first(n.end); e != nil || !q.deny {
			return e
		}
		return q.first(n.rest) // in a deny, {rest...} also matches when no segment remains
	}
	segment, tail, more := bytes.Cut(path, slash)
	if child := n.literal.get(segment); child != nil {
		if e := child.find(tail, more, q); e != nil {
			return e
		}
	}
	if n.param != nil && len(segment) > 0 {
		if e := n.param.find(tail, more, q); e != nil {
			return e
		}
	}
	return q.first(n.rest)
}

// first returns the first entry that belongs to one of the groups and applies to the request. Both
// lists are sorted by group: first walks the shorter one and searches the other.
func (q *ruleQuery) first(entries []entry) *entry {
	if len(entries) <= len(q.groups) {
		for i := range entries {
			if _, ok := slices.BinarySearch(q.groups, entries[i].group); ok && q.applies(&entries[i]) {
				return &entries[i]
			}
		}
		return nil
	}
	for _, g := range q.groups {
		// The search finds the first entry of the group; its others follow.
		byGroup := func(e entry, g uint32) int { return int(e.group) - int(g) }
		i, _ := slices.BinarySearchFunc(entries, g, byGroup)
		for ; i < len(entries) && entries[i].group == g; i++ {
			if q.applies(&entries[i]) {
				return &entries[i]
			}
		}
	}
	return nil
}

// applies reports whether an entry whose path matches covers the method and the host of the
// request, and its condition is true. If the condition fails to evaluate, the request is refused
// rather than allowed: a deny applies then, and an allow does not.
func (q *ruleQuery) applies(e *entry) bool {
	if !e.methods.covers(q.bit, q.action.Method) || !coversHost(e.host, q.action.Host, q.deny) {
		return false
	}
	if e.when == nil {
		return true
	}
	path := q.path
	if q.deny && path != "/" {
		path = strings.TrimSuffix(path, "/")
	}
	holds, err := q.evaluate(e.when, path)
	if !holds && err == nil && path != q.path {
		// A deny ignores the trailing slash, so it applies if its condition is true with or
		// without it.
		holds, err = q.evaluate(e.when, q.path)
	}
	return holds || err != nil && q.deny
}

var errBudget = fmt.Errorf("the conditions for this request cost more than %d", conditionBudget)

// evaluate evaluates a condition as if path were the path of the action. It returns errBudget if
// the conditions of the request have cost more than conditionBudget.
func (q *ruleQuery) evaluate(c *conditional, path string) (bool, error) {
	if q.spent += c.cost; q.spent > conditionBudget {
		q.open = true
		return false, errBudget
	}
	if q.user == nil { // decoding a row takes time that most requests can save
		q.user = q.row.profile()
	}
	q.header = q.header || c.header
	action := q.action
	action.Path = path
	e := evaluation{user: q.user, action: action, params: c.values(path)}
	holds, err := c.isTrue(&e)
	q.open = q.open || err != nil && slices.Contains(e.needs, needsPath)
	return holds, err
}

// values returns the values of the parameters of the pattern, for a path that the pattern matches.
// For the pattern "/v1/{id}" and the path "/v1/7", for example, the value of id is "7".
func (c *conditional) values(path string) map[string]string {
	if len(c.params) == 0 { // the condition reads none of them
		return nil
	}
	values := make(map[string]string)
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, s := range c.segments {
		switch {
		case s.kind == literalSegment:
		case i >= len(parts): // {rest...} of a deny, with no segment left
			values[s.text] = ""
		case s.kind == restSegment:
			values[s.text] = PlainPath(strings.Join(parts[i:], "/"))
		default:
			values[s.text] = PlainPath(parts[i])
		}
	}
	return values
}

// coversHost reports whether the host pattern of a rule covers a host name. "*." matches one label
// in an allow and any number of labels in a deny.
func coversHost(pattern, host string, deny bool) bool {
	if pattern == "" || pattern == host {
		return true
	}
	suffix, wildcard := strings.CutPrefix(pattern, "*")
	// "*.example.com" does not cover "example.com": the suffix begins with the dot.
	if !wildcard || len(host) <= len(suffix) || !strings.HasSuffix(host, suffix) {
		return false
	}
	return deny || !strings.Contains(host[:len(host)-len(suffix)], ".")
}

// pathBuffer is large enough for most paths, so a look-up usually does not allocate.
type pathBuffer [256]byte

// denied returns a deny of these groups that covers the path of the action, or nil. It converts the
// path to the form of denySegments.
//
// An operator may let characters pass that programs read differently. A deny covers the request if it
// covers the path in any of its readings: a deny of "/a/b" also covers "/a%2Fb", "/a;x/b" and "/a/b%23".
// It covers compatibility forms, such as "/ａ/b", and paths with invisible characters, which no option
// concerns.
func (p *policy) denied(q *ruleQuery, groups indices) *entry {
	q.deny, q.groups = true, groups
	path := q.action.Path
	if special, unicode := isSpecial(path); !special && (!unicode || norm.NFKC.IsNormalString(path)) {
		return p.deniedAs(path, q)
	}
	list, complete := readings(path)
	q.unread = !complete
	for _, reading := range list {
		if e := p.deniedAs(reading, q); e != nil {
			return e
		}
	}
	return nil
}

// deniedAs is denied for one form of the path.
func (p *policy) deniedAs(path string, q *ruleQuery) *entry {
	q.path = path
	var buf pathBuffer
	folded, more := bytes.CutPrefix(appendFolded(buf[:0], strings.TrimSuffix(path, "/")), slash)
	return p.deny.find(folded, more, q)
}

// allowed returns an allow of these groups that covers the path of the action, or nil. It returns
// nil for a path that does not begin with a slash, such as "*", and for one with more readings than
// denied has compared.
func (p *policy) allowed(q *ruleQuery, groups indices) *entry {
	if q.unread {
		return nil
	}
	return p.allowedAs(q.action.Path, q, groups)
}

// allowedAs is allowed for one form of the path.
func (p *policy) allowedAs(path string, q *ruleQuery, groups indices) *entry {
	q.deny, q.groups, q.path = false, groups, path
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil
	}
	var buf pathBuffer
	return p.allow.find(append(buf[:0], rest...), true, q)
}
