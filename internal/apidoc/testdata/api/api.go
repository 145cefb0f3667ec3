// Package api has routes of every kind that there may be.
package api

// API is an API.
type API struct{}

func (a *API) routes() []route {
	return []route{
		// Odd: routes that the real API does not have.
		handle(a, "GET", "/odd/{id}/things", 200, a.listThings),
		handle(a, "GET", "/things", 200, a.listThings),
		handle(a, "POST", "/odd/{id}/undelete", 200, a.undelete),
		handle(a, "POST", "/odd", 201, a.createOdd),
	}
}

// Odd is a type with unusual fields.
type Odd struct {
	Base
	// any value
	Any any `json:"any"`
	// a raw value
	Raw json.RawMessage `json:"raw,omitempty"`
	// the next one
	Next *Odd `json:"next,omitempty"`
	// hides the field of Base
	Name  other.Color `json:"name"`
	Nodes map[string][]*Odd
}

// Base is embedded.
type Base struct {
	Name string `json:"base"` // hidden
	Size int    `json:"size"` // the size
}

// Error is the body of a failure.
type Error struct {
	Color other.Color `json:"color"` // the color
}

// listThings lists things. Each has a size.
func (a *API) listThings(c *call, _ None) ([]Odd, error) { return nil, nil }

// undelete restores it. The answer is 409 if it is there.
func (a *API) undelete(*call, None) (Odd, error) { return Odd{}, nil }

// createOdd creates a list.
func (a *API) createOdd(c *call, in []Odd) ([]Odd, error) { return in, nil }
