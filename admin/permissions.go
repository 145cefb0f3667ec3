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
	Key         string   `json:"key"`
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Category    string   `json:"category,omitempty"`
	Rules       []string `json:"rules"` // in their one-line form
}

// Catalogue is the body that loads permissions. With Replace, those that are not
// in it are deleted.
type Catalogue struct {
	Permissions []PermissionInput `json:"permissions"`
	Replace     bool              `json:"replace,omitempty"`
}

// CatalogueChange counts what loading did.
type CatalogueChange struct {
	Created   int    `json:"created"`
	Updated   int    `json:"updated"`
	Unchanged int    `json:"unchanged"`
	Deleted   int    `json:"deleted"`
	URI       string `json:"uri"`
}

// Permission is a named right of the catalogue: it stands for rules, and can be
// given to permission groups.
type Permission struct {
	Key         string    `json:"key"`
	URI         string    `json:"uri"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Category    string    `json:"category"`
	Rules       []string  `json:"rules"`
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"`
	UpdatedAt   time.Time `json:"updated_at"`
}

// PermissionList is the catalogue, in its order.
type PermissionList struct {
	Permissions []Permission `json:"permissions"`
	Page
}

// PermissionQuery chooses permissions of the catalogue.
type PermissionQuery struct {
	Key      string `query:"key"`
	Category string `query:"category"`
}

// PermissionKey names one.
type PermissionKey struct {
	Key string `query:"key"`
}

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

func (a *API) deletePermission(c *call, q PermissionKey) (None, error) {
	if q.Key == "" {
		return None{}, invalidField("key", "name the permission to delete")
	}
	return None{}, a.store.DeletePermission(c.Context(), c.by, q.Key)
}

func (a *API) grantPermission(c *call, _ None) (None, error) {
	return a.setPermission(c, a.store.GrantPermission)
}

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
