package neighbours

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// bearer sends a token with each request.
type bearer string

func (token bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Host = "api.example.com" // in production the site has a name, which the server does not expect
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+string(token))
	}
	return http.DefaultTransport.RoundTrip(r)
}

// TestMCP runs the example for MCP between the client and the server of the Go SDK. The server sees the caller of each
// request, and refuses what comes around the settings of the example.
func TestMCP(t *testing.T) {
	text, err := os.ReadFile("../../examples/mcp/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	server := mcp.NewServer(&mcp.Implementation{Name: "weather", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "whoami"}, func(_ context.Context, call *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: answerFor(call.Extra.Header.Get("X-Service-User-Id"))}}}, nil, nil
	})
	upstream := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil))
	t.Cleanup(upstream.Close)
	_, upstreamPort, _ := net.SplitHostPort(upstream.Listener.Addr().String())
	_, port, _ := net.SplitHostPort(s.address)
	t.Setenv("API_PORT", port)
	t.Setenv("UPSTREAM_PORT", upstreamPort)
	t.Setenv("SERVICE_USERS_STORE", os.Getenv("STORE"))
	if err := s.loadFile(strings.Replace(string(text), "http://localhost:", "http://:", 1)); err != nil {
		t.Fatal(err)
	}
	agent := s.create("agent")

	connect := func(token, path string) (*mcp.ClientSession, error) {
		client := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil)
		return client.Connect(t.Context(), &mcp.StreamableClientTransport{
			Endpoint: "http://" + s.address + path, HTTPClient: &http.Client{Transport: bearer(token)}, MaxRetries: -1,
		}, nil)
	}
	session, err := connect(agent.secret, "/mcp")
	if err != nil {
		t.Fatal(err)
	}
	result, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "whoami", Arguments: map[string]any{}})
	if err != nil || result.IsError || len(result.Content) != 1 || result.Content[0].(*mcp.TextContent).Text != answerFor(agent.id) {
		t.Errorf("a call: got %+v, %v", result, err)
	}
	if err := session.Close(); err != nil { // DELETE
		t.Errorf("the end of the session: %v", err)
	}
	for name, token := range map[string]string{"no token": "", "a wrong token": "csu_x"} {
		if _, err := connect(token, "/mcp"); err == nil || !strings.Contains(strings.ToLower(err.Error()), "unauthorized") {
			t.Errorf("%s: got %v, want Unauthorized", name, err)
		}
	}
}
