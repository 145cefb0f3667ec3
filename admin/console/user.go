package console

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// userPage is the data of the page of one service user.
type userPage struct {
	admin.ServiceUser
	Tokens   []admin.Token // those that work now or will, newest first
	Ended    []admin.Token
	Access   admin.Access
	Groups   map[string]string // the names of all permission groups, by id
	Refusals admin.RefusalList
	Events   []admin.AuditEvent
}

func showUser(p *page) error { return p.showUser(nil) }

// showUser shows a service user, with the fault of the form for a group; of a deleted one, only the
// tombstone.
func (p *page) showUser(fault error) (err error) {
	data := userPage{}
	if err := p.get(p.uri()+"?deleted=true", &data.ServiceUser); err != nil {
		return err
	}
	if data.DeletedAt != nil {
		return p.form("deleted_user", data.Name, data, fault)
	}
	if err := p.get(p.uri()+"/access", &data.Access); err != nil {
		return err
	}
	if err := p.tokens(&data); err != nil {
		return err
	}
	if data.Groups, err = p.groupNames(); err != nil {
		return err
	}
	if err := p.get(p.uri()+"/refusals", &data.Refusals); err != nil && !admin.IsNotFound(err) {
		return err
	}
	if p.Admin() { // the trail is for admins
		var trail admin.AuditEventList
		if err := p.get("/audit_events?names=true&limit=10&resource_id="+data.ID, &trail); err != nil {
			return err
		}
		data.Events = trail.AuditEvents
	}
	return p.form("user", data.Name, data, asFault(fault, "group"))
}

// tokens reads the tokens of the service user.
func (p *page) tokens(data *userPage) error {
	return admin.All(p.Context(), p.client, p.uri()+"/tokens", func(list admin.TokenList) admin.Page {
		for _, t := range list.Tokens {
			if t.State == store.TokenExpired || t.State == store.TokenRevoked {
				data.Ended = append(data.Ended, t)
			} else {
				data.Tokens = append(data.Tokens, t)
			}
		}
		return list.Page
	})
}

// ofUser serves a form about the service user in the path. It refuses the page of a form that the API
// would refuse to the actor. The API itself refuses the input, and records the attempt.
func ofUser(serve func(*page, admin.ServiceUser) error) handler {
	return func(p *page) error {
		var u admin.ServiceUser
		if err := p.get(p.uri(), &u); err != nil {
			return err
		}
		if !u.Editable && p.Method == http.MethodGet {
			return errNotYours
		}
		return serve(p, u)
	}
}

// question is a page that asks before a change of the service user or permission group in the path.
type question struct {
	What, Of string   // the change and its object, such as "Deactivate" and "billing-sync"
	Text     string   // the effect, in a sentence
	Facts    []string // more that a person wants to know before the answer
	Effects  *[]admin.GroupEffect
	Button   string
	Danger   bool
	Sure     bool     // the answer is the second one
	Graces   []string // the choices for the end of an old token
	Back     string
}

// ask shows a question, after a fault of its answer with the fault.
func (p *page) ask(q question, fault error) error {
	q.Back = p.home()
	return p.form("question", q.What+" "+q.Of, q, fault)
}

func askDeactivate(p *page, u admin.ServiceUser) error {
	return p.ask(question{
		What: "Deactivate", Of: u.Name, Button: "Deactivate", Danger: true, Facts: p.lastUse(u.LastActiveAt, ""),
		Text: "All its tokens are refused from the next request on. They work again after a reactivation.",
	}, nil)
}

func askReactivate(p *page, u admin.ServiceUser) error {
	return p.ask(question{
		What: "Reactivate", Of: u.Name, Button: "Reactivate", Facts: p.lastUse(u.LastActiveAt, ""),
		Text: "Its tokens work again, unless they have ended or were revoked.",
	}, nil)
}

// lastUse says when a service user or a token was used last. from is "", or such as " from 10.0.0.7".
func (p *page) lastUse(at *time.Time, from string) []string {
	used := when(at, p.Now)
	if used.ISO == "" {
		return []string{"It was never used."}
	}
	return []string{"Its last use was " + used.Text + " (" + used.UTC + ")" + from + "."}
}

func deactivateUser(p *page) error {
	return p.change(http.MethodPatch, p.uri(), admin.ServiceUserInput{Active: admin.Some(false)}, "deactivated")
}

func reactivateUser(p *page) error {
	return p.change(http.MethodPatch, p.uri(), admin.ServiceUserInput{Active: admin.Some(true)}, "reactivated")
}

func askDelete(p *page, u admin.ServiceUser) error { return p.ask(deleteQuestion(p, u), nil) }

func deleteQuestion(p *page, u admin.ServiceUser) question {
	return question{
		What: "Delete", Of: u.Name, Button: "Delete", Danger: true, Facts: p.lastUse(u.LastActiveAt, ""),
		Text: "All its tokens are refused from the next request on. An admin can undo the deletion for some time; " +
			"it then comes back inactive.",
	}
}

// deleteUser deletes a service user. If it was used within a day, deleteUser first asks again, with
// the addresses of its requests.
func deleteUser(p *page, u admin.ServiceUser) error {
	uri := u.URI
	if p.Input.Get("sure") == "" {
		uri += "?unless_used_within=24h"
	}
	err := p.change(http.MethodDelete, uri, nil, "deleted")
	var e *admin.Error
	if !errors.As(err, &e) || e.Code != "ERR_IN_USE" {
		return err
	}
	q := deleteQuestion(p, u)
	q.Button, q.Sure = "Delete it anyway", true
	q.Facts = append(q.Facts, "Its requests came from "+e.Details["addresses"]+". "+
		"These programs get 401 after the deletion.")
	e.Msg, e.Details = "This service user is in use.", nil
	return p.ask(q, err)
}

func undeleteUser(p *page) error {
	return p.change(http.MethodPost, p.uri()+"/undelete", admin.None{}, "undeleted")
}

// joinGroup makes the service user a member of a group, by the name or id of the group.
func joinGroup(p *page) error {
	g, err := p.client.FindGroup(p.Context(), strings.TrimSpace(p.Input.Get("group")))
	if err == nil {
		err = p.change(http.MethodPut, g.URI+"/members/"+p.PathValue("id"), nil, "saved")
	}
	if err != nil {
		return p.showUser(err)
	}
	return nil
}

func leaveGroup(p *page) error {
	uri := "/permission_groups/" + p.PathValue("group") + "/members/" + p.PathValue("id")
	return p.change(http.MethodDelete, uri, nil, "saved")
}
