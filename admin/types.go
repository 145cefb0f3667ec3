package admin

import (
	"encoding/json"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// Opt is a field of a request that may be absent. An absent field leaves the stored value as it is.
// A field that is null sets the empty value; a boolean has no empty value, so null is an error.
type Opt[T any] struct {
	Set   bool
	Value T
}

// Some returns a field that is present.
func Some[T any](v T) Opt[T] { return Opt[T]{true, v} }

// IsZero reports whether the field is absent. The JSON option "omitzero" then leaves it out.
func (o Opt[T]) IsZero() bool { return !o.Set }

// MarshalJSON writes the value.
func (o Opt[T]) MarshalJSON() ([]byte, error) { return json.Marshal(o.Value) }

// UnmarshalJSONFrom reads the value as strictly as the document around it.
func (o *Opt[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	o.Set = true
	// JSON v2 would read null as false, which for "active" means: refuse every token.
	if _, boolean := any(o.Value).(bool); boolean && dec.PeekKind() == 'n' {
		return errNullBoolean
	}
	return jsonv2.UnmarshalDecode(dec, &o.Value)
}

// to copies the value to place when the field is present.
func (o Opt[T]) to(place *T) {
	if o.Set {
		*place = o.Value
	}
}

// ServiceUserInput is the body that creates or changes a service user. Times are in RFC 3339; an
// empty time means never.
type ServiceUserInput struct {
	// unique name of 1 to 255 characters; a create requires it
	Name Opt[string] `json:"name,omitzero"`
	// a longer name to show to people
	DisplayName Opt[string] `json:"display_name,omitzero"`
	// free text for people
	Description Opt[string] `json:"description,omitzero"`
	// a contact for questions about the service user
	Owner Opt[string] `json:"owner,omitzero"`
	// a second login id, unique: 1 to 64 characters of A-Z a-z 0-9 . _ @ -
	Alias Opt[string] `json:"alias,omitzero"`
	// default true; false refuses every token of the service user
	Active Opt[bool] `json:"active,omitzero"`
	// the rights of the service user on this admin API; default member
	Role Opt[access.Role] `json:"role,omitzero"`
	// names of teams; a manager can only see and change service users that share a team with it
	Teams Opt[[]string] `json:"teams,omitzero"`
	// texts by key, for conditions and for people
	Labels Opt[map[string]string] `json:"labels,omitzero"`
	// addresses and CIDRs that requests may come from; [] allows every address
	AllowedIPs Opt[[]string] `json:"allowed_ips,omitzero"`
	// the time from which every token of the service user is refused; "" means never
	ExpiresAt Opt[string] `json:"expires_at,omitzero"`
	// ids of the permission groups that name the service user as a member
	PermissionGroups Opt[[]string] `json:"permission_groups,omitzero"`

	merged Opt[map[string]*string] // the labels of a merge patch
}

// ServiceUserPatch is a JSON merge patch (RFC 7396) of a service user. Labels that it does not
// contain stay. Lists are replaced as a whole.
type ServiceUserPatch struct {
	ServiceUserInput
	// texts by key; null as a text removes that label, null in place of the object removes all
	Labels Opt[map[string]*string] `json:"labels,omitzero"`
}

// asMergePatch returns a value to decode the merge patch into, and a function that copies the
// decoded patch into in.
func (in *ServiceUserInput) asMergePatch() (patch any, take func()) {
	p := new(ServiceUserPatch)
	return p, func() { *in, in.merged = p.ServiceUserInput, p.Labels }
}

// NewServiceUser is the body that creates a service user.
type NewServiceUser struct {
	ServiceUserInput
	// whether to issue a first token as well; default true, but false at /bot_users and for
	// requests with the header Ngrok-Version
	CreateToken Opt[bool] `json:"create_token,omitzero"`
	// the lifetime of the first token, such as "90d"
	TokenTTL Opt[string] `json:"token_ttl,omitzero"`
}

// ServiceUser is a service user in an answer.
type ServiceUser struct {
	// service_…; an id is never used again
	ID string `json:"id"`
	// the path of the service user in this API
	URI string `json:"uri"`
	// unique
	Name string `json:"name"`
	// a longer name to show to people
	DisplayName string `json:"display_name"`
	// free text for people
	Description string `json:"description"`
	// a contact for questions about the service user
	Owner string `json:"owner"`
	// a second login id; "" means none
	Alias string `json:"alias"`
	// whether its tokens are accepted
	Active bool `json:"active"`
	// the rights of the service user on this admin API
	Role access.Role `json:"role"`
	// names of teams; a manager can only see and change service users that share a team with it
	Teams []string `json:"teams"`
	// texts by key, for conditions and for people
	Labels map[string]string `json:"labels"`
	// addresses and CIDRs that requests may come from; [] allows every address
	AllowedIPs []string `json:"allowed_ips"`
	// the time from which every token of the service user is refused; null means never
	ExpiresAt *time.Time `json:"expires_at"`
	// the time of creation
	CreatedAt time.Time `json:"created_at"`
	// the creator, as in actor of the audit trail
	CreatedBy string `json:"created_by"`
	// the time of the last change
	UpdatedAt time.Time `json:"updated_at"`
	// the time when a token of the service user was last used; null means never
	LastActiveAt *time.Time `json:"last_active_at"`
	Deletion
	// the deletion that an undelete ended; only in the answer to the undelete
	Undeleted *Deletion `json:"undeleted,omitempty"`
	// ids of the permission groups that name the service user as a member
	PermissionGroups []string `json:"permission_groups"`
	// the reason why nobody can log in as the service user now; null if somebody can
	Obstacle *string `json:"obstacle"`
	// the number of tokens that can be used, now or later: neither revoked nor expired
	TokenCount int `json:"token_count"`
	// the earliest end of one of these tokens: its expires_at, the end of its grace, or the
	// expires_at of the service user; null means never
	NextTokenEnd *time.Time `json:"next_token_end"`
	// whether the caller may change the service user
	Editable bool `json:"editable"`
	// the version, for If-Match
	ETag string `json:"etag"`
	// the id of the first token; only in the answer that creates it
	TokenID string `json:"token_id,omitempty"`
	// the secret of the first token; shown only once, in the answer that creates it
	Token string `json:"token,omitempty"`
}

// Deletion is the deletion of a service user or permission group. Only tombstones have its fields.
type Deletion struct {
	// the time of the deletion
	DeletedAt *time.Time `json:"deleted_at,omitempty"`
	// the actor of the deletion, as in the audit trail
	DeletedBy string `json:"deleted_by,omitempty"`
	// of a service user: whether its tokens were accepted before the deletion
	WasActive *bool `json:"was_active,omitempty"`
}

// ServiceUserList is one page of service users.
type ServiceUserList struct {
	ServiceUsers []ServiceUser `json:"service_users"` // newest first, or in the order of sort
	Page
	// the number of service users that only the parameter status leaves out; only with it and
	// total_count, and without filter
	HiddenCount *int `json:"hidden_count,omitempty"`
}

// BotUserList is one page of service users, with the field name of the ngrok API.
type BotUserList struct {
	BotUsers []ServiceUser `json:"bot_users"` // newest first, or in the order of sort
	Page
}

// Page has the fields that every list contains. NextPageURI is null on the last page.
type Page struct {
	URI         string  `json:"uri"`           // the path of the list
	NextPageURI *string `json:"next_page_uri"` // the path of the next page; null on the last page
	// the number of entries of all pages; only with the parameter total_count
	TotalCount *int `json:"total_count,omitempty"`
}

// TokenInput is the body that creates or changes a token. The end of the token is either a time,
// expires_at, or a duration from now, ttl.
type TokenInput struct {
	// free text for people
	Description Opt[string] `json:"description,omitzero"`
	// free text for programs, at most 4096 bytes
	Metadata Opt[string] `json:"metadata,omitzero"`
	// addresses and CIDRs that the token may be used from; [] allows every address
	AllowedIPs Opt[[]string] `json:"allowed_ips,omitzero"`
	// ids of permission groups; the token allows only what these groups of its service user
	// allow; [] does not narrow the token
	PermissionGroups Opt[[]string] `json:"permission_groups,omitzero"`
	// the time when the token expires; "" means never
	ExpiresAt Opt[string] `json:"expires_at,omitzero"`
	// the time from now until the token expires, such as "90d"; it replaces expires_at
	TTL Opt[string] `json:"ttl,omitzero"`
	// the time from which the token is valid; "" means at once
	NotBefore Opt[string] `json:"not_before,omitzero"`
}

// RefreshInput is the body that refreshes a token.
type RefreshInput struct {
	// how long the old token stays valid, such as "24h"; it is revoked at once if grace is ""
	// or absent
	Grace Opt[string] `json:"grace,omitzero"`
	// the time from now until the new token expires, such as "90d"; default: the lifetime that
	// the old token had
	TTL Opt[string] `json:"ttl,omitzero"`
}

// Token is a token in an answer. Only the answer that issues a token contains its secret, in the
// field token.
type Token struct {
	// token_…; an id is never used again
	ID string `json:"id"`
	// the path of the token in this API
	URI string `json:"uri"`
	// the id of the service user that the token belongs to
	ServiceUserID string `json:"service_user_id"`
	// the name of the service user; only in the list of the tokens of all service users
	ServiceUserName string `json:"service_user_name,omitempty"`
	// free text for people
	Description string `json:"description"`
	// free text for programs
	Metadata string `json:"metadata"`
	// the last four characters of the secret
	Hint string `json:"hint"`
	// the state of the token at the time of the answer
	State store.TokenState `json:"state"`
	// addresses and CIDRs that the token may be used from; [] allows every address
	AllowedIPs []string `json:"allowed_ips"`
	// ids of the permission groups that the token is narrowed to; [] does not narrow the token
	PermissionGroups []string `json:"permission_groups"`
	// the time when the token expires; null means never
	ExpiresAt *time.Time `json:"expires_at"`
	// the time from which the token is valid; null means that it was valid at once
	NotBefore *time.Time `json:"not_before"`
	// the end of the grace after a refresh; null if the token was not refreshed
	RetiresAt *time.Time `json:"retires_at"`
	// the time of revocation; null if the token was not revoked
	RevokedAt *time.Time `json:"revoked_at"`
	// the time of issue
	CreatedAt time.Time `json:"created_at"`
	// the creator, as in actor of the audit trail
	CreatedBy string `json:"created_by"`
	// the time of the last change
	UpdatedAt time.Time `json:"updated_at"`
	// the time of the last use; null means never
	LastUsedAt *time.Time `json:"last_used_at"`
	// the address of the last use
	LastUsedIP string `json:"last_used_ip"`
	// the number of uses
	UseCount int64 `json:"use_count"`
	// the latest addresses that used the token, latest first
	UsedFrom []SeenAddress `json:"used_from"`
	// the id of the successor; "" means none
	ReplacedBy string `json:"replaced_by"`
	// the use of the token since its refresh; null if it was not refreshed
	Drain *Drain `json:"drain"`
	// the id of the old token; only in the answer to a refresh
	Replaces string `json:"replaces,omitempty"`
	// the old token as it is now; only in the answer to a refresh
	Replaced *Token `json:"replaced,omitempty"`
	// the version, for If-Match
	ETag string `json:"etag"`
	// the secret; shown only once, in the answer that issues the token
	Secret string `json:"token,omitempty"`
}

// SeenAddress is an address that used a token.
type SeenAddress struct {
	Address    string    `json:"address"`      // an IP address
	LastUsedAt time.Time `json:"last_used_at"` // the time of the last use from this address
}

// Drain shows how much a refreshed token is still used. Its counts and times begin with the
// refresh.
type Drain struct {
	// the time of the refresh
	Since time.Time `json:"since"`
	// the number of uses since the refresh
	UseCount int64 `json:"use_count"`
	// the time of the last use since the refresh; null means never
	LastUsedAt *time.Time `json:"last_used_at"`
	// the addresses that used the token since the refresh, latest first
	UsedFrom []SeenAddress `json:"used_from"`
	// the end of the old token at the latest: the end of the grace, or the time of revocation
	EndsAt time.Time `json:"ends_at"`
}

// TokenList is one page of tokens.
type TokenList struct {
	Tokens []Token `json:"tokens"` // newest first
	Page
}

// Rule is a rule in an answer, as an object and as its line of text.
type Rule struct {
	// rule_…; an id is never used again
	ID string `json:"id"`
	// the path of the rule in this API, or that of the permission that the rule comes from
	URI string `json:"uri"`
	// allow or deny; a deny wins over every allow
	Effect access.Effect `json:"effect"`
	// "*" alone, or method names in upper case; GET includes HEAD
	Methods []string `json:"methods"`
	// the host of the request; "" matches every host
	Host string `json:"host"`
	// a pattern for the path: {name} matches one segment, {name...} matches the rest
	Path string `json:"path"`
	// a condition in CEL; "" means always
	When string `json:"when"`
	// for people
	Name string `json:"name"`
	// for people
	Description string `json:"description"`
	// the whole rule as one line, such as "allow GET /v1/people/{id}"
	Text string `json:"text"`
	// the key of the permission that the rule comes from; absent if the group has the rule
	// itself
	Permission string `json:"permission,omitempty"`
	// rules that never apply, add nothing or are probably mistakes; only in the answer to a write
	Warnings []string `json:"warnings,omitempty"`
}

// RuleInput is a rule in a request: its line of text, or an object without id and text.
type RuleInput struct {
	// the whole rule as one line, such as "allow GET /v1/people/{id}"
	Text string `json:"-"`
	// allow or deny; a deny wins over every allow
	Effect access.Effect `json:"effect"`
	// "*" alone, or method names in upper case; GET includes HEAD
	Methods []string `json:"methods"`
	// the host of the request; "" matches every host
	Host string `json:"host,omitempty"`
	// a pattern for the path: {name} matches one segment, {name...} matches the rest
	Path string `json:"path"`
	// a condition in CEL; "" means always
	When string `json:"when,omitempty"`
	// for people
	Name string `json:"name,omitempty"`
	// for people
	Description string `json:"description,omitempty"`
}

// MarshalJSON writes the text of the rule if it is set, and the object otherwise.
func (r RuleInput) MarshalJSON() ([]byte, error) {
	if r.Text != "" {
		return json.Marshal(r.Text)
	}
	type object RuleInput // without this method, which would call itself for ever
	return json.Marshal(object(r))
}

// UnmarshalJSONFrom reads a rule in either form.
func (r *RuleInput) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	if dec.PeekKind() == '"' {
		*r = RuleInput{}
		return jsonv2.UnmarshalDecode(dec, &r.Text)
	}
	type object RuleInput // without this method, which would call itself for ever
	return jsonv2.UnmarshalDecode(dec, (*object)(r))
}

// RuleList is the list of all rules of a permission group.
type RuleList struct {
	Rules []Rule `json:"rules"` // in the order of the group
	Page
}

// GroupInput is the body that creates or changes a permission group.
type GroupInput struct {
	// unique name of 1 to 64 ASCII letters, digits, spaces and ". _ : -"; a create requires it
	Name Opt[string] `json:"name,omitzero"`
	// free text for people
	Description Opt[string] `json:"description,omitzero"`
	// default enforce; a group in mode observe neither grants nor refuses requests
	Mode Opt[access.Mode] `json:"mode,omitzero"`
	// a condition in CEL over user; service users that meet it are members as well; ""
	// adds none
	MemberCondition Opt[string] `json:"member_condition,omitzero"`
	// keys of permissions of the catalogue
	Permissions Opt[[]string] `json:"permissions,omitzero"`
	// rules as lines of text or as objects; they replace all rules that the group had
	Rules Opt[[]RuleInput] `json:"rules,omitzero"`
}

// Group is a permission group in an answer.
type Group struct {
	// group_…; an id is never used again
	ID string `json:"id"`
	// the path of the group in this API
	URI string `json:"uri"`
	// unique
	Name string `json:"name"`
	// free text for people
	Description string `json:"description"`
	// a group in mode observe neither grants nor refuses requests
	Mode access.Mode `json:"mode"`
	// a condition in CEL over user; service users that meet it are members as well; "" adds
	// none
	MemberCondition string `json:"member_condition"`
	// keys of permissions of the catalogue
	Permissions []string `json:"permissions"`
	// the rules of the group itself, without those of its permissions
	Rules []Rule `json:"rules"`
	// the number of members by name and by condition
	MemberCount int `json:"member_count"`
	// the time of creation
	CreatedAt time.Time `json:"created_at"`
	// the creator, as in actor of the audit trail
	CreatedBy string `json:"created_by"`
	// the time of the last change
	UpdatedAt time.Time `json:"updated_at"`
	Deletion
	// the version, for If-Match
	ETag string `json:"etag"`
	// rules that never apply, add nothing or are probably mistakes; only in the answer to a write
	Warnings []string `json:"warnings,omitempty"`
	// the deletion that an undelete ended; only in the answer to the undelete
	Undeleted *Deletion `json:"undeleted,omitempty"`
	// the members and permissions that an undelete did not restore, each with the reason
	NotRestored []string `json:"not_restored,omitempty"`
}

// GroupList is one page of permission groups.
type GroupList struct {
	PermissionGroups []Group `json:"permission_groups"` // newest first
	Page
}

// Member is a member of a permission group.
type Member struct {
	ID     string `json:"id"`     // of the service user
	Name   string `json:"name"`   // of the service user
	Source string `json:"source"` // "name": the group names it; "condition": it meets the condition
}

// MemberList is one page of members.
type MemberList struct {
	Members []Member `json:"members"` // newest service user first
	Page
}
