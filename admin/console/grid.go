package console

import (
	"net/url"
	"slices"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// gridEditor has the plain allows of a group as a grid of paths and methods. Its other rules stay.
var gridEditor = groupEditor{"ticks", "Endpoints of ", groupGrid, changedGrid, gridParts}

// gridMethods are the columns of the grid, and gridRows limits its rows.
var gridMethods = []string{"GET", "POST", "PUT", "PATCH", "DELETE"}

const gridRows = 100

// inGrid reports whether a rule is part of the grid: an allow of its methods, for every host and
// without a condition.
func inGrid(r admin.Rule) bool {
	unknown := func(m string) bool { return !slices.Contains(gridMethods, m) }
	return r.Effect == access.Allow && r.Host+r.When+r.Name+r.Description == "" &&
		!slices.ContainsFunc(r.Methods, unknown)
}

// groupGrid has a value of allow, such as "GET /v1/people", for each tick.
func groupGrid(g admin.Group) url.Values {
	form := url.Values{}
	for _, r := range g.Rules {
		if inGrid(r) {
			for _, m := range r.Methods {
				form.Add("allow", m+" "+r.Path)
			}
		}
	}
	return form
}

// setOf returns the values of a field as a set: a form can have many.
func setOf(values []string) map[string]bool {
	set := make(map[string]bool)
	for _, value := range values {
		set[value] = true
	}
	return set
}

// ticked returns the methods of a path that have a tick.
func ticked(ticks map[string]bool, path string) (methods []string) {
	for _, m := range gridMethods {
		if ticks[m+" "+path] {
			methods = append(methods, m)
		}
	}
	return methods
}

// changedGrid replaces the rules of the paths whose ticks differ from the group. Paths that the form
// does not show keep theirs. A new path without a tick becomes a rule that the API refuses.
func changedGrid(g admin.Group, form url.Values) admin.GroupInput {
	now, ticks := setOf(groupGrid(g)["allow"]), setOf(form["allow"])
	paths, listed := form["path"], setOf(form["path"])
	for _, path := range parts(form.Get("new"), "\n") {
		add := form["new_method"]
		if !listed[path] {
			paths, add, listed[path] = append(paths, path), slices.Concat(add, ticked(now, path)), true
		}
		for _, m := range add {
			ticks[m+" "+path] = true
		}
	}
	changed := make(map[string]bool)
	var added []admin.RuleInput
	for i, path := range paths {
		methods, isNew := ticked(ticks, path), i >= len(form["path"])
		changed[path] = !slices.Equal(methods, ticked(now, path))
		if changed[path] && len(methods) > 0 || isNew && len(methods) == 0 {
			added = append(added, admin.RuleInput{Effect: access.Allow, Methods: methods, Path: path})
		}
	}
	rules := []admin.RuleInput{}
	for _, r := range g.Rules {
		if !inGrid(r) || !changed[r.Path] {
			rules = append(rules, same(r))
		}
	}
	return admin.GroupInput{Rules: admin.Some(append(rules, added...))}
}

// gridParts returns the grid: the paths of the form, those of the group, and those of other groups
// without a tick.
func gridParts(p *page, group admin.Group) (any, error) {
	var list admin.GroupList
	if err := p.get("/permission_groups", &list); err != nil {
		return nil, err
	}
	out := ticksPage{Grid: true}
	endpoints := section{Columns: gridMethods}
	paths := p.Input["path"]
	for _, g := range append([]admin.Group{group}, list.PermissionGroups...) {
		for _, r := range g.Rules {
			if inGrid(r) {
				paths = append(paths, r.Path)
			} else if g.ID == group.ID && !slices.Contains(out.Others, r.Text) {
				out.Others = append(out.Others, r.Text)
			}
		}
	}
	now, shown := setOf(groupGrid(group)["allow"]), make(map[string]bool)
	ticks, sent := setOf(p.Input["allow"]), setOf(p.Input["path"])
	for _, path := range paths {
		if shown[path] {
			continue
		}
		if out.More = len(shown) == gridRows; out.More {
			break
		}
		shown[path] = true
		from := ticks
		if !sent[path] {
			from = now // somebody else has added the path meanwhile
		}
		row, methods := tickRow{path, make(map[string][]tick)}, ticked(from, path)
		for _, m := range gridMethods {
			key := m + " " + path
			row.Ticks[m] = []tick{{admin.Permission{Key: key, Name: key}, slices.Contains(methods, m)}}
		}
		endpoints.Rows = append(endpoints.Rows, row)
	}
	out.Sections = []section{endpoints}
	return out, nil
}
