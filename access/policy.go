package access

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// policy contains the rules of all groups, compiled into two trees of path segments. A look-up
// walks the path of the request once, however many rules there are. Its cost depends on the length
// of the path and on the number of patterns that overlap on the path (at most maxPatternSegments
// deep).
type policy struct {
	allow node // paths are compared exactly
	deny  node // paths are compared after case folding and without the trailing slash
}

// node is one segment in a tree.
type node struct {
	literal children
	param   *node
	end     []entry // rules whose pattern ends here, sorted by group
	rest    []entry // rules whose {rest...} begins here, sorted by group
}

// children maps the literal text of a segment to its node. Most nodes have few children, and a
// short list is smaller and faster than a map.
type children struct {
	few  []child
	many map[string]*node // all children, once there were more than maxFew; few is empty then
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
	when    *conditional // nil for a rule without a condition
	rule    *Rule
	from    *Group
}

// conditional is the condition of an entry, together with the pattern that gives params its values.
type conditional struct {
	*Condition
	segments []segment // of the rule's path, as it was written
}

// edit begins a new policy, which shares every unchanged node with p. It does not change p.
func (p *policy) edit() *policyEdit {
	e := &policyEdit{next: *p, created: make(map[*node]bool)}
	// The two roots are copied here. Every node below them goes through writable.
	e.next.allow.literal, e.next.deny.literal = p.allow.literal.clone(), p.deny.literal.clone()
	return e
}

// policyEdit is a new version of a policy under construction.
type policyEdit struct {
	next    policy
	created map[*node]bool // nodes that this edit has made, and may change
}

func (e *policyEdit) done() *policy {
	done := e.next // a copy: a pointer to e.next would keep created in memory
	return &done
}

// tree returns the tree for an effect, and the pattern in the form that the tree compares.
func (e *policyEdit) tree(effect Effect, pattern []segment) (*node, []segment) {
	if effect == Deny {
		return &e.next.deny, denySegments(slices.Clone(pattern))
	}
	return &e.next.allow, pattern
}

// writable returns a node that this edit may change: a new node for nil, n itself if this edit has
// made it, and otherwise a copy, since earlier policies still use n.
func (e *policyEdit) writable(n *node) *node {
	switch {
	case n == nil:
		n = new(node)
	case e.created[n]:
		return n
	default:
		// end and rest are shared: withEntry and removeEntries replace these lists as a
		// whole.
		n = &node{literal: n.literal.clone(), param: n.param, end: n.end, rest: n.rest}
	}
	e.created[n] = true
	return n
}

// add adds the rules of a group. The rules have been checked, and patterns are their parsed paths.
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
				rest = true // the last segment, so the loop ends here
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

// withEntry returns a new list with an entry added after the other entries of its group.
func withEntry(list []entry, e entry) []entry {
	byGroup := func(e entry, group uint32) int { return cmp.Compare(e.group, group) }
	i, _ := slices.BinarySearchFunc(list, e.group+1, byGroup)
	out := make([]entry, 0, len(list)+1)
	return append(append(append(out, list[:i]...), e), list[i:]...)
}

// remove removes the rules of a group.
func (e *policyEdit) remove(g *Group) {
	for i := range g.Rules {
		r := &g.Rules[i]
		n, pattern := e.tree(r.Effect, patternOf(r))
		e.removeEntries(n, pattern, g.index)
	}
}

// removeEntries removes the entries of a group at the end of a pattern, and then every node on the
// way that has neither entries nor children any more.
func (e *policyEdit) removeEntries(n *node, pattern []segment, group uint32) {
	of := func(e entry) bool { return e.group == group }
	// DeleteFunc changes its list in place, and earlier policies share the list: clone it
	// first.
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
		// The node may be gone already: two rules of a group may have the same path.
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

// compileGroup builds a policy of one group. The rules of the group have been checked.
func compileGroup(g *Group) *policy {
	patterns := make([][]segment, len(g.Rules))
	for i := range g.Rules {
		patterns[i] = patternOf(&g.Rules[i])
	}
	e := new(policy).edit()
	e.add(g, patterns)
	return e.done()
}

// methodSet contains the methods of a rule: a bit for each registered method, and the names of
// other methods.
type methodSet struct {
	bits  uint8
	all   bool // every method, even an unregistered one: "*" in a deny
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
	if s.bits&getBit != 0 { // a rule for GET covers HEAD
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

// denySegments converts a pattern to the form that the tree of denies compares: case-folded, and
// without the trailing slash. It changes segments.
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

// foldCase returns the case-folded form of s. Two texts that differ in case only have the same
// form.
func foldCase(s string) string { return string(appendFolded(nil, s)) }

// appendFolded appends foldCase(s) to b.
func appendFolded(b []byte, s string) []byte {
	start := len(b)
	b = append(b, s...)
	for i := start; i < len(b); i++ {
		if b[i] >= utf8.RuneSelf {
			// Upper case comes first, since cases.Fold exchanges the two cases of
			// Cherokee. NFC comes last, since full folding decomposes some letters with
			// marks. The Turkish "ı" has the upper case "I", and "İ" is folded to "i" and a
			// dot, which is removed.
			folded := cases.Fold().String(strings.ToUpper(s))
			return append(b[:start], norm.NFC.String(strings.ReplaceAll(folded, "i\u0307", "i"))...)
		}
		b[i] = lowerASCII(b[i])
	}
	return b
}
