package console

import (
	"net/http"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// listGroups lists the permission groups, or with deleted=true those that can be undeleted.
func listGroups(p *page) error {
	var data admin.GroupList
	query := p.query("before_id", "deleted")
	query.Set("total_count", "true")
	if err := p.get("/permission_groups?"+query.Encode(), &data); err != nil {
		return err
	}
	return p.show("groups", "Permission groups", data)
}

func newGroup(p *page) error { return p.show("new_group", "New permission group", nil) }

func createGroup(p *page) error {
	in := admin.GroupInput{
		Name: admin.Some(p.Input.Get("name")), Description: admin.Some(p.Input.Get("description")),
	}
	var g admin.Group
	if err := p.do(http.MethodPost, "/permission_groups", in, &g); err != nil {
		return p.form("new_group", "New permission group", nil, err)
	}
	return p.done(Root+"permission_groups/"+g.ID, "saved")
}

// shownRequests limits the rows of the page of a group.
const shownRequests = 50

// groupPage is the data of the page of one permission group.
type groupPage struct {
	admin.Group
	Members   admin.MemberList
	WouldDeny []admin.WouldDeny // the requests of members that mode enforce would refuse
}

func showGroup(p *page) error { return p.showGroup(nil) }

// showGroup shows a group, with the fault of the form for a member.
func (p *page) showGroup(fault error) error {
	data := groupPage{}
	if err := p.get(p.uri(), &data.Group); err != nil {
		return err
	}
	query := p.query("before_id")
	query.Set("total_count", "true")
	query.Set("limit", "50")
	if err := p.get(p.uri()+"/members?"+query.Encode(), &data.Members); err != nil {
		return err
	}
	if p.Admin() {
		var list admin.WouldDenyList
		if err := p.get("/service_users/would_deny?permission_group_id="+data.ID, &list); err != nil {
			return err
		}
		done := func(w admin.WouldDeny) bool {
			return w.PermissionGroup != nil && data.Mode == access.Enforce ||
				slices.ContainsFunc(data.Rules, func(r admin.Rule) bool { return r.Text == w.Grant })
		}
		data.WouldDeny = slices.DeleteFunc(list.WouldDeny, done)
		data.WouldDeny = data.WouldDeny[:min(len(data.WouldDeny), shownRequests)]
	}
	return p.form("group", data.Name, data, asFault(fault, "user"))
}

// addRule adds a rule that allows a request of the page.
func addRule(p *page) error {
	return p.change(http.MethodPost, p.uri()+"/rules", admin.RuleInput{Text: p.Input.Get("rule")}, "granted")
}

// addMember makes a service user a member, by its name or id.
func addMember(p *page) error {
	u, err := p.client.FindServiceUser(p.Context(), strings.TrimSpace(p.Input.Get("user")))
	if err == nil {
		err = p.change(http.MethodPut, p.uri()+"/members/"+u.ID, nil, "saved")
	}
	if err != nil {
		return p.showGroup(err)
	}
	return nil
}

func removeMember(p *page) error {
	return p.change(http.MethodDelete, p.uri()+"/members/"+p.PathValue("user"), nil, "saved")
}

func askDeleteGroup(p *page) error {
	var g admin.Group
	if err := p.get(p.uri(), &g); err != nil {
		return err
	}
	// A deletion takes from the members the same as a group without rules.
	empty := admin.GroupInput{Rules: admin.Some([]admin.RuleInput{}), Permissions: admin.Some([]string{})}
	effect := new(admin.GroupPreview)
	if err := p.do(http.MethodPost, g.URI+"/preview", empty, effect); err != nil {
		return err
	}
	return p.ask(question{
		What: "Delete the group", Of: g.Name, Button: "Delete", Danger: true,
		Text:    "Its allows and its denies no longer apply to its members. An admin can undo the deletion for some time.",
		Facts:   []string{"It has " + count(g.MemberCount, "member") + "."},
		Effects: &effect.Effects,
	}, nil)
}

func deleteGroup(p *page) error {
	if err := p.do(http.MethodDelete, p.uri(), nil, nil); err != nil {
		return err
	}
	return p.done(Root+"permission_groups", "deleted")
}

// undeleteGroup brings a group back. Members and permissions that were deleted meanwhile stay away.
func undeleteGroup(p *page) error {
	var g admin.Group
	if err := p.do(http.MethodPost, p.uri()+"/undelete", admin.None{}, &g); err != nil {
		return err
	}
	if len(g.NotRestored) > 0 {
		return p.done(p.home(), "restored_partly")
	}
	return p.done(p.home(), "restored")
}
