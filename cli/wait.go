package cli

import (
	"errors"
	"fmt"
	"strings"
)

// errNotYet means that the changes are made, but not in force on every node yet.
var errNotYet = errors.New("not in force on every node yet")

// receipt prints on which nodes the changes of a command with --wait are in force. failed is the error of the
// command. The last receipt is true for all earlier changes, too.
func (c *cli) receipt(failed error) error {
	if c.wait == "" || failed != nil && (c.client == nil || c.client.Applied == "") {
		return failed
	}
	applied := c.client.Applied
	counts, rest, _ := strings.Cut(applied, "; late=")
	late, until, _ := strings.Cut(rest, "; until=")
	var n, all int
	_, unknown := fmt.Sscanf(counts, "%d/%d", &n, &all)
	text := fmt.Sprintf("In force on all %d nodes.", all)
	switch {
	case applied == "":
		text = "This command made no change through a Caddy, so there was nothing to wait for."
	case unknown != nil || isLost(failed):
		text = "It is not known on which nodes the changes are in force."
	case n < all:
		text = fmt.Sprintf("In force on %d of %d nodes; %s may answer from the state before until %s.",
			n, all, strings.ReplaceAll(late, ",", ", "), until)
	case all == 1:
		text = "In force on the only node."
	}
	fmt.Fprintln(c.stderr, cell(text))
	if failed == nil && applied != "" && (unknown != nil || n < all) {
		return errNotYet
	}
	return failed
}
