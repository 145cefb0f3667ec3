package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// BulkInput is the body that changes many service users at once. Exactly one of ids, filter and
// users chooses them, at most 1,000.
type BulkInput struct {
	// create, update, deactivate, reactivate, delete, undelete, add_to_group,
	// remove_from_group or rotate. rotate refreshes each token that is valid and not retiring,
	// at most 1,000 tokens
	Do string `json:"do"`
	// the ids of the service users
	IDs []string `json:"ids,omitempty"`
	// a condition in CEL over obj, as in the list of service users; undelete looks for deleted
	// ones
	Filter string `json:"filter,omitempty"`
	// only with create: the new service users
	Users []NewServiceUser `json:"users,omitempty"`
	// only with update: the fields to set, as a merge patch
	Set *ServiceUserPatch `json:"set,omitempty"`
	// only with update: entries to add to lists
	Add *UserLists `json:"add,omitempty"`
	// only with update: entries to remove from lists
	Remove *UserLists `json:"remove,omitempty"`
	// only with add_to_group and remove_from_group: the id of the permission group
	PermissionGroup string `json:"permission_group,omitempty"`
	// only with delete: fails if one of the service users was used within this duration, such
	// as 24h
	UnlessUsedWithin string `json:"unless_used_within,omitempty"`
	// only with rotate, which needs it: how long the old tokens stay valid, such as 24h
	Grace string `json:"grace,omitempty"`
	// true makes the whole change and then undoes it, so that the answer shows its effect
	DryRun bool `json:"dry_run,omitempty"`
}

// UserLists are entries of the lists that a service user has.
type UserLists struct {
	// names of teams
	Teams []string `json:"teams,omitempty"`
	// addresses and CIDRs that requests may come from
	AllowedIPs []string `json:"allowed_ips,omitempty"`
	// ids of the permission groups that name the service user as a member
	PermissionGroups []string `json:"permission_groups,omitempty"`
}

// BulkResult is the effect of a change of many service users.
type BulkResult struct {
	// the kind of change, as in the request
	Do string `json:"do"`
	// whether the change was undone
	DryRun bool `json:"dry_run"`
	// the number of service users that changed
	Changed int `json:"changed"`
	// the number of service users that were in the wanted state before
	Unchanged int `json:"unchanged"`
	// the service users, in the order of the request or newest first
	ServiceUsers []BulkEntry `json:"service_users"`
}

// BulkEntry is the effect on one service user.
type BulkEntry struct {
	// service_…; "" for a service user that a dry run created
	ID string `json:"id"`
	// unique
	Name string `json:"name"`
	// whether before and after differ
	Changed bool `json:"changed"`
	// the service user before the change; null if the change created it
	Before *ServiceUser `json:"before"`
	// the service user after the change; null if the change deleted it
	After *ServiceUser `json:"after"`
	// the id of the first token; only in the answer that creates it
	TokenID string `json:"token_id,omitempty"`
	// the secret of the first token; shown only once, in the answer that creates it
	Token string `json:"token,omitempty"`
	// only of a rotate: the new tokens, as in the answer to a refresh; those of a dry run have
	// no id and no secret
	Tokens []Token `json:"tokens,omitempty"`
}

var errTooMany = NewError(http.StatusBadRequest, "ERR_INVALID_VALUE", fmt.Sprintf(
	"more than %d service users are too many for one request; choose fewer", store.MaxBulk))

// bulkServiceUsers makes one change of many service users in one transaction: all of them change, or
// none. Each of them has its own audit record, under the operation id of the request. An error names
// the service user by its place in users or by its id. The answer is 404 if a service user or the
// permission group does not exist. The answer is 409 if a change conflicts with a service user, as in the
// operation for a single one.
func (a *API) bulkServiceUsers(c *call, in BulkInput) (BulkResult, error) {
	done, err := a.heavy.take(c.Context(), c.by.Name)
	if err != nil {
		return BulkResult{}, err
	}
	defer done()
	issued := made{first: make([]store.Issued, len(in.Users))}
	entries, err := a.bulkEntries(c, &in, &issued)
	if err != nil {
		return BulkResult{}, err
	}
	var was, is *access.Directory
	bulk := store.Bulk{
		Entries: entries, DryRun: in.DryRun,
		Directories: func(before, after *access.Directory) { was, is = before, after },
	}
	list, err := a.store.ChangeUsers(c.Context(), c.by, bulk)
	if err != nil {
		return BulkResult{}, err
	}
	out := BulkResult{Do: in.Do, DryRun: in.DryRun, ServiceUsers: []BulkEntry{}}
	for i, changed := range list {
		// The directory in force has one of the two states, and after a dry run the first.
		before, after := c.showUserIn(was, changed.Before), c.showUserIn(is, changed.After)
		e := a.showEntry(in, before, after, &issued, i)
		if e.Changed {
			out.Changed++
		}
		out.ServiceUsers = append(out.ServiceUsers, e)
	}
	out.Unchanged = len(list) - out.Changed
	return out, nil
}

// made has the tokens that a bulk issues.
type made struct {
	first    []store.Issued   // of a create, by the place of its service user
	replaced []store.Replaced // of a rotate
}

// bulkEntries returns the change of each service user. The changes write the tokens that they issue
// to issued.
func (a *API) bulkEntries(c *call, in *BulkInput, issued *made) (entries []store.Entry, err error) {
	change, err := a.bulkChange(c, in, issued)
	if err != nil {
		return nil, err
	}
	if len(in.IDs) > store.MaxBulk { // fewUsers has counted in.Users
		return nil, errTooMany
	}
	for i, u := range in.Users {
		part := fmt.Sprintf("users.%d", i)
		user, token, err := a.newUser(c, u)
		if err != nil {
			return nil, within(err, part)
		}
		change := store.CreateUser(user, token, &issued.first[i])
		entries = append(entries, store.Entry{Part: part, Change: change})
	}
	for i, id := range in.IDs {
		field := fmt.Sprintf("ids.%d", i)
		switch {
		case !store.ValidID("service", id):
			return nil, invalidField(field, fmt.Sprintf(
				"%q is not an id that begins with service_; "+
					"GET /service_users?name=… finds the id of a name", id))
		case slices.Contains(in.IDs[:i], id):
			return nil, invalidField(field, id+" is in the list twice")
		}
		entries = append(entries, store.Entry{Part: id, ID: id, Change: change})
	}
	if in.Filter == "" {
		return entries, nil
	}
	fits, err := userFilter.compile(c.Context(), in.Filter, a.store.Now())
	if err != nil {
		return nil, err
	}
	found, err := a.store.UsersWhere(c.Context(), c.by, in.Do == "undelete", fits)
	if len(found) > store.MaxBulk {
		return nil, errTooMany
	}
	for _, u := range found {
		entries = append(entries, store.Entry{Part: u.ID, ID: u.ID, Version: u.Version, Change: change})
	}
	return entries, err
}

// bulkChange checks the fields of a bulk and returns its change, which is nil for a create.
func (a *API) bulkChange(c *call, in *BulkInput, issued *made) (store.UserChange, error) {
	const others = "update, deactivate, reactivate, delete, undelete, add_to_group, remove_from_group, rotate"
	if !slices.Contains(strings.Split("create, "+others, ", "), in.Do) {
		return nil, invalidField("do", fmt.Sprintf("%q is none of create, %s", in.Do, others))
	}
	if c.by.Once != nil && in.Do != "create" && in.Do != "rotate" {
		return nil, errUselessKey
	}
	if c.Wait != "" && in.DryRun {
		return nil, errNoWait
	}
	chosen := 0
	for i, f := range []struct {
		field string
		given bool
		with  string // the kinds of change that have the field
	}{
		{"ids", len(in.IDs) > 0, others},
		{"filter", in.Filter != "", others},
		{"users", len(in.Users) > 0, "create"},
		{"set", in.Set != nil, "update"},
		{"add", in.Add != nil, "update"},
		{"remove", in.Remove != nil, "update"},
		{"permission_group", in.PermissionGroup != "", "add_to_group, remove_from_group"},
		{"unless_used_within", in.UnlessUsedWithin != "", "delete"},
		{"grace", in.Grace != "", "rotate"},
	} {
		if f.given && !slices.Contains(strings.Split(f.with, ", "), in.Do) {
			return nil, invalidField(f.field, "goes only with \"do\": "+f.with+"; leave it out")
		}
		if f.given && i < 3 {
			chosen++
		}
	}
	if chosen != 1 {
		return nil, NewError(400, "ERR_INVALID_VALUE",
			"choose the service users by one of ids, filter and users, which must not be empty")
	}
	switch in.Do {
	case "update":
		if in.Set == nil && in.Add == nil && in.Remove == nil {
			return nil, invalidField("set", "an update needs one of set, add and remove")
		}
		// A value that has no meaning for any service user is an error of the request.
		return store.UpdateUser(in.edit), in.edit(new(store.ServiceUser))
	case "deactivate", "reactivate":
		return store.UpdateUser(func(u *store.ServiceUser) error {
			u.Active = in.Do == "reactivate"
			return nil
		}), nil
	case "delete":
		var unused time.Duration
		var err error
		if in.UnlessUsedWithin != "" {
			unused, err = parseDuration("unless_used_within", in.UnlessUsedWithin)
		}
		return store.DeleteUser(unused), err
	case "undelete":
		return store.UndeleteUser, nil
	case "rotate":
		grace, err := parseDuration("grace", in.Grace)
		return store.RefreshTokens(grace, &issued.replaced), err
	case "add_to_group", "remove_from_group":
		if !store.ValidID("group", in.PermissionGroup) {
			return nil, invalidField("permission_group", "must be the id of a permission group, group_…")
		}
		_, err := a.store.Group(c.Context(), c.by, in.PermissionGroup)
		return store.SetMember(in.PermissionGroup, in.Do == "add_to_group"), err
	}
	return nil, nil // a create
}

// edit makes an update of one service user.
func (in *BulkInput) edit(u *store.ServiceUser) error {
	restricted := len(u.AllowedIPs) > 0
	if in.Set != nil {
		set := in.Set.ServiceUserInput
		if list := set.AllowedIPs.Value; list != nil && len(list) == 0 {
			restricted = false // [], in contrast to null, says that every address is meant
		}
		set.merged = in.Set.Labels
		if err := set.apply(u); err != nil {
			return within(err, "set")
		}
	}
	if in.Remove != nil {
		var prefixes []string
		for _, text := range in.Remove.AllowedIPs {
			p, err := store.ParsePrefix(text)
			if err != nil {
				return invalidField("remove.allowed_ips",
					fmt.Sprintf("%q is neither an address nor a CIDR such as 10.0.0.0/8", text))
			}
			prefixes = append(prefixes, p.String())
		}
		without := func(list, remove []string) []string {
			in := func(s string) bool { return slices.Contains(remove, s) }
			return slices.DeleteFunc(slices.Clone(list), in) // the list may be that of the request
		}
		u.Teams, u.AllowedIPs = without(u.Teams, in.Remove.Teams), without(u.AllowedIPs, prefixes)
		u.Groups = without(u.Groups, in.Remove.PermissionGroups)
	}
	if in.Add != nil {
		// The store keeps one of equal entries.
		u.Teams = slices.Concat(u.Teams, in.Add.Teams)
		u.AllowedIPs = slices.Concat(u.AllowedIPs, in.Add.AllowedIPs)
		u.Groups = slices.Concat(u.Groups, in.Add.PermissionGroups)
	}
	if restricted && len(u.AllowedIPs) == 0 {
		return &store.Error{Kind: store.ErrInvalid, Field: "allowed_ips", Msg: "no address would be " +
			"left, which allows every address; leave the service user out, or set allowed_ips to [] " +
			"if you mean that"}
	}
	return nil
}

// showEntry returns the effect of entry i of a bulk.
func (a *API) showEntry(in BulkInput, before, after ServiceUser, issued *made, i int) BulkEntry {
	e := BulkEntry{ID: after.ID, Name: after.Name, Changed: before.ETag != after.ETag}
	if before.ID != "" {
		e.Before = &before
	}
	if after.DeletedAt == nil {
		e.After = &after
	}
	for _, r := range issued.replaced {
		if r.Old.UserID == after.ID {
			t := showRefreshed(r.New, r.Old, a.store.Now())
			if in.DryRun { // the rotate itself gives other ids and secrets
				t.ID, t.URI, t.Hint, t.Secret, t.Replaced.ReplacedBy = "", "", "", "", ""
			}
			e.Changed, e.Tokens = true, append(e.Tokens, t)
		}
	}
	switch {
	case in.Do != "create":
	case in.DryRun: // the create itself gives other ids
		e.ID, after.ID, after.URI = "", "", ""
	default:
		e.TokenID, e.Token = issued.first[i].ID, issued.first[i].Secret
	}
	return e
}
