// Package console serves the web pages on which people manage service users.
//
// The pages are made on the server from html/template, and work without script. Each page reads and
// changes through [admin.API.Client] on behalf of the actor of its request. So the console can do
// nothing that the REST API refuses to the same actor.
//
// Start with [New]; [Console.Serve] answers one request. [Console.routes] lists all pages.
package console

import (
	"context"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// Root is the path below which all pages are.
const Root = "/console/"

// Console serves the pages over an API.
type Console struct {
	api *admin.API
	now func() time.Time
	log *zap.Logger
	mux *http.ServeMux
}

// New returns the console over an API. now is the clock of the store. log may be nil.
func New(api *admin.API, now func() time.Time, log *zap.Logger) *Console {
	if log == nil {
		log = zap.NewNop()
	}
	c := &Console{api: api, now: now, log: log, mux: http.NewServeMux()}
	for _, r := range routes() {
		if r.show != nil {
			c.mux.Handle("GET "+Root+r.path, r.show)
		}
		if r.save != nil {
			c.mux.Handle("POST "+Root+r.path, r.save)
		}
	}
	return c
}

// routes lists every page and every form. A form is answered at the path of the page that has it.
func routes() []route {
	return []route{
		{"service_users", listUsers, nil},
		{"service_users.csv", exportUsers, nil},
		{"service_users/bulk", nil, bulk},
		{"service_users/new", newUser, createUser},
		{"service_users/{id}", showUser, nil},
		{"service_users/{id}/edit", ofUser(editUser), ofUser(changeUser)},
		{"service_users/{id}/deactivate", ofUser(askDeactivate), deactivateUser},
		{"service_users/{id}/reactivate", ofUser(askReactivate), reactivateUser},
		{"service_users/{id}/delete", ofUser(askDelete), ofUser(deleteUser)},
		{"service_users/{id}/undelete", nil, undeleteUser},
		{"service_users/{id}/refresh", refreshUser, nil},
		{"service_users/{id}/groups", nil, joinGroup},
		{"service_users/{id}/groups/{group}/leave", nil, leaveGroup},
		{"service_users/{id}/tokens/new", ofUser(newToken), ofUser(createToken)},
		{"service_users/{id}/tokens/{token}/refresh", ofToken(askRefresh), ofToken(refreshToken)},
		{"service_users/{id}/tokens/{token}/revoke", ofToken(askRevoke), ofToken(revokeToken)},

		{"permission_groups", listGroups, nil},
		{"permission_groups/new", forAdmins(newGroup), createGroup},
		{"permission_groups/{id}", showGroup, nil},
		{"permission_groups/{id}/edit", forAdmins(fieldsEditor.show), fieldsEditor.save},
		{"permission_groups/{id}/permissions", forAdmins(ticksEditor.show), ticksEditor.save},
		{"permission_groups/{id}/endpoints", forAdmins(gridEditor.show), gridEditor.save},
		{"permission_groups/{id}/rules", nil, addRule},
		{"permission_groups/{id}/members", nil, addMember},
		{"permission_groups/{id}/members/{user}/remove", nil, removeMember},
		{"permission_groups/{id}/delete", forAdmins(askDeleteGroup), deleteGroup},
		{"permission_groups/{id}/undelete", nil, undeleteGroup},

		{"explain", explain, grant},
		{"audit", forAdmins(showAudit), nil},
		{"health", showHealth, nil},
		{"health/{id}/forget", nil, forgetNode},
	}
}

// route is one page: show answers a GET, and save the form.
type route struct {
	path       string
	show, save handler
}

type handler func(*page) error

// forAdmins marks the page of a form that the API refuses to managers. Templates show a link to it only
// if page.Admin is set.
func forAdmins(serve handler) handler {
	return func(p *page) error {
		if !p.Admin() {
			return errForAdmins
		}
		return serve(p)
	}
}

// ServeHTTP answers a request that carries its page in the context.
func (serve handler) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	p := r.Context().Value(pageKey{}).(*page)
	p.Request = r // with the ids of the path
	err := p.parse()
	if err == nil {
		err = serve(p)
	}
	if err != nil {
		p.fail(err)
	}
}

// Takes reports whether a request is for the console: for one of its pages, or for the root of the
// host and by a browser.
func Takes(r *http.Request) bool {
	if r.URL.Path == "/" {
		return strings.Contains(r.Header.Get("Accept"), "text/html")
	}
	return r.URL.Path+"/" == Root || strings.HasPrefix(r.URL.Path, Root)
}

// Serve answers a request on behalf of an actor.
func (c *Console) Serve(w http.ResponseWriter, r *http.Request, by store.Actor) {
	protect(w.Header())
	p := &page{w: w, console: c, by: by, client: c.api.Client(by), Now: c.now()}
	p.Request = r.WithContext(context.WithValue(r.Context(), pageKey{}, p))
	_, pattern := c.mux.Handler(p.Request)
	switch {
	case r.URL.Path == "/" || r.URL.Path+"/" == Root || r.URL.Path == Root:
		http.Redirect(w, r, Root+"service_users", http.StatusSeeOther)
	case pattern == "":
		p.fail(errNoPage)
	default:
		c.mux.ServeHTTP(w, p.Request)
	}
}

// ErrorPage returns a function that answers a request with a page about an error. It serves callers
// that may not use the console. The page keeps the input of a small form.
func ErrorPage(r *http.Request) admin.ErrorWriter {
	return func(w http.ResponseWriter, log *zap.Logger, operation string, err error) {
		protect(w.Header())
		p := &page{Request: r, w: w, Now: time.Now()}
		p.report(log, operation, err)
	}
}

// protect sets the headers that keep an answer from being framed, from being loaded by pages of other
// origins, from loading foreign content and from being kept by a cache.
func protect(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "+
		"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}
