package access

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// policy is every rule of every enforcing group, compiled into two trees of
// path segments. A look-up walks the request's path once, whatever the number
// of rules: the cost depends on the length of the path and on how many
// patterns overlap on it (at most maxPatternSegments deep).
type policy struct {
	allow node // compared exactly
	deny  node // compared case-folded and without the trailing slash
}

// node is one segment in a tree.
type node struct {
	literal map[string]*node
	param   *node
	end     []entry // rules whose pattern ends here, by group
	rest    []entry // rules whose {rest...} begins here, by group
}

// entry is one rule at the end of its pattern.
type entry struct {
	group   uint32 // Group.index
	methods methodSet
	host    string // as in Rule.Host
	rule    *Rule
	from    *Group
}

// compile builds the trees. Rules come from Group.Rules and have been checked.
func compile(groups map[string]*Group) *policy {
	p := new(policy)
	// By index, so that the entries of a node come out sorted.
	sorted := make([]*Group, 0, len(groups))
	for _, g := range groups {
		if g.Mode == Enforce {
			sorted = append(sorted, g)
		}
	}
	slices.SortFunc(sorted, func(a, b *Group) int { return int(a.index) - int(b.index) })
	for _, g := range sorted {
		for i := range g.Rules {
			p.add(g, &g.Rules[i])
		}
	}
	return p
}

func (p *policy) add(g *Group, r *Rule) {
	segments, err := parsePattern(r.Path)
	if err != nil {
		panic("access: compiling an unchecked rule: " + err.Error())
	}
	e := entry{group: g.index, methods: newMethodSet(r), host: r.Host, rule: r, from: g}
	n := &p.allow
	if r.Effect == Deny {
		n, segments = &p.deny, denySegments(segments)
	}
	for _, s := range segments {
		switch s.kind {
		case restSegment:
			n.rest = append(n.rest, e)
			return
		case paramSegment:
			if n.param == nil {
				n.param = new(node)
			}
			n = n.param
		default:
			child := n.literal[s.text]
			if child == nil {
				child = new(node)
				if n.literal == nil {
					n.literal = make(map[string]*node)
				}
				n.literal[s.text] = child
			}
			n = child
		}
	}
	n.end = append(n.end, e)
}

// question is one request as the trees see it.
type question struct {
	groups []uint32 // sorted
	method string
	bit    methodSet
	host   string
	deny   bool
}

var slash = []byte("/")

// find looks for a rule that covers the rest of a path. more is false when no
// segment remains, which differs from one empty segment: "/v1" and "/v1/".
// Literals are preferred to parameters, these to {rest...}, so that the rule
// that is named in a decision is the most specific one.
func (n *node) find(path []byte, more bool, q *question) *entry {
	if !more {
		if e := q.first(n.end); e != nil || !q.deny {
			return e
		}
		return q.first(n.rest) // in a deny, {rest...} matches nothing at all too
	}
	segment, tail, more := bytes.Cut(path, slash)
	if child := n.literal[string(segment)]; child != nil {
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
func (q *question) first(entries []entry) *entry {
	if len(entries) <= len(q.groups) {
		for i := range entries {
			if _, ok := slices.BinarySearch(q.groups, entries[i].group); ok && q.covered(&entries[i]) {
				return &entries[i]
			}
		}
		return nil
	}
	for _, g := range q.groups {
		i, _ := slices.BinarySearchFunc(entries, g, func(e entry, g uint32) int { return int(e.group) - int(g) })
		for ; i < len(entries) && entries[i].group == g; i++ {
			if q.covered(&entries[i]) {
				return &entries[i]
			}
		}
	}
	return nil
}

func (q *question) covered(e *entry) bool {
	return e.methods.covers(q.bit, q.method) && coversHost(e.host, q.host, q.deny)
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

// denied finds a deny that covers a path, which is brought into the same form.
// Where the operator lets a slash or a semicolon in a segment pass, a deny also
// covers what an upstream makes of them that takes the one for a separator, or
// the other for the beginning of parameters.
func (p *policy) denied(path string, q *question) *entry {
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

func (p *policy) deniedAs(path string, q *question) *entry {
	var buf pathBuffer
	folded, more := bytes.CutPrefix(appendFolded(buf[:0], strings.TrimSuffix(path, "/")), slash)
	return p.deny.find(folded, more, q)
}

// allowed finds an allow that covers a path. None covers what is no path.
func (p *policy) allowed(path string, q *question) *entry {
	rest, ok := strings.CutPrefix(path, "/")
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

// NewRuleset compiles rules that have been checked.
func NewRuleset(rules []Rule) *Ruleset {
	if len(rules) == 0 {
		return new(Ruleset)
	}
	return &Ruleset{compile(map[string]*Group{"": {Mode: Enforce, Rules: rules}})}
}

// Covers reports whether one of the rules covers the action.
func (s *Ruleset) Covers(a Action) bool {
	if s.policy == nil {
		return false
	}
	q := question{groups: onlyGroup, method: a.Method, bit: methodBit(a.Method), host: a.Host}
	return s.policy.allowed(a.Path, &q) != nil
}

var onlyGroup = []uint32{0}
