package console

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/serviceusers/caddy-service-users/admin"
)

// healthPage is the state of this node, and the tokens that will end.
type healthPage struct {
	admin.Readiness
	Fault   string              // the reason for which this node decides no request
	Charts  []chart             // nil if this node counts no requests, or the actor may not see them
	Minutes int                 // the number of minutes in the charts
	Ending  map[int]int         // the number of tokens that end within some days
	Next    []admin.ServiceUser // the first ones of which a token ends within 30 days
	Nodes   admin.NodeList      // for admins
}

func showHealth(p *page) error {
	data := healthPage{Ending: make(map[int]int)}
	var e *admin.Error
	if err := p.get("/service_users/readyz", &data.Readiness); errors.As(err, &e) && e.Code == "ERR_NOT_READY" {
		data.Fault, data.Store = e.Msg, e.Details["store"]
	} else if err != nil {
		return err
	}
	if p.Admin() { // the traffic and the nodes are for admins
		if err := p.get("/nodes", &data.Nodes); err != nil {
			return err
		}
		var traffic admin.TrafficList
		if err := p.get("/service_users/traffic", &traffic); err == nil {
			data.Charts, data.Minutes = charts(traffic.Minutes, p.Now), len(traffic.Minutes)
		} else if !admin.IsNotFound(err) {
			return err
		}
	}
	// A store that cannot be read has no list of tokens. The page is needed then most.
	if err := p.ending(&data); err != nil && data.Store == "ok" {
		return err
	}
	return p.show("health", "Health", data)
}

// forgetNode removes a node that is gone.
func forgetNode(p *page) error {
	if err := p.do(http.MethodDelete, "/nodes/"+p.PathValue("id"), nil, nil); err != nil {
		return err
	}
	return p.done(Root+"health", "forgotten")
}

// ending reads the tokens that end within 30 days.
func (p *page) ending(data *healthPage) error {
	for _, days := range [...]int{7, 30} {
		var list admin.TokenList
		uri := fmt.Sprintf("/service_users/tokens?limit=1&total_count=true&ends_within=%dd", days)
		if err := p.get(uri, &list); err != nil {
			return err
		}
		data.Ending[days] = *list.TotalCount
	}
	var list admin.ServiceUserList
	if err := p.get("/service_users?sort=next_token_end&limit=50", &list); err != nil {
		return err
	}
	end := slices.IndexFunc(list.ServiceUsers, func(u admin.ServiceUser) bool {
		return u.NextTokenEnd == nil || u.NextTokenEnd.After(p.Now.AddDate(0, 0, 30))
	})
	if data.Next = list.ServiceUsers; end >= 0 {
		data.Next = data.Next[:end]
	}
	return nil
}
