package access

import (
	"slices"
	"strings"
)

// Question asks for service users that may make requests of one kind: with one method, and with one
// path or every path of a pattern. [Directory.Ask] makes one.
type Question struct {
	directory      *Directory
	action         Action
	pattern        bool // the path is a pattern
	allows, denies []overlap
	open           []overlap // those whose outcome may depend on facts that the question does not give
}

// Reach says how many paths of a question are allowed.
type Reach uint8

// The answers to a [Question]. In doubt, the answer is SomePaths.
const (
	NoPath Reach = iota
	SomePaths
	EveryPath
)

// overlap is a rule that covers at least one path of a question.
type overlap struct {
	entry
	paths   []segment // of an allow, the paths that it covers; of a deny, its pattern, see denySegments
	all     bool      // it covers every path of the question
	unknown Unknown   // unknownParams if its condition reads a parameter of the question
}

// anyValue is the value of a parameter in the path of a question. No path and no rule contains it.
const anyValue = "\x01"

// Ask prepares a question about an action. With pattern, the path of the action is a pattern such as
// "/v1/people/{id}". The error is for a path that is not a pattern.
func (d *Directory) Ask(a Action, pattern bool) (*Question, error) {
	q := &Question{directory: d, action: a, pattern: pattern}
	parts := strings.Split(strings.TrimPrefix(a.Path, "/"), "/")
	paths := make([]segment, len(parts))
	for i, part := range parts {
		paths[i].text = part
	}
	if pattern {
		var err error
		if paths, err = parsePattern(a.Path); err != nil {
			return nil, err
		}
		for i, s := range paths {
			if s.kind != literalSegment {
				parts[i] = anyValue
			}
		}
		q.action.Path, q.action.Unknown = "/"+strings.Join(parts, "/"), a.Unknown|unknownPath
	}
	folded := denySegments(slices.Clone(paths))
	bit := methodBit(a.Method)
	groups := d.Groups()
	slices.SortFunc(groups, func(a, b *Group) int { return strings.Compare(a.Name, b.Name) })
	for _, g := range groups {
		for i := range g.Rules {
			r := &g.Rules[i]
			o := overlap{entry: entry{
				group: g.index, methods: newMethodSet(r), host: r.Host, rule: r, from: g,
			}}
			list, asked, deny := &q.allows, paths, r.Effect == Deny
			hosted := coversHost(r.Host, a.Host, deny)
			if !o.methods.covers(bit, a.Method) || !hosted && a.Unknown&UnknownHost == 0 {
				continue
			}
			written := patternOf(r)
			rule := slices.Clone(written)
			if deny {
				list, asked, rule = &q.denies, folded, denySegments(rule)
			}
			both, ok := intersection(asked, rule, deny)
			if !ok {
				continue
			}
			if o.paths, o.all = both, patternCovers(rule, asked, deny); deny {
				o.paths = rule
			}
			if when := g.conditions[i]; when != nil {
				o.when = &conditional{when, written}
				path := q.action.Path
				if n := len(paths); paths[n-1].kind == restSegment { // the rest may be of several segments
					path += strings.Repeat("/"+anyValue, max(len(written)-n, 0))
				}
				for name, value := range o.when.values(path) {
					reads := slices.Contains(when.params, name) || slices.Contains(when.params, "")
					if reads && strings.Contains(value, anyValue) {
						o.unknown = unknownParams
					}
				}
			}
			*list = append(*list, o)
			// A condition without these variables depends on the service user alone.
			if !hosted || strings.Contains(r.When, "request") || strings.Contains(r.When, "now") {
				q.open = append(q.open, o)
			}
		}
	}
	return q, nil
}

// intersection returns the paths that two patterns have in common. ok is false for none. In a deny,
// {rest...} also matches when no segment remains.
func intersection(a, b []segment, deny bool) (both []segment, ok bool) {
	for i := range max(len(a), len(b)) {
		switch {
		case i < len(a) && a[i].kind == restSegment:
			return append(both, b[i:]...), i < len(b) || deny
		case i < len(b) && b[i].kind == restSegment:
			return append(both, a[i:]...), i < len(a) || deny
		case i == len(a) || i == len(b):
			return nil, false
		}
		narrow := a[i]
		if narrow.kind != literalSegment {
			narrow = b[i]
		}
		// Two literals, or a parameter and the empty segment.
		if narrow.kind == literalSegment && a[i] != b[i] && (a[i].kind == b[i].kind || narrow.text == "") {
			return nil, false
		}
		both = append(both, narrow)
	}
	return both, true
}

// Reach answers the question for a service user that can log in by each of the principals. The rule
// is an allow that covers the paths, or some of them, for the principal by.
//
// EveryPath and NoPath are true of every path. SomePaths may also mean no path if only several denies
// together cover all, every path if only several allows do, and both if a condition reads the path.
func (q *Question) Reach(logins []Principal) (reach Reach, rule *Rule, group *Group, by Principal) {
	for _, p := range logins {
		if r, decider, of := q.reach(p); r > reach {
			reach, rule, group, by = r, decider, of, p
		}
	}
	return reach, rule, group, by
}

func (q *Question) reach(p Principal) (reach Reach, rule *Rule, group *Group) {
	if !q.pattern {
		if d := q.directory.Authorize(p, q.action); d.Allowed() {
			return EveryPath, d.Rule, d.Group
		}
		return NoPath, nil, nil
	}
	in := q.directory.groupsOf(p)
	rq := ruleQuery{bit: methodBit(q.action.Method), row: p.row, action: q.action, path: q.action.Path}
	judge := func(o *overlap, groups indices) (applies, open bool) {
		if _, member := slices.BinarySearch(groups, o.group); !member {
			return false, false
		}
		rq.deny, rq.open, rq.action.Unknown = o.rule.Effect == Deny, false, q.action.Unknown|o.unknown
		applies = rq.applies(&o.entry)
		return applies, rq.open
	}
	denied := false
	var denies []*overlap // that apply for sure
	for i := range q.denies {
		applies, open := judge(&q.denies[i], in.denies)
		denied = denied || applies || open
		if applies && !open {
			denies = append(denies, &q.denies[i])
		}
	}
	for i := range q.allows {
		o := &q.allows[i]
		applies, open := judge(o, in.allows)
		folded := denySegments(slices.Clone(o.paths))
		covers := func(deny *overlap) bool { return patternCovers(deny.paths, folded, true) }
		switch {
		case !applies && !open || slices.ContainsFunc(denies, covers):
		case o.all && !open && !denied:
			return EveryPath, o.rule, o.from
		case rule == nil || o.all:
			reach, rule, group = SomePaths, o.rule, o.from
		}
	}
	return reach, rule, group
}

// Undecided adds to found the rules that the question leaves undecided for a principal, because it
// does not give a fact, with the facts as in [Considered.NotAsked]. It leaves out groups for which
// groups returns false.
func (q *Question) Undecided(p Principal, groups func(*Group) bool, found map[*Rule]string) {
	in, u := q.directory.groupsOf(p), p.profile()
	for i := range q.open {
		o := &q.open[i]
		deny := o.rule.Effect == Deny
		if found[o.rule] != "" || !groups(o.from) || !slices.Contains(in.denies, o.group) ||
			!deny && !slices.Contains(in.allows, o.group) {
			continue
		}
		var facts []string
		if !coversHost(o.host, q.action.Host, deny) {
			facts = append(facts, "host")
		}
		if o.when != nil {
			a := q.action
			a.Unknown |= o.unknown
			holds, more, err := o.when.evaluate(u, a, true)
			if err == nil && !holds {
				continue
			}
			if more != "" {
				facts = append(facts, more)
			}
		}
		found[o.rule] = strings.Join(facts, ", ")
	}
}
