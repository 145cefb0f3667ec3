package admin

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// PermissionInput is a permission of the catalogue in a request.
type PermissionInput struct {
	Key         string   `json:"key"`                   // what identifies it in the catalogue
	Name        string   `json:"name"`                  // for people
	Description string   `json:"description,omitempty"` // for people
	Category    string   `json:"category,omitempty"`    // a heading to list it under
	Rules       []string `json:"rules"`                 // in their one-line form
}

// Catalogue is the body that loads permissions. With replace, those that are not
// in it are deleted.
type Catalogue struct {
	Permissions []PermissionInput `json:"permissions"`       // in the order to list them in
	Replace     bool              `json:"replace,omitempty"` // delete those that are not in it
}

// CatalogueChange counts what loading did.
type CatalogueChange struct {
	Created   int    `json:"created"`   // how many are new
	Updated   int    `json:"updated"`   // how many have changed
	Unchanged int    `json:"unchanged"` // how many were there already
	Deleted   int    `json:"deleted"`   // how many are gone
	URI       string `json:"uri"`       // the path of the catalogue
}

// Permission is a named right of the catalogue: it stands for rules, and can be
// given to permission groups.
type Permission struct {
	Key         string    `json:"key"`         // what identifies it in the catalogue
	URI         string    `json:"uri"`         // its path in this API
	Name        string    `json:"name"`        // for people
	Description string    `json:"description"` // for people
	Category    string    `json:"category"`    // a heading to list it under
	Rules       []string  `json:"rules"`       // in their one-line form
	CreatedAt   time.Time `json:"created_at"`  // when it was first loaded
	CreatedBy   string    `json:"created_by"`  // "local", "human:NAME" or the id of a service user
	UpdatedAt   time.Time `json:"updated_at"`  // when it was last changed
}

// PermissionList is the catalogue, in its order.
type PermissionList struct {
	Permissions []Permission `json:"permissions"` // those that were asked for
	Page
}

// PermissionQuery chooses permissions of the catalogue.
type PermissionQuery struct {
	Key      string `query:"key"`      // only this one
	Category string `query:"category"` // only those of this category
}

// PermissionKey names one.
type PermissionKey struct {
	Key string `query:"key" required:"true"` // of the permission
}

// loadPermissions writes permissions into the catalogue, all or none. New keys are
// added, known ones take what is given, and groups that have them follow at once.
func (a *API) loadPermissions(c *call, in Catalogue) (CatalogueChange, error) {
	list := make([]store.Permission, len(in.Permissions))
	for i, p := range in.Permissions {
		list[i] = store.Permission{Key: p.Key, Name: p.Name, Description: p.Description, Category: p.Category}
		for j, text := range p.Rules {
			rule, err := access.ParseRule(text)
			if err != nil {
				return CatalogueChange{}, invalidField(fmt.Sprintf("permissions.%d.rules.%d", i, j), err.Error())
			}
			list[i].Rules = append(list[i].Rules, rule)
		}
	}
	n, err := a.store.LoadPermissions(c.Context(), c.by, list, in.Replace)
	return CatalogueChange{n.Created, n.Updated, n.Unchanged, n.Deleted, c.URL.Path}, err
}

// listPermissions lists the catalogue, or those of a key or category.
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
			Key: p.Key, URI: permissionURI(p.Key), Name: p.Name, Description: p.Description, Category: p.Category,
			Rules: []string{}, CreatedAt: p.CreatedAt, CreatedBy: p.CreatedBy, UpdatedAt: p.UpdatedAt,
		}
		for _, r := range p.Rules {
			shown.Rules = append(shown.Rules, r.String())
		}
		out.Permissions = append(out.Permissions, shown)
	}
	return out, nil
}

func permissionURI(key string) string {
	return "/service_users/permissions?key=" + url.QueryEscape(key)
}

// deletePermission takes a permission out of the catalogue. One that a group has
// stays, which is a conflict.
func (a *API) deletePermission(c *call, q PermissionKey) (None, error) {
	if q.Key == "" {
		return None{}, invalidField("key", "name the permission to delete")
	}
	return None{}, a.store.DeletePermission(c.Context(), c.by, q.Key)
}

// grantPermission gives a permission to a permission group. To give it again
// changes nothing and is no error.
func (a *API) grantPermission(c *call, _ None) (None, error) {
	return a.setPermission(c, a.store.GrantPermission)
}

// withdrawPermission takes a permission from a permission group. To take one that
// it does not have changes nothing and is no error.
func (a *API) withdrawPermission(c *call, _ None) (None, error) {
	return a.setPermission(c, a.store.WithdrawPermission)
}

func (a *API) setPermission(c *call, set func(ctx context.Context, by store.Actor, group, key string) error) (None, error) {
	group, err := c.id("id", "group")
	if err != nil {
		return None{}, err
	}
	return None{}, set(c.Context(), c.by, group, c.PathValue("key"))
}
