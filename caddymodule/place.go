package caddymodule

// place holds the facts about its surroundings that a Handler relies on. The walk
// over the routes sets it. The zero value belongs to a handler that the walk did
// not meet, inside of an unknown module: it proves nothing.
type place struct {
	// Every upstream behind the handler receives the current target alone. Else
	// the original target of a rewritten request must be allowed as well.
	currentOnly bool

	// The extensions, in lower case, at which FastCGI transports and file matchers
	// split a path into script and PATH_INFO. PATH_INFO must be allowed as well.
	splits []string

	// A cache before the handler needs to see Authorization again once the answer
	// is there.
	cached bool
}

// where returns the place of the handler. The first request of a configuration
// can come before [App.Start] has walked the routes; then it walks them itself.
func (h *Handler) where() place {
	if h.routes != nil {
		h.routes()
	}
	return h.place
}
