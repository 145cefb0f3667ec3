package caddymodule

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// section returns a section of docs/deployments.md.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, text, ok := strings.Cut(string(must(os.ReadFile("../docs/deployments.md"))), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("docs/deployments.md has no section %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// setUp runs the commands of a section of docs/deployments.md. It returns the service users that they
// create, by name, and the requests of its curl commands, as "METHOD /path".
func setUp(t *testing.T, s *server, heading string) (users map[string]credentials, tries []string) {
	t.Helper()
	users = make(map[string]credentials)
	words := regexp.MustCompile(`"[^"]*"|'[^']*'|\S+`)
	for _, block := range strings.Split(section(t, heading), "\n```sh\n")[1:] {
		block, _, _ = strings.Cut(block, "\n```")
		for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", " ")) {
			var args []string
			for _, word := range words.FindAllString(line, -1) {
				args = append(args, strings.Trim(word, `"'`))
			}
			switch {
			case strings.HasPrefix(line, "caddy service-user create "):
				users[args[3]] = s.create(args[3], withoutSecretFile(args[4:])...)
			case strings.HasPrefix(line, "caddy service-user "):
				s.mustCLI(args[2:]...)
			case strings.Contains(line, "| curl "):
				method := "GET"
				if slices.Contains(args, "--json") || slices.Contains(args, "-d") {
					method = "POST"
				}
				_, path, ok := strings.Cut(args[len(args)-1], "localhost:8080")
				if !ok {
					t.Fatalf("%s: the last word of %q is not an address of the example", heading, line)
				}
				tries = append(tries, method+" "+path)
			}
		}
	}
	if len(users) == 0 || len(tries) == 0 {
		t.Fatalf("%s: %d service users and %d requests", heading, len(users), len(tries))
	}
	return users, tries
}

// withoutSecretFile leaves the flag --secret-file out, so that the test reads the token.
func withoutSecretFile(args []string) []string {
	i := slices.Index(args, "--secret-file")
	return slices.Delete(args, i, i+2)
}

// standIn is an upstream of an example.
type standIn struct {
	http.Handler
	mu    sync.Mutex
	taken []http.Header // of the requests since the last call of headers
}

func (up *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	up.mu.Lock()
	up.taken = append(up.taken, r.Header.Clone())
	up.mu.Unlock()
	up.Handler.ServeHTTP(w, r)
}

func (up *standIn) headers() []http.Header {
	up.mu.Lock()
	defer up.mu.Unlock()
	taken := up.taken
	up.taken = nil
	return taken
}

// startStandIn starts an upstream at the address that an example has.
func startStandIn(t *testing.T, port string, h http.Handler) *standIn {
	t.Helper()
	up := &standIn{Handler: h}
	server := httptest.NewUnstartedServer(up)
	server.Listener.Close()
	server.Listener = must(net.Listen("tcp", "127.0.0.1:"+port))
	server.Start()
	t.Cleanup(server.Close)
	return up
}

// localHost reports whether a Host is one of those that Ollama and the SDKs of MCP accept on loopback.
func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// ollama checks what the server of Ollama checks (allowedHostsMiddleware and the CORS settings in its
// server/routes.go): Host and Origin. A chat answers in lines; it waits for next between the first two.
func ollama(next <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/chat", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Model    string
			Messages []struct{ Role, Content string }
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Model == "" {
			http.Error(w, "model is required", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		fmt.Fprintf(w, `{"model":%q,"message":{"role":"assistant","content":"Hel"},"done":false}`+"\n", body.Model)
		_ = http.NewResponseController(w).Flush()
		<-next
		fmt.Fprintf(w, `{"model":%q,"message":{"role":"assistant","content":"lo"},"done":true}`+"\n", body.Model)
	})
	for _, pattern := range []string{
		"GET /api/tags", "POST /api/pull", "DELETE /api/delete", "POST /api/generate", "POST /api/embed",
		"POST /v1/chat/completions", "GET /v1/models",
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin, err := url.Parse(r.Header.Get("Origin"))
		if err != nil || origin.Host != "" && origin.Host != r.Host && !localHost(origin.Host) || !localHost(r.Host) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// loki checks what Loki checks with auth_enabled (package tenant of grafana/dskit): exactly one tenant, of
// certain characters, to push; one or more, divided by "|", to query.
func loki() http.Handler {
	valid := regexp.MustCompile(`^[a-zA-Z0-9!_.*'()-]{1,150}$`)
	lines := make(map[string][]string) // by tenant
	var mu sync.Mutex
	tenants := func(w http.ResponseWriter, r *http.Request) (ids []string) {
		value := r.Header.Get("X-Scope-OrgID")
		if value == "" {
			http.Error(w, "no org id", http.StatusUnauthorized)
			return nil
		}
		for id := range strings.SplitSeq(value, "|") {
			id, _, _ = strings.Cut(id, ":") // a subtenant, which is ignored
			if !valid.MatchString(id) || id == "." || id == ".." {
				http.Error(w, "the tenant ID contains an unsupported character", http.StatusBadRequest)
				return nil
			}
			ids = append(ids, id)
		}
		return ids
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /loki/api/v1/push", func(w http.ResponseWriter, r *http.Request) {
		ids := tenants(w, r)
		if ids == nil {
			return
		}
		var body struct {
			Streams []struct{ Values [][2]string }
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(ids) > 1 || r.Header.Get("Content-Type") != "application/json" {
			http.Error(w, "one tenant and a JSON body are needed", http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, stream := range body.Streams {
			for _, value := range stream.Values {
				lines[ids[0]] = append(lines[ids[0]], value[1])
			}
		}
		w.WriteHeader(http.StatusNoContent)
	})
	for _, pattern := range []string{"GET /loki/api/v1/query_range", "GET /loki/api/v1/labels"} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			for _, id := range tenants(w, r) {
				fmt.Fprintln(w, id+":", strings.Join(lines[id], " "))
			}
		})
	}
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ready") })
	mux.HandleFunc("POST /flush", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	return mux
}

// mcp checks what the Go SDK of MCP checks (StreamableHTTPHandler): the Host on loopback, the version of the
// protocol, Content-Type, Accept, and the session, which belongs to one caller.
func mcp() http.Handler {
	owners := make(map[string]string) // session to id
	var mu sync.Mutex
	events := func(w http.ResponseWriter, text string) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "event: message\ndata: %s\n\n", text)
		_ = http.NewResponseController(w).Flush()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		caller, session := r.Header.Get("X-Service-User-Id"), r.Header.Get("Mcp-Session-Id")
		accept := r.Header.Get("Accept")
		owner, known := owners[session]
		body, _ := io.ReadAll(r.Body)
		begins := r.Method == "POST" && bytes.Contains(body, []byte(`"initialize"`))
		switch {
		case !localHost(r.Host):
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path != "/mcp":
			w.WriteHeader(http.StatusNotFound)
		case !slices.Contains([]string{"", "2025-03-26", "2025-06-18", "2025-11-25"}, r.Header.Get("MCP-Protocol-Version")):
			w.WriteHeader(http.StatusBadRequest)
		case r.Method == "POST" && r.Header.Get("Content-Type") != "application/json":
			w.WriteHeader(http.StatusUnsupportedMediaType)
		case r.Method != "DELETE" && !strings.Contains(accept, "text/event-stream"),
			r.Method == "POST" && !strings.Contains(accept, "application/json"), session == "" && !begins:
			w.WriteHeader(http.StatusBadRequest)
		case session != "" && !known:
			w.WriteHeader(http.StatusNotFound)
		case known && owner != caller:
			w.WriteHeader(http.StatusForbidden)
		case begins:
			session = fmt.Sprintf("session-%d", len(owners))
			owners[session] = caller
			w.Header().Set("Mcp-Session-Id", session)
			events(w, `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-06-18"}}`)
		case r.Method == "POST":
			events(w, `{"jsonrpc":"2.0","id":2,"result":{"content":[{"type":"text","text":"7 degrees"}]}}`)
		case r.Method == "DELETE":
			delete(owners, session)
			w.WriteHeader(http.StatusNoContent)
		case r.Method == "GET":
			events(w, `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`)
			mu.Unlock()
			<-r.Context().Done()
			mu.Lock()
		}
	})
}

// collector takes spans as an OpenTelemetry collector does, by OTLP over HTTP.
func collector(spans chan<- string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/x-protobuf") // and an empty answer: all spans are taken
		spans <- string(text)
	})
}

// TestDeployments runs the Caddyfiles of examples for certain upstreams, in one process, with the commands of
// docs/deployments.md. Each has a stand-in behind it that checks what the real program checks.
func TestDeployments(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	caddyfile, global := "", ""
	ports := func(name string) (site, upstream string) {
		return strings.ToUpper(name) + "_PORT", strings.ToUpper(name) + "_UPSTREAM"
	}
	for _, name := range []string{"ollama", "loki", "mcp", "tracing", "php"} {
		text := string(must(os.ReadFile("../examples/" + map[bool]string{true: "php-fpm", false: name}[name == "php"] + "/Caddyfile")))
		_, text, _ = strings.Cut("\n"+text, "\n{\n")
		options, sites, ok := strings.Cut(text, "\n}\n")
		if !ok || caddyfile != "" && options != global {
			t.Fatalf("%s: the global options are\n%s\nand not those of the others", name, options)
		}
		site, upstream := ports(name)
		s.moreports(site, upstream)
		global = options
		// In production the site has a name, which upstreams on loopback do not expect.
		caddyfile += strings.NewReplacer("http://localhost:", "http://:", "{$API_PORT:", "{$"+site+":", "{$UPSTREAM_PORT:", "{$"+upstream+":").Replace(sites)
	}
	next, spans := make(chan struct{}, 100), make(chan string, 100)
	ups := make(map[string]*standIn)
	for name, h := range map[string]http.Handler{
		"ollama": ollama(next), "loki": loki(), "mcp": mcp(),
		"tracing": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, r.Header.Get("Traceparent"), r.Header.Get("X-Service-User-Name"))
		}),
	} {
		_, upstream := ports(name)
		ups[name] = startStandIn(t, s.ports[upstream], h)
	}
	s.moreports("OTLP_PORT")
	startStandIn(t, s.ports["OTLP_PORT"], collector(spans))
	s.env = append(s.env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:"+s.ports["OTLP_PORT"], "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		"OTEL_BSP_SCHEDULE_DELAY=1", "PHP_FPM=127.0.0.1:"+s.ports["PHP_UPSTREAM"], "PHP_ROOT="+s.dir+"/php")
	withCaddyfile(s, "{\n"+global+"\n}\n"+caddyfile)

	// one asks an example, and compares the status.
	one := func(t *testing.T, name, request string, who credentials, status int, body string, header ...string) *response {
		t.Helper()
		s := *s
		s.t = t
		site, _ := ports(name)
		method, path, _ := strings.Cut(request, " ")
		got := s.do(method, site, path, who, body, append(slices.Clip(header), "Host: api.example.com")...)
		if got.StatusCode != status {
			t.Errorf("%s with %q: got %d %q, want %d", request, header, got.StatusCode, got.body, status)
		}
		return got
	}
	// clean checks that no secret has reached an upstream, and that each request had its caller.
	clean := func(t *testing.T, name string) {
		t.Helper()
		for _, h := range ups[name].headers() {
			if text := fmt.Sprint(h); strings.Contains(text, "csu_") || h.Get("Authorization") != "" {
				t.Errorf("the upstream got %s", text)
			}
		}
	}
	bearer := func(who credentials) string { return "Authorization: Bearer " + who.secret }

	t.Run("Ollama", func(t *testing.T) {
		users, tries := setUp(t, s, "Ollama")
		notebook := users["notebook"]
		const chat = `{"model":"llama3.2","messages":[{"role":"user","content":"Hello"}]}`
		// The first line arrives before the second one is written.
		r := must(http.NewRequestWithContext(t.Context(), "POST", "http://"+s.addr("OLLAMA_PORT")+"/api/chat", strings.NewReader(chat)))
		r.Host = "api.example.com"
		r.Header.Set("Authorization", "Bearer "+notebook.secret)
		resp := must(http.DefaultTransport.RoundTrip(r))
		defer resp.Body.Close()
		in := bufio.NewReader(resp.Body)
		if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, `"Hel"`) {
			t.Errorf("the first line: got %d %q, %v", resp.StatusCode, line, err)
		}
		next <- struct{}{}
		if rest, err := io.ReadAll(in); err != nil || !strings.Contains(string(rest), `"done":true`) {
			t.Errorf("the other lines: got %q, %v", rest, err)
		}
		for _, try := range tries {
			next <- struct{}{}
			one(t, "ollama", try, notebook, 200, chat)
		}
		one(t, "ollama", "GET /api/tags", notebook, 200, "")
		one(t, "ollama", "POST /v1/chat/completions", credentials{}, 200, chat, bearer(notebook))
		one(t, "ollama", "POST /api/pull", notebook, 403, `{"model":"llama3.2"}`)
		one(t, "ollama", "DELETE /api/delete", notebook, 403, `{"model":"llama3.2"}`)
		one(t, "ollama", "DELETE /API/delete", notebook, 403, `{"model":"llama3.2"}`)
		one(t, "ollama", "GET /api/tags", credentials{}, 401, "")
		clean(t, "ollama")
		got := one(t, "ollama", "GET /api/tags", notebook, 403, "", "Origin: https://evil.example")
		if got.Header.Get(DecisionHeader) != "" || len(ups["ollama"].headers()) != 1 {
			t.Error("a page of another origin: the 403 is the guard's, want that of Ollama")
		}
		keeper := s.create("keeper", "--group", "model-keepers")
		one(t, "ollama", "DELETE /api/delete", keeper, 200, `{"model":"llama3.2"}`)
		one(t, "ollama", "POST /api/chat", keeper, 403, chat)
	})

	t.Run("Loki", func(t *testing.T) {
		users, tries := setUp(t, s, "Loki")
		shipper, grafana := users["shop-shipper"], users["shop-grafana"]
		other := s.create("other-shipper", "--team", "other", "--group", "log-shippers")
		push := func(line string) string {
			return `{"streams":[{"stream":{"app":"x"},"values":[["1795293000000000000","` + line + `"]]}]}`
		}
		const to, isJSON = "POST /loki/api/v1/push", "Content-Type: application/json"
		one(t, "loki", to, shipper, 204, push("ours"), isJSON)
		one(t, "loki", to, other, 204, push("theirs"), isJSON)
		one(t, "loki", to, other, 204, push("forged"), isJSON, "X-Scope-OrgID: shop", "X-Scope-OrgID: shop", "x_scope_orgid: shop")
		for _, forged := range [][]string{nil, {"X-Scope-OrgID: other"}, {"X-Scope-OrgID: shop|other"}, {"Connection: X-Scope-OrgID"}} {
			got := one(t, "loki", "GET /loki/api/v1/query_range?query={app=\"x\"}", grafana, 200, "", forged...)
			if got.body != "shop: ours\n" {
				t.Errorf("with %q: the readers of shop got %q", forged, got.body)
			}
		}
		for _, try := range tries {
			one(t, "loki", try, grafana, 200, "")
		}
		one(t, "loki", to, grafana, 403, push("x"), isJSON)
		one(t, "loki", "GET /loki/api/v1/query_range", shipper, 403, "")
		one(t, "loki", "POST /flush", shipper, 403, "")
		one(t, "loki", to, credentials{}, 401, push("x"), isJSON, "X-Scope-OrgID: shop")
		one(t, "loki", "GET /ready", credentials{}, 200, "")
		clean(t, "loki")
		// Loki refuses what is not one team, and takes a team with a colon for the text before it.
		one(t, "loki", to, s.create("no-team", "--group", "log-shippers"), 401, push("x"), isJSON)
		one(t, "loki", to, s.create("two-teams", "--team", "shop", "--team", "other", "--group", "log-shippers"), 400, push("x"), isJSON)
		one(t, "loki", to, s.create("a-space", "--team", "the shop", "--group", "log-shippers"), 400, push("x"), isJSON)
		one(t, "loki", to, s.create("a-colon", "--team", "shop:eu", "--group", "log-shippers"), 204, push("of-eu"), isJSON)
		if got := one(t, "loki", "GET /loki/api/v1/query_range", grafana, 200, ""); got.body != "shop: ours of-eu\n" {
			t.Errorf("the colon: got %q", got.body)
		}
	})

	t.Run("MCP", func(t *testing.T) {
		users, tries := setUp(t, s, "MCP")
		agent := users["agent"]
		header := []string{"Content-Type: application/json", "Accept: application/json, text/event-stream", bearer(agent)}
		const begin = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"curl","version":"1"}}}`
		const call = `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"weather"}}`
		var session string
		for _, try := range tries {
			got := one(t, "mcp", try, credentials{}, 200, begin, header...)
			if session = "Mcp-Session-Id: " + got.Header.Get("Mcp-Session-Id"); !strings.Contains(got.body, "protocolVersion") {
				t.Errorf("initialize: got %q", got.body)
			}
		}
		version := "MCP-Protocol-Version: 2025-06-18"
		with := func(more ...string) []string { return append(slices.Clip(header), more...) }
		if got := one(t, "mcp", "POST /mcp", credentials{}, 200, call, with(session, version)...); !strings.Contains(got.body, "7 degrees") {
			t.Errorf("a call of a tool: got %q", got.body)
		}
		// An event stream arrives while it is open.
		r := must(http.NewRequestWithContext(t.Context(), "GET", "http://"+s.addr("MCP_PORT")+"/mcp", nil))
		r.Host = "api.example.com"
		for _, line := range with(session, version) {
			name, value, _ := strings.Cut(line, ": ")
			r.Header.Set(name, value)
		}
		resp := must(http.DefaultTransport.RoundTrip(r))
		if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || line != "event: message\n" {
			t.Errorf("the event stream: got %d %q, %v", resp.StatusCode, line, err)
		}
		resp.Body.Close()

		one(t, "mcp", "POST /mcp", credentials{}, 400, call, with(session, "MCP-Protocol-Version: 1999-01-01")...)
		one(t, "mcp", "POST /mcp", credentials{}, 404, call, with("Mcp-Session-Id: gone")...)
		one(t, "mcp", "POST /mcp", credentials{}, 400, call, with()...)
		one(t, "mcp", "PUT /mcp", credentials{}, 403, call, with(session)...)
		one(t, "mcp", "POST /admin", credentials{}, 403, call, with(session)...)
		rival := s.create("rival", "--group", "tools")
		one(t, "mcp", "POST /mcp", rival, 403, call, header[0], header[1], session, version)
		clean(t, "mcp")
		one(t, "mcp", "POST /mcp", credentials{}, 403, call, with(session, "Origin: https://evil.example")...)
		got := one(t, "mcp", "POST /mcp", credentials{}, 401, begin, header[:2]...)
		if challenges := strings.Join(got.Header.Values("WWW-Authenticate"), ", "); !strings.Contains(challenges, "Bearer") {
			t.Errorf("a client without a token: got the challenges %q, want Bearer", challenges)
		}
		one(t, "mcp", "GET /.well-known/oauth-protected-resource/mcp", credentials{}, 401, "")
		if got := ups["mcp"].headers(); len(got) > 0 {
			t.Errorf("a page and strangers reached the server: %v", got)
		}
		one(t, "mcp", "DELETE /mcp", credentials{}, 204, "", with(session, version)...)
		one(t, "mcp", "POST /mcp", credentials{}, 404, call, with(session, version)...)
	})

	t.Run("Tracing", func(t *testing.T) {
		users, tries := setUp(t, s, "Tracing")
		const trace = "0af7651916cd43dd8448eb211c80319c"
		// The spans come in any number of messages, some time after the answers.
		arrives := func(what, text string) {
			t.Helper()
			for deadline := time.After(patience); ; {
				select {
				case got := <-spans:
					if strings.Contains(got, text) && strings.Contains(got, "api") {
						return
					}
				case <-deadline:
					t.Fatalf("%s has no span", what)
				}
			}
		}
		id := string(must(hex.DecodeString(trace)))
		for _, try := range tries {
			got := one(t, "tracing", try, users["tracer"], 200, "", "Traceparent: 00-"+trace+"-b7ad6b7169203331-01")
			if !strings.HasPrefix(got.body, "00-"+trace+"-") || !strings.HasSuffix(got.body, "-01 tracer\n") || strings.Contains(got.body, "b7ad6b7169203331") {
				t.Errorf("the upstream got %q, want a span of Caddy in the same trace", got.body)
			}
			arrives("the request", id)
		}
		other := strings.Replace(trace, "0af7", "0bf7", 1)
		one(t, "tracing", "GET /v1/x", credentials{}, 401, "", "Traceparent: 00-"+other+"-b7ad6b7169203331-01")
		arrives("the refused request", string(must(hex.DecodeString(other))))
		clean(t, "tracing")
	})

	t.Run("PHP", func(t *testing.T) {
		php := *s
		php.t, php.ports = t, maps.Clone(s.ports)
		php.ports["UPSTREAM_PORT"] = s.ports["PHP_UPSTREAM"]
		root := startPHP(t, &php)
		if err := os.CopyFS(s.dir+"/php", os.DirFS(root)); err != nil { // Caddy looks for the scripts too
			t.Fatal(err)
		}
		users, tries := setUp(t, s, "PHP")
		for _, try := range tries {
			got := one(t, "php", try, users["billing-sync"], 200, "")
			if want := `["/v1/people/7","","/index.php"]`; got.body != want {
				t.Errorf("PHP got %s, want %s", got.body, want)
			}
		}
		one(t, "php", "GET /admin/users", users["billing-sync"], 403, "")
		one(t, "php", "GET /index.php/v1/people/7", users["billing-sync"], 403, "")
		one(t, "php", "GET /v1/people/7", credentials{}, 401, "")
	})
}
