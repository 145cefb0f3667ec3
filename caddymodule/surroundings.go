package caddymodule

// surroundings are the facts about the routes around a Handler on which the Handler relies. The
// walk over the routes sets them. The zero value belongs to a handler that the walk did not meet,
// inside of an unknown module: it claims nothing.
type surroundings struct {
	// Every upstream behind the handler receives the current target alone. If false, the
	// original target of a rewritten request must be allowed as well.
	currentOnly bool

	// The extensions, in lower case, at which FastCGI transports and file matchers
	// split a path into script and PATH_INFO. PATH_INFO must be allowed as well.
	splits []string

	// A cache before the handler has to see Authorization again after the answer.
	cached bool
}

// surroundings returns the surroundings of the handler. The first request of a configuration can
// come before [App.Start] has walked the routes. This call then walks them.
func (h *Handler) surroundings() surroundings {
	if h.routes != nil {
		h.routes()
	}
	return h.around
}
