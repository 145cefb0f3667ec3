package access

import (
	"fmt"
	"slices"
	"strings"
)

// Warning reports a rule that is valid but has no effect, or another one than intended.
type Warning struct {
	Rule int // the index of the rule
	Text string
}

// MaxCompared is the largest number of rules in a list that Warnings compares.
const MaxCompared = 1000

// Warnings finds rules of a list that never apply or add nothing, or that have [Doubts]. others are
// rules that apply to the same service users in any case, such as the rules of the default group.
// All rules must have been checked. Warnings compares the rules in pairs; with more than
// [MaxCompared] rules in one of the lists it compares none, and reports so.
func Warnings(rules, others []Rule) (list []Warning, compared bool) {
	for i, r := range rules {
		for _, text := range Doubts(r) {
			list = append(list, Warning{i, text})
		}
	}
	if max(len(rules), len(others)) > MaxCompared {
		return list, false
	}
	var all []comparedRule // of the others, then of the list
	for _, r := range slices.Concat(others, rules) {
		all = append(all, compareRule(&r))
	}
	for i := range rules {
		r := &all[len(others)+i]
		by := func(effect Effect) string {
			for j := range all {
				// Of two rules that cover the same requests, only the second is reported.
				if c := &all[j]; c != r && c.rule.Effect == effect && c.covers(r) &&
					(effect != r.rule.Effect || j < len(others)+i || !r.covers(c)) {
					return nameOf(c.rule)
				}
			}
			return ""
		}
		if r.rule.When == "false" {
			list = append(list, Warning{i, "never applies: its condition is false"})
		} else if deny := by(Deny); deny != "" && r.rule.Effect == Allow {
			list = append(list, Warning{i, "never applies: denied by " + deny})
		} else if deny != "" {
			list = append(list, Warning{i, "adds nothing: denied already by " + deny})
		} else if r.rule.Effect == Allow {
			if allow := by(Allow); allow != "" {
				list = append(list, Warning{i, "adds nothing: allowed already by " + allow})
			}
		}
	}
	return list, true
}

// nameOf returns the id and the one-line form of a rule, for a warning.
func nameOf(r *Rule) string {
	text := r.String()
	if r.ID == "" {
		return fmt.Sprintf("%q", text)
	}
	return fmt.Sprintf("%s %q", r.ID, text)
}

// comparedRule is a rule with its parts in the forms that covers compares.
type comparedRule struct {
	rule            *Rule
	pattern, folded []segment // the path as an allow reads it, and as a deny does
	methods         methodSet
}

func compareRule(r *Rule) comparedRule {
	pattern := patternOf(r)
	return comparedRule{r, pattern, denySegments(slices.Clone(pattern)), newMethodSet(r)}
}

// covers reports whether by applies to every request that r applies to.
func (by *comparedRule) covers(r *comparedRule) bool {
	deny, when := by.rule.Effect == Deny, by.rule.When
	// A deny and an allow may evaluate the same condition with different paths. The same
	// condition on another path may have other values in params.
	if when != "" && (when != r.rule.When || by.rule.Effect != r.rule.Effect ||
		by.rule.Path != r.rule.Path && strings.Contains(when, "params")) {
		return false
	}
	a, b := by.pattern, r.pattern
	if deny {
		a, b = by.folded, r.folded
	}
	return coversMethods(by.methods, r.methods) && coversHostPattern(by.rule.Host, r.rule.Host, deny) &&
		patternCovers(a, b, deny)
}

// patternCovers reports whether the pattern by matches every path that pattern matches.
func patternCovers(by, pattern []segment, deny bool) bool {
	for i, s := range by {
		if s.kind == restSegment {
			return i < len(pattern) || deny // in a deny, {rest...} also matches when no segment remains
		}
		if i == len(pattern) || pattern[i].kind == restSegment {
			return false
		}
		switch p := pattern[i]; {
		case s.kind == literalSegment && (p.kind != literalSegment || p.text != s.text):
			return false
		case s.kind == paramSegment && p.kind == literalSegment && p.text == "":
			return false // a parameter matches no empty segment
		}
	}
	return len(by) == len(pattern)
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
