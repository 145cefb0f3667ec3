package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
)

// permissionCommands adds the commands for the catalogue of permissions.
func (c *cli) permissionCommands(root *cobra.Command) {
	const uri = "/service_users/permissions"
	var replace bool
	load := c.command(root, "load FILE",
		"Loads a catalogue of permissions from a JSON file, or from \"-\", the standard input",
		"permission load examples/hibob-permissions.json",
		func(args []string) error {
			in, err := readCatalogue(args[0])
			if err != nil {
				return err
			}
			if replace {
				in["replace"] = jsontext.Value("true")
			}
			if string(in["replace"]) == "true" {
				if err := c.sure("Delete every permission that is not in %s?", args[0]); err != nil {
					return err
				}
			}
			var n admin.CatalogueChange
			if err := c.do(http.MethodPut, uri, in, &n); err != nil {
				return err
			}
			return c.print(n, table{{fmt.Sprintf("%d created, %d updated, %d unchanged, %d deleted",
				n.Created, n.Updated, n.Unchanged, n.Deleted)}}, warningNotes(n.Warnings)...)
		})
	load.Flags().BoolVar(&replace, "replace", false, "delete the permissions that are not in the file")
	c.destructive(load, func() bool { return replace })

	query := url.Values{}
	list := c.command(root, "list", "Lists the catalogue of permissions", "permission list",
		func([]string) error {
			var l admin.PermissionList
			if err := c.do(http.MethodGet, withQuery(uri, query), nil, &l); err != nil {
				return err
			}
			rows := table{{"KEY", "CATEGORY", "NAME", "RULES"}}
			for _, p := range l.Permissions {
				rows.add(p.Key, p.Category, p.Name, len(p.Rules))
			}
			return c.print(l, rows)
		})
	list.Flags().Var(parameter(query, "category"), "category", "only permissions of this category")

	c.command(root, "show KEY", "Shows a permission with its rules", "permission show people.address.view",
		on(c.permission, func(p admin.Permission, _ []string) error {
			rows := table{
				{"key", p.Key}, {"name", p.Name},
				{"category", p.Category}, {"description", p.Description},
			}.known()
			for _, r := range p.Rules {
				rows.add("rule", r)
			}
			return c.print(p, rows)
		}))

	c.destructive(c.command(root, "delete KEY", "Deletes a permission that no group has",
		"permission delete people.address.view --yes",
		func(args []string) error {
			if err := c.sure("Delete the permission %s?", args[0]); err != nil {
				return err
			}
			return c.change(http.MethodDelete, uri+"?key="+url.QueryEscape(args[0]), "deleted %s", args[0])
		}), nil)

	set := func(use, short, example, method, past string) {
		c.command(root, use, short, example, on(c.permissionGroup, func(g admin.Group, args []string) error {
			// The API accepts the withdrawal of any key, so a typo would look like a success.
			p, err := c.permission(args[1])
			if err != nil {
				return err
			}
			return c.change(method, g.URI+"/permissions/"+url.PathEscape(p.Key), past, g.Name, p.Key)
		}))
	}
	set("grant GROUP KEY", "Gives a permission to a group",
		"permission grant people-readers people.address.view", http.MethodPut, "%s has %s")
	set("withdraw GROUP KEY", "Takes a permission away from a group",
		"permission withdraw people-readers people.address.view", http.MethodDelete, "%s no longer has %s")
}

// permission returns the permission with this key.
func (c *cli) permission(key string) (p admin.Permission, err error) {
	var list admin.PermissionList
	uri := "/service_users/permissions?key=" + url.QueryEscape(key)
	if err := c.do(http.MethodGet, uri, nil, &list); err != nil {
		return p, err
	}
	if len(list.Permissions) == 0 {
		return p, admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND",
			fmt.Sprintf("there is no permission %q in the catalogue", key))
	}
	return list.Permissions[0], nil
}

// readCatalogue reads the file of a catalogue and splits it into its members. The API checks the
// members.
func readCatalogue(path string) (in map[string]jsontext.Value, err error) {
	file, err := openInput(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &in); err != nil || in == nil {
		reason := "it is not an object"
		if syntax := (*jsontext.SyntacticError)(nil); errors.As(err, &syntax) {
			reason = fmt.Sprintf("%v at byte %d", syntax.Err, syntax.ByteOffset)
		}
		const example = `{"permissions":[{"key":"people.view","name":"View people",` +
			`"rules":["allow GET /v1/people/{id}"]}]}`
		return nil, fmt.Errorf("%s is not a catalogue of permissions: %s; it looks like %s",
			path, reason, example)
	}
	return in, nil
}

// openInput opens a file, or returns the standard input if path is "-".
func openInput(path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(os.Stdin), nil
	}
	return os.Open(path)
}
