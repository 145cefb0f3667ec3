package store

import (
	"crypto/rand"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/ksuid"

	"github.com/serviceusers/caddy-service-users/access"
)

// The JSON of these records is their form in the audit trail.

// ServiceUser is a machine account. The zero time means "never".
type ServiceUser struct {
	access.Profile
	AllowedIPs   []string  `json:"allowed_ips,omitempty"` // CIDRs; empty is any
	ExpiresAt    time.Time `json:"expires_at,omitzero"`
	CreatedAt    time.Time `json:"created_at"`
	CreatedBy    string    `json:"created_by"` // an Actor's name
	UpdatedAt    time.Time `json:"updated_at"`
	LastActiveAt time.Time `json:"-"`
	DeletedAt    time.Time `json:"deleted_at,omitzero"`
	DeletedBy    string    `json:"deleted_by,omitempty"` // an Actor's name
	WasActive    bool      `json:"was_active,omitempty"` // before the deletion
	Groups       []string  `json:"permission_groups"`    // sorted ids of the groups that name it as a member
	Version      int64     `json:"version"`              // counts changes of these fields, for If-Match
}

// directoryUser returns the service user as conditions and groups see it.
func (u *ServiceUser) directoryUser() *access.User {
	return &access.User{Profile: u.Profile, CreatedAt: unix(u.CreatedAt), Groups: u.Groups}
}

// clone returns a copy that shares nothing with u.
func (u ServiceUser) clone() ServiceUser {
	u.Teams, u.Labels = slices.Clone(u.Teams), maps.Clone(u.Labels)
	u.AllowedIPs, u.Groups = slices.Clone(u.AllowedIPs), slices.Clone(u.Groups)
	return u
}

// copyManagedFields copies the fields that a caller may not choose from before.
func (u *ServiceUser) copyManagedFields(before ServiceUser) {
	u.ID, u.Version, u.CreatedBy = before.ID, before.Version, before.CreatedBy
	u.CreatedAt, u.UpdatedAt = before.CreatedAt, before.UpdatedAt
	u.LastActiveAt, u.DeletedAt = before.LastActiveAt, before.DeletedAt
	u.DeletedBy, u.WasActive = before.DeletedBy, before.WasActive
}

// Token is one token of a service user, without its secret. The call that creates the token shows
// the secret once; the store does not keep it.
type Token struct {
	ID             string           `json:"id"`              // token_…
	UserID         string           `json:"service_user_id"` // service_…
	Description    string           `json:"description,omitempty"`
	Hint           string           `json:"hint"`               // the last four characters of the secret
	Metadata       string           `json:"metadata,omitempty"` // any text, at most 4096 bytes
	AllowedIPs     []string         `json:"allowed_ips,omitempty"`
	Groups         []string         `json:"permission_groups,omitempty"` // only their allows count; empty is all
	ExpiresAt      time.Time        `json:"expires_at,omitzero"`
	NotBefore      time.Time        `json:"not_before,omitzero"`
	CreatedAt      time.Time        `json:"created_at"`
	CreatedBy      string           `json:"created_by"`
	UpdatedAt      time.Time        `json:"updated_at"`
	LastUsedAt     time.Time        `json:"-"`
	LastUsedIP     string           `json:"-"`
	UseCount       int64            `json:"-"`
	UsedFrom       map[string]int64 `json:"-"`                     // last addresses, with the use in Unix seconds
	UsedRules      map[string]int64 `json:"-"`                     // last rules, likewise
	RefreshedAt    time.Time        `json:"refreshed_at,omitzero"` // when a refresh made it retire
	CountAtRefresh int64            `json:"-"`                     // UseCount at that time
	RetiresAt      time.Time        `json:"retires_at,omitzero"`   // the end of the grace that a refresh gave
	RevokedAt      time.Time        `json:"revoked_at,omitzero"`
	ReplacedBy     string           `json:"replaced_by,omitempty"` // the token that a refresh made
	Version        int64            `json:"version"`
}

func (t Token) clone() Token {
	t.AllowedIPs, t.Groups = slices.Clone(t.AllowedIPs), slices.Clone(t.Groups)
	return t
}

func (t *Token) copyManagedFields(before Token) {
	t.ID, t.UserID, t.Hint, t.Version = before.ID, before.UserID, before.Hint, before.Version
	t.CreatedBy, t.CreatedAt, t.UpdatedAt = before.CreatedBy, before.CreatedAt, before.UpdatedAt
	t.RetiresAt, t.RevokedAt, t.ReplacedBy = before.RetiresAt, before.RevokedAt, before.ReplacedBy
	t.LastUsedAt, t.LastUsedIP, t.UseCount = before.LastUsedAt, before.LastUsedIP, before.UseCount
	t.UsedFrom, t.UsedRules = before.UsedFrom, before.UsedRules
	t.RefreshedAt, t.CountAtRefresh = before.RefreshedAt, before.CountAtRefresh
}

// TokenState is the state of a token at an instant.
type TokenState string

// The states of a token.
const (
	TokenActive   TokenState = "active"
	TokenPending  TokenState = "pending"  // not valid before a time that lies ahead
	TokenRetiring TokenState = "retiring" // refreshed; valid until the grace ends
	TokenExpired  TokenState = "expired"
	TokenRevoked  TokenState = "revoked"
)

// TokenStates are all states.
var TokenStates = []TokenState{TokenActive, TokenPending, TokenRetiring, TokenExpired, TokenRevoked}

// State returns the token's state at an instant. A token whose grace has ended counts as revoked.
func (t Token) State(now time.Time) TokenState {
	return stateOf(now.Unix(), unix(t.RevokedAt), unix(t.RetiresAt), unix(t.ExpiresAt), unix(t.NotBefore))
}

// stateOf is [Token.State] in Unix seconds.
func stateOf(now, revoked, retires, expires, notBefore int64) TokenState {
	past := func(at int64) bool { return at != 0 && now >= at }
	switch {
	// A grace is cut to the token's own end. If the two are equal, the token has expired.
	case past(revoked), past(retires) && expires != retires:
		return TokenRevoked
	case past(expires):
		return TokenExpired
	case retires != 0:
		return TokenRetiring
	case now < notBefore:
		return TokenPending
	default:
		return TokenActive
	}
}

// tokenState returns [Token.State] at an instant in Unix seconds, in SQL.
func tokenState(now string) string {
	return strings.ReplaceAll(`CASE
		WHEN revoked_at > 0 AND revoked_at <= NOW
			OR retires_at > 0 AND retires_at <= NOW AND retires_at <> expires_at THEN 'revoked'
		WHEN expires_at > 0 AND expires_at <= NOW THEN 'expired'
		WHEN retires_at > 0 THEN 'retiring'
		WHEN not_before > NOW THEN 'pending'
		ELSE 'active' END`, "NOW", now)
}

// Group is a permission group. Rules are in the order in which people gave them. The order has no
// effect on decisions.
type Group struct {
	ID              string        `json:"id"`   // group_…
	Name            string        `json:"name"` // unique
	Description     string        `json:"description,omitempty"`
	Mode            access.Mode   `json:"mode"`
	MemberCondition string        `json:"member_condition,omitempty"` // CEL over user; "" selects no service user
	Permissions     []string      `json:"permissions,omitempty"`      // keys of the catalogue, sorted
	Rules           []access.Rule `json:"-"`                          // its own, without those of its permissions
	MemberCount     int           `json:"-"`                          // by name and by condition
	CreatedAt       time.Time     `json:"created_at"`
	CreatedBy       string        `json:"created_by"`
	UpdatedAt       time.Time     `json:"updated_at"`
	DeletedAt       time.Time     `json:"deleted_at,omitzero"`
	DeletedBy       string        `json:"deleted_by,omitempty"` // an Actor's name
	Version         int64         `json:"version"`
}

func (g Group) clone() Group {
	g.Rules, g.Permissions = slices.Clone(g.Rules), slices.Clone(g.Permissions)
	for i := range g.Rules {
		g.Rules[i].Methods = slices.Clone(g.Rules[i].Methods)
	}
	return g
}

func (g *Group) copyManagedFields(before Group) {
	g.ID, g.Version, g.MemberCount, g.CreatedBy = before.ID, before.Version, before.MemberCount, before.CreatedBy
	g.CreatedAt, g.UpdatedAt = before.CreatedAt, before.UpdatedAt
	g.DeletedAt, g.DeletedBy = before.DeletedAt, before.DeletedBy
}

// Permission is a named right in the catalogue. It represents rules and can be given to permission
// groups.
type Permission struct {
	Key         string        `json:"key"` // people.address.view
	Name        string        `json:"name"`
	Description string        `json:"description,omitempty"`
	Category    string        `json:"category,omitempty"`
	Rules       []access.Rule `json:"-"`
	CreatedAt   time.Time     `json:"created_at"`
	CreatedBy   string        `json:"created_by"`
	UpdatedAt   time.Time     `json:"updated_at"`
}

// Actor is the caller that makes a change, with the limits of its rights.
type Actor struct {
	Name      string // local, local:USER, human:NAME, service_…
	Operation string // op_…; connects the answer, the log and the audit trail
	Scope     *Scope // the limits of a manager; nil is an admin without limits
	Once      *Once  // the idempotency key of a request that issues tokens; nil is none
}

// Local is the actor for callers of the admin endpoint that only the machine itself can reach.
var Local = Actor{Name: "local"}

// LocalUser returns the actor for a command that opens the store file itself. The operating system
// knows its user.
func LocalUser(user string) Actor { return Actor{Name: Local.Name + ":" + user} }

// SaidLocal returns the actor for a caller of the admin endpoint that gives its user's name. Nobody
// checks that name. field is the place of the name in the request, for an [ErrInvalid].
func SaidLocal(field, user string) (Actor, error) {
	return Actor{Name: Local.Name + ", said to be " + user}, checkText(field, user, maxUser)
}

// Scope limits a manager to service users that have the role member and share a team with it.
// Before and after a change such a service user must not have a right that the manager lacks.
type Scope struct {
	UserID string   // id of the manager if it is a service user; "" for a person
	Teams  []string // of the manager
	Groups []string // ids of the groups that the manager holds
}

// newID returns an id that sorts by its time of creation: a type prefix and a KSUID. The time in a
// KSUID has a resolution of one second, so the payload begins with the nanoseconds. The other 12
// bytes (96 bits) are random.
func newID(prefix string, now time.Time) string {
	var payload [16]byte
	binary.BigEndian.PutUint32(payload[:4], uint32(now.Nanosecond()))
	rand.Read(payload[4:]) // never fails: crypto/rand ends the program instead
	id, err := ksuid.FromParts(now, payload[:])
	if err != nil {
		panic("store: making an id: " + err.Error()) // cannot happen: the payload has the right length
	}
	return prefix + "_" + id.String()
}

// NewOperationID returns a new operation id.
func NewOperationID() string { return newID("op", time.Now()) }

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// lastInstant is the end of the year 9999, in Unix seconds: JSON has no later time.
const lastInstant = 253402300799

// fromUnix converts Unix seconds to a time. An instant that JSON cannot express becomes the nearest
// one that it can, so that its record can be shown and ended.
func fromUnix(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(min(max(seconds, -lastInstant/10), lastInstant), 0).UTC()
}
