package admin

import (
	"maps"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// createServiceUser creates a service user, together with a first token unless create_token is
// false. Only this answer contains the secret of the token. At /bot_users and for requests with the
// header Ngrok-Version, create_token is false by default: in the ngrok API a create issues no
// token, so a client of that API would drop the secret and leave the token valid. The answer is 409
// if another service user has the name or the alias.
func (a *API) createServiceUser(c *call, in NewServiceUser) (ServiceUser, error) {
	u, token, err := a.newUser(c, in)
	if err != nil {
		return ServiceUser{}, err
	}
	u, issued, err := a.store.CreateServiceUser(c.Context(), c.by, u, token)
	if err != nil {
		return ServiceUser{}, err
	}
	out := c.showUser(u)
	if issued != nil {
		out.TokenID, out.Token = issued.ID, issued.Secret
	}
	return out, nil
}

// newUser converts a service user in a request, with its first token, which may be nil.
func (a *API) newUser(c *call, in NewServiceUser) (u store.ServiceUser, token *store.Token, err error) {
	u.Active = true
	if err := in.apply(&u); err != nil {
		return u, nil, err
	}
	if in.CreateToken.Value || !in.CreateToken.Set && !c.foreign() {
		token = new(store.Token)
	}
	if in.TokenTTL.Set {
		if token == nil {
			return u, nil, invalidField("token_ttl",
				"there is no first token; leave it out, or create_token")
		}
		var ttl time.Duration
		ttl, err = parseDuration("token_ttl", in.TokenTTL.Value)
		token.ExpiresAt = a.store.Now().UTC().Add(ttl)
	}
	return u, token, err
}

// foreign reports whether a request is that of a client of the ngrok API.
func (c *call) foreign() bool {
	return len(c.Header.Values("Ngrok-Version")) > 0 || c.collection() == "/bot_users"
}

// apply copies the fields that the body contains into u.
func (in *ServiceUserInput) apply(u *store.ServiceUser) error {
	in.Name.to(&u.Name)
	in.DisplayName.to(&u.DisplayName)
	in.Description.to(&u.Description)
	in.Owner.to(&u.Owner)
	in.Alias.to(&u.Alias)
	in.Active.to(&u.Active)
	in.Role.to(&u.Role)
	in.Teams.to(&u.Teams)
	in.Labels.to(&u.Labels)
	if in.merged.Set {
		u.Labels = merge(u.Labels, in.merged.Value)
	}
	in.AllowedIPs.to(&u.AllowedIPs)
	in.PermissionGroups.to(&u.Groups)
	return setTime("expires_at", in.ExpiresAt, &u.ExpiresAt)
}

// merge returns target after a merge patch (RFC 7396, section 2). A nil patch means null, which
// removes all members.
func merge(target map[string]string, patch map[string]*string) map[string]string {
	merged := make(map[string]string)
	if patch != nil {
		maps.Copy(merged, target)
	}
	for key, value := range patch {
		if value == nil {
			delete(merged, key)
		} else {
			merged[key] = *value
		}
	}
	return merged
}

// listServiceUsers lists service users, newest first unless sort asks for another order. With
// deleted it lists tombstones of deleted service users instead.
func (a *API) listServiceUsers(c *call, q UserListQuery) (ServiceUserList, error) {
	return a.listUsers(c, q)
}

// listBotUsers lists service users under their name in the ngrok API.
func (a *API) listBotUsers(c *call, q UserListQuery) (BotUserList, error) {
	list, err := a.listUsers(c, q)
	return BotUserList{list.ServiceUsers, list.Page}, err
}

func (a *API) listUsers(c *call, q UserListQuery) (ServiceUserList, error) {
	if q.Filter != "" {
		done, err := a.heavy.take(c.Context(), c.by.Name)
		if err != nil {
			return ServiceUserList{}, err
		}
		defer done()
	}
	chosen, err := q.query(c)
	if err != nil {
		return ServiceUserList{}, err
	}
	users, next, err := a.store.ServiceUsers(c.Context(), c.by, chosen)
	if err != nil {
		return ServiceUserList{}, err
	}
	list := make([]ServiceUser, len(users))
	for i, u := range users {
		list[i] = c.showUser(u)
	}
	links := lastPage(c)
	switch {
	case next == "":
	case chosen.Sort == "":
		links = nextPage(c, "before_id", next.ID(), chosen.Limit)
	default:
		links = nextPage(c, "cursor", q.cursor(next), chosen.Limit)
	}
	links.TotalCount = chosen.Total
	return ServiceUserList{list, links, chosen.Hidden}, nil
}

// getServiceUser returns a service user.
func (a *API) getServiceUser(c *call, q DeletedQuery) (ServiceUser, error) {
	deleted, err := boolean("deleted", q.Deleted)
	if err != nil {
		return ServiceUser{}, err
	}
	u, err := a.store.ServiceUser(c.Context(), c.by, c.PathValue("id"), deleted)
	if err != nil {
		return ServiceUser{}, err
	}
	return c.showUser(u), nil
}

// updateServiceUser sets the fields that the body contains; the others stay. Labels in plain JSON
// replace all labels; a merge patch changes only the labels that it contains. The answer is 409 if
// another service user has the name or the alias.
func (a *API) updateServiceUser(c *call, in ServiceUserInput) (ServiceUser, error) {
	u, err := a.store.UpdateServiceUser(c.Context(), c.by, c.PathValue("id"), c.version, in.apply)
	if err != nil {
		return ServiceUser{}, err
	}
	return c.showUser(u), nil
}

// deleteServiceUser deletes a service user, and from then on refuses all its tokens. The service
// user can be undeleted for some time. Its id is never used again. The answer is 409 if the service
// user was used within unless_used_within.
func (a *API) deleteServiceUser(c *call, q DeleteQuery) (None, error) {
	var unused time.Duration
	if q.UnlessUsedWithin != "" {
		var err error
		if unused, err = parseDuration("unless_used_within", q.UnlessUsedWithin); err != nil {
			return None{}, err
		}
	}
	return None{}, a.store.DeleteServiceUser(c.Context(), c.by, c.PathValue("id"), c.version, unused)
}

// undeleteServiceUser restores a deleted service user with its tokens and groups. It is inactive at
// first. The answer is 409 if the service user is not deleted, was deleted too long ago, or has the
// name or the alias of another one.
func (a *API) undeleteServiceUser(c *call, _ None) (ServiceUser, error) {
	// An error of the first call is one of the second call as well.
	was, _ := a.store.ServiceUser(c.Context(), c.by, c.PathValue("id"), true)
	u, err := a.store.UndeleteServiceUser(c.Context(), c.by, c.PathValue("id"))
	if err != nil {
		return ServiceUser{}, err
	}
	out := c.showUser(u)
	out.Undeleted = new(showDeletion(was))
	return out, nil
}

func showDeletion(u store.ServiceUser) (d Deletion) {
	if !u.DeletedAt.IsZero() {
		d = Deletion{&u.DeletedAt, u.DeletedBy, &u.WasActive}
	}
	return d
}

// collection returns the path under which the caller addresses service users, for links in the
// answer.
func (c *call) collection() string {
	if strings.HasPrefix(c.URL.Path, "/bot_users") {
		return "/bot_users"
	}
	return "/service_users"
}

func (c *call) showUser(u store.ServiceUser) ServiceUser { return c.showUserIn(c.store.Directory(), u) }

// showUserIn is showUser with the obstacle and the tokens by the state of a directory.
func (c *call) showUserIn(d *access.Directory, u store.ServiceUser) ServiceUser {
	k, _ := d.Sketch(u.ID, c.store.Now().Unix()) // a tombstone is not in the directory, and has no token
	out := ServiceUser{
		ID: u.ID, URI: c.collection() + "/" + u.ID,
		Name: u.Name, DisplayName: u.DisplayName, Description: u.Description, Owner: u.Owner, Alias: u.Alias,
		Active: u.Active, Role: u.Role, Teams: nonNil(u.Teams), Labels: u.Labels,
		AllowedIPs: nonNil(u.AllowedIPs), ExpiresAt: OrNull(u.ExpiresAt),
		CreatedAt: u.CreatedAt, CreatedBy: u.CreatedBy, UpdatedAt: u.UpdatedAt,
		LastActiveAt: OrNull(u.LastActiveAt), Deletion: showDeletion(u),
		PermissionGroups: nonNil(u.Groups), Obstacle: c.obstacleIn(d, u.ID), TokenCount: k.Tokens,
		Editable: c.store.MayChange(c.by, u), ETag: etag(u.Version),
	}
	if k.NextEnd != 0 {
		out.NextTokenEnd = new(time.Unix(k.NextEnd, 0).UTC())
	}
	return out
}

// filterFields returns the fields of obj for a service user.
func filterFields(u *store.ServiceUser) map[string]any {
	labels := make(map[string]string, len(u.Labels))
	maps.Copy(labels, u.Labels)
	return map[string]any{
		"id": u.ID, "uri": "/service_users/" + u.ID,
		"name": u.Name, "display_name": u.DisplayName, "description": u.Description,
		"owner": u.Owner, "alias": u.Alias, "active": u.Active, "role": string(u.Role),
		"teams": nonNil(u.Teams), "labels": labels, "allowed_ips": nonNil(u.AllowedIPs),
		"created_at": filterTime(u.CreatedAt), "updated_at": filterTime(u.UpdatedAt),
		"expires_at": filterTime(u.ExpiresAt), "last_active_at": filterTime(u.LastActiveAt),
		"deleted_at": filterTime(u.DeletedAt), "created_by": u.CreatedBy,
		"permission_groups": nonNil(u.Groups),
	}
}

func filterTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

// nonNil returns an empty list for nil, so that JSON has [] and not null.
func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// OrNull returns nil, which is null in JSON, for the zero time.
func OrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
