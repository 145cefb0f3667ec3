package access

import (
	"fmt"
	"slices"
	"strings"
)

// Warning points out a rule that is accepted but may not do what it was meant to.
type Warning struct {
	Rule int // its index
	Text string
}

// Warnings looks for rules of a list that never apply or add nothing. others are
// rules that hold for the same service users without exception, such as those of
// the default group. All of them have been checked. It compares each rule with the
// trees, not with every other rule.
func Warnings(rules, others []Rule) []Warning {
	denies, allows := &cover{effect: Deny}, &cover{effect: Allow}
	add := func(r *Rule, index int) {
		if r.Effect == Deny {
			denies.add(r, index)
		} else {
			allows.add(r, index)
		}
	}
	for i := range others {
		add(&others[i], i-len(others)) // before the first
	}
	for i := range rules {
		add(&rules[i], i)
	}
	var list []Warning
	for i := range rules {
		r := &rules[i]
		switch {
		case r.When == "false":
			list = append(list, Warning{i, "never applies: its condition is false"})
			continue
		case r.Effect == Allow:
			if by := denies.find(r, i); by != nil {
				list = append(list, Warning{i, "never applies: denied by " + nameOf(by)})
				continue
			}
			if by := allows.find(r, i); by != nil {
				list = append(list, Warning{i, "adds nothing: allowed already by " + nameOf(by)})
			}
		default:
			if by := denies.find(r, i); by != nil {
				list = append(list, Warning{i, "adds nothing: denied already by " + nameOf(by)})
			}
		}
	}
	return list
}

func nameOf(r *Rule) string {
	text := r.String()
	if r.ID == "" {
		return fmt.Sprintf("%q", text)
	}
	return fmt.Sprintf("%s %q", r.ID, text)
}

// cover is a tree of rules of one effect, to find one that covers all that
// another rule covers.
type cover struct {
	effect Effect
	root   coverNode
}

type coverNode struct {
	literal map[string]*coverNode
	param   *coverNode
	end     map[scope][]covering
	rest    map[scope][]covering
}

// scope is what rules on one path usually differ in.
type scope struct{ host, when string }

// scopes returns those of the rules that may cover r.
func scopes(r *Rule, effect Effect) (list []scope) {
	hosts := []string{"", r.Host}
	for _, domain, ok := strings.Cut(r.Host, "."); ok; _, domain, ok = strings.Cut(domain, ".") {
		hosts = append(hosts, "*."+domain)
	}
	for _, host := range slices.Compact(hosts) {
		list = append(list, scope{host, ""})
		if r.When != "" && r.Effect == effect {
			list = append(list, scope{host, r.When})
		}
	}
	return list
}

type covering struct {
	rule    *Rule
	index   int
	methods methodSet
}

// segments reads the pattern of a rule as the tree compares it.
func (t *cover) segments(r *Rule) []segment {
	segments, err := parsePattern(r.Path)
	if err != nil {
		panic("access: comparing an unchecked rule: " + err.Error())
	}
	if t.effect == Deny {
		return denySegments(segments)
	}
	return segments
}

func (t *cover) add(r *Rule, index int) {
	c, n := covering{r, index, newMethodSet(r)}, &t.root
	put := func(in *map[scope][]covering) {
		if *in == nil {
			*in = make(map[scope][]covering)
		}
		s := scope{r.Host, r.When}
		(*in)[s] = append((*in)[s], c)
	}
	for _, s := range t.segments(r) {
		switch s.kind {
		case restSegment:
			put(&n.rest)
			return
		case paramSegment:
			if n.param == nil {
				n.param = new(coverNode)
			}
			n = n.param
		default:
			if n.literal == nil {
				n.literal = make(map[string]*coverNode)
			}
			if n.literal[s.text] == nil {
				n.literal[s.text] = new(coverNode)
			}
			n = n.literal[s.text]
		}
	}
	put(&n.end)
}

// find returns a rule of the tree, other than the one at the index itself, that
// covers all that r covers. Of two that cover the same, the first is kept.
func (t *cover) find(r *Rule, index int) *Rule {
	methods := newMethodSet(r)
	return t.root.find(t.segments(r), t.effect == Deny, scopes(r, t.effect), func(c covering) bool {
		switch {
		case c.index == index || c.rule.When != "" && c.rule.Path != r.Path && strings.Contains(r.When, "params"): // those of its path
			return false
		case !coversMethods(c.methods, methods) || !coversHostPattern(c.rule.Host, r.Host, t.effect == Deny):
			return false
		case c.rule.Effect == r.Effect && c.index > index:
			mutual := coversMethods(methods, c.methods) && c.rule.Host == r.Host && c.rule.When == r.When && samePattern(t.segments(c.rule), t.segments(r))
			return !mutual
		}
		return true
	})
}

func samePattern(a, b []segment) bool {
	return slices.EqualFunc(a, b, func(s, t segment) bool {
		return s.kind == t.kind && (s.kind != literalSegment || s.text == t.text)
	})
}

// find follows a pattern to the rules that cover it and that are accepted.
func (n *coverNode) find(pattern []segment, deny bool, among []scope, accept func(covering) bool) *Rule {
	first := func(rules map[scope][]covering) *Rule {
		for _, s := range among {
			if i := slices.IndexFunc(rules[s], accept); i >= 0 {
				return rules[s][i].rule
			}
		}
		return nil
	}
	if len(pattern) == 0 {
		if r := first(n.end); r != nil || !deny {
			return r
		}
		return first(n.rest) // in a deny, {rest...} matches nothing at all too
	}
	s, tail := pattern[0], pattern[1:]
	if s.kind == literalSegment && n.literal[s.text] != nil {
		if r := n.literal[s.text].find(tail, deny, among, accept); r != nil {
			return r
		}
	}
	if n.param != nil && s.kind != restSegment && (s.kind == paramSegment || s.text != "") {
		if r := n.param.find(tail, deny, among, accept); r != nil {
			return r
		}
	}
	return first(n.rest)
}

func coversMethods(by, s methodSet) bool {
	if by.all {
		return true
	}
	return !s.all && s.bits&^by.bits == 0 && !slices.ContainsFunc(s.other, func(m string) bool { return !slices.Contains(by.other, m) })
}

// coversHostPattern reports whether every host of one pattern is a host of
// another.
func coversHostPattern(by, pattern string, deny bool) bool {
	if by == "" || by == pattern {
		return true
	}
	if name, wildcard := strings.CutPrefix(pattern, "*."); wildcard {
		return deny && strings.HasPrefix(by, "*.") && strings.HasSuffix("."+name, by[1:])
	}
	return pattern != "" && coversHost(by, pattern, deny)
}
