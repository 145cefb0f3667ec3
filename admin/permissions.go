package admin

import (
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// PermissionInput is a permission of the catalogue in a request.
type PermissionInput struct {
	Key         string   `json:"key"`                   // unique in the catalogue, such as people.address.view
	Name        string   `json:"name"`                  // for people
	Description string   `json:"description,omitempty"` // for people
	Category    string   `json:"category,omitempty"`    // a heading for lists
	Rules       []string `json:"rules"`                 // each as one line, such as "allow GET /v1/people/{id}"
}

// Catalogue is the body that loads permissions into the catalogue.
type Catalogue struct {
	Permissions []PermissionInput `json:"permissions"`       // in the order of the catalogue
	Replace     bool              `json:"replace,omitempty"` // deletes permissions that are not in the body
}

// CatalogueChange counts the changes of the catalogue by a load.
type CatalogueChange struct {
	Created   int    `json:"created"`   // the number of new permissions
	Updated   int    `json:"updated"`   // the number of changed permissions
	Unchanged int    `json:"unchanged"` // the number of permissions that were the same before
	Deleted   int    `json:"deleted"`   // the number of deleted permissions
	URI       string `json:"uri"`       // the path of the catalogue

	// rules in the body that are probably mistakes
	Warnings []string `json:"warnings,omitempty"`
}

// Permission is a named set of rules in the catalogue. A permission group that has a permission has
// the rules of it.
type Permission struct {
	Key         string    `json:"key"`         // unique in the catalogue, such as people.address.view
	URI         string    `json:"uri"`         // the path of the permission in this API
	Name        string    `json:"name"`        // for people
	Description string    `json:"description"` // for people
	Category    string    `json:"category"`    // a heading for lists
	Rules       []string  `json:"rules"`       // each as one line, such as "allow GET /v1/people/{id}"
	CreatedAt   time.Time `json:"created_at"`  // the time when it was first loaded
	CreatedBy   string    `json:"created_by"`  // the creator, as in actor of the audit trail
	UpdatedAt   time.Time `json:"updated_at"`  // the time of the last change
}

// PermissionList is a list of permissions, in the order of the catalogue.
type PermissionList struct {
	Permissions []Permission `json:"permissions"` // the permissions that meet the query
	Page
}

// PermissionQuery chooses permissions of the catalogue.
type PermissionQuery struct {
	Key      string `query:"key"`      // only the permission with this key
	Category string `query:"category"` // only permissions of this category; an unknown one is an error
}

// PermissionKey names a permission.
type PermissionKey struct {
	Key string `query:"key" required:"true"` // the key of the permission
}

// loadPermissions writes permissions into the catalogue, either all or none. It adds new keys and
// overwrites known ones. The change applies at once to every group that has the permission. The
// answer is 409 if the catalogue would have more than 2,000 permissions, or would lose one that a
// permission group has.
func (a *API) loadPermissions(c *call, in Catalogue) (CatalogueChange, error) {
	list, warnings := make([]store.Permission, len(in.Permissions)), []string(nil)
	for i, p := range in.Permissions {
		list[i] = store.Permission{Key: p.Key, Name: p.Name, Description: p.Description, Category: p.Category}
		for j, text := range p.Rules {
			rule, err := access.ParseRule(text)
			if err != nil {
				field := fmt.Sprintf("permissions.%d.rules.%d", i, j)
				return CatalogueChange{}, invalidField(field, err.Error())
			}
			list[i].Rules = append(list[i].Rules, rule)
			for _, text := range access.Doubts(rule) {
				warnings = append(warnings, fmt.Sprintf("%s %q %s", p.Key, rule, text))
			}
		}
	}
	n, err := a.store.LoadPermissions(c.Context(), c.by, list, in.Replace)
	return CatalogueChange{n.Created, n.Updated, n.Unchanged, n.Deleted, c.URL.Path, warnings}, err
}

// listPermissions lists the catalogue, or only the permissions with the given key or category.
func (a *API) listPermissions(c *call, q PermissionQuery) (PermissionList, error) {
	list, err := a.store.Permissions(c.Context(), c.by)
	if err != nil {
		return PermissionList{}, err
	}
	out := PermissionList{Permissions: []Permission{}, Page: page(c, false, "", 0)}
	for _, p := range list {
		if q.Key != "" && p.Key != q.Key || q.Category != "" && p.Category != q.Category {
			continue
		}
		shown := Permission{
			Key: p.Key, URI: permissionURI(p.Key),
			Name: p.Name, Description: p.Description, Category: p.Category,
			Rules: []string{}, CreatedAt: p.CreatedAt, CreatedBy: p.CreatedBy, UpdatedAt: p.UpdatedAt,
		}
		for _, r := range p.Rules {
			shown.Rules = append(shown.Rules, r.String())
		}
		out.Permissions = append(out.Permissions, shown)
	}
	in := func(p store.Permission) bool { return p.Category == q.Category }
	if q.Category != "" && !slices.ContainsFunc(list, in) {
		return PermissionList{}, invalidField("category", fmt.Sprintf("no permission has the category %q; "+
			"a list without category shows all of them", q.Category))
	}
	return out, nil
}

func permissionURI(key string) string {
	return "/service_users/permissions?key=" + url.QueryEscape(key)
}

// deletePermission deletes a permission from the catalogue. The answer is 404 if the catalogue does
// not have the permission. The answer is 409 if a permission group has it.
func (a *API) deletePermission(c *call, q PermissionKey) (None, error) {
	if q.Key == "" {
		return None{}, invalidField("key", "name the permission to delete")
	}
	return None{}, a.store.DeletePermission(c.Context(), c.by, q.Key)
}

// grantPermission gives a permission to a permission group. If the group has it already, the
// request succeeds and changes nothing.
func (a *API) grantPermission(c *call, _ None) (None, error) {
	return None{}, a.store.GrantPermission(c.Context(), c.by, c.PathValue("id"), c.PathValue("key"))
}

// withdrawPermission takes a permission from a permission group. If the group does not have it, the
// request succeeds and changes nothing.
func (a *API) withdrawPermission(c *call, _ None) (None, error) {
	return None{}, a.store.WithdrawPermission(c.Context(), c.by, c.PathValue("id"), c.PathValue("key"))
}
