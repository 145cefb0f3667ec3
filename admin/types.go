package admin

import (
	"encoding/json"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// Opt is a field of a request that may be absent: then it stays as it is. null
// means the empty value, but for a boolean, which has none.
type Opt[T any] struct {
	Set   bool
	Value T
}

// Some returns a field that is present.
func Some[T any](v T) Opt[T] { return Opt[T]{true, v} }

// IsZero reports whether the field is absent; "omitzero" leaves it out then.
func (o Opt[T]) IsZero() bool { return !o.Set }

// MarshalJSON writes the value.
func (o Opt[T]) MarshalJSON() ([]byte, error) { return json.Marshal(o.Value) }

// UnmarshalJSONFrom reads the value as strictly as the document around it.
func (o *Opt[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	o.Set = true
	if _, boolean := any(o.Value).(bool); boolean && dec.PeekKind() == 'n' {
		return errNullBoolean
	}
	return jsonv2.UnmarshalDecode(dec, &o.Value)
}

// to stores the value in place when the field is present.
func (o Opt[T]) to(place *T) {
	if o.Set {
		*place = o.Value
	}
}

// ServiceUserInput is the body of a create or update of a service user. Times
// are RFC 3339; "" is never.
type ServiceUserInput struct {
	Name             Opt[string]            `json:"name,omitzero"`              // unique, 1 to 255 characters; a create needs it
	DisplayName      Opt[string]            `json:"display_name,omitzero"`      // what people call it
	Description      Opt[string]            `json:"description,omitzero"`       // for people
	Owner            Opt[string]            `json:"owner,omitzero"`             // whom to ask about it
	Alias            Opt[string]            `json:"alias,omitzero"`             // a second login id, unique: 1 to 64 of A-Z a-z 0-9 . _ @ -
	Active           Opt[bool]              `json:"active,omitzero"`            // false refuses every token of it; default true
	Role             Opt[access.Role]       `json:"role,omitzero"`              // what it may do on this API; default member
	Teams            Opt[[]string]          `json:"teams,omitzero"`             // what managers reach it by
	Labels           Opt[map[string]string] `json:"labels,omitzero"`            // free texts by key, for conditions and for people
	AllowedIPs       Opt[[]string]          `json:"allowed_ips,omitzero"`       // addresses and CIDRs it may come from; [] is any
	ExpiresAt        Opt[string]            `json:"expires_at,omitzero"`        // when every token of it is refused; "" is never
	PermissionGroups Opt[[]string]          `json:"permission_groups,omitzero"` // ids of the groups that it is a member of by name

	merged Opt[map[string]*string] // the labels of a merge patch
}

// ServiceUserPatch is a JSON merge patch (RFC 7396) of a service user. Labels that are
// absent stay. Lists are replaced.
type ServiceUserPatch struct {
	ServiceUserInput
	Labels Opt[map[string]*string] `json:"labels,omitzero"` // texts by key; null removes the label, or all of them in the place of the object
}

// asMergePatch has the body read as a merge patch into patch, and taken over by take.
func (in *ServiceUserInput) asMergePatch() (patch any, take func()) {
	p := new(ServiceUserPatch)
	return p, func() { *in, in.merged = p.ServiceUserInput, p.Labels }
}

// NewServiceUser is the body of a create.
type NewServiceUser struct {
	ServiceUserInput
	CreateToken Opt[bool]   `json:"create_token,omitzero"` // issue a first token with it; default true, but false at /bot_users and with the header Ngrok-Version
	TokenTTL    Opt[string] `json:"token_ttl,omitzero"`    // how long this first token lives, such as "90d"
}

// ServiceUser is a service user as REST shows it.
type ServiceUser struct {
	ID               string            `json:"id"`                   // service_…, never used again
	URI              string            `json:"uri"`                  // its path in this API
	Name             string            `json:"name"`                 // unique
	DisplayName      string            `json:"display_name"`         // what people call it
	Description      string            `json:"description"`          // for people
	Owner            string            `json:"owner"`                // whom to ask about it
	Alias            string            `json:"alias"`                // a second login id; "" is none
	Active           bool              `json:"active"`               // whether its tokens are accepted
	Role             access.Role       `json:"role"`                 // what it may do on this API
	Teams            []string          `json:"teams"`                // what managers reach it by
	Labels           map[string]string `json:"labels"`               // free texts by key
	AllowedIPs       []string          `json:"allowed_ips"`          // addresses and CIDRs it may come from; [] is any
	ExpiresAt        *time.Time        `json:"expires_at"`           // when every token of it is refused; null is never
	CreatedAt        time.Time         `json:"created_at"`           // when it was made
	CreatedBy        string            `json:"created_by"`           // "local", "human:NAME" or the id of a service user
	UpdatedAt        time.Time         `json:"updated_at"`           // when it was last changed
	LastActiveAt     *time.Time        `json:"last_active_at"`       // when a token of it was last used; null is never
	DeletedAt        *time.Time        `json:"deleted_at,omitempty"` // of a tombstone
	PermissionGroups []string          `json:"permission_groups"`    // ids of the groups that it is a member of by name
	ETag             string            `json:"etag"`                 // its version, for If-Match
	TokenID          string            `json:"token_id,omitempty"`   // only in the answer to a create
	Token            string            `json:"token,omitempty"`      // the secret; shown this once
}

// ServiceUserList is one page of service users.
type ServiceUserList struct {
	ServiceUsers []ServiceUser `json:"service_users"` // the newest first
	Page
}

// BotUserList is one page of service users, under their old name.
type BotUserList struct {
	BotUsers []ServiceUser `json:"bot_users"` // in the order asked for
	Page
}

// Page is what every list carries. NextPageURI is null on the last page.
type Page struct {
	URI         string  `json:"uri"`           // the path of the list
	NextPageURI *string `json:"next_page_uri"` // the path of the next page; null on the last one
}

// TokenInput is the body of a create or update of a token. ttl is a duration
// such as "90d" from now and stands for expires_at.
type TokenInput struct {
	Description      Opt[string]   `json:"description,omitzero"`       // for people
	Metadata         Opt[string]   `json:"metadata,omitzero"`          // free text of up to 4096 bytes, for programs
	AllowedIPs       Opt[[]string] `json:"allowed_ips,omitzero"`       // addresses and CIDRs it may be used from; [] is any
	PermissionGroups Opt[[]string] `json:"permission_groups,omitzero"` // ids of groups: the token allows no more than these do; [] does not narrow it
	ExpiresAt        Opt[string]   `json:"expires_at,omitzero"`        // when it ends; "" is never
	TTL              Opt[string]   `json:"ttl,omitzero"`               // how long from now until it ends, in place of expires_at
	NotBefore        Opt[string]   `json:"not_before,omitzero"`        // when it begins to be valid; "" is at once
}

// RefreshInput is the body of a refresh.
type RefreshInput struct {
	Grace Opt[string] `json:"grace,omitzero"` // how long the old token goes on; "" or absent: it is revoked at once
	Quiet Opt[string] `json:"quiet,omitzero"` // end it earlier, when nobody has used it for so long; "" or absent: never
}

// Token is a token as REST shows it. Its secret, token, is only in the answer that
// issues it.
type Token struct {
	ID               string           `json:"id"`                 // token_…, never used again
	URI              string           `json:"uri"`                // its path in this API
	ServiceUserID    string           `json:"service_user_id"`    // whose it is
	Description      string           `json:"description"`        // for people
	Metadata         string           `json:"metadata"`           // free text, for programs
	Hint             string           `json:"hint"`               // the last four characters of the secret
	State            store.TokenState `json:"state"`              // what it is good for at this moment
	AllowedIPs       []string         `json:"allowed_ips"`        // addresses and CIDRs it may be used from; [] is any
	PermissionGroups []string         `json:"permission_groups"`  // ids of the groups that it is narrowed to; [] is all of its user
	ExpiresAt        *time.Time       `json:"expires_at"`         // when it ends; null is never
	NotBefore        *time.Time       `json:"not_before"`         // when it begins to be valid; null is at once
	RetiresAt        *time.Time       `json:"retires_at"`         // when the grace of a refreshed one ends; null: it was not refreshed
	RevokedAt        *time.Time       `json:"revoked_at"`         // when it was revoked; null: it was not
	CreatedAt        time.Time        `json:"created_at"`         // when it was issued
	CreatedBy        string           `json:"created_by"`         // "local", "human:NAME" or the id of a service user
	UpdatedAt        time.Time        `json:"updated_at"`         // when it was last changed
	LastUsedAt       *time.Time       `json:"last_used_at"`       // when it was last used; null is never
	LastUsedIP       string           `json:"last_used_ip"`       // the address that it was last used from
	UseCount         int64            `json:"use_count"`          // how often it was used
	UsedFrom         []SeenAddress    `json:"used_from"`          // the last addresses, the latest first
	ReplacedBy       string           `json:"replaced_by"`        // the id of its successor; "" is none
	Drain            *Drain           `json:"drain"`              // of a token that was refreshed: who still uses it
	Replaces         string           `json:"replaces,omitempty"` // only in the answer to a refresh
	Replaced         *Token           `json:"replaced,omitempty"` // the same, as it is now
	ETag             string           `json:"etag"`               // its version, for If-Match
	Secret           string           `json:"token,omitempty"`    // the secret; shown this once
}

// SeenAddress is an address that a token was used from.
type SeenAddress struct {
	Address    string    `json:"address"`      // an IP address
	LastUsedAt time.Time `json:"last_used_at"` // when it was seen last
}

// Drain is the meter of a token that was refreshed: how much it is used since.
type Drain struct {
	Since      time.Time     `json:"since"`        // the refresh
	UseCount   int64         `json:"use_count"`    // since then
	LastUsedAt *time.Time    `json:"last_used_at"` // since then
	UsedFrom   []SeenAddress `json:"used_from"`    // since then
	EndsAt     time.Time     `json:"ends_at"`      // of the grace; never later
	QuietAt    *time.Time    `json:"quiet_at"`     // ends then already, unless it is used before; null is not before ends_at
}

// TokenList is one page of tokens.
type TokenList struct {
	Tokens []Token `json:"tokens"` // the newest first
	Page
}

// Rule is a rule as REST shows it: as an object and as its one line of text.
type Rule struct {
	ID          string        `json:"id"`                   // rule_…, never used again
	URI         string        `json:"uri"`                  // its path in this API; that of the permission, when it belongs to one
	Effect      access.Effect `json:"effect"`               // a deny wins over any allow
	Methods     []string      `json:"methods"`              // "*" alone, or names in upper case; GET covers HEAD
	Host        string        `json:"host"`                 // "" is any
	Path        string        `json:"path"`                 // a pattern, in which {name} is one segment and {name...} the rest
	When        string        `json:"when"`                 // a condition in CEL; "" is always
	Name        string        `json:"name"`                 // for people
	Description string        `json:"description"`          // for people
	Text        string        `json:"text"`                 // the whole rule in one line
	Permission  string        `json:"permission,omitempty"` // the key of the permission that it belongs to; "" is the group's own
	Warnings    []string      `json:"warnings,omitempty"`   // only in the answer to a write: rules that never apply, or add nothing
}

// RuleInput is a rule in a request: its text, or an object without id and text.
type RuleInput struct {
	Text        string        `json:"-"`                     // in one line, such as "allow GET /v1/people/{id}"
	Effect      access.Effect `json:"effect"`                // a deny wins over any allow
	Methods     []string      `json:"methods"`               // "*" alone, or names in upper case; GET covers HEAD
	Host        string        `json:"host,omitempty"`        // "" is any
	Path        string        `json:"path"`                  // a pattern, in which {name} is one segment and {name...} the rest
	When        string        `json:"when,omitempty"`        // a condition in CEL; "" is always
	Name        string        `json:"name,omitempty"`        // for people
	Description string        `json:"description,omitempty"` // for people
}

// MarshalJSON writes the text when there is one.
func (r RuleInput) MarshalJSON() ([]byte, error) {
	if r.Text != "" {
		return json.Marshal(r.Text)
	}
	type object RuleInput
	return json.Marshal(object(r))
}

// UnmarshalJSONFrom reads either form.
func (r *RuleInput) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	if dec.PeekKind() == '"' {
		*r = RuleInput{}
		return jsonv2.UnmarshalDecode(dec, &r.Text)
	}
	type object RuleInput
	return jsonv2.UnmarshalDecode(dec, (*object)(r))
}

// RuleList is every rule of a permission group.
type RuleList struct {
	Rules []Rule `json:"rules"` // in the order of the group
	Page
}

// GroupInput is the body of a create or update of a permission group.
type GroupInput struct {
	Name            Opt[string]      `json:"name,omitzero"`             // unique: 1 to 64 letters, digits and " . _ : -"; a create needs it
	Description     Opt[string]      `json:"description,omitzero"`      // for people
	Mode            Opt[access.Mode] `json:"mode,omitzero"`             // default enforce; observe neither grants nor refuses
	MemberCondition Opt[string]      `json:"member_condition,omitzero"` // CEL over user; "" is nobody
	Permissions     Opt[[]string]    `json:"permissions,omitzero"`      // keys of the catalogue
	Rules           Opt[[]RuleInput] `json:"rules,omitzero"`            // in their one-line form or as objects; they take the place of those there are
}

// Group is a permission group as REST shows it.
type Group struct {
	ID              string      `json:"id"`                 // group_…, never used again
	URI             string      `json:"uri"`                // its path in this API
	Name            string      `json:"name"`               // unique
	Description     string      `json:"description"`        // for people
	Mode            access.Mode `json:"mode"`               // observe neither grants nor refuses
	MemberCondition string      `json:"member_condition"`   // a condition in CEL over user, for members in addition to the named ones; "" is nobody
	Permissions     []string    `json:"permissions"`        // keys of the catalogue
	Rules           []Rule      `json:"rules"`              // its own, without those of the permissions
	MemberCount     int         `json:"member_count"`       // by name and by condition
	CreatedAt       time.Time   `json:"created_at"`         // when it was made
	CreatedBy       string      `json:"created_by"`         // "local", "human:NAME" or the id of a service user
	UpdatedAt       time.Time   `json:"updated_at"`         // when it was last changed
	ETag            string      `json:"etag"`               // its version, for If-Match
	Warnings        []string    `json:"warnings,omitempty"` // only in the answer to a write: rules that never apply, or add nothing
}

// GroupList is one page of permission groups.
type GroupList struct {
	PermissionGroups []Group `json:"permission_groups"` // the newest first
	Page
}

// Member is a service user in a permission group.
type Member struct {
	ID     string `json:"id"`     // of the service user
	Name   string `json:"name"`   // of the service user
	Source string `json:"source"` // "name": it was named; "condition": it meets the condition
}

// MemberList is one page of members.
type MemberList struct {
	Members []Member `json:"members"` // the newest service user first
	Page
}

// ListQuery chooses a page of a list.
type ListQuery struct {
	Limit    string `query:"limit" integer:"1-100" default:"100"` // how many at most
	BeforeID string `query:"before_id"`                           // only what was made before this id, whether or not it still exists
}

// NamedListQuery can also look for one by its name.
type NamedListQuery struct {
	ListQuery
	Name string `query:"name"` // exactly this name
}

// UserListQuery chooses and sorts service users. Together, its parts narrow.
type UserListQuery struct {
	NamedListQuery
	Q         string `query:"q"`          // stands in the name, display name, alias, owner, description or id
	Role      string `query:"role"`       // admin, manager, member
	Team      string `query:"team"`       // exactly this team
	Status    string `query:"status"`     // active, inactive, expired
	Sort      string `query:"sort"`       // name, role, created_at, last_active_at; "-" before it is descending; default -created_at
	Filter    string `query:"filter"`     // CEL over obj, such as obj.role == "admin" && obj.created_at > timestamp("2026-01-01T00:00:00Z")
	Cursor    string `query:"cursor"`     // from next_page_uri, of the same sort and filters
	Deleted   string `query:"deleted"`    // "true": tombstones instead
	CreatedBy string `query:"created_by"` // who made it: "local", "human:NAME", or the id or name of a service user
}

// DeletedQuery asks for a tombstone as well.
type DeletedQuery struct {
	Deleted string `query:"deleted"` // "true": even when it is deleted
}

// DeleteQuery is the condition of a delete.
type DeleteQuery struct {
	UnlessUsedWithin string `query:"unless_used_within"` // 409 when it was used within this duration, such as 24h
}

// None is a request or answer without a body.
type None struct{}
