package console

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// groupForm is the data of a form that changes a permission group.
type groupForm struct {
	Group   admin.Group // as it is stored
	Preview *admin.GroupPreview
	Changed bool // somebody else has changed the group since the form was opened
	Parts   any  // more of the page: the sections of ticks, or the grid
}

// groupEditor is one of the forms that change a permission group.
type groupEditor struct {
	template string
	title    string // without the name of the group
	// input returns the form that shows a group as it is.
	input func(admin.Group) url.Values
	// change returns the change of a group that a form asks for.
	change func(admin.Group, url.Values) admin.GroupInput
	// parts returns the parts of the page that follow from the form; may be nil.
	parts func(*page, admin.Group) (any, error)
}

// fieldsEditor has all fields of a group, and its rules as lines.
var fieldsEditor = groupEditor{"edit_group", "Edit ", groupFields, changedFields, nil}

// show shows the form for a group as it is.
func (e groupEditor) show(p *page) error {
	data := groupForm{}
	if err := p.get(p.uri(), &data.Group); err != nil {
		return err
	}
	p.Input = e.input(data.Group)
	p.Input.Set("etag", data.Group.ETag)
	return e.answer(p, data, nil)
}

// save shows the effect of a form, or saves it.
func (e groupEditor) save(p *page) error {
	data := groupForm{}
	if err := p.get(p.uri(), &data.Group); err != nil {
		return err
	}
	if p.Input.Get("do") != "save" {
		return e.answer(p, data, e.preview(p, &data))
	}
	err := p.client.Patch(p.Context(), p.uri(), p.Input.Get("etag"), e.change(data.Group, p.Input), nil)
	if err == nil {
		return p.done(p.home(), "saved")
	}
	var fault *admin.Error
	if errors.As(err, &fault) && fault.Code == "ERR_CHANGED" {
		data.Changed = true
		p.Input.Set("etag", data.Group.ETag) // a second save is meant for the group that the page shows now
		err = cmp.Or(e.preview(p, &data), err)
	}
	return e.answer(p, data, err)
}

// preview sets the effect of the form.
func (e groupEditor) preview(p *page, data *groupForm) error {
	var effect admin.GroupPreview
	err := p.do(http.MethodPost, p.uri()+"/preview", e.change(data.Group, p.Input), &effect)
	if err == nil {
		data.Preview = &effect
	}
	return err
}

// answer shows the form, with its fault.
func (e groupEditor) answer(p *page, data groupForm, fault error) (err error) {
	if e.parts != nil {
		if data.Parts, err = e.parts(p, data.Group); err != nil {
			return err
		}
	}
	return p.form(e.template, e.title+data.Group.Name, data, atRule(fault, parts(p.Input.Get("rules"), "\n")))
}

func groupFields(g admin.Group) url.Values {
	var lines []string
	for _, r := range g.Rules {
		lines = append(lines, r.Text)
	}
	return url.Values{
		"name": {g.Name}, "description": {g.Description}, "mode": {string(g.Mode)},
		"member_condition": {g.MemberCondition}, "rules": {strings.Join(lines, "\n")},
	}
}

// changedFields reads all fields. Each line of the rules that is not empty is a rule.
func changedFields(g admin.Group, form url.Values) admin.GroupInput {
	known := make(map[string]admin.Rule)
	for _, r := range g.Rules {
		known[r.Text] = r
	}
	rules := []admin.RuleInput{}
	for _, line := range parts(form.Get("rules"), "\n") {
		if r, ok := known[line]; ok {
			rules = append(rules, same(r))
		} else {
			rules = append(rules, admin.RuleInput{Text: line})
		}
	}
	return admin.GroupInput{
		Name: admin.Some(form.Get("name")), Description: admin.Some(form.Get("description")),
		Mode:            admin.Some(access.Mode(form.Get("mode"))),
		MemberCondition: admin.Some(form.Get("member_condition")), Rules: admin.Some(rules),
	}
}

// same returns the input for a rule that stays, with the name and the description that its line
// does not have.
func same(r admin.Rule) admin.RuleInput {
	return admin.RuleInput{
		Effect: r.Effect, Methods: r.Methods, Host: r.Host, Path: r.Path, When: r.When,
		Name: r.Name, Description: r.Description,
	}
}

// atRule makes the fault of a rule, such as "rules.3" or "rules.when", the fault of the field rules,
// with its line if that is known.
func atRule(err error, lines []string) error {
	var e *admin.Error
	if !errors.As(err, &e) {
		return err
	}
	for field, text := range e.Details {
		if index, ok := strings.CutPrefix(field, "rules."); ok {
			if i, err := strconv.Atoi(index); err == nil && i < len(lines) {
				text = lines[i] + ": " + text
			}
			e.Msg, e.Details = text, map[string]string{"rules": text}
		}
	}
	return e
}
