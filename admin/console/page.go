package console

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
)

// page is one request for a page, on its way to the answer. Templates read its exported fields.
type page struct {
	*http.Request
	w       http.ResponseWriter
	console *Console
	by      store.Actor
	client  *admin.Client

	Now    time.Time
	Input  url.Values // of the form, or the query of the address
	Title  string
	Fields map[string]string // the fault of each wrong field of a form
	Fault  string            // the fault of the whole form
	Kept   url.Values        // the input of the form that an error page is the answer to
	Data   any
}

type pageKey struct{}

// uri returns the address at the API of the service user or permission group in the path.
func (p *page) uri() string { return "/" + p.Place() + "/" + p.PathValue("id") }

// home returns the address of the page of that service user or permission group.
func (p *page) home() string { return path.Clean(Root) + p.uri() }

// Place returns the entry of the navigation that the page belongs to.
func (p *page) Place() string {
	place, _, _ := strings.Cut(strings.TrimPrefix(p.URL.Path, Root), "/")
	return place
}

// Actor returns the name of the person, for the head of the page.
func (p *page) Actor() string {
	_, name, _ := strings.Cut(p.by.Name, ":")
	return name
}

// Admin reports whether the actor may do everything; a manager may not.
func (p *page) Admin() bool { return p.by.Scope == nil && p.by.Name != "" }

// News returns the sentence about a change that was just made.
func (p *page) News() string { return news[p.URL.Query().Get("done")] }

// In reports whether a field of the input has a value.
func (p *page) In(field, value string) bool { return slices.Contains(p.Input[field], value) }

// PathValue returns a part of the path as one segment of an address, whatever characters it has.
func (p *page) PathValue(name string) string { return url.PathEscape(p.Request.PathValue(name)) }

// get reads one resource of the API, or one page of a list.
func (p *page) get(uri string, out any) error { return p.do(http.MethodGet, uri, nil, out) }

// query returns those of some fields of the input that are not empty.
func (p *page) query(names ...string) url.Values {
	query := url.Values{}
	for _, name := range names {
		if value := p.Input.Get(name); value != "" {
			query.Set(name, value)
		}
	}
	return query
}

// do calls the API, in this process, on behalf of the actor.
func (p *page) do(method, uri string, in, out any) error {
	return p.client.Do(p.Context(), method, uri, in, out)
}

// postNew issues a token once: a form that is sent again gets an error, not another token.
func (p *page) postNew(uri string, in, out any) error {
	return p.client.PostNew(p.Context(), p.Input.Get("key"), uri, in, out)
}

// change makes a change by the API, and goes back to the page of the service user or permission group
// in the path. news is a key of the table news.
func (p *page) change(method, uri string, in any, news string) error {
	if err := p.do(method, uri, in, nil); err != nil {
		return err
	}
	return p.done(p.home(), news)
}

// show answers with a page. name is the name of its template.
func (p *page) show(name, title string, data any) error {
	p.Title, p.Data = title, data
	return p.render(http.StatusOK, name)
}

// These constants limit the size of a form in bytes: maxStranger is for a caller that may not use the
// console. The page for such a caller keeps no more than maxFields fields, since each costs some time.
const (
	maxForm     = 1 << 20
	maxStranger = 32 << 10
	maxFields   = 500
)

// parse reads the input. It refuses an address with a secret, which its links would repeat.
func (p *page) parse() error {
	p.Input = p.URL.Query()
	if access.FindLeak(p.URL.RequestURI()) == access.SecretLeak {
		return admin.NewError(http.StatusBadRequest, "ERR_INVALID_VALUE", "the address contains a token, so logs and "+
			"the history have it now. Refresh the token; its last four characters are enough to search for it")
	}
	p.Body = http.MaxBytesReader(p.w, p.Body, maxForm)
	if p.Method != http.MethodPost {
		return nil
	}
	if p.ParseForm() != nil {
		return admin.NewError(http.StatusBadRequest, "ERR_BAD_FORM",
			"the form could not be read: it is longer than 1 MiB, or was cut; go back, and send it again")
	}
	p.Input = p.PostForm
	return nil
}

// form answers with the page of a form. After a fault of the input, the page shows the fault and the
// input, so that nothing is lost. form returns an error that a person cannot mend in the form.
func (p *page) form(name, title string, data any, err error) error {
	if err == nil {
		return p.show(name, title, data)
	}
	var e *admin.Error
	if !errors.As(err, &e) || e.Status == http.StatusNotFound {
		return err
	}
	if e.Code == "ERR_ANSWERED" { // a reload of the page that showed a secret sends its form again
		return p.show("answered", "Sent before", strings.Split(e.Details["service_user_id"], ","))
	}
	if e.Code == "ERR_KEY_USED" { // the person went back and changed a form that had done its work
		p.Input.Set("key", store.NewOperationID())
		e.Msg = "This form was sent before, with other input. To create one more, send it again."
	}
	p.Title, p.Data, p.Fault, p.Fields = title, data, e.Msg, e.Details
	delete(p.Fields, "operation_id")               // the rest are the faults of fields
	if e.Status == http.StatusPreconditionFailed { // the page shows both versions
		p.Fault = "Somebody has changed this since you opened the form. Nothing is saved yet."
	}
	return p.render(e.Status, name)
}

func (p *page) render(status int, name string) error {
	var text bytes.Buffer
	if err := templates()[name].ExecuteTemplate(&text, "layout", p); err != nil {
		return fmt.Errorf("making the page %s: %w", name, err)
	}
	p.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	p.w.WriteHeader(status)
	_, _ = p.w.Write(text.Bytes()) // the browser may be gone
	return nil
}

// done answers a form after its change: the browser goes to a page, which reports the change. key is
// a key of the table news.
func (p *page) done(address, key string) error {
	http.Redirect(p.w, p.Request, address+"?done="+key, http.StatusSeeOther)
	return nil
}

// news are the sentences about changes that a page can show. An address has only the key, so that no
// foreign link can put its words into a page.
var news = map[string]string{
	"saved":           "Saved.",
	"deactivated":     "Deactivated: its tokens are refused from now on.",
	"reactivated":     "Reactivated: its tokens work again.",
	"deleted":         "Deleted.",
	"undeleted":       "Undeleted. It is inactive until you reactivate it.",
	"restored":        "Undeleted: its rules apply again.",
	"restored_partly": "Undeleted: its rules apply again. Members or permissions that were deleted meanwhile did not come back.",
	"granted":         "The rule was added.",
	"joined":          "It is now a member of the group.",
	"revoked":         "Revoked: the token is refused from now on.",
	"forgotten":       "The node is removed from the list.",
}

var (
	errNoPage    = admin.NewError(http.StatusNotFound, "ERR_NOT_FOUND", "the console has no such page")
	errForAdmins = admin.NewError(http.StatusForbidden, "ERR_NGROK_4111", "only an admin may do this")
	errNotYours  = admin.NewError(http.StatusForbidden, "ERR_NGROK_4111",
		"you may see this service user, and only an admin may change it")
)

// fail answers with a page about an error.
func (p *page) fail(err error) { p.report(p.console.log, store.NewOperationID(), err) }

// report is fail under an operation id.
func (p *page) report(log *zap.Logger, operation string, err error) {
	e := admin.Report(log, operation, err)
	p.Title, p.Data = e.Title, e
	if e.Status != http.StatusTooManyRequests && e.Code != "ERR_BAD_FORM" {
		p.Kept = p.kept()
	}
	if err := p.render(e.Status, "error"); err != nil {
		log.Error("the console cannot make an error page", zap.Error(err))
	}
}

var origin = http.NewCrossOriginProtection()

// kept returns the input of a form, so that the error page can send it again. It returns nil unless
// the browser says that a page of the same origin has sent the form: a person could otherwise confirm
// the input of a foreign page. It also returns nil if a field may contain a secret.
func (p *page) kept() url.Values {
	if p.Method != http.MethodPost || p.Header.Get("Origin") == "" || origin.Check(p.Request) != nil {
		return nil
	}
	if p.console == nil { // a stranger may send too much, or too slowly
		err := http.NewResponseController(p.w).SetReadDeadline(time.Now().Add(time.Second))
		if err != nil || p.ContentLength < 0 || p.ContentLength > maxStranger {
			return nil
		}
	}
	err := p.parse()
	form := p.Input.Encode()
	if err != nil || p.console == nil && strings.Count(form, "=") > maxFields ||
		access.FindLeak(p.URL.RequestURI()+form) == access.SecretLeak {
		return nil
	}
	return p.Input
}

// templates contains one set of templates for each page: its own file, the layout and the parts that
// pages share. They are read at the first page: a command of the CLI, which shows none, starts sooner.
var templates = sync.OnceValue(func() map[string]*template.Template {
	shared := template.Must(template.New("").Funcs(functions).ParseFS(files,
		"templates/layout.html", "templates/parts.html", "templates/snippets.html"))
	names, _ := fs.Glob(files, "templates/*.html")
	all := make(map[string]*template.Template)
	for _, name := range names {
		set := template.Must(shared.Clone())
		all[strings.TrimSuffix(path.Base(name), ".html")] = template.Must(set.ParseFS(files, name))
	}
	return all
})

//go:embed templates assets
var files embed.FS

// Here returns the address of the page with the parameters of its query, of which the given ones are
// changed; "" removes one. Parameters that belong to one answer are left out, such as the place in a
// list.
func (p *page) Here(changes ...string) string {
	query := p.URL.Query()
	for _, key := range [...]string{"before_id", "cursor", "done", "verify"} {
		query.Del(key)
	}
	for i := 0; i < len(changes); i += 2 {
		query.Set(changes[i], changes[i+1])
	}
	maps.DeleteFunc(query, func(_ string, values []string) bool { return values[0] == "" })
	u := url.URL{Path: p.URL.Path, RawQuery: query.Encode()}
	return u.String()
}

// Next returns the address of the next page of a list of the API, as a page of the console.
func (p *page) Next(uri *string) string {
	if uri == nil {
		return ""
	}
	u, err := url.Parse(*uri)
	if err != nil {
		return ""
	}
	return p.Here("before_id", u.Query().Get("before_id"), "cursor", u.Query().Get("cursor"))
}
