package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/serviceusers/caddy-service-users/admin"
)

// userTexts are the texts of a service user that create and update set, in the order of the output.
// In the output a text has the name of its flag, with spaces.
var userTexts = []struct {
	flag, usage string
	input       func(*admin.ServiceUserInput) *admin.Opt[string]
	value       func(*admin.ServiceUser) string
}{
	{"display-name", "the name for people",
		func(in *admin.ServiceUserInput) *admin.Opt[string] { return &in.DisplayName },
		func(u *admin.ServiceUser) string { return u.DisplayName }},
	{"description", "its purpose, for people",
		func(in *admin.ServiceUserInput) *admin.Opt[string] { return &in.Description },
		func(u *admin.ServiceUser) string { return u.Description }},
	{"owner", "the person or team to ask about it",
		func(in *admin.ServiceUserInput) *admin.Opt[string] { return &in.Owner },
		func(u *admin.ServiceUser) string { return u.Owner }},
	{"alias", "a second login id, for clients that have one already",
		func(in *admin.ServiceUserInput) *admin.Opt[string] { return &in.Alias },
		func(u *admin.ServiceUser) string { return u.Alias }},
}

// userFlags adds the flags that create and update share. They set fields of in.
func userFlags(flags *pflag.FlagSet, in *admin.ServiceUserInput) {
	for _, f := range userTexts {
		flags.Var(optional(f.input(in)), f.flag, f.usage)
	}
	flags.Var(optional(&in.Role), "role", "its role on the admin API: admin, manager or member")
	flags.Var(optional(&in.ExpiresAt), "expires-at",
		"when it expires, such as 2030-01-31T12:00:00Z; \"\" means never")
}

// userRow is a field of a service user in the output.
type userRow struct {
	name, value string // an empty value hides the field; the name of a label is "label KEY"
	none        string // in a change, the word for ""
}

// userRows returns the fields that can change, in the order of the output. groups has the names of
// the permission groups, and labels the keys of the labels.
func userRows(u *admin.ServiceUser, groups string, labels []string) []userRow {
	rows := []userRow{{name: "name", value: u.Name}}
	for _, f := range userTexts {
		rows = append(rows, userRow{name: strings.ReplaceAll(f.flag, "-", " "), value: f.value(u)})
	}
	rows = append(rows,
		userRow{name: "active", value: yesNo(u.Active)},
		userRow{name: "role", value: string(u.Role)},
		userRow{name: "teams", value: strings.Join(u.Teams, ", ")})
	for _, key := range labels {
		row := userRow{name: "label " + key}
		if value, ok := u.Labels[key]; ok {
			row.value, row.none = value, `""`
		}
		rows = append(rows, row)
	}
	return append(rows,
		userRow{name: "allowed IPs", value: strings.Join(u.AllowedIPs, ", "), none: "any"},
		userRow{name: "groups", value: groups},
		userRow{name: "expires", value: when(u.ExpiresAt)})
}

// changes lists the fields in which before and after differ. Both have the same fields.
func changes(before, after []userRow) (list []string) {
	text := func(r userRow) string { return cmp.Or(r.value, r.none, "-") }
	for i, r := range after {
		if was, is := text(before[i]), text(r); was != is {
			list = append(list, fmt.Sprintf("%s: %s -> %s", r.name, was, is))
		}
	}
	return list
}

// groupNames are names of permission groups by id.
type groupNames map[string]string

// of returns the names of groups, sorted, and the number of those without a name.
func (n groupNames) of(ids []string) string {
	var list []string
	hidden := 0
	for _, id := range ids {
		if n[id] == "" {
			hidden++
			continue
		}
		list = append(list, n[id])
	}
	slices.Sort(list)
	if hidden > 0 {
		list = append(list, plural(hidden, "group")+" outside of your reach")
	}
	return strings.Join(list, ", ")
}

// groupNames finds the names of groups. With deleted, the name of a group that does not exist is its
// id; otherwise it is "", since a manager does not see groups outside of its reach.
func (c *cli) groupNames(ids []string, deleted bool) (groupNames, error) {
	names := make(groupNames)
	for _, id := range ids {
		if names[id] != "" {
			continue
		}
		g, err := c.permissionGroup(id)
		if err != nil && !admin.IsNotFound(err) {
			return nil, err
		}
		if names[id] = g.Name; deleted {
			names[id] = cmp.Or(g.Name, id)
		}
	}
	return names, nil
}

// userChanges lists the fields in which a service user has changed.
func userChanges(before, after *admin.ServiceUser, names groupNames) []string {
	keys := make(map[string]string)
	maps.Copy(keys, before.Labels)
	maps.Copy(keys, after.Labels)
	labels := slices.Sorted(maps.Keys(keys))
	return changes(userRows(before, names.of(before.PermissionGroups), labels),
		userRows(after, names.of(after.PermissionGroups), labels))
}

// printUser prints a service user, and notes. Unless before is nil, it also prints the changes since
// then.
func (c *cli) printUser(u admin.ServiceUser, before *admin.ServiceUser, notes ...string) error {
	if c.json {
		return c.print(u, nil) // with the ids of its groups
	}
	was := cmp.Or(before, &u)
	// A group of before may be deleted meanwhile.
	names, err := c.groupNames(slices.Concat(u.PermissionGroups, was.PermissionGroups), before != nil)
	if err != nil {
		return err
	}
	rows := table{{"id", u.ID}}
	for _, r := range userRows(&u, names.of(u.PermissionGroups), slices.Sorted(maps.Keys(u.Labels))) {
		if key, isLabel := strings.CutPrefix(r.name, "label "); isLabel {
			rows.add("label", key+"="+r.value)
		} else {
			rows.add(r.name, r.value)
		}
	}
	if before == nil && u.Active && u.Obstacle != nil {
		rows.add("obstacle", *u.Obstacle)
	}
	rows.add("last active", when(u.LastActiveAt))
	rows.add("created", when(&u.CreatedAt)+" by "+u.CreatedBy)
	rows = rows.known()
	if before == nil {
		return c.print(u, rows, notes...)
	}
	list := userChanges(before, &u, names)
	if len(list) == 0 {
		rows.add("changed", "nothing")
	}
	for _, change := range list {
		rows.add("changed", change)
	}
	note := ""
	if len(before.AllowedIPs) > 0 && len(u.AllowedIPs) == 0 {
		note = "It may come from any address now."
	}
	return c.print(u, rows, note)
}
