package openapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	speakeasy "github.com/speakeasy-api/openapi/openapi"

	"github.com/serviceusers/caddy-service-users/admin"
	"github.com/serviceusers/caddy-service-users/store"
	"github.com/serviceusers/caddy-service-users/tools/openapi/client"
)

// validators are programs that tell whether a text is an OpenAPI document.
var validators = map[string]func(ctx context.Context, text []byte) error{
	"speakeasy-api/openapi": func(ctx context.Context, text []byte) error {
		doc, problems, err := speakeasy.Unmarshal(ctx, bytes.NewReader(text))
		if err != nil {
			return err
		}
		unresolved, err := doc.ResolveAllReferences(ctx, speakeasy.ResolveAllOptions{OpenAPILocation: "openapi.json", DisableExternalRefs: true})
		return errors.Join(append(append(problems, unresolved...), err)...)
	},
	"getkin/kin-openapi": func(ctx context.Context, text []byte) error {
		doc, err := openapi3.NewLoader().LoadFromData(text)
		if err != nil {
			return err
		}
		return doc.Validate(ctx)
	},
}

// served is the document as the API serves it.
func served(t *testing.T) []byte {
	t.Helper()
	w := httptest.NewRecorder()
	admin.New(nil, nil, nil).Serve(w, httptest.NewRequest(http.MethodGet, "/service_users/openapi.json", nil), store.Local)
	if w.Code != http.StatusOK {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	return w.Body.Bytes()
}

// The document is valid, and it would be seen if it were not.
func TestValid(t *testing.T) {
	text := served(t)
	for name, validate := range validators {
		if err := validate(t.Context(), text); err != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for what, change := range map[string]func(doc map[string]any){
		"no title":            func(doc map[string]any) { delete(in(doc, "info"), "title") },
		"an unknown type":     func(doc map[string]any) { in(doc, "components", "schemas", "Token")["type"] = "struct" },
		"a text for a number": func(doc map[string]any) { in(doc, "components", "schemas", "Token")["maxProperties"] = "many" },
		"a lost reference":    func(doc map[string]any) { delete(in(doc, "components", "schemas"), "Token") },
		"no path parameter":   func(doc map[string]any) { delete(in(doc, "paths", "/service_users/{id}", "get"), "parameters") },
		"a name used twice": func(doc map[string]any) {
			in(doc, "paths", "/service_users", "get")["operationId"] = "createServiceUser"
		},
		"an unknown security": func(doc map[string]any) { in(doc, "components", "securitySchemes", "basic")["type"] = "password" },
	} {
		var doc map[string]any
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		change(doc)
		broken, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, validate := range validators {
			if validate(t.Context(), broken) != nil {
				seen++
			}
		}
		if seen == 0 {
			t.Errorf("%s: no validator sees it", what)
		}
	}
}

// in returns a member of a member of an object.
func in(object map[string]any, names ...string) map[string]any {
	for _, name := range names {
		object = object[name].(map[string]any)
	}
	return object
}

// The linters and the generator of the client read the document that is served, but for the version.
func TestDocumentIsServed(t *testing.T) {
	text, err := os.ReadFile("../../admin/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var file, got map[string]any
	if err := errors.Join(json.Unmarshal(text, &file), json.Unmarshal(served(t), &got)); err != nil {
		t.Fatal(err)
	}
	in(file, "info")["version"] = in(got, "info")["version"]
	if !reflect.DeepEqual(got, file) {
		t.Error("admin/openapi.json is not the document that is served")
	}
}

// checked sends requests to the API and compares them, and what it answers, with
// the document.
type checked struct {
	t      *testing.T
	router routers.Router
	api    http.RoundTripper
	used   map[string]bool // operations
}

func (c *checked) RoundTrip(r *http.Request) (*http.Response, error) {
	route, params, err := c.router.FindRoute(r)
	if err != nil {
		c.t.Errorf("%s %s: %v", r.Method, r.URL, err)
		return c.api.RoundTrip(r)
	}
	c.used[route.Operation.OperationID] = true
	options := &openapi3filter.Options{IncludeResponseStatus: true, RejectWhenRequestBodyNotSpecified: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, SkipSettingDefaults: true}
	input := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route, Options: options}
	if err := openapi3filter.ValidateRequest(r.Context(), input); err != nil {
		c.t.Errorf("%s %s: the request: %v", r.Method, r.URL, err)
	}
	resp, err := c.api.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	answer := &openapi3filter.ResponseValidationInput{RequestValidationInput: input, Status: resp.StatusCode, Header: resp.Header, Options: options}
	if err := openapi3filter.ValidateResponse(r.Context(), answer.SetBodyBytes(body)); err != nil {
		c.t.Errorf("%s %s: the answer: %v\n\t%s", r.Method, r.URL, err, body)
	}
	return resp, nil
}

// The generated client leads a service user through its life.
func TestLifeCycle(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	api := admin.New(s, nil, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { api.Serve(w, r, store.Local) }))
	defer server.Close()
	doc, err := openapi3.NewLoader().LoadFromData(served(t))
	if err != nil {
		t.Fatal(err)
	}
	doc.Servers = openapi3.Servers{{URL: server.URL}}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	transport := &checked{t: t, router: router, api: http.DefaultTransport, used: make(map[string]bool)}
	c, err := client.NewClientWithResponses(server.URL, client.WithHTTPClient(&http.Client{Transport: transport}))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()

	// A service user, with its first token.
	made := must(c.CreateServiceUserWithResponse(ctx, nil, client.NewServiceUser{Name: ptr("billing-sync"), Teams: ptr([]string{"finance"}), Labels: ptr(map[string]string{"env": "prod"}), Role: ptr(client.RoleManager)}))(t, 201)
	user := made.JSON201
	if user.Name != "billing-sync" || user.Role != client.RoleManager || user.ExpiresAt != nil || user.Token == nil || !strings.HasPrefix(*user.Token, "csu_") {
		t.Fatalf("created: got %+v", user)
	}
	again := must(c.CreateServiceUserWithResponse(ctx, nil, client.NewServiceUser{Name: ptr("billing-sync")}))(t, 409)
	if e := again.ApplicationproblemJSON409; e == nil || e.ErrorCode != "ERR_NGROK_4112" || e.Details["name"] == "" {
		t.Errorf("created twice: got %+v", e)
	}
	list := must(c.ListServiceUsersWithResponse(ctx, &client.ListServiceUsersParams{Limit: ptr(1), Name: ptr("billing-sync")}))(t, 200).JSON200
	if len(list.ServiceUsers) != 1 || list.ServiceUsers[0].Id != user.Id || list.NextPageUri != nil {
		t.Errorf("listed: got %+v", list)
	}
	shown := must(c.GetServiceUserWithResponse(ctx, user.Id, nil))(t, 200)
	tag := shown.HTTPResponse.Header.Get("ETag")
	if shown.JSON200.Etag != tag || shown.JSON200.Token != nil || shown.JSON200.Labels["env"] != "prod" {
		t.Errorf("shown: got %+v and ETag %s", shown.JSON200, tag)
	}
	changed := must(c.UpdateServiceUserWithResponse(ctx, user.Id, &client.UpdateServiceUserParams{IfMatch: &tag}, client.ServiceUserInput{DisplayName: ptr("Billing sync"), Role: ptr(client.RoleMember), ExpiresAt: ptr("2100-01-01T00:00:00Z")}))(t, 200).JSON200
	if changed.DisplayName != "Billing sync" || changed.Role != client.RoleMember || changed.ExpiresAt == nil || changed.ExpiresAt.Year() != 2100 {
		t.Errorf("changed: got %+v", changed)
	}
	must(c.UpdateServiceUserWithResponse(ctx, user.Id, &client.UpdateServiceUserParams{IfMatch: &tag}, client.ServiceUserInput{}))(t, 412)

	// Its tokens.
	token := must(c.CreateTokenWithResponse(ctx, user.Id, nil, client.TokenInput{Description: ptr("ci"), Ttl: ptr("90d")}))(t, 201).JSON201
	if token.State != client.TokenStateActive || token.ExpiresAt == nil || token.Token == nil {
		t.Errorf("token: got %+v", token)
	}
	must(c.UpdateTokenWithResponse(ctx, user.Id, token.Id, &client.UpdateTokenParams{}, client.TokenInput{AllowedIps: ptr([]string{"192.0.2.0/24"})}))(t, 200)
	next := must(c.RefreshTokenWithResponse(ctx, user.Id, token.Id, nil, client.RefreshInput{Grace: ptr("24h")}))(t, 201).JSON201
	if next.Replaces == nil || *next.Replaces != token.Id {
		t.Errorf("refreshed: got %+v", next)
	}
	if old := must(c.GetTokenWithResponse(ctx, user.Id, token.Id, nil))(t, 200).JSON200; old.State != client.TokenStateRetiring || old.RetiresAt == nil || old.ReplacedBy != next.Id {
		t.Errorf("the old token: got %+v", old)
	}
	must(c.RevokeTokenWithResponse(ctx, user.Id, token.Id, nil))(t, 204)
	tokens := must(c.ListTokensWithResponse(ctx, user.Id, nil))(t, 200).JSON200.Tokens
	if states := []client.TokenState{tokens[0].State, tokens[1].State, tokens[2].State}; !slices.Equal(states, []client.TokenState{client.TokenStateActive, client.TokenStateRevoked, client.TokenStateActive}) {
		t.Errorf("tokens: got states %q", states)
	}

	// A permission group, with a rule in either form, and a permission.
	must(c.LoadPermissionsWithResponse(ctx, nil, client.Catalogue{Permissions: []client.PermissionInput{{Key: "people.write", Name: "Change people", Rules: []string{"allow PUT /v1/people/{id}"}}}}))(t, 200)
	var text, object client.RuleInput
	if err := errors.Join(text.FromRuleText("allow GET /v1/people/{id}"), object.FromRuleObject(client.RuleObject{Effect: client.EffectDeny, Methods: []string{"GET"}, Path: "/v1/people/me"})); err != nil {
		t.Fatal(err)
	}
	group := must(c.CreateGroupWithResponse(ctx, nil, client.GroupInput{Name: ptr("people-readers"), Mode: ptr(client.ModeEnforce), Rules: ptr([]client.RuleInput{text})}))(t, 201).JSON201
	if len(group.Rules) != 1 || group.Rules[0].Text != "allow GET /v1/people/{id}" || group.Rules[0].Effect != client.EffectAllow {
		t.Errorf("group: got %+v", group)
	}
	rule := must(c.AddRuleWithResponse(ctx, group.Id, nil, object))(t, 201).JSON201
	if rule.Text != "deny GET /v1/people/me" {
		t.Errorf("rule: got %+v", rule)
	}
	must(c.AddRuleWithResponse(ctx, group.Id, nil, text))(t, 201)
	must(c.GrantPermissionWithResponse(ctx, group.Id, "people.write", nil))(t, 204)
	must(c.AddMemberWithResponse(ctx, group.Id, user.Id, nil))(t, 204)
	if members := must(c.ListMembersWithResponse(ctx, group.Id, nil))(t, 200).JSON200.Members; len(members) != 1 || members[0].Id != user.Id || members[0].Source != "name" {
		t.Errorf("members: got %+v", members)
	}

	// What it may do, and why.
	explain := func(method, url string) *client.Explanation {
		return must(c.ExplainWithResponse(ctx, client.ExplainInput{ServiceUserId: &user.Id, Method: &method, Url: &url}))(t, 200).JSON200
	}
	if e := explain("GET", "/v1/people/7"); e.Decision != "allow" || e.PermissionGroup == nil || e.Nearest != nil {
		t.Errorf("allowed: got %+v", e)
	}
	if e := explain("GET", "/v1/people/me"); e.Decision != "deny" || e.Rule == nil || e.Rule.Id != rule.Id {
		t.Errorf("denied: got %+v", e)
	}
	if e := explain("DELETE", "/v1/people/7"); e.Decision != "deny" || e.Rule != nil || e.Grant == nil {
		t.Errorf("not allowed: got %+v", e)
	}
	if who := must(c.WhoCanWithResponse(ctx, &client.WhoCanParams{Method: "PUT", Url: "/v1/people/7"}))(t, 200).JSON200.ServiceUsers; len(who) != 1 || who[0].Id != user.Id {
		t.Errorf("who can: got %+v", who)
	}
	if a := must(c.AccessWithResponse(ctx, user.Id))(t, 200).JSON200; len(a.PermissionGroups) != 1 || len(a.PermissionGroups[0].Rules) != 4 {
		t.Errorf("access: got %+v", a)
	}
	must(c.WouldDenyWithResponse(ctx, &client.WouldDenyParams{}))(t, 200)

	// The end.
	must(c.RemoveMemberWithResponse(ctx, group.Id, user.Id, nil))(t, 204)
	must(c.WithdrawPermissionWithResponse(ctx, group.Id, "people.write", nil))(t, 204)
	must(c.DeletePermissionWithResponse(ctx, &client.DeletePermissionParams{Key: "people.write"}))(t, 204)
	must(c.RemoveRuleWithResponse(ctx, group.Id, rule.Id, nil))(t, 204)
	must(c.UpdateGroupWithResponse(ctx, group.Id, &client.UpdateGroupParams{}, client.GroupInput{Description: ptr("")}))(t, 200)
	must(c.DeleteGroupWithResponse(ctx, group.Id, &client.DeleteGroupParams{}))(t, 204)
	must(c.DeleteServiceUserWithResponse(ctx, user.Id, &client.DeleteServiceUserParams{}))(t, 204)
	must(c.GetServiceUserWithResponse(ctx, user.Id, nil))(t, 404)

	for _, op := range strings.Fields("createServiceUser listServiceUsers getServiceUser updateServiceUser deleteServiceUser createToken refreshToken revokeToken createGroup addRule addMember explain") {
		if !transport.used[op] {
			t.Errorf("%s was not asked for", op)
		}
	}
}

// response is what the client returns for any operation.
type response interface {
	StatusCode() int
	GetBody() []byte
}

// must returns the response when it came, and has the status that is wanted.
func must[R response](r R, err error) func(t *testing.T, want int) R {
	return func(t *testing.T, want int) R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if got := r.StatusCode(); got != want {
			t.Fatalf("%T: got %d %s, want %d", r, got, r.GetBody(), want)
		}
		return r
	}
}

func ptr[T any](v T) *T { return &v }
