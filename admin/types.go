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
	Name             Opt[string]            `json:"name,omitzero"`
	DisplayName      Opt[string]            `json:"display_name,omitzero"`
	Description      Opt[string]            `json:"description,omitzero"`
	Owner            Opt[string]            `json:"owner,omitzero"`
	Alias            Opt[string]            `json:"alias,omitzero"`
	Active           Opt[bool]              `json:"active,omitzero"`
	Role             Opt[access.Role]       `json:"role,omitzero"`
	Teams            Opt[[]string]          `json:"teams,omitzero"`
	Labels           Opt[map[string]string] `json:"labels,omitzero"`
	AllowedIPs       Opt[[]string]          `json:"allowed_ips,omitzero"`
	ExpiresAt        Opt[string]            `json:"expires_at,omitzero"`
	PermissionGroups Opt[[]string]          `json:"permission_groups,omitzero"`
}

// NewServiceUser is the body of a create.
type NewServiceUser struct {
	ServiceUserInput
	CreateToken Opt[bool] `json:"create_token,omitzero"` // default true: issue a first token with it
}

// ServiceUser is a service user as REST shows it.
type ServiceUser struct {
	ID               string            `json:"id"`
	URI              string            `json:"uri"`
	Name             string            `json:"name"`
	DisplayName      string            `json:"display_name"`
	Description      string            `json:"description"`
	Owner            string            `json:"owner"`
	Alias            string            `json:"alias"`
	Active           bool              `json:"active"`
	Role             access.Role       `json:"role"`
	Teams            []string          `json:"teams"`
	Labels           map[string]string `json:"labels"`
	AllowedIPs       []string          `json:"allowed_ips"`
	ExpiresAt        *time.Time        `json:"expires_at"`
	CreatedAt        time.Time         `json:"created_at"`
	CreatedBy        string            `json:"created_by"`
	UpdatedAt        time.Time         `json:"updated_at"`
	LastActiveAt     *time.Time        `json:"last_active_at"`
	PermissionGroups []string          `json:"permission_groups"`
	ETag             string            `json:"etag"`
	TokenID          string            `json:"token_id,omitempty"` // only in the answer to a create
	Token            string            `json:"token,omitempty"`    // the secret; shown this once
}

// ServiceUserList is one page of service users.
type ServiceUserList struct {
	ServiceUsers []ServiceUser `json:"service_users"`
	Page
}

// Page is what every list carries. NextPageURI is null on the last page.
type Page struct {
	URI         string  `json:"uri"`
	NextPageURI *string `json:"next_page_uri"`
}

// TokenInput is the body of a create or update of a token. ttl is a duration
// such as "90d" from now and stands for expires_at.
type TokenInput struct {
	Description      Opt[string]   `json:"description,omitzero"`
	Metadata         Opt[string]   `json:"metadata,omitzero"`
	AllowedIPs       Opt[[]string] `json:"allowed_ips,omitzero"`
	PermissionGroups Opt[[]string] `json:"permission_groups,omitzero"`
	ExpiresAt        Opt[string]   `json:"expires_at,omitzero"`
	TTL              Opt[string]   `json:"ttl,omitzero"`
	NotBefore        Opt[string]   `json:"not_before,omitzero"`
}

// RefreshInput is the body of a refresh.
type RefreshInput struct {
	Grace Opt[string] `json:"grace,omitzero"` // how long the old token goes on; "" or absent: it is revoked at once
}

// Token is a token as REST shows it. Secret is only in the answer that issues it.
type Token struct {
	ID               string           `json:"id"`
	URI              string           `json:"uri"`
	ServiceUserID    string           `json:"service_user_id"`
	Description      string           `json:"description"`
	Metadata         string           `json:"metadata"`
	Hint             string           `json:"hint"`
	State            store.TokenState `json:"state"`
	AllowedIPs       []string         `json:"allowed_ips"`
	PermissionGroups []string         `json:"permission_groups"`
	ExpiresAt        *time.Time       `json:"expires_at"`
	NotBefore        *time.Time       `json:"not_before"`
	RetiresAt        *time.Time       `json:"retires_at"`
	RevokedAt        *time.Time       `json:"revoked_at"`
	CreatedAt        time.Time        `json:"created_at"`
	CreatedBy        string           `json:"created_by"`
	UpdatedAt        time.Time        `json:"updated_at"`
	LastUsedAt       *time.Time       `json:"last_used_at"`
	LastUsedIP       string           `json:"last_used_ip"`
	UseCount         int64            `json:"use_count"`
	ReplacedBy       string           `json:"replaced_by"`
	Replaces         string           `json:"replaces,omitempty"`
	ETag             string           `json:"etag"`
	Secret           string           `json:"token,omitempty"`
}

// TokenList is one page of tokens.
type TokenList struct {
	Tokens []Token `json:"tokens"`
	Page
}

// Rule is a rule as REST shows it: as an object and as its one line of text.
type Rule struct {
	ID          string        `json:"id"`
	URI         string        `json:"uri"`
	Effect      access.Effect `json:"effect"`
	Methods     []string      `json:"methods"`
	Host        string        `json:"host"`
	Path        string        `json:"path"`
	When        string        `json:"when"`
	Name        string        `json:"name"`
	Description string        `json:"description"`
	Text        string        `json:"text"`
	Permission  string        `json:"permission,omitempty"` // the key of the permission that it belongs to; "" is the group's own
	Warnings    []string      `json:"warnings,omitempty"`   // only in the answer to a write: rules that never apply, or add nothing
}

// RuleInput is a rule in a request: its text, or an object without id and text.
type RuleInput struct {
	Text        string        `json:"-"` // when it was given as text
	Effect      access.Effect `json:"effect"`
	Methods     []string      `json:"methods"`
	Host        string        `json:"host,omitempty"`
	Path        string        `json:"path"`
	When        string        `json:"when,omitempty"`
	Name        string        `json:"name,omitempty"`
	Description string        `json:"description,omitempty"`
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
	Rules []Rule `json:"rules"`
	Page
}

// GroupInput is the body of a create or update of a permission group.
type GroupInput struct {
	Name            Opt[string]      `json:"name,omitzero"`
	Description     Opt[string]      `json:"description,omitzero"`
	Mode            Opt[access.Mode] `json:"mode,omitzero"`
	MemberCondition Opt[string]      `json:"member_condition,omitzero"` // CEL over user; "" is nobody
	Permissions     Opt[[]string]    `json:"permissions,omitzero"`      // keys of the catalogue
	Rules           Opt[[]RuleInput] `json:"rules,omitzero"`
}

// Group is a permission group as REST shows it.
type Group struct {
	ID              string      `json:"id"`
	URI             string      `json:"uri"`
	Name            string      `json:"name"`
	Description     string      `json:"description"`
	Mode            access.Mode `json:"mode"`
	MemberCondition string      `json:"member_condition"`
	Permissions     []string    `json:"permissions"`  // keys of the catalogue
	Rules           []Rule      `json:"rules"`        // its own, without those of the permissions
	MemberCount     int         `json:"member_count"` // by name and by condition
	CreatedAt       time.Time   `json:"created_at"`
	CreatedBy       string      `json:"created_by"`
	UpdatedAt       time.Time   `json:"updated_at"`
	ETag            string      `json:"etag"`
	Warnings        []string    `json:"warnings,omitempty"` // only in the answer to a write: rules that never apply, or add nothing
}

// GroupList is one page of permission groups.
type GroupList struct {
	PermissionGroups []Group `json:"permission_groups"`
	Page
}

// Member is a service user in a permission group.
type Member struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Source string `json:"source"` // "name": it was named; "condition": it meets the condition
}

// MemberList is one page of members.
type MemberList struct {
	Members []Member `json:"members"`
	Page
}

// ListQuery chooses a page of a list.
type ListQuery struct {
	Limit    string `query:"limit"`     // 1-100, default 100
	BeforeID string `query:"before_id"` // only what was made before this id, whether or not it still exists
}

// NamedListQuery can also look for one by its name.
type NamedListQuery struct {
	ListQuery
	Name string `query:"name"` // exactly this name
}

// None is a request or answer without a body.
type None struct{}
