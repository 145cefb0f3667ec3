//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// gateway is a peer that is built from its Go module, with the versions that its authors chose.
type gateway struct {
	name, module, version string
	main                  string // the package of the program
	program               string // once it is built …
	failed                error  // … or why it could not be built
}

var (
	oathkeeper  = &gateway{name: "Oathkeeper", module: "github.com/ory/oathkeeper", version: "v0.40.9", main: "."}
	oauth2Proxy = &gateway{name: "oauth2-proxy", module: "github.com/oauth2-proxy/oauth2-proxy/v7", version: "v7.15.6", main: "."}
	traefik     = &gateway{name: "Traefik", module: "github.com/traefik/traefik/v3", version: "v3.6.12", main: "./cmd/traefik"}

	gateways = []*gateway{oathkeeper, oauth2Proxy, traefik}
)

// gateway returns the program, after it has built it once.
func (b *bench) gateway(ctx context.Context, g *gateway) (program string, err error) {
	if g.program == "" && g.failed == nil {
		if g.failed = b.buildGateway(ctx, g); g.failed != nil {
			g.failed = &missing{fmt.Errorf("%s %s: %w", g.name, g.version, g.failed)}
		}
	}
	return g.program, g.failed
}

// buildGateway builds a copy of the module: the go command ignores the replacements in the go.mod of
// all modules but the main one.
func (b *bench) buildGateway(ctx context.Context, g *gateway) error {
	fmt.Fprintf(os.Stderr, "building %s %s\n", g.name, g.version)
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", g.module+"@"+g.version).Output()
	if err != nil {
		return fmt.Errorf("go mod download: %w\n%s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return err
	}
	place := filepath.Join(b.dir, g.name)
	if err := os.CopyFS(place, os.DirFS(module.Dir)); err != nil {
		return err
	}
	defer os.RemoveAll(place)
	if g == traefik {
		if err := withoutDNS(place); err != nil {
			return err
		}
	}
	program := place + ".program"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, g.main)
	cmd.Dir = place
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	g.program = program
	return nil
}

// withoutDNS takes the clients of a hundred DNS providers out of Traefik, which obtain certificates: they
// take longer to build than the rest, and some module proxies lack some of them.
func withoutDNS(place string) error {
	file, stub := filepath.Join(place, "pkg/provider/acme/provider.go"), filepath.Join(place, "pkg/dns")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text = bytes.Replace(text, []byte(`"github.com/go-acme/lego/v4/providers/dns"`), []byte(`"github.com/traefik/traefik/v3/pkg/dns"`), 1)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(stub, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(stub, "dns.go"), []byte(`package dns

import (
	"errors"

	"github.com/go-acme/lego/v4/challenge"
)

func NewDNSChallengeProviderByName(string) (challenge.Provider, error) {
	return nil, errors.New("built without DNS providers")
}
`), 0o600)
}

// peers compares other ways to check callers, each where it does well.
func (b *bench) peers(ctx context.Context) error {
	users, err := b.stock(ctx, 10_000)
	if err != nil {
		return err
	}
	var accounts []login
	var passwords strings.Builder
	for i := range 10_000 {
		l := login{id: fmt.Sprintf("user-%d", i), secret: fmt.Sprintf("secret-%d", i), path: "/v1/things/1"}
		accounts = append(accounts, l)
		passwords.WriteString(sha1Password(l.id, l.secret))
	}
	all := passwords.String()
	one, _, _ := strings.Cut(all, "\n")

	s := b.section("peers", "Peers")
	s.note = "The accounts of `basic_auth` have bcrypt hashes: of cost 14, Caddy's default, for the one; of cost 4 for the 1000, or filling the cache would take a quarter of an hour. " +
		"A warm cache never hashes; it holds 1000 passwords. The hashes of nginx, oauth2-proxy and Traefik are SHA-1. nginx, with as many workers as the proxy has processors, is bounded by the upstream and by wrk. " +
		"Oathkeeper asks a token endpoint, and keeps the answer for each caller. An authority always agrees, and names the caller in three headers."
	for _, g := range b.gateways {
		s.note += fmt.Sprintf(" %s %s is built from its Go module.", g.name, g.version)
	}
	const bare = "bare reverse_proxy"
	const user = "X-Forwarded-User: user-0\r\n"
	compare := func(name string, start func(*subject) error) *subject { return s.add(name, bare, 200, start) }
	authority := identity[0]
	s.add(bare, "", 200, b.bare(nil, users))
	const plugin, nginx = "plugin, 10 000 service users", "nginx `auth_basic`, 10 000 accounts"
	compare(plugin, b.plugin(nil, users)).checks("X-Service-User-Id: " + users.logins[0].id)
	compare(lean+", 10 000 service users", b.site(nil, storeOption(users), "service_users\n"+leanProxy, users)).checks("X-Service-User-Id: " + users.logins[0].id)
	compare("`basic_auth` with hash_cache, 1 account, warm", func(t *subject) error { return b.serveBasicAuth(ctx, t, 1, 14, true) }).checks("Authorization: Basic ")
	compare("`basic_auth` with hash_cache, 1000 accounts, warm", func(t *subject) error { return b.serveBasicAuth(ctx, t, 1000, 4, true) }).checks("Authorization: Basic ")
	compare("`forward_auth` to an authority", func(t *subject) error { return b.serveForwardAuth(t, users) }).sees = authority
	compare("nginx, no check", func(t *subject) error { return b.serveNginx(t, accounts[:1], "", "") })
	compare("nginx `auth_basic`, 1 account", func(t *subject) error { return b.serveNginx(t, accounts[:1], basicAuth, one) }).checks(user)
	compare(nginx, func(t *subject) error { return b.serveNginx(t, accounts, basicAuth, all) }).checks(user)
	compare("nginx `auth_request` to an authority", func(t *subject) error { return b.serveNginx(t, accounts, authRequest, "") }).sees = authority
	if slices.Contains(b.gateways, oathkeeper) {
		compare("Oathkeeper, 1000 clients, warm", func(t *subject) error {
			t.warm = true
			rules := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, oathkeeperRules, b.upstream))
			return b.serveGateway(ctx, oathkeeper, t, accounts[:1000], "", fmt.Sprintf(oathkeeperConfig, rules), "serve", "--config", "{place}/config.yaml", "--disable-telemetry")
		}).checks(user)
	}
	if slices.Contains(b.gateways, oauth2Proxy) {
		compare("oauth2-proxy, 10 000 accounts", func(t *subject) error {
			return b.serveGateway(ctx, oauth2Proxy, t, accounts, all, "", "--http-address", "{address}", "--upstream", "http://{upstream}/",
				"--htpasswd-file", "{place}/passwords", "--provider", "github", "--client-id", "a", "--client-secret", "b", "--cookie-secret", strings.Repeat("c", 32),
				"--email-domain", "*", "--request-logging=false", "--auth-logging=false", "--standard-logging=false")
		}).checks(user)
	}
	if slices.Contains(b.gateways, traefik) {
		serve := func(logins []login, check, passwords string) func(*subject) error {
			return func(t *subject) error {
				return b.serveGateway(ctx, traefik, t, logins, passwords, fmt.Sprintf(traefikConfig, check), "--entryPoints.web.address={address}",
					"--providers.file.filename={place}/config.yaml", "--log.level=ERROR", "--global.checkNewVersion=false", "--global.sendAnonymousUsage=false")
			}
		}
		const accountsOf = `basicAuth: {usersFile: "{place}/passwords", headerField: X-Forwarded-User}`
		compare("Traefik, no check", serve(accounts, "headers: {}", ""))
		compare("Traefik `basicAuth`, 1 account", serve(accounts[:1], accountsOf, one)).checks(user)
		compare("Traefik `basicAuth`, 10 000 accounts", serve(accounts, accountsOf, all)).checks(user)
		compare("Traefik `forwardAuth` to an authority", serve(accounts,
			`forwardAuth: {address: "http://{authority}/auth", authResponseHeaders: [X-Service-User-Id, X-Service-User-Name, X-Service-User-Groups]}`, "")).sees = authority
	}
	if err := s.run(ctx); err != nil {
		return err
	}
	s.relate(plugin, nginx)
	s.relate(lean+", 10 000 service users", nginx)
	return nil
}

// The lines of nginx's configuration that check callers, and the configurations of the gateways.
const (
	basicAuth   = "auth_basic things; auth_basic_user_file {place}/passwords; proxy_set_header X-Forwarded-User $remote_user;"
	authRequest = `auth_request /auth;
			auth_request_set $id $upstream_http_x_service_user_id; proxy_set_header X-Service-User-Id $id;
			auth_request_set $name $upstream_http_x_service_user_name; proxy_set_header X-Service-User-Name $name;
			auth_request_set $groups $upstream_http_x_service_user_groups; proxy_set_header X-Service-User-Groups $groups;`

	// Oathkeeper checks Basic credentials at a token endpoint alone.
	oathkeeperConfig = `
log: {level: error}
serve: {proxy: {host: 127.0.0.1, port: {port}}, api: {host: 127.0.0.1, port: 0}, prometheus: {host: 127.0.0.1, port: 0}}
access_rules: {repositories: ["inline://%s"]}
authenticators: {oauth2_client_credentials: {enabled: true, config: {token_url: "http://{authority}/token", cache: {enabled: true, ttl: 24h, max_tokens: 100000}}}}
authorizers: {allow: {enabled: true}}
mutators: {header: {enabled: true, config: {headers: {X-Forwarded-User: "{{ print .Subject }}"}}}}
`
	oathkeeperRules = `[{"id": "all", "match": {"url": "http://api.example.com/<.*>", "methods": ["GET"]}, "upstream": {"url": "http://%s"},
		"authenticators": [{"handler": "oauth2_client_credentials"}], "authorizer": {"handler": "allow"}, "mutators": [{"handler": "header"}]}]`

	traefikConfig = "http:\n  routers: {all: {rule: \"PathPrefix(`/`)\", service: api, middlewares: [check]}}\n  middlewares: {check: {%s}}\n" +
		"  services: {api: {loadBalancer: {servers: [{url: \"http://{upstream}\"}]}}}\n"
)

// authority starts an authority that works for a subject.
func (b *bench) authority(t *subject) (address string, err error) {
	if address, err = b.freeAddress(); err != nil {
		return "", err
	}
	if t.beside, err = b.start("authority", b.cpus.proxy, nil, b.self, "role", "authority", address); err != nil {
		return "", err
	}
	return address, t.beside.await(context.Background(), "", address, request("/"), 200)
}

func (b *bench) serveForwardAuth(t *subject, users *stock) error {
	authority, err := b.authority(t)
	if err != nil {
		return err
	}
	return b.site(nil, "", "forward_auth "+authority+" {\nuri /auth\ncopy_headers X-Service-User-Id X-Service-User-Name X-Service-User-Groups\n}\n"+proxy, users)(t)
}

// serveProgram starts a program that answers the requests of these logins. In its arguments and its
// configuration "{place}" is a directory of its own, with the files passwords and config.yaml. It has to
// listen at "{address}", which has the port "{port}".
func (b *bench) serveProgram(t *subject, logins []login, passwords, config string, args ...string) error {
	address, err := b.freeAddress()
	if err != nil {
		return err
	}
	b.started++
	place := filepath.Join(b.dir, fmt.Sprintf("place-%d", b.started))
	_, port, _ := strings.Cut(address, ":")
	known := []string{"{address}", address, "{port}", port, "{place}", place, "{upstream}", b.upstream}
	if strings.Contains(config, "{authority}") {
		authority, err := b.authority(t)
		if err != nil {
			return err
		}
		known = append(known, "{authority}", authority)
	}
	fill := strings.NewReplacer(known...)
	if err := os.Mkdir(place, 0o700); err != nil {
		return err
	}
	for name, text := range map[string]string{"passwords": passwords, "config.yaml": fill.Replace(config)} {
		if err := os.WriteFile(filepath.Join(place, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	for i := range args {
		args[i] = fill.Replace(args[i])
	}
	p, err := b.start(t.name, b.cpus.proxy, nil, args...)
	if err != nil {
		return err
	}
	var calls []string
	for _, l := range logins {
		calls = append(calls, request(l.path, basic(l.id, l.secret)))
	}
	t.serve(p, address, calls)
	return nil
}

// serveNginx starts an nginx with these lines in its only location.
func (b *bench) serveNginx(t *subject, logins []login, check, passwords string) error {
	user, authority := "", ""
	if os.Getuid() == 0 {
		user = "user root;" // the workers read the passwords
	}
	if check == authRequest {
		authority = `upstream authority { server {authority}; keepalive 64; keepalive_requests 1000000000; }`
	}
	return b.serveProgram(t, logins, passwords, user+fmt.Sprintf(`
worker_processes %d;
daemon off;
pid {place}/pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path {place}; proxy_temp_path {place}; fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};
	keepalive_requests 1000000000;
	proxy_http_version 1.1;
	upstream api { server {upstream}; keepalive 64; keepalive_requests 1000000000; }
	%s
	server {
		listen {address};
		location / {
			%s
			proxy_pass http://api;
			proxy_set_header Connection "";
		}
		location = /auth {
			internal;
			proxy_pass http://%s;
			proxy_set_header Connection "";
		}
	}
}
`, b.processors/2, authority, check, map[bool]string{true: "authority", false: "api"}[authority != ""]), "nginx", "-c", "{place}/config.yaml", "-e", "stderr")
}

// serveGateway starts a gateway, after it was built.
func (b *bench) serveGateway(ctx context.Context, g *gateway, t *subject, logins []login, passwords, config string, args ...string) error {
	program, err := b.gateway(ctx, g)
	if err != nil {
		return err
	}
	return b.serveProgram(t, logins, passwords, config, append([]string{program}, args...)...)
}
