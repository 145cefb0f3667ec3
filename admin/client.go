package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/serviceusers/caddy-service-users/access"
	"github.com/serviceusers/caddy-service-users/store"
)

// Client calls the API over HTTP.
//
// With Wait it sends every request that is not a GET with that parameter. Then Applied has the value of
// [AppliedHeader] in the last answer to a change, and only one goroutine may use the client.
type Client struct {
	HTTP   *http.Client // nil is http.DefaultClient
	Base   string       // scheme and host, such as "http://localhost:2019"
	Header http.Header  // sent with every request

	Wait, Applied string
}

// Offline returns a client that answers its own requests from an open store, on behalf of an actor.
// It sends nothing over the network.
func Offline(s *store.Store, by store.Actor) *Client { return New(s, nil, nil).Client(by) }

// Client returns a client whose requests the API answers in this process, on behalf of an actor.
func (a *API) Client(by store.Actor) *Client {
	transport := roundTrip(func(r *http.Request) *http.Response {
		body, text := io.Pipe()
		w := &answer{
			Response: http.Response{StatusCode: http.StatusOK, Header: make(http.Header), Body: body},
			text:     text, begun: make(chan struct{}),
		}
		// Serve has its own goroutine, because each write to the pipe waits for the reader.
		go func() {
			defer text.Close() // the end of the body comes after Serve: the reader may then close the store
			defer w.begin()
			defer func() { // a panic ends the answer, as in net/http, and not the process
				if fault := recover(); fault != nil {
					text.CloseWithError(fmt.Errorf("panic: %v\n%s", fault, debug.Stack()))
				}
			}()
			a.Serve(w, r, by)
		}()
		<-w.begun
		return &w.Response
	})
	return &Client{Base: "http://offline", HTTP: &http.Client{Transport: transport}}
}

// answer is an http.ResponseWriter and the http.Response that the client reads from it at the same
// time.
type answer struct {
	http.Response
	text  *io.PipeWriter
	once  sync.Once
	begun chan struct{} // closed when the status and the header are complete
}

func (a *answer) begin()              { a.once.Do(func() { close(a.begun) }) }
func (a *answer) Header() http.Header { return a.Response.Header }

func (a *answer) WriteHeader(status int) {
	a.StatusCode = status
	a.begin()
}

func (a *answer) Write(p []byte) (int, error) {
	a.begin()
	return a.text.Write(p)
}

type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil { // allowed for a client, but a handler expects a body that it can read
		r.Body = http.NoBody
	}
	return f(r), nil
}

// UnreachableError means that the API did not answer: no server listens at Base, or another program
// does.
type UnreachableError struct {
	Base string
	Err  error
}

func (e *UnreachableError) Error() string { return fmt.Sprintf("%s: %v", e.Base, e.Err) }

func (e *UnreachableError) Unwrap() error { return e.Err }

// Do sends one request and decodes the answer into out, unless out is nil. It returns an answer
// with the status 400 or above as an [*Error].
func (c *Client) Do(ctx context.Context, method, uri string, in, out any) error {
	return c.do(ctx, method, uri, http.Header{"Content-Type": {"application/json"}}, in, out)
}

// PostOnce is Do for a POST that issues a token. If the answer to an earlier call with the same key
// was lost, the token of that call gets another secret, and no further token is issued. An empty key
// is not sent.
func (c *Client) PostOnce(ctx context.Context, key, uri string, in, out any) error {
	header := http.Header{"Content-Type": {"application/json"}}
	if key != "" {
		header.Set(keyHeader, key)
	}
	return c.do(ctx, http.MethodPost, uri, header, in, out)
}

// PostNew is PostOnce without another secret: after an earlier call with the same key, the error is
// an [*Error] with the status 412, and its details have token_id and service_user_id.
func (c *Client) PostNew(ctx context.Context, key, uri string, in, out any) error {
	header := http.Header{"Content-Type": {"application/json"}, keyHeader: {key}, "If-None-Match": {"*"}}
	return c.do(ctx, http.MethodPost, uri, header, in, out)
}

// Patch is Do for a JSON merge patch (RFC 7396). etag names the version to change: the answer is
// 412 if the resource has changed since. "" means every version.
func (c *Client) Patch(ctx context.Context, uri, etag string, in, out any) error {
	header := http.Header{"Content-Type": {mergePatchType}}
	if etag != "" {
		header.Set("If-Match", etag)
	}
	return c.do(ctx, http.MethodPatch, uri, header, in, out)
}

func (c *Client) do(ctx context.Context, method, uri string, header http.Header, in, out any) error {
	// A uri may come from an answer, and must not lead the credentials to another host.
	if !strings.HasPrefix(uri, "/") {
		err := fmt.Errorf("answered with the link %q, not as the service-user API does", uri)
		return &UnreachableError{c.Base, err}
	}
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := c.request(ctx, method, uri, body)
	if err != nil {
		return err
	}
	if in != nil {
		maps.Copy(req.Header, header)
	}
	waits := c.Wait != "" && method != http.MethodGet
	if waits {
		query := req.URL.Query()
		query.Set("wait", c.Wait)
		req.URL.RawQuery = query.Encode()
	}
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err = c.read(resp, out); err == nil && waits {
		c.Applied = cmp.Or(resp.Header.Get(AppliedHeader), "unknown")
	}
	return err
}

func (c *Client) request(ctx context.Context, method, uri string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.Base+uri, body)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, c.Header)
	return req, nil
}

func (c *Client) send(req *http.Request) (*http.Response, error) {
	client := *http.DefaultClient
	if c.HTTP != nil {
		client = *c.HTTP
	}
	// The API never redirects, so a redirect comes from another program. net/http would follow
	// it, and repeat a POST as a GET.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return nil, &UnreachableError{c.Base, err}
	}
	return resp, nil
}

// read decodes an answer into out, unless out is nil. The header OperationHeader distinguishes an
// answer of the API from one of another program.
func (c *Client) read(resp *http.Response, out any) error {
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return &UnreachableError{c.Base, err}
	}
	var e Error
	switch ok := resp.StatusCode/100 == 2 && resp.Header.Get(OperationHeader) != ""; {
	case ok && (out == nil || json.Unmarshal(text, out) == nil):
		return nil
	case !ok && json.Unmarshal(text, &e) == nil && e.Code != "":
		return &e
	}
	return c.foreign(resp, text)
}

// foreign returns the error for an answer of another program, such as Caddy's admin endpoint or a
// login before the site door. It has the reason that the program gives, without any secret in it.
func (c *Client) foreign(resp *http.Response, text []byte) error {
	var other struct{ Error, Detail string } // of Caddy, and of RFC 9457
	_ = json.Unmarshal(text, &other)
	said := "answered " + resp.Status
	if to, err := resp.Location(); err == nil && resp.StatusCode/100 == 3 { // its query may contain secrets
		said += " to " + to.Scheme + "://" + to.Host + to.Path
	}
	line := strings.TrimSpace(string(text))
	if len(line) < 100 && !json.Valid(text) && !strings.ContainsAny(line, "<\n") {
		other.Error = line
	}
	if reason := cmp.Or(other.Error, other.Detail); reason != "" {
		said += ": " + access.MaskSecrets(reason)
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
		return NewError(resp.StatusCode, "", c.Base+" "+said)
	}
	return &UnreachableError{c.Base, errors.New(said + ", not as the service-user API does")}
}

// All reads every page of a list and calls add with each. uri leads to the first page; add returns
// the Page of the list that it got.
func All[List any](ctx context.Context, c *Client, uri string, add func(List) Page) error {
	for {
		var list List
		if err := c.Do(ctx, http.MethodGet, uri, nil, &list); err != nil {
			return err
		}
		next := add(list).NextPageURI
		if next == nil {
			return nil
		}
		uri = *next
	}
}

// FindServiceUser returns the service user with this id or name.
func (c *Client) FindServiceUser(ctx context.Context, idOrName string) (ServiceUser, error) {
	return find(ctx, c, "service", "service user", "/service_users", idOrName,
		func(l ServiceUserList) []ServiceUser { return l.ServiceUsers })
}

// FindGroup returns the permission group with this id or name.
func (c *Client) FindGroup(ctx context.Context, idOrName string) (Group, error) {
	return find(ctx, c, "group", "permission group", "/permission_groups", idOrName,
		func(l GroupList) []Group { return l.PermissionGroups })
}

// find returns the resource with this id or name. kind is the prefix of its id, noun its name in an
// error, and path its list, which entries unpacks.
func find[T, List any](
	ctx context.Context, c *Client, kind, noun, path, idOrName string, entries func(List) []T,
) (found T, err error) {
	if store.ValidID(kind, idOrName) {
		err = c.Do(ctx, http.MethodGet, path+"/"+idOrName, nil, &found)
		return found, err
	}
	var list List
	if err := c.Do(ctx, http.MethodGet, path+"?name="+url.QueryEscape(idOrName), nil, &list); err != nil {
		return found, err
	}
	named := entries(list)
	if len(named) == 0 {
		msg := fmt.Sprintf("there is no %s %q", noun, idOrName)
		return found, NewError(http.StatusNotFound, "ERR_NOT_FOUND", msg)
	}
	return named[0], nil
}
