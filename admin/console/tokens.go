package console

import (
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// issued is the data of the page that shows a secret, once.
type issued struct {
	User  admin.ServiceUser
	Token admin.Token // with its secret
	First bool        // whether the service user was created with it
}

// lifetimes and graces are the presets of forms.
var (
	lifetimes = []string{"7d", "30d", "90d", "365d"}
	graces    = []string{"0s", "1h", "24h", "7d"}
)

// Lifetimes returns the presets for a field: for ttl, those up to the longest lifetime of a token.
func (p *page) Lifetimes(field string) []string {
	_, longest := p.console.api.TokenTTL()
	return slices.DeleteFunc(slices.Clone(lifetimes), func(text string) bool {
		d, _ := admin.ParseDuration(text)
		return field == "ttl" && longest > 0 && d > longest
	})
}

// UsualEnd returns the end of a token that is created without one, or the zero time if it has none.
func (p *page) UsualEnd() (end time.Time) {
	if usual, _ := p.console.api.TokenTTL(); usual > 0 {
		end = p.Now.Add(usual)
	}
	return end
}

// ofToken serves a page or a form about the token in the path.
func ofToken(serve func(*page, admin.ServiceUser, admin.Token) error) handler {
	return ofUser(func(p *page, u admin.ServiceUser) error {
		var t admin.Token
		if err := p.get(u.URI+"/tokens/"+p.PathValue("token"), &t); err != nil {
			return err
		}
		return serve(p, u, t)
	})
}

func newToken(p *page, u admin.ServiceUser) error {
	p.Input.Set("key", store.NewOperationID())
	return p.show("new_token", "New token of "+u.Name, u)
}

func createToken(p *page, u admin.ServiceUser) error {
	out := issued{User: u}
	in := admin.TokenInput{
		Description: admin.Some(p.Input.Get("description")), AllowedIPs: admin.Some(parts(p.Input.Get("allowed_ips"), ",\n")),
	}
	if ttl := p.Input.Get("ttl"); ttl != "" {
		in.TTL = admin.Some(ttl)
	}
	if err := p.postNew(u.URI+"/tokens", in, &out.Token); err != nil {
		return p.form("new_token", "New token of "+u.Name, u, err)
	}
	return p.show("issued", "New token of "+u.Name, out)
}

func askRefresh(p *page, u admin.ServiceUser, t admin.Token) error {
	p.Input = url.Values{"grace": {"24h"}, "key": {store.NewOperationID()}}
	return p.askRefresh(u, t, nil)
}

// askRefresh asks for the grace of a refresh, again after a fault.
func (p *page) askRefresh(u admin.ServiceUser, t admin.Token, fault error) error {
	return p.ask(question{
		What: "Refresh the token …" + t.Hint + " of", Of: u.Name, Button: "Refresh",
		Text: "A new token replaces this one, with the same description, addresses, groups and lifetime. " +
			"Until the old one ends both work, so that the program can change without an outage.",
		Graces: graces,
	}, fault)
}

func refreshToken(p *page, u admin.ServiceUser, t admin.Token) error {
	out := issued{User: u}
	in := admin.RefreshInput{Grace: admin.Some(p.Input.Get("grace"))}
	if err := p.postNew(t.URI+"/refresh", in, &out.Token); err != nil {
		return p.askRefresh(u, t, err)
	}
	return p.show("issued", "New token of "+u.Name, out)
}

func askRevoke(p *page, u admin.ServiceUser, t admin.Token) error {
	return p.ask(question{
		What: "Revoke the token …" + t.Hint + " of", Of: u.Name, Button: "Revoke", Danger: true,
		Facts: p.lastUse(t.LastUsedAt, " from "+t.LastUsedIP),
		Text: "The token is refused from the next request on, for good. " +
			"A program that still uses it needs another one first.",
	}, nil)
}

func revokeToken(p *page, _ admin.ServiceUser, t admin.Token) error {
	return p.change(http.MethodDelete, t.URI, nil, "revoked")
}
