package cli

import (
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/serviceusers/caddy-service-users/admin"
)

// nodeCommands adds the commands for the nodes of a store.
func (c *cli) nodeCommands(root *cobra.Command) {
	c.command(root, "list", "Lists the processes that decide requests by the store, with their lag", "node list",
		func([]string) error {
			var list admin.NodeList
			if err := c.do(http.MethodGet, "/nodes", nil, &list); err != nil {
				return err
			}
			rows := table{{"ID", "NAME", "VERSION", "ADDRESS", "STATE", "REVISION", "LAG", "STARTED", "LAST SEEN", "UNTIL", "SOURCE"}}
			for _, n := range list.Nodes {
				lag := "" // not known
				if n.Lag != nil {
					lag = strconv.FormatInt(*n.Lag, 10)
				}
				rows.add(n.ID, n.Name, n.Version, n.Address, n.State, n.Revision, lag,
					when(&n.StartedAt), when(&n.LastSeenAt), when(n.Until), n.Source)
			}
			return c.print(list, rows, list.Incomplete)
		})
	c.command(root, "forget NODE", "Removes a node from the list that ended without removing itself, when its time is over",
		"node forget node_3MkAv3UOF8kAkZlQS5PWjmvCSuK", func(args []string) error {
			if err := checkID("node", args[0]); err != nil {
				return err
			}
			return c.change(http.MethodDelete, "/nodes/"+args[0], "forgot %s", args[0])
		})
}
