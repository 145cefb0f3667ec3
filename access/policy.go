package access

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// policy is every rule of every group, compiled into two trees of path segments. A
// look-up walks the request's path once, whatever the number of rules: the cost
// depends on the length of the path and on how many patterns overlap on it (at most
// maxPatternSegments deep).
type policy struct {
	allow node // compared exactly
	deny  node // compared case-folded and without the trailing slash
}

// node is one segment in a tree.
type node struct {
	literal children
	param   *node
	end     []entry // rules whose pattern ends here, by group
	rest    []entry // rules whose {rest...} begins here, by group
}

// children are nodes by the text that leads to them. Most nodes have few, and a
// short list is smaller and faster than a map.
type children struct {
	few  []child
	many map[string]*node // all of them, once there were more than maxFew
}

type child struct {
	text string
	node *node
}

const maxFew = 8

func (c *children) get(text []byte) *node {
	if c.many != nil {
		return c.many[string(text)]
	}
	for i := range c.few {
		if c.few[i].text == string(text) {
			return c.few[i].node
		}
	}
	return nil
}

func (c *children) set(text string, n *node) {
	at := slices.IndexFunc(c.few, func(other child) bool { return other.text == text })
	switch {
	case c.many != nil:
		c.many[text] = n
	case at >= 0:
		c.few[at].node = n
	case len(c.few) < maxFew:
		c.few = append(c.few, child{text, n})
	default:
		c.many = map[string]*node{text: n}
		for _, other := range c.few {
			c.many[other.text] = other.node
		}
		c.few = nil
	}
}

func (c *children) remove(text string) {
	delete(c.many, text)
	c.few = slices.DeleteFunc(c.few, func(other child) bool { return other.text == text })
}

func (c *children) clone() children { return children{slices.Clone(c.few), maps.Clone(c.many)} }

func (c *children) empty() bool { return len(c.few) == 0 && len(c.many) == 0 }

// entry is one rule at the end of its pattern.
type entry struct {
	group   uint32 // Group.index
	methods methodSet
	host    string       // as in Rule.Host
	when    *conditional // nil is always
	rule    *Rule
	from    *Group
}

// conditional is what an entry with a condition needs besides.
type conditional struct {
	*Condition
	segments []segment // of the rule's path, as it was written
}

// edit begins a new policy. The old one stays as it is; the new one shares every
// node that no change leads through.
func (p *policy) edit() *policyEdit {
	e := &policyEdit{next: *p, created: make(map[*node]bool)}
	e.next.allow.literal, e.next.deny.literal = p.allow.literal.clone(), p.deny.literal.clone()
	return e
}

type policyEdit struct {
	next    policy
	created map[*node]bool // nodes that this edit has made
}

func (e *policyEdit) done() *policy {
	done := e.next // without the edit, which nobody needs any more
	return &done
}

// tree returns the tree of an effect, and the pattern as it is compared there.
func (e *policyEdit) tree(effect Effect, pattern []segment) (*node, []segment) {
	if effect == Deny {
		return &e.next.deny, denySegments(slices.Clone(pattern))
	}
	return &e.next.allow, pattern
}

// writable returns a node that may be written in the place of another one.
func (e *policyEdit) writable(n *node) *node {
	switch {
	case n == nil:
		n = new(node)
	case e.created[n]:
		return n
	default:
		n = &node{literal: n.literal.clone(), param: n.param, end: n.end, rest: n.rest}
	}
	e.created[n] = true
	return n
}

// add enters the rules of a group, which have been checked.
func (e *policyEdit) add(g *Group, patterns [][]segment) {
	for i := range g.Rules {
		r := &g.Rules[i]
		entry := entry{group: g.index, methods: newMethodSet(r), host: r.Host, rule: r, from: g}
		if when := g.conditions[i]; when != nil {
			entry.when = &conditional{when, patterns[i]}
		}
		n, pattern := e.tree(r.Effect, patterns[i])
		rest := false
		for _, s := range pattern {
			switch s.kind {
			case restSegment:
				rest = true // always last
			case paramSegment:
				n.param = e.writable(n.param)
				n = n.param
			default:
				child := e.writable(n.literal.get([]byte(s.text)))
				n.literal.set(s.text, child)
				n = child
			}
		}
		if rest {
			n.rest = withEntry(n.rest, entry)
		} else {
			n.end = withEntry(n.end, entry)
		}
	}
}

// withEntry adds an entry behind those of its group, in a new list.
func withEntry(list []entry, e entry) []entry {
	i, _ := slices.BinarySearchFunc(list, e.group+1, func(e entry, group uint32) int { return cmp.Compare(e.group, group) })
	out := make([]entry, 0, len(list)+1)
	return append(append(append(out, list[:i]...), e), list[i:]...)
}

// remove takes the rules of a group out.
func (e *policyEdit) remove(g *Group) {
	for i := range g.Rules {
		r := &g.Rules[i]
		pattern, err := parsePattern(r.Path)
		if err != nil {
			panic("access: removing an unchecked rule: " + err.Error())
		}
		n, pattern := e.tree(r.Effect, pattern)
		e.removeEntries(n, pattern, g.index)
	}
}

// removeEntries removes a group's entries at the end of a pattern, and the nodes that lead
// to nothing then.
func (e *policyEdit) removeEntries(n *node, pattern []segment, group uint32) {
	of := func(e entry) bool { return e.group == group }
	if len(pattern) == 0 {
		n.end = slices.DeleteFunc(slices.Clone(n.end), of)
		return
	}
	s := pattern[0]
	switch s.kind {
	case restSegment:
		n.rest = slices.DeleteFunc(slices.Clone(n.rest), of)
	case paramSegment:
		if n.param != nil {
			n.param = e.writable(n.param)
			e.removeEntries(n.param, pattern[1:], group)
			if n.param.empty() {
				n.param = nil
			}
		}
	default:
		if known := n.literal.get([]byte(s.text)); known != nil {
			child := e.writable(known)
			n.literal.set(s.text, child)
			e.removeEntries(child, pattern[1:], group)
			if child.empty() {
				n.literal.remove(s.text)
			}
		}
	}
}

func (n *node) empty() bool {
	return n.literal.empty() && n.param == nil && len(n.end) == 0 && len(n.rest) == 0
}

// compileGroup builds the trees of one group, whose rules have been checked.
func compileGroup(g *Group) *policy {
	patterns := make([][]segment, len(g.Rules))
	for i, r := range g.Rules {
		var err error
		if patterns[i], err = parsePattern(r.Path); err != nil {
			panic("access: compiling an unchecked rule: " + err.Error())
		}
	}
	e := new(policy).edit()
	e.add(g, patterns)
	return e.done()
}

// ruleQuery is one request as the trees see it.
type ruleQuery struct {
	groups indices
	bit    methodSet
	deny   bool
	row    userRow // of the user that conditions are asked about …
	user   *User   // … which is read when the first one is; groups and tokens may be missing
	action Action
	path   string // the reading of the action's path that is being asked about
	spent  uint64 // what the conditions have cost so far
	header bool   // one of them looks at a header
}

var slash = []byte("/")

// find looks for a rule that covers the rest of a path. more is false when no
// segment remains, which differs from one empty segment: "/v1" and "/v1/".
// Literals are preferred to parameters, these to {rest...}, so that the rule
// that is named in a decision is the most specific one.
func (n *node) find(path []byte, more bool, q *ruleQuery) *entry {
	if !more {
		if e := q.first(n.end); e != nil || !q.deny {
			return e
		}
		return q.first(n.rest) // in a deny, {rest...} matches nothing at all too
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

// first returns the first entry that belongs to one of the groups and covers
// method and host. Both lists are sorted; the shorter one is walked.
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
		i, _ := slices.BinarySearchFunc(entries, g, func(e entry, g uint32) int { return int(e.group) - int(g) })
		for ; i < len(entries) && entries[i].group == g; i++ {
			if q.applies(&entries[i]) {
				return &entries[i]
			}
		}
	}
	return nil
}

// applies reports whether an entry of one of the groups covers the rest of the
// request. A condition that cannot be evaluated leaves a doubt, and a doubt
// favours refusal: then an allow does not apply, and a deny does.
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
		holds, err = q.evaluate(e.when, q.path) // a deny holds in either form
	}
	return holds || err != nil && q.deny
}

var errBudget = fmt.Errorf("the conditions for this request cost more than %d", conditionBudget)

// evaluate evaluates a condition as if this were the action's path. All that one
// request asks is bounded too.
func (q *ruleQuery) evaluate(c *conditional, path string) (bool, error) {
	if q.spent += c.cost; q.spent > conditionBudget {
		return false, errBudget
	}
	if q.user == nil {
		q.user = q.row.profile()
	}
	q.header = q.header || c.header
	action := q.action
	action.Path = path
	return c.isTrue(&evaluation{user: q.user, action: action, params: c.values(path)})
}

// values returns what the parameters of the pattern stand for in a path that
// matches it.
func (c *conditional) values(path string) map[string]string {
	if len(c.params) == 0 {
		return nil
	}
	values := make(map[string]string)
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, s := range c.segments {
		switch {
		case s.kind == literalSegment:
		case i >= len(parts):
			values[s.text] = ""
		case s.kind == restSegment:
			values[s.text] = PlainPath(strings.Join(parts[i:], "/"))
		default:
			values[s.text] = PlainPath(parts[i])
		}
	}
	return values
}

// coversHost reports whether a rule's host pattern covers a host name. "*." is
// one label in an allow and any number of labels in a deny.
func coversHost(pattern, host string, deny bool) bool {
	if pattern == "" || pattern == host {
		return true
	}
	suffix, wildcard := strings.CutPrefix(pattern, "*")
	if !wildcard || len(host) <= len(suffix) || !strings.HasSuffix(host, suffix) {
		return false
	}
	return deny || !strings.Contains(host[:len(host)-len(suffix)], ".")
}

// methodSet holds the methods of a rule: a bit for each registered method, and
// the names of others.
type methodSet struct {
	bits  uint8
	all   bool // a deny of "*": every method there is
	other []string
}

var registered = [...]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

const (
	getBit  = 1 << 0
	headBit = 1 << 1
	anyBits = 1<<len(registered) - 1
)

func newMethodSet(r *Rule) (s methodSet) {
	for _, m := range r.Methods {
		switch i := slices.Index(registered[:], m); {
		case m == "*":
			s.bits = anyBits
			s.all = r.Effect == Deny
		case i >= 0:
			s.bits |= 1 << i
		default:
			s.other = append(s.other, m)
		}
	}
	if s.bits&getBit != 0 {
		s.bits |= headBit
	}
	return s
}

func methodBit(method string) methodSet {
	i := slices.Index(registered[:], method)
	if i < 0 {
		return methodSet{}
	}
	return methodSet{bits: 1 << i}
}

func (s methodSet) covers(bit methodSet, method string) bool {
	return s.all || s.bits&bit.bits != 0 || s.other != nil && slices.Contains(s.other, method)
}

// denySegments brings a pattern into the form that denies are compared in:
// without letter case and without the trailing slash.
func denySegments(segments []segment) []segment {
	if last := segments[len(segments)-1]; last.kind == literalSegment && last.text == "" {
		segments = segments[:len(segments)-1]
	}
	for i := range segments {
		if segments[i].kind == literalSegment {
			segments[i].text = foldCase(segments[i].text)
		}
	}
	return segments
}

// pathBuffer holds most paths, so that a look-up allocates nothing.
type pathBuffer [256]byte

// denied finds a deny of these groups that covers the action's path, which is
// brought into the same form. Where the operator lets a slash or a semicolon in a
// segment pass, a deny also covers what an upstream makes of them that takes the
// one for a separator, or the other for the beginning of parameters.
func (p *policy) denied(q *ruleQuery, groups indices) *entry {
	q.deny, q.groups = true, groups
	path := q.action.Path
	if strings.ContainsAny(path, "\x00;") {
		for _, reading := range []string{path, withoutParameters(path), PlainPath(path), PlainPath(withoutParameters(path)), withoutParameters(PlainPath(path))} {
			if e := p.deniedAs(reading, q); e != nil {
				return e
			}
		}
		return nil
	}
	return p.deniedAs(path, q)
}

// withoutParameters drops what follows a semicolon in each segment.
func withoutParameters(path string) string {
	segments := strings.Split(path, "/")
	for i := range segments {
		segments[i], _, _ = strings.Cut(segments[i], ";")
	}
	return strings.Join(segments, "/")
}

func (p *policy) deniedAs(path string, q *ruleQuery) *entry {
	q.path = path
	var buf pathBuffer
	folded, more := bytes.CutPrefix(appendFolded(buf[:0], strings.TrimSuffix(path, "/")), slash)
	return p.deny.find(folded, more, q)
}

// allowed finds an allow of these groups that covers the action's path. None
// covers what is no path.
func (p *policy) allowed(q *ruleQuery, groups indices) *entry {
	q.deny, q.groups, q.path = false, groups, q.action.Path
	rest, ok := strings.CutPrefix(q.path, "/")
	if !ok {
		return nil
	}
	var buf pathBuffer
	return p.allow.find(append(buf[:0], rest...), true, q)
}

// foldCase returns the one form that all spellings of s share that differ in
// case only.
func foldCase(s string) string { return string(appendFolded(nil, s)) }

// appendFolded appends the same to b.
func appendFolded(b []byte, s string) []byte {
	start := len(b)
	b = append(b, s...)
	for i := start; i < len(b); i++ {
		if b[i] >= utf8.RuneSelf {
			// Upper case first, since cases.Fold exchanges the two cases of Cherokee;
			// NFC last, since full folding takes some letters and marks apart.
			return append(b[:start], norm.NFC.String(cases.Fold().String(strings.ToUpper(s)))...)
		}
		b[i] = lowerASCII(b[i])
	}
	return b
}

// Ruleset is a list of allows without groups, for what needs no service user.
// The zero value covers nothing.
type Ruleset struct {
	policy *policy
}

// NewRuleset compiles allows. A condition in them can only be over the request.
func NewRuleset(rules []Rule) (*Ruleset, error) {
	if len(rules) == 0 {
		return new(Ruleset), nil
	}
	g := &Group{Mode: Enforce}
	for _, r := range rules {
		r, _, when, err := r.compile(nil)
		switch {
		case err != nil:
			return nil, err
		case r.Effect != Allow:
			return nil, fmt.Errorf("rule %q: only an allow is possible here", r)
		case when != nil && len(when.reads) > 0:
			return nil, fmt.Errorf("rule %q: there is no service user here, so the condition cannot look at user.%s", r, when.reads[0])
		}
		g.Rules, g.conditions = append(g.Rules, r), append(g.conditions, when)
	}
	return &Ruleset{compileGroup(g)}, nil
}

// Covers reports whether one of the rules covers the action.
func (s *Ruleset) Covers(a Action) bool {
	if s.policy == nil {
		return false
	}
	q := ruleQuery{bit: methodBit(a.Method), user: noUser, action: a}
	return s.policy.allowed(&q, onlyGroup) != nil
}

var (
	onlyGroup = indices{0}
	noUser    = new(User)
)
