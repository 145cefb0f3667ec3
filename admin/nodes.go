package admin

import (
	"cmp"
	"errors"
	"time"

	"github.com/serviceusers/caddy-service-users/store"
)

// NodeList is the list of all nodes.
type NodeList struct {
	Nodes []Node `json:"nodes"` // by id
	// why the list lacks the nodes other than the answering one; "" if it has all nodes
	Incomplete string `json:"incomplete"`
	URI        string `json:"uri"` // the path of this answer
}

// Node is a process that decides requests by the store.
type Node struct {
	// node_…
	ID string `json:"id"`
	// the name of its machine
	Name string `json:"name"`
	// the version of the program
	Version string `json:"version"`
	// the address by which the database knows it; "" with SQLite
	Address string `json:"address"`
	// the time of its start
	StartedAt time.Time `json:"started_at"`
	// the time of its last report, by the clock of the database
	LastSeenAt time.Time `json:"last_seen_at"`
	// the revision that it reported
	Revision int64 `json:"revision"`
	// the number of later changes; null in an incomplete list
	Lag *int64 `json:"lag"`
	// the seconds after its last report for which it decides requests; 0 is unlimited
	MaxStaleness int64 `json:"max_staleness"`
	// live: it has the last change. late: it lags behind or does not report, and may still decide
	// requests. gone: it decides no request any more
	State string `json:"state"`
	// the time until which it may decide requests without a further report; null with SQLite
	Until *time.Time `json:"until"`
	// whether it gives this answer
	Self bool `json:"self"`
	// where it has its directory from: database; memory: it read the directory before the database went away; copy:
	// it started without the database, from its last good copy. "" for other nodes, which alone know it
	Source string `json:"source"`
}

// listNodes lists the processes that decide requests by the store. With SQLite that is this process
// alone. While the database does not answer, the list has the answering node alone, and says so in incomplete.
// This operation requires the rights of an admin.
func (a *API) listNodes(c *call, _ None) (NodeList, error) {
	nodes, err := a.store.Nodes(c.Context(), c.by)
	list := NodeList{Nodes: make([]Node, len(nodes)), URI: c.URL.Path}
	var refused *store.Error
	if err != nil && !errors.As(err, &refused) {
		reason, _ := store.FaultReason(err)
		err, list.Incomplete = nil, "the other nodes are not known, since the store cannot be read: "+
			cmp.Or(reason, "the log has the reason")
	}
	for i, n := range nodes {
		list.Nodes[i] = showNode(n)
		if list.Incomplete != "" {
			list.Nodes[i].Lag = nil
		}
	}
	return list, err
}

func showNode(n store.Node) Node {
	state := "gone"
	switch {
	case n.Late:
		state = "late"
	case n.Live:
		state = "live"
	}
	return Node{
		ID: n.ID, Name: n.Name, Version: n.Version, Address: n.Address, StartedAt: n.StartedAt.UTC(),
		LastSeenAt: n.SeenAt.UTC(), Revision: n.Revision, Lag: &n.Lag, MaxStaleness: int64(n.MaxStaleness / time.Second),
		State: state, Until: OrNull(n.Until), Self: n.Self, Source: n.Source,
	}
}

// forgetNode removes a node that ended without a word. The store does not change: it gets no revision
// and no audit record. This operation requires the rights of an admin. The answer is 409 if the node may
// still decide requests.
func (a *API) forgetNode(c *call, _ None) (None, error) {
	return None{}, a.store.ForgetNode(c.Context(), c.by, c.PathValue("id"))
}
