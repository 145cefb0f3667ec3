package admin

import (
	"cmp"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
)

// GroupPreview is the effect that a change of a permission group would have.
type GroupPreview struct {
	// the group after the change; its new rules have no lasting ids
	PermissionGroup Group `json:"permission_group"`
	// the effects on service users, those on the most service users first
	Effects []GroupEffect `json:"effects"`
	// the service users that become members
	Joins SomeUsers `json:"joins"`
	// the service users that stop being members
	Leaves SomeUsers `json:"leaves"`
	// the path of this answer
	URI string `json:"uri"`
}

// GroupEffect is an effect that is the same for some service users.
type GroupEffect struct {
	// allows that begin to apply, and denies that end
	Gains []string `json:"gains"`
	// allows that end, and denies that begin to apply
	Loses []string `json:"loses"`
	SomeUsers
}

// SomeUsers is a number of service users, with the names of some.
type SomeUsers struct {
	// the number of the service users
	Count int `json:"count"`
	// up to 20 of the service users
	ServiceUsers []Named `json:"service_users"`
}

func (s *SomeUsers) add(u *access.User) {
	if s.Count++; s.Count <= 20 {
		s.ServiceUsers = append(s.ServiceUsers, Named{u.ID, u.Name})
	}
}

// Named is a service user by id and name.
type Named struct {
	ID   string `json:"id"`   // service_…
	Name string `json:"name"` // unique
}

// previewGroup shows the effect that an update of a permission group would have on the rules of
// service users, and changes nothing. A rule that the service user also has from another group, word
// for word, is left out. The errors are those of the update. The answer is 409 if another group has
// the name.
func (a *API) previewGroup(c *call, in GroupInput) (GroupPreview, error) {
	done, err := a.heavy.take(c.Context(), c.by.Name)
	if err != nil {
		return GroupPreview{}, err
	}
	defer done()
	g, before, after, err := a.store.PreviewGroup(c.Context(), c.by, c.PathValue("id"), in.apply)
	if err != nil {
		return GroupPreview{}, err
	}
	g.MemberCount = after.MemberCount(g.ID)
	nobody := SomeUsers{ServiceUsers: []Named{}}
	out := GroupPreview{PermissionGroup: showWritten(after, g), Joins: nobody, Leaves: nobody, URI: c.URL.Path}
	out.compare(before, after)
	return out, nil
}

// compare sets the effects by two directories with the same service users. Those with the same
// memberships have the same effect.
func (p *GroupPreview) compare(before, after *access.Directory) {
	known := make(map[string]*GroupEffect) // by memberships
	same := make(map[string]*GroupEffect)  // by rules
	after.Users(func(u *access.User) {
		was, is := before.Memberships(u), after.Memberships(u)
		key, wasIn := p.summary(was)
		now, isIn := p.summary(is)
		if isIn && !wasIn {
			p.Joins.add(u)
		} else if wasIn && !isIn {
			p.Leaves.add(u)
		}
		key += "\n" + now
		if known[key] == nil {
			e := effectOf(rulesOf(was), rulesOf(is))
			rules := strings.Join(e.Gains, "\n") + "\n\n" + strings.Join(e.Loses, "\n")
			if same[rules] == nil {
				same[rules] = &e
			}
			known[key] = same[rules]
		}
		known[key].add(u)
	})
	delete(same, "\n\n") // nothing changes
	p.Effects = []GroupEffect{}
	for _, e := range same {
		p.Effects = append(p.Effects, *e)
	}
	slices.SortFunc(p.Effects, func(x, y GroupEffect) int {
		return cmp.Or(y.Count-x.Count, strings.Compare(x.ServiceUsers[0].ID, y.ServiceUsers[0].ID))
	})
}

// summary returns a key for memberships, and whether they include one of the group.
func (p *GroupPreview) summary(list []access.Membership) (key string, member bool) {
	for _, m := range list {
		key += m.Group.ID + string(m.Source)
		member = member || m.Group.ID == p.PermissionGroup.ID && m.Source != access.InDoubt
	}
	return key, member
}

// rulesOf returns the rules that apply to a service user with these memberships.
func rulesOf(list []access.Membership) (rules []string) {
	for _, m := range list {
		for _, r := range m.Group.Rules {
			if m.Group.Mode == access.Enforce && (m.Source != access.InDoubt || r.Effect == access.Deny) {
				rules = append(rules, r.String())
			}
		}
	}
	return rules
}

// effectOf compares the rules that applied and that apply.
func effectOf(was, is []string) GroupEffect {
	e := GroupEffect{Gains: []string{}, Loses: []string{}}
	const before, after = 1, 2
	when := make(map[string]int)
	for _, rule := range was {
		when[rule] |= before
	}
	for _, rule := range is {
		when[rule] |= after
	}
	for _, rule := range slices.Concat(was, is) {
		denies := strings.HasPrefix(rule, string(access.Deny))
		switch in := when[rule]; {
		case in == before|after || in == 0: // or it is in the lists already
		case (in == after) != denies:
			e.Gains = append(e.Gains, rule)
		default:
			e.Loses = append(e.Loses, rule)
		}
		when[rule] = 0
	}
	return e
}
