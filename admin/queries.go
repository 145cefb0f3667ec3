package admin

// ListQuery chooses a page of a list.
type ListQuery struct {
	// the largest number of entries on the page
	Limit string `query:"limit" integer:"1-100" default:"100"`
	// only entries created before this id; the entry with this id may be deleted meanwhile
	BeforeID string `query:"before_id"`
	// "true" adds the number of entries of all pages to the answer
	TotalCount string `query:"total_count"`
}

// NamedListQuery chooses a page of a list, or the entry with a name.
type NamedListQuery struct {
	ListQuery
	Name string `query:"name"` // only the entry with exactly this name
}

// GroupListQuery chooses permission groups.
type GroupListQuery struct {
	NamedListQuery
	Deleted string `query:"deleted"` // "true" lists tombstones instead of permission groups; only for admins
}

// UserListQuery chooses and sorts service users. The list has the service users that meet all
// parameters.
type UserListQuery struct {
	NamedListQuery
	// only service users that have this text in the name, display name, alias, owner or
	// description, or whose id begins with it, or that have a token with this hint; tokens that
	// have ended count only if no other token has the hint
	Q string `query:"q"`
	// only service users with this role: admin, manager or member
	Role string `query:"role"`
	// only service users of exactly this team
	Team string `query:"team"`
	// only service users with exactly this owner
	Owner string `query:"owner"`
	// only members of the permission group with this id or name: those that it names, those that
	// meet its condition, and all for the default group
	Group string `query:"group"`
	// only service users that have this label: KEY, or KEY=VALUE
	Label string `query:"label"`
	// only service users with this status: active, inactive or expired
	Status string `query:"status"`
	// name, display_name, role, teams, status, created_at, last_active_at, next_token_end or
	// usable, with "-" before it for descending order; default -created_at. next_token_end has
	// service users without an end last in both directions. usable has service users first of
	// which a token ends within 14 days, then others that somebody can log in as, then the
	// rest, each newest first.
	Sort string `query:"sort"`
	// a condition in CEL over obj and now, such as
	// obj.role == "admin" && obj.created_at > timestamp("2026-01-01T00:00:00Z")
	Filter string `query:"filter"`
	// a cursor from next_page_uri; it is valid only with the same sort and filters
	Cursor string `query:"cursor"`
	// "true" lists tombstones instead of service users
	Deleted string `query:"deleted"`
	// only service users by this creator: "local" (all local callers), "local:USER", "human:NAME",
	// or the id or name of a service user; an unknown creator is an error
	CreatedBy string `query:"created_by"`
}

// TokenListQuery chooses tokens of a service user or of all of them.
type TokenListQuery struct {
	ListQuery
	// only tokens in this state: active, pending, retiring, expired or revoked
	State string `query:"state"`
	// only tokens that end within this duration from now, such as 14d, by their own expires_at or
	// by the end of their grace; they have not ended yet
	EndsWithin string `query:"ends_within"`
	// only tokens that were valid for this duration, such as 60d, and not used in it; without
	// state only tokens that have not ended
	UnusedFor string `query:"unused_for"`
}

// DeletedQuery chooses whether tombstones are found.
type DeletedQuery struct {
	Deleted string `query:"deleted"` // "true" also finds the service user if it is deleted
}

// DeleteQuery is the condition of a delete.
type DeleteQuery struct {
	// fails with 409 if the service user was used within this duration, such as 24h
	UnlessUsedWithin string `query:"unless_used_within"`
}

// None is a request or an answer without a body.
type None struct{}
