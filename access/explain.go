package access

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Explanation is a Decision with the rules that led to it.
type Explanation struct {
	Decision
	Source Source // why the user is in the deciding group

	// Considered lists every rule of every group that the user is in: first the rules that
	// apply, then the others, the nearest to applying first.
	Considered []Considered

	// Nearest is the allow that is nearest to applying. It is nil if the request is allowed, or
	// if the groups have no allows.
	Nearest *Considered

	// Grant is the smallest rule that would allow the request. It is "" if the request is
	// allowed, or if a deny applies.
	Grant string

	// NotAsked is that of the deny that refuses the request, or else that of Nearest.
	NotAsked string

	// Groups lists, by name, other groups that would allow the request if the user joined them.
	Groups []*Group
}

// Considered is one rule, with the reason why it does or does not apply to a request.
type Considered struct {
	Rule    *Rule
	Group   *Group
	Source  Source
	Applies bool
	Why     string // why the rule does not apply, or why it applies but does not decide

	// NotAsked has the names of the facts that the question does not give and that the rule
	// depends on: "remote_ip", "headers.X-Env", "at" and "host", separated by commas.
	NotAsked string

	// off says how far the rule is from applying: 2 for each part of the request that the rule
	// does not cover, 1 for each other reason.
	off int
}

// explainBudget bounds the cost of all conditions that one explanation evaluates.
const explainBudget = 4_000_000

// Explain says why the principal may or may not perform the action. The decision comes from
// [Directory.Authorize]; the rest says how each rule contributed to it. Only rules and groups for
// which groups returns true are shown; nil shows all of them. For a principal that d does not
// contain, the result is the decision alone. After conditions have cost explainBudget, Explain
// evaluates no more of them: the rules with the remaining conditions say so in Why, and the
// remaining groups do not appear in Groups.
func (d *Directory) Explain(p Principal, a Action, groups func(*Group) bool) Explanation {
	out := Explanation{Decision: d.Authorize(p, a)}
	u, ok := d.User(p.id)
	if !ok {
		return out
	}
	visible := func(g *Group) bool { return groups == nil || groups(g) }
	allow := d.groupsOf(p)
	member := make(map[*Group]bool)
	left := explainBudget
	for _, m := range d.Memberships(u) {
		member[m.Group] = true
		if m.Group == out.Group {
			out.Source = m.Source
		}
		if !visible(m.Group) {
			continue
		}
		for i := range m.Group.Rules {
			c := consider(u, allow, m, i, a, out.Decision, &left)
			if out.Considered = append(out.Considered, c); c.Rule == out.Rule {
				out.NotAsked = c.NotAsked
			}
		}
	}
	slices.SortStableFunc(out.Considered, func(a, b Considered) int {
		// The effects compare in reverse, so a deny comes first, and then a rule that may apply.
		return cmp.Or(cmp.Compare(a.off, b.off), strings.Compare(string(b.Rule.Effect), string(a.Rule.Effect)),
			strings.Compare(b.NotAsked, a.NotAsked))
	})
	if out.Allowed() {
		return out
	}
	isAllow := func(c Considered) bool { return c.Rule.Effect == Allow }
	if i := slices.IndexFunc(out.Considered, isAllow); i >= 0 {
		out.Nearest = &out.Considered[i]
	}
	if out.Reason == DeniedByRule { // another allow would not help
		return out
	}
	if out.Nearest != nil {
		out.NotAsked = out.Nearest.NotAsked
	}
	out.Grant = SmallestRule(a.Method, a.Path)
	q := ruleQuery{bit: methodBit(a.Method), user: u, action: a}
	for _, g := range d.groups {
		// A narrowed token gains nothing from groups that it is not narrowed to.
		outside := allow.tokenGroups != nil && !slices.Contains(allow.tokenGroups, g.ID)
		if member[g] || g.Mode != Enforce || !visible(g) || outside {
			continue
		}
		if left < 0 {
			break
		}
		q.spent = 0 // each group has the whole budget of a request
		only := indices{g.index}
		if d.policy.allowed(&q, only) != nil && d.policy.denied(&q, only) == nil {
			out.Groups = append(out.Groups, g)
		}
		left -= int(q.spent)
	}
	slices.SortFunc(out.Groups, func(a, b *Group) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// consider explains rule i of a group that the user is in. allow is the group set with the allows
// of the principal. left is the remaining part of explainBudget.
func consider(u *User, allow *groupSet, m Membership, i int, a Action, verdict Decision, left *int) Considered {
	g, r := m.Group, &m.Group.Rules[i]
	c := Considered{Rule: r, Group: g, Source: m.Source}
	reasons := 0
	var asked []string // the facts that the question does not give
	addReason := func(off int, text string) {
		reasons++
		c.off += off
		if c.Why != "" {
			c.Why += "; "
		}
		c.Why += text
	}
	ask := func(off int, facts, more string) {
		addReason(off, askFor(facts)+more)
		asked = append(asked, facts)
	}
	deny, when := r.Effect == Deny, g.conditions[i]
	q := ruleQuery{bit: methodBit(a.Method), deny: deny, groups: onlyGroup, user: u, action: a}
	if verdict.Rule == r { // Authorize has evaluated its condition already
		c.Applies = true
		c.NotAsked, c.Why = whyUndecided(r, when, &q)
		return c
	}
	if !newMethodSet(r).covers(q.bit, a.Method) {
		methods := r.Methods
		if methods[0] == "*" {
			methods = registered[:]
		}
		addReason(2, "the method "+a.Method+" is not among "+strings.Join(methods, ","))
	}
	switch {
	case coversHost(r.Host, a.Host, deny):
	case a.Unknown&UnknownHost != 0:
		ask(1, "host", "")
	default:
		addReason(2, "the host "+strconv.Quote(a.Host)+" is not "+r.Host)
	}
	// With any host and method, a mismatch of the path is found apart from the others.
	pathOnly := *r
	pathOnly.Host, pathOnly.Methods = "", []string{"*"}
	if !coversPath(pathOnly, nil, q) {
		off, text := pathDistance(r, a.Path)
		addReason(2*off, text)
	} else if when != nil && *left < 0 {
		addReason(1, "its condition is not evaluated: the conditions before it cost too much")
	} else if when != nil {
		// Up to three evaluations: with and without the trailing slash of the path, and for
		// the reason.
		*left -= 3 * int(when.cost)
		if !coversPath(pathOnly, when, q) {
			switch facts, err := outcome(r, when, &q, true); {
			case facts == "at":
				ask(1, facts, "; now its condition does not hold: "+when.text)
			case facts != "":
				ask(1, facts, "")
			case err != nil:
				addReason(1, "its condition cannot be evaluated: "+err.Error())
			default:
				addReason(1, "its condition does not hold: "+when.text)
			}
		}
	}
	if c.off > 0 {
		if len(asked) == reasons {
			c.NotAsked = strings.Join(asked, ", ")
		}
		return c
	}
	if why := withoutEffect(m, deny, allow, verdict); why != "" {
		addReason(1, why)
		return c
	}
	c.Applies = true
	c.NotAsked, c.Why = whyUndecided(r, when, &q)
	if !deny && verdict.Reason == DeniedByRule {
		c.Why = "a deny wins"
	}
	return c
}

// withoutEffect returns the reason for which a rule that covers the request, a deny or an allow, has
// no effect, or "".
func withoutEffect(m Membership, deny bool, allow *groupSet, verdict Decision) string {
	switch {
	case m.Group.Mode == Observe:
		return "the permission group only observes"
	case deny:
		return ""
	case m.Source == InDoubt:
		return "the permission group's condition of membership cannot be evaluated, so its allows do not apply"
	case !slices.Contains(allow.allows, m.Group.index):
		return "the token is restricted to other permission groups"
	case verdict.Reason == NoRule:
		// The allow applies by itself, so Authorize must have run out of budget before it.
		return errBudget.Error()
	}
	return ""
}

// askFor returns the text about facts that a question does not give.
func askFor(facts string) string { return "not asked: give " + facts }

// whyUndecided returns the reason why a deny with a condition that fails to evaluate applies, and the
// facts that the question does not give for it. It returns "" for other rules.
func whyUndecided(r *Rule, when *Condition, q *ruleQuery) (facts, why string) {
	if when == nil || r.Effect == Allow {
		return "", ""
	}
	facts, err := outcome(r, when, q, false)
	switch {
	case facts != "":
		why = askFor(facts) + "; until then the deny applies"
	case err != nil:
		why = "its condition cannot be evaluated, so that the deny applies: " + err.Error()
	}
	return facts, why
}

// coversPath reports whether one rule, alone in a policy, covers a request. With when nil it
// ignores the condition of the rule.
func coversPath(r Rule, when *Condition, q ruleQuery) bool {
	if when == nil {
		r.When = ""
	}
	// A real policy of one rule cannot disagree with the policy that decides.
	one := compileGroup(&Group{Mode: Enforce, Rules: []Rule{r}, conditions: []*Condition{when}})
	q.bit = methodSet{bits: anyBits}
	if q.deny {
		return one.denied(&q, onlyGroup) != nil
	}
	return one.allowed(&q, onlyGroup) != nil
}

// outcome evaluates the condition of one rule by itself. It returns the error, and the facts that are
// missing for it; with probe, the time too.
func outcome(r *Rule, when *Condition, q *ruleQuery, probe bool) (facts string, err error) {
	_, facts, err = (&conditional{when, patternOf(r)}).evaluate(q.user, q.action, probe)
	return facts, err
}

// evaluate evaluates the condition. If it fails, facts has the facts that the action does not give.
// With probe, the time is one of them.
func (c *conditional) evaluate(u *User, a Action, probe bool) (holds bool, facts string, err error) {
	e := evaluation{user: u, action: a, params: c.values(a.Path), probe: probe}
	if holds, err = c.isTrue(&e); err != nil {
		isPath := func(fact string) bool { return fact == needsPath }
		facts = strings.Join(slices.DeleteFunc(e.needs, isPath), ", ")
	}
	return holds, facts, err
}

// pathDistance returns the number of segments in which the pattern of a rule and a path differ, at
// least 1, and a text about the first of them.
func pathDistance(r *Rule, path string) (off int, text string) {
	segments, pattern := patternOf(r), r.Path
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	mismatch := func(s string) {
		off++
		if text == "" {
			text = s
		}
	}
	for i, s := range segments {
		switch {
		case s.kind == restSegment:
			if i >= len(parts) {
				mismatch("the path is shorter than " + pattern)
			}
			return max(off, 1), text
		case i >= len(parts):
			mismatch("the path is shorter than " + pattern)
		case s.kind == literalSegment:
			if s.text != parts[i] && !(r.Effect == Deny && foldCase(s.text) == foldCase(parts[i])) {
				has := parts[i] // in the spelling of patterns, if they can spell it
				if special, _ := isSpecial("/" + has); special {
					has = PathText(has)
				}
				mismatch("the path has " + strconv.Quote(has) + " where " + pattern +
					" has " + strconv.Quote(s.text))
			}
		case s.kind == paramSegment && parts[i] == "":
			mismatch("the path has nothing where " + pattern + " has {" + s.text + "}")
		}
	}
	if len(parts) > len(segments) {
		mismatch("the path is longer than " + pattern)
		off += len(parts) - len(segments) - 1 // mismatch has counted one of them
	}
	return max(off, 1), text
}

// SmallestRule returns the narrowest allow that covers a method and a path, in the one-line form of
// a rule: "allow GET /v1/people/7/address", for example.
func SmallestRule(method, path string) string {
	return "allow " + method + " " + smallestPattern(path, func(string) bool { return false })
}

// smallestPattern returns the narrowest pattern that matches a path, with a parameter in the place
// of each segment for which varies returns true: "/v1/people/{id}/address", for example. A segment
// that a pattern cannot spell, or has no room for, becomes a parameter too.
func smallestPattern(path string, varies func(segment string) bool) string {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	// room is the number of bytes left for literals when every segment may become a parameter.
	n, room := 0, maxPatternBytes-maxPatternSegments*len("/{id32}")
	for i, part := range parts {
		if i == maxPatternSegments-1 && len(parts) > maxPatternSegments {
			parts = append(parts[:i], "{rest...}")
			break
		}
		if part == "" && i == len(parts)-1 {
			break // the trailing slash
		}
		// A part such as "x when y" parses, but not as the path that it was.
		r, err := ParseRule("allow GET /" + part)
		literal := err == nil && r.Path == "/"+part && !strings.ContainsAny(part, "{}")
		if varies(part) || !literal || len(part) > room {
			n++
			parts[i] = "{id}"
			if n > 1 {
				parts[i] = "{id" + strconv.Itoa(n) + "}"
			}
			continue
		}
		room -= len(part)
	}
	return "/" + strings.Join(parts, "/")
}
