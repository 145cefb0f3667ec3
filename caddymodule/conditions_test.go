package caddymodule

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

const conditionsCaddyfile = `
{
	servers {
		protocols h1 h2 h2c
	}
	servers :{$TRUSTED_PORT} {
		trusted_proxies static 127.0.0.1/32
	}
	service_users {
		store {$SERVICE_USERS_STORE}
		throttle off
	}
}

http://:{$API_PORT} {
	bind 127.0.0.1
	service_users {
		strip X-Internal
		public GET /open/probe when request.header('X-Probe') == 'yes'
		public GET /open/near when cidr('127.0.0.0/8').containsIP(request.remote_ip)
		public GET /open/far when cidr('192.0.2.0/24').containsIP(request.remote_ip)
		public GET /open/{name} when params.name == 'seven' && request.method == 'GET'
		public GET /open/json/{rest...} when request.path.endsWith('.json')
		public GET /open/past when timestamp('2020-01-01T00:00:00Z') > now
		public GET /open/error when request.header('X-List').split(',')[3] == 'x'
		public GET /open/login when request.header('Authorization') == ''
	}
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}

http://:{$TRUSTED_PORT} {
	service_users
	reverse_proxy 127.0.0.1:{$UPSTREAM_PORT}
}
`

// local sends a request to the local door of the admin API and decodes the answer.
func (s *server) local(method, path, body string, into any) *response {
	s.t.Helper()
	got := s.do(method, "CADDY_PORT", path, credentials{}, body, "Content-Type: application/json")
	if into != nil {
		if err := json.Unmarshal([]byte(got.body), into); err != nil {
			s.t.Fatalf("%s %s: %d %s: %v", method, path, got.StatusCode, got.body, err)
		}
	}
	return got
}

// conditionRow is some rules and requests that they are asked about. An "@" in a
// rule or a request is the path that belongs to the row.
type conditionRow struct {
	rules    []string
	requests []conditional
}

// conditional is a request, its header as "Name: value" lines, and what becomes
// of it. One over HTTP/1.1 only cannot be said in HTTP/2.
type conditional struct {
	line   string // "GET @/x"
	header string
	want   int
	h1     bool
}

func allowed(line string, header ...string) conditional {
	return conditional{line, strings.Join(header, "\n"), 200, false}
}

func refused(line string, header ...string) conditional {
	return conditional{line, strings.Join(header, "\n"), 403, false}
}

func (c conditional) onlyH1() conditional { c.h1 = true; return c }

var conditionRows = []conditionRow{
	{[]string{`allow * @ when request.method == "GET"`}, []conditional{allowed("GET @"), refused("HEAD @"), refused("POST @")}},
	{[]string{`allow PROPFIND,GET @ when request.method.startsWith("PROP")`}, []conditional{allowed("PROPFIND @"), refused("GET @")}},
	{[]string{`allow GET @ when request.host == "app.example"`}, []conditional{
		allowed("GET @"), allowed("GET @", "Host: APP.example:8080"), allowed("GET @", "Host: app.example."), refused("GET @", "Host: other.example"),
		refused("GET @", "Host: other.example", "X-Forwarded-Host: app.example"),
	}},
	{[]string{`allow GET @/{rest...} when request.path.endsWith(".json")`}, []conditional{
		allowed("GET @/a.json"), allowed("GET @/a/b.json"), allowed("GET @/a%2Ejson"), allowed("GET @/a.json?x=y"), refused("GET @/a.xml"), refused("GET @/a?x=.json"), refused("GET @/a.JSON"),
	}},
	{[]string{`allow GET @/{id} when params.id in user.labels.people.split(",")`}, []conditional{
		allowed("GET @/7"), allowed("GET @/%37"), allowed("GET @/9?id=8"), refused("GET @/8"), refused("GET @/7,9"), refused("GET @/7/"),
	}},
	{[]string{`allow GET @/{id}/{what...} when params.id == "a" && params.what == "b/c"`}, []conditional{allowed("GET @/a/b/c"), refused("GET @/a/b"), refused("GET @/a/b/c/")}},
	{[]string{`allow GET @ when request.remote_ip == "127.0.0.1"`}, []conditional{allowed("GET @"), allowed("GET @", "X-Forwarded-For: 192.0.2.7")}},
	{[]string{`allow GET @ when cidr("192.0.2.0/24").containsIP(request.remote_ip)`}, []conditional{
		refused("GET @"), refused("GET @", "X-Forwarded-For: 192.0.2.7"), refused("GET @", "X-Real-IP: 192.0.2.7", "Forwarded: for=192.0.2.7"),
	}},

	// A client's own X-Real-IP is overwritten with its address.
	{[]string{`allow GET @ when request.header("X-Real-IP") == "127.0.0.1"`}, []conditional{
		refused("GET @"), allowed("GET @", "X-Real-IP: 192.0.2.7"), allowed("GET @", "x-real-ip: 192.0.2.7", "X-Real-IP: 192.0.2.8"), refused("GET @", "X_Real_IP: 127.0.0.1"),
	}},
	{[]string{`allow GET @ when request.header("X-Real-IP") == "192.0.2.7"`}, []conditional{refused("GET @", "X-Real-IP: 192.0.2.7"), refused("GET @", "X_Real_IP: 192.0.2.7")}},

	{[]string{`allow GET @ when request.header("X-Env") == "prod"`}, []conditional{
		allowed("GET @", "X-Env: prod"), allowed("GET @", "x-env: prod"), allowed("GET @", "X-ENV:   prod").onlyH1(), refused("GET @"), refused("GET @", "X-Env: Prod"),
		refused("GET @", "X-Env: prod", "X-Env: dev"), refused("GET @", "X-Env: prod", "X-Env: prod"), refused("GET @", "X!Env: prod"), refused("GET @", "X_Env: prod"), refused("GET @", "X.Env: prod"),
	}},
	{[]string{`allow GET @ when request.header("x-ENV") == "a, b"`}, []conditional{allowed("GET @", "X-Env: a", "x-env: b"), allowed("GET @", "X-Env: a, b"), refused("GET @", "X-Env: b", "X-Env: a"), refused("GET @", "X-Env: a,b")}},
	{[]string{`allow GET @ when "b" in request.header("X-Env").split(", ")`}, []conditional{allowed("GET @", "X-Env: a", "X-Env: b"), allowed("GET @", "X-Env: b"), refused("GET @", "X-Env: ab")}},
	{[]string{`allow GET @ when request.header("X-Env") == ""`}, []conditional{allowed("GET @"), allowed("GET @", "X-Env:"), refused("GET @", "X-Env: ,")}},
	{[]string{`allow POST @ when request.header("Content-Type") == "application/json"`}, []conditional{allowed("POST @", "Content-Type: application/json"), refused("POST @", "Content-Type: text/plain"), refused("POST @")}},
	{[]string{`allow GET @ when request.header("X-Long").startsWith("a")`}, []conditional{allowed("GET @", "X-Long: "+strings.Repeat("a", 2048)), refused("GET @", "X-Long: "+strings.Repeat("a", 2049))}},
	{[]string{`allow GET @`, `deny GET @ when request.header("X-Long") == "never"`}, []conditional{allowed("GET @", "X-Long: "+strings.Repeat("a", 2048)), refused("GET @", "X-Long: "+strings.Repeat("a", 2049)), refused("GET @", "X-Long: never")}},

	// What cannot be evaluated: no allow, but a deny.
	{[]string{`allow GET @ when user.labels.missing == "x"`}, []conditional{refused("GET @")}},
	{[]string{`allow GET @ when user.labels.?missing.orValue("x") == "x"`}, []conditional{allowed("GET @")}},
	{[]string{`allow GET @ when request.header("X-List").split(",")[1] == "x"`}, []conditional{allowed("GET @", "X-List: a,x"), refused("GET @", "X-List: a"), refused("GET @")}},
	{[]string{`allow GET @`, `deny GET @ when user.labels.missing == "x"`}, []conditional{refused("GET @")}},
	{[]string{`allow GET @`, `deny GET @ when request.header("X-List").split(",")[1] == "x"`}, []conditional{allowed("GET @", "X-List: a,b"), refused("GET @", "X-List: a,x"), refused("GET @", "X-List: a"), refused("GET @")}},
	{[]string{`allow GET @/{id}`, `deny GET @/{id} when params.id == "secret"`}, []conditional{allowed("GET @/a"), refused("GET @/secret"), refused("GET @/%73ecret"), allowed("GET @/secrets")}},
	{[]string{`allow GET @/{rest...}`, `deny GET @/{id} when params.id == "secret"`}, []conditional{refused("GET @/secret/"), allowed("GET @/a/"), allowed("GET @/secret/b")}},

	{[]string{`allow GET @ when now > timestamp("2020-01-01T00:00:00Z")`}, []conditional{allowed("GET @")}},
	{[]string{`allow GET @ when now < timestamp("2020-01-01T00:00:00Z")`}, []conditional{refused("GET @")}},
	{[]string{`allow GET @ when now - user.created_at < duration("24h") && user.created_at <= now`}, []conditional{allowed("GET @")}},
	{[]string{`allow GET @`, `deny GET @ when now > timestamp("2020-01-01T00:00:00Z")`}, []conditional{refused("GET @")}},

	{[]string{`allow GET @ when user.name == "billing-sync" && user.role == "member" && "finance" in user.teams && user.id.startsWith("service_")`}, []conditional{allowed("GET @"), refused("POST @")}},
	{[]string{`allow GET @ when user.name == request.header("X-Who")`}, []conditional{allowed("GET @", "X-Who: billing-sync"), refused("GET @", "X-Who: somebody"), refused("GET @")}},
}

// neverSeen are headers that a client cannot make a condition see: they are
// removed, or Caddy writes them anew.
var neverSeen = map[string]string{
	"X-Service-User-Id": "service_x", "X-Service-User-Role": "admin", "X-Service-User-New": "x", "Authorization": "", "Proxy-Authorization": "Basic eDp4",
	"Remote-User": "alice", "X-Forwarded-User": "alice", "X-Auth-Request-Email": "alice@example.com", "Forwarded": "for=192.0.2.7",
	"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "inner.example", "X-HTTP-Method-Override": "GET", "X-Original-URL": "/c0", "X-Internal": "yes",
	"Connection": "X-A", "Keep-Alive": "timeout=5", "Upgrade": "h2c", "Host": "app.example",
}

// TestConditions asks real rules with conditions about real requests, over
// HTTP/1.1 and HTTP/2: they see what the upstream gets, and nothing else.
func TestConditions(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.moreports("TRUSTED_PORT")
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, conditionsCaddyfile)

	rows := conditionRows
	for name, value := range neverSeen {
		header := name + ": " + value
		seen := conditionRow{
			[]string{fmt.Sprintf(`allow GET @/none when request.header(%q) == ""`, name), fmt.Sprintf(`allow GET @/some when request.header(%q) != ""`, name)},
			[]conditional{allowed("GET @/none", header), refused("GET @/some", header)},
		}
		if name == "Authorization" { // the credential itself
			seen.requests = []conditional{allowed("GET @/none"), refused("GET @/some")}
		}
		for i := range seen.requests {
			switch name {
			case "Connection", "Keep-Alive", "Upgrade":
				seen.requests[i].h1 = true // malformed in HTTP/2
			}
		}
		rows = append(rows, seen)
	}
	var rules []string
	for i, row := range rows {
		for _, rule := range row.rules {
			rules = append(rules, strings.Replace(rule, "@", fmt.Sprintf("/c%d", i), 1))
		}
	}
	body, err := json.Marshal(map[string]any{"name": "conditions", "rules": rules})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.local("POST", "/permission_groups", string(body), nil); got.StatusCode != 201 {
		t.Fatalf("creating the rules: %d %s", got.StatusCode, got.body)
	}
	user := s.create("billing-sync", "--group", "conditions", "--team", "finance", "--label", "people=7,9")
	login := "Authorization: " + basic(user.id, user.secret)
	h2 := overH2(t, s.addr("API_PORT"))

	requests := 0
	for i, row := range rows {
		for _, r := range row.requests {
			method, path, _ := strings.Cut(strings.Replace(r.line, "@", fmt.Sprintf("/c%d", i), 1), " ")
			host := "Host: app.example"
			var fields []string
			for line := range strings.SplitSeq(r.header, "\n") {
				if strings.HasPrefix(line, "Host: ") {
					host = line
				} else if line != "" {
					fields = append(fields, line)
				}
			}
			for _, protocol := range []string{"HTTP/1.1", "HTTP/2"} {
				up.reset()
				status := 0
				switch {
				case protocol == "HTTP/1.1":
					lines := append([]string{host, login}, fields...)
					if !strings.Contains(r.header, "Connection: ") {
						lines = append(lines, "Connection: close")
					}
					status = exchange(t, s.addr("API_PORT"), method+" "+path+" HTTP/1.1\r\n"+strings.Join(lines, "\r\n")+"\r\n\r\n")
				case r.h1:
					continue
				default:
					list := wireFields(method, path, ":authority: "+strings.TrimPrefix(host, "Host: "), "authorization: "+strings.TrimPrefix(login, "Authorization: "))
					for _, line := range fields {
						name, value, _ := strings.Cut(line, ":")
						list = append(list, hpack.HeaderField{Name: strings.ToLower(name), Value: strings.TrimSpace(value)})
					}
					status = h2(wireRequest{fields: list})
				}
				requests++
				if n := len(up.requests()); status != r.want || (n == 1) != (r.want == 200) {
					t.Errorf("%q: %s %.60q over %s: got %d and %d requests upstream, want %d", row.rules, r.line, r.header, protocol, status, n, r.want)
				}
			}
		}
	}
	if requests < 200 {
		t.Errorf("sent %d requests, want at least 200", requests)
	}

	// A proxy that Caddy trusts may say what it says.
	s.mustCLI("group", "create", "proxied", "--rule", `allow GET /p/proto when request.header("X-Forwarded-Proto") == "https"`,
		"--rule", `allow GET /p/ip when cidr("192.0.2.0/24").containsIP(request.remote_ip)`)
	s.mustCLI("group", "add", "proxied", "billing-sync")
	for port, want := range map[string]int{"TRUSTED_PORT": 200, "API_PORT": 403} {
		for path, header := range map[string]string{"/p/proto": "X-Forwarded-Proto: https", "/p/ip": "X-Forwarded-For: 192.0.2.7"} {
			if got := s.do("GET", port, path, user, "", header).StatusCode; got != want {
				t.Errorf("%s with %q at %s: got %d, want %d", path, header, port, got, want)
			}
		}
	}
}

// TestPublicConditions: what is public under a condition needs a credential
// where the condition does not hold or cannot be evaluated.
func TestPublicConditions(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.moreports("TRUSTED_PORT")
	up := startRecorder(t, s.ports["UPSTREAM_PORT"])
	withCaddyfile(s, conditionsCaddyfile)
	s.mustCLI("group", "create", "everything", "--rule", "allow * /{rest...}")
	user := s.create("billing-sync", "--group", "everything")
	ours := "Authorization: " + basic(user.id, user.secret)
	s.try(t, up, []attempt{
		{name: "holds", path: "/open/probe", header: "X-Probe: yes", status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "does not hold", path: "/open/probe", header: "X-Probe: no", status: 401},
		{name: "no header", path: "/open/probe", status: 401},
		{name: "two headers", path: "/open/probe", header: "X-Probe: yes\nX-Probe: yes", status: 401},
		{name: "does not hold, but a credential", path: "/open/probe", header: ours, status: 200, passes: true, has: "X-Service-User-Id: " + user.id},
		{name: "holds, beside a credential", path: "/open/probe", header: "X-Probe: yes\n" + ours, status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "near", path: "/open/near", status: 200, passes: true},
		{name: "far", path: "/open/far", status: 401},
		{name: "says that it is far", path: "/open/far", header: "X-Forwarded-For: 192.0.2.7\nX-Real-IP: 192.0.2.7", status: 401},
		{name: "a parameter", path: "/open/seven", status: 200, passes: true},
		{name: "another parameter", path: "/open/eight", status: 401},
		{name: "another method", path: "/open/seven", method: "HEAD", status: 401},
		{name: "a path", path: "/open/json/a/b.json", status: 200, passes: true},
		{name: "another path", path: "/open/json/a/b.xml?.json", status: 401},
		{name: "a time that is over", path: "/open/past", status: 401},
		{name: "cannot be evaluated", path: "/open/error", header: "X-List: a,b", status: 401},
		{name: "can be evaluated", path: "/open/error", header: "X-List: a,b,c,x", status: 200, passes: true},
		{name: "no condition sees a credential", path: "/open/login", header: ours, status: 200, passes: true, hasNot: "X-Service-User"},
		{name: "ambiguous", path: "/open/%2e%2e/probe", header: "X-Probe: yes", status: 400},
	})
}
