package access

import (
	"fmt"
	"slices"
	"strings"
)

// Warning reports a rule that is valid but has no effect, probably by mistake.
type Warning struct {
	Rule int // the index of the rule
	Text string
}

// Warnings finds rules of a list that never apply or add nothing. others are rules that apply to
// the same service users in any case, such as the rules of the default group. All rules must have
// been checked. Warnings compares each rule with a tree of all rules, not with every other rule.
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
		add(&others[i], i-len(others)) // negative indices: they come before the rules of the list
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

// nameOf returns the id and the one-line form of a rule, for a warning.
func nameOf(r *Rule) string {
	text := r.String()
	if r.ID == "" {
		return fmt.Sprintf("%q", text)
	}
	return fmt.Sprintf("%s %q", r.ID, text)
}

// cover is a tree of rules with one effect. Its find looks for a rule that covers every request
// that another rule covers.
type cover struct {
	effect Effect
	root   coverNode
}

// coverNode is a node for one segment, as in policy. Its end and rest are rules by scope.
type coverNode struct {
	literal map[string]*coverNode
	param   *coverNode
	end     map[scope][]covering
	rest    map[scope][]covering
}

// scope is the host and the condition of a rule. Many rules may have the same path, and find must
// look only at those with a suitable scope.
type scope struct{ host, when string }

// scopes returns the scopes of the rules with this effect that may cover r.
func scopes(r *Rule, effect Effect) (list []scope) {
	hosts := []string{"", r.Host}
	// For "a.b.example", also "*.b.example" and "*.example".
	for _, domain, ok := strings.Cut(r.Host, "."); ok; _, domain, ok = strings.Cut(domain, ".") {
		hosts = append(hosts, "*."+domain)
	}
	for _, host := range slices.Compact(hosts) {
		list = append(list, scope{host, ""})
		// A rule with the same condition may cover r too, if it has the same effect. A deny
		// and an allow may evaluate the same condition with different paths.
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

// segments returns the pattern of a rule in the form that the tree compares.
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

// add adds a rule. index is its position in the list of rules, or negative for one of the others.
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

// find returns a rule of the tree that covers every request that r covers, or nil. index is the
// index of r. If two rules cover the same requests, find returns the first of them for the second,
// but not the second for the first: only one of the two is reported.
func (t *cover) find(r *Rule, index int) *Rule {
	methods := newMethodSet(r)
	return t.root.find(t.segments(r), t.effect == Deny, scopes(r, t.effect), func(c covering) bool {
		// The same condition on another path may have other values in params.
		otherParams := c.rule.When != "" && c.rule.Path != r.Path && strings.Contains(r.When, "params")
		switch {
		case c.index == index || otherParams:
			return false
		case !coversMethods(c.methods, methods) || !coversHostPattern(c.rule.Host, r.Host, t.effect == Deny):
			return false
		case c.rule.Effect == r.Effect && c.index > index:
			mutual := coversMethods(methods, c.methods) && c.rule.Host == r.Host && c.rule.When == r.When &&
				samePattern(t.segments(c.rule), t.segments(r))
			return !mutual
		}
		return true
	})
}

// samePattern reports whether two patterns match the same paths. The names of parameters may
// differ.
func samePattern(a, b []segment) bool {
	return slices.EqualFunc(a, b, func(s, t segment) bool {
		return s.kind == t.kind && (s.kind != literalSegment || s.text == t.text)
	})
}

// find returns the first rule below n whose path covers a pattern, whose scope is among these, and
// for which accept returns true.
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
		return first(n.rest) // in a deny, {rest...} also matches when no segment remains
	}
	s, tail := pattern[0], pattern[1:]
	if s.kind == literalSegment && n.literal[s.text] != nil {
		if r := n.literal[s.text].find(tail, deny, among, accept); r != nil {
			return r
		}
	}
	// A parameter does not match an empty segment.
	if n.param != nil && s.kind != restSegment && (s.kind == paramSegment || s.text != "") {
		if r := n.param.find(tail, deny, among, accept); r != nil {
			return r
		}
	}
	return first(n.rest)
}

// coversMethods reports whether by contains every method of s.
func coversMethods(by, s methodSet) bool {
	if by.all {
		return true
	}
	missing := func(m string) bool { return !slices.Contains(by.other, m) }
	return !s.all && s.bits&^by.bits == 0 && !slices.ContainsFunc(s.other, missing)
}

// coversHostPattern reports whether the host pattern by covers every host that pattern covers.
func coversHostPattern(by, pattern string, deny bool) bool {
	if by == "" || by == pattern {
		return true
	}
	if name, wildcard := strings.CutPrefix(pattern, "*."); wildcard {
		// In an allow, "*." is one label, so "*.example" does not cover "*.a.example".
		return deny && strings.HasPrefix(by, "*.") && strings.HasSuffix("."+name, by[1:])
	}
	return pattern != "" && coversHost(by, pattern, deny)
}
