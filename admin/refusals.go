package admin

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/access"
)

// RefusalList is the list of the latest refused requests of a service user. Those with a decision id are
// of all nodes, as far as the store has them; those without one are of this node.
type RefusalList struct {
	// newest first
	Refusals []Refusal `json:"refusals"`
	// the list contains every refusal of this node after this time: the node started then, or
	// has no memory of earlier ones
	Since time.Time `json:"since"`
	Page
}

// Refusal is a request that was refused. A request without a right secret has only named the service
// user as its login: strangers can send one too.
type Refusal struct {
	At         time.Time `json:"at"`             // the time of the request
	Status     int       `json:"status"`         // the status of the answer, such as 403
	Reason     string    `json:"reason"`         // the reason as one word, as in logs and metrics
	Detail     string    `json:"detail"`         // the reason in words
	DecisionID string    `json:"decision_id"`    // the id for explain; "" unless the rules refused the request
	TokenID    string    `json:"token_id"`       // the token of the request; "" unless its secret was right
	RemoteIP   string    `json:"remote_ip"`      // the address of the client; "" if it is unknown
	Method     string    `json:"method"`         // the method of the request
	Host       string    `json:"host"`           // the host of the request; "" if it was not valid
	Path       string    `json:"path"`           // the beginning of the path of the request, without secrets
	Node       string    `json:"node,omitempty"` // the name of the node, if it is not in the memory of this one
}

// listRefusals lists the latest refused requests of a service user: those of all nodes that have a
// decision id, and those of this node whose credentials named the service user in vain. The answer is
// 404 if this node keeps no refusals, and the store has none.
func (a *API) listRefusals(c *call, _ None) (RefusalList, error) {
	id := c.PathValue("id")
	// Memory comes first: a refusal that leaves it meanwhile is in the store.
	kept, since, ok := a.recall.Refusals(id)
	stored, err := a.store.Refusals(c.Context(), c.by, id)
	if err != nil {
		return RefusalList{}, err
	}
	if !ok {
		since = a.store.Now()
	}
	if !ok && len(stored) == 0 {
		return RefusalList{}, NewError(http.StatusNotFound, "ERR_NOT_FOUND",
			"this node keeps no refusals: its option decisions is off, or it is not a running Caddy; "+
				"search the log for "+id)
	}
	for _, r := range stored {
		if _, ok := a.recall.Decision(r.ID); !ok {
			kept = append(kept, r)
		}
	}
	slices.SortStableFunc(kept, func(a, b access.Recalled) int { return b.At.Compare(a.At) })
	list := RefusalList{Refusals: []Refusal{}, Since: since.UTC().Truncate(time.Second), Page: lastPage(c)}
	for _, r := range kept {
		reason := r.Reason.String()
		if r.Reason == access.Granted { // the request was refused before it was authenticated
			reason = "ambiguous"
		}
		list.Refusals = append(list.Refusals, Refusal{
			r.At.UTC().Truncate(time.Second), r.Status, reason, cmp.Or(r.Why, reasonText[r.Reason]),
			r.ID, r.TokenID, access.AddressText(r.Action.Address),
			r.Action.Method, r.Action.Host, r.PathText(), r.Node,
		})
	}
	return list, nil
}
