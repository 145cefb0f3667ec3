package admin

import (
	"fmt"
	"math"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// createGroup creates a permission group. The answer is 409 if another group has the name.
func (a *API) createGroup(c *call, in GroupInput) (Group, error) {
	var g store.Group
	if err := in.apply(&g); err != nil {
		return Group{}, err
	}
	g, err := a.store.CreateGroup(c.Context(), c.by, g)
	if err != nil {
		return Group{}, err
	}
	return showWritten(a.store.Directory(), g), nil
}

// showWritten converts a group for the answer to a write, with warnings about its rules. d is the
// directory after the write.
func showWritten(d *access.Directory, g store.Group) Group {
	out := showGroup(g)
	out.Warnings = warnings(d, g.ID, func(access.Rule, string) bool { return true })
	for _, text := range access.Doubts(access.Rule{When: g.MemberCondition}) {
		out.Warnings = append(out.Warnings, fmt.Sprintf("member_condition %q %s", g.MemberCondition, text))
	}
	return out
}

// warnings returns warnings about rules of a group, see [access.Warnings]. about chooses
// the warnings by their rule and text. The group is the one in the directory d.
func warnings(
	d *access.Directory, group string, about func(r access.Rule, text string) bool,
) (texts []string) {
	g, ok := d.Group(group)
	if !ok {
		return nil
	}
	// A rule adds nothing if the default group, of which every service user is a member, has it
	// already.
	var others []access.Rule
	if everybody := d.DefaultGroup(); everybody != nil && everybody != g && everybody.Mode == access.Enforce {
		others = everybody.Rules
	}
	warnings, compared := access.Warnings(g.Rules, others)
	for _, w := range warnings {
		if r := g.Rules[w.Rule]; about(r, w.Text) {
			texts = append(texts, fmt.Sprintf("%s %q %s", r.ID, r, w.Text))
		}
	}
	if !compared {
		texts = append(texts, fmt.Sprintf("the rules are not compared with each other:"+
			" a group, or the default group, has more than %d", access.MaxCompared))
	}
	return texts
}

// apply copies the fields that the body contains into g.
func (in *GroupInput) apply(g *store.Group) error {
	in.Name.to(&g.Name)
	in.Description.to(&g.Description)
	in.Mode.to(&g.Mode)
	in.MemberCondition.to(&g.MemberCondition)
	in.Permissions.to(&g.Permissions)
	if !in.Rules.Set {
		return nil
	}
	g.Rules = make([]access.Rule, len(in.Rules.Value))
	for i, r := range in.Rules.Value {
		rule, err := r.rule()
		if err != nil {
			return NewError(400, "ERR_INVALID_VALUE", err.Error()).field(fmt.Sprintf("rules.%d", i))
		}
		g.Rules[i] = rule
	}
	return nil
}

// rule parses and checks a rule in either form.
func (r RuleInput) rule() (access.Rule, error) {
	if r.Text != "" {
		return access.ParseRule(r.Text)
	}
	return access.Rule{
		Effect: r.Effect, Methods: r.Methods, Host: r.Host, Path: r.Path, When: r.When,
		Name: r.Name, Description: r.Description,
	}.Check()
}

// listGroups lists permission groups, newest first, or only the group with the given name.
func (a *API) listGroups(c *call, q GroupListQuery) (GroupList, error) {
	deleted, err := boolean("deleted", q.Deleted)
	if err != nil {
		return GroupList{}, err
	}
	read := func(before string, limit int, _ bool) ([]store.Group, bool, error) {
		if deleted {
			return a.store.DeletedGroups(c.Context(), c.by, q.Name, before, limit)
		}
		return a.store.Groups(c.Context(), c.by, q.Name, before, limit)
	}
	groups, page, err := newestFirst(c, q.ListQuery, "group", read, func(g store.Group) (Group, string) {
		return showGroup(g), g.ID
	})
	return GroupList{groups, page}, err
}

// getGroup returns a permission group with its rules.
func (a *API) getGroup(c *call, _ None) (Group, error) {
	g, err := a.store.Group(c.Context(), c.by, c.PathValue("id"))
	if err != nil {
		return Group{}, err
	}
	return showGroup(g), nil
}

// updateGroup sets the fields that the body contains; the others stay. Rules in the body replace
// all rules of the group. The answer is 409 if another group has the name.
func (a *API) updateGroup(c *call, in GroupInput) (Group, error) {
	g, err := a.store.UpdateGroup(c.Context(), c.by, c.PathValue("id"), c.version, in.apply)
	if err != nil {
		return Group{}, err
	}
	return showWritten(a.store.Directory(), g), nil
}

// deleteGroup deletes a permission group. Its allows and its denies no longer apply to its members.
// The group can be undeleted for some time. Its id is never used again.
func (a *API) deleteGroup(c *call, _ None) (None, error) {
	return None{}, a.store.DeleteGroup(c.Context(), c.by, c.PathValue("id"), c.version)
}

// undeleteGroup restores a deleted permission group as it was: its mode, its rules, its members and
// its permissions. Its allows and denies apply again at once, also to the service users that meet its
// condition now. not_restored names members and permissions that are gone. The answer is 409 if the
// group is not deleted, was deleted too long ago, or has the name of another one. This operation
// requires the rights of an admin.
func (a *API) undeleteGroup(c *call, _ None) (Group, error) {
	g, was, lost, err := a.store.UndeleteGroup(c.Context(), c.by, c.PathValue("id"))
	if err != nil {
		return Group{}, err
	}
	out := showWritten(a.store.Directory(), g)
	out.Undeleted, out.NotRestored = &Deletion{DeletedAt: &was.DeletedAt, DeletedBy: was.DeletedBy}, lost
	return out, nil
}

// addRule adds a rule at the end of a permission group. The answer is 409 if the group has 10,000
// rules already.
func (a *API) addRule(c *call, in RuleInput) (Rule, error) {
	r, err := in.rule()
	if err != nil {
		return Rule{}, NewError(400, "ERR_INVALID_VALUE", err.Error())
	}
	id := c.PathValue("id")
	r, err = a.store.AddRule(c.Context(), c.by, id, r)
	if err != nil {
		return Rule{}, err
	}
	out := showRule(id, r)
	// The new rule can also make an older one superfluous. The warning about that rule names
	// the new one.
	out.Warnings = warnings(a.store.Directory(), id, func(about access.Rule, text string) bool {
		return about.ID == r.ID || strings.Contains(text, r.ID)
	})
	return out, nil
}

// listRules lists the rules of a permission group, in the order of the group.
func (a *API) listRules(c *call, _ None) (RuleList, error) {
	g, err := a.store.Group(c.Context(), c.by, c.PathValue("id"))
	if err != nil {
		return RuleList{}, err
	}
	return RuleList{Rules: showRules(g), Page: page(c, false, "", 0)}, nil
}

// removeRule removes a rule from a permission group.
func (a *API) removeRule(c *call, _ None) (None, error) {
	return None{}, a.store.RemoveRule(c.Context(), c.by, c.PathValue("id"), c.PathValue("rule_id"))
}

// listMembers lists the service users that a permission group names or that meet its condition,
// newest first. Members that have the group only as the default group are not in the list.
func (a *API) listMembers(c *call, q ListQuery) (MemberList, error) {
	read := func(before string, limit int, count bool) ([]store.Member, bool, error) {
		if count { // Members looks at every service user, whatever the limit is
			limit = math.MaxInt
		}
		return a.store.Members(c.Context(), c.by, c.PathValue("id"), before, limit)
	}
	members, page, err := newestFirst(c, q, "service", read, func(m store.Member) (Member, string) {
		return Member{ID: m.ID, Name: m.Name, Source: string(m.Source)}, m.ID
	})
	return MemberList{members, page}, err
}

// addMember adds a service user to a permission group by name. If it is a member by name already,
// the request succeeds and changes nothing.
func (a *API) addMember(c *call, _ None) (None, error) {
	return None{}, a.store.AddMember(c.Context(), c.by, c.PathValue("id"), c.PathValue("service_user_id"))
}

// removeMember ends a membership by name. If the service user is not a member by name, the request
// succeeds and changes nothing.
func (a *API) removeMember(c *call, _ None) (None, error) {
	return None{}, a.store.RemoveMember(c.Context(), c.by, c.PathValue("id"), c.PathValue("service_user_id"))
}

func showGroup(g store.Group) Group {
	return Group{
		ID: g.ID, URI: groupURI(g.ID), Name: g.Name, Description: g.Description, Mode: g.Mode,
		MemberCondition: g.MemberCondition, Permissions: append([]string{}, g.Permissions...),
		Rules: showRules(g), MemberCount: g.MemberCount,
		CreatedAt: g.CreatedAt, CreatedBy: g.CreatedBy, UpdatedAt: g.UpdatedAt, ETag: etag(g.Version),
		Deletion: Deletion{DeletedAt: OrNull(g.DeletedAt), DeletedBy: g.DeletedBy},
	}
}

func showRules(g store.Group) []Rule {
	rules := make([]Rule, len(g.Rules))
	for i, r := range g.Rules {
		rules[i] = showRule(g.ID, r)
	}
	return rules
}

func showRule(group string, r access.Rule) Rule {
	uri := groupURI(group) + "/rules/" + r.ID
	if r.Permission != "" { // such a rule changes only with its permission
		uri = permissionURI(r.Permission)
	}
	return Rule{
		ID: r.ID, URI: uri, Permission: r.Permission,
		Effect: r.Effect, Methods: r.Methods, Host: r.Host, Path: r.Path, When: r.When,
		Name: r.Name, Description: r.Description, Text: r.String(),
	}
}
