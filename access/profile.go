package access

// Profile has the fields of a service user that the directory and the store share. Its JSON is part
// of the audit trail.
type Profile struct {
	ID          string            `json:"id"`                     // service_…
	Name        string            `json:"name"`                   // unique, 1-255 characters
	DisplayName string            `json:"display_name,omitempty"` // for people
	Description string            `json:"description,omitempty"`  // for people
	Owner       string            `json:"owner,omitempty"`        // the contact for questions
	Alias       string            `json:"alias,omitempty"`        // a second login id, unique; "" for none
	Active      bool              `json:"active"`                 // false: its tokens are refused
	Role        Role              `json:"role"`                   // on the admin API
	Teams       []string          `json:"teams"`                  // sorted
	Labels      map[string]string `json:"labels,omitempty"`       // free, for conditions and filters
}

// profileText is a text of a service user that conditions can read as a field of the variable user.
type profileText struct {
	name string                 // in conditions
	size uint64                 // the bound that the cost of a condition relies on
	of   func(*Profile) *string // the text in a profile
}

// loginTexts are in every row of the directory, in front, because requests need them.
var loginTexts = []profileText{
	{"id", 64, func(p *Profile) *string { return &p.ID }},
	{"name", 255, func(p *Profile) *string { return &p.Name }},
}

// otherTexts are in the rows of the users for which they are not empty.
var otherTexts = []profileText{
	{"display_name", 255, func(p *Profile) *string { return &p.DisplayName }},
	{"alias", 64, func(p *Profile) *string { return &p.Alias }},
	{"owner", 255, func(p *Profile) *string { return &p.Owner }},
}
