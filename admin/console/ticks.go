package console

import (
	"cmp"
	"net/url"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/admin"
)

// ticksEditor is the catalogue as a page of ticks. The rules of the group itself stay as they are.
var ticksEditor = groupEditor{"ticks", "Permissions of ", groupTicks, changedTicks, tickSections}

func groupTicks(g admin.Group) url.Values { return url.Values{"permission": g.Permissions} }

func changedTicks(_ admin.Group, form url.Values) admin.GroupInput {
	return admin.GroupInput{Permissions: admin.Some(append([]string{}, form["permission"]...))}
}

func tickSections(p *page, _ admin.Group) (any, error) {
	var list admin.PermissionList
	err := p.get("/service_users/permissions", &list)
	return ticksPage{Sections: sections(list.Permissions, p.Input["permission"])}, err
}

// ticksPage is the data of a page of ticks: of the catalogue, or of a grid.
type ticksPage struct {
	Sections []section
	Grid     bool
	More     bool     // whether rows of the grid were left out
	Others   []string // the rules outside of the grid
}

// section is a part of the catalogue: the permissions whose categories have the same text before a
// colon, such as "Features".
type section struct {
	Name    string
	Columns []string // the actions, such as "view"
	Rows    []tickRow
}

// tickRow has the permissions of one thing, by the columns of its section.
type tickRow struct {
	Name  string
	Ticks map[string][]tick
}

type tick struct {
	admin.Permission
	On bool
}

// levels are the actions that have a column of their own, in the order of the columns.
var levels = []string{"view", "read", "create", "edit", "update", "write", "delete", "history", ""}

// sections arranges the catalogue, in its order. The last part of a key such as people.address.view
// names the column.
func sections(list []admin.Permission, ticked []string) (all []section) {
	for _, one := range list {
		name, thing, ok := strings.Cut(one.Category, ":")
		if !ok {
			name, thing = "", cmp.Or(one.Category, one.Name)
		}
		i := slices.IndexFunc(all, func(s section) bool { return s.Name == name })
		if i < 0 {
			i, all = len(all), append(all, section{Name: name})
		}
		s := &all[i]
		action := one.Key[strings.LastIndexByte(one.Key, '.')+1:]
		if !slices.Contains(levels, action) {
			action = "" // the last column, with the names of its ticks
		}
		if !slices.Contains(s.Columns, action) {
			s.Columns = append(s.Columns, action)
			slices.SortFunc(s.Columns, func(x, y string) int { return slices.Index(levels, x) - slices.Index(levels, y) })
		}
		row := slices.IndexFunc(s.Rows, func(r tickRow) bool { return r.Name == thing })
		if row < 0 {
			row, s.Rows = len(s.Rows), append(s.Rows, tickRow{thing, make(map[string][]tick)})
		}
		ticks := s.Rows[row].Ticks
		ticks[action] = append(ticks[action], tick{one, slices.Contains(ticked, one.Key)})
	}
	return all
}
