package access

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Explanation is why a service user may or may not do something.
type Explanation struct {
	Decision
	Source     Source       // how the user came into the deciding group
	Considered []Considered // every rule of every group that the user is in; those that apply first, then by how close they came
	Nearest    *Considered  // the allow that came closest; nil when it is allowed or there is none
	Grant      string       // the smallest rule that would allow it; "" when it is allowed, or a deny stands in the way
	Groups     []*Group     // other groups with a rule that would allow it, by name; membership would do as well
}

// Considered is one rule as it was looked at.
type Considered struct {
	Rule    *Rule
	Group   *Group
	Source  Source
	Applies bool
	Why     string // why it does not apply, or does not decide although it does
	off     int    // how much keeps it from applying: two for each part of the request that it does not cover
}

// explainBudget bounds the cost of all conditions that one explanation asks.
const explainBudget = 4_000_000

// Explain says why the principal may or may not do this. The verdict comes from
// [Directory.Authorize]; the rest tells how each rule contributed to it. groups
// bounds what is shown; nil is everything. Of a principal that d does not know there
// is the verdict alone. Conditions beyond explainBudget are not asked: their rules say
// so, and groups beyond it are not among the Groups.
func (d *Directory) Explain(p Principal, a Action, groups func(*Group) bool) Explanation {
	out := Explanation{Decision: d.Authorize(p, a)}
	u, ok := d.User(p.id)
	if !ok {
		return out
	}
	visible := func(g *Group) bool { return groups == nil || groups(g) }
	allow, _ := d.groupsOf(p)
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
			out.Considered = append(out.Considered, consider(u, allow, m, i, a, out.Decision, &left))
		}
	}
	slices.SortStableFunc(out.Considered, func(a, b Considered) int {
		return cmp.Or(cmp.Compare(a.off, b.off), strings.Compare(string(b.Rule.Effect), string(a.Rule.Effect))) // a deny first
	})
	if out.Allowed() {
		return out
	}
	for i := range out.Considered {
		if out.Considered[i].Rule.Effect == Allow {
			out.Nearest = &out.Considered[i]
			break
		}
	}
	if out.Reason == DeniedByRule {
		return out
	}
	out.Grant = SmallestRule(a.Method, a.Path)
	q := ruleQuery{bit: methodBit(a.Method), user: u, action: a}
	for _, g := range d.groups {
		if member[g] || g.Mode != Enforce || !visible(g) || allow.tokenGroups != nil && !slices.Contains(allow.tokenGroups, g.ID) {
			continue
		}
		if left < 0 {
			break
		}
		q.spent = 0
		if e := d.policy.allowed(&q, indices{g.index}); e != nil && d.policy.denied(&q, indices{g.index}) == nil {
			out.Groups = append(out.Groups, g)
		}
		left -= int(q.spent)
	}
	slices.SortFunc(out.Groups, func(a, b *Group) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// consider looks at one rule of a group that the user is in. allow are the groups whose
// allows count, and left is how much conditions may cost yet.
func consider(u *User, allow *groupSet, m Membership, i int, a Action, verdict Decision, left *int) Considered {
	g, r := m.Group, &m.Group.Rules[i]
	c := Considered{Rule: r, Group: g, Source: m.Source}
	addReason := func(off int, text string) {
		c.off += off
		if c.Why != "" {
			c.Why += "; "
		}
		c.Why += text
	}
	deny := r.Effect == Deny
	q := ruleQuery{bit: methodBit(a.Method), deny: deny, groups: onlyGroup, user: u, action: a}
	if verdict.Rule == r {
		c.Applies, c.Why = true, whyUndecided(r, g.conditions[i], &q)
		return c
	}
	if !newMethodSet(r).covers(q.bit, a.Method) {
		methods := r.Methods
		if methods[0] == "*" {
			methods = registered[:]
		}
		addReason(2, "the method "+a.Method+" is not among "+strings.Join(methods, ","))
	}
	if !coversHost(r.Host, a.Host, deny) {
		addReason(2, "the host "+strconv.Quote(a.Host)+" is not "+r.Host)
	}
	pathOnly := *r
	pathOnly.Host, pathOnly.Methods = "", []string{"*"}
	if !coversPath(pathOnly, nil, q) {
		off, text := pathDistance(r.Path, a.Path, deny)
		addReason(2*off, text)
	} else if when := g.conditions[i]; when != nil && *left < 0 {
		addReason(1, "its condition is not looked at: those before it cost too much to look at all")
	} else if when != nil && !coversPath(pathOnly, when, q) {
		*left -= 3 * int(when.cost) // it is asked in either form of the path, and why
		addReason(1, "its condition does not hold: "+whyNot(&pathOnly, when, &q))
	}
	if when := g.conditions[i]; when != nil && c.off == 0 {
		*left -= 3 * int(when.cost)
	}
	switch {
	case c.off > 0:
		return c
	case g.Mode == Observe:
		addReason(1, "the permission group only observes")
	case m.Source == InDoubt && !deny:
		addReason(1, "the permission group's condition of membership cannot be evaluated, so that its allows do not hold")
	case !deny && !slices.Contains(allow.allows, g.index):
		addReason(1, "the token is restricted to other permission groups")
	case !deny && verdict.Reason == NoRule:
		addReason(1, errBudget.Error())
	default:
		c.Applies, c.Why = true, whyUndecided(r, g.conditions[i], &q)
		if !deny && verdict.Reason == DeniedByRule {
			c.Why = "a deny wins"
		}
	}
	return c
}

// whyUndecided says why a deny applies although its condition does not hold.
func whyUndecided(r *Rule, when *Condition, q *ruleQuery) string {
	if when == nil || r.Effect == Allow {
		return ""
	}
	if _, err := outcome(r, when, q); err != nil {
		return "its condition cannot be evaluated, so that the deny applies: " + err.Error()
	}
	return ""
}

// coversPath asks about one rule by itself, as the trees do.
func coversPath(r Rule, when *Condition, q ruleQuery) bool {
	if when == nil {
		r.When = ""
	}
	one := compileGroup(&Group{Mode: Enforce, Rules: []Rule{r}, conditions: []*Condition{when}})
	q.bit = methodSet{bits: anyBits}
	if q.deny {
		return one.denied(&q, onlyGroup) != nil
	}
	return one.allowed(&q, onlyGroup) != nil
}

// outcome evaluates the condition of one rule by itself.
func outcome(r *Rule, when *Condition, q *ruleQuery) (bool, error) {
	segments, err := parsePattern(r.Path)
	if err != nil {
		return false, err
	}
	c := &conditional{when, segments}
	return c.isTrue(&evaluation{user: q.user, action: q.action, params: c.values(q.action.Path)})
}

// whyNot says what the condition of a rule that does not apply came to.
func whyNot(r *Rule, when *Condition, q *ruleQuery) string {
	if _, err := outcome(r, when, q); err != nil {
		return err.Error()
	}
	return when.text
}

// pathDistance counts the segments of a pattern that keep it from matching a
// path, and names the first.
func pathDistance(pattern, path string, deny bool) (off int, text string) {
	segments, err := parsePattern(pattern)
	if err != nil {
		return 1, err.Error()
	}
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
		case s.kind == literalSegment && s.text != parts[i] && !(deny && foldCase(s.text) == foldCase(parts[i])):
			mismatch("the path has " + strconv.Quote(parts[i]) + " where " + pattern + " has " + strconv.Quote(s.text))
		case s.kind == paramSegment && parts[i] == "":
			mismatch("the path has nothing where " + pattern + " has {" + s.text + "}")
		}
	}
	if len(parts) > len(segments) {
		mismatch("the path is longer than " + pattern)
		off += len(parts) - len(segments) - 1
	}
	return max(off, 1), text
}

// SmallestRule writes the allow that covers this method and path and as little
// else as a rule can say.
func SmallestRule(method, path string) string {
	return smallestRule(method, path, func(string) bool { return false })
}

// smallestRule writes an allow for a path, with a parameter in the place of the
// segments that vary, and of those that a pattern cannot spell or has no room for.
func smallestRule(method, path string, varies func(segment string) bool) string {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	n, room := 0, maxPatternBytes-maxPatternSegments*len("/{id32}")
	for i, part := range parts {
		if i == maxPatternSegments-1 && len(parts) > maxPatternSegments {
			parts = append(parts[:i], "{rest...}")
			break
		}
		if part == "" && i == len(parts)-1 {
			break // the trailing slash
		}
		text := "allow GET /" + part
		if r, err := ParseRule(text); varies(part) || err != nil || r.Path != "/"+part || strings.ContainsAny(part, "{}") || len(part) > room {
			n++
			parts[i] = "{id}"
			if n > 1 {
				parts[i] = "{id" + strconv.Itoa(n) + "}"
			}
			continue
		}
		room -= len(part)
	}
	return "allow " + method + " /" + strings.Join(parts, "/")
}
