package access

import "fmt"

// Ruleset is a list of allows without groups, for requests that need no service user. The zero
// value covers no request.
type Ruleset struct {
	policy *policy
}

// NewRuleset compiles a list of allows. Their conditions may read the request, but not user.
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
			return nil, fmt.Errorf("rule %q: there is no service user here,"+
				" so the condition cannot look at user.%s", r, when.reads[0])
		}
		g.Rules, g.conditions = append(g.Rules, r), append(g.conditions, when)
	}
	return &Ruleset{compileGroup(g)}, nil
}

// Covers reports whether the rules cover the action. They must cover every reading of its path: no
// deny protects the paths that a program may take it for.
func (s *Ruleset) Covers(a Action) bool {
	if s.policy == nil {
		return false
	}
	list, complete := []string{a.Path}, true
	if special, _ := isSpecial(a.Path); special {
		list, complete = readings(a.Path)
	}
	q := ruleQuery{bit: methodBit(a.Method), user: noUser, action: a}
	for _, reading := range list {
		complete = complete && s.policy.allowedAs(reading, &q, onlyGroup) != nil
	}
	return complete
}

var (
	onlyGroup = indices{0} // the only group of a policy from compileGroup
	noUser    = new(User)  // never read, but ruleQuery.evaluate decodes a row if user is nil
)
