package console

import (
	"cmp"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// userForm is the form for a service user: a new one, or one that exists.
type userForm struct {
	Groups map[string]string  // the names of all permission groups, by id
	User   admin.ServiceUser  // the one that exists, or the model of a new one
	Theirs *admin.ServiceUser // the service user after the change of somebody else meanwhile
}

// newUser shows the form for a new service user, with the fields of another one if the query names
// it.
func newUser(p *page) error {
	var data userForm
	like := p.Input.Get("like")
	p.Input = url.Values{"role": {"member"}}
	if like != "" {
		u, err := p.client.FindServiceUser(p.Context(), like)
		if err != nil {
			return err
		}
		data.User, p.Input = u, inputOf(u)
		p.Input.Del("name")
		p.Input.Del("alias")
	}
	if p.by.Scope != nil { // a manager creates members in its own teams
		p.Input.Set("role", string(access.Member))
		p.Input.Set("teams", strings.Join(p.by.Scope.Teams, ", "))
	}
	p.Input.Set("key", store.NewOperationID())
	return p.showUserForm("new_user", "New service user", data, nil)
}

// inputOf returns the fields of a service user as the form sends them.
func inputOf(u admin.ServiceUser) url.Values {
	var labels []string
	for _, key := range slices.Sorted(maps.Keys(u.Labels)) {
		labels = append(labels, key+"="+u.Labels[key])
	}
	in := url.Values{
		"name": {u.Name}, "display_name": {u.DisplayName}, "description": {u.Description}, "owner": {u.Owner},
		"alias": {u.Alias}, "role": {string(u.Role)}, "teams": {strings.Join(u.Teams, ", ")},
		"labels": {strings.Join(labels, "\n")}, "allowed_ips": {strings.Join(u.AllowedIPs, ", ")},
		"permission_groups": u.PermissionGroups, "etag": {u.ETag},
	}
	if u.ExpiresAt != nil {
		in.Set("expires_at", u.ExpiresAt.UTC().Format("2006-01-02T15:04"))
	}
	return in
}

// userInput reads the form of a service user.
func (p *page) userInput() (in admin.ServiceUserInput, err error) {
	form := p.Input
	text := func(name string) admin.Opt[string] { return admin.Some(strings.TrimSpace(form.Get(name))) }
	labels := make(map[string]string)
	for _, line := range parts(form.Get("labels"), "\n") {
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return in, fieldError("labels", line+": write KEY=VALUE, one a line")
		}
		labels[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	in = admin.ServiceUserInput{
		Name: text("name"), DisplayName: text("display_name"), Description: text("description"),
		Owner: text("owner"), Alias: text("alias"), Role: admin.Some(access.Role(form.Get("role"))),
		Teams: admin.Some(parts(form.Get("teams"), ",\n")), Labels: admin.Some(labels),
		AllowedIPs: admin.Some(parts(form.Get("allowed_ips"), ",\n")), ExpiresAt: text("expires_at"),
		PermissionGroups: admin.Some(form["permission_groups"]),
	}
	if in.ExpiresAt.Value != "" {
		in.ExpiresAt.Value += ":00Z" // a browser sends the time without seconds and zone
	} else if ends, err := admin.ParseDuration(form.Get("ends")); err == nil {
		in.ExpiresAt.Value = p.Now.Add(ends).UTC().Format(time.RFC3339)
	}
	return in, nil
}

// fieldError returns a fault of one field of a form.
func fieldError(field, text string) error {
	e := admin.NewError(http.StatusBadRequest, "ERR_INVALID_VALUE", text)
	e.Details = map[string]string{field: text}
	return e
}

// parts splits a list at any of some separators, and leaves out empty parts.
func parts(text, separators string) []string {
	list, between := []string{}, func(r rune) bool { return strings.ContainsRune(separators, r) }
	for part := range strings.FieldsFuncSeq(text, between) {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}

// createUser creates a service user and shows its secret, in this answer only.
func createUser(p *page) error {
	in := admin.NewServiceUser{}
	if ttl := p.Input.Get("ttl"); ttl != "" {
		in.TokenTTL = admin.Some(ttl)
	}
	var out admin.ServiceUser
	var err error
	if in.ServiceUserInput, err = p.userInput(); err == nil {
		err = p.postNew("/service_users", in, &out)
	}
	if err != nil {
		return p.showUserForm("new_user", "New service user", userForm{}, err)
	}
	first := admin.Token{Secret: out.Token, ExpiresAt: out.NextTokenEnd}
	return p.show("issued", "Token of "+out.Name, issued{out, first, true})
}

// showUserForm shows the form for a service user, after a fault if there is one.
func (p *page) showUserForm(name, title string, data userForm, fault error) (err error) {
	if data.Groups, err = p.groupNames(); err != nil {
		return cmp.Or(fault, err)
	}
	return p.form(name, title, data, fault)
}

func editUser(p *page, u admin.ServiceUser) error {
	p.Input = inputOf(u)
	return p.showUserForm("edit_user", "Edit "+u.Name, userForm{User: u}, nil)
}

func changeUser(p *page, u admin.ServiceUser) error {
	data := userForm{User: u}
	in, err := p.userInput()
	if err == nil {
		client := *p.client // not Patch, in which the labels are a merge patch that removes none
		client.Header = http.Header{"If-Match": {p.Input.Get("etag")}}
		err = client.Do(p.Context(), http.MethodPatch, u.URI, in, nil)
	}
	var e *admin.Error
	if errors.As(err, &e) && e.Status == http.StatusPreconditionFailed {
		data.Theirs = &u
		p.Input.Set("etag", u.ETag) // a second save overwrites
	}
	if err != nil {
		return p.showUserForm("edit_user", "Edit "+u.Name, data, err)
	}
	return p.done(p.home(), "saved")
}
