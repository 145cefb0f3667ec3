package console

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

type column struct{ Label, Sort string }

// userColumns are the columns of the list, each with its field of sort in the API.
var userColumns = []column{
	{"Name", "name"}, {"Display name", "display_name"}, {"Role", "role"}, {"Teams", "teams"}, {"Groups", ""},
	{"Status", "status"}, {"Last active", "last_active_at"}, {"Next token end", "next_token_end"},
	{"Created", "created_at"},
}

// userParameters are the parameters of the list that the page passes on to the API.
var userParameters = []string{"q", "role", "team", "group", "label", "status", "sort", "before_id", "cursor"}

// userList is the data of the list of service users.
type userList struct {
	admin.ServiceUserList
	Columns []column
	Groups  map[string]string // names of permission groups by id
	Hidden  int               // the number of service users that the default filter hides
	Verbs   []bulkVerb
	Bulk    string // the address of the form for the ticked ones
}

func listUsers(p *page) (err error) {
	query := p.userQuery()
	data := userList{Columns: userColumns, Verbs: bulkVerbs, Bulk: strings.Replace(p.Here(), "service_users", "service_users/bulk", 1)}
	if data.Groups, err = p.groupNames(); err != nil {
		return err
	}
	query.Set("total_count", "true")
	if err := p.get("/service_users?"+query.Encode(), &data.ServiceUserList); err != nil {
		return p.form("users", "Service users", data, err)
	}
	if p.Input.Get("status") == "" {
		data.Hidden = *data.HiddenCount
	}
	return p.show("users", "Service users", data)
}

// userQuery returns the query of the API for the parameters of the page.
func (p *page) userQuery() url.Values {
	query := p.query(userParameters...)
	query.Set("sort", cmp.Or(query.Get("sort"), "usable"))
	switch query.Get("status") {
	case "":
		query.Set("status", "active") // the others hide behind a link
	case "all":
		query.Del("status")
	case "deleted":
		query.Del("status")
		query.Set("deleted", "true")
	}
	return query
}

// refreshUser leads to the refresh of the only token that a service user has for its program, or to
// all of its tokens.
func refreshUser(p *page) error {
	var data userPage
	if err := p.tokens(&data); err != nil {
		return err
	}
	live := slices.DeleteFunc(data.Tokens, func(t admin.Token) bool { return t.State != store.TokenActive })
	place := "#tokens"
	if len(live) == 1 {
		place = "/tokens/" + live[0].ID + "/refresh"
	}
	http.Redirect(p.w, p.Request, p.home()+place, http.StatusSeeOther)
	return nil
}

// groupNames returns the names of all permission groups by their ids.
func (p *page) groupNames() (map[string]string, error) {
	names := make(map[string]string)
	err := admin.All(p.Context(), p.client, "/permission_groups", func(list admin.GroupList) admin.Page {
		for _, g := range list.PermissionGroups {
			names[g.ID] = g.Name
		}
		return list.Page
	})
	return names, err
}
