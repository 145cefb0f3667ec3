package console

import (
	"cmp"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
)

// explainPage is a question about a request, and its answer.
type explainPage struct {
	User   admin.ServiceUser
	Answer *admin.Explanation // nil before a question is asked
	Grants []admin.GroupRef   // the groups that can get the smallest grant
}

func explain(p *page) error {
	q, data := p.Input, explainPage{}
	in, field := admin.ExplainInput{DecisionID: strings.TrimSpace(q.Get("decision_id"))}, "decision_id"
	var err error
	if in.DecisionID == "" {
		if q.Get("user")+q.Get("url") == "" {
			return p.show("explain", "Explain", data)
		}
		// A name is never empty: an empty field gets the fault of an unknown name.
		data.User, err = p.client.FindServiceUser(p.Context(), cmp.Or(strings.TrimSpace(q.Get("user")), " "))
		field = "user"
		in = admin.ExplainInput{
			ServiceUserID: data.User.ID, Method: cmp.Or(q.Get("method"), http.MethodGet), URL: strings.TrimSpace(q.Get("url")),
			Site: q.Get("site"), RemoteIP: q.Get("remote_ip"), At: q.Get("at"),
		}
		if name, value, ok := strings.Cut(q.Get("header"), ":"); ok {
			in.Headers = map[string]string{strings.TrimSpace(name): strings.TrimSpace(value)}
		}
	}
	answer := new(admin.Explanation)
	if err == nil {
		err = p.do(http.MethodPost, "/service_users/explain", in, answer)
	}
	if err != nil {
		return p.form("explain", "Explain", data, asFault(err, field))
	}
	data.Answer, data.User.Name = answer, answer.ServiceUserID // a purged service user has no name
	// The page says in words of its own which facts were not asked.
	answer.Detail = strings.Replace(answer.Detail, "; not asked: give "+strings.Join(answer.NotAsked, ", "), "", 1)
	err = p.get("/service_users/"+answer.ServiceUserID+"?deleted=true", &data.User)
	if err != nil && !admin.IsNotFound(err) {
		return err
	}
	if answer.Grant != nil && p.Admin() {
		var has admin.Access
		if err := p.get("/service_users/"+answer.ServiceUserID+"/access", &has); err != nil {
			return err
		}
		for _, g := range has.PermissionGroups { // not the default group: its rules are rights of everybody
			if g.Mode == access.Enforce && (g.Source == "name" || g.Source == "condition") {
				data.Grants = append(data.Grants, g.GroupRef)
			}
		}
	}
	return p.show("explain", "Explain", data)
}

// asFault makes an error about a missing thing one about the field that names it, so that the form
// is shown again.
func asFault(err error, field string) error {
	if admin.IsNotFound(err) {
		return fieldError(field, err.Error())
	}
	return err
}

var notInGroupName = regexp.MustCompile(`[^A-Za-z0-9._:-]`)

// grant allows the request of the page, and shows its answer again. It adds a rule to a group; or, by
// the field join, it makes the service user a member of a group that has the rule, or of a new group.
func grant(p *page) error {
	form, news := p.Input, "joined"
	rule := admin.RuleInput{Text: form.Get("rule")}
	group := "/permission_groups/" + url.PathEscape(cmp.Or(form.Get("join"), form.Get("group")))
	var err error
	switch form.Get("join") {
	case "":
		news, err = "granted", p.do(http.MethodPost, group+"/rules", rule, nil)
	case "new":
		var g admin.Group
		name := "only " + notInGroupName.ReplaceAllString(form.Get("name"), "-")
		in := admin.GroupInput{
			Name: admin.Some(name[:min(len(name), 64)]), Rules: admin.Some([]admin.RuleInput{rule}),
		}
		err = p.do(http.MethodPost, "/permission_groups", in, &g)
		group = g.URI
	}
	if err == nil && news == "joined" {
		err = p.do(http.MethodPut, group+"/members/"+url.PathEscape(form.Get("user")), nil, nil)
	}
	if err != nil {
		return err
	}
	http.Redirect(p.w, p.Request, p.Here("done", news), http.StatusSeeOther)
	return nil
}
